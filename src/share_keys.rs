//! The keys that say how `.drv`s get from the host that records to those that build, and outputs from there to a store: those of
//! a recording, of a step, and of a host.

use std::fmt;

use serde_json::Value;

use crate::exit::Failure;
use crate::keys::{KeyReader, not_here};
use crate::nix::StoreUrl;

/// Where a step can fetch the `.drv`s of its recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Share {
    /// An artifact of the build, by its name: an archive of a binary cache.
    Artifact(String),
    /// A store.
    Store(StoreUrl),
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Artifact(name) => write!(f, "{ARTIFACT}:{name}"),
            Self::Store(url) => url.fmt(f),
        }
    }
}

/// What the key `share` of a step says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepShare {
    /// Nothing is fetched (`false`), whatever the host's setting is.
    Off,
    /// Fetched from there.
    From(Share),
}

/// How recordings share, as a key and as the host's setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShareSetting {
    /// Not at all.
    Off,
    /// As an artifact of the build.
    Artifact,
    /// Through a store.
    Store(StoreUrl),
}

const ARTIFACT: &str = "artifact";

impl ShareSetting {
    /// Reads the setting as text: `artifact`, `false`, or a store's URL.
    ///
    /// # Errors
    /// It is none of these; the sentence goes on after what it is about.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            ARTIFACT => Ok(Self::Artifact),
            "false" => Ok(Self::Off),
            url => StoreUrl::parse(url).map(Self::Store),
        }
    }
}

/// Reads the key `share` of a step.
///
/// # Errors
/// It is not what it must be (64).
pub(crate) fn read_step_share(reader: &mut KeyReader) -> Result<Option<StepShare>, Failure> {
    reader.take(
        "share",
        "`artifact:NAME`, the URL of a store, or `false`",
        |value| match value {
            Value::Bool(false) => Some(Ok(StepShare::Off)),
            Value::String(text) => Some(match text.strip_prefix("artifact:") {
                Some(name) if is_artifact_name(name) => {
                    Ok(StepShare::From(Share::Artifact(name.to_owned())))
                }
                Some(_) => Err(format!(
                    "names no artifact that a recording has written: {text:?}"
                )),
                None => StoreUrl::parse(&text).map(|url| StepShare::From(Share::Store(url))),
            }),
            _ => None,
        },
    )
}

/// Reads the key `share` of a recording.
///
/// # Errors
/// It is not what it must be (64).
pub(crate) fn read_recording_share(
    reader: &mut KeyReader,
) -> Result<Option<ShareSetting>, Failure> {
    reader.take(
        "share",
        "`artifact`, the URL of a store, or `false`",
        |value| match value {
            Value::Bool(false) => Some(Ok(ShareSetting::Off)),
            Value::String(text) => Some(ShareSetting::parse(&text)),
            _ => None,
        },
    )
}

/// Whether this is a plain file name, which means itself in the agent's search too.
fn is_artifact_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    name.starts_with(|first: char| first.is_ascii_alphanumeric()) && name.chars().all(is_plain)
}

/// The parameters of a store that name neither a file of the host's nor its credentials, nor who gets them (`endpoint`: to a bucket, Nix
/// signs its requests).
const HARMLESS_PARAMETERS: [&str; 11] = [
    "addressing-style",
    "buffer-size",
    "compression",
    "compression-level",
    "index-debug-info",
    "multipart-upload",
    "parallel-compression",
    "priority",
    "region",
    "want-mass-query",
    "write-nar-listing",
];

/// Refuses a share or a push that a pipeline may not choose on an agent with `no-command-eval`. A share is read without any of the
/// host's credentials that could be given away: over HTTP or S3, or as an artifact. (`ssh` runs programs, `file` reads any
/// folder.) Of its parameters, none may name a file or credentials of the host's: Nix writes each path that it fetches into
/// `local-nar-cache`, whatever folder that is, and reads `secret-key`. A push writes with credentials.
///
/// # Errors
/// It is not allowed here (64).
pub(crate) fn check_confined(
    share: Option<&StoreUrl>,
    push: Option<&StoreUrl>,
) -> Result<(), Failure> {
    let is_plain = |share: &StoreUrl| ["http", "https", "s3"].contains(&share.scheme());
    if share.is_some_and(|share| !is_plain(share)) {
        return Err(not_here(
            "a `share` other than an artifact or an http, https or s3 store",
        ));
    }
    let mut parameters = share.into_iter().flat_map(StoreUrl::parameters);
    if let Some(name) = parameters.find(|name| !HARMLESS_PARAMETERS.contains(name)) {
        return Err(not_here(&format!(
            "the parameter {name:?} in the URL of a `share`"
        )));
    }
    if push.is_some() {
        return Err(not_here("a `push`"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Class;

    #[test]
    fn a_host_names_a_share_as_a_recording_does() {
        assert_eq!(ShareSetting::parse("artifact"), Ok(ShareSetting::Artifact));
        assert_eq!(ShareSetting::parse("false"), Ok(ShareSetting::Off));
        assert!(matches!(
            ShareSetting::parse("file:///x"),
            Ok(ShareSetting::Store(_))
        ));
        assert!(ShareSetting::parse("artefact").is_err());
    }

    #[test]
    fn an_artifact_is_named_by_a_plain_file_name() {
        for name in ["eval-once-drvs-0a.tar", "a_b.C"] {
            assert!(is_artifact_name(name), "{name}");
        }
        for name in ["", ".x", "-x", "a/b", "a*", "a;b", "a b"] {
            assert!(!is_artifact_name(name), "{name}");
        }
    }

    #[test]
    fn a_confined_pipeline_reads_plain_stores_and_writes_none() {
        let url = |text: &str| StoreUrl::parse(text).unwrap();
        for share in ["http://x", "https://x/y", "s3://bucket"] {
            assert!(check_confined(Some(&url(share)), None).is_ok(), "{share}");
        }
        for share in ["ssh://x", "ssh-ng://x", "file:///x", "unix:///x"] {
            let failure = check_confined(Some(&url(share)), None).unwrap_err();
            assert_eq!(failure.class, Class::Config, "{share}");
        }
        assert!(check_confined(None, Some(&url("https://x"))).is_err());
        let plain = "s3://b?region=eu-west-1&compression=zstd";
        assert!(check_confined(Some(&url(plain)), None).is_ok());
        for (share, named) in [
            ("https://x?local-nar-cache=/root", "local-nar-cache"),
            (
                "https://x?compression=xz&secret-key=/etc/nix/key",
                "secret-key",
            ),
            ("s3://b?profile=admin", "profile"),
            ("s3://b?endpoint=http://m:9000", "endpoint"),
            ("https://x?local%2Dnar-cache=/root", "local%2Dnar-cache"),
            ("https://x#?secret-keys=/k", "secret-keys"),
        ] {
            let failure = check_confined(Some(&url(share)), None).unwrap_err();
            assert_eq!(failure.class, Class::Config, "{share}");
            assert!(failure.to_string().contains(named), "{failure}");
        }
    }
}
