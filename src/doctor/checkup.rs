//! The result of a checkup, as lines for people and as JSON for programs.

use std::fmt;

use serde::Serialize;
use serde::ser::SerializeStruct as _;

use crate::secrets::{redacted, shortened};
use crate::text::{KeepEscapes, tamed};

/// How many characters of a message are shown: what a program prints may be long.
const MESSAGE_AT_MOST: usize = 500;

/// What a check has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is wrong: what was seen.
    Ok(String),
    /// Steps and recordings work, but slower, or not for everything: what was seen, and what to do.
    Warning(String, String),
    /// Steps or recordings fail, or are not kept from the collector: what was seen, and what to do.
    Failure(String, String),
    /// There is nothing to check, or it cannot be checked: why.
    NotApplicable(String),
}

impl Outcome {
    pub(super) fn ok(seen: impl Into<String>) -> Self {
        Self::Ok(seen.into())
    }

    pub(super) fn warning(seen: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::Warning(seen.into(), mend.into())
    }

    pub(super) fn failure(seen: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::Failure(seen.into(), mend.into())
    }

    pub(super) fn not_applicable(why: impl Into<String>) -> Self {
        Self::NotApplicable(why.into())
    }

    /// The word that programs compare: it never changes.
    #[must_use]
    fn word(&self) -> &'static str {
        match self {
            Self::Ok(_) => "ok",
            Self::Warning(..) => "warning",
            Self::Failure(..) => "failure",
            Self::NotApplicable(_) => "not-applicable",
        }
    }
}

/// A check that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    name: &'static str,
    outcome: Outcome,
}

impl Check {
    pub(super) fn new(name: &'static str, outcome: Outcome) -> Self {
        let tame = |text: String| {
            // What a program prints is in it, and what files hold.
            let line = text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
            shortened(
                &redacted(&tamed(&line, KeepEscapes::Nothing)),
                MESSAGE_AT_MOST,
            )
        };
        let outcome = match outcome {
            Outcome::Ok(seen) => Outcome::Ok(tame(seen)),
            Outcome::Warning(seen, mend) => Outcome::Warning(tame(seen), tame(mend)),
            Outcome::Failure(seen, mend) => Outcome::Failure(tame(seen), tame(mend)),
            Outcome::NotApplicable(why) => Outcome::NotApplicable(tame(why)),
        };
        Self { name, outcome }
    }

    fn message(&self) -> &str {
        match &self.outcome {
            Outcome::Ok(message)
            | Outcome::Warning(message, _)
            | Outcome::Failure(message, _)
            | Outcome::NotApplicable(message) => message,
        }
    }

    fn mend(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::Warning(_, mend) | Outcome::Failure(_, mend) => Some(mend),
            Outcome::Ok(_) | Outcome::NotApplicable(_) => None,
        }
    }
}

/// One line; where something is wrong, a second one with what to do.
impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, name) = (self.outcome.word(), self.name);
        writeln!(f, "{word:<14}  {name:<19}  {}", self.message())?;
        match self.mend() {
            Some(mend) => writeln!(f, "{:>14}  {:<19}  {mend}", "hint:", ""),
            None => Ok(()),
        }
    }
}

impl Serialize for Check {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut check = serializer.serialize_struct("Check", 4)?;
        check.serialize_field("name", self.name)?;
        check.serialize_field("outcome", self.outcome.word())?;
        check.serialize_field("message", self.message())?;
        check.serialize_field("mend", &self.mend())?;
        check.end()
    }
}

/// All checks.
#[derive(Debug, Serialize)]
pub struct Checkup {
    version: u32,
    checks: Vec<Check>,
}

impl Default for Checkup {
    fn default() -> Self {
        Self {
            version: 1,
            checks: Vec::new(),
        }
    }
}

impl Checkup {
    pub(super) fn push(&mut self, check: Check) {
        self.checks.push(check);
    }

    fn count(&self, word: &str) -> usize {
        let checks = self.checks.iter();
        checks.filter(|it| it.outcome.word() == word).count()
    }

    /// The exit status: 1 where a check is a failure, else 0. (A warning needs a person, and stops nothing.)
    #[must_use]
    pub fn status(&self) -> u8 {
        u8::from(self.count("failure") > 0)
    }
}

/// How many checks there are of each kind.
impl fmt::Display for Checkup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = |word: &str| {
            let count = self.count(word);
            let plural = if count == 1 { "" } else { "s" };
            format!("{count} {word}{plural}")
        };
        writeln!(
            f,
            "{} checks: {}, {}",
            self.checks.len(),
            counted("failure"),
            counted("warning")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_says_whether_something_fails_and_a_warning_is_none() {
        let mut checkup = Checkup::default();
        checkup.push(Check::new("a", Outcome::ok("x")));
        checkup.push(Check::new("b", Outcome::warning("x", "y")));
        assert_eq!(checkup.status(), 0);
        assert_eq!(checkup.to_string(), "2 checks: 0 failures, 1 warning\n");
        checkup.push(Check::new("c", Outcome::failure("x", "y")));
        assert_eq!(checkup.status(), 1);
    }

    #[test]
    fn a_message_is_one_line_without_escapes_and_credentials() {
        let long = format!(
            "a\n \u{1b}]1339;url=x\u{7}b \u{202e}https://u:p@h {}",
            "x".repeat(9_999)
        );
        let check = Check::new("name", Outcome::warning(long, "do\nit"));
        let shown = check.to_string();
        assert_eq!(shown.lines().count(), 2);
        assert!(
            shown.starts_with("warning         name                 a b \u{fffd}https://***@h xxx"),
            "{shown}"
        );
        assert!(shown.len() < 700, "{shown}");
        let json = serde_json::to_value(&check).unwrap();
        assert_eq!(json["outcome"], "warning");
        assert_eq!(json["mend"], "do it");
        let ok = serde_json::to_value(Check::new("n", Outcome::ok(""))).unwrap();
        assert!(ok["mend"].is_null());
    }
}
