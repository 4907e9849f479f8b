//! eval-once: Nix CI on Buildkite that evaluates every target once.
//!
//! A recording evaluates all targets and writes one step for each; a step then only realises the `.drv` that the
//! evaluation wrote. Nothing keeps that `.drv` from being collected meanwhile, or the step from running on a host that
//! never had it: so a step goes down a list of *ways* to its outputs, and evaluates again only as the last of them. It
//! always says which way it took, and why.
//!
//! # Where everything lives
//!
//! | module | is responsible for |
//! | --- | --- |
//! | [`options`] | what the user asked for: the command line and the environment, turned into values |
//! | [`keys`] | reading what a user has configured, strictly, whatever it means |
//! | [`evaluation_keys`] | the keys that say what is evaluated: the same in a step and in a recording |
//! | [`build_keys`] | the keys that say how a target is built: read by a step, given by a recording to its steps |
//! | [`flake_settings`] | the settings that a flake asks for, where the host trusts it |
//! | [`step`] | one target: the keys of a step, the list of ways, the choice between them, the report |
//! | [`recording`] | all targets: evaluating them once, keeping what was found, the pipeline that builds it |
//! | [`summary`] | a build at a glance: what recordings planned and steps left, as an annotation and as JUnit |
//! | [`job`] | what a job of the agent's becomes: a step of ours, or the job as it would have been without us; the command that follows a step |
//! | [`environment`] | what the agent's `environment` hook puts into a job |
//! | [`nix`] | Nix's names and command lines as data, and what its programs print |
//! | [`buildkite`] | the agent's names and rules as data: plugin configuration, the command hooks of a job, the default command, pipelines and what is wrong with them |
//! | [`agent`] | asking the agent for what only Buildkite has, and what is wrong where that fails |
//! | [`state`] | the host's state folder: turns to evaluate, roots that outlive a process |
//! | [`command_line`] | programs as data: what is to be run, as what, and how it ended |
//! | [`supervise`] | every process: starting, signalling, waiting, being replaced by one |
//! | [`host`] | what of this host a step's ending depends on: memory that ran out, a full disk |
//! | [`at_once`] | several programs at once, whatever they are |
//! | [`text`] | text that comes from elsewhere, as it can be shown |
//! | [`paths`] | paths by their letters, and where they really lead |
//! | [`exit`] | what a failure means to whoever retries: classes and exit statuses |
//! | [`log`] | our own lines in a job's log |
//! | [`counts`] | how a recording is counted, and in which words |
//! | [`status_line`] | the line that says how far something is |
//!
//! The program itself (`main.rs`) reads the options, calls [`step`], [`recording`], [`summary`], [`job`] or [`environment`], and
//! turns what comes back into an exit status.
//!
//! # Boundaries
//!
//! *Architecture invariant:* only [`options`] reads the environment and the command line. Everything below it gets values.
//!
//! *Architecture invariant:* only [`supervise`] starts, signals or waits for a process. [`nix`] and [`buildkite`] build
//! command lines as data, so that a test can compare them and `explain` can print them.
//!
//! *Architecture invariant:* nothing passes through a shell but the user's own step command. Attribute names and paths
//! come from repositories nobody has to trust; they travel as single arguments.
//!
//! *Architecture invariant:* a path of the store is a [`nix::StorePath`] or a [`nix::DrvPath`] once it has been parsed at
//! the edge, and the store's folder is the one that path names, never a literal.
//!
//! *Architecture invariant:* no thread is started and nothing global is changed, the signal handlers of
//! [`supervise::Supervisor`] apart.

#[cfg(not(unix))]
compile_error!("eval-once runs where Nix runs: on Linux and macOS. On Windows, use it inside WSL.");

pub mod agent;
pub mod at_once;
pub mod build_keys;
pub mod buildkite;
pub mod command_line;
pub mod counts;
pub mod environment;
pub mod evaluation_keys;
pub mod exit;
pub mod flake_settings;
pub mod host;
pub mod job;
pub mod keys;
pub mod log;
pub mod nix;
pub mod options;
pub mod paths;
pub mod recording;
pub mod state;
pub mod status_line;
pub mod step;
pub mod summary;
pub mod supervise;
pub mod text;
