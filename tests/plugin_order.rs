//! Who runs the job's command where several hooks could: what a step promises of it is held against the plugins that the agent
//! has, and against its setting of strict single hooks, before anything is built.

use std::fs;

use serde_json::{Value, json};

use crate::support::{
    EVAL_ONCE,
    agent::{Job, Ran, commit, is_old, other_plugin, plugin_repository, plugin_with_hook},
    loudly,
    stand_in::write_program,
    store::Store,
};

const TARGETS: &str = r#"
let
  target = name: derivation {
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-c" "echo ${name} > $out" ];
  };
in {
  good = target "good";
  other = target "other";
}
"#;

/// What another plugin's command hook does: it runs the job's command, as those of docker's do.
const RUNS_THE_COMMAND: &str = "echo \"> other plugin\"; eval \"$BUILDKITE_COMMAND\"\n";

/// The plugins of a job.
enum Entry {
    /// Ours, with this configuration.
    Ours(Value),
    /// One with a command hook that runs the job's command.
    Other,
    /// One without a command hook.
    Quiet,
    /// One of the checkout, with a command hook.
    Vendored,
    /// Ours, in the checkout.
    OursVendored(Value),
}

use Entry::{Other, Ours, OursVendored, Quiet, Vendored};

/// Runs a job with these plugins; its command says that it ran, and how often it did.
fn run(store: &Store, strict: bool, command: &str, entries: &[Entry]) -> Option<(Job, Ran)> {
    let mut job = Job::new()?;
    job.set_all(store.env())
        .set("EVAL_ONCE_BIN", EVAL_ONCE)
        .set("BUILDKITE_STRICT_SINGLE_HOOKS", strict.to_string())
        .command(command);
    fs::write(job.checkout().join("default.nix"), TARGETS).unwrap();
    let ours = plugin_repository(job.folder());
    let other = other_plugin(job.folder(), RUNS_THE_COMMAND);
    let quiet = plugin_with_hook(job.folder(), "quiet", "pre-command", "echo '> quiet'\n");
    for entry in entries {
        match entry {
            Vendored => drop(other_plugin(&job.checkout(), RUNS_THE_COMMAND)),
            OursVendored(_) => drop(plugin_repository(&job.checkout())),
            _ => {}
        }
    }
    let plugins: Vec<(&str, Value)> = entries
        .iter()
        .map(|entry| match entry {
            Ours(keys) => (ours.as_str(), keys.clone()),
            OursVendored(keys) => ("./eval-once-buildkite-plugin", keys.clone()),
            Other => (other.as_str(), json!({ "image": "x" })),
            Quiet => (quiet.as_str(), json!({ "path": "x" })),
            Vendored => ("./other-buildkite-plugin", json!({})),
        })
        .collect();
    job.plugins(&plugins);
    // A recording needs it. A step with it would report to its build, and there is no server here.
    if plugins
        .iter()
        .any(|(_, keys)| keys.get("pipeline").is_some())
    {
        job.set("BUILDKITE_STEP_ID", "0190c1a2-0000-4000-8000-000000000002");
    }
    let ran = job.run();
    Some((job, ran))
}

const COMMAND: &str = "echo '> command'; exit 5";

fn none() -> Value {
    json!({ "attr": "good", "command": "none" })
}

fn good() -> Value {
    json!({ "attr": "good" })
}

fn second() -> Value {
    json!({ "attr": "other", "out-link": "second" })
}

/// How often the command ran.
fn times(ran: &Ran) -> usize {
    ran.plain()
        .lines()
        .filter(|line| *line == "> command")
        .count()
}

/// The job is refused before anything is built or run, and the sentence names `parts`.
#[track_caller]
fn refused(strict: bool, command: &str, entries: &[Entry], parts: &[&str]) {
    let Some(store) = Store::new() else { return };
    let Some((job, ran)) = run(&store, strict, command, entries) else {
        return;
    };
    let output = ran.plain();
    assert_eq!(ran.ending.code(), Some(64), "{output}");
    let error = output
        .lines()
        .find(|line| line.starts_with("eval-once: error: "))
        .unwrap_or_else(|| panic!("{output}"));
    for part in parts {
        assert!(error.contains(part), "{part:?} is not named: {error}");
    }
    assert!(output.contains("eval-once: hint: "), "{output}");
    assert_eq!(times(&ran), 0, "{output}");
    for link in ["result", "second"] {
        assert!(!job.checkout().join(link).exists(), "{output}");
    }
}

/// The job builds `good`, ends with `status`, and its command runs `times` times.
#[track_caller]
fn runs(strict: bool, command: &str, entries: &[Entry], status: i32, often: usize) -> Option<Ran> {
    let store = Store::new()?;
    let (job, ran) = run(&store, strict, command, entries)?;
    assert_eq!(ran.ending.code(), Some(status), "{}", ran.log);
    assert_eq!(times(&ran), often, "{}", ran.log);
    assert!(job.checkout().join("result").exists(), "{}", ran.log);
    Some(ran)
}

#[test]
fn under_strict_single_hooks_a_command_cannot_be_left_to_another_plugin() {
    refused(
        true,
        COMMAND,
        &[Ours(none()), Other],
        &["`command: none`", "BUILDKITE_STRICT_SINGLE_HOOKS", "other"],
    );
    // Nor can the other plugin's hook be left to run what it has in its own configuration.
    refused(
        true,
        "",
        &[Ours(none()), Other],
        &["`command: none`", "BUILDKITE_STRICT_SINGLE_HOOKS", "other"],
    );
    refused(
        true,
        COMMAND,
        &[Ours(none())],
        &["`command: none`", "no plugin"],
    );
}

#[test]
fn without_strict_single_hooks_the_plugin_behind_runs_the_command() {
    runs(false, COMMAND, &[Ours(none()), Other], 5, 1);
    runs(false, COMMAND, &[Ours(none()), Quiet, Other], 5, 1);
    // The agent runs those of the checkout last, wherever they stand.
    runs(false, COMMAND, &[Vendored, Ours(none())], 5, 1);
}

#[test]
fn a_command_cannot_be_left_to_a_plugin_that_is_not_there_or_does_not_run_it() {
    let parts = &["`command: none`", "command hook"];
    refused(false, COMMAND, &[Ours(none())], parts);
    refused(false, COMMAND, &[Ours(none()), Quiet], parts);
    refused(false, COMMAND, &[Ours(none()), Ours(none())], parts);
    // It would have to be left to a plugin whose hook has run already.
    let Some(store) = Store::new() else { return };
    for entries in [
        [Other, Ours(none())],
        // The agent runs those of the checkout last.
        [OursVendored(none()), Other],
    ] {
        let Some((job, ran)) = run(&store, false, "echo '> command'", &entries) else {
            return;
        };
        assert_eq!(ran.ending.code(), Some(64), "{}", ran.log);
        assert!(!job.checkout().join("result").exists(), "{}", ran.log);
    }
}

#[test]
fn where_there_is_no_command_none_can_be_left_out() {
    for command in ["", " \n", "eval-once step"] {
        runs(false, command, &[Ours(none())], 0, 0);
    }
    runs(true, "", &[Ours(none())], 0, 0);
    runs(true, "", &[Ours(none()), Quiet], 0, 0);
}

#[test]
fn of_two_entries_of_ours_the_last_runs_the_command_and_no_other() {
    let parts = &["a later entry of this plugin", "the job's command"];
    refused(false, COMMAND, &[Ours(good()), Ours(second())], parts);
    let last = json!({ "attr": "other", "out-link": "second", "command": "none" });
    refused(false, COMMAND, &[Ours(good()), Ours(last), Other], parts);
    runs(false, COMMAND, &[Ours(none()), Ours(second())], 5, 1);
    // Without a command there is no order to keep.
    runs(false, "", &[Ours(good()), Ours(second())], 0, 0);
}

#[test]
fn a_recording_does_not_run_the_command_before_a_step_behind_it_is_built() {
    refused(
        false,
        COMMAND,
        &[Ours(json!({ "pipeline": {} })), Ours(good())],
        &["a later entry of this plugin", "the job's command"],
    );
}

#[test]
fn under_strict_single_hooks_a_second_entry_of_ours_is_not_passed_over() {
    let parts = &[
        "an earlier entry of this plugin runs instead of this one",
        "BUILDKITE_STRICT_SINGLE_HOOKS",
    ];
    for command in ["", COMMAND] {
        refused(true, command, &[Ours(none()), Ours(second())], parts);
        refused(true, command, &[Ours(good()), Ours(second())], parts);
    }
    refused(
        true,
        "",
        &[Ours(json!({ "pipeline": {} })), Ours(good())],
        parts,
    );
}

#[test]
fn under_strict_single_hooks_a_step_behind_another_command_hook_is_not_passed_over() {
    let parts = &[
        "other",
        "BUILDKITE_STRICT_SINGLE_HOOKS",
        "instead of this plugin's",
    ];
    refused(true, COMMAND, &[Other, Ours(good())], parts);
    refused(true, "", &[Other, Ours(good())], parts);
    runs(true, COMMAND, &[Quiet, Ours(good())], 5, 1);
    runs(true, COMMAND, &[Ours(good()), Quiet], 5, 1);
}

#[test]
fn a_plugin_that_may_run_the_command_a_second_time_is_warned_of() {
    let warned = |entries: &[Entry]| {
        let ran = runs(false, "echo '> command'", entries, 0, 2)?;
        Some(
            ran.plain()
                .lines()
                .any(|line| line.starts_with("eval-once: warning: ") && line.contains("other")),
        )
    };
    for (entries, expected) in [
        ([Ours(good()), Other], true),
        ([Other, Ours(good())], true),
        (
            [Ours(json!({ "attr": "good", "command": "after" })), Other],
            false,
        ),
    ] {
        let Some(warned) = warned(&entries) else {
            return;
        };
        assert_eq!(warned, expected);
    }
}

#[test]
fn a_job_whose_plugin_should_be_in_its_checkout_and_is_not_fails() {
    let Some(mut job) = Job::new() else { return };
    job.set("EVAL_ONCE_BIN", EVAL_ONCE)
        .command("echo '> command'")
        .plugins(&[("./eval-once-buildkite-plugin", good())]);
    for skipped in [false, true] {
        if skipped {
            job.set("BUILDKITE_SKIP_CHECKOUT", "true");
        }
        let ran = job.run();
        assert_ne!(ran.ending.code(), Some(0), "{}", ran.log);
        assert_eq!(times(&ran), 0, "{}", ran.log);
    }
}

#[test]
fn an_agent_that_runs_no_plugins_does_not_run_the_command_without_them() {
    let Some(store) = Store::new() else { return };
    for setting in ["BUILDKITE_COMMAND_EVAL", "BUILDKITE_PLUGINS_ENABLED"] {
        let Some(mut job) = Job::new() else { return };
        let ours = plugin_repository(job.folder());
        job.set_all(store.env())
            .set(setting, "false")
            .command("script")
            .plugins(&[(&ours, good())]);
        write_program(
            &job.checkout().join("script"),
            "#!/bin/sh\necho '> command'\n",
        );
        let ran = job.run();
        assert_ne!(ran.ending.code(), Some(0), "{setting}: {}", ran.log);
        assert_eq!(times(&ran), 0, "{setting}: {}", ran.log);
    }
}

#[test]
fn a_plugin_that_is_a_folder_of_a_repository_is_looked_into_as_well() {
    let Some(store) = Store::new() else { return };
    if is_old() {
        loudly("this agent has no plugins that are folders of a repository");
        return;
    }
    for (hook, status) in [("pre-command", 64), ("command", 5)] {
        let Some(mut job) = Job::new() else { return };
        let ours = plugin_repository(job.folder());
        // The repository that the plugin is in has hooks too, which are not the plugin's.
        let repository = job.folder().join("plugins.git");
        for (folder, hook) in [(".", "command"), ("other", hook)] {
            let hooks = repository.join(folder).join("hooks");
            fs::create_dir_all(&hooks).unwrap();
            let text = format!("#!/bin/bash\n{RUNS_THE_COMMAND}");
            write_program(&hooks.join(hook), &text);
        }
        commit(&repository);
        let other = format!("file://{}/other#main", repository.display());
        fs::write(job.checkout().join("default.nix"), TARGETS).unwrap();
        job.set_all(store.env())
            .set("EVAL_ONCE_BIN", EVAL_ONCE)
            .command(if status == 5 { COMMAND } else { "true" })
            .plugins(&[(&ours, none()), (&other, json!({}))]);
        let ran = job.run();
        assert_eq!(ran.ending.code(), Some(status), "{hook}: {}", ran.log);
    }
}
