//! Evaluating every target once: processes that walk, and what becomes of each attribute.
//!
//! The first process walks everything. One that has nothing to do takes the later half of what another still has before it,
//! so that the work is shared evenly and no process is started for nothing: each has to evaluate the root anew. A process that
//! dies takes one attribute with it, and another goes on behind that.

mod eval_jobs;
pub(in crate::recording) mod evaluator;
pub(in crate::recording) mod memory;
pub mod overlooked;
mod progress;
mod spans;
mod walk;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use self::memory::MIB;
use self::overlooked::Overlooked;
use self::progress::Progress;
use self::spans::{AttrIndex, ChildCounts, Position, Span};
use self::walk::{AttrName, WalkerMessage, WalkerSettings};
use self::worker::{Task, Worker, WorkerEnd};
use crate::command_line::{CommandLine, Ending};
use crate::exit::{Class, Classify as _, Failure};
use crate::host;
use crate::log::Log;
use crate::nix::{
    AttrPath, Disturbance, DrvPath, LockedFlake, Phase, Source, StorePath, class, command, message,
};
use crate::recording::asking::{
    in_one_line, memory_for_evaluation, message_of, store_answers, surroundings, systems,
};
use crate::recording::{AttrError, FoundTarget, RecordingRequest, Recurse};
use crate::supervise::{OnStop, Running, Supervisor};
use crate::text::without_escapes;

/// How often an attribute is evaluated that the collector disturbs.
const ATTEMPTS: u32 = 3;

/// Of how many attributes that throw it is found out what they say: a process for each.
const EXPLAINED: usize = 10;

/// How long an evaluation may go on that has nothing to say any more.
const OVERTAKEN: Duration = Duration::from_millis(100);

/// How long an evaluation may go on that has too much memory: it will not look at a signal, and goes on taking more.
const TOO_LARGE: Duration = Duration::from_millis(20);

/// How long an evaluation may go on that takes too long. One that builds ends at once.
const TOO_LONG: Duration = Duration::from_secs(1);

/// How often memory is measured, and the rest of the work looked at.
const TICK: Duration = Duration::from_millis(50);

/// How often, once a process has more than half of what it may have: the rest may be gone in a tick.
const CLOSE_TICK: Duration = Duration::from_millis(10);

/// How many of the sets that were passed are looked at.
const LOOKED_AT: usize = 200;

/// How long is looked at them: as long as the evaluation took, within these.
const LOOK_AT_LEAST: Duration = Duration::from_secs(2);
const LOOK_AT_MOST: Duration = Duration::from_secs(10);

/// What is kept of what Nix says at its death, in bytes.
const MESSAGE_AT_MOST: usize = 8 << 10;

/// What every target gave.
#[derive(Debug, Clone, Default)]
pub struct EvaluationResult {
    /// The targets, in the order of their attributes.
    pub found: Vec<FoundTarget>,
    /// The attributes that do not evaluate, in their order.
    pub broken: Vec<AttrError>,
    /// The attributes that evaluate, but whose metadata is no data, in their order.
    pub refused: Vec<AttrError>,
    /// The attributes that are derivations which can be called as well: their steps must not call them.
    pub callable: BTreeSet<AttrPath>,
    /// What was not looked at.
    pub overlooked: Overlooked,
    /// The version of Nix that evaluated.
    pub nix: String,
}

/// What became of an attribute.
#[derive(Debug)]
enum AttrOutcome {
    Found(FoundTarget),
    Broken(AttrError),
    /// It evaluates, but its metadata is no data.
    Refused(AttrError),
    /// It throws, or its metadata does; what it says is not known yet.
    Throws {
        in_meta: bool,
    },
}

/// A walk over all targets.
pub struct Walk<'a> {
    request: &'a RecordingRequest,
    supervisor: &'a mut Supervisor,
    log: Log,
    progress: Progress,
    marker: String,
    locked: Option<LockedFlake>,
    /// Where temporary files are made.
    temporary: &'a std::path::Path,
    systems: Option<Vec<String>>,
    exclude: Vec<Vec<String>>,
    counts: ChildCounts,
    /// The names of the attributes that have become something.
    names: BTreeMap<AttrIndex, AttrName>,
    outcomes: BTreeMap<AttrIndex, AttrOutcome>,
    /// Those whose `.drv` was only named, and need not have been written.
    named: BTreeSet<AttrIndex>,
    /// Those that can be called as well.
    callable: BTreeSet<AttrIndex>,
    /// The sets that are not looked into.
    passed: BTreeSet<AttrIndex>,
    /// What stands beside what is looked at in a flake: outputs below the root, else systems.
    beside: BTreeMap<AttrIndex, Vec<String>>,
    /// The exclusions that have left something out, by their numbers.
    effective: BTreeSet<usize>,
    overlooked: Overlooked,
    /// How often the collector has disturbed an attribute.
    disturbed: BTreeMap<AttrIndex, u32>,
    /// The path that an attribute has missed last, and how often in a row.
    missed: BTreeMap<AttrIndex, (StorePath, u32)>,
    /// Where something has failed that was no fault of the expression's, once; whether it throws.
    doubted: BTreeSet<(AttrIndex, bool)>,
    pending: Vec<Task>,
    /// Bytes for all processes together.
    budget: u64,
    /// How many processes there may be.
    workers: usize,
    /// The version of Nix.
    nix: String,
}

impl<'a> Walk<'a> {
    /// Prepares a walk: measures the memory. A flake is `locked` before.
    ///
    /// # Errors
    /// What is needed for that is not there (69, 75).
    pub fn new(
        request: &'a RecordingRequest,
        locked: Option<LockedFlake>,
        temporary: &'a std::path::Path,
        cores: NonZeroUsize,
        supervisor: &'a mut Supervisor,
        log: &Log,
    ) -> Result<Self, Failure> {
        let whole_flake = locked.is_some() && request.root.attr.names().is_empty();
        let systems = if whole_flake {
            Some(systems(request, supervisor)?)
        } else {
            None
        };
        // Where nobody knows how much is free, everybody may take what there is.
        let budget = memory_for_evaluation(request, supervisor);
        Ok(Self {
            request,
            supervisor,
            log: log.clone(),
            progress: Progress::new(log),
            marker: marker()?,
            locked,
            temporary,
            systems,
            exclude: walk::exclusions(&request.exclude, &request.root.attr),
            counts: ChildCounts::new(),
            names: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            named: BTreeSet::new(),
            callable: BTreeSet::new(),
            passed: BTreeSet::new(),
            beside: BTreeMap::new(),
            effective: BTreeSet::new(),
            overlooked: Overlooked::default(),
            disturbed: BTreeMap::new(),
            missed: BTreeMap::new(),
            doubted: BTreeSet::new(),
            pending: Vec::new(),
            budget: budget.unwrap_or(u64::MAX),
            workers: request.workers.unwrap_or(cores).get(),
            nix: String::new(),
        })
    }

    /// Evaluates all targets.
    ///
    /// # Errors
    /// There is nothing to walk (65); something is wrong with all of it (65, 75); a signal (128 + n).
    pub fn all(&mut self) -> Result<(), Failure> {
        self.go(vec![Task {
            spans: None,
            catch: true,
            alone: false,
        }])?;
        self.explain()?;
        self.overlook()
    }

    /// Evaluates those targets again whose `.drv`s are these.
    ///
    /// # Errors
    /// As [`Walk::all`]; and one of them has been disturbed too often (75).
    pub fn again(&mut self, gone: &[DrvPath]) -> Result<(), Failure> {
        let is_gone = |outcome: &AttrOutcome| matches!(outcome, AttrOutcome::Found(found) if gone.contains(&found.drv));
        let paths: Vec<AttrIndex> = self
            .outcomes
            .iter()
            .filter(|(_, outcome)| is_gone(outcome))
            .map(|(path, _)| path.clone())
            .collect();
        let mut spans = Vec::new();
        let mut everything = false;
        for path in paths {
            if self.named.contains(&path) {
                let why = "its drvPath was only named, and is not in the store".into();
                self.refuse_at(&path, why);
                continue;
            }
            self.note_disturbance(&path, false, "")?;
            self.outcomes.remove(&path);
            self.progress.begun -= 1;
            match Span::of(&path, &self.counts) {
                Some(span) => spans.push(span),
                None => everything = true,
            }
        }
        if spans.is_empty() && !everything {
            return Ok(());
        }
        self.go(vec![Task {
            spans: Some(spans).filter(|_| !everything),
            catch: true,
            alone: false,
        }])
    }

    /// What waits for processes, for what comes between two walks.
    pub fn supervisor(&mut self) -> &mut Supervisor {
        self.supervisor
    }

    /// What every target has given, in the order of the attributes.
    #[must_use]
    pub fn evaluated(&self) -> EvaluationResult {
        let mut evaluated = EvaluationResult {
            nix: self.nix.clone(),
            callable: self.callable.iter().map(|path| self.attr(path).0).collect(),
            overlooked: self.overlooked.clone(),
            ..EvaluationResult::default()
        };
        for (path, outcome) in &self.outcomes {
            match outcome {
                AttrOutcome::Found(found) => evaluated.found.push(found.clone()),
                AttrOutcome::Broken(broken) => evaluated.broken.push(broken.clone()),
                AttrOutcome::Refused(broken) => evaluated.refused.push(broken.clone()),
                AttrOutcome::Throws { in_meta } => {
                    let attr = self.attr(path).0;
                    let (list, message) = if *in_meta {
                        (&mut evaluated.refused, Some("its metadata throws".into()))
                    } else {
                        (&mut evaluated.broken, None)
                    };
                    list.push(AttrError { attr, message });
                }
            }
        }
        evaluated
    }

    /// Says in one line what was evaluated.
    pub fn say_summary(&self) {
        self.log.say(self.progress.summary(self.outcomes.len()));
    }

    /// Finds out what the first attributes say that throw: each costs a process that does not catch it.
    fn explain(&mut self) -> Result<(), Failure> {
        let broken = self
            .outcomes
            .iter()
            .filter(|(_, outcome)| !matches!(outcome, AttrOutcome::Found(_)));
        let throws: Vec<AttrIndex> = broken
            .take(EXPLAINED)
            .filter(|(_, outcome)| matches!(outcome, AttrOutcome::Throws { .. }))
            .map(|(path, _)| path.clone())
            .collect();
        let tasks = throws.iter().filter_map(|path| {
            Some(Task {
                spans: Some(vec![Span::of(path, &self.counts)?]),
                catch: false,
                alone: false,
            })
        });
        let tasks = tasks.collect();
        self.go(tasks)
    }

    /// Finds out what was not looked at.
    fn overlook(&mut self) -> Result<(), Failure> {
        let exclude = &self.request.exclude;
        let mut told = Overlooked::default();
        for (path, names) in &self.beside {
            for name in names {
                let mut whole = self.attr(path).0.names().to_vec();
                whole.push(name.clone());
                let attr = AttrPath::new(whole);
                let by = walk::excluding(&attr, exclude);
                if !by.is_empty() {
                    self.effective.extend(by);
                } else if *path == AttrIndex::default() {
                    told.outputs.push(name.clone());
                } else {
                    told.systems.insert(name.clone());
                }
            }
        }
        told.system = self
            .systems
            .iter()
            .flatten()
            .last()
            .cloned()
            .unwrap_or_default();
        if self.effective.len() < exclude.len() {
            let known: Vec<AttrPath> = self.names.keys().map(|path| self.attr(path).0).collect();
            let broken: BTreeSet<AttrPath> = self
                .outcomes
                .iter()
                .filter(|(_, outcome)| !matches!(outcome, AttrOutcome::Found(_)))
                .map(|(path, _)| self.attr(path).0)
                .collect();
            told.exclusions = overlooked::without_effect(
                exclude,
                &self.effective,
                &self.request.root.attr,
                &known,
                |attr| broken.contains(attr),
            );
        }
        let holding = self.look()?;
        told.sets = holding.iter().map(|path| self.attr(path).0).collect();
        self.overlooked = told;
        Ok(())
    }

    /// Which of the sets that were passed hold derivations. It is not worth a build, nor much time or memory, and nothing that
    /// fails in there matters: so it is a process of its own, and its answers are those that came in time.
    fn look(&mut self) -> Result<Vec<AttrIndex>, Failure> {
        let mut left: Vec<AttrIndex> = self.passed.iter().take(LOOKED_AT).cloned().collect();
        let mut holding = Vec::new();
        let until = Instant::now() + self.progress.took().clamp(LOOK_AT_LEAST, LOOK_AT_MOST);
        let mut attempts = 0;
        while !left.is_empty() && attempts < ATTEMPTS && Instant::now() < until {
            attempts += 1;
            let answered = match self.look_at(&left, until) {
                Ok(answered) => answered,
                Err(failure) if matches!(failure.class, Class::Signal(_)) => return Err(failure),
                Err(_) => break,
            };
            holding.extend(
                answered
                    .iter()
                    .filter(|(_, holds)| *holds)
                    .map(|(path, _)| path.clone()),
            );
            // The next one is what it has died of.
            left.drain(..(answered.len() + 1).min(left.len()));
        }
        Ok(holding)
    }

    /// Asks a process about these sets, in their order, until it ends.
    fn look_at(
        &mut self,
        sets: &[AttrIndex],
        until: Instant,
    ) -> Result<Vec<(AttrIndex, bool)>, Failure> {
        let task = Task {
            spans: Some(
                sets.iter()
                    .filter_map(|path| Span::of(path, &self.counts))
                    .collect(),
            ),
            catch: true,
            alone: false,
        };
        let mut options = self.request.options.clone();
        options.push(("allow-import-from-derivation".into(), "false".into()));
        let line = self.line(&task, true, &options);
        let mut running = [self.supervisor.start(&line, OnStop::TermThenKill)?];
        let part = self.part(&task);
        let mut answered = Vec::new();
        let mut rest: Vec<u8> = Vec::new();
        while running[0].ended.is_none() {
            let mut said: Vec<u8> = Vec::new();
            let tick = Some(Instant::now() + TICK);
            self.supervisor
                .watch(&mut running, tick, |_, bytes| said.extend_from_slice(bytes))?;
            rest.extend(said);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                if let Some(WalkerMessage::Holds(path, holds)) =
                    walk::read(&line[..end], &self.marker)
                {
                    answered.push((path, holds));
                }
            }
            let resident = memory::resident(&[running[0].id()], self.supervisor);
            let large = resident.first().copied().flatten() > Some(part / 20 * 19);
            if (large || Instant::now() >= until) && !running[0].is_stopping() {
                running[0].stop(TOO_LARGE);
            }
        }
        self.supervisor.check()?;
        Ok(answered)
    }

    // ---- processes

    fn go(&mut self, tasks: Vec<Task>) -> Result<(), Failure> {
        self.pending = tasks;
        let mut workers: Vec<Worker> = Vec::new();
        let mut running: Vec<Running> = Vec::new();
        let gone = self.until_all_are_done(&mut workers, &mut running);
        self.progress.clear();
        if gone.is_err() {
            // What is wrong with one is wrong with all.
            for one in &mut running {
                one.stop(TOO_LONG);
            }
            while running.iter().any(|one| one.ended.is_none()) {
                self.supervisor.watch(&mut running, None, |_, _| {})?;
            }
        }
        self.supervisor.check()?;
        gone
    }

    fn until_all_are_done(
        &mut self,
        workers: &mut Vec<Worker>,
        running: &mut Vec<Running>,
    ) -> Result<(), Failure> {
        let mut measure = Instant::now();
        let mut tick = TICK;
        loop {
            if self.supervisor.is_stopped() {
                if running.is_empty() {
                    return Ok(());
                }
            } else {
                self.start(workers, running)?;
                if running.is_empty() {
                    return Ok(());
                }
                // Not whenever one says something: with light targets that is thousands of times a second.
                if measure <= Instant::now() {
                    tick = if self.measure(workers, running) {
                        CLOSE_TICK
                    } else {
                        TICK
                    };
                    measure = Instant::now() + tick;
                }
            }
            let mut nix_output: Vec<(usize, Vec<u8>)> = Vec::new();
            self.supervisor
                .watch(running, Some(Instant::now() + tick), |number, bytes| {
                    nix_output.push((number, bytes.to_vec()));
                })?;
            if !nix_output.is_empty() {
                self.supervisor.breathe();
            }
            for (number, bytes) in nix_output {
                self.hear(&mut workers[number], &mut running[number], &bytes)?;
            }
            let mut number = 0;
            while number < running.len() {
                if let Some(ending) = running[number].ended {
                    let worker = workers.swap_remove(number);
                    running.swap_remove(number);
                    if !self.supervisor.is_stopped() {
                        self.ended(worker, ending)?;
                    }
                } else {
                    number += 1;
                }
            }
            self.progress.show(self.outcomes.len());
        }
    }

    /// Starts what is to be done, as far as there is room.
    fn start(
        &mut self,
        workers: &mut Vec<Worker>,
        running: &mut Vec<Running>,
    ) -> Result<(), Failure> {
        while running.len() < self.workers && !workers.iter().any(|worker| worker.task.alone) {
            let task = match self.pending.pop() {
                // It waits for the others to end.
                Some(task) if task.alone && !running.is_empty() => {
                    let other = self.pending.iter().position(|task| !task.alone);
                    let other = other.map(|other| self.pending.remove(other));
                    self.pending.push(task);
                    other
                }
                Some(task) => Some(task),
                None => self.take_over(workers, running),
            };
            let Some(task) = task else { break };
            running.push(self.start_one(&task)?);
            workers.push(Worker::new(task));
        }
        Ok(())
    }

    fn start_one(&mut self, task: &Task) -> Result<Running, Failure> {
        let line = self.line(task, false, &self.request.options);
        self.supervisor
            .start(&line, OnStop::TermThenKill)
            .map_err(class::not_started)
    }

    /// The command line of a process that walks, or only looks.
    fn line(&self, task: &Task, look: bool, options: &command::Options) -> CommandLine {
        let settings = WalkerSettings {
            marker: &self.marker,
            start: task.spans.as_deref(),
            exclude: &self.exclude,
            all: self.request.recurse == Recurse::All,
            systems: self.systems.as_deref(),
            buildkite: self.request.meta,
            catch: task.catch,
            look,
        };
        // Beginning with much makes evaluation 1.5 to 1.9 times faster: the collector of the evaluator comes seldom.
        let heap = memory::heap((self.part(task) / 2).min(1000 * MIB));
        command::walk(
            &self.request.root,
            &settings.json(),
            self.locked.as_ref(),
            heap,
            options,
        )
    }

    /// What of the memory is this task's, in bytes.
    fn part(&self, task: &Task) -> u64 {
        if task.alone {
            self.budget
        } else {
            self.budget / self.workers as u64
        }
    }

    /// Takes the later half of what the process has before it that will need longest, if that is worth a process.
    fn take_over(&self, workers: &mut [Worker], running: &[Running]) -> Option<Task> {
        let busy = workers.iter_mut().zip(running).filter(|(worker, one)| {
            worker.fate.is_none() && !one.is_stopping() && !worker.task.alone && worker.task.catch
        });
        let (_, worker, left) = busy
            .filter_map(|(worker, _)| {
                let (each, start) = worker.pace()?;
                let left = worker.left(&self.counts);
                let needed = each * u32::try_from(spans::length(&left)).unwrap_or(u32::MAX);
                (needed > start * 2).then_some((needed, worker, left))
            })
            .max_by_key(|(needed, _, _)| *needed)?;
        let (_, taken) = spans::split(&left);
        worker.until = spans::start(&taken);
        Some(Task {
            spans: Some(taken),
            catch: true,
            alone: false,
        })
    }

    /// Stops the processes that have too much memory, or take too long. Says whether one comes close to having too much.
    fn measure(&mut self, workers: &mut [Worker], running: &mut [Running]) -> bool {
        let processes: Vec<u32> = running.iter().map(Running::id).collect();
        let resident = if self.budget == u64::MAX {
            vec![None; processes.len()]
        } else {
            memory::resident(&processes, self.supervisor)
        };
        let mut close = false;
        for ((worker, one), resident) in workers.iter_mut().zip(running).zip(resident) {
            if worker.fate.is_some() {
                continue;
            }
            // A little less than its part: it goes on growing until it is gone.
            let part = self.part(&worker.task);
            close |= resident.is_some_and(|resident| resident > part / 2);
            if resident.is_some_and(|resident| resident > part / 20 * 19) {
                worker.fate = Some(WorkerEnd::TooLarge);
                one.stop(TOO_LARGE);
            }
            let timeout = self.request.evaluation_timeout;
            if timeout.is_some_and(|timeout| worker.last.elapsed() > timeout) {
                worker.fate = Some(WorkerEnd::TooLong);
                one.stop(TOO_LONG);
            }
        }
        close
    }

    // ---- what they say

    fn hear(
        &mut self,
        worker: &mut Worker,
        running: &mut Running,
        bytes: &[u8],
    ) -> Result<(), Failure> {
        worker.last = Instant::now();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            worker.line.extend_from_slice(part);
            if !part.ends_with(b"\n") {
                break;
            }
            let line = std::mem::take(&mut worker.line);
            if let Some(said) = walk::read(&line[..line.len() - 1], &self.marker) {
                self.said(worker, running, said)?;
            } else {
                self.other(worker, &line);
            }
        }
        Ok(())
    }

    /// A line that is Nix's own or the expression's: the log's, unless it may be Nix's last word.
    fn other(&mut self, worker: &mut Worker, line: &[u8]) {
        let error = || message::is_begin(&without_escapes(&String::from_utf8_lossy(line)));
        worker.listen(line);
        if worker.last_words.is_empty() && !error() {
            self.progress.pass_on(line);
        } else if worker.last_words.len() < MESSAGE_AT_MOST * 8 {
            worker.last_words.extend_from_slice(line);
        }
    }

    fn said(
        &mut self,
        worker: &mut Worker,
        running: &mut Running,
        said: WalkerMessage,
    ) -> Result<(), Failure> {
        if worker
            .fate
            .is_some_and(|fate| fate != WorkerEnd::TooLarge && fate != WorkerEnd::TooLong)
        {
            return Ok(());
        }
        // They were not its last, then.
        worker.went_on();
        self.progress
            .pass_on(&std::mem::take(&mut worker.last_words));
        match said {
            WalkerMessage::Begin(path, name) => {
                if worker.until.as_ref().is_some_and(|until| path >= *until) {
                    worker.fate = Some(WorkerEnd::Overtaken);
                    running.stop(OVERTAKEN);
                    return Ok(());
                }
                if !name.is_utf8 {
                    self.names.insert(path.clone(), name.clone());
                    self.break_at(&path, Some("its name is not UTF-8".into()));
                }
                self.names.insert(path.clone(), name);
                worker.first.get_or_insert_with(Instant::now);
                worker.begun += 1;
                worker.in_meta = false;
                worker.place = Some(Position::At(path));
                self.progress.begun += 1;
            }
            WalkerMessage::Meta(_) => worker.in_meta = true,
            WalkerMessage::Out(path, by, name) => {
                self.names.insert(path, name);
                self.effective.extend(by);
                self.progress.begun += 1;
            }
            WalkerMessage::Pass(path) => {
                self.passed.insert(path);
            }
            WalkerMessage::Beside(path, names) => {
                self.beside.insert(path, names);
            }
            WalkerMessage::Call(path) => {
                self.callable.insert(path);
            }
            // What only a process says that looks.
            WalkerMessage::Holds(..) => {}
            WalkerMessage::Set(path, count) => {
                if self.counts.insert(path.clone(), count).is_none() {
                    self.progress.known += u64::from(count);
                }
                worker.place = Some(Position::Entered(path));
            }
            WalkerMessage::Target(path, described) => self.target(path, described),
            WalkerMessage::Broken(path) => {
                let in_meta = worker.in_meta;
                self.outcomes
                    .entry(path)
                    .or_insert(AttrOutcome::Throws { in_meta });
            }
            WalkerMessage::Refused(path, why) => self.refuse_at(&path, why),
            WalkerMessage::Error(path, why) => self.break_at(&path, Some(why)),
            WalkerMessage::Deep(path) => {
                worker.fate = Some(WorkerEnd::GivenUp);
                let mut names = self.attr(&path).0.names().to_vec();
                names.truncate(self.request.root.attr.names().len() + 6);
                return Err(Failure::new(
                    Class::Evaluation,
                    format_args!(
                        "the sets below {} go round in a circle, or never end",
                        AttrPath::new(names)
                    ),
                )
                .hint(match self.request.recurse {
                    Recurse::All => "leave it out with `exclude`, or look only into marked sets (`recurse: marked`)",
                    Recurse::Marked => {
                        "leave it out with `exclude`, or do not mark it with `recurseForDerivations`"
                    }
                }));
            }
            WalkerMessage::No(what) => {
                return Err(Failure::new(
                    Class::Evaluation,
                    format_args!(
                        "{} is a {what}, in which there are no targets",
                        describe(self.request)
                    ),
                ));
            }
            WalkerMessage::End(version) => {
                worker.done = true;
                self.nix = version;
            }
        }
        Ok(())
    }

    fn target(&mut self, path: AttrIndex, described: Result<walk::DescribedTarget, String>) {
        let (attr, is_utf8) = self.attr(&path);
        let read = described.and_then(|described| {
            let drv = DrvPath::parse(&described.drv)
                .map_err(|wrong| format!("its drvPath {wrong}: {:?}", described.drv))?;
            Ok((drv, described.meta.read()?, described.named))
        });
        match read {
            _ if !is_utf8 => self.break_at(&path, Some("its name is not UTF-8".into())),
            Ok((drv, meta, named)) => {
                if named {
                    self.named.insert(path.clone());
                }
                self.put(path, AttrOutcome::Found(FoundTarget { attr, drv, meta }));
            }
            Err(wrong) => self.refuse_at(&path, wrong),
        }
    }

    fn refuse_at(&mut self, path: &AttrIndex, message: String) {
        let refused = AttrError {
            attr: self.attr(path).0,
            message: Some(message),
        };
        self.put(path.clone(), AttrOutcome::Refused(refused));
    }

    fn break_at(&mut self, path: &AttrIndex, message: Option<String>) {
        let attr = self.attr(path).0;
        self.put(
            path.clone(),
            AttrOutcome::Broken(AttrError { attr, message }),
        );
    }

    /// Notes what has become of an attribute. The last word counts: one that throws may not throw when it is asked why.
    fn put(&mut self, path: AttrIndex, outcome: AttrOutcome) {
        self.outcomes.insert(path, outcome);
    }

    /// The full attribute path, and whether all its names are UTF-8.
    fn attr(&self, path: &AttrIndex) -> (AttrPath, bool) {
        let mut names = self.request.root.attr.names().to_vec();
        let mut is_utf8 = true;
        for part in path.with_parents().skip(1) {
            if let Some(name) = self.names.get(&part) {
                names.push(name.text.clone());
                is_utf8 &= name.is_utf8;
            }
        }
        (AttrPath::new(names), is_utf8)
    }

    // ---- how they end

    fn ended(&mut self, mut worker: Worker, ending: Ending) -> Result<(), Failure> {
        let rest = std::mem::take(&mut worker.line);
        if !rest.is_empty() {
            worker.listen(&rest);
        }
        worker.last_words.extend(rest);
        match worker.fate {
            Some(WorkerEnd::Overtaken | WorkerEnd::GivenUp) => Ok(()),
            // That an attribute throws is known already; what it says, its step will say.
            Some(WorkerEnd::TooLarge | WorkerEnd::TooLong) if !worker.task.catch => Ok(()),
            _ if worker.done && ending.success() => {
                self.progress.pass_on(&worker.last_words);
                Ok(())
            }
            Some(WorkerEnd::TooLarge) => self.too_large(worker),
            // The system's own way to say the same.
            None if ending == Ending::Killed(9) => self.too_large(worker),
            Some(WorkerEnd::TooLong) => {
                let seconds = self
                    .request
                    .evaluation_timeout
                    .unwrap_or_default()
                    .as_secs();
                let message = format!("it took longer than {seconds} s (evaluation-timeout)");
                self.go_on_behind(&worker, message)
            }
            None => self.died(worker, ending),
        }
    }

    /// A process that has died by itself: of its attribute, unless something else is to blame.
    fn died(&mut self, mut worker: Worker, ending: Ending) -> Result<(), Failure> {
        let nix_output = worker.nix_output();
        let message = message_of(&nix_output, ending);
        let class = class::of(Phase::Evaluating, ending, &nix_output);
        let at = worker.place.as_ref().map(|place| place.path().clone());
        let at = at.unwrap_or_default();
        // An expression is not to blame where the store is dead.
        store_answers(&self.request.options, self.supervisor)?;
        let doubtful = class::is_worth_another_try(class);
        let again = (at.clone(), worker.task.catch);
        let before = self.doubted.contains(&again) || self.disturbed.contains_key(&at);
        // Nothing catches what the root throws; and who is not caught below it has been found to throw before.
        let is_suspect = doubtful || nix_output.disturbance().is_some();
        let is_its_own = is_suspect
            && before
            && (!worker.task.catch || at == AttrIndex::default() && self.throws()?);
        if !is_its_own && matches!(class, Class::Evaluation | Class::Infrastructure) {
            let disturbance = nix_output.disturbance();
            let daemon = disturbance == Some(Disturbance::Daemon);
            let disturbed = match disturbance {
                Some(Disturbance::Daemon) => true,
                // Who is not caught has been found to throw: these are its own words.
                Some(Disturbance::Gone(_)) if !worker.task.catch => false,
                Some(Disturbance::Gone(path)) => {
                    let valid = self.is_valid(&path)?;
                    // Something has registered it meanwhile. Once: an expression may say the same of a path that was always there.
                    if valid && self.doubted.insert(again.clone()) {
                        self.log.say(format_args!(
                            "{path} was missing during the evaluation, and is valid now: doing it again"
                        ));
                        self.do_again(worker);
                        return Ok(());
                    }
                    !valid && !nix_output.is_of_named_path() && !self.is_named(&at, path)
                }
                None => false,
            };
            if disturbed {
                self.note_disturbance(&at, daemon, &message)?;
                self.do_again(worker);
                return Ok(());
            }
        }
        // Whatever the class: another try would not make that folder. But an expression may name a path in it as well, and one that
        // is not caught has thrown before.
        if worker.task.catch
            && !nix_output.is_expressions_own()
            && let Some(failure) = host::no_temporary_folder(self.temporary, &message)
        {
            return Err(failure);
        }
        if doubtful && !is_its_own && self.doubted.insert(again) {
            self.log.say(format_args!(
                "{}: {}; evaluating it once more",
                self.name_of(&at),
                in_one_line(&message)
            ));
            self.do_again(worker);
            return Ok(());
        }
        if class == Class::Infrastructure && !is_its_own {
            let what = format!("{} was not evaluated", self.name_of(&at));
            return Err(surroundings(what, &nix_output, &message));
        }
        self.go_on_behind(&worker, message)
    }

    /// Whether an attribute has missed the same path each time it was evaluated, and no evaluation makes that path: then the
    /// expression names it, and not the collector has taken it. Nix 2.8 does not say so.
    fn is_named(&mut self, at: &AttrIndex, path: StorePath) -> bool {
        if *at == AttrIndex::default() || DrvPath::parse(path.as_str()).is_ok() {
            return false;
        }
        let (missed, times) = self
            .missed
            .entry(at.clone())
            .or_insert_with(|| (path.clone(), 0));
        if *missed != path {
            (*missed, *times) = (path, 0);
        }
        *times += 1;
        *times >= ATTEMPTS
    }

    /// Whether the root throws.
    fn throws(&mut self) -> Result<bool, Failure> {
        let line = command::catch(
            &self.request.root,
            self.locked.as_ref(),
            &self.request.options,
        );
        let caught = self
            .supervisor
            .run(&line, OnStop::TermThenKill, &mut io::sink())?;
        Ok(caught.text().trim() == "false")
    }

    /// The attribute, or what is evaluated.
    fn name_of(&self, path: &AttrIndex) -> String {
        match self.attr(path).0 {
            attr if attr.names().is_empty() => describe(self.request),
            attr => attr.to_string(),
        }
    }

    /// The attribute that a process was at is broken; another process goes on behind it.
    fn go_on_behind(&mut self, worker: &Worker, message: String) -> Result<(), Failure> {
        let Some(place) = &worker.place else {
            return Err(self.nothing_evaluates(&message));
        };
        let path = place.path().clone();
        if path == AttrIndex::default() {
            return Err(self.nothing_evaluates(&message));
        }
        // What it has become stands; then it died on the way to the next.
        if !matches!(self.outcomes.get(&path), Some(AttrOutcome::Found(_))) {
            if worker.in_meta {
                self.refuse_at(&path, message);
            } else {
                self.break_at(&path, Some(message));
            }
        }
        // A set whose attributes cannot even be begun has none.
        let left = worker.behind(&Position::At(path), &self.counts);
        self.put_back(left, &worker.task);
        Ok(())
    }

    fn nothing_evaluates(&self, message: &str) -> Failure {
        let sentence = in_one_line(message);
        let failure = Failure::new(
            Class::Evaluation,
            format_args!("{} does not evaluate: {sentence}", describe(self.request)),
        );
        if message.contains("without required argument")
            || message.contains("argument without a value")
        {
            return failure.hint("give a function's arguments under `arg` or `argstr`");
        }
        match self.request.root.hint_at(message) {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }

    /// A process that was beyond its part of the memory.
    fn too_large(&mut self, worker: Worker) -> Result<(), Failure> {
        let part = self.part(&worker.task) / MIB;
        let alone = worker.task.alone || self.workers == 1;
        match worker.begun {
            // The kernel has killed it, and not we.
            0 if alone && worker.fate.is_none() => Err(Failure::new(
                Class::Signal(9),
                format_args!("evaluating {} was killed", describe(self.request)),
            )
            .hint("the kernel kills with signal 9 when memory runs out")),
            0 if alone => Err(Failure::new(
                Class::Evaluation,
                format_args!(
                    "{} needs more memory than the {part} MiB there are for it",
                    describe(self.request)
                ),
            )
            .hint("give evaluation more with `memory`, or run it where there is more")),
            0 => {
                self.workers -= 1;
                self.log.say(format_args!(
                    "evaluating the root alone needs more than {part} MiB: going on with {} process{}",
                    self.workers,
                    if self.workers == 1 { "" } else { "es" }
                ));
                self.do_again(worker);
                Ok(())
            }
            1 if alone => self.go_on_behind(
                &worker,
                format!("it needs more memory than the {part} MiB there are for evaluation"),
            ),
            1 => {
                // It alone was too much: it gets everything, and the rest goes on without it.
                let Some(place) = worker.place.as_ref().map(|place| place.path().clone()) else {
                    return Ok(());
                };
                let left = worker.behind(&Position::At(place.clone()), &self.counts);
                self.put_back(left, &worker.task);
                self.progress.begun -= 1;
                if let Some(span) = Span::of(&place, &self.counts) {
                    let spans = Some(vec![span]);
                    self.pending.insert(
                        0,
                        Task {
                            spans,
                            alone: true,
                            catch: worker.task.catch,
                        },
                    );
                }
                Ok(())
            }
            _ => {
                // What came before it took the memory.
                self.do_again(worker);
                Ok(())
            }
        }
    }

    /// Does again what a process was at, and what it had before it.
    fn do_again(&mut self, worker: Worker) {
        let Some(place) = &worker.place else {
            self.pending.push(worker.task);
            return;
        };
        if *place.path() == AttrIndex::default() && *place == Position::At(AttrIndex::default()) {
            self.pending.push(worker.task);
            return;
        }
        let left = worker.behind(place, &self.counts);
        let left = match place {
            Position::At(_) => at_and_behind(place, left, &self.counts),
            Position::Entered(_) => left,
        };
        if let Position::At(_) = place {
            self.progress.begun -= 1;
        }
        self.put_back(left, &worker.task);
    }

    fn put_back(&mut self, left: Vec<Span>, task: &Task) {
        if !left.is_empty() {
            self.pending.push(Task {
                spans: Some(left),
                ..task.clone()
            });
        }
    }

    /// Counts that an attribute was disturbed: by a daemon that went away, as Nix says in its `message`, or by the collector.
    fn note_disturbance(
        &mut self,
        path: &AttrIndex,
        daemon: bool,
        message: &str,
    ) -> Result<(), Failure> {
        let times = self.disturbed.entry(path.clone()).or_default();
        *times += 1;
        let is_last = *times == ATTEMPTS;
        let what = self.name_of(path);
        if !is_last && daemon {
            // Whether a daemon went away, or the expression says so, is found out by that.
            let message = in_one_line(message);
            self.log
                .say(format_args!("{what}: {message}; evaluating it once more"));
        } else if !is_last {
            self.log.say(format_args!(
                "the garbage collector took what was being evaluated: doing it again"
            ));
        }
        if !is_last {
            return Ok(());
        }
        if daemon {
            let message = in_one_line(message);
            return Err(Failure::new(
                Class::Infrastructure,
                format_args!("the Nix daemon went away {ATTEMPTS} times while {what} was evaluated: {message}"),
            )
            .hint("was it restarted, or killed for want of memory? The recording can be tried again"));
        }
        Err(Failure::new(
            Class::Infrastructure,
            format_args!("the garbage collector disturbed the evaluation of {what} {ATTEMPTS} times"),
        )
        .hint("let the collector run less often, or while no job runs; from Nix 2.35 on it leaves what is in use alone"))
    }

    fn is_valid(&mut self, path: &StorePath) -> Result<bool, Failure> {
        let line = command::check_validity(path, &self.request.options);
        let finished = self
            .supervisor
            .run(&line, OnStop::TermThenKill, &mut io::sink())?;
        Ok(finished.ending.success() && finished.stdout.is_empty())
    }
}

/// The attribute that a walk stands at, and what is behind it.
fn at_and_behind(place: &Position, behind: Vec<Span>, counts: &ChildCounts) -> Vec<Span> {
    let at = Span::of(place.path(), counts);
    at.into_iter().chain(behind).collect()
}

/// What is evaluated, for a sentence about it.
pub(in crate::recording) fn describe(request: &RecordingRequest) -> String {
    let source = match &request.root.source {
        Source::File(name) | Source::Flake(name) => name.clone(),
        Source::Expr(_) => "the expression".into(),
    };
    if request.root.attr.names().is_empty() {
        source
    } else {
        format!("{} of {source}", request.root.attr)
    }
}

/// A word that no repository can guess.
fn marker() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| io::Read::read_exact(&mut file, &mut bytes))
        .classify(Class::Infrastructure, || "cannot read /dev/urandom".into())?;
    Ok(format!("eval-once:{:032x}", u128::from_ne_bytes(bytes)))
}
