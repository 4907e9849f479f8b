//! `eval-once.json`: the findings of a recording, for other programs.
//!
//! Stable: a field is added, never renamed.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize, Serializer};

use super::steps::{PlannedFollower, PlannedPipeline, SharedStep, TargetStep, error_key};
use crate::buildkite::agent;
use crate::counts::RecordingCounts;
use crate::exit::{Class, Classify as _, Failure};
use crate::keys::secret_values::RedactedKeys;
use crate::keys::{Keys, refuse};
use crate::nix::{AttrPath, DrvPath, StorePath};
use crate::recording::{AttrError, KnownOutputs, Meta, Target};
use crate::secrets::redacted;

/// The version of the format.
const VERSION: u32 = 1;

/// The document as it is written.
#[derive(Debug, Clone, Serialize)]
pub(in crate::recording) struct Document<'a> {
    version: u32,
    /// Whether everything was evaluated. Where it was not, no step exists, and no target has `depends_on` or `skip`.
    pub(in crate::recording) complete: bool,
    /// The version of Nix that evaluated.
    pub(in crate::recording) nix: &'a str,
    /// What was evaluated, as the keys of a record; `attr` is where the walk started.
    pub(in crate::recording) source: Keys,
    /// The store file that refers to every recorded `.drv`; none where nothing was pinned.
    pub(in crate::recording) pin: Option<&'a StorePath>,
    /// The targets, in the order in which they were found.
    pub(in crate::recording) targets: Vec<TargetEntry<'a>>,
    /// The steps that follow targets.
    pub(in crate::recording) steps: &'a [PlannedFollower],
    /// The derivations that have a step because several targets need them.
    pub(in crate::recording) shared: &'a [SharedStep],
    /// The attributes with an error: the evaluation errors, the refused, the expected errors.
    pub(in crate::recording) errors: Vec<ErrorEntry<'a>>,
    /// The number of each kind.
    pub(in crate::recording) counts: RecordingCounts,
    /// How long each part took, in seconds.
    pub(in crate::recording) seconds: BTreeMap<&'static str, f64>,
}

/// A target.
#[derive(Debug, Clone, Serialize)]
pub(in crate::recording) struct TargetEntry<'a> {
    /// The first attribute with this `.drv`.
    #[serde(serialize_with = "shown")]
    pub(in crate::recording) attr: &'a AttrPath,
    /// The other attributes with this `.drv`.
    #[serde(serialize_with = "all_shown")]
    pub(in crate::recording) also: &'a [AttrPath],
    /// The derivation's name.
    pub(in crate::recording) name: &'a str,
    /// Its `.drv`.
    pub(in crate::recording) drv: &'a DrvPath,
    /// Its outputs, as far as their paths are known.
    pub(in crate::recording) outputs: &'a KnownOutputs,
    /// The system it is built on.
    pub(in crate::recording) system: &'a str,
    /// `requiredSystemFeatures`.
    pub(in crate::recording) features: &'a [String],
    /// The key of its step.
    pub(in crate::recording) key: &'a str,
    /// The key under which its report is saved, where its step builds several targets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::recording) report: Option<&'a str>,
    /// How long it took in the base, in seconds, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::recording) seconds: Option<f64>,
    /// The keys of the steps that it waits for because of its `.drv`.
    pub(in crate::recording) depends_on: &'a [String],
    /// Why it needs no step; null where it has one that builds.
    pub(in crate::recording) skip: Option<&'a str>,
    /// The metadata of `attr` that were read.
    pub(in crate::recording) meta: MetaEntry<'a>,
}

/// The part of a target's `meta` that was read; fields that it does not have are omitted.
#[derive(Debug, Clone, Serialize)]
pub(in crate::recording) struct MetaEntry<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    buildkite: Option<RedactedKeys<'a>>,
    #[serde(rename = "eval-once", skip_serializing_if = "Option::is_none")]
    eval_once: Option<RedactedKeys<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<u64>,
    #[serde(rename = "maxSilent", skip_serializing_if = "Option::is_none")]
    max_silent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<Cow<'a, str>>,
}

/// An attribute path without secrets: one with a secret has no step that evaluates it.
fn shown<S: Serializer>(attr: &AttrPath, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(attr.names().iter().map(|name| redacted(name)))
}

/// Several of them.
fn all_shown<S: Serializer>(attrs: &[AttrPath], serializer: S) -> Result<S::Ok, S::Error> {
    let shown = |attr: &AttrPath| -> Vec<_> {
        let names = attr.names().iter();
        names.map(|name| redacted(name).into_owned()).collect()
    };
    serializer.collect_seq(attrs.iter().map(shown))
}

/// An attribute with an error.
#[derive(Debug, Clone, Serialize)]
pub(in crate::recording) struct ErrorEntry<'a> {
    /// Its attribute path.
    #[serde(serialize_with = "shown")]
    pub(in crate::recording) attr: &'a AttrPath,
    /// The message of its error, where there is one.
    pub(in crate::recording) message: Option<&'a str>,
    /// Whether it evaluates, but its metadata makes no step.
    pub(in crate::recording) refused: bool,
    /// Whether `expect-errors` names it.
    pub(in crate::recording) expected: bool,
    /// Whether it has a step: a red one, or a skipped one if it is expected.
    pub(in crate::recording) step: bool,
    /// The key of that step.
    pub(in crate::recording) key: String,
}

impl<'a> Document<'a> {
    /// The document of these findings. `source` are the keys of [`super::steps::source`], `root` is the attribute path at which
    /// the walk started, and `pipeline` is that of the `targets`.
    #[must_use]
    pub(in crate::recording) fn new(
        nix: &'a str,
        mut source: Keys,
        root: &AttrPath,
        targets: &'a [Target],
        pipeline: &'a PlannedPipeline,
        counts: RecordingCounts,
    ) -> Self {
        let steps = pipeline.steps.iter();
        let steps: HashSet<&str> = steps.map(|it| it.step.key.as_str()).collect();
        let entries = |errors: &'a [AttrError], refused, expected| {
            let steps = &steps;
            errors.iter().map(move |error| {
                let key = pipeline.keys.error(&error.attr);
                ErrorEntry {
                    attr: &error.attr,
                    message: error.message.as_deref(),
                    refused,
                    expected,
                    step: steps.contains(key.as_str()),
                    key,
                }
            })
        };
        let errors = &pipeline.errors;
        source.insert("attr".into(), root.names().into());
        Self {
            version: VERSION,
            complete: true,
            nix,
            source,
            pin: None,
            targets: targets
                .iter()
                .zip(&pipeline.targets)
                .map(|(target, step)| TargetEntry::new(target, step))
                .collect(),
            steps: &pipeline.followers,
            shared: &pipeline.shared,
            errors: entries(&errors.evaluation, false, false)
                .chain(entries(&errors.refused, true, false))
                .chain(entries(&errors.expected, false, true))
                .collect(),
            counts,
            seconds: BTreeMap::new(),
        }
    }

    /// The text of the document.
    ///
    /// # Errors
    /// It cannot be written as JSON: a bug (70).
    pub(in crate::recording) fn to_json(&self) -> Result<String, Failure> {
        serde_json::to_string(self)
            .classify(Class::Bug, || "cannot write eval-once.json".to_owned())
    }
}

impl<'a> TargetEntry<'a> {
    fn new(target: &'a Target, step: &'a TargetStep) -> Self {
        let Meta {
            buildkite,
            eval_once,
            timeout,
            max_silent,
            description,
            followers: _,
        } = &target.meta;
        Self {
            attr: &target.attr,
            also: &target.also,
            name: &target.name,
            drv: &target.drv,
            outputs: &target.outputs,
            system: &target.system,
            features: &target.features,
            key: &step.key,
            report: step.report.as_deref(),
            seconds: step.seconds,
            depends_on: &step.depends_on,
            skip: step.skip.as_deref(),
            meta: MetaEntry {
                buildkite: buildkite.as_ref().map(RedactedKeys),
                eval_once: eval_once.as_ref().map(RedactedKeys),
                timeout: *timeout,
                max_silent: *max_silent,
                description: description.as_deref().map(redacted),
            },
        }
    }
}

/// The part of the document that a summary reads. Fields that an older version did not write are empty.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Recorded {
    version: u32,
    /// What was evaluated, as the keys of a record.
    pub(crate) source: Keys,
    /// The targets.
    pub(crate) targets: Vec<RecordedTarget>,
    /// The steps that follow targets.
    pub(crate) steps: Vec<RecordedFollower>,
    /// The derivations that have a step because several targets need them.
    pub(crate) shared: Vec<RecordedShared>,
    /// The attributes with an error: some of the refused are targets all the same.
    pub(crate) errors: Vec<RecordedError>,
    /// How long each part took, in seconds.
    pub(crate) seconds: BTreeMap<String, f64>,
}

/// A target.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct RecordedTarget {
    /// The first attribute with this `.drv`.
    pub(crate) attr: AttrPath,
    /// The other attributes with this `.drv`.
    pub(crate) also: Vec<AttrPath>,
    /// The derivation's name.
    pub(crate) name: String,
    /// Its `.drv`.
    pub(crate) drv: String,
    /// The key of its step.
    pub(crate) key: String,
    /// The key under which its report is saved, where its step builds several targets.
    pub(crate) report: Option<String>,
    /// How long it took in the base of the recording, in seconds, where that is known.
    pub(crate) seconds: Option<f64>,
    /// The keys of the steps that it waits for because of its `.drv`.
    pub(crate) depends_on: Vec<String>,
    /// Why it needs no step; none where it has one that builds.
    pub(crate) skip: Option<String>,
}

/// A step that follows a target.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct RecordedFollower {
    /// Its key.
    pub(crate) key: String,
}

/// A derivation that has a step because several targets need it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct RecordedShared {
    /// Its name.
    pub(crate) name: String,
    /// The key of its step.
    pub(crate) key: String,
    /// The keys of the steps that it waits for.
    pub(crate) depends_on: Vec<String>,
}

/// An attribute with an error.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct RecordedError {
    /// Its attribute path.
    pub(crate) attr: AttrPath,
    /// The message of its error, where there is one.
    pub(crate) message: Option<String>,
    /// Whether it evaluates, but its metadata makes no step. Older versions did not write it.
    pub(crate) refused: bool,
    /// Whether it is an evaluation error that `expect-errors` names. Older versions did not write it.
    pub(crate) expected: bool,
    /// Whether it has a step. With older versions, each has.
    #[serde(default = "has_step")]
    pub(crate) step: bool,
    /// The key of that step; none with older versions.
    key: Option<String>,
}

impl RecordedError {
    /// The key of its step.
    pub(crate) fn key(&self) -> String {
        self.key.clone().unwrap_or_else(|| error_key(&self.attr))
    }
}

fn has_step() -> bool {
    true
}

impl Recorded {
    /// Reads a document.
    ///
    /// # Errors
    /// It cannot be read (75), has another version, or keys that no step can have (64).
    pub(crate) fn read(json: &str) -> Result<Self, Failure> {
        let recorded: Self = serde_json::from_str(json).classify(Class::Infrastructure, || {
            "cannot read the eval-once.json of a recording".into()
        })?;
        recorded.check()?;
        Ok(recorded)
    }

    /// Checks the version of a document, and its keys, which programs get as arguments.
    ///
    /// # Errors
    /// It has another version, or a key that no step can have (64).
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.version != VERSION {
            return Err(refuse(format_args!(
                "the eval-once.json of a recording has version {}, and this eval-once reads version {VERSION}",
                self.version
            )));
        }
        let targets = self.targets.iter();
        let targets = targets.flat_map(|it| std::iter::once(&it.key).chain(&it.report));
        let errors = self.errors.iter().filter_map(|it| it.key.as_ref());
        let mut keys = targets
            .chain(errors)
            .chain(self.shared.iter().map(|it| &it.key))
            .chain(self.steps.iter().map(|it| &it.key));
        if keys.all(|key| agent::may_be_step_key(key)) {
            return Ok(());
        }
        Err(refuse(
            "the eval-once.json of a recording has a key that no step can have",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::errors::ErrorLists;
    use crate::recording::pipeline::steps::StepKeys;
    use serde_json::{Value, json};

    #[test]
    fn the_document_has_the_fields_that_others_read() {
        let drv = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-a.drv";
        let path = |names: &[&str]| AttrPath::new(names.iter().map(ToString::to_string).collect());
        let targets = [Target {
            attr: path(&["a", "b.c"]),
            also: vec![path(&["d"])],
            name: "a".into(),
            drv: DrvPath::parse(drv).unwrap(),
            outputs: KnownOutputs::from_iter([(
                "out".into(),
                StorePath::parse(&drv[..drv.len() - 4]).unwrap(),
            )]),
            system: "x86_64-linux".into(),
            features: vec!["kvm".into()],
            meta: Meta {
                timeout: Some(60),
                ..Meta::default()
            },
            followers: Vec::new(),
        }];
        let target_steps = [TargetStep {
            key: "drv-x".into(),
            depends_on: vec!["drv-y".into()],
            ..TargetStep::default()
        }];
        let error = |name: &str| AttrError {
            attr: path(&[name]),
            message: None,
        };
        let pipeline = PlannedPipeline {
            keys: StepKeys::default(),
            shared: Vec::new(),
            followers: Vec::new(),
            steps: Vec::new(),
            targets: target_steps.into(),
            errors: ErrorLists {
                evaluation: vec![error("broken")],
                expected: vec![error("old")],
                refused: vec![error("odd")],
            },
            omitted: 0,
        };
        let source = Keys::from_iter([("file".to_owned(), json!("ci.nix"))]);
        let counts = RecordingCounts {
            attributes: 5,
            targets: 1,
            evaluation_errors: 1,
            expected_errors: 1,
            refused: 1,
        };
        let root = path(&[]);
        let mut document = Document::new("2.26", source, &root, &targets, &pipeline, counts);
        document.seconds.insert("total", 1.5);
        let json = document.to_json().unwrap();
        let recorded = Recorded::read(&json).unwrap();
        assert_eq!(recorded.targets[0].attr, path(&["a", "b.c"]));
        assert_eq!(recorded.targets[0].drv, drv);
        assert_eq!(recorded.targets[0].depends_on, ["drv-y"]);
        assert_eq!(recorded.errors[0].attr, path(&["broken"]));
        assert_eq!(recorded.seconds, BTreeMap::from([("total".into(), 1.5)]));
        let old = Recorded::read(r#"{"version":1,"errors":[{"attr":["a"]}]}"#).unwrap();
        assert!(old.errors[0].step, "each had a step");
        assert!(Recorded::read(r#"{"version":2}"#).is_err());
        for place in ["targets", "errors", "shared", "steps"] {
            let with = |key: &str| json!({ "version": 1, place: [{ "attr": ["a"], "key": key }] });
            Recorded::read(&with("a").to_string()).unwrap();
            let refused = Recorded::read(&with("a\0b").to_string()).unwrap_err();
            assert_eq!(refused.class, Class::Config, "{place}");
        }
        let read: Value = serde_json::from_str(&json).unwrap();
        let key = |name: &str| error_key(&path(&[name]));
        assert_eq!(
            read,
            json!({
                "version": 1,
                "complete": true,
                "nix": "2.26",
                "source": { "file": "ci.nix", "attr": [] },
                "pin": null,
                "targets": [{
                    "attr": ["a", "b.c"], "also": [["d"]], "name": "a", "drv": drv,
                    "outputs": { "out": &drv[..drv.len() - 4] },
                    "system": "x86_64-linux", "features": ["kvm"], "key": "drv-x", "depends_on": ["drv-y"],
                    "skip": null, "meta": { "timeout": 60 }
                }],
                "steps": [], "shared": [],
                "errors": [
                    { "attr": ["broken"], "message": null, "refused": false, "expected": false, "step": false, "key": key("broken") },
                    { "attr": ["odd"], "message": null, "refused": true, "expected": false, "step": false, "key": key("odd") },
                    { "attr": ["old"], "message": null, "refused": false, "expected": true, "step": false, "key": key("old") },
                ],
                "counts": {
                    "attributes": 5, "targets": 1, "evaluation_errors": 1, "expected_errors": 1, "refused": 1
                },
                "seconds": { "total": 1.5 }
            })
        );
    }
}
