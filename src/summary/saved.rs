//! How much evaluation was saved, as far as this build has measured it.
//!
//! A step that evaluated has measured what a step's own evaluation takes here. One that did not would have taken about the
//! median of those. What the recording took is taken off in full, although some of it would have been needed to find the
//! targets in any case. Where no step evaluated, nothing was measured, and no number is made up.

use std::fmt;

use super::rows::Rows;
use crate::exit::Class;
use crate::step::{Reason, WayName};

/// How much evaluation was saved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Saved {
    /// No step evaluated: nothing to compare with.
    NotMeasured {
        /// How many steps took what was recorded.
        spared: usize,
        /// What the recordings took, in seconds.
        recording: f64,
    },
    /// It was measured.
    Measured {
        /// How many steps took what was recorded.
        spared: usize,
        /// How many evaluated, and measured.
        evaluated: usize,
        /// The median of what those took to evaluate, in seconds.
        median: f64,
        /// What the recordings took, in seconds.
        recording: f64,
    },
}

impl Saved {
    /// What `rows` say of it; none where nothing was recorded in this build, or it is not known what that took.
    pub(super) fn new(rows: &Rows) -> Option<Self> {
        let recording = rows.recording?;
        let mut measured = Vec::new();
        let mut spared = 0;
        for (_, row) in rows.steps() {
            let Some(left) = &row.report else { continue };
            // One that failed to evaluate was not through, and one that was stopped need not have been.
            let is_through =
                left.stopped.is_none() && left.class.as_deref() != Some(Class::Evaluation.word());
            match left.way() {
                Some(WayName::Evaluated) if is_through && left.seconds.evaluate > 0.0 => {
                    measured.push(left.seconds.evaluate);
                }
                // A recording that skips its targets spares nothing.
                _ if left.reason.as_deref() == Some(Reason::Skipped.word()) => {}
                Some(WayName::Realised | WayName::Available) => spared += 1,
                _ => {}
            }
        }
        Some(match median(&mut measured) {
            None => Self::NotMeasured { spared, recording },
            Some(median) => Self::Measured {
                spared,
                evaluated: measured.len(),
                median,
                recording,
            },
        })
    }
}

/// The middle one, or the mean of the two in the middle.
fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// As sentences, with all that the number is made of.
impl fmt::Display for Saved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotMeasured { spared, recording } => write!(
                f,
                "not measured. No step evaluated, so nothing here says how long a step's own evaluation takes: {} what was recorded, and recording took {}.",
                took(spared),
                Time(recording)
            ),
            Self::Measured {
                spared,
                evaluated,
                median,
                recording,
            } => {
                #[expect(clippy::cast_precision_loss, reason = "a build has no 2⁵³ steps")]
                let would_have = median * spared as f64;
                if would_have > recording {
                    write!(
                        f,
                        "about {} of the agents' time. ",
                        Time(would_have - recording)
                    )?;
                } else {
                    f.write_str("none. ")?;
                }
                write!(
                    f,
                    "{} what was recorded instead of evaluating, which took {} in {}: {} more in all. Recording took {}, which is taken off.",
                    took(spared),
                    Time(median),
                    if evaluated == 1 {
                        "the one step that did".to_owned()
                    } else {
                        format!("the {evaluated} steps that did (their median)")
                    },
                    Time(would_have),
                    Time(recording),
                )
            }
        }
    }
}

fn took(spared: usize) -> String {
    format!("{spared} step{} took", if spared == 1 { "" } else { "s" })
}

/// Seconds, as people say them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Time(pub(super) f64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 0.995 {
            return write!(f, "{:.2} s", self.0);
        }
        if self.0 < 99.95 {
            return write!(f, "{:.1} s", self.0);
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at least 99, and the cast saturates"
        )]
        let seconds = self.0.round() as u64;
        match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
            (0, minutes, seconds) => write!(f, "{minutes} min {seconds} s"),
            (hours, minutes, _) => write!(f, "{hours} h {minutes} min"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::{gathered, left, recorded, target};
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn evaluated(evaluate: f64) -> Value {
        json!({ "way": "evaluated", "reason": "drv-missing", "seconds": { "evaluate": evaluate, "total": 99.0 } })
    }

    fn saved(reports: &[Value]) -> Saved {
        let names: Vec<String> = (0..reports.len()).map(|i| i.to_string()).collect();
        let targets: Vec<Value> = names.iter().map(|name| target(name)).collect();
        let mut gathered = gathered(vec![recorded(&json!(targets), &json!([]))], []);
        for (name, report) in names.iter().zip(reports) {
            gathered
                .reports
                .insert(format!("drv-{name}"), left(report, 1.0));
        }
        Saved::new(&Rows::new(&gathered)).unwrap()
    }

    #[test]
    fn a_step_that_was_skipped_and_ran_spares_nothing() {
        let skipped = json!({ "way": "available", "reason": "skipped" });
        let saved = saved(&[skipped, json!({})]);
        let expected = Saved::NotMeasured {
            spared: 1,
            recording: 12.0,
        };
        assert_eq!(saved, expected);
    }

    #[test]
    fn steps_that_did_not_evaluate_would_have_taken_the_median_of_those_that_did() {
        let realised = json!({});
        let failed = json!({ "exit": 100, "way": "available" });
        // One was not through, and measured nothing.
        let unfinished = json!({ "exit": 65, "class": "evaluation", "way": "evaluated", "seconds": { "evaluate": 1.0 } });
        let reports = [
            evaluated(8.0),
            evaluated(30.0),
            evaluated(10.0),
            unfinished,
            realised.clone(),
            realised,
            failed,
        ];
        let saved = saved(&reports);
        assert_eq!(
            saved,
            Saved::Measured {
                spared: 3,
                evaluated: 3,
                median: 10.0,
                recording: 12.0
            }
        );
        assert_eq!(
            saved.to_string(),
            "about 18.0 s of the agents' time. 3 steps took what was recorded instead of evaluating, which took 10.0 s in the 3 steps that did (their median): 30.0 s more in all. Recording took 12.0 s, which is taken off."
        );
    }

    #[test]
    fn where_nothing_was_measured_no_number_is_made_up() {
        let text = saved(&[json!({}), json!({})]).to_string();
        assert!(
            text.starts_with("not measured. No step evaluated"),
            "{text}"
        );
        let nothing = Rows::new(&gathered(vec![], [("x", left(&evaluated(3.0), 1.0))]));
        assert_eq!(Saved::new(&nothing), None);
    }

    #[test]
    fn where_recording_took_longer_nothing_was_saved() {
        let text = saved(&[evaluated(0.5), json!({})]).to_string();
        assert!(text.starts_with("none. 1 step took"), "{text}");
        let text = saved(&[evaluated(0.5)]).to_string();
        assert!(text.starts_with("none. 0 steps took"), "{text}");
    }

    #[test]
    fn time_is_told_as_people_do() {
        let times =
            [0.04, 1.04, 99.94, 99.96, 3599.4, 3599.6, 7260.0].map(|time| Time(time).to_string());
        let expected = [
            "0.04 s",
            "1.0 s",
            "99.9 s",
            "1 min 40 s",
            "59 min 59 s",
            "1 h 0 min",
            "2 h 1 min",
        ];
        assert_eq!(times, expected);
    }

    proptest! {
        #[test]
        fn it_is_never_less_than_nothing(times in proptest::collection::vec(proptest::option::of(-1e3..1e300_f64), 0..12)) {
            let reports: Vec<Value> = times.into_iter().map(|time| time.map_or(json!({}), evaluated)).collect();
            let text = saved(&reports).to_string();
            prop_assert!(!text.contains('-') && !text.contains("inf") && !text.contains("NaN"), "{}", text);
        }
    }
}
