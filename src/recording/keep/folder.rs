//! The folder of a pin in the state folder: its files, its lock, and when it is removed.
//!
//! Recordings and `prune` meet here, and any of them may be killed at any time.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::exit::{Class, Classify as _, Failure};
use crate::log::Log;
use crate::private;
use crate::state::{
    LOCK, LockWait, StateFolder, holders, is_at, is_ours, open_lock, open_with_lock, remove_whole,
};
use crate::supervise::{PATIENCE, Supervisor};

/// How long a pin is kept: a file beside it.
#[derive(Debug, Serialize, Deserialize)]
struct PinExpiry {
    /// Until when, in seconds since 1970.
    until: u64,
}

/// The note of the last recording that has removed expired pins.
const PRUNED: &str = "pruned";

/// How often recordings remove expired pins: it is a look at every pin of the host, and days are what they expire by.
const PRUNE_EVERY: Duration = Duration::from_secs(60 * 60);

/// How long the file beside a pin may be, in bytes.
const EXPIRY_AT_MOST: u64 = 4 << 10;

/// Removes expired pins, unless a recording of this host did in the last hour.
pub(in crate::recording) fn remove_expired_at_times(state: &StateFolder) {
    if state.note(PRUNED, PRUNE_EVERY).is_none() {
        let _ = state.write_note(PRUNED, "");
        remove_expired(state);
    }
}

/// Removes expired pins, and gives their folders. What cannot be removed (another user made it, say) stays.
pub(in crate::recording) fn remove_expired(state: &StateFolder) -> Vec<PathBuf> {
    let Ok(entries) = state.pins().read_dir() else {
        return Vec::new();
    };
    let now = seconds(SystemTime::now());
    let mut removed = Vec::new();
    for entry in entries.flatten() {
        let folder = entry.path();
        let is_due = || until(&folder).is_some_and(|until| until < now);
        if !is_ours(&entry) {
            continue;
        }
        if is_due() && remove(&folder, is_due) {
            removed.push(folder);
        } else if left_links(&folder).next().is_some()
            && let Ok(lock) = open_lock(&folder.join(LOCK))
        {
            remove_left_links(&folder, &lock);
        }
    }
    removed
}

/// Removes the folder of a pin, unless a recording holds it, or it is no longer due once it is locked. Gives whether it is removed.
pub(super) fn remove(folder: &Path, is_due: impl Fn() -> bool) -> bool {
    // Made where it is missing (a removal that was cut short removes it first): else a recording could make it meanwhile.
    let path = folder.join(LOCK);
    let Ok(lock) = open_lock(&path) else {
        return false;
    };
    if let Err(TryLockError::WouldBlock) = lock.try_lock() {
        return false;
    }
    // Meanwhile a recording may have made it anew, or another prune may have removed it.
    is_at(&lock, &path) && is_due() && remove_whole(folder).is_ok()
}

/// Makes a pin's folder, and protects it from `prune` as long as the file is open. On a file system without locks it is only made.
///
/// # Errors
/// It cannot be made, or another process has its lock for too long (75): `prune` has it for a moment only. A signal asked us to end
/// (128 + n).
pub(in crate::recording) fn hold(
    folder: &Path,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<File, Failure> {
    let in_state = || format!("cannot keep a pin in {}", folder.display());
    let locks = [folder.join(LOCK)];
    let mut wait = LockWait::new("the lock of a pin");
    loop {
        if let Some(held) = try_hold(folder).classify(Class::Infrastructure, in_state)? {
            return Ok(held);
        }
        if wait.elapsed() >= PATIENCE {
            let (seconds, holders) = (PATIENCE.as_secs(), holders(&locks));
            return Err(Failure::new(
                Class::Infrastructure,
                format_args!(
                    "{}: {seconds} s were not enough to get its lock{holders}",
                    in_state()
                ),
            ));
        }
        wait.pause(&locks, supervisor, log)?;
    }
}

/// The same; none where another process removes it just now.
fn try_hold(folder: &Path) -> io::Result<Option<File>> {
    let lock = open_with_lock(folder)?;
    if left_links(folder).next().is_some() {
        remove_left_links(folder, &lock);
    }
    if let Err(TryLockError::WouldBlock) = lock.try_lock_shared() {
        return Ok(None);
    }
    Ok(is_at(&lock, &folder.join(LOCK)).then_some(lock))
}

/// The links of a Nix that was killed while it rooted the pin: it makes one beside the root, and renames it.
fn left_links(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = folder.read_dir().into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            is_temporary(entry.file_name().as_bytes())
                && entry.file_type().is_ok_and(|kind| kind.is_symlink())
        })
        .map(|entry| entry.path())
}

/// Whether Nix names a link so that is to become the root: `pin.tmp-PID-NUMBER` (2.8), `.NUMBER_pin`, `.tmp-…`.
fn is_temporary(name: &[u8]) -> bool {
    if name.starts_with(b"pin.tmp-") || name.starts_with(b".tmp-") {
        return true;
    }
    let Some(rest) = name.strip_prefix(b".") else {
        return false;
    };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    digits > 0 && [&b"_pin"[..], b"_\"pin\""].contains(&&rest[digits..])
}

/// Removes them, unless another process has the pin: its Nix may be making one. The lock is free again afterwards.
fn remove_left_links(folder: &Path, lock: &File) {
    if lock.try_lock().is_err() {
        return;
    }
    if is_at(lock, &folder.join(LOCK)) {
        for link in left_links(folder) {
            let _ = fs::remove_file(link);
        }
    }
    let _ = lock.unlock();
}

/// Until when a pin is kept, in seconds since 1970; one without that file is being made, or its recording was killed.
fn until(folder: &Path) -> Option<u64> {
    let said = private::read(&folder.join("keep.json"), EXPIRY_AT_MOST)
        .ok()
        .and_then(|text| serde_json::from_str::<PinExpiry>(&text).ok());
    match said {
        Some(PinExpiry { until }) => Some(until),
        None => Some(seconds(folder.symlink_metadata().ok()?.modified().ok()?) + 24 * 60 * 60),
    }
}

pub(in crate::recording) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs()
}

/// Says until when the pin in `folder` is kept, in seconds since 1970.
///
/// # Errors
/// The file cannot be written.
pub(in crate::recording) fn write_expiry(
    state: &StateFolder,
    folder: &Path,
    until: u64,
) -> io::Result<()> {
    let expiry = serde_json::to_vec(&PinExpiry { until })?;
    state.write_whole(&folder.join("keep.json"), &expiry)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_that_a_killed_nix_has_left_go_with_the_next_recording_or_prune() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let pin = state.pins().join("eval-once-x");
        let held = try_hold(&pin).unwrap().unwrap();
        write_expiry(&state, &pin, seconds(SystemTime::now()) + 1000).unwrap();
        let names = || -> Vec<String> {
            let entries = pin.read_dir().unwrap().flatten();
            let mut names: Vec<_> = entries
                .map(|entry| entry.file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        let others = [
            ".pin",
            ".x_pin",
            "keep.json",
            "lock",
            "pin",
            "pin.tmp",
            "tmp-1",
        ];
        for other in others
            .iter()
            .filter(|name| !["lock", "keep.json"].contains(name))
        {
            symlink("/s/x", pin.join(other)).unwrap();
        }
        // A file is none of Nix's.
        fs::write(pin.join(".tmp-file"), "").unwrap();
        let kept = names();
        let leave = || {
            for left in ["pin.tmp-12-345", ".tmp-1-2", ".0_pin", ".17_\"pin\""] {
                symlink("/s/x", pin.join(left)).unwrap();
            }
        };
        leave();
        let all = names();
        // While one has the pin, another may have it, too; their links stay.
        drop(try_hold(&pin).unwrap().unwrap());
        assert_eq!(remove_expired(&state), Vec::<PathBuf>::new());
        assert_eq!(names(), all);
        drop(held);
        assert_eq!(remove_expired(&state), Vec::<PathBuf>::new());
        assert_eq!(names(), kept);
        leave();
        let held = try_hold(&pin).unwrap();
        assert!(held.is_some());
        assert_eq!(names(), kept);
    }

    #[test]
    fn only_a_pin_that_is_old_enough_is_pruned() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let now = seconds(SystemTime::now());
        for (name, until) in [
            ("eval-once-old", now - 5),
            ("eval-once-new", now + 1000),
            ("other", now - 5),
        ] {
            let pin = state.pins().join(name);
            fs::create_dir(&pin).unwrap();
            fs::write(pin.join("keep.json"), format!("{{\"until\":{until}}}")).unwrap();
        }
        drop(try_hold(&state.pins().join("eval-once-begun")).unwrap());
        // One that a recording holds stays.
        let held = state.pins().join("eval-once-held");
        let lock = try_hold(&held).unwrap().unwrap();
        fs::write(held.join("keep.json"), "{\"until\":1}").unwrap();
        assert_eq!(remove_expired(&state), [state.pins().join("eval-once-old")]);
        let left = |name: &str| state.pins().join(name).exists();
        assert!(left("eval-once-new") && left("eval-once-begun") && left("other"));
        assert!(left("eval-once-held"));
        drop(lock);
        assert_eq!(remove_expired(&state), [held]);
        // What says nothing of its time has a day.
        let begun = state.pins().join("eval-once-begun");
        let set_age = |hours: u64| {
            let time = SystemTime::now() - Duration::from_secs(hours * 60 * 60);
            File::open(&begun).unwrap().set_modified(time).unwrap();
        };
        set_age(23);
        assert_eq!(remove_expired(&state), Vec::<PathBuf>::new());
        set_age(25);
        assert_eq!(remove_expired(&state), [begun]);
    }

    #[test]
    fn a_pin_that_was_renewed_while_it_was_opened_stays() {
        let folder = tempfile::tempdir().unwrap();
        let pin = folder.path().join("pin");
        fs::create_dir(&pin).unwrap();
        assert!(!remove(&pin, || false));
        assert!(pin.exists());
        assert!(remove(&pin, || true));
        assert!(!pin.exists());
    }

    #[test]
    fn a_held_pin_is_the_folder_that_exists() {
        use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

        /// Ends the threads also where an assertion fails: the scope would wait for them.
        struct Stops<'a>(&'a AtomicBool);
        impl Drop for Stops<'_> {
            fn drop(&mut self) {
                self.0.store(true, SeqCst);
            }
        }

        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let pin = state.pins().join("eval-once-x");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stops = Stops(&stop);
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(SeqCst) {
                        remove_expired(&state);
                    }
                });
            }
            let mut held = 0;
            while held < 500 {
                let Some(_held) = try_hold(&pin).unwrap() else {
                    std::thread::yield_now();
                    continue;
                };
                write_expiry(&state, &pin, 1).unwrap();
                held += 1;
                fs::write(pin.join("pin"), "").unwrap();
                std::thread::yield_now();
                assert!(pin.join("pin").exists());
            }
        });
    }
}
