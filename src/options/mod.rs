//! What the user asked for: the command line and the environment, read once and turned into values.
//!
//! *Architecture invariant:* this is the only module that reads either. What it cannot read it refuses by name.

mod flags;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::IsTerminal as _;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser as _;
use serde_json::Value;

use crate::buildkite::command_hooks::{CommandHooks, HookFolders};
use crate::buildkite::default_command::{self, AgentJob, Ours, is_eval_once};
use crate::buildkite::{EmptyWords, plugin};
use crate::environment::{HostEnvironment, nix_folders};
use crate::evaluation_keys::Checkout;
use crate::exit::{Class, Failure};
use crate::host::Host;
use crate::job::TrailingCommand;
use crate::keys::{self, Keys};
use crate::log::Log;
use crate::nix::settings::NixSettings;
use crate::paths;
use crate::recording;
use crate::step::{self, AfterBuild, JobContext, StepOrder};

pub use flags::completions;
use flags::{Cli, CliCommand, HookName, KeyFlags, report_in};

/// What eval-once was started to do.
#[derive(Debug)]
pub enum Invocation {
    /// Build one target; then become this command, if there is one.
    Step(StepOrder, Option<TrailingCommand>),
    /// Say what a step would do; as JSON or for people.
    Explain(StepOrder, bool),
    /// Record all targets.
    Pipeline(Box<recording::RecordingOrder>),
    /// A job of the agent's that records: and the job whose command follows it.
    JobPipeline(Box<recording::RecordingOrder>, AgentJob),
    /// Sum the build up; an error where this is no job.
    Summary(Result<(), Failure>),
    /// A job of the agent's that sums its build up: and the job whose command follows it.
    JobSummary(Result<(), Failure>, AgentJob),
    /// Remove what recordings no longer keep.
    Prune(Result<Host, Failure>),
    /// A job of the agent's: a step of ours, and the job whose command follows it.
    JobStep(StepOrder, AgentJob),
    /// A job of the agent's that is not ours.
    OtherJob(AgentJob),
    /// The environment of a job, to be printed for a shell; an error where the plugin's hook would be passed over.
    PrintEnvironment(Result<HostEnvironment, Failure>),
    /// The environment of a job, to be set by the agent's Job API.
    SetEnvironment(HostEnvironment),
    /// The completions for a shell.
    Completions(clap_complete::Shell),
    /// Something for the user to read (`--help`, or what is wrong with the command line), and the status to end with.
    Message(Box<clap::Error>, u8),
}

/// The program's environment.
type Environment = BTreeMap<OsString, OsString>;

/// Reads the command line and the environment of this process.
#[must_use]
pub fn read(started: Instant) -> (Invocation, Log) {
    let environment: Environment = std::env::vars_os().collect();
    let is_terminal = std::io::stderr().is_terminal();
    let mut log = Log::default();
    log.debug = text(&environment, "EVAL_ONCE_LOG").is_some_and(|log| log == "debug");
    log.terminal = !is_job(&environment) && is_terminal;
    log.colours = is_terminal;
    (
        Reading {
            environment,
            started,
            log: log.clone(),
        }
        .invocation(&std::env::args_os().collect::<Vec<_>>()),
        log,
    )
}

/// A variable that is set, and not to nothing.
fn variable<'e>(environment: &'e Environment, name: &str) -> Option<&'e OsStr> {
    environment
        .get(OsStr::new(name))
        .map(OsString::as_os_str)
        .filter(|value| !value.is_empty())
}

fn text(environment: &Environment, name: &str) -> Option<String> {
    variable(environment, name).map(|value| value.to_string_lossy().into_owned())
}

/// The job with another command, in its environment too: a command may look there at what it is.
fn with_command(mut job: AgentJob, command: &OsStr) -> AgentJob {
    let name = OsStr::new("BUILDKITE_COMMAND");
    job.environment.retain(|(other, _)| other != name);
    job.environment.push((name.into(), command.into()));
    command.clone_into(&mut job.command);
    // Only hooks can be left it.
    job.hooks.others.get_or_insert_default();
    job
}

/// The refusal of a recorded step with two commands, of which only one could be run.
fn two_commands(other: &str) -> Failure {
    keys::refuse(format_args!(
        "the step has a command that it was recorded with (EVAL_ONCE_COMMAND), and {other}"
    ))
    .hint("leave the command at `eval-once step`: it runs the recorded one after the build")
}

/// As Go reads a boolean.
fn is_true(value: &OsStr) -> bool {
    matches!(
        value.as_bytes(),
        b"1" | b"t" | b"T" | b"true" | b"True" | b"TRUE"
    )
}

/// A plugin's configuration for a summary says nothing else.
fn summary_alone(keys: &Keys) -> Result<(), Failure> {
    if keys.get("summary") != Some(&Value::Bool(true)) {
        return Err(keys::refuse(
            "`summary` is `true`, which sums the build up, or is left out",
        ));
    }
    match keys.keys().find(|key| *key != "summary") {
        Some(other) => Err(keys::refuse(format_args!(
            "`{other}` stands beside `summary`, which stands alone: it sums the build up, and builds nothing"
        ))),
        None => Ok(()),
    }
}

/// Whether this is a job, whose log is read in a browser even though it is a terminal's.
fn is_job(environment: &Environment) -> bool {
    text(environment, "BUILDKITE").is_some_and(|value| value == "true")
}

struct Reading {
    environment: Environment,
    started: Instant,
    log: Log,
}

impl Reading {
    fn invocation(&self, arguments: &[OsString]) -> Invocation {
        if let [name] = arguments {
            match Path::new(name).file_name().map(OsStr::as_bytes) {
                Some(b"command") => return self.agents_command_hook(),
                Some(b"environment") => return Invocation::SetEnvironment(self.surroundings()),
                _ => {}
            }
        }
        match Cli::try_parse_from(arguments) {
            Ok(line) => self.subcommand(line.subcommand),
            Err(error) => self.message(error, arguments),
        }
    }

    fn subcommand(&self, subcommand: CliCommand) -> Invocation {
        match subcommand {
            CliCommand::Step {
                keys,
                report,
                given,
            } => {
                let given = (!given.is_empty()).then(|| TrailingCommand {
                    words: given,
                    environment: self.environment.clone().into_iter().collect(),
                });
                let (mut order, is_recorded) = self.order_by_hand(keys, report);
                order.followed = given.is_some();
                let carried = self.carried_command().filter(|_| is_recorded);
                match (given, carried) {
                    (given, None) => Invocation::Step(order, given),
                    (None, Some(command)) => {
                        Invocation::JobStep(order, with_command(self.job(), command))
                    }
                    (Some(given), Some(_)) => {
                        order.keys = order.keys.and(Err(two_commands("one behind `--`")));
                        Invocation::Step(order, Some(given))
                    }
                }
            }
            CliCommand::Explain { keys, json, .. } => {
                Invocation::Explain(self.order_by_hand(keys, None).0, json)
            }
            CliCommand::Pipeline { keys, dry_run } => {
                self.pipeline(keys.into_keys(), dry_run, self.by_hand())
            }
            CliCommand::Summary => Invocation::Summary(self.in_job()),
            CliCommand::Prune => Invocation::Prune(self.host()),
            CliCommand::Hook {
                hook: HookName::Environment,
            } => Invocation::SetEnvironment(self.surroundings()),
            CliCommand::Hook {
                hook: HookName::Command,
            } => {
                let scope = variable(&self.environment, "BUILDKITE_HOOK_SCOPE");
                if scope.is_some_and(|scope| scope == "agent" || scope == "global") {
                    self.agents_command_hook()
                } else {
                    self.plugins_command_hook()
                }
            }
            CliCommand::Environment => Invocation::PrintEnvironment(self.plugins_surroundings()),
            CliCommand::Completions { shell } => Invocation::Completions(shell),
        }
    }

    /// A recording that is asked for by a command line.
    fn pipeline(&self, keys: Result<Keys, Failure>, dry_run: bool, place: Checkout) -> Invocation {
        let mut order = self.recording(keys, place, None);
        order.dry_run = dry_run;
        match self.build() {
            Ok(build) => order.build = build,
            Err(_) if dry_run => {}
            Err(failure) => {
                let failure = failure.hint("let it have the job's variables, in a container too; or, with --dry-run, only print the pipeline");
                order.keys = order.keys.and(Err(failure));
            }
        }
        Invocation::Pipeline(Box::new(order))
    }

    /// What clap has to say. A command line that is wrong is a refusal like any other, and is reported where one can see
    /// where to.
    fn message(&self, error: clap::Error, arguments: &[OsString]) -> Invocation {
        use clap::error::ErrorKind::{DisplayHelp, DisplayVersion};
        if matches!(error.kind(), DisplayHelp | DisplayVersion) {
            return Invocation::Message(Box::new(error), 0);
        }
        if arguments
            .get(1)
            .is_some_and(|subcommand| subcommand == "step")
            && let Some(report) = report_in(arguments)
        {
            let text = error.to_string();
            let refusal = keys::refuse(text.trim_end().trim_start_matches("error: "));
            let order = StepOrder {
                report: Some(report),
                ..self.order(Err(refusal), self.by_hand())
            };
            return Invocation::Step(order, None);
        }
        Invocation::Message(Box::new(error), Class::Config.status())
    }

    fn agents_command_hook(&self) -> Invocation {
        let job = AgentJob {
            hooks: self.agents_command_hooks(),
            ..self.job()
        };
        match self.recorded_step() {
            Some(keys) => {
                let (keys, job) = match self.carried_command() {
                    None => (keys, job),
                    Some(command) if default_command::is_step_itself(&job.command) => {
                        (keys, with_command(job, command))
                    }
                    Some(_) => (keys.and(Err(two_commands("one of its own"))), job),
                };
                Invocation::JobStep(self.order_in_hook(keys), job)
            }
            None => self
                .agents_command_of_ours(&job.command)
                .unwrap_or(Invocation::OtherJob(job)),
        }
    }

    /// What a job asks for whose command is one of those that recordings are made with, besides steps. The hook does it, as a
    /// step: the command would need a program on PATH, and an agent that lets commands be evaluated.
    fn agents_command_of_ours(&self, command: &OsStr) -> Option<Invocation> {
        let words = default_command::words_of_ours(command, &["pipeline", "summary"])?;
        let words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
        Some(match Cli::try_parse_from(&words) {
            Ok(Cli {
                subcommand: CliCommand::Pipeline { keys, dry_run },
            }) => {
                // Where the command would have run, and held to what it could have been.
                let place = Checkout {
                    confined: !self.command_eval(),
                    ..self.by_hand()
                };
                self.pipeline(keys.into_keys(), dry_run, place)
            }
            Ok(line) => self.subcommand(line.subcommand),
            Err(error) => self.message(error, &words),
        })
    }

    /// A step; with `pipeline`, a recording; with `summary`, a summary.
    fn plugins_command_hook(&self) -> Invocation {
        let job = AgentJob {
            hooks: self.plugins_command_hooks(),
            ..self.job()
        };
        let mut keys = match self.plugin_configuration() {
            Ok(keys) if keys.contains_key("summary") => {
                let asked = summary_alone(&keys).and_then(|()| self.in_job());
                return Invocation::JobSummary(asked, job);
            }
            Ok(keys) if keys.contains_key("pipeline") => keys,
            keys => return Invocation::JobStep(self.order_in_hook(keys), job),
        };
        let pipeline = keys.remove("pipeline");
        let keys = match (pipeline, keys.keys().next()) {
            (_, Some(other)) => Err(keys::refuse(format_args!(
                "`{other}` stands beside `pipeline`, and is a key of a step: a recording's keys stand below `pipeline`"
            ))),
            (Some(Value::Object(keys)), None) => Ok(keys),
            _ => Err(keys::refuse(
                "`pipeline` is no map: it holds the keys of a recording, `pipeline: {}` at least",
            )),
        };
        let plugin = self
            .utf8("BUILDKITE_PLUGINS")
            .and_then(|plugins| Ok((plugins, self.utf8("BUILDKITE_PLUGIN_CONFIGURATION")?)));
        let (keys, plugin) = match plugin {
            Ok((plugins, configuration)) => {
                let name = text(&self.environment, "BUILDKITE_PLUGIN_NAME");
                let reference = plugin::our_reference(plugins, configuration, name.as_deref());
                (keys, reference)
            }
            Err(failure) => (Err(failure), None),
        };
        // Steps of another kind than the user expects would be found out by red jobs only.
        let keys = keys.and_then(|keys| {
            if plugin.is_none() && !keys.contains_key("plugin") && !keys.contains_key("emit") {
                return Err(keys::refuse(
                    "the plugin's reference for its steps is not known: no entry of BUILDKITE_PLUGINS has its configuration",
                )
                .hint("give `plugin`, its reference as one writes it under `plugins:`, or `emit: command`"));
            }
            Ok(keys)
        });
        let build = self.build().and_then(|build| {
            build.ok_or_else(|| {
                keys::refuse("this is no job, so there is no build to upload to: BUILDKITE_JOB_ID is not set")
                    .hint("`eval-once pipeline` records by hand")
            })
        });
        let (keys, build) = match build {
            Ok(build) => (keys, Some(build)),
            Err(failure) => (keys.and(Err(failure)), None),
        };
        let order = recording::RecordingOrder {
            build,
            ..self.recording(keys, self.in_hook(), plugin)
        };
        Invocation::JobPipeline(Box::new(order), job)
    }

    fn recording(
        &self,
        keys: Result<Keys, Failure>,
        place: Checkout,
        plugin: Option<String>,
    ) -> recording::RecordingOrder {
        recording::RecordingOrder {
            keys,
            host: self.host(),
            build: None,
            below_checkout: self.below_checkout(&place.folder),
            plugin,
            place,
            dry_run: false,
            cores: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            started: self.started,
        }
    }

    /// Where below its checkout a job stands that records by a command of its own.
    fn below_checkout(&self, folder: &Path) -> Option<PathBuf> {
        let checkout = variable(&self.environment, "BUILDKITE_BUILD_CHECKOUT_PATH")?;
        paths::below(folder, Path::new(checkout)).filter(|below| !below.as_os_str().is_empty())
    }

    /// The build of the job that this is; none by hand.
    ///
    /// A container often gets only some of a job's variables: the docker plugin's `mount-buildkite-agent` passes the three that
    /// the agent's commands need, and no step. Taken for a recording by hand, which uploads nothing, such a job would be green.
    fn build(&self) -> Result<Option<recording::BuildkiteBuild>, Failure> {
        let named = |name: &str| text(&self.environment, name);
        let needed = |name: &str| {
            named(name).ok_or_else(|| {
                keys::refuse(format_args!(
                    "this is a job (BUILDKITE_JOB_ID is set) that cannot upload: {name} is not set"
                ))
            })
        };
        let slug = |name: &str| named(name).unwrap_or_default();
        let Some(job) = named("BUILDKITE_JOB_ID") else {
            return Ok(None);
        };
        needed("BUILDKITE_AGENT_ACCESS_TOKEN")?;
        Ok(Some(recording::BuildkiteBuild {
            build: needed("BUILDKITE_BUILD_ID")?,
            job,
            step: needed("BUILDKITE_STEP_ID")?,
            pipeline: format!(
                "{}/{}",
                slug("BUILDKITE_ORGANIZATION_SLUG"),
                slug("BUILDKITE_PIPELINE_SLUG")
            ),
            branch: slug("BUILDKITE_BRANCH"),
        }))
    }

    /// Whether this is a job, which can ask for what its build has.
    fn in_job(&self) -> Result<(), Failure> {
        for name in ["BUILDKITE_JOB_ID", "BUILDKITE_AGENT_ACCESS_TOKEN"] {
            if text(&self.environment, name).is_none() {
                return Err(keys::refuse(format_args!(
                    "a summary is made in a job of the build that it sums up, and this is none: {name} is not set"
                )));
            }
        }
        Ok(())
    }

    /// A step by hand, and whether it is the recorded one.
    fn order_by_hand(&self, flags: KeyFlags, report: Option<PathBuf>) -> (StepOrder, bool) {
        let mut is_recorded = false;
        let keys = match flags.into_keys() {
            Ok(flags) if flags.is_empty() => {
                let recorded = self.recorded_step();
                is_recorded = recorded.is_some();
                recorded.unwrap_or_else(|| Ok(Keys::new()))
            }
            keys => keys.inspect(|_| {
                if self.environment.contains_key(OsStr::new("EVAL_ONCE_STEP")) {
                    self.log.warn(
                        "EVAL_ONCE_STEP is set and not looked at: the flags say what to build",
                    );
                }
            }),
        };
        let order = StepOrder {
            report,
            ..self.order(keys, self.by_hand())
        };
        (order, is_recorded)
    }

    fn order_in_hook(&self, keys: Result<Keys, Failure>) -> StepOrder {
        self.order(keys, self.in_hook())
    }

    fn in_hook(&self) -> Checkout {
        let checkout =
            variable(&self.environment, "BUILDKITE_BUILD_CHECKOUT_PATH").map(PathBuf::from);
        let folder = checkout.unwrap_or_else(current_folder);
        let no_checkout = self.no_checkout(&folder);
        Checkout {
            folder,
            confined: !self.command_eval(),
            no_checkout,
        }
    }

    fn order(&self, keys: Result<Keys, Failure>, place: Checkout) -> StepOrder {
        StepOrder {
            keys,
            place,
            host: self.host(),
            report: None,
            job: self.step_job(),
            followed: false,
            started: self.started,
        }
    }

    /// The job that a step is, where it can tell its build something: one in a container may have too few of the variables.
    fn step_job(&self) -> Option<step::StepJob> {
        let named = |name: &str| text(&self.environment, name);
        named("BUILDKITE_AGENT_ACCESS_TOKEN")?;
        Some(step::StepJob {
            id: named("BUILDKITE_JOB_ID")?,
            step: named("BUILDKITE_STEP_KEY").or_else(|| named("BUILDKITE_STEP_ID"))?,
            label: named("BUILDKITE_LABEL"),
            agent: named("BUILDKITE_AGENT_NAME"),
            is_retry: named("BUILDKITE_RETRY_COUNT").is_some_and(|count| count != "0"),
            around: self.around(),
        })
    }

    /// What is around a build in its job.
    fn around(&self) -> JobContext {
        let named = |name: &str| text(&self.environment, name);
        let number = |name: &str| named(name).and_then(|number| number.parse::<u32>().ok());
        // The agent writes the job's variables into a file before it starts anything of the job.
        let began = variable(&self.environment, "BUILDKITE_ENV_FILE")
            .and_then(|file| Path::new(file).metadata().ok()?.modified().ok());
        let command = variable(&self.environment, "BUILDKITE_COMMAND").unwrap_or_default();
        let is_blank = command.as_bytes().trim_ascii().is_empty();
        let later = [
            (AfterBuild::Plugin, self.has_other_plugins()),
            (AfterBuild::Hook, self.has_later_hooks()),
            (
                AfterBuild::Artifacts,
                named("BUILDKITE_ARTIFACT_PATHS").is_some(),
            ),
            (
                AfterBuild::OtherJob,
                number("BUILDKITE_PARALLEL_JOB_COUNT").is_some_and(|count| count > 1),
            ),
        ];
        JobContext {
            attempt: number("BUILDKITE_RETRY_COUNT").map_or(0, |count| count.saturating_add(1)),
            began,
            limit: number("BUILDKITE_TIMEOUT")
                .map(|minutes| Duration::from_secs(u64::from(minutes) * 60)),
            command: !is_blank && is_eval_once(command, "step") != Ours::Itself,
            later: later
                .into_iter()
                .filter_map(|(later, is_there)| is_there.then_some(later))
                .collect(),
        }
    }

    /// Whether the job has other plugins than the one whose hook this is, if it is one's.
    fn has_other_plugins(&self) -> bool {
        let ours = self
            .environment
            .contains_key(OsStr::new("BUILDKITE_PLUGIN_CONFIGURATION"));
        text(&self.environment, "BUILDKITE_PLUGINS").is_some_and(|plugins| {
            serde_json::from_str::<Vec<Value>>(&plugins)
                .map_or(true, |plugins| plugins.len() > usize::from(ours))
        })
    }

    /// Whether the agent or the repository has a hook that comes after the command.
    fn has_later_hooks(&self) -> bool {
        let agents = variable(&self.environment, "BUILDKITE_HOOKS_PATH").map(PathBuf::from);
        let more = variable(&self.environment, "BUILDKITE_ADDITIONAL_HOOKS_PATHS");
        let more = more.map(|folders| folders.to_string_lossy().into_owned());
        let more = more.iter().flat_map(|folders| folders.split(','));
        let repositorys = variable(&self.environment, "BUILDKITE_BUILD_CHECKOUT_PATH")
            .map(|checkout| Path::new(checkout).join(".buildkite/hooks"));
        let folders = agents
            .into_iter()
            .chain(more.map(PathBuf::from))
            .chain(repositorys);
        let hooks =
            folders.flat_map(|folder| ["post-command", "pre-exit"].map(|hook| folder.join(hook)));
        hooks.into_iter().any(|hook| hook.is_file())
    }

    fn by_hand(&self) -> Checkout {
        let folder = current_folder();
        let no_checkout = self.no_checkout(&folder);
        Checkout {
            folder,
            confined: false,
            no_checkout,
        }
    }

    fn no_checkout(&self, folder: &Path) -> bool {
        text(&self.environment, "BUILDKITE_SKIP_CHECKOUT").is_some_and(|skip| skip == "true")
            || folder
                .read_dir()
                .map_or(true, |mut entries| entries.next().is_none())
    }

    /// The keys in `EVAL_ONCE_STEP`, if it is set at all.
    fn recorded_step(&self) -> Option<Result<Keys, Failure>> {
        let text = self.utf8("EVAL_ONCE_STEP").transpose()?;
        Some(text.and_then(|text| keys::parse(text, "EVAL_ONCE_STEP")))
    }

    /// The command that follows a recorded step, where the job's own is only that step.
    fn carried_command(&self) -> Option<&OsStr> {
        variable(&self.environment, "EVAL_ONCE_COMMAND")
    }

    fn plugin_configuration(&self) -> Result<Keys, Failure> {
        let configuration = self.utf8("BUILDKITE_PLUGIN_CONFIGURATION")?;
        plugin::configuration(configuration, self.utf8("BUILDKITE_PLUGINS")?)
    }

    /// A variable that holds JSON. What is not UTF-8 would mean another path once it was made so.
    fn utf8(&self, name: &str) -> Result<Option<&str>, Failure> {
        let value = self.environment.get(OsStr::new(name));
        let text = value.map(|value| {
            value
                .to_str()
                .ok_or_else(|| keys::refuse(format_args!("{name} is not UTF-8")))
        });
        text.transpose()
    }

    fn host(&self) -> Result<Host, Failure> {
        let environment = &self.environment;
        let evaluations = if let Some(number) = text(environment, "EVAL_ONCE_EVALUATIONS") {
            number.parse().map_err(|_| {
                keys::refuse(format_args!(
                    "EVAL_ONCE_EVALUATIONS is {number:?}, and must be a number from 1 on"
                ))
            })?
        } else {
            let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
            NonZeroUsize::new(cores / 2).unwrap_or(NonZeroUsize::MIN)
        };
        let recorded_only = match text(environment, "EVAL_ONCE_POLICY").as_deref() {
            None => false,
            Some("recorded-only") => true,
            Some(other) => {
                return Err(keys::refuse(format_args!(
                    "EVAL_ONCE_POLICY is {other:?}, and must be `recorded-only`"
                )));
            }
        };
        if variable(environment, "EVAL_ONCE_SHARE").is_some() {
            self.log
                .warn("EVAL_ONCE_SHARE is set, and shares are not in this version of eval-once");
        }
        // The program is for the plugin's hooks; temporary files are Nix's as well, which fails with words of its own (2.8:
        // "not an absolute path").
        for name in ["EVAL_ONCE_BIN", "TMPDIR"] {
            self.absolute(name)?;
        }
        Ok(Host {
            state: self.state()?,
            evaluations,
            recorded_only,
            nix: self.nix_settings(),
            temporary: variable(environment, "TMPDIR").map_or("/tmp".into(), PathBuf::from),
        })
    }

    /// Where Nix looks for its settings.
    fn nix_settings(&self) -> NixSettings {
        let environment = &self.environment;
        let system = variable(environment, "NIX_CONF_DIR").map_or("/etc/nix".into(), PathBuf::from);
        let mut files = vec![system.join("nix.conf")];
        if let Some(named) = environment.get(OsStr::new("NIX_USER_CONF_FILES")) {
            // Of these, the first counts most.
            let named: Vec<PathBuf> = std::env::split_paths(named).collect();
            files.extend(named.into_iter().rev());
        } else {
            let config = variable(environment, "XDG_CONFIG_HOME").map(PathBuf::from);
            let home = || Some(Path::new(variable(environment, "HOME")?).join(".config"));
            files.extend(
                config
                    .or_else(home)
                    .map(|config| config.join("nix/nix.conf")),
            );
        }
        NixSettings {
            files,
            text: text(environment, "NIX_CONFIG").unwrap_or_default(),
            remote: text(environment, "NIX_REMOTE").unwrap_or_default(),
        }
    }

    /// The state folder.
    fn state(&self) -> Result<Option<PathBuf>, Failure> {
        let folder = match self.absolute("EVAL_ONCE_STATE_DIR")? {
            Some(named) => Some(named),
            None => self.state_home()?.map(|home| home.join("eval-once")),
        };
        // Nix is told paths below it, and reads them by their letters.
        Ok(folder.map(|folder| paths::without_dots(&folder)))
    }

    /// Where programs keep their state. The specification of `XDG_STATE_HOME` has a relative path ignored.
    fn state_home(&self) -> Result<Option<PathBuf>, Failure> {
        match self.absolute("XDG_STATE_HOME") {
            Ok(Some(folder)) => Ok(Some(folder)),
            _ => Ok(self.absolute("HOME")?.map(|home| home.join(".local/state"))),
        }
    }

    /// The path of the host's in this variable. A relative one would lead to another place from every folder: from a job into
    /// its checkout, which the next job cleans.
    fn absolute(&self, name: &str) -> Result<Option<PathBuf>, Failure> {
        let path = variable(&self.environment, name).map(PathBuf::from);
        match path {
            Some(path) if path.is_relative() => Err(keys::refuse(format_args!(
                "{name} is {}, a relative path",
                path.display()
            ))
            .hint(format!("give {name} an absolute path"))),
            path => Ok(path),
        }
    }

    /// What it cannot read does not widen what a pipeline may do.
    fn command_eval(&self) -> bool {
        match self.environment.get(OsStr::new("BUILDKITE_COMMAND_EVAL")) {
            None => true,
            Some(value) => is_true(value),
        }
    }

    /// The command hooks beside that of our plugin's entry whose hook this is.
    fn plugins_command_hooks(&self) -> CommandHooks {
        let json = |name: &str| self.utf8(name).ok().flatten();
        let named = |name: &str| variable(&self.environment, name);
        let clones = named("BUILDKITE_PLUGINS_PATH").zip(named("BUILDKITE_AGENT_NAME"));
        let clones = clones.map(|(plugins, agent)| Path::new(plugins).join(agent));
        let checkout = named("BUILDKITE_BUILD_CHECKOUT_PATH");
        let folders = HookFolders {
            clones: clones.as_deref(),
            checkout: checkout.map_or(Path::new("."), Path::new),
        };
        CommandHooks::of_plugin(
            json("BUILDKITE_PLUGINS"),
            json("BUILDKITE_PLUGIN_CONFIGURATION"),
            text(&self.environment, "BUILDKITE_PLUGIN_NAME").as_deref(),
            folders,
            named("BUILDKITE_STRICT_SINGLE_HOOKS").is_some_and(is_true),
        )
    }

    /// The command hooks that the agent has of its own beside ours.
    fn agents_command_hooks(&self) -> CommandHooks {
        let folders = variable(&self.environment, "BUILDKITE_ADDITIONAL_HOOKS_PATHS");
        let folders: Vec<PathBuf> = folders
            .into_iter()
            .flat_map(|folders| folders.as_bytes().split(|byte| *byte == b','))
            .map(|folder| PathBuf::from(OsStr::from_bytes(folder)))
            .collect();
        CommandHooks::of_agent(&folders, std::env::current_exe().ok().as_deref())
    }

    fn job(&self) -> AgentJob {
        let environment = &self.environment;
        let shell = environment.get(OsStr::new("BUILDKITE_SHELL"));
        AgentJob {
            command: environment
                .get(OsStr::new("BUILDKITE_COMMAND"))
                .cloned()
                .unwrap_or_default(),
            command_eval: self.command_eval(),
            shell: shell.map_or_else(default_command::default_shell, |shell| {
                shell.to_string_lossy().into_owned()
            }),
            // The scope was called `global` until v3.103, and nothing else tells an agent's age.
            empty_words: if variable(environment, "BUILDKITE_HOOK_SCOPE")
                .is_some_and(|scope| scope == "global")
            {
                EmptyWords::Dropped
            } else {
                EmptyWords::Kept
            },
            folder: self.folder_by_name(),
            environment: environment.clone().into_iter().collect(),
            hooks: CommandHooks::default(),
        }
    }

    /// The current folder by the name that the agent knows it by, where that is a name of it.
    fn folder_by_name(&self) -> PathBuf {
        let current = current_folder();
        let same = |name: &PathBuf| match (name.metadata(), current.metadata()) {
            (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
            _ => false,
        };
        let named = variable(&self.environment, "PWD").map(PathBuf::from);
        named
            .filter(|name| name.is_absolute() && same(name))
            .unwrap_or(current)
    }

    /// The surroundings of a job, where its plugins let ours do its part. The environment hook is the only one of ours that the
    /// agent runs where it does not run our command hook: a job with nothing built would be green.
    fn plugins_surroundings(&self) -> Result<HostEnvironment, Failure> {
        if variable(&self.environment, "BUILDKITE_PLUGIN_CONFIGURATION").is_some() {
            self.plugins_command_hooks().check_first()?;
        }
        Ok(self.surroundings())
    }

    fn surroundings(&self) -> HostEnvironment {
        // What is wrong with them is said by what uses them; this is the environment of every job of the host.
        let folder = |name: &str| self.absolute(name).ok().flatten();
        let state_is_named = variable(&self.environment, "EVAL_ONCE_STATE_DIR").is_some();
        HostEnvironment {
            path: self
                .environment
                .get(OsStr::new("PATH"))
                .cloned()
                .unwrap_or_default(),
            program: std::env::current_exe().ok(),
            named: variable(&self.environment, "EVAL_ONCE_BIN").map(PathBuf::from),
            state: self.state().ok().flatten().filter(|_| !state_is_named),
            nix_folders: nix_folders(
                folder("HOME").as_deref(),
                self.state_home().ok().flatten().as_deref(),
                variable(&self.environment, "USER"),
            ),
        }
    }
}

fn current_folder() -> PathBuf {
    std::env::current_dir().unwrap_or_else(|_| ".".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn invocation(environment: &[(&str, &str)], arguments: &[&str]) -> Invocation {
        let environment = environment
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        let reading = Reading {
            environment,
            started: Instant::now(),
            log: Log::default(),
        };
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        reading.invocation(&arguments)
    }

    fn keys(order: StepOrder) -> Value {
        Value::Object(order.keys.unwrap())
    }

    #[test]
    fn flags_become_the_same_object_as_a_plugins_configuration() {
        let arguments = [
            "eval-once",
            "step",
            "--file",
            "ci.nix",
            "-A",
            "a.\"b.c\"",
            "--arg",
            "x",
            "-1",
            "--argstr",
            "y",
            "z",
            "-I",
            "lib=./lib",
            "--option",
            "cores",
            "2",
            "--output",
            "out=/s/x",
            "--no-out-link",
            "--on-drift",
            "fail",
        ];
        let Invocation::Step(order, command) = invocation(&[("EVAL_ONCE_STEP", "{}")], &arguments)
        else {
            panic!()
        };
        assert!(command.is_none());
        assert_eq!(
            keys(order),
            json!({
                "file": "ci.nix", "attr": "a.\"b.c\"", "arg": { "x": "-1" }, "argstr": { "y": "z" },
                "include": ["lib=./lib"], "options": { "cores": "2" }, "outputs": { "out": "/s/x" },
                "out-link": false, "on-drift": "fail"
            })
        );
    }

    #[test]
    fn without_a_key_among_its_flags_a_step_is_the_recorded_one() {
        let environment = [("EVAL_ONCE_STEP", r#"{"file":"x"}"#)];
        let arguments = [
            "eval-once",
            "step",
            "--report",
            "r.json",
            "--",
            "make",
            "--file",
        ];
        let Invocation::Step(order, command) = invocation(&environment, &arguments) else {
            panic!()
        };
        assert_eq!(command.unwrap().words, ["make", "--file"]);
        assert_eq!(order.report.as_deref(), Some(Path::new("r.json")));
        assert_eq!(keys(order), json!({ "file": "x" }));
    }

    #[test]
    fn a_hook_knows_whose_it_is() {
        let step = ("EVAL_ONCE_STEP", r#"{"file":"recorded"}"#);
        let plugin = ("BUILDKITE_PLUGIN_CONFIGURATION", r#"{"file":"plugin"}"#);
        let by_name = |environment: &[_]| invocation(environment, &["/etc/hooks/command"]);
        assert!(matches!(by_name(&[plugin]), Invocation::OtherJob(_)));
        let Invocation::JobStep(order, _) = by_name(&[step, plugin]) else {
            panic!()
        };
        assert_eq!(keys(order), json!({ "file": "recorded" }));

        let hook = |environment: &[_]| invocation(environment, &["eval-once", "hook", "command"]);
        let Invocation::JobStep(order, _) = hook(&[step, plugin]) else {
            panic!()
        };
        assert_eq!(keys(order), json!({ "file": "plugin" }));
        let Invocation::JobStep(order, _) = hook(&[step]) else {
            panic!()
        };
        assert!(
            order.keys.is_err(),
            "a plugin's hook without configuration never passes through"
        );
        for scope in ["agent", "global"] {
            assert!(matches!(
                hook(&[plugin, ("BUILDKITE_HOOK_SCOPE", scope)]),
                Invocation::OtherJob(_)
            ));
        }
    }

    #[test]
    fn a_step_knows_what_comes_after_it_in_its_job() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let file = folder.path().join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, "").unwrap();
        };
        file("pre/pre-command");
        file("post/post-command");
        file("checkout/.buildkite/hooks/pre-exit");
        let at = |name: &str| {
            folder
                .path()
                .join(name)
                .into_os_string()
                .into_string()
                .unwrap()
        };
        let (pre, post, checkout) = (at("pre"), at("post"), at("checkout"));
        let more = format!("{pre},{post}");
        let around = |environment: &[(&str, &str)]| {
            let environment = [&JOB[..], environment].concat();
            match invocation(&environment, &["eval-once", "step", "--drv", "x"]) {
                Invocation::Step(order, _) => order.job.unwrap().around,
                other => panic!("{other:?}"),
            }
        };
        let plain = around(&[]);
        assert_eq!(plain, JobContext::default());
        for (name, value, later) in [
            ("BUILDKITE_HOOKS_PATH", pre.as_str(), None),
            ("BUILDKITE_HOOKS_PATH", &post, Some(AfterBuild::Hook)),
            (
                "BUILDKITE_ADDITIONAL_HOOKS_PATHS",
                &more,
                Some(AfterBuild::Hook),
            ),
            (
                "BUILDKITE_BUILD_CHECKOUT_PATH",
                &checkout,
                Some(AfterBuild::Hook),
            ),
            (
                "BUILDKITE_ARTIFACT_PATHS",
                "*.log",
                Some(AfterBuild::Artifacts),
            ),
            ("BUILDKITE_PARALLEL_JOB_COUNT", "1", None),
            (
                "BUILDKITE_PARALLEL_JOB_COUNT",
                "2",
                Some(AfterBuild::OtherJob),
            ),
            ("BUILDKITE_PLUGINS", "[]", None),
            (
                "BUILDKITE_PLUGINS",
                r#"["docker#v5"]"#,
                Some(AfterBuild::Plugin),
            ),
        ] {
            assert_eq!(
                around(&[(name, value)]).later,
                Vec::from_iter(later),
                "{name}"
            );
        }
        let ours = ("BUILDKITE_PLUGIN_CONFIGURATION", "{}");
        let alone = ("BUILDKITE_PLUGINS", r#"[{"o/eval-once#v1":{}}]"#);
        let both = (
            "BUILDKITE_PLUGINS",
            r#"[{"o/eval-once#v1":{}},"docker#v5"]"#,
        );
        assert_eq!(around(&[ours, alone]).later, []);
        assert_eq!(around(&[ours, both]).later, [AfterBuild::Plugin]);
        for (command, is_more) in [
            ("", false),
            (" \n", false),
            ("eval-once step", false),
            ("eval-once step && make", true),
            ("make test", true),
        ] {
            let around = around(&[("BUILDKITE_COMMAND", command)]);
            assert_eq!(around.command, is_more, "{command:?}");
        }
        let timed = |minutes| around(&[("BUILDKITE_TIMEOUT", minutes)]).limit;
        assert_eq!(timed("2"), Some(Duration::from_secs(120)));
        assert_eq!(timed("false"), None);
        let attempt = |count| around(&[("BUILDKITE_RETRY_COUNT", count)]).attempt;
        assert_eq!((attempt("0"), attempt("1"), attempt("x")), (1, 2, 0));
    }

    /// The variables of a job that a recording needs.
    const JOB: [(&str, &str); 4] = [
        ("BUILDKITE_JOB_ID", "j"),
        ("BUILDKITE_AGENT_ACCESS_TOKEN", "t"),
        ("BUILDKITE_BUILD_ID", "b"),
        ("BUILDKITE_STEP_ID", "s"),
    ];

    fn recording(environment: &[(&str, &str)], flags: &[&str]) -> recording::RecordingOrder {
        let arguments = [&["eval-once", "pipeline"], flags].concat();
        let Invocation::Pipeline(order) = invocation(environment, &arguments) else {
            panic!()
        };
        *order
    }

    #[test]
    fn the_flags_of_a_recording_become_the_same_object_as_a_plugins_configuration() {
        let flags = "--file ci.nix -A a --recurse all --exclude a.*.b --exclude c --workers 2 --memory 512 \
            --evaluation-timeout 9 --evaluator nix --skip none --skip-style omit --on-error fail --emit plugin \
            --plugin o/p#v1 --step {\"priority\":1} --agents {\"x\":{\"queue\":\"q\"}} --group-by 1 --no-meta \
            --command none --log raw --on-drift fail --out-link out/x --chunk 5 --keep-days 7 --option cores 2 -I lib=./lib --argstr y z --dry-run";
        let order = recording(&[], &flags.split_whitespace().collect::<Vec<_>>());
        assert!(order.dry_run && order.build.is_none() && order.plugin.is_none());
        assert_eq!(
            Value::Object(order.keys.unwrap()),
            json!({
                "file": "ci.nix", "attr": "a", "recurse": "all", "exclude": ["a.*.b", "c"], "workers": 2, "memory": 512,
                "evaluation-timeout": 9, "evaluator": "nix", "skip": "none", "skip-style": "omit", "on-error": "fail",
                "emit": "plugin", "plugin": "o/p#v1", "step": { "priority": 1 }, "agents": { "x": { "queue": "q" } },
                "group-by": 1, "meta": false, "command": "none", "log": "raw", "on-drift": "fail", "out-link": "out/x", "chunk": 5, "keep-days": 7, "options": { "cores": "2" },
                "include": ["lib=./lib"], "argstr": { "y": "z" }
            })
        );
    }

    #[test]
    fn a_job_that_cannot_upload_is_not_taken_for_a_recording_by_hand() {
        assert!(recording(&[], &[]).keys.is_ok());
        let slugs = [
            ("BUILDKITE_ORGANIZATION_SLUG", "o"),
            ("BUILDKITE_PIPELINE_SLUG", "p"),
            ("BUILDKITE_BRANCH", "main"),
        ];
        let order = recording(&[&JOB[..], &slugs].concat(), &[]);
        assert!(order.keys.is_ok());
        assert_eq!(
            order.build.unwrap(),
            recording::BuildkiteBuild {
                build: "b".into(),
                job: "j".into(),
                step: "s".into(),
                pipeline: "o/p".into(),
                branch: "main".into()
            }
        );
        for (missing, _) in &JOB[1..] {
            let some: Vec<_> = JOB
                .into_iter()
                .filter(|(name, _)| name != missing)
                .collect();
            let failure = recording(&some, &[]).keys.unwrap_err();
            assert_eq!(failure.class, Class::Config);
            assert!(failure.to_string().contains(missing), "{failure}");
            let order = recording(&some, &["--dry-run"]);
            assert!(order.keys.is_ok() && order.build.is_none());
        }
    }

    #[test]
    fn a_plugins_hook_with_a_pipeline_records() {
        let hook = |configuration: &str, plugins: &str, job: &[(&str, &str)]| {
            let plugin = [
                ("BUILDKITE_PLUGIN_CONFIGURATION", configuration),
                ("BUILDKITE_PLUGINS", plugins),
            ];
            let environment = [job, &plugin].concat();
            match invocation(&environment, &["eval-once", "hook", "command"]) {
                Invocation::JobPipeline(order, _) => *order,
                other => panic!("{other:?}"),
            }
        };
        let ours = r#"{"pipeline":{"file":"x"}}"#;
        let plugins = format!(r#"["docker#v5",{{"o/eval-once#v1":{ours}}}]"#);
        let order = hook(ours, &plugins, &JOB);
        assert_eq!(order.plugin.as_deref(), Some("o/eval-once#v1"));
        assert!(order.build.is_some());
        assert_eq!(Value::Object(order.keys.unwrap()), json!({ "file": "x" }));

        let refused = |configuration, plugins, job, part| {
            let failure = hook(configuration, plugins, job).keys.unwrap_err();
            assert_eq!(failure.class, Class::Config);
            assert!(failure.to_string().contains(part), "{failure}");
        };
        refused(ours, "[]", &JOB, "BUILDKITE_PLUGINS");
        refused(ours, &plugins, &[], "BUILDKITE_JOB_ID");
        refused(ours, &plugins, &JOB[..3], "BUILDKITE_STEP_ID");
        refused(r#"{"pipeline":{},"attr":"a"}"#, &plugins, &JOB, "`attr`");
        refused(r#"{"pipeline":[]}"#, &plugins, &JOB, "`pipeline`");
        for said in [
            r#"{"pipeline":{"emit":"command"}}"#,
            r#"{"pipeline":{"plugin":"o/p#v1"}}"#,
        ] {
            assert!(hook(said, "[]", &JOB).keys.is_ok());
        }
    }

    #[test]
    fn a_summary_is_made_in_a_job_and_stands_alone() {
        let by_hand = |job: &[(&str, &str)]| match invocation(job, &["eval-once", "summary"]) {
            Invocation::Summary(asked) => asked,
            other => panic!("{other:?}"),
        };
        assert!(by_hand(&JOB).is_ok());
        assert_eq!(by_hand(&[]).unwrap_err().class, Class::Config);
        assert_eq!(by_hand(&JOB[..1]).unwrap_err().class, Class::Config);
        let hook = |configuration: &str| {
            let plugin = [("BUILDKITE_PLUGIN_CONFIGURATION", configuration)];
            let environment = [&JOB[..], &plugin].concat();
            match invocation(&environment, &["eval-once", "hook", "command"]) {
                Invocation::JobSummary(asked, _) => asked.map_err(|failure| failure.to_string()),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(hook(r#"{"summary":true}"#), Ok(()));
        for (configuration, named) in [
            (r#"{"summary":false}"#, "`summary`"),
            (r#"{"summary":"true"}"#, "`summary`"),
            (r#"{"summary":null}"#, "`summary`"),
            (r#"{"summary":true,"drv":"x"}"#, "`drv`"),
            (r#"{"pipeline":{},"summary":true}"#, "`pipeline`"),
        ] {
            let refusal = hook(configuration).unwrap_err();
            assert!(refusal.contains(named), "{refusal}");
        }
    }

    #[test]
    fn a_command_line_that_cannot_be_read_is_refused_and_reported() {
        let Invocation::Message(_, 64) = invocation(&[], &["eval-once"]) else {
            panic!()
        };
        let Invocation::Message(_, 64) = invocation(&[], &["eval-once", "step", "--flie", "x"])
        else {
            panic!()
        };
        let Invocation::Message(_, 0) = invocation(&[], &["eval-once", "--help"]) else {
            panic!()
        };
        let arguments = ["eval-once", "step", "--flie", "x", "--report=r.json"];
        let Invocation::Step(order, _) = invocation(&[], &arguments) else {
            panic!()
        };
        assert_eq!(
            (order.report, order.keys.unwrap_err().class),
            (Some("r.json".into()), Class::Config)
        );
    }

    #[test]
    fn a_host_setting_that_makes_no_sense_is_refused_by_name() {
        for (name, value) in [
            ("EVAL_ONCE_EVALUATIONS", "0"),
            ("EVAL_ONCE_EVALUATIONS", "x"),
            ("EVAL_ONCE_POLICY", "x"),
        ] {
            let Invocation::Step(order, _) = invocation(&[(name, value)], &["eval-once", "step"])
            else {
                panic!()
            };
            assert!(order.host.unwrap_err().to_string().contains(name));
        }
    }
}
