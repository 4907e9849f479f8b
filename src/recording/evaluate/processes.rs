//! The processes that evaluate: starting them, reading what they print, measuring their memory and time, stopping them.
//!
//! It knows neither what their lines mean nor what follows from their end.

use std::time::{Duration, Instant};

use super::memory;
use super::schedule::WorkerId;
use crate::command_line::{CommandLine, Ending};
use crate::exit::Failure;
use crate::nix::structured::Event;
use crate::nix::{NixOutput, class, message};
use crate::supervise::{OnStop, Running, Supervisor};
use crate::text::without_escapes;

/// How often memory is measured, and the schedule looked at.
const TICK: Duration = Duration::from_millis(50);

/// How often, once a worker has more than half of its memory: the rest may be gone within one tick.
const CLOSE_TICK: Duration = Duration::from_millis(10);

/// How much is stored of what Nix prints at its end, in bytes.
const LAST_WORDS_AT_MOST: usize = 64 << 10;

/// Why a worker was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopReason {
    /// It has reached the attribute at which another worker took over.
    Overtaken,
    /// It has more memory than its share.
    TooLarge,
    /// An attribute takes longer than `evaluation-timeout`.
    TooLong,
}

impl StopReason {
    /// How long a worker has to end by itself.
    fn grace(self) -> Duration {
        match self {
            // What it has still to print was evaluated elsewhere.
            Self::Overtaken => Duration::from_millis(100),
            // An evaluator looks at no signal while it computes, and goes on allocating.
            Self::TooLarge => Duration::from_millis(20),
            // A build that it waits for ends at once.
            Self::TooLong => Duration::from_secs(1),
        }
    }
}

/// What a worker may use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Resident memory, in bytes; none where nothing limits it.
    pub(super) memory: Option<u64>,
    /// How long it may print nothing.
    pub(super) silence: Option<Duration>,
}

/// A worker that has ended.
#[derive(Debug)]
pub(super) struct EndedWorker {
    pub(super) worker: WorkerId,
    pub(super) ending: Ending,
    /// Why it was stopped; none where it ended by itself.
    pub(super) stopped: Option<StopReason>,
    /// What Nix printed last, from the first error on, as it came.
    pub(super) last_words: Vec<u8>,
    /// The same as Nix's output: since the walker's last message.
    pub(super) nix_output: NixOutput,
}

/// What is known of the process of a worker.
#[derive(Debug)]
struct Process {
    worker: WorkerId,
    /// When it last printed something.
    active: Instant,
    /// The beginning of a line whose end is not read yet.
    line: Vec<u8>,
    stopped: Option<StopReason>,
    last_words: Vec<u8>,
    /// What Nix and its children have printed since the walker's last message.
    nix_output: Option<NixOutput>,
}

impl Process {
    fn new(worker: WorkerId) -> Self {
        Self {
            worker,
            active: Instant::now(),
            line: Vec::new(),
            stopped: None,
            last_words: Vec::new(),
            nix_output: None,
        }
    }

    /// The lines that these bytes complete.
    fn lines(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                lines.push(std::mem::take(&mut self.line));
            }
        }
        lines
    }

    /// Reads a line that is not the walker's. Gives true if it is for the log; false if it may belong to the message with which
    /// Nix ends.
    fn read(&mut self, line: &[u8]) -> bool {
        let is_error = || message::is_begin(&without_escapes(&String::from_utf8_lossy(line)));
        self.read_output(line);
        if self.last_words.is_empty() && !is_error() {
            return true;
        }
        if self.last_words.len() < LAST_WORDS_AT_MOST {
            self.last_words.extend_from_slice(line);
        }
        false
    }

    fn read_output(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        self.nix_output
            .get_or_insert_default()
            .read(&Event::Plain(line));
    }

    fn end(mut self, ending: Ending) -> EndedWorker {
        let rest = std::mem::take(&mut self.line);
        if !rest.is_empty() {
            self.read_output(&rest);
        }
        self.last_words.extend(rest);
        let mut nix_output = self.nix_output.unwrap_or_default();
        nix_output.settle();
        EndedWorker {
            worker: self.worker,
            ending,
            stopped: self.stopped,
            last_words: self.last_words,
            nix_output,
        }
    }
}

/// The processes of all workers.
#[derive(Debug)]
pub(super) struct Processes {
    /// As `running`, one for one.
    all: Vec<Process>,
    running: Vec<Running>,
    /// When memory is measured next, and how long after that again.
    measure: Instant,
    tick: Duration,
}

impl Processes {
    pub(super) fn new() -> Self {
        Self {
            all: Vec::new(),
            running: Vec::new(),
            measure: Instant::now(),
            tick: TICK,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Starts a worker's process.
    ///
    /// # Errors
    /// As [`Supervisor::start`].
    pub(super) fn start(
        &mut self,
        worker: WorkerId,
        line: &CommandLine,
        supervisor: &mut Supervisor,
    ) -> Result<(), Failure> {
        let running = supervisor
            .start(line, OnStop::TermThenKill)
            .map_err(class::not_started)?;
        self.running.push(running);
        self.all.push(Process::new(worker));
        Ok(())
    }

    /// Stops the workers that are beyond their limits, if it is time to measure again. Gives those that were stopped.
    pub(super) fn enforce(
        &mut self,
        limits: impl Fn(WorkerId) -> Limits,
        supervisor: &mut Supervisor,
    ) -> Vec<WorkerId> {
        // Not each time that one prints something: with light targets that is thousands of times a second.
        if self.measure > Instant::now() {
            return Vec::new();
        }
        let limits: Vec<Limits> = self
            .all
            .iter()
            .map(|process| limits(process.worker))
            .collect();
        let resident = if limits.iter().any(|limits| limits.memory.is_some()) {
            let processes: Vec<u32> = self.running.iter().map(Running::id).collect();
            memory::resident(&processes, supervisor)
        } else {
            vec![None; limits.len()]
        };
        let mut stopped = Vec::new();
        self.tick = TICK;
        for (number, (limits, resident)) in limits.into_iter().zip(resident).enumerate() {
            let process = &self.all[number];
            if process.stopped.is_some() {
                continue;
            }
            let worker = process.worker;
            let silence = process.active.elapsed();
            if let (Some(limit), Some(resident)) = (limits.memory, resident) {
                if resident > limit / 2 {
                    self.tick = CLOSE_TICK;
                }
                // A little less than the limit: it goes on growing until it has ended.
                if resident > limit / 20 * 19 {
                    self.stop(worker, StopReason::TooLarge);
                    stopped.push(worker);
                }
            }
            if limits.silence.is_some_and(|limit| silence > limit) {
                self.stop(worker, StopReason::TooLong);
                stopped.push(worker);
            }
        }
        self.measure = Instant::now() + self.tick;
        stopped
    }

    /// Stops a worker.
    pub(super) fn stop(&mut self, worker: WorkerId, reason: StopReason) {
        if let Some(number) = self.number(worker) {
            self.all[number].stopped = Some(reason);
            self.running[number].stop(reason.grace());
        }
    }

    /// Stops all workers, and waits until they have ended.
    ///
    /// # Errors
    /// As [`Supervisor::watch`].
    pub(super) fn stop_all(&mut self, supervisor: &mut Supervisor) -> Result<(), Failure> {
        for running in &mut self.running {
            running.stop(StopReason::TooLong.grace());
        }
        while self.running.iter().any(|running| running.ended.is_none()) {
            supervisor.watch(&mut self.running, None, |_, _| {})?;
        }
        self.running.clear();
        self.all.clear();
        Ok(())
    }

    /// Whether a worker was stopped.
    pub(super) fn is_stopping(&self, worker: WorkerId) -> bool {
        self.stop_reason(worker).is_some()
    }

    /// Whether a worker's messages count no more: another worker has taken over.
    pub(super) fn is_overtaken(&self, worker: WorkerId) -> bool {
        self.stop_reason(worker) == Some(StopReason::Overtaken)
    }

    fn stop_reason(&self, worker: WorkerId) -> Option<StopReason> {
        let number = self.number(worker)?;
        self.all[number].stopped
    }

    /// Waits until one of them prints something or ends, and at most for a tick. Gives the lines that came, in their order.
    ///
    /// # Errors
    /// As [`Supervisor::watch`].
    pub(super) fn watch(
        &mut self,
        supervisor: &mut Supervisor,
    ) -> Result<Vec<(WorkerId, Vec<u8>)>, Failure> {
        let mut lines = Vec::new();
        let processes = &mut self.all;
        let mut has_output = false;
        let until = Some(Instant::now() + self.tick);
        supervisor.watch(&mut self.running, until, |number, bytes| {
            has_output = true;
            let process = &mut processes[number];
            process.active = Instant::now();
            let complete = process.lines(bytes).into_iter();
            lines.extend(complete.map(|line| (process.worker, line)));
        })?;
        if has_output {
            supervisor.breathe();
        }
        Ok(lines)
    }

    /// The walker has sent a message: what Nix printed before it was not its end. Gives what of it was not passed on yet.
    pub(super) fn went_on(&mut self, worker: WorkerId) -> Vec<u8> {
        let Some(number) = self.number(worker) else {
            return Vec::new();
        };
        let process = &mut self.all[number];
        process.nix_output = None;
        std::mem::take(&mut process.last_words)
    }

    /// Reads a line that is not the walker's. Gives true if it is for the log at once.
    pub(super) fn read(&mut self, worker: WorkerId, line: &[u8]) -> bool {
        let number = self.number(worker);
        number.is_some_and(|number| self.all[number].read(line))
    }

    /// The workers that have ended since the last call.
    pub(super) fn ended(&mut self) -> Vec<EndedWorker> {
        let mut ended = Vec::new();
        let mut number = 0;
        while number < self.running.len() {
            if let Some(ending) = self.running[number].ended {
                self.running.swap_remove(number);
                ended.push(self.all.swap_remove(number).end(ending));
            } else {
                number += 1;
            }
        }
        ended
    }

    fn number(&self, worker: WorkerId) -> Option<usize> {
        let mut processes = self.all.iter();
        processes.position(|process| process.worker == worker)
    }
}
