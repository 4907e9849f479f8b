//! Standard error, whose reader may have stopped reading.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use unix::fcntl::OFlag;
use unix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How often a write that waits looks whether we are to end, in milliseconds.
const LOOK_EVERY: u8 = 100;

/// How often that is, until a log that takes nothing is given up.
const LOOKS: u32 = 10;

/// Standard error. As long as its reader reads nothing, a write waits, as that of any program. But it does not wait in the system,
/// where no signal of ours would end it: once one has asked us to end, what the log does not take within a second is lost, so that
/// Nix is stopped all the same.
#[derive(Debug)]
pub(super) struct Stderr<W> {
    /// The pipe or terminal, opened anew: not to block is a property of the open file, which other processes share with us. None where
    /// it is something else, or another user's.
    own: Option<File>,
    /// As we were started with it.
    shared: W,
    /// Whether a signal has asked us to end.
    stopped: Arc<AtomicBool>,
    /// Something was lost.
    lost: bool,
}

impl<W> Stderr<W> {
    /// Standard error, which is given up where it takes nothing after `stopped` was set.
    pub(super) fn new(shared: W, stopped: Arc<AtomicBool>) -> Self {
        Self {
            own: open(),
            shared,
            stopped,
            lost: false,
        }
    }
}

/// Opens the pipe or the terminal that is standard error. (Not on macOS, where one cannot be opened anew.)
fn open() -> Option<File> {
    let file = "/proc/self/fd/2";
    let kind = std::fs::metadata(file).ok()?.file_type();
    if !kind.is_fifo() && !kind.is_char_device() {
        return None;
    }
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let mut options = OpenOptions::new();
    let options = options.write(true).custom_flags(flags.bits());
    options.open(file).ok()
}

impl<W: Write> Write for Stderr<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(own) = &mut self.own else {
            return self.shared.write(bytes);
        };
        let mut looks = 0;
        loop {
            match own.write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                other => return other,
            }
            if self.stopped.load(Ordering::SeqCst) {
                if self.lost || looks >= LOOKS {
                    self.lost = true;
                    return Ok(bytes.len());
                }
                looks += 1;
            }
            let mut room = [PollFd::new(own.as_fd(), PollFlags::POLLOUT)];
            let _ = poll(&mut room, PollTimeout::from(LOOK_EVERY));
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
