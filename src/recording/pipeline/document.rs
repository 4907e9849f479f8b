//! `eval-once.json`: the findings of a recording, for other programs.
//!
//! Stable: a field is added, never renamed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::steps::TargetStep;
use crate::counts::RecordingCounts;
use crate::exit::{Class, Classify as _, Failure};
use crate::keys::{Keys, refuse};
use crate::nix::{AttrPath, DrvPath, StorePath};
use crate::recording::{AttrError, Meta, Target};

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
    /// The attributes that have an error step.
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
    pub(in crate::recording) attr: &'a AttrPath,
    /// The other attributes with this `.drv`.
    pub(in crate::recording) also: &'a [AttrPath],
    /// The derivation's name.
    pub(in crate::recording) name: &'a str,
    /// Its `.drv`.
    pub(in crate::recording) drv: &'a DrvPath,
    /// Its outputs, as far as their paths are known.
    pub(in crate::recording) outputs: &'a BTreeMap<String, StorePath>,
    /// The system it is built on.
    pub(in crate::recording) system: &'a str,
    /// `requiredSystemFeatures`.
    pub(in crate::recording) features: &'a [String],
    /// The key of its step.
    pub(in crate::recording) key: &'a str,
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
    buildkite: Option<&'a Keys>,
    #[serde(rename = "eval-once", skip_serializing_if = "Option::is_none")]
    eval_once: Option<&'a Keys>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<u64>,
    #[serde(rename = "maxSilent", skip_serializing_if = "Option::is_none")]
    max_silent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
}

/// An attribute that has an error step.
#[derive(Debug, Clone, Serialize)]
pub(in crate::recording) struct ErrorEntry<'a> {
    /// Its attribute path.
    pub(in crate::recording) attr: &'a AttrPath,
    /// The message of its error, where there is one.
    pub(in crate::recording) message: Option<&'a str>,
    /// Whether it evaluates, but its metadata makes no step.
    pub(in crate::recording) refused: bool,
}

impl<'a> Document<'a> {
    /// The document of these findings. `source` are the keys of [`super::steps::source`], `root` is the attribute path at which
    /// the walk started, `target_steps` are the places of the `targets`, and the first `errors` are those that do not evaluate, as many
    /// as there are in `counts`.
    #[must_use]
    pub(in crate::recording) fn new(
        nix: &'a str,
        mut source: Keys,
        root: &AttrPath,
        targets: &'a [Target],
        target_steps: &'a [TargetStep],
        errors: &'a [AttrError],
        counts: RecordingCounts,
    ) -> Self {
        source.insert("attr".into(), root.names().into());
        Self {
            version: VERSION,
            complete: true,
            nix,
            source,
            pin: None,
            targets: targets
                .iter()
                .zip(target_steps)
                .map(|(target, step)| TargetEntry::new(target, step))
                .collect(),
            errors: errors
                .iter()
                .enumerate()
                .map(|(number, error)| ErrorEntry {
                    attr: &error.attr,
                    message: error.message.as_deref(),
                    refused: number >= counts.evaluation_errors,
                })
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
            depends_on: &step.depends_on,
            skip: step.skip.as_deref(),
            meta: MetaEntry {
                buildkite: buildkite.as_ref(),
                eval_once: eval_once.as_ref(),
                timeout: *timeout,
                max_silent: *max_silent,
                description: description.as_deref(),
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
    /// The attributes that have an error step: some of them are targets all the same.
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
    /// The keys of the steps that it waits for because of its `.drv`.
    pub(crate) depends_on: Vec<String>,
    /// Why it needs no step; none where it has one that builds.
    pub(crate) skip: Option<String>,
}

/// An attribute that has an error step.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct RecordedError {
    /// Its attribute path.
    pub(crate) attr: AttrPath,
    /// The message of its error, where there is one.
    pub(crate) message: Option<String>,
    /// Whether it evaluates, but its metadata makes no step. Older versions did not write it.
    pub(crate) refused: bool,
}

impl Recorded {
    /// Reads a document.
    ///
    /// # Errors
    /// It cannot be read (75), or has another version (64).
    pub(crate) fn read(json: &str) -> Result<Self, Failure> {
        let recorded: Self = serde_json::from_str(json).classify(Class::Infrastructure, || {
            "cannot read the eval-once.json of a recording".into()
        })?;
        if recorded.version != VERSION {
            return Err(refuse(format_args!(
                "the eval-once.json of a recording has version {}, and this eval-once reads version {VERSION}",
                recorded.version
            )));
        }
        Ok(recorded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
            outputs: BTreeMap::from([(
                "out".into(),
                StorePath::parse(&drv[..drv.len() - 4]).unwrap(),
            )]),
            system: "x86_64-linux".into(),
            features: vec!["kvm".into()],
            meta: Meta {
                timeout: Some(60),
                ..Meta::default()
            },
        }];
        let target_steps = [TargetStep {
            key: "drv-x".into(),
            depends_on: vec!["drv-y".into()],
            skip: None,
        }];
        let errors = [AttrError {
            attr: path(&["broken"]),
            message: None,
        }];
        let source = Keys::from_iter([("file".to_owned(), json!("ci.nix"))]);
        let counts = RecordingCounts {
            attributes: 3,
            targets: 1,
            evaluation_errors: 1,
            refused: 0,
        };
        let root = path(&[]);
        let mut document = Document::new(
            "2.26",
            source,
            &root,
            &targets,
            &target_steps,
            &errors,
            counts,
        );
        document.seconds.insert("total", 1.5);
        let json = document.to_json().unwrap();
        let recorded = Recorded::read(&json).unwrap();
        assert_eq!(recorded.targets[0].attr, path(&["a", "b.c"]));
        assert_eq!(recorded.targets[0].drv, drv);
        assert_eq!(recorded.targets[0].depends_on, ["drv-y"]);
        assert_eq!(recorded.errors[0].attr, path(&["broken"]));
        assert_eq!(recorded.seconds, BTreeMap::from([("total".into(), 1.5)]));
        assert!(Recorded::read(r#"{"version":2}"#).is_err());
        let read: Value = serde_json::from_str(&json).unwrap();
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
                "errors": [{ "attr": ["broken"], "message": null, "refused": false }],
                "counts": { "attributes": 3, "targets": 1, "evaluation_errors": 1, "refused": 0 },
                "seconds": { "total": 1.5 }
            })
        );
    }
}
