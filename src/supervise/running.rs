//! One program: what it is sent and prints, how it is stopped, and how it ends.

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use signal_hook::consts::SIGKILL;
use unix::fcntl::{FcntlArg, OFlag, fcntl};
use unix::poll::{PollFd, PollFlags};
use unix::sys::signal::{Signal, kill, killpg};
use unix::unistd::{Pid, getpgid};

use super::GRACE;
use super::lost_interrupt::LostInterrupt;
use crate::command_line::{CommandLine, Ending, OutputLimit, Stdin};
use crate::counts::mebibytes;
use crate::exit::{Class, Classify as _, Failure};
use crate::private;

/// How a process is stopped when we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStop {
    /// TERM, and no more. For a Nix that builds: it stops its builders and ends within milliseconds, while KILL would leave
    /// the builder's children behind (measured on three versions). Where it does not, its builders are killed after a second; and
    /// after another one, where it has none, it is killed too: it waits for what no signal interrupts (a database that another process
    /// has locked), or computes without end (2.8 and 2.26 read a `.drv` that is cut off until memory runs out).
    Term,
    /// TERM, and KILL after a second. For a Nix that evaluates: it looks at no signal for seconds, as long as it only
    /// computes (measured). A build that its evaluation needed would have ended it at once.
    TermThenKill,
}

/// How often TERM is sent again. A Nix that gets it between looking for an interrupt and going to sleep sleeps on (measured on
/// 2.8: one in a hundred); the next one ends it at once.
const REPEAT: Duration = Duration::from_millis(100);

/// What a pipe holds at most, in bytes (Linux's `pipe-max-size` for those who are not root).
const PIPE_AT_MOST: usize = 1 << 20;

/// What to do about arguments that the system does not take (`E2BIG`).
const TOO_LONG: &str = "shorten the longest key, or put it into a Nix file: the system limits one argument of a program to 128 KiB, and all together";

/// How much of a child's output is read before the next look at signals, in bytes.
const READ_AT_ONCE: usize = 64 << 10;

/// A process that has ended.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub ending: Ending,
    /// What it printed on standard output, as far as that is [kept](CommandLine::output_limit).
    pub stdout: Vec<u8>,
}

impl Finished {
    /// Standard output as paths, one on each line. A folder's name need not be UTF-8.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let lines = self
            .stdout
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        lines.map(|line| Path::new(OsStr::from_bytes(line)))
    }

    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }
}

/// A program that was started.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pid: Pid,
    /// Where it is sent lines, until there are no more.
    input: Option<ChildStdin>,
    /// What is sent and not yet taken.
    unsent: Vec<u8>,
    out: Option<ChildStdout>,
    err: Option<ChildStderr>,
    stdout: Vec<u8>,
    /// Its name.
    program: &'static str,
    output_limit: OutputLimit,
    /// It has printed more than it may.
    exceeded: bool,
    on_stop: OnStop,
    /// How it is being stopped, if it is.
    pub(super) stopping: Option<Stopping>,
    /// A signal that it has lost; looked at where it evaluates: what is built meanwhile goes on.
    lost_interrupt: LostInterrupt,
    /// It has lost one, waited without an end, and was killed.
    is_lost: bool,
    /// How it ended, once it has; all of its output has been read then.
    pub ended: Option<Ending>,
}

/// A program that is being stopped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stopping {
    since: Instant,
    /// When the next signal is due.
    pub(super) next: Instant,
    /// How long it has to end by itself.
    grace: Duration,
}

impl Running {
    pub(super) fn new(
        mut child: Child,
        line: &CommandLine,
        on_stop: OnStop,
    ) -> anyhow::Result<Self> {
        let running = Self {
            pid: Pid::from_raw(
                i32::try_from(child.id()).context("the process number is out of range")?,
            ),
            input: child.stdin.take(),
            unsent: Vec::new(),
            out: child.stdout.take(),
            err: child.stderr.take(),
            child,
            stdout: Vec::new(),
            program: line.program,
            output_limit: line.output_limit,
            exceeded: false,
            on_stop,
            stopping: None,
            lost_interrupt: LostInterrupt::default(),
            is_lost: false,
            ended: None,
        };
        set_nonblocking(running.input.as_ref())?;
        set_nonblocking(running.out.as_ref())?;
        set_nonblocking(running.err.as_ref())?;
        Ok(running)
    }

    /// Sends it these bytes on its standard input, now or while it is watched: it need not read them at once. What is sent to a
    /// program that has ended, or is being stopped, is lost.
    pub fn send(&mut self, bytes: &[u8]) {
        if self.input.is_some() {
            self.unsent.extend_from_slice(bytes);
            self.send_unsent();
        }
    }

    /// It is sent nothing more: its standard input ends.
    pub fn end_input(&mut self) {
        self.input = None;
        self.unsent.clear();
    }

    fn send_unsent(&mut self) {
        while let Some(input) = self.input.as_mut().filter(|_| !self.unsent.is_empty()) {
            match input.write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // It does not read any more, and ends or has ended: that is seen elsewhere.
                Err(_) => self.end_input(),
            }
        }
    }

    /// Stops it as [`OnStop`] says; it has `grace` to end by itself.
    pub fn stop(&mut self, grace: Duration) {
        self.stop_again(grace);
        self.send_due_signal();
    }

    /// Whether it is being stopped.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Its process number, which no other process has until it has been waited for.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, and what it printed. One that still runs is killed.
    ///
    /// # Errors
    /// It printed more than its [`OutputLimit`] lets it (75).
    pub fn finished(mut self) -> Result<Finished, Failure> {
        if let OutputLimit::Whole(at_most) = self.output_limit
            && self.exceeded
        {
            return Err(Failure::new(
                Class::Infrastructure,
                format_args!(
                    "`{}` prints more than {} on standard output",
                    self.program,
                    mebibytes(at_most as u64)
                ),
            ));
        }
        Ok(Finished {
            ending: self.ended.unwrap_or(Ending::Killed(SIGKILL)),
            stdout: std::mem::take(&mut self.stdout),
        })
    }

    /// Reads what it has printed on standard output, up to about `at_most` bytes, and keeps what is to be kept of it.
    fn read_stdout(&mut self, at_most: usize) -> bool {
        let (OutputLimit::Whole(limit) | OutputLimit::Beginning(limit)) = self.output_limit else {
            return false;
        };
        let is_answer = matches!(self.output_limit, OutputLimit::Whole(_));
        let stdout = &mut self.stdout;
        let is_over = self.exceeded;
        let mut exceeds = false;
        let keep = |bytes: &[u8]| {
            let room = if is_over { 0 } else { limit - stdout.len() };
            stdout.extend_from_slice(&bytes[..bytes.len().min(room)]);
            exceeds |= bytes.len() > room;
        };
        let read = drain(&mut self.out, keep, at_most);
        if exceeds && !std::mem::replace(&mut self.exceeded, true) && is_answer {
            self.stdout = Vec::new();
            self.stop_again(GRACE);
        }
        read
    }

    pub(super) fn stop_again(&mut self, grace: Duration) {
        let now = Instant::now();
        self.stopping = Some(Stopping {
            since: self.stopping.map_or(now, |stopping| stopping.since),
            next: now,
            grace: self
                .stopping
                .map_or(grace, |stopping| stopping.grace.min(grace)),
        });
    }

    /// When the next signal is due; with `ends_lost`, or when it is ended because it has lost one.
    pub(super) fn due(&self, ends_lost: bool) -> Option<Instant> {
        let lost = self.lost_interrupt.due().filter(|_| ends_lost);
        self.stopping.map_or(lost, |stopping| Some(stopping.next))
    }

    /// Ends it if it has lost a signal, and waits since; whether it has done so. One that has builders waits for those, of which one may have
    /// printed the same words.
    pub(super) fn end_if_lost(&mut self) -> bool {
        let now = Instant::now();
        if self.stopping.is_some() || self.lost_interrupt.due().is_none_or(|due| due > now) {
            return false;
        }
        if builders_of(self.pid).is_some_and(|builders| !builders.is_empty()) {
            self.lost_interrupt.goes_on(now);
            return false;
        }
        self.is_lost = true;
        let _ = kill(self.pid, Signal::SIGKILL);
        true
    }

    /// Sends the next signal, if that is due.
    pub(super) fn send_due_signal(&mut self) {
        let now = Instant::now();
        let Some(stopping) = self
            .stopping
            .as_mut()
            .filter(|stopping| stopping.next <= now)
        else {
            return;
        };
        let late = stopping.since.elapsed() >= stopping.grace;
        // An evaluator that is interrupted at one line would go on with the next.
        self.input = None;
        let very_late = stopping.since.elapsed() >= 2 * stopping.grace.max(REPEAT);
        let builds = late && self.on_stop == OnStop::Term && kill_builders_of(self.pid);
        let signal = match self.on_stop {
            OnStop::TermThenKill if late => Signal::SIGKILL,
            OnStop::Term if very_late && !builds => Signal::SIGKILL,
            _ => Signal::SIGTERM,
        };
        stopping.next = now + REPEAT.min(stopping.grace.max(Duration::from_millis(10)));
        // It has not been waited for, so this number is still its own. Where it has ended already, the error means nothing.
        let _ = kill(self.pid, signal);
    }

    /// Reads its output, and sees whether it has ended; true where there was either.
    pub(super) fn look(&mut self, mut read: impl FnMut(&[u8])) -> anyhow::Result<bool> {
        if self.ended.is_some() {
            return Ok(false);
        }
        self.send_unsent();
        // Ended first, drained second: the child's output is complete then. Its own children may still write, which is not
        // waited for.
        let ended = self.child.try_wait()?;
        let at_most = if ended.is_some() {
            usize::MAX
        } else {
            READ_AT_ONCE
        };
        let now = Instant::now();
        let has_answered = self.read_stdout(at_most);
        let lost = &mut self.lost_interrupt;
        if has_answered {
            lost.goes_on(now);
        }
        let evaluates = self.on_stop == OnStop::TermThenKill;
        let keep = |bytes: &[u8]| {
            if evaluates {
                lost.read(bytes, now);
            }
            read(bytes);
        };
        let has_said = drain(&mut self.err, keep, at_most);
        self.ended = ended.map(Ending::from);
        if self.ended.is_some() && self.is_lost && self.stopping.is_none() {
            // As if it had not lost it.
            read(self.lost_interrupt.message());
            self.ended = Some(Ending::Exited(1));
        }
        Ok(has_answered || has_said || self.ended.is_some())
    }

    /// What is waited for of it: output, and that it takes what is sent to it.
    pub(super) fn pipes(&self) -> impl Iterator<Item = PollFd<'_>> {
        let running = self.ended.is_none();
        let input = self.input.as_ref().filter(|_| !self.unsent.is_empty());
        let reads = self.output_limit != OutputLimit::Unread;
        let out = self.out.as_ref().filter(|_| reads);
        [
            (out.map(AsFd::as_fd), PollFlags::POLLIN),
            (self.err.as_ref().map(AsFd::as_fd), PollFlags::POLLIN),
            (input.map(AsFd::as_fd), PollFlags::POLLOUT),
        ]
        .into_iter()
        .filter_map(|(pipe, events)| Some(PollFd::new(pipe?, events)))
        .filter(move |_| running)
    }
}

impl Drop for Running {
    /// No child outlives us, even where waiting for it failed.
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Kills the process groups of the children of `pid`: for a Nix that lost its TERM for good, as happens to one in fifty that come
/// while it begins to build (measured on 2.8: the interrupt is thrown once, and in the wrong place is caught). Its builders lead
/// groups of their own; when they are gone, it ends. Gives whether it may have any: without `/proc` (macOS) this does nothing, and
/// it may.
fn kill_builders_of(pid: Pid) -> bool {
    let Some(builders) = builders_of(pid) else {
        return true;
    };
    for builder in &builders {
        let _ = killpg(*builder, Signal::SIGKILL);
    }
    !builders.is_empty()
}

/// The children of `pid` that lead process groups of their own, as the builders of a Nix do; none where that is not known.
fn builders_of(pid: Pid) -> Option<Vec<Pid>> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let mut builders = Vec::new();
    for thread in threads.flatten() {
        let children = std::fs::read_to_string(thread.path().join("children"));
        for child in children.unwrap_or_default().split_whitespace() {
            let Ok(child) = child.parse().map(Pid::from_raw) else {
                continue;
            };
            // Never our own group, which is Nix's as well.
            if getpgid(Some(child)) == Ok(child) {
                builders.push(child);
            }
        }
    }
    Some(builders)
}

/// Starts a program as a child, whose output we read where it does not go into a file.
pub(super) fn spawn(line: &CommandLine) -> Result<Child, Failure> {
    let stdin = match &line.stdin {
        Stdin::Nothing => Stdio::null(),
        Stdin::Lines => Stdio::piped(),
        Stdin::File(file) => std::fs::File::open(file)
            .classify(Class::Infrastructure, || {
                format!("cannot read {}", file.display())
            })?
            .into(),
    };
    let stdout = match &line.stdout {
        None => Stdio::piped(),
        Some(file) => private::create(file)
            .classify(Class::Infrastructure, || {
                format!("cannot write {}", file.display())
            })?
            .into(),
    };
    let mut command = Command::new(line.program);
    command
        .args(&line.arguments)
        .stdin(stdin)
        .stdout(stdout)
        .stderr(Stdio::piped())
        .envs(line.variables.iter().map(|(name, value)| (name, value)));
    if let Some(folder) = &line.folder {
        command.current_dir(folder);
    }
    command.spawn().map_err(|error| {
        let folder_is_there = line.folder.as_ref().is_none_or(|folder| folder.is_dir());
        let class = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied if folder_is_there => {
                Class::MissingProgram
            }
            io::ErrorKind::ArgumentListTooLong | io::ErrorKind::InvalidInput => Class::Config,
            _ => Class::Infrastructure,
        };
        // The system's error is the same as where the program is missing.
        let place = match &line.folder {
            Some(folder) if !folder_is_there => format!(" in {}", folder.display()),
            _ => String::new(),
        };
        let is_too_long = error.kind() == io::ErrorKind::ArgumentListTooLong;
        let failure = Failure {
            class,
            error: anyhow::Error::new(error).context(format!("cannot run {}{place}", line.program)),
            hint: None,
            meaning: None,
            verb: None,
        };
        if is_too_long {
            return failure.hint(TOO_LONG);
        }
        failure
    })
}

fn set_nonblocking(pipe: Option<&impl AsFd>) -> anyhow::Result<()> {
    if let Some(pipe) = pipe {
        fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .context("cannot set a pipe to non-blocking")?;
    }
    Ok(())
}

/// Reads what a pipe holds, up to about `at_most` bytes, and closes the pipe at its end; true where there was anything.
fn drain(pipe: &mut Option<impl io::Read>, mut to: impl FnMut(&[u8]), at_most: usize) -> bool {
    let mut buffer = [0; 16 << 10];
    // Once the child has ended, only the pipe's content remains, unless its own children go on writing: they are not waited for.
    let mut room = at_most.min(PIPE_AT_MOST);
    let mut any = false;
    while let Some(reader) = pipe.as_mut().filter(|_| room > 0) {
        match reader.read(&mut buffer) {
            Ok(0) => *pipe = None,
            Ok(n) => {
                to(&buffer[..n]);
                room = room.saturating_sub(n);
                any = true;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(_) => *pipe = None,
        }
    }
    any
}
