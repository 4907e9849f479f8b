//! The walk over all targets: starts the workers that the schedule asks for, gives them their tasks, records their messages, and
//! carries out what follows from their failures.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::circles::{GIVEN_UP_AT_MOST, GivenUpSets, circle};
use super::diagnosis::{Diagnosis, FailedTask, OversizedWorker, Question, Verdict, WorkerEnd};
use super::exclusions::is_expected;
use super::findings::Findings;
use super::gaps::Gaps;
use super::invocation::WorkerInvocation;
use super::known::KnownTargets;
use super::plan::{Costs, LineEnd, Next, Schedule, Task, WorkerId};
use super::processes::{EndedWorker, Processes, WorkerLimits};
use super::progress::Progress;
use super::protocol::{self, WalkKind, WalkerMessage};
use super::spans::AttrIndex;
use super::{EvaluationHost, EvaluationResult, flake, memory, unmarked};
use crate::command_line::Ending;
use crate::exit::{Class, Failure};
use crate::log::Log;
use crate::nix::{AttrPath, DrvPath, Evaluation, LockedFlake, NixOutput};
use crate::recording::{RecordingRequest, Recurse};
use crate::store::Store;
use crate::supervise::Supervisor;

/// How many names are shown of a path into sets that are nested too deeply.
const NAMES_OF_CIRCLE: usize = 6;

/// For how many attributes that throw in a worker with one task the message is found out: each costs a process.
const HEARD: usize = 10;

/// How a living worker's failed task counts: as a program that fails.
const FAILED: Ending = Ending::Exited(1);

/// What a worker does.
#[derive(Debug)]
enum Doing {
    /// It loads the walker.
    Loading {
        /// By the file that these lines name.
        lines: Vec<u8>,
        /// It evaluates a flake, and not purely.
        is_impure: bool,
    },
    /// It waits for a task.
    Waiting,
    /// It walks a task.
    Walking {
        /// The walker has reported the end of the task.
        is_complete: bool,
        /// The set that is nested too deeply.
        deep: Option<AttrIndex>,
    },
    /// It gets no more tasks, and ends.
    Ending,
}

/// A worker, and what it does.
#[derive(Debug)]
struct Worker {
    doing: Doing,
    /// It has done what it was sent, and says something that means nothing ([`protocol::with_ends`]).
    is_between: bool,
}

impl Worker {
    fn walking() -> Self {
        Self {
            doing: Doing::Walking {
                is_complete: false,
                deep: None,
            },
            is_between: false,
        }
    }

    fn loading(lines: Vec<u8>) -> Self {
        Self {
            doing: Doing::Loading {
                lines,
                is_impure: false,
            },
            is_between: false,
        }
    }
}

/// A walk over all targets, and what it has found so far.
pub struct Walk<'a> {
    request: &'a RecordingRequest,
    supervisor: &'a mut Supervisor,
    log: Log,
    progress: Progress,
    invocation: WorkerInvocation<'a>,
    schedule: Schedule,
    processes: Processes,
    workers: BTreeMap<WorkerId, Worker>,
    diagnosis: Diagnosis<'a>,
    findings: Findings,
    gaps: Gaps,
    known: KnownTargets,
    given_up: GivenUpSets,
    started: Instant,
    /// How many attributes threw whose messages a worker could not show.
    unheard: usize,
}

impl<'a> Walk<'a> {
    /// Prepares a walk: measures the memory. A flake is `locked` before.
    ///
    /// # Errors
    /// Nix is missing (69), or cannot be asked (75).
    pub(in crate::recording) fn new(
        request: &'a RecordingRequest,
        locked: Option<LockedFlake>,
        host: &EvaluationHost<'a>,
        known: KnownTargets,
        store: &mut Store,
        supervisor: &'a mut Supervisor,
        log: &Log,
    ) -> Result<Self, Failure> {
        let whole_flake = locked.is_some() && request.root.attr.names().is_empty();
        let systems = if whole_flake {
            Some(flake::systems(request, store, supervisor)?)
        } else {
            None
        };
        // Where it is not known how much is free, there is no limit.
        let memory = memory::for_evaluation(request, supervisor).unwrap_or(u64::MAX);
        let most = request.workers.unwrap_or(host.cores).get();
        let mut invocation = WorkerInvocation::new(request, locked, systems, host.state)?;
        invocation.know(&known);
        Ok(Self {
            request,
            supervisor,
            log: log.clone(),
            progress: Progress::new(log),
            invocation,
            schedule: Schedule::new(most, memory, host.remembered),
            processes: Processes::new(),
            workers: BTreeMap::new(),
            diagnosis: Diagnosis::new(&request.root, request.description(), host.temporary),
            findings: Findings::new(&request.root.attr),
            gaps: Gaps::default(),
            known,
            given_up: GivenUpSets::default(),
            started: Instant::now(),
            unheard: 0,
        })
    }

    /// What the evaluation costs, for the next one of the same.
    pub(in crate::recording) fn costs(&self) -> Costs {
        self.schedule.costs()
    }

    /// Evaluates all targets.
    ///
    /// # Errors
    /// The root does not evaluate, or has no attributes (65); the infrastructure failed (75); a signal asked us to end (128 + n).
    pub fn all(&mut self, store: &mut Store) -> Result<(), Failure> {
        self.run(vec![Task::root()], store)?;
        self.find_gaps()
    }

    /// Evaluates the targets with these `.drv`s again: they were collected.
    ///
    /// # Errors
    /// As [`Walk::all`]; one of them was disturbed too often (75).
    pub fn again(&mut self, gone: &[DrvPath], store: &mut Store) -> Result<(), Failure> {
        // Nor are they known any more.
        self.invocation.know(&KnownTargets::default());
        let mut spans = Vec::new();
        let mut everything = false;
        for path in self.findings.drop_gone(gone) {
            let name = self.name_of(&path);
            let line = self.diagnosis.disturbed(&path, &name, None)?;
            self.log.say(line);
            match self.schedule.reopen(&path) {
                Some(span) => spans.push(span),
                None => everything = true,
            }
        }
        if everything {
            self.run(vec![Task::root()], store)
        } else if spans.is_empty() {
            Ok(())
        } else {
            self.run(vec![Task::spans(spans)], store)
        }
    }

    /// The supervisor, for what is done between two walks.
    pub fn supervisor(&mut self) -> &mut Supervisor {
        self.supervisor
    }

    /// What was found, in the order of the attributes.
    #[must_use]
    pub fn evaluated(&self) -> EvaluationResult {
        self.findings.result(&self.gaps)
    }

    /// The attribute that is evaluated, or was last; none for the root.
    pub(in crate::recording) fn at(&self) -> Option<AttrPath> {
        let at = self.progress.attribute();
        at.map(|path| self.findings.attr(path))
    }

    /// The attributes whose errors were printed as they came.
    pub(in crate::recording) fn printed_errors(&self) -> &BTreeSet<AttrPath> {
        self.progress.printed()
    }

    /// Logs in one line what was evaluated.
    pub fn say_summary(&self) {
        self.log.say(self.progress.summary(self.findings.count()));
    }

    /// Finds out what was not walked although it may be meant.
    fn find_gaps(&mut self) -> Result<(), Failure> {
        let mut gaps = self.findings.gaps(&self.request.exclude);
        let system = self.invocation.system().unwrap_or_default();
        system.clone_into(&mut gaps.system);
        let holding = unmarked::with_derivations(
            self.findings.unmarked_sets(unmarked::SEARCHED),
            self.progress.took(),
            &self.invocation,
            &self.schedule,
            self.supervisor,
        )?;
        gaps.sets = holding
            .iter()
            .map(|path| self.findings.attr(path))
            .collect();
        self.gaps = gaps;
        Ok(())
    }

    /// Runs workers until these tasks are done.
    fn run(&mut self, tasks: Vec<Task>, store: &mut Store) -> Result<(), Failure> {
        self.schedule.plan(tasks);
        let done = self.until_all_are_done(store);
        self.progress.clear();
        if done.is_err() {
            // The recording fails, so the results of the other workers are not needed.
            self.processes.stop_all(self.supervisor)?;
        }
        self.supervisor.check()?;
        done
    }

    fn until_all_are_done(&mut self, store: &mut Store) -> Result<(), Failure> {
        let marker = self.invocation.marker().to_owned();
        let is_last = |line: &[u8]| protocol::is_end_of_line(line, &marker);
        loop {
            if !self.supervisor.is_stopped() {
                self.give_tasks();
                self.start()?;
                self.enforce_limits();
            }
            if self.processes.is_empty() {
                return Ok(());
            }
            for (worker, line) in self.processes.watch(self.supervisor, is_last)? {
                self.line(worker, &line, store)?;
            }
            for ended in self.processes.ended() {
                if !self.supervisor.is_stopped() {
                    self.ended(&ended, store)?;
                }
            }
            let (begun, known) = self.schedule.names();
            let findings = &self.findings;
            let name = |path: &AttrIndex| findings.attr(path);
            self.progress.show(begun, known, findings.count(), name);
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Starts the workers that the schedule asks for.
    fn start(&mut self) -> Result<(), Failure> {
        if self.processes.is_empty() {
            self.progress.root();
        }
        while let Some(worker) = self.schedule.open(self.now()) {
            let part = self.schedule.part(worker);
            if !self.invocation.converses() {
                let Next::Task(task) = self.schedule.next(worker, None, self.now()) else {
                    self.schedule.gone(worker);
                    break;
                };
                let task = protocol::task_text(&task, WalkKind::Alone);
                let line = self.invocation.worker_for(&task, part);
                self.processes.start(worker, &line, self.supervisor)?;
                self.workers.insert(worker, Worker::walking());
                continue;
            }
            let line = self.invocation.worker(part);
            self.processes.start(worker, &line, self.supervisor)?;
            let lines = self.invocation.first_lines();
            self.processes.send(worker, &lines);
            self.workers.insert(worker, Worker::loading(lines));
        }
        Ok(())
    }

    /// Gives tasks to the workers that wait for one.
    fn give_tasks(&mut self) {
        for (worker, Worker { doing, .. }) in &mut self.workers {
            if !matches!(doing, Doing::Waiting) {
                continue;
            }
            let resident = if self.schedule.has_memory_limit() {
                self.processes.resident(*worker, self.supervisor)
            } else {
                None
            };
            match self
                .schedule
                .next(*worker, resident, self.started.elapsed())
            {
                Next::Task(task) => {
                    let lines =
                        protocol::task_lines(&task, WalkKind::Spans, self.invocation.marker());
                    self.processes.send(*worker, &lines);
                    *doing = Doing::Walking {
                        is_complete: false,
                        deep: None,
                    };
                }
                Next::Wait => {}
                Next::End => {
                    self.processes.close(*worker);
                    *doing = Doing::Ending;
                }
            }
        }
    }

    /// Stops the workers that have too much memory, or take too long.
    fn enforce_limits(&mut self) {
        let schedule = &self.schedule;
        let limits = |worker| {
            let is_walking = schedule.task(worker).is_some();
            WorkerLimits {
                memory: schedule.has_memory_limit().then(|| schedule.part(worker)),
                silence: self.request.evaluation_timeout.filter(|_| is_walking),
            }
        };
        self.processes.enforce(limits, self.supervisor);
    }

    // ---- lines

    fn line(&mut self, worker: WorkerId, line: &[u8], store: &mut Store) -> Result<(), Failure> {
        let Some(Worker { doing, is_between }) = self.workers.get_mut(&worker) else {
            return Ok(());
        };
        match protocol::read(line, self.invocation.marker()) {
            Some(WalkerMessage::Done) => {
                *is_between = true;
                self.done(worker, store)
            }
            Some(WalkerMessage::Next) if *is_between => {
                *is_between = false;
                Ok(())
            }
            Some(WalkerMessage::Next) => self.is_silent(worker, store),
            Some(WalkerMessage::Throws(path))
                if !self.invocation.converses() && !self.diagnosis.is_suspected(&path) =>
            {
                self.throws_unheard(worker, &path, store)
            }
            Some(message) => {
                let other = self.processes.continued(worker);
                self.progress.pass_on(&other);
                self.message(worker, message)
            }
            // A line of Nix, or of the expression.
            None => {
                let is_chatter = *is_between
                    || protocol::is_chatter(line, matches!(doing, Doing::Loading { .. }));
                if !is_chatter && self.processes.read(worker, line) {
                    self.progress.pass_on(line);
                }
                Ok(())
            }
        }
    }

    fn message(&mut self, worker: WorkerId, message: WalkerMessage) -> Result<(), Failure> {
        let now = self.now();
        let (schedule, findings) = (&mut self.schedule, &mut self.findings);
        let doing = self
            .workers
            .get_mut(&worker)
            .map(|worker| &mut worker.doing);
        match message {
            WalkerMessage::Begin(path, name) => {
                if !schedule.begin(worker, path.clone(), now) {
                    let path = findings.attr(&path);
                    return Err(Failure::new(
                        Class::Bug,
                        format_args!("{path} was evaluated out of turn"),
                    ));
                }
                findings.begin(&path, name);
                self.progress.at(&path);
            }
            WalkerMessage::Meta(_) => schedule.begin_meta(worker),
            WalkerMessage::Excluded(path, by, name) => {
                schedule.exclude();
                findings.exclude(path, by, name);
            }
            WalkerMessage::Known(path, name) => {
                schedule.exclude();
                let attr = findings.attr_named(&path, &name);
                let known = self
                    .known
                    .get(&attr)
                    .ok_or_else(|| Failure::new(Class::Bug, format_args!("{attr} is not known")))?;
                findings.know(&path, name, known);
            }
            WalkerMessage::Impure => {
                if let Some(Doing::Loading { is_impure, .. }) = doing {
                    *is_impure = true;
                }
            }
            WalkerMessage::Set(path, _) if findings.is_given_up(&path) => {}
            WalkerMessage::Set(path, count) => schedule.set(worker, path, count),
            WalkerMessage::End(version) => {
                if let Some(Doing::Walking { is_complete, .. }) = doing {
                    *is_complete = true;
                }
                findings.version(version);
            }
            WalkerMessage::Deep(path) => {
                if let Some(Doing::Walking { deep, .. }) = doing {
                    *deep = Some(path);
                }
            }
            WalkerMessage::Unmarked(path) => findings.unmarked(path),
            WalkerMessage::Beside(path, names) => findings.beside(path, names),
            WalkerMessage::Callable(path) => findings.callable(path),
            WalkerMessage::Target(path, described) => findings.target(path, described),
            WalkerMessage::Refused(path, why) => findings.refuse(&path, &why),
            WalkerMessage::Error(path, why) => {
                findings.error(&path, &why);
                self.print_error(&path);
            }
            WalkerMessage::Throws(path) => match self.diagnosis.threw(&path) {
                Verdict::EvaluationError(message) => {
                    findings.fail(&path, schedule.is_in_meta(worker), &message);
                    self.print_error(&path);
                }
                Verdict::Fail(failure) => return Err(failure),
                _ => {}
            },
            WalkerMessage::Other(what) => {
                return Err(Failure::new(
                    Class::Evaluation,
                    format_args!(
                        "{} evaluates to {what}; expected an attribute set, a list or a derivation",
                        self.request.description()
                    ),
                ));
            }
            // Only a worker that searches unmarked sets sends the first; the others are no messages of the walker's.
            WalkerMessage::Holds(..) | WalkerMessage::Done | WalkerMessage::Next => {}
        }
        Ok(())
    }

    /// A worker has done what it was sent last, or failed to.
    fn done(&mut self, worker: WorkerId, store: &mut Store) -> Result<(), Failure> {
        let output = self.processes.output(worker);
        let printed = self.processes.continued(worker);
        let Some(Worker { doing, .. }) = self.workers.get_mut(&worker) else {
            return Ok(());
        };
        let was = std::mem::replace(doing, Doing::Waiting);
        if self.processes.is_stopping(worker) {
            // Its end says more.
            *doing = was;
            return Ok(());
        }
        match was {
            Doing::Loading {
                is_impure: true, ..
            } if output.error.is_none() => {
                self.invocation.cannot_converse();
                self.schedule.one_task_each();
                self.processes.close(worker);
                *doing = Doing::Ending;
            }
            Doing::Loading { lines, .. } if output.error.is_some() => {
                let is_current = self.invocation.first_lines() == lines;
                if is_current && !self.invocation.try_next_file() {
                    return self.failed(worker, FAILED, &output, store);
                }
                self.processes.close(worker);
                *doing = Doing::Ending;
            }
            Doing::Walking {
                is_complete: false,
                deep,
            } => match deep {
                Some(path) => self.give_up_circle(worker, &path, false)?,
                None => self.failed(worker, FAILED, &output, store)?,
            },
            Doing::Walking { .. } => {
                self.progress.pass_on(&printed);
                let now = self.now();
                self.schedule.ended(worker, LineEnd::Finished, false, now);
            }
            Doing::Loading { .. } | Doing::Waiting => {}
            Doing::Ending => *doing = Doing::Ending,
        }
        Ok(())
    }

    /// A task failed, and Nix does not say why: so it is asked.
    fn is_silent(&mut self, worker: WorkerId, store: &mut Store) -> Result<(), Failure> {
        self.processes.continued(worker);
        let output = self.words(&self.schedule.at(worker), store)?;
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.doing = Doing::Waiting;
        }
        self.failed(worker, FAILED, &output, store)
    }

    /// An attribute throws, which a worker with one task has to catch. The first of them are evaluated once more for their messages.
    fn throws_unheard(
        &mut self,
        worker: WorkerId,
        path: &AttrIndex,
        store: &mut Store,
    ) -> Result<(), Failure> {
        self.unheard += 1;
        let message = if self.unheard <= HEARD || *path == AttrIndex::default() {
            self.words(path, store)?.final_message(FAILED)
        } else {
            "it throws; its step shows the message".into()
        };
        self.diagnosis.suspect(path, message);
        self.message(worker, WalkerMessage::Throws(path.clone()))
    }

    /// What Nix says of an attribute when it evaluates nothing else.
    fn words(&mut self, at: &AttrIndex, store: &mut Store) -> Result<NixOutput, Failure> {
        let root = &self.request.root;
        let evaluation = Evaluation {
            attr: if *at == AttrIndex::default() {
                root.attr.clone()
            } else {
                self.findings.attr(at)
            },
            ..root.clone()
        };
        store.words(self.supervisor, &evaluation, self.invocation.locked())
    }

    /// A set is nested too deeply: where it lies in a set that contains itself, nothing of that counts, and otherwise nothing of it. Where
    /// there are too many of them in one set, nothing of that counts.
    fn give_up_circle(
        &mut self,
        worker: WorkerId,
        path: &AttrIndex,
        is_gone: bool,
    ) -> Result<(), Failure> {
        let now = self.now();
        if let Some(set) = self.findings.set_given_up(path) {
            // Meanwhile, by another worker.
            let end = LineEnd::GaveUpSet(set);
            self.schedule.ended(worker, end, is_gone, now);
            return Ok(());
        }
        let root = self.request.root.attr.names().len();
        let attr = self.findings.attr(path);
        let names = &attr.names()[root..];
        let found = circle(names);
        let depth = found.map_or(names.len(), |(begin, length)| begin + length);
        let Some(set) = path.with_parents().nth(depth) else {
            return Ok(());
        };
        let shown = AttrPath::new(
            attr.names()[..(root + depth + NAMES_OF_CIRCLE).min(attr.names().len())].to_vec(),
        );
        let widened = self.given_up.widened(set.clone());
        let message = match found {
            _ if widened != set => format!(
                "more than {GIVEN_UP_AT_MOST} sets in it contain themselves, or are nested too deeply: {shown}.…"
            ),
            Some(_) => format!("the set contains itself: {shown}.…"),
            None => format!(
                "sets are nested deeper than {} levels here",
                names.len() - 1
            ),
        };
        let set = widened;
        let exclude = self.findings.attr(&set);
        let hint = match self.request.recurse {
            Recurse::All => format!(
                "exclude it (`exclude: {exclude}`), or walk only marked sets (`recurse: marked`)"
            ),
            Recurse::Marked => {
                format!("exclude it (`exclude: {exclude}`), or remove its `recurseForDerivations`")
            }
        };
        self.findings
            .give_up_set(&set, &format!("{message}\n{hint}"));
        self.print_error(&set);
        self.schedule
            .ended(worker, LineEnd::GaveUpSet(set), is_gone, now);
        Ok(())
    }

    // ---- failures

    fn ended(&mut self, ended: &EndedWorker, store: &mut Store) -> Result<(), Failure> {
        let worker = ended.worker;
        let doing = self.workers.remove(&worker).map(|worker| worker.doing);
        let is_loading = matches!(doing, Some(Doing::Loading { .. }));
        if self.schedule.task(worker).is_none() && !is_loading {
            self.schedule.gone(worker);
            return Ok(());
        }
        match doing {
            // A worker with one task.
            Some(Doing::Walking {
                is_complete: true, ..
            }) if ended.ending.success() => {
                self.progress.pass_on(&ended.final_output);
                let now = self.now();
                self.schedule.ended(worker, LineEnd::Finished, true, now);
                return Ok(());
            }
            Some(Doing::Walking {
                deep: Some(path), ..
            }) => return self.give_up_circle(worker, &path, true),
            _ => {}
        }
        match WorkerEnd::of(ended.stop_cause, ended.ending) {
            WorkerEnd::Died => self.failed(worker, ended.ending, &ended.nix_output, store),
            WorkerEnd::TooLarge => {
                let verdict = self.diagnosis.too_large(&OversizedWorker {
                    at: self.schedule.at(worker),
                    begun: self.schedule.begun(worker),
                    part: self.schedule.part(worker),
                    has_all: self.schedule.is_alone(worker),
                    slots: self.schedule.most(),
                    was_stopped: ended.stop_cause.is_some(),
                });
                self.carry_out(verdict, worker, true)
            }
            WorkerEnd::TooLong => {
                let timeout = self.request.evaluation_timeout.unwrap_or_default();
                let at = self.schedule.at(worker);
                let verdict = self.diagnosis.too_long(&at, timeout.as_secs());
                self.carry_out(verdict, worker, true)
            }
        }
    }

    fn failed(
        &mut self,
        worker: WorkerId,
        ending: Ending,
        nix_output: &NixOutput,
        store: &mut Store,
    ) -> Result<(), Failure> {
        let at = self.schedule.at(worker);
        let name = self.name_of(&at);
        let task = self.schedule.task(worker);
        let failed = FailedTask {
            at,
            name: &name,
            is_repetition: task.is_some_and(|task| task.catch),
            ending,
            nix_output,
        };
        let supervisor = &mut *self.supervisor;
        let verdict = self.diagnosis.failed(&failed, |question| match question {
            Question::Answers => store.check_answers(supervisor).map(|()| true),
            Question::IsValid(path) => store.is_valid(supervisor, path),
        })?;
        let is_gone = !self.workers.contains_key(&worker);
        self.carry_out(verdict, worker, is_gone)
    }

    fn carry_out(
        &mut self,
        verdict: Verdict,
        worker: WorkerId,
        is_gone: bool,
    ) -> Result<(), Failure> {
        let end = match verdict {
            Verdict::EvaluationError(message) => {
                let in_meta = self.schedule.is_in_meta(worker);
                let at = self.schedule.at(worker);
                self.findings.fail(&at, in_meta, &message);
                self.print_error(&at);
                LineEnd::GaveUp
            }
            Verdict::Repeat(line) => {
                self.log.say(line);
                LineEnd::Again { catch: true }
            }
            Verdict::RepeatAlone => LineEnd::Alone,
            Verdict::RepeatWithFewer(line) => {
                self.log.say(line);
                LineEnd::Fewer
            }
            Verdict::Fail(failure) => return Err(failure),
        };
        let now = self.now();
        self.schedule.ended(worker, end, is_gone, now);
        Ok(())
    }

    /// Prints the attribute's evaluation error, if it has one that is not expected.
    fn print_error(&mut self, path: &AttrIndex) {
        if let Some(error) = self.findings.error_of(path)
            && !is_expected(error, &self.request.expect_errors)
        {
            self.progress.error(error);
        }
    }

    /// The attribute in words; at the root, all that is evaluated.
    fn name_of(&self, path: &AttrIndex) -> String {
        match self.findings.attr(path) {
            attr if attr.names().is_empty() => self.request.description(),
            attr => attr.to_string(),
        }
    }
}
