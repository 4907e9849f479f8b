//! Which use of eval-once this is: a subcommand by hand, a plugin's hook, a hook of the agent's, or the environment of a job;
//! and where that use takes its keys from.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use clap::Parser as _;
use clap::error::ErrorKind;
use serde_json::Value;

use super::flags::{Cli, CliCommand, HookName, StepFlags, report_in};
use super::host::{self, host_environment};
use super::job::{
    agent_job, agents_command_hooks, build, checkout_by_hand, checkout_of_hook, command_eval,
    plugins_command_hooks, step_job, with_command,
};
use super::orders::{self, RecordingDraft, StepDraft, check_command};
use super::{Invocation, Refusal, Startup};
use crate::buildkite::command_hooks::{CommandHooks, FollowingCommand};
use crate::buildkite::default_command::{self, AgentJob};
use crate::buildkite::plugin;
use crate::environment::HostEnvironment;
use crate::evaluation_keys::Checkout;
use crate::exit::{Class, Failure};
use crate::job::{HookTask, HookedJob, TrailingCommand};
use crate::keys::table::{self, KeyOwner};
use crate::keys::{self, Keys, refuse};
use crate::log::Log;
use crate::similar::nearest;
use crate::step::StepOrder;

/// What this process was started for.
pub(super) fn invocation(startup: &Startup, arguments: &[OsString], log: &Log) -> Invocation {
    RoleReader { startup, log }.invocation(arguments)
}

/// The refusal of a recorded step with two commands, of which only one could be run.
fn two_commands(other: &str) -> Failure {
    refuse(format_args!(
        "the step has two commands: the recorded one (EVAL_ONCE_COMMAND), and {other}"
    ))
    .hint("leave the command at `eval-once step`: it runs the recorded one after the build")
}

/// Whether `summary` in a plugin's configuration asks for a failure where a target failed. Refuses keys beside it.
fn read_summary_alone(keys: &Keys) -> Result<bool, Failure> {
    let fail = match keys.get("summary") {
        Some(Value::Bool(true)) => false,
        Some(Value::String(word)) if word == "fail" => true,
        _ => {
            return Err(refuse(
                "`summary` must be `true`, which sums up the build, or `fail`, which also fails where a target did, or be left out",
            ));
        }
    };
    match keys.keys().find(|key| *key != "summary") {
        Some(other) => Err(refuse(format_args!(
            "`{other}` cannot be combined with `summary`, which builds nothing"
        ))
        .hint("give the summary a step of its own")),
        None => Ok(fail),
    }
}

/// The keys of a plugin's configuration that make its step something else than a step that builds.
const TASKS: [&str; 2] = ["pipeline", "summary"];

/// The keys of a step that builds, as far as none of them was meant for a recording or a summary: the keys of a step are no answer
/// to that.
fn refuse_other_tasks(keys: Keys) -> Result<Keys, Failure> {
    let of = |owner| table::of(owner).map(|key| key.name).collect::<Vec<_>>();
    let (step, recording) = (of(KeyOwner::Step), of(KeyOwner::Recording));
    let known = [&step[..], &TASKS].concat();
    for key in keys.keys().filter(|key| !step.contains(&key.as_str())) {
        let hint = match nearest(key, &known) {
            Some(task) if TASKS.contains(&task) => format!("did you mean `{task}`?"),
            None if recording.contains(&key.as_str()) => {
                format!("the keys of a recording go below `pipeline`: `pipeline: {{ {key}: … }}`")
            }
            _ => continue,
        };
        return Err(refuse(format_args!("`{key}` is not a key of a step")).hint(hint));
    }
    Ok(keys)
}

struct RoleReader<'a> {
    startup: &'a Startup,
    log: &'a Log,
}

impl RoleReader<'_> {
    fn invocation(&self, arguments: &[OsString]) -> Invocation {
        if let [name] = arguments {
            match Path::new(name).file_name().map(OsStr::as_bytes) {
                Some(b"command") => return self.agents_command_hook(),
                Some(b"environment") => {
                    return Invocation::SetEnvironment(host_environment(self.startup));
                }
                _ => {}
            }
        }
        match Cli::try_parse_from(arguments) {
            Ok(line) => self.subcommand(line.subcommand),
            Err(error) => self.message(error, arguments),
        }
    }

    fn subcommand(&self, subcommand: CliCommand) -> Invocation {
        let invocation = match subcommand {
            CliCommand::Step {
                keys,
                report,
                trailing,
            } => self.step_by_hand(keys, report, trailing),
            CliCommand::Explain { keys, json, .. } => {
                let (keys, _) = self.keys_by_hand(keys);
                // `--report` of the step is ignored: `explain` builds nothing to report.
                self.step(keys, self.draft_by_hand())
                    .map(|order| Invocation::Explain { order, json })
                    .map_err(|refusal| refusal.failure.into())
            }
            CliCommand::Pipeline { keys, dry_run } => {
                self.pipeline(keys.into_keys(), dry_run, checkout_by_hand(self.startup))
            }
            CliCommand::Pin { drvs, keys } => orders::pin(self.startup, keys.into_keys(), &drvs)
                .map(|order| Invocation::Pin(Box::new(order)))
                .map_err(Refusal::from),
            CliCommand::Summary { fail } => {
                orders::summary(self.startup, fail).map(Invocation::Summary)
            }
            CliCommand::Base {
                folder,
                branch,
                pipeline,
            } => orders::base(self.startup, &folder, branch, pipeline).map(Invocation::Base),
            CliCommand::Prune => host::host(self.startup)
                .map(Invocation::Prune)
                .map_err(Refusal::from),
            CliCommand::Doctor { json, write_share } => Ok(Invocation::Doctor {
                order: Box::new(host::doctor(self.startup, write_share)),
                json,
            }),
            CliCommand::Hook {
                hook: HookName::Environment,
            } => Ok(Invocation::SetEnvironment(host_environment(self.startup))),
            CliCommand::Hook {
                hook: HookName::Command,
            } => {
                let scope = self.startup.variables.get("BUILDKITE_HOOK_SCOPE");
                if scope.is_some_and(|scope| scope == "agent" || scope == "global") {
                    Ok(self.agents_command_hook())
                } else {
                    Ok(self.plugins_command_hook())
                }
            }
            CliCommand::Environment => self
                .environment()
                .map(Invocation::PrintEnvironment)
                .map_err(Refusal::from),
            CliCommand::Completions { shell } => Ok(Invocation::Completions(shell)),
        };
        invocation.unwrap_or_else(Invocation::Refused)
    }

    /// The message of clap. A wrong command line of a step is reported like every other refusal: in the file of `--report`, and to
    /// the build of a job.
    fn message(&self, error: clap::Error, arguments: &[OsString]) -> Invocation {
        if matches!(
            error.kind(),
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
        ) {
            return Invocation::Message(Box::new(error), 0);
        }
        let is_step = arguments
            .get(1)
            .is_some_and(|subcommand| subcommand == "step");
        let report = report_in(arguments).filter(|_| is_step);
        let is_job = || step_job(&self.startup.variables).is_some();
        if report.is_some() || is_step && is_job() {
            let refusal = refuse(sentence(&error.to_string()));
            let draft = StepDraft {
                report,
                ..self.draft_by_hand()
            };
            return self
                .step(Err(refusal), draft)
                .map_or_else(Invocation::Refused, |order| Invocation::Step(order, None));
        }
        Invocation::Message(Box::new(error), Class::Config.status())
    }

    fn draft_by_hand(&self) -> StepDraft<'static> {
        StepDraft {
            checkout: checkout_by_hand(self.startup),
            report: None,
            job: None,
            followed: false,
        }
    }

    fn step(
        &self,
        keys: Result<Keys, Failure>,
        draft: StepDraft<'_>,
    ) -> Result<StepOrder, Refusal> {
        orders::step(self.startup, keys, draft, self.log)
    }

    fn step_by_hand(
        &self,
        flags: StepFlags,
        report: Option<PathBuf>,
        words: Vec<OsString>,
    ) -> Result<Invocation, Refusal> {
        let trailing = (!words.is_empty()).then(|| TrailingCommand {
            words,
            environment: self.startup.variables.all(),
        });
        let (mut keys, is_recorded) = self.keys_by_hand(flags);
        let draft = StepDraft {
            report,
            followed: trailing.is_some(),
            ..self.draft_by_hand()
        };
        if let Some(recorded) = self.recorded_command().filter(|_| is_recorded) {
            if trailing.is_none() {
                let job = agent_job(self.startup, CommandHooks::default());
                return self.hooked_step(keys, with_command(job, recorded), draft);
            }
            keys = keys.and(Err(two_commands("the one after `--`")));
        }
        let order = self.step(keys, draft)?;
        let runs = order.request.run.is_some();
        let trailing = trailing.or_else(|| {
            runs.then(|| TrailingCommand {
                words: Vec::new(),
                environment: self.startup.variables.all(),
            })
        });
        Ok(Invocation::Step(order, trailing))
    }

    /// A step that the job's own command follows.
    fn hooked_step(
        &self,
        keys: Result<Keys, Failure>,
        job: AgentJob,
        draft: StepDraft<'_>,
    ) -> Result<Invocation, Refusal> {
        let job = HookedJob::new(job, HookTask::Step);
        let draft = StepDraft {
            followed: job.has_command(),
            job: Some(&job),
            ..draft
        };
        let order = self.step(keys, draft)?;
        Ok(Invocation::JobStep(order, job))
    }

    /// A step in a hook.
    fn step_in_hook(&self, keys: Result<Keys, Failure>, job: AgentJob) -> Invocation {
        let draft = StepDraft {
            checkout: checkout_of_hook(self.startup),
            ..self.draft_by_hand()
        };
        self.hooked_step(keys, job, draft)
            .unwrap_or_else(Invocation::Refused)
    }

    /// The keys of a step by hand, and whether they are the recorded ones.
    fn keys_by_hand(&self, flags: StepFlags) -> (Result<Keys, Failure>, bool) {
        match flags.into_keys() {
            Ok(flags) if flags.is_empty() => match self.recorded_step() {
                Some(recorded) => (recorded, true),
                None => (Ok(Keys::new()), false),
            },
            Ok(flags) => {
                if self.startup.variables.raw("EVAL_ONCE_STEP").is_some() {
                    self.log
                        .warn("EVAL_ONCE_STEP is ignored: the flags say what to build");
                }
                (Ok(flags), false)
            }
            Err(refusal) => (Err(refusal), false),
        }
    }

    /// The keys in `EVAL_ONCE_STEP`, if it is set at all.
    fn recorded_step(&self) -> Option<Result<Keys, Failure>> {
        let text = self.startup.variables.utf8("EVAL_ONCE_STEP").transpose()?;
        Some(text.and_then(|text| keys::parse(text, "EVAL_ONCE_STEP")))
    }

    /// The command that follows a recorded step, where the job's own is only that step.
    fn recorded_command(&self) -> Option<&OsStr> {
        self.startup.variables.get("EVAL_ONCE_COMMAND")
    }

    /// A recording that is asked for by a command line.
    fn pipeline(
        &self,
        keys: Result<Keys, Failure>,
        dry_run: bool,
        checkout: Checkout,
    ) -> Result<Invocation, Refusal> {
        let build = match build(&self.startup.variables) {
            Err(_) if dry_run => Ok(None),
            build => build.map_err(|failure| failure.hint("pass the job's variables on, into a container too; or only print the pipeline, with --dry-run")),
        };
        let draft = RecordingDraft {
            checkout,
            build,
            job: None,
            plugin: None,
            dry_run,
        };
        let order = orders::recording(self.startup, keys, draft, self.log)?;
        Ok(Invocation::Pipeline(order))
    }

    fn agents_command_hook(&self) -> Invocation {
        let job = agent_job(self.startup, agents_command_hooks(self.startup));
        let Some(keys) = self.recorded_step() else {
            return self
                .command_of_ours(&job.command)
                .unwrap_or(Invocation::OtherJob(job));
        };
        let (keys, job) = match self.recorded_command() {
            None => (keys, job),
            Some(command) if default_command::is_step_itself(&job.command) => {
                (keys, with_command(job, command))
            }
            Some(_) => (keys.and(Err(two_commands("the job's own"))), job),
        };
        self.step_in_hook(keys, job)
    }

    /// What a job asks for whose command is one of those that recordings are made with, besides steps. The hook does it, as a
    /// step: the command would need a program on PATH, and an agent that lets commands be evaluated.
    fn command_of_ours(&self, command: &OsStr) -> Option<Invocation> {
        let words = default_command::words_of_ours(command, &TASKS)?;
        let words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
        Some(match Cli::try_parse_from(&words) {
            Ok(Cli {
                subcommand: CliCommand::Pipeline { keys, dry_run },
            }) => {
                // Where the command would have run, and confined as the command would have been.
                let checkout = Checkout {
                    confined: !command_eval(&self.startup.variables),
                    ..checkout_by_hand(self.startup)
                };
                self.pipeline(keys.into_keys(), dry_run, checkout)
                    .unwrap_or_else(Invocation::Refused)
            }
            Ok(line) => self.subcommand(line.subcommand),
            Err(error) => self.message(error, &words),
        })
    }

    /// A step; with `pipeline`, a recording; with `summary`, a summary.
    fn plugins_command_hook(&self) -> Invocation {
        let hooks = plugins_command_hooks(&self.startup.variables);
        let job = agent_job(self.startup, hooks);
        match self.plugin_configuration() {
            Ok(keys) if keys.contains_key("summary") => self.plugins_summary(&keys, job),
            Ok(keys) if keys.contains_key("pipeline") => self.plugins_recording(keys, job),
            keys => Ok(self.step_in_hook(keys.and_then(refuse_other_tasks), job)),
        }
        .unwrap_or_else(Invocation::Refused)
    }

    fn plugin_configuration(&self) -> Result<Keys, Failure> {
        let variables = &self.startup.variables;
        let configuration = variables.utf8("BUILDKITE_PLUGIN_CONFIGURATION")?;
        plugin::configuration(configuration, variables.utf8("BUILDKITE_PLUGINS")?)
    }

    fn plugins_summary(&self, keys: &Keys, job: AgentJob) -> Result<Invocation, Refusal> {
        let order = orders::summary(self.startup, read_summary_alone(keys)?)?;
        let job = HookedJob::new(job, HookTask::Summary);
        check_command(&job, FollowingCommand::Runs { explicit: false }, self.log)?;
        Ok(Invocation::JobSummary { order, job })
    }

    fn plugins_recording(&self, mut keys: Keys, job: AgentJob) -> Result<Invocation, Refusal> {
        let variables = &self.startup.variables;
        let pipeline = keys.remove("pipeline");
        let keys = match (pipeline, keys.keys().next()) {
            (_, Some(other)) => Err(refuse(format_args!(
                "`{other}` cannot be combined with `pipeline`: the keys of a recording go below `pipeline`"
            ))),
            (Some(Value::Object(keys)), None) => Ok(keys),
            _ => Err(refuse(
                "`pipeline` must be a map of the keys of a recording, `pipeline: {}` at least",
            )),
        };
        let plugin = variables
            .utf8("BUILDKITE_PLUGINS")
            .and_then(|plugins| Ok((plugins, variables.utf8("BUILDKITE_PLUGIN_CONFIGURATION")?)));
        let (keys, plugin) = match plugin {
            Ok((plugins, configuration)) => {
                let name = variables.text("BUILDKITE_PLUGIN_NAME");
                let reference = plugin::our_reference(plugins, configuration, name.as_deref());
                (keys, reference)
            }
            Err(failure) => (Err(failure), None),
        };
        // Steps of another kind than the user expects would show in red jobs only.
        let keys = keys.and_then(|keys| {
            if plugin.is_none() && !keys.contains_key("plugin") && !keys.contains_key("emit") {
                return Err(refuse(
                    "cannot determine this plugin's reference; set `plugin` (no entry of BUILDKITE_PLUGINS has its configuration)",
                )
                .hint("write it as below `plugins:`; or use `emit: command`"));
            }
            Ok(keys)
        });
        let build = build(variables).and_then(|build| {
            build.map(Some).ok_or_else(|| {
                refuse("this is not a Buildkite job, so there is no build to upload to: BUILDKITE_JOB_ID is not set")
                    .hint("record by hand with `eval-once pipeline`")
            })
        });
        let job = HookedJob::new(job, HookTask::Recording);
        let draft = RecordingDraft {
            checkout: checkout_of_hook(self.startup),
            build,
            job: Some(&job),
            plugin,
            dry_run: false,
        };
        let order = orders::recording(self.startup, keys, draft, self.log)?;
        Ok(Invocation::JobPipeline(order, job))
    }

    /// The environment of a job, where its plugins let ours do its part. The environment hook is the only one of ours that the
    /// agent runs where it does not run our command hook: a job with nothing built would be green.
    fn environment(&self) -> Result<HostEnvironment, Failure> {
        let variables = &self.startup.variables;
        if variables.get("BUILDKITE_PLUGIN_CONFIGURATION").is_some() {
            plugins_command_hooks(variables).check_first()?;
        }
        Ok(host_environment(self.startup))
    }
}

/// What clap says, in one line and without the advice to read the help: for a report, which is read elsewhere.
fn sentence(printed: &str) -> String {
    let parts = printed.trim_start_matches("error: ").split("\n\n");
    let parts = parts.take_while(|part| {
        !part.starts_with("Usage:") && !part.starts_with("For more information")
    });
    let lines = parts.map(|part| {
        let words: Vec<&str> = part.split_whitespace().collect();
        words.join(" ")
    });
    lines.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::super::tests::startup;
    use super::*;
    use crate::recording::{Emit, RecordingOrder};
    use serde_json::json;

    /// The variables of a job that a recording needs.
    const JOB: [(&str, &str); 4] = [
        ("BUILDKITE_JOB_ID", "j"),
        ("BUILDKITE_AGENT_ACCESS_TOKEN", "t"),
        ("BUILDKITE_BUILD_ID", "b"),
        ("BUILDKITE_STEP_ID", "s"),
    ];

    fn invocation(variables: &[(&str, &str)], arguments: &[&str]) -> Invocation {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        super::invocation(&startup(variables), &arguments, &Log::default())
    }

    fn keys(order: StepOrder) -> Value {
        Value::Object(order.request.keys)
    }

    #[track_caller]
    fn refusal(invocation: Invocation) -> Refusal {
        match invocation {
            Invocation::Refused(refusal) => {
                assert_eq!(refusal.failure.class, Class::Config);
                refusal
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_wrong_command_line_is_reported_in_one_line() {
        let refusal = |flags: &[&str]| {
            let words = [&["eval-once", "step"], flags].concat();
            sentence(&Cli::try_parse_from(words).unwrap_err().to_string())
        };
        assert_eq!(
            refusal(&["--log", "quiet"]),
            "invalid value 'quiet' for '--log <HOW>' [possible values: pretty, raw]"
        );
        let unknown = refusal(&["--flie", "x"]);
        assert!(
            unknown.starts_with(
                "unexpected argument '--flie' found; tip: a similar argument exists: '--file'"
            ),
            "{unknown}"
        );
        assert!(!unknown.contains('\n') && !unknown.contains("--help"));
    }

    #[test]
    fn without_a_key_among_its_flags_a_step_is_the_recorded_one() {
        let recorded = [("EVAL_ONCE_STEP", r#"{"file":"x"}"#)];
        let arguments = [
            "eval-once",
            "step",
            "--report",
            "r.json",
            "--",
            "make",
            "--file",
        ];
        let Invocation::Step(order, command) = invocation(&recorded, &arguments) else {
            panic!()
        };
        assert_eq!(command.unwrap().words, ["make", "--file"]);
        assert_eq!(order.reporting.report.as_deref(), Some(Path::new("r.json")));
        assert_eq!(keys(order), json!({ "file": "x" }));
        let arguments = ["eval-once", "step", "--file", "y", "--on-drift", "fail"];
        let Invocation::Step(order, None) = invocation(&recorded, &arguments) else {
            panic!()
        };
        assert_eq!(keys(order), json!({ "file": "y", "on-drift": "fail" }));
    }

    #[test]
    fn a_hook_knows_whose_it_is() {
        let step = ("EVAL_ONCE_STEP", r#"{"file":"recorded"}"#);
        let plugin = ("BUILDKITE_PLUGIN_CONFIGURATION", r#"{"file":"plugin"}"#);
        let by_name = |variables: &[_]| invocation(variables, &["/etc/hooks/command"]);
        assert!(matches!(by_name(&[plugin]), Invocation::OtherJob(_)));
        let Invocation::JobStep(order, _) = by_name(&[step, plugin]) else {
            panic!()
        };
        assert_eq!(keys(order), json!({ "file": "recorded" }));

        let hook = |variables: &[_]| invocation(variables, &["eval-once", "hook", "command"]);
        let Invocation::JobStep(order, _) = hook(&[step, plugin]) else {
            panic!()
        };
        assert_eq!(keys(order), json!({ "file": "plugin" }));
        // A plugin's hook without configuration never passes through.
        refusal(hook(&[step]));
        for scope in ["agent", "global"] {
            assert!(matches!(
                hook(&[plugin, ("BUILDKITE_HOOK_SCOPE", scope)]),
                Invocation::OtherJob(_)
            ));
        }
    }

    fn recording(variables: &[(&str, &str)], flags: &[&str]) -> Result<RecordingOrder, String> {
        match invocation(variables, &[&["eval-once", "pipeline"], flags].concat()) {
            Invocation::Pipeline(order) => Ok(*order),
            other => Err(refusal(other).failure.to_string()),
        }
    }

    #[test]
    fn a_dry_run_needs_no_job() {
        let by_hand = recording(&[], &[]).unwrap();
        assert!(by_hand.build.is_none() && !by_hand.dry_run);
        let in_job = recording(&JOB, &["--dry-run"]).unwrap();
        assert!(in_job.build.is_some() && in_job.dry_run);
        for (missing, _) in &JOB[1..] {
            let some: Vec<_> = JOB
                .into_iter()
                .filter(|(name, _)| name != missing)
                .collect();
            assert!(recording(&some, &[]).unwrap_err().contains(missing));
            let order = recording(&some, &["--dry-run"]).unwrap();
            assert!(order.build.is_none());
        }
    }

    #[test]
    fn a_plugins_hook_with_a_pipeline_records() {
        let hook = |configuration: &str, plugins: &str, job: &[(&str, &str)]| {
            let plugin = [
                ("BUILDKITE_PLUGIN_CONFIGURATION", configuration),
                ("BUILDKITE_PLUGINS", plugins),
            ];
            let variables = [job, &plugin].concat();
            invocation(&variables, &["eval-once", "hook", "command"])
        };
        let ours = r#"{"pipeline":{"file":"x","chunk":7}}"#;
        let plugins = format!(r#"["docker#v5",{{"o/eval-once#v1":{ours}}}]"#);
        let Invocation::JobPipeline(order, _) = hook(ours, &plugins, &JOB) else {
            panic!()
        };
        assert_eq!(order.request.emit, Emit::Plugin("o/eval-once#v1".into()));
        assert!(order.build.is_some());
        assert_eq!(order.request.chunk.get(), 7);

        let refused = |configuration, plugins, job, part| {
            let failure = refusal(hook(configuration, plugins, job)).failure;
            assert!(failure.to_string().contains(part), "{failure}");
        };
        refused(ours, "[]", &JOB, "BUILDKITE_PLUGINS");
        refused(ours, &plugins, &[], "BUILDKITE_JOB_ID");
        refused(ours, &plugins, &JOB[..3], "BUILDKITE_STEP_ID");
        refused(r#"{"pipeline":{},"attr":"a"}"#, &plugins, &JOB, "`attr`");
        refused(r#"{"pipeline":[]}"#, &plugins, &JOB, "`pipeline`");
        // A step's keys would be no answer to what was meant for a recording or a summary.
        for (keys, hint) in [
            (r#"{"pipelin":{}}"#, "did you mean `pipeline`?"),
            (r#"{"attr":"a","sumary":true}"#, "did you mean `summary`?"),
            (
                r#"{"attr":"a","chunk":7}"#,
                "the keys of a recording go below `pipeline`: `pipeline: { chunk: … }`",
            ),
            (
                r#"{"attrr":"a"}"#,
                "did you mean `attr`? (the keys of a step are ",
            ),
        ] {
            let failure = refusal(hook(keys, "[]", &JOB)).failure;
            assert_eq!(failure.class, Class::Config);
            assert!(
                failure.hint.as_ref().is_some_and(|it| it.starts_with(hint)),
                "{:?}",
                failure.hint
            );
        }
        for named in [
            r#"{"pipeline":{"emit":"command"}}"#,
            r#"{"pipeline":{"plugin":"o/p#v1"}}"#,
        ] {
            let order = hook(named, "[]", &JOB);
            assert!(matches!(order, Invocation::JobPipeline(..)), "{order:?}");
        }
    }

    #[test]
    fn a_summary_is_made_in_a_job_and_stands_alone() {
        let by_hand = |job: &[(&str, &str)]| invocation(job, &["eval-once", "summary"]);
        assert!(matches!(by_hand(&JOB), Invocation::Summary(_)));
        refusal(by_hand(&[]));
        refusal(by_hand(&JOB[..1]));
        let hook = |configuration: &str| {
            let plugin = [("BUILDKITE_PLUGIN_CONFIGURATION", configuration)];
            let variables = [&JOB[..], &plugin].concat();
            invocation(&variables, &["eval-once", "hook", "command"])
        };
        assert!(matches!(
            hook(r#"{"summary":true}"#),
            Invocation::JobSummary { order, .. } if !order.fail
        ));
        assert!(matches!(
            hook(r#"{"summary":"fail"}"#),
            Invocation::JobSummary { order, .. } if order.fail
        ));
        let flag = invocation(&JOB, &["eval-once", "summary", "--fail"]);
        assert!(matches!(flag, Invocation::Summary(order) if order.fail));
        for (configuration, named) in [
            (r#"{"summary":false}"#, "`summary`"),
            (r#"{"summary":"true"}"#, "`summary`"),
            (r#"{"summary":"fails"}"#, "`summary`"),
            (r#"{"summary":null}"#, "`summary`"),
            (r#"{"summary":true,"drv":"x"}"#, "`drv`"),
            (r#"{"pipeline":{},"summary":true}"#, "`pipeline`"),
        ] {
            let failure = refusal(hook(configuration)).failure;
            assert!(failure.to_string().contains(named), "{failure}");
        }
    }

    #[test]
    fn a_command_line_that_cannot_be_read_is_refused_and_reported() {
        for wrong in [&["eval-once"][..], &["eval-once", "step", "--flie", "x"]] {
            let message = invocation(&[], wrong);
            assert!(matches!(message, Invocation::Message(_, 64)), "{message:?}");
        }
        let Invocation::Message(_, 0) = invocation(&[], &["eval-once", "--help"]) else {
            panic!()
        };
        for (flag, value) in [("--flie", "x"), ("--on-drift", "ignore")] {
            let arguments = ["eval-once", "step", flag, value, "--report=r.json"];
            let by_hand = refusal(invocation(&[], &arguments));
            assert!(by_hand.failure.to_string().contains(flag));
            assert_eq!(by_hand.step.unwrap().report, Some("r.json".into()));
            let in_job = refusal(invocation(&JOB, &arguments[..4]));
            assert!(in_job.step.unwrap().job.is_some());
        }
        let recording = invocation(&JOB, &["eval-once", "pipeline", "--skip", "x"]);
        assert!(matches!(recording, Invocation::Message(_, 64)));
    }

    /// The first mistake in this order is reported: the keys as they are written, the job's command, what the keys
    /// mean, the host.
    #[test]
    fn of_several_things_that_are_wrong_one_is_reported() {
        let host = ("EVAL_ONCE_POLICY", "x");
        let command = ("BUILDKITE_COMMAND", "eval-once step && make");
        let step = |text| ("EVAL_ONCE_STEP", text);
        let hook = |variables: &[(&str, &str)]| {
            let refusal = refusal(invocation(variables, &["/hooks/command"]));
            assert!(refusal.step.is_some());
            refusal.failure.to_string()
        };
        let unreadable = hook(&[host, command, step("{")]);
        assert!(unreadable.contains("EVAL_ONCE_STEP"), "{unreadable}");
        assert_eq!(
            hook(&[host, command, step(r#"{"x":1}"#)]),
            "the command combines `eval-once step` with other shell code, which this hook cannot run"
        );
        assert_eq!(
            hook(&[host, step(r#"{"x":1}"#)]),
            "`x` is not a key of a step"
        );
        assert!(hook(&[host, step("{}")]).contains("EVAL_ONCE_POLICY"));
        // A recording's keys are read when the host's settings are.
        let keys = [host, ("BUILDKITE_COMMAND", "eval-once pipeline --chunk 0")];
        let recording = refusal(invocation(&keys, &["/hooks/command"])).failure;
        assert!(recording.to_string().contains("EVAL_ONCE_POLICY"));
    }

    #[test]
    fn a_command_that_follows_is_known_to_the_report_and_keeps_the_step_from_being_skipped() {
        let skipped = (
            "EVAL_ONCE_STEP",
            r#"{"drv":"/s/0123456789abcdfghijklmnpqrsvwxyz-x.drv","skip":true}"#,
        );
        let of = |more: &[(&str, &str)], arguments: &[&str]| {
            let variables = [&JOB[..], &[skipped], more].concat();
            match invocation(&variables, arguments) {
                Invocation::Step(order, _) | Invocation::JobStep(order, _) => order,
                other => panic!("{other:?}"),
            }
        };
        let followed = |order: &StepOrder| order.reporting.job.as_ref().unwrap().around.command;
        let alone = of(&[], &["eval-once", "step"]);
        assert!(alone.request.skip && !followed(&alone));
        for order in [
            of(&[], &["eval-once", "step", "--", "make"]),
            of(&[("EVAL_ONCE_COMMAND", "make")], &["eval-once", "step"]),
            of(&[("BUILDKITE_COMMAND", "make")], &["/hooks/command"]),
        ] {
            assert!(!order.request.skip && followed(&order));
        }
        let itself = [("BUILDKITE_COMMAND", "eval-once step")];
        let order = of(&itself, &["/hooks/command"]);
        assert!(order.request.skip && !followed(&order));
    }

    #[test]
    fn a_step_has_one_command() {
        let recorded = [
            ("EVAL_ONCE_STEP", r#"{"file":"x"}"#),
            ("EVAL_ONCE_COMMAND", "make"),
        ];
        let arguments = ["eval-once", "step", "--", "make"];
        let message = refusal(invocation(&recorded, &arguments))
            .failure
            .to_string();
        assert!(message.contains("EVAL_ONCE_COMMAND"), "{message}");
        let own = [&recorded[..], &[("BUILDKITE_COMMAND", "true")]].concat();
        let message = refusal(invocation(&own, &["/hooks/command"]))
            .failure
            .to_string();
        assert!(message.contains("EVAL_ONCE_COMMAND"), "{message}");
    }
}
