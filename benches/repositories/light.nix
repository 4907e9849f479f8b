# Targets as light as a derivation can be, in a tree: each depends on another one through something that is no target.
{
  targets,
  throws ? 0,
}:
let
  build =
    name: input:
    derivation {
      inherit name input;
      system = builtins.currentSystem;
      builder = "/bin/sh";
      args = [
        "-c"
        "echo > $out"
      ];
    };
  all = builtins.genList (
    n:
    let
      source = build "source-${toString n}" (if n == 0 then "" else builtins.elemAt all (n / 2));
    in
    build "target-${toString n}" source
  ) targets;
  # Spread evenly. What depends on them does not throw.
  every = if throws == 0 then targets + 1 else targets / throws;
in
builtins.listToAttrs (
  builtins.genList (n: {
    name = "target-${toString n}";
    value =
      if n - n / every * every == every - 1 then
        throw "target ${toString n} is broken"
      else
        builtins.elemAt all n;
  }) targets
)
