//! What a job of the agent's becomes when our hook runs in it: a step, a recording or a summary of ours, or the job as it would
//! be without us.
//!
//! In all cases the job's own command *replaces* our process, so that its standard input, terminal, signals and ending are
//! those it has without us. This module does not know where a step's keys come from.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use crate::agent;
use crate::buildkite::command_hooks::FollowingCommand;
use crate::buildkite::default_command::{
    self, AgentJob, CommandPlan, CommandRefusal, Ours, is_eval_once,
};
use crate::command_line::{Program, find_program};
use crate::exit::{Class, Failure};
use crate::keys::refuse;
use crate::log::Log;
use crate::nix::StorePath;
use crate::recording::{self, RecordingOrder};
use crate::step::{self, BuiltStep, StepOrder, main_output};
use crate::summary::{self, SummaryOrder};
use crate::supervise::{Supervisor, become_program};

/// The status with which the agent ends a job whose command it refuses to run, or cannot start.
const REFUSED: u8 = 1;

/// Runs a job that is not ours exactly as the agent would have run it. Returns only where that is refused or fails, with
/// the status that the job then has.
#[must_use]
pub fn pass_through(mut job: AgentJob, log: &Log) -> u8 {
    job.environment.retain(|(name, _)| !is_for_us(name));
    become_program_of(default_command::plan(&job), log)
}

/// What a hook of ours does in a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookTask {
    /// It builds a target.
    Step,
    /// It records all targets.
    Recording,
    /// It sums the build up.
    Summary,
}

impl HookTask {
    /// The subcommand that does the same.
    fn subcommand(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Recording => "pipeline",
            Self::Summary => "summary",
        }
    }

    /// The task itself, in the log.
    fn noun(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Recording => "recording",
            Self::Summary => "summary",
        }
    }

    /// Whose command follows it, in the log.
    fn owner(self) -> &'static str {
        match self {
            Self::Step => "step's",
            Self::Recording | Self::Summary => "job's",
        }
    }

    /// What to do about a command that combines it with more.
    fn hint(self) -> &'static str {
        match self {
            Self::Step => {
                "leave the command at `eval-once step`, or make it only what runs after the build"
            }
            Self::Recording => "leave the command out, or make it only what runs after the upload",
            Self::Summary => "leave the command out, or make it only what runs after the summary",
        }
    }
}

/// A job of the agent's in which a hook of ours has a task; the job's own command follows that.
#[derive(Debug)]
pub struct HookedJob {
    job: AgentJob,
    task: HookTask,
    ours: Ours,
}

impl HookedJob {
    /// The job in which the hook has this task.
    #[must_use]
    pub fn new(job: AgentJob, task: HookTask) -> Self {
        let ours = is_eval_once(&job.command, task.subcommand());
        Self { job, task, ours }
    }

    /// Whether the job has a command of its own, which is not the hook's task again.
    #[must_use]
    pub fn has_command(&self) -> bool {
        self.ours == Ours::No && !is_blank(&self.job.command)
    }

    /// Refuses a job of which not everything would be done. Returns a warning where its command may run twice.
    ///
    /// # Errors
    /// The command is the hook's task and more: running it again would be wrong, and so would dropping the rest. Or another
    /// hook makes the promise of `command` impossible (64).
    pub fn check(&self, command: FollowingCommand) -> Result<Option<String>, Failure> {
        if self.ours == Ours::ItselfAndMore {
            return Err(refuse(format_args!(
                "the command combines `eval-once {}` with other shell code, which this hook cannot run",
                self.task.subcommand()
            ))
            .hint(self.task.hint()));
        }
        self.job.hooks.check(command, self.has_command())
    }

    /// Replaces this process with the job's own command (`exec`). Returns the status if there is no command to run.
    fn become_own_command(self, supervisor: Supervisor, log: &Log) -> Result<u8, Failure> {
        let Self { job, task, ours } = self;
        if is_blank(&job.command) {
            return Ok(0);
        }
        if ours == Ours::Itself {
            if has_flags(&job.command) {
                log.say(format_args!(
                    "the flags of the job's command are ignored: this hook has run the {} already",
                    task.noun()
                ));
            }
            return Ok(0);
        }
        log.group(format_args!("running the {} own command", task.owner()));
        let plan = default_command::plan(&job).and_then(|plan| plan.confined(&job));
        supervisor.hand_over()?;
        Ok(become_program_of(plan, log))
    }
}

/// Builds the step, then replaces this process with the job's own command. Returns the status if there is no command to run.
///
/// # Errors
/// The step failed, and its command is not run then; or a signal asked us to end.
pub fn step(
    order: StepOrder,
    mut job: HookedJob,
    mut supervisor: Supervisor,
    log: &Log,
) -> Result<u8, Failure> {
    let done = step::perform(order, &mut supervisor, log)?;
    let outputs = done.outputs.iter();
    let outputs: Vec<String> = outputs
        .map(|(name, path)| format!("{name}: {path}"))
        .collect();
    if !outputs.is_empty() {
        log.say(outputs.join(", "));
    }
    let environment = environment_of_command(job.job.environment, &done.outputs);
    if let Some(path) = done.program {
        log.group(format_args!("running {}", path.display()));
        return Err(become_built(path, environment, supervisor));
    }
    if !done.command {
        export_outputs(&done.outputs, &mut supervisor, log)?;
        return Ok(0);
    }
    job.job.environment = environment;
    job.become_own_command(supervisor, log)
}

/// Gives the hooks that run after ours (another plugin's, which runs the command) the variables that a command of ours has. Without the
/// agent's Job API they find the outputs by the links alone.
///
/// # Errors
/// A signal asked us to end (128 + n).
fn export_outputs(
    outputs: &BTreeMap<String, StorePath>,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<(), Failure> {
    let variables = output_variables(outputs);
    let variables: Vec<(&str, OsString)> = variables
        .iter()
        .map(|(name, path)| (name.as_str(), path.as_str().into()))
        .collect();
    match agent::set_environment(supervisor, &variables) {
        Err(failure) if matches!(failure.class, Class::Signal(_)) => Err(failure),
        Err(failure) => {
            log.warn(format_args!(
                "the hooks after this one do not have EVAL_ONCE_OUT: {failure}"
            ));
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// The variables by which a command finds the outputs: `EVAL_ONCE_OUT` is the output `out`, else the first, and `EVAL_ONCE_OUT_<NAME>`
/// each of them.
fn output_variables(outputs: &BTreeMap<String, StorePath>) -> BTreeMap<String, &StorePath> {
    let mut outs: BTreeMap<String, &StorePath> = BTreeMap::new();
    outs.extend(main_output(outputs).map(|path| ("EVAL_ONCE_OUT".to_owned(), path)));
    for (output, path) in outputs {
        let name = output.chars().map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_uppercase()
            } else {
                '_'
            }
        });
        outs.insert(format!("EVAL_ONCE_OUT_{}", name.collect::<String>()), path);
    }
    outs
}

/// Records, then replaces this process with the job's own command. Returns the status if there is no command to run.
///
/// # Errors
/// The recording failed, and the command is not run then; or a signal asked us to end.
pub fn recording(
    order: RecordingOrder,
    mut job: HookedJob,
    mut supervisor: Supervisor,
    log: &Log,
) -> Result<u8, Failure> {
    order.open_group(log);
    recording::perform(order, &mut supervisor, log)?;
    job.job.environment.retain(|(name, _)| !is_for_us(name));
    job.become_own_command(supervisor, log)
}

/// Sums up the build, then replaces this process with the job's own command. Returns the status if there is no command to run, or the
/// summary is asked to fail and does.
///
/// # Errors
/// The summary failed, and the command is not run then; or a signal asked us to end.
pub fn summary(
    order: &SummaryOrder,
    mut job: HookedJob,
    mut supervisor: Supervisor,
    log: &Log,
) -> Result<u8, Failure> {
    let status = summary::perform(order, &mut supervisor, log)?;
    if status != 0 {
        return Ok(status);
    }
    job.job.environment.retain(|(name, _)| !is_for_us(name));
    job.become_own_command(supervisor, log)
}

fn is_blank(command: &OsStr) -> bool {
    String::from_utf8_lossy(command.as_bytes())
        .trim()
        .is_empty()
}

/// Whether a command of ours is more than the program and its subcommand.
fn has_flags(command: &OsStr) -> bool {
    command
        .to_string_lossy()
        .split_whitespace()
        .nth(2)
        .is_some()
}

/// A command on our own command line, after `--`.
#[derive(Debug)]
pub struct TrailingCommand {
    /// The program and its arguments.
    pub words: Vec<OsString>,
    /// Our environment.
    pub environment: Vec<(OsString, OsString)>,
}

/// Becomes the program that a step has built, or the command after `--`. Returns only where that fails.
#[must_use]
pub fn become_trailing(
    command: TrailingCommand,
    done: BuiltStep,
    supervisor: Supervisor,
) -> Failure {
    let environment = environment_of_command(command.environment, &done.outputs);
    if let Some(path) = done.program {
        return become_built(path, environment, supervisor);
    }
    let name = command.words.first().cloned().unwrap_or_default();
    let path = environment
        .iter()
        .find(|(name, _)| name == "PATH")
        .map(|(_, path)| path.clone())
        .unwrap_or_default();
    let Some(path) = find_program(&name, &path) else {
        let name = name.to_string_lossy();
        return Failure::new(
            Class::MissingProgram,
            format_args!("the command {name} is neither a program nor on PATH"),
        );
    };
    let program = Program {
        path,
        arguments: command.words,
        environment,
    };
    become_or_fail(&program, supervisor)
}

/// Becomes a program that a step has built. Returns only where that fails.
fn become_built(
    path: PathBuf,
    environment: Vec<(OsString, OsString)>,
    supervisor: Supervisor,
) -> Failure {
    let program = Program {
        arguments: vec![path.clone().into()],
        path,
        environment,
    };
    become_or_fail(&program, supervisor)
}

fn become_or_fail(program: &Program, supervisor: Supervisor) -> Failure {
    if let Err(failure) = supervisor.hand_over() {
        return failure;
    }
    let error = become_program(program);
    Failure::new(
        Class::MissingProgram,
        format_args!("cannot run {}: {error}", program.path.display()),
    )
}

fn become_program_of(plan: Result<CommandPlan, CommandRefusal>, log: &Log) -> u8 {
    let error = match plan.and_then(CommandPlan::prepare) {
        Ok(program) => format!("{}: {}", program.path.display(), become_program(&program)),
        Err(refusal) => refusal.to_string(),
    };
    // In the agent's words and without our name: the agent would have said the same.
    log.plain(format_args!("🚨 Error: {error}"));
    REFUSED
}

/// The environment of a command that follows a step, with the variables of its outputs. Variables that are meant for us are removed.
#[must_use]
pub fn environment_of_command(
    environment: Vec<(OsString, OsString)>,
    outputs: &BTreeMap<String, StorePath>,
) -> Vec<(OsString, OsString)> {
    let others = environment
        .into_iter()
        .filter(|(name, _)| !is_for_us(name) && !name.as_bytes().starts_with(b"EVAL_ONCE_OUT"));
    let outs = output_variables(outputs).into_iter().map(|(name, path)| {
        (
            OsString::from(name),
            OsString::from_vec(path.as_str().as_bytes().to_vec()),
        )
    });
    others.chain(outs).collect()
}

/// Whether a variable is meant for our hook only: a program that runs later would take it for its own.
fn is_for_us(name: &OsStr) -> bool {
    name == "EVAL_ONCE_STEP"
        || name == "EVAL_ONCE_COMMAND"
        || name.as_bytes().starts_with(b"BUILDKITE_HOOK_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_the_paths_of_the_outputs_and_no_variable_that_is_meant_for_us() {
        let path = |name: &str| {
            StorePath::parse(&format!("/s/0123456789abcdfghijklmnpqrsvwxyz-{name}")).unwrap()
        };
        let outputs = [("dev", "a"), ("my-lib.so", "b")]
            .map(|(name, p)| (name.to_owned(), path(p)))
            .into();
        let environment = [
            "PATH",
            "EVAL_ONCE_STEP",
            "BUILDKITE_HOOK_SCOPE",
            "BUILDKITE_HOOKS_PATH",
            "EVAL_ONCE_OUT_OLD",
        ];
        let environment = environment.map(|name| (name.into(), "x".into())).to_vec();
        let names: Vec<_> = environment_of_command(environment, &outputs)
            .into_iter()
            .map(|(name, _)| name.into_string().unwrap())
            .collect();
        assert_eq!(
            names,
            [
                "PATH",
                "BUILDKITE_HOOKS_PATH",
                "EVAL_ONCE_OUT",
                "EVAL_ONCE_OUT_DEV",
                "EVAL_ONCE_OUT_MY_LIB_SO"
            ]
        );
    }
}
