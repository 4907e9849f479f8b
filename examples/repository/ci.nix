# What CI builds. Every attribute that is a derivation becomes a step, also in sets that are marked with `recurseForDerivations`.
{
  system ? builtins.currentSystem,
}:
let
  build = import ./nix/build.nix { inherit system; };
  packages = import ./packages { inherit build; };
  each = set: set // { recurseForDerivations = true; };
in
{
  packages = each packages;
  checks = each (import ./checks { inherit build packages; });
  hosts = each (import ./hosts { inherit build packages; });

  # Not marked: CI does not build it.
  lib = {
    inherit build;
  };
}
