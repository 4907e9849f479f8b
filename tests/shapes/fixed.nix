with import ./config.nix;

let
  fixed =
    dummy: mode: algo: hash:
    mkDerivation {
      name = "fixed";
      inherit dummy;
      buildCommand = "printf 'Hello World!' > $out";
      outputHashMode = mode;
      outputHashAlgo = algo;
      outputHash = hash;
      impureEnvVars = [ "IMPURE_VAR1" ];
    };
  hash = algo: builtins.hashString algo "Hello World!";
in
{
  flat-md5 = fixed "" "flat" "md5" (hash "md5");
  flat-sha1 = fixed "" "flat" "sha1" (hash "sha1");
  flat-sha256 = fixed "" "flat" "sha256" (hash "sha256");
  flat-sha512 = fixed "" "flat" "sha512" (hash "sha512");
  recursive = fixed "" "recursive" "sha256" "0h40zg6hakjv951nyhdad7mv9za56m3za5gnpiw5s1hbwcxzdrq3";

  # Two derivations, one output.
  same-1 = fixed "foo" "flat" "sha256" (hash "sha256");
  same-2 = fixed "bar" "flat" "sha256" (hash "sha256");

  bad = fixed "bad" "flat" "md5" "0ddd8be4b179a529afa5f2ffae4b9858";
  # Too short, and no other base either.
  really-bad = fixed "" "flat" "md5" "ddd8be4b179a529afa5f2ffae4b9858";
  needs-bad = mkDerivation {
    name = "needs-bad";
    buildCommand = "echo ${fixed "needed" "flat" "md5" "0ddd8be4b179a529afa5f2ffae4b9858"} > $out";
  };
}
