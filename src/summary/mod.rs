//! A build at a glance: how every target stands, by what recordings planned, what steps reported, and how Buildkite says that
//! the steps ended.
//!
//! From top to bottom: gather the plans and reports, set them side by side, ask Buildkite where they leave an outcome open,
//! then publish all of it as an annotation and as JUnit. A report that is missing is a finding, and no failure: a summary is
//! read by people who look for what went wrong.

mod annotation;
mod batches;
mod build_data;
mod dependents;
#[cfg(test)]
mod fixtures;
mod gather;
mod junit;
mod outcome;
mod outcomes;
mod planned_step;
mod row;
mod rows;
mod savings;
mod step_outcomes;
mod suites;
mod verdict;

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::agent;
use crate::buildkite::agent as command;
use crate::exit::{Class, Failure};
use crate::log::Log;
use crate::outcomes::OUTCOMES;
use crate::supervise::Supervisor;

use build_data::BuildData;
use rows::Rows;
use verdict::BuildVerdict;

/// The name of the artifact.
const JUNIT: &str = "eval-once-junit.xml";

/// The annotation's context: a build has one summary, and a later one replaces it.
const CONTEXT: &str = "eval-once-summary";

/// The key of the meta-data that says how many targets failed, for what reports a build elsewhere.
const FAILED: &str = "eval-once:failed";

/// An order to sum a build up.
#[derive(Debug)]
pub struct SummaryOrder {
    /// The folder below which temporary files are made.
    pub temporary: PathBuf,
    /// `BUILDKITE_BUILD_NUMBER`.
    pub build_number: Option<u64>,
    /// Whether it ends with [`NOT_GREEN`] where a target failed.
    pub fail: bool,
}

/// The status of a summary that was asked to fail where a target did. None of the classes: it needs no retry rule.
pub const NOT_GREEN: u8 = 1;

/// Sums up the build, and gives the status to end with. That steps of it failed is shown, and is no failure of the summary, unless the
/// order asks for that.
///
/// # Errors
/// Buildkite cannot be reached (75); there is no `buildkite-agent` (69).
pub fn perform(
    order: &SummaryOrder,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<u8, Failure> {
    log.heading(":nix: summary");
    sum_up(order, supervisor, log).map_err(|failure| match failure.class {
        Class::MissingProgram => {
            failure.hint("run `summary` in a job, where the agent puts buildkite-agent on PATH")
        }
        Class::Infrastructure => {
            failure.hint("check that this host can reach Buildkite, then retry the job")
        }
        _ => failure,
    })
}

fn sum_up(order: &SummaryOrder, supervisor: &mut Supervisor, log: &Log) -> Result<u8, Failure> {
    let temporary = &order.temporary;
    let mut data = gather::gather(temporary, supervisor, log)?;
    if data.is_empty() {
        log.say(
            "nothing to sum up: this build has no plan of a recording, and no report of a step",
        );
        // A recording that failed has left nothing: a required check must not be green then.
        if order.fail {
            log.say(format_args!("error: {}", verdict::NONE_IS_GREEN));
            return Ok(NOT_GREEN);
        }
        return Ok(0);
    }
    let rows = with_outcomes(&mut data, supervisor, log)?;
    agent::keep_artifact(supervisor, temporary, JUNIT, &junit::document(&rows)?)?;
    let outcomes = outcomes::of(&rows, &data, order.build_number).to_json()?;
    agent::keep_artifact(supervisor, temporary, OUTCOMES, &outcomes)?;
    let (body, style) = annotation::of(&rows);
    agent::annotate(supervisor, temporary, CONTEXT, style, &body)?;
    log.say(annotation::counts(&rows));
    let verdict = BuildVerdict::of(&rows);
    let line = command::set_meta_data(FAILED, &verdict.failed().to_string());
    agent::ask(supervisor, &line, "set the build's meta-data")?;
    match verdict.sentence() {
        Some(sentence) if order.fail => {
            log.say(format_args!("error: {sentence}"));
            Ok(NOT_GREEN)
        }
        _ => Ok(0),
    }
}

/// The rows, once Buildkite was asked for the outcomes that the plans and reports leave open.
fn with_outcomes(
    data: &mut BuildData,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<Rows, Failure> {
    loop {
        let rows = Rows::new(data);
        let keys = rows.open_keys(data);
        if keys.is_empty() {
            return Ok(rows);
        }
        let outcomes = step_outcomes::fetch(supervisor, &keys, log)?;
        data.outcomes.extend(outcomes);
        data.now = now();
        let outdated = data.outdated_reports(&keys);
        if !outdated.is_empty() {
            gather::read_again(&outdated, data, supervisor, log)?;
        }
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}
