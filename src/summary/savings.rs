//! How much evaluation was saved, as far as this build has measured it. Pure.
//!
//! A step that evaluated has measured how long one evaluation takes here. A step that did not evaluate would have taken about
//! the median of those. The time of the recording is deducted in full, although some of it would have been needed to find the
//! targets in any case; and so is the time for fetching from shares. Where no step evaluated, nothing was measured, and no number is made up.

use std::fmt;

use super::rows::Rows;
use crate::exit::Class;
use crate::step::{Reason, WayName};

/// How much evaluation was saved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Savings {
    /// No step evaluated: nothing to compare with.
    NotMeasured {
        /// How many steps used their records.
        reusing: usize,
        /// How long steps were fetching from shares, in seconds.
        fetching: f64,
        /// The time of the recordings, in seconds.
        recording: f64,
    },
    /// Some steps evaluated.
    Measured {
        /// How many steps used their records.
        reusing: usize,
        /// How long steps were fetching from shares, in seconds.
        fetching: f64,
        /// How many evaluated.
        evaluated: usize,
        /// The median time of their evaluations, in seconds.
        median: f64,
        /// The time of the recordings, in seconds.
        recording: f64,
    },
}

impl Savings {
    /// What `rows` say of it; none where nothing was recorded in this build, or the time of that is not known.
    pub(super) fn new(rows: &Rows) -> Option<Self> {
        let recording = rows.recording?;
        let mut measured = Vec::new();
        let mut reusing = 0;
        let mut fetching = 0.0;
        for (_, row) in rows.steps() {
            let Some(report) = &row.report else { continue };
            fetching += report.seconds.fetch;
            // An evaluation that failed or was stopped was shorter than a whole one.
            let is_whole = report.stopped.is_none()
                && report.class.as_deref() != Some(Class::Evaluation.word());
            match report.way() {
                Some(WayName::Evaluated) if is_whole && report.seconds.evaluate > 0.0 => {
                    measured.push(report.seconds.evaluate);
                }
                // A step that the recording skipped would not have run at all.
                _ if report.reason.as_deref() == Some(Reason::Skipped.word()) => {}
                Some(WayName::Realised | WayName::Available | WayName::Fetched) => reusing += 1,
                None | Some(WayName::Evaluated) => {}
            }
        }
        Some(match median(&mut measured) {
            None => Self::NotMeasured {
                reusing,
                fetching,
                recording,
            },
            Some(median) => Self::Measured {
                reusing,
                fetching,
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

/// As sentences, with every figure that the number is computed from.
impl fmt::Display for Savings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotMeasured {
                reusing,
                fetching,
                recording,
            } => write!(
                f,
                "not measured. No step evaluated, so the time of one evaluation is unknown: {}, and {}.",
                used(reusing),
                took(recording, fetching)
            ),
            Self::Measured {
                reusing,
                fetching,
                evaluated,
                median,
                recording,
            } => {
                #[expect(clippy::cast_precision_loss, reason = "a build has no 2⁵³ steps")]
                let would_have = median * reusing as f64;
                let spent = recording + fetching;
                if would_have > spent {
                    write!(
                        f,
                        "about {} of the agents' time. ",
                        Time(would_have - spent)
                    )?;
                } else {
                    f.write_str("none. ")?;
                }
                write!(
                    f,
                    "{} instead of evaluating, which takes {} ({}): {} in all. Deducted: {}.",
                    used(reusing),
                    Time(median),
                    if evaluated == 1 {
                        "the one step that did".to_owned()
                    } else {
                        format!("the median of the {evaluated} steps that did")
                    },
                    Time(would_have),
                    took(recording, fetching),
                )
            }
        }
    }
}

/// What was spent to save it.
fn took(recording: f64, fetching: f64) -> String {
    let recording = format!("recording took {}", Time(recording));
    if fetching > 0.0 {
        format!("{recording}, fetching from shares {}", Time(fetching))
    } else {
        recording
    }
}

fn used(reusing: usize) -> String {
    if reusing == 1 {
        "1 step used its record".to_owned()
    } else {
        format!("{reusing} steps used their records")
    }
}

/// Seconds, in the units that a reader expects.
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
    use super::super::fixtures::{build_data, recorded, report, target};
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn evaluated(evaluate: f64) -> Value {
        json!({ "way": "evaluated", "reason": "drv-missing", "seconds": { "evaluate": evaluate, "total": 99.0 } })
    }

    fn savings(reports: &[Value]) -> Savings {
        let names: Vec<String> = (0..reports.len()).map(|i| i.to_string()).collect();
        let targets: Vec<Value> = names.iter().map(|name| target(name)).collect();
        let mut data = build_data(vec![recorded(&json!(targets), &json!([]))], []);
        for (name, saved) in names.iter().zip(reports) {
            data.reports
                .insert(format!("drv-{name}"), report(saved, 1.0));
        }
        Savings::new(&Rows::new(&data)).unwrap()
    }

    #[test]
    fn a_step_that_was_skipped_and_ran_spares_nothing() {
        let skipped = json!({ "way": "available", "reason": "skipped" });
        let savings = savings(&[skipped, json!({})]);
        let expected = Savings::NotMeasured {
            reusing: 1,
            fetching: 0.0,
            recording: 12.0,
        };
        assert_eq!(savings, expected);
    }

    #[test]
    fn steps_that_did_not_evaluate_would_have_taken_the_median_of_those_that_did() {
        let realised = json!({});
        let failed = json!({ "exit": 100, "way": "available" });
        let fetched = json!({ "way": "fetched", "reason": "fetched-from-share", "seconds": { "fetch": 1.5 } });
        // Not a whole evaluation, after a share that failed.
        let unfinished = json!({ "exit": 65, "class": "evaluation", "way": "evaluated", "seconds": { "evaluate": 1.0, "fetch": 1.0 } });
        let reports = [
            evaluated(8.0),
            evaluated(30.0),
            evaluated(10.0),
            unfinished,
            realised.clone(),
            realised,
            failed,
            fetched,
        ];
        let savings = savings(&reports);
        assert_eq!(
            savings,
            Savings::Measured {
                reusing: 4,
                fetching: 2.5,
                evaluated: 3,
                median: 10.0,
                recording: 12.0
            }
        );
        assert_eq!(
            savings.to_string(),
            "about 25.5 s of the agents' time. 4 steps used their records instead of evaluating, which takes 10.0 s (the median of the 3 steps that did): 40.0 s in all. Deducted: recording took 12.0 s, fetching from shares 2.5 s."
        );
    }

    #[test]
    fn where_nothing_was_measured_no_number_is_made_up() {
        let text = savings(&[json!({}), json!({})]).to_string();
        assert_eq!(
            text,
            "not measured. No step evaluated, so the time of one evaluation is unknown: 2 steps used their records, and recording took 12.0 s."
        );
        let nothing = Rows::new(&build_data(vec![], [("x", report(&evaluated(3.0), 1.0))]));
        assert_eq!(Savings::new(&nothing), None);
    }

    #[test]
    fn where_recording_took_longer_nothing_was_saved() {
        let text = savings(&[evaluated(0.5), json!({})]).to_string();
        assert!(text.starts_with("none. 1 step used its record"), "{text}");
        let text = savings(&[evaluated(0.5)]).to_string();
        assert!(
            text.starts_with("none. 0 steps used their records"),
            "{text}"
        );
    }

    #[test]
    fn time_has_the_units_that_a_reader_expects() {
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
            let text = savings(&reports).to_string();
            prop_assert!(!text.contains('-') && !text.contains("inf") && !text.contains("NaN"), "{}", text);
        }
    }
}
