//! The walk over all targets: starts the workers that the schedule asks for, and gives them their tasks. What follows from their
//! messages stands in `messages`, what follows from their failures and ends in `failures`.

mod failures;
mod messages;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use self::worker::{Doing, Worker};
use super::circles::GivenUpSets;
use super::conversation;
use super::diagnosis::{Diagnosis, DisturbedBy};
use super::findings::Findings;
use super::found_roots::FoundRoots;
use super::gaps::Gaps;
use super::invocation::WorkerInvocation;
use super::known::KnownTargets;
use super::processes::{Processes, WorkerLimits};
use super::progress::Progress;
use super::protocol::{self, WalkKind};
use super::schedule::{Costs, Next, Schedule, Task, WorkerId};
use super::spans::AttrIndex;
use super::{EvaluationHost, EvaluationResult, flake, memory, unmarked};
use crate::exit::{Class, Failure};
use crate::log::Log;
use crate::nix::{AttrPath, DrvPath, LockedFlake};
use crate::recording::RecordingRequest;
use crate::store::{ATTEMPTS, Store};
use crate::supervise::Supervisor;

/// A walk over all targets, and what it has found so far.
pub struct Walk<'a> {
    request: &'a RecordingRequest,
    supervisor: &'a mut Supervisor,
    log: Log,
    progress: Progress,
    schedule: Schedule,
    // Before the invocation, whose folder they may write into until they have ended.
    processes: Processes,
    invocation: WorkerInvocation<'a>,
    workers: BTreeMap<WorkerId, Worker>,
    diagnosis: Diagnosis<'a>,
    findings: Findings,
    roots: FoundRoots<'a>,
    /// A process has ended since then, with its temporary roots.
    has_ended: bool,
    gaps: Gaps,
    known: KnownTargets,
    given_up: GivenUpSets,
    started: Instant,
    /// How many attributes threw in workers with one task, whose messages Nix does not show.
    unseen: usize,
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
        let mut invocation = WorkerInvocation::new(request, locked, systems, host)?;
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
            roots: FoundRoots::new(host.state),
            has_ended: false,
            gaps: Gaps::default(),
            known,
            given_up: GivenUpSets::default(),
            started: Instant::now(),
            unseen: 0,
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
        self.schedule.plan(vec![Task::root()]);
        self.run(store)?;
        self.find_gaps()
    }

    /// Evaluates the targets with these `.drv`s again: they were collected.
    ///
    /// # Errors
    /// As [`Walk::all`]; one of them was disturbed too often (75).
    pub fn again(&mut self, gone: &[DrvPath], store: &mut Store) -> Result<(), Failure> {
        self.reopen(gone)?;
        if self.schedule.has_waiting() {
            self.run(store)?;
        }
        Ok(())
    }

    /// The targets with these `.drv`s wait once more.
    fn reopen(&mut self, gone: &[DrvPath]) -> Result<(), Failure> {
        // Nor are they known any more.
        self.invocation.know(&KnownTargets::default());
        self.roots.forget(gone);
        let mut spans = Vec::new();
        for path in self.findings.drop_gone(gone) {
            let name = self.name_of(&path);
            let line = self
                .diagnosis
                .disturbed(&path, &name, DisturbedBy::Collector)?;
            self.log.say(line);
            match self.schedule.reopen(&path) {
                Some(span) => spans.push(span),
                None => self.schedule.plan(vec![Task::root()]),
            }
        }
        self.schedule.wait(spans);
        Ok(())
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
        let sets = self.findings.unmarked_sets(unmarked::SEARCHED);
        let holding = if sets.is_empty() {
            Vec::new()
        } else {
            let idle = self.processes.idle_resident(self.supervisor);
            unmarked::with_derivations(
                sets,
                self.progress.took(),
                &self.invocation,
                &self.schedule,
                self.schedule.part_beside(idle),
                self.supervisor,
            )?
        };
        gaps.sets = holding
            .iter()
            .map(|path| self.findings.attr(path))
            .collect();
        self.gaps = gaps;
        Ok(())
    }

    /// Runs workers until all that waits is done.
    fn run(&mut self, store: &mut Store) -> Result<(), Failure> {
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
                self.keep_found(store)?;
                self.start()?;
                self.enforce_limits();
            }
            if self.processes.is_empty() {
                return Ok(());
            }
            for (worker, line) in self.processes.watch(self.supervisor, is_last)? {
                self.line(worker, &line, store)?;
            }
            for mut ended in self.processes.ended() {
                if !self.supervisor.is_stopped() {
                    self.ended(&mut ended, store)?;
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
                self.workers.insert(worker, Worker::walking(self.now()));
                continue;
            }
            let line = self.invocation.worker(part);
            self.processes.start(worker, &line, self.supervisor)?;
            let lines = self.invocation.first_lines();
            self.processes.send(worker, &lines);
            self.workers
                .insert(worker, Worker::loading(lines, self.now()));
        }
        Ok(())
    }

    /// Gives tasks to the workers that wait for one. One that gets no more lives on: Nix keeps from the collector what it has written
    /// as long as it does, and so until the pin is rooted.
    fn give_tasks(&mut self) {
        let mut idle = Vec::new();
        for (worker, one) in &mut self.workers {
            if !matches!(one.doing, Doing::Waiting) || self.processes.is_stopping(*worker) {
                continue;
            }
            let resident = if self.schedule.has_memory_limit() {
                self.processes.resident(*worker, self.supervisor)
            } else {
                None
            };
            let now = self.started.elapsed();
            match self.schedule.next(*worker, resident, now) {
                Next::Task(task) => {
                    let lines =
                        conversation::task_lines(&task, WalkKind::Spans, self.invocation.marker());
                    self.processes.send(*worker, &lines);
                    one.walk(now);
                }
                Next::Wait => {}
                Next::End => idle.push(*worker),
            }
        }
        for worker in idle {
            self.workers.remove(&worker);
            self.schedule.gone(worker);
            self.processes.keep_idle(worker);
        }
    }

    /// Roots what was found by workers that end before the pin is rooted, and lets them end: where something waits, the memory of those
    /// that are idle is promised to the next ones. What is gone by then waits as well.
    fn keep_found(&mut self, store: &mut Store) -> Result<(), Failure> {
        let is_due = self.has_ended || self.processes.has_idle();
        if !is_due || !self.schedule.has_waiting() {
            return Ok(());
        }
        self.has_ended = false;
        if self.diagnosis.has_disturbed() || self.roots.takes_little(self.now()) {
            for _ in 0..ATTEMPTS {
                let kept = self
                    .roots
                    .keep(self.findings.drvs(), store, self.supervisor);
                match kept {
                    Ok(gone) if gone.is_empty() => break,
                    Ok(gone) => self.reopen(&gone)?,
                    Err(failure) if matches!(failure.class, Class::Signal(_)) => {
                        return Err(failure);
                    }
                    // What the collector takes is evaluated again.
                    Err(failure) => {
                        self.log.warn(failure);
                        break;
                    }
                }
            }
        }
        self.processes.end_idle();
        Ok(())
    }

    /// Stops the workers that have too much memory, or take too long.
    fn enforce_limits(&mut self) {
        let schedule = &self.schedule;
        let limits = |worker| {
            let is_walking = schedule.task(worker).is_some();
            WorkerLimits {
                share: schedule.share(worker),
                silence: self.request.evaluation_timeout.filter(|_| is_walking),
            }
        };
        for stopped in self.processes.enforce(limits, self.supervisor) {
            let at = self.schedule.at(stopped);
            if let Some(worker) = self.workers.get_mut(&stopped) {
                worker.stopped_at = Some(at);
            }
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
