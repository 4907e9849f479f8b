//! The host's state folder: turns to evaluate, and roots that must outlive a process or go with it.
//!
//! All steps of a host share it, and any of them may be killed at any time. So nothing here needs an orderly end: a turn is
//! a lock that the kernel gives back, and what a killed step left is swept by the next one.

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

/// The state folder of this host, known to be usable.
#[derive(Debug)]
pub struct StateFolder {
    folder: PathBuf,
}

/// A turn to evaluate. It is over when this is dropped, or its process dies.
#[derive(Debug)]
pub struct EvaluationSlot(#[expect(dead_code, reason = "holds a lock")] File);

/// A folder for roots that go with their process: when this is dropped, or by the next step's sweep.
#[derive(Debug)]
pub struct Roots {
    folder: TempDir,
    #[expect(dead_code, reason = "holds a lock, by which others see that we live")]
    lock: File,
}

/// How long the outputs of a step without an out-link are kept.
const OUTPUTS_ARE_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// A folder without a lock may be one whose owner has not come to locking it.
const TIME_TO_LOCK: Duration = Duration::from_secs(60);

impl StateFolder {
    /// Makes the state folder where it is missing.
    ///
    /// # Errors
    /// It cannot be made, or nothing can be made in it.
    pub fn open(folder: &Path) -> io::Result<Self> {
        // Nix prints paths below it, one on each line.
        if folder.as_os_str().as_bytes().contains(&b'\n') {
            return Err(io::Error::other("its name holds a line break"));
        }
        for part in ["turns", "roots", "outputs", "pins"] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(folder.join(part))?;
        }
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// A turn to evaluate, or none where `turns` steps have theirs already.
    ///
    /// # Errors
    /// The locks cannot be made.
    pub fn try_turn(&self, turns: usize) -> io::Result<Option<EvaluationSlot>> {
        for turn in 0..turns {
            let path = self.folder.join(format!("turns/{turn}.lock"));
            // One that another user has made can be locked all the same.
            let lock = File::open(&path).or_else(|_| File::create(&path))?;
            match lock.try_lock() {
                Ok(()) => return Ok(Some(EvaluationSlot(lock))),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Ok(None)
    }

    /// A folder for roots that nobody needs after this process. What killed steps have left is removed first.
    ///
    /// # Errors
    /// No link can be made there: the disk is full, or not ours to write.
    pub fn roots(&self) -> io::Result<Roots> {
        let roots = self.folder.join("roots");
        sweep_roots(&roots);
        let folder = folder_of_ours(&roots)?;
        let lock = File::create(folder.path().join("lock"))?;
        lock.lock()?;
        let roots = Roots { folder, lock };
        roots.probe()?;
        Ok(roots)
    }

    /// Removes what killed steps have left, and outputs whose day is over. Gives how many roots and how many outputs.
    #[must_use]
    pub fn sweep(&self) -> (usize, usize) {
        (
            sweep_roots(&self.folder.join("roots")),
            sweep(&self.folder.join("outputs"), OUTPUTS_ARE_KEPT, |_| true),
        )
    }

    /// The folder in which recordings keep their pins.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        self.folder.join("pins")
    }

    /// A folder for a link that keeps a step's outputs for a day, if the caller keeps it. Those of earlier days are removed
    /// first.
    ///
    /// # Errors
    /// Nothing can be made there.
    pub fn outputs(&self) -> io::Result<TempDir> {
        let outputs = self.folder.join("outputs");
        sweep(&outputs, OUTPUTS_ARE_KEPT, |_| true);
        let folder = folder_of_ours(&outputs)?;
        can_link_in(folder.path())?;
        Ok(folder)
    }
}

impl Roots {
    /// The path of the link that is the root.
    #[must_use]
    pub fn link(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// Looks whether a link can be made here now.
    ///
    /// # Errors
    /// It cannot: the disk is full.
    pub fn probe(&self) -> io::Result<()> {
        can_link_in(self.folder.path())
    }
}

/// What our folders are called: in a state folder that was given by mistake, nothing else is touched.
const PREFIX: &str = "eval-once-";

fn folder_of_ours(parent: &Path) -> io::Result<TempDir> {
    tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)
}

/// Looks whether a link can be made in `folder`, by making one as Nix does: with a long name, and leading far.
///
/// # Errors
/// It cannot.
pub fn can_link_in(folder: &Path) -> io::Result<()> {
    let probe = folder.join(format!(
        ".eval-once-probe.tmp-{}-0000000000",
        std::process::id()
    ));
    symlink(format!("/nix/store/{}", "0".repeat(120)), &probe)?;
    std::fs::remove_file(probe)
}

/// Removes the roots of killed steps.
fn sweep_roots(roots: &Path) -> usize {
    sweep(roots, TIME_TO_LOCK, |folder| {
        File::open(folder.join("lock")).map_or(true, |lock| lock.try_lock().is_ok())
    })
}

/// Removes the folders of ours in `parent` that have not changed for `age` and that are `abandoned`, and counts them. What
/// cannot be removed (by another user, say) is left to whoever can.
fn sweep(parent: &Path, age: Duration, abandoned: impl Fn(&Path) -> bool) -> usize {
    let Ok(entries) = parent.read_dir() else {
        return 0;
    };
    let mut removed = 0;
    for entry in entries.flatten() {
        let ours = entry.file_name().as_bytes().starts_with(PREFIX.as_bytes());
        // Of the entry itself: a link is no folder of ours, wherever it leads.
        let metadata = entry.metadata().ok().filter(std::fs::Metadata::is_dir);
        let changed = metadata.and_then(|metadata| metadata.modified().ok());
        let unchanged = changed.and_then(|changed| changed.elapsed().ok());
        if ours
            && unchanged.is_some_and(|unchanged| unchanged > age)
            && abandoned(&entry.path())
            && remove(&entry.path()).is_ok()
        {
            removed += 1;
        }
    }
    removed
}

/// Removes a folder of ours, which holds links and a lock, and no folders.
fn remove(folder: &Path) -> io::Result<()> {
    for entry in folder.read_dir()?.flatten() {
        std::fs::remove_file(entry.path())?;
    }
    std::fs::remove_dir(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::FileTimes;
    use std::time::SystemTime;

    #[test]
    fn there_are_only_so_many_turns_and_one_that_ends_is_free() {
        let folder = TempDir::new().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let first = state.try_turn(2).unwrap().unwrap();
        let _second = state.try_turn(2).unwrap().unwrap();
        assert!(state.try_turn(2).unwrap().is_none());
        drop(first);
        assert!(state.try_turn(2).unwrap().is_some());
    }

    #[test]
    fn the_roots_of_a_killed_step_are_swept_and_those_of_a_living_one_are_not() {
        let folder = TempDir::new().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let living = state.roots().unwrap();
        let killed = folder.path().join("roots/eval-once-killed");
        std::fs::create_dir(&killed).unwrap();
        std::fs::write(killed.join("lock"), "").unwrap();
        let long_ago = FileTimes::new().set_modified(SystemTime::now() - 2 * TIME_TO_LOCK);
        for folder in [killed.as_path(), living.folder.path()] {
            File::open(folder).unwrap().set_times(long_ago).unwrap();
        }
        let link = living.link();
        assert_eq!(state.sweep(), (1, 0));
        state.roots().unwrap();
        assert!(!killed.exists());
        assert!(link.parent().unwrap().exists());
        drop(living);
        assert!(!link.parent().unwrap().exists());
    }

    #[test]
    fn outputs_are_kept_for_a_day() {
        let folder = TempDir::new().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let old = state.outputs().unwrap().keep();
        let yesterday = FileTimes::new().set_modified(SystemTime::now() - 2 * OUTPUTS_ARE_KEPT);
        File::open(&old).unwrap().set_times(yesterday).unwrap();
        let other = folder.path().join("outputs/somebody-elses");
        std::fs::create_dir(&other).unwrap();
        File::open(&other).unwrap().set_times(yesterday).unwrap();
        let new = state.outputs().unwrap();
        assert!(!old.exists());
        assert!(other.exists());
        assert!(new.path().exists());
    }
}
