//! The targets of batches whose step ended otherwise than their reports say. Pure.
//!
//! How the step of a batch ended says nothing of a single target that has a report: another one may have failed. But all of them
//! together have to account for it. Where they do not (a hook failed after the builds; each failure alone is soft, and their status
//! together is not), the outcome is that of the targets that it can be about: those that failed, else all.

use std::collections::{BTreeMap, BTreeSet};

use super::build_data::BuildData;
use super::outcome::Standing;
use super::row::Row;
use super::suites::Suite;
use crate::buildkite::outcome::StepOutcome;
use crate::exit::Class;

/// Gives the targets of batches the outcomes of their steps, where these account for more than the reports do.
pub(super) fn settle(data: &BuildData, suites: &mut [Suite]) {
    let mut batches: BTreeMap<String, Vec<&mut Row>> = BTreeMap::new();
    let rows = suites.iter_mut().flat_map(|suite| &mut suite.rows);
    for row in rows.filter(|row| row.is_in_batch()) {
        batches.entry(row.step.clone()).or_default().push(row);
    }
    for (step, rows) in batches {
        if let Some(outcome) = data.outcomes.get(&step) {
            settle_batch(&step, rows, outcome, data);
        }
    }
}

fn settle_batch(step: &str, rows: Vec<&mut Row>, outcome: &StepOutcome, data: &BuildData) {
    // Statuses that are soft each may together be one that is not.
    let reports = rows.iter().filter_map(|row| row.report.as_ref());
    let statuses: BTreeSet<u8> = reports.map(|it| it.exit).filter(|it| *it != 0).collect();
    let may_be_hard = statuses.len() > 1 && !data.is_soft(step, Class::Mixed.status());
    let outcome = match outcome {
        StepOutcome::NotKnown if may_be_hard => &StepOutcome::HardFailed,
        outcome => outcome,
    };
    let is_red = matches!(outcome, StepOutcome::HardFailed | StepOutcome::Errored);
    let is_failed = |row: &&mut Row| row.outcome.standing() == Standing::Failed;
    let is_accounted_for = is_red && rows.iter().any(is_failed);
    // One without a report has the outcome of the step already.
    let (reported, silent): (Vec<_>, Vec<_>) =
        rows.into_iter().partition(|row| row.report.is_some());
    let (bad, good): (Vec<_>, Vec<_>) = reported.into_iter().partition(|row| !row.has_passed());
    let concerned = match (bad.is_empty(), silent.is_empty()) {
        (false, _) => bad,
        (true, true) => good,
        (true, false) => return,
    };
    for row in concerned {
        if !is_accounted_for || row.was_stopped() {
            row.end(outcome, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{build_data, recorded, report, target};
    use super::super::outcome::FailedPart;
    use super::super::outcome::TargetOutcome::{self, Built, Failed, SoftFailed};
    use super::super::planned_step::PlannedStep;
    use super::super::rows::Rows;
    use super::*;
    use serde_json::{Value, json};

    /// The outcomes of the targets of a batch with these reports (null: none), which ended so.
    fn outcomes(reports: &[Value], outcome: Option<StepOutcome>) -> Vec<TargetOutcome> {
        let data = batch(reports, outcome);
        let rows = Rows::new(&data);
        rows.steps().map(|(_, row)| row.outcome.clone()).collect()
    }

    /// The batch; its failures are soft where they have the status 100 or 102.
    fn batch(reports: &[Value], outcome: Option<StepOutcome>) -> BuildData {
        let targets: Vec<Value> = (0..reports.len())
            .map(|i| {
                let mut target = target(&i.to_string());
                target["key"] = "batch-1".into();
                target["report"] = format!("drv-{i}").into();
                target
            })
            .collect();
        let mut data = build_data(vec![recorded(&json!(targets), &json!([]))], []);
        for (i, saved) in reports.iter().enumerate().filter(|(_, it)| !it.is_null()) {
            data.reports.insert(format!("drv-{i}"), report(saved, 1.0));
        }
        let soft = json!([{ "exit_status": 100 }, { "exit_status": 102 }]);
        let steps = json!({ "steps": [{ "key": "batch-1", "soft_fail": soft }] });
        data.plan(PlannedStep::all_of(&steps.to_string()));
        data.outcomes
            .extend(outcome.map(|outcome| ("batch-1".to_owned(), outcome)));
        data
    }

    type Case = (Vec<Value>, StepOutcome, Vec<TargetOutcome>);

    #[track_caller]
    fn each_is<const N: usize>(cases: [Case; N]) {
        for (reports, outcome, expected) in cases {
            let case = format!("{reports:?} {outcome:?}");
            assert_eq!(outcomes(&reports, Some(outcome)), expected, "{case}");
        }
    }

    fn green() -> Value {
        json!({ "built": 1, "after": ["hook"] })
    }

    fn failed(exit: u8) -> Value {
        json!({ "exit": exit, "after": ["hook"] })
    }

    fn unfinished() -> StepOutcome {
        StepOutcome::Unfinished("running".into())
    }

    #[test]
    fn what_no_report_accounts_for_is_the_outcome_of_all() {
        let hook = || Failed(FailedPart::AfterBuild);
        each_is([
            // A hook failed after all of them.
            (
                vec![green(), green()],
                StepOutcome::HardFailed,
                vec![hook(), hook()],
            ),
            (
                vec![green(), green()],
                StepOutcome::Passed,
                vec![Built, Built],
            ),
            (
                vec![green()],
                StepOutcome::SoftFailed,
                vec![SoftFailed(FailedPart::AfterBuild)],
            ),
            (
                vec![green()],
                StepOutcome::NotKnown,
                vec![TargetOutcome::NotKnown],
            ),
            (
                vec![green()],
                unfinished(),
                vec![TargetOutcome::Unfinished("running".into())],
            ),
            (
                vec![green()],
                StepOutcome::Errored,
                vec![TargetOutcome::Stopped],
            ),
        ]);
    }

    #[test]
    fn what_one_failure_accounts_for_is_its_own_and_else_that_of_all_that_failed() {
        let build = || Failed(FailedPart::Build);
        let soft = || SoftFailed(FailedPart::Build);
        let stopped = json!({ "exit": 143, "stopped": "cancel" });
        each_is([
            // Two soft failures, and the status of both is not soft.
            (
                vec![green(), failed(100), failed(102)],
                StepOutcome::HardFailed,
                vec![Built, build(), build()],
            ),
            // The one that is not soft accounts for it.
            (
                vec![green(), failed(100), failed(65)],
                StepOutcome::HardFailed,
                vec![Built, soft(), build()],
            ),
            (
                vec![failed(65), failed(100)],
                StepOutcome::SoftFailed,
                vec![soft(), soft()],
            ),
            // So does one that the batch did not get to.
            (
                vec![green(), failed(100), Value::Null],
                StepOutcome::HardFailed,
                vec![Built, soft(), Failed(FailedPart::NotKnown)],
            ),
            (
                vec![green(), Value::Null],
                StepOutcome::HardFailed,
                vec![Built, Failed(FailedPart::NotKnown)],
            ),
            (
                vec![green(), failed(65), stopped],
                StepOutcome::Errored,
                vec![Built, build(), TargetOutcome::Cancelled],
            ),
            (
                vec![green(), failed(100)],
                StepOutcome::Errored,
                vec![Built, TargetOutcome::Stopped],
            ),
            // It is tried again.
            (
                vec![green(), failed(75)],
                unfinished(),
                vec![Built, TargetOutcome::Unfinished("running".into())],
            ),
            (
                vec![green(), failed(75)],
                StepOutcome::Passed,
                vec![Built, TargetOutcome::PassedWithoutReport],
            ),
            (
                vec![green(), failed(65)],
                StepOutcome::NotKnown,
                vec![Built, build()],
            ),
            (
                vec![failed(100), failed(100)],
                StepOutcome::NotKnown,
                vec![soft(), soft()],
            ),
            (
                vec![failed(100), failed(102)],
                StepOutcome::NotKnown,
                vec![build(), build()],
            ),
        ]);
    }

    #[test]
    fn the_step_of_a_batch_is_asked_for_once_where_its_reports_leave_that_open() {
        let open = |reports: &[Value]| {
            let data = batch(reports, None);
            Rows::new(&data).open_keys(&data)
        };
        let green = json!({ "after": [] });
        let hook = json!({ "after": ["hook"] });
        let red = json!({ "exit": 100, "after": [] });
        assert_eq!(open(&[green.clone(), green.clone()]), [""; 0]);
        assert_eq!(open(&[hook.clone(), hook]), ["batch-1"]);
        assert_eq!(open(&[green, red.clone(), red]), ["batch-1"]);
    }
}
