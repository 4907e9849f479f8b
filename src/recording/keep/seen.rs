//! What an evaluation can see in a folder, as a hash: names, kinds, contents, who may execute, where links lead. So whether two
//! recordings have seen the same is not left to what `git` says: it looks neither at ignored files and empty folders, nor behind filters,
//! nor at modes where it is told not to.

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use sha2::{Digest as _, Sha256};
use unix::fcntl::OFlag;

use crate::exit::Failure;
use crate::fingerprint::in_hex;
use crate::paths;

/// What the folder of a repository is named in its checkout. git writes in it, so it is not looked at.
const GIT: &str = ".git";

/// How much of a file is read at once, in bytes.
const READ_AT_ONCE: usize = 1 << 20;

/// Whoever may execute a file: of its mode, Nix sees this.
const EXECUTABLE: u32 = 0o100;

/// Why a folder has no hash.
enum Obstacle {
    /// As a sentence without a full stop.
    Because(String),
    Ends(Failure),
}

/// The hash of what is in `folder`, without folders of git; else why there is none, as a sentence without a full stop: a link leads out
/// of it, something cannot be read, or `unchanged_since` is set and something came, went or was changed after that, by what the disk
/// says: not when files were written, which `git` and others set as they like, but when they were last changed in any way, renamed and
/// restored as well; or it takes more than `at_most`. `goes_on` is called for each file and folder, and within large files.
///
/// # Errors
/// Those of `goes_on`.
pub(super) fn hash(
    folder: &Path,
    unchanged_since: Option<SystemTime>,
    at_most: Duration,
    goes_on: &mut dyn FnMut() -> Result<(), Failure>,
) -> Result<Result<String, String>, Failure> {
    let mut looking = Looking {
        top: folder,
        at_most,
        began: Instant::now(),
        since: unchanged_since.map(since_epoch),
        goes_on,
        hash: Sha256::new(),
        buffer: vec![0; READ_AT_ONCE],
    };
    // Nix takes it into the store path of `./.`.
    looking.bytes(folder.file_name().unwrap_or_default().as_bytes());
    match looking.folder(folder) {
        Ok(()) => Ok(Ok(in_hex(&looking.hash.finalize()))),
        Err(Obstacle::Because(why)) => Ok(Err(why)),
        Err(Obstacle::Ends(failure)) => Err(failure),
    }
}

struct Looking<'a> {
    top: &'a Path,
    at_most: Duration,
    began: Instant,
    since: Option<(u64, u32)>,
    goes_on: &'a mut dyn FnMut() -> Result<(), Failure>,
    hash: Sha256,
    buffer: Vec<u8>,
}

impl Looking<'_> {
    fn folder(&mut self, folder: &Path) -> Result<(), Obstacle> {
        self.goes_on(folder)?;
        let unreadable = |error| unreadable(folder, &error);
        let mut entries = fs::read_dir(folder)
            .and_then(Iterator::collect::<io::Result<Vec<_>>>)
            .map_err(unreadable)?;
        entries.retain(|entry| entry.file_name() != GIT);
        entries.sort_by_key(fs::DirEntry::file_name);
        self.number(entries.len() as u64);
        for entry in &entries {
            self.bytes(entry.file_name().as_bytes());
            self.entry(&entry.path())?;
        }
        // Of what was removed or renamed, only its folder knows.
        self.is_unchanged(folder, &folder.metadata().map_err(unreadable)?)
    }

    fn entry(&mut self, path: &Path) -> Result<(), Obstacle> {
        let metadata = path
            .symlink_metadata()
            .map_err(|it| unreadable(path, &it))?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            self.hash.update(b"d");
            return self.folder(path);
        }
        self.goes_on(path)?;
        if kind.is_symlink() {
            self.hash.update(b"l");
            let target = path.read_link().map_err(|it| unreadable(path, &it))?;
            if leads_out(path, &target, self.top) {
                let path = path.display();
                return Err(Obstacle::Because(format!(
                    "{path} leads out of the checkout"
                )));
            }
            self.bytes(target.as_os_str().as_bytes());
        } else if kind.is_file() {
            return self.file(path);
        } else {
            // Nix reads no other kind.
            self.hash.update(b"o");
        }
        self.is_unchanged(path, &metadata)
    }

    fn file(&mut self, path: &Path) -> Result<(), Obstacle> {
        let unreadable = |error| unreadable(path, &error);
        // It may be a pipe by now, which would be waited for.
        let mut file = File::options()
            .read(true)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(path)
            .map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        let is_executable = metadata.mode() & EXECUTABLE != 0;
        self.hash.update(if is_executable { b"x" } else { b"f" });
        self.number(metadata.len());
        loop {
            let read = file.read(&mut self.buffer).map_err(unreadable)?;
            if read == 0 {
                break;
            }
            self.hash.update(&self.buffer[..read]);
            if read == READ_AT_ONCE {
                self.goes_on(path)?;
            }
        }
        // Only now: it may have been changed while it was read.
        self.is_unchanged(path, &file.metadata().map_err(unreadable)?)
    }

    fn is_unchanged(&self, path: &Path, metadata: &Metadata) -> Result<(), Obstacle> {
        if self
            .since
            .is_some_and(|since| changed_at(metadata) >= since)
        {
            let path = path.display();
            let why = format!("{path} was changed while it was recorded");
            return Err(Obstacle::Because(why));
        }
        Ok(())
    }

    fn goes_on(&mut self, path: &Path) -> Result<(), Obstacle> {
        if self.began.elapsed() > self.at_most {
            let (seconds, path) = (self.at_most.as_secs(), path.display());
            let why = format!("the checkout cannot be read in {seconds} s, which ended at {path}");
            return Err(Obstacle::Because(why));
        }
        (self.goes_on)().map_err(Obstacle::Ends)
    }

    /// With their length, so that no two folders are the same bytes.
    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.hash.update(bytes);
    }

    fn number(&mut self, number: u64) {
        self.hash.update(number.to_le_bytes());
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Obstacle {
    Obstacle::Because(format!("{} cannot be read: {error}", path.display()))
}

/// Whether a link in `top` leads to something else than what is looked at there.
fn leads_out(link: &Path, target: &Path, top: &Path) -> bool {
    let parent = link.parent().unwrap_or(top);
    !paths::stays_below(top, parent, target) || target.iter().any(|part| part == GIT)
}

/// Seconds and nanoseconds since the epoch.
fn changed_at(metadata: &Metadata) -> (u64, u32) {
    let nanoseconds = u32::try_from(metadata.ctime_nsec()).unwrap_or_default();
    (
        u64::try_from(metadata.ctime()).unwrap_or_default(),
        nanoseconds,
    )
}

fn since_epoch(time: SystemTime) -> (u64, u32) {
    let time = time.duration_since(SystemTime::UNIX_EPOCH);
    time.map_or((0, 0), |it| (it.as_secs(), it.subsec_nanos()))
}
#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn what_takes_too_long_is_said_with_its_place() {
        let (outer, _) = checkout();
        let why = hash(outer.path(), None, Duration::ZERO, &mut || Ok(())).unwrap();
        let why = why.unwrap_err();
        assert!(
            why.starts_with("the checkout cannot be read in 0 s, which ended at /"),
            "{why}"
        );
    }

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
            // The files of a folder do not know that it was moved, but it does.
            (Some("c"), |checkout| {
                fs::rename(checkout.join("c"), checkout.join("d")).unwrap();
                fs::rename(checkout.join("d"), checkout.join("c")).unwrap();
            }),
            // Whatever time it is given.
            (Some("c/lib.nix"), |checkout| {
                let long_ago = fs::FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
                let file = File::open(checkout.join("c/lib.nix")).unwrap();
                file.set_times(long_ago).unwrap();
            }),
        ];
        for (expected, change) in changes {
            let (outer, began) = checkout();
            let checkout = outer.path().join("checkout");
            change(&checkout);
            let why = hash(&checkout, Some(began), MINUTE, &mut || Ok(()))
                .unwrap()
                .err();
            let expected = expected.map(|name| {
                let path = checkout.join(name).display().to_string();
                let path = path.trim_end_matches('/');
                format!("{path} was changed while it was recorded")
            });
            assert_eq!(why, expected);
        }
    }

    #[test]
    fn whatever_an_evaluation_can_see_is_in_the_hash() {
        use std::fs::Permissions;
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        type Change = fn(&Path);
        let changes: [(bool, Change); 12] = [
            (false, |_| {}),
            (false, |it| fs::write(it.join(".git/index"), "y").unwrap()),
            (false, |it| fs::write(it.join("sub/.git"), "y").unwrap()),
            // Neither who may read a file, nor when it was written, nor a second writing of the same.
            (false, |it| {
                fs::set_permissions(it.join("c/lib.nix"), Permissions::from_mode(0o600)).unwrap();
            }),
            (false, |it| fs::write(it.join("c/lib.nix"), "x").unwrap()),
            (true, |it| fs::write(it.join("c/lib.nix"), "y").unwrap()),
            (true, |it| {
                fs::set_permissions(it.join("c/lib.nix"), Permissions::from_mode(0o755)).unwrap();
            }),
            (true, |it| fs::create_dir(it.join("empty")).unwrap()),
            (true, |it| fs::write(it.join("c/new.nix"), "").unwrap()),
            (true, |it| fs::rename(it.join("c"), it.join("d")).unwrap()),
            (true, |it| symlink("c", it.join("link")).unwrap()),
            (true, |it| {
                fs::remove_file(it.join("c/lib.nix")).unwrap();
                unix::unistd::mkfifo(&it.join("c/lib.nix"), unix::sys::stat::Mode::S_IRWXU)
                    .unwrap();
            }),
        ];
        let (outer, _) = checkout();
        let seen = |folder: &Path| hash(folder, None, MINUTE, &mut || Ok(())).unwrap().unwrap();
        let before = seen(&outer.path().join("checkout"));
        for (at, (is_other, change)) in changes.into_iter().enumerate() {
            let (outer, _) = checkout();
            let checkout = outer.path().join("checkout");
            change(&checkout);
            assert_eq!(seen(&checkout) != before, is_other, "{at}");
        }
    }

    #[test]
    fn a_link_that_leads_to_what_is_not_looked_at_is_an_obstacle() {
        use std::os::unix::fs::symlink;
        for (target, is_obstacle) in [
            ("lib.nix", false),
            ("../a/b", false),
            ("link", false),
            ("nowhere", false),
            ("/etc", true),
            ("../..", true),
            ("../../outside", true),
            ("../.git/index", true),
            // Where that leads, `.git` decides, or a folder outside.
            ("../.git/../a", true),
            ("../../checkout/a", true),
        ] {
            let (outer, _) = checkout();
            let checkout = outer.path().join("checkout");
            symlink(target, checkout.join("c/link")).unwrap();
            let seen = hash(&checkout, None, MINUTE, &mut || Ok(())).unwrap();
            assert_eq!(seen.is_err(), is_obstacle, "{target}: {seen:?}");
        }
    }
}
