//! Our folders in the state folder: how they differ from others, whether the lock of one is still its own, and how one is removed
//! that others may look for.

use std::fs::{self, DirEntry, File, Metadata, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use tempfile::TempDir;
use unix::fcntl::OFlag;

use super::place::us;
use crate::private;

/// How the names of our folders and files begin: in a folder that was configured by mistake, nothing else is touched.
pub const PREFIX: &str = "eval-once-";

/// What lies in a folder of ours that others may use.
pub const LOCK: &str = "lock";

/// How often a lock is made anew before that is given up: once is enough, unless the file system has no modes.
const ATTEMPTS: usize = 3;

/// A new folder of ours.
pub(super) fn folder_of_ours(parent: &Path) -> io::Result<TempDir> {
    private::temporary_folder(parent, PREFIX)
}

/// Whether this is a folder of ours, by its name and its owner. A link is not, wherever it leads.
#[must_use]
pub fn is_ours(entry: &DirEntry) -> bool {
    is_named_and_owned(entry, Metadata::is_dir)
}

/// The same for a file.
pub(super) fn is_file_of_ours(entry: &DirEntry) -> bool {
    is_named_and_owned(entry, Metadata::is_file)
}

fn is_named_and_owned(entry: &DirEntry, is_kind: fn(&Metadata) -> bool) -> bool {
    entry.file_name().as_bytes().starts_with(PREFIX.as_bytes())
        && entry
            .metadata()
            .is_ok_and(|entry| is_kind(&entry) && entry.uid() == us())
}

/// Makes a folder of ours where it is missing, and opens its lock, which is not locked yet: it may be [another one's](is_at) by then.
///
/// # Errors
/// It cannot be made, or is another user's.
pub fn open_with_lock(folder: &Path) -> io::Result<File> {
    loop {
        let opened = open_or_make(folder).and_then(|()| open_lock(&folder.join(LOCK)));
        match opened {
            // It existed, and was removed before it could be opened.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists
                    && folder.symlink_metadata().is_err() => {}
            opened => return opened,
        }
    }
}

/// Makes a folder of ours where it is missing, and closes one that an earlier version has left open.
fn open_or_make(folder: &Path) -> io::Result<()> {
    private::make_folders(folder)?;
    let metadata = folder.symlink_metadata()?;
    if !metadata.is_dir() {
        return Err(io::Error::other("it is not a folder"));
    }
    check_owner(&metadata)?;
    private::set_folder_mode(folder)
}

/// Opens a lock; it is made where it is missing. What stands in its place (a link, a pipe, a file of another user) is an error: neither
/// followed nor waited for. One that others can open is made anew: an earlier version has made it, and another user may have the lock.
///
/// # Errors
/// It can be neither opened nor made.
pub fn open_lock(lock: &Path) -> io::Result<File> {
    for _ in 0..ATTEMPTS {
        let opened = File::options()
            .create(true)
            .append(true)
            .mode(private::FILE)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(lock);
        let file = match opened {
            // Between being made at a umask that forbids all, and getting its mode.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && is_closed(lock) => {
                fs::set_permissions(lock, Permissions::from_mode(private::FILE))?;
                continue;
            }
            opened => opened?,
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("the lock is not a file"));
        }
        check_owner(&metadata)?;
        let is_open = metadata.mode() & 0o077 != 0;
        if !is_open {
            private::set_file_mode(&file)?;
            return Ok(file);
        }
        if is_at(&file, lock) {
            let _ = fs::remove_file(lock);
        }
    }
    Err(io::Error::other("the lock is open to other users"))
}

/// Whether this is a file of ours that no user can open.
fn is_closed(lock: &Path) -> bool {
    lock.symlink_metadata()
        .is_ok_and(|lock| lock.is_file() && lock.uid() == us() && lock.mode() & 0o600 != 0o600)
}

fn check_owner(metadata: &Metadata) -> io::Result<()> {
    if metadata.uid() == us() {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "it belongs to the user {}",
            metadata.uid()
        )))
    }
}

/// Whether an open file is the one that is at `path` now. Between opening a lock and having it, its folder may have been removed, and
/// made anew with another one.
#[must_use]
pub fn is_at(file: &File, path: &Path) -> bool {
    match (path.symlink_metadata(), file.metadata()) {
        (Ok(at_path), Ok(opened)) => (at_path.dev(), at_path.ino()) == (opened.dev(), opened.ino()),
        _ => false,
    }
}

/// Removes a folder of ours whose lock the caller has. Removing takes a while, and goes by files: one that finds the folder without its
/// lock would make a lock, and take the rest as its own. So it gets another name first; what remains under that where this is cut
/// short is removed as any other folder of ours.
///
/// # Errors
/// It cannot be renamed, and is there as before; or not all of it can be removed.
pub fn remove_whole(folder: &Path) -> io::Result<()> {
    let place = folder_of_ours(folder.parent().unwrap_or(folder))?;
    // Onto an empty folder, in one act.
    fs::rename(folder, place.path())?;
    place.close()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_place_of_a_folder_or_is_of_another_user_is_not_used() {
        let parent = TempDir::new().unwrap();
        let folder = parent.path().join("eval-once-x");
        fs::create_dir(parent.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(parent.path().join("elsewhere"), &folder).unwrap();
        assert!(open_with_lock(&folder).is_err(), "it is a link");
        fs::remove_file(&folder).unwrap();
        open_with_lock(&folder).unwrap();
        if !unix::unistd::geteuid().is_root() {
            return;
        }
        let other = Some(us() + 1);
        for place in [folder.join(LOCK), folder.clone()] {
            std::os::unix::fs::chown(&place, other, None).unwrap();
            assert!(open_with_lock(&folder).is_err(), "{}", place.display());
            std::os::unix::fs::chown(&place, Some(us()), None).unwrap();
        }
        let of_us = || {
            let mut entries = parent.path().read_dir().unwrap().flatten();
            entries.any(|entry| is_ours(&entry))
        };
        assert!(of_us());
        std::os::unix::fs::chown(&folder, other, None).unwrap();
        assert!(!of_us());
    }

    #[test]
    fn a_lock_that_was_made_anew_is_another_one() {
        let parent = TempDir::new().unwrap();
        let folder = parent.path().join("eval-once-x");
        let lock = folder.join("lock");
        let make = || {
            fs::create_dir(&folder).unwrap();
            File::create(&lock).unwrap()
        };
        let first = make();
        assert!(is_at(&first, &lock));
        remove_whole(&folder).unwrap();
        assert!(!is_at(&first, &lock));
        assert_eq!(parent.path().read_dir().unwrap().count(), 0);
        let second = make();
        assert!(is_at(&second, &lock) && !is_at(&first, &lock));
    }

    #[test]
    fn a_lock_that_others_can_open_is_made_anew_and_one_that_none_can_is_opened() {
        let parent = private::temporary_folder(Path::new("/tmp"), "eo").unwrap();
        let folder = parent.path().join("pins/eval-once-x");
        let lock = folder.join(LOCK);
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
        drop(open_with_lock(&folder).unwrap());
        for (open, folder_mode) in [(0o644, 0o755), (0o666, 0o777), (0o000, 0o000)] {
            fs::set_permissions(&lock, Permissions::from_mode(open)).unwrap();
            // Another user has it open.
            let others = File::open(&lock).ok();
            fs::set_permissions(&folder, Permissions::from_mode(folder_mode)).unwrap();
            let ours = open_with_lock(&folder).unwrap();
            assert_eq!((mode(&folder), mode(&lock)), (0o700, 0o600));
            assert!(is_at(&ours, &lock));
            if open & 0o077 != 0 {
                assert!(!is_at(&others.unwrap(), &lock), "{open:o}");
            }
        }
    }

    #[test]
    fn a_folder_that_cannot_be_renamed_leaves_nothing_beside_it() {
        let parent = TempDir::new().unwrap();
        assert!(remove_whole(&parent.path().join("eval-once-gone")).is_err());
        assert_eq!(parent.path().read_dir().unwrap().count(), 0);
    }
}
