//! The worked migration of `docs/migrating.md`: a monorepo (`tests/data/monorepo`) whose pipeline has what pipelines of such repositories
//! have, in two builds of real agents, of which the second has the first as its base.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    EVAL_ONCE,
    agent::{plugin_repository, program},
    buildkite::{Build, JobState, Outcome},
    program::Program,
    stand_in::write_program,
    store::Store,
    tool,
};

/// Where the monorepo is, and what its steps leave.
struct Monorepo {
    store: Store,
    _repositories: TempDir,
    /// The file to which each step adds a line.
    done: PathBuf,
    /// The folder of GC roots.
    roots: PathBuf,
    /// The file without which a target fails.
    mended: PathBuf,
}

impl Monorepo {
    fn new() -> Option<Self> {
        let (Some(_), Some(_), Some(bash), Some(chmod)) =
            (tool("git"), program(), tool("bash"), tool("chmod"))
        else {
            return None;
        };
        let store = Store::new()?;
        let repositories = TempDir::new().unwrap();
        let plugin = plugin_repository(repositories.path());
        let at = |name: &str| store.root().join(name);
        let monorepo = Self {
            done: at("done"),
            roots: at("roots"),
            mended: at("mended"),
            store,
            _repositories: repositories,
        };
        let replaced = [
            ("your-org/eval-once#v0.1.0", plugin),
            ("DONE", monorepo.done.display().to_string()),
            ("ROOTS", monorepo.roots.display().to_string()),
            ("MENDED", monorepo.mended.display().to_string()),
            ("BASH", bash.display().to_string()),
            ("COREUTILS", chmod.parent().unwrap().display().to_string()),
        ];
        fs::create_dir(&monorepo.roots).unwrap();
        let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/monorepo");
        for name in [
            "ci.nix",
            "schema",
            "nix/build.nix",
            "nix/program.nix",
            ".buildkite/pipeline.yml",
        ] {
            let mut text = fs::read_to_string(tree.join(name)).unwrap();
            for (from, to) in &replaced {
                text = text.replace(from, to);
            }
            monorepo.write(name, &text);
        }
        Some(monorepo)
    }

    fn write(&self, name: &str, text: &str) {
        let file = self.store.work().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    /// A build of it, which ended so.
    fn build(&self, outcome: &Outcome) -> Build {
        let _ = fs::remove_file(&self.done);
        let step = json!({ "key": "upload", "command": "buildkite-agent pipeline upload" });
        let build = Build::new(&step)
            .unwrap()
            .checkout(self.store.work())
            .envs(self.store.env())
            .envs([("EVAL_ONCE_BIN", EVAL_ONCE)])
            .agent_with_tags(&["queue=deploy"]);
        assert_eq!(build.run(), *outcome, "{}", build.job("record").plain());
        build
    }

    /// What its steps have done, sorted.
    fn done(&self) -> BTreeSet<String> {
        let text = fs::read_to_string(&self.done).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// The states of these jobs are the last ones.
#[track_caller]
fn ended(build: &Build, expected: &[(&str, JobState)]) {
    for (key, state) in expected {
        let job = build.job(key);
        assert_eq!(job.state, *state, "{key}: {}", job.plain());
    }
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// The steps that were uploaded, those in groups too, by key.
fn uploaded(build: &Build) -> BTreeMap<String, Value> {
    let uploads = build.uploads();
    let steps = uploads
        .iter()
        .flat_map(|it| it["steps"].as_array().unwrap());
    let steps = steps.flat_map(|step| match step.get("steps") {
        Some(inner) => inner.as_array().unwrap().clone(),
        None => vec![step.clone()],
    });
    steps
        .filter_map(|step| Some((step["key"].as_str()?.to_owned(), step)))
        .collect()
}

#[test]
fn a_monorepos_whole_pipeline_stands_in_nix_beside_its_targets() {
    use JobState::{DependencyFailed, Failed, Passed, Skipped, SoftFailed};
    let Some(monorepo) = Monorepo::new() else {
        return;
    };

    // The first build: one target fails, twice.
    let first = monorepo.build(&Outcome::Failed);
    ended(
        &first,
        &[
            ("nix-web-app", Passed),
            ("nix-web-app-deploy", Passed),
            ("nix-web-app-smoke", Passed),
            ("nix-web-app-preview", Skipped),
            ("nix-web-app-lint", SoftFailed),
            ("nix-web-app-changelog", Passed),
            ("nix-web-app-publish", DependencyFailed),
            ("nix-web-app-anchor", DependencyFailed),
            ("nix-web-old", Skipped),
            ("nix-db-schema", Passed),
            ("nix-db-flaky", Failed),
            ("nix-db-flaky-report", Passed),
            ("nix-db-flaky-migrate", DependencyFailed),
            ("image", Passed),
            ("post", DependencyFailed),
        ],
    );
    assert_eq!(first.job("nix-db-flaky").retry_count, 1, "its own rule");
    let expected = [
        "changelog",
        "deploy page",
        "image",
        "lint",
        "report",
        "smoke",
    ];
    assert_eq!(monorepo.done(), set(&expected));
    let steps = uploaded(&first);
    assert_eq!(steps["nix-web-app"]["timeout_in_minutes"], 60);
    assert_eq!(steps["nix-web-app-deploy"]["agents"]["queue"], "deploy");
    let artifacts = first.artifacts();
    let page = artifacts
        .iter()
        .find(|(name, _)| name.starts_with("web.app/"));
    assert_eq!(page.unwrap().1, b"page\n");

    // Its artifacts are the base of the second: what fetches them is `eval-once base`.
    for name in ["eval-once.json", "eval-once-outcomes.json"] {
        let text = String::from_utf8(artifacts[name].clone()).unwrap();
        monorepo.write(&format!(".git/base/{name}"), &text);
    }
    monorepo.write("schema", "two\n");
    fs::write(&monorepo.mended, "").unwrap();
    let second = monorepo.build(&Outcome::Passed);
    ended(
        &second,
        &[
            // Unchanged, and green in the base. What follows it is there all the same, but for what makes sense only with a change.
            ("nix-web-app", Skipped),
            ("nix-web-app-deploy", Passed),
            ("nix-web-app-publish", Passed),
            ("nix-web-app-anchor", Passed),
            // Changed.
            ("nix-db-schema", Passed),
            // Unchanged, but red in the base.
            ("nix-db-flaky", Passed),
            ("nix-db-flaky-migrate", Passed),
            ("image", Passed),
            ("post", Passed),
        ],
    );
    let expected = [
        "deploy page",
        "image",
        "lint",
        "migrate",
        "post",
        "publish",
        "report",
        "smoke",
    ];
    assert_eq!(monorepo.done(), set(&expected));
    let steps = uploaded(&second);
    assert!(!steps.contains_key("nix-web-app-changelog"));
    let reason = steps["nix-web-app"]["skip"].as_str().unwrap();
    assert!(reason.starts_with("unchanged since build"), "{reason}");
    let root = fs::read_link(monorepo.roots.join("web-app")).unwrap();
    assert!(root.ends_with(root.file_name().unwrap()) && root.exists());

    // The map of attributes to `.drv`s, for other programs.
    let document: Value = serde_json::from_slice(&second.artifacts()["eval-once.json"]).unwrap();
    let targets = document["targets"].as_array().unwrap();
    let attrs: Vec<&Value> = targets.iter().map(|target| &target["attr"]).collect();
    assert_eq!(attrs.len(), 4, "{attrs:?}");
    assert!(targets.iter().all(|target| target["drv"].is_string()));
}

#[test]
fn a_phase_alone_and_a_build_that_stops_at_its_first_failure_are_keys_of_the_recording() {
    let Some(monorepo) = Monorepo::new() else {
        return;
    };
    let recorded = |flags: &[&str]| -> Vec<Value> {
        let flags = [
            &[
                "pipeline",
                "--dry-run",
                "--file",
                "ci.nix",
                "--keys",
                "attr",
            ],
            flags,
        ];
        let ended = monorepo.store.eval_once(flags.concat()).run();
        ended.exits(0).json()["steps"].as_array().unwrap().clone()
    };
    let targets = |steps: &[Value]| {
        let keys = steps.iter().filter_map(|step| step["key"].as_str());
        keys.filter(|key| ["nix-web-app", "nix-db-schema"].contains(key))
            .count()
    };
    let build = recorded(&["--phases", "build"]);
    assert_eq!((targets(&build), build.len()), (2, 4));
    assert_eq!(targets(&recorded(&["--phases", "release"])), 0);
    let stopping = recorded(&["--step", r#"{"cancel_on_build_failing":true}"#]);
    let app = stopping.iter().find(|step| step["key"] == "nix-web-app");
    assert_eq!(app.unwrap()["cancel_on_build_failing"], true);
}

/// The reporter of the guide, with stand-ins for the agent and for ssh.
#[test]
fn the_guides_reporter_to_gerrit_votes_and_names_what_failed() {
    let (Some(bash), Some(_)) = (tool("bash"), tool("jq")) else {
        return;
    };
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/migrating.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, script) = page.split_once("```sh\n").unwrap();
    let (script, _) = script.split_once("```").unwrap();
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("report"), script).unwrap();
    let agent = r#"#!/bin/sh
case "$1 $2" in
  "meta-data get") cat failed ;;
  "artifact download") ;;
  *) exit 9 ;;
esac
"#;
    write_program(&at("buildkite-agent"), agent);
    write_program(&at("ssh"), "#!/bin/sh\nprintf '%s\\n' \"$@\"\n");
    let path = std::env::var_os("PATH").unwrap();
    let mut folders = vec![folder.path().to_owned()];
    folders.extend(std::env::split_paths(&path));
    let run = |failed: &str, outcomes: &Value| {
        fs::write(at("failed"), failed).unwrap();
        fs::write(at("eval-once-outcomes.json"), outcomes.to_string()).unwrap();
        let variables = [
            ("GERRIT_HOST", "review.example.org"),
            ("CHANGE", "5"),
            ("PATCHSET", "2"),
            ("BUILDKITE_BUILD_URL", "https://b/1"),
        ];
        let ended = Program::new(&bash)
            .arg("report")
            .folder(folder.path())
            .env("PATH", std::env::join_paths(&folders).unwrap())
            .envs(variables)
            .run();
        ended.exits(0).stdout.clone()
    };
    let target = |attr: &[&str], outcome: &str| json!({ "attr": attr, "outcome": outcome });
    let targets = [
        target(&["web", "it's"], "failed"),
        target(&["docs"], "passed"),
        target(&["old"], "skipped"),
        target(&["cli"], "evaluation-error"),
        // By a `skip` of its own.
        target(&["off"], "not-run"),
    ];
    let said = run("2", &json!({ "targets": targets }));
    assert!(said.contains("Verified=-1"), "{said}");
    assert!(
        said.contains("'2 failed: https://b/1\nweb.its\ncli'"),
        "{said}"
    );
    assert!(said.ends_with("5,2\n"), "{said}");
    let said = run("0", &json!({ "targets": [] }));
    assert!(said.contains("Verified=+1"), "{said}");
}
