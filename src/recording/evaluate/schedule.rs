//! The schedule: which parts of the walk wait for a worker, which worker has which part, and how far it is.
//!
//! The first worker gets everything. A new one takes over the later half of what another one has not evaluated yet, so that the work
//! is shared evenly. It is started only if that is worth its start, because each worker has to evaluate the root first.
//!
//! A plain value, which knows no process; the time is passed in. Why a worker ended is decided by `diagnosis`; what follows for the
//! rest of its task is done by one of the methods here.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::spans::{self, AttrIndex, ChildCounts, Position, Span};

/// A worker, from the start of its task to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WorkerId(u32);

/// A part of the walk, for one worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Task {
    /// Attributes; none: the root, and everything below it.
    pub(super) spans: Option<Vec<Span>>,
    /// Whether to catch what throws, so that the worker survives it.
    pub(super) catch: bool,
    /// Too large for a share of the memory: it gets all of it, and runs without other workers.
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

    /// One attribute that throws, to be evaluated for its message.
    pub(super) fn uncaught(span: Span) -> Self {
        Self {
            catch: false,
            ..Self::spans(vec![span])
        }
    }
}

/// The task of a worker, and its progress.
#[derive(Debug)]
pub(super) struct Assignment {
    task: Task,
    started: Instant,
    /// When its first attribute began.
    first: Option<Instant>,
    /// How many attributes have begun.
    begun: u32,
    position: Option<Position>,
    /// The metadata of the attribute is being evaluated, which is a derivation that evaluates.
    in_meta: bool,
    /// The walker reported the end of the task.
    complete: bool,
    /// The attribute from which on another worker has taken over.
    until: Option<AttrIndex>,
    /// It is being stopped: no worker takes over from it.
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

    /// Whether the walker reported the end of the task.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// What remains, without the attribute that is being evaluated.
    fn rest(&self, counts: &ChildCounts) -> Vec<Span> {
        match (&self.position, &self.task.spans) {
            (Some(position), _) => self.behind(position, counts),
            (None, Some(spans)) => spans.clone(),
            (None, None) => Vec::new(),
        }
    }

    /// What remains of the task after this position.
    fn behind(&self, position: &Position, counts: &ChildCounts) -> Vec<Span> {
        let rest = spans::behind(self.task.spans.as_deref(), position, counts);
        match &self.until {
            Some(until) => spans::before(rest, until),
            None => rest,
        }
    }

    /// The average time for an attribute, and the time from the start to the first one.
    fn pace(&self, now: Instant) -> Option<(Duration, Duration)> {
        let first = self.first?;
        Some(((now - first) / self.begun.max(1), first - self.started))
    }
}

/// The tasks that wait, and those of the workers.
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
    /// How many names the entered sets have.
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

    /// Replaces the tasks.
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

    /// The share of the memory for this task, in bytes.
    pub(super) fn share(&self, task: &Task) -> u64 {
        if task.alone {
            self.memory
        } else {
            self.memory / self.slots as u64
        }
    }

    /// The attribute alone; none for the root.
    pub(super) fn span(&self, path: &AttrIndex) -> Option<Span> {
        Span::of(path, &self.counts)
    }

    /// The task of a worker, and its progress.
    pub(super) fn assignment(&self, worker: WorkerId) -> Option<&Assignment> {
        self.assignments.get(&worker)
    }

    /// The next worker to start, if there is a free slot and something to do.
    pub(super) fn assign(&mut self, now: Instant) -> Option<WorkerId> {
        let runs_alone = |assignment: &Assignment| assignment.task.alone;
        if self.assignments.len() >= self.slots || self.assignments.values().any(runs_alone) {
            return None;
        }
        let task = match self.pending.pop() {
            // It waits until the other workers have ended.
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

    /// Takes the later half of what remains of the task that needs the most time, if that is worth another worker.
    fn take_over(&mut self, now: Instant) -> Option<Task> {
        let counts = &self.counts;
        let busy = self.assignments.values_mut().filter(|assignment| {
            !assignment.stopping && !assignment.task.alone && assignment.task.catch
        });
        let (_, assignment, rest) = busy
            .filter_map(|assignment| {
                let (each, start) = assignment.pace(now)?;
                let rest = assignment.rest(counts);
                let needed = each * u32::try_from(spans::length(&rest)).unwrap_or(u32::MAX);
                (needed > start * 2).then_some((needed, assignment, rest))
            })
            .max_by_key(|(needed, _, _)| *needed)?;
        let (_, taken) = spans::split(&rest);
        assignment.until = spans::start(&taken);
        Some(Task::spans(taken))
    }

    // ---- progress of a worker

    /// The evaluation of an attribute begins. Gives false if another worker has taken over from there.
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

    /// The attribute is a set of `count` attributes, which come next.
    pub(super) fn enter(&mut self, worker: WorkerId, path: AttrIndex, count: u32) {
        if self.counts.insert(path.clone(), count).is_none() {
            self.known += u64::from(count);
        }
        if let Some(assignment) = self.assignments.get_mut(&worker) {
            assignment.position = Some(Position::Entered(path));
        }
    }

    /// The evaluation of the attribute's metadata begins.
    pub(super) fn begin_meta(&mut self, worker: WorkerId) {
        if let Some(assignment) = self.assignments.get_mut(&worker) {
            assignment.in_meta = true;
        }
    }

    /// The walker reports the end of the task.
    pub(super) fn complete(&mut self, worker: WorkerId) {
        if let Some(assignment) = self.assignments.get_mut(&worker) {
            assignment.complete = true;
        }
    }

    /// An attribute is excluded.
    pub(super) fn exclude(&mut self) {
        self.begun += 1;
    }

    /// The worker is being stopped.
    pub(super) fn stop(&mut self, worker: WorkerId) {
        if let Some(assignment) = self.assignments.get_mut(&worker) {
            assignment.stopping = true;
        }
    }

    // ---- end of a worker

    /// Its task is done.
    pub(super) fn finish(&mut self, worker: WorkerId) {
        self.assignments.remove(&worker);
    }

    /// The attribute that it was evaluating is evaluated again, and then what remains of its task.
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
        let mut rest = assignment.behind(position, &self.counts);
        if let Position::At(path) = position {
            rest.splice(0..0, self.span(path));
            self.begun -= 1;
        }
        self.put_back(rest, &assignment.task);
    }

    /// The attribute that it was evaluating is given up; what remains of its task goes to another worker.
    pub(super) fn continue_after(&mut self, worker: WorkerId) {
        if let Some(assignment) = self.assignments.remove(&worker) {
            // With a set its attributes are given up: not even the first could begin.
            let position = Position::At(assignment.attr());
            let rest = assignment.behind(&position, &self.counts);
            self.put_back(rest, &assignment.task);
        }
    }

    /// The attribute that it was evaluating is evaluated again with all the memory; what remains of its task goes to another worker.
    pub(super) fn repeat_alone(&mut self, worker: WorkerId) {
        let Some(assignment) = self.assignments.remove(&worker) else {
            return;
        };
        let path = assignment.attr();
        let rest = assignment.behind(&Position::At(path.clone()), &self.counts);
        self.put_back(rest, &assignment.task);
        self.begun -= 1;
        if let Some(span) = self.span(&path) {
            let task = Task {
                spans: Some(vec![span]),
                alone: true,
                catch: assignment.task.catch,
            };
            // The last of all: no other worker may run meanwhile.
            self.pending.insert(0, task);
        }
    }

    /// Its share of the memory was too small for the root: the task is done again, with fewer workers in parallel.
    pub(super) fn repeat_with_fewer(&mut self, worker: WorkerId) {
        self.slots -= 1;
        self.repeat(worker);
    }

    /// An attribute has to be evaluated again. Gives it alone; none for the root.
    pub(super) fn reopen(&mut self, path: &AttrIndex) -> Option<Span> {
        self.begun -= 1;
        self.span(path)
    }

    fn put_back(&mut self, rest: Vec<Span>, task: &Task) {
        if !rest.is_empty() {
            self.pending.push(Task {
                spans: Some(rest),
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
        // There is no other way to get an instant.
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *START.get_or_init(Instant::now) + Duration::from_secs(second)
    }

    fn starts(task: &Task) -> Vec<String> {
        let spans = task.spans.iter().flatten();
        spans
            .map(|span| format!("{}/{}..{}", span.at, span.from, span.to))
            .collect()
    }

    /// A schedule with one worker, which has entered a root of `count` attributes and begun the first of them.
    fn begun(slots: usize, count: u32) -> (Schedule, WorkerId) {
        let mut schedule = Schedule::new(slots, 1000);
        schedule.plan(vec![Task::everything()]);
        let worker = schedule.assign(at(0)).unwrap();
        schedule.enter(worker, path(""), count);
        assert!(schedule.begin(worker, path("/0"), at(1)));
        (schedule, worker)
    }

    #[test]
    fn a_new_worker_takes_over_the_later_half_if_that_is_worth_its_start() {
        let (mut schedule, first) = begun(2, 10);
        // The root took a second, and so does each attribute.
        assert!(schedule.begin(first, path("/1"), at(3)));
        let second = schedule.assign(at(3)).unwrap();
        let task = schedule.assignment(second).unwrap().task();
        assert_eq!(starts(task), ["/6..10"]);
        assert_eq!(schedule.assign(at(3)), None, "both slots are in use");
        assert!(schedule.begin(first, path("/5"), at(4)));
        assert!(!schedule.begin(first, path("/6"), at(5)), "taken over");
        schedule.finish(first);
        assert_eq!(
            schedule.assign(at(5)),
            None,
            "it has not begun its first attribute"
        );
    }

    #[test]
    fn a_little_work_is_not_worth_another_worker() {
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
    fn a_repetition_begins_with_the_attribute_that_was_being_evaluated() {
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
    fn a_repetition_at_the_root_has_the_same_task() {
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
    fn a_set_is_given_up_with_its_attributes() {
        let (mut schedule, worker) = begun(1, 3);
        schedule.enter(worker, path("/0"), 2);
        schedule.continue_after(worker);
        let worker = schedule.assign(at(3)).unwrap();
        let task = schedule.assignment(worker).unwrap().task();
        assert_eq!(starts(task), ["/1..3"]);
    }

    #[test]
    fn a_task_that_needs_all_the_memory_waits_until_the_other_workers_have_ended() {
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

    /// A simulated worker: its next positions, and the current one.
    struct Simulated {
        worker: WorkerId,
        positions: std::vec::IntoIter<Position>,
        position: Option<Position>,
    }

    impl Simulated {
        /// Not at a set that was entered, because another worker may have taken over some of its attributes.
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
                    // The walker reports the root only when it enters it.
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
                        schedule.continue_after(worker);
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
