//! What a recording prints of its findings while it goes on: evaluation errors, what it did not look at, what may go wrong later.

use std::collections::BTreeSet;

use super::AttrError;
use super::evaluate::gaps::Note;
use super::pipeline::steps::PlannedPipeline;
use crate::counts::number;
use crate::log::Log;
use crate::nix::AttrPath;
use crate::nix::message::in_one_line;

/// How many errors of a kind are printed with their messages; the pipeline has a step for each of them.
pub(in crate::recording) const ERRORS_AT_MOST: usize = 10;

/// How many of the others are named.
const NAMES_AT_MOST: usize = 10;

/// The message of an evaluation error that was not evaluated again to get Nix's own: that costs a process for each.
pub(super) const MESSAGE_IN_STEP: &str = "its step prints the message";

/// Prints an attribute that has an error of this kind.
pub(in crate::recording) fn print_error(kind: &str, error: &AttrError, log: &Log) {
    let message = error.message.as_deref().map(in_one_line);
    log.say(format_args!(
        "{kind}: {}: {}",
        error.attr,
        message.unwrap_or_else(|| MESSAGE_IN_STEP.into())
    ));
}

/// Prints the attributes that have an error of this kind, except for those that were `printed` as they came: the first of them with
/// their messages, and some of the others by name.
pub(super) fn print_errors(
    kind: &str,
    errors: &[AttrError],
    printed: &BTreeSet<AttrPath>,
    log: &Log,
) {
    let mut rest = errors.iter().filter(|error| !printed.contains(&error.attr));
    for error in rest
        .by_ref()
        .take(ERRORS_AT_MOST.saturating_sub(printed.len()))
    {
        print_error(kind, error, log);
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
            printed(|log| print_errors("refused", &errors(count), &before, log))
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
        use crate::buildkite::pipeline::{CommandStep, Plugin};
        use crate::recording::pipeline::placed_step::PlacedStep;
        let steps = |count: usize| {
            let with_plugin = |i: usize| {
                let mut planned = PlacedStep::numbered(i, None);
                planned.step = CommandStep {
                    plugins: vec![Plugin::Reference("docker#v5".into())],
                    ..planned.step
                };
                if i > 0 {
                    planned
                        .step
                        .env
                        .insert("EVAL_ONCE_STEP".into(), "{}".into());
                }
                planned
            };
            PlannedPipeline {
                steps: (0..=count).map(with_plugin).collect(),
                targets: Vec::new(),
                errors: Vec::new(),
                omitted: 0,
            }
        };
        let lines = |count| printed(|log| warn_of_plugins(&steps(count), log));
        assert_eq!(lines(0), "");
        assert!(lines(1).starts_with("eval-once: warning: 1 step has a plugin of its own; "));
        assert!(lines(2).starts_with("eval-once: warning: 2 steps have a plugin of their own; "));
    }
}
