//! How a step fails: each class by what causes it, with its status, its report, and nothing left behind.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::symlink, net::UnixListener},
    path::Path,
};

use serde_json::{Value, json};

use crate::outputs::is_nix;
use crate::support::{
    daemon::client_env,
    program::Ended,
    recording::Pipeline,
    stand_in::StandIns,
    store::Store,
    target::{Target, fifo},
};

const NO_FLAGS: [&str; 0] = [];

/// A step whose `.drv` is recorded and valid and whose evaluation would be seen.
#[track_caller]
fn recorded(store: &Store, body: &str) -> Target {
    store.targets(&format!("{{ target = {body}; }}"));
    let target = store.target("target");
    store.poison();
    target
}

fn with_source(target: &Target) -> Vec<String> {
    let mut flags = target.flags();
    flags.extend(["--file", "default.nix", "--attr", "target"].map(str::to_owned));
    flags
}

/// The failure was seen while this way was being taken, and no link was left.
#[track_caller]
fn while_taking(ended: &Ended, store: &Store, way: &str) {
    assert_eq!(ended.report()["way"], way, "{ended}");
    assert_eq!(store.links(), BTreeMap::new());
}

#[test]
fn a_failing_builder_is_100_and_nothing_is_evaluated() {
    let Some(store) = Store::new() else { return };
    let target = recorded(&store, "build \"bad\" \"echo the last words; exit 3\"");
    let ended = store.step(with_source(&target)).run();
    ended
        .fails(100, "build")
        .prints("")
        .passes_on("the last words");
    while_taking(&ended, &store, "realised");
    assert_eq!(ended.report()["failure"]["drv"], target.drv);
    assert_eq!(ended.report()["built"], 0);
}

#[test]
fn the_derivation_that_itself_failed_is_named() {
    let Some(store) = Store::new() else { return };
    store.targets(
        "rec { deep = build \"deep\" \"exit 3\"; target = build \"top\" \"echo ${deep} > $out\"; }",
    );
    let [target, deep] = ["target", "deep"].map(|name| store.target(name));
    store.poison();
    let ended = store.step(with_source(&target)).run();
    ended.fails(100, "build");
    assert_eq!(ended.report()["failure"]["drv"], deep.drv);
    assert_eq!(ended.report()["drv"], target.drv);
}

#[test]
fn a_failing_builder_is_100_through_a_daemon_too() {
    let Some(store) = Store::new() else { return };
    let target = recorded(&store, "build \"bad\" \"exit 3\"");
    let daemon = store.daemon();
    let ended = store.step(with_source(&target)).envs(daemon.env()).run();
    ended.fails(100, "build");
    while_taking(&ended, &store, "realised");
}

#[test]
fn what_is_built_in_place_of_a_derivation_fails_for_it() {
    let Some(store) = Store::new() else { return };
    store.configure("extra-experimental-features = ca-derivations");
    store.targets(
        r#"rec {
            floating = with' { __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; } "floating" "echo > $out";
            target = with' { inherit floating; } "above" "exit 3";
        }"#,
    );
    let target = store.target("target");
    store.poison();
    let daemon = store.daemon();
    // Nothing refers to the derivation that Nix makes of the recorded one, once it knows what that needs.
    for environment in [vec![], daemon.env()] {
        let ended = store.step(["--drv", &target.drv]).envs(environment).run();
        ended.fails(100, "build");
        let report = ended.report();
        let root_cause = report["failure"]["drv"].as_str().unwrap_or_default();
        assert!(
            root_cause.ends_with("-above.drv") && root_cause != target.drv,
            "{ended}"
        );
    }
}

#[test]
fn a_failing_builder_is_100_after_an_evaluation_too() {
    let Some(store) = Store::new() else { return };
    store.targets("{ target = build \"bad\" \"exit 3\"; }");
    let stand_ins = StandIns::new(store.bin()).counting("nix-instantiate");
    let ended = store
        .step(["--attr", "target"])
        .env("PATH", stand_ins.path(&store))
        .run();
    ended.fails(100, "build");
    while_taking(&ended, &store, "evaluated");
    assert_eq!(
        stand_ins.calls("nix-instantiate").len(),
        1,
        "a failed build is no reason to evaluate again"
    );
}

#[test]
fn the_command_behind_a_failed_build_is_not_run() {
    let Some(store) = Store::new() else { return };
    let target = recorded(&store, "build \"bad\" \"exit 3\"");
    let ran = store.work().join("ran");
    let mut flags = target.flags();
    flags.extend(["--", "touch", ran.to_str().unwrap()].map(str::to_owned));
    store.step(flags).run().fails(100, "build");
    assert!(!ran.exists());
}

#[test]
fn a_builder_that_makes_no_output_is_100() {
    let Some(store) = Store::new() else { return };
    let target = recorded(&store, "build \"nothing\" \":\"");
    let ended = store.step(with_source(&target)).run();
    ended.fails(100, "build");
    while_taking(&ended, &store, "realised");
}

#[test]
fn a_derivation_for_another_system_is_100() {
    let Some(store) = Store::new() else { return };
    let target = recorded(
        &store,
        "with' { system = \"pdp11-unix\"; } \"foreign\" \"echo > $out\"",
    );
    let ended = store.step(with_source(&target)).run();
    ended.fails(100, "build");
    while_taking(&ended, &store, "realised");
}

#[test]
fn a_machine_to_build_on_that_cannot_be_reached_is_75() {
    let Some(store) = Store::new() else { return };
    let target = recorded(&store, "build \"elsewhere\" \"echo > $out\"");
    store.configure("max-jobs = 0");
    store.configure("builders = ssh://nobody@127.0.0.1:1 x86_64-linux,aarch64-linux");
    let ended = store.step(with_source(&target)).run();
    ended
        .fails(75, "surroundings")
        .passes_on("could not be reached");
    while_taking(&ended, &store, "realised");
}

#[test]
fn a_build_that_takes_too_long_is_101() {
    let Some(store) = Store::new() else { return };
    fifo(&store.work().join("never"));
    let wait = format!(
        "build \"slow\" \"read x < {}\"",
        store.work().join("never").display()
    );
    let target = recorded(&store, &wait);
    for option in ["timeout", "max-silent-time"] {
        let ended = store
            .step(with_source(&target))
            .args(["--option", option, "1"])
            .run();
        ended.fails(101, "timeout");
        while_taking(&ended, &store, "realised");
    }
    let record = target.record(&json!({ "options": { "timeout": 1 } }));
    store
        .step(NO_FLAGS)
        .env("EVAL_ONCE_STEP", record.to_string())
        .run()
        .fails(101, "timeout");
}

/// A derivation whose output is promised to have a hash that it does not have.
const WRONG_HASH: &str = "with' { outputHashMode = \"flat\"; outputHashAlgo = \"sha256\"; outputHash = \
    \"0000000000000000000000000000000000000000000000000000000000000000\"; } \"fixed\" \"echo > $out\"";

#[test]
fn a_wrong_hash_is_102() {
    let Some(store) = Store::new() else { return };
    let target = recorded(&store, WRONG_HASH);
    let ended = store.step(with_source(&target)).run();
    ended.fails(102, "hash").passes_on("hash mismatch");
    while_taking(&ended, &store, "realised");
}

#[test]
fn several_kinds_of_failure_at_once_are_103() {
    let Some(store) = Store::new() else { return };
    let never = store.work().join("never");
    fifo(&never);
    let body = format!(
        "let wrong = {WRONG_HASH}; slow = build \"slow\" \"read x < {}\"; in build \"top\" \"echo ${{wrong}} ${{slow}} > $out\"",
        never.display()
    );
    let target = recorded(&store, &body);
    let options = ["--option", "keep-going", "true", "--option", "timeout", "1"];
    let ended = store.step(with_source(&target)).args(options).run();
    ended.fails(103, "mixed");
    while_taking(&ended, &store, "realised");
}

#[test]
fn what_does_not_evaluate_is_65_with_nixs_message() {
    let Some(store) = Store::new() else { return };
    for (text, message) in [
        (
            "{ target = throw \"these very words\"; }",
            "these very words",
        ),
        (
            "{ target = abort \"these very words\"; }",
            "these very words",
        ),
        ("{ target = ", "syntax error"),
        ("{ other = 1; }", "target"),
        ("{ target = let x = x; in x; }", "infinite recursion"),
        ("{ target = 1 + \"a\"; }", "string"),
        ("{ target.drvPath = 1; target.type = \"derivation\"; }", ""),
        // Later versions print the value: a path that is not built, and words like those about a missing one.
        (
            "let source = derivation { name = \"source\"; system = \"x\"; builder = \"/bin/sh\"; };
             in { target = \"${{ a = \"${source}/b\"; c = \"used where 'd' does not exist\"; }}\"; }",
            "string",
        ),
    ] {
        store.write("default.nix", text);
        let stand_ins = StandIns::new(store.root().join("counting")).counting("nix-instantiate");
        let ended = store
            .step(["--attr", "target"])
            .env("PATH", stand_ins.path(&store))
            .run();
        ended.fails(65, "evaluation").prints("").passes_on(message);
        while_taking(&ended, &store, "evaluated");
        assert_eq!(
            stand_ins.calls("nix-instantiate").len(),
            1,
            "{text} was evaluated again"
        );
        fs::remove_dir_all(store.root().join("counting")).unwrap();
    }
}

#[test]
fn a_file_that_a_source_in_the_store_lacks_is_no_work_of_the_collector() {
    let Some(store) = Store::new() else { return };
    // So says Nix from 2.20 on of a file that git does not know, in a flake: no store path, but one below it.
    let source = store.write("source/flake.nix", "{ }");
    let source = source.parent().unwrap().to_str().unwrap();
    let source = store.nix("nix-store", ["--add", source]);
    let missing = format!("{}/missing.nix", source.trim());
    // Where that source is not there either, only a repetition shows whose words these are, unless Nix says so.
    let nowhere = store
        .folder()
        .join("0lqnbrvn12aq3702vvxx00k31ga2sg2g-source/missing.nix");
    // A folder of the checkout may be named as a store path: Nix is asked for its store's folder.
    let alike = store
        .work()
        .join("0lqnbrvn12aq3702vvxx00k31ga2sg2g-source/missing.nix");
    for (path, calls) in [
        (alike.to_str().unwrap(), 1),
        (missing.as_str(), 1),
        ("/etc/missing.nix", 1),
        ("missing.nix", 1),
        (nowhere.to_str().unwrap(), if is_nix("2.8") { 3 } else { 1 }),
    ] {
        store.write(
            "default.nix",
            &format!("throw \"path '{path}' does not exist\""),
        );
        let stand_ins = StandIns::new(store.root().join("counting")).counting("nix-instantiate");
        let ended = store
            .step(NO_FLAGS)
            .env("PATH", stand_ins.path(&store))
            .run();
        ended.fails(65, "evaluation");
        assert_eq!(stand_ins.evaluations(), calls, "{path}");
        fs::remove_dir_all(store.root().join("counting")).unwrap();
    }
}

#[test]
fn a_link_that_leads_nowhere_in_a_source_is_no_work_of_the_collector() {
    let Some(store) = Store::new() else { return };
    let config = store.write("source/other", "").with_file_name("config");
    symlink("nowhere", config).unwrap();
    store.targets(
        "let source = builtins.path { path = ./source; name = \"source\"; };
         in { target = builtins.seq (builtins.readFile \"${source}/config\") (file \"a\"); }",
    );
    let stand_ins = StandIns::new(store.bin()).counting("nix-instantiate");
    let ended = store
        .step(["--attr", "target"])
        .env("PATH", stand_ins.path(&store))
        .run();
    ended.fails(65, "evaluation");
    assert_eq!(stand_ins.evaluations(), 1, "{ended}");
    let recorded = store.eval_once(["pipeline", "--dry-run"]).run();
    recorded.exits(0).passes_on("evaluation error: target");
}

#[test]
fn a_builder_that_evaluation_needed_is_100() {
    let Some(store) = Store::new() else { return };
    store.targets("{ target = import (build \"needed\" \"exit 3\"); }");
    let ended = store.step(["--attr", "target"]).run();
    ended.fails(100, "build");
    while_taking(&ended, &store, "evaluated");
}

#[test]
fn a_file_that_is_not_there_is_65() {
    let Some(store) = Store::new() else { return };
    store.write("something", "else");
    let ended = store.step(["--file", "missing.nix"]).run();
    ended.fails(65, "evaluation");
    assert!(
        ended.report()["failure"]["message"]
            .as_str()
            .unwrap()
            .contains("missing.nix")
    );
    store
        .step(["--file", "missing/"])
        .run()
        .fails(65, "evaluation");
    fs::create_dir(store.work().join("folder")).unwrap();
    store
        .step(["--file", "folder"])
        .run()
        .fails(65, "evaluation");
}

#[test]
fn a_file_that_is_not_there_is_75_where_there_is_no_checkout() {
    let Some(store) = Store::new() else { return };
    let step = store.step(["--file", "missing.nix"]);
    let empty = step.run();
    empty.fails(75, "surroundings");
    assert!(
        empty.ours().iter().any(|line| line.starts_with("hint: ")),
        "{empty}"
    );
    store.write("something", "else");
    step.run().fails(65, "evaluation");
    let skipped = step.env("BUILDKITE_SKIP_CHECKOUT", "true");
    skipped.run().fails(75, "surroundings");
}

#[test]
fn a_record_whose_drv_is_gone_with_nothing_to_evaluate_is_75_and_says_what_to_do() {
    let Some(store) = Store::new() else { return };
    let target = recorded(&store, "file \"hello\"");
    store.collect();
    for flags in [target.flags(), target.drv_flags()] {
        let ended = store.step(flags).run();
        ended.fails(75, "surroundings");
        let message = ended.report()["failure"]["message"].as_str().unwrap();
        assert!(message.contains(&target.drv), "{message}");
        assert!(
            ended.ours().iter().any(|line| line.starts_with("hint: ")),
            "{ended}"
        );
        assert_eq!(store.links(), BTreeMap::new());
    }
}

#[test]
fn without_nix_a_step_is_69_and_says_what_is_missing() {
    let Some(store) = Store::new() else { return };
    let target = recorded(&store, "file \"hello\"");
    let ended = store.step(target.flags()).env("PATH", store.bin()).run();
    ended.fails(69, "missing-program");
    assert!(
        ended.report()["failure"]["message"]
            .as_str()
            .unwrap()
            .contains("nix-store")
    );
    let ended = store
        .step(["--attr", "target"])
        .env("PATH", store.bin())
        .run();
    ended.fails(69, "missing-program");
    assert!(
        ended.report()["failure"]["message"]
            .as_str()
            .unwrap()
            .contains("nix-")
    );
}

#[test]
fn a_program_that_cannot_be_run_is_69() {
    let Some(store) = Store::new() else { return };
    let target = recorded(&store, "file \"hello\"");
    StandIns::new(store.bin()).instead("nix-store", "#!/no/such/interpreter\n");
    let ended = store.step(target.flags()).env("PATH", store.bin()).run();
    ended.fails(69, "missing-program");
}

#[test]
fn a_daemon_that_is_gone_is_75_in_every_way() {
    let Some(store) = Store::new() else { return };
    store.targets("{ target = file \"hello\"; }");
    let target = store.target("target");
    let missing = store.root().join("no-socket");
    let stale = store.root().join("stale-socket");
    drop(UnixListener::bind(&stale).unwrap());
    for socket in [missing, stale] {
        for flags in [
            with_source(&target),
            target.flags(),
            ["--attr", "target"].map(str::to_owned).to_vec(),
        ] {
            let ended = store.step(&flags).envs(client_env(&socket)).run();
            ended.fails(75, "surroundings").passes_on("socket");
            assert_eq!(store.links(), BTreeMap::new());
        }
    }
    store.delete([&target.drv]);
    let ended = store
        .step(with_source(&target))
        .envs(client_env(Path::new("/nowhere/socket")))
        .run();
    ended.fails(75, "surroundings");
}

#[test]
fn a_nix_that_was_killed_is_128_and_its_signal() {
    let Some(store) = Store::new() else { return };
    store.targets("{ target = file \"hello\"; }");
    let target = store.target("target");
    for (program, flags) in [
        ("nix-store", target.flags()),
        ("nix-instantiate", vec!["--attr".into(), "target".into()]),
    ] {
        let stand_ins = StandIns::new(store.root().join(program))
            .before(program, "if [ $NTH = 1 ]; then kill -KILL $$; fi");
        let ended = store.step(&flags).env("PATH", stand_ins.path(&store)).run();
        ended.fails(137, "signal");
    }
}

#[test]
fn a_host_that_forbids_it_never_evaluates() {
    let Some(store) = Store::new() else { return };
    store.targets("{ target = file \"hello\"; }");
    let target = store.target("target");
    let stand_ins = StandIns::new(store.bin()).counting("nix-instantiate");
    let policy = |flags: &[String]| {
        let step = store.step(flags).env("PATH", stand_ins.path(&store));
        step.env("EVAL_ONCE_POLICY", "recorded-only").run()
    };
    policy(&with_source(&target)).takes("realised", "drv-valid");
    store.delete([&target.drv]);
    policy(&with_source(&target)).takes("available", "outputs-available");
    fs::remove_file(store.work().join("result")).unwrap();
    store.delete([target.out()]);
    let gone = policy(&with_source(&target));
    gone.fails(75, "surroundings");
    assert!(
        gone.report()["failure"]["message"]
            .as_str()
            .unwrap()
            .contains(&target.drv)
    );
    policy(&["--attr".into(), "target".into()])
        .fails(75, "surroundings")
        .passes_on("This host does not evaluate; retrying only helps on a host that does.");
    assert_eq!(
        stand_ins.calls("nix-instantiate"),
        Vec::<Vec<String>>::new()
    );
    assert_eq!(store.links(), BTreeMap::new());
}

#[test]
fn a_wrong_value_of_a_host_setting_is_refused_by_its_name() {
    let Some(store) = Store::new() else { return };
    let target = recorded(&store, "file \"hello\"");
    for (name, value) in [
        ("EVAL_ONCE_POLICY", "record-only"),
        ("EVAL_ONCE_EVALUATIONS", "0"),
        ("EVAL_ONCE_EVALUATIONS", "-1"),
        ("EVAL_ONCE_EVALUATIONS", "many"),
    ] {
        let ended = store.step(target.flags()).env(name, value).run();
        ended.fails(64, "config").passes_on(name);
        assert!(!store.has(target.out()));
    }
}

#[test]
fn a_state_folder_that_cannot_be_made_is_a_warning() {
    let Some(store) = Store::new() else { return };
    store.targets("{ target = file \"hello\"; }");
    let target = store.target("target");
    let in_the_way = store.write("file", "");
    let state = in_the_way.join("state");
    let step = store
        .step(with_source(&target))
        .env("EVAL_ONCE_STATE_DIR", &state);
    step.run().takes("realised", "drv-valid");
    fs::remove_file(store.work().join("result")).unwrap();
    store.collect();
    let ended = step.run();
    ended
        .takes("evaluated", "drv-missing")
        .passes_on(state.to_str().unwrap());
    assert_eq!(store.links()["result"], target.out());
}

#[test]
fn a_full_state_folder_is_a_warning() {
    let Some(store) = Store::new() else { return };
    store.targets("{ target = file \"hello\"; }");
    // A file system with room for its own root and nothing else.
    let full = store.root().join("full");
    fs::create_dir(&full).unwrap();
    let mount = format!("mount -t tmpfs -o nr_inodes=1 none '{}'", full.display());
    let Some(step) = store.step_with_mounts(&mount, ["--attr", "target"]) else {
        return;
    };
    let ended = step.env("EVAL_ONCE_STATE_DIR", full.join("state")).run();
    ended
        .takes("evaluated", "not-recorded")
        .passes_on("No space left");
}

#[test]
fn a_report_that_cannot_be_written_is_seen_before_anything_is_built() {
    let Some(store) = Store::new() else { return };
    let target = recorded(&store, "file \"hello\"");
    let long = "r".repeat(300);
    for (report, why) in [
        ("no/such/folder/report.json", "no/such/folder"),
        ("result", "it would be in the place of the out-link"),
        (target.out(), "it would be in the store"),
        (long.as_str(), "File name too long"),
    ] {
        let mut flags = target.flags();
        flags.extend(["--report", report].map(str::to_owned));
        let ended = store.eval_once(["step"]).args(flags).run();
        ended.exits(64).passes_on(why);
        assert!(!store.has(target.out()));
    }
}

#[test]
fn each_failure_is_printed_once_and_with_a_report() {
    let Some(store) = Store::new() else { return };
    let target = recorded(&store, "build \"bad\" \"exit 3\"");
    let ended = store.step(with_source(&target)).run();
    ended.fails(100, "build");
    let report = ended.report();
    assert_eq!(report["reason"], "drv-valid");
    assert_eq!(report["outputs"], json!({}));
    assert_eq!(report["substituted"], 0);
    assert_eq!(report["drift"], Value::Bool(false));
}

#[test]
fn an_evaluation_without_a_folder_for_temporary_files_is_an_infrastructure_failure() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\"; needs = file (import (build \"made\" \"echo '\\\"name\\\"' > $out\")); throws = throw \"no\"; }");
    let missing = store.root().join("missing");
    let step = |attr: &str| {
        let step = store.step(["--attr", attr]).env("TMPDIR", &missing);
        step.run()
    };
    let ended = step("needs");
    let recording = store
        .eval_once(["pipeline", "--dry-run"])
        .env("TMPDIR", &missing)
        .run();
    if ended.status.success() {
        // From some version between 2.26 and 2.34 on Nix builds in its state folder.
        recording.exits(0);
    } else {
        ended.fails(75, "surroundings");
        recording.exits(75);
        let named = format!("TMPDIR is {}, which is not a folder", missing.display());
        for ended in [&ended, &recording] {
            let said = ended.ours();
            let error = said.iter().find(|line| line.starts_with("error: "));
            assert!(error.is_some_and(|error| error.contains(&named)), "{ended}");
        }
    }
    // An expression that needs no such folder is as good, or as bad, as ever.
    step("throws").fails(65, "evaluation");
}

#[test]
fn a_recording_without_a_folder_for_temporary_files_goes_on_where_nothing_needs_one() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\"; throws = throw \"no\"; }");
    let missing = store.root().join("missing");
    let recording = store
        .eval_once(["pipeline", "--dry-run"])
        .env("TMPDIR", missing)
        .run();
    assert_eq!(Pipeline::of(&recording).drvs().len(), 1);
}
