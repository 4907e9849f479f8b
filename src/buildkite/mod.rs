//! Buildkite and its agent as data: plugin configuration, what the agent does with a command when no hook does it instead,
//! and the pipelines that it uploads.
//!
//! Nothing here starts a process. The rules were read from the agent's source (v3.137 and v4) and are compared with a real
//! agent by the integration tests.

pub mod agent;
pub mod agent_config;
pub mod command_hooks;
pub mod default_command;
pub mod git;
pub mod hook_script;
mod json_schema;
pub mod markdown;
pub mod outcome;
pub mod pipeline;
pub mod plugin;
pub mod schema;
mod shell_words;

pub use shell_words::{EmptyWords, split as split_shell_words};
