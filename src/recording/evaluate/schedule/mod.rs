//! The schedule: what waits for a worker, which worker evaluates what, how much memory it may use, and how many workers there are.
//!
//! A worker is a process that is given one task after the other. Each has to evaluate the root first, and what the attributes have
//! in common, so that another one is started only if it pays (`estimate`). Tasks are cut from what waits (`waiting`): small at
//! first, then so that each takes about half a second.
//!
//! A plain value, which knows no process, no clock and no file: the time since the start of the walk and what a process uses are
//! passed in. Why a task ended is decided by `diagnosis`; what follows for the rest of it is done by [`Schedule::ended`].

mod assignment;
mod estimate;
mod settling;
mod task;
mod waiting;
mod worker;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use self::assignment::{Assignment, Queue};
use self::estimate::{Curve, Remaining, as_float};
use self::waiting::WaitingSpans;
use self::worker::{Stage, WorkerState};
use super::spans::{AttrIndex, ChildCounts, Span};

pub(in crate::recording) use self::estimate::Costs;
pub(super) use self::task::{LineEnd, MemoryShare, Next, Task, WorkerId};

/// How long a task should take, in seconds.
const TASK: f64 = 0.5;

/// A task is not cut shorter than this for the sake of an even end, in seconds: between two tasks a worker is idle for some
/// milliseconds.
const SHORT_TASK: f64 = 0.2;

/// The first task has this many attributes, and a later one at most so many times as many as are known.
const FIRST_TASK: u64 = 2;
const NEXT_TASK: u64 = 7;

/// How long attributes have to be measured before that counts, in seconds: what the first ones have in common is not known before.
const EVIDENCE: f64 = 1.0;

/// Of how many attributes at least a tenth has to be measured before that counts more than what is remembered.
const REMEMBERED_UNTIL: f64 = 4.0;

/// From how many levels on sets are walked one after the other: the next one that is found is walked before its neighbours. Sets that
/// are nested so deeply often contain themselves. Then the walk has to come to the end of one path soon, and not to that of thousands
/// of paths at the same time.
const DEEP: usize = 12;

/// What waits, and the workers.
#[derive(Debug)]
pub(super) struct Schedule {
    /// How many workers there may be at most.
    most: usize,
    /// A worker has one task: all that waits.
    one_task: bool,
    /// How many share the memory now.
    allowed: usize,
    /// The memory for all workers together, in bytes; [`u64::MAX`] where it has no limit.
    budget: u64,
    remembered: Option<Costs>,
    /// How many attributes the sets have that were found.
    counts: ChildCounts,
    root_waits: bool,
    /// Tasks for new workers, which come first.
    repetitions: VecDeque<Task>,
    waiting: WaitingSpans,
    /// Attributes that need all the memory, which come last.
    alone: VecDeque<Task>,
    /// The sets that were given up.
    dropped: BTreeSet<AttrIndex>,
    workers: BTreeMap<WorkerId, WorkerState>,
    /// How many workers there have been.
    started: u32,
    /// How many attributes of tasks have begun.
    seen: u64,
    /// The time from the start of a worker to its first attribute, in seconds.
    root: Option<f64>,
    /// Of the workers that have ended, what was measured of that with the most attributes.
    times: Curve,
    memory: Curve,
    /// The memory of a worker that has evaluated the root, and no attribute of a task: only the one that finds the attributes waits then.
    base: Option<f64>,
    /// How many names the sets have that were found.
    known: u64,
    /// How many of them have begun.
    begun: u64,
}

impl Schedule {
    /// At most so many workers, and so much memory for all of them, in bytes ([`u64::MAX`]: unlimited). `remembered`: what the same
    /// walk cost last time.
    pub(super) fn new(most: usize, budget: u64, remembered: Option<Costs>) -> Self {
        Self {
            most: most.max(1),
            one_task: false,
            allowed: 1,
            budget,
            remembered: remembered.filter(Costs::is_plausible),
            counts: ChildCounts::new(),
            root_waits: false,
            repetitions: VecDeque::new(),
            waiting: WaitingSpans::default(),
            alone: VecDeque::new(),
            dropped: BTreeSet::new(),
            workers: BTreeMap::new(),
            started: 0,
            seen: 0,
            root: None,
            times: Curve::default(),
            memory: Curve::default(),
            base: None,
            known: 0,
            begun: 0,
        }
    }

    /// Each worker has one task from now on, so that it is all that waits.
    pub(super) fn one_task_each(&mut self) {
        self.one_task = true;
    }

    /// Replaces what waits. Idle workers stay.
    pub(super) fn plan(&mut self, tasks: Vec<Task>) {
        self.root_waits = false;
        self.repetitions.clear();
        self.waiting = WaitingSpans::default();
        self.alone.clear();
        self.dropped.clear();
        for task in tasks {
            match task.spans {
                None => {
                    self.root_waits = true;
                    self.counts.clear();
                    (self.known, self.begun) = (0, 0);
                }
                Some(_) if task.catch => self.repetitions.push_back(task),
                Some(spans) => spans.into_iter().for_each(|span| self.waiting.insert(span)),
            }
        }
    }

    // ---- what there is

    /// How many workers share the memory now.
    pub(super) fn most(&self) -> usize {
        self.allowed.max(self.workers.len())
    }

    /// Whether the memory is limited.
    pub(super) fn has_memory_limit(&self) -> bool {
        self.budget != u64::MAX
    }

    /// The memory for one worker of as many as there may be, in bytes, beside processes that have `others`.
    pub(super) fn part_beside(&self, others: u64) -> u64 {
        let even = self.budget / self.most as u64;
        even.min(self.budget.saturating_sub(others))
    }

    /// Whether anything waits for a worker.
    pub(super) fn has_waiting(&self) -> bool {
        self.root_waits
            || !self.waiting.is_empty()
            || !self.repetitions.is_empty()
            || !self.alone.is_empty()
    }

    /// How much memory this worker may use, in bytes; [`u64::MAX`]: unlimited.
    pub(super) fn part(&self, worker: WorkerId) -> u64 {
        if self.budget == u64::MAX || self.workers.get(&worker).is_some_and(|one| one.alone) {
            return self.budget;
        }
        self.budget / self.most() as u64
    }

    /// Whether this worker has all the memory.
    pub(super) fn is_alone(&self, worker: WorkerId) -> bool {
        self.most() == 1 || self.workers.get(&worker).is_some_and(|one| one.alone)
    }

    /// How much of the memory this worker has now.
    pub(super) fn share(&self, worker: WorkerId) -> MemoryShare {
        MemoryShare {
            slots: self.most(),
            part: self.part(worker),
            has_all: self.is_alone(worker),
        }
    }

    /// How many workers there may be at most from now on.
    pub(super) fn at_most(&self) -> usize {
        self.most
    }

    /// The attribute that is being evaluated; before the first of a task, the root.
    pub(super) fn at(&self, worker: WorkerId) -> AttrIndex {
        self.assignment(worker)
            .map(Assignment::at)
            .unwrap_or_default()
    }

    /// How many attributes this worker has begun.
    pub(super) fn begun(&self, worker: WorkerId) -> u32 {
        self.workers.get(&worker).map_or(0, |one| one.begun)
    }

    /// What this worker evaluates.
    pub(super) fn task(&self, worker: WorkerId) -> Option<&Task> {
        self.assignment(worker).map(|assignment| &assignment.task)
    }

    /// Whether the metadata of the attribute is being evaluated, which is a derivation that evaluates.
    pub(super) fn is_in_meta(&self, worker: WorkerId) -> bool {
        self.assignment(worker)
            .is_some_and(|assignment| assignment.in_meta)
    }

    /// How many names have begun, and how many are known.
    pub(super) fn names(&self) -> (u64, u64) {
        (self.begun, self.known.max(self.begun))
    }

    /// The attribute alone; none for the root.
    pub(super) fn span(&self, path: &AttrIndex) -> Option<Span> {
        Span::of(path, &self.counts)
    }

    /// An attribute has to be evaluated again. Gives it alone; none for the root.
    pub(super) fn reopen(&mut self, path: &AttrIndex) -> Option<Span> {
        let span = self.span(path)?;
        self.begun = self.begun.saturating_sub(1);
        Some(span)
    }

    fn assignment(&self, worker: WorkerId) -> Option<&Assignment> {
        self.workers.get(&worker)?.assignment.as_ref()
    }

    fn is_busy(&self) -> bool {
        self.workers
            .values()
            .any(|worker| worker.assignment.is_some())
    }

    fn new_workers(&self) -> usize {
        self.workers
            .values()
            .filter(|worker| worker.is_new())
            .count()
    }

    // ---- what it costs

    /// What the walk costs; zeros where that is not known.
    pub(super) fn costs(&self) -> Costs {
        let costs = self.measured_costs().or(self.remembered);
        Costs {
            attributes: self.seen,
            ..costs.unwrap_or_default()
        }
    }

    /// The time for an attribute of a task, in seconds: of this worker, or of all.
    fn pace(&self, worker: &WorkerState) -> Option<f64> {
        let of_all = || self.most_measured(|one| &one.times, &self.times).usual();
        let remembered = || Some(self.remembered?.each);
        worker.times.usual().or_else(of_all).or_else(remembered)
    }

    /// What the walk costs, if enough was measured.
    fn measured_costs(&self) -> Option<Costs> {
        let times = self.most_measured(|one| &one.times, &self.times);
        let memory = self.most_measured(|one| &one.memory, &self.memory);
        let waiting = self.waiting.length();
        if !times.is_steady(as_float(waiting)) || times.quantity() < EVIDENCE {
            return None;
        }
        let each = times.predicted(as_float(waiting))?;
        // Without a limit, memory does not count.
        let growth = match memory.slope() {
            _ if self.budget == u64::MAX => 0.0,
            growth => growth?,
        };
        Some(Costs {
            attributes: waiting,
            root: self.root?,
            warm_up: times.rest(each),
            each,
            base: memory.rest(growth),
            growth,
        })
    }

    /// The curve with the most attributes.
    fn most_measured<'a>(
        &'a self,
        curve: impl Fn(&'a WorkerState) -> &'a Curve,
        ended: &'a Curve,
    ) -> &'a Curve {
        self.workers.values().map(curve).fold(ended, |most, curve| {
            if curve.attributes() > most.attributes() {
                curve
            } else {
                most
            }
        })
    }

    /// What remains; none before enough is known. What is remembered counts more than the first attributes, unless these contradict it:
    /// it is of all of them.
    fn remaining(&self) -> Option<Remaining> {
        let times = self.most_measured(|one| &one.times, &self.times);
        let waiting = self.waiting.length();
        let is_enough = times.attributes() >= REMEMBERED_UNTIL && times.is_tenth(as_float(waiting));
        let remembered = self.remembered.filter(|costs| costs.agree(times));
        let costs = match (remembered, self.measured_costs()) {
            (_, Some(measured)) if is_enough => measured,
            (Some(remembered), _) => {
                let is_root_known = self.counts.contains_key(&AttrIndex::default());
                let attributes = if is_root_known {
                    waiting
                } else {
                    remembered.attributes
                };
                Costs {
                    attributes,
                    ..remembered
                }
            }
            (None, measured) => measured?,
        };
        let budget = (self.budget != u64::MAX).then(|| as_float(self.budget));
        Some(Remaining { costs, budget })
    }

    // ---- workers

    /// A worker to start, if there is something for it to do and it pays. To be asked after any event, until there is none.
    pub(super) fn open(&mut self, now: Duration) -> Option<WorkerId> {
        if self.workers.values().any(|worker| worker.alone) {
            return None;
        }
        let waits = self.root_waits || !self.waiting.is_empty();
        let running = self.workers.len();
        let alone = running == 0 && !waits && self.repetitions.is_empty();
        let is_repetition_due =
            self.repetitions.len() > self.new_workers() && running < self.allowed;
        let opens = match running {
            0 => !alone || !self.alone.is_empty(),
            _ => is_repetition_due || self.another_pays(),
        };
        if !opens {
            return None;
        }
        self.allowed = self.allowed.max(running + 1);
        let worker = WorkerId(self.started);
        self.started += 1;
        let from_end = self
            .workers
            .values()
            .filter(|worker| worker.from_end)
            .count();
        let from_end = from_end * 2 < running;
        self.workers
            .insert(worker, WorkerState::new(alone, from_end, now));
        Some(worker)
    }

    /// Whether one worker more than are running pays. If it does not, those that are running share the memory.
    fn another_pays(&mut self) -> bool {
        let running = self.workers.len();
        let is_idle = |worker: &WorkerState| {
            worker.assignment.is_none() && !worker.closing && !worker.is_new()
        };
        let is_root_known = self.counts.contains_key(&AttrIndex::default());
        let is_root_next = !is_root_known && (self.root_waits || self.is_busy());
        let has_work = !self.waiting.is_empty() || is_root_next;
        if running >= self.most || !has_work || self.workers.values().any(is_idle) {
            return false;
        }
        let Some(remaining) = self.remaining() else {
            return false;
        };
        let memory: Vec<f64> = self
            .workers
            .values()
            .map(|worker| {
                let spans = worker
                    .assignment
                    .as_ref()
                    .and_then(|assignment| assignment.task.spans.as_deref());
                let evaluating: u64 = spans.unwrap_or_default().iter().map(Span::length).sum();
                let resident = worker.resident.filter(|_| worker.stage == Stage::Ready);
                let resident = resident.map_or(remaining.costs.base, as_float);
                resident + as_float(evaluating) * remaining.costs.growth
            })
            .collect();
        let full = remaining.full(running + 1);
        let fits = full.is_none_or(|full| memory.iter().all(|memory| *memory <= full));
        let pays = remaining.another_pays(&memory);
        if !pays && running < self.allowed {
            self.allowed = running;
        }
        pays && (fits || running < self.allowed)
    }

    /// What this idle worker does, which uses `resident` bytes.
    pub(super) fn next(&mut self, worker: WorkerId, resident: Option<u64>, now: Duration) -> Next {
        let Some(one) = self.workers.get_mut(&worker) else {
            return Next::End;
        };
        if one.assignment.is_some() {
            return Next::Wait;
        }
        if let Stage::Started(then) = one.stage {
            one.stage = Stage::New(now.saturating_sub(then));
        }
        one.resident = resident;
        if let Some(resident) = resident
            && one.stage == Stage::Ready
        {
            let resident = as_float(resident);
            if one.measured == 0 {
                self.base = Some(resident);
            } else if let Some(base) = self.base.filter(|_| one.memory.is_empty()) {
                one.memory.measure(0, base);
            }
            one.memory.measure(one.measured, resident);
        }
        if one.closing {
            return Next::End;
        }
        let (is_new, is_alone) = (one.is_new(), one.alone);
        let task = if is_alone {
            let task = if is_new { self.alone.pop_front() } else { None };
            task.map(|task| (task, Queue::Alone))
        } else if is_new && !self.repetitions.is_empty() {
            let task = self.repetitions.pop_front();
            task.map(|task| (task, Queue::Repetitions))
        } else if self.is_to_end(worker) {
            None
        } else if self.root_waits {
            self.root_waits = false;
            Some((Task::root(), Queue::Waiting))
        } else if !self.waiting.is_empty() {
            Some((self.cut(worker), Queue::Waiting))
        } else if !self.is_busy() && self.repetitions.is_empty() {
            None
        } else if is_new && !self.counts.contains_key(&AttrIndex::default()) {
            Some((Task::spans(Vec::new()), Queue::Waiting))
        } else {
            return Next::Wait;
        };
        let Some(one) = self.workers.get_mut(&worker) else {
            return Next::End;
        };
        let Some((task, queue)) = task else {
            one.closing = true;
            return Next::End;
        };
        if let Stage::New(start) = one.stage {
            one.stage = Stage::Root(now.saturating_sub(start));
        }
        one.assignment = Some(Assignment::new(task.clone(), queue));
        Next::Task(task)
    }

    /// Whether this idle worker has to make room for a new one.
    fn is_to_end(&self, worker: WorkerId) -> bool {
        let Some(one) = self.workers.get(&worker).filter(|one| !one.is_new()) else {
            return false;
        };
        let running = self.workers.len();
        if running > self.allowed
            || running >= self.allowed && self.repetitions.len() > self.new_workers()
        {
            return true;
        }
        one.begun > 0 && self.room(one).is_some_and(|room| room < 1.0)
    }

    /// How many attributes fit into the memory that is left to this worker; none without a limit.
    fn room(&self, worker: &WorkerState) -> Option<f64> {
        let resident = as_float(worker.resident?);
        let memory = self.most_measured(|one| &one.memory, &self.memory);
        let costs = match (memory.slope(), self.remembered) {
            (None, Some(remembered)) => remembered,
            (growth, _) => {
                let growth = growth.unwrap_or_default();
                Costs {
                    base: memory.rest(growth),
                    growth,
                    ..Costs::default()
                }
            }
        };
        let budget = (self.budget != u64::MAX).then(|| as_float(self.budget));
        let full = Remaining { costs, budget }.full(self.most())?;
        if resident >= full {
            return Some(0.0);
        }
        Some(((full - resident) / costs.growth.max(1.0)).max(1.0))
    }

    /// Cuts a task for this worker from what waits.
    fn cut(&mut self, worker: WorkerId) -> Task {
        let Some(one) = self.workers.get(&worker) else {
            return Task::spans(Vec::new());
        };
        let waiting = self.waiting.length();
        let next = self.waiting.next(one.from_end);
        let deep = next.filter(|span| span.at.depth() >= DEEP);
        let at_most = deep.map_or(waiting, Span::length);
        if self.one_task {
            return Task::spans(self.waiting.take(at_most, one.from_end));
        }
        let mut wanted = as_float((FIRST_TASK + NEXT_TASK * self.seen).min(at_most));
        let pace = self.pace(one);
        let within = |seconds: f64| pace.map(|pace| seconds / pace.max(1e-9));
        wanted = wanted.min(within(TASK).unwrap_or(f64::INFINITY));
        if self.most > 1 {
            // Each worker gets half of its share of what waits, so that all end at about the same time.
            let even = as_float(waiting.div_ceil(2 * self.most as u64));
            wanted = wanted.min(even.max(within(SHORT_TASK).unwrap_or_default()));
        }
        wanted = wanted.min(self.room(one).unwrap_or(f64::INFINITY)).max(1.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at least 1, and a cast to an integer is at most its maximum"
        )]
        let wanted = wanted as u64;
        Task::spans(self.waiting.take(wanted, one.from_end))
    }

    /// The process of an idle worker has ended.
    pub(super) fn gone(&mut self, worker: WorkerId) {
        let Some(one) = self.workers.remove(&worker) else {
            return;
        };
        for (ended, most) in [(one.times, &mut self.times), (one.memory, &mut self.memory)] {
            if ended.attributes() > most.attributes() {
                *most = ended;
            }
        }
    }

    // ---- progress of a task

    /// The evaluation of an attribute begins. Gives false if the worker has no such attribute in its task, or is already behind it.
    pub(super) fn begin(&mut self, worker: WorkerId, path: AttrIndex, now: Duration) -> bool {
        let Some(one) = self.workers.get_mut(&worker) else {
            return false;
        };
        one.measure(now);
        let assignment = one.assignment.as_mut();
        if !assignment.is_some_and(|assignment| assignment.begin(path, now)) {
            return false;
        }
        one.begun += 1;
        self.seen += 1;
        self.begun += 1;
        self.root_is_evaluated(worker, now);
        true
    }

    /// The root of this worker is evaluated, at the latest now.
    fn root_is_evaluated(&mut self, worker: WorkerId, now: Duration) {
        if let Some(one) = self.workers.get_mut(&worker)
            && let Stage::Root(since) = one.stage
        {
            one.stage = Stage::Ready;
            self.root = Some(now.saturating_sub(since).as_secs_f64());
        }
    }

    /// The attribute is a set of `count` attributes, which wait from now on.
    pub(super) fn set(&mut self, worker: WorkerId, path: AttrIndex, count: u32) {
        let one = self.workers.get_mut(&worker);
        let Some(assignment) = one.and_then(|one| one.assignment.as_mut()) else {
            return;
        };
        if !assignment.is_at(&path) {
            return;
        }
        assignment.is_set = true;
        // One that is evaluated again has attributes that wait already, or are evaluated.
        if self.counts.insert(path.clone(), count).is_none() {
            self.known += u64::from(count);
            self.wait(vec![Span {
                at: path,
                from: 0,
                to: count,
                count,
            }]);
        }
    }

    /// The evaluation of the attribute's metadata begins.
    pub(super) fn begin_meta(&mut self, worker: WorkerId) {
        let one = self.workers.get_mut(&worker);
        if let Some(assignment) = one.and_then(|one| one.assignment.as_mut()) {
            assignment.in_meta = true;
        }
    }

    /// An attribute is excluded.
    pub(super) fn exclude(&mut self) {
        self.begun += 1;
    }
}

#[cfg(test)]
mod properties;

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests;
