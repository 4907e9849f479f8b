with import ./config.nix;

mkDerivation {
  name = "placeholders";
  outputs = [
    "out"
    "bin"
    "dev"
  ];
  buildCommand = ''
    echo foo1 > $out
    echo foo2 > $bin
    echo foo3 > $dev
    read one < ${placeholder "out"}
    read two < ${placeholder "bin"}
    read three < ${placeholder "dev"}
    test "$one $two $three" = "foo1 foo2 foo3"
  '';
}
