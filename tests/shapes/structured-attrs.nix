with import ./config.nix;

let
  dep = mkDerivation { name = "dep"; };
in
{
  structured = mkDerivation {
    name = "structured";
    __structuredAttrs = true;
    outputs = [
      "out"
      "dev"
    ];
    buildCommand = ''
      test -z "$int"
      test -n "$NIX_ATTRS_JSON_FILE"
      read json < "$NIX_ATTRS_JSON_FILE" || test -n "$json"
      echo "$json" > ${placeholder "out"}
      echo dev > ${placeholder "dev"}
    '';
    buildInputs = [
      "a"
      123
      "'"
      "\""
      null
      dep
    ];
    hardening.format = true;
    outer.inner = [
      1
      2
    ];
    int = 123456789;
    float = 123.456;
    boolTrue = true;
    nothing = null;
    "foo bar" = "BAD";
    "foo$" = "BAD";
    exportReferencesGraph.refs = [ dep ];
  };

  # The derivation's function of the language sees them as they were given.
  checks = mkDerivation {
    name = "structured-checks";
    __structuredAttrs = true;
    outputChecks.out.maxSize = 1000;
    buildCommand = "echo small > ${placeholder "out"}";
  };

  ignored = mkDerivation {
    name = "ignores-nulls";
    __ignoreNulls = true;
    absent = null;
    buildCommand = "test -z \"$absent\"; echo > $out";
  };
}
