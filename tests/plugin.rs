//! Our plugin, cloned by the real agent from a git repository: `hooks/command`, how it finds the program, what it takes from the
//! plugin's configuration; and that a step comes to the same in all its uses.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::support::{
    EVAL_ONCE,
    agent::{Job, Ran, commit, other_plugin, plain, plugin_repository},
    stand_in::write_program,
    store::Store,
    target::{fifo, let_go},
    tool, until,
};

/// `good` builds, `bad` does not, `broken` does not evaluate; each has a marker, so that no other test has built it.
const TARGETS: &str = r#"
let
  target = name: script: derivation {
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-c" script ];
  };
in {
  good = target "good" "echo built > $out";
  other = target "other" "echo other > $out";
  bad = target "bad" "echo no; exit 3";
  broken = throw "this target does not evaluate";
}
"#;

/// A job in a store, with our program where the plugin looks first, and a folder for repositories.
fn job(store: &Store) -> Option<Job> {
    let mut job = Job::new()?;
    job.set_all(store.env()).set("EVAL_ONCE_BIN", EVAL_ONCE);
    fs::write(job.checkout().join("default.nix"), TARGETS).unwrap();
    Some(job)
}

/// A plugin's job with one configuration of ours.
fn plugin_job(store: &Store, configuration: &Value) -> Option<Job> {
    let mut job = job(store)?;
    let plugin = plugin_repository(job.folder());
    job.plugins(&[(&plugin, configuration.clone())]);
    Some(job)
}

/// What a step came to, whichever way it was started.
#[derive(Debug, PartialEq)]
struct Outcome {
    status: Option<i32>,
    /// The report line's way and reason.
    way: Option<(String, String)>,
    /// Our error lines.
    errors: Vec<String>,
    /// Where the out-link leads.
    link: Option<PathBuf>,
}

fn outcome(status: Option<i32>, log: &str, folder: &Path) -> Outcome {
    // In an error may stand where the step ran.
    let log = log.replace(folder.to_str().unwrap(), "FOLDER");
    let ours: Vec<&str> = log
        .lines()
        .filter_map(|line| line.strip_prefix("eval-once: "))
        .collect();
    let way = ours.iter().find_map(|line| {
        let way = line.split(' ').next()?;
        let (_, reason) = line.split_once(" s (")?;
        ["realised", "available", "evaluated"]
            .contains(&way)
            .then(|| (way.to_owned(), reason.split(')').next().unwrap().to_owned()))
    });
    let errors = ours.iter().filter(|line| line.starts_with("error: "));
    let link = folder.join("result");
    let found = fs::read_link(&link).ok();
    let _ = fs::remove_file(link);
    Outcome {
        status,
        way,
        errors: errors.map(|&line| line.to_owned()).collect(),
        link: found,
    }
}

/// A state of the store, and what a step with this record is to come to in it.
struct Case<'a> {
    record: Value,
    /// Targets whose `.drv`s are in the store when the step begins.
    drvs: &'a [&'a str],
    /// Whether the outputs of `good` are.
    is_built: bool,
    status: i32,
    /// Way and reason of a step that succeeds, empty for one that does not.
    way: (&'a str, &'a str),
}

/// The targets of [`TARGETS`] in a store: their `.drv`s and outputs.
struct Targets<'a> {
    store: &'a Store,
    file: String,
    paths: Vec<(&'static str, String, String)>,
}

impl<'a> Targets<'a> {
    fn new(store: &'a Store) -> Self {
        let file = store.write("default.nix", TARGETS);
        let file = file.to_str().unwrap().to_owned();
        let paths = ["good", "other", "bad"].map(|name| {
            let drv = store.instantiate(&file, name);
            let out = store.output(&drv, "out");
            (name, drv, out)
        });
        Self {
            store,
            file,
            paths: paths.into(),
        }
    }

    fn of(&self, name: &str) -> (&str, &str) {
        let (_, drv, out) = self.paths.iter().find(|(is, _, _)| *is == name).unwrap();
        (drv, out)
    }

    /// The record of a target, with `attribute` as its attribute path.
    fn record(&self, name: &str, attribute: &str) -> Value {
        let (drv, out) = self.of(name);
        json!({ "drv": drv, "outputs": { "out": out }, "file": "default.nix", "attr": [attribute] })
    }

    fn prepare(&self, case: &Case<'_>) {
        let _ = fs::remove_dir_all(self.store.our_state());
        self.store
            .try_delete(self.paths.iter().map(|(_, _, out)| out));
        let attributes = self.paths.iter().flat_map(|(name, _, _)| ["-A", name]);
        self.store.nix(
            "nix-instantiate",
            [self.file.as_str()].into_iter().chain(attributes),
        );
        if case.is_built {
            self.store.build(self.of("good").0);
        }
        let gone = self
            .paths
            .iter()
            .filter(|(name, _, _)| !case.drvs.contains(name));
        self.store.try_delete(gone.map(|(_, drv, _)| drv));
    }
}

/// Runs a step by hand, as plugin and as the agent's hook, each time from the same state.
#[track_caller]
fn alike(targets: &Targets<'_>, case: &Case<'_>) {
    let (store, record) = (targets.store, &case.record);
    targets.prepare(case);
    let ended = store
        .eval_once(["step"])
        .env("EVAL_ONCE_STEP", record.to_string())
        .run();
    let by_hand = outcome(ended.status.code(), &ended.stderr, &store.work());
    assert_eq!(by_hand.status, Some(case.status), "{record}: {ended}");
    if case.status == 0 {
        let way = (case.way.0.to_owned(), case.way.1.to_owned());
        assert_eq!(by_hand.way, Some(way), "{record}: {ended}");
        let built = record["attr"]
            .as_array()
            .map_or("good", |attr| attr[0].as_str().unwrap());
        let built = PathBuf::from(targets.of(built).1);
        assert_eq!(by_hand.link, Some(built), "{record}: {ended}");
    }

    targets.prepare(case);
    let Some(as_plugin) = plugin_job(store, record) else {
        return;
    };
    let ran = as_plugin.run();
    let by_plugin = outcome(ran.ending.code(), &ran.plain(), &as_plugin.checkout());
    assert_eq!(
        by_plugin, by_hand,
        "{record}: the plugin differs: {}",
        ran.log
    );

    targets.prepare(case);
    let mut as_hook = job(store).unwrap();
    as_hook.set("EVAL_ONCE_STEP", record.to_string());
    as_hook.our_hook("command");
    let ran = as_hook.run();
    let by_hook = outcome(ran.ending.code(), &ran.plain(), &as_hook.checkout());
    assert_eq!(
        by_hook, by_hand,
        "{record}: the agent's hook differs: {}",
        ran.log
    );
}

#[test]
fn a_step_that_succeeds_comes_to_the_same_as_plugin_as_agents_hook_and_by_hand() {
    let Some(store) = Store::new() else { return };
    let targets = Targets::new(&store);
    for (record, drvs, is_built, way) in [
        (
            targets.record("good", "good"),
            &["good"][..],
            false,
            ("realised", "drv-valid"),
        ),
        (
            targets.record("good", "good"),
            &["good"],
            true,
            ("realised", "drv-valid"),
        ),
        (
            targets.record("good", "good"),
            &[],
            true,
            ("available", "outputs-available"),
        ),
        (
            targets.record("good", "good"),
            &[],
            false,
            ("evaluated", "drv-missing"),
        ),
        // Drift, which is warned of.
        (
            targets.record("good", "other"),
            &[],
            false,
            ("evaluated", "drv-missing"),
        ),
        (
            json!({ "attr": "good" }),
            &[],
            false,
            ("evaluated", "not-recorded"),
        ),
    ] {
        let status = 0;
        alike(
            &targets,
            &Case {
                record,
                drvs,
                is_built,
                status,
                way,
            },
        );
    }
}

#[test]
fn a_step_that_fails_comes_to_the_same_as_plugin_as_agents_hook_and_by_hand() {
    let Some(store) = Store::new() else { return };
    let targets = Targets::new(&store);
    let mut drifting = targets.record("good", "other");
    drifting["on-drift"] = "fail".into();
    let (good, out) = targets.of("good");
    for (record, drvs, status) in [
        (targets.record("bad", "bad"), &["bad"][..], 100),
        (json!({ "attr": ["bad"] }), &[], 100),
        (
            json!({ "file": "default.nix", "attr": ["broken"] }),
            &[],
            65,
        ),
        (json!({ "drv": good, "outputs": { "out": out } }), &[], 75),
        (drifting, &[], 76),
        (
            json!({ "attr": "good", "out-link": "default.nix" }),
            &[],
            64,
        ),
    ] {
        let (is_built, way) = (false, ("", ""));
        alike(
            &targets,
            &Case {
                record,
                drvs,
                is_built,
                status,
                way,
            },
        );
    }
}

/// A plugin's job whose configuration is refused: 64, the log names `parts`, and nothing is built, evaluated or run.
#[track_caller]
fn refused(configuration: &Value, parts: &[&str]) {
    let Some(store) = Store::new() else { return };
    let Some(mut job) = plugin_job(&store, configuration) else {
        return;
    };
    // An evaluation would fail with another status.
    fs::write(
        job.checkout().join("default.nix"),
        "throw \"it was evaluated\"",
    )
    .unwrap();
    job.command("echo the command was run");
    let ran = job.run();
    let output = ran.plain();
    assert_eq!(ran.ending.code(), Some(64), "{configuration}: {output}");
    let said: String = output
        .lines()
        .filter(|line| line.starts_with("eval-once: "))
        .collect::<Vec<_>>()
        .join("\n");
    for part in parts {
        assert!(
            said.contains(part),
            "{configuration}: {part:?} is not named: {said}"
        );
    }
    assert!(
        !output.contains("it was evaluated") && !output.contains("the command was run"),
        "{output}"
    );
    assert!(!job.checkout().join("result").exists());
}

#[test]
fn a_null_in_the_configuration_is_refused_by_name() {
    // The agent gives the hook nothing of a configuration with a null in it.
    refused(&json!({ "attr": "good", "file": null }), &["file", "null"]);
}

#[test]
fn a_null_deep_in_the_configuration_is_refused_by_its_path() {
    refused(
        &json!({ "attr": ["good"], "arg": { "one": "1", "two": null } }),
        &["arg", "two", "null"],
    );
    refused(&json!({ "attr": ["good", null] }), &["attr", "null"]);
}

#[test]
fn an_unknown_key_is_refused_by_name() {
    refused(&json!({ "attr": "good", "atr": "x" }), &["atr"]);
}

#[test]
fn a_value_of_the_wrong_type_is_refused_by_name_with_what_was_expected() {
    refused(&json!({ "attr": 7 }), &["attr", "string"]);
    refused(&json!({ "attr": "good", "outputs": ["x"] }), &["outputs"]);
    refused(
        &json!({ "attr": "good", "on-drift": "sometimes" }),
        &["on-drift", "warn", "fail"],
    );
}

#[test]
fn keys_of_sharing_that_name_no_store_are_refused() {
    for (key, value) in [
        ("share", json!("bucket")),
        ("share", json!(true)),
        ("share", json!("artifact:a/b")),
        ("share-required", json!("s3://bucket")),
        ("push", json!("https://name:secret@host")),
    ] {
        refused(&json!({ "attr": "good", key: value }), &[key]);
    }
}

#[test]
fn a_null_in_another_plugins_configuration_is_none_of_ours() {
    let Some(store) = Store::new() else { return };
    let Some(mut job) = job(&store) else { return };
    let plugin = plugin_repository(job.folder());
    let other = other_plugin(job.folder(), "echo other plugin\n");
    job.plugins(&[
        (&plugin, json!({ "attr": "good", "command": "none" })),
        (&other, json!({ "key": null })),
    ]);
    let ran = job.run();
    assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
    assert!(job.checkout().join("result").exists(), "{}", ran.log);
}

#[test]
fn a_plugin_without_configuration_builds_default_nix() {
    let Some(store) = Store::new() else { return };
    for bare in [false, true] {
        let Some(mut job) = plugin_job(&store, &json!({})) else {
            return;
        };
        if bare {
            // As the agent has it from a step with `plugins: [ … ]` and no map below.
            let plugin = plugin_repository(&job.folder().join("bare"));
            job.set("BUILDKITE_PLUGINS", json!([plugin]).to_string());
        }
        fs::write(
            job.checkout().join("default.nix"),
            format!("({TARGETS}).good"),
        )
        .unwrap();
        let ran = job.run();
        assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
        let built = fs::read_to_string(job.checkout().join("result")).unwrap();
        assert_eq!(built, "built\n");
    }
}

#[test]
fn the_plugin_takes_its_record_from_its_configuration_alone() {
    let Some(store) = Store::new() else { return };
    let Some(mut job) = plugin_job(&store, &json!({ "attr": "good" })) else {
        return;
    };
    job.set(
        "EVAL_ONCE_STEP",
        json!({ "attr": "other", "out-link": "elsewhere" }).to_string(),
    );
    let ran = job.run();
    assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
    assert_eq!(
        fs::read_to_string(job.checkout().join("result")).unwrap(),
        "built\n"
    );
    assert!(!job.checkout().join("elsewhere").exists());
}

#[test]
fn with_command_none_another_plugin_runs_the_command_and_we_do_not() {
    let Some(store) = Store::new() else { return };
    for (mode, ours) in [("none", 0), ("after", 1)] {
        let Some(mut job) = job(&store) else { return };
        let plugin = plugin_repository(job.folder());
        let other = other_plugin(job.folder(), "echo other plugin with \"$(cat result)\"\n");
        job.command("echo the command of the step $((40 + 2))")
            .plugins(&[
                (&plugin, json!({ "attr": "good", "command": mode })),
                (&other, json!({})),
            ]);
        let ran = job.run();
        let output = ran.plain();
        assert_eq!(ran.ending.code(), Some(0), "{output}");
        let lines = |wanted: &str| output.lines().filter(|line| *line == wanted).count();
        assert_eq!(lines("other plugin with built"), 1, "{output}");
        assert_eq!(
            lines("the command of the step 42"),
            ours,
            "{mode}: {output}"
        );
    }
}

#[test]
fn after_a_failed_step_neither_its_command_nor_another_plugins_hook_runs() {
    let Some(store) = Store::new() else { return };
    let Some(mut job) = job(&store) else { return };
    let plugin = plugin_repository(job.folder());
    let other = other_plugin(job.folder(), "echo other plugin\n");
    job.command("echo command $((40 + 2))")
        .plugins(&[(&plugin, json!({ "attr": "bad" })), (&other, json!({}))]);
    let ran = job.run();
    let output = ran.plain();
    assert_eq!(ran.ending.code(), Some(100), "{output}");
    assert!(!output.contains("command 42"), "{output}");
    assert!(
        !output.lines().any(|line| line == "other plugin"),
        "{output}"
    );
}

#[test]
fn the_steps_command_runs_after_success_with_what_was_built() {
    let Some(store) = Store::new() else { return };
    let Some(mut job) = plugin_job(&store, &json!({ "attr": "good" })) else {
        return;
    };
    for terminal in [false, true] {
        job.terminal(terminal)
            .command("echo \"$EVAL_ONCE_OUT has $(cat $EVAL_ONCE_OUT)\"\nenv | grep -c '^BUILDKITE_HOOK_\\|^EVAL_ONCE_STEP' || exit 42");
        let ran = job.run();
        let output = plain(ran.output.as_deref().unwrap());
        assert_eq!(ran.ending.code(), Some(42), "{output}");
        assert!(output.contains("-good has built\n0\n"), "{output}");
    }
}

#[test]
fn a_step_with_the_plugin_twice_builds_both_targets() {
    let Some(store) = Store::new() else { return };
    let Some(mut job) = job(&store) else { return };
    let plugin = plugin_repository(job.folder());
    job.command("cat first second").plugins(&[
        (
            &plugin,
            json!({ "attr": "good", "out-link": "first", "command": "none" }),
        ),
        (&plugin, json!({ "attr": "other", "out-link": "second" })),
    ]);
    let ran = job.run();
    assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
    assert_eq!(
        ran.plain().matches("\nbuilt\nother\n").count(),
        1,
        "{}",
        ran.log
    );
}

/// A job whose plugin finds stand-ins of our program in the places given, each of which says where it is.
fn find_from(store: &Store, places: &[&str]) -> Option<Ran> {
    let mut job = job(store)?;
    job.unset("EVAL_ONCE_BIN");
    let plugin = job.folder().join("eval-once-buildkite-plugin");
    plugin_repository(job.folder());
    let path = job.folder().join("path");
    fs::create_dir(&path).unwrap();
    for place in places {
        let file = match *place {
            "EVAL_ONCE_BIN" => job.folder().join("named"),
            "PATH" => path.join("eval-once"),
            within => plugin.join(within).join("eval-once"),
        };
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        // Silent as the environment hook: that would name one program for all later hooks.
        let text = format!(
            "#!/bin/sh\n[ \"$1\" = hook ] || exit 0\necho \"found in {place}: $*\"\nexec '{EVAL_ONCE}' \"$@\"\n"
        );
        write_program(&file, &text);
        if *place == "EVAL_ONCE_BIN" {
            job.set("EVAL_ONCE_BIN", file);
        }
    }
    let reference = commit_again(&plugin);
    job.set("PATH", without_cargo(&path, job.folder()))
        .plugins(&[(&reference, json!({ "attr": "good" }))]);
    Some(job.run())
}

/// Commits a repository anew, with all that has been put into it since.
fn commit_again(plugin: &Path) -> String {
    fs::remove_dir_all(plugin.join(".git")).unwrap();
    commit(plugin)
}

/// A `PATH` on which stand the programs that a hook, git and a step need, and neither cargo nor eval-once.
fn without_cargo(first: &Path, folder: &Path) -> OsString {
    let tools = folder.join("tools");
    fs::create_dir_all(&tools).unwrap();
    for name in [
        "bash",
        "sh",
        "git",
        "env",
        "cat",
        "find",
        "sort",
        "cksum",
        "flock",
        "mkdir",
        "mv",
        "rm",
        "cp",
        "dirname",
        "nix-store",
        "nix-instantiate",
        "nix",
        "install",
        "chmod",
        "sed",
        "readlink",
        "sleep",
    ] {
        let link = tools.join(name);
        if let Some(real) = tool(name).filter(|_| !link.exists()) {
            symlink(real, link).unwrap();
        }
    }
    std::env::join_paths([first, &tools]).unwrap()
}

#[test]
fn the_program_is_found_in_the_order_that_is_documented() {
    let Some(store) = Store::new() else { return };
    let all = ["EVAL_ONCE_BIN", "bin", "target/release", "PATH"];
    for first in 0..all.len() {
        let Some(ran) = find_from(&store, &all[first..]) else {
            return;
        };
        let output = ran.plain();
        assert_eq!(ran.ending.code(), Some(0), "{output}");
        let found = format!("found in {}: hook command\n", all[first]);
        assert!(output.contains(&found), "not {found:?}: {output}");
        // And no other place was asked.
        for other in all.iter().filter(|place| **place != all[first]) {
            assert!(
                !output.contains(&format!("found in {other}: hook")),
                "{output}"
            );
        }
    }
}

#[test]
fn without_a_program_and_without_cargo_the_job_ends_with_69_and_says_how_to_install_it() {
    let Some(store) = Store::new() else { return };
    let Some(ran) = find_from(&store, &[]) else {
        return;
    };
    let output = ran.plain();
    assert_eq!(ran.ending.code(), Some(69), "{output}");
    let said = |start: &str| output.lines().any(|line| line.starts_with(start));
    assert!(
        said("eval-once: error: the program eval-once was not found"),
        "{output}"
    );
    assert!(
        said("eval-once: hint: install the program and set EVAL_ONCE_BIN to its path"),
        "{output}"
    );
}

#[test]
fn a_program_that_was_named_but_is_not_there_is_not_replaced_by_another_one() {
    let Some(store) = Store::new() else { return };
    let Some(mut job) = plugin_job(&store, &json!({ "attr": "good" })) else {
        return;
    };
    job.set("EVAL_ONCE_BIN", "/no/such/eval-once");
    let ran = job.run();
    assert_eq!(ran.ending.code(), Some(69), "{}", ran.log);
    assert!(
        ran.plain().contains("EVAL_ONCE_BIN is /no/such/eval-once"),
        "{}",
        ran.log
    );
}

#[test]
fn the_program_is_built_once_for_several_jobs_and_agents_of_a_host() {
    let Some(store) = Store::new() else { return };
    // A stand-in for cargo, which needs minutes: it waits until both jobs have begun to look for the program.
    let text = format!(
        "#!/bin/sh\necho \"$PWD: $*\" >> '{calls}'\n\
         while [ $# -gt 0 ]; do [ \"$1\" = --target-dir ] && target=$2; shift; done\n\
         read -r line < '{go}'\n\
         mkdir -p \"$target/release\"\ncp '{EVAL_ONCE}' \"$target/release/eval-once\"\n",
        calls = store.root().join("calls").display(),
        go = store.root().join("go").display(),
    );
    write_program(&store.bin().join("cargo"), &text);
    let go = store.root().join("go");
    fifo(&go);
    let plugin = plugin_repository(store.root());
    let jobs: Option<Vec<Job>> = (0..3)
        .map(|_| {
            let mut job = job(&store)?;
            job.unset("EVAL_ONCE_BIN")
                .set("PATH", without_cargo(&store.bin(), store.root()))
                .plugins(&[(&plugin, json!({ "attr": "good" }))]);
            Some(job)
        })
        .collect();
    let Some(jobs) = jobs else { return };
    let (last, first) = jobs.split_last().unwrap();
    let running: Vec<_> = first.iter().map(Job::start).collect();
    until("both jobs wait for the program", || {
        let said = |job: &Job| fs::read_to_string(job.folder().join("log")).unwrap_or_default();
        first
            .iter()
            .all(|job| said(job).contains("building it once"))
    });
    // The job that called cargo reads this. Had both called it, the other one would wait for a line of its own for ever.
    let_go(&go, "go\n");
    for job in running {
        let ran = job.wait();
        assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
    }
    let ran = last.run();
    assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
    assert!(!ran.plain().contains("building it"), "{}", ran.log);
    let calls = fs::read_to_string(store.root().join("calls")).unwrap();
    assert_eq!(calls.lines().count(), 1, "{calls}");
    assert!(calls.contains(": build --release --locked"), "{calls}");
}

#[test]
fn statuses_and_deaths_pass_through_the_shell_hook() {
    let Some(mut job) = Job::new() else { return };
    let plugin = plugin_repository(job.folder());
    let program = job.folder().join("named");
    job.plugins(&[(&plugin, json!({ "attr": "good" }))])
        .set("EVAL_ONCE_BIN", &program);
    for status in [0, 1, 64, 75, 100, 102, 137] {
        write_program(
            &program,
            &format!("#!/bin/sh\n[ \"$1\" = hook ] || exit 0\nexit {status}\n"),
        );
        let ran = job.run();
        assert_eq!(ran.ending.code(), Some(status), "{}", ran.log);
    }
}

#[test]
fn a_plugin_that_stands_in_the_checkout_works_as_well() {
    let Some(store) = Store::new() else { return };
    let Some(mut job) = job(&store) else { return };
    plugin_repository(&job.checkout());
    job.plugins(&[("./eval-once-buildkite-plugin", json!({ "attr": "good" }))]);
    let ran = job.run();
    assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
    assert_eq!(
        fs::read_to_string(job.checkout().join("result")).unwrap(),
        "built\n"
    );
}

#[test]
fn a_program_for_another_machine_ends_the_job_with_69() {
    let Some(store) = Store::new() else { return };
    let Some(mut job) = plugin_job(&store, &json!({ "attr": "good" })) else {
        return;
    };
    let program = job.folder().join("eval-once");
    write_program(&program, "#!/no/such/loader\n");
    job.set("EVAL_ONCE_BIN", &program).command("echo ran");
    let ran = job.run();
    let output = ran.plain();
    assert_eq!(ran.ending.code(), Some(69), "{output}");
    assert!(output.contains("cannot be run on this machine"), "{output}");
    assert!(!output.lines().any(|line| line == "ran"), "{output}");
}
