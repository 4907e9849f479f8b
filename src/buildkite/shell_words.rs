//! Splitting `BUILDKITE_SHELL` into words as the agent does.

use std::fmt;

/// Why a line cannot be split, in the agent's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShellWordsError {
    /// A quote is not closed.
    Quote(char),
    /// The character in place of a byte that is not UTF-8, outside quotes.
    Character(char),
}

impl fmt::Display for ShellWordsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quote(quote) => write!(f, "Expected closing quote {quote}, got EOF"),
            Self::Character(character) => write!(f, "Unhandled character {character}"),
        }
    }
}

impl std::error::Error for ShellWordsError {}

/// What to do with a word that is quoted and empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmptyWords {
    /// Drop it, as agents before v3.100.1 do.
    Drop,
    /// Keep it as a word.
    Keep,
}

/// Splits a line into words by the rules of `github.com/buildkite/shellwords`, which are not those of a shell: a backslash
/// escapes inside both kinds of quotes.
///
/// # Errors
/// A quote is not closed, or the line was not UTF-8.
pub fn split(line: &str, empty: EmptyWords) -> Result<Vec<String>, ShellWordsError> {
    let mut words = Vec::new();
    // The word that is being read, if there is one.
    let mut word: Option<String> = None;
    let is_word = |word: &String| !word.is_empty() || empty == EmptyWords::Keep;
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        match c {
            quote @ ('\'' | '"') => {
                let word = word.get_or_insert_default();
                loop {
                    match rest.next().ok_or(ShellWordsError::Quote(quote))? {
                        '\\' => word.extend(rest.next()),
                        c if c == quote => break,
                        c => word.push(c),
                    }
                }
            }
            '\\' => {
                if let Some(c) = rest.next() {
                    word.get_or_insert_default().push(c);
                }
            }
            ' ' | '\t' | '\n' => words.extend(word.take().filter(is_word)),
            char::REPLACEMENT_CHARACTER => return Err(ShellWordsError::Character(c)),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word.filter(is_word));
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
            assert_eq!(split(line, EmptyWords::Drop).unwrap(), words, "{line}");
        }
        for (line, words) in [
            ("a '' b", vec!["a", "", "b"]),
            ("\"\"", vec![""]),
            ("a ", vec!["a"]),
        ] {
            assert_eq!(split(line, EmptyWords::Keep).unwrap(), words, "{line}");
        }
        assert_eq!(
            split("a 'b", EmptyWords::Keep),
            Err(ShellWordsError::Quote('\''))
        );
    }
}
