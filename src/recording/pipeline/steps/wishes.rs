//! What a user wishes of every step (`step`) and a target of its own (`meta.buildkite`, `meta.eval-once`), and how wishes are
//! merged into a step.

use serde_json::{Value, json};

use super::fallback::{self, StepFallback};
use super::retry::with_rules;
use crate::artifact_globs;
use crate::build_keys::{self, BuildKeys};
use crate::buildkite::schema::Schema;
use crate::exit::Failure;
use crate::keys::secret_values::secret_in_step;
use crate::keys::table::KeyOwner;
use crate::keys::{KeyReader, Keys, refuse};
use crate::recording::request::NO_OTHER_HOOK;
use crate::recording::{Emit, RecordingRequest};

/// The wishes that concern a target alone: what its step runs, how often, and its label. The step of an evaluation error must
/// not be green because it runs something else, or nothing.
pub(super) const FOR_TARGETS: [&str; 5] = ["command", "skip", "parallelism", "matrix", "label"];

/// The wishes that concern outputs, which some steps do not have.
pub(super) const FOR_OUTPUTS: [&str; 1] = ["artifact_paths"];

/// The wishes that do not concern the summary's step: it has dependencies of its own, runs even if the build has failed, and is
/// no target to notify anyone of.
pub(super) const FOR_ONE_OF_MANY: [&str; 4] = [
    "depends_on",
    "allow_dependency_failure",
    "cancel_on_build_failing",
    "notify",
];

/// The wishes that do not concern a summary that fails where a target did: it is a check that is required.
pub(super) const FOR_NO_CHECK: [&str; 1] = ["soft_fail"];

/// The wishes that do not concern a step that runs also where a target has failed: it would be cancelled as the build fails.
pub(super) const FOR_NO_ALWAYS: [&str; 1] = ["cancel_on_build_failing"];

/// Wished properties of a step, each in the one spelling that is merged.
#[derive(Debug, Clone, Default)]
pub(super) struct StepWishes {
    keys: Keys,
}

impl StepWishes {
    /// Reads wishes as they were written.
    ///
    /// # Errors
    /// A property cannot be set by a wish, or holds a secret, or Buildkite would reject it. The sentence names the property as it was written,
    /// which it could not after the merge.
    pub(super) fn read(written: &Keys, emit: &Emit, schema: &Schema) -> Result<Self, String> {
        if let Some(sentence) = secret_in_step(written) {
            return Err(sentence);
        }
        let mut keys = written.clone();
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
                    "`{key}` cannot be set: other steps depend on this step by the key that eval-once gives it"
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
            *plugins = as_list(plugins.take());
            if let Some(name) = our_plugin(plugins, emit) {
                return Err(format!(
                    "`plugins` names {name}, eval-once's own plugin, whose configuration in a step cannot be changed"
                ));
            }
        }
        if let Some(dependencies) = keys.get_mut("depends_on") {
            match dependencies {
                Value::Null => *dependencies = json!([]),
                Value::String(_) => *dependencies = json!([dependencies.take()]),
                _ => {}
            }
        }
        schema.check_step(&Value::Object(keys.clone()))?;
        Ok(Self { keys })
    }

    /// The wish under `key`.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key)
    }

    /// Whether there is a wish under `key`.
    pub(super) fn has(&self, key: &str) -> bool {
        match self.keys.get(key) {
            Some(Value::Array(list)) => !list.is_empty(),
            value => value.is_some(),
        }
    }

    /// These wishes without those of these names.
    pub(super) fn without(&self, names: &[&[&str]]) -> Self {
        let mut keys = self.keys.clone();
        keys.retain(|key, _| !names.iter().any(|names| names.contains(&key.as_str())));
        Self { keys }
    }

    /// Merges the wishes into a step: maps deeply, dependencies and plugins are added, retry rules as in [`with_rules`],
    /// anything else replaces.
    pub(super) fn merge_into(&self, step: &mut Keys) {
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

/// What a target wishes of how it is built (`meta.eval-once`).
#[derive(Debug, Default)]
pub(super) struct BuildWishes {
    /// Keys of its record.
    pub(super) keys: Keys,
    /// What its step evaluates instead of the recorded path.
    pub(super) fallback: Option<StepFallback>,
}

/// Reads what a target wishes of how it is built.
///
/// # Errors
/// A key is unknown, of the wrong type, or does not go with the way in which steps are made; the sentence names it.
pub(super) fn build_wishes(keys: &Keys, request: &RecordingRequest) -> Result<BuildWishes, String> {
    let read = || {
        let mut reader = KeyReader::new(keys.clone())?;
        let build = BuildKeys::read(&mut reader, &request.root.folder)?;
        if build.leaves_the_command() && request.emit == Emit::Command {
            return Err(refuse(NO_OTHER_HOOK));
        }
        artifact_globs::read(&mut reader)?;
        let fallback = fallback::read(&mut reader, request)?;
        // The evaluation has taken them out.
        reader.take::<()>("steps", "a map", |_| None)?;
        reader.finish(KeyOwner::Target)?;
        let keys = build_keys::as_written(keys);
        let keys = match &request.below {
            Some(folder) => build_keys::from_above(keys, folder).ok_or_else(|| {
                refuse(
                    "`out-link` is relative, and the recording's folder has a name that is not UTF-8",
                )
            })?,
            None => keys,
        };
        Ok(BuildWishes { keys, fallback })
    };
    read().map_err(|failure| with_hint(&failure))
}

/// What is wrong with the keys of a target, and what to do about it: a red step has one sentence.
pub(super) fn with_hint(failure: &Failure) -> String {
    match &failure.hint {
        Some(hint) => format!("{failure}: {hint}"),
        None => failure.to_string(),
    }
}

/// Merges `value` into `map` under `key`: maps deeply, anything else replaces.
pub(super) fn merge(map: &mut Keys, key: &str, value: &Value) {
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

/// Plugins as a list, however they are written.
fn as_list(plugins: Value) -> Value {
    match plugins {
        Value::Object(map) => map
            .into_iter()
            .map(|(name, value)| json!({ name: value }))
            .collect(),
        other => other,
    }
}

/// The first reference to our own plugin among these.
fn our_plugin<'a>(plugins: &'a Value, emit: &Emit) -> Option<&'a str> {
    let ours = |reference: &&str| {
        let name = plugin_name(reference);
        name == "eval-once" || matches!(emit, Emit::Plugin(own) if name == plugin_name(own))
    };
    let references = plugins.as_array().into_iter().flatten().flat_map(|plugin| {
        let names = plugin.as_object().into_iter().flat_map(Keys::keys);
        names.map(String::as_str).chain(plugin.as_str())
    });
    references.into_iter().find(ours)
}

/// The name of a plugin, as the agent makes it from its reference.
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
#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::pipeline::fixtures::{keys, schema};

    #[test]
    fn our_plugin_is_known_by_every_reference_to_it() {
        for reference in [
            "eval-once#v1",
            "your-org/eval-once#v1",
            "https://github.com/your-org/eval-once-buildkite-plugin.git#v1",
            "/srv/Eval_Once-buildkite-plugin",
            "./.buildkite/plugins/eval-once/",
        ] {
            assert_eq!(plugin_name(reference), "eval-once", "{reference}");
        }
        let fork = Emit::Plugin("o/fork#v1".into());
        assert_eq!(
            our_plugin(&json!(["a#v1", { "fork#v2": null }]), &fork),
            Some("fork#v2")
        );
        assert_eq!(our_plugin(&json!(["fork#v2"]), &Emit::Command), None);
    }

    #[test]
    fn every_spelling_of_a_property_is_read_as_one() {
        let wishes = json!({
            "name": "l", "commands": ["t"], "agents": ["queue=a", "big"], "plugins": { "x#v1": null }, "depends_on": "b"
        });
        let read = StepWishes::read(&keys(&wishes), &Emit::Command, schema()).unwrap();
        let expected = json!({
            "label": "l", "command": ["t"], "agents": { "queue": "a", "big": "true" }, "plugins": [{ "x#v1": null }],
            "depends_on": ["b"]
        });
        assert_eq!(Value::Object(read.keys.clone()), expected);
        assert!(read.has("command") && !read.has("env"));
        let rest = read.without(&[&FOR_TARGETS, &["plugins"]]);
        assert_eq!(
            rest.keys.keys().collect::<Vec<_>>(),
            ["agents", "depends_on"]
        );
        for nothing in [json!({ "command": " " }), json!({ "commands": [] })] {
            let read = StepWishes::read(&keys(&nothing), &Emit::Command, schema()).unwrap();
            assert!(!read.has("command"), "{nothing}");
        }
    }

    #[test]
    fn maps_are_merged_deeply_lists_are_added_and_anything_else_replaces() {
        let mut step = keys(&json!({
            "env": { "A": "1", "B": "1" }, "plugins": ["a"], "depends_on": ["k"], "label": "l", "soft_fail": [1]
        }));
        let wishes = StepWishes {
            keys: keys(&json!({
                "env": { "B": 2 }, "plugins": ["b"], "depends_on": ["m"], "label": "n", "soft_fail": false, "priority": 1
            })),
        };
        wishes.merge_into(&mut step);
        assert_eq!(
            Value::Object(step),
            json!({
                "env": { "A": "1", "B": 2 }, "plugins": ["a", "b"], "depends_on": ["k", "m"], "label": "n",
                "soft_fail": false, "priority": 1
            })
        );
    }
}
