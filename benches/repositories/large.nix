# Targets that need much memory while they are evaluated and leave little behind, like tests of whole machines: each holds some hundred
# thousand small sets at once.
{
  targets,
  entries ? 400000,
}:
let
  target =
    n:
    let
      table = builtins.listToAttrs (
        builtins.genList (i: {
          name = "entry-${toString i}";
          value = {
            number = i + n;
            text = "entry ${toString i} of ${toString n}";
          };
        }) entries
      );
    in
    derivation {
      name = "large-${toString n}";
      system = builtins.currentSystem;
      builder = "/bin/sh";
      sum = builtins.foldl' (sum: entry: sum + builtins.stringLength entry.text + entry.number) 0 (
        builtins.attrValues table
      );
    };
in
builtins.listToAttrs (
  builtins.genList (n: {
    name = "large-${toString n}";
    value = target (n + 1);
  }) targets
)
