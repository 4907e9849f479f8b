//! Recordings in builds of real agents, of which one request to Buildkite goes wrong: the job is killed, the answer is lost, it is 500, it
//! never comes. The build passes, no step is lost, and none is there twice.
//!
//! All requests of the recording's job go through a [proxy](crate::proxy), that of each artifact's content apart, which goes to
//! where Buildkite says.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::{Value, json};

use crate::{
    place::Place,
    proxy::{Mishap, Proxy},
    seed::Random,
    stage::Stage,
    support::{
        EVAL_ONCE,
        buildkite::{Build, Outcome},
        processes::{kill_marked, marked},
        target::expression,
        until,
    },
};

/// Whether the recording went on in the same job or in a retry.
pub(crate) const COLUMNS: [&str; 3] = ["went on", "retried", "no such"];

/// Five steps in chunks of two, one of which waits for another.
const TARGETS: &str = r#"rec {
  a = file "a";
  b = file "b";
  c = build "c" "read x < ${b}; echo $x c > $out";
  d = build "d" "read x < ${c}; echo $x d > $out";
  e = file "e";
}"#;

const STEPS: usize = 5;

/// What happens, and the names of it; what takes a minute comes last.
const MISHAPS: [(Mishap, &str); 6] = [
    (Mishap::KilledBefore, "killed before"),
    (Mishap::KilledAfter, "killed after"),
    (Mishap::AnswerLost, "answer lost"),
    (Mishap::Answers500, "500"),
    (Mishap::Hangs, "never answered"),
    (Mishap::HangsAfter, "never answered, done"),
];

/// How many of those take no minute.
const QUICK: usize = 4;

/// How many requests there are when nothing goes wrong; measured by each run.
struct Scene {
    place: Place,
    requests: AtomicUsize,
}

/// Runs the part.
pub(crate) fn run(stage: &Stage) {
    if crate::support::agent::program().is_none() {
        return;
    }
    let targets = expression(TARGETS);
    let prepare = || {
        let scene = Scene {
            place: Place::new(stage, false, &targets),
            requests: AtomicUsize::new(0),
        };
        let done = build(stage, &scene, None);
        assert_eq!(done.outcome, Ok(()), "without a mishap: {}", done.log);
        assert!(done.requests > 0, "no request came by: {}", done.log);
        scene.requests.store(done.requests, Ordering::SeqCst);
        scene
    };
    stage.run(2, prepare, |scene, seed| trial(stage, scene, seed));
}

fn trial(stage: &Stage, scene: &Scene, seed: u64) {
    let mut random = Random::of(seed);
    // A seed is for one request, whatever their number is.
    let at = random.part();
    let mut mishap = random.below(QUICK);
    if random.one_in(8) {
        // They take a minute each: the agent's own time for an answer.
        if !stage.is_patient() {
            return;
        }
        mishap = QUICK + random.below(MISHAPS.len() - QUICK);
    }
    let (mishap, row) = MISHAPS[mishap];
    let requests = scene.requests.load(Ordering::SeqCst);
    let nth = 1 + scaled(at, requests);
    let done = build(stage, scene, Some((nth, mishap)));
    stage.tally.tried(row);
    match done.outcome {
        Ok(()) if !done.has_happened => stage.tally.count(row, "no such"),
        Ok(()) if done.retries > 0 => stage.tally.count(row, "retried"),
        Ok(()) => stage.tally.count(row, "went on"),
        Err(what) => {
            let log = format!("{mishap:?} at request {nth} of {requests}\n{}", done.log);
            stage
                .tally
                .wrong(row, seed, &format!("at request {nth}: {what}"), &log);
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a part of a small number"
)]
fn scaled(part: f64, whole: usize) -> usize {
    (part * whole as f64) as usize
}

/// A build that is over.
struct Done {
    outcome: Result<(), String>,
    has_happened: bool,
    requests: usize,
    retries: usize,
    log: String,
}

fn build(stage: &Stage, scene: &Scene, mishap: Option<(usize, Mishap)>) -> Done {
    let folder = tempfile::Builder::new()
        .prefix("storm")
        .tempdir_in("/tmp")
        .unwrap();
    stage.stop.remember(folder.path());
    let job = Arc::new(folder.path().join("job"));
    let proxy = Proxy::start(mishap, move || {
        let id = fs::read_to_string(&*job).unwrap();
        let id = id.trim();
        until("the job is gone", || {
            kill_marked(id);
            marked(id).is_empty()
        });
    });
    let retry = json!({ "automatic": [
        { "exit_status": 75, "limit": 2 },
        { "exit_status": -1, "signal_reason": "none", "limit": 2 },
    ] });
    let first = json!({
        "key": "record",
        "label": "Record",
        // Agents of v4 let no hook change it.
        "command": format!(
            "BUILDKITE_AGENT_ENDPOINT={} {EVAL_ONCE} pipeline --file default.nix --chunk 2 --skip none",
            proxy.url()
        ),
        "retry": retry,
    });
    let at = folder.path().display();
    // What the agent itself does is not ours, so it asks Buildkite as ever.
    let hook = format!(
        "if [ \"$BUILDKITE_STEP_KEY\" = record ]; then\n\
           printf %s \"$BUILDKITE_JOB_ID\" >{at}/new && mv {at}/new {at}/job\n\
           printf %s \"$BUILDKITE_AGENT_ENDPOINT\" >{at}/endpoint\n\
           until [ -e {at}/ready ]; do sleep 0.01; done\n\
         fi\n"
    );
    let build = Build::new(&first)
        .unwrap()
        .checkout(scene.place.store.work())
        .our_hook("command")
        .shell_hook("pre-command", &hook)
        .envs(scene.place.store.env());
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            // The address is known only to the jobs.
            let endpoint = folder.path().join("endpoint");
            let mut text = String::new();
            until("the recording's job has begun", || {
                text = fs::read_to_string(&endpoint).unwrap_or_default();
                text.ends_with("/v3")
            });
            let server = text.trim_start_matches("http://").trim_end_matches("/v3");
            proxy.set_server(server);
            fs::write(folder.path().join("ready"), "").unwrap();
        });
        build.run()
    });
    let jobs = build.jobs();
    let retries = jobs
        .iter()
        .filter(|job| job.key.as_deref() == Some("record"))
        .count()
        - 1;
    let logs: Vec<String> = jobs
        .iter()
        .map(|job| format!("=== {:?}, {:?}\n{}", job.key, job.state, job.plain()))
        .collect();
    let log = format!("{}\n{}", proxy.log(), logs.join("\n"));
    Done {
        outcome: judge(&build, &outcome),
        has_happened: proxy.has_happened(),
        requests: proxy.requests(),
        retries,
        log,
    }
}

/// The build has passed, and each target has one step.
fn judge(build: &Build, outcome: &Outcome) -> Result<(), String> {
    if *outcome != Outcome::Passed {
        return Err(format!("{outcome:?}"));
    }
    let mut steps: BTreeMap<String, usize> = BTreeMap::new();
    for upload in build.uploads() {
        for step in upload["steps"].as_array().into_iter().flatten() {
            let grouped = step.get("steps").and_then(Value::as_array);
            let inner = grouped.map_or(std::slice::from_ref(step), Vec::as_slice);
            for step in inner {
                *steps.entry(step["key"].to_string()).or_default() += 1;
            }
        }
    }
    // The first step came from nobody's upload.
    steps.remove("\"record\"");
    let double: Vec<_> = steps.iter().filter(|(_, number)| **number != 1).collect();
    if steps.len() != STEPS || !double.is_empty() {
        return Err(format!(
            "{} steps instead of {STEPS}; double: {double:?}",
            steps.len()
        ));
    }
    Ok(())
}
