//! The plan of a recording as an artifact of its job, and a mark in the build's meta-data that names that job. A retry of the
//! recording looks for its own plan; a summary looks for all plans of the build.

use std::path::Path;

use super::plan::UploadPlan;
use crate::agent;
use crate::buildkite::agent as command;
use crate::exit::{Class, Classify as _, Failure};
use crate::supervise::Supervisor;

/// The artifact's name.
pub(in crate::recording) const PLAN: &str = "eval-once-plan.json";

const PREFIX: &str = "eval-once:";
const SUFFIX: &str = ":plan";

/// The key of a mark of the recording whose step has this id.
pub(in crate::recording) fn mark(step: &str, what: impl std::fmt::Display) -> String {
    format!("{PREFIX}{step}:{what}")
}

/// The key of the mark that names the plan's job.
pub(in crate::recording) fn plan_mark(step: &str) -> String {
    format!("{PREFIX}{step}{SUFFIX}")
}

/// Whether this key of the meta-data is that of a plan's mark.
pub(crate) fn is_plan_mark(key: &str) -> bool {
    let id = key
        .strip_prefix(PREFIX)
        .and_then(|key| key.strip_suffix(SUFFIX));
    // A step may have the key `plan`, and then its report stands under `eval-once:report:plan`.
    id.is_some_and(|id| !id.is_empty() && id != "report" && !id.contains(':'))
}

/// The value of a plan's mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlanMark<'a> {
    /// The job that has the artifact.
    pub(crate) job: &'a str,
    /// The identity of the recording; older versions did not write it.
    pub(crate) recording: Option<&'a str>,
}

impl<'a> PlanMark<'a> {
    /// Reads the value; none where there is no mark.
    pub(crate) fn read(value: &'a str) -> Option<Self> {
        let mut words = value.split_whitespace();
        Some(Self {
            job: words.next()?,
            recording: words.next(),
        })
    }

    /// The value as it is written.
    pub(in crate::recording) fn write(job: &str, recording: &str) -> String {
        format!("{job} {recording}")
    }
}

/// Downloads the plan of this job, as text for [`UploadPlan::read`]; none where Buildkite no longer has it.
///
/// # Errors
/// Buildkite cannot be asked (75); there is no `buildkite-agent` (69).
pub(crate) fn download(
    supervisor: &mut Supervisor,
    temporary: &Path,
    job: &str,
    doing: &str,
) -> Result<Option<String>, Failure> {
    let folder = agent::folder(temporary)?;
    let line = command::download_artifact(PLAN, job, folder.path());
    let (finished, message) = agent::run(supervisor, &line)?;
    if !finished.ending.success() {
        if command::found_no_artifact(&message) {
            return Ok(None);
        }
        return Err(agent::unreachable(&line, &finished, &message, doing));
    }
    std::fs::read_to_string(folder.path().join(PLAN))
        .map(Some)
        .classify(Class::Infrastructure, || format!("cannot {doing}"))
}

/// Uploads a plan as an artifact of this job.
///
/// # Errors
/// As [`download`].
pub(in crate::recording) fn upload(
    supervisor: &mut Supervisor,
    temporary: &Path,
    plan: &UploadPlan,
) -> Result<(), Failure> {
    agent::keep_artifact(supervisor, temporary, PLAN, &plan.to_json()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_plans_are_distinguished_from_all_other_meta_data() {
        assert!(is_plan_mark(&plan_mark("0190-ab")));
        for other in [
            &mark("0190-ab", 3),
            "eval-once:report:plan",
            "eval-once::plan",
            "eval-once:plan",
            "eval-once:report:a:plan",
            "release:plan",
        ] {
            assert!(!is_plan_mark(other), "{other}");
        }
    }

    #[test]
    fn a_mark_reads_back_as_it_was_written() {
        let value = PlanMark::write("job", "letters");
        let (job, recording) = ("job", Some("letters"));
        assert_eq!(PlanMark::read(&value), Some(PlanMark { job, recording }));
        let recording = None;
        assert_eq!(PlanMark::read("job\n"), Some(PlanMark { job, recording }));
        assert_eq!(PlanMark::read(" \n"), None);
    }
}
