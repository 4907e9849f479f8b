//! The state folder as it is: looked at, and tried, without a change that remains.

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{PARTS, Roots, UnusableState, place};
use crate::private;

/// The state folder as it is.
#[derive(Debug, PartialEq, Eq)]
pub enum StateSight {
    /// It does not exist: the first step or recording makes it.
    Missing,
    /// It exists, and is its user's alone.
    Closed,
    /// This folder of it is open to other users; the next step or recording closes it.
    Open {
        /// The folder.
        folder: PathBuf,
        /// What closes it, as a part of a sentence that begins with a verb.
        mend: String,
    },
    /// This folder of it has a mode that lets its own user not use it; the next step or recording sets that right.
    Withheld {
        /// The folder.
        folder: PathBuf,
        /// What sets it right, as a part of a sentence that begins with a verb.
        mend: String,
    },
}

/// Looks at the state folder by the rules of [`super::StateFolder::open`], and changes nothing.
///
/// # Errors
/// A step or a recording could not use it.
pub fn inspect(folder: &Path) -> Result<StateSight, UnusableState> {
    if folder.as_os_str().as_bytes().contains(&b'\n') {
        return Err(UnusableState::because("its name contains a line break"));
    }
    place::check_way(folder)?;
    if folder
        .symlink_metadata()
        .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    {
        return Ok(StateSight::Missing);
    }
    place::check_use(folder)?;
    let parts = PARTS.map(|part| folder.join(part));
    let parts = parts
        .iter()
        .filter(|part| part.symlink_metadata().is_ok())
        .map(|part| (part.as_path(), false));
    for (part, may_be_link) in std::iter::once((folder, true)).chain(parts) {
        if place::is_open(part, may_be_link)? {
            return Ok(StateSight::Open {
                folder: part.to_owned(),
                mend: place::closed_by(part),
            });
        }
        if place::is_withheld(part)? {
            return Ok(StateSight::Withheld {
                folder: part.to_owned(),
                mend: place::closed_by(part),
            });
        }
    }
    Ok(StateSight::Closed)
}

/// When the latest of what lies in the state folder was written; none where nothing does.
#[must_use]
pub fn latest(folder: &Path) -> Option<(PathBuf, SystemTime)> {
    let parts = PARTS.map(|part| folder.join(part));
    let entries = parts
        .iter()
        .filter_map(|part| part.read_dir().ok())
        .flatten()
        .flatten();
    entries
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?.modified().ok()?)))
        .max_by_key(|(_, written)| *written)
}

/// A folder for a GC root on trial. With it go the folders that were made for it; where it is killed before, the next step removes it.
#[derive(Debug)]
pub struct TrialRoot {
    // Before `made`, so that it is dropped first.
    roots: Roots,
    #[expect(dead_code, reason = "removes folders when it is dropped")]
    made: MadeFolders,
}

/// Folders that were made, the outermost first. Those that are empty in the end are removed with this value.
#[derive(Debug)]
struct MadeFolders(Vec<PathBuf>);

impl TrialRoot {
    /// Makes one below the state folder.
    ///
    /// # Errors
    /// Nothing can be made there.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let roots = folder.join("roots");
        let mut made = MadeFolders(Vec::new());
        for folder in roots.ancestors().take_while(|folder| !folder.exists()) {
            made.0.insert(0, folder.to_owned());
        }
        private::make_folders(&roots)?;
        let roots = Roots::below(folder)?;
        Ok(Self { roots, made })
    }

    /// The path of the link that is the root.
    #[must_use]
    pub fn link(&self) -> PathBuf {
        self.roots.link()
    }

    /// When it was made, by the clock of the disk that it is on.
    ///
    /// # Errors
    /// It has gone.
    pub fn made_at(&self) -> io::Result<SystemTime> {
        self.roots.0.path().metadata()?.modified()
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StateFolder;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn looking_changes_nothing_and_a_trial_leaves_nothing() {
        let outer = private::temporary_folder(Path::new("/tmp"), "eo").unwrap();
        let state = outer.path().join("home/state");
        assert_eq!(inspect(&state).unwrap(), StateSight::Missing);
        let trial = TrialRoot::new(&state).unwrap();
        assert!(trial.link().parent().unwrap().is_dir());
        assert!(trial.made_at().unwrap().elapsed().unwrap().as_secs() < 60);
        drop(trial);
        assert_eq!(outer.path().read_dir().unwrap().count(), 0);
        StateFolder::open(&state).unwrap();
        assert_eq!(inspect(&state).unwrap(), StateSight::Closed);
        drop(TrialRoot::new(&state).unwrap());
        assert!(state.join("roots").is_dir());
        assert_eq!(state.join("roots").read_dir().unwrap().count(), 0);
    }

    #[test]
    fn an_open_folder_is_named_and_stays_open() {
        let outer = private::temporary_folder(Path::new("/tmp"), "eo").unwrap();
        let state = outer.path().join("state");
        StateFolder::open(&state).unwrap();
        let pins = state.join("pins");
        std::fs::set_permissions(&pins, Permissions::from_mode(0o755)).unwrap();
        for _ in 0..2 {
            match inspect(&state).unwrap() {
                StateSight::Open { folder, mend } => {
                    assert_eq!(folder, pins);
                    assert!(mend.starts_with("run `chmod 0700 "), "{mend}");
                }
                other => panic!("{other:?}"),
            }
        }
        std::fs::write(outer.path().join("file"), "").unwrap();
        assert!(inspect(&outer.path().join("file")).is_err());
    }

    #[test]
    fn a_folder_that_its_own_user_cannot_use_is_named_until_it_is_opened() {
        let outer = private::temporary_folder(Path::new("/tmp"), "eo").unwrap();
        let state = outer.path().join("state");
        StateFolder::open(&state).unwrap();
        for mode in [0o000, 0o500] {
            std::fs::set_permissions(&state, Permissions::from_mode(mode)).unwrap();
            match inspect(&state).unwrap() {
                StateSight::Withheld { folder, .. } => assert_eq!(folder, state),
                other => panic!("{other:?}"),
            }
            StateFolder::open(&state).unwrap();
            assert_eq!(inspect(&state).unwrap(), StateSight::Closed);
        }
    }

    #[test]
    fn the_latest_of_what_is_there_is_found() {
        let outer = private::temporary_folder(Path::new("/tmp"), "eo").unwrap();
        assert_eq!(latest(outer.path()), None);
        let state = StateFolder::open(outer.path()).unwrap();
        state.write_note("a", "").unwrap();
        let (file, _) = latest(outer.path()).unwrap();
        assert!(file.ends_with("notes/eval-once-a"), "{}", file.display());
    }
}
