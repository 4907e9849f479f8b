//! Integration tests: real Nix in private stores, the real Buildkite agent.

mod step;
mod support;
