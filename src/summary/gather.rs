//! Fetching what recordings and steps have saved in the build.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use super::build_data::BuildData;
use super::planned_step::PlannedStep;
use crate::agent;
use crate::buildkite::agent as command;
use crate::counts::number;
use crate::exit::Failure;
use crate::log::Log;
use crate::parallel;
use crate::recording::pipeline::document::Recorded;
use crate::recording::upload::plan::UploadPlan;
use crate::recording::upload::plan_artifact::{self, PlanMark};
use crate::status_line::StatusLine;
use crate::step::SavedReport;
use crate::supervise::Supervisor;

/// How many are asked for at once: each is a process and a request.
pub(super) const AT_ONCE: usize = 8;

/// How many recordings of a build are read. Any job of the build can leave marks without end, and each costs two processes.
const RECORDINGS_AT_MOST: usize = 100;

/// How long the downloads of all plans may take together.
const PATIENCE: Duration = Duration::from_secs(600);

/// Fetches it. Only the reports that are there are asked for: an agent asks for a missing one again and again.
///
/// # Errors
/// Buildkite cannot be reached (75); there is no `buildkite-agent` (69); a signal asked us to end.
pub(super) fn gather(
    temporary: &Path,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<BuildData, Failure> {
    let keys = keys(supervisor)?;
    let mut data = BuildData::default();
    plans(&keys, &mut data, temporary, supervisor, log)?;
    reports(&keys, |_| true, &mut data, supervisor, log)?;
    Ok(data)
}

/// Reads the reports of these steps once more, as far as there are any: their jobs may have ended since.
///
/// # Errors
/// As [`gather`].
pub(super) fn read_again(
    steps: &BTreeSet<String>,
    data: &mut BuildData,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<(), Failure> {
    let keys = keys(supervisor)?;
    reports(&keys, |step| steps.contains(step), data, supervisor, log)
}

/// The keys of the build's meta-data, one on each line.
fn keys(supervisor: &mut Supervisor) -> Result<String, Failure> {
    let line = command::meta_data_keys();
    let keys = agent::ask(supervisor, &line, "list the build's meta-data")?;
    Ok(keys.text())
}

/// Adds the reports under these keys of the meta-data, those of the steps that are wanted.
fn reports(
    keys: &str,
    is_wanted: impl Fn(&str) -> bool,
    data: &mut BuildData,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<(), Failure> {
    // Under another name there is no report of a step.
    let keys: Vec<(&str, &str)> = keys
        .lines()
        .filter_map(|key| Some((key, SavedReport::step(key)?)))
        .filter(|(_, step)| command::may_be_step_key(step) && is_wanted(step))
        .collect();
    let names: Vec<&str> = keys.iter().map(|(key, _)| *key).collect();
    let values = values(supervisor, &names, log)?;
    let reports = keys.into_iter().zip(values);
    data.reports
        .extend(reports.map(|((_, step), value)| (step.to_owned(), SavedReport::read(&value))));
    Ok(())
}

/// Adds what the recordings found and planned whose marks are among these keys of the meta-data. One that cannot be read, for whatever
/// reason, is counted, with a warning: any job of the build can leave a mark, and what it names.
fn plans(
    keys: &str,
    data: &mut BuildData,
    temporary: &Path,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<(), Failure> {
    let marks = keys.lines().filter(|key| plan_artifact::is_plan_mark(key));
    let (mut marks, others): (Vec<&str>, Vec<&str>) =
        marks.partition(|key| command::may_be_step_key(key));
    let excess = marks.split_off(marks.len().min(RECORDINGS_AT_MOST));
    for (omitted, why) in [
        (
            others.len(),
            "the mark of a plan has a name that no step can have".to_owned(),
        ),
        (
            excess.len(),
            format!("a summary reads the plans of {RECORDINGS_AT_MOST} recordings"),
        ),
    ] {
        if omitted > 0 {
            let recordings = number(omitted, "recording");
            log.warn(format_args!("{recordings} omitted: {why}"));
        }
        data.unreadable += omitted;
    }
    let deadline = Instant::now() + PATIENCE;
    let mut jobs = BTreeSet::new();
    for mark in values(supervisor, &marks, log)? {
        let job = PlanMark::read(&mark).map(|mark| mark.job);
        // A job has one plan.
        if job.is_some_and(|job| !jobs.insert(job.to_owned())) {
            continue;
        }
        match recorded(&mark, deadline, temporary, supervisor, log)? {
            Some((recorded, plan)) => {
                for chunk in &plan.chunks {
                    data.plan(PlannedStep::all_of(&chunk.pipeline));
                }
                data.recordings.push(recorded);
            }
            None => data.unreadable += 1,
        }
    }
    Ok(())
}

/// The meta-data under these keys, in their order.
fn values(supervisor: &mut Supervisor, keys: &[&str], log: &Log) -> Result<Vec<String>, Failure> {
    let lines: Vec<_> = keys.iter().map(|key| command::get_meta_data(key)).collect();
    let mut values = vec![String::new(); lines.len()];
    let mut count = 0;
    let mut line = StatusLine::new(log);
    parallel::each(supervisor, &lines, AT_ONCE, |number, finished, stderr| {
        if !finished.ending.success() {
            let doing = "read the build's meta-data";
            return Err(agent::unreachable(
                &lines[number],
                &finished,
                &stderr,
                doing,
            ));
        }
        values[number] = finished.text();
        count += 1;
        line.show(|| Some(format!("read {count} of {} reports", lines.len())));
        Ok(())
    })?;
    line.clear();
    Ok(values)
}

/// What a recording found, and its plan, according to the mark of that. None where it cannot be read, with a warning.
fn recorded(
    mark: &str,
    deadline: Instant,
    temporary: &Path,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<Option<(Recorded, UploadPlan)>, Failure> {
    if let Some(job) = plan_artifact::begun_by(mark) {
        log.warn(format_args!(
            "the recording of job {job} is omitted: it has left no plan, because it failed before, or has not ended"
        ));
        return Ok(None);
    }
    let Some(job) = PlanMark::read(mark).map(|mark| mark.job) else {
        log.warn("a recording is omitted: the mark of its plan names no job");
        return Ok(None);
    };
    let doing = "get the plan of a recording";
    let patience = deadline.saturating_duration_since(Instant::now());
    let plan = plan_artifact::text_of(supervisor, temporary, job, doing, patience)?;
    let recorded = match plan {
        Ok(plan) => UploadPlan::read(&plan)
            .and_then(|plan| Ok((Recorded::read(&plan.document)?, plan)))
            .map_err(|failure| failure.to_string()),
        Err(what) => Err(what),
    };
    Ok(recorded
        .inspect_err(|what| {
            log.warn(format_args!(
                "the recording of job {job} is omitted: {what}"
            ));
        })
        .ok())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    #[test]
    fn a_mark_that_is_no_id_of_a_job_does_not_reach_the_agent() {
        let printed = Rc::new(RefCell::new(Vec::new()));
        let log = Log::to(printed.clone());
        let mut supervisor = Supervisor::install(&log).unwrap();
        // A download would fail there.
        let temporary = Path::new("/nonesuch");
        let deadline = Instant::now();
        let endless = "0".repeat(200_000);
        for mark in ["", "--step x", "../x x", "a_b x", &endless] {
            let found = recorded(mark, deadline, temporary, &mut supervisor, &log).unwrap();
            assert!(found.is_none(), "{mark}");
            let printed = String::from_utf8(printed.take()).unwrap();
            assert_eq!(
                printed,
                "eval-once: warning: a recording is omitted: the mark of its plan names no job\n"
            );
        }
        let failure = recorded("0190-ab x", deadline, temporary, &mut supervisor, &log).map(drop);
        assert!(failure.is_err(), "an id reaches it");
    }
}
