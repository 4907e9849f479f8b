//! The targets of each recording, and the steps that no recording has made. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::build_data::BuildData;
use super::outcome::TargetOutcome;
use super::row::Row;
use crate::exit::Class;
use crate::keys::Keys;
use crate::nix::AttrPath;
use crate::recording::pipeline::document::{Recorded, RecordedError};

/// The targets of one recording; or all steps that belong to none.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Suite {
    /// What was evaluated.
    pub(super) name: String,
    pub(super) rows: Vec<Row>,
}

/// What the steps are called that no recording has made.
const OTHERS: &str = "steps without a recording";

/// The recordings; behind them the steps that no recording has made, where there are any. What follows a target has no row.
pub(super) fn of(data: &BuildData) -> Vec<Suite> {
    let followers = data.recordings.iter().flat_map(|it| &it.steps);
    let mut seen: BTreeSet<String> = followers.map(|it| it.key.clone()).collect();
    let mut suites: Vec<Suite> = data
        .recordings
        .iter()
        .map(|recorded| {
            let rows = rows(recorded, data);
            seen.extend(rows.iter().map(|row| row.key.clone()));
            Suite {
                name: source(&recorded.source),
                rows,
            }
        })
        .collect();
    let others: Vec<Row> = data
        .reports
        .iter()
        .filter(|(key, _)| !seen.contains(*key))
        .map(|(key, report)| {
            let target = match report {
                Ok(report) if !report.target.is_empty() => &report.target,
                _ => key,
            };
            Row::new(key, target.clone(), data)
        })
        .collect();
    if !others.is_empty() {
        suites.push(Suite {
            name: OTHERS.into(),
            rows: others,
        });
    }
    suites
}

/// The targets and errors of a recording.
fn rows(recorded: &Recorded, data: &BuildData) -> Vec<Row> {
    let errors: BTreeMap<&AttrPath, &RecordedError> = recorded
        .errors
        .iter()
        .map(|error| (&error.attr, error))
        .collect();
    // Where the metadata of a target gives no valid step, the error counts, for all attributes of the target.
    let also: BTreeMap<&AttrPath, usize> = recorded
        .targets
        .iter()
        .map(|target| (&target.attr, target.also.len()))
        .collect();
    let targets = recorded
        .targets
        .iter()
        .filter(|target| !errors.contains_key(&target.attr))
        .map(|target| {
            let name = match target.attr.names() {
                [] => target.name.clone(),
                _ => target.attr.to_string(),
            };
            let report = target.report.as_ref().unwrap_or(&target.key);
            let mut row = Row::of_step(report, &target.key, name, data);
            row.attributes += target.also.len();
            row.compare_with(target);
            if let Some(reason) = &target.skip {
                skip(&mut row, reason, data);
            }
            row
        });
    let errors = errors.iter().map(|(attr, error)| {
        let name = match attr.names() {
            [] => "the root".into(),
            _ => attr.to_string(),
        };
        let mut row = Row::new(&error.key(), name, data);
        row.attributes += also.get(attr).copied().unwrap_or_default();
        let was_built = row.report.as_ref().is_some_and(|report| report.exit == 0);
        if !was_built {
            row.outcome = match error {
                RecordedError { refused: true, .. } => TargetOutcome::Refused,
                RecordedError { expected: true, .. } => TargetOutcome::ExpectedError,
                RecordedError { step: false, .. } => TargetOutcome::ReportedError,
                _ => TargetOutcome::EvaluationError,
            };
            // Its step says the same, shortened, unless it failed for a reason of its own.
            let class = row.report.as_ref().and_then(|it| it.class.as_deref());
            let says_the_same = class.is_none_or(|class| {
                let usual = if error.refused {
                    Class::Config
                } else {
                    Class::Evaluation
                };
                class == usual.word()
            });
            let recorded = error.message.clone();
            row.message = if says_the_same {
                recorded.or(row.message)
            } else {
                row.message.or(recorded)
            };
        }
        row
    });
    let shared = recorded.shared.iter().map(|shared| {
        let mut row = Row::new(&shared.key, shared.name.clone(), data);
        // It is no target, and no attribute.
        row.attributes = 0;
        row
    });
    targets.chain(errors).chain(shared).collect()
}

/// Gives the row of a target that the recording has skipped that outcome, where its step does not have another. With `skip-style: run`
/// the step has a job, which may fail before eval-once begins, so how it ended counts.
fn skip(row: &mut Row, reason: &str, data: &BuildData) {
    let is_skipped = match row.outcome {
        TargetOutcome::NoReport => data.has_no_job(&row.step),
        TargetOutcome::PassedWithoutReport | TargetOutcome::NeverRun => true,
        _ => false,
    };
    if is_skipped {
        row.outcome = TargetOutcome::Skipped(reason.to_owned());
    }
}

/// What was evaluated, in a few words.
fn source(keys: &Keys) -> String {
    let text = |key: &str| keys.get(key).and_then(|value| value.as_str());
    let source = text("file").or_else(|| text("flake"));
    let source = source.unwrap_or("the expression");
    let attr = keys.get("attr").cloned().unwrap_or_default();
    match serde_json::from_value::<AttrPath>(attr) {
        Ok(attr) if !attr.names().is_empty() => format!("{attr} of {source}"),
        _ => source.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{build_data, recorded, report, target};
    use super::super::outcome::FailedPart;
    use super::super::planned_step::PlannedStep;
    use super::*;
    use crate::buildkite::outcome::StepOutcome;
    use crate::recording::pipeline::document::RecordedFollower;
    use crate::recording::pipeline::steps::error_key;
    use crate::step::SavedReportError;
    use serde_json::{Value, json};

    fn rows_by_target(suites: &[Suite]) -> BTreeMap<&str, &Row> {
        let rows = suites.iter().flat_map(|suite| &suite.rows);
        rows.map(|row| (row.target.as_str(), row)).collect()
    }

    #[test]
    fn every_target_has_an_outcome_with_or_without_a_report() {
        let mut skipped = target("skipped");
        skipped["skip"] = "a cache has it".into();
        let names = ["built", "failed", "silent", "odd", "new"];
        let mut targets: Vec<Value> = names.map(target).to_vec();
        targets.push(skipped);
        let data = build_data(
            vec![recorded(&json!(targets), &json!([]))],
            [
                ("drv-built", report(&json!({ "built": 2 }), 1.0)),
                (
                    "drv-failed",
                    report(&json!({ "exit": 100, "built": 1 }), 1.0),
                ),
                ("drv-odd", Err(SavedReportError::NoReport)),
                ("drv-new", Err(SavedReportError::Version(2))),
            ],
        );
        let suites = of(&data);
        let outcomes: BTreeMap<&str, TargetOutcome> = rows_by_target(&suites)
            .into_iter()
            .map(|(target, row)| (target, row.outcome.clone()))
            .collect();
        assert_eq!(
            outcomes,
            BTreeMap::from([
                ("built", TargetOutcome::Built),
                ("failed", TargetOutcome::Failed(FailedPart::Build)),
                ("silent", TargetOutcome::NoReport),
                ("odd", TargetOutcome::Unreadable),
                ("new", TargetOutcome::OtherVersion(2)),
                ("skipped", TargetOutcome::Skipped("a cache has it".into())),
            ])
        );
    }

    #[test]
    fn a_target_of_a_batch_stands_as_its_own_report_says() {
        let in_batch = |name: &str| {
            let mut target = target(name);
            target["key"] = "batch-1".into();
            target["report"] = format!("drv-{name}").into();
            target
        };
        let targets = ["good", "bad", "silent"].map(in_batch);
        let mut data = build_data(
            vec![recorded(&json!(targets), &json!([]))],
            [
                (
                    "drv-good",
                    report(&json!({ "built": 1, "after": ["hook"] }), 1.0),
                ),
                ("drv-bad", report(&json!({ "exit": 100 }), 1.0)),
            ],
        );
        let open = super::super::rows::Rows::new(&data).open_keys(&data);
        assert_eq!(open, ["batch-1"], "because of the one without a report");
        data.outcomes
            .insert("batch-1".into(), StepOutcome::HardFailed);
        let suites = of(&data);
        let rows = rows_by_target(&suites);
        assert_eq!(rows["good"].outcome, TargetOutcome::Built);
        assert_eq!(
            rows["bad"].outcome,
            TargetOutcome::Failed(FailedPart::Build)
        );
        assert_eq!(
            rows["silent"].outcome,
            TargetOutcome::Failed(FailedPart::NotKnown)
        );
        assert_eq!(suites.len(), 1, "the reports are of no other steps");
    }

    #[test]
    fn an_error_of_the_recording_stays_one_until_its_step_has_built_it() {
        let names = ["failing", "refused", "mended", "killed", "unknown"];
        let mut errors = names
            .map(|name| json!({ "attr": [name], "message": "m", "refused": name == "refused" }))
            .to_vec();
        errors[4]["message"] = Value::Null;
        errors.extend([
            json!({ "attr": ["old"], "message": "m", "expected": true, "step": true }),
            json!({ "attr": ["older"], "message": "m", "expected": true, "step": false }),
            json!({ "attr": ["unfree"], "message": "m", "step": false }),
        ]);
        let failed = |class: &str| json!({ "exit": 65, "class": class, "message": "of Nix" });
        let key = |attr: &str| error_key(&AttrPath::new(vec![attr.into()]));
        let data = build_data(
            vec![recorded(&json!([target("refused")]), &json!(errors))],
            [
                (&key("failing"), report(&failed("evaluation"), 1.0)),
                (&key("killed"), report(&failed("surroundings"), 1.0)),
                (&key("unknown"), report(&failed("evaluation"), 1.0)),
                (&key("mended"), report(&json!({ "built": 1 }), 1.0)),
            ],
        );
        let suites = of(&data);
        let rows = rows_by_target(&suites);
        let row = |target: &str| (&rows[target].outcome, rows[target].message.as_deref());
        assert_eq!(rows.len(), 8);
        // The recording has the whole message; its step's report the begin of it.
        for (target, message) in [
            ("failing", "m"),
            ("killed", "of Nix"),
            ("unknown", "of Nix"),
        ] {
            let expected = (&TargetOutcome::EvaluationError, Some(message));
            assert_eq!(row(target), expected, "{target}");
        }
        assert_eq!(row("refused"), (&TargetOutcome::Refused, Some("m")));
        assert_eq!(row("mended"), (&TargetOutcome::Built, None));
        assert_eq!(row("old"), (&TargetOutcome::ExpectedError, Some("m")));
        assert_eq!(row("older"), (&TargetOutcome::ExpectedError, Some("m")));
        assert_eq!(row("unfree"), (&TargetOutcome::ReportedError, Some("m")));
    }

    #[test]
    fn a_skipped_target_whose_step_runs_has_the_outcome_of_its_step() {
        let names = ["marked", "omitted", "lost", "green", "conditional"];
        let targets = names.map(|name| {
            let mut target = target(name);
            target["skip"] = "a cache has it".into();
            target
        });
        let mut data = build_data(vec![recorded(&json!(targets), &json!([]))], []);
        let steps = json!({ "steps": [
            { "key": "drv-marked", "skip": "a cache has it" },
            { "key": "drv-lost" }, { "key": "drv-green" }, { "key": "drv-conditional" },
        ] });
        data.plan(PlannedStep::all_of(&steps.to_string()));
        let open = super::super::rows::Rows::new(&data).open_keys(&data);
        assert_eq!(open, ["drv-lost", "drv-green", "drv-conditional"]);
        for (name, outcome) in [
            ("lost", StepOutcome::HardFailed),
            ("green", StepOutcome::Passed),
            ("conditional", StepOutcome::NotRun),
        ] {
            data.outcomes.insert(format!("drv-{name}"), outcome);
        }
        let suites = of(&data);
        let rows = rows_by_target(&suites);
        for name in ["marked", "omitted", "green", "conditional"] {
            let skipped = TargetOutcome::Skipped("a cache has it".into());
            assert_eq!(rows[name].outcome, skipped, "{name}");
        }
        assert_eq!(
            rows["lost"].outcome,
            TargetOutcome::Failed(FailedPart::NotKnown)
        );
        // Where Buildkite does not say, it is not known.
        data.outcomes
            .insert("drv-lost".into(), StepOutcome::NotKnown);
        assert_eq!(
            rows_by_target(&of(&data))["lost"].outcome,
            TargetOutcome::NoReport
        );
    }

    #[test]
    fn of_two_plans_of_a_step_the_one_that_runs_counts() {
        let one = |skip: bool| {
            let steps = json!({ "steps": [{ "key": "a", "skip": skip }] });
            PlannedStep::all_of(&steps.to_string())
        };
        for order in [[true, false], [false, true]] {
            let mut data = build_data(vec![], []);
            for skip in order {
                data.plan(one(skip));
            }
            assert!(!data.has_no_job("a"), "{order:?}");
        }
    }

    #[test]
    fn a_step_that_follows_a_target_has_no_row() {
        let mut with_follower = recorded(&json!([target("a")]), &json!([]));
        with_follower.steps = vec![RecordedFollower {
            key: "drv-a-deploy".into(),
        }];
        let data = build_data(
            vec![with_follower],
            [
                ("drv-a", report(&json!({ "built": 1 }), 1.0)),
                (
                    "drv-a-deploy",
                    report(&json!({ "after": ["command"] }), 1.0),
                ),
            ],
        );
        let suites = of(&data);
        assert_eq!(suites.len(), 1);
        assert_eq!(
            rows_by_target(&suites).into_keys().collect::<Vec<_>>(),
            ["a"]
        );
    }

    #[test]
    fn steps_without_a_recording_are_a_suite_of_their_own_behind_the_recordings() {
        let data = build_data(
            vec![recorded(&json!([target("a")]), &json!([]))],
            [(
                "by-hand",
                report(&json!({ "target": "hello", "built": 1 }), 1.0),
            )],
        );
        let suites = of(&data);
        let names: Vec<&str> = suites.iter().map(|suite| suite.name.as_str()).collect();
        assert_eq!(names, ["ci.nix", OTHERS]);
        assert_eq!(suites[1].rows[0].target, "hello");
        assert_eq!(suites[1].rows[0].outcome, TargetOutcome::Built);
    }

    #[test]
    fn a_root_cause_is_another_derivation_than_the_targets_own() {
        let drv = |first: char, name: &str| {
            let hash = format!("{first}{}", "0".repeat(31));
            format!("/nix/store/{hash}-{name}.drv")
        };
        let mut app = target("app");
        app["name"] = "app-1".into();
        app["drv"] = drv('a', "app-1").into();
        let root_cause = |failed: &str, drift: bool| {
            let saved = json!({ "exit": 100, "drv": failed, "drift": drift, "target": "app" });
            let data = build_data(
                vec![recorded(&json!([app]), &json!([]))],
                [
                    ("drv-app", report(&saved, 1.0)),
                    ("by-hand", report(&saved, 1.0)),
                ],
            );
            let suites = of(&data);
            [0, 1].map(|suite| suites[suite].rows[0].root_cause.clone())
        };
        let names = |names: [Option<&str>; 2]| names.map(|name| name.map(str::to_owned));
        for (failed, drift, expected) in [
            (drv('b', "zlib-1.3.1"), false, [Some("zlib-1.3.1"); 2]),
            (drv('a', "app-1"), false, [None, Some("app-1")]),
            // Built for another system, say.
            (drv('b', "app-1"), false, [Some("app-1"); 2]),
            (drv('b', "app-1"), true, [None, Some("app-1")]),
            (drv('b', "app"), true, [Some("app"), None]),
            ("|<b>.drv".into(), false, [None; 2]),
        ] {
            assert_eq!(
                root_cause(&failed, drift),
                names(expected),
                "{failed} {drift}"
            );
        }
    }
}
