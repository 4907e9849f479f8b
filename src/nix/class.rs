//! What the ending of a Nix program means. The one place where that is decided: for a step and for a recording, whatever it is
//! that a Nix program was to do.

use std::fmt::Display;

use unix::sys::signal::Signal;

use super::message::in_one_line;
use super::{Cause, Disturbance, Fault, NixOutput, Trouble};
use crate::command_line::{CommandLine, Ending};
use crate::exit::{Class, Failure};

/// What a Nix program was to do when it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Coming by the expression: a flake is locked.
    Fetching,
    /// Evaluating it. (`nix-instantiate` fetches a file from a URL by itself.)
    Evaluating,
    /// Building a `.drv`, or fetching what it needs.
    Building,
    /// Fetching or writing paths that are in the store already, here or elsewhere: outputs, the pin.
    Copying,
}

/// Whether a signal is what becomes of an evaluator through what it evaluates: a recursion without end, an assertion of its own.
/// Every other one is sent to it, or says that a limit of this host was reached.
fn is_of_the_evaluator(signal: i32) -> bool {
    use Signal::{SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV};
    [SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV]
        .iter()
        .any(|own| *own as i32 == signal)
}

/// The kernel sends it when memory runs out, and it may do so again.
const OUT_OF_MEMORY: i32 = 9;

/// Nix ended itself: an assertion of its own did not hold, or nothing caught what it threw.
const ABORTED: i32 = 6;

/// The class of a Nix program that failed: of what it was to do, of how it ended, and of what it has said and begun.
///
/// While something is evaluated, what the *system* says is the surroundings' failure (a limit, a signal, a daemon or a server
/// that is gone), and so is an ending without a word; everything else is the expression's. Whoever evaluates does it once more
/// before either is believed ([`is_worth_another_try`]).
///
/// While something is built, what is said of a derivation, or after one was begun, is a build that failed, and only what is known
/// to be of the surroundings is theirs. What Nix says of the derivations decides before its status, for that is the same with
/// and without a daemon, which knows the one status 1. Where nothing is understood the status does: without a daemon Nix
/// tells classes apart by it (`Worker::failingExitStatus`: 100 and, as bits on top, 1 a timeout, 2 a hash, 8 a check).
#[must_use]
pub fn of(phase: Phase, ending: Ending, nix_output: &NixOutput) -> Class {
    let evaluates = matches!(phase, Phase::Fetching | Phase::Evaluating);
    match ending {
        Ending::Killed(signal)
            if evaluates && signal != OUT_OF_MEMORY && !is_of_the_evaluator(signal) =>
        {
            Class::Infrastructure
        }
        // 2.8 does so where a fixed output refers to another path, each time.
        Ending::Killed(ABORTED) if phase == Phase::Building && nix_output.assertion.is_some() => {
            Class::Build
        }
        Ending::Killed(signal) => Class::Signal(signal),
        Ending::Exited(_) if phase == Phase::Copying => Class::Infrastructure,
        Ending::Exited(_) if evaluates && nix_output.is_expressions_own() => Class::Evaluation,
        Ending::Exited(status) => of_faults(nix_output)
            .or_else(|| of_status(status))
            .unwrap_or_else(|| {
                if evaluates {
                    of_message_while_evaluating(nix_output)
                } else {
                    of_message_while_building(nix_output)
                }
            }),
    }
}

/// Whether an evaluation that ended so is done once more before it is believed. It costs an evaluation; and a step or a whole
/// recording that is tried again by Buildkite costs more.
#[must_use]
pub fn is_worth_another_try(class: Class) -> bool {
    class == Class::Infrastructure
}

fn of_message_while_evaluating(nix_output: &NixOutput) -> Class {
    // A cache that may have the path did not answer.
    let is_out_of_reach = || {
        !nix_output.unreachable.is_empty()
            && matches!(nix_output.disturbance(), Some(Disturbance::Gone(_)))
    };
    // Whoever does not like an expression says so.
    if nix_output.error.is_none() || nix_output.trouble(false).is_some() || is_out_of_reach() {
        Class::Infrastructure
    } else {
        Class::Evaluation
    }
}

fn of_message_while_building(nix_output: &NixOutput) -> Class {
    let Some(error) = &nix_output.error else {
        return Class::Infrastructure;
    };
    let is_theirs = nix_output.trouble(true).is_some()
        // The store has lost it, or a cache that may have it did not answer.
        || nix_output.disturbance().is_some()
        || !nix_output.unreachable.is_empty() && is_about_what_is_missing(error);
    if !is_theirs && is_about_a_derivation(nix_output, error) {
        Class::Build
    } else {
        Class::Infrastructure
    }
}

/// Whether Nix has ended because it could not come by something.
#[must_use]
pub fn is_about_what_is_missing(error: &str) -> bool {
    ["some substitutes for ", "build of '", "path '"]
        .iter()
        .any(|start| error.starts_with(start))
}

/// What Nix says when it refuses to build a derivation, for good, and does not name it.
const REFUSALS: [&str; 9] = [
    "'exportReferencesGraph'",
    "__json attribute",
    "derivation contains an illegal reference specifier",
    "experimental Nix feature '",
    "fixed output derivation '",
    "has no store path mapped to it",
    "is not allowed to refer to ",
    "not a valid derivation path",
    "Expected JSON ",
];

fn is_about_a_derivation(nix_output: &NixOutput, error: &str) -> bool {
    let names_one = |said: &str| said.contains(".drv'") || said.contains(".drv\"");
    !nix_output.begun.is_empty()
        || names_one(error)
        || nix_output.frames().iter().any(|frame| names_one(frame))
        || REFUSALS.iter().any(|words| error.contains(words))
}

/// The class of what failed by itself. A full disk counts only where it is all there is: beside another failure, trying again
/// does not help. So it is where nobody builds something because a machine that is to build it cannot be reached.
fn of_faults(nix_output: &NixOutput) -> Option<Class> {
    let mut found: Option<Class> = None;
    let is_platform = |fault: &Fault| matches!(fault.cause, Cause::Platform(_));
    if nix_output.misses_a_builder()
        && !nix_output.faults.is_empty()
        && nix_output.faults.iter().all(is_platform)
    {
        return Some(Class::Infrastructure);
    }
    let causes = || nix_output.faults.iter().map(|fault| &fault.cause);
    for cause in causes().filter(|cause| **cause != Cause::DiskFull) {
        let class = of_cause(cause);
        found = match found {
            Some(before) if before != class => return Some(Class::Mixed),
            _ => Some(class),
        };
    }
    found
        .or_else(|| causes().next().map(of_cause))
        .or(nix_output.dependency_failed.then_some(Class::Build))
}

fn of_cause(cause: &Cause) -> Class {
    match cause {
        Cause::Time(_) => Class::Timeout,
        Cause::Hash(_) => Class::Hash,
        Cause::Nondeterministic => Class::Nondeterministic,
        Cause::DiskFull => Class::Infrastructure,
        Cause::Status(_)
        | Cause::Signal(_)
        | Cause::Output(_)
        | Cause::Platform(_)
        | Cause::Other(_) => Class::Build,
    }
}

fn of_status(status: i32) -> Option<Class> {
    match status {
        100 => Some(Class::Build),
        101 => Some(Class::Timeout),
        102 => Some(Class::Hash),
        104 => Some(Class::Nondeterministic),
        103 | 105..=111 => Some(Class::Mixed),
        _ => None,
    }
}

/// The failure where the store cannot be asked: with the command that asked it, how that ended, and what it `said`.
#[must_use]
pub fn store_cannot_be_asked(line: &CommandLine, ending: Ending, said: &str) -> Failure {
    let said = said
        .trim()
        .trim_start_matches("error: ")
        .replace('\n', "; ");
    Failure::new(
        Class::Infrastructure,
        format_args!("the Nix store cannot be asked: `{line}` {ending}: {said}"),
    )
    .hint(
        "is the Nix daemon running, and does NIX_REMOTE (if it is set) name a store of this host?",
    )
}

/// The failure of `what` for a reason that is no fault of the expression, with what can be done about it where that is known.
pub fn infrastructure_failure(what: impl Display, output: &NixOutput, message: &str) -> Failure {
    let failure = Failure::new(
        Class::Infrastructure,
        format_args!("{what}: {}", in_one_line(message)),
    );
    match output.trouble(false).and_then(Trouble::hint) {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// A failure to start a program of Nix's, with what to do where it is missing.
#[must_use]
pub fn not_started(failure: Failure) -> Failure {
    if failure.class == Class::MissingProgram {
        return failure.hint(
            "put Nix on the job's PATH: eval \"$(eval-once environment)\" in the agent's environment hook finds it",
        );
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRV: &str = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-x.drv";

    fn nix_output(messages: &[&str]) -> NixOutput {
        let said = messages.iter().fold(String::new(), |said, message| {
            said + "error: " + &message.replace("DRV", DRV) + "\n"
        });
        NixOutput::of(said.as_bytes())
    }

    #[test]
    fn what_nix_says_decides_whatever_its_status() {
        let failed = "builder for 'DRV' failed with exit code 1";
        let hash = "hash mismatch in fixed-output derivation 'DRV':";
        let time = "building of 'DRV!*' from .drv file timed out after 1 seconds";
        for (messages, class) in [
            (&[failed][..], Class::Build),
            (&[hash], Class::Hash),
            (&[time], Class::Timeout),
            (&[failed, hash], Class::Mixed),
            (&[time, failed, hash], Class::Mixed),
            (
                &["1 dependencies of derivation 'DRV' failed to build"],
                Class::Build,
            ),
            (
                &["writing to file: No space left on device"],
                Class::Infrastructure,
            ),
            (&["unexpected end-of-file"], Class::Infrastructure),
        ] {
            let nix_output = nix_output(messages);
            assert_eq!(
                of(Phase::Building, Ending::Exited(1), &nix_output),
                class,
                "{messages:?}"
            );
        }
        assert_eq!(
            of(
                Phase::Building,
                Ending::Exited(102),
                &nix_output(&[failed, hash])
            ),
            Class::Mixed
        );
        assert_eq!(
            of(Phase::Building, Ending::Killed(9), &nix_output(&[failed])),
            Class::Signal(9)
        );
    }

    #[test]
    fn a_status_counts_where_nothing_is_said() {
        for (status, class) in [
            (1, Class::Infrastructure),
            (100, Class::Build),
            (101, Class::Timeout),
            (102, Class::Hash),
            (103, Class::Mixed),
            (104, Class::Nondeterministic),
            (109, Class::Mixed),
        ] {
            assert_eq!(
                of(Phase::Building, Ending::Exited(status), &nix_output(&["x"])),
                class
            );
        }
    }

    #[test]
    fn a_full_disk_counts_where_nothing_else_failed() {
        let note = "builder for 'DRV' failed with exit code 1\nnote: build failure may have been caused by lack of free disk space";
        assert_eq!(
            of(Phase::Building, Ending::Exited(1), &nix_output(&[note])),
            Class::Infrastructure
        );
        let other = "builder for '/nix/store/00000000000000000000000000000000-y.drv' failed with exit code 1";
        assert_eq!(
            of(
                Phase::Building,
                Ending::Exited(1),
                &nix_output(&[note, other])
            ),
            Class::Build
        );
    }

    #[test]
    fn an_expression_that_fails_is_no_failed_build_unless_a_builder_failed() {
        let plain = nix_output(&["attribute 'x' missing"]);
        assert_eq!(
            of(Phase::Evaluating, Ending::Exited(1), &plain),
            Class::Evaluation
        );
        assert_eq!(
            of(Phase::Evaluating, Ending::Exited(100), &plain),
            Class::Build
        );
        assert_eq!(
            of(Phase::Evaluating, Ending::Killed(11), &plain),
            Class::Signal(11)
        );
        let builder = nix_output(&["builder for 'DRV' failed with exit code 1"]);
        assert_eq!(
            of(Phase::Evaluating, Ending::Exited(1), &builder),
            Class::Build
        );
        let network =
            nix_output(&["unable to download 'https://x/y': Couldn't resolve host name (6)"]);
        assert_eq!(
            of(Phase::Evaluating, Ending::Exited(1), &network),
            Class::Infrastructure
        );
        let gone = nix_output(&["unable to download 'https://x/y': HTTP error 404 ('')"]);
        assert_eq!(
            of(Phase::Evaluating, Ending::Exited(1), &gone),
            Class::Evaluation
        );
    }
}
