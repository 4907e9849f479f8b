//! What the ending of a Nix program means. The one place where that is decided.

use super::{Cause, Fault, Heard, Trouble};
use crate::command_line::{CommandLine, Ending};
use crate::exit::{Class, Failure};

/// The class of a `nix-store --realise` that failed although its `.drv` is valid.
///
/// What Nix says of the derivations that failed decides, for that is the same with and without a daemon, which knows the one
/// status 1. Where nothing is understood the status does: without a daemon Nix tells classes apart by it
/// (`Worker::failingExitStatus`: 100 and, as bits on top, 1 a timeout, 2 a hash, 8 a check). And where neither speaks of a
/// builder, it is the surroundings that failed.
#[must_use]
pub fn of_realise(ending: Ending, heard: &Heard) -> Class {
    match ending {
        Ending::Killed(signal) => Class::Signal(signal),
        Ending::Exited(status) => of_faults(heard)
            .or_else(|| of_status(status))
            .unwrap_or(Class::Surroundings),
    }
}

/// The class of an evaluation that failed while the store could be asked.
///
/// A builder that the evaluation needed fails as a build does; a full disk and a network that is gone are no fault of the
/// expression; everything else is.
#[must_use]
pub fn of_evaluation(ending: Ending, heard: &Heard) -> Class {
    match ending {
        Ending::Killed(signal) => Class::Signal(signal),
        Ending::Exited(status) => of_faults(heard).or_else(|| of_status(status)).unwrap_or(
            if heard
                .troubles
                .iter()
                .copied()
                .any(is_no_fault_of_expressions)
            {
                Class::Surroundings
            } else {
                Class::Evaluation
            },
        ),
    }
}

/// Whether an evaluation that failed for this may succeed another time. (A daemon that went away is asked for by whoever
/// evaluates: it may have been the collector.)
fn is_no_fault_of_expressions(trouble: Trouble) -> bool {
    matches!(trouble, Trouble::DiskFull | Trouble::NotDownloaded)
}

/// The class of what failed by itself. A full disk counts only where it is all there is: beside another failure, trying again
/// does not help. So it is where nobody builds something because a machine that is to build it cannot be reached.
fn of_faults(heard: &Heard) -> Option<Class> {
    let mut found: Option<Class> = None;
    let is_platform = |fault: &Fault| matches!(fault.cause, Cause::Platform(_));
    if heard.troubles.contains(&Trouble::BuilderGone)
        && !heard.faults.is_empty()
        && heard.faults.iter().all(is_platform)
    {
        return Some(Class::Surroundings);
    }
    let causes = || heard.faults.iter().map(|fault| &fault.cause);
    for cause in causes().filter(|cause| **cause != Cause::DiskFull) {
        let class = of_cause(cause);
        found = match found {
            Some(before) if before != class => return Some(Class::Mixed),
            _ => Some(class),
        };
    }
    found
        .or_else(|| causes().next().map(of_cause))
        .or(heard.dependency_failed.then_some(Class::Build))
}

fn of_cause(cause: &Cause) -> Class {
    match cause {
        Cause::Time(_) => Class::Timeout,
        Cause::Hash(_) => Class::Hash,
        Cause::Nondeterministic => Class::Nondeterministic,
        Cause::DiskFull => Class::Surroundings,
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
        Class::Surroundings,
        format_args!("the Nix store cannot be asked: `{line}` {ending}: {said}"),
    )
    .hint(
        "is the Nix daemon running, and does NIX_REMOTE (if it is set) name a store of this host?",
    )
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

    fn heard(messages: &[&str]) -> Heard {
        let said = messages.iter().fold(String::new(), |said, message| {
            said + "error: " + &message.replace("DRV", DRV) + "\n"
        });
        Heard::of(said.as_bytes())
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
                Class::Surroundings,
            ),
            (&["unexpected end-of-file"], Class::Surroundings),
        ] {
            let heard = heard(messages);
            assert_eq!(of_realise(Ending::Exited(1), &heard), class, "{messages:?}");
        }
        assert_eq!(
            of_realise(Ending::Exited(102), &heard(&[failed, hash])),
            Class::Mixed
        );
        assert_eq!(
            of_realise(Ending::Killed(9), &heard(&[failed])),
            Class::Signal(9)
        );
    }

    #[test]
    fn a_status_counts_where_nothing_is_said() {
        for (status, class) in [
            (1, Class::Surroundings),
            (100, Class::Build),
            (101, Class::Timeout),
            (102, Class::Hash),
            (103, Class::Mixed),
            (104, Class::Nondeterministic),
            (109, Class::Mixed),
        ] {
            assert_eq!(of_realise(Ending::Exited(status), &heard(&["x"])), class);
        }
    }

    #[test]
    fn a_full_disk_counts_where_nothing_else_failed() {
        let note = "builder for 'DRV' failed with exit code 1\nnote: build failure may have been caused by lack of free disk space";
        assert_eq!(
            of_realise(Ending::Exited(1), &heard(&[note])),
            Class::Surroundings
        );
        let other = "builder for '/nix/store/00000000000000000000000000000000-y.drv' failed with exit code 1";
        assert_eq!(
            of_realise(Ending::Exited(1), &heard(&[note, other])),
            Class::Build
        );
    }

    #[test]
    fn an_expression_that_fails_is_no_failed_build_unless_a_builder_failed() {
        let plain = heard(&["attribute 'x' missing"]);
        assert_eq!(of_evaluation(Ending::Exited(1), &plain), Class::Evaluation);
        assert_eq!(of_evaluation(Ending::Exited(100), &plain), Class::Build);
        assert_eq!(of_evaluation(Ending::Killed(11), &plain), Class::Signal(11));
        let builder = heard(&["builder for 'DRV' failed with exit code 1"]);
        assert_eq!(of_evaluation(Ending::Exited(1), &builder), Class::Build);
        let network = heard(&["unable to download 'https://x/y': Couldn't resolve host name (6)"]);
        assert_eq!(
            of_evaluation(Ending::Exited(1), &network),
            Class::Surroundings
        );
        let gone = heard(&["unable to download 'https://x/y': HTTP error 404 ('')"]);
        assert_eq!(of_evaluation(Ending::Exited(1), &gone), Class::Evaluation);
    }
}
