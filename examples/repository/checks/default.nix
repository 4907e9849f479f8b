{ build, packages }:
{
  greets = build "check-greets" { inherit (packages) greet; } ''
    read -r greeting < $greet
    test "$greeting" = "Hello, world!"
    echo "said: $greeting" > $out
  '';

  # A target may set its timeout, and every property of a Buildkite step.
  manual-is-complete =
    build "check-manual"
      {
        inherit (packages) manual;
        doc = packages.manual.doc;
        meta = {
          timeout = 600;
          buildkite.soft_fail = true;
        };
      }
      ''
        read -r line < $doc
        case "$line" in *"see $manual"*) echo "$line" > $out ;; *) exit 1 ;; esac
      '';

  # Slow checks are worth a step of their own for each part.
  fuzz = [
    (build "fuzz-names" { inherit (packages) libgreet; } ''
      . $libgreet
      for name in a b c; do greet "$name"; done > $out
    '')
    (build "fuzz-nothing" { inherit (packages) libgreet; } ''
      . $libgreet
      greet "" > $out
    '')
  ];
}
