{ config, build, ... }:
{
  files.hostname = build "hostname" { } "echo ${config.host} > $out";
}
