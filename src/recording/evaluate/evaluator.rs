//! The choice of the evaluator: our own walker, or `nix-eval-jobs`. Both give the same result; only the walker can evaluate
//! single attributes again.

use std::collections::BTreeSet;
use std::time::Instant;

use super::known::KnownTargets;
use super::schedule::Costs;
use super::{EvaluationHost, EvaluationResult, Walk, eval_jobs};
use crate::counts;
use crate::exit::Failure;
use crate::log::Log;
use crate::nix::{AttrPath, DrvPath, LockedFlake};
use crate::recording::{Evaluator, RecordingRequest};
use crate::state::{Roots, StateFolder};
use crate::store::Store;
use crate::supervise::Supervisor;

/// Where a recording is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::recording) enum WalkPlace {
    /// The root is evaluated.
    Root,
    /// This attribute is evaluated.
    Attribute(AttrPath),
    /// Everything is evaluated.
    Behind,
}

/// An evaluator at work.
pub(in crate::recording) enum EvaluatorRun<'a> {
    /// Our own walker.
    Walker(Box<Walk<'a>>),
    /// `nix-eval-jobs`.
    EvalJobs {
        request: &'a RecordingRequest,
        locked: Option<LockedFlake>,
        workers: usize,
        state: &'a StateFolder,
        /// What each try has found, until the pin keeps it.
        roots: Vec<Roots>,
        supervisor: &'a mut Supervisor,
        evaluated: Box<EvaluationResult>,
        log: Log,
    },
}

impl<'a> EvaluatorRun<'a> {
    /// The evaluator that the request asks for. Only the walker leaves out the `known` targets.
    ///
    /// # Errors
    /// The store cannot be asked (75).
    pub(in crate::recording) fn new(
        request: &'a RecordingRequest,
        locked: Option<LockedFlake>,
        host: &EvaluationHost<'a>,
        known: KnownTargets,
        store: &mut Store,
        supervisor: &'a mut Supervisor,
        log: &Log,
    ) -> Result<Self, Failure> {
        Ok(match request.evaluator {
            Evaluator::Nix => Self::Walker(Box::new(Walk::new(
                request, locked, host, known, store, supervisor, log,
            )?)),
            Evaluator::NixEvalJobs => Self::EvalJobs {
                request,
                locked,
                workers: request.workers.unwrap_or(host.cores).get(),
                state: host.state,
                roots: Vec::new(),
                supervisor,
                evaluated: Box::default(),
                log: log.clone(),
            },
        })
    }

    /// Evaluates every attribute.
    ///
    /// # Errors
    /// The root does not evaluate (65), or the store, the evaluator or this machine fails (75).
    pub(in crate::recording) fn all(&mut self, store: &mut Store) -> Result<(), Failure> {
        match self {
            Self::Walker(walk) => {
                walk.all(store)?;
                walk.say_summary();
            }
            Self::EvalJobs {
                request,
                locked,
                workers,
                state,
                roots,
                supervisor,
                evaluated,
                log,
            } => {
                let started = Instant::now();
                // A new folder each time: it makes no root where there is a link already, also to what is gone.
                roots.extend(state.roots());
                **evaluated = eval_jobs::evaluate(
                    request,
                    locked.as_ref(),
                    *workers,
                    roots.last().map(Roots::folder),
                    store,
                    supervisor,
                    log,
                )?;
                let errors = evaluated.errors.len() + evaluated.refused.len();
                let attributes = evaluated.targets.len() + errors;
                log.say(counts::evaluated(attributes, started.elapsed()));
                evaluated.nix = store.version(supervisor)?.unwrap_or_default();
            }
        }
        Ok(())
    }

    /// Evaluates the attributes again whose `.drv`s the garbage collector removed.
    ///
    /// # Errors
    /// As [`Self::all`].
    pub(in crate::recording) fn again(
        &mut self,
        gone: &[DrvPath],
        store: &mut Store,
    ) -> Result<(), Failure> {
        match self {
            Self::Walker(walk) => walk.again(gone, store),
            Self::EvalJobs { log, .. } => {
                log.say("the garbage collector removed a recorded derivation; evaluating everything once more");
                self.all(store)
            }
        }
    }

    /// What the evaluation costs, as far as it is measured.
    pub(in crate::recording) fn costs(&self) -> Option<Costs> {
        match self {
            Self::Walker(walk) => Some(walk.costs()),
            Self::EvalJobs { .. } => None,
        }
    }

    /// The result so far.
    pub(in crate::recording) fn evaluated(&self) -> EvaluationResult {
        match self {
            Self::Walker(walk) => walk.evaluated(),
            Self::EvalJobs { evaluated, .. } => (**evaluated).clone(),
        }
    }

    /// Where the evaluation is, as far as that is known.
    pub(in crate::recording) fn place(&self) -> Option<WalkPlace> {
        match self {
            Self::Walker(walk) => Some(walk.at().map_or(WalkPlace::Root, WalkPlace::Attribute)),
            Self::EvalJobs { .. } => None,
        }
    }

    /// The attributes whose errors were printed as they came.
    pub(in crate::recording) fn printed_errors(&self) -> BTreeSet<AttrPath> {
        match self {
            Self::Walker(walk) => walk.printed_errors().clone(),
            Self::EvalJobs { .. } => BTreeSet::new(),
        }
    }

    /// The supervisor, for processes beside the evaluation.
    pub(in crate::recording) fn supervisor(&mut self) -> &mut Supervisor {
        match self {
            Self::Walker(walk) => walk.supervisor(),
            Self::EvalJobs { supervisor, .. } => supervisor,
        }
    }
}
