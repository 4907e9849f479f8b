//! Lines of Nix's that say nothing to the reader of a job's log: about its own database while several of its programs run, and about
//! what it has ignored itself.
//!
//! They are only not shown. What they mean for a failure is read from the whole output ([`super::NixOutput`]).

use std::borrow::Cow;

use super::message;
use crate::text::without_escapes;

/// Leaves the noise out of the output of one program. A debug log has all of it.
#[derive(Debug, Clone, Default)]
pub struct NoiseFilter {
    shows_all: bool,
    /// The last line was noise that may go on in the next one.
    goes_on: bool,
}

impl NoiseFilter {
    /// A filter; none of the output is left out where `shows_all` is set.
    #[must_use]
    pub fn new(shows_all: bool) -> Self {
        Self {
            shows_all,
            goes_on: false,
        }
    }

    /// Whole lines without those that are noise.
    pub fn filtered<'l>(&mut self, lines: &'l [u8]) -> Cow<'l, [u8]> {
        if self.shows_all {
            return lines.into();
        }
        let mut kept = Vec::new();
        let mut left_out = false;
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            if self.is_noise(&String::from_utf8_lossy(line)) {
                left_out = true;
            } else {
                kept.extend_from_slice(line);
            }
        }
        if left_out { kept.into() } else { lines.into() }
    }

    /// Whether the next line is noise.
    pub fn is_noise(&mut self, line: &str) -> bool {
        if self.shows_all {
            return false;
        }
        let plain = without_escapes(line);
        let plain = plain.trim_end();
        let is_ignored = plain.starts_with("error (ignored):");
        let continues = self.goes_on && message::continues(plain) && !plain.is_empty();
        self.goes_on = is_ignored || continues;
        is_ignored || continues || is_about_busy_database(plain)
    }
}

/// Nix waits for its database as long as others write to it, and says so every ten seconds (`handleSQLiteBusy`); 2.8 with the words
/// of an error behind those of a warning.
fn is_about_busy_database(line: &str) -> bool {
    let warning = line.strip_prefix("warning: ");
    let warning = warning.map(|rest| rest.strip_prefix("error: ").unwrap_or(rest));
    let path_on = warning.and_then(|rest| rest.strip_prefix("SQLite database '"));
    path_on.is_some_and(|rest| {
        rest.ends_with("' is busy") || rest.ends_with("' is busy (SQLITE_PROTOCOL)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(shows_all: bool, printed: &str) -> String {
        let filtered = NoiseFilter::new(shows_all)
            .filtered(printed.as_bytes())
            .into_owned();
        String::from_utf8(filtered).unwrap()
    }

    #[test]
    fn noise_is_left_out_with_the_lines_that_belong_to_it() {
        let printed = "warning: SQLite database '/nix/var/nix/db/db.sqlite' is busy\n\
            warning: error: SQLite database '/nix/var/nix/db/db.sqlite' is busy\n\
            \u{1b}[35;1mwarning:\u{1b}[0m \u{1b}[31;1merror:\u{1b}[0m SQLite database '/x' is busy\n\
            \u{1b}[35;1mwarning:\u{1b}[0m SQLite database '/x y/db.sqlite' is busy (SQLITE_PROTOCOL)\n\
            \u{1b}[35;1mwarning:\u{1b}[0m \u{1b}[31;1merror:\u{1b}[0m SQLite database '/db.sqlite' is busy\n\
            trace: a\n\
            \u{1b}[31;1merror (ignored):\u{1b}[0m error: cannot close a connection\n       because of x\n       and y\n\
            error (ignored): interrupted by the user\n\
            b\n       c\n";
        assert_eq!(filtered(false, printed), "trace: a\nb\n       c\n");
        assert_eq!(filtered(true, printed), printed);
    }

    #[test]
    fn a_real_error_is_shown_also_behind_noise() {
        for real in [
            "error (ignored): error: x\nerror: y\n       at /z:1:2:\n",
            "error: SQLite database '/nix/var/nix/db/db.sqlite' is busy\n",
            "error: executing SQLite query: database is locked\n",
            "warning: SQLite database '/x' is broken\n",
            "trace: error (ignored): x\n",
            "\n",
        ] {
            let shown = real.trim_start_matches("error (ignored): error: x\n");
            assert_eq!(filtered(false, real), shown);
        }
    }

    #[test]
    fn a_line_that_comes_alone_may_belong_to_the_one_before() {
        let mut filter = NoiseFilter::new(false);
        let shown: Vec<bool> = ["error (ignored): x", "       y", "z", "       w"]
            .map(|line| !filter.is_noise(line))
            .to_vec();
        assert_eq!(shown, [false, false, true, true]);
    }
}
