//! The host's state folder: evaluation slots, GC roots that outlive a process or end with it, and folders that one process fills
//! and others use (`common.rs`).
//!
//! All steps of a host share it, and any of them may be killed at any time. So nothing here needs an orderly end: an evaluation
//! slot is a lock that the kernel releases, and the next step removes the folders of a killed one.

mod common;
mod ours;
mod place;
mod sight;
mod temporary;
mod waiting;

use std::fs::{File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::{NamedTempFile, TempDir};

use crate::log::Log;
use crate::private;

pub use common::{CACHE, CommonFolder, CommonKind, FILLING, Filling, FolderInUse, KEEP_DAYS, Seen};
pub use ours::{LOCK, PREFIX, is_at, is_ours, open_lock, open_with_lock, remove_whole};
use ours::{folder_of_ours, is_file_of_ours};
pub use place::UnusableState;
pub use sight::{StateSight, TrialRoot, inspect, latest};
pub use temporary::{check_temporary, sweep_temporary, temporary_folder};
pub use waiting::{LockWait, holders};

/// The state folder of this host, known to be usable.
#[derive(Debug)]
pub struct StateFolder {
    folder: PathBuf,
    newly_closed: Option<PathBuf>,
}

/// An evaluation slot. It is free again when this is dropped, or its process dies.
#[derive(Debug)]
pub struct EvaluationSlot(#[expect(dead_code, reason = "holds a lock")] File);

/// A turn to copy into the store. It is over when this is dropped, or its process dies.
#[derive(Debug)]
pub struct CopyTurn(#[expect(dead_code, reason = "holds a lock")] File);

/// A folder that ends with its process: when this is dropped, or when another process sweeps.
#[derive(Debug)]
pub struct OwnFolder {
    folder: TempDir,
    #[expect(
        dead_code,
        reason = "holds a lock, which shows other processes that this one lives"
    )]
    lock: File,
}

/// A folder for GC roots that end with their process.
#[derive(Debug)]
pub struct Roots(OwnFolder);

/// A file that gets its place once it is complete. It ends with its process: when this is dropped, or when another process sweeps.
/// (It is locked from the beginning, which shows that process that this one lives.)
#[derive(Debug)]
pub struct TemporaryFile(NamedTempFile);

/// The folder of notes.
const NOTES: &str = "notes";

/// How long a note is kept, if its reader does not want a newer one.
pub const NOTES_LAST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How long the GC roots of a step without an out-link last.
const OUTPUTS_LAST: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a note may be, in bytes.
const NOTE_AT_MOST: u64 = 1 << 20;

/// The folder for what conversations with evaluators need.
const CONVERSATIONS: &str = "conversations";

/// The folder of files that are being written.
const TEMPORARY: &str = "temporary";

/// The folders that it always has.
const PARTS: [&str; 7] = [
    "turns",
    "roots",
    "outputs",
    "pins",
    CONVERSATIONS,
    NOTES,
    TEMPORARY,
];

/// The kinds of folders that it has where they are needed.
const COMMON: [CommonKind; 2] = [CommonKind::Checkout, CommonKind::Share];

/// What a folder may have before it is a state folder: the program, where the plugin's hook built it, and what a new file system has.
const BEFORE: [&str; 2] = ["bin", "lost+found"];

/// How long a folder or file may be without a lock: its owner may not have locked it yet.
const TIME_TO_LOCK: Duration = Duration::from_secs(60);

impl StateFolder {
    /// Makes the state folder where it is missing. It and what is in it are closed to other users, also where an earlier version has
    /// left them open.
    ///
    /// # Errors
    /// It cannot be made, or nothing can be made in it; or another user can get at it; or it is one that others use, which is not closed
    /// to them.
    pub fn open(folder: &Path) -> Result<Self, UnusableState> {
        // Nix prints paths below it, one a line.
        if folder.as_os_str().as_bytes().contains(&b'\n') {
            return Err(UnusableState::because("its name contains a line break"));
        }
        place::check_way(folder)?;
        private::make_folders(folder)?;
        place::check_use(folder)?;
        let mut newly_closed = None;
        let mut take = |folder: &Path, may_be_link| {
            let was_open = place::take(folder, may_be_link)?;
            if was_open {
                newly_closed.get_or_insert_with(|| folder.to_owned());
            }
            Ok::<_, UnusableState>(was_open)
        };
        take(folder, true)?;
        for part in PARTS {
            private::make_folders(&folder.join(part))?;
            let was_open = take(&folder.join(part), false)?;
            // A lock that was open is made anew instead, when it is used; and what else is there is a link, or a file beside a lock.
            if was_open && part == NOTES {
                place::close_files(&folder.join(part));
            }
        }
        for kind in COMMON {
            let part = folder.join(kind.folder());
            if part.symlink_metadata().is_ok() {
                take(&part, false)?;
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            newly_closed,
        })
    }

    /// Says that it was open to other users, where it was: some of them may have used it.
    pub fn say_if_newly_closed(&self, log: &Log) {
        if let Some(folder) = &self.newly_closed {
            log.warn(format_args!(
                "{} was open to other users of this host, and is closed to them now",
                folder.display()
            ));
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// What was noted under this name, if that is no older than `age`.
    #[must_use]
    pub fn note(&self, name: &str, age: Duration) -> Option<String> {
        let file = self.note_file(name);
        if is_older(&file, age) {
            return None;
        }
        private::read(&file, NOTE_AT_MOST).ok()
    }

    /// Notes something under a name, in place of an earlier note. Notes older than [`NOTES_LAST`] are removed.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_note(&self, name: &str, text: &str) -> io::Result<()> {
        let notes = self.folder.join(NOTES);
        for entry in notes.read_dir()?.flatten() {
            if is_file_of_ours(&entry) && is_older(&entry.path(), NOTES_LAST) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        self.write_whole(&self.note_file(name), text.as_bytes())
    }

    fn note_file(&self, name: &str) -> PathBuf {
        self.folder.join(NOTES).join(format!("{PREFIX}{name}"))
    }

    /// Writes a file below the state folder completely, or not at all.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_whole(&self, file: &Path, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.temporary_file(bytes)?;
        temporary.0.persist(file).map_err(|error| error.error)?;
        Ok(())
    }

    /// A file with this content. Those of killed processes are removed first.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn temporary_file(&self, bytes: &[u8]) -> io::Result<TemporaryFile> {
        let folder = self.folder.join(TEMPORARY);
        sweep_files(&folder);
        let mut file = private::temporary_file(&folder, PREFIX)?;
        // On a file system without locks none is ever swept.
        let _ = file.as_file().try_lock();
        file.write_all(bytes)?;
        Ok(TemporaryFile(file))
    }

    /// An evaluation slot, or none where all of these `slots` are in use.
    ///
    /// # Errors
    /// The locks cannot be made.
    pub fn try_evaluation_slot(&self, slots: usize) -> io::Result<Option<EvaluationSlot>> {
        for slot in 0..slots {
            let lock = open_lock(&self.evaluation_lock(slot))?;
            match lock.try_lock() {
                Ok(()) => return Ok(Some(EvaluationSlot(lock))),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The locks of these `slots`, for one that waits for them.
    #[must_use]
    pub fn evaluation_locks(&self, slots: usize) -> Vec<PathBuf> {
        (0..slots).map(|slot| self.evaluation_lock(slot)).collect()
    }

    fn evaluation_lock(&self, slot: usize) -> PathBuf {
        self.folder.join(format!("turns/{slot}.lock"))
    }

    /// The lock of the turns to copy.
    #[must_use]
    pub fn copy_lock(&self) -> PathBuf {
        self.folder.join("turns/copy.lock")
    }

    /// A turn to copy into the store, beside the other steps of this host or `alone`; none as long as another one's prevents it.
    ///
    /// # Errors
    /// The lock cannot be made.
    pub fn try_copy_turn(&self, alone: bool) -> io::Result<Option<CopyTurn>> {
        let lock = open_lock(&self.copy_lock())?;
        let locked = if alone {
            lock.try_lock()
        } else {
            lock.try_lock_shared()
        };
        match locked {
            Ok(()) => Ok(Some(CopyTurn(lock))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// A folder for GC roots that end with this process. Those of killed ones are removed first.
    ///
    /// # Errors
    /// No link can be made there: the disk is full, or not writable.
    pub fn roots(&self) -> io::Result<Roots> {
        Roots::below(&self.folder)
    }

    /// Removes the roots of killed processes, and the roots of outputs whose day is over: how many of each.
    #[must_use]
    pub fn sweep(&self) -> (usize, usize) {
        sweep_files(&self.folder.join(TEMPORARY));
        sweep_own(&self.folder.join(CONVERSATIONS));
        (
            sweep_own(&self.folder.join("roots")),
            sweep(&self.folder.join("outputs"), OUTPUTS_LAST, |_| true),
        )
    }

    /// The folder for the GC roots of pins.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        self.folder.join("pins")
    }

    /// The common folder of this kind and name, which begins with `eval-once-`. It is kept for `keep_days` after its last use; one
    /// that another process fills is waited for as long as that moves, with this `patience`.
    #[must_use]
    pub fn common(
        &self,
        kind: CommonKind,
        name: &str,
        keep_days: u64,
        patience: Duration,
    ) -> CommonFolder {
        let folder = self.folder.join(kind.folder()).join(name);
        CommonFolder::new(folder, keep_days, patience)
    }

    /// Removes the common folders of a kind that were not used for as long as they are kept, and counts them. What cannot be removed
    /// stays.
    #[must_use]
    pub fn sweep_common(&self, kind: CommonKind) -> usize {
        common::sweep(&self.folder.join(kind.folder()))
    }

    /// Removes common folders of a kind that nothing uses, the one whose last use is longest ago first, as long as the disk `is_low`;
    /// counts them.
    #[must_use]
    pub fn make_room(&self, kind: CommonKind, is_low: impl Fn() -> bool) -> usize {
        common::make_room(&self.folder.join(kind.folder()), is_low)
    }

    /// A folder for what a conversation with an evaluator needs; not in the host's folder for temporary files, which may be missing.
    /// Those of killed processes are removed first.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn conversation(&self) -> io::Result<OwnFolder> {
        own_folder(&self.folder.join(CONVERSATIONS))
    }

    /// A folder for a link that keeps a step's outputs for a day, unless it is dropped. Those of earlier days are removed first.
    ///
    /// # Errors
    /// No link can be made there.
    pub fn outputs(&self) -> io::Result<TempDir> {
        let outputs = self.folder.join("outputs");
        sweep(&outputs, OUTPUTS_LAST, |_| true);
        let folder = folder_of_ours(&outputs)?;
        can_link_in(folder.path())?;
        Ok(folder)
    }
}

/// Whether a file was written longer ago than that, or this is not known.
fn is_older(file: &Path, age: Duration) -> bool {
    age_of(file).is_none_or(|elapsed| elapsed > age)
}

/// How long ago a file was written; none where that is not known, as where the clock was set back since, or a file server's is fast.
fn age_of(file: &Path) -> Option<Duration> {
    let metadata = file.symlink_metadata().ok()?;
    metadata.modified().ok()?.elapsed().ok()
}

impl OwnFolder {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl TemporaryFile {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Roots {
    /// One below the state folder, whose folder for them exists.
    fn below(state: &Path) -> io::Result<Self> {
        let roots = Self(own_folder(&state.join("roots"))?);
        roots.probe()?;
        Ok(roots)
    }

    /// The path of the link that is the root.
    #[must_use]
    pub fn link(&self) -> PathBuf {
        self.0.path().join("root")
    }

    /// The path of the link that is the root with this number, for one who makes several.
    #[must_use]
    pub fn numbered(&self, number: u32) -> PathBuf {
        self.0.path().join(format!("root-{number}"))
    }

    /// The folder in which links are roots.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    /// Checks that a link can be made here now.
    ///
    /// # Errors
    /// It cannot be made: the disk is full.
    pub fn probe(&self) -> io::Result<()> {
        can_link_in(self.0.path())
    }
}

/// Checks that a link can be made in `folder`, by making one as Nix does: with a long name and a long target.
///
/// # Errors
/// It cannot be made.
pub fn can_link_in(folder: &Path) -> io::Result<()> {
    let probe = folder.join(format!(
        ".eval-once-probe.tmp-{}-0000000000",
        std::process::id()
    ));
    symlink(format!("/nix/store/{}", "0".repeat(120)), &probe)?;
    std::fs::remove_file(probe)
}

/// A folder in `parent` that ends with this process. Those of killed ones are removed first.
fn own_folder(parent: &Path) -> io::Result<OwnFolder> {
    sweep_own(parent);
    let folder = folder_of_ours(parent)?;
    let lock = open_lock(&folder.path().join(LOCK))?;
    lock.try_lock()?;
    Ok(OwnFolder { folder, lock })
}

/// Removes the folders of killed processes, and counts them.
fn sweep_own(parent: &Path) -> usize {
    sweep(parent, TIME_TO_LOCK, |folder| {
        private::open(&folder.join(LOCK)).map_or(true, |lock| lock.try_lock().is_ok())
    })
}

/// Removes the temporary files of killed processes.
fn sweep_files(folder: &Path) {
    for entry in folder.read_dir().into_iter().flatten().flatten() {
        let file = entry.path();
        if is_file_of_ours(&entry)
            && age_of(&file).is_some_and(|age| age > TIME_TO_LOCK)
            && let Ok(lock) = private::open(&file)
            && lock.try_lock().is_ok()
            // It may have got its place meanwhile.
            && is_at(&lock, &file)
        {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Removes our folders in `parent` that have not changed for `age` and are `abandoned`, and counts them. One that cannot be
/// removed (another user's, say) stays.
fn sweep(parent: &Path, age: Duration, abandoned: impl Fn(&Path) -> bool) -> usize {
    let Ok(entries) = parent.read_dir() else {
        return 0;
    };
    let mut removed = 0;
    for entry in entries.flatten() {
        if is_ours(&entry)
            && age_of(&entry.path()).is_some_and(|unchanged| unchanged > age)
            && abandoned(&entry.path())
            && std::fs::remove_dir_all(entry.path()).is_ok()
        {
            removed += 1;
        }
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{FileTimes, Permissions};
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::SystemTime;

    #[test]
    fn a_folder_that_others_use_is_refused_and_stays_as_it_is() {
        let mode = |folder: &Path| folder.metadata().unwrap().permissions().mode() & 0o7777;
        let open = |of: u32, files: &[&str]| {
            let outer = private::temporary_folder(Path::new("/tmp"), "eo").unwrap();
            let folder = outer.path().join("folder");
            for file in files {
                std::fs::create_dir_all(folder.join(file)).unwrap();
            }
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::set_permissions(&folder, Permissions::from_mode(of)).unwrap();
            let seen = inspect(&folder).map_err(|error| error.to_string());
            let opened = StateFolder::open(&folder).map_err(|error| error.to_string());
            assert_eq!(seen.is_err(), opened.is_err());
            let was_open = opened.map(|state| state.newly_closed.is_some());
            (was_open, mode(&folder), folder.read_dir().unwrap().count())
        };
        for (of, files, why) in [
            (0o1777, &["pins"][..], "it is sticky"),
            (0o1777, &["bin"], "it is sticky"),
            (0o755, &["hosts"], "has files that are not eval-once's"),
            (0o755, &["bin", "lib"], "has files that are not eval-once's"),
        ] {
            let (opened, mode, count) = open(of, files);
            let refused = opened.unwrap_err();
            assert!(refused.ends_with(why), "{refused}");
            assert_eq!((mode, count), (of, files.len()), "{files:?}");
        }
        for (of, files, was_open) in [
            (0o755, &[][..], true),
            (0o1777, &[], true),
            (0o2775, &["pins"], true),
            (0o755, &["bin"], true),
            (0o755, &["lost+found", "bin"], true),
            (0o700, &["hosts"], false),
            (0o500, &[], false),
        ] {
            let (opened, mode, _) = open(of, files);
            assert_eq!((opened, mode & 0o777), (Ok(was_open), 0o700), "{files:?}");
        }
    }

    #[test]
    fn there_are_only_so_many_evaluation_slots_and_a_dropped_one_is_free() {
        let folder = TempDir::new().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let first = state.try_evaluation_slot(2).unwrap().unwrap();
        let _second = state.try_evaluation_slot(2).unwrap().unwrap();
        assert!(state.try_evaluation_slot(2).unwrap().is_none());
        drop(first);
        assert!(state.try_evaluation_slot(2).unwrap().is_some());
    }

    #[test]
    fn a_copy_waits_for_one_that_must_be_alone_and_that_one_for_all() {
        let folder = TempDir::new().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let turn = |alone| state.try_copy_turn(alone).unwrap();
        let both = [turn(false).unwrap(), turn(false).unwrap()];
        assert!(turn(true).is_none());
        drop(both);
        let alone = turn(true).unwrap();
        assert!(turn(false).is_none() && turn(true).is_none());
        drop(alone);
        turn(false).unwrap();
    }

    #[test]
    fn the_roots_of_a_killed_step_are_removed_and_those_of_a_living_one_are_not() {
        let folder = TempDir::new().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let living = state.roots().unwrap();
        let killed = folder.path().join("roots/eval-once-killed");
        std::fs::create_dir(&killed).unwrap();
        std::fs::write(killed.join("lock"), "").unwrap();
        let long_ago = FileTimes::new().set_modified(SystemTime::now() - 2 * TIME_TO_LOCK);
        for folder in [killed.as_path(), living.0.path()] {
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
    fn what_a_killed_process_was_writing_is_removed_and_what_a_living_one_writes_is_not() {
        let folder = TempDir::new().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let long_ago = FileTimes::new().set_modified(SystemTime::now() - 2 * TIME_TO_LOCK);
        let age = |file: &Path| {
            let file = File::options().append(true).open(file).unwrap();
            file.set_times(long_ago).unwrap();
        };
        let living = state.temporary_file(b"living").unwrap();
        let killed = state.temporary_file(b"killed").unwrap();
        killed.0.as_file().unlock().unwrap();
        let new = state.temporary_file(b"new").unwrap();
        new.0.as_file().unlock().unwrap();
        age(living.path());
        age(killed.path());
        let thesis = folder.path().join(TEMPORARY).join("thesis.txt");
        std::fs::write(&thesis, "").unwrap();
        age(&thesis);
        state
            .write_whole(&folder.path().join("whole"), b"x")
            .unwrap();
        assert!(!killed.path().exists());
        assert!(living.path().exists() && new.path().exists());
        assert!(thesis.exists(), "it is not ours");
        std::fs::remove_file(thesis).unwrap();
        // The same for a conversation.
        let talking = state.conversation().unwrap();
        let ended = folder.path().join(CONVERSATIONS).join("eval-once-ended");
        // Nix makes folders in it.
        std::fs::create_dir_all(ended.join("nix")).unwrap();
        std::fs::write(ended.join("nix/repl-history"), "").unwrap();
        std::fs::write(ended.join(LOCK), "").unwrap();
        for folder in [talking.path(), &ended] {
            File::open(folder).unwrap().set_times(long_ago).unwrap();
        }
        let _other = state.conversation().unwrap();
        assert!(talking.path().exists() && !ended.exists());
        drop((living, killed, new));
        let left = folder.path().join(TEMPORARY).read_dir().unwrap();
        assert_eq!(left.count(), 0);
    }

    #[test]
    fn the_roots_of_outputs_last_for_a_day() {
        let folder = TempDir::new().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let old = state.outputs().unwrap().keep();
        let yesterday = FileTimes::new().set_modified(SystemTime::now() - 2 * OUTPUTS_LAST);
        File::open(&old).unwrap().set_times(yesterday).unwrap();
        let other = folder.path().join("outputs/somebody-elses");
        std::fs::create_dir(&other).unwrap();
        File::open(&other).unwrap().set_times(yesterday).unwrap();
        let new = state.outputs().unwrap();
        assert!(!old.exists());
        assert!(other.exists());
        assert!(new.path().exists());
    }

    #[test]
    fn a_note_is_read_until_it_is_too_old_and_removed_by_the_next() {
        const AGE: Duration = Duration::from_secs(60);
        let folder = TempDir::new().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        assert_eq!(state.note("a", AGE), None);
        state.write_note("a", "one").unwrap();
        state.write_note("a", "two").unwrap();
        assert_eq!(state.note("a", AGE).as_deref(), Some("two"));
        let file = folder.path().join("notes/eval-once-a");
        let age = |age| {
            let before = FileTimes::new().set_modified(SystemTime::now() - age);
            File::open(&file).unwrap().set_times(before).unwrap();
        };
        age(2 * AGE);
        assert_eq!(state.note("a", AGE), None);
        state.write_note("b", "").unwrap();
        assert!(file.exists(), "another reader may want it");
        age(NOTES_LAST + AGE);
        let diary = folder.path().join("notes/diary.md");
        std::fs::copy(&file, &diary).unwrap();
        let long_ago = file.metadata().unwrap().modified().unwrap();
        File::open(&diary).unwrap().set_modified(long_ago).unwrap();
        state.write_note("b", "").unwrap();
        assert!(!file.exists());
        assert!(diary.exists(), "it is not ours");
        assert_eq!(state.note("b", AGE).as_deref(), Some(""));
    }
}
