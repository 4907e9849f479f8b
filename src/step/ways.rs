//! The ways to a step's outputs, in one list. Each can be asked what it would do, and can be gone; `explain` does the one,
//! `step` the other, so they cannot drift apart.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use super::diagnosis;
use super::links;
use super::report::{Reason, WayName};
use super::run::{Realised, StepRun, VerifiedOutputs};
use crate::command_line::{CommandLine, Ending};
use crate::evaluation_keys::check_file;
use crate::exit::{Class, Classify as _, Failure};
use crate::host;
use crate::nix::{
    Disturbance, DrvPath, Evaluation, FlakeMetadata, LockedFlake, NixOutput, Phase, Source,
    StorePath, Trouble, caches, class, command,
};
use crate::state::{Roots, StateFolder};
use crate::supervise::Finished;
use crate::text::shortened;

/// How much of Nix's message is told as what failed, in characters; all of it stands in the log.
const MESSAGE_AT_MOST: usize = 4 << 10;

/// How much of a value that is no derivation is shown, in characters.
const VALUE_AT_MOST: usize = 200;

/// What a way says when it is asked.
pub(super) struct WayAnswer {
    /// Why it would be taken; none where it would not.
    pub(super) takes: Option<Reason>,
    /// What was looked at, and what was found there.
    pub(super) facts: Vec<Fact>,
    /// What it would run, also where that would not lead to the outputs.
    pub(super) commands: Vec<CommandLine>,
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
    /// What would it do? Builds, fetches and evaluates nothing.
    pub(super) ask: fn(&mut StepRun<'_>) -> Result<WayAnswer, Failure>,
    /// Goes it. `None`: it leads nowhere, try the next.
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

/// No way to the outputs, but the answer that a recording's skipped step asks for: that they are there.
const SKIPPED: Way = Way {
    name: WayName::Available,
    ask: ask_skipped,
    go: go_skipped,
};

/// The ways in the order in which they are tried.
///
/// Where the file of the `.drv` is not there, its outputs come first: a cache that has both would send the `.drv`'s whole
/// closure for the one, and one path for the other. The file decides no more than this order, because it says nothing
/// about a store that lies elsewhere, and nothing about a moment later.
///
/// With `skip`, it is enough that they are there: that is looked at before all of them.
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
        step.log.say(
            "the outputs are no longer here or in a cache, where the recording has found them: building the target",
        );
        return Ok(None);
    }
    step.take(WayName::Available, Some(Reason::Skipped));
    step.keep_nothing();
    Ok(Some(VerifiedOutputs::skipped(step.request.outputs.clone())))
}

fn ask_skipped(step: &mut StepRun<'_>) -> Result<WayAnswer, Failure> {
    let line = asking_for_outputs(step)?;
    let there = are_there(step)?;
    let found = if there {
        "are here, or a cache has them: nothing is to be realised"
    } else {
        "are no longer all here or in a cache"
    };
    Ok(WayAnswer {
        takes: there.then_some(Reason::Skipped),
        facts: vec![fact("the outputs of a step to be skipped", found)],
        commands: vec![line],
    })
}

/// The command that asks who has the recorded outputs.
fn asking_for_outputs(step: &mut StepRun<'_>) -> Result<CommandLine, Failure> {
    let outputs: Vec<&StorePath> = step.request.outputs.values().collect();
    let mut options = step.options()?;
    // Otherwise one cache that answers with an error is the end of the question, and what the others have is not said.
    options.push(("fallback".into(), "true".into()));
    Ok(command::would_obtain(&outputs, &options))
}

/// Whether all recorded outputs are here, or a cache has them with all that they need. What cannot be asked is not there: the
/// other ways say why.
fn are_there(step: &mut StepRun<'_>) -> Result<bool, Failure> {
    let outputs = &step.request.outputs;
    if outputs.is_empty() {
        return Ok(false);
    }
    let line = asking_for_outputs(step)?;
    let (finished, said) = step.ask(&line)?;
    // A path that is valid is not named; its file may be gone all the same.
    let is_here = |path: &StorePath| path.as_path().symlink_metadata().is_ok();
    let would_come = |path: &StorePath| said.lines().any(|line| line.trim() == path.as_str());
    Ok(finished.ending.success()
        && !misses_any(&said)
        && outputs
            .values()
            .all(|path| would_come(path) || is_here(path)))
}

/// Whether Nix says of what it was asked to obtain, or of what that needs, that nobody has it.
fn misses_any(said: &str) -> bool {
    said.lines()
        .any(|line| line.starts_with("don't know how to build these paths"))
}

// ---- realised

fn go_realised(step: &mut StepRun<'_>) -> Result<Option<VerifiedOutputs>, Failure> {
    let Some(drv) = step.request.drv.clone() else {
        return Ok(None);
    };
    step.take(WayName::Realised, None);
    Ok(match step.realise(&drv)? {
        Realised::Done(standing) => {
            step.reason = Some(step.realised_reason());
            Some(standing)
        }
        Realised::Lost => None,
        Realised::Gone => {
            let seen = if step.drv_file {
                ": the collector took it, or it was never registered"
            } else {
                ""
            };
            step.log
                .say(format_args!("{drv} is not valid in the store{seen}"));
            None
        }
    })
}

fn ask_realised(step: &mut StepRun<'_>) -> Result<WayAnswer, Failure> {
    let Some(drv) = step.request.drv.clone() else {
        return Ok(WayAnswer {
            takes: None,
            facts: vec![fact("the record", "names no .drv")],
            commands: vec![],
        });
    };
    let path = drv.as_store_path();
    let mut facts = vec![fact(
        drv.to_string(),
        if step.drv_file {
            "its file is there"
        } else {
            "there is no such file"
        },
    )];
    let valid = step.is_valid(path)?;
    facts.push(fact(
        drv.to_string(),
        if valid {
            "is valid in the store"
        } else {
            "is not valid in the store"
        },
    ));
    let mut there = valid;
    if !valid {
        for cache in step.substituters()? {
            let answer = ask_cache(step, &cache, path)?;
            there = answer == Some(true);
            let found = match answer {
                Some(true) => "has the .drv",
                Some(false) => "does not have the .drv",
                None => "cannot be asked",
            };
            facts.push(fact(cache, found));
            if there {
                break;
            }
        }
    }
    let options = step.options()?;
    let mut commands = vec![step.as_run(&command::realise(&drv, step.link.as_deref(), &options))];
    if !there {
        commands.push(command::check_validity(path, &options));
    }
    Ok(WayAnswer {
        takes: there.then(|| step.realised_reason()),
        facts,
        commands,
    })
}

/// Whether a cache has a path; none where it cannot be asked. A cache in a folder is looked at as such: Nix would make one
/// that is not there, and this only asks.
fn ask_cache(
    step: &mut StepRun<'_>,
    cache: &str,
    path: &StorePath,
) -> Result<Option<bool>, Failure> {
    if let Some(file) = caches::file_in_cache(cache, path) {
        return Ok(Some(file.exists()));
    }
    let options = step.options()?;
    let (finished, _) = step.ask(&command::check_cache(cache, path, &options))?;
    Ok(finished
        .ending
        .success()
        .then_some(finished.stdout.is_empty()))
}

// ---- available

fn recorded<'s>(step: &StepRun<'s>) -> Vec<(&'s str, &'s StorePath)> {
    step.request
        .outputs
        .iter()
        .map(|(name, path)| (name.as_str(), path))
        .collect()
}

/// The commands that obtain all outputs and link each as Nix would have linked it; `hold` keeps them all meanwhile. Nix
/// itself would number the links (`result-2`), so with several outputs each gets a command of its own.
fn obtaining(step: &mut StepRun<'_>, hold: Option<&Path>) -> Result<Vec<CommandLine>, Failure> {
    let options = step.options()?;
    let outputs = recorded(step);
    let link = |name: &str| step.link.as_deref().map(|base| links::link_of(base, name));
    let mut commands = Vec::new();
    if outputs.len() > 1 {
        let all: Vec<_> = outputs.iter().map(|(_, path)| *path).collect();
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
    let outputs = recorded(step);
    if outputs.is_empty() {
        return Ok(None);
    }
    if let Some(drv) = step.request.drv.as_ref().filter(|_| !step.drv_file) {
        step.log.say(format_args!(
            "{drv} is not on this host; trying its outputs"
        ));
    } else {
        step.log.say("trying the recorded outputs");
    }
    step.take(WayName::Available, None);
    let hold = if outputs.len() > 1 {
        step.state().and_then(|state| state.roots().ok())
    } else {
        None
    };
    let mut lines: VecDeque<CommandLine> =
        obtaining(step, hold.as_ref().map(Roots::link).as_deref())?.into();
    let mut believed = false;
    while let Some(line) = lines.pop_front() {
        let (finished, nix_output, _) = step.build(&line, "fetching the recorded outputs")?;
        if finished.ending.success() {
            continue;
        }
        if let Ending::Killed(signal) = finished.ending {
            return Err(Failure::new(
                Class::Signal(signal),
                format_args!("`{line}` {}", finished.ending),
            ));
        }
        step.probe_links(step.request.drv.as_ref())?;
        // With a `.drv`, the way `realised` asks the store about that one. Without, the outputs may have been registered before
        // we ask, by another step: then they are obtained once more.
        if step.request.drv.is_none() && step.are_valid(&outputs)? && !believed {
            believed = true;
            step.log
                .say("the recorded outputs were missing, and are valid now");
            lines.push_front(line);
            continue;
        }
        step.log.say(if nix_output.trouble(true) == Some(Trouble::DaemonGone) {
            "the store could not be asked for the recorded outputs"
        } else if step.misses_a_cache() {
            "the recorded outputs are not here, and a cache that may have them cannot be reached"
        } else {
            "the recorded outputs are neither here nor in a cache"
        });
        return Ok(None);
    }
    let standing = step.standing(step.request.outputs.clone())?;
    if standing.is_some() {
        step.reason = Some(Reason::OutputsAvailable);
    }
    Ok(standing)
}

fn ask_available(step: &mut StepRun<'_>) -> Result<WayAnswer, Failure> {
    let outputs: Vec<&StorePath> = recorded(step).into_iter().map(|(_, path)| path).collect();
    if outputs.is_empty() {
        return Ok(WayAnswer {
            takes: None,
            facts: vec![fact("the record", "names no outputs")],
            commands: vec![],
        });
    }
    let options = step.options()?;
    let (finished, said) = step.ask(&command::would_obtain(&outputs, &options))?;
    if !finished.ending.success() {
        return Err(Failure::new(
            Class::Infrastructure,
            format_args!("the store cannot be asked for the outputs: {said}"),
        ));
    }
    let there = !misses_any(&said);
    let found = if there {
        "are valid, or a cache has them"
    } else {
        "are not all here or in a cache"
    };
    let hold = placeholder(step, "roots/NEW/root");
    let commands = obtaining(step, hold.as_deref())?;
    let mut commands: Vec<_> = commands.iter().map(|line| step.as_run(line)).collect();
    if !there {
        commands.truncate(1);
        if step.request.drv.is_none() {
            commands.push(command::invalid_of(&outputs, &options));
        }
    }
    let takes = there.then_some(Reason::OutputsAvailable);
    Ok(WayAnswer {
        takes,
        facts: vec![fact("the recorded outputs", found)],
        commands,
    })
}

/// A path in the state folder, where a step would have one with a random name.
pub(super) fn placeholder(step: &StepRun<'_>, path: &str) -> Option<PathBuf> {
    step.host.state.as_ref().map(|folder| folder.join(path))
}

// ---- evaluated

/// How often an evaluation is done that the collector disturbs. (Evaluating while a collection runs fails in 12–44 % of all
/// cases before Nix 2.35.)
const ATTEMPTS: u32 = 3;

fn evaluated_reason(step: &StepRun<'_>) -> Reason {
    match (&step.request.drv, step.drv_file) {
        (None, _) => Reason::NotRecorded,
        (Some(_), false) => Reason::DrvMissing,
        (Some(_), true) if step.lost.is_some() => Reason::OutputsCollected,
        (Some(_), true) => Reason::DrvCollected,
    }
}

fn to_evaluate<'s>(step: &StepRun<'s>) -> Option<&'s Evaluation> {
    step.request
        .evaluation
        .as_ref()
        .filter(|_| !step.host.recorded_only)
}

fn go_evaluated(step: &mut StepRun<'_>) -> Result<Option<VerifiedOutputs>, Failure> {
    let Some(evaluation) = to_evaluate(step) else {
        return Ok(None);
    };
    check_file(evaluation, false, step.place)?;
    step.take(WayName::Evaluated, Some(evaluated_reason(step)));
    step.lost = None;
    // Roots before the turn: they are there until the outputs are.
    let mut roots = step.state().map(StateFolder::roots).and_then(|roots| {
        let roots = roots.inspect_err(|error| {
            step.log
                .warn(format_args!("evaluating without a root: {error}"));
        });
        roots.ok()
    });
    let mut attempt = 1;
    let mut doubted = false;
    while attempt <= ATTEMPTS {
        let turn = step.turn()?;
        step.begin(format_args!("evaluating {evaluation}"));
        let started = Instant::now();
        let root = roots.as_ref().map(Roots::link);
        let evaluated = evaluate(step, evaluation, root.as_deref(), doubted || attempt > 1);
        step.seconds.evaluate += started.elapsed();
        drop(turn);
        if let (
            Err(EvaluationStop::Doubtful(failure) | EvaluationStop::Failed(failure)),
            Some(Err(error)),
        ) = (&evaluated, roots.as_ref().map(Roots::probe))
            && matches!(failure.class, Class::Evaluation | Class::Infrastructure)
        {
            step.log
                .warn(format_args!("evaluating again, without a root: {error}"));
            roots = None;
            continue;
        }
        match evaluated {
            Ok(drv) => {
                if step.drv.replace(drv.clone()).as_ref() != Some(&drv) {
                    note_drift(step, &drv)?;
                }
                step.check_links(Some(&drv))?;
                match step.realise(&drv)? {
                    Realised::Done(standing) => return Ok(Some(standing)),
                    Realised::Gone => step.log.say(format_args!(
                        "{drv} is not valid: the garbage collector took it after the evaluation"
                    )),
                    Realised::Lost => {}
                }
            }
            Err(EvaluationStop::Disturbed) => {}
            Err(EvaluationStop::Doubtful(failure)) if !doubted => {
                doubted = true;
                step.log
                    .say(format_args!("{failure}; evaluating once more"));
                continue;
            }
            Err(EvaluationStop::Doubtful(failure) | EvaluationStop::Failed(failure)) => {
                return Err(failure);
            }
        }
        attempt += 1;
    }
    if let Some(path) = &step.lost {
        return Err(Failure::new(
            Class::Infrastructure,
            format_args!("{path} is not there, although Nix has realised it {ATTEMPTS} times"),
        )
        .hint(LOST_HINT));
    }
    Err(Failure::new(
        Class::Infrastructure,
        format_args!("the evaluation of {evaluation} was disturbed {ATTEMPTS} times: by the garbage collector, or by a daemon that went away"),
    )
    .hint("let the collector run less often, or while no job runs; from Nix 2.35 on it leaves what is in use alone. A daemon may be killed for want of memory"))
}

/// What to do about outputs that are not there although Nix says so.
pub(super) const LOST_HINT: &str = "let the collector run less often, or while no job runs. If none was running, the store has lost files that it still lists: `nix-store --verify --check-contents --repair` finds and mends them";

const DRIFT_HINT: &str = "something that the evaluation reads has changed (another commit, Nix version or channel): make the pipeline again, \
     pin it, or set `on-drift: warn`";

fn note_drift(step: &mut StepRun<'_>, drv: &DrvPath) -> Result<(), Failure> {
    let Some(recorded) = step
        .request
        .drv
        .as_ref()
        .filter(|recorded| *recorded != drv)
    else {
        return Ok(());
    };
    step.drift = true;
    let message = format!("drift: evaluating again gave {drv}, where {recorded} was recorded");
    if step.request.fail_on_drift {
        return Err(Failure::new(Class::Drift, message).hint(DRIFT_HINT));
    }
    step.log.warn(message);
    Ok(())
}

/// Why an evaluation gave no `.drv`.
enum EvaluationStop {
    /// The collector disturbed it, or the daemon went away under it.
    Disturbed,
    /// It failed for what may be otherwise another time: it is done once more before that is believed.
    Doubtful(Failure),
    /// It failed.
    Failed(Failure),
}

impl From<Failure> for EvaluationStop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Evaluates one attribute. What is `doubted` has failed before for what is no fault of an expression.
fn evaluate(
    step: &mut StepRun<'_>,
    evaluation: &Evaluation,
    root: Option<&Path>,
    doubted: bool,
) -> Result<DrvPath, EvaluationStop> {
    let options = step.options()?;
    let locked = match &evaluation.source {
        Source::Flake(flake) => {
            let line = command::flake_metadata(flake, &evaluation.folder, &options);
            let printed = run_evaluation(step, evaluation, &line, Phase::Fetching, None)?;
            let metadata: FlakeMetadata = serde_json::from_slice(&printed.stdout)
                .classify(Class::Bug, || format!("cannot read what `{line}` printed"))?;
            step.take_settings(&metadata)?;
            Some(metadata.locked())
        }
        _ => None,
    };
    let options = step.options()?;
    let line = command::instantiate(evaluation, locked.as_ref(), root, &options);
    let catch = doubted.then(|| command::catch(evaluation, locked.as_ref(), &options));
    let printed = run_evaluation(step, evaluation, &line, Phase::Evaluating, catch.as_ref())?;
    let drvs: Vec<DrvPath> = printed
        .paths()
        .map(read_instantiated)
        .collect::<Result<_, _>>()?;
    if let [drv] = drvs.as_slice() {
        return Ok(drv.clone());
    }
    let found = if drvs.is_empty() {
        let line = command::show_value(evaluation, locked.as_ref(), &options);
        let (finished, _) = step.ask(&line)?;
        format!(
            "no derivation, but {}",
            shortened(finished.text().trim(), VALUE_AT_MOST)
        )
    } else {
        let first: Vec<_> = drvs.iter().take(3).map(DrvPath::to_string).collect();
        let more = if drvs.len() > first.len() {
            ", …"
        } else {
            ""
        };
        format!(
            "not one derivation, but {}: {}{more}",
            drvs.len(),
            first.join(", ")
        )
    };
    let failure = Failure::new(Class::Evaluation, format_args!("{evaluation} is {found}"))
        .called("is not one derivation")
        .meaning(
            "The Nix expression evaluates, but not to one derivation; trying again cannot help.",
        )
        .hint("name one derivation with `attr`: a step builds one");
    Err(failure.into())
}

/// Runs one program of an evaluation, and returns what it printed. `catch` asks whether the expression throws, where what the
/// system seems to say may be the expression's words.
fn run_evaluation(
    step: &mut StepRun<'_>,
    evaluation: &Evaluation,
    line: &CommandLine,
    phase: Phase,
    catch: Option<&CommandLine>,
) -> Result<Finished, EvaluationStop> {
    let (finished, mut nix_output) = step.evaluate(line)?;
    if finished.ending.success() || nix_output.no_derivation() {
        return Ok(finished);
    }
    if let Ending::Exited(_) = finished.ending {
        step.look_into(&mut nix_output, None)?;
    }
    let mut class = class::of(phase, finished.ending, &nix_output);
    let mut doubtful = class::is_worth_another_try(class);
    let mut is_its_own = false;
    let is_suspect = class == Class::Infrastructure && nix_output.trouble(false).is_some()
        || class == Class::Evaluation && nix_output.disturbance().is_some();
    if let (true, Some(catch)) = (is_suspect, catch) {
        let (caught, _) = step.ask(catch)?;
        if caught.text().trim() == "false" {
            (class, doubtful, is_its_own) = (Class::Evaluation, false, true);
        }
    }
    if matches!(class, Class::Evaluation | Class::Infrastructure)
        && nix_output.root_cause().is_none()
    {
        match nix_output.disturbance() {
            // It may never have been there at all; then doing it again changes nothing, three times.
            Some(Disturbance::Gone(path))
                if !is_its_own && step.is_disturbed(&path, nix_output.is_of_named_path())? =>
            {
                return Err(EvaluationStop::Disturbed);
            }
            Some(Disturbance::Daemon) if class == Class::Infrastructure => {
                step.store_answers()?;
                step.log.say("the daemon went away during the evaluation");
                return Err(EvaluationStop::Disturbed);
            }
            // An expression is not to blame where the store is dead.
            _ => step.store_answers()?,
        }
    }
    let failure = failure_of(step, evaluation, line, class, &finished, &nix_output);
    Err(if doubtful {
        EvaluationStop::Doubtful(failure)
    } else {
        EvaluationStop::Failed(failure)
    })
}

/// The failure of an evaluation that is of `class`.
fn failure_of(
    step: &StepRun<'_>,
    evaluation: &Evaluation,
    line: &CommandLine,
    class: Class,
    finished: &Finished,
    nix_output: &NixOutput,
) -> Failure {
    let error = nix_output.error.as_ref().map_or_else(
        || format!("`{line}` {}", finished.ending),
        |error| shortened(error, MESSAGE_AT_MOST),
    );
    if matches!(class, Class::Evaluation | Class::Infrastructure)
        && !nix_output.is_expressions_own()
        && let Some(failure) = host::no_temporary_folder(&step.host.temporary, &error)
    {
        return failure;
    }
    let what = evaluation.to_string();
    if nix_output.root_cause().is_some() || class == Class::Infrastructure {
        return diagnosis::of_evaluation(
            class,
            &what,
            nix_output,
            step.killed_for_memory(),
            &error,
        );
    }
    let place = match &nix_output.place {
        Some(place) if !error.contains(place.as_str()) => format!(", at {place}"),
        _ => String::new(),
    };
    let failure = Failure::new(
        class,
        format_args!("{what} does not evaluate: {error}{place}"),
    );
    match evaluation.hint_at(&error) {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// The `.drv` that `nix-instantiate` has printed: its root where there is one, and behind a `!` the output that the
/// attribute selects. All outputs are built, so that one is of no interest.
fn read_instantiated(printed: &Path) -> Result<DrvPath, Failure> {
    let name = printed.file_name().unwrap_or_default().as_bytes();
    let end = name
        .iter()
        .position(|byte| *byte == b'!')
        .unwrap_or(name.len());
    let path = printed.with_file_name(OsStr::from_bytes(&name[..end]));
    // Without a root, or in a store that can make none, it is the path itself.
    let parse = |path: &Path| DrvPath::parse(&path.to_string_lossy()).ok();
    parse(&path)
        .or_else(|| parse(&path.read_link().ok()?))
        .ok_or_else(|| {
            Failure::new(
                Class::Bug,
                format_args!(
                    "cannot read what nix-instantiate printed: {}",
                    printed.display()
                ),
            )
        })
}

fn ask_evaluated(step: &mut StepRun<'_>) -> Result<WayAnswer, Failure> {
    let Some(evaluation) = to_evaluate(step) else {
        let found = if step.host.recorded_only {
            "this host does not evaluate"
        } else {
            "the step names nothing"
        };
        return Ok(WayAnswer {
            takes: None,
            facts: vec![fact("what to evaluate", found)],
            commands: vec![],
        });
    };
    let mut facts = Vec::new();
    if let Some(file) = evaluation.needs_file() {
        let is_there = file.exists();
        let found = if is_there {
            "is there"
        } else {
            "is not there: the step would fail"
        };
        facts.push(fact(file.display().to_string(), found));
        if !is_there {
            return Ok(WayAnswer {
                takes: None,
                facts,
                commands: vec![],
            });
        }
    }
    let options = step.options()?;
    let mut commands = Vec::new();
    if let Source::Flake(flake) = &evaluation.source {
        commands.push(command::flake_metadata(flake, &evaluation.folder, &options));
    }
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
        takes: Some(evaluated_reason(step)),
        facts,
        commands,
    })
}
