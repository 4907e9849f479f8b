//! How `.drv`s get from the host that records to those that build: as an archive that is an artifact of the build, or through a
//! store. A recording writes a share, a step reads it.

mod archive_name;
mod download;
mod pack;
mod publish;
mod unpack;
mod unpacked;

pub use archive_name::{archive_name, sha256_of_name};
pub use publish::{NotShared, Published, Publisher};
pub use unpacked::{ArchivePlace, ArchiveRecord, UnpackedArchive, unpacked};
