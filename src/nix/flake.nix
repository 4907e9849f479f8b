# The outputs of a flake as Nix makes them (its call-flake.nix), where the reference that pure evaluation takes does not say
# everything of the source that a flake may ask for: `self.submodules`, `self.dirtyRev`, `self.revCount`. Nix has resolved the
# inputs; the outputs are applied once more, to a `self` that says it.
reference: info:
let
  flake = builtins.getFlake reference;
  inherit (flake) inputs outPath;
  sourceInfo = flake.sourceInfo // info;
  outputs = (import (outPath + "/flake.nix")).outputs (inputs // { inherit self; });
  self =
    outputs
    // sourceInfo
    // builtins.intersectAttrs {
      # 2.8 has none.
      _type = null;
      inputs = null;
      outPath = null;
    } flake
    // {
      inherit outputs sourceInfo;
    };
in
outputs
