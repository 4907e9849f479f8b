//! One target: from the keys of a step to its outputs.
//!
//! [`perform`] goes down the list of ways (`ways.rs`) until one of them has the outputs; [`explain`](explain()) asks the same
//! ways what they would do. What happened is told in a [`Report`].

mod context;
mod explain;
mod links;
mod report;
mod request;
mod ways;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use crate::exit::{Class, Failure};
use crate::keys::Keys;
use crate::log::Log;
use crate::nix::StorePath;
use crate::supervise::Supervisor;

use context::Step;
pub use explain::{Explanation, explain};
pub use links::main_output;
pub use report::{FailureReport, Reason, Report, ReportFile, Seconds, WayName};
pub use request::{OutLink, Place, Request};
pub use ways::Fact;

/// The settings of this host, which no step chooses.
#[derive(Debug, Clone)]
pub struct Host {
    /// Where the state folder is or shall be; none where nobody knows a home.
    pub state: Option<PathBuf>,
    /// How many steps may evaluate at once.
    pub evaluations: NonZeroUsize,
    /// A step never evaluates (`EVAL_ONCE_POLICY=recorded-only`).
    pub recorded_only: bool,
}

/// A step as it was ordered: what cannot be read is part of it, for its refusal is reported like any other ending.
#[derive(Debug)]
pub struct Order {
    /// The keys, from wherever this use of eval-once takes them.
    pub keys: Result<Keys, Failure>,
    /// Where the step stands.
    pub place: Place,
    /// The host's settings.
    pub host: Result<Host, Failure>,
    /// Where the report goes.
    pub report: Option<PathBuf>,
    /// When the program began.
    pub started: Instant,
}

/// A step whose outputs are there.
#[derive(Debug)]
pub struct Done {
    /// Its outputs by name.
    pub outputs: BTreeMap<String, StorePath>,
    /// Whether a hook is to run the job's own command now.
    pub command: bool,
}

/// Builds one target and reports how that went.
///
/// # Errors
/// Whatever the step ends with; it is in the report too.
pub fn perform(order: Order, supervisor: &mut Supervisor, log: Log) -> Result<Done, Failure> {
    let file = order
        .report
        .as_deref()
        .map(ReportFile::prepare)
        .transpose()?;
    let (report, result) = match (
        order
            .keys
            .and_then(|keys| Request::read(keys, &order.place)),
        order.host,
    ) {
        (Ok(request), Ok(host)) => {
            let mut step = Step::new(&request, &order.place, &host, supervisor, log);
            let result = go(&mut step);
            let report = step.report(order.started, result.as_ref().err());
            (
                report,
                result.map(|outputs| Done {
                    outputs,
                    command: request.command,
                }),
            )
        }
        (Err(failure), _) | (_, Err(failure)) => {
            (Report::refusal(&failure, order.started), Err(failure))
        }
    };
    if let Ok(done) = &result {
        log.say(in_one_line(&report, done));
    }
    match file.map(|file| file.write(&report)) {
        Some(Err(failure)) if result.is_ok() => Err(failure),
        Some(Err(failure)) => {
            log.warn(failure);
            result
        }
        _ => result,
    }
}

/// Goes down the ways until one has the outputs.
fn go(step: &mut Step<'_>) -> Result<BTreeMap<String, StorePath>, Failure> {
    step.prepare()?;
    if step.request.out_link == OutLink::State {
        step.keep_in_state();
    }
    for way in ways::in_order(step.drv_file) {
        if let Some(outputs) = (way.go)(step)? {
            step.outputs.clone_from(&outputs);
            return Ok(outputs);
        }
    }
    step.taken = None;
    Err(nothing_left(step.request, step.host))
}

/// `realised /nix/store/….drv in 1.2 s (drv-valid): built 1, substituted 0`
fn in_one_line(report: &Report, done: &Done) -> String {
    let way = report.way.map_or("", WayName::word);
    let reason = report.reason.map_or("", Reason::word);
    let what = match (&report.drv, main_output(&done.outputs)) {
        (Some(drv), _) => drv.to_string(),
        (None, Some(output)) => output.to_string(),
        (None, None) => "nothing".into(),
    };
    format!(
        "{way} {what} in {:.1} s ({reason}): built {}, substituted {}",
        report.seconds.total.as_secs_f64(),
        report.built,
        report.substituted
    )
}

/// The failure of a step that has come to the end of the list.
fn nothing_left(request: &Request, host: &Host) -> Failure {
    let recorded = request
        .drv
        .as_ref()
        .map(ToString::to_string)
        .or_else(|| main_output(&request.outputs).map(ToString::to_string));
    let gone = match &recorded {
        Some(path) => format!("{path} is gone, here and in every cache that was asked"),
        None => "nothing is recorded".into(),
    };
    if host.recorded_only && request.evaluation.is_some() {
        return Failure::new(
            Class::Surroundings,
            format_args!(
                "{gone}, and this host does not evaluate (EVAL_ONCE_POLICY=recorded-only)"
            ),
        )
        .hint("record again: retry the step that made this pipeline");
    }
    Failure::new(Class::Surroundings, format_args!("{gone}, and the step does not say what to evaluate"))
        .hint("record again: retry the step that made this pipeline; or give the step a `file`, `expr` or `flake`")
}
