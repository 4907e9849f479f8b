//! Unpacking an archive that may be an attack: of a tar, only what a binary cache of `.drv`s is made of, into files that are new.
//!
//! The archive comes from a host that evaluates unreviewed code. So every entry is looked at as it stands in the
//! archive, extensions (long names, PAX headers, sparse files) are none that a binary cache needs, and nothing is refused
//! halfway: what is written before is in a folder that the caller throws away.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use tar::{Archive, EntryType, Header};
use unix::errno::Errno;
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

/// How large a file beside the contents may be: a `.narinfo` names all that its path refers to.
const TOP_AT_MOST: u64 = 4 << 20;

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
            (Some(Place::Nar(file)), EntryType::Regular) => {
                let nar = self.nar_folder().map_err(|error| cannot_write(&error))?;
                write(nar, file, size, content).map_err(|why| why.error(&name))
            }
            (Some(Place::Top(file)), EntryType::Regular) => {
                self.has_info |= file == INFO;
                if size > TOP_AT_MOST {
                    return Err(wrong(format!("{name:?} is too large")));
                }
                let mut text = Vec::new();
                content
                    .read_to_end(&mut text)
                    .map_err(|error| no_tar(&error))?;
                // Nix would read whatever file of this host it names.
                if let Some(url) = foreign_url(&text) {
                    return Err(wrong(format!(
                        "{name:?} names a file that no binary cache has: {url:?}"
                    )));
                }
                write(&self.folder, file, size, &mut &*text).map_err(|why| why.error(&name))
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

/// The `URL` of a `.narinfo` that is no file of `nar`.
fn foreign_url(text: &[u8]) -> Option<String> {
    let urls = text.split(|byte| *byte == b'\n').filter_map(|line| {
        let url = String::from_utf8_lossy(line.strip_prefix(b"URL:")?);
        Some(url.trim().to_owned())
    });
    let mut foreign = urls.filter(|url| !matches!(place_of(url), Some(Place::Nar(_))));
    foreign.next()
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

/// Why a file could not be written.
enum NotWritten {
    /// It exists already.
    Exists,
    /// The archive ends before the file does.
    Short,
    /// The system refuses.
    Error(io::Error),
}

impl NotWritten {
    /// The same of the entry with this name.
    fn error(&self, name: &str) -> ShareError {
        match self {
            Self::Exists => wrong(format!("it has two entries of one name: {name:?}")),
            Self::Short => wrong(format!("it ends in the middle of {name:?}")),
            Self::Error(error) => cannot_write(error),
        }
    }
}

/// Writes a new file.
fn write(
    folder: &OwnedFd,
    name: &str,
    size: u64,
    content: &mut impl Read,
) -> Result<(), NotWritten> {
    let flags =
        OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(folder, name, flags, Mode::S_IRUSR | Mode::S_IWUSR);
    let file = file.map_err(|error| match error {
        Errno::EEXIST => NotWritten::Exists,
        other => NotWritten::Error(other.into()),
    })?;
    match io::copy(&mut content.take(size), &mut File::from(file)) {
        Ok(written) if written == size => Ok(()),
        Ok(_) => Err(NotWritten::Short),
        Err(error) => Err(NotWritten::Error(error)),
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

#[cfg(test)]
mod tests {
    use std::fs;

    use tar::Builder;
    use tempfile::TempDir;

    use super::*;
    use crate::exit::Class;

    /// An archive of raw entries: whatever a tar may hold.
    #[derive(Default)]
    struct Raw(Vec<u8>);

    impl Raw {
        /// A good archive so far.
        fn good() -> Self {
            Self::default().file(INFO, b"StoreDir: /s\n")
        }

        fn file(self, name: &str, content: &[u8]) -> Self {
            self.entry(name.as_bytes(), EntryType::Regular, content, |_| ())
        }

        /// An entry with this name, as it is, after `change`.
        fn entry(
            mut self,
            name: &[u8],
            kind: EntryType,
            content: &[u8],
            change: impl FnOnce(&mut Header),
        ) -> Self {
            let mut header = Header::new_ustar();
            header.as_old_mut().name[..name.len()].copy_from_slice(name);
            header.set_entry_type(kind);
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            change(&mut header);
            header.set_cksum();
            self.0.extend_from_slice(header.as_bytes());
            self.0.extend_from_slice(content);
            let last = self.0.len().next_multiple_of(512);
            self.0.resize(last, 0);
            self
        }

        fn link(self, name: &str, kind: EntryType, to: &str) -> Self {
            self.entry(name.as_bytes(), kind, b"", |header| {
                header.set_link_name(to).unwrap();
            })
        }

        /// A PAX header for the entry that follows.
        fn pax(self, name: &str, value: &str) -> Self {
            let rest = format!(" {name}={value}\n");
            let mut length = rest.len();
            while length != rest.len() + length.to_string().len() {
                length = rest.len() + length.to_string().len();
            }
            let record = format!("{length}{rest}");
            self.entry(
                b"PaxHeaders/x",
                EntryType::XHeader,
                record.as_bytes(),
                |_| (),
            )
        }

        fn end(mut self) -> Vec<u8> {
            self.0.resize(self.0.len() + 1024, 0);
            self.0
        }
    }

    /// Unpacks into a folder of its own beside which nothing may appear; gives what is in there, or why not.
    fn try_unpack(archive: &[u8], size: u64) -> Result<Vec<String>, String> {
        let around = TempDir::new().unwrap();
        let folder = around.path().join("in/folder");
        fs::create_dir_all(&folder).unwrap();
        fs::write(around.path().join("in/outside"), "untouched").unwrap();
        let result = unpack(archive, &folder, size, || Ok(()));
        let outside = fs::read_to_string(around.path().join("in/outside")).unwrap();
        assert_eq!(outside, "untouched");
        assert_eq!(around.path().join("in").read_dir().unwrap().count(), 2);
        assert_eq!(around.path().read_dir().unwrap().count(), 1);
        match result {
            Ok(()) => Ok(files(&folder)),
            Err(ShareError::Share(why)) => Err(why),
            Err(ShareError::Ends(failure)) => panic!("{failure}"),
        }
    }

    fn files(folder: &Path) -> Vec<String> {
        let mut files: Vec<String> = Vec::new();
        for entry in folder.read_dir().unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if entry.file_type().unwrap().is_dir() {
                files.push(format!("{name}/"));
                files.extend(files_below(&name, &entry.path()));
            } else {
                files.push(name);
            }
        }
        files.sort();
        files
    }

    fn files_below(name: &str, folder: &Path) -> Vec<String> {
        let below = files(folder).into_iter();
        below.map(|file| format!("{name}/{file}")).collect()
    }

    #[test]
    fn a_binary_cache_is_unpacked_for_its_user_alone() {
        use std::os::unix::fs::PermissionsExt as _;

        let folder = TempDir::new().unwrap();
        let mut archive = Builder::new(Vec::new());
        for (name, kind, content) in [
            ("nar", EntryType::Directory, ""),
            (INFO, EntryType::Regular, "StoreDir: /s\n"),
            ("abc.narinfo", EntryType::Regular, "narinfo"),
            ("nar/abc.nar.zst", EntryType::Regular, "content"),
        ] {
            let mut header = Header::new_ustar();
            header.set_mode(0o777);
            header.set_entry_type(kind);
            header.set_size(content.len() as u64);
            archive
                .append_data(&mut header, name, content.as_bytes())
                .unwrap();
        }
        let archive = archive.into_inner().unwrap();
        unpack(&*archive, folder.path(), 1 << 10, || Ok(()))
            .map_err(drop)
            .unwrap();
        assert_eq!(
            files(folder.path()),
            ["abc.narinfo", "nar/", "nar/abc.nar.zst", INFO]
        );
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(read("nar/abc.nar.zst"), "content");
        let mode = |name: &str| {
            let metadata = folder.path().join(name).metadata().unwrap();
            metadata.permissions().mode() & 0o777
        };
        assert_eq!((mode("nar"), mode(INFO)), (0o700, 0o600));
    }

    #[test]
    fn only_so_many_entries_are_taken_however_small() {
        let folder = TempDir::new().unwrap();
        let mut unpacking = Unpacking::new(folder.path(), 1 << 30).unwrap();
        unpacking.entries = 2;
        let taken = [0, 1, 0].map(|size| unpacking.take(size).is_ok());
        assert_eq!(taken, [true, true, false]);
    }

    #[test]
    fn a_folder_need_not_stand_before_its_files() {
        let archive = Raw::good().file("nar/x", b"1").end();
        let unpacked = try_unpack(&archive, 1 << 10).unwrap();
        assert_eq!(unpacked, ["nar/", "nar/x", INFO]);
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn an_archive_that_is_an_attack_is_refused_and_nothing_is_outside() {
        let long = "x".repeat(99);
        let sparse = |header: &mut Header| header.set_size(1 << 40);
        for (what, archive, why) in [
            (
                "an absolute name",
                Raw::good().file("/outside", b"1"),
                "\"/outside\", a file",
            ),
            (
                "a name above",
                Raw::good().file("../outside", b"1"),
                "\"../outside\", a file",
            ),
            (
                "a name above in the folder",
                Raw::good().file("nar/../../outside", b"1"),
                "\"nar/../../outside\", a file",
            ),
            (
                "a dot",
                Raw::good().file("nar/..", b"1"),
                "\"nar/..\", a file",
            ),
            (
                "a link, and a file through it",
                Raw::good()
                    .link("nar", EntryType::Symlink, "..")
                    .file("nar/outside", b"1"),
                "\"nar\", a symbolic link",
            ),
            (
                "a link as a file",
                Raw::good().link("x.narinfo", EntryType::Symlink, "../outside"),
                "\"x.narinfo\", a symbolic link",
            ),
            (
                "a hard link, and a file through it",
                Raw::good()
                    .link("x.narinfo", EntryType::Link, "../outside")
                    .file("x.narinfo", b"1"),
                "\"x.narinfo\", a hard link",
            ),
            (
                "contents that are a file of this host",
                Raw::good().file(
                    "x.narinfo",
                    b"StorePath: /s/x\nURL: nar/../../../dev/zero\n",
                ),
                "\"x.narinfo\" names a file that no binary cache has: \"nar/../../../dev/zero\"",
            ),
            (
                "contents elsewhere",
                Raw::good().file("x.narinfo", b"URL: nar/a\nURL:http://h/x"),
                "\"http://h/x\"",
            ),
            (
                "a device",
                Raw::good().entry(b"nar/null", EntryType::Char, b"", |_| ()),
                "\"nar/null\", a device",
            ),
            (
                "a block device",
                Raw::good().entry(b"nar/sda", EntryType::Block, b"", |_| ()),
                "\"nar/sda\", a device",
            ),
            (
                "a pipe",
                Raw::good().entry(b"nar/pipe", EntryType::Fifo, b"", |_| ()),
                "\"nar/pipe\", a pipe",
            ),
            (
                "too large",
                Raw::good().file("nar/x", &[0; 13 << 10]),
                "it unpacks to more than its record says",
            ),
            (
                "too many",
                (0..200).fold(Raw::good(), |raw, number| {
                    raw.file(&format!("nar/{number}"), b"")
                }),
                "it unpacks to more than its record says",
            ),
            (
                "larger than it is",
                Raw::good().entry(b"nar/x", EntryType::Regular, b"1", |header| {
                    header.set_size(4 << 10);
                }),
                "it ends in the middle of \"nar/x\"",
            ),
            (
                "a sparse file",
                Raw::good().entry(b"nar/x", EntryType::GNUSparse, b"", |_| ()),
                "\"nar/x\", a sparse file",
            ),
            (
                "a bomb of a sparse file",
                Raw::good().entry(b"nar/x", EntryType::GNUSparse, b"", sparse),
                "it unpacks to more than its record says",
            ),
            (
                "a sparse file by PAX",
                Raw::good()
                    .pax("GNU.sparse.realsize", "1099511627776")
                    .file("nar/x", b"1"),
                "a PAX header",
            ),
            (
                "two of one name",
                Raw::good().file("nar/x", b"1").file("nar/x", b"2"),
                "it has two entries of one name: \"nar/x\"",
            ),
            (
                "two folders",
                Raw::good()
                    .entry(b"nar/", EntryType::Directory, b"", |_| ())
                    .entry(b"nar", EntryType::Directory, b"", |_| ()),
                "\"nar\", a folder",
            ),
            (
                "another folder",
                Raw::good().entry(b"log/", EntryType::Directory, b"", |_| ()),
                "\"log/\", a folder",
            ),
            (
                "a folder with a content",
                Raw::good().entry(b"nar", EntryType::Directory, b"1", |_| ()),
                "\"nar\", a folder",
            ),
            (
                "a name with a NUL",
                Raw::good().entry(b"nar/x\0y", EntryType::Regular, b"1", |_| ()),
                "a name that is no text: \"nar/x\\0y\"",
            ),
            (
                "a name with a line break",
                Raw::good().file("nar/x\ny", b"1"),
                "\"nar/x\\ny\", a file",
            ),
            (
                "a name that is no UTF-8",
                Raw::good().entry(b"nar/\xff", EntryType::Regular, b"1", |_| ()),
                "a name that is no text",
            ),
            (
                "a hidden file",
                Raw::good().file("nar/.x", b"1"),
                "\"nar/.x\", a file",
            ),
            (
                "another file",
                Raw::good().file("nix.conf", b"1"),
                "\"nix.conf\", a file",
            ),
            (
                "another path by PAX",
                Raw::good().pax("path", "../outside").file("nar/x", b"1"),
                "a PAX header",
            ),
            (
                "another size by PAX",
                Raw::good().pax("size", "1099511627776").file("nar/x", b"1"),
                "a PAX header",
            ),
            (
                "a global PAX header",
                Raw::good().entry(b"g", EntryType::XGlobalHeader, b"", |_| ()),
                "a PAX header",
            ),
            (
                "a long name",
                Raw::good()
                    .entry(
                        b"././@LongLink",
                        EntryType::GNULongName,
                        long.as_bytes(),
                        |_| (),
                    )
                    .file("nar/x", b"1"),
                "a long name",
            ),
            ("nothing", Raw::default(), "it is no binary cache"),
            (
                "no cache",
                Raw::default().file("nar/x", b"1"),
                "it is no binary cache: it has no nix-cache-info",
            ),
        ] {
            let refused = try_unpack(&archive.end(), 8 << 10).expect_err(what);
            assert!(refused.contains(why), "{what}: {refused}");
        }
    }

    #[test]
    fn a_file_that_is_no_tar_is_refused() {
        let gzip = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03".repeat(100);
        let good = Raw::good().file("nar/x", &[1; 2000]).end();
        for (what, archive, why) in [
            ("an empty file", &b""[..], "it is no binary cache"),
            ("gzip", &gzip, "it is no whole tar"),
            ("a text", &[b'x'; 600], "it is no whole tar"),
            ("a part of a header", &good[..1100], "it is no whole tar"),
            (
                "a part",
                &good[..2000],
                "it ends in the middle of \"nar/x\"",
            ),
        ] {
            let refused = try_unpack(archive, 8 << 10).expect_err(what);
            assert!(refused.contains(why), "{what}: {refused}");
        }
        // The control: nothing of the above is refused for another reason.
        assert_eq!(try_unpack(&good, 8 << 10).unwrap(), ["nar/", "nar/x", INFO]);
    }

    #[test]
    fn a_signal_ends_it_between_two_entries() {
        let folder = TempDir::new().unwrap();
        let archive = Raw::good().file("nar/x", b"1").end();
        let mut entries = 0;
        let ended = unpack(&*archive, folder.path(), 1 << 10, || {
            entries += 1;
            if entries == 2 {
                return Err(Failure::new(Class::Signal(15), "stopped"));
            }
            Ok(())
        });
        assert!(matches!(ended, Err(ShareError::Ends(_))));
        assert_eq!(files(folder.path()), [INFO]);
    }

    #[test]
    fn a_full_disk_is_a_reason() {
        // A file that exists already stands for anything that cannot be written.
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join(NAR), "").unwrap();
        let archive = Raw::good().file("nar/x", b"1").end();
        let Err(ShareError::Share(why)) = unpack(&*archive, folder.path(), 1 << 10, || Ok(()))
        else {
            panic!()
        };
        assert!(why.starts_with("it cannot be unpacked: "), "{why}");
    }
}
