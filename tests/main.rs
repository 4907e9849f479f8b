//! Integration tests: real Nix in private stores, the real Buildkite agent.

mod agent_hook;
mod agent_step;
mod cancellation;
mod environment;
mod plugin;
mod step;
mod support;
