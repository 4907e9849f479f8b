# What Nix does with `-A`, for the names that `-A` has no spelling for: one that holds a quote, an empty one, a number that
# names an attribute of a set. Takes Nix's way to call (call.nix), the root, and the exact names; what it finds is not called yet.
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
        throw "'${name}' selects from a list, and is not a number"
    else if !builtins.isAttrs set then
      throw "'${name}' selects from something that is neither a set nor a list, but a ${builtins.typeOf set}"
    else if set ? ${name} then
      set.${name}
    else
      throw "attribute '${name}' in selection path ${builtins.toJSON names} not found";
in
builtins.foldl' below root names
