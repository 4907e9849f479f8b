//! What the agent does with a job's command when no hook does it instead (`defaultCommandPhase` of its
//! `internal/job/executor.go`). The agent has no way for a hook to say "not mine", so a hook has to do the same itself.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::command_hooks::CommandHooks;
use super::{EmptyWords, split_shell_words};
use crate::command_line::{Program, find_program};
use crate::paths::{is_inside, without_dots};

/// A job as the agent has prepared it for its command.
#[derive(Debug, Clone)]
pub struct AgentJob {
    /// `BUILDKITE_COMMAND`.
    pub command: OsString,
    /// `BUILDKITE_COMMAND_EVAL`: whether the command may be more than a script of the checkout.
    pub command_eval: bool,
    /// `BUILDKITE_SHELL`, or what the agent takes for it.
    pub shell: String,
    /// How this agent splits it.
    pub empty_words: EmptyWords,
    /// The folder the job is in, by the name that the agent knows it by.
    pub folder: PathBuf,
    /// The environment of the command.
    pub environment: Vec<(OsString, OsString)>,
    /// The other hooks that may run the command.
    pub hooks: CommandHooks,
}

/// Why the agent would not run the command. It ends such a job with status 1.
#[derive(Debug, PartialEq, Eq)]
pub struct CommandRefusal(pub String);

impl fmt::Display for CommandRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

const NOT_IN_REPOSITORY: &str = "this agent is only allowed to run scripts within your repository; to allow this, re-run the agent without the \
     `--no-command-eval` option or specify a script within your repository to run instead (such as scripts/test.sh)";

/// The shell that the agent runs commands with when none is configured (its `DefaultShell`).
#[must_use]
pub fn default_shell() -> String {
    let shell = if cfg!(any(target_os = "freebsd", target_os = "openbsd")) {
        "/usr/local/bin/bash -e -c"
    } else if Path::new("/bin/bash").exists() {
        "/bin/bash -e -c"
    } else {
        "/usr/bin/env bash -e -c"
    };
    shell.into()
}

/// What the agent would run for a job's command.
#[derive(Debug, PartialEq, Eq)]
pub struct CommandPlan {
    /// The file of the checkout that is run, where the command is one.
    pub script: Option<PathBuf>,
    /// It is made executable first.
    pub make_executable: bool,
    /// The program that is run.
    pub program: Program,
}

impl CommandPlan {
    /// Refuses a script whose real path is outside the checkout, on an agent that runs nothing else. The agent itself compares
    /// the paths as they are written: it does not make links into the store, as a step does.
    ///
    /// # Errors
    /// It is outside.
    pub fn confined(self, job: &AgentJob) -> Result<Self, CommandRefusal> {
        let inside = |script: &PathBuf| is_inside(script, &job.folder);
        if job.command_eval || self.script.as_ref().is_none_or(inside) {
            return Ok(self);
        }
        Err(CommandRefusal(NOT_IN_REPOSITORY.into()))
    }

    /// Makes the script executable where that is needed. Returns the program to run.
    ///
    /// # Errors
    /// The file cannot be made executable; the agent refuses then.
    pub fn prepare(self) -> Result<Program, CommandRefusal> {
        if let Some(file) = self.script.filter(|_| self.make_executable) {
            make_executable(&file).map_err(|error| {
                CommandRefusal(format!(
                    "failed to mark {} as executable: {error}",
                    file.display()
                ))
            })?;
        }
        Ok(self.program)
    }
}

/// What the agent would run for this job's command.
///
/// # Errors
/// The agent would refuse.
pub fn plan(job: &AgentJob) -> Result<CommandPlan, CommandRefusal> {
    let refuse = |message: String| Err(CommandRefusal(message));
    let command = job.command.as_bytes();
    if String::from_utf8_lossy(command).trim().is_empty() {
        return refuse(
            "the command phase has no `command` to execute; provide a `command` field in your step configuration or define a \
             `command` hook in a step plugin, your repository `.buildkite/hooks`, or the agent `hooks-path`"
                .into(),
        );
    }
    let script: Vec<u8> = command
        .iter()
        .copied()
        .filter(|byte| *byte != b'\n')
        .collect();
    let script = joined(&job.folder, OsStr::from_bytes(&script));
    let is_script = script.metadata().is_ok();
    if !is_script && !job.command_eval {
        return refuse(
            "this agent is not allowed to evaluate console commands; to allow this, re-run the agent without the \
             `--no-command-eval` option or specify a script within your repository to run instead (such as scripts/test.sh)"
                .into(),
        );
    }
    let inside = script.starts_with(&job.folder) && script != job.folder;
    if is_script && !job.command_eval && !inside {
        return refuse(NOT_IN_REPOSITORY.into());
    }
    let mut words = split_shell_words(&job.shell, job.empty_words).map_err(|error| {
        CommandRefusal(format!(
            "failed to split shell ({:?}) into tokens: {error}",
            job.shell
        ))
    })?;
    if words.is_empty() {
        return refuse("no shell set for job".into());
    }
    let to_run = if is_script {
        let mut relative = OsString::from("./");
        relative.push(relative_to(&script, &job.folder));
        relative
    } else {
        job.command.clone()
    };
    let name = words.remove(0);
    let path = job
        .environment
        .iter()
        .rfind(|(name, _)| name == "PATH")
        .map(|(_, path)| path.clone())
        .unwrap_or_default();
    let Some(found) = find_program(OsStr::new(&name), &path) else {
        return refuse(format!(
            "exec: {name:?}: executable file not found in $PATH"
        ));
    };
    let shell = if found.is_absolute() {
        found
    } else {
        job.folder.join(found)
    };
    // The agent, too, gives the shell its whole path as its name.
    let arguments = std::iter::once(shell.clone().into_os_string())
        .chain(words.into_iter().map(OsString::from));
    Ok(CommandPlan {
        // An agent that runs only what its operator has vetted does not run what was not executable.
        make_executable: job.command_eval,
        script: Some(script).filter(|_| is_script),
        program: Program {
            arguments: arguments.chain([to_run]).collect(),
            path: shell,
            environment: job.environment.clone(),
        },
    })
}

/// Whether a job's command is what a hook of ours does in that job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ours {
    /// It is something else.
    No,
    /// It is the subcommand for it, perhaps with flags.
    Itself,
    /// It is that, combined with something that only a shell or `eval-once step` can do. Dropping that would be wrong.
    ItselfAndMore,
}

/// Whether a job's command is `eval-once` with this subcommand, `step` or `pipeline`.
#[must_use]
pub fn is_eval_once(command: &OsStr, wanted: &str) -> Ours {
    let Some(command) = command.to_str().map(str::trim) else {
        return Ours::No;
    };
    let words = split_shell_words(command, EmptyWords::Keep).unwrap_or_default();
    let [program, subcommand, ..] = words.as_slice() else {
        return Ours::No;
    };
    // A shell ends the word at an operator, whatever follows.
    if subcommand.split(OPERATORS).next() != Some(wanted) {
        return Ours::No;
    }
    if Path::new(program).file_name() != Some(OsStr::new("eval-once")) {
        return Ours::No;
    }
    let more = words.iter().any(|word| word == "--") || does_more(command);
    if more {
        Ours::ItselfAndMore
    } else {
        Ours::Itself
    }
}

/// Whether a job's command is a step of ours and nothing else, or nothing at all.
#[must_use]
pub fn is_step_itself(command: &OsStr) -> bool {
    let is_blank = String::from_utf8_lossy(command.as_bytes())
        .trim()
        .is_empty();
    is_blank || is_eval_once(command, "step") == Ours::Itself
}

/// The words of a job's command that is `eval-once` with one of these subcommands, where a shell would do no more than split
/// it into them. Any other command needs the shell.
#[must_use]
pub fn words_of_ours(command: &OsStr, subcommands: &[&str]) -> Option<Vec<String>> {
    let ours = |subcommand: &&str| is_eval_once(command, subcommand) == Ours::Itself;
    let text = command.to_str()?.trim();
    if !subcommands.iter().any(ours) || does(text, &EXPANSIONS) {
        return None;
    }
    posix_words(text)
}

/// The words that a POSIX shell reads in a command without operators and expansions; none where a quote is not closed. (The
/// agent's own splitting, which is for `BUILDKITE_SHELL`, also takes backslashes for escapes within single quotes.)
fn posix_words(command: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut rest = command.chars();
    while let Some(c) = rest.next() {
        if c.is_ascii_whitespace() {
            words.extend(word.take());
            continue;
        }
        let word = word.get_or_insert_default();
        match c {
            '\'' => loop {
                match rest.next()? {
                    '\'' => break,
                    c => word.push(c),
                }
            },
            '"' => loop {
                match rest.next()? {
                    '"' => break,
                    '\\' => match rest.next()? {
                        '\n' => {}
                        c @ ('$' | '`' | '"' | '\\') => word.push(c),
                        c => word.extend(['\\', c]),
                    },
                    c => word.push(c),
                }
            },
            '\\' => word.push(rest.next().filter(|c| *c != '\n')?),
            c => word.push(c),
        }
    }
    words.extend(word);
    Some(words)
}

/// Characters that a shell expands where they are not quoted: patterns, homes, braces, comments.
const EXPANSIONS: [char; 6] = ['*', '?', '[', '~', '{', '#'];

/// Characters that end a word where they are not quoted, because a shell reads them as operators.
const OPERATORS: [char; 9] = ['\n', ';', '&', '|', '<', '>', '(', '$', '`'];

/// Whether a shell would do more with a command than split it into words: run another, redirect, substitute.
fn does_more(command: &str) -> bool {
    does(command, &OPERATORS)
}

/// Whether one of these characters is in a command without quotes, or a substitution within double quotes.
fn does(command: &str, special: &[char]) -> bool {
    let mut quote = None;
    let mut rest = command.chars();
    while let Some(c) = rest.next() {
        match quote {
            Some(end) if c == end => quote = None,
            Some('\'') => {}
            _ if c == '\\' => drop(rest.next()),
            Some(_) if ['$', '`'].contains(&c) => return true,
            None if ['\'', '"'].contains(&c) => quote = Some(c),
            None if special.contains(&c) => return true,
            _ => {}
        }
    }
    false
}

/// Go's `filepath.Join`: by letters, and what begins with a slash is not absolute here.
fn joined(folder: &Path, name: &OsStr) -> PathBuf {
    let mut path = folder.as_os_str().to_owned();
    path.push("/");
    path.push(name);
    without_dots(Path::new(&path))
}

/// Go's `filepath.Rel`, for two paths that [`joined`] has made.
fn relative_to(path: &Path, folder: &Path) -> PathBuf {
    let common = path
        .components()
        .zip(folder.components())
        .take_while(|(a, b)| a == b)
        .count();
    let mut relative: PathBuf = folder.components().skip(common).map(|_| "..").collect();
    relative.extend(path.components().skip(common));
    if relative.as_os_str().is_empty() {
        ".".into()
    } else {
        relative
    }
}

fn make_executable(file: &Path) -> std::io::Result<()> {
    let mut permissions = file.metadata()?.permissions();
    if permissions.mode() & 0o100 == 0 {
        permissions.set_mode(permissions.mode() | 0o100);
        std::fs::set_permissions(file, permissions)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(folder: &Path, command: &str) -> AgentJob {
        AgentJob {
            command: command.into(),
            command_eval: true,
            shell: "/bin/sh -e -c".into(),
            empty_words: EmptyWords::Keep,
            folder: folder.into(),
            environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
            hooks: CommandHooks::default(),
        }
    }

    #[test]
    fn a_command_goes_to_the_shell_as_it_is() {
        let folder = tempfile::TempDir::new().unwrap();
        let program = plan(&job(folder.path(), "echo a\necho b")).unwrap().program;
        assert_eq!(program.arguments, ["/bin/sh", "-e", "-c", "echo a\necho b"]);
        assert_eq!(program.path, Path::new("/bin/sh"));
    }

    #[test]
    fn a_file_of_the_checkout_is_made_executable_and_run() {
        let folder = tempfile::TempDir::new().unwrap();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        std::fs::write(folder.path().join("sub/my test"), "#!/bin/sh\n").unwrap();
        for command in [
            "sub/my test",
            "sub/my test\n",
            "./sub//my test",
            "/sub/my test",
        ] {
            let program = plan(&job(folder.path(), command))
                .unwrap()
                .prepare()
                .unwrap();
            assert_eq!(
                program.arguments.last().unwrap(),
                "./sub/my test",
                "{command:?}"
            );
        }
        assert_eq!(
            folder
                .path()
                .join("sub/my test")
                .metadata()
                .unwrap()
                .permissions()
                .mode()
                & 0o100,
            0o100
        );
    }

    #[test]
    fn an_agent_without_command_eval_runs_only_scripts_of_the_checkout() {
        let folder = tempfile::TempDir::new().unwrap();
        let checkout = folder.path().join("checkout");
        std::fs::create_dir(&checkout).unwrap();
        std::fs::write(checkout.join("inside"), "").unwrap();
        std::fs::write(folder.path().join("outside"), "").unwrap();
        let run = |command: &str| {
            plan(&AgentJob {
                command_eval: false,
                ..job(&checkout, command)
            })
        };
        assert!(run("inside").is_ok());
        assert_eq!(
            checkout
                .join("inside")
                .metadata()
                .unwrap()
                .permissions()
                .mode()
                & 0o100,
            0,
            "left as it was"
        );
        assert!(run("echo hi").unwrap_err().0.contains("console commands"));
        assert!(
            run("../outside")
                .unwrap_err()
                .0
                .contains("within your repository")
        );
        assert!(run(".").unwrap_err().0.contains("within your repository"));
    }

    #[test]
    fn what_the_agent_refuses_is_refused() {
        let folder = tempfile::TempDir::new().unwrap();
        let of = |job: AgentJob| plan(&job).unwrap_err().0;
        assert!(of(job(folder.path(), " \n")).contains("no `command`"));
        assert!(
            of(AgentJob {
                shell: " ".into(),
                ..job(folder.path(), "x")
            })
            .contains("no shell")
        );
        assert!(
            of(AgentJob {
                shell: "'sh".into(),
                ..job(folder.path(), "x")
            })
            .contains("split shell")
        );
        assert!(
            of(AgentJob {
                shell: "no-such-shell -c".into(),
                ..job(folder.path(), "x")
            })
            .contains("not found")
        );
    }

    #[test]
    fn a_command_of_ours_is_read_where_a_shell_would_only_split_it() {
        let words = |command: &str| words_of_ours(OsStr::new(command), &["pipeline", "summary"]);
        for (command, expected) in [
            ("eval-once summary", "eval-once summary"),
            (" /opt/eval-once  pipeline\n", "/opt/eval-once pipeline"),
            (
                "eval-once pipeline --exclude 'a.*' -I x=\"./y z\"",
                "eval-once pipeline --exclude a.* -I x=./y z",
            ),
            (
                r#"eval-once pipeline '{"a\"b\n"}' "c\"d\e\\" f\ g '' ''h"#,
                r#"eval-once pipeline {"a\"b\n"} c"d\e\ f g  h"#,
            ),
        ] {
            assert_eq!(words(command).unwrap().join(" "), expected);
        }
        for command in [
            "eval-once step",
            "eval-once prune",
            "eval-once pipeline && make",
            "eval-once pipeline --expr \"$X\"",
            "eval-once pipeline --exclude a.*",
            "eval-once pipeline --file ~/ci.nix",
            "eval-once pipeline --attr {a,b}",
            "eval-once summary # at the end",
            "eval-once pipeline 'unfinished",
        ] {
            assert_eq!(words(command), None, "{command}");
        }
    }

    #[test]
    fn only_the_subcommand_that_a_hook_is_already_is_ours() {
        for (command, ours) in [
            ("eval-once step", Ours::Itself),
            (" /opt/bin/eval-once  step\n", Ours::Itself),
            ("eval-once step --file x", Ours::Itself),
            ("eval-once step --report r -- make", Ours::ItselfAndMore),
            ("eval-once step; make", Ours::ItselfAndMore),
            ("eval-once step;make", Ours::ItselfAndMore),
            ("eval-once step>log", Ours::ItselfAndMore),
            ("eval-once step --expr \"$X\"", Ours::ItselfAndMore),
            ("eval-once step --expr '(import ./. {}).a; $'", Ours::Itself),
            ("eval-once step -I 'x=<nixpkgs>' --attr a\\;b", Ours::Itself),
            ("eval-once step\nmake", Ours::ItselfAndMore),
            ("eval-once step > log", Ours::ItselfAndMore),
            ("", Ours::No),
            ("make", Ours::No),
            ("eval-once explain", Ours::No),
            ("echo eval-once step", Ours::No),
            ("eval-once pipeline", Ours::No),
        ] {
            assert_eq!(is_eval_once(OsStr::new(command), "step"), ours, "{command}");
        }
        for (command, ours) in [
            ("eval-once pipeline --file ci.nix", Ours::Itself),
            ("eval-once pipeline && make", Ours::ItselfAndMore),
            ("eval-once step", Ours::No),
        ] {
            assert_eq!(
                is_eval_once(OsStr::new(command), "pipeline"),
                ours,
                "{command}"
            );
        }
    }
}
