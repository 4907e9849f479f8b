//! Integration tests: real Nix in private stores, the real Buildkite agent.

mod agent_hook;
mod cancellation;
mod environment;
mod plugin;
mod step;
mod support;
