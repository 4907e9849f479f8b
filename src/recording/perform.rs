//! A recording from top to bottom.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

use super::annotation::{Facts, annotation, counts};
use super::asking::{in_one_line, lock};
use super::document::Document;
use super::edges::{BadGraph, Edges};
use super::evaluate::describe;
use super::pin::{Owner, Pinned};
use super::plan::{self, Plan};
use super::steps::{Records, Steps, source, steps};
use super::upload::Upload;
use super::{
    Broken, Build, Evaluated, Evaluator, OnError, Order, Request, Target, Walk, eval_jobs, pin,
    skip,
};
use crate::buildkite::pipeline::Command;
use crate::buildkite::schema::Schema;
use crate::exit::{Class, Failure};
use crate::log::Log;
use crate::nix::{
    AttrPath, Derivation, DrvPath, LockedFlake, StorePath, command, inputs_on_disk, version,
};
use crate::state::State;
use crate::step::Host;
use crate::supervise::{OnStop, Supervisor};

/// How many broken attributes are told in the log.
const TOLD: usize = 10;

/// Records: from the keys to the uploaded pipeline. Gives what goes to standard output: the pipeline, of a dry run and of a
/// recording by hand.
///
/// # Errors
/// Whatever the recording ends with. Nothing is uploaded before everything that can fail here has been done.
pub fn perform(
    order: Order,
    supervisor: &mut Supervisor,
    log: Log,
) -> Result<Option<Vec<u8>>, Failure> {
    let (keys, host) = (order.keys?, order.host?);
    let mut request = Request::read(keys, &order.place, order.plugin.as_deref())?;
    // Steps start at the root of the checkout.
    let mut recorded = match order.below_checkout.as_deref().and_then(Path::to_str) {
        Some(folder) => Request {
            root: request.root.from_above(folder),
            ..request.clone()
        },
        None => request.clone(),
    };
    let build = order.build.as_ref().filter(|_| !order.dry_run);
    // As it was ordered: what a flake asks for is not known when a later try looks for this one.
    let identity = pin::identity(&recorded);
    if let Some(build) = build
        && follow_earlier(build, &identity, supervisor, log)?
    {
        return Ok(None);
    }
    crate::evaluation_keys::check_file(&request.root, request.by_default, &order.place)?;
    let schema = Schema::new()?;
    super::steps::check(&request, &schema)?;
    let state = open(&host)?;
    pin::prune(&state);
    let owner = Owner::of(&recorded, order.build.as_ref());
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
    let mut evaluation = Evaluation::new(&request, locked, temporary, cores, supervisor, log)?;
    evaluation.all()?;
    let Kept {
        evaluated,
        pin,
        targets,
        edges,
    } = keep(&mut evaluation, &owner, &request, &state, log)?;
    tell(&evaluated.broken, log);
    tell(&evaluated.refused, log);
    time("evaluate");

    let skipped = skip::reasons(&targets, &request, supervisor, log)?;
    time("skip");
    let records = Records {
        targets: &targets,
        broken: &evaluated.broken,
        refused: &evaluated.refused,
        edges: &edges,
        skip: &skipped,
    };
    let made = steps(&records, &recorded, &schema)?;
    let told = evaluated.broken.len() + evaluated.refused.len();
    tell(made.errors.get(told..).unwrap_or_default(), log);
    fail_on_errors(made.errors.len(), &request)?;
    warn_of_commands(&made, log);
    time("steps");

    let facts = Facts {
        source: &describe(&request),
        targets: &targets,
        placed: &made.placed,
        errors: &made.errors,
        left_out: made.left_out,
        seconds: order.started.elapsed().as_secs_f64(),
        previous: previous.as_deref(),
    };
    log.say(counts(&facts));
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
    );
    document.pin = pin.as_ref();
    document.seconds = seconds;
    let plan = Plan::new(
        &build.step,
        &made.steps,
        request.chunk,
        document.to_json()?,
        annotation(&facts),
    )?;
    let mut upload = Upload {
        build,
        supervisor,
        log,
    };
    upload.keep(&plan, &identity)?;
    upload.follow(&plan, true)?;
    Ok(None)
}

/// The flake, locked, where it is one. The settings that it asks for count from now on, where this host trusts it with them: in
/// every step too, which realises before it reads any flake.
fn locked(
    request: &mut Request,
    recorded: &mut Request,
    host: &Host,
    supervisor: &mut Supervisor,
    log: Log,
) -> Result<Option<LockedFlake>, Failure> {
    let (locked, settings) = lock(request, &host.temporary, supervisor, log)?;
    request.options.extend(settings.iter().cloned());
    recorded.options.extend(settings);
    Ok(locked)
}

/// Goes on where an earlier try of the same step was, if one got as far as its plan. Says whether one did.
fn follow_earlier(
    build: &Build,
    recording: &str,
    supervisor: &mut Supervisor,
    log: Log,
) -> Result<bool, Failure> {
    let mut upload = Upload {
        build,
        supervisor,
        log,
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
pub fn prune(host: &Host, log: Log) -> Result<(), Failure> {
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

fn open(host: &Host) -> Result<State, Failure> {
    let Some(folder) = &host.state else {
        return Err(Failure::new(
            Class::Surroundings,
            "there is no state folder to keep a pin in: neither EVAL_ONCE_STATE_DIR nor XDG_STATE_HOME nor HOME is set",
        ));
    };
    State::open(folder).map_err(|error| {
        Failure::new(
            Class::Surroundings,
            format_args!(
                "the state folder {} cannot be used: {error}",
                folder.display()
            ),
        )
        .hint("without it nothing keeps what is recorded; EVAL_ONCE_STATE_DIR names another one")
    })
}

/// Whoever evaluates.
enum Evaluation<'a> {
    Ours(Box<Walk<'a>>),
    EvalJobs {
        request: &'a Request,
        locked: Option<LockedFlake>,
        workers: usize,
        supervisor: &'a mut Supervisor,
        evaluated: Evaluated,
        log: Log,
    },
}

impl<'a> Evaluation<'a> {
    fn new(
        request: &'a Request,
        locked: Option<LockedFlake>,
        temporary: &'a Path,
        cores: NonZeroUsize,
        supervisor: &'a mut Supervisor,
        log: Log,
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
                evaluated: Evaluated::default(),
                log,
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
                ..
            } => {
                *evaluated = eval_jobs::evaluate(request, locked.as_ref(), *workers, supervisor)?;
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

    fn evaluated(&self) -> Evaluated {
        match self {
            Self::Ours(walk) => walk.evaluated(),
            Self::EvalJobs { evaluated, .. } => evaluated.clone(),
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
struct Kept {
    evaluated: Evaluated,
    /// None where there is nothing to keep.
    pin: Option<StorePath>,
    targets: Vec<Target>,
    edges: Edges,
}

/// Pins what was evaluated, and reads it while Nix writes the pin; what has gone meanwhile is evaluated again.
fn keep(
    evaluation: &mut Evaluation<'_>,
    owner: &Owner,
    request: &Request,
    state: &State,
    log: Log,
) -> Result<Kept, Failure> {
    for _ in 0..ATTEMPTS {
        let evaluated = evaluation.evaluated();
        if evaluated.found.is_empty() {
            if evaluated.broken.is_empty() && evaluated.refused.is_empty() {
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
            return read(&evaluated).map(|(targets, edges)| Kept {
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
            Pinned::Kept(pin) => {
                let (targets, edges) = match was_read {
                    // It may have gone while it was read, and have been made again.
                    Some(Ok(read)) => read,
                    _ => read(&evaluated)?,
                };
                return Ok(Kept {
                    evaluated,
                    pin: Some(pin),
                    targets,
                    edges,
                });
            }
            Pinned::Gone(gone) => evaluation.again(&gone)?,
        }
    }
    Err(Failure::new(
        Class::Surroundings,
        format_args!(
            "the garbage collector took what was evaluated {ATTEMPTS} times before it could be kept"
        ),
    )
    .hint("let the collector run less often, or while nothing is recorded"))
}

/// Says which attributes are broken.
fn tell(broken: &[Broken], log: Log) {
    for one in broken.iter().take(TOLD) {
        let message = one.message.as_deref().map(in_one_line);
        log.say(format_args!(
            "broken: {}: {}",
            one.attr,
            message.unwrap_or_else(|| "it throws; its step says what".into())
        ));
    }
    if broken.len() > TOLD {
        log.say(format_args!("broken: and {} more", broken.len() - TOLD));
    }
}

/// Fails where something is broken and that is to fail the recording.
fn fail_on_errors(count: usize, request: &Request) -> Result<(), Failure> {
    if count == 0 || request.on_error == OnError::Step {
        return Ok(());
    }
    Err(Failure::new(
        Class::Evaluation,
        format_args!(
            "{count} attribute{} broken (see above), and `on-error: fail` is set: nothing is uploaded",
            if count == 1 { " is" } else { "s are" }
        ),
    ))
}

/// With `emit: command`, a command of the step's own stands where ours would: only our hook builds before it.
fn warn_of_commands(made: &Steps, log: Log) {
    let own = made.steps.iter().filter(|planned| {
        let step = &planned.step;
        step.env.contains_key("EVAL_ONCE_STEP")
            && step.command != Some(Command::One("eval-once step".into()))
    });
    let own = own.count();
    if own > 0 {
        log.warn(format_args!(
            "{own} step{} of its own: an agent without eval-once's command hook runs that and builds nothing; `emit: plugin` builds everywhere",
            if own == 1 { " has a command" } else { "s have a command" }
        ));
    }
}

/// The targets that were found, and the edges between them, from their `.drv`s.
fn read(evaluated: &Evaluated) -> Result<(Vec<Target>, Edges), Failure> {
    let (targets, inputs) = targets(evaluated)?;
    let edges = edges(&targets, inputs)?;
    Ok((targets, edges))
}

type Inputs = HashMap<DrvPath, Vec<DrvPath>>;

/// One target for each `.drv`, in the order of their first attributes; and what their derivations depend on.
fn targets(evaluated: &Evaluated) -> Result<(Vec<Target>, Inputs), Failure> {
    let mut known: HashMap<&DrvPath, usize> = HashMap::new();
    let mut targets: Vec<Target> = Vec::new();
    let mut inputs = Inputs::new();
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

fn edges(targets: &[Target], mut inputs: Inputs) -> Result<Edges, Failure> {
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
        Class::Surroundings,
        format_args!("cannot read {drv}, which was just evaluated: {error}"),
    )
    .hint("a recording needs a store whose files are where their paths say")
}
