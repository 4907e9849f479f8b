//! What a failure means to whoever retries: its class, and the exit status of that class.
//!
//! Users write `retry:` and `soft_fail:` on these numbers, so they are a contract. Everything in the program that can
//! fail for a reason of the user's says so as a [`Failure`]; the number is made in one place, [`Class::status`].
//! This module does not know Nix: how an ending of Nix becomes a class is [`crate::nix::class`]'s decision.

use std::fmt;

/// Why something failed, in the terms of someone who decides whether to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A builder failed, also one that evaluation needed.
    Build,
    /// `timeout` or `max-silent-time` ran out.
    Timeout,
    /// A fixed output had another hash than it promised.
    Hash,
    /// Several of the classes above at once.
    Mixed,
    /// A rebuild made for comparison gave something else.
    Nondeterministic,
    /// The configuration is wrong, or the out-link cannot be made. Nothing was built.
    Config,
    /// The Nix expression does not evaluate.
    Evaluation,
    /// A program that is needed is not there.
    MissingProgram,
    /// A bug of ours.
    Bug,
    /// The surroundings failed (daemon, disk, network): worth retrying.
    Infrastructure,
    /// Evaluating again gave another `.drv`, and the user asked for that to fail.
    Drift,
    /// We were stopped by this signal, or Nix was killed by it.
    Signal(i32),
}

impl Class {
    /// The exit status of this class.
    ///
    /// 64–75 are `sysexits.h`'s, 100–104 are Nix's own, 128 + n is the shells'. Never 94, 125 or 255: the agent
    /// gives those meanings of its own.
    #[must_use]
    pub fn status(self) -> u8 {
        match self {
            Self::Config => 64,
            Self::Evaluation => 65,
            Self::MissingProgram => 69,
            Self::Bug => 70,
            Self::Infrastructure => 75,
            Self::Drift => 76,
            Self::Build => 100,
            Self::Timeout => 101,
            Self::Hash => 102,
            Self::Mixed => 103,
            Self::Nondeterministic => 104,
            // Signals are numbered from 1 to 64 at most.
            Self::Signal(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX - 1),
        }
    }

    /// The class's name in reports and documentation.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Timeout => "timeout",
            Self::Hash => "hash",
            Self::Mixed => "mixed",
            Self::Nondeterministic => "nondeterministic",
            Self::Config => "config",
            Self::Evaluation => "evaluation",
            Self::MissingProgram => "missing-program",
            Self::Bug => "bug",
            Self::Infrastructure => "surroundings",
            Self::Drift => "drift",
            Self::Signal(_) => "signal",
        }
    }

    /// What happened to a target that ended so, as a verb with what belongs to it.
    #[must_use]
    fn verb(self) -> &'static str {
        match self {
            Self::Build | Self::Mixed => "failed",
            Self::Timeout => "took too long",
            Self::Hash => "has another hash than it promises",
            Self::Nondeterministic => "is another when it is built again",
            Self::Config => "is refused",
            Self::Evaluation => "does not evaluate",
            Self::MissingProgram => "needs a program that is not there",
            Self::Bug => "met a bug in eval-once",
            Self::Infrastructure => "met an infrastructure failure",
            Self::Drift => "is not what was recorded",
            Self::Signal(_) => "was ended by a signal",
        }
    }

    /// What has happened, and whether trying again can help, in one sentence.
    #[must_use]
    fn in_a_sentence(self) -> &'static str {
        match self {
            Self::Build => {
                "It could not be built; trying again helps only where it fails by chance."
            }
            Self::Timeout => {
                "A time limit ran out; trying again helps only where the host was busier than usual."
            }
            Self::Hash => {
                "What was fetched is not what its hash promises; trying again helps only where the server was wrong for a moment."
            }
            Self::Mixed => {
                "Several derivations failed in different ways; trying again helps only where they fail by chance."
            }
            Self::Nondeterministic => {
                "Building twice gave two results; trying again tells nothing new."
            }
            Self::Config => "What the step asks for is refused; trying again cannot help.",
            Self::Evaluation => "The Nix expression does not evaluate; trying again cannot help.",
            Self::MissingProgram => {
                "A program is not there on this host; trying again helps only on another host."
            }
            Self::Bug => "This is a bug in eval-once; please report it.",
            Self::Infrastructure => {
                "What the build stands on failed (daemon, disk, network, Buildkite); trying again is worth it."
            }
            Self::Drift => {
                "Evaluating gave another derivation than was recorded; trying again cannot help, recording again can."
            }
            Self::Signal(_) => "A signal ended it; trying again is worth it.",
        }
    }
}

/// A failure that is told to the user: its class, what happened, and what to do about it where that is known.
#[derive(Debug)]
pub struct Failure {
    /// What it means to whoever retries.
    pub class: Class,
    /// What happened: the outermost context says what we were doing, the innermost what the system said.
    pub error: anyhow::Error,
    /// What to do next, as one sentence.
    pub hint: Option<String>,
    /// What has happened, and whether trying again can help, where that is not as for all of its class.
    pub meaning: Option<&'static str>,
    /// What happened to the target, as a verb, where that is not as for all of its class.
    pub verb: Option<&'static str>,
}

impl Failure {
    /// A failure of `class` that is told in the words of `message`.
    pub fn new(class: Class, message: impl fmt::Display) -> Self {
        Self {
            class,
            error: anyhow::anyhow!("{message}"),
            hint: None,
            meaning: None,
            verb: None,
        }
    }

    /// What has happened, and whether trying again can help, in one sentence.
    #[must_use]
    pub fn in_a_sentence(&self) -> &'static str {
        self.meaning.unwrap_or(self.class.in_a_sentence())
    }

    /// The same failure; `what` becomes the outermost part of its message.
    #[must_use]
    pub fn context(self, what: &'static str) -> Self {
        Self {
            error: self.error.context(what),
            ..self
        }
    }

    /// The same failure with what it means in particular.
    #[must_use]
    pub fn meaning(self, meaning: &'static str) -> Self {
        Self {
            meaning: Some(meaning),
            ..self
        }
    }

    /// What happened to the target: `does not evaluate`.
    #[must_use]
    pub fn verb(&self) -> &'static str {
        self.verb.unwrap_or(self.class.verb())
    }

    /// The same failure with another verb: a value that evaluates to something else does evaluate.
    #[must_use]
    pub fn called(self, verb: &'static str) -> Self {
        Self {
            verb: Some(verb),
            ..self
        }
    }

    /// The same failure with a hint for the reader of a CI log, who cannot ask back.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

/// Gives an error its class, together with what we were doing.
pub trait Classify<T> {
    /// Turns an error into a [`Failure`] of `class`; `doing` becomes the outermost part of its message.
    ///
    /// # Errors
    /// The error there was, classified.
    fn classify(self, class: Class, doing: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> Classify<T> for Result<T, E> {
    fn classify(self, class: Class, doing: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure {
            class,
            error: error.into().context(doing()),
            hint: None,
            meaning: None,
            verb: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_status_has_a_meaning_of_the_agents() {
        use Class::{
            Bug, Build, Config, Drift, Evaluation, Hash, Infrastructure, MissingProgram, Mixed,
            Nondeterministic, Timeout,
        };
        let classes = [
            Build,
            Timeout,
            Hash,
            Mixed,
            Nondeterministic,
            Config,
            Evaluation,
            MissingProgram,
            Bug,
            Infrastructure,
            Drift,
        ];
        let mut seen: Vec<u8> = classes.map(Class::status).to_vec();
        seen.extend((1..=64).map(|signal| Class::Signal(signal).status()));
        assert!(
            !seen.iter().any(|status| [0, 94, 125, 255].contains(status)),
            "{seen:?}"
        );
        let distinct: std::collections::BTreeSet<_> = seen.iter().collect();
        assert_eq!(
            distinct.len(),
            seen.len(),
            "two classes share a status: {seen:?}"
        );
    }
}
