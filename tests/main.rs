//! Integration tests: real Nix in private stores, the real Buildkite agent.

#![expect(
    clippy::unwrap_used,
    reason = "what is not as a test says is its failure, in its helpers too"
)]

mod plugin_yml;
mod shim;
mod step;
mod support;
