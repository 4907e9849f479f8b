//! One step that follows a target: `meta.eval-once.steps`.
//!
//! What it waits for in the pipeline is not known here.

use serde_json::{Value, json};

use super::labels::{attr_name, check_names, inert, label};
use super::maker::{StepMaker, add_outputs};
use super::retry::infrastructure_rules;
use super::variables;
use super::wishes::{
    BuildWishes, FOR_NO_ALWAYS, FOR_OUTPUTS, FOR_TARGETS, StepWishes, build_wishes, with_hint,
};
use crate::buildkite::pipeline::{BlockStep, CommandStep};
use crate::exit::Failure;
use crate::keys::table::KeyOwner;
use crate::keys::{KeyReader, Keys, string};
use crate::recording::Target;
use crate::recording::following::{Follower, FollowerState, RunDerivation, RunTarget};
use crate::recording::pipeline::limits::{JOBS_PER_UPLOAD, LABEL_AT_MOST};
use crate::secrets::shortened;

/// What a step that follows a target waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// The target's step.
    Target,
    /// The steps of all targets of the recording.
    All,
    /// Nothing.
    Nothing,
}

/// A step that follows a target, still without its dependencies on targets.
pub(super) struct FollowerStep {
    pub(super) step: CommandStep,
    /// The question that somebody has to answer before.
    pub(super) confirm: Option<BlockStep>,
    pub(super) after: After,
    /// Whether it also runs where what it waits for has failed.
    pub(super) always: bool,
    /// Whether there is no such step where the target is skipped.
    pub(super) unless_skipped: bool,
}

/// What the step does.
enum FollowerTask<'a> {
    Run(&'a RunDerivation, &'a RunTarget),
    Command(Value),
}

/// What its keys say.
struct FollowerWishes {
    command: Option<Value>,
    needs_output: bool,
    after: After,
    always: bool,
    unless_skipped: bool,
    confirm: Option<String>,
    buildkite: StepWishes,
}

/// Whether the keys of a step ask for the target's outputs.
pub(super) fn needs_output(follower: &Follower) -> bool {
    match &follower.meta.state {
        FollowerState::Read { keys, .. } => keys.get("needs-output") == Some(&true.into()),
        _ => false,
    }
}

impl StepMaker<'_> {
    /// The step that follows this target.
    ///
    /// # Errors
    /// It does not evaluate, or makes no step that Buildkite or an agent would take; the sentence says why.
    pub(super) fn follower(
        &self,
        target: &Target,
        follower: &Follower,
    ) -> Result<FollowerStep, String> {
        check_names(&follower.attr())?;
        if follower.meta.name.trim().is_empty() {
            return Err("its name is empty".into());
        }
        let (keys, run) = match &follower.meta.state {
            FollowerState::Unread => {
                return Err(
                    "it is not known, because another step of the target does not evaluate".into(),
                );
            }
            FollowerState::Lost(None) => return Err("it does not evaluate".into()),
            FollowerState::Lost(Some(message)) => return Err(message.clone()),
            FollowerState::Read { keys, run } => (keys, run.as_ref().zip(follower.run.as_ref())),
        };
        let wishes = self.follower_wishes(keys.clone())?;
        self.check_circle(&follower.attr())
            .map_err(|message| format!("in its `buildkite`, {message}"))?;
        let doing = match (run, wishes.command) {
            (Some((run, as_drv)), None) => FollowerTask::Run(run, as_drv),
            (None, Some(command)) => FollowerTask::Command(command),
            (Some(_), Some(_)) => return Err("it has `run` and `command`: keep one".into()),
            (None, None) => {
                return Err(
                    "it has neither `run` (a derivation) nor `command` (text for the shell)".into(),
                );
            }
        };
        let buildkite = wishes.buildkite;
        let (key, confirm_key) = self.keys.follower(&follower.attr());
        let text = format!(
            "{} \u{2192} {}",
            attr_name(&follower.owner),
            follower.meta.name
        );
        let label = label(":nix:", &text);
        let mut step = self.follower_before_wishes(
            label.clone(),
            key,
            target,
            follower,
            &doing,
            wishes.needs_output,
        )?;
        let not_for_this: &[&str] = if wishes.always { &FOR_NO_ALWAYS } else { &[] };
        self.step
            .without(&[&FOR_TARGETS, &FOR_OUTPUTS, not_for_this])
            .merge_into(&mut step);
        match &doing {
            FollowerTask::Run(_, run) => self.merge_agents(&mut step, &run.system, &run.features),
            FollowerTask::Command(_) if wishes.needs_output => {
                self.merge_agents(&mut step, &target.system, &target.features);
            }
            FollowerTask::Command(_) => self.merge_common_agents(&mut step),
        }
        buildkite.merge_into(&mut step);
        let step = self.check(step)?;
        if step.jobs() > JOBS_PER_UPLOAD - 2 {
            return Err(format!(
                "it makes {} jobs, and Buildkite takes at most {JOBS_PER_UPLOAD} in one upload",
                step.jobs()
            ));
        }
        // Where the step is not there, nobody is asked.
        let confirm = wishes.confirm.filter(|_| step.may_run());
        let confirm = confirm.map(|question| BlockStep {
            block: shortened(&inert(&question), LABEL_AT_MOST),
            key: confirm_key,
            depends_on: Vec::new(),
            more: ["if", "branches", "allow_dependency_failure"]
                .into_iter()
                .filter_map(|name| Some((name.to_owned(), step.more.get(name)?.clone())))
                .collect(),
        });
        let step = self.with_command_carried(step);
        variables::fit(&step)?;
        Ok(FollowerStep {
            step,
            confirm,
            after: wishes.after,
            always: wishes.always,
            unless_skipped: wishes.unless_skipped,
        })
    }

    /// Reads the keys of a step that follows a target.
    fn follower_wishes(&self, mut keys: Keys) -> Result<FollowerWishes, String> {
        let buildkite = match keys.remove("buildkite") {
            None => StepWishes::default(),
            Some(Value::Object(keys)) => {
                StepWishes::read(&keys, &self.request.emit, self.schema)
                    .map_err(|message| format!("in its `buildkite`, {message}"))?
            }
            Some(other) => {
                let found = crate::keys::found(&other);
                return Err(format!("`buildkite` is {found}, and must be a map"));
            }
        };
        if buildkite.has("command") {
            return Err(
                "`buildkite.command` cannot be set: write `command` beside `buildkite`".into(),
            );
        }
        let read = || -> Result<_, Failure> {
            let mut reader = KeyReader::new(keys)?;
            for (key, expected) in [("run", "a derivation"), ("buildkite", "a map")] {
                reader.take::<()>(key, expected, |_| None)?;
            }
            let expected = "text for the shell, or a list of such";
            let command = reader.take("command", expected, |value| {
                let is_text =
                    |value: &Value| value.as_str().is_some_and(|it| !it.trim().is_empty());
                match &value {
                    Value::Array(lines) if !lines.is_empty() && lines.iter().all(is_text) => {}
                    one if is_text(one) => {}
                    _ => return None,
                }
                Some(Ok(value))
            })?;
            let wishes = FollowerWishes {
                command,
                needs_output: reader.boolean("needs-output")?.unwrap_or(false),
                after: reader
                    .choice(
                        "after",
                        [
                            ("target", After::Target),
                            ("all", After::All),
                            ("nothing", After::Nothing),
                        ],
                    )?
                    .unwrap_or(After::Target),
                always: reader.boolean("always")?.unwrap_or(false),
                unless_skipped: reader.boolean("unless-skipped")?.unwrap_or(false),
                confirm: reader.take("confirm", "a question", |value| {
                    string(value).filter(|text| !text.trim().is_empty()).map(Ok)
                })?,
                buildkite,
            };
            reader.finish(KeyOwner::Follower)?;
            Ok(wishes)
        };
        read().map_err(|failure| with_hint(&failure))
    }

    /// The step before any wishes: of our own where something is realised, else a plain one.
    fn follower_before_wishes(
        &self,
        label: String,
        key: String,
        target: &Target,
        follower: &Follower,
        doing: &FollowerTask<'_>,
        needs_output: bool,
    ) -> Result<Keys, String> {
        let mut step = match doing {
            FollowerTask::Command(_) if !needs_output => {
                let step = CommandStep {
                    label,
                    key,
                    ..CommandStep::default()
                };
                super::maker::keys_of(&step).map_err(|failure| failure.to_string())?
            }
            doing => {
                let record = self.follower_record(target, follower, doing, needs_output)?;
                let mut step = self
                    .begin(label, key, record)
                    .map_err(|failure| failure.to_string())?;
                // A deploy that was in the middle of its work is not begun again because the agent was lost.
                step.insert(
                    "retry".into(),
                    json!({ "automatic": infrastructure_rules() }),
                );
                step
            }
        };
        if let FollowerTask::Command(command) = doing {
            step.insert("command".into(), command.clone());
        }
        Ok(step)
    }

    /// The record of a step that realises something: what it runs, the target, or both.
    fn follower_record(
        &self,
        target: &Target,
        follower: &Follower,
        doing: &FollowerTask<'_>,
        needs_output: bool,
    ) -> Result<Keys, String> {
        let eval_once = target.meta.eval_once.as_ref();
        let BuildWishes { keys, fallback } = eval_once
            .map_or(Ok(BuildWishes::default()), |keys| {
                build_wishes(keys, self.request)
            })?;
        let mut build_keys = self.request.build_keys.clone();
        build_keys.extend(keys);
        // The target's step pushes and uploads its outputs, and what follows has a command of its own.
        for key in ["artifacts", "command", "push", "push-partial"] {
            build_keys.remove(key);
        }
        let mut of_target = self.record(&target.attr);
        add_outputs(&mut of_target, &target.drv, &target.outputs);
        let FollowerTask::Run(run, as_drv) = doing else {
            of_target.extend(build_keys);
            if let Some(fallback) = fallback {
                fallback.replace_in(&mut of_target, target);
            }
            return Ok(of_target);
        };
        let mut record = self.record(&follower.meta.attr_of_run(&follower.owner));
        let out_link = build_keys.remove("out-link");
        record.extend(build_keys);
        record.insert("out-link".into(), false.into());
        record.insert("run".into(), run.program.as_deref().unwrap_or("*").into());
        add_outputs(&mut record, &run.drv, &as_drv.outputs);
        if needs_output {
            // The rest is the same for both.
            of_target.retain(|key, _| matches!(key.as_str(), "attr" | "call" | "drv" | "outputs"));
            of_target.extend(out_link.map(|link| ("out-link".to_owned(), link)));
            record.insert("needs".into(), of_target.into());
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests;
