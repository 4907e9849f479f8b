//! The steps of a few targets, for tests.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::Value;

use super::{PlannedPipeline, Records, StepKeys, steps};
use crate::exit::Failure;
use crate::keys::Keys;
use crate::recording::errors::ErrorLists;
use crate::recording::pipeline::edges::Edges;
use crate::recording::pipeline::fixtures::{no_edges, path, schema};
use crate::recording::{AttrError, RecordingRequest, Target};

pub(super) fn make(
    targets: &[Target],
    edges: &Edges,
    skip: &[Option<String>],
    request: &RecordingRequest,
) -> Result<PlannedPipeline, Failure> {
    let records = Records {
        targets,
        errors: &ErrorLists::default(),
        callable: &BTreeSet::new(),
        edges,
        skip,
        seconds: &[],
        steps_known: true,
        shared: &[],
    };
    steps(&records, request, schema())
}

/// The key of a target's step.
pub(super) fn key(target: &Target) -> String {
    StepKeys::default().target(target)
}

pub(super) fn made_steps(targets: &[Target], request: &RecordingRequest) -> Vec<Value> {
    values(&make(targets, &no_edges(targets), &[], request).unwrap())
}

pub(super) fn values(steps: &PlannedPipeline) -> Vec<Value> {
    let steps = steps.steps.iter();
    steps
        .map(|planned| serde_json::to_value(&planned.step).unwrap())
        .collect()
}

pub(super) fn record_of(step: &Value) -> Keys {
    match &step["env"]["EVAL_ONCE_STEP"] {
        Value::String(record) => serde_json::from_str(record).unwrap(),
        _ => step["plugins"][0]["your-org/eval-once#v1"]
            .as_object()
            .unwrap()
            .clone(),
    }
}

/// Anything that a cleaned `meta.buildkite` can hold, more often than not about properties that mean something.
pub(super) fn anything() -> impl Strategy<Value = Value> {
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

/// One evaluation error, of this attribute.
pub(super) fn one_error(attr: &[&str]) -> ErrorLists {
    ErrorLists {
        evaluation: vec![AttrError {
            attr: path(attr),
            message: None,
        }],
        ..ErrorLists::default()
    }
}
