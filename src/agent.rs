//! Asking the Buildkite agent: running its commands ([`crate::buildkite::agent`]), and what is wrong where one fails. It does
//! not know what they are for.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use crate::buildkite::agent;
use crate::command_line::CommandLine;
use crate::exit::{Class, Classify as _, Failure};
use crate::nix::version::numbers;
use crate::private;
use crate::state;
use crate::supervise::{Finished, GivenUp, OnStop, Printed, Sight, Supervisor};
use crate::text::without_escapes;

/// What to do where Buildkite cannot be reached.
const UNREACHABLE: &str =
    "check that this host can reach Buildkite, then retry the job: it continues where it stopped";

/// How long a command of the agent's may take. By itself it tries again for minutes where Buildkite does not answer (an upload: 60
/// times, every five seconds), and a retry of the job would not be faster. What takes longer does not end at all.
const PATIENCE: Duration = Duration::from_secs(600);

/// Runs a command of the agent's that must succeed; `doing` says what it is for.
///
/// # Errors
/// Buildkite cannot be reached, or does not do it (75); there is no `buildkite-agent` (69); a signal asked us to end.
pub fn ask(
    supervisor: &mut Supervisor,
    line: &CommandLine,
    doing: &str,
) -> Result<Finished, Failure> {
    let (finished, stderr) = run(supervisor, line)?;
    if finished.ending.success() {
        return Ok(finished);
    }
    Err(unreachable(line, &finished, &stderr, doing))
}

/// Runs a command of the agent's, however that ends, and returns what it prints on standard error.
///
/// # Errors
/// There is no `buildkite-agent` (69), it cannot be started, or does not end (75); a signal asked us to end.
pub fn run(supervisor: &mut Supervisor, line: &CommandLine) -> Result<(Finished, String), Failure> {
    run_to_its_end(supervisor, line, PATIENCE)
}

fn run_to_its_end(
    supervisor: &mut Supervisor,
    line: &CommandLine,
    patience: Duration,
) -> Result<(Finished, String), Failure> {
    let ran = run_within(supervisor, line, patience, || ());
    let ran = ran.map_err(|failure| match failure.class {
        Class::MissingProgram => failure
            .hint("run it in a job, where the agent puts buildkite-agent on PATH; elsewhere, --dry-run prints the pipeline"),
        _ => failure,
    })?;
    ran.ok_or_else(|| {
        Failure::new(
            Class::Infrastructure,
            format_args!(
                "`{}` did not end within {} s",
                line.in_short(),
                patience.as_secs()
            ),
        )
        .hint(UNREACHABLE)
    })
}

/// Runs a command of the agent's as [`run`] does, but no longer than `patience`: none where it has to be stopped then. (By itself an
/// agent tries for many minutes.) `look` is called at least once a second.
///
/// # Errors
/// As [`run`].
pub fn run_within(
    supervisor: &mut Supervisor,
    line: &CommandLine,
    patience: Duration,
    mut look: impl FnMut(),
) -> Result<Option<(Finished, String)>, Failure> {
    let watch = || {
        look();
        // It does not say how far it is: all that it does counts as one.
        Sight::StandsStill
    };
    let (finished, stderr, given_up) = run_watched(supervisor, line, patience, watch)?;
    Ok(given_up.is_none().then_some((finished, stderr)))
}

/// Runs a command of the agent's as [`run_within`] does, and stops it also where `look` has seen enough: why it was stopped, if it was.
///
/// # Errors
/// As [`run`].
pub fn run_watched(
    supervisor: &mut Supervisor,
    line: &CommandLine,
    patience: Duration,
    mut look: impl FnMut() -> Sight,
) -> Result<(Finished, String, Option<GivenUp>), Failure> {
    let mut stderr = Printed::default();
    let (finished, given_up) = supervisor.run_patiently(line, patience, |_, printed| {
        stderr.add(printed);
        look()
    })?;
    let stderr = without_escapes(&String::from_utf8_lossy(&stderr.into_bytes()));
    Ok((finished, stderr, given_up))
}

/// A folder below `temporary`, which is removed with this value.
///
/// # Errors
/// It cannot be made, or every user of this host could replace it (75).
pub fn folder(temporary: &Path) -> Result<TempDir, Failure> {
    state::temporary_folder(temporary).map_err(|error| {
        let failure = Failure::new(
            Class::Infrastructure,
            format_args!(
                "cannot make a temporary folder in {}: {error}",
                temporary.display()
            ),
        );
        match error.mend() {
            Some(mend) => failure.hint(format!("{mend}, or set TMPDIR to another folder")),
            None => failure,
        }
    })
}

/// Writes a file.
///
/// # Errors
/// It cannot be written (75).
pub fn write(file: &Path, text: &str) -> Result<(), Failure> {
    private::write(file, text.as_bytes()).classify(Class::Infrastructure, || {
        format!("cannot write {}", file.display())
    })
}

/// Uploads `text` as an artifact of this name, by way of a file below `temporary`.
///
/// # Errors
/// As [`ask`].
pub fn keep_artifact(
    supervisor: &mut Supervisor,
    temporary: &Path,
    name: &str,
    text: &str,
) -> Result<(), Failure> {
    let folder = folder(temporary)?;
    write(&folder.path().join(name), text)?;
    let line = agent::upload_artifact(folder.path(), name);
    ask(supervisor, &line, "upload an artifact").map(drop)
}

/// Annotates the build with this Markdown, in place of what had the same `context`, by way of a file below `temporary`.
///
/// # Errors
/// As [`ask`].
pub fn annotate(
    supervisor: &mut Supervisor,
    temporary: &Path,
    context: &str,
    style: &str,
    body: &str,
) -> Result<(), Failure> {
    let folder = folder(temporary)?;
    let file = folder.path().join("annotation.md");
    write(&file, body)?;
    let line = agent::annotate(context, style, false, &file);
    ask(supervisor, &line, "annotate the build").map(drop)
}

/// Sets variables in the job's environment by the agent's Job API, for a hook that is no shell script and so cannot export any.
///
/// # Errors
/// `buildkite-agent` is missing (69), or cannot reach its own job (75).
pub fn set_environment(
    supervisor: &mut Supervisor,
    variables: &[(&str, OsString)],
) -> Result<(), Failure> {
    if variables.is_empty() {
        return Ok(());
    }
    let line = agent::set_environment(variables);
    let mut output = Printed::default();
    let finished = supervisor
        .run(&line, OnStop::TermThenKill, &mut output)
        .map_err(|failure| match failure.class {
            Class::MissingProgram => {
                failure.hint("the agent puts its own folder on the job's PATH: BUILDKITE_BIN_PATH")
            }
            _ => failure,
        })?;
    if finished.ending.success() {
        return Ok(());
    }
    let output = String::from_utf8_lossy(&output.into_bytes())
        .trim()
        .to_owned();
    Err(anyhow::anyhow!("`{line}` {}", finished.ending))
        .classify(Class::Infrastructure, || {
            format!("cannot set the job's environment: {output}")
        })
        .map_err(|failure| failure.hint("start the agent without --no-job-api"))
}

/// The version of the agent that this job's commands are; none where it does not say.
///
/// # Errors
/// There is no `buildkite-agent` (69), or it cannot be started (75); a signal asked us to end.
pub fn version(supervisor: &mut Supervisor) -> Result<Option<String>, Failure> {
    let (finished, _) = run(supervisor, &agent::version())?;
    Ok(agent::version_in(&finished.text()).map(str::to_owned))
}

/// Whether an agent of this version makes a checkout although its step says that it needs none. One that does not say its version
/// is taken for a new one.
#[must_use]
pub fn always_checks_out(version: Option<&str>) -> bool {
    let numbers = version.and_then(numbers);
    numbers.is_some_and(|numbers| numbers < agent::SKIPS_CHECKOUTS)
}

/// The failure of a command that did not succeed, with the last line of its `stderr`.
#[must_use]
pub fn unreachable(line: &CommandLine, finished: &Finished, stderr: &str, doing: &str) -> Failure {
    let last = last_line(stderr).unwrap_or_default();
    Failure::new(
        Class::Infrastructure,
        format_args!("cannot {doing}: `{line}` {}: {last}", finished.ending),
    )
    .hint(UNREACHABLE)
}

/// The last line of what a command has printed, which says why it failed; none where it has printed nothing.
#[must_use]
pub fn last_line(stderr: &str) -> Option<&str> {
    stderr.lines().map(str::trim).rfind(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Log;

    fn supervisor() -> Supervisor {
        Supervisor::install(&Log::default()).unwrap()
    }

    #[test]
    fn an_agent_before_3_116_always_checks_out() {
        for (version, always) in [
            (Some("3.83.1"), true),
            (Some("3.115.9"), true),
            (Some("3.116.0"), false),
            (Some("4.0.0-beta.15"), false),
            (None, false),
        ] {
            assert_eq!(always_checks_out(version), always, "{version:?}");
        }
    }

    #[test]
    fn the_last_line_that_says_something_is_the_reason() {
        for (printed, last) in [
            ("one\n two \n\n \t\n", Some("two")),
            ("one", Some("one")),
            ("\n \n", None),
            ("", None),
        ] {
            assert_eq!(last_line(printed), last, "{printed:?}");
        }
    }

    #[test]
    fn a_command_of_the_agent_that_fails_is_an_infrastructure_failure_with_its_reason() {
        let line = CommandLine::new("sh", &["-c", "echo debug >&2; echo no route >&2; exit 1"]);
        let failure = ask(&mut supervisor(), &line, "annotate the build").unwrap_err();
        assert_eq!(failure.class, Class::Infrastructure);
        assert_eq!(
            failure.to_string(),
            format!("cannot annotate the build: `{line}` ended with status 1: no route")
        );
    }

    #[test]
    fn a_command_of_the_agent_that_does_not_end_is_an_infrastructure_failure() {
        let run = |script: &str, patience| {
            let line = CommandLine::new("sh", &["-c", script]);
            run_to_its_end(&mut supervisor(), &line, patience)
        };
        let failure = run("exec sleep 60", Duration::ZERO).unwrap_err();
        assert_eq!(failure.class, Class::Infrastructure);
        let said = failure.to_string();
        assert!(said.ends_with("did not end within 0 s"), "{said}");
        assert_eq!(failure.hint.as_deref(), Some(UNREACHABLE));
        run("exit 1", PATIENCE).unwrap();
    }

    #[test]
    fn a_missing_agent_has_a_hint_where_to_run_this() {
        let line = CommandLine::new("buildkite-nonesuch", &[]);
        let failure = ask(&mut supervisor(), &line, "annotate the build").unwrap_err();
        assert_eq!(failure.class, Class::MissingProgram);
        let hint = failure.hint.unwrap();
        assert!(hint.contains("run it in a job"), "{hint}");
    }

    #[test]
    fn a_command_that_need_not_succeed_is_returned_with_what_it_prints() {
        let line = CommandLine::new("sh", &["-c", "echo out; echo 404 >&2; exit 3"]);
        let (finished, stderr) = run(&mut supervisor(), &line).unwrap();
        assert!(!finished.ending.success());
        assert_eq!(
            (finished.text().as_str(), stderr.as_str()),
            ("out", "404\n")
        );
    }
}
