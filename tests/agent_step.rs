//! A job with `EVAL_ONCE_STEP` on an agent whose own command hook we are: what is built, what is refused, and the step's own command
//! after it, which runs as the agent itself would have run it.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};
use unix::sys::signal::Signal;

use crate::support::{
    agent::{Job, Ran, is_old, plain},
    loudly,
    stand_in::{StandIns, write_program},
    store::Store,
    until,
};

/// `several` has its outputs in an order in which `out` is not the first, `partial` has none of that name.
const TARGETS: &str = r#"
let
  target = attributes: script: derivation ({
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-c" script ];
  } // attributes);
in {
  good = target { name = "good"; } "echo good > $out";
  several = target { name = "several"; outputs = [ "dev" "out" "man-pages" ]; } ''
    echo dev > $dev; echo out > $out; echo man > ${builtins.placeholder "man-pages"}
  '';
  partial = target { name = "partial"; outputs = [ "dev" "lib" ]; } "echo lib > $lib; echo dev > $dev";
  bad = target { name = "bad"; } "exit 3";
}
"#;

fn job(store: &Store, record: &Value) -> Option<Job> {
    let mut job = Job::new()?;
    job.set_all(store.env())
        .set("EVAL_ONCE_STEP", record.to_string());
    job.our_hook("command");
    fs::write(job.checkout().join("default.nix"), TARGETS).unwrap();
    Some(job)
}

/// Runs a job with this record and command.
fn run(store: &Store, record: &Value, command: &str) -> Option<Ran> {
    let mut job = job(store, record)?;
    job.command(command);
    Some(job.run())
}

fn good() -> Value {
    json!({ "attr": "good" })
}

/// What the command printed: the lines that are neither ours nor Nix's, each marked by the command.
fn marked(ran: &Ran) -> Vec<String> {
    plain(ran.output.as_deref().unwrap())
        .lines()
        .filter_map(|line| line.strip_prefix("> "))
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_job_with_a_record_is_built_and_then_its_command_runs() {
    let Some(store) = Store::new() else { return };
    let Some(ran) = run(
        &store,
        &good(),
        "echo \"> $(cat result) $(cat $EVAL_ONCE_OUT)\"; exit 9",
    ) else {
        return;
    };
    assert_eq!(marked(&ran), ["good good"], "{}", ran.log);
    assert_eq!(ran.ending.code(), Some(9), "{}", ran.log);
    assert!(
        ran.plain().contains("eval-once: evaluated /"),
        "{}",
        ran.log
    );
}

/// The sentences of ours in a log, without their colours.
fn sentences(log: &str) -> Vec<String> {
    let plain = plain(log);
    let ours = plain.lines().filter(|line| line.starts_with("eval-once: "));
    ours.map(str::to_owned).collect()
}

#[test]
fn a_green_step_prints_at_most_three_sentences() {
    let Some(store) = Store::new() else { return };
    for attribute in ["good", "several"] {
        for command in ["eval-once step", "echo '> ran'"] {
            let record = json!({ "attr": attribute });
            let Some(ran) = run(&store, &record, command) else {
                return;
            };
            assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
            assert_eq!(sentences(&ran.log).len(), 2, "{}", ran.log);
        }
    }
    let Some(ran) = run(
        &store,
        &json!({ "attr": "several" }),
        "eval-once step --attr x",
    ) else {
        return;
    };
    let sentences = sentences(&ran.log);
    let [report, outputs, flags] = sentences.as_slice() else {
        panic!("{}", ran.log);
    };
    assert!(report.starts_with("eval-once: evaluated /"), "{}", ran.log);
    let names: Vec<_> = outputs
        .split(' ')
        .filter_map(|word| word.strip_suffix(':'))
        .collect();
    assert_eq!(names, ["eval-once", "dev", "man-pages", "out"], "{outputs}");
    assert!(flags.contains("flags"), "{flags}");
}

#[test]
fn a_green_step_that_evaluates_again_prints_at_most_three_sentences_and_why_in_its_heading() {
    let Some(store) = Store::new() else { return };
    store.write("default.nix", TARGETS);
    let several = store.target("several");
    let record = |attribute: &str| json!({ "drv": several.drv, "outputs": several.outputs, "file": "default.nix", "attr": attribute });
    for (attribute, last) in [
        ("several", "hint: evaluated again"),
        ("good", "warning: drift: "),
    ] {
        store.collect();
        let Some(ran) = run(&store, &record(attribute), "echo '> ran'") else {
            return;
        };
        assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
        let sentences = sentences(&ran.log);
        let [report, hint, outputs] = sentences.as_slice() else {
            panic!("{}", ran.log);
        };
        assert!(report.starts_with("eval-once: evaluated /"), "{}", ran.log);
        assert!(
            hint.starts_with(&format!("eval-once: {last}")),
            "{}",
            ran.log
        );
        assert!(outputs.contains("out: /"), "{}", ran.log);
        let heading = format!(
            "--- eval-once: evaluating {attribute} of default.nix, because the recorded outputs are neither here nor in a substituter; {} is not valid",
            several.drv
        );
        assert!(ran.plain().contains(&heading), "{}", ran.log);
    }
}

#[test]
fn words_of_ours_have_colour_where_the_agent_gives_the_job_a_terminal() {
    let Some(store) = Store::new() else { return };
    for terminal in [true, false] {
        let Some(mut job) = job(&store, &json!({ "attr": "bad" })) else {
            return;
        };
        job.terminal(terminal).command("true");
        let ran = job.run();
        assert_eq!(ran.ending.code(), Some(100), "{}", ran.log);
        for coloured in [
            "eval-once: \u{1b}[31;1merror:\u{1b}[0m ",
            "eval-once: \u{1b}[31;1mfailed\u{1b}[0m (build) ",
            "bad> \u{1b}[31;1mfailed\u{1b}[0m after ",
            "--- eval-once: \u{1b}[31;1mbad failed (build, exit status 100)\u{1b}[0m",
        ] {
            assert_eq!(
                ran.log.contains(coloured),
                terminal,
                "{coloured:?}: {}",
                ran.log
            );
            assert!(ran.plain().contains(&plain(coloured)), "{}", ran.log);
        }
    }
}

#[test]
fn the_command_has_every_output_in_its_environment() {
    let Some(store) = Store::new() else { return };
    let command = "env | sed -n 's/^EVAL_ONCE_OUT/> &/p' | sort";
    let seen = |attribute: &str| -> Option<BTreeMap<String, String>> {
        let ran = run(&store, &json!({ "attr": attribute }), command)?;
        assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
        let pairs = marked(&ran).into_iter().map(|line| {
            let (name, path) = line.split_once('=').unwrap();
            (name.to_owned(), fs::read_to_string(path).unwrap())
        });
        Some(pairs.collect())
    };
    let expected = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), format!("{text}\n"));
        pairs.iter().map(owned).collect()
    };
    let Some(several) = seen("several") else {
        return;
    };
    assert_eq!(
        several,
        expected(&[
            ("EVAL_ONCE_OUT", "out"),
            ("EVAL_ONCE_OUT_DEV", "dev"),
            ("EVAL_ONCE_OUT_MAN_PAGES", "man"),
            ("EVAL_ONCE_OUT_OUT", "out"),
        ])
    );
    assert_eq!(
        seen("partial").unwrap(),
        expected(&[
            ("EVAL_ONCE_OUT", "dev"),
            ("EVAL_ONCE_OUT_DEV", "dev"),
            ("EVAL_ONCE_OUT_LIB", "lib"),
        ])
    );
}

#[test]
fn after_a_failed_build_the_command_does_not_run() {
    let Some(store) = Store::new() else { return };
    let Some(ran) = run(&store, &json!({ "attr": "bad" }), "echo '> ran'") else {
        return;
    };
    assert_eq!(ran.ending.code(), Some(100), "{}", ran.log);
    assert!(marked(&ran).is_empty(), "{}", ran.log);
}

#[test]
fn a_command_that_is_the_step_itself_is_not_run_again() {
    let Some(store) = Store::new() else { return };
    let called = store.root().join("called");
    let text = format!("#!/bin/sh\necho \"$*\" > '{}'\n", called.display());
    write_program(&store.bin().join("eval-once"), &text);
    for command in ["eval-once step", " eval-once step\n", "eval-once  step"] {
        let Some(mut job) = job(&store, &good()) else {
            return;
        };
        let mut path = store.bin().into_os_string();
        path.push(":");
        path.push(store.path());
        job.command(command).set("PATH", path);
        let ran = job.run();
        assert_eq!(ran.ending.code(), Some(0), "{command}: {}", ran.log);
        assert!(!called.exists(), "{command}: {}", ran.log);
        assert!(
            job.checkout().join("result").exists(),
            "{command}: {}",
            ran.log
        );
    }
}

#[test]
fn without_a_command_there_is_nothing_to_run() {
    let Some(store) = Store::new() else { return };
    for command in [None, Some(""), Some(" \n")] {
        let Some(mut job) = job(&store, &good()) else {
            return;
        };
        if let Some(command) = command {
            job.command(command);
        }
        let ran = job.run();
        assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
        assert!(job.checkout().join("result").exists(), "{}", ran.log);
    }
}

#[test]
fn with_command_none_there_is_no_command_that_could_be_left_out() {
    let Some(store) = Store::new() else { return };
    let record = json!({ "attr": "good", "command": "none" });
    for (command, status) in [("echo '> ran'", 64), ("eval-once step", 0), ("", 0)] {
        let Some(mut job) = job(&store, &record) else {
            return;
        };
        job.command(command);
        let ran = job.run();
        assert_eq!(ran.ending.code(), Some(status), "{command}: {}", ran.log);
        assert!(marked(&ran).is_empty(), "{}", ran.log);
        let built = job.checkout().join("result").exists();
        assert_eq!(built, status == 0, "{command}: {}", ran.log);
    }
}

#[test]
fn a_record_that_cannot_be_read_is_refused_and_nothing_is_run() {
    let Some(store) = Store::new() else { return };
    for (record, named) in [
        ("{", "EVAL_ONCE_STEP"),
        ("[]", "EVAL_ONCE_STEP"),
        ("\"good\"", "EVAL_ONCE_STEP"),
        (r#"{"attr":"good","file":null}"#, "file"),
        (r#"{"attr":"good","shar":1}"#, "shar"),
        (r#"{"attr":"good","pipeline":{}}"#, "pipeline"),
    ] {
        let Some(mut job) = job(&store, &Value::Null) else {
            return;
        };
        fs::write(
            job.checkout().join("default.nix"),
            "throw \"it was evaluated\"",
        )
        .unwrap();
        job.set("EVAL_ONCE_STEP", record).command("echo '> ran'");
        let ran = job.run();
        let output = ran.plain();
        assert_eq!(ran.ending.code(), Some(64), "{record}: {output}");
        let error = output
            .lines()
            .find(|line| line.starts_with("eval-once: error: "));
        assert!(
            error.is_some_and(|error| error.contains(named)),
            "{record}: {output}"
        );
        assert!(marked(&ran).is_empty(), "{record}: {output}");
        assert!(!output.contains("it was evaluated"), "{record}: {output}");
    }
}

#[test]
fn what_a_recording_has_refused_is_reported_and_nothing_is_built_or_run() {
    let Some(store) = Store::new() else { return };
    let message = "good: its `meta.buildkite.env` is $(touch pwned) `x` \"y\"";
    for record in [
        json!({ "refused": message }),
        // Whatever stands beside it.
        json!({ "refused": message, "attr": "good", "shar": 1 }),
    ] {
        for command in ["eval-once step", "echo '> ran'"] {
            let Some(mut job) = job(&store, &record) else {
                return;
            };
            job.set("BUILDKITE_COMMAND_EVAL", "false").command(command);
            let ran = job.run();
            assert_eq!(ran.ending.code(), Some(64), "{}", ran.log);
            let line = format!("eval-once: error: {message}\n");
            assert!(ran.plain().contains(&line), "{}", ran.log);
            assert!(marked(&ran).is_empty(), "{}", ran.log);
            assert!(!job.checkout().join("result").exists(), "{}", ran.log);
        }
        // By hand, and asked what it would do.
        for subcommand in ["step", "explain"] {
            let ended = store
                .eval_once([subcommand])
                .env("EVAL_ONCE_STEP", record.to_string())
                .run();
            ended.exits(64).passes_on(message);
        }
    }
}

/// What of a job's process the agent decides. Its parent: that we have been replaced.
const PROCESS: &str = r#"
grep -E '^(SigPnd|ShdPnd|SigBlk|SigIgn|Umask|NoNewPrivs):' /proc/self/status
cat /proc/self/limits
for fd in /proc/$$/fd/*; do echo "fd ${fd##*/}"; done
read -r pid comm state parent group session tty foreground rest < /proc/$$/stat
echo "leads: $((pid == group)) $((pid == session)) $((pid == foreground)) $comm"
echo "parent: $(readlink /proc/$parent/exe | sed 's|.*/||')"
test -t 0 && stty -a; readlink /proc/$$/fd/0 | sed 's|[0-9]*$||'
pwd; echo "$0 $-"
"#;

#[test]
fn the_command_after_a_step_is_the_process_that_the_agent_would_have_started() {
    let Some(store) = Store::new() else { return };
    for terminal in [false, true] {
        let Some(mut job) = job(&store, &good()) else {
            return;
        };
        let command = format!("{{ {PROCESS} }} > ../process; env -0 > ../environment");
        job.terminal(terminal).command(command);
        let run = |job: &Job| {
            let ran = job.run();
            assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
            let read = |name: &str| fs::read_to_string(job.folder().join(name)).unwrap();
            let environment: BTreeMap<String, String> = read("environment")
                .split_terminator('\0')
                .map(|variable| variable.split_once('=').unwrap())
                .filter(|(name, _)| !name.starts_with("BUILDKITE_AGENT_JOB_API_"))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect();
            (read("process"), environment)
        };
        let (process, mut environment) = run(&job);
        fs::remove_file(job.hooks().join("command")).unwrap();
        let (of_the_agent, mut environment_of_the_agent) = run(&job);
        assert_eq!(process, of_the_agent);
        assert!(environment.remove("EVAL_ONCE_OUT").is_some());
        assert!(environment.remove("EVAL_ONCE_OUT_OUT").is_some());
        assert!(environment_of_the_agent.remove("EVAL_ONCE_STEP").is_some());
        assert_eq!(environment, environment_of_the_agent);
    }
}

#[test]
fn a_script_in_the_checkout_and_the_agents_shell_are_used_for_the_command() {
    let Some(store) = Store::new() else { return };
    let Some(mut job) = job(&store, &good()) else {
        return;
    };
    let script = job.checkout().join("run");
    fs::write(&script, "#!/bin/sh\necho \"> $0 $(cat result)\"; exit 5\n").unwrap();
    job.command("run");
    let ran = job.run();
    assert_eq!(marked(&ran), ["./run good"], "{}", ran.log);
    assert_eq!(ran.ending.code(), Some(5), "{}", ran.log);
    job.command("run")
        .set("BUILDKITE_SHELL", "/bin/echo '> with'");
    let ran = job.run();
    assert_eq!(marked(&ran), ["with ./run"], "{}", ran.log);
}

#[test]
fn the_death_of_the_command_by_a_signal_is_the_jobs() {
    let Some(store) = Store::new() else { return };
    let Some(ran) = run(&store, &good(), "kill -KILL $$") else {
        return;
    };
    assert!(ran.log.contains("interrupted by a signal"), "{}", ran.log);
}

#[test]
fn a_command_that_is_cancelled_gets_the_signal_and_its_time() {
    let Some(store) = Store::new() else { return };
    for terminal in [false, true] {
        let Some(mut job) = job(&store, &good()) else {
            return;
        };
        job.terminal(terminal).command(
            "trap 'echo; echo \"> cleaning up\"; exit 7' TERM; : > ../begun; sleep 600 & wait $!; echo '> never'",
        );
        let running = job.start();
        let begun = job.folder().join("begun");
        until("the command has begun", || begun.exists());
        running.signal(Signal::SIGTERM);
        let ran = running.wait();
        assert_eq!(marked(&ran), ["cleaning up"], "{}", ran.log);
    }
}

#[test]
fn a_step_that_is_built_already_costs_one_nix_process_in_the_hook() {
    let Some(store) = Store::new() else { return };
    let drv = store.instantiate(
        store.write("default.nix", TARGETS).to_str().unwrap(),
        "good",
    );
    let out = store.build(&drv);
    let stand_ins = StandIns::new(store.bin())
        .counting("nix-store")
        .counting("nix-instantiate")
        .counting("nix");
    let record = json!({ "drv": drv, "outputs": { "out": out[0] }, "attr": ["good"] });
    let Some(mut job) = job(&store, &record) else {
        return;
    };
    fs::write(
        job.checkout().join("default.nix"),
        "throw \"it was evaluated\"",
    )
    .unwrap();
    job.set("PATH", stand_ins.path(&store));
    let ran = job.run();
    assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
    assert_eq!(stand_ins.calls("nix-store").len(), 1, "{}", ran.log);
    assert_eq!(stand_ins.calls("nix-instantiate").len(), 0);
    assert_eq!(stand_ins.calls("nix").len(), 0);
}

/// Runs a job in which the agent does not let commands be evaluated.
fn restricted(store: &Store, record: &Value) -> Option<Ran> {
    let mut job = job(store, record)?;
    job.set("BUILDKITE_COMMAND_EVAL", "false");
    write_program(
        &job.checkout().join("script"),
        "#!/bin/sh\necho '> script ran'\n",
    );
    job.command("script");
    Some(job.run())
}

#[test]
fn where_command_eval_is_off_a_hook_takes_nothing_that_is_a_command() {
    let Some(store) = Store::new() else { return };
    let outside = store.write("outside.nix", TARGETS);
    let outside = outside.to_str().unwrap();
    for (record, named) in [
        (
            json!({ "expr": "import ./default.nix", "attr": "good" }),
            "expr",
        ),
        (json!({ "flake": ".", "attr": "good" }), "flake"),
        (
            json!({ "file": "https://example.com/x.tar.gz", "attr": "good" }),
            "file",
        ),
        (
            json!({ "file": "channel:nixos-unstable", "attr": "good" }),
            "file",
        ),
        (json!({ "file": "<nixpkgs>", "attr": "good" }), "file"),
        (json!({ "file": outside, "attr": "good" }), "file"),
        (json!({ "file": "../outside.nix", "attr": "good" }), "file"),
        (
            json!({ "file": "sub/../../outside.nix", "attr": "good" }),
            "file",
        ),
        (
            json!({ "attr": "good", "out-link": "/tmp/elsewhere" }),
            "out-link",
        ),
        (
            json!({ "attr": "good", "out-link": "../elsewhere" }),
            "out-link",
        ),
        (
            json!({ "attr": "good", "options": { "builders": "ssh://x" } }),
            "builders",
        ),
        (
            json!({ "attr": "good", "options": { "post-build-hook": "/x", "cores": 1 } }),
            "post-build-hook",
        ),
    ] {
        let Some(ran) = restricted(&store, &record) else {
            return;
        };
        let output = ran.plain();
        assert_eq!(ran.ending.code(), Some(64), "{record}: {output}");
        let error = output
            .lines()
            .find(|line| line.starts_with("eval-once: error: "));
        assert!(
            error.is_some_and(|error| error.contains(named)),
            "{record}: {output}"
        );
        assert!(marked(&ran).is_empty(), "{record}: {output}");
    }
}

#[test]
fn where_command_eval_is_off_a_link_out_of_the_checkout_does_not_lead_out_of_it() {
    let Some(store) = Store::new() else { return };
    let outside = store.write("outside/default.nix", TARGETS);
    let record = json!({ "file": "link/default.nix", "attr": "good" });
    let Some(mut job) = job(&store, &record) else {
        return;
    };
    std::os::unix::fs::symlink(outside.parent().unwrap(), job.checkout().join("link")).unwrap();
    job.set("BUILDKITE_COMMAND_EVAL", "false");
    let ran = job.run();
    assert_eq!(ran.ending.code(), Some(64), "{}", ran.log);
}

#[test]
fn where_command_eval_is_off_a_target_of_the_checkout_is_built_and_its_script_runs() {
    let Some(store) = Store::new() else { return };
    for record in [
        good(),
        json!({ "file": "./default.nix", "attr": "good", "out-link": "sub/link" }),
        json!({ "attr": "good", "options": {
            "timeout": 600, "max-silent-time": 600, "cores": 1, "max-jobs": 1, "keep-going": true
        } }),
    ] {
        let Some(mut job) = job(&store, &record) else {
            return;
        };
        job.set("BUILDKITE_COMMAND_EVAL", "false").command("script");
        fs::create_dir(job.checkout().join("sub")).unwrap();
        write_program(
            &job.checkout().join("script"),
            "#!/bin/sh\necho '> script ran'\n",
        );
        let ran = job.run();
        assert_eq!(ran.ending.code(), Some(0), "{record}: {}", ran.log);
        assert_eq!(marked(&ran), ["script ran"], "{record}: {}", ran.log);
    }
}

#[test]
fn where_command_eval_is_off_a_recorded_command_is_held_to_the_agents_rule() {
    let Some(store) = Store::new() else { return };
    for (command, status, printed) in [
        ("script", 0, vec!["script ran"]),
        ("echo '> ran'", 1, vec![]),
    ] {
        let Some(mut job) = job(&store, &good()) else {
            return;
        };
        write_program(
            &job.checkout().join("script"),
            "#!/bin/sh\necho '> script ran'\n",
        );
        job.set("BUILDKITE_COMMAND_EVAL", "false")
            .set("EVAL_ONCE_COMMAND", command)
            .command("eval-once step");
        let ran = job.run();
        assert_eq!(ran.ending.code(), Some(status), "{}", ran.log);
        assert_eq!(marked(&ran), printed, "{}", ran.log);
    }
}

#[test]
fn a_command_can_be_left_to_a_further_command_hook_of_the_agent() {
    let Some(store) = Store::new() else { return };
    let record = json!({ "attr": "good", "command": "none" });
    let Some(mut job) = job(&store, &record) else {
        return;
    };
    let further = job.folder().join("further");
    fs::create_dir(&further).unwrap();
    write_program(
        &further.join("command"),
        "#!/bin/bash\necho \"> $(cat result)\"; eval \"$BUILDKITE_COMMAND\"\n",
    );
    job.command("echo '> ran'; exit 6")
        .set("BUILDKITE_ADDITIONAL_HOOKS_PATHS", &further);
    let ran = job.run();
    // It is passed over by agents that know no further hooks: one ignores such a variable as it does any other.
    if is_old() {
        loudly("this agent has no additional-hooks-paths");
        return;
    }
    assert_eq!(ran.ending.code(), Some(6), "{}", ran.log);
    assert_eq!(ran.plain().matches("\n> good\n> ran\n").count(), 1);
}

#[test]
fn where_command_eval_is_off_a_console_command_after_the_step_is_refused_as_by_the_agent() {
    let Some(store) = Store::new() else { return };
    let Some(mut job) = job(&store, &good()) else {
        return;
    };
    job.set("BUILDKITE_COMMAND_EVAL", "false")
        .command("echo '> ran'");
    let ran = job.run();
    assert_eq!(ran.ending.code(), Some(1), "{}", ran.log);
    assert!(
        ran.plain()
            .contains("not allowed to evaluate console commands"),
        "{}",
        ran.log
    );
    assert!(marked(&ran).is_empty(), "{}", ran.log);
}

#[test]
fn a_missing_file_is_an_infrastructure_failure_only_where_the_checkout_is_missing() {
    let Some(store) = Store::new() else { return };
    let record = json!({ "file": "no-such.nix", "attr": "good" });
    let run = |prepare: &dyn Fn(&mut Job)| {
        let mut job = job(&store, &record)?;
        prepare(&mut job);
        Some(job.run())
    };
    let Some(absent) = run(&|_| {}) else { return };
    assert_eq!(absent.ending.code(), Some(65), "{}", absent.log);
    assert!(absent.plain().contains("no-such.nix"), "{}", absent.log);
    let skipped = run(&|job| {
        job.set("BUILDKITE_SKIP_CHECKOUT", "true");
    });
    assert_eq!(skipped.unwrap().ending.code(), Some(75));
    let empty = run(&|job| fs::remove_file(job.checkout().join("default.nix")).unwrap());
    assert_eq!(empty.unwrap().ending.code(), Some(75));
}

#[test]
fn a_step_whose_hook_has_no_nix_ends_with_69() {
    let Some(store) = Store::new() else { return };
    let Some(mut job) = job(&store, &good()) else {
        return;
    };
    job.set("PATH", "/nowhere").command("echo '> ran'");
    let ran = job.run();
    assert_eq!(ran.ending.code(), Some(69), "{}", ran.log);
    assert!(ran.plain().contains("nix"), "{}", ran.log);
    assert!(!Path::new(&job.checkout().join("result")).exists());
}
