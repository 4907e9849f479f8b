# The same packages and checks as ci.nix has, as a flake. It has no inputs, so there is no flake.lock.
{
  description = "A repository as one has it, without nixpkgs";

  outputs =
    { self }:
    let
      ci = import ./ci.nix { system = "x86_64-linux"; };
      unmarked = set: builtins.removeAttrs set [ "recurseForDerivations" ];
    in
    {
      packages.x86_64-linux = unmarked ci.packages;
      checks.x86_64-linux = unmarked ci.checks;
    };
}
