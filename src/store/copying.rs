//! Copying between stores, by `nix copy`, with patience that has an end. How far a copy is, a status line shows.

use std::collections::HashMap;
use std::fmt;
use std::time::Instant;

use super::Store;
use super::batches::batches;
use super::movement::{CopyProgress, Movement, Work};
use crate::command_line::CommandLine;
use crate::exit::Failure;
use crate::log::Log;
use crate::nix::{DrvPath, NixOutput, StorePath, StoreUrl, command};
use crate::secrets::redacted;
use crate::status_line::StatusLine;
use crate::supervise::{GivenUp, PATIENCE, Printed, Sight, Supervisor};

/// Why a copy is not complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotCopied {
    /// It was not to go on.
    Stopped,
    /// Nothing moved for as long as [`PATIENCE`].
    Stalled,
    /// Nix failed, with this message, which is without credentials.
    Failed(String),
}

impl fmt::Display for NotCopied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("it was stopped"),
            Self::Stalled => write!(f, "nothing has moved for {} s", PATIENCE.as_secs()),
            Self::Failed(message) => f.write_str(message),
        }
    }
}

impl Store {
    /// Copies these `.drv`s with all that they need to be realised (`.drv`s and sources, no outputs) into a store; what it has
    /// is not copied again. Nix compresses each NAR into a file in its folder for temporary files before it is in the other
    /// store; where `temporary` is given, that is the folder. `doing` says in the log what is done. `goes_on` is asked at least
    /// once a second whether it is to go on. Returned is how many paths were copied; inside, why not all of them were.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n); the program is missing (69), or cannot be started (75).
    pub fn copy_drvs_to(
        &mut self,
        supervisor: &mut Supervisor,
        to: &StoreUrl,
        drvs: &[&DrvPath],
        temporary: Option<&str>,
        doing: &str,
        goes_on: impl FnMut() -> bool,
    ) -> Result<Result<u64, NotCopied>, Failure> {
        let options = self.options(supervisor)?;
        let mut lines: Vec<CommandLine> = batches(&store_paths_of(drvs))
            .map(|batch| command::copy_drvs_to(to, batch, &options))
            .collect();
        for line in &mut lines {
            let temporary = temporary.map(|folder| ("TMPDIR", folder.into()));
            line.variables.extend(temporary);
        }
        let copied = copy(supervisor, &self.log, &lines, doing, goes_on)?;
        Ok(copied.map_err(|(why, _)| why))
    }

    /// These `.drv`s and all that they need to be realised, each with the size of its NAR in bytes; as much of it as Nix says.
    ///
    /// # Errors
    /// As [`Self::copy_drvs_to`].
    pub fn sizes_of_closure(
        &mut self,
        supervisor: &mut Supervisor,
        drvs: &[&DrvPath],
    ) -> Result<HashMap<StorePath, u64>, Failure> {
        let mut sizes = HashMap::new();
        for batch in batches(&store_paths_of(drvs)) {
            let options = self.options(supervisor)?;
            let line = command::sizes_of_closure(batch, &options);
            let finished = self.run(supervisor, &line)?.finished;
            sizes.extend(finished.text().lines().filter_map(|line| {
                let mut words = line.split_whitespace();
                let path = StorePath::parse(words.next()?).ok()?;
                Some((path, words.next()?.parse::<u64>().ok()?))
            }));
        }
        Ok(sizes)
    }

    /// Copies outputs with all that they need into a store; what it has is not copied again. Inside, why not all of them were.
    ///
    /// # Errors
    /// As [`Self::copy_drvs_to`].
    pub fn copy_outputs_to(
        &mut self,
        supervisor: &mut Supervisor,
        to: &StoreUrl,
        outputs: &[&StorePath],
    ) -> Result<Result<(), NotCopied>, Failure> {
        let options = self.options(supervisor)?;
        let lines: Vec<CommandLine> = batches(outputs)
            .map(|batch| command::copy_outputs_to(to, batch, &options))
            .collect();
        let doing = format!("pushing to {to}");
        let copied = copy(supervisor, &self.log, &lines, &doing, || true)?;
        Ok(copied.map(drop).map_err(|(why, _)| why))
    }

    /// The command of [`Self::copy_outputs_to`].
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn copy_outputs_to_line(
        &mut self,
        supervisor: &mut Supervisor,
        to: &StoreUrl,
        outputs: &[&StorePath],
    ) -> Result<CommandLine, Failure> {
        let options = self.options(supervisor)?;
        Ok(command::copy_outputs_to(to, outputs, &options))
    }

    /// Copies a `.drv`, with all that it needs to be realised, from a store. Inside, why not all of it was.
    ///
    /// # Errors
    /// As [`Self::copy_drvs_to`].
    pub fn copy_drv_from(
        &mut self,
        supervisor: &mut Supervisor,
        from: &StoreUrl,
        drv: &DrvPath,
    ) -> Result<Result<(), NotCopied>, Failure> {
        let lines = [self.copy_drv_from_line(supervisor, from, drv)?];
        let doing = format!("fetching {} from {from}", drv.name());
        match copy(supervisor, &self.log, &lines, &doing, || true)? {
            Ok(_) => Ok(Ok(())),
            Err((why, output)) => {
                // Where the share is a substituter, too, no later command is to wait for it again.
                self.note_unreachable(&output);
                self.options(supervisor)?;
                Ok(Err(why))
            }
        }
    }

    /// The command of [`Self::copy_drv_from`].
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn copy_drv_from_line(
        &mut self,
        supervisor: &mut Supervisor,
        from: &StoreUrl,
        drv: &DrvPath,
    ) -> Result<CommandLine, Failure> {
        let options = self.options(supervisor)?;
        Ok(command::copy_drv_from(from, drv, &options))
    }
}

fn store_paths_of<'a>(drvs: &[&'a DrvPath]) -> Vec<&'a StorePath> {
    drvs.iter().map(|drv| drv.as_store_path()).collect()
}

/// Runs one `nix copy` after the other, as parts of one copy, until one fails or is given up: how many paths were copied; or why
/// not all, with what that one has printed.
fn copy(
    supervisor: &mut Supervisor,
    log: &Log,
    lines: &[CommandLine],
    doing: &str,
    mut goes_on: impl FnMut() -> bool,
) -> Result<Result<u64, (NotCopied, NixOutput)>, Failure> {
    let mut status = StatusLine::new(log);
    let began = Instant::now();
    let mut before = CopyProgress::default();
    for line in lines {
        // So that it says how far it is.
        let line = command::structured(line);
        let mut stderr = Printed::default();
        let mut movement = Movement::default();
        let mut work = Work::default();
        let ran = supervisor.run_patiently(&line, PATIENCE, |process, printed| {
            stderr.add(printed);
            let says_more = movement.read(printed);
            let works = work.goes_on(process);
            status.show(|| Some(before.and(movement.progress).text(doing, began.elapsed())));
            if movement.has_upload_stalled || !goes_on() {
                Sight::Enough
            } else if says_more || works || !movement.uploading.is_empty() {
                Sight::Moves
            } else {
                Sight::StandsStill
            }
        });
        status.clear();
        let (finished, given_up) = ran?;
        if !finished.ending.success() {
            let output = NixOutput::of(&stderr.into_bytes());
            let why = match given_up {
                Some(GivenUp::Enough) if !movement.has_upload_stalled => NotCopied::Stopped,
                Some(_) => NotCopied::Stalled,
                None => {
                    let message = output.final_message(finished.ending);
                    NotCopied::Failed(redacted(&message).into_owned())
                }
            };
            return Ok(Err((why, output)));
        }
        before = before.and(movement.progress);
    }
    Ok(Ok(before.done))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that prints as a `nix copy` of this many paths, and ends with this status.
    fn copies(paths: u64, status: i32) -> CommandLine {
        let start = format!(
            "\"action\":\"start\",\"id\":1,\"type\":103,\"text\":\"copying {paths} paths\""
        );
        let copied = (2..2 + paths).flat_map(|id| {
            let start = format!("\"action\":\"start\",\"id\":{id},\"type\":100");
            [start, format!("\"action\":\"stop\",\"id\":{id}")]
        });
        let events = std::iter::once(start).chain(copied);
        let lines: Vec<String> = events.map(|event| format!("@nix {{{event}}}")).collect();
        let script = format!("echo '{}' >&2; exit {status}", lines.join("\n"));
        CommandLine::new("sh", &["-c", &script, "sh"])
    }

    #[test]
    fn the_paths_of_all_parts_of_a_copy_count_and_the_first_that_fails_ends_it() {
        let log = Log::default();
        let mut supervisor = Supervisor::install(&log).unwrap();
        let mut copy = |parts: &[(u64, i32)]| {
            let lines: Vec<_> = parts
                .iter()
                .map(|(paths, status)| copies(*paths, *status))
                .collect();
            copy(&mut supervisor, &log, &lines, "x", || true)
                .unwrap()
                .map_err(|(why, _)| why.to_string())
        };
        assert_eq!(copy(&[]), Ok(0));
        assert_eq!(copy(&[(2, 0), (3, 0)]), Ok(5));
        let failed = copy(&[(2, 0), (3, 7), (4, 0)]);
        assert_eq!(failed, Err("Nix ended with status 7".into()));
    }

    #[test]
    fn a_copy_that_is_not_to_go_on_is_stopped() {
        let log = Log::default();
        let mut supervisor = Supervisor::install(&log).unwrap();
        let lines = [CommandLine::new("sh", &["-c", "exec sleep 60", "sh"])];
        let stopped = copy(&mut supervisor, &log, &lines, "x", || false).unwrap();
        assert_eq!(stopped.map_err(|(why, _)| why), Err(NotCopied::Stopped));
    }
}
