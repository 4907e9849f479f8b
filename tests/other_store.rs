//! Hosts of another kind. A record of a store in another folder than this host's: no way leads from it but evaluating again, and
//! that is said once. A record of another system: it is fetched as any other.

use std::{collections::BTreeMap, fs, os::unix::fs::symlink, path::Path};

use serde_json::{Value, json};

use crate::support::{
    program::{Ended, Program},
    stand_in::StandIns,
    store::Store,
    target::Target,
};

/// What a step evaluates.
const EVALUATION: [&str; 4] = ["--file", "default.nix", "--attr", "hello"];

/// Two stores with the same target, recorded in the first: any two private stores are in two folders.
fn two_stores() -> Option<(Store, Store, Target)> {
    let (recording, building) = (Store::new()?, Store::new()?);
    for store in [&recording, &building] {
        store.targets("{ hello = file \"hello\"; }");
    }
    let target = recording.target("hello");
    Some((recording, building, target))
}

/// The sentence that names both folders.
fn sentence(recorded: &str, own: &Path) -> String {
    let recorded = Path::new(recorded).parent().unwrap();
    format!(
        "the record is of a store at {}, and this host's store is at {}",
        recorded.display(),
        own.display()
    )
}

/// A step that evaluated because of the other store: the log says so once, in the heading of the evaluation.
#[track_caller]
fn is_evaluated(ended: &Ended, target: &Target, store: &Store) {
    ended.takes("evaluated", "other-store").counts(1, 0);
    let report = ended.report();
    assert_eq!(report["drift"], false, "{report}");
    let own = store.target("hello");
    assert_eq!(report["outputs"], json!(own.outputs), "{report}");
    let sentence = sentence(&target.drv, &store.folder());
    let heading = format!("evaluating hello of default.nix, because {sentence}");
    ended.passes_on(&heading);
    assert_eq!(ended.stderr.matches(&sentence).count(), 1, "{ended}");
    for wrong in ["drift: ", "cannot query", "neither here nor", "GC root"] {
        ended.never_says(wrong);
    }
}

/// The record, as a step gets it in each form: the `.drv` alone, with its outputs, and the outputs alone.
fn records(target: &Target) -> [Vec<String>; 3] {
    [
        target.drv_flags(),
        target.flags(),
        target.flags().split_off(2),
    ]
}

#[test]
fn it_is_evaluated_again_with_one_sentence() {
    let Some((_recording, store, target)) = two_stores() else {
        return;
    };
    let daemon = store.daemon();
    for record in [&target, &of_no_host(&target)] {
        for flags in records(record) {
            for through in [Vec::new(), daemon.env()] {
                let ended = store.step(&flags).args(EVALUATION).envs(through).run();
                is_evaluated(&ended, record, &store);
                clean(&store);
            }
        }
        // A step that the recording has skipped.
        let flags = json!({ "file": "default.nix", "attr": ["hello"], "skip": true });
        let ended = in_environment(&store, &record.record(&flags)).run();
        is_evaluated(&ended, record, &store);
        clean(&store);
    }
}

#[test]
fn a_store_whose_folder_is_not_here_is_known_before_nix_fails_for_it() {
    let Some((_recording, store, target)) = two_stores() else {
        return;
    };
    let daemon = store.daemon();
    for flags in records(&of_no_host(&target)) {
        for through in [Vec::new(), daemon.env()] {
            let ended = store.step(&flags).args(EVALUATION).envs(through).run();
            ended.takes("evaluated", "other-store");
            let errors = ended.stderr.lines().filter(|line| line.contains("error: "));
            assert_eq!(errors.count(), 0, "{ended}");
            assert_eq!(ended.stderr.matches("--- ").count(), 2, "{ended}");
            assert_eq!(ended.report()["tried"], json!(["evaluated"]), "{ended}");
            clean(&store);
        }
    }
}

/// The same record of a store whose files are not on this host. (Those of the first are: it is the same machine.)
fn of_no_host(target: &Target) -> Target {
    let folder = Path::new(&target.drv).parent().unwrap().to_str().unwrap();
    let moved = |path: &String| path.replace(folder, "/x/store");
    Target {
        drv: moved(&target.drv),
        outputs: target
            .outputs
            .iter()
            .map(|(name, path)| (name.clone(), moved(path)))
            .collect(),
    }
}

fn in_environment(store: &Store, record: &Value) -> Program {
    let no_flags: [&str; 0] = [];
    store
        .step(no_flags)
        .env("EVAL_ONCE_STEP", record.to_string())
}

/// As before the step.
fn clean(store: &Store) {
    let _ = fs::remove_file(store.work().join("result"));
    store.collect();
}

#[test]
fn where_it_cannot_be_evaluated_the_error_names_both_folders() {
    let Some((_recording, store, target)) = two_stores() else {
        return;
    };
    let daemon = store.daemon();
    let sentence = sentence(&target.drv, &store.folder());
    for flags in records(&target) {
        for through in [Vec::new(), daemon.env()] {
            let nothing = store.step(&flags).envs(through.clone()).run();
            let forbidden = store
                .step(&flags)
                .args(EVALUATION)
                .env("EVAL_ONCE_POLICY", "recorded-only")
                .envs(through)
                .run();
            for (ended, why) in [
                (nothing, "the step does not say what to evaluate"),
                (forbidden, "this host does not evaluate"),
            ] {
                let error = format!("eval-once: error: {sentence}, and {why}");
                ended.fails(75, "surroundings").passes_on(&error);
                ended.never_says("is gone");
                ended.never_says("NIX_REMOTE");
            }
        }
    }
}

#[test]
fn explain_says_so_and_lists_what_the_step_runs() {
    let Some((_recording, store, target)) = two_stores() else {
        return;
    };
    let stand_ins = StandIns::new(store.bin()).counting("nix-store");
    let nowhere = of_no_host(&target);
    let targets = [&target, &nowhere].into_iter();
    for (target, flags) in targets.flat_map(|target| records(target).map(|flags| (target, flags))) {
        let explain = || store.eval_once(["explain", "--json"]).args(&flags);
        let explained = explain().args(EVALUATION).run().json();
        assert_eq!(explained["would"], "evaluated", "{explained}");
        assert_eq!(explained["reason"], "other-store", "{explained}");
        let facts = explained["facts"].as_array().unwrap();
        let found = sentence(&target.drv, &store.folder());
        let fact = json!({ "what": "the store", "found": found });
        let count = facts.iter().filter(|one| **one == fact).count();
        assert_eq!(count, 1, "{explained}");
        // As many programs as it says, in this order, up to the evaluation.
        let commands: Vec<Vec<String>> =
            serde_json::from_value(explained["commands"].clone()).unwrap();
        let said = commands
            .iter()
            .map(|command| command[..2].join(" "))
            .take_while(|command| !command.contains("--realise DRV"));
        let before = stand_ins.calls("nix-store").len();
        store
            .step(&flags)
            .args(EVALUATION)
            .env("PATH", stand_ins.path(&store))
            .run()
            .takes("evaluated", "other-store");
        let asked = stand_ins.calls("nix-store").len() - before;
        let said = said.filter(|command| command.starts_with("nix-store"));
        // The last of both realises what was evaluated.
        assert_eq!(said.count(), asked, "{explained}");
        clean(&store);

        let nowhere = explain().run().json();
        assert_eq!(nowhere["would"], Value::Null, "{nowhere}");
    }
}

#[test]
fn a_derivation_with_another_name_has_drifted_all_the_same() {
    let Some((recording, store, _)) = two_stores() else {
        return;
    };
    recording.targets("{ hello = file \"other\"; }");
    let target = recording.target("hello");
    let step = |on_drift| {
        let step = store.step(target.flags()).args(EVALUATION);
        step.args(["--on-drift", on_drift]).run()
    };
    let ended = step("warn");
    ended.takes("evaluated", "other-store");
    assert_eq!(ended.report()["drift"], true);
    step("fail").fails(76, "drift");
}

#[test]
fn a_link_into_this_hosts_store_is_replaced_and_one_that_leads_elsewhere_is_not() {
    let Some((_recording, store, target)) = two_stores() else {
        return;
    };
    let own = store.target("hello");
    let old = own.out().replace("hello", "old");
    let link = store.work().join("result");
    for flags in records(&target) {
        let step = || store.step(&flags).args(EVALUATION).run();
        for elsewhere in ["/etc/hosts", &old.replace("/tmp", "/tmp/x")] {
            symlink(elsewhere, &link).unwrap();
            step().fails(64, "config");
            fs::remove_file(&link).unwrap();
        }
        symlink(&old, &link).unwrap();
        is_evaluated(&step(), &target, &store);
        let expected = BTreeMap::from([("result".to_owned(), own.out().to_owned())]);
        assert_eq!(store.links(), expected);
        clean(&store);
    }
}

#[test]
fn the_folder_of_a_store_elsewhere_is_the_one_that_its_paths_name() {
    let Some((_recording, store, target)) = two_stores() else {
        return;
    };
    let own = store.target("hello");
    store.build(&own.drv);
    let elsewhere = format!("local?root={}", store.root().join("elsewhere").display());
    for arguments in [&[own.out()][..], &["--derivation", &own.drv]] {
        let copy = ["copy", "--no-check-sigs", "--to", &elsewhere];
        store.nix("nix", copy.iter().chain(arguments));
    }
    // The outputs are there: nothing is built, which would need a sandbox.
    let step = |flags: Vec<String>| {
        let step = store.step(flags).args(EVALUATION);
        step.env("NIX_REMOTE", &elsewhere).run()
    };
    let ended = step(target.flags());
    ended.takes("evaluated", "other-store");
    ended.passes_on(&sentence(&target.drv, &store.folder()));
    // The control: a record of this store.
    step(own.drv_flags()).takes("realised", "drv-valid");
}

#[test]
fn a_store_that_does_not_answer_is_not_taken_for_another_one() {
    let Some((_recording, store, target)) = two_stores() else {
        return;
    };
    let own = store.target("hello");
    let socket = store.root().join("no-socket");
    let env = crate::support::daemon::client_env(&socket);
    for record in [&own, &target] {
        let ended = store
            .step(record.flags())
            .args(EVALUATION)
            .envs(env.clone());
        ended.run().fails(75, "surroundings");
    }
}

#[test]
fn a_share_is_neither_tried_nor_blamed() {
    let Some((recording, store, target)) = two_stores() else {
        return;
    };
    let share = recording.cache("share", [&target.drv]);
    let step = |more: &[&str]| {
        let step = store.step(target.flags()).args(["--share", &share]);
        step.args(more).args(EVALUATION)
    };
    let ended = step(&[]).run();
    is_evaluated(&ended, &target, &store);
    ended.never_says(&share);
    assert!(ended.report().get("share").is_none(), "{ended}");
    clean(&store);
    // The control: the same share gives the `.drv` to a host whose store is in that folder.
    clean(&recording);
    let fetched = recording.step(target.drv_flags()).args(["--share", &share]);
    let fetched = fetched.run();
    fetched.takes("fetched", "fetched-from-share");
    assert_eq!(fetched.report()["share"]["from"], share, "{fetched}");

    let required = step(&["--share-required"]);
    let sentence = sentence(&target.drv, &store.folder());
    let ended = required.run();
    ended.fails(75, "surroundings").passes_on(&format!(
        "eval-once: error: {sentence}, and `share-required` does not let the step evaluate"
    ));
    let explain = store.eval_once(["explain", "--json", "--share", &share, "--share-required"]);
    let explained = explain.args(target.flags()).args(EVALUATION).run().json();
    assert_eq!(explained["would"], Value::Null, "{explained}");
}

#[test]
fn a_step_whose_share_failed_says_so_in_its_hint_and_its_report() {
    let Some((_, store, _)) = two_stores() else {
        return;
    };
    let target = store.target("hello");
    let empty = format!("file://{}", store.root().join("empty").display());
    for (share, keep) in [(Some(&empty), false), (None, true)] {
        clean(&store);
        let mut step = store.step(target.flags()).args(EVALUATION);
        if let Some(share) = share {
            step = step.args(["--share", share]);
        }
        let ended = step.run();
        ended.takes("evaluated", "drv-missing");
        let hint = &ended.report()["hints"][0];
        let hint = hint.as_str().unwrap();
        assert_eq!(hint.contains("keep-days"), keep, "{hint}");
        let tried = &ended.report()["share"];
        assert_eq!(tried["from"], json!(share), "{ended}");
        if share.is_some() {
            let why = tried["failure"].as_str().unwrap();
            assert!(hint.contains(why) && hint.contains(&empty), "{hint}");
        }
    }
}

#[test]
fn a_drv_of_another_system_is_fetched_and_the_share_is_not_to_blame_that_nothing_builds_it() {
    let Some(store) = Store::new() else { return };
    for (system, builds) in [("aarch64-darwin", false), ("x86_64-linux", true)] {
        store.targets(&format!(
            "{{ hello = with' {{ system = \"{system}\"; }} \"hello\" \"echo > $out\"; }}"
        ));
        let target = store.target("hello");
        let share = store.cache("share", [&target.drv]);
        clean(&store);
        let step = store.step(target.flags()).args(EVALUATION);
        let ended = step.args(["--share", &share]).run();
        if builds
            && store.nix(
                "nix-instantiate",
                ["--eval", "-E", "builtins.currentSystem"],
            ) == format!("\"{system}\"")
        {
            ended.takes("fetched", "fetched-from-share");
            continue;
        }
        ended
            .fails(100, "build")
            .passes_on("hint: send the step to an agent that can build it");
        assert_eq!(ended.report()["way"], "fetched", "{ended}");
        assert!(ended.report().get("hints").is_none(), "{ended}");
        ended.never_says("its share failed");
        ended.never_says("evaluating");
    }
}
