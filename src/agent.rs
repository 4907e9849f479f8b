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

/// Runs these commands, never more than `at_once` of them at a time and never fewer while some are left. `ended` is given each
/// when it has ended by itself: its number, how it ended, and what it said on standard error.
///
/// # Errors
/// There is no `buildkite-agent` (69), or it cannot be started (75); a signal asked us to end; or what `ended` says: then those
/// that still run are killed.
pub fn run_each(
    supervisor: &mut Supervisor,
    lines: &[CommandLine],
    at_once: usize,
    mut ended: impl FnMut(usize, &Finished, &str) -> Result<(), Failure>,
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
        supervisor.watch(&mut running, None, |at, bytes| about[at].1.extend(bytes))?;
        while let Some(at) = running.iter().position(|one| one.ended.is_some()) {
            let finished = running.swap_remove(at).finished();
            let (number, said) = about.swap_remove(at);
            let said = without_colours(&String::from_utf8_lossy(&said));
            // How one ended that had to is nothing to tell.
            if supervisor.check().is_ok() {
                ended(number, &finished, &said)?;
            }
        }
    }
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

/// Annotates the build with this Markdown, in place of what had the same `context`.
///
/// # Errors
/// As [`ask`].
pub fn annotate(
    supervisor: &mut Supervisor,
    context: &str,
    style: &str,
    body: &str,
) -> Result<(), Failure> {
    let folder = folder()?;
    let file = folder.path().join("annotation.md");
    write(&file, body)?;
    let line = agent::annotate(context, style, false, &file);
    ask(supervisor, &line, "annotate the build").map(drop)
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
