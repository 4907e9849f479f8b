//! Entries of a netrc file in a text, as curl reads them, and so Nix: `machine host login user password …`, in one line or in several.
//! Words are told apart by case nowhere, unknown ones are skipped, a value may have quotes, and `#` begins a comment. In a string of Nix's or
//! JSON a line ends with `\n`.
//!
//! A text is no file: an entry stands behind other words, and between what programs put before each line. So behind a machine's login
//! whatever stands behind the word `password` is one. Without a login that is so in the line of `machine` alone; a line that
//! follows has to be of the entry as a whole, because a sentence may speak of a password.

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
    /// It is of a machine.
    is_machine: bool,
    /// It has had a login, and no password since.
    has_login: bool,
    /// All its words were known.
    is_whole: bool,
}

impl NetrcReader {
    /// Where the passwords are in the next line, which has no end of line. (One may only stand for a password, as `$PASSWORD`.)
    pub fn passwords(&mut self, line: &str) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        // Those of which the rest of the line decides whether they are any.
        let mut doubtful = Vec::new();
        // So far, nothing was read but what programs put before each line.
        let mut is_start = true;
        let mut goes_on = self.goes_on();
        self.is_whole = true;
        self.lines = self.lines.saturating_sub(1);
        let mut at = 0;
        while let Some(range) = token(line, at) {
            at = range.end;
            let token = &line[range.clone()];
            // At the begin of a line, the mark of a diff.
            let before = &line[..range.start];
            let is_first = before.is_empty() || before.ends_with("> ");
            let unmarked = token.strip_prefix('-').filter(|_| is_first);
            let word = last_word(unmarked.unwrap_or(token)).to_ascii_lowercase();
            let is_word = matches!(self.next, Awaited::Begin | Awaited::Login | Awaited::Word);
            match (word.as_str(), self.next) {
                (begin @ ("machine" | "default"), _) if is_word => {
                    *self = Self {
                        next: if begin == "machine" {
                            Awaited::Host
                        } else {
                            Awaited::Login
                        },
                        lines: LINES_AT_MOST,
                        is_machine: begin == "machine",
                        has_login: false,
                        is_whole: true,
                    };
                    found.append(&mut doubtful);
                    goes_on = false;
                }
                (_, Awaited::Begin) => {}
                (_, Awaited::Login | Awaited::Word) if token.starts_with('#') => break,
                ("login" | "user", Awaited::Login | Awaited::Word) => {
                    self.next = Awaited::Value;
                    self.has_login = true;
                }
                ("account" | "port" | "protocol" | "macdef", Awaited::Login | Awaited::Word) => {
                    self.next = Awaited::Value;
                }
                ("password", Awaited::Word) if self.is_whole || self.has_login => {
                    self.next = Awaited::Password;
                }
                (_, Awaited::Login | Awaited::Word) => {
                    let is_put_before = goes_on && is_start && is_put_before(token);
                    self.is_whole &= is_put_before;
                    if !self.is_machine && !self.is_whole {
                        self.next = Awaited::Begin;
                    }
                    if is_put_before {
                        continue;
                    }
                }
                (_, Awaited::Password) => {
                    let (value, end) = value(line, range.start);
                    at = end;
                    if goes_on && !(self.has_login && self.is_machine) {
                        doubtful.push(value);
                    } else {
                        found.push(value);
                    }
                    self.next = Awaited::Word;
                    self.lines = LINES_AT_MOST;
                    self.has_login = false;
                }
                (_, Awaited::Host | Awaited::Value) => {
                    at = value(line, range.start).1;
                    self.next = Awaited::Word;
                }
            }
            is_start = false;
        }
        if self.is_whole {
            found.append(&mut doubtful);
            found.sort_by_key(|range| range.start);
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
            is_machine: true,
            ..Self::default()
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

/// Where the value is that begins here, and where what follows it. Within quotes, which are no part of it, it may have blanks; those of a
/// string around the entry are no part of it either.
fn value(line: &str, begin: usize) -> (Range<usize>, usize) {
    let end = token_end(line.as_bytes(), begin);
    let text = &line[begin..end];
    let rest = &line[begin..];
    let quotes = ["\\\"", "\"", "'"];
    if let Some(quote) = quotes.into_iter().find(|quote| text.starts_with(quote))
        && let Some(length) = length_in_quotes(&rest[quote.len()..], quote)
    {
        let begin = begin + quote.len();
        let close = begin + length;
        let behind = close + quote.len();
        // What stands behind the quote is a part of it, where it is no blank.
        let end = token_end(line.as_bytes(), behind);
        let is_over = line[behind..end].chars().all(|c| "\"'\\,;)]}>".contains(c));
        return (begin..if is_over { close } else { end }, end);
    }
    let text = text.trim_end_matches(['"', '\'', '\\']);
    (begin..begin + text.len(), end)
}

/// How much of the text stands before the next quote that is not behind a backslash.
fn length_in_quotes(text: &str, quote: &str) -> Option<usize> {
    let is_escaped = |at: usize| {
        let before = &text[..at];
        (before.len() - before.trim_end_matches('\\').len()) % 2 == 1
    };
    let mut places = text.match_indices(quote).map(|(at, _)| at);
    places.find(|at| !is_escaped(*at))
}

/// The word at the end of a token: something may stand before it (`+machine`, `"machine`, `netrc:machine`). A flag is none (`--machine`).
fn last_word(token: &str) -> &str {
    let others = token.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    if others.ends_with('-') {
        return "";
    }
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
            "machine h user u password PW",
            "machine h login u type basic password PW",
            "netrc for machine h: login ci password PW",
            "x = \"machine h login u password \\\"PW\\\"\"",
            "machine h\n login u\n password PW\n\nmachine i\n login u\n password PW\n\nmachine j\n login u\n password PW\n\nmachine k\n login u\n password PW",
            "INFO machine h\nINFO   login u\nINFO   password PW",
            "[2026-11-30 08:15:00] machine h\n[2026-11-30 08:15:00] login u\n[2026-11-30 08:15:00] password PW",
            "machine h\n login u\n macdef init\n cd /\n\n password PW",
            "machine h\n login u\n password PW extra\" > ~/.netrc",
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
            "-machine h\n-login u\n-password PW",
            "-machine h login u password PW",
            "error: builder failed\n   > -machine h\n   > -password PW",
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
        for open in [
            "machine h login u password 'x'hunter2",
            "machine 'h login u password hunter2",
            "machine h login u password \"hunter2",
        ] {
            assert!(!shown(open).contains("hunter2"), "{open}");
        }
    }

    #[test]
    fn ordinary_text_is_no_entry() {
        for text in [
            "password",
            "machine h login u password $PW",
            "the default password is asked for",
            "default\nthe password in use",
            "default\npassword for postgres is set",
            "machine h\npassword building the rest",
            "booting machine vm1\nno password is asked in this list",
            "default login and more\npassword of root",
            "this machine asks for a password twice",
            "./vm --machine q35 --password prompt",
            "./vm -machine q35 --login u --password prompt",
            "./vm \\\n  -machine q35 \\\n  -password prompt",
            "--machine h login u password x",
            "the default password",
        ] {
            assert_eq!(shown(text), text);
        }
        let two = "machine h\npassword aa login u password bb";
        assert_eq!(shown(two), "machine h\npassword *** login u password ***");
        let far = format!("machine h\n{}password x", "\n".repeat(8));
        assert_eq!(shown(&far), far);
    }

    proptest::proptest! {
        #[test]
        fn passwords_stand_one_behind_the_other_within_their_line(
            words in proptest::collection::vec("machine|default|login|password|user|account|#|\\PC{0,4}|\"|'|\\\\|\\\\n|h:|é", 0..24),
            lines in proptest::collection::vec(0..24_usize, 0..5),
        ) {
            let mut reader = NetrcReader::default();
            let mut begin = 0;
            for end in lines.into_iter().chain([words.len()]) {
                let end = end.clamp(begin, words.len());
                let line = words[begin..end].join(" ");
                begin = end;
                let mut last = 0;
                for range in reader.passwords(&line) {
                    proptest::prop_assert!(last <= range.start && range.start <= range.end && line.get(range.clone()).is_some());
                    last = range.end;
                }
            }
        }
    }
}
