//! The plan of an upload: all its chunks, byte for byte.
//!
//! It is saved as an artifact before the first chunk is uploaded, so that a retry of the recording goes on with the same steps
//! under the same keys, even if another evaluation would find others.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use super::chunk::Chunk;
use crate::exit::{Class, Classify as _, Failure};
use crate::keys::refuse;
use crate::recording::pipeline::limits::divide;
use crate::recording::pipeline::placed_step::{self, PlacedStep};

/// The version of a plan's format.
const VERSION: u32 = 1;

/// All that a recording uploads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UploadPlan {
    version: u32,
    /// The step that the recording belongs to (`BUILDKITE_STEP_ID`), the same in each of its retries.
    pub(crate) step: String,
    /// The uploads, in their order: the steps that a step waits for are in the same chunk or an earlier one.
    pub(crate) chunks: Vec<Chunk>,
    /// The text of `eval-once.json`, which is uploaded after them.
    pub(crate) document: String,
    /// The build's annotation, as Markdown, and its style.
    pub(crate) annotation: (String, String),
}

impl UploadPlan {
    /// Plans the upload of `steps`, which are in topological order, with at most `chunk` steps in one upload, and never more jobs
    /// than Buildkite takes.
    ///
    /// # Errors
    /// A step cannot be written as JSON: a bug (70).
    pub(in crate::recording) fn new(
        step: &str,
        steps: &[PlacedStep],
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
                pipeline: placed_step::json(steps)?,
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

    /// The text of the plan.
    ///
    /// # Errors
    /// It cannot be written as JSON: a bug (70).
    pub(in crate::recording) fn to_json(&self) -> Result<String, Failure> {
        serde_json::to_string(self).classify(Class::Bug, || {
            "cannot write the plan of the upload".to_owned()
        })
    }

    /// Reads the text of a plan.
    ///
    /// # Errors
    /// It cannot be read (75: the artifact is not as it was uploaded), or another version of eval-once wrote it (64).
    pub(crate) fn read(json: &str) -> Result<Self, Failure> {
        #[derive(Deserialize)]
        struct PlanVersion {
            version: u32,
        }
        let unreadable = || "cannot read the plan of a recording".to_owned();
        let PlanVersion { version } =
            serde_json::from_str(json).classify(Class::Infrastructure, unreadable)?;
        if version != VERSION {
            return Err(refuse(format_args!(
                "the plan of the recording has version {version}, and this eval-once reads version {VERSION}"
            ))
            .hint("run the whole build again, with one version of eval-once on all its agents"));
        }
        serde_json::from_str(json).classify(Class::Infrastructure, unreadable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(step: &str, steps: &[PlacedStep], chunk: NonZeroUsize) -> UploadPlan {
        let annotation = ("text".into(), "info".into());
        UploadPlan::new(step, steps, chunk, "{}".into(), annotation).unwrap()
    }
    use crate::buildkite::pipeline::Dependency;
    use crate::text::hostile::{cases, spoilt, text};
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::collections::BTreeSet;

    fn chunk(n: usize) -> NonZeroUsize {
        NonZeroUsize::new(n).unwrap()
    }

    #[test]
    fn a_plan_reads_back_as_it_was_written() {
        let mut steps: Vec<_> = (0..5).map(|i| PlacedStep::numbered(i, None)).collect();
        steps[0].step.label = "a\u{2028}\u{85}😀".into();
        let plan = plan("s", &steps, chunk(2));
        assert_eq!(plan.chunks.len(), 3);
        assert_eq!(plan.chunks[1].keys, ["2", "3"]);
        assert!(plan.chunks[0].pipeline.contains(r"a\u2028\u0085😀"));
        assert_eq!(UploadPlan::read(&plan.to_json().unwrap()).unwrap(), plan);
    }

    #[test]
    fn a_plan_of_another_version_is_refused_and_an_unreadable_one_may_be_retried() {
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

    /// A plan as it is written, with a group.
    fn written() -> Value {
        let steps: Vec<_> = (0..4)
            .map(|i| PlacedStep::numbered(i, (i > 1).then_some("g")))
            .collect();
        serde_json::from_str(&plan("s", &steps, chunk(3)).to_json().unwrap()).unwrap()
    }

    /// The control of what follows.
    #[test]
    fn a_plan_that_is_not_spoilt_is_read() {
        let plan = UploadPlan::read(&written().to_string()).unwrap();
        assert!(plan.chunks.iter().all(|chunk| !chunk.keys.is_empty()));
    }

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn a_plan_of_any_values_is_read_or_refused(json in prop_oneof![9 => spoilt(written()), 1 => text()]) {
            let plan = match UploadPlan::read(&json) {
                Ok(plan) => plan,
                Err(failure) => {
                    prop_assert!(matches!(failure.class, Class::Infrastructure | Class::Config), "{failure}");
                    return Ok(());
                }
            };
            prop_assert_eq!(&UploadPlan::read(&plan.to_json().unwrap()).unwrap(), &plan);
            for chunk in &plan.chunks {
                let _ = chunk.label(chunk.keys.first().map_or("", String::as_str));
                let _ = chunk.part(&[]);
            }
        }
    }

    /// Whatever stands in a chunk's pipeline, as another program may have left it in a plan.
    fn pipeline() -> Value {
        json!({ "steps": [{ "key": "a", "label": "A" }, { "group": "g", "steps": [{ "block": "?" }, { "key": "b" }] }] })
    }

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn a_part_of_any_pipeline_is_its_wanted_steps_or_none(pipeline in spoilt(pipeline())) {
            let keys = ["a", "b", "c"].map(str::to_owned).to_vec();
            let chunk = Chunk { keys, pipeline };
            let _ = chunk.label("b");
            match chunk.part(&["b".to_owned()]) {
                Ok(part) => {
                    let read: Value = serde_json::from_str(&part).unwrap();
                    let steps = read.get("steps").and_then(Value::as_array).into_iter().flatten();
                    for step in steps {
                        let inner = step.get("steps").and_then(Value::as_array);
                        for step in inner.map_or(std::slice::from_ref(step), Vec::as_slice) {
                            prop_assert!(step.get("block").is_some() || step["key"] == "b", "{part}");
                        }
                    }
                }
                Err(failure) => prop_assert_eq!(failure.class, Class::Bug),
            }
        }
    }

    proptest! {
        #[test]
        fn no_step_waits_for_a_step_of_a_later_chunk(
            inputs in proptest::collection::vec(proptest::collection::vec(any::<proptest::sample::Index>(), 0..3), 0..60),
            groups in proptest::collection::vec(proptest::option::of(0_u8..3), 60),
            size in 1_usize..20,
        ) {
            let steps: Vec<_> = inputs.iter().enumerate().map(|(i, inputs)| {
                let mut planned = PlacedStep::numbered(i, groups[i].map(|group| group.to_string()).as_deref());
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
                // A step without a key would be there twice after a retry.
                let mut written: Vec<&str> = read["steps"].as_array().unwrap().iter()
                    .flat_map(|step| step["steps"].as_array().map_or(std::slice::from_ref(step), Vec::as_slice))
                    .map(|step| step["key"].as_str().unwrap()).collect();
                let mut keys: Vec<&str> = chunk.keys.iter().map(String::as_str).collect();
                written.sort_unstable();
                keys.sort_unstable();
                prop_assert_eq!(written, keys);
            }
            prop_assert_eq!(seen.len(), steps.len());
        }
    }
}
