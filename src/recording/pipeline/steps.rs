//! From records to steps: a pure function.
//!
//! What repositories choose (names, metadata) and what users configure meets here, and the result has to be a pipeline that
//! Buildkite takes: whatever would get an upload rejected is found here, and costs one step instead of a chunk.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_json::{Value, json};

use super::edges::Edges;
use crate::build_keys::{self, BuildKeys};
use crate::buildkite::pipeline::{
    Automatic, CommandStep, Dependency, Plugin, Retry, RetryRule, StepCommand, StepSkip,
};
use crate::buildkite::schema::Schema;
use crate::exit::{Class, Classify as _, Failure};
use crate::keys::table::KeyOwner;
use crate::keys::{KeyReader, Keys, refuse};
use crate::nix::{Argument, AttrPath, Evaluation, Source};
use crate::recording::request::NO_OTHER_HOOK;
use crate::recording::upload::plan::{self, JOBS_PER_UPLOAD, PlannedStep};
use crate::recording::{AttrError, Emit, RecordingRequest, SkipStyle, Target, hash_of};
use crate::text::{is_unseen, shortened};

/// How many jobs a build can have, in all: also those that it had before, and each retry.
pub const JOBS_PER_BUILD: usize = 4_000;

/// The most bytes of a record. It travels in environment variables, up to three times in one job, and Linux takes at most
/// 128 KiB in each of them.
const RECORD_AT_MOST: usize = 100 << 10;

/// The command of a step that is not our plugin's.
const STEP: &str = "eval-once step";

/// The most characters of a label.
const LABEL_AT_MOST: usize = 200;

/// The most characters of a reason to skip a step; Buildkite rejects longer ones.
const REASON_AT_MOST: usize = 70;

/// The most characters of what is wrong with a target.
const MESSAGE_AT_MOST: usize = 4096;

/// What of the user's `step` is for targets alone: what it runs instead, how often, and what it is called. A broken target must
/// not be green because its step runs something else, or nothing.
const FOR_TARGETS: [&str; 5] = ["command", "skip", "parallelism", "matrix", "label"];

/// What besides is nothing to a step without outputs.
const FOR_OUTPUTS: [&str; 1] = ["artifact_paths"];

/// What besides is nothing to the step that sums the build up: it waits for the targets that wait for others, runs whatever has
/// failed, and tells nobody that a target is done.
const FOR_ONE_OF_MANY: [&str; 4] = [
    "depends_on",
    "allow_dependency_failure",
    "cancel_on_build_failing",
    "notify",
];

/// What was recorded.
#[derive(Debug, Clone, Copy)]
pub struct Records<'a> {
    /// The targets.
    pub targets: &'a [Target],
    /// The attributes that do not evaluate.
    pub broken: &'a [AttrError],
    /// The attributes that evaluate, but whose metadata cannot be used. A step that evaluates them again would find nothing
    /// wrong with them, so theirs only say what is wrong.
    pub refused: &'a [AttrError],
    /// The attributes that are derivations which can be called as well: their steps must not call them.
    pub callable: &'a BTreeSet<AttrPath>,
    /// The edges between the targets.
    pub edges: &'a Edges,
    /// For each target, why it needs no step, if it needs none.
    pub skip: &'a [Option<String>],
}

/// The steps of a recording.
#[derive(Debug, Clone, PartialEq)]
pub struct Steps {
    /// Those that are uploaded, in topological order; error steps first.
    pub steps: Vec<PlannedStep>,
    /// What became of each target, in the order of the records.
    pub placed: Vec<TargetStep>,
    /// All attributes that have an error step: the broken and refused ones that were recorded, and targets whose own metadata
    /// makes no step that Buildkite would take.
    pub errors: Vec<AttrError>,
    /// How many skipped steps are left out because a build cannot have so many jobs.
    pub left_out: usize,
}

/// What became of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetStep {
    /// The key of its step.
    pub key: String,
    /// The keys of the steps that it waits for because of its `.drv`.
    pub depends_on: Vec<String>,
    /// Why its step is skipped or left out, if it is.
    pub skip: Option<String>,
}

/// Looks at what a user wants of every step, before anything is evaluated.
///
/// # Errors
/// The user's `step` or `agents` make no step that Buildkite would take, or the expression is too large to be in every step
/// (64).
pub fn check(request: &RecordingRequest, schema: &Schema) -> Result<(), Failure> {
    StepMaker::new(request, schema).map(drop)
}

/// Makes the steps. Whether any [`Steps::errors`] fail the recording (`on-error`) is the caller's to say.
///
/// # Errors
/// The user's `step` or `agents` make no step that Buildkite would take, the expression is too large to be in every step, or
/// more is to be built than a build can have jobs (64).
pub fn steps(
    records: &Records<'_>,
    request: &RecordingRequest,
    schema: &Schema,
) -> Result<Steps, Failure> {
    let mut maker = StepMaker {
        callable: records.callable.clone(),
        ..StepMaker::new(request, schema)?
    };
    maker.common_agents = most_common_system(records.targets)
        .and_then(|system| maker.agents.get(system))
        .cloned();
    let mut errors: Vec<AttrError> = [records.broken, records.refused].concat();

    let mut made = Vec::with_capacity(records.targets.len());
    for (i, target) in records.targets.iter().enumerate() {
        let skip = records.skip.get(i).and_then(Option::as_deref);
        made.push(maker.target(target, skip).map_err(|message| {
            errors.push(AttrError {
                attr: target.attr.clone(),
                message: Some(message),
            });
        }));
    }

    // Who was skipped or refused is waited for by nobody.
    let apart: Vec<bool> = made
        .iter()
        .map(|made| made.as_ref().map_or(true, |made| made.skip.is_some()))
        .collect();
    let edges = records.edges.without(&apart);
    let placed: Vec<TargetStep> = records
        .targets
        .iter()
        .zip(&made)
        .enumerate()
        .map(|(i, (target, made))| TargetStep {
            key: match made {
                Ok(_) => key(target),
                Err(()) => error_key(&target.attr),
            },
            depends_on: edges
                .of(i)
                .iter()
                .map(|at| key(&records.targets[*at]))
                .collect(),
            skip: made.as_ref().map_or(None, |made| made.skip.clone()),
        })
        .collect();

    let mut seen = HashSet::new();
    let mut planned: Vec<PlannedStep> = Vec::with_capacity(made.len() + errors.len());
    for (i, error) in errors.iter().enumerate() {
        let step = if i < records.broken.len() {
            maker.broken(error)?
        } else {
            maker.refused(error)?
        };
        if seen.insert(step.key.clone()) {
            planned.push(PlannedStep {
                step,
                group: None,
                skipped: false,
            });
        }
    }
    let mut made: Vec<Option<MadeStep>> = made.into_iter().map(Result::ok).collect();
    for i in edges.order() {
        let Some(MadeStep { mut step, skip }) = made[*i].take() else {
            continue;
        };
        if skip.is_some() && request.skip_style == SkipStyle::Omit {
            continue;
        }
        let ours = placed[*i].depends_on.iter().cloned().map(Dependency::Key);
        let theirs = std::mem::take(&mut step.depends_on);
        step.depends_on = ours.collect();
        for dependency in theirs {
            if !step.depends_on.contains(&dependency) {
                step.depends_on.push(dependency);
            }
        }
        let group = group(&records.targets[*i].attr, request.group_by);
        planned.push(PlannedStep {
            step,
            group,
            skipped: skip.is_some(),
        });
    }
    if request.summary {
        let step = maker.summary(&planned)?;
        planned.push(PlannedStep {
            step,
            group: None,
            skipped: false,
        });
    }
    let (mut steps, left_out) = fit(planned, request)?;
    if request.summary {
        wait_for_no_other(&mut steps);
    }
    Ok(Steps {
        steps,
        placed,
        errors,
        left_out,
    })
}

/// Takes from the last step, which sums the build up, what is left out: a build fails that has a step which waits for one that never
/// comes.
fn wait_for_no_other(steps: &mut [PlannedStep]) {
    let there: HashSet<String> = steps
        .iter()
        .map(|planned| planned.step.key.clone())
        .collect();
    let is_there = |dependency: &Dependency| match dependency {
        Dependency::Step { step, .. } => there.contains(step),
        Dependency::Key(_) => true,
    };
    if let Some(summary) = steps.last_mut() {
        summary.step.depends_on.retain(is_there);
    }
}

/// Leaves skipped steps out, from the end, until a build can have what is left; and says how many.
fn fit(
    mut steps: Vec<PlannedStep>,
    request: &RecordingRequest,
) -> Result<(Vec<PlannedStep>, usize), Failure> {
    // The job that records is one of the build's.
    let most = JOBS_PER_BUILD - 1;
    let all = steps.len();
    loop {
        let jobs: usize = plan::divide(&steps, request.chunk)
            .into_iter()
            .map(|range| plan::jobs(&steps[range]))
            .fold(0, usize::saturating_add);
        if jobs <= most {
            let left_out = all - steps.len();
            return Ok((steps, left_out));
        }
        if !steps.iter().any(|planned| planned.skipped) {
            let groups = if request.group_by == 0 {
                ""
            } else {
                ", groups counted"
            };
            return Err(refuse(format_args!(
                "{jobs} jobs are to be run{groups}, and a build can have {JOBS_PER_BUILD} with the one that records"
            ))
            .hint("leave targets out with `exclude`, or record parts of them in builds of their own, each with its `attr`"));
        }
        // A group or two may go with them that would have had room: nobody misses those.
        let mut over = jobs - most;
        let mut kept = Vec::with_capacity(steps.len());
        for planned in steps.into_iter().rev() {
            if planned.skipped && over > 0 {
                over = over.saturating_sub(planned.step.jobs());
            } else {
                kept.push(planned);
            }
        }
        kept.reverse();
        steps = kept;
    }
}

/// The key of a target's step: `drv-` and the hash of its `.drv`.
#[must_use]
pub fn key(target: &Target) -> String {
    format!("drv-{}", target.drv.as_store_path().hash())
}

/// The key of an attribute's error step: `attr-` and 32 characters of a hash of its path, the same in every run.
#[must_use]
pub fn error_key(attr: &AttrPath) -> String {
    let names = attr.names().iter().map(String::as_str);
    format!("attr-{}", hash_of(names))
}

/// What is evaluated, as the keys of a step say it; without an attribute path.
#[must_use]
pub fn source(root: &Evaluation, options: &[(String, String)]) -> Keys {
    let mut keys = Keys::new();
    let (key, value) = match &root.source {
        Source::File(file) => ("file", file),
        Source::Expr(expr) => ("expr", expr),
        Source::Flake(flake) => ("flake", flake),
    };
    keys.insert(key.into(), value.as_str().into());
    for (name, argument) in &root.arguments {
        let (key, value) = match argument {
            Argument::Expr(expr) => ("arg", expr),
            Argument::String(string) => ("argstr", string),
        };
        let map = keys.entry(key).or_insert_with(|| json!({}));
        map[name] = value.as_str().into();
    }
    if !root.include.is_empty() {
        keys.insert("include".into(), root.include.clone().into());
    }
    if !options.is_empty() {
        let options = options
            .iter()
            .map(|(name, value)| (name.clone(), value.clone().into()));
        keys.insert("options".into(), Value::Object(options.collect()));
    }
    keys
}

/// A target's step, still without what it waits for because of its `.drv`.
struct MadeStep {
    step: CommandStep,
    skip: Option<String>,
}

/// What all steps of a recording have in common.
struct StepMaker<'a> {
    request: &'a RecordingRequest,
    schema: &'a Schema,
    /// What is evaluated.
    source: Keys,
    /// The user's `step`.
    step: TargetWishes,
    /// The tags of the agents that steps without a system of their own go to: those of the system that most targets have.
    common_agents: Option<Keys>,
    /// The user's `agents`, by system or feature.
    agents: BTreeMap<&'a str, Keys>,
    /// The attributes that must not be called.
    callable: BTreeSet<AttrPath>,
}

impl<'a> StepMaker<'a> {
    fn new(request: &'a RecordingRequest, schema: &'a Schema) -> Result<Self, Failure> {
        let wrong = |message: String| refuse(format_args!("in the key `step`, {message}"));
        let step = TargetWishes::read(&request.step, &request.emit)
            .and_then(|given| given.checked(schema))
            .map_err(wrong)?;
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
        if length(&source) > RECORD_AT_MOST / 2 {
            return Err(refuse(format_args!(
                "what is evaluated takes {} bytes to say, and every step has to say it: more than an agent can hand on",
                length(&source)
            ))
            .hint("put the expression into a file of the repository"));
        }
        let maker = Self {
            request,
            schema,
            source,
            step,
            common_agents: None,
            agents,
            callable: BTreeSet::new(),
        };
        let mut probe = maker.begin("label".into(), "key".into(), Keys::new())?;
        maker.step.merge_into(&mut probe);
        maker.check(probe).map_err(wrong)?;
        Ok(maker)
    }

    /// The step of a target, or why there is none.
    fn target(&self, target: &Target, skip: Option<&str>) -> Result<MadeStep, String> {
        let meta = &target.meta;
        let in_buildkite = |message| format!("in its `meta.buildkite`, {message}");
        let buildkite = meta.buildkite.as_ref().filter(|_| self.request.meta);
        let given = buildkite.map_or(Ok(TargetWishes::default()), |keys| {
            TargetWishes::read(keys, &self.request.emit)
                .and_then(|given| given.checked(self.schema))
                .map_err(in_buildkite)
        })?;
        let wishes = meta.eval_once.as_ref().filter(|_| self.request.meta);
        let how = wishes
            .map_or(Ok(Keys::new()), |keys| self.wishes(keys))
            .map_err(|message| format!("in its `meta.eval-once`, {message}"))?;
        let own_command = self.step.has("command") || given.has("command");
        let other_plugin = self.step.has("plugins") || given.has("plugins");
        let mut record = self.record(&target.attr);
        record.extend(self.request.build_keys.clone());
        record.extend(how);
        let leaves_command = record.get("command").is_some_and(|when| when == "none");
        if leaves_command && !other_plugin {
            if own_command {
                return Err("its step has a command, which `command: none` leaves to another plugin, and it has no other plugin".into());
            }
            // There is nothing to leave, and nothing to leave it to.
            record.remove("command");
        }
        // Who said themselves whether this step is skipped knows better. What another plugin runs may be in its configuration.
        let runs_more = own_command || leaves_command && other_plugin;
        let says_itself = self.step.has("skip") || given.has("skip");
        let skip = skip.filter(|_| !runs_more && !says_itself);
        let skip = skip.map(|reason| shortened(&inert(reason), REASON_AT_MOST));
        let ends_at_once = skip.is_some() && self.request.skip_style == SkipStyle::Run;
        if ends_at_once {
            record.insert("skip".into(), true.into());
        }
        if let Some(seconds) = meta.max_silent {
            let options = record.entry("options").or_insert_with(|| json!({}));
            options["max-silent-time"] = seconds.into();
        }
        record.insert("drv".into(), target.drv.as_store_path().as_str().into());
        if !target.outputs.is_empty() {
            let outputs = target.outputs.iter();
            record.insert(
                "outputs".into(),
                outputs
                    .map(|(name, path)| (name.clone(), path.as_str().into()))
                    .collect::<Keys>()
                    .into(),
            );
        }
        let size = length(&record);
        if size > RECORD_AT_MOST {
            return Err(format!(
                "its record takes {size} bytes, more than an agent can hand on to a job"
            ));
        }
        let label = match target.attr.names() {
            [] => target.name.clone(),
            _ => target.attr.to_string(),
        };
        let mut step = self
            .begin(label_of(":nix:", &label), key(target), record)
            .map_err(|failure| failure.to_string())?;
        // What is said of every step, of some, and of this one: the more it is about this one, the later it counts.
        self.step.merge_into(&mut step);
        let features = target
            .features
            .iter()
            .map(|feature| format!("feature:{feature}"));
        for name in std::iter::once(target.system.clone()).chain(features) {
            if let Some(tags) = self.agents.get(name.as_str()) {
                merge(&mut step, "agents", &Value::Object(tags.clone()));
            }
        }
        if let Some(seconds) = meta.timeout.filter(|seconds| *seconds > 0) {
            step.insert("timeout_in_minutes".into(), seconds.div_ceil(60).into());
        }
        given.merge_into(&mut step);
        let mut step = self.check(step).map_err(|message| match buildkite {
            Some(_) => in_buildkite(message),
            None => message,
        })?;
        if step.jobs() > JOBS_PER_UPLOAD {
            return Err(format!(
                "its step becomes {} jobs, and Buildkite takes at most {JOBS_PER_UPLOAD} at once",
                step.jobs()
            ));
        }
        if let Some(reason) = skip.as_ref().filter(|_| !ends_at_once) {
            step.skip = Some(StepSkip::Reason(reason.clone()));
        }
        let step = self.with_command_carried(step)?;
        Ok(MadeStep { step, skip })
    }

    /// With `emit: command`, a command of the user's own is carried beside the record, and `eval-once step` runs it after the
    /// build. In the place of ours it would be run by an agent that has no hook of ours, with nothing built before it.
    fn with_command_carried(&self, mut step: CommandStep) -> Result<CommandStep, String> {
        if self.request.emit != Emit::Command {
            return Ok(step);
        }
        let ours = Some(StepCommand::One(STEP.into()));
        let text = match std::mem::replace(&mut step.command, ours) {
            None => return Ok(step),
            Some(StepCommand::One(command)) if command == STEP => return Ok(step),
            Some(StepCommand::One(command)) => command,
            // As Buildkite joins them for an agent.
            Some(StepCommand::Several(commands)) => commands.join("\n"),
        };
        if text.len() > RECORD_AT_MOST {
            return Err(format!(
                "its command takes {} bytes, more than an agent can hand on to a job",
                text.len()
            ));
        }
        step.env.insert("EVAL_ONCE_COMMAND".into(), text.into());
        Ok(step)
    }

    /// What a target says to us of its step (`meta.eval-once`).
    fn wishes(&self, keys: &Keys) -> Result<Keys, String> {
        let read = || {
            let mut reader = KeyReader::new(keys.clone())?;
            let how = BuildKeys::read(&mut reader, &self.request.root.folder)?;
            if how.leaves_the_command() && self.request.emit == Emit::Command {
                return Err(refuse(NO_OTHER_HOOK));
            }
            for key in ["push", "share-required", "artifacts", "steps"] {
                reader.not_yet(key)?;
            }
            reader.finish(KeyOwner::Target)?;
            let keys = build_keys::as_written(keys);
            match &self.request.below {
                Some(folder) => build_keys::from_above(keys, folder).ok_or_else(|| {
                    refuse("`out-link` is relative, and the recording's folder has a name that is not UTF-8")
                }),
                None => Ok(keys),
            }
        };
        read().map_err(|failure: Failure| failure.to_string())
    }

    /// The step of an attribute that does not evaluate: it evaluates it, shows what Nix says, and fails.
    fn broken(&self, broken: &AttrError) -> Result<CommandStep, Failure> {
        let label = label_of(":boom:", &called(&broken.attr));
        let mut record = self.record(&broken.attr);
        record.extend(self.request.build_keys.clone());
        // It has none.
        record.remove("command");
        if length(&record) > RECORD_AT_MOST {
            return self.refused(broken);
        }
        let mut step = self.begin(label, error_key(&broken.attr), record)?;
        self.step.without(&[&FOR_TARGETS]).merge_into(&mut step);
        self.finish(step)
    }

    /// The step of an attribute that does evaluate, but cannot have the step it asks for: it says why, and fails.
    fn refused(&self, refused: &AttrError) -> Result<CommandStep, Failure> {
        let attr = called(&refused.attr);
        let message = refused
            .message
            .as_deref()
            .unwrap_or("it cannot have a step");
        let message = shortened(&inert(&format!("{attr}: {message}")), MESSAGE_AT_MOST);
        let mut record = Keys::new();
        record.insert("refused".into(), message.into());
        let label = label_of(":boom:", &attr);
        let mut step = self.begin(label, error_key(&refused.attr), record)?;
        self.step
            .without(&[&FOR_TARGETS, &FOR_OUTPUTS])
            .merge_into(&mut step);
        self.finish(step)
    }

    /// The step that sums the build up when all of these have ended, whatever became of them. A `wait` step would do so too, and
    /// would hold back whatever else the user's pipeline has behind the recording.
    fn summary(&self, planned: &[PlannedStep]) -> Result<CommandStep, Failure> {
        let keys = planned.iter().map(|planned| planned.step.key.as_str());
        let mut step = CommandStep {
            label: ":bar_chart: eval-once summary".into(),
            // Of what it sums up, so that another try of the same recording gives the same.
            key: format!("summary-{}", hash_of(keys)),
            // One that is marked as skipped has ended already.
            depends_on: planned
                .iter()
                .filter(|planned| planned.step.skip.is_none() || !planned.skipped)
                .map(|planned| Dependency::Step {
                    step: planned.step.key.clone(),
                    allow_failure: Some(true.into()),
                })
                .collect(),
            retry: Some(Retry {
                automatic: Some(Automatic::Rules(retry_rules())),
                manual: None,
            }),
            ..CommandStep::default()
        };
        match &self.request.emit {
            Emit::Plugin(reference) => {
                let keys = json!({ "summary": true });
                let plugin = std::iter::once((reference.clone(), keys));
                step.plugins.push(Plugin::Configured(plugin.collect()));
            }
            Emit::Command => step.command = Some(StepCommand::One("eval-once summary".into())),
        }
        let mut step = keys_of(&step)?;
        self.step
            .without(&[&FOR_TARGETS, &FOR_OUTPUTS, &FOR_ONE_OF_MANY])
            .merge_into(&mut step);
        self.finish(step)
    }

    /// Ends making a step that has no system of its own.
    fn finish(&self, mut step: Keys) -> Result<CommandStep, Failure> {
        if let Some(tags) = &self.common_agents {
            merge(&mut step, "agents", &Value::Object(tags.clone()));
        }
        self.check(step)
            .map_err(|message| Failure::new(Class::Bug, message))
    }

    /// The record of an attribute, without what was found of it.
    fn record(&self, attr: &AttrPath) -> Keys {
        let mut record = self.source.clone();
        record.insert("attr".into(), attr.names().into());
        if self.callable.contains(attr) {
            record.insert("call".into(), false.into());
        }
        record
    }

    /// A step as it is before anybody's wishes.
    fn begin(&self, label: String, key: String, record: Keys) -> Result<Keys, Failure> {
        let mut step = CommandStep {
            label,
            key,
            retry: Some(Retry {
                automatic: Some(Automatic::Rules(retry_rules())),
                manual: None,
            }),
            ..CommandStep::default()
        };
        match &self.request.emit {
            Emit::Plugin(reference) => {
                let plugin = std::iter::once((reference.clone(), record.into()));
                step.plugins.push(Plugin::Configured(plugin.collect()));
            }
            Emit::Command => {
                step.command = Some(StepCommand::One(STEP.into()));
                let record = Value::Object(record).to_string();
                step.env.insert("EVAL_ONCE_STEP".into(), record.into());
            }
        }
        keys_of(&step)
    }

    fn check(&self, step: Keys) -> Result<CommandStep, String> {
        let step = Value::Object(step);
        self.schema.check_step(&step)?;
        serde_json::from_value(step).map_err(|error| error.to_string())
    }
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

/// When a step is run again by itself: whenever the surroundings failed, and never because it was stopped.
fn retry_rules() -> Vec<RetryRule> {
    let rule = |exit_status: Option<i64>, signal_reason: Option<&str>, limit| RetryRule {
        exit_status: exit_status.map(Value::from),
        signal: None,
        signal_reason: signal_reason.map(str::to_owned),
        limit: Some(limit),
    };
    vec![
        rule(Some(75), None, 2),
        // The agent was lost.
        rule(Some(-1), Some("none"), 2),
        rule(None, Some("agent_stop"), 2),
        // Something outside has killed the hook itself.
        rule(Some(255), Some("none"), 1),
    ]
}

/// Properties that somebody wants to have in a step, with each in the one spelling that we merge.
#[derive(Debug, Clone, Default)]
struct TargetWishes {
    keys: Keys,
}

impl TargetWishes {
    /// Reads them, and refuses those that are not theirs to set.
    fn read(given: &Keys, emit: &Emit) -> Result<Self, String> {
        let mut keys = given.clone();
        for (alias, name) in [("name", "label"), ("commands", "command")] {
            if let Some(value) = keys.remove(alias)
                && keys.insert(name.into(), value).is_some()
            {
                return Err(format!("`{alias}` is another word for `{name}`: keep one"));
            }
        }
        for key in ["key", "id", "identifier"] {
            if keys.contains_key(key) {
                return Err(format!(
                    "`{key}` cannot be set: other steps know a step by the key that it has"
                ));
            }
        }
        match keys.get_mut("command") {
            Some(Value::String(command)) if command.trim().is_empty() => {
                keys.remove("command");
            }
            Some(Value::Array(commands)) if commands.is_empty() => {
                keys.remove("command");
            }
            _ => {}
        }
        let env = keys.get("env").and_then(Value::as_object);
        if let Some(name) =
            env.and_then(|env| env.keys().find(|name| name.starts_with("EVAL_ONCE_")))
        {
            return Err(format!("`env.{name}` cannot be set: it is eval-once's own"));
        }
        if let Some(agents) = keys.get_mut("agents") {
            *agents = as_tags(agents.take());
        }
        if let Some(plugins) = keys.get_mut("plugins") {
            if let Value::Object(map) = plugins {
                let entries = std::mem::take(map).into_iter();
                *plugins = entries
                    .map(|(name, value)| json!({ name: value }))
                    .collect();
            }
            let ours = |reference: &str| {
                let name = plugin_name(reference);
                name == "eval-once" || matches!(emit, Emit::Plugin(own) if name == plugin_name(own))
            };
            for plugin in plugins.as_array().into_iter().flatten() {
                let names = plugin.as_object().into_iter().flat_map(Keys::keys);
                if let Some(name) = names
                    .map(String::as_str)
                    .chain(plugin.as_str())
                    .find(|name| ours(name))
                {
                    return Err(format!(
                        "`plugins` names {name}: what eval-once does in a step cannot be changed"
                    ));
                }
            }
        }
        if let Some(dependencies) = keys.get_mut("depends_on") {
            match dependencies {
                Value::Null => *dependencies = json!([]),
                Value::String(_) => *dependencies = json!([dependencies.take()]),
                _ => {}
            }
        }
        Ok(Self { keys })
    }

    /// Looks at them before they are merged, so that what is wrong is named as it was written.
    fn checked(self, schema: &Schema) -> Result<Self, String> {
        schema.check_step(&Value::Object(self.keys.clone()))?;
        Ok(self)
    }

    /// Whether they have something under `key`.
    fn has(&self, key: &str) -> bool {
        match self.keys.get(key) {
            Some(Value::Array(list)) => !list.is_empty(),
            value => value.is_some(),
        }
    }

    /// These without some of them.
    fn without(&self, names: &[&[&str]]) -> Self {
        let mut keys = self.keys.clone();
        keys.retain(|key, _| !names.iter().any(|names| names.contains(&key.as_str())));
        Self { keys }
    }

    fn merge_into(&self, step: &mut Keys) {
        for (key, value) in &self.keys {
            match (key.as_str(), step.get_mut(key), value) {
                ("retry", Some(Value::Object(retry)), Value::Object(more)) => {
                    for (key, value) in more {
                        match (key.as_str(), retry.get_mut(key)) {
                            ("automatic", Some(rules)) => *rules = with_rules(rules.take(), value),
                            _ => merge(retry, key, value),
                        }
                    }
                }
                ("plugins" | "depends_on", Some(Value::Array(list)), Value::Array(more)) => {
                    list.extend(more.iter().cloned());
                }
                _ => merge(step, key, value),
            }
        }
    }
}

/// `retry.automatic` with what somebody adds to it: theirs come first, for Buildkite goes by the first rule that applies, and what
/// they speak of is theirs alone. `true` and `false` speak of everything. What Buildkite does not take is left for it to refuse.
fn with_rules(rules: Value, more: &Value) -> Value {
    let theirs = match more {
        Value::Array(rules) => rules.clone(),
        Value::Object(_) => vec![more.clone()],
        _ => return more.clone(),
    };
    let ours = match rules {
        Value::Array(rules) => rules,
        Value::Object(_) => vec![rules],
        all if all == true || all == "true" => vec![json!({ "exit_status": "*" })],
        _ => Vec::new(),
    };
    let left = ours
        .into_iter()
        .filter(|rule| !theirs.iter().any(|their| speaks_of(their, rule)));
    Value::Array(theirs.iter().cloned().chain(left).collect())
}

/// Whether a rule applies wherever another does.
fn speaks_of(rule: &Value, other: &Value) -> bool {
    let statuses = |rule: &Value| match &rule["exit_status"] {
        Value::Array(list) => list.clone(),
        one => vec![one.clone()],
    };
    let theirs = statuses(rule);
    let any = |status: &Value| status.is_null() || status == "*";
    let status = theirs.iter().any(any) || statuses(other).iter().all(|one| theirs.contains(one));
    let same = |name| rule[name].is_null() || rule[name] == other[name];
    rule.is_object() && status && same("signal") && same("signal_reason")
}

/// Merges `value` into `map` under `key`: maps deeply, anything else replaces.
fn merge(map: &mut Keys, key: &str, value: &Value) {
    match (map.get_mut(key), value) {
        (Some(Value::Object(map)), Value::Object(more)) => {
            for (key, value) in more {
                merge(map, key, value);
            }
        }
        (Some(old), _) => *old = value.clone(),
        (None, _) => drop(map.insert(key.into(), value.clone())),
    }
}

/// Agent tags as a map, however they are written; a tag without a value is `true`, as for the agent.
fn as_tags(agents: Value) -> Value {
    match agents {
        Value::Array(list) if list.iter().all(Value::is_string) => {
            let tags = list.iter().filter_map(Value::as_str).map(|tag| {
                let (name, value) = tag.split_once('=').unwrap_or((tag, "true"));
                (name.to_owned(), value.into())
            });
            Value::Object(tags.collect())
        }
        other => other,
    }
}

/// The name of a plugin, as the agent would make it from its reference.
fn plugin_name(reference: &str) -> String {
    let location = reference.split('#').next().unwrap_or_default();
    let name = location
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default();
    let name = name.strip_suffix(".git").unwrap_or(name).to_lowercase();
    let name = name.strip_suffix("-buildkite-plugin").unwrap_or(&name);
    name.replace(|c: char| !c.is_ascii_alphanumeric(), "-")
}

fn keys_of(step: &CommandStep) -> Result<Keys, Failure> {
    match serde_json::to_value(step).classify(Class::Bug, || "cannot write a step".to_owned())? {
        Value::Object(keys) => Ok(keys),
        _ => Err(Failure::new(Class::Bug, "a step is no map")),
    }
}

/// How many bytes a record takes as JSON.
fn length(record: &Keys) -> usize {
    // (Displaying JSON does not fail.)
    Value::Object(record.clone()).to_string().len()
}

/// An attribute path for people.
fn called(attr: &AttrPath) -> String {
    match attr.names() {
        [] => "(root)".into(),
        _ => attr.to_string(),
    }
}

/// The group of an attribute path, which is called by the first `names` of its names; none where it has no more than those.
fn group(attr: &AttrPath, names: usize) -> Option<String> {
    let first = attr
        .names()
        .get(..names)
        .filter(|first| !first.is_empty())?;
    (attr.names().len() > names)
        .then(|| label_of(":nix:", &AttrPath::new(first.to_vec()).to_string()))
}

/// A label: an emoji of ours, and a text that has come from elsewhere.
fn label_of(emoji: &str, text: &str) -> String {
    // In a label `:word:` is an emoji, also between quotes.
    let text = inert(text).replace(':', "\u{2236}");
    format!("{emoji} {}", shortened(&text, LABEL_AT_MOST))
}

/// `text` with everything replaced that a reader would not see, or that changes how the rest is shown.
fn inert(text: &str) -> String {
    let seen = |c: char| match c {
        '\n' | '\t' => ' ',
        c if c.is_control() || is_unseen(c) => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(seen).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use super::*;
    use crate::evaluation_keys::Checkout;
    use crate::nix::{DrvPath, StorePath};
    use crate::recording::{Evaluator, Meta, OnError, Recurse, SkipWhich};
    use crate::step::StepRequest;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::num::NonZeroUsize;
    use std::path::PathBuf;

    /// Made once: in a debug build that takes longer than many tests.
    fn schema() -> &'static Schema {
        static SCHEMA: OnceLock<Schema> = OnceLock::new();
        SCHEMA.get_or_init(|| Schema::new().unwrap())
    }

    fn path(names: &[&str]) -> AttrPath {
        AttrPath::new(names.iter().map(ToString::to_string).collect())
    }

    fn drv(i: usize) -> DrvPath {
        DrvPath::parse(&format!("/nix/store/{i:032}-x.drv")).unwrap()
    }

    fn target(i: usize, names: &[&str]) -> Target {
        Target {
            attr: path(names),
            also: Vec::new(),
            name: "x".into(),
            drv: drv(i),
            outputs: BTreeMap::from([(
                "out".into(),
                StorePath::parse(&format!("/nix/store/{i:032}-x")).unwrap(),
            )]),
            system: "x86_64-linux".into(),
            features: Vec::new(),
            meta: Meta::default(),
        }
    }

    /// A target with this `meta.buildkite`.
    fn with(i: usize, buildkite: &Value) -> Target {
        Target {
            meta: Meta {
                buildkite: buildkite.as_object().cloned(),
                ..Meta::default()
            },
            ..target(i, &["p", &format!("t{i}")])
        }
    }

    fn request() -> RecordingRequest {
        RecordingRequest {
            root: Evaluation {
                source: Source::File("ci.nix".into()),
                attr: path(&["p"]),
                arguments: vec![
                    ("n".into(), Argument::Expr("5".into())),
                    ("s".into(), Argument::String("x y".into())),
                ],
                include: vec!["x=.".into()],
                call: true,
                folder: "/checkout".into(),
            },
            by_default: false,
            options: vec![("cores".into(), "2".into())],
            recurse: Recurse::Marked,
            exclude: Vec::new(),
            workers: None,
            memory: None,
            evaluation_timeout: None,
            evaluator: Evaluator::Nix,
            skip: SkipWhich::Nothing,
            skip_style: SkipStyle::Mark,
            on_error: OnError::Step,
            emit: Emit::Plugin("your-org/eval-once#v1".into()),
            build_keys: Keys::new(),
            below: None,
            step: Keys::new(),
            agents: BTreeMap::new(),
            group_by: 0,
            meta: true,
            summary: false,
            chunk: NonZeroUsize::new(100).unwrap(),
            keep_days: 3,
        }
    }

    /// The keys of a user, merged into every step.
    fn wanting(step: &Value) -> RecordingRequest {
        RecordingRequest {
            step: step.as_object().unwrap().clone(),
            ..request()
        }
    }

    /// No target depends on another.
    fn apart(targets: &[Target]) -> Edges {
        chain(targets, &[])
    }

    /// Targets of which some depend on others, by their numbers.
    fn chain(targets: &[Target], pairs: &[(usize, usize)]) -> Edges {
        let drvs: Vec<_> = targets.iter().map(|target| target.drv.clone()).collect();
        Edges::load(&drvs, |read| {
            let inputs = pairs.iter().filter(|(from, _)| drv(*from) == *read);
            Ok(inputs.map(|(_, to)| drv(*to)).collect())
        })
        .unwrap()
    }

    fn make(
        targets: &[Target],
        edges: &Edges,
        skip: &[Option<String>],
        request: &RecordingRequest,
    ) -> Result<Steps, Failure> {
        let records = Records {
            targets,
            broken: &[],
            refused: &[],
            callable: &BTreeSet::new(),
            edges,
            skip,
        };
        steps(&records, request, schema())
    }

    fn made(targets: &[Target], request: &RecordingRequest) -> Vec<Value> {
        values(&make(targets, &apart(targets), &[], request).unwrap())
    }

    fn values(steps: &Steps) -> Vec<Value> {
        let steps = steps.steps.iter();
        steps
            .map(|planned| serde_json::to_value(&planned.step).unwrap())
            .collect()
    }

    fn record_of(step: &Value) -> Keys {
        match &step["env"]["EVAL_ONCE_STEP"] {
            Value::String(record) => serde_json::from_str(record).unwrap(),
            _ => step["plugins"][0]["your-org/eval-once#v1"]
                .as_object()
                .unwrap()
                .clone(),
        }
    }

    fn read(record: Keys) -> StepRequest {
        let place = Checkout {
            folder: "/checkout".into(),
            confined: false,
            no_checkout: false,
        };
        StepRequest::read(record, &place).unwrap()
    }

    #[test]
    fn a_step_carries_exactly_the_record_that_a_step_reads() {
        for emit in [Emit::Command, request().emit] {
            let request = RecordingRequest { emit, ..request() };
            let target = target(1, &["p", "a.b"]);
            let step = &made(std::slice::from_ref(&target), &request)[0];
            let asked = read(record_of(step));
            assert_eq!(asked.drv.as_ref(), Some(&target.drv));
            assert_eq!(asked.outputs, target.outputs);
            assert_eq!(asked.options, request.options);
            let expected = Evaluation {
                attr: target.attr.clone(),
                ..request.root.clone()
            };
            assert_eq!(asked.evaluation, Some(expected));
            assert_eq!(step["label"], ":nix: p.\"a.b\"");
            assert_eq!(
                step["key"],
                format!("drv-{}", target.drv.as_store_path().hash())
            );
            assert_eq!(step["depends_on"], json!([]));
            assert_eq!(step["command"].is_string(), request.emit == Emit::Command);
            assert_eq!(
                step["retry"]["automatic"],
                json!([
                    { "exit_status": 75, "limit": 2 },
                    { "exit_status": -1, "signal_reason": "none", "limit": 2 },
                    { "signal_reason": "agent_stop", "limit": 2 },
                    { "exit_status": 255, "signal_reason": "none", "limit": 1 }
                ])
            );
        }
    }

    #[test]
    fn every_source_is_read_back() {
        for source in [
            Source::File("default.nix".into()),
            Source::Expr("import ./. { }".into()),
            Source::Flake(".".into()),
        ] {
            let mut request = request();
            request.root.source = source.clone();
            if matches!(source, Source::Flake(_)) {
                request.root.arguments.clear();
                request.root.include.clear();
            }
            let steps = made(&[target(1, &[])], &request);
            let evaluation = read(record_of(&steps[0])).evaluation.unwrap();
            assert_eq!(evaluation.source, source);
            assert_eq!(evaluation.attr, path(&[]));
            assert_eq!(
                steps[0]["label"], ":nix: x",
                "the root is called by its derivation"
            );
        }
    }

    #[test]
    fn what_is_wanted_is_merged_and_what_a_target_says_comes_last() {
        let request = wanting(&json!({
            "agents": ["queue=a", "big"], "env": { "A": "1", "B": "1" }, "plugins": ["docker#v5"],
            "depends_on": "before", "soft_fail": [{ "exit_status": 1 }], "timeout_in_minutes": 9,
            "retry": { "manual": false }
        }));
        let mut wish = with(
            1,
            &json!({
                "name": "mine", "agents": { "queue": "b" }, "env": { "B": 2 }, "plugins": { "x#v1": { "y": 1 } },
                "depends_on": [{ "step": "other" }, "before"], "commands": ["t"], "soft_fail": false
            }),
        );
        wish.meta.timeout = Some(60);
        let step = &made(&[wish], &request)[0];
        assert_eq!(step["label"], "mine");
        assert_eq!(step["agents"], json!({ "queue": "b", "big": "true" }));
        assert_eq!(step["env"], json!({ "A": "1", "B": 2 }));
        assert_eq!(step["plugins"][1], "docker#v5");
        assert_eq!(step["plugins"][2], json!({ "x#v1": { "y": 1 } }));
        assert_eq!(step["depends_on"], json!(["before", { "step": "other" }]));
        assert_eq!(step["command"], json!(["t"]));
        assert_eq!(step["soft_fail"], false);
        assert_eq!(step["timeout_in_minutes"], 1, "the target's own counts");
        assert_eq!(step["retry"]["manual"], false);
        assert_eq!(step["retry"]["automatic"].as_array().unwrap().len(), 4);
    }

    /// A target with this `meta.eval-once`.
    fn saying(i: usize, wishes: &Value) -> Target {
        let mut target = target(i, &["p", &format!("t{i}")]);
        target.meta.eval_once = wishes.as_object().cloned();
        target
    }

    fn keys(value: &Value) -> Keys {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn how_targets_are_built_is_in_every_record_and_what_a_target_says_wins() {
        let said =
            json!({ "command": "none", "log": "raw", "on-drift": "fail", "out-link": "out/a" });
        let docker = wanting(&json!({ "plugins": ["docker#v5"] }));
        for below in [None, Some(PathBuf::from("nix"))] {
            let link = "out/a";
            let request = RecordingRequest {
                build_keys: keys(&said),
                below,
                ..docker.clone()
            };
            let other = json!({ "command": "after", "log": "pretty", "on-drift": "warn", "out-link": false });
            let targets = [target(0, &["p", "t0"]), saying(1, &other)];
            let steps = made(&targets, &request);
            let [first, second] = [0, 1].map(|i| Value::Object(record_of(&steps[i])));
            for (key, value) in said.as_object().unwrap() {
                let expected = if key == "out-link" {
                    &json!(link)
                } else {
                    value
                };
                assert_eq!(&first[key], expected, "{key}");
                assert_eq!(second[key], other[key], "{key}");
            }
            let asked = read(record_of(&steps[0]));
            assert!(!asked.command && asked.fail_on_drift);
            let untrusted = RecordingRequest {
                meta: false,
                ..request
            };
            let steps = made(&targets, &untrusted);
            assert_eq!(
                record_of(&steps[1])["log"],
                "raw",
                "`meta: false` ignores it"
            );
        }
    }

    #[test]
    fn a_broken_attributes_step_is_built_in_the_same_way_and_has_no_command_to_leave() {
        let request = RecordingRequest {
            build_keys: keys(&json!({ "command": "none", "log": "raw", "out-link": false })),
            ..wanting(&json!({ "plugins": ["docker#v5"], "command": "make" }))
        };
        let broken = [AttrError {
            attr: path(&["b"]),
            message: None,
        }];
        let records = Records {
            targets: &[],
            broken: &broken,
            refused: &[],
            edges: &apart(&[]),
            skip: &[],
            callable: &BTreeSet::new(),
        };
        let steps = steps(&records, &request, schema()).unwrap();
        let record = record_of(&values(&steps)[0]);
        assert_eq!(
            (&record["log"], &record["out-link"]),
            (&json!("raw"), &json!(false))
        );
        assert!(!record.contains_key("command"));
    }

    #[test]
    fn a_command_that_no_other_plugin_would_run_costs_that_target_alone() {
        let none = keys(&json!({ "command": "none" }));
        let mut with_command = with(0, &json!({ "command": "make" }));
        with_command.meta.eval_once = Some(none.clone());
        let targets = [with_command.clone(), target(1, &["b"])];
        let steps = make(&targets, &apart(&targets), &[], &request()).unwrap();
        let message = steps.errors[0].message.clone().unwrap();
        assert!(message.contains("it has no other plugin"), "{message}");
        assert_eq!(steps.steps.len(), 2);

        // Without a command there is nothing to leave.
        let mut bare = target(0, &["a"]);
        bare.meta.eval_once = Some(none);
        let step = &made(&[bare.clone()], &request())[0];
        assert!(!record_of(step).contains_key("command"));

        let command = RecordingRequest {
            emit: Emit::Command,
            ..request()
        };
        for target in [bare, with_command] {
            let targets = [target];
            let steps = make(&targets, &apart(&targets), &[], &command).unwrap();
            let message = steps.errors[0].message.clone().unwrap();
            assert!(
                message.contains("`command: none` does not go with `emit: command`"),
                "{message}"
            );
        }
    }

    #[test]
    fn what_a_target_cannot_say_of_its_step_is_refused_by_name() {
        for (wishes, sentence) in [
            (
                json!({ "log": "loud" }),
                "`log` is \"loud\", and must be `pretty` or `raw`",
            ),
            (json!({ "command": true }), "`command` is true"),
            (
                json!({ "out-link": "a/" }),
                "`out-link` is no path of a link",
            ),
            (json!({ "on-drift": null }), "`on-drift` is null"),
            (json!({ "file": "x" }), "`file` is not a key of a target"),
            (
                json!({ "push": "file:///x" }),
                "`push` is not in this version",
            ),
            (
                json!({ "share-required": true }),
                "`share-required` is not in this version",
            ),
            (
                json!({ "artifacts": ["x"] }),
                "`artifacts` is not in this version",
            ),
            (json!({ "steps": {} }), "`steps` is not in this version"),
        ] {
            let targets = [saying(0, &wishes)];
            let steps = make(&targets, &apart(&targets), &[], &request()).unwrap();
            let message = steps.errors[0].message.clone().unwrap();
            let expected = format!("in its `meta.eval-once`, {sentence}");
            assert!(message.starts_with(&expected), "{wishes}: {message}");
        }
    }

    #[test]
    fn how_long_a_build_may_say_nothing_is_an_option_of_its_step_alone() {
        let request = RecordingRequest {
            options: vec![
                ("cores".into(), "2".into()),
                ("max-silent-time".into(), "9".into()),
            ],
            ..request()
        };
        let mut quiet = target(0, &["a"]);
        quiet.meta.max_silent = Some(600);
        let steps = made(&[quiet.clone(), target(1, &["b"])], &request);
        assert_eq!(
            record_of(&steps[0])["options"],
            json!({ "cores": "2", "max-silent-time": 600 })
        );
        assert_eq!(
            record_of(&steps[1])["options"],
            json!({ "cores": "2", "max-silent-time": "9" })
        );
        let steps = made(
            &[quiet],
            &RecordingRequest {
                options: Vec::new(),
                ..request
            },
        );
        assert_eq!(
            record_of(&steps[0])["options"],
            json!({ "max-silent-time": 600 })
        );
        assert_eq!(
            read(record_of(&steps[0])).options,
            [("max-silent-time".into(), "600".into())]
        );
    }

    #[test]
    fn a_targets_rules_of_retrying_are_added_and_win_over_ours() {
        let rules = |step: &Value, target: &Value| {
            let targets = [with(1, &json!({ "retry": target }))];
            let request = wanting(&json!({ "retry": step }));
            let steps = make(&targets, &apart(&targets), &[], &request).unwrap();
            assert_eq!(steps.errors, [], "{target}");
            values(&steps)[0]["retry"].clone()
        };
        let ours = serde_json::to_value(retry_rules()).unwrap();
        let [surroundings, lost, stopped, killed] = &ours.as_array().unwrap()[..] else {
            panic!("four rules")
        };
        let none = json!({});
        let three = json!({ "exit_status": 3, "limit": 1 });
        let never = json!({ "exit_status": [75, 4], "limit": 0 });
        let lost_more = json!({ "exit_status": -1, "signal_reason": "none", "limit": 9 });
        let stopped_only = json!({ "signal_reason": "agent_stop", "limit": 0 });
        for (step, target, expected) in [
            (
                &none,
                json!({}),
                json!([surroundings, lost, stopped, killed]),
            ),
            (&none, json!({ "automatic": [] }), ours.clone()),
            // One rule is a list of one.
            (
                &none,
                json!({ "automatic": three }),
                json!([three, surroundings, lost, stopped, killed]),
            ),
            (
                &none,
                json!({ "automatic": [three] }),
                json!([three, surroundings, lost, stopped, killed]),
            ),
            (
                &none,
                json!({ "automatic": [never] }),
                json!([never, lost, stopped, killed]),
            ),
            (
                &none,
                json!({ "automatic": [lost_more] }),
                json!([lost_more, surroundings, stopped, killed]),
            ),
            (
                &none,
                json!({ "automatic": [stopped_only] }),
                json!([stopped_only, surroundings, lost, killed]),
            ),
            // What speaks of less than our rule leaves it.
            (
                &none,
                json!({ "automatic": { "exit_status": 75, "signal": "none" } }),
                json!([{ "exit_status": 75, "signal": "none" }, surroundings, lost, stopped, killed]),
            ),
            (
                &none,
                json!({ "automatic": { "exit_status": "*", "limit": 1 } }),
                json!([{ "exit_status": "*", "limit": 1 }]),
            ),
            (
                &none,
                json!({ "automatic": { "limit": 1 } }),
                json!([{ "limit": 1 }]),
            ),
            (&none, json!({ "automatic": true }), json!(true)),
            (&none, json!({ "automatic": false }), json!(false)),
            // Those of `step` come between.
            (
                &json!({ "automatic": [{ "exit_status": 3, "limit": 5 }, { "exit_status": 5 }] }),
                json!({ "automatic": three }),
                json!([three, { "exit_status": 5 }, surroundings, lost, stopped, killed]),
            ),
            (
                &json!({ "automatic": true }),
                json!({ "automatic": three }),
                json!([three, { "exit_status": "*" }]),
            ),
            (
                &json!({ "automatic": "false" }),
                json!({ "automatic": three }),
                json!([three]),
            ),
        ] {
            assert_eq!(
                rules(step, &target)["automatic"],
                expected,
                "{step} {target}"
            );
        }
        let manual = rules(
            &json!({ "manual": { "allowed": false, "reason": "no" } }),
            &json!({ "manual": { "reason": "never" } }),
        );
        assert_eq!(
            manual["manual"],
            json!({ "allowed": false, "reason": "never" })
        );
        assert_eq!(manual["automatic"], ours);
    }

    #[test]
    fn a_rule_that_buildkite_does_not_take_is_named_where_its_target_has_it() {
        for (automatic, sentence) in [
            (json!([{ "limit": 99 }]), "`retry.automatic[0].limit` is 99"),
            (
                json!({ "limt": 1 }),
                "`retry.automatic.limt` is no property",
            ),
            (json!("x"), "`retry.automatic` is \"x\""),
            (json!([true]), "`retry.automatic"),
        ] {
            let targets = [with(1, &json!({ "retry": { "automatic": automatic } }))];
            let steps = make(&targets, &apart(&targets), &[], &request()).unwrap();
            let message = steps.errors[0].message.clone().unwrap();
            assert!(message.contains(sentence), "{automatic}: {message}");
        }
    }

    #[test]
    fn a_timeout_in_seconds_becomes_whole_minutes() {
        for (seconds, minutes) in [
            (1, json!(1)),
            (60, json!(1)),
            (61, json!(2)),
            (0, Value::Null),
        ] {
            let mut target = target(1, &["a"]);
            target.meta.timeout = Some(seconds);
            assert_eq!(
                made(&[target], &request())[0]["timeout_in_minutes"],
                minutes
            );
        }
    }

    #[test]
    fn agents_are_chosen_by_system_and_features() {
        let mut request = wanting(&json!({ "agents": { "top": "step" } }));
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
        let step = &made(&[needy], &request)[0];
        assert_eq!(
            step["agents"],
            json!({ "queue": "linux", "kvm": "true", "size": "m", "top": "feature" })
        );
    }

    #[test]
    fn what_is_wrong_in_a_target_becomes_its_error_step() {
        for (buildkite, sentence) in [
            (json!({ "comand": "x" }), "`comand` is no property"),
            (json!({ "key": "mine" }), "`key` cannot be set"),
            (json!({ "id": "mine" }), "`id` cannot be set"),
            (
                json!({ "env": { "EVAL_ONCE_STEP": "{}" } }),
                "`env.EVAL_ONCE_STEP` cannot be set",
            ),
            (
                json!({ "plugins": ["your-org/eval-once#v2"] }),
                "`plugins` names your-org/eval-once#v2",
            ),
            (
                json!({ "plugins": [{ "https://x/eval-once-buildkite-plugin.git#v2": {} }] }),
                "cannot be changed",
            ),
            (json!({ "plugins": "x" }), "`plugins` is \"x\""),
            (json!({ "depends_on": 5 }), "`depends_on` is 5"),
            (
                json!({ "label": "a", "name": "b" }),
                "`name` is another word for `label`",
            ),
            (
                json!({ "timeout_in_minutes": null }),
                "`timeout_in_minutes` is null",
            ),
            (json!({ "skip": "x".repeat(71) }), "at most 70 characters"),
            (json!({ "parallelism": 501 }), "501 jobs"),
        ] {
            let targets = [target(0, &["a"]), with(1, &buildkite), target(2, &["c"])];
            let edges = chain(&targets, &[(0, 1), (1, 2)]);
            let request = wanting(&json!({ "agents": { "queue": "q" }, "command": "make" }));
            let steps = make(&targets, &edges, &[], &request).unwrap();
            assert_eq!(steps.errors.len(), 1, "{buildkite}");
            let message = steps.errors[0].message.clone().unwrap();
            assert!(message.contains(sentence), "{buildkite}: {message}");
            assert_eq!(steps.errors[0].attr, targets[1].attr);
            assert_eq!(steps.placed[1].key, error_key(&targets[1].attr));
            assert_eq!(steps.placed[0].depends_on, [key(&targets[2])], "through it");
            let steps = values(&steps);
            let error = &steps[0];
            assert_eq!(error["key"], error_key(&targets[1].attr));
            assert_eq!(error["label"], ":boom: p.t1");
            let said = record_of(error)["refused"].clone();
            assert!(said.as_str().unwrap().contains(sentence), "{said}");
            assert!(error.get("command").is_none());
            assert_eq!(error["agents"], json!({ "queue": "q" }));
            assert_eq!(steps[1]["key"], key(&targets[2]));
            assert_eq!(steps[2]["depends_on"], json!([key(&targets[2])]));
        }
    }

    #[test]
    fn what_is_wrong_in_the_configuration_is_refused_at_once() {
        for (step, sentence) in [
            (json!({ "comand": "x" }), "in the key `step`, `comand`"),
            (json!({ "key": "x" }), "in the key `step`, `key`"),
        ] {
            let failure = make(&[], &apart(&[]), &[], &wanting(&step)).unwrap_err();
            assert_eq!(failure.class, Class::Config);
            assert!(failure.to_string().contains(sentence), "{failure}");
        }
        let mut request = request();
        let tags = json!({ "queue": ["a"] });
        request
            .agents
            .insert("x".into(), tags.as_object().unwrap().clone());
        let failure = make(&[], &apart(&[]), &[], &request).unwrap_err();
        assert!(failure.to_string().contains("`agents.x`"), "{failure}");
        request.agents.clear();
        request.root.source = Source::Expr("x".repeat(RECORD_AT_MOST));
        let failure = make(&[], &apart(&[]), &[], &request).unwrap_err();
        assert!(failure.to_string().contains("bytes"), "{failure}");
    }

    #[test]
    fn a_broken_attribute_has_a_step_without_a_record_that_runs_nothing_else() {
        let request = wanting(&json!({
            "command": "make", "parallelism": 3, "skip": true, "label": "all alike", "artifact_paths": "result/*",
            "agents": { "queue": "q" }, "plugins": ["a#v1"], "env": { "A": "1" }, "timeout_in_minutes": 9,
            "priority": 1, "retry": { "automatic": { "exit_status": 3 } }
        }));
        let broken = [AttrError {
            attr: path(&["p", "b"]),
            message: Some("infinite recursion".into()),
        }];
        let refused = [AttrError {
            attr: path(&["p", "r"]),
            message: Some("its `meta.buildkite.x` is a path\n$(boom)".into()),
        }];
        let records = Records {
            targets: &[],
            broken: &broken,
            refused: &refused,
            callable: &BTreeSet::new(),
            edges: &apart(&[]),
            skip: &[],
        };
        let steps = steps(&records, &request, schema()).unwrap();
        assert_eq!(steps.errors, [&broken[..], &refused[..]].concat());
        let [broken, refused] = &values(&steps)[..] else {
            panic!("two steps")
        };
        let asked = read(record_of(broken));
        assert_eq!((asked.drv, asked.outputs.len()), (None, 0));
        assert_eq!(asked.evaluation.unwrap().attr, path(&["p", "b"]));
        for (step, label) in [(broken, ":boom: p.b"), (refused, ":boom: p.r")] {
            for key in ["command", "parallelism", "skip"] {
                assert!(step.get(key).is_none(), "{key}: {step}");
            }
            assert_eq!(step["label"], label);
            assert_eq!(step["plugins"][1], "a#v1");
            assert_eq!(step["agents"], json!({ "queue": "q" }));
            assert_eq!(step["env"], json!({ "A": "1" }));
            assert_eq!(
                (&step["timeout_in_minutes"], &step["priority"]),
                (&json!(9), &json!(1))
            );
            assert_eq!(step["retry"]["automatic"].as_array().unwrap().len(), 5);
        }
        assert!(refused.get("artifact_paths").is_none());
        assert_eq!(
            Value::Object(record_of(refused)),
            json!({ "refused": "p.r: its `meta.buildkite.x` is a path $(boom)" })
        );
    }

    #[test]
    fn nobody_waits_for_a_skipped_target() {
        let targets = [target(0, &["a"]), target(1, &["b"]), target(2, &["c"])];
        let edges = chain(&targets, &[(0, 1), (1, 2)]);
        let skip = [None, Some("already built".to_owned()), None];
        let steps = make(&targets, &edges, &skip, &request()).unwrap();
        assert_eq!(steps.placed[1].skip.as_deref(), Some("already built"));
        assert!(steps.placed[1].depends_on.is_empty());
        let marked = values(&steps);
        assert_eq!(marked[1]["skip"], "already built");
        assert_eq!(marked[2]["depends_on"], json!([key(&targets[2])]));
        let request = RecordingRequest {
            skip_style: SkipStyle::Omit,
            ..request()
        };
        let steps = make(&targets, &edges, &skip, &request).unwrap();
        assert_eq!((steps.steps.len(), steps.left_out), (2, 0));
    }

    #[test]
    fn a_command_of_its_own_is_carried_beside_the_record_where_steps_are_commands() {
        for (command, carried) in [
            (json!("make test"), json!("make test")),
            (json!(["a $x", "", "b"]), json!("a $x\n\nb")),
            (json!("eval-once step"), Value::Null),
            (json!(" "), Value::Null),
        ] {
            let request = RecordingRequest {
                emit: Emit::Command,
                ..wanting(&json!({ "command": command }))
            };
            let step = &made(&[target(1, &["a"])], &request)[0];
            assert_eq!(step["command"], "eval-once step");
            assert_eq!(step["env"]["EVAL_ONCE_COMMAND"], carried);
        }
    }

    #[test]
    fn a_skipped_step_that_runs_is_told_to_end_at_once_and_is_waited_for_by_the_summary_alone() {
        for emit in [Emit::Command, request().emit] {
            let targets = [
                target(0, &["a"]),
                target(1, &["b"]),
                target(2, &["c"]),
                with(3, &json!({ "command": "test" })),
                with(4, &json!({ "skip": "because" })),
            ];
            let edges = chain(&targets, &[(0, 1), (1, 2)]);
            let built = || Some("already built here".to_owned());
            let skip = [None, built(), None, built(), built()];
            let request = RecordingRequest {
                emit,
                summary: true,
                skip_style: SkipStyle::Run,
                ..request()
            };
            let steps = make(&targets, &edges, &skip, &request).unwrap();
            let reasons: Vec<_> = steps.placed.iter().map(|it| it.skip.as_deref()).collect();
            let expected = [None, Some("already built here"), None, None, None];
            assert_eq!(reasons, expected);
            let made: BTreeMap<_, _> = values(&steps)
                .into_iter()
                .map(|step| (step["key"].as_str().unwrap().to_owned(), step))
                .collect();
            let step = |i: usize| &made[&key(&targets[i])];
            assert!(step(1).get("skip").is_none());
            assert!(read(record_of(step(1))).skip);
            for i in [0, 2, 3, 4] {
                assert!(!record_of(step(i)).contains_key("skip"), "{i}");
            }
            assert_eq!(step(4)["skip"], "because");
            assert_eq!(step(1)["depends_on"], json!([]));
            assert_eq!(
                step(0)["depends_on"],
                json!([key(&targets[2])]),
                "through it"
            );
            let last = &values(&steps)[5];
            let awaited = json!({ "step": key(&targets[1]), "allow_failure": true });
            assert!(
                last["depends_on"].as_array().unwrap().contains(&awaited),
                "{last}"
            );
        }
    }

    #[test]
    fn a_summary_waits_for_no_step_that_the_limit_of_a_build_has_left_out() {
        let targets: Vec<_> = (0..=JOBS_PER_BUILD)
            .map(|i| target(i, &[&i.to_string()]))
            .collect();
        let skip = vec![Some("a cache has it".to_owned()); targets.len()];
        let request = RecordingRequest {
            summary: true,
            skip_style: SkipStyle::Run,
            ..request()
        };
        let steps = make(&targets, &apart(&targets), &skip, &request).unwrap();
        assert_eq!((steps.steps.len(), steps.left_out), (JOBS_PER_BUILD - 1, 3));
        let there: BTreeSet<_> = steps.steps.iter().map(|it| it.step.key.as_str()).collect();
        let waits = &steps.steps.last().unwrap().step.depends_on;
        assert_eq!(waits.len(), JOBS_PER_BUILD - 2);
        for wait in waits {
            let Dependency::Step { step, .. } = wait else {
                panic!("{wait:?}")
            };
            assert!(there.contains(step.as_str()), "{step}");
        }
    }

    #[test]
    fn a_target_whose_command_another_plugin_runs_is_never_skipped() {
        let skip = [Some("built".to_owned())];
        let request = RecordingRequest {
            build_keys: keys(&json!({ "command": "none" })),
            ..wanting(&json!({ "plugins": ["docker#v5"] }))
        };
        let targets = [target(0, &["a"])];
        let steps = make(&targets, &apart(&targets), &skip, &request).unwrap();
        assert_eq!(steps.placed[0].skip, None);
    }

    #[test]
    fn a_step_with_a_command_of_its_own_is_never_skipped() {
        let skip = [
            Some("x".repeat(90)),
            Some("built".into()),
            Some("built".into()),
        ];
        let targets = [
            target(0, &["a"]),
            with(1, &json!({ "command": "test" })),
            with(2, &json!({ "skip": false })),
        ];
        let steps = make(&targets, &apart(&targets), &skip, &request()).unwrap();
        assert_eq!(steps.placed[0].skip.as_ref().unwrap().chars().count(), 70);
        assert_eq!(steps.placed[1].skip, None);
        assert_eq!(steps.placed[2].skip, None);
        let steps = make(
            &targets,
            &apart(&targets),
            &skip,
            &wanting(&json!({ "command": "t" })),
        );
        assert!(
            steps
                .unwrap()
                .placed
                .iter()
                .all(|placed| placed.skip.is_none())
        );
    }

    #[test]
    fn the_limit_of_a_build_leaves_skipped_steps_out_and_nothing_else() {
        let targets: Vec<_> = (0..4_100)
            .map(|i| target(i, &["g", &format!("t{i}")]))
            .collect();
        let edges = apart(&targets);
        let reason = |i: usize| i.is_multiple_of(2).then(|| "built".to_owned());
        let skip: Vec<_> = (0..targets.len()).map(reason).collect();
        let steps = make(&targets, &edges, &skip, &request()).unwrap();
        assert_eq!((steps.steps.len(), steps.left_out), (3_999, 101));
        assert_eq!(
            steps.steps.iter().filter(|step| !step.skipped).count(),
            2_050
        );
        let grouped = RecordingRequest {
            group_by: 1,
            ..request()
        };
        let steps = make(&targets, &edges, &skip, &grouped).unwrap();
        let groups = steps.steps.len().div_ceil(100);
        assert!((3_990..=3_999).contains(&(steps.steps.len() + groups)));
        let failure = make(&targets, &edges, &[], &request()).unwrap_err();
        assert_eq!(failure.class, Class::Config);
        assert!(failure.to_string().contains("4100 jobs") && failure.hint.is_some());
    }

    #[test]
    fn a_summary_comes_behind_all_others_whatever_becomes_of_them() {
        let mut targets: Vec<_> = (0..3).map(|i| target(i, &["p", &i.to_string()])).collect();
        targets[1].system = "aarch64-linux".into();
        let edges = chain(&targets, &[(0, 1)]);
        let tags = |tags: Value| tags.as_object().unwrap().clone();
        let request = RecordingRequest {
            summary: true,
            step: tags(json!({
                "agents": ["queue=nix", "size=big"], "env": { "A": "1" }, "parallelism": 2,
                "label": "x", "plugins": [{ "kubernetes": { "podSpec": {} } }], "timeout_in_minutes": 9,
                "depends_on": "before", "cancel_on_build_failing": true, "artifact_paths": "result", "matrix": ["a"],
                "allow_dependency_failure": true, "notify": ["github_commit_status"], "soft_fail": true,
                "retry": { "automatic": { "exit_status": 3 }, "manual": false }
            })),
            agents: BTreeMap::from([
                ("x86_64-linux".into(), tags(json!({ "queue": "intel" }))),
                ("aarch64-linux".into(), tags(json!({ "queue": "arm" }))),
            ]),
            ..request()
        };
        let records = Records {
            targets: &targets,
            broken: &[AttrError {
                attr: path(&["p", "bad"]),
                message: None,
            }],
            refused: &[],
            callable: &BTreeSet::new(),
            edges: &edges,
            skip: &[None, None, Some("a cache has it".into())],
        };
        let steps = steps(&records, &request, schema()).unwrap();
        let last = &values(&steps)[4];
        let waits = [
            error_key(&path(&["p", "bad"])),
            key(&targets[1]),
            key(&targets[0]),
        ];
        let waits = waits.map(|key| json!({ "step": key, "allow_failure": true }));
        let hash = last["key"]
            .as_str()
            .unwrap()
            .strip_prefix("summary-")
            .unwrap();
        assert_eq!(hash.len(), 32);
        let mut rules = vec![json!({ "exit_status": 3 })];
        rules.extend(retry_rules().iter().map(|rule| json!(rule)));
        let error = &values(&steps)[0];
        assert_eq!(error["agents"], last["agents"], "where most targets go");
        assert_eq!(
            last,
            &json!({
                "label": ":bar_chart: eval-once summary",
                "key": last["key"],
                "plugins": [
                    { "your-org/eval-once#v1": { "summary": true } },
                    { "kubernetes": { "podSpec": {} } }
                ],
                "agents": { "queue": "intel", "size": "big" },
                "env": { "A": "1" },
                "timeout_in_minutes": 9,
                "soft_fail": true,
                "depends_on": waits,
                "retry": { "automatic": rules, "manual": false },
            })
        );
        let command = RecordingRequest {
            emit: Emit::Command,
            ..request
        };
        let again = super::steps(&records, &command, schema()).unwrap();
        let again = &values(&again)[4];
        assert_eq!(again["command"], "eval-once summary");
        assert_eq!(again["key"], last["key"]);
    }

    #[test]
    fn a_summary_is_one_of_the_jobs_that_a_build_can_have() {
        let targets: Vec<_> = (0..JOBS_PER_BUILD - 1)
            .map(|i| target(i, &["p", &i.to_string()]))
            .collect();
        let edges = apart(&targets);
        let request = RecordingRequest {
            summary: true,
            ..request()
        };
        assert!(make(&targets, &edges, &[], &request).is_err());
        let mut skip = vec![None; targets.len()];
        skip[7] = Some("a cache has it".into());
        let steps = make(&targets, &edges, &skip, &request).unwrap();
        assert_eq!((steps.steps.len(), steps.left_out), (JOBS_PER_BUILD - 1, 1));
        let last = &steps.steps.last().unwrap().step;
        assert!(last.key.starts_with("summary-"));
        assert_eq!(last.depends_on.len(), JOBS_PER_BUILD - 2);
    }

    #[test]
    fn groups_are_called_by_the_first_names() {
        let targets = [
            target(0, &["a", "b", "c"]),
            target(1, &["a", "b"]),
            target(2, &["a", "b", "d"]),
        ];
        let request = RecordingRequest {
            group_by: 2,
            ..request()
        };
        let steps = make(&targets, &apart(&targets), &[], &request).unwrap();
        let groups: Vec<_> = steps
            .steps
            .iter()
            .map(|step| step.group.as_deref())
            .collect();
        assert_eq!(groups, [Some(":nix: a.b"), None, Some(":nix: a.b")]);
    }

    #[test]
    fn the_metadata_of_changes_nobody_trusts_is_ignored() {
        let request = RecordingRequest {
            meta: false,
            ..request()
        };
        let step = &made(
            &[with(1, &json!({ "command": "evil", "key": "x" }))],
            &request,
        )[0];
        assert!(step.get("command").is_none());
    }

    #[test]
    fn a_label_shows_what_is_there_and_nothing_else() {
        let hostile = ":boom:\u{202e}\u{1b}[31m\n\u{200b}x\u{3164}";
        let label = label_of(":nix:", &path(&["a", hostile]).to_string());
        assert_eq!(
            label,
            ":nix: a.\"∶boom∶\u{fffd}\u{fffd}[31m\\n\u{fffd}x\u{fffd}\""
        );
        let label = label_of(":nix:", &"é".repeat(5_000));
        assert_eq!(label.chars().count(), 6 + 200);
    }

    #[test]
    fn keys_of_error_steps_are_the_same_in_every_version() {
        // Retried recordings and dashboards know steps by them.
        assert_eq!(
            error_key(&path(&["a", "b"])),
            "attr-cf6ab613e3942391f88ed698557e1680"
        );
        assert_ne!(error_key(&path(&["ab"])), error_key(&path(&["a", "b"])));
    }

    #[test]
    fn a_plugin_is_known_by_whatever_leads_to_it() {
        for reference in [
            "eval-once#v1",
            "your-org/eval-once#v1",
            "https://github.com/your-org/eval-once-buildkite-plugin.git#v1",
            "/srv/Eval_Once-buildkite-plugin",
            "./.buildkite/plugins/eval-once/",
        ] {
            assert_eq!(plugin_name(reference), "eval-once", "{reference}");
        }
    }

    /// Anything that a cleaned `meta.buildkite` can hold, more often than not about properties that mean something.
    fn anything() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-z:\u{80}\u{2028}]{0,4}".prop_map(Value::from),
        ];
        let name = prop_oneof![
            4 => proptest::sample::select(vec![
                "agents", "env", "plugins", "depends_on", "command", "commands", "label", "name", "key", "retry", "automatic",
                "skip", "matrix", "parallelism", "soft_fail", "timeout_in_minutes", "exit_status", "limit", "setup",
            ]).prop_map(str::to_owned),
            1 => "[a-z]{1,3}",
        ];
        leaf.prop_recursive(3, 24, 4, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec((name.clone(), inner), 0..4)
                    .prop_map(|entries| Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_targets_say_the_pipeline_is_valid(
            wishes in proptest::collection::vec(anything(), 1..6),
            skipped in any::<u8>(),
            command in any::<bool>(),
        ) {
            let targets: Vec<_> = wishes.iter().enumerate().map(|(i, wish)| with(i, wish)).collect();
            let pairs: Vec<_> = (1..targets.len()).map(|i| (i, i - 1)).collect();
            let edges = chain(&targets, &pairs);
            let skip: Vec<_> = (0..targets.len()).map(|i| (skipped >> i & 1 == 1).then(|| "built".to_owned())).collect();
            let mut request = RecordingRequest { group_by: 1, ..request() };
            if command {
                request.emit = Emit::Command;
            }
            let made = make(&targets, &edges, &skip, &request).unwrap();
            let document = plan::document(&made.steps).unwrap();
            let read: Value = serde_yaml_ng::from_str(&document).unwrap();
            prop_assert_eq!(&read, &serde_json::from_str::<Value>(&document).unwrap());
            prop_assert_eq!(schema().check_pipeline(&read), Ok(()));
            let keys: BTreeSet<_> = made.steps.iter().map(|step| step.step.key.clone()).collect();
            prop_assert_eq!(keys.len(), targets.len());
            for (target, placed) in targets.iter().zip(&made.placed) {
                prop_assert!(keys.contains(&placed.key));
                prop_assert!(placed.depends_on.iter().all(|key| keys.contains(key)));
                if placed.key == key(target) {
                    let step = made.steps.iter().find(|step| step.step.key == placed.key).unwrap();
                    let record = record_of(&serde_json::to_value(&step.step).unwrap());
                    prop_assert_eq!(read_drv(record), target.drv.clone());
                }
            }
        }
    }

    fn read_drv(record: Keys) -> DrvPath {
        read(record).drv.unwrap()
    }
}
