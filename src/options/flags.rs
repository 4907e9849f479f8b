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
  eval-once step --file ci.nix --attr packages.hello
        builds a target that nobody recorded, as nix-build does
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

/// Nix CI on Buildkite that evaluates once: realises a recorded .drv, and evaluates again only where it is gone.
#[derive(Debug, Parser)]
#[command(name = "eval-once", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub(super) struct CommandLine {
    #[command(subcommand)]
    pub(super) subcommand: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
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
        given: Vec<OsString>,
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
        given: Vec<OsString>,
    },
    /// Be a hook of the agent's
    Hook {
        /// Which hook
        #[arg(value_enum)]
        hook: Hook,
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
pub(super) enum Hook {
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
    /// Where to link the outputs [default: result]
    #[arg(long, value_name = "LINK", conflicts_with = "no_out_link")]
    out_link: Option<String>,
    /// Make no link; keep the outputs for a day
    #[arg(long)]
    no_out_link: bool,
    /// Whether a hook runs the job's own command after success: after or none
    #[arg(long, value_name = "WHEN")]
    command: Option<String>,
    /// Where .drvs can be fetched (not in this version)
    #[arg(long, value_name = "URL", hide = true)]
    share: Option<String>,
    /// Fail rather than evaluate (not in this version)
    #[arg(long, hide = true)]
    share_required: bool,
    /// Where outputs go after success (not in this version)
    #[arg(long, value_name = "URL", hide = true)]
    push: Option<String>,
    /// What to do when evaluating again gives another .drv: warn or fail
    #[arg(long, value_name = "WHAT")]
    on_drift: Option<String>,
    /// How Nix's output is shown: pretty or raw
    #[arg(long, value_name = "HOW")]
    log: Option<String>,
}

impl KeyFlags {
    /// The same object that a plugin's configuration is, so that both are read by the same rules.
    pub(super) fn into_keys(self) -> Result<Keys, Failure> {
        let mut keys = Keys::new();
        let strings = [
            ("drv", self.drv),
            ("file", self.file),
            ("expr", self.expr),
            ("flake", self.flake),
            ("attr", self.attr),
            ("out-link", self.out_link),
            ("command", self.command),
            ("share", self.share),
            ("push", self.push),
            ("on-drift", self.on_drift),
            ("log", self.log),
        ];
        keys.extend(
            strings
                .into_iter()
                .filter_map(|(key, value)| Some((key.to_owned(), value?.into()))),
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
        if !self.include.is_empty() {
            keys.insert("include".into(), self.include.into());
        }
        if self.no_out_link {
            keys.insert("out-link".into(), Value::Bool(false));
        }
        if self.share_required {
            keys.insert("share-required".into(), Value::Bool(true));
        }
        Ok(keys)
    }
}

/// The completions for `shell`.
#[must_use]
pub fn completions(shell: clap_complete::Shell) -> Vec<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut CommandLine::command(), "eval-once", &mut text);
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

    #[test]
    fn the_command_line_is_sound() {
        CommandLine::command().debug_assert();
    }
}
