//! How far an evaluation is.

use std::time::{Duration, Instant};

use crate::counts::{evaluated, number};
use crate::log::Log;
use crate::status_line::StatusLine;

/// How far it is.
#[derive(Debug)]
pub(super) struct Progress {
    log: Log,
    line: StatusLine,
    started: Instant,
}

impl Progress {
    pub(super) fn new(log: &Log) -> Self {
        Self {
            log: log.clone(),
            line: StatusLine::new(log),
            started: Instant::now(),
        }
    }

    /// Says how far it is, if it is time to. Names of sets that are only looked into are no attributes to count.
    pub(super) fn show(&mut self, begun: u64, known: u64, attributes: usize) {
        self.line.show(|| {
            Some(format!(
                "evaluating: {begun} of {known} names, {}, {} s",
                number(attributes, "attribute"),
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
            self.log.pass_on(bytes);
        }
    }

    /// One line about all of it.
    pub(super) fn summary(&self, attributes: usize) -> String {
        evaluated(attributes, self.started.elapsed())
    }
}
