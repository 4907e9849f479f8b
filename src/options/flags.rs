//! The command line: subcommands, flags, and the keys of a step that flags stand for.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use serde_json::Value;

use crate::exit::Failure;
use crate::keys::{self, Keys};

const EXAMPLES: &str = "\
Examples:
  eval-once pipeline --file ci.nix --dry-run
        evaluates all targets, and prints the pipeline that builds them
  eval-once step --file ci.nix --attr packages.hello
        builds a target that is not recorded, as nix-build does
  eval-once step --drv /nix/store/….drv --file ci.nix --attr packages.hello
        realises the .drv, and evaluates again only where it is gone
  eval-once step --file ci.nix -A app -- ./result/bin/app --self-test
        builds, and then runs a command
  eval-once explain --drv /nix/store/….drv
        says what step would do, and does nothing

In a Buildkite pipeline, use the plugin.

Exit statuses:
   0  the outputs are there         76  drift, where that is to fail
  64  the configuration is wrong   100  a builder failed
  65  it does not evaluate         101  a timeout ran out
  69  a program is missing         102  a fixed output has another hash
  70  a bug of eval-once           103  several of these
  75  the surroundings failed:     104  a rebuild differed
      worth retrying             128+n  stopped by signal n";

const PIPELINE_EXAMPLES: &str = "\
Examples:
  eval-once pipeline --file ci.nix
        in a job: evaluates every target, and uploads a step for each
  eval-once pipeline --flake . --dry-run
        anywhere: prints the pipeline; everything else is said on standard error
  eval-once pipeline --file ci.nix --exclude 'tests.*.slow' --skip built --group-by 1 --dry-run
  eval-once pipeline --flake . --agents '{\"aarch64-linux\":{\"queue\":\"arm\"}}' --dry-run

Exit statuses:
   0  the steps are uploaded, or printed: each evaluation error has a red one
  64  the configuration is wrong, or Buildkite rejects a step
  65  nothing evaluates; with --on-error fail, also one evaluation error
  69  a program is missing
  75  the store, Buildkite or the state folder cannot be used: worth retrying";

const SUMMARY_HELP: &str = "\
It reads what recordings and steps have left in the build; a step that has left nothing has a row that says so.
`eval-once pipeline --summary` uploads a last step that runs this.

Exit statuses:
   0  the build is summed up, also where steps of it failed
  64  this is no job
  69  there is no buildkite-agent
  75  Buildkite cannot be reached: worth retrying";

/// Nix CI on Buildkite that evaluates once: realises a recorded .drv, and evaluates again only where it is gone.
#[derive(Debug, Parser)]
#[command(name = "eval-once", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) subcommand: CliCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum CliCommand {
    /// Build one target: realise its recorded .drv, or get its outputs by the next best way
    #[command(after_help = EXAMPLES)]
    Step {
        #[command(flatten)]
        keys: KeyFlags,
        /// Write what happened to FILE, as JSON
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
        /// Run this after success, in place of eval-once; `EVAL_ONCE_OUT` is the output
        #[arg(last = true, value_name = "COMMAND")]
        trailing: Vec<OsString>,
    },
    /// Say what `step` would do with the same flags, and why; do nothing
    Explain {
        #[command(flatten)]
        keys: KeyFlags,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Not written: so that a command line of `step` can be taken as it is
        #[arg(long, value_name = "FILE", hide = true)]
        report: Option<PathBuf>,
        /// Not run
        #[arg(last = true, value_name = "COMMAND", hide = true)]
        trailing: Vec<OsString>,
    },
    /// Record: evaluate all targets once, keep what was found, and upload the steps that build it
    #[command(after_help = PIPELINE_EXAMPLES)]
    Pipeline {
        #[command(flatten)]
        keys: Box<RecordingFlags>,
        /// Print the pipeline as one JSON document, and upload nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Sum the build up, in its last step: the outcome of every target, as an annotation and as JUnit
    #[command(after_help = SUMMARY_HELP)]
    Summary,
    /// Remove the pins of recordings that are older than they were to be kept
    Prune,
    /// Be a hook of the agent's
    Hook {
        /// Which hook
        #[arg(value_enum)]
        hook: HookName,
    },
    /// Print what a job's environment needs, for a shell: eval "$(eval-once environment)"
    Environment,
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum HookName {
    /// The command hook: of our plugin, or of the agent where `BUILDKITE_HOOK_SCOPE` says so
    Command,
    /// The environment hook, by `buildkite-agent env set`
    Environment,
}

/// The keys of a step as flags. Without any of them, the keys come from `EVAL_ONCE_STEP`.
#[derive(Debug, Args)]
pub(super) struct KeyFlags {
    /// The recorded .drv
    #[arg(long, value_name = "PATH")]
    drv: Option<String>,
    /// A recorded output; may be repeated
    #[arg(long, value_name = "NAME=PATH")]
    output: Vec<String>,
    #[command(flatten)]
    evaluation: EvaluationFlags,
    /// Take a derivation that can be called as well for the derivation, and do not call it as nix-build -A does
    #[arg(long)]
    no_call: bool,
    #[command(flatten)]
    build: BuildFlags,
}

impl KeyFlags {
    /// The same object that a plugin's configuration is, so that both are read by the same rules.
    pub(super) fn into_keys(self) -> Result<Keys, Failure> {
        let mut keys = Keys::new();
        add(&mut keys, [("drv", self.drv)]);
        self.evaluation.add_to(&mut keys);
        self.build.add_to(&mut keys);
        let mut outputs = Keys::new();
        for output in self.output {
            let Some((name, path)) = output.split_once('=') else {
                return Err(keys::refuse(format_args!(
                    "--output {output} is not of the form NAME=PATH"
                )));
            };
            outputs.insert(name.into(), path.into());
        }
        if !outputs.is_empty() {
            keys.insert("outputs".into(), outputs.into());
        }
        if self.no_call {
            keys.insert("call".into(), Value::Bool(false));
        }
        Ok(keys)
    }
}

/// The keys that say what is evaluated, as flags.
#[derive(Debug, Args)]
pub(super) struct EvaluationFlags {
    /// Evaluate this file, as nix-build does (a path, <…>, a URL)
    #[arg(long, value_name = "FILE")]
    file: Option<String>,
    /// Evaluate this expression
    #[arg(long, value_name = "EXPR", allow_hyphen_values = true)]
    expr: Option<String>,
    /// Evaluate this flake; the attribute path below it goes into --attr, in full
    #[arg(long, value_name = "FLAKE")]
    flake: Option<String>,
    /// The attribute path, dotted; names in quotes may hold anything
    #[arg(long, short = 'A', value_name = "PATH", allow_hyphen_values = true)]
    attr: Option<String>,
    /// Pass a Nix expression as the function argument NAME; may be repeated
    #[arg(long, num_args = 2, value_names = ["NAME", "EXPR"], allow_hyphen_values = true)]
    arg: Vec<String>,
    /// Pass a string as the function argument NAME; may be repeated
    #[arg(long, num_args = 2, value_names = ["NAME", "STRING"], allow_hyphen_values = true)]
    argstr: Vec<String>,
    /// Add an entry to the search path; may be repeated
    #[arg(long, short = 'I', value_name = "PATH")]
    include: Vec<String>,
    /// Set a Nix setting; may be repeated
    #[arg(long, num_args = 2, value_names = ["NAME", "VALUE"], allow_hyphen_values = true)]
    option: Vec<String>,
}

impl EvaluationFlags {
    fn add_to(self, keys: &mut Keys) {
        add(
            keys,
            [
                ("file", self.file),
                ("expr", self.expr),
                ("flake", self.flake),
                ("attr", self.attr),
            ],
        );
        for (key, pairs) in [
            ("arg", self.arg),
            ("argstr", self.argstr),
            ("options", self.option),
        ] {
            let mut map = Keys::new();
            let mut words = pairs.into_iter();
            while let (Some(name), Some(value)) = (words.next(), words.next()) {
                map.insert(name, value.into());
            }
            if !map.is_empty() {
                keys.insert(key.into(), map.into());
            }
        }
        if !self.include.is_empty() {
            keys.insert("include".into(), self.include.into());
        }
    }
}

/// The keys of a recording as flags.
#[derive(Debug, Args)]
pub(super) struct RecordingFlags {
    #[command(flatten)]
    evaluation: EvaluationFlags,
    /// Which sets are walked: marked (those with `recurseForDerivations`) or all [default: marked]
    #[arg(long, value_name = "WHICH")]
    recurse: Option<String>,
    /// An attribute path that is no target, with all below it; `*` stands for one name; may be repeated
    #[arg(long, value_name = "PATH", allow_hyphen_values = true)]
    exclude: Vec<String>,
    /// How many processes evaluate [default: one for each core]
    #[arg(long, value_name = "N")]
    workers: Option<u64>,
    /// How much memory they may use together, in MiB [default: three quarters of what is free]
    #[arg(long, value_name = "MIB")]
    memory: Option<u64>,
    /// How long one attribute may take, in seconds [default: as long as it takes]
    #[arg(long, value_name = "SECONDS")]
    evaluation_timeout: Option<u64>,
    /// What evaluates: nix or nix-eval-jobs [default: nix]
    #[arg(long, value_name = "WHAT")]
    evaluator: Option<String>,
    /// Which targets need no step: built (here), cached (or a substituter has them), none [default: cached]
    #[arg(long, value_name = "WHICH")]
    skip: Option<String>,
    /// How those are shown: mark (as skipped steps), run (as steps that end at once) or omit [default: mark]
    #[arg(long, value_name = "HOW")]
    skip_style: Option<String>,
    /// What an evaluation error does: step (a red step) or fail [default: step]
    #[arg(long, value_name = "WHAT")]
    on_error: Option<String>,
    /// How a step carries its record: plugin or command [default: command, or plugin with --plugin]
    #[arg(long, value_name = "HOW")]
    emit: Option<String>,
    /// The reference to the plugin in steps
    #[arg(long, value_name = "REFERENCE")]
    plugin: Option<String>,
    /// A JSON object that is merged into every step
    #[arg(long, value_name = "JSON")]
    step: Option<String>,
    /// Agent tags by system or feature:NAME, as a JSON object; a flake's targets are looked for on these systems too
    #[arg(long, value_name = "JSON")]
    agents: Option<String>,
    /// Group steps by their first N attribute names
    #[arg(long, value_name = "N")]
    group_by: Option<u64>,
    #[command(flatten)]
    build: BuildFlags,
    /// Ignore the targets' own `meta.buildkite` and `meta.eval-once`
    #[arg(long)]
    no_meta: bool,
    /// Add a last step that runs `eval-once summary`, also where others failed
    #[arg(long)]
    summary: bool,
    /// Steps per upload [default: 100]
    #[arg(long, value_name = "N")]
    chunk: Option<u64>,
    /// How many days the pin is kept [default: 3]
    #[arg(long, value_name = "DAYS")]
    keep_days: Option<u64>,
}

impl RecordingFlags {
    /// The same object that stands under `pipeline` in a plugin's configuration.
    pub(super) fn into_keys(self) -> Result<Keys, Failure> {
        let mut keys = Keys::new();
        self.evaluation.add_to(&mut keys);
        add(
            &mut keys,
            [
                ("recurse", self.recurse),
                ("evaluator", self.evaluator),
                ("skip", self.skip),
                ("skip-style", self.skip_style),
                ("on-error", self.on_error),
                ("emit", self.emit),
                ("plugin", self.plugin),
            ],
        );
        self.build.add_to(&mut keys);
        add(
            &mut keys,
            [
                ("workers", self.workers),
                ("memory", self.memory),
                ("evaluation-timeout", self.evaluation_timeout),
                ("group-by", self.group_by),
                ("chunk", self.chunk),
                ("keep-days", self.keep_days),
            ],
        );
        for (key, text) in [("step", self.step), ("agents", self.agents)] {
            if let Some(text) = text {
                keys.insert(key.into(), keys::parse(&text, &format!("--{key}"))?.into());
            }
        }
        if !self.exclude.is_empty() {
            keys.insert("exclude".into(), self.exclude.into());
        }
        for (key, given, value) in [
            ("meta", self.no_meta, false),
            ("summary", self.summary, true),
        ] {
            if given {
                keys.insert(key.into(), value.into());
            }
        }
        Ok(keys)
    }
}

/// The keys that say how a target is built, as flags: of a step, or of every step of a recording.
#[derive(Debug, Args)]
pub(super) struct BuildFlags {
    /// Where to link a step's outputs [default: result]
    #[arg(long, value_name = "LINK", conflicts_with = "no_out_link")]
    out_link: Option<String>,
    /// Make no link; keep a step's outputs for a day
    #[arg(long)]
    no_out_link: bool,
    /// Whether our hook runs the job's own command after success (after) or leaves it to another plugin's (none) [default: after]
    #[arg(long, value_name = "WHEN")]
    command: Option<String>,
    /// What to do when evaluating again gives another .drv: warn or fail [default: warn]
    #[arg(long, value_name = "WHAT")]
    on_drift: Option<String>,
    /// How a step shows Nix's output: pretty or raw [default: pretty]
    #[arg(long, value_name = "HOW")]
    log: Option<String>,
}

impl BuildFlags {
    fn add_to(self, keys: &mut Keys) {
        add(
            keys,
            [
                ("out-link", self.out_link),
                ("command", self.command),
                ("on-drift", self.on_drift),
                ("log", self.log),
            ],
        );
        if self.no_out_link {
            keys.insert("out-link".into(), false.into());
        }
    }
}

/// Adds those that were given.
fn add<T: Into<Value>>(
    keys: &mut Keys,
    given: impl IntoIterator<Item = (&'static str, Option<T>)>,
) {
    for (key, value) in given {
        if let Some(value) = value {
            keys.insert(key.to_owned(), value.into());
        }
    }
}

/// The completions for `shell`.
#[must_use]
pub fn completions(shell: clap_complete::Shell) -> Vec<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "eval-once", &mut text);
    text
}

/// The value of `--report` on a command line that cannot be read otherwise.
pub(super) fn report_in(arguments: &[OsString]) -> Option<PathBuf> {
    let ours = arguments.split(|word| word == "--").next()?;
    let found = ours.iter().enumerate().find_map(|(i, word)| {
        if word == "--report" {
            return ours.get(i + 1).map(PathBuf::from);
        }
        word.as_bytes()
            .strip_prefix(b"--report=")
            .map(|file| OsStr::from_bytes(file).into())
    });
    found.filter(|path| !path.as_os_str().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    /// The keys that a command line stands for.
    fn keys(line: &str) -> Value {
        let words = line.split_whitespace();
        let keys = match Cli::parse_from(["eval-once"].into_iter().chain(words)).subcommand {
            CliCommand::Step { keys, .. } => keys.into_keys(),
            CliCommand::Pipeline { keys, .. } => keys.into_keys(),
            other => panic!("{other:?}"),
        };
        Value::Object(keys.unwrap())
    }

    #[test]
    fn flags_become_the_same_object_as_a_plugins_configuration() {
        assert_eq!(
            keys(
                "step --file ci.nix -A a.\"b.c\" --arg x -1 --argstr y z -I lib=./lib --option cores 2 \
                 --output out=/s/x --no-call --no-out-link --command none --on-drift fail --log raw"
            ),
            json!({
                "file": "ci.nix", "attr": "a.\"b.c\"", "arg": { "x": "-1" }, "argstr": { "y": "z" },
                "include": ["lib=./lib"], "options": { "cores": "2" }, "outputs": { "out": "/s/x" },
                "call": false, "out-link": false, "command": "none", "on-drift": "fail", "log": "raw"
            })
        );
        assert_eq!(
            keys(
                "pipeline --file ci.nix -A a --recurse all --exclude a.*.b --exclude c --workers 2 --memory 512 \
                 --evaluation-timeout 9 --evaluator nix --skip none --skip-style omit --on-error fail --emit plugin \
                 --plugin o/p#v1 --step {\"priority\":1} --agents {\"x\":{\"queue\":\"q\"}} --group-by 1 --no-meta \
                 --summary --command none --log raw --on-drift fail --out-link out/x --chunk 5 --keep-days 7 \
                 --option cores 2 -I lib=./lib --argstr y z --dry-run"
            ),
            json!({
                "file": "ci.nix", "attr": "a", "recurse": "all", "exclude": ["a.*.b", "c"], "workers": 2,
                "memory": 512, "evaluation-timeout": 9, "evaluator": "nix", "skip": "none", "skip-style": "omit",
                "on-error": "fail", "emit": "plugin", "plugin": "o/p#v1", "step": { "priority": 1 },
                "agents": { "x": { "queue": "q" } }, "group-by": 1, "meta": false, "summary": true,
                "command": "none", "log": "raw", "on-drift": "fail", "out-link": "out/x", "chunk": 5,
                "keep-days": 7, "options": { "cores": "2" }, "include": ["lib=./lib"], "argstr": { "y": "z" }
            })
        );
        assert_eq!(keys("step"), json!({}));
        assert_eq!(keys("pipeline"), json!({}));
    }
}
