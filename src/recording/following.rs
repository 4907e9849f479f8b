//! Steps that follow a target (`meta.eval-once.steps`), as the evaluation finds them.
//!
//! Each is evaluated by itself, after the target: an error in one concerns neither the target nor the others. What they become in
//! the pipeline is known there.

use serde::{Deserialize, Serialize};

use super::KnownOutputs;
use crate::keys::Keys;
use crate::nix::{AttrPath, DrvPath};

/// A step that follows a target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FollowerMeta {
    /// Its name in `meta.eval-once.steps`.
    pub name: String,
    /// What is known of it.
    pub state: FollowerState,
}

/// What is known of a step that follows a target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FollowerState {
    /// Nothing: the evaluation failed at another step before it.
    Unread,
    /// It does not evaluate, or cannot be used, for this reason, where it is known.
    Lost(Option<String>),
    /// What it says.
    Read {
        /// Its keys as they were written, as plain data, without `run`.
        keys: Keys,
        /// The derivation that it runs, if it runs one.
        run: Option<RunDerivation>,
    },
}

/// A derivation that a step runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunDerivation {
    /// Its `.drv`, which the evaluation wrote.
    pub drv: DrvPath,
    /// `meta.mainProgram`: the name of a file in `bin`; none where it names none.
    pub program: Option<String>,
}

impl FollowerMeta {
    /// A step of which the name alone is known.
    pub(super) fn unread(name: String) -> Self {
        Self {
            name,
            state: FollowerState::Unread,
        }
    }

    /// The derivation that it runs, if it runs one.
    pub(super) fn run(&self) -> Option<&RunDerivation> {
        match &self.state {
            FollowerState::Read { run, .. } => run.as_ref(),
            _ => None,
        }
    }

    /// The attribute path of this step of the target `owner`.
    fn attr(&self, owner: &AttrPath) -> AttrPath {
        let below = ["meta", "eval-once", "steps", &self.name];
        let below = below.into_iter().map(str::to_owned);
        AttrPath::new(owner.names().iter().cloned().chain(below).collect())
    }

    /// The attribute path of what it runs.
    pub(super) fn attr_of_run(&self, owner: &AttrPath) -> AttrPath {
        let mut names = self.attr(owner).names().to_vec();
        names.push("run".into());
        AttrPath::new(names)
    }

    /// Whether it was evaluated without an error.
    pub(super) fn is_read(&self) -> bool {
        matches!(self.state, FollowerState::Read { .. })
    }
}

/// A step that follows a target, with the data of the derivation that it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Follower {
    /// The attribute in whose `meta` it stands.
    pub owner: AttrPath,
    /// What the evaluation found of it.
    pub meta: FollowerMeta,
    /// The derivation that it runs, if it runs one.
    pub run: Option<RunTarget>,
}

/// A derivation that a step runs, as its `.drv` says it.
#[derive(Debug, Clone, PartialEq)]
pub struct RunTarget {
    /// Its outputs; none where their paths are not known before they are built.
    pub outputs: KnownOutputs,
    /// The system it is built on, and runs on.
    pub system: String,
    /// `requiredSystemFeatures`.
    pub features: Vec<String>,
}

impl Follower {
    /// Its attribute path.
    pub(super) fn attr(&self) -> AttrPath {
        self.meta.attr(&self.owner)
    }
}
