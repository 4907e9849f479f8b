//! One target: from the keys of a step to its outputs.
//!
//! [`perform`] goes down the list of ways (`ways.rs`) until one of them has the outputs; [`explain`](explain()) asks the same
//! ways what they would do. What happened is recorded in a [`Report`], and in a job published in its build (`publish.rs`).

mod advice;
mod annotation;
mod build_log;
mod diagnosis;
mod ending;
mod evaluating;
mod exhausted;
mod explain;
mod hints;
mod job_log;
mod links;
mod outputs;
mod publish;
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
use std::path::PathBuf;
use std::time::Instant;

use crate::evaluation_keys::Checkout;
use crate::exit::Failure;
use crate::host::Host;
use crate::keys::Keys;
use crate::log::Log;
use crate::nix::StorePath;
use crate::supervise::Supervisor;

pub use crate::build_keys::{Form, OutLink};
use advice::Advice;
pub use explain::{Explanation, explain};
pub use links::main_output;
use publish::{FinishedStep, publish};
pub use report::{FailureReport, Reason, Report, ReportFile, Seconds, WayName};
pub use request::StepRequest;
use run::StepRun;
pub use saved_report::{COMMAND, SavedReport, SavedReportError, SavedSeconds, StopReason};
pub use step_job::{AfterBuild, JobContext, StepJob};
pub use ways::Fact;

/// A step as it was ordered: what cannot be read is part of it, for its refusal is reported like any other ending.
#[derive(Debug)]
pub struct StepOrder {
    /// The keys, from wherever this use of eval-once takes them.
    pub keys: Result<Keys, Failure>,
    /// Where the step stands.
    pub place: Checkout,
    /// The host's settings.
    pub host: Result<Host, Failure>,
    /// Where the report goes.
    pub report: Option<PathBuf>,
    /// The job to whose build the report is published; none by hand.
    pub job: Option<StepJob>,
    /// Whether a command follows, which needs the outputs: then nothing is skipped.
    pub followed: bool,
    /// When the program began.
    pub started: Instant,
}

/// A step whose outputs are there.
#[derive(Debug)]
pub struct BuiltStep {
    /// Its outputs by name.
    pub outputs: BTreeMap<String, StorePath>,
    /// Whether a hook is to run the job's own command now.
    pub command: bool,
}

/// Builds one target and reports how that went.
///
/// # Errors
/// Whatever the step ends with; it is in the report too.
pub fn perform(
    mut order: StepOrder,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<BuiltStep, Failure> {
    let file = order
        .report
        .as_deref()
        .map(ReportFile::prepare)
        .transpose()?;
    // A recorded command does not stand in the job's `BUILDKITE_COMMAND`.
    if let Some(job) = order.job.as_mut().filter(|_| order.followed) {
        job.around.command = true;
    }
    let request = order
        .keys
        .and_then(|keys| StepRequest::read(keys, &order.place))
        .map(|request| StepRequest {
            skip: request.skip && !order.followed,
            ..request
        });
    let (mut report, kept, is_log_above, result, request, advice) = match (request, order.host) {
        (Ok(request), Ok(host)) => {
            let mut step = StepRun::new(&request, &order.place, &host, supervisor, log);
            let result = go(&mut step);
            let (result, hints) = match hints::of(&mut step, result.is_ok()) {
                Ok(hints) => (result, hints),
                // A signal has come after all: what was built is there, and the job's command is not to begin.
                Err(failure) => (result.and(Err(failure)), Vec::new()),
            };
            let mut report = step.report(order.started, &result, hints);
            let kept = step.build_log(&mut report);
            let is_log_above = step.shows_end_of_log(&report);
            let advice = if result.is_err() {
                let version = step.nix_version().unwrap_or_default();
                Advice::new(&request, &report, version)
            } else {
                Advice::default()
            };
            let done = |outputs| BuiltStep {
                outputs,
                command: request.command,
            };
            let result = result.map(done);
            (report, kept, is_log_above, result, Some(request), advice)
        }
        (Err(failure), _) | (_, Err(failure)) => {
            let report = Report::refusal(&failure, order.started);
            (report, None, false, Err(failure), None, Advice::default())
        }
    };
    if let Some(line) = report.in_one_line() {
        log.say(line);
    }
    if result.is_ok() && !report.hints.is_empty() {
        // One line: what a green step prints of its own is read by no one who looks for something else.
        log.say(format_args!("hint: {}", report.hints.join("; also: ")));
    } else {
        for hint in &report.hints {
            log.say(format_args!("hint: {hint}"));
        }
    }
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
    if let Some(job) = &order.job {
        let over = FinishedStep {
            report: &report,
            failure: result.as_ref().err(),
            request: request.as_ref(),
            advice: &advice,
            build_log: kept.as_ref(),
        };
        publish(job, &over, supervisor, log);
    }
    // Who was stopped has seen nothing fail.
    if let Err(failure) = &result
        && !supervisor.is_stopped()
    {
        ending::show(
            failure,
            &report,
            request.as_ref(),
            &advice,
            kept.as_ref(),
            is_log_above,
            log,
        );
    }
    result
}

/// Tries the ways until one has the outputs.
fn go(step: &mut StepRun<'_>) -> Result<BTreeMap<String, StorePath>, Failure> {
    step.prepare()?;
    if step.request.out_link == OutLink::State {
        step.link_in_state_folder();
    }
    for way in ways::in_order(step.request.skip, step.drv_file) {
        if let Some(outputs) = (way.go)(step)? {
            step.keep_outputs_folder();
            return Ok(outputs.into_outputs());
        }
        step.end_way();
    }
    Err(exhausted::failure(step))
}
