//! What a worker is given to evaluate, and how that ends.

use crate::recording::evaluate::spans::{AttrIndex, Span};

/// A worker: a process, from its start to its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::recording::evaluate) struct WorkerId(pub(super) u32);

/// A part of the walk, which a worker evaluates in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::recording::evaluate) struct Task {
    /// Attributes; none: the root. An empty list: the root is evaluated, and nothing is reported, so that the worker is ready.
    pub(in crate::recording::evaluate) spans: Option<Vec<Span>>,
    /// Whether to catch what throws: a repetition.
    pub(in crate::recording::evaluate) catch: bool,
}

impl Task {
    pub(in crate::recording::evaluate) fn root() -> Self {
        Self {
            spans: None,
            catch: false,
        }
    }

    pub(in crate::recording::evaluate) fn spans(spans: Vec<Span>) -> Self {
        Self {
            spans: Some(spans),
            catch: false,
        }
    }
}

/// What an idle worker does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::recording::evaluate) enum Next {
    /// It evaluates this.
    Task(Task),
    /// Nothing now: another worker may find sets. To be asked again after any event.
    Wait,
    /// Its process is ended.
    End,
}

/// How much of the memory a worker has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::recording::evaluate) struct MemoryShare {
    /// How many workers share the memory.
    pub(in crate::recording::evaluate) slots: usize,
    /// The part of this one, in bytes; [`u64::MAX`]: unlimited.
    pub(in crate::recording::evaluate) part: u64,
    /// Whether it has all of it.
    pub(in crate::recording::evaluate) has_all: bool,
}

/// How a worker's task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::recording::evaluate) enum LineEnd {
    /// All of it is evaluated.
    Finished,
    /// The attribute at the position does not evaluate. The rest of the task waits again. (At the root: nothing of the task does.)
    GaveUp,
    /// A set at the position, or that the position is in, cannot be walked. Nothing in it waits any longer.
    GaveUpSet(AttrIndex),
    /// The attribute at the position is evaluated again: first of all, in a new worker. The rest of the task waits again.
    Again {
        /// Whether to catch what it throws.
        catch: bool,
    },
    /// The attribute at the position is too large: it is evaluated again, in a new worker with all the memory and without any other
    /// worker. The rest of the task waits again, for one worker fewer than before.
    Alone,
    /// Not even the root fits its part of the memory: the task waits again, for one worker fewer than before.
    Fewer,
    /// The task waits again from the attribute at the position on, and nothing else follows.
    Waits,
}
