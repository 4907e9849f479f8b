//! A process that walks: what it was told to, where it is, and what it has still before it.

use std::time::{Duration, Instant};

use super::spans::{AttrIndex, ChildCounts, Position, Span, before, behind};
use crate::nix::NixOutput;
use crate::nix::structured::Event;

/// What a process is to walk.
#[derive(Debug, Clone)]
pub(in crate::recording) struct Task {
    /// Nothing: everything.
    pub(in crate::recording) spans: Option<Vec<Span>>,
    pub(in crate::recording) catch: bool,
    /// It is too large for a part of the memory, and gets all of it.
    pub(in crate::recording) alone: bool,
}

/// Why we have stopped a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::recording) enum WorkerEnd {
    /// It has come to where another goes on.
    Overtaken,
    TooLarge,
    TooLong,
    /// Something is wrong with all of it.
    GivenUp,
}

/// What is known of a process that walks.
#[derive(Debug)]
pub(in crate::recording) struct Worker {
    pub(in crate::recording) task: Task,
    pub(in crate::recording) started: Instant,
    /// When it came to its first attribute, and how many have begun since.
    pub(in crate::recording) first: Option<Instant>,
    pub(in crate::recording) begun: u32,
    /// When it last said something.
    pub(in crate::recording) last: Instant,
    pub(in crate::recording) place: Option<Position>,
    /// It looks at the metadata there: the rest of it evaluates.
    pub(in crate::recording) in_meta: bool,
    /// Where another process goes on.
    pub(in crate::recording) until: Option<AttrIndex>,
    pub(in crate::recording) fate: Option<WorkerEnd>,
    /// It has said that that was all.
    pub(in crate::recording) done: bool,
    /// What it is saying, up to the end of the line.
    pub(in crate::recording) line: Vec<u8>,
    /// What Nix says at the end, from the first error on.
    pub(in crate::recording) last_words: Vec<u8>,
    /// What Nix, and what it runs, have said since the walker has said something; none where they have said nothing.
    nix_output: Option<NixOutput>,
}

impl Worker {
    pub(in crate::recording) fn new(task: Task) -> Self {
        let now = Instant::now();
        Self {
            task,
            started: now,
            first: None,
            begun: 0,
            last: now,
            place: None,
            in_meta: false,
            until: None,
            fate: None,
            done: false,
            line: Vec::new(),
            last_words: Vec::new(),
            nix_output: None,
        }
    }

    /// Listens to a line that is none of the walker's.
    pub(in crate::recording) fn listen(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        self.nix_output
            .get_or_insert_default()
            .read(&Event::Plain(line));
    }

    /// The walker has gone on: what was said before was no end.
    pub(in crate::recording) fn went_on(&mut self) {
        self.nix_output = None;
    }

    /// All that was said at its end.
    pub(in crate::recording) fn nix_output(&mut self) -> NixOutput {
        let mut nix_output = self.nix_output.take().unwrap_or_default();
        nix_output.settle();
        nix_output
    }

    /// What it has still before it, without what it is at.
    pub(in crate::recording) fn left(&self, counts: &ChildCounts) -> Vec<Span> {
        match (&self.place, &self.task.spans) {
            (Some(place), _) => self.behind(place, counts),
            (None, Some(spans)) => spans.clone(),
            (None, None) => Vec::new(),
        }
    }

    /// What of its task is behind this place.
    pub(in crate::recording) fn behind(&self, place: &Position, counts: &ChildCounts) -> Vec<Span> {
        let left = behind(self.task.spans.as_deref(), place, counts);
        match &self.until {
            Some(until) => before(left, until),
            None => left,
        }
    }

    /// How long an attribute has taken it on average, and how long the way to its first one.
    pub(in crate::recording) fn pace(&self) -> Option<(Duration, Duration)> {
        let first = self.first?;
        Some((first.elapsed() / self.begun.max(1), first - self.started))
    }
}
