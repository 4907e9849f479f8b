//! Evaluating every target once.
//!
//! | room | responsible for |
//! | --- | --- |
//! | `walk` | the walk over all targets: connects the rooms below |
//! | `schedule`, `spans` | what waits, which worker evaluates what, how many there are and with how much memory: a plain value |
//! | `remembered` | what the same evaluation cost the last time |
//! | `processes` | the workers' processes: starting, sending and reading lines, measuring, stopping |
//! | `invocation` | the workers' command lines |
//! | `conversation` | what `nix repl` is sent line by line, and what it does |
//! | `protocol` | the settings, tasks and messages of the walker (`walk.nix`) |
//! | `diagnosis` | what the end of a task or a worker means |
//! | `circles` | what is not walked of sets that are nested too deeply |
//! | `findings` | what was found of each attribute |
//! | `found_roots` | GC roots for what was found by workers that end before the pin is rooted |
//! | `known` | what is taken over from a recording that was stopped |
//! | `flake` | locking the flake, before anything is evaluated |
//! | `gaps`, `unmarked`, `exclusions` | what was not walked; what `exclude` and `expect-errors` match |
//! | `progress`, `memory` | the status line, and errors as they come; how much memory is free and in use |
//! | `evaluator`, `eval_jobs` | the choice between the walk and `nix-eval-jobs`; evaluating with the latter |

mod circles;
mod conversation;
mod diagnosis;
mod eval_jobs;
pub(in crate::recording) mod evaluator;
pub(in crate::recording) mod exclusions;
mod findings;
pub(in crate::recording) mod flake;
mod found_roots;
pub mod gaps;
mod invocation;
pub(in crate::recording) mod known;
pub(in crate::recording) mod memory;

mod processes;
mod progress;
mod protocol;
pub(in crate::recording) mod remembered;
mod schedule;
mod spans;
mod unmarked;
mod walk;

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::Path;

use self::gaps::Gaps;
use self::schedule::Costs;
use crate::nix::AttrPath;
use crate::nix::settings::NixSettings;
use crate::recording::{AttrError, FoundTarget};
use crate::state::StateFolder;

pub use self::walk::Walk;

/// What this host has for an evaluation.
#[derive(Debug, Clone, Copy)]
pub(in crate::recording) struct EvaluationHost<'a> {
    /// The folder for temporary files, which may be missing.
    pub(in crate::recording) temporary: &'a Path,
    pub(in crate::recording) state: &'a StateFolder,
    pub(in crate::recording) cores: NonZeroUsize,
    /// Nix's settings here.
    pub(in crate::recording) nix: &'a NixSettings,
    /// What the same evaluation cost here the last time.
    pub(in crate::recording) remembered: Option<Costs>,
}

/// What an evaluation of all targets found.
#[derive(Debug, Clone, Default)]
pub struct EvaluationResult {
    /// The targets, in the order of their attributes.
    pub targets: Vec<FoundTarget>,
    /// The attributes that do not evaluate, in their order.
    pub errors: Vec<AttrError>,
    /// The attributes that evaluate, but whose metadata cannot be used, in their order.
    pub refused: Vec<AttrError>,
    /// The derivations that can be called as well: their steps must not call them.
    pub callable: BTreeSet<AttrPath>,
    /// What was not walked.
    pub gaps: Gaps,
    /// The version of Nix that evaluated.
    pub nix: String,
}
