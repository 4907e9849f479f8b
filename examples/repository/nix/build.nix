# What `stdenv.mkDerivation` is in a repository that has nixpkgs. Here builders know nothing but what /bin/sh has built in.
{ system }:
name: attributes: script:
derivation (
  {
    inherit name system;
    builder = "/bin/sh";
    args = [
      "-e"
      "-u"
      "-c"
      script
    ];
  }
  // builtins.removeAttrs attributes [ "meta" ]
)
// {
  meta = attributes.meta or { };
}
