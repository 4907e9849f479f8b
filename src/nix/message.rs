//! The message with which a Nix program ends: which part of its output that is, and its parts.
//!
//! Read off 2.8, 2.26 and 2.34, of `nix-instantiate` and of `nix repl` on a pipe. All of them begin it with `error:` at the
//! beginning of a line, and indent what follows by seven blanks. 2.8 prints the message first. 2.26 and 2.34 first print how the
//! evaluation came there, in frames that begin with `…`, and then the message, behind an indented `error:`. All may add its place
//! in an expression, with the lines around it.
//!
//! The text may be an expression's own (`throw`), which may hold anything: `error: `, `trace: `, `at /x:1:1:`, a whole message of
//! Nix's. So nothing in it is a border: what is not certainly Nix's belongs to it. Only its end is ever cut.

use std::collections::VecDeque;

use crate::secrets::{redacted, shortened};
use crate::text::begin_of;

/// By how much Nix indents what belongs to a message.
const INDENT: &str = "       ";

/// The begin of the message about an `abort`; the rest is the expression's own text.
const ABORT: &str = "evaluation aborted with the following error message: '";

/// The line before a page that a server sent instead of a file: what follows is not Nix's text.
const BODY: &str = "response body:";

/// What a line begins with that Nix adds to a message, not indented (2.8).
const TRACE_NOTE: &str = "(use '--show-trace'";

/// How much of a message is kept, in bytes, its frames apart.
pub const MESSAGE_AT_MOST: usize = 64 << 10;

/// How many frames are kept, the innermost ones, and how much of each, in characters: `addErrorContext` makes as many as an
/// expression wants.
const FRAMES_AT_MOST: usize = 200;
const FRAME_AT_MOST: usize = 1_000;

/// How much of a message is shown in one line of a log, in characters, without its place.
const ONE_LINE_AT_MOST: usize = 300;

/// A message of Nix's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// Its text, of one or several lines, without Nix's indentation. It may be the user's own, which may hold anything, even
    /// `error: `.
    pub text: String,
    /// Its place in an expression: `FILE:LINE:COLUMN`; none where that is an expression of ours, or of Nix's own.
    pub place: Option<String>,
    /// The lines around that place, and Nix's suggestions, as it prints them; or the page that a server sent.
    pub around: String,
    /// How the evaluation came there, from the outermost frame to the innermost (from 2.2x on): `while calling the 'throw'
    /// builtin`. Of very many the innermost.
    pub frames: Vec<String>,
}

impl Message {
    /// The last message in the output of a program, from which escape sequences were removed.
    #[must_use]
    pub fn last(printed: &str) -> Option<Self> {
        let mut gathered = MessageLines::default();
        printed.lines().for_each(|line| gathered.add(line));
        gathered.message()
    }

    /// The message of this body: what Nix prints behind its `error:`.
    fn of(body: &str, frames: Vec<String>) -> Self {
        let lines: Vec<&str> = body.lines().collect();
        let end = (0..lines.len()).find(|&at| is_place(&lines[at..]) || is_page(&lines, at));
        let (text, mut around) = lines.split_at(end.unwrap_or(lines.len()));
        let place = around.first().and_then(|line| split_place(line));
        let is_ours = place.is_some_and(|place| place.starts_with('«'));
        if is_ours {
            // Its lines would say nothing, and each may be as long as all of our expression.
            let code = around[1..].iter().take_while(|line| is_code(line));
            around = &around[1 + code.count()..];
        }
        Self {
            text: text.join("\n").trim().to_owned(),
            place: place.filter(|_| !is_ours).map(str::to_owned),
            around: around.join("\n").trim_end().to_owned(),
            frames,
        }
    }

    /// Whether this is the text of an `abort` or `throw`, as far as Nix says so: for an `abort` always, for a `throw` from 2.2x on,
    /// where not too many frames come before it.
    #[must_use]
    pub fn is_expressions_own(&self) -> bool {
        let innermost = self.frames.last().map(String::as_str);
        self.text.starts_with(ABORT)
            || matches!(
                innermost,
                Some("while calling the 'throw' builtin" | "while calling the 'abort' builtin")
            )
    }

    /// Whether the message contains a second `error:`, as at the end of frames. The text before it may come from the expression
    /// (`addErrorContext`), so no part of the message counts as the system's.
    #[must_use]
    pub fn is_ambiguous(&self) -> bool {
        let lines: Vec<&str> = self.text.lines().collect();
        lines
            .windows(2)
            .any(|pair| pair[0].trim().is_empty() && is_begin(pair[1].trim_start()))
    }

    /// Whether the expression itself names the store path that is missing, as far as Nix says so (from 2.2x on).
    #[must_use]
    pub fn is_of_named_path(&self) -> bool {
        self.frames.last().map(String::as_str) == Some("while calling the 'storePath' builtin")
    }

    /// The message with its place and the lines around it, as Nix prints them.
    #[must_use]
    pub fn whole(&self) -> String {
        if self.around.is_empty() {
            return self.text.clone();
        }
        format!("{}\n{}", self.text, self.around)
    }
}

/// The last message in lines that come one by one, in bounded memory.
///
/// A line of a trace or of a builder may look like the begin of a message. But Nix's last message comes after it, and has
/// only indented lines: so the last line that begins with `error:` is Nix's.
#[derive(Debug, Clone, Default)]
pub struct MessageLines {
    part: MessagePart,
    frames: VecDeque<String>,
    /// What stands behind the last `error:` that is a border, without Nix's indentation.
    body: String,
    /// More of the body is not kept.
    is_full: bool,
    /// The line before was blank; or a place of a frame, which has no lines of an expression behind it where its file is gone.
    after_frame: bool,
}

/// The part of a message that the next line belongs to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum MessagePart {
    /// None: no message has begun.
    #[default]
    None,
    /// What follows an `error:` that stands alone: frames, or a text that begins with a blank line.
    Begin,
    /// Frames; or, as long as no second `error:` has come, a text that looks like them.
    Frames,
    Body,
    /// None: the message has ended.
    End,
}

impl MessageLines {
    /// Adds a line, without its end.
    pub fn add(&mut self, line: &str) {
        let is_blank = line.trim().is_empty();
        if let Some(first) = after_error(line) {
            let part = if first.is_empty() {
                MessagePart::Begin
            } else {
                MessagePart::Body
            };
            *self = Self {
                part,
                ..Self::default()
            };
            self.push(first);
        } else if !continues(line) || line.starts_with(TRACE_NOTE) {
            self.end();
        } else if self.part == MessagePart::Frames
            && self.after_frame
            && let Some(first) = indented_error(line)
        {
            self.part = MessagePart::Body;
            self.body.clear();
            self.is_full = false;
            self.push(first);
        } else {
            if self.part == MessagePart::Begin && !is_blank {
                self.part = match frame(line) {
                    Some(_) => MessagePart::Frames,
                    None => MessagePart::Body,
                };
            }
            if self.part == MessagePart::Frames
                && let Some(frame) = frame(line)
            {
                if self.frames.len() == FRAMES_AT_MOST {
                    self.frames.pop_front();
                }
                self.frames
                    .push_back(begin_of(frame, FRAME_AT_MOST).into_owned());
            }
            self.push(line);
        }
        self.after_frame = is_blank || line.starts_with(INDENT) && split_place(line).is_some();
    }

    /// Notes that the last line goes on, and that its rest is not known.
    pub fn cut(&mut self) {
        if !matches!(self.part, MessagePart::None | MessagePart::End) && !self.is_full {
            self.body.push('…');
            self.is_full = true;
        }
    }

    /// The message so far; none where none has begun.
    #[must_use]
    pub fn message(&self) -> Option<Message> {
        let frames = match self.part {
            MessagePart::None => return None,
            // No text has come behind them: they are the text.
            MessagePart::Frames => Vec::new(),
            MessagePart::Begin | MessagePart::Body | MessagePart::End => {
                self.frames.iter().cloned().collect()
            }
        };
        Some(Message::of(&self.body, frames))
    }

    fn push(&mut self, line: &str) {
        if self.is_full || matches!(self.part, MessagePart::None | MessagePart::End) {
            return;
        }
        if !self.body.is_empty() {
            self.body.push('\n');
        }
        let line = line.strip_prefix(INDENT).unwrap_or(line.trim()).trim_end();
        let room = MESSAGE_AT_MOST.saturating_sub(self.body.len());
        self.is_full = line.len() > room;
        self.body.push_str(&begin_of(line, room));
    }

    fn end(&mut self) {
        match self.part {
            MessagePart::None => {}
            MessagePart::Frames => {
                self.frames.clear();
                self.part = MessagePart::End;
            }
            MessagePart::Begin | MessagePart::Body | MessagePart::End => {
                self.part = MessagePart::End;
            }
        }
    }
}

/// A message in one line, at most so many characters: its text, then its place. An ellipsis stands for what has no room. A secret is
/// hidden first: the half of one would not be known for what it is.
#[must_use]
pub fn in_one_line_of(message: &str, at_most: usize) -> String {
    let message = redacted(message);
    let lines: Vec<&str> = message.lines().map(str::trim_end).collect();
    let at = (0..lines.len()).find(|&at| is_place(&lines[at..]));
    let words = lines[..at.unwrap_or(lines.len())]
        .iter()
        .map(|line| line.trim())
        .filter(|line| !line.is_empty());
    let text = words.collect::<Vec<_>>().join(" ");
    let place = at.and_then(|at| split_place(lines[at]));
    let place = match place.filter(|place| !text.contains(place)) {
        Some(place) => format!(", at {place}"),
        None => String::new(),
    };
    let room = at_most.saturating_sub(place.chars().count());
    let text = shortened(&text, room.max(at_most / 2));
    shortened(&(text + &place), at_most)
}

/// A message in one line of a log.
#[must_use]
pub fn in_one_line(message: &str) -> String {
    in_one_line_of(message, ONE_LINE_AT_MOST)
}

/// Whether a line begins a message of Nix's.
#[must_use]
pub fn is_begin(line: &str) -> bool {
    after_error(line).is_some()
}

/// What stands behind the `error:` of a line that begins a message.
fn after_error(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("error:")?;
    (rest.is_empty() || rest.starts_with([' ', '\n', '\r'])).then(|| rest.trim_start())
}

/// Whether a line may belong to a message that began before it.
#[must_use]
pub fn continues(line: &str) -> bool {
    line.trim().is_empty() || line.starts_with(' ') || line.starts_with(TRACE_NOTE)
}

fn indented_error(line: &str) -> Option<&str> {
    line.strip_prefix(INDENT).and_then(after_error)
}

/// The first line of a frame, where a line is one.
fn frame(line: &str) -> Option<&str> {
    let frame = line.strip_prefix(INDENT)?.strip_prefix("… ")?;
    Some(frame.trim_end())
}

/// Whether these lines are a place in an expression, `at FILE:LINE:COLUMN:`, with the lines around it, and what Nix may add to
/// it. An expression's text that has such lines and goes on after them is all text.
fn is_place(lines: &[&str]) -> bool {
    let Some((first, rest)) = lines.split_first() else {
        return false;
    };
    let mut after = rest.iter().skip_while(|line| is_code(line));
    split_place(first).is_some()
        && after
            .next()
            .is_none_or(|line| NOTES.iter().any(|note| line.starts_with(note)))
}

/// What Nix adds behind a place.
const NOTES: [&str; 2] = ["Did you mean ", "note: "];

/// Whether a line is blank, or one of an expression as Nix shows it: `3|   x = 1;`, `|   ^`.
fn is_code(line: &str) -> bool {
    let line = line.trim_start();
    let number = line.trim_start_matches(|c: char| c.is_ascii_digit());
    line.is_empty() || number.starts_with('|')
}

/// Whether a page begins at this line that a server sent instead of a file.
fn is_page(lines: &[&str], at: usize) -> bool {
    lines[at] == BODY && lines[..at].iter().any(|line| line.contains("HTTP error"))
}

/// `FILE:LINE:COLUMN` of a line that names a place.
fn split_place(line: &str) -> Option<&str> {
    let place = line.trim().strip_prefix("at ")?;
    let place = place.strip_suffix(':').unwrap_or(place);
    let mut parts = place.rsplitn(3, ':');
    let is_number = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit());
    (is_number(parts.next()?) && is_number(parts.next()?)).then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_of_which_no_lines_can_be_shown_are_no_part_of_the_message() {
        let message = Message::last(
            "error:\n       … while evaluating the 'name' attribute of a derivation\n\n       … while calling the 'import' builtin\n         at /s/x-pinned/default.nix:1:35:\n       error: path '/s/x-pinned/late.nix' does not exist\n",
        );
        let message = message.unwrap();
        assert_eq!(message.text, "path '/s/x-pinned/late.nix' does not exist");
        assert_eq!(message.frames.len(), 2);
    }

    /// How a Nix prints a message: 2.8, and 2.26 or later with the frame of a `throw`.
    fn printed(text: &str) -> [String; 2] {
        let indented = text.replace('\n', "\n       ");
        [
            format!("error: {indented}\n"),
            format!(
                "error:\n       … while calling the 'throw' builtin\n         at /x/ci.nix:3:8:\n            2| let\n            3|   th = throw \"error: x\";\n             |        ^\n\n       error: {indented}\n"
            ),
        ]
    }

    #[test]
    fn a_message_is_complete_whatever_the_user_throws() {
        for text in [
            "the plugin reported error: disk missing",
            "line one\nerror: line two\n\n  indented\nlast: No space left on device",
            "a\n\nerror: b",
            "look at /x:1:2: it is odd",
            "look\nat /x:1:1:\n     1| foo\n      |  ^\nmore of mine",
            "look\nat /x:1:1:\nmore of mine",
            "a\n… while evaluating x\n\n(stack trace truncated; use '--show-trace' to show it)\n\nerror: b",
            "see (use '--show-trace' to show detailed location information)\nend",
            "error: a",
            "error:\n… while evaluating x\n\nerror: b",
            "trace: a\nwarning: b\nhint: c",
            "no page\nresponse body:\nmine",
        ] {
            for (number, printed) in printed(text).iter().enumerate() {
                let message = Message::last(printed).unwrap();
                assert_eq!(message.text, text, "{printed}");
                assert_eq!(message.whole(), text, "{printed}");
                assert_eq!(message.is_expressions_own(), number == 1, "{printed}");
            }
        }
    }

    #[test]
    fn a_text_that_looks_like_frames_is_a_text_where_no_message_follows_it() {
        for after in ["", "warning: x\n"] {
            let printed = format!("error:\n       … while evaluating x\n       more\n{after}");
            let message = Message::last(&printed).unwrap();
            assert_eq!(message.text, "… while evaluating x\nmore");
            assert!(message.frames.is_empty());
        }
    }

    #[test]
    fn a_trace_and_a_builder_are_no_message() {
        let printed = "trace: hello\nerror: traced\nerror: a builder's\nsh: 1: no\nerror: x\n(use '--show-trace' to show detailed location information)\n";
        assert_eq!(Message::last(printed).unwrap().text, "x");
        assert_eq!(
            Message::last("trace: error: x\nwarning: error: y\n       error: z\n"),
            None
        );
    }

    #[test]
    fn what_is_cut_shows_no_half_of_a_secret() {
        for before in 270..300 {
            let message = format!(
                "{} https://user:hunter2hunter2hunter2@h",
                "x".repeat(before)
            );
            let line = in_one_line(&message);
            assert!(!line.contains("hunter2"), "{line}");
        }
    }

    #[test]
    fn the_place_is_no_part_of_the_text() {
        let old = "error: attribute 'nope' missing\n\n       at /x/t.nix:8:10:\n\n            7|   as = 1;\n            8|   miss = d.nope;\n             |          ^\n       Did you mean one of name or type?\n";
        let new = "error: attribute 'nope' missing\n       at /x/t.nix:8:10:\n            7|   as = 1;\n            8|   miss = d.nope;\n             |          ^\n       Did you mean one of name or type?\n";
        for printed in [old, new] {
            let message = Message::last(printed).unwrap();
            assert_eq!(message.text, "attribute 'nope' missing");
            assert_eq!(message.place.as_deref(), Some("/x/t.nix:8:10"));
            assert!(message.around.ends_with("type?"), "{}", message.around);
            assert_eq!(
                in_one_line(&message.whole()),
                "attribute 'nope' missing, at /x/t.nix:8:10"
            );
        }
        for blank in ["", "\n"] {
            let ours = format!(
                "error: no\n{blank}       at «string»:1:2:\n{blank}            1| x\n             |  ^\n       Did you mean c?\n"
            );
            let message = Message::last(&ours).unwrap();
            assert_eq!(message.place, None);
            assert_eq!(message.whole(), "no\nDid you mean c?");
        }
    }

    #[test]
    fn an_abort_and_a_throw_are_the_expressions_own_text() {
        let abort = "error: evaluation aborted with the following error message: 'x: Broken pipe'";
        assert!(Message::last(abort).unwrap().is_expressions_own());
        let other = "error:\n       … while calling the 'readFile' builtin\n         at /x:1:2:\n            1| x\n\n       error: opening file '/x': No such file or directory\n";
        let message = Message::last(other).unwrap();
        assert!(!message.is_expressions_own());
        assert_eq!(message.text, "opening file '/x': No such file or directory");
        let cut = "error:\n       … while doing 0\n\n       (stack trace truncated; use '--show-trace' to show the full, detailed trace)\n\n       error: x: Broken pipe\n";
        let message = Message::last(cut).unwrap();
        assert!(!message.is_expressions_own());
        assert_eq!(message.text, "x: Broken pipe");
    }

    #[test]
    fn a_frame_that_imitates_a_message_makes_it_ambiguous() {
        let forged = "error:\n       … one\n\n       error: x: Broken pipe\n\n       error: attribute 'a' missing\n       at /x:1:2:\n            1| x\n";
        assert!(Message::last(forged).unwrap().is_ambiguous());
        for plain in [
            "error: x: Broken pipe\n",
            "error:\n       … one\n\n       error: x: Broken pipe\n",
            "error: builder for '/x.drv' failed with exit code 1;\n       last 2 log lines:\n       >\n       > error: y\n",
        ] {
            assert!(!Message::last(plain).unwrap().is_ambiguous(), "{plain}");
        }
    }

    #[test]
    fn what_is_longer_than_a_line_ends_with_an_ellipsis() {
        for (message, at_most, line) in [
            ("a\nerror: b\n\n  c", 300, "a error: b c"),
            ("a\n\n", 300, "a"),
            ("abcdef", 5, "abcd…"),
            (
                "abcdefghijklmnop\nat /x:1:2:\n  1| x",
                24,
                "abcdefghijkl…, at /x:1:2",
            ),
            ("abcdef\nat /xxxxxxxxx:1:2:", 12, "abcdef, at …"),
            ("at /x:1:2: abc\nat /x:1:2:", 300, "at /x:1:2: abc"),
        ] {
            assert_eq!(in_one_line_of(message, at_most), line);
        }
        let long = in_one_line(&"x\n".repeat(500));
        assert_eq!(long.chars().count(), ONE_LINE_AT_MOST);
    }

    proptest! {
        #[test]
        fn no_text_of_a_user_is_cut(text in "[a-z]([a-z: \n]|error: |\nerror: ){0,40}[a-z]") {
            // Blanks at the end of a line are not kept.
            let text = text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
            for printed in printed(&text) {
                prop_assert_eq!(&Message::last(&printed).unwrap().text, &text);
            }
        }
    }
}
