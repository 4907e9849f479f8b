//! From records to steps: a pure function.
//!
//! What repositories choose (names, metadata) and what users configure meets here, and the result has to be a pipeline that
//! Buildkite takes: whatever would get an upload rejected is found here, and costs one step instead of a chunk.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::edges::Edges;
use super::plan::{self, JOBS_PER_UPLOAD};
use super::{Broken, Emit, Request, SkipStyle, Target};
use crate::buildkite::pipeline::{
    Automatic, Command, CommandStep, Dependency, Plugin, Retry, RetryRule, Skip,
};
use crate::buildkite::schema::Schema;
use crate::exit::{Class, Classify as _, Failure};
use crate::keys::{Keys, refuse};
use crate::nix::{Argument, AttrPath, Evaluation, Source};

/// How many jobs a build can have, in all: also those that it had before, and each retry.
pub const JOBS_PER_BUILD: usize = 4_000;

/// The most bytes of a record. It travels in environment variables, up to three times in one job, and Linux takes at most
/// 128 KiB in each of them.
const RECORD_AT_MOST: usize = 100 << 10;

/// The most characters of a label.
const LABEL_AT_MOST: usize = 200;

/// The most characters of a reason to skip a step; Buildkite rejects longer ones.
const REASON_AT_MOST: usize = 70;

/// What an error step says whose attribute would evaluate: its step would be green if it were built. The message is in the
/// environment, so nothing of it is ever read by the shell.
const SAY_ERROR: &str = r#"printf '%s\n' "$EVAL_ONCE_ERROR" >&2; exit 64"#;

/// What was recorded.
#[derive(Debug, Clone, Copy)]
pub struct Records<'a> {
    /// The targets.
    pub targets: &'a [Target],
    /// The attributes that do not evaluate.
    pub broken: &'a [Broken],
    /// The attributes that evaluate, but whose metadata cannot be used. A step that evaluates them again would find nothing
    /// wrong with them, so theirs only say what is wrong.
    pub refused: &'a [Broken],
    /// The edges between the targets.
    pub edges: &'a Edges,
    /// For each target, why it needs no step, if it needs none.
    pub skip: &'a [Option<String>],
}

/// A step, and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// The step.
    pub step: CommandStep,
    /// The name of its group, if it is in one.
    pub group: Option<String>,
    /// Whether it is there only to say that nothing needs to be built. Nobody waits for such a one.
    pub skipped: bool,
}

/// The steps of a recording.
#[derive(Debug, Clone, PartialEq)]
pub struct Steps {
    /// Those that are uploaded, in topological order; error steps first.
    pub steps: Vec<Planned>,
    /// What became of each target, in the order of the records.
    pub placed: Vec<Placed>,
    /// All attributes that have an error step: the broken and refused ones that were recorded, and targets whose own metadata
    /// makes no step that Buildkite would take.
    pub errors: Vec<Broken>,
    /// How many skipped steps are left out because a build cannot have so many jobs.
    pub left_out: usize,
}

/// What became of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The key of its step.
    pub key: String,
    /// The keys of the steps that it waits for because of its `.drv`.
    pub depends_on: Vec<String>,
    /// Why its step is skipped or left out, if it is.
    pub skip: Option<String>,
}

/// Makes the steps.
///
/// # Errors
/// The user's `step` or `agents` make no step that Buildkite would take, the expression is too large to be in every step, or
/// more is to be built than a build can have jobs (64).
pub fn steps(records: &Records<'_>, request: &Request, schema: &Schema) -> Result<Steps, Failure> {
    let maker = Maker::new(request, schema)?;
    let mut errors: Vec<Broken> = [records.broken, records.refused].concat();

    let mut made = Vec::with_capacity(records.targets.len());
    for (i, target) in records.targets.iter().enumerate() {
        let skip = records.skip.get(i).and_then(Option::as_deref);
        made.push(maker.target(target, skip).map_err(|message| {
            errors.push(Broken {
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
    let placed: Vec<Placed> = records
        .targets
        .iter()
        .zip(&made)
        .enumerate()
        .map(|(i, (target, made))| Placed {
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
    let mut planned: Vec<Planned> = Vec::with_capacity(made.len() + errors.len());
    for (i, error) in errors.iter().enumerate() {
        let step = if i < records.broken.len() {
            maker.broken(error)?
        } else {
            maker.refused(error)?
        };
        if seen.insert(step.key.clone()) {
            planned.push(Planned {
                step,
                group: None,
                skipped: false,
            });
        }
    }
    let mut made: Vec<Option<Made>> = made.into_iter().map(Result::ok).collect();
    for i in edges.order() {
        let Some(Made { mut step, skip }) = made[*i].take() else {
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
        planned.push(Planned {
            step,
            group,
            skipped: skip.is_some(),
        });
    }
    let (steps, left_out) = fit(planned, request)?;
    Ok(Steps {
        steps,
        placed,
        errors,
        left_out,
    })
}

/// Leaves skipped steps out, from the end, until a build can have what is left; and says how many.
fn fit(mut steps: Vec<Planned>, request: &Request) -> Result<(Vec<Planned>, usize), Failure> {
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
                "{jobs} jobs are to be run{groups}, and a build can have {JOBS_PER_BUILD} with this one: nothing was uploaded"
            ))
            .hint("leave targets out with `exclude`, or record parts of them in builds of their own, each with its `attr`"));
        }
        // Their groups may go with them, so this is more often done in steps than too far.
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
    let mut hash = Sha256::new();
    for name in attr.names() {
        // With their lengths, so that no two lists of names are the same bytes.
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
    }
    let mut key = "attr-".to_owned();
    for byte in hash.finalize().iter().take(16) {
        let _ = write!(key, "{byte:02x}");
    }
    key
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
struct Made {
    step: CommandStep,
    skip: Option<String>,
}

/// What all steps of a recording have in common.
struct Maker<'a> {
    request: &'a Request,
    schema: &'a Schema,
    /// What is evaluated.
    source: Keys,
    /// The user's `step`.
    step: Given,
    /// What of it an error step takes.
    error_step: Given,
    /// The user's `agents`, by system or feature.
    agents: BTreeMap<&'a str, Keys>,
}

impl<'a> Maker<'a> {
    fn new(request: &'a Request, schema: &'a Schema) -> Result<Self, Failure> {
        let wrong = |message: String| refuse(format_args!("in the key `step`, {message}"));
        let step = Given::read(&request.step, &request.emit).map_err(wrong)?;
        // A broken target must not be green because its step runs something else, or nothing.
        let mut error_step = step.clone();
        for key in ["command", "skip", "parallelism", "matrix"] {
            error_step.keys.remove(key);
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
            error_step,
            agents,
        };
        let mut probe = maker.begin("label".into(), "key".into(), Keys::new())?;
        maker.step.merge_into(&mut probe);
        maker.check(probe).map_err(wrong)?;
        Ok(maker)
    }

    /// The step of a target, or why there is none.
    fn target(&self, target: &Target, skip: Option<&str>) -> Result<Made, String> {
        let mut record = self.record(&target.attr);
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
        if let Some(seconds) = target.meta.timeout.filter(|seconds| *seconds > 0) {
            step.insert("timeout_in_minutes".into(), seconds.div_ceil(60).into());
        }
        let features = target
            .features
            .iter()
            .map(|feature| format!("feature:{feature}"));
        for name in std::iter::once(target.system.clone()).chain(features) {
            if let Some(tags) = self.agents.get(name.as_str()) {
                merge(&mut step, "agents", &Value::Object(tags.clone()));
            }
        }
        self.step.merge_into(&mut step);
        let mut own_command = self.step.has_command();
        if let Some(buildkite) = target.meta.buildkite.as_ref().filter(|_| self.request.meta) {
            let wrong = |message| format!("in its `meta.buildkite`, {message}");
            let given = Given::read(buildkite, &self.request.emit).map_err(wrong)?;
            given.merge_into(&mut step);
            own_command |= given.has_command();
            self.check(step.clone()).map_err(wrong)?;
        }
        let mut step = self.check(step)?;
        if step.jobs() > JOBS_PER_UPLOAD {
            return Err(format!(
                "its step becomes {} jobs, and Buildkite takes at most {JOBS_PER_UPLOAD} at once",
                step.jobs()
            ));
        }
        // Who said themselves whether this step is skipped knows better.
        let skip = skip.filter(|_| !own_command && step.skip.is_none());
        let skip = skip.map(|reason| shortened(&inert(reason), REASON_AT_MOST));
        if let Some(reason) = &skip {
            step.skip = Some(Skip::Reason(reason.clone()));
        }
        Ok(Made { step, skip })
    }

    /// The step of an attribute that does not evaluate: it evaluates it, shows what Nix says, and fails.
    fn broken(&self, broken: &Broken) -> Result<CommandStep, Failure> {
        let label = label_of(":boom:", &broken.attr.to_string());
        let record = self.record(&broken.attr);
        if length(&record) > RECORD_AT_MOST {
            return self.refused(broken);
        }
        let mut step = self.begin(label, error_key(&broken.attr), record)?;
        self.error_step.merge_into(&mut step);
        self.check(step)
            .map_err(|message| Failure::new(Class::Bug, message))
    }

    /// The step of an attribute that does evaluate, but cannot have the step it asks for: it says why, and fails.
    fn refused(&self, refused: &Broken) -> Result<CommandStep, Failure> {
        let attr = refused.attr.to_string();
        let message = refused
            .message
            .as_deref()
            .unwrap_or("it cannot have a step");
        let mut env = Keys::new();
        let message = format!("eval-once: {attr}: {message}");
        env.insert(
            "EVAL_ONCE_ERROR".into(),
            shortened(&inert(&message), 4096).into(),
        );
        let step = CommandStep {
            label: label_of(":boom:", &attr),
            key: error_key(&refused.attr),
            command: Some(Command::One(SAY_ERROR.into())),
            env,
            ..CommandStep::default()
        };
        let mut step = keys_of(&step)?;
        if let Some(agents) = self.error_step.keys.get("agents") {
            merge(&mut step, "agents", agents);
        }
        self.check(step)
            .map_err(|message| Failure::new(Class::Bug, message))
    }

    /// The record of an attribute, without what was found of it.
    fn record(&self, attr: &AttrPath) -> Keys {
        let mut record = self.source.clone();
        record.insert("attr".into(), attr.names().into());
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
            // A command of the user's takes the place of this one: then only an agent with our hook builds, and runs it after.
            Emit::Command => {
                step.command = Some(Command::One("eval-once step".into()));
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
#[derive(Debug, Clone)]
struct Given {
    keys: Keys,
}

impl Given {
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

    fn has_command(&self) -> bool {
        self.keys.contains_key("command")
    }

    fn merge_into(&self, step: &mut Keys) {
        for (key, value) in &self.keys {
            match (key.as_str(), step.get_mut(key), value) {
                ("plugins" | "depends_on", Some(Value::Array(list)), Value::Array(more)) => {
                    list.extend(more.iter().cloned());
                }
                _ => merge(step, key, value),
            }
        }
    }
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
    let unseen = |c: char| {
        c.is_control()
            || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    };
    let seen = |c: char| match c {
        '\n' | '\t' => ' ',
        c if unseen(c) => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(seen).collect()
}

/// At most the first `most` characters of `text`.
fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some(_) => text.chars().take(most - 1).chain(['…']).collect(),
    }
}
