//! Splitting `BUILDKITE_SHELL` into words as the agent does.

use std::fmt;

/// Why a line cannot be split, in the agent's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsplittable {
    /// A quote is not closed.
    Quote(char),
    /// What stands for a byte that is no UTF-8, outside quotes.
    Character(char),
}

impl fmt::Display for Unsplittable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quote(quote) => write!(f, "Expected closing quote {quote}, got EOF"),
            Self::Character(character) => write!(f, "Unhandled character {character}"),
        }
    }
}

impl std::error::Error for Unsplittable {}

/// Splits a line into words by the rules of `github.com/buildkite/shellwords`, which are not those of a shell: a backslash
/// escapes inside both kinds of quotes, and a word that is empty in the end is dropped, quoted or not.
///
/// # Errors
/// A quote is not closed, or the line was no UTF-8.
pub fn split(line: &str) -> Result<Vec<String>, Unsplittable> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        match c {
            quote @ ('\'' | '"') => loop {
                match rest.next().ok_or(Unsplittable::Quote(quote))? {
                    '\\' => word.extend(rest.next()),
                    c if c == quote => break,
                    c => word.push(c),
                }
            },
            '\\' => word.extend(rest.next()),
            ' ' | '\t' | '\n' => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            char::REPLACEMENT_CHARACTER => return Err(Unsplittable::Character(c)),
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_is_split_as_the_agent_splits_it() {
        for (line, words) in [
            ("/bin/bash -e -c", vec!["/bin/bash", "-e", "-c"]),
            ("  a\tb\n\nc ", vec!["a", "b", "c"]),
            (r#""/my shell/bash" -c"#, vec!["/my shell/bash", "-c"]),
            (r"a\ b 'it\'s' x", vec!["a b", "it's", "x"]),
            (r#"pre"fix"'ed'"#, vec!["prefixed"]),
            ("a '' b", vec!["a", "b"]),
            (r"a\", vec!["a"]),
            ("", vec![]),
        ] {
            assert_eq!(split(line).unwrap(), words, "{line}");
        }
        assert_eq!(split("a 'b"), Err(Unsplittable::Quote('\'')));
    }
}
