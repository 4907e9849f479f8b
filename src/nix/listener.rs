//! Listening to what a Nix program says on standard error, while it is passed on to the log: as it is, line by line, but for
//! the sentences that only say what is missing.

use std::collections::BTreeSet;
use std::io::{self, Write};

use super::{DrvPath, StorePath};

/// Passes on what is said, line by line, and remembers what later decisions need.
///
/// The sentences in which Nix says that a path is not there are held back: a step that finds its outputs another way has no
/// error in its log. They are given back at the end, for whoever ends a step with them.
#[derive(Debug)]
pub struct Listener<W> {
    to: W,
    line: Vec<u8>,
    /// The beginning of this line was passed on already: it is too long to be one that is listened for.
    passing: bool,
    held: Vec<u8>,
    /// What was worth remembering.
    pub heard: Heard,
}

/// No message that is listened for is longer, in bytes; and a builder may print megabytes without a line's end.
const LINE_AT_MOST: usize = 4096;

/// What a Nix program said that is worth remembering.
///
/// Nix's messages are not documented; the ones used here were read off 2.8, 2.26 and 2.34. Only reports and the *choice of
/// what to try next* rest on them, never whether a step succeeded.
#[derive(Debug, Default)]
pub struct Heard {
    /// Derivations that Nix began to build here.
    pub begun: BTreeSet<String>,
    /// Derivations that failed.
    pub broken: BTreeSet<String>,
    /// The first of them: the one that the others wait for in vain.
    pub failed: Option<DrvPath>,
    /// Store paths that a cache had.
    pub substituted: BTreeSet<String>,
    /// Files of caches that could not be reached (not: that answered with an error), as URLs.
    pub unreachable: BTreeSet<String>,
    /// The last line that was an error.
    pub error: Option<String>,
}

/// What an evaluation says that the garbage collector may have disturbed.
#[derive(Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// This path is not there. Whether it was taken, or was never there, only the store knows.
    Gone(StorePath),
    /// The daemon has gone away, as its worker does where a path is taken under it.
    Daemon,
}

impl Heard {
    /// What the collector may have done, if this is how it ended.
    #[must_use]
    pub fn disturbance(&self) -> Option<Disturbance> {
        let error = self.error.as_deref()?;
        if error.starts_with("unexpected end-of-file")
            || error.starts_with("Nix daemon disconnected unexpectedly")
        {
            return Some(Disturbance::Daemon);
        }
        let (_, rest) = error.split_once(['\'', '"'])?;
        let (path, after) = rest.split_once(['\'', '"'])?;
        let gone = after.starts_with(" is not valid")
            || after.starts_with(" does not exist")
            || after.starts_with(": No such file or directory")
            || error.starts_with("cannot build missing derivation")
            || error.starts_with("failed to obtain derivation of");
        StorePath::parse(path)
            .ok()
            .filter(|_| gone)
            .map(Disturbance::Gone)
    }

    /// Whether what was evaluated is nothing that could be a derivation. So Nix says of a string or a number; of a set
    /// without derivations it says nothing.
    #[must_use]
    pub fn no_derivation(&self) -> bool {
        self.error_starts_with("expression does not evaluate to a derivation")
    }

    /// Whether this Nix cannot evaluate a flake in a sub-folder from a copy in the store (2.8).
    #[must_use]
    pub fn no_flake_in_sub_folder(&self) -> bool {
        self.error
            .as_deref()
            .is_some_and(|error| error.contains("has unsupported parameter 'dir'"))
    }

    fn error_starts_with(&self, start: &str) -> bool {
        self.error
            .as_deref()
            .is_some_and(|error| error.starts_with(start))
    }
}

/// How much is held back, in bytes.
const HELD_AT_MOST: usize = 64 << 10;

impl<W: Write> Listener<W> {
    /// Listens to what is passed on to `to`.
    pub fn new(to: W) -> Self {
        Self {
            to,
            line: Vec::new(),
            passing: false,
            held: Vec::new(),
            heard: Heard::default(),
        }
    }

    /// Ends listening: passes on the last line, and gives what was heard, and what was held back.
    pub fn finish(mut self) -> (Heard, Vec<u8>) {
        self.end_line();
        (self.heard, self.held)
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let passing = std::mem::take(&mut self.passing);
        let text = without_colours(String::from_utf8_lossy(&line).trim_end());
        if !passing {
            self.hear(&text);
        }
        if !passing && self.says_that_paths_are_missing(&text) {
            self.held.extend(line);
        } else {
            // A log that nobody reads any more stops no build.
            let _ = self.to.write_all(&line);
        }
    }

    /// Whether a line says that Nix does not know how to come by a path: in a sentence, or as one of a list. Once something
    /// is being built it may be the builder who says so, and that belongs to the log.
    fn says_that_paths_are_missing(&self, line: &str) -> bool {
        if !self.heard.begun.is_empty() || self.held.len() > HELD_AT_MOST {
            return false;
        }
        let error = line.strip_prefix("error: ").unwrap_or_default();
        line.starts_with("don't know how to build these paths")
            || !self.held.is_empty() && line.starts_with("  /")
            || error.starts_with("cannot build missing derivation '")
            || error.starts_with("failed to obtain derivation of '")
            || error.starts_with("build of '") && error.ends_with("' failed")
            || error.starts_with("path '")
                && error.contains(" is required, but there is no substituter")
    }

    fn hear(&mut self, line: &str) {
        let heard = &mut self.heard;
        let quoted_after = |start: &str| {
            line.strip_prefix(start)?
                .split_once('\'')
                .map(|(quoted, _)| quoted)
        };
        if let Some(drv) = quoted_after("building '") {
            heard.begun.insert(drv.to_owned());
        } else if let Some(path) = quoted_after("copying path '") {
            heard.substituted.insert(path.to_owned());
        } else if let Some(url) = quoted_after("warning: unable to download '") {
            // While something is built, a builder may say it too; and the caches have been asked before.
            let ours = heard.begun.is_empty();
            if ours
                && !["; retrying in", "; using cached version", "HTTP error"]
                    .iter()
                    .any(|other| line.contains(other))
            {
                heard.unreachable.insert(url.to_owned());
            }
        } else if let Some(error) = line.trim_start().strip_prefix("error: ") {
            if let Some(drv) = failed_derivation(error) {
                heard.broken.insert(drv.to_string());
                heard.failed.get_or_insert(drv);
            }
            heard.error = Some(error.to_owned());
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

/// `line` without the colours that Nix may have given it.
#[must_use]
pub fn without_colours(line: &str) -> String {
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
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                self.end_line();
            } else if self.line.len() > LINE_AT_MOST {
                let _ = self.to.write_all(&std::mem::take(&mut self.line));
                self.passing = true;
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

    fn listened(text: &str, piece: usize) -> Listener<Vec<u8>> {
        let mut listener = Listener::new(Vec::new());
        for part in text.as_bytes().chunks(piece) {
            listener.write_all(part).unwrap();
        }
        listener.end_line();
        listener
    }

    fn heard(text: &str) -> Heard {
        listened(text, 9).heard
    }

    #[test]
    fn that_a_path_is_missing_is_held_back_and_nothing_else() {
        let text = format!(
            "warning: a\ndon't know how to build these paths:\n  {DRV}\nerror: build of '{DRV}' failed\nerror: other\n  /x\n"
        );
        for piece in [1, 1000] {
            let listener = listened(&text, piece);
            assert_eq!(
                String::from_utf8_lossy(&listener.to),
                "warning: a\nerror: other\n"
            );
            assert!(listener.held.starts_with(b"don't know"));
        }
        let build =
            format!("building '{DRV}'...\n  /not/held\nerror: builder for '{DRV}' failed\n");
        assert_eq!(listened(&build, 7).to, build.as_bytes());
    }

    #[test]
    fn everything_is_passed_on_and_counted_however_it_arrives() {
        let text = "these 2 derivations will be built:\n  /s/a.drv\nbuilding '/s/a.drv'...\nhi\nbuilding '/s/a.drv' on 'ssh://x'...\n\
                    copying path '/s/b' from 'file:///c'...\n\u{1b}[31;1merror:\u{1b}[0m no\nlast";
        for piece in [1, 7, 1000] {
            let Listener { to, heard, .. } = listened(text, piece);
            assert_eq!(to, text.as_bytes());
            assert_eq!((heard.begun.len(), heard.substituted.len()), (1, 1));
            assert_eq!(heard.error.as_deref(), Some("no"));
        }
    }

    #[test]
    fn a_cache_is_unreachable_after_the_last_try_and_not_when_it_answers() {
        let text = "warning: error: unable to download 'http://a/nix-cache-info': Couldn't connect to server (7); retrying in 3 ms\n\
                    warning: unable to download 'http://b/x.narinfo': HTTP error 500\n\
                    warning: unable to download 'http://c/nix-cache-info': Could not connect to server (7) Failed to connect\n";
        let unreachable = heard(text).unreachable;
        assert_eq!(
            unreachable.iter().collect::<Vec<_>>(),
            ["http://c/nix-cache-info"]
        );
    }

    const DRV: &str = "/s/store/w11m5yi1fzmzl7ri7y308xcnn9jyzv3r-a.drv";

    #[test]
    fn the_collectors_messages_are_told_from_an_expressions_own() {
        for error in [
            format!("path '{DRV}' is not valid"),
            format!("store path '{DRV}' does not exist"),
            format!("path '{DRV}' does not exist and cannot be created"),
            format!("cannot build missing derivation '{DRV}'"),
            format!("failed to obtain derivation of '{DRV}'"),
            format!("opening file '{DRV}': No such file or directory"),
        ] {
            let disturbance = heard(&format!("error: {error}\n")).disturbance();
            assert_eq!(
                disturbance,
                Some(Disturbance::Gone(StorePath::parse(DRV).unwrap())),
                "{error}"
            );
        }
        for error in [
            "attribute 'a' missing",
            "path '/checkout/missing.nix' does not exist",
            "path 'x' does not exist",
            "opening file '/x/a.nix': No such file or directory",
        ] {
            assert_eq!(
                heard(&format!("error: {error}\n")).disturbance(),
                None,
                "{error}"
            );
        }
        let of_a_builder = format!(
            "error: path '{DRV}' is not valid\nerror: builder for '{DRV}' failed with exit code 1\n"
        );
        assert_eq!(
            heard(&of_a_builder).disturbance(),
            None,
            "only the last error is Nix's own"
        );
        assert_eq!(
            heard("error: unexpected end-of-file\n").disturbance(),
            Some(Disturbance::Daemon)
        );
    }

    #[test]
    fn the_first_derivation_that_itself_failed_is_known() {
        for error in [
            format!("builder for '{DRV}' failed with exit code 2"),
            format!("Cannot build '{DRV}'."),
            format!("hash mismatch in fixed-output derivation '{DRV}':"),
            format!("building of '{DRV}!*' from .drv file timed out after 1 seconds"),
            format!("building of '{DRV}^*' from .drv file timed out after 1 seconds"),
        ] {
            let text = format!(
                "error: {error}\nerror: builder for '/s/store/00000000000000000000000000000000-b.drv' failed\n"
            );
            assert_eq!(heard(&text).failed.unwrap().to_string(), DRV, "{error}");
        }
        assert_eq!(
            heard("error: 1 dependencies of derivation 'x' failed\n").failed,
            None
        );
    }

    #[test]
    fn a_line_of_megabytes_is_passed_on_and_not_kept() {
        let text = "x".repeat(3 << 20);
        let listener = listened(&text, 65536);
        assert_eq!(listener.to.len(), text.len());
        assert!(listener.line.capacity() < 1 << 20);
    }
}
