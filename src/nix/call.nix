# What Nix does with a function that stands where a value is wanted: it calls it, with the automatic arguments (`--arg`,
# `--argstr`) that it names.
arguments:
let
  # `x: …` is left alone where `{ x }: …` is called, and `{ … }: …` gets every argument there is.
  # functionArgs cannot tell these apart; the XML form of a function, which evaluates nothing, can.
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
