//! What a target's step evaluates where its record is gone, if the target names something cheaper than its recorded path
//! (`meta.eval-once.attr`, `file`, `expr`): the recorded path may lead through the list of all targets.

use serde_json::Value;

use crate::evaluation_keys;
use crate::exit::Failure;
use crate::keys::{KeyReader, Keys, refuse};
use crate::nix::{AttrPath, Evaluation, Source};
use crate::recording::{RecordingRequest, Target};

/// What a step evaluates instead of its recorded path. That it gives the recorded `.drv` is only seen when it is evaluated: drift.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StepFallback {
    /// Another source; none: the recorded one.
    source: Option<Source>,
    attr: AttrPath,
}

/// Reads the keys; none where the target names nothing.
///
/// # Errors
/// One of them is wrong, or they cannot be combined (64).
pub(super) fn read(
    reader: &mut KeyReader,
    request: &RecordingRequest,
) -> Result<Option<StepFallback>, Failure> {
    let attr = evaluation_keys::read_attr(reader, "attr")?;
    let not_empty = |text: &String| !text.trim().is_empty();
    let file = reader.string("file")?.filter(not_empty);
    let expr = reader.string("expr")?.filter(not_empty);
    let source = match (file, expr) {
        (Some(_), Some(_)) => {
            return Err(refuse("only one of `file` and `expr` is allowed"));
        }
        (Some(file), None) => Some(Source::File(file)),
        (None, expr) => expr.map(Source::Expr),
    };
    if source.is_none() && attr.is_none() {
        return Ok(None);
    }
    let source = match (source, &request.below) {
        (Some(source), Some(folder)) => {
            // Relative to the folder of the recording, as its own `file` is.
            let evaluation = Evaluation {
                source,
                ..request.root.clone()
            };
            let unnameable = || {
                refuse(
                    "`file` is relative, and the recording's folder has a name that is not UTF-8",
                )
            };
            Some(evaluation.from_above(folder).ok_or_else(unnameable)?.source)
        }
        (source, _) => source,
    };
    Ok(Some(StepFallback {
        source,
        attr: attr.unwrap_or_default(),
    }))
}

impl StepFallback {
    /// Puts it into the record of its target, which keeps the target's own attribute path as its name.
    pub(super) fn replace_in(&self, record: &mut Keys, target: &Target) {
        // It is said of the recorded path.
        record.remove("call");
        if let Some(source) = &self.source {
            for key in ["file", "expr", "flake"] {
                record.remove(key);
            }
            let (key, text) = match source {
                Source::Expr(expr) => ("expr", expr),
                Source::File(text) | Source::Flake(text) => ("file", text),
            };
            record.insert(key.into(), text.as_str().into());
        }
        record.insert("attr".into(), Value::from(self.attr.names()));
        record.insert("target".into(), Value::from(target.attr.names()));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::fixtures::{request, target_building};
    use super::*;
    use crate::keys::table::KeyOwner;

    /// The record of a target with these keys.
    fn record(wishes: &Value, below: Option<&str>) -> Result<Value, String> {
        let request = RecordingRequest {
            below: below.map(Into::into),
            ..request()
        };
        let keys = wishes.as_object().unwrap().clone();
        let mut reader = KeyReader::new(keys).unwrap();
        let read = read(&mut reader, &request).map_err(|failure| failure.to_string())?;
        let mut record = json!({ "file": "ci.nix", "call": false, "attr": ["p", "t0"] });
        if let Some(fallback) = read {
            fallback.replace_in(record.as_object_mut().unwrap(), &target_building(0, wishes));
        }
        Ok(record)
    }

    #[test]
    fn a_target_names_what_its_step_evaluates() {
        for (wishes, below, expected) in [
            (
                json!({}),
                None,
                json!({ "file": "ci.nix", "call": false, "attr": ["p", "t0"] }),
            ),
            (
                json!({ "attr": "web.app" }),
                None,
                json!({ "file": "ci.nix", "attr": ["web", "app"], "target": ["p", "t0"] }),
            ),
            (
                json!({ "file": "web" }),
                Some("sub"),
                json!({ "file": "sub/web", "attr": [], "target": ["p", "t0"] }),
            ),
            (
                json!({ "expr": "import ./web { }", "attr": ["a.b"] }),
                None,
                json!({ "expr": "import ./web { }", "attr": ["a.b"], "target": ["p", "t0"] }),
            ),
        ] {
            assert_eq!(record(&wishes, below).unwrap(), expected);
        }
        for (wishes, part) in [
            (json!({ "file": "a", "expr": "b" }), "only one of"),
            (json!({ "file": 1 }), "`file`"),
            (json!({ "attr": "a..b" }), "`attr`"),
        ] {
            assert!(
                record(&wishes, None).unwrap_err().contains(part),
                "{wishes}"
            );
        }
    }

    #[test]
    fn the_keys_are_those_of_the_table() {
        let names = crate::keys::table::of(KeyOwner::Target).map(|key| key.name);
        let names: Vec<_> = names
            .filter(|name| ["attr", "file", "expr"].contains(name))
            .collect();
        assert_eq!(names.len(), 3);
    }
}
