//! Every process: starting it, signalling it, waiting for it, being replaced by it.
//!
//! One thread waits for signals and children alike, in one `poll`. The handlers are there before the first child is, so no
//! signal is lost; a child is signalled only until it has been waited for, so no foreign process ever is. Children stay in
//! our process group (the agent's), so that whatever ends the job ends them; their standard input is `/dev/null`, because
//! the agent's may be a terminal that nobody types at. One process or several: [`Supervisor::run`] waits for one to its end,
//! [`Supervisor::watch`] for the next thing that any of several does.
//!
//! This module does not know what the programs do, only how they may be stopped ([`OnStop`]).

use std::ffi::{CString, OsStr};
use std::io::{self, Read as _, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGKILL, SIGPIPE, SIGQUIT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use unix::errno::Errno;
use unix::fcntl::{FcntlArg, OFlag, fcntl};
use unix::poll::{PollFd, PollFlags, PollTimeout, poll};
use unix::sys::signal::{SigSet, Signal, kill, killpg};
use unix::unistd::{Pid, getpgid};

use crate::command_line::{CommandLine, Ending, Program, signal_name};
use crate::exit::{Class, Classify as _, Failure};
use crate::log::Log;
use crate::text::shortened;

/// How a process is stopped when we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStop {
    /// TERM, and no more. For a Nix that builds: it stops its builders and ends within milliseconds, while KILL would leave
    /// the builder's children behind (measured on three versions). Where it does not, its builders are killed after a second.
    Term,
    /// TERM, and KILL after a second. For a Nix that evaluates: it looks at no signal for seconds, as long as it only
    /// computes (measured). A build that its evaluation needed would have ended it at once.
    TermThenKill,
}

/// How long a process that may be killed gets to end by itself.
const GRACE: Duration = Duration::from_secs(1);

/// How often TERM is said again. A Nix that is told between looking for an interrupt and going to sleep sleeps on (measured
/// on 2.8: one in a hundred); told once more, it ends at once.
const REPEAT: Duration = Duration::from_millis(100);

/// How long what is said is let to gather: no reader of a log notices.
const BREATH: Duration = Duration::from_millis(3);

/// How many characters of a command are shown to who asks what is run.
const DEBUG_AT_MOST: usize = 1_000;

/// What a pipe holds at most, in bytes (Linux's `pipe-max-size` for those who are not root).
const PIPE_AT_MOST: usize = 1 << 20;

/// How much of a child's output is read before signals are looked at again, in bytes.
const READ_AT_ONCE: usize = 64 << 10;

/// A process that has ended.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub ending: Ending,
    /// What it printed on standard output.
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

/// Has the signals that end a job, and waits for processes.
#[derive(Debug)]
pub struct Supervisor {
    signals: SignalDelivery<UnixStream, SignalOnly>,
    /// The first signal that asked us to end.
    stop: Option<i32>,
    /// The signal mask we were started with, for the program that replaces us.
    mask: SigSet,
    /// Set when signals are no longer ours: then they do what they do by default.
    handed_over: Arc<AtomicBool>,
    log: Log,
}

impl Supervisor {
    /// Installs the handlers for HUP, INT, QUIT, TERM and CHLD. A signal that we were started to ignore (`nohup`) is left
    /// ignored, as every shell does.
    ///
    /// # Errors
    /// The system refuses; 75.
    pub fn install(log: &Log) -> Result<Self, Failure> {
        let install = || -> anyhow::Result<Self> {
            let (read, write) = UnixStream::pair()?;
            let ignored = ignored_signals();
            let stops: Vec<i32> = [SIGHUP, SIGINT, SIGQUIT, SIGTERM]
                .into_iter()
                .filter(|signal| !ignored.contains(signal))
                .collect();
            let handed_over = Arc::new(AtomicBool::new(false));
            for stop in &stops {
                flag::register_conditional_default(*stop, Arc::clone(&handed_over))?;
            }
            let signals = SignalDelivery::with_pipe(
                read,
                write,
                SignalOnly,
                stops.into_iter().chain([SIGCHLD]),
            )?;
            let mask = SigSet::thread_get_mask()?;
            // A signal that is blocked (by whoever started us) could never be waited for.
            let mut wanted = SigSet::empty();
            for signal in [
                Signal::SIGHUP,
                Signal::SIGINT,
                Signal::SIGQUIT,
                Signal::SIGTERM,
                Signal::SIGCHLD,
            ] {
                wanted.add(signal);
            }
            wanted.thread_unblock()?;
            Ok(Self {
                signals,
                stop: None,
                mask,
                handed_over,
                log: log.clone(),
            })
        };
        install().classify(Class::Infrastructure, || {
            "cannot install signal handlers".into()
        })
    }

    /// Runs a program to its end: its standard output is returned, its standard error written to `stderr` as it comes.
    ///
    /// # Errors
    /// The program is missing (69) or cannot be started (75); or a signal asked us to end (128 + n), and then the program
    /// is gone before this returns.
    pub fn run(
        &mut self,
        line: &CommandLine,
        on_stop: OnStop,
        stderr: &mut impl Write,
    ) -> Result<Finished, Failure> {
        self.run_beside(line, on_stop, stderr, || ())
    }

    /// The same, with something of our own to do while the program runs; signals are looked at after it.
    ///
    /// # Errors
    /// As [`Supervisor::run`].
    pub fn run_beside(
        &mut self,
        line: &CommandLine,
        on_stop: OnStop,
        stderr: &mut impl Write,
        beside: impl FnOnce(),
    ) -> Result<Finished, Failure> {
        let mut running = [self.start(line, on_stop)?];
        beside();
        while running[0].ended.is_none() {
            self.watch(&mut running, None, |_, bytes| {
                let _ = stderr.write_all(bytes);
            })?;
        }
        self.check_stopped()?;
        let [running] = running;
        Ok(running.finished())
    }

    /// Starts a program. It is [watched](Self::watch) from then on; dropped before it has ended, it is killed.
    ///
    /// # Errors
    /// The program is missing (69) or cannot be started (75); or a signal has asked us to end (128 + n).
    pub fn start(&mut self, line: &CommandLine, on_stop: OnStop) -> Result<Running, Failure> {
        self.check()?;
        let shown = line.to_string();
        // A walker of several kilobytes is nothing to look at.
        self.log
            .debug(format_args!("$ {}", shortened(&shown, DEBUG_AT_MOST)));
        Running::new(spawn(line)?, on_stop).classify(Class::Infrastructure, || {
            format!("cannot wait for `{line}`")
        })
    }

    /// Waits until one of the programs says something or ends, a signal comes, or it is `until`. What they say on standard
    /// error is given to `hear`, with their number; what has ended has [`Running::ended`].
    ///
    /// Once a signal has asked us to end, all of them are being stopped: whoever calls this goes on until they have ended.
    ///
    /// # Errors
    /// The system refuses to wait (75).
    pub fn watch(
        &mut self,
        running: &mut [Running],
        until: Option<Instant>,
        mut hear: impl FnMut(usize, &[u8]),
    ) -> Result<(), Failure> {
        let again = self.notice_signals();
        for one in running.iter_mut().filter(|one| one.ended.is_none()) {
            if again || self.stop.is_some() && one.stopping.is_none() {
                one.tell_again(GRACE);
            }
            one.tell();
        }
        let watched = self.watch_once(running, until, &mut hear);
        watched.classify(Class::Infrastructure, || {
            "cannot wait for what was started".into()
        })
    }

    fn watch_once(
        &mut self,
        running: &mut [Running],
        until: Option<Instant>,
        hear: &mut impl FnMut(usize, &[u8]),
    ) -> anyhow::Result<()> {
        let mut anything = false;
        for (number, one) in running.iter_mut().enumerate() {
            anything |= one.look(|bytes| hear(number, bytes))?;
        }
        if anything {
            return Ok(());
        }
        let mut waited_for = vec![PollFd::new(
            self.signals.get_read().as_fd(),
            PollFlags::POLLIN,
        )];
        waited_for.extend(
            running
                .iter()
                .flat_map(Running::pipes)
                .map(|pipe| PollFd::new(pipe, PollFlags::POLLIN)),
        );
        let next = running
            .iter()
            .filter(|one| one.ended.is_none())
            .filter_map(|one| one.stopping.map(|stopping| stopping.next))
            .chain(until)
            .min();
        let timeout = next.map_or(PollTimeout::NONE, |next| {
            // Rounded up, so that the time is over when this returns.
            let left = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut waited_for, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for `pause`, or until a signal asks us to end.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn pause(&mut self, pause: Duration) -> Result<(), Failure> {
        let timeout = PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX);
        let _ = poll(
            &mut [PollFd::new(
                self.signals.get_read().as_fd(),
                PollFlags::POLLIN,
            )],
            timeout,
        );
        self.check()
    }

    /// Waits a moment, or until a signal comes, after something was said: what is said next is then read in pieces of many lines.
    /// Line by line, reading cost a third of an evaluation's time on two cores, and more than the lines themselves in a build
    /// with 200,000 of them. Signals are looked at by whoever watches next.
    pub fn breathe(&mut self) {
        let _ = self.pause(BREATH);
    }

    /// Gives the signals back, for a program that is to replace us: the mask is the one we were started with, and a signal
    /// that comes from now on ends this process, as it would have ended that program.
    ///
    /// # Errors
    /// One has come before, and asks us to end (128 + n).
    pub fn hand_over(mut self) -> Result<(), Failure> {
        self.handed_over.store(true, Ordering::SeqCst);
        self.check()?;
        let _ = self.mask.thread_set_mask();
        Ok(())
    }

    /// Looks whether a signal has asked us to end.
    ///
    /// # Errors
    /// It has (128 + n).
    pub fn check(&mut self) -> Result<(), Failure> {
        self.notice_signals();
        self.check_stopped()
    }

    /// Whether a signal has asked us to end.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop.is_some()
    }

    /// Does one more thing although a signal has asked us to end; another signal ends that too. What asked us first stays what
    /// asked us.
    pub fn once_more<T>(&mut self, act: impl FnOnce(&mut Self) -> T) -> T {
        let stop = self.stop.take();
        let done = act(self);
        self.stop = stop.or(self.stop);
        done
    }

    fn check_stopped(&self) -> Result<(), Failure> {
        let Some(signal) = self.stop else {
            return Ok(());
        };
        Err(Failure::new(
            Class::Signal(signal),
            format_args!("stopped by {}", signal_name(signal)),
        ))
    }

    /// Takes note of signals that have arrived; says whether one of them asks us to end.
    fn notice_signals(&mut self) -> bool {
        let mut stopping = false;
        for signal in self.signals.pending() {
            if signal != SIGCHLD {
                self.stop.get_or_insert(signal);
                stopping = true;
            }
        }
        stopping
    }
}

/// A program that was started.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pid: Pid,
    out: Option<ChildStdout>,
    err: Option<ChildStderr>,
    stdout: Vec<u8>,
    on_stop: OnStop,
    stopping: Option<Stopping>,
    /// How it ended, once it has; what it wrote has been heard then.
    pub ended: Option<Ending>,
}

/// A program that was told to end.
#[derive(Debug, Clone, Copy)]
struct Stopping {
    since: Instant,
    /// When it is told again.
    next: Instant,
    /// How long it has to end by itself.
    grace: Duration,
}

impl Running {
    fn new(mut child: Child, on_stop: OnStop) -> anyhow::Result<Self> {
        let running = Self {
            pid: Pid::from_raw(i32::try_from(child.id()).context("a process number that is none")?),
            out: child.stdout.take(),
            err: child.stderr.take(),
            child,
            stdout: Vec::new(),
            on_stop,
            stopping: None,
            ended: None,
        };
        set_nonblocking(running.out.as_ref())?;
        set_nonblocking(running.err.as_ref())?;
        Ok(running)
    }

    /// Tells it to end, as [`OnStop`] says, and that it has `grace` to do so by itself.
    pub fn stop(&mut self, grace: Duration) {
        self.tell_again(grace);
        self.tell();
    }

    /// Whether it was told to end.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Its process number, which is nobody else's until it has ended.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, and what it printed. One that has not ended yet is killed.
    #[must_use]
    pub fn finished(mut self) -> Finished {
        Finished {
            ending: self.ended.unwrap_or(Ending::Killed(SIGKILL)),
            stdout: std::mem::take(&mut self.stdout),
        }
    }

    fn tell_again(&mut self, grace: Duration) {
        let now = Instant::now();
        self.stopping = Some(Stopping {
            since: self.stopping.map_or(now, |stopping| stopping.since),
            next: now,
            grace: self
                .stopping
                .map_or(grace, |stopping| stopping.grace.min(grace)),
        });
    }

    /// Signals it, if that is due.
    fn tell(&mut self) {
        let now = Instant::now();
        let Some(stopping) = self
            .stopping
            .as_mut()
            .filter(|stopping| stopping.next <= now)
        else {
            return;
        };
        let late = stopping.since.elapsed() >= stopping.grace;
        let signal = match self.on_stop {
            OnStop::TermThenKill if late => Signal::SIGKILL,
            _ => Signal::SIGTERM,
        };
        if late && self.on_stop == OnStop::Term {
            kill_children_of(self.pid);
        }
        stopping.next = now + REPEAT.min(stopping.grace.max(Duration::from_millis(10)));
        // It has not been waited for, so this number is still its own. Where it has ended already, there is nothing to do
        // about the error.
        let _ = kill(self.pid, signal);
    }

    /// Reads what there is, and sees whether it has ended. Says whether that is news.
    fn look(&mut self, mut hear: impl FnMut(&[u8])) -> anyhow::Result<bool> {
        if self.ended.is_some() {
            return Ok(false);
        }
        // Ended first, drained second: what the child wrote is then complete. What its own children may still write is
        // not waited for.
        let ended = self.child.try_wait()?;
        let at_most = if ended.is_some() {
            usize::MAX
        } else {
            READ_AT_ONCE
        };
        let stdout = &mut self.stdout;
        let read = drain(
            &mut self.out,
            |bytes| stdout.extend_from_slice(bytes),
            at_most,
        ) | drain(&mut self.err, &mut hear, at_most);
        self.ended = ended.map(Ending::from);
        Ok(read || self.ended.is_some())
    }

    fn pipes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let running = self.ended.is_none();
        [
            self.out.as_ref().map(AsFd::as_fd),
            self.err.as_ref().map(AsFd::as_fd),
        ]
        .into_iter()
        .flatten()
        .filter(move |_| running)
    }
}

impl Drop for Running {
    /// Nothing that we have started outlives us, whatever went wrong with waiting for it.
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Kills the process groups of what `pid` has started: for a Nix whose TERM was lost for good, as one in fifty is that comes
/// while it begins to build (measured on 2.8: the interrupt is thrown once, and in the wrong place is caught). Its builders
/// lead groups of their own; when they are gone, it ends. Where there is no `/proc` (macOS) this does nothing.
fn kill_children_of(pid: Pid) {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    for child in children.unwrap_or_default().split_whitespace() {
        let Ok(child) = child.parse().map(Pid::from_raw) else {
            continue;
        };
        // Our own group, and Nix's, is not touched.
        if getpgid(Some(child)) == Ok(child) {
            let _ = killpg(child, Signal::SIGKILL);
        }
    }
}

/// Starts a program as a child whose output we read, but for what goes into a file.
fn spawn(line: &CommandLine) -> Result<Child, Failure> {
    let stdin = match &line.stdin {
        None => Stdio::null(),
        Some(file) => std::fs::File::open(file)
            .classify(Class::Infrastructure, || {
                format!("cannot read {}", file.display())
            })?
            .into(),
    };
    let stdout = match &line.stdout {
        None => Stdio::piped(),
        Some(file) => std::fs::File::create(file)
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
        Failure {
            class,
            error: anyhow::Error::new(error).context(format!("cannot run {}", line.program)),
            hint: None,
            meaning: None,
            verb: None,
        }
    })
}

fn set_nonblocking(pipe: Option<&impl AsFd>) -> anyhow::Result<()> {
    if let Some(pipe) = pipe {
        fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .context("cannot set a pipe to non-blocking")?;
    }
    Ok(())
}

/// Reads what there is, up to about `at_most` bytes, and gives the pipe up at its end. Says whether there was anything.
fn drain(pipe: &mut Option<impl io::Read>, mut to: impl FnMut(&[u8]), at_most: usize) -> bool {
    let mut buffer = [0; 16 << 10];
    // Once the child has ended only what is in the pipe is left, unless its own children go on writing: they are not
    // waited for.
    let mut left = at_most.min(PIPE_AT_MOST);
    let mut any = false;
    while let Some(reader) = pipe.as_mut().filter(|_| left > 0) {
        match reader.read(&mut buffer) {
            Ok(0) => *pipe = None,
            Ok(n) => {
                to(&buffer[..n]);
                left = left.saturating_sub(n);
                any = true;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(_) => *pipe = None,
        }
    }
    any
}

/// The signals we were started to ignore. Where there is no `/proc` (macOS) none are known, and ours are installed.
fn ignored_signals() -> Vec<i32> {
    let mut status = String::new();
    let read = std::fs::File::open("/proc/self/status")
        .and_then(|mut file| file.read_to_string(&mut status));
    let mask = read.ok().and_then(|_| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("SigIgn:"))?;
        u64::from_str_radix(line.trim(), 16).ok()
    });
    (1..=64)
        .filter(|signal| mask.unwrap_or_default() >> (signal - 1) & 1 == 1)
        .collect()
}

/// Replaces our process by `program`, which gets our standard streams, folder and process group. Returns only where that
/// fails. Whoever has a [`Supervisor`] calls [`Supervisor::hand_over`] first.
#[must_use]
pub fn become_program(program: &Program) -> io::Error {
    let c_string = |bytes: Vec<u8>| CString::new(bytes).map_err(|_| io::Error::from(Errno::EINVAL));
    let replace = || -> io::Result<()> {
        let path = c_string(program.path.clone().into_os_string().into_vec())?;
        let arguments: Vec<CString> = program
            .arguments
            .iter()
            .map(|word| c_string(word.as_bytes().to_vec()))
            .collect::<io::Result<_>>()?;
        let environment: Vec<CString> = program
            .environment
            .iter()
            .map(|(name, value)| c_string([name.as_bytes(), b"=", value.as_bytes()].concat()))
            .collect::<io::Result<_>>()?;
        // Rust's runtime ignores SIGPIPE, and what is ignored stays ignored in the next program. What is *handled* becomes
        // the default there, as it is for whatever the agent starts.
        flag::register(SIGPIPE, Arc::new(AtomicBool::new(false)))?;
        let Err(error) = unix::unistd::execve(&path, &arguments, &environment);
        Err(error.into())
    };
    match replace() {
        Ok(()) => io::Error::other("the program did not replace us"),
        Err(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_prints_is_kept_apart_and_complete() {
        let mut supervisor = Supervisor::install(&Log::default()).unwrap();
        let mut said = Vec::new();
        let line = CommandLine::new(
            "sh",
            &["-c", "head -c 300000 /dev/zero; echo oops >&2; exit 7"],
        );
        let finished = supervisor.run(&line, OnStop::Term, &mut said).unwrap();
        assert_eq!(
            (finished.ending, finished.stdout.len()),
            (Ending::Exited(7), 300_000)
        );
        assert_eq!(said, b"oops\n");
    }

    #[test]
    fn a_program_that_was_killed_is_told_from_one_that_exited() {
        let mut supervisor = Supervisor::install(&Log::default()).unwrap();
        let finished = supervisor.run(
            &CommandLine::new("sh", &["-c", "kill -9 $$"]),
            OnStop::Term,
            &mut io::sink(),
        );
        assert_eq!(finished.unwrap().ending, Ending::Killed(9));
    }

    #[test]
    fn a_missing_program_is_said_by_name() {
        let mut supervisor = Supervisor::install(&Log::default()).unwrap();
        let failure = supervisor
            .run(
                &CommandLine::new("nix-nonesuch", &[]),
                OnStop::Term,
                &mut io::sink(),
            )
            .unwrap_err();
        assert_eq!(failure.class, Class::MissingProgram);
        assert!(failure.to_string().contains("nix-nonesuch"), "{failure}");
    }
}
