//! JSON Schema, as much of draft 7 as Buildkite's schema of pipelines takes: what of a value does not meet a schema, and where.
//!
//! It knows nothing of pipelines. With a library for all of JSON Schema (`jsonschema` 0.61) the program had 97 crates for 50, took
//! 8.2 MB for 3.9 MB and twice the time to build; so the library is only what the tests compare this with.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// A document of schemas that refer to one another.
#[derive(Debug)]
pub(super) struct JsonSchema {
    document: Value,
    /// The patterns in the document, read once: every step has a key, which two of them are held against.
    patterns: HashMap<String, Pattern>,
}

/// Something that does not meet a schema.
#[derive(Debug)]
pub(super) struct Mismatch<'a> {
    /// Where it is in the value that was checked, from the inside out.
    place: Vec<Segment<'a>>,
    pub(super) value: &'a Value,
    /// The schema that it does not meet, and is not only a reference to one.
    pub(super) schema: &'a Value,
    pub(super) kind: MismatchKind<'a>,
}

#[derive(Debug)]
enum Segment<'a> {
    Key(&'a str),
    Index(usize),
}

/// What there is to say about a mismatch.
#[derive(Debug)]
pub(super) enum MismatchKind<'a> {
    /// The map has keys that the schema does not know.
    UnknownKeys(Vec<&'a str>),
    /// The map lacks a required key.
    MissingKey(&'a str),
    /// The map has a key whose name does not meet this schema.
    BadName(&'a str, &'a Value),
    /// The value is another than the schema asks for.
    Other,
}

impl Mismatch<'_> {
    /// Where it is, in the notation of our other messages: `retry.automatic[0].limit`. Empty for the whole value.
    pub(super) fn place(&self) -> String {
        let mut path = String::new();
        for segment in self.place.iter().rev() {
            match segment {
                Segment::Key(name) if path.is_empty() => path.push_str(name),
                Segment::Key(name) => path.extend([".", name]),
                Segment::Index(index) => path.extend(["[", &index.to_string(), "]"]),
            }
        }
        path
    }
}

impl JsonSchema {
    pub(super) fn new(document: Value) -> Self {
        let mut patterns = HashMap::new();
        collect_patterns(&document, &mut patterns);
        Self { document, patterns }
    }

    /// The schema at a JSON pointer; where there is none, one that accepts every value.
    pub(super) fn at(&self, pointer: &str) -> &Value {
        // As `Value::pointer`, which allocates for each name: nearly every property of a step is a reference.
        if pointer.contains('~') {
            return self.document.pointer(pointer).unwrap_or(&Value::Null);
        }
        let names = pointer.split('/').skip(1);
        names.fold(&self.document, |schema, name| &schema[name])
    }

    /// What the schema refers to, or the schema itself. Draft 7 ignores everything beside a reference.
    pub(super) fn resolve<'a>(&'a self, mut schema: &'a Value) -> &'a Value {
        while let Some(reference) = schema["$ref"].as_str() {
            schema = self.at(reference.trim_start_matches('#'));
        }
        schema
    }

    /// The first part of the value that does not meet the schema.
    pub(super) fn mismatch<'a>(
        &'a self,
        schema: &'a Value,
        value: &'a Value,
    ) -> Option<Mismatch<'a>> {
        let schema = self.resolve(schema);
        let keywords = schema.as_object()?;
        let with_kind = |kind| Mismatch {
            place: Vec::new(),
            value,
            schema,
            kind,
        };
        let is_met = |(keyword, wanted): (&String, &'a Value)| self.is_met(keyword, wanted, value);
        if !keywords.iter().all(is_met) {
            return Some(with_kind(MismatchKind::Other));
        }
        let inside = match value {
            Value::Array(list) => list
                .iter()
                .enumerate()
                .find_map(|(i, item)| self.mismatch_at(Segment::Index(i), &schema["items"], item)),
            Value::Object(map) => self
                .mismatch_of_keys(schema, map)
                .map(with_kind)
                .or_else(|| {
                    map.iter().find_map(|(name, value)| {
                        let known = schema["properties"].get(name);
                        let schema = known.unwrap_or(&schema["additionalProperties"]);
                        self.mismatch_at(Segment::Key(name), schema, value)
                    })
                }),
            _ => None,
        };
        inside.or_else(|| {
            ["anyOf", "oneOf"].iter().find_map(|keyword| {
                let branches = schema[*keyword].as_array()?;
                let failures: Vec<_> = (branches.iter())
                    .filter_map(|branch| self.mismatch(branch, value))
                    .collect();
                let matching = branches.len() - failures.len();
                (matching == 0 || *keyword == "oneOf" && matching > 1)
                    .then(|| deepest(failures).unwrap_or_else(|| with_kind(MismatchKind::Other)))
            })
        })
    }

    fn mismatch_at<'a>(
        &'a self,
        segment: Segment<'a>,
        schema: &'a Value,
        value: &'a Value,
    ) -> Option<Mismatch<'a>> {
        let mut mismatch = self.mismatch(schema, value)?;
        mismatch.place.push(segment);
        Some(mismatch)
    }

    /// What is wrong with the names of a map's keys. Unknown ones come first: one may be the one that is missing, misspelt.
    fn mismatch_of_keys<'a>(
        &'a self,
        schema: &'a Value,
        map: &'a Map<String, Value>,
    ) -> Option<MismatchKind<'a>> {
        if schema["additionalProperties"] == Value::Bool(false) {
            let known = &schema["properties"];
            let names = map.keys().map(String::as_str);
            let unknown: Vec<_> = names.filter(|name| known.get(name).is_none()).collect();
            if !unknown.is_empty() {
                return Some(MismatchKind::UnknownKeys(unknown));
            }
        }
        let required = schema["required"].as_array().into_iter().flatten();
        let mut required = required.filter_map(Value::as_str);
        if let Some(missing) = required.find(|name| !map.contains_key(*name)) {
            return Some(MismatchKind::MissingKey(missing));
        }
        let of_names = &schema["propertyNames"];
        let bad = map.keys().find(|name| {
            let name = Value::String((*name).clone());
            self.mismatch(of_names, &name).is_some()
        });
        bad.map(|name| MismatchKind::BadName(name, of_names))
    }

    /// Whether a value meets a keyword that is about the value itself, not about what is in it.
    fn is_met(&self, keyword: &str, wanted: &Value, value: &Value) -> bool {
        let text = value.as_str();
        let number = value.as_f64().zip(wanted.as_f64());
        let limit = wanted.as_u64().and_then(|it| usize::try_from(it).ok());
        let at_most = |size: usize| limit.is_none_or(|limit| size <= limit);
        let at_least = |size: usize| limit.is_none_or(|limit| size >= limit);
        match keyword {
            "type" => match wanted {
                Value::Array(types) => types.iter().any(|one| is_of_type(value, one)),
                one => is_of_type(value, one),
            },
            "enum" => wanted.as_array().is_none_or(|list| list.contains(value)),
            "minimum" => number.is_none_or(|(value, minimum)| value >= minimum),
            "maximum" => number.is_none_or(|(value, maximum)| value <= maximum),
            "maxLength" => text.is_none_or(|text| at_most(text.chars().count())),
            "pattern" => text.is_none_or(|text| {
                let pattern = wanted.as_str().and_then(|it| self.patterns.get(it));
                pattern.is_none_or(|pattern| pattern.matches(text))
            }),
            "minItems" => value.as_array().is_none_or(|list| at_least(list.len())),
            "maxProperties" => value.as_object().is_none_or(|map| at_most(map.len())),
            "not" => self.mismatch(wanted, value).is_some(),
            _ => true,
        }
    }
}

/// Reads all patterns in a schema. One of another form than [`Pattern`] has accepts every text.
fn collect_patterns(schema: &Value, patterns: &mut HashMap<String, Pattern>) {
    match schema {
        Value::Object(map) => {
            let pattern = map.get("pattern").and_then(Value::as_str);
            let read = pattern.and_then(|text| Some((text.to_owned(), Pattern::new(text)?)));
            patterns.extend(read);
            map.values().for_each(|it| collect_patterns(it, patterns));
        }
        Value::Array(list) => list.iter().for_each(|it| collect_patterns(it, patterns)),
        _ => {}
    }
}

/// Of several alternatives that all fail, the failure that lies deepest: it does not help to read that a list of rules is not a
/// boolean, if the error is in its second rule. `None` if each failure is about the value itself.
fn deepest(failures: Vec<Mismatch<'_>>) -> Option<Mismatch<'_>> {
    let is_inside = |it: &Mismatch<'_>| {
        !it.place.is_empty()
            || !matches!(it.kind, MismatchKind::Other | MismatchKind::MissingKey(_))
    };
    (failures.into_iter())
        .filter(is_inside)
        .max_by_key(|failure| failure.place.len())
}

fn is_of_type(value: &Value, name: &Value) -> bool {
    match value {
        Value::Null => name == "null",
        Value::Bool(_) => name == "boolean",
        Value::String(_) => name == "string",
        Value::Array(_) => name == "array",
        Value::Object(_) => name == "object",
        // 1.0 is an integer, too.
        Value::Number(number) => {
            let is_whole = !number.is_f64() || number.as_f64().is_some_and(|it| it.fract() == 0.0);
            name == "number" || name == "integer" && is_whole
        }
    }
}

/// A regular expression of the form that Buildkite's schema has: `^`, characters or classes of them, each with `+`, `{n}` or
/// nothing behind it, `$`.
#[derive(Debug)]
struct Pattern(Vec<Repeated>);

#[derive(Debug)]
struct Repeated {
    /// The first and the last character of each range.
    ranges: Vec<(char, char)>,
    least: usize,
    most: usize,
}

impl Pattern {
    /// `None` for an expression of another form.
    fn new(pattern: &str) -> Option<Self> {
        let pattern: Vec<char> = (pattern.strip_prefix('^')?.strip_suffix('$')?.chars()).collect();
        let mut rest = &pattern[..];
        let mut parts = Vec::new();
        while !rest.is_empty() {
            let ranges = match rest {
                ['[', inner @ ..] => {
                    let end = inner.iter().position(|it| *it == ']')?;
                    rest = &inner[end + 1..];
                    ranges(&inner[..end])
                }
                ['\\', 'd', after @ ..] => {
                    rest = after;
                    vec![('0', '9')]
                }
                [char, after @ ..] if char.is_alphanumeric() || *char == '-' => {
                    rest = after;
                    vec![(*char, *char)]
                }
                _ => return None,
            };
            let (least, most) = match rest {
                ['+', after @ ..] => {
                    rest = after;
                    (1, usize::MAX)
                }
                ['{', after @ ..] => {
                    let end = after.iter().position(|it| *it == '}')?;
                    rest = &after[end + 1..];
                    let times = String::from_iter(&after[..end]).parse().ok()?;
                    (times, times)
                }
                _ => (1, 1),
            };
            parts.push(Repeated {
                ranges,
                least,
                most,
            });
        }
        Some(Self(parts))
    }

    fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        matches(&self.0, &text)
    }
}

/// The ranges of a class: `a-zA-Z0-9-_` and `_\\-:` are examples.
fn ranges(mut class: &[char]) -> Vec<(char, char)> {
    let mut ranges = Vec::new();
    while let [first, after @ ..] = class {
        let range;
        (range, class) = match (first, after) {
            ('\\', [escaped, after @ ..]) => ((*escaped, *escaped), after),
            (first, ['-', last, after @ ..]) => ((*first, *last), after),
            (first, after) => ((*first, *first), after),
        };
        ranges.push(range);
    }
    ranges
}

fn matches(parts: &[Repeated], text: &[char]) -> bool {
    let Some((part, others)) = parts.split_first() else {
        return text.is_empty();
    };
    let is_in = |char: &&char| {
        part.ranges
            .iter()
            .any(|(first, last)| (first..=last).contains(char))
    };
    let longest = text.iter().take_while(is_in).count().min(part.most);
    (part.least..=longest)
        .rev()
        .any(|length| matches(others, &text[length..]))
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use jsonschema::Validator;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Those of the schema of pipelines, and one that has to give back what it took.
    const PATTERNS: [&str; 6] = [
        r"^[a-zA-Z0-9_\-:${}.,]+$",
        r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
        r"^\d+g$",
        "^[a-zA-Z0-9-_]+$",
        "^[a-zA-Z0-9_]+$",
        "^[a-z]+[x-z]+z$",
    ];

    static LIBRARY: LazyLock<[Validator; 6]> = LazyLock::new(|| {
        PATTERNS.map(|pattern| jsonschema::draft7::new(&json!({ "pattern": pattern })).unwrap())
    });

    proptest! {
        #[test]
        fn a_pattern_matches_what_it_matches_for_a_library(
            text in "[a-cx-z0-9A-F_:${}.,g\n\u{e9}\u{663} \\\\\\[\\]-]{0,6}|[0-9a-f]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-f]{11,13}|[0-9]{0,3}g"
        ) {
            for (pattern, library) in PATTERNS.iter().zip(&*LIBRARY) {
                let ours = Pattern::new(pattern).unwrap().matches(&text);
                prop_assert_eq!(ours, library.is_valid(&json!(text)), "{} {:?}", pattern, text);
            }
        }
    }

    #[test]
    fn every_pattern_of_buildkites_schema_is_read() {
        let text = include_str!("pipeline-schema.json");
        let document: Value = serde_json::from_str(text).unwrap();
        let mut below = vec![&document];
        let mut patterns = 0;
        while let Some(value) = below.pop() {
            if let Some(pattern) = value["pattern"].as_str() {
                assert!(
                    PATTERNS.contains(&pattern),
                    "{pattern} is not held against a library"
                );
                patterns += 1;
            }
            below.extend(value.as_object().into_iter().flat_map(Map::values));
            below.extend(value.as_array().into_iter().flatten());
        }
        assert_eq!(patterns, 6);
    }

    #[test]
    fn a_pattern_of_another_form_is_none() {
        for pattern in [
            "a", "^a", "^a*$", "^(a)$", "^a|b$", "^[a$", "^a{2,}$", "^.$", r"^\w$",
        ] {
            assert!(Pattern::new(pattern).is_none(), "{pattern}");
        }
    }

    #[test]
    fn each_keyword_is_read_and_what_does_not_meet_it_is_found_where_it_is() {
        let schema = JsonSchema::new(json!({
            "small": { "type": "integer", "minimum": 0, "maximum": 10 },
            "map": {
                "type": "object",
                "properties": { "a": { "$ref": "#/small", "type": "ignored beside a reference" }, "b": { "enum": ["x", null] } },
                "required": ["a"],
                "additionalProperties": false,
            },
            "list": { "type": ["array", "null"], "items": { "$ref": "#/map" }, "minItems": 1 },
            "names": { "propertyNames": { "pattern": "^[a-z]+$" }, "additionalProperties": { "maxLength": 2 }, "maxProperties": 2 },
            "no": { "not": { "type": "string" } },
            "any": { "anyOf": [{ "type": "boolean" }, { "$ref": "#/list" }] },
            "one": { "oneOf": [{ "type": "string" }, { "maxLength": 1 }] },
        }));
        for (at, value, expected) in [
            ("small", json!(10), None),
            ("small", json!(1.0), None),
            ("small", json!(1.5), Some("")),
            ("small", json!(-1), Some("")),
            ("small", json!("1"), Some("")),
            ("map", json!({ "a": 1, "b": null }), None),
            ("map", json!({ "b": "x" }), Some("")),
            ("map", json!({ "a": 11 }), Some("a")),
            ("map", json!({ "a": 1, "b": "y" }), Some("b")),
            ("map", json!({ "a": 1, "c": 1 }), Some("")),
            ("list", json!(null), None),
            ("list", json!([]), Some("")),
            ("list", json!([{ "a": 1 }, { "a": "" }]), Some("[1].a")),
            ("names", json!({ "a": "12", "b": 123 }), None),
            ("names", json!({ "a": "123" }), Some("a")),
            ("names", json!({ "A": "12" }), Some("")),
            ("names", json!({ "a": 1, "b": 1, "c": 1 }), Some("")),
            ("no", json!(1), None),
            ("no", json!(""), Some("")),
            ("any", json!(true), None),
            ("any", json!(1), Some("")),
            (
                "any",
                json!([{ "a": 1 }, { "a": 1, "b": 2 }]),
                Some("[1].b"),
            ),
            ("one", json!("long"), None),
            ("one", json!("s"), Some("")),
        ] {
            let found = schema.mismatch(schema.at(&format!("/{at}")), &value);
            let place = found.as_ref().map(Mismatch::place);
            assert_eq!(place.as_deref(), expected, "{at}: {value}: {found:?}");
        }
    }
}
