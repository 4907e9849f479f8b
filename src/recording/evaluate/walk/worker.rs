//! What a worker does, as far as a walk knows from its messages.

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
    /// It is between `done` and `next`: what Nix prints there means nothing ([`super::super::conversation::with_ends`]).
    pub(super) is_between: bool,
}

impl Worker {
    /// A conversation, which begins with these lines.
    pub(super) fn loading(lines: Vec<u8>) -> Self {
        Self {
            doing: Doing::Loading {
                lines,
                is_impure: false,
            },
            is_between: false,
        }
    }

    /// A worker for one task.
    pub(super) fn walking() -> Self {
        Self {
            doing: Doing::walking(),
            is_between: false,
        }
    }
}
