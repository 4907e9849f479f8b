//! What `explain` says that a step would do, against what the step then does.

use std::{collections::BTreeMap, fs};

use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};

use crate::support::{
    program::{Ended, Program},
    stand_in::StandIns,
    store::Store,
    target::Target,
};

fn hello(store: &Store) -> Target {
    store.targets("{ hello = file \"hello\"; }");
    store.target("hello")
}

fn recorded(target: &Target) -> Vec<String> {
    let mut flags = target.flags();
    flags.extend(["--file", "default.nix", "--attr", "hello"].map(str::to_owned));
    flags
}

/// What `explain --json` says, which has every field that the documentation names.
#[track_caller]
fn explained(store: &Store, flags: &[String]) -> Value {
    let ended = store.eval_once(["explain", "--json"]).args(flags).run();
    let explained = ended.json();
    assert_eq!(explained["version"], 1, "{explained}");
    for field in ["would", "reason", "facts", "commands", "nix-build"] {
        assert!(explained.get(field).is_some(), "no `{field}`: {explained}");
    }
    assert!(ended.ours().is_empty(), "{ended}");
    explained
}

/// The command lines that it says a step would run.
fn commands(explained: &Value) -> Vec<Vec<String>> {
    serde_json::from_value(explained["commands"].clone()).unwrap()
}

/// Runs command lines as a user would who had copied them.
#[track_caller]
fn run(store: &Store, commands: &[Vec<String>]) {
    assert!(!commands.is_empty());
    for command in commands {
        store
            .program(&command[0])
            .args(&command[1..])
            .run()
            .exits(0);
    }
}

#[test]
fn what_is_realised_first_and_which_program_is_run_are_said() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let drv = target.drv.as_str();
    let facts = |run: &str, needs: bool| -> Vec<(String, String)> {
        let mut record = json!({ "drv": drv, "run": run });
        if needs {
            record["needs"] = json!({ "drv": drv });
        }
        let explain = store.eval_once(["explain", "--json"]);
        let ended = explain.env("EVAL_ONCE_STEP", record.to_string()).run();
        let all = ended.json()["facts"].as_array().unwrap().clone();
        let text = |fact: &Value, name: &str| fact[name].as_str().unwrap().to_owned();
        all.iter()
            .map(|fact| (text(fact, "what"), text(fact, "found")))
            .collect()
    };
    let both = facts("deploy", true);
    let first = "is realised first: the program needs its outputs";
    assert_eq!(both[0], (drv.to_owned(), first.to_owned()));
    let (what, found) = both.last().unwrap();
    assert_eq!(what, "the program");
    assert!(
        found.starts_with("is \"deploy\" in `bin` of the outputs"),
        "{found}"
    );
    let only = facts("*", false);
    assert!(only.iter().all(|(_, found)| found != first), "{only:?}");
    let (_, found) = only.last().unwrap();
    assert!(found.starts_with("is the only executable file"), "{found}");
}

#[test]
fn each_way_is_predicted_with_the_commands_that_the_step_runs() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    for (way, reason, program) in [
        ("realised", "drv-valid", "nix-store"),
        ("available", "outputs-available", "nix-store"),
        ("evaluated", "drv-missing", "nix-instantiate"),
    ] {
        match way {
            "available" => store.delete([&target.drv]),
            "evaluated" => {
                fs::remove_file(store.work().join("result")).unwrap();
                store.collect();
            }
            _ => {}
        }
        let explained = explained(&store, &recorded(&target));
        assert_eq!(explained["would"], way);
        assert_eq!(explained["reason"], reason);
        let programs: Vec<String> = commands(&explained)
            .into_iter()
            .map(|mut command| command.swap_remove(0))
            .collect();
        assert!(programs.contains(&program.to_owned()), "{explained}");
        if way != "evaluated" {
            run(&store, &commands(&explained));
            assert!(store.has(target.out()));
        }
        store.step(recorded(&target)).run().takes(way, reason);
    }
}

#[test]
fn nothing_is_done_by_explaining() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.collect();
    store.poison();
    let stand_ins = StandIns::new(store.bin())
        .counting("nix-instantiate")
        .counting("nix-build")
        .counting("nix");
    let before = fs::read_dir(store.folder()).unwrap().count();
    let ended = store
        .eval_once(["explain", "--json"])
        .args(recorded(&target))
        .env("PATH", stand_ins.path(&store))
        .run();
    ended.exits(0);
    assert_eq!(ended.json()["would"], "evaluated");
    for program in ["nix-instantiate", "nix-build"] {
        assert!(stand_ins.calls(program).is_empty(), "{program} was run");
    }
    for call in stand_ins.calls("nix") {
        assert!(call.contains(&"show-config".to_owned()), "{call:?}");
    }
    assert_eq!(fs::read_dir(store.folder()).unwrap().count(), before);
    assert_eq!(store.links(), BTreeMap::new());
    assert!(store.roots().is_empty());
    assert!(!store.our_state().exists(), "it made a state folder");
}

#[test]
fn the_text_names_the_way_the_reason_and_the_commands() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let explained = explained(&store, &recorded(&target));
    let ended = store.eval_once(["explain"]).args(recorded(&target)).run();
    ended.exits(0).says(&[]);
    for part in [
        "realised",
        "drv-valid",
        "nix-store",
        "--realise",
        &target.drv,
    ] {
        assert!(ended.stdout.contains(part), "{part} is not said: {ended}");
    }
    assert_eq!(explained["would"], "realised");
}

#[test]
fn the_command_to_reproduce_does_the_same() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.collect();
    let by_hand = explained(&store, &recorded(&target))["nix-build"].clone();
    let program = match &by_hand {
        Value::String(line) => store.program("sh").args(["-c", line]),
        Value::Array(_) => {
            let command: Vec<String> = serde_json::from_value(by_hand.clone()).unwrap();
            store.program(&command[0]).args(&command[1..])
        }
        other => panic!("no command: {other}"),
    };
    program.run().exits(0);
    assert_eq!(store.links()["result"], target.out());
}

#[test]
fn the_printed_commands_make_the_links_of_all_outputs() {
    let Some(store) = Store::new() else { return };
    store.targets(
        "{ hello = buildAll [ \"lib\" \"out\" ] \"hello\" \"echo > $out; echo > $lib\"; }",
    );
    let target = store.target("hello");
    for way in ["realised", "available"] {
        let explained = explained(&store, &recorded(&target));
        assert_eq!(explained["would"], way);
        run(&store, &commands(&explained));
        let links = store.links();
        assert_eq!(links["result"], target.outputs["out"], "{way}");
        assert_eq!(links["result-lib"], target.outputs["lib"], "{way}");
        for link in links.keys() {
            fs::remove_file(store.work().join(link)).unwrap();
        }
        store.delete([&target.drv]);
    }
}

#[test]
fn the_command_to_reproduce_can_be_pasted_whatever_the_attribute_is_called() {
    let Some(store) = Store::new() else { return };
    let names = ["a b", "a.b", "it's", "$HOME", "`id`", "a;b", "\\"];
    let name = |name: &str| format!("\"{}\"", name.replace('\\', "\\\\").replace('$', "\\$"));
    let target = |n: &str| format!("{} = build \"x\" \"echo > $out # {}\";", name(n), n.len());
    let body = names.map(target).join(" ");
    store.targets(&format!("{{ {body} }}"));
    for attribute in names {
        let record = serde_json::json!({ "file": "default.nix", "attr": [attribute] });
        let ended = store
            .eval_once(["explain", "--json"])
            .env("EVAL_ONCE_STEP", record.to_string())
            .run();
        let line = ended.exits(0).json()["nix-build"]
            .as_str()
            .unwrap()
            .to_owned();
        store.program("sh").args(["-c", &line]).run().exits(0);
        let target = store.target(&name(attribute));
        assert_eq!(store.links()["result"], target.out(), "{line}");
    }
}

#[test]
fn an_explanation_reads_the_record_in_the_environment() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let record = target.record(&serde_json::json!({}));
    let ended = store
        .eval_once(["explain", "--json"])
        .env("EVAL_ONCE_STEP", record.to_string())
        .run();
    assert_eq!(ended.exits(0).json()["would"], "realised");
}

#[test]
fn what_a_step_refuses_explain_refuses_too() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    for flags in [
        vec!["--drv", "hello.drv"],
        vec!["--flake", ".#x"],
        vec!["--share", "artifact"],
        vec!["--no-such-flag"],
    ] {
        store
            .eval_once(["explain"])
            .args(flags)
            .run()
            .exits(64)
            .prints("");
    }
    store.write("result", "in the way");
    let explained: Ended = store.eval_once(["explain"]).args(target.flags()).run();
    explained.exits(64);
}

#[test]
fn without_nix_there_is_nothing_to_explain() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.delete([&target.drv]);
    store
        .eval_once(["explain"])
        .args(target.flags())
        .env("PATH", store.bin())
        .run()
        .exits(69);
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Drv {
    Present,
    Deleted,
    InCache,
    NotRecorded,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Output {
    NotRecorded,
    Valid,
    Deleted,
    InCache,
    /// In a cache, and without the signature that this host asks for.
    Unsigned,
    /// Recorded, valid, but its sibling is not there.
    Half,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Source {
    Present,
    Absent,
    NotNamed,
    Broken,
}

/// One state of the store and of what a step is given.
#[derive(Clone, Copy, Debug)]
struct State {
    drv: Drv,
    output: Output,
    /// Whether the outputs, where they are not recorded, are there.
    built: bool,
    source: Source,
    recorded_only: bool,
}

fn states() -> impl Strategy<Value = State> {
    (
        select(&[Drv::Present, Drv::Deleted, Drv::InCache, Drv::NotRecorded][..]),
        select(
            &[
                Output::NotRecorded,
                Output::Valid,
                Output::Deleted,
                Output::InCache,
                Output::Unsigned,
                Output::Half,
            ][..],
        ),
        any::<bool>(),
        select(
            &[
                Source::Present,
                Source::Present,
                Source::Absent,
                Source::NotNamed,
                Source::Broken,
            ][..],
        ),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(drv, output, built, source, recorded_only)| State {
            drv,
            output,
            built,
            source,
            recorded_only,
        })
}

impl State {
    /// Brings a fresh store into this state, and gives the flags of the step.
    fn make(self, store: &Store) -> Vec<String> {
        store.targets(
            "{ hello = buildAll [ \"out\" \"dev\" ] \"hello\" \"echo o > $out; echo d > $dev\"; }",
        );
        let target = store.target("hello");
        let has_outputs = match self.output {
            Output::NotRecorded => self.built,
            Output::Valid | Output::InCache | Output::Unsigned | Output::Half => true,
            Output::Deleted => false,
        };
        if has_outputs {
            store.build(&target.drv);
        }
        let mut cached = Vec::new();
        if matches!(self.output, Output::InCache | Output::Unsigned) {
            cached.extend(target.paths());
        }
        if self.drv == Drv::InCache {
            cached.push(&target.drv);
        }
        let cache = store.cache("cache", &cached);
        if !cached.is_empty() {
            store.configure(&format!("substituters = {cache}"));
        }
        match self.output {
            Output::InCache => store.delete(target.paths()),
            Output::Unsigned => {
                store.delete(target.paths());
                store.configure("require-sigs = true");
            }
            Output::Half => store.delete([&target.outputs["dev"]]),
            _ => {}
        }
        if self.drv != Drv::Present {
            store.delete([&target.drv]);
        }
        let mut flags = match (self.drv, self.output) {
            (Drv::NotRecorded, Output::NotRecorded) => Vec::new(),
            (Drv::NotRecorded, _) => target.flags().split_off(2),
            (_, Output::NotRecorded) => target.drv_flags(),
            _ => target.flags(),
        };
        match self.source {
            Source::Present => {}
            Source::Absent => {
                fs::rename(
                    store.work().join("default.nix"),
                    store.work().join("other.nix"),
                )
                .unwrap();
            }
            Source::NotNamed => return flags,
            Source::Broken => store.poison(),
        }
        flags.extend(["--file", "default.nix", "--attr", "hello"].map(str::to_owned));
        flags
    }

    fn host(self, program: Program) -> Program {
        if self.recorded_only {
            program.env("EVAL_ONCE_POLICY", "recorded-only")
        } else {
            program
        }
    }
}

/// These flags as a record of a step that is to be skipped.
fn skipping(flags: &[String]) -> String {
    let mut record = json!({ "skip": true });
    for flag in flags.chunks(2) {
        match (flag[0].as_str(), flag[1].split_once('=')) {
            ("--output", Some((name, path))) => record["outputs"][name] = path.into(),
            (key, _) => record[&key[2..]] = flag[1].as_str().into(),
        }
    }
    record.to_string()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        max_shrink_iters: 12,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_step_takes_the_way_that_explain_has_named(state in states(), skip in any::<bool>()) {
        let Some(store) = Store::new() else { return Ok(()) };
        let flags = state.make(&store);
        // To be skipped is only a recorded step, and no flag says it.
        let (flags, record) = if skip { (Vec::new(), skipping(&flags)) } else { (flags, String::new()) };
        let carrying = |program: Program| if skip { program.env("EVAL_ONCE_STEP", &record) } else { program };
        let explained = state.host(carrying(store.eval_once(["explain", "--json"]).args(&flags))).run();
        let step = state.host(carrying(store.step(&flags))).run();
        let report = step.report();
        if step.status.code() == Some(64) {
            // Nothing is recorded, nothing can be evaluated: neither of them looks at anything.
            prop_assert_eq!(explained.status.code(), Some(64), "{}{}", explained, step);
            return Ok(());
        }
        let expected = explained.json();
        // Also of a step that fails: an expression that does not evaluate is seen by evaluating it, in that way.
        prop_assert_eq!(&expected["would"], &report["way"], "{}{}", explained, step);
        prop_assert_eq!(&expected["reason"], &report["reason"], "{}{}", explained, step);
        prop_assert_eq!(step.status.success(), report["failure"].is_null(), "{}", step);
    }
}
