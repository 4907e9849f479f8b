//! How far an evaluation is.

use std::io::{Write as _, stderr};
use std::time::{Duration, Instant};

use crate::log::Log;
use crate::status_line::StatusLine;

/// How far it is.
#[derive(Debug)]
pub(super) struct Progress {
    line: StatusLine,
    started: Instant,
    /// How many attributes there are, as far as is known.
    pub(super) known: u64,
    /// How many of them have begun.
    pub(super) begun: u64,
    /// How many of them are targets.
    pub(super) targets: usize,
}

impl Progress {
    pub(super) fn new(log: Log) -> Self {
        Self {
            line: StatusLine::new(log),
            started: Instant::now(),
            known: 0,
            begun: 0,
            targets: 0,
        }
    }

    /// Says how far it is, if it is time to.
    pub(super) fn show(&mut self, broken: usize) {
        self.line.show(|| {
            Some(format!(
                "evaluating: {} of {} attributes, {} targets, {broken} broken, {} s",
                self.begun,
                self.known.max(self.begun),
                self.targets,
                self.started.elapsed().as_secs()
            ))
        });
    }

    /// How long it has taken so far.
    pub(super) fn took(&self) -> Duration {
        self.started.elapsed()
    }

    /// Takes the line away.
    pub(super) fn clear(&mut self) {
        self.line.clear();
    }

    /// Passes on what somebody else says.
    pub(super) fn pass_on(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.clear();
            let _ = stderr().write_all(bytes);
        }
    }

    /// One line about all of it.
    pub(super) fn summary(&self, broken: usize) -> String {
        format!(
            "evaluated {} attribute{} in {:.1} s: {} target{}, {broken} broken",
            self.begun,
            if self.begun == 1 { "" } else { "s" },
            self.started.elapsed().as_secs_f64(),
            self.targets,
            if self.targets == 1 { "" } else { "s" }
        )
    }
}
