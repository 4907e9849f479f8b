//! Text from elsewhere, made safe to show: without escape sequences of a terminal, without invisible characters, and shortened.
//! What else it may mean where it is shown is not known here.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Which escape sequences remain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepEscapes {
    /// Colours, bold and the like, for a reader that shows them; they end with the line.
    Colours,
    /// None.
    Nothing,
}

/// One line as a log may hold it behind a prefix of ours: it moves no cursor, rings no bell, sets no title, and is no picture, link
/// or time of Buildkite's (`ESC ] 1338`, `ESC ] 1339`, `ESC _ bk;t=`), whatever a builder printed. Control characters go, with
/// the sequences that they begin. [Unseen](is_unseen) characters become `\u{fffd}`: a log names derivations, which must not be
/// shown in another order than they have. Tabs remain.
#[must_use]
pub fn tamed(line: &str, keep: KeepEscapes) -> Cow<'_, str> {
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~' | b'\t');
    let wild = |c: char| c != '\t' && is_hidden(c);
    if line.bytes().all(is_plain) || !line.contains(wild) {
        return Cow::Borrowed(line);
    }
    let mut tame = String::with_capacity(line.len());
    let mut coloured = false;
    let mut rest = line;
    while let Some(at) = rest.find(wild) {
        tame.push_str(&rest[..at]);
        let (sequence, after) = split_sequence(&rest[at..]);
        if sequence.starts_with(is_unseen) {
            tame.push(char::REPLACEMENT_CHARACTER);
        } else if keep == KeepEscapes::Colours && is_colour(sequence) {
            tame.push_str(sequence);
            coloured = true;
        }
        rest = after;
    }
    tame.push_str(rest);
    if coloured {
        tame.push_str("\u{1b}[0m");
    }
    Cow::Owned(tame)
}

/// `text` without escape sequences. Everything else remains, line breaks as well.
#[must_use]
pub fn without_escapes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\u{1b}') {
        plain.push_str(&rest[..at]);
        rest = split_sequence(&rest[at..]).1;
    }
    plain.push_str(rest);
    plain
}

/// Splits off a control character; an escape character together with its sequence.
fn split_sequence(text: &str) -> (&str, &str) {
    let mut characters = text.char_indices().skip(1);
    let first = text.chars().next().map_or(0, char::len_utf8);
    if !text.starts_with('\u{1b}') {
        return text.split_at(first);
    }
    let after = |(at, c): (usize, char)| at + c.len_utf8();
    let end = match characters.next() {
        // Parameters, and then one character that says what they mean.
        Some((_, '[')) => characters
            .find(|(_, c)| !matches!(c, '\u{20}'..='\u{3f}'))
            .map(after),
        // A text that ends with a bell or with ESC \, but at the latest with its line.
        Some((_, ']' | 'P' | 'X' | '^' | '_')) => {
            let mut before = ' ';
            characters
                .find(|(_, c)| {
                    let ends = matches!(c, '\u{7}' | '\u{9c}') || (before, *c) == ('\u{1b}', '\\');
                    before = *c;
                    ends || *c == '\n'
                })
                .map(|(at, c)| if c == '\n' { at } else { after((at, c)) })
        }
        Some((at, '\n')) => Some(at),
        Some(other) => Some(after(other)),
        None => None,
    };
    text.split_at(end.unwrap_or(text.len()))
}

fn is_colour(sequence: &str) -> bool {
    sequence
        .strip_prefix("\u{1b}[")
        .and_then(|rest| rest.strip_suffix('m'))
        .is_some_and(|parameters| {
            parameters
                .chars()
                .all(|c| c.is_ascii_digit() || c == ';' || c == ':')
        })
}

/// Whether a character is invisible, but reorders the text around it, breaks a line, or makes two names differ that look alike:
/// Unicode's format characters, its line and paragraph separators, and blank letters. (Rust's own tables do not have them.)
#[must_use]
pub fn is_unseen(character: char) -> bool {
    matches!(
        character,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

/// JSON of the same meaning, in which every character is escaped that a terminal or a reader would take for something else. JSON has
/// them only within its strings; what writes it (`serde_json`) leaves those beyond `\u{1f}` as they are.
#[must_use]
pub fn seen_json(json: &str) -> Cow<'_, str> {
    let wild = |c: char| c != '\n' && is_hidden(c);
    if !json.contains(wild) {
        return Cow::Borrowed(json);
    }
    let mut seen = String::with_capacity(json.len());
    for c in json.chars() {
        if wild(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(seen, "\\u{unit:04x}");
            }
        } else {
            seen.push(c);
        }
    }
    Cow::Owned(seen)
}

/// Whether a reader does not see a character, but what it does: a control character, or one that is [unseen](is_unseen).
#[must_use]
pub fn is_hidden(character: char) -> bool {
    character.is_control() || is_unseen(character)
}

/// The begin of `text`, at most so many bytes; where there is more, an ellipsis follows.
#[must_use]
pub fn begin_of(text: &str, at_most: usize) -> Cow<'_, str> {
    if text.len() <= at_most {
        return Cow::Borrowed(text);
    }
    let end = (0..=at_most).rev().find(|end| text.is_char_boundary(*end));
    Cow::Owned(format!("{}…", &text[..end.unwrap_or(0)]))
}

#[cfg(test)]
pub(crate) mod hostile;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn colours_remain_where_they_are_shown_and_nothing_else_does() {
        let line = "a\u{1b}[31mred\u{1b}[0m\u{1b}[2K\u{1b}]1339;url=x\u{7}\tb\u{8}\u{9b}c\u{1b}]0;t\u{1b}\\d\u{1b}cE";
        assert_eq!(tamed(line, KeepEscapes::Nothing), "ared\tbcdE");
        assert_eq!(
            tamed(line, KeepEscapes::Colours),
            "a\u{1b}[31mred\u{1b}[0m\tbcdE\u{1b}[0m"
        );
        assert_eq!(tamed("plain ä", KeepEscapes::Nothing), "plain ä");
        assert_eq!(
            tamed("a\u{202e}b\u{9b}31m", KeepEscapes::Colours),
            "a\u{fffd}b31m"
        );
        assert_eq!(tamed("\u{1b}_bk;t=1\u{7}a", KeepEscapes::Colours), "a");
        assert_eq!(without_escapes("a\u{1b}[1mb\n\u{1b}[0m c"), "ab\n c");
        assert_eq!(without_escapes("a\u{1b}"), "a");
    }

    #[test]
    fn json_is_the_same_and_hides_nothing() {
        for text in ["a\u{7f}\u{9b}\u{202e}\u{e0041}\n\u{1b}é", "plain"] {
            let json = serde_json::to_string_pretty(&[text]).unwrap();
            let seen = seen_json(&json);
            assert!(!seen.contains(|c: char| c.is_control() && c != '\n' || is_unseen(c)));
            let read: Vec<String> = serde_json::from_str(&seen).unwrap();
            assert_eq!(read, [text]);
        }
    }

    #[test]
    fn the_begin_of_a_text_has_at_most_so_many_bytes_and_ends_between_characters() {
        assert_eq!(begin_of("äöü", 6), "äöü");
        assert_eq!(begin_of("äöüß", 5), "äö…");
        assert_eq!(begin_of("ä", 0), "…");
    }

    proptest! {
        #[test]
        fn no_control_character_remains(line in ".*", wild in "[\u{1b}\\[\\]m;0-9\u{7}\u{9b}\u{202e}x]*") {
            let line = format!("{line}{wild}{line}");
            let tame = tamed(&line, KeepEscapes::Nothing);
            prop_assert!(!tame.contains(|c: char| c.is_control() && c != '\t' || is_unseen(c)));
            let coloured = tamed(&line, KeepEscapes::Colours);
            prop_assert_eq!(without_escapes(&coloured), tame.into_owned());
        }
    }
}
