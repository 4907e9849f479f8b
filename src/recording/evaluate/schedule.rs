//! What is scheduled: which parts of the walk wait for a worker, which worker has which part, and how far it is in it.
//!
//! The first worker gets everything. One without a task takes over the later half of what another one still has before it, so
//! that the work is shared evenly and no worker starts for nothing: each has to evaluate the root anew.
//!
//! A plain value: it knows no process, and the time only as it is passed in. Why a worker ended is for `diagnosis` to find out;
//! what follows for the rest of the walk is one of the methods here.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::spans::{self, AttrIndex, ChildCounts, Position, Span};

/// A worker, for as long as it has its task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WorkerId(u32);

/// A part of the walk, for one worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Task {
    /// The attributes; none: the root, and everything below it.
    pub(super) spans: Option<Vec<Span>>,
    /// Whether what throws is caught, so that the worker survives it.
    pub(super) catch: bool,
    /// Too large for a share of the memory: it gets all of it, and runs alone.
    pub(super) alone: bool,
}

impl Task {
    pub(super) fn everything() -> Self {
        Self {
            spans: None,
            catch: true,
            alone: false,
        }
    }

    pub(super) fn spans(spans: Vec<Span>) -> Self {
        Self {
            spans: Some(spans),
            ..Self::everything()
        }
    }

    /// One attribute that throws, evaluated for the message with which it does.
    pub(super) fn uncaught(span: Span) -> Self {
        Self {
            catch: false,
            ..Self::spans(vec![span])
        }
    }
}

/// A worker's task, and how far the worker is in it.
#[derive(Debug)]
pub(super) struct Assignment {
    task: Task,
    started: Instant,
    /// When its first attribute began.
    first: Option<Instant>,
    /// How many attributes have begun.
    begun: u32,
    position: Option<Position>,
    /// The attribute there is a derivation that evaluates, and its metadata is being evaluated.
    in_meta: bool,
    /// The walker was through with the task.
    complete: bool,
    /// The attribute at which another worker has taken over.
    until: Option<AttrIndex>,
    /// It is being stopped: no other worker takes over from it.
    stopping: bool,
}

impl Assignment {
    fn new(task: Task, now: Instant) -> Self {
        Self {
            task,
            started: now,
            first: None,
            begun: 0,
            position: None,
            in_meta: false,
            complete: false,
            until: None,
            stopping: false,
        }
    }

    pub(super) fn task(&self) -> &Task {
        &self.task
    }

    /// How many attributes have begun.
    pub(super) fn begun(&self) -> u32 {
        self.begun
    }

    /// The attribute that is being evaluated; before the first, the root.
    pub(super) fn attr(&self) -> AttrIndex {
        let position = self.position.as_ref();
        position.map_or_else(AttrIndex::default, |position| position.path().clone())
    }

    pub(super) fn is_in_meta(&self) -> bool {
        self.in_meta
    }

    /// Whether the walker was through with the task.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// What is still to be done, without the attribute that is being evaluated.
    fn left(&self, counts: &ChildCounts) -> Vec<Span> {
        match (&self.position, &self.task.spans) {
            (Some(position), _) => self.behind(position, counts),
            (None, Some(spans)) => spans.clone(),
            (None, None) => Vec::new(),
        }
    }

    /// What of the task comes behind this position.
    fn behind(&self, position: &Position, counts: &ChildCounts) -> Vec<Span> {
        let left = spans::behind(self.task.spans.as_deref(), position, counts);
        match &self.until {
            Some(until) => spans::before(left, until),
            None => left,
        }
    }

    /// How long an attribute takes on average, and how long it took to get to the first one.
    fn pace(&self, now: Instant) -> Option<(Duration, Duration)> {
        let first = self.first?;
        Some(((now - first) / self.begun.max(1), first - self.started))
    }
}

/// The tasks that wait, and those that workers have.
#[derive(Debug)]
pub(super) struct Schedule {
    /// How many workers may run in parallel.
    slots: usize,
    /// The memory for all workers together, in bytes; [`u64::MAX`] where it has no limit.
    memory: u64,
    /// How many attributes the sets have that were entered.
    counts: ChildCounts,
    pending: Vec<Task>,
    assignments: BTreeMap<WorkerId, Assignment>,
    /// How many workers there have been.
    workers: u32,
    /// How many names there are, as far as sets were entered.
    known: u64,
    /// How many of them have begun.
    begun: u64,
}

impl Schedule {
    pub(super) fn new(slots: usize, memory: u64) -> Self {
        Self {
            slots,
            memory,
            counts: ChildCounts::new(),
            pending: Vec::new(),
            assignments: BTreeMap::new(),
            workers: 0,
            known: 0,
            begun: 0,
        }
    }

    /// Makes these the tasks that wait.
    pub(super) fn plan(&mut self, tasks: Vec<Task>) {
        self.pending = tasks;
        self.assignments.clear();
    }

    /// How many workers may run in parallel.
    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// How many names have begun, and how many are known.
    pub(super) fn names(&self) -> (u64, u64) {
        (self.begun, self.known.max(self.begun))
    }

    /// Whether the memory for all workers is limited.
    pub(super) fn has_memory_limit(&self) -> bool {
        self.memory != u64::MAX
    }

    /// What of the memory is this task's, in bytes.
    pub(super) fn share(&self, task: &Task) -> u64 {
        if task.alone {
            self.memory
        } else {
            self.memory / self.slots as u64
        }
    }

    /// The attribute by itself; none for the root.
    pub(super) fn span(&self, path: &AttrIndex) -> Option<Span> {
        Span::of(path, &self.counts)
    }

    /// A worker's task, and how far it is.
    pub(super) fn assignment(&self, worker: WorkerId) -> Option<&Assignment> {
        self.assignments.get(&worker)
    }

    /// The next worker to start, if there is a slot for it and something to do.
    pub(super) fn assign(&mut self, now: Instant) -> Option<WorkerId> {
        let runs_alone = |assignment: &Assignment| assignment.task.alone;
        if self.assignments.len() >= self.slots || self.assignments.values().any(runs_alone) {
            return None;
        }
        let task = match self.pending.pop() {
            // It waits until the others have ended.
            Some(task) if task.alone && !self.assignments.is_empty() => {
                let other = self.pending.iter().position(|task| !task.alone);
                let other = other.map(|other| self.pending.remove(other));
                self.pending.push(task);
                other
            }
            Some(task) => Some(task),
            None => self.take_over(now),
        }?;
        let worker = WorkerId(self.workers);
        self.workers += 1;
        self.assignments.insert(worker, Assignment::new(task, now));
        Some(worker)
    }

    /// Takes the later half of what the worker has before it that will need longest, if that is worth another worker.
    fn take_over(&mut self, now: Instant) -> Option<Task> {
        let counts = &self.counts;
        let busy = self.assignments.values_mut().filter(|assignment| {
            !assignment.stopping && !assignment.task.alone && assignment.task.catch
        });
        let (_, assignment, left) = busy
            .filter_map(|assignment| {
                let (each, start) = assignment.pace(now)?;
                let left = assignment.left(counts);
                let needed = each * u32::try_from(spans::length(&left)).unwrap_or(u32::MAX);
                (needed > start * 2).then_some((needed, assignment, left))
            })
            .max_by_key(|(needed, _, _)| *needed)?;
        let (_, taken) = spans::split(&left);
        assignment.until = spans::start(&taken);
        Some(Task::spans(taken))
    }

    // ---- how far a worker is

    /// An attribute begins. Gives false where another worker has taken over from there.
    pub(super) fn begin(&mut self, worker: WorkerId, path: AttrIndex, now: Instant) -> bool {
        let Some(assignment) = self.assignments.get_mut(&worker) else {
            return false;
        };
        if assignment
            .until
            .as_ref()
            .is_some_and(|until| path >= *until)
        {
            assignment.stopping = true;
            return false;
        }
        assignment.first.get_or_insert(now);
        assignment.begun += 1;
        assignment.in_meta = false;
        assignment.position = Some(Position::At(path));
        self.begun += 1;
        true
    }

    /// The attribute is a set of `count`, and its attributes come next.
    pub(super) fn enter(&mut self, worker: WorkerId, path: AttrIndex, count: u32) {
        if self.counts.insert(path.clone(), count).is_none() {
            self.known += u64::from(count);
        }
        if let Some(assignment) = self.assignments.get_mut(&worker) {
            assignment.position = Some(Position::Entered(path));
        }
    }

    /// The metadata of the attribute is evaluated now.
    pub(super) fn begin_meta(&mut self, worker: WorkerId) {
        if let Some(assignment) = self.assignments.get_mut(&worker) {
            assignment.in_meta = true;
        }
    }

    /// The walker is through with the task.
    pub(super) fn complete(&mut self, worker: WorkerId) {
        if let Some(assignment) = self.assignments.get_mut(&worker) {
            assignment.complete = true;
        }
    }

    /// An attribute is left out.
    pub(super) fn leave_out(&mut self) {
        self.begun += 1;
    }

    /// The worker is being stopped.
    pub(super) fn stop(&mut self, worker: WorkerId) {
        if let Some(assignment) = self.assignments.get_mut(&worker) {
            assignment.stopping = true;
        }
    }

    // ---- how a worker ends

    /// The worker has ended, and nothing of its task is left.
    pub(super) fn finish(&mut self, worker: WorkerId) {
        self.assignments.remove(&worker);
    }

    /// The worker has ended: what it was at is done again, and what it had before it.
    pub(super) fn repeat(&mut self, worker: WorkerId) {
        let Some(assignment) = self.assignments.remove(&worker) else {
            return;
        };
        let root = Position::At(AttrIndex::default());
        let position = match &assignment.position {
            Some(position) if *position != root => position,
            _ => {
                self.pending.push(assignment.task);
                return;
            }
        };
        let mut left = assignment.behind(position, &self.counts);
        if let Position::At(path) = position {
            left.splice(0..0, self.span(path));
            self.begun -= 1;
        }
        self.put_back(left, &assignment.task);
    }

    /// The worker has ended: what it was at is given up, and its task goes on behind that.
    pub(super) fn go_on_behind(&mut self, worker: WorkerId) {
        if let Some(assignment) = self.assignments.remove(&worker) {
            // A set whose first attribute cannot even begin has none.
            let position = Position::At(assignment.attr());
            let left = assignment.behind(&position, &self.counts);
            self.put_back(left, &assignment.task);
        }
    }

    /// The worker has ended: what it was at is done again with all the memory, and its task goes on without it.
    pub(super) fn repeat_alone(&mut self, worker: WorkerId) {
        let Some(assignment) = self.assignments.remove(&worker) else {
            return;
        };
        let path = assignment.attr();
        let left = assignment.behind(&Position::At(path.clone()), &self.counts);
        self.put_back(left, &assignment.task);
        self.begun -= 1;
        if let Some(span) = self.span(&path) {
            let task = Task {
                spans: Some(vec![span]),
                alone: true,
                catch: assignment.task.catch,
            };
            // Last of all: nothing else may run beside it.
            self.pending.insert(0, task);
        }
    }

    /// The worker has ended: its share of the memory was too small even for the root. It is done again beside fewer others.
    pub(super) fn repeat_with_fewer(&mut self, worker: WorkerId) {
        self.slots -= 1;
        self.repeat(worker);
    }

    /// An attribute that was evaluated is to be evaluated again. Gives it by itself; none for the root.
    pub(super) fn reopen(&mut self, path: &AttrIndex) -> Option<Span> {
        self.begun -= 1;
        self.span(path)
    }

    fn put_back(&mut self, left: Vec<Span>, task: &Task) {
        if !left.is_empty() {
            self.pending.push(Task {
                spans: Some(left),
                ..task.clone()
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::spans::tests::{path, tree, walk};
    use super::*;
    use proptest::prelude::*;

    fn at(second: u64) -> Instant {
        // Any instant will do, and there is no other way to make one.
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *START.get_or_init(Instant::now) + Duration::from_secs(second)
    }

    fn starts(task: &Task) -> Vec<String> {
        let spans = task.spans.iter().flatten();
        spans
            .map(|span| format!("{}/{}..{}", span.at, span.from, span.to))
            .collect()
    }

    /// A schedule whose one worker has entered a root of `count` attributes, and begun the first of them.
    fn begun(slots: usize, count: u32) -> (Schedule, WorkerId) {
        let mut schedule = Schedule::new(slots, 1000);
        schedule.plan(vec![Task::everything()]);
        let worker = schedule.assign(at(0)).unwrap();
        schedule.enter(worker, path(""), count);
        assert!(schedule.begin(worker, path("/0"), at(1)));
        (schedule, worker)
    }

    #[test]
    fn a_worker_without_a_task_takes_the_later_half_where_that_is_worth_its_start() {
        let (mut schedule, first) = begun(2, 10);
        // An attribute takes a second, and so did the root.
        assert!(schedule.begin(first, path("/1"), at(3)));
        let second = schedule.assign(at(3)).unwrap();
        let task = schedule.assignment(second).unwrap().task();
        assert_eq!(starts(task), ["/6..10"]);
        assert_eq!(schedule.assign(at(3)), None, "both slots are in use");
        assert!(schedule.begin(first, path("/5"), at(4)));
        assert!(!schedule.begin(first, path("/6"), at(5)), "taken over");
        schedule.finish(first);
        assert_eq!(schedule.assign(at(5)), None, "it has not begun yet");
    }

    #[test]
    fn little_work_is_not_worth_another_worker() {
        let (mut schedule, _) = begun(2, 2);
        assert_eq!(schedule.assign(at(2)), None);
    }

    #[test]
    fn nothing_is_taken_over_from_a_worker_that_is_being_stopped() {
        let (mut schedule, worker) = begun(2, 10);
        schedule.stop(worker);
        assert_eq!(schedule.assign(at(9)), None);
    }

    #[test]
    fn a_worker_that_repeats_begins_with_the_attribute_it_was_at() {
        let (mut schedule, worker) = begun(1, 3);
        schedule.enter(worker, path("/0"), 2);
        assert!(schedule.begin(worker, path("/0/1"), at(2)));
        schedule.repeat(worker);
        let worker = schedule.assign(at(3)).unwrap();
        let task = schedule.assignment(worker).unwrap().task();
        assert_eq!(starts(task), ["/0/1..2", "/1..3"]);
        assert_eq!(schedule.names(), (1, 5));
    }

    #[test]
    fn a_worker_that_repeats_at_the_root_has_the_same_task_again() {
        let mut schedule = Schedule::new(2, 1000);
        schedule.plan(vec![Task::everything()]);
        let worker = schedule.assign(at(0)).unwrap();
        schedule.repeat_with_fewer(worker);
        let worker = schedule.assign(at(1)).unwrap();
        let task = schedule.assignment(worker).unwrap().task().clone();
        assert_eq!(task, Task::everything());
        assert_eq!((schedule.slots(), schedule.share(&task)), (1, 1000));
    }

    #[test]
    fn what_an_attribute_holds_is_given_up_with_it() {
        let (mut schedule, worker) = begun(1, 3);
        schedule.enter(worker, path("/0"), 2);
        schedule.go_on_behind(worker);
        let worker = schedule.assign(at(3)).unwrap();
        let task = schedule.assignment(worker).unwrap().task();
        assert_eq!(starts(task), ["/1..3"]);
    }

    #[test]
    fn a_task_that_needs_all_the_memory_waits_until_the_others_have_ended() {
        let (mut schedule, large) = begun(2, 3);
        schedule.repeat_alone(large);
        let rest = schedule.assign(at(2)).unwrap();
        let task = schedule.assignment(rest).unwrap().task();
        assert_eq!(
            (starts(task), schedule.share(task)),
            (vec!["/1..3".into()], 500)
        );
        assert_eq!(schedule.assign(at(2)), None);
        schedule.finish(rest);
        let alone = schedule.assign(at(3)).unwrap();
        let task = schedule.assignment(alone).unwrap().task();
        assert_eq!(
            (starts(task), schedule.share(task)),
            (vec!["/0..1".into()], 1000)
        );
        assert_eq!(schedule.assign(at(3)), None);
    }

    /// A worker of the simulation: where it stands next, and where it stands.
    struct Simulated {
        worker: WorkerId,
        positions: std::vec::IntoIter<Position>,
        position: Option<Position>,
    }

    impl Simulated {
        /// Not so at a set that was entered: another worker may have taken over some of its attributes.
        fn is_at_attribute(&self) -> bool {
            matches!(self.position, Some(Position::At(_)))
        }

        fn path(&self) -> Option<AttrIndex> {
            let path = self.position.as_ref()?.path();
            (*path != AttrIndex::default()).then(|| path.clone())
        }
    }

    proptest! {
        #[test]
        fn however_workers_end_each_attribute_is_evaluated_once(
            counts in tree(),
            slots in 1..4usize,
            mut dice in proptest::collection::vec((0..4usize, 0..12u32), 0..60),
        ) {
            let mut schedule = Schedule::new(slots, 1000);
            schedule.plan(vec![Task::everything()]);
            let mut workers: Vec<Simulated> = Vec::new();
            let (mut settled, mut given_up) = (Vec::new(), Vec::new());
            for second in 0.. {
                let now = at(second);
                while let Some(worker) = schedule.assign(now) {
                    let task = schedule.assignment(worker).unwrap().task();
                    prop_assert!(!task.alone || workers.is_empty());
                    let mut positions = walk(task.spans.as_deref(), &counts);
                    // The walker says no word of the root before it has entered it.
                    positions.retain(|position| *position != Position::At(path("")));
                    workers.push(Simulated { worker, positions: positions.into_iter(), position: None });
                }
                if workers.is_empty() {
                    break;
                }
                let (which, action) = dice.pop().unwrap_or((0, 11));
                let which = which % workers.len();
                let one = &mut workers[which];
                let worker = one.worker;
                let begun = schedule.assignment(worker).unwrap().begun();
                let ended = match action {
                    0 | 1 => {
                        if matches!(one.position, Some(Position::Entered(_))) {
                            settled.extend(one.path());
                        }
                        schedule.repeat(worker);
                        true
                    }
                    2 if one.is_at_attribute() => {
                        settled.extend(one.path());
                        given_up.extend(one.path());
                        schedule.go_on_behind(worker);
                        true
                    }
                    3 if one.is_at_attribute() && begun == 1 => {
                        schedule.repeat_alone(worker);
                        true
                    }
                    _ => match one.positions.next() {
                        Some(Position::Entered(path)) => {
                            schedule.enter(worker, path.clone(), counts[&path]);
                            one.position = Some(Position::Entered(path));
                            false
                        }
                        Some(Position::At(path)) => {
                            settled.extend(one.path());
                            let goes_on = schedule.begin(worker, path.clone(), now);
                            one.position = Some(Position::At(path));
                            if !goes_on {
                                schedule.finish(worker);
                            }
                            !goes_on
                        }
                        None => {
                            settled.extend(one.path());
                            schedule.finish(worker);
                            true
                        }
                    },
                };
                if ended {
                    workers.remove(which);
                }
            }
            let all = walk(None, &counts).into_iter().filter_map(|position| match position {
                Position::At(path) if path != AttrIndex::default() => Some(path),
                _ => None,
            });
            let is_lost = |path: &AttrIndex| {
                path.with_parents().any(|above| above != *path && given_up.contains(&above))
            };
            let expected: Vec<AttrIndex> = all.filter(|path| !is_lost(path)).collect();
            settled.sort();
            prop_assert_eq!(&settled, &expected);
            prop_assert_eq!(schedule.names().0, expected.len() as u64);
        }
    }
}
