//! The output of real Nix in a job's log: for people, and in Nix's own text.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;

use eval_once::nix::version;
use serde_json::json;
use unix::fcntl::OFlag;
use unix::sys::signal::{Signal, kill};
use unix::unistd::Pid;

use crate::support::processes::children;
use crate::support::program::Ended;
use crate::support::store::Store;
use crate::support::target::fifo;
use crate::support::terminal::Terminal;
use crate::support::until;

/// Its lines of standard error.
fn lines(ended: &Ended) -> Vec<&str> {
    ended.stderr.lines().collect()
}

/// The text between a heading and the next one, or the end.
fn group<'a>(ended: &'a Ended, heading: &str) -> &'a str {
    let (_, after) = ended
        .stderr
        .split_once(&format!("--- eval-once: {heading}"))
        .unwrap_or_else(|| panic!("no group {heading:?}: {ended}"));
    after.split("\n--- ").next().unwrap()
}

#[test]
fn each_build_has_a_line_when_it_begins_and_ends_and_its_lines_stand_behind_its_name() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"rec {
            one = build "one-1.0" "echo hello; echo > $out";
            two = build "two" "echo \"  indented\"; printf 'no end'; echo > $out";
            top = build "top" "echo ${one} ${two} > $out";
        }"#,
    );
    let target = store.target("top");
    let ended = store.step(target.flags()).run();
    ended.takes("realised", "drv-valid").counts(3, 0);
    let shown = group(&ended, "building top");
    for (name, printed) in [
        ("one-1.0", "hello"),
        ("two", "  indented"),
        ("two", "no end"),
    ] {
        let position = |line: &str| {
            shown
                .lines()
                .position(|it| it.starts_with(&format!("{name}> {line}")))
                .unwrap_or_else(|| panic!("no {line:?} of {name}: {ended}"))
        };
        assert!(position("building '") < position(printed));
        assert!(position(printed) < position("built in "));
    }
    ended.passes_on("these 3 derivations will be built:\n");
    ended.never_says("@nix").never_says("failed");
}

#[test]
fn what_comes_from_a_cache_is_summed_up() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"rec { one = file "one"; two = build "two" "echo ${one} > $out"; three = build "three" "echo ${two} > $out"; }"#,
    );
    let target = store.target("three");
    store.build(&target.drv);
    let cache = store.cache("cache", [target.out()]);
    store.delete([target.out()]);
    store.collect();
    let target = store.target("three");
    let ended = store
        .step(target.flags())
        .args(["--option", "substituters", &cache])
        .run();
    ended.exits(0).counts(0, 3);
    ended.never_says("copying path");
    let summed: Vec<&str> = lines(&ended)
        .into_iter()
        .filter(|line| line.starts_with("eval-once: copied "))
        .collect();
    // Not each version of Nix says how large so small a path is.
    let is_expected = |line: &str| {
        let sizes = ["0 MiB", "0.1 MiB"].iter();
        sizes
            .map(|size| format!("eval-once: copied 3 paths ({size}) from {cache} in "))
            .any(|expected| line.starts_with(&expected))
    };
    assert!(
        matches!(summed.as_slice(), [line] if is_expected(line)),
        "{ended}"
    );
}

#[test]
fn a_step_that_has_nothing_to_do_prints_one_line() {
    let Some(store) = Store::new() else { return };
    store.targets("{ hello = file \"hello\"; }");
    let target = store.target("hello");
    store.build(&target.drv);
    let ended = store.step(target.flags()).run();
    ended.takes("realised", "drv-valid").counts(0, 0);
    assert_eq!(lines(&ended).len(), 1, "{ended}");
}

#[test]
fn raw_is_the_text_of_nix_line_by_line_and_opens_no_group() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"{
            good = build "good" "printf 'tab\\tred \\033[31mred\\033[0m \\377 \\r over\\n+++ open\\n'; echo > $out";
            bad = build "bad" "echo no; exit 3";
        }"#,
    );
    for name in ["good", "bad"] {
        let target = store.target(name);
        let bare = store
            .program("nix-store")
            .args(["--realise", &target.drv, "--add-root", "bare"])
            .envs(store.env())
            .bytes();
        if name == "good" {
            store.delete([target.out()]);
        }
        let ours = store.step(target.flags()).args(["--log", "raw"]).bytes();
        let without_ours: Vec<&[u8]> = ours
            .split_inclusive(|byte| *byte == b'\n')
            .take_while(|line| !line.starts_with(b"--- eval-once: "))
            .filter(|line| !line.starts_with(b"eval-once: "))
            .collect();
        // Without colours, as the bare command prints it to a pipe.
        let bare = String::from_utf8_lossy(&bare).replace("\n+++ open", "\n +++ open");
        assert_eq!(bare.contains("\n +++ open"), name == "good");
        assert_eq!(String::from_utf8_lossy(&without_ours.concat()), bare);
    }
}

#[test]
fn the_log_of_a_failed_step_ends_in_an_open_group_that_says_what_failed_where_and_why() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"rec {
            lib = build "lib-1.0" "i=0; while [ $i -lt 40 ]; do echo line $i; i=$((i+1)); done; exit 3";
            mid = build "mid" "echo ${lib} > $out";
            app = build "app" "echo ${mid} > $out";
        }"#,
    );
    let target = store.target("app");
    let lib = store.target("lib");
    for form in ["pretty", "raw"] {
        let ended = store
            .step(target.flags())
            .args(["--log", form, "--file", "default.nix", "--attr", "app"])
            .run();
        ended.fails(100, "build");
        let shown = group(&ended, "lib-1.0 failed (build, exit status 100)\n");
        assert!(shown.starts_with("^^^ +++\n"), "{ended}");
        for part in [
            "target        app of default.nix\n".to_owned(),
            format!("derivation    {}\n", lib.drv),
            format!("whole log     nix-store --read-log {}\n", lib.drv),
            "reproduce     nix-build default.nix -A app --no-out-link\n".to_owned(),
            "its builder ended with status 3".to_owned(),
        ] {
            assert!(shown.contains(&part), "{part:?} is missing: {ended}");
        }
        // Each line once: behind the builder's name where it is printed, or here where Nix's own text says no names.
        assert_eq!(ended.stderr.matches("lib-1.0> line 15\n").count(), 1);
        assert_eq!(ended.stderr.matches("lib-1.0> line 39\n").count(), 1);
        assert_eq!(shown.contains("lib-1.0> line"), form == "raw", "{ended}");
        assert!(!shown.contains("line 14\n"), "{ended}");
        // The group that the end of the log stands in is open.
        let opened = ended.stderr.matches("^^^ +++\n").count();
        assert_eq!(opened, if form == "pretty" { 2 } else { 1 }, "{ended}");
        let failure = &ended.report()["failure"];
        assert_eq!(failure["drv"], lib.drv.as_str());
        let log: Vec<String> = (15..40).map(|n| format!("line {n}")).collect();
        assert_eq!(failure["log"], log.join("\n"));
    }
}

#[test]
fn the_end_of_a_log_is_shown_again_where_other_lines_stand_below_it() {
    let Some(store) = Store::new() else { return };
    let pipe = store.work().join("pipe");
    fifo(&pipe);
    store.targets(&format!(
        r#"rec {{
            bad = build "bad" "echo oops; exit 3";
            other = build "other" "read x < {}; echo other; echo > $out";
            both = build "both" "echo ${{bad}} ${{other}} > $out";
        }}"#,
        pipe.display()
    ));
    let target = store.target("both");
    let running = store
        .step(target.flags())
        .args(["--option", "max-jobs", "2"])
        .args(["--option", "keep-going", "true"])
        .start();
    running.until_it_says("bad> oops\n");
    OpenOptions::new()
        .write(true)
        .open(&pipe)
        .unwrap()
        .write_all(b"go\n")
        .unwrap();
    let ended = running.end();
    ended.fails(100, "build");
    let shown = group(&ended, "bad failed (build, exit status 100)\n");
    assert!(
        shown.contains("the end of its log:\nbad> oops\n"),
        "{ended}"
    );
    assert_eq!(ended.stderr.matches("^^^ +++\n").count(), 1, "{ended}");
}

/// Its log is kept as the structured log of a Nix: what it is for Nix to read is not for people.
#[test]
fn the_end_of_the_log_of_a_builder_of_nix_s_own_is_text_for_people() {
    let Some(store) = Store::new() else { return };
    let file = store.root().join("tmp/source");
    fs::write(&file, "the source").unwrap();
    let expression = r#"{ changed = fetch "file:///FILE"; gone = fetch "file:///FILE-is-gone"; }"#
        .replace("/FILE", file.to_str().unwrap());
    let fetch = r#"
        fetch = url: derivation {
          name = "source.tar.gz"; system = "builtin"; builder = "builtin:fetchurl"; inherit url;
          outputHashMode = "flat"; outputHashAlgo = "sha256"; unpack = false; executable = false;
          outputHash = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        };"#;
    store.write("fetch.nix", &format!("let {fetch} in {expression}"));
    for (attr, status, class) in [("changed", 102, "hash"), ("gone", 100, "build")] {
        for form in ["pretty", "raw"] {
            let ended = store
                .step(["--file", "fetch.nix", "--attr", attr, "--log", form])
                .run();
            ended.fails(status, class);
            let shown = group(&ended, "source.tar.gz failed");
            assert!(!shown.contains("@nix"), "{ended}");
            let log = ended.report()["failure"]["log"].as_str();
            assert!(!log.unwrap_or_default().contains("@nix"), "{ended}");
        }
    }
}

#[test]
fn what_a_builder_prints_opens_no_group_and_draws_nothing() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"{
            bad = build "bad" "printf '+++ open\\n--- fold\\n^^^ +++\\n\\033]1339;url=http://x;content=click\\007\\033]1338;url=x\\033\\\\\\033[2J\\033[31mred\\n'
              printf '%s\\n' '@nix {\"action\":\"msg\",\"level\":0,\"msg\":\"+++ said\\u001b]1339;url=http://x\\u0007\"}'
              printf '%s\\n' '@nix {\"action\":\"start\",\"id\":1,\"level\":0,\"type\":101,\"parent\":0,\"fields\":[\"x\"],\"text\":\"--- begun\"}'
              exit 1";
        }"#,
    );
    let target = store.target("bad");
    let ended = store.step(target.flags()).run();
    ended.fails(100, "build");
    for line in lines(&ended) {
        let ours = line.starts_with("--- eval-once: ") || line == "^^^ +++";
        let marks = ["+++", "---", "^^^", "~~~"];
        assert!(
            ours || !marks.iter().any(|mark| line.starts_with(mark)),
            "{line:?}: {ended}"
        );
    }
    assert!(!ended.stderr.contains('\u{1b}'), "{ended:?}");
    ended.passes_on("bad> +++ open\n").passes_on("bad> red\n");
    // What it prints behind `@nix` becomes a message of Nix's own.
    ended
        .passes_on("\n +++ said\n")
        .passes_on("\n --- begun...\n");
    // Two are ours, for the build's group and the failure's; the others are the builder's, behind its name.
    assert_eq!(ended.stderr.matches("\n^^^ +++").count(), 2, "{ended}");
}

#[test]
fn a_long_build_shows_its_progress_but_not_more_than_every_ten_seconds() {
    let Some(store) = Store::new() else { return };
    let pipe = store.work().join("pipe");
    fifo(&pipe);
    store.targets(&format!(
        r#"rec {{
            quick = file "quick";
            slow = build "slow" "echo ${{quick}}; read x < {}; echo > $out";
        }}"#,
        pipe.display()
    ));
    let target = store.target("slow");
    let running = store.step(target.flags()).start();
    running.until_it_says("eval-once: 1/2 built, 1 running (slow for ");
    OpenOptions::new()
        .write(true)
        .open(&pipe)
        .unwrap()
        .write_all(b"go\n")
        .unwrap();
    let ended = running.end();
    ended.exits(0);
    assert_eq!(ended.stderr.matches("1/2 built").count(), 1, "{ended}");
}

#[test]
fn a_person_s_terminal_has_one_line_that_changes_and_colours() {
    let Some(store) = Store::new() else { return };
    let pipe = store.work().join("pipe");
    fifo(&pipe);
    store.targets(&format!(
        r#"{{ slow = build "slow" "printf '\\033[31mred\\n'; read x < {}; echo after; echo > $out"; }}"#,
        pipe.display()
    ));
    let target = store.target("slow");
    let (terminal, mut child) = Terminal::run(&store.step(target.flags()));
    until("the line has changed", || {
        terminal.shows("eval-once: 0/1 built, 1 running (slow for 0 s)\r\u{1b}[K")
    });
    OpenOptions::new()
        .write(true)
        .open(&pipe)
        .unwrap()
        .write_all(b"go\n")
        .unwrap();
    assert!(child.wait().unwrap().success());
    let text = terminal.text();
    assert!(
        text.contains("slow> \u{1b}[31mred\u{1b}[0m\r\n"),
        "{text:?}"
    );
    // The line is removed before another is printed.
    assert!(text.contains("\r\u{1b}[Kslow> after\r\n"), "{text:?}");
}

#[test]
fn the_line_on_a_terminal_is_removed_when_nix_is_killed() {
    let Some(store) = Store::new() else { return };
    let pipe = store.work().join("pipe");
    fifo(&pipe);
    store.targets(&format!(
        "{{ slow = build \"slow\" \"read x < {}; exit 1\"; }}",
        pipe.display()
    ));
    let target = store.target("slow");
    let (terminal, mut child) = Terminal::run(&store.step(target.flags()));
    until("the line stands there", || {
        terminal.shows("eval-once: 0/1 built, 1 running (slow for ")
    });
    let step = Pid::from_raw(child.id().try_into().unwrap());
    let nix = children(step)
        .into_iter()
        .find(|child| child.command.contains("--realise"));
    kill(nix.unwrap().pid, Signal::SIGKILL).unwrap();
    // Where its builder outlives it, it holds its pipes, and reads this one. (On a busy machine it may be gone before us.)
    let _ = OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(&pipe);
    assert_eq!(child.wait().unwrap().code(), Some(137));
    let text = terminal.text();
    assert!(
        text.contains("\r\u{1b}[Keval-once: \u{1b}[31;1mfailed\u{1b}[0m (signal) in "),
        "{text:?}"
    );
}

#[test]
fn an_evaluation_that_needs_a_builder_shows_its_lines_and_passes_traces_on() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"{
            a = builtins.trace "+1" (build "a" "echo ${import (build "expression" "echo made; echo '\"x\"' > $out")} > $out");
        }"#,
    );
    let ended = store.step(["--attr", "a"]).run();
    ended.takes("evaluated", "not-recorded").counts(2, 0);
    let shown = group(&ended, "evaluating a of default.nix\n");
    assert!(shown.contains("trace: +1\n"), "{ended}");
    assert!(shown.contains("expression> made\n"), "{ended}");
    assert!(shown.contains("expression> built in "), "{ended}");
}

// --- Hints -------------------------------------------------------------------------------------------------------------

fn hints(ended: &Ended) -> Vec<String> {
    let hints = ended.report().get("hints").cloned();
    serde_json::from_value(hints.unwrap_or_else(|| json!([]))).unwrap()
}

#[test]
fn a_step_that_went_well_has_no_hints() {
    let Some(store) = Store::new() else { return };
    store.targets("{ hello = file \"hello\"; }");
    let ended = store.step(store.target("hello").flags()).run();
    assert_eq!(hints(ended.takes("realised", "drv-valid")), [""; 0]);
}

#[test]
fn a_collector_that_runs_by_itself_is_a_hint_before_nix_2_35() {
    let Some(store) = Store::new() else { return };
    store.targets("{ hello = file \"hello\"; }");
    store.configure("min-free = 1");
    let ended = store.step(store.target("hello").flags()).run();
    let version = version::of_program(&store.nix("nix-store", ["--version"])).unwrap();
    let before = version::numbers(&version).unwrap() < (2, 35);
    let hints = hints(ended.takes("realised", "drv-valid"));
    assert_eq!(hints.len(), usize::from(before), "{ended}");
    if before {
        assert!(
            hints[0].starts_with("`min-free` is set, and this is Nix 2."),
            "{hints:?}"
        );
    }
}

#[test]
fn drift_and_a_missing_root_are_hints_that_say_what_to_do() {
    let Some(store) = Store::new() else { return };
    store.targets("{ hello = file \"hello\"; }");
    let target = store.target("hello");
    store.collect();
    store.targets("{ hello = file \"hello-2\"; }");
    let ended = store
        .step(target.flags())
        .args(["--file", "default.nix", "--attr", "hello"])
        .run();
    let hints = hints(ended.takes("evaluated", "drv-missing"));
    assert!(hints[0].starts_with("drift: "), "{hints:?}");
    assert!(hints[1].contains("the step has no share"), "{hints:?}");
    assert!(hints[1].contains("keep-days"), "{hints:?}");
    assert_eq!(hints.len(), 2);
}

#[test]
fn a_disk_that_is_nearly_full_is_a_hint() {
    let Some(store) = Store::without_daemon() else {
        return;
    };
    store.targets("{ hello = file \"hello\"; }");
    let target = store.target("hello");
    let folder = store.folder();
    let folder = folder.display();
    let mount = format!(
        "cp -a {folder} {folder}.aside && mount -t tmpfs -o size=50m eo {folder} && cp -a {folder}.aside/. {folder}"
    );
    let Some(step) = store.step_with_mounts(&mount, target.flags()) else {
        return;
    };
    let ended = step.run();
    let hints = hints(ended.takes("realised", "drv-valid"));
    assert_eq!(hints.len(), 1, "{ended}");
    assert!(hints[0].contains("nearly full, with 4"), "{hints:?}");
}
