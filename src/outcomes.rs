//! `eval-once-outcomes.json`: the outcome of every target of a build, for a later recording ([`base`](crate::recording)) and for
//! other programs.
//!
//! Stable: a field is added, never renamed; an outcome that is not known here is read as [`OutcomeWord::Unknown`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::exit::{Class, Classify as _, Failure};
use crate::keys::refuse;
use crate::nix::AttrPath;

/// The name of the artifact, and of the file beside a base's `eval-once.json`.
pub const OUTCOMES: &str = "eval-once-outcomes.json";

/// The version of the format.
const VERSION: u32 = 1;

/// The outcomes of a build.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcomes {
    version: u32,
    /// The number of the build (`BUILDKITE_BUILD_NUMBER`), where it is known.
    #[serde(default)]
    pub build: Option<u64>,
    /// How many targets have each outcome; those that none has are omitted.
    #[serde(default)]
    pub counts: BTreeMap<OutcomeWord, usize>,
    /// The targets, and the attributes that have an error, in the order of the recordings.
    #[serde(default)]
    pub targets: Vec<OutcomeEntry>,
}

/// A target, or an attribute with an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutcomeEntry {
    /// The first attribute of the target.
    pub attr: AttrPath,
    /// The other attributes with the same `.drv`.
    #[serde(default)]
    pub also: Vec<AttrPath>,
    /// The `.drv` that has the outcome; null where the attribute does not evaluate, and where its step built another `.drv` than was
    /// recorded.
    #[serde(default)]
    pub drv: Option<String>,
    /// The key of its step.
    #[serde(default)]
    pub key: String,
    /// The outcome.
    pub outcome: OutcomeWord,
    /// How long its step took, in seconds; of one that did not run, how long it took when it last did, where that is known.
    #[serde(default)]
    pub seconds: Option<f64>,
}

/// How a target stands at the end of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutcomeWord {
    /// Its step has passed.
    Passed,
    /// Its recording has skipped it.
    Skipped,
    /// Its step failed.
    Failed,
    /// Its step failed, which its `soft_fail` allows.
    SoftFailed,
    /// Its job exceeded its timeout.
    TimedOut,
    /// Its job was cancelled.
    Cancelled,
    /// Its job was cancelled, timed out or expired.
    Stopped,
    /// It does not evaluate.
    EvaluationError,
    /// It does not evaluate, as `expect-errors` says.
    ExpectedError,
    /// Its metadata gives no valid step.
    Refused,
    /// Its step did not run.
    NotRun,
    /// Its step had not ended.
    Unfinished,
    /// Not known: it has no report, or one that cannot be read.
    #[serde(other)]
    Unknown,
}

impl OutcomeWord {
    /// Whether the target is known to be good: its step has passed, or was not needed.
    #[must_use]
    pub fn is_green(self) -> bool {
        matches!(self, Self::Passed | Self::Skipped)
    }

    /// Whether the target is known to be bad.
    #[must_use]
    pub fn is_red(self) -> bool {
        match self {
            Self::Failed
            | Self::SoftFailed
            | Self::TimedOut
            | Self::EvaluationError
            | Self::Refused => true,
            Self::Passed
            | Self::Skipped
            | Self::Cancelled
            | Self::Stopped
            | Self::ExpectedError
            | Self::NotRun
            | Self::Unfinished
            | Self::Unknown => false,
        }
    }
}

impl Outcomes {
    /// The outcomes of these targets, in the build of this number.
    #[must_use]
    pub fn new(build: Option<u64>, targets: Vec<OutcomeEntry>) -> Self {
        let mut counts = BTreeMap::new();
        for target in &targets {
            *counts.entry(target.outcome).or_default() += 1;
        }
        Self {
            version: VERSION,
            build,
            counts,
            targets,
        }
    }

    /// Reads a document.
    ///
    /// # Errors
    /// It cannot be read (75), or has another version (64).
    pub fn read(json: &str) -> Result<Self, Failure> {
        let outcomes: Self = serde_json::from_str(json)
            .classify(Class::Infrastructure, || format!("cannot read {OUTCOMES}"))?;
        if outcomes.version != VERSION {
            return Err(refuse(format_args!(
                "{OUTCOMES} has version {}, and this eval-once reads version {VERSION}",
                outcomes.version
            )));
        }
        Ok(outcomes)
    }

    /// The text of the document.
    ///
    /// # Errors
    /// It cannot be written as JSON: a bug (70).
    pub fn to_json(&self) -> Result<String, Failure> {
        serde_json::to_string(self).classify(Class::Bug, || format!("cannot write {OUTCOMES}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::hostile::{cases, spoilt, text};
    use proptest::prelude::*;
    use serde_json::json;

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn outcomes_of_any_values_are_read_as_they_were_written_or_refused(json in prop_oneof![9 => spoilt(json!({
            "version": 1, "build": 7, "counts": { "passed": 1 },
            "targets": [
                { "attr": ["a"], "also": [["b", "c"]], "drv": "/x", "key": "k", "outcome": "passed", "seconds": 1.5 },
                { "attr": [], "outcome": "sublime" },
            ],
        })), 1 => text()]) {
            match Outcomes::read(&json) {
                Ok(outcomes) => prop_assert_eq!(Outcomes::read(&outcomes.to_json().unwrap()).unwrap(), outcomes),
                Err(failure) => prop_assert!(matches!(failure.class, Class::Infrastructure | Class::Config), "{failure}"),
            }
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_an_outcome_of_a_later_version_is_unknown() {
        let entry = |outcome| OutcomeEntry {
            attr: AttrPath::new(vec!["a.b".into(), "\u{1b}[1m".into()]),
            also: Vec::new(),
            drv: None,
            key: "k".into(),
            outcome,
            seconds: Some(1.5),
        };
        let written = Outcomes::new(
            Some(7),
            vec![entry(OutcomeWord::Passed), entry(OutcomeWord::SoftFailed)],
        );
        let json = written.to_json().unwrap();
        assert_eq!(Outcomes::read(&json).unwrap(), written);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["counts"], json!({ "passed": 1, "soft-failed": 1 }));
        assert_eq!(value["targets"][1]["outcome"], "soft-failed");
        let later = json.replace("soft-failed", "sublime");
        let read = Outcomes::read(&later).unwrap();
        assert_eq!(read.targets[1].outcome, OutcomeWord::Unknown);
        for (bad, says) in [
            ("", "cannot read"),
            (r#"{"version":2}"#, "has version 2"),
            (r#"{"version":1,"targets":5}"#, "cannot read"),
        ] {
            let failure = Outcomes::read(bad).unwrap_err().to_string();
            assert!(failure.contains(says), "{failure}");
        }
    }
}
