//! Whether a copy moves, and how far it is: by what `nix copy` prints in structured form, and by what its process does.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::counts::number;
use crate::text::without_escapes;

/// How far a copy is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct CopyProgress {
    /// Paths that are copied.
    pub(super) done: u64,
    /// Paths that are to be copied, as far as that is known.
    pub(super) expected: u64,
}

impl CopyProgress {
    /// This and what comes after it.
    pub(super) fn and(self, next: Self) -> Self {
        Self {
            done: self.done + next.done,
            expected: self.expected + next.expected,
        }
    }

    /// How far what we are `doing` is after this time.
    pub(super) fn text(self, doing: &str, elapsed: Duration) -> String {
        let seconds = elapsed.as_secs();
        let expected = usize::try_from(self.expected).unwrap_or(usize::MAX);
        match expected {
            0 => format!("{doing}: {seconds} s"),
            _ => format!(
                "{doing}: {} of {}, {seconds} s",
                self.done,
                number(expected, "path")
            ),
        }
    }
}

/// How much has to come of a download, in bytes, until it counts as movement: a server that sends a byte now and then would hold a step
/// up for as long as it likes.
pub const TRICKLE: u64 = 1 << 10;

/// How often it is measured what a process has done.
const MEASURE_EVERY: Duration = Duration::from_secs(1);

/// What a process does in [`MEASURE_EVERY`] while it waits, at most, by the measure of [`work_of`]: it prints a line, and looks at
/// the clock (measured: 4 KiB).
const NO_WORK: u64 = 16 << 10;

/// What a process has done so far, as far as it was measured.
#[derive(Debug)]
pub(super) struct Work {
    done: u64,
    measured: Instant,
}

impl Default for Work {
    fn default() -> Self {
        Self {
            done: 0,
            measured: Instant::now(),
        }
    }
}

impl Work {
    /// Whether the process is seen to have done more than waiting, where that is measured now.
    pub(super) fn goes_on(&mut self, process: u32) -> bool {
        if self.measured.elapsed() < MEASURE_EVERY {
            return false;
        }
        self.measured = Instant::now();
        let before = std::mem::replace(&mut self.done, work_of(process).unwrap_or(0));
        self.done > before + NO_WORK
    }
}

/// How much a process has done: the bytes that it has read and written, and a thousand for each tick (10 ms) of a processor. Nix
/// 2.8 prints nothing while it compresses or reads a path, however large that is. (What is sent over HTTP counts in neither:
/// [`Movement::uploading`].) None without `/proc` (macOS).
fn work_of(process: u32) -> Option<u64> {
    let io = std::fs::read_to_string(format!("/proc/{process}/io")).ok()?;
    let bytes = ["rchar: ", "wchar: "].map(|name| {
        let line = io.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|number| number.parse::<u64>().ok())
    });
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Behind the program's name, in parentheses, which may hold spaces: its state is field 3, user and system time 14 and 15.
    let (_, fields) = stat.rsplit_once(')')?;
    let times = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = times.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Some(bytes.into_iter().flatten().sum::<u64>() + ticks * 1000)
}

/// Whether a copy moves, from what Nix prints in structured form: anything new but a message, or the same numbers again, or a file of
/// which less than [`TRICKLE`] has come. (While a download stands still, curl's numbers are printed all the same, once a second.)
#[derive(Debug, Default)]
pub(super) struct Movement {
    /// A line without its end.
    rest: Vec<u8>,
    /// The last numbers of each activity.
    numbers: HashMap<u64, Value>,
    /// How far it is.
    pub(super) progress: CopyProgress,
    /// The activities that copy one path each, as long as they last.
    copying: HashSet<u64>,
    /// The downloads over HTTP that run, and how much of them has come since that counted as movement, in bytes.
    downloading: HashSet<u64>,
    came: u64,
    /// The uploads over HTTP that run. Only late versions print how far one is (2.34 does, 2.26 does not), and a large path may take
    /// minutes. So curl decides whether one stands still ([`command::copy_outputs_to`](crate::nix::command::copy_outputs_to)).
    pub(super) uploading: HashSet<u64>,
    /// curl has given an upload up. Nix would try it four times more, each as long.
    pub(super) has_upload_stalled: bool,
}

/// The types of the activities that copy one path and several, and that transfer a file; and of a result that says how far something
/// is.
const COPY_PATH: u64 = 100;
const FILE_TRANSFER: u64 = 101;
const COPY_PATHS: u64 = 103;
const PROGRESS: u64 = 105;

impl Movement {
    /// Reads what was printed; true where something has moved.
    pub(super) fn read(&mut self, bytes: &[u8]) -> bool {
        let mut moved = false;
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            moved |= self.line(&line);
        }
        moved
    }

    fn line(&mut self, line: &[u8]) -> bool {
        let Some(json) = line.strip_prefix(b"@nix ") else {
            return true;
        };
        let Ok(event) = serde_json::from_slice::<Value>(json) else {
            return true;
        };
        let id = event["id"].as_u64().unwrap_or_default();
        let kind = event["type"].as_u64();
        match event["action"].as_str() {
            // `copying 3 paths`: 2.8 gives the number in no other way.
            Some("start") if kind == Some(COPY_PATHS) => {
                let mut words = event["text"].as_str().unwrap_or_default().split(' ');
                let number = words.find_map(|word| word.parse::<u64>().ok());
                self.progress.expected += number.unwrap_or_default();
            }
            Some("start") if kind == Some(COPY_PATH) => drop(self.copying.insert(id)),
            Some("start") if kind == Some(FILE_TRANSFER) => {
                let text = event["text"].as_str().unwrap_or_default();
                if text.starts_with("uploading ") {
                    self.uploading.insert(id);
                } else {
                    self.downloading.insert(id);
                }
            }
            Some("msg") => {
                let text = without_escapes(event["msg"].as_str().unwrap_or_default());
                let is_upload = text.contains("unable to upload");
                self.has_upload_stalled |= is_upload && text.contains("Timeout was reached");
                // That something is tried again, say.
                return false;
            }
            Some("stop") => {
                self.numbers.remove(&id);
                self.uploading.remove(&id);
                self.downloading.remove(&id);
                self.progress.done += u64::from(self.copying.remove(&id));
            }
            Some("result") if kind == Some(PROGRESS) => {
                let fields = event["fields"].clone();
                let before = self.numbers.insert(id, fields.clone());
                return match before {
                    Some(before) if self.downloading.contains(&id) => {
                        let bytes = |fields: &Value| fields[0].as_u64().unwrap_or_default();
                        self.came += bytes(&fields).saturating_sub(bytes(&before));
                        let moved = self.came >= TRICKLE;
                        if moved {
                            self.came = 0;
                        }
                        moved
                    }
                    before => before.as_ref() != Some(&fields),
                };
            }
            _ => {}
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command_line::CommandLine;
    use crate::log::Log;
    use crate::supervise::{OnStop, PATIENCE, Supervisor};

    #[test]
    fn a_status_line_counts_over_all_parts_as_far_as_numbers_are_known() {
        let progress = |done, expected| CopyProgress { done, expected };
        let text = |progress: CopyProgress| progress.text("x", Duration::from_secs(7));
        assert_eq!(text(progress(0, 0)), "x: 7 s");
        assert_eq!(text(progress(0, 1)), "x: 0 of 1 path, 7 s");
        let both = progress(2, 2).and(progress(1, 3));
        assert_eq!(text(both), "x: 3 of 5 paths, 7 s");
    }

    #[test]
    fn the_same_numbers_again_are_no_movement() {
        let mut movement = Movement::default();
        let start = "@nix {\"action\":\"start\",\"id\":7,\"type\":103,\"text\":\"copying 2 paths\"}\n\
             @nix {\"action\":\"start\",\"id\":8,\"type\":100,\"text\":\"copying path 'x'\"}\n";
        let numbers = |done| {
            format!(
                "@nix {{\"action\":\"result\",\"fields\":[{done},2,0,0],\"id\":7,\"type\":105}}\n"
            )
        };
        assert!(movement.read(start.as_bytes()));
        assert!(movement.read(numbers(0).as_bytes()));
        assert!(!movement.read(numbers(0).as_bytes()));
        let next = numbers(1);
        let (a, b) = next.as_bytes().split_at(9);
        assert!(!movement.read(a));
        assert!(movement.read(b));
        assert!(movement.read(b"@nix {\"action\":\"stop\",\"id\":8}\n"));
        let (done, expected) = (1, 2);
        assert_eq!(movement.progress, CopyProgress { done, expected });
        assert!(movement.read(b"any other text\n"));
    }

    #[test]
    fn a_download_that_trickles_is_no_movement() {
        let mut movement = Movement::default();
        let start = "@nix {\"action\":\"start\",\"id\":7,\"type\":101,\"text\":\"downloading 'http://c/x'\"}\n";
        assert!(movement.read(start.as_bytes()));
        let mut numbers = |done: u64| {
            let line = format!(
                "@nix {{\"action\":\"result\",\"fields\":[{done},99999,0,0],\"id\":7,\"type\":105}}\n"
            );
            movement.read(line.as_bytes())
        };
        assert!(numbers(0));
        let least = TRICKLE;
        for (done, moved) in [
            (1, false),
            (2, false),
            (least, true),
            (least + 1, false),
            (2 * least, true),
        ] {
            assert_eq!(numbers(done), moved, "{done}");
        }
    }

    #[test]
    fn an_upload_runs_until_it_ends_or_curl_gives_it_up() {
        let mut movement = Movement::default();
        let transfer = |id: u64, what: &str| {
            format!(
                "@nix {{\"action\":\"start\",\"id\":{id},\"type\":101,\"text\":\"{what} 'http://c/x'\"}}\n"
            )
        };
        movement.read(transfer(1, "downloading").as_bytes());
        assert!(movement.uploading.is_empty());
        movement.read(transfer(2, "uploading").as_bytes());
        assert_eq!(movement.uploading, [2].into());
        movement.read(b"@nix {\"action\":\"stop\",\"id\":2}\n");
        assert!(movement.uploading.is_empty());
        let warning = |what: &str, why: &str| {
            let what =
                format!("\\u001b[31;1merror:\\u001b[0m unable to \\u001b[35;1m{what}\\u001b[0m");
            format!(
                "@nix {{\"action\":\"msg\",\"level\":1,\"msg\":\"{what} 'http://c/x': (curl error: {why})\"}}\n"
            )
        };
        for (what, why, is_stalled) in [
            ("download", "Timeout was reached", false),
            ("upload", "Couldn't connect to server", false),
            ("upload", "Timeout was reached", true),
        ] {
            movement.read(warning(what, why).as_bytes());
            assert_eq!(movement.has_upload_stalled, is_stalled, "{what}: {why}");
        }
    }

    #[test]
    fn a_process_that_does_something_is_told_from_one_that_waits() {
        let mut supervisor = Supervisor::install(&Log::default()).unwrap();
        let mut start = |script: &str| {
            let line = CommandLine::new("sh", &["-c", script]);
            supervisor.start(&line, OnStop::TermThenKill).unwrap()
        };
        let waits = start("exec sleep 60");
        let works = start("while :; do :; done");
        let deadline = Instant::now() + PATIENCE;
        while work_of(works.id()).unwrap() <= 2 * NO_WORK {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        assert!(work_of(waits.id()).unwrap() < NO_WORK);
        assert_eq!(work_of(u32::MAX), None);
    }
}
