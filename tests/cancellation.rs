//! A step that is cancelled: by a person with and without a terminal, and by the real agent, wherever it is just then.
//!
//! Each time it is gone within two seconds with all it started, ends with 128 + n, and leaves neither a root nor a turn behind.

use std::{
    fs::{self, File},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, ExitStatus},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use unix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

use crate::support::{
    EVAL_ONCE,
    agent::{Job, plugin_repository},
    processes::{kill_marked, marked},
    program::read_json,
    stand_in::StandIns,
    store::Store,
    target::{fifo, let_go},
    terminal::Terminal,
    until,
};

/// How long a cancelled step may take to be gone, with everything it started.
const GONE_WITHIN: Duration = Duration::from_secs(2);

/// Where a step is when it is cancelled.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    /// Its recorded `.drv` is being built.
    Building,
    /// A `.drv` that it has evaluated itself is being built: there is a root of its own by then.
    BuildingTheEvaluated,
    /// It evaluates what needs no store: Nix looks at no signal then.
    Evaluating,
    /// Its evaluation needs a build.
    BuildingForAnEvaluation,
    /// Another step evaluates on this host, and no two may.
    WaitingForASlot,
}

/// A store in which a step can be brought to a place.
struct Scene {
    store: Store,
    place: Place,
    /// Another step's turn.
    _turn: Option<Flock<File>>,
}

impl Scene {
    fn new(place: Place) -> Option<Self> {
        let store = Store::new()?;
        // The builder ignores what it can and has a child that does as well. Both are found by their environment, in which Nix's
        // own variables name the store; so is everything else that a step starts in it.
        let builder = format!(
            "trap \"\" TERM INT HUP QUIT; /bin/sleep 600 & echo begun > {root}/begun; /bin/sleep 600; wait",
            root = store.root().display()
        );
        let targets = format!(
            r#"
let
  slow = name: derivation {{
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-c" ''{builder}'' ];
  }};
  numbers = builtins.genList (n: n);
  sum = builtins.foldl' (a: b: a + b);
  forever = builtins.foldl' (a: n: sum (a - n) (numbers 100000)) 0 (numbers 1000000);
in {{
  building = slow "building";
  evaluating = builtins.seq (builtins.trace "it has begun" forever) (slow "never");
  needing = import (slow "needed");
}}
"#
        );
        store.write("default.nix", &targets);
        // So that the folder is there, as on a host on which a step has run before.
        let turns = store.our_state().join("turns");
        fs::create_dir_all(&turns).unwrap();
        let turn = (place == Place::WaitingForASlot).then(|| hold_slot(&store).unwrap());
        Some(Self {
            store,
            place,
            _turn: turn,
        })
    }

    /// The step's record.
    fn record(&self) -> Value {
        let attribute = match self.place {
            Place::Building | Place::BuildingTheEvaluated => "building",
            Place::Evaluating | Place::WaitingForASlot => "evaluating",
            Place::BuildingForAnEvaluation => "needing",
        };
        let mut record = json!({ "file": "default.nix", "attr": [attribute] });
        if self.place == Place::Building {
            let file = self.store.work().join("default.nix");
            record["drv"] = self
                .store
                .instantiate(file.to_str().unwrap(), attribute)
                .into();
        }
        record
    }

    /// Is the step at its place? `said` is asked whether something stands in the log.
    fn is_there(&self, said: impl Fn(&str) -> bool) -> bool {
        match self.place {
            Place::Evaluating => said("it has begun"),
            Place::WaitingForASlot => said("waiting for an evaluation slot"),
            _ => self.store.root().join("begun").exists(),
        }
    }

    /// Makes ready for another run.
    fn again(&self) {
        let _ = fs::remove_file(self.store.root().join("begun"));
    }

    fn marker(&self) -> String {
        self.store.root().display().to_string()
    }

    /// Expects that nothing is left of a step that was signalled at `signalled`.
    #[track_caller]
    fn nothing_is_left(&self, what: &str, signalled: Instant) {
        let mut left = marked(&self.marker());
        while !left.is_empty() && signalled.elapsed() < GONE_WITHIN {
            std::thread::yield_now();
            left = marked(&self.marker());
        }
        if !left.is_empty() {
            kill_marked(&self.marker());
            panic!(
                "{what}: after {:?} there still is {left:#?}",
                signalled.elapsed()
            );
        }
        for folder in ["roots", "outputs"] {
            let folder = self.store.our_state().join(folder);
            let roots: Vec<_> = fs::read_dir(folder)
                .into_iter()
                .flatten()
                .map(|root| root.unwrap().path())
                .collect();
            assert!(roots.is_empty(), "{what}: roots are left behind: {roots:?}");
        }
        assert!(
            self.place == Place::WaitingForASlot || hold_slot(&self.store).is_some(),
            "{what}: its turn is not free again"
        );
    }
}

impl Drop for Scene {
    /// A test that failed in between leaves nothing that runs.
    fn drop(&mut self) {
        kill_marked(&self.marker());
    }
}

/// Takes the only turn there is, or nothing where it is taken.
fn hold_slot(store: &Store) -> Option<Flock<File>> {
    Flock::lock(
        store.our_lock("turns/0.lock"),
        FlockArg::LockExclusiveNonblock,
    )
    .ok()
}

fn group(child: &Child) -> Pid {
    Pid::from_raw(child.id().try_into().unwrap())
}

/// Waits for the end of a step that was signalled; not for the end of its builder, which would be in ten minutes.
#[track_caller]
fn end(what: &str, child: &mut Child, signalled: Instant) -> ExitStatus {
    let mut ending = None;
    until(&format!("{what}: it has ended"), || {
        ending = child.try_wait().unwrap();
        assert!(signalled.elapsed() < 4 * GONE_WITHIN, "{what}: still there");
        ending.is_some()
    });
    ending.unwrap()
}

/// How the signal comes.
#[derive(Clone, Copy, Debug)]
enum To {
    /// To the process group, as the agent and a shell's job control send it.
    Group,
    /// To our process alone, as `kill` does by hand: who is to tell Nix but us?
    Process,
}

/// Cancels a step by hand that has no terminal.
#[track_caller]
fn cancel_without_terminal(scene: &Scene, signal: Signal, to: To) {
    let what = format!("{:?}, {signal}, {to:?}", scene.place);
    scene.again();
    let report = scene.store.root().join("report.json");
    let log = scene.store.root().join("step.log");
    let output = File::create(&log).unwrap();
    let mut child = scene
        .store
        .eval_once(["step", "--report"])
        .arg(&report)
        .env("EVAL_ONCE_STEP", scene.record().to_string())
        .env("EVAL_ONCE_EVALUATIONS", "1")
        .command()
        .process_group(0)
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap();
    let said = || fs::read_to_string(&log).unwrap_or_default();
    until(&format!("{what}: it is there"), || {
        assert!(
            child.try_wait().unwrap().is_none(),
            "{what}: it has ended: {}",
            said()
        );
        scene.is_there(|text| said().contains(text))
    });
    let signalled = Instant::now();
    match to {
        To::Group => killpg(group(&child), signal).unwrap(),
        To::Process => kill(group(&child), signal).unwrap(),
    }
    let ending = end(&what, &mut child, signalled);
    scene.nothing_is_left(&what, signalled);
    ended_by(&what, ending, signal, &said());
    let report = read_json(&report);
    assert_eq!(report["exit"], 128 + signal as i32, "{what}: {report}");
    assert_eq!(report["failure"]["class"], "signal", "{what}: {report}");
}

/// Cancels a step by hand at a terminal: TERM by `kill`, INT by Ctrl-C, HUP by closing the window.
#[track_caller]
fn cancel_at_terminal(scene: &Scene, signal: Signal) {
    let what = format!("{:?}, {signal}, at a terminal", scene.place);
    scene.again();
    let step = scene
        .store
        .eval_once(["step"])
        .env("EVAL_ONCE_STEP", scene.record().to_string())
        .env("EVAL_ONCE_EVALUATIONS", "1");
    let (mut terminal, mut child) = Terminal::run(&step);
    until(&format!("{what}: it is there"), || {
        assert!(child.try_wait().unwrap().is_none(), "{what}: it has ended");
        scene.is_there(|text| terminal.shows(text))
    });
    let signalled = Instant::now();
    match signal {
        Signal::SIGINT => terminal.press(b"\x03"),
        Signal::SIGHUP => terminal.close(),
        other => killpg(group(&child), other).unwrap(),
    }
    let ending = end(&what, &mut child, signalled);
    scene.nothing_is_left(&what, signalled);
    ended_by(&what, ending, signal, &terminal.text());
}

#[track_caller]
fn ended_by(what: &str, ending: ExitStatus, signal: Signal, log: &str) {
    assert_eq!(ending.signal(), None, "{what}: {log}");
    assert_eq!(ending.code(), Some(128 + signal as i32), "{what}: {log}");
}

/// How the agent comes to run our program.
#[derive(Clone, Copy, Debug)]
enum As {
    Plugin,
    AgentsHook,
}

/// Cancels a job through the real agent.
#[track_caller]
fn cancel_job(scene: &Scene, used: As, terminal: bool) {
    let what = format!("{:?}, as {used:?}, terminal: {terminal}", scene.place);
    scene.again();
    let Some(mut job) = Job::new() else { return };
    job.set_all(scene.store.env())
        .set("EVAL_ONCE_BIN", EVAL_ONCE)
        .set("EVAL_ONCE_EVALUATIONS", "1")
        .terminal(terminal)
        .command("echo the command ran $((40 + 2))");
    fs::copy(
        scene.store.work().join("default.nix"),
        job.checkout().join("default.nix"),
    )
    .unwrap();
    match used {
        As::Plugin => {
            let plugin = plugin_repository(job.folder());
            job.plugins(&[(&plugin, scene.record())]);
        }
        As::AgentsHook => {
            job.our_hook("command");
            job.set("EVAL_ONCE_STEP", scene.record().to_string());
        }
    }
    let mut running = job.start();
    until(&format!("{what}: it is there"), || {
        assert!(
            !running.has_ended(),
            "{what}: it has ended: {}",
            running.log()
        );
        scene.is_there(|text| running.log().contains(text))
    });
    let signalled = Instant::now();
    running.signal(Signal::SIGTERM);
    // The bootstrap has the marker too, so this waits for its end as well.
    scene.nothing_is_left(&what, signalled);
    let ran = running.wait();
    // The bootstrap's own ending is chance in this version of the agent; what it says of the hook is not.
    assert!(
        ran.plain().contains("status 143"),
        "{what}: {}",
        ran.plain()
    );
    assert!(
        !ran.plain().contains("the command ran 42"),
        "{what}: {}",
        ran.plain()
    );
    assert!(!job.checkout().join("result").exists(), "{what}");
}

/// All the ways to cancel by hand.
#[track_caller]
fn cancel_by_hand(place: Place) {
    let Some(scene) = Scene::new(place) else {
        return;
    };
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        cancel_without_terminal(&scene, signal, To::Group);
        cancel_without_terminal(&scene, signal, To::Process);
    }
    // Not to the group: a Nix that gets QUIT leaves its builders' children behind.
    cancel_without_terminal(&scene, Signal::SIGQUIT, To::Process);
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        cancel_at_terminal(&scene, signal);
    }
}

/// All the ways to cancel through the agent.
#[track_caller]
fn cancel_through_the_agent(place: Place) {
    let Some(scene) = Scene::new(place) else {
        return;
    };
    for used in [As::Plugin, As::AgentsHook] {
        for terminal in [false, true] {
            cancel_job(&scene, used, terminal);
        }
    }
}

#[test]
fn a_step_that_is_cancelled_while_it_builds_is_gone_with_builder_and_all() {
    cancel_by_hand(Place::Building);
}

#[test]
fn a_step_that_is_cancelled_while_it_builds_what_it_evaluated_leaves_no_root() {
    cancel_by_hand(Place::BuildingTheEvaluated);
}

#[test]
fn a_step_that_is_cancelled_in_an_evaluation_that_looks_at_no_signal_is_gone() {
    cancel_by_hand(Place::Evaluating);
}

#[test]
fn a_step_that_is_cancelled_while_its_evaluation_builds_is_gone_with_builder_and_all() {
    cancel_by_hand(Place::BuildingForAnEvaluation);
}

#[test]
fn a_step_that_is_cancelled_while_it_waits_for_a_slot_is_gone() {
    cancel_by_hand(Place::WaitingForASlot);
}

#[test]
fn a_job_that_is_cancelled_while_it_builds_is_gone_with_builder_and_all() {
    cancel_through_the_agent(Place::Building);
}

#[test]
fn a_job_that_is_cancelled_while_it_builds_what_it_evaluated_leaves_no_root() {
    cancel_through_the_agent(Place::BuildingTheEvaluated);
}

#[test]
fn a_job_that_is_cancelled_in_an_evaluation_that_looks_at_no_signal_is_gone() {
    cancel_through_the_agent(Place::Evaluating);
}

#[test]
fn a_job_that_is_cancelled_while_its_evaluation_builds_is_gone_with_builder_and_all() {
    cancel_through_the_agent(Place::BuildingForAnEvaluation);
}

#[test]
fn a_job_that_is_cancelled_while_it_waits_for_a_slot_is_gone() {
    cancel_through_the_agent(Place::WaitingForASlot);
}

/// A target that takes until somebody says it may go on, and a step that builds it at a terminal whose window is closed meanwhile.
#[test]
fn a_step_that_was_started_with_hup_ignored_survives_its_terminal() {
    let Some(store) = Store::new() else { return };
    let (begun, go) = (store.root().join("begun"), store.root().join("go"));
    fifo(&go);
    store.write(
        "default.nix",
        &format!(
            r#"derivation {{
              name = "patient"; system = builtins.currentSystem; builder = "/bin/sh";
              args = [ "-c" "echo > {}; read line < {}; echo $line > $out" ];
            }}"#,
            begun.display(),
            go.display()
        ),
    );
    let step = store
        .program("sh")
        .args(["-c", r#"trap '' HUP; exec "$0" step"#, EVAL_ONCE]);
    let (mut terminal, mut child) = Terminal::run(&step);
    until("it builds", || begun.exists());
    terminal.close();
    terminal.text();
    let_go(&go, "went on\n");
    let ending = end("nohup", &mut child, Instant::now());
    assert_eq!(ending.code(), Some(0));
    let built = fs::read_to_string(store.work().join("result")).unwrap();
    assert_eq!(built, "went on\n");
}

#[test]
fn the_command_after_a_step_at_a_terminal_reads_what_is_typed_there() {
    let Some(store) = Store::new() else { return };
    store.write(
        "default.nix",
        r#"derivation { name = "a"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo > $out" ]; }"#,
    );
    let step = store.eval_once([
        "step",
        "--",
        "sh",
        "-c",
        "echo 'who is'\\' there; read -r line; echo \"it is <$line>\"; read -r line; echo never",
    ]);
    let (mut terminal, mut child) = Terminal::run(&step);
    until("the command asks", || terminal.shows("who is' there"));
    terminal.press(b"you\n");
    until("the command has read", || terminal.shows("it is <you>"));
    // Its own death, by the signal itself: we are not there any more to make a status of it.
    terminal.press(b"\x03");
    let ending = end("typed", &mut child, Instant::now());
    assert_eq!(ending.signal(), Some(Signal::SIGINT as i32));
    assert!(!terminal.text().contains("never"));
}

/// Nix 2.8 loses one TERM in fifty for good that comes while it begins to build; that Nix is played here. What it has
/// started leads a process group of its own, as its builders do.
#[test]
fn a_nix_that_has_lost_its_term_ends_with_its_builders() {
    let Some(store) = Store::new() else { return };
    let held = store.root().join("held");
    fifo(&held);
    let begun = store.root().join("begun");
    let stand_ins = StandIns::new(store.bin()).instead(
        "nix-store",
        &format!(
            "#!/bin/sh\ntrap '' TERM\nsetsid sh -c 'echo > {begun}; read x < {held}' &\nwait $!\nexit 1\n",
            begun = begun.display(),
            held = held.display()
        ),
    );
    let drv = store
        .folder()
        .join("00000000000000000000000000000000-x.drv");
    let step = store
        .step(["--drv", drv.to_str().unwrap()])
        .env("PATH", stand_ins.path(&store));
    let running = step.start();
    until("it builds", || begun.exists());
    let signalled = Instant::now();
    kill(running.pid(), Signal::SIGTERM).unwrap();
    let ended = running.end();
    ended.exits(128 + Signal::SIGTERM as i32);
    assert!(signalled.elapsed() < GONE_WITHIN, "{ended}");
    assert!(marked(&store.root().display().to_string()).is_empty());
}
