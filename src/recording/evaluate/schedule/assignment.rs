//! A task that a worker evaluates, and how far it is.

use std::time::Duration;

use super::Task;
use crate::recording::evaluate::spans::{self, AttrIndex, Span};

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
pub(super) struct Assignment {
    pub(super) task: Task,
    pub(super) queue: Queue,
    /// The attribute that is being evaluated; none before the first.
    position: Option<AttrIndex>,
    /// It is a set whose attributes wait: nothing of it has to be evaluated again.
    pub(super) is_set: bool,
    pub(super) in_meta: bool,
    /// When the attribute at the position began.
    pub(super) since: Option<Duration>,
}

impl Assignment {
    pub(super) fn new(task: Task, queue: Queue) -> Self {
        Self {
            task,
            queue,
            position: None,
            is_set: false,
            in_meta: false,
            since: None,
        }
    }

    pub(super) fn position(&self) -> Option<&AttrIndex> {
        self.position.as_ref()
    }

    /// The attribute that is being evaluated; before the first, the root.
    pub(super) fn at(&self) -> AttrIndex {
        self.position.clone().unwrap_or_default()
    }

    /// An attribute begins. Gives false if it is not of this task, or not behind the one before.
    pub(super) fn begin(&mut self, path: AttrIndex, now: Duration) -> bool {
        let spans = self.task.spans.as_deref().unwrap_or_default();
        let is_behind = self.position.as_ref().is_none_or(|at| path > *at);
        if !is_behind || spans::holding(spans, &path).is_none() {
            return false;
        }
        self.position = Some(path);
        self.is_set = false;
        self.in_meta = false;
        self.since = Some(now);
        true
    }

    /// Whether a set at this path can be reported: it is being evaluated, and was not reported yet.
    pub(super) fn is_at(&self, path: &AttrIndex) -> bool {
        let at = match &self.position {
            Some(at) => at == path,
            None => path.is_root() && self.task.spans.is_none(),
        };
        at && !self.is_set
    }

    /// What remains of the task behind the attribute that is being evaluated; before the first, all of it.
    pub(super) fn rest(&self) -> Vec<Span> {
        let spans = self.task.spans.as_deref().unwrap_or_default();
        match &self.position {
            Some(path) => spans::behind(spans, path),
            None => spans.to_vec(),
        }
    }
}
