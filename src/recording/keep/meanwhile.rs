//! Whether a folder has stayed as it was while it was evaluated, by what its disk says: not when files were written, which `git` and
//! others set as they like, but when they were last changed in any way, renamed and restored as well.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::exit::Failure;

/// What the folder of a repository is named in its checkout. Nothing of it is evaluated, and git writes in it.
const GIT: &str = ".git";

/// Why the folder may have held something else since `began`, as a sentence without a full stop; none where it has not. `goes_on` is
/// called for each folder in it.
///
/// # Errors
/// Those of `goes_on`.
pub(super) fn changed(
    folder: &Path,
    began: SystemTime,
    mut goes_on: impl FnMut() -> Result<(), Failure>,
) -> Result<Option<String>, Failure> {
    let mut waiting = vec![folder.to_owned()];
    while let Some(next) = waiting.pop() {
        goes_on()?;
        let unreadable =
            |error: io::Error| format!("{} cannot be looked at: {error}", next.display());
        match look(&next, began, &mut waiting) {
            Ok(None) => {}
            Ok(why) => return Ok(why),
            Err(error) => return Ok(Some(unreadable(error))),
        }
    }
    Ok(None)
}

/// Looks at one folder, and at what is in it; the folders in it are `waiting`.
fn look(
    folder: &Path,
    began: SystemTime,
    waiting: &mut Vec<PathBuf>,
) -> io::Result<Option<String>> {
    let was_changed = |path: &Path| {
        Some(format!(
            "{} was changed while it was recorded",
            path.display()
        ))
    };
    // Of what was removed or renamed, only its folder knows.
    if changed_at(&folder.metadata()?) >= since(began) {
        return Ok(was_changed(folder));
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name() == GIT {
            continue;
        }
        let (path, metadata) = (entry.path(), entry.metadata()?);
        if metadata.is_dir() {
            waiting.push(path);
        } else if changed_at(&metadata) >= since(began) {
            return Ok(was_changed(&path));
        }
    }
    Ok(None)
}

/// Seconds and nanoseconds since the epoch.
fn changed_at(metadata: &Metadata) -> (u64, u32) {
    let nanoseconds = u32::try_from(metadata.ctime_nsec()).unwrap_or_default();
    (
        u64::try_from(metadata.ctime()).unwrap_or_default(),
        nanoseconds,
    )
}

fn since(time: SystemTime) -> (u64, u32) {
    let time = time.duration_since(SystemTime::UNIX_EPOCH);
    time.map_or((0, 0), |it| (it.as_secs(), it.subsec_nanos()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;

    /// A checkout, and a time after everything in it was made by the clock of its disk.
    fn checkout() -> (TempDir, SystemTime) {
        let outer = TempDir::new().unwrap();
        let checkout = outer.path().join("checkout");
        for folder in ["a/b", "sub", ".git", "c"] {
            fs::create_dir_all(checkout.join(folder)).unwrap();
        }
        for file in [
            "a/b/file",
            "sub/lib.nix",
            "sub/.git",
            ".git/index",
            "c/lib.nix",
        ] {
            fs::write(checkout.join(file), "x").unwrap();
        }
        let mark = || {
            let mark = outer.path().join("mark");
            fs::write(&mark, "").unwrap();
            changed_at(&mark.metadata().unwrap())
        };
        // The clock of files stands still for some milliseconds.
        let made = mark();
        let began = loop {
            let now = mark();
            if now > made {
                break SystemTime::UNIX_EPOCH + Duration::new(now.0, now.1);
            }
        };
        (outer, began)
    }

    fn write(file: &Path) {
        fs::write(file, "x").unwrap();
    }

    #[test]
    fn whatever_was_changed_and_restored_is_seen() {
        type Change = fn(&Path);
        let changes: [(Option<&str>, Change); 7] = [
            (None, |_| {}),
            (None, |checkout| write(&checkout.join(".git/index"))),
            (Some("a/b/file"), |checkout| {
                write(&checkout.join("a/b/file"));
            }),
            (Some("sub/lib.nix"), |checkout| {
                write(&checkout.join("sub/lib.nix"));
            }),
            // Of what was there, only its folder knows.
            (Some("a"), |checkout| {
                write(&checkout.join("a/local.nix"));
                fs::remove_file(checkout.join("a/local.nix")).unwrap();
            }),
            // The files of a folder do not know that it was moved.
            (Some(""), |checkout| {
                fs::rename(checkout.join("c"), checkout.join("d")).unwrap();
                fs::rename(checkout.join("d"), checkout.join("c")).unwrap();
            }),
            // Whatever time it is given.
            (Some("c/lib.nix"), |checkout| {
                let long_ago = fs::FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
                let file = fs::File::open(checkout.join("c/lib.nix")).unwrap();
                file.set_times(long_ago).unwrap();
            }),
        ];
        for (expected, change) in changes {
            let (outer, began) = checkout();
            let checkout = outer.path().join("checkout");
            change(&checkout);
            let why = changed(&checkout, began, || Ok(())).unwrap();
            let expected = expected.map(|name| {
                let path = checkout.join(name).display().to_string();
                let path = path.trim_end_matches('/');
                format!("{path} was changed while it was recorded")
            });
            assert_eq!(why, expected);
        }
    }
}
