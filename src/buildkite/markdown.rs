//! Text for annotations. Names and messages come from repositories that cannot be trusted: all that they contain is shown, and
//! none of it is Markdown, HTML, an emoji or an escape sequence. Credentials are not shown.

use std::fmt::Write as _;

use crate::secrets::{redacted, shortened};
use crate::text::is_unseen;

/// How much of a name is shown, in characters.
pub const NAME_AT_MOST: usize = 200;

/// `text` as code within a line, shortened to [`NAME_AT_MOST`].
#[must_use]
pub fn code(text: &str) -> String {
    format!("<code>{}</code>", inert(&shortened(text, NAME_AT_MOST)))
}

/// `html` as a link to a job on the build's page; without a link where `job` cannot be a job's id.
///
/// `html` is [`inert`] already, or made of text that is.
#[must_use]
pub fn job_link(job: &str, html: &str) -> String {
    let is_plain = |it: char| it.is_ascii_alphanumeric() || it == '-';
    if (1..=64).contains(&job.len()) && job.chars().all(is_plain) {
        format!("<a href=\"#{job}\">{html}</a>")
    } else {
        html.to_owned()
    }
}

/// `text` as characters that stand for themselves: a character that could have a meaning is written as its number, and an
/// invisible one, which could change what is seen beside it, as `\u{fffd}`.
#[must_use]
pub fn inert(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in redacted(text).chars() {
        push_inert(&mut plain, character);
    }
    plain
}

/// The beginning of `text`, [`inert`], in at most so many bytes: a character can become six. An ellipsis stands for the rest.
#[must_use]
pub fn inert_within(text: &str, bytes: usize) -> String {
    let mut plain = String::new();
    for character in redacted(text).chars() {
        let before = plain.len();
        push_inert(&mut plain, character);
        if plain.len() > bytes.saturating_sub('…'.len_utf8()) {
            plain.truncate(before);
            plain.push('…');
            break;
        }
    }
    plain
}

fn push_inert(plain: &mut String, character: char) {
    match character {
        // A blank line would end the HTML around it.
        '\n' => plain.push_str("&#10;"),
        ' ' | ',' => plain.push(character),
        _ if character.is_control() || is_unseen(character) => plain.push('\u{fffd}'),
        _ if character.is_ascii() && !character.is_ascii_alphanumeric() => {
            let _ = write!(plain, "&#{};", u32::from(character));
        }
        _ => plain.push(character),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::hostile::text;
    use crate::text::is_hidden;
    use proptest::prelude::*;

    #[test]
    fn invisible_characters_are_replaced() {
        for hidden in [
            '\u{202e}',
            '\u{2066}',
            '\u{2028}',
            '\u{200b}',
            '\u{feff}',
            '\u{ad}',
            '\u{e0041}',
            '\u{85}',
        ] {
            assert_eq!(inert(&format!("a{hidden}b")), "a\u{fffd}b", "{hidden:?}");
        }
        assert_eq!(inert("größe, 大 λ"), "größe, 大 λ");
    }

    proptest! {
        #[test]
        fn nothing_of_a_text_is_markup_or_hidden(text in text(), bytes in 0_usize..100) {
            for shown in [inert(&text), inert_within(&text, bytes.max(3)), code(&text)] {
                let shown = shown.trim_start_matches("<code>").trim_end_matches("</code>");
                let mut rest = shown;
                while let Some(at) = rest.find('&') {
                    let number = rest[at..].strip_prefix("&#").and_then(|it| it.split_once(';'));
                    prop_assert!(number.is_some_and(|(it, _)| it.parse::<u32>().is_ok_and(|it| it == 10 || it > 31)));
                    rest = number.map_or("", |(_, rest)| rest);
                }
                let other = shown.replace("&#", "").replace(';', "");
                let plain = |c: char| !c.is_ascii() && !is_hidden(c) || c.is_ascii_alphanumeric() || " ,".contains(c);
                prop_assert!(other.chars().all(plain), "{shown:?}");
            }
        }
    }

    #[test]
    fn credentials_are_not_shown() {
        let url = "https://user:pw@host/x";
        for shown in [inert(url), inert_within(url, 100), code(url)] {
            assert!(!shown.contains("user") && !shown.contains("pw"), "{shown}");
            assert!(shown.contains("host"), "{shown}");
        }
    }

    #[test]
    fn only_the_id_of_a_job_becomes_a_link() {
        assert_eq!(job_link("0190c1a2-a", "x"), "<a href=\"#0190c1a2-a\">x</a>");
        let long = "0".repeat(65);
        for job in [
            "",
            "a b",
            "a\"onclick=\"x",
            "a\n",
            "größe",
            "https://x",
            &long,
        ] {
            assert_eq!(job_link(job, "x"), "x", "{job:?}");
        }
    }
}
