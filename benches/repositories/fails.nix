# Targets that all need one expensive value, as those of a package set need its standard environment; and beside them attributes
# that do not evaluate: some throw, and some end in an error that `tryEval` does not catch.
{
  targets,
  throws ? 0,
  aborts ? 0,
}:
let
  # Seconds of evaluation: the machines of heavy.nix.
  root = builtins.concatMap (machine: [ machine.config ]) (
    builtins.attrValues (import ./heavy.nix { targets = 8; })
  );
  target =
    name:
    derivation {
      inherit name root;
      system = builtins.currentSystem;
      builder = "/bin/sh";
    };
  attributes =
    kind: number: value:
    builtins.genList (
      n:
      let
        name = "${kind}-${toString n}";
      in
      {
        inherit name;
        value = value name n;
      }
    ) number;
in
builtins.listToAttrs (
  attributes "target" targets (name: _: target name)
  # As packages that are marked as broken.
  ++ attributes "throws" throws (
    name: _: builtins.seq root (throw "${name} is marked as broken, refusing to evaluate")
  )
  # As packages that need what a new version of the set no longer has.
  ++ attributes "aborts" aborts (
    name: n:
    builtins.seq root (
      if builtins.bitAnd n 1 == 0 then { }."needed-by-${name}" else abort "${name} is no longer there"
    )
  )
)
