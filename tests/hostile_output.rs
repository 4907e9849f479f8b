//! Output of Nix, of builders and of expressions that is hostile, or only very long: what of it reaches a log, what it counts for, and
//! how much memory it takes.

use std::fs;

use crate::support::program::{Ended, Program};
use crate::support::recording::Pipeline;
use crate::support::stand_in::StandIns;
use crate::support::store::Store;

/// What a step or a recording may have at most, in KiB, whatever is printed: without any output it has a fifth of that.
const MEMORY_AT_MOST: u64 = 50 << 10;

/// Runs a program, and gives the most memory that it had itself when a `nix` of these names ended, in KiB.
fn peak(store: &Store, names: &[&str], program: Program) -> (Ended, u64) {
    let peaks = store.root().join("tmp/peaks");
    let script = format!(
        "\"$REAL\" \"$@\"; status=$?; grep VmHWM /proc/$PPID/status >>'{}'; exit $status",
        peaks.display()
    );
    let stand_ins = names
        .iter()
        .fold(StandIns::new(store.bin()), |stand_ins, name| {
            stand_ins.before(name, &script)
        });
    let ended = program.env("PATH", stand_ins.path(store)).run();
    let peaks = fs::read_to_string(peaks).unwrap();
    let kib = |line: &str| line.split_whitespace().nth(1)?.parse().ok();
    let most = peaks.lines().filter_map(kib).max();
    (ended, most.unwrap())
}

#[test]
fn a_trace_of_many_megabytes_is_cut_and_takes_little_memory() {
    let Some(store) = Store::new() else { return };
    // 2 to the power of 26 characters in one line.
    store.targets(
        r#"let long = builtins.foldl' (text: _: text + text) "x" (builtins.genList (x: x) 26);
           in { a = builtins.trace "before ${long}" (file "a"); b = throw "words ${long}"; c = file "c"; }"#,
    );
    let program = store.eval_once(["pipeline", "--dry-run", "--skip", "none"]);
    // The evaluator is stopped before it could say anything; these run after it.
    let (ended, most) = peak(&store, &["nix-store"], program);
    let pipeline = Pipeline::of(&ended);
    assert_eq!(pipeline.drvs().len(), 2, "{}", ended.stderr);
    assert_eq!(pipeline.broken().len(), 1);
    assert!(ended.stderr.len() < 100_000, "{}", ended.stderr.len());
    ended
        .passes_on("trace: before xxx")
        .passes_on("x… (64 MiB omitted)\n");
    ended.passes_on("evaluation error: b: words xxx");
    assert!(most < MEMORY_AT_MOST, "{most} KiB");
}

#[test]
fn a_value_of_many_megabytes_that_is_no_derivation_takes_little_memory() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"let huge = builtins.foldl' (text: _: text + text) "x" (builtins.genList (x: x) 27);
           in { inherit huge; traced = builtins.trace huge "short"; }"#,
    );
    for (attr, value) in [("huge", "\"xxx"), ("traced", "\"short\"\n")] {
        let program = store.step(["--file", "default.nix", "--attr", attr]);
        let (ended, most) = peak(&store, &["nix-instantiate"], program);
        ended.exits(65).passes_on(&format!(
            "{attr} of default.nix is no derivation, but {value}"
        ));
        assert!(ended.stderr.len() < 100_000, "{}", ended.stderr.len());
        assert!(most < MEMORY_AT_MOST, "{attr}: {most} KiB");
    }
}

#[test]
fn an_answer_of_many_megabytes_is_no_answer() {
    let Some(store) = Store::new() else { return };
    store.targets(r#"{ a = file "a"; }"#);
    let endless = "#!/bin/sh\nexec cat /dev/zero\n";
    for (program, words, limit) in [
        (
            "nix-instantiate",
            &["step", "--attr", "a", "--file", "default.nix"][..],
            "64 MiB",
        ),
        ("buildkite-agent", &["summary"], "16 MiB"),
    ] {
        let stand_ins = StandIns::new(store.bin()).instead(program, endless);
        let ended = store
            .eval_once(words)
            .env("PATH", stand_ins.path(&store))
            .env("BUILDKITE", "true")
            .env("BUILDKITE_JOB_ID", "job")
            .env("BUILDKITE_BUILD_ID", "build")
            .env("BUILDKITE_STEP_ID", "step")
            .env("BUILDKITE_AGENT_ACCESS_TOKEN", "token")
            .run();
        ended.exits(75).passes_on(&format!(
            "`{program}` prints more than {limit} on standard output"
        ));
    }
}

#[test]
fn a_builder_that_prints_megabytes_in_one_line_takes_little_memory() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"{ long = build "long" "i=x; n=0; while [ $n -lt 18 ]; do i=$i$i; n=$((n+1)); done
             n=0; while [ $n -lt 200 ]; do printf %s $i; n=$((n+1)); done; echo; echo after; echo > $out"; }"#,
    );
    for form in ["pretty", "raw"] {
        let target = store.target("long");
        let program = store.step(target.flags()).args(["--log", form]);
        let (ended, most) = peak(&store, &["nix-store"], program);
        ended.exits(0).counts(1, 0);
        let name = if form == "pretty" { "long> " } else { "" };
        ended
            .passes_on(&format!("\n{name}xxx"))
            .passes_on(&format!("\n{name}after\n"));
        ended.passes_on("x… (50 MiB omitted)\n");
        assert!(ended.stderr.len() < 100_000, "{}", ended.stderr.len());
        assert!(most < MEMORY_AT_MOST, "{form}: {most} KiB");
        store.delete([target.out()]);
    }
}

#[test]
fn what_a_builder_prints_is_no_build_in_any_form_of_the_log() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"{ liar = build "liar" "n=100000; while [ $n -lt 150000 ]; do
               echo \"building '/nix/store/00000000000000000000000000$n-x.drv'...\"; n=$((n+1)); done
             echo \"copying path '/nix/store/00000000000000000000000000000000-x' from 'https://x'...\"; echo > $out"; }"#,
    );
    for form in ["pretty", "raw"] {
        let target = store.target("liar");
        let program = store.step(target.flags()).args(["--log", form]);
        let (ended, most) = peak(&store, &["nix-store"], program);
        ended.exits(0).counts(1, 0);
        assert!(most < MEMORY_AT_MOST, "{form}: {most} KiB");
        store.delete([target.out()]);
    }
}

#[test]
fn a_name_of_megabytes_is_cut_where_it_is_shown_and_is_no_other_target() {
    let Some(store) = Store::new() else { return };
    // A MiB, and what is more than a line of the walker may have.
    for doublings in [20, 22] {
        store.targets(&format!(
            r#"let long = builtins.foldl' (text: _: text + text) "x" (builtins.genList (x: x) {doublings});
               in {{ ${{long}} = file "a"; "b${{long}}" = throw "its words"; c = file "c"; }}"#
        ));
        let ended = store
            .eval_once(["pipeline", "--dry-run", "--skip", "none"])
            .run();
        ended.exits(0);
        ended.passes_on("xxx…: its words\n");
        ended.passes_on("more than an agent can pass to a job");
        ended.passes_on("1 target (1 to build)");
        assert!(ended.stderr.len() < 10_000, "{}", ended.stderr.len());
    }
}
