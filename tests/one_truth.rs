//! What a failed step prints: why it failed, and which ways it tried. No way is named as if it had been taken.

use std::fs;

use serde_json::{Value, json};

use crate::support::{
    daemon::client_env, program::Ended, stand_in::StandIns, store::Store, target::Target,
};

/// A step that fails, and what it says.
struct Row {
    /// The body of `default.nix`; `target` is recorded.
    body: &'static str,
    /// What happens between the recording and the step.
    then: fn(&Store, &Target),
    /// More than the record.
    flags: &'static [&'static str],
    /// Nothing is recorded.
    no_record: bool,
    /// No daemon is there.
    no_daemon: bool,
    /// What `nix-store` does before anything else.
    nix_store: &'static str,
    status: i32,
    /// The line that every step ends in.
    line: Option<(&'static str, &'static str)>,
    heading: &'static str,
    way: Option<&'static str>,
    reason: Option<&'static str>,
    tried: &'static [&'static str],
}

const ROW: Row = Row {
    body: "{ target = file \"target\"; }",
    then: |_, _| {},
    flags: &["--file", "default.nix", "--attr", "target"],
    no_record: false,
    no_daemon: false,
    nix_store: "",
    status: 0,
    line: None,
    heading: "",
    way: None,
    reason: None,
    tried: &[],
};

fn gone(store: &Store, _: &Target) {
    store.collect();
}

/// A checkout, in which the file to evaluate is not.
fn without_the_file(store: &Store) {
    store.write("something", "else");
    fs::remove_file(store.work().join("default.nix")).unwrap();
}

const ROWS: [Row; 16] = [
    // A builder fails.
    Row {
        body: "{ target = build \"bad\" \"exit 3\"; }",
        status: 100,
        line: Some(("build", "realised (drv-valid)")),
        heading: "bad failed (build, exit status 100)",
        way: Some("realised"),
        reason: Some("drv-valid"),
        tried: &["realised"],
        ..ROW
    },
    // The `.drv` is there, and the store cannot be asked: whether it is valid is not known.
    Row {
        no_daemon: true,
        status: 75,
        line: Some(("infrastructure failure", "realised")),
        heading: "failed (infrastructure failure, exit status 75)",
        way: Some("realised"),
        tried: &["realised"],
        ..ROW
    },
    Row {
        then: gone,
        no_daemon: true,
        status: 75,
        line: Some(("infrastructure failure", "available, realised")),
        heading: "failed (infrastructure failure, exit status 75)",
        way: Some("realised"),
        tried: &["available", "realised"],
        ..ROW
    },
    Row {
        nix_store: "kill -9 $$",
        status: 137,
        line: Some(("signal", "realised")),
        heading: "failed (signal, exit status 137)",
        way: Some("realised"),
        tried: &["realised"],
        ..ROW
    },
    // An evaluation fails.
    Row {
        then: |store, _| {
            store.collect();
            store.poison();
        },
        status: 65,
        line: Some(("evaluation", "available, realised, evaluated (drv-missing)")),
        heading: "target of default.nix does not evaluate (evaluation, exit status 65)",
        way: Some("evaluated"),
        reason: Some("drv-missing"),
        tried: &["available", "realised", "evaluated"],
        ..ROW
    },
    Row {
        nix_store: "if [ $NTH = 1 ]; then env -u NIX_REMOTE \"$REAL\" --delete --ignore-liveness \"$2\" >/dev/null 2>&1; fi",
        then: |store, _| store.poison(),
        status: 65,
        line: Some((
            "evaluation",
            "realised, available, evaluated (drv-collected)",
        )),
        heading: "target of default.nix does not evaluate (evaluation, exit status 65)",
        way: Some("evaluated"),
        reason: Some("drv-collected"),
        tried: &["realised", "available", "evaluated"],
        ..ROW
    },
    // What evaluates to something else does evaluate.
    Row {
        then: |store, _| {
            store.collect();
            store.targets("{ target = builtins.genList (n: file \"n${toString n}\") 6; }");
        },
        status: 65,
        line: Some(("evaluation", "available, realised, evaluated (drv-missing)")),
        heading: "target of default.nix is not one derivation (evaluation, exit status 65)",
        way: Some("evaluated"),
        reason: Some("drv-missing"),
        tried: &["available", "realised", "evaluated"],
        ..ROW
    },
    Row {
        then: |store, _| store.targets("{ target = { }; }"),
        no_record: true,
        status: 65,
        line: Some(("evaluation", "evaluated (not-recorded)")),
        heading: "target of default.nix is not one derivation (evaluation, exit status 65)",
        way: Some("evaluated"),
        reason: Some("not-recorded"),
        tried: &["evaluated"],
        ..ROW
    },
    Row {
        then: |store, _| store.targets("{ target = 1; }"),
        no_record: true,
        status: 65,
        line: Some(("evaluation", "evaluated (not-recorded)")),
        heading: "target of default.nix is not one derivation (evaluation, exit status 65)",
        way: Some("evaluated"),
        reason: Some("not-recorded"),
        tried: &["evaluated"],
        ..ROW
    },
    // A file that is not there is not evaluated.
    Row {
        then: |store, _| {
            store.collect();
            without_the_file(store);
        },
        status: 65,
        line: Some(("evaluation", "available, realised")),
        heading: "target of default.nix cannot be evaluated (evaluation, exit status 65)",
        tried: &["available", "realised"],
        ..ROW
    },
    Row {
        then: |store, _| without_the_file(store),
        no_record: true,
        status: 65,
        heading: "target of default.nix cannot be evaluated (evaluation, exit status 65)",
        ..ROW
    },
    // No way leads anywhere.
    Row {
        then: gone,
        flags: &[],
        status: 75,
        line: Some(("infrastructure failure", "available, realised")),
        heading: "failed (infrastructure failure, exit status 75)",
        tried: &["available", "realised"],
        ..ROW
    },
    // The evaluation succeeds, and what comes after it fails.
    Row {
        body: "{ target = build \"bad\" \"exit 3\"; }",
        no_record: true,
        status: 100,
        line: Some(("build", "evaluated (not-recorded)")),
        heading: "bad failed (build, exit status 100)",
        way: Some("evaluated"),
        reason: Some("not-recorded"),
        tried: &["evaluated"],
        ..ROW
    },
    Row {
        then: |store, _| {
            store.collect();
            store.targets("{ target = file \"other\"; }");
        },
        flags: &[
            "--file",
            "default.nix",
            "--attr",
            "target",
            "--on-drift",
            "fail",
        ],
        status: 76,
        line: Some(("drift", "available, realised, evaluated (drv-missing)")),
        heading: "failed (drift, exit status 76)",
        way: Some("evaluated"),
        reason: Some("drv-missing"),
        tried: &["available", "realised", "evaluated"],
        ..ROW
    },
    // A builder that the evaluation needs.
    Row {
        body: "{ target = file (import (build \"data\" \"exit 3\")); }",
        no_record: true,
        status: 100,
        line: Some(("build", "evaluated (not-recorded)")),
        heading: "data failed (build, exit status 100)",
        way: Some("evaluated"),
        reason: Some("not-recorded"),
        tried: &["evaluated"],
        ..ROW
    },
    // What is refused has tried nothing, and says so in one sentence.
    Row {
        then: |store, _| {
            store.write("result", "");
        },
        status: 64,
        ..ROW
    },
];

impl Row {
    fn run(&self, store: &Store) -> (Ended, Value) {
        store.targets(self.body);
        let target = if self.no_record {
            Target {
                drv: String::new(),
                outputs: std::collections::BTreeMap::new(),
            }
        } else {
            store.target("target")
        };
        (self.then)(store, &target);
        let mut flags: Vec<String> = self.flags.iter().map(|&flag| flag.to_owned()).collect();
        if !self.no_record {
            flags.extend(target.flags());
        }
        let stand_ins = StandIns::new(store.bin()).before("nix-store", self.nix_store);
        let in_store = |program: crate::support::program::Program| {
            let program = program.env("PATH", stand_ins.path(store));
            if self.no_daemon {
                program.envs(client_env(&store.root().join("no-socket")))
            } else {
                program
            }
        };
        let explained = in_store(store.eval_once(["explain", "--json"]).args(&flags));
        let expected = if self.nix_store.is_empty() && !self.no_daemon && self.status != 64 {
            explained.run().json()
        } else {
            Value::Null
        };
        let ended = in_store(store.step(flags)).run();
        (ended, expected)
    }
}

#[test]
fn a_failed_step_says_why_and_then_which_ways_it_tried() {
    for (number, row) in ROWS.iter().enumerate() {
        let Some(store) = Store::new() else { return };
        let (ended, expected) = row.run(&store);
        ended.exits(row.status);
        let report = ended.report();
        assert_eq!(report["way"], json!(row.way), "{number}: {report}{ended}");
        assert_eq!(
            report["reason"],
            json!(row.reason),
            "{number}: {report}{ended}"
        );
        assert_eq!(
            report["tried"],
            json!(row.tried),
            "{number}: {report}{ended}"
        );
        let ours = ended.ours();
        let lines: Vec<&str> = ours
            .iter()
            .filter(|line| line.contains("; built "))
            .copied()
            .collect();
        match row.line {
            Some((class, tried)) => {
                let [line] = lines.as_slice() else {
                    panic!("{number}: not one line: {ended}")
                };
                assert!(
                    line.starts_with(&format!("failed ({class}) in ")),
                    "{number}: {ended}"
                );
                assert!(
                    line.contains(&format!(" s: tried {tried}; built ")),
                    "{number}: {ended}"
                );
            }
            None => assert!(lines.is_empty(), "{number}: {ended}"),
        }
        let heading = format!("--- eval-once: {}\n", row.heading);
        assert_eq!(
            ended.stderr.contains(&heading),
            !row.heading.is_empty(),
            "{number}: {ended}"
        );
        for way in ["realised ", "available ", "evaluated "] {
            let as_if =
                |line: &&str| line.starts_with(way) || line.starts_with(&format!("hint: {way}"));
            assert!(
                !ours.iter().any(as_if),
                "{number}, as if it were {way}: {ended}"
            );
        }
        if row.no_daemon {
            // Nothing could be looked at.
            for claim in [
                "neither here nor in a substituter",
                "is not valid",
                "is gone",
            ] {
                ended.never_says(claim);
            }
        }
        // What cannot be evaluated is not expected either; what is only seen by doing it is.
        if !expected.is_null() {
            assert_eq!(expected["would"], json!(row.way), "{number}: {expected}");
            assert_eq!(
                expected["reason"],
                json!(row.reason),
                "{number}: {expected}"
            );
        }
    }
}

#[test]
fn where_the_file_to_evaluate_is_missing_explain_says_that_the_step_would_fail() {
    let Some(store) = Store::new() else { return };
    store.targets("{ target = file \"target\"; }");
    let target = store.target("target");
    store.collect();
    let ended = store
        .eval_once(["explain"])
        .args(target.flags())
        .args(["--file", "none.nix", "--attr", "target"])
        .run();
    ended.exits(0);
    assert!(
        ended
            .stdout
            .starts_with("the step would fail: no way leads to the outputs\n")
            && ended.stdout.contains("none.nix: does not exist")
            && !ended.stdout.contains("nix-instantiate"),
        "{ended}"
    );
}
