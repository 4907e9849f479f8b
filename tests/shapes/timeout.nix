with import ./config.nix;

{
  loop = mkDerivation {
    name = "timeout";
    buildCommand = ''
      echo "entering an endless loop"
      while true; do :; done
    '';
  };
  quick = mkDerivation { name = "quick"; };
}
