//! The progress of something in one line: on a person's terminal it changes in place, a job's log gets a new one now and then.

use std::time::{Duration, Instant};

use crate::log::Log;
use crate::secrets::shortened;

/// How often a terminal's line changes, at most.
const ON_TERMINAL: Duration = Duration::from_millis(200);

/// How often a log gets a line, at most.
const IN_LOG: Duration = Duration::from_secs(10);

/// How long a line is, in characters, at most: a terminal would break it, and then not replace all of it.
const LINE_AT_MOST: usize = 150;

/// A line that shows progress.
#[derive(Debug)]
pub struct StatusLine {
    log: Log,
    /// When the last line was due.
    last: Instant,
    /// Whether the terminal shows a line that the next one replaces.
    is_shown: bool,
}

impl StatusLine {
    /// No line yet.
    #[must_use]
    pub fn new(log: &Log) -> Self {
        Self {
            log: log.clone(),
            last: Instant::now(),
            is_shown: false,
        }
    }

    /// When the next line is due.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.last
            + if self.log.terminal {
                ON_TERMINAL
            } else {
                IN_LOG
            }
    }

    /// Shows a line, if one is due. Where there is none to show, the next one is due after the same time.
    pub fn show(&mut self, line: impl FnOnce() -> Option<String>) {
        if Instant::now() < self.due() {
            return;
        }
        self.last = Instant::now();
        let Some(line) = line() else {
            return;
        };
        let line = shortened(&line, LINE_AT_MOST);
        if self.log.terminal {
            self.log.replace_line(Some(&line));
            self.is_shown = true;
        } else {
            self.log.say(line);
        }
    }

    /// Removes the line from the terminal, before something else is written.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.is_shown) {
            self.log.replace_line(None);
        }
    }

    /// Makes the next line due.
    #[cfg(test)]
    pub(crate) fn expire(&mut self) {
        self.last -= IN_LOG;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    fn line(terminal: bool) -> (Rc<RefCell<Vec<u8>>>, StatusLine) {
        let sink = Rc::new(RefCell::new(Vec::new()));
        let mut log = Log::to(sink.clone());
        log.terminal = terminal;
        (sink, StatusLine::new(&log))
    }

    fn written(sink: &RefCell<Vec<u8>>) -> String {
        String::from_utf8(sink.take()).unwrap()
    }

    #[test]
    fn a_log_gets_a_line_when_it_is_due_and_keeps_it() {
        let (sink, mut line) = line(false);
        line.show(|| unreachable!("it is not due"));
        line.expire();
        line.show(|| Some("a".into()));
        line.clear();
        assert_eq!(written(&sink), "eval-once: a\n");
        line.expire();
        line.show(|| None);
        line.show(|| unreachable!("it was due a moment ago"));
        assert_eq!(written(&sink), "");
    }

    #[test]
    fn a_terminals_line_is_removed_once() {
        let (sink, mut line) = line(true);
        line.expire();
        line.show(|| Some("a".into()));
        line.clear();
        line.clear();
        assert_eq!(written(&sink), "\r\u{1b}[Keval-once: a\r\u{1b}[K");
    }
}
