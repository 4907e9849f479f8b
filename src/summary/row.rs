//! One target: its outcome, by the report of its step and by how Buildkite says that the step ended. Pure.

use super::build_data::BuildData;
use super::outcome::{FailedPart, TargetOutcome};
use crate::buildkite::outcome::StepOutcome;
use crate::nix::DrvPath;
use crate::recording::pipeline::document::RecordedTarget;
use crate::step::{
    AfterBuild, COMMAND, Reason, SavedReport, SavedReportError, StopReason, WayName,
};

/// A target.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    /// The key under which its report is saved: that of its step, unless that builds several targets.
    pub(super) key: String,
    /// The key of its step; where it has none, the step's id.
    pub(super) step: String,
    /// Its attribute path, or the name by which its step knows it.
    pub(super) target: String,
    pub(super) outcome: TargetOutcome,
    /// The report of its step.
    pub(super) report: Option<SavedReport>,
    /// What is wrong with it, where that is known.
    pub(super) message: Option<String>,
    /// The name of the root cause, if it is not the target's own derivation.
    pub(super) root_cause: Option<String>,
    /// How many attributes give it.
    pub(super) attributes: usize,
}

impl Row {
    /// The row of a target that is called `target`, and whose step has this key.
    pub(super) fn new(key: &str, target: String, data: &BuildData) -> Self {
        Self::of_step(key, key, target, data)
    }

    /// The row of a target that is called `target`, whose report is saved under `key`, and that this `step` builds.
    pub(super) fn of_step(key: &str, step: &str, target: String, data: &BuildData) -> Self {
        let saved = data.reports.get(key);
        let report = saved.and_then(|saved| saved.as_ref().ok());
        // How the step of a batch ended says nothing of a target that has a report, but where the reports do not account for it
        // (`batches`).
        let outcome = data.outcomes.get(step);
        let outcome = outcome.filter(|_| key == step || report.is_none());
        let outcome = match (outcome, report) {
            (Some(outcome), _) if outcome.is_known() => ended(outcome, saved, data.now),
            (outcome, Some(report)) if report.exit == 0 && outcome.is_some() => {
                TargetOutcome::NotKnown
            }
            (_, Some(report)) if report.exit == 0 => built(report),
            (_, Some(report)) if data.is_soft(step, report.exit) => {
                TargetOutcome::SoftFailed(FailedPart::Build)
            }
            (_, Some(_)) => TargetOutcome::Failed(FailedPart::Build),
            (_, None) => without_report(saved),
        };
        let failed = report.and_then(failed_drv);
        let failed = failed.map(|drv| drv.name().to_owned());
        Self {
            key: key.to_owned(),
            step: step.to_owned(),
            outcome,
            message: report.and_then(|report| report.message.clone()),
            // The name of the target's own derivation is not known here; but the target may be called by it.
            root_cause: failed.filter(|name| *name != target),
            attributes: 1,
            target,
            report: report.cloned(),
        }
    }

    /// Whether its step builds several targets.
    pub(super) fn is_in_batch(&self) -> bool {
        self.key != self.step
    }

    /// Whether its build was stopped with its job.
    pub(super) fn was_stopped(&self) -> bool {
        let report = self.report.as_ref();
        report.is_some_and(|report| report.stopped.is_some())
    }

    /// Gives it, of which there is a report, the outcome of its step.
    pub(super) fn end(&mut self, outcome: &StepOutcome, data: &BuildData) {
        if outcome.is_known() {
            self.outcome = ended(outcome, data.reports.get(&self.key), data.now);
        } else if self.has_passed() && self.is_open() {
            self.outcome = TargetOutcome::NotKnown;
        }
    }

    /// Forgets the root cause where it is the derivation of `recorded` itself, and finds it where that was not known.
    pub(super) fn compare_with(&mut self, recorded: &RecordedTarget) {
        let report = self.report.as_ref();
        self.root_cause = report.and_then(|report| root_cause(report, recorded));
    }

    /// How long its step took, in seconds.
    pub(super) fn seconds(&self) -> f64 {
        self.report
            .as_ref()
            .map_or(0.0, |report| report.seconds.total)
    }

    /// The report of its step, where that evaluated although the recording had evaluated the target.
    pub(super) fn evaluated_again(&self) -> Option<&SavedReport> {
        let report = self.report.as_ref()?;
        (!self.is_error() && report.way() == Some(WayName::Evaluated)).then_some(report)
    }

    /// Whether its step built the derivation of its own evaluation, which is not, or not for certain, the recorded one: of a record of
    /// another store only the names can be compared.
    pub(super) fn is_of_another_drv(&self) -> bool {
        self.report.as_ref().is_some_and(|report| {
            report.drift || report.reason.as_deref() == Some(Reason::OtherStore.word())
        })
    }

    /// Whether it was an error of the recording, and is one still.
    pub(super) fn is_error(&self) -> bool {
        matches!(
            self.outcome,
            TargetOutcome::EvaluationError
                | TargetOutcome::ReportedError
                | TargetOutcome::ExpectedError
                | TargetOutcome::Refused
        )
    }

    /// Whether its step is known to have passed, and to have built it.
    pub(super) fn has_passed(&self) -> bool {
        matches!(
            self.outcome,
            TargetOutcome::Built | TargetOutcome::Substituted | TargetOutcome::There
        )
    }

    /// What comes after the build in its job, in a few words.
    pub(super) fn after_build(&self) -> String {
        let report = self.report.as_ref();
        let after = report.and_then(|report| report.after.as_deref());
        after.unwrap_or_default().join(", ")
    }

    /// Which try of its step its report is of, where that is not the first.
    pub(super) fn retry(&self) -> Option<u32> {
        let attempt = self.report.as_ref()?.attempt;
        (attempt > 1).then_some(attempt)
    }

    /// Whether there is a report whose step can still have ended differently.
    pub(super) fn is_open(&self) -> bool {
        let report = self.report.as_ref();
        let after = || report.and_then(|report| report.after.as_deref());
        match self.outcome {
            TargetOutcome::Unreadable
            | TargetOutcome::OtherVersion(_)
            | TargetOutcome::Failed(_)
            | TargetOutcome::SoftFailed(_) => true,
            TargetOutcome::Built | TargetOutcome::Substituted | TargetOutcome::There => {
                after().is_none_or(|after| !after.is_empty())
            }
            _ => false,
        }
    }
}

/// The outcome of a target whose step ended with this `outcome`; it is `now`, in seconds since 1970.
fn ended(
    outcome: &StepOutcome,
    saved: Option<&Result<SavedReport, SavedReportError>>,
    now: u64,
) -> TargetOutcome {
    let report = saved.and_then(|saved| saved.as_ref().ok());
    match outcome {
        StepOutcome::HardFailed => TargetOutcome::Failed(failed_part(report)),
        StepOutcome::SoftFailed => TargetOutcome::SoftFailed(failed_part(report)),
        StepOutcome::Errored => stopped(report, now),
        StepOutcome::Unfinished(state) => TargetOutcome::Unfinished(state.clone()),
        // A report counts also where Buildkite knows no step for it.
        StepOutcome::Passed | StepOutcome::NotRun | StepOutcome::NoStep | StepOutcome::NotKnown => {
            match (report, outcome) {
                (Some(report), _) if report.exit == 0 => built(report),
                (Some(_), StepOutcome::Passed) => TargetOutcome::PassedWithoutReport,
                (Some(_), _) => TargetOutcome::Failed(FailedPart::Build),
                (None, _) if saved.is_some() => without_report(saved),
                (None, StepOutcome::Passed) => TargetOutcome::PassedWithoutReport,
                (None, StepOutcome::NotKnown) => TargetOutcome::NoReport,
                (None, StepOutcome::NoStep) => TargetOutcome::NoStep,
                (None, _) => TargetOutcome::NeverRun,
            }
        }
    }
}

/// What failed of a step of which Buildkite says that it failed.
fn failed_part(report: Option<&SavedReport>) -> FailedPart {
    let Some(report) = report else {
        return FailedPart::NotKnown;
    };
    if report.exit != 0 {
        return FailedPart::Build;
    }
    // A report that does not say what came after it is of a version that saved it before the command.
    let Some(after) = &report.after else {
        return FailedPart::Command;
    };
    let other_job = AfterBuild::OtherJob.word();
    if after.iter().any(|after| after == COMMAND) {
        FailedPart::Command
    } else if after.iter().any(|after| after != other_job) {
        FailedPart::AfterBuild
    } else {
        FailedPart::OtherJob
    }
}

/// What ended a job that was cancelled, timed out, or expired. Its report says so where it was saved when the job was stopped.
/// One that was saved before, when the build was through, says until when the job may run.
fn stopped(report: Option<&SavedReport>, now: u64) -> TargetOutcome {
    match report {
        Some(report) if report.exit != 0 => match report.stopped {
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

fn built(report: &SavedReport) -> TargetOutcome {
    match (report.built, report.substituted) {
        (0, 0) => TargetOutcome::There,
        (0, _) => TargetOutcome::Substituted,
        _ => TargetOutcome::Built,
    }
}

fn without_report(saved: Option<&Result<SavedReport, SavedReportError>>) -> TargetOutcome {
    match saved {
        Some(Err(SavedReportError::NoReport)) => TargetOutcome::Unreadable,
        Some(Err(SavedReportError::Version(version))) => TargetOutcome::OtherVersion(*version),
        _ => TargetOutcome::NoReport,
    }
}

/// The derivation that itself failed. A report can contain anything, so a value that is not a `.drv` path is ignored.
fn failed_drv(report: &SavedReport) -> Option<DrvPath> {
    DrvPath::parse(report.drv.as_deref()?).ok()
}

/// The name of the derivation that itself failed, where that is not the one of `target`.
fn root_cause(report: &SavedReport, target: &RecordedTarget) -> Option<String> {
    let failed = failed_drv(report)?;
    // A derivation that has drifted has another path than was recorded, and still its name.
    let is_own = failed.as_store_path().as_str() == target.drv
        || report.drift && failed.name() == target.name;
    (!is_own).then(|| failed.name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{build_data, report};
    use super::StepOutcome::{
        Errored, HardFailed, NoStep, NotKnown, NotRun, Passed, SoftFailed, Unfinished,
    };
    use super::*;
    use serde_json::{Value, json};

    /// How a target stands whose report is this, and of which Buildkite says this.
    fn outcome_of(saved: Option<&Value>, outcome: Option<StepOutcome>) -> TargetOutcome {
        let mut data = build_data(vec![], []);
        if let Some(saved) = saved {
            data.reports.insert("drv-a".into(), report(saved, 1.0));
        }
        if let Some(outcome) = outcome {
            data.outcomes.insert("drv-a".into(), outcome);
        }
        Row::new("drv-a", "a".into(), &data).outcome
    }

    #[test]
    fn a_report_alone_says_what_was_done_or_that_it_failed() {
        for (saved, expected) in [
            (
                json!({ "built": 2, "substituted": 1 }),
                TargetOutcome::Built,
            ),
            (json!({ "substituted": 1 }), TargetOutcome::Substituted),
            (json!({}), TargetOutcome::There),
            (
                json!({ "exit": 100, "built": 1 }),
                TargetOutcome::Failed(FailedPart::Build),
            ),
            (json!({ "version": 2 }), TargetOutcome::OtherVersion(2)),
            (json!({ "exit": 300 }), TargetOutcome::Unreadable),
        ] {
            assert_eq!(outcome_of(Some(&saved), None), expected, "{saved}");
        }
        assert_eq!(outcome_of(None, None), TargetOutcome::NoReport);
    }

    #[test]
    fn the_outcome_of_a_step_counts_more_than_its_report_of_a_build_that_succeeded() {
        let after = |after: &[&str]| json!({ "built": 1, "after": after });
        let command = after(&["command"]);
        let hook = after(&["plugin", "hook"]);
        let alone = after(&[]);
        // The first versions did not write down what comes after the build.
        let old = json!({ "built": 1 });
        let failed = TargetOutcome::Failed;
        let unfinished = Unfinished("running".into());
        for (saved, outcome, expected) in [
            (&alone, None, TargetOutcome::Built),
            (&command, Some(Passed), TargetOutcome::Built),
            (&command, Some(HardFailed), failed(FailedPart::Command)),
            (&old, Some(HardFailed), failed(FailedPart::Command)),
            (&hook, Some(HardFailed), failed(FailedPart::AfterBuild)),
            (&alone, Some(HardFailed), failed(FailedPart::OtherJob)),
            (
                &command,
                Some(SoftFailed),
                TargetOutcome::SoftFailed(FailedPart::Command),
            ),
            (&command, Some(NotKnown), TargetOutcome::NotKnown),
            (&command, Some(NoStep), TargetOutcome::Built),
            (
                &command,
                Some(unfinished),
                TargetOutcome::Unfinished("running".into()),
            ),
        ] {
            let case = format!("{saved} {outcome:?}");
            assert_eq!(outcome_of(Some(saved), outcome), expected, "{case}");
        }
    }

    #[test]
    fn the_outcome_of_a_step_counts_more_than_its_report_of_a_failure() {
        let failed = json!({ "exit": 100, "class": "build" });
        let stopped = |by: &str| json!({ "exit": 143, "class": "signal", "stopped": by });
        for (saved, outcome, expected) in [
            (
                &failed,
                HardFailed,
                TargetOutcome::Failed(FailedPart::Build),
            ),
            (
                &failed,
                SoftFailed,
                TargetOutcome::SoftFailed(FailedPart::Build),
            ),
            (&failed, NotKnown, TargetOutcome::Failed(FailedPart::Build)),
            // Another try has passed, and could not save its report.
            (&failed, Passed, TargetOutcome::PassedWithoutReport),
            (&failed, Errored, TargetOutcome::Stopped),
            (&stopped("cancel"), Errored, TargetOutcome::Cancelled),
            (&stopped("timeout"), Errored, TargetOutcome::TimedOut),
            // Its agent was stopped, and it was not tried again.
            (
                &stopped("cancel"),
                HardFailed,
                TargetOutcome::Failed(FailedPart::Build),
            ),
        ] {
            let case = format!("{saved} {outcome:?}");
            assert_eq!(outcome_of(Some(saved), Some(outcome)), expected, "{case}");
        }
    }

    #[test]
    fn a_step_without_a_report_has_the_outcome_that_buildkite_gives() {
        for (outcome, expected) in [
            (Passed, TargetOutcome::PassedWithoutReport),
            (HardFailed, TargetOutcome::Failed(FailedPart::NotKnown)),
            (SoftFailed, TargetOutcome::SoftFailed(FailedPart::NotKnown)),
            (Errored, TargetOutcome::Stopped),
            (NotRun, TargetOutcome::NeverRun),
            (NoStep, TargetOutcome::NoStep),
            (NotKnown, TargetOutcome::NoReport),
            (
                Unfinished("running".into()),
                TargetOutcome::Unfinished("running".into()),
            ),
        ] {
            let case = format!("{outcome:?}");
            assert_eq!(outcome_of(None, Some(outcome)), expected, "{case}");
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
            let outcome = outcome_of(Some(&report), Some(Errored));
            assert_eq!(outcome, expected, "{report}");
        }
    }
}
