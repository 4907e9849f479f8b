//! The pin: one small store file that refers to every recorded `.drv`, and the root that keeps it.
//!
//! The file is JSON, and each `.drv` path in it has plain string context: so its references are exactly the `.drv`s, and
//! nothing is built. It also says what was recorded, for the next recording of the same branch to compare with.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exit::{Class, Classify as _, Failure};
use crate::log::Log;
use crate::nix::{AttrPath, Disturbance, DrvPath, Phase, StorePath, class, command};
use crate::recording::asking::{ask_store, last_words, store_answers};
use crate::recording::fingerprint::fingerprint;
use crate::recording::pipeline::steps::source;
use crate::recording::{BuildkiteBuild, RecordingRequest};
use crate::state::StateFolder;
use crate::supervise::{OnStop, Supervisor};

/// How often the pin is made, where a collection that was running already takes it.
const ATTEMPTS: u32 = 3;

/// How many bytes of paths one command gets. Arguments and environment together may have two MiB on Linux, one on macOS.
const ARGUMENTS_AT_MOST: usize = 512 << 10;

/// What our folders are called: in a state folder that was given by mistake, nothing else is touched.
const PREFIX: &str = "eval-once-";

/// What a pin's file says.
#[derive(Debug, Serialize, Deserialize)]
struct PinText {
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

/// How long a pin is kept: this lies beside it.
#[derive(Debug, Serialize, Deserialize)]
struct PinExpiry {
    /// Until when, in seconds since 1970.
    until: u64,
}

/// Whose pin it is.
#[derive(Debug)]
pub(in crate::recording) struct PinOwner {
    pipeline: String,
    branch: String,
    build: String,
    recording: String,
    folder: String,
}

/// What is recorded, in a few letters: the same for the same recording in every build, and another one for any other recording
/// of the same repository. `request` is for who stands at the checkout's root, where that is known; where the checkout lies is
/// left out, for that is another place for each agent.
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

/// What came of pinning.
#[derive(Debug)]
pub(in crate::recording) enum PinResult {
    /// All of them are kept, by this file.
    Kept(StorePath),
    /// These are gone.
    Gone(Vec<DrvPath>),
}

/// Keeps the `.drv`s of `targets`; `beside` is done while Nix writes the pin.
///
/// # Errors
/// The state folder or the store fails (75).
pub(in crate::recording) fn pin(
    targets: &[(&AttrPath, &DrvPath)],
    owner: &PinOwner,
    request: &RecordingRequest,
    state: &StateFolder,
    supervisor: &mut Supervisor,
    log: &Log,
    beside: impl FnOnce(),
) -> Result<PinResult, Failure> {
    let folder = state.pins().join(&owner.folder);
    let in_state = || format!("cannot keep a pin in {}", folder.display());
    let _held = hold(&folder).classify(Class::Infrastructure, in_state)?;
    let now = seconds(SystemTime::now());
    let until = now + u64::from(request.keep_days) * 24 * 60 * 60;
    let keep = serde_json::to_vec(&PinExpiry { until })
        .classify(Class::Bug, || "cannot write how long a pin is kept".into())?;
    write_whole(&folder.join("keep.json"), &keep).classify(Class::Infrastructure, in_state)?;

    let mut json =
        tempfile::NamedTempFile::new_in(&folder).classify(Class::Infrastructure, in_state)?;
    json.write_all(&text_of(targets, owner, now)?)
        .classify(Class::Infrastructure, in_state)?;
    // What is gone is evaluated again. A cache that has it would send its whole closure, and one that cannot be reached costs
    // seconds before it is known to be gone.
    let mut options = request.options.clone();
    options.push(("substitute".into(), "false".into()));
    let write = command::write_pin(json.path(), &options);
    let mut beside = Some(beside);
    // What fails because a path is missing is done once more where that path is valid by the time we look.
    let mut believed = false;
    for _ in 0..ATTEMPTS {
        let mut said = Vec::new();
        let written = supervisor.run_beside(&write, OnStop::TermThenKill, &mut said, || {
            if let Some(beside) = beside.take() {
                beside();
            }
        })?;
        if !written.ending.success() {
            let drvs: Vec<&StorePath> =
                targets.iter().map(|(_, drv)| drv.as_store_path()).collect();
            let gone = invalid(&drvs, &request.options, supervisor)?;
            let gone: Vec<DrvPath> = gone
                .iter()
                .filter_map(|path| DrvPath::parse(path).ok())
                .collect();
            if gone.is_empty() {
                store_answers(&request.options, supervisor)?;
                let (nix_output, message) = last_words(&said, written.ending);
                if !believed
                    && let Some(Disturbance::Gone(path)) = nix_output.disturbance()
                    && invalid(&[&path], &request.options, supervisor)?.is_empty()
                {
                    believed = true;
                    log.say(format_args!(
                        "{path} was missing, and is valid now: writing the pin again"
                    ));
                    continue;
                }
                return Err(Failure::new(
                    class::of(Phase::Copying, written.ending, &nix_output),
                    format_args!("cannot write the pin: {message}"),
                ));
            }
            return Ok(PinResult::Gone(gone));
        }
        let printed = written.text();
        let pin = StorePath::parse(printed.trim_matches('"'))
            .map_err(|wrong| anyhow::anyhow!("{wrong}: {printed}"))
            .classify(Class::Bug, || format!("cannot read what `{write}` printed"))?;
        let link = folder.join("pin");
        let root = command::obtain(&[&pin], Some(&link), &options);
        let mut said = Vec::new();
        let rooted = supervisor.run(&root, OnStop::Term, &mut said)?;
        // A collection that was running already may have taken it all the same.
        let there = invalid(&[&pin], &request.options, supervisor)?.is_empty();
        if rooted.ending.success() && there {
            look_at_root(&pin, &link, request, supervisor, log)?;
            return Ok(PinResult::Kept(pin));
        }
        if there && !believed {
            believed = true;
            log.say(format_args!(
                "{pin} could not be rooted, and is valid: rooting it again"
            ));
            continue;
        }
        if there {
            let (nix_output, message) = last_words(&said, rooted.ending);
            return Err(Failure::new(
                class::of(Phase::Copying, rooted.ending, &nix_output),
                format_args!("cannot root the pin at {}: {message}", link.display()),
            ));
        }
    }
    Err(Failure::new(
        Class::Infrastructure,
        format_args!("the garbage collector took the pin {ATTEMPTS} times"),
    )
    .hint("let the collector run less often, or while nothing is recorded"))
}

/// In a container whose folders the daemon does not see, the root is none: the next collection takes everything.
fn look_at_root(
    pin: &StorePath,
    link: &Path,
    request: &RecordingRequest,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<(), Failure> {
    let question = command::roots_of(pin, &request.options);
    let roots = supervisor.run(&question, OnStop::TermThenKill, &mut io::sink())?;
    let ours = |line: &Path| {
        line.as_os_str()
            .as_bytes()
            .starts_with(&[link.as_os_str().as_bytes(), b" -> "].concat())
    };
    if roots.ending.success() && !roots.paths().any(ours) {
        log.warn(format_args!(
            "the Nix daemon does not see {}, so its next collection takes what was recorded: \
             mount the state folder at the same path where the daemon runs, or set EVAL_ONCE_STATE_DIR to a folder that is",
            link.display()
        ));
    }
    Ok(())
}

/// What pin.nix is told: the text of the file, and the `.drv`s that it is to refer to.
fn text_of(
    targets: &[(&AttrPath, &DrvPath)],
    owner: &PinOwner,
    created: u64,
) -> Result<Vec<u8>, Failure> {
    #[derive(Serialize)]
    struct Told<'a> {
        text: String,
        drvs: Vec<&'a DrvPath>,
    }
    let text = PinText {
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
    let told = serde_json::to_string(&text).and_then(|text| {
        serde_json::to_vec(&Told {
            text,
            drvs: targets.iter().map(|(_, drv)| *drv).collect(),
        })
    });
    told.classify(Class::Bug, || "cannot write the text of the pin".into())
}

/// Those of `paths` that are not valid.
///
/// # Errors
/// The store cannot be asked (75).
pub(in crate::recording) fn invalid(
    paths: &[&StorePath],
    options: &command::Options,
    supervisor: &mut Supervisor,
) -> Result<Vec<String>, Failure> {
    let mut invalid = Vec::new();
    for batch in batches(paths) {
        let line = command::invalid_of(batch, options);
        let finished = ask_store(&line, supervisor)?;
        invalid.extend(finished.text().lines().map(str::to_owned));
    }
    Ok(invalid)
}

/// As many paths at once as one command can take.
pub(in crate::recording) fn batches<'a, 'p>(
    paths: &'a [&'p StorePath],
) -> impl Iterator<Item = &'a [&'p StorePath]> {
    let mut left = paths;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = left.iter().take_while(|path| {
            bytes += path.as_str().len() + 9;
            bytes <= ARGUMENTS_AT_MOST
        });
        let (batch, rest) = left.split_at(fits.count());
        left = rest;
        (!batch.is_empty()).then_some(batch)
    })
}

/// What the newest recording of the same things in the same branch has found whose pin is still there. Asked before the new one
/// is made. Others of this build, and earlier tries of this one, are no previous recordings.
pub(in crate::recording) fn previous(
    owner: &PinOwner,
    state: &StateFolder,
) -> Option<Vec<(AttrPath, String)>> {
    let entries = state.pins().read_dir().ok()?.flatten();
    let texts = entries.filter_map(|entry| {
        let text = fs::read(entry.path().join("pin")).ok()?;
        serde_json::from_slice::<PinText>(&text).ok()
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

/// Removes the pins that have been kept long enough. What cannot be removed (by another user, say) is left to whoever can.
/// Gives the pins that are gone now.
pub(in crate::recording) fn prune(state: &StateFolder) -> Vec<PathBuf> {
    let Ok(entries) = state.pins().read_dir() else {
        return Vec::new();
    };
    let now = seconds(SystemTime::now());
    let mut removed = Vec::new();
    for entry in entries.flatten() {
        let folder = entry.path();
        let ours = entry.file_name().as_bytes().starts_with(PREFIX.as_bytes())
            && entry.file_type().is_ok_and(|kind| kind.is_dir());
        let is_due = || until(&folder).is_some_and(|until| until < now);
        if !ours || !is_due() {
            continue;
        }
        // Made where it is missing (a removal that was cut short takes it first): else a recording could make it unseen.
        let path = folder.join(LOCK);
        let Ok(lock) = File::options().create(true).append(true).open(&path) else {
            continue;
        };
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            continue;
        }
        // Between the two looks at it, a recording may have made it anew, or another prune have removed it.
        if !is_at(&lock, &path) || !is_due() {
            continue;
        }
        // Removing takes a while, and a recording that finds the folder without its lock makes one and takes it as its own. So
        // the folder loses its name first; what is left where that is cut short is pruned under the other name.
        let Some(aside) = aside(&folder) else {
            continue;
        };
        if fs::remove_dir_all(aside).is_ok() {
            removed.push(folder);
        }
    }
    removed
}

/// Gives a folder another name of ours, and gives that.
fn aside(folder: &Path) -> Option<PathBuf> {
    let place = tempfile::Builder::new()
        .prefix(PREFIX)
        .tempdir_in(folder.parent()?)
        .ok()?
        .keep();
    // Onto an empty folder, in one act.
    if fs::rename(folder, &place).is_ok() {
        return Some(place);
    }
    let _ = fs::remove_dir(place);
    None
}

/// Whether an open file is the one that is at `path` now.
fn is_at(file: &File, path: &Path) -> bool {
    let same = |there: &fs::Metadata, held: &fs::Metadata| {
        (there.dev(), there.ino()) == (held.dev(), held.ino())
    };
    match (path.metadata(), file.metadata()) {
        (Ok(there), Ok(held)) => same(&there, &held),
        _ => false,
    }
}

/// What lies in a pin's folder so that it can be held.
const LOCK: &str = "lock";

/// Makes a pin's folder, and holds it against whoever prunes as long as the file is open. On a file system without locks it is
/// only made.
fn hold(folder: &Path) -> io::Result<File> {
    loop {
        match DirBuilder::new().recursive(true).mode(0o755).create(folder) {
            // It was there, and was pruned before it could be looked at.
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists
                    && folder.symlink_metadata().map_or(true, |it| it.is_dir()) =>
            {
                continue;
            }
            made => made?,
        }
        let path = folder.join(LOCK);
        let lock = match File::options().create(true).append(true).open(&path) {
            // It was pruned just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        // Whoever prunes holds it for a moment only.
        let _ = lock.lock_shared();
        if is_at(&lock, &path) {
            return Ok(lock);
        }
    }
}

/// Until when a pin is kept; one that does not say so is being made, or was left when that was cut short.
fn until(folder: &Path) -> Option<u64> {
    let said = fs::read(folder.join("keep.json"))
        .ok()
        .and_then(|text| serde_json::from_slice::<PinExpiry>(&text).ok());
    match said {
        Some(PinExpiry { until }) => Some(until),
        None => Some(seconds(folder.symlink_metadata().ok()?.modified().ok()?) + 24 * 60 * 60),
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs()
}

/// Writes a file that is there whole or not at all.
fn write_whole(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
    temporary.write_all(bytes)?;
    temporary.persist(file).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_paths_go_into_a_command_as_it_takes() {
        let path = StorePath::parse(&format!("/nix/store/{}-x", "0".repeat(32))).unwrap();
        let paths = vec![&path; 50_000];
        let sizes: Vec<usize> = batches(&paths).map(<[_]>::len).collect();
        assert!(sizes.len() > 1, "{sizes:?}");
        assert_eq!(sizes.iter().sum::<usize>(), 50_000);
        assert!(
            sizes
                .iter()
                .all(|size| size * (path.as_str().len() + 9) <= ARGUMENTS_AT_MOST)
        );
        assert_eq!(batches(&[]).count(), 0);
    }

    #[test]
    fn only_a_pin_that_is_old_enough_is_pruned() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let now = seconds(SystemTime::now());
        for (name, until) in [
            ("eval-once-old", now - 5),
            ("eval-once-new", now + 1000),
            ("other", now - 5),
        ] {
            let pin = state.pins().join(name);
            fs::create_dir(&pin).unwrap();
            fs::write(pin.join("keep.json"), format!("{{\"until\":{until}}}")).unwrap();
        }
        fs::create_dir(state.pins().join("eval-once-begun")).unwrap();
        // One that is made anew just now is left to who makes it.
        let held = state.pins().join("eval-once-held");
        let lock = hold(&held).unwrap();
        fs::write(held.join("keep.json"), "{\"until\":1}").unwrap();
        assert_eq!(prune(&state), [state.pins().join("eval-once-old")]);
        let left = |name: &str| state.pins().join(name).exists();
        assert!(left("eval-once-new") && left("eval-once-begun") && left("other"));
        assert!(left("eval-once-held"));
        drop(lock);
        assert_eq!(prune(&state), [held]);
    }

    #[test]
    fn whoever_holds_a_pin_holds_the_folder_that_is_there() {
        use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

        /// Ends the threads also where an assertion fails: the scope would wait for them.
        struct Stops<'a>(&'a AtomicBool);
        impl Drop for Stops<'_> {
            fn drop(&mut self) {
                self.0.store(true, SeqCst);
            }
        }

        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let pin = state.pins().join("eval-once-x");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stops = Stops(&stop);
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(SeqCst) {
                        prune(&state);
                    }
                });
            }
            for _ in 0..500 {
                let _held = hold(&pin).unwrap();
                write_whole(&pin.join("keep.json"), b"{\"until\":1}").unwrap();
                fs::write(pin.join("pin"), "").unwrap();
                std::thread::yield_now();
                assert!(pin.join("pin").exists());
            }
        });
    }

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
