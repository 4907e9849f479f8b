//! A worker, as far as the schedule knows it.

use std::time::Duration;

use super::assignment::Assignment;
use super::estimate::Curve;

/// How far a worker has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It was started at this time.
    Started(Duration),
    /// It took this long to start, and waits for its first task.
    New(Duration),
    /// It evaluates the root for its first task. As if it had been given that task at this time, when it started: the time for which
    /// it waited is left out.
    Root(Duration),
    /// It has evaluated the root.
    Ready,
}

/// A worker, and what was measured of it.
#[derive(Debug)]
pub(super) struct WorkerState {
    pub(super) assignment: Option<Assignment>,
    /// Started for an attribute that needs all the memory.
    pub(super) alone: bool,
    /// It is to be ended.
    pub(super) closing: bool,
    /// Whether it takes the last of the attributes that wait, instead of the first.
    pub(super) from_end: bool,
    pub(super) stage: Stage,
    /// How many attributes have begun.
    pub(super) begun: u32,
    /// How many attributes of tasks were measured.
    pub(super) measured: u64,
    /// Its time, in seconds, and memory, by these.
    pub(super) seconds: f64,
    pub(super) times: Curve,
    pub(super) memory: Curve,
    /// Its memory when it was last idle, in bytes.
    pub(super) resident: Option<u64>,
}

impl WorkerState {
    pub(super) fn new(alone: bool, from_end: bool, now: Duration) -> Self {
        Self {
            assignment: None,
            alone,
            closing: false,
            from_end,
            stage: Stage::Started(now),
            begun: 0,
            measured: 0,
            seconds: 0.0,
            times: Curve::default(),
            memory: Curve::default(),
            resident: None,
        }
    }

    /// Whether it was never given a task.
    pub(super) fn is_new(&self) -> bool {
        matches!(self.stage, Stage::Started(_) | Stage::New(_))
    }

    /// The attribute of the task that began `since` ends. A set is no measure of what attributes cost.
    pub(super) fn measure(&mut self, now: Duration) {
        let Some(assignment) = &mut self.assignment else {
            return;
        };
        if let Some(since) = assignment.since.take()
            && !assignment.is_set
        {
            self.measured += 1;
            self.seconds += now.saturating_sub(since).as_secs_f64();
            self.times.measure(self.measured, self.seconds);
        }
    }
}
