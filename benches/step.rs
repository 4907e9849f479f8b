//! What a step costs beside the bare Nix command, where its outputs are there already: the cost of us, and nothing else.
//!
//! Run by `script/bench`, which makes the store. Each of our runs is paired with a run of the bare command, so that what
//! the machine does besides falls on both; the order within a pair alternates. It measures and fails for no time.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program by hand, which has nobody to report to but its user"
)]

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

/// Runs before anything is measured: caches are warm then, and links are made.
const WARM_UP: usize = 10;

fn main() {
    // Cargo adds `--bench`.
    let mut arguments = env::args().skip(1).filter(|argument| argument != "--bench");
    let (Some(drv), pairs) = (arguments.next(), arguments.next()) else {
        println!("usage: script/bench [PAIRS]");
        return;
    };
    let pairs: usize = pairs.map_or(200, |pairs| pairs.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();

    let bare = || {
        command(
            folder,
            "nix-store",
            &["--realise", &drv, "--add-root", "bare"],
        )
    };
    let step = || {
        let arguments = ["step", "--drv", &drv, "--out-link", "step"];
        command(folder, env!("CARGO_BIN_EXE_eval-once"), &arguments)
    };
    let plugin = || plugin(folder, &drv);

    println!(
        "A step whose outputs are there, beside the bare `nix-store --realise DRV --add-root LINK`."
    );
    println!("Medians of {pairs} pairs in milliseconds; in brackets the quartiles.\n");
    println!(
        "{:<22} {:>8} {:>8}   {:<26} ratio",
        "", "bare", "ours", "difference"
    );
    compare("eval-once step", pairs, &bare, &step);
    compare("hooks/command (bash)", pairs, &bare, &plugin);
    println!();
    look_at_memory(folder, step());
}

/// A command that sees what `script/bench` has set up, and nothing else of its caller's environment.
fn command(folder: &Path, program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .env_clear()
        .envs(env::vars_os().filter(|(name, _)| {
            let name = name.to_string_lossy();
            name.starts_with("NIX_") || ["PATH", "HOME", "EVAL_ONCE_STATE_DIR"].contains(&&*name)
        }));
    command
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

/// Runs both in pairs and prints how they differ.
fn compare(what: &str, pairs: usize, bare: &dyn Fn() -> Command, ours: &dyn Fn() -> Command) {
    for _ in 0..WARM_UP {
        milliseconds(bare());
        milliseconds(ours());
    }
    let times: Vec<(f64, f64)> = (0..pairs)
        .map(|pair| {
            if pair % 2 == 0 {
                let bare = milliseconds(bare());
                (bare, milliseconds(ours()))
            } else {
                let ours = milliseconds(ours());
                (milliseconds(bare()), ours)
            }
        })
        .collect();
    let spread = |of: fn(&(f64, f64)) -> f64| quartiles(times.iter().map(of).collect());
    let [_, bare, _] = spread(|(bare, _)| *bare);
    let [_, ours, _] = spread(|(_, ours)| *ours);
    let [low, difference, high] = spread(|(bare, ours)| ours - bare);
    let difference = format!("{difference:+.2} ({low:+.2} … {high:+.2})");
    let [low, ratio, high] = spread(|(bare, ours)| ours / bare);
    println!(
        "{what:<22} {bare:>8.2} {ours:>8.2}   {difference:<26} {ratio:.3} ({low:.3} … {high:.3})"
    );
}

/// From the start of a command to its end, which must be a success: a failure is quick and would look like a gain.
fn milliseconds(mut command: Command) -> f64 {
    let start = Instant::now();
    let status = command.status().unwrap();
    let took = start.elapsed();
    assert!(status.success(), "{status}: {command:?}");
    took.as_secs_f64() * 1000.0
}

/// The lower quartile, the median, and the upper quartile.
fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[(values.len() - 1) * quarter / 4])
}

/// Prints the most memory that our own process ever had, and how many Nix processes it started.
///
/// What the system accounts to a process that has ended includes the children it waited for, and Nix is larger than we
/// are. So a stand-in for `nix-store` looks at its parent, when the real one has done its work and we have ours behind us
/// but for the last line.
fn look_at_memory(folder: &Path, mut step: Command) {
    let path = env::var_os("PATH").unwrap();
    let real = env::split_paths(&path)
        .map(|folder| folder.join("nix-store"))
        .find(|file| file.is_file())
        .unwrap();
    let bin = folder.join("bin");
    let log = folder.join("memory");
    fs::create_dir(&bin).unwrap();
    stand_in(
        &bin.join("nix-store"),
        &format!(
            "#!/bin/sh\n'{}' \"$@\"; status=$?\ngrep VmHWM /proc/$PPID/status >>'{}'\nexit $status\n",
            real.display(),
            log.display()
        ),
    );
    let folders = [bin].into_iter().chain(env::split_paths(&path));
    step.env("PATH", env::join_paths(folders).unwrap());
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

fn stand_in(file: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(file, text).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
}
