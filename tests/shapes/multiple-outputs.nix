with import ./config.nix;

rec {
  # The output `out` has no suffix, wherever it stands.
  named = mkDerivation {
    name = "multiple-named";
    outputs = [
      "out"
      "dev"
    ];
    buildCommand = "echo out > $out; echo dev > $dev";
  };

  a = mkDerivation {
    name = "multiple-a";
    outputs = [
      "first"
      "second"
    ];
    buildCommand = ''
      test -z "$all"
      echo first > $first
      echo $first > $second
    '';
    helloString = "Hello, world!";
  };

  use-a = mkDerivation {
    name = "use-a";
    inherit (a) first second;
    buildCommand = ''
      read one < $first
      read two < $second
      echo $one $two > $out
    '';
  };

  b =
    assert a.second.helloString == "Hello, world!";
    assert a.outputName == "first";
    mkDerivation {
      name = "multiple-b";
      defaultOutput = a;
      firstOutput = a.first.first;
      secondOutput = a.second.first.first.second.second.first.second;
      allOutputs = a.all;
      buildCommand = ''
        test "$firstOutput $secondOutput" = "$allOutputs"
        test "$defaultOutput" = "$firstOutput"
        echo success > $out
      '';
    };

  # Needs the `.drv` of b with all that it is built from, and its outputs.
  c = mkDerivation {
    name = "multiple-c";
    drv = b.drvPath;
    buildCommand = "echo $drv > $out";
  };

  # Needs nothing but the path.
  d = mkDerivation {
    name = "multiple-d";
    drv = builtins.unsafeDiscardOutputDependency b.drvPath;
    buildCommand = "echo $drv > $out";
  };

  # What an attribute selects is an output of the same `.drv`.
  selected = a.second;

  cyclic = mkDerivation {
    name = "cyclic-outputs";
    outputs = [
      "a"
      "b"
    ];
    buildCommand = "echo $b > $a; echo $a > $b";
  };

  installed = mkDerivation {
    name = "multiple-installed";
    outputs = [
      "a_a"
      "b"
      "c"
    ];
    meta.outputsToInstall = [
      "a_a"
      "b"
    ];
    buildCommand = "echo a > $a_a; echo b > $b; echo c > $c";
  };

  incomplete = mkDerivation {
    name = "multiple-incomplete";
    outputs = [
      "out"
      "doc"
    ];
    buildCommand = "echo out > $out";
  };
}
