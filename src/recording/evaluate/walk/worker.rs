//! What a worker does, as far as a walk knows from its messages.

use std::time::Duration;

use super::super::spans::AttrIndex;

/// What a worker does.
#[derive(Debug)]
pub(super) enum Doing {
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

impl Doing {
    /// It begins a task.
    pub(super) fn walking() -> Self {
        Self::Walking {
            is_complete: false,
            deep: None,
        }
    }
}

/// A worker, and what it does.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) doing: Doing,
    /// It is between `done` and `next`, where nothing is evaluated: what Nix prints there means nothing ([`super::super::conversation::with_ends`]).
    pub(super) is_between: bool,
    /// When it began to do that, from the start of the walk on.
    pub(super) since: Duration,
    /// The attribute that it was evaluating when it was stopped; at the root, that.
    pub(super) stopped_at: Option<AttrIndex>,
}

impl Worker {
    /// A conversation, which begins with these lines.
    pub(super) fn loading(lines: Vec<u8>, now: Duration) -> Self {
        let doing = Doing::Loading {
            lines,
            is_impure: false,
        };
        Self::new(doing, now)
    }

    /// A worker for one task.
    pub(super) fn walking(now: Duration) -> Self {
        Self::new(Doing::walking(), now)
    }

    fn new(doing: Doing, now: Duration) -> Self {
        Self {
            doing,
            is_between: false,
            since: now,
            stopped_at: None,
        }
    }

    /// It is given a task.
    pub(super) fn walk(&mut self, now: Duration) {
        self.doing = Doing::walking();
        self.since = now;
    }
}
