//! A garbage collection that is under way.
//!
//! It reads the roots when it begins. For what becomes a root later it listens on a socket, which Nix tells each path that it is about to
//! use. But before Nix 2.35 (NixOS/nix#15992) it takes such a path all the same where it has come upon it already: of 160 paths that Nix
//! had called valid during one collection, 104 were gone after it.

use std::io::{ErrorKind, Read as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::exit::Failure;
use crate::supervise::Supervisor;

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A collection that was under way when it was looked for: it closes this connection, on which nothing is sent, when it ends.
#[derive(Debug)]
pub struct Collection(UnixStream);

impl Collection {
    /// The collection that is under way in the store whose state is in this folder. None where none is, or where it cannot be told:
    /// with the store on another machine, for one.
    #[must_use]
    pub fn under_way(state: &Path) -> Option<Self> {
        // The file of a collection that has ended is still there, and refuses.
        let stream = UnixStream::connect(state.join("gc-socket/socket")).ok()?;
        stream.set_nonblocking(true).ok()?;
        Some(Self(stream))
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let read = (&self.0).read(&mut [0]);
        !read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// Waits until it has ended, or until `is_enough`, which is told for how long it has been watched; at most so long. Gives whether it
    /// has ended.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn watch(
        &self,
        at_most: Duration,
        supervisor: &mut Supervisor,
        mut is_enough: impl FnMut(Duration) -> bool,
    ) -> Result<bool, Failure> {
        let begin = Instant::now();
        loop {
            // In this order: what it took before it ended is seen.
            let is_over = self.is_over();
            let watched = begin.elapsed();
            if is_enough(watched) || is_over || watched >= at_most {
                return Ok(is_over);
            }
            supervisor.pause(LOOK_EVERY)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_collection_is_under_way_as_long_as_it_listens() {
        let state = tempfile::TempDir::new().unwrap();
        let under_way = || Collection::under_way(state.path());
        assert!(under_way().is_none());
        std::fs::create_dir(state.path().join("gc-socket")).unwrap();
        let listener = UnixListener::bind(state.path().join("gc-socket/socket")).unwrap();
        let collection = under_way().unwrap();
        let (answering, _) = listener.accept().unwrap();
        assert!(!collection.is_over());
        drop(answering);
        assert!(collection.is_over());
        drop(listener);
        assert!(under_way().is_none());
    }
}
