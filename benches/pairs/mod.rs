//! Two commands side by side, in pairs of runs: what the machine does besides falls on both, and the order within a pair
//! alternates.

use std::{
    env,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

/// What a median should be at most. A missed goal is shown, and fails nothing: the machine may have been busy.
#[derive(Clone, Copy)]
pub(crate) struct Goal {
    ratio: Option<f64>,
    difference: Option<f64>,
}

/// The goal that the other's value divided by the one's, and the other's value without the one's (in milliseconds), are at most this.
pub(crate) const fn goal(ratio: Option<f64>, difference: Option<f64>) -> Goal {
    Goal { ratio, difference }
}

impl Goal {
    /// In words, for these medians.
    fn shown(self, difference: f64, ratio: f64) -> String {
        let shown = |what, limit: Option<f64>, median| {
            limit.map_or_else(String::new, |limit| {
                let met = if median <= limit { "met" } else { "MISSED" };
                format!("   {what} at most {limit}: {met}")
            })
        };
        shown("ratio", self.ratio, ratio) + &shown("difference", self.difference, difference)
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

/// The lower quartile, the median, and the upper quartile.
pub(crate) fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[(values.len() - 1) * quarter / 4])
}
