//! What a recording costs beside the bare `nix-instantiate` of the same targets, and how that grows.
//!
//! Run by `script/bench`, which makes the store. The runs are paired. It measures and fails for no time; the goals that it
//! names are for who reads it.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program that is run by hand, and reports to its user alone"
)]

mod pairs;
mod parts;

use std::{
    env, fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use pairs::{command, compare, heading};
use parts::{Part, run_named};

/// How many targets of `heavy.nix` are evaluated: some seconds of work.
const HEAVY: usize = 24;

/// How many of them two processes share: each has its own heap to touch first, half a second here.
const SHARED: usize = 80;

/// How many targets of `light.nix`, and how many of them throw.
const LIGHT: usize = 1_000;
const MANY: usize = 10_000;
const THROW: usize = 100;

/// The parts, in their order.
const PARTS: [Part<Folder>; 4] = [
    ("worker", 7, one_worker),
    ("workers", 7, two_workers),
    ("many", 9, many),
    ("throws", 15, throws),
];

fn main() {
    println!("Medians in milliseconds; in brackets the quartiles.");
    run_named(&PARTS, || Folder(tempfile::tempdir().unwrap()));
}

/// Goal: at most 1.1 times.
fn one_worker(folder: &Folder, pairs: usize) {
    println!("{HEAVY} heavy targets with one worker, beside the bare command: {pairs} pairs.\n");
    heading("bare", "ours");
    let targets = Targets::heavy(HEAVY);
    compare(
        "eval-once pipeline",
        1,
        pairs,
        &|| folder.bare(targets),
        &|| folder.record(targets, &["--workers", "1", "--skip", "none"]),
    );
}

/// Goal: at least 1.7 times as fast on two cores, a ratio of 0.59.
fn two_workers(folder: &Folder, pairs: usize) {
    println!("{SHARED} heavy targets with two workers, beside one: {pairs} pairs.\n");
    heading("one", "two");
    let targets = Targets::heavy(SHARED);
    compare(
        "eval-once pipeline",
        1,
        pairs,
        &|| folder.record(targets, &["--workers", "1", "--skip", "none"]),
        &|| folder.record(targets, &["--workers", "2", "--skip", "none"]),
    );
}

/// Goals: less than twice the bare command with 10,000 targets, 150 MiB of our own, and no more than ten times what 1,000 take.
fn many(folder: &Folder, pairs: usize) {
    println!(
        "Light targets that are built already, beside the bare command: {pairs} pairs of each.\n"
    );
    heading("bare", "ours");
    // A build cannot have 10,000 jobs: almost all of them are skipped where there are so many.
    let flags = ["--skip", "built"];
    for targets in [Targets::light(LIGHT), Targets::light(MANY)] {
        folder.have_outputs(targets);
        compare(
            &format!("{} targets", targets.number),
            1,
            pairs,
            &|| folder.bare(targets),
            &|| folder.record(targets, &flags),
        );
    }
    println!();
    heading("1000", "10000");
    compare(
        "eval-once pipeline",
        0,
        pairs,
        &|| folder.record(Targets::light(LIGHT), &flags),
        &|| folder.record(Targets::light(MANY), &flags),
    );
    println!();
    for targets in [Targets::light(LIGHT), Targets::light(MANY)] {
        let number = targets.number;
        match most_memory(folder.record(targets, &flags)) {
            Some(mib) => println!("Most memory of our own process, {number} targets: {mib:.1} MiB"),
            None => println!("Most memory of our own process: not to be seen without /proc"),
        }
    }
}

/// Goal: at most twice.
fn throws(folder: &Folder, pairs: usize) {
    println!(
        "{LIGHT} light targets of which {THROW} throw, beside as many of which none does: {pairs} pairs.\n"
    );
    heading("none", "some");
    let (none, some) = (Targets::light(LIGHT), Targets::throwing(LIGHT, THROW));
    compare(
        "eval-once pipeline",
        1,
        pairs,
        &|| folder.record(none, &["--skip", "none"]),
        &|| folder.record(some, &["--skip", "none"]),
    );
}

/// What is evaluated.
#[derive(Clone, Copy)]
struct Targets {
    file: &'static str,
    number: usize,
    throws: usize,
}

impl Targets {
    fn heavy(number: usize) -> Self {
        Self {
            file: "heavy.nix",
            number,
            throws: 0,
        }
    }

    fn light(number: usize) -> Self {
        Self {
            file: "light.nix",
            number,
            throws: 0,
        }
    }

    fn throwing(number: usize, throws: usize) -> Self {
        Self {
            file: "light.nix",
            number,
            throws,
        }
    }

    fn file(self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("benches/repositories")
            .join(self.file)
    }
}

/// Where the commands run.
struct Folder(tempfile::TempDir);

impl Folder {
    /// The bare command. It makes no roots, which would be a link for each target.
    fn bare(&self, targets: Targets) -> Command {
        self.with_targets("nix-instantiate", &[], targets, &[])
    }

    fn record(&self, targets: Targets, flags: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_eval-once");
        let command = ["pipeline", "--dry-run", "--file"];
        self.with_targets(program, &command, targets, flags)
    }

    fn with_targets(
        &self,
        program: &str,
        command_line: &[&str],
        targets: Targets,
        flags: &[&str],
    ) -> Command {
        let mut command = command(self.0.path(), program, command_line);
        command
            .arg(targets.file())
            .args(["--arg", "targets", &targets.number.to_string()])
            .args(flags);
        if targets.throws > 0 {
            command.args(["--arg", "throws", &targets.throws.to_string()]);
        }
        command
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
            let mut query = command(self.0.path(), "nix-store", &["--query", "--outputs"]);
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
        let mut register = command(self.0.path(), "nix-store", &["--register-validity"])
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
