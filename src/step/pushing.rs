//! Pushing: copying what a step has built, with all that it needs, to the store that its key `push` names.
//!
//! It comes after the outputs are there and rooted, and before the step's own command. A push that fails does not undo the build:
//! the failure says so, and a retry finds the outputs and only pushes.

use std::time::Instant;

use super::advice::Advice;
use super::drv_outputs::{DrvOutputs, Outputs};
use super::report::{Pushed, Reason};
use super::run::StepRun;
use crate::command_line::CommandLine;
use crate::exit::{Class, Failure};
use crate::nix::{StorePath, StoreUrl};
use crate::store::NotCopied;

/// What a failed push means, for the log and the annotation.
const MEANING: &str = "The build itself succeeded, and only the push failed: a retry finds the outputs, and pushes them.";

/// Pushes what a step with this result has built; what was pushed is returned.
///
/// # Errors
/// The outputs cannot be pushed (75); a program is missing (69); a signal asked us to end (128 + n). Of a target that failed,
/// that is a warning.
pub(super) fn push(
    step: &mut StepRun<'_>,
    built: &Result<Outputs, Failure>,
) -> Result<Option<Pushed>, Failure> {
    let request = step.request;
    let Some(to) = &request.push else {
        return Ok(None);
    };
    match built {
        // The recording has found them in that store.
        Ok(_) if step.reason == Some(Reason::Skipped) => Ok(None),
        Ok(outputs) => {
            let paths: Vec<&StorePath> = outputs.values().collect();
            match copy(step, to, &paths) {
                Ok(Ok(pushed)) => Ok(Some(pushed)),
                Ok(Err(why)) => Err(failure(to, &why.to_string())),
                Err(failure) if failure.class == Class::MissingProgram => {
                    Err(failure.context("the build succeeded, and cannot be pushed"))
                }
                Err(failure) => Err(failure),
            }
        }
        Err(_) if request.push_partial => Ok(push_partial(step, to)),
        Err(_) => Ok(None),
    }
}

/// The failure of a push whose build succeeded.
fn failure(to: &StoreUrl, why: &str) -> Failure {
    let hint = if why.contains("is for Nix stores with prefix") {
        "push to a store whose paths begin as those of this host do: those of another prefix cannot be copied"
    } else if why.contains("signature") {
        "sign what is built here (`secret-key-files` in nix.conf), with a key that the store trusts"
    } else {
        "check that this host may write to the store, and retry: nothing is built again here"
    };
    Failure::new(
        Class::Infrastructure,
        format_args!("the build succeeded, and the push to {to} failed: {why}"),
    )
    .meaning(MEANING)
    .called("was built, and not pushed")
    .hint(hint)
}

/// What can be done about a failed push: the command that pushes.
pub(super) fn advice(step: &mut StepRun<'_>, outputs: &Outputs) -> Advice {
    // Where a signal came, there is no advice.
    let line = push_line(step, outputs).ok().flatten();
    Advice {
        reproduce: line.map(|line| line.to_string()),
        ..Advice::default()
    }
}

/// The command that pushes these outputs; none where there is nothing to push.
///
/// # Errors
/// A signal asked us to end (128 + n).
pub(super) fn push_line(
    step: &mut StepRun<'_>,
    outputs: &Outputs,
) -> Result<Option<CommandLine>, Failure> {
    let request = step.request;
    let Some(to) = request.push.as_ref().filter(|_| !outputs.is_empty()) else {
        return Ok(None);
    };
    let paths: Vec<&StorePath> = outputs.values().collect();
    let line = step
        .store
        .copy_outputs_to_line(step.supervisor, to, &paths)?;
    Ok(Some(line))
}

/// Pushes the outputs of the derivations that were built although the target failed. Which builds ended well Nix says only in
/// the structured form of its log: so the outputs of those that began are looked at.
fn push_partial(step: &mut StepRun<'_>, to: &StoreUrl) -> Option<Pushed> {
    let outputs = match built_outputs(step) {
        Ok(outputs) if outputs.is_empty() => return None,
        Ok(outputs) => outputs,
        Err(failure) => {
            warn(step, to, &failure);
            return None;
        }
    };
    let paths: Vec<&StorePath> = outputs.iter().collect();
    match copy(step, to, &paths) {
        Ok(Ok(pushed)) => Some(pushed),
        Ok(Err(why)) => {
            warn(step, to, &why);
            None
        }
        Err(failure) => {
            warn(step, to, &failure);
            None
        }
    }
}

fn warn(step: &StepRun<'_>, to: &StoreUrl, why: &dyn std::fmt::Display) {
    // A step that is stopped is not one whose push failed.
    if !step.supervisor.is_stopped() {
        step.log.warn(format_args!(
            "what was built of the failed target cannot be pushed to {to}: {why}"
        ));
    }
}

/// The outputs of the derivations whose build began, as far as they are valid now.
fn built_outputs(step: &mut StepRun<'_>) -> Result<Vec<StorePath>, Failure> {
    let outputs = step.begun.iter().map(DrvOutputs::read);
    let mut outputs: Vec<StorePath> = outputs
        .flat_map(|outputs| outputs.paths.into_values().flatten())
        .collect();
    if outputs.is_empty() {
        return Ok(outputs);
    }
    let paths: Vec<&StorePath> = outputs.iter().collect();
    let invalid = step.store.invalid(step.supervisor, &paths)?;
    outputs.retain(|path| !invalid.contains(path));
    Ok(outputs)
}

/// Copies paths with all that they need; inside, why that failed.
fn copy(
    step: &mut StepRun<'_>,
    to: &StoreUrl,
    paths: &[&StorePath],
) -> Result<Result<Pushed, NotCopied>, Failure> {
    let started = Instant::now();
    let copied = step.store.copy_outputs_to(step.supervisor, to, paths);
    step.seconds.push += started.elapsed();
    Ok(copied?.map(|()| Pushed {
        store: to.to_string(),
        outputs: paths.len(),
    }))
}
