//! What became of each target: what recordings have planned and what steps have left, side by side. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::gather::Gathered;
use crate::keys::Keys;
use crate::nix::{AttrPath, DrvPath};
use crate::recording::document::{Recorded, RecordedTarget};
use crate::recording::steps::error_key;
use crate::step::{Left, Unreadable, WayName};

/// What became of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Its step failed.
    Failed,
    /// It was broken when it was recorded, and no step has built it since.
    Broken,
    /// Its step has left nothing: it did not run, was cancelled, or ended before it could leave one.
    NoReport,
    /// Its step has left something that is no report.
    Unreadable,
    /// Its step has left a report of this version, which we do not know.
    OtherVersion(u32),
    /// Something was built for it.
    Built,
    /// What was not here came from a cache.
    Fetched,
    /// Everything was here already.
    There,
    /// The recording has skipped it, and why.
    Skipped(String),
}

/// A target.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    /// The key of its step; where it has none, the step's id.
    pub(super) key: String,
    /// Its attribute path, or the name by which its step knows it.
    pub(super) target: String,
    pub(super) outcome: Outcome,
    /// What its step has left.
    pub(super) report: Option<Left>,
    /// What is wrong with it, where that is known.
    pub(super) message: Option<String>,
    /// The name of the derivation that itself failed, where that is another than the target's own.
    pub(super) culprit: Option<String>,
}

impl Row {
    /// How long its step took, in seconds.
    pub(super) fn seconds(&self) -> f64 {
        self.report.as_ref().map_or(0.0, |left| left.seconds.total)
    }

    /// What its step has left, where it evaluated although the target was not broken to begin with.
    pub(super) fn evaluated_again(&self) -> Option<&Left> {
        let left = self.report.as_ref()?;
        (self.outcome != Outcome::Broken && left.way() == Some(WayName::Evaluated)).then_some(left)
    }
}

/// What a recording covers; or all that none does.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Suite {
    /// What was evaluated.
    pub(super) name: String,
    pub(super) rows: Vec<Row>,
}

/// Everything there is to tell.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rows {
    /// The recordings; behind them the steps that no recording has made, where there are any.
    pub(super) suites: Vec<Suite>,
    /// How long all recordings took, in seconds; none where that is not known, or nothing was recorded.
    pub(super) recording: Option<f64>,
    /// How many recordings cannot be read.
    pub(super) unread: usize,
}

/// What the steps are called that no recording has made.
const OTHERS: &str = "steps without a recording";

impl Rows {
    pub(super) fn new(gathered: &Gathered) -> Self {
        let mut seen = BTreeSet::new();
        let mut suites: Vec<Suite> = gathered
            .recorded
            .iter()
            .map(|recorded| {
                let rows = rows(recorded, &gathered.reports);
                seen.extend(rows.iter().map(|row| row.key.clone()));
                Suite {
                    name: source(&recorded.source),
                    rows,
                }
            })
            .collect();
        let others: Vec<Row> = gathered
            .reports
            .iter()
            .filter(|(key, _)| !seen.contains(*key))
            .map(|(key, report)| {
                let target = match report {
                    Ok(left) if !left.target.is_empty() => &left.target,
                    _ => key,
                };
                row(key, target.clone(), Some(report))
            })
            .collect();
        if !others.is_empty() {
            suites.push(Suite {
                name: OTHERS.into(),
                rows: others,
            });
        }
        let totals = gathered.recorded.iter().map(|recorded| {
            let total = recorded.seconds.get("total").copied();
            total.filter(|seconds| seconds.is_finite() && *seconds > 0.0)
        });
        let known = !gathered.recorded.is_empty() && gathered.unread == 0;
        Self {
            suites,
            recording: totals.sum::<Option<f64>>().filter(|_| known),
            unread: gathered.unread,
        }
    }

    /// Each step once, with the recording that it is of, also where several have it.
    pub(super) fn steps(&self) -> impl Iterator<Item = (&Suite, &Row)> {
        let mut seen = BTreeSet::new();
        self.suites
            .iter()
            .flat_map(|suite| suite.rows.iter().map(move |row| (suite, row)))
            .filter(move |(_, row)| seen.insert(row.key.as_str()))
    }
}

/// The targets and broken attributes of a recording.
fn rows(recorded: &Recorded, reports: &BTreeMap<String, Result<Left, Unreadable>>) -> Vec<Row> {
    let errors: BTreeMap<&AttrPath, Option<&str>> = recorded
        .errors
        .iter()
        .map(|error| (&error.attr, error.message.as_deref()))
        .collect();
    let targets = recorded
        .targets
        .iter()
        // Of one whose own metadata makes no step it is the error that counts.
        .filter(|target| !errors.contains_key(&target.attr))
        .map(|target| {
            let called = match target.attr.names() {
                [] => target.name.clone(),
                _ => target.attr.to_string(),
            };
            let report = reports.get(&target.key);
            let mut row = row(&target.key, called, report);
            row.culprit = row.report.as_ref().and_then(|left| culprit(left, target));
            if let (None, Some(reason)) = (report, &target.skip) {
                row.outcome = Outcome::Skipped(reason.clone());
            }
            row
        });
    let broken = errors.iter().map(|(attr, message)| {
        let key = error_key(attr);
        let called = match attr.names() {
            [] => "the root".into(),
            _ => attr.to_string(),
        };
        let mut row = row(&key, called, reports.get(&key));
        let was_built = matches!(
            row.outcome,
            Outcome::Built | Outcome::Fetched | Outcome::There
        );
        if !was_built {
            row.outcome = Outcome::Broken;
            row.message = row.message.or_else(|| message.map(str::to_owned));
        }
        row
    });
    targets.chain(broken).collect()
}

fn row(key: &str, target: String, report: Option<&Result<Left, Unreadable>>) -> Row {
    let outcome = match report {
        None => Outcome::NoReport,
        Some(Err(Unreadable::NoReport)) => Outcome::Unreadable,
        Some(Err(Unreadable::Version(version))) => Outcome::OtherVersion(*version),
        Some(Ok(left)) if left.exit != 0 => Outcome::Failed,
        Some(Ok(left)) if left.built > 0 => Outcome::Built,
        Some(Ok(left)) if left.substituted > 0 => Outcome::Fetched,
        Some(Ok(_)) => Outcome::There,
    };
    let report = report.and_then(|report| report.clone().ok());
    let failed = report.as_ref().and_then(failed);
    let failed = failed.map(|drv| drv.name().to_owned());
    Row {
        key: key.to_owned(),
        outcome,
        message: report.as_ref().and_then(|left| left.message.clone()),
        // What the target's own is called is not known here: but it may be all that the target is called by.
        culprit: failed.filter(|name| *name != target),
        target,
        report,
    }
}

/// The derivation that itself failed. Anything can stand in a report: what is no `.drv` of a store is none.
fn failed(left: &Left) -> Option<DrvPath> {
    DrvPath::parse(left.drv.as_deref()?).ok()
}

/// The name of the derivation that itself failed, where that is not the one of `target`.
fn culprit(left: &Left, target: &RecordedTarget) -> Option<String> {
    let failed = failed(left)?;
    // What has drifted has another path than was recorded, and still its name.
    let is_own =
        failed.as_store_path().as_str() == target.drv || left.drift && failed.name() == target.name;
    (!is_own).then(|| failed.name().to_owned())
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
pub(super) mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A recording of `ci.nix` with these targets and broken attributes, which took 12 s.
    pub(in super::super) fn recorded(targets: &Value, errors: &Value) -> Recorded {
        let document = json!({
            "version": 1, "source": { "file": "ci.nix", "attr": [] }, "targets": targets, "errors": errors,
            "seconds": { "evaluate": 10.0, "total": 12.0 },
        });
        Recorded::read(&document.to_string()).unwrap()
    }

    pub(in super::super) fn target(attr: &str) -> Value {
        json!({ "attr": [attr], "key": format!("drv-{attr}"), "skip": null })
    }

    /// A report of a step that took `total` seconds.
    pub(in super::super) fn left(more: &Value, total: f64) -> Result<Left, Unreadable> {
        let mut left = json!({ "version": 1, "way": "realised", "reason": "drv-valid", "seconds": { "total": total } });
        let map = left.as_object_mut().unwrap();
        map.extend(more.as_object().unwrap().clone());
        Left::read(&left.to_string())
    }

    pub(in super::super) fn gathered<const N: usize>(
        recorded: Vec<Recorded>,
        reports: [(&str, Result<Left, Unreadable>); N],
    ) -> Gathered {
        Gathered {
            recorded,
            unread: 0,
            reports: reports
                .into_iter()
                .map(|(key, report)| (key.to_owned(), report))
                .collect(),
        }
    }

    fn outcomes(rows: &Rows) -> BTreeMap<&str, Outcome> {
        rows.steps()
            .map(|(_, row)| (row.target.as_str(), row.outcome.clone()))
            .collect()
    }

    #[test]
    fn every_target_has_an_outcome_whether_its_step_has_left_something_or_not() {
        let mut skipped = target("skipped");
        skipped["skip"] = "a cache has it".into();
        let names = [
            "built", "fetched", "there", "failed", "silent", "odd", "new",
        ];
        let mut targets: Vec<Value> = names.map(target).to_vec();
        targets.extend([skipped, target("refused")]);
        let broken = [&["broken"], &["refused"], &["mended"]]
            .map(|attr| json!({ "attr": attr, "message": "m" }));
        let error = |attr: &str| error_key(&AttrPath::new(vec![attr.into()]));
        let gathered = gathered(
            vec![recorded(&json!(targets), &json!(broken))],
            [
                (
                    "drv-built",
                    left(&json!({ "built": 2, "substituted": 1 }), 1.0),
                ),
                ("drv-fetched", left(&json!({ "substituted": 1 }), 1.0)),
                ("drv-there", left(&json!({}), 1.0)),
                ("drv-failed", left(&json!({ "exit": 100, "built": 1 }), 1.0)),
                ("drv-odd", Err(Unreadable::NoReport)),
                ("drv-new", Err(Unreadable::Version(2))),
                (
                    &error("broken"),
                    left(&json!({ "exit": 65, "message": "said by Nix" }), 1.0),
                ),
                (&error("mended"), left(&json!({ "built": 1 }), 1.0)),
                (
                    "by-hand",
                    left(&json!({ "target": "hello", "built": 1 }), 1.0),
                ),
            ],
        );
        let rows = Rows::new(&gathered);
        assert_eq!(
            outcomes(&rows),
            BTreeMap::from([
                ("built", Outcome::Built),
                ("fetched", Outcome::Fetched),
                ("there", Outcome::There),
                ("failed", Outcome::Failed),
                ("silent", Outcome::NoReport),
                ("odd", Outcome::Unreadable),
                ("new", Outcome::OtherVersion(2)),
                ("skipped", Outcome::Skipped("a cache has it".into())),
                ("broken", Outcome::Broken),
                ("refused", Outcome::Broken),
                ("mended", Outcome::Built),
                ("hello", Outcome::Built),
            ])
        );
        let names: Vec<&str> = rows
            .suites
            .iter()
            .map(|suite| suite.name.as_str())
            .collect();
        assert_eq!(names, ["ci.nix", OTHERS]);
        let message = |target: &str| {
            let (_, row) = rows.steps().find(|(_, row)| row.target == target).unwrap();
            row.message.clone()
        };
        assert_eq!(message("broken").as_deref(), Some("said by Nix"));
        assert_eq!(message("refused").as_deref(), Some("m"));
        assert_eq!(rows.recording, Some(12.0));
    }

    #[test]
    fn a_culprit_is_another_derivation_than_the_targets_own() {
        let drv = |first: char, name: &str| {
            let hash = format!("{first}{}", "0".repeat(31));
            format!("/nix/store/{hash}-{name}.drv")
        };
        let mut app = target("app");
        app["name"] = "app-1".into();
        app["drv"] = drv('a', "app-1").into();
        let culprit = |failed: &str, drift: bool| {
            let report = json!({ "exit": 100, "drv": failed, "drift": drift, "target": "app" });
            let gathered = gathered(
                vec![recorded(&json!([app]), &json!([]))],
                [
                    ("drv-app", left(&report, 1.0)),
                    ("by-hand", left(&report, 1.0)),
                ],
            );
            let rows = Rows::new(&gathered);
            [0, 1].map(|suite| rows.suites[suite].rows[0].culprit.clone())
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
            assert_eq!(culprit(&failed, drift), names(expected), "{failed} {drift}");
        }
    }

    #[test]
    fn a_step_of_two_recordings_is_told_once() {
        let recorded = || recorded(&json!([target("a")]), &json!([]));
        let rows = Rows::new(&gathered(vec![recorded(), recorded()], []));
        assert_eq!((rows.suites.len(), rows.steps().count()), (2, 1));
        assert_eq!(rows.recording, Some(24.0));
    }

    #[test]
    fn what_a_recording_took_is_not_known_where_one_cannot_be_read() {
        let mut gathered = gathered(vec![recorded(&json!([]), &json!([]))], []);
        gathered.unread = 1;
        assert_eq!(Rows::new(&gathered).recording, None);
        gathered.recorded.clear();
        gathered.unread = 0;
        assert_eq!(Rows::new(&gathered).recording, None);
    }
}
