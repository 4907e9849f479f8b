//! The progress of an evaluation, on a status line.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::spans::AttrIndex;
use crate::counts::{evaluated, number};
use crate::log::Log;
use crate::nix::{AttrPath, NoiseFilter};
use crate::recording::AttrError;
use crate::recording::error_line::{ERRORS_AT_MOST, MESSAGE_IN_STEP, print_error};
use crate::secrets::shortened;
use crate::status_line::StatusLine;

/// How much of an attribute's name a status line shows, in characters.
const NAME_AT_MOST: usize = 80;

/// The progress of an evaluation.
#[derive(Debug)]
pub(super) struct Progress {
    log: Log,
    line: StatusLine,
    noise: NoiseFilter,
    started: Instant,
    /// The attribute whose evaluation began last; none as long as it is the root's.
    at: Option<AttrIndex>,
    /// The attributes whose errors were printed.
    printed: BTreeSet<AttrPath>,
}

impl Progress {
    pub(super) fn new(log: &Log) -> Self {
        Self {
            log: log.clone(),
            line: StatusLine::new(log),
            noise: NoiseFilter::new(log.debug),
            started: Instant::now(),
            at: None,
            printed: BTreeSet::new(),
        }
    }

    /// The root is evaluated.
    pub(super) fn root(&mut self) {
        self.at = None;
    }

    /// This attribute is evaluated.
    pub(super) fn at(&mut self, path: &AttrIndex) {
        self.at = Some(path.clone());
    }

    /// The attribute that is evaluated; none for the root.
    pub(super) fn attribute(&self) -> Option<&AttrIndex> {
        self.at.as_ref()
    }

    /// Prints an evaluation error as it comes, unless there were many. What they are may be known only after an hour; and what is
    /// printed here is not printed once more in the end.
    pub(super) fn error(&mut self, error: &AttrError) {
        if self.printed.len() < ERRORS_AT_MOST && self.printed.insert(error.attr.clone()) {
            self.clear();
            print_error("evaluation error", error, MESSAGE_IN_STEP, &self.log);
        }
    }

    /// The attributes whose errors were printed.
    pub(super) fn printed(&self) -> &BTreeSet<AttrPath> {
        &self.printed
    }

    /// Shows where the evaluation is, and how many of the `known` names have begun, if a line is due. Names of sets count as names,
    /// but not as `attributes`. `name` gives an attribute's path.
    pub(super) fn show(
        &mut self,
        begun: u64,
        known: u64,
        attributes: usize,
        name: impl FnOnce(&AttrIndex) -> AttrPath,
    ) {
        let seconds = self.started.elapsed().as_secs();
        self.line.show(|| {
            Some(match self.at.as_ref().map(name) {
                None => format!("evaluating the root, {seconds} s"),
                Some(at) => format!(
                    "evaluating {}: {begun} of {known} names, {}, {seconds} s",
                    shortened(&at.to_string(), NAME_AT_MOST),
                    number(attributes, "attribute"),
                ),
            })
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
