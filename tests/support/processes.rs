//! The processes of this machine, found by what only those of one test can have in their arguments or environment.

use std::fs;

use unix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::daemon::is_for_all;

/// A process that lives, and its command line for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    pub(crate) command: String,
}

/// All processes that carry `marker`. One that has ended but was not waited for yet carries nothing any more.
pub(crate) fn marked(marker: &str) -> Vec<Process> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // It may end while it is looked at.
        let read = |name| fs::read(entry.path().join(name)).unwrap_or_default();
        let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        // A daemon that all tests go through stays as long as its store. What works for a client has the client's number behind it.
        if is_for_all() && command.trim_end().ends_with("/nix-daemon") {
            continue;
        }
        if command.contains(marker) || String::from_utf8_lossy(&read("environ")).contains(marker) {
            let pid = Pid::from_raw(pid);
            found.push(Process { pid, command });
        }
    }
    found
}

/// The processes that this one started and that live.
pub(crate) fn children(parent: Pid) -> Vec<Process> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{parent}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for pid in children.split_whitespace() {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            // One that has ended has none.
            if !command.is_empty() {
                found.push(Process {
                    pid: Pid::from_raw(pid.parse().unwrap()),
                    command: String::from_utf8_lossy(&command).replace('\0', " "),
                });
            }
        }
    }
    found
}

/// Kills all processes that carry `marker`, as one: they are stopped first, because a parent that sees its child killed would say so.
pub(crate) fn kill_marked(marker: &str) {
    let found = marked(marker);
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        for process in &found {
            let _ = kill(process.pid, signal);
        }
    }
}
