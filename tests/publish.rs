//! What a step publishes to its build: real agents, real Nix, a Buildkite that is played. Its report in the meta-data, the annotation
//! of failures, the log of the root cause as an artifact; and what a Buildkite that does not answer costs.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{
    EVAL_ONCE,
    agent::program,
    buildkite::{Build, Deaf, Job, JobState, Outcome},
    program::Program,
    stand_in::StandIns,
    store::Store,
    target::expression,
    until,
};

const CONTEXT: &str = "eval-once-failures";

/// `dependent` and `other` fail through `broken`.
const TARGETS: &str = r#"rec {
  good = build "good" "echo good > $out";
  broken = build "broken" ''
    for n in 1 2 3 4 5 6 7 8 9; do echo line $n; done; printf 'no end of line \377'; exit 3
  '';
  dependent = build "dependent" "read line < ${broken}; echo $line > $out";
  other = build "other" "read line < ${broken}; echo $line > $out";
  throws = throw "nothing can be made of this";
}"#;

/// A build whose steps are these, each a job with our command hook; one agent runs them in this order.
struct Scene {
    store: Store,
    build: Build,
}

fn scene(steps: &[Value]) -> Option<Scene> {
    scene_of(&expression(TARGETS), steps)
}

fn scene_of(targets: &str, steps: &[Value]) -> Option<Scene> {
    let agent = program()?;
    let store = Store::new()?;
    store.write("default.nix", targets);
    let pipeline = json!({ "steps": steps });
    store.write("pipeline.json", &pipeline.to_string());
    let upload = "buildkite-agent pipeline upload --no-interpolation pipeline.json";
    // Our programs are found as they are in a job: by the agent's own folder on PATH.
    let mut path = agent.parent().unwrap().as_os_str().to_owned();
    path.push(":");
    path.push(store.path());
    let build = Build::new(&json!({ "key": "upload", "command": upload }))?
        .agents(1)
        .checkout(store.work())
        .envs(store.env())
        .envs([("PATH", path)])
        .our_hook("command");
    Some(Scene { store, build })
}

/// The step `key` that builds what this record says.
fn step(key: &str, record: &Value) -> Value {
    json!({
        "key": key,
        "label": format!("Build {key}"),
        "command": "true",
        "env": { "EVAL_ONCE_STEP": record.to_string() },
    })
}

/// The step that builds this attribute, and has its name as its key.
fn attr(name: &str) -> Value {
    step(name, &json!({ "attr": name }))
}

impl Scene {
    /// The saved report of a step.
    #[track_caller]
    fn report(&self, key: &str) -> Value {
        let meta_data = self.build.meta_data();
        let report = meta_data.get(&format!("eval-once:report:{key}"));
        serde_json::from_str(report.unwrap_or_else(|| panic!("{meta_data:?}"))).unwrap()
    }

    /// The annotation of failures, with numbers as the characters that they stand for.
    #[track_caller]
    fn annotation(&self) -> String {
        let annotations = self.build.annotations();
        assert_eq!(
            annotations.keys().collect::<Vec<_>>(),
            [CONTEXT],
            "{}",
            self.logs()
        );
        assert_eq!(annotations[CONTEXT].style, "error");
        shown(&annotations[CONTEXT].body)
    }

    fn logs(&self) -> String {
        self.build.jobs().iter().map(Job::plain).collect()
    }

    fn drv(&self, attribute: &str) -> String {
        self.store.instantiate(
            self.store.work().join("default.nix").to_str().unwrap(),
            attribute,
        )
    }

    /// The log that Nix has of a build.
    fn build_log(&self, drv: &str) -> Vec<u8> {
        let mut command = self.store.program("nix-store").command();
        let output = command.args(["--read-log", drv]).output().unwrap();
        assert!(output.status.success());
        output.stdout
    }

    fn marks(&self) -> usize {
        let keys = self.build.meta_data();
        keys.keys()
            .filter(|key| key.starts_with("eval-once:failed:"))
            .count()
    }
}

/// What a reader sees of HTML whose characters are written as their numbers.
fn shown(html: &str) -> String {
    let mut parts = html.split("&#");
    let mut shown = parts.next().unwrap().to_owned();
    for part in parts {
        let (number, rest) = part.split_once(';').unwrap();
        shown.push(char::from_u32(number.parse().unwrap()).unwrap());
        shown.push_str(rest);
    }
    shown
}

/// Our warnings in a job's log.
fn warnings(job: &Job) -> Vec<String> {
    let log = job.plain();
    let lines = log
        .lines()
        .filter(|line| line.contains("eval-once: warning:"));
    lines.map(str::to_owned).collect()
}

#[test]
fn a_step_that_succeeded_saves_its_report_and_no_more() {
    let Some(scene) = scene(&[attr("good")]) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Passed, "{}", scene.logs());
    let report = scene.report("good");
    assert_eq!(report["target"], "good");
    assert_eq!(report["way"], "evaluated");
    assert_eq!(report["exit"], 0);
    assert_eq!(report["job"], scene.build.job("good").id);
    assert!(scene.build.annotations().is_empty());
    assert!(scene.build.artifacts().is_empty());
    assert_eq!(scene.build.meta_data().len(), 1);
    assert!(warnings(&scene.build.job("good")).is_empty());
}

#[test]
fn a_failed_step_is_annotated_with_its_root_cause_whose_log_is_an_artifact_byte_for_byte() {
    let Some(scene) = scene(&[attr("dependent")]) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Failed, "{}", scene.logs());
    let job = scene.build.job("dependent");
    assert_eq!(job.exit_status, Some(100), "{}", job.plain());
    assert!(warnings(&job).is_empty(), "{}", job.plain());
    let broken = scene.drv("broken");
    let report = scene.report("dependent");
    assert_eq!(
        (&report["class"], &report["exit"]),
        (&json!("build"), &json!(100))
    );
    assert_eq!(report["drv"], broken.as_str());

    let hash = broken.rsplit('/').next().unwrap();
    let name = format!("eval-once-log/broken-{}.log", &hash[..8]);
    assert_eq!(
        scene.build.artifacts(),
        BTreeMap::from([(name.clone(), scene.build_log(&broken))])
    );
    let text = scene.annotation();
    for part in [
        "<details open><summary><b><code>dependent</code>: <code>broken</code> failed</b></summary>",
        "The build failed; retrying only helps if the build is flaky.",
        "Class <code>build</code>, exit status 100, job ",
        &format!("<a href=\"#{}\">Build dependent</a>", job.id),
        "line 8\nline 9\nno end of line \u{fffd}</pre>",
        &format!("<a href=\"artifact://{name}\">{name}</a>"),
        &format!("<pre>nix-store --read-log {broken}</pre>"),
        "<pre>nix-build ",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert_eq!(text.matches("<details").count(), 1, "{text}");
}

#[test]
fn the_second_step_with_the_same_root_cause_gets_a_line() {
    let Some(scene) = scene(&[attr("dependent"), attr("other")]) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Failed, "{}", scene.logs());
    let [first, second] = ["dependent", "other"].map(|key| scene.build.job(key));
    let text = scene.annotation();
    assert_eq!(text.matches("<details").count(), 1, "{text}");
    let line = format!(
        "\n\n<code>other</code> failed with the same root cause, <code>broken</code>, as <a href=\"#{}\">Build dependent</a> (job <a href=\"#{}\">Build other</a>)\n\n",
        first.id, second.id
    );
    assert!(text.ends_with(&line), "{text}");
    assert_eq!(scene.build.artifacts().len(), 1);
    assert_eq!(scene.marks(), 2);
    // Each has its own report all the same.
    assert_eq!(
        scene.report("other")["drv"],
        scene.report("dependent")["drv"]
    );
}

#[test]
fn a_retry_that_fails_again_gets_a_line() {
    let mut retried = attr("broken");
    retried["retry"] = json!({ "automatic": [{ "exit_status": 100, "limit": 1 }] });
    let Some(scene) = scene(&[retried]) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Failed, "{}", scene.logs());
    let text = scene.annotation();
    assert_eq!(text.matches("<details").count(), 1, "{text}");
    assert!(
        text.contains("\n\n<code>broken</code> failed again when it was retried (job "),
        "{text}"
    );
    assert_eq!(scene.report("broken")["job"], scene.build.job("broken").id);
}

#[test]
fn a_failed_push_is_annotated_as_such_and_a_retry_only_pushes() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    // A file where the folder is to be.
    std::fs::write(&cache, "").unwrap();
    let url = format!("file://{}", cache.display());
    let pushed = json!({ "attr": "good", "push": url, "out-link": false });
    let mend = json!({ "key": "mend", "command": format!("rm '{}'", cache.display()), "depends_on": "fails", "allow_dependency_failure": true });
    let mut again = step("again", &pushed);
    again["depends_on"] = json!("mend");
    let Some(scene) = scene(&[step("fails", &pushed), mend, again]) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Failed, "{}", scene.logs());
    let text = scene.annotation();
    for part in [
        "<b><code>good</code> was built, and not pushed</b>",
        "the build succeeded, and the push to ",
        "The build itself succeeded, and only the push failed: a retry finds the outputs, and pushes them.",
        "Class <code>surroundings</code>, exit status 75,",
        "<p>Reproduce:</p>\n<pre>nix --extra-experimental-features nix-command copy --to ",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(text.matches("<details").count(), 1, "{text}");
    let report = scene.report("fails");
    assert_eq!((&report["exit"], &report["built"]), (&json!(75), &json!(1)));
    let report = scene.report("again");
    assert_eq!((&report["exit"], &report["built"]), (&json!(0), &json!(0)));
    assert!(cache.join("nix-cache-info").exists());
}

#[test]
fn failures_without_a_root_cause_have_a_section_each() {
    let refused = step("refused", &json!({ "attr": "good", "unknown": 1 }));
    let Some(scene) = scene(&[attr("throws"), refused]) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Failed, "{}", scene.logs());
    let text = scene.annotation();
    for part in [
        "<b><code>throws</code> does not evaluate</b>",
        "Class <code>evaluation</code>, exit status 65,",
        "<b><code>Build refused</code> is refused</b>",
        "Class <code>config</code>, exit status 64,",
        "unknown",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert_eq!(scene.report("refused")["class"], "config");
    assert!(scene.build.artifacts().is_empty());
}

#[test]
fn where_nix_has_no_log_the_annotation_says_so() {
    let Some(scene) = scene(&[attr("broken")]) else {
        return;
    };
    scene.store.configure("keep-build-log = false");
    assert_eq!(scene.build.run(), Outcome::Failed, "{}", scene.logs());
    let text = scene.annotation();
    assert!(text.contains("Nix has no log of it on this host"), "{text}");
}

#[test]
fn a_builder_that_printed_nothing_has_no_artifact() {
    let Some(scene) = scene_of(
        &expression(r#"{ silent = build "silent" "exit 1"; }"#),
        &[attr("silent")],
    ) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Failed, "{}", scene.logs());
    let text = scene.annotation();
    assert!(text.contains("Its builder printed nothing."), "{text}");
    assert!(scene.build.artifacts().is_empty());
}

const HOSTILE: &str = "</pre></details><script>alert(1)</script> ```\n+++ open :boom: **b** [x](javascript:x) \u{1b}]1339;url=x\u{7} \u{202e}gpj \u{1b}[31mred\u{1b}[0m";

#[test]
fn hostile_names_labels_and_logs_are_only_text() {
    let literal = serde_json::to_string(HOSTILE).unwrap();
    let literal = literal
        .replace("\\u001b", "\u{1b}")
        .replace("\\u0007", "\u{7}");
    let targets = expression(&format!(
        r#"{{
          hostile.${{{literal}}} = with' {{ text = {literal}; }} "a.b+c?d=e" ''
            printf '%s\n' "$text"; printf '\n\n# heading\n'; exit 1
          '';
        }}"#
    ));
    let mut hostile = step("hostile", &json!({ "attr": ["hostile", HOSTILE] }));
    hostile["label"] = HOSTILE
        .replace('\n', " ")
        .replace(['\u{1b}', '\u{7}'], "")
        .into();
    let Some(scene) = scene_of(&targets, &[hostile]) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Failed, "{}", scene.logs());
    let job = scene.build.job("hostile");
    assert_eq!(job.exit_status, Some(100), "{}", job.plain());
    assert!(warnings(&job).is_empty(), "{}", job.plain());
    let body = scene.build.annotations()[CONTEXT].body.clone();
    for meaning in [
        "<script",
        "`",
        "**",
        "](",
        ":boom:",
        "+++",
        "# heading",
        "\u{1b}",
        "\u{7}",
        "\u{202e}",
    ] {
        assert!(!body.contains(meaning), "{meaning:?} in {body}");
    }
    assert_eq!(body.matches("</details>").count(), 1, "{body}");
    let inside = body.trim_end();
    assert!(!inside.contains("\n\n"), "the HTML ends early: {body}");
    let text = scene.annotation();
    assert!(text.contains("<script>alert(1)</script>"), "{text}");
    assert!(text.contains(" red\n"), "{text}");
    let names: Vec<_> = scene.build.artifacts().into_keys().collect();
    assert_eq!(names.len(), 1);
    assert!(
        names[0].starts_with("eval-once-log/a.b_c_d_e-"),
        "{names:?}"
    );
}

/// As a real build may fail; the docs show a picture of this page.
#[test]
fn each_derivation_that_fails_has_one_section_on_the_page() {
    let targets = expression(
        r#"let
          zlib = build "zlib-1.3.1" ''
            echo "unpacking source archive zlib-1.3.1.tar.xz"
            echo "patching sources"
            echo "configuring"
            echo "Checking for gcc..."
            echo "Checking for shared library support..."
            printf '\033[1mbuilding\033[0m\n'
            echo "gcc -O3 -fPIC -D_LARGEFILE64_SOURCE=1 -DHAVE_HIDDEN -c -o inflate.o inflate.c"
            printf '\033[01m\033[Kinflate.c:1207:33:\033[m\033[K \033[01;31m\033[Kerror:\033[m\033[K expected ‘;’ before ‘}’ token\n'
            echo " 1207 |     return Z_STREAM_ERROR"
            echo "      |                               ^"
            echo "make: *** [Makefile:178: inflate.o] Error 1"
            exit 2
          '';
        in rec {
          packages.web-frontend = build "web-frontend-2.4.0" "read line < ${zlib}";
          packages.api-server = build "api-server-2.4.0" "read line < ${zlib}";
          packages.docs = throw "docs: the attribute 'mdbook' is gone, use 'mdbook_0_5'";
          checks.login = build "login-test" ''
            echo "test login_with_expired_token ... ok"
            echo "test login_with_wrong_password ... FAILED"
            echo "expected status <401>, got <500>"
            exit 1
          '';
        }"#,
    );
    let named = |key: &str, label: &str, attr: &str| {
        let mut step = step(key, &json!({ "attr": attr }));
        step["label"] = label.into();
        step
    };
    let Some(scene) = scene_of(
        &targets,
        &[
            named("web", "packages.web-frontend", "packages.web-frontend"),
            named("login", "checks.login", "checks.login"),
            named("api", "packages.api-server", "packages.api-server"),
            named("docs", "packages.docs", "packages.docs"),
        ],
    ) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Failed, "{}", scene.logs());
    let text = scene.annotation();
    assert_eq!(text.matches("<details").count(), 3, "{text}");
    assert_eq!(text.matches("<details open").count(), 2, "{text}");
    assert!(
        text.contains("inflate.c:1207:33: error: expected"),
        "{text}"
    );
    assert!(text.contains("expected status <401>, got <500>"), "{text}");
    assert!(text.contains("failed with the same root cause, <code>zlib-1.3.1</code>"));
    assert_eq!(scene.build.artifacts().len(), 2);
}

#[test]
fn a_buildkite_that_does_not_answer_costs_a_few_seconds_and_no_status() {
    for how in [Deaf::Answers(500), Deaf::Hangs, Deaf::Answers(403)] {
        let Some(scene) = scene(&[attr("broken")]) else {
            return;
        };
        scene.build.is_deaf(how);
        let started = Instant::now();
        assert_eq!(scene.build.run(), Outcome::Failed, "{}", scene.logs());
        let job = scene.build.job("broken");
        assert_eq!(job.exit_status, Some(100), "{how:?}: {}", job.plain());
        let warnings = warnings(&job);
        assert_eq!(warnings.len(), 1, "{how:?}: {}", job.plain());
        assert!(
            warnings[0].contains("cannot publish this step's report in full"),
            "{warnings:?}"
        );
        // The upload before it, and the agent's own seconds, are in this.
        let took = started.elapsed();
        assert!(took < Duration::from_secs(25), "{how:?}: {took:?}");
    }
}

#[test]
fn more_than_fifty_failures_are_counted_and_not_listed() {
    let Some(scene) = scene(&[attr("broken"), attr("throws")]) else {
        return;
    };
    for number in 0..50 {
        let key = format!("eval-once:failed:{number:032}:step-{number}:job-{number}");
        scene.build.set_meta_data(&key, "job-0 a label");
    }
    assert_eq!(scene.build.run(), Outcome::Failed, "{}", scene.logs());
    let text = scene.annotation();
    assert!(
        text.starts_with(
            "**More than 50 failures: from here on they are counted, and not listed.**"
        ),
        "{text}"
    );
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    assert!(scene.build.artifacts().is_empty());
    assert_eq!(scene.marks(), 52);
    assert_eq!(scene.report("throws")["class"], "evaluation");
}

#[test]
fn a_step_that_is_cancelled_saves_its_report_and_publishes_nothing_else() {
    let Some(scene) = scene(&[attr("slow")]) else {
        return;
    };
    let begun = scene.store.root().join("begun");
    let script = format!("echo > {}; while :; do :; done", begun.display());
    scene
        .store
        .targets(&format!("{{ slow = build \"slow\" \"{script}\"; }}"));
    thread::scope(|scope| {
        scope.spawn(|| {
            let job = scene.build.until_job_is("slow", JobState::Running);
            until("the builder has begun", || begun.exists());
            scene.build.cancel(&job);
        });
        assert_eq!(scene.build.run(), Outcome::Failed);
    });
    let keys: Vec<String> = scene.build.meta_data().into_keys().collect();
    assert_eq!(keys, ["eval-once:report:slow"], "{}", scene.logs());
    let report = scene.report("slow");
    assert_eq!(
        (&report["exit"], &report["class"], &report["stopped"]),
        (&json!(143), &json!("signal"), &json!("cancel"))
    );
    assert!(scene.build.annotations().is_empty());
    assert!(warnings(&scene.build.job("slow")).is_empty());
}

#[test]
fn a_step_that_is_cancelled_waits_three_seconds_at_most_for_a_buildkite_that_does_not_answer() {
    let Some(scene) = scene(&[attr("slow")]) else {
        return;
    };
    let begun = scene.store.root().join("begun");
    let script = format!("echo > {}; while :; do :; done", begun.display());
    scene
        .store
        .targets(&format!("{{ slow = build \"slow\" \"{script}\"; }}"));
    thread::scope(|scope| {
        scope.spawn(|| {
            let job = scene.build.until_job_is("slow", JobState::Running);
            until("the builder has begun", || begun.exists());
            scene.build.is_deaf(Deaf::Hangs);
            scene.build.cancel(&job);
        });
        assert_eq!(scene.build.run(), Outcome::Failed);
    });
    // Had the agent killed it, after nine seconds, it could not have said so.
    let log = scene.build.job("slow").plain();
    assert!(log.contains("error: stopped by SIGTERM"), "{log}");
    assert!(scene.build.meta_data().is_empty(), "{log}");
}

#[test]
fn a_command_that_is_a_step_publishes_as_a_hook_does() {
    let by_command = json!({
        "key": "by-command",
        "label": "By command",
        "command": format!("{EVAL_ONCE} step --attr broken"),
    });
    let Some(scene) = scene(&[by_command]) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Failed, "{}", scene.logs());
    assert_eq!(scene.report("by-command")["class"], "build");
    assert!(scene.annotation().contains("<code>broken</code>"));
}

#[test]
fn a_command_that_is_a_step_with_a_wrong_flag_publishes_its_refusal() {
    let by_command = json!({
        "key": "by-command",
        "label": "By command",
        "command": format!("{EVAL_ONCE} step --attr good --log quiet"),
    });
    let Some(scene) = scene(&[by_command]) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Failed, "{}", scene.logs());
    assert_eq!(scene.report("by-command")["class"], "config");
    assert!(scene.annotation().contains("'quiet'"));
}

/// A step of a store, and no job.
fn by_hand(store: &Store) -> Program {
    store.write("default.nix", &expression(TARGETS));
    store.step(["--attr", "broken"])
}

#[test]
fn without_a_job_nothing_is_published_and_nothing_printed() {
    let Some(store) = Store::new() else { return };
    let called = store.root().join("called");
    let stand_ins = StandIns::new(store.bin()).instead(
        "buildkite-agent",
        &format!("#!/bin/sh\n: > '{}'\n", called.display()),
    );
    let step = by_hand(&store).env("PATH", stand_ins.path(&store));
    // A container that has only some of a job's variables is no job either.
    for step in [step.clone(), step.clone().env("BUILDKITE_JOB_ID", "job")] {
        step.run().fails(100, "build").never_says("warning");
        assert!(!called.exists());
    }
    let in_job = [
        ("BUILDKITE_JOB_ID", "job"),
        ("BUILDKITE_STEP_ID", "step"),
        ("BUILDKITE_AGENT_ACCESS_TOKEN", "token"),
    ];
    step.envs(in_job).run().fails(100, "build");
    assert!(called.exists());
}

#[test]
fn a_job_without_buildkite_agent_says_so_once() {
    let Some(store) = Store::new() else { return };
    let path = store.path();
    let folders =
        std::env::split_paths(&path).filter(|folder| !folder.join("buildkite-agent").exists());
    let ended = by_hand(&store)
        .env("PATH", std::env::join_paths(folders).unwrap())
        .envs([
            ("BUILDKITE_JOB_ID", "job"),
            ("BUILDKITE_STEP_ID", "step"),
            ("BUILDKITE_AGENT_ACCESS_TOKEN", "token"),
        ])
        .run();
    ended.fails(100, "build");
    let warnings: Vec<_> = ended
        .ours()
        .into_iter()
        .filter(|line| line.contains("warning:"))
        .collect();
    assert_eq!(warnings.len(), 1, "{}", ended.stderr);
    assert!(warnings[0].contains("buildkite-agent"), "{warnings:?}");
}
