//! The steps that Buildkite takes: by its own schema, and by rules that the schema does not have.
//!
//! Buildkite rejects a whole upload because of one property that it does not know. So a step with any property of a user's or a
//! repository's is checked first, and an error is one sentence that names the property.

use serde_json::{Value, json};

use crate::exit::{Class, Classify as _, Failure};
use crate::keys::{Keys, find_below, found};

use super::json_schema::{JsonSchema, Mismatch, MismatchKind};

/// Buildkite's schema of pipelines, ready to check with.
#[derive(Debug)]
pub struct Schema(JsonSchema);

/// The properties whose values have to be strings, numbers or booleans, though the schema does not say so.
const PLAIN_MAPS: [&str; 2] = ["env", "agents"];

/// The longest key of a map that a YAML reader has to take for one.
const NAME_AT_MOST: usize = 1024;

impl Schema {
    /// Reads the schema.
    ///
    /// # Errors
    /// The schema that is compiled in cannot be read: a bug (70).
    pub fn new() -> Result<Self, Failure> {
        let bug = || "the schema of Buildkite's pipelines cannot be used".to_owned();
        let mut document: Value =
            serde_json::from_str(include_str!("pipeline-schema.json")).classify(Class::Bug, bug)?;
        // In Buildkite's documentation, and not in its schema.
        let properties = &mut document["definitions"]["commandStep"]["properties"];
        properties["checkout"] = json!({ "type": "object" });
        // The schema allows negative numbers; Buildkite does not.
        properties["parallelism"]["minimum"] = json!(0);
        Ok(Self(JsonSchema::new(document)))
    }

    /// Checks a command step.
    ///
    /// # Errors
    /// Buildkite would reject it; the sentence names the property, and what was expected.
    pub fn check_step(&self, step: &Value) -> Result<(), String> {
        if let Value::Object(step) = step {
            check_beyond_schema(step)?;
        }
        self.check("/definitions/commandStep", step)
    }

    /// Checks a whole pipeline by the schema.
    ///
    /// # Errors
    /// Buildkite would reject it.
    pub fn check_pipeline(&self, pipeline: &Value) -> Result<(), String> {
        self.check("", pipeline)
    }

    fn check(&self, pointer: &str, value: &Value) -> Result<(), String> {
        match self.0.mismatch(self.0.at(pointer), value) {
            None => Ok(()),
            Some(mismatch) => Err(self.sentence(&mismatch)),
        }
    }

    /// The error as one sentence.
    fn sentence(&self, mismatch: &Mismatch<'_>) -> String {
        let place = mismatch.place();
        let path = match place.as_str() {
            "" => "the step".to_owned(),
            place => format!("`{place}`"),
        };
        match &mismatch.kind {
            MismatchKind::UnknownKeys(names) => {
                let unexpected: Vec<_> = names
                    .iter()
                    .map(|name| match place.as_str() {
                        "" => format!("`{name}`"),
                        place => format!("`{place}.{name}`"),
                    })
                    .collect();
                let known = mismatch.schema["properties"]
                    .as_object()
                    .filter(|known| known.len() < 10 && !place.is_empty())
                    .map(|known| {
                        let known: Vec<_> = known.keys().map(String::as_str).collect();
                        format!("; expected one of: {}", known.join(", "))
                    });
                format!(
                    "{} is not a property that Buildkite knows here{}",
                    unexpected.join(", "),
                    known.unwrap_or_default()
                )
            }
            MismatchKind::MissingKey(name) => format!("{path} lacks `{name}`"),
            MismatchKind::BadName(name, schema) => format!(
                "`{name}` is a name in {path}, and must be {}",
                either(&self.describe(schema, 0))
            ),
            MismatchKind::Other => {
                let found = found(mismatch.value);
                match &self.describe(mismatch.schema, 0)[..] {
                    [] => format!("{path} is {found}, which Buildkite does not accept"),
                    expected => format!("{path} is {found}, and must be {}", either(expected)),
                }
            }
        }
    }

    /// The values that a schema takes, in words: the alternatives; none where we have no words for them.
    fn describe(&self, schema: &Value, depth: usize) -> Vec<String> {
        if depth > 8 {
            return Vec::new();
        }
        let schema = self.0.resolve(schema);
        let mut words = Vec::new();
        let mut add = |word: String| {
            // `true` and `"true"` are the same to a reader.
            if !words.contains(&word) {
                words.push(word);
            }
        };
        if let Some(options) = schema["enum"].as_array() {
            for option in options {
                add(option
                    .as_str()
                    .map_or_else(|| format!("`{option}`"), |text| format!("`{text}`")));
            }
            return words;
        }
        for keyword in ["anyOf", "oneOf"] {
            if let Some(branches) = schema[keyword].as_array() {
                let branches = branches.iter().filter(|branch| branch["type"] != "null");
                branches
                    .flat_map(|branch| self.describe(branch, depth + 1))
                    .for_each(add);
                return words;
            }
        }
        let limit = |keyword: &str| schema[keyword].as_u64();
        match schema["type"].as_str() {
            Some("string") => add(match (limit("maxLength"), schema["pattern"].as_str()) {
                (Some(most), Some(pattern)) => format!(
                    "a string of at most {most} characters that matches {pattern} and is not a UUID"
                ),
                (Some(most), None) => format!("a string of at most {most} characters"),
                (None, Some(pattern)) => format!("a string that matches {pattern}"),
                (None, None) => "a string".into(),
            }),
            Some("integer") => add(match (limit("minimum"), limit("maximum")) {
                (Some(least), Some(most)) => format!("a whole number from {least} to {most}"),
                (Some(least), None) => format!("a whole number of at least {least}"),
                _ => "a whole number".into(),
            }),
            Some("boolean") => add("`true` or `false`".into()),
            Some("array") => add(match &self.describe(&schema["items"], depth + 1)[..] {
                [items] if items == "a string" => "a list of strings".into(),
                [items] if items == "a map" => "a list of maps".into(),
                _ => "a list".into(),
            }),
            Some("object") if limit("maxProperties") == Some(1) => {
                add("a map with one entry".into());
            }
            Some("object") => add("a map".into()),
            _ => {}
        }
        words
    }
}

/// `a, b or c`.
fn either(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [word] => word.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// Checks what the schema allows, but Buildkite or its agent rejects.
fn check_beyond_schema(step: &Keys) -> Result<(), String> {
    for (key, value) in step {
        // A plugin without configuration has null for it, and `depends_on: null` waits for nothing.
        let null = match (key.as_str(), value) {
            ("depends_on", Value::Null) => None,
            ("plugins", Value::Array(plugins)) => {
                plugins.iter().enumerate().find_map(|(i, plugin)| {
                    let Value::Object(plugin) = plugin else {
                        return plugin.is_null().then(|| format!("plugins[{i}]"));
                    };
                    plugin
                        .iter()
                        .filter(|(_, configuration)| !configuration.is_null())
                        .find_map(|(name, configuration)| {
                            find_below(
                                format!("plugins[{i}].{name}"),
                                configuration,
                                &Value::is_null,
                            )
                        })
                })
            }
            _ => find_below(key.clone(), value, &Value::is_null),
        };
        if let Some(null) = null {
            return Err(format!(
                "`{null}` is null: leave it out, or give it a value"
            ));
        }
        if let ("depends_on", Value::Array(list)) = (key.as_str(), value)
            && let Some(i) = list
                .iter()
                .position(|entry| entry.is_object() && entry.get("step").is_none())
        {
            return Err(format!("`depends_on[{i}]` lacks `step`"));
        }
        let long = |value: &Value| {
            value
                .as_object()
                .is_some_and(|map| map.keys().any(|name| name.len() > NAME_AT_MOST))
        };
        if key.len() > NAME_AT_MOST {
            return Err(format!(
                "a property has a name of more than {NAME_AT_MOST} bytes"
            ));
        }
        if let Some(place) = find_below(key.clone(), value, &long) {
            return Err(format!(
                "`{place}` holds a name of more than {NAME_AT_MOST} bytes"
            ));
        }
    }
    for map in PLAIN_MAPS {
        let entries = step.get(map).and_then(Value::as_object);
        let structured = |value: &&Value| value.is_array() || value.is_object();
        for (name, value) in entries.into_iter().flatten() {
            if structured(&value) {
                return Err(format!(
                    "`{map}.{name}` is {}, and must be a string, a number or a boolean",
                    found(value)
                ));
            }
        }
    }
    if step.contains_key("concurrency") != step.contains_key("concurrency_group") {
        return Err("`concurrency` and `concurrency_group` only go together".into());
    }
    if step.contains_key("concurrency_method") && !step.contains_key("concurrency") {
        return Err("`concurrency_method` only goes with `concurrency`".into());
    }
    if let Some(group) = step.get("concurrency_group").and_then(Value::as_str)
        && group.chars().count() > 200
    {
        return Err("`concurrency_group` is longer than 200 characters".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeSet;

    use jsonschema::Validator;
    use proptest::prelude::any;
    use proptest::prop_assert_eq;
    use proptest::test_runner::TestRunner;

    use super::*;

    const STEP: &str = "/definitions/commandStep";

    fn check(step: &Value) -> Result<(), String> {
        let schema = Schema::new().unwrap();
        assert_eq!(
            schema.check(STEP, step).is_ok(),
            library(&schema, STEP).is_valid(step),
            "{step}"
        );
        schema.check_step(step)
    }

    /// A library for all of JSON Schema, with the same schema.
    fn library(schema: &Schema, pointer: &str) -> Validator {
        let document = schema.0.at("");
        let schema = match pointer {
            "" => document.clone(),
            pointer => {
                json!({ "definitions": document["definitions"], "$ref": format!("#{pointer}") })
            }
        };
        jsonschema::draft7::new(&schema).unwrap()
    }

    /// A value that meets the schema, or does not quite: the choices say.
    fn sample(schema: &Schema, part: &Value, choices: &mut impl Iterator<Item = u8>) -> Value {
        let mut choose = |count: usize| usize::from(choices.next().unwrap_or(0)) % count.max(1);
        if choose(16) == 15 {
            let odd = [
                json!([
                    null,
                    true,
                    0,
                    -1,
                    1.0,
                    1.5,
                    11,
                    "",
                    "x",
                    "a b",
                    "20g",
                    [],
                    {},
                    [1],
                    ["a"],
                    [null]
                ]),
                json!([
                    "x".repeat(70),
                    "x".repeat(71),
                    "x".repeat(100),
                    "x".repeat(101),
                    "*",
                    "é".repeat(70)
                ]),
                json!(["01234567-0123-0123-0123-0123456789ab", { "a": 1 }, { "a": 1, "b": 2 }, { "a b": ["c"] }]),
            ];
            let odd: Vec<&Value> = odd.iter().filter_map(Value::as_array).flatten().collect();
            return odd[choose(odd.len())].clone();
        }
        let part = schema.0.resolve(part);
        for keyword in ["anyOf", "oneOf"] {
            if let Some(branches) = part[keyword].as_array() {
                let branch = &branches[choose(branches.len())];
                return sample(schema, branch, choices);
            }
        }
        if let Some(values) = part["enum"].as_array() {
            return values[choose(values.len())].clone();
        }
        match part["type"].as_str().or(part["type"][0].as_str()) {
            Some("boolean") => json!(choose(2) == 0),
            Some("integer") => json!(choose(12)),
            Some("array") => {
                let length = choose(3);
                (0..length)
                    .map(|_| sample(schema, &part["items"], choices))
                    .collect()
            }
            Some("object") => {
                let known = part["properties"].as_object();
                let known: Vec<&String> = known.into_iter().flat_map(|it| it.keys()).collect();
                let required = part["required"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str);
                let mut names: BTreeSet<&str> = required.filter(|_| choose(16) != 15).collect();
                for _ in 0..choose(4) {
                    names.extend(known.get(choose(known.len())).map(|it| it.as_str()));
                }
                if known.is_empty() || choose(16) == 15 {
                    names.insert(["odd", "os", "x y"][choose(3)]);
                }
                let entries = names.into_iter().map(|name| {
                    let known = part["properties"].get(name);
                    let value = sample(
                        schema,
                        known.unwrap_or(&part["additionalProperties"]),
                        choices,
                    );
                    (name.to_owned(), value)
                });
                Value::Object(entries.collect())
            }
            _ => json!(["a", "some-key", "20g"][choose(3)]),
        }
    }

    #[test]
    fn the_reader_of_the_schema_agrees_with_a_library_for_all_of_json_schema() {
        let schema = Schema::new().unwrap();
        // A whole pipeline has input fields, and a `format` that only Buildkite can check.
        for pointer in [
            STEP,
            "/definitions/groupStep",
            "/definitions/waitStep",
            "/definitions/triggerStep",
        ] {
            let library = library(&schema, pointer);
            let valid = Cell::new(0);
            let mut runner = TestRunner::default();
            let choices = proptest::collection::vec(any::<u8>(), 0..60);
            let agreement = runner.run(&choices, |choices| {
                let value = sample(&schema, schema.0.at(pointer), &mut choices.into_iter());
                let ours = schema.check(pointer, &value);
                prop_assert_eq!(
                    ours.is_ok(),
                    library.is_valid(&value),
                    "{} {:?}",
                    value,
                    ours
                );
                valid.set(valid.get() + u32::from(ours.is_ok()));
                Ok(())
            });
            agreement.unwrap();
            let of = runner.config().cases;
            assert!(
                (of / 10..of * 9 / 10).contains(&valid.get()),
                "{pointer}: {valid:?} of {of} are valid"
            );
        }
    }

    #[test]
    fn the_schema_has_only_keywords_that_are_read_or_that_check_nothing() {
        const READ: [&str; 18] = [
            "$ref",
            "additionalProperties",
            "anyOf",
            "enum",
            "items",
            "maxLength",
            "maxProperties",
            "maximum",
            "minItems",
            "minimum",
            "not",
            "oneOf",
            "pattern",
            "properties",
            "propertyNames",
            "required",
            "type",
            // A regular expression of Ruby's, which only Buildkite can check; only input fields have it, and we make none.
            "format",
        ];
        const NOTHING: [&str; 8] = [
            "$schema",
            "default",
            "definitions",
            "deprecated",
            "description",
            "examples",
            "fileMatch",
            "title",
        ];
        fn walk(part: &Value, is_map_of_schemas: bool, found: &mut BTreeSet<String>) {
            for (key, value) in part.as_object().into_iter().flatten() {
                if is_map_of_schemas {
                    walk(value, false, found);
                    continue;
                }
                found.insert(key.clone());
                match key.as_str() {
                    "anyOf" | "oneOf" => {
                        value
                            .as_array()
                            .into_iter()
                            .flatten()
                            .for_each(|it| walk(it, false, found));
                    }
                    "default" | "examples" => {}
                    key => walk(value, matches!(key, "properties" | "definitions"), found),
                }
            }
        }
        let mut found = BTreeSet::new();
        walk(Schema::new().unwrap().0.at(""), false, &mut found);
        let known: BTreeSet<String> = [&READ[..], &NOTHING]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect();
        assert_eq!(found, known);
    }

    #[test]
    fn documented_steps_are_valid() {
        for step in [
            json!({}),
            json!({ "label": "x", "key": "drv-x", "command": "a", "checkout": { "skip": true }, "depends_on": null }),
            json!({ "plugins": ["a#v1", { "b#v1": null }, { "c#v1": { "x": [1] } }], "agents": ["queue=a"], "skip": "why" }),
            json!({ "retry": { "automatic": [{ "exit_status": -1, "signal_reason": "none", "limit": 2 }] }, "soft_fail": true }),
        ] {
            assert_eq!(check(&step), Ok(()), "{step}");
        }
    }

    #[test]
    fn an_error_is_one_sentence_that_names_the_property() {
        let long = "x".repeat(101);
        for (step, sentence) in [
            (
                json!({ "comand": "x" }),
                "`comand` is not a property that Buildkite knows here",
            ),
            (json!({ "label": 5 }), "`label` is 5, and must be a string"),
            (
                json!({ "timeout_in_minutes": 0 }),
                "`timeout_in_minutes` is 0, and must be a whole number of at least 1",
            ),
            (
                json!({ "timeout_in_minutes": "5" }),
                "`timeout_in_minutes` is \"5\", and must be a whole number of at least 1",
            ),
            (
                json!({ "soft_fail": 5 }),
                "`soft_fail` is 5, and must be `true`, `false` or a list of maps",
            ),
            (
                json!({ "command": { "a": 1 } }),
                "`command` is a map, and must be a list of strings or a string",
            ),
            (
                json!({ "command": ["a", 1] }),
                "`command[1]` is 1, and must be a string",
            ),
            (
                json!({ "skip": "x".repeat(71) }),
                "a string of at most 70 characters",
            ),
            (
                json!({ "key": long }),
                "a string of at most 100 characters that matches",
            ),
            (
                json!({ "key": "a b" }),
                "a string of at most 100 characters that matches",
            ),
            (
                json!({ "key": "01234567-0123-0123-0123-0123456789ab" }),
                "is not a UUID",
            ),
            (
                json!({ "retry": { "automatic": [{ "limit": 99 }] } }),
                "`retry.automatic[0].limit` is 99, and must be a whole number from 0 to 10",
            ),
            (
                json!({ "retry": { "automatic": [{ "limt": 1 }] } }),
                "`retry.automatic[0].limt` is not a property that Buildkite knows here; expected one of: exit_status, limit",
            ),
            (
                json!({ "retry": { "automatic": { "limt": 1 } } }),
                "`retry.automatic.limt` is not a property",
            ),
            (
                json!({ "retry": { "auto": true } }),
                "`retry.auto` is not a property that Buildkite knows here; expected one of: automatic, manual",
            ),
            (json!({ "env": null }), "`env` is null"),
            (json!({ "env": { "X": null } }), "`env.X` is null"),
            (
                json!({ "env": { "X": [1] } }),
                "`env.X` is a list, and must be a string, a number or a boolean",
            ),
            (
                json!({ "plugins": [{ "a": { "x": [null] } }] }),
                "`plugins[0].a.x[0]` is null",
            ),
            (
                json!({ "plugins": [{ "a": 1, "b": 2 }] }),
                "`plugins[0]` is a map, and must be a string or a map with one entry",
            ),
            (
                json!({ "env": { "x".repeat(1025): "" } }),
                "`env` holds a name of more than 1024 bytes",
            ),
            (json!({ "concurrency": 1 }), "only go together"),
            (
                json!({ "depends_on": ["a", { "allow_failure": true }] }),
                "`depends_on[1]` lacks `step`",
            ),
            (
                json!({ "parallelism": -1 }),
                "`parallelism` is -1, and must be a whole number of at least 0",
            ),
            (json!({ "matrix": [[1]] }), "`matrix"),
            (
                json!({ "matrix": { "setup": { "a b": ["c"] } } }),
                "`a b` is a name in `matrix.setup`, and must be a string that matches ^[a-zA-Z0-9_]+$",
            ),
            (
                json!({ "agents": "queue=a" }),
                "`agents` is \"queue=a\", and must be a map or a list of strings",
            ),
        ] {
            let error = check(&step).expect_err(&step.to_string());
            assert!(error.contains(sentence), "{step}: {error}");
        }
    }

    #[test]
    fn a_whole_pipeline_is_checked_too() {
        let schema = Schema::new().unwrap();
        let step = json!({ "key": "a", "command": "x" });
        let good = json!({ "steps": [step, { "group": "g", "steps": [step] }] });
        assert_eq!(schema.check_pipeline(&good), Ok(()));
        let bad = json!({ "steps": [{ "group": "g", "steps": [] }] });
        assert!(schema.check_pipeline(&bad).is_err());
        assert!(
            schema
                .check_pipeline(&json!({}))
                .unwrap_err()
                .contains("`steps`")
        );
    }
}
