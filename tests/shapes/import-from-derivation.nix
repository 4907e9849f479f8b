with import <config>;

rec {
  bar = mkDerivation {
    name = "bar";
    buildCommand = "echo 'builtins.add 123 456' > $out";
  };

  value =
    assert builtins.pathExists bar;
    import bar;

  result = mkDerivation {
    name = "foo";
    buildCommand = "printf FOO${toString value} > $out";
  };

  filtered = mkDerivation {
    name = "add-path";
    src = builtins.filterSource (path: type: true) result;
    buildCommand = "read line < $src || echo BLA$line > $out";
  };

  read = mkDerivation { name = builtins.readFile result; };

  generated = import (mkDerivation {
    name = "generated.nix";
    buildCommand = "echo 'd: { a = d \"generated-a\"; recurseForDerivations = true; }' > $out";
  }) (name: mkDerivation { inherit name; });

  path = builtins.path {
    name = "path-from-derivation";
    path = "${result}";
  };

  of-path = mkDerivation {
    name = "of-path";
    src = path;
  };

  broken = import (mkDerivation {
    name = "broken.nix";
    buildCommand = "echo will-fail; exit 1";
  });

  no-expression = import (mkDerivation {
    name = "no-expression.nix";
    buildCommand = "echo '{ a = ' > $out";
  });
}
