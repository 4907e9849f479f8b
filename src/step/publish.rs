//! What a step tells its build: every step leaves its report in the meta-data ([`SavedReport`]), and one that failed appends to the
//! build's annotation of failures, and keeps the log of the derivation that failed as an artifact.
//!
//! All of it is worth no failure: it changes no status, and has [`TIME`] together. One that was stopped leaves its report alone. By
//! hand nothing is told.
//!
//! Steps that fail at the same time know of one another by marks in the meta-data, and nothing there compares and swaps. So:
//!
//! - Each failure leaves a mark of its own, *and then* asks for all marks. Whoever leaves the nth mark sees n of them at least;
//!   so no more than [`LISTED`] see so few that they say more than a number, however many fail at one moment. A section has at
//!   most 16 KiB, a line 4: the annotation stays below Buildkite's limit of 1 MiB.
//! - Who finds no mark that its culprit has been told leaves one, and tells it. Two that look at the same moment both tell it.
//!   None is left untold, unless who has left the mark dies before it comes to telling.

use std::path::Path;
use std::slice;
use std::time::{Duration, Instant};

use super::StepJob;
use super::advice::Advice;
use super::annotation::{self, FailedStep};
use super::build_log::BuildLog;
use super::report::{FailureReport, Report};
use super::request::StepRequest;
use super::saved_report::SavedReport;
use crate::agent;
use crate::buildkite::agent as command;
use crate::command_line::CommandLine;
use crate::exit::{Class, Classify as _, Failure};
use crate::log::Log;
use crate::nix::DrvPath;
use crate::parallel;
use crate::supervise::{Finished, Supervisor};
use crate::text::shortened;

/// How long all of it may take: an agent of v3 goes on for a minute where Buildkite answers with an error.
const TIME: Duration = Duration::from_secs(10);

/// How much of that a log may take; the rest is left to the annotation.
const TIME_FOR_LOG: Duration = Duration::from_secs(7);

/// How long a step that was stopped may take to leave its report. Its agent kills it after nine seconds, and a second of them may be
/// over (`supervise`).
const TIME_WHEN_STOPPED: Duration = Duration::from_secs(3);

/// How many failures are told; more are counted.
const LISTED: usize = 50;

/// The context of the annotation.
const CONTEXT: &str = "eval-once-failures";

/// How much of a label is left to others, in characters.
const LABEL_AT_MOST: usize = 100;

/// A step that is over.
pub(super) struct FinishedStep<'a> {
    pub(super) report: &'a Report,
    pub(super) failure: Option<&'a Failure>,
    /// What it was asked to do, where that could be read.
    pub(super) request: Option<&'a StepRequest>,
    /// What one can do about it.
    pub(super) advice: &'a Advice,
    /// The log of what failed, where Nix has kept it.
    pub(super) kept: Option<&'a BuildLog>,
}

/// Tells the build of `job` how its step went. Once a signal has asked us to end there is time for the report alone: it says
/// whether the job was cancelled or timed out, which Buildkite has one word for.
pub(super) fn tell(
    job: &StepJob,
    over: &FinishedStep<'_>,
    temporary: &Path,
    supervisor: &mut Supervisor,
    log: &Log,
) {
    if supervisor.check().is_err() {
        if let Ok(line) = leave(job, &target(job, over), over, true) {
            let until = Some(Instant::now() + TIME_WHEN_STOPPED);
            // Whether it could be left changes nothing now, and would be one more line in a log that is over.
            let _ = supervisor.once_more(|supervisor| parallel::all(supervisor, &[line], until));
        }
        return;
    }
    let now = Instant::now();
    let mut teller = Teller {
        job,
        temporary,
        target: target(job, over),
        supervisor,
        log: log.clone(),
        until_log: now + TIME_FOR_LOG,
        until: now + TIME,
    };
    match teller.tell(over) {
        Err(failure) if !matches!(failure.class, Class::Signal(_)) => log.warn(format_args!(
            "the build is not told all about this step: {failure}"
        )),
        _ => {}
    }
}

/// The command that leaves the report.
fn leave(
    job: &StepJob,
    target: &str,
    over: &FinishedStep<'_>,
    stopped: bool,
) -> Result<CommandLine, Failure> {
    let command = over.request.is_none_or(|request| request.command);
    let left = SavedReport::new(over.report, target, job, command, stopped);
    let left =
        serde_json::to_string(&left).classify(Class::Bug, || "cannot write its report".into())?;
    Ok(command::set_meta_data(&SavedReport::key(&job.step), &left))
}

/// What the step was to build, as people call it.
fn target(job: &StepJob, over: &FinishedStep<'_>) -> String {
    let evaluation = over.request.and_then(|request| request.evaluation.as_ref());
    let attr = evaluation
        .filter(|it| !it.attr.names().is_empty())
        .map(|it| it.attr.to_string());
    let drv = || Some(over.report.drv.as_ref()?.name().to_owned());
    attr.or_else(drv)
        .or_else(|| job.label.clone())
        .unwrap_or_else(|| job.step.clone())
}

struct Teller<'a> {
    job: &'a StepJob,
    /// The folder for temporary files.
    temporary: &'a Path,
    target: String,
    supervisor: &'a mut Supervisor,
    log: Log,
    /// When a log must be kept, so that there is time to annotate.
    until_log: Instant,
    /// When all must be done.
    until: Instant,
}

impl Teller<'_> {
    fn tell(&mut self, over: &FinishedStep<'_>) -> Result<(), Failure> {
        let mut lines = vec![leave(self.job, &self.target, over, false)?];
        let (Some(failure), Some(report)) = (over.failure, &over.report.failure) else {
            return self.ask(&lines).map(drop);
        };
        let marks = Marks::new(report, self.job);
        lines.push(command::set_meta_data(&marks.own(), &self.mark()));
        self.ask(&lines)?;
        let keys = self.ask(&[command::meta_data_keys()])?;
        let keys = keys.first().map(Finished::text).unwrap_or_default();
        let text = match marks.telling(&keys) {
            Telling::Full { count } => self.in_full(over, failure, report, &marks, count)?,
            Telling::Again => annotation::again(self.job, &self.target),
            Telling::Same => {
                let told = self.ask(&[command::get_meta_data(&marks.told())])?;
                let told = told.first().map(Finished::text).unwrap_or_default();
                let root_cause = report.drv.as_ref().map(DrvPath::name);
                annotation::same(
                    self.job,
                    &self.target,
                    root_cause.unwrap_or_default(),
                    &told,
                )
            }
            Telling::Count(count) => {
                self.ask(&[command::set_meta_data(&Marks::counted(count), "told")])?;
                annotation::counted(count, LISTED)
            }
            Telling::Nothing => return Ok(()),
        };
        let folder = agent::folder(self.temporary)?;
        let body = folder.path().join("annotation.md");
        agent::write(&body, &text)?;
        let line = command::annotate(CONTEXT, "error", true, &body);
        self.ask(&[line]).map(drop)
    }

    /// What others are told of this job.
    fn mark(&self) -> String {
        let label = self.job.label.as_deref().unwrap_or(&self.target);
        // A line's end would be lost, or more: what is read is one line.
        let label = label.replace(char::is_control, " ");
        format!("{} {}", self.job.id, shortened(label.trim(), LABEL_AT_MOST))
    }

    fn in_full(
        &mut self,
        over: &FinishedStep<'_>,
        failure: &Failure,
        report: &FailureReport,
        marks: &Marks<'_>,
        count: usize,
    ) -> Result<String, Failure> {
        let mut log = annotation::LogExcerpt::Nowhere;
        if let Some(drv) = &report.drv {
            self.ask(&[command::set_meta_data(&marks.told(), &self.mark())])?;
            match self.keep_log(drv, over) {
                Ok(kept) => log = kept,
                Err(failure) if matches!(failure.class, Class::Signal(_)) => return Err(failure),
                Err(failure) => self
                    .log
                    .warn(format_args!("the log of {drv} is not kept: {failure}")),
            }
        }
        Ok(annotation::section(&FailedStep {
            job: self.job,
            target: &self.target,
            failure,
            report,
            advice: over.advice,
            log,
            count,
        }))
    }

    /// Keeps the log of `drv` as an artifact; gives what became of that.
    fn keep_log(
        &mut self,
        drv: &DrvPath,
        over: &FinishedStep<'_>,
    ) -> Result<annotation::LogExcerpt, Failure> {
        let report = over.report.failure.as_ref();
        let seen = report.and_then(|report| report.log.as_ref());
        let (log, whole);
        let log = match (over.kept, seen) {
            (Some(_), None) => return Ok(annotation::LogExcerpt::Empty),
            (None, None) => return Ok(annotation::LogExcerpt::Nowhere),
            (Some(kept), Some(_)) => {
                whole = true;
                kept
            }
            (None, Some(seen)) => {
                whole = false;
                log = BuildLog::seen(drv, seen, self.temporary)?;
                &log
            }
        };
        let name = log.name().to_owned();
        let line = command::upload_artifact(log.folder(), &name);
        let until = Some(self.until_log);
        let uploaded = parallel::all(self.supervisor, slice::from_ref(&line), until)?;
        for (finished, said) in uploaded {
            succeeded(&line, &finished, &said)?;
        }
        Ok(if whole {
            annotation::LogExcerpt::Whole(name)
        } else {
            annotation::LogExcerpt::Seen(name)
        })
    }

    /// Asks the agent for things that must all be done in time.
    fn ask(&mut self, lines: &[CommandLine]) -> Result<Vec<Finished>, Failure> {
        let ran = parallel::all(self.supervisor, lines, Some(self.until))?;
        let ran = lines.iter().zip(ran);
        ran.map(|(line, (finished, said))| {
            succeeded(line, &finished, &said)?;
            Ok(finished)
        })
        .collect()
    }
}

/// Whether a command was done. Said in few words: what is in it is long, and of no interest where it fails.
fn succeeded(line: &CommandLine, finished: &Finished, said: &str) -> Result<(), Failure> {
    if finished.ending.success() {
        return Ok(());
    }
    let mut words = line.words();
    words.truncate(3);
    let said = agent::last_line(said);
    let said = said.map(|said| format!(": {said}")).unwrap_or_default();
    Err(Failure::new(
        Class::Infrastructure,
        format_args!("`{}` {}{said}", words.join(" "), finished.ending),
    ))
}

/// How a failure is told.
#[derive(Debug, PartialEq, Eq)]
enum Telling {
    /// All about it; so many have failed, this one included.
    Full { count: usize },
    /// That its step was tried again.
    Again,
    /// That another was told, with the same culprit.
    Same,
    /// That so many have failed.
    Count(usize),
    /// Not at all.
    Nothing,
}

/// The marks that a failure leaves in the meta-data, and finds there.
struct Marks<'a> {
    /// The culprit: the hash of its `.drv`; where none is known, the class.
    root_cause: &'a str,
    has_culprit: bool,
    job: &'a StepJob,
}

const FAILED: &str = "eval-once:failed:";

impl<'a> Marks<'a> {
    fn new(report: &'a FailureReport, job: &'a StepJob) -> Self {
        let hash = report.drv.as_ref().map(|drv| drv.as_store_path().hash());
        Self {
            root_cause: hash.unwrap_or(report.class),
            has_culprit: hash.is_some(),
            job,
        }
    }

    /// The mark that this job has failed. A step that is tried again leaves another.
    fn own(&self) -> String {
        format!("{}{}", self.of_step(), self.job.id)
    }

    fn of_step(&self) -> String {
        format!("{FAILED}{}:{}:", self.root_cause, self.job.step)
    }

    /// The mark that the culprit is told.
    fn told(&self) -> String {
        format!("eval-once:told:{}", self.root_cause)
    }

    /// The mark that so many failures were told as a number.
    fn counted(count: usize) -> String {
        format!("eval-once:counted:{count}")
    }

    /// How to tell a failure, by all keys of the meta-data once it has left its mark.
    fn telling(&self, keys: &str) -> Telling {
        let has = |wanted: &str| keys.lines().any(|key| key == wanted);
        let count = keys.lines().filter(|key| key.starts_with(FAILED)).count();
        if count > LISTED {
            let round = count / LISTED * LISTED;
            return if has(&Self::counted(round)) {
                Telling::Nothing
            } else {
                Telling::Count(round)
            };
        }
        let (step, own) = (self.of_step(), self.own());
        let before = |key: &str| key != own && key.starts_with(&step);
        if self.job.is_retry && keys.lines().any(before) {
            Telling::Again
        } else if self.has_culprit && has(&self.told()) {
            Telling::Same
        } else {
            Telling::Full { count }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::JobContext;
    use super::*;

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

    fn telling(has_culprit: bool, is_retry: bool, others: &[String]) -> Telling {
        let job = job(is_retry);
        let marks = Marks {
            root_cause: if has_culprit { HASH } else { "evaluation" },
            has_culprit,
            job: &job,
        };
        let mut keys = others.to_vec();
        keys.push(marks.own());
        keys.push("eval-once:report:x".into());
        marks.telling(&keys.join("\n"))
    }

    fn failed(root_cause: &str, step: &str, job: &str) -> String {
        format!("eval-once:failed:{root_cause}:{step}:{job}")
    }

    #[test]
    fn a_culprit_is_told_once_and_a_failure_without_one_each_time() {
        assert_eq!(telling(true, false, &[]), Telling::Full { count: 1 });
        let other = failed(HASH, "other", "other");
        let told = format!("eval-once:told:{HASH}");
        // Who has left its mark and not told yet may be at the same point as we.
        assert_eq!(
            telling(true, false, slice::from_ref(&other)),
            Telling::Full { count: 2 }
        );
        assert_eq!(telling(true, false, &[other, told]), Telling::Same);
        let other = failed("evaluation", "other", "other");
        assert_eq!(telling(false, false, &[other]), Telling::Full { count: 2 });
    }

    #[test]
    fn a_step_that_is_tried_again_is_told_by_a_line_if_it_fails_as_before() {
        let before = failed(HASH, "key:of,a.step", "before");
        assert_eq!(
            telling(true, true, slice::from_ref(&before)),
            Telling::Again
        );
        let other = failed("timeout", "key:of,a.step", "before");
        assert_eq!(telling(true, true, &[other]), Telling::Full { count: 2 });
        // Jobs of one step that run beside one another (a matrix) are no retries.
        assert_eq!(telling(true, false, &[before]), Telling::Full { count: 2 });
    }

    #[test]
    fn beyond_fifty_failures_are_counted() {
        let others = |count: usize, told: &[usize]| -> Vec<String> {
            let told = told.iter().map(|count| Marks::counted(*count));
            (0..count)
                .map(|n| failed("build", &n.to_string(), "j"))
                .chain(told)
                .collect()
        };
        assert_eq!(
            telling(true, false, &others(49, &[])),
            Telling::Full { count: 50 }
        );
        assert_eq!(telling(true, false, &others(50, &[])), Telling::Count(50));
        assert_eq!(telling(true, true, &others(50, &[50])), Telling::Nothing);
        assert_eq!(
            telling(true, false, &others(120, &[50])),
            Telling::Count(100)
        );
        assert_eq!(
            telling(true, false, &others(120, &[50, 100])),
            Telling::Nothing
        );
    }
}
