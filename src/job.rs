//! What a job of the agent's becomes when our hook has it: a step of ours, or the job as it would have been without us.
//!
//! In both cases the job's own command *replaces* our process, so that its standard input, terminal, signals and ending are
//! those it has without us.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use crate::buildkite::command_hooks::FollowingCommand;
use crate::buildkite::default_command::{
    self, AgentJob, CommandPlan, CommandRefusal, Ours, is_eval_once,
};
use crate::command_line::{Program, find_program};
use crate::exit::{Class, Failure};
use crate::keys::refuse;
use crate::log::Log;
use crate::nix::StorePath;
use crate::recording;
use crate::step::{self, StepOrder, main_output};
use crate::summary;
use crate::supervise::{Supervisor, become_program};

/// The status with which the agent ends a job whose command it refuses to run, or cannot start.
const REFUSED: u8 = 1;

/// Runs a job that is not ours exactly as the agent would have run it. Returns only where that is refused or fails, with
/// the status that the job then has.
#[must_use]
pub fn pass_through(mut job: AgentJob, log: &Log) -> u8 {
    job.environment.retain(|(name, _)| !was_told_to_us(name));
    become_program_of(default_command::plan(&job), log)
}

/// Builds the step, and then becomes the job's own command, where there is one to run. Returns the status where not.
///
/// # Errors
/// The step failed, and its command is not run then; or a signal asked us to end.
pub fn step(
    mut order: StepOrder,
    mut job: AgentJob,
    mut supervisor: Supervisor,
    log: &Log,
) -> Result<u8, Failure> {
    let ours = is_eval_once(&job.command, "step");
    order.keys = order.keys.and_then(|keys| {
        let hint =
            "leave the command at `eval-once step`, or make it just what is to run after the build";
        refuse_more(ours, "step", hint)?;
        check_command(&job, ours, FollowingCommand::of_step(&keys), log)?;
        Ok(keys)
    });
    order.followed = ours == Ours::No && !is_blank(&job.command);
    let done = step::perform(order, &mut supervisor, log)?;
    let outputs = done.outputs.iter();
    let outputs: Vec<String> = outputs
        .map(|(name, path)| format!("{name}: {path}"))
        .collect();
    if !outputs.is_empty() {
        log.say(outputs.join(", "));
    }
    if !done.command {
        return Ok(0);
    }
    job.environment = environment_of_command(job.environment, &done.outputs);
    become_own_command(&job, ours, ["step", "step's"], supervisor, log)
}

/// Records, and then becomes the job's own command, where there is one to run. Returns the status where not.
///
/// # Errors
/// The recording failed, and the command is not run then; or a signal asked us to end.
pub fn recording(
    mut order: recording::RecordingOrder,
    mut job: AgentJob,
    mut supervisor: Supervisor,
    log: &Log,
) -> Result<u8, Failure> {
    order.open_group(log);
    let ours = is_eval_once(&job.command, "pipeline");
    order.keys = order.keys.and_then(|keys| {
        let hint = "leave the command out, or make it just what is to run after the upload";
        refuse_more(ours, "pipeline", hint)?;
        check_command(&job, ours, FollowingCommand::Runs { asked: false }, log)?;
        Ok(keys)
    });
    recording::perform(order, &mut supervisor, log)?;
    job.environment.retain(|(name, _)| !was_told_to_us(name));
    become_own_command(&job, ours, ["recording", "job's"], supervisor, log)
}

/// Sums the build up, and then becomes the job's own command, where there is one to run. Returns the status where not.
///
/// # Errors
/// The summary failed, and the command is not run then; or a signal asked us to end.
pub fn summary(
    asked: Result<(), Failure>,
    mut job: AgentJob,
    mut supervisor: Supervisor,
    log: &Log,
) -> Result<u8, Failure> {
    let ours = is_eval_once(&job.command, "summary");
    let asked = asked.and_then(|()| {
        let hint = "leave the command out, or make it just what is to run after the summary";
        refuse_more(ours, "summary", hint)?;
        check_command(&job, ours, FollowingCommand::Runs { asked: false }, log)
    });
    summary::perform(asked, &mut supervisor, log)?;
    job.environment.retain(|(name, _)| !was_told_to_us(name));
    become_own_command(&job, ours, ["summary", "job's"], supervisor, log)
}

/// Refuses a job's command that is what this hook does, and more: to run it again would be wrong, to drop the rest as well.
fn refuse_more(ours: Ours, subcommand: &str, hint: &str) -> Result<(), Failure> {
    if ours == Ours::ItselfAndMore {
        return Err(refuse(format_args!(
            "the job's command is `eval-once {subcommand}`, which this hook is already, and more than that"
        ))
        .hint(hint));
    }
    Ok(())
}

/// Refuses a job of which not all would be done, and warns of a command that may run twice.
fn check_command(
    job: &AgentJob,
    ours: Ours,
    command: FollowingCommand,
    log: &Log,
) -> Result<(), Failure> {
    let has_command = ours != Ours::Itself && !is_blank(&job.command);
    if let Some(warning) = job.hooks.check(command, has_command)? {
        log.warn(warning);
    }
    Ok(())
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

/// Becomes the job's own command once all else is done; where there is none to run, gives the status. `what` was done, and
/// `whose` command it is.
fn become_own_command(
    job: &AgentJob,
    ours: Ours,
    [what, whose]: [&str; 2],
    supervisor: Supervisor,
    log: &Log,
) -> Result<u8, Failure> {
    if is_blank(&job.command) {
        return Ok(0);
    }
    if ours == Ours::Itself {
        if has_flags(&job.command) {
            log.say(format_args!(
                "the flags of the job's command are ignored: this hook has run the {what} already"
            ));
        }
        return Ok(0);
    }
    log.group(format_args!("running the {whose} own command"));
    let plan = default_command::plan(job).and_then(|plan| plan.kept_inside(job));
    supervisor.hand_over()?;
    Ok(become_program_of(plan, log))
}

/// A command that is given on our own command line, behind `--`.
#[derive(Debug)]
pub struct TrailingCommand {
    /// The program and its arguments.
    pub words: Vec<OsString>,
    /// Our environment.
    pub environment: Vec<(OsString, OsString)>,
}

/// Becomes the command that was given on the command line. Returns only where that fails.
#[must_use]
pub fn become_given(
    given: TrailingCommand,
    outputs: &BTreeMap<String, StorePath>,
    supervisor: Supervisor,
) -> Failure {
    let environment = environment_of_command(given.environment, outputs);
    let name = given.words.first().cloned().unwrap_or_default();
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
        arguments: given.words,
        environment,
    };
    if let Err(failure) = supervisor.hand_over() {
        return failure;
    }
    let error = become_program(&program);
    Failure::new(
        Class::MissingProgram,
        format_args!("cannot run {}: {error}", program.path.display()),
    )
}

fn become_program_of(plan: Result<CommandPlan, CommandRefusal>, log: &Log) -> u8 {
    let error = match plan.and_then(CommandPlan::prepared) {
        Ok(program) => format!("{}: {}", program.path.display(), become_program(&program)),
        Err(refusal) => refusal.to_string(),
    };
    // In the agent's words: this job is not ours to comment.
    log.plain(format_args!("🚨 Error: {error}"));
    REFUSED
}

/// The environment of a command that follows a step: `EVAL_ONCE_OUT` is the output `out`, else the first, and
/// `EVAL_ONCE_OUT_<NAME>` each of them. What told *us* what to do is removed.
#[must_use]
pub fn environment_of_command(
    environment: Vec<(OsString, OsString)>,
    outputs: &BTreeMap<String, StorePath>,
) -> Vec<(OsString, OsString)> {
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
    let others = environment.into_iter().filter(|(name, _)| {
        !was_told_to_us(name) && !name.as_bytes().starts_with(b"EVAL_ONCE_OUT")
    });
    let outs = outs.into_iter().map(|(name, path)| {
        (
            OsString::from(name),
            OsString::from_vec(path.as_str().as_bytes().to_vec()),
        )
    });
    others.chain(outs).collect()
}

/// Whether a variable told *us* what to do, and would mean something else to whoever comes after us.
fn was_told_to_us(name: &OsStr) -> bool {
    name == "EVAL_ONCE_STEP"
        || name == "EVAL_ONCE_COMMAND"
        || name.as_bytes().starts_with(b"BUILDKITE_HOOK_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_told_where_the_outputs_are_and_not_what_we_were_told() {
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
