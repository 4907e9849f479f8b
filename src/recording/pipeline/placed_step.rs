//! Steps with their place in the pipeline, and the pipeline as it is written.

use std::collections::BTreeMap;

use crate::buildkite::pipeline::{
    BlockStep, CommandStep, GroupStep, Pipeline, PipelineStep, to_json,
};
use crate::exit::{Class, Classify as _, Failure};

/// A step, and its place.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::recording) struct PlacedStep {
    /// The step. It has hundreds of bytes, and is moved from list to list.
    pub(in crate::recording) step: Box<CommandStep>,
    /// The name of its group, if it is in one.
    pub(in crate::recording) group: Option<String>,
    /// The question before it, which stands in its group.
    pub(in crate::recording) confirm: Option<BlockStep>,
    /// Whether it only shows that its target needs no build. No target waits for such a step.
    pub(in crate::recording) skipped: bool,
}

impl PlacedStep {
    /// A step in this group that builds.
    pub(in crate::recording) fn new(
        step: impl Into<Box<CommandStep>>,
        group: Option<String>,
    ) -> Self {
        Self {
            step: step.into(),
            group,
            confirm: None,
            skipped: false,
        }
    }

    /// The keys that are used for it, in the order of its steps.
    #[cfg(test)]
    pub(in crate::recording) fn keys(&self) -> impl Iterator<Item = &str> {
        let confirm = self.confirm.iter().map(|block| block.key.as_str());
        confirm.chain(std::iter::once(self.step.key.as_str()))
    }

    /// The number of jobs that Buildkite counts for it, without its group.
    pub(in crate::recording) fn jobs(&self) -> usize {
        let confirm = usize::from(self.confirm.is_some());
        self.step.jobs().saturating_add(confirm)
    }
}

#[cfg(test)]
impl PlacedStep {
    /// A step with this number as its key, in this group.
    pub(in crate::recording) fn numbered(key: usize, group: Option<&str>) -> Self {
        let step = CommandStep {
            label: format!("step {key}"),
            key: key.to_string(),
            ..CommandStep::default()
        };
        Self::new(step, group.map(str::to_owned))
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
    for planned in steps {
        let confirm = planned.confirm.iter().map(PipelineStep::Block);
        let both = confirm.chain(std::iter::once(PipelineStep::Command(&planned.step)));
        let Some(group) = &planned.group else {
            written.extend(both);
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
            group.steps.extend(both);
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
