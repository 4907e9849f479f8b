# All targets of a monorepo as a tree, and beside each what is done with it. DONE is a file to which each step adds a line.
let
  build = import ./nix/build.nix;
  program = import ./nix/program.nix;
  set = targets: targets // { recurseForDerivations = true; };
in
{
  web = set {
    app = build "web-app" {
      meta = {
        timeout = 3600;
        eval-once = {
          artifacts = [ "*" ];
          steps = {
            # A step with output, on one branch, behind a question, one at a time, on other agents.
            deploy = {
              run = program "deploy-web" "deploy $(cat result)";
              needs-output = true;
              confirm = "Deploy the web app?";
              buildkite = {
                branches = "main";
                concurrency = 1;
                concurrency_group = "web";
                agents.queue = "deploy";
              };
            };
            # Without output.
            smoke.command = "echo smoke >> DONE";
            # On another branch.
            preview = {
              command = "echo preview >> DONE";
              buildkite.branches = "preview";
            };
            # May fail.
            lint = {
              command = "echo lint >> DONE; exit 3";
              after = "nothing";
              buildkite.soft_fail = true;
            };
            # Only where something has changed.
            changelog = {
              command = "echo changelog >> DONE";
              unless-skipped = true;
            };
            # The release phase: when every target is built.
            publish = {
              command = "echo publish >> DONE";
              after = "all";
            };
            # A root of the output, which outlives the build.
            anchor = {
              command = "nix-store --realise $EVAL_ONCE_OUT --add-root ROOTS/web-app --indirect > /dev/null";
              needs-output = true;
              after = "all";
            };
          };
        };
      };
    } "echo page > $out";
    old = build "web-old" { meta.buildkite.skip = "no longer built"; } "exit 1";
  };
  db = set {
    schema = build "db-schema" { } "read x < ${./schema}; echo $x > $out";
    # Fails as long as it is not mended, and is tried twice.
    flaky = build "db-flaky" {
      meta = {
        buildkite.retry.automatic = [
          {
            exit_status = 100;
            limit = 1;
          }
        ];
        eval-once.steps = {
          # Also where the target failed.
          report = {
            command = "echo report >> DONE";
            always = true;
          };
          migrate.command = "echo migrate >> DONE";
        };
      };
    } "[ -e MENDED ]; echo > $out";
  };
}
