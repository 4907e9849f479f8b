//! What other jobs of a build can do to a recording: they can set any meta-data, and upload artifacts for any job. A retry follows
//! no plan of theirs, and skips no step because of their marks.

use std::process::Command;

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

/// A build of which the recording uploads each target in a chunk of its own.
struct Scene {
    build: Build,
    step: String,
    _store: Store,
}

impl Scene {
    /// The build before its first job.
    fn new(configure: impl FnOnce(Build) -> Build) -> Option<Self> {
        program()?;
        let store = Store::new()?;
        store.targets(TARGETS);
        let build = Build::new(&json!({
            "key": "record",
            "label": "Record",
            "command": format!("'{EVAL_ONCE}' pipeline --chunk 1"),
        }))?
        .checkout(store.work())
        .envs(store.env());
        let build = configure(build);
        let step = build.job("record").step_id;
        Some(Self {
            build,
            step,
            _store: store,
        })
    }

    /// The build after a try of the recording whose second chunk was rejected.
    fn interrupted(configure: impl FnOnce(Build) -> Build) -> Option<Self> {
        let scene = Self::new(configure)?;
        scene
            .build
            .on_upload(2, Fault::Reject("Not today".to_owned()));
        assert_eq!(scene.build.run(), Outcome::Failed);
        let job = scene.build.job("record");
        assert!(job.plain().contains("Not today"), "{}", job.plain());
        assert_eq!(scene.recorded_steps(), 1);
        Some(scene)
    }

    /// The recording once more.
    #[track_caller]
    fn retry(&self) -> Job {
        self.build.retry(&self.build.job("record").id);
        self.build.run();
        self.build.job("record")
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
        let keys: Vec<String> = self.keys();
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

    /// Sets the mark of the plan.
    fn marks_plan(&self, value: &str) {
        self.build.set_meta_data(&self.mark("plan"), value);
    }

    /// A plan that uploads a foreign step instead of the recorded ones, left at this job and marked in the way that ours are.
    fn leaves_plan(&self, job: &str, step: &str) {
        let plan = plan(step);
        let sum = sha256(plan.as_bytes());
        self.build
            .push_artifact(job, "eval-once-plan.json", plan.as_bytes(), &sum);
        self.marks_plan(&format!("{job} {} {sum}", self.identity()));
    }

    /// The recording's identity, as its own mark had it.
    fn identity(&self) -> String {
        let mark = self.build.meta_data()[&self.mark("plan")].clone();
        mark.split(' ').nth(1).unwrap().to_owned()
    }

    /// Any job of the step of a target.
    fn other_job(&self) -> String {
        let jobs = self.build.jobs();
        let is_other = |job: &&Job| job.key.as_deref() != Some("record");
        jobs.iter().find(is_other).unwrap().id.clone()
    }
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
    let Some(scene) = Scene::new(|build| build) else {
        return;
    };
    let plan = plan(&scene.step);
    scene.marks_plan(&format!("0190-other x {}", sha256(plan.as_bytes())));
    scene.build.run();
    let job = scene.build.job("record");
    let log = job.plain();
    assert_eq!(job.exit_status, Some(0), "{log}");
    assert!(
        log.contains("this job is the first try of its step"),
        "{log}"
    );
    assert_eq!(scene.recorded_steps(), 3);
}

#[test]
fn a_retry_follows_no_plan_that_another_job_left() {
    let Some(scene) = Scene::interrupted(|build| build) else {
        return;
    };
    let first = scene.build.job("record").id;
    let own = scene.build.meta_data()[&scene.mark("plan")].clone();

    // The plan is at the job of another step.
    scene.leaves_plan(&scene.other_job(), &scene.step);
    scene.is_not_deceived("no try of this step, job ");
    // The mark names the first try, whose plan is another.
    let sum = sha256(b"another plan");
    scene.marks_plan(&format!("{first} {} {sum}", scene.identity()));
    scene.is_not_deceived(&format!(
        "the artifact of job {first} is not the one that its mark names"
    ));
    // As an older version wrote it.
    scene.marks_plan(&first);
    scene.is_not_deceived("an older version of eval-once made it");
    // A job that does not exist.
    scene.marks_plan(&format!("0190-nonesuch x {sum}"));
    scene.is_not_deceived("no try of this step, job 0190-nonesuch,");

    // The control: the first try's own plan is followed. This retry leaves none itself.
    scene.marks_plan(&own);
    let second = scene.follows().id;
    assert_eq!(scene.recorded_steps(), 3);
    // A plan at a try of this very step, of another step; and one whose bytes are not those of the hash that its uploader claims.
    scene.leaves_plan(&second, "another-step");
    scene.is_not_deceived("it is the plan of the step another-step");
    scene.marks_plan(&own);
    let third = scene.follows().id;
    scene.build.push_artifact(
        &third,
        "eval-once-plan.json",
        plan(&scene.step).as_bytes(),
        &sum,
    );
    scene.marks_plan(&format!("{third} {} {sum}", scene.identity()));
    scene.is_not_deceived(&format!("the artifact of job {third} is not the one"));
    // Of two it is not known which of them will be downloaded.
    scene.leaves_plan(&first, &scene.step);
    scene.marks_plan(&own);
    scene.is_not_deceived(&format!("job {first} has several artifacts of its name"));
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

/// A key that agents sign with, in its file.
fn signing_key(folder: &TempDir, name: &str) -> Option<std::path::PathBuf> {
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
    let own = scene.build.meta_data()[&scene.mark("plan")].clone();
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
fn where_nothing_is_signed_a_job_that_uploads_for_an_earlier_try_gets_its_steps_into_the_build() {
    // What docs/security.md says of it; and the control of the tests above, whose plans are as good as this one.
    let Some(scene) = Scene::interrupted(|build| build) else {
        return;
    };
    let second = scene.follows().id;
    scene.leaves_plan(&second, &scene.step);
    scene.follows();
    assert!(scene.keys().contains(&"evil".to_owned()));
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
