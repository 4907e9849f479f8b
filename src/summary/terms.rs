//! What planned steps say of failures: their own, and those of what they wait for.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// What a planned step says of failures: its own, and those of what it waits for.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Terms {
    key: String,
    /// Which of its exit statuses are no failure to Buildkite: whoever waits for it runs then.
    soft_fail: Value,
    /// Whether it runs whatever became of what it waits for.
    allow_dependency_failure: Value,
    /// Whether it never runs. Whoever waits for it does.
    skip: Value,
    /// How many jobs it is, if several.
    parallelism: Value,
    /// The same, as combinations of values.
    matrix: Value,
    /// Those of a group.
    steps: Vec<Self>,
}

impl Terms {
    /// The terms of all steps of a pipeline that have some, by their keys; none where it cannot be read.
    pub(super) fn of(pipeline: &str) -> BTreeMap<String, Self> {
        let Ok(pipeline) = serde_json::from_str::<Self>(pipeline) else {
            return BTreeMap::new();
        };
        let steps = pipeline.steps.into_iter().flat_map(|mut step| {
            let inner = std::mem::take(&mut step.steps);
            std::iter::once(step).chain(inner)
        });
        let blank = |step: &Self| Self {
            key: step.key.clone(),
            ..Self::default()
        };
        steps
            .filter(|step| *step != blank(step))
            .map(|step| (step.key.clone(), step))
            .collect()
    }

    /// Whether Buildkite takes this exit status for no failure; of one that is not known, whether it may.
    pub(super) fn is_soft(&self, exit: Option<u8>) -> bool {
        match &self.soft_fail {
            Value::Array(rules) => rules.iter().any(|rule| {
                let status = &rule["exit_status"];
                *status == "*" || exit.is_none_or(|exit| *status == exit)
            }),
            other => is_true(other),
        }
    }

    /// Whether it is several jobs, which all leave their reports in one place.
    pub(super) fn is_several(&self) -> bool {
        !self.matrix.is_null() || !matches!(self.parallelism.as_u64(), None | Some(0 | 1))
    }

    /// Whether no failure of another is why it has not run.
    pub(super) fn is_undeterred(&self) -> bool {
        let is_skipped = !matches!(self.skip, Value::Null | Value::Bool(false));
        is_skipped || is_true(&self.allow_dependency_failure)
    }
}

fn is_true(value: &Value) -> bool {
    *value == true || *value == "true"
}
