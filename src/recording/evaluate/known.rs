//! The targets that a walk takes over from a recording that was stopped: it does not evaluate them again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::nix::AttrPath;
use crate::recording::following::FollowerMeta;
use crate::recording::{EvaluationResult, FoundTarget};

/// A target with all that a walk finds of it. (Where its `.drv` is one that its evaluation need not have written, the walk finds that
/// out again once the `.drv` is gone.)
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::recording) struct KnownTarget {
    /// The target.
    #[serde(flatten)]
    pub(in crate::recording) found: FoundTarget,
    /// Whether it can be called as well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(in crate::recording) callable: bool,
}

/// Known targets, by their full attribute paths.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::recording) struct KnownTargets(BTreeMap<AttrPath, KnownTarget>);

impl FromIterator<KnownTarget> for KnownTargets {
    fn from_iter<I: IntoIterator<Item = KnownTarget>>(targets: I) -> Self {
        let named = targets.into_iter();
        Self(
            named
                .map(|target| (target.found.attr.clone(), target))
                .collect(),
        )
    }
}

impl KnownTargets {
    /// The targets of an evaluation, but for those of which a step that follows was not read.
    pub(in crate::recording) fn of(evaluated: &EvaluationResult) -> Self {
        let is_whole =
            |found: &&FoundTarget| found.meta.followers.iter().all(FollowerMeta::is_read);
        let targets = evaluated
            .targets
            .iter()
            .filter(is_whole)
            .map(|found| KnownTarget {
                found: found.clone(),
                callable: evaluated.callable.contains(&found.attr),
            });
        targets.collect()
    }

    /// These, and others in place of those with the same attribute paths.
    pub(in crate::recording) fn with(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    /// How many there are.
    pub(in crate::recording) fn count(&self) -> usize {
        self.0.len()
    }

    /// All of them, in the order of their attribute paths.
    pub(in crate::recording) fn iter(&self) -> impl Iterator<Item = &KnownTarget> {
        self.0.values()
    }

    /// The target with this attribute path.
    pub(super) fn get(&self, attr: &AttrPath) -> Option<&KnownTarget> {
        self.0.get(attr)
    }

    /// They as walk.nix takes them, relative to `root`: an object for each set, and `true` for each target. A lookup there takes no
    /// longer where there are more of them. With `at_most` bytes of names, not all of them need be in it.
    pub(super) fn nested(&self, root: &AttrPath, at_most: usize) -> Value {
        let mut nested = Map::new();
        let mut bytes = 0;
        for attr in self.0.keys() {
            let Some(names) = attr.names().strip_prefix(root.names()) else {
                continue;
            };
            bytes += names
                .iter()
                .map(|name| name.len() + BESIDE_NAME)
                .sum::<usize>();
            if bytes > at_most {
                break;
            }
            insert(&mut nested, names);
        }
        Value::Object(nested)
    }
}

/// What is written beside a name, in bytes: `\"\":true,`.
const BESIDE_NAME: usize = 10;

/// Inserts a target, unless it is in another one.
fn insert(nested: &mut Map<String, Value>, names: &[String]) {
    match names {
        [] => {}
        [name] => {
            nested.entry(name.clone()).or_insert(Value::Bool(true));
        }
        [name, below @ ..] => {
            let set = nested.entry(name.clone());
            if let Value::Object(set) = set.or_insert_with(|| Value::Object(Map::new())) {
                insert(set, below);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::DrvPath;
    use crate::recording::Meta;
    use crate::recording::following::{FollowerState, RunDerivation};
    use serde_json::json;

    fn known(attr: &[&str]) -> KnownTarget {
        let drv = format!("/nix/store/{}-a.drv", "0".repeat(32));
        KnownTarget {
            found: FoundTarget {
                attr: AttrPath::new(attr.iter().map(ToString::to_string).collect()),
                drv: DrvPath::parse(&drv).unwrap(),
                meta: Meta::default(),
            },
            callable: false,
        }
    }

    fn targets(attrs: &[&[&str]]) -> KnownTargets {
        attrs.iter().map(|attr| known(attr)).collect()
    }

    #[test]
    fn known_targets_are_nested_as_their_sets_are() {
        let known = targets(&[
            &["x", "a"],
            &["x", "s", "b.c"],
            &["x", "s", "0"],
            &["y"],
            &["x"],
        ]);
        let root = AttrPath::parse("x").unwrap();
        assert_eq!(
            known.nested(&root, usize::MAX),
            json!({ "a": true, "s": { "0": true, "b.c": true } })
        );
        assert_eq!(known.count(), 5);
        assert!(known.get(&AttrPath::parse("x.a").unwrap()).is_some());
        assert!(known.get(&AttrPath::parse("x.s").unwrap()).is_none());
    }

    #[test]
    fn what_does_not_fit_is_not_known_to_the_walker() {
        let known = targets(&[&["a"], &["b"], &["c"]]);
        let nested = known.nested(&AttrPath::default(), 2 * (1 + BESIDE_NAME));
        assert_eq!(nested, json!({ "a": true, "b": true }));
    }

    #[test]
    fn a_target_with_a_step_that_was_not_read_is_evaluated_again() {
        let mut evaluated = EvaluationResult {
            targets: vec![known(&["a"]).found, known(&["b"]).found],
            ..EvaluationResult::default()
        };
        let step = FollowerMeta::unread("deploy".into());
        evaluated.targets[0].meta.followers.push(step);
        let known = KnownTargets::of(&evaluated);
        let attrs: Vec<_> = known.iter().map(|it| it.found.attr.to_string()).collect();
        assert_eq!(attrs, ["b"]);
    }

    #[test]
    fn a_known_target_reads_back_as_it_was_written() {
        let mut target = known(&["a", "b.\u{1}\""]);
        target.found.meta = Meta {
            buildkite: json!({ "label": "x", "n": [1, null] }).as_object().cloned(),
            eval_once: json!({}).as_object().cloned(),
            timeout: Some(60),
            max_silent: Some(1),
            description: Some("d".into()),
            followers: vec![FollowerMeta {
                name: "deploy".into(),
                state: FollowerState::Read {
                    keys: json!({ "after": "all" }).as_object().cloned().unwrap(),
                    run: Some(RunDerivation {
                        drv: target.found.drv.clone(),
                        program: None,
                    }),
                },
            }],
        };
        for callable in [false, true] {
            target.callable = callable;
            let json = serde_json::to_string(&target).unwrap();
            assert_eq!(serde_json::from_str::<KnownTarget>(&json).unwrap(), target);
        }
        let foreign = json!({ "attr": ["a"], "drv": "/tmp/a", "meta": {} });
        assert!(serde_json::from_value::<KnownTarget>(foreign).is_err());
    }
}
