//! What a step publishes to its build: its report in the meta-data ([`SavedReport`]); and where it failed, a section in the
//! build's annotation of failures, and the log of the derivation that failed as an artifact.
//!
//! None of it can fail the step: it changes no status, and has [`TIME`] together. A step that was stopped publishes its report
//! alone. Without a job nothing is published.
//!
//! Steps that fail at the same time learn of one another by marks in the meta-data, where nothing can be compared and swapped.
//! So:
//!
//! - Each failure sets a mark of its own, *and then* reads all marks. A step that sets the nth mark sees at least n of them; so
//!   no more than [`SECTIONS`] steps see few enough to write a section, however many fail at one moment. A section has at most
//!   16 KiB, a line 4: the annotation stays below Buildkite's limit of 1 MiB.
//! - A step that finds no mark saying that its root cause is published sets that mark, and publishes it. Two that look at the
//!   same moment both do. A root cause is missing only where the step that has set the mark dies before it annotates.

use std::path::Path;
use std::slice;
use std::time::{Duration, Instant};

use super::advice::Advice;
use super::annotation::{self, FailedStep, LogArtifact};
use super::build_log::BuildLog;
use super::report::{FailureReport, Report};
use super::request::StepRequest;
use super::saved_report::SavedReport;
use super::step_job::StepJob;
use crate::agent;
use crate::buildkite::agent as command;
use crate::command_line::CommandLine;
use crate::exit::{Class, Classify as _, Failure};
use crate::log::Log;
use crate::nix::DrvPath;
use crate::parallel;
use crate::secrets::shortened;
use crate::supervise::{Finished, Supervisor};

/// How long all of it may take: an agent of v3 goes on for a minute where Buildkite answers with an error.
const TIME: Duration = Duration::from_secs(10);

/// How much of that the upload of a log may take; the rest is for the annotation.
const TIME_FOR_LOG: Duration = Duration::from_secs(7);

/// How long a step that was stopped may take to save its report. Its agent kills it after nine seconds, and a second of them
/// may be over (`supervise`).
const TIME_WHEN_STOPPED: Duration = Duration::from_secs(3);

/// How many failures have a section or a line; more are counted.
const SECTIONS: usize = 50;

/// The context of the annotation.
const CONTEXT: &str = "eval-once-failures";

/// How much of a label stands in a mark, in characters.
const LABEL_AT_MOST: usize = 100;

/// A step that is over.
pub(super) struct FinishedStep<'a> {
    pub(super) report: &'a Report,
    pub(super) failure: Option<&'a Failure>,
    /// What it was asked to do, where that could be read.
    pub(super) request: Option<&'a StepRequest>,
    /// What one can do about it.
    pub(super) advice: &'a Advice,
    /// The log of what failed, where Nix has it.
    pub(super) build_log: Option<&'a BuildLog>,
}

/// Publishes to the build of `job` how its step went. Once a signal has asked us to end there is time for the report alone: it
/// says whether the job was cancelled or timed out, for which Buildkite has one word.
pub(super) fn publish(
    job: &StepJob,
    step: &FinishedStep<'_>,
    temporary: &Path,
    supervisor: &mut Supervisor,
    log: &Log,
) {
    if supervisor.check().is_err() {
        if let Ok(line) = save_report(job, &target(job, step), step, true) {
            let until = Instant::now() + TIME_WHEN_STOPPED;
            // Whether it was saved changes nothing now, and would be one more line in a log that is over.
            let _ = supervisor.once_more(until, |supervisor| {
                parallel::all(supervisor, &[line], Some(until))
            });
        }
        return;
    }
    let now = Instant::now();
    let mut publisher = Publisher {
        job,
        temporary,
        target: target(job, step),
        supervisor,
        log: log.clone(),
        until_log: now + TIME_FOR_LOG,
        until: now + TIME,
    };
    match publisher.publish(step) {
        Err(failure) if !matches!(failure.class, Class::Signal(_)) => log.warn(format_args!(
            "cannot publish this step's report in full: {failure}"
        )),
        _ => {}
    }
}

/// The command that saves the report.
fn save_report(
    job: &StepJob,
    target: &str,
    step: &FinishedStep<'_>,
    stopped: bool,
) -> Result<CommandLine, Failure> {
    let command = step.request.is_none_or(|request| request.command);
    let report = SavedReport::new(step.report, target, job, command, stopped);
    let report =
        serde_json::to_string(&report).classify(Class::Bug, || "cannot write its report".into())?;
    Ok(command::set_meta_data(
        &SavedReport::key(&job.step),
        &report,
    ))
}

/// What the step was to build, by the name that people have for it.
fn target(job: &StepJob, step: &FinishedStep<'_>) -> String {
    let attr = step.request.and_then(StepRequest::name);
    let drv = || Some(step.report.drv.as_ref()?.name().to_owned());
    attr.or_else(drv)
        .or_else(|| job.label.clone())
        .unwrap_or_else(|| job.step.clone())
}

/// What a mark of this job says to other steps: its id, and its label.
fn mark(job: &StepJob, target: &str) -> String {
    let label = job.label.as_deref().unwrap_or(target);
    // Only the first line of a value is read.
    let label = label.replace(char::is_control, " ");
    format!("{} {}", job.id, shortened(label.trim(), LABEL_AT_MOST))
}

struct Publisher<'a> {
    job: &'a StepJob,
    /// The folder for temporary files.
    temporary: &'a Path,
    target: String,
    supervisor: &'a mut Supervisor,
    log: Log,
    /// When the log must be uploaded, so that there is time to annotate.
    until_log: Instant,
    /// When all must be done.
    until: Instant,
}

impl Publisher<'_> {
    fn publish(&mut self, step: &FinishedStep<'_>) -> Result<(), Failure> {
        let mut lines = vec![save_report(self.job, &self.target, step, false)?];
        let (Some(failure), Some(report)) = (step.failure, &step.report.failure) else {
            return self.ask(&lines).map(drop);
        };
        let marks = Marks::new(report, self.job);
        lines.push(command::set_meta_data(
            &marks.own(),
            &mark(self.job, &self.target),
        ));
        self.ask(&lines)?;
        let keys = self.ask(&[command::meta_data_keys()])?;
        let keys = keys.first().map(Finished::text).unwrap_or_default();
        let text = match marks.entry(&keys) {
            Entry::Section { count } => self.section(step, failure, report, &marks, count)?,
            Entry::Retry => annotation::retry(self.job, &self.target),
            Entry::SameRootCause => {
                let mark = self.ask(&[command::get_meta_data(&marks.published())])?;
                let mark = mark.first().map(Finished::text).unwrap_or_default();
                let root_cause = report.drv.as_ref().map(DrvPath::name);
                annotation::same_root_cause(
                    self.job,
                    &self.target,
                    root_cause.unwrap_or_default(),
                    &mark,
                )
            }
            Entry::Count(count) => {
                self.ask(&[command::set_meta_data(&Marks::counted(count), "counted")])?;
                annotation::counted(count, SECTIONS)
            }
            Entry::None => return Ok(()),
        };
        let folder = agent::folder(self.temporary)?;
        let body = folder.path().join("annotation.md");
        agent::write(&body, &text)?;
        let line = command::annotate(CONTEXT, "error", true, &body);
        self.ask(&[line]).map(drop)
    }

    fn section(
        &mut self,
        step: &FinishedStep<'_>,
        failure: &Failure,
        report: &FailureReport,
        marks: &Marks<'_>,
        count: usize,
    ) -> Result<String, Failure> {
        let mut log = LogArtifact::None;
        if let Some(drv) = &report.drv {
            let mark = mark(self.job, &self.target);
            self.ask(&[command::set_meta_data(&marks.published(), &mark)])?;
            match self.upload_log(drv, step) {
                Ok(uploaded) => log = uploaded,
                Err(failure) if matches!(failure.class, Class::Signal(_)) => return Err(failure),
                Err(failure) => self.log.warn(format_args!(
                    "the log of {drv} is not uploaded as an artifact: {failure}"
                )),
            }
        }
        Ok(annotation::section(&FailedStep {
            job: self.job,
            target: &self.target,
            failure,
            report,
            advice: step.advice,
            log,
            count,
        }))
    }

    /// Uploads the log of `drv` as an artifact.
    fn upload_log(
        &mut self,
        drv: &DrvPath,
        step: &FinishedStep<'_>,
    ) -> Result<LogArtifact, Failure> {
        let report = step.report.failure.as_ref();
        let last_lines = report.and_then(|report| report.log.as_ref());
        let (log, whole);
        let log = match (step.build_log, last_lines) {
            (Some(_), None) => return Ok(LogArtifact::Empty),
            (None, None) => return Ok(LogArtifact::None),
            (Some(build_log), Some(_)) => {
                whole = true;
                build_log
            }
            (None, Some(last_lines)) => {
                whole = false;
                log = BuildLog::of_lines(drv, last_lines, self.temporary)?;
                &log
            }
        };
        let name = log.name().to_owned();
        let line = command::upload_artifact(log.folder(), &name);
        let until = Some(self.until_log);
        let uploaded = parallel::all(self.supervisor, slice::from_ref(&line), until)?;
        for (finished, stderr) in uploaded {
            check(&line, &finished, &stderr)?;
        }
        Ok(if whole {
            LogArtifact::Whole(name)
        } else {
            LogArtifact::LastLines(name)
        })
    }

    /// Runs commands of the agent that must all have succeeded in time.
    fn ask(&mut self, lines: &[CommandLine]) -> Result<Vec<Finished>, Failure> {
        let ran = parallel::all(self.supervisor, lines, Some(self.until))?;
        let ran = lines.iter().zip(ran);
        ran.map(|(line, (finished, stderr))| {
            check(line, &finished, &stderr)?;
            Ok(finished)
        })
        .collect()
    }
}

/// Refuses a command that failed. Its name is enough: its arguments are long, and do not matter where it fails.
fn check(line: &CommandLine, finished: &Finished, stderr: &str) -> Result<(), Failure> {
    if finished.ending.success() {
        return Ok(());
    }
    let mut words = line.words();
    words.truncate(3);
    let last = agent::last_line(stderr);
    let last = last.map(|last| format!(": {last}")).unwrap_or_default();
    Err(Failure::new(
        Class::Infrastructure,
        format_args!("`{}` {}{last}", words.join(" "), finished.ending),
    ))
}

/// What the annotation gets for a failure.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    /// A section of its own; so many have failed, this one included.
    Section { count: usize },
    /// A line: a retry failed as the try before.
    Retry,
    /// A line: another step has a section with the same root cause.
    SameRootCause,
    /// A line: so many have failed.
    Count(usize),
    /// Nothing.
    None,
}

/// The marks in the meta-data that a failure sets, and reads.
struct Marks<'a> {
    /// The hash of the `.drv` that itself failed; where none is known, the class.
    root_cause: &'a str,
    /// Whether that is a `.drv`.
    is_known: bool,
    job: &'a StepJob,
}

const FAILED: &str = "eval-once:failed:";

impl<'a> Marks<'a> {
    fn new(report: &'a FailureReport, job: &'a StepJob) -> Self {
        let hash = report.drv.as_ref().map(|drv| drv.as_store_path().hash());
        Self {
            root_cause: hash.unwrap_or(report.class),
            is_known: hash.is_some(),
            job,
        }
    }

    /// The mark that this job has failed. A retry sets another.
    fn own(&self) -> String {
        format!("{}{}", self.of_step(), self.job.id)
    }

    fn of_step(&self) -> String {
        format!("{FAILED}{}:{}:", self.root_cause, self.job.step)
    }

    /// The mark that the root cause has a section.
    fn published(&self) -> String {
        format!("eval-once:told:{}", self.root_cause)
    }

    /// The mark that a line says that so many have failed.
    fn counted(count: usize) -> String {
        format!("eval-once:counted:{count}")
    }

    /// What a failure gets, by all keys of the meta-data once it has set its mark.
    fn entry(&self, keys: &str) -> Entry {
        let has = |wanted: &str| keys.lines().any(|key| key == wanted);
        let count = keys.lines().filter(|key| key.starts_with(FAILED)).count();
        if count > SECTIONS {
            let round = count / SECTIONS * SECTIONS;
            return if has(&Self::counted(round)) {
                Entry::None
            } else {
                Entry::Count(round)
            };
        }
        let (step, own) = (self.of_step(), self.own());
        let before = |key: &str| key != own && key.starts_with(&step);
        if self.job.is_retry && keys.lines().any(before) {
            Entry::Retry
        } else if self.is_known && has(&self.published()) {
            Entry::SameRootCause
        } else {
            Entry::Section { count }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::step_job::JobContext;
    use super::*;
    use crate::command_line::Ending;
    use crate::evaluation_keys::Checkout;
    use serde_json::{Value, json};

    const HASH: &str = "0123456789abcdfghijklmnpqrsvwxyz";

    fn job(is_retry: bool) -> StepJob {
        StepJob {
            id: "job".into(),
            step: "key:of,a.step".into(),
            label: None,
            agent: None,
            is_retry,
            around: JobContext::default(),
        }
    }

    fn named(keys: Option<&Value>, report: &Report, label: Option<&str>) -> String {
        let place = Checkout {
            folder: "/checkout".into(),
            confined: false,
            no_checkout: false,
        };
        let read = |keys: &Value| StepRequest::read(keys.as_object().unwrap().clone(), &place);
        let request = keys.map(|keys| read(keys).unwrap());
        let step = FinishedStep {
            report,
            failure: None,
            request: request.as_ref(),
            advice: &Advice::default(),
            build_log: None,
        };
        let label = label.map(str::to_owned);
        target(
            &StepJob {
                label,
                ..job(false)
            },
            &step,
        )
    }

    #[test]
    fn a_target_has_the_name_of_its_attribute_or_else_of_what_is_known() {
        let report = Report {
            drv: DrvPath::parse(&format!("/nix/store/{HASH}-app-1.0.drv")).ok(),
            ..Report::default()
        };
        let none = Report::default();
        let root = json!({ "file": "x.nix" });
        let attr = json!({ "attr": ["a", "b.c"] });
        for (keys, report, label, expected) in [
            (Some(&attr), &report, Some("Build"), "a.\"b.c\""),
            (Some(&root), &report, Some("Build"), "app-1.0"),
            (None, &report, Some("Build"), "app-1.0"),
            (Some(&root), &none, Some("Build"), "Build"),
            (None, &none, Some("Build"), "Build"),
            (None, &none, None, "key:of,a.step"),
        ] {
            assert_eq!(named(keys, report, label), expected, "{keys:?} {label:?}");
        }
    }

    #[test]
    fn a_mark_is_one_line_with_the_job_and_a_short_label() {
        let mark = |label: &str| {
            let label = Some(label.to_owned());
            let job = StepJob {
                label,
                ..job(false)
            };
            mark(&job, "target")
        };
        assert_eq!(mark(" Build\nit\u{1b}[1m\t"), "job Build it [1m");
        let long = mark(&"x".repeat(300));
        assert_eq!(long.chars().count(), "job ".len() + LABEL_AT_MOST);
        assert_eq!(super::mark(&job(false), "target"), "job target");
    }

    #[test]
    fn the_keys_of_marks_are_those_that_other_versions_read() {
        let job = job(false);
        let drv = format!("/nix/store/{HASH}-app-1.0.drv");
        let mut report = FailureReport::new(&Failure::new(Class::Build, "no"), &[], None);
        let marks = Marks::new(&report, &job);
        let keys = [marks.own(), marks.published(), Marks::counted(50)];
        assert_eq!(
            keys,
            [
                "eval-once:failed:build:key:of,a.step:job",
                "eval-once:told:build",
                "eval-once:counted:50"
            ]
        );
        report.drv = DrvPath::parse(&drv).ok();
        let own = Marks::new(&report, &job).own();
        assert_eq!(own, failed(HASH, "key:of,a.step", "job"));
    }

    #[test]
    fn a_command_of_the_agents_that_failed_is_named_with_its_last_line() {
        let line = command::set_meta_data("key", &"long ".repeat(100));
        let ended = |status: i32| Finished {
            ending: Ending::Exited(status),
            stdout: Vec::new(),
        };
        assert!(check(&line, &ended(0), "warning\n").is_ok());
        let message = |stderr: &str| check(&line, &ended(1), stderr).unwrap_err().to_string();
        let command = "`buildkite-agent meta-data set` ";
        assert!(message("").starts_with(command), "{}", message(""));
        let text = message("one\nfatal: connection refused\n\n");
        assert!(
            text.starts_with(command) && text.ends_with(": fatal: connection refused"),
            "{text}"
        );
    }

    fn entry(is_known: bool, is_retry: bool, others: &[String]) -> Entry {
        let job = job(is_retry);
        let marks = Marks {
            root_cause: if is_known { HASH } else { "evaluation" },
            is_known,
            job: &job,
        };
        let mut keys = others.to_vec();
        keys.push(marks.own());
        keys.push("eval-once:report:x".into());
        marks.entry(&keys.join("\n"))
    }

    fn failed(root_cause: &str, step: &str, job: &str) -> String {
        format!("eval-once:failed:{root_cause}:{step}:{job}")
    }

    #[test]
    fn a_root_cause_has_one_section_and_a_failure_without_one_its_own() {
        assert_eq!(entry(true, false, &[]), Entry::Section { count: 1 });
        let other = failed(HASH, "other", "other");
        let published = format!("eval-once:told:{HASH}");
        // A step that has set its mark, and not published yet, may be where we are.
        assert_eq!(
            entry(true, false, slice::from_ref(&other)),
            Entry::Section { count: 2 }
        );
        assert_eq!(
            entry(true, false, &[other, published]),
            Entry::SameRootCause
        );
        let other = failed("evaluation", "other", "other");
        assert_eq!(entry(false, false, &[other]), Entry::Section { count: 2 });
    }

    #[test]
    fn a_retry_that_fails_as_before_gets_a_line() {
        let before = failed(HASH, "key:of,a.step", "before");
        assert_eq!(entry(true, true, slice::from_ref(&before)), Entry::Retry);
        let other = failed("timeout", "key:of,a.step", "before");
        assert_eq!(entry(true, true, &[other]), Entry::Section { count: 2 });
        // Jobs of one step that run beside one another (a matrix) are no retries.
        assert_eq!(entry(true, false, &[before]), Entry::Section { count: 2 });
    }

    #[test]
    fn beyond_fifty_failures_are_counted() {
        let others = |count: usize, counted: &[usize]| -> Vec<String> {
            let counted = counted.iter().map(|count| Marks::counted(*count));
            (0..count)
                .map(|n| failed("build", &n.to_string(), "j"))
                .chain(counted)
                .collect()
        };
        assert_eq!(
            entry(true, false, &others(49, &[])),
            Entry::Section { count: 50 }
        );
        assert_eq!(entry(true, false, &others(50, &[])), Entry::Count(50));
        assert_eq!(entry(true, true, &others(50, &[50])), Entry::None);
        assert_eq!(entry(true, false, &others(120, &[50])), Entry::Count(100));
        assert_eq!(entry(true, false, &others(120, &[50, 100])), Entry::None);
    }
}
