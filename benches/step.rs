//! What a step costs beside the bare Nix command, where its outputs are there already; and what a long log costs: the cost of
//! us, and nothing else.
//!
//! Run by `script/bench`, which makes the store. Each of our runs is paired with a run of the bare command. It measures and
//! fails for no time.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program that is run by hand, and reports to its user alone"
)]

mod compare;
mod pairs;

use std::{
    env,
    ffi::OsString,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use compare::compare;
use pairs::{Goal, command, goal, milliseconds};

/// Runs before anything is measured: caches are warm then, and links are made.
const WARM_UP: usize = 10;

/// What a step may cost that has nothing to do.
const GOAL: Goal = goal(None, Some(2.0));

/// How many lines a builder prints in the long log, and what it may cost to show them.
const LINES: usize = 200_000;
const LOG_GOAL: Goal = goal(None, Some(300.0));

fn main() {
    // Cargo adds `--bench`.
    let mut arguments = env::args().skip(1).filter(|argument| argument != "--bench");
    let (Some(what), Some(drv), pairs) = (arguments.next(), arguments.next(), arguments.next())
    else {
        println!("usage: script/bench step|log [PAIRS]");
        return;
    };
    let pairs: Option<usize> = pairs.map(|pairs| pairs.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    if what == "log" {
        log(folder.path(), &drv, pairs.unwrap_or(20));
    } else {
        step(folder.path(), &drv, pairs.unwrap_or(200));
    }
}

/// A step that has nothing to do, beside the bare command. Goal: 2 ms more, however its log is shown.
fn step(folder: &Path, drv: &str, pairs: usize) {
    let bare = || {
        command(
            folder,
            "nix-store",
            &["--realise", drv, "--add-root", "bare"],
        )
    };
    let step = |form| {
        let arguments = ["step", "--drv", drv, "--out-link", "step", "--log", form];
        command(folder, env!("CARGO_BIN_EXE_eval-once"), &arguments)
    };
    let plugin = || plugin(folder, drv);

    println!(
        "A step whose outputs are there, beside the bare `nix-store --realise DRV --add-root LINK`."
    );
    println!("Medians of {pairs} pairs in milliseconds; in brackets the quartiles.\n");
    pairs::heading("bare", "ours");
    compare(
        "log: pretty",
        WARM_UP,
        pairs,
        &bare,
        &|| step("pretty"),
        GOAL,
    );
    compare("log: raw", WARM_UP, pairs, &bare, &|| step("raw"), GOAL);
    compare(
        "hooks/command (bash)",
        WARM_UP,
        pairs,
        &bare,
        &plugin,
        goal(None, None),
    );
    println!();
    look_at_memory(folder, step("pretty"));
}

/// A long log, read and written again, beside the same log that is not read: a stand-in for `nix-store` says it as fast as it
/// can, and is the real one then. So the difference is all ours.
fn log(folder: &Path, drv: &str, pairs: usize) {
    let said = folder.join("said");
    let mut text = format!(
        "@nix {{\"action\":\"start\",\"fields\":[\"{drv}\",\"\",1,1],\"id\":1,\"level\":3,\"text\":\"building\",\"type\":105}}\n"
    );
    for line in 0..LINES {
        let _ = writeln!(
            text,
            "@nix {{\"action\":\"result\",\"fields\":[\"line {line} of a log that is as long as lines are\"],\"id\":1,\"type\":101}}"
        );
    }
    text.push_str("@nix {\"action\":\"stop\",\"id\":1}\n");
    fs::write(&said, text).unwrap();
    let (bin, path) = with_stand_in(
        folder,
        &format!("cat '{}' >&2\nexec REAL \"$@\"", said.display()),
    );
    let bare = || {
        let program = bin.join("nix-store");
        let arguments = ["--realise", drv, "--add-root", "bare"];
        command(folder, program.to_str().unwrap(), &arguments)
    };
    let step = |form: &'static str| {
        let path = path.clone();
        move || {
            let arguments = ["step", "--drv", drv, "--out-link", "step", "--log", form];
            let mut step = command(folder, env!("CARGO_BIN_EXE_eval-once"), &arguments);
            step.env("PATH", &path);
            step
        }
    };
    println!(
        "A log of {LINES} lines that a stand-in says and a step shows, beside the stand-in alone."
    );
    println!("Medians of {pairs} pairs in milliseconds; in brackets the quartiles.\n");
    pairs::heading("alone", "ours");
    compare("log: pretty", 1, pairs, &bare, &step("pretty"), LOG_GOAL);
    compare("log: raw", 1, pairs, &bare, &step("raw"), LOG_GOAL);
}

/// The same step as the agent runs it for a plugin: by the shell hook, after the environment hook has named the program.
fn plugin(folder: &Path, drv: &str) -> Command {
    let hook = Path::new(env!("CARGO_MANIFEST_DIR")).join("hooks/command");
    let mut command = command(folder, "bash", &[hook.to_str().unwrap()]);
    command
        .env("EVAL_ONCE_BIN", env!("CARGO_BIN_EXE_eval-once"))
        .env("BUILDKITE", "true")
        .env("BUILDKITE_COMMAND", "")
        .env("BUILDKITE_COMMAND_EVAL", "true")
        .env("BUILDKITE_BUILD_CHECKOUT_PATH", folder)
        .env("BUILDKITE_PLUGIN_NAME", "EVAL_ONCE")
        .env(
            "BUILDKITE_PLUGIN_CONFIGURATION",
            format!(r#"{{"drv":"{drv}","out-link":"plugin"}}"#),
        );
    command
}

/// Prints the most memory that our own process ever had, and how many Nix processes it started.
///
/// What the system accounts to a process that has ended includes the children it waited for, and Nix is larger than we
/// are. So a stand-in for `nix-store` looks at its parent, when the real one has done its work and we have ours behind us
/// but for the last line.
fn look_at_memory(folder: &Path, mut step: Command) {
    let log = folder.join("memory");
    let script = format!(
        "REAL \"$@\"; status=$?\ngrep VmHWM /proc/$PPID/status >>'{}'\nexit $status",
        log.display()
    );
    let (_, path) = with_stand_in(folder, &script);
    step.env("PATH", path);
    milliseconds(step);

    let log = fs::read_to_string(log).unwrap();
    let peak: Vec<f64> = log
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1)?.parse().ok())
        .collect();
    println!("Nix processes of one step: {}", log.lines().count());
    match peak.into_iter().reduce(f64::max) {
        Some(kib) => println!("Most memory of our own process: {:.1} MiB", kib / 1024.0),
        None => println!("Most memory of our own process: not to be seen without Linux's /proc"),
    }
}

/// A stand-in for `nix-store`, in a folder of its own, and a PATH on which it comes first: what it does, where `REAL` is the
/// real one.
fn with_stand_in(folder: &Path, script: &str) -> (PathBuf, OsString) {
    let path = env::var_os("PATH").unwrap();
    let real = env::split_paths(&path)
        .map(|folder| folder.join("nix-store"))
        .find(|file| file.is_file())
        .unwrap();
    let bin = folder.join("bin");
    fs::create_dir(&bin).unwrap();
    let script = script.replace("REAL", &format!("'{}'", real.display()));
    stand_in(&bin.join("nix-store"), &format!("#!/bin/sh\n{script}\n"));
    let folders = [bin.clone()].into_iter().chain(env::split_paths(&path));
    (bin, env::join_paths(folders).unwrap())
}

fn stand_in(file: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(file, text).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
}
