//! Integration tests: real Nix in private stores, the real Buildkite agent.
