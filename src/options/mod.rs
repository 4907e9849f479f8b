//! What the user asked for: the command line and the environment, read once and turned into values.
//!
//! *Architecture invariant:* this is the only module that reads either, or asks for the terminal, the current folder, the folder
//! for temporary files and the number of cores. What it cannot read it refuses by name.
//!
//! `roles` finds out which use of eval-once this is and where its keys come from, `flags` reads a command line, `job` and `host`
//! the environment, and `orders` makes of it all an order that can be done, or a [`Refusal`].

mod flags;
mod host;
mod job;
mod orders;
mod roles;
mod variables;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use crate::base::BaseOrder;
use crate::buildkite::default_command::AgentJob;
use crate::doctor::DoctorOrder;
use crate::environment::HostEnvironment;
use crate::host::Host;
use crate::job::{HookedJob, TrailingCommand};
use crate::log::Log;
use crate::recording::{PinOrder, RecordingOrder};
use crate::step::StepOrder;
use crate::summary::SummaryOrder;

pub use flags::completions;
pub use orders::Refusal;
use variables::Variables;

/// What eval-once was started to do.
#[derive(Debug)]
pub enum Invocation {
    /// Build one target; then become this command, if there is one.
    Step(StepOrder, Option<TrailingCommand>),
    /// Build one target; then become the job's own command, if there is one.
    JobStep(StepOrder, HookedJob),
    /// Print what a step would do.
    Explain {
        /// The step.
        order: StepOrder,
        /// As JSON, instead of for people.
        json: bool,
    },
    /// Record all targets.
    Pipeline(Box<RecordingOrder>),
    /// Record all targets; then become the job's own command, if there is one.
    JobPipeline(Box<RecordingOrder>, HookedJob),
    /// Sum the build up.
    Summary(SummaryOrder),
    /// Sum the build up; then become the job's own command, if there is one.
    JobSummary {
        /// The summary.
        order: SummaryOrder,
        /// The job.
        job: HookedJob,
    },
    /// Keep and share `.drv`s.
    Pin(Box<PinOrder>),
    /// Fetch what an earlier build has recorded, and its outcomes.
    Base(BaseOrder),
    /// Remove expired GC roots of past recordings, and archives and checkouts that steps no longer use.
    Prune(Host),
    /// Check this host.
    Doctor {
        /// What is checked.
        order: Box<DoctorOrder>,
        /// As JSON, instead of for people.
        json: bool,
    },
    /// Run a job of the agent's that is not ours.
    OtherJob(AgentJob),
    /// Print the environment of a job, for a shell.
    PrintEnvironment(HostEnvironment),
    /// Set the environment of a job, by the agent's Job API.
    SetEnvironment(HostEnvironment),
    /// Print the completions for a shell.
    Completions(clap_complete::Shell),
    /// Print something for the user to read (`--help`, or what is wrong with the command line), and end with this status.
    Message(Box<clap::Error>, u8),
    /// Do nothing of what was asked for, and report why.
    Refused(Refusal),
}

/// What this process was started with.
#[derive(Debug)]
struct Startup {
    variables: Variables,
    /// The current folder.
    folder: PathBuf,
    /// The file of this program.
    program: Option<PathBuf>,
    /// The cores that it may use.
    cores: NonZeroUsize,
    /// When it was started.
    started: Instant,
}

/// The variable that asks for a debug log.
const LOG: &str = "EVAL_ONCE_LOG";

/// Reads the command line and the environment of this process.
#[must_use]
pub fn read(started: Instant) -> (Invocation, Log) {
    let startup = Startup {
        variables: std::env::vars_os().collect(),
        folder: std::env::current_dir().unwrap_or_else(|_| ".".into()),
        program: std::env::current_exe().ok(),
        cores: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        started,
    };
    let is_terminal = std::io::stderr().is_terminal();
    let mut log = Log::default();
    log.debug = startup.variables.is(LOG, "debug");
    log.terminal = !job::is_job(&startup.variables) && is_terminal;
    log.colours = is_terminal && wants_colours(&startup.variables);
    if let Some(other) = startup.variables.text(LOG).filter(|_| !log.debug) {
        log.warn(format_args!(
            "{LOG} is `{other}`, and only `debug` means something: it is ignored"
        ));
    }
    let arguments: Vec<OsString> = std::env::args_os().collect();
    (roles::invocation(&startup, &arguments, &log), log)
}

/// Whether a terminal gets colours: as with Nix and clap, `NO_COLOR` and a terminal that is `dumb` forbid them.
fn wants_colours(variables: &Variables) -> bool {
    variables.get("NO_COLOR").is_none() && !variables.is("TERM", "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A start with these variables.
    pub(super) fn startup(variables: &[(&str, &str)]) -> Startup {
        Startup {
            variables: variables.iter().copied().collect(),
            folder: std::env::current_dir().unwrap(),
            program: None,
            cores: NonZeroUsize::MIN,
            started: Instant::now(),
        }
    }

    #[test]
    fn a_terminal_has_colours_unless_its_user_or_its_kind_forbids_them() {
        let wanted = |variables: &[(&str, &str)]| wants_colours(&startup(variables).variables);
        assert!(wanted(&[]) && wanted(&[("TERM", "xterm"), ("NO_COLOR", "")]));
        assert!(!wanted(&[("NO_COLOR", "1")]) && !wanted(&[("TERM", "dumb")]));
    }
}
