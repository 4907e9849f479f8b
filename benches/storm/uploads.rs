//! Recordings in builds of real agents, of which one request to Buildkite goes wrong: the job is killed, the answer is lost, it is 500, it
//! never comes. The build passes, no step is lost, and none is there twice.
//!
//! All requests of the recording's jobs go through a [proxy](crate::proxy). Seeds in a row try each pair of a request and a mishap once:
//! those of an undisturbed recording, those of a retry that follows the plan of a first try whose job was killed in the middle, and
//! those of a retry of it on another host, which evaluates again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    panic::resume_unwind,
    sync::{Arc, Mutex, OnceLock},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    place::Place,
    proxy::{Mishap, Proxy},
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

/// Of so many seeds in a row one is for a mishap that takes a minute.
const SLOW: usize = 8;

/// Which job the mishap comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Try {
    First,
    /// A retry that follows the plan.
    Resumed,
    /// A retry on another host.
    Elsewhere,
}

/// All of them, and how a row says so.
const TRIES: [(Try, &str); 3] = [
    (Try::First, ""),
    (Try::Resumed, ", in a retry"),
    (Try::Elsewhere, ", in a retry elsewhere"),
];

/// For how long the program waits for an agent that is stuck, and somewhat longer. The agent itself waits for ever where nobody takes the
/// content of an artifact.
const STUCK: Duration = Duration::from_secs(660);

/// The requests of a recording; measured by each run.
struct Requests {
    /// The first try's request that uploads its second chunk; its job is killed by that where the mishap is to come in a retry.
    second_chunk: usize,
    /// The kinds of those in each of [`TRIES`].
    of: [Vec<String>; TRIES.len()],
}

/// What a seed stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Plan {
    /// Its place in [`TRIES`].
    in_try: usize,
    /// It happens to the request of this number, from 1.
    nth: usize,
    /// Its place in [`MISHAPS`].
    mishap: usize,
}

impl Requests {
    /// What this seed stands for, among all that there is.
    fn plan(&self, seed: usize) -> Plan {
        let (seed, in_try) = (seed / TRIES.len(), seed % TRIES.len());
        let is_slow = seed % SLOW == SLOW - 1;
        let (number, first, mishaps) = if is_slow {
            (seed / SLOW, QUICK, MISHAPS.len() - QUICK)
        } else {
            (seed - seed / SLOW, 0, QUICK)
        };
        // Neighbouring seeds have nothing in common, and none is missing.
        let pairs = self.of[in_try].len() * mishaps;
        let at = number.wrapping_mul(stride(pairs)) % pairs;
        Plan {
            in_try,
            nth: 1 + at / mishaps,
            mishap: first + at % mishaps,
        }
    }
}

/// A number without a common divisor with `all`, near its golden section.
fn stride(all: usize) -> usize {
    fn divisor(a: usize, b: usize) -> usize {
        if b == 0 { a } else { divisor(b, a % b) }
    }
    let near = all * 618 / 1000;
    (near.max(1)..=all)
        .find(|it| divisor(*it, all) == 1)
        .unwrap()
}

/// Runs the part.
pub(crate) fn run(stage: &Stage) {
    if crate::support::agent::program().is_none() {
        return;
    }
    let targets = expression(TARGETS);
    let requests = OnceLock::new();
    let done = Mutex::new(BTreeSet::new());
    let hit = Mutex::new(BTreeMap::new());
    let prepare = || {
        let place = Place::new(stage, false, &targets);
        requests.get_or_init(|| measure(stage, &place));
        place
    };
    let lanes = if stage.is_patient() { 4 } else { 2 };
    stage.run(lanes, prepare, |place, seed| {
        let requests = requests.get().unwrap();
        let plan = requests.plan(usize::try_from(seed).unwrap());
        if let Some(lines) = trial(stage, place, requests, plan, seed) {
            done.lock().unwrap().insert(plan);
            for line in lines {
                *hit.lock().unwrap().entry(kind(&line)).or_default() += 1;
            }
        }
    });
    let Some(requests) = requests.get() else {
        return;
    };
    let done: BTreeSet<Plan> = done.into_inner().unwrap();
    let [first, resumed, elsewhere] = requests.of.each_ref().map(Vec::len);
    let quick = done.iter().filter(|plan| plan.mishap < QUICK).count();
    stage.tally.note(format!(
        "{first} requests of a recording, {resumed} of a retry, {elsewhere} of a retry elsewhere; tried: {quick} of {} pairs that take no minute, {} others.",
        (first + resumed + elsewhere) * QUICK,
        done.len() - quick
    ));
    let hit: BTreeMap<String, usize> = hit.into_inner().unwrap();
    let hit: Vec<_> = hit
        .iter()
        .map(|(kind, number)| format!("{number} {kind}"))
        .collect();
    if !hit.is_empty() {
        stage
            .tally
            .note(format!("Interrupted: {}.", hit.join(", ")));
    }
}

/// The kind of a request that sends the content of an artifact.
const CONTENT: &str = "content of a file";

/// What a request is about, from its first line: `POST pipelines`.
fn kind(line: &str) -> String {
    let mut words = line.split([' ', '?']);
    let method = words.next().unwrap_or_default();
    let path = words.next().unwrap_or_default();
    let Some(path) = path.strip_prefix("/v3/") else {
        return match method {
            "GET" => "GET of a file",
            _ => CONTENT,
        }
        .to_owned();
    };
    let parts: Vec<&str> = path.split('/').collect();
    let about = match &parts[..] {
        ["steps", _, rest @ ..] => format!("steps {}", rest.join(" ")),
        ["jobs" | "builds", _, "pipelines", ..] => "pipelines".to_owned(),
        ["jobs" | "builds", _, rest @ ..] => rest.join(" "),
        _ => path.to_owned(),
    };
    format!("{method} {about}")
}

/// Runs the recording once without a mishap, and twice with a job that is killed in the middle.
fn measure(stage: &Stage, place: &Place) -> Requests {
    let done = build(stage, place, Try::First, &[]);
    assert_eq!(done.outcome, Ok(()), "without a mishap: {}", done.log);
    let is_upload = |line: &&String| kind(line.split_once(' ').unwrap().1) == "POST pipelines";
    let second = done.lines.iter().filter(is_upload).nth(1);
    let second = second.unwrap_or_else(|| panic!("no second chunk: {}", done.log));
    let (second_chunk, _) = second.split_once(' ').unwrap();
    let second_chunk = second_chunk.parse().unwrap();
    let with_kill = |in_try| {
        let done = build(stage, place, in_try, &[(second_chunk, Mishap::KilledAfter)]);
        assert_eq!(done.outcome, Ok(()), "with one kill: {}", done.log);
        assert_eq!(done.retries, 1, "with one kill: {}", done.log);
        let follows = done.log.contains("following that plan");
        assert_eq!(follows, in_try == Try::Resumed, "{in_try:?}: {}", done.log);
        kinds(&done)
    };
    let (resumed, elsewhere) = thread::scope(|scope| {
        let resumed = scope.spawn(|| with_kill(Try::Resumed));
        let elsewhere = with_kill(Try::Elsewhere);
        (resumed.join(), elsewhere)
    });
    let resumed = resumed.unwrap_or_else(|panic| resume_unwind(panic));
    Requests {
        second_chunk,
        of: [kinds(&done), resumed, elsewhere],
    }
}

/// What the requests since the last mishap are about.
fn kinds(done: &Done) -> Vec<String> {
    let since = done.lines.len() - done.requests;
    let lines = done.lines[since..].iter();
    lines
        .map(|line| kind(line.split_once(' ').unwrap().1))
        .collect()
}

/// A recording and what is to happen; gives the lines of the requests to which it has, or none where that would take too long.
fn trial(
    stage: &Stage,
    place: &Place,
    requests: &Requests,
    plan: Plan,
    seed: u64,
) -> Option<Vec<String>> {
    // They take a minute each, the agent's own time for an answer; and ten where it has none.
    let is_slow = plan.mishap >= QUICK;
    let sends_content = requests.of[plan.in_try][plan.nth - 1] == CONTENT;
    if is_slow && !(stage.is_patient() && (!sends_content || stage.is_very_patient())) {
        return None;
    }
    let (mishap, name) = MISHAPS[plan.mishap];
    let (in_try, where_) = TRIES[plan.in_try];
    let row = format!("{name}{where_}");
    let mut mishaps = vec![(plan.nth, mishap)];
    if in_try != Try::First {
        mishaps.insert(0, (requests.second_chunk, Mishap::KilledAfter));
    }
    let done = build(stage, place, in_try, &mishaps);
    stage.tally.tried(&row);
    match done.outcome {
        Ok(()) if done.hit.len() < mishaps.len() => stage.tally.count(&row, "no such"),
        Ok(()) if done.retries >= mishaps.len() => stage.tally.count(&row, "retried"),
        Ok(()) => stage.tally.count(&row, "went on"),
        Err(what) => {
            let log = format!("{mishaps:?}\n{}", done.log);
            let what = format!("at request {}: {what}", plan.nth);
            stage.tally.wrong(&row, seed, &what, &log);
        }
    }
    Some(done.hit.into_iter().skip(mishaps.len() - 1).collect())
}

/// A build that is over.
struct Done {
    outcome: Result<(), String>,
    /// The first lines of the requests to which something has happened.
    hit: Vec<String>,
    /// How many there were since then.
    requests: usize,
    /// All requests, with their numbers.
    lines: Vec<String>,
    retries: usize,
    log: String,
}

fn build(stage: &Stage, place: &Place, in_try: Try, mishaps: &[(usize, Mishap)]) -> Done {
    let folder = tempfile::Builder::new()
        .prefix("storm")
        .tempdir_in("/tmp")
        .unwrap();
    stage.stop.remember(folder.path());
    let at = folder.path().display();
    let retry = json!({ "automatic": [
        { "exit_status": 75, "limit": 2 },
        { "exit_status": -1, "signal_reason": "none", "limit": 2 },
    ] });
    let first = json!({
        "key": "record",
        "label": "Record",
        // Agents of v4 let no hook change it.
        "command": format!(
            "BUILDKITE_AGENT_ENDPOINT=$(cat {at}/proxy) {EVAL_ONCE} pipeline --file default.nix --chunk 2 --skip none"
        ),
        "retry": retry,
    });
    // What the agent itself does is not ours, so it asks Buildkite as ever.
    let hook = format!(
        "if [ \"$BUILDKITE_STEP_KEY\" = record ]; then\n\
           printf %s \"$BUILDKITE_JOB_ID\" >{at}/new && mv {at}/new {at}/job\n\
           printf %s \"$BUILDKITE_AGENT_ENDPOINT\" >{at}/endpoint\n\
           until [ -e {at}/ready ]; do sleep 0.01; done\n\
         fi\n"
    );
    // Another host is one whose state folder is another.
    let environment = match in_try {
        Try::Elsewhere => {
            format!("export EVAL_ONCE_STATE_DIR={at}/host-$BUILDKITE_RETRY_COUNT\n")
        }
        Try::First | Try::Resumed => String::new(),
    };
    let mut build = Build::new(&first)
        .unwrap()
        .checkout(place.store.work())
        .our_hook("command")
        .shell_hook("environment", &environment)
        .shell_hook("pre-command", &hook)
        .envs(place.store.env());
    if mishaps.iter().any(|(_, it)| it.is_endless()) {
        build.patience = STUCK;
    }
    let job = Arc::new(folder.path().join("job"));
    let files = build.files().url();
    let files = files.trim_start_matches("http://");
    let spares = if stage.is_very_patient() {
        |_: Mishap, _: &str| false
    } else {
        // Which request it is by its number is only nearly the same in each build.
        |mishap: Mishap, line: &str| mishap.is_endless() && kind(line) == CONTENT
    };
    let proxy = Proxy::start(mishaps, files, spares, move || {
        let id = fs::read_to_string(&*job).unwrap();
        let id = id.trim();
        until("the job is gone", || {
            kill_marked(id);
            marked(id).is_empty()
        });
    });
    fs::write(folder.path().join("proxy"), proxy.url()).unwrap();
    let outcome = thread::scope(|scope| {
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
    let lines = proxy.lines();
    let log = format!("{}\n{}", lines.join("\n"), logs.join("\n"));
    Done {
        outcome: judge(&build, &outcome),
        hit: proxy.hit(),
        requests: proxy.requests(),
        lines,
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
