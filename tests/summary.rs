//! `eval-once summary`: a build at a glance, made by a job of it that asks the played Buildkite through the real agent.

use std::{collections::BTreeMap, fs, path::Path, thread};

use serde_json::{Value, json};
use tempfile::TempDir;
use unix::sys::signal::{Signal, kill};

use crate::support::{
    EVAL_ONCE,
    agent::{plugin_repository, program},
    buildkite::{Annotation, Build, Fault, Job, JobState, Outcome},
    program::Program,
    stand_in::StandIns,
    store::Store,
    target::fifo,
    tool, until,
};

/// The saved report of the step with this key.
fn report(key: &str, more: &Value) -> (String, String) {
    let mut report = json!({
        "version": 1, "target": key, "job": "0190", "way": "realised", "reason": "drv-valid", "exit": 0,
        "class": null, "drv": null, "message": null, "drift": false, "built": 1, "substituted": 0, "after": [],
        "seconds": { "wait": 0.0, "fetch": 0.0, "evaluate": 0.0, "realise": 1.0, "total": 1.0 },
    });
    let more = more.as_object().unwrap().clone();
    report.as_object_mut().unwrap().extend(more);
    (format!("eval-once:report:{key}"), report.to_string())
}

/// A build that is nothing but its summary, with this meta-data.
fn summing_up(meta_data: impl IntoIterator<Item = (String, String)>) -> Option<Build> {
    let step = json!({ "key": "summary", "command": format!("'{EVAL_ONCE}' summary") });
    Some(Build::new(&step)?.with_meta_data(meta_data))
}

/// The summary's annotation.
#[track_caller]
fn annotation(build: &Build) -> Annotation {
    let annotations = build.annotations();
    annotations["eval-once-summary"].clone()
}

/// The JUnit document of a build, which is one by the schema where that can be looked at.
#[track_caller]
fn junit(build: &Build) -> String {
    let artifacts = build.artifacts();
    let document = artifacts["eval-once-junit.xml"].clone();
    if tool("xmllint").is_some() {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("junit.xml");
        fs::write(&file, &document).unwrap();
        let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/junit-10.xsd");
        let path = std::env::var_os("PATH").unwrap();
        Program::new("xmllint")
            .args(["--noout", "--nonet", "--schema"])
            .arg(schema)
            .arg(file)
            .env("PATH", path)
            .run()
            .exits(0);
    }
    String::from_utf8(document).unwrap()
}

/// A row of the table.
struct Row {
    /// The job that it leads to.
    job: Option<String>,
    /// What the target is called.
    target: String,
    rest: String,
}

/// What the table says of each target.
fn rests(body: &str) -> BTreeMap<String, String> {
    let rows = rows(body).into_iter();
    rows.map(|row| (row.target, row.rest)).collect()
}

/// The rows of the table.
fn rows(body: &str) -> Vec<Row> {
    let rows = body.lines().filter_map(|line| {
        let (target, rest) = line.strip_prefix("| ")?.split_once(" | ")?;
        let (job, name) = match target.strip_prefix("<a href=\"#") {
            Some(link) => {
                let (job, name) = link.split_once("\">")?;
                (Some(job.to_owned()), name.strip_suffix("</a>")?)
            }
            None => (None, target),
        };
        let name = name.strip_prefix("<code>")?.strip_suffix("</code>")?;
        Some(Row {
            job,
            target: name.to_owned(),
            rest: rest.to_owned(),
        })
    });
    rows.collect()
}

/// A build in which everything happens that can: it records these targets, with a summary.
const EVERYTHING: &str = r#"let zlib = build "zlib-1.3.1" "echo no; exit 1"; in rec {
  app = build "app" "read x < ${zlib}; echo $x > $out";
  good = file "good";
  bad = build "bad" "echo no; exit 1";
  behind = build "behind" "read x < ${bad}; echo $x > $out";
  further = build "further" "read x < ${behind}; echo $x > $out";
  lost = file "lost";
  unwell = file "unwell";
  there = file "there";
  checked = file "checked" // { meta.buildkite.command = "$EVAL_ONCE_OUT/bin/check"; };
  broken = throw "it needs Python 2";
}"#;

/// The build of [`EVERYTHING`], which has run; with what it has run in.
fn everything() -> Option<(Build, Store)> {
    tool("git")?;
    program()?;
    let store = Store::new()?;
    store.targets(EVERYTHING);
    let lost = store.instantiate("default.nix", "lost");
    store.build(&store.instantiate("default.nix", "there"));
    let repositories = TempDir::new().unwrap();
    let plugin = plugin_repository(repositories.path());
    let keys = json!({ "summary": true, "chunk": 2, "share": false });
    let plugins = json!([{ plugin: { "pipeline": keys } }]);
    let step = json!({ "key": "record", "label": "Record", "plugins": plugins });
    let hash = |drv: &str| drv.rsplit('/').next().unwrap()[..32].to_owned();
    let unwell = hash(&store.instantiate("default.nix", "unwell"));
    let hook = format!(
        "[ \"$BUILDKITE_STEP_KEY\" != drv-{unwell} ] || exit 1\n[ \"$BUILDKITE_STEP_KEY\" != drv-{} ] || {{ rm -r \"$EVAL_ONCE_STATE_DIR/pins\"; env -u NIX_REMOTE nix-store --delete --ignore-liveness $(nix-store -q --referrers {lost}) {lost}; }}\n",
        hash(&lost)
    );
    let build = Build::new(&step)?
        .checkout(store.work())
        .envs(store.env())
        .envs([("EVAL_ONCE_BIN", EVAL_ONCE)])
        .shell_hook("pre-command", &hook)
        .agents(1);
    assert_eq!(build.run(), Outcome::Failed, "something in it is red");
    Some((build, store))
}

#[test]
fn a_recording_adds_a_last_step_that_sums_up_the_build_however_it_ended() {
    let Some((build, _store)) = everything() else {
        return;
    };
    let jobs = build.jobs();
    let last = jobs.last().unwrap();
    let log = last.plain();
    assert_eq!(last.label.as_deref(), Some(":bar_chart: eval-once summary"));
    assert_eq!(last.state, JobState::Passed, "{log}");
    assert_eq!(build.finished().last(), last.key.as_ref());
    // All others' keys, in the last upload.
    let uploads = build.uploads();
    let steps = uploads.last().unwrap()["steps"].as_array().unwrap();
    let step = steps.last().unwrap();
    assert_eq!(step["key"].as_str(), last.key.as_deref());
    let waits = step["depends_on"].as_array().unwrap();
    assert_eq!(waits.len(), 9, "{step}");
    assert!(
        waits.iter().all(|wait| wait["allow_failure"] == true),
        "{step}"
    );

    // A group of its own, before anything that the summary says.
    let ours = log.split_once("--- :nix: summary\n").unwrap().1;
    assert!(ours.starts_with("eval-once: "), "{log}");

    let counts = "sums up 10 attributes: 9 targets (4 failed, 2 not run, 2 built, 1 skipped), 1 evaluation error";
    assert!(log.contains(&format!("eval-once: {counts}")), "{log}");
    let Annotation { body, style } = annotation(&build);
    assert_eq!(style, "error");
    assert!(
        body.starts_with(&format!("**eval-once** {counts}.\n")),
        "{body}"
    );
    let rows = rows(&body);
    let names: Vec<&str> = rows.iter().map(|row| row.target.as_str()).collect();
    assert_eq!(names[3..5], ["unwell", "broken"]);
    assert_eq!(names[9], "there");
    let rows: BTreeMap<String, Row> = rows
        .into_iter()
        .map(|row| (row.target.clone(), row))
        .collect();
    for (target, row) in [
        (
            "app",
            "**failed** (build): <code>zlib&#45;1&#46;3&#46;1</code> | tried realised",
        ),
        ("good", "built | realised (drv&#45;valid) | "),
        (
            "bad",
            "**failed** (build) | tried realised (drv&#45;valid) | ",
        ),
        (
            "checked",
            "**failed** (command), after the build | realised (drv&#45;valid) | ",
        ),
        ("lost", "built | evaluated (drv&#45;missing) | "),
        ("broken", "**evaluation error**: it needs Python 2 | "),
        ("behind", "not run: <code>bad</code> failed |  |  |"),
        ("further", "not run: <code>bad</code> failed |  |  |"),
        ("unwell", "**failed**, without a report |  |  |"),
        ("there", "skipped: already built here |  |  |"),
    ] {
        assert!(rows[target].rest.starts_with(row), "{target}: {body}");
        let label = format!(" {target}");
        let ran = jobs.iter().find(|job| {
            let is_it = job.label.as_deref().is_some_and(|it| it.ends_with(&label));
            is_it && job.exit_status.is_some() && target != "unwell"
        });
        assert_eq!(
            rows[target].job.as_ref(),
            ran.map(|job| &job.id),
            "{target}: {body}"
        );
    }
    let again = "**Evaluated again:** 1 step.\n\n- 1 × `drv-missing`: ";
    assert!(body.contains(again), "{body}");
    // What was saved depends on how busy this machine is: but it was measured, and the figures are shown.
    let saved = body.split("**Evaluation saved:** ").nth(1).unwrap();
    assert!(saved.contains("4 steps used their records"), "{body}");

    let junit = junit(&build);
    for part in [
        "<testsuite name=\"default.nix\" tests=\"10\" failures=\"4\" errors=\"1\" skipped=\"3\"",
        "<testcase name=\"good\" classname=\"default.nix\"",
        "<failure type=\"build\" message=\"",
        "<error type=\"evaluation\" message=\"",
        "<failure type=\"no-report\" message=\"",
        "<failure type=\"command\" message=\"the step&apos;s command failed after the build\"/>",
        "<skipped message=\"already built here\"/>",
        "<skipped message=\"not run: bad failed\"/>",
    ] {
        assert!(junit.contains(part), "{part}: {junit}");
    }
    leaves_outcomes(&build);
}

/// The outcomes of that build, for programs.
#[track_caller]
fn leaves_outcomes(build: &Build) {
    let outcomes: Value =
        serde_json::from_slice(&build.artifacts()["eval-once-outcomes.json"]).unwrap();
    assert_eq!(outcomes["build"], 1);
    assert_eq!(
        outcomes["counts"],
        json!({
            "passed": 2, "skipped": 1, "failed": 4, "evaluation-error": 1, "not-run": 2
        })
    );
    let targets = outcomes["targets"].as_array().unwrap();
    let good = targets.iter().find(|it| it["attr"] == json!(["good"]));
    let good = good.unwrap();
    assert_eq!(good["outcome"], "passed");
    assert!(good["seconds"].as_f64() > Some(0.0), "{good}");
    assert!(
        good["drv"].as_str().unwrap().ends_with("-good.drv"),
        "{good}"
    );
}

/// A build with a target for each outcome that a step can have. `{begun}` is a folder in which those say that they run that do not
/// end by themselves, and `{never}` a pipe without a writer.
const OUTCOMES: &str = r#"let
  own = buildkite: drv: drv // { meta = { inherit buildkite; }; };
  waits = name: build name ": > {begun}/${name}; read x < {never}";
  waiting = name: ": > {begun}/${name}; read x < {never}";
in rec {
  good = file "good";
  command = own { command = "exit 7"; } (file "command");
  behind-command = build "behind-command" "read x < ${command}; echo $x > $out";
  soft-command = own { command = "exit 7"; soft_fail = true; } (file "soft-command");
  bad = build "bad" "echo no; exit 1";
  behind = build "behind" "read x < ${bad}; echo $x > $out";
  soft = own { soft_fail = true; } (build "soft" "echo no; exit 1");
  again = own {
    command = ''[ "$BUILDKITE_RETRY_COUNT" = 1 ]'';
    retry.automatic = [ { exit_status = 1; limit = 1; } ];
  } (file "again");
  cancelled = waits "cancelled";
  late = own { timeout_in_minutes = 1; } (waits "late");
  command-cancelled = own { command = waiting "command-cancelled"; timeout_in_minutes = 60; } (file "command-cancelled");
  command-stopped = own { command = waiting "command-stopped"; } (file "command-stopped");
  not-today = own { skip = "not today"; } (file "not-today");
  unwell = file "unwell";
  broken = throw "it needs Python 2";
  refused = own { colour = "red"; } (file "refused");
}"#;

/// The build of [`OUTCOMES`], which has run.
fn with_every_outcome() -> Option<Build> {
    tool("git")?;
    program()?;
    let store = Store::new()?;
    let folder = TempDir::new().unwrap();
    let (begun, never) = (folder.path().join("begun"), folder.path().join("never"));
    fs::create_dir(&begun).unwrap();
    fifo(&never);
    let expression = OUTCOMES
        .replace("{begun}", begun.to_str().unwrap())
        .replace("{never}", never.to_str().unwrap());
    store.targets(&expression);
    let key = |name: &str| {
        let drv = store.instantiate("default.nix", name);
        format!("drv-{}", &drv.rsplit('/').next().unwrap()[..32])
    };
    let repositories = TempDir::new().unwrap();
    let plugin = plugin_repository(repositories.path());
    let plugins = json!([{ plugin: { "pipeline": { "summary": true } } }]);
    let step = json!({ "key": "record", "label": "Record", "plugins": plugins });
    // The job of `late` is two minutes old: the agent has made its file of variables when it began.
    let hook = format!(
        "case $BUILDKITE_STEP_KEY in {}) exit 1;; {}) touch -d '2 minutes ago' \"$BUILDKITE_ENV_FILE\";; esac\n",
        key("unwell"),
        key("late")
    );
    let build = Build::new(&step)?
        .checkout(store.work())
        .envs(store.env())
        .envs([("EVAL_ONCE_BIN", EVAL_ONCE)])
        .shell_hook("pre-command", &hook);
    let stopped = ["cancelled", "late", "command-cancelled", "command-stopped"];
    thread::scope(|scope| {
        for name in stopped {
            let (build, key, begun) = (&build, key(name), begun.join(name));
            scope.spawn(move || {
                let job = build.until_job_is(&key, JobState::Running);
                until(&format!("{name} has begun"), || begun.exists());
                match name {
                    "late" => build.time_out(&job),
                    _ => build.cancel(&job),
                }
            });
        }
        assert_eq!(build.run(), Outcome::Failed, "something in it is red");
    });
    Some(build)
}

#[test]
fn every_outcome_of_a_step_is_a_row_as_buildkite_knows_it() {
    let Some(build) = with_every_outcome() else {
        return;
    };

    let body = annotation(&build).body;
    let rows: BTreeMap<String, String> = rows(&body)
        .into_iter()
        .map(|row| (row.target.replace("&#45;", "-"), row.rest))
        .collect();
    let expected = [
        (
            "again",
            "already there, passed on try 2 | realised (drv&#45;valid) | ",
        ),
        (
            "bad",
            "**failed** (build) | tried realised (drv&#45;valid) | ",
        ),
        ("behind", "not run: <code>bad</code> failed |  |  |"),
        (
            "behind-command",
            "not run: <code>command</code> failed |  |  |",
        ),
        ("broken", "**evaluation error**: it needs Python 2 | "),
        ("cancelled", "**cancelled** | tried realised | "),
        (
            "command",
            "**failed** (command), after the build | realised (drv&#45;valid) | ",
        ),
        (
            "command-cancelled",
            "**cancelled** | realised (drv&#45;valid) | ",
        ),
        (
            "command-stopped",
            "**cancelled or timed out** | realised (drv&#45;valid) | ",
        ),
        ("good", "built | realised (drv&#45;valid) | "),
        ("late", "**timed out** | tried realised | "),
        ("not-today", "not run |  |  |"),
        (
            "refused",
            "**refused**: in its &#96;meta&#46;buildkite&#96;, ",
        ),
        (
            "soft",
            "soft failed (build) | tried realised (drv&#45;valid) | ",
        ),
        (
            "soft-command",
            "soft failed (command), after the build | realised (drv&#45;valid) | ",
        ),
        ("unwell", "**failed**, without a report |  |  |"),
    ];
    assert_eq!(
        rows.keys().collect::<Vec<_>>(),
        expected.map(|it| it.0),
        "{body}"
    );
    for (name, row) in expected {
        assert!(rows[name].starts_with(row), "{name}: {body}");
    }
    let counts = "**eval-once** sums up 16 attributes: 14 targets (3 failed, 1 timed out, 2 cancelled, 1 cancelled or timed out, 2 soft failed, 3 not run, 1 built, 1 already there), 1 evaluation error, 1 refused.\n";
    assert!(body.starts_with(counts), "{body}");
    // It is not asked for what has nothing behind its build, nor for what waits for one that failed.
    // Of the nine that have ended, and have not passed, the outcome is asked for once more.
    assert_eq!((build.exports("outcome"), build.exports("state")), (20, 10));

    let junit = junit(&build);
    let case = |name: &str| {
        let start = junit.find(&format!("<testcase name=\"{name}\"")).unwrap();
        let case = &junit[start..];
        let line = case.lines().nth(1).unwrap().trim();
        line.split(" message=").next().unwrap().to_owned()
    };
    for (name, element) in [
        ("bad", "<failure type=\"build\""),
        ("behind", "<skipped"),
        ("behind-command", "<skipped"),
        ("broken", "<error type=\"evaluation\""),
        ("cancelled", "<error type=\"cancelled\""),
        ("command", "<failure type=\"command\""),
        ("command-cancelled", "<error type=\"cancelled\""),
        ("command-stopped", "<error type=\"stopped\""),
        ("late", "<error type=\"timed-out\""),
        ("not-today", "<skipped"),
        ("refused", "<error type=\"config\""),
        ("soft", "<failure type=\"build\""),
        ("soft-command", "<failure type=\"command\""),
        ("unwell", "<failure type=\"no-report\""),
    ] {
        assert_eq!(case(name), element, "{junit}");
    }
    let counts = "tests=\"16\" failures=\"5\" errors=\"6\" skipped=\"3\"";
    assert!(junit.contains(counts), "{junit}");
}

#[test]
fn a_hook_that_fails_the_job_after_its_build_is_named() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\"; b = file \"b\"; }");
    let drv = store.instantiate("default.nix", "a");
    let key = format!("drv-{}", &drv.rsplit('/').next().unwrap()[..32]);
    let command = format!("'{EVAL_ONCE}' pipeline --summary");
    let Some(build) = Build::new(&json!({ "key": "record", "command": command })) else {
        return;
    };
    let mut path = std::ffi::OsString::from(Path::new(EVAL_ONCE).parent().unwrap());
    path.push(":");
    path.push(store.path());
    let build = build
        .checkout(store.work())
        .envs(store.env())
        .envs([("PATH", path)])
        .shell_hook(
            "pre-exit",
            &format!("[ \"$BUILDKITE_STEP_KEY\" != {key} ] || exit 1"),
        );
    assert_eq!(build.run(), Outcome::Failed);
    let Annotation { body, style } = annotation(&build);
    assert_eq!(style, "error", "{body}");
    let rows = rows(&body);
    let found: Vec<(&str, &str)> = rows
        .iter()
        .map(|row| (row.target.as_str(), row.rest.split(" | ").next().unwrap()))
        .collect();
    let expected = [("a", "**failed** (hook), after the build"), ("b", "built")];
    assert_eq!(found, expected, "{body}");
    assert!(junit(&build).contains(
        "<failure type=\"after-build\" message=\"the step failed after the build (hook)\"/>"
    ));
}

#[test]
fn a_step_that_waits_or_does_not_exist_is_shown_as_it_stands() {
    let later =
        json!({ "steps": [{ "key": "later", "command": "true", "depends_on": "summary" }] });
    let upload = format!("printf '%s' '{later}' | buildkite-agent pipeline upload");
    let command = format!("{upload} && '{EVAL_ONCE}' summary");
    let Some(build) = Build::new(&json!({ "key": "summary", "command": command })) else {
        return;
    };
    let after = json!({ "after": ["command"] });
    let build = build.with_meta_data([report("later", &after), report("missing", &after)]);
    assert_eq!(build.run(), Outcome::Passed);
    let Annotation { body, style } = annotation(&build);
    assert_eq!(style, "warning");
    let rows = rows(&body);
    let found: Vec<(&str, &str)> = rows
        .iter()
        .map(|row| (row.target.as_str(), row.rest.split(" | ").next().unwrap()))
        .collect();
    let expected = [
        ("later", "not finished: waiting for dependencies"),
        ("missing", "built"),
    ];
    assert_eq!(found, expected, "{body}");
    let junit = junit(&build);
    assert!(
        junit.contains("<skipped message=\"not finished: waiting for dependencies\"/>"),
        "{junit}"
    );
}

#[test]
fn a_step_that_was_never_uploaded_is_shown_as_missing() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\"; b = file \"b\"; }");
    let command = format!("'{EVAL_ONCE}' pipeline --chunk 1; '{EVAL_ONCE}' summary");
    let Some(build) = Build::new(&json!({ "key": "record", "command": ["set +e", command] }))
    else {
        return;
    };
    let mut path = std::ffi::OsString::from(Path::new(EVAL_ONCE).parent().unwrap());
    path.push(":");
    path.push(store.path());
    let build = build
        .checkout(store.work())
        .envs(store.env())
        .envs([("PATH", path)]);
    build.on_upload(2, Fault::Reject("Not today".into()));
    build.run();
    let Annotation { body, style } = annotation(&build);
    assert_eq!(style, "warning", "{body}");
    let rows = rows(&body);
    let missing = rows.iter().find(|row| row.target == "b").unwrap();
    assert_eq!(
        missing.rest, "not run: the build has no such step |  |  |",
        "{body}"
    );
    assert!(junit(&build).contains("<error type=\"no-step\""));
}

#[test]
fn a_buildkite_that_does_not_say_how_steps_ended_costs_ten_seconds_and_no_failure() {
    let after = json!({ "after": ["command"] });
    let reports = (0..20).map(|i| report(&format!("step-{i}"), &after));
    let Some(build) = summing_up(reports) else {
        return;
    };
    build.answers_no_exports();
    assert_eq!(build.run(), Outcome::Passed);
    // The first eight are enough. One that ends before the others makes room for another question, which is not waited for.
    let asked = build.exports("outcome");
    assert!((8..16).contains(&asked), "{asked}");
    let log = build.job("summary").plain();
    assert!(
        log.contains("warning: Buildkite does not say how 20 steps ended"),
        "{log}"
    );
    let Annotation { body, style } = annotation(&build);
    assert_eq!(style, "warning");
    let counts = "sums up 20 attributes: 20 targets (20 without an outcome).";
    assert!(body.contains(counts), "{body}");
    assert!(
        body.contains("| built; outcome of its job unknown |"),
        "{body}"
    );
    assert!(junit(&build).contains("<error type=\"no-outcome\""));
}

#[test]
fn steps_that_are_commands_have_a_summary_that_is_one_and_it_holds_nothing_back() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\"; }");
    let command = format!("'{EVAL_ONCE}' pipeline --summary");
    let Some(build) = Build::new(&json!({ "key": "record", "command": command })) else {
        return;
    };
    let mut path = std::ffi::OsString::from(Path::new(EVAL_ONCE).parent().unwrap());
    path.push(":");
    path.push(store.path());
    let build = build
        .checkout(store.work())
        .envs(store.env())
        .envs([("PATH", path)]);
    assert_eq!(build.run(), Outcome::Passed);
    let uploads = build.uploads();
    let steps = uploads[0]["steps"].as_array().unwrap();
    assert_eq!(steps[1]["command"], "eval-once summary");
    let Annotation { body, style } = annotation(&build);
    assert_eq!(style, "success", "{body}");
    assert!(
        body.contains("sums up 1 attribute: 1 target (1 built)."),
        "{body}"
    );
    assert!(
        body.contains("**Evaluation saved:** not measured."),
        "{body}"
    );
    junit(&build);
}

#[test]
fn a_build_without_a_recording_is_summed_up_from_its_reports() {
    let old = report("old", &json!({ "version": 9 }));
    let Some(build) = summing_up([
        report("hello", &json!({ "target": "pkgs.hello" })),
        report(
            "plan",
            &json!({ "way": "evaluated", "reason": "not-recorded", "seconds": { "evaluate": 3.0, "total": 4.0 } }),
        ),
        ("eval-once:report:odd".into(), "no JSON".into()),
        old,
        ("release".into(), "1.0".into()),
    ]) else {
        return;
    };
    assert_eq!(build.run(), Outcome::Passed);
    let Annotation { body, style } = annotation(&build);
    assert_eq!(style, "warning");
    let rows = rows(&body);
    let expected = [
        ("odd", "unreadable report |  |  |"),
        (
            "old",
            "report of version 9, unknown to this eval-once |  |  |",
        ),
        ("plan", "built | evaluated (not&#45;recorded) | 4.0 s |"),
        (
            "pkgs&#46;hello",
            "built | realised (drv&#45;valid) | 1.0 s |",
        ),
    ]
    .map(|(name, rest)| (name.to_owned(), rest.to_owned()));
    let rows: Vec<(String, String)> = rows.into_iter().map(|it| (it.target, it.rest)).collect();
    assert_eq!(
        rows.iter()
            .map(|it| &it.0)
            .collect::<std::collections::BTreeSet<_>>(),
        expected.iter().map(|it| &it.0).collect()
    );
    for row in &expected {
        assert!(rows.contains(row), "{row:?}: {body}");
    }
    assert!(!body.contains("saved"), "{body}");
    assert!(junit(&build).contains("<testsuite name=\"steps without a recording\" tests=\"4\""));
}

#[test]
fn a_later_summary_takes_the_place_of_an_earlier_one() {
    let Some(build) = summing_up([report("a", &json!({}))]) else {
        return;
    };
    build.run();
    let first = annotation(&build);
    let job = build.job("summary").id;
    build.retry(&job);
    assert_eq!(build.run(), Outcome::Passed);
    assert_eq!(annotation(&build), first);
    assert_eq!(build.annotations().len(), 1);
}

#[test]
fn reports_are_fetched_eight_at_once_and_shown_in_a_hundred_rows() {
    let reports = (0..104).map(|i| {
        let seconds = json!({ "total": f64::from(i) });
        report(&format!("step-{i}"), &json!({ "seconds": seconds }))
    });
    let Some(build) = summing_up(reports) else {
        return;
    };
    let build = build.answering_meta_data_at_once(8);
    assert_eq!(build.run(), Outcome::Passed);
    assert_eq!(build.most_asked_at_once(), 8);
    // They are green, and had nothing behind their builds.
    assert_eq!(build.exports("outcome"), 0);
    let body = annotation(&build).body;
    let rows = rows(&body);
    assert_eq!(rows.len(), 100);
    assert_eq!(rows[0].target, "step&#45;103", "the slowest comes first");
    assert!(body.contains("And 4 more."), "{body}");
    assert_eq!(junit(&build).matches("<testcase ").count(), 104);
}

#[test]
fn whatever_names_hold_the_table_and_the_document_are_whole() {
    let hostile = "|`<b>\n\n# h &amp; \" ]]>\u{1b}[31m\u{0}\u{fffe} :boom: +++ [x](javascript:y)";
    let Some(build) = summing_up((0..3).map(|i| {
        report(
            &format!("k{i}"),
            &json!({
                "target": format!("{i}{hostile}"), "exit": 100, "class": hostile, "way": hostile, "reason": hostile,
                "message": hostile, "drv": hostile, "drift": true, "job": hostile,
            }),
        )
    })) else {
        return;
    };
    assert_eq!(build.run(), Outcome::Passed);
    let body = annotation(&build).body;
    let rows = rows(&body);
    assert_eq!(rows.len(), 3, "{body}");
    for Row { target, rest, job } in rows {
        assert_eq!(job, None, "{body}");
        assert_eq!(rest.matches('|').count(), 3, "{body}");
        for meaning in ["<", "`", "|", ":", "[", "\u{1b}", "\u{0}"] {
            assert!(!target.contains(meaning), "{meaning:?}: {target}");
        }
    }
    let junit = junit(&build);
    assert!(
        junit.contains("]]&gt;\u{fffd}[31m\u{fffd}\u{fffd}"),
        "{junit}"
    );
}

#[test]
fn a_build_in_which_nothing_of_ours_ran_has_no_summary() {
    let Some(build) = summing_up([("release".into(), "1.0".into())]) else {
        return;
    };
    assert_eq!(build.run(), Outcome::Passed);
    let log = build.job("summary").plain();
    assert!(
        log.contains("--- :nix: summary\neval-once: nothing to sum up: "),
        "{log}"
    );
    assert!(build.annotations().is_empty() && build.artifacts().is_empty());
}

#[test]
fn a_plan_that_is_lost_or_cannot_be_read_is_named_and_no_failure() {
    let step = "0190c1a2-0000-7000-8000-00000000000";
    let Some(build) = summing_up([
        (format!("eval-once:{step}0:plan"), "--help nothing".into()),
        (format!("eval-once:{step}1:plan"), format!("{step}2 abc")),
        report("a", &json!({})),
    ]) else {
        return;
    };
    assert_eq!(build.run(), Outcome::Passed);
    let Annotation { body, style } = annotation(&build);
    assert_eq!(style, "warning");
    assert!(body.contains("**Omitted:** 2 recordings"), "{body}");
}

#[test]
fn a_plan_that_any_job_has_left_is_named_and_takes_no_summary_away() {
    let plan = |document: &Value| {
        let plan = json!({
            "version": 1, "step": "s", "chunks": [], "document": document.to_string(), "annotation": ["", "info"],
        });
        plan.to_string()
    };
    let with_key = |key: &str| {
        let target = json!({ "attr": ["a"], "key": key });
        plan(&json!({ "version": 1, "targets": [target] }))
    };
    for (content, says) in [
        (b"\xff\xfe".to_vec(), "valid UTF-8"),
        (with_key("a\0b").into_bytes(), "a key that no step can have"),
        (
            with_key(&"k".repeat(200_000)).into_bytes(),
            "a key that no step can have",
        ),
    ] {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("eval-once-plan.json"), content).unwrap();
        let script = format!(
            "cd '{}' && buildkite-agent artifact upload eval-once-plan.json && buildkite-agent meta-data set \"eval-once:x:plan\" \"$BUILDKITE_JOB_ID\" && '{EVAL_ONCE}' summary --fail",
            folder.path().display()
        );
        let Some(build) = Build::new(&json!({ "key": "summary", "command": script })) else {
            return;
        };
        let build = build.with_meta_data([report("a", &json!({}))]);
        build.run();
        let job = build.job("summary");
        let log = job.plain();
        assert_eq!(job.exit_status, Some(1), "{log}");
        assert!(log.contains(says), "{says}: {log}");
        assert!(
            log.contains("error: 1 recording without a readable plan"),
            "{log}"
        );
        let body = annotation(&build).body;
        assert!(body.contains("**Omitted:** 1 recording"), "{body}");
        assert_eq!(build.meta_data()["eval-once:failed"], "1");
    }
}

#[test]
fn a_report_that_another_try_saves_while_a_summary_reads_counts() {
    let folder = TempDir::new().unwrap();
    let (bin, saved) = (folder.path().join("bin"), folder.path().join("saved"));
    fs::create_dir(&saved).unwrap();
    let mut path = std::ffi::OsString::from(&bin);
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap());
    let (key, failed) = report("a", &json!({ "exit": 75, "class": "surroundings" }));
    let (_, passed) = report("a", &json!({ "after": ["command"] }));
    // The next try saves its report and passes before its outcome is asked for.
    fs::write(saved.join(&key), failed).unwrap();
    fs::write(saved.join("next"), passed).unwrap();
    let agent = format!(
        "#!/bin/sh\ncd '{}'\ncase \"$1 $2\" in\n'meta-data keys') echo '{key}';;\n'meta-data get') cat \"$3\";;\n\
         'step get') [ ! -e next ] || mv next '{key}'; echo passed;;\n'artifact upload') cp \"$OLDPWD/$3\" .;;\nesac\n",
        saved.display()
    );
    let _stand_ins = StandIns::new(&bin).instead("buildkite-agent", &agent);
    let ended = Program::new(EVAL_ONCE)
        .args(["summary", "--fail"])
        .env("PATH", &path)
        .env("BUILDKITE_JOB_ID", "job")
        .env("BUILDKITE_AGENT_ACCESS_TOKEN", "token")
        .run();
    ended.exits(0).never_says("without a report");
    assert!(!saved.join("next").exists());
    let document = fs::read_to_string(saved.join("eval-once-junit.xml")).unwrap();
    assert!(!document.contains("<error"), "{document}");
}

#[test]
fn plans_that_would_fill_the_disk_or_have_no_end_are_named() {
    let folder = TempDir::new().unwrap();
    let (bin, calls) = (folder.path().join("bin"), folder.path().join("calls"));
    let mut path = std::ffi::OsString::from(&bin);
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap());
    let summary = |marks: &str, size: &str| {
        let agent = format!(
            "#!/bin/sh\necho \"$1 $2 $3\" >> '{calls}'\ncase \"$1 $2\" in\n'meta-data keys') {marks};;\n'meta-data get') key=${{3%:plan}}; echo 0190-${{key##*:}};;\n'artifact search') for job; do :; done; echo \"$job {size} ab;\";;\n'artifact download') truncate -s 600000000 \"$4/part\"; exec sleep 300;;\nesac\n",
            calls = calls.display()
        );
        let _stand_ins = StandIns::new(&bin).instead("buildkite-agent", &agent);
        let _ = fs::remove_file(&calls);
        let ended = Program::new(EVAL_ONCE)
            .args(["summary", "--fail"])
            .env("PATH", &path)
            .env("BUILDKITE_JOB_ID", "job")
            .env("BUILDKITE_AGENT_ACCESS_TOKEN", "token")
            .run();
        ended.exits(1);
        let calls = fs::read_to_string(&calls).unwrap();
        assert!(calls.contains("annotate"), "{calls}");
        (ended.ours().join("\n"), calls)
    };
    let says_all = |printed: &str, parts: &[&str]| {
        assert!(
            parts.iter().all(|part| printed.contains(part)),
            "{parts:?}: {printed}"
        );
    };
    let (printed, calls) = summary("echo eval-once:x:plan", "600000000");
    says_all(
        &printed,
        &[
            "its plan has 600000000 bytes",
            "error: 1 recording without a readable plan",
        ],
    );
    assert!(!calls.contains("artifact download"), "{calls}");
    // Who uploads it says what size it has.
    let (printed, _) = summary("echo eval-once:x:plan", "1");
    says_all(
        &printed,
        &[
            "cannot get the plan of a recording: it has more than 536870912 bytes",
            "error: 1 recording without a readable plan",
        ],
    );
    let marks = "i=0; while [ $i -lt 103 ]; do echo eval-once:x$i:plan; i=$((i+1)); done";
    let marks = format!("{marks}; printf 'eval-once:\\001:plan\\neval-once:report:\\001\\n'");
    let (printed, calls) = summary(&marks, "600000000");
    says_all(
        &printed,
        &[
            "warning: 1 recording omitted: the mark of a plan has a name that no step can have",
            "warning: 3 recordings omitted: a summary reads the plans of 100 recordings",
            "error: 104 recordings without a readable plan",
        ],
    );
    assert_eq!(calls.matches("artifact search").count(), 100);
}

#[test]
fn a_step_of_a_skipped_target_that_fails_before_eval_once_begins_is_red() {
    if tool("git").is_none() || program().is_none() {
        return;
    }
    let Some(store) = Store::new() else { return };
    store.targets(r#"{ lost = file "lost"; there = file "there"; }"#);
    let drvs = ["lost", "there"].map(|name| store.instantiate("default.nix", name));
    for drv in &drvs {
        store.build(drv);
    }
    let command = format!("'{EVAL_ONCE}' pipeline --keys attr --skip-style run --summary=fail");
    let Some(build) = Build::new(&json!({ "key": "record", "command": command })) else {
        return;
    };
    let build = build
        .checkout(store.work())
        .envs(store.env())
        .our_hook("command")
        .shell_hook(
            "pre-command",
            "[ \"$BUILDKITE_STEP_KEY\" != nix-lost ] || exit 1\n",
        )
        .agents(1);
    assert_eq!(build.run(), Outcome::Failed);
    let body = annotation(&build).body;
    let rows = rests(&body);
    assert!(
        rows["lost"].starts_with("**failed**, without a report |"),
        "{body}"
    );
    assert!(rows["there"].starts_with("already there |"), "{body}");
    assert_eq!(build.meta_data()["eval-once:failed"], "1");
    let outcomes: Value =
        serde_json::from_slice(&build.artifacts()["eval-once-outcomes.json"]).unwrap();
    assert_eq!(outcomes["counts"], json!({ "failed": 1, "passed": 1 }));
}

#[test]
fn a_red_step_that_an_earlier_try_has_uploaded_is_no_skipped_target_of_a_retry_on_another_host() {
    if tool("git").is_none() || program().is_none() {
        return;
    }
    let Some(store) = Store::new() else { return };
    store.targets(r#"{ lost = file "lost"; rest = file "rest"; there = file "there"; }"#);
    store.build(&store.instantiate("default.nix", "there"));
    let command = format!("'{EVAL_ONCE}' pipeline --keys attr --chunk 1 --summary=fail");
    let record = json!({ "key": "record", "label": "Record", "command": command });
    let Some(build) = Build::new(&record) else {
        return;
    };
    let other = TempDir::new().unwrap();
    let other_host = format!(
        "[ \"$BUILDKITE_RETRY_COUNT\" = 0 ] || export EVAL_ONCE_STATE_DIR='{}/state'\n",
        other.path().display()
    );
    let build = build
        .checkout(store.work())
        .envs(store.env())
        .our_hook("command")
        .shell_hook("environment", &other_host)
        .shell_hook(
            "pre-command",
            "[ \"$BUILDKITE_STEP_KEY\" != nix-lost ] || exit 1\n",
        )
        .agents(1);
    build.on_upload(2, Fault::Reject("Not today".to_owned()));
    assert_eq!(build.run(), Outcome::Failed);
    // By now another build has built what has failed here.
    store.build(&store.instantiate("default.nix", "lost"));
    let is_record = |job: &Job| job.label.as_deref() == Some("Record");
    let first = build.jobs().into_iter().find(is_record).unwrap();
    build.retry(&first.id);
    assert_eq!(build.run(), Outcome::Failed);
    let retry = build.jobs().into_iter().rfind(is_record).unwrap();
    let said = "1 target not skipped, because the plan of an earlier try has a step for each";
    assert!(retry.plain().contains(said), "{}", retry.plain());
    let body = annotation(&build).body;
    let rows = rests(&body);
    assert!(
        rows["lost"].starts_with("**failed**, without a report |"),
        "{body}"
    );
    // What had no step then is skipped as ever.
    assert!(
        rows["there"].starts_with("skipped: already built here |"),
        "{body}"
    );
    assert_eq!(build.meta_data()["eval-once:failed"], "1");
}

/// A build that records by `record`, and whose step `check` sums it up once the step with the key `after` has ended.
fn recording_and_check(store: &Store, record: &str, after: &str) -> Option<Build> {
    let depends_on = json!([{ "step": after, "allow_failure": true }]);
    let check = json!({ "steps": [
        { "key": "check", "command": format!("'{EVAL_ONCE}' summary --fail"), "depends_on": depends_on }
    ] });
    let check = check.to_string().replace('\'', r"'\''");
    let command = format!(
        "{record}; printf '%s' '{check}' | buildkite-agent pipeline upload --no-interpolation"
    );
    let build = Build::new(&json!({ "key": "record", "command": command }))?;
    Some(
        build
            .checkout(store.work())
            .envs(store.env())
            .our_hook("command")
            .agents(1),
    )
}

#[test]
fn steps_that_follow_a_target_count_nowhere() {
    if tool("git").is_none() || program().is_none() {
        return;
    }
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"{ good = file "good" // { meta.eval-once.steps = {
  deploy = { run = build "run" "echo '#!/bin/sh' > $out; echo 'exit 7' >> $out; /bin/chmod +x $out; :"; needs-output = true; };
  tell = { command = "exit 7"; needs-output = true; buildkite.depends_on = "nix-good-deploy"; buildkite.allow_dependency_failure = true; };
}; }; }"#,
    );
    let record = format!("'{EVAL_ONCE}' pipeline --keys attr --no-share");
    let Some(build) = recording_and_check(&store, &record, "nix-good-tell") else {
        return;
    };
    assert_eq!(build.run(), Outcome::Failed, "the deploy is red");
    for key in ["nix-good-deploy", "nix-good-tell"] {
        assert_eq!(
            build.job(key).exit_status,
            Some(7),
            "{}",
            build.job(key).plain()
        );
        let saved = format!("eval-once:report:{key}");
        assert!(
            build.meta_data().contains_key(&saved),
            "{key} has saved a report"
        );
    }
    let check = build.job("check");
    assert_eq!(check.exit_status, Some(0), "{}", check.plain());
    let body = annotation(&build).body;
    let names: Vec<String> = rows(&body).into_iter().map(|row| row.target).collect();
    assert_eq!(names, ["good"], "{body}");
    assert_eq!(build.meta_data()["eval-once:failed"], "0");
}

#[test]
fn an_evaluation_error_counts_also_beside_a_recording_of_the_release_alone() {
    if tool("git").is_none() || program().is_none() {
        return;
    }
    let Some(store) = Store::new() else { return };
    store.targets(r#"{ broken = throw "no"; good = file "good"; }"#);
    // The release comes first, so that its recording is the first in the list.
    let build_phase = json!({ "steps": [{
        "key": "builds", "command": format!("'{EVAL_ONCE}' pipeline --keys attr --no-share --phases build --summary=fail"),
    }] });
    let build_phase = build_phase.to_string().replace('\'', r"'\''");
    let command = format!(
        "'{EVAL_ONCE}' pipeline --keys attr --no-share --phases release && printf '%s' '{build_phase}' | buildkite-agent pipeline upload"
    );
    let Some(build) = Build::new(&json!({ "key": "release", "command": command })) else {
        return;
    };
    let build = build
        .checkout(store.work())
        .envs(store.env())
        .our_hook("command")
        .agents(1);
    assert_eq!(build.run(), Outcome::Failed);
    let jobs = build.jobs();
    let summary = jobs.last().unwrap().plain();
    assert!(
        summary.contains("error: 1 target failed: broken\n"),
        "{summary}"
    );
    let body = annotation(&build).body;
    assert!(body.contains("**evaluation error**: no"), "{body}");
}

#[test]
fn a_recording_that_has_left_no_plan_is_no_success() {
    for (bad, status) in [("throw ''no''", 65), ("{ }", 65)] {
        let (Some(_), Some(_), Some(store)) = (tool("git"), program(), Store::new()) else {
            return;
        };
        store.targets(r#"{ a = file "a"; }"#);
        store.write("bad.nix", bad);
        let record = format!("'{EVAL_ONCE}' pipeline --keys attr");
        let second = format!("{record} --file bad.nix --key-prefix bad-");
        let steps = json!({ "steps": [
            { "key": "bad", "command": second },
            { "key": "good", "command": record, "depends_on": [{ "step": "bad", "allow_failure": true }] },
        ] });
        store.write("first.json", &steps.to_string());
        let upload = "buildkite-agent pipeline upload --no-interpolation first.json";
        let Some(build) = recording_and_check(&store, upload, "good") else {
            return;
        };
        assert_eq!(build.run(), Outcome::Failed);
        assert_eq!(build.job("bad").exit_status, Some(status));
        assert_eq!(
            build.job("good").exit_status,
            Some(0),
            "{}",
            build.job("good").plain()
        );
        let check = build.job("check");
        assert_eq!(check.exit_status, Some(1), "{}", check.plain());
        let said = "is omitted: it has left no plan, because it failed before, or has not ended";
        assert!(check.plain().contains(said), "{}", check.plain());
        assert!(
            check
                .plain()
                .contains("1 recording without a readable plan"),
            "{}",
            check.plain()
        );
        assert_eq!(build.meta_data()["eval-once:failed"], "1");
    }
}

#[test]
fn a_summary_that_is_a_required_check_is_green_only_where_every_target_is_known_to_be() {
    let check = |meta_data: &[(String, String)]| {
        let step = json!({ "key": "summary", "command": format!("'{EVAL_ONCE}' summary --fail") });
        let build = Build::new(&step)?.with_meta_data(meta_data.to_vec());
        build.run();
        Some(build)
    };
    let good = report("good", &json!({}));
    let Some(build) = check(std::slice::from_ref(&good)) else {
        return;
    };
    let job = build.job("summary");
    assert_eq!(job.state, JobState::Passed, "{}", job.plain());
    assert_eq!(build.meta_data()["eval-once:failed"], "0");

    let bad = report("bad", &json!({ "exit": 100, "class": "build" }));
    let build = check(&[good, bad]).unwrap();
    let job = build.job("summary");
    assert_eq!(job.exit_status, Some(1), "{}", job.plain());
    assert!(
        job.plain().contains("error: 1 target failed: bad\n"),
        "{}",
        job.plain()
    );
    assert_eq!(build.meta_data()["eval-once:failed"], "1");

    // The recording failed, say.
    let build = check(&[]).unwrap();
    let job = build.job("summary");
    assert_eq!(job.exit_status, Some(1), "{}", job.plain());
    assert!(
        job.plain()
            .contains("error: no target is known to be green")
    );
}

#[test]
fn our_plugins_hook_sums_up_and_then_runs_the_jobs_own_command_once() {
    if tool("git").is_none() || program().is_none() {
        return;
    }
    let repositories = TempDir::new().unwrap();
    let plugin = plugin_repository(repositories.path());
    for (command, said) in [
        ("echo after", "after"),
        ("eval-once summary", "sums up"),
        (
            "eval-once summary --no-flag",
            "the flags of the job's command are ignored: this hook has run the summary already",
        ),
    ] {
        let step = json!({ "key": "summary", "command": command, "plugins": [{ &plugin: { "summary": true } }] });
        let Some(build) = Build::new(&step) else {
            return;
        };
        let build = build
            .envs([("EVAL_ONCE_BIN", EVAL_ONCE)])
            .with_meta_data([report("a", &json!({}))]);
        assert_eq!(build.run(), Outcome::Passed);
        let log = build.job("summary").plain();
        assert_eq!(
            log.matches("sums up 1 attribute: 1 target").count(),
            1,
            "{log}"
        );
        assert!(log.contains(said), "{log}");
    }
}

#[test]
fn a_summary_that_is_stopped_ends_with_the_signal() {
    let folder = TempDir::new().unwrap();
    let (bin, begun, never) = ["bin", "begun", "never"]
        .map(|name| folder.path().join(name))
        .into();
    fifo(&never);
    let agent = format!(
        "#!/bin/sh\n[ \"$2\" != keys ] || {{ echo eval-once:report:a; exit; }}\n: > '{}'; read x < '{}'\n",
        begun.display(),
        never.display()
    );
    let _stand_ins = StandIns::new(&bin).instead("buildkite-agent", &agent);
    let running = Program::new(EVAL_ONCE)
        .arg("summary")
        .env("PATH", &bin)
        .env("BUILDKITE_JOB_ID", "job")
        .env("BUILDKITE_AGENT_ACCESS_TOKEN", "token")
        .start();
    until("a report is asked for", || begun.exists());
    kill(running.pid(), Signal::SIGTERM).unwrap();
    running
        .end()
        .exits(143)
        .says(&["error: stopped by SIGTERM"]);
}

#[test]
fn what_is_no_job_or_cannot_reach_buildkite_says_so() {
    let folder = TempDir::new().unwrap();
    let none = folder.path().join("none");
    let summary = |path: &Path| {
        Program::new(EVAL_ONCE)
            .arg("summary")
            .env("PATH", path)
            .env("BUILDKITE_JOB_ID", "job")
            .env("BUILDKITE_AGENT_ACCESS_TOKEN", "token")
    };
    summary(&none)
        .without("BUILDKITE_JOB_ID")
        .run()
        .exits(64)
        .prints("")
        .says(&["error: `summary` must run inside a Buildkite job: BUILDKITE_JOB_ID"]);
    summary(&none).arg("x").run().exits(64);
    summary(&none)
        .run()
        .exits(69)
        .says(&["error: ", "hint: run `summary` in a job"]);
    let bin = folder.path().join("bin");
    let _stand_ins = StandIns::new(&bin).instead(
        "buildkite-agent",
        "#!/bin/sh\necho 'fatal: connection refused' >&2\nexit 1\n",
    );
    summary(&bin).run().exits(75).says(&[
        "connection refused",
        "hint: check that this host can reach Buildkite",
    ]);
    let _stand_ins = StandIns::new(&bin).instead(
        "buildkite-agent",
        "#!/bin/sh\ncase $2 in keys) echo eval-once:report:a;; get) echo '{\"version\":1,\"after\":[]}';; *) echo 'fatal: no room' >&2; exit 1; esac\n",
    );
    summary(&bin)
        .run()
        .exits(75)
        .says(&["no room", "hint: check that this host can reach Buildkite"])
        // As a recording does, which has a plan to follow.
        .never_says("continues where it stopped");
}
