//! How a recording is counted, and in which words: the same in the log, in annotations, in `eval-once.json` and in a summary.
//!
//! - *Attributes* are the attribute paths of a derivation or an error; sets that are only looked into do not count.
//! - *Targets* are the distinct `.drv`s of the attributes: each gets a step of its own, and several attributes may have the same.
//! - *Evaluation errors* are the attributes that do not evaluate, except for those that `expect-errors` names.
//! - *Expected errors* are those: they do not evaluate either, and no attribute counts as both.
//! - *Refused* are the attributes that evaluate, but whose metadata makes no step. They are not targets.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// The numbers of a recording.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RecordingCounts {
    /// The attributes.
    pub attributes: usize,
    /// The targets.
    pub targets: usize,
    /// The evaluation errors, without the expected ones.
    pub evaluation_errors: usize,
    /// The expected errors.
    pub expected_errors: usize,
    /// The refused.
    pub refused: usize,
}

impl RecordingCounts {
    /// The numbers in one clause: `12 attributes in 0.2 s: 10 targets (9 to build, 1 in a cache), 1 evaluation error, 1 refused,
    /// 2 expected errors`. `took` stands behind the attributes; `targets`, which may be empty, describes the targets.
    #[must_use]
    pub fn clause(&self, took: &str, targets: &str) -> String {
        let mut text = format!("{}{took}: ", number(self.attributes, "attribute"));
        text.push_str(&number(self.targets, "target"));
        if !targets.is_empty() {
            text.push_str(" (");
            text.push_str(targets);
            text.push(')');
        }
        let expected = Some(self.expected_errors).filter(|count| *count > 0);
        let expected = expected.map(|count| number(count, "expected error"));
        for errors in [self.errors(), expected].into_iter().flatten() {
            text.push_str(", ");
            text.push_str(&errors);
        }
        text
    }

    /// The errors alone that are not expected, where there are any: `1 evaluation error, 2 refused`.
    #[must_use]
    pub fn errors(&self) -> Option<String> {
        let evaluation = number(self.evaluation_errors, "evaluation error");
        match (self.evaluation_errors, self.refused) {
            (0, 0) => None,
            (_, 0) => Some(evaluation),
            (0, refused) => Some(format!("{refused} refused")),
            (_, refused) => Some(format!("{evaluation}, {refused} refused")),
        }
    }
}

impl fmt::Display for RecordingCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.clause("", ""))
    }
}

/// The line of a recording that has evaluated so many attributes in this time. The number of targets is printed later, once it is
/// known which attributes make a step.
#[must_use]
pub fn evaluated(attributes: usize, took: Duration) -> String {
    let attributes = number(attributes, "attribute");
    format!("evaluated {attributes} in {:.1} s", took.as_secs_f64())
}

/// A number of things, with the plural of `what`.
#[must_use]
pub fn number(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A size in MiB, for people, with tenths where there are any; rounded up, so that what is there is never nothing.
#[must_use]
pub fn mebibytes(bytes: u64) -> String {
    // Tenths of them: whole numbers lose nothing on the way.
    let tenths = u128::from(bytes) * 10;
    let tenths = tenths.div_ceil(1 << 20);
    match tenths % 10 {
        0 => format!("{} MiB", tenths / 10),
        tenth => format!("{}.{tenth} MiB", tenths / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_omitted_except_for_attributes_and_targets() {
        let counts = |attributes, targets, evaluation_errors, refused| RecordingCounts {
            attributes,
            targets,
            evaluation_errors,
            refused,
            ..RecordingCounts::default()
        };
        assert_eq!(counts(0, 0, 0, 0).to_string(), "0 attributes: 0 targets");
        assert_eq!(counts(1, 1, 0, 0).to_string(), "1 attribute: 1 target");
        assert_eq!(
            counts(5, 2, 1, 0).clause(" in 0.1 s", "2 to build"),
            "5 attributes in 0.1 s: 2 targets (2 to build), 1 evaluation error"
        );
        assert_eq!(
            counts(5, 0, 2, 3).to_string(),
            "5 attributes: 0 targets, 2 evaluation errors, 3 refused"
        );
        assert_eq!(counts(3, 0, 0, 3).errors().as_deref(), Some("3 refused"));
        let expecting = |expected_errors, other| RecordingCounts {
            expected_errors,
            ..other
        };
        assert_eq!(
            expecting(1, counts(2, 1, 0, 0)).to_string(),
            "2 attributes: 1 target, 1 expected error"
        );
        let both = expecting(305, counts(310, 2, 1, 2));
        assert_eq!(
            both.to_string(),
            "310 attributes: 2 targets, 1 evaluation error, 2 refused, 305 expected errors"
        );
        assert_eq!(
            both.errors().as_deref(),
            Some("1 evaluation error, 2 refused"),
            "what is expected is no reason to fail"
        );
        assert_eq!(expecting(3, counts(3, 0, 0, 0)).errors(), None);
    }

    #[test]
    fn a_size_has_tenths_where_there_are_any_and_what_is_there_is_not_nothing() {
        for (bytes, text) in [
            (0, "0 MiB"),
            (1, "0.1 MiB"),
            (1 << 20, "1 MiB"),
            ((1 << 20) + 1, "1.1 MiB"),
            (128 << 20, "128 MiB"),
            (u64::MAX, "17592186044416 MiB"),
        ] {
            assert_eq!(mebibytes(bytes), text);
        }
    }
}
