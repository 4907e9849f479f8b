//! A recording: every target of a repository is evaluated once, what was found is kept alive, and the pipeline that builds
//! it is uploaded.
//!
//! From top to bottom: evaluate, pin, skip what is there, find the edges between targets, make the steps, upload.

pub mod evaluate;
mod findings;
mod fingerprint;
mod keep;
mod notices;
mod perform;
pub mod pipeline;
mod request;
mod targets;
pub(crate) mod upload;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use crate::evaluation_keys::Checkout;
use crate::host::Host;
use crate::keys::Keys;
use crate::log::Log;
use crate::nix::{AttrPath, DrvPath, StorePath};

pub use evaluate::{EvaluationResult, Walk};
pub use keep::prune::prune;
pub use perform::perform;
pub use request::{Emit, Evaluator, OnError, RecordingRequest, Recurse, SkipStyle, SkipWhich};

/// What of a target's `meta` a recording looks at. It was cleaned in Nix: nothing but data is left.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Meta {
    /// `meta.buildkite`: keys that are merged into the target's step.
    pub buildkite: Option<Keys>,
    /// `meta.eval-once`: what the target says to us of its step.
    pub eval_once: Option<Keys>,
    /// `meta.timeout`, in seconds.
    pub timeout: Option<u64>,
    /// `meta.maxSilent`, in seconds: how long its build may say nothing.
    pub max_silent: Option<u64>,
    /// `meta.description`.
    pub description: Option<String>,
}

/// An attribute that is a derivation.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundTarget {
    /// Its full attribute path.
    pub attr: AttrPath,
    /// Its `.drv`, which evaluation has written.
    pub drv: DrvPath,
    /// What its `meta` says.
    pub meta: Meta,
}

/// An attribute that does not evaluate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttrError {
    /// Its full attribute path.
    pub attr: AttrPath,
    /// What Nix says about it, where that is known.
    pub message: Option<String>,
}

/// A derivation that gets a step: one for each `.drv`, however many attributes give it.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// The first attribute that gives it.
    pub attr: AttrPath,
    /// The other attributes that give it.
    pub also: Vec<AttrPath>,
    /// The derivation's name.
    pub name: String,
    /// Its `.drv`.
    pub drv: DrvPath,
    /// Its outputs; none where their paths are not known before they are built (floating content-addressed).
    pub outputs: BTreeMap<String, StorePath>,
    /// The system it is built on.
    pub system: String,
    /// `requiredSystemFeatures`.
    pub features: Vec<String>,
    /// The metadata of `attr`.
    pub meta: Meta,
}

/// The build that a recording belongs to, as the agent tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildkiteBuild {
    /// `BUILDKITE_BUILD_ID`.
    pub build: String,
    /// `BUILDKITE_JOB_ID`.
    pub job: String,
    /// `BUILDKITE_STEP_ID`: the same in every retry of this recording.
    pub step: String,
    /// `BUILDKITE_ORGANIZATION_SLUG/BUILDKITE_PIPELINE_SLUG`.
    pub pipeline: String,
    /// `BUILDKITE_BRANCH`.
    pub branch: String,
}

/// A recording as it was ordered, all of which could be read.
#[derive(Debug)]
pub struct RecordingOrder {
    /// What it is asked to do.
    pub request: RecordingRequest,
    /// Where the recording stands.
    pub place: Checkout,
    /// The host's settings.
    pub host: Host,
    /// The build it belongs to; none by hand.
    pub build: Option<BuildkiteBuild>,
    /// Where in the checkout, whence steps start, the recording stands; none where it stands at its root, or by hand.
    pub below_checkout: Option<PathBuf>,
    /// Print the pipeline instead of uploading it.
    pub dry_run: bool,
    /// The cores of this host.
    pub cores: NonZeroUsize,
    /// When the program began.
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
