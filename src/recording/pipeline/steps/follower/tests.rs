//! Tests of steps that follow targets, by what is in the pipeline.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::fixtures::{anything, make, record_of};
use super::super::{PlannedPipeline, Records, steps};
use crate::buildkite::pipeline::Dependency;
use crate::nix::StorePath;
use crate::recording::errors::ErrorLists;
use crate::recording::following::{
    Follower, FollowerMeta, FollowerState, RunDerivation, RunTarget,
};
use crate::recording::pipeline::document::Document;
use crate::recording::pipeline::fixtures::*;
use crate::recording::pipeline::placed_step::{self, PlacedStep};
use crate::recording::{
    AttrError, Emit, KeyStyle, KnownOutputs, Phases, RecordingRequest, SkipStyle, Target,
};
use crate::text::hostile;

fn by_attr() -> RecordingRequest {
    RecordingRequest {
        key_style: KeyStyle::Attr,
        key_prefix: "nix-".into(),
        emit: Emit::Command,
        ..request()
    }
}

#[test]
fn a_name_that_is_a_secret_is_refused_and_shown_nowhere() {
    let secret = "ghp_0123456789abcdefghijABCDEFGHIJ012345";
    let web = followed(0, &["web"], &json!({ secret: { "command": "true" } }));
    let targets = [web, target(1, &["web", secret]), target(2, &[secret])];
    let error = |name| {
        vec![AttrError {
            attr: path(&[name, secret, "x"]),
            message: None,
        }]
    };
    let errors = ErrorLists {
        evaluation: error("e"),
        expected: error("f"),
        ..ErrorLists::default()
    };
    for emit in [Emit::Command, request().emit] {
        for by_attr in [by_attr(), request()] {
            let request = RecordingRequest {
                emit: emit.clone(),
                group_by: 1,
                notify_statuses: true,
                ..by_attr
            };
            let edges = no_edges(&targets);
            let records = Records {
                targets: &targets,
                errors: &errors,
                callable: &BTreeSet::new(),
                edges: &edges,
                skip: &[],
                seconds: &[],
                steps_known: true,
                shared: &[],
            };
            let made = steps(&records, &request, schema()).unwrap();
            assert_eq!(made.errors.refused.len(), 3);
            let message = made.errors.refused[0].message.as_deref().unwrap();
            assert!(message.starts_with("its name holds a secret"), "{message}");
            let json = placed_step::json(&made.steps).unwrap();
            assert!(!json.contains("ghp_"), "{json}");
            let counts = made.counts(&targets);
            let source = super::super::source(&request.root, &request.options);
            let document = Document::new("2.8.0", source, &path(&[]), &targets, &made, counts);
            let document = document.to_json().unwrap();
            assert!(!document.contains("ghp_"), "{document}");
        }
    }
}

#[test]
fn what_follows_and_would_wait_for_itself_is_refused() {
    let steps_of =
        |wishes: Value| json!({ "command": "true", "buildkite": { "depends_on": wishes } });
    let mut web = followed(
        0,
        &["web"],
        &json!({
            "a": steps_of(json!(["nix-web-a"])),
            "b": steps_of(json!([{ "step": "nix-web-c" }])),
            "c": steps_of(json!("nix-web-b")),
            "d": { "command": "true", "confirm": "now?", "buildkite": { "depends_on": "nix-web-d-confirm" } },
            "e": steps_of(json!(["nix-web", "nix-web-a", "nix-lib"])),
            "f": { "command": "true", "after": "nothing" },
            "g": { "command": "true", "after": "all" },
        }),
    );
    // It may wait for what does not wait for it.
    web.meta.buildkite = Some(keys(&json!({ "depends_on": "nix-web-f" })));
    let mut lib = target(1, &["lib"]);
    lib.meta.buildkite = Some(keys(&json!({ "depends_on": "nix-web-g" })));
    let targets = [web, lib];
    let made = make(&targets, &no_edges(&targets), &[], &by_attr()).unwrap();
    let refused = made.errors.refused.iter().map(|it| it.attr.to_string());
    let mut refused: Vec<String> = refused.collect();
    refused.sort_unstable();
    let steps = ["a", "b", "c", "d"].map(|name| format!("web.meta.eval-once.steps.{name}"));
    assert_eq!(refused[0], "lib");
    assert_eq!(refused[1..], steps);
}

/// A target that these steps follow, by name; `"run": true` runs a derivation.
fn followed(i: usize, names: &[&str], steps: &Value) -> Target {
    let mut target = target(i, names);
    for (name, keys) in steps.as_object().unwrap() {
        let mut keys = keys.as_object().unwrap().clone();
        let is_run = keys.remove("run").is_some();
        let run = RunDerivation {
            drv: drv(50 + i),
            program: Some("deploy".into()),
        };
        target.followers.push(Follower {
            owner: target.attr.clone(),
            meta: FollowerMeta {
                name: name.clone(),
                state: FollowerState::Read {
                    keys,
                    run: is_run.then_some(run),
                },
            },
            run: is_run.then(|| RunTarget {
                outputs: KnownOutputs::from_iter([(
                    "out".into(),
                    StorePath::parse(&format!("/nix/store/{:032}-run", 50 + i)).unwrap(),
                )]),
                system: "aarch64-linux".into(),
                features: Vec::new(),
            }),
        });
    }
    target
}

/// All steps as they are written, those in groups too, by their keys.
fn written(pipeline: &PlannedPipeline) -> BTreeMap<String, Value> {
    let document = placed_step::json(&pipeline.steps).unwrap();
    let read: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(schema().check_pipeline(&read), Ok(()));
    let steps = read["steps"].as_array().unwrap().iter();
    let steps = steps.flat_map(|step| match step.get("steps") {
        Some(Value::Array(inner)) => inner.clone(),
        _ => vec![step.clone()],
    });
    steps
        .map(|step| (step["key"].as_str().unwrap().to_owned(), step))
        .collect()
}

fn made(targets: &[Target], request: &RecordingRequest) -> BTreeMap<String, Value> {
    written(&make(targets, &no_edges(targets), &[], request).unwrap())
}

#[test]
fn a_step_waits_for_its_target_for_all_or_for_nothing() {
    let targets = [
        target(0, &["lib"]),
        followed(
            1,
            &["app"],
            &json!({
                "a": { "command": "x" },
                "b": { "command": "x", "always": true, "buildkite": { "depends_on": "mine" } },
                "c": { "command": "x", "after": "nothing" },
                "d": { "command": "x", "after": "all" },
                "e": { "command": "x", "after": "all", "always": true },
            }),
        ),
    ];
    let edges = edges_between(&targets, &[(1, 0)]);
    let errors = ErrorLists {
        evaluation: vec![AttrError {
            attr: path(&["broken"]),
            message: None,
        }],
        ..ErrorLists::default()
    };
    let records = Records {
        seconds: &[],
        steps_known: true,
        shared: &[],
        targets: &targets,
        errors: &errors,
        callable: &BTreeSet::new(),
        edges: &edges,
        skip: &[],
    };
    let planned = steps(&records, &by_attr(), schema()).unwrap();
    let last: Vec<_> = planned.steps.iter().map(|it| &*it.step.key).collect();
    assert_eq!(last[last.len() - 2..], ["nix-app-d", "nix-app-e"]);
    let made = written(&planned);
    let waits = |key: &str| made[key]["depends_on"].clone();
    assert_eq!(waits("nix-app-a"), json!(["nix-app"]));
    assert_eq!(
        waits("nix-app-b"),
        json!([{ "step": "nix-app", "allow_failure": true }, "mine"])
    );
    assert_eq!(waits("nix-app-c"), json!([]));
    // app waits for lib.
    assert_eq!(waits("nix-app-d"), json!(["nix-broken", "nix-app"]));
    assert_eq!(
        waits("nix-app-e")[0],
        json!({ "step": "nix-broken", "allow_failure": true })
    );
    assert_eq!(made["nix-app-a"]["command"], "x");
    assert_eq!(made["nix-app-a"].get("env"), None, "nothing is realised");
}

#[test]
fn a_release_waits_for_each_target_whose_failure_nothing_passes_on() {
    let release = json!({ "release": { "command": "x", "after": "all" } });
    let waits = |top: &Value| {
        let mut top_target = target_wishing(2, top);
        top_target.attr = path(&["top"]);
        let targets = [
            followed(0, &["web"], &release),
            target(1, &["app"]),
            top_target,
        ];
        let edges = edges_between(&targets, &[(2, 1)]);
        let planned = make(&targets, &edges, &[], &by_attr()).unwrap();
        let waits = written(&planned)["nix-web-release"]["depends_on"].clone();
        let mut waits: Vec<String> = serde_json::from_value(waits).unwrap();
        waits.sort();
        waits
    };
    for hides in [
        json!({ "skip": true }),
        json!({ "skip": "later" }),
        json!({ "if": "false" }),
        json!({ "if_changed": "docs/**" }),
        json!({ "branches": "main" }),
        json!({ "allow_dependency_failure": true }),
        json!({ "soft_fail": [{ "exit_status": 1 }] }),
        // It is refused, and its red step, with the target's key, waits for nothing.
        json!({ "comand": "x" }),
    ] {
        assert_eq!(waits(&hides), ["nix-app", "nix-top", "nix-web"], "{hides}");
    }
    for passes_on in [
        json!({}),
        json!({ "skip": false, "allow_dependency_failure": false, "soft_fail": false }),
        json!({ "priority": 1 }),
    ] {
        assert_eq!(waits(&passes_on), ["nix-top", "nix-web"], "{passes_on}");
    }
}

#[test]
fn what_waits_for_a_target_by_its_key_finds_it_where_it_is_refused() {
    let targets = [target_wishing(0, &json!({ "comand": "x" }))];
    let planned = make(&targets, &no_edges(&targets), &[], &by_attr()).unwrap();
    assert_eq!(planned.targets[0].key, "nix-p-t0");
    assert_eq!(planned.steps[0].step.key, "nix-p-t0");
    let refused: Vec<_> = planned.errors.refused.iter().map(|it| &it.attr).collect();
    assert_eq!(refused, [&targets[0].attr]);
    assert!(
        planned.drvs_of_steps(&targets).is_empty(),
        "its step realises nothing"
    );
    let by_drv = RecordingRequest {
        key_style: KeyStyle::Drv,
        ..by_attr()
    };
    let planned = make(&targets, &no_edges(&targets), &[], &by_drv).unwrap();
    let key = &planned.steps[0].step.key;
    assert!(key.starts_with("nix-attr-"), "{key}");
    assert_eq!(planned.targets[0].key, *key);
}

#[test]
fn what_always_runs_is_not_cancelled_as_the_build_fails_unless_it_says_so_itself() {
    let targets = [followed(
        1,
        &["app"],
        &json!({
            "often": { "command": "x" },
            "always": { "command": "x", "always": true, "confirm": "Now?" },
            "own": { "command": "x", "always": true, "buildkite": { "cancel_on_build_failing": true } },
        }),
    )];
    let request = RecordingRequest {
        step: keys(&json!({ "cancel_on_build_failing": true, "priority": 1 })),
        ..by_attr()
    };
    let made = made(&targets, &request);
    let of = |key: &str| made[key].get("cancel_on_build_failing").cloned();
    assert_eq!(of("nix-app"), Some(true.into()));
    assert_eq!(of("nix-app-often"), Some(true.into()));
    assert_eq!(of("nix-app-always"), None);
    assert_eq!(made["nix-app-always"]["priority"], 1);
    assert_eq!(of("nix-app-own"), Some(true.into()));
}

#[test]
fn a_target_with_a_skip_of_its_own_is_skipped_for_what_follows_it() {
    let steps = json!({
        "a": { "command": "x" },
        "b": { "run": true, "needs-output": true },
        "c": { "command": "x", "unless-skipped": true },
        "d": { "command": "x", "unless-skipped": true, "after": "all" },
    });
    for (skip, is_skipped) in [
        (json!({ "skip": true }), true),
        (json!({ "skip": "later" }), true),
        (json!({ "skip": false }), false),
    ] {
        let mut target = followed(1, &["app"], &steps);
        target.meta.buildkite = Some(keys(&skip));
        let made = made(&[target], &by_attr());
        assert_eq!(made.contains_key("nix-app-c"), !is_skipped, "{skip}");
        assert_eq!(made.contains_key("nix-app-d"), !is_skipped, "{skip}");
        let waits = if is_skipped {
            json!([])
        } else {
            json!(["nix-app"])
        };
        for key in ["nix-app-a", "nix-app-b"] {
            assert_eq!(made[key]["depends_on"], waits, "{key} {skip}");
        }
    }
}

#[test]
fn what_follows_a_skipped_target_waits_for_nothing_and_may_be_left_out() {
    let targets = [
        target(0, &["other"]),
        followed(
            1,
            &["app"],
            &json!({
                "a": { "run": true, "needs-output": true },
                "b": { "command": "x", "unless-skipped": true },
                "c": { "command": "x", "after": "all" },
            }),
        ),
    ];
    let skip = [None, Some("a cache has it".to_owned())];
    for skip_style in [SkipStyle::Mark, SkipStyle::Run, SkipStyle::Omit] {
        let request = RecordingRequest {
            skip_style,
            ..by_attr()
        };
        let planned = make(&targets, &no_edges(&targets), &skip, &request).unwrap();
        let drvs: Vec<_> = planned.drvs_of_steps(&targets).into_iter().collect();
        assert_eq!(drvs, [&drv(0), &drv(1), &drv(51)], "they are shared");
        let made = written(&planned);
        assert_eq!(made["nix-app-a"]["depends_on"], json!([]));
        assert_eq!(made.get("nix-app-b"), None);
        assert_eq!(made["nix-app-c"]["depends_on"], json!(["nix-other"]));
    }
}

#[test]
fn a_record_has_what_is_run_and_what_it_needs() {
    let mut target = followed(
        1,
        &["app"],
        &json!({
            "plain": { "run": true },
            "with": { "run": true, "needs-output": true },
            "shell": { "command": ["a", "b"], "needs-output": true },
        }),
    );
    target.meta.eval_once = Some(keys(
        &json!({ "push": "s3://x", "log": "raw", "out-link": "app" }),
    ));
    for emit in [Emit::Command, request().emit] {
        let request = RecordingRequest {
            emit,
            agents: [("aarch64-linux", "arm"), ("x86_64-linux", "intel")]
                .map(|(name, queue)| (name.to_owned(), keys(&json!({ "queue": queue }))))
                .into(),
            ..by_attr()
        };
        let made = made(std::slice::from_ref(&target), &request);
        let plain = record_of(&made["nix-app-plain"]);
        assert_eq!(plain["run"], "deploy");
        assert_eq!(plain["drv"], drv(51).as_store_path().as_str());
        assert_eq!(plain["out-link"], false);
        assert_eq!(plain["log"], "raw");
        assert_eq!(
            plain["attr"],
            json!(["app", "meta", "eval-once", "steps", "plain", "run"])
        );
        assert!(!plain.contains_key("needs") && !plain.contains_key("push"));
        assert_eq!(made["nix-app-plain"]["agents"]["queue"], "arm");
        let needs = &record_of(&made["nix-app-with"])["needs"];
        let expected = json!({
            "attr": ["app"], "drv": drv(1).as_store_path().as_str(),
            "outputs": { "out": target.outputs["out"].as_str() }, "out-link": "app"
        });
        assert_eq!(*needs, expected);
        let shell = record_of(&made["nix-app-shell"]);
        assert_eq!(shell["drv"], drv(1).as_store_path().as_str());
        assert_eq!(shell["out-link"], "app");
        assert!(!shell.contains_key("run") && !shell.contains_key("push"));
        let step = &made["nix-app-shell"];
        assert_eq!(step["agents"]["queue"], "intel");
        match request.emit {
            Emit::Command => assert_eq!(step["env"]["EVAL_ONCE_COMMAND"], "a\nb"),
            Emit::Plugin(_) => assert_eq!(step["command"], json!(["a", "b"])),
        }
        let retried = json!([{ "exit_status": 75, "limit": 2 }]);
        assert_eq!(step["retry"]["automatic"], retried);
    }
}

#[test]
fn a_question_stands_before_its_step_in_one_group() {
    let condition = json!({ "if": "build.branch == 'main'", "branches": "main" });
    let target = followed(
        1,
        &["app"],
        &json!({
            "ask": { "command": "x", "confirm": "Deploy \u{1b}[1m\"app\"?", "buildkite": condition },
            "not": { "command": "x", "confirm": "Deploy?", "buildkite": { "skip": "no" } },
        }),
    );
    let planned = make(
        std::slice::from_ref(&target),
        &no_edges(std::slice::from_ref(&target)),
        &[],
        &by_attr(),
    );
    let planned = planned.unwrap();
    let made = written(&planned);
    let block = &made["nix-app-ask-confirm"];
    assert_eq!(block["block"], "Deploy \u{fffd}[1m\"app\"?");
    assert_eq!(block["depends_on"], json!(["nix-app"]));
    assert_eq!(block["branches"], "main");
    assert_eq!(block["if"], condition["if"]);
    assert_eq!(
        made["nix-app-ask"]["depends_on"],
        json!(["nix-app", "nix-app-ask-confirm"])
    );
    assert_eq!(made.get("nix-app-not-confirm"), None, "nobody is asked");
    let asked = planned.steps.iter().find(|it| it.step.key == "nix-app-ask");
    let asked = asked.unwrap();
    assert_eq!(asked.group.as_deref(), Some(":nix: app \u{2192} ask"));
    let used: Vec<_> = asked.keys().collect();
    assert_eq!(used, ["nix-app-ask-confirm", "nix-app-ask"]);
    assert_eq!(asked.jobs(), 2);
}

#[test]
fn a_mistake_is_a_red_step_in_its_place_and_the_target_is_built() {
    for (step, message) in [
        (json!({}), "it has neither `run`"),
        (
            json!({ "command": "x", "run": true }),
            "it has `run` and `command`",
        ),
        (json!({ "command": " " }), "`command` is \" \""),
        (
            json!({ "command": "x", "afer": "all" }),
            "`afer` is not a key of a step that follows a target: did you mean `after`? (the keys of a step",
        ),
        (
            json!({ "command": "x", "needsOutput": true }),
            "`needsOutput` is not a key of a step that follows a target: did you mean `needs-output`? (",
        ),
        (
            json!({ "command": "x", "phase": "release" }),
            "`phase` is not a key of a step that follows a target: the keys of a step that follows a target are run, ",
        ),
        (
            json!({ "command": "x", "alwaysRun": true }),
            "`alwaysRun` is not a key of a step that follows a target: did you mean `always`? (",
        ),
        (
            json!({ "command": "x", "after": "some" }),
            "`after` is \"some\"",
        ),
        (json!({ "command": "x", "always": 1 }), "`always` is 1"),
        (
            json!({ "command": "x", "confirm": null }),
            "`confirm` is null",
        ),
        (
            json!({ "command": "x", "confirm": "" }),
            "`confirm` is an empty string",
        ),
        (
            json!({ "command": "x", "buildkite": 5 }),
            "`buildkite` is 5, and must be a map",
        ),
        (
            json!({ "command": "x", "buildkite": { "key": "k" } }),
            "in its `buildkite`, `key` cannot",
        ),
        (
            json!({ "command": "x", "buildkite": { "comand": "k" } }),
            "in its `buildkite`, ",
        ),
        (
            json!({ "command": "x", "buildkite": { "command": "k" } }),
            "`buildkite.command` cannot",
        ),
        (
            json!({ "command": "x", "buildkite": { "parallelism": 900 } }),
            "it makes 900 jobs",
        ),
        (
            json!({ "run": true, "buildkite": { "env": { "EVAL_ONCE_STEP": "{}" } } }),
            "in its `buildkite`, `env.",
        ),
    ] {
        let targets = [followed(
            1,
            &["app"],
            &json!({ "bad": step, "good": { "command": "x" } }),
        )];
        let planned = make(&targets, &no_edges(&targets), &[], &by_attr()).unwrap();
        let refused = &planned.errors.refused;
        let found = refused[0].message.as_deref().unwrap();
        assert!(refused.len() == 1 && found.starts_with(message), "{found}");
        let made = written(&planned);
        assert_eq!(made["nix-app"]["label"], ":nix: app");
        assert_eq!(made["nix-app-good"]["command"], "x");
        let bad = &made["nix-app-bad"];
        let record = record_of(bad);
        let said = record["refused"].as_str().unwrap();
        assert!(said.starts_with("app.meta.eval-once.steps.bad: "), "{said}");
        assert_eq!(bad["depends_on"], json!([]));
    }
}

#[test]
fn each_phase_has_its_steps_alone_and_the_summary_waits_for_no_release() {
    let targets = [followed(
        1,
        &["app"],
        &json!({ "a": { "command": "x" }, "bad": {} }),
    )];
    let of = |build: bool, release: bool| -> Vec<String> {
        let request = RecordingRequest {
            phases: Phases { build, release },
            ..by_attr()
        };
        made(&targets, &request).into_keys().collect()
    };
    assert_eq!(of(true, false), ["nix-app"]);
    assert_eq!(of(false, true), ["nix-app-a", "nix-app-bad"]);
    let request = RecordingRequest {
        summary: true,
        ..by_attr()
    };
    let planned = make(&targets, &no_edges(&targets), &[], &request).unwrap();
    let summary = &planned.steps.last().unwrap().step;
    let waits = summary.depends_on.iter().map(|it| match it {
        Dependency::Step { step, .. } | Dependency::Key(step) => step.as_str(),
    });
    assert_eq!(waits.collect::<Vec<_>>(), ["nix-app", "nix-app-bad"]);
}

#[test]
fn a_target_that_steps_follow_is_in_no_batch_and_a_release_waits_for_batches() {
    let release = json!({ "release": { "command": "x", "after": "all" } });
    let targets = [
        followed(0, &["web"], &release),
        target(1, &["first"]),
        target(2, &["second"]),
    ];
    let edges = no_edges(&targets);
    let records = Records {
        targets: &targets,
        errors: &ErrorLists::default(),
        callable: &BTreeSet::new(),
        edges: &edges,
        skip: &[],
        seconds: &[Some(1.0); 3],
        steps_known: true,
        shared: &[],
    };
    let request = RecordingRequest {
        batch: Some(Duration::from_secs(10)),
        ..by_attr()
    };
    let planned = steps(&records, &request, schema()).unwrap();
    let batch = planned.targets[1].key.clone();
    assert_eq!(planned.targets[2].key, batch);
    let made = written(&planned);
    let waits = &made["nix-web-release"]["depends_on"];
    assert_eq!(*waits, json!(["nix-web", batch]));
}

/// The keys of a step that follows, right ones more often than not.
fn any_keys() -> impl Strategy<Value = Value> {
    let flag = || prop_oneof![6 => any::<bool>().prop_map(Value::from), 1 => anything()];
    let text = || prop_oneof![6 => hostile::text().prop_map(Value::from), 1 => anything()];
    let after = proptest::sample::select(vec!["target", "all", "nothing", "some"]);
    let entry = prop_oneof![
        flag().prop_map(|it| ("needs-output", it)),
        flag().prop_map(|it| ("always", it)),
        flag().prop_map(|it| ("unless-skipped", it)),
        after.prop_map(|it| ("after", it.into())),
        text().prop_map(|it| ("confirm", it)),
        anything().prop_map(|it| ("buildkite", it)),
        anything().prop_map(|it| ("x", it)),
    ];
    let does = prop_oneof![
        Just(("run", json!(true))),
        text().prop_map(|it| ("command", it))
    ];
    (does, proptest::collection::vec(entry, 0..4)).prop_map(|(does, entries)| {
        let all = std::iter::once(does).chain(entries);
        Value::Object(all.map(|(name, value)| (name.to_owned(), value)).collect())
    })
}

proptest! {
    /// Whatever targets are called and say.
    #[test]
    fn buildkite_takes_what_follows_and_every_step_waits_for_earlier_ones_alone(
        all in proptest::collection::vec(
            (hostile::text(), proptest::collection::btree_map(hostile::text(), any_keys(), 0..4), anything()), 1..5),
        errors in proptest::collection::vec((hostile::text(), hostile::text()), 3),
        skipped in any::<u8>(),
        choices in any::<[bool; 5]>(),
        short in any::<u8>(),
        linked in any::<u8>(),
    ) {
        let [by_attr, command, summary, group, batch] = choices;
        let mut seen = BTreeSet::new();
        let targets: Vec<Target> = all.iter().enumerate().filter(|(_, (name, ..))| seen.insert(name.clone())).map(|(i, (name, steps, wish))| {
            let steps: serde_json::Map<_, _> = steps.clone().into_iter().collect();
            let mut target = followed(i, &["p", name], &steps.into());
            target.meta.buildkite = wish.as_object().cloned();
            target
        }).collect();
        let pairs: Vec<_> = (1..targets.len()).filter(|i| linked >> i & 1 == 1).map(|i| (i, i - 1)).collect();
        let edges = edges_between(&targets, &pairs);
        let skip: Vec<_> = (0..targets.len()).map(|i| (skipped >> i & 1 == 1).then(|| "built".to_owned())).collect();
        let request = RecordingRequest {
            key_style: if by_attr { KeyStyle::Attr } else { KeyStyle::Drv },
            key_prefix: "k-".into(),
            emit: if command { Emit::Command } else { request().emit },
            summary,
            group_by: usize::from(group),
            batch: batch.then(|| Duration::from_secs(10)),
            ..request()
        };
        let seconds: Vec<_> = (0..targets.len()).map(|i| (short >> i & 1 == 1).then_some(1.0)).collect();
        // Errors of each kind.
        let error = |i: usize| vec![AttrError {
            attr: path(&["e", &i.to_string(), &errors[i].0]),
            message: Some(errors[i].1.clone()),
        }];
        let errors = ErrorLists { evaluation: error(0), refused: error(1), expected: error(2) };
        let records = Records { targets: &targets, errors: &errors, callable: &BTreeSet::new(), edges: &edges, skip: &skip, seconds: &seconds, shared: &[], steps_known: true };
        let planned = steps(&records, &request, schema()).unwrap();
        let made = written(&planned);
        let document = placed_step::json(&planned.steps).unwrap();
        let as_yaml: Value = serde_yaml_ng::from_str(&document).unwrap();
        prop_assert_eq!(&as_yaml, &serde_json::from_str::<Value>(&document).unwrap());
        let keys: Vec<&str> = planned.steps.iter().flat_map(PlacedStep::keys).collect();
        prop_assert_eq!(made.len(), keys.len(), "no key is used twice");
        // Each of them is there: as itself, as its error, or left out.
        for (i, target) in targets.iter().enumerate() {
            for follower in &target.followers {
                let (key, _) = planned.keys.follower(&follower.attr());
                let own = planned.steps.iter().find(|it| it.step.key == planned.targets[i].key);
                let may_miss = skip[i].is_some() && planned.targets[i].skip.is_some()
                    || own.is_some_and(|own| !own.step.may_run());
                prop_assert!(may_miss || made.contains_key(&key), "{}", key);
            }
        }
        let ours: BTreeSet<&str> = keys.iter().copied().collect();
        let mut before = BTreeSet::new();
        for step in &planned.steps {
            let confirm = step.confirm.iter().flat_map(|it| &it.depends_on);
            before.extend(step.confirm.iter().map(|it| it.key.as_str()));
            for dependency in confirm.chain(&step.step.depends_on) {
                let (Dependency::Key(key) | Dependency::Step { step: key, .. }) = dependency;
                // Others are a user's own.
                prop_assert!(before.contains(key.as_str()) || !ours.contains(key.as_str()), "{}", key);
            }
            before.insert(&step.step.key);
        }
    }
}
