//! The ways to a step's outputs, in one list. Each can be asked what it would do, and can be tried: `explain` does the one, `step` the
//! other, so they cannot drift apart.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::checkout::MadeCheckout;
use super::evaluating::Evaluating;
use super::fetching::share_is_required;
use super::links;
use super::outputs::VerifiedOutputs;
use super::realising::Realised;
use super::report::{Reason, TriedShare, WayName};
use super::run::{StepRun, as_run};
use crate::buildkite::agent;
use crate::command_line::{CommandLine, Ending};
use crate::evaluation_keys::check_file;
use crate::exit::{Class, Failure};
use crate::nix::{
    DrvPath, Evaluation, LockedFlake, StorePath, StoreUrl, Trouble, caches, class, command,
};
use crate::share::{ArchivePlace, ShareError};
use crate::share_keys::Share;
use crate::state::Roots;
use crate::store::{ATTEMPTS, COLLECTOR_HINT};

/// What a way answers when it is asked.
pub(super) struct WayAnswer {
    /// Why it would be taken; none where it would not.
    pub(super) takes: Option<Reason>,
    /// What was looked at, and what was found there.
    pub(super) facts: Vec<Fact>,
    /// What it would run, also where that would not lead to the outputs.
    pub(super) commands: Vec<CommandLine>,
}

impl WayAnswer {
    /// The way is not taken, and runs nothing.
    fn no(facts: Vec<Fact>) -> Self {
        Self {
            takes: None,
            facts,
            commands: Vec::new(),
        }
    }
}

/// Something that was looked at.
#[derive(Debug, Serialize)]
pub struct Fact {
    /// What was looked at.
    pub what: String,
    /// What was found.
    pub found: String,
}

/// What was looked at, and what was found.
pub(super) fn fact(what: impl Into<String>, found: impl Into<String>) -> Fact {
    Fact {
        what: what.into(),
        found: found.into(),
    }
}

/// One way: its two sides, and its name.
pub(super) struct Way {
    pub(super) name: WayName,
    /// Answers what it would do. Builds, fetches and evaluates nothing.
    pub(super) ask: fn(&mut StepRun<'_>) -> Result<WayAnswer, Failure>,
    /// Tries it. `None`: it leads nowhere, and the next one is tried.
    pub(super) go: fn(&mut StepRun<'_>) -> Result<Option<VerifiedOutputs>, Failure>,
}

impl Way {
    /// Whether it begins at the record: none of those leads anywhere where that is of a store in another folder.
    pub(super) fn needs_record(&self) -> bool {
        self.name != WayName::Evaluated
    }
}

const REALISED: Way = Way {
    name: WayName::Realised,
    ask: ask_realised,
    go: go_realised,
};
const AVAILABLE: Way = Way {
    name: WayName::Available,
    ask: ask_available,
    go: go_available,
};
const FETCHED: Way = Way {
    name: WayName::Fetched,
    ask: ask_fetched,
    go: go_fetched,
};
const EVALUATED: Way = Way {
    name: WayName::Evaluated,
    ask: ask_evaluated,
    go: go_evaluated,
};

/// No way to the outputs, but the check that a recording's skipped step asks for: that they are still there.
const SKIPPED: Way = Way {
    name: WayName::Available,
    ask: ask_skipped,
    go: go_skipped,
};

/// The ways in the order in which they are tried.
///
/// Where the file of the `.drv` does not exist, its outputs come first: a substituter that has both would send the `.drv`'s whole
/// closure for the one, and one path for the other. The file decides no more than this order: it says nothing about a store that
/// lies elsewhere, and nothing about a moment later.
///
/// With `skip`, it is enough that the outputs are there: that is checked before all ways.
pub(super) fn in_order(skip: bool, drv_file: bool) -> impl Iterator<Item = Way> {
    let ways = if drv_file {
        [REALISED, AVAILABLE, FETCHED, EVALUATED]
    } else {
        [AVAILABLE, REALISED, FETCHED, EVALUATED]
    };
    skip.then_some(SKIPPED).into_iter().chain(ways)
}

/// The answer of a way from a record of a store in another folder: it is not taken, after these commands and the one that finds
/// that out. That fact is one of the evaluation, which is all that is left.
fn of_other_store(
    step: &mut StepRun<'_>,
    mut commands: Vec<CommandLine>,
) -> Result<WayAnswer, Failure> {
    commands.push(step.store.folder_line(step.supervisor)?);
    Ok(WayAnswer {
        takes: None,
        facts: Vec::new(),
        commands,
    })
}

// ---- skipped

fn go_skipped(step: &mut StepRun<'_>) -> Result<Option<VerifiedOutputs>, Failure> {
    let (there, _) = are_there(step)?;
    if !there {
        let why = format!(
            "the outputs are no longer {}, where the recording found them",
            where_skipped(step)
        );
        step.note_dead_end_of_record(why);
        return Ok(None);
    }
    step.begin_way(WayName::Available, Some(Reason::Skipped));
    step.discard_outputs_folder();
    let outputs = step.request.outputs.clone();
    Ok(Some(VerifiedOutputs::of_skipped_step(outputs)))
}

fn ask_skipped(step: &mut StepRun<'_>) -> Result<WayAnswer, Failure> {
    let outputs: Vec<&StorePath> = step.request.outputs.values().collect();
    let line = match &step.request.push {
        Some(to) => step.store.lacking_line(step.supervisor, to, &outputs)?,
        None => step.store.dry_run_line(step.supervisor, &outputs)?,
    };
    let (there, mut commands) = are_there(step)?;
    commands.insert(0, line);
    if step.other_store().is_some() {
        return of_other_store(step, commands);
    }
    let found = if there {
        format!("are {}: nothing is realised", where_skipped(step))
    } else {
        format!("are no longer all {}", where_skipped(step))
    };
    Ok(WayAnswer {
        takes: there.then_some(Reason::Skipped),
        facts: vec![fact("the outputs of a step that may be skipped", found)],
        commands,
    })
}

/// Where the recording has found the outputs of a step that may be skipped.
fn where_skipped(step: &StepRun<'_>) -> String {
    match &step.request.push {
        Some(to) => format!("in {to}"),
        None => "here or in a substituter, signed by a key that this host trusts".into(),
    }
}

/// Whether all recorded outputs are here, or a substituter has them with all that they need; with `push`, whether they are in that
/// store, wherever else they are. What cannot be queried counts as missing: the other ways report why. Also gives the commands that
/// have asked for signatures.
fn are_there(step: &mut StepRun<'_>) -> Result<(bool, Vec<CommandLine>), Failure> {
    let outputs: Vec<&StorePath> = step.request.outputs.values().collect();
    if outputs.is_empty() {
        return Ok((false, Vec::new()));
    }
    if let Some(to) = &step.request.push {
        let lacking = step.store.lacking(step.supervisor, to, &outputs)?;
        return Ok((lacking.is_ok_and(|lacking| lacking.is_empty()), Vec::new()));
    }
    let answer = step.store.dry_run(step.supervisor, &outputs)?;
    // A valid path is in no list; its file may be gone all the same.
    let is_here = |path: &StorePath| path.as_path().symlink_metadata().is_ok();
    let (fetched, others): (Vec<&StorePath>, Vec<_>) = outputs
        .into_iter()
        .partition(|path| answer.fetched.contains(*path));
    if !answer.has_all() || !others.into_iter().all(is_here) {
        return Ok((false, Vec::new()));
    }
    let trust = step.store.trust(step.supervisor, &fetched)?;
    Ok((trust.untrusted.is_empty(), trust.commands))
}

// ---- realised

fn go_realised(step: &mut StepRun<'_>) -> Result<Option<VerifiedOutputs>, Failure> {
    let Some(drv) = step.request.drv.clone() else {
        return Ok(None);
    };
    step.begin_way(WayName::Realised, None);
    Ok(match step.realise(&drv)? {
        Realised::Outputs(outputs) => {
            step.reason = Some(step.realised_reason());
            Some(outputs)
        }
        Realised::OutputLost => None,
        Realised::Gone => {
            let why = if step.drv_file {
                ": the garbage collector took it, or it was never registered"
            } else {
                ""
            };
            step.note_dead_end_of_record(format_args!("{drv} is not valid{why}"));
            None
        }
    })
}

/// The command that realises a `.drv`, as it is run, and the question of why that has failed.
fn realising(step: &mut StepRun<'_>, drv: &DrvPath) -> Result<[CommandLine; 2], Failure> {
    let options = step.options()?;
    let realise = command::realise(drv, step.link.as_deref(), &options);
    let check = command::check_validity(drv.as_store_path(), &options);
    Ok([as_run(&realise), check])
}

fn ask_realised(step: &mut StepRun<'_>) -> Result<WayAnswer, Failure> {
    let Some(drv) = step.request.drv.clone() else {
        return Ok(WayAnswer::no(vec![fact("the record", "names no .drv")]));
    };
    let path = drv.as_store_path();
    let [realise, check] = realising(step, &drv)?;
    let file = if step.drv_file {
        "its file exists"
    } else {
        "its file does not exist"
    };
    let valid = step.is_valid(path)?;
    if step.other_store().is_some() {
        return of_other_store(step, vec![realise, check]);
    }
    let validity = if valid { "is valid" } else { "is not valid" };
    let mut facts = vec![fact(drv.to_string(), file), fact(drv.to_string(), validity)];
    let mut there = valid;
    if !valid {
        for substituter in step.store.substituters(step.supervisor)? {
            let answer = step
                .store
                .substituter_has(step.supervisor, &substituter, path)?;
            let found = match answer {
                Some(true) => "has the .drv",
                Some(false) => "does not have the .drv",
                None => "cannot be queried",
            };
            facts.push(fact(substituter, found));
            there = answer == Some(true);
            if there {
                break;
            }
        }
    }
    let mut commands = vec![realise];
    if !there {
        commands.push(check);
    }
    Ok(WayAnswer {
        takes: there.then(|| step.realised_reason()),
        facts,
        commands,
    })
}

// ---- available

/// The commands that obtain all recorded outputs and link each as Nix would have linked it; `hold` roots them all meanwhile. Nix
/// itself would number the links (`result-2`), so with several outputs each gets a command of its own.
fn obtaining(step: &mut StepRun<'_>, hold: Option<&Path>) -> Result<Vec<CommandLine>, Failure> {
    let options = step.options()?;
    let outputs = &step.request.outputs;
    let link = |name: &str| step.link.as_deref().map(|base| links::link_of(base, name));
    let mut commands = Vec::new();
    if outputs.len() > 1 {
        let all: Vec<_> = outputs.values().collect();
        commands.push(command::obtain(&all, hold, &options));
    }
    if outputs.len() == 1 || step.link.is_some() {
        commands.extend(
            outputs
                .iter()
                .map(|(name, path)| command::obtain(&[path], link(name).as_deref(), &options)),
        );
    }
    Ok(commands)
}

fn go_available(step: &mut StepRun<'_>) -> Result<Option<VerifiedOutputs>, Failure> {
    let outputs: Vec<&StorePath> = step.request.outputs.values().collect();
    if outputs.is_empty() {
        return Ok(None);
    }
    step.begin_way(WayName::Available, None);
    let hold = if outputs.len() > 1 {
        step.state().and_then(|state| state.roots().ok())
    } else {
        None
    };
    let mut lines: VecDeque<CommandLine> =
        obtaining(step, hold.as_ref().map(Roots::link).as_deref())?.into();
    let mut repeated = false;
    while let Some(line) = lines.pop_front() {
        let run = step.run_building(&line, "fetching the recorded outputs")?;
        let ending = run.finished.ending;
        if ending.success() {
            continue;
        }
        if let Ending::Killed(signal) = ending
            && !class::has_come_to_its_end(ending, &run.output)
        {
            return Err(Failure::new(
                Class::Signal(signal),
                format_args!("`{line}` {ending}"),
            ));
        }
        step.probe_links(step.request.drv.as_ref())?;
        // With a `.drv`, the way `realised` asks the store about that one. Without, another step may have registered the outputs
        // before we ask: then they are obtained once more.
        if step.request.drv.is_none()
            && step.store.invalid(step.supervisor, &outputs)?.is_empty()
            && !repeated
        {
            repeated = true;
            step.log
                .say("the recorded outputs were missing, and are valid now");
            lines.push_front(line);
            continue;
        }
        step.note_dead_end_of_record(if run.output.trouble(true) == Some(Trouble::DaemonGone) {
            "the store cannot be asked for the recorded outputs"
        } else if step.store.lacks_a_substituter() {
            "the recorded outputs are not here, and a substituter that may have them is unreachable"
        } else {
            "the recorded outputs are neither here nor in a substituter"
        });
        return Ok(None);
    }
    let verified = step.verify(step.request.outputs.clone())?;
    if verified.is_some() {
        step.reason = Some(Reason::OutputsAvailable);
    }
    Ok(verified)
}

fn ask_available(step: &mut StepRun<'_>) -> Result<WayAnswer, Failure> {
    let outputs: Vec<&StorePath> = step.request.outputs.values().collect();
    if outputs.is_empty() {
        return Ok(WayAnswer::no(vec![fact("the record", "names no outputs")]));
    }
    let answer = step.store.dry_run(step.supervisor, &outputs)?;
    let fetched: Vec<&StorePath> = step
        .request
        .outputs
        .values()
        .filter(|path| answer.fetched.contains(*path))
        .collect();
    let has_all = answer.has_all();
    // What the way runs does not ask for signatures: Nix refuses by itself.
    let there = has_all
        && step
            .store
            .trust(step.supervisor, &fetched)?
            .untrusted
            .is_empty();
    let hold = placeholder(step, "roots/NEW/root");
    let commands = obtaining(step, hold.as_deref())?;
    let mut commands: Vec<_> = commands.iter().map(as_run).collect();
    if !there {
        commands.truncate(1);
        if step.request.drv.is_none() {
            let options = step.options()?;
            commands.push(command::invalid_of(&outputs, &options));
        }
    }
    if step.other_store().is_some() {
        // A step that has a `.drv` finds that out where it realises it.
        if let Some(drv) = step.request.drv.clone() {
            commands.extend(realising(step, &drv)?);
        }
        return of_other_store(step, commands);
    }
    if let Some(refusal) = &answer.refusal {
        return Err(Failure::new(
            Class::Infrastructure,
            format_args!("the store cannot be asked for the outputs: {refusal}"),
        ));
    }
    let found = if there {
        "are valid, or a substituter has them"
    } else if has_all {
        "are in a substituter, and not signed by a key that this host trusts"
    } else {
        "are not all here or in a substituter"
    };
    Ok(WayAnswer {
        takes: there.then_some(Reason::OutputsAvailable),
        facts: vec![fact("the recorded outputs", found)],
        commands,
    })
}

/// A path in the state folder, where a step would have one with a random name.
pub(super) fn placeholder(step: &StepRun<'_>, path: &str) -> Option<PathBuf> {
    step.host.state.as_ref().map(|folder| folder.join(path))
}

// ---- fetched

fn go_fetched(step: &mut StepRun<'_>) -> Result<Option<VerifiedOutputs>, Failure> {
    let Some(drv) = step.request.drv.clone() else {
        return Ok(None);
    };
    let Some(share) = step.share() else {
        if step.request.share_required {
            return Err(share_is_required(&drv, "the step has no share")
                .hint("record again with a `share`, or leave out `share-required`"));
        }
        return Ok(None);
    };
    step.begin_way(WayName::Fetched, None);
    let mut lost = 0;
    let mut tried = TriedShare {
        from: share.to_string(),
        failure: None,
    };
    step.tried_share = Some(tried.clone());
    let why = loop {
        match step.fetch(&drv, &share) {
            Ok(()) => step.reason = Some(Reason::FetchedFromShare),
            Err(ShareError::Share(why)) => {
                let clause = format!("cannot be fetched from {share} ({why})");
                tried.failure = Some(why);
                break clause;
            }
            Err(ShareError::Ends(failure)) => return Err(failure),
        }
        if let Realised::Outputs(outputs) = step.realise(&drv)? {
            return Ok(Some(outputs));
        }
        lost += 1;
        if lost == ATTEMPTS {
            tried.failure = Some(format!(
                "collected {ATTEMPTS} times right after it was fetched"
            ));
            break format!(
                "was collected {ATTEMPTS} times right after it was fetched from {share}"
            );
        }
    };
    step.tried_share = Some(tried);
    if step.request.share_required {
        return Err(share_is_required(&drv, &why)
            .hint("mend the share, or leave out `share-required`: then the step evaluates again"));
    }
    // Where the step cannot evaluate, its failure says it.
    if to_evaluate(step).is_some() {
        step.note_dead_end(format_args!("the .drv {why}"));
    } else {
        step.share_failure = Some(why);
    }
    Ok(None)
}

fn ask_fetched(step: &mut StepRun<'_>) -> Result<WayAnswer, Failure> {
    let Some(drv) = step.request.drv.clone() else {
        return Ok(WayAnswer::no(Vec::new()));
    };
    let Some(share) = step.share() else {
        return Ok(WayAnswer::no(vec![fact("a share", "is not set")]));
    };
    let mut commands = Vec::new();
    let (from, found, takes) = match &share {
        Share::Store(url) => {
            let path = drv.as_store_path();
            let answer = step
                .store
                .substituter_has(step.supervisor, url.as_str(), path)?;
            let found = match answer {
                Some(true) => "has the .drv",
                Some(false) => "does not have the .drv",
                None => "cannot be queried",
            };
            (Some(url.clone()), found, answer == Some(true))
        }
        Share::Artifact(name) => {
            let state = step.host.state.as_deref().unwrap_or(Path::new("/"));
            let place = ArchivePlace::of(state, name);
            if !place.is_unpacked {
                commands.push(agent::download_from_build(
                    &agent::every_upload_of(name),
                    &place.download_to,
                ));
            }
            let has = |url: &StoreUrl| {
                caches::file_in_cache(url.as_str(), drv.as_store_path())
                    .is_some_and(|file| file.exists())
            };
            let (found, takes) = match &place.url {
                Some(url) if place.is_unpacked && has(url) => {
                    ("is unpacked here, and has the .drv", true)
                }
                _ if place.is_unpacked => ("is unpacked here, and does not have the .drv", false),
                _ if step.in_build => ("is not unpacked here: it would be downloaded", true),
                _ => (
                    "is not unpacked here, and only a job can download it",
                    false,
                ),
            };
            (place.url, found, takes)
        }
    };
    if let Some(from) = from {
        commands.push(
            step.store
                .copy_drv_from_line(step.supervisor, &from, &drv)?,
        );
    }
    let options = step.options()?;
    let realise = command::realise(&drv, step.link.as_deref(), &options);
    commands.push(as_run(&realise));
    Ok(WayAnswer {
        takes: takes.then_some(Reason::FetchedFromShare),
        facts: vec![fact(share.to_string(), found)],
        commands,
    })
}

// ---- evaluated

/// Why a step evaluates whose record is of this host's store, with or without a recorded `.drv` whose file existed when it began,
/// and an output that was lost.
fn evaluated_reason(recorded: bool, drv_file: bool, output_lost: bool) -> Reason {
    match (recorded, drv_file) {
        (false, _) => Reason::NotRecorded,
        (true, false) => Reason::DrvMissing,
        (true, true) if output_lost => Reason::OutputsCollected,
        (true, true) => Reason::DrvCollected,
    }
}

fn reason_to_evaluate(step: &StepRun<'_>) -> Reason {
    if step.other_store().is_some() {
        return Reason::OtherStore;
    }
    evaluated_reason(
        step.request.drv.is_some(),
        step.drv_file,
        step.lost.is_some(),
    )
}

/// What the step evaluates, where it has something to, and neither this host nor the step forbids it.
fn to_evaluate<'s>(step: &StepRun<'s>) -> Option<&'s Evaluation> {
    let evaluation = step.request.evaluation.as_ref();
    evaluation.filter(|_| !step.host.recorded_only && !needs_share(step))
}

/// Whether a step fails rather than evaluate where its share does not give the `.drv`.
fn needs_share(step: &StepRun<'_>) -> bool {
    step.request.share_required && step.request.drv.is_some()
}

fn go_evaluated(step: &mut StepRun<'_>) -> Result<Option<VerifiedOutputs>, Failure> {
    let Some(evaluation) = to_evaluate(step) else {
        return Ok(None);
    };
    let checkout = step.make_skipped_checkout()?;
    let evaluation = match &checkout {
        Some(checkout) => &checkout.evaluation(step, evaluation)?,
        None => evaluation,
    };
    let place = checkout.as_ref().map_or(step.checkout, MadeCheckout::place);
    check_file(evaluation, false, place)?;
    step.begin_way(WayName::Evaluated, Some(reason_to_evaluate(step)));
    step.lost = None;
    let mut evaluating = Evaluating::new(step, evaluation);
    while let Some(drv) = evaluating.next_drv(step)? {
        if step.drv.replace(drv.clone()).as_ref() != Some(&drv) {
            note_drift(step, &drv)?;
        }
        step.check_links(Some(&drv))?;
        match step.realise(&drv)? {
            Realised::Outputs(outputs) => return Ok(Some(outputs)),
            Realised::Gone => step.note_dead_end(format_args!(
                "{drv} is not valid: the garbage collector took it after the evaluation"
            )),
            Realised::OutputLost => {}
        }
        evaluating.count_disturbance();
    }
    Err(match &step.lost {
        Some(path) => Failure::new(
            Class::Infrastructure,
            format_args!("{path} does not exist, although Nix has realised it {ATTEMPTS} times"),
        )
        .hint(lost_hint()),
        None => evaluating.failure(),
    })
}

/// What to do about outputs that do not exist although Nix says so.
pub(super) fn lost_hint() -> String {
    format!(
        "{COLLECTOR_HINT}. If none was running, the store has lost files that it still lists: `nix-store --verify --check-contents --repair` finds and mends them"
    )
}

/// What to do about drift.
const DRIFT_HINT: &str = "something that the evaluation reads has changed (another commit, Nix version or channel): record again, lock it, or set `on-drift: warn`";

/// Drift, in a sentence.
pub(super) fn drift(drv: &DrvPath, recorded: &DrvPath) -> String {
    format!("drift: evaluating again gave {drv}, where {recorded} was recorded")
}

/// Whether an evaluation gave another derivation than was recorded. The hash of a `.drv` depends on the store's folder: of stores
/// in two, only the names can be compared.
fn is_drift(recorded: &DrvPath, drv: &DrvPath) -> bool {
    let (ours, theirs) = (recorded.as_store_path(), drv.as_store_path());
    ours != theirs && (ours.store() == theirs.store() || recorded.name() != drv.name())
}

fn note_drift(step: &mut StepRun<'_>, drv: &DrvPath) -> Result<(), Failure> {
    let recorded = step.request.drv.as_ref();
    let Some(recorded) = recorded.filter(|recorded| is_drift(recorded, drv)) else {
        return Ok(());
    };
    step.drift = true;
    if step.request.fail_on_drift {
        return Err(Failure::new(Class::Drift, drift(drv, recorded)).hint(DRIFT_HINT));
    }
    Ok(())
}

fn ask_evaluated(step: &mut StepRun<'_>) -> Result<WayAnswer, Failure> {
    let mut facts: Vec<Fact> = Vec::new();
    facts.extend(step.other_store().map(|found| fact("the store", found)));
    let Some(evaluation) = to_evaluate(step) else {
        let found = if step.host.recorded_only {
            "this host does not evaluate"
        } else if needs_share(step) && step.request.evaluation.is_some() {
            "`share-required` does not let the step evaluate"
        } else {
            "the step names nothing"
        };
        facts.push(fact("what to evaluate", found));
        return Ok(WayAnswer::no(facts));
    };
    let mut commands = Vec::new();
    let checkouts = placeholder(step, "checkouts");
    let evaluation = &match step.checkout_to_make(checkouts)? {
        Some(checkout) => {
            facts.push(fact(checkout.what, checkout.found));
            commands = checkout.commands;
            Evaluation {
                folder: checkout.folder,
                ..evaluation.clone()
            }
        }
        None => evaluation.clone(),
    };
    if let Some(file) = evaluation.needs_file().filter(|_| commands.is_empty()) {
        let exists = file.exists();
        let found = if exists {
            "exists"
        } else {
            "does not exist: the step would fail"
        };
        facts.push(fact(file.display().to_string(), found));
        if !exists {
            return Ok(WayAnswer::no(facts));
        }
    }
    commands.extend(step.store.lock_line(step.supervisor, evaluation)?);
    let options = step.options()?;
    let root = placeholder(step, "roots/NEW/root");
    commands.push(command::instantiate(
        evaluation,
        Some(&LockedFlake::shown_as("LOCKED")),
        root.as_deref(),
        &options,
    ));
    let recorded = step.request.drv.as_ref();
    commands.push(match recorded.filter(|_| step.other_store().is_none()) {
        Some(drv) => command::realise(drv, step.link.as_deref(), &options),
        None => command::realise_printed(step.link.as_deref(), &options),
    });
    let commands = commands.iter().map(as_run).collect();
    Ok(WayAnswer {
        takes: Some(reason_to_evaluate(step)),
        facts,
        commands,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ways by their names, and whether the first one only checks.
    fn names(skip: bool, drv_file: bool) -> Vec<WayName> {
        in_order(skip, drv_file).map(|way| way.name).collect()
    }

    #[test]
    fn the_outputs_come_before_a_drv_whose_file_does_not_exist() {
        use WayName::{Available, Evaluated, Fetched, Realised};
        assert_eq!(
            names(false, true),
            [Realised, Available, Fetched, Evaluated]
        );
        assert_eq!(
            names(false, false),
            [Available, Realised, Fetched, Evaluated]
        );
    }

    #[test]
    fn a_skipped_step_checks_its_outputs_before_every_way() {
        for drv_file in [true, false] {
            let ways = names(true, drv_file);
            assert_eq!(ways[0], WayName::Available);
            assert_eq!(ways[1..], names(false, drv_file));
        }
    }

    #[test]
    fn evaluating_is_the_last_way_whatever_is_known() {
        for (skip, drv_file) in [(true, true), (true, false), (false, true), (false, false)] {
            assert_eq!(names(skip, drv_file).last(), Some(&WayName::Evaluated));
        }
    }

    #[test]
    fn the_reason_to_evaluate_tells_a_drv_that_was_never_here_from_one_that_was_collected() {
        for (recorded, drv_file, output_lost, reason) in [
            (false, false, false, Reason::NotRecorded),
            (false, false, true, Reason::NotRecorded),
            (true, false, false, Reason::DrvMissing),
            (true, false, true, Reason::DrvMissing),
            (true, true, false, Reason::DrvCollected),
            (true, true, true, Reason::OutputsCollected),
        ] {
            assert_eq!(evaluated_reason(recorded, drv_file, output_lost), reason);
        }
    }
}
