//! How `.drv`s get from the host that records to those that build: as an archive that is an artifact of the build, or through a
//! store. A recording writes a share, a step reads it.

mod archive_name;
mod pack;
mod publish;

pub use archive_name::{archive_name, sha256_of_name};
pub use publish::{NotShared, Published, Publisher};
