# Targets as heavy as machines composed of modules: each merges thousands of small sets, and no other target needs what comes
# of it. A hundred milliseconds for each, and garbage for the collector; with twice as many modules ten times that.
{
  targets,
  modules ? 4000,
}:
let
  merge =
    a: b:
    a
    // builtins.mapAttrs (
      name: value:
      if builtins.isAttrs value && builtins.isAttrs (a.${name} or null) then merge a.${name} value else value
    ) b;

  module = n: i: {
    services."service-${toString (builtins.bitAnd (i * n) 255)}" = {
      enable = true;
      environment."VARIABLE_${toString i}" = "value ${toString (i + n)}";
      wants = builtins.genList (j: "unit-${toString (i + j)}") 8;
    };
    files."file-${toString i}".text = "${toString n} ${toString i}";
  };

  machine =
    n:
    derivation {
      name = "machine-${toString n}";
      system = builtins.currentSystem;
      builder = "/bin/sh";
      args = [
        "-c"
        "echo > $out"
      ];
      config = builtins.hashString "sha256" (
        builtins.toJSON (builtins.foldl' merge { } (builtins.genList (module n) modules))
      );
    };
in
builtins.listToAttrs (
  builtins.genList (n: {
    name = "machine-${toString n}";
    value = machine (n + 1);
  }) targets
)
