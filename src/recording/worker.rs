//! A process that walks: what it was told to, where it is, and what it has still before it.

use std::time::{Duration, Instant};

use super::spans::{Counts, Path, Place, Span, before, behind};
use crate::nix::Heard;
use crate::nix::structured::Event;

/// What a process is to walk.
#[derive(Debug, Clone)]
pub(super) struct Task {
    /// Nothing: everything.
    pub(super) spans: Option<Vec<Span>>,
    pub(super) catch: bool,
    /// It is too large for a part of the memory, and gets all of it.
    pub(super) alone: bool,
}

/// Why we have stopped a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It has come to where another goes on.
    Overtaken,
    TooLarge,
    TooLong,
    /// Something is wrong with all of it.
    GivenUp,
}

/// What is known of a process that walks.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) task: Task,
    pub(super) started: Instant,
    /// When it came to its first attribute, and how many have begun since.
    pub(super) first: Option<Instant>,
    pub(super) begun: u32,
    /// When it last said something.
    pub(super) last: Instant,
    pub(super) place: Option<Place>,
    /// It looks at the metadata there: the rest of it evaluates.
    pub(super) in_meta: bool,
    /// Where another process goes on.
    pub(super) until: Option<Path>,
    pub(super) fate: Option<Fate>,
    /// It has said that that was all.
    pub(super) done: bool,
    /// What it is saying, up to the end of the line.
    pub(super) line: Vec<u8>,
    /// What Nix says at the end, from the first error on.
    pub(super) last_words: Vec<u8>,
    /// What Nix, and what it runs, have said since the walker has said something; none where they have said nothing.
    heard: Option<Heard>,
}

impl Worker {
    pub(super) fn new(task: Task) -> Self {
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
            heard: None,
        }
    }

    /// Listens to a line that is none of the walker's.
    pub(super) fn listen(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        self.heard.get_or_insert_default().hear(&Event::Plain(line));
    }

    /// The walker has gone on: what was said before was no end.
    pub(super) fn went_on(&mut self) {
        self.heard = None;
    }

    /// All that was said at its end.
    pub(super) fn heard(&mut self) -> Heard {
        let mut heard = self.heard.take().unwrap_or_default();
        heard.settle();
        heard
    }

    /// What it has still before it, without what it is at.
    pub(super) fn left(&self, counts: &Counts) -> Vec<Span> {
        match (&self.place, &self.task.spans) {
            (Some(place), _) => self.behind(place, counts),
            (None, Some(spans)) => spans.clone(),
            (None, None) => Vec::new(),
        }
    }

    /// What of its task is behind this place.
    pub(super) fn behind(&self, place: &Place, counts: &Counts) -> Vec<Span> {
        let left = behind(self.task.spans.as_deref(), place, counts);
        match &self.until {
            Some(until) => before(left, until),
            None => left,
        }
    }

    /// How long an attribute has taken it on average, and how long the way to its first one.
    pub(super) fn pace(&self) -> Option<(Duration, Duration)> {
        let first = self.first?;
        Some((first.elapsed() / self.begun.max(1), first - self.started))
    }
}
