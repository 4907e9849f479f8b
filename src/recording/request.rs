//! What a recording is asked to do: its keys, each read into what it means.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use crate::keys::Keys;
use crate::nix::{AttrPath, Evaluation};

/// Which sets are walked, besides the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recurse {
    /// Those with `recurseForDerivations`, as Hydra does.
    Marked,
    /// All.
    All,
}

/// Who evaluates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evaluator {
    /// Our own walker, in `nix-instantiate`.
    Nix,
    /// `nix-eval-jobs`.
    NixEvalJobs,
}

/// Which targets need no step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// Those whose outputs are in the local store.
    Built,
    /// Also those whose outputs a substituter has.
    Cached,
    /// None.
    Nothing,
}

/// How a target that needs no step is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipStyle {
    /// As a skipped step.
    Mark,
    /// Not at all.
    Omit,
}

/// What a broken attribute does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// It becomes a red step of its own.
    Step,
    /// It fails the recording, and nothing is uploaded.
    Fail,
}

/// How a step carries its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Emit {
    /// As the configuration of our plugin, which has this reference.
    Plugin(String),
    /// In `EVAL_ONCE_STEP`, with the command `eval-once step`.
    Command,
}

/// What a recording is asked to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What is evaluated, and the attribute path that the walk starts at.
    pub root: Evaluation,
    /// Whether it is a `default.nix` that nobody named.
    pub by_default: bool,
    /// Nix settings, by name.
    pub options: Vec<(String, String)>,
    /// Which sets are walked.
    pub recurse: Recurse,
    /// Attribute paths (full ones) that are not looked at, nor anything below them; the name `*` stands for any one name.
    pub exclude: Vec<AttrPath>,
    /// How many processes evaluate at once; none: as many as there are cores.
    pub workers: Option<NonZeroUsize>,
    /// What all of them together may use, in MiB; none: three quarters of what is free.
    pub memory: Option<u64>,
    /// How long one attribute may take.
    pub evaluation_timeout: Option<Duration>,
    /// Who evaluates.
    pub evaluator: Evaluator,
    /// Which targets need no step.
    pub skip: Skip,
    /// How those are shown.
    pub skip_style: SkipStyle,
    /// What a broken attribute does.
    pub on_error: OnError,
    /// How a step carries its record.
    pub emit: Emit,
    /// Merged into every step.
    pub step: Keys,
    /// Agent tags by system or `feature:NAME`.
    pub agents: BTreeMap<String, Keys>,
    /// Steps are grouped by this many of their first attribute names; 0: not at all.
    pub group_by: usize,
    /// Whether targets' own `meta.buildkite` counts.
    pub meta: bool,
    /// Steps per upload.
    pub chunk: NonZeroUsize,
    /// How many days the pin is kept.
    pub keep_days: u32,
}
