//! A `nix-daemon` of a private store, on a socket of its own.

use std::{
    ffi::{OsStr, OsString},
    os::unix::{net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use unix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

use super::{processes::children, program::Program, store::Store, until};

/// The folder with the Nix of all daemons, where it is another one than the clients', the first on `PATH`: clients and daemons of two
/// versions, as on hosts whose system and jobs do not have the same (`script/versions`).
const DAEMONS: &str = "EVAL_ONCE_TEST_DAEMON";

/// Set where all tests are to be run through a daemon, also those that have none of their own.
const FOR_ALL: &str = "EVAL_ONCE_TEST_THROUGH_DAEMON";

/// Is every store to have a daemon that its programs go through?
pub(crate) fn is_for_all() -> bool {
    std::env::var_os(FOR_ALL).is_some()
}

/// The version of the first Nix in the folders of this `PATH`.
pub(crate) fn version_on(path: &OsStr) -> String {
    let mut programs = std::env::split_paths(path).map(|folder| folder.join("nix-store"));
    let ended = Program::new(programs.find(|file| file.is_file()).unwrap())
        .arg("--version")
        .env("PATH", path)
        // Without any, 2.8 aborts where the user has no home either.
        .env("HOME", "/")
        .run();
    ended.exits(0);
    ended.stdout.trim().rsplit(' ').next().unwrap().to_owned()
}

/// The `PATH` of a daemon of this store.
pub(crate) fn path_of_daemons(store: &Store) -> OsString {
    let mut folders: Vec<PathBuf> = std::env::split_paths(&store.path()).collect();
    if let Some(folder) = std::env::var_os(DAEMONS).map(PathBuf::from) {
        assert!(
            folder.join("nix-daemon").is_file(),
            "{DAEMONS} is {}, which has no nix-daemon",
            folder.display()
        );
        folders.insert(0, folder);
    }
    std::env::join_paths(folders).unwrap()
}

/// A running daemon; it ends with this value.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    /// Starts one for `store` and waits until it answers.
    ///
    /// The store's folders exist already, and must: told of a socket but without a state folder, the daemon of Nix 2.8 and
    /// 2.26 connects to itself and forks without end.
    pub(crate) fn start(store: &Store) -> Self {
        Self::start_behind(store, store.before())
    }

    /// As [`start`](Self::start), by the program and arguments in `before`, which end where the daemon's begin.
    pub(crate) fn start_behind(store: &Store, before: &[OsString]) -> Self {
        Self::start_on(store, before, store.root().join("socket"))
    }

    /// As [`start_behind`](Self::start_behind), on this socket.
    pub(super) fn start_on(store: &Store, before: &[OsString], socket: PathBuf) -> Self {
        assert!(
            store.state().join("db").is_dir(),
            "the store is not initialised"
        );
        let path = path_of_daemons(store);
        let mut programs = std::env::split_paths(&path).map(|folder| folder.join("nix-daemon"));
        let program = programs.find(|file| file.is_file()).unwrap();
        let mut command = Program::new(program)
            .behind(before)
            .envs(store.daemon_env())
            .env("PATH", &path)
            .env("NIX_DAEMON_SOCKET_PATH", &socket)
            .command();
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        let mut child = command.spawn().unwrap();
        until("the daemon answers", || {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "the daemon ended with {ended:?}");
            UnixStream::connect(&socket).is_ok()
        });
        Self { child, socket }
    }

    /// The daemon's own process, which waits for clients.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    /// Kills the processes that work for clients, one for each.
    pub(crate) fn kill_workers(&self) {
        for worker in children(self.pid()) {
            let _ = kill(worker.pid, Signal::SIGKILL);
        }
    }

    /// Kills the daemon first, so that no client is served any longer, and then those that work for clients.
    pub(crate) fn kill(&self) {
        let workers = children(self.pid());
        let _ = kill(self.pid(), Signal::SIGKILL);
        for worker in workers {
            let _ = kill(worker.pid, Signal::SIGKILL);
        }
    }

    /// What a client's environment has beside the store's own, so that it goes through this daemon.
    pub(crate) fn env(&self) -> Vec<(OsString, OsString)> {
        client_env(&self.socket)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        let _ = killpg(self.pid(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// What makes a Nix program a client of the daemon on `socket`, whether or not there is one.
pub(crate) fn client_env(socket: &Path) -> Vec<(OsString, OsString)> {
    vec![
        ("NIX_REMOTE".into(), "daemon".into()),
        ("NIX_DAEMON_SOCKET_PATH".into(), socket.into()),
    ]
}
