//! Text that may be printed as it is. Whatever it is made of: only colours and groups of ours are in it, and no credentials.
//!
//! *Architecture invariant:* [`Log`](super::Log) writes nothing else, and only this module can make one. What is ours is a
//! literal (`&'static str`), which no text from elsewhere can be.

use std::borrow::Cow;
use std::fmt::Display;

use crate::counts::mebibytes;
use crate::secret_lines::SecretLines;
use crate::secrets::redacted;
use crate::text::{KeepEscapes, tamed, without_escapes};

/// How much of one line is printed, in bytes: names and messages come from repositories, and may have megabytes.
pub const LINE_AT_MOST: usize = 16 << 10;

/// How much of one message of several lines is printed, in bytes.
pub const MESSAGE_AT_MOST: usize = 256 << 10;

/// How long a word may be that is not cut, in bytes.
const WORD_AT_MOST: usize = 4 << 10;

/// Our name, at the beginning of our lines.
const NAME: &str = "eval-once: ";

const RED: &str = "\u{1b}[31;1m";
const PLAIN: &str = "\u{1b}[0m";

/// The words that mark the kind of a message, in the colours of cargo (and of Nix for `error:`).
const COLOURS: [(&str, &str); 4] = [
    ("error:", RED),
    ("failed", RED),
    ("warning:", "\u{1b}[33;1m"),
    ("hint:", "\u{1b}[36;1m"),
];

/// Whole lines that may be printed as they are.
#[derive(Debug)]
pub struct SafeText {
    text: String,
    /// Whether it may have colours.
    colours: bool,
}

impl SafeText {
    /// No lines. With `colours`, it has ours and those that a program's output has.
    pub(super) fn new(colours: bool) -> Self {
        Self {
            text: String::new(),
            colours,
        }
    }

    /// Whether it has no lines.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.text.as_bytes()
    }

    /// Removes all lines, and gives back the memory of a burst.
    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.text.shrink_to(64 << 10);
    }

    /// Adds a line as it is: without colours, and without a meaning to Buildkite.
    pub fn line(&mut self, line: &str) {
        self.words(line, 0, KeepEscapes::Nothing);
        self.end_line();
    }

    /// Adds a line of a program's output, of which so many bytes are left out already: its colours remain.
    pub fn output_line(&mut self, line: &str, omitted: usize) {
        self.words(line, omitted, self.kept());
        self.end_line();
    }

    /// Adds lines of a program's output, whose `secrets` may take several of them.
    pub fn output(&mut self, lines: &[u8], secrets: &mut SecretLines) {
        let lines = lines.strip_suffix(b"\n").unwrap_or(lines);
        for line in lines.split(|byte| *byte == b'\n') {
            // What is cut off anyway is not decoded: that may be megabytes.
            let (begin, rest) = line.split_at(line.len().min(2 * LINE_AT_MOST));
            let line = String::from_utf8_lossy(begin);
            self.output_line(&secrets.shown(0, &line), rest.len());
        }
    }

    /// Adds a line of a program's output behind the name of what it belongs to.
    pub fn output_line_of(&mut self, name: &str, line: &str, omitted: usize) {
        self.words(name, 0, KeepEscapes::Nothing);
        self.ours("> ");
        self.words(line, omitted, self.kept());
        self.end_line();
    }

    /// Adds a line about what has this name; its first word is painted.
    pub fn words_of(&mut self, name: &str, words: impl Display) {
        self.words(name, 0, KeepEscapes::Nothing);
        self.ours("> ");
        self.painted(&words.to_string());
        self.end_line();
    }

    /// Adds a message behind our name; its first word is painted.
    pub(super) fn message(&mut self, message: &str) {
        let (window, beyond) = begin(message, MESSAGE_AT_MOST + WORD_AT_MOST);
        let shown = redacted(window);
        let (begin, more) = cut(&shown, MESSAGE_AT_MOST);
        let omitted = beyond + more;
        let mut lines = begin.split('\n');
        self.ours(NAME);
        self.painted(lines.next().unwrap_or_default());
        self.end_line();
        lines.for_each(|line| self.line(line.strip_suffix('\r').unwrap_or(line)));
        if omitted > 0 {
            self.omitted(omitted);
        }
    }

    /// Adds a line that begins a group.
    pub(super) fn heading(&mut self, title: &str) {
        self.ours("--- ");
        self.words(title, 0, KeepEscapes::Nothing);
        self.end_line();
    }

    /// Adds a line that begins a group behind our name; in the colour of a failure where it `failed`.
    pub(super) fn group(&mut self, heading: &str, failed: bool) {
        self.ours("--- ");
        self.ours(NAME);
        let painted = failed && self.colours;
        self.ours(if painted { RED } else { "" });
        self.words(heading, 0, KeepEscapes::Nothing);
        self.ours(if painted { PLAIN } else { "" });
        self.end_line();
    }

    /// Adds the line that stands for lines of so many bytes.
    pub fn omitted(&mut self, bytes: usize) {
        self.line(&note(bytes));
    }

    /// Adds the line that opens the group before it.
    pub(super) fn open_group(&mut self) {
        self.ours("^^^ +++\n");
    }

    /// Replaces a terminal's last line; without a line, removes it.
    pub(super) fn status(&mut self, line: Option<&str>) {
        self.ours("\r\u{1b}[K");
        if let Some(line) = line {
            self.ours(NAME);
            self.words(line, 0, KeepEscapes::Nothing);
        }
    }

    fn kept(&self) -> KeepEscapes {
        if self.colours {
            KeepEscapes::Colours
        } else {
            KeepEscapes::Nothing
        }
    }

    fn ours(&mut self, text: &'static str) {
        self.text.push_str(text);
    }

    fn end_line(&mut self) {
        self.text.push('\n');
    }

    /// Adds words within a line, of which so many bytes are left out already. Where they begin it, a blank keeps Buildkite from taking it
    /// for a group.
    fn words(&mut self, text: &str, omitted: usize, keep: KeepEscapes) {
        // Redacted before it is cut: of half a secret it is not seen that it is one.
        let (window, beyond) = begin(text, LINE_AT_MOST + WORD_AT_MOST);
        let tame = if window.contains('\n') {
            tamed(&window.replace('\n', " "), keep).into_owned().into()
        } else {
            tamed(window, keep)
        };
        let shown = redacted(&tame);
        let (begin, more) = cut(&shown, LINE_AT_MOST);
        let begins_line = self.text.is_empty() || self.text.ends_with('\n');
        if begins_line && is_group_mark(begin) {
            self.text.push(' ');
        }
        if more > 0 {
            // The cut may be within a colour, and ends it.
            self.text.push_str(&tamed(begin, keep));
        } else {
            self.text.push_str(begin);
        }
        let omitted = omitted + beyond + more;
        if omitted > 0 {
            self.text.push_str(&note(omitted));
        }
    }

    /// Adds words within a line, of which the first has its colour where it marks the kind of a message.
    fn painted(&mut self, words: &str) {
        let first = words.split(' ').next().unwrap_or_default();
        match COLOURS.iter().find(|(word, _)| *word == first) {
            Some((word, colour)) if self.colours => {
                self.ours(colour);
                self.ours(word);
                self.ours(PLAIN);
                self.words(&words[first.len()..], 0, KeepEscapes::Nothing);
            }
            _ => self.words(words, 0, KeepEscapes::Nothing),
        }
    }
}

/// The begin of a text, of about so many bytes at most, and how many bytes come behind it.
fn cut(text: &str, at_most: usize) -> (&str, usize) {
    let (begin, rest) = begin(text, at_most);
    if rest == 0 {
        return (begin, 0);
    }
    // Not within a word, if there is a choice.
    let word = begin.rfind(char::is_whitespace);
    let end = word.filter(|word| begin.len() - word < WORD_AT_MOST);
    let begin = &begin[..end.unwrap_or(begin.len())];
    (begin, text.len() - begin.len())
}

/// The begin of a text, of so many bytes at most, and how many bytes come behind it.
fn begin(text: &str, at_most: usize) -> (&str, usize) {
    if text.len() <= at_most {
        return (text, 0);
    }
    let end = (0..=at_most).rev().find(|end| text.is_char_boundary(*end));
    let (begin, rest) = text.split_at(end.unwrap_or(0));
    (begin, rest.len())
}

/// Text of our own for standard output, which may be a terminal or a job's log as well: every line as it may stand there, at its whole
/// length.
#[must_use]
pub fn for_output(text: &str) -> String {
    let guarded = |line| {
        let tame = tamed(line, KeepEscapes::Nothing);
        let before = if is_group_mark(&tame) { " " } else { "" };
        format!("{before}{tame}")
    };
    let lines: Vec<String> = text.split('\n').map(guarded).collect();
    lines.join("\n")
}

/// What stands for so many bytes that are not printed.
fn note(omitted: usize) -> String {
    format!("… ({} omitted)", mebibytes(omitted as u64))
}

/// Whether Buildkite would take a line for one that opens, closes or names a group: it does not see its colours.
fn is_group_mark(line: &str) -> bool {
    let plain = if line.contains('\u{1b}') {
        Cow::Owned(without_escapes(line))
    } else {
        Cow::Borrowed(line)
    };
    ["---", "+++", "~~~", "^^^"]
        .iter()
        .any(|mark| plain.starts_with(mark))
}
