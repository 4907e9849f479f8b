# The outputs of a flake as Nix computes them (its call-flake.nix), for attributes of its source that the reference in pure
# evaluation lacks: `self.submodules`, `self.dirtyRev`, `self.revCount`. Nix resolves the inputs; the `outputs` function is then
# applied again, to a `self` that has these attributes.
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
      # Nix 2.8 has no `_type`.
      _type = null;
      inputs = null;
      outPath = null;
    } flake
    // {
      inherit outputs sourceInfo;
    };
in
outputs
