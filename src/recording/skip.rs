//! Which targets need no step: what is there already, here or in a cache. One question to Nix for all of them.

use std::collections::{BTreeSet, HashSet};
use std::io::{self, Write as _};

use super::evaluate::last_words;
use super::pin::{batches, invalid};
use super::{Request, Skip, Target};
use crate::exit::Failure;
use crate::log::Log;
use crate::nix::{Listener, StorePath, command, without_colours};
use crate::supervise::{OnStop, Supervisor};

/// Why a step is skipped whose outputs are in this host's store. At most 70 characters, as Buildkite has it.
pub(super) const BUILT: &str = "already built here";

/// Why a step is skipped whose outputs a cache has.
pub(super) const CACHED: &str = "a cache has it";

/// For each target, why it needs no step, if it needs none. One whose outputs are not known is never skipped.
///
/// # Errors
/// The store cannot be asked (75). A cache that cannot be reached is said, and is no error.
pub(super) fn reasons(
    targets: &[Target],
    request: &Request,
    supervisor: &mut Supervisor,
    log: Log,
) -> Result<Vec<Option<String>>, Failure> {
    let paths: Vec<&StorePath> = targets
        .iter()
        .flat_map(|target| target.outputs.values())
        .collect();
    let (missing, fetched) = match request.skip {
        Skip::Nothing => return Ok(vec![None; targets.len()]),
        Skip::Built => (
            invalid(&paths, &request.options, supervisor)?
                .into_iter()
                .collect(),
            HashSet::new(),
        ),
        Skip::Cached => substitutable(&paths, request, supervisor, log)?,
    };
    let reason = |target: &Target| {
        let outputs = || target.outputs.values().map(StorePath::as_str);
        if target.outputs.is_empty() || outputs().any(|path| missing.contains(path)) {
            return None;
        }
        let cached = outputs().any(|path| fetched.contains(path));
        Some(if cached { CACHED } else { BUILT }.to_owned())
    };
    Ok(targets.iter().map(reason).collect())
}

/// Which of `paths` nobody has, and which a cache has.
fn substitutable(
    paths: &[&StorePath],
    request: &Request,
    supervisor: &mut Supervisor,
    log: Log,
) -> Result<(HashSet<String>, HashSet<String>), Failure> {
    let mut missing = HashSet::new();
    let mut fetched = HashSet::new();
    let mut unreachable = BTreeSet::new();
    let mut failing = BTreeSet::new();
    // Otherwise one cache that answers with an error is the end of the whole question, and what the others have is not said.
    let mut options = request.options.clone();
    options.push(("fallback".into(), "true".into()));
    for batch in batches(paths) {
        let line = command::would_obtain(batch, &options);
        let mut said = Vec::new();
        let finished = supervisor.run(&line, OnStop::TermThenKill, &mut said)?;
        if !finished.ending.success() {
            // Where it is the store that fails, it says so now.
            missing.extend(invalid(batch, &request.options, supervisor)?);
            let (_, message) = last_words(&said, finished.ending);
            log.warn(format_args!(
                "what is only in caches gets a step, for they cannot be asked: {message}"
            ));
            continue;
        }
        let mut listener = Listener::new(io::sink());
        let _ = listener.write_all(&said);
        unreachable.extend(listener.finish().0.unreachable);
        let said = String::from_utf8_lossy(&said);
        failing.extend(said.lines().filter_map(given_up));
        let (not_known, would_be) = read(&said);
        missing.extend(not_known);
        fetched.extend(would_be);
    }
    let unreachable: BTreeSet<String> = unreachable
        .iter()
        .map(|file| cache_of(file).to_owned())
        .collect();
    let failing: BTreeSet<String> = failing.difference(&unreachable).cloned().collect();
    for (caches, what) in [
        (unreachable, "cannot be reached"),
        (failing, "answers with errors"),
    ] {
        for cache in caches {
            log.warn(format_args!("{cache} {what}: what only it has gets a step"));
        }
    }
    Ok((missing, fetched))
}

/// The cache that Nix asks no more, where a line says so (with `fallback` only; 2.8, 2.26 and 2.34 in the same words).
fn given_up(line: &str) -> Option<String> {
    let line = without_colours(line);
    let (cache, _) = line
        .strip_prefix("disabling binary cache '")?
        .split_once('\'')?;
    Some(cache.to_owned())
}

/// The cache that a file belongs to.
fn cache_of(file: &str) -> &str {
    file.rsplit_once('/').map_or(file, |(cache, _)| cache)
}

/// What a dry run says: paths that Nix does not know how to come by, and paths that it would fetch. Each list is a heading,
/// and then its paths, indented.
fn read(said: &str) -> (Vec<String>, Vec<String>) {
    enum List {
        Missing,
        Fetched,
        Other,
    }
    let (mut missing, mut fetched) = (Vec::new(), Vec::new());
    let mut list = List::Other;
    for line in said.lines() {
        let line = without_colours(line);
        match line.strip_prefix("  ") {
            Some(path) if path.starts_with('/') => match list {
                List::Missing => missing.push(path.to_owned()),
                List::Fetched => fetched.push(path.to_owned()),
                List::Other => {}
            },
            _ if line.starts_with("don't know how to build these paths") => list = List::Missing,
            _ if line.contains(" will be fetched") => list = List::Fetched,
            _ => list = List::Other,
        }
    }
    (missing, fetched)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dry_run_says_is_read_by_its_headings() {
        let said = "warning: x\ndon't know how to build these paths:\n  /s/a\n  /s/b\nthese 2 paths will be fetched (0.1 MiB download, 1 MiB unpacked):\n  /s/c\n  /s/d\nother:\n  /s/e\n";
        let (missing, fetched) = read(said);
        assert_eq!(missing, ["/s/a", "/s/b"]);
        assert_eq!(fetched, ["/s/c", "/s/d"]);
        let (missing, fetched) =
            read("this path will be fetched (0.00 MiB download, 0.00 MiB unpacked):\n  /s/c");
        assert!(missing.is_empty());
        assert_eq!(fetched, ["/s/c"]);
    }

    #[test]
    fn a_reason_is_as_short_as_buildkite_has_it() {
        assert!(BUILT.len() <= 70 && CACHED.len() <= 70);
    }
}
