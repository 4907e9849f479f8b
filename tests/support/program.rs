//! Running a program and looking at everything it did: its ending, its standard output, its standard error.
//!
//! It starts with an empty environment and gets what the test gives it, and nothing else; its standard input is null.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io::Read,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use serde_json::Value;
use unix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::{DEADLINE, until};

/// A program that is about to be run.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    file: PathBuf,
    arguments: Vec<OsString>,
    environment: BTreeMap<OsString, OsString>,
    folder: PathBuf,
    user: Option<u32>,
    report: Option<PathBuf>,
}

impl Program {
    /// `program` with no arguments and no environment at all, in the root folder.
    pub(crate) fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            file: program.into(),
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            folder: PathBuf::from("/"),
            user: None,
            report: None,
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

    /// Run by this user, with the group of the same number and no other: what only root can do.
    pub(crate) fn by_user(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    /// Started by the program and arguments in `before`, which end where its own begin.
    pub(crate) fn behind(mut self, before: &[OsString]) -> Self {
        let Some((program, arguments)) = before.split_first() else {
            return self;
        };
        let file = std::mem::replace(&mut self.file, program.into());
        self.arguments.insert(0, file.into());
        self.arguments.splice(0..0, arguments.iter().cloned());
        self
    }

    /// Tells it to write a report (`--report`), which is read after its end.
    pub(crate) fn reporting_to(mut self, file: impl Into<PathBuf>) -> Self {
        let file = file.into();
        self.report = Some(file.clone());
        self.arg("--report").arg(file)
    }

    /// As the standard library's command, for tests that need more than [`run`](Self::run) does.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.file);
        command
            .args(&self.arguments)
            .env_clear()
            .envs(&self.environment)
            .current_dir(&self.folder)
            .stdin(Stdio::null());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    /// Starts it, as the leader of a process group of its own, with both outputs as pipes.
    pub(crate) fn start(&self) -> Running {
        if let Some(report) = &self.report {
            let _ = std::fs::remove_file(report);
        }
        let started = Instant::now();
        let mut child = self
            .command()
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", self.file.display()));
        let stdout = Pipe::read(child.stdout.take().unwrap());
        let stderr = Pipe::read(child.stderr.take().unwrap());
        Running {
            what: format!("{:?}", self.command()),
            child,
            stdout,
            stderr,
            report: self.report.clone(),
            started,
        }
    }

    /// Runs it to its end, and until no process has its outputs open.
    pub(crate) fn run(&self) -> Ended {
        self.start().end()
    }

    /// What it says on standard error, which need not be UTF-8.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.command().output().unwrap().stderr
    }
}

/// A program that runs.
#[derive(Debug)]
pub(crate) struct Running {
    what: String,
    child: Child,
    stdout: Pipe,
    stderr: Pipe,
    report: Option<PathBuf>,
    started: Instant,
}

impl Running {
    /// Its process, which is also its process group.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    /// Waits until this stands on its standard error.
    pub(crate) fn until_it_says(&self, part: &str) {
        until(&format!("{} says {part:?}", self.what), || {
            let ended = matches!(
                self.stderr.end.try_recv(),
                Err(mpsc::TryRecvError::Disconnected)
            );
            let said = self.stderr.so_far();
            assert!(
                said.contains(part) || !ended,
                "it ended without saying {part:?}: {said}"
            );
            said.contains(part)
        });
    }

    /// Waits for its end, and until no process has its outputs open.
    ///
    /// # Panics
    ///
    /// When that takes longer than the deadline; its whole group is killed then.
    pub(crate) fn end(mut self) -> Ended {
        let deadline = self.started + DEADLINE;
        if !(self.stdout.ends_before(deadline) && self.stderr.ends_before(deadline)) {
            let _ = killpg(self.pid(), Signal::SIGKILL);
            let _ = self.child.wait();
            panic!(
                "after {DEADLINE:?} {} (or a process it left behind) still held its outputs:\n{}\n{}",
                self.what,
                self.stdout.so_far(),
                self.stderr.so_far()
            );
        }
        let status = self.child.wait().unwrap();
        Ended {
            what: self.what,
            status,
            stdout: self.stdout.so_far(),
            stderr: self.stderr.so_far(),
            report: self
                .report
                .filter(|file| file.exists())
                .map(|file| read_json(&file)),
            took: self.started.elapsed(),
        }
    }
}

/// A pipe that is read on a thread of its own, so that neither of two can fill up while the other is read.
#[derive(Debug)]
struct Pipe {
    read: Arc<Mutex<Vec<u8>>>,
    /// Disconnected at the pipe's end.
    end: mpsc::Receiver<()>,
}

impl Pipe {
    fn read(mut pipe: impl Read + Send + 'static) -> Self {
        let (sender, end) = mpsc::channel();
        let read = Arc::new(Mutex::new(Vec::new()));
        let here = Arc::clone(&read);
        std::thread::spawn(move || {
            let _open: mpsc::Sender<()> = sender;
            let mut some = [0; 4096];
            while let Ok(bytes @ 1..) = pipe.read(&mut some) {
                here.lock().unwrap().extend_from_slice(&some[..bytes]);
            }
        });
        Self { read, end }
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.read.lock().unwrap()).into_owned()
    }

    fn ends_before(&self, deadline: Instant) -> bool {
        let rest = deadline.saturating_duration_since(Instant::now());
        matches!(
            self.end.recv_timeout(rest),
            Err(mpsc::RecvTimeoutError::Disconnected)
        )
    }
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
    /// The report it wrote, if it was told to and did.
    report: Option<Value>,
    /// From its start until no process had its outputs open.
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

    /// The failure's message and all our own lines: what we report to the reader.
    pub(crate) fn reported(&self) -> String {
        let message = self.report()["failure"]["message"]
            .as_str()
            .unwrap_or_default();
        format!("{message}\n{}", self.ours().join("\n"))
    }

    /// Our own lines, without their prefix.
    pub(crate) fn ours(&self) -> Vec<&str> {
        self.stderr
            .lines()
            .filter_map(|line| line.strip_prefix("eval-once: "))
            .collect()
    }

    /// Its report, which has every field that the documentation names.
    #[track_caller]
    pub(crate) fn report(&self) -> &Value {
        let Some(report) = &self.report else {
            panic!("it wrote no report: {self}")
        };
        let fields = [
            "version",
            "way",
            "reason",
            "drv",
            "outputs",
            "drift",
            "built",
            "substituted",
            "seconds",
            "exit",
        ];
        for field in fields {
            assert!(
                report.get(field).is_some(),
                "the report has no `{field}`: {report}{self}"
            );
        }
        assert_eq!(report["version"], 1);
        for part in ["wait", "fetch", "evaluate", "realise", "total"] {
            assert!(
                report["seconds"][part].is_number(),
                "`seconds` has no `{part}`: {report}{self}"
            );
        }
        report
    }

    /// A step that got its outputs in this way and for this reason, as its report and its line in the log say alike.
    #[track_caller]
    pub(crate) fn takes(&self, way: &str, reason: &str) -> &Self {
        let report = self.report();
        assert_eq!(report["way"], way, "another way: {report}{self}");
        assert_eq!(report["reason"], reason, "another reason: {report}{self}");
        assert_eq!(
            report["exit"], 0,
            "the report says that it failed: {report}{self}"
        );
        assert!(
            report.get("failure").is_none(),
            "a failure in the report of a success: {report}{self}"
        );
        let line = |line: &&str| {
            line.starts_with(&format!("{way} ")) && line.contains(&format!("({reason})"))
        };
        assert_eq!(
            self.ours().into_iter().filter(line).count(),
            1,
            "not one line that says so: {self}"
        );
        self
    }

    /// A step that built and substituted so many.
    #[track_caller]
    pub(crate) fn counts(&self, built: u64, substituted: u64) -> &Self {
        let report = self.report();
        assert_eq!(
            report["built"], built,
            "built another number: {report}{self}"
        );
        assert_eq!(
            report["substituted"], substituted,
            "substituted another number: {report}{self}"
        );
        self
    }

    /// A step that failed with this status and class, as its report says too.
    #[track_caller]
    pub(crate) fn fails(&self, status: i32, class: &str) -> &Self {
        self.exits(status);
        let report = self.report();
        assert_eq!(
            report["exit"], status,
            "another status in the report: {report}{self}"
        );
        assert_eq!(
            report["failure"]["class"], class,
            "another class: {report}{self}"
        );
        let message = report["failure"]["message"].as_str();
        assert!(
            message.is_some_and(|message| !message.is_empty()),
            "no message: {report}{self}"
        );
        let errors = self
            .ours()
            .into_iter()
            .filter(|line| line.starts_with("error: "))
            .count();
        assert_eq!(errors, 1, "not one line that says what is wrong: {self}");
        self
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
