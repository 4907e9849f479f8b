//! Questions to Nix around an evaluation, and what Nix says when a program of its ends.

use std::io::{self, Write as _};
use std::path::Path;

use super::Request;
use super::memory::{self, MIB};
use crate::command_line::{CommandLine, Ending};
use crate::exit::{Class, Classify as _, Failure};
use crate::flake_settings;
use crate::host;
use crate::log::Log;
use crate::nix::{FlakeMetadata, Heard, LockedFlake, Source, class, command};
use crate::supervise::{Finished, OnStop, Supervisor};
use crate::text::{shortened, without_escapes};

/// Nix settings by name.
type Options = Vec<(String, String)>;

/// What is kept of what Nix says at its death, in characters.
const MESSAGE_AT_MOST: usize = 2 << 10;

/// What Nix has said at its death.
pub(super) fn last_words(words: &[u8], ending: Ending) -> (Heard, String) {
    let heard = Heard::of(words);
    let text = without_escapes(&String::from_utf8_lossy(words));
    // Newer versions tell first how they came there.
    let start = text
        .rfind("error: ")
        .map_or(text.len(), |start| start + "error: ".len());
    let lines = text[start..]
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.contains("--show-trace"));
    let mut message = lines.collect::<Vec<_>>().join("\n").trim().to_owned();
    if message.is_empty() {
        message = match ending {
            Ending::Killed(11) => "Nix was killed by SIGSEGV: a recursion without end?".into(),
            ending => format!("Nix {ending}"),
        };
    }
    (heard, shortened(&message, MESSAGE_AT_MOST))
}

/// Whether Nix ended because the expression asked for that, with words that are the expression's.
pub(super) fn is_abort(words: &[u8]) -> bool {
    without_escapes(&String::from_utf8_lossy(words))
        .contains("evaluation aborted with the following error message")
}

/// What Nix says, as one sentence, and where it says that it is.
pub(super) fn in_one_line(message: &str) -> String {
    let mut lines = message
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    let place = lines
        .filter_map(|line| line.strip_prefix("at "))
        // Not where that is in an expression of ours.
        .find(|place| !place.starts_with('«'))
        .map(|place| place.trim_end_matches(':'));
    match place {
        Some(place) if !first.contains(place) => format!("{first}, at {place}"),
        _ => first.to_owned(),
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
pub(super) fn memory_for_evaluation(request: &Request, supervisor: &mut Supervisor) -> Option<u64> {
    request.memory.map(|mib| mib * MIB).or_else(|| {
        let free = memory::free(supervisor)?;
        Some(free / 4 * 3)
    })
}

/// The flake, locked, where it is one; and the settings that it asks for, where this host trusts it with them.
pub(super) fn lock(
    request: &Request,
    temporary: &Path,
    supervisor: &mut Supervisor,
    log: Log,
) -> Result<(Option<LockedFlake>, Options), Failure> {
    let Source::Flake(flake) = &request.root.source else {
        return Ok((None, Vec::new()));
    };
    let line = command::flake_metadata(flake, &request.root.folder, &request.options);
    let mut said = Vec::new();
    let finished = supervisor
        .run(&line, OnStop::TermThenKill, &mut said)
        .map_err(class::not_started)?;
    if !finished.ending.success() {
        store_answers(&request.options, supervisor)?;
        let (_, message) = last_words(&said, finished.ending);
        if let Some(failure) = host::no_temporary_folder(temporary, &message) {
            return Err(failure);
        }
        let failure = Failure::new(
            Class::Evaluation,
            format_args!("the flake {flake} cannot be locked: {message}"),
        );
        return Err(match request.root.hint_at(&message) {
            Some(hint) => failure.hint(hint),
            None => failure,
        });
    }
    let _ = io::stderr().write_all(&said);
    let metadata: FlakeMetadata = serde_json::from_slice(&finished.stdout)
        .classify(Class::Bug, || format!("cannot read what `{line}` printed"))?;
    let settings = flake_settings::accepted(&metadata, &request.options, supervisor, log)?;
    Ok((Some(metadata.locked()), settings))
}

/// The systems whose outputs of a flake are targets: this host's, and those that agents are named for.
pub(super) fn systems(
    request: &Request,
    supervisor: &mut Supervisor,
) -> Result<Vec<String>, Failure> {
    let line = command::current_system(&request.options);
    let mut said = Vec::new();
    let finished = supervisor
        .run(&line, OnStop::TermThenKill, &mut said)
        .map_err(class::not_started)?;
    let ours: String =
        serde_json::from_slice(&finished.stdout).classify(Class::Surroundings, || {
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
