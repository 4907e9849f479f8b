//! Our own lines in a job's log: on standard error, each behind the program's name.
//!
//! Nothing here fails: a log that nobody reads any more (a closed terminal, a full disk) is no reason to stop a build.

use std::fmt::Display;
use std::io::{Write as _, stderr};

use crate::exit::Failure;

/// Where our lines go, and how much is said.
#[derive(Clone, Copy, Debug, Default)]
pub struct Log {
    /// Also say which commands are run (`EVAL_ONCE_LOG=debug`).
    pub debug: bool,
    /// Standard error is a person's terminal, and no job's log.
    pub terminal: bool,
}

impl Log {
    /// Says something the reader of a log wants to know of every step.
    pub fn say(self, message: impl Display) {
        let _ = writeln!(stderr(), "eval-once: {message}");
    }

    /// Says something that is not as it should be but stops nothing.
    pub fn warn(self, message: impl Display) {
        self.say(format_args!("warning: {message}"));
    }

    /// Says something that only helps to find out why eval-once did what it did.
    pub fn debug(self, message: impl Display) {
        if self.debug {
            self.say(format_args!("debug: {message}"));
        }
    }

    /// Begins a group of ours in a job's log, which Buildkite folds up (`---` at the beginning of a line).
    pub fn group(self, heading: impl Display) {
        self.plain(format_args!("--- eval-once: {heading}"));
    }

    /// Opens the group that was begun last, also where others come after it.
    pub fn open_group(self) {
        self.plain("^^^ +++");
    }

    /// Writes a line that is part of something larger, without our name before it.
    pub fn plain(self, line: impl Display) {
        let _ = writeln!(stderr(), "{line}");
    }

    /// Says why we end without success, once, at the very end.
    pub fn failure(self, failure: &Failure) {
        self.say(format_args!("error: {failure}"));
        if let Some(hint) = &failure.hint {
            self.say(format_args!("hint: {hint}"));
        }
    }
}
