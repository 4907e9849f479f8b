//! A build against an earlier one: `eval-once base` fetches what that has recorded and how it ended, and a recording skips what is the
//! same and was green there.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tiny_http::{Header, Response, Server};

use crate::support::{
    EVAL_ONCE,
    agent::program,
    buildkite::{Build, Job, JobState, Outcome},
    program::{Ended, Program},
    recording::Pipeline,
    store::Store,
    tool,
};

const TOKEN: &str = "bkua_0123456789abcdef0123456789abcdef01234567";

/// What is answered: a status, a body, and where it leads.
type Answer = (u16, String, Option<String>);

/// A request: its URL, and its `Authorization`.
type Asked = (String, Option<String>);

/// Buildkite's REST API, as far as a base is fetched by it, with an other server to which downloads lead.
struct Api {
    server: Arc<Server>,
    routes: Arc<Mutex<BTreeMap<String, Answer>>>,
    /// Each request with its `Authorization`.
    requests: Arc<Mutex<Vec<Asked>>>,
    thread: Option<JoinHandle<()>>,
}

impl Api {
    fn new() -> Self {
        let server = Arc::new(Server::http("127.0.0.1:0").unwrap());
        let routes = Arc::<Mutex<BTreeMap<String, Answer>>>::default();
        let requests = Arc::<Mutex<Vec<Asked>>>::default();
        let (here, answers, asked) = (
            Arc::clone(&server),
            Arc::clone(&routes),
            Arc::clone(&requests),
        );
        let thread = thread::spawn(move || {
            for request in here.incoming_requests() {
                let login = request
                    .headers()
                    .iter()
                    .find(|it| it.field.equiv("Authorization"));
                let login = login.map(|it| it.value.to_string());
                let url = request.url().to_owned();
                asked.lock().unwrap().push((url.clone(), login));
                let path = url.split('?').next().unwrap();
                let answer = answers.lock().unwrap().get(path).cloned();
                let (status, body, leads_to) = answer.unwrap_or((404, String::new(), None));
                let mut response = Response::from_string(body).with_status_code(status);
                if let Some(to) = leads_to {
                    response.add_header(Header::from_bytes("Location", to).unwrap());
                }
                let _ = request.respond(response);
            }
        });
        Self {
            server,
            routes,
            requests,
            thread: Some(thread),
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.server.server_addr())
    }

    fn answers(&self, path: &str, status: u16, body: &dyn ToString, leads_to: Option<String>) {
        let mut routes = self.routes.lock().unwrap();
        routes.insert(path.to_owned(), (status, body.to_string(), leads_to));
    }

    /// From now on there is this build with these artifacts (path, content), which are at `storage`.
    fn has_build(&self, number: u64, artifacts: &[(&str, &str)], storage: &Self) {
        let builds = "/organizations/org/pipelines/pipe/builds";
        let listed: Vec<Value> = artifacts
            .iter()
            .enumerate()
            .map(|(at, (path, content))| {
                let id = format!("0190-{at}");
                let download = format!("{builds}/{number}/jobs/job-1/artifacts/{id}/download");
                let stored = format!("/{number}/{id}");
                self.answers(&download, 302, &"{}", Some(storage.url() + &stored));
                storage.answers(&stored, 200, content, None);
                json!({ "id": id, "job_id": "job-1", "path": path, "state": "finished" })
            })
            .collect();
        self.answers(
            &format!("{builds}/{number}/artifacts"),
            200,
            &json!(listed),
            None,
        );
    }

    fn lists(&self, builds: &Value) {
        self.answers(
            "/organizations/org/pipelines/pipe/builds",
            200,
            builds,
            None,
        );
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.server.unblock();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn listed(number: u64, state: &str) -> Value {
    json!({ "id": format!("id-{number}"), "number": number, "state": state })
}

/// `eval-once base` in a job of build 9, with files of an earlier run in the folder.
fn fetch(api: &str, folder: &Path) -> Ended {
    for name in ["eval-once.json", "eval-once-outcomes.json"] {
        fs::write(folder.join(name), "of an earlier run").unwrap();
    }
    let ended = base(folder)
        .env("BUILDKITE_API_TOKEN", TOKEN)
        .env("BUILDKITE_REST_API_ENDPOINT", api)
        .run();
    ended.exits(0).never_says(TOKEN);
    ended
}

fn base(folder: &Path) -> Program {
    Program::new(EVAL_ONCE).arg("base").arg(folder).envs([
        ("BUILDKITE_ORGANIZATION_SLUG", "org"),
        ("BUILDKITE_PIPELINE_SLUG", "pipe"),
        ("BUILDKITE_BUILD_ID", "id-9"),
        ("BUILDKITE_PIPELINE_DEFAULT_BRANCH", "ma in&x"),
    ])
}

#[track_caller]
fn says_all(ended: &Ended, parts: &[&str]) {
    let lines = ended.ours().join("\n");
    assert!(
        parts.iter().all(|part| lines.contains(part)),
        "{parts:?}: {lines}"
    );
}

const RECORDING: &str = r#"{"version":1,"source":{},"targets":[],"errors":[]}"#;
const OUTCOMES: &str = r#"{"version":1,"build":7,"targets":[]}"#;

#[test]
fn the_newest_build_with_both_files_is_fetched_and_the_token_goes_to_the_api_alone() {
    let (api, storage, folder) = (Api::new(), Api::new(), TempDir::new().unwrap());
    let states = ["scheduled", "failed", "running", "passed"]
        .into_iter()
        .zip([11, 10, 8, 7]);
    let mut builds: Vec<Value> = states
        .map(|(state, number)| listed(number, state))
        .collect();
    builds.insert(0, listed(9, "running"));
    api.lists(&json!(builds));
    // What it has left makes no sense.
    let damaged = [
        ("eval-once.json", RECORDING),
        ("eval-once-outcomes.json", "{"),
    ];
    api.has_build(10, &damaged, &storage);
    // Its summary has not run yet.
    api.has_build(8, &[("eval-once.json", RECORDING)], &storage);
    let other = RECORDING.replace("{}", r#"{"file":"b.nix"}"#);
    let artifacts = [
        ("x/eval-once.json", "not this one"),
        ("eval-once.json", RECORDING),
        // Of a retry.
        ("eval-once.json", RECORDING),
        ("eval-once.json", &other),
        (
            "eval-once-outcomes.json",
            r#"{"version":1,"build":7,"targets":[],"old":1}"#,
        ),
        ("eval-once-outcomes.json", OUTCOMES),
    ];
    api.has_build(7, &artifacts, &storage);
    let ended = fetch(&api.url(), folder.path());
    says_all(
        &ended,
        &[
            "warning: build 10 is no base: cannot read eval-once-outcomes.json",
            "the base is build 7 of ma in&x (passed): 2 recordings, 0 targets",
        ],
    );
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(read("eval-once.json"), format!("{other}\n{RECORDING}"));
    assert_eq!(read("eval-once-outcomes.json"), OUTCOMES);
    assert_eq!(folder.path().read_dir().unwrap().count(), 2);
    let asked = api.requests.lock().unwrap();
    assert!(
        asked[0].0.contains("?branch=ma%20in%26x&per_page=30&"),
        "{asked:?}"
    );
    let login = format!("Bearer {TOKEN}");
    assert!(
        asked.iter().all(|(_, it)| it.as_ref() == Some(&login)),
        "{asked:?}"
    );
    assert!(
        asked
            .iter()
            .all(|(url, _)| !url.contains("builds/9/") && !url.contains("builds/11/"))
    );
    let asked = storage.requests.lock().unwrap();
    assert_eq!(asked.len(), 6, "{asked:?}");
    assert!(asked.iter().all(|(_, login)| login.is_none()), "{asked:?}");
}

#[test]
fn whatever_fails_is_a_warning_and_leaves_no_files() {
    let (api, storage, folder) = (Api::new(), Api::new(), TempDir::new().unwrap());
    let builds = "/organizations/org/pipelines/pipe/builds";
    let good = [
        ("eval-once.json", RECORDING),
        ("eval-once-outcomes.json", OUTCOMES),
    ];
    let spoiled: [(&str, &dyn Fn()); 9] = [
        ("Buildkite answers 401 to GET", &|| {
            api.answers(builds, 401, &"", None);
        }),
        ("Buildkite answers 404 to GET", &|| {
            api.answers(builds, 404, &"", None);
        }),
        ("Buildkite answers 500 to GET", &|| {
            api.answers(builds, 500, &"", None);
        }),
        ("is not as expected", &|| {
            api.answers(builds, 200, &"<html>", None);
        }),
        ("none of the newest 0 builds of ma in&x has", &|| {
            api.lists(&json!([]));
        }),
        ("none of the newest 1 build of", &|| {
            api.has_build(7, &good[1..], &storage);
        }),
        ("cannot read eval-once-outcomes.json", &|| {
            api.has_build(
                7,
                &[good[0], ("eval-once-outcomes.json", "\u{1b}[2J")],
                &storage,
            );
        }),
        ("has version 2", &|| {
            let later = RECORDING.replace(":1,", ":2,");
            api.has_build(7, &[("eval-once.json", &later), good[1]], &storage);
        }),
        ("Buildkite answers 403 to GET", &|| {
            storage.answers("/7/0190-1", 403, &"", None);
        }),
    ];
    for (says, spoil) in spoiled {
        api.lists(&json!([listed(7, "failed")]));
        api.has_build(7, &good, &storage);
        spoil();
        let ended = fetch(&api.url(), folder.path());
        says_all(
            &ended,
            &[
                "warning: no base, so nothing is skipped because of one: ",
                says,
            ],
        );
        assert_eq!(folder.path().read_dir().unwrap().count(), 0, "{says}");
    }
    // No server at all; and an address that would show the token to everybody on the way.
    let nobody = format!("http://127.0.0.1:{}", {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    });
    says_all(&fetch(&nobody, folder.path()), &["failed: "]);
    says_all(
        &fetch("http://example.org", folder.path()),
        &["must begin with https://"],
    );
    let said = base(folder.path()).run();
    said.exits(0)
        .says(&["BUILDKITE_API_TOKEN is not set", "hint: "]);
    let by_hand = Program::new(EVAL_ONCE).arg("base").arg(folder.path()).run();
    says_all(
        by_hand.exits(0),
        &["the pipeline is not known", "--pipeline"],
    );
}

/// The annotation of the recording says what changed since the base.
#[track_caller]
fn compares_with_build_1(build: &Build) {
    let annotations = build.annotations();
    let (_, annotation) = annotations
        .iter()
        .find(|(context, _)| {
            context.starts_with("eval-once-")
                && !context.ends_with("summary")
                && !context.ends_with("failures")
        })
        .unwrap();
    for line in [
        "Since build 1:",
        "- 1 attribute new: <code>new</code>",
        "- 1 attribute changed: <code>changing</code>",
        "- 1 attribute removed: <code>old</code>",
        "- 1 attribute still failing: <code>bad</code>",
    ] {
        assert!(
            annotation.body.contains(line),
            "{line}: {}",
            annotation.body
        );
    }
}

#[test]
fn what_was_green_in_the_base_is_skipped_and_what_failed_there_is_built_again() {
    if tool("git").is_none() || program().is_none() {
        return;
    }
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"rec {
  good = file "good";
  above = build "above" "read x < ${good}; echo $x > $out";
  bad = build "bad" "echo no; exit 1";
  old = file "old";
  changing = file "one";
}"#,
    );
    let record = format!("'{EVAL_ONCE}' pipeline --summary --no-share --skip none");
    let run = |script: &str, env: &[(&str, &str)]| -> Option<Build> {
        let build = Build::new(&json!({ "key": "record", "command": script }))?
            .checkout(store.work())
            .envs(store.env())
            .envs(env.iter().copied())
            .our_hook("command")
            .agents(2);
        assert_eq!(build.run(), Outcome::Failed, "bad is red");
        Some(build)
    };
    let Some(first) = run(&record, &[]) else {
        return;
    };
    let artifact =
        |build: &Build, name: &str| String::from_utf8(build.artifacts()[name].clone()).unwrap();
    let (api, storage) = (Api::new(), Api::new());
    api.lists(&json!([listed(1, "failed")]));
    let names = ["eval-once.json", "eval-once-outcomes.json"];
    let texts = names.map(|name| artifact(&first, name));
    api.has_build(1, &[(names[0], &texts[0]), (names[1], &texts[1])], &storage);

    store.targets(
        r#"rec {
  good = file "good";
  above = build "above" "read x < ${good}; echo $x > $out";
  bad = build "bad" "echo no; exit 1";
  changing = file "two";
  new = file "new";
}"#,
    );
    let folder = TempDir::new().unwrap();
    let folder = folder.path().display();
    let script = format!(
        "'{EVAL_ONCE}' base {folder} --pipeline org/pipe --branch main && {record} --base {folder}/eval-once.json"
    );
    let url = api.url();
    let env = [
        ("BUILDKITE_API_TOKEN", TOKEN),
        ("BUILDKITE_REST_API_ENDPOINT", &url),
    ];
    let Some(second) = run(&script, &env) else {
        return;
    };
    let recorded: Value = serde_json::from_str(&artifact(&second, names[0])).unwrap();
    let targets = recorded["targets"].as_array().unwrap().iter();
    let skipped: Vec<(String, Value)> = targets
        .map(|it| {
            (
                it["attr"][0].as_str().unwrap().to_owned(),
                it["skip"].clone(),
            )
        })
        .collect();
    let unchanged = json!("unchanged since build 1");
    let expected = [
        ("above", unchanged.clone()),
        ("bad", Value::Null),
        ("changing", Value::Null),
        ("good", unchanged),
        ("new", Value::Null),
    ];
    assert_eq!(
        skipped,
        expected.map(|(name, skip)| (name.to_owned(), skip))
    );
    compares_with_build_1(&second);
    let log = second.job("record").plain();
    assert!(
        log.contains("the base is build 1 of main (failed): 1 recording, 5 targets"),
        "{log}"
    );
    assert!(
        log.contains("3 to build, 2 unchanged since build 1"),
        "{log}"
    );
    assert!(!log.contains(TOKEN), "{log}");
    // The next build has this one as its base: what was skipped stays green.
    let outcomes: Value = serde_json::from_str(&artifact(&second, names[1])).unwrap();
    assert_eq!(
        outcomes["counts"],
        json!({ "passed": 2, "skipped": 2, "failed": 1 })
    );
}

#[test]
fn a_drv_that_no_step_has_built_is_not_skipped_although_its_step_was_green() {
    if tool("git").is_none() || program().is_none() {
        return;
    }
    let Some(store) = Store::new() else { return };
    // What is recorded fails, and what the step evaluates does not.
    store.targets(
        r#"{ app = build "app" "${if builtins.getEnv "REV" == "2" then "echo > $out" else "exit 1"}"; }"#,
    );
    let recorded = store.instantiate("default.nix", "app");
    let hook = format!(
        "case $BUILDKITE_STEP_KEY in drv-*) export REV=2; rm -r \"$EVAL_ONCE_STATE_DIR/pins\"; env -u NIX_REMOTE nix-store --delete --ignore-liveness $(nix-store -q --referrers {recorded}) {recorded};; esac\n"
    );
    let record = format!("'{EVAL_ONCE}' pipeline --summary --no-share --skip none");
    let Some(build) = Build::new(&json!({ "key": "record", "command": record })) else {
        return;
    };
    let build = build
        .checkout(store.work())
        .envs(store.env())
        .our_hook("command")
        .shell_hook("pre-command", &hook)
        .agents(1);
    assert_eq!(build.run(), Outcome::Passed, "drift is a warning");
    let folder = TempDir::new().unwrap();
    let artifacts = build.artifacts();
    for name in ["eval-once.json", "eval-once-outcomes.json"] {
        fs::write(folder.path().join(name), &artifacts[name]).unwrap();
    }
    let outcomes: Value = serde_json::from_slice(&artifacts["eval-once-outcomes.json"]).unwrap();
    let target = &outcomes["targets"][0];
    assert_eq!(
        (&target["outcome"], &target["drv"]),
        (&json!("passed"), &Value::Null)
    );
    let file = folder.path().join("eval-once.json");
    let ended = store
        .eval_once(["pipeline", "--dry-run", "--base"])
        .arg(file)
        .run();
    let pipeline = Pipeline::of(&ended);
    let step = &pipeline.step(&["app"]).json;
    assert!(
        step["env"]["EVAL_ONCE_STEP"]
            .as_str()
            .unwrap()
            .contains(&recorded),
        "{step}"
    );
    assert!(step.get("skip").is_none(), "{step}");
}

#[test]
fn a_base_that_cannot_be_read_is_a_warning_and_nothing_is_skipped() {
    let Some(store) = Store::new() else { return };
    store.targets(r#"{ a = file "a"; }"#);
    let ended = store
        .eval_once(["pipeline", "--dry-run", "--base", "nonesuch.json"])
        .run();
    says_all(
        &ended,
        &[
            "nothing is skipped because of `base`",
            "nonesuch.json: No such file",
        ],
    );
    let pipeline = Pipeline::of(&ended);
    assert!(pipeline.step(&["a"]).json.get("skip").is_none());
}

#[test]
fn short_targets_have_a_step_in_common_and_a_report_each() {
    if tool("git").is_none() || program().is_none() {
        return;
    }
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"rec {
  one = build "one" "echo 1 > $out";
  two = build "two" "echo 2 > $out";
  bad = build "bad" "echo no; exit 1";
  above = build "above" "read x < ${one}; echo $x > $out";
  behind = build "behind" "read x < ${bad}; echo $x > $out";
}"#,
    );
    // It has recorded other things, so nothing is the same.
    let folder = TempDir::new().unwrap();
    let took = |name: &str| json!({ "attr": [name], "outcome": "passed", "seconds": 2.0 });
    let targets = ["one", "two", "bad"].map(took);
    let outcomes = json!({ "version": 1, "targets": targets });
    fs::write(folder.path().join("eval-once.json"), RECORDING).unwrap();
    fs::write(
        folder.path().join("eval-once-outcomes.json"),
        outcomes.to_string(),
    )
    .unwrap();
    let base = folder.path().join("eval-once.json");
    let script = format!(
        "'{EVAL_ONCE}' pipeline --summary --no-share --base '{}' --batch 3",
        base.display()
    );
    let Some(build) = Build::new(&json!({ "key": "record", "command": script })) else {
        return;
    };
    let build = build
        .checkout(store.work())
        .envs(store.env())
        .our_hook("command")
        .agents(1);
    assert_eq!(build.run(), Outcome::Failed, "bad is red");
    let jobs = build.jobs();
    let batch = jobs.iter().find(|job| {
        let key = job.key.as_deref();
        key.is_some_and(|key| key.starts_with("batch-"))
    });
    let batch = batch.unwrap();
    assert_eq!(batch.label.as_deref(), Some(":nix: bad and 2 more"));
    assert_eq!(batch.exit_status, Some(100), "{}", batch.plain());
    let log = batch.plain();
    for line in [
        "1 of 3: bad",
        "2 of 3: one",
        "3 of 3: two",
        "1 of 3 targets failed: bad",
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }
    // Recording, batch, above, behind, summary.
    assert_eq!(jobs.len(), 5);
    let artifacts = build.artifacts();
    let outcomes: Value = serde_json::from_slice(&artifacts["eval-once-outcomes.json"]).unwrap();
    let targets = outcomes["targets"].as_array().unwrap().iter();
    let found: BTreeMap<&str, &str> = targets
        .map(|it| {
            (
                it["attr"][0].as_str().unwrap(),
                it["outcome"].as_str().unwrap(),
            )
        })
        .collect();
    let expected = [
        ("above", "passed"),
        ("bad", "failed"),
        ("behind", "failed"),
        ("one", "passed"),
        ("two", "passed"),
    ];
    assert_eq!(found, BTreeMap::from(expected));
    let junit = String::from_utf8(artifacts["eval-once-junit.xml"].clone()).unwrap();
    assert!(
        junit.contains("tests=\"5\" failures=\"2\" errors=\"0\""),
        "{junit}"
    );
    let failures = &build.annotations()["eval-once-failures"].body;
    assert!(
        failures.contains("bad") && !failures.contains("two"),
        "{failures}"
    );
}

#[test]
fn a_batch_that_a_hook_fails_after_its_builds_is_red_in_the_summary() {
    if tool("git").is_none() || program().is_none() {
        return;
    }
    let Some(store) = Store::new() else { return };
    store.targets(r#"{ one = file "one"; two = file "two"; other = file "other"; }"#);
    let folder = TempDir::new().unwrap();
    let took = |name: &str| json!({ "attr": [name], "outcome": "passed", "seconds": 2.0 });
    let targets = ["one", "two"].map(took);
    let outcomes = json!({ "version": 1, "targets": targets });
    let base = folder.path().join("eval-once.json");
    fs::write(&base, RECORDING).unwrap();
    let beside = folder.path().join("eval-once-outcomes.json");
    fs::write(beside, outcomes.to_string()).unwrap();
    let script = format!(
        "'{EVAL_ONCE}' pipeline --summary=fail --no-share --base '{}' --batch 3",
        base.display()
    );
    let Some(build) = Build::new(&json!({ "key": "record", "command": script })) else {
        return;
    };
    let build = build
        .checkout(store.work())
        .envs(store.env())
        .our_hook("command")
        .shell_hook(
            "post-command",
            "case $BUILDKITE_STEP_KEY in batch-*) exit 1;; esac\n",
        )
        .agents(1);
    assert_eq!(build.run(), Outcome::Failed);
    let jobs = build.jobs();
    let summary = jobs.last().unwrap().plain();
    assert!(
        summary.contains("error: 2 targets failed: one, two\n"),
        "{summary}"
    );
    let body = &build.annotations()["eval-once-summary"].body;
    let failed = "| **failed** (hook), after the build |";
    assert_eq!(body.matches(failed).count(), 2, "{body}");
    assert_eq!(build.meta_data()["eval-once:failed"], "2");
}

#[test]
fn what_several_targets_need_has_a_step_until_it_is_built() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"let zlib = build "zlib-1.3.1" "echo z > $out"; in {
  one = build "one" "read x < ${zlib}; echo $x > $out";
  two = build "two" "read x < ${zlib}; echo $x > $out";
  other = file "other";
}"#,
    );
    let recorded = |least: &str| {
        let flags = [
            "pipeline",
            "--dry-run",
            "--shared-steps",
            least,
            "--skip",
            "none",
        ];
        let ended = store.eval_once(flags).run();
        ended.exits(0);
        serde_json::from_str::<Value>(&ended.stdout).unwrap()["steps"].clone()
    };
    let steps = recorded("2");
    let steps = steps.as_array().unwrap();
    assert_eq!(steps.len(), 4);
    let shared = steps
        .iter()
        .find(|step| step["label"] == ":nix: zlib-1.3.1 (shared)");
    let shared = shared.unwrap();
    for step in steps {
        let is_above = step["label"] == ":nix: one" || step["label"] == ":nix: two";
        let expected = if is_above {
            json!([shared["key"]])
        } else {
            json!([])
        };
        assert_eq!(step["depends_on"], expected, "{step}");
    }
    assert_eq!(
        recorded("3").as_array().unwrap().len(),
        3,
        "too few need it"
    );
    let record = shared["env"]["EVAL_ONCE_STEP"].as_str().unwrap();
    let step = store
        .eval_once(["step"])
        .env("EVAL_ONCE_STEP", record)
        .run();
    step.exits(0);
    assert_eq!(recorded("2").as_array().unwrap().len(), 3, "it is there");
}

/// The outcome of a build whose targets `one` and `two` need `zlib`, which is built like this; its jobs by their label; and its
/// annotations.
fn build_of_shared(
    zlib: &str,
    hook: &str,
) -> Option<(Outcome, BTreeMap<String, Vec<Job>>, String)> {
    tool("git")?;
    program()?;
    let store = Store::new()?;
    store.targets(&format!(
        r#"let zlib = build "zlib-1.3.1" "{zlib}"; in {{
  one = build "one" "read x < ${{zlib}}; echo $x > $out";
  two = build "two" "read x < ${{zlib}}; echo $x > $out";
}}"#
    ));
    let record =
        format!("'{EVAL_ONCE}' pipeline --shared-steps 2 --no-share --skip none --summary");
    let build = Build::new(&json!({ "key": "record", "command": record }))?
        .checkout(store.work())
        .envs(store.env())
        .our_hook("command")
        .shell_hook("pre-command", hook)
        .agents(1);
    let outcome = build.run();
    let mut jobs: BTreeMap<String, Vec<Job>> = BTreeMap::new();
    for job in build.jobs() {
        jobs.entry(job.label.clone().unwrap_or_default())
            .or_default()
            .push(job);
    }
    let annotations = build.annotations();
    let summary = annotations.values().map(|it| it.body.as_str());
    Some((outcome, jobs, summary.collect::<Vec<_>>().join("\n")))
}

#[test]
fn a_shared_derivation_that_the_collector_took_keeps_no_target_from_being_built() {
    let collect = "case $BUILDKITE_STEP_KEY in shared-*) rm -rf \"$EVAL_ONCE_STATE_DIR/pins\"; drv=$(echo \"$NIX_STORE_DIR\"/*-zlib-1.3.1.drv); if [ -e \"$drv\" ]; then env -u NIX_REMOTE nix-store --delete --ignore-liveness $(nix-store -q --referrers-closure \"$drv\"); fi;; esac\n";
    let Some((outcome, jobs, summary)) = build_of_shared("echo z > $out", collect) else {
        return;
    };
    let shared = &jobs[":nix: zlib-1.3.1 (shared)"];
    assert_eq!(
        shared.last().unwrap().exit_status,
        Some(75),
        "{}",
        shared.last().unwrap().plain()
    );
    assert_eq!(shared.last().unwrap().state, JobState::SoftFailed);
    for name in [":nix: one", ":nix: two"] {
        let job = jobs[name].last().unwrap();
        assert_eq!(job.state, JobState::Passed, "{}", job.plain());
    }
    assert_eq!(outcome, Outcome::Passed);
    assert!(
        summary.contains("3 targets (1 soft failed, 2 built)"),
        "{summary}"
    );
}

#[test]
fn a_shared_derivation_that_fails_is_red_once_and_what_needs_it_does_not_run() {
    let Some((outcome, jobs, summary)) = build_of_shared("exit 3", "") else {
        return;
    };
    let [shared] = &jobs[":nix: zlib-1.3.1 (shared)"][..] else {
        panic!("it was tried again");
    };
    assert_eq!(shared.exit_status, Some(100), "{}", shared.plain());
    assert_eq!(shared.state, JobState::Failed);
    for name in [":nix: one", ":nix: two"] {
        assert_eq!(jobs[name].last().unwrap().exit_status, None);
    }
    assert_eq!(outcome, Outcome::Failed);
    assert!(
        summary.contains("3 targets (1 failed, 2 not run)"),
        "{summary}"
    );
}
