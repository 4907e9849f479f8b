with import ./config.nix;

{
  inside = mkDerivation {
    name = "inside";
    src = ./config.nix;
  };
  outside = mkDerivation {
    name = "outside";
    text = builtins.readFile /etc/passwd;
  };
  environment = mkDerivation { name = if builtins.getEnv "HOME" == "" then "homeless" else "at-home"; };
}
