//! What other jobs of a build can do to a recording: they can set any meta-data, and upload artifacts for any job. A retry follows
//! no plan of theirs, and skips no step because of their marks.

use std::{path::PathBuf, process::Command};

use eval_once::fingerprint::sha256;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    EVAL_ONCE,
    agent::program,
    buildkite::{Build, Fault, Job, Outcome},
    store::Store,
};

/// Three targets without dependencies.
const TARGETS: &str = r#"{
  a = build "a" "echo a > $out";
  b = build "b" "echo b > $out";
  c = build "c" "echo c > $out";
}"#;

/// The command of a recording that uploads each target in a chunk of its own.
fn command() -> String {
    format!("'{EVAL_ONCE}' pipeline --chunk 1")
}

/// A build with such a recording.
struct Scene {
    build: Build,
    step: String,
    store: Store,
}

impl Scene {
    /// The build before its first job.
    fn new(first_step: &Value, configure: impl FnOnce(Build) -> Build) -> Option<Self> {
        program()?;
        let store = Store::new()?;
        store.targets(TARGETS);
        let build = Build::new(first_step)?
            .checkout(store.work())
            .envs(store.env());
        let build = configure(build);
        let step = build.jobs()[0].step_id.clone();
        Some(Self { build, step, store })
    }

    /// The build after a try of the recording whose second chunk was rejected.
    fn interrupted(configure: impl FnOnce(Build) -> Build) -> Option<Self> {
        Self::interrupted_of(&first_step(), configure)
    }

    /// The same with this step for the recording.
    fn interrupted_of(first_step: &Value, configure: impl FnOnce(Build) -> Build) -> Option<Self> {
        let scene = Self::new(first_step, configure)?;
        scene
            .build
            .on_upload(2, Fault::Reject("Not today".to_owned()));
        assert_eq!(scene.build.run(), Outcome::Failed);
        let job = scene.record();
        assert!(job.plain().contains("Not today"), "{}", job.plain());
        assert_eq!(scene.recorded_steps(), 1);
        Some(scene)
    }

    /// The last try of the recording.
    #[track_caller]
    fn record(&self) -> Job {
        let jobs = self.build.jobs().into_iter();
        let mut tries = jobs.filter(|job| job.label.as_deref() == Some("Record"));
        tries.next_back().unwrap()
    }

    /// The recording once more.
    #[track_caller]
    fn retry(&self) -> Job {
        self.build.retry(&self.record().id);
        self.build.run();
        self.record()
    }

    /// The retry follows no plan, for this reason, and every target has one step, and nothing else has.
    #[track_caller]
    fn is_not_deceived(&self, doubt: &str) {
        let job = self.retry();
        let log = job.plain();
        let warning = format!("is not followed, because {doubt}");
        assert!(log.contains(&warning), "{warning}: {log}");
        assert!(!log.contains("following that plan"), "{log}");
        assert_eq!(job.exit_status, Some(0), "{log}");
        assert_eq!(self.recorded_steps(), 3, "{log}");
    }

    /// The retry follows the plan.
    #[track_caller]
    fn follows(&self) -> Job {
        let job = self.retry();
        assert!(
            job.plain().contains("following that plan"),
            "{}",
            job.plain()
        );
        assert_eq!(job.exit_status, Some(0), "{}", job.plain());
        job
    }

    /// How many steps were uploaded; none of them is foreign, and none was uploaded twice.
    #[track_caller]
    fn recorded_steps(&self) -> usize {
        let keys = self.keys();
        assert!(!keys.iter().any(|key| key == "evil"), "{keys:?}");
        let mut unique = keys.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), keys.len(), "{keys:?}");
        keys.len()
    }

    fn keys(&self) -> Vec<String> {
        let uploads = self.build.uploads();
        let steps = uploads
            .iter()
            .flat_map(|it| it["steps"].as_array().unwrap());
        steps
            .map(|step| step["key"].as_str().unwrap().to_owned())
            .collect()
    }

    fn mark(&self, what: &str) -> String {
        format!("eval-once:{}:{what}", self.step)
    }

    /// The mark of the plan: its name and its value.
    #[track_caller]
    fn plan_mark(&self) -> (String, String) {
        let begin = self.mark("");
        let is_plan = |name: &String| name.starts_with(&begin) && name.ends_with(":plan");
        let marks = self.build.meta_data().into_iter();
        let marks: Vec<_> = marks.filter(|(name, _)| is_plan(name)).collect();
        let [mark] = &marks[..] else {
            panic!("{marks:?}")
        };
        mark.clone()
    }

    /// Sets the mark of the plan.
    #[track_caller]
    fn marks_plan(&self, value: &str) {
        self.build.set_meta_data(&self.plan_mark().0, value);
    }

    /// A plan that uploads a foreign step instead of the recorded ones, left at this job and marked in the way that ours are.
    fn leaves_plan(&self, job: &str, step: &str) {
        let sum = self.leaves_artifact(job, step);
        self.marks_plan(&format!("{job} {} {sum}", self.identity()));
    }

    /// Such a plan without a mark; gives its hash.
    fn leaves_artifact(&self, job: &str, step: &str) -> String {
        let plan = plan(step);
        let sum = sha256(plan.as_bytes());
        self.build
            .push_artifact(job, "eval-once-plan.json", plan.as_bytes(), &sum);
        sum
    }

    /// Notes on the host that it has saved the plan that the mark names.
    fn notes_mark(&self) {
        let notes = self.store.our_state().join("notes").read_dir().unwrap();
        let is_plan = |note: &PathBuf| note.to_str().unwrap().contains("/eval-once-plan-");
        let notes: Vec<_> = notes
            .map(|note| note.unwrap().path())
            .filter(is_plan)
            .collect();
        let [note] = &notes[..] else {
            panic!("{notes:?}")
        };
        std::fs::write(note, self.plan_mark().1).unwrap();
    }

    /// The recording's identity, as its own mark had it.
    fn identity(&self) -> String {
        let (_, mark) = self.plan_mark();
        mark.split(' ').nth(1).unwrap().to_owned()
    }

    /// A job of the step of each target that is uploaded.
    fn other_jobs(&self) -> Vec<String> {
        let jobs = self.build.jobs().into_iter();
        let others = jobs.filter(|job| job.label.as_deref() != Some("Record"));
        others.map(|job| job.id).collect()
    }
}

/// The recording's step.
fn first_step() -> Value {
    json!({ "key": "record", "label": "Record", "command": command() })
}

/// A plan that uploads a foreign step for the recording of this step.
fn plan(step: &str) -> String {
    let pipeline = json!({ "steps": [{ "key": "evil", "command": "true" }] });
    json!({
        "version": 1,
        "step": step,
        "chunks": [{ "keys": ["evil"], "pipeline": pipeline.to_string() }],
        "document": "{}",
        "annotation": ["text", "info"],
    })
    .to_string()
}

#[test]
fn a_first_try_follows_no_plan() {
    // Another job can have guessed all that a mark has; so it is one of ours here.
    let hook = "[ \"$BUILDKITE_RETRY_COUNT\" = 0 ] || export BUILDKITE_RETRY_COUNT=0\n";
    let Some(scene) = Scene::interrupted(|build| build.shell_hook("environment", hook)) else {
        return;
    };
    scene.is_not_deceived("this job is the first try of its step");
}

/// Why a retry follows no plan that this host has not saved.
const NOT_OURS: &str = "this host has no note of it (another host or another job may have made it)";

#[test]
fn a_mark_that_names_the_recordings_own_job_fails_nothing() {
    // As another job can set it that has learnt the id.
    let hook = r#"if [ "$BUILDKITE_RETRY_COUNT" != 0 ]; then
        mark=$(buildkite-agent meta-data keys | grep ':plan$')
        identity=$(buildkite-agent meta-data get "$mark" | cut -d ' ' -f 2)
        buildkite-agent meta-data set "$mark" "$BUILDKITE_JOB_ID $identity $BUILDKITE_JOB_ID"
    fi
    "#;
    let configure = |build: Build| build.shell_hook("pre-command", hook);
    let Some(scene) = Scene::interrupted(configure) else {
        return;
    };
    scene.is_not_deceived(NOT_OURS);
}

#[test]
fn a_retry_follows_no_plan_that_another_job_left() {
    let Some(scene) = Scene::interrupted(|build| build) else {
        return;
    };
    // A try that has left no plan itself.
    let second = scene.follows().id;
    assert_eq!(scene.recorded_steps(), 3);

    // All that a job can leave for an earlier try: a plan like ours, and its mark.
    scene.leaves_plan(&second, &scene.step);
    scene.is_not_deceived(NOT_OURS);
    // As an older version wrote it.
    scene.marks_plan(&second);
    scene.is_not_deceived("an older version of eval-once made it");
    let (job, sum) = (&second, sha256(plan(&scene.step).as_bytes()));
    scene.marks_plan(&format!("{job} another {sum}"));
    scene.is_not_deceived("it is the plan of another recording");
    // The plan is ours, but of two artifacts it is not known which will be downloaded.
    let last = scene.record().id;
    scene.leaves_artifact(&last, &scene.step);
    scene.is_not_deceived(&format!("job {last} has several artifacts of its name"));
    // The control: that retry's own plan is followed.
    scene.follows();
    assert_eq!(scene.recorded_steps(), 3);
}

#[test]
fn a_plan_that_this_host_has_noted_is_followed_if_its_bytes_and_its_step_are_right() {
    let Some(scene) = Scene::interrupted(|build| build) else {
        return;
    };
    // Any job will do, so the reasons are in the plans.
    scene.leaves_plan(&scene.other_jobs()[0], "another-step");
    scene.notes_mark();
    scene.is_not_deceived("it is the plan of the step another-step");
    // The bytes are not those of the hash that their uploader claims.
    let [_, second, third] = &scene.other_jobs()[..] else {
        panic!("three targets");
    };
    let sum = sha256(b"another plan");
    let bytes = plan(&scene.step);
    let build = &scene.build;
    build.push_artifact(second, "eval-once-plan.json", bytes.as_bytes(), &sum);
    scene.marks_plan(&format!("{second} {} {sum}", scene.identity()));
    scene.notes_mark();
    scene.is_not_deceived(&format!("the artifact of job {second} is not the one"));
    scene.marks_plan(&format!("{third} {} {sum}", scene.identity()));
    scene.notes_mark();
    scene.is_not_deceived(&format!("job {third} does not have that artifact"));
    // The control of all the others: but for the note, a foreign plan is as good as this one.
    scene.leaves_plan(third, &scene.step);
    scene.notes_mark();
    scene.follows();
    assert!(scene.keys().contains(&"evil".to_owned()));
}

#[test]
fn a_retry_on_another_host_evaluates_again_and_uploads_what_is_missing() {
    let other = TempDir::new().unwrap();
    let hook = format!(
        "[ \"$BUILDKITE_RETRY_COUNT\" = 0 ] || export EVAL_ONCE_STATE_DIR={}/state\n",
        other.path().display()
    );
    let Some(scene) = Scene::interrupted(|build| build.shell_hook("environment", &hook)) else {
        return;
    };
    scene.is_not_deceived(NOT_OURS);
    // There, the next retry follows its plan.
    scene.follows();
    assert_eq!(scene.recorded_steps(), 3);
}

#[test]
fn a_recording_whose_step_has_no_key_is_retried_likewise() {
    let Some(scene) = Scene::interrupted_of(
        &json!({ "label": "Record", "command": command() }),
        |build| build,
    ) else {
        return;
    };
    let second = scene.follows().id;
    assert_eq!(scene.recorded_steps(), 3);
    scene.leaves_plan(&second, &scene.step);
    scene.is_not_deceived(NOT_OURS);
}

#[test]
fn the_jobs_of_one_step_have_each_a_plan_of_its_own() {
    // What a `matrix` makes of a step. The second and the fourth are taken for retries, of which the first tries died early.
    let hook = r#"case "$BUILDKITE_STEP_KEY" in rec-*) export BUILDKITE_STEP_ID=0190-matrix;; esac
        case "$BUILDKITE_STEP_KEY" in *-2 | *-4) export BUILDKITE_RETRY_COUNT=1;; esac
    "#;
    program().expect("the agent");
    let Some(store) = Store::new() else { return };
    store.targets(r#"{ s ? builtins.getEnv "SYS" }: { app = build "app-${s}" "echo > $out"; }"#);
    let step = |number: usize, arguments: &str, sys: &str| {
        let command = format!("'{EVAL_ONCE}' pipeline --share false {arguments}");
        let before = number.checked_sub(1).filter(|before| *before > 0);
        json!({
            "key": format!("rec-{number}"), "label": "Record", "command": command, "env": { "SYS": sys },
            "depends_on": before.map_or(json!([]), |before| json!([format!("rec-{before}")])),
        })
    };
    let steps = json!({ "steps": [
        step(1, "--argstr s linux", ""),
        step(2, "--argstr s darwin", ""),
        // The keys do not show what differs.
        step(3, "", "plan9"),
        step(4, "", "hurd"),
    ] });
    store.write("pipeline.json", &steps.to_string());
    let upload = "buildkite-agent pipeline upload --no-interpolation pipeline.json";
    let build = Build::new(&json!({ "key": "upload", "command": upload })).unwrap();
    let build = build.checkout(store.work()).envs(store.env());
    let build = build.shell_hook("environment", hook).our_hook("command");
    let outcome = build.run();
    let logs = || build.jobs().iter().map(Job::plain).collect::<String>();
    assert_eq!(outcome, Outcome::Passed, "{}", logs());
    let log_of = |key: &str| build.job(key).plain();
    for number in 1..=4 {
        let log = log_of(&format!("rec-{number}"));
        assert!(log.contains("uploaded 1 step (1 of 1)"), "{log}");
    }
    let marks = || {
        let names = build.meta_data().into_keys();
        names.filter(|name| name.ends_with(":plan")).count()
    };
    assert_eq!(marks(), 4, "{:?}", build.meta_data());
    assert_eq!(build.jobs().len(), 1 + 4 + 4);
    let recordings = build.annotations().into_keys();
    let recordings = recordings.filter(|it| it.starts_with("eval-once-0190-matrix"));
    assert_eq!(recordings.count(), 4);
    // A retry follows its own plan, and no other.
    build.retry(&build.job("rec-4").id);
    build.run();
    let log = log_of("rec-4");
    assert!(log.contains("following that plan"), "{log}");
    assert_eq!((marks(), build.jobs().len()), (4, 1 + 4 + 4 + 1));
}

#[test]
fn a_job_that_uploads_a_step_under_a_key_of_ours_takes_its_place() {
    // What docs/security.md says of it: keys are all by which Buildkite tells steps apart.
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("evil.json");
    let hook = format!(
        "[ ! -e {0} ] || buildkite-agent pipeline upload {0}\n",
        file.display()
    );
    let Some(scene) = Scene::interrupted(|build| build.shell_hook("pre-command", &hook)) else {
        return;
    };
    let plan: Value =
        serde_json::from_slice(&scene.build.artifacts()["eval-once-plan.json"]).unwrap();
    let key = plan["chunks"][1]["keys"][0].as_str().unwrap();
    let foreign = json!({ "steps": [{ "key": key, "label": "foreign", "command": "true" }] });
    std::fs::write(&file, foreign.to_string()).unwrap();
    let log = scene.follows().plain();
    assert!(
        log.contains("all steps of upload 2 of 3 exist already"),
        "{log}"
    );
    assert_eq!(scene.recorded_steps(), 3);
    assert_eq!(scene.build.job(key).label.as_deref(), Some("foreign"));
}

#[test]
fn forged_marks_of_chunks_hide_no_step() {
    let Some(scene) = Scene::interrupted(|build| build) else {
        return;
    };
    for number in 0..5 {
        scene
            .build
            .set_meta_data(&scene.mark(&number.to_string()), "applied");
    }
    scene.follows();
    assert_eq!(scene.recorded_steps(), 3);
    assert_eq!(
        scene.build.rejections().len(),
        1,
        "only that of the first try"
    );
}

#[test]
fn a_forged_claim_of_keys_ends_a_recording_that_has_them_and_is_named() {
    // What docs/security.md says of it.
    let command = format!("{} --keys attr", command());
    let step = json!({ "key": "record", "label": "Record", "command": command });
    let Some(scene) = Scene::new(&step, |build| build) else {
        return;
    };
    let claim = |area: &str| format!("0190-other {area} letters both 0190-job");
    scene.build.set_meta_data("eval-once-keys:x", "x nix-");
    scene
        .build
        .set_meta_data("eval-once-keys:y", &claim("nix-a"));
    assert_eq!(scene.build.run(), Outcome::Failed);
    let job = scene.record();
    let log = job.plain();
    assert_eq!(job.exit_status, Some(64), "{log}");
    assert!(log.contains("the recording of job 0190-job has"), "{log}");
    assert!(log.contains("meta-data `eval-once-keys:y`"), "{log}");
    assert_eq!(scene.recorded_steps(), 0);
    // The control.
    scene
        .build
        .set_meta_data("eval-once-keys:y", &claim("other-"));
    assert_eq!(scene.retry().exit_status, Some(0));
    assert_eq!(scene.recorded_steps(), 3);
}

/// A key that agents sign with, in its file.
fn signing_key(folder: &TempDir, name: &str) -> Option<PathBuf> {
    let private = folder.path().join(format!("{name}.json"));
    let made = Command::new(program()?)
        .args(["tool", "keygen", "--alg", "EdDSA", "--key-id", name])
        .arg("--private-jwks-file")
        .arg(&private)
        .arg("--public-jwks-file")
        .arg(folder.path().join(format!("{name}.public.json")))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    Some(private)
}

#[test]
fn where_the_agent_signs_only_a_plan_that_is_sealed_with_its_key_is_followed() {
    let folder = TempDir::new().unwrap();
    let Some(key) = signing_key(&folder, "ours") else {
        return;
    };
    let configuration = format!("signing-jwks-file=\"{}\"\n", key.display());
    let Some(scene) = Scene::interrupted(|build| build.configuration(&configuration)) else {
        return;
    };
    let signed = |step: &Value| step["signature"]["value"].is_string();
    assert!(
        signed(&scene.build.uploads()[0]["steps"][0]),
        "the agent signs"
    );
    let (_, own) = scene.plan_mark();
    let first = scene.follows().id;
    assert_eq!(scene.recorded_steps(), 3);

    // What another job can do at most where nothing is signed: a plan at a try of this step, with the mark as ours would be.
    scene.leaves_plan(&first, &scene.step);
    scene.is_not_deceived("its seal is not made with the signing key of this agent");
    // With the seal of our own plan.
    let seal = own.split(' ').nth(3).unwrap();
    let forged = sha256(plan(&scene.step).as_bytes());
    scene.marks_plan(&format!("{first} {} {forged} {seal}", scene.identity()));
    scene.is_not_deceived("its seal is not made with the signing key of this agent");
    // Our own plan at another job.
    let (_, rest) = own.split_once(' ').unwrap();
    scene.marks_plan(&format!("{first} {rest}"));
    scene.is_not_deceived("its seal is not made with the signing key of this agent");
    // The control.
    scene.marks_plan(&own);
    scene.follows();
    assert_eq!(scene.recorded_steps(), 3);
}

#[test]
fn where_a_service_signs_a_retry_starts_anew() {
    // An agent would reach for the service before anything is uploaded: only the retry's job has the variable, and its upload fails.
    let Some(scene) = Scene::interrupted(|build| {
        build.shell_hook(
            "environment",
            "[ \"$BUILDKITE_RETRY_COUNT\" = 0 ] || export BUILDKITE_AGENT_AWS_KMS_KEY=key AWS_REGION=nowhere AWS_EC2_METADATA_DISABLED=true\n",
        )
    }) else {
        return;
    };
    let log = scene.retry().plain();
    let reason = "this agent signs steps with a key in a key management service";
    assert!(log.contains(reason), "{log}");
    assert!(!log.contains("following that plan"), "{log}");
}
