//! Credentials that take several lines: a private key, an entry of a netrc file.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use crate::secrets::{HIDDEN, is_literal};
use crate::text::without_escapes;

/// How many lines a private key may have: one of 16,384 bits has 200.
const KEY_AT_MOST: u32 = 400;

/// In how many lines an entry of a netrc file may be told.
const NETRC_AT_MOST: u32 = 3;

/// How many lines are remembered, for messages that quote them, and how many bytes they have at least: what is shorter may be a part of
/// any word.
const REMEMBERED_AT_MOST: usize = 1_000;
const REMEMBERED_AT_LEAST: usize = 6;

/// The lines of several streams, one after the other: those of builds that run at the same time.
#[derive(Debug, Default)]
pub struct SecretLines {
    within: HashMap<u64, Within>,
    /// What was hidden: messages quote the last lines of a build.
    hidden: BTreeSet<String>,
}

/// What the last line of a stream has begun, and how many lines more it may have.
#[derive(Debug, Clone, Copy)]
enum Within {
    Key(u32),
    Netrc(u32),
}

impl SecretLines {
    /// What is shown of a line of this stream. What of it is secret by itself is not hidden here.
    pub fn shown<'a>(&mut self, stream: u64, line: &'a str) -> Cow<'a, str> {
        if self.within.is_empty() && !begins(line) {
            return Cow::Borrowed(line);
        }
        let plain = without_escapes(line);
        let secret = match self.within.remove(&stream) {
            Some(Within::Key(left)) if left > 0 && is_in_key(&plain) => {
                self.within.insert(stream, Within::Key(left - 1));
                Some(plain.trim())
            }
            Some(Within::Netrc(left)) => match NetrcLine::of(&plain) {
                NetrcLine::Password(password) => Some(password),
                NetrcLine::GoesOn if left > 0 => {
                    self.within.insert(stream, Within::Netrc(left - 1));
                    None
                }
                _ => None,
            },
            _ => None,
        };
        if plain.contains("-----BEGIN ")
            && plain.contains("PRIVATE KEY")
            && !plain.contains("-----END ")
        {
            self.within.insert(stream, Within::Key(KEY_AT_MOST));
        } else if begins_netrc(&plain) && !plain.contains(" password ") {
            self.within.insert(stream, Within::Netrc(NETRC_AT_MOST));
        }
        match secret {
            Some(secret) if !secret.is_empty() => {
                if self.hidden.len() < REMEMBERED_AT_MOST && secret.len() >= REMEMBERED_AT_LEAST {
                    self.hidden.insert(secret.to_owned());
                }
                // It is a part of this line, and the same letters elsewhere in it are none.
                let begin = secret.as_ptr() as usize - plain.as_ptr() as usize;
                let end = begin + secret.len();
                Cow::Owned(format!("{}{HIDDEN}{}", &plain[..begin], &plain[end..]))
            }
            _ => Cow::Borrowed(line),
        }
    }

    /// What is shown of a message of Nix's, which may quote lines that were hidden (`> …`). What Nix says itself stays as it is: it decides
    /// what a failure is.
    #[must_use]
    pub fn quoted<'a>(&self, message: &'a str) -> Cow<'a, str> {
        if self.hidden.is_empty() {
            return Cow::Borrowed(message);
        }
        let lines = message.split('\n').map(|line| {
            let plain = without_escapes(line);
            if !plain.trim_start().starts_with('>') {
                return Cow::Borrowed(line);
            }
            let secret = self.hidden.iter().find(|it| plain.contains(it.as_str()));
            match secret {
                Some(secret) => Cow::Owned(plain.replace(secret, HIDDEN)),
                None => Cow::Borrowed(line),
            }
        });
        Cow::Owned(lines.collect::<Vec<_>>().join("\n"))
    }
}

/// Whether a line may begin something secret. Most lines of a log do not, and there are many.
fn begins(line: &str) -> bool {
    line.contains("-----BEGIN ") || line.contains("PRIVATE KEY") || begins_netrc(line)
}

/// Whether a line begins an entry of a netrc file, and may leave its rest to the next ones: `machine h`, `default login u`. A trace
/// stands behind a word of Nix's.
fn begins_netrc(line: &str) -> bool {
    let line = line.trim_start();
    let line = line.strip_prefix("trace: ").unwrap_or(line);
    let mut words = line.split_whitespace();
    match words.next() {
        Some("machine") if words.next().is_some() => {}
        Some("default") => {}
        _ => return false,
    }
    are_pairs(words)
}

/// What a line behind the first one of an entry is.
enum NetrcLine<'l> {
    /// It tells the password.
    Password(&'l str),
    /// A comment, a blank line, or another part of the entry.
    GoesOn,
    /// None of it.
    Ends,
}

impl<'l> NetrcLine<'l> {
    fn of(line: &'l str) -> Self {
        let line = line.split('#').next().unwrap_or_default();
        if !are_pairs(line.split_whitespace()) {
            return Self::Ends;
        }
        let mut words = line.split_whitespace();
        while let (Some(name), Some(value)) = (words.next(), words.next()) {
            let value = value.trim_matches(['"', '\'']);
            if name == "password" && is_literal(value) {
                return Self::Password(value);
            }
        }
        Self::GoesOn
    }
}

/// Whether these are the words of an entry and their values: ordinary text is not, where a password is spoken of.
fn are_pairs<'l>(mut words: impl Iterator<Item = &'l str>) -> bool {
    while let Some(name) = words.next() {
        let is_known = ["login", "password", "account", "port", "protocol"].contains(&name);
        if !is_known || words.next().is_none() {
            return false;
        }
    }
    true
}

/// Whether a line is one of a private key: its last word is of its letters. (Some programs put a time or a number before each line.)
/// A short last line is one too, a blank one and those that say how the key is encrypted.
fn is_in_key(line: &str) -> bool {
    if line.contains("-----END ") {
        return false;
    }
    let is_of_key = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    let last = line.split_whitespace().last().unwrap_or_default();
    last.chars().all(is_of_key)
        || ["Proc-Type:", "DEK-Info:"]
            .iter()
            .any(|it| line.contains(it))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(lines: &[(u64, &str)]) -> Vec<String> {
        let mut secrets = SecretLines::default();
        let shown = lines.iter();
        shown
            .map(|(stream, line)| secrets.shown(*stream, line).into_owned())
            .collect()
    }

    #[test]
    fn a_private_key_is_hidden_line_by_line_and_nothing_else_is() {
        let key = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW";
        let lines = [
            (1, "-----BEGIN OPENSSH PRIVATE KEY-----"),
            (1, key),
            (2, "building"),
            (2, key),
            (1, "QyNTUxOQAAACB="),
            (1, "-----END OPENSSH PRIVATE KEY-----"),
            (1, "installing"),
            (1, "BEGIN of a PRIVATE KEY is not one"),
            (1, "word"),
        ];
        let mut expected: Vec<&str> = lines.iter().map(|(_, line)| *line).collect();
        (expected[1], expected[4]) = (HIDDEN, HIDDEN);
        assert_eq!(shown(&lines), expected);
    }

    #[test]
    fn a_key_that_does_not_end_hides_no_sentence() {
        let lines = [
            (1, "-----BEGIN RSA PRIVATE KEY-----"),
            (1, "error: no key was found."),
            (1, "done"),
        ];
        assert_eq!(shown(&lines)[1..], ["error: no key was found.", "done"]);
    }

    #[test]
    fn an_entry_of_netrc_is_hidden_wherever_its_password_stands() {
        let lines = [
            (1, "machine cache.example.org"),
            (1, "  login ci"),
            (1, "  password hunter2hunter2"),
            (1, "password prompts are off"),
        ];
        let shown = shown(&lines);
        assert_eq!(shown[2..], ["  password ***", "password prompts are off"]);
    }

    #[test]
    fn a_message_quotes_nothing_that_was_hidden() {
        let mut secrets = SecretLines::default();
        secrets.shown(1, "-----BEGIN \u{1b}[1mRSA PRIVATE KEY-----");
        let key = "MIIEpAIBAAKCAQEAthisisabodyofakeyMIIEpAIBAAKCAQEAthisisabodyofa";
        assert_eq!(secrets.shown(1, key), HIDDEN);
        let message = format!("error: builder failed\n       > {key}\n       > gone");
        let expected = "error: builder failed\n       > ***\n       > gone";
        assert_eq!(secrets.quoted(&message), expected);
    }

    #[test]
    fn ordinary_text_that_speaks_of_passwords_is_shown_and_no_word_of_it_is_hidden_later() {
        for lines in [
            ["default", "the password in use"],
            ["default", "password for postgres is set"],
            ["machine h", "password building the rest"],
            ["booting machine vm1", "no password is asked in this list"],
            ["default login and more", "password of root"],
        ] {
            let mut secrets = SecretLines::default();
            for line in lines {
                assert_eq!(secrets.shown(1, line), line);
            }
            let message = "error: builder for 'x' failed in use\n> the password in use";
            assert_eq!(secrets.quoted(message), message);
        }
    }

    #[test]
    fn what_nix_says_itself_is_never_changed_by_what_a_builder_has_printed() {
        let mut secrets = SecretLines::default();
        secrets.shown(1, "machine h");
        assert_eq!(secrets.shown(1, "password builder"), "password ***");
        let message = "error: builder for 'x' failed\n> password builder\n>  builder";
        assert_eq!(
            secrets.quoted(message),
            "error: builder for 'x' failed\n> password ***\n>  ***"
        );
    }
}
