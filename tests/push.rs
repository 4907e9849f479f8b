//! A step with `push` copies what it has built to that store, and a recording skips what that store has.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use unix::sys::signal::{Signal, kill};

use crate::support::{
    daemon::Daemon,
    processes::marked,
    program::{Ended, Program},
    recording::Pipeline,
    s3::S3,
    ssh::Sshd,
    stand_in::write_program,
    store::Store,
    target::Target,
    until,
    web::{Trouble, Web},
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
            assert!(is_in(&folder, target.out()) && is_in(&folder, store.target("dep").out()));
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
fn explain_says_what_would_be_pushed_and_pushes_nothing() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    let target = store.target("dep");
    let (folder, url) = cache(&store, "cache");
    let explain = |more: &[&str]| {
        let explain = store.eval_once(["explain", "--json"]).args(target.flags());
        explain.args(more).run().json()
    };
    let last = |explanation: &Value| {
        explanation["commands"]
            .as_array()
            .unwrap()
            .last()
            .unwrap()
            .to_string()
    };
    let explanation = explain(&["--push", &url]);
    assert_eq!(explanation["would"], "realised");
    let command = last(&explanation);
    assert!(
        command.contains(&format!("\"copy\",\"--to\",\"{url}\",\"{}\"", target.out())),
        "{command}"
    );
    assert!(!last(&explain(&[])).contains("copy"));
    assert!(!folder.exists());
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

#[test]
fn a_post_build_hook_and_a_push_to_the_same_store_live_together() {
    for through_daemon in [false, true] {
        let Some(store) = Store::new() else { return };
        let store = &store;
        store.targets(TARGETS);
        let (folder, url) = cache(store, "cache");
        let hook = store.root().join("hook");
        let hooked = |script: &str| {
            write_program(&hook, &format!("#!/bin/sh\n{script}\n"));
        };
        store.configure(&format!("post-build-hook = {}", hook.display()));
        let daemon = through_daemon.then(|| store.daemon());
        let client = daemon.as_ref().map(Daemon::env).unwrap_or_default();
        let target = store.target("top");
        // Nix 2.8 leaves OUT_PATHS empty.
        hooked(&format!(
            "paths=$(nix-store --query --outputs $DRV_PATH)\necho copied $paths\nexec nix copy --to '{url}' $paths"
        ));
        let ended = push(store, &target, &url).envs(client.clone()).run();
        ended.exits(0);
        assert_eq!(ended.report()["pushed"]["outputs"], 1);
        assert!(ended.stderr.contains("post-build-hook> copied "), "{ended}");
        // The hook copies every build, what only others need while they are built included.
        for attr in ["top", "dep", "tool"] {
            assert!(is_in(&folder, store.target(attr).out()), "{attr}");
        }
        // Where the hook fails, Nix ends, although the output is there; a retry finds it, and pushes it.
        fs::remove_dir_all(&folder).unwrap();
        store.delete([target.out()]);
        hooked("exit 3");
        let ended = push(store, &target, &url).envs(client.clone()).run();
        ended.fails(75, "surroundings");
        assert!(!folder.exists() && store.has(target.out()), "{ended}");
        let ended = push(store, &target, &url).envs(client).run();
        ended.exits(0);
        assert!(is_in(&folder, target.out()));
    }
}

// ---- what goes wrong

#[test]
fn a_store_that_takes_nothing_is_named_with_the_reason() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    let target = store.target("dep");
    let (_, other) = cache(&store, "other");
    fs::create_dir(store.root().join("other")).unwrap();
    fs::write(
        store.root().join("other/nix-cache-info"),
        "StoreDir: /other/store\n",
    )
    .unwrap();
    let web = Web::serve(store.root().join("web"));
    web.spoil(".narinfo", Trouble::Answers(500));
    let closed = Web::serve(store.root().join("closed"));
    let unreachable = closed.url();
    drop(closed);
    for (url, why, hint) in [
        (
            other.as_str(),
            "is for Nix stores with prefix '/other/store'",
            "those of another prefix cannot be copied",
        ),
        (
            &web.url(),
            "HTTP error 500",
            "check that this host may write to the store",
        ),
        (
            &unreachable,
            &unreachable,
            "check that this host may write to the store",
        ),
        (
            "nothing://x",
            "nothing://x",
            "check that this host may write to the store",
        ),
    ] {
        // Nix tries five times, with a pause before each.
        let ended = push(&store, &target, url)
            .args(["--option", "download-attempts", "1"])
            .run();
        fails_to_push(&ended, why);
        assert_eq!(
            ended
                .stderr
                .matches("eval-once: error: the build succeeded, and the push to ")
                .count(),
            1
        );
        assert!(ended.stderr.contains(hint), "{ended}");
    }
    // Without what is wrong, the same step is green.
    web.mend();
    push(&store, &target, &web.url()).run().exits(0);
    assert!(is_in(&store.root().join("web"), target.out()));
}

#[test]
fn a_full_disk_and_a_folder_that_cannot_be_written_are_the_stores() {
    let Some(store) = Store::new() else { return };
    store.targets(r#"{ big = build "big" "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done > $out"; }"#);
    let target = store.target("big");
    let (folder, url) = cache(&store, "cache");
    fs::create_dir(&folder).unwrap();
    let folder = folder.display();
    for (mount, why) in [
        (
            format!("mount -t tmpfs -o size=16k none '{folder}'"),
            "No space left on device",
        ),
        (
            format!(
                "mount --bind -o ro '{folder}' '{folder}' && mount -o remount,bind,ro '{folder}'"
            ),
            "Read-only file system",
        ),
    ] {
        let Some(step) = store.step_with_mounts(&mount, target.flags()) else {
            return;
        };
        let ended = step
            .args(["--push", &format!("{url}?compression=none")])
            .run();
        fails_to_push(&ended, why);
    }
    push(&store, &target, &format!("{url}?compression=none"))
        .run()
        .exits(0);
}

#[test]
fn another_hosts_folder_is_no_store_of_an_ordinary_users() {
    let Some(store) = Store::new() else { return };
    if !unix::unistd::geteuid().is_root() {
        return;
    }
    store.targets(TARGETS);
    let target = store.target("dep");
    let daemon = store.daemon();
    let (folder, url) = cache(&store, "cache");
    fs::create_dir(&folder).unwrap();
    let user = 4711;
    store.open_to(user);
    let run = || {
        store
            .eval_once_by(user, ["step"])
            .reporting_to(store.work().join("report.json"))
            .args(target.flags())
            .args(["--push", &url])
            .envs(daemon.env())
            .run()
    };
    fails_to_push(&run(), "Permission denied");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    run().exits(0);
    assert!(is_in(&folder, target.out()));
}

#[test]
fn a_signal_ends_a_push_and_all_that_it_started() {
    with_and_without_daemon(|store, client| {
        store.targets(TARGETS);
        let target = store.target("dep");
        let web = Web::serve(store.root().join("web"));
        web.spoil(".narinfo", Trouble::IsSilent);
        let running = push(store, &target, &web.url())
            .envs(client.clone())
            .env("EO_MARK", store.root())
            .start();
        web.until_held(".narinfo");
        kill(running.pid(), Signal::SIGTERM).unwrap();
        let ended = running.end();
        ended.exits(128 + 15);
        assert!(ended.took < Duration::from_secs(30), "{ended}");
        assert_eq!(ended.report()["failure"]["class"], "signal");
        assert_eq!(ended.report()["outputs"]["out"], target.out());
        let mark = format!("EO_MARK={}", store.root().display());
        until("all is gone", || marked(&mark).is_empty());
        web.mend();
        push(store, &target, &web.url()).envs(client).run().exits(0);
    });
}

#[test]
fn what_a_store_has_lost_is_pushed_again_whatever_this_host_remembers() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    let target = store.target("dep");
    let folder = store.root().join("web");
    let web = Web::serve(&folder);
    for _ in 0..2 {
        push(&store, &target, &web.url()).run().exits(0);
        assert!(is_in(&folder, target.out()));
        let ended = record(&store, &["--push", &web.url()]);
        assert_eq!(skips(&ended).len(), 1, "{ended}");
        fs::remove_dir_all(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        assert!(skips(&record(&store, &["--push", &web.url()])).is_empty());
    }
}

#[test]
fn outputs_are_pushed_to_another_host_by_ssh() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    let target = store.target("top");
    let Some(there) = store.another_host() else {
        return;
    };
    let Some(sshd) = Sshd::start(&there) else {
        return;
    };
    let url = "ssh-ng://there";
    let ended = push(&store, &target, url).envs(sshd.env()).run();
    ended.exits(0);
    assert!(there.has(target.out()), "{ended}");
    let recording = store
        .eval_once(["pipeline", "--dry-run", "--push", url])
        .envs(sshd.env())
        .run();
    let skipped: Vec<String> = skips(&recording)
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(skipped, ["[\"dep\"]", "[\"top\"]"]);
    // A store that wants signatures takes none of what is not signed, through a daemon or not.
    there.configure("require-sigs = true");
    let other = Target::of(
        &store,
        r#"derivation { name = "other"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo > $out" ]; }"#,
    );
    let daemon = there.daemon();
    drop(sshd);
    let Some(sshd) = Sshd::start(&there) else {
        return;
    };
    drop(daemon);
    let ended = push(&store, &other, url).envs(sshd.env()).run();
    fails_to_push(&ended, "signature");
    assert!(
        ended.stderr.contains("hint: sign what is built here"),
        "{ended}"
    );
}

#[test]
fn outputs_are_pushed_to_a_bucket_and_found_there() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    let target = store.target("top");
    let Some(s3) = S3::start(&store) else { return };
    let url = s3.url();
    assert!(skips(&record(&store, &["--push", &url])).is_empty());
    push(&store, &target, &url).run().exits(0);
    // A host that has nothing of it.
    store.delete([target.out()]);
    let skipped = skips(&record(&store, &["--push", &url]));
    let names: Vec<&str> = skipped.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["[\"dep\"]", "[\"top\"]"]);
    // With its parameters, the URL is longer than a reason may be.
    assert_eq!(skipped[0].1, "already in s3://bucket");
}

/// A store on HTTP that reads uploads of paths at this speed; 0: not at all. Its URL.
fn slow_store(bytes_each_second: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for connection in listener.incoming() {
            // A client that is gone wants no answer.
            thread::spawn(move || {
                serve_slowly(&connection.unwrap(), bytes_each_second).unwrap_or_default();
            });
        }
    });
    format!("http://{address}?compression=none")
}

fn serve_slowly(mut connection: &TcpStream, bytes_each_second: usize) -> std::io::Result<()> {
    let mut reader = BufReader::new(connection);
    let mut head = Vec::new();
    for line in reader.by_ref().lines() {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        head.push(line);
    }
    let length = head
        .iter()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse::<u64>().ok());
    if head.iter().any(|line| line.starts_with("expect:")) {
        connection.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let is_nar = head
        .first()
        .is_some_and(|line| line.starts_with("put /nar/"));
    let mut body = reader.take(length.unwrap_or_default());
    if is_nar && bytes_each_second == 0 {
        thread::park();
    }
    let mut piece = vec![0; (bytes_each_second / 10).max(1)];
    while body.read(&mut piece)? > 0 {
        if is_nar {
            thread::sleep(Duration::from_millis(100));
        }
    }
    let status = if head.first().is_some_and(|line| line.starts_with("put ")) {
        200
    } else {
        404
    };
    write!(
        connection,
        "HTTP/1.1 {status} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
}

#[test]
fn a_push_that_stands_still_is_given_up_and_a_slow_one_is_not() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"{
          # 16 MiB: more than a connection holds
          big = build "big" ''l=0123456789abcde; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do l=$l$l; done;
            for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do echo $l; done > $out'';
        }"#,
    );
    let big = store.target("big");
    store.build(&big.drv);
    let size = fs::metadata(big.out()).unwrap().len();
    assert!(size >= 15 << 20, "{size}");
    let run = |name: &str, target: &Target, url: &str| {
        store
            .eval_once(["step"])
            .args(target.flags())
            .args(["--push", url, "--out-link", name])
            .reporting_to(store.root().join(format!("{name}.json")))
            .run()
    };
    let silent = Web::serve(store.root().join("silent"));
    silent.spoil(".narinfo", Trouble::IsSilent);
    thread::scope(|scope| {
        let stalled = [("asked", silent.url()), ("sent", slow_store(0))].map(|(name, url)| {
            let (run, big) = (&run, &big);
            scope.spawn(move || run(name, big, &url))
        });
        // 36 seconds, in which no version before 2.34 prints anything.
        let slow = scope.spawn(|| run("slow", &big, &slow_store(450 << 10)));
        for ended in stalled {
            let ended = ended.join().unwrap();
            fails_to_push(&ended, "nothing has moved for 30 s");
            let seconds = ended.report()["seconds"]["push"].as_f64().unwrap();
            assert!((25.0..50.0).contains(&seconds), "{ended}");
            // A line of progress every ten seconds.
            assert!(
                ended.stderr.contains("eval-once: pushing to http://"),
                "{ended}"
            );
        }
        let ended = slow.join().unwrap();
        ended.exits(0);
        assert!(
            ended.report()["seconds"]["push"].as_f64().unwrap() > 31.0,
            "{ended}"
        );
    });
}

#[test]
fn what_is_no_store_or_holds_a_secret_is_refused_and_not_shown() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    let target = store.target("dep");
    for (url, why) in [
        ("local", "is no URL of a store"),
        ("local?root=/tmp/x", "is no URL of a store"),
        ("/tmp/x", "is no URL of a store"),
        ("https://user:pw@cache", "holds a secret"),
        ("https://cache?token=pw", "holds a secret"),
    ] {
        let ended = push(&store, &target, url).run();
        ended.exits(64);
        assert!(ended.stderr.contains(why), "{ended}");
        assert!(!ended.stderr.contains("pw"), "{ended}");
        assert!(!store.has(target.out()));
    }
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
        let here = ["dep", "tool"];
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
    // A store that cannot be asked is not believed to have it.
    let mut record = record;
    record["push"] = "http://127.0.0.1:1/cache".into();
    record["options"] = json!({ "download-attempts": "1" });
    let ended = store
        .eval_once(["step"])
        .env("EVAL_ONCE_STEP", record.to_string())
        .run();
    ended.exits(75).never_says("skipped");
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
