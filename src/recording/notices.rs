//! What a recording prints of its findings while it goes on: evaluation errors, what it did not look at, what may go wrong later.

use std::collections::BTreeSet;

use super::error_line::{ERRORS_AT_MOST, MESSAGE_IN_STEP, print_error};
use super::errors::ErrorLists;
use super::evaluate::gaps::Note;
use super::pipeline::excess::Excess;
use super::pipeline::steps::PlannedPipeline;
use super::{AttrError, OnError};
use crate::counts::number;
use crate::log::Log;
use crate::nix::AttrPath;

/// How many of the others are named.
const NAMES_AT_MOST: usize = 10;

/// The same, where no step runs.
pub(super) const MESSAGE_UNKNOWN: &str = "its message is not known";

/// Prints the attributes that have an error of this kind, except for those that were `printed` as they came: the first of them with
/// their messages, and some of the others by name. An unknown message is `otherwise`.
pub(super) fn print_errors(
    kind: &str,
    errors: &[AttrError],
    printed: &BTreeSet<AttrPath>,
    otherwise: &str,
    log: &Log,
) {
    let mut rest = errors.iter().filter(|error| !printed.contains(&error.attr));
    for error in rest
        .by_ref()
        .take(ERRORS_AT_MOST.saturating_sub(printed.len()))
    {
        print_error(kind, error, otherwise, log);
    }
    let rest: Vec<String> = rest.map(|error| error.attr.to_string()).collect();
    if rest.is_empty() {
        return;
    }
    let more = if rest.len() > NAMES_AT_MOST {
        ", …"
    } else {
        ""
    };
    let names = &rest[..rest.len().min(NAMES_AT_MOST)];
    log.say(format_args!(
        "{kind}: and {} more: {}{more}",
        rest.len(),
        names.join(", ")
    ));
}

/// Prints the errors, by what they count as, except for evaluation errors that were `printed` as they came. Errors without steps are a warning: nothing else in the build is red because of them.
pub(super) fn print_error_lists(
    errors: &ErrorLists,
    printed: &BTreeSet<AttrPath>,
    on_error: OnError,
    log: &Log,
) {
    let none = BTreeSet::new();
    let reports = on_error == OnError::Report;
    let otherwise = if reports {
        MESSAGE_UNKNOWN
    } else {
        MESSAGE_IN_STEP
    };
    print_errors(
        "evaluation error",
        &errors.evaluation,
        printed,
        otherwise,
        log,
    );
    if reports && !errors.evaluation.is_empty() {
        let count = errors.evaluation.len();
        let have = if count == 1 { "has" } else { "have" };
        log.warn(format_args!(
            "{} {have} no step, because `on-error: report` is set",
            number(count, "evaluation error")
        ));
        log.say("hint: name those that are expected in `expect-errors`");
    }
    print_errors(
        "expected error",
        &errors.expected,
        &none,
        MESSAGE_UNKNOWN,
        log,
    );
    print_errors("refused", &errors.refused, &none, MESSAGE_IN_STEP, log);
}

/// Prints what the recording did not look at, and what its keys name and the repository does not have.
pub(super) fn print_notes(notes: &[Note], log: &Log) {
    for note in notes {
        if note.is_warning {
            log.warn(&note.text);
        } else {
            log.say(&note.text);
        }
        if let Some(hint) = &note.hint {
            log.say(format_args!("hint: {hint}"));
        }
    }
}

/// Warns of steps that are commands and have plugins of their own.
pub(super) fn warn_of_plugins(pipeline: &PlannedPipeline, log: &Log) {
    let count = pipeline.commands_with_plugins();
    if count > 0 {
        log.warn(format_args!(
            "{}; if that has a command hook, the agent runs it instead of eval-once, which then builds nothing",
            if count == 1 {
                "1 step has a plugin of its own".to_owned()
            } else {
                format!("{} have a plugin of their own", number(count, "step"))
            }
        ));
        log.say("hint: use `emit: plugin`, which builds before the hooks of other plugins");
    }
}

/// Warns of a pipeline that has too many jobs, where it is only printed.
pub(super) fn warn_of_excess(excess: &Excess, log: &Log) {
    log.say(excess.by_attribute());
    log.warn(format_args!("an upload would be refused: {excess}"));
    log.say(format_args!("hint: {}", excess.hint()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    /// What `print` prints.
    fn printed(print: impl FnOnce(&Log)) -> String {
        let sink = Rc::new(RefCell::new(Vec::new()));
        print(&Log::to(sink.clone()));
        let bytes = sink.borrow().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn errors(count: usize) -> Vec<AttrError> {
        let error = |i: usize| AttrError {
            attr: AttrPath::new(vec![format!("a{i}")]),
            message: (i > 0).then(|| format!("line {i}\nand another")),
        };
        (0..count).map(error).collect()
    }

    #[test]
    fn ten_errors_are_printed_in_one_line_each_and_the_others_named_and_counted() {
        let printed_as_they_came = |count: usize| {
            let errors = errors(count);
            errors.into_iter().map(|error| error.attr).collect()
        };
        let lines = |count, before| {
            let before = printed_as_they_came(before);
            printed(|log| print_errors("refused", &errors(count), &before, MESSAGE_IN_STEP, log))
        };
        assert_eq!(lines(0, 0), "");
        let ten = lines(10, 0);
        assert_eq!(ten.lines().count(), 10, "{ten}");
        assert!(ten.starts_with("eval-once: refused: a0: its step prints the message\n"));
        assert!(ten.contains("eval-once: refused: a1: line 1"), "{ten}");
        let twelve = lines(12, 0);
        assert!(twelve.starts_with(&ten));
        let more = "eval-once: refused: and 2 more: a10, a11\n";
        assert!(twelve.ends_with(more), "{twelve}");
        // What came first is not printed again.
        assert_eq!(lines(3, 3), "");
        assert_eq!(lines(12, 10), more);
        let nine = lines(12, 3);
        assert_eq!(nine.lines().count(), 8, "{nine}");
        assert!(nine.starts_with("eval-once: refused: a3: "), "{nine}");
        let many = lines(30, 10);
        assert!(
            many.ends_with("and 20 more: a10, a11, a12, a13, a14, a15, a16, a17, a18, a19, …\n"),
            "{many}"
        );
    }

    #[test]
    fn errors_without_steps_are_a_warning_and_expected_ones_are_not() {
        let lines = |on_error, evaluation, expected| {
            let lists = ErrorLists {
                evaluation: errors(evaluation),
                expected: errors(expected),
                refused: Vec::new(),
            };
            printed(|log| print_error_lists(&lists, &BTreeSet::new(), on_error, log))
        };
        let red = "eval-once: evaluation error: a0: its step prints the message\n";
        assert_eq!(lines(OnError::Step, 1, 0), red);
        let warning = "eval-once: evaluation error: a0: its message is not known\n\
            eval-once: warning: 1 evaluation error has no step, because `on-error: report` is set\n\
            eval-once: hint: name those that are expected in `expect-errors`\n";
        assert_eq!(lines(OnError::Report, 1, 0), warning);
        let several = lines(OnError::Report, 12, 0);
        assert!(
            several.contains("error: and 2 more: a10, a11\n"),
            "{several}"
        );
        assert!(
            several.contains(" 12 evaluation errors have no step"),
            "{several}"
        );
        for on_error in [OnError::Step, OnError::Fail, OnError::Report] {
            assert_eq!(
                lines(on_error, 0, 2),
                "eval-once: expected error: a0: its message is not known\n\
                 eval-once: expected error: a1: line 1 and another\n"
            );
        }
    }

    #[test]
    fn a_note_is_a_warning_where_a_key_names_what_does_not_exist() {
        let note = |is_warning, hint: Option<&str>| Note {
            text: "text".into(),
            hint: hint.map(str::to_owned),
            is_warning,
        };
        let lines = printed(|log| print_notes(&[note(true, Some("do")), note(false, None)], log));
        assert_eq!(
            lines,
            "eval-once: warning: text\neval-once: hint: do\neval-once: text\n"
        );
    }

    #[test]
    fn steps_that_are_commands_and_have_plugins_are_counted_in_a_warning() {
        use crate::buildkite::pipeline::Plugin;
        use crate::recording::pipeline::placed_step::PlacedStep;
        use crate::recording::pipeline::steps::StepKeys;
        let steps = |count: usize| {
            let with_plugin = |i: usize| {
                let mut planned = PlacedStep::numbered(i, None);
                planned.step.plugins = vec![Plugin::Reference("docker#v5".into())];
                if i > 0 {
                    planned
                        .step
                        .env
                        .insert("EVAL_ONCE_STEP".into(), "{}".into());
                }
                planned
            };
            PlannedPipeline {
                keys: StepKeys::default(),
                followers: Vec::new(),
                shared: Vec::new(),
                steps: (0..=count).map(with_plugin).collect(),
                targets: Vec::new(),
                errors: ErrorLists::default(),
                omitted: 0,
            }
        };
        let lines = |count| printed(|log| warn_of_plugins(&steps(count), log));
        assert_eq!(lines(0), "");
        assert!(lines(1).starts_with("eval-once: warning: 1 step has a plugin of its own; "));
        assert!(lines(2).starts_with("eval-once: warning: 2 steps have a plugin of their own; "));
    }
}
