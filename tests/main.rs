//! Integration tests: real Nix in private stores, the real Buildkite agent.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers say what they expect as the tests do"
)]

mod agent_hook;
mod agent_recording;
mod agent_step;
mod attacks;
mod buildkite_server;
mod cancellation;
mod checkout;
mod classes;
mod configuration;
mod conversation;
mod counts;
mod derivation;
mod doctor;
mod environment;
mod evaluate;
mod expected_errors;
mod explain;
mod failures;
mod flakes;
mod fleet;
mod fuzz;
mod host_settings;
mod hostile_output;
mod job_log;
mod key_table;
mod layers;
mod messages;
mod nix_messages;
mod nix_shapes;
mod one_truth;
mod other_store;
mod out_link;
mod outputs;
mod page_commands;
mod pages;
mod plugin;
mod plugin_order;
mod plugin_yml;
mod private_state;
mod publish;
mod push;
mod quiet_log;
mod recording_attack;
mod recording_evaluate;
mod recording_in_build;
mod recording_keys;
mod recording_stopped;
mod recording_store;
mod recording_trust;
mod recording_walk;
mod reproduce;
mod secrets;
mod share_recording;
mod share_step;
mod shim;
mod statuses;
mod step;
mod structured_log;
mod summary;
mod support;
mod versions;
