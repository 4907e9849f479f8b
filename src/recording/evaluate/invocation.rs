//! The command lines of the processes that evaluate.

use serde_json::{Map, Value};

use super::exclusions::exclusions;
use super::known::KnownTargets;
use super::memory::{self, MIB};
use super::protocol::WalkerSettings;
use super::schedule::Task;
use crate::command_line::CommandLine;
use crate::exit::{Class, Classify as _, Failure};
use crate::nix::{LockedFlake, command};
use crate::recording::{RecordingRequest, Recurse};

/// The heap that a process asks for at its start, at most, in bytes.
const HEAP_AT_MOST: u64 = 1000 * MIB;

/// How many bytes of known targets a process is given: Linux takes 128 KiB in one argument, and the walker is in it, too.
const KNOWN_AT_MOST: usize = 80 << 10;

/// What is the same for all processes of a walk.
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
}

impl<'a> WorkerInvocation<'a> {
    /// `systems`: as [`WalkerSettings`] has them.
    ///
    /// # Errors
    /// The system has no random bytes (75).
    pub(super) fn new(
        request: &'a RecordingRequest,
        locked: Option<LockedFlake>,
        systems: Option<Vec<String>>,
    ) -> Result<Self, Failure> {
        Ok(Self {
            request,
            locked,
            marker: marker()?,
            exclude: exclusions(&request.exclude, &request.root.attr),
            systems,
            known: Value::Object(Map::new()),
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

    /// A process that walks this part, with this share of the memory.
    pub(super) fn walk(&self, task: &Task, share: u64) -> CommandLine {
        self.line(task, share, false, &self.request.options)
    }

    /// A process that searches these unmarked sets for derivations. It builds nothing.
    pub(super) fn search(&self, task: &Task, share: u64) -> CommandLine {
        let mut options = self.request.options.clone();
        options.push(("allow-import-from-derivation".into(), "false".into()));
        self.line(task, share, true, &options)
    }

    fn line(
        &self,
        task: &Task,
        share: u64,
        search: bool,
        options: &command::Options,
    ) -> CommandLine {
        let settings = WalkerSettings {
            marker: &self.marker,
            start: task.spans.as_deref(),
            exclude: &self.exclude,
            known: &self.known,
            all: self.request.recurse == Recurse::All,
            systems: self.systems.as_deref(),
            buildkite: self.request.meta,
            catch: task.catch,
            search,
        };
        // With a large heap from the start, evaluation is 1.5 to 1.9 times faster: the evaluator's collector runs rarely.
        let heap = memory::heap((share / 2).min(HEAP_AT_MOST));
        command::walk(
            &self.request.root,
            &settings.json(),
            self.locked.as_ref(),
            heap,
            options,
        )
    }
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
    use super::*;
    use crate::nix::AttrPath;
    use crate::recording::pipeline::fixtures::request;

    const SHARE: u64 = 64 * MIB;

    fn invocation(request: &RecordingRequest) -> WorkerInvocation<'_> {
        let systems = ["x86_64-darwin", "x86_64-linux"].map(str::to_owned);
        WorkerInvocation::new(request, None, Some(systems.to_vec())).unwrap()
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
        let task = Task::everything();
        let (walk, search) = (
            invocation.walk(&task, SHARE),
            invocation.search(&task, SHARE),
        );
        assert_eq!(last_value(&walk), "true");
        assert_eq!(last_value(&search), "false");
        assert!(has(&walk, r#""search":false"#) && has(&search, r#""search":true"#));
    }

    #[test]
    fn a_walk_has_what_the_request_and_its_task_say() {
        let request = RecordingRequest {
            recurse: Recurse::All,
            meta: false,
            exclude: ["p.slow", "q"]
                .map(|path| AttrPath::parse(path).unwrap())
                .to_vec(),
            ..request()
        };
        let invocation = invocation(&request);
        let walk = invocation.walk(&Task::everything(), SHARE);
        for setting in [
            r#""all":true"#,
            r#""buildkite":false"#,
            r#""catch":true"#,
            r#""exclude":[["slow"],[]]"#,
            r#""start":null"#,
        ] {
            assert!(has(&walk, setting), "{setting} of {walk}");
        }
        let uncaught = Task {
            catch: false,
            ..Task::everything()
        };
        assert!(has(&invocation.walk(&uncaught, SHARE), r#""catch":false"#));
    }

    #[test]
    fn a_heap_is_half_of_the_share_up_to_a_limit() {
        let request = request();
        let invocation = invocation(&request);
        for (share, heap) in [(SHARE, SHARE / 2), (1 << 40, HEAP_AT_MOST)] {
            let heap = memory::heap(heap).map(|heap| ("GC_INITIAL_HEAP_SIZE", heap.to_string()));
            let walk = invocation.walk(&Task::everything(), share);
            assert_eq!(walk.variables, Vec::from_iter(heap));
        }
    }

    #[test]
    fn each_recording_has_a_marker_of_its_own() {
        let request = request();
        let (one, other) = (invocation(&request), invocation(&request));
        assert_ne!(one.marker(), other.marker());
        assert_eq!(one.marker().len(), "eval-once:".len() + 32);
        assert!(has(&one.walk(&Task::everything(), SHARE), one.marker()));
    }

    #[test]
    fn a_flake_is_recorded_on_the_last_of_its_systems() {
        let request = request();
        assert_eq!(invocation(&request).system(), Some("x86_64-linux"));
        let file = WorkerInvocation::new(&request, None, None).unwrap();
        assert_eq!(file.system(), None);
    }
}
