{
  config,
  packages,
  build,
}:
{
  files.motd = build "motd" { inherit (packages) greet; } ''
    read -r greeting < $greet
    echo "${config.host}: $greeting" > $out
  '';
  services.greetd = packages.greetd;
}
