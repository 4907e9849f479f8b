//! Our own lines in a job's log: on standard error, each behind the program's name, and without what a terminal or Buildkite would
//! take for more than text.
//!
//! Nothing here fails: a log that nobody reads any more (a closed terminal, a full disk) is no reason to stop a build.

use std::fmt::Display;
use std::io::{Write as _, stderr};

use crate::exit::Failure;
use crate::text::{Keep, tamed};

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
        let message = message.to_string();
        let (first, rest) = message.split_once('\n').unwrap_or((&message, ""));
        self.plain(format_args!("eval-once: {first}"));
        for line in rest.lines() {
            // At the beginning of a line these open, close or name a group in a job's log.
            let marks = ["---", "+++", "~~~", "^^^"];
            let before = if marks.iter().any(|mark| line.starts_with(mark)) {
                " "
            } else {
                ""
            };
            self.plain(format_args!("{before}{line}"));
        }
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
        // What repositories choose is in many of our lines: names of attributes, messages of Nix.
        let line = line.to_string();
        let tame: Vec<_> = line
            .split('\n')
            .map(|line| tamed(line, Keep::Nothing))
            .collect();
        let _ = writeln!(stderr(), "{}", tame.join("\n"));
    }

    /// Says why we end without success, once, at the very end.
    pub fn failure(self, failure: &Failure) {
        self.say(format_args!("error: {failure}"));
        if let Some(hint) = &failure.hint {
            self.say(format_args!("hint: {hint}"));
        }
    }
}
