//! GC roots of what is there already: the command that makes one, and what Nix says of it.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::command_line::CommandLine;
use crate::nix::{StorePath, command};
use crate::supervise::Finished;

/// The command that roots a path at `link`, if it is valid and these settings let nothing be substituted.
pub(super) fn rooting_line(
    path: &StorePath,
    link: &Path,
    options: &command::Options,
) -> CommandLine {
    command::collecting_nothing(command::obtain(&[path], Some(link), options))
}

/// Whether `roots`, what Nix says that keeps a path, names this link. Through a daemon it is what the daemon sees.
pub(super) fn names_root(roots: &Finished, link: &Path) -> bool {
    let ours = [link.as_os_str().as_bytes(), b" -> "].concat();
    roots
        .paths()
        .any(|root| root.as_os_str().as_bytes().starts_with(&ours))
}
