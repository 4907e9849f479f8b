//! What several attributes with one `.drv` wish: they have one step.
//!
//! An attribute without wishes is content with those of another: `tested = app // { meta.buildkite.command = "…"; }` is `app` as well.
//! Where two wish different things the first one counts, and the recording says so. None is skipped that another one wants built.

use std::collections::HashMap;

use serde_json::Value;

use super::evaluate::gaps::Note;
use super::{FoundTarget, Meta};
use crate::keys::Keys;
use crate::nix::DrvPath;

/// The key of a step that says why it never runs.
const SKIP: &str = "skip";

/// The key for steps that follow, which all attributes have for themselves.
const STEPS: &str = "steps";

/// Adds what another attribute of the same `.drv` wishes. Gives false where it wishes something else, which then does not count.
pub(super) fn add(meta: &mut Meta, other: &Meta) -> bool {
    let skips = |meta: &Meta| {
        let skip = meta.buildkite.as_ref().and_then(|keys| keys.get(SKIP));
        skip.is_some_and(|skip| !matches!(skip, Value::Null | Value::Bool(false)) && *skip != "")
    };
    let is_skipped = skips(meta) && skips(other);
    let own_skip = meta.buildkite.as_mut().and_then(|keys| keys.remove(SKIP));
    let agree = [
        agrees(&mut meta.buildkite, other.buildkite.as_ref(), SKIP),
        agrees(&mut meta.eval_once, other.eval_once.as_ref(), STEPS),
    ];
    if let Some(buildkite) = &mut meta.buildkite {
        buildkite.remove(SKIP);
        if let Some(skip) = own_skip.filter(|_| is_skipped) {
            buildkite.insert(SKIP.to_owned(), skip);
        }
    }
    meta.timeout = meta.timeout.max(other.timeout);
    meta.max_silent = meta.max_silent.max(other.max_silent);
    !agree.contains(&false)
}

/// Whether the wishes are the same but for this key, or only one has any, which are taken then.
fn agrees(wishes: &mut Option<Keys>, other: Option<&Keys>, but: &str) -> bool {
    let without = |keys: Option<&Keys>| {
        let mut keys = keys.cloned().unwrap_or_default();
        keys.remove(but);
        keys
    };
    let (own, others) = (without(wishes.as_ref()), without(other));
    if own.is_empty() && !others.is_empty() {
        *wishes = other.cloned();
    }
    own.is_empty() || others.is_empty() || own == others
}

/// Names the attributes whose wishes do not count, because the first one with the same `.drv` has others.
pub(super) fn overruled(found: &[FoundTarget]) -> Vec<Note> {
    let mut first: HashMap<&DrvPath, &FoundTarget> = HashMap::with_capacity(found.len());
    // Few have more than one attribute.
    let mut wishes: HashMap<&DrvPath, Meta> = HashMap::new();
    let mut notes = Vec::new();
    for found in found {
        let Some(first) = first.get(&found.drv) else {
            first.insert(&found.drv, found);
            continue;
        };
        let wishes = wishes
            .entry(&found.drv)
            .or_insert_with(|| first.meta.clone());
        if !add(wishes, &found.meta) {
            let attr = &first.attr;
            notes.push(Note {
                text: format!(
                    "{} and {attr} have the same .drv, so one step, and other wishes in meta.buildkite or meta.eval-once: those of {attr} count",
                    found.attr
                ),
                hint: Some("give both the same, or one of them a derivation of its own".into()),
                is_warning: true,
            });
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn meta(buildkite: &Value, eval_once: &Value) -> Meta {
        let keys = |value: &Value| value.as_object().cloned();
        Meta {
            buildkite: keys(buildkite),
            eval_once: keys(eval_once),
            ..Meta::default()
        }
    }

    #[test]
    fn wishes_of_one_attribute_are_those_of_all_and_of_two_the_first_counts() {
        let none = Value::Null;
        let test = json!({ "command": "test" });
        let other = json!({ "command": "other" });
        for (one, two, both, agree) in [
            (&none, &test, &test, true),
            (&test, &none, &test, true),
            (&test, &test, &test, true),
            (&test, &other, &test, false),
        ] {
            let mut target = meta(one, &none);
            assert_eq!(add(&mut target, &meta(two, &none)), agree);
            assert_eq!(target.buildkite.as_ref(), both.as_object());
            let mut target = meta(&none, one);
            assert_eq!(add(&mut target, &meta(&none, two)), agree);
            assert_eq!(target.eval_once.as_ref(), both.as_object());
        }
        // Each has its own steps that follow.
        let steps = |name: &str| meta(&none, &json!({ "push": true, "steps": { name: {} } }));
        assert!(add(&mut steps("a"), &steps("b")));
    }

    #[test]
    fn a_target_is_skipped_where_all_of_its_attributes_are() {
        let none = Value::Null;
        let skip = |skip: &str| meta(&json!({ "skip": skip }), &none);
        let skipped = |one: &Meta, two: &Meta| {
            let mut target = one.clone();
            assert!(add(&mut target, two));
            target.buildkite.and_then(|keys| keys.get(SKIP).cloned())
        };
        assert_eq!(skipped(&skip("a"), &skip("b")), Some("a".into()));
        for wanted in [
            meta(&none, &none),
            skip(""),
            meta(&json!({ "skip": false }), &none),
        ] {
            assert_eq!(skipped(&skip("a"), &wanted), None);
            let unskipped = skipped(&wanted, &skip("a"));
            assert_ne!(unskipped, Some("a".into()));
        }
    }

    #[test]
    fn the_longest_time_counts() {
        let times = |timeout, max_silent| Meta {
            timeout,
            max_silent,
            ..Meta::default()
        };
        let mut target = times(Some(5), None);
        assert!(add(&mut target, &times(Some(9), Some(3))));
        assert_eq!(target, times(Some(9), Some(3)));
    }
}
