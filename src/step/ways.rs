//! The ways to a step's outputs, in one list. Each can be asked what it would do, and can be tried: `explain` does the one, `step` the
//! other, so they cannot drift apart.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::checkout::MadeCheckout;
use super::evaluating::Evaluating;
use super::links;
use super::outputs::VerifiedOutputs;
use super::realising::Realised;
use super::report::{Reason, WayName};
use super::run::StepRun;
use crate::command_line::{CommandLine, Ending};
use crate::evaluation_keys::check_file;
use crate::exit::{Class, Failure};
use crate::nix::{DrvPath, Evaluation, LockedFlake, StorePath, Trouble, command};
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

fn fact(what: impl Into<String>, found: impl Into<String>) -> Fact {
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
        [REALISED, AVAILABLE, EVALUATED]
    } else {
        [AVAILABLE, REALISED, EVALUATED]
    };
    skip.then_some(SKIPPED).into_iter().chain(ways)
}

// ---- skipped

fn go_skipped(step: &mut StepRun<'_>) -> Result<Option<VerifiedOutputs>, Failure> {
    if !are_there(step)? {
        step.note_dead_end(
            "the outputs are no longer here or in a substituter, where the recording found them",
        );
        return Ok(None);
    }
    step.begin_way(WayName::Available, Some(Reason::Skipped));
    step.discard_outputs_folder();
    let outputs = step.request.outputs.clone();
    Ok(Some(VerifiedOutputs::of_skipped_step(outputs)))
}

fn ask_skipped(step: &mut StepRun<'_>) -> Result<WayAnswer, Failure> {
    let outputs: Vec<&StorePath> = step.request.outputs.values().collect();
    let line = step.store.dry_run_line(step.supervisor, &outputs)?;
    let there = are_there(step)?;
    let found = if there {
        "are here, or a substituter has them: nothing is realised"
    } else {
        "are no longer all here or in a substituter"
    };
    Ok(WayAnswer {
        takes: there.then_some(Reason::Skipped),
        facts: vec![fact("the outputs of a step that may be skipped", found)],
        commands: vec![line],
    })
}

/// Whether all recorded outputs are here, or a substituter has them with all that they need. What cannot be queried counts as
/// missing: the other ways report why.
fn are_there(step: &mut StepRun<'_>) -> Result<bool, Failure> {
    let outputs: Vec<&StorePath> = step.request.outputs.values().collect();
    if outputs.is_empty() {
        return Ok(false);
    }
    let answer = step.store.dry_run(step.supervisor, &outputs)?;
    // A valid path is in no list; its file may be gone all the same.
    let is_here = |path: &StorePath| path.as_path().symlink_metadata().is_ok();
    Ok(answer.has_all()
        && outputs
            .iter()
            .all(|path| answer.fetched.contains(*path) || is_here(path)))
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
            step.note_dead_end(format_args!("{drv} is not valid{why}"));
            None
        }
    })
}

fn ask_realised(step: &mut StepRun<'_>) -> Result<WayAnswer, Failure> {
    let Some(drv) = step.request.drv.clone() else {
        return Ok(WayAnswer::no(vec![fact("the record", "names no .drv")]));
    };
    let path = drv.as_store_path();
    let file = if step.drv_file {
        "its file exists"
    } else {
        "its file does not exist"
    };
    let valid = step.is_valid(path)?;
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
    let options = step.options()?;
    let realise = command::realise(&drv, step.link.as_deref(), &options);
    let mut commands = vec![step.as_run(&realise)];
    if !there {
        commands.push(command::check_validity(path, &options));
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
        if let Ending::Killed(signal) = ending {
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
        step.note_dead_end(if run.output.trouble(true) == Some(Trouble::DaemonGone) {
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
    if let Some(refusal) = &answer.refusal {
        return Err(Failure::new(
            Class::Infrastructure,
            format_args!("the store cannot be asked for the outputs: {refusal}"),
        ));
    }
    let there = answer.has_all();
    let found = if there {
        "are valid, or a substituter has them"
    } else {
        "are not all here or in a substituter"
    };
    let hold = placeholder(step, "roots/NEW/root");
    let commands = obtaining(step, hold.as_deref())?;
    let mut commands: Vec<_> = commands.iter().map(|line| step.as_run(line)).collect();
    if !there {
        commands.truncate(1);
        if step.request.drv.is_none() {
            let options = step.options()?;
            commands.push(command::invalid_of(&outputs, &options));
        }
    }
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

// ---- evaluated

/// Why a step evaluates, with or without a recorded `.drv` whose file existed when it began, and an output that was lost.
fn evaluated_reason(recorded: bool, drv_file: bool, output_lost: bool) -> Reason {
    match (recorded, drv_file) {
        (false, _) => Reason::NotRecorded,
        (true, false) => Reason::DrvMissing,
        (true, true) if output_lost => Reason::OutputsCollected,
        (true, true) => Reason::DrvCollected,
    }
}

fn reason_to_evaluate(step: &StepRun<'_>) -> Reason {
    evaluated_reason(
        step.request.drv.is_some(),
        step.drv_file,
        step.lost.is_some(),
    )
}

/// What the step evaluates, where it has something to and this host lets it.
fn to_evaluate<'s>(step: &StepRun<'s>) -> Option<&'s Evaluation> {
    let evaluation = step.request.evaluation.as_ref();
    evaluation.filter(|_| !step.host.recorded_only)
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

fn note_drift(step: &mut StepRun<'_>, drv: &DrvPath) -> Result<(), Failure> {
    let recorded = step.request.drv.as_ref();
    let Some(recorded) = recorded.filter(|recorded| *recorded != drv) else {
        return Ok(());
    };
    step.drift = true;
    if step.request.fail_on_drift {
        return Err(Failure::new(Class::Drift, drift(drv, recorded)).hint(DRIFT_HINT));
    }
    Ok(())
}

fn ask_evaluated(step: &mut StepRun<'_>) -> Result<WayAnswer, Failure> {
    let Some(evaluation) = to_evaluate(step) else {
        let found = if step.host.recorded_only {
            "this host does not evaluate"
        } else {
            "the step names nothing"
        };
        return Ok(WayAnswer::no(vec![fact("what to evaluate", found)]));
    };
    let mut facts = Vec::new();
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
    commands.push(match &step.request.drv {
        Some(drv) => command::realise(drv, step.link.as_deref(), &options),
        None => command::realise_printed(step.link.as_deref(), &options),
    });
    let commands = commands.iter().map(|line| step.as_run(line)).collect();
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
        use WayName::{Available, Evaluated, Realised};
        assert_eq!(names(false, true), [Realised, Available, Evaluated]);
        assert_eq!(names(false, false), [Available, Realised, Evaluated]);
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
