//! Every process: starting it, signalling it, waiting for it, being replaced by it.
//!
//! One thread waits for signals and children alike, in one `poll`. The handlers are there before the first child is, so no
//! signal is lost; a child is signalled only until it has been waited for, so no foreign process ever is. Children stay in
//! our process group (the agent's), so that whatever ends the job ends them; their standard input is `/dev/null`, because
//! the agent's may be a terminal that nobody types at.
//!
//! This module does not know what the programs do, only how they may be stopped ([`OnStop`]).

use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::io::{self, Read as _, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use unix::errno::Errno;
use unix::fcntl::{FcntlArg, OFlag, fcntl};
use unix::poll::{PollFd, PollFlags, PollTimeout, poll};
use unix::sys::signal::{SigSet, Signal, kill};
use unix::unistd::Pid;

use crate::exit::{Class, Classify as _, Failure};
use crate::log::Log;

/// A program and its arguments, as data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    /// The program's name, looked up on `PATH`.
    pub program: &'static str,
    /// Its arguments, without the program's name.
    pub arguments: Vec<OsString>,
    /// The folder it runs in; ours where there is none.
    pub folder: Option<PathBuf>,
}

impl CommandLine {
    /// `program` with these arguments, in our own folder.
    #[must_use]
    pub fn new(program: &'static str, arguments: &[&str]) -> Self {
        Self {
            program,
            arguments: arguments.iter().map(OsString::from).collect(),
            folder: None,
        }
    }

    /// The argument vector, the program's name first.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let words = self
            .arguments
            .iter()
            .map(|word| word.to_string_lossy().into_owned());
        std::iter::once(self.program.to_owned())
            .chain(words)
            .collect()
    }
}

/// As one could paste it into a shell.
impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, word) in self.words().iter().enumerate() {
            if i > 0 {
                f.write_str(" ")?;
            }
            f.write_str(&shell_word(word))?;
        }
        Ok(())
    }
}

/// `word` as a POSIX shell reads it back.
#[must_use]
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@%+=:,./_-".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

impl Ending {
    /// Whether it ended with status 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Exited(0)
    }
}

impl From<ExitStatus> for Ending {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exited(code),
            (None, signal) => Self::Killed(signal.unwrap_or_default()),
        }
    }
}

/// In words: `ended with status 1`, `was killed by SIGKILL`.
impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "ended with status {status}"),
            Self::Killed(signal) => write!(f, "was killed by {}", signal_name(*signal)),
        }
    }
}

fn signal_name(signal: i32) -> String {
    Signal::try_from(signal).map_or_else(
        |_| format!("signal {signal}"),
        |signal| signal.as_str().to_owned(),
    )
}

/// How a process is stopped when we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStop {
    /// TERM, and no more. For a Nix that builds: it stops its builders and ends within milliseconds, while KILL would leave
    /// the builder's children behind (measured on three versions).
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
    log: Log,
}

impl Supervisor {
    /// Installs the handlers for HUP, INT, QUIT, TERM and CHLD. A signal that we were started to ignore (`nohup`) is left
    /// ignored, as every shell does.
    ///
    /// # Errors
    /// The system refuses; 75.
    pub fn install(log: Log) -> Result<Self, Failure> {
        let install = || -> anyhow::Result<Self> {
            let (read, write) = UnixStream::pair()?;
            let ignored = ignored_signals();
            let stops = [SIGHUP, SIGINT, SIGQUIT, SIGTERM]
                .into_iter()
                .filter(|signal| !ignored.contains(signal));
            let signals =
                SignalDelivery::with_pipe(read, write, SignalOnly, stops.chain([SIGCHLD]))?;
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
                log,
            })
        };
        install().classify(Class::Surroundings, || {
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
        self.notice_signals();
        self.check_stopped()?;
        self.log.debug(format_args!("$ {line}"));
        let mut child = spawn(line)?;
        let finished = self.wait_for(&mut child, on_stop, stderr);
        self.check_stopped()?;
        finished.classify(Class::Surroundings, || format!("cannot wait for `{line}`"))
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
        self.notice_signals();
        self.check_stopped()
    }

    /// Replaces our process by `program`, with its signals as we found them. Returns only where that fails.
    #[must_use]
    pub fn become_program(self, program: &Program) -> io::Error {
        let _ = self.mask.thread_set_mask();
        become_program(program)
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

    fn wait_for(
        &mut self,
        child: &mut Child,
        on_stop: OnStop,
        stderr: &mut impl Write,
    ) -> anyhow::Result<Finished> {
        let mut stdout = Vec::new();
        let mut out = child.stdout.take();
        let mut err = child.stderr.take();
        set_nonblocking(out.as_ref())?;
        set_nonblocking(err.as_ref())?;
        let pid =
            Pid::from_raw(i32::try_from(child.id()).context("a process number that is none")?);
        // Since when the child is being stopped, and when it is told next.
        let mut stopping: Option<(Instant, Instant)> = None;
        loop {
            if self.notice_signals() || self.stop.is_some() && stopping.is_none() {
                let now = Instant::now();
                stopping = Some((stopping.map_or(now, |(since, _)| since), now));
            }
            if let Some((since, next)) = stopping
                && next <= Instant::now()
            {
                let late = on_stop == OnStop::TermThenKill && since.elapsed() >= GRACE;
                // The child has not been waited for, so this number is still its own. Where it has ended already, there is
                // nothing to do about the error.
                let _ = kill(
                    pid,
                    if late {
                        Signal::SIGKILL
                    } else {
                        Signal::SIGTERM
                    },
                );
                stopping = Some((since, Instant::now() + REPEAT));
            }
            // Ended first, drained second: what the child wrote is then complete. What its own children may still write is
            // not waited for.
            let ended = child.try_wait()?;
            let at_most = if ended.is_some() {
                usize::MAX
            } else {
                READ_AT_ONCE
            };
            drain(&mut out, &mut stdout, at_most);
            drain(&mut err, stderr, at_most);
            if let Some(status) = ended {
                return Ok(Finished {
                    ending: status.into(),
                    stdout,
                });
            }
            let mut waited_for = vec![PollFd::new(
                self.signals.get_read().as_fd(),
                PollFlags::POLLIN,
            )];
            waited_for.extend(
                [out.as_ref().map(AsFd::as_fd), err.as_ref().map(AsFd::as_fd)]
                    .into_iter()
                    .flatten()
                    .map(|pipe: BorrowedFd<'_>| PollFd::new(pipe, PollFlags::POLLIN)),
            );
            let timeout = stopping.map_or(PollTimeout::NONE, |(_, next)| {
                // Rounded up, so that the time is over when this returns.
                let left =
                    next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            });
            match poll(&mut waited_for, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Starts a program as a child whose output we read.
fn spawn(line: &CommandLine) -> Result<Child, Failure> {
    let mut command = Command::new(line.program);
    command
        .args(&line.arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(folder) = &line.folder {
        command.current_dir(folder);
    }
    command.spawn().map_err(|error| {
        let folder_is_there = line.folder.as_ref().is_none_or(|folder| folder.is_dir());
        let (class, hint) = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied if folder_is_there => {
                (Class::MissingProgram, true)
            }
            io::ErrorKind::ArgumentListTooLong | io::ErrorKind::InvalidInput => {
                (Class::Config, false)
            }
            _ => (Class::Surroundings, false),
        };
        let failure = Failure {
            class,
            error: anyhow::Error::new(error).context(format!("cannot run {}", line.program)),
            hint: None,
        };
        if hint {
            failure.hint(missing_program_hint(line.program))
        } else {
            failure
        }
    })
}

fn missing_program_hint(program: &str) -> String {
    if program.starts_with("nix") {
        "put Nix on the job's PATH: eval \"$(eval-once environment)\" in the agent's environment hook finds it".into()
    } else {
        format!("put {program} on PATH")
    }
}

fn set_nonblocking(pipe: Option<&impl AsFd>) -> anyhow::Result<()> {
    if let Some(pipe) = pipe {
        fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .context("cannot set a pipe to non-blocking")?;
    }
    Ok(())
}

/// Reads what there is, up to about `at_most` bytes, and gives the pipe up at its end.
fn drain(pipe: &mut Option<impl io::Read>, to: &mut impl Write, at_most: usize) {
    let Some(reader) = pipe else { return };
    let mut buffer = [0; 16 << 10];
    // Once the child has ended only what is in the pipe is left, unless its own children go on writing: they are not
    // waited for.
    let mut left = at_most.min(PIPE_AT_MOST);
    while left > 0 {
        match reader.read(&mut buffer) {
            Ok(0) => {
                *pipe = None;
                return;
            }
            Ok(n) => {
                let _ = to.write_all(&buffer[..n]);
                left = left.saturating_sub(n);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => {
                *pipe = None;
                return;
            }
        }
    }
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

/// A program that our process becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// Its argument vector, its own name first.
    pub arguments: Vec<OsString>,
    /// Its whole environment.
    pub environment: Vec<(OsString, OsString)>,
}

/// Replaces our process by `program`, which gets our standard streams, folder and process group. Returns only where that
/// fails. A process that has a [`Supervisor`] uses its method of this name, which gives the signal mask back too.
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
        signal_hook::flag::register(SIGPIPE, Arc::new(AtomicBool::new(false)))?;
        let Err(error) = unix::unistd::execve(&path, &arguments, &environment);
        Err(error.into())
    };
    match replace() {
        Ok(()) => io::Error::other("the program did not replace us"),
        Err(error) => error,
    }
}

/// Finds `program` as a shell and the agent do: a name with a `/` is a path, any other is looked for on `path`.
#[must_use]
pub fn find_program(program: &OsStr, path: &OsStr) -> Option<PathBuf> {
    let executable = |file: &Path| {
        file.metadata()
            .is_ok_and(|metadata| !metadata.is_dir() && metadata.permissions().mode() & 0o111 != 0)
    };
    if program.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(program)).filter(|file| executable(file));
    }
    std::env::split_paths(path)
        .map(|folder| {
            if folder.as_os_str().is_empty() {
                PathBuf::from(".")
            } else {
                folder
            }
            .join(program)
        })
        .find(|file| executable(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_can_be_pasted() {
        let line = CommandLine::new("nix-store", &["--realise", "it's", "", "${x}"]);
        assert_eq!(line.to_string(), r"nix-store --realise 'it'\''s' '' '${x}'");
    }

    #[test]
    fn what_a_program_prints_is_kept_apart_and_complete() {
        let mut supervisor = Supervisor::install(Log { debug: false }).unwrap();
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
        let mut supervisor = Supervisor::install(Log { debug: false }).unwrap();
        let finished = supervisor.run(
            &CommandLine::new("sh", &["-c", "kill -9 $$"]),
            OnStop::Term,
            &mut io::sink(),
        );
        assert_eq!(finished.unwrap().ending, Ending::Killed(9));
    }

    #[test]
    fn a_missing_program_is_said_by_name() {
        let mut supervisor = Supervisor::install(Log { debug: false }).unwrap();
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
