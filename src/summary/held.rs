//! Which targets did not run because another one failed, as far as the plans say who waits for whom. Pure.
//!
//! It knows nothing of what users add to `depends_on`, and guesses nothing: a step that would have run all the same has no
//! excuse for leaving no report.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::gather::BuildData;
use super::rows::{FailedDependency, Row, Suite, TargetOutcome};
use super::terms::Terms;

/// Finds those of the targets without a report that wait for one that failed, be it through others that did not run; each
/// gets the nearest.
pub(super) fn mark(gathered: &BuildData, suites: &mut [Suite]) {
    let terms = |key: &str| gathered.terms.get(key);
    let mut waiting: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let targets = gathered.recorded.iter().flat_map(|it| &it.targets);
    for target in targets.filter(|it| !terms(&it.key).is_some_and(Terms::is_undeterred)) {
        for on in &target.depends_on {
            waiting.entry(on).or_default().push(&target.key);
        }
    }
    let rows = || suites.iter().flat_map(|suite| &suite.rows);
    let mut silent: BTreeSet<&str> = rows()
        .filter(|row| may_have_waited(row))
        .map(|row| row.key.as_str())
        .collect();
    let blockers: Vec<(&Row, FailedDependency)> = rows()
        .filter_map(|row| Some((row, blocker(row, gathered)?)))
        .collect();
    let mut held: BTreeMap<String, FailedDependency> = BTreeMap::new();
    let (failed, stopped): (Vec<_>, Vec<_>) = blockers
        .into_iter()
        .partition(|(row, _)| !may_have_waited(row));
    go(failed, &waiting, &mut silent, &mut held);
    // Of those that were stopped without a report some were stopped because of another: what is left of them comes first.
    let stopped: Vec<_> = stopped
        .into_iter()
        .filter(|(row, _)| silent.contains(row.key.as_str()))
        .collect();
    let mut behind = BTreeMap::new();
    go(stopped.clone(), &waiting, &mut silent.clone(), &mut behind);
    let first = stopped
        .into_iter()
        .filter(|(row, _)| !behind.contains_key(&row.key));
    go(first.collect(), &waiting, &mut silent, &mut held);
    for row in suites.iter_mut().flat_map(|suite| &mut suite.rows) {
        if let Some(blocker) = held.get(&row.key) {
            row.outcome = TargetOutcome::NotRun(blocker.clone());
        }
    }
}

/// Goes from these targets, breadth first from all at once, to the silent ones that wait for them: so whatever comes to a target
/// first is the nearest.
fn go<'k>(
    blockers: Vec<(&Row, FailedDependency)>,
    waiting: &BTreeMap<&str, Vec<&'k str>>,
    silent: &mut BTreeSet<&'k str>,
    held: &mut BTreeMap<String, FailedDependency>,
) {
    let mut reached: VecDeque<(String, FailedDependency)> = blockers
        .into_iter()
        .map(|(row, blocker)| (row.key.clone(), blocker))
        .collect();
    while let Some((key, blocker)) = reached.pop_front() {
        for waiter in waiting.get(key.as_str()).into_iter().flatten() {
            if silent.remove(waiter) {
                held.insert((*waiter).to_owned(), blocker.clone());
                reached.push_back(((*waiter).to_owned(), blocker.clone()));
            }
        }
    }
}

/// Whether it has left nothing, and nothing says that it ran. A step whose dependency failed is `errored` to Buildkite, as one is
/// that was cancelled.
fn may_have_waited(row: &Row) -> bool {
    let is_silent = row.report.is_none();
    is_silent
        && matches!(
            row.outcome,
            TargetOutcome::NoReport | TargetOutcome::Stopped | TargetOutcome::NeverRun
        )
}

/// What happened to a target for which others wait in vain.
fn blocker(row: &Row, gathered: &BuildData) -> Option<FailedDependency> {
    let what = match row.outcome {
        TargetOutcome::Failed(_) => "failed",
        // Of these Buildkite is not asked, so it is the plan that says whether others run all the same.
        TargetOutcome::EvaluationError | TargetOutcome::Refused => {
            let exit = row.report.as_ref().map(|left| left.exit);
            let terms = gathered.terms.get(&row.key);
            if terms.is_some_and(|terms| terms.is_soft(exit)) {
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
    use super::super::rows::Rows;
    use super::super::rows::tests::{gathered, left, recorded, target};
    use super::*;
    use crate::buildkite::outcome::StepOutcome;
    use crate::step::{SavedReport, SavedReportError};
    use serde_json::{Value, json};

    /// What `attr` waits for, by the attributes of those.
    fn waits(attr: &str, on: &[&str]) -> Value {
        let mut target = target(attr);
        target["depends_on"] = on.iter().map(|on| format!("drv-{on}")).collect();
        target
    }

    fn failed() -> Result<SavedReport, SavedReportError> {
        left(&json!({ "exit": 100 }), 1.0)
    }

    /// Each target that has not run, with the one that failed.
    fn held(gathered: &BuildData) -> BTreeMap<String, String> {
        let rows = Rows::new(gathered);
        let held = rows.steps().filter_map(|(_, row)| match &row.outcome {
            TargetOutcome::NotRun(blocker) => Some((row.target.clone(), blocker.target.clone())),
            _ => None,
        });
        held.collect()
    }

    fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
        let pairs = pairs.map(|(target, failed)| (target.to_owned(), failed.to_owned()));
        BTreeMap::from(pairs)
    }

    #[test]
    fn a_target_waits_through_others_for_the_nearest_that_failed() {
        let mut skipped = waits("skipped", &["far"]);
        skipped["skip"] = "a cache has it".into();
        let targets = json!([
            // Not in the order in which they wait, and some wait for one another.
            waits("last", &["middle", "near"]),
            waits("middle", &["first"]),
            waits("first", &["far", "ring"]),
            waits("ring", &["first"]),
            waits("far", &[]),
            waits("near", &[]),
            waits("good", &["far"]),
            waits("behind-good", &["good"]),
            skipped,
            waits("behind-skipped", &["skipped"]),
            waits("killed", &[]),
            waits("behind-killed", &["killed"]),
            waits("odd", &["far"]),
            waits("behind-odd", &["odd"]),
        ]);
        let gathered = gathered(
            vec![recorded(&targets, &json!([]))],
            [
                ("drv-far", failed()),
                ("drv-near", failed()),
                // A dependency that was tried again, say: it has run, so nothing behind it was held back by `far`.
                ("drv-good", left(&json!({ "built": 1 }), 1.0)),
                ("drv-odd", Err(SavedReportError::NoReport)),
            ],
        );
        assert_eq!(
            held(&gathered),
            pairs([
                ("first", "far"),
                ("middle", "far"),
                ("ring", "far"),
                ("last", "near"),
            ])
        );
    }

    #[test]
    fn what_waits_for_a_broken_attribute_has_not_run_either() {
        let broken = crate::nix::AttrPath::new(vec!["broken".into()]);
        let mut behind = target("behind");
        behind["depends_on"] = json!([crate::recording::pipeline::steps::error_key(&broken)]);
        let recorded = recorded(&json!([behind]), &json!([{ "attr": broken.names() }]));
        assert_eq!(
            held(&gathered(vec![recorded], [])),
            pairs([("behind", "broken")])
        );
    }

    #[test]
    fn whoever_would_have_run_all_the_same_is_not_excused() {
        let targets = json!([
            waits("soft", &[]),
            waits("behind-soft", &["soft"]),
            waits("partly", &[]),
            waits("behind-partly", &["partly"]),
            waits("other", &[]),
            waits("behind-other", &["other"]),
            waits("bold", &["other"]),
            waits("behind-bold", &["bold"]),
            waits("never", &["other"]),
            waits("soft-itself", &["other"]),
            waits("behind-soft-itself", &["soft-itself"]),
        ]);
        let mut gathered = gathered(
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
            // It would have failed softly; but it has not run.
            { "key": "drv-soft-itself", "soft_fail": true },
            { "key": "drv-behind-other" },
        ] });
        gathered.terms = Terms::of(&pipeline.to_string());
        assert_eq!(gathered.terms.len(), 6, "{:?}", gathered.terms);
        assert_eq!(
            held(&gathered),
            pairs([
                ("behind-other", "other"),
                ("soft-itself", "other"),
                ("behind-soft-itself", "other"),
            ])
        );
    }

    #[test]
    fn of_steps_that_were_all_stopped_the_first_holds_up_the_others() {
        let targets = json!([
            waits("cancelled", &[]),
            waits("behind", &["cancelled"]),
            waits("further", &["behind", "alone"]),
            waits("alone", &[]),
            waits("behind-failed", &["failed", "cancelled"]),
            waits("failed", &[]),
        ]);
        let mut gathered = gathered(
            vec![recorded(&targets, &json!([]))],
            [("drv-failed", failed())],
        );
        // A step whose dependency failed is `errored` to Buildkite as well.
        for name in ["cancelled", "behind", "further", "alone", "behind-failed"] {
            let key = format!("drv-{name}");
            gathered.outcomes.insert(key, StepOutcome::Errored);
        }
        assert_eq!(
            held(&gathered),
            pairs([
                ("behind", "cancelled"),
                ("further", "alone"),
                ("behind-failed", "failed"),
            ])
        );
    }

    #[test]
    fn a_pipeline_that_cannot_be_read_has_no_terms() {
        for pipeline in ["", "[]", r#"{"steps":5}"#, r#"{"steps":[{"key":5}]}"#] {
            assert_eq!(Terms::of(pipeline), BTreeMap::new(), "{pipeline}");
        }
    }
}
