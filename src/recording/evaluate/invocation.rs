//! The command lines of the processes that evaluate.

use super::exclusions::exclusions;
use super::memory::{self, MIB};
use super::protocol::WalkerSettings;
use super::schedule::Task;
use crate::command_line::CommandLine;
use crate::exit::{Class, Classify as _, Failure};
use crate::nix::{LockedFlake, command};
use crate::recording::{RecordingRequest, Recurse};

/// The heap that a process asks for at its start, at most, in bytes.
const HEAP_AT_MOST: u64 = 1000 * MIB;

/// What is the same for all processes of a walk.
#[derive(Debug)]
pub(super) struct WorkerInvocation<'a> {
    request: &'a RecordingRequest,
    locked: Option<LockedFlake>,
    /// What each message of the walker begins with.
    marker: String,
    /// Relative to the root of the walk.
    exclude: Vec<Vec<String>>,
    systems: Option<Vec<String>>,
}

impl<'a> WorkerInvocation<'a> {
    /// `systems`: as [`WalkerSettings`] has them.
    ///
    /// # Errors
    /// The system has no random bytes (75).
    pub(super) fn new(
        request: &'a RecordingRequest,
        locked: Option<LockedFlake>,
        systems: Option<Vec<String>>,
    ) -> Result<Self, Failure> {
        Ok(Self {
            request,
            locked,
            marker: marker()?,
            exclude: exclusions(&request.exclude, &request.root.attr),
            systems,
        })
    }

    /// What each message of the walker begins with.
    pub(super) fn marker(&self) -> &str {
        &self.marker
    }

    /// The flake, locked, where it is one.
    pub(super) fn locked(&self) -> Option<&LockedFlake> {
        self.locked.as_ref()
    }

    /// The system that a flake is recorded on.
    pub(super) fn system(&self) -> Option<&str> {
        self.systems.as_ref()?.last().map(String::as_str)
    }

    /// A process that walks this part, with this share of the memory.
    pub(super) fn walk(&self, task: &Task, share: u64) -> CommandLine {
        self.line(task, share, false, &self.request.options)
    }

    /// A process that searches these unmarked sets for derivations. It builds nothing.
    pub(super) fn search(&self, task: &Task, share: u64) -> CommandLine {
        let mut options = self.request.options.clone();
        options.push(("allow-import-from-derivation".into(), "false".into()));
        self.line(task, share, true, &options)
    }

    fn line(
        &self,
        task: &Task,
        share: u64,
        search: bool,
        options: &command::Options,
    ) -> CommandLine {
        let settings = WalkerSettings {
            marker: &self.marker,
            start: task.spans.as_deref(),
            exclude: &self.exclude,
            all: self.request.recurse == Recurse::All,
            systems: self.systems.as_deref(),
            buildkite: self.request.meta,
            catch: task.catch,
            search,
        };
        // With a large heap from the start, evaluation is 1.5 to 1.9 times faster: the evaluator's collector runs rarely.
        let heap = memory::heap((share / 2).min(HEAP_AT_MOST));
        command::walk(
            &self.request.root,
            &settings.json(),
            self.locked.as_ref(),
            heap,
            options,
        )
    }
}

/// A word that a repository cannot guess.
fn marker() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).classify(Class::Infrastructure, || {
        "cannot get random bytes from the system".into()
    })?;
    Ok(format!("eval-once:{:032x}", u128::from_ne_bytes(bytes)))
}
