with import ./config.nix;

let
  addressed =
    args:
    mkDerivation (
      {
        __contentAddressed = true;
        outputHashMode = "recursive";
        outputHashAlgo = "sha256";
      }
      // args
    );
in
rec {
  rooted = addressed {
    name = "rooted";
    outputs = [
      "out"
      "dev"
    ];
    buildCommand = "echo out > $out; echo dev > $dev";
  };
  dependent = addressed {
    name = "dependent";
    buildCommand = "read line < ${rooted}; echo $line > $out";
  };
  transitively = mkDerivation {
    name = "transitively";
    dep = dependent;
    buildCommand = "read line < $dep; echo $line > $out";
  };
}
