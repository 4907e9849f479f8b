# What Nix does with `-A`, for the names that `-A` has no spelling for: one that holds a quote, an empty one, a number that
# names an attribute of a set. Takes the automatic arguments (`--arg`, `--argstr`), the root, and the exact names.
arguments: root: names:
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

  below =
    value: name:
    let
      set = call value;
    in
    if builtins.isList set then
      if builtins.match "0|[1-9][0-9]*" name != null then
        builtins.elemAt set (builtins.fromJSON name)
      else
        throw "'${name}' selects from a list, and is not a number"
    else if !builtins.isAttrs set then
      throw "'${name}' selects from something that is neither a set nor a list, but a ${builtins.typeOf set}"
    else if set ? ${name} then
      set.${name}
    else
      throw "attribute '${name}' in selection path ${builtins.toJSON names} not found";
in
call (builtins.foldl' below root names)
