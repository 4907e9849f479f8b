//! Buildkite's pipelines as types, and the bytes that an agent reads them from.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::ser::{CompactFormatter, Formatter};

use crate::keys::Keys;

/// A pipeline, as it is uploaded.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Pipeline<'a> {
    /// Its steps.
    pub steps: Vec<PipelineStep<'a>>,
}

/// A step of a pipeline.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum PipelineStep<'a> {
    /// One job, or several alike.
    Command(&'a CommandStep),
    /// A question that a person has to answer.
    Block(&'a BlockStep),
    /// Steps that are shown together.
    Group(GroupStep<'a>),
}

/// Steps that are shown together. Buildkite does not merge groups of several uploads, and groups cannot be nested.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupStep<'a> {
    /// Its name.
    pub group: &'a str,
    /// Its steps, at least one; no groups.
    pub steps: Vec<PipelineStep<'a>>,
}

/// A question that a person has to answer before the steps run that wait for it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct BlockStep {
    /// The question.
    pub block: String,
    /// The name by which other steps depend on it, unique in a build.
    pub key: String,
    /// Its dependencies. Always written, as those of a command step are.
    pub depends_on: Vec<Dependency>,
    /// All other properties.
    #[serde(flatten)]
    pub more: Keys,
}

/// One job, or several alike.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CommandStep {
    /// The name that people see.
    pub label: String,
    /// The name by which other steps depend on it, unique in a build.
    pub key: String,
    /// Its command; none where a plugin's command hook runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<StepCommand>,
    /// Its environment: strings, numbers and booleans.
    #[serde(default, skip_serializing_if = "Keys::is_empty")]
    pub env: Keys,
    /// Its plugins, in the order in which their hooks run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<Plugin>,
    /// The tags that an agent must have.
    #[serde(default, skip_serializing_if = "Keys::is_empty")]
    pub agents: Keys,
    /// Its dependencies. Always written: a step with an empty list waits for nothing. One without a list waits for the steps before
    /// it in the build, which would hold the first chunk back until the last is uploaded.
    #[serde(default)]
    pub depends_on: Vec<Dependency>,
    /// Whether it is skipped, or the reason for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip: Option<StepSkip>,
    /// After how many minutes Buildkite stops it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_in_minutes: Option<u64>,
    /// When it is run again. A clone shares it: most steps of a pipeline have the same rules.
    #[serde(default, with = "shared", skip_serializing_if = "Option::is_none")]
    pub retry: Option<Arc<Retry>>,
    /// The number of jobs that run in parallel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallelism: Option<u64>,
    /// Jobs for each combination of values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matrix: Option<Value>,
    /// All other properties.
    #[serde(flatten)]
    pub more: Keys,
}

impl CommandStep {
    /// Whether it has jobs that an agent runs.
    #[must_use]
    pub fn may_run(&self) -> bool {
        !self.skip.as_ref().is_some_and(StepSkip::is_skipped)
    }

    /// The number of its jobs; with a matrix, the most that there can be.
    #[must_use]
    pub fn jobs(&self) -> usize {
        let length = |value: &Value| value.as_array().map_or(1, Vec::len);
        let setup = |setup: &Value| match setup {
            Value::Object(dimensions) => dimensions
                .values()
                .fold(1, |jobs: usize, values| jobs.saturating_mul(length(values))),
            list => length(list),
        };
        let matrix = match &self.matrix {
            Some(Value::Object(matrix)) => {
                let adjustments = matrix.get("adjustments").and_then(Value::as_array);
                matrix
                    .get("setup")
                    .map_or(1, setup)
                    .saturating_add(adjustments.map_or(0, Vec::len))
            }
            Some(list) => length(list),
            None => 1,
        };
        let parallel = usize::try_from(self.parallelism.unwrap_or(1)).unwrap_or(usize::MAX);
        parallel.max(1).saturating_mul(matrix.max(1))
    }
}

/// The command of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum StepCommand {
    /// One command.
    One(String),
    /// Several, one after the other, in one shell.
    Several(Vec<String>),
}

/// A plugin of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Plugin {
    /// Its reference alone.
    Reference(String),
    /// Its reference, with its configuration: a map with one entry.
    Configured(Keys),
}

/// A dependency of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dependency {
    /// The key of another step.
    Key(String),
    /// The same, and whether that one may fail.
    Step {
        /// The key of the other step.
        step: String,
        /// Whether it may fail.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        allow_failure: Option<Value>,
    },
}

/// Whether a step is skipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum StepSkip {
    /// Yes or no.
    Flag(bool),
    /// Yes, for this reason, of at most 70 characters; no, if that is empty.
    Reason(String),
}

impl StepSkip {
    /// Whether it is skipped.
    #[must_use]
    pub fn is_skipped(&self) -> bool {
        match self {
            Self::Flag(flag) => *flag,
            Self::Reason(reason) => !reason.is_empty(),
        }
    }
}

/// When a step is run again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Retry {
    /// By Buildkite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub automatic: Option<Automatic>,
    /// By people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manual: Option<Value>,
}

/// When Buildkite runs a step again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Automatic {
    /// When one of these applies; the first that does decides.
    Rules(Vec<RetryRule>),
    /// `true`, `false`, or one rule.
    Other(Value),
}

/// An ending after which a step is run again: all of its properties have to apply.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RetryRule {
    /// The exit status, a list of them, or `*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_status: Option<Value>,
    /// The signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Why there was a signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal_reason: Option<String>,
    /// How often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// A property that several steps share, in JSON.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
    pub(super) fn serialize<T: Serialize, S: Serializer>(
        value: &Option<Arc<T>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_deref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Arc<T>>, D::Error> {
        let value = Option::deserialize(deserializer)?;
        Ok(value.map(Arc::new))
    }
}

/// `value` as JSON that the agent reads as well.
///
/// The agent reads it as YAML 1.2 with Go's yaml.v3, which differs in what a string may contain: no pairs of surrogates in
/// escapes, and no control character or line break of Unicode's outside of one.
///
/// # Errors
/// `value` cannot be JSON: a map whose keys are no strings.
pub fn to_json(value: &impl Serialize) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(
        &mut bytes, ForYaml,
    ))?;
    String::from_utf8(bytes).map_err(|error| serde::ser::Error::custom(error.utf8_error()))
}

struct ForYaml;

impl Formatter for ForYaml {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| must_be_escaped(*c)) {
            CompactFormatter.write_string_fragment(writer, &rest[..at])?;
            write!(writer, "\\u{:04x}", u32::from(c))?;
            rest = &rest[at + c.len_utf8()..];
        }
        CompactFormatter.write_string_fragment(writer, rest)
    }
}

fn must_be_escaped(c: char) -> bool {
    matches!(
        c,
        '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn odd_characters_are_escaped_and_others_are_themselves() {
        let text = "\u{7f}\u{85}\u{9f}\u{2028}\u{feff}\u{ffff}é😀\n\u{1}\"\\";
        assert_eq!(
            to_json(&json!({ text: text })).unwrap(),
            concat!(
                r#"{"\u007f\u0085\u009f\u2028\ufeff\uffffé😀\n\u0001\"\\":"#,
                r#""\u007f\u0085\u009f\u2028\ufeff\uffffé😀\n\u0001\"\\"}"#
            )
        );
    }

    #[test]
    fn a_step_has_its_own_properties_and_always_its_dependencies() {
        let step = CommandStep {
            label: "l".into(),
            key: "k".into(),
            ..CommandStep::default()
        };
        assert_eq!(
            to_json(&Pipeline {
                steps: vec![PipelineStep::Command(&step)]
            })
            .unwrap(),
            r#"{"steps":[{"label":"l","key":"k","depends_on":[]}]}"#
        );
    }

    #[test]
    fn every_spelling_that_buildkite_takes_is_written_as_it_was_read() {
        for step in [
            json!({ "label": "l", "key": "k", "depends_on": ["a", { "step": "b", "allow_failure": true }], "skip": true }),
            json!({ "label": "l", "key": "k", "depends_on": [], "command": ["a", "b"], "soft_fail": [{ "exit_status": 1 }], "concurrency": 1 }),
            json!({ "label": "l", "key": "k", "depends_on": [], "retry": { "automatic": true, "manual": { "allowed": false } }, "skip": "why" }),
            json!({ "label": "l", "key": "k", "depends_on": [], "retry": { "automatic": [{ "exit_status": [1, 2], "limit": 1 }] }, "plugins": ["a", { "b": null }] }),
        ] {
            let read: CommandStep = serde_json::from_value(step.clone()).unwrap();
            assert_eq!(serde_json::to_value(&read).unwrap(), step);
        }
    }

    #[test]
    fn jobs_are_counted() {
        let jobs = |more: Value| {
            let mut step = json!({ "label": "l", "key": "k" });
            step.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            serde_json::from_value::<CommandStep>(step).unwrap().jobs()
        };
        assert_eq!(jobs(json!({})), 1);
        assert_eq!(jobs(json!({ "parallelism": 3, "matrix": ["a", "b"] })), 6);
        let matrix = json!({ "setup": { "a": [1, 2], "b": [1, 2, 3] }, "adjustments": [{}] });
        assert_eq!(jobs(json!({ "matrix": matrix })), 7);
    }

    proptest! {
        #[test]
        fn yaml_reads_what_was_written(texts in proptest::collection::vec(any::<String>(), 0..6), odd in "[\u{0}-\u{20}\u{7e}-\u{a1}\u{2027}-\u{202a}\u{fefe}-\u{ff00}\u{fffd}-\u{10001}:{}\\[\\],#&*!|>'\"%@`-]{0,30}") {
            let value = json!({ "list": texts, odd.clone(): odd, "map": { "a": [1, -1, true, 1.5] } });
            let read: Value = serde_yaml_ng::from_str(&to_json(&value).unwrap()).unwrap();
            prop_assert_eq!(read, value);
        }
    }
}
