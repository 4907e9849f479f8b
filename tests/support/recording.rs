//! What `eval-once pipeline --dry-run` prints, as tests look at it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::program::Ended;

/// A pipeline that was generated.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) json: Value,
}

/// A step of it: of a target, or of an error.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) json: Value,
    /// The record it carries.
    pub(crate) record: Value,
}

impl Pipeline {
    /// Reads what a recording has printed, which must have succeeded.
    #[track_caller]
    pub(crate) fn of(ended: &Ended) -> Self {
        ended.exits(0);
        Self {
            json: serde_json::from_str(&ended.stdout).unwrap(),
        }
    }

    /// Its steps, those in groups too, by attribute path as it is written in the record.
    #[track_caller]
    pub(crate) fn steps(&self) -> BTreeMap<String, Step> {
        let mut steps = BTreeMap::new();
        for json in self.list() {
            let step = Step::of(json);
            // The step of a refused attribute has no record.
            let name = match step.record.get("attr") {
                Some(attr) => attr.to_string(),
                None => step.json["label"].to_string(),
            };
            assert!(
                steps.insert(name.clone(), step).is_none(),
                "two steps for {name}"
            );
        }
        steps
    }

    /// Its steps in their order.
    pub(crate) fn list(&self) -> Vec<Value> {
        let top = self.json["steps"].as_array().unwrap();
        top.iter()
            .flat_map(|step| match step.get("steps") {
                Some(inner) => inner.as_array().unwrap().clone(),
                None => vec![step.clone()],
            })
            .collect()
    }

    /// The step of this attribute.
    #[track_caller]
    pub(crate) fn step(&self, attr: &[&str]) -> Step {
        let name = serde_json::to_string(attr).unwrap();
        let steps = self.steps();
        let known: Vec<_> = steps.keys().cloned().collect();
        steps
            .get(&name)
            .unwrap_or_else(|| panic!("no step for {name}, but for {known:?}"))
            .clone()
    }

    /// Attribute path and `.drv` of each step that has one.
    pub(crate) fn drvs(&self) -> BTreeMap<String, String> {
        let steps = self.steps().into_iter();
        steps
            .filter_map(|(name, step)| Some((name, step.record["drv"].as_str()?.to_owned())))
            .collect()
    }

    /// The attribute paths of the steps without a `.drv`: the errors.
    pub(crate) fn broken(&self) -> Vec<String> {
        let steps = self.steps().into_iter();
        steps
            .filter(|(_, step)| step.record.get("drv").is_none())
            .map(|(name, _)| name)
            .collect()
    }
}

impl Step {
    #[track_caller]
    fn of(json: Value) -> Self {
        let record = match json["env"].get("EVAL_ONCE_STEP") {
            Some(text) => serde_json::from_str(text.as_str().unwrap()).unwrap(),
            None => json["plugins"][0]
                .as_object()
                .and_then(|plugin| plugin.values().next().cloned())
                .unwrap_or_default(),
        };
        Self { json, record }
    }

    /// Its key.
    pub(crate) fn key(&self) -> &str {
        self.json["key"].as_str().unwrap()
    }

    /// The keys of the steps it waits for.
    pub(crate) fn depends_on(&self) -> Vec<String> {
        let list = self.json.get("depends_on").and_then(Value::as_array);
        let keys = list.into_iter().flatten();
        keys.map(|key| key.as_str().unwrap().to_owned()).collect()
    }
}
