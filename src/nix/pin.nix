# Writes the pin: a store file whose references are exactly the recorded `.drv`s. `json` is a file with its text and the `.drv`s.
# The string context (`path = true`) refers to the `.drv` files alone, so that nothing is built.
{ json }:
let
  pin = builtins.fromJSON (builtins.readFile json);
in
builtins.toFile "eval-once-pin.json" (
  builtins.appendContext pin.text (
    builtins.listToAttrs (
      map (name: {
        inherit name;
        value.path = true;
      }) pin.drvs
    )
  )
)
