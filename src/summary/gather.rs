//! Fetching what recordings and steps have saved in the build.

use std::path::Path;

use super::build_data::BuildData;
use super::planned_step::PlannedStep;
use crate::agent;
use crate::buildkite::agent as command;
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

/// Fetches it. Only the reports that are there are asked for: an agent asks for a missing one again and again.
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
        "list the build's meta-data",
    )?;
    let keys = keys.text();
    let mut data = BuildData::default();
    let marks: Vec<&str> = keys
        .lines()
        .filter(|key| plan_artifact::is_plan_mark(key))
        .collect();
    for mark in values(supervisor, &marks, log)? {
        match recorded(&mark, temporary, supervisor, log)? {
            Some((recorded, plan)) => {
                let chunks = plan.chunks.iter();
                let steps = chunks.flat_map(|chunk| PlannedStep::all_of(&chunk.pipeline));
                data.planned_steps.extend(steps);
                data.recordings.push(recorded);
            }
            None => data.unreadable += 1,
        }
    }
    let keys: Vec<&str> = keys
        .lines()
        .filter(|key| SavedReport::step(key).is_some())
        .collect();
    let values = values(supervisor, &keys, log)?;
    data.reports = keys
        .into_iter()
        .filter_map(SavedReport::step)
        .zip(values)
        .map(|(step, value)| (step.to_owned(), SavedReport::read(&value)))
        .collect();
    Ok(data)
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
    temporary: &Path,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<Option<(Recorded, UploadPlan)>, Failure> {
    let Some(job) = PlanMark::read(mark).map(|mark| mark.job) else {
        log.warn("a recording is omitted: the mark of its plan names no job");
        return Ok(None);
    };
    let plan = plan_artifact::download(supervisor, temporary, job, "get the plan of a recording")?;
    let Some(plan) = plan else {
        log.warn(format_args!(
            "the recording of job {job} is omitted: Buildkite does not have its plan"
        ));
        return Ok(None);
    };
    let recorded =
        UploadPlan::read(&plan).and_then(|plan| Ok((Recorded::read(&plan.document)?, plan)));
    Ok(recorded
        .inspect_err(|failure| {
            log.warn(format_args!(
                "the recording of job {job} is omitted: {failure}"
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
        for mark in ["", "--step x", "../x x", "a_b x"] {
            let found = recorded(mark, temporary, &mut supervisor, &log).unwrap();
            assert!(found.is_none(), "{mark}");
            let printed = String::from_utf8(printed.take()).unwrap();
            assert_eq!(
                printed,
                "eval-once: warning: a recording is omitted: the mark of its plan names no job\n"
            );
        }
        let failure = recorded("0190-ab x", temporary, &mut supervisor, &log).map(drop);
        assert!(failure.is_err(), "an id reaches it");
    }
}
