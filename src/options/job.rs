//! The variables of a job, as the agent sets them: the job itself, its step, its build, its checkout, and the command hooks
//! that it has.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::Startup;
use super::variables::Variables;
use crate::buildkite::EmptyWords;
use crate::buildkite::agent_config::is_true;
use crate::buildkite::command_hooks::{CommandHooks, HookFolders};
use crate::buildkite::default_command::{self, AgentJob, Ours, is_eval_once};
use crate::buildkite::git::{self, Repository};
use crate::evaluation_keys::Checkout;
use crate::exit::Failure;
use crate::fingerprint::fingerprint;
use crate::keys::refuse;
use crate::paths;
use crate::private;
use crate::recording::{BuildkiteBuild, Signing};
use crate::step::{AfterBuild, JobContext, StepJob};

/// The most bytes of the file with a job's variables.
const ENV_FILE_AT_MOST: u64 = 4 << 20;

/// How many characters of a hash tell the jobs of a step apart.
const VARIANT: usize = 8;

/// Whether this is a job, whose log is read in a browser even though it is a terminal's.
pub(super) fn is_job(variables: &Variables) -> bool {
    variables.is("BUILDKITE", "true")
}

/// The job, as the agent has prepared it for its command.
pub(super) fn agent_job(startup: &Startup, hooks: CommandHooks) -> AgentJob {
    let variables = &startup.variables;
    let shell = variables.raw("BUILDKITE_SHELL");
    AgentJob {
        command: variables
            .raw("BUILDKITE_COMMAND")
            .unwrap_or_default()
            .to_owned(),
        command_eval: command_eval(variables),
        shell: shell.map_or_else(default_command::default_shell, |shell| {
            shell.to_string_lossy().into_owned()
        }),
        // The scope was called `global` until v3.103, and nothing else shows an agent's age.
        empty_words: if variables.is("BUILDKITE_HOOK_SCOPE", "global") {
            EmptyWords::Drop
        } else {
            EmptyWords::Keep
        },
        folder: folder_by_name(startup),
        environment: variables.all(),
        hooks,
    }
}

/// The job with another command, in its environment too: a command may look there at what it is.
pub(super) fn with_command(mut job: AgentJob, command: &OsStr) -> AgentJob {
    let name = OsStr::new("BUILDKITE_COMMAND");
    job.environment.retain(|(other, _)| other != name);
    job.environment.push((name.into(), command.into()));
    command.clone_into(&mut job.command);
    // `command: none` leaves a command to other hooks. Of this one only they are looked at.
    job.hooks.others.get_or_insert_default();
    job
}

/// Whether a pipeline may choose what is run. A value that cannot be read allows nothing more.
pub(super) fn command_eval(variables: &Variables) -> bool {
    variables.raw("BUILDKITE_COMMAND_EVAL").is_none_or(is_true)
}

/// The current folder by the name that the agent knows it by, where that is a name of it.
fn folder_by_name(startup: &Startup) -> PathBuf {
    let current = &startup.folder;
    let same = |name: &PathBuf| match (name.metadata(), current.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    };
    let named = startup.variables.path("PWD");
    named
        .filter(|name| name.is_absolute() && same(name))
        .unwrap_or_else(|| current.clone())
}

/// The command hooks beside that of our plugin's entry whose hook this is.
pub(super) fn plugins_command_hooks(variables: &Variables) -> CommandHooks {
    let json = |name: &str| variables.utf8(name).ok().flatten();
    let clones = variables
        .path("BUILDKITE_PLUGINS_PATH")
        .zip(variables.path("BUILDKITE_AGENT_NAME"))
        .map(|(plugins, agent)| plugins.join(agent));
    let checkout = variables.path("BUILDKITE_BUILD_CHECKOUT_PATH");
    let folders = HookFolders {
        clones: clones.as_deref(),
        checkout: checkout.as_deref().unwrap_or(Path::new(".")),
    };
    CommandHooks::of_plugin(
        json("BUILDKITE_PLUGINS"),
        json("BUILDKITE_PLUGIN_CONFIGURATION"),
        variables.text("BUILDKITE_PLUGIN_NAME").as_deref(),
        folders,
        variables
            .get("BUILDKITE_STRICT_SINGLE_HOOKS")
            .is_some_and(is_true),
    )
}

/// The command hooks that the agent has of its own beside ours.
pub(super) fn agents_command_hooks(startup: &Startup) -> CommandHooks {
    let folders = further_hook_folders(&startup.variables);
    CommandHooks::of_agent(&folders, startup.program.as_deref())
}

/// The agent's folders of hooks besides its `hooks-path`.
pub(super) fn further_hook_folders(variables: &Variables) -> Vec<PathBuf> {
    let folders = variables.get("BUILDKITE_ADDITIONAL_HOOKS_PATHS");
    folders
        .into_iter()
        .flat_map(|folders| folders.as_bytes().split(|byte| *byte == b','))
        .map(|folder| PathBuf::from(OsStr::from_bytes(folder)))
        .collect()
}

/// The checkout, for a hook.
pub(super) fn checkout_of_hook(startup: &Startup) -> Checkout {
    let variables = &startup.variables;
    let checkout = variables.path("BUILDKITE_BUILD_CHECKOUT_PATH");
    let folder = checkout.unwrap_or_else(|| startup.folder.clone());
    Checkout {
        no_checkout: no_checkout(variables, &folder),
        folder,
        confined: !command_eval(variables),
    }
}

/// The checkout, for a command line: the current folder.
pub(super) fn checkout_by_hand(startup: &Startup) -> Checkout {
    Checkout {
        folder: startup.folder.clone(),
        confined: false,
        no_checkout: no_checkout(&startup.variables, &startup.folder),
    }
}

/// What the agent would check out for this job; none by hand. `folder` is the folder that it runs in.
pub(super) fn repository(variables: &Variables, folder: &Path) -> Option<Repository> {
    variables.get("BUILDKITE_JOB_ID")?;
    let text = |name: &str| variables.text(name).unwrap_or_default();
    let flags = |name: &str, default: &str| {
        let set = variables.raw(name);
        set.map_or_else(
            || default.to_owned(),
            |set| set.to_string_lossy().into_owned(),
        )
    };
    let checkout = variables.path("BUILDKITE_BUILD_CHECKOUT_PATH");
    let checkout = checkout.as_deref().unwrap_or(folder);
    Some(Repository {
        url: text("BUILDKITE_REPO"),
        commit: text("BUILDKITE_COMMIT"),
        branch: text("BUILDKITE_BRANCH"),
        refspec: variables.text("BUILDKITE_REFSPEC"),
        pull_request: variables
            .text("BUILDKITE_PULL_REQUEST")
            .filter(|number| number != "false"),
        merged: variables
            .get("BUILDKITE_PULL_REQUEST_USING_MERGE_REFSPEC")
            .is_some_and(is_true),
        provider: text("BUILDKITE_PIPELINE_PROVIDER"),
        clone_flags: flags("BUILDKITE_GIT_CLONE_FLAGS", "-v"),
        fetch_flags: flags("BUILDKITE_GIT_FETCH_FLAGS", "-v --prune"),
        checkout_flags: flags("BUILDKITE_GIT_CHECKOUT_FLAGS", "-f"),
        submodules: variables
            .get("BUILDKITE_GIT_SUBMODULES")
            .is_none_or(is_true),
        submodule_config: text("BUILDKITE_GIT_SUBMODULE_CLONE_CONFIG"),
        build: text("BUILDKITE_BUILD_ID"),
        folder_name: checkout.file_name().unwrap_or_default().to_owned(),
    })
}

fn no_checkout(variables: &Variables, folder: &Path) -> bool {
    variables.is("BUILDKITE_SKIP_CHECKOUT", "true")
        || folder
            .read_dir()
            .map_or(true, |mut entries| entries.next().is_none())
}

/// The current folder of a job whose own command records, relative to the checkout; none at its root.
pub(super) fn below_checkout(variables: &Variables, folder: &Path) -> Option<PathBuf> {
    let checkout = variables.path("BUILDKITE_BUILD_CHECKOUT_PATH")?;
    paths::below(folder, &checkout).filter(|below| !below.as_os_str().is_empty())
}

/// The build of the job that this is; none by hand.
///
/// A container often gets only some of a job's variables: the docker plugin's `mount-buildkite-agent` passes the three that
/// the agent's commands need, and no step. Taken for a recording by hand, which uploads nothing, such a job would be green.
///
/// # Errors
/// A variable is missing that an upload needs (64).
pub(super) fn build(variables: &Variables) -> Result<Option<BuildkiteBuild>, Failure> {
    let needed = |name: &str| {
        variables.text(name).ok_or_else(|| {
            refuse(format_args!(
                "this job (BUILDKITE_JOB_ID is set) cannot upload: {name} is not set"
            ))
        })
    };
    let text = |name: &str| variables.text(name).unwrap_or_default();
    let Some(job) = variables.text("BUILDKITE_JOB_ID") else {
        return Ok(None);
    };
    needed("BUILDKITE_AGENT_ACCESS_TOKEN")?;
    Ok(Some(BuildkiteBuild {
        build: needed("BUILDKITE_BUILD_ID")?,
        job,
        step: needed("BUILDKITE_STEP_ID")?,
        variant: variant(variables),
        pipeline: format!(
            "{}/{}",
            text("BUILDKITE_ORGANIZATION_SLUG"),
            text("BUILDKITE_PIPELINE_SLUG")
        ),
        branch: text("BUILDKITE_BRANCH"),
        commit: variables
            .text("BUILDKITE_COMMIT")
            .filter(|commit| git::is_hash(commit)),
        tag: text("BUILDKITE_TAG"),
        pull_request: text("BUILDKITE_PULL_REQUEST"),
        is_retry: is_retry(variables),
        signing: signing(variables),
    }))
}

/// A hash of all that Buildkite can have put a job's values of a `matrix` into, and of its number where the step has `parallelism`: a job
/// is told nothing else of them. Retries have the same.
fn variant(variables: &Variables) -> String {
    let names = [
        "BUILDKITE_PARALLEL_JOB",
        "BUILDKITE_LABEL",
        "BUILDKITE_COMMAND",
        "BUILDKITE_PLUGINS",
        "BUILDKITE_AGENT_META_DATA_QUEUE",
    ];
    let texts = names.map(|name| variables.text(name).unwrap_or_default());
    // What is not in the file is the agent's, and differs between hosts.
    let file = variables.path("BUILDKITE_ENV_FILE");
    let file = file.and_then(|file| private::read(&file, ENV_FILE_AT_MOST).ok());
    let file = file.unwrap_or_default();
    let mut env: Vec<&str> = file
        .lines()
        .filter(|line| !line.starts_with("BUILDKITE"))
        .collect();
    env.sort_unstable();
    // An agent tag besides the queue shows in no variable of every agent.
    let machine = [std::env::consts::OS, std::env::consts::ARCH];
    let texts = texts.iter().map(String::as_str);
    let mut variant = fingerprint(texts.chain(machine).chain(env));
    variant.truncate(VARIANT);
    variant
}

/// How the agent signs what this job uploads: `pipeline upload` takes the same variables in this order.
fn signing(variables: &Variables) -> Signing {
    let services = ["BUILDKITE_AGENT_AWS_KMS_KEY", "BUILDKITE_AGENT_GCP_KMS_KEY"];
    if services.iter().any(|name| variables.text(name).is_some()) {
        return Signing::ByService;
    }
    match variables.path("BUILDKITE_AGENT_JWKS_FILE") {
        Some(file) => Signing::WithFile(file),
        None => Signing::Unsigned,
    }
}

/// Whether a job of the same step came before.
fn is_retry(variables: &Variables) -> bool {
    variables
        .text("BUILDKITE_RETRY_COUNT")
        .is_some_and(|count| count != "0")
}

/// Whether this is a job, which can download artifacts of its build.
pub(super) fn is_in_build(variables: &Variables) -> bool {
    let needed = [
        "BUILDKITE_JOB_ID",
        "BUILDKITE_BUILD_ID",
        "BUILDKITE_AGENT_ACCESS_TOKEN",
    ];
    needed.iter().all(|name| variables.get(name).is_some())
}

/// Checks that this is a job, which can read its build's meta-data and artifacts.
///
/// # Errors
/// It is not (64).
pub(super) fn check_summary(variables: &Variables) -> Result<(), Failure> {
    for name in ["BUILDKITE_JOB_ID", "BUILDKITE_AGENT_ACCESS_TOKEN"] {
        if variables.get(name).is_none() {
            return Err(refuse(format_args!(
                "`summary` must run inside a Buildkite job: {name} is not set"
            )));
        }
    }
    Ok(())
}

/// The job that a step is, where it can report to its build: one in a container may have too few of the variables.
pub(super) fn step_job(variables: &Variables) -> Option<StepJob> {
    let text = |name: &str| variables.text(name);
    text("BUILDKITE_AGENT_ACCESS_TOKEN")?;
    Some(StepJob {
        id: text("BUILDKITE_JOB_ID")?,
        step: text("BUILDKITE_STEP_KEY").or_else(|| text("BUILDKITE_STEP_ID"))?,
        label: text("BUILDKITE_LABEL"),
        agent: text("BUILDKITE_AGENT_NAME"),
        is_retry: is_retry(variables),
        around: context(variables),
    })
}

/// The job around a build: other plugins, later hooks, its time limit.
fn context(variables: &Variables) -> JobContext {
    let number = |name: &str| {
        variables
            .text(name)
            .and_then(|number| number.parse::<u32>().ok())
    };
    // The agent writes the job's variables into a file before it starts anything of the job.
    let began = variables
        .path("BUILDKITE_ENV_FILE")
        .and_then(|file| file.metadata().ok()?.modified().ok());
    let command = variables.get("BUILDKITE_COMMAND").unwrap_or_default();
    let is_blank = command.as_bytes().trim_ascii().is_empty();
    let later = [
        (AfterBuild::Plugin, has_other_plugins(variables)),
        (AfterBuild::Hook, has_later_hooks(variables)),
        (
            AfterBuild::Artifacts,
            variables.get("BUILDKITE_ARTIFACT_PATHS").is_some(),
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
fn has_other_plugins(variables: &Variables) -> bool {
    let ours = variables.raw("BUILDKITE_PLUGIN_CONFIGURATION").is_some();
    variables.text("BUILDKITE_PLUGINS").is_some_and(|plugins| {
        serde_json::from_str::<Vec<Value>>(&plugins)
            .map_or(true, |plugins| plugins.len() > usize::from(ours))
    })
}

/// Whether the agent or the repository has a hook that comes after the command.
fn has_later_hooks(variables: &Variables) -> bool {
    let repositorys = variables
        .path("BUILDKITE_BUILD_CHECKOUT_PATH")
        .map(|checkout| checkout.join(".buildkite/hooks"));
    let agents = variables.path("BUILDKITE_HOOKS_PATH");
    agents
        .into_iter()
        .chain(further_hook_folders(variables))
        .chain(repositorys)
        .flat_map(|folder| ["post-command", "pre-exit"].map(|hook| folder.join(hook)))
        .any(|hook| hook.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Class;
    use std::fs;

    /// The variables of a job that a recording needs.
    const JOB: [(&str, &str); 4] = [
        ("BUILDKITE_JOB_ID", "j"),
        ("BUILDKITE_AGENT_ACCESS_TOKEN", "t"),
        ("BUILDKITE_BUILD_ID", "b"),
        ("BUILDKITE_STEP_ID", "s"),
    ];

    #[test]
    fn a_step_knows_what_comes_after_it_in_its_job() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let file = folder.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "").unwrap();
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
            let variables = JOB.iter().chain(environment).copied();
            step_job(&variables.collect()).unwrap().around
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

    #[test]
    fn a_job_that_cannot_upload_is_no_recording_by_hand() {
        let build = |variables: &[(&str, &str)]| build(&variables.iter().copied().collect());
        assert!(build(&[]).unwrap().is_none());
        let slugs = [
            ("BUILDKITE_ORGANIZATION_SLUG", "o"),
            ("BUILDKITE_PIPELINE_SLUG", "p"),
            ("BUILDKITE_BRANCH", "main"),
        ];
        assert_eq!(
            build(&[&JOB[..], &slugs].concat()).unwrap().unwrap(),
            BuildkiteBuild {
                build: "b".into(),
                job: "j".into(),
                step: "s".into(),
                variant: variant(&JOB.iter().copied().collect()),
                pipeline: "o/p".into(),
                branch: "main".into(),
                commit: None,
                tag: String::new(),
                pull_request: String::new(),
                is_retry: false,
                signing: Signing::Unsigned,
            }
        );
        let retried = [&JOB[..], &[("BUILDKITE_RETRY_COUNT", "1")]].concat();
        assert!(build(&retried).unwrap().unwrap().is_retry);
        let file = ("BUILDKITE_AGENT_JWKS_FILE", "/key.json");
        for (more, signing) in [
            (&[file][..], Signing::WithFile("/key.json".into())),
            (&[("BUILDKITE_AGENT_JWKS_FILE", "")], Signing::Unsigned),
            (
                &[("BUILDKITE_AGENT_AWS_KMS_KEY", "k"), file],
                Signing::ByService,
            ),
            (&[("BUILDKITE_AGENT_GCP_KMS_KEY", "k")], Signing::ByService),
        ] {
            let build = build(&[&JOB[..], more].concat()).unwrap().unwrap();
            assert_eq!(build.signing, signing, "{more:?}");
        }
        for (missing, _) in &JOB[1..] {
            let some: Vec<_> = JOB
                .into_iter()
                .filter(|(name, _)| name != missing)
                .collect();
            let failure = build(&some).unwrap_err();
            assert_eq!(failure.class, Class::Config);
            assert!(failure.to_string().contains(missing), "{failure}");
        }
    }

    #[test]
    fn the_jobs_of_a_step_are_told_apart_and_a_retry_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let variant = |variables: &[(&str, &str)], env: &str| {
            let file = folder.path().join("env");
            fs::write(&file, env).unwrap();
            let file = ("BUILDKITE_ENV_FILE", file.to_str().unwrap());
            let all = JOB.iter().chain(variables).chain([&file]).copied();
            build(&all.collect()).unwrap().unwrap().variant
        };
        let env = "SYS=\"linux\"\nBUILDKITE_JOB_ID=\"j\"\n";
        let label = ("BUILDKITE_LABEL", "record linux");
        let first = variant(&[label], env);
        assert_eq!(first.len(), VARIANT);
        let again = "BUILDKITE_JOB_ID=\"k\"\nSYS=\"linux\"\n";
        let retry = [label, ("BUILDKITE_RETRY_COUNT", "1")];
        assert_eq!(variant(&retry, again), first);
        for (name, value) in [
            ("BUILDKITE_LABEL", "record darwin"),
            ("BUILDKITE_COMMAND", "eval-once pipeline --argstr s darwin"),
            ("BUILDKITE_PLUGINS", "[]"),
            ("BUILDKITE_PARALLEL_JOB", "1"),
            ("BUILDKITE_AGENT_META_DATA_QUEUE", "darwin"),
        ] {
            assert_ne!(variant(&[label, (name, value)], env), first, "{name}");
        }
        assert_ne!(variant(&[label], "SYS=\"darwin\"\n"), first);
    }

    #[test]
    fn a_summary_needs_a_job_that_can_ask_for_its_build() {
        let check =
            |variables: &[(&str, &str)]| check_summary(&variables.iter().copied().collect());
        assert!(check(&JOB).is_ok());
        assert_eq!(
            check(&[]).unwrap_err().to_string(),
            "`summary` must run inside a Buildkite job: BUILDKITE_JOB_ID is not set"
        );
        assert_eq!(check(&JOB[..1]).unwrap_err().class, Class::Config);
    }

    #[test]
    fn a_confined_job_stays_so_whatever_its_agent_writes() {
        let allowed =
            |value: &str| command_eval(&Variables::from_iter([("BUILDKITE_COMMAND_EVAL", value)]));
        assert!(command_eval(&Variables::default()));
        assert!(allowed("true") && allowed("1"));
        for value in ["false", "0", "", "yes"] {
            assert!(!allowed(value), "{value:?}");
        }
        // What the agent has written down of the job's environment, and a hook of the checkout can write anew.
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("env");
        fs::write(&file, "BUILDKITE_COMMAND_EVAL=\"true\"\n").unwrap();
        let confined = [
            ("BUILDKITE_COMMAND_EVAL", "false"),
            ("BUILDKITE_ENV_FILE", file.to_str().unwrap()),
        ];
        assert!(!command_eval(&Variables::from_iter(confined)));
    }
}
