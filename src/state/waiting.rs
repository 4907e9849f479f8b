//! Waiting for a lock that another process has: a signal ends it, and one that lasts is said with that process's number.

use std::fs::{File, Metadata};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::exit::Failure;
use crate::log::Log;
use crate::supervise::Supervisor;

/// How often a lock is looked at: the kernel does not notify of one of several that becomes free, and a process that waits in
/// `flock` would not notice a signal.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// After which time it is said what is waited for, and who has it.
const SAY_AFTER: Duration = Duration::from_secs(5);

/// How often the kernel's table is read until it names somebody: a page is all that one call gives of it, and of 300 locks beside others
/// that come and go, seven of ten readings lacked a line (measured with Linux 6).
const READS: usize = 16;

/// One wait for a lock.
#[derive(Debug)]
pub struct LockWait<'a> {
    what: &'a str,
    began: Instant,
    said: bool,
}

impl<'a> LockWait<'a> {
    /// Begins to wait for `what`.
    #[must_use]
    pub fn new(what: &'a str) -> Self {
        Self {
            what,
            began: Instant::now(),
            said: false,
        }
    }

    /// How long it lasts by now.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Waits a moment before the next look at these files, of which other processes have the locks.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn pause(
        &mut self,
        locks: &[impl AsRef<Path>],
        supervisor: &mut Supervisor,
        log: &Log,
    ) -> Result<(), Failure> {
        if !self.said && self.elapsed() >= SAY_AFTER {
            self.said = true;
            log.say(format_args!(
                "still waiting for {}{}",
                self.what,
                holders(locks)
            ));
        }
        supervisor.pause(LOOK_EVERY)
    }
}

/// Who has these locks, as a clause: what Linux says, elsewhere what shows it.
#[must_use]
pub fn holders(locks: &[impl AsRef<Path>]) -> String {
    let files = locks.iter().map(AsRef::as_ref);
    let known: Vec<_> = files
        .clone()
        .filter_map(|file| file.symlink_metadata().ok())
        .collect();
    let mut numbers: Vec<u32> = (0..READS)
        .map(|_| {
            let table = table();
            let of = |file| holders_in(&table, file);
            known.iter().flat_map(of).collect()
        })
        .find(|numbers: &Vec<u32>| !numbers.is_empty())
        .unwrap_or_default();
    numbers.sort_unstable();
    numbers.dedup();
    match (&numbers[..], files.clone().next()) {
        ([], None) => String::new(),
        // Not Linux; or a process that this container does not see.
        ([], Some(file)) => format!(" (`lsof {}` shows which process has it)", file.display()),
        ([one], _) => format!(", which the process {one} has"),
        _ => {
            let numbers: Vec<_> = numbers.iter().map(ToString::to_string).collect();
            format!(", which the processes {} have", numbers.join(", "))
        }
    }
}

/// The kernel's table of locks, empty where there is none. It is read by as few calls as it takes: the kernel counts lines from one
/// call to the next, and each lock that is given back between two calls hides a line of another.
fn table() -> String {
    let mut table = Vec::new();
    let read = File::open("/proc/locks")
        .map(|file| BufReader::with_capacity(64 << 10, file))
        .and_then(|mut file| {
            loop {
                let bytes = file.fill_buf()?;
                if bytes.is_empty() {
                    break Ok(());
                }
                table.extend_from_slice(bytes);
                let read = bytes.len();
                file.consume(read);
            }
        });
    read.ok()
        .and_then(|()| String::from_utf8(table).ok())
        .unwrap_or_default()
}

/// The processes that have the lock of this file, by the kernel's table. Its lines have the form
/// `12: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF` (proc(5)); those that wait have `->` behind the number.
fn holders_in(table: &str, file: &Metadata) -> Vec<u32> {
    let device = device_of(file);
    let inode = file.ino();
    // btrfs has other devices there than in the metadata of a file. The inode decides where none is of this device.
    let (mut here, mut anywhere) = (Vec::new(), Vec::new());
    for line in table.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, process, place, ..] = words[..] else {
            continue;
        };
        let mut place = place.split(':');
        let mut hexadecimal = || u64::from_str_radix(place.next()?, 16).ok();
        let of = hexadecimal().zip(hexadecimal());
        let is_it = place.next().and_then(|it| it.parse().ok()) == Some(inode);
        // One of another namespace has the number 0.
        let process = process.parse().ok().filter(|process| *process > 0);
        let (true, Some(process)) = (is_it, process) else {
            continue;
        };
        anywhere.push(process);
        if of == Some(device) {
            here.push(process);
        }
    }
    if here.is_empty() { anywhere } else { here }
}

/// The device of a file by its two numbers, as Linux puts them together: it alone has the table.
fn device_of(file: &Metadata) -> (u64, u64) {
    let device = file.dev();
    (
        (device >> 32) & 0xffff_f000 | (device >> 8) & 0xfff,
        (device >> 12) & 0xffff_ff00 | device & 0xff,
    )
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::private;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_holder_of_a_lock_is_named() {
        let folder = private::temporary_folder(Path::new("/tmp"), "eo").unwrap();
        let (free, held) = (folder.path().join("free"), folder.path().join("held"));
        private::write(&free, b"").unwrap();
        let lock = private::create(&held).unwrap();
        lock.try_lock().unwrap();
        let us = std::process::id();
        assert_eq!(holders(&[&held]), format!(", which the process {us} has"));
        assert_eq!(
            holders(&[&free]),
            format!(" (`lsof {}` shows which process has it)", free.display())
        );
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_holder_of_a_lock_is_named_while_other_locks_come_and_go() {
        let folder = private::temporary_folder(Path::new("/tmp"), "eo").unwrap();
        let held = folder.path().join("held");
        let lock = private::create(&held).unwrap();
        lock.try_lock().unwrap();
        let named = format!(", which the process {} has", std::process::id());
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for other in ["a", "b", "c"] {
                let other = private::create(&folder.path().join(other)).unwrap();
                let done = &done;
                scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        other.try_lock().unwrap();
                        other.unlock().unwrap();
                    }
                });
            }
            let seen: Vec<_> = (0..500).map(|_| holders(&[&held])).collect();
            done.store(true, Ordering::Relaxed);
            assert!(seen.iter().all(|seen| *seen == named));
        });
    }

    #[test]
    fn the_table_is_read_by_the_device_and_where_that_is_another_by_the_inode() {
        let folder = private::temporary_folder(Path::new("/tmp"), "eo").unwrap();
        let file = folder.path().metadata().unwrap();
        let (major, minor) = device_of(&file);
        let inode = file.ino();
        let here = format!("{major:02x}:{minor:02x}:{inode}");
        let there = format!("ff:ff:{inode}");
        let table = |lines: &[String]| lines.join("\n");
        let line = |number, kind: &str, place: &str| {
            format!("1: {kind}  ADVISORY  WRITE {number} {place} 0 EOF")
        };
        let both = table(&[
            line(7, "FLOCK", &here),
            line(8, "FLOCK", &there),
            line(9, "POSIX", &here),
            line(0, "FLOCK", &here),
            format!("1: -> FLOCK  ADVISORY  WRITE 6 {here} 0 EOF"),
            line(5, "FLOCK", "08:01:1"),
            "1: FLOCK".into(),
        ]);
        assert_eq!(holders_in(&both, &file), [7]);
        let other = table(&[line(8, "FLOCK", &there)]);
        assert_eq!(holders_in(&other, &file), [8]);
        assert!(holders_in("", &file).is_empty());
    }
}
