//! The ways in which a step gets its outputs, and what it leaves behind in each.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::Read,
    os::unix::{ffi::OsStrExt, fs::FileTypeExt},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::json;
use unix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::{
    collector::beside_collectors,
    daemon::Daemon,
    program::{Ended, Program, read_json},
    stand_in::StandIns,
    store::Store,
    target::{Target, fifo},
};

/// `hello`, built of nothing but a shell.
fn hello(store: &Store) -> Target {
    store.targets("{ hello = file \"hello\"; }");
    store.target("hello")
}

/// The flags of a step whose record is `target`, with what evaluates it again.
fn recorded(target: &Target) -> Vec<String> {
    let mut flags = target.flags();
    flags.extend(["--file", "default.nix", "--attr", "hello"].map(str::to_owned));
    flags
}

/// All of Nix's programs that a step may use, counted.
fn counted(store: &Store) -> StandIns {
    StandIns::new(store.bin())
        .counting("nix-store")
        .counting("nix-instantiate")
        .counting("nix-build")
        .counting("nix")
}

/// How many of Nix's processes there were.
fn processes(stand_ins: &StandIns) -> usize {
    ["nix-store", "nix-instantiate", "nix-build", "nix"]
        .map(|program| stand_ins.calls(program).len())
        .iter()
        .sum()
}

/// The step succeeded, left the link `result` to the output, and printed its path.
#[track_caller]
fn gives(ended: &Ended, store: &Store, target: &Target) {
    ended.exits(0).prints(&format!("{}\n", target.out()));
    assert_eq!(
        store.links(),
        BTreeMap::from([("result".to_owned(), target.out().to_owned())])
    );
    assert_eq!(
        fs::read_to_string(store.work().join("result")).unwrap(),
        "hello\n"
    );
    let report = ended.report();
    assert_eq!(report["drv"], target.drv);
    assert_eq!(report["outputs"], json!(target.outputs));
    assert_eq!(report["drift"], false);
    assert!(
        store.roots().contains(&store.work().join("result")),
        "the link is no root"
    );
}

#[test]
fn a_recorded_drv_is_realised_and_nothing_is_evaluated() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.poison();
    let ended = store.step(recorded(&target)).run();
    ended
        .takes("realised", "drv-valid")
        .counts(1, 0)
        .says(&["built 1, substituted 0"]);
    gives(&ended, &store, &target);
}

#[test]
fn outputs_that_are_there_take_exactly_one_nix_process() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.build(&target.drv);
    store.poison();
    let stand_ins = counted(&store);
    let ended = store
        .step(recorded(&target))
        .env("PATH", stand_ins.path(&store))
        .run();
    ended
        .takes("realised", "drv-valid")
        .counts(0, 0)
        .says(&["built 0, substituted 0"]);
    gives(&ended, &store, &target);
    assert_eq!(
        processes(&stand_ins),
        1,
        "{:?}",
        stand_ins.calls("nix-store")
    );
    let call = &stand_ins.calls("nix-store")[0];
    assert!(
        call.contains(&"--realise".to_owned()) && call.contains(&target.drv),
        "{call:?}"
    );
}

#[test]
fn a_drv_that_is_to_be_built_takes_exactly_one_nix_process() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let stand_ins = counted(&store);
    let ended = store
        .step(recorded(&target))
        .env("PATH", stand_ins.path(&store))
        .run();
    ended.takes("realised", "drv-valid").counts(1, 0);
    assert_eq!(
        processes(&stand_ins),
        1,
        "{:?}",
        stand_ins.calls("nix-store")
    );
}

#[test]
fn what_is_built_and_what_is_substituted_is_counted() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"rec {
          one = file "one";
          two = file "two";
          hello = build "hello" "read a < ${one}; read b < ${two}; echo hello > $out";
        }"#,
    );
    let target = store.target("hello");
    let one = store.build(&store.target("one").drv);
    let cache = store.cache("cache", &one);
    store.delete(&one);
    store.configure(&format!("substituters = {cache}"));
    store
        .step(recorded(&target))
        .run()
        .takes("realised", "drv-valid")
        .counts(2, 1);
}

#[test]
fn outputs_that_are_there_are_taken_though_the_drv_is_gone() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.build(&target.drv);
    store.delete([&target.drv]);
    store.poison();
    let ended = store.step(recorded(&target)).run();
    ended
        .takes("available", "outputs-available")
        .counts(0, 0)
        .says(&["available "]);
    gives(&ended, &store, &target);
}

/// The record of `hello` as recordings write it that let skipped steps run.
fn skipped(target: &Target) -> String {
    let more = json!({ "file": "default.nix", "attr": ["hello"], "skip": true });
    target.record(&more).to_string()
}

/// A step of that record, by hand.
fn skipping(store: &Store, target: &Target) -> Program {
    let no_flags: [&str; 0] = [];
    store.step(no_flags).env("EVAL_ONCE_STEP", skipped(target))
}

#[test]
fn a_step_to_be_skipped_ends_at_once_where_its_outputs_are_here_and_realises_nothing() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.build(&target.drv);
    store.poison();
    let stand_ins = counted(&store);
    let daemon = Daemon::start(&store);
    for remote in [Vec::new(), daemon.env()] {
        let before = processes(&stand_ins);
        let ended = skipping(&store, &target)
            .env("PATH", stand_ins.path(&store))
            .envs(remote)
            .run();
        ended.takes("available", "skipped").counts(0, 0);
        assert_eq!(processes(&stand_ins), before + 1, "{ended}");
        assert!(store.roots().is_empty() && store.links().is_empty());
    }
}

#[test]
fn a_step_to_be_skipped_fetches_nothing_of_what_a_cache_has() {
    let Some(store) = Store::new() else { return };
    store.targets("rec { dep = file \"dep\"; hello = build \"hello\" \"echo ${dep} > $out\"; }");
    let target = store.target("hello");
    let dep = store.target("dep");
    let built = store.build(&target.drv);
    let cache = store.cache("cache", &built);
    store.delete([target.out(), dep.out()]);
    store.configure(&format!("substituters = {cache}"));
    store.poison();
    let ended = skipping(&store, &target).run();
    ended.takes("available", "skipped").counts(0, 0);
    assert!(!store.has(target.out()));

    // A cache that has it without what it needs cannot give it to anybody. (What it has is remembered.)
    let name = dep.out().rsplit('/').next().unwrap();
    let narinfo = format!("cache/{}.narinfo", &name[..32]);
    fs::remove_file(store.root().join(narinfo)).unwrap();
    let ended = skipping(&store, &target)
        .env("XDG_CACHE_HOME", store.root().join("another"))
        .run();
    ended.takes("realised", "drv-valid");
    assert!(store.has(target.out()));
}

#[test]
fn a_step_to_be_skipped_goes_on_as_any_other_where_its_outputs_have_gone() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let gone = "the outputs are no longer here or in a substituter";
    let ended = skipping(&store, &target).run();
    ended
        .takes("realised", "drv-valid")
        .counts(1, 0)
        .passes_on(gone);
    gives(&ended, &store, &target);

    fs::remove_file(store.work().join("result")).unwrap();
    store.forget_temporary_roots();
    store.collect();
    let ended = skipping(&store, &target).run();
    ended
        .takes("evaluated", "drv-missing")
        .counts(1, 0)
        .passes_on(gone);

    store.delete([target.out(), &target.drv]);
    store.write("default.nix", "{ hello = throw \"no more\"; }");
    let ended = skipping(&store, &target).run();
    ended.exits(65).passes_on("no more");
}

#[test]
fn a_step_to_be_skipped_does_not_take_a_path_for_there_whose_file_is_gone() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.build(&target.drv);
    fs::remove_file(target.out()).unwrap();
    assert!(store.has(target.out()), "it is registered");
    let ended = skipping(&store, &target).run();
    assert_ne!(ended.report()["reason"], "skipped", "{ended}");
    ended.passes_on("the outputs are no longer here or in a substituter");
}

#[test]
fn a_step_to_be_skipped_is_not_green_where_the_store_cannot_be_asked() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.build(&target.drv);
    let ended = skipping(&store, &target)
        .env("NIX_REMOTE", "unix:///nowhere/socket")
        .run();
    ended.exits(75);
}

#[test]
fn nothing_is_skipped_where_a_command_follows_that_needs_the_outputs() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.build(&target.drv);
    let cache = store.cache("cache", target.paths());
    store.delete([target.out()]);
    store.configure(&format!("substituters = {cache}"));
    let ended = skipping(&store, &target)
        .args(["--", "sh", "-c", "read x < $EVAL_ONCE_OUT; echo $x"])
        .run();
    ended.takes("realised", "drv-valid").prints("hello\n");
    let record = target.record(&json!({ "skip": true, "command": "none" }));
    let no_flags: [&str; 0] = [];
    let ended = store
        .step(no_flags)
        .env("EVAL_ONCE_STEP", record.to_string())
        .run();
    ended
        .exits(64)
        .passes_on("`skip` cannot be combined with `command: none`");
}

#[test]
fn explain_foretells_that_a_step_is_skipped() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    for reason in ["drv-valid", "skipped"] {
        let ended = store
            .eval_once(["explain", "--json"])
            .env("EVAL_ONCE_STEP", skipped(&target))
            .run();
        assert_eq!(ended.exits(0).json()["reason"], reason, "{ended}");
        let step = skipping(&store, &target).run();
        assert_eq!(step.report()["reason"], reason, "{step}");
    }
}

#[test]
fn outputs_that_a_cache_has_are_taken_though_the_drv_is_gone() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.build(&target.drv);
    let cache = store.cache("cache", target.paths());
    store.delete([&target.drv, &target.out().to_owned()]);
    store.configure(&format!("substituters = {cache}"));
    store.poison();
    let ended = store.step(recorded(&target)).run();
    ended.takes("available", "outputs-available").counts(0, 1);
    gives(&ended, &store, &target);
}

#[test]
fn one_path_is_copied_where_a_cache_has_the_drv_and_its_output() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.build(&target.drv);
    let cache = store.cache("cache", [target.drv.as_str(), target.out()]);
    store.delete([&target.drv, &target.out().to_owned()]);
    store.configure(&format!("substituters = {cache}"));
    store.poison();
    let ended = store.step(recorded(&target)).run();
    ended.takes("available", "outputs-available").counts(0, 1);
    gives(&ended, &store, &target);
    assert!(!store.has(&target.drv), "the .drv was dragged along");
}

#[test]
fn a_drv_that_only_a_cache_has_is_substituted() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let cache = store.cache("cache", [&target.drv]);
    store.delete([&target.drv]);
    store.configure(&format!("substituters = {cache}"));
    store.poison();
    let ended = store.step(recorded(&target)).run();
    ended.takes("realised", "drv-substituted").counts(1, 1);
    gives(&ended, &store, &target);
}

#[test]
fn a_drv_without_recorded_outputs_is_substituted_together_with_its_output() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.build(&target.drv);
    let cache = store.cache("cache", [target.drv.as_str(), target.out()]);
    store.delete([&target.drv, &target.out().to_owned()]);
    store.configure(&format!("substituters = {cache}"));
    store.poison();
    let ended = store.step(target.drv_flags()).run();
    ended.takes("realised", "drv-substituted").counts(0, 2);
    gives(&ended, &store, &target);
}

#[test]
fn a_cache_that_is_given_to_the_step_alone_is_used_too() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.build(&target.drv);
    let cache = store.cache("cache", target.paths());
    store.delete([&target.drv, &target.out().to_owned()]);
    store.poison();
    let ended = store
        .step(recorded(&target))
        .args(["--option", "substituters", &cache])
        .run();
    ended.takes("available", "outputs-available").counts(0, 1);
    gives(&ended, &store, &target);
}

#[test]
fn a_drv_that_was_collected_is_evaluated_again() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.collect();
    assert!(!store.has(&target.drv));
    let ended = store.step(recorded(&target)).run();
    ended
        .takes("evaluated", "drv-missing")
        .counts(1, 0)
        .says(&[
            "evaluated ",
            "hint: evaluated again because the recorded .drv is not on this host",
        ])
        .passes_on("because the recorded outputs are neither here nor in a substituter; ");
    // What the ways before it have met is no error of a step that succeeds.
    ended.never_says("error:");
    gives(&ended, &store, &target);
    assert!(store.has(&target.drv));
}

#[test]
fn a_drv_that_is_collected_between_start_and_realise_is_evaluated_again() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let stand_ins =
        StandIns::new(store.bin()).before("nix-store", &on_first_call(&deletes(&target.drv)));
    let ended = store
        .step(recorded(&target))
        .env("PATH", stand_ins.path(&store))
        .run();
    ended.takes("evaluated", "drv-collected").counts(1, 0);
    gives(&ended, &store, &target);
}

#[test]
fn outputs_are_taken_where_the_drv_is_collected_between_start_and_realise() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.build(&target.drv);
    store.poison();
    let stand_ins =
        StandIns::new(store.bin()).before("nix-store", &on_first_call(&deletes(&target.drv)));
    let ended = store
        .step(recorded(&target))
        .env("PATH", stand_ins.path(&store))
        .run();
    ended.takes("available", "outputs-available").counts(0, 0);
    gives(&ended, &store, &target);
}

#[test]
fn a_file_that_no_store_knows_is_no_drv() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let text = fs::read(&target.drv).unwrap();
    store.delete([&target.drv]);
    fs::write(&target.drv, text).unwrap();
    let ended = store.step(recorded(&target)).run();
    ended.takes("evaluated", "drv-collected").counts(1, 0);
    gives(&ended, &store, &target);
}

#[test]
fn some_of_several_outputs_are_not_enough() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"{ hello = buildAll [ "out" "dev" ] "hello" "echo hello > $out; echo dev > $dev"; }"#,
    );
    let target = store.target("hello");
    store.build(&target.drv);
    store.delete([&target.drv, &target.outputs["dev"]]);
    let ended = store.step(recorded(&target)).run();
    ended.takes("evaluated", "drv-missing").counts(1, 0);
    assert!(store.has(&target.outputs["dev"]));
}

#[test]
fn what_was_never_recorded_is_evaluated() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.collect();
    let ended = store
        .step(["--file", "default.nix", "--attr", "hello"])
        .run();
    ended
        .takes("evaluated", "not-recorded")
        .counts(1, 0)
        .says(&["(not-recorded)"])
        .passes_on("--- eval-once: evaluating hello of default.nix\n");
    gives(&ended, &store, &target);
}

#[test]
fn an_evaluation_leaves_nothing_but_the_link() {
    let Some(store) = Store::new() else { return };
    hello(&store);
    store
        .step(["--attr", "hello"])
        .run()
        .takes("evaluated", "not-recorded");
    assert_eq!(store.roots(), [store.work().join("result")]);
    let left = fs::read_dir(store.our_state().join("roots"))
        .unwrap()
        .count();
    assert_eq!(left, 0, "the evaluation's root is still there");
}

#[test]
fn every_way_makes_the_same_links() {
    // The first is not `out`, the order is neither the alphabet's nor that of store paths; and one without any `out`.
    let some = [
        (
            r#"[ "lib" "out" "dev" ]"#,
            "echo l > $lib; echo o > $out; echo d > $dev",
            ["result", "result-dev", "result-lib"].as_slice(),
        ),
        (
            r#"[ "dev" "doc" ]"#,
            "echo d > $dev; echo doc > $doc",
            &["result-dev", "result-doc"],
        ),
    ];
    for (outputs, script, names) in some {
        let Some(store) = Store::new() else { return };
        store.targets(&format!(
            "{{ hello = buildAll {outputs} \"hello\" \"{script}\"; }}"
        ));
        let target = store.target("hello");
        let links = || {
            let links = store.links();
            for name in names {
                fs::remove_file(store.work().join(name)).unwrap();
            }
            links
        };
        let step = store.step(recorded(&target));

        let ended = step.run();
        ended.takes("realised", "drv-valid");
        let realised = links();
        let expected: BTreeMap<String, String> = target
            .outputs
            .iter()
            .map(|(name, path)| match name.as_str() {
                "out" => ("result".to_owned(), path.clone()),
                name => (format!("result-{name}"), path.clone()),
            })
            .collect();
        assert_eq!(realised, expected);
        let printed = ended.stdout;

        store.delete([&target.drv]);
        let ended = step.run();
        ended
            .takes("available", "outputs-available")
            .prints(&printed);
        assert_eq!(links(), expected);

        store.delete(target.paths());
        let ended = step.run();
        ended.takes("evaluated", "drv-missing").prints(&printed);
        assert_eq!(links(), expected);
    }
}

#[test]
fn the_output_is_kept_from_the_collector_in_every_way() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    for way in ["realised", "available", "evaluated"] {
        match way {
            "available" => store.delete([&target.drv]),
            "evaluated" => {
                fs::remove_file(store.work().join("result")).unwrap();
                store.collect();
                assert!(!store.has(target.out()));
            }
            _ => {}
        }
        let ended = store.step(recorded(&target)).run();
        assert_eq!(ended.exits(0).report()["way"], way);
        store.collect();
        assert!(store.has(target.out()), "{way} left no root");
    }
}

#[test]
fn an_evaluation_that_the_collector_disturbs_is_done_again() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.collect();
    let script = after_the_real_one(&on_first_call(&deletes(&target.drv)));
    let stand_ins = counted(&store).before("nix-instantiate", &script);
    let ended = store
        .step(recorded(&target))
        .env("PATH", stand_ins.path(&store))
        .run();
    ended.takes("evaluated", "drv-missing").counts(1, 0);
    gives(&ended, &store, &target);
    assert_eq!(stand_ins.calls("nix-instantiate").len(), 2);
}

#[test]
fn an_evaluation_is_given_up_when_the_collector_has_disturbed_it_three_times() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.collect();
    let stand_ins = counted(&store).before(
        "nix-instantiate",
        &after_the_real_one(&deletes(&target.drv)),
    );
    let ended = store
        .step(recorded(&target))
        .env("PATH", stand_ins.path(&store))
        .run();
    ended.fails(75, "surroundings");
    assert_eq!(ended.report()["way"], "evaluated");
    assert_eq!(stand_ins.calls("nix-instantiate").len(), 3);
    assert_eq!(store.links(), BTreeMap::new());
}

/// As 2.34 says it. Only the store could tell which path is meant, and whether the expression is to blame.
#[test]
fn a_missing_path_without_a_folder_is_nobodys_fault_where_nix_does_not_say_that() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.collect();
    let path = target.drv.as_str();
    let base = path.rsplit('/').next().unwrap();
    let asks = "case \"$*\" in *builtins.storeDir*) exit 1 ;; esac";
    let script =
        format!("{asks}; printf '%s\\n' \"error: path '{base}' is not valid\" >&2; exit 1");
    let stand_ins = StandIns::new(store.bin()).before("nix-instantiate", &script);
    let step = store.step(recorded(&target));
    let ended = step.env("PATH", stand_ins.path(&store)).run();
    ended.fails(75, "surroundings");
    assert_eq!(stand_ins.evaluations(), 1, "{ended}");
}

#[test]
fn an_evaluation_that_fails_with_the_collectors_messages_is_done_again() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.collect();
    // The three that were measured; that the path is one of this store is all that is true about them.
    let path = target.drv.as_str();
    for message in [
        format!("path '{path}' is not valid"),
        format!("store path '{path}' does not exist"),
        format!("path '{path}' does not exist and cannot be created"),
    ] {
        let script = on_first_call(&format!("printf '%s\\n' \"error: {message}\" >&2; exit 1"));
        let stand_ins =
            StandIns::new(store.root().join("disturbed")).before("nix-instantiate", &script);
        let ended = store
            .step(recorded(&target))
            .env("PATH", stand_ins.path(&store))
            .run();
        ended.takes("evaluated", "drv-missing");
        assert_eq!(stand_ins.evaluations(), 2, "after {message}");
        fs::remove_dir_all(store.root().join("disturbed")).unwrap();
        fs::remove_file(store.work().join("result")).unwrap();
        store.collect();
    }
}

#[test]
fn an_unreachable_cache_is_asked_in_one_way_only() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.collect();
    // No server listens on port 1, so that the connection is refused, five times within 4.4 s.
    store.configure("substituters = http://127.0.0.1:1");
    let ended = store.step(recorded(&target)).run();
    ended.takes("evaluated", "drv-missing").counts(1, 0);
    gives(&ended, &store, &target);
    let attempts = ended.stderr.matches("unable to download").count();
    assert!((1..=5).contains(&attempts), "{attempts} attempts: {ended}");
}

#[test]
fn a_reachable_cache_is_still_asked_when_another_is_not() {
    let Some(store) = Store::new() else { return };
    store.targets(r#"rec { base = file "base"; hello = build "hello" "read x < ${base}; echo hello > $out"; }"#);
    let target = store.target("hello");
    let base = store.build(&store.target("base").drv);
    let cache = store.cache("cache", &base);
    store.delete(&base);
    store.collect();
    store.configure(&format!("substituters = http://127.0.0.1:1 {cache}"));
    let ended = store.step(recorded(&target)).run();
    ended.takes("evaluated", "drv-missing").counts(1, 1);
    let attempts = ended.stderr.matches("unable to download").count();
    assert!((1..=5).contains(&attempts), "{attempts} attempts: {ended}");
}

#[test]
fn the_ways_are_the_same_through_a_daemon() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let daemon = store.daemon();
    let step = store.step(recorded(&target)).envs(daemon.env());
    let ended = step.run();
    ended.takes("realised", "drv-valid").counts(1, 0);
    gives(&ended, &store, &target);
    store.delete([&target.drv]);
    let ended = step.run();
    ended.takes("available", "outputs-available").counts(0, 0);
    gives(&ended, &store, &target);
    fs::remove_file(store.work().join("result")).unwrap();
    store.forget_temporary_roots();
    store.collect();
    let ended = step.run();
    ended.takes("evaluated", "drv-missing").counts(1, 0);
    gives(&ended, &store, &target);
}

#[test]
fn a_drv_of_a_store_elsewhere_is_realised_though_its_file_is_not_here() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.build(&target.drv);
    let elsewhere = format!("local?root={}", store.root().join("elsewhere").display());
    store.nix(
        "nix",
        ["copy", "--no-check-sigs", "--to", &elsewhere, target.out()],
    );
    store.nix(
        "nix",
        [
            "copy",
            "--no-check-sigs",
            "--derivation",
            "--to",
            &elsewhere,
            &target.drv,
        ],
    );
    store.delete([target.drv.as_str(), target.out()]);
    store.poison();
    let mut flags = target.drv_flags();
    flags.extend(["--file".to_owned(), "default.nix".to_owned()]);
    let ended = store.step(flags).env("NIX_REMOTE", elsewhere).run();
    ended.takes("realised", "drv-substituted").counts(0, 0);
    assert_eq!(store.links()["result"], target.out());
}

#[test]
fn the_record_in_the_environment_does_what_the_flags_do() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.poison();
    let record = target.record(&json!({ "file": "default.nix", "attr": ["hello"] }));
    let no_flags: [&str; 0] = [];
    let ended = store
        .step(no_flags)
        .env("EVAL_ONCE_STEP", record.to_string())
        .run();
    ended.takes("realised", "drv-valid").counts(1, 0);
    gives(&ended, &store, &target);
}

#[test]
fn flags_and_the_record_in_the_environment_are_never_merged() {
    let Some(store) = Store::new() else { return };
    store.targets("{ hello = file \"hello\"; other = file \"other\"; }");
    let other = store.target("other");
    let record = other.record(&json!({ "out-link": "elsewhere" }));
    let ended = store
        .step(["--attr", "hello"])
        .env("EVAL_ONCE_STEP", record.to_string())
        .run();
    ended.takes("evaluated", "not-recorded");
    gives(&ended, &store, &store.target("hello"));
    assert!(!store.has(other.out()));
}

#[test]
fn by_hand_the_jobs_command_is_not_run() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let ended = store
        .step(target.flags())
        .env("BUILDKITE_COMMAND", "echo never")
        .env("BUILDKITE_COMMAND_EVAL", "true")
        .run();
    ended
        .takes("realised", "drv-valid")
        .prints(&format!("{}\n", target.out()));
}

#[test]
fn the_command_behind_two_dashes_replaces_the_step_and_gets_the_outputs() {
    let Some(store) = Store::new() else { return };
    store.targets(r#"{ hello = buildAll [ "dev" "out" "extra_1" ] "hello" "echo hello > $out; echo > $dev; echo > $extra_1"; }"#);
    let target = store.target("hello");
    let script = "echo \"$EVAL_ONCE_OUT $EVAL_ONCE_OUT_OUT $EVAL_ONCE_OUT_DEV $EVAL_ONCE_OUT_EXTRA_1 $1\"; \
                  env | grep -E '^(EVAL_ONCE_STEP|BUILDKITE_HOOK_)'; exit 7";
    let record = target.record(&json!({}));
    let ended = store
        .step(["--", "/bin/sh", "-c", script, "sh", "argument one"])
        .env("EVAL_ONCE_STEP", record.to_string())
        .env("BUILDKITE_HOOK_SCOPE", "agent")
        .run();
    let [out, dev, extra] = ["out", "dev", "extra_1"].map(|name| &target.outputs[name]);
    ended
        .exits(7)
        .prints(&format!("{out} {out} {dev} {extra} argument one\n"));
    assert_eq!(ended.report()["exit"], 0, "the report is the build's");
    assert_eq!(ended.report()["way"], "realised");
}

#[test]
fn without_an_output_called_out_the_command_gets_the_first_by_name_in_every_way() {
    let Some(store) = Store::new() else { return };
    store.targets(r#"{ hello = buildAll [ "lib" "dev" ] "hello" "echo > $lib; echo > $dev"; }"#);
    let target = store.target("hello");
    let step = store
        .step(recorded(&target))
        .args(["--", "/bin/sh", "-c", "echo $EVAL_ONCE_OUT"]);
    let expected = format!("{}\n", target.outputs["dev"]);
    for way in ["realised", "available", "evaluated"] {
        if way == "evaluated" {
            store.delete(target.paths());
        }
        let ended = step.run();
        ended.exits(0).prints(&expected);
        assert_eq!(ended.report()["way"], way);
        store.delete([&target.drv]);
    }
}

#[test]
fn a_command_that_is_missing_fails_after_the_build() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let mut flags = target.flags();
    flags.extend(["--", "no-such-program"].map(str::to_owned));
    let ended = store.step(flags).run();
    ended.exits(69).passes_on("no-such-program");
    assert!(store.has(target.out()));
}

#[test]
fn a_step_waits_for_its_turn_to_evaluate() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.collect();
    let turn = store.our_lock("turns/0.lock");
    let turn = Flock::lock(turn, FlockArg::LockExclusiveNonblock).unwrap();
    let running = store
        .step(recorded(&target))
        .env("EVAL_ONCE_EVALUATIONS", "1")
        .start();
    running.until_it_says("eval-once: waiting for an evaluation slot");
    assert!(!store.has(&target.drv), "it did not wait");
    drop(turn);
    let ended = running.end();
    ended
        .takes("evaluated", "drv-missing")
        .passes_on("waiting for an evaluation slot (1 of 1 in use)");
    gives(&ended, &store, &target);
    let waited = ended.report()["seconds"]["wait"].as_f64().unwrap();
    assert!(waited > 0.0, "waited {waited} s");
}

#[test]
fn a_step_that_evaluates_nothing_waits_for_no_turn() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let turn = store.our_lock("turns/0.lock");
    let _turn = Flock::lock(turn, FlockArg::LockExclusiveNonblock).unwrap();
    let ended = store
        .step(recorded(&target))
        .env("EVAL_ONCE_EVALUATIONS", "1")
        .run();
    ended.takes("realised", "drv-valid");
    assert_eq!(ended.report()["seconds"]["wait"], 0.0);
}

#[test]
fn steps_that_evaluate_at_the_same_time_all_get_their_turn() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.collect();
    let links: Vec<String> = (0..4).map(|n| format!("link-{n}")).collect();
    let steps: Vec<_> = links
        .iter()
        .map(|link| {
            let step = store.eval_once(["step", "--attr", "hello", "--out-link", link]);
            step.env("EVAL_ONCE_EVALUATIONS", "1").start()
        })
        .collect();
    for step in steps {
        step.end().exits(0).prints(&format!("{}\n", target.out()));
    }
    assert_eq!(store.links().len(), links.len());
}

#[test]
fn a_collector_that_never_rests_is_all_that_a_step_ever_fails_for() {
    let Some(store) = Store::new() else { return };
    store.targets("builtins.listToAttrs (builtins.genList (n: { name = \"t${toString n}\"; value = file \"t${toString n}\"; }) 12)");
    let targets: Vec<Target> = (0..12).map(|n| store.target(&format!("t{n}"))).collect();
    let collections = beside_collectors(&[store.collector()], || {
        for (n, target) in targets.iter().enumerate() {
            let step = store.step(target.flags()).args([
                "--attr",
                &format!("t{n}"),
                "--out-link",
                &format!("link-{n}"),
            ]);
            let ended = step.run();
            match ended.status.code() {
                Some(0) => assert!(store.has(target.out()), "{ended}"),
                // Three times within one step is rare, and no fault of the step's.
                _ => {
                    ended.fails(75, "surroundings");
                }
            }
        }
    });
    assert!(collections > 0);
}

#[test]
fn a_signal_is_noticed_in_a_flood_of_output_that_is_read_slowly() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let stand_ins = StandIns::new(store.bin()).before("nix-store", "exec yes flood >&2");
    let mut command = store
        .eval_once(["step"])
        .args(target.flags())
        .env("PATH", stand_ins.path(&store))
        .command();
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let mut some = [0; 16384];
    // The pipe is full, and stays so: it is read at less than a megabyte a second.
    let mut slowly = || {
        std::thread::sleep(Duration::from_millis(20));
        stderr.read(&mut some).unwrap()
    };
    for _ in 0..10 {
        slowly();
    }
    let signalled = Instant::now();
    kill(
        Pid::from_raw(child.id().try_into().unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    while slowly() > 0 {
        let waited = signalled.elapsed();
        if waited > Duration::from_secs(10) {
            // What it started is not held up any longer, and ends by the pipe that is not read.
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("still there {waited:?} after the signal");
        }
    }
    assert_eq!(
        child.wait().unwrap().code(),
        Some(128 + Signal::SIGTERM as i32)
    );
}

#[test]
fn what_a_builder_prints_is_passed_on_as_it_is_whatever_it_looks_like() {
    let Some(store) = Store::new() else { return };
    let lines = [
        "one",
        "error: mine",
        "error:",
        "  indented",
        "don't know how to build these paths:",
        "eval-once: error: not ours",
        "last",
    ];
    let script = lines.map(|line| format!("echo \\\"{line}\\\"; ")).concat();
    store.targets(&format!(
        "{{ hello = build \"hello\" \"{script} echo hello > $out\"; }}"
    ));
    let target = store.target("hello");
    for (way, form, behind) in [
        ("realised", "pretty", "hello> "),
        ("evaluated", "pretty", "hello> "),
        ("realised", "raw", ""),
    ] {
        if way == "realised" {
            store.target("hello");
        }
        let ended = store.step(recorded(&target)).args(["--log", form]).run();
        assert_eq!(ended.exits(0).report()["way"], way);
        let said: Vec<&str> = ended
            .stderr
            .lines()
            .filter_map(|line| line.strip_prefix(behind))
            .filter(|line| lines.contains(line))
            .collect();
        assert_eq!(said, lines, "{ended}");
        fs::remove_file(store.work().join("result")).unwrap();
        store.collect();
    }
}

#[test]
fn a_report_in_the_checkout_is_no_drift() {
    let Some(store) = Store::new() else { return };
    store
        .targets("{ hello = build \"hello\" \"read x < ${./.}/default.nix; echo hello > $out\"; }");
    let target = store.target("hello");
    store.collect();
    let mut flags = recorded(&target);
    flags.extend(["--report", "report.json"].map(str::to_owned));
    let ended = store.eval_once(["step"]).args(flags).run();
    ended.exits(0);
    let report = read_json(&store.work().join("report.json"));
    assert_eq!(report["way"], "evaluated");
    assert_eq!(report["drift"], false, "{ended}");
}

#[test]
fn a_report_replaces_an_older_one_and_goes_into_a_pipe_too() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let file = store.write(
        "report.json",
        "an older and much longer text that is no JSON at all",
    );
    let mut flags = target.flags();
    flags.extend(["--report", "report.json"].map(str::to_owned));
    store.eval_once(["step"]).args(&flags).run().exits(0);
    assert_eq!(read_json(&file)["way"], "realised");
    let left: Vec<_> = fs::read_dir(store.work())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 3, "default.nix, report.json, result: {left:?}");

    fs::remove_file(&file).unwrap();
    fifo(&file);
    let running = store.eval_once(["step"]).args(&flags).start();
    assert_eq!(read_json(&file)["way"], "realised");
    running.end().exits(0);
    assert!(fs::symlink_metadata(&file).unwrap().file_type().is_fifo());
}

#[test]
fn a_checkout_may_be_called_anything() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let text = fs::read(store.work().join("default.nix")).unwrap();
    let names: [&[u8]; 6] = [
        b"two words",
        b"qu\"ote",
        b"${x}",
        b"-A",
        b"not \xff UTF-8",
        b"new\nline",
    ];
    for name in names {
        let checkout = store.work().join(OsStr::from_bytes(name));
        fs::create_dir(&checkout).unwrap();
        fs::write(checkout.join("default.nix"), &text).unwrap();
        for (way, flags) in [
            ("realised", target.flags()),
            ("available", target.flags()),
            ("evaluated", vec!["--attr".to_owned(), "hello".to_owned()]),
        ] {
            let ended = store.step(flags).folder(&checkout).run();
            ended.exits(0).prints(&format!("{}\n", target.out()));
            assert_eq!(ended.report()["way"], way);
            assert_eq!(ended.report()["outputs"], json!(target.outputs));
            assert_eq!(
                fs::read_link(checkout.join("result")).unwrap(),
                Path::new(target.out())
            );
            fs::remove_file(checkout.join("result")).unwrap();
            store.delete([&target.drv]);
        }
        store.collect();
        store.target("hello");
    }
}

#[test]
fn without_a_named_state_folder_it_is_where_the_user_keeps_such_things() {
    let Some(store) = Store::new() else { return };
    hello(&store);
    let step = store
        .step(["--attr", "hello"])
        .without("EVAL_ONCE_STATE_DIR");
    step.run().takes("evaluated", "not-recorded");
    assert!(
        store
            .root()
            .join("home/.local/state/eval-once/turns")
            .is_dir()
    );
    let elsewhere = store.root().join("state");
    step.clone()
        .env("XDG_STATE_HOME", &elsewhere)
        .run()
        .takes("evaluated", "not-recorded");
    assert!(elsewhere.join("eval-once/turns").is_dir());
    let nowhere = step.without("HOME").run();
    nowhere
        .takes("evaluated", "not-recorded")
        .passes_on("eval-once: warning: ");
}

#[test]
fn the_time_of_each_part_is_reported() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let realised = store.step(recorded(&target)).run();
    let seconds = |ended: &Ended, part: &str| ended.report()["seconds"][part].as_f64().unwrap();
    assert!(seconds(&realised, "realise") > 0.0);
    assert!(seconds(&realised, "evaluate") == 0.0);
    assert!(seconds(&realised, "fetch") == 0.0);
    assert!(seconds(&realised, "total") >= seconds(&realised, "realise"));
    assert!(seconds(&realised, "total") <= realised.took.as_secs_f64() + 0.001);
    fs::remove_file(store.work().join("result")).unwrap();
    store.collect();
    let evaluated = store.step(recorded(&target)).run();
    assert!(seconds(&evaluated, "evaluate") > 0.0);
    let parts = seconds(&evaluated, "evaluate")
        + seconds(&evaluated, "realise")
        + seconds(&evaluated, "wait");
    assert!(
        seconds(&evaluated, "total") >= parts - 0.01,
        "{}",
        evaluated.report()
    );
}

#[test]
fn the_output_of_a_floating_derivation_is_known_once_it_is_built() {
    let Some(store) = Store::new() else { return };
    store.configure("experimental-features = nix-command flakes ca-derivations");
    store.targets(
        r#"{ hello = with' { __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; }
             "hello" "echo hello > $out"; }"#,
    );
    let drv = store.instantiate("default.nix", "hello");
    let ended = store.step(["--drv", &drv]).run();
    ended.takes("realised", "drv-valid").counts(1, 0);
    let out = store.links()["result"].clone();
    assert_eq!(fs::read_to_string(&out).unwrap(), "hello\n");
    assert_eq!(ended.report()["outputs"], json!({ "out": out }));
    ended.prints(&format!("{out}\n"));
}

/// Nix ends while it still collects where it has nothing to do.
#[test]
fn where_a_full_disk_makes_nix_collect_a_step_ends_as_its_outputs_are() {
    for daemon in [false, true] {
        let Some(store) = Store::new() else { return };
        store.targets("{ a = file \"a\"; bad = build \"bad\" \"exit 3\"; }");
        let target = store.target("a");
        let root = store.root().join("drv");
        let rooting = [
            "default.nix",
            "-A",
            "a",
            "--add-root",
            root.to_str().unwrap(),
        ];
        store.nix("nix-instantiate", rooting);
        store.collects_when_full();
        let daemon = daemon.then(|| store.daemon());
        let client = daemon.as_ref().map(Daemon::env).unwrap_or_default();
        let step = |flags: &[&str]| store.step(flags).envs(client.clone()).run();
        for _ in 0..2 {
            step(&["--drv", &target.drv]).takes("realised", "drv-valid");
        }
        let output = format!("out={}", target.out());
        step(&["--output", &output]).exits(0);
        step(&["--attr", "a"]).takes("evaluated", "not-recorded");
        let bad = step(&["--attr", "bad"]);
        bad.fails(100, "build");
        let drv = bad.report()["failure"]["drv"].as_str().unwrap_or_default();
        assert!(drv.ends_with("-bad.drv"), "{bad}");
    }
}

/// The same with any Nix, of which one that has nothing to build dies.
#[test]
fn a_nix_that_dies_of_its_collection_does_its_work_again_without_one() {
    let Some(store) = Store::new() else { return };
    store.targets(
        "{ a = file \"a\"; many = with' { needs = map file [ \"b\" \"c\" ]; } \"many\" \"echo > $out\"; slow = build \"slow\" \"read x < ROOT/pipe\"; }"
            .replace("ROOT", store.root().to_str().unwrap())
            .as_str(),
    );
    let [target, slow] = ["a", "slow"].map(|attr| store.target(attr));
    let realises = |stand_ins: &StandIns| {
        let calls = stand_ins.calls("nix-store").into_iter();
        calls
            .filter(|call| call.iter().any(|word| word == "--realise"))
            .count()
    };
    let dies = "case \"$*\" in *'--option min-free 0'*) ;; *--realise*) \"$REAL\" \"$@\"; kill -SEGV $$;; esac";
    let said = "killed by SIGSEGV with no build under way";
    // Without a collection, it has died of something else.
    let stand_ins = StandIns::new(store.root().join("never")).before("nix-store", dies);
    let run = |target: &Target, stand_ins: &StandIns| {
        store
            .step(target.flags())
            .env("PATH", stand_ins.path(&store))
            .run()
    };
    run(&target, &stand_ins)
        .fails(139, "signal")
        .never_says(said);
    // So small that no Nix here does collect.
    store.configure("min-free = 1");
    let stand_ins = StandIns::new(store.root().join("collects")).before("nix-store", dies);
    let ended = run(&target, &stand_ins);
    ended.takes("realised", "drv-valid").passes_on(said);
    assert_eq!(realises(&stand_ins), 2);
    // Also where it has built, several at once.
    store.configure("max-jobs = 2");
    let many = store.target("many");
    let stand_ins = StandIns::new(store.root().join("has-built")).before("nix-store", dies);
    run(&many, &stand_ins)
        .takes("realised", "drv-valid")
        .counts(3, 0);
    assert_eq!(realises(&stand_ins), 2);
    // Nor is a build repeated that was under way.
    fifo(&store.root().join("pipe"));
    let dies = r#"case "$*" in *--realise*)
        "$REAL" "$@" 2>"$0.said" & until grep -q '"text":"building ' "$0.said"; do :; done
        kill -KILL $!; cat "$0.said" >&2; kill -SEGV $$;; esac"#;
    let stand_ins = StandIns::new(store.root().join("builds")).before("nix-store", dies);
    run(&slow, &stand_ins).fails(139, "signal").never_says(said);
    assert_eq!(realises(&stand_ins), 1);
}

/// A script that does something in the first call of a stand-in only.
fn on_first_call(script: &str) -> String {
    format!("if [ \"$NTH\" = 1 ]; then {script}; fi")
}

/// A script that does something after the real program, whose ending it keeps.
fn after_the_real_one(script: &str) -> String {
    format!("\"$REAL\" \"$@\"; status=$?; {script}; exit $status")
}

/// A script that does what the collector does to this `.drv`. (A daemon's process may not have ended yet that served a client which
/// has, and keeps it.)
fn deletes(drv: &str) -> String {
    let nix_store = crate::support::tool("nix-store").unwrap();
    format!(
        "rm -f \"$NIX_STATE_DIR\"/temproots/*; env -u NIX_REMOTE {} --delete --ignore-liveness '{drv}' >/dev/null 2>&1",
        nix_store.display()
    )
}

#[test]
fn two_steps_with_one_link_report_each_its_own_outputs() {
    let Some(store) = Store::new() else { return };
    store.targets("{ one = file \"one\"; two = file \"two\"; }");
    let targets = ["one", "two"].map(|name| store.target(name));
    // As soon as Nix has made the link, somebody else makes it his own.
    let theirs = store.work().join("theirs");
    std::os::unix::fs::symlink(targets[1].out(), &theirs).unwrap();
    store.nix("nix-store", ["--realise", &targets[1].drv]);
    let stand_ins = StandIns::new(store.bin()).before(
        "nix-store",
        &format!(
            "\"$REAL\" \"$@\" || exit; mv -T '{}' result; exit 0",
            theirs.display()
        ),
    );
    let ended = store
        .step(targets[0].flags())
        .args(["--", "sh", "-c", "echo $EVAL_ONCE_OUT"])
        .env("PATH", stand_ins.path(&store))
        .run();
    ended.exits(0).prints(&format!("{}\n", targets[0].out()));
    assert_eq!(store.links()["result"], targets[1].out());
    assert_eq!(ended.report()["outputs"], json!(targets[0].outputs));
}

#[test]
fn a_folder_that_is_no_state_folder_of_ours_loses_nothing() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let mistaken = store.root().join("mistaken");
    for folder in ["outputs/mine", "roots/mine"] {
        let folder = mistaken.join(folder);
        fs::create_dir_all(&folder).unwrap();
        // Nor what a link of ours by its name leads to.
        let link = folder.with_file_name("eval-once-link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        store
            .program("touch")
            .args(["-h", "-t", "202001010000"])
            .arg(link)
            .run()
            .exits(0);
        fs::write(folder.join("data"), "precious").unwrap();
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(7 * 24 * 60 * 60);
        let times = fs::FileTimes::new().set_modified(long_ago);
        fs::File::open(&folder).unwrap().set_times(times).unwrap();
    }
    let ended = store
        .step(["--file", "default.nix", "--attr", "hello", "--no-out-link"])
        .env("EVAL_ONCE_STATE_DIR", &mistaken)
        .run();
    ended.exits(0).prints(&format!("{}\n", target.out()));
    for folder in ["outputs/mine", "roots/mine"] {
        assert_eq!(
            fs::read_to_string(mistaken.join(folder).join("data")).unwrap(),
            "precious"
        );
    }
}

#[test]
fn a_drv_that_is_a_pipe_does_not_block_a_step() {
    let Some(store) = Store::new() else { return };
    let folder = store.root().join("other/store");
    fs::create_dir_all(&folder).unwrap();
    let drv = folder.join("00000000000000000000000000000000-x.drv");
    fifo(&drv);
    let ended = store.step(["--drv", drv.to_str().unwrap()]).run();
    ended.fails(75, "surroundings");
}

#[test]
fn the_outputs_of_a_drv_that_came_from_a_cache_are_those_it_says() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let cache = store.cache("cache", [&target.drv]);
    store.delete([&target.drv]);
    let wrong = format!(
        "{}/00000000000000000000000000000000-wrong",
        store.folder().display()
    );
    for flags in [vec!["--no-out-link"], vec!["--output", &wrong]] {
        let output = flags.get(1).map(|wrong| format!("out={wrong}"));
        let flags: Vec<&str> = match &output {
            Some(output) => vec!["--output", output],
            None => flags,
        };
        // Without a state folder, too, there is no link to go by.
        let ended = store
            .step(["--drv", &target.drv, "--option", "substituters", &cache])
            .args(flags)
            .env("EVAL_ONCE_STATE_DIR", "/proc/none")
            .run();
        ended.exits(0).prints(&format!("{}\n", target.out()));
        assert_eq!(ended.report()["outputs"], json!({ "out": target.out() }));
        let _ = fs::remove_file(store.work().join("result"));
        store.collect();
        assert!(!store.has(&target.drv));
    }
}

#[test]
fn a_report_to_standard_output_is_whole_where_that_is_a_file() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let ended = store
        .program("sh")
        .args([
            "-c",
            "\"$0\" step --drv \"$1\" --report /dev/stdout > both; cat both",
        ])
        .arg(crate::support::EVAL_ONCE)
        .arg(&target.drv)
        .run();
    let (report, path) = ended.stdout.trim_end().rsplit_once('\n').unwrap();
    let report: serde_json::Value = serde_json::from_str(report).unwrap();
    assert_eq!(report["way"], "realised");
    assert_eq!(path, target.out());
}
