//! How every target of a build stands: the recordings' plans, the steps' reports and their outcomes, side by side. Pure.
//!
//! Buildkite is asked only where the rest leaves an outcome open ([`Rows::open_keys`]), for each question is a process and a
//! request:
//!
//! - A report of a build that succeeded, with nothing behind it in its job, is enough: nothing is left that could fail.
//! - Where something comes after the build (the step's own command, another plugin, a hook of the agent's or the repository's,
//!   artifacts), the report was saved before it. The step has written down what that is, for only the job knows.
//! - Where a step has several jobs, the report is that of the last.
//! - A report of a failure does not say whether the failure was soft, and whether another try has ended since.
//! - A step without a report is not asked for where a step that it depends on failed: it has not run.
//! - What the recording skipped or could not evaluate is in its plan. With `skip-style: run` what is skipped has a job all the same.
//! - The step of a batch is asked for once, because of any of its targets.

use std::collections::{BTreeMap, BTreeSet};

use super::batches;
use super::build_data::BuildData;
use super::dependents;
use super::outcome::TargetOutcome;
use super::planned_step::PlannedStep;
use super::row::Row;
use super::suites::{self, Suite};

/// Everything that the summary shows.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rows {
    /// The recordings; behind them the steps that no recording has made, where there are any.
    pub(super) suites: Vec<Suite>,
    /// How long all recordings took, in seconds; none where that is not known, or nothing was recorded.
    pub(super) recording: Option<f64>,
    /// How many recordings have no plan that can be read.
    pub(super) unreadable: usize,
}

impl Rows {
    pub(super) fn new(data: &BuildData) -> Self {
        let mut suites = suites::of(data);
        batches::settle(data, &mut suites);
        dependents::mark(data, &mut suites);
        let totals = data.recordings.iter().map(|recorded| {
            let total = recorded.seconds.get("total").copied();
            total.filter(|seconds| seconds.is_finite() && *seconds > 0.0)
        });
        let known = !data.recordings.is_empty() && data.unreadable == 0;
        Self {
            suites,
            recording: totals.sum::<Option<f64>>().filter(|_| known),
            unreadable: data.unreadable,
        }
    }

    /// The keys of the steps whose outcome Buildkite is to be asked for now. Those without a report come last, once it is known
    /// which of them depend on one that failed.
    pub(super) fn open_keys(&self, data: &BuildData) -> Vec<String> {
        let has_several_jobs = |row: &Row| {
            let step = data.planned_steps.get(&row.step);
            step.is_some_and(PlannedStep::has_several_jobs)
        };
        let keys = |is_open: &dyn Fn(&Row) -> bool| -> Vec<String> {
            // The step of a batch is asked for once.
            let mut seen = BTreeSet::new();
            self.steps()
                .map(|(_, row)| row)
                .filter(|row| is_open(row) && !row.step.is_empty())
                .filter(|row| !data.outcomes.contains_key(&row.step))
                .map(|row| row.step.clone())
                .filter(|step| seen.insert(step.clone()))
                .collect()
        };
        let with_report = keys(&|row| row.is_open() || row.has_passed() && has_several_jobs(row));
        if with_report.is_empty() {
            return keys(&|row| row.outcome == TargetOutcome::NoReport);
        }
        with_report
    }

    /// Each step once, with the recording that it is of. Where several have it they may see it differently (an error that one of them
    /// expects, say), and the worst counts.
    pub(super) fn steps(&self) -> impl Iterator<Item = (&Suite, &Row)> {
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        let mut steps: Vec<(&Suite, &Row)> = Vec::new();
        for suite in &self.suites {
            for row in &suite.rows {
                let place = *places.entry(&row.key).or_insert(steps.len());
                match steps.get_mut(place) {
                    None => steps.push((suite, row)),
                    Some(step) if step.1.outcome.standing() < row.outcome.standing() => {
                        *step = (suite, row);
                    }
                    Some(_) => {}
                }
            }
        }
        steps.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{build_data, recorded, report, target};
    use super::*;
    use crate::buildkite::outcome::StepOutcome;
    use serde_json::{Value, json};

    #[test]
    fn buildkite_is_asked_only_where_the_rest_leaves_it_open() {
        let mut skipped = target("skipped");
        skipped["skip"] = "a cache has it".into();
        let mut behind = target("behind");
        behind["depends_on"] = json!(["drv-red"]);
        let names = ["green", "command", "old", "red", "silent"];
        let mut targets: Vec<Value> = names.map(target).to_vec();
        targets.extend([skipped, behind]);
        let report = |more: Value| report(&more, 1.0);
        let mut data = build_data(
            vec![recorded(&json!(targets), &json!([{ "attr": ["failing"] }]))],
            [
                ("drv-green", report(json!({ "after": [] }))),
                ("drv-command", report(json!({ "after": ["command"] }))),
                ("drv-old", report(json!({}))),
                ("drv-red", report(json!({ "exit": 100, "after": [] }))),
                ("by-hand", report(json!({ "after": [] }))),
                ("", report(json!({ "exit": 1 }))),
            ],
        );
        let open_keys = |data: &BuildData| Rows::new(data).open_keys(data);
        assert_eq!(open_keys(&data), ["drv-command", "drv-old", "drv-red"]);
        for (key, outcome) in [
            ("drv-command", StepOutcome::Passed),
            ("drv-old", StepOutcome::NotKnown),
            ("drv-red", StepOutcome::HardFailed),
        ] {
            data.outcomes.insert(key.into(), outcome);
        }
        // A step with several jobs has one report.
        let steps = json!([{ "key": "drv-green", "parallelism": 2 }, { "key": "drv-old", "matrix": ["a"] }]);
        data.planned_steps = PlannedStep::all_of(&json!({ "steps": steps }).to_string());
        assert_eq!(open_keys(&data), ["drv-green"]);
        data.outcomes
            .insert("drv-green".into(), StepOutcome::Passed);
        // A step that depends on one that failed has not run: only the others without a report are open.
        assert_eq!(open_keys(&data), ["drv-silent"]);
        let silent = ("drv-silent".into(), StepOutcome::Passed);
        data.outcomes.extend([silent]);
        assert_eq!(open_keys(&data), [""; 0]);
    }

    #[test]
    fn a_step_of_two_recordings_has_one_row() {
        let recorded = || recorded(&json!([target("a")]), &json!([]));
        let rows = Rows::new(&build_data(vec![recorded(), recorded()], []));
        assert_eq!((rows.suites.len(), rows.steps().count()), (2, 1));
        assert_eq!(rows.recording, Some(24.0));
    }

    #[test]
    fn of_two_recordings_that_see_a_step_differently_the_worst_counts() {
        let error = |more: Value| {
            let mut error = json!({ "attr": ["bad"], "message": "m", "key": "nix-bad" });
            error
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            recorded(&json!([]), &json!([error]))
        };
        let reported = || error(json!({ "step": false }));
        let expected = || error(json!({ "expected": true }));
        let red = || error(json!({}));
        for recordings in [[reported(), red()], [red(), expected()]] {
            let rows = Rows::new(&build_data(recordings.into(), []));
            let outcomes: Vec<_> = rows.steps().map(|(_, row)| &row.outcome).collect();
            assert_eq!(outcomes, [&TargetOutcome::EvaluationError]);
        }
    }

    #[test]
    fn the_time_of_recording_is_not_known_where_a_recording_cannot_be_read() {
        let mut data = build_data(vec![recorded(&json!([]), &json!([]))], []);
        assert_eq!(Rows::new(&data).recording, Some(12.0));
        data.unreadable = 1;
        assert_eq!(Rows::new(&data).recording, None);
        data.recordings.clear();
        data.unreadable = 0;
        assert_eq!(Rows::new(&data).recording, None);
    }
}
