//! Several programs at once, of which only the ending, the output and what they say are of interest. It does not know what they are.

use std::time::{Duration, Instant};

use crate::command_line::CommandLine;
use crate::exit::Failure;
use crate::supervise::{Finished, OnStop, Running, Supervisor};
use crate::text::without_escapes;

/// How long a program gets to end after it was told to.
const GRACE: Duration = Duration::from_millis(100);

/// Runs all of these at once, and stops those that have not ended `until` then. Each comes back, in their order, with how it ended
/// and what it said on standard error.
///
/// # Errors
/// A program is missing (69), or cannot be started (75); a signal asked us to end (128 + n).
pub fn all(
    supervisor: &mut Supervisor,
    lines: &[CommandLine],
    until: Option<Instant>,
) -> Result<Vec<(Finished, String)>, Failure> {
    let mut ran: Vec<_> = lines.iter().map(|_| None).collect();
    let within = Within {
        at_once: lines.len(),
        until,
        ..Within::default()
    };
    run(supervisor, lines, &within, |number, finished, said| {
        ran[number] = Some((finished, said));
        Ok(())
    })?;
    Ok(ran.into_iter().flatten().collect())
}

/// Runs these, never more than `at_once` of them at a time and never fewer while some are left. `ended` is given each when it has
/// ended by itself: its number, how it ended, and what it said on standard error.
///
/// # Errors
/// As [`all`]; or what `ended` says: then those that still run are killed.
pub fn each(
    supervisor: &mut Supervisor,
    lines: &[CommandLine],
    at_once: usize,
    ended: impl FnMut(usize, Finished, String) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let within = Within {
        at_once,
        ..Within::default()
    };
    run(supervisor, lines, &within, ended)
}

/// The same; but one that has not ended after `patience` is stopped, and given to `ended` too.
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
    let within = Within {
        at_once,
        patience: Some(patience),
        ..Within::default()
    };
    run(supervisor, lines, &within, ended)
}

/// Within what several programs run.
#[derive(Debug, Default)]
struct Within {
    /// How many of them at a time.
    at_once: usize,
    /// When those are stopped that have not ended.
    until: Option<Instant>,
    /// How long each may take.
    patience: Option<Duration>,
}

/// What is known of a program that runs.
#[derive(Debug)]
struct About {
    number: usize,
    said: Vec<u8>,
    /// When it is stopped.
    until: Option<Instant>,
}

fn run(
    supervisor: &mut Supervisor,
    lines: &[CommandLine],
    within: &Within,
    mut ended: impl FnMut(usize, Finished, String) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut running: Vec<Running> = Vec::new();
    // Of each that runs.
    let mut about: Vec<About> = Vec::new();
    let mut left = lines.iter().enumerate();
    loop {
        while running.len() < within.at_once.max(1) && !supervisor.is_stopped() {
            let Some((number, line)) = left.next() else {
                break;
            };
            running.push(supervisor.start(line, OnStop::TermThenKill)?);
            let patience = within.patience.map(|patience| Instant::now() + patience);
            about.push(About {
                number,
                said: Vec::new(),
                until: patience.into_iter().chain(within.until).min(),
            });
        }
        if running.is_empty() {
            return supervisor.check();
        }
        let now = Instant::now();
        for (one, about) in running.iter_mut().zip(&about) {
            let is_late = about.until.is_some_and(|until| now >= until);
            if is_late && !one.is_stopping() {
                one.stop(GRACE);
            }
        }
        // Once one is being stopped there is nothing more to wait for but its end.
        let waited_for = running.iter().zip(&about);
        let until = waited_for
            .filter(|(one, _)| !one.is_stopping())
            .filter_map(|(_, about)| about.until)
            .min();
        supervisor.watch(&mut running, until, |at, bytes| {
            about[at].said.extend(bytes);
        })?;
        while let Some(at) = running.iter().position(|one| one.ended.is_some()) {
            let finished = running.swap_remove(at).finished();
            let About { number, said, .. } = about.swap_remove(at);
            // How one ended that had to is nothing to tell.
            if supervisor.check().is_ok() {
                let said = without_escapes(&String::from_utf8_lossy(&said));
                ended(number, finished, said)?;
            }
        }
    }
}
