//! What a pin says, and which recording it belongs to: for the next recording of the same branch to compare with.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exit::{Class, Classify as _, Failure};
use crate::fingerprint::fingerprint;
use crate::nix::{AttrPath, DrvPath};
use crate::private;
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
    /// None where only the beginning was read.
    #[serde(default)]
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
    /// How the names of the folders begin that have pins of the same things in the same branch, of whatever build: the next
    /// recording finds them without a look at others.
    series: String,
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
                build.job_with_retries(),
            ),
            None => (
                request.root.folder.to_string_lossy().into_owned(),
                String::new(),
                String::new(),
                String::new(),
            ),
        };
        let series = fingerprint([pipeline.as_str(), &branch, &recording]);
        let hash = fingerprint([&build, &step]);
        let series = format!("{PREFIX}{series}-");
        Self {
            pipeline,
            branch,
            build,
            recording,
            folder: format!("{series}{hash}"),
            series,
        }
    }
}

impl PinOwner {
    /// The pin of these `.drv`s, which `eval-once pin` keeps: a retry with the same ones replaces it.
    pub(in crate::recording) fn of_drvs(
        drvs: &BTreeSet<DrvPath>,
        build: Option<&BuildkiteBuild>,
    ) -> Self {
        let part = |of: fn(&BuildkiteBuild) -> &str| build.map_or("", of).to_owned();
        let (pipeline, branch) = (part(|it| &it.pipeline), part(|it| &it.branch));
        let build = part(|it| &it.build);
        let drvs = fingerprint(drvs.iter().map(|drv| drv.as_store_path().as_str()));
        let series = format!("{PREFIX}own-");
        Self {
            folder: format!(
                "{series}{}",
                fingerprint([pipeline.as_str(), &build, &drvs])
            ),
            recording: format!("pin {drvs}"),
            pipeline,
            branch,
            build,
            series,
        }
    }

    /// The same recording, where it was stopped: its pin is no recording to compare with. `what` is what else of it has to be the same
    /// for another one to go on with what it has found, in whichever build.
    pub(in crate::recording) fn stopped(&self, what: &str) -> Self {
        let hash = fingerprint([self.pipeline.as_str(), &self.recording, what]);
        Self {
            pipeline: self.pipeline.clone(),
            branch: self.branch.clone(),
            build: self.build.clone(),
            recording: format!("stopped {}", self.recording),
            series: format!("{PREFIX}stopped-"),
            folder: format!("{PREFIX}stopped-{hash}"),
        }
    }
}

/// The text of the pin.
///
/// # Errors
/// It cannot be written as JSON (70).
pub(in crate::recording) fn pin_text(
    targets: &[(&AttrPath, &DrvPath)],
    owner: &PinOwner,
    created: u64,
) -> Result<String, Failure> {
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
    serde_json::to_string(&text)
        .classify(Class::Bug, || "cannot write the content of the pin".into())
}

/// What stands in a pin before its targets; none where the file is no pin, or cannot be read.
///
/// A pin may have megabytes: only its beginning is read.
fn head(file: &Path) -> Option<PinContent> {
    let mut file = open(file)?;
    let mut text = Vec::new();
    let mut searched = 0;
    while text.len() < HEAD_AT_MOST {
        let read = file
            .by_ref()
            .take(HEAD_AT_ONCE)
            .read_to_end(&mut text)
            .ok()?;
        // In a string, its quotes would be escaped.
        if let Some(end) = find(&text[searched..], BEFORE_TARGETS) {
            text.truncate(searched + end);
            text.push(b'}');
            return serde_json::from_slice(&text).ok();
        }
        if read == 0 {
            return serde_json::from_slice(&text).ok();
        }
        searched = text.len().saturating_sub(BEFORE_TARGETS.len());
    }
    None
}

/// How much of a pin is read at once, in bytes: more than its beginning takes.
const HEAD_AT_ONCE: u64 = 4 << 10;

/// How long the beginning may be, in bytes: it has names that an agent passes on, of at most 128 KiB each.
const HEAD_AT_MOST: usize = 1 << 20;

/// What stands between the beginning of a pin and its targets.
const BEFORE_TARGETS: &[u8] = b",\"targets\":";

/// Opens the file of a pin, to which its root leads.
fn open(root: &Path) -> Option<File> {
    private::open(&root.read_link().unwrap_or_else(|_| root.to_owned())).ok()
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

/// The targets of the newest recording of the same things in the same branch whose pin still exists; to be read before the new pin
/// is made. Other recordings of this build, and earlier tries of this one, do not count.
pub(in crate::recording) fn previous(
    owner: &PinOwner,
    state: &StateFolder,
) -> Option<Vec<(AttrPath, String)>> {
    let entries = state.pins().read_dir().ok()?.flatten();
    let mut pins: Vec<_> = entries
        .filter(|entry| {
            let name = entry.file_name();
            name.as_bytes().starts_with(owner.series.as_bytes())
        })
        .filter_map(|entry| {
            let file = entry.path().join("pin");
            // The root is made anew with the pin.
            let made = file.symlink_metadata().ok()?.modified().ok()?;
            Some((made, file))
        })
        .collect();
    pins.sort_unstable();
    let newest = pins.into_iter().rev().find_map(|(_, file)| {
        let head = head(&file)?;
        let is_previous = head.pipeline == owner.pipeline
            && head.branch == owner.branch
            && head.recording == owner.recording
            && (head.build != owner.build || owner.build.is_empty());
        is_previous.then_some(file)
    })?;
    let mut text = Vec::new();
    open(&newest)?.read_to_end(&mut text).ok()?;
    let newest: PinContent = serde_json::from_slice(&text).ok()?;
    let targets = newest.targets.into_iter();
    Some(
        targets
            .map(|entry| (AttrPath::new(entry.attr), entry.drv))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use std::fs::{self, FileTimes};
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::recording::Signing;
    use crate::recording::pipeline::fixtures::request;

    #[test]
    fn the_previous_recording_is_one_of_the_same_things_in_another_build() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let owner = |build: &str, recording: &str| PinOwner {
            pipeline: "p".into(),
            branch: "main".into(),
            build: build.into(),
            recording: recording.into(),
            series: format!("{PREFIX}{recording}-"),
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
            let pin = state.pins().join(format!("{PREFIX}{recording}-{created}"));
            fs::create_dir(&pin).unwrap();
            let content = PinContent {
                version: 1,
                pipeline: pipeline.into(),
                branch: branch.into(),
                build: build.into(),
                recording: recording.into(),
                created,
                targets: vec![PinEntry {
                    attr: vec![attr.into()],
                    drv: "/x".into(),
                }],
            };
            fs::write(pin.join("pin"), serde_json::to_string(&content).unwrap()).unwrap();
            let made = FileTimes::new().set_modified(UNIX_EPOCH + Duration::from_secs(created));
            let file = File::options().append(true).open(pin.join("pin")).unwrap();
            file.set_times(made).unwrap();
        }
        // One that is not written to its end, and whatever else there may be, does not count.
        for (name, text) in [
            ("half", r#"{"version":1,"pipeline":"p","bra"#),
            ("other", "text"),
            ("empty", ""),
        ] {
            let pin = state.pins().join(format!("{PREFIX}a-{name}"));
            fs::create_dir(&pin).unwrap();
            fs::write(pin.join("pin"), text).unwrap();
        }
        // A host may have thousands of pins of other pipelines: their files are not even opened, so this one is not found.
        let content = r#"{"version":1,"pipeline":"p","branch":"main","build":"7","recording":"a","created":70,"targets":[{"attr":["unopened"],"drv":"/x"}]}"#;
        for (series, is_found) in [("z", false), ("a", true)] {
            let pin = state.pins().join(format!("{PREFIX}{series}-70"));
            fs::create_dir(&pin).unwrap();
            fs::write(pin.join("pin"), content).unwrap();
            let newest = previous(&owner("4", "a"), &state).unwrap().remove(0).0;
            assert_eq!(newest.to_string() == "unopened", is_found, "{newest}");
            fs::remove_dir_all(pin).unwrap();
        }
        let found = |owner: &PinOwner| Some(previous(owner, &state)?[0].0.to_string());
        assert_eq!(found(&owner("4", "a")).as_deref(), Some("newer"));
        assert_eq!(found(&owner("4", "b")).as_deref(), Some("other-things"));
        assert_eq!(found(&owner("4", "c")), None);
    }

    #[test]
    fn pins_of_other_pipelines_branches_and_recordings_have_other_names() {
        let build = |pipeline: &str, branch: &str, build: &str| BuildkiteBuild {
            pipeline: pipeline.into(),
            branch: branch.into(),
            build: build.into(),
            job: String::new(),
            step: "step".into(),
            variant: String::new(),
            commit: None,
            tag: String::new(),
            pull_request: String::new(),
            is_retry: false,
            signing: Signing::Unsigned,
        };
        let owner = |attr: &str, build: &BuildkiteBuild| {
            let mut request = request();
            request.root.attr = AttrPath::new(vec![attr.into()]);
            PinOwner::of(&request, Some(build))
        };
        let one = owner("a", &build("p", "main", "1"));
        let next = owner("a", &build("p", "main", "2"));
        assert_eq!(one.series, next.series);
        assert_ne!(one.folder, next.folder);
        for other in [
            owner("b", &build("p", "main", "2")),
            owner("a", &build("p", "topic", "2")),
            owner("a", &build("q", "main", "2")),
        ] {
            assert_ne!(one.series, other.series);
            assert!(!other.folder.starts_with(&one.series), "{other:?}");
        }
    }

    #[test]
    fn of_a_pin_only_the_beginning_is_read_whatever_stands_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pin");
        let odd = r#"x","targets":[ \ ""#;
        for (branch, recording) in [("main", ""), (odd, ""), (&*"b".repeat(10_000), odd)] {
            let owner = PinOwner {
                pipeline: odd.into(),
                branch: branch.into(),
                build: "7".into(),
                recording: recording.into(),
                series: String::new(),
                folder: String::new(),
            };
            let (attr, drv) = (
                AttrPath::default(),
                DrvPath::parse("/s/w11m5yi1fzmzl7ri7y308xcnn9jyzv3r-a.drv").unwrap(),
            );
            let text = pin_text(&[(&attr, &drv)], &owner, 5).unwrap();
            let begin = text.rfind(",\"targets\":").unwrap() + 11;
            // What follows is not looked at.
            for text in [&text, &format!("{}!", &text[..begin])] {
                fs::write(&file, text).unwrap();
                let head = head(&file).unwrap();
                assert_eq!(head.pipeline, owner.pipeline);
                assert_eq!((&*head.branch, &*head.build), (branch, "7"));
                assert_eq!((&*head.recording, head.created), (recording, 5));
            }
        }
    }

    #[test]
    fn the_beginning_of_a_pin_is_found_wherever_it_ends_and_not_looked_for_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pin");
        let is_found = |branch: usize| {
            let branch = "b".repeat(branch);
            let content = format!(
                r#"{{"version":1,"pipeline":"p","branch":"{branch}","created":5,"targets":["#
            );
            fs::write(&file, content).unwrap();
            head(&file).is_some_and(|head| head.branch == branch)
        };
        let at_once = usize::try_from(HEAD_AT_ONCE).unwrap();
        for branch in at_once - 80..at_once {
            assert!(is_found(branch), "{branch}");
        }
        assert!(is_found(HEAD_AT_MOST - 2 * at_once));
        assert!(!is_found(HEAD_AT_MOST));
    }
}
