# A small repository with a few targets, for `script/demo` and for trying things by hand. It needs no nixpkgs: what
# `stdenv.mkDerivation` is elsewhere is `build` here, whose builders know nothing but what /bin/sh has built in.
{ system ? builtins.currentSystem }:

let
  build = name: attrs: script: derivation ({
    inherit name system;
    builder = "/bin/sh";
    args = [ "-e" "-u" "-c" script ];
  } // attrs);
in
rec {
  # What the other targets are built from.
  library = build "greeting-library" { } ''
    echo 'greet() { echo "Hello, $1!"; }' > $out
  '';

  # Depends on the library, which is built (or fetched) first.
  app = build "greeting-app" { inherit library; } ''
    . $library
    echo "greeting the world"
    greet world > $out
  '';

  # Several outputs: a step links them as `result`, `result-doc`.
  manual = build "greeting-manual" { inherit app; outputs = [ "out" "doc" ]; } ''
    read -r greeting < $app
    echo "It says: $greeting" > $out
    echo "How it says it: see $out" > $doc
  '';

  # Targets in a set: `checks.greets` is an attribute path.
  checks = {
    recurseForDerivations = true;

    greets = build "check-greets" { inherit app; } ''
      read -r greeting < $app
      test "$greeting" = "Hello, world!"
      echo "said: $greeting" > $out
    '';

    # Fails, so that you see what that looks like.
    shouts = build "check-shouts" { inherit app; } ''
      read -r greeting < $app
      echo "expected: HELLO, WORLD!"
      echo "     got: $greeting"
      exit 1
    '';
  };

  # Cannot be built: what it depends on fails.
  release = build "greeting-release" { inherit app; tested = checks.shouts; } ''
    read -r greeting < $app
    echo "$greeting" > $out
  '';
}
