//! A chunk of a plan: the steps of one upload, and the part of them that is still missing.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::buildkite::pipeline::to_json;
use crate::exit::{Class, Classify as _, Failure};

/// The steps of one upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Chunk {
    /// The keys of its steps. That of a question before a step is not among them: the two come and go together, and an agent need not
    /// find what is no job.
    pub(crate) keys: Vec<String>,
    /// The pipeline, as it goes to `buildkite-agent pipeline upload`.
    pub(crate) pipeline: String,
}

impl Chunk {
    /// The label of the step with this key.
    pub(super) fn label(&self, key: &str) -> Option<String> {
        steps(&serde_json::from_str(&self.pipeline).unwrap_or_default())
            .into_iter()
            .find(|step| step["key"] == key)
            .and_then(|step| step["label"].as_str().map(str::to_owned))
    }

    /// The pipeline with the steps of these keys alone.
    ///
    /// # Errors
    /// Our own pipeline cannot be read: a bug (70).
    pub(super) fn part(&self, keys: &[String]) -> Result<String, Failure> {
        if keys.len() == self.keys.len() {
            return Ok(self.pipeline.clone());
        }
        let doing = || "cannot read a pipeline of ours".to_owned();
        let mut pipeline: Value =
            serde_json::from_str(&self.pipeline).classify(Class::Bug, doing)?;
        let wanted = |step: &Value| {
            step["key"]
                .as_str()
                .is_some_and(|key| keys.iter().any(|wanted| wanted == key))
        };
        if let Some(steps) = pipeline.get_mut("steps").and_then(Value::as_array_mut) {
            for step in steps.iter_mut() {
                if let Some(inner) = step.get_mut("steps").and_then(Value::as_array_mut) {
                    // A question stands right before its step.
                    let mut stays = true;
                    let mut kept: Vec<Value> = Vec::new();
                    for step in std::mem::take(inner).into_iter().rev() {
                        if step.get("block").is_none() {
                            stays = wanted(&step);
                        }
                        if stays {
                            kept.push(step);
                        }
                    }
                    inner.extend(kept.into_iter().rev());
                }
            }
            steps.retain(|step| match step.get("steps").and_then(Value::as_array) {
                Some(inner) => !inner.is_empty(),
                None => wanted(step),
            });
        }
        to_json(&pipeline).classify(Class::Bug, doing)
    }
}

/// All steps of a pipeline, those in groups too.
fn steps(pipeline: &Value) -> Vec<Value> {
    let steps = pipeline["steps"].as_array().cloned().unwrap_or_default();
    steps
        .into_iter()
        .flat_map(|step| match step.get("steps") {
            Some(Value::Array(inner)) => inner.clone(),
            _ => vec![step],
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_missing_part_of_a_chunk_is_the_same_steps_without_empty_groups() {
        let pipeline = json!({"steps": [
            {"key": "a", "label": "A"},
            {"group": "g", "steps": [{"key": "b"}, {"key": "c", "label": "C"}]},
            {"group": "h", "steps": [{"key": "d"}]},
        ]});
        let chunk = Chunk {
            keys: ["a", "b", "c", "d"].map(str::to_owned).to_vec(),
            pipeline: pipeline.to_string(),
        };
        assert_eq!(chunk.part(&chunk.keys).unwrap(), chunk.pipeline);
        let part = chunk.part(&["c".into(), "a".into()]).unwrap();
        let part: Value = serde_json::from_str(&part).unwrap();
        assert_eq!(
            part,
            json!({"steps": [{"key": "a", "label": "A"}, {"group": "g", "steps": [{"key": "c", "label": "C"}]}]})
        );
        assert_eq!(chunk.label("c").as_deref(), Some("C"), "in a group, too");
        // A question goes with its step.
        let (ask, answered) = (json!({"block": "B?"}), json!({"key": "b"}));
        let asked = json!({"steps": [{"group": "g", "steps": [ask, answered, {"block": "C?"}, {"key": "c"}]}]});
        let asked = Chunk {
            keys: ["b", "c"].map(str::to_owned).to_vec(),
            pipeline: asked.to_string(),
        };
        let part: Value = serde_json::from_str(&asked.part(&["b".into()]).unwrap()).unwrap();
        let expected = json!({"steps": [{"group": "g", "steps": [ask, answered]}]});
        assert_eq!(part, expected);
        assert_eq!(chunk.label("b"), None);
    }
}
