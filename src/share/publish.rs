//! Publishing a share: what a recording does once it knows which targets get a step.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::known::KnownCopy;
use super::pack::{Archive, pack};
use super::sha256_of_name;
use crate::agent;
use crate::buildkite::agent as command;
use crate::counts::{mebibytes, number};
use crate::exit::{Class, Classify as _, Failure};
use crate::host::low_on_disk;
use crate::log::Log;
use crate::nix::{DrvPath, StorePath, StoreUrl};
use crate::private;
use crate::share_keys::Share;
use crate::state::StateFolder;
use crate::status_line::StatusLine;
use crate::store::{NotCopied, Store};
use crate::supervise::{PATIENCE, Supervisor};

/// How often the folder of an archive is measured, at most.
const MEASURE_EVERY: Duration = Duration::from_millis(500);

/// The slowest upload that is waited for, in bytes per second, besides [`PATIENCE`]. An agent does not say how far an upload is, so
/// that one that stands still cannot be told from a slow one.
const SLOWEST_UPLOAD: u64 = 1 << 20;

/// How many of the largest paths are named where there is too much to share.
const NAMED_AT_MOST: usize = 3;

/// What was shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Where steps find it.
    pub share: Share,
    /// How many bytes an archive unpacks to.
    pub unpacked: Option<u64>,
    /// What was done, in one line.
    pub sentence: String,
}

/// Why nothing was shared.
#[derive(Debug)]
pub enum NotShared {
    /// It failed, or would be too large.
    Because {
        /// The reason, as a clause.
        reason: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The recording ends: a signal asked us to.
    Stopped(Failure),
}

impl From<Failure> for NotShared {
    fn from(failure: Failure) -> Self {
        match failure.class {
            Class::Signal(_) | Class::Bug => Self::Stopped(failure),
            class => Self::Because {
                reason: failure.to_string(),
                // Its own hint says what to do about a recording that fails, and this one goes on.
                hint: (class == Class::MissingProgram)
                    .then(|| "put it on the job's PATH, or set `share: false`".into()),
            },
        }
    }
}

fn because(reason: impl Into<String>) -> NotShared {
    NotShared::Because {
        reason: reason.into(),
        hint: None,
    }
}

/// What publishing needs.
#[derive(Debug)]
pub struct ShareWriter<'a> {
    /// The `.drv`s that are shared, with all that they need to be realised.
    pub drvs: &'a [&'a DrvPath],
    /// The store that has them.
    pub store: &'a mut Store,
    /// Runs the programs.
    pub supervisor: &'a mut Supervisor,
    /// Where progress is shown.
    pub log: &'a Log,
}

impl ShareWriter<'_> {
    /// Copies into a store what it does not have. What this host has copied there lately is noted in `state`, and not asked for again.
    ///
    /// # Errors
    /// It fails, or does not move for [`PATIENCE`].
    pub fn to_store(
        &mut self,
        url: &StoreUrl,
        state: &StateFolder,
    ) -> Result<Published, NotShared> {
        let known = KnownCopy::new(state, url, self.drvs);
        let copied = if known.is_there() {
            0
        } else {
            let copied = self.copy(url, None, || true)?;
            let copied = copied.map_err(|why| cannot_copy(&url.to_string(), &why))?;
            known.note();
            usize::try_from(copied).unwrap_or(usize::MAX)
        };
        let targets = number(self.drvs.len(), "target");
        Ok(Published {
            share: Share::Store(url.clone()),
            unpacked: None,
            sentence: format!("shared {targets}: {url}, {}", number(copied, "new path")),
        })
    }

    /// Uploads an archive of at most `limit` bytes as an artifact of this job. Where `is_retry`, the one that an earlier try has
    /// uploaded is looked for first.
    ///
    /// # Errors
    /// It fails, does not move for [`PATIENCE`], or is larger.
    pub fn as_artifact(
        &mut self,
        limit: u64,
        is_retry: bool,
        temporary: &Path,
    ) -> Result<Published, NotShared> {
        let folder = plain_folder(temporary)?;
        let archive = self.archive(limit, folder.path());
        let archive = archive.map_err(|why| with_disk(why, folder.path()))?;
        let is_there = is_retry && self.is_uploaded(&archive.name)?;
        if !is_there {
            self.upload(&archive, folder.path())?;
        }
        let Archive {
            name,
            paths,
            size,
            unpacked,
        } = archive;
        let sentence = format!(
            "shared {} of {}: {name}, {}{}",
            number(paths, "path"),
            number(self.drvs.len(), "target"),
            mebibytes(size),
            if is_there {
                " (uploaded by an earlier try)"
            } else {
                ""
            }
        );
        Ok(Published {
            share: Share::Artifact(name),
            unpacked: Some(unpacked),
            sentence,
        })
    }

    /// Makes the archive in `folder`.
    fn archive(&mut self, limit: u64, folder: &Path) -> Result<Archive, NotShared> {
        let work = folder.join("work");
        let (cache, nix) = (work.join("cache"), work.join("nix"));
        private::make_folders(&nix).classify(Class::Infrastructure, cannot_pack)?;
        let (Some(to), Some(nix)) = (StoreUrl::of_folder(&cache), nix.to_str()) else {
            let folder = folder.display();
            return Err(because(format!("Nix cannot write a store at {folder}")));
        };
        let to = StoreUrl::parse(&format!("{to}?compression=zstd")).map_err(because)?;
        let mut size = ArchiveSize::new([cache.clone(), nix.into()]);
        let copied = self.copy(&to, Some(nix), || !size.is_beyond(limit))?;
        if copied == Err(NotCopied::Stopped) || size.measure() > limit {
            return Err(self.too_large(limit)?);
        }
        copied.map_err(|why| cannot_copy("an archive", &why))?;
        let supervisor = &mut *self.supervisor;
        let packed = pack(&cache, folder, &mut || supervisor.check().is_ok());
        self.supervisor.check()?;
        let archive = packed.classify(Class::Infrastructure, cannot_pack)?;
        // The disk may be small, and an upload may last long.
        let _ = fs::remove_dir_all(work);
        Ok(archive)
    }

    fn copy(
        &mut self,
        to: &StoreUrl,
        temporary: Option<&str>,
        goes_on: impl FnMut() -> bool,
    ) -> Result<Result<u64, NotCopied>, Failure> {
        self.store.copy_drvs_to(
            self.supervisor,
            to,
            self.drvs,
            temporary,
            "sharing",
            goes_on,
        )
    }

    /// Says what is large in what would be shared.
    fn too_large(&mut self, limit: u64) -> Result<NotShared, Failure> {
        let sizes = self.store.sizes_of_closure(self.supervisor, self.drvs)?;
        let all: u64 = sizes.values().sum();
        let mut sizes: Vec<(StorePath, u64)> = sizes.into_iter().collect();
        sizes.sort_by(|a, b| (b.1, a.0.as_str()).cmp(&(a.1, b.0.as_str())));
        let largest: Vec<String> = sizes
            .iter()
            .take(NAMED_AT_MOST)
            .map(|(path, size)| format!("{} ({})", path.as_str(), mebibytes(*size)))
            .collect();
        let mut reason = format!("they take more than {} compressed", mebibytes(limit));
        if !largest.is_empty() {
            reason = format!(
                "{reason}, and {} unpacked; the largest: {}",
                mebibytes(all),
                largest.join(", ")
            );
        }
        Ok(NotShared::Because {
            reason,
            hint: Some(
                "raise `share-limit` (in MiB), or keep large files out of what the targets use as source".into(),
            ),
        })
    }

    /// Whether an earlier try has uploaded this archive. Where that cannot be known, it has not.
    fn is_uploaded(&mut self, name: &str) -> Result<bool, Failure> {
        let line = command::sums_of_artifacts(name);
        let answer = agent::run_within(self.supervisor, &line, PATIENCE, || ())?;
        Ok(answer.is_some_and(|(finished, _)| {
            let sums = finished.text();
            let mut sums = sums.split(';').map(str::trim);
            finished.ending.success() && sums.any(|sum| Some(sum) == sha256_of_name(name))
        }))
    }

    fn upload(&mut self, archive: &Archive, folder: &Path) -> Result<(), NotShared> {
        let line = command::upload_artifact(folder, &archive.name);
        let patience = PATIENCE + Duration::from_secs(archive.size / SLOWEST_UPLOAD);
        let mut status = StatusLine::new(self.log);
        let began = Instant::now();
        let ran = agent::run_within(self.supervisor, &line, patience, || {
            status.show(|| {
                let seconds = began.elapsed().as_secs();
                Some(format!(
                    "sharing: uploading {}, {seconds} s",
                    mebibytes(archive.size)
                ))
            });
        });
        status.clear();
        let doing = "upload the archive";
        match ran? {
            Some((finished, _)) if finished.ending.success() => Ok(()),
            Some((finished, stderr)) => {
                Err(agent::unreachable(&line, &finished, &stderr, doing).into())
            }
            None => Err(because(format!(
                "cannot {doing}: {} took longer than {} s",
                mebibytes(archive.size),
                patience.as_secs()
            ))),
        }
    }
}

fn cannot_copy(to: &str, why: &NotCopied) -> NotShared {
    because(format!("cannot copy to {to}: {why}"))
}

/// Where it failed in a folder whose disk is low, that is added: a Nix that finds it full may say so, or abort (2.8).
fn with_disk(why: NotShared, folder: &Path) -> NotShared {
    match (why, low_on_disk(folder)) {
        (NotShared::Because { reason, hint: None }, Some(free)) => {
            let folder = folder.parent().unwrap_or(folder).display();
            because(format!("{reason} (the disk of {folder} has {free} free)"))
        }
        (why, _) => why,
    }
}

fn cannot_pack() -> String {
    "cannot pack the archive".into()
}

/// A temporary folder that Nix takes as a store: where the host's own is none, in `/tmp`.
fn plain_folder(temporary: &Path) -> Result<TempDir, Failure> {
    let is_usable = StoreUrl::of_folder(temporary).is_some();
    agent::folder(if is_usable {
        temporary
    } else {
        Path::new("/tmp")
    })
}

/// The size of an archive that grows.
struct ArchiveSize {
    /// The binary cache, and where Nix compresses what it moves there. (What is being moved may be in both.)
    folders: [PathBuf; 2],
    /// When it is measured next.
    due: Instant,
}

impl ArchiveSize {
    fn new(folders: [PathBuf; 2]) -> Self {
        Self {
            folders,
            due: Instant::now() + MEASURE_EVERY,
        }
    }

    /// Whether it has more than `limit` bytes, as far as it was measured now. Measuring takes at most a tenth of the time.
    fn is_beyond(&mut self, limit: u64) -> bool {
        let began = Instant::now();
        if began < self.due {
            return false;
        }
        let size = self.measure();
        self.due = Instant::now() + MEASURE_EVERY.max(began.elapsed() * 10);
        size > limit
    }

    fn measure(&self) -> u64 {
        // What is renamed meanwhile is counted the next time.
        let sizes = self
            .folders
            .iter()
            .map(|folder| size_of(folder).unwrap_or(0));
        sizes.max().unwrap_or(0)
    }
}

/// The size of all files in a folder, in bytes. One that is gone when it is looked at has none.
fn size_of(folder: &Path) -> io::Result<u64> {
    let mut size = 0;
    for entry in folder.read_dir()? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            size += size_of(&entry.path()).unwrap_or(0);
        } else {
            size += entry.metadata().map_or(0, |file| file.len());
        }
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_size_of_the_larger_of_its_folders_and_is_measured_when_that_is_due() {
        let root = TempDir::new().unwrap();
        let folders = ["cache", "nix"].map(|name| root.path().join(name));
        let mut size = ArchiveSize::new(folders.clone());
        assert_eq!(size.measure(), 0, "neither is there yet");
        fs::create_dir_all(folders[0].join("nar")).unwrap();
        fs::write(folders[0].join("a.narinfo"), "12").unwrap();
        fs::write(folders[0].join("nar/a"), "345").unwrap();
        fs::create_dir(&folders[1]).unwrap();
        fs::write(folders[1].join("b"), "1234").unwrap();
        assert_eq!(size.measure(), 5);
        fs::write(folders[1].join("c"), "56").unwrap();
        assert_eq!(size.measure(), 6);
        assert!(!size.is_beyond(5), "it is not due");
        for (limit, is_beyond) in [(5, true), (6, false)] {
            size.due = Instant::now();
            assert_eq!(size.is_beyond(limit), is_beyond, "{limit}");
        }
        assert!(size.due > Instant::now());
    }

    #[test]
    fn an_archive_is_made_where_nix_takes_the_name_of_the_folder() {
        let root = TempDir::new().unwrap();
        let made = plain_folder(root.path()).unwrap();
        assert_eq!(made.path().parent(), Some(root.path()));
        let spaced = root.path().join("a b");
        fs::create_dir(&spaced).unwrap();
        let made = plain_folder(&spaced).unwrap();
        assert_eq!(made.path().parent(), Some(Path::new("/tmp")));
    }

    #[test]
    fn a_failure_is_a_reason_not_to_share_and_a_signal_ends_the_recording() {
        let of = |class| NotShared::from(Failure::new(class, "x").hint("y"));
        assert!(matches!(of(Class::Signal(15)), NotShared::Stopped(_)));
        for (class, has_hint) in [
            (Class::Infrastructure, false),
            (Class::MissingProgram, true),
        ] {
            let NotShared::Because { reason, hint } = of(class) else {
                panic!("{class:?}")
            };
            assert_eq!((reason.as_str(), hint.is_some()), ("x", has_hint));
            assert_ne!(hint.as_deref(), Some("y"));
        }
    }
}
