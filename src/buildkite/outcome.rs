//! How Buildkite says that a step ended: the words of `buildkite-agent step get`.
//!
//! The words are those of Buildkite's documentation. `outcome` (agent CLI reference, "Getting the outcome of a step", and the
//! variable `step.outcome` of conditionals) is `neutral`, `passed`, `soft_failed`, `hard_failed` or `errored`, and nothing
//! before the first job of the step has ended. `state` (`step.state` there) is `ignored`, `waiting_for_dependencies`, `ready`,
//! `running`, `failing` or `finished`.

/// How a step ended, as Buildkite has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepOutcome {
    /// Its job ended with 0.
    Passed,
    /// It failed, and fails the build.
    HardFailed,
    /// It failed, which its `soft_fail` allows.
    SoftFailed,
    /// It was cancelled, timed out, or expired before an agent took it: Buildkite has one word for all three.
    Errored,
    /// It ended without having run: a `skip`, or a condition of its own.
    NotRun,
    /// It has not ended; the state that it is in.
    Unfinished(String),
    /// The build has no such step.
    NoStep,
    /// Buildkite does not say, or has a word for it that is not known here.
    NotKnown,
}

impl StepOutcome {
    /// Whether Buildkite says it.
    #[must_use]
    pub fn is_known(&self) -> bool {
        *self != Self::NotKnown
    }

    /// Reads what `step get outcome` prints; none where that leaves open whether the step has ended, and its
    /// [state](Self::with_state) is needed.
    #[must_use]
    pub fn read(outcome: &str) -> Option<Self> {
        (outcome.trim() == "passed").then_some(Self::Passed)
    }

    /// Reads what `step get outcome` and `step get state` print. A step that is being retried still has the outcome of the try
    /// before, and is not `finished`.
    #[must_use]
    pub fn with_state(outcome: &str, state: &str) -> Self {
        let state = state.trim();
        match (outcome.trim(), state) {
            ("passed", _) => Self::Passed,
            ("neutral", _) | (_, "ignored") => Self::NotRun,
            // Not documented; an older Buildkite may have these words, which have no other meaning.
            (_, "canceled" | "timed_out") => Self::Errored,
            (_, "waiting_for_dependencies" | "ready" | "running" | "failing") => {
                Self::Unfinished(state.to_owned())
            }
            ("hard_failed", _) => Self::HardFailed,
            ("soft_failed", _) => Self::SoftFailed,
            ("errored", _) => Self::Errored,
            _ => Self::NotKnown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outcome_of_a_step_that_passed_needs_no_state() {
        assert_eq!(StepOutcome::read("passed\n"), Some(StepOutcome::Passed));
        for other in ["", "\n", "hard_failed\n", "errored\n", "PASSED"] {
            assert_eq!(StepOutcome::read(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_step_that_is_being_retried_has_an_outcome_and_has_not_ended() {
        let unfinished = |state: &str| StepOutcome::Unfinished(state.into());
        for (outcome, state, expected) in [
            ("hard_failed", "finished", StepOutcome::HardFailed),
            ("soft_failed", "finished", StepOutcome::SoftFailed),
            ("errored", "finished", StepOutcome::Errored),
            ("errored", "ready", unfinished("ready")),
            ("hard_failed", "running", unfinished("running")),
            (
                "",
                "waiting_for_dependencies",
                unfinished("waiting_for_dependencies"),
            ),
            ("errored", "failing", unfinished("failing")),
            ("neutral", "finished", StepOutcome::NotRun),
            ("", "ignored", StepOutcome::NotRun),
            // A state that could not be read does not hide a failure.
            ("hard_failed", "", StepOutcome::HardFailed),
            ("", "", StepOutcome::NotKnown),
            ("new word", "finished", StepOutcome::NotKnown),
        ] {
            let read = StepOutcome::with_state(&format!("{outcome}\n"), &format!("{state}\n"));
            assert_eq!(read, expected, "{outcome} {state}");
        }
    }
}
