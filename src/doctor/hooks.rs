//! The agent's own hooks: whether they are ours, and whether the agent can run them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::{Doctor, Outcome};
use crate::buildkite::agent_config;
use crate::buildkite::hook_script::{HookScript, ScriptRun};
use crate::command_line::find_program;
use crate::exit::Failure;
use crate::nix::version::numbers;

/// From this version on the agent runs binary hooks without an experiment.
const RUNS_BINARIES: (u32, u32) = (3, 85);

/// How much of a hook is read, in bytes.
const READ_AT_MOST: usize = 64 << 10;

/// What is known of the agent's hooks without asking it.
#[derive(Debug, Clone, Default)]
pub struct AgentHooks {
    /// Their folders, in a job.
    pub folders: Vec<PathBuf>,
    /// Whether only the first plugin's command hook runs, in a job.
    pub strict: Option<bool>,
    /// The agent's experiments include `polyglot-hooks`.
    pub polyglot: bool,
    /// Where the file with the agent's settings may be, best first.
    pub configs: Vec<PathBuf>,
}

/// What a hook is.
enum HookKind {
    /// This program.
    Program { executable: bool },
    /// A script that runs this program, as far as one can read that.
    Script(Vec<ScriptRun>),
    /// A script that names this program, and does not run it for what the hook is for.
    Mention,
    /// A link to nothing.
    Dangling(PathBuf),
    /// Something else.
    Other,
}

impl Doctor<'_> {
    /// The file with the agent's settings, where this is no job.
    fn config(&self) -> Option<(PathBuf, String)> {
        let configs = self.order.hooks.configs.iter();
        configs
            .filter(|file| file.is_file())
            .find_map(|file| Some((file.clone(), fs::read_to_string(file).ok()?)))
    }

    fn hook_folders(&self) -> Vec<PathBuf> {
        if !self.order.hooks.folders.is_empty() {
            return self.order.hooks.folders.clone();
        }
        let Some((_, text)) = self.config() else {
            return Vec::new();
        };
        let first = agent_config::setting(&text, "hooks-path").map(PathBuf::from);
        let further = agent_config::setting(&text, "additional-hooks-paths").unwrap_or_default();
        let further = further
            .split(',')
            .map(str::trim)
            .filter(|it| !it.is_empty());
        first
            .into_iter()
            .chain(further.map(PathBuf::from))
            .collect()
    }

    /// The agent's `command` hook.
    pub(super) fn command_hook(&mut self) -> Result<Outcome, Failure> {
        Ok(self.hook("command"))
    }

    /// The agent's `environment` hook.
    pub(super) fn environment_hook(&mut self) -> Result<Outcome, Failure> {
        Ok(self.hook("environment"))
    }

    fn hook(&self, name: &str) -> Outcome {
        let folders = self.hook_folders();
        if folders.is_empty() {
            return Outcome::not_applicable(
                "the agent's hooks-path is not known here; the plugin needs no hooks of the agent's",
            );
        }
        let hooks: Vec<(PathBuf, HookKind)> = folders
            .iter()
            .map(|folder| folder.join(name))
            .filter_map(|file| Some((file.clone(), self.kind_of(name, &file)?)))
            .collect();
        if hooks.is_empty() {
            return Outcome::not_applicable(format!(
                "{} has no {name} hook; the plugin needs none",
                folders[0].display()
            ));
        }
        let mut ours = Vec::new();
        for (file, kind) in &hooks {
            if let Some(wrong) = self.wrong_with(name, file, kind) {
                return wrong;
            }
            if !matches!(kind, HookKind::Other | HookKind::Mention) {
                ours.push(file.display().to_string());
            }
        }
        let mention = hooks.iter().find(|it| matches!(it.1, HookKind::Mention));
        match (&ours[..], hooks.len()) {
            ([], _) if let Some((file, _)) = mention => Outcome::not_applicable(format!(
                "{} names eval-once, and does not run {}; the plugin needs none",
                file.display(),
                wanted(name)
            )),
            ([], _) => Outcome::not_applicable(format!(
                "{} is not eval-once's; the plugin needs none",
                hooks[0].0.display()
            )),
            (_, 2..) if name == "command" => Outcome::warning(
                format!(
                    "the agent has {} command hooks, and runs each: a job's command may run twice",
                    hooks.len()
                ),
                format!("keep one of them: {}", ours[0]),
            ),
            _ => Outcome::ok(format!("{} is eval-once's", ours[0])),
        }
    }

    /// What a hook is; none where there is none.
    fn kind_of(&self, name: &str, file: &Path) -> Option<HookKind> {
        let link = file.symlink_metadata().ok()?;
        let Ok(metadata) = file.metadata() else {
            let target = link.is_symlink().then(|| file.read_link().ok()).flatten();
            return Some(HookKind::Dangling(target.unwrap_or_default()));
        };
        if !metadata.is_file() {
            return None;
        }
        let target = file.canonicalize().ok();
        let program = self.order.program.as_deref();
        let program = program.and_then(|program| program.canonicalize().ok());
        let is_named_so = target
            .as_deref()
            .and_then(Path::file_name)
            .is_some_and(|name| name == "eval-once");
        let begin = read_begin(file);
        let is_binary = begin.starts_with(b"\x7fELF") || begin.starts_with(b"\xcf\xfa\xed\xfe");
        let is_copy = || {
            program
                .as_deref()
                .is_some_and(|program| is_copy(file, program))
        };
        if is_binary && (target.is_some() && target == program || is_named_so || is_copy()) {
            let executable = metadata.permissions().mode() & 0o111 != 0;
            return Some(HookKind::Program { executable });
        }
        if is_binary {
            return Some(HookKind::Other);
        }
        let text = String::from_utf8_lossy(&begin);
        let script = match name {
            "command" => HookScript::read(&text, &["hook", "command"]),
            _ => HookScript::read(&text, &["environment"]),
        };
        Some(match script.runs {
            runs if !runs.is_empty() => HookKind::Script(runs),
            _ if script.names_it => HookKind::Mention,
            _ => HookKind::Other,
        })
    }

    /// What is wrong with a hook of ours.
    fn wrong_with(&self, name: &str, file: &Path, kind: &HookKind) -> Option<Outcome> {
        let shown = file.display();
        match kind {
            HookKind::Dangling(target) => Some(Outcome::failure(
                format!(
                    "{shown} is a link to {}, which does not exist",
                    target.display()
                ),
                "link it to the eval-once program, or remove it",
            )),
            HookKind::Program { executable: false } => Some(Outcome::failure(
                format!("{shown} is not executable: every job of the agent fails"),
                format!("run `chmod +x {shown}`"),
            )),
            HookKind::Program { .. } if !self.runs_binaries() => Some(Outcome::failure(
                format!(
                    "{shown} is a binary, which this agent (before 3.85) runs only with the experiment polyglot-hooks"
                ),
                "use the script of docs/agents.md, or a later agent",
            )),
            HookKind::Script(runs) => runs
                .iter()
                .find_map(|run| self.wrong_with_run(name, file, run)),
            HookKind::Program { .. } | HookKind::Mention | HookKind::Other => None,
        }
    }

    /// What is wrong with how a script runs this program.
    fn wrong_with_run(&self, name: &str, file: &Path, run: &ScriptRun) -> Option<Outcome> {
        let shown = file.display();
        let is_command = name == "command";
        if is_command {
            let mend =
                "add `export BUILDKITE_HOOK_SCOPE=global` above `exec eval-once hook command`";
            match run.scope.as_deref() {
                // A variable has a value that is not known here.
                Some("agent" | "global") => {}
                Some(scope) if scope.contains('$') => {}
                None => {
                    return Some(Outcome::failure(
                        format!(
                            "{shown} does not export BUILDKITE_HOOK_SCOPE: it is taken for a plugin's hook, and refuses every other job"
                        ),
                        mend,
                    ));
                }
                Some(scope) => {
                    return Some(Outcome::failure(
                        format!(
                            "{shown} sets BUILDKITE_HOOK_SCOPE to {scope:?}: it is taken for a plugin's hook, and refuses every other job"
                        ),
                        mend,
                    ));
                }
            }
        }
        if let Some(why) = self.missing_program(run) {
            let seen = format!("{shown} runs {}, which {why}", run.program);
            let mend = "write the whole path of the eval-once program";
            // By hand, PATH may be another one than in jobs. And the plugin needs nothing of the environment hook.
            let fails = is_command && (self.order.is_job || run.program.contains('/'));
            return Some(if fails {
                Outcome::failure(format!("{seen}: every job of the agent fails"), mend)
            } else {
                Outcome::warning(seen, mend)
            });
        }
        if is_command && !run.by_exec {
            return Some(Outcome::warning(
                format!(
                    "{shown} runs eval-once without `exec`: a cancelled job has no time to stop Nix"
                ),
                "write `exec eval-once hook command`",
            ));
        }
        (!is_command && !run.is_captured).then(|| {
            Outcome::warning(
                format!("{shown} only prints what `eval-once environment` would set"),
                "write `eval \"$(eval-once environment)\"`",
            )
        })
    }

    /// Why the program that a script runs does not start, where one can know that without the script's shell.
    fn missing_program(&self, run: &ScriptRun) -> Option<&'static str> {
        let program = run.program.as_str();
        let is_name = !program.contains('/');
        let is_unknown = program.contains('$')
            || is_name && run.may_have_other_path
            || !is_name && !program.starts_with('/');
        if is_unknown || find_program(program.as_ref(), &self.order.path).is_some() {
            return None;
        }
        Some(if is_name {
            "is not on PATH"
        } else {
            "is no program"
        })
    }

    fn runs_binaries(&self) -> bool {
        let version = self.found.agent.as_deref().and_then(numbers);
        self.order.hooks.polyglot || version.is_none_or(|version| version >= RUNS_BINARIES)
    }

    /// Whether the agent runs only the first plugin's command hook.
    pub(super) fn strict_single_hooks(&mut self) -> Result<Outcome, Failure> {
        let of_config = || {
            let (_, text) = self.config()?;
            let value = agent_config::setting(&text, "strict-single-hooks");
            Some(value.is_some_and(|value| agent_config::is_true(value.as_ref())))
        };
        Ok(match self.order.hooks.strict.or_else(of_config) {
            None => Outcome::not_applicable("the agent's settings are not known here"),
            Some(false) => Outcome::ok("the agent runs the command hook of every plugin"),
            Some(true) => Outcome::warning(
                "strict-single-hooks: the agent runs only the first plugin's command hook, so a step with another plugin before eval-once is refused",
                "put eval-once first below `plugins`, or start the agent without strict-single-hooks",
            ),
        })
    }
}

/// What a hook of this name runs, where it is ours.
fn wanted(name: &str) -> &'static str {
    match name {
        "command" => "`eval-once hook command`",
        _ => "`eval-once environment`",
    }
}

/// The begin of a file.
fn read_begin(file: &Path) -> Vec<u8> {
    use std::io::Read as _;
    let mut begin = Vec::new();
    if let Ok(file) = fs::File::open(file) {
        let _ = file.take(READ_AT_MOST as u64).read_to_end(&mut begin);
    }
    begin
}

/// Whether two files hold the same.
fn is_copy(file: &Path, of: &Path) -> bool {
    let length = |path: &Path| path.metadata().ok().map(|it| it.len());
    length(file) == length(of) && fs::read(file).ok() == fs::read(of).ok()
}
