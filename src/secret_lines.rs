//! Credentials that take several lines: a private key, an entry of a netrc file.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use crate::secrets::netrc::{self, NetrcReader};
use crate::secrets::{HIDDEN, is_literal};
use crate::text::without_escapes;

/// How many lines a private key may have: one of 16,384 bits has 200.
const KEY_AT_MOST: u32 = 400;

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

/// What the last line of a stream has begun: a key, and how many lines more it may have; or an entry of netrc.
#[derive(Debug, Clone, Copy)]
enum Within {
    Key(u32),
    Netrc(NetrcReader),
}

impl SecretLines {
    /// What is shown of a line of this stream. What of it is secret by itself is not hidden here.
    pub fn shown<'a>(&mut self, stream: u64, line: &'a str) -> Cow<'a, str> {
        if self.within.is_empty() && !begins(line) {
            return Cow::Borrowed(line);
        }
        let plain = without_escapes(line);
        let within = self.within.remove(&stream);
        let mut secrets = Vec::new();
        if let Some(Within::Key(left)) = within
            && left > 0
            && is_in_key(&plain)
        {
            self.within.insert(stream, Within::Key(left - 1));
            let end = plain.trim_end().len();
            secrets.push(end - plain.trim().len()..end);
        } else {
            let mut reader = match within {
                Some(Within::Netrc(reader)) => reader,
                _ => NetrcReader::default(),
            };
            secrets = reader.passwords(&plain);
            secrets.retain(|range| is_literal(&plain[range.clone()]));
            if reader.goes_on() {
                self.within.insert(stream, Within::Netrc(reader));
            }
        }
        if plain.contains("-----BEGIN ")
            && plain.contains("PRIVATE KEY")
            && !plain.contains("-----END ")
        {
            self.within.insert(stream, Within::Key(KEY_AT_MOST));
        }
        let mut shown = String::new();
        let mut end = 0;
        for range in secrets.into_iter().filter(|range| !range.is_empty()) {
            let secret = &plain[range.clone()];
            if self.hidden.len() < REMEMBERED_AT_MOST && secret.len() >= REMEMBERED_AT_LEAST {
                self.hidden.insert(secret.to_owned());
            }
            // It is a part of this line, and the same letters elsewhere in it are none.
            shown += &plain[end..range.start];
            shown += HIDDEN;
            end = range.end;
        }
        if end == 0 {
            return Cow::Borrowed(line);
        }
        Cow::Owned(shown + &plain[end..])
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
            let hidden = self.hidden.iter().filter(|it| plain.contains(it.as_str()));
            hidden.fold(Cow::Borrowed(line), |shown, secret| {
                Cow::Owned(without_escapes(&shown).replace(secret, HIDDEN))
            })
        });
        Cow::Owned(lines.collect::<Vec<_>>().join("\n"))
    }
}

/// Whether a line may begin something secret. Most lines of a log do not, and there are many.
fn begins(line: &str) -> bool {
    line.contains("-----BEGIN ") || line.contains("PRIVATE KEY") || netrc::may_begin(line)
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
