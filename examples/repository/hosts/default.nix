# Machines, each composed of modules like a NixOS machine: a module gets the merged configuration, and defines a part of it.
{ build, packages }:
let
  # Several definitions of one option are merged: sets attribute by attribute, lists by concatenation.
  merge =
    a: b:
    if builtins.isAttrs a && builtins.isAttrs b then
      a // builtins.mapAttrs (name: value: if a ? ${name} then merge a.${name} value else value) b
    else if builtins.isList a && builtins.isList b then
      a ++ b
    else
      b;

  host =
    name: modules:
    let
      definitions = map (module: import module { inherit config packages build; }) modules;
      config = builtins.foldl' merge {
        host = name;
        files = { };
        services = { };
      } definitions;
      units = builtins.mapAttrs (
        service: run: build "unit-${service}" { inherit run; } "echo \"ExecStart=$run\" > $out"
      ) config.services;
      etc = build "etc-${name}" { files = builtins.attrValues config.files; } ''
        for file in $files; do read -r line < $file; echo "$line"; done > $out
      '';
    in
    build "host-${name}"
      {
        inherit etc;
        units = builtins.attrValues units;
        meta.description = "Everything that runs on ${name}";
      }
      ''
        read -r first < $etc
        echo "$first" > $out
        for unit in $units; do read -r line < $unit; echo "$line"; done >> $out
      '';
in
{
  web = host "web" [
    ./modules/base.nix
    ./modules/greeter.nix
  ];
  build = host "build" [ ./modules/base.nix ];
}
