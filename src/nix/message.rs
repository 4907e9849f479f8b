//! The message with which a Nix program ends: which part of its output that is, and its parts.
//!
//! Read off 2.8, 2.26 and 2.34. All of them begin it with `error:` at the beginning of a line, and indent what follows by seven
//! blanks. 2.8 prints the message first. 2.26 and 2.34 first print how the evaluation came there, in frames that begin with `…`,
//! and then the message, behind an indented `error:`. All may add its place in an expression, with the lines around it.

/// By how much Nix indents what belongs to a message.
const INDENT: &str = "       ";

/// The begin of the message about an `abort`; the rest is the expression's own text.
const ABORT: &str = "evaluation aborted with the following error message: '";

/// The line before a page that a server sent instead of a file: what follows is not Nix's text.
const BODY: &str = "response body:";

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
    /// builtin`.
    pub frames: Vec<String>,
}

impl Message {
    /// The last message in the output of a program, from which escape sequences were removed.
    ///
    /// A line of a trace or of a builder may look like the begin of a message. But Nix's last message comes after it, and has
    /// only indented lines: so the last line that begins with `error:` is Nix's.
    #[must_use]
    pub fn last(printed: &str) -> Option<Self> {
        let begins = |line: &str| is_begin(line);
        let mut start = None;
        let mut at = 0;
        for line in printed.split_inclusive('\n') {
            if begins(line) {
                start = Some(at);
            }
            at += line.len();
        }
        let mut lines = printed[start?..].lines();
        let first = lines.next()?.strip_prefix("error:")?;
        let rest = lines.take_while(|line| continues(line));
        let lines = std::iter::once(first.strip_prefix(' ').unwrap_or(first)).chain(rest);
        Some(Self::of(&lines.collect::<Vec<_>>()))
    }

    /// A message that consists of these lines; the first without the `error:` before it.
    fn of(lines: &[&str]) -> Self {
        let mut frames = Vec::new();
        let mut body = lines;
        let second = lines.iter().skip(1).find(|line| !line.trim().is_empty());
        if lines[0].trim().is_empty() && second.is_some_and(|line| frame(line).is_some()) {
            let is_message = |pair: &[&str]| pair[0].trim().is_empty() && indented_error(pair[1]);
            let at = lines.windows(2).position(is_message);
            let end = at.map_or(lines.len(), |at| at + 1);
            frames.extend(lines[..end].iter().copied().filter_map(frame));
            body = &lines[end..];
        }
        let Some((first, rest)) = body.split_first() else {
            return Self {
                frames,
                ..Self::default()
            };
        };
        let first = first.trim_start_matches(INDENT);
        let first = first.strip_prefix("error:").map_or(first, str::trim_start);
        let rest: Vec<&str> = rest
            .iter()
            .map(|line| line.strip_prefix(INDENT).unwrap_or(line.trim()).trim_end())
            .filter(|line| !line.contains("use '--show-trace'"))
            .collect();
        let end = (0..rest.len()).find(|&at| is_place(&rest[at..]) || rest[at] == BODY);
        let (text, around) = rest.split_at(end.unwrap_or(rest.len()));
        let text = [&[first], text].concat().join("\n");
        Self {
            text: text.trim().to_owned(),
            place: around.first().and_then(|line| place_of(line)),
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

/// Nix's last message in one line: its first line with the place; an ellipsis stands for the other lines.
#[must_use]
pub fn in_one_line(message: &str) -> String {
    let lines: Vec<&str> = message.lines().map(str::trim_end).collect();
    let place = (0..lines.len()).find(|&at| is_place(&lines[at..]));
    let mut text = lines[..place.unwrap_or(lines.len())]
        .iter()
        .map(|line| line.trim())
        .filter(|line| !line.is_empty());
    let first = text.next().unwrap_or_default();
    let more = if text.next().is_some() { " …" } else { "" };
    match place.and_then(|at| place_of(lines[at])) {
        Some(place) if !first.contains(&place) => format!("{first}{more}, at {place}"),
        _ => format!("{first}{more}"),
    }
}

/// Whether a line begins a message of Nix's.
#[must_use]
pub fn is_begin(line: &str) -> bool {
    line.strip_prefix("error:")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\n', '\r']))
}

/// Whether a line may belong to a message that began before it.
#[must_use]
pub fn continues(line: &str) -> bool {
    line.trim().is_empty() || line.starts_with(' ') || line.starts_with("(use '--show-trace'")
}

fn indented_error(line: &str) -> bool {
    line.strip_prefix(INDENT).is_some_and(is_begin)
}

/// The first line of a frame, where a line is one.
fn frame(line: &str) -> Option<String> {
    let frame = line.strip_prefix(INDENT)?.strip_prefix("… ")?;
    Some(frame.trim_end().to_owned())
}

/// Whether these lines begin with a place in an expression: `at FILE:LINE:COLUMN:`, and the lines around it.
fn is_place(lines: &[&str]) -> bool {
    let is_code = |line: &str| {
        let line = line.trim_start();
        let number = line.trim_start_matches(|c: char| c.is_ascii_digit());
        number.starts_with('|')
    };
    let Some((first, rest)) = lines.split_first() else {
        return false;
    };
    let after = rest.iter().find(|line| !line.trim().is_empty());
    split_place(first).is_some() && after.is_none_or(|line| is_code(line))
}

/// `FILE:LINE:COLUMN` of a line that names a place.
fn split_place(line: &str) -> Option<&str> {
    let place = line.trim().strip_prefix("at ")?;
    let place = place.strip_suffix(':').unwrap_or(place);
    let mut parts = place.rsplitn(3, ':');
    let is_number = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit());
    (is_number(parts.next()?) && is_number(parts.next()?)).then_some(place)
}

fn place_of(line: &str) -> Option<String> {
    let place = split_place(line)?;
    (!place.starts_with('«')).then(|| place.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        ] {
            for (number, printed) in printed(text).iter().enumerate() {
                let message = Message::last(printed).unwrap();
                assert_eq!(message.text, text, "{printed}");
                assert_eq!(message.is_expressions_own(), number == 1, "{printed}");
            }
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
        let ours = "error: no\n       at «string»:1:2:\n            1| x\n             |  ^\n";
        assert_eq!(Message::last(ours).unwrap().place, None);
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
        assert_eq!(in_one_line("a\nerror: b"), "a …");
        assert_eq!(in_one_line("a\n\n"), "a");
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
