with import ./config.nix;

mkDerivation {
  name = "simple";
  goodPath = "/some/path";
  buildCommand = "echo Hello World > $out";
}
