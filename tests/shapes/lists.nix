with import ./config.nix;

let
  d = name: mkDerivation { inherit name; };
in
[
  (d "list-0")
  (d "list-1")
  [ (d "list-2-0") ]
  {
    recurseForDerivations = true;
    a = d "list-3-a";
  }
]
