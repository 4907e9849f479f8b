//! Which targets need no step: what is there already, here or in a cache; with `push`, in the store that gets the outputs. One
//! question to Nix for all of them, and to each such store.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::command_line::CommandLine;
use crate::counts::number;
use crate::exit::Failure;
use crate::log::Log;
use crate::nix::{DryRun, StorePath, StoreUrl, command};
use crate::recording::{RecordingRequest, SkipWhich, Target};
use crate::store::{Answer, PathQuestion, Store};
use crate::supervise::Supervisor;

/// Why a step is skipped whose outputs are in this host's store. At most 70 characters, as Buildkite has it.
pub(in crate::recording) const BUILT: &str = "already built here";

/// Why a step is skipped whose outputs a cache has.
pub(in crate::recording) const CACHED: &str = "a cache has it";

/// How the reason begins for which a target is skipped that is the same in the base.
pub(in crate::recording) const UNCHANGED: &str = "unchanged since ";

/// Why a step is skipped whose outputs the store has that `push` names, where its URL makes the sentence too long.
const PUSHED: &str = "already in the store that `push` names";

/// The most characters that Buildkite takes as a reason.
const REASON_AT_MOST: usize = 70;

/// For each target, why it needs no step; none where it needs one, as every target does whose outputs are not known. `answers` are
/// those to [`questions`], if they were asked already. `files_are_here`: the files of the store that Nix uses lie where its paths
/// say.
///
/// The outputs of a target with `push` are to be in that store: nowhere else counts for it.
///
/// # Errors
/// The local store cannot be asked (75). Another one that cannot be asked is a warning.
pub(in crate::recording) fn reasons(
    targets: &[Target],
    request: &RecordingRequest,
    answers: Option<Vec<Answer>>,
    files_are_here: bool,
    store: &mut Store,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<Vec<Option<String>>, Failure> {
    let mut reasons = vec![None; targets.len()];
    let Some(question) = question(request) else {
        return Ok(reasons);
    };
    let of = |group: &[usize]| -> Vec<&Target> { group.iter().map(|at| &targets[*at]).collect() };
    let (local, pushed) = groups(targets, request);
    if !local.is_empty() {
        let targets = of(&local);
        let mut answer = ask_here(&targets, question, answers, store, supervisor)?;
        if files_are_here {
            add_lost(&mut answer, &targets, store, supervisor, log)?;
        }
        if question == PathQuestion::DryRun {
            warn(&answer, log);
            add_incomplete(&mut answer, &targets, store, supervisor, log)?;
            add_untrusted(&mut answer, &targets, store, supervisor, log)?;
        }
        for (at, target) in local.iter().zip(targets) {
            reasons[*at] = reason(target, &answer).map(str::to_owned);
        }
    }
    for (to, group) in pushed {
        let targets = of(&group);
        match store.lacking(supervisor, &to, &outputs_of(&targets))? {
            Ok(missing) => {
                let answer = DryRun {
                    missing,
                    ..DryRun::default()
                };
                for (at, target) in group.iter().zip(targets) {
                    reasons[*at] = reason(target, &answer).map(|_| already_in(&to));
                }
            }
            Err(why) => log.warn(format_args!(
                "{to} cannot be asked, so {} not skipped because of it: {why}",
                number_is(group.len())
            )),
        }
    }
    Ok(reasons)
}

/// What this host is asked about these targets; [`reasons`] takes the answers. They are asked while something else has to be waited
/// for.
pub(in crate::recording) fn questions(
    targets: &[Target],
    request: &RecordingRequest,
    options: &command::Options,
) -> Vec<CommandLine> {
    let Some(question) = question(request) else {
        return Vec::new();
    };
    let (local, _) = groups(targets, request);
    let local: Vec<&Target> = local.into_iter().map(|at| &targets[at]).collect();
    Store::asked_by(question, &outputs_of(&local), options)
}

/// What this host's store is asked about outputs; nothing where no target is skipped.
fn question(request: &RecordingRequest) -> Option<PathQuestion> {
    match request.skip {
        SkipWhich::Nothing => None,
        SkipWhich::Built => Some(PathQuestion::Invalid),
        SkipWhich::Cached => Some(PathQuestion::DryRun),
    }
}

/// The targets that are looked for here, and those that are looked for in the store that gets their outputs, by their numbers.
fn groups(
    targets: &[Target],
    request: &RecordingRequest,
) -> (Vec<usize>, Vec<(StoreUrl, Vec<usize>)>) {
    let mut local = Vec::new();
    let mut pushed: Vec<(StoreUrl, Vec<usize>)> = Vec::new();
    for (at, target) in targets.iter().enumerate() {
        match push_of(target, request) {
            Ok(None) => local.push(at),
            Ok(Some(to)) => match pushed.iter_mut().find(|(other, _)| *other == to) {
                Some((_, group)) => group.push(at),
                None => pushed.push((to, vec![at])),
            },
            // Its step reports what is wrong.
            Err(_) => {}
        }
    }
    (local, pushed)
}

/// The store to which the step of a target pushes, as the maker of the steps decides it.
pub(in crate::recording) fn push_of(
    target: &Target,
    request: &RecordingRequest,
) -> Result<Option<StoreUrl>, String> {
    let own = target.meta.eval_once.as_ref().filter(|_| request.meta);
    match own.and_then(|keys| keys.get("push")) {
        None => Ok(request.push.clone()),
        Some(url) => StoreUrl::parse(url.as_str().unwrap_or_default()).map(Some),
    }
}

/// Where it is too long, the URL is shown without its parameters, or not at all.
fn already_in(store: &StoreUrl) -> String {
    let url = store.as_str();
    let (address, _parameters) = url.split_once('?').unwrap_or((url, ""));
    let reasons = [url, address].map(|url| format!("already in {url}"));
    let fits = |reason: &String| reason.chars().count() <= REASON_AT_MOST;
    reasons
        .into_iter()
        .find(fits)
        .unwrap_or_else(|| PUSHED.into())
}

/// What of these targets is missing here, or in a cache as well.
fn ask_here(
    targets: &[&Target],
    question: PathQuestion,
    answers: Option<Vec<Answer>>,
    store: &mut Store,
    supervisor: &mut Supervisor,
) -> Result<DryRun, Failure> {
    let paths = outputs_of(targets);
    if question == PathQuestion::Invalid {
        return Ok(DryRun {
            missing: match answers {
                Some(answers) => store.read_invalid(supervisor, &paths, answers)?,
                None => store.invalid(supervisor, &paths)?,
            },
            ..DryRun::default()
        });
    }
    match answers {
        Some(answers) => store.read_dry_run(supervisor, &paths, answers),
        None => store.dry_run(supervisor, &paths),
    }
}

/// Counts outputs as missing whose files are gone. Those that Nix takes for valid all the same are warned of: their steps would end
/// with 75. The others were collected since Nix was asked.
fn add_lost(
    answer: &mut DryRun,
    targets: &[&Target],
    store: &mut Store,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<(), Failure> {
    let is_lost = |path: &StorePath| path.as_path().symlink_metadata().is_err();
    let lost_of = |target: &Target| {
        let outputs = target.outputs.paths();
        let lost = outputs.filter(|path| !answer.fetched.contains(path) && is_lost(path));
        lost.cloned().collect::<HashSet<_>>()
    };
    let skipped = targets.iter().filter(|it| reason(it, answer).is_some());
    let lost: Vec<HashSet<StorePath>> = skipped
        .map(|target| lost_of(target))
        .filter(|lost| !lost.is_empty())
        .collect();
    if lost.is_empty() {
        return Ok(());
    }
    let paths: HashSet<&StorePath> = lost.iter().flatten().collect();
    let collected = store.invalid(supervisor, &paths.into_iter().collect::<Vec<_>>())?;
    let count = lost
        .iter()
        .filter(|lost| !lost.is_subset(&collected))
        .count();
    answer.missing.extend(lost.into_iter().flatten());
    if count > 0 {
        log.warn(format_args!(
            "{} registered as built, and the files are gone: not skipped; run `nix-store --verify` on this host",
            number_is(count)
        ));
    }
    Ok(())
}

/// How many targets are something: `1 target is`.
fn number_is(count: usize) -> String {
    let verb = if count == 1 { "is" } else { "are" };
    format!("{} {verb}", number(count, "target"))
}

/// Why a target needs no step.
fn reason(target: &Target, answer: &DryRun) -> Option<&'static str> {
    let outputs = || target.outputs.paths();
    if target.outputs.is_empty() || outputs().any(|path| answer.missing.contains(path)) {
        return None;
    }
    let cached = outputs().any(|path| answer.fetched.contains(path));
    Some(if cached { CACHED } else { BUILT })
}

fn outputs_of<'t>(targets: &[&'t Target]) -> Vec<&'t StorePath> {
    let outputs = targets.iter().map(|target| target.outputs.paths());
    outputs.flatten().collect()
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
    targets: &[&Target],
    store: &mut Store,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<(), Failure> {
    let cached: Vec<&Target> = targets
        .iter()
        .copied()
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
        let paths = outputs_of(part);
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

/// Counts what substituters have, and Nix would not take from them, as missing: such a target has to be built, and what is in a cache
/// says nothing of whether it can be.
fn add_untrusted(
    answer: &mut DryRun,
    targets: &[&Target],
    store: &mut Store,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<(), Failure> {
    let is_cached = |target: &&Target| reason(target, answer) == Some(CACHED);
    let cached: Vec<&Target> = targets.iter().copied().filter(is_cached).collect();
    let mut outputs = outputs_of(&cached);
    outputs.retain(|path| answer.fetched.contains(*path));
    let trust = store.trust(supervisor, &outputs)?;
    answer.missing.extend(trust.untrusted);
    let is_skipped = |target: &&&Target| reason(target, answer).is_some();
    let count = cached.len() - cached.iter().filter(is_skipped).count();
    match trust.unanswered {
        _ if count == 0 => {}
        Some(why) => log.warn(format_args!("{} not skipped: {why}", number_is(count))),
        None => log.warn(format_args!(
            "a cache has {}, without a signature that this host trusts: not skipped",
            number(count, "target")
        )),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::{AttrPath, DrvPath};
    use crate::recording::Meta;
    use crate::recording::pipeline::fixtures::request;

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
            followers: Vec::new(),
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
        for reason in [BUILT, CACHED, PUSHED] {
            assert!(reason.len() <= REASON_AT_MOST, "{reason}");
        }
        let store = |name: &str| StoreUrl::parse(&format!("s3://{name}")).unwrap();
        assert_eq!(already_in(&store("a")), "already in s3://a");
        assert_eq!(already_in(&store(&"a".repeat(54))).len(), REASON_AT_MOST);
        assert_eq!(already_in(&store(&"a".repeat(55))), PUSHED);
        let parameters = format!("a?endpoint={}", "b".repeat(60));
        assert_eq!(already_in(&store(&parameters)), "already in s3://a");
    }

    #[test]
    fn the_store_that_a_target_names_itself_wins_where_its_meta_counts() {
        let push = |own: Option<serde_json::Value>, meta: bool| {
            let mut target = target(&[]);
            target.meta.eval_once = own.map(|url| {
                let mut keys = crate::keys::Keys::new();
                keys.insert("push".into(), url);
                keys
            });
            let request = RecordingRequest {
                push: StoreUrl::parse("s3://recordings").ok(),
                meta,
                ..request()
            };
            push_of(&target, &request).map(|url| url.map(|url| url.to_string()))
        };
        let url = |url: &str| Ok(Some(url.to_owned()));
        assert_eq!(push(None, true), url("s3://recordings"));
        assert_eq!(push(Some("s3://own".into()), true), url("s3://own"));
        assert_eq!(push(Some("s3://own".into()), false), url("s3://recordings"));
        assert!(push(Some("nowhere".into()), true).is_err());
        assert!(push(Some(5.into()), true).is_err());
    }
}
