//! Asking Buildkite for what recordings and steps have left in the build.

use std::collections::BTreeMap;
use std::path::Path;

use super::terms::Terms;
use crate::agent;
use crate::buildkite::agent as command;
use crate::buildkite::outcome::StepOutcome;
use crate::exit::Failure;
use crate::log::Log;
use crate::parallel;
use crate::recording::pipeline::document::Recorded;
use crate::recording::upload::plan::UploadPlan;
use crate::recording::upload::plan_artifact::{self, PlanMark};
use crate::status_line::StatusLine;
use crate::step::{SavedReport, SavedReportError};
use crate::supervise::Supervisor;

/// How many are asked for at once: each is a process and a request.
pub(super) const AT_ONCE: usize = 8;

/// What was left in the build.
#[derive(Debug, Default)]
pub(super) struct BuildData {
    /// What the recordings have found.
    pub(super) recorded: Vec<Recorded>,
    /// What their steps say of failures, by the steps' keys: of those that say something.
    pub(super) terms: BTreeMap<String, Terms>,
    /// How many recordings there are of which that cannot be read.
    pub(super) unread: usize,
    /// What the steps have left, by their keys.
    pub(super) reports: BTreeMap<String, Result<SavedReport, SavedReportError>>,
    /// How Buildkite says that steps ended, by their keys: of those that it was asked for.
    pub(super) outcomes: BTreeMap<String, StepOutcome>,
    /// When that was asked, in seconds since 1970.
    pub(super) now: u64,
}

impl BuildData {
    pub(super) fn is_empty(&self) -> bool {
        self.recorded.is_empty() && self.unread == 0 && self.reports.is_empty()
    }

    /// Whether Buildkite takes this exit status of a step for no failure, as far as the plans tell.
    pub(super) fn is_soft(&self, key: &str, exit: u8) -> bool {
        let terms = self.terms.get(key);
        terms.is_some_and(|terms| terms.is_soft(Some(exit)))
    }
}

/// Gathers it. Of the reports only those are asked for that are there: an agent asks for others again and again.
///
/// # Errors
/// Buildkite cannot be reached (75); there is no `buildkite-agent` (69); a signal asked us to end.
pub(super) fn gather(
    temporary: &Path,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<BuildData, Failure> {
    let keys = agent::ask(
        supervisor,
        &command::meta_data_keys(),
        "see what was left in this build",
    )?;
    let keys = keys.text();
    let mut gathered = BuildData::default();
    let marks: Vec<&str> = keys
        .lines()
        .filter(|key| plan_artifact::is_plan_mark(key))
        .collect();
    for mark in values(supervisor, &marks, log)? {
        match recorded(&mark, temporary, supervisor, log)? {
            Some((recorded, plan)) => {
                let chunks = plan.chunks.iter();
                let terms = chunks.flat_map(|chunk| Terms::of(&chunk.pipeline));
                gathered.terms.extend(terms);
                gathered.recorded.push(recorded);
            }
            None => gathered.unread += 1,
        }
    }
    let keys: Vec<&str> = keys
        .lines()
        .filter(|key| SavedReport::step(key).is_some())
        .collect();
    let values = values(supervisor, &keys, log)?;
    gathered.reports = keys
        .into_iter()
        .filter_map(SavedReport::step)
        .zip(values)
        .map(|(step, value)| (step.to_owned(), SavedReport::read(&value)))
        .collect();
    Ok(gathered)
}

/// The meta-data under these keys, in their order.
fn values(supervisor: &mut Supervisor, keys: &[&str], log: &Log) -> Result<Vec<String>, Failure> {
    let lines: Vec<_> = keys.iter().map(|key| command::get_meta_data(key)).collect();
    let mut values = vec![String::new(); lines.len()];
    let mut count = 0;
    let mut line = StatusLine::new(log);
    parallel::each(supervisor, &lines, AT_ONCE, |number, finished, said| {
        if !finished.ending.success() {
            let doing = "read what was left in this build";
            return Err(agent::unreachable(&lines[number], &finished, &said, doing));
        }
        values[number] = finished.text();
        count += 1;
        line.show(|| Some(format!("read {count} of {} reports", lines.len())));
        Ok(())
    })?;
    line.clear();
    Ok(values)
}

/// What a recording has found, and its plan, according to the mark of that. None where it cannot be read, which is said.
fn recorded(
    mark: &str,
    temporary: &Path,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<Option<(Recorded, UploadPlan)>, Failure> {
    // Anything that runs in a build can set its meta-data: what is no job's id is not handed to the agent as one.
    let is_id = |job: &&str| {
        !job.starts_with('-')
            && job
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let Some(job) = PlanMark::read(mark).map(|mark| mark.job).filter(is_id) else {
        log.warn("the mark of a recording's plan names no job: that recording is left out");
        return Ok(None);
    };
    let plan = plan_artifact::download(supervisor, temporary, job, "get the plan of a recording")?;
    let Some(plan) = plan else {
        log.warn(format_args!(
            "the recording of the job {job} is left out: Buildkite does not have its plan"
        ));
        return Ok(None);
    };
    let recorded =
        UploadPlan::read(&plan).and_then(|plan| Ok((Recorded::read(&plan.document)?, plan)));
    Ok(recorded
        .inspect_err(|failure| {
            log.warn(format_args!(
                "the recording of the job {job} is left out: {failure}"
            ));
        })
        .ok())
}
