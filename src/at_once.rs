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
    run(
        supervisor,
        lines,
        lines.len(),
        until,
        |number, finished, said| {
            ran[number] = Some((finished, said));
            Ok(())
        },
    )?;
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
    run(supervisor, lines, at_once, None, ended)
}

fn run(
    supervisor: &mut Supervisor,
    lines: &[CommandLine],
    at_once: usize,
    until: Option<Instant>,
    mut ended: impl FnMut(usize, Finished, String) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut running: Vec<Running> = Vec::new();
    // Of each that runs, its number and what it has said.
    let mut about: Vec<(usize, Vec<u8>)> = Vec::new();
    let mut left = lines.iter().enumerate();
    loop {
        while running.len() < at_once.max(1) && !supervisor.is_stopped() {
            let Some((number, line)) = left.next() else {
                break;
            };
            running.push(supervisor.start(line, OnStop::TermThenKill)?);
            about.push((number, Vec::new()));
        }
        if running.is_empty() {
            return supervisor.check();
        }
        let late = until.is_some_and(|until| Instant::now() >= until);
        for one in running.iter_mut().filter(|one| late && !one.is_stopping()) {
            one.stop(GRACE);
        }
        // Once they are being stopped there is nothing more to wait for but their end.
        let until = until.filter(|_| !late);
        supervisor.watch(&mut running, until, |at, bytes| about[at].1.extend(bytes))?;
        while let Some(at) = running.iter().position(|one| one.ended.is_some()) {
            let finished = running.swap_remove(at).finished();
            let (number, said) = about.swap_remove(at);
            // How one ended that had to is nothing to tell.
            if supervisor.check().is_ok() {
                let said = without_escapes(&String::from_utf8_lossy(&said));
                ended(number, finished, said)?;
            }
        }
    }
}
