//! How much memory is free, and how much a process uses. Measured from outside, because an evaluator does not report it.

use crate::recording::RecordingRequest;
use crate::supervise::Supervisor;

/// One MiB, in bytes.
pub(super) const MIB: u64 = 1 << 20;

/// How much memory all workers together may have, in bytes; none where it is not known how much is free.
pub(super) fn for_evaluation(
    request: &RecordingRequest,
    supervisor: &mut Supervisor,
) -> Option<u64> {
    request.memory.map(|mib| mib * MIB).or_else(|| {
        let free = free(supervisor)?;
        Some(free / 4 * 3)
    })
}

/// How much memory is free for our processes, in bytes: the smaller of what the system has available and what our control group
/// may still use; none where neither is known.
pub(super) fn free(supervisor: &mut Supervisor) -> Option<u64> {
    let available = system::available(supervisor);
    [available, system::remaining_in_control_group()]
        .into_iter()
        .flatten()
        .min()
}

/// The initial heap of an evaluator for which `wanted` is best, in bytes; none where Nix's own default is safer.
///
/// Beyond an address-space limit (`ulimit -v`) it would not start: `Can't start up: not enough memory`. By itself Nix asks for
/// 384 MiB, and accepts less (2.8, 2.26 and 2.34). Half of the limit is reserved for its libraries (150 MiB) and for a heap that
/// grows.
pub(super) fn heap(wanted: u64) -> Option<u64> {
    heap_within(wanted, system::address_space())
}

fn heap_within(wanted: u64, limit: Option<u64>) -> Option<u64> {
    let Some(limit) = limit else {
        return Some(wanted);
    };
    let heap = wanted.min(limit / 2);
    (heap == wanted || heap > DEFAULT_HEAP).then_some(heap)
}

/// The initial heap of Nix by default, in bytes.
const DEFAULT_HEAP: u64 = 384 * MIB;

/// The resident memory of each process, in bytes; none for one that has ended.
pub(super) fn resident(processes: &[u32], supervisor: &mut Supervisor) -> Vec<Option<u64>> {
    system::resident(processes, supervisor)
}

#[cfg(not(target_os = "macos"))]
mod system {
    use std::fs::read_to_string;
    use std::path::{Path, PathBuf};

    use crate::supervise::Supervisor;

    pub(super) fn available(_: &mut Supervisor) -> Option<u64> {
        kilobytes("/proc/meminfo", "MemAvailable:")
    }

    pub(super) fn resident(processes: &[u32], _: &mut Supervisor) -> Vec<Option<u64>> {
        let one = |process: &u32| kilobytes(&format!("/proc/{process}/status"), "VmRSS:");
        processes.iter().map(one).collect()
    }

    fn kilobytes(file: &str, name: &str) -> Option<u64> {
        let text = read_to_string(file).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kilobytes << 10)
    }

    /// The limit of our address space, which our processes inherit; none where it is unlimited.
    pub(super) fn address_space() -> Option<u64> {
        let text = read_to_string("/proc/self/limits").ok()?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("Max address space"))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// The least that our control group, or one that it is in, may still use.
    pub(super) fn remaining_in_control_group() -> Option<u64> {
        let groups = read_to_string("/proc/self/cgroup").ok()?;
        groups
            .lines()
            .filter_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let (controllers, path) = (fields.next()?, fields.next()?);
                let (root, names) = if controllers.is_empty() {
                    ("/sys/fs/cgroup", ["memory.max", "memory.current"])
                } else if controllers.split(',').any(|name| name == "memory") {
                    (
                        "/sys/fs/cgroup/memory",
                        ["memory.limit_in_bytes", "memory.usage_in_bytes"],
                    )
                } else {
                    return None;
                };
                let folder = PathBuf::from(root).join(path.trim_start_matches('/'));
                let groups = folder
                    .ancestors()
                    .take_while(|group| group.starts_with(root));
                groups.filter_map(|group| remaining(group, names)).min()
            })
            .min()
    }

    fn remaining(group: &Path, [limit, used]: [&str; 2]) -> Option<u64> {
        let number = |name: &str| {
            read_to_string(group.join(name))
                .ok()?
                .trim()
                .parse::<u64>()
                .ok()
        };
        // Without a limit, the file holds the word `max`, or a number larger than any memory.
        let (limit, used) = (number(limit)?, number(used)?);
        // The kernel reclaims cached files first.
        let statistics = read_to_string(group.join("memory.stat")).unwrap_or_default();
        let cached = statistics
            .lines()
            .find_map(|line| line.strip_prefix("inactive_file "))
            .and_then(|number| number.parse().ok())
            .unwrap_or(0);
        Some(limit.saturating_sub(used.saturating_sub(cached)))
    }
}

#[cfg(target_os = "macos")]
mod system {
    use std::io;

    use crate::command_line::CommandLine;
    use crate::supervise::{OnStop, Supervisor};

    fn output(supervisor: &mut Supervisor, line: &CommandLine) -> Option<String> {
        let finished = supervisor.run(line, OnStop::Term, &mut io::sink()).ok()?;
        Some(finished.text())
    }

    pub(super) fn available(supervisor: &mut Supervisor) -> Option<u64> {
        let text = output(supervisor, &CommandLine::new("vm_stat", &[]))?;
        let size: u64 = text
            .split_once("page size of ")?
            .1
            .split_whitespace()
            .next()?
            .parse()
            .ok()?;
        let pages = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().trim_end_matches('.').parse::<u64>().ok()
        };
        let free = ["Pages free:", "Pages inactive:", "Pages speculative:"]
            .into_iter()
            .filter_map(pages)
            .sum::<u64>();
        Some(free * size)
    }

    pub(super) fn remaining_in_control_group() -> Option<u64> {
        None
    }

    /// macOS has such a limit, and does not enforce it.
    pub(super) fn address_space() -> Option<u64> {
        None
    }

    pub(super) fn resident(processes: &[u32], supervisor: &mut Supervisor) -> Vec<Option<u64>> {
        let list: Vec<String> = processes.iter().map(ToString::to_string).collect();
        let line = CommandLine::new("ps", &["-o", "pid=,rss=", "-p", &list.join(",")]);
        let text = output(supervisor, &line).unwrap_or_default();
        let kilobytes = |process: &u32| {
            text.lines().find_map(|line| {
                let mut words = line.split_whitespace();
                (words.next()? == process.to_string()).then(|| words.next()?.parse::<u64>().ok())?
            })
        };
        processes
            .iter()
            .map(|process| kilobytes(process).map(|kilobytes| kilobytes << 10))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Log;

    #[test]
    fn a_heap_is_at_most_half_of_an_address_space_limit() {
        let wanted = 1000 * MIB;
        assert_eq!(heap_within(wanted, None), Some(wanted));
        assert_eq!(heap_within(wanted, Some(4000 * MIB)), Some(wanted));
        assert_eq!(heap_within(wanted, Some(1000 * MIB)), Some(500 * MIB));
        assert_eq!(heap_within(wanted, Some(600 * MIB)), None);
        assert_eq!(heap_within(10 * MIB, Some(600 * MIB)), Some(10 * MIB));
    }

    #[test]
    fn this_process_uses_memory_and_more_is_free() {
        let mut supervisor = Supervisor::install(&Log::default()).unwrap();
        let ours = resident(&[std::process::id(), u32::MAX], &mut supervisor);
        assert!(ours[0].unwrap() > MIB, "{ours:?}");
        assert_eq!(ours[1], None);
        assert!(free(&mut supervisor).unwrap() > MIB);
    }
}
