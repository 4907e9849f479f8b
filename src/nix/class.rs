//! The class of a Nix program that failed: decided here for steps and recordings alike, from how it ended and what it printed.

use std::fmt::Display;

use unix::sys::signal::Signal;

use super::message::in_one_line;
use super::output::ABORTED;
use super::trouble::{BUILD_USERS, is_about_build_users};
use super::{Cause, Disturbance, Fault, NixOutput, NoiseFilter, Trouble};
use crate::command_line::{CommandLine, Ending};
use crate::exit::{Class, Failure};

/// What a Nix program was doing when it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Fetching the expression: a flake is locked.
    Fetching,
    /// Evaluating it. (`nix-instantiate` fetches a file from a URL by itself.)
    Evaluating,
    /// Building a `.drv`, or fetching what it needs.
    Building,
    /// Copying store paths that exist already, here or elsewhere: outputs, the pin.
    Copying,
}

/// Whether the expression can be why an evaluator died of this signal: by a recursion without end, or an assertion of Nix's own.
/// Every other signal was sent to it, or means that a limit of this host was reached.
fn is_of_the_evaluator(signal: i32) -> bool {
    use Signal::{SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV};
    [SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV]
        .iter()
        .any(|own| *own as i32 == signal)
}

/// How 2.34 may die while it ends.
const DIED: Ending = Ending::Killed(Signal::SIGSEGV as i32);

/// Whether a Nix has died that had said before why it fails.
fn has_said_why_before_it_died(ending: Ending, nix_output: &NixOutput) -> bool {
    ending == DIED && (nix_output.error.is_some() || nix_output.root_cause().is_some())
}

/// Whether a Nix has ended by itself, or was about to, and had said why, when it died.
#[must_use]
pub fn has_come_to_its_end(ending: Ending, nix_output: &NixOutput) -> bool {
    matches!(ending, Ending::Exited(_)) || has_said_why_before_it_died(ending, nix_output)
}

/// Whether a Nix may have died because it ended while it collected, where `min-free` makes it collect: no build was under way, and nothing
/// had failed. (See [`collecting_nothing`](super::command::collecting_nothing).)
#[must_use]
pub fn may_have_died_of_its_collection(ending: Ending, nix_output: &NixOutput) -> bool {
    ending == DIED && !nix_output.is_building() && !has_said_why_before_it_died(ending, nix_output)
}

/// The kernel sends SIGKILL when memory runs out, which may happen again.
const OUT_OF_MEMORY: i32 = 9;

/// The class of a Nix program that failed, from its phase, its ending and its output.
///
/// While Nix evaluates, an error of the *system* is an infrastructure failure (a limit, a signal, a daemon or a server that is
/// gone), and so is an ending without a message; everything else is an evaluation error. Steps and recordings evaluate once more
/// before they report an infrastructure failure ([`is_worth_another_try`]).
///
/// While Nix builds, an error about a derivation, or after a build began, is a failed build; only a known infrastructure failure
/// is one. Nix's messages about derivations decide before its exit status, because they are the same with and without a daemon;
/// with one, the status is always 1. Where no message is understood the status decides: without a daemon it holds the class
/// (`Worker::failingExitStatus`: 100 and, as bits on top, 1 a timeout, 2 a hash, 8 a check).
#[must_use]
pub fn of(phase: Phase, ending: Ending, nix_output: &NixOutput) -> Class {
    let evaluates = matches!(phase, Phase::Fetching | Phase::Evaluating);
    match ending {
        Ending::Killed(ABORTED) if nix_output.disturbance(ending) == Some(Disturbance::Aborted) => {
            Class::Infrastructure
        }
        Ending::Killed(signal)
            if evaluates && signal != OUT_OF_MEMORY && !is_of_the_evaluator(signal) =>
        {
            Class::Infrastructure
        }
        // 2.8 aborts whenever a fixed output refers to another path.
        Ending::Killed(ABORTED)
            if phase == Phase::Building
                && nix_output
                    .assertion
                    .as_deref()
                    .is_some_and(|text| text.contains("Assertion `references.empty()'")) =>
        {
            Class::Build
        }
        // 2.34 may die of this while it ends, when it has said that something could not be had, or which build has failed.
        Ending::Killed(_)
            if has_said_why_before_it_died(ending, nix_output)
                && (of(phase, Ending::Exited(1), nix_output) == Class::Infrastructure
                    || phase == Phase::Building && nix_output.root_cause().is_some()) =>
        {
            of(phase, Ending::Exited(1), nix_output)
        }
        Ending::Killed(signal) => Class::Signal(signal),
        Ending::Exited(_) if phase == Phase::Copying => Class::Infrastructure,
        Ending::Exited(_) if evaluates && nix_output.is_expressions_own() => Class::Evaluation,
        Ending::Exited(_) if nix_output.refuses_settings() => Class::Config,
        Ending::Exited(_) if nix_output.disturbance(ending) == Some(Disturbance::Unnamed) => {
            Class::Infrastructure
        }
        Ending::Exited(status) => of_faults(nix_output)
            // A store that builds nothing ends with the status of a failed build (2.34).
            .or_else(|| {
                (nix_output.trouble(!evaluates) == Some(Trouble::Store))
                    .then_some(Class::Infrastructure)
            })
            .or_else(|| of_status(status))
            .unwrap_or_else(|| {
                if evaluates {
                    of_message_while_evaluating(ending, nix_output)
                } else {
                    of_message_while_building(ending, nix_output)
                }
            }),
    }
}

/// Whether an evaluation that failed with this class is repeated once before the failure is reported. A repetition costs one
/// evaluation; a retry by Buildkite costs a whole step or recording.
#[must_use]
pub fn is_worth_another_try(class: Class) -> bool {
    class == Class::Infrastructure
}

fn of_message_while_evaluating(ending: Ending, nix_output: &NixOutput) -> Class {
    // A cache that may have the missing path did not answer.
    let is_out_of_reach = || {
        !nix_output.unreachable.is_empty()
            && matches!(nix_output.disturbance(ending), Some(Disturbance::Gone(_)))
    };
    // An evaluation error always has a message.
    if nix_output.error.is_none() || nix_output.trouble(false).is_some() || is_out_of_reach() {
        Class::Infrastructure
    } else {
        Class::Evaluation
    }
}

fn of_message_while_building(ending: Ending, nix_output: &NixOutput) -> Class {
    let Some(error) = &nix_output.error else {
        return Class::Infrastructure;
    };
    let is_infrastructure = nix_output.trouble(true).is_some()
        // The store lost a path, or a cache that may have it did not answer.
        || nix_output.disturbance(ending).is_some()
        || !nix_output.unreachable.is_empty() && is_about_what_is_missing(error);
    if !is_infrastructure && is_about_a_derivation(nix_output, error) {
        Class::Build
    } else {
        Class::Infrastructure
    }
}

/// Whether an error says that Nix could get a path neither by building nor by substituting it.
#[must_use]
pub fn is_about_what_is_missing(error: &str) -> bool {
    ["some substitutes for ", "build of '", "path '"]
        .iter()
        .any(|start| error.starts_with(start))
}

/// Messages with which Nix refuses a derivation for good, without naming it.
const REFUSALS: [&str; 11] = [
    "'exportReferencesGraph'",
    "__json attribute",
    "derivation contains an illegal reference specifier",
    "experimental Nix feature '",
    "fixed output derivation '",
    "has no store path mapped to it",
    "is not allowed to refer to ",
    "not a valid derivation path",
    "Expected JSON ",
    // An attribute of another type than Nix reads (`__json`, `outputChecks`), or a path that is none (`exportReferencesGraph`).
    "[json.exception.type_error.",
    "is not in the Nix store",
];

fn is_about_a_derivation(nix_output: &NixOutput, error: &str) -> bool {
    let names_one = |text: &str| text.contains(".drv'") || text.contains(".drv\"");
    !nix_output.begun.is_empty()
        || names_one(error)
        || nix_output.frames().iter().any(|frame| names_one(frame))
        || REFUSALS.iter().any(|words| error.contains(words))
}

/// The class of the derivations that failed by themselves. A full disk counts only where nothing else failed: otherwise a retry
/// does not help. The same holds for an unreachable remote builder, and derivations that no machine here can build.
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
    found.or_else(|| causes().next().map(of_cause)).or_else(|| {
        let class = match nix_output.trouble(true) {
            // What is needed could not be downloaded, say.
            Some(_) => Class::Infrastructure,
            None => Class::Build,
        };
        nix_output.dependency_failed().then_some(class)
    })
}

fn of_cause(cause: &Cause) -> Class {
    match cause {
        Cause::Time(_) => Class::Timeout,
        Cause::Hash(_) => Class::Hash,
        Cause::Nondeterministic => Class::Nondeterministic,
        Cause::DiskFull => Class::Infrastructure,
        Cause::Status(_)
        | Cause::Signal(_)
        | Cause::Log(_)
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

/// The failure of a command that queries the store: the command, how it ended, and what it `printed`.
#[must_use]
pub fn store_cannot_be_asked(line: &CommandLine, ending: Ending, printed: &str) -> Failure {
    let printed = NoiseFilter::default().filtered(printed.as_bytes());
    let output = NixOutput::of(&printed);
    if let Some(failure) = settings_refused(&output) {
        return failure;
    }
    let printed = String::from_utf8_lossy(&printed);
    let printed = printed
        .trim()
        .trim_start_matches("error: ")
        .replace('\n', "; ");
    let failure = Failure::new(
        Class::Infrastructure,
        format_args!(
            "cannot query the Nix store: `{}` {ending}: {printed}",
            line.in_short()
        ),
    );
    match output.trouble(true) {
        Some(trouble @ (Trouble::DiskFull | Trouble::Limit | Trouble::Store)) => {
            trouble.tell(failure)
        }
        _ => failure.hint(
            "check that the Nix daemon runs, and that NIX_REMOTE (if set) names a store of this host",
        ),
    }
}

/// The failure where Nix has refused its settings, if it has: those of nix.conf or `NIX_CONFIG`. (Of `--option` it only warns.)
#[must_use]
pub fn settings_refused(output: &NixOutput) -> Option<Failure> {
    let message = output
        .error
        .as_deref()
        .filter(|_| output.refuses_settings())?;
    let failure = Failure::new(
        Class::Config,
        format_args!("Nix refuses its settings: {}", in_one_line(message)),
    );
    Some(
        failure
            .meaning("Nix refuses a setting of this host, or of this job; retrying only helps on another host.")
            .hint(if is_about_build_users(message) {
                BUILD_USERS
            } else {
                "correct it where it is set: in NIX_CONFIG, or in a nix.conf of this host"
            }),
    )
}

/// The failure of `what`, an evaluation, for a reason that is no fault of the expression, with what can be done about it where that
/// is known.
pub fn infrastructure_failure(what: impl Display, output: &NixOutput, message: &str) -> Failure {
    let not_delivered = output.not_delivered();
    let message = not_delivered.unwrap_or(message);
    let failure = Failure::new(
        Class::Infrastructure,
        format_args!("{what}: {}", in_one_line(message)),
    );
    match output.trouble(not_delivered.is_some()) {
        Some(trouble) => trouble.tell(failure),
        None => failure,
    }
}

/// The failure to start a program of Nix, with a hint where it is missing.
#[must_use]
pub fn not_started(failure: Failure) -> Failure {
    if failure.class == Class::MissingProgram {
        return failure.hint(
            "put Nix on the job's PATH, for example with eval \"$(eval-once environment)\" in the agent's environment hook",
        );
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRV: &str = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-x.drv";

    fn nix_output(messages: &[&str]) -> NixOutput {
        let printed = messages.iter().fold(String::new(), |printed, message| {
            printed + "error: " + &message.replace("DRV", DRV) + "\n"
        });
        NixOutput::of(printed.as_bytes())
    }

    #[test]
    fn messages_decide_before_the_status() {
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
                Class::Infrastructure,
            ),
            (
                &[failed, "1 dependencies of derivation 'DRV' failed to build"],
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
    fn the_status_decides_where_no_message_is_understood() {
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
    fn a_full_disk_counts_only_where_nothing_else_failed() {
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
    fn a_failed_evaluation_is_a_failed_build_only_where_a_builder_failed() {
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
        let unreachable =
            nix_output(&["unable to download 'http://h/x': Couldn't connect to server (7)"]);
        for (output, class) in [
            (&unreachable, Class::Infrastructure),
            (&nix_output(&[]), Class::Signal(11)),
        ] {
            let died = of(Phase::Evaluating, Ending::Killed(11), output);
            assert_eq!(died, class);
        }
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
