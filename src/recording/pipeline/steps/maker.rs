//! What all steps have in common: the record, our plugin or command, the user's wishes, and the check that Buildkite would take them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Records;
use super::checkout;
use super::circles::{Circles, circles, wished};
use super::commit_status;
use super::record::{source, text};
use super::retry::retry_rules;
use super::step_key::StepKeys;
use super::variables::{self, room_for_record, size};
use super::wishes::{StepWishes, merge};
use crate::buildkite::pipeline::{Automatic, CommandStep, Plugin, Retry, StepCommand};
use crate::buildkite::schema::Schema;
use crate::exit::{Class, Classify as _, Failure};
use crate::keys::{Keys, refuse};
use crate::nix::{AttrPath, DrvPath};
use crate::recording::pipeline::limits::VARIABLE_AT_MOST;
use crate::recording::{Emit, KnownOutputs, RecordingRequest, Target};

/// The command of a step that does not use our plugin.
pub(super) const STEP: &str = "eval-once step";

/// A target's step, still without its dependencies on other targets.
pub(super) struct UnlinkedStep {
    pub(super) step: Box<CommandStep>,
    /// Why its target needs no build, if it needs none.
    pub(super) skip: Option<String>,
    /// Its record, where its target can be built by a step for several: nothing but the record tells its step from others of its
    /// system.
    pub(super) record: Option<Keys>,
}

/// What all steps of a recording have in common.
pub(super) struct StepMaker<'a> {
    pub(super) request: &'a RecordingRequest,
    pub(super) schema: &'a Schema,
    /// What is evaluated, as keys.
    pub(super) source: Keys,
    /// The user's `step`.
    pub(super) step: StepWishes,
    /// The keys of the steps.
    pub(super) keys: StepKeys,
    /// The agent tags of steps without a system of their own: those of the system that most targets have.
    common_agents: Option<Keys>,
    /// The user's `agents`, by system or feature.
    agents: BTreeMap<&'a str, Keys>,
    /// The derivations that can be called as well: their steps must not call them.
    callable: BTreeSet<AttrPath>,
    /// The steps that would wait for themselves.
    circles: Circles,
    /// The most bytes of the record of a step that has no wishes but the user's.
    pub(super) room: usize,
    /// A step of each kind, without its record. It was checked.
    pub(super) checked: RefCell<BTreeMap<StepKind, CommandStep>>,
}

/// What makes the steps of targets without wishes differ, besides their labels, keys and records: the system, the features, and whether
/// there is a timeout.
type StepKind = (String, Vec<String>, bool);

impl<'a> StepMaker<'a> {
    /// # Errors
    /// The user's `step` or `agents` make no step that Buildkite would take, or the expression is too large to be in every
    /// step (64).
    pub(super) fn new(request: &'a RecordingRequest, schema: &'a Schema) -> Result<Self, Failure> {
        let wrong = |message: String| refuse(format_args!("in the key `step`, {message}"));
        let step = StepWishes::read(&request.step, &request.emit, schema).map_err(wrong)?;
        checkout::check_plugin(request).map_err(refuse)?;
        checkout::skips(request, &[&step]).map_err(wrong)?;
        if request.batch.is_some() {
            if request.notify_statuses {
                return Err(refuse(
                    "`batch` cannot be combined with `notify`: a status is of one step",
                ));
            }
            // What each target's step would do besides would have to be done for each target of a batch.
            let other = ["command", "skip", "matrix", "parallelism"];
            if let Some(key) = other.into_iter().find(|key| step.has(key)) {
                return Err(refuse(format_args!(
                    "`batch` cannot be combined with `{key}` in `step`"
                )));
            }
        }
        let mut agents = BTreeMap::new();
        for (name, tags) in &request.agents {
            let mut probe = Keys::new();
            probe.insert("agents".into(), Value::Object(tags.clone()));
            schema
                .check_step(&Value::Object(probe))
                .map_err(|message| refuse(format_args!("for `agents.{name}`, {message}")))?;
            agents.insert(name.as_str(), tags.clone());
        }
        let source = source(&request.root, &request.options);
        if size(&source) > VARIABLE_AT_MOST / 2 {
            return Err(refuse(format_args!(
                "the keys of what is evaluated take {} bytes in the record of every step, more than an agent can pass to a job",
                size(&source)
            ))
            .hint("put the expression into a file of the repository"));
        }
        let mut maker = Self {
            request,
            schema,
            source,
            step,
            keys: StepKeys::default(),
            common_agents: None,
            agents,
            callable: BTreeSet::new(),
            circles: Circles::new(),
            room: 0,
            checked: RefCell::default(),
        };
        let mut probe = maker.begin("label".into(), "key".into(), Keys::new())?;
        maker.step.merge_into(&mut probe);
        let probe = maker.check(probe).map_err(wrong)?;
        variables::fit(&probe).map_err(wrong)?;
        maker.room = room_for_record(&probe);
        if maker.room < VARIABLE_AT_MOST / 2 {
            return Err(wrong(format!(
                "the plugins take {} bytes, more than an agent can pass to a job beside a record",
                VARIABLE_AT_MOST - maker.room
            )));
        }
        Ok(maker)
    }

    /// The maker of the steps of these targets.
    ///
    /// # Errors
    /// The user's `step` waits for one of these steps, which has the same wishes as all (64).
    pub(super) fn with_targets(
        mut self,
        records: &Records<'_>,
        keys: StepKeys,
    ) -> Result<Self, Failure> {
        let wished = self.step.get("depends_on").map_or_else(Vec::new, wished);
        let is_own = |key: &&str| keys.has(key, self.request.phases);
        if let Some(key) = wished.into_iter().find(is_own) {
            return Err(refuse(format_args!(
                "in the key `step`, `depends_on` names {key}, a step of this recording, which would wait for itself"
            )));
        }
        self.common_agents = most_common_system(records.targets)
            .and_then(|system| self.agents.get(system))
            .cloned();
        self.callable.clone_from(records.callable);
        if self.request.meta {
            self.circles = circles(records, &keys);
        }
        self.keys = keys;
        Ok(self)
    }

    /// Checks that the metadata of this attribute does not wish its step to wait for itself.
    ///
    /// # Errors
    /// It does; the sentence names the key.
    pub(super) fn check_circle(&self, attr: &AttrPath) -> Result<(), String> {
        self.circles.get(attr).map_or(Ok(()), |key| {
            Err(format!(
                "`depends_on` names {key}, a step that waits for this one or is this one"
            ))
        })
    }

    /// Merges the agent tags of this system and these features.
    pub(super) fn merge_agents(&self, step: &mut Keys, system: &str, features: &[String]) {
        let features = features.iter().map(|feature| format!("feature:{feature}"));
        for name in std::iter::once(system.to_owned()).chain(features) {
            if let Some(tags) = self.agents.get(name.as_str()) {
                merge(step, "agents", &Value::Object(tags.clone()));
            }
        }
    }

    /// Merges the agent tags of steps without a system of their own.
    pub(super) fn merge_common_agents(&self, step: &mut Keys) {
        if let Some(tags) = &self.common_agents {
            merge(step, "agents", &Value::Object(tags.clone()));
        }
    }

    /// The step, reported as the commit status of this target, or of all, where that is asked for.
    pub(super) fn with_status(&self, mut step: CommandStep, target: Option<&str>) -> CommandStep {
        if self.request.notify_statuses {
            commit_status::add(&mut step, target);
        }
        step
    }

    /// Lets a step that evaluates nothing skip its checkout, where those of targets do.
    pub(super) fn skip_checkout(&self, step: &mut Keys) {
        if checkout::skips(self.request, &[&self.step]).unwrap_or(false) {
            step.extend(checkout::properties());
        }
    }

    /// Ends making a step that has no system of its own.
    pub(super) fn finish(&self, mut step: Keys) -> Result<CommandStep, Failure> {
        self.merge_common_agents(&mut step);
        self.check(step)
            .map_err(|message| Failure::new(Class::Bug, message))
    }

    /// The record of an attribute, without the findings of the evaluation.
    pub(super) fn record(&self, attr: &AttrPath) -> Keys {
        let mut record = self.source.clone();
        record.insert("attr".into(), attr.names().into());
        if self.callable.contains(attr) {
            record.insert("call".into(), false.into());
        }
        record
    }

    /// A step before any wishes.
    pub(super) fn begin(&self, label: String, key: String, record: Keys) -> Result<Keys, Failure> {
        let mut step = CommandStep {
            label,
            key,
            retry: Some(our_retry().into()),
            ..CommandStep::default()
        };
        match &self.request.emit {
            Emit::Plugin(reference) => step.plugins.push(our_plugin(reference, record.into())),
            Emit::Command => {
                step.command = Some(StepCommand::One(STEP.into()));
                step.env
                    .insert("EVAL_ONCE_STEP".into(), text(&record).into());
            }
        }
        keys_of(&step)
    }

    pub(super) fn check(&self, step: Keys) -> Result<CommandStep, String> {
        let step = Value::Object(step);
        self.schema.check_step(&step)?;
        serde_json::from_value(step).map_err(|error| error.to_string())
    }
}

/// Adds a `.drv` and its outputs, as far as their paths are known.
pub(super) fn add_outputs(record: &mut Keys, drv: &DrvPath, outputs: &KnownOutputs) {
    record.insert("drv".into(), drv.as_store_path().as_str().into());
    if !outputs.is_empty() {
        let outputs = outputs.iter();
        record.insert(
            "outputs".into(),
            outputs
                .map(|(name, path)| (name.to_owned(), path.as_str().into()))
                .collect::<Keys>()
                .into(),
        );
    }
}

/// Our retry rules, before any wishes.
pub(super) fn our_retry() -> Retry {
    Retry {
        automatic: Some(Automatic::Rules(retry_rules())),
        manual: None,
    }
}

/// Our plugin with this configuration.
pub(super) fn our_plugin(reference: &str, configuration: Value) -> Plugin {
    let plugin = std::iter::once((reference.to_owned(), configuration));
    Plugin::Configured(plugin.collect())
}

/// The system that most targets are built on; of several alike, the first by name.
fn most_common_system(targets: &[Target]) -> Option<&str> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for target in targets {
        *counts.entry(&target.system).or_default() += 1;
    }
    let most = counts.values().copied().max()?;
    counts
        .into_iter()
        .find(|(_, count)| *count == most)
        .map(|(system, _)| system)
}

/// The properties of a step.
pub(super) fn keys_of(step: &CommandStep) -> Result<Keys, Failure> {
    match serde_json::to_value(step).classify(Class::Bug, || "cannot write a step".to_owned())? {
        Value::Object(keys) => Ok(keys),
        _ => Err(Failure::new(Class::Bug, "a step is not a map")),
    }
}

#[cfg(test)]
mod tests {
    use crate::recording::pipeline::steps::fixtures::made_steps;
    use serde_json::json;

    use crate::recording::pipeline::fixtures::*;

    #[test]
    fn agents_are_chosen_by_system_and_features() {
        let mut request = request_wishing(&json!({ "agents": { "top": "step" } }));
        let tags = [
            (
                "x86_64-linux",
                json!({ "queue": "linux", "top": "system", "size": "s" }),
            ),
            (
                "feature:kvm",
                json!({ "kvm": "true", "size": "m", "top": "feature" }),
            ),
            ("aarch64-linux", json!({ "queue": "arm" })),
        ];
        for (name, tags) in tags {
            request
                .agents
                .insert(name.into(), tags.as_object().unwrap().clone());
        }
        let mut needy = target(1, &["a"]);
        needy.features = vec!["kvm".into(), "unknown".into()];
        let step = &made_steps(&[needy], &request)[0];
        assert_eq!(
            step["agents"],
            json!({ "queue": "linux", "kvm": "true", "size": "m", "top": "feature" })
        );
    }
}
