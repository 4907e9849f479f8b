//! A recording from top to bottom.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use super::checkout::check_agent;
use super::error_line::MESSAGE_IN_STEP;
use super::errors::{self, ErrorLists};
use super::evaluate::EvaluationHost;
use super::evaluate::evaluator::{EvaluatorRun, WalkPlace};
use super::evaluate::gaps::{Note, agents_without_targets};
use super::evaluate::known::KnownTargets;
use super::evaluate::{flake, remembered};
use super::keep::partial::PartialRecording;
use super::keep::pinned::{PinnedEvaluation, pin_evaluation};
use super::keep::{self, PinOwner, open_state_folder, skip};
use super::notices::{
    print_error_lists, print_errors, print_notes, warn_of_excess, warn_of_plugins,
};
use super::pipeline::document::Document;
use super::pipeline::excess::Excess;
use super::pipeline::placed_step;
use super::pipeline::steps::{PlannedPipeline, Records, check, source, steps};
use super::report::RecordingReport;
use super::share::Sharing;
use super::stopped::{Reached, Unfinished};
use super::upload::Upload;
use super::upload::annotation::{annotation, annotation_of_excess};
use super::upload::plan::UploadPlan;
use super::{BuildkiteBuild, EvaluationResult, OnError, RecordingOrder, RecordingRequest, Target};
use crate::buildkite::schema::Schema;
use crate::counts::{RecordingCounts, number};
use crate::evaluation_keys::{Checkout, check_file};
use crate::exit::{Class, Failure};
use crate::host::Host;
use crate::log::Log;
use crate::nix::{AttrPath, LockedFlake};
use crate::store::Store;
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
    let (mut request, host) = (order.request, order.host);
    // The same with paths from the root of the checkout, where steps start.
    let mut at_root = at_root(&request, order.below_checkout.as_deref())?;
    let build = order.build.as_ref().filter(|_| !order.dry_run);
    // The identity is that of the keys alone: the settings of a flake are not known yet when a retry looks for its plan.
    let identity = keep::identity(&at_root);
    if let Some(build) = build
        && follow_earlier(build, &identity, &host.temporary, supervisor, log)?
    {
        return Ok(None);
    }
    let schema = check_request(&request, &order.place)?;
    check_agent(&request, build, supervisor)?;
    let sharing = Sharing::new(&request, &host, order.build.as_ref(), order.dry_run)?;
    let state = open_state_folder(&host)?;
    keep::remove_expired(&state);
    let owner = PinOwner::of(&at_root, order.build.as_ref());
    let previous = keep::previous(&owner, &state);
    let partial = PartialRecording::new(&request, &owner, build, &order.place.folder);
    let mut times = PartTimes::start(log);

    let mut store = Store::new(&request.options, log);
    let locked = locked(
        &mut request,
        &mut at_root,
        &host,
        &mut store,
        supervisor,
        log,
    )?;
    let (temporary, cores) = (host.temporary.as_path(), order.cores);
    let known = match &partial {
        Some(partial) => partial.load(locked.as_ref(), &state, &mut store, supervisor, log)?,
        None => KnownTargets::default(),
    };
    let unfinished = Unfinished {
        request: &request,
        at_root: &at_root,
        build,
        partial: partial.as_ref(),
        locked: locked.as_ref(),
        known: &known,
        state: &state,
        temporary,
        started: order.started,
        log,
    };
    let place = EvaluationHost {
        temporary,
        state: &state,
        cores,
        nix: &host.nix,
        remembered: remembered::load(&state, &identity),
    };
    let mut evaluation = EvaluatorRun::new(
        &request,
        locked.clone(),
        &place,
        known.clone(),
        &mut store,
        supervisor,
        log,
    )?;
    let all = evaluation.all(&mut store);
    let is_complete = all.is_ok();
    // Known targets cost nothing.
    let is_measured = is_complete && known.count() == 0;
    if let Some(costs) = evaluation.costs().filter(|_| is_measured) {
        remembered::save(&state, &identity, &costs);
    }
    let pinned = all
        .and_then(|()| pin_evaluation(&mut evaluation, &owner, &request, &state, &mut store, log));
    let PinnedEvaluation {
        evaluated,
        pin,
        targets,
        edges,
        answers,
    } = match pinned {
        Err(failure) => {
            let place = match evaluation.place() {
                _ if is_complete => Some(WalkPlace::Behind),
                place => place,
            };
            let evaluated = evaluation.evaluated();
            let reached = Reached {
                evaluated: &evaluated,
                place: place.as_ref(),
            };
            unfinished.leave(&failure, &reached, &mut store, evaluation.supervisor());
            return Err(failure);
        }
        Ok(pinned) => pinned,
    };
    let errors_printed = evaluation.printed_errors();
    // What it has found of each attribute takes as much memory as the targets.
    drop(evaluation);
    let errors = ErrorLists::of(&evaluated, &request.expect_errors);
    let notes = print_findings(
        &evaluated,
        &errors,
        &errors_printed,
        &request,
        &targets,
        log,
    )?;
    times.end("evaluate");

    let reached = Reached {
        evaluated: &evaluated,
        place: Some(&WalkPlace::Behind),
    };
    let skipped = skip::reasons(&targets, &request, answers, &mut store, supervisor, log);
    let skipped = unfinished.or_leave(skipped, &reached, &mut store, supervisor)?;
    times.end("skip");
    let records = Records {
        targets: &targets,
        errors: &errors,
        callable: &evaluated.callable,
        edges: &edges,
        skip: &skipped,
    };
    let undone = undone(build);
    let mut pipeline =
        steps(&records, &at_root, &schema).map_err(|failure| failure.context(undone))?;
    let refused_targets = pipeline.refused_targets(&records);
    print_errors(
        "refused",
        refused_targets,
        &BTreeSet::new(),
        MESSAGE_IN_STEP,
        log,
    );
    let counts = pipeline.counts(&targets);
    fail_on_errors(counts, request.on_error, undone)?;
    warn_of_plugins(&pipeline, log);
    times.end("steps");
    let excess = Excess::of(&pipeline, &targets, &at_root);
    if excess.is_none() || build.is_none() {
        let shared = sharing.share(&mut pipeline, &targets, &state, &mut store, supervisor, log);
        let shared = shared.map_err(|failure| failure.context(undone));
        unfinished.or_leave(shared, &reached, &mut store, supervisor)?;
        times.end("share");
    }

    let report = RecordingReport {
        source: &request.description(),
        targets: &targets,
        target_steps: &pipeline.targets,
        errors: &pipeline.errors,
        on_error: request.on_error,
        notes: &notes,
        counts,
        omitted: pipeline.omitted,
        seconds: order.started.elapsed().as_secs_f64(),
        previous: previous.as_deref(),
    };
    log.say(report.sentence(None));
    let Some(build) = build else {
        return printed(&pipeline, excess.as_ref(), log).map(Some);
    };
    let mut document = Document::new(
        &evaluated.nix,
        source(&at_root.root, &at_root.options),
        &request.root.attr,
        &targets,
        &pipeline,
        counts,
    );
    document.pin = pin.as_ref();
    document.seconds = times.with_total(report.seconds);
    let document = document.to_json()?;
    let mut upload = Upload::new(build, temporary, supervisor, log);
    if let Some(excess) = &excess {
        upload.publish(&document, &annotation_of_excess(&report, excess))?;
        return Err(refused(excess, log).context(undone));
    }
    let plan = UploadPlan::new(
        &build.step,
        &pipeline.steps,
        request.chunk,
        document,
        annotation(&report),
    )?;
    let saved = upload.save(&plan, &identity);
    drop(upload);
    unfinished.or_leave(saved, &reached, &mut store, supervisor)?;
    // From now on, a retry follows the plan.
    if let Some(partial) = &partial {
        partial.remove(&state);
    }
    let mut upload = Upload::new(build, temporary, supervisor, log);
    upload.follow(&plan, true).map(|()| None)
}

/// The request with its paths from the root of the checkout; `below` is the recording's folder there, if it is another one.
fn at_root(request: &RecordingRequest, below: Option<&Path>) -> Result<RecordingRequest, Failure> {
    match below {
        Some(folder) => request.at_checkout_root(folder),
        None => Ok(request.clone()),
    }
}

/// Checks what is asked for, before anything is evaluated.
fn check_request(request: &RecordingRequest, place: &Checkout) -> Result<Schema, Failure> {
    check_file(&request.root, request.by_default, place)?;
    let schema = Schema::new()?;
    check(request, &schema)?;
    Ok(schema)
}

/// Follows the plan of an earlier try of the same step, if there is one. Returns whether there is.
fn follow_earlier(
    build: &BuildkiteBuild,
    identity: &str,
    temporary: &Path,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<bool, Failure> {
    let mut upload = Upload::new(build, temporary, supervisor, log);
    let Some(plan) = upload.earlier_plan(identity)? else {
        return Ok(false);
    };
    upload.follow(&plan, false)?;
    Ok(true)
}

/// The locked flake, if a flake is recorded. Its settings, as far as this host accepts them, count from now on, and in every
/// step too, which realises before it evaluates any flake.
fn locked(
    request: &mut RecordingRequest,
    at_root: &mut RecordingRequest,
    host: &Host,
    store: &mut Store,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<Option<LockedFlake>, Failure> {
    let (locked, settings) = flake::lock(request, &host.temporary, store, supervisor, log)?;
    request.options.extend(settings.iter().cloned());
    at_root.options.extend(settings);
    Ok(locked)
}

/// Prints the errors that were not `printed` as they came, and what the recording did not look at or its keys name and the repository does not have; returns the latter.
///
/// # Errors
/// There is nothing at all, or nothing but errors without a red step (65).
fn print_findings(
    evaluated: &EvaluationResult,
    errors: &ErrorLists,
    printed: &BTreeSet<AttrPath>,
    request: &RecordingRequest,
    targets: &[Target],
    log: &Log,
) -> Result<Vec<Note>, Failure> {
    refuse_nothing(evaluated, request, log)?;
    print_error_lists(errors, printed, request.on_error, log);
    refuse_errors_alone(targets, errors, request)?;
    let mut notes = evaluated.gaps.notes();
    notes.extend(errors::without_error(evaluated, request));
    notes.extend(agents_without_targets(request, targets, &evaluated.gaps));
    print_notes(&notes, log);
    Ok(notes)
}

/// Fails where there is no target and no error either: such a recording is more likely a mistake than intended.
fn refuse_nothing(
    evaluated: &EvaluationResult,
    request: &RecordingRequest,
    log: &Log,
) -> Result<(), Failure> {
    if !(evaluated.targets.is_empty()
        && evaluated.errors.is_empty()
        && evaluated.refused.is_empty())
    {
        return Ok(());
    }
    print_notes(&evaluated.gaps.notes(), log);
    Err(Failure::new(
        Class::Evaluation,
        format_args!("there are no targets in {}", request.description()),
    )
    .hint(if request.exclude.is_empty() {
        "mark sets with `recurseForDerivations = true`, or look into every set with `recurse: all`"
    } else {
        "check `exclude`; mark sets with `recurseForDerivations = true`, or look into every set with `recurse: all`"
    }))
}

/// Fails where nothing evaluates and no step would be red for it: the build would be green, and have built nothing.
fn refuse_errors_alone(
    targets: &[Target],
    errors: &ErrorLists,
    request: &RecordingRequest,
) -> Result<(), Failure> {
    let is_seen = !errors.evaluation.is_empty() && request.on_error != OnError::Report;
    if is_seen || !targets.is_empty() || !errors.refused.is_empty() {
        return Ok(());
    }
    let hint = if errors.evaluation.is_empty() {
        "remove from `expect-errors` what is to evaluate"
    } else {
        "use `on-error: step` to see each error in a red step"
    };
    Err(Failure::new(
        Class::Evaluation,
        format_args!(
            "nothing in {} evaluates ({}), and no step would be red",
            request.description(),
            number(errors.len(), "attribute")
        ),
    )
    .hint(hint))
}

/// What goes to standard output: the pipeline, also where an upload of it would be refused.
fn printed(
    pipeline: &PlannedPipeline,
    excess: Option<&Excess>,
    log: &Log,
) -> Result<Vec<u8>, Failure> {
    if let Some(excess) = excess {
        warn_of_excess(excess, log);
    }
    let text = placed_step::json(&pipeline.steps)?;
    Ok((text + "\n").into_bytes())
}

/// The failure of a recording whose pipeline has too many jobs. The log has them by attribute.
fn refused(excess: &Excess, log: &Log) -> Failure {
    log.say(excess.by_attribute());
    excess.failure()
}

/// What a failing recording has not done, so that a reader knows that nothing has to be cleaned up.
fn undone(build: Option<&BuildkiteBuild>) -> &'static str {
    match build {
        Some(_) => "nothing is uploaded",
        None => "no pipeline is printed",
    }
}

/// Fails where there are errors that are not expected, and errors fail the recording.
fn fail_on_errors(counts: RecordingCounts, on_error: OnError, undone: &str) -> Result<(), Failure> {
    let Some(errors) = counts.errors().filter(|_| on_error == OnError::Fail) else {
        return Ok(());
    };
    Err(Failure::new(
        Class::Evaluation,
        format_args!("{errors} (see above), and `on-error: fail` is set: {undone}"),
    ))
}

/// How long the parts of a recording take.
struct PartTimes<'a> {
    /// In seconds, by the names that `eval-once.json` has.
    seconds: BTreeMap<&'static str, f64>,
    begin: Instant,
    log: &'a Log,
}

impl<'a> PartTimes<'a> {
    fn start(log: &'a Log) -> Self {
        Self {
            seconds: BTreeMap::new(),
            begin: Instant::now(),
            log,
        }
    }

    /// Ends a part; the next begins.
    fn end(&mut self, name: &'static str) {
        let took = self.begin.elapsed().as_secs_f64();
        self.begin = Instant::now();
        self.log.debug(format_args!("{name}: {took:.3} s"));
        self.seconds.insert(name, to_milliseconds(took));
    }

    /// The times of the parts, and of the whole recording.
    fn with_total(mut self, total: f64) -> BTreeMap<&'static str, f64> {
        self.seconds.insert("total", to_milliseconds(total));
        self.seconds
    }
}

/// To the millisecond: further digits would be noise.
fn to_milliseconds(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::AttrError;
    use crate::recording::evaluate::gaps::Gaps;
    use crate::recording::pipeline::fixtures::{path, request, target};
    use std::cell::RefCell;
    use std::rc::Rc;

    #[test]
    fn errors_fail_a_recording_only_with_on_error_fail() {
        let counts = |evaluation_errors, refused| RecordingCounts {
            attributes: 5,
            targets: 1,
            evaluation_errors,
            expected_errors: 7,
            refused,
        };
        for (counts, on_error) in [
            (counts(0, 0), OnError::Fail),
            (counts(2, 1), OnError::Step),
            (counts(2, 1), OnError::Report),
        ] {
            assert!(fail_on_errors(counts, on_error, "").is_ok());
        }
        let failure = fail_on_errors(counts(2, 1), OnError::Fail, "nothing is uploaded");
        let failure = failure.unwrap_err();
        assert_eq!(failure.class, Class::Evaluation);
        assert_eq!(
            failure.to_string(),
            "2 evaluation errors, 1 refused (see above), and `on-error: fail` is set: nothing is uploaded"
        );
    }

    #[test]
    fn a_recording_without_targets_and_errors_fails_and_says_what_it_did_not_look_at() {
        let sink = Rc::new(RefCell::new(Vec::new()));
        let log = Log::to(sink.clone());
        let mut evaluated = EvaluationResult {
            gaps: Gaps {
                sets: vec![path(&["unmarked"])],
                ..Gaps::default()
            },
            ..EvaluationResult::default()
        };
        let failure = refuse_nothing(&evaluated, &request(), &log).unwrap_err();
        assert_eq!(failure.class, Class::Evaluation);
        assert!(
            failure.to_string().starts_with("there are no targets in "),
            "{failure}"
        );
        let printed = String::from_utf8(sink.borrow().clone()).unwrap();
        assert!(printed.contains("unmarked"), "{printed}");
        let excluding = RecordingRequest {
            exclude: vec![path(&["a"])],
            ..request()
        };
        let failure = refuse_nothing(&evaluated, &excluding, &log).unwrap_err();
        assert!(failure.hint.unwrap().contains("`exclude`"));
        evaluated.errors.push(AttrError {
            attr: path(&["a"]),
            message: None,
        });
        assert!(refuse_nothing(&evaluated, &request(), &log).is_ok());
    }

    #[test]
    fn a_recording_of_errors_alone_fails_unless_a_step_is_red_for_it() {
        let error = |name: &str| AttrError {
            attr: path(&[name]),
            message: None,
        };
        let lists = |evaluation: usize, expected: usize, refused: usize| ErrorLists {
            evaluation: vec![error("a"); evaluation],
            expected: vec![error("b"); expected],
            refused: vec![error("c"); refused],
        };
        let refuse = |targets: &[Target], lists: &ErrorLists, on_error| {
            let request = RecordingRequest {
                on_error,
                ..request()
            };
            refuse_errors_alone(targets, lists, &request)
        };
        for on_error in [OnError::Step, OnError::Fail] {
            assert!(refuse(&[], &lists(1, 1, 0), on_error).is_ok());
            assert!(refuse(&[], &lists(0, 1, 0), on_error).is_err());
        }
        assert!(refuse(&[], &lists(1, 1, 1), OnError::Report).is_ok());
        let target = target(0, &["a"]);
        assert!(refuse(&[target], &lists(1, 1, 0), OnError::Report).is_ok());
        let failure = refuse(&[], &lists(2, 1, 0), OnError::Report).unwrap_err();
        assert_eq!(failure.class, Class::Evaluation);
        assert_eq!(
            failure.to_string(),
            "nothing in p of ci.nix evaluates (3 attributes), and no step would be red"
        );
        assert!(failure.hint.unwrap().contains("`on-error: step`"));
    }

    #[test]
    fn times_are_kept_to_the_millisecond() {
        let mut times = PartTimes::start(&Log::default()).with_total(1.23456);
        assert_eq!(times.remove("total"), Some(1.235));
        assert!(times.is_empty());
    }
}
