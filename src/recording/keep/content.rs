//! What a pin says, and which recording it belongs to: for the next recording of the same branch to compare with.

use std::fs;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exit::{Class, Classify as _, Failure};
use crate::fingerprint::fingerprint;
use crate::nix::{AttrPath, DrvPath};
use crate::recording::pipeline::steps::source;
use crate::recording::{BuildkiteBuild, RecordingRequest};
use crate::state::{PREFIX, StateFolder};

/// What a pin's file says.
#[derive(Debug, Serialize, Deserialize)]
struct PinContent {
    version: u32,
    /// The pipeline, or the checkout of a recording by hand.
    pipeline: String,
    branch: String,
    /// The build; empty by hand.
    #[serde(default)]
    build: String,
    /// What of the repository was recorded, as [`identity`] says it.
    #[serde(default)]
    recording: String,
    /// When it was made, in seconds since 1970.
    created: u64,
    targets: Vec<PinEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PinEntry {
    attr: Vec<String>,
    drv: String,
}

/// The recording that a pin belongs to.
#[derive(Debug)]
pub(in crate::recording) struct PinOwner {
    pipeline: String,
    branch: String,
    build: String,
    recording: String,
    /// The name of the pin's folder.
    pub(in crate::recording) folder: String,
}

/// A hash of what is recorded: the same for the same recording in every build, different for every other recording of the same
/// repository. The paths in `request` start at the checkout's root, if that is known; the checkout's own path is left out, because it
/// differs between agents.
pub(in crate::recording) fn identity(request: &RecordingRequest) -> String {
    let source = Value::Object(source(&request.root, &request.options)).to_string();
    let source = match request.root.folder.to_str() {
        Some(folder) if folder != "/" => source.replace(folder, "."),
        _ => source,
    };
    let attr = request.root.attr.to_string();
    let exclude = format!("{:?}", request.exclude);
    fingerprint([source.as_str(), &attr, &exclude])
}

impl PinOwner {
    /// A recording in a job has a pin of its own, which its retries replace; by hand, that of the same checkout and arguments
    /// is replaced. (A step may record several things with `--dry-run`: none of them replaces another's.)
    pub(in crate::recording) fn of(
        request: &RecordingRequest,
        build: Option<&BuildkiteBuild>,
    ) -> Self {
        let recording = identity(request);
        let (pipeline, branch, build, step) = match build {
            Some(build) => (
                build.pipeline.clone(),
                build.branch.clone(),
                build.build.clone(),
                build.step.as_str(),
            ),
            None => (
                request.root.folder.to_string_lossy().into_owned(),
                String::new(),
                String::new(),
                "",
            ),
        };
        let hash = fingerprint([pipeline.as_str(), &branch, &build, step, &recording]);
        Self {
            pipeline,
            branch,
            build,
            recording,
            folder: format!("{PREFIX}{hash}"),
        }
    }
}

impl PinOwner {
    /// The same recording, where it was stopped: its pin is no recording to compare with. `what` is what else of it has to be the same
    /// for another one to go on with what it has found, in whichever build.
    pub(in crate::recording) fn stopped(&self, what: &str) -> Self {
        let hash = fingerprint([self.pipeline.as_str(), &self.recording, what]);
        Self {
            pipeline: self.pipeline.clone(),
            branch: self.branch.clone(),
            build: self.build.clone(),
            recording: format!("stopped {}", self.recording),
            folder: format!("{PREFIX}stopped-{hash}"),
        }
    }
}

/// What pin.nix reads: the text of the pin, and the `.drv`s that it refers to.
///
/// # Errors
/// It cannot be written as JSON (70).
pub(in crate::recording) fn pin_input(
    targets: &[(&AttrPath, &DrvPath)],
    owner: &PinOwner,
    created: u64,
) -> Result<Vec<u8>, Failure> {
    #[derive(Serialize)]
    struct PinInput<'a> {
        text: String,
        drvs: Vec<&'a DrvPath>,
    }
    let text = PinContent {
        version: 1,
        pipeline: owner.pipeline.clone(),
        branch: owner.branch.clone(),
        build: owner.build.clone(),
        recording: owner.recording.clone(),
        created,
        targets: targets
            .iter()
            .map(|(attr, drv)| PinEntry {
                attr: attr.names().to_vec(),
                drv: drv.to_string(),
            })
            .collect(),
    };
    let input = serde_json::to_string(&text).and_then(|text| {
        serde_json::to_vec(&PinInput {
            text,
            drvs: targets.iter().map(|(_, drv)| *drv).collect(),
        })
    });
    input.classify(Class::Bug, || "cannot write the content of the pin".into())
}

/// The targets of the newest recording of the same things in the same branch whose pin still exists; to be read before the new pin
/// is made. Other recordings of this build, and earlier tries of this one, do not count.
pub(in crate::recording) fn previous(
    owner: &PinOwner,
    state: &StateFolder,
) -> Option<Vec<(AttrPath, String)>> {
    let entries = state.pins().read_dir().ok()?.flatten();
    let texts = entries.filter_map(|entry| {
        let text = fs::read(entry.path().join("pin")).ok()?;
        serde_json::from_slice::<PinContent>(&text).ok()
    });
    let newest = texts
        .filter(|text| {
            text.pipeline == owner.pipeline
                && text.branch == owner.branch
                && text.recording == owner.recording
                && (text.build != owner.build || owner.build.is_empty())
        })
        .max_by_key(|text| text.created)?;
    let targets = newest.targets.into_iter();
    Some(
        targets
            .map(|entry| (AttrPath::new(entry.attr), entry.drv))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_previous_recording_is_one_of_the_same_things_in_another_build() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let owner = |build: &str, recording: &str| PinOwner {
            pipeline: "p".into(),
            branch: "main".into(),
            build: build.into(),
            recording: recording.into(),
            folder: String::new(),
        };
        let texts = [
            ("p", "main", "1", "a", 10, "older"),
            ("p", "main", "2", "a", 20, "newer"),
            ("p", "main", "3", "b", 30, "other-things"),
            ("p", "main", "4", "a", 40, "earlier-try"),
            ("p", "topic", "5", "a", 50, "other-branch"),
            ("q", "main", "6", "a", 60, "other-pipeline"),
        ];
        for (pipeline, branch, build, recording, created, attr) in texts {
            let pin = state.pins().join(format!("eval-once-{created}"));
            fs::create_dir(&pin).unwrap();
            let text = serde_json::json!({
                "version": 1, "pipeline": pipeline, "branch": branch, "build": build, "recording": recording,
                "created": created, "targets": [{"attr": [attr], "drv": "/x"}],
            });
            fs::write(pin.join("pin"), text.to_string()).unwrap();
        }
        let found = |owner: &PinOwner| Some(previous(owner, &state)?[0].0.to_string());
        assert_eq!(found(&owner("4", "a")).as_deref(), Some("newer"));
        assert_eq!(found(&owner("4", "b")).as_deref(), Some("other-things"));
        assert_eq!(found(&owner("4", "c")), None);
    }
}
