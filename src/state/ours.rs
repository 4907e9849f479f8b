//! Our folders in the state folder: how they differ from others, whether the lock of one is still its own, and how one is removed
//! that others may look for.

use std::fs::{self, DirBuilder, DirEntry, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use tempfile::TempDir;
use unix::fcntl::OFlag;

/// How the names of our folders begin: in a folder that was configured by mistake, nothing else is touched.
pub const PREFIX: &str = "eval-once-";

/// What lies in a folder of ours that others may use.
pub const LOCK: &str = "lock";

/// A new folder of ours.
pub(super) fn folder_of_ours(parent: &Path) -> io::Result<TempDir> {
    tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)
}

/// Whether this is a folder of ours, by its name. A link is not, wherever it leads.
#[must_use]
pub fn is_ours(entry: &DirEntry) -> bool {
    entry.file_name().as_bytes().starts_with(PREFIX.as_bytes())
        && entry.file_type().is_ok_and(|kind| kind.is_dir())
}

/// Makes a folder of ours where it is missing, with this mode, and opens its lock, which is not locked yet: it may be [another
/// one's](is_at) by then.
///
/// # Errors
/// It cannot be made.
pub fn open_with_lock(folder: &Path, mode: u32) -> io::Result<File> {
    loop {
        let created = DirBuilder::new().recursive(true).mode(mode).create(folder);
        match created {
            // It existed, and was removed before it could be seen that it is a folder.
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists
                    && folder.symlink_metadata().map_or(true, |it| it.is_dir()) =>
            {
                continue;
            }
            other => other?,
        }
        match open_lock(&folder.join(LOCK), mode) {
            // It was removed just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
    }
}

/// Opens the lock of a folder with this mode; it is made where it is missing. What stands in its place (a link, a pipe) is an error:
/// neither followed nor waited for.
///
/// # Errors
/// It can be neither opened nor made.
pub fn open_lock(lock: &Path, mode: u32) -> io::Result<File> {
    File::options()
        .create(true)
        .append(true)
        .mode(mode & 0o666)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(lock)
}

/// Whether an open file is the one that is at `path` now. Between opening a lock and having it, its folder may have been removed, and
/// made anew with another one.
#[must_use]
pub fn is_at(file: &File, path: &Path) -> bool {
    match (path.metadata(), file.metadata()) {
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
    fn a_folder_that_cannot_be_renamed_leaves_nothing_beside_it() {
        let parent = TempDir::new().unwrap();
        assert!(remove_whole(&parent.path().join("eval-once-gone")).is_err());
        assert_eq!(parent.path().read_dir().unwrap().count(), 0);
    }
}
