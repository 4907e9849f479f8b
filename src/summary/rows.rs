//! How each target stands: what recordings have planned, what steps have left, and how Buildkite says that they ended, side by
//! side. Pure.
//!
//! Buildkite is asked only where the rest does not tell ([`Rows::not_told`]), for each question is a process and a request:
//!
//! - A report of a build that succeeded, with nothing behind it in its job, tells all: nothing is left that could fail.
//! - Where something comes after the build (the step's own command, another plugin, a hook of the agent's or the repository's,
//!   artifacts), the report was left before it. The step has written down what that is, for only the job knows.
//! - Where a step is several jobs, the report is that of the last.
//! - A report of a failure does not say whether the failure was soft, and whether another try has ended since.
//! - A step without a report is not asked for where a step that it waits for failed: it has not run.
//! - What the recording has skipped or could not evaluate, the recording tells.

use std::collections::{BTreeMap, BTreeSet};

use super::gather::BuildData;
use super::held;
use super::terms::Terms;
use crate::buildkite::outcome::StepOutcome;
use crate::keys::Keys;
use crate::nix::{AttrPath, DrvPath};
use crate::recording::pipeline::document::{Recorded, RecordedError, RecordedTarget};
use crate::recording::pipeline::steps::error_key;
use crate::step::{AfterBuild, COMMAND, SavedReport, SavedReportError, StopReason, WayName};

/// How a target stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TargetOutcome {
    /// Its step failed.
    Failed(FailedPart),
    /// Its step failed, which its `soft_fail` allows.
    SoftFailed(FailedPart),
    /// Its job ran for longer than it may.
    TimedOut,
    /// Its job was cancelled.
    Cancelled,
    /// Its job was cancelled, timed out or expired; which of them is not known.
    Stopped,
    /// It did not evaluate when it was recorded, and no step has built it since.
    EvaluationError,
    /// It evaluates, and its metadata makes no step.
    Refused,
    /// Its step did not run, because of the step of this target, for which it waits.
    NotRun(FailedDependency),
    /// Its step did not run: it is skipped, or has a condition.
    NeverRun,
    /// The build has no such step: the recording did not come to uploading it.
    NoStep,
    /// Its step has not ended, and how it stands.
    Unfinished(String),
    /// Its step has left nothing, and how it ended is not known.
    NoReport,
    /// Its step has passed, and left nothing: whether it has built the target is not known.
    PassedSilently,
    /// Its step has left something that is no report.
    Unreadable,
    /// Its step has left a report of this version, which we do not know.
    OtherVersion(u32),
    /// It is built, and Buildkite does not say how its job ended, in which something comes after the build.
    NotKnown,
    /// Something was built for it.
    Built,
    /// What was not here came from a cache.
    Fetched,
    /// Everything was here already.
    There,
    /// The recording has skipped it, and why.
    Skipped(String),
}

/// What of a step failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FailedPart {
    /// The build of its target.
    Build,
    /// Its own command, after the build.
    Command,
    /// Something else that comes after the build.
    Later,
    /// Another job of it than the one that left the report.
    OtherJob,
    /// Not known: it has left no report.
    NotKnown,
}

/// A target whose step has not passed, and so holds others up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FailedDependency {
    /// What it is called.
    pub(super) target: String,
    /// What happened to it, as the end of a sentence.
    pub(super) what: &'static str,
}

/// A target.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    /// The key of its step; where it has none, the step's id.
    pub(super) key: String,
    /// Its attribute path, or the name by which its step knows it.
    pub(super) target: String,
    pub(super) outcome: TargetOutcome,
    /// What its step has left.
    pub(super) report: Option<SavedReport>,
    /// What is wrong with it, where that is known.
    pub(super) message: Option<String>,
    /// The name of the derivation that itself failed, where that is another than the target's own.
    pub(super) root_cause: Option<String>,
    /// How many attributes give it.
    pub(super) attributes: usize,
}

impl Row {
    /// How long its step took, in seconds.
    pub(super) fn seconds(&self) -> f64 {
        self.report.as_ref().map_or(0.0, |left| left.seconds.total)
    }

    /// What its step has left, where it evaluated although the target was not broken to begin with.
    pub(super) fn evaluated_again(&self) -> Option<&SavedReport> {
        let left = self.report.as_ref()?;
        (!self.is_error() && left.way() == Some(WayName::Evaluated)).then_some(left)
    }

    /// Whether it was an error of the recording, and is one still.
    pub(super) fn is_error(&self) -> bool {
        matches!(
            self.outcome,
            TargetOutcome::EvaluationError | TargetOutcome::Refused
        )
    }

    /// Whether its step is known to have passed, and to have built it.
    pub(super) fn has_passed(&self) -> bool {
        matches!(
            self.outcome,
            TargetOutcome::Built | TargetOutcome::Fetched | TargetOutcome::There
        )
    }

    /// What comes after the build in its job, in a few words.
    pub(super) fn after(&self) -> String {
        let after = self.report.as_ref().and_then(|left| left.after.as_deref());
        after.unwrap_or_default().join(", ")
    }

    /// Which try of its step its report is of, where that is not the first.
    pub(super) fn retry(&self) -> Option<u32> {
        let attempt = self.report.as_ref()?.attempt;
        (attempt > 1).then_some(attempt)
    }

    /// Whether something is left behind, by which its step can have ended otherwise than it says.
    fn tells_too_little(&self) -> bool {
        let after = || self.report.as_ref().and_then(|left| left.after.as_deref());
        match self.outcome {
            TargetOutcome::Unreadable
            | TargetOutcome::OtherVersion(_)
            | TargetOutcome::Failed(_)
            | TargetOutcome::SoftFailed(_) => true,
            TargetOutcome::Built | TargetOutcome::Fetched | TargetOutcome::There => {
                after().is_none_or(|after| !after.is_empty())
            }
            _ => false,
        }
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
    pub(super) fn new(gathered: &BuildData) -> Self {
        let mut seen = BTreeSet::new();
        let mut suites: Vec<Suite> = gathered
            .recorded
            .iter()
            .map(|recorded| {
                let rows = rows(recorded, gathered);
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
                row(key, target.clone(), gathered)
            })
            .collect();
        if !others.is_empty() {
            suites.push(Suite {
                name: OTHERS.into(),
                rows: others,
            });
        }
        held::mark(gathered, &mut suites);
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

    /// The keys of the steps that Buildkite is to be asked for now. Those without a report come last, once it is known what held
    /// others up.
    pub(super) fn not_told(&self, gathered: &BuildData) -> Vec<String> {
        let is_several = |row: &Row| {
            let terms = gathered.terms.get(&row.key);
            terms.is_some_and(Terms::is_several)
        };
        let open = |is_open: &dyn Fn(&Row) -> bool| -> Vec<String> {
            self.steps()
                .map(|(_, row)| row)
                .filter(|row| is_open(row) && !row.key.is_empty())
                .filter(|row| !gathered.outcomes.contains_key(&row.key))
                .map(|row| row.key.clone())
                .collect()
        };
        let told = open(&|row| row.tells_too_little() || row.has_passed() && is_several(row));
        if told.is_empty() {
            return open(&|row| row.outcome == TargetOutcome::NoReport);
        }
        told
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

/// The targets and errors of a recording.
fn rows(recorded: &Recorded, gathered: &BuildData) -> Vec<Row> {
    let errors: BTreeMap<&AttrPath, &RecordedError> = recorded
        .errors
        .iter()
        .map(|error| (&error.attr, error))
        .collect();
    // Of a target whose own metadata makes no step it is the error that counts, for all of its attributes.
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
            let called = match target.attr.names() {
                [] => target.name.clone(),
                _ => target.attr.to_string(),
            };
            let mut row = row(&target.key, called, gathered);
            row.attributes += target.also.len();
            row.root_cause = row
                .report
                .as_ref()
                .and_then(|left| root_cause(left, target));
            if let (TargetOutcome::NoReport, Some(reason)) = (&row.outcome, &target.skip) {
                row.outcome = TargetOutcome::Skipped(reason.clone());
            }
            row
        });
    let errors = errors.iter().map(|(attr, error)| {
        let key = error_key(attr);
        let called = match attr.names() {
            [] => "the root".into(),
            _ => attr.to_string(),
        };
        let mut row = row(&key, called, gathered);
        row.attributes += also.get(attr).copied().unwrap_or_default();
        let was_built = row.report.as_ref().is_some_and(|left| left.exit == 0);
        if !was_built {
            row.outcome = if error.refused {
                TargetOutcome::Refused
            } else {
                TargetOutcome::EvaluationError
            };
            row.message = row.message.or_else(|| error.message.clone());
        }
        row
    });
    targets.chain(errors).collect()
}

fn row(key: &str, target: String, gathered: &BuildData) -> Row {
    let report = gathered.reports.get(key);
    let left = report.and_then(|report| report.as_ref().ok());
    let outcome = match (gathered.outcomes.get(key), left) {
        (Some(said), _) if said.is_known() => ended(said, report, gathered.now),
        (said, Some(left)) if left.exit == 0 && said.is_some() => TargetOutcome::NotKnown,
        (_, Some(left)) if left.exit == 0 => built(left),
        (_, Some(left)) if gathered.is_soft(key, left.exit) => {
            TargetOutcome::SoftFailed(FailedPart::Build)
        }
        (_, Some(_)) => TargetOutcome::Failed(FailedPart::Build),
        (_, None) => without_report(report),
    };
    let report = left.cloned();
    let failed = report.as_ref().and_then(failed);
    let failed = failed.map(|drv| drv.name().to_owned());
    Row {
        key: key.to_owned(),
        outcome,
        message: report.as_ref().and_then(|left| left.message.clone()),
        // What the target's own is called is not known here: but it may be all that the target is called by.
        root_cause: failed.filter(|name| *name != target),
        attributes: 1,
        target,
        report,
    }
}

/// How a target stands whose step ended as Buildkite has `said`; it is `now`, in seconds since 1970.
fn ended(
    said: &StepOutcome,
    report: Option<&Result<SavedReport, SavedReportError>>,
    now: u64,
) -> TargetOutcome {
    let left = report.and_then(|report| report.as_ref().ok());
    let what = || match left {
        None => FailedPart::NotKnown,
        Some(left) if left.exit != 0 => FailedPart::Build,
        Some(left) => {
            // A report that does not say what came after it is of a version that left it before the command.
            let Some(after) = &left.after else {
                return FailedPart::Command;
            };
            if after.iter().any(|after| after == COMMAND) {
                FailedPart::Command
            } else if after
                .iter()
                .any(|after| after != AfterBuild::OtherJob.word())
            {
                FailedPart::Later
            } else {
                FailedPart::OtherJob
            }
        }
    };
    match said {
        StepOutcome::HardFailed => TargetOutcome::Failed(what()),
        StepOutcome::SoftFailed => TargetOutcome::SoftFailed(what()),
        StepOutcome::Errored => stopped(left, now),
        StepOutcome::Unfinished(state) => TargetOutcome::Unfinished(state.clone()),
        // What Buildkite knows no step of has left its report all the same: it is told as it is.
        StepOutcome::Passed | StepOutcome::NotRun | StepOutcome::NoStep | StepOutcome::NotKnown => {
            match (left, said) {
                (Some(left), _) if left.exit == 0 => built(left),
                (Some(_), StepOutcome::Passed) => TargetOutcome::PassedSilently,
                (Some(_), _) => TargetOutcome::Failed(FailedPart::Build),
                (None, _) if report.is_some() => without_report(report),
                (None, StepOutcome::Passed) => TargetOutcome::PassedSilently,
                (None, StepOutcome::NotKnown) => TargetOutcome::NoReport,
                (None, StepOutcome::NoStep) => TargetOutcome::NoStep,
                (None, _) => TargetOutcome::NeverRun,
            }
        }
    }
}

/// What ended a job that was cancelled, timed out, or expired. Its report says so where it was left when the job was stopped.
/// One that was left before, when the build was through, says until when the job may run.
fn stopped(left: Option<&SavedReport>, now: u64) -> TargetOutcome {
    match left {
        Some(left) if left.exit != 0 => match left.stopped {
            Some(StopReason::Timeout) => TargetOutcome::TimedOut,
            Some(StopReason::Cancel) => TargetOutcome::Cancelled,
            None => TargetOutcome::Stopped,
        },
        Some(SavedReport {
            until: Some(until),
            after: Some(_),
            ..
        }) if now < *until => TargetOutcome::Cancelled,
        _ => TargetOutcome::Stopped,
    }
}

fn built(left: &SavedReport) -> TargetOutcome {
    match (left.built, left.substituted) {
        (0, 0) => TargetOutcome::There,
        (0, _) => TargetOutcome::Fetched,
        _ => TargetOutcome::Built,
    }
}

fn without_report(report: Option<&Result<SavedReport, SavedReportError>>) -> TargetOutcome {
    match report {
        Some(Err(SavedReportError::NoReport)) => TargetOutcome::Unreadable,
        Some(Err(SavedReportError::Version(version))) => TargetOutcome::OtherVersion(*version),
        _ => TargetOutcome::NoReport,
    }
}

/// The derivation that itself failed. Anything can stand in a report: what is no `.drv` of a store is none.
fn failed(left: &SavedReport) -> Option<DrvPath> {
    DrvPath::parse(left.drv.as_deref()?).ok()
}

/// The name of the derivation that itself failed, where that is not the one of `target`.
fn root_cause(left: &SavedReport, target: &RecordedTarget) -> Option<String> {
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
    pub(in super::super) fn left(
        more: &Value,
        total: f64,
    ) -> Result<SavedReport, SavedReportError> {
        let mut left = json!({ "version": 1, "way": "realised", "reason": "drv-valid", "seconds": { "total": total } });
        let map = left.as_object_mut().unwrap();
        map.extend(more.as_object().unwrap().clone());
        SavedReport::read(&left.to_string())
    }

    pub(in super::super) fn gathered<const N: usize>(
        recorded: Vec<Recorded>,
        reports: [(&str, Result<SavedReport, SavedReportError>); N],
    ) -> BuildData {
        BuildData {
            recorded,
            terms: BTreeMap::new(),
            unread: 0,
            outcomes: BTreeMap::new(),
            now: 1_000,
            reports: reports
                .into_iter()
                .map(|(key, report)| (key.to_owned(), report))
                .collect(),
        }
    }

    fn outcomes(rows: &Rows) -> BTreeMap<&str, TargetOutcome> {
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
            .map(|attr| json!({ "attr": attr, "message": "m", "refused": *attr == ["refused"] }));
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
                ("drv-odd", Err(SavedReportError::NoReport)),
                ("drv-new", Err(SavedReportError::Version(2))),
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
                ("built", TargetOutcome::Built),
                ("fetched", TargetOutcome::Fetched),
                ("there", TargetOutcome::There),
                ("failed", TargetOutcome::Failed(FailedPart::Build)),
                ("silent", TargetOutcome::NoReport),
                ("odd", TargetOutcome::Unreadable),
                ("new", TargetOutcome::OtherVersion(2)),
                ("skipped", TargetOutcome::Skipped("a cache has it".into())),
                ("broken", TargetOutcome::EvaluationError),
                ("refused", TargetOutcome::Refused),
                ("mended", TargetOutcome::Built),
                ("hello", TargetOutcome::Built),
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

    /// How each target stands of which the report is this and Buildkite says this.
    fn outcome_of(report: Option<&Value>, said: Option<StepOutcome>) -> TargetOutcome {
        let mut gathered = gathered(vec![recorded(&json!([target("a")]), &json!([]))], []);
        if let Some(report) = report {
            gathered.reports.insert("drv-a".into(), left(report, 1.0));
        }
        if let Some(said) = said {
            gathered.outcomes.insert("drv-a".into(), said);
        }
        let rows = Rows::new(&gathered);
        rows.suites[0].rows[0].outcome.clone()
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn how_buildkite_says_that_a_step_ended_counts_more_than_what_it_left_before() {
        use StepOutcome::{
            Errored, HardFailed, NoStep, NotKnown, NotRun, Passed, SoftFailed, Unfinished,
        };
        let green = |more: Value| {
            let mut report = json!({ "built": 1, "after": ["command"] });
            report
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            report
        };
        let command = green(json!({}));
        let hook = green(json!({ "after": ["plugin", "hook"] }));
        let alone = green(json!({ "after": [] }));
        let old = json!({ "built": 1 });
        let red = json!({ "exit": 100, "class": "build" });
        let stopped = |by: &str| json!({ "exit": 143, "class": "signal", "stopped": by });
        let running = || Unfinished("running".into());
        for (report, said, expected) in [
            (Some(&alone), None, TargetOutcome::Built),
            (Some(&command), Some(Passed), TargetOutcome::Built),
            (
                Some(&command),
                Some(HardFailed),
                TargetOutcome::Failed(FailedPart::Command),
            ),
            (
                Some(&old),
                Some(HardFailed),
                TargetOutcome::Failed(FailedPart::Command),
            ),
            (
                Some(&hook),
                Some(HardFailed),
                TargetOutcome::Failed(FailedPart::Later),
            ),
            (
                Some(&alone),
                Some(HardFailed),
                TargetOutcome::Failed(FailedPart::OtherJob),
            ),
            (
                Some(&command),
                Some(SoftFailed),
                TargetOutcome::SoftFailed(FailedPart::Command),
            ),
            (Some(&command), Some(NotKnown), TargetOutcome::NotKnown),
            (Some(&command), Some(NoStep), TargetOutcome::Built),
            (
                Some(&command),
                Some(running()),
                TargetOutcome::Unfinished("running".into()),
            ),
            (
                Some(&red),
                Some(HardFailed),
                TargetOutcome::Failed(FailedPart::Build),
            ),
            (
                Some(&red),
                Some(SoftFailed),
                TargetOutcome::SoftFailed(FailedPart::Build),
            ),
            (
                Some(&red),
                Some(NotKnown),
                TargetOutcome::Failed(FailedPart::Build),
            ),
            // Another try has passed, and could not leave its report.
            (Some(&red), Some(Passed), TargetOutcome::PassedSilently),
            (Some(&red), Some(Errored), TargetOutcome::Stopped),
            (
                Some(&stopped("cancel")),
                Some(Errored),
                TargetOutcome::Cancelled,
            ),
            (
                Some(&stopped("timeout")),
                Some(Errored),
                TargetOutcome::TimedOut,
            ),
            // Its agent was stopped, and it was not tried again.
            (
                Some(&stopped("cancel")),
                Some(HardFailed),
                TargetOutcome::Failed(FailedPart::Build),
            ),
            (None, None, TargetOutcome::NoReport),
            (None, Some(Passed), TargetOutcome::PassedSilently),
            (
                None,
                Some(HardFailed),
                TargetOutcome::Failed(FailedPart::NotKnown),
            ),
            (
                None,
                Some(SoftFailed),
                TargetOutcome::SoftFailed(FailedPart::NotKnown),
            ),
            (None, Some(Errored), TargetOutcome::Stopped),
            (None, Some(NotRun), TargetOutcome::NeverRun),
            (None, Some(NoStep), TargetOutcome::NoStep),
            (None, Some(NotKnown), TargetOutcome::NoReport),
            (
                None,
                Some(running()),
                TargetOutcome::Unfinished("running".into()),
            ),
        ] {
            let case = format!("{report:?} {said:?}");
            assert_eq!(outcome_of(report, said), expected, "{case}");
        }
    }

    #[test]
    fn a_command_that_was_stopped_before_its_job_had_to_end_was_cancelled() {
        let report = |until: Value| json!({ "after": ["command"], "until": until });
        for (report, expected) in [
            // It is 1,000 when Buildkite is asked.
            (report(json!(1_001)), TargetOutcome::Cancelled),
            (report(json!(1_000)), TargetOutcome::Stopped),
            (report(json!(null)), TargetOutcome::Stopped),
            (json!({ "until": 1_001 }), TargetOutcome::Stopped),
        ] {
            let outcome = outcome_of(Some(&report), Some(StepOutcome::Errored));
            assert_eq!(outcome, expected, "{report}");
        }
    }

    #[test]
    fn buildkite_is_asked_only_where_the_rest_does_not_tell() {
        let mut skipped = target("skipped");
        skipped["skip"] = "a cache has it".into();
        let mut behind = target("behind");
        behind["depends_on"] = json!(["drv-red"]);
        let names = ["green", "command", "old", "red", "silent"];
        let mut targets: Vec<Value> = names.map(target).to_vec();
        targets.extend([skipped, behind]);
        let report = |more: Value| left(&more, 1.0);
        let mut gathered = gathered(
            vec![recorded(&json!(targets), &json!([{ "attr": ["broken"] }]))],
            [
                ("drv-green", report(json!({ "after": [] }))),
                ("drv-command", report(json!({ "after": ["command"] }))),
                ("drv-old", report(json!({}))),
                ("drv-red", report(json!({ "exit": 100, "after": [] }))),
                ("by-hand", report(json!({ "after": [] }))),
                ("", report(json!({ "exit": 1 }))),
            ],
        );
        let not_told = |gathered: &BuildData| Rows::new(gathered).not_told(gathered);
        assert_eq!(not_told(&gathered), ["drv-command", "drv-old", "drv-red"]);
        for (key, said) in [
            ("drv-command", StepOutcome::Passed),
            ("drv-old", StepOutcome::NotKnown),
            ("drv-red", StepOutcome::HardFailed),
        ] {
            gathered.outcomes.insert(key.into(), said);
        }
        // A step of several jobs has one report.
        let steps = json!([{ "key": "drv-green", "parallelism": 2 }, { "key": "drv-old", "matrix": ["a"] }]);
        gathered.terms = Terms::of(&json!({ "steps": steps }).to_string());
        assert_eq!(not_told(&gathered), ["drv-green"]);
        gathered
            .outcomes
            .insert("drv-green".into(), StepOutcome::Passed);
        // What waits for one that failed has not run: only of the others without a report it is asked.
        assert_eq!(not_told(&gathered), ["drv-silent"]);
        let silent = ("drv-silent".into(), StepOutcome::Passed);
        gathered.outcomes.extend([silent]);
        assert_eq!(not_told(&gathered), [""; 0]);
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
        let root_cause = |failed: &str, drift: bool| {
            let report = json!({ "exit": 100, "drv": failed, "drift": drift, "target": "app" });
            let gathered = gathered(
                vec![recorded(&json!([app]), &json!([]))],
                [
                    ("drv-app", left(&report, 1.0)),
                    ("by-hand", left(&report, 1.0)),
                ],
            );
            let rows = Rows::new(&gathered);
            [0, 1].map(|suite| rows.suites[suite].rows[0].root_cause.clone())
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
