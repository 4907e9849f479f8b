//! What a build has of ours: the plans of its recordings, the saved reports of its steps, and the outcomes that Buildkite gave.

use std::collections::BTreeMap;

use super::planned_step::PlannedStep;
use crate::buildkite::outcome::StepOutcome;
use crate::recording::pipeline::document::Recorded;
use crate::step::{SavedReport, SavedReportError};

/// All of it.
#[derive(Debug, Default)]
pub(super) struct BuildData {
    /// What the recordings found.
    pub(super) recordings: Vec<Recorded>,
    /// How many recordings there are besides, whose plans cannot be read.
    pub(super) unreadable: usize,
    /// The planned steps, by their keys.
    pub(super) planned_steps: BTreeMap<String, PlannedStep>,
    /// The reports, by the keys of their steps.
    pub(super) reports: BTreeMap<String, Result<SavedReport, SavedReportError>>,
    /// The outcomes of steps, by their keys: of those that Buildkite was asked for.
    pub(super) outcomes: BTreeMap<String, StepOutcome>,
    /// When Buildkite was asked, in seconds since 1970.
    pub(super) now: u64,
}

impl BuildData {
    pub(super) fn is_empty(&self) -> bool {
        self.recordings.is_empty() && self.unreadable == 0 && self.reports.is_empty()
    }

    /// Adds the steps of a plan. Where several plan a step, which of them Buildkite has is not known: so it is not one that is skipped.
    pub(super) fn plan(&mut self, steps: BTreeMap<String, PlannedStep>) {
        for (key, step) in steps {
            let known = self.planned_steps.get(&key);
            let runs = known.is_some_and(|known| !known.is_skipped());
            if !(runs && step.is_skipped()) {
                self.planned_steps.insert(key, step);
            }
        }
    }

    /// Whether no job is made for the step with this key, as far as the plans say.
    pub(super) fn has_no_job(&self, key: &str) -> bool {
        let step = self.planned_steps.get(key);
        step.is_none_or(PlannedStep::is_skipped)
    }

    /// Whether Buildkite takes this exit status of a step for no failure, as far as the plans say.
    pub(super) fn is_soft(&self, key: &str, exit: u8) -> bool {
        let step = self.planned_steps.get(key);
        step.is_some_and(|step| step.is_soft(Some(exit)))
    }
}
