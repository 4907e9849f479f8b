//! The host's settings, which no pipeline chooses: from the environment to [`Host`], and to what the `environment` hook puts
//! into a job.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use super::Startup;
use super::job::further_hook_folders;
use super::variables::Variables;
use crate::buildkite::agent_config::is_true;
use crate::doctor::{AgentHooks, DoctorOrder};
use crate::environment::{HostEnvironment, nix_folders};
use crate::exit::Failure;
use crate::host::Host;
use crate::keys::refuse;
use crate::nix::settings::NixSettings;
use crate::paths;
use crate::share_keys::ShareSetting;

/// The host's settings.
///
/// # Errors
/// One of them makes no sense (64).
pub(super) fn host(startup: &Startup) -> Result<Host, Failure> {
    let variables = &startup.variables;
    let evaluations = match variables.text("EVAL_ONCE_EVALUATIONS") {
        Some(number) => number.parse().map_err(|_| {
            refuse(format_args!(
                "EVAL_ONCE_EVALUATIONS is {number:?}, and must be a number from 1 on"
            ))
        })?,
        None => NonZeroUsize::new(startup.cores.get() / 2).unwrap_or(NonZeroUsize::MIN),
    };
    let recorded_only = match variables.text("EVAL_ONCE_POLICY").as_deref() {
        None => false,
        Some("recorded-only") => true,
        Some(other) => {
            return Err(refuse(format_args!(
                "EVAL_ONCE_POLICY is {other:?}, and must be `recorded-only`"
            )));
        }
    };
    let share = match variables.text("EVAL_ONCE_SHARE") {
        Some(text) => Some(ShareSetting::parse(&text).map_err(|wrong| {
            refuse(format_args!("EVAL_ONCE_SHARE {wrong}"))
                .hint("set it to `artifact`, the URL of a store, or `false`")
        })?),
        None => None,
    };
    // Only the plugin's hooks use EVAL_ONCE_BIN. TMPDIR is Nix's as well, which fails on a relative one in words of its own
    // (2.8: "not an absolute path").
    for name in ["EVAL_ONCE_BIN", "TMPDIR"] {
        variables.absolute(name)?;
    }
    Ok(Host {
        state: state(variables)?,
        evaluations,
        recorded_only,
        share,
        nix: nix_settings(variables),
        temporary: temporary(variables),
    })
}

/// What a checkup of this host looks at. A wrong setting is one of its findings.
pub(super) fn doctor(startup: &Startup, write_share: bool) -> DoctorOrder {
    let variables = &startup.variables;
    let folders = variables.path("BUILDKITE_HOOKS_PATH").into_iter();
    let strict = variables.get("BUILDKITE_STRICT_SINGLE_HOOKS");
    let experiments = variables.text("BUILDKITE_AGENT_EXPERIMENT");
    // Where an agent looks for its settings (`DefaultConfigFilePaths` of its `clicommand/agent_start.go`).
    let named = ["BUILDKITE_CONFIG_PATH", "BUILDKITE_AGENT_CONFIG"];
    let configs = named.iter().filter_map(|name| variables.path(name));
    let home = variables.path("HOME");
    let configs = configs.chain(home.map(|home| home.join(".buildkite-agent/buildkite-agent.cfg")));
    let everywhere = ["/opt/homebrew/etc", "/usr/local/etc", "/etc"];
    let everywhere =
        everywhere.map(|folder| Path::new(folder).join("buildkite-agent/buildkite-agent.cfg"));
    DoctorOrder {
        host: host(startup),
        nix_config: variables.text("NIX_CONFIG").unwrap_or_default(),
        temporary: temporary(variables),
        path: variables.raw("PATH").unwrap_or_default().to_owned(),
        program: startup.program.clone(),
        is_job: variables.get("BUILDKITE_JOB_ID").is_some(),
        hooks: AgentHooks {
            folders: folders.chain(further_hook_folders(variables)).collect(),
            strict: strict.map(is_true),
            polyglot: experiments
                .is_some_and(|names| names.split(',').any(|name| name == "polyglot-hooks")),
            configs: configs.chain(everywhere).collect(),
        },
        write_share,
    }
}

/// The folder for temporary files, also where the host's settings are refused.
pub(super) fn temporary(variables: &Variables) -> PathBuf {
    variables.path("TMPDIR").unwrap_or_else(|| "/tmp".into())
}

/// Where Nix looks for its settings.
fn nix_settings(variables: &Variables) -> NixSettings {
    let system = variables.path("NIX_CONF_DIR");
    let system = system.unwrap_or_else(|| "/etc/nix".into());
    let mut files = vec![system.join("nix.conf")];
    if let Some(named) = variables.raw("NIX_USER_CONF_FILES") {
        // Of these, the first counts most.
        let named: Vec<PathBuf> = std::env::split_paths(named).collect();
        files.extend(named.into_iter().rev());
    } else {
        let config = variables.path("XDG_CONFIG_HOME");
        let config = config.or_else(|| Some(variables.path("HOME")?.join(".config")));
        files.extend(config.map(|config| config.join("nix/nix.conf")));
    }
    NixSettings {
        files,
        text: variables.text("NIX_CONFIG").unwrap_or_default(),
        remote: variables.text("NIX_REMOTE").unwrap_or_default(),
        state: variables
            .path("NIX_STATE_DIR")
            .unwrap_or_else(|| "/nix/var/nix".into()),
    }
}

/// The state folder.
fn state(variables: &Variables) -> Result<Option<PathBuf>, Failure> {
    let folder = match variables.absolute("EVAL_ONCE_STATE_DIR")? {
        Some(named) => Some(named),
        None => state_home(variables)?.map(|home| home.join("eval-once")),
    };
    // Nix gets paths below it, and reads them by their letters.
    Ok(folder.map(|folder| paths::without_dots(&folder)))
}

/// Where programs keep their state. A relative `XDG_STATE_HOME` is ignored, as its specification says.
fn state_home(variables: &Variables) -> Result<Option<PathBuf>, Failure> {
    match variables.absolute("XDG_STATE_HOME") {
        Ok(Some(folder)) => Ok(Some(folder)),
        _ => Ok(variables
            .absolute("HOME")?
            .map(|home| home.join(".local/state"))),
    }
}

/// What a job's environment is made from.
pub(super) fn host_environment(startup: &Startup) -> HostEnvironment {
    let variables = &startup.variables;
    // A wrong setting is reported by what uses it; this is the environment of every job of the host.
    let folder = |name: &str| variables.absolute(name).ok().flatten();
    let state_is_named = variables.get("EVAL_ONCE_STATE_DIR").is_some();
    HostEnvironment {
        path: variables.raw("PATH").unwrap_or_default().to_owned(),
        program: startup.program.clone(),
        named: variables.path("EVAL_ONCE_BIN"),
        state: state(variables).ok().flatten().filter(|_| !state_is_named),
        nix_folders: nix_folders(
            folder("HOME").as_deref(),
            state_home(variables).ok().flatten().as_deref(),
            variables.get("USER"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::startup;
    use super::*;
    use crate::exit::Class;

    fn host_of(variables: &[(&str, &str)]) -> Result<Host, Failure> {
        host(&startup(variables))
    }

    #[test]
    fn a_host_setting_that_makes_no_sense_is_refused_by_name() {
        for (name, value) in [
            ("EVAL_ONCE_EVALUATIONS", "0"),
            ("EVAL_ONCE_EVALUATIONS", "x"),
            ("EVAL_ONCE_POLICY", "x"),
            ("EVAL_ONCE_STATE_DIR", "state"),
            ("EVAL_ONCE_BIN", "bin/eval-once"),
            ("TMPDIR", "tmp"),
            ("HOME", "home"),
        ] {
            let refusal = host_of(&[(name, value)]).unwrap_err();
            assert_eq!(refusal.class, Class::Config, "{name}");
            assert!(refusal.to_string().contains(name), "{refusal}");
        }
    }

    #[test]
    fn the_state_folder_is_the_nearest_that_is_named() {
        let state = |variables: &[(&str, &str)]| {
            let state = host_of(variables).unwrap().state?;
            Some(state.to_str().unwrap().to_owned())
        };
        let home = ("HOME", "/home/ci");
        let xdg = ("XDG_STATE_HOME", "/xdg");
        let named = ("EVAL_ONCE_STATE_DIR", "/a/./b/../state");
        assert_eq!(state(&[]), None);
        let of = |path: &str| Some(path.to_owned());
        assert_eq!(state(&[home]), of("/home/ci/.local/state/eval-once"));
        assert_eq!(state(&[home, xdg]), of("/xdg/eval-once"));
        assert_eq!(state(&[home, xdg, named]), of("/a/state"));
        let relative = ("XDG_STATE_HOME", "xdg");
        assert_eq!(
            state(&[home, relative]),
            of("/home/ci/.local/state/eval-once")
        );
    }

    #[test]
    fn nix_reads_the_systems_settings_and_then_the_users() {
        let files = |variables: &[(&str, &str)]| -> Vec<String> {
            let files = host_of(variables).unwrap().nix.files;
            let files = files.iter().map(|file| file.to_str().unwrap().to_owned());
            files.collect()
        };
        let home = ("HOME", "/home/ci");
        assert_eq!(
            files(&[home]),
            ["/etc/nix/nix.conf", "/home/ci/.config/nix/nix.conf"]
        );
        let xdg = ("XDG_CONFIG_HOME", "/xdg");
        let system = ("NIX_CONF_DIR", "/conf");
        assert_eq!(
            files(&[home, xdg, system]),
            ["/conf/nix.conf", "/xdg/nix/nix.conf"]
        );
        let named = ("NIX_USER_CONF_FILES", "/first:/second");
        assert_eq!(
            files(&[home, xdg, named]),
            ["/etc/nix/nix.conf", "/second", "/first"]
        );
    }

    #[test]
    fn temporary_files_are_made_where_tmpdir_says() {
        let temporary = |variables: &[(&str, &str)]| host_of(variables).unwrap().temporary;
        assert_eq!(temporary(&[("TMPDIR", "/big")]), PathBuf::from("/big"));
        assert_eq!(temporary(&[("TMPDIR", "")]), PathBuf::from("/tmp"));
    }

    #[test]
    fn a_wrong_setting_leaves_the_environment_of_other_jobs_alone() {
        let of = |variables: &[(&str, &str)]| host_environment(&startup(variables));
        let wrong = of(&[("EVAL_ONCE_STATE_DIR", "state"), ("HOME", "home")]);
        assert_eq!(wrong.state, None);
        let named = of(&[("EVAL_ONCE_STATE_DIR", "/state")]);
        assert_eq!(named.state, None, "the job has it already");
        let by_default = of(&[("HOME", "/home/ci")]);
        assert_eq!(
            by_default.state,
            Some("/home/ci/.local/state/eval-once".into())
        );
    }
}
