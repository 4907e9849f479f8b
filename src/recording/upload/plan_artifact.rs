//! The plan of a recording as an artifact of its job, and a mark in the build's meta-data that names that job. A retry of the
//! recording looks for its own plan; a summary looks for all plans of the build.

use std::path::Path;
use std::time::Duration;

use crate::agent;
use crate::buildkite::agent as command;
use crate::exit::{Class, Classify as _, Failure};
use crate::fingerprint;
use crate::recording::BuildkiteBuild;
use crate::supervise::{GivenUp, Sight, Supervisor};

/// The artifact's name.
pub(in crate::recording) const PLAN: &str = "eval-once-plan.json";

/// The most bytes of a plan: 4,000 steps, as many as a build can have, with 128 KiB for each.
pub(super) const LARGEST: u64 = 512 << 20;

/// How long a download may take. By itself an agent tries for many minutes.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);

/// The most bytes of a job's id, which is a UUID. A longer one might not fit a command line.
const JOB_AT_MOST: usize = 100;

const PREFIX: &str = "eval-once:";
const SUFFIX: &str = ":plan";

/// The key of a mark of the recording whose step has this id.
pub(in crate::recording) fn mark(step: &str, what: impl std::fmt::Display) -> String {
    format!("{PREFIX}{step}:{what}")
}

/// The key of the mark that names the job with the plan of this recording. The jobs of a `matrix` have one step, and each of them records
/// something else.
pub(super) fn plan_mark(build: &BuildkiteBuild, recording: &str) -> String {
    let (step, variant) = (&build.step, &build.variant);
    format!("{PREFIX}{step}:{variant}-{recording}{SUFFIX}")
}

/// Whether this key of the meta-data is that of a plan's mark.
pub(crate) fn is_plan_mark(key: &str) -> bool {
    let id = key
        .strip_prefix(PREFIX)
        .and_then(|key| key.strip_suffix(SUFFIX));
    // Older versions wrote the step alone. A step may have the key `plan`, and then its report stands under `eval-once:report:plan`.
    id.is_some_and(|id| {
        let (step, rest) = id.split_once(':').unwrap_or((id, "-"));
        !step.is_empty() && step != "report" && !rest.is_empty() && !rest.contains(':')
    })
}

/// What the value of a mark begins with while there is no plan.
const BEGUN: &str = "begun:";

/// The value of the mark of a recording that this job has begun, before there is a plan. No job has such an id.
pub(super) fn begun(job: &str) -> String {
    format!("{BEGUN}{job}")
}

/// The job of a recording that has begun, and has left no plan so far; none where the mark says something else.
pub(crate) fn begun_by(mark: &str) -> Option<&str> {
    PlanMark::read(mark.strip_prefix(BEGUN)?).map(|mark| mark.job)
}

/// The value of a plan's mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlanMark<'a> {
    /// The job that has the artifact.
    pub(crate) job: &'a str,
    /// The identity of the recording; older versions did not write it.
    pub(in crate::recording) recording: Option<&'a str>,
    /// The SHA-256 of the plan; older versions did not write it.
    pub(super) sha256: Option<&'a str>,
    /// The plan's [`seal`], where the agent of the try signs with a key in a file.
    pub(super) seal: Option<&'a str>,
}

impl<'a> PlanMark<'a> {
    /// Reads the value; none where there is no mark, or where it names no job: anything that runs in a build can set its meta-data,
    /// and only a job's id is passed on to the agent.
    pub(crate) fn read(value: &'a str) -> Option<Self> {
        let mut words = value.split_whitespace();
        let is_in_id = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let job = words
            .next()
            .filter(|job| !job.starts_with('-') && job.bytes().all(is_in_id))
            .filter(|job| job.len() <= JOB_AT_MOST)?;
        Some(Self {
            job,
            recording: words.next(),
            sha256: words.next(),
            seal: words.next(),
        })
    }

    /// The value as it is written.
    pub(super) fn write(self) -> String {
        let words = [Some(self.job), self.recording, self.sha256, self.seal];
        let words: Vec<&str> = words.into_iter().map_while(|word| word).collect();
        words.join(" ")
    }
}

/// What shows that a plan was made where the signing key is: an HMAC by that key of what the plan is for. Without the build and the
/// step, a plan of another build could be left in this one.
pub(super) fn seal(key: &[u8], build: &BuildkiteBuild, mark: PlanMark<'_>) -> String {
    let recording = mark.recording.unwrap_or_default();
    let sha256 = mark.sha256.unwrap_or_default();
    let what = [
        &*build.build,
        &*build.step,
        &*build.variant,
        mark.job,
        recording,
        sha256,
    ];
    fingerprint::seal(key, std::iter::once("eval-once plan").chain(what))
}

/// An artifact as Buildkite lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListedArtifact {
    pub(super) job: String,
    /// In bytes.
    pub(super) size: u64,
    /// As the job that uploaded it says.
    pub(super) sha256: String,
}

impl ListedArtifact {
    /// Reads what [`command::artifacts_of_job`] prints.
    pub(super) fn all_in(printed: &str) -> Vec<Self> {
        let listed = printed.split(';').filter_map(|entry| {
            let words: Vec<&str> = entry.split_whitespace().collect();
            let [job, size, sha256] = words[..] else {
                return None;
            };
            Some(Self {
                job: job.to_owned(),
                size: size.parse().ok()?,
                sha256: sha256.to_owned(),
            })
        });
        listed.collect()
    }
}

/// The text of the plan of this job, or what is wrong with it, which is no failure: any job of the build can leave one. Its size is
/// looked at before it fills the disk.
///
/// # Errors
/// Buildkite cannot be asked, or there is no folder for the download (75); there is no `buildkite-agent` (69); a signal asked us to end.
pub(crate) fn text_of(
    supervisor: &mut Supervisor,
    temporary: &Path,
    job: &str,
    doing: &str,
    patience: Duration,
) -> Result<Result<String, String>, Failure> {
    let size = listed_size(supervisor, job, doing)?;
    if size > LARGEST {
        return Ok(Err(format!("its plan has {size} bytes")));
    }
    let plan = try_download(supervisor, temporary, job, doing, patience)?;
    Ok(match plan {
        Ok(Some(plan)) => Ok(plan),
        Ok(None) => Err("Buildkite does not have its plan".into()),
        Err(failure) => Err(failure.to_string()),
    })
}

/// How many bytes the artifacts have that a download of this job's plan brings, as Buildkite lists them.
///
/// # Errors
/// Buildkite cannot be asked (75); there is no `buildkite-agent` (69).
fn listed_size(supervisor: &mut Supervisor, job: &str, doing: &str) -> Result<u64, Failure> {
    let listed = agent::ask(supervisor, &command::artifacts_of_job(PLAN, job), doing)?;
    let listed = ListedArtifact::all_in(&listed.text()).into_iter();
    let sizes = listed.filter(|it| it.job == job).map(|it| it.size);
    Ok(sizes.fold(0, u64::saturating_add))
}

/// Downloads the plan of this job, as text for [`super::plan::UploadPlan::read`]; none where Buildkite does not have it.
///
/// # Errors
/// Buildkite cannot be asked, does not answer in time, or has a file that is too large for a plan (75); there is no
/// `buildkite-agent` (69).
pub(super) fn download(
    supervisor: &mut Supervisor,
    temporary: &Path,
    job: &str,
    doing: &str,
) -> Result<Option<String>, Failure> {
    try_download(supervisor, temporary, job, doing, PATIENCE)?
}

/// Downloads it as [`download`] does, and no longer than `patience`. What is wrong with the artifact, or with its download, is no failure
/// by itself: any job of the build can leave one.
///
/// # Errors
/// There is no `buildkite-agent` (69), or no folder for the download (75); a signal asked us to end.
fn try_download(
    supervisor: &mut Supervisor,
    temporary: &Path,
    job: &str,
    doing: &str,
    patience: Duration,
) -> Result<Result<Option<String>, Failure>, Failure> {
    let folder = agent::folder(temporary)?;
    let line = command::download_artifact(PLAN, job, folder.path());
    // The size that is listed is what the job that uploaded it says.
    let look = || match size_in(folder.path()) {
        size if size > LARGEST => Sight::Enough,
        _ => Sight::StandsStill,
    };
    let (finished, message, given_up) = agent::run_watched(supervisor, &line, patience, look)?;
    let given_up = given_up.map(|why| match why {
        GivenUp::Enough => format!("cannot {doing}: it has more than {LARGEST} bytes"),
        GivenUp::Stalled => format!(
            "cannot {doing}: `{line}` takes more than {} s",
            patience.as_secs()
        ),
    });
    if let Some(why) = given_up {
        return Ok(Err(Failure::new(Class::Infrastructure, why)));
    }
    if !finished.ending.success() {
        if command::found_no_artifact(&message) {
            return Ok(Ok(None));
        }
        return Ok(Err(agent::unreachable(&line, &finished, &message, doing)));
    }
    Ok(read(&folder.path().join(PLAN), doing).map(Some))
}

/// How many bytes the files in a folder have.
fn size_in(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = files.filter_map(|file| Some(file.metadata().ok()?.len()));
    sizes.fold(0, u64::saturating_add)
}

/// The text of a plan's file.
fn read(file: &Path, doing: &str) -> Result<String, Failure> {
    let cannot = || format!("cannot {doing}");
    let size = std::fs::metadata(file)
        .classify(Class::Infrastructure, cannot)?
        .len();
    if size > LARGEST {
        return Err(Failure::new(
            Class::Infrastructure,
            format_args!("cannot {doing}: it has {size} bytes"),
        ));
    }
    std::fs::read_to_string(file).classify(Class::Infrastructure, cannot)
}

/// Uploads a plan as an artifact of this job.
///
/// # Errors
/// As [`download`].
pub(in crate::recording) fn upload(
    supervisor: &mut Supervisor,
    temporary: &Path,
    plan: &str,
) -> Result<(), Failure> {
    agent::keep_artifact(supervisor, temporary, PLAN, plan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::hostile::{cases, text};
    use proptest::prelude::*;

    #[test]
    fn marks_of_plans_are_distinguished_from_all_other_meta_data() {
        assert!(is_plan_mark("eval-once:0190-ab:0123abcd-letters:plan"));
        assert!(
            is_plan_mark("eval-once:0190-ab:plan"),
            "of an older version"
        );
        for other in [
            &mark("0190-ab", 3),
            "eval-once:report:plan",
            "eval-once::plan",
            "eval-once:plan",
            "eval-once:report:a:plan",
            "eval-once:0190-ab:a:b:plan",
            "eval-once:0190-ab::plan",
            "release:plan",
        ] {
            assert!(!is_plan_mark(other), "{other}");
        }
    }

    #[test]
    fn a_mark_reads_back_as_it_was_written() {
        let mut mark = PlanMark {
            job: "0190-job",
            recording: Some("letters"),
            sha256: Some("sum"),
            seal: Some("seal"),
        };
        assert_eq!(PlanMark::read(&mark.write()), Some(mark));
        mark.seal = None;
        assert_eq!(PlanMark::read(&mark.write()), Some(mark));
        // As older versions wrote it.
        (mark.recording, mark.sha256) = (None, None);
        assert_eq!(PlanMark::read("0190-job\n"), Some(mark));
    }

    #[test]
    fn a_mark_that_is_no_id_of_a_job_is_none() {
        let long = "0".repeat(101);
        for value in ["", " \n", "--step x", "../x x", "a_b x", "a;b", &long] {
            assert_eq!(PlanMark::read(value), None, "{value}");
        }
    }

    #[test]
    fn listed_artifacts_are_read_and_what_is_none_is_not() {
        let listed = ListedArtifact {
            job: "0190-a".into(),
            size: 12,
            sha256: "ab".into(),
        };
        assert_eq!(
            ListedArtifact::all_in("0190-a 12 ab;0190-b -1 cd;0190-c 1;x y z w;\n"),
            [listed]
        );
    }

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn a_mark_of_any_text_names_a_job_or_is_none(begin in prop_oneof![Just("0190-a r h s "), Just("0190-a "), Just("-a "), Just("")], rest in text()) {
            let value = format!("{begin}{rest}");
            let Some(mark) = PlanMark::read(&value) else {
                return Ok(());
            };
            // It is an argument of the agent's.
            prop_assert!(!mark.job.is_empty() && !mark.job.starts_with('-'));
            prop_assert!(mark.job.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'), "{:?}", mark.job);
            let written = mark.write();
            prop_assert_eq!(PlanMark::read(&written), Some(mark));
        }

        #[test]
        fn a_list_of_artifacts_of_any_text_has_words_alone(printed in text()) {
            let printed = printed.replace('+', ";").replace('-', " 1 ");
            for artifact in ListedArtifact::all_in(&printed) {
                let words = [&artifact.job, &artifact.sha256];
                prop_assert!(words.iter().all(|word| printed.contains(*word) && word.split_whitespace().count() == 1));
            }
        }
    }
}
