//! Pipelines as Buildkite takes or refuses them, as data: nothing here knows of a build.
//!
//! The messages are Buildkite's own where they are known (pipeline-schema's issues 60 and 68, ray's #62736, llm-compressor's
//! #2945); what it says about the other rules is not, and the words are ours.

use std::sync::LazyLock;

use jsonschema::Validator;
use serde_json::{Map, Value, json};

/// Jobs in one upload; a group counts as one, beside its members.
pub(super) const JOBS_IN_AN_UPLOAD: usize = 500;

/// Buildkite's own description of pipelines, the same that the program checks its steps against. It lacks `checkout`, which
/// Buildkite's documentation has.
static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let text = include_str!("../../../src/buildkite/pipeline-schema.json");
    let mut schema: Value = serde_json::from_str(text).unwrap();
    schema["definitions"]["commandStep"]["properties"]["checkout"] =
        json!({ "type": "object", "properties": { "skip": { "type": "boolean" } } });
    schema
});

static VALIDATOR: LazyLock<Validator> = LazyLock::new(|| jsonschema::draft7::new(&SCHEMA).unwrap());

/// A step, or a group as the step that stands before its members.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) kind: Kind,
    pub(super) key: Option<String>,
    pub(super) label: Option<String>,
    /// Where in the upload the group stands that this step is a member of.
    pub(super) group: Option<usize>,
    /// What was said about dependencies; nothing said means the `wait` before it.
    pub(super) depends_on: Option<Vec<Dependency>>,
    pub(super) allow_dependency_failure: bool,
    /// Why it is skipped, if it is; may be empty.
    pub(super) skip: Option<String>,
    pub(super) priority: i64,
    /// The step as it was uploaded, with the pipeline's `env` and `agents` where it has none of its own.
    pub(super) properties: Map<String, Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Command,
    Wait {
        continue_on_failure: bool,
    },
    /// A question, which somebody answers with yes as soon as it is asked.
    Block,
    Group,
}

#[derive(Clone, Debug)]
pub(super) struct Dependency {
    pub(super) key: String,
    pub(super) allow_failure: bool,
}

/// Reads an uploaded pipeline: all of its steps, members behind their group, or why the whole of it is refused.
pub(super) fn read(pipeline: &Value) -> Result<Vec<Step>, String> {
    let Some(uploaded) = pipeline["steps"].as_array().filter(|it| !it.is_empty()) else {
        return Err("No steps were found in the pipeline".to_owned());
    };
    let mut steps = Vec::new();
    for step in uploaded {
        read_step(step, None, &mut steps)?;
    }
    // What was refused above has Buildkite's own words; this is for the rest.
    if let Some(error) = VALIDATOR.iter_errors(pipeline).next() {
        let mut message = error.to_string();
        if message.len() > 2_000 {
            message = format!("{}…", message.chars().take(2_000).collect::<String>());
        }
        return Err(format!(
            "`{}` is not valid: {message}",
            error.instance_path()
        ));
    }
    if steps.len() > JOBS_IN_AN_UPLOAD {
        return Err(format!(
            "The number of jobs in this upload exceeds your organization limit of {JOBS_IN_AN_UPLOAD}. Please upload the jobs in \
             multiple batches"
        ));
    }
    for step in &mut steps {
        inherit(&mut step.properties, pipeline);
    }
    Ok(steps)
}

/// What a step has from its pipeline.
fn inherit(properties: &mut Map<String, Value>, pipeline: &Value) {
    if let Some(env) = pipeline["env"].as_object() {
        let mut env = env.clone();
        if let Some(own) = properties.get("env").and_then(Value::as_object) {
            env.extend(own.clone());
        }
        properties.insert("env".to_owned(), env.into());
    }
    if let (Some(agents), false) = (pipeline.get("agents"), properties.contains_key("agents")) {
        properties.insert("agents".to_owned(), agents.clone());
    }
}

fn read_step(step: &Value, group: Option<usize>, steps: &mut Vec<Step>) -> Result<(), String> {
    let mut properties = match step {
        Value::String(word) if word == "wait" || word == "waiter" => {
            [("wait".to_owned(), Value::Null)].into_iter().collect()
        }
        Value::Object(properties) => properties.clone(),
        other => return Err(format!("Step is missing a type `{other}`")),
    };
    let has = |name: &str| properties.contains_key(name);
    let (kind, name) = kind_of(&properties)?;
    if group.is_some() && !matches!(kind, Kind::Command | Kind::Block) {
        return Err(match kind {
            Kind::Group => "Group steps can not be nested within other group steps".to_owned(),
            _ => not_played("a `wait` step in a group"),
        });
    }
    let known = SCHEMA["definitions"][format!("{name}Step")]["properties"]
        .as_object()
        .unwrap();
    if let Some(unknown) = properties.keys().find(|it| !known.contains_key(*it)) {
        return Err(format!(
            "`{unknown}` is not a valid property on the `{name}` step. Please check the documentation to get a full list of \
             supported properties."
        ));
    }
    for property in ["if", "if_changed", "matrix", "secrets"] {
        if has(property) {
            return Err(not_played(&format!("`{property}`")));
        }
    }
    if properties.get("parallelism").is_some_and(|it| it != 1) {
        return Err(not_played("`parallelism`"));
    }

    let text = |names: &[&str]| {
        names
            .iter()
            .find_map(|name| properties.get(*name)?.as_str().map(str::to_owned))
    };
    let key = text(&["key", "identifier", "id"]);
    if let Some(key) = &key {
        check_key(key)?;
    }
    let skip = match properties.get("skip") {
        Some(Value::Bool(true)) => Some(String::new()),
        Some(Value::String(reason)) if reason.chars().count() > 70 => {
            return Err("Skip reasons can have a maximum of 70 characters".to_owned());
        }
        Some(Value::String(reason)) if !reason.is_empty() => Some(reason.clone()),
        _ if !is_of_branch(properties.get("branches")) => Some(String::new()),
        _ => None,
    };
    let depends_on = properties
        .contains_key("depends_on")
        .then(|| dependencies(&properties["depends_on"]));
    let label = text(&["label", "name", "block", "group"]);
    let at = steps.len();
    let members = properties.remove("steps");
    steps.push(Step {
        kind,
        key,
        label,
        group,
        depends_on,
        allow_dependency_failure: is_true(properties.get("allow_dependency_failure")),
        skip,
        priority: properties
            .get("priority")
            .and_then(Value::as_i64)
            .unwrap_or_default(),
        properties,
    });
    if kind == Kind::Group {
        let members = members.unwrap_or_default();
        let Some(members) = members.as_array().filter(|it| !it.is_empty()) else {
            return Err("Group steps must have at least one step".to_owned());
        };
        for member in members {
            read_step(member, Some(at), steps)?;
        }
        let (before, members) = steps.split_at_mut(at + 1);
        for member in members {
            join(member, &before[at]);
        }
    }
    Ok(())
}

/// The kind of a step, and its name in the schema.
fn kind_of(properties: &Map<String, Value>) -> Result<(Kind, &'static str), String> {
    let has = |name: &str| properties.contains_key(name);
    if let Some(type_) = ["input", "trigger"].iter().find(|it| has(it)) {
        return Err(not_played(&format!("a `{type_}` step")));
    }
    Ok(if has("group") {
        (Kind::Group, "group")
    } else if has("block") {
        (Kind::Block, "block")
    } else if has("wait") || has("waiter") {
        let continue_on_failure = is_true(properties.get("continue_on_failure"));
        (
            Kind::Wait {
                continue_on_failure,
            },
            "wait",
        )
    } else if ["command", "commands", "plugins"].iter().any(|it| has(it)) {
        (Kind::Command, "command")
    } else {
        let step = Value::Object(properties.clone());
        return Err(format!("Step is missing a type `{step}`"));
    })
}

/// What is said about a group is said about each of its members.
fn join(member: &mut Step, group: &Step) {
    if let Some(also) = &group.depends_on {
        let own = member.depends_on.get_or_insert_default();
        own.extend(also.iter().cloned());
    }
    member.allow_dependency_failure |= group.allow_dependency_failure;
    if member.skip.is_none() {
        member.skip.clone_from(&group.skip);
    }
}

/// The branch of every build.
pub(super) const BRANCH: &str = "main";

/// Whether a step with these branches is one of the build: names alone, no patterns.
fn is_of_branch(branches: Option<&Value>) -> bool {
    match branches {
        None => true,
        Some(Value::Array(names)) => names.iter().any(|name| name == BRANCH),
        Some(names) => names
            .as_str()
            .unwrap_or_default()
            .split(' ')
            .any(|name| name == BRANCH),
    }
}

fn check_key(key: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-:${}.,".contains(c);
    if key.chars().count() > 100 {
        return Err("Step keys can have a maximum of 100 characters".to_owned());
    }
    if key.is_empty() || !key.chars().all(allowed) {
        return Err(format!(
            "Step keys can only have alphanumeric characters, underscores, dashes and colons: \"{key}\""
        ));
    }
    let parts: Vec<&str> = key.split('-').collect();
    let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    let hexadecimal = |part: &&str| part.chars().all(|c| c.is_ascii_hexdigit());
    if lengths == [8, 4, 4, 4, 12] && parts.iter().all(hexadecimal) {
        return Err(format!("Step keys can not look like a UUID: \"{key}\""));
    }
    Ok(())
}

fn dependencies(written: &Value) -> Vec<Dependency> {
    let one = |entry: &Value| {
        let key = entry.as_str().or_else(|| entry["step"].as_str())?;
        Some(Dependency {
            key: key.to_owned(),
            allow_failure: is_true(entry.get("allow_failure")),
        })
    };
    match written {
        Value::Array(entries) => entries.iter().filter_map(one).collect(),
        other => one(other).into_iter().collect(),
    }
}

/// Buildkite takes booleans as strings too.
pub(super) fn is_true(value: Option<&Value>) -> bool {
    value.is_some_and(|value| value == true || value == "true")
}

/// A refusal that is this server's alone: better than playing something wrong.
pub(super) fn not_played(what: &str) -> String {
    format!("{what} is not played by this test server")
}
