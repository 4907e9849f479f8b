//! Copying between stores, by `nix copy`, with patience that has an end.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Store;
use crate::command_line::CommandLine;
use crate::exit::Failure;
use crate::nix::{DrvPath, NixOutput, StorePath, StoreUrl, command};
use crate::supervise::{OnStop, Supervisor};

/// How long something that is copied may stand still, until it is given up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long a copy that is given up has to end by itself.
const GRACE: Duration = Duration::from_secs(1);

/// How often a copy is looked at that prints nothing.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How far a copy is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyProgress {
    /// Paths that are copied.
    pub done: u64,
    /// Paths that are to be copied, as far as that is known.
    pub expected: u64,
}

/// What may be done about a copy, each time it has been looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyOrder {
    /// It goes on.
    GoOn,
    /// It is stopped.
    Stop,
}

/// How a copy ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyEnd {
    /// All is there.
    Done,
    /// It was stopped, as ordered.
    Stopped,
    /// Nothing moved for as long as [`PATIENCE`].
    Stalled,
    /// Nix failed, with this message.
    Failed(String),
}

impl Store {
    /// Copies these `.drv`s with all that they need to be realised (`.drv`s and sources, no outputs) into a store; what it has
    /// is not copied again. `look` is called at least once a second.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n); the program is missing (69), or cannot be started (75).
    pub fn copy_drvs_to(
        &mut self,
        supervisor: &mut Supervisor,
        to: &StoreUrl,
        drvs: &[&DrvPath],
        mut look: impl FnMut(CopyProgress) -> CopyOrder,
    ) -> Result<CopyEnd, Failure> {
        let paths: Vec<&StorePath> = drvs.iter().map(|drv| drv.as_store_path()).collect();
        for batch in super::batches(&paths) {
            let options = self.options(supervisor)?;
            let line = command::copy_drvs_to(to, batch, &options);
            match copy(supervisor, &line, &mut look)? {
                CopyEnd::Done => {}
                other => return Ok(other),
            }
        }
        Ok(CopyEnd::Done)
    }

    /// Copies outputs with all that they need into a store; what it has is not copied again. `look` as in
    /// [`Self::copy_drvs_to`].
    ///
    /// # Errors
    /// As [`Self::copy_drvs_to`].
    pub fn copy_outputs_to(
        &mut self,
        supervisor: &mut Supervisor,
        to: &StoreUrl,
        outputs: &[&StorePath],
        mut look: impl FnMut(CopyProgress) -> CopyOrder,
    ) -> Result<CopyEnd, Failure> {
        for batch in super::batches(outputs) {
            let options = self.options(supervisor)?;
            let line = command::copy_outputs_to(to, batch, &options);
            match copy(supervisor, &line, &mut look)? {
                CopyEnd::Done => {}
                other => return Ok(other),
            }
        }
        Ok(CopyEnd::Done)
    }

    /// Copies a `.drv`, with all that it needs to be realised, from a store. `look` as in [`Self::copy_drvs_to`].
    ///
    /// # Errors
    /// As [`Self::copy_drvs_to`].
    pub fn copy_drv_from(
        &mut self,
        supervisor: &mut Supervisor,
        from: &StoreUrl,
        drv: &DrvPath,
        mut look: impl FnMut(CopyProgress) -> CopyOrder,
    ) -> Result<CopyEnd, Failure> {
        let line = self.copy_drv_from_line(supervisor, from, drv)?;
        let (end, output) = copy_with_output(supervisor, &line, &mut look)?;
        if end != CopyEnd::Done {
            // Where the share is a substituter, too, no later command is to wait for it again.
            self.note_unreachable(&output);
            self.options(supervisor)?;
        }
        Ok(end)
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
        let mut options = self.options(supervisor)?;
        // A step that came too early, or before a recording that was repeated, has seen that it is missing: Nix would believe that for
        // an hour.
        options.push(("narinfo-cache-negative-ttl".into(), "0".into()));
        Ok(command::copy_drv_from(from, drv, &options))
    }
}

/// Runs a `nix copy` until it ends, is to be stopped, or stands still.
fn copy(
    supervisor: &mut Supervisor,
    line: &CommandLine,
    look: &mut impl FnMut(CopyProgress) -> CopyOrder,
) -> Result<CopyEnd, Failure> {
    copy_with_output(supervisor, line, look).map(|(end, _)| end)
}

/// The same, with what Nix has printed.
fn copy_with_output(
    supervisor: &mut Supervisor,
    line: &CommandLine,
    look: &mut impl FnMut(CopyProgress) -> CopyOrder,
) -> Result<(CopyEnd, NixOutput), Failure> {
    // So that it says how far it is.
    let line = command::structured(line);
    let mut running = [supervisor.start(&line, OnStop::TermThenKill)?];
    let mut stderr = Vec::new();
    let mut movement = Movement::default();
    let mut moved = Instant::now();
    let mut given_up = None;
    while running[0].ended.is_none() {
        let due = Instant::now() + LOOK_EVERY;
        supervisor.watch(&mut running, Some(due), |_, bytes| {
            stderr.extend_from_slice(bytes);
            if movement.read(bytes) {
                moved = Instant::now();
            }
        })?;
        if given_up.is_some() {
            continue;
        }
        if look(movement.progress) == CopyOrder::Stop {
            given_up = Some(CopyEnd::Stopped);
        } else if moved.elapsed() >= PATIENCE {
            given_up = Some(CopyEnd::Stalled);
        }
        if given_up.is_some() && running[0].ended.is_none() {
            running[0].stop(GRACE);
        }
    }
    supervisor.check()?;
    let [running] = running;
    let ending = running.finished().ending;
    let output = NixOutput::of(&stderr);
    let end = if ending.success() {
        CopyEnd::Done
    } else {
        given_up.unwrap_or_else(|| CopyEnd::Failed(output.final_message(ending)))
    };
    Ok((end, output))
}

/// Whether a copy moves, from what Nix prints in structured form: anything new but a message, or the same numbers again. (While a download
/// stands still, curl's numbers are printed all the same, once a second.)
#[derive(Debug, Default)]
struct Movement {
    /// A line without its end.
    rest: Vec<u8>,
    /// The last numbers of each activity.
    numbers: HashMap<u64, Value>,
    progress: CopyProgress,
    /// The activity that counts all paths.
    paths: Option<u64>,
}

/// The type of the activity that copies several paths, and of a result that says how far something is.
const COPY_PATHS: u64 = 103;
const PROGRESS: u64 = 105;

impl Movement {
    /// Reads what was printed; true where something has moved.
    fn read(&mut self, bytes: &[u8]) -> bool {
        let mut moved = false;
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            moved |= self.line(&line);
        }
        moved
    }

    fn line(&mut self, line: &[u8]) -> bool {
        let Some(json) = line.strip_prefix(b"@nix ") else {
            return true;
        };
        let Ok(event) = serde_json::from_slice::<Value>(json) else {
            return true;
        };
        let id = event["id"].as_u64().unwrap_or_default();
        let kind = event["type"].as_u64();
        match event["action"].as_str() {
            Some("start") if kind == Some(COPY_PATHS) => self.paths = Some(id),
            Some("stop") => drop(self.numbers.remove(&id)),
            // That something is tried again, say.
            Some("msg") => return false,
            Some("result") if kind == Some(PROGRESS) => {
                let fields = event["fields"].clone();
                if self.paths == Some(id) {
                    let number = |at: usize| fields[at].as_u64().unwrap_or_default();
                    self.progress = CopyProgress {
                        done: number(0),
                        expected: number(1),
                    };
                }
                return self.numbers.insert(id, fields.clone()).as_ref() != Some(&fields);
            }
            _ => {}
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_numbers_again_are_no_movement() {
        let mut movement = Movement::default();
        let start =
            "@nix {\"action\":\"start\",\"id\":7,\"type\":103,\"text\":\"copying 2 paths\"}\n";
        let numbers = |done| {
            format!(
                "@nix {{\"action\":\"result\",\"fields\":[{done},2,0,0],\"id\":7,\"type\":105}}\n"
            )
        };
        assert!(movement.read(start.as_bytes()));
        assert!(movement.read(numbers(0).as_bytes()));
        assert!(!movement.read(numbers(0).as_bytes()));
        let next = numbers(1);
        let (a, b) = next.as_bytes().split_at(9);
        assert!(!movement.read(a));
        assert!(movement.read(b));
        let (done, expected) = (1, 2);
        assert_eq!(movement.progress, CopyProgress { done, expected });
        assert!(movement.read(b"any other text\n"));
    }
}
