//! The progress of an evaluation, on a status line.

use std::time::{Duration, Instant};

use crate::counts::{evaluated, number};
use crate::log::Log;
use crate::nix::NoiseFilter;
use crate::status_line::StatusLine;

/// The progress of an evaluation.
#[derive(Debug)]
pub(super) struct Progress {
    log: Log,
    line: StatusLine,
    noise: NoiseFilter,
    started: Instant,
}

impl Progress {
    pub(super) fn new(log: &Log) -> Self {
        Self {
            log: log.clone(),
            line: StatusLine::new(log),
            noise: NoiseFilter::new(log.debug),
            started: Instant::now(),
        }
    }

    /// Shows how many of the `known` names have begun, if a line is due. Names of sets count as names, but not as `attributes`.
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

    /// Removes the status line.
    pub(super) fn clear(&mut self) {
        self.line.clear();
    }

    /// Passes on whole lines of Nix's output.
    pub(super) fn pass_on(&mut self, lines: &[u8]) {
        let Self {
            log, line, noise, ..
        } = self;
        let shown = noise.filtered(lines);
        if !shown.is_empty() {
            line.clear();
            log.pass_on(&shown);
        }
    }

    /// One line about the whole evaluation.
    pub(super) fn summary(&self, attributes: usize) -> String {
        evaluated(attributes, self.started.elapsed())
    }
}
