//! What follows a target: in a build of a real agent, and what a recording says of it.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    EVAL_ONCE,
    agent::{plugin_repository, program},
    buildkite::{Build, Fault, JobState, Outcome},
    program::Ended,
    recording::Pipeline,
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

/// The steps of a dry run by their keys, and what was said.
fn recorded(store: &Store, flags: &[&str]) -> (BTreeMap<String, Value>, Ended) {
    let ended = store
        .eval_once([
            "pipeline",
            "--file",
            "ci.nix",
            "--dry-run",
            "--keys",
            "attr",
        ])
        .args(flags)
        .run();
    let steps = Pipeline::of(&ended).list().into_iter();
    let steps = steps.map(|step| (step["key"].as_str().unwrap().to_owned(), step));
    (steps.collect(), ended)
}

/// What a red step says.
fn refusal(step: &Value) -> String {
    let record = step["env"]["EVAL_ONCE_STEP"].as_str().unwrap();
    let record: Value = serde_json::from_str(record).unwrap();
    record["refused"].as_str().unwrap().to_owned()
}

#[test]
fn a_step_that_does_not_evaluate_is_red_by_itself_and_names_what_nix_says() {
    let Some(store) = Store::new() else {
        return;
    };
    let target = r#"(file "web") // { meta.eval-once.steps = {
        "".command = "x";
        b-throws.run = throw "no such host";
        a-good.run = file "run";
        c-wrong.run = "x";
        d-named.run = (file "run") // { drvPath = "/nix/store/x.drv"; };
        e-program.run = (file "run") // { meta.mainProgram = "../x"; };
        e-refers.command = "${file "x"}/bin/x";
        f-good = { command = "x"; };
    }; }"#;
    let abort = target.replace("c-wrong.run = \"x\"", "c-aborts.run = abort \"really\"");
    store.targets(&format!("{{ web = {target}; }}"));
    std::fs::rename(
        store.work().join("default.nix"),
        store.work().join("ci.nix"),
    )
    .unwrap();
    let (steps, _) = recorded(&store, &[]);
    let keys: Vec<&str> = steps.keys().map(String::as_str).collect();
    let expected = [
        "nix-web",
        "nix-web-",
        "nix-web-a-good",
        "nix-web-b-throws",
        "nix-web-c-wrong",
        "nix-web-d-named",
        "nix-web-e-program",
        "nix-web-e-refers",
        "nix-web-f-good",
    ];
    assert_eq!(keys, expected);
    for (name, said) in [
        ("b-throws", "no such host"),
        (
            "c-wrong",
            "meta.eval-once.steps.c-wrong.run is a string; expected a derivation",
        ),
        (
            "d-named",
            "the drvPath of meta.eval-once.steps.d-named.run is a plain string",
        ),
        (
            "e-program",
            "meta.mainProgram is \"../x\"; expected the name of a file in bin",
        ),
        ("e-refers", "e-refers.command refers to a store path"),
    ] {
        let found = refusal(&steps[&format!("nix-web-{name}")]);
        let begin = format!("web.meta.eval-once.steps.{name}: ");
        assert!(found.starts_with(&begin) && found.contains(said), "{found}");
    }
    let found = refusal(&steps["nix-web-"]);
    assert_eq!(found, "web.meta.eval-once.steps.\"\": its name is empty");
    assert_eq!(steps["nix-web-f-good"]["command"], "x");
    // What cannot be caught hides the ones behind it, and those are red as well.
    store.write(
        "ci.nix",
        &std::fs::read_to_string(store.work().join("ci.nix"))
            .unwrap()
            .replace(target, &abort),
    );
    let (steps, _) = recorded(&store, &[]);
    let aborted = refusal(&steps["nix-web-c-aborts"]);
    assert!(aborted.contains("really"), "{aborted}");
    assert!(refusal(&steps["nix-web-f-good"]).contains("it is not known, because another step"));
    assert!(steps["nix-web-a-good"]["env"]["EVAL_ONCE_STEP"].is_string());
    assert!(
        steps["nix-web"]["env"]["EVAL_ONCE_STEP"]
            .as_str()
            .unwrap()
            .contains("\"drv\"")
    );
    // Nothing of it counts with untrusted changes.
    let (steps, _) = recorded(&store, &["--no-meta"]);
    assert_eq!(steps.keys().collect::<Vec<_>>(), ["nix-web"]);
}

#[test]
fn what_is_run_is_kept_from_the_collector_and_built_only_when_it_runs() {
    let (Some(store), Some(bash), Some(chmod)) = (Store::new(), tool("bash"), tool("chmod")) else {
        return;
    };
    let program = format!(
        "(with' {{ builder = \"{}\"; }} \"deploy\" \"PATH={}; echo '#!/bin/sh' > $out; echo 'cat result; echo $EVAL_ONCE_OUT' >> $out; chmod +x $out; :\")",
        bash.display(),
        chmod.parent().unwrap().display()
    );
    store.targets(&format!(
        r#"{{ web = (file "web") // {{ meta.eval-once.steps.deploy = {{ run = {program}; needs-output = true; }}; }}; }}"#
    ));
    std::fs::rename(
        store.work().join("default.nix"),
        store.work().join("ci.nix"),
    )
    .unwrap();
    let (steps, _) = recorded(&store, &[]);
    let record = steps["nix-web-deploy"]["env"]["EVAL_ONCE_STEP"]
        .as_str()
        .unwrap()
        .to_owned();
    let keys: Value = serde_json::from_str(&record).unwrap();
    let (drv, out) = (
        keys["drv"].as_str().unwrap(),
        keys["outputs"]["out"].as_str().unwrap(),
    );
    store.collect();
    assert!(store.has(drv) && !store.has(out));
    let step = || {
        store
            .eval_once(["step"])
            .env("EVAL_ONCE_STEP", &record)
            .run()
    };
    let web = keys["needs"]["outputs"]["out"].as_str().unwrap();
    assert_eq!(step().exits(0).stdout, format!("web\n{web}\n"));
    assert!(store.has(out));
    // Without the pin, both are evaluated again.
    std::fs::remove_dir_all(store.our_state()).unwrap();
    std::fs::remove_file(store.work().join("result")).unwrap();
    store.collect();
    assert!(!store.has(drv));
    let again = step();
    assert_eq!(again.exits(0).stdout, format!("web\n{web}\n"));
    // An agent that lets no pipeline choose commands runs no program of the store.
    store
        .eval_once(["hook", "command"])
        .envs([
            ("EVAL_ONCE_STEP", record.as_str()),
            ("BUILDKITE_HOOK_SCOPE", "agent"),
            ("BUILDKITE_COMMAND_EVAL", "false"),
            (
                "BUILDKITE_BUILD_CHECKOUT_PATH",
                store.work().to_str().unwrap(),
            ),
        ])
        .run()
        .exits(64)
        .passes_on("`run`, which is a program in the store, is not allowed on this agent");
}

/// Targets of which one is red after its build, what needs it, and a release of all.
const RELEASED: &str = r#"rec {
  b = file "b" // { meta.buildkite.command = "false"; };
  d = build "d" "read x < ${b}; echo $x > $out";
  r = file "r" // { meta.eval-once.steps.rel = { command = "echo released"; after = "all"; }; };
}"#;

/// Another recording than that of the release has made the steps, and may have skipped others: a step that is skipped waits for nothing.
#[test]
fn a_release_that_is_recorded_by_itself_waits_for_each_target() {
    // What is built before the first recording, what is before the second one, and what that one skips.
    let alone = r#"{
        b = file "b" // { meta.eval-once.steps.rel.command = "echo released"; };
        r = file "r" // { meta.eval-once.steps.rel = { command = "echo released"; after = "all"; }; };
    }"#;
    for (targets, before, between, flags) in [
        (RELEASED, Some("d"), None, "--skip none"),
        (RELEASED, Some("d"), None, ""),
        (alone, None, Some("b"), ""),
    ] {
        let (Some(_), Some(store)) = (program(), Store::new()) else {
            return;
        };
        store.targets(targets);
        if let Some(attr) = before {
            store.build(&store.instantiate("default.nix", attr));
        }
        let record = format!("'{EVAL_ONCE}' pipeline --keys attr");
        let first = json!([
            { "key": "builds", "command": format!("{record} --phases build") },
            { "key": "release", "command": format!("{record} --phases release {flags}"),
              "depends_on": [{ "step": "builds", "allow_failure": true }] },
        ]);
        store.write("first.json", &json!({ "steps": first }).to_string());
        let command = "buildkite-agent pipeline upload --no-interpolation first.json";
        let Some(build) = Build::new(&json!({ "key": "first", "command": command })) else {
            return;
        };
        let realise = between.map(|attr| {
            let drv = store.instantiate("default.nix", attr);
            format!("nix-store --realise {drv} >&2")
        });
        let hook = format!(
            "case $BUILDKITE_STEP_KEY in nix-b) exit 1 ;; release) {} ;; esac\n",
            realise.unwrap_or_default()
        );
        let build = build
            .checkout(store.work())
            .envs(store.env())
            .our_hook("command")
            .shell_hook("pre-command", &hook)
            .agents(1);
        assert_eq!(build.run(), Outcome::Failed);
        let states = |key: &str| (build.job(key).state, build.job(key).plain());
        assert_eq!(
            states("release").0,
            JobState::Passed,
            "{}",
            states("release").1
        );
        assert_eq!(states("nix-b").0, JobState::Failed);

        let released = ["nix-r-rel", "nix-b-rel"];
        let released = released
            .iter()
            .filter(|key| targets == alone || **key != "nix-b-rel");
        for key in released {
            let (state, log) = states(key);
            assert_eq!(state, JobState::DependencyFailed, "{key}: {log}");
        }
    }
}

/// The first try has uploaded a target as skipped that the retry, on another host, finds to be built.
#[test]
fn a_release_waits_for_each_target_where_a_retry_follows_no_plan() {
    let (Some(_), Some(store)) = (program(), Store::new()) else {
        return;
    };
    store.targets(RELEASED);
    let drv = store.instantiate("default.nix", "d");
    store.build(&drv);
    let command = format!("'{EVAL_ONCE}' pipeline --chunk 2 --keys attr");
    let record = json!({ "key": "record", "label": "record", "command": command });
    let Some(build) = Build::new(&record) else {
        return;
    };
    let other = TempDir::new().unwrap();
    let other_host = format!(
        "[ \"$BUILDKITE_STEP_KEY$BUILDKITE_RETRY_COUNT\" = record0 ] || export EVAL_ONCE_STATE_DIR='{}/state'\n",
        other.path().display()
    );
    let build = build
        .checkout(store.work())
        .envs(store.env())
        .our_hook("command")
        .shell_hook("environment", &other_host)
        .agents(1);
    build.on_upload(2, Fault::Reject("Not today".to_owned()));
    assert_eq!(build.run(), Outcome::Failed);
    store.delete([&store.output(&drv, "out")]);
    let first = build.job("record").id;
    build.retry(&first);
    assert_eq!(build.run(), Outcome::Failed);
    assert_eq!(build.job("nix-b").state, JobState::Failed);
    let released = build.job("nix-r-rel");
    assert_eq!(
        released.state,
        JobState::DependencyFailed,
        "{}",
        released.plain()
    );
}
