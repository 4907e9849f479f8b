//! A `nix-daemon` of a private store, on a socket of its own.

use std::{
    ffi::OsString,
    os::unix::{net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use unix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

use super::{processes::children, program::Program, store::Store, tool, until};

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
        assert!(
            store.state().join("db").is_dir(),
            "the store is not initialised"
        );
        let socket = store.root().join("socket");
        let mut command = Program::new(tool("nix-daemon").unwrap())
            .behind(before)
            .envs(store.env())
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
