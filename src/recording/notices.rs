//! What a recording prints of its findings while it goes on: evaluation errors, what it did not look at, what may go wrong later.

use super::AttrError;
use super::evaluate::gaps::Note;
use super::pipeline::steps::PlannedPipeline;
use crate::counts::number;
use crate::log::Log;
use crate::nix::message::in_one_line;

/// How many errors of a kind are printed; the pipeline has a step for each of them.
const ERRORS_AT_MOST: usize = 10;

/// The message of an evaluation error that was not evaluated again to get Nix's own: that costs a process for each.
pub(super) const MESSAGE_IN_STEP: &str = "its step prints the message";

/// Prints the attributes that have an error of this kind.
pub(super) fn print_errors(kind: &str, errors: &[AttrError], log: &Log) {
    for error in errors.iter().take(ERRORS_AT_MOST) {
        let message = error.message.as_deref().map(in_one_line);
        log.say(format_args!(
            "{kind}: {}: {}",
            error.attr,
            message.unwrap_or_else(|| MESSAGE_IN_STEP.into())
        ));
    }
    if let Some(more) = errors
        .len()
        .checked_sub(ERRORS_AT_MOST)
        .filter(|more| *more > 0)
    {
        log.say(format_args!("{kind}: and {more} more"));
    }
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
    use crate::nix::AttrPath;
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
    fn ten_errors_are_printed_in_one_line_each_and_the_others_counted() {
        let lines = |count| printed(|log| print_errors("refused", &errors(count), log));
        assert_eq!(lines(0), "");
        let ten = lines(10);
        assert_eq!(ten.lines().count(), 10, "{ten}");
        assert!(ten.starts_with("eval-once: refused: a0: its step prints the message\n"));
        assert!(ten.contains("eval-once: refused: a1: line 1"), "{ten}");
        let twelve = lines(12);
        assert!(twelve.starts_with(&ten));
        assert!(
            twelve.ends_with("eval-once: refused: and 2 more\n"),
            "{twelve}"
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
