//! Several programs in parallel, of which only the ending and the output matter. Which programs they are is not known here.

use std::time::{Duration, Instant};

use crate::command_line::CommandLine;
use crate::exit::Failure;
use crate::supervise::{Finished, OnStop, Running, Supervisor};
use crate::text::without_escapes;

/// How long a program gets to end after TERM.
const GRACE: Duration = Duration::from_millis(100);

/// Runs all of these at once, and stops those that still run at `until`. Each is returned, in their order, with its ending and
/// its standard error.
///
/// # Errors
/// A program is missing (69), or cannot be started (75); a signal asked us to end (128 + n).
pub fn all(
    supervisor: &mut Supervisor,
    lines: &[CommandLine],
    until: Option<Instant>,
) -> Result<Vec<(Finished, String)>, Failure> {
    let mut ran: Vec<_> = lines.iter().map(|_| None).collect();
    let limits = Limits {
        at_once: lines.len(),
        until,
        ..Limits::default()
    };
    run(supervisor, lines, &limits, |number, finished, stderr| {
        ran[number] = Some((finished, stderr));
        Ok(())
    })?;
    Ok(ran.into_iter().flatten().collect())
}

/// Runs these, always `at_once` of them at a time while that many remain. `ended` gets each that ends by itself: its number, its
/// ending and its standard error.
///
/// # Errors
/// As [`all`]; or the error that `ended` returns: then those that still run are killed.
pub fn each(
    supervisor: &mut Supervisor,
    lines: &[CommandLine],
    at_once: usize,
    ended: impl FnMut(usize, Finished, String) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let limits = Limits {
        at_once,
        ..Limits::default()
    };
    run(supervisor, lines, &limits, ended)
}

/// As [`each`]; but one that still runs after `patience` is stopped, and passed to `ended` as well.
///
/// # Errors
/// As [`each`].
pub fn each_within(
    supervisor: &mut Supervisor,
    lines: &[CommandLine],
    at_once: usize,
    patience: Duration,
    ended: impl FnMut(usize, Finished, String) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let limits = Limits {
        at_once,
        patience: Some(patience),
        ..Limits::default()
    };
    run(supervisor, lines, &limits, ended)
}

/// The limits of several programs.
#[derive(Debug, Default)]
struct Limits {
    /// How many of them run at a time.
    at_once: usize,
    /// When those that still run are stopped.
    until: Option<Instant>,
    /// How long each may run.
    patience: Option<Duration>,
}

/// A program that runs: what is known of it beside its process.
#[derive(Debug)]
struct Details {
    number: usize,
    stderr: Vec<u8>,
    /// When it is stopped.
    until: Option<Instant>,
}

fn run(
    supervisor: &mut Supervisor,
    lines: &[CommandLine],
    limits: &Limits,
    mut ended: impl FnMut(usize, Finished, String) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut running: Vec<Running> = Vec::new();
    // In the order of `running`.
    let mut details: Vec<Details> = Vec::new();
    let mut left = lines.iter().enumerate();
    loop {
        while running.len() < limits.at_once.max(1) && !supervisor.is_stopped() {
            let Some((number, line)) = left.next() else {
                break;
            };
            running.push(supervisor.start(line, OnStop::TermThenKill)?);
            let patience = limits.patience.map(|patience| Instant::now() + patience);
            details.push(Details {
                number,
                stderr: Vec::new(),
                until: patience.into_iter().chain(limits.until).min(),
            });
        }
        if running.is_empty() {
            return supervisor.check();
        }
        let now = Instant::now();
        for (one, details) in running.iter_mut().zip(&details) {
            let is_late = details.until.is_some_and(|until| now >= until);
            if is_late && !one.is_stopping() {
                one.stop(GRACE);
            }
        }
        // A program that is being stopped has no further limit: only its end is awaited.
        let waited_for = running.iter().zip(&details);
        let until = waited_for
            .filter(|(one, _)| !one.is_stopping())
            .filter_map(|(_, details)| details.until)
            .min();
        supervisor.watch(&mut running, until, |at, bytes| {
            details[at].stderr.extend(bytes);
        })?;
        while let Some(at) = running.iter().position(|one| one.ended.is_some()) {
            let finished = running.swap_remove(at).finished();
            let Details { number, stderr, .. } = details.swap_remove(at);
            // After a signal, the endings are of our own doing.
            if supervisor.check().is_ok() {
                let stderr = without_escapes(&String::from_utf8_lossy(&stderr));
                ended(number, finished, stderr)?;
            }
        }
    }
}
