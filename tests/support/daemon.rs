//! A `nix-daemon` of a private store, on a socket of its own.

use std::{
    ffi::OsString,
    os::unix::{net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use unix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::{store::Store, tool, until};

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
        assert!(
            store.state().join("db").is_dir(),
            "the store is not initialised"
        );
        let socket = store.root().join("socket");
        let mut command = Command::new(tool("nix-daemon").unwrap());
        command
            .env_clear()
            .envs(store.env())
            .env("NIX_DAEMON_SOCKET_PATH", &socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        let child = command.spawn().unwrap();
        until("the daemon answers", || {
            UnixStream::connect(&socket).is_ok()
        });
        Self { child, socket }
    }

    /// What a client's environment has beside the store's own, so that it goes through this daemon.
    pub(crate) fn env(&self) -> Vec<(OsString, OsString)> {
        client_env(&self.socket)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.child.id().try_into().unwrap());
        let _ = killpg(group, Signal::SIGKILL);
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
