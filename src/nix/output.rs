//! What a Nix program printed, as far as later decisions need it: what it built and copied, what failed and why.
//!
//! Reads the events of [`super::structured`], and Nix's own text where it was not asked for structure. It asks no store: whether
//! what Nix names is there is not known here.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::mem::discriminant;
use std::path::{Path, PathBuf};

use super::fault::{
    Cause, Fault, NO_MACHINE, cause_of_builder, drv_of, fault, fault_of_machine, is_time_alone,
};
use super::message::{self, Message, MessageLines};
use super::structured::{BuildCounts, Ended, Event, LogReader};
use super::trouble::{Trouble, is_about_settings, is_git_without_network, may_be_of_git, trouble};
use super::{DrvPath, StorePath};
use crate::command_line::Ending;
use crate::secrets::shortened;
use crate::text::{begin_of, without_escapes};

/// How many of a builder's last lines are kept, and how much of each, in characters.
pub const LAST_LINES: usize = 25;
const LINE_AT_MOST: usize = 1_000;

/// How much of an unstructured line is read for what it may say of builds and caches, in bytes.
const PLAIN_AT_MOST: usize = 4 << 10;

/// What a Nix program printed so far, as far as it matters.
///
/// Nix's messages are not documented; the ones used here were read off 2.8, 2.26 and 2.34. Whether a step has succeeded never
/// depends on them: only what failed, why, and what to try next.
#[derive(Debug, Default)]
pub struct NixOutput {
    /// The derivations whose build began.
    pub begun: BTreeSet<DrvPath>,
    /// The derivations that failed by themselves, in the order in which they did: not those that only needed one of them.
    pub faults: Vec<Fault>,
    /// The store paths that came from a cache.
    pub substituted: BTreeSet<StorePath>,
    /// URLs of files in caches that could not be reached. A cache that answers with an error is reached.
    pub unreachable: BTreeSet<String>,
    /// The text of the message that Nix ended with.
    pub error: Option<String>,
    /// The place in an expression that this message names: `FILE:LINE:COLUMN`.
    pub place: Option<String>,
    /// The folder of the store, where it was asked for because [a path is missing](Self::lacks_path).
    pub store: Option<PathBuf>,
    /// That message with all its parts.
    message: Option<Message>,
    /// A message that comes line by line, so far.
    gathered: MessageLines,
    /// What is known of other machines that build for this one.
    machines: Machines,
    /// What Nix says of something that something else needs.
    needed: Needed,
    /// How many messages say more than that it failed, as far as they are Nix's own.
    reasons: usize,
    /// The message about an assertion of Nix's own that did not hold: Nix aborts then.
    pub assertion: Option<String>,
    /// Infrastructure failures that stand in other messages than the one that Nix ended with.
    other_troubles: BTreeSet<Trouble>,
    /// The builds that are running, by their activity.
    running: HashMap<u64, RunningBuild>,
    /// The builds that ended last: which of them failed is often known from Nix's last message only.
    ended: VecDeque<RunningBuild>,
    /// How far all builds are, as Nix counted last.
    counts: BuildCounts,
    /// How many builds failed, by Nix's count, that no message has named so far.
    failed: usize,
    /// How many failures Nix has counted of derivations whose build never began: no machine can build them, or something that
    /// they need has failed.
    not_begun: usize,
    /// The builds that succeeded, as far as that is certain.
    done: BTreeSet<DrvPath>,
    /// The only build that runs has succeeded: Nix counts it before it says that it ends.
    ends_well: bool,
    /// The derivation that the next lines of a message are about.
    about: Option<DrvPath>,
    /// Whether the message that is being read is certainly Nix's own.
    is_certain: bool,
    /// Nix has just counted a failure: nothing else comes before its message about it (2.8, 2.26, 2.34, also of daemons).
    has_counted: bool,
    /// How many faults were known before that message.
    faults_before: usize,
}

/// Other machines, and what they build.
#[derive(Debug, Default)]
struct Machines {
    /// Of each build there the machine, and why it has failed.
    builds: HashMap<DrvPath, (String, Told)>,
    /// The one that the message is about that is being read, and why it has failed; no cause where the machine's system is why.
    named: Option<(DrvPath, Option<Cause>)>,
    /// One could not be reached, or broke off. (A builder may print that too: it explains only that no machine built something.)
    is_one_gone: bool,
}

/// What is told of why a build on another machine has failed. A builder may print that as well, before and after the machine.
#[derive(Debug, Default)]
enum Told {
    #[default]
    Nothing,
    Cause(Cause),
    /// Of causes that differ, nothing is known but that it has failed.
    Differently,
}

impl Machines {
    /// The cause that the message tells that is being read.
    fn named_cause(&mut self) -> Option<&mut Cause> {
        self.named.as_mut().and_then(|(_, cause)| cause.as_mut())
    }

    /// The message ends that is being read.
    fn conclude(&mut self) {
        let Some((drv, cause)) = self.named.take() else {
            return;
        };
        if let Some((_, told)) = self.builds.get_mut(&drv) {
            *told = match (std::mem::take(told), cause) {
                (Told::Nothing, None) => Told::Nothing,
                (Told::Nothing, Some(cause)) => Told::Cause(cause),
                (Told::Cause(before), Some(cause))
                    if discriminant(&before) == discriminant(&cause) =>
                {
                    Told::Cause(cause)
                }
                _ => Told::Differently,
            };
        }
    }
}

/// What Nix says of something that something else needs.
#[derive(Debug, Default)]
struct Needed {
    /// It failed.
    failed: bool,
    /// It has not come from a cache that lists it, and was not to be built instead: why, in Nix's words.
    not_substituted: Option<String>,
    /// The last error of which this may be the reason.
    before: Option<String>,
}

/// A build, and the last lines of its log.
#[derive(Debug)]
struct RunningBuild {
    drv: DrvPath,
    lines: VecDeque<String>,
}

/// SIGABRT: Nix ended itself, because an assertion of its own did not hold, or nothing caught an exception.
pub(super) const ABORTED: i32 = 6;

/// How the garbage collector may have disturbed an evaluation or a build.
#[derive(Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// This path is missing. Only the store knows whether it was collected, or never there.
    Gone(StorePath),
    /// The daemon went away, as its worker does when a `.drv` is collected that it is about to build.
    Daemon,
    /// Nix aborted, as it does for the same reason where there is no daemon.
    Aborted,
    /// Something that a derivation needs could not be had, and nothing failed to build: a source is missing, of which Nix says nothing.
    Unnamed,
}

/// What an evaluation lacked that is no store path as a whole. What Nix has fetched or copied before has no root, and a collection may take it
/// while the evaluation reads it (`fetchTarball` and `builtins.path` with a `sha256`).
#[derive(Debug, PartialEq, Eq)]
pub struct LackedFile {
    /// The store path.
    pub path: StorePath,
    /// The whole path of the file, as the message has it.
    pub file: PathBuf,
}

impl LackedFile {
    /// Whether the file is there by now, and what it leads to. None where that cannot be said: the store path has its files elsewhere, not at
    /// the place that the message names (`local?root=`, from 2.34 on), or the file's name is no UTF-8.
    #[must_use]
    pub fn is_there(&self) -> Option<bool> {
        let is_known = !self.file.to_string_lossy().contains('\u{fffd}');
        (is_known && self.is_path_there()).then(|| self.file.exists())
    }

    /// Whether this is a folder of a checkout that is named as the store names its paths (`rootfs/nix/store/…`), if the path is not valid: one
    /// that the collector took is not there.
    #[must_use]
    pub fn is_of_checkout(&self) -> bool {
        !self.file.starts_with(self.path.as_path()) && self.is_path_there()
    }

    /// Whether the store path is there, where the message names it.
    fn is_path_there(&self) -> bool {
        let is_path = |above: &&Path| above.file_name() == self.path.as_path().file_name();
        let mut above = self.file.ancestors().filter(is_path);
        above.any(|path| path.symlink_metadata().is_ok())
    }
}

impl NixOutput {
    /// Whether a build has this activity.
    #[must_use]
    pub fn is_running(&self, activity: u64) -> bool {
        self.running.contains_key(&activity)
    }

    /// What a program printed altogether.
    #[must_use]
    pub fn of(printed: &[u8]) -> Self {
        let mut nix_output = Self::default();
        let mut reader = LogReader::default();
        reader.read(printed, |event| nix_output.read(&event));
        reader.finish(|event| nix_output.read(&event));
        nix_output.settle();
        nix_output
    }

    /// Ends the reading: a message that came line by line is complete.
    pub fn settle(&mut self) {
        if let Some(message) = self.gathered.message() {
            self.end_with(Some(message));
        }
    }

    fn end_with(&mut self, message: Option<Message>) {
        self.error = message.as_ref().map(|message| message.text.clone());
        self.place = message.as_ref().and_then(|message| message.place.clone());
        self.message = message;
    }

    /// Reads one more event.
    pub fn read(&mut self, event: &Event<'_>) {
        match event {
            Event::Message {
                text, passed_on, ..
            } => {
                self.about = None;
                self.machines.conclude();
                self.faults_before = self.faults.len();
                let text = without_escapes(text);
                let is_error = message::is_begin(text.lines().next().unwrap_or_default());
                let is_counted = is_error && std::mem::take(&mut self.has_counted);
                self.is_certain = !passed_on || is_counted;
                match Message::last(&text) {
                    Some(message) if is_error => self.read_message(message),
                    _ => {
                        for line in text.lines() {
                            self.read_line(line, true);
                        }
                    }
                }
                self.about = None;
            }
            Event::Plain(line) => {
                let begin = without_escapes(&String::from_utf8_lossy(line.bytes));
                let begin = begin.trim_end();
                self.gathered.add(begin);
                if line.omitted > 0 {
                    self.gathered.cut();
                }
                self.read_line(&begin_of(begin, PLAIN_AT_MOST), false);
            }
            Event::BuildBegins {
                id, drv, machine, ..
            } => {
                self.begun.insert(drv.clone());
                if !machine.is_empty() {
                    let machine = (machine.to_string(), Told::Nothing);
                    self.machines.builds.insert(drv.clone(), machine);
                }
                let build = RunningBuild {
                    drv: drv.clone(),
                    lines: VecDeque::new(),
                };
                self.running.insert(*id, build);
            }
            Event::BuildLine { id, line, .. } => {
                if let Some(build) = self.running.get_mut(id) {
                    if build.lines.len() == LAST_LINES {
                        build.lines.pop_front();
                    }
                    build.lines.push_back(shortened_line(line));
                }
            }
            Event::BuildEnds { id } => {
                if let Some(build) = self.running.remove(id) {
                    if std::mem::take(&mut self.ends_well) {
                        self.done.insert(build.drv.clone());
                    }
                    if self.ended.len() == ENDED_AT_MOST {
                        self.ended.pop_front();
                    }
                    self.ended.push_back(build);
                }
            }
            Event::CopyBegins { path, .. } => {
                self.substituted.insert(path.clone());
            }
            Event::Builds(counts) => {
                self.has_counted |= counts.failed > self.counts.failed;
                let ended = counts.ended_since(self.counts);
                if ended == Some(Ended::Failed) {
                    self.failed += 1;
                } else if counts.failed > self.counts.failed {
                    self.not_begun += 1;
                }
                // Where several run, the counts do not say which of them ends.
                self.ends_well = ended == Some(Ended::Done) && self.running.len() == 1;
                self.counts = *counts;
            }
            Event::Copied { .. } | Event::Begins(_) | Event::TooLong(_) => {}
        }
    }

    /// Reads a whole message of Nix's, or one that may be its own. The text of a `throw` says nothing about a build.
    fn read_message(&mut self, message: Message) {
        self.gathered = MessageLines::default();
        if !message.is_expressions_own() {
            let mut lines = message.text.lines();
            self.read_error(lines.next().unwrap_or_default(), true);
            for line in lines {
                self.read_continuation(&format!("       {line}"), true);
            }
        }
        self.end_with(Some(message));
    }

    /// Reads one line, which is a message of Nix's or may be one.
    fn read_line(&mut self, line: &str, message: bool) {
        let text = line.trim_start();
        if text.starts_with('>') && line.len() > text.len() {
            // A line of a builder's log that Nix quotes in its message.
            return;
        }
        if let Some(error) = text.strip_prefix("error: ") {
            self.about = None;
            self.error = Some(error.to_owned());
            self.read_error(error, message);
        } else {
            self.read_continuation(line, message);
        }
    }

    /// Reads a line that begins no message.
    fn read_continuation(&mut self, line: &str, message: bool) {
        let text = line.trim_start();
        if text.starts_with('>') && line.len() > text.len() {
            return;
        }
        if text.starts_with(DISK_NOTE) {
            if let Some(cause) = self.machines.named_cause() {
                *cause = Cause::DiskFull;
                return;
            }
            // About the build that the same message names; in Nix's own text, about the last one.
            let before = if message { self.faults_before } else { 0 };
            if let Some(fault) = self.faults[before..].last_mut() {
                fault.cause = Cause::DiskFull;
            }
        } else if let Some(reason) = text.strip_prefix("Reason: ") {
            if let Some(drv) = self.about.clone() {
                self.read_reason(drv, reason.trim_end_matches('.'), message);
            }
        } else if let Some(hash) = text.strip_prefix("specified: ") {
            self.amend_hash(": specified ", hash);
        } else if let Some(hash) = text.strip_prefix("got: ") {
            self.amend_hash(", got ", hash);
        } else if let Some(what) = after_any(text, ["Required system: ", "Required features: "]) {
            self.amend_platform("needs ", what);
        } else if let Some(what) = after_any(text, ["Current system: ", "Available features: "]) {
            self.amend_platform(", this host has ", what);
        } else if text.starts_with("Unable to start any build;") {
            // 2.26 prints it in a line of its own.
            self.add_missing_machine(message);
        } else if !message {
            self.read_text(text);
        } else if !line.starts_with(' ') {
            self.read_warning(text);
        }
    }

    fn read_error(&mut self, error: &str, message: bool) {
        self.reasons += usize::from(!message || self.is_certain);
        self.machines.conclude();
        if let Some((drv, cause)) = fault_of_machine(error) {
            if self.machines.builds.contains_key(&drv) {
                let cause = match cause {
                    Cause::Other(why) => match trouble(&why, true) {
                        Some(Trouble::DiskFull) => Some(Cause::DiskFull),
                        Some(_) => None,
                        None => Some(Cause::Other(why)),
                    },
                    cause => Some(cause),
                };
                self.about = Some(drv.clone());
                self.machines.named = Some((drv, cause));
            }
        } else if let Some(fault) = fault(error) {
            self.add(fault, message);
        } else if error.starts_with("output '") && error.contains(" is not allowed to refer to ") {
            let drv = self.ended_last();
            let cause =
                Cause::Output("its output refers to a path that it must not refer to".into());
            self.add(Fault { drv, cause }, message);
        } else if error.starts_with("unable to start any build")
            || error.starts_with("Unable to start any build;")
        {
            self.add_missing_machine(message);
        } else if is_time_alone(error) {
            // In Nix's own text a builder may print this of its own tests: there it counts only where nothing else has failed.
            if message || self.faults.is_empty() {
                let drv = self.ended_last();
                let cause = Cause::Time(format!("it {error}"));
                self.add(Fault { drv, cause }, message);
            }
        } else if let Some(drv) = quoted_after(error, "Cannot build '").and_then(drv_of) {
            self.about = Some(drv);
        } else if error.starts_with("some substitutes for ") && (!message || self.is_certain) {
            let what = error.split(" (usually ").next().unwrap_or(error);
            let why = match self.needed.before.take() {
                Some(before) => format!("{what}: {before}"),
                None => what.to_owned(),
            };
            self.needed.not_substituted.get_or_insert(why);
        } else if names_dependencies(error) {
            self.depends_on_a_failure(message);
        } else if !error.starts_with("path '") {
            self.needed.before = Some(error.to_owned());
        }
    }

    /// The message that is being read says no more than that something else failed, whoever prints it.
    fn depends_on_a_failure(&mut self, message: bool) {
        self.needed.failed |= self.may_be_nixs(message);
        let counted = usize::from(!message || self.is_certain);
        self.reasons = self.reasons.saturating_sub(counted);
    }

    /// Adds the fault that neither this host nor a remote builder builds something. Before 2.3x, Nix names no derivation.
    fn add_missing_machine(&mut self, message: bool) {
        let cause = "this host builds nothing itself (`max-jobs` is 0), and none of its `builders` accepted it";
        let cause = Cause::Platform(cause.into());
        self.add(Fault { drv: None, cause }, message);
    }

    /// The derivation that an error without a name is about: its build ended last, or is the only one.
    fn ended_last(&self) -> Option<DrvPath> {
        let only = || self.begun.first().filter(|_| self.begun.len() == 1);
        let last = self.ended.back().map(|build| &build.drv);
        last.or_else(only).cloned()
    }

    /// Reads why a derivation could not be built, as Nix since 2.3x prints it: in a line of its own.
    fn read_reason(&mut self, drv: DrvPath, reason: &str, message: bool) {
        let cause = if is_a_dependency(reason) {
            return self.depends_on_a_failure(message);
        } else if reason.starts_with("local builds are disabled") {
            return self.add_missing_machine(message);
        } else if NO_MACHINE.iter().any(|start| reason.starts_with(start)) {
            Cause::Platform(String::new())
        } else {
            cause_of_builder(reason).unwrap_or_else(|| Cause::Other(reason.to_owned()))
        };
        if let Some(of_machine) = self.machines.named_cause() {
            *of_machine = cause;
            return;
        }
        let drv = Some(drv);
        self.add(Fault { drv, cause }, message);
    }

    fn amend_hash(&mut self, words: &str, hash: &str) {
        let here = self.faults.last_mut().map(|fault| &mut fault.cause);
        let elsewhere = self.machines.named_cause();
        if let Some(Cause::Hash(which)) = elsewhere.or(here)
            && !which.contains(words)
        {
            which.push_str(words);
            which.push_str(hash.trim());
        }
    }

    fn amend_platform(&mut self, words: &str, what: &str) {
        if let Some(Fault {
            cause: Cause::Platform(needs),
            ..
        }) = self.faults.last_mut()
        {
            needs.push_str(words);
            needs.push_str(what);
        }
    }

    /// Reads a line of a Nix that was not asked for structure, or of something that writes beside it.
    fn read_text(&mut self, text: &str) {
        // Nix's own text, but a builder and a trace may print the same.
        if let Some(drv) = quoted_after(text, "building '") {
            if self.begun.len() < IN_TEXT_AT_MOST {
                self.begun.extend(DrvPath::parse(drv));
            }
        } else if let Some(path) = quoted_after(text, "copying path '") {
            if self.substituted.len() < IN_TEXT_AT_MOST {
                self.substituted.extend(StorePath::parse(path));
            }
        } else if text.contains(": Assertion `") && text.ends_with("' failed.") {
            self.assertion = Some(text.to_owned());
        } else if is_git_without_network(text) {
            self.other_troubles.insert(Trouble::NotDownloaded);
        } else {
            self.read_warning(text);
        }
    }

    fn read_warning(&mut self, text: &str) {
        if text.starts_with("cannot build on '") {
            self.machines.is_one_gone = true;
        }
        if let Some(url) = quoted_after(text, "warning: unable to download '") {
            // While something is built, a builder may print it too, and Nix has asked its caches before.
            let ours = self.begun.is_empty();
            if ours
                && self.unreachable.len() < UNREACHABLE_AT_MOST
                && !["; retrying in", "; using cached version", "HTTP error"]
                    .iter()
                    .any(|other| text.contains(other))
            {
                self.unreachable.insert(url.to_owned());
            }
        }
    }

    /// Whether no build has failed, by Nix's messages and its count.
    fn nothing_failed(&self) -> bool {
        self.faults.is_empty() && self.failed == 0
    }

    /// Whether a message about a failed build can be Nix's own, as far as that is known.
    fn may_be_nixs(&self, message: bool) -> bool {
        !message || self.is_certain || !self.faults.is_empty()
    }

    /// Adds a fault. A message that may be a builder's counts only where Nix has counted a failure that no message has named so
    /// far, and never for a build that succeeded.
    fn add(&mut self, mut fault: Fault, message: bool) {
        let drv = fault.drv.as_ref();
        let is_begun = drv.is_some_and(|drv| self.begun.contains(drv));
        let is_done = drv.is_some_and(|drv| self.done.contains(drv));
        let is_platform = matches!(fault.cause, Cause::Platform(_));
        let explains = if is_platform {
            !is_begun && self.not_begun > 0
        } else {
            !is_done && self.failed > 0
        };
        // Nix prints some of them twice: when they happen, and at its end.
        let is_known = |before: &Fault| {
            before.drv == fault.drv && discriminant(&before.cause) == discriminant(&fault.cause)
        };
        if self.faults.iter().any(is_known) {
            return;
        }
        if message && !self.is_certain && !explains {
            return;
        }
        if !is_platform {
            self.failed = self.failed.saturating_sub(1);
        }
        // The status of the hook, where another machine has built it. Of a builder that failed there it says so (2.8, 2.26, 2.34, over ssh
        // and ssh-ng); else it was the connection, or what the machine needs beside the builder, such as room on its disk.
        self.machines.conclude();
        let machine = drv.and_then(|drv| self.machines.builds.remove(drv));
        if let (Cause::Status(1), Some((machine, told))) = (&fault.cause, machine) {
            match told {
                Told::Cause(cause) => fault.cause = cause,
                Told::Differently => {}
                Told::Nothing => {
                    self.machines.is_one_gone = true;
                    fault.cause =
                        Cause::Platform(format!("{machine} was lost, or could not go on"));
                }
            }
        }
        if self.faults.len() < FAULTS_AT_MOST {
            self.faults.push(fault);
        }
    }

    /// Whether nothing that Nix printed explains its failure.
    #[must_use]
    pub fn is_unexplained(&self) -> bool {
        self.faults.is_empty() && self.trouble(false).is_none() && !self.needed.failed
    }

    /// Whether the message that Nix ended with is the text of a `throw` or `abort`, as far as Nix says so.
    #[must_use]
    pub fn is_expressions_own(&self) -> bool {
        self.message
            .as_ref()
            .is_some_and(Message::is_expressions_own)
    }

    /// Whether the message that Nix ended with may be an expression's text that only looks like Nix's.
    fn may_be_imitated(&self) -> bool {
        self.is_expressions_own() || self.message.as_ref().is_some_and(Message::is_ambiguous)
    }

    /// Whether the expression itself names the store path that is missing, as far as Nix says so.
    #[must_use]
    pub fn is_of_named_path(&self) -> bool {
        self.message.as_ref().is_some_and(Message::is_of_named_path)
    }

    /// The infrastructure failure that Nix reports, if any; whether it was building (else evaluating) decides how its words are read.
    #[must_use]
    pub fn trouble(&self, building: bool) -> Option<Trouble> {
        if self.may_be_imitated() {
            return None;
        }
        let whole = self.message.as_ref().map(Message::whole);
        let of_message = whole.as_deref().and_then(|whole| trouble(whole, building));
        let other = || {
            // What git could not fetch may not have been needed: then Nix ends with something else.
            let of_git = whole.as_deref().is_none_or(may_be_of_git);
            let mut others = self.other_troubles.iter().copied();
            others.find(|trouble| *trouble != Trouble::NotDownloaded || of_git)
        };
        // The message that Nix ends with says only that something else failed.
        let of_dependency = || {
            // A builder may print that as well; where one has failed, that is why.
            let not_downloaded = building && self.not_delivered().is_some();
            not_downloaded.then_some(Trouble::NotDownloaded)
        };
        of_message.or_else(other).or_else(of_dependency)
    }

    /// Why something that is needed has not come from the cache that lists it, in Nix's words, where that is all that failed: the
    /// message that Nix ended with names only what needs it.
    pub(super) fn not_delivered(&self) -> Option<&str> {
        let why = self.needed.not_substituted.as_deref();
        why.filter(|_| self.needed.failed && self.nothing_failed())
    }

    /// Whether Nix has refused its own settings.
    #[must_use]
    pub fn refuses_settings(&self) -> bool {
        let whole = self.message.as_ref().map(Message::whole);
        !self.may_be_imitated() && whole.is_some_and(|whole| is_about_settings(&whole))
    }

    /// The frames of the message that Nix ended with: how the evaluation came there.
    pub(super) fn frames(&self) -> &[String] {
        self.message.as_ref().map_or(&[], |message| &message.frames)
    }

    /// Whether a machine that is to build for this one could not be reached.
    pub(super) fn misses_a_builder(&self) -> bool {
        self.machines.is_one_gone
    }

    /// The message that Nix ended with, with its place and the lines around it; none where it has printed none, or an empty one.
    /// Of a very long one the begin ([`message::MESSAGE_AT_MOST`]).
    #[must_use]
    pub fn whole_message(&self) -> Option<String> {
        let whole = self.message.as_ref().map(Message::whole);
        whole.filter(|whole| !whole.is_empty())
    }

    /// The message that Nix ended with, whole; where it has printed none, how it ended.
    #[must_use]
    pub fn final_message(&self, ending: Ending) -> String {
        self.whole_message().unwrap_or_else(|| match ending {
            Ending::Killed(11) => "Nix was killed by SIGSEGV: a recursion without end?".into(),
            ending => format!("Nix {ending}"),
        })
    }

    /// The builds that an error without a name may be about: those that began and did not certainly succeed.
    pub fn suspects(&self) -> impl Iterator<Item = DrvPath> {
        self.begun.difference(&self.done).cloned()
    }

    /// Whether a build has begun and not ended.
    #[must_use]
    pub fn is_building(&self) -> bool {
        !self.running.is_empty()
    }

    /// The build that failed last, by Nix's count, where no message names it.
    #[must_use]
    pub fn ended_badly(&self) -> Option<DrvPath> {
        self.ended_last().filter(|_| self.failed > 0)
    }

    /// How many builds Nix has counted as done.
    #[must_use]
    pub fn built(&self) -> usize {
        usize::try_from(self.counts.done).unwrap_or(usize::MAX)
    }

    /// The derivation that failed first.
    #[must_use]
    pub fn root_cause(&self) -> Option<&Fault> {
        self.faults.first()
    }

    /// The last lines that the builder of `drv` printed; none where Nix's output does not have them.
    #[must_use]
    pub fn last_lines(&self, drv: &DrvPath) -> Option<Vec<String>> {
        let mut builds = self.ended.iter().rev().chain(self.running.values());
        let build = builds.find(|build| build.drv == *drv)?;
        Some(build.lines.iter().cloned().collect())
    }

    /// Whether something needed a build that failed.
    pub(super) fn dependency_failed(&self) -> bool {
        self.needed.failed
    }

    /// How the garbage collector may have disturbed the evaluation or the build, if it has ended so and its last message is of that kind.
    #[must_use]
    pub fn disturbance(&self, ending: Ending) -> Option<Disturbance> {
        if ending == Ending::Killed(ABORTED) && self.has_lost_drv() {
            return Some(Disturbance::Aborted);
        }
        let error = self.error.as_deref()?;
        if self.may_be_imitated() {
            return None;
        }
        if self.trouble(false) == Some(Trouble::DaemonGone) {
            return Some(Disturbance::Daemon);
        }
        let of_dependency = |error: &str| {
            let (_, reason) = error.split_once("Reason: ").unwrap_or_default();
            names_dependencies(error) || is_a_dependency(reason)
        };
        if self.needed.failed && of_dependency(error) {
            let is_all = self.nothing_failed() && self.reasons == 0;
            return (is_all && self.trouble(true).is_none()).then_some(Disturbance::Unnamed);
        }
        self.named_path(lacked(error)?).map(Disturbance::Gone)
    }

    /// Whether the last message says that something is missing that may be a store path, or lie in one: only the store knows which, and
    /// [wants to say its folder](Self::store) before.
    #[must_use]
    pub fn lacks_path(&self) -> bool {
        let Some(named) = self.error.as_deref().and_then(lacked) else {
            return false;
        };
        let may_be_path = |above: &Path| {
            let path = above.to_str().map(StorePath::parse);
            path.is_some_and(|path| path.is_ok())
        };
        let is_one = is_base_name(named) || Path::new(named).ancestors().any(may_be_path);
        is_one && !self.may_be_imitated()
    }

    /// Whether the last message leaves out the folder of the store path that is missing, as that of 2.34 does where nothing of it was
    /// read yet.
    #[must_use]
    pub fn lacks_folder(&self) -> bool {
        let named = self.error.as_deref().and_then(lacked);
        named.is_some_and(is_base_name) && !self.may_be_imitated()
    }

    /// The store path that a message names, if it is one of the store that was asked: without its folder (2.34), or below the root of a
    /// store elsewhere (`local?root=/r`, of which messages before 2.34 name `/r/nix/store/…`, a folder that is there). A file of a
    /// checkout may be named as a store path, and is none.
    fn named_path(&self, named: &str) -> Option<StorePath> {
        let path = StorePath::parse(named).ok();
        let Some(store) = &self.store else {
            return path;
        };
        let base = match &path {
            None => named,
            Some(path) if path.store() == store => return Some(path.clone()),
            Some(path) => {
                let below_root = store.strip_prefix("/").unwrap_or(store);
                let is_below_root = path.store().ends_with(below_root) && path.store().is_dir();
                path.as_path()
                    .file_name()
                    .filter(|_| is_below_root)?
                    .to_str()?
            }
        };
        is_base_name(base).then(|| StorePath::parse(store.join(base).to_str()?).ok())?
    }

    /// The file in the store that an evaluation lacked, where its last message says that of one that is no store path as a whole.
    #[must_use]
    pub fn lacked_file(&self) -> Option<LackedFile> {
        let path = lacked(self.error.as_deref()?).filter(|_| !self.may_be_imitated())?;
        let above = Path::new(path).ancestors().skip(1);
        let of_store = above.filter_map(|above| self.named_path(above.to_str()?));
        // A folder in it may be named as a store path, too.
        of_store.last().map(|store_path| LackedFile {
            path: store_path,
            file: path.into(),
        })
    }

    /// Whether the assertion that did not hold is that a `.drv` is valid, which Nix has just seen or substituted
    /// (`DerivationGoal::loadDerivation`; from 2.14 on that it was read).
    fn has_lost_drv(&self) -> bool {
        self.assertion.as_deref().is_some_and(|text| {
            text.contains("Assertion `worker.evalStore.isValidPath(drvPath)'")
                || text.contains("/derivation-") && text.contains("Assertion `drv'")
        })
    }

    /// Whether Nix says that the value is no derivation. It says so of a string or a number; of a set without derivations it
    /// says nothing.
    #[must_use]
    pub fn no_derivation(&self) -> bool {
        self.error
            .as_deref()
            .is_some_and(|error| error.starts_with("expression does not evaluate to a derivation"))
    }
}

/// The path of which a message says that it is missing.
fn lacked(error: &str) -> Option<&str> {
    // 2.26 quotes no folder.
    let unquoted = error
        .strip_prefix("reading directory ")
        .filter(|rest| rest.starts_with('/'))
        .and_then(|rest| rest.split_once(": No such file or directory"));
    let path = if let Some((path, _)) = unquoted {
        path
    } else {
        let (opening, rest) = error.split_once(['\'', '"'])?;
        // The name of a file may have quotes of its own, and such words behind them.
        let ends = rest.rmatch_indices(['\'', '"']).map(|(end, _)| end);
        let mut ends = ends.take(QUOTES_AT_MOST);
        let end = ends.find(|end| says_missing(opening, &rest[end + 1..]))?;
        &rest[..end]
    };
    // From 2.26 on, one in a private store is shown behind a slash of its own.
    let bare = path.strip_prefix('/').filter(|it| it.starts_with('/'));
    Some(bare.unwrap_or(path))
}

/// How many quotes of a message are looked at, from its end: those of a file's name, and of the words behind it.
const QUOTES_AT_MOST: usize = 64;

/// Whether these words before a quoted path, and those behind it, say that it is missing. They are whole sentences of Nix's: an error may quote
/// anything, and what it quotes may sound like that.
fn says_missing(before: &str, after: &str) -> bool {
    let line = after.lines().next().unwrap_or_default();
    let is_last = !line.contains(['\'', '"']);
    match before {
        "" | "path " | "store path " | "file " | "derivation " => {
            let says = line.starts_with(" is not valid")
                // 2.34, about a source that an evaluation without side effects reads, as that of a flake. (Of a name that no store path can have
                // it says why.)
                || line.trim_end() == " is not a valid store path"
                || line.starts_with(" does not exist")
                // 2.34, about a path that a store file is to refer to.
                || line.starts_with(" is required, but there is no substituter");
            says && is_last
        }
        // `findFile`, about an entry of a search path; older versions also of what they cannot read or import.
        "cannot find " | "cannot read " | "cannot import " => {
            line.starts_with(", since path '") && line.contains("' is not valid")
        }
        // 2.34, about what a substituted path refers to.
        "reference " => line.starts_with(" of path '") && line.contains("' is not a valid path"),
        // About a source, with `substitute = false`.
        "dependency " => line.starts_with(" of '") && line.contains("' does not exist, and subst"),
        "cannot build missing derivation " | "failed to obtain derivation of " => true,
        // An error of the system's: `getting status of`, `opening file`, from 2.34 on also `cannot read directory`.
        _ => {
            let mut words = before.split(' ');
            let is_verb =
                |word: &str| word.ends_with("ing") && !matches!(word, "string" | "missing");
            let says = words
                .next()
                .is_some_and(|word| word == "cannot" || is_verb(word))
                && before
                    .bytes()
                    .all(|it| it == b' ' || it.is_ascii_lowercase());
            says && is_last && line.starts_with(": No such file or directory")
        }
    }
}

/// Whether this is a store path without its folder.
fn is_base_name(path: &str) -> bool {
    !path.contains('/') && StorePath::parse(&format!("/s/{path}")).is_ok()
}

/// Whether a message says only that something failed that is needed.
fn names_dependencies(error: &str) -> bool {
    error.contains("dependencies of derivation") && error.contains(" failed to build")
}

/// The same of a reason, which later versions print in a line of its own.
fn is_a_dependency(reason: &str) -> bool {
    reason.contains("dependency failed") || reason.contains("dependencies failed")
}

/// The part of a log's line that is kept. A secret is hidden before a line is cut: the half of one would not be known for what it is.
#[must_use]
pub fn shortened_line(line: &str) -> String {
    if line.len() <= LINE_AT_MOST {
        return line.to_owned();
    }
    shortened(line, LINE_AT_MOST)
}

/// The end of Nix's message about a failed build on a disk that is (nearly) full.
const DISK_NOTE: &str = "note: build failure may have been caused by lack of free disk space";

/// How many paths are kept that stand in text, which anything may print.
const IN_TEXT_AT_MOST: usize = 10_000;

/// How many URLs that could not be reached are kept, and how many faults.
const UNREACHABLE_AT_MOST: usize = 100;
const FAULTS_AT_MOST: usize = 1_000;

/// How many ended builds keep their last lines.
const ENDED_AT_MOST: usize = 64;

fn quoted_after<'a>(text: &'a str, start: &str) -> Option<&'a str> {
    text.strip_prefix(start)?
        .split_once('\'')
        .map(|(quoted, _)| quoted)
}

fn after_any<'a>(text: &'a str, starts: [&str; 2]) -> Option<&'a str> {
    starts.iter().find_map(|start| text.strip_prefix(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRV: &str = "/s/store/w11m5yi1fzmzl7ri7y308xcnn9jyzv3r-a.drv";
    const OUT: &str = "/s/store/0123456789abcdfghijklmnpqrsvwxyz-a";

    fn nix_output(text: &str) -> NixOutput {
        NixOutput::of(text.as_bytes())
    }

    fn message(text: &str) -> String {
        format!(
            "@nix {}\n",
            serde_json::json!({ "action": "msg", "level": 0, "msg": text, "raw_msg": text })
        )
    }

    /// The same as a daemon passes it on: it may be a builder's.
    fn passed_on(text: &str) -> String {
        format!(
            "@nix {}\n",
            serde_json::json!({ "action": "msg", "level": 0, "msg": text })
        )
    }

    #[test]
    fn a_file_that_an_evaluation_lacked_is_one_of_a_store_path() {
        let lacked =
            |message: &str| NixOutput::of(format!("error: {message}").as_bytes()).lacked_file();
        let base = "0123456789abcdfghijklmnpqrsvwxyz-x";
        let path = StorePath::parse(&format!("/s/{base}")).unwrap();
        let below = || LackedFile {
            path: path.clone(),
            file: format!("/s/{base}/sub/a.nix").into(),
        };
        for words in [
            "getting status of 'PATH': No such file or directory",
            "opening file 'PATH': No such file or directory",
            "opening directory 'PATH': No such file or directory",
            "path 'PATH' does not exist",
            "path '/PATH' does not exist",
            "reading directory PATH: No such file or directory",
            "cannot find 'PATH', since path 'PATH' is not valid",
            "cannot find 'PATH', since path '' is not valid",
            "cannot read 'PATH', since path '/s/x' is not valid",
            "reading symbolic link 'PATH': No such file or directory",
            "opening directory \"PATH\": No such file or directory",
            "cannot read directory \"PATH\": No such file or directory",
            "file 'PATH' does not exist",
            "'PATH' does not exist",
        ] {
            let message = words.replace("PATH", &format!("/s/{base}/sub/a.nix"));
            assert_eq!(lacked(&message), Some(below()), "{message}");
        }
        for other in [
            format!("path '{base}' is not valid"),
            format!("path '/s/{base}' is not valid"),
            format!("path '/s/{base}' is not a valid store path"),
            "getting status of '/home/x/a.nix': No such file or directory".to_owned(),
            "attribute 'x' missing".to_owned(),
            "path 'x' is not valid".to_owned(),
        ] {
            assert_eq!(lacked(&other), None, "{other}");
        }
    }

    #[test]
    fn a_path_without_its_folder_is_one_of_the_store_that_is_asked() {
        let base = "0123456789abcdfghijklmnpqrsvwxyz-x";
        let failed = Ending::Exited(1);
        let mut output = NixOutput::of(format!("error: path '{base}' is not valid").as_bytes());
        assert!(output.lacks_folder() && output.lacks_path());
        assert_eq!(output.disturbance(failed), None);
        output.store = Some("/s".into());
        let path = StorePath::parse(&format!("/s/{base}")).unwrap();
        assert_eq!(output.disturbance(failed), Some(Disturbance::Gone(path)));
        let other = NixOutput::of(b"error: path 'x' is not valid");
        assert!(!other.lacks_folder() && !other.lacks_path());
    }

    #[test]
    fn a_missing_path_is_one_of_the_store_that_was_asked() {
        let base = "0123456789abcdfghijklmnpqrsvwxyz-x";
        let own = StorePath::parse(&format!("/nix/store/{base}")).unwrap();
        let root = tempfile::tempdir().unwrap();
        let elsewhere = root.path().join("nix/store");
        std::fs::create_dir_all(&elsewhere).unwrap();
        for (named, is_own) in [
            ("/nix/store", true),
            (elsewhere.to_str().unwrap(), true),
            ("/nowhere/nix/store", false),
            ("/checkout/store", false),
            ("/checkout", false),
        ] {
            let path = format!("{named}/{base}");
            let said = |message: String| {
                let mut output = NixOutput::of(message.as_bytes());
                assert!(output.lacks_path() && !output.lacks_folder(), "{message}");
                output.store = Some("/nix/store".into());
                output
            };
            let whole = said(format!("error: path '{path}' is not valid"));
            let gone = is_own.then(|| Disturbance::Gone(own.clone()));
            assert_eq!(whole.disturbance(Ending::Exited(1)), gone, "{named}");
            let file = format!("{path}/{base}/y");
            let part = said(format!("error: path '{file}' does not exist"));
            let lacked = is_own.then(|| LackedFile {
                path: own.clone(),
                file: file.into(),
            });
            assert_eq!(part.lacked_file(), lacked, "{named}");
        }
    }

    #[test]
    fn a_source_that_is_missing_where_nothing_is_substituted_is_no_failed_build() {
        let path = "/s/0123456789abcdfghijklmnpqrsvwxyz-x";
        let message = format!(
            "error: dependency '{path}' of '{DRV}' does not exist, and substitution is disabled"
        );
        let gone = NixOutput::of(message.as_bytes()).disturbance(Ending::Exited(1));
        assert_eq!(
            gone,
            Some(Disturbance::Gone(StorePath::parse(path).unwrap()))
        );
    }

    #[test]
    fn the_name_of_a_missing_file_may_have_quotes_and_words_of_nix() {
        let path = "/s/0123456789abcdfghijklmnpqrsvwxyz-x";
        for name in [
            "it's text",
            "a \"b\" c",
            "'",
            "is 'x' here",
            "' is not valid",
            "x' does not exist",
            "x': No such file or directory",
        ] {
            let file = format!("{path}/{name}");
            for message in [
                format!("opening file '{file}': No such file or directory"),
                format!("path '{file}' does not exist"),
            ] {
                let output = NixOutput::of(format!("error: {message}").as_bytes());
                let lacked = output.lacked_file().map(|lacked| lacked.file);
                assert_eq!(lacked.as_deref(), Some(Path::new(&file)), "{message}");
            }
        }
    }

    #[test]
    fn what_an_error_quotes_is_no_sentence_about_a_missing_path() {
        let path = "/s/0123456789abcdfghijklmnpqrsvwxyz-x";
        for message in [
            format!("cannot coerce a set to a string: {{ a = \"{path}/b\"; c = \"where 'd' does not exist\"; }}"),
            format!("attribute '{path}/x' does not exist' missing"),
            format!("while parsing a TOML string: 'error: getting status of '{path}/x': No such file or directory'"),
            format!("unknown hash algorithm '{path}': No such file or directory'"),
            format!("string '{path}': No such file or directory' doesn't represent an absolute path"),
            format!("path '/x{path}' is not valid' is not in the Nix store"),
            format!("file '{path}' is not valid' was not found in the Nix search path"),
            "path '0123456789abcdfghijklmnpqrsvwxyz-.-f' is not a valid store path: name '.-f' is not valid".to_owned(),
        ] {
            let output = NixOutput::of(format!("error: {message}").as_bytes());
            assert!(!output.lacks_path(), "{message}");
            assert_eq!(output.lacked_file(), None, "{message}");
            assert_eq!(output.disturbance(Ending::Exited(1)), None, "{message}");
        }
    }

    #[test]
    fn text_and_structure_are_understood_alike() {
        let text = format!(
            "these 2 derivations will be built:\n  {DRV}\nbuilding '{DRV}'...\nhi\nbuilding '{DRV}' on 'ssh://x'...\n\
             copying path '{OUT}' from 'file:///c'...\n\u{1b}[31;1merror:\u{1b}[0m no\nlast"
        );
        let plain = nix_output(&text);
        let structured = nix_output(&format!(
            "@nix {{\"action\":\"start\",\"id\":1,\"type\":105,\"fields\":[\"{DRV}\",\"\",1,1]}}\n\
             @nix {{\"action\":\"start\",\"id\":2,\"type\":100,\"fields\":[\"{OUT}\",\"file:///c\",\"local\"]}}\n{}",
            message("\u{1b}[31;1merror:\u{1b}[0m no")
        ));
        for nix_output in [plain, structured] {
            assert_eq!(
                (nix_output.begun.len(), nix_output.substituted.len()),
                (1, 1)
            );
            assert_eq!(nix_output.error.as_deref(), Some("no"));
        }
    }

    #[test]
    fn a_message_of_any_length_is_whole_or_ends_with_an_ellipsis() {
        for length in [3_000, 60_000] {
            let text = format!("{}\nend", "é".repeat(length / 2));
            let printed = format!("error: {}\n", text.replace('\n', "\n       "));
            for nix_output in [nix_output(&printed), nix_output(&message(&printed))] {
                let ending = Ending::Exited(1);
                assert_eq!(nix_output.final_message(ending), text, "{length}");
                assert_eq!(nix_output.whole_message(), Some(text.clone()));
            }
        }
        // In one line, longer than what is one event; and in many.
        let line = format!("error: {}", "x".repeat(200_000));
        let lines = format!("error: x\n{}", "       y\n".repeat(50_000));
        for printed in [line, lines] {
            for nix_output in [nix_output(&printed), nix_output(&message(&printed))] {
                let message = nix_output.whole_message().unwrap();
                assert!(message.ends_with('…'), "{}", &message[message.len() - 9..]);
                assert_eq!(message.matches('…').count(), 1);
                let at_most = message::MESSAGE_AT_MOST;
                assert!((at_most - 100..at_most + 9).contains(&message.len()));
            }
        }
        // What looks like the begin of a message within a long line is none.
        let odd = format!(
            "error: {}error: x",
            "y".repeat(crate::nix::structured::PLAIN_AT_MOST - 7)
        );
        let message = nix_output(&odd).whole_message().unwrap();
        assert!(message.starts_with('y') && message.ends_with("y…"));
    }

    #[test]
    fn frames_without_end_do_not_take_the_place_of_the_message() {
        let frames = "       … while evaluating something with a name\n         at /x:1:1:\n\n"
            .repeat(20_000);
        let printed = format!("error:\n{frames}       error: the end\n");
        let nix_output = nix_output(&printed);
        assert_eq!(nix_output.whole_message().as_deref(), Some("the end"));
        assert!(nix_output.frames().len() < 1_000);
    }

    #[test]
    fn an_empty_message_is_none() {
        for printed in ["", "error:\n", "\n"] {
            let nix_output = nix_output(printed);
            assert_eq!(nix_output.whole_message(), None, "{printed:?}");
            assert_eq!(
                nix_output.final_message(Ending::Exited(1)),
                "Nix ended with status 1"
            );
        }
    }

    #[test]
    fn what_is_no_store_path_is_neither_built_nor_substituted() {
        let text = "building 'x'...\nbuilding '/s/store/x.drv'...\ncopying path '/etc/passwd' from 'x'...\n\
                    @nix {\"action\":\"start\",\"id\":1,\"type\":105,\"text\":\"building x\",\"fields\":[\"x\",\"\",1,1]}\n\
                    @nix {\"action\":\"start\",\"id\":2,\"type\":100,\"fields\":[\"x\",\"\",\"\"]}\n\
                    @nix {\"action\":\"stop\",\"id\":1}\n";
        let nix_output = nix_output(text);
        assert!(nix_output.begun.is_empty(), "{nix_output:?}");
        assert!(nix_output.substituted.is_empty(), "{nix_output:?}");
    }

    #[test]
    fn what_a_builder_prints_is_no_message() {
        let printed = format!(
            "@nix {{\"action\":\"start\",\"id\":1,\"type\":105,\"fields\":[\"{DRV}\",\"\",1,1]}}\n\
             @nix {{\"action\":\"result\",\"id\":1,\"type\":101,\"fields\":[\"error: hash mismatch in fixed-output derivation '{DRV}':\"]}}\n{}",
            message(&format!(
                "error: builder for '{DRV}' failed with exit code 1;\n       last 1 log lines:\n       > error: hash mismatch in fixed-output derivation '{DRV}':\n       > note: build failure may have been caused by lack of free disk space"
            ))
        );
        let nix_output = nix_output(&printed);
        assert_eq!(nix_output.faults.len(), 1);
        assert_eq!(nix_output.faults[0].cause, Cause::Status(1));
        let drv = DrvPath::parse(DRV).unwrap();
        assert_eq!(nix_output.last_lines(&drv).unwrap().len(), 1);
    }

    #[test]
    fn a_cache_is_unreachable_after_the_last_try_and_not_when_it_answers() {
        let text = "warning: error: unable to download 'http://a/nix-cache-info': Couldn't connect to server (7); retrying in 3 ms\n\
                    warning: unable to download 'http://b/x.narinfo': HTTP error 500\n\
                    warning: unable to download 'http://c/nix-cache-info': Could not connect to server (7) Failed to connect\n";
        let unreachable = nix_output(text).unreachable;
        assert_eq!(
            unreachable.iter().collect::<Vec<_>>(),
            ["http://c/nix-cache-info"]
        );
    }

    #[test]
    fn a_path_that_was_collected_is_not_confused_with_one_that_the_expression_names() {
        for error in [
            format!("path '{DRV}' is not valid"),
            format!("store path '{DRV}' does not exist"),
            format!("path '{DRV}' does not exist and cannot be created"),
            format!("cannot build missing derivation '{DRV}'"),
            format!("failed to obtain derivation of '{DRV}'"),
            format!("opening file '{DRV}': No such file or directory"),
            format!("path '{DRV}' is required, but there is no substituter that can build it"),
        ] {
            let disturbance =
                nix_output(&format!("error: {error}\n")).disturbance(Ending::Exited(1));
            assert_eq!(
                disturbance,
                Some(Disturbance::Gone(StorePath::parse(DRV).unwrap())),
                "{error}"
            );
        }
        for error in [
            "attribute 'a' missing",
            "path '/checkout/missing.nix' does not exist",
            "path 'x' does not exist",
            "opening file '/x/a.nix': No such file or directory",
        ] {
            assert_eq!(
                nix_output(&format!("error: {error}\n")).disturbance(Ending::Exited(1)),
                None,
                "{error}"
            );
        }
        let of_a_builder = format!(
            "error: path '{DRV}' is not valid\nerror: builder for '{DRV}' failed with exit code 1\n"
        );
        assert_eq!(
            nix_output(&of_a_builder).disturbance(Ending::Exited(1)),
            None,
            "only the last error is Nix's own"
        );
        assert_eq!(
            nix_output("error: unexpected end-of-file\n").disturbance(Ending::Exited(1)),
            Some(Disturbance::Daemon)
        );
        let lost =
            "nix: src/libstore/build/derivation-goal.cc:190: void f(): Assertion `drv' failed.";
        for (said, ending, expected) in [
            (lost, Ending::Killed(6), Some(Disturbance::Aborted)),
            // A builder may print that, and a trace.
            (lost, Ending::Exited(1), None),
            (lost, Ending::Killed(15), None),
            (
                "nix: src/a.cc:1: f: Assertion `drv' failed.",
                Ending::Killed(6),
                None,
            ),
        ] {
            let disturbance = nix_output(&format!("{said}\n")).disturbance(ending);
            assert_eq!(disturbance, expected, "{said}, {ending}");
        }
    }

    #[test]
    fn each_fault_is_known_with_its_cause() {
        for (error, cause) in [
            (
                format!("builder for '{DRV}' failed with exit code 2"),
                Cause::Status(2),
            ),
            (
                format!("builder for '{DRV}' failed due to signal 9 (Killed)"),
                Cause::Signal(9),
            ),
            (
                format!(
                    "builder for '{DRV}' failed to produce output path for output 'out' at '/s/x'"
                ),
                Cause::Output("did not produce its output `out`".into()),
            ),
            (
                format!("Cannot build '{DRV}'.\n       Reason: builder failed with exit code 2."),
                Cause::Status(2),
            ),
            (
                format!(
                    "hash mismatch in fixed-output derivation '{DRV}':\n         specified: sha256-A=\n            got:    sha256-B="
                ),
                Cause::Hash(": specified sha256-A=, got sha256-B=".into()),
            ),
            (
                format!("building of '{DRV}!*' from .drv file timed out after 1 seconds"),
                Cause::Time("it timed out after 1 seconds".into()),
            ),
            (
                format!(
                    "building of '{DRV}^*' from .drv file timed out after 1 seconds of silence"
                ),
                Cause::Time("it timed out after 1 seconds of silence".into()),
            ),
            (
                format!(
                    "a 'a' with features {{}} is required to build '{DRV}', but I am a 'b' with features {{kvm}}"
                ),
                Cause::Platform(
                    "needs 'a' with features {}, this host has 'b' with features {kvm}".into(),
                ),
            ),
            (
                format!(
                    "Cannot build '{DRV}'.\n       Reason: platform mismatch\n       Required system: 'a'\n       Current system: 'b'"
                ),
                Cause::Platform("needs 'a', this host has 'b'".into()),
            ),
        ] {
            let later = "error: builder for '/s/store/00000000000000000000000000000000-b.drv' failed with exit code 1\n";
            let nix_output = nix_output(&(message(&format!("error: {error}")) + later));
            let fault = nix_output.root_cause().unwrap();
            let drv = fault.drv.as_ref().unwrap().as_store_path();
            assert_eq!((drv.as_str(), &fault.cause), (DRV, &cause), "{error}");
        }
        // A name in an error of another kind.
        let other = nix_output(&message("error: attribute 'dependency failed' missing"));
        assert!(!other.needed.failed);
        for error in [
            "1 dependencies of derivation 'x' failed to build".to_owned(),
            format!("Cannot build '{DRV}'.\n       Reason: 1 dependency failed."),
        ] {
            let last = message(&format!("error: {error}"));
            // Alone, behind that of another derivation, which a daemon passes on, and behind what a builder prints.
            let of_another = passed_on(&format!("error: {error}"));
            for before in [String::new(), of_another, passed_on("error: hello")] {
                let nix_output = nix_output(&(before + &last));
                assert!(nix_output.needed.failed && nix_output.faults.is_empty());
                let unnamed = nix_output.disturbance(Ending::Exited(1));
                assert_eq!(unnamed, Some(Disturbance::Unnamed), "{error}");
            }
        }
    }

    #[test]
    fn why_a_build_has_failed_on_another_machine_is_why_it_has_failed() {
        let begins = format!(
            "@nix {{\"action\":\"start\",\"id\":1,\"type\":105,\"fields\":[\"{DRV}\",\"ssh://m\",1,1]}}\n"
        );
        let of_machine = |why: &str| format!("error: build of '{DRV}' on 'ssh://m' failed: {why}");
        let gone = || Cause::Platform("ssh://m was lost, or could not go on".into());
        for (said, status, cause) in [
            (
                of_machine(&format!("builder for '{DRV}' failed with exit code 3")),
                1,
                Cause::Status(3),
            ),
            (
                of_machine(&format!(
                    "building of '{DRV}!out' from in-memory derivation timed out after 6 seconds"
                )),
                1,
                Cause::Time("it timed out after 6 seconds".into()),
            ),
            (
                of_machine(&format!(
                    "hash mismatch in fixed-output derivation '{DRV}':\n         specified: sha256-A=\n            got:    sha256-B="
                )),
                1,
                Cause::Hash(": specified sha256-A=, got sha256-B=".into()),
            ),
            (
                of_machine("creating directory '/x': No space left on device"),
                1,
                Cause::DiskFull,
            ),
            (
                of_machine("creating directory '/x': No such file or directory"),
                1,
                gone(),
            ),
            (
                of_machine("it would not"),
                1,
                Cause::Other("it would not".into()),
            ),
            (
                of_machine(&format!(
                    "builder for '{DRV}' failed with exit code 1\n       note: build failure may have been caused by lack of free disk space"
                )),
                1,
                Cause::DiskFull,
            ),
            (
                format!(
                    "error: build of '{DRV}' on 'ssh://m' failed: Cannot build '{DRV}'.\n       Reason: builder failed with exit code 3."
                ),
                1,
                Cause::Status(3),
            ),
            ("error: unexpected end-of-file".into(), 1, gone()),
            (
                "error: Nix daemon disconnected unexpectedly (maybe it crashed?)".into(),
                1,
                gone(),
            ),
            (
                "error: writing to file: No space left on device".into(),
                1,
                gone(),
            ),
            // Not the hook's.
            ("error: unexpected end-of-file".into(), 2, Cause::Status(2)),
        ] {
            let last = format!("error: builder for '{DRV}' failed with exit code {status}");
            let printed = format!("{begins}{}{}", passed_on(&said), message(&last));
            let nix_output = nix_output(&printed);
            let causes: Vec<_> = nix_output.faults.iter().map(|it| &it.cause).collect();
            assert_eq!(causes, [&cause], "{said}");
        }
        // What another builder prints of it, before or after.
        let three = of_machine(&format!("builder for '{DRV}' failed with exit code 3"));
        let hash = of_machine(&format!(
            "hash mismatch in fixed-output derivation '{DRV}':"
        ));
        let last = message(&format!(
            "error: builder for '{DRV}' failed with exit code 1"
        ));
        let full = format!("{three}\n       {DISK_NOTE}");
        for (said, cause) in [
            ([&*three, DISK_NOTE, ""], Cause::Status(3)),
            ([&full, "", ""], Cause::DiskFull),
            ([&three, &hash, ""], Cause::Status(1)),
            ([&hash, &three, &hash], Cause::Status(1)),
            ([&three, &full, ""], Cause::Status(1)),
            ([&full, &three, &full], Cause::Status(1)),
        ] {
            let said = said.map(passed_on).concat();
            let nix_output = nix_output(&format!("{begins}{said}{last}"));
            assert_eq!(nix_output.root_cause().unwrap().cause, cause, "{said}");
        }
        // On this host, it is the builder's status.
        let here = begins.replace("ssh://m", "");
        let last = message(&format!(
            "error: builder for '{DRV}' failed with exit code 1"
        ));
        let eof = passed_on("error: unexpected end-of-file");
        let nix_output = nix_output(&format!("{here}{eof}{last}"));
        assert_eq!(nix_output.root_cause().unwrap().cause, Cause::Status(1));
    }

    #[test]
    fn what_is_cut_of_a_log_shows_no_half_of_a_secret() {
        let line = format!(
            "{} https://user:hunter2hunter2@h",
            "x".repeat(LINE_AT_MOST - 20)
        );
        assert!(!shortened_line(&line).contains("hunter2"));
    }

    #[test]
    fn what_a_builder_says_of_other_machines_explains_no_other_failure() {
        let said = passed_on("cannot build on 'ssh://m': connection refused");
        let refused = message("error: odd number of tokens in 'exportReferencesGraph': 'one'");
        let nix_output = nix_output(&(said + &refused));
        assert_eq!(nix_output.trouble(true), None);
        let class =
            crate::nix::class::of(crate::nix::Phase::Building, Ending::Exited(1), &nix_output);
        assert_eq!(class, crate::exit::Class::Build);
    }

    #[test]
    fn what_a_cache_cannot_deliver_is_known_beside_builds_unless_one_has_failed() {
        let begins = format!(
            "@nix {{\"action\":\"start\",\"id\":1,\"type\":105,\"fields\":[\"{DRV}\",\"\",1,1]}}\n"
        );
        let builds = "@nix {\"action\":\"start\",\"id\":7,\"type\":104,\"fields\":[]}\n";
        let count = |running: u8, failed: u8| {
            format!(
                "@nix {{\"action\":\"result\",\"id\":7,\"type\":105,\"fields\":[0,1,{running},{failed}]}}\n"
            )
        };
        let substitutes = passed_on(
            "error: some substitutes for the outputs of derivation 'x' failed (usually happens due to networking issues); try '--fallback'",
        );
        let last = message("error: 1 dependencies of derivation 'x' failed to build");
        // Nix counts what it could not substitute, and then says so: what a builder prints is not counted.
        let not_substituted = count(1, 1);
        let nothing = String::new();
        for (counted, failed, trouble) in [
            (&not_substituted, 1, Some(Trouble::NotDownloaded)),
            (&nothing, 0, None),
            (&not_substituted, 2, None),
        ] {
            let (running, ended) = (count(1, 0), count(0, failed));
            for (before, why) in [
                (String::new(), "failed"),
                (
                    passed_on("error: NAR for 'x' fetched from 'file:///c' is incomplete")
                        + &passed_on("error: path 'x' is required, but there is no substituter"),
                    "failed: NAR for 'x' fetched from 'file:///c' is incomplete",
                ),
            ] {
                let printed =
                    format!("{builds}{running}{begins}{before}{counted}{substitutes}{ended}{last}");
                let nix_output = nix_output(&printed);
                assert_eq!(nix_output.trouble(true), trouble, "{counted}{failed}");
                let shown = nix_output.not_delivered();
                assert_eq!(shown.is_some(), trouble.is_some());
                let why = format!("some substitutes for the outputs of derivation 'x' {why}");
                assert!(shown.is_none_or(|shown| shown == why), "{shown:?}");
            }
        }
    }
}
