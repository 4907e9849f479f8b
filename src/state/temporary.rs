//! Folders in the host's folder for temporary files: what is in one is uploaded with the job's token, so no other user may be able to put
//! another folder in its place.

use std::fs::DirEntry;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::ours::is_ours;
use super::place::{UnusableState, check_way};
use crate::private;

/// How the names of these folders begin. It is longer than that of others: a state folder may lie in `/tmp` as well.
const PREFIX: &str = "eval-once-tmp-";

/// When such a folder has been left by a process that was killed: no command that reads one takes so long.
const LEFT: Duration = Duration::from_secs(24 * 60 * 60);

/// A folder below `temporary`, which is removed with this value. Those that killed processes have left are removed first.
///
/// # Errors
/// It cannot be made; or every user of the host could replace it.
pub fn temporary_folder(temporary: &Path) -> Result<TempDir, UnusableState> {
    check_temporary(temporary)?;
    sweep_temporary(temporary);
    Ok(private::temporary_folder(temporary, PREFIX)?)
}

/// Checks that no other user can replace what is made in this folder.
///
/// # Errors
/// One can.
pub fn check_temporary(temporary: &Path) -> Result<(), UnusableState> {
    check_way(&temporary.join(PREFIX))
}

/// Removes the folders that killed processes have left, a day later.
pub fn sweep_temporary(temporary: &Path) {
    let is_left = |entry: &DirEntry| {
        let written = entry.metadata().and_then(|it| it.modified()).ok();
        written.is_some_and(|written| written.elapsed().is_ok_and(|age| age > LEFT))
    };
    for entry in temporary.read_dir().into_iter().flatten().flatten() {
        if entry.file_name().as_bytes().starts_with(PREFIX.as_bytes())
            && is_ours(&entry)
            && is_left(&entry)
        {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, Permissions};
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::SystemTime;

    #[test]
    fn what_a_killed_process_has_left_is_removed_a_day_later() {
        let outer = private::temporary_folder(Path::new("/tmp"), "eo").unwrap();
        let of_name = |name: &str, age: Duration| {
            let folder = outer.path().join(name);
            private::make_folder(&folder).unwrap();
            private::write(&folder.join("pipeline.json"), b"{}").unwrap();
            let written = SystemTime::now() - age;
            File::open(&folder).unwrap().set_modified(written).unwrap();
            folder
        };
        let left = of_name("eval-once-tmp-abc", 2 * LEFT);
        let others = [
            of_name("eval-once-tmp-new", LEFT / 2),
            of_name("eval-once-state", 2 * LEFT),
            of_name("another", 2 * LEFT),
        ];
        let new = temporary_folder(outer.path()).unwrap();
        assert!(!left.exists() && others.iter().all(|it| it.exists()));
        assert!(new.path().is_dir());
    }

    #[test]
    fn a_folder_that_every_user_could_replace_is_not_made() {
        let outer = private::temporary_folder(Path::new("/tmp"), "eo").unwrap();
        for (mode, is_made) in [(0o777, false), (0o1777, true), (0o755, true)] {
            std::fs::set_permissions(outer.path(), Permissions::from_mode(mode)).unwrap();
            let made = temporary_folder(outer.path());
            assert_eq!(made.is_ok(), is_made, "{mode:o}");
            if let Err(refused) = made {
                assert!(refused.mend().unwrap().starts_with("run `chmod +t "));
            }
        }
    }
}
