//! Garbage collectors that never rest.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use super::program::Program;

/// Runs `work` while each of these programs, of which one at least is a collector, runs again and again. Gives how often one ended with
/// 0.
///
/// A collector may end otherwise, and comes again at once: where a path is made anew while it is deleted; and Nix 2.8 sometimes dies of
/// SIGABRT (`terminate called without an active exception`) where others tell it meanwhile what they use.
pub(crate) fn beside_collectors(collectors: &[Program], work: impl FnOnce()) -> usize {
    /// Ends the collectors also where the work panics.
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    let is_over = AtomicBool::new(false);
    let collections = AtomicUsize::new(0);
    thread::scope(|scope| {
        let _ends = Ends(&is_over);
        for collector in collectors {
            let (is_over, collections) = (&is_over, &collections);
            scope.spawn(move || {
                while !is_over.load(Ordering::SeqCst) {
                    if collector.run().status.success() {
                        collections.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
        work();
    });
    collections.into_inner()
}
