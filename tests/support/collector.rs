//! Garbage collectors that never rest.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use super::{program::Program, store::Store, tool};

/// A shell script that collects all garbage, to be read (`.`) by a builder, which has another environment, or by a stand-in.
pub(crate) fn collecting(store: &Store) -> PathBuf {
    let exports: Vec<String> = store
        .env()
        .iter()
        .filter_map(|(name, value)| Some((name.to_str()?, value.to_str()?)))
        .filter(|(name, _)| name.starts_with("NIX_"))
        .map(|(name, value)| format!("export {name}='{value}'\n"))
        .collect();
    let script = format!(
        "{}{} --gc >/dev/null 2>&1",
        exports.concat(),
        tool("nix-store").unwrap().display()
    );
    let file = store.root().join("collects");
    fs::write(&file, script).unwrap();
    file
}

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
