# Targets that need ever more memory while they are evaluated, and leave little behind, like tests of whole machines: each makes
# table after table of thousands of small sets, and reads all of them again at the end.
{
  targets,
  tables ? 40,
}:
let
  target =
    n:
    let
      table =
        number:
        builtins.listToAttrs (
          builtins.genList (i: {
            name = "entry-${toString i}";
            value = {
              number = i + n;
              text = "entry ${toString i} of table ${toString number} of ${toString n}";
            };
          }) 25000
        );
      all = builtins.genList table tables;
      sum = builtins.foldl' (
        sum: table:
        builtins.foldl' (sum: entry: sum + builtins.stringLength entry.text + entry.number) sum (
          builtins.attrValues table
        )
      );
    in
    derivation {
      name = "large-${toString n}";
      system = builtins.currentSystem;
      builder = "/bin/sh";
      sum = sum (sum 0 all) all;
    };
in
builtins.listToAttrs (
  builtins.genList (n: {
    name = "large-${toString n}";
    value = target (n + 1);
  }) targets
)
