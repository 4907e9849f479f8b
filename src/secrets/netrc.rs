//! Entries of a netrc file in a text, as curl reads them, and so Nix: `machine host login user password …`, in one line or in several.
//! Words are told apart by case nowhere, a value may have quotes, and `#` begins a comment. In a string of Nix's or JSON a line ends with
//! `\n`.
//!
//! A text is no file, so an entry may stand behind other words. It goes on in the next lines only as far as each of them is of the entry
//! as a whole, behind what programs put before each line (a number, a time, `trace:`): a sentence that speaks of a password is not.

use std::ops::Range;

/// In how many more lines an entry may be told.
const LINES_AT_MOST: u32 = 8;

/// What comes next in an entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Awaited {
    /// There is no entry.
    #[default]
    Begin,
    Host,
    /// Behind `default`, of which ordinary text speaks too.
    Login,
    Word,
    Value,
    Password,
}

/// Reads a text line by line.
#[derive(Debug, Clone, Copy, Default)]
pub struct NetrcReader {
    next: Awaited,
    /// In how many more lines the entry may be told.
    lines: u32,
}

impl NetrcReader {
    /// Where the passwords are in the next line, which has no end of line. (One may only stand for a password, as `$PASSWORD`.)
    pub fn passwords(&mut self, line: &str) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        // So far, nothing was read but what programs put before each line.
        let mut is_start = true;
        let goes_on = self.next != Awaited::Begin;
        self.lines = self.lines.saturating_sub(1);
        let mut at = 0;
        while let Some(range) = token(line, at) {
            at = range.end;
            let token = &line[range.clone()];
            let word = last_word(token).to_ascii_lowercase();
            let begins = match word.as_str() {
                "machine" => Some(Awaited::Host),
                "default" => Some(Awaited::Login),
                _ => None,
            };
            match (self.next, begins) {
                (Awaited::Begin | Awaited::Login | Awaited::Word, Some(next)) => {
                    if self.next == Awaited::Begin {
                        self.lines = LINES_AT_MOST;
                    }
                    self.next = next;
                }
                (Awaited::Begin, None) => {}
                (Awaited::Login | Awaited::Word, None) if token.starts_with('#') => break,
                (next @ (Awaited::Login | Awaited::Word), None) => {
                    self.next = match word.as_str() {
                        "password" if next == Awaited::Word => Awaited::Password,
                        "login" | "account" | "port" | "protocol" | "macdef" => Awaited::Value,
                        _ if goes_on && is_start && is_put_before(token) => continue,
                        _ => {
                            self.next = Awaited::Begin;
                            if goes_on {
                                return Vec::new();
                            }
                            continue;
                        }
                    };
                }
                (Awaited::Password, _) => {
                    let (value, end) = value(line, range.start);
                    at = end;
                    found.push(value);
                    self.next = Awaited::Word;
                }
                (Awaited::Host, _) if token.ends_with(':') => self.next = Awaited::Begin,
                (Awaited::Host | Awaited::Value, _) => {
                    at = value(line, range.start).1;
                    self.next = Awaited::Word;
                }
            }
            is_start = false;
        }
        if self.lines == 0 {
            self.next = Awaited::Begin;
        }
        found
    }

    /// A reader of lines of which the first may be within an entry.
    fn within() -> Self {
        Self {
            next: Awaited::Word,
            lines: LINES_AT_MOST,
        }
    }

    /// Whether the next line may belong to an entry.
    #[must_use]
    pub fn goes_on(self) -> bool {
        self.next != Awaited::Begin
    }
}

/// Where the passwords are in a text of several lines.
pub(super) fn passwords(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    if !has_word(text, "password") {
        return found;
    }
    let mut reader = NetrcReader::default();
    let mut begin = 0;
    let mut was_quoted = false;
    for line in text.split('\n') {
        // Of a builder's log Nix quotes the last lines: the entry may have begun before them.
        let is_quoted = line.trim_start().starts_with('>');
        if is_quoted && !was_quoted && !reader.goes_on() {
            reader = NetrcReader::within();
        }
        was_quoted = is_quoted;
        let of_line = reader.passwords(line).into_iter();
        found.extend(of_line.map(|range| begin + range.start..begin + range.end));
        begin += line.len() + 1;
    }
    found
}

/// Whether an entry may begin in this line. Most lines of a log do not, and there are many.
#[must_use]
pub fn may_begin(line: &str) -> bool {
    has_word(line, "machine") || has_word(line, "default")
}

/// Whether the text has this word of ASCII letters, in any case.
fn has_word(text: &str, word: &str) -> bool {
    let (text, word) = (text.as_bytes(), word.as_bytes());
    let first = [word[0].to_ascii_lowercase(), word[0].to_ascii_uppercase()];
    let mut windows = text.windows(word.len());
    windows.any(|window| first.contains(&window[0]) && window.eq_ignore_ascii_case(word))
}

/// Whether these bytes begin with an end of line, or a tab, as a string of Nix's or JSON has it.
fn is_written_space(bytes: &[u8]) -> bool {
    matches!(bytes, [b'\\', b'n' | b't' | b'r', ..])
}

/// Where the next token is from this place on.
fn token(line: &str, from: usize) -> Option<Range<usize>> {
    let bytes = line.as_bytes();
    let mut begin = from;
    loop {
        if is_written_space(&bytes[begin..]) {
            begin += 2;
        } else if bytes.get(begin)?.is_ascii_whitespace() {
            begin += 1;
        } else {
            break;
        }
    }
    Some(begin..token_end(bytes, begin))
}

fn token_end(bytes: &[u8], begin: usize) -> usize {
    let mut rest = begin..bytes.len();
    let end = rest.find(|&at| bytes[at].is_ascii_whitespace() || is_written_space(&bytes[at..]));
    end.unwrap_or(bytes.len())
}

/// Where the value is that begins here, without its quotes: within them it may have blanks. (Those of a string around the entry are no
/// part of it either.) And where it ends with them.
fn value(line: &str, begin: usize) -> (Range<usize>, usize) {
    let bytes = line.as_bytes();
    let quote = bytes[begin];
    if !matches!(quote, b'"' | b'\'') {
        let end = token_end(bytes, begin);
        let text = line[begin..end].trim_end_matches(['"', '\'', '\\']);
        return (begin..begin + text.len(), end);
    }
    let begin = begin + 1;
    let mut is_escaped = false;
    let end = (begin..bytes.len()).find(|&at| {
        let ends = !is_escaped && bytes[at] == quote;
        is_escaped = !is_escaped && bytes[at] == b'\\';
        ends
    });
    let end = end.unwrap_or(bytes.len());
    (begin..end, bytes.len().min(end + 1))
}

/// The word at the end of a token: something may stand before it (`+machine`, `"machine`, `netrc:machine`).
fn last_word(token: &str) -> &str {
    let others = token.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    &token[others.len()..]
}

/// Whether this is what programs put before each line: a number, a time, a mark, the name of a file, Nix's words.
fn is_put_before(token: &str) -> bool {
    token.starts_with(|c: char| c.is_ascii_digit())
        || token.ends_with([':', '>', '|', ']'])
        || !token.contains(|c: char| c.is_alphanumeric())
        || token == "evaluation"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::is_literal;

    /// The text with its passwords hidden.
    fn shown(text: &str) -> String {
        let mut shown = text.to_owned();
        for range in passwords(text).into_iter().rev() {
            if is_literal(&text[range.clone()]) {
                shown.replace_range(range, "***");
            }
        }
        shown
    }

    #[test]
    fn a_password_is_found_however_its_entry_is_written() {
        for entry in [
            "machine h login u password PW",
            "MACHINE h LOGIN u PASSWORD PW",
            "default login u password PW",
            "machine h password PW login u",
            "machine h account a port 443 protocol x login u password PW",
            "machine h login password password PW",
            "machine login login machine password PW",
            "machine h login u macdef x password PW",
            "machine h login u password \"PW\"",
            "machine h login u password 'PW' # it",
            "machine \"h x\" login \"u\\\"x\" password PW",
            "machine a password *** machine b password PW",
            "machine\th\r\n login u\r\n password PW\r\n",
            "machine\nh\nlogin\nu\npassword\nPW\n",
            "machine h # the cache\n# one\n\n# two\nlogin u\npassword PW # three",
            "default\n login u\n password PW",
            " 1\tmachine h\n 2\t login u\n 3\t password PW",
            "netrc:machine h\nnetrc: login u\nnetrc: password PW",
            "12:00:01 machine h\n12:00:02 password PW",
            "+machine h\n+login u\n+password PW",
            "trace: file: machine h\ntrace: login u\ntrace: password PW",
            "evaluation warning: machine h\n login u\n password PW",
            "error: builder failed\n   > machine h\n   > password PW",
            "error: builder failed; last 1 log lines:\n       > password PW\n       For more",
            "builder failed\nlast 2 log lines:\n> login x\n> password PW",
            "x = \"machine h\\n\\tlogin u\\npassword PW\\n\";",
            "echo 'machine h login u password PW' > netrc",
        ] {
            for password in [
                "hunter2", "ab#c", "ab<c", "ab\\c", "ab'c", "machine", "login", "ü",
            ] {
                if entry.contains("'PW'") && password.contains('\'') {
                    continue;
                }
                let text = entry.replace("PW", password);
                assert_eq!(shown(&text), entry.replace("PW", "***"), "{text}");
            }
        }
        let quoted = "machine h\n password \"ab \\\" c\"";
        assert_eq!(shown(quoted), "machine h\n password \"***\"");
    }

    #[test]
    fn ordinary_text_is_no_entry() {
        for text in [
            "password",
            "machine h login u password $PW",
            "this machine lets you login without a password here",
            "on machine vm1 a login fails: password authentication is off",
            "the default password is asked for",
            "sshd on machine vm1: login by password here is off",
            "default\nthe password in use",
            "default\npassword for postgres is set",
            "machine h\npassword building the rest",
            "booting machine vm1\nno password is asked in this list",
            "default login and more\npassword of root",
            "this machine asks for a password twice",
            "the default password",
        ] {
            assert_eq!(shown(text), text);
        }
        let far = format!("machine h\n{}password x", "\n".repeat(8));
        assert_eq!(shown(&far), far);
    }
}
