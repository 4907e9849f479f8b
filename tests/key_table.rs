//! Every key that is declared (`src/keys/table.rs`) is in the plugin's schema, in the README's tables and in the guide, with the
//! same choices, bounds and default; and nothing else is.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use eval_once::keys::table::{self, Choice, Key, KeyKind, KeyOwner};
use serde_json::{Value, json};

const OWNERS: [KeyOwner; 2] = [KeyOwner::Step, KeyOwner::Recording];

/// What is in the schema besides the keys of a step: another use of the plugin each.
const USES: [&str; 2] = ["pipeline", "summary"];

#[test]
fn the_plugins_schema_has_the_keys_of_the_table_and_no_others() {
    for owner in OWNERS {
        let mut names: BTreeSet<&str> = table::of(owner).map(|key| key.name).collect();
        if owner == KeyOwner::Step {
            names.extend(USES);
        }
        let schema = schema(owner);
        let properties = schema.as_object().unwrap();
        assert_eq!(
            properties
                .keys()
                .map(String::as_str)
                .collect::<BTreeSet<_>>(),
            names,
            "keys of {}",
            owner.noun()
        );
    }
}

#[test]
fn the_plugins_schema_describes_each_key_as_the_table_does() {
    let mut wrong = Vec::new();
    for owner in OWNERS {
        let schema = schema(owner);
        for key in table::of(owner) {
            let property = &schema[key.name];
            let description = key.description(owner);
            if property["description"] != description.as_str() {
                wrong.push(format!("{}, {}: {description}", owner.noun(), key.name));
            }
            for (keyword, value) in constraints(key) {
                let found = &property[keyword];
                assert_eq!(
                    *found,
                    value,
                    "{keyword} of {} of {}",
                    key.name,
                    owner.noun()
                );
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "the table describes these keys so:\n{}",
        wrong.join("\n")
    );
}

/// What a schema says of the values of a key.
fn constraints(key: &Key) -> Vec<(&'static str, Value)> {
    let least = |least: u64| ("minimum", json!(least));
    match key.kind {
        KeyKind::Text(_) => vec![("type", json!("string"))],
        KeyKind::Texts(_) => vec![
            ("type", json!("array")),
            ("items", json!({ "type": "string" })),
        ],
        KeyKind::AttrPath => vec![
            ("type", json!(["string", "array"])),
            ("items", json!({ "type": "string" })),
        ],
        KeyKind::AttrPaths => vec![
            ("type", json!("array")),
            (
                "items",
                json!({ "type": ["string", "array"], "items": { "type": "string" } }),
            ),
        ],
        KeyKind::Boolean => vec![("type", json!("boolean")), ("enum", Value::Null)],
        KeyKind::BooleanOr(word) => vec![("enum", json!([true, false, word]))],
        KeyKind::Choice(_, choices) => vec![
            ("type", json!("string")),
            ("enum", words(choices).collect()),
        ],
        // Too many for a reader of the schema that has only 53 bits, and for anything that is measured.
        KeyKind::Number(_, from, to) if to >= 1 << 43 => vec![
            ("type", json!("integer")),
            least(from),
            ("maximum", Value::Null),
        ],
        KeyKind::Number(_, from, to) => vec![
            ("type", json!("integer")),
            least(from),
            ("maximum", json!(to)),
        ],
        KeyKind::Pairs(_) | KeyKind::Paths | KeyKind::Json => vec![("type", json!("object"))],
        KeyKind::Maps => vec![
            ("type", json!("array")),
            ("items", json!({ "type": "object" })),
        ],
        KeyKind::TextOrFalse(..) => {
            vec![("anyOf", json!([{ "type": "string" }, { "enum": [false] }]))]
        }
    }
}

fn words(choices: &'static [Choice]) -> impl Iterator<Item = &'static str> {
    choices.iter().map(|choice| choice.word)
}

/// The rows of the README: of a recording's table, or of a step's.
#[test]
fn the_readme_has_a_row_for_each_key_with_its_choices_and_its_default() {
    let readme = page("README.md");
    for (owner, heading) in [
        (KeyOwner::Recording, "| key | default | meaning |"),
        (KeyOwner::Step, "| key | type | meaning |"),
    ] {
        let rows: Vec<&str> = readme
            .lines()
            .skip_while(|line| *line != heading)
            .take_while(|line| line.starts_with('|'))
            .skip(2)
            .collect();
        let mut named = BTreeSet::new();
        for row in &rows {
            named.extend(code(row.split('|').nth(1).unwrap_or_default()));
        }
        let declared: BTreeSet<&str> = table::of(owner).map(|key| key.name).collect();
        assert_eq!(named, declared, "keys of {} in the README", owner.noun());
        for key in table::of(owner) {
            let row = rows
                .iter()
                .find(|row| {
                    row.split('|')
                        .nth(1)
                        .is_some_and(|names| code(names).contains(&key.name))
                })
                .unwrap();
            if is_elsewhere(key, owner) {
                continue;
            }
            let said = code(row);
            for word in key.choices().into_iter().flat_map(words) {
                assert!(said.contains(&word), "`{word}` of `{}`: {row}", key.name);
            }
            if let KeyKind::Choice(..) | KeyKind::Boolean | KeyKind::Number(..) = key.kind
                && let Some(default) = key.default
                && (key
                    .choices()
                    .is_some_and(|choices| words(choices).any(|word| word == default))
                    || default.parse::<u64>().is_ok()
                    || key.flag.is_some() && matches!(key.kind, KeyKind::Boolean))
            {
                assert!(row.contains(default), "default of `{}`: {row}", key.name);
            }
        }
    }
}

#[test]
fn the_guide_explains_each_key_and_each_choice_but_its_default() {
    for (owner, name) in [
        (KeyOwner::Step, "docs/steps.md"),
        (KeyOwner::Recording, "docs/pipeline.md"),
    ] {
        let text = page(name);
        let said = code(&text);
        for key in table::of(owner) {
            let words = key.choices().into_iter().flat_map(words);
            let words = words.filter(|word| key.default != Some(word) && !is_elsewhere(key, owner));
            for word in words.chain([key.name]) {
                let is_there = |code: &&str| {
                    *code == word
                        || code.starts_with(&format!("{word}:"))
                        || code.ends_with(&format!(": {word}"))
                };
                assert!(
                    said.iter().any(is_there) || text.contains(&format!("{word}: ")),
                    "{name} lacks `{word}` of the key `{}`",
                    key.name
                );
            }
        }
    }
}

/// Whether a key of a recording is explained where the keys of a step are.
fn is_elsewhere(key: &Key, owner: KeyOwner) -> bool {
    owner == KeyOwner::Recording && key.owners.contains(&KeyOwner::Step)
}

/// What stands between backticks.
fn code(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn page(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The properties of this owner in `plugin.yml`.
fn schema(owner: KeyOwner) -> Value {
    let mut definition: Value = serde_yaml_ng::from_str(&page("plugin.yml")).unwrap();
    let mut step = definition["configuration"]["properties"].take();
    match owner {
        KeyOwner::Recording => step["pipeline"]["properties"].take(),
        _ => step,
    }
}
