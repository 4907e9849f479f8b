//! Steps with their place in the pipeline, and the pipeline as it is written.

use std::collections::BTreeMap;

use crate::buildkite::pipeline::{CommandStep, GroupStep, Pipeline, PipelineStep, to_json};
use crate::exit::{Class, Classify as _, Failure};

/// A step, and its place.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::recording) struct PlacedStep {
    /// The step.
    pub(in crate::recording) step: CommandStep,
    /// The name of its group, if it is in one.
    pub(in crate::recording) group: Option<String>,
    /// Whether it only shows that its target needs no build. No target waits for such a step.
    pub(in crate::recording) skipped: bool,
}

#[cfg(test)]
impl PlacedStep {
    /// A step with this number as its key, in this group.
    pub(in crate::recording) fn numbered(key: usize, group: Option<&str>) -> Self {
        Self {
            step: CommandStep {
                label: format!("step {key}"),
                key: key.to_string(),
                ..CommandStep::default()
            },
            group: group.map(str::to_owned),
            skipped: false,
        }
    }
}

/// These steps as one pipeline, in JSON, with those of the same group together.
///
/// # Errors
/// A step cannot be written as JSON: a bug (70).
pub(in crate::recording) fn json(steps: &[PlacedStep]) -> Result<String, Failure> {
    to_json(&pipeline(steps)).classify(Class::Bug, || "cannot write the pipeline".to_owned())
}

/// These steps as one pipeline. A group stands where the first of its steps would.
fn pipeline(steps: &[PlacedStep]) -> Pipeline<'_> {
    let mut written: Vec<PipelineStep<'_>> = Vec::new();
    let mut groups = BTreeMap::new();
    for PlacedStep { step, group, .. } in steps {
        let Some(group) = group else {
            written.push(PipelineStep::Command(step));
            continue;
        };
        let at = *groups.entry(group).or_insert_with(|| {
            written.push(PipelineStep::Group(GroupStep {
                group,
                steps: Vec::new(),
            }));
            written.len() - 1
        });
        if let PipelineStep::Group(group) = &mut written[at] {
            group.steps.push(step);
        }
    }
    Pipeline { steps: written }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn steps_of_a_group_stand_together() {
        let steps = [
            PlacedStep::numbered(0, Some("a")),
            PlacedStep::numbered(1, None),
            PlacedStep::numbered(2, Some("a")),
        ];
        let read: Value = serde_yaml_ng::from_str(&json(&steps).unwrap()).unwrap();
        assert_eq!(read["steps"][0]["group"], "a");
        assert_eq!(read["steps"][0]["steps"][1]["key"], "2");
        assert_eq!(read["steps"][1]["key"], "1");
    }
}
