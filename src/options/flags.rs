//! The command line: subcommands, flags, and the keys of a step that flags stand for.

use std::ffi::{OsStr, OsString};
use std::marker::PhantomData;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{
    Arg, ArgAction, ArgMatches, Args, Command, CommandFactory as _, FromArgMatches, Parser,
    Subcommand, value_parser,
};
use serde_json::Value;

use crate::exit::Failure;
use crate::keys::table::{self, Flag, Key, KeyKind, KeyOwner};
use crate::keys::{self, Keys};

const EXAMPLES: &str = "\
Examples:
  eval-once pipeline --file ci.nix --dry-run
        evaluate all targets, and print the pipeline that builds them
  eval-once step --file ci.nix --attr packages.hello
        build a target that is not recorded, as nix-build does
  eval-once step --drv /nix/store/….drv --file ci.nix --attr packages.hello
        realise the .drv; evaluate again only where it is gone
  eval-once step --file ci.nix -A app -- ./result/bin/app --self-test
        build, then run a command
  eval-once explain --drv /nix/store/….drv
        print what step would do, and do nothing
  eval-once doctor
        check this host: Nix, its store, the state folder, the agent

In a Buildkite pipeline, use the plugin.

Exit statuses:
   0  the outputs exist             76  drift, with --on-drift fail
  64  the configuration is wrong   100  a builder failed
  65  evaluation error             101  a timeout ran out
  69  a program is missing         102  hash mismatch
  70  a bug in eval-once           103  several of these
  75  infrastructure failure       104  not reproducible
      (safe to retry)            128+n  stopped by signal n";

const PIPELINE_EXAMPLES: &str = "\
Examples:
  eval-once pipeline --file ci.nix
        in a job: evaluate all targets, and upload a step for each
  eval-once pipeline --flake . --dry-run
        anywhere: print the pipeline to standard output, and messages to standard error
  eval-once pipeline --file ci.nix --exclude 'tests.*.slow' --skip built --group-by 1 --dry-run
  eval-once pipeline --flake . --agents '{\"aarch64-linux\":{\"queue\":\"arm\"}}' --dry-run

Exit statuses:
   0  the steps are uploaded or printed, a red one for each evaluation error (see --on-error)
  64  the configuration is wrong, or Buildkite rejects a step
  65  nothing evaluates, and no step would be red for it; with --on-error fail, also an evaluation error
      that is not expected
  69  a program is missing
  75  infrastructure failure: the store, Buildkite, the state folder (safe to retry)";

const PIN_EXAMPLES: &str = "\
Examples:
  nix-instantiate ci.nix | eval-once pin -
        keep the .drvs of all targets for three days
  eval-once pin --share https://cache.example.org --keep-days 7 /nix/store/….drv
        keep one for a week, and copy it to a cache for other hosts

Exit statuses:
   0  the .drvs are kept, and shared where they can be
  64  the configuration is wrong
  69  a program is missing
  75  a .drv does not exist, or infrastructure failure: the store, the state folder (safe to retry)";

const SUMMARY_HELP: &str = "\
It reads the plans of the build's recordings and the reports of its steps; a step without a report has a row that says so.
`eval-once pipeline --summary` uploads a last step that runs this.

Exit statuses:
   0  the build is summed up, whether its steps passed or failed
   1  with --fail: a target failed, or its outcome is not known
  64  this is not a Buildkite job
  69  buildkite-agent is missing
  75  infrastructure failure: Buildkite cannot be reached (safe to retry)";

const BASE_HELP: &str = "\
It takes the newest of the branch's last 30 builds, running or finished, that has both files; a build has the second when its summary is
made. BUILDKITE_API_TOKEN is a token with the scopes read_builds and read_artifacts.

Examples:
  eval-once base .git/base
  eval-once pipeline --file ci.nix --summary --base .git/base/eval-once.json

Exit statuses:
   0  the base is fetched; or it is not, with a warning, and there are no files
  64  the command line is wrong";

const DOCTOR_HELP: &str = "\
It changes nothing but one GC root, which it makes and removes. A question that is not answered within 10 seconds, or 15 over the network,
is a failure of its check.

Exit statuses:
   0  no check is a failure; there may be warnings
   1  a check is a failure
  64  the command line is wrong";

/// Nix CI on Buildkite that evaluates every target once: steps realise the recorded .drv, and evaluate again only where it is gone.
#[derive(Debug, Parser)]
#[command(name = "eval-once", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) subcommand: CliCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum CliCommand {
    /// Build one target: realise its recorded .drv, or get its outputs in the next best way
    #[command(after_help = EXAMPLES)]
    Step {
        #[command(flatten)]
        keys: StepFlags,
        /// Write a report to FILE, as JSON
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
        /// Run this command after success; `EVAL_ONCE_OUT` is the path of the output
        #[arg(last = true, value_name = "COMMAND")]
        trailing: Vec<OsString>,
    },
    /// Print what `step` would do with the same flags, and why; do nothing
    Explain {
        #[command(flatten)]
        keys: StepFlags,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Ignored, so that `explain` takes a command line of `step` as it is
        #[arg(long, value_name = "FILE", hide = true)]
        report: Option<PathBuf>,
        /// Ignored
        #[arg(last = true, value_name = "COMMAND", hide = true)]
        trailing: Vec<OsString>,
    },
    /// Record: evaluate all targets once, keep their .drvs, and upload the steps that build them
    #[command(after_help = PIPELINE_EXAMPLES)]
    Pipeline {
        #[command(flatten)]
        keys: RecordingFlags,
        /// Print the pipeline as one JSON document, and upload nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Keep .drvs from the garbage collector, and share them: for pipelines that another program generates
    ///
    /// Prints one JSON document: the pin, and the keys that each step needs beside `drv` to fetch it on another host.
    #[command(after_help = PIN_EXAMPLES)]
    Pin {
        /// The .drv files, as store paths; `-` reads them from standard input, one a line
        #[arg(required = true, value_name = "DRV")]
        drvs: Vec<String>,
        #[command(flatten)]
        keys: PinFlags,
    },
    /// Sum up the build, in its last step: the outcome of every target, as an annotation and as JUnit
    #[command(after_help = SUMMARY_HELP)]
    Summary {
        /// End with 1 where a target failed, or its outcome is not known
        #[arg(long)]
        fail: bool,
    },
    /// Fetch what an earlier build has recorded, and its outcomes, for `pipeline --base`
    #[command(after_help = BASE_HELP)]
    Base {
        /// The folder that gets eval-once.json and eval-once-outcomes.json; not in what is evaluated
        #[arg(value_name = "FOLDER")]
        folder: PathBuf,
        /// The branch; default: the base branch of the pull request, else the pipeline's default branch
        #[arg(long, value_name = "BRANCH")]
        branch: Option<String>,
        /// The pipeline; default: that of the job
        #[arg(long, value_name = "ORGANIZATION/PIPELINE")]
        pipeline: Option<String>,
    },
    /// Remove expired GC roots of past recordings, and archives and checkouts that steps no longer use
    ///
    /// A recording sets the expiry of its GC root (`keep-days`, three by default). GC roots of killed runs go, too.
    Prune,
    /// Check what steps and recordings need of this host, and say how to mend what is wrong
    #[command(after_help = DOCTOR_HELP)]
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Copy a file of 100 bytes to the share of `EVAL_ONCE_SHARE`, where it stays
        #[arg(long)]
        write_share: bool,
    },
    /// Run as a hook of a Buildkite agent or plugin
    Hook {
        /// Which hook
        #[arg(value_enum)]
        hook: HookName,
    },
    /// Print the variables that a job needs, for a shell: eval "$(eval-once environment)"
    Environment,
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum HookName {
    /// The command hook: of this plugin, or of the agent where `BUILDKITE_HOOK_SCOPE` is `agent` or `global`
    Command,
    /// The environment hook, which sets variables by `buildkite-agent env set`
    Environment,
}

/// The keys of one owner as flags, made from the [table] of keys. Without any of them, the keys of a step come from
/// `EVAL_ONCE_STEP`.
#[derive(Debug)]
pub(super) struct KeyFlags<O>(Result<Keys, Failure>, PhantomData<O>);

/// Whose keys flags stand for.
pub(super) trait FlagOwner {
    /// That owner.
    const OWNER: KeyOwner;
}

/// A step.
#[derive(Debug)]
pub(super) enum OfStep {}

/// A recording.
#[derive(Debug)]
pub(super) enum OfRecording {}

/// A pin by hand.
#[derive(Debug)]
pub(super) enum OfPin {}

impl FlagOwner for OfStep {
    const OWNER: KeyOwner = KeyOwner::Step;
}

impl FlagOwner for OfRecording {
    const OWNER: KeyOwner = KeyOwner::Recording;
}

impl FlagOwner for OfPin {
    const OWNER: KeyOwner = KeyOwner::Pin;
}

/// The keys of a step as flags.
pub(super) type StepFlags = KeyFlags<OfStep>;

/// The keys of a recording as flags.
pub(super) type RecordingFlags = KeyFlags<OfRecording>;

/// The keys of a pin by hand as flags.
pub(super) type PinFlags = KeyFlags<OfPin>;

impl<O> KeyFlags<O> {
    /// The same object that a plugin's configuration is, so that both are read by the same rules.
    pub(super) fn into_keys(self) -> Result<Keys, Failure> {
        self.0
    }
}

impl<O: FlagOwner> Args for KeyFlags<O> {
    fn augment_args(command: Command) -> Command {
        let flags = table::of(O::OWNER).filter_map(|key| Some((key, key.flag?)));
        command.args(flags.flat_map(|(key, flag)| args(key, flag, O::OWNER)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<O: FlagOwner> FromArgMatches for KeyFlags<O> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(keys(O::OWNER, matches), PhantomData))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The arguments for a key.
fn args(key: &Key, flag: Flag, owner: KeyOwner) -> Vec<Arg> {
    let mut help = flag.doc.unwrap_or(key.doc_for(owner)).to_owned();
    let is_list = matches!(
        key.kind,
        KeyKind::Texts(_) | KeyKind::AttrPaths | KeyKind::Pairs(_) | KeyKind::Paths
    );
    if is_list {
        help.push_str("; may be repeated");
    }
    if let KeyKind::Json = key.kind {
        help.push_str("; a JSON object");
    }
    if let Some(default) = key.default
        && !matches!(key.kind, KeyKind::Boolean)
    {
        help.extend([" [default: ", default, "]"]);
    }
    let arg = Arg::new(key.name)
        .long(flag.long)
        .short(flag.short)
        .help(help)
        .action(if is_list {
            ArgAction::Append
        } else {
            ArgAction::Set
        });
    let arg = if flag.hyphens {
        arg.allow_hyphen_values(true)
    } else {
        arg
    };
    vec![match key.kind {
        KeyKind::Text(value) | KeyKind::Texts(value) => arg.value_name(value),
        KeyKind::AttrPath | KeyKind::AttrPaths => arg.value_name("PATH"),
        KeyKind::Json | KeyKind::Maps => arg.value_name("JSON"),
        KeyKind::Paths => arg.value_name("NAME=PATH"),
        KeyKind::Pairs(value) => arg
            .num_args(2)
            .value_names(["NAME", value])
            .allow_hyphen_values(true),
        KeyKind::Boolean => arg.action(ArgAction::SetTrue),
        KeyKind::BooleanOr(word) => arg
            .value_name("HOW")
            .num_args(0..=1)
            .default_missing_value("true")
            .value_parser(["true", "false", word]),
        KeyKind::Number(value, ..) => arg.value_name(value).value_parser(value_parser!(u64)),
        KeyKind::Choice(value, choices) => {
            let values = choices
                .iter()
                .map(|choice| PossibleValue::new(choice.word).help(choice.doc));
            arg.value_name(value)
                .value_parser(PossibleValuesParser::new(values))
        }
        KeyKind::TextOrFalse(value, without, doc) => {
            let without = Arg::new(without)
                .long(without)
                .help(doc)
                .action(ArgAction::SetTrue)
                .conflicts_with(key.name);
            return vec![arg.value_name(value), without];
        }
    }]
}

/// The keys that flags on a command line stand for.
fn keys(owner: KeyOwner, matches: &ArgMatches) -> Result<Keys, Failure> {
    let mut keys = Keys::new();
    for key in table::of(owner).filter(|key| key.flag.is_some()) {
        if let Some(value) = value(key, matches)? {
            keys.insert(key.name.to_owned(), value);
        }
    }
    Ok(keys)
}

/// The value that flags give a key; none without them.
fn value(key: &Key, matches: &ArgMatches) -> Result<Option<Value>, Failure> {
    let text = || matches.get_one::<String>(key.name).cloned();
    let texts = || matches.get_many::<String>(key.name).map(Iterator::cloned);
    Ok(match key.kind {
        KeyKind::Texts(_) | KeyKind::AttrPaths => texts().map(Iterator::collect),
        KeyKind::Number(..) => matches
            .get_one::<u64>(key.name)
            .map(|number| Value::from(*number)),
        KeyKind::Boolean => {
            let other = key.default != Some("true");
            matches.get_flag(key.name).then_some(Value::Bool(other))
        }
        KeyKind::BooleanOr(_) => text().map(|text| match text.parse::<bool>() {
            Ok(value) => Value::Bool(value),
            Err(_) => Value::String(text),
        }),
        KeyKind::TextOrFalse(_, without, _) if matches.get_flag(without) => {
            Some(Value::Bool(false))
        }
        KeyKind::Text(_) | KeyKind::AttrPath | KeyKind::Choice(..) | KeyKind::TextOrFalse(..) => {
            text().map(Value::from)
        }
        KeyKind::Pairs(_) => texts().map(|mut words| {
            let mut map = Keys::new();
            while let (Some(name), Some(value)) = (words.next(), words.next()) {
                map.insert(name, value.into());
            }
            Value::Object(map)
        }),
        KeyKind::Paths => match matches.get_many(key.name) {
            Some(mut words) => Some(Value::Object(words.try_fold(Keys::new(), assigned)?)),
            None => None,
        },
        KeyKind::Maps => None,
        KeyKind::Json => match text() {
            Some(json) => Some(keys::parse(&json, &format!("--{}", key.name))?.into()),
            None => None,
        },
    })
}

/// The map with one more word of the form `NAME=PATH`.
fn assigned(mut map: Keys, word: &String) -> Result<Keys, Failure> {
    let Some((name, path)) = word.split_once('=') else {
        return Err(keys::refuse(format_args!(
            "--output {word} is not of the form NAME=PATH"
        )));
    };
    map.insert(name.into(), path.into());
    Ok(map)
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
                 --evaluation-timeout 9 --evaluator nix --skip none --base b.json --batch 10 --shared-steps 5 --skip-style omit --on-error report --expect-errors d.* --expect-errors e --emit plugin \
                 --plugin o/p#v1 --step {\"priority\":1} --agents {\"x\":{\"queue\":\"q\"}} --group-by 1 --no-meta \
                 --summary --command none --log raw --on-drift fail --out-link out/x --chunk 5 --keep-days 7 \
                 --option cores 2 -I lib=./lib --argstr y z --dry-run"
            ),
            json!({
                "file": "ci.nix", "attr": "a", "recurse": "all", "exclude": ["a.*.b", "c"], "workers": 2,
                "memory": 512, "evaluation-timeout": 9, "evaluator": "nix", "skip": "none", "base": "b.json", "batch": 10, "shared-steps": 5, "skip-style": "omit",
                "on-error": "report", "expect-errors": ["d.*", "e"], "emit": "plugin", "plugin": "o/p#v1", "step": { "priority": 1 },
                "agents": { "x": { "queue": "q" } }, "group-by": 1, "meta": false, "summary": true,
                "command": "none", "log": "raw", "on-drift": "fail", "out-link": "out/x", "chunk": 5,
                "keep-days": 7, "options": { "cores": "2" }, "include": ["lib=./lib"], "argstr": { "y": "z" }
            })
        );
        assert_eq!(keys("step"), json!({}));
        assert_eq!(keys("pipeline"), json!({}));
    }
}
