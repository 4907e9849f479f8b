//! Secrets in keys: whatever a user or a target writes into a key can be read in the steps of the build, and on its hosts in the
//! list of processes. So a key that holds one is refused, with the place where the secret belongs.
//!
//! What a secret is, [`secrets`] knows; here is known which keys are maps of names and values.

use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::Value;

use super::Keys;
use crate::secrets::{self, HIDDEN, SecretHome, is_secret_value, redacted};

/// A sentence about the first of these keys that holds a secret, however deep. It repeats nothing of the secret.
#[must_use]
pub fn secret_in(keys: &Keys) -> Option<String> {
    let places = keys.iter().find_map(|(key, value)| match key.as_str() {
        "options" => in_map(key, value, in_option),
        "arg" => in_map(key, value, in_argument),
        "argstr" => in_map(key, value, in_string_argument),
        "step" => in_step(key, value, key),
        // References to plugins, which the agent clones.
        "plugin" => in_step(key, value, "plugins"),
        _ => in_any(key, value),
    });
    places.map(|(place, home)| sentence(&format!("`{place}`"), home))
}

/// The first of these settings of Nix that holds a secret, and where that belongs.
#[must_use]
pub fn secret_in_options(options: &[(String, String)]) -> Option<(&str, SecretHome)> {
    options
        .iter()
        .find_map(|(name, value)| Some((name.as_str(), in_option(name, value)?)))
}

/// As [`secret_in`], of the properties of a step, as `step` and `meta.buildkite` have them.
#[must_use]
pub fn secret_in_step(step: &Keys) -> Option<String> {
    let place = step
        .iter()
        .find_map(|(key, value)| in_step(key, value, key));
    place.map(|(place, home)| sentence(&format!("`{place}`"), home))
}

/// The sentence about `what` that holds a secret.
#[must_use]
pub fn sentence(what: &str, home: SecretHome) -> String {
    format!(
        "{what} holds a secret, which every reader of the build would see: {}",
        home.advice()
    )
}

/// Keys as JSON that can be shown: their secrets are hidden. For what was not refused because it does not count, such as the
/// metadata of a target without a step.
#[derive(Debug, Clone, Copy)]
pub struct RedactedKeys<'a>(pub &'a Keys);

impl Serialize for RedactedKeys<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_map(self.0, false, serializer)
    }
}

/// A value in keys, which may be a map of variables.
struct RedactedValue<'a>(&'a Value, bool);

impl Serialize for RedactedValue<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::String(text) => serializer.serialize_str(&redacted(text)),
            Value::Array(list) => {
                serializer.collect_seq(list.iter().map(|value| Self(value, false)))
            }
            Value::Object(map) => serialize_map(map, self.1, serializer),
            other => other.serialize(serializer),
        }
    }
}

fn serialize_map<S: Serializer>(
    keys: &Keys,
    are_variables: bool,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(keys.len()))?;
    for (name, value) in keys {
        let text = value.as_str().filter(|_| are_variables);
        if text.is_some_and(|text| is_secret_value(name, text)) {
            map.serialize_entry(name, HIDDEN)?;
        } else {
            map.serialize_entry(&redacted(name), &RedactedValue(value, name == "env"))?;
        }
    }
    map.end()
}

/// A key, and where the secret belongs that it holds.
type KeyPlace = (String, SecretHome);

/// A map of names and values, each asked for by `find`; else anything.
fn in_map(
    key: &str,
    value: &Value,
    find: impl Fn(&str, &str) -> Option<SecretHome>,
) -> Option<KeyPlace> {
    let Value::Object(map) = value else {
        return in_any(key, value);
    };
    let mut values = map
        .iter()
        .filter_map(|(name, value)| Some((name, value.as_str()?)));
    let found = values.find_map(|(name, text)| Some((name, find(name, text)?)));
    match found {
        Some((name, home)) if secrets::find(name).is_none() => Some((below(key, name), home)),
        _ => in_any(key, value),
    }
}

/// As a line of nix.conf: of some settings each value is a secret.
fn in_option(name: &str, value: &str) -> Option<SecretHome> {
    secrets::find(&format!("{name} = {value}"))
}

fn in_string_argument(name: &str, value: &str) -> Option<SecretHome> {
    is_secret_value(name, value).then_some(SecretHome::Argument)
}

/// A Nix expression: only a string without antiquotation is a value that could be a secret.
fn in_argument(name: &str, value: &str) -> Option<SecretHome> {
    let text = value.trim();
    let text = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .or_else(|| {
            text.strip_prefix("''")
                .and_then(|text| text.strip_suffix("''"))
        })?;
    in_string_argument(name, text)
}

/// A property of a step; `name` is the nearest name above the value.
fn in_step(place: &str, value: &Value, name: &str) -> Option<KeyPlace> {
    let home = |home| match home {
        SecretHome::Netrc if name == "plugins" => SecretHome::Git,
        SecretHome::Netrc => SecretHome::Environment,
        other => other,
    };
    match value {
        Value::String(text) => {
            let (variable, value) = text.split_once('=').unwrap_or_default();
            let is_variable =
                ["env", "environment"].contains(&name) && is_secret_value(variable, value);
            let found = secrets::find(text).map(home);
            let found = found.or_else(|| is_variable.then_some(SecretHome::Environment));
            found.map(|home| (place.to_owned(), home))
        }
        Value::Array(list) => list
            .iter()
            .enumerate()
            .find_map(|(at, value)| in_step(&format!("{place}[{at}]"), value, name)),
        Value::Object(map) => map.iter().find_map(|(key, value)| {
            if let Some(found) = secrets::find(key) {
                return Some((place.to_owned(), home(found)));
            }
            // The configuration of a plugin has names of variables too, but often for where their values are kept.
            let is_variable = name == "env" && !place.contains("plugins");
            if is_variable
                && value
                    .as_str()
                    .is_some_and(|value| is_secret_value(key, value))
            {
                return Some((below(place, key), SecretHome::Environment));
            }
            let next = if name == "plugins" && value.is_string() {
                name
            } else {
                key
            };
            in_step(&below(place, key), value, next)
        }),
        _ => None,
    }
}

/// Anything else.
fn in_any(place: &str, value: &Value) -> Option<KeyPlace> {
    match value {
        Value::String(text) => secrets::find(text).map(|home| (place.to_owned(), home)),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .find_map(|(at, value)| in_any(&format!("{place}[{at}]"), value)),
        Value::Object(map) => map
            .iter()
            .find_map(|(key, value)| match secrets::find(key) {
                Some(home) => Some((place.to_owned(), home)),
                None if key == "buildkite" => in_step(&below(place, key), value, key),
                None => in_any(&below(place, key), value),
            }),
        _ => None,
    }
}

fn below(place: &str, name: &str) -> String {
    format!("{place}.{name}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Keys with a secret each are refused by a sentence that names the key, and where the secret belongs.
    fn refuses(cases: impl IntoIterator<Item = (Value, &'static str, SecretHome)>) {
        for (keys, place, home) in cases {
            let found = secret_in(keys.as_object().unwrap());
            assert_eq!(found, Some(sentence(&format!("`{place}`"), home)), "{keys}");
        }
    }

    #[test]
    fn a_secret_is_found_in_every_key() {
        refuses([
            (
                json!({ "file": "https://u:p@h/x.tar.gz" }),
                "file",
                SecretHome::Netrc,
            ),
            (
                json!({ "flake": "git+https://t0ken@h/r" }),
                "flake",
                SecretHome::Git,
            ),
            (
                json!({ "flake": "github:o/r?token=x" }),
                "flake",
                SecretHome::AccessTokens,
            ),
            (
                json!({ "expr": "import (fetchTarball \"https://h/x?token=abc\") {}" }),
                "expr",
                SecretHome::Netrc,
            ),
            (
                json!({ "include": ["a=b", "x=https://u:p@h/"] }),
                "include[1]",
                SecretHome::Netrc,
            ),
            (
                json!({ "arg": { "token": "\"hunter2\"" } }),
                "arg.token",
                SecretHome::Argument,
            ),
            (
                json!({ "arg": { "x": "\"https://u:p@h\"" } }),
                "arg.x",
                SecretHome::Netrc,
            ),
            (
                json!({ "argstr": { "apiToken": "hunter2" } }),
                "argstr.apiToken",
                SecretHome::Argument,
            ),
            (
                json!({ "options": { "access-tokens": "github.com=abc" } }),
                "options.access-tokens",
                SecretHome::AccessTokens,
            ),
            (
                json!({ "options": { "extra-substituters": "https://a https://u:p@h" } }),
                "options.extra-substituters",
                SecretHome::Netrc,
            ),
            (
                json!({ "options": { "impure-env": "A=b TOKEN=hunter2" } }),
                "options.impure-env",
                SecretHome::Environment,
            ),
            (
                json!({ "share": "s3://a:b@bucket" }),
                "share",
                SecretHome::Aws,
            ),
            (
                json!({ "push": "https://h?token=x" }),
                "push",
                SecretHome::Netrc,
            ),
            (json!({ "push": "ssh://u:p@h" }), "push", SecretHome::Ssh),
            (
                json!({ "plugin": "https://t@h/p#v1" }),
                "plugin",
                SecretHome::Git,
            ),
        ]);
    }

    #[test]
    fn a_secret_is_found_in_the_properties_of_a_step() {
        refuses([
            (
                json!({ "step": { "plugins": [{ "https://t@h/p#v1": null }] } }),
                "step.plugins[0]",
                SecretHome::Git,
            ),
            (
                json!({ "step": { "plugins": ["https://t@h/p#v1"] } }),
                "step.plugins[0]",
                SecretHome::Git,
            ),
            (
                json!({ "step": { "env": { "GITHUB_TOKEN": "hunter2" } } }),
                "step.env.GITHUB_TOKEN",
                SecretHome::Environment,
            ),
            (
                json!({ "step": { "plugins": [{ "docker#v5": { "environment": ["A", "X_TOKEN=hunter2"] } }] } }),
                "step.plugins[0].docker#v5.environment[1]",
                SecretHome::Environment,
            ),
            (
                json!({ "step": { "commands": ["true", "curl https://u:p@h/"] } }),
                "step.commands[1]",
                SecretHome::Environment,
            ),
            (
                json!({ "steps": { "deploy": { "buildkite": { "env": { "X_TOKEN": "hunter2" } } } } }),
                "steps.deploy.buildkite.env.X_TOKEN",
                SecretHome::Environment,
            ),
            (
                json!({ "agents": { "x86_64-linux": { "a": "https://u:p@h" } } }),
                "agents.x86_64-linux.a",
                SecretHome::Netrc,
            ),
            (
                json!({ "out-link": "https://u:p@h" }),
                "out-link",
                SecretHome::Netrc,
            ),
            (
                json!({ "attr": ["a", "https://u:p@h"] }),
                "attr[1]",
                SecretHome::Netrc,
            ),
        ]);
    }

    #[test]
    fn ordinary_keys_hold_no_secret() {
        for keys in [
            json!({ "argstr": { "tokenizer": "sentencepiece1", "secretName": "x1y2z3a4" } }),
            json!({ "arg": { "token": "builtins.getEnv \"TOKEN\"", "password": "\"${x}abc\"", "secret": true } }),
            json!({ "options": { "netrc-file": "/etc/netrc", "secret-key-files": "/etc/key", "access-tokens": "" } }),
            json!({ "options": { "trusted-public-keys": "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" } }),
            json!({ "options": { "substituters": "https://cache.nixos.org s3://b?profile=ci&secret-key=/etc/key", "cores": 4 } }),
            json!({ "options": { "allowed-uris": "https://github.com/ git+ssh://git@h/" } }),
            json!({ "step": { "env": { "A_TOKEN": "$B_TOKEN", "B_TOKEN": "", "C_TOKEN_FILE": "/run/x1", "PG_PASSWORD": "postgres" } } }),
            json!({ "step": { "secrets": { "DB_PASSWORD": "DATABASE_PASSWORD1" } } }),
            json!({ "step": { "plugins": [{ "aws-sm#v1": { "env": { "NPM_TOKEN": "ci/npm-1" } } }] } }),
            json!({ "step": { "plugins": [{ "ssh://git@h/p.git#v1": { "password-env": "DOCKER_PASSWORD" } }] } }),
            json!({ "step": { "command": "curl -H \"Authorization: Bearer $TOKEN\" https://x:$PASS@h/?token=$TOKEN" } }),
            json!({ "share": "artifact", "push": "s3://bucket?region=eu-west-1&profile=ci" }),
            json!({ "drv": "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-token.drv", "attr": "packages.token" }),
        ] {
            assert_eq!(secret_in(keys.as_object().unwrap()), None, "{keys}");
        }
    }

    #[test]
    fn what_is_shown_of_keys_has_no_secret() {
        let keys = json!({
            "env": { "X_TOKEN": "hunter2", "A": "https://u:p@h", "B_TOKEN": "$C" }, "token": "hunter2",
            "plugins": [{ "https://t@h/p#v1": { "env": null } }], "n": [1, true, null]
        });
        assert_eq!(
            serde_json::to_value(RedactedKeys(keys.as_object().unwrap())).unwrap(),
            json!({
                "env": { "X_TOKEN": "***", "A": "https://***@h", "B_TOKEN": "$C" }, "token": "hunter2",
                "plugins": [{ "https://***@h/p#v1": { "env": null } }], "n": [1, true, null]
            })
        );
    }

    #[test]
    fn a_step_that_a_target_wishes_for_is_read_as_the_users() {
        for (step, place) in [
            (json!({ "env": { "X_TOKEN": "hunter2" } }), "env.X_TOKEN"),
            (json!({ "plugins": ["https://t@h/p#v1"] }), "plugins[0]"),
            (
                json!({ "notify": [{ "webhook": "https://h?token=x" }] }),
                "notify[0].webhook",
            ),
        ] {
            let found = secret_in_step(step.as_object().unwrap()).unwrap();
            assert!(found.starts_with(&format!("`{place}` holds")), "{found}");
        }
    }
}
