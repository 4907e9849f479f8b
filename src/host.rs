//! This host: its settings, which no pipeline chooses, and what of it a failure may be due to (memory that ran out, a full disk,
//! a missing folder).

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use unix::sys::statvfs::statvfs;

use crate::exit::{Class, Failure};
use crate::nix::settings::NixSettings;

/// Below this many bytes that are free a disk is said to be low: an output of ordinary size may not fit.
const LOW: u64 = 2 << 30;

/// The settings of this host, which no step chooses.
#[derive(Debug, Clone)]
pub struct Host {
    /// Where the state folder is or shall be; none where nobody knows a home.
    pub state: Option<PathBuf>,
    /// How many steps may evaluate at once.
    pub evaluations: NonZeroUsize,
    /// A step never evaluates (`EVAL_ONCE_POLICY=recorded-only`).
    pub recorded_only: bool,
    /// Where Nix's settings are.
    pub nix: NixSettings,
    /// Where temporary files are made (`TMPDIR`).
    pub temporary: PathBuf,
}

/// How many processes the kernel has killed on this host for want of memory, since it was started: `oom_kill` in
/// `/proc/vmstat` (since Linux 4.13). None where there is no such number (macOS).
#[must_use]
pub fn killed_for_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/vmstat").ok()?;
    let number = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    number?.trim().parse().ok()
}

/// What is low on the disk that holds `folder`, in words; none where nothing is, or nobody knows.
#[must_use]
pub fn low_on_disk(folder: &Path) -> Option<String> {
    let disk = statvfs(folder).ok()?;
    let free = number(disk.blocks_available()).saturating_mul(number(disk.fragment_size()));
    let (files, free_files) = (number(disk.files()), number(disk.files_available()));
    if free < LOW {
        Some(format!("{} MiB", free >> 20))
    } else if files > 0 && free_files < files / 100 {
        Some(format!("room for {free_files} files"))
    } else {
        None
    }
}

/// The failure where the `folder` for temporary files is not there, and Nix says so of a path in it: no fault of an expression. An
/// evaluation needs that folder to fetch (2.8) and to build, and mostly not at all; a daemon has its own.
#[must_use]
pub fn no_temporary_folder(folder: &Path, message: &str) -> Option<Failure> {
    let path = folder.to_string_lossy();
    // 2.34 has other quotes.
    let named = ['\'', '"']
        .iter()
        .any(|quote| message.contains(&format!("{quote}{path}")));
    (named && !folder.is_dir()).then(|| {
        Failure::new(
            Class::Infrastructure,
            format_args!("TMPDIR is {path}, which is no folder: {message}"),
        )
        .hint("make that folder, or let TMPDIR name one that is there")
    })
}

/// A number of the system's: on Linux it has 64 bits, on macOS some have 32.
fn number(number: impl Into<u64>) -> u64 {
    number.into()
}
