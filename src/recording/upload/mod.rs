//! The upload: chunk by chunk, once each, whatever dies on the way.
//!
//! The plan, byte for byte, is an artifact before the first chunk is uploaded, and a retried recording of the same step follows
//! it. Each chunk that is known to be applied leaves a mark in the build's meta-data. One without a mark may have been applied
//! all the same, also after its client died: that Buildkite rejects its keys tells so, and no question that is asked before.

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
use crate::exit::{Class, Failure};
use crate::log::Log;
use crate::parallel;
use crate::recording::BuildkiteBuild;
use crate::supervise::{Finished, Supervisor};

const DOCUMENT: &str = "eval-once.json";

/// How long it may take to say that a step exists. One that does not is asked for again and again by agents of v3.
const TIME_TO_FIND: Duration = Duration::from_secs(4);

/// How many are asked for at once.
const ASKED_AT_ONCE: usize = 16;

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

    /// The plan of an earlier try of this recording, if one got so far. `recording` is what it records, in a few letters.
    ///
    /// # Errors
    /// Buildkite cannot be asked, or has lost the plan (75); there is no `buildkite-agent` (69); this job has recorded something
    /// else before (64).
    pub(in crate::recording) fn earlier_plan(
        &mut self,
        recording: &str,
    ) -> Result<Option<UploadPlan>, Failure> {
        let line = command::get_meta_data(&plan_artifact::plan_mark(&self.build.step));
        let mark = self.ask(&line, "look for an earlier try of this recording")?;
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
                "this job has recorded something else already, and a step can upload one recording: nothing was evaluated",
            )
            .hint("give each recording a step of its own, or record all of it at once"));
        }
        self.log.say(
            "an earlier try of this recording got as far as its plan: following that, and evaluating nothing",
        );
        if is_other {
            // No failure: an argument may name the job, say, and then no two tries are the same.
            self.log.warn(
                "that try recorded something else, or with other arguments, than this one was to",
            );
        }
        let doing = "get the plan of the earlier try";
        let Some(json) = plan_artifact::download(self.supervisor, self.temporary, job, doing)?
        else {
            return Err(Failure::new(
                Class::Infrastructure,
                format_args!(
                    "cannot {doing}: the job {job} has kept one, and Buildkite has it no longer"
                ),
            )
            .hint(
                "run the whole build again: what this recording would find now may be other steps",
            ));
        };
        UploadPlan::read(&json).map(Some)
    }

    /// Keeps a new plan, before anything of it is uploaded.
    ///
    /// # Errors
    /// Buildkite does not take it (75).
    pub(in crate::recording) fn keep(
        &mut self,
        plan: &UploadPlan,
        recording: &str,
    ) -> Result<(), Failure> {
        plan_artifact::upload(self.supervisor, self.temporary, plan)?;
        let value = PlanMark::write(&self.build.job, recording);
        let line = command::set_meta_data(&plan_artifact::plan_mark(&self.build.step), &value);
        self.ask(&line, "mark that the plan is kept").map(drop)
    }

    /// Uploads what of the plan was not uploaded yet, and then what it says besides.
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
            self.ask(&command::meta_data_keys(), "see what was uploaded before")?
                .text()
        };
        let count = plan.chunks.len();
        for (number, chunk) in plan.chunks.iter().enumerate() {
            let mark = plan_artifact::mark(&self.build.step, number);
            if marks.lines().any(|line| line.trim() == mark) {
                continue;
            }
            self.chunk(chunk, number + 1, count)?;
            let line = command::set_meta_data(&mark, "applied");
            self.ask(&line, "mark what was uploaded")?;
        }
        // The steps are there and will run: what is told besides is worth no failure.
        let told = agent::keep_artifact(self.supervisor, self.temporary, DOCUMENT, &plan.document)
            .and_then(|()| {
                let context = format!("eval-once-{}", self.build.step);
                let (body, style) = &plan.annotation;
                agent::annotate(self.supervisor, self.temporary, &context, style, body)
            });
        match told {
            Err(failure) if matches!(failure.class, Class::Signal(_)) => Err(failure),
            Err(failure) => {
                self.log.warn(failure);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Uploads a chunk, or what of it is not there.
    fn chunk(&mut self, chunk: &Chunk, number: usize, count: usize) -> Result<(), Failure> {
        let mut missing = chunk.keys.clone();
        let mut probed = false;
        loop {
            let Some(message) = self.upload(&chunk.part(&missing)?)? else {
                self.log.say(format_args!(
                    "uploaded {} step{} ({number} of {count})",
                    missing.len(),
                    if missing.len() == 1 { "" } else { "s" }
                ));
                return Ok(());
            };
            // Another recording of this build, or an earlier try of this one, was here before.
            let used = is_used(&message).then(|| {
                missing
                    .iter()
                    .position(|key| message.contains(key.as_str()))
            });
            let Some(used) = used else {
                return Err(rejected(&message, chunk, number));
            };
            match used {
                _ if !probed => {
                    probed = true;
                    let there = self.which_are_there(&missing)?;
                    let named = used.map(|at| missing[at].clone());
                    missing.retain(|key| !there.contains(key) && Some(key) != named.as_ref());
                }
                Some(at) => drop(missing.remove(at)),
                None => return Err(rejected(&message, chunk, number)),
            }
            if missing.is_empty() {
                self.log.say(format_args!(
                    "all steps of upload {number} of {count} are there already"
                ));
                return Ok(());
            }
        }
    }

    /// Uploads a pipeline. Gives what Buildkite says where it rejects it.
    fn upload(&mut self, pipeline: &str) -> Result<Option<String>, Failure> {
        let folder = agent::folder(self.temporary)?;
        let file = folder.path().join("pipeline.json");
        agent::write(&file, pipeline)?;
        let line = command::upload_pipeline(&file);
        let (finished, said) = agent::run(self.supervisor, &line)?;
        if finished.ending.success() {
            return Ok(None);
        }
        match rejection(&said) {
            Some(message) => Ok(Some(message)),
            None => Err(agent::unreachable(
                &line,
                &finished,
                &said,
                "upload the pipeline",
            )),
        }
    }

    /// Which steps of this build have these keys. One that cannot be found in time counts as none: that it is used is then
    /// said by Buildkite.
    fn which_are_there(&mut self, keys: &[String]) -> Result<Vec<String>, Failure> {
        let mut there = Vec::new();
        for keys in keys.chunks(ASKED_AT_ONCE) {
            let lines: Vec<_> = keys.iter().map(|key| command::step_with_key(key)).collect();
            let until = Instant::now() + TIME_TO_FIND;
            let answers = parallel::all(self.supervisor, &lines, Some(until))?;
            let found = keys
                .iter()
                .zip(&answers)
                .filter(|(_, (answer, _))| answer.ending.success());
            there.extend(found.map(|(key, _)| key.clone()));
        }
        Ok(there)
    }

    fn ask(&mut self, line: &CommandLine, doing: &str) -> Result<Finished, Failure> {
        agent::ask(self.supervisor, line, doing)
    }
}
