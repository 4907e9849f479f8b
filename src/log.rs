//! Everything that is printed to a job's log: our own lines, each behind the program's name, and the output of Nix.
//!
//! *Architecture invariant:* nothing else writes to standard error while something runs, `--report /dev/stderr` apart. So a test
//! can hold all of it. What is written is a [`SafeText`]: text from elsewhere cannot become one without losing what a terminal or
//! Buildkite would take for more than text.
//!
//! Nothing here fails: a log that cannot be written (a closed terminal, a full disk) is no reason to stop a build.

mod safe_text;
mod stderr;

use std::cell::RefCell;
use std::fmt::{self, Display};
use std::io::{self, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::exit::Failure;
use crate::secret_lines::SecretLines;
use crate::secrets::redacted;

pub use safe_text::{LINE_AT_MOST, MESSAGE_AT_MOST, SafeText, for_output};

/// Where our lines go, and which of them are printed. A clone writes to the same place.
#[derive(Clone)]
pub struct Log {
    /// Debug messages are printed: which commands are run (`EVAL_ONCE_LOG=debug`).
    pub debug: bool,
    /// Standard error is a person's terminal, not a job's log.
    pub terminal: bool,
    /// Colours are printed: standard error is a terminal that has them. The agent gives a job one, unless it runs with `--no-pty`.
    pub colours: bool,
    /// Set by the signal that asks us to end: a log that takes nothing any more is not waited for then.
    pub stopped: Arc<AtomicBool>,
    sink: Rc<RefCell<dyn Write>>,
    /// Of the lines that are passed on: a secret may take several.
    secrets: Rc<RefCell<SecretLines>>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("debug", &self.debug)
            .field("terminal", &self.terminal)
            .field("colours", &self.colours)
            .finish_non_exhaustive()
    }
}

impl Default for Log {
    /// Plain lines on standard error.
    fn default() -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let sink = stderr::Stderr::new(io::stderr(), Arc::clone(&stopped));
        Self {
            stopped,
            ..Self::to(Rc::new(RefCell::new(sink)))
        }
    }
}

impl Log {
    /// A log of plain lines that are written to `sink`.
    pub fn to(sink: Rc<RefCell<dyn Write>>) -> Self {
        Self {
            debug: false,
            terminal: false,
            colours: false,
            stopped: Arc::default(),
            sink,
            secrets: Rc::default(),
        }
    }

    /// Prints a message behind our name. A word that says how to take the message has its colour, where there are colours.
    pub fn say(&self, message: impl Display) {
        self.write(|text| text.message(&message.to_string()));
    }

    /// Prints a warning: something is wrong, but stops nothing.
    pub fn warn(&self, message: impl Display) {
        self.say(format_args!("warning: {message}"));
    }

    /// Prints a message that only helps to find out what eval-once does, and why.
    pub fn debug(&self, message: impl Display) {
        if self.debug {
            self.say(format_args!("debug: {message}"));
        }
    }

    /// Begins a group of ours in a job's log, which Buildkite folds up (`---` at the beginning of a line).
    pub fn group(&self, heading: impl Display) {
        self.write(|text| text.group(&heading.to_string(), false));
    }

    /// Begins a group that shows a failure: its heading has the colour of one.
    pub fn failed_group(&self, heading: impl Display) {
        self.write(|text| text.group(&heading.to_string(), true));
    }

    /// Begins a group under this title alone, as where it is all that a job does: `:nix: recording`.
    pub fn heading(&self, title: impl Display) {
        self.write(|text| text.heading(&title.to_string()));
    }

    /// Opens the group that was begun last: it stays open where others come after it.
    pub fn open_group(&self) {
        self.write(SafeText::open_group);
    }

    /// Prints lines that are part of something larger, without our name before them.
    pub fn plain(&self, lines: impl Display) {
        let lines = lines.to_string();
        let lines = redacted(&lines);
        self.write(|text| lines.split('\n').for_each(|line| text.line(line)));
    }

    /// Prints the failure that the program ends with, and its hint.
    pub fn failure(&self, failure: &Failure) {
        self.say(format_args!("error: {failure}"));
        if let Some(hint) = &failure.hint {
            self.say(format_args!("hint: {hint}"));
        }
    }

    /// Prints whole lines of a program's output. Of what is more than text, only colours remain.
    pub fn pass_on(&self, lines: &[u8]) {
        if !lines.is_empty() {
            self.write(|text| text.output(lines, &mut self.secrets.borrow_mut()));
        }
    }

    /// Replaces the line that a terminal shows last; none removes it.
    pub fn replace_line(&self, line: Option<&str>) {
        self.write(|text| text.status(line));
    }

    /// An empty text for this log.
    #[must_use]
    pub fn text(&self) -> SafeText {
        SafeText::new(self.colours)
    }

    /// Prints a text, and empties it.
    pub fn print(&self, text: &mut SafeText) {
        let _ = self.sink.borrow_mut().write_all(text.as_bytes());
        text.clear();
    }

    fn write(&self, add: impl FnOnce(&mut SafeText)) {
        let mut text = self.text();
        add(&mut text);
        self.print(&mut text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Class;
    use crate::text::hostile::{bytes, is_tame, text};
    use proptest::prelude::*;

    /// What `print` writes to a log.
    fn written(print: impl FnOnce(&Log)) -> String {
        let sink = Rc::new(RefCell::new(Vec::new()));
        print(&Log::to(sink.clone()));
        String::from_utf8(sink.take()).unwrap()
    }

    #[test]
    fn a_heading_has_no_name_before_it() {
        assert_eq!(
            written(|log| log.heading(":nix: recording")),
            "--- :nix: recording\n"
        );
    }

    #[test]
    fn a_group_is_one_line_whatever_its_heading_names() {
        assert_eq!(
            written(|log| log.group("evaluating a\n+++ b")),
            "--- eval-once: evaluating a +++ b\n"
        );
    }

    #[test]
    fn the_first_line_of_a_message_has_our_name_and_no_line_opens_a_group() {
        assert_eq!(
            written(|log| log.say("a\n+++ b\n  c\n\u{1b}[31m--- d")),
            "eval-once: a\n +++ b\n  c\n --- d\n"
        );
    }

    #[test]
    fn a_name_with_a_line_break_within_an_escape_sequence_opens_no_group() {
        let shown = written(|log| {
            let mut text = log.text();
            text.words_of("\u{1b}[31\n\u{1b}--- a", "b");
            text.output_line("\u{1b}[31\n\u{1b}--- c", 0);
            log.print(&mut text);
        });
        assert_eq!(shown, " --- a> b\n --- c\n");
    }

    #[test]
    fn a_secret_of_several_lines_is_hidden_in_a_message() {
        let shown = written(|log| log.say("a\nmachine h\nlogin u\npassword s3cretword\nb"));
        assert!(
            !shown.contains("s3cretword") && shown.ends_with("b\n"),
            "{shown}"
        );
    }

    #[test]
    fn a_word_that_says_how_to_take_a_message_has_its_colour_where_there_are_colours() {
        let print = |log: &Log| {
            log.warn("a hint: b");
            log.failure(&Failure::new(Class::Build, "\u{1b}[32mc").hint("d"));
            log.failed_group("e failed\u{7}");
            log.say("failed (build)\nfailed");
        };
        let coloured = |log: &Log| {
            print(&Log {
                colours: true,
                ..log.clone()
            });
        };
        assert_eq!(
            written(print),
            "eval-once: warning: a hint: b\neval-once: error: c\neval-once: hint: d\n--- eval-once: e failed\n\
             eval-once: failed (build)\nfailed\n"
        );
        assert_eq!(
            written(coloured),
            "eval-once: \u{1b}[33;1mwarning:\u{1b}[0m a hint: b\neval-once: \u{1b}[31;1merror:\u{1b}[0m c\n\
             eval-once: \u{1b}[36;1mhint:\u{1b}[0m d\n--- eval-once: \u{1b}[31;1me failed\u{1b}[0m\n\
             eval-once: \u{1b}[31;1mfailed\u{1b}[0m (build)\nfailed\n"
        );
    }

    #[test]
    fn a_debug_message_is_written_only_where_it_is_asked_for() {
        assert_eq!(written(|log| log.debug("x")), "");
        let debug = |log: &Log| {
            Log {
                debug: true,
                ..log.clone()
            }
            .debug("x");
        };
        assert_eq!(written(debug), "eval-once: debug: x\n");
    }

    #[test]
    fn of_what_a_program_prints_text_and_colours_are_passed_on() {
        let printed = b"\x1b[1m a\r\n--- b\n\n  c\xff";
        assert_eq!(
            written(|log| log.pass_on(printed)),
            " a\n --- b\n\n  c\u{fffd}\n"
        );
        let coloured = |log: &Log| {
            Log {
                colours: true,
                ..log.clone()
            }
            .pass_on(printed);
        };
        assert_eq!(
            written(coloured),
            "\u{1b}[1m a\u{1b}[0m\n --- b\n\n  c\u{fffd}\n"
        );
        assert_eq!(written(|log| log.pass_on(b"")), "");
    }

    proptest! {
        #[test]
        fn whatever_is_printed_only_colours_and_groups_of_ours_are_in_it(
            text in text(), name in text(), colours: bool, bytes in bytes(),
        ) {
            let printed = written(|log| {
                let log = Log { colours, debug: true, ..log.clone() };
                log.say(&text);
                log.say(format_args!("failed {text}"));
                log.warn(&text);
                log.debug(&text);
                log.plain(&text);
                log.failure(&Failure::new(Class::Build, &text).hint(&name));
                log.pass_on(&bytes);
                log.pass_on(text.as_bytes());
                log.replace_line(Some(&text));
                log.replace_line(None);
                let mut more = log.text();
                more.line(&text);
                more.output_line(&text, 0);
                more.output_line(&text, 7);
                more.output_line_of(&name, &text, 0);
                more.words_of(&name, &text);
                more.omitted(3);
                log.print(&mut more);
            });
            is_tame(&printed, 0, colours)?;
            let printed = written(|log| {
                let log = Log { colours, ..log.clone() };
                log.group(&text);
                log.failed_group(&text);
                log.heading(&text);
                log.open_group();
            });
            is_tame(&printed, 4, colours)?;
            prop_assert_eq!(printed.lines().count(), 4);
            is_tame(&for_output(&text), 0, false)?;
        }
    }

    #[test]
    fn what_is_cut_shows_no_half_of_a_secret() {
        for before in LINE_AT_MOST - 60..LINE_AT_MOST {
            let before = "x".repeat(before);
            let long = format!("{before}\"https://user:hunter2secretlongpassword@h\"{before}");
            let shown = written(|log| log.plain(&long));
            assert!(!shown.contains("hunter2"), "{}", before.len());
        }
    }

    #[test]
    fn a_colour_that_is_cut_off_ends_where_it_is_cut() {
        let line = format!("\u{1b}[31m{}", "x".repeat(LINE_AT_MOST));
        let shown = written(|log| {
            let log = Log {
                colours: true,
                ..log.clone()
            };
            log.pass_on(line.as_bytes());
        });
        assert!(
            shown.contains("x\u{1b}[0m… ("),
            "{}",
            &shown[LINE_AT_MOST - 9..]
        );
    }

    #[test]
    fn what_is_long_is_cut_and_how_much_is_said() {
        let long = "x".repeat(1 << 20);
        let line = format!("{}… (1 MiB omitted)\n", "x".repeat(LINE_AT_MOST));
        assert_eq!(written(|log| log.plain(&long)), line);
        assert_eq!(written(|log| log.pass_on(long.as_bytes())), line);
        let short = written(|log| log.failed_group(&long));
        assert!(short.len() < LINE_AT_MOST + 100);
        let lines = "y\n".repeat(1 << 20);
        let said = written(|log| log.say(&lines));
        assert!(said.len() < MESSAGE_AT_MOST + 100);
        assert!(
            said.ends_with("y\n… (1.8 MiB omitted)\n")
                || said.ends_with("y\n\n… (1.8 MiB omitted)\n")
        );
    }
}
