//! What a failure means for a retry: its class, and the exit status of that class.
//!
//! Users write `retry:` and `soft_fail:` rules on these numbers, so they are a contract. Whatever in the program can fail for a
//! reason that a user can act on returns a [`Failure`]; [`Class::status`] alone turns it into a number. This module does not
//! know Nix: [`crate::nix::class`] decides the class of a Nix program's failure.

use std::fmt;
use std::io;

/// Why something failed, in terms that decide whether to retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A builder failed, perhaps one that the evaluation needed.
    Build,
    /// `timeout` or `max-silent-time` ran out.
    Timeout,
    /// Hash mismatch of a fixed output.
    Hash,
    /// Several of the classes above at once.
    Mixed,
    /// An output is not reproducible: a second build, made for comparison, gave another.
    Nondeterministic,
    /// The configuration is wrong, or the out-link cannot be made. Nothing was built.
    Config,
    /// The Nix expression does not evaluate.
    Evaluation,
    /// A program that is needed is missing.
    MissingProgram,
    /// A bug of ours.
    Bug,
    /// Infrastructure failure (daemon, disk, network, Buildkite): safe to retry.
    Infrastructure,
    /// The evaluation gave another `.drv` than was recorded, and `on-drift: fail` is set.
    Drift,
    /// This signal stopped us, or killed Nix.
    Signal(i32),
}

impl Class {
    /// The exit status of this class.
    ///
    /// 64–75 are `sysexits.h`'s, 100–104 are Nix's own, 128 + n is the shells'. Never 94, 125 or 255, which mean something to
    /// the agent.
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
            // Signals have the numbers 1 to 64 at most.
            Self::Signal(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX - 1),
        }
    }

    /// The class's name in reports and documentation, which programs compare: it never changes.
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

    /// What a person reads for the [word](Self::word) of a class, in a log or an annotation. A word of another version is shown
    /// as it is.
    #[must_use]
    pub fn shown(word: &str) -> &str {
        if word == Self::Infrastructure.word() {
            "infrastructure failure"
        } else {
            word
        }
    }

    /// What happened to a target that failed with this class, as a verb with its object.
    #[must_use]
    fn verb(self) -> &'static str {
        match self {
            Self::Build | Self::Mixed => "failed",
            Self::Timeout => "timed out",
            Self::Hash => "has a hash mismatch",
            Self::Nondeterministic => "is not reproducible",
            Self::Config => "is refused",
            Self::Evaluation => "does not evaluate",
            Self::MissingProgram => "needs a program that is missing",
            Self::Bug => "hit a bug in eval-once",
            Self::Infrastructure => "hit an infrastructure failure",
            Self::Drift => "differs from what was recorded",
            Self::Signal(_) => "was stopped by a signal",
        }
    }

    /// What happened, and whether a retry can help, in one sentence.
    #[must_use]
    fn in_a_sentence(self) -> &'static str {
        match self {
            Self::Build => "The build failed; retrying only helps if the build is flaky.",
            Self::Timeout => {
                "A time limit ran out; retrying only helps if the host was busier than usual."
            }
            Self::Hash => {
                "Hash mismatch; retrying only helps if the server sent something wrong this once."
            }
            Self::Mixed => {
                "Several derivations failed in different ways; retrying only helps if the builds are flaky."
            }
            Self::Nondeterministic => {
                "The build is not reproducible: a second build gave other outputs; retrying cannot help."
            }
            Self::Config => "The configuration is refused; retrying cannot help.",
            Self::Evaluation => "The Nix expression does not evaluate; retrying cannot help.",
            Self::MissingProgram => {
                "A program is missing on this host; retrying only helps on another host."
            }
            Self::Bug => "This is a bug in eval-once; please report it.",
            Self::Infrastructure => {
                "Infrastructure failure (safe to retry): daemon, disk, network or Buildkite."
            }
            Self::Drift => {
                "The evaluation gave another derivation than was recorded; retrying cannot help, recording again can."
            }
            Self::Signal(_) => "A signal stopped it (safe to retry).",
        }
    }
}

/// A failure that is reported to the user: its class, what happened, and what to do about it where that is known.
#[derive(Debug)]
pub struct Failure {
    /// What it means for a retry.
    pub class: Class,
    /// What happened: the outermost context says what we were doing, the innermost is the system's error.
    pub error: anyhow::Error,
    /// What to do next, as one sentence.
    pub hint: Option<String>,
    /// What happened, and whether a retry can help, in one sentence, where the one of its class does not fit.
    pub meaning: Option<&'static str>,
    /// What happened to the target, as a verb, where the one of its class does not fit.
    pub verb: Option<&'static str>,
}

impl Failure {
    /// A failure of `class` with this `message`.
    pub fn new(class: Class, message: impl fmt::Display) -> Self {
        Self {
            class,
            error: anyhow::anyhow!("{message}"),
            hint: None,
            meaning: None,
            verb: None,
        }
    }

    /// What happened, and whether a retry can help, in one sentence.
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

    /// The same failure with a sentence of its own on what it means for a retry.
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

    /// The same failure with a verb of its own: a value that is no derivation *does* evaluate.
    #[must_use]
    pub fn called(self, verb: &'static str) -> Self {
        Self {
            verb: Some(verb),
            ..self
        }
    }

    /// The same failure with a hint on what to do next.
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

/// What to do about a full disk.
pub const DISK_FULL: &str = "make room on this host's disk: `eval-once prune` removes expired GC roots of past recordings, `nix-collect-garbage` what no root keeps";

/// Whether an error of the system is the cause that says that a disk is full.
fn is_for_a_full_disk(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref());
    causes.any(|cause: &io::Error| {
        matches!(
            cause.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    })
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
        self.map_err(|error| {
            let error = error.into();
            let hint = is_for_a_full_disk(&error).then(|| DISK_FULL.to_owned());
            Failure {
                class,
                error: error.context(doing()),
                hint,
                meaning: None,
                verb: None,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_status_is_one_of_the_agents() {
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
