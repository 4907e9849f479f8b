# Targets with closures like those of real packages: each needs some of 2,000 libraries, which need one another and a source of
# their own, and has the environment that a package usually has. What a part of the targets is made from can be changed.
{
  targets,
  changed ? 0,
}:
let
  build =
    name: inputs: salt:
    derivation {
      inherit name inputs salt;
      system = builtins.currentSystem;
      builder = "/bin/sh";
      args = [
        "-e"
        (builtins.toFile "builder.sh" "echo $name > $out")
      ];
      src = builtins.toFile "${name}.patch" "A patch of ${name}.\n${salt}";
      # As the standard environment sets them, most of them empty.
      configureFlags = [
        "--prefix=${placeholder "out"}"
        "--disable-static"
        "--enable-shared"
      ];
      buildPhase = "runHook preBuild\nmake -j$NIX_BUILD_CORES\nrunHook postBuild\n";
      installPhase = "runHook preInstall\nmake install\nrunHook postInstall\n";
      doCheck = true;
      strictDeps = true;
      depsBuildBuild = "";
      depsBuildBuildPropagated = "";
      depsBuildTarget = "";
      depsBuildTargetPropagated = "";
      depsHostHost = "";
      depsHostHostPropagated = "";
      depsTargetTarget = "";
      depsTargetTargetPropagated = "";
      mesonFlags = "";
      cmakeFlags = "";
      patches = "";
      propagatedBuildInputs = "";
      propagatedNativeBuildInputs = "";
    };
  # Some that come before it, spread like the digits of a hash.
  some =
    count: n: limit:
    builtins.genList (
      i: builtins.elemAt libraries (builtins.bitAnd (n * 7919 + i * i * 104729) 1048575 * limit / 1048576)
    ) (if limit == 0 then 0 else count);
  libraries = builtins.genList (n: build "library-${toString n}" (some 6 n n) "") 2000;
in
builtins.listToAttrs (
  builtins.genList (n: {
    name = "package-${toString n}";
    value = build "package-${toString n}" (some 12 (n + 4001) 2000) (
      if n < changed then "changed" else ""
    );
  }) targets
)
