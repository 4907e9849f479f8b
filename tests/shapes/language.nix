{
  name ? "default",
  pair ? [ name ],
  ...
}@given:
with import ./config.nix;

let
  d = name: mkDerivation { inherit name; };
  let-body = let {
    inner = d "let-body";
    body = inner;
  };
  recursive = rec {
    recurseForDerivations = true;
    x = d "recursive-x";
    y = x;
  };
  call = f: f { };
in
{
  inherit let-body recursive;
  argument = d "argument-${name}-${toString (builtins.length pair)}";
  given = d "given-${toString (builtins.length (builtins.attrNames given))}";
  called = call ({ suffix ? "called" }: d suffix);
  function = { suffix ? "function" }: d "${suffix}-${name}";
  at = { suffix ? "at", ... }@all: d "${suffix}-${builtins.concatStringsSep "-" (builtins.attrNames all)}";
  needs = { needed }: d needed;
  lambda = x: d "lambda";
  functor = {
    __functor = self: { suffix ? "functor" }: d suffix;
  };
  curried = { a ? "curried" }: { b ? "inner" }: d "${a}-${b}";
  overridable =
    let
      make = args: d "overridable-${args.version}" // { override = more: make (args // more); };
    in
    (make { version = "1"; }).override { version = "2"; };
  "quoted name" = d "quoted";
  "dots.in.it" = d "dots";
  text = "text";
  number = 1;
  nothing = null;
  path = ./config.nix;
  string = "${d "in-a-string"}";
  to-string = {
    __toString = self: "${d "to-string"}";
  };
  strict = builtins.derivationStrict {
    name = "strict";
    inherit system;
    builder = "/bin/sh";
  };
  fake = {
    type = "derivation";
    name = "fake";
  };
  list = [
    (d "in-a-list")
    [ (d "in-a-list-of-lists") ]
  ];
  to-file = mkDerivation {
    name = "to-file";
    text = builtins.toFile "text" "some text";
    nested = builtins.toFile "nested" "refers to ${builtins.toFile "inner" "inner"}";
  };
  as-file = mkDerivation {
    name = "as-file";
    passAsFile = [ "content" ];
    content = "passed as a file";
    buildCommand = "read line < $contentPath || test \"$line\" = 'passed as a file'; echo > $out";
  };
  graph = mkDerivation {
    name = "graph";
    exportReferencesGraph = [
      "refs"
      (d "in-the-graph")
    ];
    buildCommand = "read first < refs; echo $first > $out";
  };
  source-path = mkDerivation {
    name = "source-path";
    src = ./.;
    one = builtins.path {
      path = ./.;
      name = "one";
      filter = path: type: baseNameOf path == "config.nix";
    };
    buildCommand = "test -e $one/config.nix; echo > $out";
  };
  json = mkDerivation {
    name = "json";
    text = builtins.toJSON {
      inherit name;
      drv = d "in-json";
    };
  };
  big = mkDerivation {
    name = "big-attribute";
    passAsFile = [ "big" ];
    big = builtins.concatStringsSep "" (builtins.genList (i: "0123456789abcdef") 20000);
  };
  lazy = {
    recurseForDerivations = true;
    fine = d "lazy-fine";
    bad = throw "only this one";
  };
  throws = throw "its own words";
  asserts = assert name == "nobody"; d "asserts";
  undefined = given.nonesuch;
  recursion = let x = x; in x;
  no-name = derivation { inherit system; builder = "/bin/sh"; };
  bad-name = d "not a name";
}
