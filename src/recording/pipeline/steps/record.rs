//! The record that a step carries: what is evaluated, and what the evaluation found, as keys.

use serde_json::{Value, json};

use crate::buildkite::pipeline::{CommandStep, Plugin};
use crate::exit::{Class, Classify as _, Failure};
use crate::keys::Keys;
use crate::nix::{Argument, Evaluation, Source};
use crate::recording::request::KEEP_DAYS;
use crate::share_keys::Share;

/// What is evaluated, as the keys of a record; without an attribute path.
pub(in crate::recording) fn source(root: &Evaluation, options: &[(String, String)]) -> Keys {
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

/// The keys with which a step finds a share; `unpacked` is how many bytes an archive unpacks to.
pub(in crate::recording) fn share_keys(
    share: &Share,
    unpacked: Option<u64>,
    keep_days: u32,
) -> Keys {
    let mut keys = Keys::new();
    keys.insert("share".into(), share.to_string().into());
    if let Some(bytes) = unpacked {
        keys.insert("share-size".into(), bytes.into());
        if keep_days != KEEP_DAYS {
            keys.insert("keep-days".into(), keep_days.into());
        }
    }
    keys
}

/// Adds keys to the record of a step that has the `.drv` of a target.
pub(super) fn add_to_record(step: &mut CommandStep, keys: &Keys) -> Result<(), Failure> {
    let add = |record: &mut Keys| {
        if record.contains_key("drv") || record.contains_key("targets") {
            record.extend(keys.clone());
        }
    };
    if let Some(Value::String(text)) = step.env.get_mut("EVAL_ONCE_STEP") {
        let unreadable = || "cannot read a record that was just written".to_owned();
        let mut record: Keys = serde_json::from_str(text).classify(Class::Bug, unreadable)?;
        add(&mut record);
        *text = Value::Object(record).to_string();
    } else if let Some(Plugin::Configured(plugin)) = step.plugins.first_mut() {
        // Ours is the first one.
        let records = plugin.values_mut().filter_map(Value::as_object_mut);
        records.for_each(add);
    }
    Ok(())
}

/// A record as JSON.
pub(super) fn text(record: &Keys) -> String {
    // A map of strings and values can always be written.
    serde_json::to_string(record).unwrap_or_default()
}
