//! The pipeline as a value: from records to steps, and from steps to what others read of them.
//!
//! Pure: nothing here asks Nix or Buildkite, and nothing here knows how a pipeline is uploaded.

pub(crate) mod document;
pub mod edges;
pub(in crate::recording) mod excess;
pub(in crate::recording) mod limits;
pub(in crate::recording) mod placed_step;
pub(crate) mod steps;

#[cfg(test)]
pub(in crate::recording) mod fixtures;
