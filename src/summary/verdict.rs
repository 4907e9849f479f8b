//! Whether a build's targets are all good enough for a check that is required: what `summary --fail` ends with. Pure.

use super::outcome::Standing;
use super::rows::Rows;
use crate::counts::number;

/// What is said of a build in which there is no target.
pub(super) const NONE_IS_GREEN: &str = "no target is known to be green";

/// How many names of targets a sentence has.
const NAMED_AT_MOST: usize = 10;

/// What of a build is not green.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct BuildVerdict {
    /// The targets and attributes that failed, by name.
    failed: Vec<String>,
    /// Those whose outcome is not known, by name.
    unknown: Vec<String>,
    /// How many recordings have no plan that can be read.
    unreadable: usize,
    /// Whether there is no target at all: that nothing failed then says nothing.
    is_empty: bool,
}

impl BuildVerdict {
    pub(super) fn of(rows: &Rows) -> Self {
        let named = |wanted: Standing| {
            let steps = rows.steps().map(|(_, row)| row);
            let counted = steps.filter(move |row| row.outcome.standing() == wanted);
            counted.map(|row| row.target.clone()).collect()
        };
        Self {
            failed: named(Standing::Failed),
            unknown: named(Standing::Unknown),
            unreadable: rows.unreadable,
            is_empty: rows.steps().next().is_none(),
        }
    }

    /// How many targets failed, for programs. Those without a known outcome count, a recording without a readable plan counts as one, and so
    /// does a build without targets: 0 says that all is good.
    pub(super) fn failed(&self) -> usize {
        let count = self.failed.len() + self.unknown.len() + self.unreadable;
        count.max(usize::from(self.is_empty))
    }

    /// What is not green, in one sentence; none where everything is.
    pub(super) fn sentence(&self) -> Option<String> {
        let mut parts = Vec::new();
        match self.failed.len() {
            0 => {}
            count => parts.push(format!(
                "{} failed: {}",
                number(count, "target"),
                names(&self.failed)
            )),
        }
        match self.unknown.len() {
            0 => {}
            count => parts.push(format!(
                "{} without a known outcome: {}",
                number(count, "target"),
                names(&self.unknown)
            )),
        }
        match self.unreadable {
            0 => {}
            count => parts.push(format!(
                "{} without a readable plan",
                number(count, "recording")
            )),
        }
        if self.is_empty && parts.is_empty() {
            parts.push(NONE_IS_GREEN.into());
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

fn names(names: &[String]) -> String {
    let shown = names.len().min(NAMED_AT_MOST);
    let text = names[..shown].join(", ");
    match names.len() - shown {
        0 => text,
        more => format!("{text} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{build_data, recorded, report, target};
    use super::*;
    use crate::buildkite::outcome::StepOutcome;
    use serde_json::json;

    #[test]
    fn what_failed_and_what_is_unknown_is_named_and_soft_and_skipped_steps_are_good() {
        let mut skipped = target("skipped");
        skipped["skip"] = "a cache has it".into();
        let mut behind = target("behind");
        behind["depends_on"] = json!(["drv-red"]);
        let targets = json!([
            target("green"),
            target("red"),
            behind,
            skipped,
            target("soft"),
            target("silent")
        ]);
        let green = || report(&json!({ "after": [] }), 1.0);
        let red = || report(&json!({ "exit": 100 }), 1.0);
        let mut data = build_data(
            vec![recorded(&targets, &json!([{ "attr": ["failing"] }]))],
            [
                ("drv-green", green()),
                ("drv-red", red()),
                ("drv-soft", red()),
            ],
        );
        data.outcomes.extend([
            ("drv-soft".to_owned(), StepOutcome::SoftFailed),
            ("drv-red".to_owned(), StepOutcome::HardFailed),
        ]);
        data.unreadable = 1;
        let verdict = BuildVerdict::of(&Rows::new(&data));
        assert_eq!(verdict.failed(), 5);
        assert_eq!(
            verdict.sentence().unwrap(),
            "3 targets failed: red, behind, failing; 1 target without a known outcome: silent; 1 recording without a readable plan"
        );
        let good = json!([target("green")]);
        let good = build_data(vec![recorded(&good, &json!([]))], [("drv-green", green())]);
        assert_eq!(BuildVerdict::of(&Rows::new(&good)), BuildVerdict::default());
        assert_eq!(BuildVerdict::default().sentence(), None);
        // A recording of the steps that follow has no targets.
        let none = build_data(vec![recorded(&json!([]), &json!([]))], []);
        let none = BuildVerdict::of(&Rows::new(&none));
        assert_eq!(none.failed(), 1);
        assert_eq!(none.sentence().unwrap(), NONE_IS_GREEN);
    }

    #[test]
    fn of_many_targets_the_first_are_named() {
        let verdict = BuildVerdict {
            failed: (0..12).map(|n| format!("t{n}")).collect(),
            ..BuildVerdict::default()
        };
        let sentence = verdict.sentence().unwrap();
        assert!(
            sentence.starts_with("12 targets failed: t0, t1,"),
            "{sentence}"
        );
        assert!(sentence.ends_with("t9 and 2 more"), "{sentence}");
    }
}
