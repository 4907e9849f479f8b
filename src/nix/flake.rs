//! Flakes that are locked: what pure evaluation takes for one, so that it gives the `.drv`s that `nix build` gives.

use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::StorePath;
use super::attr_path::string_literal;
use crate::secrets;

const FLAKE: &str = include_str!("flake.nix");
const NIX_CONFIG: &[u8] = b"nixConfig";

/// What is encoded in a URL's part, whichever part it is: all but RFC 3986's unreserved characters.
pub(super) const URL_PART: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// What of `nix flake metadata --json` decides how a flake is evaluated.
#[derive(Debug, Deserialize)]
pub struct FlakeMetadata {
    url: String,
    /// Its copy in the store.
    path: String,
    /// The locked reference, field by field. Nix's `url` for the same may lack some of them: on 2.8 `submodules`, and the `host` of a
    /// forge.
    locked: Map<String, Value>,
}

/// A flake for pure evaluation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockedFlake {
    /// What `builtins.getFlake` takes.
    reference: String,
    /// What that says otherwise of the flake's source (`self.submodules`, `self.revCount`, …) than the locked reference does.
    source_info: Map<String, Value>,
}

impl LockedFlake {
    /// A placeholder for showing a command line: `text` in place of the reference.
    #[must_use]
    pub fn shown_as(text: &str) -> Self {
        Self {
            reference: text.to_owned(),
            source_info: Map::new(),
        }
    }

    /// What names it: the same for the same source.
    #[must_use]
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// An expression for its outputs.
    pub(super) fn outputs(&self) -> String {
        let reference = string_literal(&self.reference);
        if self.source_info.is_empty() {
            return format!("(builtins.getFlake {reference}).outputs");
        }
        let source_info = Value::Object(self.source_info.clone()).to_string();
        format!(
            "(\n{FLAKE}\n) {reference} (builtins.fromJSON {})",
            string_literal(&source_info)
        )
    }
}

/// Settings that Nix takes from any flake, and that mean nothing here: how a shell looks, and where names of flakes are looked up.
const HARMLESS: [&str; 6] = [
    "bash-prompt",
    "bash-prompt-prefix",
    "bash-prompt-suffix",
    "commit-lock-file-summary",
    "commit-lockfile-summary",
    "flake-registry",
];

/// The settings in a flake's `nixConfig` that need trust, written as options are, from what Nix prints of it as JSON.
#[must_use]
pub fn flake_settings(json: &str) -> Option<Vec<(String, String)>> {
    let settings: Map<String, Value> = serde_json::from_str(json).ok()?;
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Array(words) => {
            let words: Option<Vec<&str>> = words.iter().map(Value::as_str).collect();
            Some(words?.join(" "))
        }
        _ => None,
    };
    let named = |(name, value): (String, Value)| Some((name, text(&value)?));
    let bare = |name: &str| name.strip_prefix("extra-").unwrap_or(name).to_owned();
    Some(
        settings
            .into_iter()
            .filter(|(name, _)| !HARMLESS.contains(&bare(name).as_str()))
            .filter_map(named)
            .collect(),
    )
}

impl FlakeMetadata {
    /// The flake's file, where it may ask for settings.
    #[must_use]
    pub fn file_with_settings(&self) -> Option<PathBuf> {
        let folder = Path::new(&self.path).join(self.text("dir").unwrap_or_default());
        let file = folder.join("flake.nix");
        let text = std::fs::read(&file).ok()?;
        let asks = text
            .windows(NIX_CONFIG.len())
            .any(|part| part == NIX_CONFIG);
        asks.then_some(file)
    }

    /// The flake's copy in the store.
    #[must_use]
    pub fn source(&self) -> Option<StorePath> {
        StorePath::parse(&self.path).ok()
    }

    /// The flake as the locked reference has it.
    ///
    /// A repository of git is named by its revision: Nix comes by that again if the collector takes the copy, and 2.26 hashes
    /// a copy that it is given (20,000 files: 1.8 s). Everything else is named by the copy in the store, which is what `nix
    /// build` evaluates: the rest need not be there a second time, or would have to be fetched again.
    #[must_use]
    pub fn locked(&self) -> LockedFlake {
        let from_git = self.text("type") == Some("git");
        // The reference is an argument of processes; the host's registry may have put a login into it.
        let is_harmless = |reference: &String| secrets::find(reference).is_none();
        let of_git = (from_git && self.text("rev").is_some() && self.is_identified_by_revision())
            .then(|| self.of_git());
        if let Some(reference) = of_git.filter(is_harmless) {
            let mut source_info = Map::new();
            // Of a shallow clone, 2.26.3 counts other revisions when it fetches than when it finds it in place.
            if self.is_set("shallow") {
                source_info.extend(self.field("revCount"));
            }
            return LockedFlake {
                reference,
                source_info,
            };
        }
        if self.text("dir").is_some()
            && !self.is_final()
            && let Some(reference) = self.in_folder().filter(is_harmless)
        {
            return LockedFlake {
                reference,
                source_info: Map::new(),
            };
        }
        let mut source_info = Map::new();
        if from_git {
            source_info.insert("submodules".into(), self.is_set("submodules").into());
            for name in ["dirtyRev", "dirtyShortRev"] {
                source_info.extend(self.field(name));
            }
        }
        LockedFlake {
            reference: self.copy(),
            source_info,
        }
    }

    /// Whether a revision of git is all it takes. A repository that has submodules, and was not asked for them, shows them as
    /// empty folders to 2.34 if it is named by its revision, and not at all to `nix build` in a checkout. (Before 2.26 it makes
    /// no difference, and a copy cannot have a `dir`.)
    fn is_identified_by_revision(&self) -> bool {
        self.is_set("submodules")
            || !self.is_final()
            || !Path::new(&self.path).join(".gitmodules").exists()
    }

    /// Whether this Nix is so new (2.26 and some versions before it) that it calls its locked references final.
    fn is_final(&self) -> bool {
        self.locked.contains_key("__final")
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.locked.get(name)?.as_str()
    }

    fn is_set(&self, name: &str) -> bool {
        self.locked.get(name) == Some(&Value::Bool(true))
    }

    fn field(&self, name: &str) -> Option<(String, Value)> {
        Some((name.to_owned(), self.locked.get(name)?.clone()))
    }

    /// A path reference to the copy in the store, with every field that such a reference can have.
    fn copy(&self) -> String {
        let fields = ["narHash", "lastModified", "rev", "revCount", "dir"];
        let parameters = fields.iter().filter_map(|name| self.parameter(name));
        with_parameters(&format!("path:{}", self.path), parameters)
    }

    /// A revision of a repository of git, with every field that says how to fetch it.
    fn of_git(&self) -> String {
        // The rest is what came of fetching it, which a revision needs no more.
        let found = [
            "type",
            "url",
            "narHash",
            "lastModified",
            "revCount",
            "dirtyRev",
            "dirtyShortRev",
            "__final",
        ];
        let fields = self.locked.keys().map(String::as_str);
        let parameters = fields
            .filter(|name| !found.contains(name))
            .filter_map(|name| self.parameter(name));
        let url = self.text("url").unwrap_or_default();
        with_parameters(&format!("git+{url}"), parameters)
    }

    /// A flake in a sub-folder, for a Nix that takes no `dir` beside a copy in the store (2.8).
    fn in_folder(&self) -> Option<String> {
        match self.text("type")? {
            forge @ ("github" | "gitlab" | "sourcehut") => {
                let parts = [self.text("owner")?, self.text("repo")?, self.text("rev")?];
                let parameters = ["host", "dir"]
                    .iter()
                    .filter_map(|name| self.parameter(name));
                Some(with_parameters(
                    &format!("{forge}:{}", parts.join("/")),
                    parameters,
                ))
            }
            "tarball" => Some(self.url.clone()),
            _ => None,
        }
    }

    /// A field as a parameter of a URL.
    fn parameter(&self, name: &str) -> Option<String> {
        let value = match self.locked.get(name)? {
            Value::Bool(set) => u8::from(*set).to_string(),
            Value::String(text) => utf8_percent_encode(text, URL_PART).to_string(),
            Value::Number(number) => number.to_string(),
            _ => return None,
        };
        Some(format!("{name}={value}"))
    }
}

/// A URL, which may have parameters already, with some more.
fn with_parameters(url: &str, parameters: impl Iterator<Item = String>) -> String {
    let mut url = url.to_owned();
    for parameter in parameters {
        url.push(if url.contains('?') { '&' } else { '?' });
        url.push_str(&parameter);
    }
    url
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn locked(metadata: &Value) -> LockedFlake {
        serde_json::from_value::<FlakeMetadata>(metadata.clone())
            .unwrap()
            .locked()
    }

    #[test]
    fn a_revision_of_git_keeps_every_field_that_says_how_to_fetch_it() {
        let flake = locked(&json!({
            "url": "git+file:///r?ref=main&rev=1ac0", "path": "/s", "revision": "1ac0", "lastModified": 7,
            "locked": {
                "type": "git", "url": "file:///r", "rev": "1ac0", "ref": "refs/heads/a b", "narHash": "h", "lastModified": 7,
                "revCount": 3, "submodules": true, "shallow": true, "exportIgnore": false, "lfs": true, "allRefs": true,
                "dir": "sub", "__final": true,
            },
        }));
        assert_eq!(
            flake.reference,
            "git+file:///r?allRefs=1&dir=sub&exportIgnore=0&lfs=1&ref=refs%2Fheads%2Fa%20b&rev=1ac0&shallow=1&submodules=1"
        );
        assert_eq!(Value::Object(flake.source_info), json!({ "revCount": 3 }));
    }

    #[test]
    fn what_has_no_revision_is_its_copy_in_the_store() {
        let flake = locked(&json!({
            "url": "git+file:///r", "path": "/nix/store/x-source",
            "locked": {
                "type": "git", "url": "file:///r", "narHash": "sha256-a+b/c=", "lastModified": 7, "dir": "sub",
                "dirtyRev": "1ac0-dirty", "dirtyShortRev": "1ac-dirty",
            },
        }));
        assert_eq!(
            flake.reference,
            "path:/nix/store/x-source?narHash=sha256-a%2Bb%2Fc%3D&lastModified=7&dir=sub"
        );
        assert_eq!(
            Value::Object(flake.source_info),
            json!({ "submodules": false, "dirtyRev": "1ac0-dirty", "dirtyShortRev": "1ac-dirty" })
        );
    }

    #[test]
    fn the_settings_of_a_flake_are_written_as_options_are() {
        let json = r#"{"extra-substituters":["https://a","https://b"],"cores":2,"fallback":true,"bash-prompt":"x","extra-flake-registry":""}"#;
        let settings = flake_settings(json).unwrap();
        let settings: Vec<_> = settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(
            settings,
            [
                ("cores", "2"),
                ("extra-substituters", "https://a https://b"),
                ("fallback", "true")
            ]
        );
        assert_eq!(flake_settings("[]"), None);
    }

    #[test]
    fn a_login_that_the_registry_has_put_into_a_reference_is_no_argument() {
        for url in ["https://u:p@h/r", "https://h/r?token=x"] {
            let flake = locked(&json!({
                "url": format!("git+{url}&rev=1ac0"), "path": "/nix/store/x-source", "lastModified": 7,
                "locked": { "type": "git", "url": url, "rev": "1ac0", "narHash": "h", "lastModified": 7, "revCount": 3 },
            }));
            assert_eq!(
                flake.reference,
                "path:/nix/store/x-source?narHash=h&lastModified=7&rev=1ac0&revCount=3"
            );
        }
    }

    #[test]
    fn a_forge_is_fetched_from_a_second_time_only_where_nix_takes_no_folder_of_a_copy() {
        let metadata = |more: &[(&str, Value)]| {
            let mut metadata = json!({
                "url": "github:o/r/1ac0?dir=sub", "path": "/nix/store/x-source",
                "locked": {
                    "type": "github", "owner": "o", "repo": "r", "rev": "1ac0", "narHash": "h", "lastModified": 7,
                    "host": "git.example.org",
                },
            });
            for (name, value) in more {
                metadata["locked"][name] = value.clone();
            }
            locked(&metadata).reference
        };
        let copy = "path:/nix/store/x-source?narHash=h&lastModified=7&rev=1ac0";
        assert_eq!(metadata(&[]), copy);
        assert_eq!(
            metadata(&[("dir", "sub".into())]),
            "github:o/r/1ac0?host=git.example.org&dir=sub"
        );
        let new = [("dir", "sub".into()), ("__final", true.into())];
        assert_eq!(metadata(&new), format!("{copy}&dir=sub"));
    }
}
