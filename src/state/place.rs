//! Whether the state folder is its user's alone: where it lies, whose it is, and who may look into it.
//!
//! Who may put another folder in its place would be asked for its roots, and could hold its locks. So the folders on the way to it are
//! looked at as the kernel looks at links in `/tmp` (`fs.protected_symlinks`): in a folder that every user may write to, only the sticky
//! bit keeps what is there, and only what belongs to this user, or to the folder's own, is followed. The owner of a folder on the way,
//! and its group, are trusted: they can do so whatever we look at.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use unix::unistd::geteuid;

use super::{BEFORE, COMMON, PARTS};
use crate::command_line::shell_word;
use crate::private;

/// How many links are followed on the way, as by the kernel.
const LINKS_AT_MOST: usize = 40;

const STICKY: u32 = 0o1000;
const WRITABLE_BY_ALL: u32 = 0o002;

/// Why a state folder is not used, and what mends it.
#[derive(Debug)]
pub struct UnusableState {
    why: String,
    mend: Option<String>,
}

impl UnusableState {
    /// The command that mends it, where there is one, as a part of a sentence that begins with a verb.
    #[must_use]
    pub fn mend(&self) -> Option<&str> {
        self.mend.as_deref()
    }

    pub(super) fn because(why: impl fmt::Display) -> Self {
        Self {
            why: why.to_string(),
            mend: None,
        }
    }
}

impl fmt::Display for UnusableState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl From<io::Error> for UnusableState {
    fn from(error: io::Error) -> Self {
        Self::because(error)
    }
}

/// Checks that no other user can put something else in the place of `folder`, whether it exists yet or not. (What cannot be looked at
/// cannot be used either, and says so itself.)
pub(super) fn check_way(folder: &Path) -> Result<(), UnusableState> {
    let mut rest = names(folder);
    let mut here = PathBuf::from("/");
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            here.pop();
            continue;
        }
        let Ok(parent) = here.symlink_metadata() else {
            return Ok(());
        };
        let next = here.join(&name);
        let entry = next.symlink_metadata().ok();
        check_entry(&here, &parent, &next, entry.as_ref())?;
        let Some(entry) = entry else {
            return Ok(());
        };
        if !entry.is_symlink() {
            here = next;
            continue;
        }
        links += 1;
        let Ok(target) = next.read_link() else {
            return Ok(());
        };
        if links > LINKS_AT_MOST {
            return Ok(());
        }
        if target.is_absolute() {
            here = PathBuf::from("/");
        }
        for name in names(&target).into_iter().rev() {
            rest.push_front(name);
        }
    }
    Ok(())
}

/// The names that a path consists of.
fn names(path: &Path) -> VecDeque<OsString> {
    let named = |part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(named).collect()
}

/// Checks that another user can neither replace `next` in the folder `here`, nor has made it there.
fn check_entry(
    here: &Path,
    parent: &Metadata,
    next: &Path,
    entry: Option<&Metadata>,
) -> Result<(), UnusableState> {
    let mode = parent.permissions().mode();
    if mode & WRITABLE_BY_ALL == 0 {
        return Ok(());
    }
    if mode & STICKY == 0 {
        return Err(UnusableState {
            why: format!(
                "every user of this host can replace it: {} is writable by all, and not sticky",
                here.display()
            ),
            mend: Some(format!("run `chmod +t {}`", word(here))),
        });
    }
    match entry.map(MetadataExt::uid) {
        Some(owner) if ![us(), 0, parent.uid()].contains(&owner) => {
            Err(belongs_to_another(next, owner))
        }
        _ => Ok(()),
    }
}

/// Checks that the folder belongs to this user, and closes it to others: whether it was open. A link to one is no folder of the state
/// folder's own.
pub(super) fn take(folder: &Path, may_be_link: bool) -> Result<bool, UnusableState> {
    let was_open = is_open(folder, may_be_link)?;
    private::set_folder_mode(folder).map_err(|error| UnusableState {
        why: format!("{} is open to other users: {error}", folder.display()),
        mend: Some(closed_by(folder)),
    })?;
    Ok(was_open)
}

/// Closes the files in a folder of this user's to others, as far as that is possible.
pub(super) fn close_files(folder: &Path) {
    for entry in folder.read_dir().into_iter().flatten().flatten() {
        if let Ok(file) = private::open(&entry.path()) {
            let _ = private::set_file_mode(&file);
        }
    }
}

/// Checks that an existing folder is one that may be closed to other users. One that is open to them, and has other files than ours, has
/// another use: `/tmp` or `/etc`, say.
pub(super) fn check_use(folder: &Path) -> Result<(), UnusableState> {
    if !is_open(folder, true)? {
        return Ok(());
    }
    let names: Vec<OsString> = folder
        .read_dir()?
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    // A file system that was just mounted there, for one (`tmpfs` makes a sticky folder).
    if names.is_empty() {
        return Ok(());
    }
    if is_sticky(folder)? {
        return Err(UnusableState::because(format_args!(
            "{} is for all users of this host: it is sticky",
            folder.display()
        )));
    }
    let is_part = |name: &OsString| {
        PARTS.iter().any(|part| name == part) || COMMON.iter().any(|kind| name == kind.folder())
    };
    let is_before = |name: &OsString| BEFORE.iter().any(|before| name == before);
    if names.iter().any(is_part) || names.iter().all(is_before) {
        return Ok(());
    }
    Err(UnusableState::because(format_args!(
        "{} is open to other users of this host, and has files that are not eval-once's",
        folder.display()
    )))
}

/// Whether a folder has the sticky bit, as one that many users share.
fn is_sticky(folder: &Path) -> io::Result<bool> {
    Ok(folder.metadata()?.permissions().mode() & STICKY != 0)
}

/// Whether a folder is open to other users.
///
/// # Errors
/// It is not this user's folder.
pub(super) fn is_open(folder: &Path, may_be_link: bool) -> Result<bool, UnusableState> {
    let metadata = if may_be_link {
        folder.metadata()?
    } else {
        folder.symlink_metadata()?
    };
    if !metadata.is_dir() {
        return Err(UnusableState::because(format_args!(
            "{} is not a folder",
            folder.display()
        )));
    }
    if metadata.uid() != us() {
        return Err(belongs_to_another(folder, metadata.uid()));
    }
    Ok(metadata.permissions().mode() & 0o777 & !private::FOLDER != 0)
}

/// Whether a folder's mode keeps its own user from it.
pub(super) fn is_withheld(folder: &Path) -> io::Result<bool> {
    Ok(folder.metadata()?.permissions().mode() & private::FOLDER != private::FOLDER)
}

/// How a folder is closed to other users.
pub(super) fn closed_by(folder: &Path) -> String {
    format!("run `chmod 0700 {}`", word(folder))
}

fn belongs_to_another(path: &Path, owner: u32) -> UnusableState {
    let us = us();
    UnusableState {
        why: format!(
            "{} belongs to the user {owner}, and this is the user {us}",
            path.display()
        ),
        mend: Some(format!("run `chown -Rh {us} {}` as root", word(path))),
    }
}

/// The user that makes files.
pub(super) fn us() -> u32 {
    geteuid().as_raw()
}

fn word(path: &Path) -> String {
    shell_word(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::symlink;

    fn set_mode(folder: &Path, mode: u32) {
        std::fs::set_permissions(folder, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_folder_that_every_user_can_replace_is_refused_with_the_command_that_mends_it() {
        let outer = private::temporary_folder(Path::new("/tmp"), "eo").unwrap();
        let open = outer.path().join("it's open");
        let state = open.join("a/state");
        std::fs::create_dir_all(&state).unwrap();
        check_way(&state).unwrap();
        // By a link, and by `..`.
        symlink("it's open/a", outer.path().join("link")).unwrap();
        let ways = [
            state.clone(),
            open.join("missing"),
            outer.path().join("link/state"),
            outer.path().join("link/../a/state"),
        ];
        for mode in [0o777, 0o707] {
            set_mode(&open, mode);
            for way in &ways {
                let refused = check_way(way).unwrap_err();
                assert!(
                    refused
                        .to_string()
                        .ends_with("is writable by all, and not sticky")
                );
                let mend = refused.mend().unwrap();
                assert!(mend.starts_with("run `chmod +t "), "{mend}");
                assert!(mend.contains(r"it'\''s open"), "{mend}");
            }
        }
        for mode in [0o1777, 0o775] {
            set_mode(&open, mode);
            for way in &ways {
                check_way(way).unwrap();
            }
        }
    }

    #[test]
    fn a_link_leads_up_from_where_it_is() {
        let outer = private::temporary_folder(Path::new("/tmp"), "eo").unwrap();
        let open = outer.path().join("open");
        std::fs::create_dir_all(open.join("x")).unwrap();
        std::fs::create_dir(outer.path().join("folder")).unwrap();
        let link = outer.path().join("folder/link");
        symlink("../open/x", &link).unwrap();
        check_way(&link.join("state")).unwrap();
        set_mode(&open, 0o777);
        let refused = check_way(&link.join("state")).unwrap_err().to_string();
        assert!(refused.contains(open.to_str().unwrap()), "{refused}");
    }

    #[test]
    fn what_cannot_be_followed_is_left_to_the_one_that_uses_it() {
        let outer = private::temporary_folder(Path::new("/tmp"), "eo").unwrap();
        let circle = outer.path().join("circle");
        symlink("circle", &circle).unwrap();
        check_way(&circle.join("state")).unwrap();
        assert!(private::make_folders(&circle.join("state")).is_err());
        let file = outer.path().join("file");
        std::fs::write(&file, "").unwrap();
        check_way(&file.join("state")).unwrap();
        assert!(take(&file, true).is_err());
    }

    #[test]
    fn an_open_folder_is_closed_and_a_link_is_no_folder_of_ours() {
        let outer = private::temporary_folder(Path::new("/tmp"), "eo").unwrap();
        let (folder, link) = (outer.path().join("folder"), outer.path().join("link"));
        std::fs::create_dir(&folder).unwrap();
        set_mode(&folder, 0o755);
        symlink("folder", &link).unwrap();
        assert!(take(&link, false).is_err());
        take(&link, true).unwrap();
        let mode = folder.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
