//! Steps with their place in the pipeline, and the pipeline as it is written.

use std::collections::BTreeMap;

use crate::buildkite::pipeline::{CommandStep, GroupStep, Pipeline, PipelineStep, to_json};
use crate::exit::{Class, Classify as _, Failure};

/// A step, and its place.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::recording) struct PlannedStep {
    /// The step.
    pub(in crate::recording) step: CommandStep,
    /// The name of its group, if it is in one.
    pub(in crate::recording) group: Option<String>,
    /// Whether it only shows that its target needs no build. No target waits for such a step.
    pub(in crate::recording) skipped: bool,
}

/// These steps as one pipeline, in JSON, with those of the same group together.
///
/// # Errors
/// A step cannot be written as JSON: a bug (70).
pub(in crate::recording) fn json(steps: &[PlannedStep]) -> Result<String, Failure> {
    to_json(&pipeline(steps)).classify(Class::Bug, || "cannot write the pipeline".to_owned())
}

/// These steps as one pipeline. A group stands where the first of its steps would.
fn pipeline(steps: &[PlannedStep]) -> Pipeline {
    let mut written: Vec<PipelineStep> = Vec::new();
    let mut groups = BTreeMap::new();
    for PlannedStep { step, group, .. } in steps {
        let Some(group) = group else {
            written.push(PipelineStep::Command(Box::new(step.clone())));
            continue;
        };
        let at = *groups.entry(group).or_insert_with(|| {
            written.push(PipelineStep::Group(GroupStep {
                group: group.clone(),
                steps: Vec::new(),
            }));
            written.len() - 1
        });
        if let PipelineStep::Group(group) = &mut written[at] {
            group.steps.push(step.clone());
        }
    }
    Pipeline { steps: written }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::pipeline::fixtures::planned;
    use serde_json::Value;

    #[test]
    fn steps_of_a_group_stand_together() {
        let steps = [
            planned(0, Some("a")),
            planned(1, None),
            planned(2, Some("a")),
        ];
        let read: Value = serde_yaml_ng::from_str(&json(&steps).unwrap()).unwrap();
        assert_eq!(read["steps"][0]["group"], "a");
        assert_eq!(read["steps"][0]["steps"][1]["key"], "2");
        assert_eq!(read["steps"][1]["key"], "1");
    }
}
