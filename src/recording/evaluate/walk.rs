//! The walk over all targets: starts the workers that the schedule asks for, records their messages, and carries out what follows
//! from their ends.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

use super::diagnosis::{Death, Diagnosis, OversizedWorker, Question, Verdict, WorkerEnd};
use super::findings::Findings;
use super::gaps::Gaps;
use super::invocation::WorkerInvocation;
use super::known::KnownTargets;
use super::processes::{EndedWorker, Processes, StopCause, WorkerLimits};
use super::progress::Progress;
use super::protocol::{self, WalkerMessage};
use super::schedule::{Assignment, Schedule, Task, WorkerId};
use super::spans::AttrIndex;
use super::{EvaluationResult, flake, memory, unmarked};
use crate::exit::{Class, Failure};
use crate::log::Log;
use crate::nix::{AttrPath, DrvPath, LockedFlake};
use crate::recording::{RecordingRequest, Recurse};
use crate::store::Store;
use crate::supervise::Supervisor;

/// For how many attributes that throw the message is found out: each costs a process.
const EXPLAINED: usize = 10;

/// How many names are shown of a path into cyclic sets.
const NAMES_OF_CYCLE: usize = 6;

/// A walk over all targets, and what it has found so far.
pub struct Walk<'a> {
    request: &'a RecordingRequest,
    supervisor: &'a mut Supervisor,
    log: Log,
    progress: Progress,
    invocation: WorkerInvocation<'a>,
    schedule: Schedule,
    processes: Processes,
    diagnosis: Diagnosis<'a>,
    findings: Findings,
    gaps: Gaps,
    known: KnownTargets,
}

impl<'a> Walk<'a> {
    /// Prepares a walk: measures the memory. A flake is `locked` before.
    ///
    /// # Errors
    /// Nix is missing (69), or cannot be asked (75).
    #[expect(
        clippy::too_many_arguments,
        reason = "what is walked, what is known of it, and what the workers need"
    )]
    pub(in crate::recording) fn new(
        request: &'a RecordingRequest,
        locked: Option<LockedFlake>,
        temporary: &'a Path,
        cores: NonZeroUsize,
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
        let slots = request.workers.unwrap_or(cores).get();
        let mut invocation = WorkerInvocation::new(request, locked, systems)?;
        invocation.know(&known);
        Ok(Self {
            request,
            supervisor,
            log: log.clone(),
            progress: Progress::new(log),
            invocation,
            schedule: Schedule::new(slots, memory),
            processes: Processes::new(),
            diagnosis: Diagnosis::new(&request.root, request.description(), temporary),
            findings: Findings::new(&request.root.attr),
            gaps: Gaps::default(),
            known,
        })
    }

    /// Evaluates all targets.
    ///
    /// # Errors
    /// The root does not evaluate, or has no attributes (65); the infrastructure failed (75); a signal asked us to end (128 + n).
    pub fn all(&mut self, store: &mut Store) -> Result<(), Failure> {
        self.run(vec![Task::everything()], store)?;
        self.explain(store)?;
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
            self.run(vec![Task::everything()], store)
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

    /// Finds out the messages of the first attributes that throw, each with a process that does not catch it.
    fn explain(&mut self, store: &mut Store) -> Result<(), Failure> {
        let throws = self.findings.unexplained(EXPLAINED);
        let spans = throws.iter().filter_map(|path| self.schedule.span(path));
        let tasks = spans.map(Task::uncaught).collect();
        self.run(tasks, store)
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
            &mut self.schedule,
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
        loop {
            if !self.supervisor.is_stopped() {
                self.start()?;
                self.enforce_limits();
            }
            if self.processes.is_empty() {
                return Ok(());
            }
            for (worker, line) in self.processes.watch(self.supervisor)? {
                self.line(worker, &line)?;
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

    /// Starts the workers that the schedule has slots and tasks for.
    fn start(&mut self) -> Result<(), Failure> {
        if self.processes.is_empty() {
            self.progress.root();
        }
        while let Some(worker) = self.schedule.assign(Instant::now()) {
            let Some(assignment) = self.schedule.assignment(worker) else {
                break;
            };
            let task = assignment.task();
            let line = self.invocation.walk(task, self.schedule.share(task));
            self.processes.start(worker, &line, self.supervisor)?;
        }
        Ok(())
    }

    /// Stops the workers that have too much memory, or take too long.
    fn enforce_limits(&mut self) {
        let schedule = &self.schedule;
        let memory = |worker| {
            let assignment = schedule.assignment(worker);
            assignment.map(|assignment| schedule.share(assignment.task()))
        };
        let limits = |worker| WorkerLimits {
            memory: memory(worker).filter(|_| schedule.has_memory_limit()),
            silence: self.request.evaluation_timeout,
        };
        for worker in self.processes.enforce(limits, self.supervisor) {
            self.schedule.stop(worker);
        }
    }

    // ---- messages

    fn line(&mut self, worker: WorkerId, line: &[u8]) -> Result<(), Failure> {
        match protocol::read(line, self.invocation.marker()) {
            Some(_) if self.processes.is_overtaken(worker) => Ok(()),
            Some(message) => {
                let other = self.processes.continued(worker);
                self.progress.pass_on(&other);
                self.message(worker, message)
            }
            // A line of Nix, or of the expression.
            None => {
                if self.processes.read(worker, line) {
                    self.progress.pass_on(line);
                }
                Ok(())
            }
        }
    }

    fn message(&mut self, worker: WorkerId, message: WalkerMessage) -> Result<(), Failure> {
        let (schedule, findings) = (&mut self.schedule, &mut self.findings);
        match message {
            WalkerMessage::Begin(path, name) => {
                if schedule.begin(worker, path.clone(), Instant::now()) {
                    findings.begin(&path, name);
                    self.progress.at(&path);
                } else {
                    self.processes.stop(worker, StopCause::Overtaken);
                }
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
            WalkerMessage::Set(path, count) => schedule.enter(worker, path, count),
            WalkerMessage::End(version) => {
                schedule.complete(worker);
                findings.version(version);
            }
            WalkerMessage::Unmarked(path) => findings.unmarked(path),
            WalkerMessage::Beside(path, names) => findings.beside(path, names),
            WalkerMessage::Callable(path) => findings.callable(path),
            WalkerMessage::Target(path, described) => findings.target(path, described),
            WalkerMessage::Throws(path) => {
                let assignment = schedule.assignment(worker);
                findings.throws(path, assignment.is_some_and(Assignment::is_in_meta));
            }
            WalkerMessage::Refused(path, why) => findings.refuse(&path, &why),
            WalkerMessage::Error(path, why) => {
                findings.error(&path, &why);
                self.print_error(&path);
            }
            WalkerMessage::Deep(path) => return Err(self.cyclic(&path)),
            WalkerMessage::Other(what) => {
                return Err(Failure::new(
                    Class::Evaluation,
                    format_args!(
                        "{} evaluates to {what}; expected an attribute set, a list or a derivation",
                        self.request.description()
                    ),
                ));
            }
            // Only a process that searches unmarked sets sends it.
            WalkerMessage::Holds(..) => {}
        }
        Ok(())
    }

    fn cyclic(&self, path: &AttrIndex) -> Failure {
        let mut names = self.findings.attr(path).names().to_vec();
        names.truncate(self.request.root.attr.names().len() + NAMES_OF_CYCLE);
        Failure::new(
            Class::Evaluation,
            format_args!(
                "the attribute sets below {} are cyclic",
                AttrPath::new(names)
            ),
        )
        .hint(match self.request.recurse {
            Recurse::All => {
                "exclude it with `exclude`, or walk only marked sets (`recurse: marked`)"
            }
            Recurse::Marked => "exclude it with `exclude`, or remove its `recurseForDerivations`",
        })
    }

    // ---- ends of workers

    fn ended(&mut self, ended: &EndedWorker, store: &mut Store) -> Result<(), Failure> {
        let Some(assignment) = self.schedule.assignment(ended.worker) else {
            return Ok(());
        };
        let task = assignment.task();
        let end = WorkerEnd::of(
            ended.stop_cause,
            ended.ending,
            assignment.is_complete(),
            task.catch,
        );
        let verdict = match end {
            WorkerEnd::Finished | WorkerEnd::Stopped => {
                if end == WorkerEnd::Finished {
                    self.progress.pass_on(&ended.final_output);
                }
                self.schedule.finish(ended.worker);
                return Ok(());
            }
            WorkerEnd::TooLarge => self.diagnosis.too_large(&OversizedWorker {
                at: assignment.attr(),
                begun: assignment.begun(),
                share: self.schedule.share(task),
                has_all: task.alone,
                slots: self.schedule.slots(),
                was_stopped: ended.stop_cause.is_some(),
            }),
            WorkerEnd::TooLong => {
                let timeout = self.request.evaluation_timeout.unwrap_or_default();
                self.diagnosis
                    .too_long(&assignment.attr(), timeout.as_secs())
            }
            WorkerEnd::Died => self.died(ended, store)?,
        };
        self.carry_out(verdict, ended.worker)
    }

    fn died(&mut self, ended: &EndedWorker, store: &mut Store) -> Result<Verdict, Failure> {
        let assignment = self.schedule.assignment(ended.worker);
        let at = assignment.map(Assignment::attr).unwrap_or_default();
        let name = self.name_of(&at);
        // An expression is not to blame where the store is dead.
        store.check_answers(self.supervisor)?;
        let death = Death {
            catch: assignment.is_none_or(|assignment| assignment.task().catch),
            at,
            name: &name,
            ending: ended.ending,
            nix_output: &ended.nix_output,
        };
        let (root, supervisor) = (&self.request.root, &mut *self.supervisor);
        let locked = self.invocation.locked();
        self.diagnosis.died(&death, |question| match question {
            Question::RootThrows => store.throws(supervisor, root, locked),
            Question::IsValid(path) => store.is_valid(supervisor, path),
        })
    }

    fn carry_out(&mut self, verdict: Verdict, worker: WorkerId) -> Result<(), Failure> {
        match verdict {
            Verdict::EvaluationError(message) => {
                if let Some(assignment) = self.schedule.assignment(worker) {
                    let in_meta = assignment.is_in_meta();
                    let path = assignment.attr();
                    self.findings.fail(&path, in_meta, &message);
                    self.print_error(&path);
                }
                self.schedule.continue_after(worker);
            }
            Verdict::Repeat(line) => {
                if let Some(line) = line {
                    self.log.say(line);
                }
                self.schedule.repeat(worker);
            }
            Verdict::RepeatAlone => self.schedule.repeat_alone(worker),
            Verdict::RepeatWithFewer(line) => {
                self.log.say(line);
                self.schedule.repeat_with_fewer(worker);
            }
            Verdict::Fail(failure) => return Err(failure),
        }
        Ok(())
    }

    /// Prints the attribute's evaluation error, if it has one.
    fn print_error(&mut self, path: &AttrIndex) {
        if let Some(error) = self.findings.error_of(path) {
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
