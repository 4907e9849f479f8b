//! What plans say of a step beyond its key: whether Buildkite takes its failures for failures, and whether it runs at all.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// A step of a plan, with what it says of failures: its own, and those of the steps that it depends on.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct PlannedStep {
    key: String,
    /// Which of its exit statuses are no failure to Buildkite: the steps that depend on it run then.
    soft_fail: Value,
    /// Whether it runs even where a step that it depends on failed.
    allow_dependency_failure: Value,
    /// Whether it never runs. The steps that depend on it do.
    skip: Value,
    /// How many jobs it has, if several.
    parallelism: Value,
    /// The same, as combinations of values.
    matrix: Value,
    /// The steps of a group.
    steps: Vec<Self>,
}

impl PlannedStep {
    /// The steps of a pipeline, by their keys; none where the pipeline cannot be read.
    pub(super) fn all_of(pipeline: &str) -> BTreeMap<String, Self> {
        let Ok(pipeline) = serde_json::from_str::<Self>(pipeline) else {
            return BTreeMap::new();
        };
        let steps = pipeline.steps.into_iter().flat_map(|mut step| {
            let inner = std::mem::take(&mut step.steps);
            std::iter::once(step).chain(inner)
        });
        steps
            .filter(|step| !step.key.is_empty())
            .map(|step| (step.key.clone(), step))
            .collect()
    }

    /// Whether Buildkite takes this exit status for no failure; of an unknown status, whether it may.
    pub(super) fn is_soft(&self, exit: Option<u8>) -> bool {
        match &self.soft_fail {
            Value::Array(rules) => rules.iter().any(|rule| {
                let status = &rule["exit_status"];
                *status == "*" || exit.is_none_or(|exit| *status == exit)
            }),
            other => is_true(other),
        }
    }

    /// Whether it has several jobs, which all save their reports under one key.
    pub(super) fn has_several_jobs(&self) -> bool {
        !self.matrix.is_null() || !matches!(self.parallelism.as_u64(), None | Some(0 | 1))
    }

    /// Whether Buildkite never makes a job of it.
    pub(super) fn is_skipped(&self) -> bool {
        !matches!(self.skip, Value::Null | Value::Bool(false))
    }

    /// Whether a failure of another step cannot be why it did not run.
    pub(super) fn ignores_failures(&self) -> bool {
        self.is_skipped() || is_true(&self.allow_dependency_failure)
    }
}

fn is_true(value: &Value) -> bool {
    *value == true || *value == "true"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn step(more: Value) -> PlannedStep {
        serde_json::from_value(more).unwrap()
    }

    #[test]
    fn a_pipeline_that_cannot_be_read_has_no_steps() {
        for pipeline in ["", "[]", r#"{"steps":5}"#, r#"{"steps":[{"key":5}]}"#] {
            assert_eq!(PlannedStep::all_of(pipeline), BTreeMap::new(), "{pipeline}");
        }
    }

    #[test]
    fn the_steps_of_groups_are_read_too() {
        let pipeline = json!({ "steps": [
            { "key": "a", "soft_fail": true, "label": "l" },
            { "key": "b", "label": "l" },
            { "group": "g", "steps": [{ "key": "c", "skip": "not today" }, { "key": "d" }] },
        ] });
        let steps = PlannedStep::all_of(&pipeline.to_string());
        assert_eq!(steps.keys().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
        let skipped = steps.values().filter(|step| step.is_skipped());
        assert_eq!(skipped.map(|step| &*step.key).collect::<Vec<_>>(), ["c"]);
    }

    #[test]
    fn a_failure_is_soft_by_its_exit_status() {
        let some = step(json!({ "soft_fail": [{ "exit_status": 1 }, { "exit_status": 100 }] }));
        let statuses = [Some(100), Some(75), None].map(|exit| some.is_soft(exit));
        assert_eq!(statuses, [true, false, true]);
        for soft in [json!(true), json!("true"), json!([{ "exit_status": "*" }])] {
            assert!(step(json!({ "soft_fail": soft })).is_soft(Some(75)));
        }
        assert!(!step(json!({ "soft_fail": false })).is_soft(None));
    }

    #[test]
    fn parallel_jobs_and_matrices_are_several_jobs() {
        for (more, expected) in [
            (json!({}), false),
            (json!({ "parallelism": 1 }), false),
            (json!({ "parallelism": 2 }), true),
            (json!({ "matrix": ["a"] }), true),
        ] {
            assert_eq!(step(more.clone()).has_several_jobs(), expected, "{more}");
        }
    }
}
