{
  hashInvalidator ? "",
}:
with import ./config.nix;

let
  input0 = mkDerivation {
    name = "dependencies-input-0";
    buildCommand = "echo foo > $out";
  };

  input1 = mkDerivation {
    name = "dependencies-input-1";
    buildCommand = "echo ${hashInvalidator}FOO > $out";
  };

  input2 = mkDerivation {
    name = "dependencies-input-2";
    buildCommand = "echo ${input0} > $out";
  };

  fixed-input = mkDerivation {
    name = "fixed-input";
    buildCommand = ''
      echo ${hashInvalidator} >/dev/null
      printf fixed > $out
    '';
    outputHashMode = "flat";
    outputHashAlgo = "sha256";
    outputHash = builtins.hashString "sha256" "fixed";
  };
in
mkDerivation {
  name = "dependencies-top";
  buildCommand = ''
    read one < $input1_drv
    read two < $input2
    test "$two" = ${input0}
    read fixed < $fixed_drv || test "$fixed" = fixed
    echo "$one" "$fixed" > $out
  '';
  script = ./config.nix + "/FOOBAR/../.";
  input1_drv = input1;
  input2 = "${input2}";
  fixed_drv = fixed-input;
  meta.description = "Depends in every way";
}
