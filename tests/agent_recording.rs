//! A build whose recording, steps and summary are commands (`emit: command`), on agents with our hooks and no program on PATH:
//! every one of them is done by the hook, or found by it.

use std::{ffi::OsString, fs, os::unix::fs::symlink};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    EVAL_ONCE,
    agent::{Job, plain, plugin_repository, program},
    buildkite::{Build, Outcome},
    store::Store,
    target::expression,
    tool,
};

/// Folders on whose PATH Nix is, and no program of ours.
fn path_without_us(store: &Store) -> OsString {
    let path = store.path();
    assert!(
        std::env::split_paths(&path).all(|folder| !folder.join("eval-once").exists()),
        "{}",
        path.display()
    );
    path
}

/// A build that records with this command.
fn build(store: &Store, command: &str) -> Option<Build> {
    let build = Build::new(&json!({ "key": "record", "command": command }))?
        .checkout(store.work())
        .envs(store.env())
        .envs([("PATH", path_without_us(store))]);
    Some(build)
}

/// The build ends well, with its targets built and summed up.
#[track_caller]
fn all_is_done(build: &Build) {
    let outcome = build.run();
    let jobs = build.jobs();
    let logs: Vec<String> = jobs
        .iter()
        .map(crate::support::buildkite::Job::plain)
        .collect();
    assert_eq!(outcome, Outcome::Passed, "{logs:#?}");
    let annotations = build.annotations();
    let summary = &annotations["eval-once-summary"];
    assert!(summary.body.contains("one"), "{summary:?}");
    let builds = logs
        .iter()
        .filter(|log| log.contains("eval-once: realised "))
        .count();
    assert_eq!(builds, 2, "{logs:#?}");
}

const FLAGS: &str = "--file ci.nix --exclude 'left out' --skip none --summary";

fn store() -> Option<Store> {
    program()?;
    let store = Store::new()?;
    let targets = r#"{ one = file "one"; two = file "two"; "left out" = file "three"; }"#;
    store.write("ci.nix", &expression(targets));
    Some(store)
}

#[test]
fn the_command_hook_does_a_recording_its_steps_and_the_summary() {
    let Some(store) = store() else { return };
    let Some(build) = build(&store, &format!("eval-once pipeline {FLAGS}")) else {
        return;
    };
    all_is_done(&build.our_hook("command"));
}

#[test]
fn the_environment_hook_puts_the_program_that_is_named_on_the_path() {
    let Some(store) = store() else { return };
    let folder = TempDir::new().unwrap();
    // One that is called otherwise cannot be found by the name that steps use: then it is the hook's own program.
    let [called_so, otherwise] = ["bin/eval-once", "other/eval-once-1"].map(|name| {
        let named = folder.path().join(name);
        fs::create_dir(named.parent().unwrap()).unwrap();
        symlink(EVAL_ONCE, &named).unwrap();
        named
    });
    for named in [called_so, otherwise] {
        let Some(build) = build(&store, &format!("eval-once pipeline {FLAGS}")) else {
            return;
        };
        let build = build.envs([("EVAL_ONCE_BIN", &named)]);
        all_is_done(&build.our_hook("environment"));
    }
}

/// The line that opens the recording's own group.
const GROUP: &str = "--- :nix: recording";

/// The group is opened once, and everything that the recording prints is in it.
#[track_caller]
fn all_is_in_its_group(log: &str) {
    let lines: Vec<&str> = log.lines().collect();
    let ours = lines
        .iter()
        .position(|line| line.starts_with("eval-once: "))
        .unwrap_or_else(|| panic!("it prints nothing: {log}"));
    let is_group = |line: &&&str| line.starts_with("--- ") || line.starts_with("~~~ ");
    let opened = lines[..ours].iter().rfind(is_group);
    assert_eq!(opened, Some(&GROUP), "{log}");
    let headings = lines.iter().filter(|line| **line == GROUP);
    assert_eq!(headings.count(), 1, "{log}");
}

#[test]
fn a_recording_opens_a_group_of_its_own_before_it_prints_anything() {
    let Some(store) = store() else { return };
    let folder = TempDir::new().unwrap();
    let plugin = plugin_repository(folder.path());
    let plugins = json!([{ plugin: { "pipeline": { "file": "ci.nix", "skip": "none" } } }]);
    let command = format!("'{EVAL_ONCE}' pipeline --file ci.nix --skip none");
    for step in [
        json!({ "key": "record", "plugins": plugins }),
        json!({ "key": "record", "command": command }),
        // What a job has recorded already is no plan to follow, and that is printed in the group as well.
        json!({ "key": "record", "command": format!("{command} && {command} --attr one") }),
    ] {
        let Some(build) = Build::new(&step) else {
            return;
        };
        let build = build
            .checkout(store.work())
            .envs(store.env())
            .envs([("PATH", path_without_us(&store))])
            .envs([("EVAL_ONCE_BIN", EVAL_ONCE)]);
        build.run();
        let log = build.job("record").plain();
        match log.matches(GROUP).count() {
            2 => {
                let (first, second) = log.rsplit_once(GROUP).unwrap();
                all_is_in_its_group(first);
                all_is_in_its_group(&format!("{GROUP}{second}"));
            }
            _ => all_is_in_its_group(&log),
        }
    }
}

#[test]
fn a_recording_by_hand_and_a_dry_run_open_no_group() {
    let Some(store) = store() else { return };
    let dry_run = "eval-once pipeline --dry-run --file ci.nix";
    let Some(job) = job(&store, dry_run) else {
        return;
    };
    let ran = job.run();
    assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
    assert!(!ran.plain().contains(GROUP), "{}", ran.log);
    let by_hand = store.eval_once(["pipeline", "--file", "ci.nix"]).run();
    assert!(!by_hand.exits(0).stderr.contains("---"), "{by_hand}");
}

/// A job with our command hook, and its command.
fn job(store: &Store, command: &str) -> Option<Job> {
    let mut job = Job::new()?;
    job.set_all(store.env())
        .set("PATH", path_without_us(store))
        .set("BUILDKITE_STEP_ID", "0190c1a2-0000-4000-8000-000000000002")
        .command(command);
    job.our_hook("command");
    fs::copy(store.work().join("ci.nix"), job.checkout().join("ci.nix")).unwrap();
    Some(job)
}

#[test]
fn an_agent_without_command_eval_records_what_is_in_the_checkout_and_nothing_else() {
    let Some(store) = store() else { return };
    for (command, status, said) in [
        (
            "eval-once pipeline --dry-run --file ci.nix",
            0,
            r#""steps""#,
        ),
        ("eval-once pipeline --dry-run --expr 1", 64, "expr"),
        ("eval-once pipeline --dry-run --file ../x.nix", 64, "file"),
        ("eval-once pipeline --nope", 64, "--nope"),
        ("eval-once summary more", 64, "more"),
        // Of these a shell would make more: they are no business of ours, nor of this agent's.
        ("eval-once pipeline --dry-run && echo more", 1, "console"),
        ("eval-once pipeline --file *.nix --dry-run", 1, "console"),
    ] {
        let Some(mut job) = job(&store, command) else {
            return;
        };
        job.set("BUILDKITE_COMMAND_EVAL", "false");
        let ran = job.run();
        assert_eq!(ran.ending.code(), Some(status), "{command}: {}", ran.log);
        let output = plain(ran.output.as_deref().unwrap());
        assert!(output.contains(said), "{command}: {output}");
    }
}

#[test]
fn a_recording_with_more_in_its_command_is_the_shells() {
    let Some(store) = store() else { return };
    let Some(mut job) = job(
        &store,
        "eval-once pipeline --dry-run --file \"$FILE\" | tr -d '\\n'; echo more",
    ) else {
        return;
    };
    // The shell finds none here; on an agent with a program it would be that one.
    let ran = job.set("FILE", "ci.nix").run();
    let output = plain(ran.output.as_deref().unwrap());
    assert!(output.contains("command not found"), "{output}");
    assert!(output.ends_with("more\n"), "{output}");
    let bin = job.folder().join("bin/eval-once");
    symlink(EVAL_ONCE, bin).unwrap();
    let ran = job.run();
    let output = plain(ran.output.as_deref().unwrap());
    assert!(output.contains(r#""steps""#), "{output}");
    assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
}

#[test]
fn other_commands_of_ours_are_the_shells() {
    let Some(store) = store() else { return };
    tool("bash").unwrap();
    for command in [
        "eval-once prune",
        "eval-once explain --file ci.nix",
        "eval-once",
    ] {
        let Some(job) = job(&store, command) else {
            return;
        };
        let ran = job.run();
        assert_eq!(ran.ending.code(), Some(127), "{command}: {}", ran.log);
    }
    let record: Value = json!({ "file": "ci.nix", "attr": ["one"] });
    let Some(mut job) = job(&store, "eval-once summary") else {
        return;
    };
    // A step's own command may be anything.
    job.set("EVAL_ONCE_STEP", record.to_string())
        .unset("BUILDKITE_STEP_ID");
    let ran = job.run();
    assert!(job.checkout().join("result").exists(), "{}", ran.log);
    assert_eq!(ran.ending.code(), Some(127), "{}", ran.log);
}

/// The build of a recording whose steps have a command of their own; the job of its one step, and how the build ended.
fn with_own_command(change: impl Fn(Build) -> Build) -> Option<(Outcome, String)> {
    program()?;
    let store = Store::new()?;
    store.write("ci.nix", &expression(r#"{ one = file "one"; }"#));
    // Several commands are one script, whose lines see one another.
    let step = json!({ "command": ["x=$(cat $EVAL_ONCE_OUT)", "echo \"> $x and $(cat result)\"; exit 7"] });
    let command = format!("'{EVAL_ONCE}' pipeline --file ci.nix --skip none --step '{step}'");
    let build = change(build(&store, &command)?);
    let outcome = build.run();
    let step = build
        .jobs()
        .into_iter()
        .find(|job| job.key.as_deref() != Some("record"))
        .unwrap_or_else(|| panic!("{}", build.job("record").plain()));
    let log = step.plain();
    assert_eq!(
        step.exit_status,
        Some(if log.contains("not found") { 127 } else { 7 }),
        "{log}"
    );
    Some((outcome, log))
}

#[test]
fn a_recorded_step_builds_before_its_own_command_on_every_agent_or_fails() {
    let ran = "> one and one\n";
    let Some((_, log)) = with_own_command(|build| build.our_hook("command")) else {
        return;
    };
    assert!(
        log.contains("eval-once: realised ") && log.contains(ran),
        "{log}"
    );
    let (_, log) = with_own_command(|build| build.our_hook("environment")).unwrap();
    assert!(
        log.contains("eval-once: realised ") && log.contains(ran),
        "{log}"
    );
    // An agent with neither hook nor program builds nothing, and is not green.
    let (outcome, log) = with_own_command(|build| build).unwrap();
    assert_eq!(outcome, Outcome::Failed);
    assert!(log.contains("not found") && !log.contains("> "), "{log}");
}

#[test]
fn the_command_of_a_recorded_step_is_the_one_that_an_agent_would_have_run() {
    let Some(store) = store() else { return };
    let record = json!({ "file": "ci.nix", "attr": ["one"] }).to_string();
    let dump =
        "env | grep '^EVAL_ONCE_\\|^BUILDKITE_COMMAND=' | sed 's/=.*one$/=OUT/; s/^/> /' | sort";
    let run = |hook: bool, prepare: &dyn Fn(&mut Job)| {
        let mut job = job(&store, "eval-once step").unwrap();
        job.set("EVAL_ONCE_STEP", &record)
            .set("EVAL_ONCE_COMMAND", dump)
            .unset("BUILDKITE_STEP_ID");
        if !hook {
            fs::remove_file(job.hooks().join("command")).unwrap();
            symlink(EVAL_ONCE, job.folder().join("bin/eval-once")).unwrap();
        }
        prepare(&mut job);
        job.run()
    };
    if program().is_none() {
        return;
    }
    for hook in [true, false] {
        let ran = run(hook, &|_| ());
        let marked: Vec<String> = ran
            .plain()
            .lines()
            .filter(|line| line.starts_with("> "))
            .filter(|line| !line.contains("_STATE_DIR") && !line.contains("_LOG"))
            .map(str::to_owned)
            .collect();
        let command = format!("> BUILDKITE_COMMAND={dump}");
        assert_eq!(
            marked,
            [
                command.as_str(),
                "> EVAL_ONCE_OUT=OUT",
                "> EVAL_ONCE_OUT_OUT=OUT"
            ],
            "{}",
            ran.log
        );
        // There is no other hook that could run it.
        let left = json!({ "file": "ci.nix", "attr": ["one"], "command": "none" });
        let ran = run(hook, &|job| {
            job.set("EVAL_ONCE_STEP", left.to_string());
        });
        assert_eq!(ran.ending.code(), Some(64), "{}", ran.log);
        // And it is not dropped for another one.
        let ran = run(hook, &|job| {
            job.command("eval-once step -- echo '> other'");
        });
        assert_eq!(ran.ending.code(), Some(64), "{}", ran.log);
        assert!(!ran.plain().contains("\n> "), "{}", ran.log);
    }
    let ran = run(true, &|job| {
        job.command("echo '> other'");
    });
    assert_eq!(ran.ending.code(), Some(64), "{}", ran.log);
}

#[test]
fn a_recording_warns_of_plugins_of_steps_that_are_commands() {
    let Some(store) = store() else { return };
    for (step, warned) in [
        (json!({ "plugins": ["docker#v5.13.0"] }), true),
        (json!({ "command": "make" }), false),
    ] {
        let ended = store
            .eval_once(["pipeline", "--dry-run", "--file", "ci.nix"])
            .args(["--step".to_owned(), step.to_string()])
            .run();
        ended.exits(0);
        let ours = ended.ours().join("\n");
        assert_eq!(
            ours.contains("warning: 3 steps have a plugin"),
            warned,
            "{ended}"
        );
    }
}
