//! `eval-once summary`: a build at a glance, made by a job of it that asks the played Buildkite through the real agent.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;
use unix::sys::signal::{Signal, kill};

use crate::support::{
    EVAL_ONCE,
    agent::{plugin_repository, program},
    buildkite::{Annotation, Build, JobState, Outcome},
    program::Program,
    stand_in::StandIns,
    store::Store,
    target::fifo,
    tool, until,
};

/// What a step of this key leaves.
fn report(key: &str, more: &Value) -> (String, String) {
    let mut report = json!({
        "version": 1, "target": key, "job": "0190", "way": "realised", "reason": "drv-valid", "exit": 0,
        "class": null, "drv": null, "message": null, "drift": false, "built": 1, "substituted": 0,
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
    let keys = json!({ "summary": true, "chunk": 2 });
    let plugins = json!([{ plugin: { "pipeline": keys } }]);
    let step = json!({ "key": "record", "label": "Record", "plugins": plugins });
    let hash = |drv: &str| drv.rsplit('/').next().unwrap()[..32].to_owned();
    let unwell = hash(&store.instantiate("default.nix", "unwell"));
    let hook = format!(
        "[ \"$BUILDKITE_STEP_KEY\" != drv-{unwell} ] || exit 1\n[ \"$BUILDKITE_STEP_KEY\" != drv-{} ] || {{ rm -r \"$EVAL_ONCE_STATE_DIR/pins\"; nix-store --delete --ignore-liveness $(nix-store -q --referrers {lost}) {lost}; }}\n",
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
fn a_recording_adds_a_last_step_that_sums_the_build_up_whatever_became_of_it() {
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
    assert_eq!(waits.len(), 8, "{step}");
    assert!(
        waits.iter().all(|wait| wait["allow_failure"] == true),
        "{step}"
    );

    let counts =
        "sums up 9 targets: 2 failed, 1 broken, 1 without a report, 2 not run, 2 built, 1 skipped";
    assert!(log.contains(&format!("eval-once: {counts}")), "{log}");
    let Annotation { body, style } = annotation(&build);
    assert_eq!(style, "error");
    assert!(
        body.starts_with(&format!("**eval-once** {counts}.\n")),
        "{body}"
    );
    let rows = rows(&body);
    let names: Vec<&str> = rows.iter().map(|row| row.target.as_str()).collect();
    assert_eq!(names[2..4], ["broken", "unwell"]);
    assert_eq!(names[8], "there");
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
        ("lost", "built | evaluated (drv&#45;missing) | "),
        ("broken", "**broken**"),
        ("behind", "not run: <code>bad</code> failed |  |  |"),
        ("further", "not run: <code>bad</code> failed |  |  |"),
        ("unwell", "no report |  |  |"),
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
    // What was saved depends on how busy this machine is: but it was measured, and told from what.
    let saved = body.split("**Evaluation saved:** ").nth(1).unwrap();
    assert!(saved.contains("3 steps took what was recorded"), "{body}");

    let junit = junit(&build);
    for part in [
        "<testsuite name=\"default.nix\" tests=\"9\" failures=\"2\" errors=\"2\" skipped=\"3\"",
        "<testcase name=\"good\" classname=\"default.nix\"",
        "<failure type=\"build\" message=\"",
        "<error type=\"evaluation\" message=\"",
        "<error type=\"no-report\" message=\"",
        "<skipped message=\"already built here\"/>",
        "<skipped message=\"not run: bad failed\"/>",
    ] {
        assert!(junit.contains(part), "{part}: {junit}");
    }
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
    assert!(body.contains("sums up 1 target: 1 built."), "{body}");
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
        ("odd", "its report cannot be read |  |  |"),
        (
            "old",
            "its report is of version 9, which this eval-once does not know |  |  |",
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
fn reports_are_asked_for_eight_at_once_and_told_in_a_hundred_rows() {
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
    assert!(log.contains("eval-once: nothing to sum up: "), "{log}");
    assert!(build.annotations().is_empty() && build.artifacts().is_empty());
}

#[test]
fn a_plan_that_is_lost_or_cannot_be_read_is_told_and_no_failure() {
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
    assert!(body.contains("**Left out:** 2 recordings"), "{body}");
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
        ("eval-once summary", "it is not run again"),
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
        assert_eq!(log.matches("sums up 1 target").count(), 1, "{log}");
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
        .says(&["error: a summary is made in a job of the build that it sums up, and this is none: BUILDKITE_JOB_ID"]);
    summary(&none).arg("x").run().exits(64);
    summary(&none)
        .run()
        .exits(69)
        .says(&["error: ", "hint: in a job"]);
    let bin = folder.path().join("bin");
    let _stand_ins = StandIns::new(&bin).instead(
        "buildkite-agent",
        "#!/bin/sh\necho 'fatal: connection refused' >&2\nexit 1\n",
    );
    summary(&bin)
        .run()
        .exits(75)
        .says(&["connection refused", "hint: can this host reach Buildkite?"]);
    let _stand_ins = StandIns::new(&bin).instead(
        "buildkite-agent",
        "#!/bin/sh\ncase $2 in keys) echo eval-once:report:a;; get) echo '{\"version\":1}';; *) echo 'fatal: no room' >&2; exit 1; esac\n",
    );
    summary(&bin)
        .run()
        .exits(75)
        .says(&["no room", "hint: can this host reach Buildkite?"])
        // As a recording does, which has a plan to follow.
        .never_says("goes on where it was");
}
