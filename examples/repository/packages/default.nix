{ build }:
rec {
  # Almost every target depends on it.
  libgreet = build "libgreet-1.2" { meta.description = "Says hello"; } ''
    echo 'greet() { echo "Hello, $1!"; }' > $out
  '';

  greet = build "greet-2.0" { inherit libgreet; } ''
    . $libgreet
    greet world > $out
  '';

  greetd = build "greetd-2.0" { inherit libgreet; } ''
    . $libgreet
    greet "every client" > $out
  '';

  # Several outputs.
  manual =
    build "greet-manual-2.0"
      {
        inherit greet;
        outputs = [
          "out"
          "doc"
        ];
      }
      ''
        read -r greeting < $greet
        echo "greet says: $greeting" > $out
        echo "How it comes to say so: see $out" > $doc
      '';

  # The same derivation under another name: one step builds both.
  default = greet;

  # An evaluation error: it costs its own step, and nothing else.
  legacy = throw "greet 1.0 needs Python 2, which is gone";
}
