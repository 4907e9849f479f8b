//! The upload: chunk by chunk, once each, whatever dies on the way.
//!
//! The plan, byte for byte, is an artifact before the first chunk is uploaded, and a retried recording of the same step follows
//! it. Each chunk that is known to be applied leaves a mark in the build's meta-data. One without a mark may have been applied
//! all the same, also after its client died: that Buildkite rejects its keys tells so, and no question that is asked before.

pub(in crate::recording) mod annotation;
pub mod plan;
pub(crate) mod plan_artifact;

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use self::plan::{Chunk, UploadPlan};
use self::plan_artifact::PlanMark;
use crate::agent;
use crate::buildkite::agent as command;
use crate::buildkite::pipeline::to_json;
use crate::command_line::CommandLine;
use crate::exit::{Class, Classify as _, Failure};
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
    pub(in crate::recording) build: &'a BuildkiteBuild,
    /// The folder for temporary files.
    pub(in crate::recording) temporary: &'a Path,
    pub(in crate::recording) supervisor: &'a mut Supervisor,
    pub(in crate::recording) log: Log,
}

impl Upload<'_> {
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
            let pipeline = if missing.len() == chunk.keys.len() {
                chunk.pipeline.clone()
            } else {
                part(&chunk.pipeline, &missing)?
            };
            let Some(message) = self.upload(&pipeline)? else {
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

/// What Buildkite says where it rejects a pipeline, and nothing where something else went wrong: `… Pipeline upload rejected:
/// MESSAGE`, or at once `… 422 Unprocessable Entity: MESSAGE`.
fn rejection(said: &str) -> Option<String> {
    let starts = ["upload rejected: ", "422 Unprocessable Entity: ", " 422 "];
    said.lines().rev().find_map(|line| {
        let message = starts
            .iter()
            .find_map(|start| line.split_once(start).map(|(_, rest)| rest))?;
        Some(message.trim().to_owned())
    })
}

/// Whether Buildkite rejects a pipeline because a key in it is used already.
fn is_used(message: &str) -> bool {
    message.contains("already been used")
}

/// The failure of a chunk that Buildkite does not take, with the step that it is about.
fn rejected(message: &str, chunk: &Chunk, number: usize) -> Failure {
    let label_of = |key: &str| {
        steps(&serde_json::from_str(&chunk.pipeline).unwrap_or_default())
            .into_iter()
            .find(|step| step["key"] == key)
            .and_then(|step| step["label"].as_str().map(str::to_owned))
    };
    let named = chunk.keys.iter().find(|key| message.contains(key.as_str()));
    let about = match named {
        Some(key) => format!(
            "the step {} ({key})",
            label_of(key).unwrap_or_else(|| "without a label".into())
        ),
        None if chunk.keys.len() == 1 => format!(
            "the step {}",
            label_of(&chunk.keys[0]).unwrap_or_else(|| chunk.keys[0].clone())
        ),
        None => {
            let labels: Vec<String> = chunk
                .keys
                .iter()
                .take(10)
                .filter_map(|key| label_of(key))
                .collect();
            let more = chunk.keys.len().saturating_sub(labels.len());
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            format!("one of the steps {}{more}", labels.join(", "))
        }
    };
    Failure::new(
        Class::Config,
        format_args!("Buildkite rejects upload {number}: {message}: it is about {about}"),
    )
    .hint("`--dry-run` prints the pipeline; uploads before this one have been applied")
}

/// All steps of a pipeline, those in groups too.
fn steps(pipeline: &Value) -> Vec<Value> {
    let steps = pipeline["steps"].as_array().cloned().unwrap_or_default();
    steps
        .into_iter()
        .flat_map(|step| match step.get("steps") {
            Some(Value::Array(inner)) => inner.clone(),
            _ => vec![step],
        })
        .collect()
}

/// The part of a pipeline that has these keys.
fn part(pipeline: &str, keys: &[String]) -> Result<String, Failure> {
    let doing = || "cannot read a pipeline of ours".to_owned();
    let mut pipeline: Value = serde_json::from_str(pipeline).classify(Class::Bug, doing)?;
    let wanted = |step: &Value| {
        step["key"]
            .as_str()
            .is_some_and(|key| keys.iter().any(|wanted| wanted == key))
    };
    if let Some(steps) = pipeline["steps"].as_array_mut() {
        for step in steps.iter_mut() {
            if let Some(inner) = step.get_mut("steps").and_then(Value::as_array_mut) {
                inner.retain(wanted);
            }
        }
        steps.retain(|step| match step.get("steps").and_then(Value::as_array) {
            Some(inner) => !inner.is_empty(),
            None => wanted(step),
        });
    }
    to_json(&pipeline).classify(Class::Bug, doing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_rejection_is_told_from_a_buildkite_that_cannot_be_reached() {
        for said in [
            "2026-01-01 INFO x\nfatal: Failed to upload and process pipeline: Pipeline upload rejected: The key \"a\" has already been used by another step in this build\n",
            "error: POST https://x/pipelines: 422 Unprocessable Entity: The key \"a\" has already been used by another step in this build",
        ] {
            let message = rejection(said).unwrap();
            assert!(
                message.starts_with("The key \"a\"") && is_used(&message),
                "{message}"
            );
        }
        assert_eq!(rejection("fatal: dial tcp: connection refused"), None);
        assert_eq!(rejection("500 Internal Server Error"), None);
    }

    #[test]
    fn what_is_left_of_a_chunk_is_the_same_steps_without_empty_groups() {
        let pipeline = json!({"steps": [
            {"key": "a", "label": "A"},
            {"group": "g", "steps": [{"key": "b"}, {"key": "c"}]},
            {"group": "h", "steps": [{"key": "d"}]},
        ]});
        let left = part(&pipeline.to_string(), &["c".into(), "a".into()]).unwrap();
        let left: Value = serde_json::from_str(&left).unwrap();
        assert_eq!(
            left,
            json!({"steps": [{"key": "a", "label": "A"}, {"group": "g", "steps": [{"key": "c"}]}]})
        );
    }

    #[test]
    fn a_rejected_chunk_is_told_with_the_step_it_is_about() {
        let chunk = Chunk {
            keys: vec!["drv-a".into(), "drv-b".into()],
            pipeline: json!({"steps": [{"key": "drv-a", "label": "one"}, {"key": "drv-b", "label": "two"}]}).to_string(),
        };
        let told = rejected("step drv-b: `x` is not a valid property", &chunk, 3).to_string();
        assert!(
            told.contains("the step two (drv-b)") && told.contains("upload 3"),
            "{told}"
        );
        let told = rejected("something", &chunk, 1).to_string();
        assert!(told.contains("one of the steps one, two"), "{told}");
    }
}
