//! A recording: evaluates every target of a repository once, pins the `.drv`s, and uploads the pipeline that builds them.
//!
//! From top to bottom: evaluate, pin, skip targets whose outputs exist, find the edges between targets, make the steps, upload.
//! A recording does not know how a step gets its outputs; it only writes the record that a step reads.

mod base;
mod checkout;
mod common_inputs;
mod error_line;
mod errors;
pub mod evaluate;
pub mod following;
mod keep;
mod known_outputs;
mod notices;
mod own_pin;
mod part_times;
mod perform;
pub mod pipeline;
mod refusals;
mod report;
mod request;
mod same_drv;
mod share;
mod stopped;
mod targets;
pub(crate) mod upload;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::evaluation_keys::Checkout;
use crate::host::Host;
use crate::keys::Keys;
use crate::log::Log;
use crate::nix::{AttrPath, DrvPath};

pub use evaluate::{EvaluationResult, Walk};
use following::{Follower, FollowerMeta};
pub use keep::prune::prune;
pub use known_outputs::KnownOutputs;
pub use own_pin::{PinOrder, PinRequest, pin_drvs, read_drvs};
pub use perform::perform;
pub use request::{
    Emit, Evaluator, KeyStyle, OnError, Phases, RecordingRequest, Recurse, SkipStyle, SkipWhich,
};

/// The part of a target's `meta` that a recording reads. It is plain data: the walker drops everything else in Nix.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Meta {
    /// `meta.buildkite`: keys that are merged into the target's step.
    pub buildkite: Option<Keys>,
    /// `meta.eval-once`: how the target wishes to be built.
    pub eval_once: Option<Keys>,
    /// `meta.timeout`, in seconds.
    pub timeout: Option<u64>,
    /// `meta.maxSilent`, in seconds: how long its build may print nothing.
    pub max_silent: Option<u64>,
    /// `meta.description`.
    pub description: Option<String>,
    /// `meta.eval-once.steps`: the steps that follow the target, by name.
    pub followers: Vec<FollowerMeta>,
}

impl Meta {
    /// The `.drv`s that steps behind the target run.
    fn run_drvs(&self) -> impl Iterator<Item = &DrvPath> {
        let runs = self.followers.iter().filter_map(FollowerMeta::run);
        runs.map(|run| &run.drv)
    }
}

/// An attribute that is a derivation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FoundTarget {
    /// Its full attribute path.
    pub attr: AttrPath,
    /// Its `.drv`, which the evaluation wrote.
    pub drv: DrvPath,
    /// The part of its `meta` that is read.
    pub meta: Meta,
}

impl FoundTarget {
    /// Its `.drv`, and those that steps behind it run.
    fn drvs(&self) -> impl Iterator<Item = &DrvPath> {
        std::iter::once(&self.drv).chain(self.meta.run_drvs())
    }
}

/// An attribute with an error: it does not evaluate, or is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttrError {
    /// Its full attribute path.
    pub attr: AttrPath,
    /// Nix's message or ours, where there is one.
    pub message: Option<String>,
}

/// A derivation that gets a step. Attributes with the same `.drv` are one target.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// The first attribute with this `.drv`.
    pub attr: AttrPath,
    /// The other attributes with this `.drv`.
    pub also: Vec<AttrPath>,
    /// The derivation's name.
    pub name: String,
    /// Its `.drv`.
    pub drv: DrvPath,
    /// Its outputs; none where their paths are not known before they are built (floating content-addressed).
    pub outputs: KnownOutputs,
    /// The system it is built on.
    pub system: String,
    /// `requiredSystemFeatures`.
    pub features: Vec<String>,
    /// The metadata of `attr`, with what other attributes wish where it wishes nothing.
    pub meta: Meta,
    /// The steps that follow it, from the metadata of all its attributes.
    pub followers: Vec<Follower>,
}

/// How an agent signs the steps that its jobs upload, from what it tells them for `pipeline upload`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signing {
    /// Not at all.
    Unsigned,
    /// With the key in this file (`BUILDKITE_AGENT_JWKS_FILE`).
    WithFile(PathBuf),
    /// With a key that never leaves a key management service (`BUILDKITE_AGENT_AWS_KMS_KEY`, `BUILDKITE_AGENT_GCP_KMS_KEY`).
    ByService,
}

/// The build that a recording belongs to, from the agent's variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildkiteBuild {
    /// `BUILDKITE_BUILD_ID`.
    pub build: String,
    /// `BUILDKITE_JOB_ID`.
    pub job: String,
    /// `BUILDKITE_STEP_ID`: the same in every retry of this recording.
    pub step: String,
    /// What tells this job from the others of its step, where that has a `matrix` or `parallelism`: a hash, the same in every retry.
    pub variant: String,
    /// `BUILDKITE_ORGANIZATION_SLUG/BUILDKITE_PIPELINE_SLUG`.
    pub pipeline: String,
    /// `BUILDKITE_BRANCH`.
    pub branch: String,
    /// `BUILDKITE_COMMIT`, where it is a full hash.
    pub commit: Option<String>,
    /// `BUILDKITE_TAG`: empty where the build is of none.
    pub tag: String,
    /// `BUILDKITE_PULL_REQUEST`: `false` where the build is of none.
    pub pull_request: String,
    /// Whether a job of the same step came before (`BUILDKITE_RETRY_COUNT`).
    pub is_retry: bool,
    /// How the agent signs the steps that its jobs upload.
    pub signing: Signing,
}

impl BuildkiteBuild {
    /// The name of this job in its build, which its retries have as well, and no other job.
    fn job_with_retries(&self) -> String {
        format!("{}-{}", self.step, self.variant)
    }
}

/// An order to record.
#[derive(Debug)]
pub struct RecordingOrder {
    /// What is asked for.
    pub request: RecordingRequest,
    /// The folder in which relative paths start, and what may be evaluated there.
    pub place: Checkout,
    /// The host's settings.
    pub host: Host,
    /// The build of the job; none by hand.
    pub build: Option<BuildkiteBuild>,
    /// The recording's folder, relative to the root of the checkout, where steps start; none at the root, and by hand.
    pub below_checkout: Option<PathBuf>,
    /// Print the pipeline instead of uploading it.
    pub dry_run: bool,
    /// The cores of this host.
    pub cores: NonZeroUsize,
    /// The program's start.
    pub started: Instant,
}

impl RecordingOrder {
    /// Opens a group of the recording's own in a job's log, so that its lines are not folded into the agent's last group. It has to
    /// come before the first of those lines. By hand there are no groups, and a dry run is only a part of its job.
    pub fn open_group(&self, log: &Log) {
        if self.build.is_some() && !self.dry_run {
            log.heading(":nix: recording");
        }
    }
}
