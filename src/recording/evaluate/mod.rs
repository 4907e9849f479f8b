//! Evaluating every target once.
//!
//! | room | responsible for |
//! | --- | --- |
//! | `walk` | the walk over all targets: workers are started, read, and what follows from their ends is carried out |
//! | `schedule` | which part of the walk which worker has, and which parts wait; with `spans`, a pure value |
//! | `processes` | the workers' processes: started, read by lines, measured, stopped |
//! | `invocation` | the workers' command lines |
//! | `protocol` | what the walker (`walk.nix`) is told, and what it says |
//! | `diagnosis` | what a worker's end means |
//! | `findings` | what the walk has found of each attribute |
//! | `flake` | locking the flake, before anything is evaluated |
//! | `overlooked`, `unmarked`, `exclusions` | what was not walked, and what `exclude` leaves out |
//! | `progress`, `memory` | how far the walk is; how much memory there is |
//! | `eval_jobs` | evaluating with `nix-eval-jobs` instead |

mod diagnosis;
mod eval_jobs;
pub(in crate::recording) mod evaluator;
mod exclusions;
mod findings;
pub(in crate::recording) mod flake;
mod invocation;
pub(in crate::recording) mod memory;
pub mod overlooked;
mod processes;
mod progress;
mod protocol;
mod schedule;
mod spans;
mod unmarked;
mod walk;

use std::collections::BTreeSet;

use self::overlooked::Overlooked;
use crate::nix::{AttrPath, Source};
use crate::recording::{AttrError, FoundTarget, RecordingRequest};

pub use self::walk::Walk;

/// What every target gave.
#[derive(Debug, Clone, Default)]
pub struct EvaluationResult {
    /// The targets, in the order of their attributes.
    pub found: Vec<FoundTarget>,
    /// The attributes that do not evaluate, in their order.
    pub broken: Vec<AttrError>,
    /// The attributes that evaluate, but whose metadata is no data, in their order.
    pub refused: Vec<AttrError>,
    /// The attributes that are derivations which can be called as well: their steps must not call them.
    pub callable: BTreeSet<AttrPath>,
    /// What was not looked at.
    pub overlooked: Overlooked,
    /// The version of Nix that evaluated.
    pub nix: String,
}

/// What is evaluated, for a sentence about it.
pub(in crate::recording) fn describe(request: &RecordingRequest) -> String {
    let source = match &request.root.source {
        Source::File(name) | Source::Flake(name) => name.clone(),
        Source::Expr(_) => "the expression".into(),
    };
    if request.root.attr.names().is_empty() {
        source
    } else {
        format!("{} of {source}", request.root.attr)
    }
}
