# Targets that share nearly everything, like the packages of one language in nixpkgs: each needs some of a thousand libraries, and so
# through them nearly all, each of which takes milliseconds to evaluate, once. What is its own takes none.
{ targets }:
let
  number = 1000;
  build =
    name: inputs: attributes:
    derivation (
      {
        inherit name inputs;
        system = builtins.currentSystem;
        builder = "/bin/sh";
      }
      // attributes
    );
  # Some that come before it, spread like the digits of a hash.
  some =
    count: n: limit:
    builtins.genList (
      i: builtins.elemAt libraries (builtins.bitAnd (n * 7919 + i * i * 104729) 1048575 * limit / 1048576)
    ) (if limit == 0 then 0 else count);
  machines = import ./heavy.nix {
    targets = number;
    modules = 200;
  };
  libraries = builtins.genList (
    n:
    build "library-${toString n}" (some 6 n n) {
      inherit (machines."machine-${toString n}") config;
    }
  ) number;
in
builtins.listToAttrs (
  builtins.genList (n: {
    name = "package-${toString n}";
    value = build "package-${toString n}" (some 12 (n + 4001) number) { };
  }) targets
)
