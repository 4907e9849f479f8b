//! The flake of a recording, locked once before anything is evaluated.

use std::path::Path;
use std::time::Instant;

use crate::command_line::CommandLine;
use crate::exit::{Class, Classify as _, Failure};
use crate::host;
use crate::log::Log;
use crate::nix::command::{self, OwnedOptions};
use crate::nix::message::in_one_line;
use crate::nix::structured::{Event, LogReader};
use crate::nix::{LockedFlake, NixOutput, NoiseFilter, Phase, Source, class};
use crate::recording::RecordingRequest;
use crate::secrets::shortened;
use crate::state::{Roots, StateFolder};
use crate::status_line::StatusLine;
use crate::store::{COLLECTOR_HINT, FlakeLock, KEEPING_ATTEMPTS, Store};
use crate::supervise::{Finished, OnStop, Printed, Supervisor};
use crate::text::without_escapes;

/// How much is shown of what Nix says that it does, in characters.
const DOING_AT_MOST: usize = 120;

/// The flake that is evaluated, where it is one.
#[derive(Debug, Default)]
pub(in crate::recording) struct RootedFlake {
    pub(in crate::recording) locked: Option<LockedFlake>,
    /// The settings that it asks for, where this host trusts it with them: they count from now on.
    pub(in crate::recording) settings: OwnedOptions,
    /// What keeps its source, as long as this value lives.
    _source: Option<Roots>,
}

/// Locks the flake, where it is one, and roots its source.
///
/// # Errors
/// It cannot be locked (65); the system failed twice, or the collector takes the source each time (75); a signal asked us to end
/// (128 + n).
pub(in crate::recording) fn lock(
    request: &RecordingRequest,
    temporary: &Path,
    state: &StateFolder,
    store: &mut Store,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<RootedFlake, Failure> {
    let Source::Flake(flake) = &request.root.source else {
        return Ok(RootedFlake::default());
    };
    let Some(line) = store.lock_line(supervisor, &request.root)? else {
        return Ok(RootedFlake::default());
    };
    let roots = state.roots().classify(Class::Infrastructure, || {
        "cannot root the flake's source".to_owned()
    })?;
    let mut settings = Vec::new();
    for number in 0..KEEPING_ATTEMPTS {
        let mut lock = lock_once(flake, &line, request, temporary, store, supervisor, log)?;
        settings.append(&mut lock.settings);
        if store.keep_source(&lock, &roots.numbered(number), supervisor)? {
            return Ok(RootedFlake {
                locked: Some(lock.flake),
                settings,
                _source: Some(roots),
            });
        }
        log.say("the garbage collector removed the flake's source; locking it once more");
    }
    Err(Failure::new(
        Class::Infrastructure,
        format_args!("the garbage collector removed the flake's source {KEEPING_ATTEMPTS} times"),
    )
    .hint(COLLECTOR_HINT))
}

/// Locks the flake with this command.
fn lock_once(
    flake: &str,
    line: &CommandLine,
    request: &RecordingRequest,
    temporary: &Path,
    store: &mut Store,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<FlakeLock, Failure> {
    let mut was_repeated = false;
    let (finished, stderr) = loop {
        let (finished, stderr) = run(line, supervisor, log)?;
        if finished.ending.success() {
            break (finished, stderr);
        }
        store.check_answers(supervisor)?;
        let output = NixOutput::of(stderr.as_bytes());
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
    log.pass_on(&NoiseFilter::new(log.debug).filtered(stderr.as_bytes()));
    store.read_lock(supervisor, line, &finished)
}

/// Runs a command that locks, and shows for how long, and what Nix does: it copies the whole tree into the store, and says so only if
/// it is asked for structure. Returned is also what it prints otherwise.
fn run(
    line: &CommandLine,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<(Finished, String), Failure> {
    let started = Instant::now();
    let mut status = StatusLine::new(log);
    let mut reader = LogReader::default();
    let mut said = Said::default();
    let line = command::structured(line);
    let started_program = supervisor.start(&line, OnStop::TermThenKill);
    let mut running = [started_program.map_err(class::not_started)?];
    while running[0].ended.is_none() {
        supervisor.watch(&mut running, Some(status.due()), |_, bytes| {
            reader.read(bytes, |event| said.take(&event));
        })?;
        let seconds = started.elapsed().as_secs();
        status.show(|| Some(format!("locking the flake{}, {seconds} s", said.doing)));
    }
    status.clear();
    supervisor.check()?;
    reader.finish(|event| said.take(&event));
    let [running] = running;
    let printed = said.printed.into_bytes();
    Ok((
        running.finished()?,
        String::from_utf8_lossy(&printed).into_owned(),
    ))
}

/// What Nix says while it locks a flake.
#[derive(Debug, Default)]
struct Said {
    /// What it would say without being asked for structure.
    printed: Printed,
    /// What it does, behind a colon; empty where it has not said.
    doing: String,
}

impl Said {
    fn take(&mut self, event: &Event<'_>) {
        let printed = &mut self.printed;
        match event {
            Event::Plain(line) => printed.add(line.bytes),
            Event::Message { text, .. } => printed.add(without_escapes(text).as_bytes()),
            Event::Begins(text) => {
                self.doing = format!(": {}", shortened(&in_one_line(text), DOING_AT_MOST));
                return;
            }
            _ => return,
        }
        printed.add(b"\n");
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nix_does_is_shown_and_what_it_says_is_passed_on() {
        let mut said = Said::default();
        let mut reader = LogReader::default();
        let lines = [
            r#"@nix {"action":"msg","level":1,"msg":"\u001b[35;1mwarning:\u001b[0m Git tree '/f' is dirty"}"#,
            "plain",
            r#"@nix {"action":"start","id":1,"level":4,"text":"copying '/f/' to the store","type":0}"#,
            r#"@nix {"action":"stop","id":1}"#,
        ];
        reader.read((lines.join("\n") + "\n").as_bytes(), |event| {
            said.take(&event);
        });
        assert_eq!(
            said.printed.into_bytes(),
            b"warning: Git tree '/f' is dirty\nplain\n"
        );
        assert_eq!(said.doing, ": copying '/f/' to the store");
    }
}
