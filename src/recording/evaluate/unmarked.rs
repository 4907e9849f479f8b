//! Which of the unmarked sets hold derivations.
//!
//! The answer is worth no build and little time and memory, and errors in there do not matter. So a process of its own searches
//! the sets, and the answers are those that it gave in time.

use std::time::{Duration, Instant};

use super::conversation;
use super::invocation::WorkerInvocation;
use super::processes::{Processes, StopCause, WorkerLimits};
use super::protocol::{self, WalkKind, WalkerMessage};
use super::schedule::{MemoryShare, Schedule, Task, WorkerId};
use super::spans::AttrIndex;
use crate::exit::{Class, Failure};
use crate::store::ATTEMPTS;
use crate::supervise::Supervisor;

/// How many sets are searched.
pub(super) const SEARCHED: usize = 200;

/// For how long they are searched: as long as the evaluation took, but not less or more than this.
const AT_LEAST: Duration = Duration::from_secs(2);
const AT_MOST: Duration = Duration::from_secs(10);

/// Those of these sets that hold derivations, after an evaluation that took this long. The search has `part` of the memory, in bytes.
///
/// # Errors
/// A signal asked us to end (128 + n).
pub(super) fn with_derivations(
    mut sets: Vec<AttrIndex>,
    evaluation_took: Duration,
    invocation: &WorkerInvocation<'_>,
    schedule: &Schedule,
    part: u64,
    supervisor: &mut Supervisor,
) -> Result<Vec<AttrIndex>, Failure> {
    let until = Instant::now() + evaluation_took.clamp(AT_LEAST, AT_MOST);
    let mut holding = Vec::new();
    let mut attempts = 0;
    while !sets.is_empty() && attempts < ATTEMPTS && Instant::now() < until {
        attempts += 1;
        let answers = match search(&sets, until, invocation, schedule, part, supervisor) {
            Ok(answers) => answers,
            Err(failure) if matches!(failure.class, Class::Signal(_)) => return Err(failure),
            Err(_) => break,
        };
        // If it died, then of the set after the last answer.
        sets.drain(..(answers.len() + 1).min(sets.len()));
        let answers = answers.into_iter();
        holding.extend(answers.filter_map(|(path, holds)| holds.then_some(path)));
    }
    Ok(holding)
}

/// Searches these sets in their order, until the process ends.
fn search(
    sets: &[AttrIndex],
    until: Instant,
    invocation: &WorkerInvocation<'_>,
    schedule: &Schedule,
    part: u64,
    supervisor: &mut Supervisor,
) -> Result<Vec<(AttrIndex, bool)>, Failure> {
    let spans = sets.iter().filter_map(|path| schedule.span(path));
    let task = Task::spans(spans.collect());
    let worker = WorkerId::default();
    let mut processes = Processes::new();
    let marker = invocation.marker();
    if invocation.converses() {
        processes.start(worker, &invocation.searcher(part), supervisor)?;
        processes.send(worker, &invocation.first_lines());
        let lines = conversation::task_lines(&task, WalkKind::Search, marker);
        processes.send(worker, &lines);
        processes.close(worker);
    } else {
        let task = protocol::task_text(&task, WalkKind::Search);
        processes.start(worker, &invocation.searcher_for(&task, part), supervisor)?;
    }
    let limits = WorkerLimits {
        share: MemoryShare {
            slots: 1,
            part,
            has_all: true,
        },
        silence: None,
    };
    let mut answers = Vec::new();
    while !processes.is_empty() {
        for (_, line) in processes.watch(supervisor, |_| false)? {
            if let Some(WalkerMessage::Holds(path, holds)) = protocol::read(&line, marker) {
                answers.push((path, holds));
            }
        }
        processes.ended();
        processes.enforce(|_| limits, supervisor);
        if Instant::now() >= until && !processes.is_stopping(worker) {
            processes.stop(worker, StopCause::TooLarge);
        }
    }
    supervisor.check()?;
    Ok(answers)
}
