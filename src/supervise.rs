//! Every process: starting it, signalling it, waiting for it, being replaced by it.
//!
//! One thread waits for signals and children alike, in one `poll`. The handlers are installed before the first child starts, so
//! no signal is lost; a child is signalled only until it has been waited for, so no foreign process ever is. Children stay in
//! our process group (the agent's), so that whatever ends the job ends them; their standard input is never ours: the agent's may
//! be a terminal without a person at it. [`Supervisor::run`] waits for one process to end, [`Supervisor::watch`] for
//! the next event of several.
//!
//! This module does not know what the programs do, only how they may be stopped ([`OnStop`]), and for how long one may stand still
//! ([`Supervisor::run_patiently`]).

mod lost_interrupt;
mod patience;
mod printed;
mod running;

use std::ffi::CString;
use std::io::{self, Read as _, Write};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGALRM, SIGCHLD, SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use unix::errno::Errno;
use unix::poll::{PollFd, PollFlags, PollTimeout, poll};
use unix::sys::signal::{SigSet, Signal};

use self::running::spawn;
use crate::command_line::{CommandLine, Program, signal_name};
use crate::exit::{Class, Classify as _, Failure};
use crate::log::Log;
use crate::nix::without_secrets;

pub use patience::{GivenUp, PATIENCE, Sight};
pub use printed::Printed;
pub use running::{Finished, OnStop, Running};

/// How long a process that may be killed gets to end by itself.
const GRACE: Duration = Duration::from_secs(1);

/// How long output may gather before it is read: too short for the reader of a log to notice.
const BREATH: Duration = Duration::from_millis(3);

/// Receives the signals that end a job, and waits for processes.
#[derive(Debug)]
pub struct Supervisor {
    signals: SignalDelivery<UnixStream, SignalOnly>,
    /// The first signal that asked us to end.
    stop: Option<i32>,
    /// When what is done [once more](Self::once_more) has to end.
    deadline: Option<Instant>,
    /// A program was ended that had lost a signal. Not twice: what makes it believed an expression or a builder may print as well, and
    /// is evaluated once more then.
    has_ended_lost: bool,
    /// The signal mask that we were started with, for the program that replaces us.
    mask: SigSet,
    /// Set when signals are no longer ours: then each does what it does by default.
    handed_over: Arc<AtomicBool>,
    log: Log,
    /// The host's `NIX_CONFIG`, to which the secrets in arguments of Nix's programs are added; none where that is not known.
    nix_config: Option<String>,
    /// How often output was given time to gather.
    #[cfg(test)]
    breaths: usize,
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
                flag::register(*stop, Arc::clone(&log.stopped))?;
            }
            let signals = SignalDelivery::with_pipe(
                read,
                write,
                SignalOnly,
                stops.into_iter().chain([SIGCHLD]),
            )?;
            let mask = SigSet::thread_get_mask()?;
            // A signal that our parent has blocked could never be waited for.
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
                deadline: None,
                has_ended_lost: false,
                mask,
                handed_over,
                log: log.clone(),
                nix_config: None,
                #[cfg(test)]
                breaths: 0,
            })
        };
        install().classify(Class::Infrastructure, || {
            "cannot install signal handlers".into()
        })
    }

    /// From now on no secret is in an argument of Nix's: it is given in `NIX_CONFIG`, behind what the host has there.
    pub fn hide_secrets(&mut self, nix_config: &str) {
        self.nix_config = Some(nix_config.to_owned());
    }

    /// Runs a program to its end: its standard output is returned, its standard error is written to `stderr` as it comes.
    ///
    /// # Errors
    /// The program is missing (69), cannot be started or prints too much (75); or a signal asked us to end (128 + n), and then the
    /// program is gone before this returns.
    pub fn run(
        &mut self,
        line: &CommandLine,
        on_stop: OnStop,
        stderr: &mut impl Write,
    ) -> Result<Finished, Failure> {
        self.run_beside(line, on_stop, stderr, || ())
    }

    /// The same, with work of our own while the program runs; signals are noticed after it.
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
        running.finished()
    }

    /// Starts a program. It is [watched](Self::watch) from then on; dropped before it has ended, it is killed.
    ///
    /// # Errors
    /// The program is missing (69) or cannot be started (75); or a signal has asked us to end (128 + n).
    pub fn start(&mut self, line: &CommandLine, on_stop: OnStop) -> Result<Running, Failure> {
        self.check()?;
        if self.log.debug {
            self.log.debug(format_args!("$ {}", line.in_short()));
        }
        let nix_config = self.nix_config.as_deref();
        let hidden = nix_config.and_then(|text| without_secrets(line, text));
        let child = spawn(hidden.as_ref().unwrap_or(line))?;
        Running::new(child, line, on_stop).classify(Class::Infrastructure, || {
            format!("cannot wait for `{line}`")
        })
    }

    /// Waits until one of the programs writes to standard error or ends, a signal comes, or it is `until`. `read` gets what they
    /// write there, with their number; one that has ended has [`Running::ended`].
    ///
    /// Once a signal has asked us to end, all of them are being stopped: the caller goes on until they have ended.
    ///
    /// # Errors
    /// The system refuses to wait (75).
    pub fn watch(
        &mut self,
        running: &mut [Running],
        until: Option<Instant>,
        mut read: impl FnMut(usize, &[u8]),
    ) -> Result<(), Failure> {
        let again = self.notice_signals();
        for one in running.iter_mut().filter(|one| one.ended.is_none()) {
            if again || self.stop.is_some() && one.stopping.is_none() {
                one.stop_again(GRACE);
            }
            one.send_due_signal();
        }
        let watched = self.watch_once(running, until, &mut read);
        watched.classify(Class::Infrastructure, || {
            "cannot wait for the programs that were started".into()
        })
    }

    fn watch_once(
        &mut self,
        running: &mut [Running],
        until: Option<Instant>,
        read: &mut impl FnMut(usize, &[u8]),
    ) -> anyhow::Result<()> {
        let mut anything = false;
        for (number, one) in running.iter_mut().enumerate() {
            anything |= one.look(|bytes| read(number, bytes))?;
        }
        if anything {
            return Ok(());
        }
        // All that they have said is read.
        for one in running.iter_mut().filter(|one| one.ended.is_none()) {
            if !self.has_ended_lost {
                self.has_ended_lost = one.end_if_lost();
            }
        }
        let mut waited_for = vec![PollFd::new(
            self.signals.get_read().as_fd(),
            PollFlags::POLLIN,
        )];
        waited_for.extend(running.iter().flat_map(Running::pipes));
        let next = running
            .iter()
            .filter(|one| one.ended.is_none())
            .filter_map(|one| one.due(!self.has_ended_lost))
            .chain(until)
            .chain(self.deadline)
            .min();
        let timeout = next.map_or(PollTimeout::NONE, |next| {
            // Rounded up, so that the time is over when this returns.
            let timeout = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX)
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

    /// Waits a moment, or until a signal comes, so that output gathers and is then read many lines at a time. Reading line by line
    /// took a third of an evaluation's time on two cores, and more time than the build itself in one that printed 200,000 lines.
    /// Called after output has been read and shown. The next [`watch`](Self::watch) notices signals.
    ///
    /// The end of a program is a signal as well. But where one has ended already, its signal has come, and the pause would last for
    /// the whole moment: there is none then. (Steps whose outputs existed took up to 3 ms longer.)
    pub fn breathe(&mut self, running: &[Running]) {
        if running.iter().any(|one| one.ended.is_some()) {
            return;
        }
        #[cfg(test)]
        {
            self.breaths += 1;
        }
        let _ = self.pause(BREATH);
    }

    /// Gives the signals back, for a program that is to replace us: the mask is the one that we were started with, and a signal
    /// that comes from now on ends this process, as it would end that program.
    ///
    /// # Errors
    /// A signal has come before, and asks us to end (128 + n).
    pub fn hand_over(mut self) -> Result<(), Failure> {
        self.handed_over.store(true, Ordering::SeqCst);
        self.check()?;
        let _ = self.mask.thread_set_mask();
        Ok(())
    }

    /// Notices signals.
    ///
    /// # Errors
    /// One has asked us to end (128 + n).
    pub fn check(&mut self) -> Result<(), Failure> {
        self.notice_signals();
        self.check_stopped()
    }

    /// Whether a signal has asked us to end.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop.is_some()
    }

    /// Does one more thing although a signal has asked us to end; another signal ends that as well, and so does the time `until` which
    /// it may take. The first signal remains the one that we end with.
    pub fn once_more<T>(&mut self, until: Instant, act: impl FnOnce(&mut Self) -> T) -> T {
        let stop = self.stop.take();
        let outer = self.deadline;
        self.deadline = Some(outer.map_or(until, |outer| outer.min(until)));
        let done = act(self);
        // Where the time was over, that was no signal.
        let other = self.stop.filter(|_| self.deadline.is_some());
        self.deadline = outer;
        self.stop = stop.or(other);
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

    /// Notices the signals that have come; true where one of them asks us to end.
    fn notice_signals(&mut self) -> bool {
        let mut stopping = false;
        for signal in self.signals.pending() {
            if signal != SIGCHLD {
                self.stop.get_or_insert(signal);
                stopping = true;
            }
        }
        if self.stop.is_none() && self.deadline.is_some_and(|until| until <= Instant::now()) {
            self.deadline = None;
            self.stop = Some(SIGALRM);
            stopping = true;
        }
        stopping
    }
}

impl Drop for Supervisor {
    /// Where there is nothing left to stop, a signal ends us at once: what we print may have a reader that does not read.
    fn drop(&mut self) {
        self.handed_over.store(true, Ordering::SeqCst);
    }
}

/// The signals that we were started to ignore. Without `/proc` (macOS) none are known, and all handlers are installed.
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
/// fails. Where there is a [`Supervisor`], [`Supervisor::hand_over`] comes first.
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
        // Rust's runtime ignores SIGPIPE, and an ignored signal stays ignored in the next program. A *handled* one gets its
        // default there, which is what programs have that the agent starts.
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
    use crate::command_line::{Ending, OutputLimit};

    #[test]
    fn the_two_streams_of_a_program_are_separate_and_complete() {
        let mut supervisor = Supervisor::install(&Log::default()).unwrap();
        let mut stderr = Vec::new();
        let line = CommandLine::new(
            "sh",
            &["-c", "head -c 300000 /dev/zero; echo oops >&2; exit 7"],
        );
        let finished = supervisor.run(&line, OnStop::Term, &mut stderr).unwrap();
        assert_eq!(
            (finished.ending, finished.stdout.len()),
            (Ending::Exited(7), 300_000)
        );
        assert_eq!(stderr, b"oops\n");
    }

    #[test]
    fn of_a_value_the_beginning_is_kept_and_an_answer_is_kept_whole_or_not_at_all() {
        let mut supervisor = Supervisor::install(&Log::default()).unwrap();
        let mut run = |bytes: &str, rest: &str, limit| {
            let script = format!("head -c {bytes} /dev/zero; {rest}");
            let mut line = CommandLine::new("sh", &["-c", &script]);
            line.output_limit = limit;
            let finished = supervisor.run(&line, OnStop::Term, &mut io::sink());
            finished.map(|finished| (finished.ending, finished.stdout.len()))
        };
        let ended = Ending::Exited(3);
        let beginning = OutputLimit::Beginning(100_000);
        assert_eq!(run("99999", "exit 3", beginning).unwrap(), (ended, 99_999));
        assert_eq!(
            run("900000", "exit 3", beginning).unwrap(),
            (ended, 100_000)
        );
        let whole = OutputLimit::Whole(1 << 20);
        assert_eq!(run("1048576", "exit 3", whole).unwrap(), (ended, 1 << 20));
        // It is not waited for.
        let failure = run("1048577", "exec sleep 60", whole).unwrap_err();
        assert_eq!(failure.class, Class::Infrastructure);
        assert_eq!(
            failure.to_string(),
            "`sh` prints more than 1 MiB on standard output"
        );
    }

    #[test]
    fn output_gathers_while_a_program_runs_and_no_longer() {
        let mut supervisor = Supervisor::install(&Log::default()).unwrap();
        // It runs until it is killed.
        let line = CommandLine::new("sh", &["-c", "echo oops >&2; exec sleep 60"]);
        let mut running = [supervisor.start(&line, OnStop::Term).unwrap()];
        let mut output = Vec::new();
        while output.is_empty() {
            let read = |_, bytes: &[u8]| output.extend_from_slice(bytes);
            supervisor.watch(&mut running, None, read).unwrap();
        }
        supervisor.breathe(&running);
        assert_eq!(supervisor.breaths, 1);
        running[0].stop(Duration::ZERO);
        while running[0].ended.is_none() {
            supervisor.watch(&mut running, None, |_, _| ()).unwrap();
        }
        supervisor.breathe(&running);
        assert_eq!(supervisor.breaths, 1);
    }

    #[test]
    fn a_missing_folder_is_not_confused_with_a_missing_program() {
        let mut supervisor = Supervisor::install(&Log::default()).unwrap();
        let mut line = CommandLine::new("true", &[]);
        line.folder = Some("/no/such/folder".into());
        let failure = supervisor.run(&line, OnStop::Term, &mut io::sink());
        let failure = failure.unwrap_err();
        assert_eq!(failure.class, Class::Infrastructure);
        let message = failure.to_string();
        assert!(
            message.starts_with("cannot run true in /no/such/folder: "),
            "{message}"
        );
    }

    #[test]
    fn a_killed_program_is_not_confused_with_one_that_exited() {
        let mut supervisor = Supervisor::install(&Log::default()).unwrap();
        let finished = supervisor.run(
            &CommandLine::new("sh", &["-c", "kill -9 $$"]),
            OnStop::Term,
            &mut io::sink(),
        );
        assert_eq!(finished.unwrap().ending, Ending::Killed(9));
    }

    #[test]
    fn the_failure_of_a_missing_program_names_it() {
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
