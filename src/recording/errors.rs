//! What does not evaluate, as policy: which errors are expected (`expect-errors`). What the others do (`on-error`) is applied
//! where steps are made.
//!
//! The evaluation knows nothing of it: its errors are divided afterwards.

use super::evaluate::exclusions::covers;
use super::evaluate::gaps::{LISTED, Note, next_to, pattern};
use super::{AttrError, EvaluationResult, RecordingRequest};
use crate::counts::number;
use crate::nix::AttrPath;

/// The attributes with an error, by what they count as: each is in one list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ErrorLists {
    /// Those that do not evaluate, without the expected ones.
    pub(super) evaluation: Vec<AttrError>,
    /// Those that do not evaluate, and are expected not to.
    pub(super) expected: Vec<AttrError>,
    /// Those that evaluate, but whose metadata makes no step.
    pub(super) refused: Vec<AttrError>,
}

impl ErrorLists {
    /// The errors of an evaluation, where these paths are expected not to evaluate.
    pub(super) fn of(evaluated: &EvaluationResult, expected: &[AttrPath]) -> Self {
        let errors = evaluated.errors.iter().cloned();
        let (expected, evaluation) = errors.partition(|it| is_expected(it, expected));
        Self {
            evaluation,
            expected,
            refused: evaluated.refused.clone(),
        }
    }

    /// The number of all of them.
    pub(super) fn len(&self) -> usize {
        self.evaluation.len() + self.expected.len() + self.refused.len()
    }
}

/// Whether this evaluation error is expected, by these paths.
pub(in crate::recording) fn is_expected(error: &AttrError, expected: &[AttrPath]) -> bool {
    expected.iter().any(|path| covers(path, &error.attr))
}

/// What `expect-errors` names that has no error: nothing at all, or only attributes that evaluate.
pub(super) fn without_error(evaluated: &EvaluationResult, request: &RecordingRequest) -> Vec<Note> {
    let expected = request.expect_errors.iter();
    let unused = expected.filter(|path| !evaluated.errors.iter().any(|it| covers(path, &it.attr)));
    unused
        .filter_map(|path| note(path, evaluated, request))
        .take(LISTED)
        .collect()
}

/// The line about a path of `expect-errors` that matches no error.
fn note(path: &AttrPath, evaluated: &EvaluationResult, request: &RecordingRequest) -> Option<Note> {
    let targets = evaluated.targets.iter().map(|found| &found.attr);
    let evaluate = targets.chain(evaluated.refused.iter().map(|refused| &refused.attr));
    let key = format!("`expect-errors: {}`", pattern(path.names()));
    let matched = evaluate.clone().filter(|attr| covers(path, attr)).count();
    if matched > 0 {
        let what = match matched {
            1 => "an error, and the attribute evaluates".to_owned(),
            _ => format!("errors, and all {} evaluate", number(matched, "attribute")),
        };
        return Some(Note {
            text: format!("{key} expects {what}"),
            hint: Some("remove it from `expect-errors`".into()),
            is_warning: false,
        });
    }
    // Below an attribute that is excluded, or that does not evaluate, nothing could be found.
    let is_hidden = (1..=path.names().len()).any(|length| {
        let above = AttrPath::new(path.names()[..length].to_vec());
        let fails = evaluated.errors.iter().any(|error| error.attr == above);
        fails
            || request
                .exclude
                .iter()
                .any(|excluded| covers(excluded, &above))
    });
    if is_hidden {
        return None;
    }
    let errors = evaluated.errors.iter().map(|error| &error.attr);
    let known = evaluate.chain(errors).chain(&evaluated.gaps.sets);
    let known: Vec<AttrPath> = known.cloned().collect();
    Some(Note {
        text: format!("{key} matches nothing"),
        hint: next_to(path, &request.root.attr, &known),
        is_warning: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::DrvPath;
    use crate::recording::evaluate::gaps::Gaps;
    use crate::recording::pipeline::fixtures::request;
    use crate::recording::{FoundTarget, Meta};

    fn paths(dotted: &[&str]) -> Vec<AttrPath> {
        let paths = dotted.iter();
        paths.map(|path| AttrPath::parse(path).unwrap()).collect()
    }

    fn errors(dotted: &[&str]) -> Vec<AttrError> {
        let error = |attr| AttrError {
            attr,
            message: None,
        };
        paths(dotted).into_iter().map(error).collect()
    }

    fn evaluated(targets: &[&str], failing: &[&str], refused: &[&str]) -> EvaluationResult {
        let found = |attr| FoundTarget {
            attr,
            drv: DrvPath::parse(&format!("/nix/store/{}-a.drv", "0".repeat(32))).unwrap(),
            meta: Meta::default(),
        };
        EvaluationResult {
            targets: paths(targets).into_iter().map(found).collect(),
            errors: errors(failing),
            refused: errors(refused),
            ..EvaluationResult::default()
        }
    }

    #[test]
    fn an_error_is_expected_where_a_path_matches_it_or_a_set_that_it_is_in() {
        let evaluated = evaluated(
            &["py.good"],
            &["py.old", "py.set.x", "py.set.y", "rb.old", "rb.older"],
            &["py.refused"],
        );
        for (expected, found) in [
            (&[][..], &[][..]),
            (&["py.old"], &["py.old"]),
            (&["*.old"], &["py.old", "rb.old"]),
            (&["py.set"], &["py.set.x", "py.set.y"]),
            (&["py"], &["py.old", "py.set.x", "py.set.y"]),
            (&["old", "py.old.x", "py.\"*\".z"], &[]),
            (&["*.set.x", "rb"], &["py.set.x", "rb.old", "rb.older"]),
        ] {
            let lists = ErrorLists::of(&evaluated, &paths(expected));
            assert_eq!(lists.expected, errors(found), "{expected:?}");
            let all = lists.evaluation.len() + lists.expected.len();
            assert_eq!(all, evaluated.errors.len(), "{expected:?}");
            assert_eq!(lists.refused, evaluated.refused, "{expected:?}");
            assert_eq!(lists.len(), all + 1);
        }
    }

    /// The lines about these paths, as far as there are any: each with its hint, warnings with an exclamation mark.
    fn notes(expected: &[&str], evaluated: &EvaluationResult, exclude: &[&str]) -> Vec<String> {
        let mut request = RecordingRequest {
            expect_errors: paths(expected),
            exclude: paths(exclude),
            ..request()
        };
        request.root.attr = AttrPath::default();
        let in_words = |note: Note| {
            let mark = if note.is_warning { "!" } else { "" };
            format!("{mark}{}: {}", note.text, note.hint.unwrap_or_default())
        };
        let notes = without_error(evaluated, &request);
        notes.into_iter().map(in_words).collect()
    }

    #[test]
    fn a_path_that_is_not_needed_any_longer_has_a_note() {
        let evaluated = evaluated(&["py.a", "py.b", "mended"], &["rb.old", "bad"], &["odd"]);
        assert_eq!(notes(&["rb.old", "*.old", "rb"], &evaluated, &[]), [""; 0]);
        let remove = "remove it from `expect-errors`";
        for (path, what) in [
            ("mended", "an error, and the attribute evaluates"),
            ("odd", "an error, and the attribute evaluates"),
            ("py", "errors, and all 2 attributes evaluate"),
            ("py.*", "errors, and all 2 attributes evaluate"),
        ] {
            let expected = format!("`expect-errors: {path}` expects {what}: {remove}");
            assert_eq!(notes(&[path], &evaluated, &[]), [expected]);
        }
    }

    #[test]
    fn a_path_that_matches_nothing_is_a_warning_with_a_hint_unless_it_is_hidden() {
        let mut evaluated = evaluated(&["py.a", "py.b"], &["rb.old", "bad"], &[]);
        for (path, hint) in [
            ("rb.olt", "did you mean `rb.old`?"),
            ("py.zope", "attributes of py: a, b"),
            ("nothing", "attributes: bad, py, rb"),
        ] {
            let expected = format!("!`expect-errors: {path}` matches nothing: {hint}");
            assert_eq!(notes(&[path], &evaluated, &[]), [expected]);
        }
        // What is not there cannot be known below what fails or is excluded.
        assert_eq!(notes(&["bad.x", "bad.*.y"], &evaluated, &[]), [""; 0]);
        assert_eq!(notes(&["go.x"], &evaluated, &["go"]), [""; 0]);
        evaluated.gaps = Gaps {
            sets: paths(&["unmarked"]),
            ..Gaps::default()
        };
        assert_eq!(
            notes(&["unmarked.x"], &evaluated, &[]),
            [
                "!`expect-errors: unmarked.x` matches nothing: attributes below unmarked are not recorded"
            ]
        );
        let many: Vec<String> = (0..30).map(|i| format!("none{i}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(notes(&many, &evaluated, &[]).len(), LISTED);
    }
}
