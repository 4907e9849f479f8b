//! The flake of a recording, locked once before anything is evaluated.

use std::path::Path;

use crate::exit::Failure;
use crate::host;
use crate::log::Log;
use crate::nix::command::OwnedOptions;
use crate::nix::{LockedFlake, NixOutput, NoiseFilter, Phase, Source, class};
use crate::recording::RecordingRequest;
use crate::store::Store;
use crate::supervise::{OnStop, Supervisor};

/// Locks the flake, where it is one. Also gives the settings that it asks for, where this host trusts it with them: they count
/// from then on.
///
/// # Errors
/// It cannot be locked (65); the system failed twice (75); a signal asked us to end (128 + n).
pub(in crate::recording) fn lock(
    request: &RecordingRequest,
    temporary: &Path,
    store: &mut Store,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<(Option<LockedFlake>, OwnedOptions), Failure> {
    let Source::Flake(flake) = &request.root.source else {
        return Ok((None, Vec::new()));
    };
    let Some(line) = store.lock_line(supervisor, &request.root)? else {
        return Ok((None, Vec::new()));
    };
    let mut was_repeated = false;
    let (finished, stderr) = loop {
        let mut stderr = Vec::new();
        let finished = supervisor
            .run(&line, OnStop::TermThenKill, &mut stderr)
            .map_err(class::not_started)?;
        if finished.ending.success() {
            break (finished, stderr);
        }
        store.check_answers(supervisor)?;
        let output = NixOutput::of(&stderr);
        let message = output.final_message(finished.ending);
        let class = class::of(Phase::Fetching, finished.ending, &output);
        let what = format!("the flake {flake} cannot be locked");
        if let Some(failure) = host::no_temporary_folder(temporary, &message) {
            return Err(failure);
        }
        if !class::is_worth_another_try(class) {
            let failure = Failure::new(class, format_args!("{what}: {message}"));
            return Err(match request.root.hint_at(&message) {
                Some(hint) => failure.hint(hint),
                None => failure,
            });
        }
        if std::mem::replace(&mut was_repeated, true) {
            return Err(class::infrastructure_failure(what, &output, &message));
        }
    };
    log.pass_on(&NoiseFilter::new(log.debug).filtered(&stderr));
    let (locked, settings) = store.read_lock(supervisor, &line, &finished)?;
    Ok((Some(locked), settings))
}

/// The systems whose outputs of a flake are targets: those that agents are named for, and last this host's.
///
/// # Errors
/// Nix does not say which system this is (75).
pub(super) fn systems(
    request: &RecordingRequest,
    store: &mut Store,
    supervisor: &mut Supervisor,
) -> Result<Vec<String>, Failure> {
    let ours = store.system(supervisor)?;
    let others = request
        .agents
        .keys()
        .filter(|name| !name.starts_with("feature:") && **name != ours);
    Ok(others.cloned().chain([ours.clone()]).collect())
}
