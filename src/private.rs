//! Files and folders that are their user's alone, whatever the umask.
//!
//! The system takes the umask's bits away from the mode that something is made with. So what is made here is not open to others for a
//! moment, at umask 000 neither; and where the umask takes it away from its own user (0777), the mode is set right at once.
//!
//! This module does not know what it makes the files for.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use tempfile::{NamedTempFile, TempDir};
use unix::fcntl::OFlag;

/// The mode of a folder.
pub const FOLDER: u32 = 0o700;

/// The mode of a file.
pub const FILE: u32 = 0o600;

/// A folder with a random name in `parent`, which is removed with this value.
///
/// # Errors
/// It cannot be made.
pub fn temporary_folder(parent: &Path, prefix: &str) -> io::Result<TempDir> {
    // `tempfile` itself leaves the mode to the umask.
    let folder = tempfile::Builder::new()
        .prefix(prefix)
        .permissions(Permissions::from_mode(FOLDER))
        .tempdir_in(parent)?;
    set_folder_mode(folder.path())?;
    Ok(folder)
}

/// A file with a random name in `folder`, which is removed with this value.
///
/// # Errors
/// It cannot be made.
pub fn temporary_file(folder: &Path, prefix: &str) -> io::Result<NamedTempFile> {
    let file = tempfile::Builder::new()
        .prefix(prefix)
        .permissions(Permissions::from_mode(FILE))
        .tempfile_in(folder)?;
    set_file_mode(file.as_file())?;
    Ok(file)
}

/// Makes a folder that does not exist.
///
/// # Errors
/// It exists, or cannot be made.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().mode(FOLDER).create(folder)?;
    set_folder_mode(folder)
}

/// Makes a folder where it is missing, and its parents.
///
/// # Errors
/// It cannot be made.
pub fn make_folders(folder: &Path) -> io::Result<()> {
    match make_or_find(folder) {
        // Not everything that is missing has a parent that is: nothing can be made in `/proc`.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = folder.parent().filter(|parent| !parent.exists());
            make_folders(parent.ok_or(error)?)?;
            make_or_find(folder)
        }
        made => made,
    }
}

/// Makes a folder, unless it exists: another process may have made it meanwhile.
fn make_or_find(folder: &Path) -> io::Result<()> {
    match make_folder(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        made => made,
    }
}

/// Opens a file for writing that is made where it is missing, and empty. A link in its place is an error.
///
/// # Errors
/// It cannot be made.
pub fn create(file: &Path) -> io::Result<File> {
    let file = File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(FILE)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(file)?;
    set_file_mode(&file)?;
    Ok(file)
}

/// Writes a file, in place of its content.
///
/// # Errors
/// It cannot be written.
pub fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
    create(file)?.write_all(bytes)
}

/// Opens a file for reading. What is none (a link, a pipe that no process writes to) is an error at once.
///
/// # Errors
/// It cannot be opened, or is no file.
pub fn open(file: &Path) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(file)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is not a file"))
    }
}

/// Reads a file of at most so many bytes as text, as [`open`] opens it.
///
/// # Errors
/// It cannot be opened, is no file, is longer, or is no text.
pub fn read(file: &Path, at_most: u64) -> io::Result<String> {
    let mut text = String::new();
    open(file)?.take(at_most + 1).read_to_string(&mut text)?;
    if text.len() as u64 > at_most {
        return Err(io::Error::other(format!(
            "it has more than {at_most} bytes"
        )));
    }
    Ok(text)
}

/// Takes a file's other rights away, and gives its user the ones that a strange umask has withheld. What is no file (`/dev/null`) stays
/// as it is.
///
/// # Errors
/// The system refuses.
pub fn set_file_mode(file: &File) -> io::Result<()> {
    let metadata = file.metadata()?;
    if metadata.is_file() && metadata.permissions().mode() & 0o777 != FILE {
        file.set_permissions(Permissions::from_mode(FILE))?;
    }
    Ok(())
}

/// The same for a folder. One that lets others in although it was asked to be closed (on a file system without modes) is an error.
///
/// # Errors
/// The system refuses.
pub fn set_folder_mode(folder: &Path) -> io::Result<()> {
    let mode = || Ok::<_, io::Error>(folder.metadata()?.permissions().mode() & 0o777);
    if mode()? == FOLDER {
        return Ok(());
    }
    std::fs::set_permissions(folder, Permissions::from_mode(FOLDER))?;
    match mode()? {
        FOLDER => Ok(()),
        mode => Err(io::Error::other(format!(
            "its mode is {mode:04o}, and this file system does not let it be {FOLDER:04o}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use unix::sys::stat::Mode;
    use unix::unistd::mkfifo;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_was_open_to_others_is_theirs_no_more() {
        let outer = temporary_folder(Path::new("/tmp"), "eo").unwrap();
        let outer = outer.path();
        assert_eq!(mode(outer), FOLDER);
        make_folders(&outer.join("a/b/c")).unwrap();
        make_folders(&outer.join("a/b/c")).unwrap();
        assert!(make_folder(&outer.join("a")).is_err());
        assert!(make_folders(Path::new("/proc/none/at/all")).is_err());
        assert!(make_folders(Path::new("")).is_err());
        for folder in ["a", "a/b", "a/b/c"] {
            assert_eq!(mode(&outer.join(folder)), FOLDER);
        }
        let file = outer.join("file");
        std::fs::write(&file, "longer than what follows").unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
        write(&file, b"x").unwrap();
        assert_eq!(
            (mode(&file), read(&file, 1).unwrap()),
            (FILE, "x".to_owned())
        );
        assert!(read(&file, 0).is_err());
        assert_eq!(mode(temporary_file(outer, "x").unwrap().path()), FILE);
    }

    /// What is made with another mode and closed afterwards is open for a moment, which the kernel tells as a change of its attributes.
    #[cfg(target_os = "linux")]
    #[test]
    fn nothing_is_open_to_others_for_a_moment() {
        use unix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
        let outer = temporary_folder(Path::new("/tmp"), "eo").unwrap();
        let outer = outer.path();
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
        inotify
            .add_watch(outer, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ATTRIB)
            .unwrap();
        let seen = || {
            let events = inotify.read_events().unwrap();
            let is_change = |flag| events.iter().any(|event| event.mask.contains(flag));
            assert!(is_change(AddWatchFlags::IN_CREATE));
            is_change(AddWatchFlags::IN_ATTRIB)
        };
        let kept = (
            temporary_folder(outer, "folder").unwrap(),
            temporary_file(outer, "file").unwrap(),
        );
        make_folder(&outer.join("made")).unwrap();
        make_folders(&outer.join("folders/in/it")).unwrap();
        write(&outer.join("written"), b"x").unwrap();
        assert!(!seen());
        // The control.
        make_folder(&outer.join("open")).unwrap();
        std::fs::set_permissions(outer.join("open"), Permissions::from_mode(0o777)).unwrap();
        assert!(seen());
        drop(kept);
    }

    #[test]
    fn a_link_is_not_written_through_and_a_pipe_is_not_waited_for() {
        let outer = temporary_folder(Path::new("/tmp"), "eo").unwrap();
        let (target, link, pipe) = (
            outer.path().join("target"),
            outer.path().join("link"),
            outer.path().join("pipe"),
        );
        write(&target, b"whole").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(write(&link, b"").is_err() && open(&link).is_err());
        assert_eq!(read(&target, 9).unwrap(), "whole");
        mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        assert!(open(&pipe).is_err());
    }
}
