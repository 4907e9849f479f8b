//! How far an evaluation is.

use std::time::{Duration, Instant};

use crate::counts::{evaluated, number};
use crate::log::Log;
use crate::status_line::StatusLine;

/// How far it is.
#[derive(Debug)]
pub(in crate::recording) struct Progress {
    log: Log,
    line: StatusLine,
    started: Instant,
    /// How many names there are to look at, as far as is known.
    pub(in crate::recording) known: u64,
    /// How many of them have begun.
    pub(in crate::recording) begun: u64,
}

impl Progress {
    pub(in crate::recording) fn new(log: &Log) -> Self {
        Self {
            log: log.clone(),
            line: StatusLine::new(log),
            started: Instant::now(),
            known: 0,
            begun: 0,
        }
    }

    /// Says how far it is, if it is time to. Names of sets that are only looked into are no attributes to count.
    pub(in crate::recording) fn show(&mut self, attributes: usize) {
        self.line.show(|| {
            Some(format!(
                "evaluating: {} of {} names, {}, {} s",
                self.begun,
                self.known.max(self.begun),
                number(attributes, "attribute"),
                self.started.elapsed().as_secs()
            ))
        });
    }

    /// How long it has taken so far.
    pub(in crate::recording) fn took(&self) -> Duration {
        self.started.elapsed()
    }

    /// Takes the line away.
    pub(in crate::recording) fn clear(&mut self) {
        self.line.clear();
    }

    /// Passes on what somebody else says.
    pub(in crate::recording) fn pass_on(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.clear();
            self.log.pass_on(bytes);
        }
    }

    /// One line about all of it.
    pub(in crate::recording) fn summary(&self, attributes: usize) -> String {
        evaluated(attributes, self.started.elapsed())
    }
}
