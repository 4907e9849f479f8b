//! One target: from the keys of a step to its outputs.
//!
//! [`perform`] goes down the list of ways (`ways.rs`) until one of them has the outputs; [`explain`](explain()) asks the same
//! ways what they would do. What happened is told in a [`Report`], and in a job to its build (`tell.rs`).

mod advice;
mod annotation;
mod build_log;
mod diagnosis;
mod ending;
mod explain;
mod hints;
mod job_log;
mod links;
mod publish;
mod report;
mod request;
mod root_cause;
mod run;
mod saved_report;
mod ways;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use crate::evaluation_keys::Checkout;
use crate::exit::{Class, Failure};
use crate::host::Host;
use crate::keys::Keys;
use crate::log::Log;
use crate::nix::StorePath;
use crate::supervise::Supervisor;

pub use crate::build_keys::{Form, OutLink};
use advice::Advice;
pub use explain::{Explanation, explain};
pub use links::main_output;
use publish::{FinishedStep, tell};
pub use report::{FailureReport, Reason, Report, ReportFile, Seconds, WayName};
pub use request::StepRequest;
use run::StepRun;
pub use saved_report::{COMMAND, SavedReport, SavedReportError, SavedSeconds, StopReason};
pub use ways::Fact;

/// The job that a step is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepJob {
    /// `BUILDKITE_JOB_ID`.
    pub id: String,
    /// The key of its step (`BUILDKITE_STEP_KEY`); of a step without one, its id.
    pub step: String,
    /// `BUILDKITE_LABEL`.
    pub label: Option<String>,
    /// `BUILDKITE_AGENT_NAME`.
    pub agent: Option<String>,
    /// Whether other jobs of this step were before (`BUILDKITE_RETRY_COUNT`).
    pub is_retry: bool,
    /// What is around the build.
    pub around: JobContext,
}

/// What is around a build in its job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobContext {
    /// Which try of its step the job is, from 1 (`BUILDKITE_RETRY_COUNT` and one).
    pub attempt: u32,
    /// When the job began, where that is known.
    pub began: Option<SystemTime>,
    /// How long Buildkite lets the job run (`BUILDKITE_TIMEOUT`), where it has a limit.
    pub limit: Option<Duration>,
    /// Whether the job has a command that is more than this build.
    pub command: bool,
    /// What else comes after the build, and can fail the job.
    pub later: Vec<AfterBuild>,
}

/// What can fail a step whose build and command have succeeded in this job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterBuild {
    /// Another plugin: its command hook, or one that comes after the command.
    Plugin,
    /// A `post-command` or `pre-exit` hook of the agent's or the repository's.
    Hook,
    /// Artifacts that are to be uploaded.
    Artifacts,
    /// Not this job, but another of the same step (`parallelism`), which leaves its report in the same place.
    OtherJob,
}

impl AfterBuild {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Plugin => "plugin",
            Self::Hook => "hook",
            Self::Artifacts => "artifacts",
            Self::OtherJob => "other-job",
        }
    }
}

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
    /// The job whose build is told how the step went; none by hand.
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
            let kept = step.kept_log(&mut report);
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
            kept: kept.as_ref(),
        };
        tell(job, &over, supervisor, log);
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

/// Goes down the ways until one has the outputs.
fn go(step: &mut StepRun<'_>) -> Result<BTreeMap<String, StorePath>, Failure> {
    step.prepare()?;
    if step.request.out_link == OutLink::State {
        step.keep_in_state();
    }
    for way in ways::in_order(step.request.skip, step.drv_file) {
        if let Some(standing) = (way.go)(step)? {
            step.keep();
            return Ok(standing.outputs());
        }
        // It led nowhere: what comes next may fail before another way is begun.
        step.taken = None;
        step.reason = None;
    }
    Err(match &step.lost {
        Some(path) => Failure::new(
            Class::Infrastructure,
            format_args!("{path} is not there, although Nix has realised it"),
        )
        .hint(ways::LOST_HINT),
        None => nothing_left(step.request, step.host, step.misses_a_cache()),
    })
}

/// What it means that no way has led to the outputs.
const GONE: &str = "What was recorded is gone; trying again helps only on a host that has it, recording again does.";

/// What it means that there is only an evaluation, on a host with `recorded-only`.
const FORBIDDEN: &str = "This host does not evaluate; trying again helps only on one that does.";

/// The failure of a step that has come to the end of the list.
fn nothing_left(request: &StepRequest, host: &Host, misses_a_cache: bool) -> Failure {
    let recorded = request
        .drv
        .as_ref()
        .map(ToString::to_string)
        .or_else(|| main_output(&request.outputs).map(ToString::to_string));
    let gone = match &recorded {
        Some(path) if misses_a_cache => {
            format!("{path} is not on this host, and a cache that may have it cannot be reached")
        }
        Some(path) => format!("{path} is gone, here and in every cache that was asked"),
        None => "nothing is recorded".into(),
    };
    let failure = |message: String| {
        let failure = Failure::new(Class::Infrastructure, message);
        if misses_a_cache || recorded.is_none() {
            failure
        } else {
            failure.meaning(GONE)
        }
    };
    if host.recorded_only && request.evaluation.is_some() {
        let failure = failure(format!(
            "{gone}, and this host does not evaluate (EVAL_ONCE_POLICY=recorded-only)"
        ))
        .hint(match &recorded {
            Some(_) => "make the pipeline again: it records what is there now",
            None => "this host builds only recorded steps: give the step a `drv`",
        });
        return match recorded {
            Some(_) => failure,
            None => failure.meaning(FORBIDDEN),
        };
    }
    failure(format!("{gone}, and the step does not say what to evaluate"))
        .hint("make the pipeline again: it records what is there now; or give the step a `file`, `expr` or `flake`")
}
