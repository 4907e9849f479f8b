//! A pseudo terminal of ours, for runs by hand: a person at a keyboard, who may press a key or close the window.

use std::fs::File;
use std::io::{Read, Write, pipe};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use unix::fcntl::OFlag;
use unix::poll::{PollFd, PollFlags, PollTimeout, poll};
use unix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};

use super::{program::Program, tool};

/// The person's side of a terminal; what appears on the screen is read all the time, so that no program blocks when it prints.
pub(crate) struct Terminal {
    keyboard: Option<File>,
    screen: JoinHandle<()>,
    seen: Arc<Mutex<Vec<u8>>>,
    /// Nothing is ever written to it: that it is closed says that the window is.
    open: Option<std::io::PipeWriter>,
}

impl Terminal {
    /// Opens a terminal and runs a program in it, as a session of its own with this terminal.
    ///
    /// Through `setsid`, since only code between fork and exec could do it from here. It replaces itself: the child's process id is the
    /// program's, and its session's and process group's.
    pub(crate) fn run(program: &Program) -> (Self, Child) {
        // Closed on exec from the first moment on, as `openpty` would not have it: a child of another test, or this one's, would
        // hold the window open.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = File::options()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NOCTTY.bits())
            .open(ptsname_r(&master).unwrap())
            .unwrap();
        let inner = program.command();
        let child = Command::new(tool("setsid").unwrap())
            .arg("--ctty")
            .arg(inner.get_program())
            .args(inner.get_args())
            .env_clear()
            .envs(
                inner
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .current_dir(inner.get_current_dir().unwrap())
            .stdin(slave.try_clone().unwrap())
            .stdout(slave.try_clone().unwrap())
            .stderr(slave)
            .spawn()
            .unwrap();
        let (closed, open) = pipe().unwrap();
        let keyboard = File::from(OwnedFd::from(master));
        let mut master = keyboard.try_clone().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let shown = Arc::clone(&seen);
        let screen = thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let mut either = [
                    PollFd::new(master.as_fd(), PollFlags::POLLIN),
                    PollFd::new(closed.as_fd(), PollFlags::POLLIN),
                ];
                poll(&mut either, PollTimeout::NONE).unwrap();
                let is_closed = either[1].any().unwrap_or(true);
                let is_readable = either[0].any().unwrap_or(true);
                if !is_readable && is_closed {
                    return;
                }
                // The system calls it an error (EIO) when the last one on the other side is gone.
                match master.read(&mut buffer) {
                    Ok(0) | Err(_) => return,
                    Ok(length) => shown.lock().unwrap().extend_from_slice(&buffer[..length]),
                }
            }
        });
        let terminal = Self {
            keyboard: Some(keyboard),
            screen,
            seen,
            open: Some(open),
        };
        (terminal, child)
    }

    /// Presses keys: `\x03` is Ctrl-C.
    pub(crate) fn press(&mut self, keys: &[u8]) {
        self.keyboard.as_mut().unwrap().write_all(keys).unwrap();
    }

    /// Is this on the screen?
    pub(crate) fn shows(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).contains(text)
    }

    /// Closes the window: programs in it are sent HUP, and cannot print any longer.
    pub(crate) fn close(&mut self) {
        self.keyboard = None;
        self.open = None;
    }

    /// What was seen, once the last one in the terminal has ended or the window was closed.
    pub(crate) fn text(self) -> String {
        self.screen.join().unwrap();
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }
}
