//! The pin: one small store file that refers to every recorded `.drv`, and the root that keeps it.
//!
//! The file is JSON, and each `.drv` path in it has plain string context: so its references are exactly the `.drv`s, and
//! nothing is built. It also says what was recorded, for the next recording of the same branch to compare with.

use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::asking::{ask_store, last_words, store_answers};
use super::{Build, Request, hash_of};
use crate::exit::{Class, Classify as _, Failure};
use crate::log::Log;
use crate::nix::{AttrPath, DrvPath, StorePath, command};
use crate::state::State;
use crate::supervise::{OnStop, Supervisor};

/// How often the pin is made, where a collection that was running already takes it.
const ATTEMPTS: u32 = 3;

/// How many bytes of paths one command gets. Linux takes two MiB of arguments and environment together.
const ARGUMENTS_AT_MOST: usize = 1 << 20;

/// What our folders are called: in a state folder that was given by mistake, nothing else is touched.
const PREFIX: &str = "eval-once-";

/// What a pin's file says.
#[derive(Debug, Serialize, Deserialize)]
struct Text {
    version: u32,
    /// The pipeline, or the checkout of a recording by hand.
    pipeline: String,
    branch: String,
    /// When it was made, in seconds since 1970.
    created: u64,
    targets: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    attr: Vec<String>,
    drv: String,
}

/// How long a pin is kept: this lies beside it.
#[derive(Debug, Serialize, Deserialize)]
struct Keep {
    /// Until when, in seconds since 1970.
    until: u64,
}

/// Whose pin it is.
#[derive(Debug)]
pub(super) struct Owner {
    pipeline: String,
    branch: String,
    folder: String,
}

impl Owner {
    /// A recording in a job has a pin of its own, which its retries replace; by hand, that of the same checkout and arguments
    /// is replaced.
    pub(super) fn of(request: &Request, build: Option<&Build>) -> Self {
        let (pipeline, branch, own) = match build {
            Some(build) => (
                build.pipeline.clone(),
                build.branch.clone(),
                format!("{}\0{}", build.build, build.step),
            ),
            None => (
                request.root.folder.to_string_lossy().into_owned(),
                String::new(),
                format!("{:?}\0{:?}", request.root, request.options),
            ),
        };
        let hash = hash_of([pipeline.as_str(), &branch, &own]);
        Self {
            pipeline,
            branch,
            folder: format!("{PREFIX}{hash}"),
        }
    }
}

/// What came of pinning.
#[derive(Debug)]
pub(super) enum Pinned {
    /// All of them are kept, by this file.
    Kept(StorePath),
    /// These are gone.
    Gone(Vec<DrvPath>),
}

/// Keeps the `.drv`s of `targets`; `beside` is done while Nix writes the pin.
///
/// # Errors
/// The state folder or the store fails (75).
pub(super) fn pin(
    targets: &[(&AttrPath, &DrvPath)],
    owner: &Owner,
    request: &Request,
    state: &State,
    supervisor: &mut Supervisor,
    log: Log,
    beside: impl FnOnce(),
) -> Result<Pinned, Failure> {
    let folder = state.pins().join(&owner.folder);
    let in_state = || format!("cannot keep a pin in {}", folder.display());
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&folder)
        .classify(Class::Surroundings, in_state)?;
    let now = seconds(SystemTime::now());
    let until = now + u64::from(request.keep_days) * 24 * 60 * 60;
    let keep = serde_json::to_vec(&Keep { until })
        .classify(Class::Bug, || "cannot write how long a pin is kept".into())?;
    write_whole(&folder.join("keep.json"), &keep).classify(Class::Surroundings, in_state)?;

    let mut json =
        tempfile::NamedTempFile::new_in(&folder).classify(Class::Surroundings, in_state)?;
    json.write_all(&text_of(targets, owner, now)?)
        .classify(Class::Surroundings, in_state)?;
    let write = command::write_pin(json.path(), &request.options);
    let mut beside = Some(beside);
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
                let (_, message) = last_words(&said, written.ending);
                return Err(Failure::new(
                    Class::Surroundings,
                    format_args!("cannot write the pin: {message}"),
                ));
            }
            return Ok(Pinned::Gone(gone));
        }
        let printed = written.text();
        let pin = StorePath::parse(printed.trim_matches('"'))
            .map_err(|wrong| anyhow::anyhow!("{wrong}: {printed}"))
            .classify(Class::Bug, || format!("cannot read what `{write}` printed"))?;
        let link = folder.join("pin");
        let root = command::obtain(&[&pin], Some(&link), &request.options);
        let mut said = Vec::new();
        let rooted = supervisor.run(&root, OnStop::Term, &mut said)?;
        // A collection that was running already may have taken it all the same.
        let there = invalid(&[&pin], &request.options, supervisor)?.is_empty();
        if rooted.ending.success() && there {
            look_at_root(&pin, &link, request, supervisor, log)?;
            return Ok(Pinned::Kept(pin));
        }
        if there {
            let (_, message) = last_words(&said, rooted.ending);
            return Err(Failure::new(
                Class::Surroundings,
                format_args!("cannot root the pin at {}: {message}", link.display()),
            ));
        }
    }
    Err(Failure::new(
        Class::Surroundings,
        format_args!("the garbage collector took the pin {ATTEMPTS} times"),
    )
    .hint("let the collector run less often, or while nothing is recorded"))
}

/// In a container whose folders the daemon does not see, the root is none: the next collection takes everything.
fn look_at_root(
    pin: &StorePath,
    link: &Path,
    request: &Request,
    supervisor: &mut Supervisor,
    log: Log,
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
    owner: &Owner,
    created: u64,
) -> Result<Vec<u8>, Failure> {
    #[derive(Serialize)]
    struct Told<'a> {
        text: String,
        drvs: Vec<&'a DrvPath>,
    }
    let text = Text {
        version: 1,
        pipeline: owner.pipeline.clone(),
        branch: owner.branch.clone(),
        created,
        targets: targets
            .iter()
            .map(|(attr, drv)| Entry {
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
pub(super) fn invalid(
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
pub(super) fn batches<'a, 'p>(
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

/// What the newest recording of the same branch has found whose pin is still there. Asked before the new one is made.
pub(super) fn previous(owner: &Owner, state: &State) -> Option<Vec<(AttrPath, String)>> {
    let entries = state.pins().read_dir().ok()?.flatten();
    let texts = entries.filter_map(|entry| {
        let text = fs::read(entry.path().join("pin")).ok()?;
        serde_json::from_slice::<Text>(&text).ok()
    });
    let newest = texts
        .filter(|text| text.pipeline == owner.pipeline && text.branch == owner.branch)
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
pub(super) fn prune(state: &State) -> Vec<PathBuf> {
    let Ok(entries) = state.pins().read_dir() else {
        return Vec::new();
    };
    let now = seconds(SystemTime::now());
    let mut removed = Vec::new();
    for entry in entries.flatten() {
        let folder = entry.path();
        let ours = entry.file_name().as_bytes().starts_with(PREFIX.as_bytes())
            && entry.file_type().is_ok_and(|kind| kind.is_dir());
        if ours
            && until(&folder).is_some_and(|until| until < now)
            && fs::remove_dir_all(&folder).is_ok()
        {
            removed.push(folder);
        }
    }
    removed
}

/// Until when a pin is kept; one that does not say so is being made, or was left when that was cut short.
fn until(folder: &Path) -> Option<u64> {
    let said = fs::read(folder.join("keep.json"))
        .ok()
        .and_then(|text| serde_json::from_slice::<Keep>(&text).ok());
    match said {
        Some(Keep { until }) => Some(until),
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
        let state = State::open(folder.path()).unwrap();
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
        assert_eq!(prune(&state), [state.pins().join("eval-once-old")]);
        let left = |name: &str| state.pins().join(name).exists();
        assert!(left("eval-once-new") && left("eval-once-begun") && left("other"));
    }
}
