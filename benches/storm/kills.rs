//! Steps, recordings, uploads and fetches that are killed at random moments: TERM, INT, HUP and KILL, to our process, to the Nix that
//! it has started, to the daemon's worker, to the whole process group. Afterwards no lock is held, no link and no pin is half made,
//! nothing runs any more, and the same command succeeds.
//!
//! KILL leaves no time to end anything: what it leaves behind is counted, and is no wrong outcome.

use std::{
    fs::{self, File},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use unix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

use crate::{
    place::Place,
    seed::Random,
    stage::Stage,
    support::{
        processes::{Process, children, marked},
        program::{Program, read_json},
        recording::Pipeline,
        stand_in::StandIns,
        target::{Target, expression},
        tool, until,
    },
};

/// How the killed command ended: before the signal, with 0 all the same, by the signal (128 and more), with 75; and what KILL left.
pub(crate) const COLUMNS: [&str; 6] = ["early", "0", "128+n", "75", SURVIVED, "left"];

/// How often programs went on running after KILL: what a builder has started, above all.
const SURVIVED: &str = "run on";

/// Among so many kills there are some that leave something.
const ENOUGH: usize = 100;

/// How long everything may take to be gone: Nix that evaluates is given a second, and the machine may be busy.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// How long a command takes undisturbed, in milliseconds, as long as that is not known.
const AT_FIRST: u64 = 500;

/// How long the command itself may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(30);

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// A step that builds its `.drv`, by a builder with a child.
    Build,
    /// A step that has to evaluate, and then builds.
    Evaluation,
    /// A recording by hand.
    Recording,
    /// A recording in a job, which uploads.
    Upload,
    /// A step that fetches its `.drv` from a store.
    FetchFromStore,
    /// A step that fetches its `.drv` from an artifact of its build.
    FetchFromArtifact,
}

const WHATS: [What; 6] = [
    What::Build,
    What::Evaluation,
    What::Recording,
    What::Upload,
    What::FetchFromStore,
    What::FetchFromArtifact,
];

impl What {
    fn name(self) -> &'static str {
        match self {
            Self::Build => "step that builds",
            Self::Evaluation => "step that evaluates",
            Self::Recording => "recording",
            Self::Upload => "upload",
            Self::FetchFromStore => "fetch from a store",
            Self::FetchFromArtifact => "fetch of an artifact",
        }
    }

    /// It is a step, and makes a link.
    fn is_step(self) -> bool {
        !matches!(self, Self::Recording | Self::Upload)
    }

    fn index(self) -> usize {
        WHATS.iter().position(|what| *what == self).unwrap()
    }
}

/// Who gets the signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    Us,
    Nix,
    Worker,
    Group,
}

impl To {
    fn name(self) -> &'static str {
        match self {
            Self::Us => "us",
            Self::Nix => "Nix",
            Self::Worker => "the daemon's worker",
            Self::Group => "the group",
        }
    }
}

/// One kill.
#[derive(Clone, Copy, Debug)]
struct Plan {
    place: usize,
    what: What,
    to: To,
    signal: Signal,
    /// When it comes, as a part of the time that the command takes undisturbed.
    at: f64,
}

impl Plan {
    fn of(seed: u64) -> Self {
        let mut random = Random::of(seed);
        let place = random.below(2);
        let what = random.pick(&WHATS);
        let to = match random.pick(&[To::Us, To::Us, To::Nix, To::Worker, To::Group]) {
            // Without a daemon there is none.
            To::Worker if place == 0 => To::Nix,
            to => to,
        };
        let signals = [
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGHUP,
            Signal::SIGKILL,
        ];
        Self {
            place,
            what,
            to,
            signal: random.pick(&signals),
            at: random.part(),
        }
    }
}

/// The targets: one that takes a moment to build, and some that take a moment to evaluate.
fn targets() -> String {
    let sleep = tool("sleep").unwrap();
    let sleep = sleep.display();
    let other = |number: usize| format!("t{number} = slow (file \"t{number}\");\n");
    let others: String = (0..12).map(other).collect();
    format!(
        r#"let
  slow = builtins.seq (builtins.foldl' (a: b: a + b) 0 (builtins.genList (n: n) 100000));
  patient = name: build name "{sleep} 0.2 & wait; read x <${{file "dep-of-${{name}}"}}; echo $x >$out";
in {{
  building = patient "building";
  evaluating = slow (slow (patient "evaluating"));
  fetched = patient "fetched";
  all = {{ recurseForDerivations = true; fetched = patient "fetched"; {others} }};
}}"#
    )
}

/// The agent: it takes everything, gives back artifacts, and knows of no earlier try.
const AGENT: &str = r#"#!/bin/sh
for last; do :; done
case "$1 $2" in
  '--version '*) echo 'buildkite-agent version 3.137.0, build 1' ;;
  'artifact upload') cp "$3" LEFT/ ;;
  'artifact download') cp LEFT/"${3%\*}" "$4" ;;
  'pipeline upload') cp "$last" LEFT/pipeline-"$$".json ;;
esac
"#;

/// A place, and what is killed there.
struct Scene {
    place: Place,
    building: Target,
    evaluating: Target,
    fetched: Target,
    /// The record of a step that has a share in an artifact.
    artifact_record: Value,
    /// The URL of a store with the `.drv`.
    cache: String,
    /// How long each took when it was last undisturbed, in milliseconds.
    typical: [AtomicU64; WHATS.len()],
}

impl Scene {
    fn new(place: Place) -> Self {
        let left = place.store.root().join("left");
        fs::create_dir(&left).unwrap();
        let agent = AGENT.replace("LEFT", left.to_str().unwrap());
        StandIns::new(place.store.bin()).instead("buildkite-agent", &agent);
        let target = |attribute| place.store.target(attribute);
        let fetched = target("fetched");
        let mut scene = Self {
            building: target("building"),
            evaluating: target("evaluating"),
            cache: place.store.cache("cache", [&fetched.drv]),
            fetched,
            artifact_record: Value::Null,
            typical: std::array::from_fn(|_| AtomicU64::new(AT_FIRST)),
            place,
        };
        scene.artifact_record = scene.record_with_artifact();
        scene
    }

    /// Records in a job, whose archive stays, and gives the record of `fetched`.
    fn record_with_artifact(&self) -> Value {
        self.command(What::Upload).run().exits(0);
        let left = self.left();
        for entry in left.read_dir().unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if !name.starts_with("pipeline-") {
                continue;
            }
            let steps = Pipeline {
                json: read_json(&path),
            }
            .steps()
            .into_values();
            for step in steps {
                if step.record["drv"] == *self.fetched.drv {
                    assert!(step.record["share"].is_string(), "{}", step.record);
                    return step.record;
                }
            }
        }
        panic!("the recording has uploaded no step for `fetched`")
    }

    fn left(&self) -> PathBuf {
        self.place.store.root().join("left")
    }

    /// Where steps make their links.
    fn links(&self) -> PathBuf {
        self.place.store.root().join("links")
    }

    /// The target of a step.
    fn target(&self, what: What) -> &Target {
        match what {
            What::Build => &self.building,
            What::Evaluation => &self.evaluating,
            _ => &self.fetched,
        }
    }

    fn command(&self, what: What) -> Program {
        let place = &self.place;
        let link = self.links().join("result");
        let link = ["--out-link", link.to_str().unwrap()];
        let step = |arguments: &[&str]| place.eval_once(&["step"]).args(link).args(arguments);
        let record = [
            "pipeline",
            "--file",
            "default.nix",
            "--attr",
            "all",
            "--skip",
            "none",
        ];
        match what {
            What::Build => step(&["--drv", &self.building.drv]),
            What::Evaluation => step(&["--file", "default.nix", "--attr", "evaluating"]),
            What::Recording => place.eval_once(&record).arg("--dry-run"),
            What::Upload => self.in_job(place.eval_once(&record).args(["--chunk", "4"])),
            What::FetchFromStore => step(&["--drv", &self.fetched.drv, "--share", &self.cache]),
            What::FetchFromArtifact => {
                let mut record = self.artifact_record.clone();
                record["out-link"] = link[1].into();
                let step = place.eval_once(&["step"]);
                self.in_job(step.env("EVAL_ONCE_STEP", record.to_string()))
            }
        }
    }

    fn in_job(&self, program: Program) -> Program {
        let mut path = self.place.store.bin().into_os_string();
        path.push(":");
        path.push(self.place.store.path());
        program.env("PATH", path).envs([
            ("BUILDKITE", "true"),
            ("BUILDKITE_AGENT_ACCESS_TOKEN", "x"),
            ("BUILDKITE_BUILD_ID", "0190c1a2-0000-4000-8000-000000000003"),
            ("BUILDKITE_JOB_ID", "0190c1a2-0000-4000-8000-000000000001"),
            ("BUILDKITE_STEP_ID", "0190c1a2-0000-4000-8000-000000000002"),
        ])
    }

    /// Takes away what an earlier run has made, so that there is something to do.
    fn prepare(&self, what: What) {
        let state = self.place.store.our_state();
        let links = self.links();
        for folder in [state.join("pins"), state.join("shares"), links.clone()] {
            if folder.exists() {
                fs::remove_dir_all(folder).unwrap();
            }
        }
        fs::create_dir(links).unwrap();
        for entry in self.left().read_dir().unwrap() {
            let path = entry.unwrap().path();
            // The archives are for the steps that fetch.
            if path.extension().is_none_or(|extension| extension != "tar") {
                fs::remove_file(path).unwrap();
            }
        }
        if !what.is_step() {
            self.place.store.collect();
            return;
        }
        let target = self.target(what);
        self.place.store.collect();
        assert!(
            !self.place.store.has(target.out()),
            "{} is kept",
            target.out()
        );
        if what == What::Build {
            self.place.store.target("building");
        }
    }

    /// Runs a command to its end, which is to be a good one.
    fn succeeds(&self, what: What) -> Result<(), String> {
        let ended = self.command(what).run();
        let took = u64::try_from(ended.took.as_millis()).unwrap();
        self.typical[what.index()].store(took, Ordering::SeqCst);
        if !ended.status.success() {
            return Err(format!("the same command again: {}\n{ended}", ended.status));
        }
        if what.is_step() && !self.link_is_whole(what)? {
            return Err(format!("the same command again made no link\n{ended}"));
        }
        self.pins_are_whole()
    }

    /// Whether there is a link; one that is there leads to the valid output.
    fn link_is_whole(&self, what: What) -> Result<bool, String> {
        let out = self.target(what).out();
        let link = self.links().join("result");
        match fs::read_link(&link) {
            Err(_) if link.symlink_metadata().is_err() => Ok(false),
            Ok(target) if target == Path::new(out) && self.place.invalid(&[out]).is_empty() => {
                Ok(true)
            }
            other => Err(format!("the link is half made: {other:?}, {out}")),
        }
    }

    /// A pin that is there is valid, with all that it refers to, and says until when it is kept.
    fn pins_are_whole(&self) -> Result<(), String> {
        let pins = self.place.store.our_state().join("pins");
        for pin in entries(&pins) {
            let link = pin.join("pin");
            if link.symlink_metadata().is_err() {
                continue;
            }
            let path =
                fs::read_link(&link).map_err(|error| format!("{}: {error}", link.display()))?;
            let path = path.to_str().unwrap();
            if !self.place.invalid(&[path]).is_empty() {
                return Err(format!("the pin {path} is not valid"));
            }
            let references = self
                .place
                .store
                .nix("nix-store", ["--query", "--references", path]);
            let references: Vec<&str> = references.lines().collect();
            let invalid = self.place.invalid(&references);
            let keep = fs::read(pin.join("keep.json")).unwrap_or_default();
            let until = serde_json::from_slice::<Value>(&keep).ok();
            if references.is_empty() || !invalid.is_empty() || until.is_none() {
                return Err(format!(
                    "the pin {path} is half made: {} references, of which {invalid:?} are not valid, kept until {until:?}",
                    references.len()
                ));
            }
        }
        Ok(())
    }

    /// The locks in our state folder that a process still has.
    fn held_locks(&self) -> Vec<PathBuf> {
        let files = files_below(&self.place.store.our_state());
        let is_lock = |file: &PathBuf| {
            let name = file.file_name().unwrap().to_string_lossy();
            name == "lock" || name.ends_with(".lock")
        };
        let is_held = |file: &PathBuf| {
            File::open(file)
                .is_ok_and(|open| matches!(open.try_lock(), Err(fs::TryLockError::WouldBlock)))
        };
        files.into_iter().filter(is_lock).filter(is_held).collect()
    }

    /// What a process that could end in order would have removed: roots, conversations, links of another name, temporary files of
    /// ours and in pins.
    fn leftovers(&self) -> Vec<PathBuf> {
        let state = self.place.store.our_state();
        let mut left = [
            entries(&state.join("roots")),
            entries(&state.join("conversations")),
        ]
        .concat();
        left.extend(
            entries(&self.links())
                .into_iter()
                .filter(|it| !it.ends_with("result")),
        );
        let temporary = entries(&self.place.store.root().join("tmp"));
        // Nix has its own there.
        let is_ours = |path: &PathBuf| {
            !path
                .file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("nix-")
        };
        left.extend(temporary.into_iter().filter(is_ours));
        for pin in entries(&state.join("pins")) {
            let is_known = |path: &PathBuf| {
                let known = ["lock", "pin", "keep.json", "found.json"];
                known.iter().any(|name| path.ends_with(name))
            };
            left.extend(entries(&pin).into_iter().filter(|path| !is_known(path)));
        }
        left
    }

    /// Removes what KILL leaves, so that the next trial finds only what is its own.
    fn clean(&self) {
        for left in self.leftovers() {
            let _ = fs::remove_dir_all(&left).or_else(|_| fs::remove_file(&left));
        }
    }

    /// What runs in this place, the daemon apart.
    fn survivors(&self) -> Vec<Process> {
        let mut found = marked(self.place.store.root().to_str().unwrap());
        let daemon = self.place.daemon().map(crate::support::daemon::Daemon::pid);
        found.retain(|process| Some(process.pid) != daemon);
        found
    }

    /// Sends the signal, once there is somebody to get it. Gives false where the command has ended before.
    fn strike(&self, plan: Plan, child: &mut Child) -> bool {
        let us = Pid::from_raw(child.id().try_into().unwrap());
        let deadline = Instant::now() + ENDS_WITHIN;
        while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
            let sent = match plan.to {
                To::Us => kill(us, plan.signal).is_ok(),
                To::Group => killpg(us, plan.signal).is_ok(),
                To::Nix => {
                    let nix = children(us)
                        .into_iter()
                        .find(|it| it.command.contains("nix"));
                    nix.is_some_and(|nix| kill(nix.pid, plan.signal).is_ok())
                }
                To::Worker => {
                    let daemon = self.place.daemon().unwrap().pid();
                    let worker = children(daemon).into_iter().next();
                    worker.is_some_and(|worker| kill(worker.pid, plan.signal).is_ok())
                }
            };
            if sent {
                return true;
            }
            thread::yield_now();
        }
        false
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in entries(folder) {
        match entry.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => files.extend(files_below(&entry)),
            Ok(metadata) if metadata.is_file() => files.push(entry),
            _ => {}
        }
    }
    files
}

/// Runs the part.
pub(crate) fn run(stage: &Stage) {
    let targets = expression(&targets());
    // They wait most of the time, for what they are about to kill.
    stage.run(
        if stage.is_patient() { 4 } else { 2 },
        || Place::both(stage, &targets).map(Scene::new),
        |scenes, seed| trial(stage, &scenes[Plan::of(seed).place], seed),
    );
    let tally = stage.tally;
    let (ran_on, left) = (tally.total("", SURVIVED), tally.total("", "left"));
    tally.note(format!(
        "{} kills. After KILL, programs ran on in {ran_on} cases, and files for the next sweep were left in {left}.",
        tally.tries("") - tally.total("", "early")
    ));
    // So it is known that they would be seen after the other signals, too.
    if tally.tries("") > ENOUGH && ran_on.min(left) == 0 {
        tally.note(
            "KILL LEFT NOTHING: what is left was not seen, and this storm says nothing about it."
                .to_owned(),
        );
    }
}

fn trial(stage: &Stage, scene: &Scene, seed: u64) {
    let plan = Plan::of(seed);
    scene.prepare(plan.what);
    let log = scene.place.store.root().join("killed.log");
    let output = File::create(&log).unwrap();
    let mut child = scene
        .command(plan.what)
        .command()
        .process_group(0)
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap();
    let row = format!("{}, {}", plan.what.name(), scene.place.kind());
    // The storm itself: a moment that no sign determines.
    let typical = scene.typical[plan.what.index()].load(Ordering::SeqCst);
    thread::sleep(Duration::from_millis(typical).mul_f64(plan.at));
    let was_struck = scene.strike(plan, &mut child);
    stage.tally.tried(&row);
    let result = after(stage, scene, plan, &mut child, was_struck, &row);
    if let Err(what) = result {
        let what = format!("{} to {}: {what}", plan.signal, plan.to.name());
        let text = fs::read(&log).unwrap_or_default();
        let text = format!("{plan:?}\n{what}\n\n{}", String::from_utf8_lossy(&text));
        stage.tally.wrong(&row, seed, &what, &text);
        let _ = child.kill();
        let _ = child.wait();
        end(&scene.survivors());
    }
    scene.clean();
}

/// Looks at everything after a kill.
fn after(
    stage: &Stage,
    scene: &Scene,
    plan: Plan,
    child: &mut Child,
    was_struck: bool,
    row: &str,
) -> Result<(), String> {
    let ending = wait(child)?;
    stage.tally.count(row, column(plan, was_struck, ending)?);
    let struck = Instant::now();
    let is_kill = plan.signal == Signal::SIGKILL && was_struck;
    let mut left = scene.survivors();
    while !left.is_empty() && !is_kill && struck.elapsed() < GONE_WITHIN {
        thread::yield_now();
        left = scene.survivors();
    }
    if is_kill {
        if !left.is_empty() {
            stage.tally.count(row, SURVIVED);
        }
        // What goes on would be in the way of the same command.
        end(&left);
        until("what KILL left is gone", || {
            let left = scene.survivors();
            end(&left);
            left.is_empty()
        });
    } else if !left.is_empty() {
        return Err(format!("there still is {left:#?}"));
    }
    let held = scene.held_locks();
    if !held.is_empty() {
        return Err(format!("locks are held: {held:?}"));
    }
    let left = scene.leftovers();
    if is_kill && !left.is_empty() {
        stage.tally.count(row, "left");
    } else if !left.is_empty() {
        return Err(format!("files are left behind: {left:?}"));
    }
    if plan.what.is_step() {
        scene.link_is_whole(plan.what)?;
    }
    scene.pins_are_whole()?;
    scene.succeeds(plan.what)
}

fn wait(child: &mut Child) -> Result<ExitStatus, String> {
    let deadline = Instant::now() + ENDS_WITHIN;
    while Instant::now() < deadline {
        if let Some(ending) = child.try_wait().unwrap() {
            return Ok(ending);
        }
        thread::yield_now();
    }
    Err(format!("it has not ended after {ENDS_WITHIN:?}"))
}

fn end(processes: &[Process]) {
    for process in processes {
        let _ = kill(process.pid, Signal::SIGKILL);
    }
}

/// What is counted of an ending; one that blames the build or the expression for a signal is wrong.
fn column(plan: Plan, was_struck: bool, ending: ExitStatus) -> Result<&'static str, String> {
    let number = plan.signal as i32;
    let by_signal = ending.signal() == Some(number) || ending.code() == Some(128 + number);
    let is_ours = matches!(plan.to, To::Us | To::Group);
    match ending.code() {
        Some(0) if !was_struck => Ok("early"),
        // It came when all was done.
        Some(0) => Ok("0"),
        _ if by_signal && was_struck => Ok("128+n"),
        Some(75) if was_struck && !is_ours => Ok("75"),
        // Nix was ended by another signal: KILL, where TERM was not enough.
        Some(129..160) if was_struck && !is_ours => Ok("128+n"),
        _ => Err(format!("{ending}")),
    }
}
