//! The command lines of the processes that evaluate.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde_json::{Map, Value};

use super::EvaluationHost;
use super::conversation::{purity_line, with_ends};
use super::exclusions::exclusions;
use super::known::KnownTargets;
use super::memory::{self, MIB};
use super::protocol::WalkerSettings;
use crate::command_line::CommandLine;
use crate::exit::{Class, Classify as _, Failure};
use crate::nix::LockedFlake;
use crate::nix::command::{self, OwnedOptions, WalkerFile};
use crate::nix::settings::PURE_EVAL;
use crate::private;
use crate::recording::{RecordingRequest, Recurse};
use crate::state::OwnFolder;

/// The heap that a process asks for at its start, at most, in bytes.
const HEAP_AT_MOST: u64 = 1000 * MIB;

/// How many bytes of known targets a process is given: Linux takes 128 KiB in one argument, and the walker is in it, too.
const KNOWN_AT_MOST: usize = 80 << 10;

/// What is the same for all workers of a walk.
#[derive(Debug)]
pub(super) struct WorkerInvocation<'a> {
    request: &'a RecordingRequest,
    locked: Option<LockedFlake>,
    /// What each message of the walker begins with.
    marker: String,
    /// Relative to the root of the walk.
    exclude: Vec<Vec<String>>,
    systems: Option<Vec<String>>,
    /// As [`WalkerSettings`] has them.
    known: Value,
    /// Holds [`command::WALKER_FILE`], and what Nix keeps of the lines.
    folder: OwnFolder,
    converses: bool,
    /// Evaluation has to be pure: of a flake, or because the settings say so.
    is_pure: bool,
    /// The files by which the walker may come into a conversation. The first that this Nix loads stays.
    files: &'static [WalkerFile],
}

impl<'a> WorkerInvocation<'a> {
    /// `systems`: as [`WalkerSettings`] has them.
    ///
    /// # Errors
    /// The system has no random bytes, or no file can be written (75).
    pub(super) fn new(
        request: &'a RecordingRequest,
        locked: Option<LockedFlake>,
        systems: Option<Vec<String>>,
        host: &EvaluationHost<'_>,
    ) -> Result<Self, Failure> {
        let is_pure = request.root.is_flake() || host.nix.is_pure(&request.options);
        let make = || {
            let folder = host.state.conversation()?;
            private::write(
                &command::our_file(folder.path()),
                command::WALKER_FILE.as_bytes(),
            )?;
            Ok::<_, std::io::Error>(folder)
        };
        let folder = make().classify(Class::Infrastructure, || {
            format!("cannot write in {}", host.state.path().display())
        })?;
        Ok(Self {
            is_pure,
            files: if is_pure {
                &[WalkerFile::OfNix, WalkerFile::OnSearchPath]
            } else if has_control_characters(folder.path()) {
                &[WalkerFile::OnSearchPath]
            } else {
                &[WalkerFile::Ours, WalkerFile::OnSearchPath]
            },
            request,
            locked,
            marker: marker()?,
            exclude: exclusions(&request.exclude, &request.root.attr),
            systems,
            known: Value::Object(Map::new()),
            folder,
            converses: true,
        })
    }

    /// From now on, these targets are not evaluated.
    pub(super) fn know(&mut self, known: &KnownTargets) {
        self.known = known.nested(&self.request.root.attr, KNOWN_AT_MOST);
    }

    /// What each message of the walker begins with.
    pub(super) fn marker(&self) -> &str {
        &self.marker
    }

    /// The flake, locked, where it is one.
    pub(super) fn locked(&self) -> Option<&LockedFlake> {
        self.locked.as_ref()
    }

    /// The system that a flake is recorded on.
    pub(super) fn system(&self) -> Option<&str> {
        self.systems.as_ref()?.last().map(String::as_str)
    }

    /// This Nix does not load the walker by the file that was tried. Gives whether there is another one to try.
    pub(super) fn try_next_file(&mut self) -> bool {
        let [_, rest @ ..] = self.files else {
            return false;
        };
        let has_next = !rest.is_empty();
        if has_next {
            self.files = rest;
        }
        has_next
    }

    fn file(&self) -> (WalkerFile, &Path) {
        let file = self.files.first().copied();
        (file.unwrap_or(WalkerFile::OnSearchPath), self.folder.path())
    }

    /// The lines that begin a conversation.
    pub(super) fn first_lines(&self) -> Vec<u8> {
        let mut lines = Vec::new();
        if self.is_pure {
            // First, because a Nix that is not pure may fail to load the walker, and that means nothing then.
            lines.extend(purity_line(&self.marker));
        }
        lines.extend(command::load_walker(self.file()));
        with_ends(&lines, &self.marker)
    }

    /// Whether workers are conversations; otherwise each has one task.
    pub(super) fn converses(&self) -> bool {
        self.converses
    }

    /// This Nix converses only in evaluation that is not pure.
    pub(super) fn cannot_converse(&mut self) {
        self.converses = false;
    }

    /// A worker with this part of the memory, in bytes.
    pub(super) fn worker(&self, part: u64) -> CommandLine {
        self.line(part, &self.request.options)
    }

    /// A worker for one task.
    pub(super) fn worker_for(&self, task: &str, part: u64) -> CommandLine {
        self.line_for(task, part, &self.request.options)
    }

    /// A worker that searches unmarked sets for derivations. It builds nothing.
    pub(super) fn searcher(&self, part: u64) -> CommandLine {
        self.line(part, &self.search_options())
    }

    /// The same for one task.
    pub(super) fn searcher_for(&self, task: &str, part: u64) -> CommandLine {
        self.line_for(task, part, &self.search_options())
    }

    fn search_options(&self) -> OwnedOptions {
        let mut options = self.request.options.clone();
        options.push(("allow-import-from-derivation".into(), "false".into()));
        options
    }

    fn settings(&self) -> String {
        let settings = WalkerSettings {
            marker: &self.marker,
            exclude: &self.exclude,
            known: &self.known,
            all: self.request.recurse == Recurse::All,
            systems: self.systems.as_deref(),
            buildkite: self.request.meta,
        };
        settings.json()
    }

    fn line_for(&self, task: &str, part: u64, options: &command::Options) -> CommandLine {
        command::walk_once(
            &self.request.root,
            &self.settings(),
            self.locked.as_ref(),
            heap_of(part),
            task,
            options,
        )
    }

    fn line(&self, part: u64, options: &command::Options) -> CommandLine {
        let mut options = options.to_vec();
        if self.is_pure {
            // From 2.10 on, a conversation is pure only where an argument says so: it does not ask nix.conf.
            options.push((PURE_EVAL.into(), "true".into()));
        }
        command::converse(
            &self.request.root,
            &self.settings(),
            self.locked.as_ref(),
            heap_of(part),
            self.file(),
            &options,
        )
    }
}

/// Whether a path cannot stand in a line of a conversation: readline takes such a character for a key, and may forget the line without
/// a word (BEL, ^C, ^D).
fn has_control_characters(path: &Path) -> bool {
    path.as_os_str().as_bytes().iter().any(u8::is_ascii_control)
}

/// The heap of a worker with this part of the memory. With a large one from the start, evaluation is 1.5 to 1.9 times faster: the
/// evaluator's collector runs rarely.
fn heap_of(part: u64) -> Option<u64> {
    memory::heap((part / 2).min(HEAP_AT_MOST))
}

/// A word that a repository cannot guess.
fn marker() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).classify(Class::Infrastructure, || {
        "cannot get random bytes from the system".into()
    })?;
    Ok(format!("eval-once:{:032x}", u128::from_ne_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use tempfile::TempDir;

    use super::*;
    use crate::nix::AttrPath;
    use crate::nix::settings::NixSettings;
    use crate::recording::pipeline::fixtures::request;
    use crate::state::StateFolder;

    const PART: u64 = 64 * MIB;

    fn invocation(request: &RecordingRequest) -> WorkerInvocation<'_> {
        let systems = ["x86_64-darwin", "x86_64-linux"].map(str::to_owned);
        invocation_for(request, Some(systems.to_vec()))
    }

    fn invocation_for(
        request: &RecordingRequest,
        systems: Option<Vec<String>>,
    ) -> WorkerInvocation<'_> {
        let state = TempDir::new().unwrap();
        let state = StateFolder::open(state.path()).unwrap();
        let host = EvaluationHost {
            temporary: Path::new("/tmp"),
            state: &state,
            cores: NonZeroUsize::MIN,
            nix: &NixSettings::default(),
            remembered: None,
        };
        WorkerInvocation::new(request, None, systems, &host).unwrap()
    }

    /// Whether the walker's settings in a command line have this.
    fn has(line: &CommandLine, setting: &str) -> bool {
        // They are a string of JSON in an expression of Nix.
        let escaped = setting.replace('"', "\\\"");
        line.words().iter().any(|word| word.contains(&escaped))
    }

    #[test]
    fn a_search_builds_nothing_whatever_the_options_say() {
        let mut request = request();
        let import = "allow-import-from-derivation";
        request.options.push((import.into(), "true".into()));
        let last_value = |line: &CommandLine| {
            let words = line.words();
            let last = words.iter().rposition(|word| word == import).unwrap();
            words[last + 1].clone()
        };
        let invocation = invocation(&request);
        assert_eq!(last_value(&invocation.worker(PART)), "true");
        assert_eq!(last_value(&invocation.searcher(PART)), "false");
        assert_eq!(last_value(&invocation.searcher_for("{}", PART)), "false");
    }

    #[test]
    fn a_walk_has_what_the_request_says() {
        let request = RecordingRequest {
            recurse: Recurse::All,
            meta: false,
            exclude: ["p.slow", "q"]
                .map(|path| AttrPath::parse(path).unwrap())
                .to_vec(),
            ..request()
        };
        let invocation = invocation(&request);
        let walk = invocation.worker(PART);
        for setting in [
            r#""all":true"#,
            r#""buildkite":false"#,
            r#""exclude":[["slow"],[]]"#,
        ] {
            assert!(has(&walk, setting), "{setting} of {walk}");
        }
    }

    #[test]
    fn a_heap_is_half_of_the_part_up_to_a_limit() {
        let request = request();
        let invocation = invocation(&request);
        for (part, heap) in [(PART, PART / 2), (1 << 40, HEAP_AT_MOST)] {
            let heap = memory::heap(heap).map(|heap| heap.to_string().into());
            let walk = invocation.worker(part);
            let mut variables = walk.variables.into_iter();
            let set = variables.find(|(name, _)| *name == "GC_INITIAL_HEAP_SIZE");
            assert_eq!(set.map(|(_, heap)| heap), heap);
        }
    }

    #[test]
    fn each_recording_has_a_marker_of_its_own() {
        let request = request();
        let (one, other) = (invocation(&request), invocation(&request));
        assert_ne!(one.marker(), other.marker());
        assert_eq!(one.marker().len(), "eval-once:".len() + 32);
        assert!(has(&one.worker(PART), one.marker()));
    }

    #[test]
    fn a_flake_is_recorded_on_the_last_of_its_systems() {
        let request = request();
        assert_eq!(invocation(&request).system(), Some("x86_64-linux"));
        assert_eq!(invocation_for(&request, None).system(), None);
    }

    #[test]
    fn each_file_by_which_a_walker_may_come_is_tried_once() {
        let request = request();
        let mut invocation = invocation(&request);
        let first = invocation.first_lines();
        assert!(invocation.try_next_file());
        assert_ne!(invocation.first_lines(), first);
        assert!(!invocation.try_next_file());
    }
}
