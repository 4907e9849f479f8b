//! The outcomes of a target that the summary distinguishes.

/// The outcome of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TargetOutcome {
    /// Its step failed.
    Failed(FailedPart),
    /// Its step failed, which its `soft_fail` allows.
    SoftFailed(FailedPart),
    /// Its job exceeded its timeout.
    TimedOut,
    /// Its job was cancelled.
    Cancelled,
    /// Its job was cancelled, timed out or expired; which of them is not known.
    Stopped,
    /// It did not evaluate when it was recorded, and no step has built it since.
    EvaluationError,
    /// It did not evaluate when it was recorded, and has no step that could be red (`on-error: report`).
    ReportedError,
    /// It did not evaluate when it was recorded, as `expect-errors` says.
    ExpectedError,
    /// It evaluates, and its metadata gives no valid step.
    Refused,
    /// Its step did not run, because of a target that it depends on.
    NotRun(FailedDependency),
    /// Its step did not run: it is skipped, or has a condition.
    NeverRun,
    /// The build has no such step: the recording ended before it uploaded it.
    NoStep,
    /// Its step has not ended; the state it is in.
    Unfinished(String),
    /// There is no report of its step, and how that ended is not known.
    NoReport,
    /// Its step passed without a report: whether it has built the target is not known.
    PassedWithoutReport,
    /// The meta-data has something else than a report under its step's key.
    Unreadable,
    /// Its step's report has this version, which this eval-once cannot read.
    OtherVersion(u32),
    /// It is built, but its job does more after the build, and Buildkite does not say how the job ended.
    NotKnown,
    /// Something was built for it.
    Built,
    /// Nothing was built, and some path came from a cache.
    Substituted,
    /// Everything was in the store already.
    There,
    /// The recording has skipped it, and why.
    Skipped(String),
}

/// How an outcome counts for a check that is required; the worst is the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    Good,
    /// It is not known.
    Unknown,
    Failed,
}

impl TargetOutcome {
    /// How it counts. A step that is soft, skipped or has a condition is as its pipeline wants it; `on-error: report` and
    /// `expect-errors` ask for no red step either.
    pub(super) fn standing(&self) -> Standing {
        match self {
            Self::Failed(_)
            | Self::TimedOut
            | Self::Cancelled
            | Self::Stopped
            | Self::EvaluationError
            | Self::Refused
            | Self::NotRun(_)
            | Self::NoStep => Standing::Failed,
            Self::NoReport
            | Self::Unreadable
            | Self::OtherVersion(_)
            | Self::NotKnown
            | Self::Unfinished(_) => Standing::Unknown,
            Self::SoftFailed(_)
            | Self::ReportedError
            | Self::ExpectedError
            | Self::PassedWithoutReport
            | Self::NeverRun
            | Self::Built
            | Self::Substituted
            | Self::There
            | Self::Skipped(_) => Standing::Good,
        }
    }
}

/// What of a step failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FailedPart {
    /// The build of its target.
    Build,
    /// Its own command, after the build.
    Command,
    /// Something else that comes after the build.
    AfterBuild,
    /// Another job of it than the one whose report there is.
    OtherJob,
    /// Not known: there is no report.
    NotKnown,
}

/// A target whose step has not passed, so that those that depend on it did not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FailedDependency {
    /// What it is called.
    pub(super) target: String,
    /// What happened to it, as the end of a sentence: `failed`.
    pub(super) what: &'static str,
}
