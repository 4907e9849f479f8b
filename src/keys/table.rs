//! The table of keys: each is declared here once, by its name, whose key it is, what its values are, and what it means in one
//! line.
//!
//! Flags, with their help and completions, are made from it. Everything else is checked against it, so that no place lacks a new
//! key: a reader that does not read a declared key panics in every debug build ([`KeyReader::finish`](super::KeyReader::finish)),
//! and `tests/key_table.rs` names what is missing in `plugin.yml`, the README and the guide.

/// Whose key it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyOwner {
    /// Of a step: in a plugin's configuration, in `EVAL_ONCE_STEP`, as flags.
    Step,
    /// Of a recording: under `pipeline`, as flags.
    Recording,
    /// Of a target that is recorded: in its `meta.eval-once`.
    Target,
    /// Of a pin by hand: as flags of `eval-once pin`.
    Pin,
    /// Of a step that follows a target: in its `meta.eval-once.steps.<name>`.
    Follower,
}

impl KeyOwner {
    /// The owner, in a sentence.
    #[must_use]
    pub fn noun(self) -> &'static str {
        match self {
            Self::Step => "a step",
            Self::Recording => "a recording",
            Self::Target => "a target",
            Self::Pin => "a pin",
            Self::Follower => "a step that follows a target",
        }
    }
}

/// A key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// The name.
    pub name: &'static str,
    /// Whose key it is.
    pub owners: &'static [KeyOwner],
    /// What its values are.
    pub kind: KeyKind,
    /// What it means, in one line.
    pub doc: &'static str,
    /// What it means to a recording, where that is something else.
    pub recording_doc: Option<&'static str>,
    /// What holds without it: one of its values, or words.
    pub default: Option<&'static str>,
    /// Its flag; none where only recordings write the key.
    pub flag: Option<Flag>,
}

/// How a key is given on a command line.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// Its long name, without the dashes.
    pub long: &'static str,
    /// Its letter.
    pub short: Option<char>,
    /// What it does, where the key's own line does not say that of one flag.
    pub doc: Option<&'static str>,
    /// The value may begin with a dash.
    pub hyphens: bool,
}

/// What the values of a key are, and how a flag takes one: under the name that is given here.
#[derive(Debug, Clone, Copy)]
pub enum KeyKind {
    /// A string.
    Text(&'static str),
    /// A list of strings: one for each flag.
    Texts(&'static str),
    /// An attribute path: a string with dots, or a list of names.
    AttrPath,
    /// A list of attribute paths: one for each flag.
    AttrPaths,
    /// `true` or `false`: the flag is for the one that is not the default.
    Boolean,
    /// `true`, `false` or this word; the flag alone is `true`.
    BooleanOr(&'static str),
    /// One of a few words.
    Choice(&'static str, &'static [Choice]),
    /// A whole number, from the least to the most, both included.
    Number(&'static str, u64, u64),
    /// A map of strings, numbers and booleans: a name and a value for each flag.
    Pairs(&'static str),
    /// A map of store paths: `NAME=PATH` for each flag.
    Paths,
    /// A map of anything: as JSON.
    Json,
    /// A list of maps: only recordings write one.
    Maps,
    /// A string, or `false`, for which there is another flag: its name, and what it does.
    TextOrFalse(&'static str, &'static str, &'static str),
}

/// A word that a key can have as its value.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    /// The word.
    pub word: &'static str,
    /// What it means.
    pub doc: &'static str,
}

impl Key {
    const fn new(
        name: &'static str,
        owners: &'static [KeyOwner],
        kind: KeyKind,
        doc: &'static str,
    ) -> Self {
        Self {
            name,
            owners,
            kind,
            doc,
            recording_doc: None,
            default: None,
            flag: Some(Flag {
                long: name,
                short: None,
                doc: None,
                hyphens: false,
            }),
        }
    }

    const fn default(mut self, default: &'static str) -> Self {
        self.default = Some(default);
        self
    }

    const fn in_recordings(mut self, doc: &'static str) -> Self {
        self.recording_doc = Some(doc);
        self
    }

    const fn flag(mut self, long: &'static str, doc: &'static str) -> Self {
        self.flag = Some(Flag {
            long,
            short: None,
            doc: Some(doc),
            hyphens: false,
        });
        self
    }

    const fn short(mut self, short: char) -> Self {
        if let Some(flag) = &mut self.flag {
            flag.short = Some(short);
        }
        self
    }

    const fn hyphens(mut self) -> Self {
        if let Some(flag) = &mut self.flag {
            flag.hyphens = true;
        }
        self
    }

    const fn without_flag(mut self) -> Self {
        self.flag = None;
        self
    }

    /// What it means to this owner, in one line.
    #[must_use]
    pub fn doc_for(&self, owner: KeyOwner) -> &'static str {
        match (owner, self.recording_doc) {
            (KeyOwner::Recording | KeyOwner::Pin, Some(doc)) => doc,
            _ => self.doc,
        }
    }

    /// What it means to this owner, with its choices and its default: the description in `plugin.yml`.
    #[must_use]
    pub fn description(&self, owner: KeyOwner) -> String {
        let mut text = self.doc_for(owner).to_owned();
        if let KeyKind::Choice(_, choices) = self.kind {
            let choices = choices
                .iter()
                .map(|choice| format!("{} ({})", choice.word, choice.doc));
            text = format!("{text}: {}", choices.collect::<Vec<_>>().join(", "));
        }
        match self.default {
            Some(default) => format!("{text}; default {default}"),
            None => text,
        }
    }

    /// Its choices, where it has a few.
    #[must_use]
    pub fn choices(&self) -> Option<&'static [Choice]> {
        match self.kind {
            KeyKind::Choice(_, choices) => Some(choices),
            _ => None,
        }
    }
}

/// The keys of this owner.
pub fn of(owner: KeyOwner) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.owners.contains(&owner))
}

/// The words that can stand under this name.
#[must_use]
pub fn choices(name: &str) -> &'static [Choice] {
    let mut named = KEYS.iter().filter(|key| key.name == name);
    named.find_map(Key::choices).unwrap_or_default()
}

/// The least and the most number that can stand under this name.
#[must_use]
pub fn bounds(name: &str) -> Option<(u64, u64)> {
    let mut named = KEYS.iter().filter(|key| key.name == name);
    named.find_map(|key| match key.kind {
        KeyKind::Number(_, least, most) => Some((least, most)),
        _ => None,
    })
}

const SHARE: KeyKind = KeyKind::TextOrFalse("SHARE", "no-share", "Use no share");

const STEP: &[KeyOwner] = &[KeyOwner::Step];
const RECORDING: &[KeyOwner] = &[KeyOwner::Recording];
const BOTH: &[KeyOwner] = &[KeyOwner::Step, KeyOwner::Recording];
const WITH_PINS: &[KeyOwner] = &[KeyOwner::Recording, KeyOwner::Pin];
const BOTH_AND_PINS: &[KeyOwner] = &[KeyOwner::Step, KeyOwner::Recording, KeyOwner::Pin];
const STEP_AND_TARGET: &[KeyOwner] = &[KeyOwner::Step, KeyOwner::Target];
const TARGET: &[KeyOwner] = &[KeyOwner::Target];
const FOLLOWER: &[KeyOwner] = &[KeyOwner::Follower];
const ALL: &[KeyOwner] = &[KeyOwner::Step, KeyOwner::Recording, KeyOwner::Target];
const ALL_AND_PINS: &[KeyOwner] = &[
    KeyOwner::Step,
    KeyOwner::Recording,
    KeyOwner::Target,
    KeyOwner::Pin,
];

const fn choice(word: &'static str, doc: &'static str) -> Choice {
    Choice { word, doc }
}

/// All keys, in the order in which `--help` shows them.
pub const KEYS: &[Key] = &[
    Key::new("drv", STEP, KeyKind::Text("PATH"), "The recorded .drv, a store path"),
    Key::new(
        "outputs",
        STEP,
        KeyKind::Paths,
        "Name and store path of each recorded output, where the paths are known before the build",
    )
    .flag("output", "The store path of a recorded output"),
    Key::new(
        "file",
        BOTH,
        KeyKind::Text("FILE"),
        "The Nix file to evaluate, as for nix-build: a path, <…> for the search path, or a URL",
    )
    .default("default.nix; in a step, only if nothing is recorded"),
    Key::new(
        "expr",
        BOTH,
        KeyKind::Text("EXPR"),
        "The Nix expression to evaluate",
    )
    .hyphens(),
    Key::new(
        "flake",
        BOTH,
        KeyKind::Text("FLAKE"),
        "The flake to evaluate; the attribute path below it goes into `attr`, in full",
    )
    .in_recordings("The flake to evaluate; without `attr`, its checks, packages and hydraJobs"),
    Key::new(
        "attr",
        BOTH,
        KeyKind::AttrPath,
        "The target's attribute path: names with dots between them, quoted as in Nix, or a list of names",
    )
    .in_recordings(
        "The attribute path below which targets are searched: names with dots between them, quoted as in Nix, or a list of names",
    )
    .flag(
        "attr",
        "The attribute path: names with dots between them, quoted as in Nix",
    )
    .short('A')
    .hyphens(),
    Key::new(
        "arg",
        BOTH,
        KeyKind::Pairs("EXPR"),
        "Function arguments: a string is a Nix expression, a number or boolean is itself",
    )
    .flag("arg", "Pass a Nix expression as the function argument NAME"),
    Key::new(
        "argstr",
        BOTH,
        KeyKind::Pairs("STRING"),
        "Function arguments that are strings",
    )
    .flag("argstr", "Pass a string as the function argument NAME"),
    Key::new(
        "include",
        BOTH,
        KeyKind::Texts("PATH"),
        "Entries of the Nix search path",
    )
    .flag("include", "Add an entry to the Nix search path")
    .short('I'),
    Key::new("options", BOTH_AND_PINS, KeyKind::Pairs("VALUE"), "Nix settings")
        .flag("option", "Set a Nix setting"),
    Key::new(
        "call",
        STEP,
        KeyKind::Boolean,
        "Whether a derivation that is also a function is called, as nix-build -A does",
    )
    .default("true")
    .flag(
        "no-call",
        "Do not call a derivation that is also a function, unlike nix-build -A",
    ),
    Key::new(
        "recurse",
        RECORDING,
        KeyKind::Choice(
            "WHICH",
            &[
                choice("marked", "those with recurseForDerivations"),
                choice("all", "all of them"),
            ],
        ),
        "Which attribute sets are searched for targets",
    )
    .default("marked"),
    Key::new(
        "exclude",
        RECORDING,
        KeyKind::AttrPaths,
        "Attribute paths that are left out, with everything below them; * stands for one name",
    )
    .flag(
        "exclude",
        "Leave out an attribute path, with everything below it; * stands for one name",
    )
    .hyphens(),
    Key::new(
        "workers",
        RECORDING,
        KeyKind::Number("N", 1, 1024),
        "How many processes evaluate at most; another one begins where it pays",
    )
    .default("the number of cores"),
    Key::new(
        "memory",
        RECORDING,
        KeyKind::Number("MIB", 1, u64::MAX >> 20),
        "Memory for all of these processes together, in MiB",
    )
    .default("three quarters of what is free"),
    Key::new(
        "evaluation-timeout",
        RECORDING,
        KeyKind::Number("SECONDS", 1, u64::MAX),
        "Time limit for each attribute, in seconds",
    )
    .default("none"),
    Key::new(
        "evaluator",
        RECORDING,
        KeyKind::Choice(
            "PROGRAM",
            &[
                choice("nix", "stock Nix"),
                choice("nix-eval-jobs", "that program, which must be on PATH"),
            ],
        ),
        "What evaluates",
    )
    .default("nix"),
    Key::new(
        "skip",
        RECORDING,
        KeyKind::Choice(
            "WHICH",
            &[
                choice("built", "those in the local store"),
                choice("cached", "also those that a substituter has"),
                choice("none", "none of them"),
            ],
        ),
        "Which targets need no step",
    )
    .default("cached"),
    Key::new(
        "base",
        RECORDING,
        KeyKind::Text("FILE"),
        "The eval-once.json of an earlier build, with its eval-once-outcomes.json beside it; what is the same and was green there needs no step",
    ),
    Key::new(
        "batch",
        RECORDING,
        KeyKind::Number("SECONDS", 1, 3_600),
        "Put targets that took less than that in the base into common steps, at most 50 each",
    ),
    Key::new(
        "shared-steps",
        RECORDING,
        KeyKind::Number("N", 2, 100_000),
        "Give a derivation that is no target a step of its own where at least so many targets need it directly",
    )
    .default("no such steps"),
    Key::new(
        "skip-style",
        RECORDING,
        KeyKind::Choice(
            "HOW",
            &[
                choice("mark", "as skipped steps, which report nothing to a code host"),
                choice("run", "as steps that end green at once"),
                choice("omit", "not at all"),
            ],
        ),
        "How targets that need no step are shown",
    )
    .default("mark"),
    Key::new(
        "on-error",
        RECORDING,
        KeyKind::Choice(
            "WHAT",
            &[
                choice("step", "it becomes a red step"),
                choice("fail", "it fails the recording before anything is uploaded"),
                choice("report", "it gets no step, only a line in the annotation and in eval-once.json"),
            ],
        ),
        "What an evaluation error does",
    )
    .default("step"),
    Key::new(
        "expect-errors",
        RECORDING,
        KeyKind::AttrPaths,
        "Attribute paths whose evaluation errors are expected, with everything below them: shown as skipped; * stands for one name",
    )
    .flag(
        "expect-errors",
        "Expect the evaluation errors of an attribute path and everything below it: show them as skipped; * stands for one name",
    )
    .hyphens(),
    Key::new(
        "keys",
        RECORDING,
        KeyKind::Choice(
            "WHAT",
            &[
                choice("drv", "the .drv's hash: the same key is the same build"),
                choice(
                    "attr",
                    "the attribute path, as nix-packages-app: the same key is the same target in every build",
                ),
            ],
        ),
        "What the keys of steps are made of",
    )
    .default("drv"),
    Key::new(
        "key-prefix",
        RECORDING,
        KeyKind::Text("PREFIX"),
        "What the keys of steps begin with: another one for each recording of a build with keys: attr",
    )
    .default("nix- with keys: attr, else none"),
    Key::new(
        "phases",
        RECORDING,
        KeyKind::Texts("PHASE"),
        "Which steps are made: build (those of targets), release (those that follow them)",
    )
    .flag("phases", "Make only these steps: build (those of targets), or release (those that follow them)")
    .default("both"),
    Key::new(
        "emit",
        RECORDING,
        KeyKind::Choice(
            "HOW",
            &[
                choice("plugin", "as this plugin's configuration"),
                choice(
                    "command",
                    "in EVAL_ONCE_STEP, with the command eval-once step",
                ),
            ],
        ),
        "How a step carries its record",
    )
    .default("plugin where its reference is known, else command"),
    Key::new(
        "plugin",
        RECORDING,
        KeyKind::Text("REFERENCE"),
        "The reference to this plugin that is written into steps",
    )
    .default("the one that records"),
    Key::new(
        "step",
        RECORDING,
        KeyKind::Json,
        "Properties of a Buildkite step, merged into every step",
    ),
    Key::new(
        "agents",
        RECORDING,
        KeyKind::Json,
        "Agent tags by system or feature:NAME, a map or a list of name=value each; a flake's targets are searched on these systems too",
    ),
    Key::new(
        "group-by",
        RECORDING,
        KeyKind::Number("N", 1, 64),
        "Group steps by so many of the first names of their attribute paths",
    )
    .default("no groups"),
    Key::new(
        "out-link",
        ALL,
        KeyKind::TextOrFalse(
            "LINK",
            "no-out-link",
            "Make no link, and keep the outputs for a day",
        ),
        "The link to a step's outputs; false makes none and keeps the outputs for a day",
    )
    .flag("out-link", "The link to a step's outputs")
    .default("result"),
    Key::new(
        "command",
        ALL,
        KeyKind::Choice(
            "WHEN",
            &[
                choice("after", "after the build, by this plugin or hook"),
                choice("none", "by another plugin's hook"),
            ],
        ),
        "When a step's own command runs",
    )
    .default("after"),
    Key::new(
        "on-drift",
        ALL,
        KeyKind::Choice(
            "WHAT",
            &[
                choice("warn", "warn, and build that"),
                choice("fail", "end the step before anything is built"),
            ],
        ),
        "What to do where evaluating again gives another .drv than the recorded one",
    )
    .default("warn"),
    Key::new(
        "log",
        ALL,
        KeyKind::Choice(
            "HOW",
            &[
                choice("pretty", "in groups, builders by their derivations' names"),
                choice("raw", "as Nix prints it"),
            ],
        ),
        "How a step shows Nix's output",
    )
    .default("pretty"),
    Key::new(
        "share",
        STEP,
        SHARE,
        "Where a missing .drv is fetched from: the URL of a store, or artifact:NAME, as recordings write it; false fetches nothing",
    )
    .flag(
        "share",
        "Where a missing .drv is fetched from: the URL of a store, or artifact:NAME, as recordings write it",
    )
    .default("EVAL_ONCE_SHARE, where that is a URL"),
    Key::new(
        "share",
        WITH_PINS,
        SHARE,
        "How other hosts get the recorded .drvs: artifact (an artifact of the build), the URL of a store, or false (not at all)",
    )
    .flag(
        "share",
        "How other hosts get the recorded .drvs: artifact (an artifact of the build), or the URL of a store",
    )
    .default("EVAL_ONCE_SHARE, else artifact in a job"),
    Key::new(
        "share-limit",
        WITH_PINS,
        KeyKind::Number("MIB", 1, u64::MAX >> 20),
        "The largest archive that becomes an artifact, in MiB, compressed; a larger one is a warning, and nothing is shared",
    )
    .default("2048 where share is set, else 128"),
    Key::new(
        "share-required",
        ALL_AND_PINS,
        KeyKind::Boolean,
        "Whether a share that fails is a failure (75): of a recording, and of a step that would have to evaluate",
    )
    .default("false")
    .flag("share-required", "Fail with 75 where the share fails"),
    Key::new(
        "push",
        ALL,
        KeyKind::Text("URL"),
        "The URL of the store to which a step copies its outputs, with what they need, after success",
    ),
    Key::new(
        "push-partial",
        ALL,
        KeyKind::Boolean,
        "Whether a step whose target failed pushes what was built for it",
    )
    .default("false")
    .flag("push-partial", "Push what was built, also where the target failed"),
    Key::new(
        "artifacts",
        STEP_AND_TARGET,
        KeyKind::Texts("GLOB"),
        "Globs below the outputs: files that become artifacts of the build, under the target's attribute path",
    )
    .flag(
        "artifacts",
        "Upload files of the outputs as artifacts of the build: a glob below the outputs",
    ),
    Key::new(
        "checkout",
        BOTH,
        KeyKind::Choice(
            "WHEN",
            &[
                choice("always", "by the agent, before each step"),
                choice("fallback", "by the step, only where it has to evaluate"),
            ],
        ),
        "When the repository is checked out for a recorded step",
    )
    .default("always"),
    Key::new(
        "meta",
        RECORDING,
        KeyKind::Boolean,
        "Whether the targets' own meta.buildkite and meta.eval-once count; false for untrusted changes",
    )
    .default("true")
    .flag(
        "no-meta",
        "Ignore the targets' own meta.buildkite and meta.eval-once",
    ),
    Key::new(
        "notify",
        RECORDING,
        KeyKind::Choice(
            "WHAT",
            &[
                choice("none", "nothing besides the build itself"),
                choice("github-status", "a commit status for each target, by its attribute path"),
            ],
        ),
        "What Buildkite reports to the code host",
    )
    .default("none"),
    Key::new(
        "summary",
        RECORDING,
        KeyKind::BooleanOr("fail"),
        "Add a last step that sums up the build, also after failures; with fail it is red where a target failed",
    )
    .default("false"),
    Key::new(
        "chunk",
        RECORDING,
        KeyKind::Number("N", 1, 500),
        "Steps per upload",
    )
    .default("100"),
    Key::new(
        "keep-days",
        BOTH_AND_PINS,
        KeyKind::Number("DAYS", 1, 36_500),
        "Days without use after which the step's host removes an unpacked share, or a checkout of ours",
    )
    .in_recordings("Days for which the recorded .drv files are kept from the garbage collector")
    .default("3"),
    Key::new(
        "skip",
        STEP,
        KeyKind::Boolean,
        "Written by recordings (skip-style: run): end at once where all outputs are in the store or in a cache",
    )
    .default("false")
    .without_flag(),
    Key::new(
        "targets",
        STEP,
        KeyKind::Maps,
        "Written by recordings (batch): the targets that the step builds one after the other, each with its own keys and the key of its report",
    )
    .without_flag(),
    Key::new(
        "share-size",
        STEP,
        KeyKind::Number("BYTES", 0, u64::MAX),
        "Written by recordings: how many bytes the share's archive unpacks to",
    )
    .without_flag(),
    Key::new(
        "run",
        STEP,
        KeyKind::Text("PROGRAM"),
        "Written by recordings: the program in the outputs that is run after the build, by its name in bin; * is the only one",
    )
    .without_flag(),
    Key::new(
        "needs",
        STEP,
        KeyKind::Json,
        "Written by recordings: a target that is realised first, for the program of run, by attr, call, drv, outputs and out-link",
    )
    .without_flag(),
    Key::new(
        "refused",
        STEP,
        KeyKind::Text("TEXT"),
        "Written by recordings: what is wrong with a target that can have no step; report it, build nothing and end with 64",
    )
    .without_flag(),
    Key::new(
        "target",
        STEP,
        KeyKind::AttrPath,
        "Written by recordings: the target's attribute path, where attr is another one that its step evaluates",
    )
    .without_flag(),
    Key::new(
        "attr",
        TARGET,
        KeyKind::AttrPath,
        "The attribute path that a step of the target evaluates where it has to, instead of the recorded one",
    )
    .without_flag(),
    Key::new(
        "file",
        TARGET,
        KeyKind::Text("FILE"),
        "The Nix file that a step of the target evaluates where it has to, instead of what was recorded",
    )
    .without_flag(),
    Key::new(
        "expr",
        TARGET,
        KeyKind::Text("EXPR"),
        "The expression that a step of the target evaluates where it has to, instead of what was recorded",
    )
    .without_flag(),
    Key::new(
        "steps",
        TARGET,
        KeyKind::Json,
        "Steps that follow the target, by name",
    )
    .without_flag(),
    Key::new(
        "run",
        FOLLOWER,
        KeyKind::Json,
        "A derivation whose main program is run: meta.mainProgram, else its only executable",
    )
    .without_flag(),
    Key::new(
        "command",
        FOLLOWER,
        KeyKind::Text("COMMAND"),
        "Text for the shell, as Buildkite has it, instead of run",
    )
    .without_flag(),
    Key::new(
        "needs-output",
        FOLLOWER,
        KeyKind::Boolean,
        "Whether the target's outputs are realised first: at result, and in EVAL_ONCE_OUT",
    )
    .default("false")
    .without_flag(),
    Key::new(
        "after",
        FOLLOWER,
        KeyKind::Choice(
            "WHAT",
            &[
                choice("target", "the target's step"),
                choice("all", "the steps of all targets of the recording"),
                choice("nothing", "nothing"),
            ],
        ),
        "What it waits for",
    )
    .default("target")
    .without_flag(),
    Key::new(
        "always",
        FOLLOWER,
        KeyKind::Boolean,
        "Whether it also runs where what it waits for has failed",
    )
    .default("false")
    .without_flag(),
    Key::new(
        "unless-skipped",
        FOLLOWER,
        KeyKind::Boolean,
        "Whether it is left out where the target is skipped",
    )
    .default("false")
    .without_flag(),
    Key::new(
        "confirm",
        FOLLOWER,
        KeyKind::Text("QUESTION"),
        "A question that a person has to answer before: a block step in one group with it",
    )
    .without_flag(),
    Key::new(
        "buildkite",
        FOLLOWER,
        KeyKind::Json,
        "Properties of a Buildkite step, merged into it",
    )
    .without_flag(),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_declared_once_for_each_owner_and_means_one_kind_to_readers() {
        for owner in [
            KeyOwner::Step,
            KeyOwner::Recording,
            KeyOwner::Target,
            KeyOwner::Pin,
            KeyOwner::Follower,
        ] {
            let names: Vec<_> = of(owner).map(|key| key.name).collect();
            for (at, name) in names.iter().enumerate() {
                assert!(!names[..at].contains(name), "{name} of {}", owner.noun());
            }
        }
        // Readers ask for choices and bounds by name alone.
        let named = |name: &str, is: fn(&KeyKind) -> bool| {
            let keys = KEYS.iter().filter(|key| key.name == name);
            keys.filter(|key| is(&key.kind)).count()
        };
        for key in KEYS {
            assert!(named(key.name, |kind| matches!(kind, KeyKind::Choice(..))) <= 1);
            assert!(named(key.name, |kind| matches!(kind, KeyKind::Number(..))) <= 1);
        }
    }

    #[test]
    fn a_default_that_is_a_value_is_one_of_the_keys_values() {
        for key in KEYS {
            let default = key.default.unwrap_or_default();
            match key.kind {
                KeyKind::Boolean | KeyKind::BooleanOr(_) => {
                    assert!(["true", "false"].contains(&default), "{}", key.name);
                }
                KeyKind::Choice(_, choices) => {
                    let words = choices.iter().map(|choice| choice.word);
                    let mut named = words.filter(|word| default.contains(word));
                    assert!(named.next().is_some(), "{}", key.name);
                }
                KeyKind::Number(_, least, most) => {
                    let number = default.parse().unwrap_or(least);
                    assert!((least..=most).contains(&number), "{}", key.name);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn a_description_has_the_choices_and_the_default() {
        let mut recurse = of(KeyOwner::Recording).filter(|key| key.name == "recurse");
        assert_eq!(
            recurse.next().unwrap().description(KeyOwner::Recording),
            "Which attribute sets are searched for targets: marked (those with recurseForDerivations), all (all of them); default marked"
        );
    }
}
