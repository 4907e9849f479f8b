//! Which targets need no step: what is there already, here or in a cache. One question to Nix for all of them.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::counts::number;
use crate::exit::Failure;
use crate::log::Log;
use crate::nix::{DryRun, StorePath};
use crate::recording::{RecordingRequest, SkipWhich, Target};
use crate::store::Store;
use crate::supervise::Supervisor;

/// Why a step is skipped whose outputs are in this host's store. At most 70 characters, as Buildkite has it.
pub(in crate::recording) const BUILT: &str = "already built here";

/// Why a step is skipped whose outputs a cache has.
pub(in crate::recording) const CACHED: &str = "a cache has it";

/// For each target, why it needs no step; none where it needs one, as every target does whose outputs are not known.
///
/// # Errors
/// The store cannot be asked (75). An unreachable substituter is a warning.
pub(in crate::recording) fn reasons(
    targets: &[Target],
    request: &RecordingRequest,
    store: &mut Store,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<Vec<Option<String>>, Failure> {
    let paths: Vec<&StorePath> = outputs_of(targets);
    let answer = match request.skip {
        SkipWhich::Nothing => return Ok(vec![None; targets.len()]),
        SkipWhich::Built => DryRun {
            missing: store.invalid(supervisor, &paths)?,
            ..DryRun::default()
        },
        SkipWhich::Cached => {
            let mut answer = store.dry_run(supervisor, &paths)?;
            warn(&answer, log);
            add_incomplete(&mut answer, targets, store, supervisor, log)?;
            answer
        }
    };
    let reasons = targets.iter().map(|target| reason(target, &answer));
    Ok(reasons.map(|reason| reason.map(str::to_owned)).collect())
}

/// Why a target needs no step.
fn reason(target: &Target, answer: &DryRun) -> Option<&'static str> {
    let outputs = || target.outputs.values();
    if target.outputs.is_empty() || outputs().any(|path| answer.missing.contains(path)) {
        return None;
    }
    let cached = outputs().any(|path| answer.fetched.contains(path));
    Some(if cached { CACHED } else { BUILT })
}

fn outputs_of<'t>(targets: impl IntoIterator<Item = &'t Target>) -> Vec<&'t StorePath> {
    let targets = targets.into_iter();
    targets.flat_map(|target| target.outputs.values()).collect()
}

/// Says which substituters could not be queried.
fn warn(answer: &DryRun, log: &Log) {
    if let Some(message) = &answer.refusal {
        log.warn(format_args!(
            "substituters could not be queried, so nothing is skipped because of them: {message}"
        ));
    }
    for substituter in &answer.unreachable {
        log.warn(format_args!(
            "{substituter} is unreachable: nothing is skipped because of it"
        ));
    }
    for substituter in answer.failing.difference(&answer.unreachable) {
        log.warn(format_args!(
            "{substituter} answers with errors: nothing is skipped because of it"
        ));
    }
}

/// How long finding the targets may take that a substituter has without all they need. The others get a step.
const TIME_TO_FIND_INCOMPLETE: Duration = Duration::from_secs(20);

/// Counts what a substituter has, but not with all that it needs, as missing. A cache that removes what was not fetched for a while
/// is like that: such a target could not be fetched, and must not be skipped.
///
/// Nix says what is missing, and not for which path. So it is asked for half of them, and for half of those: a few questions for
/// each, and Nix remembers the substituter's answers.
fn add_incomplete(
    answer: &mut DryRun,
    targets: &[Target],
    store: &mut Store,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<(), Failure> {
    let cached: Vec<&Target> = targets
        .iter()
        .filter(|target| reason(target, answer) == Some(CACHED))
        .collect();
    let outputs: HashSet<&StorePath> = outputs_of(targets).into_iter().collect();
    let is_incomplete = answer.missing.iter().any(|path| !outputs.contains(path));
    if cached.is_empty() || !is_incomplete {
        return Ok(());
    }
    let until = Instant::now() + TIME_TO_FIND_INCOMPLETE;
    let mut count = 0;
    let mut parts = vec![cached.as_slice()];
    while let Some(part) = parts.pop() {
        let paths = outputs_of(part.iter().copied());
        let in_time = Instant::now() < until;
        if in_time && store.dry_run(supervisor, &paths)?.missing.is_empty() {
            continue;
        }
        if part.len() > 1 && in_time {
            let (some, others) = part.split_at(part.len() / 2);
            parts.extend([some, others]);
        } else {
            count += part.len();
            answer.missing.extend(paths.into_iter().cloned());
        }
    }
    if count > 0 {
        log.warn(format_args!(
            "a substituter lacks dependencies of {}: not skipped",
            number(count, "target")
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::{AttrPath, DrvPath};
    use crate::recording::Meta;

    fn path(name: &str) -> StorePath {
        StorePath::parse(&format!("/s/0123456789abcdfghijklmnpqrsvwxyz-{name}")).unwrap()
    }

    fn target(outputs: &[&str]) -> Target {
        Target {
            attr: AttrPath::default(),
            also: Vec::new(),
            name: "x".into(),
            drv: DrvPath::parse(path("x.drv").as_str()).unwrap(),
            outputs: outputs
                .iter()
                .map(|name| ((*name).to_owned(), path(name)))
                .collect(),
            system: String::new(),
            features: Vec::new(),
            meta: Meta::default(),
        }
    }

    #[test]
    fn a_target_is_skipped_only_where_all_its_outputs_are_known_and_there() {
        let answer = DryRun {
            missing: [path("missing")].into(),
            fetched: [path("fetched")].into(),
            ..DryRun::default()
        };
        for (outputs, expected) in [
            (&[][..], None),
            (&["here"], Some(BUILT)),
            (&["here", "fetched"], Some(CACHED)),
            (&["here", "missing"], None),
            (&["fetched", "missing"], None),
        ] {
            assert_eq!(reason(&target(outputs), &answer), expected, "{outputs:?}");
        }
    }

    #[test]
    fn a_reason_is_as_short_as_buildkite_has_it() {
        assert!(BUILT.len() <= 70 && CACHED.len() <= 70);
    }
}
