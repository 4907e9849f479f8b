//! The test server that plays Buildkite, with the real agent: it takes what Buildkite takes, refuses what it refuses, and runs the rest
//! in the order that Buildkite would.

use std::{fs, sync::mpsc, thread};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    EVAL_ONCE,
    agent::{plugin_repository, program},
    buildkite::{Build, Fault, Job, JobState, Outcome, Upload},
    tool,
};

/// A build whose first step, `uploader`, uploads these pipelines one after the other, refused or not.
fn uploading(pipelines: &[Value]) -> Option<(Build, TempDir)> {
    uploading_with(pipelines, &json!({}))
}

/// As [`uploading`], with more properties of the first step.
fn uploading_with(pipelines: &[Value], properties: &Value) -> Option<(Build, TempDir)> {
    let checkout = TempDir::new().unwrap();
    for (number, pipeline) in pipelines.iter().enumerate() {
        let file = checkout.path().join(format!("{number:03}.json"));
        fs::write(file, pipeline.to_string()).unwrap();
    }
    let mut step = json!({
        "key": "uploader",
        "label": "Upload",
        "command": "for pipeline in *.json; do buildkite-agent pipeline upload --no-interpolation $pipeline || echo status $?; done",
    });
    let object = step.as_object_mut().unwrap();
    object.extend(properties.as_object().unwrap().clone());
    let build = Build::new(&step)?.checkout(checkout.path());
    Some((build, checkout))
}

/// A command step.
fn step(key: &str, command: &str, depends_on: &[&str]) -> Value {
    json!({ "key": key, "command": command, "depends_on": depends_on })
}

/// The states of all jobs by their steps' keys, in order.
fn states(jobs: &[Job]) -> Vec<(&str, JobState)> {
    let state = |job: &'_ Job| job.state;
    jobs.iter()
        .map(|job| (job.key.as_deref().unwrap_or("-"), state(job)))
        .collect()
}

#[test]
fn an_uploaded_pipeline_runs_in_the_order_of_its_dependencies() {
    let second = json!({ "steps": [
        { "key": "end", "command": "true", "depends_on": [{ "step": "middle" }, "other"] },
    ] });
    let first = json!({ "env": { "OF_ALL": "1" }, "steps": [
        step("middle", "echo $OF_ALL $OF_ONE $BUILDKITE_STEP_KEY", &["begin"]),
        { "key": "other", "command": ["echo one", "echo two"], "depends_on": "begin", "env": { "OF_ONE": 2 } },
        { "key": "begin", "label": "Begin", "command": "true", "depends_on": [] },
    ] });
    let Some((build, _checkout)) = uploading(&[first.clone(), second]) else {
        return;
    };
    assert_eq!(build.run(), Outcome::Passed);
    let finished = build.finished();
    let place = |key: &str| finished.iter().position(|it| it == key).unwrap();
    assert!(place("begin") < place("middle").min(place("other")));
    assert!(place("end") > place("middle").max(place("other")));
    assert_eq!(build.uploads().len(), 2);
    assert_eq!(build.uploads()[0]["steps"][0]["key"], "middle");
    assert!(build.job("middle").plain().contains("\n1 middle\n"));
    let other = build.job("other").plain();
    assert!(other.contains("one\ntwo\n"), "{other}");
    assert_eq!(build.job("begin").label.as_deref(), Some("Begin"));
    assert_eq!(build.jobs().len(), 5);
    assert_eq!(build.rejections(), [""; 0]);
}

#[test]
fn whatever_is_wrong_gets_a_whole_upload_refused() {
    let wrong = |step: Value| json!({ "steps": [{ "key": "beside", "command": "true" }, step] });
    let many: Vec<Value> = (0..500).map(|_| json!({ "command": "true" })).collect();
    let key_too_long = "k".repeat(101);
    let uuid = "0190c1a2-0000-4000-8000-000000000001";
    let cases = [
        (
            wrong(json!({ "command": "true", "foo": 1 })),
            "`foo` is not a valid property on the `command` step.",
        ),
        (
            wrong(json!({ "command": "true", "key": "beside" })),
            "The key \"beside\" has already been used by another step in this build",
        ),
        (
            wrong(json!({ "command": "true", "key": "uploader" })),
            "The key \"uploader\" has already been used by another step in this build",
        ),
        (
            wrong(json!({ "command": "true", "key": key_too_long })),
            "Step keys can have a maximum of 100 characters",
        ),
        (
            wrong(json!({ "command": "true", "key": "a b" })),
            "Step keys can only have",
        ),
        (
            wrong(json!({ "command": "true", "key": uuid })),
            "Step keys can not look like a UUID",
        ),
        (
            wrong(json!({ "command": "true", "skip": "s".repeat(71) })),
            "Skip reasons can have a maximum of 70 characters",
        ),
        (
            wrong(
                json!({ "group": "outer", "steps": [{ "group": "inner", "steps": [{ "command": "true" }] }] }),
            ),
            "Group steps can not be nested",
        ),
        (
            wrong(json!({ "group": "empty", "steps": [] })),
            "Group steps must have at least one step",
        ),
        (
            wrong(json!({ "group": "many", "steps": many })),
            "The number of jobs in this upload exceeds your organization limit of 500.",
        ),
        (
            wrong(json!({ "command": "true", "timeout_in_minutes": "soon" })),
            "`/steps/1",
        ),
        (
            wrong(json!({ "input": "now?" })),
            "a `input` step is not played",
        ),
    ];
    let pipelines: Vec<Value> = cases.iter().map(|(pipeline, _)| pipeline.clone()).collect();
    let Some((build, _checkout)) = uploading(&pipelines) else {
        return;
    };
    assert_eq!(build.run(), Outcome::Passed);
    let rejections = build.rejections();
    assert_eq!(rejections.len(), cases.len(), "{rejections:#?}");
    for ((_, expected), message) in cases.iter().zip(&rejections) {
        assert!(message.starts_with(expected), "{message}");
    }
    let log = build.job("uploader").plain();
    // Newer agents begin with a small letter.
    assert_eq!(
        log.matches("ipeline upload rejected: ").count(),
        cases.len(),
        "{log}"
    );
    assert_eq!(
        build.jobs().len(),
        1,
        "nothing of a refused upload is there"
    );
}

#[test]
fn uploads_can_be_answered_as_they_were() {
    let pipeline = json!({ "steps": [{ "key": "uploader", "command": "true" }] });
    let Some((build, _checkout)) = uploading(&[pipeline]) else {
        return;
    };
    let build = build.answering_at_once();
    assert_eq!(build.run(), Outcome::Passed);
    let log = build.job("uploader").plain();
    assert!(
        log.contains("422 Unprocessable Entity: The key \"uploader\" has already"),
        "{log}"
    );
}

#[test]
fn a_dependency_that_never_appears_fails_the_build() {
    let steps = json!({ "steps": [
        step("waits", "true", &["nobody", "uploader"]),
        step("runs", "true", &["uploader"]),
    ] });
    let Some((build, _checkout)) = uploading(&[steps]) else {
        return;
    };
    let stuck = Outcome::Stuck("step dependencies not found: nobody".to_owned());
    assert_eq!(build.run(), stuck);
    assert_eq!(build.job("runs").state, JobState::Passed);
    assert_eq!(build.job("waits").state, JobState::Waiting);
}

#[test]
fn a_failed_job_is_retried_as_its_rules_say() {
    let steps = json!({ "steps": [
        {
            "key": "mends",
            "command": "echo $BUILDKITE_RETRY_COUNT $BUILDKITE_STEP_ID; test $BUILDKITE_RETRY_COUNT = 1 || exit 75",
            "retry": { "automatic": [{ "exit_status": [75, 76], "limit": 2 }] },
        },
        {
            "key": "stays",
            "command": "exit 3",
            "retry": { "automatic": [{ "exit_status": 75 }, { "exit_status": "*", "signal_reason": "none", "limit": 1 }] },
        },
        { "key": "not", "command": "exit 4", "retry": { "automatic": { "exit_status": 75 } } },
    ] });
    let Some((build, _checkout)) = uploading(&[steps]) else {
        return;
    };
    assert_eq!(build.run(), Outcome::Failed);
    let jobs = build.jobs();
    let of = |key: &str| -> Vec<&Job> {
        let is_it = |job: &&Job| job.key.as_deref() == Some(key);
        jobs.iter().filter(is_it).collect()
    };
    let mends = of("mends");
    assert_eq!(mends.len(), 2);
    assert_eq!(mends[0].exit_status, Some(75));
    assert!(mends[0].is_retried && !mends[1].is_retried);
    assert_eq!(mends[1].state, JobState::Passed);
    for (count, job) in mends.iter().enumerate() {
        assert_eq!(job.retry_count, count);
        let line = format!("\n{count} {}\n", job.step_id);
        assert!(job.plain().contains(&line), "{}", job.plain());
    }
    assert_eq!(of("stays").len(), 2);
    assert_eq!(of("not").len(), 1);

    // By hand, what no rule would: the others stay as they are.
    build.retry(&of("not")[0].id);
    assert_eq!(build.run(), Outcome::Failed);
    assert_eq!(build.job("not").retry_count, 1);
    assert_eq!(build.jobs().len(), jobs.len() + 1);
}

#[test]
fn what_fails_takes_with_it_what_depends_on_it_and_nothing_else() {
    let steps = json!({ "steps": [
        step("fails", "exit 1", &[]),
        step("after", "true", &["fails"]),
        step("long-after", "true", &["after"]),
        { "key": "allows", "command": "true", "depends_on": [{ "step": "fails", "allow_failure": true }] },
        { "key": "allows-all", "command": "true", "depends_on": "fails", "allow_dependency_failure": true },
        { "key": "soft", "command": "exit 2", "soft_fail": [{ "exit_status": 2 }] },
        step("after-soft", "true", &["soft"]),
        { "key": "skipped", "command": "exit 1", "skip": "is there already" },
        step("after-skipped", "true", &["skipped"]),
    ] });
    let Some((build, _checkout)) = uploading(&[steps]) else {
        return;
    };
    assert_eq!(build.run(), Outcome::Failed);
    let jobs = build.jobs();
    assert_eq!(
        states(&jobs),
        [
            ("uploader", JobState::Passed),
            ("fails", JobState::Failed),
            ("after", JobState::DependencyFailed),
            ("long-after", JobState::DependencyFailed),
            ("allows", JobState::Passed),
            ("allows-all", JobState::Passed),
            ("soft", JobState::SoftFailed),
            ("after-soft", JobState::Passed),
            ("skipped", JobState::Skipped),
            ("after-skipped", JobState::Passed),
        ]
    );
}

#[test]
fn groups_are_waited_for_as_a_whole_and_waits_part_a_pipeline() {
    let steps = json!({ "steps": [
        { "group": "Both", "key": "group", "depends_on": "before", "steps": [
            { "key": "one", "command": "echo $BUILDKITE_GROUP_LABEL" },
            { "key": "two", "command": "true" },
        ] },
        step("after-group", "true", &["group"]),
        { "group": "None", "skip": true, "steps": [{ "key": "skipped", "command": "exit 1" }] },
        step("before", "true", &[]),
        "wait",
        { "key": "last", "command": "true" },
    ] });
    let Some((build, _checkout)) = uploading(&[steps]) else {
        return;
    };
    assert_eq!(build.run(), Outcome::Passed);
    let finished = build.finished();
    let place = |key: &str| finished.iter().position(|it| it == key).unwrap();
    assert!(place("before") < place("one").min(place("two")));
    assert!(place("after-group") > place("one").max(place("two")));
    assert_eq!(finished.last().map(String::as_str), Some("last"));
    assert_eq!(build.job("one").group.as_deref(), Some("Both"));
    assert!(build.job("one").plain().contains("\nBoth\n"));
    assert_eq!(build.job("skipped").state, JobState::Skipped);
}

#[test]
fn artifacts_meta_data_and_annotations_arrive() {
    let Some(build) = Build::new(&json!({
        "key": "first",
        "command": "\
            mkdir -p out/deep\n\
            head -c 300000 /dev/zero > out/deep/zeros\n\
            printf 'text' > out/text\n\
            buildkite-agent artifact upload 'out/**/*'\n\
            buildkite-agent meta-data set colour blue\n\
            buildkite-agent meta-data get colour; echo\n\
            buildkite-agent meta-data exists shape || echo exists $?\n\
            buildkite-agent meta-data keys\n\
            buildkite-agent meta-data set blank ' ' || echo blank $?\n\
            printf 'one ' | buildkite-agent annotate --context c --style warning\n\
            printf 'two' | buildkite-agent annotate --context c --append\n\
            echo gone | buildkite-agent annotate\n\
            buildkite-agent annotation remove --context default\n\
            buildkite-agent step get label --step first\n\
            buildkite-agent step get key --step nobody || echo step $?\n\
            mkdir fetched\n\
            buildkite-agent artifact download 'out/*' fetched/\n\
            cmp out/deep/zeros fetched/out/deep/zeros && cat fetched/out/text && echo\n\
            buildkite-agent artifact download nothing fetched/ || echo download $?\n",
        "label": "The first",
    })) else {
        return;
    };
    assert_eq!(build.run(), Outcome::Passed);
    let log = build.job("first").plain();
    for line in [
        "blue",
        "exists 100",
        "colour",
        "blank 1",
        "The first",
        "step 1",
        "text",
        "download 1",
    ] {
        assert!(log.contains(&format!("\n{line}\n")), "{line} in {log}");
    }
    let artifacts = build.artifacts();
    let paths: Vec<&str> = artifacts.keys().map(String::as_str).collect();
    assert_eq!(paths, ["out/deep/zeros", "out/text"]);
    assert_eq!(artifacts["out/text"], b"text");
    assert_eq!(artifacts["out/deep/zeros"].len(), 300_000);
    assert_eq!(
        build.meta_data().into_iter().collect::<Vec<_>>(),
        [("colour".to_owned(), "blue".to_owned())]
    );
    let annotations = build.annotations();
    assert_eq!(annotations.len(), 1);
    assert_eq!(annotations["c"].body, "one two");
    assert_eq!(annotations["c"].style, "warning");
}

#[test]
fn artifacts_of_a_retried_job_are_found_only_with_a_flag_for_them() {
    let Some(build) = Build::new(&json!({
        "key": "first",
        "command": "\
            if [ $BUILDKITE_RETRY_COUNT = 0 ]; then\n\
            echo old > plan; buildkite-agent artifact upload plan; exit 75\n\
            fi\n\
            buildkite-agent artifact download plan . || echo without $?\n\
            buildkite-agent artifact download --include-retried-jobs --step $BUILDKITE_STEP_ID plan .\n\
            cat plan\n",
        "retry": { "automatic": [{ "exit_status": 75 }] },
    })) else {
        return;
    };
    assert_eq!(build.run(), Outcome::Passed);
    let log = build.job("first").plain();
    assert!(log.contains("\nwithout 1\n"), "{log}");
    assert!(log.ends_with("\nold\n"), "{log}");
    assert_eq!(build.artifacts()["plan"], b"old\n");
}

/// An uploader with one chunk, retried when its job vanishes.
fn killed(fault: Fault) -> Option<(Build, TempDir)> {
    let chunk = json!({ "steps": [step("chunk", "true", &[])] });
    let retry = json!({ "retry": { "automatic": [{ "exit_status": -1, "signal_reason": "none", "limit": 2 }] } });
    let (build, checkout) = uploading_with(&[chunk], &retry)?;
    build.on_upload(1, fault);
    assert_eq!(build.run(), Outcome::Passed);
    let jobs = build.jobs();
    let first = &jobs[0];
    assert_eq!(
        (first.state, first.exit_status),
        (JobState::Failed, Some(-1))
    );
    assert_eq!((&*first.signal, &*first.signal_reason), ("SIGKILL", ""));
    assert_eq!(build.job("uploader").retry_count, 1);
    assert_eq!(build.uploads().len(), 1);
    assert_eq!(build.job("chunk").state, JobState::Passed);
    Some((build, checkout))
}

#[test]
fn an_uploader_killed_before_its_upload_was_applied_uploads_again() {
    if let Some((build, _checkout)) = killed(Fault::KillBefore) {
        assert_eq!(build.rejections(), [""; 0]);
    }
}

#[test]
fn an_uploader_killed_after_its_upload_was_applied_is_refused_the_next_time() {
    for fault in [Fault::KillAfter, Fault::KillAndApplyLate] {
        if let Some((build, _checkout)) = killed(fault) {
            let used = "The key \"chunk\" has already been used by another step in this build";
            assert_eq!(build.rejections(), [used]);
        }
    }
}

#[test]
fn what_was_uploaded_by_a_job_that_was_killed_is_applied_in_the_end() {
    let chunk = json!({ "steps": [step("chunk", "true", &[])] });
    let Some((build, _checkout)) = uploading(&[chunk]) else {
        return;
    };
    build.on_upload(1, Fault::KillAndApplyLate);
    assert_eq!(build.run(), Outcome::Failed);
    let jobs = build.jobs();
    assert_eq!(
        states(&jobs),
        [("uploader", JobState::Failed), ("chunk", JobState::Passed)]
    );
}

#[test]
fn an_upload_can_fail_be_refused_or_be_looked_at() {
    let chunks: Vec<Value> = ["a", "b", "c"]
        .into_iter()
        .map(|key| json!({ "steps": [step(key, "true", &[])] }))
        .collect();
    let Some((build, _checkout)) = uploading(&chunks) else {
        return;
    };
    let (sender, receiver) = mpsc::channel();
    // The agent comes again after the first, with the same UUID.
    build.on_upload(1, Fault::Answer(500));
    build.on_upload(3, Fault::Reject("Not today".to_owned()));
    build.on_upload(
        4,
        Fault::Between(Box::new(move |upload| sender.send(upload.clone()).unwrap())),
    );
    assert_eq!(build.run(), Outcome::Passed);
    assert_eq!(build.rejections(), ["Not today"]);
    let keys: Vec<Value> = build
        .uploads()
        .iter()
        .map(|it| it["steps"][0]["key"].clone())
        .collect();
    assert_eq!(keys, ["a", "c"]);
    let seen = receiver.recv().unwrap();
    assert_eq!(seen.pipeline["steps"][0]["key"], "c");
    assert_eq!(seen.job, build.job("uploader").id);
}

#[test]
fn a_job_is_cancelled() {
    let Some(build) = Build::new(&json!({
        "key": "long",
        "command": "trap 'echo stopped; exit 0' TERM; sleep 60 & wait",
        "retry": { "automatic": true },
    })) else {
        return;
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            let job = build.until_job_is("long", JobState::Running);
            build.cancel(&job);
        });
        assert_eq!(build.run(), Outcome::Failed);
    });
    let jobs = build.jobs();
    assert_eq!(states(&jobs), [("long", JobState::Canceled)]);
    assert_eq!(jobs[0].signal_reason, "cancel");
}

#[test]
fn jobs_go_to_the_agents_whose_tags_they_ask_for() {
    let steps = json!({ "steps": [
        { "key": "big", "command": "echo $BUILDKITE_AGENT_META_DATA_SIZE", "agents": { "queue": "other", "size": "*" } },
        { "key": "odd", "command": "true", "agents": ["size=small"] },
    ] });
    let Some((build, _checkout)) = uploading(&[steps]) else {
        return;
    };
    let build = build
        .agents(1)
        .agent_with_tags(&["queue=other", "size=big"]);
    let stuck = Outcome::Stuck("no agent has the tags that step `odd` asks for".to_owned());
    assert_eq!(build.run(), stuck);
    let big = build.job("big");
    assert!(big.plain().contains("\nbig\n"));
    assert_eq!(big.agent.as_deref(), Some("agent-2"));
    assert_eq!(build.job("uploader").agent.as_deref(), Some("agent-1"));
}

#[test]
fn a_job_finds_what_the_test_gives_it_and_nothing_else() {
    let steps = json!({ "steps": [
        { "key": "plain", "command": "echo *; echo $COLOUR; test -t 1 && echo terminal; ! env | grep ^CARGO; echo end" },
    ] });
    let Some((build, checkout)) = uploading(&[steps]) else {
        return;
    };
    fs::create_dir(checkout.path().join("folder")).unwrap();
    let build = build
        .agents(1)
        .envs([("COLOUR", "blue")])
        .terminal(true)
        .shell_hook("post-command", "touch left-behind\n");
    assert_eq!(build.run(), Outcome::Passed);
    let log = build.job("plain").plain();
    assert!(
        log.contains("\n000.json folder\nblue\nterminal\nend\n"),
        "{log}"
    );
}

#[test]
fn our_own_hook_runs_a_job_that_carries_a_record() {
    let Some(build) = Build::new(&json!({
        "key": "ours",
        "command": "true",
        "env": { "EVAL_ONCE_STEP": "{\"no-such-key\":1}" },
    })) else {
        return;
    };
    let build = build.our_hook("command");
    assert_eq!(build.run(), Outcome::Failed);
    let job = build.job("ours");
    assert_eq!(job.exit_status, Some(64), "{}", job.plain());
}

#[test]
fn steps_carry_plugins() {
    let repositories = TempDir::new().unwrap();
    let (Some(_), Some(_)) = (tool("git"), program()) else {
        return;
    };
    let plugin = plugin_repository(repositories.path());
    let steps = json!({ "steps": [
        { "key": "plugin", "plugins": [{ plugin: { "attr": 1 } }] },
    ] });
    let Some((build, _checkout)) = uploading(&[steps]) else {
        return;
    };
    let build = build.envs([
        ("EVAL_ONCE_BIN", EVAL_ONCE),
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ("GIT_CONFIG_SYSTEM", "/dev/null"),
    ]);
    assert_eq!(build.run(), Outcome::Failed);
    let job = build.job("plugin");
    assert_eq!(job.exit_status, Some(64), "{}", job.plain());
    assert!(
        job.plain().contains("\neval-once: error: "),
        "{}",
        job.plain()
    );
}

#[test]
#[should_panic(expected = "/pipelines panicked")]
fn what_a_test_does_in_an_upload_fails_the_test() {
    let chunk = json!({ "steps": [step("chunk", "true", &[])] });
    let (build, _checkout) =
        uploading(&[chunk]).expect("/pipelines panicked: no, there is no agent");
    let fails = |upload: &Upload| assert_eq!(upload.pipeline, Value::Null);
    build.on_upload(1, Fault::Between(Box::new(fails)));
    build.run();
}
