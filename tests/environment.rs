//! The job's environment: `eval-once environment` as text for a shell, as the agent's own hook, and in the plugin's hook.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs,
    os::unix::{ffi::OsStringExt, fs::symlink},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;

use crate::support::{
    EVAL_ONCE,
    agent::{Job, is_old, plugin_repository},
    program::Program,
    stand_in::write_program,
    store::Store,
    tool,
};

type Variables = BTreeMap<OsString, OsString>;

/// What `env -0` printed.
fn variables(text: &[u8]) -> Variables {
    text.split(|byte| *byte == 0)
        .filter_map(|variable| {
            let at = variable.iter().position(|byte| *byte == b'=')?;
            let name = OsString::from_vec(variable[..at].to_vec());
            Some((name, OsString::from_vec(variable[at + 1..].to_vec())))
        })
        .collect()
}

/// The variables of a shell that has evaluated what we print, run with these.
#[track_caller]
fn evaluated(shell: &str, program: &Path, environment: &[(&str, &OsStr)]) -> Variables {
    let output = Command::new(tool(shell).unwrap())
        .args([
            "-euc",
            r#"text=$("$0" environment); eval "$text"; exec "$1" -0"#,
        ])
        .arg(program)
        .arg(tool("env").unwrap())
        .env_clear()
        .envs(environment.iter().copied())
        .current_dir("/")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{shell}: {}: {stderr}",
        output.status
    );
    assert_eq!(stderr, "", "{shell}");
    let mut seen = variables(&output.stdout);
    // The shell's own.
    for name in ["_", "PWD", "OLDPWD", "SHLVL"] {
        seen.remove(OsStr::new(name));
    }
    seen
}

fn our_folder() -> &'static Path {
    Path::new(EVAL_ONCE).parent().unwrap()
}

/// The folders that this `PATH` has.
fn folders(variables: &Variables) -> Vec<PathBuf> {
    std::env::split_paths(&variables[OsStr::new("PATH")]).collect()
}

/// A folder of programs without Nix: what a job needs at least.
fn without_nix(folder: &Path) -> PathBuf {
    let tools = folder.join("tools");
    fs::create_dir(&tools).unwrap();
    for name in ["bash", "sh", "env", "cat", "git"] {
        symlink(tool(name).unwrap(), tools.join(name)).unwrap();
    }
    tools
}

/// Where Nix is found whatever the user's home has.
fn is_installed_for_all() -> bool {
    [
        "/nix/var/nix/profiles/default/bin",
        "/run/current-system/sw/bin",
    ]
    .iter()
    .any(|folder| Path::new(folder).join("nix-store").exists())
}

#[test]
fn a_shell_that_evaluates_it_has_the_same_path_and_after_it_our_folder() {
    let hostile = [
        "/usr/bin:/bin",
        "/with space:/it's:/usr/bin",
        "/\"double\":/$HOME:/`touch /tmp/x`:/$(exit 3):/usr/bin",
        "/back\\slash:/new\nline:/end\n:/*:/~:/usr/bin",
        "/semi;colon:/a&b:/a|b:/#hash:/!bang:/usr/bin",
        "/déjà vu 🚀:~:/usr/bin",
    ];
    for shell in ["sh", "bash"] {
        for path in hostile {
            let seen = evaluated(
                shell,
                Path::new(EVAL_ONCE),
                &[
                    ("PATH", OsStr::new(path)),
                    ("HOME", OsStr::new("/home/nobody")),
                ],
            );
            let was: Vec<PathBuf> = std::env::split_paths(path).collect();
            let is = folders(&seen);
            assert_eq!(
                is[..was.len()],
                was,
                "{shell}: what was there stays as it was"
            );
            assert_eq!(is.last().unwrap(), our_folder(), "{shell}");
        }
    }
}

#[test]
fn a_path_that_is_not_unicode_stays_as_it_was() {
    let path = OsString::from_vec(b"/usr/bin:/caf\xe9 bar".to_vec());
    let seen = evaluated("sh", Path::new(EVAL_ONCE), &[("PATH", &path)]);
    assert_eq!(
        folders(&seen)[1],
        PathBuf::from(OsString::from_vec(b"/caf\xe9 bar".to_vec()))
    );
}

#[test]
fn nothing_but_the_documented_variables_changes() {
    for shell in ["sh", "bash"] {
        let before: Variables = [
            ("PATH", "/usr/bin"),
            ("HOME", "/home/nobody"),
            ("OTHER", "a'b\n"),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .into();
        let given: Vec<_> = before
            .iter()
            .map(|(name, value)| (name.to_str().unwrap(), value.as_os_str()))
            .collect();
        let mut seen = evaluated(shell, Path::new(EVAL_ONCE), &given);
        assert_eq!(seen[OsStr::new("EVAL_ONCE_BIN")], EVAL_ONCE);
        assert_eq!(
            seen[OsStr::new("EVAL_ONCE_STATE_DIR")],
            "/home/nobody/.local/state/eval-once"
        );
        for name in ["EVAL_ONCE_BIN", "EVAL_ONCE_STATE_DIR", "PATH"] {
            seen.remove(OsStr::new(name));
        }
        let mut before = before;
        before.remove(OsStr::new("PATH"));
        assert_eq!(seen, before, "{shell}");
    }
}

#[test]
fn a_state_folder_that_is_set_stays_and_otherwise_it_follows_the_users_state_folder() {
    let state = |given: &[(&str, &str)]| {
        let mut given: Vec<_> = given
            .iter()
            .map(|(name, value)| (*name, OsStr::new(*value)))
            .collect();
        given.extend([("PATH", OsStr::new("/usr/bin")), ("HOME", OsStr::new("/h"))]);
        evaluated("sh", Path::new(EVAL_ONCE), &given)[OsStr::new("EVAL_ONCE_STATE_DIR")].clone()
    };
    assert_eq!(
        state(&[("EVAL_ONCE_STATE_DIR", "/some where")]),
        "/some where"
    );
    assert_eq!(
        state(&[("XDG_STATE_HOME", "/it's state")]),
        "/it's state/eval-once"
    );
    assert_eq!(state(&[]), "/h/.local/state/eval-once");
}

#[test]
fn a_program_in_a_folder_whose_name_needs_quotes_is_found_there() {
    let folder = tempfile::tempdir().unwrap();
    let odd = folder
        .path()
        .canonicalize()
        .unwrap()
        .join("it's $HOME \"odd\" `x`\n\\");
    fs::create_dir(&odd).unwrap();
    let program = odd.join("eval-once");
    let copied = Command::new("install")
        .arg(EVAL_ONCE)
        .arg(&program)
        .status()
        .unwrap();
    assert!(copied.success());
    for shell in ["sh", "bash"] {
        let seen = evaluated(shell, &program, &[("PATH", OsStr::new("/usr/bin"))]);
        assert_eq!(Path::new(&seen[OsStr::new("EVAL_ONCE_BIN")]), program);
        assert_eq!(folders(&seen).last().unwrap(), &odd);
    }
}

#[test]
fn without_a_path_none_of_its_folders_is_empty() {
    // An empty one means the current folder, which in a job is the checkout.
    let folder = tempfile::tempdir().unwrap();
    for given in [&[][..], &[("PATH", OsStr::new(""))]] {
        let ended = Program::new(EVAL_ONCE)
            .arg("environment")
            .envs(given.iter().map(|(name, value)| (*name, *value)))
            .folder(folder.path())
            .run();
        ended.exits(0);
        let path = ended
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix("export PATH="))
            .unwrap()
            .trim_matches('\'');
        assert!(path.split(':').all(|folder| !folder.is_empty()), "{path}");
        assert!(path.contains(our_folder().to_str().unwrap()), "{path}");
    }
}

#[test]
fn to_evaluate_it_twice_is_as_once() {
    let once = evaluated(
        "sh",
        Path::new(EVAL_ONCE),
        &[("PATH", OsStr::new("/usr/bin"))],
    );
    let given: Vec<_> = once
        .iter()
        .map(|(name, value)| (name.to_str().unwrap(), value.as_os_str()))
        .collect();
    assert_eq!(evaluated("sh", Path::new(EVAL_ONCE), &given), once);
}

#[test]
fn nix_is_found_in_a_users_profile_where_it_is_not_on_the_path() {
    for profile in [".nix-profile/bin", ".local/state/nix/profile/bin"] {
        let folder = tempfile::tempdir().unwrap();
        let tools = without_nix(folder.path());
        let home = folder.path().join("it's home");
        let bin = home.join(profile);
        fs::create_dir_all(&bin).unwrap();
        write_program(&bin.join("nix-store"), "#!/bin/sh\nexit 0\n");
        let seen = evaluated(
            "bash",
            Path::new(EVAL_ONCE),
            &[("PATH", tools.as_os_str()), ("HOME", home.as_os_str())],
        );
        let found = folders(&seen)
            .into_iter()
            .find(|folder| folder.join("nix-store").exists());
        let found = found.unwrap_or_else(|| panic!("{profile}: no Nix on {seen:?}"));
        assert!(
            found == bin || is_installed_for_all(),
            "{}",
            found.display()
        );
    }
}

#[test]
fn a_nix_on_the_path_stays_the_one_that_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let tools = without_nix(folder.path());
    let (home, mine) = (folder.path().join("home"), folder.path().join("mine"));
    for bin in [home.join(".nix-profile/bin"), mine.clone()] {
        fs::create_dir_all(&bin).unwrap();
        write_program(&bin.join("nix-store"), "#!/bin/sh\nexit 0\n");
    }
    let path = std::env::join_paths([&mine, &tools]).unwrap();
    let seen = evaluated(
        "sh",
        Path::new(EVAL_ONCE),
        &[("PATH", &path), ("HOME", home.as_os_str())],
    );
    assert_eq!(folders(&seen), [mine, tools, our_folder().to_owned()]);
}

#[test]
fn without_nix_anywhere_the_rest_is_printed_all_the_same() {
    // The environment hook runs before every job of the host, and most have nothing to do with Nix.
    let folder = tempfile::tempdir().unwrap();
    let tools = without_nix(folder.path());
    let seen = evaluated("sh", Path::new(EVAL_ONCE), &[("PATH", tools.as_os_str())]);
    assert_eq!(folders(&seen)[0], tools);
    assert_eq!(seen[OsStr::new("EVAL_ONCE_BIN")], EVAL_ONCE);
}

/// A job on a host where Nix is in the user's profile only, and that writes down its environment.
fn job_without_nix() -> Option<(Job, PathBuf)> {
    let mut job = Job::new()?;
    let tools = without_nix(job.folder());
    let profile = job.home().join(".nix-profile/bin");
    fs::create_dir_all(&profile).unwrap();
    for name in ["nix-store", "nix-instantiate", "nix"] {
        symlink(tool(name)?, profile.join(name)).unwrap();
    }
    // Folders with names that a shell could trip over stand before and behind.
    let mut path = OsString::from("/it's $HOME \"x\"\n:");
    path.push(tools);
    job.set("PATH", path).command("env -0 > ../environment");
    Some((job, profile))
}

fn seen_in(job: &Job) -> Variables {
    variables(&fs::read(job.folder().join("environment")).unwrap())
}

/// The job's environment is as without a hook, Nix and our own variables apart.
#[track_caller]
fn only_ours_differs(job: &Job, profile: &Path, hook: &dyn Fn(&Job)) {
    let ran = job.run();
    assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
    let mut without = seen_in(job);
    hook(job);
    let ran = job.run();
    assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
    let mut with = seen_in(job);

    let (was, is) = (folders(&without), folders(&with));
    assert_eq!(is[..was.len()], was, "what was on PATH stays as it was");
    assert_eq!(is.last().unwrap(), our_folder());
    let nix = is.iter().find(|folder| folder.join("nix-store").exists());
    assert!(
        nix.is_some_and(|nix| nix == profile || is_installed_for_all()),
        "{is:?}"
    );
    assert_eq!(with[OsStr::new("EVAL_ONCE_BIN")], EVAL_ONCE);
    let state = job.home().join(".local/state/eval-once");
    assert_eq!(Path::new(&with[OsStr::new("EVAL_ONCE_STATE_DIR")]), state);
    for name in ["EVAL_ONCE_BIN", "EVAL_ONCE_STATE_DIR"] {
        with.remove(OsStr::new(name));
    }
    for name in [
        "PATH",
        "BUILDKITE_AGENT_JOB_API_SOCKET",
        "BUILDKITE_AGENT_JOB_API_TOKEN",
        // The agent sets it after each shell hook.
        "BUILDKITE_LAST_HOOK_EXIT_STATUS",
    ] {
        for variables in [&mut with, &mut without] {
            variables.remove(OsStr::new(name));
        }
    }
    assert_eq!(with, without);
}

#[test]
fn as_the_agents_own_environment_hook_it_changes_the_job_through_the_agent() {
    for terminal in [false, true] {
        let Some((mut job, profile)) = job_without_nix() else {
            return;
        };
        job.terminal(terminal);
        only_ours_differs(&job, &profile, &|job| {
            job.our_hook("environment");
        });
    }
}

#[test]
fn a_hook_that_cannot_change_the_jobs_environment_says_why_and_ends_the_job() {
    let Some((mut job, _)) = job_without_nix() else {
        return;
    };
    job.our_hook("environment");
    job.set("BUILDKITE_AGENT_NO_JOB_API", "true");
    let ran = job.run();
    // Newer agents end any job with 125 that cannot be set up, and say why in the log.
    let status = |of_the_hook| if is_old() { of_the_hook } else { 125 };
    assert_eq!(ran.ending.code(), Some(status(75)), "{}", ran.log);
    assert!(ran.plain().contains("--no-job-api"), "{}", ran.log);
    job.unset("BUILDKITE_AGENT_NO_JOB_API")
        .unset("BUILDKITE_BIN_PATH");
    let ran = job.run();
    assert_eq!(ran.ending.code(), Some(status(69)), "{}", ran.log);
    assert!(
        ran.plain()
            .contains("eval-once: error: cannot run buildkite-agent"),
        "{}",
        ran.log
    );
}

#[test]
fn in_the_agents_environment_hook_a_shell_may_evaluate_it() {
    let Some((job, profile)) = job_without_nix() else {
        return;
    };
    only_ours_differs(&job, &profile, &|job| {
        let script = format!("eval \"$('{EVAL_ONCE}' environment)\"\n");
        job.shell_hook("environment", &script);
    });
}

#[test]
fn the_plugins_environment_hook_lets_its_command_hook_find_nix() {
    let Some(store) = Store::new() else { return };
    let Some((mut job, profile)) = job_without_nix() else {
        return;
    };
    let plugin = plugin_repository(job.folder());
    let path = std::env::join_paths([
        our_folder(),
        &job.folder().join("tools"),
        &job.folder().join("no such folder: it's\n".replace(':', "")),
    ])
    .unwrap();
    job.set_all(store.env().into_iter().filter(|(name, _)| name != "HOME"))
        .set("PATH", path)
        .plugins(&[(&plugin, json!({ "attr": "a" }))]);
    fs::write(
        job.checkout().join("default.nix"),
        r#"{ a = derivation { name = "a"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo a > $out" ]; }; }"#,
    )
    .unwrap();
    let ran = job.run();
    assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
    let seen = seen_in(&job);
    let nix = folders(&seen)
        .into_iter()
        .find(|folder| folder.join("nix-store").exists());
    assert!(
        nix.is_some_and(|nix| nix == profile || is_installed_for_all()),
        "{seen:?}"
    );
    assert!(seen.contains_key(OsStr::new("EVAL_ONCE_OUT")));
}

#[test]
fn the_plugins_environment_hook_is_silent_where_there_is_no_program() {
    let Some((mut job, _)) = job_without_nix() else {
        return;
    };
    let plugin = plugin_repository(job.folder());
    // Only the environment hook: the command hook has its own say.
    fs::remove_file(
        job.folder()
            .join("eval-once-buildkite-plugin/hooks/command"),
    )
    .unwrap();
    fs::remove_dir_all(job.folder().join("eval-once-buildkite-plugin/.git")).unwrap();
    let reference = crate::support::agent::commit(&job.folder().join("eval-once-buildkite-plugin"));
    assert_eq!(reference, plugin);
    job.plugins(&[(&reference, json!({ "attr": "a" }))]);
    let ran = job.run();
    assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
    assert!(!ran.plain().contains("eval-once: "), "{}", ran.log);
}
