//! Packing a binary cache into one archive. What is in it decides its bytes: no time, no owner, and the files in the order of
//! their names. So a recording that is done again has an archive of the same name.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use super::archive_name;
use crate::fingerprint::in_hex;
use crate::private;

/// An archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Archive {
    /// The name of its file, and of the artifact.
    pub(super) name: String,
    /// How many store paths are in it.
    pub(super) paths: usize,
    /// Its size, in bytes.
    pub(super) size: u64,
    /// The size of all files in it, in bytes.
    pub(super) unpacked: u64,
}

/// The file of a binary cache that says which store it is for.
const CACHE_INFO: &str = "nix-cache-info";

/// The folder of its NARs.
const NARS: &str = "nar";

/// After how many bytes it is asked whether to go on.
const ASK_EVERY: u64 = 4 << 20;

/// Packs the binary cache in the folder `cache` into a file in `folder`. Only what a step reads is packed: Nix makes empty folders
/// beside it, and not the same in each version. `goes_on` is asked now and then.
///
/// # Errors
/// A file cannot be read, the archive cannot be written, or it is not to go on.
pub(super) fn pack(
    cache: &Path,
    folder: &Path,
    goes_on: &mut dyn FnMut() -> bool,
) -> io::Result<Archive> {
    let mut narinfos = names(cache)?;
    narinfos.retain(|name| name.ends_with(".narinfo"));
    let partial = folder.join("partial.tar");
    let mut tar = Builder::new(Hashing {
        file: BufWriter::with_capacity(1 << 20, private::create(&partial)?),
        sha256: Sha256::new(),
        size: 0,
        asked: 0,
        goes_on,
    });
    let mut unpacked = add_file(&mut tar, cache, CACHE_INFO)?;
    for narinfo in &narinfos {
        unpacked += add_file(&mut tar, cache, narinfo)?;
    }
    let mut nars = header(EntryType::Directory, 0o755, 0);
    tar.append_data(&mut nars, NARS, io::empty())?;
    for nar in names(&cache.join(NARS))? {
        unpacked += add_file(&mut tar, cache, &format!("{NARS}/{nar}"))?;
    }
    let mut hashing = tar.into_inner()?;
    hashing.flush()?;
    let sha256 = in_hex(&hashing.sha256.finalize());
    let name = archive_name(&sha256);
    fs::rename(partial, folder.join(&name))?;
    Ok(Archive {
        name,
        paths: narinfos.len(),
        size: hashing.size,
        unpacked,
    })
}

/// The names of the files in a folder, sorted. (Nix writes a file under another name first, which begins with a dot.)
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in folder.read_dir()? {
        let name = entry?.file_name().into_string();
        names.extend(name.ok().filter(|name| !name.starts_with('.')));
    }
    names.sort_unstable();
    Ok(names)
}

/// Adds a file of the cache; its size in bytes.
fn add_file(tar: &mut Builder<Hashing<'_>>, cache: &Path, name: &str) -> io::Result<u64> {
    let file = File::open(cache.join(name))?;
    let size = file.metadata()?.len();
    let mut header = header(EntryType::Regular, 0o644, size);
    tar.append_data(&mut header, name, file)?;
    Ok(size)
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Writes into a file, and hashes what it writes.
struct Hashing<'a> {
    file: BufWriter<File>,
    sha256: Sha256,
    size: u64,
    /// The size when it was last asked whether to go on.
    asked: u64,
    goes_on: &'a mut dyn FnMut() -> bool,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.size - self.asked >= ASK_EVERY {
            self.asked = self.size;
            if !(self.goes_on)() {
                return Err(io::Error::other("stopped"));
            }
        }
        let written = self.file.write(bytes)?;
        self.sha256.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::sha256_of_name;
    use std::io::Read as _;
    use tempfile::TempDir;

    fn cache(files: &[(&str, &str)]) -> TempDir {
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join("nar")).unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    const FILES: [(&str, &str); 5] = [
        ("nix-cache-info", "StoreDir: /nix/store\n"),
        ("b.narinfo", "StorePath: b"),
        ("a.narinfo", "StorePath: a"),
        ("nar/2.nar.zst", "22"),
        ("nar/1.nar.zst", "1"),
    ];

    #[test]
    fn an_archive_holds_the_cache_and_nothing_else_in_the_order_of_names() {
        let cache = cache(&FILES);
        for other in ["log", "realisations"] {
            fs::create_dir(cache.path().join(other)).unwrap();
        }
        fs::write(cache.path().join("nar/.tmp-1"), "x").unwrap();
        fs::write(cache.path().join("other"), "x").unwrap();
        let folder = TempDir::new().unwrap();
        let archive = pack(cache.path(), folder.path(), &mut || true).unwrap();
        let file = File::open(folder.path().join(&archive.name)).unwrap();
        let mut archived = tar::Archive::new(file);
        let mut entries = Vec::new();
        for entry in archived.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            entries.push((path, content));
        }
        let entries: Vec<_> = entries
            .iter()
            .map(|(path, content)| (path.as_str(), content.as_str()))
            .collect();
        assert_eq!(
            entries,
            [
                ("nix-cache-info", "StoreDir: /nix/store\n"),
                ("a.narinfo", "StorePath: a"),
                ("b.narinfo", "StorePath: b"),
                ("nar", ""),
                ("nar/1.nar.zst", "1"),
                ("nar/2.nar.zst", "22"),
            ]
        );
        assert_eq!(archive.paths, 2);
        assert_eq!(archive.unpacked, 21 + 12 + 12 + 1 + 2);
    }

    #[test]
    fn an_archive_is_named_by_its_bytes_which_its_content_alone_decides() {
        let packed = || {
            let folder = TempDir::new().unwrap();
            let archive = pack(cache(&FILES).path(), folder.path(), &mut || true).unwrap();
            let bytes = fs::read(folder.path().join(&archive.name)).unwrap();
            let left = folder.path().read_dir().unwrap().count();
            assert_eq!(left, 1, "nothing remains beside it");
            (archive, bytes)
        };
        let (archive, bytes) = packed();
        assert_eq!(archive.size, bytes.len() as u64);
        let sha256 = in_hex(&Sha256::digest(&bytes));
        assert_eq!(sha256_of_name(&archive.name), Some(sha256.as_str()));
        assert_eq!(packed(), (archive, bytes));
    }

    #[test]
    fn a_large_archive_is_left_where_it_is_not_to_go_on() {
        let large = "x".repeat(9 << 20);
        let cache = cache(&[("nix-cache-info", ""), ("nar/1.nar.zst", &large)]);
        let folder = TempDir::new().unwrap();
        for (goes_on, is_packed) in [(1, false), (2, true)] {
            let mut asked = 0;
            let mut goes_on = || {
                asked += 1;
                asked <= goes_on
            };
            let packed = pack(cache.path(), folder.path(), &mut goes_on);
            assert_eq!(packed.is_ok(), is_packed, "{packed:?}");
        }
    }

    #[test]
    fn what_is_no_cache_is_not_packed() {
        let folder = TempDir::new().unwrap();
        let empty = TempDir::new().unwrap();
        assert!(pack(empty.path(), folder.path(), &mut || true).is_err());
    }
}
