//! How far an evaluation is: one line that changes on a person's terminal, a line now and then in a job's log.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::time::{Duration, Instant};

use crate::log::Log;

/// How often a terminal's line changes.
const ON_TERMINAL: Duration = Duration::from_millis(200);

/// How often a log gets a line.
const IN_LOG: Duration = Duration::from_secs(10);

/// How far it is.
#[derive(Debug)]
pub(super) struct Progress {
    terminal: bool,
    log: Log,
    started: Instant,
    shown: Instant,
    /// A line stands on the terminal that is to be replaced.
    standing: bool,
    /// How many attributes there are, as far as is known.
    pub(super) known: u64,
    /// How many of them have begun.
    pub(super) begun: u64,
    /// How many of them are targets.
    pub(super) targets: usize,
}

impl Progress {
    pub(super) fn new(terminal: bool, log: Log) -> Self {
        let now = Instant::now();
        Self {
            terminal: terminal && stderr().is_terminal(),
            log,
            started: now,
            shown: now,
            standing: false,
            known: 0,
            begun: 0,
            targets: 0,
        }
    }

    /// Says how far it is, if it is time to.
    pub(super) fn show(&mut self, broken: usize) {
        let pause = if self.terminal { ON_TERMINAL } else { IN_LOG };
        if self.shown.elapsed() < pause {
            return;
        }
        self.shown = Instant::now();
        let line = format!(
            "evaluating: {} of {} attributes, {} targets, {broken} broken, {} s",
            self.begun,
            self.known.max(self.begun),
            self.targets,
            self.started.elapsed().as_secs()
        );
        if self.terminal {
            let _ = write!(stderr(), "\r\x1b[Keval-once: {line}");
            self.standing = true;
        } else {
            self.log.say(line);
        }
    }

    /// Takes the line away.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.standing) {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }

    /// Passes on what somebody else says.
    pub(super) fn pass_on(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.clear();
            let _ = stderr().write_all(bytes);
        }
    }

    /// One line about all of it.
    pub(super) fn summary(&self, broken: usize) -> String {
        format!(
            "evaluated {} attribute{} in {:.1} s: {} target{}, {broken} broken",
            self.begun,
            if self.begun == 1 { "" } else { "s" },
            self.started.elapsed().as_secs_f64(),
            self.targets,
            if self.targets == 1 { "" } else { "s" }
        )
    }
}
