//! What Nix prints on standard output, as store paths.

use crate::nix::StorePath;
use crate::supervise::Finished;

/// The store paths that a program has printed; anything else is dropped.
pub(super) fn store_paths(finished: &Finished) -> impl Iterator<Item = StorePath> {
    finished
        .paths()
        .filter_map(|path| StorePath::parse(path.to_str()?).ok())
}
