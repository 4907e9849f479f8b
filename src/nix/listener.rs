//! Listening to what a Nix program says on standard error, while it is passed on to the log as it is.

use std::collections::BTreeSet;
use std::io::{self, Write};

use super::DrvPath;

/// Passes on everything, and remembers what later decisions need.
///
/// Nix's messages are not documented; the ones used here were read off 2.8, 2.26 and 2.34. Only reports and the *choice of
/// what to try next* rest on them, never whether a step succeeded.
#[derive(Debug, Default)]
pub struct Listener<W> {
    to: W,
    line: Vec<u8>,
    /// Derivations that Nix began to build here.
    pub begun: BTreeSet<String>,
    /// Derivations that failed.
    pub broken: BTreeSet<String>,
    /// Store paths that a cache had.
    pub substituted: BTreeSet<String>,
    /// Files of caches that could not be reached (not: that answered with an error), as URLs.
    pub unreachable: BTreeSet<String>,
    /// Nix said something that it says when the collector took a path away under it.
    pub collector: bool,
    /// The last line that was an error.
    pub error: Option<String>,
    /// The first derivation of which Nix said that it itself failed.
    pub failed: Option<DrvPath>,
}

impl<W: Write> Listener<W> {
    /// Listens to what is passed on to `to`.
    pub fn new(to: W) -> Self {
        Self {
            to,
            line: Vec::new(),
            begun: BTreeSet::new(),
            broken: BTreeSet::new(),
            substituted: BTreeSet::new(),
            unreachable: BTreeSet::new(),
            collector: false,
            error: None,
            failed: None,
        }
    }

    fn hear(&mut self, line: &str) {
        let quoted_after = |start: &str| {
            line.strip_prefix(start)?
                .split_once('\'')
                .map(|(quoted, _)| quoted)
        };
        if let Some(drv) = quoted_after("building '") {
            self.begun.insert(drv.to_owned());
        } else if let Some(path) = quoted_after("copying path '") {
            self.substituted.insert(path.to_owned());
        } else if let Some(url) = quoted_after("warning: unable to download '") {
            if !line.contains("; retrying in") && !line.contains("HTTP error") {
                self.unreachable.insert(url.to_owned());
            }
        } else if let Some(error) = line.trim_start().strip_prefix("error: ") {
            self.collector |= is_the_collectors(error);
            if let Some(drv) = failed_derivation(error) {
                self.broken.insert(drv.to_string());
                self.failed.get_or_insert(drv);
            }
            self.error = Some(error.to_owned());
        }
    }
}

/// The derivation that failed, where an error is about one: 2.8 and 2.26 say it of the builder, 2.34 of the build.
fn failed_derivation(error: &str) -> Option<DrvPath> {
    let starts = [
        "builder for '",
        "Cannot build '",
        "hash mismatch in fixed-output derivation '",
        "building of '",
    ];
    let rest = starts.iter().find_map(|start| error.strip_prefix(start))?;
    let (drv, _) = rest.split_once(['\'', '!', '^'])?;
    DrvPath::parse(drv).ok()
}

/// Whether Nix says this where the collector took a path while it was needed. Nobody else can make Nix say it without the
/// path being gone, a dead daemon apart, so doing it again is right or at least harmless.
fn is_the_collectors(error: &str) -> bool {
    let of_a_path = |ending: &str| {
        error
            .split_once(ending)
            .is_some_and(|(path, _)| path.contains("path '") || path.contains("path \""))
    };
    of_a_path("' is not valid")
        || of_a_path("' does not exist")
        || error.starts_with("cannot build missing derivation '")
        || error.starts_with("failed to obtain derivation of '")
        || (error.starts_with("opening file '")
            && error.contains(".drv': No such file or directory"))
        || error.starts_with("unexpected end-of-file")
        || error.starts_with("Nix daemon disconnected unexpectedly")
}

/// `line` without the colours that Nix may have given it.
fn without_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, escape)) = rest.split_once("\u{1b}[") {
        plain.push_str(before);
        rest = escape.split_once('m').map_or("", |(_, after)| after);
    }
    plain.push_str(rest);
    plain
}

impl<W: Write> Write for Listener<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A log that nobody reads any more stops no build.
        let _ = self.to.write_all(bytes);
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            // No message that is listened for is longer, and a builder may print megabytes without a line's end.
            if self.line.len() < 4096 {
                self.line.extend_from_slice(&part[..part.len().min(4096)]);
            }
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.hear(&without_colours(String::from_utf8_lossy(&line).trim_end()));
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(text: &str, piece: usize) -> Listener<Vec<u8>> {
        let mut listener = Listener::new(Vec::new());
        for part in text.as_bytes().chunks(piece) {
            listener.write_all(part).unwrap();
        }
        listener
    }

    #[test]
    fn everything_is_passed_on_and_counted_however_it_arrives() {
        let text = "these 2 derivations will be built:\n  /s/a.drv\nbuilding '/s/a.drv'...\nhi\nbuilding '/s/a.drv' on 'ssh://x'...\n\
                    copying path '/s/b' from 'file:///c'...\n\u{1b}[31;1merror:\u{1b}[0m no\nlast";
        for piece in [1, 7, 1000] {
            let listener = heard(text, piece);
            assert_eq!(listener.to, text.as_bytes());
            assert_eq!((listener.begun.len(), listener.substituted.len()), (1, 1));
            assert_eq!(listener.error.as_deref(), Some("no"));
        }
    }

    #[test]
    fn a_cache_is_unreachable_after_the_last_try_and_not_when_it_answers() {
        let text = "warning: error: unable to download 'http://a/nix-cache-info': Couldn't connect to server (7); retrying in 3 ms\n\
                    warning: unable to download 'http://b/x.narinfo': HTTP error 500\n\
                    warning: unable to download 'http://c/nix-cache-info': Could not connect to server (7) Failed to connect\n";
        let unreachable = heard(text, 1000).unreachable;
        assert_eq!(
            unreachable.iter().collect::<Vec<_>>(),
            ["http://c/nix-cache-info"]
        );
    }

    #[test]
    fn the_collectors_messages_are_told_from_an_expressions_own() {
        for error in [
            "path '/s/x.drv' is not valid",
            "store path '/s/x' does not exist",
            "path '/s/x.drv' does not exist and cannot be created",
            "cannot build missing derivation '/s/x.drv'",
            "failed to obtain derivation of '/s/x.drv'",
            "opening file '/s/x.drv': No such file or directory",
        ] {
            assert!(heard(&format!("error: {error}\n"), 9).collector, "{error}");
        }
        for error in [
            "attribute 'a' missing",
            "undefined variable 'path'",
            "opening file '/x/a.nix': No such file or directory",
        ] {
            assert!(!heard(&format!("error: {error}\n"), 9).collector, "{error}");
        }
    }

    #[test]
    fn the_first_derivation_that_itself_failed_is_known() {
        let drv = "/s/store/w11m5yi1fzmzl7ri7y308xcnn9jyzv3r-a.drv";
        for error in [
            format!("builder for '{drv}' failed with exit code 2"),
            format!("Cannot build '{drv}'."),
            format!("hash mismatch in fixed-output derivation '{drv}':"),
            format!("building of '{drv}!*' from .drv file timed out after 1 seconds"),
            format!("building of '{drv}^*' from .drv file timed out after 1 seconds"),
        ] {
            let text = format!(
                "error: {error}\nerror: builder for '/s/store/00000000000000000000000000000000-b.drv' failed\n"
            );
            assert_eq!(heard(&text, 9).failed.unwrap().to_string(), drv, "{error}");
        }
        assert_eq!(
            heard("error: 1 dependencies of derivation 'x' failed\n", 9).failed,
            None
        );
    }

    #[test]
    fn a_line_of_megabytes_is_passed_on_and_not_kept() {
        let text = "x".repeat(3 << 20);
        let listener = heard(&text, 65536);
        assert_eq!(listener.to.len(), text.len());
        assert!(listener.line.len() < 70_000);
    }
}
