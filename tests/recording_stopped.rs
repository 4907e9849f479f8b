//! A recording that is stopped, or fails on the way: what it leaves, and how a retry goes on with that.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use unix::sys::signal::{Signal, kill};

use crate::support::{
    EVAL_ONCE,
    agent::{commit, program},
    buildkite::{Build, JobState, Outcome},
    program::{Ended, Program, Running, read_json},
    stand_in::StandIns,
    store::Store,
    target::expression,
    tool, until,
};

/// A store with a repository, in which the recording comes to `slow`, and goes on there once it is let go.
struct Scene {
    store: Store,
    commit: String,
}

/// Says when one of the targets is evaluated, and never ends with `slow` unless it is let go.
fn targets(store: &Store) -> String {
    let go = store.root().join("go");
    expression(&format!(
        r#"
let
  said = name: builtins.trace "evaluating ${{name}}" (file name);
  numbers = builtins.genList (n: n);
  sum = builtins.foldl' (a: b: a + b);
  forever = builtins.foldl' (a: n: sum (a - n) (numbers 100000)) 0 (numbers 1000000);
in {{
  a = said "a";
  bad = throw "its words";
  call = said "call" // {{ __functor = self: {{ x ? 1 }}: said "called"; }};
  list = {{ recurseForDerivations = true; items = [ (said "first") (said "second") ]; }};
  set = {{
    recurseForDerivations = true;
    "with \"quote\".and dot" = said "quoted" // {{ meta = {{ description = "d \" e"; timeout = 90; buildkite.label = "L"; }}; }};
    unmarked.x = said "unmarked";
  }};
  twin = said "a";
  z.recurseForDerivations = true;
  z.deep.recurseForDerivations = true;
  z.deep.set = {{
    recurseForDerivations = true;
    slow = if builtins.pathExists {go} then said "slow" else builtins.seq (builtins.trace "it has begun" forever) (said "never");
    then' = said "then";
  }};
}}"#,
        go = go.display()
    ))
}

/// What git prints in the checkout.
fn git(store: &Store, words: &[&str]) -> String {
    let line = Command::new("git")
        .args(words)
        .current_dir(store.work())
        .output();
    let printed = line.unwrap();
    assert!(printed.status.success(), "{words:?}");
    String::from_utf8(printed.stdout).unwrap().trim().to_owned()
}

impl Scene {
    fn new() -> Option<Self> {
        tool("git")?;
        let store = Store::new()?;
        store.write("ci.nix", &targets(&store));
        Some(Self::of(store))
    }

    fn of(store: Store) -> Self {
        commit(&store.work());
        let commit = git(&store, &["rev-parse", "HEAD"]);
        let scene = Self { store, commit };
        let left = scene.left();
        fs::create_dir(&left).unwrap();
        let script = format!(
            r#"case "$1 $2" in
"artifact upload") cp "$3" {left}/ ;;
"annotate --context") cat >{left}/annotation ;;
"pipeline upload") for file; do :; done; cp "$file" {left}/pipeline ;;
esac
exit 0"#,
            left = left.display()
        );
        scene.agent(&script);
        scene
    }

    /// An agent that does this with its commands, and writes down which they were.
    fn agent(&self, script: &str) {
        let calls = self.store.root().join("calls");
        let text = format!("#!/bin/sh\necho \"$*\" >>{}\n{script}\n", calls.display());
        StandIns::new(self.store.bin()).instead("buildkite-agent", &text);
    }

    /// How often the agent was called with these words.
    fn calls(&self, words: &str) -> usize {
        let calls = fs::read_to_string(self.store.root().join("calls")).unwrap_or_default();
        calls.lines().filter(|call| call.contains(words)).count()
    }

    /// Where the agent puts what a recording leaves.
    fn left(&self) -> PathBuf {
        self.store.root().join("left")
    }

    /// Lets the evaluation of `slow` go on.
    fn go(&self) {
        fs::write(self.store.root().join("go"), "").unwrap();
    }

    /// A recording in a job of this pipeline.
    fn job(&self, pipeline: &str) -> Program {
        self.store.eval_once(FLAGS).envs(self.environment(pipeline))
    }

    fn environment(&self, pipeline: &str) -> Vec<(&'static str, String)> {
        let path = self.store.path().into_string().unwrap();
        vec![
            ("PATH", format!("{}:{path}", self.store.bin().display())),
            ("BUILDKITE_JOB_ID", "job".into()),
            ("BUILDKITE_AGENT_ACCESS_TOKEN", "token".into()),
            ("BUILDKITE_BUILD_ID", "build".into()),
            ("BUILDKITE_STEP_ID", "step".into()),
            ("BUILDKITE_PIPELINE_SLUG", pipeline.into()),
            ("BUILDKITE_COMMIT", self.commit.clone()),
        ]
    }

    fn document(&self) -> Value {
        read_json(&self.left().join("eval-once.json"))
    }

    fn annotation(&self) -> String {
        fs::read_to_string(self.left().join("annotation")).unwrap()
    }

    fn pipeline(&self) -> String {
        fs::read_to_string(self.left().join("pipeline")).unwrap()
    }

    /// The folders in which something is kept for a retry.
    fn kept(&self) -> Vec<PathBuf> {
        let Ok(pins) = fs::read_dir(self.store.our_state().join("pins")) else {
            return Vec::new();
        };
        let folders = pins.map(|entry| entry.unwrap().path());
        folders
            .filter(|folder| folder.join("found.json").exists())
            .collect()
    }

    /// The pipeline that an undisturbed recording uploads.
    #[track_caller]
    fn undisturbed(&self) -> String {
        self.go();
        let ended = self.job("undisturbed").run();
        ended.exits(0);
        assert_eq!(evaluated(&ended), ALL, "{ended}");
        self.pipeline()
    }
}

const FLAGS: [&str; 7] = [
    "pipeline",
    "--file",
    "ci.nix",
    "--skip",
    "none",
    "--workers",
    "1",
];

/// What is said when all targets are evaluated. (The first is evaluated as its twin, too.)
const ALL: [&str; 8] = [
    "a", "a", "call", "first", "quoted", "second", "slow", "then",
];

/// What is said when a retry evaluates the rest.
const REST: [&str; 2] = ["slow", "then"];

fn stop(running: &Running, signal: Signal) {
    kill(running.pid(), signal).unwrap();
}

/// The targets that were evaluated, sorted.
fn evaluated(ended: &Ended) -> Vec<&str> {
    let lines = ended.stderr.lines();
    let mut names: Vec<&str> = lines
        .filter_map(|line| line.strip_prefix("trace: evaluating "))
        .collect();
    names.sort_unstable();
    names
}

fn attrs(document: &Value) -> Vec<String> {
    let targets = document["targets"].as_array().unwrap().iter();
    targets.map(|target| target["attr"].to_string()).collect()
}

/// A recording that is stopped where it never ends.
#[track_caller]
fn stopped(job: &Program) -> Ended {
    let running = job.start();
    running.until_it_says("it has begun");
    stop(&running, Signal::SIGTERM);
    let ended = running.end();
    ended.exits(143);
    ended
}

const CONTINUING: &str = "continuing with 5 targets of a recording that was stopped";

#[test]
fn a_stopped_recording_leaves_what_it_found_and_a_retry_goes_on_with_it() {
    let Some(scene) = Scene::new() else { return };
    let ended = stopped(&scene.job("p"));
    ended.says(&[
        "evaluation error: bad: its words",
        "; a retry on this host continues with these targets",
        "error: stopped by SIGTERM",
    ]);
    let document = scene.document();
    assert_eq!(document["complete"], false, "{document}");
    let found = [
        r#"["a"]"#,
        r#"["call"]"#,
        r#"["list","items","0"]"#,
        r#"["list","items","1"]"#,
        r#"["set","with \"quote\".and dot"]"#,
    ];
    assert_eq!(attrs(&document), found);
    assert_eq!(document["errors"][0]["attr"], json!(["bad"]));
    assert_eq!(document["targets"][4]["meta"]["timeout"], 90);
    let annotation = scene.annotation();
    assert!(
        annotation.contains("stopped by SIGTERM")
            && annotation.contains("stopped at <code>z")
            && annotation.contains("slow</code> after"),
        "{annotation}"
    );
    let kept = scene.kept();
    let [kept] = &kept[..] else {
        panic!("{kept:?}")
    };
    let mode = kept
        .join("found.json")
        .metadata()
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    // A collection between the two takes nothing of it.
    scene.store.collect();

    scene.go();
    let ended = scene.job("p").run();
    ended.exits(0).passes_on(CONTINUING);
    assert_eq!(evaluated(&ended), REST, "{ended}");
    assert_eq!(scene.document()["complete"], true);
    assert!(!scene.annotation().contains("stopped"));
    let pipeline = scene.pipeline();
    assert_eq!(scene.kept(), [""; 0].map(PathBuf::from));
    assert_eq!(pipeline, scene.undisturbed());
}

#[test]
fn a_retry_that_is_stopped_earlier_loses_nothing() {
    let Some(scene) = Scene::new() else { return };
    stopped(&scene.job("p"));
    // It is stopped again at the same place, where it has evaluated nothing itself.
    let ended = stopped(&scene.job("p"));
    ended.passes_on(CONTINUING);
    assert_eq!(evaluated(&ended), [""; 0]);
    assert_eq!(attrs(&scene.document()).len(), 5);
    scene.go();
    let ended = scene.job("p").run();
    ended.exits(0).passes_on(CONTINUING);
    let pipeline = scene.pipeline();
    assert_eq!(pipeline, scene.undisturbed());
}

#[test]
fn a_recording_of_something_else_goes_on_with_nothing() {
    let Some(scene) = Scene::new() else { return };
    stopped(&scene.job("p"));
    scene.go();
    let all = |job: Program, said: Option<&str>| {
        let ended = job.run();
        ended.exits(0).never_says("continuing");
        if let Some(said) = said {
            ended.passes_on(said);
        }
        assert_eq!(evaluated(&ended), ALL, "{ended}");
    };
    // Another pipeline, other keys, a tag, another commit, one that is not known; a dry run, and one by hand.
    all(scene.job("other"), None);
    all(scene.job("p").args(["--no-meta"]), None);
    let other_label = scene
        .job("p")
        .env("BUILDKITE_LABEL", "record for another system");
    all(other_label, None);
    // The environment says what a release is named.
    for name in ["BUILDKITE_TAG", "BUILDKITE_PULL_REQUEST"] {
        all(scene.job("p").env(name, "1"), None);
    }
    let in_another_job = scene.job("p").env("BUILDKITE_JOB_ID", "another");
    all(in_another_job.args(["--argstr", "x", "1"]), None);
    let other_systems = scene.job("p").args(["--agents", "{\"aarch64-linux\": {}}"]);
    all(other_systems, None);
    all(scene.job("p").env("BUILDKITE_COMMIT", "1".repeat(40)), None);
    all(scene.job("p").env("BUILDKITE_COMMIT", "HEAD"), None);
    all(scene.job("p").args(["--dry-run"]), None);
    all(scene.job("p").without("BUILDKITE_JOB_ID"), None);
    // The same in a checkout that was changed.
    let new = scene.store.write("new", "");
    all(
        scene.job("p"),
        Some("cannot be continued: the checkout is not "),
    );
    // By now one was complete, and nothing is kept any more.
    fs::remove_file(new).unwrap();
    assert_eq!(scene.kept().len(), 0);
}

#[test]
fn what_was_found_in_a_checkout_that_was_changed_and_restored_is_not_kept() {
    type Change = fn(&Path);
    let changes: [(bool, Change); 5] = [
        (false, |_| {}),
        // Whatever stood there before: the same again.
        (true, |checkout| {
            let text = fs::read(checkout.join("ci.nix")).unwrap();
            fs::write(checkout.join("ci.nix"), text).unwrap();
        }),
        // One that git does not know, and that is gone again.
        (true, |checkout| {
            fs::write(checkout.join("local.nix"), "1").unwrap();
            fs::remove_file(checkout.join("local.nix")).unwrap();
        }),
        // The file itself does not know that it was moved away.
        (true, |checkout| {
            fs::rename(checkout.join("ci.nix"), checkout.join("away")).unwrap();
            fs::rename(checkout.join("away"), checkout.join("ci.nix")).unwrap();
        }),
        // What git does by itself.
        (false, |checkout| {
            fs::write(checkout.join(".git/new"), "").unwrap();
        }),
    ];
    for (is_changed, change) in changes {
        let Some(scene) = Scene::new() else { return };
        let running = scene.job("p").start();
        running.until_it_says("it has begun");
        change(&scene.store.work());
        stop(&running, Signal::SIGTERM);
        let ended = running.end();
        ended.exits(143);
        assert_eq!(scene.kept().is_empty(), is_changed, "{ended}");
    }
}

#[test]
fn what_git_does_not_look_at_counts_as_well() {
    type Change = fn(&Store);
    fn commit_all(store: &Store) {
        let author = ["-c", "user.name=Test", "-c", "user.email=test@example.com"];
        let all = ["commit", "--quiet", "--all", "--message=More"];
        git(store, &[&author[..], &all].concat());
    }
    let rows: [(&str, Change, Change); 6] = [
        (
            "an ignored file",
            |store| {
                store.write(".git/info/exclude", "local.nix");
                store.write("local.nix", "1");
            },
            |store| drop(store.write("local.nix", "2")),
        ),
        (
            "a filter",
            |store| {
                git(store, &["config", "filter.k.clean", "sed s/2/1/"]);
                store.write(".git/info/attributes", "lib.nix filter=k");
            },
            |store| {
                store.write("lib.nix", "2");
                git(store, &["add", "lib.nix"]);
            },
        ),
        (
            "a mode",
            |store| drop(git(store, &["config", "core.fileMode", "false"])),
            |store| {
                let file = store.work().join("lib.nix");
                fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
            },
        ),
        (
            "a file that is assumed to be unchanged",
            |_| {},
            |store| {
                git(store, &["update-index", "--assume-unchanged", "lib.nix"]);
                store.write("lib.nix", "2");
            },
        ),
        (
            "a submodule without a repository",
            |store| {
                let of = format!("160000,{},sub", "1".repeat(40));
                git(store, &["update-index", "--add", "--cacheinfo", &of]);
                store.write("sub/lib.nix", "1");
                commit_all(store);
            },
            |store| drop(store.write("sub/lib.nix", "2")),
        ),
        (
            "an empty folder",
            |_| {},
            |store| fs::create_dir(store.work().join("empty")).unwrap(),
        ),
    ];
    for (what, before, between) in rows {
        let Some(store) = Store::new() else { return };
        if tool("git").is_none() {
            return;
        }
        store.write("ci.nix", &targets(&store));
        store.write("lib.nix", "1");
        let mut scene = Scene::of(store);
        before(&scene.store);
        scene.commit = git(&scene.store, &["rev-parse", "HEAD"]);
        stopped(&scene.job("p"));
        assert_eq!(scene.kept().len(), 1, "{what}");
        between(&scene.store);
        assert_eq!(git(&scene.store, &["status", "--porcelain"]), "", "{what}");
        scene.go();
        let ended = scene.job("p").run();
        ended
            .exits(0)
            .passes_on("cannot be continued: there is something else in the checkout");
        assert_eq!(evaluated(&ended), ALL, "{what}: {ended}");
    }
}

#[test]
fn the_same_checkout_in_another_folder_is_gone_on_with() {
    let Some(scene) = Scene::new() else { return };
    stopped(&scene.job("p"));
    // As another agent of this host has it; Nix takes the folder's name into no path here.
    let other = scene.store.root().join("other/work");
    fs::create_dir(scene.store.root().join("other")).unwrap();
    git(
        &scene.store,
        &["clone", "--quiet", ".", other.to_str().unwrap()],
    );
    scene.go();
    let ended = scene.job("p").folder(&other).run();
    ended.exits(0).passes_on(CONTINUING);
}

#[test]
fn what_another_nix_has_found_or_with_another_lock_is_evaluated_again() {
    for (key, value, why) in [
        ("nix", "1.2.3", "it was evaluated by another version of Nix"),
        ("flake", "path:/x", "the flake is locked otherwise"),
    ] {
        let Some(scene) = Scene::new() else { return };
        stopped(&scene.job("p"));
        let file = scene.kept()[0].join("found.json");
        let mut found: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        found[key] = value.into();
        fs::write(&file, found.to_string()).unwrap();
        scene.go();
        let ended = scene.job("p").run();
        ended
            .exits(0)
            .passes_on(&format!("cannot be continued: {why}"));
    }
}

#[test]
fn what_takes_something_from_outside_of_the_checkout_is_not_kept() {
    let Some(scene) = Scene::new() else { return };
    let outside = format!("x={}", scene.store.root().display());
    let job = scene.job("p").args(["--include", &outside]);
    stopped(&job);
    assert_eq!(scene.kept().len(), 0);
}

#[test]
fn what_is_damaged_is_evaluated_again() {
    let Some(scene) = Scene::new() else { return };
    stopped(&scene.job("p"));
    let file = scene.kept()[0].join("found.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::create_dir(scene.store.root().join("x")).unwrap();
    let damages: [&dyn Fn(); 6] = [
        &|| fs::write(&file, &text[..text.len() / 2]).unwrap(),
        &|| fs::write(&file, "").unwrap(),
        &|| fs::write(&file, text.replace("\"version\":2", "\"version\":3")).unwrap(),
        &|| fs::write(&file, text.replace(".drv", "")).unwrap(),
        &|| fs::create_dir(&file).unwrap(),
        &|| {
            let status = Command::new("mkfifo").arg(&file).status().unwrap();
            assert!(status.success());
        },
    ];
    for damage in damages {
        let _ = fs::remove_file(&file);
        damage();
        let ended = stopped(&scene.job("p"));
        ended.never_says("continuing");
        assert!(evaluated(&ended).contains(&"a"), "{ended}");
        let _ = fs::remove_dir(&file);
    }
    fs::write(&file, &text).unwrap();
    stopped(&scene.job("p")).passes_on(CONTINUING);
}

#[test]
fn what_was_collected_is_evaluated_again() {
    let Some(scene) = Scene::new() else { return };
    stopped(&scene.job("p"));
    fs::remove_file(scene.kept()[0].join("pin")).unwrap();
    scene.store.collect();
    scene.go();
    let ended = scene.job("p").run();
    ended.exits(0).never_says("continuing");
    assert_eq!(evaluated(&ended), ALL, "{ended}");
    let pipeline = scene.pipeline();
    assert_eq!(pipeline, scene.undisturbed());
}

#[test]
fn a_buildkite_that_does_not_answer_is_not_waited_for() {
    let Some(scene) = Scene::new() else { return };
    let hanging = "case \"$1\" in annotate|artifact) exec sleep 600 ;; esac\nexit 0";
    scene.agent(hanging);
    let running = scene.job("p").start();
    running.until_it_says("it has begun");
    let begin = Instant::now();
    stop(&running, Signal::SIGTERM);
    let ended = running.end();
    // All of it has 5 s; by itself each would take ten minutes.
    let took = begin.elapsed();
    ended.exits(143);
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert_eq!(scene.kept().len(), 1);
    // A second signal ends it at once.
    let running = scene.job("p").start();
    running.until_it_says("it has begun");
    stop(&running, Signal::SIGTERM);
    until("it annotates", || scene.calls("annotate") >= 2);
    let begin = Instant::now();
    stop(&running, Signal::SIGINT);
    let ended = running.end();
    ended.exits(143);
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[test]
fn a_recording_that_fails_for_infrastructure_leaves_what_it_found_too() {
    tool("git").unwrap();
    let Some(store) = Store::new() else { return };
    let go = store.root().join("go");
    store.write(
        "ci.nix",
        &expression(&format!(
            r#"{{ a = builtins.trace "evaluating a" (file "a"); b = if builtins.pathExists {} then file "b" else file (builtins.readFile (builtins.fetchurl "http://127.0.0.1:1/x")); }}"#,
            go.display()
        )),
    );
    let scene = Scene::of(store);
    let ended = scene.job("p").run();
    ended
        .exits(75)
        .passes_on("a retry on this host continues with these targets");
    assert_eq!(scene.document()["complete"], false);
    scene.go();
    let ended = scene.job("p").run();
    ended
        .exits(0)
        .passes_on("continuing with 1 target of a recording");
    assert_eq!(evaluated(&ended), [""; 0], "{ended}");
}

#[test]
fn a_recording_that_is_stopped_behind_its_evaluation_evaluates_only_the_root_again() {
    let Some(scene) = Scene::new() else { return };
    scene.go();
    let hanging = "case \"$1 $2 $3\" in \"artifact upload eval-once-plan.json\") echo saving >&2; exec sleep 600 ;; esac\nexit 0";
    scene.agent(hanging);
    let running = scene.job("p").start();
    until("it saves the plan", || {
        scene.calls("eval-once-plan.json") > 0
    });
    stop(&running, Signal::SIGTERM);
    running.end().exits(143);
    scene.agent("exit 0");
    let ended = scene.job("p").run();
    ended.exits(0).passes_on("continuing with 7 targets");
    assert_eq!(evaluated(&ended), [""; 0], "{ended}");
}

#[test]
fn two_that_are_stopped_at_once_leave_what_they_found() {
    let Some(scene) = Scene::new() else { return };
    let job = scene.job("p");
    let both = [job.start(), job.start()];
    for running in &both {
        running.until_it_says("it has begun");
    }
    for running in &both {
        stop(running, Signal::SIGTERM);
    }
    for running in both {
        running.end().exits(143);
    }
    assert_eq!(scene.kept().len(), 1);
    scene.go();
    let ended = scene.job("p").run();
    ended.exits(0).passes_on(CONTINUING);
    let pipeline = scene.pipeline();
    assert_eq!(pipeline, scene.undisturbed());
}

#[test]
fn wherever_it_is_killed_a_retry_records_the_same() {
    let Some(scene) = Scene::new() else { return };
    let pipeline = scene.undisturbed();
    // From before its first process until after its last.
    let begin = Instant::now();
    scene.job("timed").run().exits(0);
    let whole = begin.elapsed();
    for nth in 0..8_u32 {
        let signal = if nth % 4 == 3 {
            Signal::SIGKILL
        } else {
            Signal::SIGTERM
        };
        let slug = format!("p{}", nth % 3);
        let running = scene.job(&slug).start();
        thread::sleep(whole * nth / 8);
        let _ = kill(running.pid(), signal);
        let ended = running.end();
        ended.never_says("panicked");
        scene.job(&slug).run().exits(0);
        assert_eq!(scene.pipeline(), pipeline, "{nth}: {ended}");
        assert_eq!(scene.kept().len(), 0);
    }
}

#[test]
fn a_full_disk_is_said_and_changes_no_status() {
    let Some(scene) = Scene::new() else { return };
    let state = scene.store.our_state();
    let written = state.join("temporary");
    // Closed, as the program makes it.
    DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(&written)
        .unwrap();
    // So small that what was found does not fit beside what fills it.
    let script = format!(
        "mount -t tmpfs -o size=64k,mode=700 none {written} && head -c 1000000 /dev/zero >{written}/full; true",
        written = written.display()
    );
    let Some(mounted) = scene.store.eval_once_with_mounts(&script) else {
        return;
    };
    let full = mounted.args(FLAGS).envs(scene.environment("p"));
    let running = full.start();
    running.until_it_says("it has begun");
    stop(&running, Signal::SIGTERM);
    let ended = running.end();
    ended.exits(143).says(&[
        "evaluation error: bad: its words",
        "No space left on device",
        "stopped at z.deep.set.slow",
        "error: stopped by SIGTERM",
    ]);
    assert_eq!(scene.document()["complete"], false);
    assert!(!scene.annotation().contains("retry on this host"));
}

#[test]
fn a_recording_that_the_agent_cancels_leaves_what_it_found_and_its_retry_goes_on() {
    if program().is_none() {
        return;
    }
    let Some(scene) = Scene::new() else { return };
    fs::remove_file(scene.store.bin().join("buildkite-agent")).unwrap();
    let command = format!("'{EVAL_ONCE}' pipeline --file ci.nix --skip none --workers 1");
    let Some(build) = Build::new(&json!({ "key": "record", "command": command })) else {
        return;
    };
    let build = build
        .checkout(scene.store.work())
        .commit(&scene.commit)
        .envs(scene.store.env());
    let says = |what: &str| {
        let jobs = build.jobs();
        jobs.last().is_some_and(|job| job.plain().contains(what))
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            let job = build.until_job_is("record", JobState::Running);
            until("it has begun", || says("it has begun"));
            build.cancel(&job);
        });
        assert_eq!(build.run(), Outcome::Failed);
    });
    let job = build.job("record");
    let log = job.plain();
    assert!(log.contains("error: stopped by SIGTERM"), "{log}");
    let document: Value = serde_json::from_slice(&build.artifacts()["eval-once.json"]).unwrap();
    assert_eq!(document["complete"], false, "{log}");
    assert_eq!(attrs(&document).len(), 5);
    let annotations = build.annotations();
    let annotation = annotations.values().next().unwrap();
    assert!(
        annotation.body.contains("stopped by SIGTERM"),
        "{annotation:?}"
    );
    assert_eq!(annotation.style, "warning");

    scene.go();
    build.retry(&job.id);
    build.run();
    let log = build.job("record").plain();
    assert!(log.contains(CONTINUING), "{log}");
    assert!(!log.contains("evaluating first"), "{log}");
    let document: Value = serde_json::from_slice(&build.artifacts()["eval-once.json"]).unwrap();
    assert_eq!(document["complete"], true, "{log}");
    assert_eq!(build.annotations().len(), 1);
}
