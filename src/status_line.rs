//! One line about how far something is: it changes in place on a person's terminal, and comes now and then in a job's log.

use std::time::{Duration, Instant};

use crate::log::Log;

/// How often a terminal's line changes.
const ON_TERMINAL: Duration = Duration::from_millis(200);

/// How often a log gets a line, at most.
const IN_LOG: Duration = Duration::from_secs(10);

/// The line.
#[derive(Debug)]
pub struct StatusLine {
    log: Log,
    shown: Instant,
    /// A line stands on the terminal that is to be replaced.
    standing: bool,
}

impl StatusLine {
    /// No line yet.
    #[must_use]
    pub fn new(log: &Log) -> Self {
        Self {
            log: log.clone(),
            shown: Instant::now(),
            standing: false,
        }
    }

    /// When the next line may come.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.shown
            + if self.log.terminal {
                ON_TERMINAL
            } else {
                IN_LOG
            }
    }

    /// Shows a line, if it is time to; where there is none to show, it is asked for again after the same time.
    pub fn show(&mut self, line: impl FnOnce() -> Option<String>) {
        if Instant::now() < self.due() {
            return;
        }
        self.shown = Instant::now();
        let Some(line) = line() else {
            return;
        };
        if self.log.terminal {
            self.log.replace_line(format_args!("eval-once: {line}"));
            self.standing = true;
        } else {
            self.log.say(line);
        }
    }

    /// Takes the line away, before something else is written.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.standing) {
            self.log.replace_line("");
        }
    }
}
