//! What a recording leaves that is stopped, or fails for a reason that a retry may not meet again, before its plan is saved: what it
//! has found so far, for a retry on this host and for a reader.

use std::path::Path;
use std::time::{Duration, Instant};

use super::errors::ErrorLists;
use super::evaluate::evaluator::WalkPlace;
use super::evaluate::known::KnownTargets;
use super::keep::partial::PartialRecording;
use super::pipeline::document::Document;
use super::pipeline::steps::{PlannedPipeline, StepKeys, TargetStep, source};
use super::targets::targets;
use super::upload::annotation::{self, StoppedReport};
use super::upload::{DOCUMENT, PlannedTargets, annotation_context};
use super::{BuildkiteBuild, EvaluationResult, RecordingRequest};
use crate::agent;
use crate::buildkite::agent as command;
use crate::counts::RecordingCounts;
use crate::exit::{Class, Failure};
use crate::log::Log;
use crate::nix::LockedFlake;
use crate::parallel;
use crate::state::StateFolder;
use crate::store::{ATTEMPTS, Store};
use crate::supervise::Supervisor;

/// How long keeping what was found may take. The agent kills what is left of a job ten seconds after it has asked it to end, and
/// stopping the evaluation takes up to one of them.
const TIME_TO_KEEP: Duration = Duration::from_secs(3);

/// How long all of it may take.
const TIME: Duration = Duration::from_secs(5);

/// What is known of a recording before it evaluates.
pub(super) struct Unfinished<'a> {
    /// What is asked for.
    pub(super) request: &'a RecordingRequest,
    /// The same, with paths from the root of the checkout.
    pub(super) at_root: &'a RecordingRequest,
    /// The build; none by hand, and of a dry run: then nothing is left.
    pub(super) build: Option<&'a BuildkiteBuild>,
    /// The recording's identity.
    pub(super) identity: &'a str,
    /// Where what was found is kept; none where it is not.
    pub(super) partial: Option<&'a PartialRecording>,
    /// The flake, where it is one.
    pub(super) locked: Option<&'a LockedFlake>,
    /// What an earlier one has left.
    pub(super) known: &'a KnownTargets,
    /// What a plan of an earlier try has steps for that is not followed.
    pub(super) planned: &'a PlannedTargets,
    pub(super) state: &'a StateFolder,
    /// The folder for temporary files.
    pub(super) temporary: &'a Path,
    pub(super) started: Instant,
    pub(super) log: &'a Log,
}

/// How far an evaluation has come.
pub(super) struct Reached<'a> {
    pub(super) evaluated: &'a EvaluationResult,
    /// Where it is; none where that is not known.
    pub(super) place: Option<&'a WalkPlace>,
}

impl Unfinished<'_> {
    /// The result of something behind the evaluation; where it is a failure after which a retry makes sense, what was evaluated is left
    /// first.
    pub(super) fn or_leave<T>(
        &self,
        result: Result<T, Failure>,
        evaluated: &EvaluationResult,
        store: &mut Store,
        supervisor: &mut Supervisor,
    ) -> Result<T, Failure> {
        if let Err(failure) = &result {
            let reached = Reached {
                evaluated,
                place: Some(&WalkPlace::Behind),
            };
            self.leave(failure, &reached, store, supervisor);
        }
        result
    }

    /// Leaves what was found so far, if this is a failure after which a retry makes sense. A second signal ends that at once, and
    /// nothing that goes wrong on the way changes the failure.
    pub(super) fn leave(
        &self,
        failure: &Failure,
        reached: &Reached<'_>,
        store: &mut Store,
        supervisor: &mut Supervisor,
    ) {
        let is_worth_it = matches!(failure.class, Class::Signal(_) | Class::Infrastructure);
        if let Some(build) = self.build.filter(|_| is_worth_it) {
            let begin = Instant::now();
            supervisor.once_more(begin + TIME, |supervisor| {
                let kept = supervisor.once_more(begin + TIME_TO_KEEP, |supervisor| {
                    self.keep(reached, store, supervisor)
                });
                let is_kept = kept.unwrap_or_else(|failure| {
                    self.warn("cannot keep what was found", &failure, supervisor);
                    false
                });
                let until = begin + TIME;
                let published = self.publish(failure, reached, is_kept, build, until, supervisor);
                if let Err(failure) = published {
                    self.warn("cannot publish what was found", &failure, supervisor);
                }
            });
        }
    }

    /// Warns of what could not be done; not where another signal has ended it.
    fn warn(&self, what: &str, failure: &Failure, supervisor: &Supervisor) {
        if supervisor.is_stopped() {
            return;
        }
        match failure.class {
            Class::Signal(_) => self.log.warn(format_args!("{what} in time")),
            _ => self.log.warn(format_args!("{what}: {failure}")),
        }
    }

    /// Keeps what was found for a retry; whether there is anything, and it could use it.
    fn keep(
        &self,
        reached: &Reached<'_>,
        store: &mut Store,
        supervisor: &mut Supervisor,
    ) -> Result<bool, Failure> {
        let known = self.known.clone().with(KnownTargets::of(reached.evaluated));
        let Some(partial) = self.partial.filter(|_| known.count() > 0) else {
            return Ok(false);
        };
        let (request, state, log) = (self.request, self.state, self.log);
        let obstacle = partial.save(&known, self.locked, request, state, store, supervisor, log)?;
        if let Some(why) = &obstacle {
            log.say(format_args!("what was found is not kept: {why}"));
        }
        Ok(obstacle.is_none())
    }

    /// Says what was found: in the log, as an artifact and as an annotation.
    fn publish(
        &self,
        failure: &Failure,
        reached: &Reached<'_>,
        is_kept: bool,
        build: &BuildkiteBuild,
        until: Instant,
        supervisor: &mut Supervisor,
    ) -> Result<(), Failure> {
        let evaluated = reached.evaluated;
        // One that was collected meanwhile is none; and one that is collected between two looks is none at the next.
        let still_there = || EvaluationResult {
            targets: evaluated
                .targets
                .iter()
                .filter(|found| found.drv.as_store_path().as_path().exists())
                .cloned()
                .collect(),
            ..EvaluationResult::default()
        };
        let targets = (0..ATTEMPTS)
            .find_map(|_| targets(&still_there()).ok())
            .map(|(targets, _)| targets)
            .unwrap_or_default();
        let errors = ErrorLists::of(evaluated, &self.request.expect_errors);
        let counts = RecordingCounts {
            attributes: evaluated.targets.len() + errors.len(),
            targets: targets.len(),
            evaluation_errors: errors.evaluation.len(),
            expected_errors: errors.expected.len(),
            refused: errors.refused.len(),
        };
        let report = StoppedReport {
            failure: &failure.to_string(),
            source: &self.request.description(),
            errors: &errors,
            on_error: self.request.on_error,
            counts,
            place: reached.place,
            seconds: self.started.elapsed().as_secs_f64(),
            is_kept,
        };
        self.log.say(report.sentence());
        let keys = StepKeys::new(&targets, &errors, self.at_root);
        let steps = targets.iter().map(|target| TargetStep {
            key: keys.target(target),
            depends_on: Vec::new(),
            ..TargetStep::default()
        });
        let pipeline = PlannedPipeline {
            steps: Vec::new(),
            targets: steps.collect(),
            followers: Vec::new(),
            shared: Vec::new(),
            keys: keys.clone(),
            errors: errors.clone(),
            omitted: 0,
        };
        let root = &self.at_root.root;
        let mut document = Document::new(
            &evaluated.nix,
            source(root, &self.at_root.options),
            &self.request.root.attr,
            &targets,
            &pipeline,
            counts,
        );
        document.complete = false;
        let folder = agent::folder(self.temporary)?;
        agent::write(&folder.path().join(DOCUMENT), &document.to_json()?)?;
        let body = folder.path().join("annotation.md");
        agent::write(&body, &annotation::stopped(&report))?;
        let context = annotation_context(build);
        let lines = [
            command::upload_artifact(folder.path(), DOCUMENT),
            command::annotate(&context, "warning", false, &body),
        ];
        parallel::all(supervisor, &lines, Some(until)).map(drop)
    }
}
