//! Nix as data: its names, its command lines, what its programs print, and what their endings mean.
//!
//! Nothing here starts a process. Facts that the Nix manual does not promise were measured (on 2.8, 2.26 and 2.34)
//! and are kept true by the integration tests, which run against real Nix in private stores.

mod attr_path;
pub mod caches;
pub mod class;
pub mod command;
mod derivation;
mod dry_run;
mod evaluation;
mod fault;
mod flake;
mod hidden;
pub mod message;
mod noise;
pub mod output;
pub mod settings;
mod store_path;
mod store_url;
pub mod structured;
mod trouble;
pub mod version;

pub use attr_path::{AttrPath, BadAttrPath, string_literal};
pub use class::Phase;
pub use derivation::{
    BadDerivation, Derivation, derivation_text, inputs_of_derivation, inputs_on_disk, is_cut_off,
    is_fixed_output, outputs_of_derivation,
};
pub use dry_run::{DryRun, begins_missing};
pub use evaluation::{Argument, Evaluation, Source, is_url};
pub use fault::{Cause, Fault, is_rejection};
pub use flake::{FlakeMetadata, LockedFlake, flake_settings};
pub use hidden::without_secrets;
pub use message::Message;
pub use noise::NoiseFilter;
pub use output::{Disturbance, LackedFile, NixOutput};
pub use store_path::{BadStorePath, DrvPath, StorePath, is_output_name};
pub use store_url::StoreUrl;
pub use trouble::{BUILD_USERS, OF_THIS_HOST, Trouble};
