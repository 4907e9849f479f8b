//! Folders that one process fills and others use: a checkout, an unpacked archive.
//!
//! Such a folder holds a `lock` (whose time says when it was last used, or when filling it last moved), what it was made for in
//! `cache` (complete once it exists: it is made by a rename), and in between a folder of the process that fills it. That process,
//! or one that removes it, has the lock alone, those that use it have it together; each may be killed at any time.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::ours::{LOCK, is_at, is_ours, open_lock, open_with_lock, remove_whole};
use super::waiting::LockWait;
use crate::exit::Failure;
use crate::log::Log;
use crate::private;
use crate::supervise::Supervisor;

/// For how many days a folder is kept after its last use, where its user does not say.
pub const KEEP_DAYS: u64 = 3;

/// Where the disk is low, a folder goes that was not used for so long: a step that is about to use it has looked at it just now.
const UNUSED: Duration = Duration::from_secs(60);

const DAY: u64 = 24 * 60 * 60;

/// What a common folder was made for.
pub const CACHE: &str = "cache";
/// How the name of the folder begins that is being filled. A random part follows: programs that a killed process has started may go
/// on writing into theirs.
pub const FILLING: &str = "filling-";
/// Why filling it failed, for those that waited for it.
const FAILED: &str = "failed";
/// For how many days it is kept after its last use.
const DAYS: &str = "keep-days";
/// How long such a note may be, in bytes.
const NOTE_AT_MOST: u64 = 64 << 10;

/// What a common folder is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommonKind {
    /// A checkout that steps evaluate in.
    Checkout,
    /// An archive of `.drv`s that was unpacked.
    Share,
}

impl CommonKind {
    /// The folder of its kind in the state folder.
    #[must_use]
    pub fn folder(self) -> &'static str {
        match self {
            Self::Checkout => "checkouts",
            Self::Share => "shares",
        }
    }
}

/// A folder that is looked at until it can be used, or has to be filled.
#[derive(Debug)]
pub struct CommonFolder {
    folder: PathBuf,
    keep_days: u64,
    /// How long filling it may stand still.
    patience: Duration,
    waiting: Option<Waiting>,
}

/// What is known of the process that fills a folder.
#[derive(Debug)]
struct Waiting {
    /// When filling it last moved, by the time of the lock, and since when that is known.
    moved: Option<SystemTime>,
    since: Instant,
    /// The failure that was there before.
    failed: Option<(u64, SystemTime)>,
}

/// What a look at a folder has shown.
#[derive(Debug)]
pub enum Seen {
    /// It is complete.
    Complete(FolderInUse),
    /// It is ours to fill. Once that is [complete](Filling::complete), the next look shows it.
    Ours(Filling),
    /// Another process fills it, and stands still.
    Stalled,
    /// The process that we waited for could not fill it, for this reason.
    Failed(String),
}

/// A complete folder, which is not removed while this exists. What is in it is never changed.
#[derive(Debug)]
pub struct FolderInUse {
    cache: PathBuf,
    lock: File,
}

/// A folder that is ours to fill. Dropped, it is as if it had never been begun.
#[derive(Debug)]
pub struct Filling {
    folder: PathBuf,
    /// The folder to fill.
    new: PathBuf,
    lock: File,
}

/// Removes the common folders in `parent` that were not used for as long as they are kept, and counts them. What cannot be removed
/// stays.
pub(super) fn sweep(parent: &Path) -> usize {
    common_folders(parent)
        .filter(|folder| remove_unused(folder, false).unwrap_or(false))
        .count()
}

/// Removes common folders in `parent` that nothing uses, the one whose last use is longest ago first, as long as the disk `is_low`;
/// counts them.
pub(super) fn make_room(parent: &Path, is_low: impl Fn() -> bool) -> usize {
    if !is_low() {
        return 0;
    }
    let mut folders: Vec<_> = common_folders(parent)
        .filter_map(|folder| Some((used(&folder)?, folder)))
        .collect();
    folders.sort();
    let mut removed = 0;
    for (_, folder) in folders {
        if !is_low() {
            break;
        }
        removed += usize::from(remove_unused(&folder, true).unwrap_or(false));
    }
    removed
}

/// The common folders in `parent`.
fn common_folders(parent: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = parent.read_dir().into_iter().flatten().flatten();
    entries.filter(is_ours).map(|entry| entry.path())
}

/// When a common folder was last used.
fn used(folder: &Path) -> Option<SystemTime> {
    folder.join(LOCK).metadata().ok()?.modified().ok()
}

impl CommonFolder {
    pub(super) fn new(folder: PathBuf, keep_days: u64, patience: Duration) -> Self {
        Self {
            folder,
            keep_days,
            patience,
            waiting: None,
        }
    }

    /// Waits as long as another process fills the folder, and that moves; `busy` is called meanwhile. `what` is waited for.
    /// Dropped with the process, whatever this gives is free again.
    ///
    /// # Errors
    /// Inside, the folder cannot be made, or has no locks: another user's, a full disk. Outside, a signal asked us to end (128 + n).
    pub fn wait(
        &mut self,
        what: &str,
        supervisor: &mut Supervisor,
        log: &Log,
        mut busy: impl FnMut(),
    ) -> Result<io::Result<Seen>, Failure> {
        let lock = self.folder.join(LOCK);
        let mut wait = LockWait::new(what);
        loop {
            match self.look() {
                Ok(None) => {}
                Ok(Some(seen)) => return Ok(Ok(seen)),
                Err(error) => return Ok(Err(error)),
            }
            busy();
            wait.pause(&[&lock], supervisor, log)?;
        }
    }

    /// Looks at the folder; none where another process fills it, and it has to be looked at again in a moment.
    fn look(&mut self) -> io::Result<Option<Seen>> {
        loop {
            let lock = open_with_lock(&self.folder)?;
            let path = self.folder.join(LOCK);
            let cache = self.folder.join(CACHE);
            if cache.exists() {
                match lock.try_lock_shared() {
                    Ok(()) => {}
                    Err(TryLockError::WouldBlock) => return Ok(self.busy(&lock)),
                    Err(TryLockError::Error(error)) => return Err(error),
                }
                if is_at(&lock, &path) && cache.exists() {
                    lock.set_modified(SystemTime::now())?;
                    self.keep()?;
                    return Ok(Some(Seen::Complete(FolderInUse { cache, lock })));
                }
                continue;
            }
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(self.busy(&lock)),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            if !is_at(&lock, &path) || cache.exists() {
                continue;
            }
            return self.begin(lock).map(Some);
        }
    }

    /// The folder is empty, and the lock is ours.
    fn begin(&self, lock: File) -> io::Result<Seen> {
        let failed = self.folder.join(FAILED);
        if let Some(waiting) = &self.waiting
            && let Some(id) = id(&failed)
            && waiting.failed != Some(id)
        {
            return Ok(Seen::Failed(private::read(&failed, NOTE_AT_MOST)?));
        }
        // Of processes that were killed.
        for entry in self.folder.read_dir()?.flatten() {
            if entry.file_name().as_bytes().starts_with(FILLING.as_bytes()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        match fs::remove_file(failed) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let new = private::temporary_folder(&self.folder, FILLING)?;
        let filling = Filling {
            folder: self.folder.clone(),
            new: new.keep(),
            lock,
        };
        filling.note_movement();
        self.keep()?;
        Ok(Seen::Ours(filling))
    }

    /// Notes for how long the folder is kept: as long as the user of it that says most.
    fn keep(&self) -> io::Result<()> {
        if days(&self.folder) < Some(self.keep_days) {
            private::write(
                &self.folder.join(DAYS),
                self.keep_days.to_string().as_bytes(),
            )?;
        }
        Ok(())
    }

    /// Another process has the lock.
    fn busy(&mut self, lock: &File) -> Option<Seen> {
        let moved = lock.metadata().and_then(|it| it.modified()).ok();
        let now = Instant::now();
        let failed = || id(&self.folder.join(FAILED));
        let waiting = self.waiting.get_or_insert_with(|| Waiting {
            moved,
            since: now,
            failed: failed(),
        });
        if waiting.moved != moved {
            (waiting.moved, waiting.since) = (moved, now);
        }
        (waiting.since.elapsed() >= self.patience).then_some(Seen::Stalled)
    }
}

impl FolderInUse {
    /// The folder that was filled.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.cache
    }

    /// Removes the folder, which is of no use, unless another process uses it.
    pub fn discard(self) {
        // Not in one act: another may use it in between, and then this waits for nothing.
        if self.lock.try_lock().is_ok()
            && let Some(folder) = self.cache.parent()
            && is_at(&self.lock, &folder.join(LOCK))
        {
            let _ = remove_whole(folder);
        }
    }
}

impl Filling {
    /// The folder to fill.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.new
    }

    /// Tells those that wait that it goes on.
    pub fn note_movement(&self) {
        let _ = self.lock.set_modified(SystemTime::now());
    }

    /// The folder is complete, and free: it has to be looked at again, as by every other that uses it.
    ///
    /// # Errors
    /// It cannot be renamed.
    pub fn complete(self) -> io::Result<()> {
        fs::rename(self.path(), self.folder.join(CACHE))?;
        self.note_movement();
        Ok(())
    }

    /// The folder could not be filled. Those that wait for it fail for the same reason, and do not try it one after the other.
    pub fn fail(self, why: &str) {
        let _ = private::write(&self.folder.join(FAILED), why.as_bytes());
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.new);
    }
}

/// Removes a common folder where nothing uses it, and nothing has for as long as it is kept.
fn remove_unused(folder: &Path, low: bool) -> io::Result<bool> {
    let path = folder.join(LOCK);
    let is_due = || {
        let used = path.metadata().and_then(|it| it.modified()).ok();
        let unused = used.and_then(|used| used.elapsed().ok());
        let kept = days(folder).unwrap_or(KEEP_DAYS).saturating_mul(DAY);
        // Without a lock, a removal was cut short.
        !path.exists()
            || unused
                .is_some_and(|unused| unused > Duration::from_secs(kept) || low && unused > UNUSED)
    };
    if !is_due() {
        return Ok(false);
    }
    let existed = path.exists();
    let lock = open_lock(&path)?;
    if lock.try_lock().is_err() || !is_at(&lock, &path) || existed && !is_due() {
        return Ok(false);
    }
    remove_whole(folder)?;
    Ok(true)
}

/// For how many days a folder is kept, as far as that was noted.
fn days(folder: &Path) -> Option<u64> {
    let text = private::read(&folder.join(DAYS), NOTE_AT_MOST).ok()?;
    text.trim().parse().ok()
}

/// What tells a file from an earlier one of its name.
fn id(path: &Path) -> Option<(u64, SystemTime)> {
    let metadata = path.metadata().ok()?;
    Some((metadata.ino(), metadata.modified().ok()?))
}

#[cfg(test)]
mod tests {
    use std::fs::FileTimes;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    use tempfile::TempDir;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Ends the threads also where an assertion fails: the scope would wait for them.
    struct Stops<'a>(&'a AtomicBool);
    impl Drop for Stops<'_> {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }

    struct Host {
        folder: TempDir,
    }

    impl Host {
        fn new() -> Self {
            let folder = TempDir::new().unwrap();
            Self { folder }
        }

        fn common(&self) -> CommonFolder {
            CommonFolder::new(self.path(), KEEP_DAYS, PATIENCE)
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("checkouts/eval-once-x")
        }

        fn sweep(&self, low: bool) -> usize {
            let parent = self.folder.path().join("checkouts");
            sweep(&parent) + make_room(&parent, || low)
        }

        /// Makes as if it had not been used for so long.
        fn age(&self, age: Duration) {
            let then = FileTimes::new().set_modified(SystemTime::now() - age);
            let lock = open_lock(&self.path().join(LOCK)).unwrap();
            lock.set_times(then).unwrap();
        }

        fn fill(&self) -> FolderInUse {
            let mut common = self.common();
            let filling = ours(common.look().unwrap());
            fs::write(filling.path().join("file"), "x").unwrap();
            filling.complete().unwrap();
            complete(common.look().unwrap())
        }
    }

    fn ours(seen: Option<Seen>) -> Filling {
        match seen {
            Some(Seen::Ours(filling)) => filling,
            other => panic!("{other:?}"),
        }
    }

    fn complete(seen: Option<Seen>) -> FolderInUse {
        match seen {
            Some(Seen::Complete(in_use)) => in_use,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_stands_in_place_of_a_lock_is_an_error_at_once() {
        for link in [true, false] {
            let host = Host::new();
            fs::create_dir_all(host.path()).unwrap();
            let lock = host.path().join(LOCK);
            if link {
                std::os::unix::fs::symlink("/nowhere/at/all", &lock).unwrap();
            } else {
                unix::unistd::mkfifo(&lock, unix::sys::stat::Mode::S_IRWXU).unwrap();
            }
            assert!(host.common().look().is_err(), "link: {link}");
        }
    }

    #[test]
    fn one_fills_it_and_the_others_wait_and_use_it() {
        let host = Host::new();
        let filling = ours(host.common().look().unwrap());
        let mut other = host.common();
        assert!(other.look().unwrap().is_none());
        fs::write(filling.path().join("file"), "x").unwrap();
        filling.complete().unwrap();
        let first = complete(host.common().look().unwrap());
        let second = complete(other.look().unwrap());
        assert_eq!(first.path(), second.path());
        assert!(second.path().join("file").exists());
    }

    #[test]
    fn what_a_process_has_half_filled_is_filled_anew() {
        let host = Host::new();
        let filling = ours(host.common().look().unwrap());
        fs::write(filling.path().join("half"), "x").unwrap();
        // As where the process is killed: nothing is removed, and the lock is free.
        let killed = std::mem::ManuallyDrop::new(filling);
        killed.lock.unlock().unwrap();
        assert!(killed.path().join("half").exists());
        let filling = ours(host.common().look().unwrap());
        assert_eq!(filling.path().read_dir().unwrap().count(), 0);
        assert!(!killed.path().exists());
        let new = filling.path().to_owned();
        drop(filling);
        assert!(!new.exists());
    }

    #[test]
    fn those_that_waited_fail_with_the_one_that_filled_and_later_ones_try_again() {
        let host = Host::new();
        let mut others = [host.common(), host.common()];
        let filling = ours(host.common().look().unwrap());
        for other in &mut others {
            assert!(other.look().unwrap().is_none());
        }
        filling.fail("no route");
        for other in &mut others {
            let Some(Seen::Failed(why)) = other.look().unwrap() else {
                panic!()
            };
            assert_eq!(why, "no route");
        }
        let again = ours(host.common().look().unwrap());
        // This one waits for the second try, whatever the first one said.
        let mut third = host.common();
        assert!(third.look().unwrap().is_none());
        drop(again);
        ours(third.look().unwrap());
    }

    #[test]
    fn filling_that_stands_still_is_not_waited_for() {
        let host = Host::new();
        let filling = ours(host.common().look().unwrap());
        let mut other = CommonFolder {
            patience: Duration::ZERO,
            ..host.common()
        };
        assert!(matches!(other.look().unwrap(), Some(Seen::Stalled)));
        other.patience = PATIENCE;
        filling.note_movement();
        assert!(other.look().unwrap().is_none());
    }

    #[test]
    fn it_is_kept_for_days_after_its_last_use_and_while_it_is_used() {
        let host = Host::new();
        let sweep = |low| host.sweep(low);
        let in_use = host.fill();
        host.age(Duration::from_secs((KEEP_DAYS + 1) * DAY));
        assert_eq!(sweep(false), 0);
        drop(in_use);
        // Looked at is used.
        drop(host.common().look().unwrap());
        assert_eq!((sweep(false), sweep(true)), (0, 0));
        host.age(Duration::from_secs(DAY));
        assert_eq!(sweep(false), 0);
        assert_eq!(sweep(true), 1);
        assert!(!host.path().exists());
        drop(host.fill());
        host.age(Duration::from_secs((KEEP_DAYS + 1) * DAY));
        assert_eq!(sweep(false), 1);
        assert_eq!(host.path().parent().unwrap().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn the_user_that_keeps_it_longest_counts_and_nothing_of_others_is_removed() {
        let host = Host::new();
        drop(host.fill());
        let mut longer = CommonFolder {
            keep_days: 9,
            ..host.common()
        };
        drop(longer.look().unwrap());
        drop(host.common().look().unwrap());
        host.age(Duration::from_secs(8 * DAY));
        assert_eq!(host.sweep(false), 0);
        let other = host.folder.path().join("checkouts/somebody-elses");
        fs::create_dir(&other).unwrap();
        host.age(Duration::from_secs(10 * DAY));
        assert_eq!(host.sweep(false), 1);
        assert!(other.exists());
    }

    #[test]
    fn what_is_in_use_stays_whole_while_others_remove_all_that_is_not() {
        let host = Host::new();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stops = Stops(&stop);
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(SeqCst) {
                        host.sweep(true);
                    }
                });
            }
            let mut filled = 0;
            let deadline = Instant::now() + PATIENCE;
            let mut looks = 0;
            // Until something was removed as well: on a busy host, the threads may come late.
            while looks < 500 || filled < 2 {
                assert!(Instant::now() < deadline, "filled {filled} times");
                looks += 1;
                let in_use = match host.common().look().unwrap() {
                    Some(Seen::Complete(in_use)) => in_use,
                    Some(Seen::Ours(filling)) => {
                        filled += 1;
                        fs::write(filling.path().join("file"), "x").unwrap();
                        filling.complete().unwrap();
                        continue;
                    }
                    // One that removes it has the lock for a moment.
                    None => continue,
                    other => panic!("{other:?}"),
                };
                // As if it had been used long ago: nothing but its lock keeps it.
                let then = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
                in_use.lock.set_times(then).unwrap();
                std::thread::yield_now();
                assert!(in_use.path().join("file").exists());
            }
        });
    }

    #[test]
    fn what_another_one_uses_is_not_discarded() {
        let host = Host::new();
        let first = host.fill();
        let second = complete(host.common().look().unwrap());
        first.discard();
        assert!(second.path().join("file").exists());
        second.discard();
        assert!(!host.path().exists());
    }

    #[test]
    fn a_removal_that_was_cut_short_is_ended() {
        let host = Host::new();
        drop(host.fill());
        fs::remove_file(host.path().join(LOCK)).unwrap();
        assert_eq!(host.sweep(false), 1);
        assert!(!host.path().exists());
    }
}
