//! A step with `push` copies what it has built to that store, and a recording skips what that store has.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::support::{
    daemon::Daemon,
    processes::marked,
    program::{Ended, Program},
    recording::Pipeline,
    stand_in::StandIns,
    store::Store,
    target::Target,
    until,
};

/// A target that needs another at run time, and a third only while it is built.
const TARGETS: &str = r#"
let dep = file "dep"; tool = file "tool";
in { inherit dep tool; top = with' { inherit dep tool; } "top" "echo $dep > $out"; }
"#;

/// The folder of a binary cache in the store's own folder, and its URL.
fn cache(store: &Store, name: &str) -> (PathBuf, String) {
    let folder = store.root().join(name);
    let url = format!("file://{}", folder.display());
    (folder, url)
}

/// Whether a cache in a folder has a store path.
fn is_in(cache: &Path, path: &str) -> bool {
    let name = Path::new(path).file_name().unwrap().to_str().unwrap();
    cache.join(format!("{}.narinfo", &name[..32])).exists()
}

fn push(store: &Store, target: &Target, url: &str) -> Program {
    store.step(target.flags()).args(["--push", url])
}

/// Without and with a daemon: the environment of a client.
fn with_and_without_daemon(mut test: impl FnMut(&Store, Vec<(OsString, OsString)>)) {
    for through_daemon in [false, true] {
        let Some(store) = Store::new() else { return };
        let daemon = through_daemon.then(|| store.daemon());
        test(&store, daemon.as_ref().map(Daemon::env).unwrap_or_default());
    }
}

#[track_caller]
fn fails_to_push(ended: &Ended, why: &str) {
    ended.exits(75);
    let report = ended.report();
    assert_eq!(report["failure"]["class"], "surroundings", "{ended}");
    assert_eq!(report["exit"], 75);
    assert!(report.get("pushed").is_none(), "{ended}");
    let message = report["failure"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("the build succeeded, and the push to "),
        "{message}"
    );
    assert!(message.contains(why), "not said: {why}: {message}");
    assert!(
        ended.stderr.contains("The build itself succeeded"),
        "{ended}"
    );
}

// ---- a step

#[test]
fn outputs_are_pushed_with_what_they_need_whatever_the_way() {
    with_and_without_daemon(|store, client| {
        store.targets(TARGETS);
        let (folder, url) = cache(store, "cache");
        let target = store.target("top");
        let run = |flags: Vec<String>, way: &str| {
            let ended = store
                .step(flags)
                .args(["--push", &url])
                .envs(client.clone())
                .run();
            ended.exits(0);
            let report = ended.report();
            assert_eq!(report["way"], way, "{ended}");
            assert_eq!(report["pushed"], json!({ "store": url, "outputs": 1 }));
            assert!(report["seconds"]["push"].as_f64().unwrap() > 0.0, "{ended}");
            assert!(is_in(&folder, target.out()) && is_in(&folder, &store.target("dep").out()));
            assert!(
                !is_in(&folder, store.target("tool").out()),
                "what only the build needs"
            );
            assert!(
                ended.stderr.contains(&format!(", pushed to {url}\n")),
                "{ended}"
            );
            fs::remove_dir_all(&folder).unwrap();
        };
        run(target.flags(), "realised");
        // What is there is pushed too.
        run(target.flags(), "realised");
        run(
            vec!["--output".into(), format!("out={}", target.out())],
            "available",
        );
        run(
            vec![
                "--file".into(),
                "default.nix".into(),
                "--attr".into(),
                "top".into(),
            ],
            "evaluated",
        );
    });
}

#[test]
fn a_step_without_push_says_nothing_of_it_and_takes_no_time_for_it() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    let ended = store.step(store.target("dep").flags()).run();
    ended.exits(0);
    assert!(ended.report().get("pushed").is_none());
    assert_eq!(ended.report()["seconds"]["push"], 0.0);
    assert!(!ended.stderr.contains("push"), "{ended}");
}

#[test]
fn all_outputs_are_pushed() {
    let Some(store) = Store::new() else { return };
    store.targets(r#"{ two = buildAll [ "out" "dev" ] "two" "echo a > $out; echo b > $dev"; }"#);
    let target = store.target("two");
    let (folder, url) = cache(&store, "cache");
    let ended = push(&store, &target, &url).run();
    ended.exits(0);
    assert_eq!(ended.report()["pushed"]["outputs"], 2);
    assert!(target.paths().iter().all(|path| is_in(&folder, path)));
}

#[test]
fn a_failed_push_is_no_failed_build_and_a_retry_only_pushes() {
    with_and_without_daemon(|store, client| {
        store.targets(TARGETS);
        let target = store.target("top");
        let (folder, url) = cache(store, "cache");
        // A file where the cache's folder is to be.
        fs::write(&folder, "").unwrap();
        let ended = push(store, &target, &url).envs(client.clone()).run();
        fails_to_push(&ended, "");
        let report = ended.report();
        assert_eq!(report["outputs"]["out"], target.out());
        assert_eq!(report["built"], 3, "{ended}");
        assert_eq!(report["failure"]["drv"], Value::Null);
        assert!(
            ended
                .stderr
                .contains("top was built, and not pushed (infrastructure failure, exit status 75)")
                || ended.stderr.contains(
                    "the target was built, and not pushed (infrastructure failure, exit status 75)"
                ),
            "{ended}"
        );
        assert!(
            ended.stderr.contains(
                "reproduce     nix --extra-experimental-features nix-command copy --to file://"
            ),
            "{ended}"
        );
        // The link stands: the outputs are kept for the retry.
        assert_eq!(store.links()["result"], target.out());
        fs::remove_file(&folder).unwrap();
        let ended = push(store, &target, &url).envs(client).run();
        ended.exits(0);
        assert_eq!(ended.report()["built"], 0);
        assert!(is_in(&folder, target.out()));
    });
}

#[test]
fn the_steps_own_command_runs_only_after_the_push() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    let target = store.target("dep");
    let (folder, url) = cache(&store, "cache");
    let narinfo = folder.join(format!(
        "{}.narinfo",
        &Path::new(target.out())
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()[..32]
    ));
    let command = [
        "--".to_owned(),
        "/bin/sh".into(),
        "-c".into(),
        format!("test -e {} && echo ran", narinfo.display()),
    ];
    let ended = push(&store, &target, &url).args(&command).run();
    ended.exits(0).prints("ran\n");
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, "").unwrap();
    let ended = push(&store, &target, &url).args(&command).run();
    ended.prints("");
    fails_to_push(&ended, "");
}

// ---- of a target that failed

/// A target whose build fails after what it needs was built, and others that fail beside it.
const FAILING: &str = r#"
let good = file "good"; late = file "late"; bad = with' { inherit good; } "bad" "exit 3";
in { inherit good late; top = with' { inherit bad good late; } "top" "echo > $out"; }
"#;

#[test]
fn what_was_built_of_a_target_that_failed_is_pushed_where_that_is_wished() {
    for (log, keep_going) in [("pretty", false), ("pretty", true), ("raw", true)] {
        with_and_without_daemon(|store, client| {
            store.targets(FAILING);
            let (folder, url) = cache(store, "cache");
            let target = store.target("top");
            let good = store.target("good");
            let run = |more: &[&str]| {
                let ended = push(store, &target, &url)
                    .args([
                        "--log",
                        log,
                        "--option",
                        "keep-going",
                        if keep_going { "true" } else { "false" },
                    ])
                    .args(more)
                    .envs(client.clone())
                    .run();
                ended.exits(100);
                assert_eq!(ended.report()["failure"]["class"], "build");
                ended
            };
            let ended = run(&[]);
            assert!(ended.report().get("pushed").is_none());
            assert!(!folder.exists(), "only with `push-partial`");
            store.delete([good.out()]);
            store.try_delete([store.target("late").out()]);
            let ended = run(&["--push-partial"]);
            assert!(is_in(&folder, good.out()), "{ended}");
            assert_eq!(
                is_in(&folder, store.target("late").out()),
                store.has(store.target("late").out())
            );
            assert!(!is_in(&folder, target.out()));
            let pushed = &ended.report()["pushed"];
            assert_eq!(pushed["store"], url);
            assert_eq!(
                pushed["outputs"],
                if keep_going {
                    2
                } else {
                    pushed["outputs"].as_u64().unwrap()
                }
            );
            // What was built before this step is not its own.
            fs::remove_dir_all(&folder).unwrap();
            run(&["--push-partial"]);
            assert!(!is_in(&folder, good.out()));
        });
    }
}

#[test]
fn a_partial_push_that_fails_is_a_warning_and_the_failure_stays_the_builds() {
    let Some(store) = Store::new() else { return };
    store.targets(FAILING);
    let (folder, url) = cache(&store, "cache");
    fs::write(&folder, "").unwrap();
    let ended = push(&store, &store.target("top"), &url)
        .arg("--push-partial")
        .run();
    ended.exits(100);
    assert_eq!(ended.report()["failure"]["class"], "build");
    assert!(ended.report().get("pushed").is_none());
    let warning =
        format!("warning: what was built of the failed target cannot be pushed to {url}: ");
    assert_eq!(ended.stderr.matches(&warning).count(), 1, "{ended}");
}

// ---- a recording

fn record(store: &Store, flags: &[&str]) -> Ended {
    let ended = store.eval_once(["pipeline", "--dry-run"]).args(flags).run();
    ended.exits(0);
    ended
}

/// Why each target is skipped, by its attribute.
fn skips(ended: &Ended) -> Vec<(String, String)> {
    let steps = Pipeline::of(ended).steps();
    steps
        .into_iter()
        .filter_map(|(name, step)| Some((name, step.json.get("skip")?.as_str()?.to_owned())))
        .collect()
}

#[test]
fn with_push_only_what_that_store_has_is_skipped() {
    with_and_without_daemon(|store, _| {
        store.targets(TARGETS);
        let (folder, url) = cache(store, "c");
        for attr in ["dep", "tool"] {
            store.build(&store.target(attr).drv);
        }
        let here = vec!["dep", "tool"];
        let names = |ended: &Ended| -> Vec<String> {
            skips(ended).into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(names(&record(store, &[])).len(), here.len());
        // They are here, and not there; and asking makes no cache.
        for skip in ["built", "cached"] {
            assert!(names(&record(store, &["--push", &url, "--skip", skip])).is_empty());
        }
        assert!(!folder.exists());
        let dep = store.target("dep");
        store.cache("c", [dep.out()]);
        // There, and not here.
        store.delete([dep.out()]);
        for skip in ["built", "cached"] {
            let ended = record(store, &["--push", &url, "--skip", skip]);
            assert_eq!(
                skips(&ended),
                [("[\"dep\"]".to_owned(), format!("already in {url}"))]
            );
            assert!(
                ended.stderr.contains("2 to build, 1 already pushed"),
                "{ended}"
            );
        }
        assert!(names(&record(store, &["--push", &url, "--skip", "none"])).is_empty());
    });
}

#[test]
fn a_target_that_names_a_store_of_its_own_is_looked_for_there() {
    let Some(store) = Store::new() else { return };
    let (_, one) = cache(&store, "1");
    let (_, two) = cache(&store, "2");
    let body = format!(
        r#"let own = url: d: d // {{ meta.eval-once.push = url; }};
        in {{ a = file "a"; b = own "{two}" (file "b"); c = own "{two}" (file "c"); d = own "nowhere" (file "d"); }}"#
    );
    store.targets(&body);
    for (cache, attr) in [("1", "a"), ("1", "b"), ("2", "c"), ("1", "d"), ("2", "d")] {
        let drv = store.target(attr).drv;
        let out = store.build(&drv).remove(0);
        store.cache(cache, [out]);
    }
    let names = |flags: &[&str]| -> Vec<String> {
        let names = skips(&record(&store, flags)).into_iter();
        names.map(|(name, why)| format!("{name} {why}")).collect()
    };
    assert_eq!(
        names(&["--push", &one]),
        [
            format!("[\"a\"] already in {one}"),
            format!("[\"c\"] already in {two}")
        ]
    );
    assert_eq!(
        names(&[]),
        [
            "[\"a\"] already built here".to_owned(),
            format!("[\"c\"] already in {two}")
        ]
    );
    let pipeline = Pipeline::of(&record(&store, &["--push", &one]));
    assert_eq!(pipeline.step(&["b"]).record["push"], two);
    assert_eq!(pipeline.step(&["a"]).record["push"], one);
}

#[test]
fn a_step_that_ends_at_once_does_so_because_of_the_store_it_pushes_to() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    let (folder, url) = cache(&store, "cache");
    let target = store.target("dep");
    store.build(&target.drv);
    store.cache("cache", [target.out()]);
    store.delete([target.out()]);
    let ended = record(&store, &["--push", &url, "--skip-style", "run"]);
    let record = Pipeline::of(&ended).step(&["dep"]).record;
    assert_eq!(record["skip"], true);
    let step = || {
        store
            .eval_once(["step"])
            .env("EVAL_ONCE_STEP", record.to_string())
            .reporting_to(store.root().join("report.json"))
            .run()
    };
    // Neither here nor in a substituter: it is there, and that is what counts.
    let ended = step();
    ended.exits(0);
    assert_eq!(ended.report()["reason"], "skipped", "{ended}");
    assert!(ended.report().get("pushed").is_none());
    assert!(!store.has(target.out()));
    // Gone from there: built and pushed, as any other step, and the log says why.
    fs::remove_dir_all(&folder).unwrap();
    let ended = step();
    ended.exits(0);
    assert_eq!(ended.report()["pushed"]["outputs"], 1, "{ended}");
    assert!(
        ended.stderr.contains(&format!(
            "the outputs are no longer in {url}, where the recording found them"
        )),
        "{ended}"
    );
    // Here, and not there: pushed again.
    fs::remove_dir_all(&folder).unwrap();
    step().exits(0);
    assert!(is_in(&folder, target.out()));
}

#[test]
fn a_store_that_cannot_be_asked_skips_nothing_and_is_one_warning() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    for attr in ["dep", "tool"] {
        store.build(&store.target(attr).drv);
    }
    // Nothing listens on this port.
    let url = "http://127.0.0.1:1/cache";
    let ended = record(
        &store,
        &["--push", url, "--option", "download-attempts", "1"],
    );
    assert!(skips(&ended).is_empty());
    let warning =
        format!("warning: {url} cannot be asked, so 3 targets are not skipped because of it: ");
    assert_eq!(ended.stderr.matches(&warning).count(), 1, "{ended}");
}
