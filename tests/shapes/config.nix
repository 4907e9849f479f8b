rec {
  system = builtins.currentSystem;

  mkDerivation =
    args:
    derivation (
      {
        inherit system;
        builder = "/bin/sh";
        args = [
          "-e"
          "-c"
          (args.buildCommand or "echo ${args.name} > $out")
        ];
      }
      // builtins.removeAttrs args [ "meta" ]
    )
    // {
      meta = args.meta or { };
    };
}
