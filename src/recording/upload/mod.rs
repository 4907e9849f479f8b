//! The upload: chunk by chunk, each applied once, even if the job dies on the way.
//!
//! The plan is an artifact, byte for byte, before the first chunk is uploaded, and a retry of the same recording follows it. Each
//! chunk that is known to be applied has a mark in the build's meta-data. One without a mark may be applied all the same, also
//! after its client died. Asking first cannot exclude that; only the rejection of its keys by Buildkite shows it.

pub(in crate::recording) mod annotation;
mod chunk;
pub(crate) mod plan;
pub(crate) mod plan_artifact;
mod rejection;

use std::path::Path;
use std::time::{Duration, Instant};

use self::chunk::Chunk;
use self::plan::UploadPlan;
use self::plan_artifact::PlanMark;
use self::rejection::{is_used, rejected, rejection};
use crate::agent;
use crate::buildkite::agent as command;
use crate::command_line::CommandLine;
use crate::counts;
use crate::exit::{Class, Failure};
use crate::log::Log;
use crate::parallel;
use crate::recording::BuildkiteBuild;
use crate::supervise::{Finished, Supervisor};

/// The name of the artifact for other programs.
pub(in crate::recording) const DOCUMENT: &str = "eval-once.json";

/// How long the agent may take to find a step. Agents of v3 ask again and again for a step that does not exist.
const TIME_TO_FIND: Duration = Duration::from_secs(4);

/// How many steps are looked for in parallel.
const LOOKUPS_AT_ONCE: usize = 16;

/// The context of a recording's annotation, in which there is one: the last of its tries.
pub(in crate::recording) fn annotation_context(build: &BuildkiteBuild) -> String {
    format!("eval-once-{}", build.step)
}

/// An upload on its way.
pub(in crate::recording) struct Upload<'a> {
    build: &'a BuildkiteBuild,
    /// The folder for temporary files.
    temporary: &'a Path,
    supervisor: &'a mut Supervisor,
    log: Log,
}

impl<'a> Upload<'a> {
    /// An upload to this build.
    pub(in crate::recording) fn new(
        build: &'a BuildkiteBuild,
        temporary: &'a Path,
        supervisor: &'a mut Supervisor,
        log: &Log,
    ) -> Self {
        Self {
            build,
            temporary,
            supervisor,
            log: log.clone(),
        }
    }

    /// The plan of an earlier try of this recording, if there is one. `recording` is the recording's identity.
    ///
    /// # Errors
    /// Buildkite cannot be asked, or has lost the plan (75); there is no `buildkite-agent` (69); this job has uploaded another
    /// recording before (64).
    pub(in crate::recording) fn earlier_plan(
        &mut self,
        recording: &str,
    ) -> Result<Option<UploadPlan>, Failure> {
        let line = command::get_meta_data(&plan_artifact::plan_mark(&self.build.step));
        let mark = self.ask(
            &line,
            "look for the plan of an earlier try of this recording",
        )?;
        let mark = mark.text();
        let Some(PlanMark {
            job,
            recording: earlier,
        }) = PlanMark::read(&mark)
        else {
            return Ok(None);
        };
        let is_other = earlier.is_some_and(|other| other != recording);
        if is_other && job == self.build.job {
            return Err(Failure::new(
                Class::Config,
                "this job has uploaded another recording already, and a step can upload only one",
            )
            .hint("give each recording a step of its own, or record all of them as one"));
        }
        self.log.say(
            "an earlier try of this recording has planned its upload: following that plan, without another evaluation",
        );
        if is_other {
            // This is not a failure: an argument may name the job, for example, and then no two tries are the same.
            self.log
                .warn("the earlier try had other keys than this one; its plan counts");
        }
        let doing = "get the plan of the earlier try";
        let Some(json) = plan_artifact::download(self.supervisor, self.temporary, job, doing)?
        else {
            return Err(Failure::new(
                Class::Infrastructure,
                format_args!(
                    "cannot {doing}: Buildkite no longer has the artifact of the job {job}"
                ),
            )
            .hint(
                "run the whole build again: another evaluation may find other steps than those that are uploaded",
            ));
        };
        UploadPlan::read(&json).map(Some)
    }

    /// Saves a new plan, before any of its steps is uploaded.
    ///
    /// # Errors
    /// Buildkite does not take it (75).
    pub(in crate::recording) fn save(
        &mut self,
        plan: &UploadPlan,
        recording: &str,
    ) -> Result<(), Failure> {
        plan_artifact::upload(self.supervisor, self.temporary, plan)?;
        let value = PlanMark::write(&self.build.job, recording);
        let line = command::set_meta_data(&plan_artifact::plan_mark(&self.build.step), &value);
        self.ask(&line, "mark the plan as saved").map(drop)
    }

    /// Uploads the chunks of the plan that are not uploaded yet; then its document and its annotation.
    ///
    /// # Errors
    /// Buildkite rejects a chunk (64), or cannot be reached (75).
    pub(in crate::recording) fn follow(
        &mut self,
        plan: &UploadPlan,
        is_new: bool,
    ) -> Result<(), Failure> {
        let marks = if is_new {
            String::new()
        } else {
            self.ask(
                &command::meta_data_keys(),
                "look for the chunks that are uploaded already",
            )?
            .text()
        };
        let count = plan.chunks.len();
        for (number, chunk) in plan.chunks.iter().enumerate() {
            let mark = plan_artifact::mark(&self.build.step, number);
            if marks.lines().any(|line| line.trim() == mark) {
                continue;
            }
            self.upload_chunk(chunk, number + 1, count)?;
            let line = command::set_meta_data(&mark, "applied");
            self.ask(&line, "mark a chunk as uploaded")?;
        }
        self.publish(&plan.document, &plan.annotation)
    }

    /// Uploads the text of `eval-once.json`, and annotates the build. A failure is a warning: the steps exist and will run, whether
    /// or not the build gets these; and a recording that is refused fails for a reason of its own.
    ///
    /// # Errors
    /// A signal asks us to end.
    pub(in crate::recording) fn publish(
        &mut self,
        document: &str,
        (body, style): &(String, String),
    ) -> Result<(), Failure> {
        let published = agent::keep_artifact(self.supervisor, self.temporary, DOCUMENT, document)
            .and_then(|()| {
                let context = annotation_context(self.build);
                agent::annotate(self.supervisor, self.temporary, &context, style, body)
            });
        match published {
            Err(failure) if matches!(failure.class, Class::Signal(_)) => Err(failure),
            Err(failure) => {
                self.log.warn(failure);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Uploads a chunk, or the part of it that does not exist yet.
    fn upload_chunk(&mut self, chunk: &Chunk, number: usize, count: usize) -> Result<(), Failure> {
        let mut missing = chunk.keys.clone();
        let mut looked_up = false;
        loop {
            let Some(message) = self.upload_pipeline(&chunk.part(&missing)?)? else {
                self.log.say(format_args!(
                    "uploaded {} ({number} of {count})",
                    counts::number(missing.len(), "step")
                ));
                return Ok(());
            };
            // Another recording of this build, or an earlier try of this one, has uploaded some of the steps.
            let used = is_used(&message).then(|| {
                missing
                    .iter()
                    .position(|key| message.contains(key.as_str()))
            });
            let Some(used) = used else {
                return Err(rejected(&message, chunk, number));
            };
            match used {
                _ if !looked_up => {
                    looked_up = true;
                    let existing = self.existing(&missing)?;
                    let named = used.map(|at| missing[at].clone());
                    missing.retain(|key| !existing.contains(key) && Some(key) != named.as_ref());
                }
                Some(at) => drop(missing.remove(at)),
                None => return Err(rejected(&message, chunk, number)),
            }
            if missing.is_empty() {
                self.log.say(format_args!(
                    "all steps of upload {number} of {count} exist already"
                ));
                return Ok(());
            }
        }
    }

    /// Uploads a pipeline. Returns Buildkite's message where it rejects the pipeline.
    fn upload_pipeline(&mut self, pipeline: &str) -> Result<Option<String>, Failure> {
        let folder = agent::folder(self.temporary)?;
        let file = folder.path().join("pipeline.json");
        agent::write(&file, pipeline)?;
        let line = command::upload_pipeline(&file);
        let (finished, message) = agent::run(self.supervisor, &line)?;
        if finished.ending.success() {
            return Ok(None);
        }
        match rejection(&message) {
            Some(message) => Ok(Some(message)),
            None => Err(agent::unreachable(
                &line,
                &finished,
                &message,
                "upload the pipeline",
            )),
        }
    }

    /// The keys among these that steps of this build have. A step that is not found in time counts as missing: Buildkite then
    /// rejects its key.
    fn existing(&mut self, keys: &[String]) -> Result<Vec<String>, Failure> {
        let mut existing = Vec::new();
        for keys in keys.chunks(LOOKUPS_AT_ONCE) {
            let lines: Vec<_> = keys.iter().map(|key| command::step_with_key(key)).collect();
            let until = Instant::now() + TIME_TO_FIND;
            let answers = parallel::all(self.supervisor, &lines, Some(until))?;
            let found = keys
                .iter()
                .zip(&answers)
                .filter(|(_, (answer, _))| answer.ending.success());
            existing.extend(found.map(|(key, _)| key.clone()));
        }
        Ok(existing)
    }

    fn ask(&mut self, line: &CommandLine, doing: &str) -> Result<Finished, Failure> {
        agent::ask(self.supervisor, line, doing)
    }
}
