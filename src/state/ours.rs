//! Our folders in the state folder, and how they are told from others.

use std::fs::DirEntry;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use tempfile::TempDir;

/// How the names of our folders begin: in a folder that was configured by mistake, nothing else is touched.
const PREFIX: &str = "eval-once-";

/// A new folder of ours.
pub(super) fn folder_of_ours(parent: &Path) -> io::Result<TempDir> {
    tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)
}

/// Whether this is one of ours, by its name.
pub(super) fn is_ours(entry: &DirEntry) -> bool {
    entry.file_name().as_bytes().starts_with(PREFIX.as_bytes())
}
