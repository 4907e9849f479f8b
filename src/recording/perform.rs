//! A recording from top to bottom.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::Path;

use super::base::Base;
use super::checkout::check_agent;
use super::common_inputs::CommonInputs;
use super::error_line::MESSAGE_IN_STEP;
use super::errors::{self, ErrorLists};
use super::evaluate::EvaluationHost;
use super::evaluate::evaluator::{EvaluatorRun, WalkPlace};
use super::evaluate::flake::RootedFlake;
use super::evaluate::gaps::{Note, agents_without_targets};
use super::evaluate::known::KnownTargets;
use super::evaluate::{flake, remembered};
use super::keep::partial::PartialRecording;
use super::keep::pinned::{PinnedEvaluation, pin_evaluation};
use super::keep::{self, PinOwner, open_state_folder, skip};
use super::notices::{
    print_error_lists, print_errors, print_notes, warn_of_excess, warn_of_plugins,
};
use super::part_times::PartTimes;
use super::pipeline::document::Document;
use super::pipeline::excess::Excess;
use super::pipeline::placed_step;
use super::pipeline::steps::{PlannedPipeline, Records, check, key_area, source, steps};
use super::refusals::{fail_on_errors, refuse_errors_alone, refuse_nothing};
use super::report::{Earlier, EarlierRecording, RecordingReport};
use super::same_drv;
use super::share::{ShareWish, Sharing};
use super::stopped::{Reached, Unfinished};
use super::upload::annotation::{annotation, annotation_of_errors, annotation_of_excess};
use super::upload::plan::UploadPlan;
use super::upload::{PlannedTargets, Upload};
use super::{BuildkiteBuild, EvaluationResult, KeyStyle, RecordingOrder, RecordingRequest};
use crate::buildkite::schema::Schema;
use crate::counts::number;
use crate::evaluation_keys::{Checkout, check_file};
use crate::exit::Failure;
use crate::host::Host;
use crate::log::Log;
use crate::nix::settings::NixSettings;
use crate::nix::{AttrPath, LockedFlake};
use crate::state::StateFolder;
use crate::store::{Answer, Store};
use crate::supervise::Supervisor;

/// Records: from the keys to the uploaded pipeline. Returns what goes to standard output: the pipeline, of a dry run and of a
/// recording by hand.
///
/// # Errors
/// Whatever the recording ends with. Nothing is uploaded before everything that can fail here has been done.
pub fn perform(
    order: RecordingOrder,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<Option<Vec<u8>>, Failure> {
    let (mut request, host, cores) = (order.request, order.host, order.cores);
    let nix = &host.nix;
    // The same with paths from the root of the checkout, where steps start.
    let mut at_root = at_root(&request, order.below_checkout.as_deref())?;
    let build = order.build.as_ref().filter(|_| !order.dry_run);
    let state = open_state_folder(&host, log)?;
    // The identity is that of the keys alone: the settings of a flake are not known yet when a retry looks for its plan.
    let identity = keep::identity(&at_root);
    let Some(planned) = follow_earlier(build, &identity, &state, &host.temporary, supervisor, log)?
    else {
        return Ok(None);
    };

    let schema = check_request(&request, &order.place, build, supervisor)?;
    let wish = ShareWish::of(&request);
    let sharing = Sharing::new(&wish, &host, order.build.as_ref(), order.dry_run)?;
    keep::remove_expired_at_times(&state);
    let owner = PinOwner::of(&at_root, order.build.as_ref());
    let previous = keep::previous(&owner, &state);
    let (base, base_note) = Base::read(&request);
    let partial = PartialRecording::new(&request, &owner, build, &order.place.folder);

    let mut times = PartTimes::start(log);
    supervisor.hide_secrets(&nix.text);
    let store = &mut Store::new(&request.options, Some(&nix.state), log);
    let flake = lock(&request, &host, &state, store, supervisor, log)?;
    for request in [&mut request, &mut at_root] {
        request.options.extend_from_slice(&flake.settings);
    }
    let locked = flake.locked.as_ref();
    let partial = partial.as_ref();
    let known = known_targets(partial, locked, &state, store, supervisor, log)?;
    let unfinished = Unfinished {
        request: &request,
        at_root: &at_root,
        build,
        identity: &identity,
        partial,
        locked,
        known: &known,
        planned: &planned,
        state: &state,
        temporary: &host.temporary,
        started: order.started,
        log,
    };
    let (mut pinned, printed) = evaluate(&unfinished, &owner, cores, nix, store, supervisor)?;
    let answers = pinned.answers.take();
    let (evaluated, targets) = (&pinned.evaluated, &pinned.targets[..]);
    let errors = ErrorLists::of(evaluated, &request.expect_errors);
    let notes = print_findings(&pinned, &errors, &printed, base_note, &request, log)?;
    times.end("evaluate");

    let base = base.as_ref();
    let needs = Needs::find(&unfinished, &pinned, base, answers, nix, store, supervisor)?;
    times.end("skip");

    let records = needs.records(&pinned, &errors, &unfinished);
    let undone = undone(build);
    let mut pipeline = plan(&records, &at_root, &schema, undone, log)?;
    times.end("steps");

    let failed = fail_on_errors(pipeline.counts(targets), request.on_error, undone).err();
    let excess = Excess::of(&pipeline, targets, &at_root);
    if failed.is_none() && (excess.is_none() || build.is_none()) {
        let shared = sharing.share(&mut pipeline, targets, &state, store, supervisor, log);
        let shared = shared.map_err(|failure| failure.context(undone));
        unfinished.or_leave(shared, evaluated, store, supervisor)?;
        times.end("share");
    }

    let earlier = earlier(base, previous, &at_root);
    let report = RecordingReport {
        source: &request.description(),
        targets,
        target_steps: &pipeline.targets,
        errors: &pipeline.errors,
        on_error: request.on_error,
        notes: &notes,
        counts: pipeline.counts(targets),
        omitted: pipeline.omitted,
        builds: request.phases.build,
        followers: pipeline.followers.len(),
        seconds: order.started.elapsed().as_secs_f64(),
        earlier: earlier.as_ref(),
    };
    if failed.is_none() {
        log.say(report.sentence(None));
    }
    let Some(build) = build else {
        // The pipeline may be large, and nothing else is needed any more.
        drop((pinned, needs));
        return printed_pipeline(failed, &pipeline, excess.as_ref(), log).map(Some);
    };
    let document = document(&pinned, &pipeline, &report, &at_root, times)?;
    let mut upload = Upload::new(build, &host.temporary, &state, supervisor, log);
    if let Some((failure, body)) = refusal(failed, excess.as_ref(), &report, undone, log) {
        upload.publish(&document, &body)?;
        return Err(failure);
    }
    let (steps, body) = (&pipeline.steps, annotation(&report));
    let plan = UploadPlan::new(&build.step, steps, request.chunk, document, body)?;
    follow(&plan, build, evaluated, &unfinished, store, supervisor).map(|()| None)
}

/// Which targets need a step, and what else does.
struct Needs {
    /// For each target, why it needs none, if it needs none.
    skip: Vec<Option<String>>,
    /// For each target, how long it took in the base, where that is known.
    seconds: Vec<Option<f64>>,
    /// The derivations that have a step because several targets need them.
    common: Option<CommonInputs>,
}

impl Needs {
    /// Finds them; `answers` are those that were asked beside the pin.
    fn find(
        unfinished: &Unfinished<'_>,
        pinned: &PinnedEvaluation,
        base: Option<&Base>,
        answers: Option<Vec<Answer>>,
        nix: &NixSettings,
        store: &mut Store,
        supervisor: &mut Supervisor,
    ) -> Result<Self, Failure> {
        let (request, targets, log) = (unfinished.request, &pinned.targets[..], unfinished.log);
        let here = nix.store_is_local(&request.options);
        let skip = skip::reasons(targets, request, answers, here, store, supervisor, log);
        let mut skip = unfinished.or_leave(skip, &pinned.evaluated, store, supervisor)?;
        if let Some(base) = base {
            base.add_reasons(&mut skip, targets, request);
        }
        let kept = unfinished.planned.keep_steps(targets, &mut skip);
        if kept > 0 {
            log.say(format_args!(
                "{} not skipped, because the plan of an earlier try has a step for each",
                number(kept, "target")
            ));
        }
        let common = CommonInputs::find(targets, &skip, request, here, store, supervisor, log);
        Ok(Self {
            common: unfinished.or_leave(common, &pinned.evaluated, store, supervisor)?,
            seconds: base.map_or_else(Vec::new, |base| base.seconds(targets)),
            skip,
        })
    }

    /// What the pipeline is made from.
    fn records<'a>(
        &'a self,
        pinned: &'a PinnedEvaluation,
        errors: &'a ErrorLists,
        unfinished: &Unfinished<'_>,
    ) -> Records<'a> {
        let common = self.common.as_ref();
        Records {
            targets: &pinned.targets,
            shared: common.map_or(&[], |common| &common.drvs),
            errors,
            callable: &pinned.evaluated.callable,
            edges: common.map_or(&pinned.edges, |common| &common.edges),
            skip: &self.skip,
            seconds: &self.seconds,
            steps_known: unfinished.request.phases.build && !unfinished.planned.is_found(),
        }
    }
}

/// What the recording is compared with: the base where there is one, else the previous recording of the branch.
fn earlier(
    base: Option<&Base>,
    previous: Option<Vec<(AttrPath, String)>>,
    at_root: &RecordingRequest,
) -> Option<Earlier> {
    let Some(base) = base else {
        return previous.map(|drvs| Earlier {
            recording: EarlierRecording::OfBranch,
            drvs,
            red: BTreeSet::new(),
        });
    };
    let source = source(&at_root.root, &at_root.options);
    base.earlier(&source, &at_root.root.attr)
}

/// Claims the keys of the steps, where another recording of the build may have the same.
fn claim_keys(
    upload: &mut Upload<'_>,
    at_root: &RecordingRequest,
    identity: &str,
) -> Result<(), Failure> {
    if at_root.key_style == KeyStyle::Drv {
        return Ok(());
    }
    let claimed = upload.claim_keys(&key_area(at_root), identity, at_root.phases);
    claimed.map_err(|failure| failure.context("nothing is uploaded"))
}

/// Saves the plan of this recording, and follows it: from then on, a retry does as well.
fn follow(
    plan: &UploadPlan,
    build: &BuildkiteBuild,
    evaluated: &EvaluationResult,
    unfinished: &Unfinished<'_>,
    store: &mut Store,
    supervisor: &mut Supervisor,
) -> Result<(), Failure> {
    let (temporary, state, log) = (unfinished.temporary, unfinished.state, unfinished.log);
    let identity = unfinished.identity;
    let mut upload = Upload::new(build, temporary, state, supervisor, log);
    claim_keys(&mut upload, unfinished.at_root, identity)?;
    let saved = upload.save(plan, identity);
    unfinished.or_leave(saved, evaluated, store, supervisor)?;
    if let Some(partial) = unfinished.partial {
        partial.remove(state);
    }
    Upload::new(build, temporary, state, supervisor, log).follow(plan, true)
}

/// The request with its paths from the root of the checkout; `below` is the recording's folder there, if it is another one.
fn at_root(request: &RecordingRequest, below: Option<&Path>) -> Result<RecordingRequest, Failure> {
    match below {
        Some(folder) => request.at_checkout_root(folder),
        None => Ok(request.clone()),
    }
}

/// Checks what is asked for, before anything is evaluated.
fn check_request(
    request: &RecordingRequest,
    place: &Checkout,
    build: Option<&BuildkiteBuild>,
    supervisor: &mut Supervisor,
) -> Result<Schema, Failure> {
    check_file(&request.root, request.by_default, place)?;
    let schema = Schema::new()?;
    check(request, &schema)?;
    check_agent(request, build, supervisor)?;
    Ok(schema)
}

/// Follows the plan of an earlier try of the same step, if there is one. Returns none where there is; else what a plan has steps for that
/// is not followed.
fn follow_earlier(
    build: Option<&BuildkiteBuild>,
    identity: &str,
    state: &StateFolder,
    temporary: &Path,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<Option<PlannedTargets>, Failure> {
    let Some(build) = build else {
        return Ok(Some(PlannedTargets::default()));
    };
    let mut upload = Upload::new(build, temporary, state, supervisor, log);
    match upload.earlier_plan(identity)? {
        Ok(plan) => upload.follow(&plan, false).map(|()| None),
        Err(planned) => Ok(Some(planned)),
    }
}

/// The targets that a recording of the same keys which was stopped has found.
fn known_targets(
    partial: Option<&PartialRecording>,
    locked: Option<&LockedFlake>,
    state: &StateFolder,
    store: &mut Store,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<KnownTargets, Failure> {
    match partial {
        Some(partial) => partial.load(locked, state, store, supervisor, log),
        None => Ok(KnownTargets::default()),
    }
}

/// The locked flake, if a flake is recorded. Its settings, as far as this host accepts them, count from now on, and in every
/// step too, which realises before it evaluates any flake.
fn lock(
    request: &RecordingRequest,
    host: &Host,
    state: &StateFolder,
    store: &mut Store,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<RootedFlake, Failure> {
    flake::lock(request, &host.temporary, state, store, supervisor, log)
}

/// Evaluates every target, pins the `.drv`s, and reads them; what is found is left for a retry where that fails. Gives also the
/// attributes whose errors were printed as they came.
fn evaluate(
    unfinished: &Unfinished<'_>,
    owner: &PinOwner,
    cores: NonZeroUsize,
    nix: &NixSettings,
    store: &mut Store,
    supervisor: &mut Supervisor,
) -> Result<(PinnedEvaluation, BTreeSet<AttrPath>), Failure> {
    let (request, state, log) = (unfinished.request, unfinished.state, unfinished.log);
    let identity = unfinished.identity;
    let place = EvaluationHost {
        temporary: unfinished.temporary,
        state,
        cores,
        nix,
        remembered: remembered::load(state, identity),
    };
    let mut evaluation = EvaluatorRun::new(
        request,
        unfinished.locked.cloned(),
        &place,
        unfinished.known.clone(),
        store,
        supervisor,
        log,
    )?;
    let all = evaluation.all(store);
    let is_complete = all.is_ok();
    // Known targets cost nothing.
    let is_measured = is_complete && unfinished.known.count() == 0;
    if let Some(costs) = evaluation.costs().filter(|_| is_measured) {
        remembered::save(state, identity, &costs);
    }
    let pinned =
        all.and_then(|()| pin_evaluation(&mut evaluation, owner, request, state, store, log));
    match pinned {
        Ok(pinned) => Ok((pinned, evaluation.printed_errors())),
        Err(failure) => {
            let place = match evaluation.place() {
                _ if is_complete => Some(WalkPlace::Behind),
                place => place,
            };
            let reached = Reached {
                evaluated: &evaluation.evaluated(),
                place: place.as_ref(),
            };
            unfinished.leave(&failure, &reached, store, evaluation.supervisor());
            Err(failure)
        }
    }
}

/// Prints the errors that were not `printed` as they came, and what the recording did not look at or its keys name and the repository does not have; returns the latter.
///
/// # Errors
/// There is nothing at all, or nothing but errors without a red step (65).
fn print_findings(
    pinned: &PinnedEvaluation,
    errors: &ErrorLists,
    printed: &BTreeSet<AttrPath>,
    base_note: Option<Note>,
    request: &RecordingRequest,
    log: &Log,
) -> Result<Vec<Note>, Failure> {
    let (evaluated, targets) = (&pinned.evaluated, &pinned.targets);
    refuse_nothing(evaluated, request, log)?;
    print_error_lists(errors, printed, request.on_error, log);
    refuse_errors_alone(targets, errors, request)?;
    let mut notes = evaluated.gaps.notes();
    notes.extend(errors::without_error(evaluated, request));
    notes.extend(agents_without_targets(request, targets, &evaluated.gaps));
    notes.extend(same_drv::overruled(&evaluated.targets));
    notes.extend(base_note);
    print_notes(&notes, log);
    Ok(notes)
}

/// The pipeline that these records make.
///
/// # Errors
/// A step cannot be made (64, 65).
fn plan(
    records: &Records<'_>,
    at_root: &RecordingRequest,
    schema: &Schema,
    undone: &'static str,
    log: &Log,
) -> Result<PlannedPipeline, Failure> {
    let pipeline = steps(records, at_root, schema).map_err(|failure| failure.context(undone))?;
    let refused = pipeline.refused_targets(records);
    print_errors("refused", refused, &BTreeSet::new(), MESSAGE_IN_STEP, log);
    warn_of_plugins(&pipeline, log);
    Ok(pipeline)
}

/// The text of `eval-once.json`.
fn document(
    pinned: &PinnedEvaluation,
    pipeline: &PlannedPipeline,
    report: &RecordingReport<'_>,
    at_root: &RecordingRequest,
    times: PartTimes<'_>,
) -> Result<String, Failure> {
    // A release has no steps of targets, which are in the document of the build.
    let targets = if at_root.phases.build {
        &pinned.targets[..]
    } else {
        &[]
    };
    let mut document = Document::new(
        &pinned.evaluated.nix,
        source(&at_root.root, &at_root.options),
        &at_root.root.attr,
        targets,
        pipeline,
        report.counts,
    );
    if !at_root.phases.build {
        // Nor has it those of errors, unless it made one itself, for a step that cannot follow.
        document.errors.retain(|error| error.step);
    }
    document.pin = pinned.pin.as_ref();
    document.seconds = times.with_total(report.seconds);
    document.to_json()
}

/// What goes to standard output: the pipeline, also where an upload of it would be refused; not where errors have `failed` the
/// recording.
fn printed_pipeline(
    failed: Option<Failure>,
    pipeline: &PlannedPipeline,
    excess: Option<&Excess>,
    log: &Log,
) -> Result<Vec<u8>, Failure> {
    failed.map_or(Ok(()), Err)?;
    if let Some(excess) = excess {
        warn_of_excess(excess, log);
    }
    let text = placed_step::json(&pipeline.steps)?;
    Ok((text + "\n").into_bytes())
}

/// Why no step is uploaded, and the annotation that says so: the errors have `failed` the recording, or its pipeline has too many
/// jobs, which the log has by attribute.
fn refusal(
    failed: Option<Failure>,
    excess: Option<&Excess>,
    report: &RecordingReport<'_>,
    undone: &'static str,
    log: &Log,
) -> Option<(Failure, (String, String))> {
    if let Some(failure) = failed {
        return Some((failure, annotation_of_errors(report)));
    }
    let excess = excess?;
    log.say(excess.by_attribute());
    let failure = excess.failure().context(undone);
    Some((failure, annotation_of_excess(report, excess)))
}

/// What a failing recording has not done, so that a reader knows that nothing has to be cleaned up.
fn undone(build: Option<&BuildkiteBuild>) -> &'static str {
    match build {
        Some(_) => "nothing is uploaded",
        None => "no pipeline is printed",
    }
}
