//! How a part is run: trial after trial, in several lanes at once, until its time is over or a signal ends it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI32, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{arguments::Arguments, place, tally::Tally};

/// Whether the storm is to end early, and what is to be removed then.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop {
    /// The signal that said so, or 0.
    signal: Arc<AtomicI32>,
    roots: Arc<Mutex<Vec<PathBuf>>>,
}

impl Stop {
    /// Set by the first signal; then the trials at hand are ended in order, and everything is removed. The second one removes
    /// everything at once.
    pub(crate) fn on_signals() -> Self {
        let stop = Self::default();
        let here = stop.clone();
        let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).unwrap();
        thread::spawn(move || {
            for signal in &mut signals {
                if here.signal.swap(signal, Ordering::SeqCst) != 0 {
                    place::remove_all(&here.roots.lock().unwrap());
                    process::exit(128 + signal);
                }
                eprintln!("storm: ending the trials at hand; once more ends them at once");
            }
        });
        stop
    }

    /// The signal after which the storm is to end.
    pub(crate) fn signal(&self) -> Option<i32> {
        Some(self.signal.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
    }

    /// A folder that is removed by the second signal, with all processes that have its path in their environment.
    pub(crate) fn remember(&self, root: &Path) {
        self.roots.lock().unwrap().push(root.to_owned());
    }
}

/// A part that runs.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    /// Where it counts.
    pub(crate) tally: &'a Tally,
    seed: u64,
    trials: Option<usize>,
    given: Duration,
    began: Instant,
    /// What ends it early.
    pub(crate) stop: &'a Stop,
    begun: AtomicUsize,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(
        arguments: &Arguments,
        given: Duration,
        stop: &'a Stop,
        tally: &'a Tally,
    ) -> Self {
        Self {
            tally,
            seed: arguments.seed,
            trials: arguments.trials,
            given,
            began: Instant::now(),
            stop,
            begun: AtomicUsize::new(0),
        }
    }

    /// Since when it runs.
    pub(crate) fn took(&self) -> Duration {
        self.began.elapsed()
    }

    /// Whether a trial may take minutes: not in the short form, unless it is the one that was asked for.
    pub(crate) fn is_patient(&self) -> bool {
        self.trials.is_some() || self.given > Duration::from_secs(180)
    }

    /// Whether one may take ten of them.
    pub(crate) fn is_very_patient(&self) -> bool {
        self.trials.is_some() || self.given > Duration::from_secs(900)
    }

    /// Runs trials in so many lanes at once. `prepare` makes what a lane needs, `trial` does what the seed that it is given says;
    /// each trial has a seed of its own, so that it can be had alone. A trial that panics is a wrong outcome.
    pub(crate) fn run<L>(
        &self,
        lanes: usize,
        prepare: impl Fn() -> L + Sync,
        trial: impl Fn(&L, u64) + Sync,
    ) {
        let lanes = lanes.min(self.trials.unwrap_or(lanes));
        thread::scope(|scope| {
            for _ in 0..lanes {
                scope.spawn(|| {
                    let Some(lane) = self.watch(self.seed, &prepare) else {
                        return;
                    };
                    while let Some(seed) = self.next() {
                        self.watch(seed, || trial(&lane, seed));
                    }
                    // So does a place that cannot be removed.
                    self.watch(self.seed, || drop(lane));
                });
            }
        });
    }

    /// The seed of the next trial, if there is one. The first is run however little time there is.
    fn next(&self) -> Option<u64> {
        let number = self.begun.fetch_add(1, Ordering::SeqCst);
        let is_over = number > 0 && self.began.elapsed() > self.given;
        let is_enough = self.trials.is_some_and(|trials| number >= trials);
        let seed = self.seed.wrapping_add(u64::try_from(number).unwrap());
        (!is_over && !is_enough && self.stop.signal().is_none()).then_some(seed)
    }

    fn watch<T>(&self, seed: u64, run: impl FnOnce() -> T) -> Option<T> {
        let result = catch_unwind(AssertUnwindSafe(run));
        result
            .inspect_err(|panic| {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                let text = text.unwrap_or("a panic without words");
                self.tally.wrong("the trial itself", seed, text, text);
            })
            .ok()
    }
}
