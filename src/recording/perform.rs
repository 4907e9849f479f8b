//! A recording from top to bottom.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

use super::asking::{in_one_line, lock};
use super::evaluate::overlooked::{Note, Overlooked, agents_without_targets};
use super::evaluate::{describe, eval_jobs};
use super::keep::pin::{PinOwner, PinResult};
use super::keep::{pin, skip};
use super::pipeline::document::Document;
use super::pipeline::edges::{BadGraph, Edges};
use super::pipeline::steps::{Records, Steps, source, steps};
use super::upload::Upload;
use super::upload::annotation::{RecordingSummary, annotation, in_words};
use super::upload::plan::{self, UploadPlan};
use super::{
    AttrError, BuildkiteBuild, EvaluationResult, Evaluator, OnError, RecordingOrder,
    RecordingRequest, Target, Walk,
};
use crate::build_keys;
use crate::buildkite::schema::Schema;
use crate::counts::{self, RecordingCounts};
use crate::exit::{Class, Failure};
use crate::host::Host;
use crate::keys::refuse;
use crate::log::Log;
use crate::nix::{
    AttrPath, Derivation, DrvPath, LockedFlake, StorePath, command, inputs_on_disk, version,
};
use crate::state::StateFolder;
use crate::supervise::{OnStop, Supervisor};

/// How many errors of a kind are told in the log.
const TOLD: usize = 10;

/// Records: from the keys to the uploaded pipeline. Gives what goes to standard output: the pipeline, of a dry run and of a
/// recording by hand.
///
/// # Errors
/// Whatever the recording ends with. Nothing is uploaded before everything that can fail here has been done.
pub fn perform(
    order: RecordingOrder,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<Option<Vec<u8>>, Failure> {
    let (mut request, host) = (order.request, order.host);
    let mut recorded = as_steps_have_it(&request, order.below_checkout.as_deref())?;
    let build = order.build.as_ref().filter(|_| !order.dry_run);
    // As it was ordered: what a flake asks for is not known when a later try looks for this one.
    let identity = pin::identity(&recorded);
    if let Some(build) = build
        && follow_earlier(build, &identity, &host.temporary, supervisor, log)?
    {
        return Ok(None);
    }
    crate::evaluation_keys::check_file(&request.root, request.by_default, &order.place)?;
    let schema = Schema::new()?;
    super::pipeline::steps::check(&request, &schema)?;
    let state = open(&host)?;
    pin::prune(&state);
    let owner = PinOwner::of(&recorded, order.build.as_ref());
    let previous = pin::previous(&owner, &state);

    let mut seconds = BTreeMap::new();
    let mut lap = Instant::now();
    let mut time = |name: &'static str| {
        let took = lap.elapsed().as_secs_f64();
        lap = Instant::now();
        log.debug(format_args!("{name}: {took:.3} s"));
        // To the millisecond: more would be noise.
        seconds.insert(name, (took * 1000.0).round() / 1000.0);
    };

    let locked = locked(&mut request, &mut recorded, &host, supervisor, log)?;
    let (temporary, cores) = (host.temporary.as_path(), order.cores);
    let mut evaluation = EvaluatorRun::new(&request, locked, temporary, cores, supervisor, log)?;
    evaluation.all()?;
    let PinnedEvaluation {
        evaluated,
        pin,
        targets,
        edges,
    } = keep(&mut evaluation, &owner, &request, &state, log)?;
    tell("evaluation error", &evaluated.broken, log);
    tell("refused", &evaluated.refused, log);
    let notes = notes(&evaluated.overlooked, &request, &targets, log);
    time("evaluate");

    let skipped = skip::reasons(&targets, &request, supervisor, log)?;
    time("skip");
    let records = Records {
        targets: &targets,
        broken: &evaluated.broken,
        refused: &evaluated.refused,
        callable: &evaluated.callable,
        edges: &edges,
        skip: &skipped,
    };
    let undone = undone(build);
    let made = steps(&records, &recorded, &schema).map_err(|failure| failure.context(undone))?;
    let told = evaluated.broken.len() + evaluated.refused.len();
    tell("refused", made.errors.get(told..).unwrap_or_default(), log);
    let counts = count(&targets, &made.errors, evaluated.broken.len());
    fail_on_errors(counts, &request, undone)?;
    warn_of_plugins(&made, log);
    time("steps");

    let facts = RecordingSummary {
        source: &describe(&request),
        targets: &targets,
        placed: &made.placed,
        errors: &made.errors,
        notes: &notes,
        counts,
        left_out: made.left_out,
        seconds: order.started.elapsed().as_secs_f64(),
        previous: previous.as_deref(),
    };
    log.say(in_words(&facts, None));
    let Some(build) = build else {
        return plan::document(&made.steps).map(|text| Some((text + "\n").into_bytes()));
    };
    seconds.insert("total", (facts.seconds * 1000.0).round() / 1000.0);
    let mut document = Document::new(
        &evaluated.nix,
        source(&recorded.root, &recorded.options),
        &request.root.attr,
        &targets,
        &made.placed,
        &made.errors,
        counts,
    );
    document.pin = pin.as_ref();
    document.seconds = seconds;
    let plan = UploadPlan::new(
        &build.step,
        &made.steps,
        request.chunk,
        document.to_json()?,
        annotation(&facts),
    )?;
    let mut upload = Upload {
        build,
        temporary,
        supervisor,
        log: log.clone(),
    };
    upload.keep(&plan, &identity)?;
    upload.follow(&plan, true)?;
    Ok(None)
}

/// The request for steps, which start at the root of the checkout: `folder` is where the recording stands below that.
fn as_steps_have_it(
    request: &RecordingRequest,
    folder: Option<&Path>,
) -> Result<RecordingRequest, Failure> {
    let Some(folder) = folder else {
        return Ok(request.clone());
    };
    let root = request.root.from_above(folder);
    let build_keys = build_keys::from_above(request.build_keys.clone(), folder);
    Ok(RecordingRequest {
        root: root.ok_or_else(|| unnameable(folder))?,
        build_keys: build_keys.ok_or_else(|| unnameable(folder))?,
        below: Some(folder.to_owned()),
        ..request.clone()
    })
}

/// The flake, locked, where it is one. The settings that it asks for count from now on, where this host trusts it with them: in
/// every step too, which realises before it reads any flake.
fn locked(
    request: &mut RecordingRequest,
    recorded: &mut RecordingRequest,
    host: &Host,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<Option<LockedFlake>, Failure> {
    let (locked, settings) = lock(request, &host.temporary, supervisor, log)?;
    request.options.extend(settings.iter().cloned());
    recorded.options.extend(settings);
    Ok(locked)
}

/// Goes on where an earlier try of the same step was, if one got as far as its plan. Says whether one did.
fn follow_earlier(
    build: &BuildkiteBuild,
    recording: &str,
    temporary: &Path,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<bool, Failure> {
    let mut upload = Upload {
        build,
        temporary,
        supervisor,
        log: log.clone(),
    };
    let Some(plan) = upload.earlier_plan(recording)? else {
        return Ok(false);
    };
    upload.follow(&plan, false)?;
    Ok(true)
}

/// Removes the pins that have been kept long enough.
///
/// # Errors
/// The state folder cannot be used (75).
pub fn prune(host: &Host, log: &Log) -> Result<(), Failure> {
    if let Some(folder) = host.state.as_ref().filter(|folder| !folder.exists()) {
        log.say(format_args!(
            "there is no state folder {}: nothing to prune",
            folder.display()
        ));
        return Ok(());
    }
    let state = open(host)?;
    let removed = pin::prune(&state);
    for folder in &removed {
        log.say(format_args!("removed {}", folder.display()));
    }
    let (roots, outputs) = state.sweep();
    if roots > 0 {
        let s = if roots == 1 { "" } else { "s" };
        log.say(format_args!("removed the roots of {roots} killed step{s}"));
    }
    if outputs > 0 {
        log.say(format_args!(
            "removed the outputs of {outputs} step{}, which were kept for a day",
            if outputs == 1 { "" } else { "s" }
        ));
    }
    log.say(match removed.len() {
        0 => "no pin has been kept long enough yet".to_owned(),
        1 => "1 pin removed: the next collection may take what only it kept".to_owned(),
        count => format!("{count} pins removed: the next collection may take what only they kept"),
    });
    Ok(())
}

fn open(host: &Host) -> Result<StateFolder, Failure> {
    let Some(folder) = &host.state else {
        return Err(Failure::new(
            Class::Infrastructure,
            "there is no state folder to keep a pin in: neither EVAL_ONCE_STATE_DIR nor XDG_STATE_HOME nor HOME is set",
        ));
    };
    StateFolder::open(folder).map_err(|error| {
        Failure::new(
            Class::Infrastructure,
            format_args!(
                "the state folder {} cannot be used: {error}",
                folder.display()
            ),
        )
        .hint("without it nothing keeps what is recorded; EVAL_ONCE_STATE_DIR names another one")
    })
}

/// Whoever evaluates.
enum EvaluatorRun<'a> {
    Ours(Box<Walk<'a>>),
    EvalJobs {
        request: &'a RecordingRequest,
        locked: Option<LockedFlake>,
        workers: usize,
        supervisor: &'a mut Supervisor,
        evaluated: Box<EvaluationResult>,
        log: Log,
    },
}

impl<'a> EvaluatorRun<'a> {
    fn new(
        request: &'a RecordingRequest,
        locked: Option<LockedFlake>,
        temporary: &'a Path,
        cores: NonZeroUsize,
        supervisor: &'a mut Supervisor,
        log: &Log,
    ) -> Result<Self, Failure> {
        Ok(match request.evaluator {
            Evaluator::Nix => Self::Ours(Box::new(Walk::new(
                request, locked, temporary, cores, supervisor, log,
            )?)),
            Evaluator::NixEvalJobs => Self::EvalJobs {
                request,
                locked,
                workers: request.workers.unwrap_or(cores).get(),
                supervisor,
                evaluated: Box::default(),
                log: log.clone(),
            },
        })
    }

    fn all(&mut self) -> Result<(), Failure> {
        match self {
            Self::Ours(walk) => {
                walk.all()?;
                walk.say_summary();
            }
            Self::EvalJobs {
                request,
                locked,
                workers,
                supervisor,
                evaluated,
                log,
            } => {
                let started = Instant::now();
                **evaluated =
                    eval_jobs::evaluate(request, locked.as_ref(), *workers, supervisor, log)?;
                let errors = evaluated.broken.len() + evaluated.refused.len();
                let attributes = evaluated.found.len() + errors;
                log.say(counts::evaluated(attributes, started.elapsed()));
                let line = command::version();
                let printed = supervisor.run(&line, OnStop::Term, &mut std::io::sink())?;
                evaluated.nix = version::of_program(&printed.text()).unwrap_or_default();
            }
        }
        Ok(())
    }

    fn again(&mut self, gone: &[DrvPath]) -> Result<(), Failure> {
        match self {
            Self::Ours(walk) => walk.again(gone),
            Self::EvalJobs { log, .. } => {
                log.say("the garbage collector took what was evaluated: evaluating again");
                self.all()
            }
        }
    }

    fn evaluated(&self) -> EvaluationResult {
        match self {
            Self::Ours(walk) => walk.evaluated(),
            Self::EvalJobs { evaluated, .. } => (**evaluated).clone(),
        }
    }

    fn supervisor(&mut self) -> &mut Supervisor {
        match self {
            Self::Ours(walk) => walk.supervisor(),
            Self::EvalJobs { supervisor, .. } => supervisor,
        }
    }
}

/// How often a recording begins again whose `.drv`s are gone before they could be pinned.
const ATTEMPTS: u32 = 3;

/// What was evaluated, and is kept from now on.
struct PinnedEvaluation {
    evaluated: EvaluationResult,
    /// None where there is nothing to keep.
    pin: Option<StorePath>,
    targets: Vec<Target>,
    edges: Edges,
}

/// Pins what was evaluated, and reads it while Nix writes the pin; what has gone meanwhile is evaluated again.
fn keep(
    evaluation: &mut EvaluatorRun<'_>,
    owner: &PinOwner,
    request: &RecordingRequest,
    state: &StateFolder,
    log: &Log,
) -> Result<PinnedEvaluation, Failure> {
    for _ in 0..ATTEMPTS {
        let evaluated = evaluation.evaluated();
        if evaluated.found.is_empty() {
            if evaluated.broken.is_empty() && evaluated.refused.is_empty() {
                note(&evaluated.overlooked.notes(), log);
                return Err(Failure::new(
                    Class::Evaluation,
                    format_args!("there are no targets in {}", describe(request)),
                )
                .hint(if request.exclude.is_empty() {
                    "sets are looked into where they are marked with `recurseForDerivations = true`, or with `recurse: all`"
                } else {
                    "does `exclude` leave out too much? Sets are looked into where they are marked with `recurseForDerivations = true`, or with `recurse: all`"
                }));
            }
            return read(&evaluated).map(|(targets, edges)| PinnedEvaluation {
                evaluated,
                pin: None,
                targets,
                edges,
            });
        }
        let recorded: Vec<(&AttrPath, &DrvPath)> = evaluated
            .found
            .iter()
            .map(|found| (&found.attr, &found.drv))
            .collect();
        let mut was_read = None;
        let pinned = pin::pin(
            &recorded,
            owner,
            request,
            state,
            evaluation.supervisor(),
            log,
            || was_read = Some(read(&evaluated)),
        )?;
        match pinned {
            PinResult::Kept(pin) => {
                let (targets, edges) = match was_read {
                    // It may have gone while it was read, and have been made again.
                    Some(Ok(read)) => read,
                    _ => read(&evaluated)?,
                };
                return Ok(PinnedEvaluation {
                    evaluated,
                    pin: Some(pin),
                    targets,
                    edges,
                });
            }
            PinResult::Gone(gone) => evaluation.again(&gone)?,
        }
    }
    Err(Failure::new(
        Class::Infrastructure,
        format_args!(
            "the garbage collector took what was evaluated {ATTEMPTS} times before it could be kept"
        ),
    )
    .hint("let the collector run less often, or while nothing is recorded"))
}

/// Counts what was recorded; of the `errors` the first are `evaluation_errors`.
fn count(targets: &[Target], errors: &[AttrError], evaluation_errors: usize) -> RecordingCounts {
    let refused: HashSet<&AttrPath> = errors[evaluation_errors.min(errors.len())..]
        .iter()
        .map(|error| &error.attr)
        .collect();
    let attributes = targets.iter().map(|target| 1 + target.also.len());
    let (refused_targets, good): (Vec<&Target>, Vec<&Target>) = targets
        .iter()
        .partition(|target| refused.contains(&target.attr));
    RecordingCounts {
        attributes: attributes.sum::<usize>() + errors.len() - refused_targets.len(),
        targets: good.len(),
        evaluation_errors,
        refused: errors.len() - evaluation_errors,
    }
}

/// Says which attributes have an error, of this kind.
fn tell(kind: &str, broken: &[AttrError], log: &Log) {
    for one in broken.iter().take(TOLD) {
        let message = one.message.as_deref().map(in_one_line);
        log.say(format_args!(
            "{kind}: {}: {}",
            one.attr,
            message.unwrap_or_else(|| "it throws; its step says what".into())
        ));
    }
    if broken.len() > TOLD {
        log.say(format_args!("{kind}: and {} more", broken.len() - TOLD));
    }
}

/// What a recording that fails before its end has not done, for a reader who wonders what is left to clean up.
fn undone(build: Option<&BuildkiteBuild>) -> &'static str {
    match build {
        Some(_) => "nothing is uploaded",
        None => "no pipeline is printed",
    }
}

/// The failure of a recording in a folder that no record can name.
fn unnameable(folder: &Path) -> Failure {
    refuse(format_args!(
        "the folder {} of the checkout has a name that is not UTF-8: steps could not say where to find what is recorded in it",
        folder.display()
    ))
    .hint("record from the checkout's root, or give the folder another name")
}

/// Says what was not looked at, and what the keys name that is not there; gives it, for the annotation.
fn notes(
    overlooked: &Overlooked,
    request: &RecordingRequest,
    targets: &[Target],
    log: &Log,
) -> Vec<Note> {
    let mut notes = overlooked.notes();
    notes.extend(agents_without_targets(request, targets, overlooked));
    note(&notes, log);
    notes
}

fn note(notes: &[Note], log: &Log) {
    for note in notes {
        if note.is_warning {
            log.warn(&note.text);
        } else {
            log.say(&note.text);
        }
        if let Some(hint) = &note.hint {
            log.say(format_args!("hint: {hint}"));
        }
    }
}

/// Fails where there are errors and that is to fail the recording.
fn fail_on_errors(
    counts: RecordingCounts,
    request: &RecordingRequest,
    undone: &str,
) -> Result<(), Failure> {
    let Some(errors) = counts
        .errors()
        .filter(|_| request.on_error == OnError::Fail)
    else {
        return Ok(());
    };
    Err(Failure::new(
        Class::Evaluation,
        format_args!("{errors} (see above), and `on-error: fail` is set: {undone}"),
    ))
}

/// With `emit: command`, an agent runs the command hook of a step's plugin instead of ours.
fn warn_of_plugins(made: &Steps, log: &Log) {
    let own = made.steps.iter().filter(|planned| {
        let step = &planned.step;
        step.env.contains_key("EVAL_ONCE_STEP") && !step.plugins.is_empty()
    });
    let own = own.count();
    if own > 0 {
        log.warn(format_args!(
            "{own} step{} of its own: where one has a command hook, the agent runs that instead of eval-once, and nothing may be built; \
             `emit: plugin` builds before it",
            if own == 1 { " has a plugin" } else { "s have a plugin" }
        ));
    }
}

/// The targets that were found, and the edges between them, from their `.drv`s.
fn read(evaluated: &EvaluationResult) -> Result<(Vec<Target>, Edges), Failure> {
    let (targets, inputs) = targets(evaluated)?;
    let edges = edges(&targets, inputs)?;
    Ok((targets, edges))
}

type DrvInputs = HashMap<DrvPath, Vec<DrvPath>>;

/// One target for each `.drv`, in the order of their first attributes; and what their derivations depend on.
fn targets(evaluated: &EvaluationResult) -> Result<(Vec<Target>, DrvInputs), Failure> {
    let mut known: HashMap<&DrvPath, usize> = HashMap::new();
    let mut targets: Vec<Target> = Vec::new();
    let mut inputs = DrvInputs::new();
    for found in &evaluated.found {
        if let Some(at) = known.get(&found.drv) {
            targets[*at].also.push(found.attr.clone());
            continue;
        }
        let derivation =
            Derivation::read(&found.drv).map_err(|error| unreadable(&found.drv, &error))?;
        known.insert(&found.drv, targets.len());
        // Either all of them are known, or none counts.
        let outputs: Option<BTreeMap<String, StorePath>> = derivation
            .outputs
            .into_iter()
            .map(|(name, path)| Some((name, path?)))
            .collect();
        targets.push(Target {
            attr: found.attr.clone(),
            also: Vec::new(),
            name: derivation.name,
            drv: found.drv.clone(),
            outputs: outputs.unwrap_or_default(),
            system: derivation.system,
            features: derivation.features,
            meta: found.meta.clone(),
        });
        inputs.insert(found.drv.clone(), derivation.inputs);
    }
    Ok((targets, inputs))
}

fn edges(targets: &[Target], mut inputs: DrvInputs) -> Result<Edges, Failure> {
    let drvs: Vec<DrvPath> = targets.iter().map(|target| target.drv.clone()).collect();
    let read = |drv: &DrvPath| match inputs.remove(drv) {
        Some(inputs) => Ok(inputs),
        None => inputs_on_disk(drv),
    };
    Edges::load(&drvs, read).map_err(|bad| match &bad {
        BadGraph::Unreadable(drv, error) => unreadable(drv, error),
        BadGraph::Cycle(_) => Failure::new(Class::Bug, bad),
    })
}

fn unreadable(drv: &DrvPath, error: &std::io::Error) -> Failure {
    Failure::new(
        Class::Infrastructure,
        format_args!("cannot read {drv}, which was just evaluated: {error}"),
    )
    .hint("a recording needs a store whose files are where their paths say")
}
