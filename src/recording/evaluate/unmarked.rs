//! Which of the sets that are not marked hold derivations.
//!
//! A recording is not worth a build for that, nor much time or memory, and what fails in there does not matter. So it is a
//! process of its own, and the answers are those that came in time.

use std::time::{Duration, Instant};

use super::invocation::Invocation;
use super::processes::{Limits, Processes, StopReason};
use super::protocol::{self, WalkerMessage};
use super::schedule::{Schedule, Task};
use super::spans::AttrIndex;
use crate::exit::{Class, Failure};
use crate::store::ATTEMPTS;
use crate::supervise::Supervisor;

/// How many sets are looked into.
pub(super) const LOOKED_AT: usize = 200;

/// For how long: as long as the evaluation took, within these.
const AT_LEAST: Duration = Duration::from_secs(2);
const AT_MOST: Duration = Duration::from_secs(10);

/// Those of these sets that hold derivations, after an evaluation that took so long.
///
/// # Errors
/// A signal asked us to end (128 + n).
pub(super) fn with_derivations(
    mut sets: Vec<AttrIndex>,
    evaluation_took: Duration,
    invocation: &Invocation<'_>,
    schedule: &mut Schedule,
    supervisor: &mut Supervisor,
) -> Result<Vec<AttrIndex>, Failure> {
    let until = Instant::now() + evaluation_took.clamp(AT_LEAST, AT_MOST);
    let mut holding = Vec::new();
    let mut attempts = 0;
    while !sets.is_empty() && attempts < ATTEMPTS && Instant::now() < until {
        attempts += 1;
        let answers = match look(&sets, until, invocation, schedule, supervisor) {
            Ok(answers) => answers,
            Err(failure) if matches!(failure.class, Class::Signal(_)) => return Err(failure),
            Err(_) => break,
        };
        // The process has died of the set behind the last answer.
        sets.drain(..(answers.len() + 1).min(sets.len()));
        let answers = answers.into_iter();
        holding.extend(answers.filter_map(|(path, holds)| holds.then_some(path)));
    }
    Ok(holding)
}

/// Asks a process about these sets, in their order, until it ends.
fn look(
    sets: &[AttrIndex],
    until: Instant,
    invocation: &Invocation<'_>,
    schedule: &mut Schedule,
    supervisor: &mut Supervisor,
) -> Result<Vec<(AttrIndex, bool)>, Failure> {
    let spans = sets.iter().filter_map(|path| schedule.span(path));
    let task = Task::spans(spans.collect());
    let share = schedule.share(&task);
    let line = invocation.look(&task, share);
    schedule.plan(vec![task]);
    let Some(worker) = schedule.assign(Instant::now()) else {
        return Ok(Vec::new());
    };
    let mut processes = Processes::new();
    processes.start(worker, &line, supervisor)?;
    let limits = Limits {
        memory: Some(share),
        silence: None,
    };
    let mut answers = Vec::new();
    while !processes.is_empty() {
        for (_, line) in processes.watch(supervisor)? {
            if let Some(WalkerMessage::Holds(path, holds)) =
                protocol::read(&line, invocation.marker())
            {
                answers.push((path, holds));
            }
        }
        processes.ended();
        processes.enforce(|_| limits, supervisor);
        if Instant::now() >= until && !processes.is_stopping(worker) {
            processes.stop(worker, StopReason::TooLarge);
        }
    }
    schedule.finish(worker);
    supervisor.check()?;
    Ok(answers)
}
