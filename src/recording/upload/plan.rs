//! The plan of an upload: all its chunks, byte for byte.
//!
//! It is made once and kept as an artifact before anything of it is uploaded, so that a retried recording goes on with the
//! same steps under the same keys, whatever it would find today.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::buildkite::pipeline::{CommandStep, GroupStep, Pipeline, PipelineStep, to_json};
use crate::exit::{Class, Classify as _, Failure};
use crate::keys::refuse;

/// How many jobs Buildkite takes in one upload, each group counted as one more.
pub const JOBS_PER_UPLOAD: usize = 500;

/// The version of a plan's format.
const VERSION: u32 = 1;

/// All that a recording uploads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadPlan {
    version: u32,
    /// The step that the recording belongs to (`BUILDKITE_STEP_ID`), the same in each of its retries.
    pub step: String,
    /// What is uploaded at once, in this order: whatever a step waits for is in the same chunk or an earlier one.
    pub chunks: Vec<Chunk>,
    /// What is uploaded as `eval-once.json` after them.
    pub document: String,
    /// The build's annotation, as Markdown, and its style.
    pub annotation: (String, String),
}

/// A step, and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedStep {
    /// The step.
    pub step: CommandStep,
    /// The name of its group, if it is in one.
    pub group: Option<String>,
    /// Whether it is there only to say that nothing needs to be built. No target waits for such a one.
    pub skipped: bool,
}

/// What is uploaded at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// The keys of its steps.
    pub keys: Vec<String>,
    /// The pipeline, as it goes to `buildkite-agent pipeline upload`.
    pub pipeline: String,
}

impl UploadPlan {
    /// Plans the upload of `steps`, which stand in topological order, with at most `chunk` steps at once, and never more jobs
    /// than Buildkite takes.
    ///
    /// # Errors
    /// A step cannot be written as JSON: a bug (70).
    pub fn new(
        step: &str,
        steps: &[PlannedStep],
        chunk: NonZeroUsize,
        document: String,
        annotation: (String, String),
    ) -> Result<Self, Failure> {
        let chunks = divide(steps, chunk).into_iter().map(|range| {
            let steps = &steps[range];
            Ok(Chunk {
                keys: steps
                    .iter()
                    .map(|planned| planned.step.key.clone())
                    .collect(),
                pipeline: self::document(steps)?,
            })
        });
        Ok(Self {
            version: VERSION,
            step: step.to_owned(),
            chunks: chunks.collect::<Result<_, Failure>>()?,
            document,
            annotation,
        })
    }

    /// The plan as it is kept.
    ///
    /// # Errors
    /// It cannot be written as JSON: a bug (70).
    pub fn to_json(&self) -> Result<String, Failure> {
        serde_json::to_string(self).classify(Class::Bug, || {
            "cannot write the plan of the upload".to_owned()
        })
    }

    /// Reads a plan that was kept.
    ///
    /// # Errors
    /// It is none (75: what was kept has not come back), or one of another version of eval-once (64).
    pub fn read(json: &str) -> Result<Self, Failure> {
        #[derive(Deserialize)]
        struct PlanVersion {
            version: u32,
        }
        let unreadable = || "cannot read the plan of a recording".to_owned();
        let PlanVersion { version } =
            serde_json::from_str(json).classify(Class::Infrastructure, unreadable)?;
        if version != VERSION {
            return Err(refuse(format_args!(
                "the recording has left a plan of version {version}, and this eval-once knows version {VERSION}"
            ))
            .hint("run the whole build again, with one version of eval-once on all its agents"));
        }
        serde_json::from_str(json).classify(Class::Infrastructure, unreadable)
    }
}

/// All of these steps as one document, with those of the same group together.
///
/// # Errors
/// A step cannot be written as JSON: a bug (70).
pub fn document(steps: &[PlannedStep]) -> Result<String, Failure> {
    to_json(&pipeline(steps)).classify(Class::Bug, || "cannot write the pipeline".to_owned())
}

/// All of these steps as one pipeline. A group stands where the first of its steps would.
#[must_use]
pub fn pipeline(steps: &[PlannedStep]) -> Pipeline {
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

/// How many jobs Buildkite counts in an upload of these steps.
#[must_use]
pub fn jobs(steps: &[PlannedStep]) -> usize {
    let groups: BTreeSet<_> = steps
        .iter()
        .filter_map(|step| step.group.as_ref())
        .collect();
    steps
        .iter()
        .map(|planned| planned.step.jobs())
        .fold(groups.len(), usize::saturating_add)
}

/// Divides steps into uploads, without changing their order.
#[must_use]
pub fn divide(steps: &[PlannedStep], chunk: NonZeroUsize) -> Vec<Range<usize>> {
    let mut chunks = Vec::new();
    let mut begin = 0;
    let mut jobs = 0_usize;
    let mut groups = BTreeSet::new();
    for (i, PlannedStep { step, group, .. }) in steps.iter().enumerate() {
        let new_group =
            |groups: &BTreeSet<_>| group.as_ref().is_some_and(|group| !groups.contains(group));
        let more = step.jobs().saturating_add(usize::from(new_group(&groups)));
        if i > begin && (i - begin >= chunk.get() || jobs.saturating_add(more) > JOBS_PER_UPLOAD) {
            chunks.push(begin..i);
            begin = i;
            jobs = 0;
            groups.clear();
        }
        jobs = jobs
            .saturating_add(step.jobs())
            .saturating_add(usize::from(new_group(&groups)));
        groups.extend(group.as_ref());
    }
    if begin < steps.len() {
        chunks.push(begin..steps.len());
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(step: &str, steps: &[PlannedStep], chunk: NonZeroUsize) -> UploadPlan {
        let annotation = ("text".into(), "info".into());
        UploadPlan::new(step, steps, chunk, "{}".into(), annotation).unwrap()
    }
    use crate::buildkite::pipeline::{CommandStep, Dependency};
    use proptest::prelude::*;
    use serde_json::Value;

    fn planned(key: usize, group: Option<&str>) -> PlannedStep {
        PlannedStep {
            step: CommandStep {
                label: format!("step {key}"),
                key: key.to_string(),
                ..CommandStep::default()
            },
            group: group.map(str::to_owned),
            skipped: false,
        }
    }

    fn chunk(n: usize) -> NonZeroUsize {
        NonZeroUsize::new(n).unwrap()
    }

    #[test]
    fn a_plan_reads_back_as_it_was_written() {
        let mut steps: Vec<_> = (0..5).map(|i| planned(i, None)).collect();
        steps[0].step.label = "a\u{2028}\u{85}😀".into();
        let plan = plan("s", &steps, chunk(2));
        assert_eq!(plan.chunks.len(), 3);
        assert_eq!(plan.chunks[1].keys, ["2", "3"]);
        assert!(plan.chunks[0].pipeline.contains(r"a\u2028\u0085😀"));
        assert_eq!(UploadPlan::read(&plan.to_json().unwrap()).unwrap(), plan);
    }

    #[test]
    fn a_plan_of_another_version_or_none_is_refused() {
        assert_eq!(
            UploadPlan::read("{").unwrap_err().class,
            Class::Infrastructure
        );
        assert_eq!(
            UploadPlan::read("{}").unwrap_err().class,
            Class::Infrastructure
        );
        let other = UploadPlan::read(r#"{"version":2}"#).unwrap_err();
        assert_eq!(other.class, Class::Config);
    }

    #[test]
    fn steps_of_a_group_stand_together_in_a_document() {
        let steps = [
            planned(0, Some("a")),
            planned(1, None),
            planned(2, Some("a")),
        ];
        let read: Value = serde_yaml_ng::from_str(&document(&steps).unwrap()).unwrap();
        assert_eq!(read["steps"][0]["group"], "a");
        assert_eq!(read["steps"][0]["steps"][1]["key"], "2");
        assert_eq!(read["steps"][1]["key"], "1");
        assert_eq!(jobs(&steps), 4);
    }

    #[test]
    fn groups_and_parallel_jobs_count_in_an_upload() {
        let steps: Vec<_> = (0..400).map(|i| planned(i, Some(&i.to_string()))).collect();
        assert_eq!(divide(&steps, chunk(1000)), [0..250, 250..400]);
        let mut steps: Vec<_> = (0..3).map(|i| planned(i, None)).collect();
        for planned in &mut steps {
            planned.step.parallelism = Some(200);
        }
        assert_eq!(divide(&steps, chunk(100)), [0..2, 2..3]);
    }

    proptest! {
        #[test]
        fn whatever_a_step_waits_for_is_no_later_than_it(
            inputs in proptest::collection::vec(proptest::collection::vec(any::<proptest::sample::Index>(), 0..3), 0..60),
            groups in proptest::collection::vec(proptest::option::of(0_u8..3), 60),
            size in 1_usize..20,
        ) {
            let steps: Vec<_> = inputs.iter().enumerate().map(|(i, inputs)| {
                let mut planned = planned(i, groups[i].map(|group| group.to_string()).as_deref());
                planned.step.depends_on = inputs.iter().filter(|_| i > 0)
                    .map(|at| Dependency::Key(at.index(i).to_string())).collect();
                planned
            }).collect();
            let plan = plan("s", &steps, chunk(size));
            let mut seen = BTreeSet::new();
            for chunk in &plan.chunks {
                prop_assert!(!chunk.keys.is_empty() && chunk.keys.len() <= size);
                prop_assert!(chunk.keys.iter().all(|key| seen.insert(key.clone())));
                for key in &chunk.keys {
                    let step = &steps[key.parse::<usize>().unwrap()].step;
                    for dependency in &step.depends_on {
                        let Dependency::Key(key) = dependency else { unreachable!() };
                        prop_assert!(seen.contains(key));
                    }
                }
                let read: Value = serde_json::from_str(&chunk.pipeline).unwrap();
                let written: usize = read["steps"].as_array().unwrap().iter()
                    .map(|step| step["steps"].as_array().map_or(1, Vec::len)).sum();
                prop_assert_eq!(written, chunk.keys.len());
            }
            prop_assert_eq!(seen.len(), steps.len());
        }
    }
}
