//! Asking the agent for something that only Buildkite has: running its commands ([`crate::buildkite::agent`]), and saying
//! what is wrong where one fails.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::buildkite::agent;
use crate::command_line::CommandLine;
use crate::exit::{Class, Classify as _, Failure};
use crate::nix::without_colours;
use crate::supervise::{Finished, OnStop, Running, Supervisor};

/// How long a command gets to end after it was told to.
const GRACE: Duration = Duration::from_millis(100);

/// Runs a command of the agent's that must succeed; `doing` says what for.
///
/// # Errors
/// Buildkite cannot be reached, or does not do it (75); there is no `buildkite-agent` (69); a signal asked us to end.
pub fn ask(
    supervisor: &mut Supervisor,
    line: &CommandLine,
    doing: &str,
) -> Result<Finished, Failure> {
    let (finished, said) = run(supervisor, line)?;
    if finished.ending.success() {
        return Ok(finished);
    }
    Err(unreachable(line, &finished, &said, doing))
}

/// Runs a command of the agent's, however that ends, and gives what it says on standard error.
///
/// # Errors
/// There is no `buildkite-agent` (69), or it cannot be started (75); a signal asked us to end.
pub fn run(supervisor: &mut Supervisor, line: &CommandLine) -> Result<(Finished, String), Failure> {
    let ran = run_at_once(supervisor, std::slice::from_ref(line), None);
    let ran = ran.map_err(|failure| match failure.class {
        Class::MissingProgram => failure
            .hint("in a job the agent puts it on PATH; elsewhere, --dry-run prints the pipeline"),
        _ => failure,
    })?;
    let mut ran = ran.into_iter();
    ran.next().ok_or_else(|| {
        Failure::new(
            Class::Bug,
            format_args!("`{line}` was run, and did not end"),
        )
    })
}

/// Runs several commands at once, and those that have not ended `until` then are stopped: an agent of v3 goes on for a minute
/// where Buildkite answers with an error. Each comes back with how it ended, and what it said on standard error.
///
/// # Errors
/// There is no `buildkite-agent` (69), or it cannot be started (75); a signal asked us to end.
pub fn run_at_once(
    supervisor: &mut Supervisor,
    lines: &[CommandLine],
    until: Option<Instant>,
) -> Result<Vec<(Finished, String)>, Failure> {
    let mut running = Vec::new();
    for line in lines {
        running.push(supervisor.start(line, OnStop::TermThenKill)?);
    }
    let mut said = vec![Vec::new(); lines.len()];
    while running.iter().any(|one| one.ended.is_none()) {
        let late = until.is_some_and(|until| Instant::now() >= until);
        for one in running.iter_mut().filter(|one| late && !one.is_stopping()) {
            one.stop(GRACE);
        }
        // Once they are being stopped there is nothing more to wait for but their end.
        let until = until.filter(|_| !late);
        supervisor.watch(&mut running, until, |number, bytes| {
            said[number].extend_from_slice(bytes);
        })?;
    }
    supervisor.check()?;
    let said = said
        .iter()
        .map(|said| without_colours(&String::from_utf8_lossy(said)));
    Ok(running
        .into_iter()
        .map(Running::finished)
        .zip(said)
        .collect())
}

/// A folder for files that go with it.
///
/// # Errors
/// There can be none (75).
pub fn folder() -> Result<TempDir, Failure> {
    tempfile::tempdir().classify(Class::Surroundings, || {
        "cannot make a temporary folder".into()
    })
}

/// Writes a file.
///
/// # Errors
/// It cannot be written (75).
pub fn write(file: &Path, text: &str) -> Result<(), Failure> {
    std::fs::File::create(file)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .classify(Class::Surroundings, || {
            format!("cannot write {}", file.display())
        })
}

/// Keeps `text` as an artifact of this name.
///
/// # Errors
/// As [`ask`].
pub fn keep_artifact(supervisor: &mut Supervisor, name: &str, text: &str) -> Result<(), Failure> {
    let folder = folder()?;
    write(&folder.path().join(name), text)?;
    let line = agent::upload_artifact(folder.path(), name);
    ask(supervisor, &line, "keep an artifact").map(drop)
}

/// The failure of a command that did not succeed, with the last line of what it `said`.
#[must_use]
pub fn unreachable(line: &CommandLine, finished: &Finished, said: &str, doing: &str) -> Failure {
    let last = said
        .lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty())
        .unwrap_or_default();
    Failure::new(
        Class::Surroundings,
        format_args!("cannot {doing}: `{line}` {}: {last}", finished.ending),
    )
    .hint("can this host reach Buildkite? The job can be retried: it goes on where it was")
}
