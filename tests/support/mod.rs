//! What the tests stand on: a private real Nix store, programs that are run and looked at, programs that stand in for others.
//!
//! Everything a child gets to see is given to it: no test changes this process's environment or current folder, for the
//! tests run beside one another in one process.

pub(crate) mod agent;
pub(crate) mod buildkite;
pub(crate) mod collector;
pub(crate) mod daemon;
pub(crate) mod processes;
pub(crate) mod program;
pub(crate) mod recording;
pub(crate) mod s3;
pub(crate) mod source;
pub(crate) mod ssh;
pub(crate) mod stand_in;
pub(crate) mod store;
pub(crate) mod target;
pub(crate) mod terminal;
pub(crate) mod web;

use std::{
    io::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

/// The binary under test.
pub(crate) const EVAL_ONCE: &str = env!("CARGO_BIN_EXE_eval-once");

/// How long anything may take before a test gives it up for lost. Generous: the machine may be busy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);

/// Waits until `condition` holds.
///
/// The one place where a test polls: for what gives no other sign, a process that is to disappear, say.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < DEADLINE,
            "waited {DEADLINE:?} in vain until {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Where `program` is on this process's `PATH`; `None` where the test has to be skipped, which is said loudly.
///
/// # Panics
///
/// With `CI=true` a missing program is a failure: a test that ran nothing has shown nothing.
pub(crate) fn tool(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file());
    if found.is_none() {
        skip(&format!("`{program}` is not on PATH"));
    }
    found
}

/// Says that a test is skipped and why; a failure where nothing may be skipped.
///
/// # Panics
///
/// With `CI=true`.
pub(crate) fn skip(why: &str) {
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "{why}, and with CI=true no test is skipped"
    );
    loudly(why);
}

/// Says that this test, or the rest of it, is not run.
///
/// Not by `eprintln!`: of a test that passes the harness keeps that to itself.
pub(crate) fn loudly(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
}
