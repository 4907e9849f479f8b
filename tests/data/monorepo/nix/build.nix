# What `stdenv.mkDerivation` is where there is nixpkgs.
name: attributes: script:
derivation {
  inherit name;
  system = builtins.currentSystem;
  builder = "/bin/sh";
  args = [
    "-e"
    "-c"
    script
  ];
}
// attributes
