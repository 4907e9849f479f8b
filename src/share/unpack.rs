//! Unpacking an archive that may be an attack: of a tar, only what a binary cache of `.drv`s is made of, into files that are new.
//!
//! The archive comes from a host that evaluates code which nobody has reviewed. So every entry is looked at as it stands in the
//! archive, extensions (long names, PAX headers, sparse files) are none that a binary cache needs, and nothing is refused
//! halfway: what is written before is in a folder that the caller throws away.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use tar::{Archive, EntryType, Header};
use unix::fcntl::{OFlag, openat};
use unix::sys::stat::{Mode, mkdirat};

use super::ShareError;
use crate::exit::Failure;

/// How many bytes an entry counts for at least: a file takes room without any content, too.
const ENTRY_AT_LEAST: u64 = 64;

/// How many bytes more than its record says an archive may have: for its folder, which has no content.
const SLACK: u64 = 4 << 10;

/// How many entries an archive may have: two for each path.
const ENTRIES_AT_MOST: u64 = 1_000_000;

/// The file without which a folder is no binary cache.
const INFO: &str = "nix-cache-info";

/// The folder of a binary cache that has its contents.
const NAR: &str = "nar";

/// Where an entry goes.
#[derive(Debug, PartialEq, Eq)]
enum Place<'n> {
    /// The folder `nar`.
    NarFolder,
    /// A file in it.
    Nar(&'n str),
    /// A file beside it.
    Top(&'n str),
}

/// Unpacks a tar into `folder`, which is empty and ours alone. It may have `size` bytes. `check` is called before each entry,
/// and ends it.
///
/// # Errors
/// It is no archive of a binary cache, or cannot be written; the folder may hold a part of it then. Whatever `check` says.
pub(super) fn unpack(
    archive: impl Read,
    folder: &Path,
    size: u64,
    mut check: impl FnMut() -> Result<(), Failure>,
) -> Result<(), ShareError> {
    let mut unpacking = Unpacking::new(folder, size).map_err(|error| cannot_write(&error))?;
    let mut archive = Archive::new(archive);
    // Raw: an extension is an entry of its own then, which is refused as any other that is no file or folder.
    let entries = archive.entries().map_err(|error| no_tar(&error))?.raw(true);
    for entry in entries {
        check()?;
        let mut entry = entry.map_err(|error| no_tar(&error))?;
        let header = entry.header().clone();
        unpacking.entry(&header, &mut entry)?;
    }
    unpacking.finish()
}

fn wrong(why: impl Into<String>) -> ShareError {
    ShareError::Share(why.into())
}

fn no_tar(error: &io::Error) -> ShareError {
    wrong(format!("it is no whole tar: {error}"))
}

fn cannot_write(error: &io::Error) -> ShareError {
    wrong(format!("it cannot be unpacked: {error}"))
}

struct Unpacking {
    folder: OwnedFd,
    nar: Option<OwnedFd>,
    /// How many bytes may still come, and how many entries.
    rest: u64,
    entries: u64,
    has_info: bool,
}

impl Unpacking {
    fn new(folder: &Path, size: u64) -> io::Result<Self> {
        let folder = File::options()
            .read(true)
            .custom_flags((OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits())
            .open(folder)?;
        Ok(Self {
            folder: folder.into(),
            nar: None,
            rest: size.saturating_add(SLACK),
            entries: ENTRIES_AT_MOST,
            has_info: false,
        })
    }

    fn entry(&mut self, header: &Header, content: &mut impl Read) -> Result<(), ShareError> {
        let name = name_of(header)?;
        let kind = header.entry_type();
        let size = header.entry_size().map_err(|error| no_tar(&error))?;
        self.take(size)?;
        match (place_of(&name), kind) {
            (Some(Place::NarFolder), EntryType::Directory) if size == 0 && self.nar.is_none() => {
                self.nar_folder().map_err(|error| cannot_write(&error))?;
                Ok(())
            }
            (Some(Place::Nar(name)), EntryType::Regular) => {
                let nar = self.nar_folder().map_err(|error| cannot_write(&error))?;
                write(nar, name, size, content)
            }
            (Some(Place::Top(name)), EntryType::Regular) => {
                self.has_info |= name == INFO;
                write(&self.folder, name, size, content)
            }
            _ => Err(wrong(format!(
                "it has an entry that no binary cache has: {name:?}, {}",
                kind_of(kind)
            ))),
        }
    }

    /// Counts an entry of this size.
    fn take(&mut self, size: u64) -> Result<(), ShareError> {
        let rest = self.rest.checked_sub(size.max(ENTRY_AT_LEAST));
        let entries = self.entries.checked_sub(1);
        let (Some(rest), Some(entries)) = (rest, entries) else {
            return Err(wrong("it unpacks to more than its record says"));
        };
        (self.rest, self.entries) = (rest, entries);
        Ok(())
    }

    fn nar_folder(&mut self) -> io::Result<&OwnedFd> {
        let nar = if let Some(nar) = self.nar.take() {
            nar
        } else {
            mkdirat(&self.folder, NAR, Mode::S_IRWXU)?;
            let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            openat(&self.folder, NAR, flags, Mode::empty())?
        };
        Ok(self.nar.insert(nar))
    }

    fn finish(self) -> Result<(), ShareError> {
        if self.has_info {
            Ok(())
        } else {
            Err(wrong(format!("it is no binary cache: it has no {INFO}")))
        }
    }
}

/// The name of an entry: text, and all of it.
fn name_of(header: &Header) -> Result<String, ShareError> {
    // A name ends with its first NUL; what stands behind it, another reader may take for a part of it.
    let old = header.as_old();
    let is_hidden = |field: &[u8]| {
        let end = field.iter().position(|byte| *byte == 0);
        end.is_some_and(|end| field[end..].iter().any(|byte| *byte != 0))
    };
    let bytes = header.path_bytes();
    match std::str::from_utf8(&bytes) {
        Ok(name) if !is_hidden(&old.name) => Ok(name.to_owned()),
        _ => Err(wrong(format!(
            "it has an entry with a name that is no text: {:?}",
            String::from_utf8_lossy(&old.name).trim_end_matches('\0')
        ))),
    }
}

/// Where the entry of this name goes; none where a binary cache of `.drv`s has nothing of that name.
fn place_of(name: &str) -> Option<Place<'_>> {
    let is_plain = |name: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
        !name.starts_with('.') && !name.is_empty() && name.chars().all(plain)
    };
    match name.split_once('/') {
        None if name == NAR => Some(Place::NarFolder),
        None if name == INFO => Some(Place::Top(name)),
        None => {
            let hash = name.strip_suffix(".narinfo")?;
            (is_plain(name) && !hash.is_empty()).then_some(Place::Top(name))
        }
        Some((NAR, "")) => Some(Place::NarFolder),
        Some((NAR, file)) => is_plain(file).then_some(Place::Nar(file)),
        Some(_) => None,
    }
}

/// Writes a new file.
fn write(
    folder: &OwnedFd,
    name: &str,
    size: u64,
    content: &mut impl Read,
) -> Result<(), ShareError> {
    let mut write = || -> io::Result<u64> {
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(folder, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        io::copy(&mut content.take(size), &mut File::from(file))
    };
    match write() {
        Ok(written) if written == size => Ok(()),
        Ok(_) => Err(wrong(format!("it ends in the middle of {name:?}"))),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(wrong(format!("it has two entries of one name: {name:?}")))
        }
        Err(error) => Err(cannot_write(&error)),
    }
}

/// The kind of an entry, in words.
fn kind_of(kind: EntryType) -> &'static str {
    match kind {
        EntryType::Regular => "a file",
        EntryType::Directory => "a folder",
        EntryType::Symlink => "a symbolic link",
        EntryType::Link => "a hard link",
        EntryType::Char | EntryType::Block => "a device",
        EntryType::Fifo => "a pipe",
        EntryType::GNUSparse => "a sparse file",
        EntryType::GNULongName | EntryType::GNULongLink => "a long name",
        EntryType::XHeader | EntryType::XGlobalHeader => "a PAX header",
        _ => "of an unknown kind",
    }
}
