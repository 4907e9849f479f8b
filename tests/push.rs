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
