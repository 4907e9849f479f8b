# Selects an attribute as `-A` does, for names that cannot be written in `-A`: one with a quote, an empty one, a number that names
# an attribute of a set. Takes Nix's way of calling (call.nix), the root, and the exact names. The result is not called.
call: root: names:
let
  below =
    value: name:
    let
      set = call value;
    in
    if builtins.isList set then
      if builtins.match "0|[1-9][0-9]*" name != null then
        builtins.elemAt set (builtins.fromJSON name)
      else
        throw "'${name}' selects from a list; expected a number"
    else if !builtins.isAttrs set then
      throw "'${name}' selects from a ${builtins.typeOf set}; expected an attribute set or a list"
    else if set ? ${name} then
      set.${name}
    else
      throw "attribute '${name}' in selection path ${builtins.toJSON names} not found";
in
builtins.foldl' below root names
