# Calls a function as Nix does where it expects a value: with those of the automatic arguments (`--arg`, `--argstr`) that it names.
arguments:
let
  # Nix does not call `x: …`, calls `{ x }: …`, and passes all arguments to `{ … }: …`. `functionArgs` does not distinguish these;
  # the XML form of a function does, and evaluates nothing.
  pattern = function: builtins.match ".*<attrspat([^>]*)>.*" (builtins.toXML function);

  call =
    value:
    if builtins.isAttrs value && value ? __functor then
      call (value.__functor value)
    else if builtins.isFunction value && pattern value != null then
      value (
        if builtins.match ".*ellipsis.*" (builtins.head (pattern value)) != null then
          arguments
        else
          builtins.intersectAttrs (builtins.functionArgs value) arguments
      )
    else
      value;
in
call
