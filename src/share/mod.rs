//! How `.drv`s get from the host that records to those that build: as an archive that is an artifact of the build, or through a
//! store. A recording writes a share, a step reads it.

mod archive_name;
mod download;
mod known;
mod pack;
mod publish;
mod unpack;
mod unpacked;

use crate::exit::Failure;

pub use archive_name::{archive_name, sha256_of_name};
pub use publish::{NotShared, Published, ShareWriter};
pub use unpacked::{ArchivePlace, ArchiveRecord, UnpackedArchive, unpacked};

/// Why something could not be had from a share.
#[derive(Debug)]
pub enum ShareError {
    /// The share is to blame, for this reason: a clause that goes on after the share's name.
    Share(String),
    /// The step ends: a signal asked us to.
    Ends(Failure),
}

impl From<Failure> for ShareError {
    fn from(failure: Failure) -> Self {
        Self::Ends(failure)
    }
}
