//! Which command hooks a job has beside ours, and what that means for the job's command.
//!
//! The agent runs the command hook of every plugin that has one, in the order of `BUILDKITE_PLUGINS` but those of the checkout
//! (`./…`) last; with strict single hooks only the first of them (`PluginPhase`, `executePluginHook` of its
//! `internal/job/plugin.go`, alike in v3.83.1, v3.137.0 and v4.0.0-beta.15). The command itself is run by none of them unless
//! the hook does so, and the job is green all the same. So whether a step's command can run as its keys say is checked against
//! the job's plugins before anything is built.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::plugin::{self, PluginEntry};
use crate::exit::Failure;
use crate::keys::{Keys, refuse};

/// The command hooks of a job, as seen from ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandHooks {
    /// The agent runs only the first plugin's (`BUILDKITE_STRICT_SINGLE_HOOKS`).
    pub only_first: bool,
    /// The others; none where our own entry is not found among the plugins.
    pub others: Option<OtherHooks>,
}

/// The hooks around ours, in the order in which the agent runs them, without plugins that have no command hook.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OtherHooks {
    /// Those that run before ours.
    pub before: Vec<OtherHook>,
    /// Those that run after ours.
    pub after: Vec<OtherHook>,
}

/// Another hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherHook {
    /// Its plugin's name.
    pub name: String,
    /// What it is.
    pub kind: OtherHookKind,
}

/// What a hook beside ours is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherHookKind {
    /// Another entry of our own plugin.
    Ours {
        /// Whether it runs the job's command.
        runs_command: bool,
    },
    /// A command hook of something else, whose file exists.
    Present,
    /// A plugin that is not where an agent clones it to: it may have a command hook.
    Possible,
}

/// Where plugins are on this host.
#[derive(Debug, Clone, Copy)]
pub struct HookFolders<'a> {
    /// Where this agent clones them to: `BUILDKITE_PLUGINS_PATH`, and below it the agent's name.
    pub clones: Option<&'a Path>,
    /// The checkout, for those that are part of it.
    pub checkout: &'a Path,
}

/// What a hook of ours does about the job's command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FollowingCommand {
    /// Another hook runs it (`command: none`).
    ByAnother,
    /// It runs it at the end.
    Runs {
        /// The configuration says so (`command: after`); else it is the default.
        explicit: bool,
    },
}

impl FollowingCommand {
    /// What the keys of a step say of it, whether that is a valid value or not.
    #[must_use]
    pub fn of_step(keys: &Keys) -> Self {
        match keys.get("command").and_then(Value::as_str) {
            Some("none") => Self::ByAnother,
            command => Self::Runs {
                explicit: command.is_some(),
            },
        }
    }
}

const STRICT: &str =
    "this agent runs only the first plugin's command hook (BUILDKITE_STRICT_SINGLE_HOOKS=true)";

impl CommandHooks {
    /// Those around the plugin's entry that has this configuration.
    #[must_use]
    pub fn of_plugin(
        plugins: Option<&str>,
        configuration: Option<&str>,
        name: Option<&str>,
        folders: HookFolders<'_>,
        only_first: bool,
    ) -> Self {
        let others = plugins.and_then(plugin::entries).and_then(|mut entries| {
            entries.sort_by_key(PluginEntry::is_of_checkout);
            let at = plugin::our_entry(&entries, configuration?, name)?;
            let ours = entries[at].name();
            let others = |entries: &[PluginEntry]| {
                entries
                    .iter()
                    .filter_map(|entry| OtherHook::of(entry, &ours, folders))
                    .collect()
            };
            Some(OtherHooks {
                before: others(&entries[..at]),
                after: others(&entries[at + 1..]),
            })
        });
        Self { only_first, others }
    }

    /// Those of the agent's own: `folders` are what it has besides its `hooks-path`, and `program` is ours. Strict single hooks
    /// are of plugins only.
    #[must_use]
    pub fn of_agent(folders: &[PathBuf], program: Option<&Path>) -> Self {
        let program = program.and_then(|program| program.canonicalize().ok());
        let after = folders
            .iter()
            .filter_map(|folder| command_hook(folder))
            .filter(|hook| hook.canonicalize().ok() != program)
            .map(|hook| OtherHook {
                name: hook.display().to_string(),
                kind: OtherHookKind::Present,
            });
        Self {
            only_first: false,
            others: Some(OtherHooks {
                before: Vec::new(),
                after: after.collect(),
            }),
        }
    }

    /// Refuses a job that would be green although not all of it was done. `has_command` says whether the job has a command
    /// that is not ours. Returns a warning where the command may run twice.
    ///
    /// # Errors
    /// The command would not run, or would run before everything is built; or another entry of our plugin would not run (64).
    pub fn check(
        &self,
        command: FollowingCommand,
        has_command: bool,
    ) -> Result<Option<String>, Failure> {
        let others = self.others.as_ref();
        let after = others.map_or(&[][..], |others| &others.after);
        let ours = |other: &&OtherHook| matches!(other.kind, OtherHookKind::Ours { .. });
        let ours_after = after.iter().find(ours);
        if self.only_first && ours_after.is_some() {
            return Err(passed_over("a later entry of this plugin would not run"));
        }
        match command {
            FollowingCommand::ByAnother => self.check_another(after, has_command).map(|()| None),
            FollowingCommand::Runs { .. } if !has_command => Ok(None),
            FollowingCommand::Runs { .. } if ours_after.is_some() => Err(refuse(
                "the job's command would run before a later entry of this plugin is done",
            )
            .hint("set `command: none` in every entry but the last; put a recording last, or into a step of its own")),
            FollowingCommand::Runs { explicit: true } => Ok(None),
            FollowingCommand::Runs { explicit: false } => {
                let present = |others: &[OtherHook]| {
                    let found = others.iter().find(|other| other.kind == OtherHookKind::Present);
                    found.map(|other| other.name.clone())
                };
                let before = others.and_then(|others| present(&others.before));
                Ok(match (present(after), before) {
                    _ if self.only_first => None,
                    (Some(name), _) => Some(format!(
                        "the job's command may run twice: {name}, after this plugin, has a command hook too; \
                         set `command: none` to leave the command to {name}, or `command: after` if this is intended"
                    )),
                    (None, Some(name)) => Some(format!(
                        "the job's command may run twice: {name}, before this plugin, has a command hook too; \
                         put {name} after this plugin and set `command: none`, or set `command: after` if this is intended"
                    )),
                    (None, None) => None,
                })
            }
        }
    }

    fn check_another(&self, after: &[OtherHook], has_command: bool) -> Result<(), Failure> {
        let Some(others) = &self.others else {
            return if has_command {
                Err(refuse(
                    "`command: none` leaves the job's command to another plugin, but no entry of BUILDKITE_PLUGINS has this configuration: \
                     which plugins come after it is unknown",
                )
                .hint(RUN_IT_HERE))
            } else {
                Ok(())
            };
        };
        let runs = |other: &&OtherHook| {
            !matches!(
                other.kind,
                OtherHookKind::Ours {
                    runs_command: false
                }
            )
        };
        match after.iter().find(runs) {
            Some(other) if self.only_first => Err(refuse(format_args!(
                "`command: none` leaves the job's command to {0}, but {STRICT}: that of {0} would not run",
                other.name
            ))
            .hint(format!("{RUN_IT_HERE}, or start the agent without strict-single-hooks"))),
            None if has_command => {
                let early = others.before.first();
                let why = match early {
                    Some(other) => format!(
                        "the only other one, of {}, runs before this one",
                        other.name
                    ),
                    None => "no plugin after this one has one".into(),
                };
                Err(refuse(format_args!(
                    "`command: none` leaves the job's command to another command hook, but {why}: the command would not run after the build"
                ))
                .hint(format!("put the plugin that runs the command after this one, or {RUN_IT_HERE}")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses an entry of ours whose command hook the agent does not run, because another one comes first.
    ///
    /// # Errors
    /// Another one comes first (64).
    pub fn check_first(&self) -> Result<(), Failure> {
        let before = self.others.iter().flat_map(|others| &others.before);
        let mut certain = before.filter(|other| other.kind != OtherHookKind::Possible);
        match certain.next() {
            Some(other) if self.only_first => Err(passed_over(&match other.kind {
                OtherHookKind::Ours { .. } => {
                    "an earlier entry of this plugin runs instead of this one".to_owned()
                }
                _ => format!("the hook of {} runs instead of this plugin's", other.name),
            })),
            _ => Ok(()),
        }
    }
}

const RUN_IT_HERE: &str = "remove `command: none`, so that the command runs after the build";

/// The refusal of a job in which an entry of ours would not run.
fn passed_over(why: &str) -> Failure {
    refuse(format_args!("{STRICT}, so {why}")).hint(
        "put each of them into a step of its own, or start the agent without strict-single-hooks",
    )
}

impl OtherHook {
    /// What an entry is to one of the plugin with the name `ours`; none where it has no command hook.
    fn of(entry: &PluginEntry, ours: &str, folders: HookFolders<'_>) -> Option<Self> {
        let name = entry.name();
        let kind = if name == ours {
            OtherHookKind::Ours {
                runs_command: FollowingCommand::of_step(&entry.configuration)
                    != FollowingCommand::ByAnother,
            }
        } else {
            match entry.hooks(folders).map(|hooks| command_hook(&hooks)) {
                Some(None) => return None,
                Some(Some(_)) => OtherHookKind::Present,
                None => OtherHookKind::Possible,
            }
        };
        Some(Self { name, kind })
    }
}

impl PluginEntry {
    /// The folder with the hooks of this plugin, where it is on this host.
    fn hooks(&self, folders: HookFolders<'_>) -> Option<PathBuf> {
        let folder = if self.is_of_checkout() {
            folders.checkout.join(self.location())
        } else {
            let clone = folders.clones?.join(self.identifier());
            clone.join(self.folder_of_repository())
        };
        Some(folder.join("hooks")).filter(|hooks| hooks.is_dir())
    }
}

/// The command hook in a folder of hooks, as the agent looks for it (`Find` of its `internal/job/hook/hook.go`).
fn command_hook(folder: &Path) -> Option<PathBuf> {
    ["command", "command.ps1"]
        .iter()
        .map(|name| folder.join(name))
        .find(|file| file.metadata().is_ok_and(|metadata| !metadata.is_dir()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Class;
    use std::fs;
    use tempfile::TempDir;

    const OURS: &str = r#"{"attr":"a","command":"none"}"#;

    /// The hooks around the entry with the configuration [`OURS`], where `clones` has the plugins.
    fn around(clones: &Path, plugins: &str, only_first: bool) -> CommandHooks {
        let plugins = plugins.replace("OURS", OURS);
        let folders = HookFolders {
            clones: Some(clones),
            checkout: clones,
        };
        CommandHooks::of_plugin(
            Some(&plugins),
            Some(OURS),
            Some("EVAL_ONCE"),
            folders,
            only_first,
        )
    }

    #[test]
    fn a_plugin_whose_folder_is_elsewhere_may_have_a_command_hook() {
        let clones = TempDir::new().unwrap();
        let check = |plugins: &str, only_first| {
            around(clones.path(), plugins, only_first).check(FollowingCommand::ByAnother, true)
        };
        for after in [
            r#""github.com/o/docker-buildkite-plugin#v1""#,
            r#"{"./here":null}"#,
        ] {
            let plugins = format!(r#"[{{"o/eval-once#v1":OURS}},{after}]"#);
            assert_eq!(check(&plugins, false).unwrap(), None);
            assert_eq!(check(&plugins, true).unwrap_err().class, Class::Config);
        }
        // A hook that only may exist is no reason to refuse, or to warn.
        let runs = around(clones.path(), r#"["x#v1",{"o/eval-once#v1":OURS}]"#, true);
        assert!(runs.check_first().is_ok());
        let warned = runs.check(FollowingCommand::Runs { explicit: false }, true);
        assert_eq!(warned.unwrap(), None);
    }

    #[test]
    fn a_plugin_is_found_where_the_agent_clones_it() {
        let clones = TempDir::new().unwrap();
        for (reference, folder) in [
            (
                "github.com/o/docker-buildkite-plugin#v1",
                "github-com-o-docker-buildkite-plugin-v1",
            ),
            (
                "github.com/o/r/a/docker#v1",
                "github-com-o-r-a-docker-v1/a/docker",
            ),
            (
                "https://h.org/r.git/docker#v1",
                "h-org-r-git-docker-v1/docker",
            ),
            (
                "https://gitlab.com/o/p/docker.git#v1",
                "gitlab-com-o-p-docker-git-v1",
            ),
            ("./plugins/docker", "plugins/docker"),
        ] {
            let hooks = clones.path().join(folder).join("hooks");
            let plugins = format!(r#"[{{"o/eval-once#v1":OURS}},"{reference}"]"#);
            let kind = || {
                let others = around(clones.path(), &plugins, false).others.unwrap();
                others.after.first().map(|other| other.kind)
            };
            assert_eq!(kind(), Some(OtherHookKind::Possible), "{reference}");
            fs::create_dir_all(&hooks).unwrap();
            assert_eq!(kind(), None, "{reference}");
            fs::write(hooks.join("command"), "").unwrap();
            assert_eq!(kind(), Some(OtherHookKind::Present), "{reference}");
        }
    }

    #[test]
    fn a_command_is_left_to_no_plugin_that_is_not_found() {
        let nowhere = Path::new("/nowhere");
        for plugins in ["[]", "{", r#"[{"o/eval-once#v1":{"attr":"b"}}]"#] {
            let hooks = around(nowhere, plugins, false);
            let refusal = hooks.check(FollowingCommand::ByAnother, true).unwrap_err();
            assert!(refusal.to_string().contains("BUILDKITE_PLUGINS"));
            assert!(hooks.check(FollowingCommand::ByAnother, false).is_ok());
            assert!(
                hooks
                    .check(FollowingCommand::Runs { explicit: false }, true)
                    .is_ok()
            );
        }
    }

    #[test]
    fn a_command_is_left_to_a_further_hook_of_the_agent_unless_that_is_ours() {
        let folder = TempDir::new().unwrap();
        let [ours, theirs, none] = ["ours", "theirs", "none"].map(|name| {
            let path = folder.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        });
        fs::write(folder.path().join("program"), "").unwrap();
        let program = folder.path().join("program");
        std::os::unix::fs::symlink(&program, ours.join("command")).unwrap();
        fs::write(theirs.join("command"), "").unwrap();
        let check = |folders: &[PathBuf]| {
            CommandHooks::of_agent(folders, Some(&program)).check(FollowingCommand::ByAnother, true)
        };
        assert!(check(&[ours.clone(), theirs]).is_ok());
        assert!(check(&[ours, none]).is_err());
        assert!(check(&[]).is_err());
    }
}
