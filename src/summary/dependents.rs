//! Which targets did not run because another one failed, by the dependencies in the plans. Pure.
//!
//! It knows nothing of what users add to `depends_on`, and guesses nothing: that a step has no report is not excused by a
//! failed dependency where the step runs in spite of that.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::build_data::BuildData;
use super::outcome::{FailedDependency, TargetOutcome};
use super::planned_step::PlannedStep;
use super::row::Row;
use super::suites::Suite;

/// Marks the targets without a report that depend on a failed target, directly or through others that did not run. Each names the
/// nearest one.
pub(super) fn mark(data: &BuildData, suites: &mut [Suite]) {
    let mut dependents: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for target in data.recordings.iter().flat_map(|it| &it.targets) {
        let step = data.planned_steps.get(&target.key);
        if step.is_some_and(PlannedStep::ignores_failures) {
            continue;
        }
        for dependency in &target.depends_on {
            let key = target.report.as_ref().unwrap_or(&target.key);
            dependents.entry(dependency).or_default().push(key);
        }
    }
    for shared in data.recordings.iter().flat_map(|it| &it.shared) {
        for dependency in &shared.depends_on {
            dependents.entry(dependency).or_default().push(&shared.key);
        }
    }
    let rows = || suites.iter().flat_map(|suite| &suite.rows);
    let mut silent: BTreeSet<&str> = rows()
        .filter(|row| may_not_have_run(row))
        .map(|row| row.key.as_str())
        .collect();
    let (stopped, failed): (Vec<_>, Vec<_>) = rows()
        .filter_map(|row| Some((row, failed_dependency(row, data)?)))
        .partition(|(row, _)| may_not_have_run(row));
    let mut not_run: BTreeMap<String, FailedDependency> = BTreeMap::new();
    spread(failed, &dependents, &mut silent, &mut not_run);
    // Some of those that were stopped without a report were stopped because they depend on another one that was. Only those
    // that depend on none of the rest were stopped themselves.
    let stopped: Vec<_> = stopped
        .into_iter()
        .filter(|(row, _)| silent.contains(row.key.as_str()))
        .collect();
    let mut behind = BTreeMap::new();
    let mut reachable = silent.clone();
    spread(stopped.clone(), &dependents, &mut reachable, &mut behind);
    let first = stopped
        .into_iter()
        .filter(|(row, _)| !behind.contains_key(&row.key));
    spread(first.collect(), &dependents, &mut silent, &mut not_run);
    for row in suites.iter_mut().flat_map(|suite| &mut suite.rows) {
        if let Some(dependency) = not_run.get(&row.key) {
            row.outcome = TargetOutcome::NotRun(dependency.clone());
        }
    }
}

/// Walks from these targets to the targets without a report that depend on them, breadth first: so the first that reaches a target
/// is the nearest.
fn spread<'k>(
    failed: Vec<(&Row, FailedDependency)>,
    dependents: &BTreeMap<&str, Vec<&'k str>>,
    silent: &mut BTreeSet<&'k str>,
    not_run: &mut BTreeMap<String, FailedDependency>,
) {
    let mut reached: VecDeque<(String, FailedDependency)> = failed
        .into_iter()
        .map(|(row, dependency)| (row.key.clone(), dependency))
        .collect();
    while let Some((key, dependency)) = reached.pop_front() {
        for dependent in dependents.get(key.as_str()).into_iter().flatten() {
            if silent.remove(dependent) {
                not_run.insert((*dependent).to_owned(), dependency.clone());
                reached.push_back(((*dependent).to_owned(), dependency.clone()));
            }
        }
    }
}

/// Whether there is no report, and nothing else says that it ran. A step whose dependency failed is `errored` to Buildkite, as
/// one is that was cancelled.
fn may_not_have_run(row: &Row) -> bool {
    let is_silent = row.report.is_none();
    is_silent
        && matches!(
            row.outcome,
            TargetOutcome::NoReport | TargetOutcome::Stopped | TargetOutcome::NeverRun
        )
}

/// What happened to a target, where that keeps its dependents from running.
fn failed_dependency(row: &Row, data: &BuildData) -> Option<FailedDependency> {
    let what = match row.outcome {
        TargetOutcome::Failed(_) => "failed",
        // Buildkite is not asked for the outcome of these, so it is the plan that says whether their dependents run.
        TargetOutcome::EvaluationError | TargetOutcome::Refused => {
            let exit = row.report.as_ref().map(|report| report.exit);
            let step = data.planned_steps.get(&row.step);
            if step.is_some_and(|step| step.is_soft(exit)) {
                return None;
            }
            "failed"
        }
        TargetOutcome::TimedOut => "timed out",
        TargetOutcome::Cancelled => "was cancelled",
        TargetOutcome::Stopped => "was stopped",
        _ => return None,
    };
    Some(FailedDependency {
        target: row.target.clone(),
        what,
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{build_data, recorded, report, target};
    use super::super::suites;
    use super::*;
    use crate::buildkite::outcome::StepOutcome;
    use crate::step::{SavedReport, SavedReportError};
    use serde_json::{Value, json};

    /// A target that depends on the targets of these attributes.
    fn depending(attr: &str, on: &[&str]) -> Value {
        let mut target = target(attr);
        target["depends_on"] = on.iter().map(|on| format!("drv-{on}")).collect();
        target
    }

    fn failed() -> Result<SavedReport, SavedReportError> {
        report(&json!({ "exit": 100 }), 1.0)
    }

    /// Each target that did not run, with the one that failed.
    fn not_run(data: &BuildData) -> BTreeMap<String, String> {
        let mut suites = suites::of(data);
        mark(data, &mut suites);
        let rows = suites.into_iter().flat_map(|suite| suite.rows);
        let not_run = rows.filter_map(|row| match row.outcome {
            TargetOutcome::NotRun(failed) => Some((row.target, failed.target)),
            _ => None,
        });
        not_run.collect()
    }

    fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
        let pairs = pairs.map(|(target, failed)| (target.to_owned(), failed.to_owned()));
        BTreeMap::from(pairs)
    }

    #[test]
    fn a_target_that_did_not_run_names_the_nearest_that_failed() {
        let mut skipped = depending("skipped", &["far"]);
        skipped["skip"] = "a cache has it".into();
        let targets = json!([
            // Not in the order of their dependencies, and some depend on one another.
            depending("last", &["middle", "near"]),
            depending("middle", &["first"]),
            depending("first", &["far", "ring"]),
            depending("ring", &["first"]),
            depending("far", &[]),
            depending("near", &[]),
            depending("good", &["far"]),
            depending("behind-good", &["good"]),
            skipped,
            depending("behind-skipped", &["skipped"]),
            depending("killed", &[]),
            depending("behind-killed", &["killed"]),
            depending("odd", &["far"]),
            depending("behind-odd", &["odd"]),
        ]);
        let data = build_data(
            vec![recorded(&targets, &json!([]))],
            [
                ("drv-far", failed()),
                ("drv-near", failed()),
                // It has run (it was retried, for example), so `far` did not keep its dependents from running.
                ("drv-good", report(&json!({ "built": 1 }), 1.0)),
                ("drv-odd", Err(SavedReportError::NoReport)),
            ],
        );
        assert_eq!(
            not_run(&data),
            pairs([
                ("first", "far"),
                ("middle", "far"),
                ("ring", "far"),
                ("last", "near"),
            ])
        );
    }

    #[test]
    fn a_target_that_depends_on_an_evaluation_error_did_not_run_either() {
        let failing = crate::nix::AttrPath::new(vec!["failing".into()]);
        let mut behind = target("behind");
        behind["depends_on"] = json!([crate::recording::pipeline::steps::error_key(&failing)]);
        let recorded = recorded(&json!([behind]), &json!([{ "attr": failing.names() }]));
        assert_eq!(
            not_run(&build_data(vec![recorded], [])),
            pairs([("behind", "failing")])
        );
    }

    #[test]
    fn a_step_that_runs_in_spite_of_the_failure_is_not_excused() {
        let targets = json!([
            depending("soft", &[]),
            depending("behind-soft", &["soft"]),
            depending("partly", &[]),
            depending("behind-partly", &["partly"]),
            depending("other", &[]),
            depending("behind-other", &["other"]),
            depending("bold", &["other"]),
            depending("behind-bold", &["bold"]),
            depending("never", &["other"]),
            depending("soft-itself", &["other"]),
            depending("behind-soft-itself", &["soft-itself"]),
        ]);
        let mut data = build_data(
            vec![recorded(&targets, &json!([]))],
            [
                ("drv-soft", failed()),
                ("drv-partly", failed()),
                ("drv-other", failed()),
            ],
        );
        let statuses = json!([{ "exit_status": 65 }, { "exit_status": 75 }]);
        let pipeline = json!({ "steps": [
            { "key": "drv-soft", "soft_fail": [{ "exit_status": 1 }, { "exit_status": 100 }] },
            { "key": "drv-other", "soft_fail": statuses, "skip": false, "label": "l" },
            { "group": "g", "steps": [
                { "key": "drv-partly", "soft_fail": "true" },
                { "key": "drv-bold", "allow_dependency_failure": true },
            ] },
            { "key": "drv-never", "skip": "not today" },
            // It would have failed softly; but it did not run.
            { "key": "drv-soft-itself", "soft_fail": true },
            { "key": "drv-behind-other" },
        ] });
        data.plan(PlannedStep::all_of(&pipeline.to_string()));
        assert_eq!(data.planned_steps.len(), 7, "{:?}", data.planned_steps);
        assert_eq!(
            not_run(&data),
            pairs([
                ("behind-other", "other"),
                ("soft-itself", "other"),
                ("behind-soft-itself", "other"),
            ])
        );
    }

    #[test]
    fn of_steps_that_were_all_stopped_the_first_kept_the_others_from_running() {
        let targets = json!([
            depending("cancelled", &[]),
            depending("behind", &["cancelled"]),
            depending("further", &["behind", "alone"]),
            depending("alone", &[]),
            depending("behind-failed", &["failed", "cancelled"]),
            depending("failed", &[]),
        ]);
        let mut data = build_data(
            vec![recorded(&targets, &json!([]))],
            [("drv-failed", failed())],
        );
        // A step whose dependency failed is `errored` to Buildkite as well.
        for name in ["cancelled", "behind", "further", "alone", "behind-failed"] {
            let key = format!("drv-{name}");
            data.outcomes.insert(key, StepOutcome::Errored);
        }
        assert_eq!(
            not_run(&data),
            pairs([
                ("behind", "cancelled"),
                ("further", "alone"),
                ("behind-failed", "failed"),
            ])
        );
    }
}
