//! The outcomes of a build's targets as `eval-once-outcomes.json` has them. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::build_data::BuildData;
use super::outcome::TargetOutcome;
use super::row::Row;
use super::rows::Rows;
use crate::nix::AttrPath;
use crate::outcomes::{OutcomeEntry, OutcomeWord, Outcomes};
use crate::recording::pipeline::document::Recorded;

/// The outcomes of all targets that recordings have found, and of the attributes with an error, in the build of this number.
pub(super) fn of(rows: &Rows, data: &BuildData, build: Option<u64>) -> Outcomes {
    // Each recording has a suite, in the same order.
    let suites = rows.suites.iter().zip(&data.recordings);
    let entries = suites.flat_map(|(suite, recorded)| entries(&suite.rows, recorded));
    Outcomes::new(build, entries.collect())
}

fn entries(rows: &[Row], recorded: &Recorded) -> Vec<OutcomeEntry> {
    let by_key: BTreeMap<&str, &Row> = rows.iter().map(|row| (row.key.as_str(), row)).collect();
    let targets = recorded.targets.iter();
    let attrs: BTreeSet<&AttrPath> = targets.clone().map(|target| &target.attr).collect();
    let targets = targets.filter_map(|target| {
        let report = target.report.as_ref().unwrap_or(&target.key);
        let row = by_key.get(report.as_str())?;
        let entry = entry(&target.attr, row);
        Some(OutcomeEntry {
            also: target.also.clone(),
            // What a later recording skips is this `.drv`, so the outcome has to be its own.
            drv: (!row.is_of_another_drv()).then(|| target.drv.clone()),
            // One that did not run may run in the next build.
            seconds: entry.seconds.or(target.seconds),
            ..entry
        })
    });
    // A refused target is among the targets.
    let errors = recorded.errors.iter();
    let errors = errors.filter(|error| !attrs.contains(&error.attr));
    let errors =
        errors.filter_map(|error| Some(entry(&error.attr, by_key.get(error.key().as_str())?)));
    targets.chain(errors).collect()
}

fn entry(attr: &AttrPath, row: &Row) -> OutcomeEntry {
    OutcomeEntry {
        attr: attr.clone(),
        also: Vec::new(),
        drv: None,
        key: row.step.clone(),
        outcome: word(&row.outcome),
        seconds: row.report.as_ref().map(|report| report.seconds.total),
    }
}

/// The outcome in fewer words: why one is not known makes no difference here.
fn word(outcome: &TargetOutcome) -> OutcomeWord {
    match outcome {
        TargetOutcome::Failed(_) => OutcomeWord::Failed,
        TargetOutcome::SoftFailed(_) => OutcomeWord::SoftFailed,
        TargetOutcome::TimedOut => OutcomeWord::TimedOut,
        TargetOutcome::Cancelled => OutcomeWord::Cancelled,
        TargetOutcome::Stopped => OutcomeWord::Stopped,
        TargetOutcome::EvaluationError | TargetOutcome::ReportedError => {
            OutcomeWord::EvaluationError
        }
        TargetOutcome::ExpectedError => OutcomeWord::ExpectedError,
        TargetOutcome::Refused => OutcomeWord::Refused,
        TargetOutcome::NotRun(_) | TargetOutcome::NeverRun | TargetOutcome::NoStep => {
            OutcomeWord::NotRun
        }
        TargetOutcome::Unfinished(_) => OutcomeWord::Unfinished,
        TargetOutcome::NoReport
        | TargetOutcome::PassedWithoutReport
        | TargetOutcome::Unreadable
        | TargetOutcome::OtherVersion(_)
        | TargetOutcome::NotKnown => OutcomeWord::Unknown,
        TargetOutcome::Built | TargetOutcome::Substituted | TargetOutcome::There => {
            OutcomeWord::Passed
        }
        TargetOutcome::Skipped(_) => OutcomeWord::Skipped,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{build_data, recorded, report, target};
    use super::*;
    use crate::recording::pipeline::steps::error_key;
    use serde_json::{Value, json};

    #[test]
    fn the_outcome_of_another_drv_is_not_that_of_the_recorded_one() {
        let names = ["same", "drifted", "elsewhere"];
        let targets = names.map(|name| {
            let mut target = target(name);
            target["drv"] = format!("/s/{name}.drv").into();
            target
        });
        let evaluated = |more: &Value| {
            let mut saved = json!({ "way": "evaluated", "reason": "drv-missing", "built": 1 });
            let map = saved.as_object_mut().unwrap();
            map.extend(more.as_object().unwrap().clone());
            report(&saved, 1.0)
        };
        let data = build_data(
            vec![recorded(&json!(targets), &json!([]))],
            [
                ("drv-same", evaluated(&json!({}))),
                ("drv-drifted", evaluated(&json!({ "drift": true }))),
                (
                    "drv-elsewhere",
                    evaluated(&json!({ "reason": "other-store" })),
                ),
            ],
        );
        let outcomes = of(&Rows::new(&data), &data, None);
        let found: Vec<_> = outcomes
            .targets
            .iter()
            .map(|it| (it.outcome, it.drv.as_deref()))
            .collect();
        let passed = OutcomeWord::Passed;
        assert_eq!(
            found,
            [
                (passed, Some("/s/same.drv")),
                (passed, None),
                (passed, None)
            ]
        );
    }

    #[test]
    fn every_target_and_every_error_has_its_outcome_once() {
        let mut skipped = target("skipped");
        skipped["skip"] = "a cache has it".into();
        let mut refused = target("refused");
        refused["key"] = error_key(&AttrPath::new(vec!["refused".into()])).into();
        let mut built = target("built");
        built["also"] = json!([["alias"]]);
        built["drv"] = "/s/x.drv".into();
        let targets = json!([built, target("red"), skipped, refused, target("silent")]);
        let errors = json!([
            { "attr": ["refused"], "message": "m", "refused": true },
            { "attr": ["failing"], "message": "m" },
            // With `keys: attr`; and a step that follows a target.
            { "attr": ["named"], "message": "m", "key": "nix-named" },
            { "attr": ["red", "meta", "eval-once", "steps", "deploy"], "message": "m", "key": "drv-red-deploy" },
        ]);
        let data = build_data(
            vec![
                recorded(&targets, &errors),
                recorded(&json!([target("red")]), &json!([])),
            ],
            [
                ("drv-built", report(&json!({ "built": 1 }), 2.5)),
                ("drv-red", report(&json!({ "exit": 100 }), 1.0)),
                ("by-hand", report(&json!({ "built": 1 }), 1.0)),
            ],
        );
        let outcomes = of(&Rows::new(&data), &data, Some(41));
        assert_eq!(outcomes.build, Some(41));
        let found: Vec<_> = outcomes
            .targets
            .iter()
            .map(|it| (it.attr.to_string(), it.outcome))
            .collect();
        let expected = [
            ("built", OutcomeWord::Passed),
            ("red", OutcomeWord::Failed),
            ("skipped", OutcomeWord::Skipped),
            ("refused", OutcomeWord::Refused),
            ("silent", OutcomeWord::Unknown),
            ("failing", OutcomeWord::EvaluationError),
            ("named", OutcomeWord::EvaluationError),
            (
                "red.meta.eval-once.steps.deploy",
                OutcomeWord::EvaluationError,
            ),
            ("red", OutcomeWord::Failed),
        ];
        assert_eq!(found, expected.map(|(attr, word)| (attr.to_owned(), word)));
        let built = &outcomes.targets[0];
        assert_eq!(built.also[0].to_string(), "alias");
        assert_eq!(built.drv.as_deref(), Some("/s/x.drv"));
        assert_eq!(
            (built.seconds, built.key.as_str()),
            (Some(2.5), "drv-built")
        );
        assert_eq!(outcomes.targets[5].drv, None);
        assert_eq!(outcomes.counts[&OutcomeWord::Failed], 2);
    }
}
