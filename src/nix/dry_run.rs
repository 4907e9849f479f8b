//! What `nix-store --realise --dry-run` says of the paths it is asked for: those that it would fetch, and those that it does not know
//! how to obtain.

use std::collections::{BTreeSet, HashSet};

use super::{NixOutput, StorePath};
use crate::text::without_escapes;

/// The answer of a dry run. Paths that are valid already are in neither set, and what the paths asked for need is named like them.
#[derive(Debug, Default)]
pub struct DryRun {
    /// Paths that are neither valid nor in a substituter.
    pub missing: HashSet<StorePath>,
    /// Paths that a substituter has.
    pub fetched: HashSet<StorePath>,
    /// Substituters that could not be reached.
    pub unreachable: BTreeSet<String>,
    /// Substituters that answered with an error.
    pub failing: BTreeSet<String>,
    /// Why substituters could not be queried at all.
    pub refusal: Option<String>,
    /// Nix has listed missing paths, whether or not they could be read.
    pub lists_missing: bool,
}

/// Whether a line is the heading of the list of paths that Nix does not know how to obtain.
#[must_use]
pub fn begins_missing(line: &str) -> bool {
    line.starts_with("don't know how to build these paths")
}

impl DryRun {
    /// Reads the standard error of Nix. Each list is a heading, and then its paths, indented.
    #[must_use]
    pub fn read(stderr: &[u8]) -> Self {
        enum List {
            Missing,
            Fetched,
            Other,
        }
        let mut answer = Self::default();
        let unreachable = NixOutput::of(stderr).unreachable;
        answer
            .unreachable
            .extend(unreachable.iter().map(|file| cache_of(file).to_owned()));
        let mut list = List::Other;
        for line in String::from_utf8_lossy(stderr).lines() {
            let line = without_escapes(line);
            answer.failing.extend(given_up(&line));
            match line.strip_prefix("  ") {
                Some(path) if path.starts_with('/') => {
                    let set = match list {
                        List::Missing => &mut answer.missing,
                        List::Fetched => &mut answer.fetched,
                        List::Other => continue,
                    };
                    set.extend(StorePath::parse(path.trim_end()));
                }
                _ if begins_missing(&line) => {
                    answer.lists_missing = true;
                    list = List::Missing;
                }
                _ if line.contains(" will be fetched") => list = List::Fetched,
                _ => list = List::Other,
            }
        }
        answer
    }

    /// Whether all the paths, and everything that they need, are valid or in a substituter. False if substituters could not be queried.
    #[must_use]
    pub fn has_all(&self) -> bool {
        self.refusal.is_none() && self.missing.is_empty() && !self.lists_missing
    }

    /// Adds the answer for other paths.
    pub fn extend(&mut self, other: Self) {
        self.lists_missing |= other.lists_missing;
        self.missing.extend(other.missing);
        self.fetched.extend(other.fetched);
        self.unreachable.extend(other.unreachable);
        self.failing.extend(other.failing);
        self.refusal = other.refusal.or(self.refusal.take());
    }
}

/// The substituter that Nix does not ask any more, where a line says so (with `fallback` only; the same words on 2.8, 2.26 and
/// 2.34).
fn given_up(line: &str) -> Option<String> {
    let (cache, _) = line
        .strip_prefix("disabling binary cache '")?
        .split_once('\'')?;
    Some(cache.to_owned())
}

/// The cache that a file belongs to.
fn cache_of(file: &str) -> &str {
    file.rsplit_once('/').map_or(file, |(cache, _)| cache)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> StorePath {
        StorePath::parse(&format!("/s/0123456789abcdfghijklmnpqrsvwxyz-{name}")).unwrap()
    }

    fn paths(names: &[&str]) -> HashSet<StorePath> {
        names.iter().map(|name| path(name)).collect()
    }

    #[test]
    fn a_dry_run_is_read_by_its_headings() {
        let stderr = format!(
            "warning: x\ndon't know how to build these paths:\n  {}\n  {}\nthese 2 paths will be fetched (0.1 MiB download, 1 MiB unpacked):\n  {}\n  {}\nother:\n  {}\n",
            path("a"),
            path("b"),
            path("c"),
            path("d"),
            path("e")
        );
        let answer = DryRun::read(stderr.as_bytes());
        assert_eq!(answer.missing, paths(&["a", "b"]));
        assert_eq!(answer.fetched, paths(&["c", "d"]));
        let stderr = format!(
            "this path will be fetched (0.00 MiB download, 0.00 MiB unpacked):\n  {}",
            path("c")
        );
        let answer = DryRun::read(stderr.as_bytes());
        assert!(answer.missing.is_empty());
        assert_eq!(answer.fetched, paths(&["c"]));
    }

    #[test]
    fn a_substituter_that_answers_with_an_error_is_named() {
        let stderr = b"\x1b[31mdisabling binary cache 'https://c' for 60 seconds\x1b[0m\n";
        let answer = DryRun::read(stderr);
        assert_eq!(answer.failing, BTreeSet::from(["https://c".to_owned()]));
    }
}
