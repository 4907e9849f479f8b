//! The real Buildkite agent: one job, run by `buildkite-agent bootstrap`, which needs no server.
//!
//! Everything a job needs stands in one folder: checkout, hooks, plugins, home. The agent finds no variable in its environment but
//! the ones that it would have from its own configuration and the job's. What a job prints is kept as a whole, and as what it
//! printed itself, without the lines the agent wraps around it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;
use unix::sys::signal::{Signal, killpg};
use unix::unistd::Pid;

use super::{EVAL_ONCE, processes::kill_marked, skip, stand_in::write_program, until};

/// Where the agent's program is, or nothing, said loudly, where there is none.
pub(crate) fn program() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let candidates: Vec<PathBuf> = if let Some(named) = variable("BUILDKITE_AGENT_BIN") {
        // A test that names one means it.
        vec![named.into()]
    } else {
        let path = variable("PATH").unwrap_or_default();
        let cache = variable("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".cache")));
        std::env::split_paths(&path)
            .chain(cache.map(|cache| cache.join("eval-once/bin")))
            .map(|folder| folder.join("buildkite-agent"))
            .collect()
    };
    let found = candidates.into_iter().find(|candidate| candidate.is_file());
    if found.is_none() {
        skip("the Buildkite agent is missing; script/bootstrap installs it");
    }
    found
}

/// Whether the agent is the one that `script/bootstrap` installs, or about as old: before v3.100 it needs an experiment for
/// hooks that are programs, splits shells in another way, and lets a failed `environment` hook's status through.
pub(crate) fn is_old() -> bool {
    static VERSION: OnceLock<String> = OnceLock::new();
    let version = VERSION.get_or_init(|| {
        let printed = program().map(|agent| Command::new(agent).arg("--version").output().unwrap());
        String::from_utf8(printed.map(|output| output.stdout).unwrap_or_default()).unwrap()
    });
    let number = version.split_whitespace().nth(2).unwrap_or_default();
    let mut parts = number
        .split('.')
        .map(|part| part.parse().unwrap_or_default());
    (parts.next(), parts.next()) < (Some(3), Some(100))
}

/// A job that is to be run: its folder, and the variables the agent gives it.
pub(crate) struct Job {
    folder: TempDir,
    variables: BTreeMap<OsString, OsString>,
    agent: PathBuf,
}

impl Job {
    /// A job without a command, with an empty checkout and neither hooks nor plugins; nothing where there is no agent here.
    ///
    /// Of the phases `checkout` is left out: it would ask Buildkite. The step has neither key nor id, so that ours report it nowhere
    /// who is not there. Hooks that are programs need an experiment in the version we use.
    pub(crate) fn new() -> Option<Self> {
        let agent = program()?;
        let folder = TempDir::with_prefix("job").unwrap();
        for name in [
            "bin", "checkout", "hooks", "plugins", "home", "sockets", "tmp",
        ] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        symlink(&agent, folder.path().join("bin/buildkite-agent")).unwrap();
        let mut job = Self {
            folder,
            variables: BTreeMap::new(),
            agent,
        };
        job.set("PATH", std::env::var_os("PATH").unwrap_or_default());
        for (name, value) in [
            ("BUILDKITE", "true"),
            ("CI", "true"),
            ("BUILDKITE_JOB_ID", "0190c1a2-0000-4000-8000-000000000001"),
            ("BUILDKITE_BUILD_ID", "0190c1a2-0000-4000-8000-000000000003"),
            ("BUILDKITE_REPO", "https://example.com/repository.git"),
            ("BUILDKITE_COMMIT", "HEAD"),
            ("BUILDKITE_BRANCH", "main"),
            ("BUILDKITE_AGENT_NAME", "agent-1"),
            ("BUILDKITE_ORGANIZATION_SLUG", "organization"),
            ("BUILDKITE_PIPELINE_SLUG", "pipeline"),
            ("BUILDKITE_PIPELINE_PROVIDER", "git"),
            ("BUILDKITE_AGENT_ACCESS_TOKEN", "not-a-real-token"),
            ("BUILDKITE_AGENT_ENDPOINT", "http://127.0.0.1:9/v3"),
            ("BUILDKITE_BOOTSTRAP_PHASES", "plugin,command"),
            ("BUILDKITE_PTY", "false"),
            // Half of git is shell scripts, which need more programs than some tests have on PATH.
            ("BUILDKITE_GIT_SUBMODULES", "false"),
        ] {
            job.set(name, value);
        }
        if is_old() {
            job.set("BUILDKITE_AGENT_EXPERIMENT", "polyglot-hooks");
        } else {
            // A tracing library of newer agents marks each job that is not marked yet, and no two would be alike.
            job.set("_DD_ROOT_GO_SESSION_ID", "marked");
        }
        for (name, folder) in [
            ("HOME", "home"),
            ("TMPDIR", "tmp"),
            ("BUILDKITE_BUILD_PATH", "builds"),
            ("BUILDKITE_BUILD_CHECKOUT_PATH", "checkout"),
            ("BUILDKITE_HOOKS_PATH", "hooks"),
            ("BUILDKITE_PLUGINS_PATH", "plugins"),
            ("BUILDKITE_SOCKETS_PATH", "sockets"),
            ("BUILDKITE_BIN_PATH", "bin"),
        ] {
            let folder = job.folder().join(folder);
            job.set(name, folder);
        }
        Some(job)
    }

    /// The folder that holds all the others; what is written here is in no checkout.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where the job runs.
    pub(crate) fn checkout(&self) -> PathBuf {
        self.folder().join("checkout")
    }

    /// The agent's own hooks (`hooks-path`).
    pub(crate) fn hooks(&self) -> PathBuf {
        self.folder().join("hooks")
    }

    /// The home of the user that the agent runs as.
    pub(crate) fn home(&self) -> PathBuf {
        self.folder().join("home")
    }

    /// Sets a variable of the job.
    pub(crate) fn set(&mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.variables
            .insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    /// Takes a variable away.
    pub(crate) fn unset(&mut self, name: &str) -> &mut Self {
        self.variables.remove(OsStr::new(name));
        self
    }

    /// Sets several variables.
    pub(crate) fn set_all<N: AsRef<OsStr>, V: AsRef<OsStr>>(
        &mut self,
        variables: impl IntoIterator<Item = (N, V)>,
    ) -> &mut Self {
        for (name, value) in variables {
            self.set(name, value);
        }
        self
    }

    /// Whether the agent gives the job a terminal, as it does unless it is told otherwise.
    pub(crate) fn terminal(&mut self, terminal: bool) -> &mut Self {
        self.set("BUILDKITE_PTY", terminal.to_string())
    }

    /// The job's command, as the agent has it from Buildkite.
    pub(crate) fn command(&mut self, command: impl AsRef<OsStr>) -> &mut Self {
        self.set("BUILDKITE_COMMAND", command)
    }

    /// Plugins with their configurations, in order.
    pub(crate) fn plugins(&mut self, plugins: &[(&str, serde_json::Value)]) -> &mut Self {
        let list: Vec<_> = plugins
            .iter()
            .map(|(reference, configuration)| serde_json::json!({ *reference: configuration }))
            .collect();
        self.set(
            "BUILDKITE_PLUGINS",
            serde_json::Value::from(list).to_string(),
        )
    }

    /// Writes one of the agent's own hooks as a shell script.
    pub(crate) fn shell_hook(&self, name: &str, text: &str) -> &Self {
        write_program(&self.hooks().join(name), &format!("#!/bin/bash\n{text}"));
        self
    }

    /// Makes our binary one of the agent's own hooks, by a link of that name.
    pub(crate) fn our_hook(&self, name: &str) -> &Self {
        symlink(EVAL_ONCE, self.hooks().join(name)).unwrap();
        self
    }

    /// Starts the job, as the leader of a process group, as the agent does.
    ///
    /// The log goes to a file: a pipe would be waited on for as long as anything left behind holds it.
    pub(crate) fn start(&self) -> Running {
        let path = self.folder().join("log");
        let log = File::create(&path).unwrap();
        let child = Command::new(&self.agent)
            .arg("bootstrap")
            .env_clear()
            .envs(&self.variables)
            .current_dir(self.folder())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let command = OsStr::new("BUILDKITE_COMMAND");
        Running {
            child,
            folder: self.folder().to_owned(),
            log: path,
            command: self.variables.get(command).cloned().unwrap_or_default(),
        }
    }

    /// Runs the job to its end.
    pub(crate) fn run(&self) -> Ran {
        self.start().wait()
    }
}

/// A job that runs; dropped before it has ended, it is killed.
pub(crate) struct Running {
    child: Child,
    folder: PathBuf,
    log: PathBuf,
    command: OsString,
}

impl Running {
    /// Signals the bootstrap's process group, as the agent does when a job is cancelled.
    pub(crate) fn signal(&self, signal: Signal) {
        killpg(self.group(), signal).unwrap();
    }

    /// The process group of the bootstrap, which is not the one of the hook.
    pub(crate) fn group(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    /// Has it ended already?
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// What was logged so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned()
    }

    /// Waits for the end.
    pub(crate) fn wait(mut self) -> Ran {
        let mut ending = None;
        until("the job has ended", || {
            ending = self.child.try_wait().unwrap();
            ending.is_some()
        });
        let ending = ending.unwrap();
        let log = fs::read(&self.log).unwrap();
        let output = own_output(&log, self.command.as_encoded_bytes());
        Ran {
            ending,
            log: String::from_utf8_lossy(&log).into_owned(),
            output: output.map(|output| String::from_utf8_lossy(output).into_owned()),
        }
    }
}

impl Drop for Running {
    /// A test that failed leaves nothing behind: the hook is in a process group of its own, and outlives the bootstrap.
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ending| ending.is_none()) {
            let _ = killpg(self.group(), Signal::SIGKILL);
            let _ = self.child.wait();
            kill_marked(self.folder.to_str().unwrap());
        }
    }
}

/// A job that ran.
#[derive(Debug)]
pub(crate) struct Ran {
    /// How the bootstrap ended.
    pub(crate) ending: ExitStatus,
    /// All that was logged, byte for byte but for what is no UTF-8.
    pub(crate) log: String,
    /// What the command or the command hook printed, byte for byte; nothing where the agent started none.
    pub(crate) output: Option<String>,
}

impl Ran {
    /// What the agent itself says about a failed command phase, without what it wraps it in.
    pub(crate) fn error(&self) -> Option<&str> {
        let (_, rest) = self.log.rsplit_once(ERROR)?;
        rest.split_once("\x1b[0m").map(|(error, _)| error)
    }

    /// The log without colours and carriage returns, for looking for what a person would see in it.
    pub(crate) fn plain(&self) -> String {
        plain(&self.log)
    }
}

/// Text without colours, timestamps and carriage returns.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '\r' => {}
            '\x1b' => match rest.next() {
                // A control sequence ends with its first letter, the agent's timestamps and links with a bell.
                Some('[') => while rest.next().is_some_and(|c| !c.is_ascii_alphabetic()) {},
                _ => while rest.next().is_some_and(|c| c != '\x07') {},
            },
            other => plain.push(other),
        }
    }
    plain
}

/// The start of a line in which the agent reports an error.
const ERROR: &str = "\x1b[31m🚨 Error: ";

/// What the command itself printed: between the agent's header and what the agent says at the end.
///
/// The header is `~~~ Running …`, and then `$` with the command, which may have several lines where no hook runs it.
fn own_output<'a>(log: &'a [u8], command: &[u8]) -> Option<&'a [u8]> {
    const PROMPT: &[u8] = b"\x1b[90m$\x1b[0m ";
    let headers: [(&[u8], bool); 5] = [
        (b"~~~ Running commands\n", true),
        (b"~~~ Running script\n", false),
        (b"~~~ Running global command hook\n", false),
        (b"~~~ Running agent command hook\n", false),
        (b" command hook\n", false),
    ];
    let (start, is_command) = headers.iter().find_map(|(header, is_command)| {
        find(log, header).map(|at| (at + header.len(), *is_command))
    })?;
    let rest = log[start..].strip_prefix(PROMPT)?;
    let length = if is_command {
        command.len()
    } else {
        find(rest, b"\n")?
    };
    let output = &rest[length + 1..];
    let end = [
        format!("^^^ +++\n{ERROR}").as_bytes(),
        b"~~~ Running global post-command hook\n",
        b"~~~ Running global pre-exit hook\n",
    ]
    .iter()
    .filter_map(|end| find(output, end))
    .min();
    Some(&output[..end.unwrap_or(output.len())])
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|part| part == wanted)
}

/// A git repository of our plugin as it is in this tree, without a program; gives the reference to it.
pub(crate) fn plugin_repository(folder: &Path) -> String {
    let plugin = folder.join("eval-once-buildkite-plugin");
    let tree = Path::new(env!("CARGO_MANIFEST_DIR"));
    for part in ["hooks", "lib"] {
        fs::create_dir_all(plugin.join(part)).unwrap();
        for file in fs::read_dir(tree.join(part)).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), plugin.join(part).join(file.file_name())).unwrap();
        }
    }
    fs::copy(tree.join("plugin.yml"), plugin.join("plugin.yml")).unwrap();
    commit(&plugin)
}

/// A git repository of another plugin, with a command hook (shell); gives the reference to it.
pub(crate) fn other_plugin(folder: &Path, command_hook: &str) -> String {
    plugin_with_hook(folder, "other", "command", command_hook)
}

/// A git repository of another plugin, with one hook (shell); gives the reference to it.
pub(crate) fn plugin_with_hook(folder: &Path, name: &str, hook: &str, text: &str) -> String {
    let plugin = folder.join(format!("{name}-buildkite-plugin"));
    fs::create_dir_all(plugin.join("hooks")).unwrap();
    write_program(
        &plugin.join("hooks").join(hook),
        &format!("#!/bin/bash\n{text}"),
    );
    commit(&plugin)
}

/// Makes a folder a git repository with one commit that has all of it; gives the reference that an agent clones it by.
pub(crate) fn commit(folder: &Path) -> String {
    for arguments in [
        &["init", "--quiet", "--initial-branch=main"][..],
        &["add", "--all", "--force"],
        &["commit", "--quiet", "--message=All of it"],
    ] {
        let status = Command::new("git")
            .args(["-c", "user.name=Test", "-c", "user.email=test@example.com"])
            .args(arguments)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_SYSTEM", "/dev/null")
            .current_dir(folder)
            .status()
            .unwrap();
        assert!(status.success(), "git {arguments:?}");
    }
    format!("file://{}#main", folder.display())
}
