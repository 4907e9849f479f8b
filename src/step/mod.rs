//! One target: from the keys of a step to its outputs.
//!
//! [`perform`] goes down the list of ways (`ways.rs`) until one of them has the outputs; [`explain`](explain()) asks the same
//! ways what they would do. What happened is recorded in a [`Report`], and in a job published in its build (`publish.rs`).

mod advice;
mod annotation;
mod artifact_files;
mod artifacts;
mod batch;
mod build_log;
mod checkout;
mod diagnosis;
mod drv_outputs;
mod ending;
mod evaluating;
mod exhausted;
mod explain;
mod fetching;
#[cfg(test)]
mod fixtures;
mod hints;
mod job_log;
mod links;
mod outputs;
mod program;
mod publish;
mod pushing;
mod realising;
mod report;
mod request;
mod root_cause;
mod run;
mod saved_report;
mod slot;
mod step_job;
mod ways;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Instant;

use crate::buildkite::git::Repository;
use crate::evaluation_keys::Checkout;
use crate::exit::Failure;
use crate::host::Host;
use crate::log::Log;
use crate::nix::StorePath;
use crate::supervise::Supervisor;

pub use crate::build_keys::{Form, OutLink};
use advice::Advice;
use build_log::BuildLog;
pub use explain::{Explanation, explain};
pub use links::main_output;
use publish::{FinishedStep, publish};
pub use report::{FailureReport, Pushed, Reason, Report, ReportFile, Seconds, TriedShare, WayName};
pub use request::{BatchTarget, StepRequest};
use run::StepRun;
pub use saved_report::{COMMAND, SavedReport, SavedReportError, SavedSeconds, StopReason};
pub use step_job::{AfterBuild, JobContext, StepJob};
pub use ways::Fact;

/// A step as it was ordered, all of which could be read. What could not is refused: [`refuse`].
#[derive(Debug)]
pub struct StepOrder {
    /// What it is asked to do.
    pub request: StepRequest,
    /// The folder in which its relative paths start, and what may be used there.
    pub place: Checkout,
    /// What the agent would check out for the job; none by hand.
    pub repository: Option<Repository>,
    /// The host's settings.
    pub host: Host,
    /// Whether this is a job, which can download artifacts of its build.
    pub in_build: bool,
    /// Where its ending is reported.
    pub reporting: StepReporting,
}

/// Where the ending of a step is reported, besides its log: that of a refused one too.
#[derive(Debug, Clone)]
pub struct StepReporting {
    /// The file of the report, if one is wanted (`--report`).
    pub report: Option<PathBuf>,
    /// The job to whose build the report is published; none by hand.
    pub job: Option<StepJob>,
    /// The folder for temporary files.
    pub temporary: PathBuf,
    /// When the program began.
    pub started: Instant,
    /// Report it only where the step fails: more is built in this job.
    pub only_failures: bool,
}

/// A step whose outputs are there.
#[derive(Debug)]
pub struct BuiltStep {
    /// Its outputs by name; of a step that runs a program of its outputs, those of the target that the program needs.
    pub outputs: BTreeMap<String, StorePath>,
    /// Whether a hook is to run the job's own command now.
    pub command: bool,
    /// The program that is to be run now instead.
    pub program: Option<PathBuf>,
}

/// Builds one target, and another one before it where that is needed, and reports how that went.
///
/// # Errors
/// Whatever the step ends with; it is in the report too, but for a program that is not there (64).
pub fn perform(
    mut order: StepOrder,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<BuiltStep, Failure> {
    let Some(needs) = order.request.needs.take() else {
        return build(order, supervisor, log);
    };
    let first = StepOrder {
        request: *needs,
        place: order.place.clone(),
        repository: order.repository.clone(),
        host: order.host.clone(),
        in_build: order.in_build,
        reporting: StepReporting {
            only_failures: true,
            ..order.reporting.clone()
        },
    };
    let needed = build(first, supervisor, log)?;
    let built = build(order, supervisor, log)?;
    Ok(BuiltStep {
        outputs: needed.outputs,
        ..built
    })
}

/// Builds one target, or those of a batch, and reports how that went.
fn build(order: StepOrder, supervisor: &mut Supervisor, log: &Log) -> Result<BuiltStep, Failure> {
    if !order.request.targets.is_empty() {
        return batch::perform(&order, perform, supervisor, log);
    }
    let StepOrder {
        request,
        place,
        repository,
        host,
        in_build,
        reporting,
    } = order;
    let file = reporting.prepare(&out_links(&request))?;
    let mut step = StepRun::new(&request, &place, &host, supervisor, log);
    step.repository = repository.as_ref();
    step.in_build = in_build;
    let built = go(&mut step);
    let pushed = pushing::push(&mut step, &built);
    let uploaded = match (&built, &pushed) {
        (Ok(outputs), Ok(_)) => artifacts::upload(&mut step, outputs, &reporting),
        _ => Ok(()),
    };
    let (built, hints) = match hints::of(&mut step, built.is_ok()) {
        Ok(hints) => (built, hints),
        // A signal has come after all: what was built is there, and the job's command is not to begin.
        Err(failure) => (built.and(Err(failure)), Vec::new()),
    };
    let mut report = step.report(reporting.started, &built, hints);
    let is_push_failure = built.is_ok() && pushed.is_err();
    let result = match pushed {
        Ok(pushed) => {
            report.pushed = pushed;
            if let (Ok(_), Err(failure)) = (&built, &uploaded) {
                report.fail(failure);
            }
            built.and_then(|outputs| uploaded.map(|()| outputs))
        }
        Err(failure) => {
            if is_push_failure {
                report.fail(&failure);
            }
            built.and(Err(failure))
        }
    };
    let build_log = step.build_log(&mut report);
    let is_log_above = step.shows_end_of_log(&report);
    let advice = if is_push_failure {
        pushing::advice(&mut step, &report.outputs)
    } else if result.is_err() {
        let version = step.nix_version().unwrap_or_default();
        Advice::new(&request, &report, version)
    } else {
        Advice::default()
    };
    drop(step);
    let ended = EndedStep {
        report,
        request: Some(&request),
        advice,
        build_log,
        is_log_above,
    };
    let outputs = ended.publish(result, file, &reporting, supervisor, log)?;
    Ok(match &request.run {
        None => BuiltStep {
            outputs,
            command: request.command,
            program: None,
        },
        Some(run) => BuiltStep {
            program: Some(run.find(&outputs)?),
            outputs: BTreeMap::new(),
            command: false,
        },
    })
}

/// Reports that a step is refused, as any other ending is reported. Returns the failure that the program ends with.
pub fn refuse(
    failure: Failure,
    reporting: &StepReporting,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Failure {
    let file = match reporting.prepare(&[]) {
        Ok(file) => file,
        Err(failure) => return failure,
    };
    let ended = EndedStep {
        report: Report::refusal(&failure, reporting.started),
        request: None,
        advice: Advice::default(),
        build_log: None,
        is_log_above: false,
    };
    match ended.publish::<Infallible>(Err(failure), file, reporting, supervisor, log) {
        Err(failure) => failure,
        Ok(never) => match never {},
    }
}

impl StepReporting {
    /// Looks whether the report can be written, before anything else is done, by a step that makes these links.
    fn prepare(&self, links: &[PathBuf]) -> Result<Option<ReportFile>, Failure> {
        let links = links.iter().map(PathBuf::as_path);
        let prepare = |path| ReportFile::prepare(path, links);
        self.report.as_deref().map(prepare).transpose()
    }
}

/// The links that a step makes, as far as its outputs are recorded.
fn out_links(request: &StepRequest) -> Vec<PathBuf> {
    let OutLink::At(base) = &request.out_link else {
        return Vec::new();
    };
    let outputs = request.outputs.keys().map(String::as_str);
    let links = outputs.map(|output| links::link_of(base, output));
    links.chain([base.clone()]).collect()
}

/// A step that has ended, and what is reported of it.
struct EndedStep<'a> {
    report: Report,
    /// What it was asked to do; none where that was refused.
    request: Option<&'a StepRequest>,
    advice: Advice,
    build_log: Option<BuildLog>,
    /// The job's log ends with the end of that log.
    is_log_above: bool,
}

impl EndedStep<'_> {
    /// Reports the ending: in the log, in the file of the report, and to the build.
    fn publish<T>(
        self,
        result: Result<T, Failure>,
        file: Option<ReportFile>,
        reporting: &StepReporting,
        supervisor: &mut Supervisor,
        log: &Log,
    ) -> Result<T, Failure> {
        let Self {
            mut report,
            request,
            advice,
            build_log,
            is_log_above,
        } = self;
        if let Some(line) = report.in_one_line() {
            log.say(line);
        }
        let is_reported = result.is_err() || !reporting.only_failures;
        if result.is_ok() && !report.hints.is_empty() {
            // One line: a green step prints at most three of its own, with the outputs that the hook prints.
            let hints = report.hints.join("; also: ");
            if report.drift {
                log.warn(hints);
            } else {
                log.say(format_args!("hint: {hints}"));
            }
        } else {
            for hint in &report.hints {
                log.say(format_args!("hint: {hint}"));
            }
        }
        let file = file.filter(|_| is_reported);
        let result = match file.map(|file| file.write(&report)) {
            Some(Err(failure)) if result.is_ok() => {
                report.fail(&failure);
                Err(failure)
            }
            Some(Err(failure)) => {
                log.warn(failure);
                result
            }
            _ => result,
        };
        if let Some(job) = reporting.job.as_ref().filter(|_| is_reported) {
            let over = FinishedStep {
                report: &report,
                failure: result.as_ref().err(),
                request,
                advice: &advice,
                build_log: build_log.as_ref(),
            };
            publish(job, &over, &reporting.temporary, supervisor, log);
        }
        // A step that was stopped did not fail.
        if let Err(failure) = &result
            && !supervisor.is_stopped()
        {
            ending::show(
                failure,
                &report,
                request,
                &advice,
                build_log.as_ref(),
                is_log_above,
                log,
            );
        }
        result
    }
}

/// Tries the ways until one has the outputs. A step that fails says why the ways before led nowhere.
fn go(step: &mut StepRun<'_>) -> Result<BTreeMap<String, StorePath>, Failure> {
    step.prepare()?;
    let built = try_ways(step).inspect_err(|_| step.report_dead_ends());
    match step.withdraw_links(built.as_ref().ok()) {
        Ok(()) => built,
        Err(failure) => built.and(Err(failure)),
    }
}

fn try_ways(step: &mut StepRun<'_>) -> Result<BTreeMap<String, StorePath>, Failure> {
    if step.request.out_link == OutLink::State {
        step.link_in_state_folder();
    }
    for way in ways::in_order(step.request.skip, step.drv_file) {
        if way.needs_record() && step.note_other_store() {
            continue;
        }
        if let Some(outputs) = (way.go)(step)? {
            if step.request.skip {
                // The recording has announced that this step does nothing: why it did all the same.
                step.report_dead_ends();
            }
            step.keep_outputs_folder();
            return Ok(outputs.into_outputs());
        }
        step.end_way();
    }
    Err(exhausted::failure(step))
}
