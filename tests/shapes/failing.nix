with import ./config.nix;

let
  fails =
    name:
    mkDerivation {
      inherit name;
      buildCommand = "echo ${name} fails; exit 1";
    };
in
{
  fails = fails "fails";
  depends = mkDerivation {
    name = "depends";
    needs = [
      (fails "one")
      (fails "two")
    ];
  };
  no-output = mkDerivation {
    name = "no-output";
    buildCommand = "true";
  };
  no-builder = mkDerivation {
    name = "no-builder";
    builder = "/no/such/builder";
  };
  other-system = mkDerivation {
    name = "other-system";
    system = "i086-msdos";
  };
  feature = mkDerivation {
    name = "needs-a-feature";
    requiredSystemFeatures = [ "no-such-feature" ];
  };
  references = mkDerivation {
    name = "disallowed-references";
    allowedReferences = [ ];
    dep = mkDerivation { name = "not-allowed"; };
    buildCommand = "echo $dep > $out";
  };
  fine = mkDerivation {
    name = "allowed-references";
    dep = mkDerivation { name = "allowed"; };
    allowedReferences = [ (mkDerivation { name = "allowed"; }) ];
    buildCommand = "echo $dep > $out";
  };
}
