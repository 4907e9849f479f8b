//! Text for annotations. Names and messages come from repositories nobody has to trust: whatever they hold, it is shown, and
//! nothing of it is Markdown, HTML, an emoji or an escape sequence.

use std::fmt::Write as _;

/// How much of a name is shown, in characters.
pub const NAME_AT_MOST: usize = 200;

/// `text` as code within a line, shortened to what a name may have.
#[must_use]
pub fn code(text: &str) -> String {
    format!("<code>{}</code>", inert(&shortened(text, NAME_AT_MOST)))
}

/// The beginning of `text`, at most so many characters of it; an ellipsis stands for the rest.
#[must_use]
pub fn shortened(text: &str, at_most: usize) -> String {
    match text.char_indices().nth(at_most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// `text` as characters that stand for themselves: all that could mean something is written as its number.
#[must_use]
pub fn inert(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            // A blank line would end the HTML around it.
            '\n' => plain.push_str("&#10;"),
            ' ' | ',' => plain.push(character),
            _ if character.is_control() => plain.push('\u{fffd}'),
            _ if character.is_ascii() && !character.is_ascii_alphanumeric() => {
                let _ = write!(plain, "&#{};", u32::from(character));
            }
            _ => plain.push(character),
        }
    }
    plain
}
