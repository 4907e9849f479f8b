//! From an evaluation to one that the garbage collector cannot take: pinned, and read into targets and edges.

use super::content::PinOwner;
use super::pin::{PinResult, PinnedDrvs, pin};
use super::skip;
use crate::exit::{Class, Failure};
use crate::log::Log;
use crate::nix::StorePath;
use crate::recording::evaluate::evaluator::EvaluatorRun;
use crate::recording::pipeline::edges::Edges;
use crate::recording::targets::targets_and_edges;
use crate::recording::{EvaluationResult, RecordingRequest, Target};
use crate::state::StateFolder;
use crate::store::{ATTEMPTS, Answer, COLLECTOR_HINT, Store};

/// An evaluation whose `.drv`s are pinned.
pub(in crate::recording) struct PinnedEvaluation {
    pub(in crate::recording) evaluated: EvaluationResult,
    /// The pin; none where no `.drv` was found.
    pub(in crate::recording) pin: Option<StorePath>,
    pub(in crate::recording) targets: Vec<Target>,
    pub(in crate::recording) edges: Edges,
    /// The answers to the questions of [`skip::questions`] about these targets; none where they were not asked.
    pub(in crate::recording) answers: Option<Vec<Answer>>,
}

/// Pins what was evaluated, and reads the `.drv`s while Nix writes the pin. `.drv`s that are gone by then are evaluated again.
///
/// # Errors
/// The state folder or the store fails, or the garbage collector is faster each time (75).
pub(in crate::recording) fn pin_evaluation(
    evaluation: &mut EvaluatorRun<'_>,
    owner: &PinOwner,
    request: &RecordingRequest,
    state: &StateFolder,
    store: &mut Store,
    log: &Log,
) -> Result<PinnedEvaluation, Failure> {
    for _ in 0..ATTEMPTS {
        let evaluated = evaluation.evaluated();
        if evaluated.targets.is_empty() {
            let (targets, edges) = targets_and_edges(&evaluated)?;
            return Ok(PinnedEvaluation {
                evaluated,
                pin: None,
                targets,
                edges,
                answers: None,
            });
        }
        let recorded = PinnedDrvs::of(&evaluated.targets);
        let mut read = None;
        let pinned = pin(
            &recorded,
            owner,
            request.keep_days,
            state,
            store,
            evaluation.supervisor(),
            log,
            |options| {
                let found = targets_and_edges(&evaluated);
                let targets = found.as_ref().map_or(&[][..], |(targets, _)| targets);
                let questions = skip::questions(targets, request, options);
                read = Some(found);
                questions
            },
        )?;
        match pinned {
            PinResult::Pinned(pin, answers) => {
                let ((targets, edges), answers) = match read {
                    Some(Ok(read)) => (read, Some(answers)),
                    // A `.drv` may have been gone when it was read, and written again before it was pinned.
                    _ => (targets_and_edges(&evaluated)?, None),
                };
                return Ok(PinnedEvaluation {
                    evaluated,
                    pin: Some(pin),
                    targets,
                    edges,
                    answers,
                });
            }
            PinResult::Gone(gone) => evaluation.again(&gone, store)?,
        }
    }
    Err(Failure::new(
        Class::Infrastructure,
        format_args!(
            "the garbage collector took what was evaluated {ATTEMPTS} times before it could be pinned"
        ),
    )
    .hint(COLLECTOR_HINT))
}
