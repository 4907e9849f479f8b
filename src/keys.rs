//! Keys that a user has written, read strictly: what is not understood is refused by name before anything is run.
//!
//! Plugin configuration, `EVAL_ONCE_STEP` and flags all arrive here as one JSON object, so a key means the same wherever it
//! was written, and is checked in one place. Which keys there are is declared in [`table`]. What they mean to a step or a
//! recording is known there.

pub mod secret_values;
pub mod table;

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use serde_json::{Map, Value};

use self::table::KeyOwner;
use crate::exit::{Class, Classify as _, Failure};
use crate::similar::nearest;

/// A JSON object: keys as they were written.
pub type Keys = Map<String, Value>;

/// Reads keys from the JSON in the variable `variable`.
///
/// # Errors
/// It is no JSON object (64).
pub fn parse(text: &str, variable: &str) -> Result<Keys, Failure> {
    let value: Value = serde_json::from_str(text).classify(Class::Config, || {
        format!("{variable} cannot be read as JSON")
    })?;
    match value {
        Value::Object(keys) => Ok(keys),
        other => Err(refuse(format_args!(
            "{variable} is {}, and must be a JSON object",
            found(&other)
        ))),
    }
}

/// The same keys as JSON of visible ASCII characters alone: an argument of a shell that survives being shown and copied.
#[must_use]
pub fn in_ascii(keys: &Keys) -> String {
    let text = Value::Object(keys.clone()).to_string();
    let mut ascii = String::with_capacity(text.len());
    let mut units = [0; 2];
    for character in text.chars() {
        match character {
            ' '..='~' => ascii.push(character),
            _ => {
                for unit in character.encode_utf16(&mut units) {
                    let _ = write!(ascii, "\\u{unit:04x}");
                }
            }
        }
    }
    ascii
}

/// A refusal: the configuration is wrong, and nothing was run.
pub fn refuse(message: impl Display) -> Failure {
    Failure::new(Class::Config, message)
}

/// A refusal on an agent that does not let pipelines choose what is run.
#[must_use]
pub fn not_here(what: &str) -> Failure {
    refuse(format_args!(
        "{what} is not allowed on this agent, which runs only what is in the checkout"
    ))
    .hint("ask the agent's operator, who has set no-command-eval")
}

/// The keys that are not read yet.
#[derive(Debug)]
pub struct KeyReader {
    keys: Keys,
    /// The names that were read, whether there were such keys or not.
    read: Vec<&'static str>,
}

impl KeyReader {
    /// Begins to read.
    ///
    /// # Errors
    /// A value is null, contains a character that no program's argument can contain, or holds a secret.
    pub fn new(keys: Keys) -> Result<Self, Failure> {
        // First: the other refusals repeat what they refuse.
        if let Some(sentence) = secret_values::secret_in(&keys) {
            return Err(refuse(sentence));
        }
        if let Some(key) = find_value(&keys, &Value::is_null) {
            return Err(refuse(format_args!(
                "`{key}` is null: leave it out, or give it a value"
            )));
        }
        if let Some(key) = find_value(&keys, &|value| {
            value.as_str().is_some_and(|text| text.contains('\0'))
        }) {
            return Err(refuse(format_args!("`{key}` contains a NUL character")));
        }
        Ok(Self {
            keys,
            read: Vec::new(),
        })
    }

    /// Reads one key. `read` returns none for a value of the wrong type, and the rest of a sentence that begins with the key
    /// for a value that is wrong in another way.
    ///
    /// # Errors
    /// The value is not what is `expected`.
    pub fn take<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        read: impl FnOnce(Value) -> Option<Result<T, String>>,
    ) -> Result<Option<T>, Failure> {
        self.read.push(key);
        let Some(value) = self.keys.remove(key) else {
            return Ok(None);
        };
        let found = found(&value);
        match read(value) {
            Some(Ok(value)) => Ok(Some(value)),
            Some(Err(wrong)) => Err(refuse(format_args!("`{key}` {wrong}"))),
            None => Err(refuse(format_args!(
                "`{key}` is {found}, and must be {expected}"
            ))),
        }
    }

    /// Reads a string that is not empty.
    ///
    /// # Errors
    /// It is empty, or no string.
    pub fn string(&mut self, key: &'static str) -> Result<Option<String>, Failure> {
        self.take(key, "a string that is not empty", |value| {
            string(value).filter(|text| !text.is_empty()).map(Ok)
        })
    }

    /// Reads one of a few words: those that the table has for this key.
    ///
    /// # Errors
    /// It is another word.
    pub fn choice<T: Copy, const N: usize>(
        &mut self,
        key: &'static str,
        choices: [(&str, T); N],
    ) -> Result<Option<T>, Failure> {
        debug_assert_eq!(
            choices.map(|(word, _)| word).as_slice(),
            table::choices(key)
                .iter()
                .map(|choice| choice.word)
                .collect::<Vec<_>>(),
            "the table declares other choices of `{key}`"
        );
        let words = choices.map(|(word, _)| format!("`{word}`"));
        let expected = match words.split_last() {
            Some((last, others)) if !others.is_empty() => {
                format!("{} or {last}", others.join(", "))
            }
            _ => words.concat(),
        };
        self.take(key, &expected, |value| {
            let text = value.as_str()?;
            choices
                .iter()
                .find(|(choice, _)| *choice == text)
                .map(|(_, meaning)| Ok(*meaning))
        })
    }

    /// Reads `true` or `false`.
    ///
    /// # Errors
    /// It is neither.
    pub fn boolean(&mut self, key: &'static str) -> Result<Option<bool>, Failure> {
        self.take(key, "`true` or `false`", |value| value.as_bool().map(Ok))
    }

    /// Reads a whole number within the bounds that the table has for this key.
    ///
    /// # Errors
    /// It is not a number, or out of bounds.
    pub fn number(&mut self, key: &'static str) -> Result<Option<u64>, Failure> {
        let bounds = table::bounds(key);
        debug_assert!(bounds.is_some(), "the table declares no number `{key}`");
        let (from, to) = bounds.unwrap_or((0, u64::MAX));
        let expected = if to == u64::MAX {
            format!("a whole number from {from} on")
        } else {
            format!("a whole number from {from} to {to}")
        };
        self.take(key, &expected, |value| {
            value.as_u64().filter(|n| (from..=to).contains(n)).map(Ok)
        })
    }

    /// Reads a map whose values are read one by one, as in [`KeyReader::take`]; absent, it is empty.
    ///
    /// # Errors
    /// It is no map, or one of its values is wrong: that one is named.
    pub fn map<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        read: impl Fn(&str, Value) -> Option<Result<T, String>>,
    ) -> Result<BTreeMap<String, T>, Failure> {
        let map = self.take(key, "a map", |value| match value {
            Value::Object(map) => Some(Ok(map)),
            _ => None,
        })?;
        map.unwrap_or_default()
            .into_iter()
            .map(|(name, value)| {
                let found = found(&value);
                match read(&name, value) {
                    Some(Ok(value)) => Ok((name, value)),
                    Some(Err(wrong)) => Err(refuse(format_args!("`{key}.{name}` {wrong}"))),
                    None => Err(refuse(format_args!(
                        "`{key}.{name}` is {found}, and must be {expected}"
                    ))),
                }
            })
            .collect()
    }

    /// Ends reading the keys of this owner.
    ///
    /// # Errors
    /// One was not read: there is no such key.
    pub fn finish(self, owner: KeyOwner) -> Result<(), Failure> {
        let declared: Vec<_> = table::of(owner).map(|key| key.name).collect();
        debug_assert_eq!(
            sorted(&declared),
            sorted(&self.read),
            "the table declares other keys of {} than are read",
            owner.noun()
        );
        let Some((key, _)) = self.keys.iter().next() else {
            return Ok(());
        };
        let owner = owner.noun();
        let all = format!("the keys of {owner} are {}", declared.join(", "));
        let refusal = refuse(format_args!("`{key}` is not a key of {owner}"));
        Err(refusal.hint(match nearest(key, &declared) {
            Some(name) => format!("did you mean `{name}`? ({all})"),
            None => all,
        }))
    }
}

fn sorted<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let mut names = names.to_vec();
    names.sort_unstable();
    names
}

/// A string.
#[must_use]
pub fn string(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

/// A string, number or boolean as Nix's command line takes it, for [`KeyReader::map`].
#[must_use]
pub fn scalar(value: Value) -> Option<Result<String, String>> {
    match value {
        Value::String(text) => Some(Ok(text)),
        Value::Bool(_) => Some(Ok(value.to_string())),
        Value::Number(number) => Some(match (number.as_i64(), number.to_string()) {
            (None, text) if number.is_u64() || text.contains(['e', 'E']) => {
                Err(format!("is {text}, a number that Nix cannot read"))
            }
            (_, text) => Ok(text),
        }),
        _ => None,
    }
}

/// What a value is, in a refusal that names what was expected.
#[must_use]
pub fn found(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) if text.is_empty() => "an empty string".into(),
        Value::String(text) => format!("{text:?}"),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a map".into(),
    }
}

/// The place of the first value in `keys`, however deep, that is `wrong`: `arg.x`, `include[1]`.
pub fn find_value(keys: &Keys, wrong: &impl Fn(&Value) -> bool) -> Option<String> {
    keys.iter()
        .find_map(|(key, value)| find_below(key.clone(), value, wrong))
}

/// The place of the first value in `value`, however deep, that is `wrong`; `path` is the place of `value` itself.
pub fn find_below(path: String, value: &Value, wrong: &impl Fn(&Value) -> bool) -> Option<String> {
    match value {
        _ if wrong(value) => Some(path),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .find_map(|(i, value)| find_below(format!("{path}[{i}]"), value, wrong)),
        Value::Object(map) => map
            .iter()
            .find_map(|(key, value)| find_below(format!("{path}.{key}"), value, wrong)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_unknown_key_is_refused_with_the_one_that_was_probably_meant() {
        let unknown = |key: &str| {
            let mut reader =
                KeyReader::new(json!({ key: 1 }).as_object().unwrap().clone()).unwrap();
            for key in table::of(KeyOwner::Target) {
                reader
                    .take(key.name, "", |_| None::<Result<(), _>>)
                    .unwrap();
            }
            reader.finish(KeyOwner::Target).unwrap_err()
        };
        let refusal = unknown("on-dirft");
        assert_eq!(refusal.to_string(), "`on-dirft` is not a key of a target");
        assert_eq!(
            refusal.hint.as_deref(),
            Some(
                "did you mean `on-drift`? (the keys of a target are out-link, command, on-drift, log, share-required, push, push-partial, artifacts, attr, file, expr, steps)"
            )
        );
        assert_eq!(
            unknown("drv").hint.as_deref(),
            Some(
                "the keys of a target are out-link, command, on-drift, log, share-required, push, push-partial, artifacts, attr, file, expr, steps"
            )
        );
    }

    #[test]
    #[should_panic(expected = "the table declares other keys of a target than are read")]
    fn a_declared_key_that_is_not_read_is_found_out() {
        let reader = KeyReader::new(Keys::new()).unwrap();
        let _ = reader.finish(KeyOwner::Target);
    }
}
