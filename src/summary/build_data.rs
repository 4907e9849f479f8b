//! What a build has of ours: the plans of its recordings, the saved reports of its steps, and the outcomes that Buildkite gave.

use std::collections::{BTreeMap, BTreeSet};

use super::planned_step::PlannedStep;
use crate::buildkite::outcome::StepOutcome;
use crate::recording::pipeline::document::Recorded;
use crate::step::{SavedReport, SavedReportError};

/// All of it.
#[derive(Debug, Default)]
pub(super) struct BuildData {
    /// What the recordings found.
    pub(super) recordings: Vec<Recorded>,
    /// How many recordings there are besides, without a plan that can be read.
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

    /// Which of these steps may have saved a report after theirs was read: those that have ended without one, and those that have passed
    /// and whose report is of a failure, as where another try has ended since.
    pub(super) fn outdated_reports(&self, steps: &[String]) -> BTreeSet<String> {
        let is_outdated = |step: &&String| {
            let outcome = self.outcomes.get(*step);
            let report = self.reports.get(*step);
            match outcome {
                Some(StepOutcome::Passed) => {
                    report.is_none_or(|report| report.as_ref().is_ok_and(|report| report.exit != 0))
                }
                Some(StepOutcome::HardFailed | StepOutcome::SoftFailed) => report.is_none(),
                _ => false,
            }
        };
        steps.iter().filter(is_outdated).cloned().collect()
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fixtures::{build_data, report};
    use super::*;

    #[test]
    fn a_report_is_outdated_where_its_step_has_ended_otherwise() {
        let read = |more| report(&more, 1.0);
        let mut data = build_data(
            Vec::new(),
            [
                ("good", read(json!({}))),
                ("bad", read(json!({ "exit": 75 }))),
                ("better", read(json!({ "exit": 75 }))),
                ("foreign", Err(SavedReportError::NoReport)),
            ],
        );
        let outcomes = [
            ("good", StepOutcome::Passed),
            ("bad", StepOutcome::HardFailed),
            ("better", StepOutcome::Passed),
            ("foreign", StepOutcome::Passed),
            ("new", StepOutcome::Passed),
            ("red", StepOutcome::SoftFailed),
            ("waits", StepOutcome::Unfinished("ready".into())),
        ];
        let steps: Vec<String> = outcomes
            .iter()
            .map(|(step, _)| (*step).to_owned())
            .collect();
        data.outcomes
            .extend(outcomes.map(|(step, outcome)| (step.to_owned(), outcome)));
        let outdated = data.outdated_reports(&steps);
        assert_eq!(
            outdated.iter().collect::<Vec<_>>(),
            ["better", "new", "red"]
        );
    }
}
