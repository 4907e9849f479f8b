//! Running a program and looking at everything it did: its ending, its standard output, its standard error.
//!
//! It starts with an empty environment and gets what the test gives it, and nothing else; its standard input is null.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io::Read,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use serde_json::Value;
use unix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::DEADLINE;

/// A program that is about to be run.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: BTreeMap<OsString, OsString>,
    folder: PathBuf,
}

impl Program {
    /// `program` with no arguments and no environment at all, in the root folder.
    pub(crate) fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            folder: PathBuf::from("/"),
        }
    }

    /// One more argument.
    pub(crate) fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// More arguments.
    pub(crate) fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(
            arguments
                .into_iter()
                .map(|argument| argument.as_ref().to_owned()),
        );
        self
    }

    /// A variable of its environment.
    pub(crate) fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.insert(name.into(), value.into());
        self
    }

    /// Several variables.
    pub(crate) fn envs<N: Into<OsString>, V: Into<OsString>>(
        mut self,
        variables: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        self.environment.extend(
            variables
                .into_iter()
                .map(|(name, value)| (name.into(), value.into())),
        );
        self
    }

    /// Takes a variable away again.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.environment.remove(OsStr::new(name));
        self
    }

    /// The current folder it starts in.
    pub(crate) fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = folder.into();
        self
    }

    /// As the standard library's command, for tests that need more than [`run`](Self::run) does.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .envs(&self.environment)
            .current_dir(&self.folder)
            .stdin(Stdio::null());
        command
    }

    /// Starts it, as the leader of a process group of its own, with both outputs as pipes.
    pub(crate) fn start(&self) -> Running {
        let mut child = self
            .command()
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", self.program.display()));
        let stdout = read_aside(child.stdout.take().unwrap());
        let stderr = read_aside(child.stderr.take().unwrap());
        Running {
            what: format!("{:?} {:?}", self.program, self.arguments),
            child,
            stdout,
            stderr,
            started: Instant::now(),
        }
    }

    /// Runs it to its end, and until nobody holds its outputs any more.
    pub(crate) fn run(&self) -> Ended {
        self.start().end()
    }
}

/// A program that runs.
#[derive(Debug)]
pub(crate) struct Running {
    what: String,
    child: Child,
    stdout: mpsc::Receiver<Vec<u8>>,
    stderr: mpsc::Receiver<Vec<u8>>,
    started: Instant,
}

impl Running {
    /// Its process, which is also its process group.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    /// Waits for its end, and until nobody holds its outputs any more.
    ///
    /// # Panics
    ///
    /// When that takes longer than the deadline; its whole group is killed then.
    pub(crate) fn end(mut self) -> Ended {
        let mut outputs = [String::new(), String::new()];
        for (receiver, output) in [&self.stdout, &self.stderr].into_iter().zip(&mut outputs) {
            let rest = DEADLINE.saturating_sub(self.started.elapsed());
            match receiver.recv_timeout(rest) {
                Ok(bytes) => *output = String::from_utf8_lossy(&bytes).into_owned(),
                Err(_) => {
                    let _ = killpg(self.pid(), Signal::SIGKILL);
                    let _ = self.child.wait();
                    panic!(
                        "after {DEADLINE:?} {} (or a process it left behind) still held its outputs",
                        self.what
                    );
                }
            }
        }
        let status = self.child.wait().unwrap();
        let [stdout, stderr] = outputs;
        Ended {
            what: self.what,
            status,
            stdout,
            stderr,
            took: self.started.elapsed(),
        }
    }
}

/// Reads a pipe to its end on a thread of its own, so that neither of two pipes can fill up while the other is read.
fn read_aside(mut pipe: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}

/// What a program did. Each expectation gives it back, so that they chain; the first that fails shows everything.
#[derive(Debug)]
pub(crate) struct Ended {
    what: String,
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// All of its standard output.
    pub(crate) stdout: String,
    /// All of its standard error, Nix's lines among ours.
    pub(crate) stderr: String,
    /// From its start until nobody held its outputs any more.
    pub(crate) took: Duration,
}

impl Ended {
    /// It exited by itself with this status.
    #[track_caller]
    pub(crate) fn exits(&self, status: i32) -> &Self {
        assert_eq!(
            self.status.code(),
            Some(status),
            "another exit status: {self}"
        );
        self
    }

    /// A signal ended it.
    #[track_caller]
    pub(crate) fn dies_by(&self, signal: Signal) -> &Self {
        assert_eq!(
            self.status.signal(),
            Some(signal as i32),
            "another ending: {self}"
        );
        self
    }

    /// Its standard output is exactly this.
    #[track_caller]
    pub(crate) fn prints(&self, stdout: &str) -> &Self {
        assert_eq!(self.stdout, stdout, "another standard output: {self}");
        self
    }

    /// Our own lines on standard error are exactly these, in this order: of each the prefix `eval-once: ` is left out, and
    /// a part that stands in the line is enough. A line too many is a failure, so what we say stays designed.
    #[track_caller]
    pub(crate) fn says(&self, parts: &[&str]) -> &Self {
        let said = self.ours();
        let right = said.len() == parts.len()
            && said
                .iter()
                .zip(parts)
                .all(|(line, part)| line.contains(part));
        assert!(right, "our lines are not {parts:#?}: {self}");
        self
    }

    /// Somewhere on its standard error stands this, said by whomever.
    #[track_caller]
    pub(crate) fn passes_on(&self, part: &str) -> &Self {
        assert!(
            self.stderr.contains(part),
            "standard error is without {part:?}: {self}"
        );
        self
    }

    /// Nowhere on its standard error stands this.
    #[track_caller]
    pub(crate) fn never_says(&self, part: &str) -> &Self {
        assert!(
            !self.stderr.contains(part),
            "standard error has {part:?}: {self}"
        );
        self
    }

    /// Our own lines, without their prefix.
    pub(crate) fn ours(&self) -> Vec<&str> {
        self.stderr
            .lines()
            .filter_map(|line| line.strip_prefix("eval-once: "))
            .collect()
    }

    /// Its standard output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("standard output is no JSON, {error}: {self}"))
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "\n{}\n{} after {:?}\n--- stdout\n{}\n--- stderr\n{}\n---",
            self.what, self.status, self.took, self.stdout, self.stderr
        )
    }
}

/// A file of JSON: a report, say.
#[track_caller]
pub(crate) fn read_json(file: &Path) -> Value {
    let text =
        std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{} is no JSON, {error}: {text}", file.display()))
}
