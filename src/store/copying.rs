//! Copying between stores, by `nix copy`, with patience that has an end.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Store;
use super::batches::batches;
use crate::command_line::CommandLine;
use crate::exit::Failure;
use crate::nix::{DrvPath, NixOutput, StorePath, StoreUrl, command};
use crate::supervise::{OnStop, Supervisor};
use crate::text::without_escapes;

/// How long something that is copied may stand still, until it is given up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How much has to come of a download within [`PATIENCE`], in bytes: a server that sends a byte now and then would hold a step up for
/// as long as it likes.
pub const TRICKLE: u64 = 16 << 10;

/// How long a copy that is given up has to end by itself.
const GRACE: Duration = Duration::from_secs(1);

/// How often a copy is looked at that prints nothing.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How far a copy is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyProgress {
    /// Paths that are copied.
    pub done: u64,
    /// Paths that are to be copied, as far as that is known.
    pub expected: u64,
}

/// What may be done about a copy, each time it has been looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyOrder {
    /// It goes on.
    GoOn,
    /// It is stopped.
    Stop,
}

/// How a copy ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyEnd {
    /// All is there.
    Done,
    /// It was stopped, as ordered.
    Stopped,
    /// Nothing moved for as long as [`PATIENCE`].
    Stalled,
    /// Nix failed, with this message.
    Failed(String),
}

impl Store {
    /// Copies these `.drv`s with all that they need to be realised (`.drv`s and sources, no outputs) into a store; what it has
    /// is not copied again. `look` is called at least once a second. Nix compresses each NAR into a file in its folder for temporary
    /// files before it is in the other store; where `temporary` is given, that is the folder.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n); the program is missing (69), or cannot be started (75).
    pub fn copy_drvs_to(
        &mut self,
        supervisor: &mut Supervisor,
        to: &StoreUrl,
        drvs: &[&DrvPath],
        temporary: Option<&str>,
        mut look: impl FnMut(CopyProgress) -> CopyOrder,
    ) -> Result<CopyEnd, Failure> {
        let mut before = CopyProgress::default();
        for batch in batches(&store_paths_of(drvs)) {
            let options = self.options(supervisor)?;
            let mut line = command::copy_drvs_to(to, batch, &options);
            line.variables
                .extend(temporary.map(|folder| ("TMPDIR", folder.to_owned())));
            let mut progress = before;
            let mut look = |this: CopyProgress| {
                progress = CopyProgress {
                    done: before.done + this.done,
                    expected: before.expected + this.expected,
                };
                look(progress)
            };
            match copy(supervisor, &line, &mut look)? {
                CopyEnd::Done => before = progress,
                other => return Ok(other),
            }
        }
        Ok(CopyEnd::Done)
    }

    /// These `.drv`s and all that they need to be realised, each with the size of its NAR in bytes; as much of it as Nix says.
    ///
    /// # Errors
    /// As [`Self::copy_drvs_to`].
    pub fn sizes_of_closure(
        &mut self,
        supervisor: &mut Supervisor,
        drvs: &[&DrvPath],
    ) -> Result<HashMap<StorePath, u64>, Failure> {
        let mut sizes = HashMap::new();
        for batch in batches(&store_paths_of(drvs)) {
            let options = self.options(supervisor)?;
            let line = command::sizes_of_closure(batch, &options);
            let finished = self.run(supervisor, &line)?.finished;
            sizes.extend(finished.text().lines().filter_map(|line| {
                let mut words = line.split_whitespace();
                let path = StorePath::parse(words.next()?).ok()?;
                Some((path, words.next()?.parse::<u64>().ok()?))
            }));
        }
        Ok(sizes)
    }

    /// Copies outputs with all that they need into a store; what it has is not copied again. `look` as in
    /// [`Self::copy_drvs_to`].
    ///
    /// # Errors
    /// As [`Self::copy_drvs_to`].
    pub fn copy_outputs_to(
        &mut self,
        supervisor: &mut Supervisor,
        to: &StoreUrl,
        outputs: &[&StorePath],
        mut look: impl FnMut(CopyProgress) -> CopyOrder,
    ) -> Result<CopyEnd, Failure> {
        for batch in batches(outputs) {
            let line = self.copy_outputs_to_line(supervisor, to, batch)?;
            match copy(supervisor, &line, &mut look)? {
                CopyEnd::Done => {}
                other => return Ok(other),
            }
        }
        Ok(CopyEnd::Done)
    }

    /// The command of [`Self::copy_outputs_to`].
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn copy_outputs_to_line(
        &mut self,
        supervisor: &mut Supervisor,
        to: &StoreUrl,
        outputs: &[&StorePath],
    ) -> Result<CommandLine, Failure> {
        let options = self.options(supervisor)?;
        Ok(command::copy_outputs_to(to, outputs, &options))
    }

    /// Copies a `.drv`, with all that it needs to be realised, from a store. `look` as in [`Self::copy_drvs_to`].
    ///
    /// # Errors
    /// As [`Self::copy_drvs_to`].
    pub fn copy_drv_from(
        &mut self,
        supervisor: &mut Supervisor,
        from: &StoreUrl,
        drv: &DrvPath,
        mut look: impl FnMut(CopyProgress) -> CopyOrder,
    ) -> Result<CopyEnd, Failure> {
        let line = self.copy_drv_from_line(supervisor, from, drv)?;
        let (end, output) = copy_with_output(supervisor, &line, &mut look)?;
        if end != CopyEnd::Done {
            // Where the share is a substituter, too, no later command is to wait for it again.
            self.note_unreachable(&output);
            self.options(supervisor)?;
        }
        Ok(end)
    }

    /// The command of [`Self::copy_drv_from`].
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn copy_drv_from_line(
        &mut self,
        supervisor: &mut Supervisor,
        from: &StoreUrl,
        drv: &DrvPath,
    ) -> Result<CommandLine, Failure> {
        let options = self.options(supervisor)?;
        Ok(command::copy_drv_from(from, drv, &options))
    }
}

fn store_paths_of<'a>(drvs: &[&'a DrvPath]) -> Vec<&'a StorePath> {
    drvs.iter().map(|drv| drv.as_store_path()).collect()
}

/// Runs a `nix copy` until it ends, is to be stopped, or stands still.
fn copy(
    supervisor: &mut Supervisor,
    line: &CommandLine,
    look: &mut impl FnMut(CopyProgress) -> CopyOrder,
) -> Result<CopyEnd, Failure> {
    copy_with_output(supervisor, line, look).map(|(end, _)| end)
}

/// The same, with what Nix has printed.
fn copy_with_output(
    supervisor: &mut Supervisor,
    line: &CommandLine,
    look: &mut impl FnMut(CopyProgress) -> CopyOrder,
) -> Result<(CopyEnd, NixOutput), Failure> {
    // So that it says how far it is.
    let line = command::structured(line);
    let mut running = [supervisor.start(&line, OnStop::TermThenKill)?];
    let mut stderr = Vec::new();
    let mut movement = Movement::default();
    let mut moved = Instant::now();
    let mut work = 0;
    let mut measured = moved;
    let mut given_up = None;
    while running[0].ended.is_none() {
        let due = Instant::now() + LOOK_EVERY;
        supervisor.watch(&mut running, Some(due), |_, bytes| {
            stderr.extend_from_slice(bytes);
            if movement.read(bytes) {
                moved = Instant::now();
            }
        })?;
        if given_up.is_some() {
            continue;
        }
        if measured.elapsed() >= LOOK_EVERY {
            measured = Instant::now();
            let done = work_of(running[0].id()).unwrap_or(0);
            if done > work + NO_WORK {
                moved = measured;
            }
            work = done;
        }
        if look(movement.progress) == CopyOrder::Stop {
            given_up = Some(CopyEnd::Stopped);
        } else if movement.has_upload_stalled
            || moved.elapsed() >= PATIENCE && movement.uploading.is_empty()
        {
            given_up = Some(CopyEnd::Stalled);
        }
        if given_up.is_some() && running[0].ended.is_none() {
            running[0].stop(GRACE);
        }
        // From 2.26 on, Nix prints about twenty lines for each path.
        if running[0].ended.is_none() {
            supervisor.breathe();
        }
    }
    supervisor.check()?;
    let [running] = running;
    let ending = running.finished().ending;
    let output = NixOutput::of(&stderr);
    let end = if ending.success() {
        CopyEnd::Done
    } else {
        given_up.unwrap_or_else(|| CopyEnd::Failed(output.final_message(ending)))
    };
    Ok((end, output))
}

/// What a process does in a second while it waits, at most, by the measure of [`work_of`]: it prints a line, and looks at the clock
/// (measured: 4 KiB).
const NO_WORK: u64 = 16 << 10;

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
struct Movement {
    /// A line without its end.
    rest: Vec<u8>,
    /// The last numbers of each activity.
    numbers: HashMap<u64, Value>,
    progress: CopyProgress,
    /// The activities that copy one path each, as long as they last.
    copying: HashSet<u64>,
    /// The downloads over HTTP that run, and how much of them has come since that counted as movement, in bytes.
    downloading: HashSet<u64>,
    came: u64,
    /// The uploads over HTTP that run. Only late versions print how far one is (2.34 does, 2.26 does not), and a large path may take
    /// minutes. So curl decides whether one stands still ([`command::copy_outputs_to`]).
    uploading: HashSet<u64>,
    /// curl has given an upload up. Nix would try it four times more, each as long.
    has_upload_stalled: bool,
}

/// The types of the activities that copy one path and several, and that transfer a file; and of a result that says how far something
/// is.
const COPY_PATH: u64 = 100;
const FILE_TRANSFER: u64 = 101;
const COPY_PATHS: u64 = 103;
const PROGRESS: u64 = 105;

impl Movement {
    /// Reads what was printed; true where something has moved.
    fn read(&mut self, bytes: &[u8]) -> bool {
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
        let mut supervisor = Supervisor::install(&crate::log::Log::default()).unwrap();
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
