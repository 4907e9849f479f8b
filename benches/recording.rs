//! What a recording costs beside the bare `nix-instantiate` of the same targets, and how that grows.
//!
//! Run by `script/bench`, which makes the store. The runs are paired. It measures and fails for no time; the goals that it
//! names are for who reads it.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program that is run by hand, and reports to its user alone"
)]

mod build;
mod compare;
mod pairs;
mod parts;
mod spent;

use std::{
    cell::Cell,
    env, fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use build::Build;
use compare::compare;
use pairs::{command, goal, heading, in_turn, print_line};
use parts::{Part, run_named};
use spent::{Spent, spend};

/// How many targets of `heavy.nix` are evaluated: some seconds of work.
const HEAVY: usize = 24;

/// How many of them two processes share: each has its own heap to touch first, half a second here.
const TOGETHER: usize = 80;

/// How many targets of `fails.nix` evaluate, and how many attributes beside them do not.
const GOOD: usize = 100;
const BAD: usize = 100;

/// How many targets of `large.nix` are evaluated, and in how much memory, in MiB: one and a half times the 450 that bare
/// `nix-instantiate` takes for one of them (2.8).
const LARGE: usize = 6;
const TIGHT: &str = "680";

/// How many targets of `sharing.nix` are evaluated.
const ALIKE: usize = 400;

/// How many targets of `light.nix`, and the most of them at which a goal is set for the time and for the memory.
const LIGHT: [(usize, f64); 3] = [(1_000, 1.5), (2_000, 1.25), (10_000, 1.3)];
const MEMORY: f64 = 60.0;

/// In how many pairs of runs at most targets are recorded that are new: each run leaves all of them in the store.
const NEW_PAIRS: usize = 3;

/// The parts, in their order.
const PARTS: [Part<Place>; 6] = [
    ("worker", 7, one_worker),
    ("workers", 5, two_workers),
    ("tight", 3, tight),
    ("fails", 5, fails),
    ("sharing", 5, sharing),
    ("many", 9, many),
];

fn main() {
    println!("Medians in milliseconds; in brackets the quartiles.");
    run_named(&PARTS, || Place(Build::new()));
}

/// Goal: no slower than the bare command.
fn one_worker(place: &Place, pairs: usize) {
    println!("{HEAVY} heavy targets with one worker, beside the bare command: {pairs} pairs.\n");
    heading("bare", "ours");
    let targets = Targets::of("heavy.nix", HEAVY);
    compare(
        "eval-once pipeline",
        1,
        pairs,
        &|| place.bare(targets),
        &|| place.record(targets, &["--workers", "1"]),
        goal(Some(1.0), None),
    );
}

/// Goal: at most 0.55 times the bare command, on two cores.
fn two_workers(place: &Place, pairs: usize) {
    println!(
        "{TOGETHER} heavy targets with two workers, beside the bare command: {pairs} pairs.\n"
    );
    heading("bare", "ours");
    let targets = Targets::of("heavy.nix", TOGETHER);
    compare(
        "eval-once pipeline",
        1,
        pairs,
        &|| place.bare(targets),
        &|| place.record(targets, &["--workers", "2"]),
        goal(Some(0.55), None),
    );
}

/// Goal: at most 1.1 times one worker that has all of that memory. How that one does beside the bare command, which has no limit, is
/// shown as well: a worker that is killed in the middle of a target is slow alone, too.
fn tight(place: &Place, pairs: usize) {
    println!(
        "{LARGE} targets that need much memory, in {TIGHT} MiB, enough for one and a half of them: {pairs} pairs of each.\n"
    );
    let targets = Targets::of("large.nix", LARGE);
    let bare = || place.bare(targets);
    let one = || place.record(targets, &["--workers", "1", "--memory", TIGHT]);
    let two = || place.record(targets, &["--workers", "2", "--memory", TIGHT]);
    heading("bare", "one");
    compare("one worker", 1, pairs, &bare, &one, goal(None, None));
    heading("one", "two");
    compare("two workers", 0, pairs, &one, &two, goal(Some(1.1), None));
}

/// Goals: at most 1.1 times what the targets alone take, and the message of each attribute that does not evaluate.
fn fails(place: &Place, pairs: usize) {
    println!(
        "{GOOD} targets that share some seconds of evaluation, and {BAD} attributes more that do not evaluate, beside those targets alone: {pairs} pairs.\n"
    );
    heading("none", "some");
    let good = Targets::of("fails.nix", GOOD);
    let mut lost = 0;
    for kind in ["throws", "aborts"] {
        let some = good.and(kind, BAD);
        compare(
            kind,
            1,
            pairs,
            &|| place.record(good, &[]),
            &|| place.record(some, &[]),
            goal(Some(1.1), None),
        );
        let found = place.messages(some);
        println!("{:<22} {found} of {BAD} messages", "");
        lost += BAD - found;
    }
    assert_eq!(lost, 0, "messages of attributes that do not evaluate");
}

/// Goal: two workers take at most 1.1 times the processor time of one.
fn sharing(place: &Place, pairs: usize) {
    println!(
        "{ALIKE} targets that share nearly everything: two workers beside one, {pairs} pairs.\n"
    );
    heading("one", "two");
    let targets = Targets::of("sharing.nix", ALIKE);
    let workers = |number| spend(place.record(targets, &["--workers", number]));
    workers("1");
    let spent: Vec<_> = (0..pairs)
        .map(|pair| in_turn(pair, || workers("1"), || workers("2")))
        .collect();
    let of = |of: fn(&Spent) -> f64| -> Vec<(f64, f64)> {
        spent.iter().map(|(one, two)| (of(one), of(two))).collect()
    };
    print_line(
        "processor time",
        &of(|spent| spent.processor),
        goal(Some(1.1), None),
    );
    print_line("time", &of(|spent| spent.time), goal(None, None));
}

/// Goals: at most 1.5, 1.25 and 1.3 times the bare command with 1,000, 2,000 and 10,000 targets, whether they are in the store already or
/// new; 60 MiB of our own, and no more than ten times what 1,000 take.
fn many(place: &Place, pairs: usize) {
    println!(
        "Light targets that are built already, beside the bare command: {pairs} pairs of each.\n"
    );
    heading("bare", "ours");
    // A build cannot have 10,000 jobs: almost all of them are skipped where there are so many.
    let record = |number| place.with_skip(Targets::of("light.nix", number), "built", &[]);
    for (number, ratio) in LIGHT {
        let targets = Targets::of("light.nix", number);
        place.have_outputs(targets);
        compare(
            &format!("{number} targets"),
            1,
            pairs,
            &|| place.bare(targets),
            &|| record(number),
            goal(Some(ratio), None),
        );
    }
    println!(
        "\nLight targets that are new to the store, beside the bare command: at most {NEW_PAIRS} pairs of each.\n"
    );
    heading("bare", "ours");
    let variant = Cell::new(0);
    for (number, ratio) in LIGHT {
        let new = || {
            variant.set(variant.get() + 1);
            Targets::of("light.nix", number).and("variant", variant.get())
        };
        compare(
            &format!("{number} new targets"),
            0,
            pairs.min(NEW_PAIRS),
            &|| place.bare(new()),
            &|| place.record(new(), &[]),
            goal(Some(ratio), None),
        );
    }
    let [(few, _), _, (most, _)] = LIGHT;
    println!();
    heading(&few.to_string(), &most.to_string());
    compare(
        "eval-once pipeline",
        0,
        pairs,
        &|| record(few),
        &|| record(most),
        goal(Some(10.0), None),
    );
    println!();
    for (number, _) in LIGHT {
        match most_memory(record(number)) {
            Some(mib) => println!(
                "Most memory of our own process, {number} targets: {mib:.1} MiB{}",
                if mib > MEMORY {
                    " (at most 60: MISSED)"
                } else {
                    ""
                }
            ),
            None => println!("Most memory of our own process: not to be seen without /proc"),
        }
    }
}

/// What is evaluated.
#[derive(Clone, Copy)]
struct Targets {
    file: &'static str,
    number: usize,
    /// Another argument of the file, and its value.
    and: Option<(&'static str, usize)>,
}

impl Targets {
    fn of(file: &'static str, number: usize) -> Self {
        Self {
            file,
            number,
            and: None,
        }
    }

    fn and(self, name: &'static str, number: usize) -> Self {
        Self {
            and: Some((name, number)),
            ..self
        }
    }

    fn file(self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("benches/repositories")
            .join(self.file)
    }

    /// The file's arguments.
    fn arguments(self) -> impl Iterator<Item = String> {
        let numbers = [Some(("targets", self.number)), self.and];
        numbers
            .into_iter()
            .flatten()
            .flat_map(|(name, number)| ["--arg".into(), name.into(), number.to_string()])
    }
}

/// Where the commands run.
struct Place(Build);

impl Place {
    /// The bare command. It makes no roots, which would be a link for each target.
    fn bare(&self, targets: Targets) -> Command {
        let mut bare = command(self.0.folder(), "nix-instantiate", &[]);
        bare.arg(targets.file()).args(targets.arguments());
        bare
    }

    /// A recording of them all.
    fn record(&self, targets: Targets, flags: &[&str]) -> Command {
        self.with_skip(targets, "none", flags)
    }

    fn with_skip(&self, targets: Targets, skip: &str, flags: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_eval-once");
        let line = ["pipeline", "--dry-run", "--skip", skip, "--file"];
        let mut record = command(self.0.folder(), program, &line);
        record
            .arg(targets.file())
            .args(targets.arguments())
            .args(flags);
        record
    }

    /// How many of the attributes that do not evaluate have a message in `eval-once.json` that is their own: it names them.
    fn messages(&self, targets: Targets) -> usize {
        self.0.forget();
        let program = env!("CARGO_BIN_EXE_eval-once");
        let mut record = self
            .0
            .in_job(program, &["pipeline", "--skip", "none", "--file"]);
        spend({
            record.arg(targets.file()).args(targets.arguments());
            record
        });
        let document = self.0.document();
        let errors = document["errors"].as_array().unwrap();
        let own = errors.iter().filter(|error| {
            let attr = error["attr"][0].as_str().unwrap();
            let message = error["message"].as_str();
            message.is_some_and(|message| message.contains(attr))
        });
        own.count()
    }

    /// Makes all outputs valid without building any, which would take minutes.
    fn have_outputs(&self, targets: Targets) {
        let mut outputs = Vec::new();
        let drvs = self
            .bare(targets)
            .stdout(Stdio::piped())
            .output()
            .unwrap()
            .stdout;
        let drvs = String::from_utf8(drvs).unwrap();
        let drvs: Vec<&str> = drvs.lines().collect();
        assert_eq!(drvs.len(), targets.number, "nix-instantiate failed");
        for drvs in drvs.chunks(1_000) {
            let mut query = command(self.0.folder(), "nix-store", &["--query", "--outputs"]);
            let said = query
                .args(drvs)
                .stdout(Stdio::piped())
                .output()
                .unwrap()
                .stdout;
            outputs.extend(String::from_utf8(said).unwrap().lines().map(str::to_owned));
        }
        // What is registered: the path, no deriver, and no references.
        let mut registration = String::new();
        for output in &outputs {
            if !Path::new(output).exists() {
                fs::write(output, "\n").unwrap();
            }
            registration.extend([output, "\n\n0\n"]);
        }
        let mut register = command(self.0.folder(), "nix-store", &["--register-validity"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        register
            .stdin
            .take()
            .unwrap()
            .write_all(registration.as_bytes())
            .unwrap();
        assert!(register.wait().unwrap().success());
    }
}

/// The most memory that the process itself ever had, in MiB.
///
/// What the system accounts to a process that has ended includes the children it waited for, and Nix is larger than we are.
/// So it is asked while it is there: it cannot end before all that it prints has been read, and everything else is done then.
fn most_memory(mut command: Command) -> Option<f64> {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut peak = None;
    let mut buffer = vec![0; 32 << 10];
    loop {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        peak = kib.or(peak);
        if stdout.read(&mut buffer).unwrap() == 0 {
            break;
        }
    }
    assert!(child.wait().unwrap().success(), "{command:?}");
    peak.map(|kib| kib / 1024.0)
}
