//! The upload: chunk by chunk, each applied once, even if the job dies on the way.
//!
//! The plan is an artifact, byte for byte, before the first chunk is uploaded, and a retry of the same recording follows it. Each
//! chunk that is known to be applied has a mark in the build's meta-data. One without a mark may be applied all the same, also
//! after its client died. Asking first cannot exclude that; only the rejection of its keys by Buildkite shows it.
//!
//! # Whose plan is followed
//!
//! Every job of a build can set its meta-data, and can upload an artifact *for any other job*: Buildkite's page on agent tokens says
//! so of job tokens. So neither a mark nor the job of an artifact shows who made a plan. What is followed would be signed by an
//! agent that signs, though. So:
//!
//! - Where the agent signs with a key in a file (`BUILDKITE_AGENT_JWKS_FILE`), the mark carries a seal: an HMAC by that file over
//!   build, step, which of its jobs that is, job, the recording's identity and the plan's SHA-256. No job can make it that has not got the key, and one that has
//!   it signs whatever it likes. A plan without this seal is not followed.
//! - Where a key management service signs there is nothing to seal with: no plan is followed.
//! - Where nothing is signed, the host that saved the plan has a note of the mark in its state folder. A mark without this note is not
//!   followed: a plan that another job left would end green, and the targets that it does not name would be lost. So a retry on
//!   another host evaluates again.
//!
//! In all three Buildkite has to have one artifact of that name at that job, with the mark's hash, its bytes have to have that hash too,
//! the plan's `step` has to be this one, and this job a retry by Buildkite's count. A plan in doubt is no failure: the targets are
//! evaluated again, and the steps that exist already are found by their keys. What such a plan has steps for is not skipped
//! ([`PlannedTargets`]): some of them may exist, and the summary, which reads the last plan, would take them for skipped. All that a
//! forged plan comes to by that is a step for what is built already.
//!
//! A mark of a chunk means only that its keys are looked for before they are uploaded, so that a forged one hides no step. What
//! stays: a job that uploads a step under a key of ours takes its place, for keys are all by which Buildkite tells steps apart.

pub(in crate::recording) mod annotation;
mod chunk;
mod claim;
mod earlier;
pub(crate) mod plan;
pub(crate) mod plan_artifact;
mod rejection;

use std::path::Path;
use std::time::{Duration, Instant};

use self::chunk::Chunk;
use self::claim::Claim;
pub(in crate::recording) use self::earlier::PlannedTargets;
use self::plan::UploadPlan;
use self::plan_artifact::{ListedArtifact, PlanMark};
use self::rejection::{Rejections, blamed, is_used, named, rejected, rejection};
use crate::agent;
use crate::buildkite::agent as command;
use crate::command_line::CommandLine;
use crate::counts;
use crate::exit::{Class, Failure};
use crate::fingerprint::{fingerprint, sha256};
use crate::keys::refuse;
use crate::log::Log;
use crate::parallel;
use crate::recording::{BuildkiteBuild, Phases, Signing};
use crate::secrets::shortened;
use crate::state::{NOTES_LAST, StateFolder};
use crate::supervise::{Finished, Supervisor};

/// The name of the artifact for other programs.
pub(crate) const DOCUMENT: &str = "eval-once.json";

/// How long the agent may take to find a step. Agents of v3 ask again and again for a step that does not exist.
const TIME_TO_FIND: Duration = Duration::from_secs(4);

/// The most characters that are shown of a word in another job's claim, which may be anything.
const SHOWN_AT_MOST: usize = 100;

/// How many steps are looked for in parallel.
const LOOKUPS_AT_ONCE: usize = 16;

/// The context of a recording's annotation, in which there is one: the last of its tries.
pub(in crate::recording) fn annotation_context(build: &BuildkiteBuild) -> String {
    format!("eval-once-{}", build.job_with_retries())
}

/// An upload on its way.
pub(in crate::recording) struct Upload<'a> {
    build: &'a BuildkiteBuild,
    /// The folder for temporary files.
    temporary: &'a Path,
    state: &'a StateFolder,
    supervisor: &'a mut Supervisor,
    log: Log,
}

impl<'a> Upload<'a> {
    /// An upload to this build.
    pub(in crate::recording) fn new(
        build: &'a BuildkiteBuild,
        temporary: &'a Path,
        state: &'a StateFolder,
        supervisor: &'a mut Supervisor,
        log: &Log,
    ) -> Self {
        Self {
            build,
            temporary,
            state,
            supervisor,
            log: log.clone(),
        }
    }

    /// The plan of an earlier try of this recording; where there is none to follow, what one that is not followed has steps for.
    /// `recording` is the recording's identity.
    ///
    /// A plan that another job may have made is not followed, with a warning.
    ///
    /// # Errors
    /// Buildkite cannot be asked (75); there is no `buildkite-agent` (69); this job has uploaded another recording before (64).
    pub(in crate::recording) fn earlier_plan(
        &mut self,
        recording: &str,
    ) -> Result<Result<UploadPlan, PlannedTargets>, Failure> {
        if let Some(other) = self.state.note(&self.note_of_job(), NOTES_LAST)
            && other != recording
        {
            return Err(Failure::new(
                Class::Config,
                "this job has uploaded another recording already, and a step can upload only one",
            )
            .hint("give each recording a step of its own, or record all of them as one"));
        }
        let line = command::get_meta_data(&plan_artifact::plan_mark(self.build, recording));
        let mark = self.ask(
            &line,
            "look for the plan of an earlier try of this recording",
        )?;
        let mark = mark.text();
        let Some(mark) = PlanMark::read(&mark) else {
            if mark.is_empty() {
                self.begin(recording)?;
            }
            return Ok(Err(PlannedTargets::default()));
        };
        let plan = match self.plan_of(mark, recording)? {
            Ok(plan) => plan,
            Err(doubt) => {
                // Not a failure: steps that are uploaded already are found by their keys.
                self.log.warn(format_args!(
                    "the plan of an earlier try is not followed, because {doubt}; the targets are evaluated again"
                ));
                return self.planned_by(mark.job).map(Err);
            }
        };
        self.log.say(
            "an earlier try of this recording has planned its upload: following that plan, without another evaluation",
        );
        Ok(Ok(plan))
    }

    /// Marks the recording as one that has begun: should it leave no plan, a summary knows that there was one.
    fn begin(&mut self, recording: &str) -> Result<(), Failure> {
        let name = plan_artifact::plan_mark(self.build, recording);
        let line = command::set_meta_data(&name, &plan_artifact::begun(&self.build.job));
        self.ask(&line, "mark the recording as begun").map(drop)
    }

    /// What the plan of this job, which is not followed, has steps for. Any job may have made it, so that what is wrong with it is no
    /// failure.
    fn planned_by(&mut self, job: &str) -> Result<PlannedTargets, Failure> {
        let doing = "get the plan of the earlier try";
        let plan = plan_artifact::text_of(
            self.supervisor,
            self.temporary,
            job,
            doing,
            plan_artifact::PATIENCE,
        )?;
        let planned = plan.ok().and_then(|plan| PlannedTargets::of(&plan));
        Ok(planned.unwrap_or_default())
    }

    /// The plan that this mark names, or what raises a doubt that an earlier try of this step made it.
    fn plan_of(
        &mut self,
        mark: PlanMark<'_>,
        recording: &str,
    ) -> Result<Result<UploadPlan, String>, Failure> {
        if let Some(doubt) = self.doubt(mark, recording)? {
            return Ok(Err(doubt));
        }
        let doing = "get the plan of the earlier try";
        let json = plan_artifact::download(self.supervisor, self.temporary, mark.job, doing)?;
        let Some(json) = json else {
            return Ok(Err(format!(
                "Buildkite does not have the artifact of job {}",
                mark.job
            )));
        };
        if Some(&*sha256(json.as_bytes())) != mark.sha256 {
            return Ok(Err(format!(
                "the artifact of job {} is not the one that its mark names",
                mark.job
            )));
        }
        Ok(match UploadPlan::read(&json) {
            Ok(plan) if plan.step != self.build.step => {
                Err(format!("it is the plan of the step {}", plan.step))
            }
            read => read.map_err(|failure| failure.to_string()),
        })
    }

    /// What raises a doubt, before a plan is downloaded, that an earlier try of this step made it; see the module's documentation.
    fn doubt(&mut self, mark: PlanMark<'_>, recording: &str) -> Result<Option<String>, Failure> {
        let PlanMark { job, sha256, .. } = mark;
        let is_own = job == self.build.job;
        if !is_own && !self.build.is_retry {
            return Ok(Some(
                "this job is the first try of its step (BUILDKITE_RETRY_COUNT)".to_owned(),
            ));
        }
        let Some(sha256) = sha256 else {
            return Ok(Some("an older version of eval-once made it".to_owned()));
        };
        if mark.recording != Some(recording) {
            return Ok(Some("it is the plan of another recording".to_owned()));
        }
        match self.seal(mark) {
            Err(doubt) => return Ok(Some(doubt)),
            Ok(Some(seal)) if mark.seal != Some(&seal) => {
                return Ok(Some(
                    "its seal is not made with the signing key of this agent".to_owned(),
                ));
            }
            Ok(None) if self.noted(recording) != Some(mark.write()) => {
                return Ok(Some(
                    "this host has no note of it (another host or another job may have made it)"
                        .to_owned(),
                ));
            }
            Ok(_) => {}
        }
        let line = command::artifacts_of_job(plan_artifact::PLAN, job);
        let listed = self.ask(
            &line,
            "look for the plan of an earlier try of this recording",
        )?;
        let listed: Vec<_> = ListedArtifact::all_in(&listed.text())
            .into_iter()
            .filter(|artifact| artifact.job == job)
            .collect();
        Ok(match &listed[..] {
            [] => Some(format!("job {job} does not have that artifact")),
            [artifact] if artifact.sha256.eq_ignore_ascii_case(sha256) => {
                let size = artifact.size;
                (size > plan_artifact::LARGEST).then(|| format!("it has {size} bytes"))
            }
            [_] => Some(format!(
                "the artifact of job {job} is not the one that its mark names"
            )),
            [_, _, ..] => Some(format!("job {job} has several artifacts of its name")),
        })
    }

    /// The seal of a plan that was made where this agent's signing key is; none where it signs nothing.
    ///
    /// # Errors
    /// This agent signs, but has no key for seals: why not.
    fn seal(&self, mark: PlanMark<'_>) -> Result<Option<String>, String> {
        match &self.build.signing {
            Signing::Unsigned => Ok(None),
            Signing::ByService => Err(
                "this agent signs steps with a key in a key management service, which no plan can be sealed with"
                    .to_owned(),
            ),
            Signing::WithFile(file) => {
                let key = std::fs::read(file).map_err(|error| {
                    format!("the signing key {} cannot be read: {error}", file.display())
                })?;
                Ok(Some(plan_artifact::seal(&key, self.build, mark)))
            }
        }
    }

    /// The mark of the plan that this host has saved last for this recording.
    fn noted(&self, recording: &str) -> Option<String> {
        self.state.note(&self.note(recording), NOTES_LAST)
    }

    /// The name of that note.
    fn note(&self, recording: &str) -> String {
        let mark = plan_artifact::plan_mark(self.build, recording);
        format!("plan-{}", fingerprint([&self.build.build, &mark]))
    }

    /// The name of the note of what this job has recorded. No mark of the build could say so: another job could fail this one by it.
    fn note_of_job(&self) -> String {
        format!(
            "recorded-{}",
            fingerprint([&self.build.build, &self.build.job])
        )
    }

    /// Claims the keys that begin with `area`, and go on with attribute paths, for these phases of the recording with this identity.
    ///
    /// Each sets its own claim before it looks for others: of two that do so at once, one at least sees the other.
    ///
    /// # Errors
    /// Another recording of the build may have such keys (64); Buildkite cannot be asked (75).
    pub(in crate::recording) fn claim_keys(
        &mut self,
        area: &str,
        recording: &str,
        phases: Phases,
    ) -> Result<(), Failure> {
        let doing = "look for other recordings with `keys: attr`";
        let owner = self.build.job_with_retries();
        let own = Claim::new(&owner, &self.build.job, recording, phases, area);
        self.ask(&command::set_meta_data(&own.name(), &own.write()), doing)?;
        let keys = self.ask(&command::meta_data_keys(), doing)?;
        let keys = keys.text();
        for name in keys
            .lines()
            .map(str::trim)
            .filter(|key| Claim::is_name(key))
        {
            let claim = self.ask(&command::get_meta_data(name), doing)?;
            let claim = claim.text();
            let Some(other) = Claim::read(&claim).filter(|other| own.excludes(other)) else {
                continue;
            };
            // It uploads nothing, so that a retry of the other one is not refused because of it.
            let withdrawn = command::set_meta_data(&own.name(), "withdrawn");
            self.ask(&withdrawn, doing)?;
            return Err(refuse(format_args!(
                "the recording of job {} has `keys: attr` too, and keys that begin with {} (meta-data `{name}`); those of this one begin with {area}",
                shortened(other.job, SHOWN_AT_MOST),
                shortened(other.area, SHOWN_AT_MOST),
            ))
            .hint("give each recording its own `key-prefix`"));
        }
        Ok(())
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
        let plan = plan.to_json()?;
        plan_artifact::upload(self.supervisor, self.temporary, &plan)?;
        let sum = sha256(plan.as_bytes());
        let mut mark = PlanMark {
            job: &self.build.job,
            recording: Some(recording),
            sha256: Some(&sum),
            seal: None,
        };
        // A retry says why it cannot follow a plan without a seal, or without a note.
        let seal = self.seal(mark).ok().flatten();
        mark.seal = seal.as_deref();
        let mark = mark.write();
        let _ = self.state.write_note(&self.note_of_job(), recording);
        let _ = self.state.write_note(&self.note(recording), &mark);
        let line = command::set_meta_data(&plan_artifact::plan_mark(self.build, recording), &mark);
        self.ask(&line, "mark the plan as saved").map(drop)
    }

    /// Uploads the chunks of the plan that are not uploaded yet; then its document and its annotation.
    ///
    /// # Errors
    /// Buildkite rejects a chunk (64), or cannot be reached (75). Where it names the step that it rejects, all others are uploaded.
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
        let mut rejections = Rejections::default();
        for (number, chunk) in plan.chunks.iter().enumerate() {
            let mark = plan_artifact::mark(&self.build.step, number);
            let mut missing = chunk.keys.clone();
            if marks.lines().any(|line| line.trim() == mark) {
                // Any job of the build can set a mark: it only says that asking comes before uploading.
                let existing = self.existing(&missing)?;
                missing.retain(|key| !existing.contains(key));
                if missing.is_empty() {
                    continue;
                }
            }
            self.upload_chunk(chunk, missing, (number + 1, count), &mut rejections)?;
            let line = command::set_meta_data(&mark, "applied");
            self.ask(&line, "mark a chunk as uploaded")?;
        }
        self.publish(&plan.document, &plan.annotation)?;
        rejections.first.map_or(Ok(()), Err)
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

    /// Uploads the steps of a chunk with the keys `missing`, or those of them that do not exist yet.
    fn upload_chunk(
        &mut self,
        chunk: &Chunk,
        mut missing: Vec<String>,
        (number, count): (usize, usize),
        rejections: &mut Rejections,
    ) -> Result<(), Failure> {
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
            if !is_used(&message) {
                // The repository chose what is rejected, and one attribute must not take others with it.
                let failure = rejected(&message, chunk, number);
                let Some(at) = blamed(&message, &missing).filter(|_| rejections.more()) else {
                    return Err(failure);
                };
                match rejections.first {
                    Some(_) => self.log.warn(failure),
                    None => rejections.first = Some(failure),
                }
                missing.remove(at);
                if missing.is_empty() {
                    return Ok(());
                }
                continue;
            }
            let used = named(&message, &missing);
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
