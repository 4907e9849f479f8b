//! This host: its settings, which no pipeline chooses, and the conditions that a failure may be due to (memory that ran out, a
//! full disk, a missing folder).

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use unix::sys::statvfs::statvfs;

use crate::exit::{Class, Failure};
use crate::nix::settings::NixSettings;
use crate::share_keys::ShareSetting;

/// A disk with fewer free bytes than this is low: an output of ordinary size may not fit.
const LOW: u64 = 2 << 30;

/// The settings of this host, which no step chooses.
#[derive(Debug, Clone)]
pub struct Host {
    /// Where the state folder is or will be; none where neither a setting nor a home folder says so.
    pub state: Option<PathBuf>,
    /// How many evaluation slots there are: so many steps may evaluate at once.
    pub evaluations: NonZeroUsize,
    /// Whether steps never evaluate (`EVAL_ONCE_POLICY=recorded-only`).
    pub recorded_only: bool,
    /// How recordings share, and where steps fetch, that do not say it themselves (`EVAL_ONCE_SHARE`).
    pub share: Option<ShareSetting>,
    /// Nix's settings, as far as its configuration files have them.
    pub nix: NixSettings,
    /// Where temporary files are made (`TMPDIR`).
    pub temporary: PathBuf,
}

/// How many processes the kernel has killed on this host because memory ran out, since it was booted: `oom_kill` in
/// `/proc/vmstat` (since Linux 4.13). None on macOS.
#[must_use]
pub fn killed_for_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/vmstat").ok()?;
    let number = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    number?.trim().parse().ok()
}

/// What is free on the disk that holds `folder`, in words, where that is little; none also where it is not known.
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

/// The failure where the `folder` for temporary files is missing and Nix's `message` names a path in it: no evaluation error. An
/// evaluation needs that folder only to fetch (2.8) and to build; a daemon has its own.
#[must_use]
pub fn no_temporary_folder(folder: &Path, message: &str) -> Option<Failure> {
    let path = folder.to_string_lossy();
    // 2.34 uses other quotes.
    let named = ['\'', '"']
        .iter()
        .any(|quote| message.contains(&format!("{quote}{path}")));
    (named && !folder.is_dir()).then(|| {
        Failure::new(
            Class::Infrastructure,
            format_args!("TMPDIR is {path}, which is not a folder: {message}"),
        )
        .hint("make that folder, or set TMPDIR to one that exists")
    })
}

/// A number from the system: 64 bits on Linux, for some of them 32 on macOS.
fn number(number: impl Into<u64>) -> u64 {
    number.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_about_a_path_in_tmpdir_is_the_hosts_only_where_that_folder_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let about = |path: &Path, quote| {
            format!(
                "creating directory {quote}{}/nix-1{quote}: no",
                path.display()
            )
        };
        for quote in ['\'', '"'] {
            let failure = no_temporary_folder(&missing, &about(&missing, quote)).unwrap();
            assert_eq!(failure.class, Class::Infrastructure);
            let message = failure.to_string();
            let begin = format!("TMPDIR is {}, which is not a folder", missing.display());
            assert!(message.starts_with(&begin), "{message}");
            let existing = no_temporary_folder(folder.path(), &about(folder.path(), quote));
            assert!(existing.is_none());
        }
        for message in [
            about(folder.path(), '\''),
            format!("a file below {}", missing.display()),
            "undefined variable 'x'".into(),
        ] {
            assert!(
                no_temporary_folder(&missing, &message).is_none(),
                "{message}"
            );
        }
    }

    #[test]
    fn what_is_free_on_a_missing_disk_is_not_known() {
        assert_eq!(low_on_disk(Path::new("/nonesuch/folder")), None);
    }
}
