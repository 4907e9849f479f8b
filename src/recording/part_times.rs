//! How long the parts of a recording take.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::log::Log;

/// How long the parts of a recording take.
pub(super) struct PartTimes<'a> {
    /// In seconds, by the names that `eval-once.json` has.
    seconds: BTreeMap<&'static str, f64>,
    begin: Instant,
    log: &'a Log,
}

impl<'a> PartTimes<'a> {
    /// The first part begins.
    pub(super) fn start(log: &'a Log) -> Self {
        Self {
            seconds: BTreeMap::new(),
            begin: Instant::now(),
            log,
        }
    }

    /// Ends a part; the next begins.
    pub(super) fn end(&mut self, name: &'static str) {
        let took = self.begin.elapsed().as_secs_f64();
        self.begin = Instant::now();
        self.log.debug(format_args!("{name}: {took:.3} s"));
        self.seconds.insert(name, to_milliseconds(took));
    }

    /// The times of the parts, and of the whole recording.
    pub(super) fn with_total(mut self, total: f64) -> BTreeMap<&'static str, f64> {
        self.seconds.insert("total", to_milliseconds(total));
        self.seconds
    }
}

/// To the millisecond: further digits would be noise.
fn to_milliseconds(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_kept_to_the_millisecond() {
        let mut times = PartTimes::start(&Log::default()).with_total(1.23456);
        assert_eq!(times.remove("total"), Some(1.235));
        assert!(times.is_empty());
    }
}
