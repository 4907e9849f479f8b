//! The failure of a step of which no way has led to the outputs.

use super::links::main_output;
use super::run::StepRun;
use super::ways::lost_hint;
use crate::exit::{Class, Failure};

/// What it means that what was recorded is gone.
const GONE: &str =
    "What was recorded is gone; retrying only helps on a host that has it, recording again helps.";

/// What it means that a record is of a store in another folder.
const OTHER_STORE: &str = "Its record is of a store with another prefix; retrying only helps on a host whose store has the same.";

/// What it means that there is only an evaluation, on a host with `recorded-only`.
const FORBIDDEN: &str = "This host does not evaluate; retrying only helps on a host that does.";

/// What to do about a record that is gone.
const RECORD_AGAIN: &str = "record again: run the pipeline's recording step anew";

/// What to do besides, where the record has no share: another program may have written it, and rooted nothing.
const PIN: &str = "; a generator of your own keeps and shares its .drvs with `eval-once pin`";

/// What was known of a step when its ways were exhausted.
struct Exhausted {
    /// The recorded `.drv`, else the main recorded output.
    recorded: Option<String>,
    /// What is wrong with the share that may have it: a clause that goes on after the path.
    share_failure: Option<String>,
    /// The record says nothing of a share, as those of a recording in a job do.
    without_share: bool,
    /// A substituter that may have it was unreachable.
    lacks_a_substituter: bool,
    /// The step names something to evaluate, and this host does not evaluate.
    evaluation_forbidden: bool,
}

/// The failure of a step whose ways are exhausted.
pub(super) fn failure(step: &mut StepRun<'_>) -> Failure {
    if let Some(path) = &step.lost {
        return Failure::new(
            Class::Infrastructure,
            format_args!("{path} does not exist, although Nix has realised it"),
        )
        .hint(lost_hint());
    }
    let request = step.request;
    let evaluation_forbidden = step.host.recorded_only && request.evaluation.is_some();
    if let Some(other_store) = step.other_store() {
        // The error says it.
        let _ = step.take_dead_ends();
        return of_other_store(step, &other_store);
    }
    let drv = request.drv.as_ref().map(ToString::to_string);
    let exhausted = Exhausted {
        recorded: drv.or_else(|| main_output(&request.outputs).map(ToString::to_string)),
        share_failure: step.share_failure.clone(),
        without_share: request.share.is_none(),
        lacks_a_substituter: step.store.lacks_a_substituter(),
        evaluation_forbidden,
    };
    exhausted.failure()
}

/// Why there is no evaluation.
fn why_not_evaluated(forbidden: bool) -> &'static str {
    if forbidden {
        "this host does not evaluate (EVAL_ONCE_POLICY=recorded-only)"
    } else {
        "the step does not say what to evaluate"
    }
}

/// The failure of a step whose record is of a store in another folder, as `other_store` says.
fn of_other_store(step: &StepRun<'_>, other_store: &str) -> Failure {
    let request = step.request;
    let (why, evaluate) = if request.evaluation.is_none() {
        (
            why_not_evaluated(false),
            ", or give it a `file`, `expr` or `flake` to evaluate",
        )
    } else if step.host.recorded_only {
        (why_not_evaluated(true), "")
    } else {
        (
            "`share-required` does not let the step evaluate",
            ", or leave out `share-required`",
        )
    };
    Failure::new(
        Class::Infrastructure,
        format_args!("{other_store}, and {why}"),
    )
    .meaning(OTHER_STORE)
    .hint(format!(
        "run the step on a host whose store has the recording's prefix{evaluate}"
    ))
}

impl Exhausted {
    fn failure(&self) -> Failure {
        let gone = match &self.recorded {
            Some(path) if self.lacks_a_substituter => format!(
                "{path} is not on this host, and a substituter that may have it is unreachable"
            ),
            Some(path) => {
                format!("{path} is gone, here and in every substituter that was queried")
            }
            None => "nothing is recorded".into(),
        };
        let gone = match &self.share_failure {
            Some(why) => format!("{gone}, {why}"),
            None => gone,
        };
        let why = why_not_evaluated(self.evaluation_forbidden);
        let mend = match &self.share_failure {
            Some(_) => "mend the share; or ",
            None => "",
        };
        let pin = match &self.recorded {
            Some(_) if self.without_share => PIN,
            _ => "",
        };
        let hint = match (self.evaluation_forbidden, &self.recorded) {
            (true, Some(_)) => format!("{mend}{RECORD_AGAIN}{pin}"),
            (true, None) => {
                "give the step a `drv`: this host builds only recorded steps".to_owned()
            }
            (false, _) => {
                format!("{mend}{RECORD_AGAIN}; or give the step a `file`, `expr` or `flake`{pin}")
            }
        };
        let failure =
            Failure::new(Class::Infrastructure, format_args!("{gone}, and {why}")).hint(hint);
        match &self.recorded {
            None if self.evaluation_forbidden => failure.meaning(FORBIDDEN),
            Some(_) if !self.lacks_a_substituter && self.share_failure.is_none() => {
                failure.meaning(GONE)
            }
            _ => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exhausted(
        recorded: bool,
        lacks_a_substituter: bool,
        evaluation_forbidden: bool,
    ) -> Exhausted {
        Exhausted {
            recorded: recorded.then(|| "/s/x.drv".to_owned()),
            share_failure: None,
            without_share: true,
            lacks_a_substituter,
            evaluation_forbidden,
        }
    }

    fn failure(recorded: bool, lacks_a_substituter: bool, evaluation_forbidden: bool) -> Failure {
        exhausted(recorded, lacks_a_substituter, evaluation_forbidden).failure()
    }

    #[test]
    fn a_share_that_has_failed_is_named_beside_why_nothing_is_evaluated() {
        for (forbidden, why) in [
            (
                true,
                "this host does not evaluate (EVAL_ONCE_POLICY=recorded-only)",
            ),
            (false, "the step does not say what to evaluate"),
        ] {
            let failure = Exhausted {
                share_failure: Some("cannot be fetched from file:///x (no route)".into()),
                ..exhausted(true, false, forbidden)
            }
            .failure();
            assert_eq!(
                failure.to_string(),
                format!(
                    "/s/x.drv is gone, here and in every substituter that was queried, cannot be fetched from file:///x (no route), and {why}"
                )
            );
            // It may work the next time.
            assert_eq!(failure.meaning, None);
            assert!(failure.hint.unwrap().starts_with("mend the share"));
        }
    }

    #[test]
    fn every_exhausted_step_is_an_infrastructure_failure_with_a_hint() {
        for case in 0..8 {
            let failure = failure(case & 1 != 0, case & 2 != 0, case & 4 != 0);
            assert_eq!(failure.class, Class::Infrastructure);
            assert!(failure.hint.is_some(), "{failure}");
        }
    }

    #[test]
    fn a_record_without_a_share_has_a_hint_at_eval_once_pin() {
        for (without_share, recorded) in [(true, true), (false, true), (true, false)] {
            let exhausted = Exhausted {
                without_share,
                ..exhausted(recorded, false, false)
            };
            let hint = exhausted.failure().hint.unwrap();
            let expected = without_share && recorded;
            assert_eq!(hint.contains("eval-once pin"), expected, "{hint}");
        }
    }

    #[test]
    fn a_retry_is_advised_against_only_where_what_was_recorded_is_gone_for_certain() {
        assert_eq!(failure(true, false, false).meaning, Some(GONE));
        assert_eq!(failure(true, false, true).meaning, Some(GONE));
        assert_eq!(failure(true, true, false).meaning, None);
        assert_eq!(failure(true, true, true).meaning, None);
        assert_eq!(failure(false, false, true).meaning, Some(FORBIDDEN));
        assert_eq!(failure(false, false, false).meaning, None);
    }

    #[test]
    fn a_host_that_does_not_evaluate_says_so() {
        let text = failure(true, false, true).to_string();
        assert!(
            text.contains("/s/x.drv is gone") && text.contains("recorded-only"),
            "{text}"
        );
        let text = failure(true, false, false).to_string();
        assert!(text.contains("does not say what to evaluate"), "{text}");
    }
}
