//! Integration tests: real Nix in private stores, the real Buildkite agent.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test's helpers say what they expect as the tests do"
)]

mod configuration;
mod evaluate;
mod explain;
mod out_link;
mod plugin_yml;
mod shim;
mod statuses;
mod step;
mod support;
