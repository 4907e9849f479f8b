//! GC roots for what was found by workers that end before the pin is rooted.
//!
//! What a worker has written is kept by its temporary roots as long as it lives. One that makes room for another one, or dies, takes
//! them with it. So a store file keeps what was found so far, until the pin does. That takes two programs of Nix's, 50 ms; it is done
//! wherever the collector was seen at work, and else where it takes no more than a fiftieth of the evaluation's time.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::exit::{Class, Classify as _, Failure};
use crate::nix::{DrvPath, StorePath};
use crate::state::{Roots, StateFolder};
use crate::store::{Keeper, Kept, Store};
use crate::supervise::Supervisor;

/// How long it takes to make a root, before that was measured.
const USUAL: Duration = Duration::from_millis(50);

/// Which part of the time it may take.
const PART: u32 = 50;

/// The roots, which end with this process.
#[derive(Debug)]
pub(super) struct FoundRoots<'a> {
    state: &'a StateFolder,
    roots: Option<Roots>,
    /// How many there are, what they keep, and how long all of them took.
    count: u32,
    kept: BTreeSet<DrvPath>,
    kept_sources: BTreeSet<StorePath>,
    took: Duration,
}

impl<'a> FoundRoots<'a> {
    /// None yet.
    pub(super) fn new(state: &'a StateFolder) -> Self {
        Self {
            state,
            roots: None,
            count: 0,
            kept: BTreeSet::new(),
            kept_sources: BTreeSet::new(),
            took: Duration::ZERO,
        }
    }

    /// Whether another root takes little, in an evaluation that has taken this long.
    pub(super) fn takes_little(&self, elapsed: Duration) -> bool {
        let usual = match self.count {
            0 => USUAL,
            count => self.took / count,
        };
        (self.took + usual) * PART <= elapsed
    }

    /// Roots those of these `.drv`s that are not rooted yet. Gives those that are gone; the others are not rooted either then.
    ///
    /// # Errors
    /// The state folder or the store fails (75).
    pub(super) fn keep<'d>(
        &mut self,
        found: impl Iterator<Item = &'d DrvPath>,
        store: &mut Store,
        supervisor: &mut Supervisor,
    ) -> Result<Vec<DrvPath>, Failure> {
        let drvs: Vec<&DrvPath> = found.filter(|drv| !self.kept.contains(*drv)).collect();
        if drvs.is_empty() {
            return Ok(Vec::new());
        }
        let began = Instant::now();
        let link = self.next_link()?;
        let keeper = Keeper {
            name: "what was found so far",
            // No other recording writes the same path, which a collection may be about to take.
            text: format!("{:?}", std::time::SystemTime::now()),
            drvs,
            link: &link,
            asks_roots: false,
        };
        let kept = store.keep(&keeper, self.state, supervisor, |_| Vec::new())?;
        self.took += began.elapsed();
        match kept {
            Kept::Gone(gone) => Ok(gone),
            Kept::By { .. } => {
                self.count += 1;
                self.kept.extend(keeper.drvs.into_iter().cloned());
                Ok(Vec::new())
            }
        }
    }

    /// Roots a path that an evaluation missed and that is valid: the next one finds it there, and would not keep it; and what is asked of its
    /// files is so of one state. Says whether it is there still. (A `.drv` is written by each evaluation.)
    ///
    /// # Errors
    /// The state folder or the store fails (75).
    pub(super) fn keep_path(
        &mut self,
        path: &StorePath,
        store: &mut Store,
        supervisor: &mut Supervisor,
    ) -> Result<bool, Failure> {
        // Of many attributes that lack files of one source, each asks.
        if path.is_drv() || self.kept_sources.contains(path) {
            return Ok(true);
        }
        let began = Instant::now();
        let link = self.next_link()?;
        let is_there = store.keep_path(path, &link, supervisor)?;
        self.took += began.elapsed();
        self.count += 1;
        if is_there {
            self.kept_sources.insert(path.clone());
        }
        Ok(is_there)
    }

    fn next_link(&mut self) -> Result<PathBuf, Failure> {
        let roots = match self.roots.take() {
            Some(roots) => roots,
            None => self.state.roots().classify(Class::Infrastructure, || {
                "cannot root what was found so far".to_owned()
            })?,
        };
        Ok(self.roots.insert(roots).numbered(self.count))
    }

    /// These are gone all the same.
    pub(super) fn forget(&mut self, gone: &[DrvPath]) {
        self.kept.retain(|drv| !gone.contains(drv));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_takes_little_where_it_is_a_fiftieth_of_the_time() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let mut roots = FoundRoots::new(&state);
        let takes_little = |roots: &FoundRoots<'_>, milliseconds| {
            roots.takes_little(Duration::from_millis(milliseconds))
        };
        assert!(!takes_little(&roots, 2_499));
        assert!(takes_little(&roots, 2_500));
        // The next one will take as long as the last ones.
        (roots.count, roots.took) = (2, Duration::from_millis(200));
        assert!(!takes_little(&roots, 14_999));
        assert!(takes_little(&roots, 15_000));
    }
}
