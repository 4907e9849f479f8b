//! The processes of the workers: starting them, sending and reading lines, measuring their memory and time, stopping them.
//!
//! This module does not know what the lines of the walker mean, nor what follows from the end of a process.

use std::time::{Duration, Instant};

use super::memory;
use super::schedule::{MemoryShare, WorkerId};
use crate::command_line::{CommandLine, Ending};
use crate::counts::mebibytes;
use crate::exit::Failure;
use crate::nix::structured::Event;
use crate::nix::{NixOutput, class, message};
use crate::supervise::{OnStop, Running, Supervisor};
use crate::text::without_escapes;

/// The time between two measurements of memory.
const TICK: Duration = Duration::from_millis(50);

/// The same while a worker has more than half of its memory: it may use the other half within one `TICK`.
const CLOSE_TICK: Duration = Duration::from_millis(10);

/// From how many lines of a task on they are read many at a time. For each attribute that fails, waiting for more lines takes longer
/// than all else: 3 ms, where evaluating a hundred of them takes 50.
const FEW_LINES: usize = 16;

/// How much output is stored that may belong to Nix's final message, in bytes.
const FINAL_OUTPUT_AT_MOST: usize = 64 << 10;

/// How long a line may be, in bytes. Those of the walker have names and metadata, which it limits; those of a trace have what an
/// expression likes.
const LINE_AT_MOST: usize = 2 << 20;

/// How much is kept of a line that is longer: less than a log prints of one.
const CUT_AT: usize = 8 << 10;

/// Why a worker was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopCause {
    /// It has more memory than its share.
    TooLarge,
    /// An attribute takes longer than `evaluation-timeout`.
    TooLong,
}

impl StopCause {
    /// How long a worker has to end by itself before it is killed.
    fn grace(self) -> Duration {
        match self {
            // An evaluator does not look at signals while it computes, and continues to allocate.
            Self::TooLarge => Duration::from_millis(20),
            // A build that the evaluation waits for ends immediately.
            Self::TooLong => Duration::from_secs(1),
        }
    }
}

/// The limits of a worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct WorkerLimits {
    /// Its share of the memory, of which the part is a limit of what is resident.
    pub(super) share: MemoryShare,
    /// The time without output while it has a task; none without a limit.
    pub(super) silence: Option<Duration>,
}

/// A worker that has ended.
#[derive(Debug)]
pub(super) struct EndedWorker {
    pub(super) worker: WorkerId,
    pub(super) ending: Ending,
    /// Why it was stopped; none if it ended by itself.
    pub(super) stop_cause: Option<StopCause>,
    /// Its share of the memory when that was measured last, at the latest when it was stopped; none if it never was. Another worker may
    /// have ended since, for the same reason, and have left it more.
    pub(super) share: Option<MemoryShare>,
    /// What Nix and its children printed after the walker's last message.
    pub(super) nix_output: NixOutput,
}

/// The process of a worker.
#[derive(Debug)]
struct WorkerProcess {
    worker: WorkerId,
    /// When it last printed something, or was sent something.
    last_active: Instant,
    /// The beginning of a line that is not complete yet, and how much more of it has come.
    line: Vec<u8>,
    omitted: usize,
    /// How many lines it has printed since a task ended.
    lines_of_task: usize,
    stop_cause: Option<StopCause>,
    share: Option<MemoryShare>,
    final_output: Vec<u8>,
    /// What Nix and its children printed after the walker's last message.
    nix_output: Option<NixOutput>,
}

impl WorkerProcess {
    fn new(worker: WorkerId) -> Self {
        Self {
            worker,
            last_active: Instant::now(),
            line: Vec::new(),
            omitted: 0,
            lines_of_task: 0,
            stop_cause: None,
            share: None,
            final_output: Vec::new(),
            nix_output: None,
        }
    }

    /// The lines that these bytes complete.
    fn lines(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_AT_MOST.saturating_sub(self.line.len());
            let (now, later) = part.split_at(part.len().min(room));
            self.line.extend_from_slice(now);
            self.omitted += later.len();
            if part.ends_with(b"\n") {
                lines.push(self.take_line());
            }
        }
        lines
    }

    /// Counts these lines. Gives whether the task goes on, and has had some already: one whose first attribute fails has few, and
    /// ends at once.
    fn is_talkative(&mut self, lines: &[Vec<u8>], is_last: impl Fn(&[u8]) -> bool) -> bool {
        if lines.iter().any(|line| is_last(line)) {
            self.lines_of_task = 0;
            return false;
        }
        self.lines_of_task += lines.len();
        self.lines_of_task > FEW_LINES
    }

    /// The line so far. One that is too long is no line of the walker's, and ends with how much of it is missing.
    fn take_line(&mut self) -> Vec<u8> {
        let mut line = std::mem::take(&mut self.line);
        let omitted = std::mem::take(&mut self.omitted);
        if omitted > 0 {
            let omitted = omitted + line.len() - CUT_AT;
            line.truncate(CUT_AT);
            let note = format!("… ({} omitted)\n", mebibytes(omitted as u64));
            line.extend_from_slice(note.as_bytes());
        }
        line
    }

    /// Reads a line that is not the walker's. Gives true if it is for the log; false if it may belong to Nix's final message.
    fn read(&mut self, line: &[u8]) -> bool {
        let begin = &line[..line.len().min(CUT_AT)];
        let is_error = || message::is_begin(&without_escapes(&String::from_utf8_lossy(begin)));
        self.read_output(line);
        if self.final_output.is_empty() && !is_error() {
            return true;
        }
        if self.final_output.len() < FINAL_OUTPUT_AT_MOST {
            self.final_output.extend_from_slice(line);
        }
        false
    }

    fn read_output(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        self.nix_output
            .get_or_insert_default()
            .read(&Event::Plain(line.into()));
    }

    fn end(mut self, ending: Ending) -> EndedWorker {
        let rest = self.take_line();
        if !rest.is_empty() {
            self.read_output(&rest);
        }
        let mut nix_output = self.nix_output.unwrap_or_default();
        nix_output.settle();
        EndedWorker {
            worker: self.worker,
            ending,
            stop_cause: self.stop_cause,
            share: self.share,
            nix_output,
        }
    }
}

/// The processes of all workers.
#[derive(Debug)]
pub(super) struct Processes {
    /// In the order of `running`.
    all: Vec<WorkerProcess>,
    running: Vec<Running>,
    /// Those that have no task any more, and still live: as long as they do, Nix keeps what they have written.
    idle: Vec<Running>,
    /// When all that they had printed by then was read.
    looked: Instant,
    /// When memory is measured next, and the time until the measurement after that.
    measure: Instant,
    tick: Duration,
}

impl Processes {
    pub(super) fn new() -> Self {
        Self {
            all: Vec::new(),
            running: Vec::new(),
            idle: Vec::new(),
            looked: Instant::now(),
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
        self.all.push(WorkerProcess::new(worker));
        Ok(())
    }

    /// Stops the workers that exceed their limits, if a measurement is due. Gives those.
    pub(super) fn enforce(
        &mut self,
        limits: impl Fn(WorkerId) -> WorkerLimits,
        supervisor: &mut Supervisor,
    ) -> Vec<WorkerId> {
        let mut stopped = Vec::new();
        // Not whenever a worker prints something: with small targets, that is thousands of times a second.
        if self.measure > Instant::now() {
            return stopped;
        }
        let limits: Vec<WorkerLimits> = self
            .all
            .iter()
            .map(|process| limits(process.worker))
            .collect();
        let resident = if limits.iter().any(|limits| limits.share.part != u64::MAX) {
            let processes: Vec<u32> = self.running.iter().map(Running::id).collect();
            memory::resident(&processes, supervisor)
        } else {
            vec![None; limits.len()]
        };
        self.tick = TICK;
        for (number, (limits, resident)) in limits.into_iter().zip(resident).enumerate() {
            let process = &mut self.all[number];
            if process.stop_cause.is_some() {
                continue;
            }
            process.share = Some(limits.share);
            let worker = process.worker;
            // Not until now: it may have printed something since, while this process did something else, and maybe for long.
            let silence = self.looked.saturating_duration_since(process.last_active);
            let mut cause = None;
            if let Some(resident) = resident {
                let limit = limits.share.part;
                if resident > limit / 2 {
                    self.tick = CLOSE_TICK;
                }
                // Slightly below the limit: it continues to grow until it has ended.
                if resident > limit / 20 * 19 {
                    cause = Some(StopCause::TooLarge);
                }
            }
            if limits.silence.is_some_and(|limit| silence > limit) {
                cause = Some(StopCause::TooLong);
            }
            if let Some(cause) = cause {
                self.stop(worker, cause);
                stopped.push(worker);
            }
        }
        self.measure = Instant::now() + self.tick;
        stopped
    }

    /// Sends lines to a worker.
    pub(super) fn send(&mut self, worker: WorkerId, lines: &[u8]) {
        if let Some(number) = self.number(worker) {
            self.all[number].last_active = Instant::now();
            self.running[number].send(lines);
        }
    }

    /// A worker is sent nothing more, and ends by itself.
    pub(super) fn close(&mut self, worker: WorkerId) {
        if let Some(number) = self.number(worker) {
            self.running[number].end_input();
        }
    }

    /// A worker gets no task any more, and lives on: it is no worker from now on.
    pub(super) fn keep_idle(&mut self, worker: WorkerId) {
        if let Some(number) = self.number(worker) {
            self.all.swap_remove(number);
            self.idle.push(self.running.swap_remove(number));
        }
    }

    /// Whether there are idle processes.
    pub(super) fn has_idle(&self) -> bool {
        !self.idle.is_empty()
    }

    /// The resident memory of the idle processes, in bytes, as far as it is known.
    pub(super) fn idle_resident(&self, supervisor: &mut Supervisor) -> u64 {
        let processes: Vec<u32> = self.idle.iter().map(Running::id).collect();
        let resident = memory::resident(&processes, supervisor);
        resident.into_iter().flatten().sum()
    }

    /// Ends the idle processes, which have nothing to lose, and waits until they have.
    pub(super) fn end_idle(&mut self) {
        self.idle.clear();
    }

    /// The resident memory of a worker, in bytes; none where it is not known.
    pub(super) fn resident(&self, worker: WorkerId, supervisor: &mut Supervisor) -> Option<u64> {
        let process = self.running[self.number(worker)?].id();
        memory::resident(&[process], supervisor).pop()?
    }

    /// Stops a worker.
    pub(super) fn stop(&mut self, worker: WorkerId, reason: StopCause) {
        if let Some(number) = self.number(worker) {
            self.all[number].stop_cause = Some(reason);
            self.running[number].stop(reason.grace());
        }
    }

    /// Stops all workers, and waits until they have ended. The idle processes live on.
    ///
    /// # Errors
    /// As [`Supervisor::watch`].
    pub(super) fn stop_all(&mut self, supervisor: &mut Supervisor) -> Result<(), Failure> {
        for running in &mut self.running {
            running.stop(StopCause::TooLong.grace());
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
        self.stop_cause(worker).is_some()
    }

    fn stop_cause(&self, worker: WorkerId) -> Option<StopCause> {
        let number = self.number(worker)?;
        self.all[number].stop_cause
    }

    /// Waits until a worker prints something or ends, and at most until the next measurement. Gives the complete lines, in order.
    /// `is_last` holds for a line after which a worker waits for us.
    ///
    /// # Errors
    /// As [`Supervisor::watch`].
    pub(super) fn watch(
        &mut self,
        supervisor: &mut Supervisor,
        is_last: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<(WorkerId, Vec<u8>)>, Failure> {
        let mut lines = Vec::new();
        let processes = &mut self.all;
        let mut is_talkative = false;
        let now = Instant::now();
        let until = Some(now + self.tick);
        supervisor.watch(&mut self.running, until, |number, bytes| {
            let process = &mut processes[number];
            process.last_active = Instant::now();
            let complete = process.lines(bytes);
            is_talkative |= process.is_talkative(&complete, &is_last);
            lines.extend(complete.into_iter().map(|line| (process.worker, line)));
        })?;
        self.looked = now;
        // Many lines at a time, unless a worker would wait for it.
        if is_talkative && !lines.iter().any(|(_, line)| is_last(line)) {
            supervisor.breathe(&self.running);
        }
        Ok(lines)
    }

    /// What a worker and its children printed after the walker's last message, read as Nix's.
    pub(super) fn output(&mut self, worker: WorkerId) -> NixOutput {
        let number = self.number(worker);
        let output = number.and_then(|number| self.all[number].nix_output.take());
        let mut output = output.unwrap_or_default();
        output.settle();
        output
    }

    /// The walker has sent a message, so what Nix printed before was not its final message. Gives the part that was not passed to the
    /// log.
    pub(super) fn continued(&mut self, worker: WorkerId) -> Vec<u8> {
        let Some(number) = self.number(worker) else {
            return Vec::new();
        };
        let process = &mut self.all[number];
        process.nix_output = None;
        std::mem::take(&mut process.final_output)
    }

    /// Reads a line that is not the walker's. Gives true if it is for the log.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Log;

    fn process() -> WorkerProcess {
        WorkerProcess::new(WorkerId::default())
    }

    #[test]
    fn a_line_is_complete_with_its_end() {
        let mut process = process();
        assert_eq!(process.lines(b"a\nb"), [b"a\n".to_vec()]);
        assert_eq!(process.lines(b"c"), Vec::<Vec<u8>>::new());
        assert_eq!(process.lines(b"\n\nd"), [b"bc\n".to_vec(), b"\n".to_vec()]);
        assert_eq!(process.take_line(), b"d");
    }

    #[test]
    fn of_a_line_of_any_length_the_begin_is_kept_and_the_rest_is_counted() {
        let mut process = process();
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..100 {
            assert!(process.lines(&piece).is_empty());
            assert!(process.line.len() <= LINE_AT_MOST);
        }
        let lines = process.lines(b"x\nshort\n");
        let [long, short] = lines.as_slice() else {
            panic!("{} lines", lines.len());
        };
        assert!(long.starts_with(b"xxx") && long.len() < 2 * CUT_AT);
        let omitted = mebibytes(((100 << 20) - CUT_AT) as u64);
        assert!(long.ends_with(format!("x… ({omitted} omitted)\n").as_bytes()));
        assert_eq!(short, b"short\n");
    }

    #[test]
    fn the_first_lines_of_a_task_are_read_as_they_come_and_the_others_many_at_a_time() {
        let mut process = process();
        let is_last = |line: &[u8]| line == b"last\n";
        for _ in 0..2 {
            for number in 1..=2 * FEW_LINES {
                let lines = process.lines(b"line\n");
                assert_eq!(
                    process.is_talkative(&lines, is_last),
                    number > FEW_LINES,
                    "{number}"
                );
            }
            let lines = process.lines(b"line\nlast\n");
            assert!(!process.is_talkative(&lines, is_last));
        }
    }

    #[test]
    fn a_worker_whose_output_was_not_read_yet_is_not_silent() {
        let mut supervisor = Supervisor::install(&Log::default()).unwrap();
        let mut processes = Processes::new();
        let folder = tempfile::tempdir().unwrap();
        let [go, gone] = ["go", "gone"].map(|name| folder.path().join(name));
        let script = "until [ -e \"$0/go\" ]; do sleep 0.01; done; echo line >&2; : > \"$0/gone\"; exec sleep 60";
        let folder = folder.path().to_str().unwrap();
        let line = CommandLine::new("sh", &["-c", script, folder]);
        let worker = WorkerId::default();
        let silence = Duration::from_millis(500);
        processes.start(worker, &line, &mut supervisor).unwrap();
        let limits = WorkerLimits {
            share: MemoryShare {
                slots: 1,
                part: u64::MAX,
                has_all: true,
            },
            silence: Some(silence),
        };
        processes.watch(&mut supervisor, |_| false).unwrap();
        // Something else takes long, as asking the store does while a collection holds its lock.
        let since = Instant::now();
        std::fs::write(go, "").unwrap();
        while !gone.exists() || since.elapsed() <= silence {
            std::thread::yield_now();
        }
        assert_eq!(processes.enforce(|_| limits, &mut supervisor), []);
        let mut lines = 0;
        let stopped = loop {
            lines += processes.watch(&mut supervisor, |_| false).unwrap().len();
            let stopped = processes.enforce(|_| limits, &mut supervisor);
            if !stopped.is_empty() {
                break stopped;
            }
        };
        // Now it is.
        assert_eq!((lines, stopped), (1, vec![worker]));
    }

    #[test]
    fn what_nix_prints_is_for_the_log_until_it_may_be_its_final_message() {
        let mut process = process();
        assert!(process.read(b"warning: x\n"));
        assert!(!process.read(b"error: y\n"));
        assert!(!process.read(b"       at /z\n"));
        assert_eq!(process.final_output, b"error: y\n       at /z\n");
        let ended = process.end(Ending::Exited(1));
        let message = ended.nix_output.final_message(ended.ending);
        assert!(message.starts_with('y'), "{message}");
        assert_eq!(ended.stop_cause, None);
    }
}
