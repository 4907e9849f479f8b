//! A line: a task that a worker evaluates, and how far it is.

use std::time::Duration;

use super::Task;
use crate::recording::evaluate::spans::{self, AttrIndex, ChildCounts, Position, Span};

/// Where a task waited, and waits again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queue {
    /// With everything else.
    Waiting,
    /// With what needs a new worker.
    Repetitions,
    /// With what needs all the memory.
    Alone,
}

/// A task of a worker, and its progress.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) task: Task,
    pub(super) queue: Queue,
    position: Option<Position>,
    /// The attribute at the position is a set whose attributes are tasks of their own: nothing of it has to be evaluated again.
    is_large: bool,
    pub(super) in_meta: bool,
    /// The sets that the position is in whose attributes are evaluated in this line; the innermost last.
    entered: Vec<AttrIndex>,
    /// When the attribute of the task began that the position is at, or in.
    pub(super) since: Option<Duration>,
}

impl Line {
    pub(super) fn new(task: Task, queue: Queue) -> Self {
        Self {
            task,
            queue,
            position: None,
            is_large: false,
            in_meta: false,
            entered: Vec::new(),
            since: None,
        }
    }

    /// The attribute that is being evaluated; before the first, the root.
    pub(super) fn at(&self) -> AttrIndex {
        let position = self.position.as_ref();
        position.map_or_else(AttrIndex::default, |position| position.path().clone())
    }

    pub(super) fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    pub(super) fn is_large(&self) -> bool {
        self.is_large
    }

    /// Whether the attribute is one of those that the task names, not only in a set among them.
    pub(super) fn is_of_task(&self, path: &AttrIndex) -> bool {
        match &self.task.spans {
            None => path.split().is_some_and(|(at, _)| at.is_root()),
            Some(spans) => {
                let behind = spans.partition_point(|span| span.start() <= *path);
                // A set among the task's spans may have been entered, and its rest be a span of another line: it is none of this.
                behind > 0 && spans[behind - 1].holds(path)
            }
        }
    }

    /// An attribute begins. Gives false if it is not of this line, or not behind the one before.
    pub(super) fn begin(&mut self, path: AttrIndex, counts: &ChildCounts) -> bool {
        let is_behind = |position: &Position| path > *position.path();
        if !self.position.as_ref().is_none_or(is_behind) {
            return false;
        }
        let Some((set, number)) = path.split() else {
            return false;
        };
        while self
            .entered
            .last()
            .is_some_and(|entered| !path.is_in(entered))
        {
            self.entered.pop();
        }
        let is_entered = self.entered.last() == Some(&set)
            && counts.get(&set).is_some_and(|count| number < *count);
        let is_of_spans = self.task.spans.is_some() && self.is_of_task(&path);
        if !(is_entered || is_of_spans) {
            return false;
        }
        self.position = Some(Position::At(path));
        self.is_large = false;
        self.in_meta = false;
        true
    }

    /// Whether a set at this path can be reported: it is being evaluated, and was not reported yet.
    pub(super) fn is_at(&self, path: &AttrIndex) -> bool {
        match &self.position {
            None => path.is_root() && self.task.spans.is_none() && !self.is_large,
            Some(Position::At(at)) => at == path && !self.is_large,
            Some(Position::Entered(_)) => false,
        }
    }

    /// The attribute at the position is a set whose attributes follow.
    pub(super) fn enter(&mut self, path: AttrIndex) {
        self.entered.push(path.clone());
        self.position = Some(Position::Entered(path));
    }

    /// The attribute at the position is a set whose attributes do not follow.
    pub(super) fn report_large(&mut self) {
        self.is_large = true;
    }

    /// What remains of the task after the position: without the attribute there.
    pub(super) fn rest(&self, counts: &ChildCounts) -> Vec<Span> {
        match (&self.position, &self.task.spans) {
            (Some(position), spans) => spans::behind(spans.as_deref(), position, counts),
            (None, Some(spans)) => spans.clone(),
            (None, None) => Vec::new(),
        }
    }

    /// The same, also without what is in the attribute at the position.
    pub(super) fn rest_without_set(&self, counts: &ChildCounts) -> Vec<Span> {
        let position = Position::At(self.at());
        spans::behind(self.task.spans.as_deref(), &position, counts)
    }
}
