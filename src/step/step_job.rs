//! The job in which a step runs: what the step's report says of it.

use std::time::{Duration, SystemTime};

/// The job that a step is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepJob {
    /// `BUILDKITE_JOB_ID`.
    pub id: String,
    /// The key of its step (`BUILDKITE_STEP_KEY`); of a step without one, its id.
    pub step: String,
    /// `BUILDKITE_LABEL`.
    pub label: Option<String>,
    /// `BUILDKITE_AGENT_NAME`.
    pub agent: Option<String>,
    /// Whether the step had other jobs before (`BUILDKITE_RETRY_COUNT`).
    pub is_retry: bool,
    /// What is around the build.
    pub around: JobContext,
}

/// What is around a build in its job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobContext {
    /// Which try of its step the job is, from 1 (`BUILDKITE_RETRY_COUNT` and one).
    pub attempt: u32,
    /// When the job began, where that is known.
    pub began: Option<SystemTime>,
    /// How long Buildkite lets the job run (`BUILDKITE_TIMEOUT`), where it has a limit.
    pub limit: Option<Duration>,
    /// Whether the job has a command that is more than this build.
    pub command: bool,
    /// What else comes after the build, and can fail the job.
    pub later: Vec<AfterBuild>,
}

/// What can fail a step whose build and command have succeeded in this job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterBuild {
    /// Another plugin: its command hook, or one that comes after the command.
    Plugin,
    /// A `post-command` or `pre-exit` hook of the agent's or the repository's.
    Hook,
    /// Artifacts that are to be uploaded.
    Artifacts,
    /// Not this job, but another of the same step (`parallelism`), which saves its report under the same key.
    OtherJob,
}

impl AfterBuild {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Plugin => "plugin",
            Self::Hook => "hook",
            Self::Artifacts => "artifacts",
            Self::OtherJob => "other-job",
        }
    }
}
