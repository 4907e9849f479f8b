//! The output of a Nix program in the job's log.
//!
//! A builder's line stands behind its derivation's name, each build has a line when it begins and one when it ends, copies from
//! caches are summed up, and a long build shows its progress. Messages of Nix's own remain as they are. With `log: raw`, the log has
//! the text that Nix prints where it is not asked for structure (its `SimpleLogger`), line by line: Nix is asked all the same, for only so is
//! it known what is Nix's and what a builder's, and how many builds there were.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::counts::mebibytes;
use crate::log::{Log, SafeText};
use crate::nix::structured::PlainLine;
use crate::nix::structured::{BuildCounts, Ended, Event, LogReader};
use crate::nix::{DrvPath, NixOutput, NoiseFilter, begins_missing};
use crate::secret_lines::SecretLines;
use crate::secrets::redacted;
use crate::status_line::StatusLine;
use crate::text::without_escapes;

/// After how long a log gets another line about progress although nothing has changed.
const UNCHANGED: Duration = Duration::from_secs(60);

/// How much of Nix's messages is held back, in bytes.
const HELD_BACK_AT_MOST: usize = 64 << 10;

/// The end of a builder's log counts as visible with at most this many other lines below it: Nix's message about the failed build,
/// and about the builds that needed it. Lines of the log that Nix quotes there are not counted.
const BELOW_AT_MOST: usize = 20;

/// The prefix of a post-build hook's lines, which belong to no running build.
const HOOK: &str = "post-build-hook";

pub(super) use crate::build_keys::Form;

/// The output of one Nix program, on its way into the log.
#[derive(Debug)]
pub(super) struct JobLog {
    reader: LogReader,
    secrets: SecretLines,
    nix_output: NixOutput,
    shown: Shown,
}

/// How it is shown.
#[derive(Debug)]
enum Shown {
    Pretty(Box<Pretty>),
    Raw(Log, SafeText),
}

impl JobLog {
    /// An empty log. Its first line comes below the heading `group`. With `hold`, messages that only say that a path is missing
    /// are held back.
    pub(super) fn new(log: &Log, form: Form, group: Option<String>, hold: bool) -> Self {
        Self {
            reader: LogReader::default(),
            secrets: SecretLines::default(),
            nix_output: NixOutput::default(),
            shown: match form {
                Form::Pretty => Shown::Pretty(Box::new(Pretty::new(log, group, hold))),
                Form::Raw => Shown::Raw(log.clone(), log.text()),
            },
        }
    }

    /// Reads a piece of the program's output.
    pub(super) fn read(&mut self, bytes: &[u8]) {
        let Self {
            reader,
            secrets,
            nix_output,
            shown,
        } = self;
        reader.read(bytes, |event| {
            without_secret_lines(event, secrets, |event| {
                nix_output.read(&event);
                shown.show(event, nix_output);
            });
        });
        shown.flush();
    }

    /// When the next line about progress is due.
    pub(super) fn due(&self) -> Option<Instant> {
        match &self.shown {
            Shown::Pretty(pretty) => Some(pretty.line.due()),
            Shown::Raw(..) => None,
        }
    }

    /// Prints a line about progress, if one is due.
    pub(super) fn progress(&mut self) {
        if let Shown::Pretty(pretty) = &mut self.shown {
            pretty.progress();
        }
    }

    /// Ends the log, once the program has ended.
    pub(super) fn finish(self) -> FinishedLog {
        let Self {
            mut reader,
            mut secrets,
            mut nix_output,
            mut shown,
        } = self;
        reader.finish(|event| {
            without_secret_lines(event, &mut secrets, |event| {
                nix_output.read(&event);
                shown.show(event, &nix_output);
            });
        });
        nix_output.settle();
        let (held_back, last_shown) = match shown {
            Shown::Pretty(pretty) => pretty.finish(&nix_output),
            Shown::Raw(..) => {
                shown.flush();
                (String::new(), None)
            }
        };
        FinishedLog {
            nix_output,
            held_back,
            last_shown,
        }
    }
}

/// The stream of lines that belong to no activity. Nix counts its activities from 1.
const UNSTRUCTURED: u64 = 0;

/// Passes on an event without what is a part of a secret of several lines.
fn without_secret_lines(
    event: Event<'_>,
    secrets: &mut SecretLines,
    mut pass_on: impl FnMut(Event<'_>),
) {
    match event {
        Event::BuildLine { id, line, omitted } => {
            let line = secrets.shown(id, &line);
            pass_on(Event::BuildLine { id, line, omitted });
        }
        Event::Plain(line) => {
            let text = String::from_utf8_lossy(line.bytes);
            match secrets.shown(UNSTRUCTURED, &text) {
                Cow::Owned(shown) => pass_on(Event::Plain(PlainLine {
                    bytes: shown.as_bytes(),
                    omitted: line.omitted,
                })),
                Cow::Borrowed(_) => pass_on(Event::Plain(line)),
            }
        }
        Event::Message {
            text,
            passed_on,
            omitted,
        } => {
            let text = secrets.quoted(&text);
            pass_on(Event::Message {
                text,
                passed_on,
                omitted,
            });
        }
        other => pass_on(other),
    }
}

impl Shown {
    /// Shows an event. What is secret in a message is hidden only here: it may be a part of the name by which Nix says what has failed.
    fn show(&mut self, mut event: Event<'_>, nix_output: &NixOutput) {
        if let Event::Message { text, .. } = &mut event {
            // As a whole: an entry of a netrc file takes several lines.
            if let Cow::Owned(shown) = redacted(text) {
                *text = Cow::Owned(shown);
            }
        }
        match self {
            Self::Pretty(pretty) => pretty.show(&event, nix_output),
            Self::Raw(_, text) => show_raw(&event, nix_output, text),
        }
    }

    fn flush(&mut self) {
        match self {
            Self::Pretty(pretty) => pretty.flush(),
            Self::Raw(log, text) => log.print(text),
        }
    }
}

/// Adds what Nix prints where it is not asked for structure.
fn show_raw(event: &Event<'_>, nix_output: &NixOutput, shown: &mut SafeText) {
    match event {
        Event::Message { text, omitted, .. } => add_lines(text, *omitted, shown),
        Event::Plain(line) => {
            shown.output_line(&String::from_utf8_lossy(line.bytes), line.omitted);
        }
        Event::BuildBegins { words, .. } | Event::CopyBegins { words, .. } => {
            if !words.is_empty() {
                shown.output_line(words, 0);
            }
        }
        Event::BuildLine { id, line, omitted } => {
            if nix_output.is_running(*id) {
                shown.output_line(line, *omitted);
            } else {
                shown.output_line(&format!("{HOOK}: {line}"), *omitted);
            }
        }
        Event::TooLong(bytes) => shown.omitted(*bytes),
        Event::BuildEnds { .. } | Event::Copied { .. } | Event::Begins(_) | Event::Builds(_) => {}
    }
}

/// Adds the lines of a message, of whose end so many bytes are left out.
fn add_lines(message: &str, omitted: usize, shown: &mut SafeText) {
    let mut lines = message.split('\n').peekable();
    while let Some(line) = lines.next() {
        let is_last = lines.peek().is_none();
        shown.output_line(line, if is_last { omitted } else { 0 });
    }
}

/// What is known of a program once its log has ended.
#[derive(Debug)]
pub(super) struct FinishedLog {
    /// Its output, as far as later decisions need it.
    pub(super) nix_output: NixOutput,
    /// The messages that were held back.
    pub(super) held_back: String,
    /// The builder's lines that stand at the end of the log; none where Nix's own text passed through.
    pub(super) last_shown: Option<ShownLines>,
}

/// The last builder lines in a log, as far as they are of one build without other lines between them.
#[derive(Debug)]
pub(super) struct ShownLines {
    drv: DrvPath,
    /// How many there are.
    count: usize,
    /// How many other lines are below them.
    below: usize,
}

impl ShownLines {
    /// Whether a reader at the end of the log has the last lines of `drv`'s builder before their eyes: `log`.
    pub(super) fn are(&self, drv: &DrvPath, log: &str) -> bool {
        self.drv == *drv && log.lines().count() <= self.count && self.below <= BELOW_AT_MOST
    }
}

/// The log for people.
#[derive(Debug)]
struct Pretty {
    log: Log,
    line: StatusLine,
    noise: NoiseFilter,
    /// The heading, until it is printed.
    group: Option<String>,
    hold: bool,
    held_back: String,
    /// The lines that are printed next, all at once.
    text: SafeText,
    running: HashMap<u64, ShownBuild>,
    counts: BuildCounts,
    /// How many builds Nix has announced.
    planned: u64,
    /// How many builds have succeeded and failed, by Nix's count, of which it has not printed yet that they end.
    succeeded: usize,
    failed: usize,
    /// Builds that have ended, and their seconds, of which only a later message says which failed.
    undecided: Vec<(ShownBuild, f64)>,
    copies: Copies,
    last_shown: Option<ShownLines>,
    /// The last line about progress, and when it was printed.
    last_progress: Option<(String, Instant)>,
}

/// A build that is running.
#[derive(Debug)]
struct ShownBuild {
    name: String,
    drv: DrvPath,
    since: Instant,
}

/// The copies from caches.
#[derive(Debug, Default)]
struct Copies {
    since: Option<Instant>,
    /// By cache: how many paths.
    paths: BTreeMap<String, usize>,
    /// By activity: how many bytes so far.
    bytes: HashMap<u64, u64>,
}

impl Pretty {
    fn new(log: &Log, group: Option<String>, hold: bool) -> Self {
        Self {
            log: log.clone(),
            line: StatusLine::new(log),
            noise: NoiseFilter::new(log.debug),
            group,
            hold,
            held_back: String::new(),
            text: log.text(),
            running: HashMap::new(),
            counts: BuildCounts::default(),
            planned: 0,
            succeeded: 0,
            failed: 0,
            undecided: Vec::new(),
            copies: Copies::default(),
            last_shown: None,
            last_progress: None,
        }
    }

    fn show(&mut self, event: &Event<'_>, nix_output: &NixOutput) {
        match event {
            Event::Message { text, omitted, .. } => {
                self.message(text, *omitted, nix_output);
                self.settle(nix_output, false);
            }
            Event::Plain(line) => {
                let text = String::from_utf8_lossy(line.bytes);
                self.message(&text, line.omitted, nix_output);
            }
            Event::BuildBegins {
                id, drv, machine, ..
            } => {
                let name = drv.name().to_owned();
                let on = if machine.is_empty() {
                    String::new()
                } else {
                    format!(" on '{machine}'")
                };
                self.write(&name, &format!("building '{drv}'{on}"));
                let build = ShownBuild {
                    name,
                    drv: drv.clone(),
                    since: Instant::now(),
                };
                self.running.insert(*id, build);
            }
            Event::BuildLine { id, line, omitted } => {
                let build = self.running.get(id);
                let name = build.map_or(HOOK, |build| &build.name);
                self.text.output_line_of(name, line, *omitted);
                match (&mut self.last_shown, build) {
                    (Some(shown), Some(build)) if shown.drv == build.drv && shown.below == 0 => {
                        shown.count += 1;
                    }
                    (shown, build) => {
                        *shown = build.map(|build| ShownLines {
                            drv: build.drv.clone(),
                            count: 1,
                            below: 0,
                        });
                    }
                }
            }
            Event::BuildEnds { id } => {
                if let Some(build) = self.running.remove(id) {
                    self.end(build, nix_output);
                }
            }
            Event::CopyBegins { id, from, .. } => {
                self.copies.since.get_or_insert_with(Instant::now);
                *self.copies.paths.entry(from.to_string()).or_default() += 1;
                self.copies.bytes.insert(*id, 0);
            }
            Event::Copied { id, bytes } => {
                self.copies.bytes.insert(*id, *bytes);
            }
            Event::Builds(counts) => {
                match counts.ended_since(self.counts) {
                    Some(Ended::Done) => self.succeeded += 1,
                    Some(Ended::Failed) => self.failed += 1,
                    None => {}
                }
                self.counts = *counts;
            }
            // A build's log would be full of it.
            Event::Begins(_) => {}
            Event::TooLong(bytes) => {
                self.text.omitted(*bytes);
                self.last_shown = None;
            }
        }
    }

    /// Prints how a build ended. Nix counts a failure just before it says which build ends. Where one fails while several run, the
    /// first that ends may be another, which is given up for it or has succeeded: a message names the failed one, often later.
    fn end(&mut self, build: ShownBuild, nix_output: &NixOutput) {
        let seconds = build.since.elapsed().as_secs_f64();
        let alone = self.running.is_empty() && self.undecided.is_empty() && self.succeeded == 0;
        if self.failed > 0 && alone {
            self.failed -= 1;
            self.print_end(&build, "failed after", seconds);
        } else {
            self.undecided.push((build, seconds));
            self.settle(nix_output, false);
        }
    }

    /// Prints how the undecided builds ended, as far as that is known by now; with `all`, of each.
    fn settle(&mut self, nix_output: &NixOutput, all: bool) {
        let mut rest = Vec::new();
        for (build, seconds) in std::mem::take(&mut self.undecided) {
            if is_fault(&build, nix_output) {
                self.failed = self.failed.saturating_sub(1);
                self.print_end(&build, "failed after", seconds);
            } else {
                rest.push((build, seconds));
            }
        }
        if self.failed > 0 && !all {
            self.undecided = rest;
            return;
        }
        for (build, seconds) in rest {
            let how = if self.succeeded > 0 {
                self.succeeded -= 1;
                "built in"
            } else {
                "stopped after"
            };
            self.print_end(&build, how, seconds);
        }
    }

    fn print_end(&mut self, build: &ShownBuild, how: &str, seconds: f64) {
        let words = format_args!("{how} {seconds:.1} s");
        self.text.words_of(&build.name, words);
        self.add_below();
    }

    /// Counts a line below the last builder lines.
    fn add_below(&mut self) {
        if let Some(shown) = &mut self.last_shown {
            shown.below += 1;
        }
    }

    /// Adds a message, of whose end so many bytes are left out.
    fn message(&mut self, message: &str, omitted: usize, nix_output: &NixOutput) {
        let plain = without_escapes(message);
        if let Some(planned) = planned(&plain) {
            self.planned = planned;
        }
        if self.hold && self.is_about_missing_paths(&plain, nix_output) {
            self.held_back.push_str(&plain);
            self.held_back.push('\n');
            return;
        }
        // Some messages quote a builder's lines, and what a builder prints behind `@nix` is a message as well.
        let mut lines = message.trim_end_matches('\n').split('\n').peekable();
        while let Some(line) = lines.next() {
            if self.noise.is_noise(line) {
                continue;
            }
            let is_last = lines.peek().is_none();
            self.text
                .output_line(line, if is_last { omitted } else { 0 });
            if !without_escapes(line).trim_start().starts_with("> ") {
                self.add_below();
            }
        }
    }

    /// Whether Nix says that it can get a path neither by building nor by substituting it: in a sentence, or as one of a list. A
    /// step that finds its outputs another way has no error in its log.
    fn is_about_missing_paths(&self, line: &str, nix_output: &NixOutput) -> bool {
        if !nix_output.begun.is_empty() || self.held_back.len() > HELD_BACK_AT_MOST {
            return false;
        }
        let error = line.strip_prefix("error: ").unwrap_or_default();
        begins_missing(line)
            || !self.held_back.is_empty() && line.starts_with("  /")
            || error.starts_with("cannot build missing derivation '")
            || error.starts_with("failed to obtain derivation of '")
            || error.starts_with("build of '") && error.ends_with("' failed")
            || error.starts_with("path '")
                && error.contains(" is required, but there is no substituter")
    }

    fn write(&mut self, name: &str, text: &str) {
        self.text.words_of(name, text);
        self.add_below();
    }

    /// Prepares the log for output: without a progress line, and under its heading.
    fn begin(&mut self) {
        self.line.clear();
        if let Some(group) = self.group.take() {
            self.log.group(group);
        }
    }

    fn flush(&mut self) {
        if self.text.is_empty() {
            return;
        }
        self.begin();
        self.log.print(&mut self.text);
    }

    /// Ends the log. Gives the messages that were held back, and the last builder lines.
    fn finish(mut self, nix_output: &NixOutput) -> (String, Option<ShownLines>) {
        self.settle(nix_output, true);
        self.flush();
        if let Some(copies) = self.sum_of_copies() {
            self.begin();
            self.log.say(copies);
        }
        // After the last output of a program that was killed, the line still stands there.
        self.line.clear();
        (self.held_back, self.last_shown)
    }

    fn progress(&mut self) {
        let Self {
            log,
            line,
            running,
            counts,
            planned,
            copies,
            last_progress,
            ..
        } = self;
        line.show(|| {
            let text = progress(*counts, *planned, running, copies)?;
            if let Some((before, when)) = last_progress
                && !log.terminal
                && *before == text
                && when.elapsed() < UNCHANGED
            {
                return None;
            }
            let longest = running.values().min_by_key(|build| build.since);
            let longest = longest.map_or(String::new(), |build| {
                let seconds = build.since.elapsed().as_secs();
                format!(" ({} for {seconds} s)", build.name)
            });
            let shown = format!("{text}{longest}");
            *last_progress = Some((text, Instant::now()));
            Some(shown)
        });
    }

    /// Prints what was copied from caches, in one line.
    fn sum_of_copies(&self) -> Option<String> {
        let since = self.copies.since?;
        let bytes: u64 = self.copies.bytes.values().sum();
        let paths: usize = self.copies.paths.values().sum();
        let caches: Vec<String> = self
            .copies
            .paths
            .iter()
            .map(|(cache, paths)| match self.copies.paths.len() {
                1 => cache.clone(),
                _ => format!("{paths} from {cache}"),
            })
            .collect();
        let from = if caches.len() == 1 { " from " } else { ": " };
        Some(format!(
            "copied {paths} path{} ({}){from}{} in {:.1} s",
            if paths == 1 { "" } else { "s" },
            mebibytes(bytes),
            caches.join(", "),
            since.elapsed().as_secs_f64()
        ))
    }
}

/// Whether Nix has named this build as one that failed.
fn is_fault(build: &ShownBuild, nix_output: &NixOutput) -> bool {
    let mut faults = nix_output
        .faults
        .iter()
        .filter_map(|fault| fault.drv.as_ref());
    faults.any(|drv| *drv == build.drv)
}

/// The progress of builds and copies; none where there are none.
fn progress(
    counts: BuildCounts,
    planned: u64,
    running: &HashMap<u64, ShownBuild>,
    copies: &Copies,
) -> Option<String> {
    let expected = counts.expected.max(planned);
    let mut parts = Vec::new();
    if expected > 0 {
        parts.push(format!("{}/{expected} built", counts.done));
        parts.push(format!("{} running", running.len()));
    }
    if counts.failed > 0 {
        parts.push(format!("{} failed", counts.failed));
    }
    let paths: usize = copies.paths.values().sum();
    if paths > 0 {
        let bytes = copies.bytes.values().sum();
        parts.push(format!("{paths} copied ({})", mebibytes(bytes)));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// How many derivations Nix plans to build, where a message says so.
fn planned(message: &str) -> Option<u64> {
    let rest = message.strip_prefix("th")?;
    if rest.starts_with("is derivation will be built") {
        return Some(1);
    }
    rest.strip_prefix("ese ")?
        .split_once(" derivations will be built")?
        .0
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::text::hostile::{bytes, is_tame, text};

    const ONE: &str = "/s/store/00000000000000000000000000000000-one.drv";
    const TWO: &str = "/s/store/11111111111111111111111111111111-two.drv";

    /// A job log that a test reads.
    struct Scene {
        sink: Rc<RefCell<Vec<u8>>>,
        log: JobLog,
    }

    impl Scene {
        fn new(form: Form, change: impl FnOnce(&mut Log)) -> Self {
            let sink = Rc::new(RefCell::new(Vec::new()));
            let mut log = Log::to(sink.clone());
            change(&mut log);
            let log = JobLog::new(&log, form, Some("building it".into()), true);
            Self { sink, log }
        }

        fn pretty() -> Self {
            Self::new(Form::Pretty, |_| {})
        }

        fn take(&mut self, lines: &[Value]) -> &mut Self {
            for line in lines {
                let line = match line {
                    Value::String(plain) => format!("{plain}\n"),
                    structured => format!("@nix {structured}\n"),
                };
                self.log.read(line.as_bytes());
            }
            self
        }

        /// What the log shows so far.
        fn shown(&self) -> String {
            without_seconds(&self.sink.borrow())
        }

        /// What the log shows in the end, without its heading, and what is known then.
        fn end(self) -> (String, FinishedLog) {
            let finished = self.log.finish();
            let shown = without_seconds(&self.sink.borrow());
            let heading = "--- eval-once: building it\n";
            let below = shown.strip_prefix(heading).map(str::to_owned);
            (below.unwrap_or(shown), finished)
        }
    }

    /// A log with `N` for each number of seconds at the end of a line.
    fn without_seconds(log: &[u8]) -> String {
        let text = String::from_utf8(log.to_vec()).unwrap();
        let lines = text.split_inclusive('\n').map(|line| {
            let seconds = line.strip_suffix(" s\n").and_then(|rest| {
                let (rest, seconds) = rest.rsplit_once(' ')?;
                seconds.parse::<f64>().ok()?;
                Some(format!("{rest} N s\n"))
            });
            seconds.unwrap_or_else(|| line.to_owned())
        });
        lines.collect()
    }

    fn begin(id: u64, drv: &str) -> Value {
        json!({ "action": "start", "id": id, "type": 105, "fields": [drv, "", 1, 1] })
    }

    fn line(id: u64, line: &str) -> Value {
        json!({ "action": "result", "id": id, "type": 101, "fields": [line] })
    }

    fn stop(id: u64) -> Value {
        json!({ "action": "stop", "id": id })
    }

    fn message(text: &str) -> Value {
        json!({ "action": "msg", "level": 0, "msg": text, "raw_msg": text })
    }

    /// That the activity 1 counts all builds; and how many are done, expected, running and failed.
    fn builds() -> Value {
        json!({ "action": "start", "id": 1, "type": 104, "fields": [] })
    }

    fn counted(numbers: [u64; 4]) -> Value {
        json!({ "action": "result", "id": 1, "type": 105, "fields": numbers })
    }

    #[test]
    fn the_heading_comes_with_the_first_line_and_not_without_one() {
        let mut scene = Scene::pretty();
        scene.take(&[builds(), counted([0, 1, 0, 0])]);
        assert_eq!(scene.shown(), "");
        scene.take(&[begin(2, ONE), line(2, "hello")]);
        assert_eq!(
            scene.shown(),
            format!("--- eval-once: building it\none> building '{ONE}'\none> hello\n")
        );
        assert_eq!(Scene::pretty().end().0, "");
    }

    #[test]
    fn a_build_that_ends_is_built_or_failed_or_stopped() {
        let mut scene = Scene::pretty();
        scene.take(&[
            builds(),
            begin(2, ONE),
            counted([0, 2, 1, 0]),
            counted([1, 2, 0, 0]),
            stop(2),
        ]);
        let (shown, _) = scene.end();
        assert_eq!(shown, format!("one> building '{ONE}'\none> built in N s\n"));

        let mut scene = Scene::pretty();
        scene.take(&[
            builds(),
            begin(2, ONE),
            counted([0, 1, 1, 0]),
            counted([0, 1, 0, 1]),
            stop(2),
        ]);
        let (shown, _) = scene.end();
        assert!(shown.ends_with("one> failed after N s\n"), "{shown}");

        // A program that was killed says nothing of how its builds have ended.
        let mut scene = Scene::pretty();
        scene.take(&[builds(), begin(2, ONE), counted([0, 1, 1, 0]), stop(2)]);
        let (shown, _) = scene.end();
        assert!(shown.ends_with("one> stopped after N s\n"), "{shown}");
    }

    #[test]
    fn what_is_hidden_of_a_message_decides_nothing() {
        let drv = "/s/store/00000000000000000000000000000000-x?token=hunter2hunter2.drv";
        for form in [Form::Pretty, Form::Raw] {
            let mut scene = Scene::new(form, |_| {});
            scene.take(&[message(&format!(
                "error: hash mismatch in fixed-output derivation '{drv}':\n  specified: a\n  got: b"
            ))]);
            let (shown, finished) = scene.end();
            assert!(!shown.contains("hunter2"), "{shown}");
            let fault = finished.nix_output.root_cause().unwrap();
            assert_eq!(fault.drv, DrvPath::parse(drv).ok());
        }
    }

    #[test]
    fn of_several_builds_a_message_decides_which_has_failed() {
        let mut scene = Scene::pretty();
        scene.take(&[
            builds(),
            begin(2, ONE),
            begin(3, TWO),
            counted([0, 2, 2, 0]),
            counted([0, 2, 1, 1]),
            stop(2),
            stop(3),
        ]);
        let begun = format!("one> building '{ONE}'\ntwo> building '{TWO}'\n");
        let heading = "--- eval-once: building it\n";
        assert_eq!(scene.shown(), format!("{heading}{begun}"));
        let error = format!("error: builder for '{TWO}' failed with exit code 1");
        scene.take(&[message(&error)]);
        let (shown, _) = scene.end();
        assert_eq!(
            shown,
            format!("{begun}{error}\ntwo> failed after N s\none> stopped after N s\n")
        );
    }

    #[test]
    fn messages_that_a_path_is_missing_are_held_back_until_a_build_begins() {
        let missing = [
            message("don't know how to build these paths:"),
            message("  /s/store/x"),
            message(&format!("error: cannot build missing derivation '{ONE}'")),
            message(
                "error: path '/s/store/x' is required, but there is no substituter that can build it",
            ),
        ];
        let mut scene = Scene::pretty();
        scene.take(&missing);
        let (shown, finished) = scene.end();
        assert_eq!(shown, "");
        assert_eq!(finished.held_back.lines().count(), 4, "{finished:?}");
        assert!(finished.nix_output.error.is_some());

        let mut scene = Scene::pretty();
        scene.take(&[begin(2, ONE)]).take(&missing[2..]);
        let (shown, finished) = scene.end();
        assert_eq!(shown.lines().count(), 3, "{shown}");
        assert_eq!(finished.held_back, "");
    }

    #[test]
    fn no_line_opens_a_group_and_colours_stay_only_where_they_are_shown() {
        let lines = [
            begin(2, ONE),
            line(2, "+++ \u{1b}[31mred\u{1b}[2K"),
            line(9, "from a hook\u{7}"),
            message("\u{1b}[31m--- said\u{1b}[0m"),
            json!("^^^ +++ in plain text"),
        ];
        let mut plain = Scene::pretty();
        plain.take(&lines);
        assert_eq!(
            plain.end().0,
            format!(
                "one> building '{ONE}'\none> +++ red\npost-build-hook> from a hook\n --- said\n ^^^ +++ in plain text\n"
            )
        );
        let mut coloured = Scene::new(Form::Pretty, |log| log.colours = true);
        coloured.take(&lines).take(&[
            builds(),
            counted([0, 1, 1, 0]),
            counted([0, 1, 0, 1]),
            stop(2),
        ]);
        let (shown, _) = coloured.end();
        assert!(
            shown.contains("one> +++ \u{1b}[31mred\u{1b}[0m\n"),
            "{shown:?}"
        );
        assert!(
            shown.ends_with("one> \u{1b}[31;1mfailed\u{1b}[0m after N s\n"),
            "{shown:?}"
        );
    }

    #[test]
    fn what_is_copied_is_summed_up_for_each_cache() {
        let copy = |id: u64, from: &str| {
            let path = format!("/s/store/{}-x", "0".repeat(32));
            json!({ "action": "start", "id": id, "type": 100, "fields": [path, from, "local"] })
        };
        let mut scene = Scene::pretty();
        scene.take(&[
            copy(2, "https://a"),
            copy(3, "https://a"),
            copy(4, "https://b"),
            json!({ "action": "result", "id": 2, "type": 105, "fields": [3 << 20, 3 << 20, 1, 0] }),
        ]);
        assert_eq!(
            scene.end().0,
            "eval-once: copied 3 paths (3 MiB): 2 from https://a, 1 from https://b in N s\n"
        );
    }

    #[test]
    fn progress_is_logged_when_it_is_due_and_again_only_when_it_has_changed() {
        let mut scene = Scene::pretty();
        let progress = |scene: &mut Scene| {
            let Shown::Pretty(pretty) = &mut scene.log.shown else {
                panic!("a raw log has no line about progress");
            };
            pretty.line.expire();
            let before = scene.sink.borrow().len();
            scene.log.progress();
            String::from_utf8(scene.sink.borrow()[before..].to_vec()).unwrap()
        };
        assert_eq!(progress(&mut scene), "");
        scene.take(&[
            message("these 3 derivations will be built:"),
            builds(),
            begin(2, ONE),
            counted([0, 1, 1, 0]),
        ]);
        scene.log.progress();
        assert!(!scene.shown().contains("running"), "it is not due");
        assert_eq!(
            progress(&mut scene),
            "eval-once: 0/3 built, 1 running (one for 0 s)\n"
        );
        assert_eq!(progress(&mut scene), "");
        scene.take(&[counted([1, 3, 1, 1])]);
        assert_eq!(
            progress(&mut scene),
            "eval-once: 1/3 built, 1 running, 1 failed (one for 0 s)\n"
        );
    }

    #[test]
    fn the_end_of_a_builders_log_is_in_sight_until_other_lines_stand_below_it() {
        let one = DrvPath::parse(ONE).unwrap();
        let two = DrvPath::parse(TWO).unwrap();
        let in_sight = |lines: &[Value]| {
            let mut scene = Scene::pretty();
            scene.take(&[begin(2, ONE), begin(3, TWO)]).take(lines);
            scene.end().1.last_shown
        };
        let quote = message("error: builder failed\n       > a\n       > b");
        let shown = in_sight(&[line(2, "a"), line(2, "b"), stop(2), quote]).unwrap();
        assert!(shown.are(&one, "a\nb"));
        assert!(!shown.are(&one, "0\na\nb"), "one more was printed before");
        assert!(!shown.are(&two, "a\nb"), "another build's");
        let shown = in_sight(&[line(2, "a"), line(3, "x"), line(2, "b")]).unwrap();
        assert!(shown.are(&one, "b") && !shown.are(&one, "a\nb"));
        let far = message(&"x\n".repeat(BELOW_AT_MOST + 1));
        assert!(!in_sight(&[line(2, "a"), far]).unwrap().are(&one, "a"));
        assert!(in_sight(&[line(2, "a"), line(9, "a hook")]).is_none());
    }

    #[test]
    fn a_raw_log_is_what_nix_prints_without_structure() {
        let mut scene = Scene::new(Form::Raw, |_| {});
        let mut build = begin(2, ONE);
        build["text"] = json!(format!("building '{ONE}'"));
        scene.take(&[
            build,
            line(2, "+++ \u{1b}[31m a\u{1b}[2K"),
            line(9, "b"),
            message("error: c\n--- d"),
            json!("e"),
        ]);
        scene.log.progress();
        let (shown, finished) = scene.end();
        let begun = format!("building '{ONE}'...");
        assert_eq!(
            shown,
            format!("{begun}\n +++  a\npost-build-hook: b\nerror: c\n --- d\ne\n")
        );
        assert_eq!(finished.nix_output.begun.len(), 1);
        assert!(finished.last_shown.is_none());
    }

    proptest! {
        #[test]
        fn whatever_nix_and_builders_print_no_form_has_more_than_text_and_colours(
            texts in proptest::collection::vec(text(), 8), raw in bytes(), colours: bool, is_raw: bool, debug: bool,
        ) {
            let form = if is_raw { Form::Raw } else { Form::Pretty };
            let mut scene = Scene::new(form, |log| {
                log.colours = colours;
                log.debug = debug;
            });
            let mut build = begin(2, ONE);
            build["text"] = json!(texts[0]);
            build["fields"][1] = json!(texts[1]);
            let path = format!("/s/store/{}-x", "0".repeat(32));
            let copy = json!({ "action": "start", "id": 5, "type": 100, "level": 3, "text": texts[2], "fields": [path, texts[3], "local"] });
            let begun = json!({ "action": "start", "id": 6, "type": 101, "level": 3, "text": texts[4], "fields": [] });
            scene.take(&[
                builds(), build, copy, begun, line(2, &texts[5]), line(9, &texts[6]), message(&texts[7]),
                counted([0, 1, 1, 0]), counted([0, 1, 0, 1]), stop(2),
            ]);
            scene.log.read(&raw);
            let (shown, finished) = scene.end();
            is_tame(&shown, 0, colours)?;
            let held = Rc::new(RefCell::new(Vec::new()));
            Log::to(held.clone()).pass_on(finished.held_back.as_bytes());
            is_tame(&String::from_utf8(held.take()).unwrap(), 0, false)?;
        }
    }
}
