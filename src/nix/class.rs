//! What the ending of a Nix program means. The one place where that is decided.

use crate::command_line::{CommandLine, Ending};
use crate::exit::{Class, Failure};

/// The class of a `nix-store --realise` that failed although its `.drv` is valid.
///
/// Without a daemon Nix's statuses are told apart (its `Worker::failingExitStatus`): 100 and, as bits on top, 1 a timeout,
/// 2 a hash, 8 a check. Through a daemon every failure is 1.
#[must_use]
pub fn of_realise(ending: Ending) -> Class {
    match ending {
        Ending::Killed(signal) => Class::Signal(signal),
        Ending::Exited(101) => Class::Timeout,
        Ending::Exited(102) => Class::Hash,
        Ending::Exited(104) => Class::Nondeterministic,
        Ending::Exited(103 | 105..=111) => Class::Mixed,
        Ending::Exited(_) => Class::Build,
    }
}

/// The class of an evaluation that failed while the store could be asked.
///
/// A builder that the evaluation needed fails with the statuses of a build; everything else is the expression's own.
#[must_use]
pub fn of_evaluation(ending: Ending) -> Class {
    match ending {
        Ending::Killed(_) | Ending::Exited(100..=111) => of_realise(ending),
        Ending::Exited(_) => Class::Evaluation,
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

    #[test]
    fn a_status_of_nix_keeps_its_meaning() {
        for (status, class) in [
            (1, Class::Build),
            (100, Class::Build),
            (101, Class::Timeout),
            (102, Class::Hash),
            (103, Class::Mixed),
        ] {
            assert_eq!(of_realise(Ending::Exited(status)), class);
        }
        assert_eq!(of_realise(Ending::Exited(104)), Class::Nondeterministic);
        assert_eq!(of_realise(Ending::Exited(109)), Class::Mixed);
        assert_eq!(of_realise(Ending::Killed(9)), Class::Signal(9));
    }

    #[test]
    fn an_expression_that_fails_is_no_failed_build_unless_a_builder_failed() {
        assert_eq!(of_evaluation(Ending::Exited(1)), Class::Evaluation);
        assert_eq!(of_evaluation(Ending::Exited(100)), Class::Build);
        assert_eq!(of_evaluation(Ending::Killed(11)), Class::Signal(11));
    }
}
