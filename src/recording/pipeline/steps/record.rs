//! The record that a step carries: what is evaluated, and what the evaluation found, as keys.

use serde_json::{Value, json};

use crate::keys::Keys;
use crate::nix::{Argument, Evaluation, Source};

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

/// The size of a record as JSON, in bytes.
pub(super) fn size(record: &Keys) -> usize {
    // (Displaying JSON does not fail.)
    Value::Object(record.clone()).to_string().len()
}
