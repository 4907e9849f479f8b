//! What a green step reports, links and exports is valid in the store; and what is done once more before a failure is
//! believed.

use std::os::unix::net::{UnixListener, UnixStream};
use std::{collections::BTreeMap, ffi::OsStr, fs, thread};

use serde_json::Value;

use crate::support::{
    daemon::{is_for_all, path_of_daemons, version_on},
    program::Ended,
    stand_in::StandIns,
    store::Store,
    target::Target,
    tool,
};

/// `hello`, built of nothing but a shell.
fn hello(store: &Store) -> Target {
    store.targets("{ hello = file \"hello\"; }");
    store.target("hello")
}

/// The flags of a step whose record is `target`, with what evaluates it again.
fn recorded(target: &Target) -> Vec<String> {
    let mut flags = target.flags();
    flags.extend(evaluated());
    flags
}

/// The flags of a step that evaluates `hello`.
fn evaluated() -> Vec<String> {
    ["--file", "default.nix", "--attr", "hello"]
        .map(str::to_owned)
        .into()
}

/// A script that does something in this call of a stand-in only, after the real program, whose ending it keeps.
fn after_call(nth: u32, script: &str) -> String {
    format!("\"$REAL\" \"$@\"; status=$?; if [ \"$NTH\" = {nth} ]; then {script}; fi; exit $status")
}

/// A script that takes these paths out of the store, rooted or not. (A daemon's process may not have ended yet that served a client which
/// has, and keeps them.)
fn deletes(paths: &[&str]) -> String {
    format!(
        "rm -f \"$NIX_STATE_DIR\"/temproots/*; env -u NIX_REMOTE '{}' --delete --ignore-liveness {} >/dev/null 2>&1",
        tool("nix-store").unwrap().display(),
        paths.join(" ")
    )
}

/// A script that registers `hello` again, as another evaluation on this host does.
fn registers() -> String {
    format!(
        "'{}' default.nix -A hello >/dev/null 2>&1",
        tool("nix-instantiate").unwrap().display()
    )
}

/// A green step: each path that it reports is valid, printed, and where its link leads.
#[track_caller]
fn is_true(ended: &Ended, store: &Store) {
    let outputs = ended.exits(0).report()["outputs"].clone();
    let outputs: BTreeMap<String, String> = serde_json::from_value(outputs).unwrap();
    assert!(!outputs.is_empty(), "{ended}");
    let links = store.links();
    for (name, path) in &outputs {
        assert!(store.has(path), "{path} is not valid: {ended}");
        assert!(
            fs::symlink_metadata(path).is_ok(),
            "{path} does not exist: {ended}"
        );
        let link = match name.as_str() {
            "out" => "result".to_owned(),
            name => format!("result-{name}"),
        };
        assert_eq!(links.get(&link), Some(path), "{ended}");
    }
}

/// The ways that were tried, as the report has them.
fn tried(ended: &Ended) -> Vec<String> {
    serde_json::from_value(ended.report()["tried"].clone()).unwrap()
}

#[test]
fn a_nix_store_that_does_nothing_makes_no_green_step() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let stand_ins = StandIns::new(store.bin()).instead("nix-store", "#!/bin/sh\nexit 0\n");
    for (flags, way) in [
        (recorded(&target), "evaluated"),
        (target.flags(), "available"),
        (target.drv_flags(), "realised"),
        (target.flags().split_off(2), "available"),
        (evaluated(), "evaluated"),
    ] {
        for is_there in [true, false] {
            if is_there {
                store.target("hello");
            } else {
                store.collect();
            }
            let ended = store
                .step(&flags)
                .args(["--", "echo", "the command was run"])
                .env("PATH", stand_ins.path(&store))
                .run();
            ended.fails(75, "surroundings").prints("");
            assert!(tried(&ended).contains(&way.to_owned()), "{ended}");
            assert_eq!(store.links(), BTreeMap::new());
        }
    }
}

#[test]
fn an_output_is_watched_until_a_collection_has_ended_that_was_under_way_when_it_was_rooted() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let flags = recorded(&target);
    let state = store.state().join("gc-socket");
    for takes in [false, true] {
        // In the place of a collector, which cannot be made to stand still between its look at the roots and what it takes.
        fs::create_dir_all(&state).unwrap();
        let socket = state.join("socket");
        let _ = fs::remove_file(&socket);
        let collector = UnixListener::bind(&socket).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let (step, _) = collector.accept().unwrap();
                if takes {
                    store.delete(target.paths());
                }
                drop(step);
            });
            let ended = store.step(&flags).run();
            // Where the step has not come, the collector would wait for ever.
            let _ = UnixStream::connect(&socket);
            is_true(&ended, &store);
            if takes {
                ended
                    .takes("evaluated", "outputs-collected")
                    .passes_on("-hello does not exist, although Nix has just realised it");
            } else {
                ended.takes("realised", "drv-valid");
            }
        });
    }
}

#[test]
fn an_output_that_is_gone_after_it_was_realised_is_obtained_in_the_next_way() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let script = after_call(1, &deletes(&target.paths()));
    let stand_ins = StandIns::new(store.bin()).before("nix-store", &script);
    let ended = store
        .step(recorded(&target))
        .env("PATH", stand_ins.path(&store))
        .run();
    ended
        .takes("evaluated", "outputs-collected")
        .says(&[
            "evaluated ",
            "hint: evaluated again because an output was collected",
        ])
        .passes_on(
            "-hello does not exist, although Nix has just realised it; \
             the recorded outputs are neither here nor in a substituter",
        );
    is_true(&ended, &store);
    assert_eq!(tried(&ended), ["realised", "available", "evaluated"]);
}

#[test]
fn one_of_several_outputs_that_is_gone_is_as_good_as_all() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"{ hello = buildAll [ "out" "dev" ] "hello" "echo hello > $out; echo dev > $dev"; }"#,
    );
    let target = store.target("hello");
    let script = after_call(1, &deletes(&[&target.outputs["dev"]]));
    let stand_ins = StandIns::new(store.bin()).before("nix-store", &script);
    let ended = store
        .step(recorded(&target))
        .env("PATH", stand_ins.path(&store))
        .run();
    ended.takes("evaluated", "outputs-collected");
    is_true(&ended, &store);
}

#[test]
fn an_output_that_is_gone_after_it_was_available_is_evaluated() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.build(&target.drv);
    store.delete([&target.drv]);
    let script = after_call(1, &deletes(&target.paths()));
    let stand_ins = StandIns::new(store.bin()).before("nix-store", &script);
    let ended = store
        .step(recorded(&target))
        .env("PATH", stand_ins.path(&store))
        .run();
    ended.takes("evaluated", "drv-missing");
    is_true(&ended, &store);
}

#[test]
fn an_output_that_is_gone_after_an_evaluation_is_evaluated_and_built_again() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.collect();
    let script = after_call(1, &deletes(&target.paths()));
    let stand_ins = StandIns::new(store.bin()).before("nix-store", &script);
    let ended = store
        .step(evaluated())
        .env("PATH", stand_ins.path(&store))
        .run();
    ended.takes("evaluated", "not-recorded").counts(2, 0);
    is_true(&ended, &store);
}

#[test]
fn an_output_that_is_gone_is_noticed_through_a_daemon_and_without_a_link_too() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let daemon = store.daemon();
    let script = after_call(1, &deletes(&target.paths()));
    let stand_ins = StandIns::new(store.bin()).before("nix-store", &script);
    let ended = store
        .step(recorded(&target))
        .arg("--no-out-link")
        .envs(daemon.env())
        .env("PATH", stand_ins.path(&store))
        .run();
    ended.takes("evaluated", "outputs-collected");
    assert!(store.has(target.out()));
}

#[test]
fn an_output_that_is_registered_and_missing_is_no_success() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.build(&target.drv);
    fs::remove_file(target.out()).unwrap();
    assert!(store.has(target.out()), "Nix still calls it valid");
    let ended = store.step(recorded(&target)).run();
    ended
        .fails(75, "surroundings")
        .passes_on("nix-store --verify --check-contents --repair");
    assert_eq!(store.links(), BTreeMap::new());
}

#[test]
fn one_of_several_outputs_that_is_registered_and_missing_is_no_success_where_the_drv_is_gone() {
    let Some(store) = Store::new() else { return };
    store.targets(
        "{ hello = with' { outputs = [ \"out\" \"dev\" ]; } \"hello\" \"echo > $out; echo > $dev\"; }",
    );
    let target = store.target("hello");
    store.build(&target.drv);
    let link = store.root().join("kept").display().to_string();
    store.nix("nix-store", ["--realise", &target.drv, "--add-root", &link]);
    store.delete([target.drv.as_str()]);
    fs::remove_file(&target.outputs["dev"]).unwrap();
    let flags = target.flags().split_off(2);
    let ended = store.step(flags).run();
    ended.fails(75, "surroundings").passes_on("does not exist");
}

#[test]
fn a_store_elsewhere_is_asked_where_its_files_are_not_here() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.build(&target.drv);
    let elsewhere = format!("local?root={}", store.root().join("elsewhere").display());
    for path in [target.out(), &target.drv] {
        let arguments = ["copy", "--no-check-sigs", "--to", &elsewhere, path];
        let derivation = (path == target.drv).then_some("--derivation");
        store.nix("nix", arguments.into_iter().chain(derivation));
    }
    // The `.drv` lies here as well, and the output does not: that says nothing about a store elsewhere.
    store.delete(target.paths());
    store.poison();
    let output = target.flags().split_off(2);
    let realised = ("realised", "drv-valid", target.drv_flags());
    for (way, reason, flags) in [realised, ("available", "outputs-available", output)] {
        let ended = store.step(flags).env("NIX_REMOTE", &elsewhere).run();
        ended.takes(way, reason).counts(0, 0);
        assert_eq!(store.links()["result"], target.out());
        fs::remove_file(store.work().join("result")).unwrap();
    }
    // The same named by an option.
    let ended = store
        .step(target.drv_flags())
        .args(["--option", "store", &elsewhere])
        .run();
    ended.takes("realised", "drv-valid");
}

#[test]
fn a_daemon_whose_store_is_not_here_is_asked_too() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.build(&target.drv);
    let daemon = store.daemon();
    // As in a container that has the daemon's socket, and another store's folder or none.
    let mount = format!("mount -t tmpfs none '{}'", store.folder().display());
    // (A `.drv` cannot be realised there: 2.8 opens its file once more when it was built.)
    let Some(step) = store.step_with_mounts(&mount, target.flags().split_off(2)) else {
        return;
    };
    let ended = step.envs(daemon.env()).run();
    ended.takes("available", "outputs-available").counts(0, 0);
    is_true(&ended, &store);
}

#[test]
fn recorded_outputs_that_another_step_makes_valid_meanwhile_are_obtained_once_more() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.build(&target.drv);
    store.poison();
    let outputs = || target.flags().split_off(2);
    for (failing, way) in [("-eq 1", "available"), ("-ge 1", "none")] {
        let script = format!(
            "case \"$*\" in *--realise*) echo >>\"$0\".tries; [ $(wc -l <\"$0\".tries) {failing} ] && exit 1;; esac"
        );
        let folder = store.root().join(way);
        let stand_ins = StandIns::new(&folder).before("nix-store", &script);
        let step = store.step(outputs()).env("PATH", stand_ins.path(&store));
        let ended = step.run();
        ended.passes_on("the recorded outputs were missing, and are valid now");
        let tries = fs::read_to_string(folder.join("nix-store.tries")).unwrap();
        assert_eq!(tries.lines().count(), 2, "{ended}");
        if way == "available" {
            ended.takes("available", "outputs-available");
        } else {
            ended.fails(75, "surroundings");
        }
    }
}

#[test]
fn recorded_outputs_are_held_until_each_has_its_link() {
    let Some(store) = Store::new() else { return };
    store.targets(r#"{ hello = buildAll [ "out" "dev" ] "hello" "echo > $out; echo > $dev"; }"#);
    let target = store.target("hello");
    store.build(&target.drv);
    store.poison();
    // Before each link, a collection takes what nothing keeps.
    let [dev, out] = ["dev", "out"].map(|name| &target.outputs[name]);
    let script = format!(
        "case \"$*\" in *--realise*result*) \"$REAL\" --delete '{dev}' '{out}' >&2 || echo kept >>\"$0\".kept;; esac"
    );
    let stand_ins = StandIns::new(store.bin()).before("nix-store", &script);
    let step = store.step(target.flags().split_off(2));
    let ended = step.env("PATH", stand_ins.path(&store)).run();
    ended.takes("available", "outputs-available");
    let kept = fs::read_to_string(store.bin().join("nix-store.kept")).unwrap();
    assert_eq!(kept.lines().count(), 2, "{ended}");
}

/// A fixed output that refers to another store path, with the hash that it has. It may have been built before as what it is not:
/// then Nix 2.8 has registered it already, and leaves a file where the `.drv` wants it.
fn fixed_output_with_references(store: &Store, was_built_before: bool) -> String {
    let with_hash = |hash: &str| {
        store.targets(&format!(
            r#"rec {{
                base = file "base";
                fixed = with' {{ outputHashMode = "recursive"; outputHashAlgo = "sha256"; outputHash = "{hash}"; }}
                  "fixed" "echo ${{base}} > $out";
            }}"#
        ));
        store.instantiate("default.nix", "fixed")
    };
    let wrong = with_hash(&"0".repeat(64));
    let base = store.output(&store.instantiate("default.nix", "base"), "out");
    if was_built_before {
        let ended = store.program("nix-store").args(["--realise", &wrong]).run();
        assert!(!ended.status.success(), "{ended}");
    }
    let made = store.write("made", &format!("{base}\n"));
    let hash = store.nix("nix-hash", ["--type", "sha256", made.to_str().unwrap()]);
    with_hash(&hash)
}

/// Runs a step of a fixed output that keeps references, as often as one may: it is green with what is valid, or red.
#[track_caller]
fn is_green_with_what_is_valid_or_red(store: &Store, drv: &str, more: &[(String, String)]) -> bool {
    let mut was_green = false;
    for _ in 0..3 {
        let ended = store
            .step(["--drv", drv, "--", "/bin/sh", "-c", "echo $EVAL_ONCE_OUT"])
            .envs(more.to_vec())
            .run();
        was_green = ended.status.success();
        if was_green {
            is_true(&ended, store);
            let out = &ended.report()["outputs"]["out"];
            ended.prints(&format!("{}\n", out.as_str().unwrap()));
        } else {
            let class = &ended.report()["failure"]["class"];
            assert!(
                ["build", "hash"].map(Value::from).contains(class),
                "{ended}"
            );
            let failed = ended.report()["failure"]["drv"]
                .as_str()
                .unwrap_or_default();
            assert!(failed.ends_with("-fixed.drv"), "{ended}");
            assert_eq!(store.links(), BTreeMap::new(), "{ended}");
        }
    }
    was_green
}

#[test]
fn a_fixed_output_that_keeps_references_is_green_only_with_what_is_valid() {
    // 2.8 links the path of the `.drv`, which is not valid, or with `ca-derivations` another one, which is. Later versions refuse
    // it.
    for feature in ["", " ca-derivations"] {
        for with_daemon in [false, true] {
            for was_built_before in [true, false] {
                let Some(store) = Store::new() else { return };
                store.configure(&format!(
                    "experimental-features = nix-command flakes{feature}"
                ));
                let drv = fixed_output_with_references(&store, was_built_before);
                let daemon = with_daemon.then(|| store.daemon());
                let more = daemon.map(|daemon| (daemon.env(), daemon));
                let environment: Vec<(String, String)> = more
                    .iter()
                    .flat_map(|(environment, _)| environment.clone())
                    .map(|(name, value)| {
                        (name.into_string().unwrap(), value.into_string().unwrap())
                    })
                    .collect();
                let green = is_green_with_what_is_valid_or_red(&store, &drv, &environment);
                let builds = if with_daemon || is_for_all() {
                    path_of_daemons(&store)
                } else {
                    store.path()
                };
                let takes_it = is_nix_on(&builds, "2.8") && !feature.is_empty();
                assert_eq!(green, takes_it, "{with_daemon} {was_built_before}");
            }
        }
    }
}

#[test]
fn a_daemon_that_is_killed_at_a_fixed_output_is_not_blamed_on_it_where_it_would_refuse_it() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"{ fixed = with' { outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="; }
             "fixed" "echo > $out"; }"#,
    );
    let drv = store.target("fixed").drv;
    let daemon = store.daemon();
    let dies = format!(
        "case \"$*\" in *--realise*) echo \"building '{drv}'...\" >&2; echo 'error: unexpected end-of-file' >&2; exit 1;; esac"
    );
    let stand_ins = StandIns::new(store.bin()).before("nix-store", &dies);
    let ended = store
        .step(["--drv", &drv])
        .envs(daemon.env())
        .env("PATH", stand_ins.path(&store))
        .run();
    if is_nix_on(&path_of_daemons(&store), "2.8") {
        ended
            .fails(100, "build")
            .passes_on("may refer to other store paths");
    } else {
        ended.fails(75, "surroundings");
    }
    let calls = stand_ins.calls("nix-store");
    let is_realise = |call: &&Vec<String>| call.contains(&"--realise".to_owned());
    assert_eq!(calls.iter().filter(is_realise).count(), 2, "{ended}");
}

#[test]
fn a_nix_that_builds_and_makes_no_link_keeps_nothing() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let script = r#"case "$*" in *--realise*) exec "$REAL" --realise "$2" ;; esac"#;
    let stand_ins = StandIns::new(store.bin()).before("nix-store", script);
    let ended = store
        .step(target.drv_flags())
        .env("PATH", stand_ins.path(&store))
        .run();
    ended
        .fails(75, "surroundings")
        .passes_on("nothing keeps the outputs: `nix-store` ended with 0");
    assert_eq!(store.links(), BTreeMap::new());
}

#[test]
fn only_a_fixed_output_that_was_built_just_now_is_asked_for() {
    let Some(store) = Store::new() else { return };
    let made = store.write("made", "hello\n");
    let hash = store.nix("nix-hash", ["--type", "sha256", made.to_str().unwrap()]);
    store.targets(&format!(
        r#"{{ hello = with' {{ outputHashMode = "recursive"; outputHashAlgo = "sha256"; outputHash = "{hash}"; }}
             "hello" "echo hello > $out"; }}"#
    ));
    let target = store.target("hello");
    for (built, processes) in [(1, 2), (0, 1)] {
        let bin = store.root().join(format!("bin-{built}"));
        let stand_ins = StandIns::new(bin).counting("nix-store");
        let ended = store
            .step(target.flags())
            .env("PATH", stand_ins.path(&store))
            .run();
        ended.takes("realised", "drv-valid").counts(built, 0);
        is_true(&ended, &store);
        assert_eq!(stand_ins.calls("nix-store").len(), processes, "{ended}");
    }
}

/// Whether the Nix on `PATH` is of this version.
pub(super) fn is_nix(version: &str) -> bool {
    is_nix_on(&std::env::var_os("PATH").unwrap(), version)
}

fn is_nix_on(path: &OsStr, version: &str) -> bool {
    version_on(path).starts_with(&format!("{version}."))
}

#[test]
fn a_drv_that_is_registered_between_the_realise_and_the_look_is_realised_again() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let daemon = store.daemon();
    for environment in [vec![], daemon.env()] {
        for flags in [recorded(&target), target.drv_flags()] {
            let _ = fs::remove_file(store.work().join("result"));
            store.collect();
            assert!(!store.has(&target.drv));
            // The call that realises the `.drv`: before it there is one for the recorded outputs, where there are any.
            let nth = if flags.len() > 2 { 2 } else { 1 };
            let bin = store
                .root()
                .join(format!("bin-{}-{nth}", environment.len()));
            let stand_ins = StandIns::new(&bin)
                .counting("nix-instantiate")
                .before("nix-store", &after_call(nth, &registers()));
            let ended = store
                .step(&flags)
                .envs(environment.clone())
                .env("PATH", stand_ins.path(&store))
                .run();
            ended.takes("realised", "drv-valid").counts(1, 0);
            ended.never_says("error:");
            is_true(&ended, &store);
            assert!(stand_ins.calls("nix-instantiate").is_empty());
        }
    }
}

#[test]
fn what_nix_calls_missing_a_second_time_though_it_is_valid_is_believed() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.poison();
    let message = format!("error: cannot build missing derivation '{}'", target.drv);
    let script = format!("case \"$*\" in *--realise*) echo \"{message}\" >&2; exit 1;; esac");
    let stand_ins = StandIns::new(store.bin()).before("nix-store", &script);
    let ended = store
        .step(recorded(&target))
        .env("PATH", stand_ins.path(&store))
        .run();
    ended.fails(75, "surroundings");
    let calls = stand_ins.calls("nix-store");
    let realises = calls
        .iter()
        .filter(|call| call.contains(&"--realise".to_owned()));
    assert_eq!(realises.count(), 2, "{calls:?}");
}

#[test]
fn a_drv_that_is_collected_and_registered_again_each_time_is_realised_again_and_then_evaluated() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let drv = &target.drv;
    let run = |calls: u32, flags: Vec<String>| {
        store.nix("nix-instantiate", ["default.nix", "-A", "hello"]);
        // Another step of it registers it before we look. Every second call asks whether it is valid.
        let script = format!(
            "case \"$*\" in *--realise*) if [ \"$NTH\" -le {calls} ]; then \"$REAL\" --delete {drv} >/dev/null 2>&1 || exit 99; {}; echo \"error: path '{drv}' is not valid\" >&2; exit 1; fi;; esac",
            registers()
        );
        let bin = store.root().join(format!("losing-{calls}-{}", flags.len()));
        let stand_ins = StandIns::new(&bin).before("nix-store", &script);
        let path = stand_ins.path(&store);
        let ended = store.step(flags).env("PATH", path).run();
        let _ = fs::remove_file(store.work().join("result"));
        store.collect();
        ended
    };
    for calls in [1, 3] {
        let ended = run(calls, recorded(&target));
        ended.exits(0).takes("realised", "drv-valid");
    }
    let ended = run(5, recorded(&target));
    ended.exits(0).takes("evaluated", "drv-collected");
    run(5, target.drv_flags()).fails(75, "surroundings");
}

#[test]
fn a_drv_that_is_collected_while_it_is_asked_why_nix_missed_it_is_evaluated() {
    let Some(store) = Store::new() else { return };
    store.targets(r#"rec { dep = file "dep"; hello = build "hello" "echo ${dep} > $out"; }"#);
    let target = store.target("hello");
    let drv = &target.drv;
    let dep = store.nix("nix-store", ["--query", "--references", drv]);
    let dep = dep.lines().find(|path| path.ends_with("-dep.drv")).unwrap();
    // The first question is about the `.drv`, which is valid; then it is about what Nix has missed.
    for (missed, question) in [(drv.as_str(), 2), (dep, 3)] {
        store.nix("nix-instantiate", ["default.nix", "-A", "hello"]);
        let script = format!(
            "case $NTH in 1) echo \"error: path '{missed}' is not valid\" >&2; exit 1;; {question}) printed=$(\"$REAL\" \"$@\"); \"$REAL\" --delete {drv} >/dev/null 2>&1 || exit 99; [ {question} = 2 ] || {{ \"$REAL\" --delete {dep} >/dev/null 2>&1; printed=$(\"$REAL\" \"$@\"); }}; echo \"$printed\"; exit;; esac"
        );
        let bin = store.root().join(format!("collecting-{question}"));
        let stand_ins = StandIns::new(&bin).before("nix-store", &script);
        let ended = store
            .step(recorded(&target))
            .env("PATH", stand_ins.path(&store))
            .run();
        ended.exits(0).takes("evaluated", "drv-collected");
        let _ = fs::remove_file(store.work().join("result"));
        store.collect();
    }
}

/// As Nix ends where the collector takes a `.drv` between two looks of its own: it aborts, and through a daemon the daemon's worker
/// does; and where it takes a source, of which no version says anything. By the time we look, another step has registered it again.
fn deaths_of_what_was_lost() -> [(&'static str, String); 5] {
    let aborts = |place: &str| {
        format!("echo \"nix-store: src/libstore/build/{place}' failed.\" >&2; kill -ABRT $$")
    };
    let ends = |message: &str| format!("echo 'error: {message}' >&2; exit 1");
    let needed = format!(
        "1 dependencies of derivation {} failed to build",
        "'\\''/s/0123456789abcdfghijklmnpqrsvwxyz-a.drv'\\''"
    );
    [
        (
            "2.8",
            aborts(
                "derivation-goal.cc:194: void nix::DerivationGoal::loadDerivation(): Assertion \\`worker.evalStore.isValidPath(drvPath)",
            ),
        ),
        (
            "2.26",
            aborts(
                "derivation-goal.cc:190: nix::Goal::Co nix::DerivationGoal::loadDerivation(): Assertion \\`drv",
            ),
        ),
        ("a daemon of 2.8", ends("unexpected end-of-file")),
        (
            "a daemon of 2.26",
            ends("Nix daemon disconnected unexpectedly (maybe it crashed?)"),
        ),
        ("a source", ends(&needed)),
    ]
}

#[test]
fn a_nix_that_dies_of_what_was_lost_and_is_valid_by_now_realises_it_again() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    for (number, (who, death)) in deaths_of_what_was_lost().into_iter().enumerate() {
        for times in [1, 9] {
            let script = format!(
                "case \"$*\" in *--realise*) if [ \"$NTH\" -le {times} ]; then {death}; fi;; esac"
            );
            let bin = store.root().join(format!("dying-{number}-{times}"));
            let stand_ins = StandIns::new(&bin).before("nix-store", &script);
            let ended = store
                .step(target.drv_flags())
                .env("PATH", stand_ins.path(&store))
                .run();
            let calls = stand_ins.calls("nix-store");
            let is_realise = |call: &&Vec<String>| call.contains(&"--realise".to_owned());
            assert_eq!(calls.iter().filter(is_realise).count(), 2, "{who}: {ended}");
            if times == 1 {
                ended.takes("realised", "drv-valid");
                is_true(&ended, &store);
                let _ = fs::remove_file(store.work().join("result"));
            } else {
                ended.fails(75, "surroundings");
            }
        }
    }
}

#[test]
fn an_evaluation_of_which_nix_dies_of_what_was_lost_is_done_again() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    for (number, (who, death)) in deaths_of_what_was_lost().into_iter().enumerate() {
        let script = format!("if [ \"$NTH\" = 1 ]; then {death}; fi");
        let bin = store.root().join(format!("dying-{number}"));
        let stand_ins = StandIns::new(&bin).before("nix-instantiate", &script);
        let ended = store
            .step(evaluated())
            .env("PATH", stand_ins.path(&store))
            .run();
        ended.takes("evaluated", "not-recorded");
        is_true(&ended, &store);
        assert_eq!(stand_ins.calls("nix-instantiate").len(), 2, "{who}");
        fs::remove_file(store.work().join("result")).unwrap();
        assert!(store.has(&target.drv));
    }
}

#[test]
fn a_builder_that_prints_the_collectors_words_is_run_once() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"rec { dep = file "dep"; hello = build "hello" "echo \"error: path '${dep}' is not valid\" >&2; echo \"error: 1 dependencies of derivation '${dep}.drv' failed to build\" >&2; exit 3"; }"#,
    );
    let target = store.target("hello");
    for form in ["pretty", "raw"] {
        let ended = store.step(target.flags()).args(["--log", form]).run();
        ended
            .fails(100, "build")
            .never_says(" was missing, ")
            .never_says("realising hello again");
    }
}

#[test]
fn several_steps_of_one_missing_drv_that_start_at_once_are_all_green() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let daemon = store.daemon();
    for round in 0..6 {
        for with_daemon in [false, true] {
            store.collect();
            assert!(!store.has(&target.drv));
            let steps: Vec<_> = (0..3)
                .map(|n| {
                    let environment = if with_daemon { daemon.env() } else { vec![] };
                    store
                        .eval_once(["step"])
                        .args(recorded(&target))
                        .args(["--out-link", &format!("link-{n}")])
                        .envs(environment)
                        .start()
                })
                .collect();
            for step in steps {
                let ended = step.end();
                assert!(
                    ended.status.success(),
                    "round {round}, daemon {with_daemon}: {ended}"
                );
                ended.prints(&format!("{}\n", target.out()));
            }
            for n in 0..3 {
                fs::remove_file(store.work().join(format!("link-{n}"))).unwrap();
            }
        }
    }
}

#[test]
fn an_evaluation_that_missed_a_path_which_is_valid_by_now_is_done_again() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.collect();
    let path = target.drv.as_str();
    for message in [
        format!("path '{path}' is not valid"),
        format!("store path '{path}' does not exist"),
        format!("opening file '{path}': No such file or directory"),
    ] {
        for (times, evaluations) in [(1, 2), (9, 5)] {
            // Only what evaluates misses it, not the question for the store's folder.
            let script = format!(
                "case \"$*\" in *builtins.storeDir*) exec \"$REAL\" \"$@\";; esac
                 if [ \"$NTH\" -le {times} ]; then {}; echo \"error: {message}\" >&2; exit 1; fi",
                registers()
            );
            let bin = store.root().join("appearing");
            let stand_ins = StandIns::new(&bin).before("nix-instantiate", &script);
            let ended = store
                .step(evaluated())
                .env("PATH", stand_ins.path(&store))
                .run();
            // Where it says so again, it is asked each time whether these are the expression's own words.
            assert_eq!(stand_ins.evaluations(), evaluations, "{ended}");
            if times == 1 {
                ended.takes("evaluated", "not-recorded");
                is_true(&ended, &store);
                fs::remove_file(store.work().join("result")).unwrap();
            } else {
                // No expression fails because of a path that is there: so it is not to blame.
                ended
                    .fails(75, "surroundings")
                    .passes_on("and is valid now")
                    .passes_on("write it anew with `nix-instantiate --repair");
            }
            fs::remove_dir_all(&bin).unwrap();
            store.collect();
        }
    }
}
