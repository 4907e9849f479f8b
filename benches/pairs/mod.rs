//! Two commands side by side, in pairs of runs: what the machine does besides falls on both, and the order within a pair
//! alternates.

use std::{
    env,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use unix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};

/// What the median should be at most. A missed goal is shown, and fails nothing: the machine may have been busy.
#[derive(Clone, Copy)]
#[allow(dead_code, reason = "not all in every benchmark")]
pub(crate) enum Goal {
    None,
    Ratio(f64),
    /// In milliseconds.
    Difference(f64),
}

impl Goal {
    /// In words, for these medians.
    fn shown(self, difference: f64, ratio: f64) -> String {
        let (what, limit, median) = match self {
            Self::None => return String::new(),
            Self::Ratio(limit) => ("ratio", limit, ratio),
            Self::Difference(limit) => ("difference", limit, difference),
        };
        let met = if median <= limit { "met" } else { "MISSED" };
        format!("   {what} at most {limit}: {met}")
    }
}

/// A command that sees what `script/bench` has set up, and nothing else of its caller's environment.
pub(crate) fn command(folder: &Path, program: &str, arguments: &[&str]) -> Command {
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

/// Prints what stands above the lines of [`compare`].
pub(crate) fn heading(one: &str, other: &str) {
    println!(
        "{:<22} {one:>9} {other:>9}   {:<29} ratio",
        "", "difference"
    );
}

/// Runs both in pairs, after `warm_up` runs that are not measured, and prints how they differ: medians in milliseconds, and
/// in brackets the quartiles.
#[allow(dead_code, reason = "not in every benchmark")]
pub(crate) fn compare(
    what: &str,
    warm_up: usize,
    pairs: usize,
    one: &dyn Fn() -> Command,
    other: &dyn Fn() -> Command,
    goal: Goal,
) {
    for _ in 0..warm_up {
        milliseconds(one());
        milliseconds(other());
    }
    let times: Vec<(f64, f64)> = (0..pairs)
        .map(|pair| in_turn(pair, || milliseconds(one()), || milliseconds(other())))
        .collect();
    print_line(what, &times, goal);
}

/// Both of a pair, in an order that alternates.
pub(crate) fn in_turn<T>(
    pair: usize,
    one: impl FnOnce() -> T,
    other: impl FnOnce() -> T,
) -> (T, T) {
    if pair.is_multiple_of(2) {
        let one = one();
        (one, other())
    } else {
        let other = other();
        (one(), other)
    }
}

/// Prints how the values of pairs differ: medians, and in brackets the quartiles.
pub(crate) fn print_line(what: &str, times: &[(f64, f64)], goal: Goal) {
    let spread = |of: fn(&(f64, f64)) -> f64| quartiles(times.iter().map(of).collect());
    let [_, one, _] = spread(|(one, _)| *one);
    let [_, other, _] = spread(|(_, other)| *other);
    let [low, difference, high] = spread(|(one, other)| other - one);
    let differences = format!("{difference:+.2} ({low:+.2} … {high:+.2})");
    let [low, ratio, high] = spread(|(one, other)| other / one);
    let ratios = format!("{ratio:.3} ({low:.3} … {high:.3})");
    let goal = goal.shown(difference, ratio);
    println!("{what:<22} {one:>9.2} {other:>9.2}   {differences:<29} {ratios:<23}{goal}");
}

/// From the start of a command to its end, which must be a success: a failure is quick and would look like a gain.
pub(crate) fn milliseconds(mut command: Command) -> f64 {
    let start = Instant::now();
    let status = command.status().unwrap();
    let took = start.elapsed();
    assert!(status.success(), "{status}: {command:?}");
    took.as_secs_f64() * 1000.0
}

/// What a command took, in milliseconds.
#[allow(dead_code, reason = "not in every benchmark")]
pub(crate) struct Spent {
    pub(crate) time: f64,
    /// Of all its processes.
    pub(crate) processor: f64,
}

/// Runs a command, which must succeed.
#[allow(dead_code, reason = "not in every benchmark")]
pub(crate) fn spend(command: Command) -> Spent {
    #[expect(clippy::cast_precision_loss, reason = "microseconds of seconds")]
    let processor = || {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
        (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1000.0
    };
    let before = processor();
    let time = milliseconds(command);
    Spent {
        time,
        processor: processor() - before,
    }
}

/// The lower quartile, the median, and the upper quartile.
pub(crate) fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[(values.len() - 1) * quarter / 4])
}
