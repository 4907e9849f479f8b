//! Which targets need no step: what is there already, here or in a cache. One question to Nix for all of them.

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

use super::pin::{batches, invalid};
use crate::exit::Failure;
use crate::log::Log;
use crate::nix::{NixOutput, StorePath, command};
use crate::recording::asking::last_words;
use crate::recording::{RecordingRequest, SkipWhich, Target};
use crate::supervise::{OnStop, Supervisor};
use crate::text::without_escapes;

/// Why a step is skipped whose outputs are in this host's store. At most 70 characters, as Buildkite has it.
pub(in crate::recording) const BUILT: &str = "already built here";

/// Why a step is skipped whose outputs a cache has.
pub(in crate::recording) const CACHED: &str = "a cache has it";

/// For each target, why it needs no step, if it needs none. One whose outputs are not known is never skipped.
///
/// # Errors
/// The store cannot be asked (75). A cache that cannot be reached is said, and is no error.
pub(in crate::recording) fn reasons(
    targets: &[Target],
    request: &RecordingRequest,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<Vec<Option<String>>, Failure> {
    let paths: Vec<&StorePath> = targets
        .iter()
        .flat_map(|target| target.outputs.values())
        .collect();
    let (missing, fetched) = match request.skip {
        SkipWhich::Nothing => return Ok(vec![None; targets.len()]),
        SkipWhich::Built => (
            invalid(&paths, &request.options, supervisor)?
                .into_iter()
                .collect(),
            HashSet::new(),
        ),
        SkipWhich::Cached => {
            let mut answer = ask(&paths, request, supervisor)?;
            answer.warn(log);
            without_gaps(&mut answer, targets, request, supervisor, log)?;
            (answer.missing, answer.fetched)
        }
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

/// What Nix says about paths that are to be there.
#[derive(Debug, Default)]
struct SubstituterAnswer {
    /// Those that nobody has, and what they need and nobody has.
    missing: HashSet<String>,
    /// Those that a cache has, and what they need and a cache has.
    fetched: HashSet<String>,
    /// Caches that could not be reached.
    unreachable: BTreeSet<String>,
    /// Caches that answered with an error.
    failing: BTreeSet<String>,
    /// Why caches could not be asked at all.
    refusal: Option<String>,
}

impl SubstituterAnswer {
    /// Whether something is missing that was not asked for: what was asked for needs it.
    fn has_gaps(&self, asked: &[&StorePath]) -> bool {
        let asked: HashSet<&str> = asked.iter().map(|path| path.as_str()).collect();
        self.missing
            .iter()
            .any(|path| !asked.contains(path.as_str()))
    }

    fn warn(&self, log: &Log) {
        if let Some(message) = &self.refusal {
            log.warn(format_args!(
                "what is only in caches gets a step, for they cannot be asked: {message}"
            ));
        }
        for cache in &self.unreachable {
            log.warn(format_args!(
                "{cache} cannot be reached: what only it has gets a step"
            ));
        }
        for cache in self.failing.difference(&self.unreachable) {
            log.warn(format_args!(
                "{cache} answers with errors: what only it has gets a step"
            ));
        }
    }
}

/// Asks who has these paths.
fn ask(
    paths: &[&StorePath],
    request: &RecordingRequest,
    supervisor: &mut Supervisor,
) -> Result<SubstituterAnswer, Failure> {
    let mut answer = SubstituterAnswer::default();
    // Otherwise one cache that answers with an error is the end of the whole question, and what the others have is not said.
    let mut options = request.options.clone();
    options.push(("fallback".into(), "true".into()));
    for batch in batches(paths) {
        let line = command::would_obtain(batch, &options);
        let mut said = Vec::new();
        let finished = supervisor.run(&line, OnStop::TermThenKill, &mut said)?;
        if !finished.ending.success() {
            // Where it is the store that fails, it says so now.
            let invalid = invalid(batch, &request.options, supervisor)?;
            answer.missing.extend(invalid);
            answer.refusal = Some(last_words(&said, finished.ending).1);
            continue;
        }
        let unreachable = NixOutput::of(&said).unreachable;
        let caches = unreachable.iter().map(|file| cache_of(file).to_owned());
        answer.unreachable.extend(caches);
        let said = String::from_utf8_lossy(&said);
        answer.failing.extend(said.lines().filter_map(given_up));
        let (missing, fetched) = read(&said);
        answer.missing.extend(missing);
        answer.fetched.extend(fetched);
    }
    Ok(answer)
}

/// How long it may take to find the targets that a cache has without all they need. What is not known then gets a step.
const TIME_TO_FIND_GAPS: Duration = Duration::from_secs(20);

/// Takes what a cache has, but not all that it needs, for missing. A cache that removes what nobody has asked for in a while is
/// like that: the step of such a target would not be skipped with good reason, for nobody can fetch it.
///
/// Nix says what is missing, and not for whom. So it is asked for half of them, and for half of those: a few questions for each,
/// whose answers about the cache Nix remembers.
fn without_gaps(
    answer: &mut SubstituterAnswer,
    targets: &[Target],
    request: &RecordingRequest,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<(), Failure> {
    let cached: Vec<&Target> = targets
        .iter()
        .filter(|target| {
            let outputs = || target.outputs.values().map(StorePath::as_str);
            !outputs().any(|path| answer.missing.contains(path))
                && outputs().any(|path| answer.fetched.contains(path))
        })
        .collect();
    let all: Vec<&StorePath> = targets
        .iter()
        .flat_map(|target| target.outputs.values())
        .collect();
    if cached.is_empty() || !answer.has_gaps(&all) {
        return Ok(());
    }
    let until = Instant::now() + TIME_TO_FIND_GAPS;
    let mut count = 0;
    let mut parts = vec![cached.as_slice()];
    while let Some(part) = parts.pop() {
        let paths: Vec<&StorePath> = part
            .iter()
            .flat_map(|target| target.outputs.values())
            .collect();
        let in_time = Instant::now() < until;
        if in_time && ask(&paths, request, supervisor)?.missing.is_empty() {
            continue;
        }
        if part.len() > 1 && in_time {
            let (some, others) = part.split_at(part.len() / 2);
            parts.extend([some, others]);
        } else {
            count += part.len();
            answer.missing.extend(paths.iter().map(ToString::to_string));
        }
    }
    if count > 0 {
        log.warn(format_args!(
            "a cache has {count} target{} without all that is needed: {} a step",
            if count == 1 { "" } else { "s" },
            if count == 1 { "it gets" } else { "they get" }
        ));
    }
    Ok(())
}

/// The cache that Nix asks no more, where a line says so (with `fallback` only; 2.8, 2.26 and 2.34 in the same words).
fn given_up(line: &str) -> Option<String> {
    let line = without_escapes(line);
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
        let line = without_escapes(line);
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
