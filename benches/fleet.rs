//! What a share costs the host that records, and saves the hosts that build.
//!
//! Run by `script/bench`, which makes the store. The second host is the same machine, where another folder is mounted over the
//! store's: so both have the same prefix. The agent is a script that keeps artifacts in a folder: what a network adds is not
//! measured. It fails for no time.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program that is run by hand, and reports to its user alone"
)]

mod build;
mod pairs;
mod parts;
mod spent;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use build::Build;
use pairs::{goal, heading, in_turn, print_line, quartiles};
use parts::{Part, run_named};
use serde_json::Value;
use spent::{Spent, spend};

/// The parts, in their order.
const PARTS: [Part<Fleet>; 3] = [
    ("fetched", 30, fetched),
    ("shared", 5, shared),
    ("bytes", 1, bytes),
];

fn main() {
    println!("Medians in milliseconds; in brackets the quartiles.");
    run_named(&PARTS, Fleet::new);
}

/// Goal: at least ten times less time and processor time, a ratio of 0.1.
fn fetched(fleet: &Fleet, pairs: usize) {
    for targets in [Targets::heavy(1_000, 4_000), Targets::heavy(pairs, 8_000)] {
        let Some([fetching, evaluating]) = fleet.two_hosts() else {
            return;
        };
        fleet.build.forget();
        spend(fleet.record(targets, &["--workers", "2"]));
        let records = fleet.records();
        assert_eq!(records.len(), targets.number, "steps");
        let pairs = pairs.min(records.len() - 1);
        println!(
            "Steps on a second host for {} targets of {} modules each, that fetch their .drv, beside steps that evaluate: {pairs} pairs.\n",
            targets.number, targets.modules
        );
        let first = spend(fetching.step(fleet, &records[0]));
        spend(evaluating.step(fleet, &without_share(&records[0])));
        let spent: Vec<(Spent, Spent)> = records[1..=pairs]
            .iter()
            .enumerate()
            .map(|(pair, record)| {
                in_turn(
                    pair,
                    || spend(evaluating.step(fleet, &without_share(record))),
                    || spend(fetching.step(fleet, record)),
                )
            })
            .collect();
        heading("evaluated", "fetched");
        let pairs_of = |of: fn(&Spent) -> f64| -> Vec<(f64, f64)> {
            spent
                .iter()
                .map(|(one, other)| (of(one), of(other)))
                .collect()
        };
        print_line("time", &pairs_of(|spent| spent.time), goal(Some(0.1), None));
        print_line(
            "processor time",
            &pairs_of(|spent| spent.processor),
            goal(Some(0.1), None),
        );
        println!(
            "\nThe first step of the host, which gets the archive of {}: {:.0} ms, {:.0} ms of processor time\n",
            mebibytes(size_of(&fleet.archive())),
            first.time,
            first.processor
        );
    }
}

/// Goals: at most 0.1 s for a store that has all of it, at most 5 % of a recording of heavy targets for an archive. Both are read
/// from what the recording itself says that it took: so what else the machine does is in the whole as well as in the part.
fn shared(fleet: &Fleet, runs: usize) {
    let store = format!("file://{}", fleet.folder().join("share").display());
    println!("Sharing the .drvs of unchanged recordings: medians of {runs} each.\n");
    println!("{:<34} {:>9} {:>9} {:>7}", "", "sharing", "all", "");
    for targets in [Targets::closures(1_000, 0), Targets::machines(1_000)] {
        for (what, share) in [("a store", store.as_str()), ("an archive", "artifact")] {
            let seconds = || {
                fleet.build.forget();
                spend(fleet.record(targets, &["--share", share]));
                let seconds = fleet.build.document()["seconds"].clone();
                ["share", "total"].map(|part| seconds[part].as_f64().unwrap())
            };
            // What is not there yet is copied.
            seconds();
            let (sharing, all): (Vec<f64>, Vec<f64>) = (0..runs).map(|_| seconds().into()).unzip();
            let [_, sharing, _] = quartiles(sharing);
            let [_, all, _] = quartiles(all);
            println!(
                "{:<34} {sharing:>7.2} s {all:>7.2} s {:>5.1} %",
                format!("{}, {what}", targets.file),
                100.0 * sharing / all
            );
        }
    }
}

/// How much is copied, cold and where 1 % has changed.
fn bytes(fleet: &Fleet, _: usize) {
    let folder = fleet.folder().join("share");
    let store = format!("file://{}?compression=zstd", folder.display());
    let mut before = 0;
    for changed in [0, 10] {
        let targets = Targets::closures(1_000, changed);
        let number = targets.number;
        fleet.build.forget();
        spend(fleet.record(targets, &["--share", &store]));
        let all = size_of(&folder);
        println!(
            "{number} targets, {changed} of them changed: {} new in a store, {} for each target",
            mebibytes(all - before),
            per(all - before, number)
        );
        before = all;
        fleet.build.forget();
        spend(fleet.record(targets, &["--share", "artifact"]));
        let archive = size_of(&fleet.archive());
        println!(
            "{number} targets, {changed} of them changed: an archive of {}, {} for each target",
            mebibytes(archive),
            per(archive, number)
        );
    }
}

fn per(bytes: u64, number: usize) -> String {
    format!("{} bytes", bytes / u64::try_from(number).unwrap())
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn mebibytes(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}

/// The bytes of a file, or of all files in a folder.
fn size_of(path: &Path) -> u64 {
    let Ok(entries) = path.read_dir() else {
        return path.metadata().map_or(0, |metadata| metadata.len());
    };
    entries.map(|entry| size_of(&entry.unwrap().path())).sum()
}

/// What is evaluated.
#[derive(Clone, Copy)]
struct Targets {
    file: &'static str,
    number: usize,
    modules: usize,
    changed: usize,
}

impl Targets {
    fn heavy(number: usize, modules: usize) -> Self {
        Self {
            file: "heavy.nix",
            number,
            modules,
            changed: 0,
        }
    }

    fn closures(number: usize, changed: usize) -> Self {
        Self {
            file: "closures.nix",
            number,
            modules: 0,
            changed,
        }
    }

    /// With the closures of the one, and the weight of the other.
    fn machines(number: usize) -> Self {
        Self {
            file: "machines.nix",
            number,
            modules: 0,
            changed: 0,
        }
    }

    fn arguments(self) -> Vec<String> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("benches/repositories")
            .join(self.file);
        let mut arguments = vec!["--file".to_owned(), file.to_str().unwrap().to_owned()];
        let values = [
            ("targets", self.number),
            ("modules", self.modules),
            ("changed", self.changed),
        ];
        for (name, value) in values {
            if value > 0 {
                arguments.extend(["--arg".into(), name.into(), value.to_string()]);
            }
        }
        arguments
    }
}

/// The host that records, and what others have of its build.
struct Fleet {
    build: Build,
    /// The folder with the store, which `script/bench` has made.
    nix: PathBuf,
}

impl Fleet {
    fn new() -> Self {
        let nix = PathBuf::from(env::var_os("NIX_STORE_DIR").unwrap());
        Self {
            build: Build::new(),
            nix: nix.parent().unwrap().to_owned(),
        }
    }

    fn folder(&self) -> &Path {
        self.build.folder()
    }

    /// A recording in a job.
    fn record(&self, targets: Targets, flags: &[&str]) -> Command {
        let mut command = self
            .build
            .in_job(env!("CARGO_BIN_EXE_eval-once"), &["pipeline"]);
        command
            .args(targets.arguments())
            .args(["--skip", "none"])
            .args(flags);
        command
    }

    /// The file of the build's archive.
    fn archive(&self) -> PathBuf {
        let mut files = self.build.artifacts().read_dir().unwrap();
        let found = files.find_map(|entry| {
            let path = entry.unwrap().path();
            (path.extension()? == "tar").then_some(path)
        });
        found.unwrap()
    }

    /// What the steps of the build carry.
    fn records(&self) -> Vec<Value> {
        let mut records = Vec::new();
        for entry in self.build.artifacts().read_dir().unwrap() {
            let path = entry.unwrap().path();
            if !path
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("pipeline-")
            {
                continue;
            }
            let pipeline: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
            for step in pipeline["steps"].as_array().unwrap() {
                let record = step["env"]["EVAL_ONCE_STEP"].as_str();
                records.extend(record.map(|record| serde_json::from_str::<Value>(record).unwrap()));
            }
        }
        records
    }

    /// Two more hosts, with empty stores of the same prefix.
    fn two_hosts(&self) -> Option<[Host; 2]> {
        let hosts = ["one", "other"].map(|name| Host::new(self, name));
        let probe = hosts[0].command(self, "true", &[]).status();
        if !probe.is_ok_and(|status| status.success()) {
            println!("Not measured: no mount namespace can be made here.");
            return None;
        }
        Some(hosts)
    }
}

/// The record of a step that is given no share, and so evaluates.
fn without_share(record: &Value) -> Value {
    let mut record = record.clone();
    record["share"] = false.into();
    record.as_object_mut().unwrap().remove("share-size");
    record
}

/// Another host on the same machine.
struct Host {
    /// What it has in the place of the store's folder.
    nix: PathBuf,
    state: PathBuf,
}

impl Host {
    fn new(fleet: &Fleet, name: &str) -> Self {
        // Beside the first store, and not in memory where that is on a disk.
        let parent = fleet.nix.parent().unwrap();
        let folder = tempfile::Builder::new()
            .prefix(name)
            .tempdir_in(parent)
            .unwrap()
            .keep();
        let nix = folder.join("nix");
        for folder in ["store", "state", "log"] {
            fs::create_dir_all(nix.join(folder)).unwrap();
        }
        let settings = Command::new("cp")
            .arg("-r")
            .args([fleet.nix.join("conf"), nix.join("conf")])
            .status();
        assert!(settings.unwrap().success());
        Self {
            nix,
            state: folder.join("eval-once"),
        }
    }

    /// A program on this host.
    fn command(&self, fleet: &Fleet, program: &str, arguments: &[&str]) -> Command {
        let script = format!(
            "mount --bind '{}' '{}' && exec \"$@\"",
            self.nix.display(),
            fleet.nix.display()
        );
        let before = ["--mount", "/bin/sh", "-c", &script, "sh", program];
        let mut command = fleet.build.in_job("unshare", &before);
        command
            .args(arguments)
            .env("EVAL_ONCE_STATE_DIR", &self.state)
            .stdout(Stdio::null());
        command
    }

    /// A step on this host.
    fn step(&self, fleet: &Fleet, record: &Value) -> Command {
        let arguments = ["step", "--report", "/dev/null"];
        let mut step = self.command(fleet, env!("CARGO_BIN_EXE_eval-once"), &arguments);
        let mut record = record.clone();
        record["out-link"] = false.into();
        step.env("EVAL_ONCE_STEP", record.to_string());
        step
    }
}
