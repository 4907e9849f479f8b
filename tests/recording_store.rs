//! What a recording does with the store: the pin that keeps what was found, and what needs no step because it is there.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;

use serde_json::Value;

use crate::support::{
    daemon::Daemon,
    program::{Ended, Program},
    recording::Pipeline,
    stand_in::StandIns,
    store::Store,
    target::{Target, expression},
};

fn record(store: &Store, flags: &[&str]) -> Program {
    store.eval_once(["pipeline", "--dry-run"]).args(flags)
}

#[track_caller]
fn mentions(ended: &Ended, part: &str) {
    assert!(ended.stderr.contains(part), "not said: {part}: {ended}");
}

/// The folders of all pins.
fn pins(store: &Store) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(store.our_state().join("pins")) else {
        return Vec::new();
    };
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Two targets, one of which needs the other, and what is no target in between.
const TARGETS: &str = r#"
let between = with' { inherit low; } "between" "echo > $out"; low = file "low";
in { inherit low; high = with' { inherit between; } "high" "echo > $out"; }
"#;

fn drvs(pipeline: &Pipeline) -> Vec<String> {
    pipeline.drvs().into_values().collect()
}

/// A command of the shell that takes a `.drv` as a collection does that is under way: before 2.35, it may not look whether an evaluator
/// that runs has written the `.drv` meanwhile.
fn take(drv: &str) -> String {
    format!(
        "rm -f \"$NIX_STATE_DIR\"/temproots/*; env -u NIX_REMOTE nix-store --delete --ignore-liveness '{drv}' >/dev/null 2>&1"
    )
}

// ---- the pin

#[test]
fn what_was_recorded_outlives_a_collection_and_goes_with_its_pin() {
    for daemon in [false, true] {
        let Some(store) = Store::new() else { return };
        store.targets(TARGETS);
        // As on hosts that save space; and what an evaluation may read is for the evaluation.
        store.configure("keep-derivations = false");
        store.configure("restrict-eval = true");
        let daemon = daemon.then(|| store.daemon());
        let client = daemon.as_ref().map(Daemon::env).unwrap_or_default();
        let include = store.work();
        let flags = ["--skip", "none", "-I", include.to_str().unwrap()];
        let ended = record(&store, &flags).envs(client).run();
        let recorded = drvs(&Pipeline::of(&ended));
        assert_eq!(recorded.len(), 2);
        let [pin] = pins(&store).try_into().unwrap();
        store.collect();
        for drv in &recorded {
            assert!(store.has(drv), "{drv} is gone");
        }
        // Its references are the `.drv`s and nothing else: rooting it builds nothing.
        let file = fs::read_link(pin.join("pin")).unwrap();
        let references = store.nix(
            "nix-store",
            ["--query", "--references", file.to_str().unwrap()],
        );
        let mut references: Vec<_> = references.lines().map(str::to_owned).collect();
        references.sort();
        let mut expected = recorded.clone();
        expected.sort();
        assert_eq!(references, expected);
        let text: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        assert_eq!(text["targets"][0]["attr"], serde_json::json!(["high"]));

        // By hand, the same recording again replaces its own.
        record(&store, &flags).run().exits(0);
        assert_eq!(pins(&store), std::slice::from_ref(&pin));
        // Pruning leaves it as long as it is to be kept.
        store
            .eval_once(["prune"])
            .run()
            .exits(0)
            .says(&["no pin has expired"]);
        fs::write(pin.join("keep.json"), r#"{"until":1}"#).unwrap();
        store.eval_once(["prune"]).run().exits(0);
        assert!(pins(&store).is_empty());
        store.collect();
        assert!(recorded.iter().all(|drv| !store.has(drv)));
    }
}

#[test]
fn a_recording_of_something_else_has_a_pin_of_its_own() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    record(&store, &[]).run().exits(0);
    record(&store, &["-A", "low"]).run().exits(0);
    assert_eq!(pins(&store).len(), 2);
}

#[test]
fn recordings_at_the_same_time_do_not_disturb_each_other() {
    let Some(store) = Store::new() else { return };
    store.targets("builtins.listToAttrs (builtins.genList (i: rec { name = \"t${toString i}\"; value = file name; }) 50)");
    let running: Vec<_> = (0..4)
        .map(|_| record(&store, &["--skip", "none"]).start())
        .collect();
    let pipelines: Vec<Value> = running
        .into_iter()
        .map(|running| Pipeline::of(&running.end()).json)
        .collect();
    assert!(pipelines.windows(2).all(|two| two[0] == two[1]));
    store.collect();
    let pipeline = Pipeline {
        json: pipelines[0].clone(),
    };
    assert!(drvs(&pipeline).iter().all(|drv| store.has(drv)));
}

#[test]
fn a_drv_that_vanished_before_it_was_pinned_is_evaluated_again() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\"; b = file \"b\"; set = { recurseForDerivations = true; c = file \"c\"; }; }");
    let gone = store.target("set.c").drv;
    store.delete([&gone]);
    let garbage = store.nix("nix-store", ["--add", "default.nix"]);
    // The first call is the one that writes the pin. The other .drvs are kept while the next evaluator works.
    let script = format!("if [ $NTH = 1 ]; then {}; fi", take(&gone));
    let stand_ins = StandIns::new(store.bin())
        .before("nix-instantiate", &script)
        .before(
            "nix",
            "if [ $NTH = 2 ]; then env -u NIX_REMOTE nix-store --gc >/dev/null 2>&1; fi",
        );
    let ended = record(&store, &["--skip", "none", "--workers", "1"])
        .env("PATH", stand_ins.path(&store))
        .run();
    assert_eq!(drvs(&Pipeline::of(&ended)).len(), 3);
    // That one alone.
    assert_eq!(
        ended.stderr.matches("garbage collector").count(),
        1,
        "{ended}"
    );
    mentions(&ended, "the garbage collector removed what set.c needs");
    assert!(!store.has(&garbage), "there was no collection: {ended}");
    assert!(store.has(&gone));
    let calls = |program| stand_ins.calls(program).len();
    assert_eq!(
        calls("nix-instantiate"),
        3,
        "the pin, what is left, the pin again"
    );
    assert!(
        !store
            .our_state()
            .join("roots")
            .read_dir()
            .unwrap()
            .any(|_| true)
    );
    assert_eq!(calls("nix"), 2, "a new evaluator writes the .drv again");
}

/// The evaluator that has written them lives until the pin is rooted.
#[test]
fn a_collection_before_the_pin_is_rooted_takes_nothing_of_what_was_evaluated() {
    for daemon in [false, true] {
        let Some(store) = Store::new() else { return };
        store.targets(TARGETS);
        let stand_ins = keeps_all_until_the_pin(&store, daemon, &["--skip", "none"]);
        assert_eq!(stand_ins.calls("nix").len(), 1, "one evaluator");
        assert_eq!(stand_ins.calls("nix-instantiate").len(), 1, "one pin");
    }
}

/// Nix before 2.10 evaluates a flake in one process per level of sets, of which each lives until the pin is rooted or the next one begins.
#[test]
fn a_collection_before_the_pin_of_a_flake_is_rooted_takes_nothing_of_what_was_evaluated() {
    for daemon in [false, true] {
        let Some(store) = Store::new() else { return };
        let arguments = ["--eval", "--expr", "builtins.currentSystem"];
        let system = store.nix("nix-instantiate", arguments);
        let targets = expression(TARGETS).replace("builtins.currentSystem", &system);
        store.write(
            "flake.nix",
            &format!("{{ outputs = {{ self }}: {{ packages.{system} = {targets}; }}; }}"),
        );
        let flags = ["--flake", "path:.", "--skip", "none"];
        let stand_ins = keeps_all_until_the_pin(&store, daemon, &flags);
        let calls = stand_ins.calls("nix-instantiate");
        let pins = calls
            .iter()
            .filter(|call| call.iter().any(|word| word == "--argstr"));
        assert_eq!(pins.count(), 1, "one pin");
    }
}

/// Records beside a collection before each `nix-instantiate`, of which the pin's is the last: nothing is lost. Gives the stand-ins, which have
/// counted.
#[track_caller]
fn keeps_all_until_the_pin(store: &Store, daemon: bool, flags: &[&str]) -> StandIns {
    let daemon = daemon.then(|| store.daemon());
    let client = daemon.as_ref().map(Daemon::env).unwrap_or_default();
    store.write("unused", "");
    let garbage = store.nix("nix-store", ["--add", "unused"]);
    let stand_ins = StandIns::new(store.bin())
        .before(
            "nix-instantiate",
            "env -u NIX_REMOTE nix-store --gc >/dev/null 2>&1",
        )
        .counting("nix");
    let ended = record(store, flags)
        .envs(client)
        .env("PATH", stand_ins.path(store))
        .run();
    let recorded = drvs(&Pipeline::of(&ended));
    assert_eq!(recorded.len(), 2);
    assert!(!store.has(&garbage), "there was no collection: {ended}");
    assert!(!ended.stderr.contains("garbage"), "{ended}");
    store.collect();
    assert!(recorded.iter().all(|drv| store.has(drv)));
    stand_ins
}

#[test]
fn a_pin_that_a_running_collection_took_is_made_again() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    // The first question for what keeps it comes when it was rooted; just before that, it goes.
    let script = "case \"$1 $3\" in '--query '*-eval-once-pin.json) if [ ! -e taken ]; then touch taken; \
                  env -u NIX_REMOTE \"$REAL\" --delete --ignore-liveness \"$3\" >/dev/null 2>&1; fi;; esac";
    let stand_ins = StandIns::new(store.bin()).before("nix-store", script);
    let ended = record(&store, &["--skip", "none"])
        .env("PATH", stand_ins.path(&store))
        .run();
    let recorded = drvs(&Pipeline::of(&ended));
    assert!(store.work().join("taken").exists());
    store.collect();
    assert!(recorded.iter().all(|drv| store.has(drv)));
}

/// A collection that has read the roots before the pin's was made calls the pin valid until it takes it.
#[test]
fn a_pin_outlives_a_collection_that_began_while_it_was_rooted() {
    for lasts in [false, true] {
        let Some(store) = Store::new() else { return };
        store.targets(TARGETS);
        // In the place of a collector, which cannot be made to stand still between its look at the roots and what it takes.
        let folder = store.state().join("gc-socket");
        fs::create_dir_all(&folder).unwrap();
        let socket = folder.join("socket");
        let collector = UnixListener::bind(&socket).unwrap();
        thread::scope(|scope| {
            let collections = scope.spawn(|| {
                // One was under way before the pin was written, and has ended.
                drop(collector.accept().unwrap());
                // The next one has taken the pin, or will do so some time.
                let (next, _) = collector.accept().unwrap();
                let link = pins(&store)[0].join("pin");
                let first = fs::read_link(&link).unwrap();
                if lasts {
                    let (known, _) = collector.accept().unwrap();
                    return (first, Some((next, known)));
                }
                // (Whoever deletes listens at the same place.)
                let aside = folder.join("aside");
                fs::rename(&socket, &aside).unwrap();
                store.delete([&first]);
                fs::rename(&aside, &socket).unwrap();
                drop(next);
                // It is written again, which the collection after that one is told of.
                let (known, _) = collector.accept().unwrap();
                (first, Some((known.try_clone().unwrap(), known)))
            });
            let ended = record(&store, &["--skip", "none"]).run();
            // Where the recording has not come, the collector would wait for ever.
            for _ in 0..3 {
                let _ = UnixStream::connect(&socket);
            }
            let (first, _) = collections.join().unwrap();
            ended.exits(0);
            let pin = fs::read_link(pins(&store)[0].join("pin")).unwrap();
            assert_ne!(
                pin, first,
                "Nix may call the first one valid until it is taken"
            );
            assert!(pin.exists());
            let _ = fs::remove_file(&socket);
            store.collect();
            assert!(drvs(&Pipeline::of(&ended)).iter().all(|drv| store.has(drv)));
        });
    }
}

#[test]
fn a_pin_that_missed_a_drv_which_is_valid_by_now_is_written_again() {
    // Before the pin is written the `.drv` goes; before anybody looks another recording has registered it again.
    for (times, status, writes) in [(1, 0, 2), (3, 0, 4), (99, 75, 10)] {
        let Some(store) = Store::new() else { return };
        store.targets(TARGETS);
        let high = store.target("high").drv;
        let script = format!(
            "case \"$*\" in *eval-once-pin*|*'pin.json'*) if [ $NTH -le {times} ]; then {take}; \"$REAL\" \"$@\"; status=$?; \
             \"$REAL\" default.nix -A high >/dev/null 2>&1; exit $status; fi;; esac",
            take = take(&high)
        );
        let stand_ins = StandIns::new(store.bin()).before("nix-instantiate", &script);
        let ended = record(&store, &["--skip", "none", "--workers", "1"])
            .env("PATH", stand_ins.path(&store))
            .run();
        ended.exits(status);
        mentions(
            &ended,
            "was missing, and is valid now: writing the pin again",
        );
        assert_eq!(stand_ins.calls("nix-instantiate").len(), writes, "{ended}");
        if status == 0 {
            store.collect();
            assert!(store.has(&high));
        }
    }
}

#[test]
fn a_nix_that_always_calls_the_same_file_missing_is_believed_at_the_second_pin() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    let high = store.target("high").drv;
    let script = format!(
        "case \"$*\" in *eval-once-pin*|*'pin.json'*) echo \"error: path '{high}' is not valid\" >&2; exit 1;; esac"
    );
    let stand_ins = StandIns::new(store.bin()).before("nix-instantiate", &script);
    let ended = record(&store, &["--skip", "none", "--workers", "1"])
        .env("PATH", stand_ins.path(&store))
        .run();
    ended.exits(75);
    assert_eq!(stand_ins.calls("nix-instantiate").len(), 2, "{ended}");
}

#[test]
fn a_pin_that_is_valid_although_it_could_not_be_rooted_is_rooted_again() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    let script = "case \"$*\" in --realise*-eval-once-pin.json*) if [ ! -e failed ]; then touch failed; \
                  echo \"error: path '$2' is not valid\" >&2; exit 1; fi;; esac";
    let stand_ins = StandIns::new(store.bin()).before("nix-store", script);
    let ended = record(&store, &["--skip", "none"])
        .env("PATH", stand_ins.path(&store))
        .run();
    let recorded = drvs(&Pipeline::of(&ended));
    assert!(store.work().join("failed").exists());
    store.collect();
    assert!(recorded.iter().all(|drv| store.has(drv)));
}

/// Two recordings of the same have one link.
#[test]
fn a_pin_in_whose_place_another_recording_roots_its_own_is_rooted_again() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    // One of another recording, in the place of one by another of the same.
    record(&store, &["--skip", "none", "--attr", "high"])
        .run()
        .exits(0);
    let other = pins(&store)[0].join("pin").read_link().unwrap();
    for has_pin in [false, true] {
        let script = format!(
            "case \"$*\" in --realise*-eval-once-pin.json*) if [ ! -e replaced-{has_pin} ]; then touch replaced-{has_pin}; \
             \"$REAL\" \"$@\"; status=$?; for link; do :; done; ln -sfn '{}' \"$link\"; exit $status; fi;; esac",
            other.display()
        );
        let stand_ins =
            StandIns::new(store.root().join(format!("bin-{has_pin}"))).before("nix-store", &script);
        let ended = record(&store, &["--skip", "none"])
            .env("PATH", stand_ins.path(&store))
            .run();
        let recorded = drvs(&Pipeline::of(&ended));
        assert!(store.work().join(format!("replaced-{has_pin}")).exists());
        store.collect();
        assert!(recorded.iter().all(|drv| store.has(drv)), "{ended}");
    }
}

#[test]
fn a_state_folder_that_the_daemon_does_not_see_is_a_failure_with_its_name() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    let daemon = store.daemon();
    let state = store.our_state();
    fs::create_dir(&state).unwrap();
    let mount = format!("mount -t tmpfs none '{}'", state.display());
    let Some(recording) = store.eval_once_with_mounts(&mount) else {
        return;
    };
    let ended = recording
        .args(["pipeline", "--dry-run", "--skip", "none"])
        .envs(daemon.env())
        .run();
    Pipeline::of(&ended);
    mentions(&ended, "the Nix daemon does not see");
    // And where it sees it, nothing of the kind is said.
    let ended = record(&store, &["--skip", "none"]).envs(daemon.env()).run();
    assert!(!ended.stderr.contains("does not see"), "{ended}");
}

#[test]
fn a_root_that_a_collection_removes_with_an_older_one_is_made_again() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    // A collection that comes upon a link that leads nowhere removes it, though it leads to the new root by now.
    let script = "case \"$*\" in *--add-root*/pins/*) \"$REAL\" \"$@\"; status=$?; if mkdir \"$0.once\" 2>/dev/null; then \
                  rm -f \"$NIX_STATE_DIR\"/gcroots/auto/*; fi; exit $status;; esac";
    let stand_ins = StandIns::new(store.bin()).before("nix-store", script);
    let ended = record(&store, &["--skip", "none"])
        .env("PATH", stand_ins.path(&store))
        .run();
    let recorded = drvs(&Pipeline::of(&ended));
    assert!(!ended.stderr.contains("does not see"), "{ended}");
    store.collect();
    assert!(recorded.iter().all(|drv| store.has(drv)), "{ended}");
}

#[test]
fn a_state_folder_is_read_by_its_letters_as_nix_reads_it() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    fs::create_dir(store.root().join("elsewhere")).unwrap();
    let ended = record(&store, &["--skip", "none"])
        .env(
            "EVAL_ONCE_STATE_DIR",
            store.root().join("elsewhere/../eo//"),
        )
        .run();
    let recorded = drvs(&Pipeline::of(&ended));
    assert!(!ended.stderr.contains("does not see"), "{ended}");
    assert_eq!(pins(&store).len(), 1);
    store.collect();
    assert!(recorded.iter().all(|drv| store.has(drv)));
}

#[test]
fn several_recordings_in_one_step_keep_a_pin_each_and_a_retry_replaces_its_own() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    let in_job = |job: &str, flags: &[&str]| {
        let ended = record(&store, &["--skip", "none"])
            .args(flags)
            .envs([
                ("BUILDKITE_AGENT_ACCESS_TOKEN", "x"),
                ("BUILDKITE_BUILD_ID", "build"),
                ("BUILDKITE_STEP_ID", "step"),
                ("BUILDKITE_JOB_ID", job),
                ("BUILDKITE_BRANCH", "main"),
            ])
            .run();
        Pipeline::of(&ended);
    };
    in_job("1", &["-A", "low"]);
    in_job("1", &["-A", "high"]);
    assert_eq!(pins(&store).len(), 2);
    in_job("2", &["-A", "low"]);
    assert_eq!(pins(&store).len(), 2);
    let low = store.target("low").drv;
    store.collect();
    assert!(store.has(&low));
}

/// A full disk makes any Nix collect that may write, also one that has nothing to do and ends meanwhile.
#[test]
fn where_a_full_disk_makes_nix_collect_a_recording_keeps_what_it_finds() {
    for daemon in [false, true] {
        let Some(store) = Store::new() else { return };
        store.targets(TARGETS);
        store.collects_when_full();
        let daemon = daemon.then(|| store.daemon());
        let client = daemon.as_ref().map(Daemon::env).unwrap_or_default();
        let ended = record(&store, &["--skip", "none"]).envs(client).run();
        let recorded = drvs(&Pipeline::of(&ended));
        assert_eq!(recorded.len(), 2);
        assert!(!ended.stderr.contains("warning"), "{ended}");
        store.collect();
        assert!(recorded.iter().all(|drv| store.has(drv)), "{ended}");
    }
}

#[test]
fn what_is_gone_is_evaluated_again_and_no_cache_is_asked_for_it() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    let gone = store.target("high").drv;
    // The first call is the one that writes the pin.
    let script = format!("if [ $NTH = 1 ]; then {}; fi", take(&gone));
    let stand_ins = StandIns::new(store.bin()).before("nix-instantiate", &script);
    // A client that asks this one is still in its queue afterwards.
    let cache = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    cache.set_nonblocking(true).unwrap();
    store.configure(&format!(
        "substituters = http://{}",
        cache.local_addr().unwrap()
    ));
    let ended = record(&store, &["--skip", "none", "--workers", "1"])
        .env("PATH", stand_ins.path(&store))
        .run();
    assert_eq!(drvs(&Pipeline::of(&ended)).len(), 2);
    assert!(cache.accept().is_err(), "it was asked: {ended}");
    let calls = stand_ins.calls("nix-instantiate").len();
    assert_eq!(calls, 3, "pinned, what is left is rooted, pinned again");
    assert!(store.has(&gone));
}

#[test]
fn pruning_says_what_it_removes() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    record(&store, &[]).run().exits(0);
    let [pin] = pins(&store).try_into().unwrap();
    fs::write(pin.join("keep.json"), r#"{"until":1}"#).unwrap();
    let killed = store.our_state().join("roots/eval-once-killed");
    fs::create_dir(&killed).unwrap();
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    let times = fs::FileTimes::new().set_modified(long_ago);
    fs::File::open(&killed).unwrap().set_times(times).unwrap();
    let removed = format!("removed {}", pin.display());
    store.eval_once(["prune"]).run().exits(0).says(&[
        &removed,
        "removed the roots of 1 killed run",
        "removed 1 pin",
    ]);
    assert!(!killed.exists());
}

#[test]
fn without_a_state_folder_nothing_is_recorded() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    fs::write(store.root().join("file"), "").unwrap();
    let ended = record(&store, &[])
        .env("EVAL_ONCE_STATE_DIR", store.root().join("file/state"))
        .run();
    mentions(ended.exits(75).prints(""), "state folder");
}

// ---- skipping and edges

#[test]
fn what_is_there_needs_no_step() {
    let Some(store) = Store::new() else { return };
    store.targets(
        "{ here = file \"here\"; cached = file \"cached\"; nowhere = file \"nowhere\"; \
         half = buildAll [ \"out\" \"doc\" ] \"half\" \"echo > $out; echo > $doc\"; \
         own = file \"own\" // { meta.buildkite.command = \"true\"; }; }",
    );
    let [here, cached, half, own] =
        ["here", "cached", "half", "own"].map(|attr| store.target(attr));
    for target in [&here, &cached, &half, &own] {
        store.build(&target.drv);
    }
    let cache = store.cache("cache", [cached.out()]);
    store.delete([&half.outputs["doc"]]);
    store.delete([cached.out()]);
    let skips = |flags: &[&str]| {
        let ended = record(&store, flags).run();
        let steps = Pipeline::of(&ended).steps().into_iter();
        let skips: Vec<(String, Value)> = steps
            .map(|(attr, step)| (attr, step.json["skip"].clone()))
            .filter(|(_, skip)| !skip.is_null())
            .collect();
        (skips, ended)
    };
    let mark = |attr: &str, why: &str| (format!("[\"{attr}\"]"), Value::from(why));
    let built = mark("here", "already built here");
    assert_eq!(skips(&["--skip", "none"]).0, []);
    assert_eq!(skips(&["--skip", "built"]).0, std::slice::from_ref(&built));
    let substituters = [
        "--option",
        "substituters",
        &cache,
        "--option",
        "require-sigs",
        "false",
    ];
    let (skipped, ended) = skips(&substituters);
    assert_eq!(skipped, [mark("cached", "a cache has it"), built.clone()]);
    mentions(&ended, "1 already built here, 1 in a cache");
    assert!(!fs::exists(cached.out()).unwrap(), "it was fetched");

    let omitted = record(&store, &["--skip", "built", "--skip-style", "omit"]).run();
    assert!(!Pipeline::of(&omitted).steps().contains_key(r#"["here"]"#));

    let (skipped, ended) = skips(&["--option", "substituters", "http://127.0.0.1:9"]);
    assert_eq!(skipped, [built]);
    assert_eq!(
        ended
            .stderr
            .matches("http://127.0.0.1:9 is unreachable")
            .count(),
        1,
        "{ended}"
    );
}

#[test]
fn an_output_that_is_registered_and_whose_file_is_gone_is_not_built_here() {
    let Some(store) = Store::new() else { return };
    store.targets(r#"{ here = file "here"; lost = file "lost"; }"#);
    let [here, lost] = ["here", "lost"].map(|attr| store.target(attr));
    for target in [&here, &lost] {
        store.build(&target.drv);
    }
    fs::set_permissions(store.folder(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(lost.out()).unwrap();
    assert!(store.has(lost.out()), "Nix believes it is there");
    for skip in ["built", "cached"] {
        let ended = record(&store, &["--skip", skip]).run();
        let pipeline = Pipeline::of(&ended);
        assert_eq!(pipeline.step(&["here"]).json["skip"], "already built here");
        assert!(pipeline.step(&["lost"]).json["skip"].is_null(), "{ended}");
        mentions(&ended, "1 target is registered as built");
    }
    // Of a store elsewhere nothing is known by the files that are here.
    let elsewhere = format!("store = local?real={}", store.folder().display());
    let ended = record(&store, &[]).env("NIX_CONFIG", elsewhere).run();
    let pipeline = Pipeline::of(&ended);
    assert_eq!(pipeline.step(&["lost"]).json["skip"], "already built here");
}

#[test]
fn an_output_that_is_collected_after_the_question_is_only_missing() {
    let Some(store) = Store::new() else { return };
    store.targets(r#"{ here = file "here"; taken = file "taken"; }"#);
    let [here, taken] = ["here", "taken"].map(|attr| store.target(attr));
    for target in [&here, &taken] {
        store.build(&target.drv);
    }
    let out = taken.out();
    let script = format!(
        r#"case "$*" in *--check-validity*{out}*)
             "$REAL" "$@"; status=$?; [ ! -e {out} ] || "$REAL" --delete {out} > /dev/null; exit $status ;;
           esac"#
    );
    let stand_ins = StandIns::new(store.bin()).before("nix-store", &script);
    let ended = record(&store, &["--skip", "built"])
        .env("PATH", stand_ins.path(&store))
        .run();
    let pipeline = Pipeline::of(&ended);
    assert_eq!(pipeline.step(&["here"]).json["skip"], "already built here");
    assert!(pipeline.step(&["taken"]).json["skip"].is_null(), "{ended}");
    assert!(!ended.stderr.contains("registered as built"), "{ended}");
}

#[test]
fn a_cache_that_answers_with_errors_hides_nothing_of_what_others_have() {
    let Some(store) = Store::new() else { return };
    store.targets("{ cached = file \"cached\"; nowhere = file \"nowhere\"; }");
    let cached = store.target("cached");
    store.build(&cached.drv);
    let cache = store.cache("cache", [cached.out()]);
    store.delete([cached.out()]);
    let server = tiny_http::Server::http("127.0.0.1:0").unwrap();
    let port = server.server_addr().to_ip().unwrap().port();
    let bad = format!("http://127.0.0.1:{port}");
    let info = format!("StoreDir: {}\nPriority: 1\n", store.folder().display());
    let ended = thread::scope(|scope| {
        scope.spawn(|| {
            for request in server.incoming_requests() {
                let (text, status) = if request.url() == "/nix-cache-info" {
                    (info.as_str(), 200)
                } else {
                    ("no", 500)
                };
                let response = tiny_http::Response::from_string(text).with_status_code(status);
                let _ = request.respond(response);
            }
        });
        let ended = record(&store, &["--option", "download-attempts", "1"])
            .args(["--option", "substituters", &format!("{cache} {bad}")])
            .run();
        server.unblock();
        ended
    });
    let pipeline = Pipeline::of(&ended);
    assert_eq!(pipeline.step(&["cached"]).json["skip"], "a cache has it");
    assert!(pipeline.step(&["nowhere"]).json["skip"].is_null());
    let said = format!("{bad} answers with errors");
    assert_eq!(ended.stderr.matches(&said).count(), 1, "{ended}");
}

#[test]
fn what_a_cache_has_without_all_it_needs_gets_a_step() {
    let Some(store) = Store::new() else { return };
    store.targets(
        "let dep = file \"dep\"; in { a = with' { inherit dep; } \"a\" \"echo $dep > $out\"; b = file \"b\"; \
         c = file \"c\"; nowhere = file \"nowhere\"; }",
    );
    let targets = ["a", "b", "c"].map(|attr| store.target(attr));
    for target in &targets {
        store.build(&target.drv);
    }
    let [a, b, c] = targets.each_ref().map(Target::out);
    let cache = store.cache("cache", [a, b, c]);
    let dep = store.nix("nix-store", ["--query", "--references", a]);
    let info = format!("{}.narinfo", &dep.rsplit('/').next().unwrap()[..32]);
    fs::remove_file(store.root().join("cache").join(info)).unwrap();
    store.delete([a, b, c, &dep]);
    let ended = record(&store, &["--option", "substituters", &cache]).run();
    let pipeline = Pipeline::of(&ended);
    for (attr, skip) in [
        ("a", Value::Null),
        ("b", "a cache has it".into()),
        ("c", "a cache has it".into()),
        ("nowhere", Value::Null),
    ] {
        assert_eq!(pipeline.step(&[attr]).json["skip"], skip, "{attr}: {ended}");
    }
    mentions(
        &ended,
        "a substituter lacks dependencies of 1 target: not skipped",
    );
}

#[test]
fn a_step_waits_for_the_nearest_targets_it_depends_on() {
    let Some(store) = Store::new() else { return };
    store.targets(
        "let a = file \"a\"; hidden = with' { inherit a; } \"hidden\" \"echo > $out\"; b = with' { inherit hidden; } \"b\" \"echo > $out\"; \
         c = with' { inherit a b; } \"c\" \"echo > $out\"; in { inherit a b c; same = a; }",
    );
    let pipeline = Pipeline::of(&record(&store, &["--skip", "none"]).run());
    let [a, b, c] = ["a", "b", "c"].map(|attr| pipeline.step(&[attr]));
    assert_eq!(pipeline.steps().len(), 3, "one step for each .drv");
    assert!(a.depends_on().is_empty());
    assert_eq!(b.depends_on(), [a.key()]);
    assert_eq!(c.depends_on(), [b.key()], "it waits for a through b");

    // Where b needs no step, c waits for what b would have waited for.
    store.build(b.record["drv"].as_str().unwrap());
    store.delete([
        a.record["outputs"]["out"].as_str().unwrap(),
        b.record["outputs"]["out"].as_str().unwrap(),
    ]);
    store.build(a.record["drv"].as_str().unwrap());
    store.build(b.record["drv"].as_str().unwrap());
    let pipeline = Pipeline::of(&record(&store, &["--skip", "built"]).run());
    assert!(pipeline.step(&["c"]).depends_on().is_empty());
}
