//! The agents of a build: real ones, each a process with folders of its own, gone with everything they started when they are dropped.

use std::{
    ffi::OsString,
    fs::{self, File},
    os::unix::{
        fs::{MetadataExt, lchown, symlink},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use super::{Build, server::REGISTRATION_TOKEN};
use crate::support::{agent::is_old, processes::kill_marked, program::Program};

/// What an agent is to be.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    /// Its tags.
    pub(super) tags: Vec<String>,
    /// What it is started by.
    pub(super) before: Vec<OsString>,
    /// Its variables beside those of all agents.
    pub(super) environment: Vec<(OsString, OsString)>,
    /// Whose its folders are.
    pub(super) user: Option<u32>,
}

/// An agent that runs.
pub(super) struct Agent {
    child: Child,
    folder: PathBuf,
}

/// Starts the agents of a build.
pub(super) fn start(build: &Build) -> Vec<Agent> {
    let plans = build.agents.iter().enumerate();
    plans
        .map(|(number, plan)| start_one(build, number + 1, plan))
        .collect()
}

fn start_one(build: &Build, number: usize, plan: &Plan) -> Agent {
    let name = format!("agent-{number}");
    let folder = build.path().join(&name);
    for part in ["builds", "checkout", "plugins", "sockets"] {
        fs::create_dir_all(folder.join(part)).unwrap();
    }
    let log = File::create(folder.join("log")).unwrap();
    let mut command = Program::new(&build.agent)
        .args(["start", "--no-color", "--no-git-submodules"])
        .args(["--endpoint", build.server.url()])
        .args(["--token", REGISTRATION_TOKEN, "--name", &name])
        .arg("--config")
        .arg(build.path().join("agent.cfg"))
        .arg("--hooks-path")
        .arg(build.path().join("hooks"));
    for (option, part) in [
        ("--build-path", "builds"),
        ("--plugins-path", "plugins"),
        ("--sockets-path", "sockets"),
    ] {
        command = command.arg(option).arg(folder.join(part));
    }
    if !build.terminal {
        command = command.arg("--no-pty");
    }
    if !plan.tags.is_empty() {
        command = command.args(["--tags", &plan.tags.join(",")]);
    }
    command = command
        .behind(&plan.before)
        .envs(build.environment.iter().cloned())
        .envs(plan.environment.iter().cloned())
        // Of the phases `checkout` is left out: each job finds its checkout made.
        .env("BUILDKITE_BOOTSTRAP_PHASES", "plugin,command")
        .env("BUILDKITE_BUILD_CHECKOUT_PATH", folder.join("checkout"))
        // Newer agents would rather be told of jobs through a stream.
        .env("BUILDKITE_AGENT_PING_MODE", "poll-only");
    command = if is_old() {
        command.env("BUILDKITE_AGENT_EXPERIMENT", "polyglot-hooks")
    } else {
        command.env("_DD_ROOT_GO_SESSION_ID", "marked")
    };
    if let Some(user) = plan.user {
        give(&folder, user);
    }
    let child = command
        .folder(&folder)
        .command()
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    Agent { child, folder }
}

/// Which agent has ended by itself, if one has.
pub(super) fn trouble(agents: &mut [Agent]) -> Option<String> {
    agents.iter_mut().find_map(|agent| {
        let ending = agent.child.try_wait().unwrap()?;
        Some(format!("{} ended: {ending}", agent.folder.display()))
    })
}

/// What the agents themselves logged.
pub(super) fn logs(agents: &[Agent]) -> String {
    let log = |agent: &Agent| fs::read_to_string(agent.folder.join("log")).unwrap_or_default();
    agents.iter().map(log).collect()
}

impl Drop for Agent {
    /// No job runs any more when a build is over; when a test has failed, whatever does is found by its environment.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        kill_marked(self.folder.to_str().unwrap());
    }
}

/// Makes the checkout in an agent's folder what the job before found, or nothing: a copy of `source`.
pub(super) fn check_out(agent: &Path, source: Option<&Path>) {
    let checkout = agent.join("checkout");
    fs::remove_dir_all(&checkout).unwrap();
    match source {
        Some(source) => copy(source, &checkout),
        None => fs::create_dir(&checkout).unwrap(),
    }
    let owner = fs::metadata(agent).unwrap().uid();
    if owner != fs::metadata(&checkout).unwrap().uid() {
        give(&checkout, owner);
    }
}

/// Makes a file or a folder with all that is in it this user's.
fn give(path: &Path, user: u32) {
    lchown(path, Some(user), Some(user)).unwrap();
    if path.symlink_metadata().unwrap().is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), user);
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy(&path, &to);
        } else if kind.is_symlink() {
            symlink(fs::read_link(&path).unwrap(), to).unwrap();
        } else {
            fs::copy(&path, to).unwrap();
        }
    }
}
