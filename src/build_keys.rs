//! The keys that say how a target is built, whatever is evaluated: read by a step, and given by a recording to its steps.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::evaluation_keys::Checkout;
use crate::exit::Failure;
use crate::keys::table::{self, KeyOwner};
use crate::keys::{KeyReader, Keys, not_here, string};
use crate::nix::StoreUrl;
use crate::paths::{below, without_dots};

/// Where outputs are linked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutLink {
    /// At this path, and beside it.
    At(PathBuf),
    /// Not for users (`false`): a root in the state folder.
    State,
}

/// How Nix's output looks in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Readable.
    Pretty,
    /// As Nix prints it.
    Raw,
}

/// How a target is built; none where a key is not set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct BuildKeys {
    /// Where the outputs are linked, as an absolute path.
    pub(crate) out_link: Option<OutLink>,
    /// Whether a hook runs the job's own command after success.
    pub(crate) command: Option<bool>,
    /// Whether drift ends the step.
    pub(crate) fail_on_drift: Option<bool>,
    /// How Nix's output looks in the log.
    pub(crate) form: Option<Form>,
    /// Whether a share that fails ends the recording or the step.
    pub(crate) share_required: Option<bool>,
    /// The store that gets the outputs.
    pub(crate) push: Option<StoreUrl>,
    /// Whether it also gets what was built of a target that failed.
    pub(crate) push_partial: Option<bool>,
}

impl BuildKeys {
    /// Reads them; a relative link starts in `folder`.
    ///
    /// # Errors
    /// One of them is not what it must be (64).
    pub(crate) fn read(reader: &mut KeyReader, folder: &Path) -> Result<Self, Failure> {
        Ok(Self {
            out_link: reader.take("out-link", "a path, or `false`", |value| match value {
                Value::Bool(false) => Some(Ok(OutLink::State)),
                Value::String(text) => Some(out_link(&text, folder)),
                _ => None,
            })?,
            command: reader.choice("command", [("after", true), ("none", false)])?,
            fail_on_drift: reader.choice("on-drift", [("warn", false), ("fail", true)])?,
            form: reader.choice("log", [("pretty", Form::Pretty), ("raw", Form::Raw)])?,
            share_required: reader.boolean("share-required")?,
            push: reader.take("push", "the URL of a store", |value| {
                string(value).map(|text| StoreUrl::parse(&text))
            })?,
            push_partial: reader.boolean("push-partial")?,
        })
    }

    /// Whether the job's own command is left to another plugin's hook.
    pub(crate) fn leaves_the_command(&self) -> bool {
        self.command == Some(false)
    }
}

/// Refuses a link that a pipeline may not choose on an agent with `no-command-eval`.
///
/// # Errors
/// It is not in the checkout, or in a folder of which files are run (64).
pub(crate) fn check_confined(out_link: &OutLink, place: &Checkout) -> Result<(), Failure> {
    let OutLink::At(link) = out_link else {
        return Ok(());
    };
    // The link itself is replaced, not followed.
    let Some(folder) = below(link.parent().unwrap_or(link), &place.folder) else {
        return Err(not_here("an `out-link` outside the checkout"));
    };
    let real = folder.join(link.file_name().unwrap_or_default());
    // Git and the agent run files in these folders. (To some file systems `.GIT` is `.git`.)
    let is_run = |part: &OsStr| {
        [".git", ".buildkite"]
            .iter()
            .any(|name| part.eq_ignore_ascii_case(name))
    };
    if real.iter().any(is_run) {
        return Err(not_here("an `out-link` in .git or .buildkite"));
    }
    Ok(())
}

/// What else a target may name: what is evaluated.
const EVALUATED: [&str; 3] = ["attr", "file", "expr"];

/// Those of `keys` that are such keys, as they were written.
pub(crate) fn as_written(keys: &Keys) -> Keys {
    let is_build_key = |name: &str| {
        let mut of_target = table::of(KeyOwner::Target);
        of_target.any(|key| key.name == name) && !EVALUATED.contains(&name)
    };
    keys.iter()
        .filter(|(name, _)| is_build_key(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// The same keys for a step that starts in a folder above, from which `folder` leads here; none where its name is not UTF-8.
pub(crate) fn from_above(mut keys: Keys, folder: &Path) -> Option<Keys> {
    if let Some(Value::String(link)) = keys.get_mut("out-link")
        && !link.starts_with('/')
    {
        *link = format!("{}/{link}", folder.to_str()?);
    }
    Some(keys)
}

fn out_link(text: &str, folder: &Path) -> Result<OutLink, String> {
    let link = without_dots(&folder.join(text));
    let named = !text.is_empty()
        && !text.ends_with('/')
        && !matches!(text.rsplit('/').next(), Some("." | ".."));
    match link.file_name() {
        Some(_) if named => Ok(OutLink::At(link)),
        _ => Err(format!("cannot be the path of a link: {text:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_link_is_the_same_seen_from_a_folder_above() {
        let of = |link: Value| {
            let keys = json!({ "out-link": link, "log": "raw" });
            Value::Object(from_above(keys.as_object().unwrap().clone(), Path::new("nix")).unwrap())
        };
        assert_eq!(of(json!("out/a"))["out-link"], "nix/out/a");
        assert_eq!(of(json!("../a"))["out-link"], "nix/../a");
        assert_eq!(of(json!("/tmp/a"))["out-link"], "/tmp/a");
        assert_eq!(of(json!(false)), json!({ "out-link": false, "log": "raw" }));
    }
}
