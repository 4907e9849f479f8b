//! Evaluations of which no pipeline is made: the recording fails, whatever its steps would be.

use super::errors::ErrorLists;
use super::notices::print_notes;
use super::{EvaluationResult, OnError, RecordingRequest, Target};
use crate::counts::{RecordingCounts, number};
use crate::exit::{Class, Failure};
use crate::log::Log;

/// Fails where there is no target and no error either: such a recording is more likely a mistake than intended.
pub(super) fn refuse_nothing(
    evaluated: &EvaluationResult,
    request: &RecordingRequest,
    log: &Log,
) -> Result<(), Failure> {
    if !(evaluated.targets.is_empty()
        && evaluated.errors.is_empty()
        && evaluated.refused.is_empty())
    {
        return Ok(());
    }
    print_notes(&evaluated.gaps.notes(), log);
    Err(Failure::new(
        Class::Evaluation,
        format_args!("there are no targets in {}", request.description()),
    )
    .hint(if request.exclude.is_empty() {
        "mark sets with `recurseForDerivations = true`, or look into every set with `recurse: all`"
    } else {
        "check `exclude`; mark sets with `recurseForDerivations = true`, or look into every set with `recurse: all`"
    }))
}

/// Fails where nothing evaluates and no step would be red for it: the build would be green, and have built nothing.
pub(super) fn refuse_errors_alone(
    targets: &[Target],
    errors: &ErrorLists,
    request: &RecordingRequest,
) -> Result<(), Failure> {
    let is_seen = !errors.evaluation.is_empty() && request.on_error != OnError::Report;
    if is_seen || !targets.is_empty() || !errors.refused.is_empty() {
        return Ok(());
    }
    let hint = if errors.evaluation.is_empty() {
        "remove from `expect-errors` what is to evaluate"
    } else {
        "use `on-error: step` to see each error in a red step"
    };
    Err(Failure::new(
        Class::Evaluation,
        format_args!(
            "nothing in {} evaluates ({}), and no step would be red",
            request.description(),
            number(errors.len(), "attribute")
        ),
    )
    .hint(hint))
}

/// Fails where there are errors that are not expected, and errors fail the recording.
pub(super) fn fail_on_errors(
    counts: RecordingCounts,
    on_error: OnError,
    undone: &str,
) -> Result<(), Failure> {
    let Some(errors) = counts.errors().filter(|_| on_error == OnError::Fail) else {
        return Ok(());
    };
    Err(Failure::new(
        Class::Evaluation,
        format_args!("{errors} (see above), and `on-error: fail` is set: {undone}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::AttrError;
    use crate::recording::evaluate::gaps::Gaps;
    use crate::recording::pipeline::fixtures::{path, request, target};
    use std::cell::RefCell;
    use std::rc::Rc;

    #[test]
    fn errors_fail_a_recording_only_with_on_error_fail() {
        let counts = |evaluation_errors, refused| RecordingCounts {
            attributes: 5,
            targets: 1,
            evaluation_errors,
            expected_errors: 7,
            refused,
        };
        for (counts, on_error) in [
            (counts(0, 0), OnError::Fail),
            (counts(2, 1), OnError::Step),
            (counts(2, 1), OnError::Report),
        ] {
            assert!(fail_on_errors(counts, on_error, "").is_ok());
        }
        let failure = fail_on_errors(counts(2, 1), OnError::Fail, "nothing is uploaded");
        let failure = failure.unwrap_err();
        assert_eq!(failure.class, Class::Evaluation);
        assert_eq!(
            failure.to_string(),
            "2 evaluation errors, 1 refused (see above), and `on-error: fail` is set: nothing is uploaded"
        );
    }

    #[test]
    fn a_recording_without_targets_and_errors_fails_and_says_what_it_did_not_look_at() {
        let sink = Rc::new(RefCell::new(Vec::new()));
        let log = Log::to(sink.clone());
        let mut evaluated = EvaluationResult {
            gaps: Gaps {
                sets: vec![path(&["unmarked"])],
                ..Gaps::default()
            },
            ..EvaluationResult::default()
        };
        let failure = refuse_nothing(&evaluated, &request(), &log).unwrap_err();
        assert_eq!(failure.class, Class::Evaluation);
        assert!(
            failure.to_string().starts_with("there are no targets in "),
            "{failure}"
        );
        let printed = String::from_utf8(sink.borrow().clone()).unwrap();
        assert!(printed.contains("unmarked"), "{printed}");
        let excluding = RecordingRequest {
            exclude: vec![path(&["a"])],
            ..request()
        };
        let failure = refuse_nothing(&evaluated, &excluding, &log).unwrap_err();
        assert!(failure.hint.unwrap().contains("`exclude`"));
        evaluated.errors.push(AttrError {
            attr: path(&["a"]),
            message: None,
        });
        assert!(refuse_nothing(&evaluated, &request(), &log).is_ok());
    }

    #[test]
    fn a_recording_of_errors_alone_fails_unless_a_step_is_red_for_it() {
        let error = |name: &str| AttrError {
            attr: path(&[name]),
            message: None,
        };
        let lists = |evaluation: usize, expected: usize, refused: usize| ErrorLists {
            evaluation: vec![error("a"); evaluation],
            expected: vec![error("b"); expected],
            refused: vec![error("c"); refused],
        };
        let refuse = |targets: &[Target], lists: &ErrorLists, on_error| {
            let request = RecordingRequest {
                on_error,
                ..request()
            };
            refuse_errors_alone(targets, lists, &request)
        };
        for on_error in [OnError::Step, OnError::Fail] {
            assert!(refuse(&[], &lists(1, 1, 0), on_error).is_ok());
            assert!(refuse(&[], &lists(0, 1, 0), on_error).is_err());
        }
        assert!(refuse(&[], &lists(1, 1, 1), OnError::Report).is_ok());
        let target = target(0, &["a"]);
        assert!(refuse(&[target], &lists(1, 1, 0), OnError::Report).is_ok());
        let failure = refuse(&[], &lists(2, 1, 0), OnError::Report).unwrap_err();
        assert_eq!(failure.class, Class::Evaluation);
        assert_eq!(
            failure.to_string(),
            "nothing in p of ci.nix evaluates (3 attributes), and no step would be red"
        );
        assert!(failure.hint.unwrap().contains("`on-error: step`"));
    }
}
