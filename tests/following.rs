//! What follows a target: in a build of a real agent, and what a recording says of it.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    EVAL_ONCE,
    agent::{plugin_repository, program},
    buildkite::{Build, JobState, Outcome},
    store::Store,
    tool,
};

/// Targets with steps behind them. `DONE` is a file to which each step adds a line.
const TARGETS: &str = r##"
let
  system = builtins.currentSystem;
  build = name: script: derivation { inherit name system; builder = "/bin/sh"; args = [ "-c" script ]; };
  # An executable file, as writeShellScript makes one. (chmod closes its standard error before it ends, and Nix kills a builder that does
  # so: it must not be the last one.)
  program = name: text: derivation {
    inherit name system text;
    builder = "BASH";
    args = [ "-c" "PATH=COREUTILS; printf '%s' \"$text\" > $out; chmod +x $out; :" ];
  };
  says = text: "#!/bin/sh\necho \"${text}\" >> DONE\n";
in
{
  web = build "web" "echo page > $out" // {
    meta.eval-once.steps = {
      deploy = {
        run = program "deploy" (says "deploy $(cat result) $EVAL_ONCE_OUT");
        needs-output = true;
        confirm = "Deploy web?";
        buildkite.branches = "main";
      };
      other = { command = "false"; buildkite.branches = "other"; };
      plain = { run = program "plain" (says "plain \${EVAL_ONCE_OUT-nothing}"); };
      release = { command = "echo release >> DONE"; after = "all"; };
      status = { run = program "status" "#!/bin/sh\nexit 7\n"; buildkite.soft_fail = true; };
      shell = { command = "echo shell $(cat result) >> DONE"; needs-output = true; };
    };
  };
  red = build "red" "exit 1" // {
    meta.eval-once.steps = {
      after-red = { command = "echo never >> DONE"; };
      always = { command = "echo always >> DONE"; always = true; };
      release = { command = "echo never >> DONE"; after = "all"; };
    };
  };
  typo = build "typo" "echo > $out" // { meta.eval-once.steps = { bad.comand = "x"; good.command = "echo good >> DONE"; }; };
}
"##;

/// The expression of [`TARGETS`], whose steps write to this file.
fn targets(done: &Path) -> Option<String> {
    let bash = tool("bash")?;
    let chmod = tool("chmod")?;
    let text = TARGETS.replace("BASH", bash.to_str().unwrap());
    let text = text.replace("COREUTILS", chmod.parent().unwrap().to_str().unwrap());
    Some(text.replace("DONE", done.to_str().unwrap()))
}

/// Once through the plugin, and once as commands where agents have the program only.
#[test]
fn steps_follow_their_targets_in_a_build() {
    for through_plugin in [true, false] {
        let (Some(_), Some(_), Some(store)) = (tool("git"), program(), Store::new()) else {
            return;
        };
        let done = store.work().join("done");
        let Some(expression) = targets(&done) else {
            return;
        };
        store.write("ci.nix", &expression);
        let repositories = TempDir::new().unwrap();
        let keys = json!({ "file": "ci.nix", "keys": "attr" });
        let step = if through_plugin {
            let plugin = plugin_repository(repositories.path());
            json!({ "key": "record", "label": "record", "plugins": [{ plugin: { "pipeline": keys } }] })
        } else {
            let command = format!("{EVAL_ONCE} pipeline --file ci.nix --keys attr");
            json!({ "key": "record", "label": "record", "command": command })
        };
        let Some(build) = Build::new(&step) else {
            return;
        };
        let folder = Path::new(EVAL_ONCE).parent().unwrap();
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
        let build = build
            .checkout(store.work())
            .envs(store.env())
            .envs([("EVAL_ONCE_BIN", EVAL_ONCE), ("PATH", &path)]);
        assert_eq!(build.run(), Outcome::Failed, "red is red");
        let log = |key: &str| build.job(key).plain();
        assert_eq!(
            build.job("record").state,
            JobState::Passed,
            "{}",
            log("record")
        );
        let document = &build.artifacts()["eval-once.json"];
        let document: Value = serde_json::from_slice(document).unwrap();
        let out = document["targets"].as_array().unwrap().iter();
        let out = out.clone().find(|it| it["key"] == "nix-web").unwrap()["outputs"]["out"].clone();
        for (key, state) in [
            ("nix-web", JobState::Passed),
            ("nix-web-deploy", JobState::Passed),
            ("nix-web-plain", JobState::Passed),
            ("nix-web-shell", JobState::Passed),
            ("nix-web-status", JobState::SoftFailed),
            ("nix-web-other", JobState::Skipped),
            ("nix-web-release", JobState::DependencyFailed),
            ("nix-red", JobState::Failed),
            ("nix-red-after-red", JobState::DependencyFailed),
            ("nix-red-always", JobState::Passed),
            ("nix-red-release", JobState::DependencyFailed),
            ("nix-typo", JobState::Passed),
            ("nix-typo-good", JobState::Passed),
            ("nix-typo-bad", JobState::Failed),
        ] {
            assert_eq!(build.job(key).state, state, "{key}: {}", log(key));
        }
        assert_eq!(build.job("nix-web-status").exit_status, Some(7));
        let said = log("nix-typo-bad");
        assert!(
            said.contains("did you mean `command`?") || said.contains("`comand` is not a key"),
            "{said}"
        );
        let done = std::fs::read_to_string(&done).unwrap();
        let mut done: Vec<&str> = done.lines().collect();
        done.sort_unstable();
        let deploy = format!("deploy page {}", out.as_str().unwrap());
        assert_eq!(
            done,
            ["always", &deploy, "good", "plain nothing", "shell page"]
        );
        let steps = document["steps"].as_array().unwrap();
        let deploy = steps.iter().find(|it| it["name"] == "deploy").unwrap();
        assert_eq!(deploy["attr"], json!(["web"]));
        assert_eq!(deploy["confirm"], "nix-web-deploy-confirm");
    }
}
