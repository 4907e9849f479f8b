//! Questions to Nix around an evaluation, and what Nix says when a program of its ends.

use std::fmt::Display;

use super::RecordingRequest;
use super::evaluate::memory::{self, MIB};
use crate::command_line::{CommandLine, Ending};
use crate::exit::{Class, Classify as _, Failure};
use crate::nix::message::in_one_line;
use crate::nix::{NixOutput, Trouble, class, command};
use crate::supervise::{Finished, OnStop, Supervisor};
use crate::text::shortened;

/// What is kept of what Nix says at its death, in characters.
const MESSAGE_AT_MOST: usize = 2 << 10;

/// The message with which Nix has ended, whole, and where it says that it is. Where it has said nothing, how it ended.
pub(super) fn message_of(nix_output: &NixOutput, ending: Ending) -> String {
    let message = nix_output.whole_message().unwrap_or_default();
    let message = if message.is_empty() {
        match ending {
            Ending::Killed(11) => "Nix was killed by SIGSEGV: a recursion without end?".into(),
            ending => format!("Nix {ending}"),
        }
    } else {
        message
    };
    shortened(&message, MESSAGE_AT_MOST)
}

/// The failure of what is no fault of the expression's: `what` was not evaluated, or whatever else was to be done.
pub(super) fn surroundings(what: impl Display, nix_output: &NixOutput, message: &str) -> Failure {
    let failure = Failure::new(
        Class::Infrastructure,
        format_args!("{what}: {}", in_one_line(message)),
    );
    match nix_output.trouble(false).and_then(Trouble::hint) {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// Whether the store can be asked anything.
///
/// # Errors
/// It cannot (75).
pub(super) fn store_answers(
    options: &command::Options,
    supervisor: &mut Supervisor,
) -> Result<(), Failure> {
    ask_store(&command::ask_store(options), supervisor).map(drop)
}

/// Asks the store something.
///
/// # Errors
/// It cannot be asked (75).
pub(super) fn ask_store(
    line: &CommandLine,
    supervisor: &mut Supervisor,
) -> Result<Finished, Failure> {
    let mut said = Vec::new();
    let finished = supervisor.run(line, OnStop::TermThenKill, &mut said)?;
    if finished.ending.success() {
        return Ok(finished);
    }
    let said = String::from_utf8_lossy(&said);
    Err(class::store_cannot_be_asked(line, finished.ending, &said))
}

/// How much memory all processes together may have, in bytes; none where nobody knows how much is free.
pub(super) fn memory_for_evaluation(
    request: &RecordingRequest,
    supervisor: &mut Supervisor,
) -> Option<u64> {
    request.memory.map(|mib| mib * MIB).or_else(|| {
        let free = memory::free(supervisor)?;
        Some(free / 4 * 3)
    })
}

/// The systems whose outputs of a flake are targets: this host's, and those that agents are named for.
pub(super) fn systems(
    request: &RecordingRequest,
    supervisor: &mut Supervisor,
) -> Result<Vec<String>, Failure> {
    let line = command::current_system(&request.options);
    let mut said = Vec::new();
    let finished = supervisor
        .run(&line, OnStop::TermThenKill, &mut said)
        .map_err(class::not_started)?;
    let ours: String =
        serde_json::from_slice(&finished.stdout).classify(Class::Infrastructure, || {
            format!(
                "`{line}` does not say which system this is: {}",
                String::from_utf8_lossy(&said).trim()
            )
        })?;
    let others = request
        .agents
        .keys()
        .filter(|name| !name.starts_with("feature:") && **name != ours);
    Ok(others.cloned().chain([ours.clone()]).collect())
}
