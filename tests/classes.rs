//! What a failure means, for every reader: a step and a recording give the same class for the same words, ending and phase;
//! and real Nix, that is killed, limited, left without a server, or refuses, is judged alike by both.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use eval_once::command_line::Ending;
use eval_once::exit::Class;
use eval_once::nix::{NixOutput, Phase, class};
use serde_json::json;
use unix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::failures::ordinary_user;
use super::support::{
    collector::collecting,
    daemon::{Daemon, is_for_all},
    processes::{Process, children},
    program::{Ended, Program},
    recording::Pipeline,
    stand_in::{StandIns, dies, write_program},
    store::Store,
    target::fifo,
    tool, until,
};

// ---- the table

/// Who speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speaker {
    Nix,
    /// The expression, by `throw`, of a Nix that says so (from 2.2x on).
    Expression,
}
use Speaker::{Expression, Nix};

const DRV: &str = "/nix/store/w11m5yi1fzmzl7ri7y308xcnn9jyzv3r-a.drv";

/// Sentences of Nix's, measured on 2.8.0, 2.26.3 and 2.34.8; and their class while something is evaluated, and while something is
/// built and nothing has begun. `DRV` stands for a derivation.
const SENTENCES: [(Speaker, &str, Class, Class); 62] = {
    use Class::{Build, Config, Evaluation, Infrastructure};
    [
        // A store that the host's settings name: all; 2.8; 2.34.
        (
            Nix,
            "operation 'addTextToStore' is not supported by store 'dummy'",
            Infrastructure,
            Infrastructure,
        ),
        (
            Nix,
            "don't know how to open Nix store 'nonsense://x'",
            Infrastructure,
            Infrastructure,
        ),
        (
            Nix,
            "Unable to build with a primary store that isn't a local store; either pass a different '--store' or enable remote builds.",
            Infrastructure,
            Infrastructure,
        ),
        (
            Nix,
            "creating a garbage collector root (\"/s/x/root\") in the Nix store is forbidden (are you running nix-build inside the store?)",
            Infrastructure,
            Infrastructure,
        ),
        // Settings that Nix refuses.
        (
            Nix,
            "illegal configuration line 'x' in 'NIX_CONFIG'",
            Config,
            Config,
        ),
        (
            Nix,
            "configuration setting 'max-jobs' should be 'auto' or an integer",
            Config,
            Config,
        ),
        (
            Nix,
            "the group 'x' specified in 'build-users-group' does not exist",
            Config,
            Config,
        ),
        (
            Nix,
            "the build users group 'x' has no members",
            Config,
            Config,
        ),
        // A daemon that is gone: 2.8; 2.26; 2.34.
        (
            Nix,
            "unexpected end-of-file",
            Infrastructure,
            Infrastructure,
        ),
        (
            Nix,
            "Nix daemon disconnected unexpectedly (maybe it crashed?)",
            Infrastructure,
            Infrastructure,
        ),
        (
            Nix,
            "reading from file: Connection reset by peer",
            Infrastructure,
            Infrastructure,
        ),
        (
            Nix,
            "writing to file: Broken pipe",
            Infrastructure,
            Infrastructure,
        ),
        (
            Nix,
            "read of 32768 bytes: Connection reset by peer",
            Infrastructure,
            Infrastructure,
        ),
        (
            Nix,
            "cannot connect to socket at '/nix/var/nix/daemon-socket/socket': Connection refused",
            Infrastructure,
            Infrastructure,
        ),
        (
            Nix,
            "cannot open connection to remote store 'daemon': error: reading from file: Connection reset by peer",
            Infrastructure,
            Infrastructure,
        ),
        // Signals.
        (
            Nix,
            "interrupted by the user",
            Infrastructure,
            Infrastructure,
        ),
        (
            Nix,
            "download of 'https://x/y' was interrupted",
            Infrastructure,
            Infrastructure,
        ),
        // Limits.
        (
            Nix,
            "unable to fork: Resource temporarily unavailable",
            Infrastructure,
            Infrastructure,
        ),
        (
            Nix,
            "Resource temporarily unavailable",
            Infrastructure,
            Infrastructure,
        ),
        (
            Nix,
            "opening lock file \"/nix/var/nix/gc.lock\": Too many open files",
            Infrastructure,
            Infrastructure,
        ),
        (
            Nix,
            "acquiring/releasing lock: Bad file descriptor",
            Infrastructure,
            Infrastructure,
        ),
        (
            Nix,
            "opening file '/x/ci.nix': Too many open files",
            Infrastructure,
            Infrastructure,
        ),
        (
            Nix,
            "mmap: Cannot allocate memory",
            Infrastructure,
            Infrastructure,
        ),
        (Nix, "out of memory", Infrastructure, Infrastructure),
        (Nix, "std::bad_alloc", Infrastructure, Infrastructure),
        // The disk.
        (
            Nix,
            "writing to file: No space left on device",
            Infrastructure,
            Infrastructure,
        ),
        (
            Nix,
            "executing SQLite statement 'insert into ValidPaths': database or disk is full, database or disk is full (in '/nix/var/nix/db/db.sqlite')",
            Infrastructure,
            Infrastructure,
        ),
        (
            Nix,
            "SQLite database '/nix/var/nix/db/db.sqlite' is busy",
            Infrastructure,
            Infrastructure,
        ),
        (
            Nix,
            "reading from file: Input/output error",
            Infrastructure,
            Infrastructure,
        ),
        (
            Nix,
            "creating directory '/nonexistent/nix-build-a.drv-0': No such file or directory",
            Infrastructure,
            Infrastructure,
        ),
        // The network.
        (
            Nix,
            "unable to download 'https://x/y': Couldn't resolve host name (6)",
            Infrastructure,
            Infrastructure,
        ),
        (
            Nix,
            "Failed to open archive (Source threw exception: error: unable to download 'http://x/y': Could not connect to server (7) Failed to connect to x port 1 after 0 ms: Could not connect to server)",
            Infrastructure,
            Infrastructure,
        ),
        (
            Nix,
            "unable to download 'https://x/y': HTTP error 503",
            Infrastructure,
            Infrastructure,
        ),
        (
            Nix,
            "unable to download 'https://x/y': HTTP error 404 ('Not Found')\n\nresponse body:\n\n<html>",
            Evaluation,
            Infrastructure,
        ),
        (
            Nix,
            "unable to download 'https://x/y': HTTP error 403\n\nresponse body:\n\n{\"message\":\"API rate limit exceeded\"}",
            Infrastructure,
            Infrastructure,
        ),
        // Files of the user's: 2.8 and 2.26; 2.26 and 2.34.
        (
            Nix,
            "opening file '/x/ci.nix': No such file or directory",
            Evaluation,
            Infrastructure,
        ),
        (
            Nix,
            "getting status of '/src/missing': No such file or directory",
            Evaluation,
            Infrastructure,
        ),
        (
            Nix,
            "path '/x/ci.nix' does not exist",
            Evaluation,
            Infrastructure,
        ),
        (
            Nix,
            "reading from file '/tmp': Is a directory",
            Evaluation,
            Infrastructure,
        ),
        (
            Nix,
            "read of 4096 bytes: Is a directory",
            Evaluation,
            Infrastructure,
        ),
        // The expression.
        (Nix, "attribute 'nope' missing", Evaluation, Infrastructure),
        (
            Nix,
            "infinite recursion encountered",
            Evaluation,
            Infrastructure,
        ),
        (
            Nix,
            "stack overflow (possible infinite recursion)",
            Evaluation,
            Infrastructure,
        ),
        (
            Nix,
            "assertion '(1 == 2)' failed",
            Evaluation,
            Infrastructure,
        ),
        (
            Nix,
            "evaluation aborted with the following error message: 'x: Broken pipe'",
            Evaluation,
            Infrastructure,
        ),
        (
            Expression,
            "disk: No space left on device",
            Evaluation,
            Infrastructure,
        ),
        (
            Expression,
            "reading from file: Connection reset by peer",
            Evaluation,
            Infrastructure,
        ),
        (
            Expression,
            "unexpected end-of-file",
            Evaluation,
            Infrastructure,
        ),
        (
            Expression,
            "builder for 'DRV' failed with exit code 1",
            Evaluation,
            Infrastructure,
        ),
        (
            Expression,
            "a\nerror: interrupted by the user",
            Evaluation,
            Infrastructure,
        ),
        // A builder, which an evaluation may need.
        (
            Nix,
            "builder for 'DRV' failed with exit code 1",
            Build,
            Build,
        ),
        (
            Nix,
            "Cannot build 'DRV'.\nReason: builder failed with exit code 1.",
            Build,
            Build,
        ),
        // Refusals for good.
        (
            Nix,
            "store path 'w11m5yi1fzmzl7ri7y308xcnn9jyzv3r-a' is not a valid derivation path",
            Evaluation,
            Build,
        ),
        (
            Nix,
            "derivation 'DRV' has '__noChroot' set, but that's not allowed when 'sandbox' is 'true'",
            Evaluation,
            Build,
        ),
        (
            Nix,
            "odd number of tokens in 'exportReferencesGraph': 'a'",
            Evaluation,
            Build,
        ),
        (
            Nix,
            "invalid file name '../a' in 'exportReferencesGraph'",
            Evaluation,
            Build,
        ),
        (
            Nix,
            "fixed output derivation 'a' is not allowed to refer to other store paths.\nYou may need to use the 'unsafeDiscardReferences' derivation attribute, see the manual for more details.",
            Evaluation,
            Build,
        ),
        (
            Nix,
            "experimental Nix feature 'ca-derivations' is disabled; add '--extra-experimental-features ca-derivations' to enable it",
            Evaluation,
            Build,
        ),
        (
            Nix,
            "pure derivation 'DRV' depends on impure derivation 'DRV'",
            Evaluation,
            Build,
        ),
        (
            Nix,
            "cannot process __json attribute of 'p9fgni78fg5zp7wg2gczk5lkbc2dffjp-a.drv': [json.exception.parse_error.101] parse error",
            Evaluation,
            Build,
        ),
        (
            Nix,
            "output 'out' of derivation 'DRV' has no store path mapped to it",
            Evaluation,
            Build,
        ),
        (
            Nix,
            "derivation contains an illegal reference specifier 'nope'",
            Evaluation,
            Build,
        ),
    ]
};

/// The ways in which the Nixes print a sentence: the text, as a recording hears it (2.8; later ones, with the way there), and the
/// structured log, as a step hears it.
fn forms(speaker: Speaker, text: &str) -> Vec<Vec<u8>> {
    let indented = text.replace('\n', "\n       ");
    let builtin = match speaker {
        Nix => "derivationStrict",
        Expression => "throw",
    };
    let old = format!("error: {indented}");
    let new = format!(
        "error:\n       … while calling the '{builtin}' builtin\n         at /x/ci.nix:3:8:\n            2| let\n            3|   x = y;\n             |       ^\n\n       error: {indented}"
    );
    let mut forms = Vec::new();
    for printed in [old, new] {
        // An expression's words are known only where Nix says how it came there.
        if speaker == Expression && printed.starts_with("error: ") {
            continue;
        }
        let structured = json!({ "action": "msg", "level": 0, "msg": printed, "raw_msg": text });
        forms.push(format!("{printed}\n").into_bytes());
        forms.push(format!("trace: error: x\n{printed}\n").into_bytes());
        forms.push(format!("@nix {structured}\n").into_bytes());
    }
    forms
}

#[test]
fn a_sentence_has_one_class_in_a_step_and_in_a_recording_whatever_its_form() {
    for (speaker, sentence, evaluating, building) in SENTENCES {
        let text = sentence.replace("DRV", DRV);
        for form in forms(speaker, &text) {
            let heard = NixOutput::of(&form);
            let printed = String::from_utf8_lossy(&form);
            let of = |phase, ending| class::of(phase, ending, &heard);
            for phase in [Phase::Fetching, Phase::Evaluating] {
                assert_eq!(of(phase, Ending::Exited(1)), evaluating, "{printed}");
                for signal in [1, 2, 3, 13, 15, 24, 25] {
                    let found = of(phase, Ending::Killed(signal));
                    assert_eq!(found, Class::Infrastructure, "{signal}: {printed}");
                }
                for signal in [6, 9] {
                    let found = of(phase, Ending::Killed(signal));
                    assert_eq!(found, Class::Signal(signal), "{printed}");
                }
                // A Nix that dies as it ends has said why before.
                let expected = match evaluating {
                    Class::Infrastructure => Class::Infrastructure,
                    _ => Class::Signal(11),
                };
                assert_eq!(of(phase, Ending::Killed(11)), expected, "{printed}");
            }
            // What an expression says is not said while something is built.
            if speaker == Nix {
                let expected = building;
                assert_eq!(
                    of(Phase::Building, Ending::Exited(1)),
                    expected,
                    "{printed}"
                );
                assert_eq!(of(Phase::Copying, Ending::Exited(1)), Class::Infrastructure);
                assert_eq!(of(Phase::Building, Ending::Killed(9)), Class::Signal(9));
            }
        }
    }
}

#[test]
fn after_a_build_has_begun_it_is_the_builds_unless_it_is_known_not_to_be() {
    let begun = format!(
        "@nix {{\"action\":\"start\",\"id\":1,\"type\":105,\"fields\":[\"{DRV}\",\"\",1,1]}}\n"
    );
    let of = |text: &str, ending| {
        let said = format!("{begun}error: {text}\n");
        class::of(Phase::Building, ending, &NixOutput::of(said.as_bytes()))
    };
    let exited = Ending::Exited(1);
    assert_eq!(of("something nobody knows", exited), Class::Build);
    assert_eq!(of("unexpected end-of-file", exited), Class::Infrastructure);
    assert_eq!(of("interrupted by the user", exited), Class::Infrastructure);
    // A hook of the host's: `post-build-hook` or `pre-build-hook`; `build-hook`.
    for text in [
        "program '/etc/hook' failed with exit code 1",
        "program \"/etc/hook\" failed due to signal 9 (Killed)",
        "unexpected EOF reading a line",
    ] {
        assert_eq!(of(text, exited), Class::Infrastructure, "{text}");
    }
    let asserts =
        "nix-store: src/libstore/store-api.cc:188: f(x): Assertion `references.empty()' failed.\n";
    let other =
        "nix-store: src/libstore/build/goal.cc:40: f(x): Assertion `waiters.empty()' failed.\n";
    for (said, expected) in [
        (asserts, Class::Build),
        (other, Class::Signal(6)),
        ("", Class::Signal(6)),
    ] {
        let heard = NixOutput::of(format!("{begun}{said}").as_bytes());
        let aborted = class::of(Phase::Building, Ending::Killed(6), &heard);
        assert_eq!(aborted, expected, "{said}");
    }
    let silent = class::of(Phase::Building, exited, &NixOutput::of(begun.as_bytes()));
    assert_eq!(silent, Class::Infrastructure);
    let silent = class::of(
        Phase::Evaluating,
        exited,
        &NixOutput::of(b"GC Warning: x\n"),
    );
    assert_eq!(silent, Class::Infrastructure);
}

// ---- real Nix

fn record(store: &Store) -> Program {
    store.eval_once([
        "pipeline",
        "--dry-run",
        "--file",
        "default.nix",
        "--workers",
        "1",
    ])
}

fn step(store: &Store, attribute: &str) -> Program {
    store.step(["--file", "default.nix", "--attr", attribute])
}

#[track_caller]
fn mentions(ended: &Ended, part: &str) {
    assert!(ended.stderr.contains(part), "not said: {part}: {ended}");
}

/// Nothing of `ended` is an error step: what failed was no attribute's fault.
#[track_caller]
fn records_all(ended: &Ended, count: usize) {
    let pipeline = Pipeline::of(ended);
    assert_eq!(pipeline.broken(), Vec::<String>::new(), "{ended}");
    assert_eq!(pipeline.drvs().len(), count, "{ended}");
}

/// An expression of which `b` waits, once, in the middle of its evaluation, until [`Gate::open`].
struct Gate {
    file: PathBuf,
}

impl Gate {
    fn new(store: &Store) -> Self {
        Self::of(store, |gate| {
            format!(
                "{{ a = file \"a\"; b = builtins.seq (file \"early\").drvPath (with' {{ gate = {gate}; }} \"b\" \"echo > $out\"); c = file \"c\"; }}"
            )
        })
    }

    /// The targets of which one reads the gate by this expression.
    fn of(store: &Store, targets: impl FnOnce(&str) -> String) -> Self {
        let file = store.root().join("gate");
        fifo(&file);
        store.targets(&targets(&format!(
            "builtins.readFile (builtins.fetchurl \"file://{}\")",
            file.display()
        )));
        Self { file }
    }

    /// Waits until it is reached; does something just then; and lets what waits continue. Another evaluation does not wait.
    fn open(self, then: impl FnOnce()) {
        let mut pipe = fs::File::options().write(true).open(&self.file).unwrap();
        let draft = self.file.with_extension("draft");
        fs::write(&draft, "hi").unwrap();
        fs::rename(draft, &self.file).unwrap();
        then();
        // Who was killed reads it no more.
        let _ = pipe.write_all(b"hi");
    }
}

/// The Nix that evaluates for this process.
fn nix_of(parent: Pid) -> Process {
    let nix = || {
        children(parent).into_iter().find(|child| {
            child.command.contains("nix-instantiate") || child.command.contains(" repl ")
        })
    };
    until("its Nix runs", || nix().is_some());
    nix().unwrap()
}

#[test]
fn a_signal_to_nix_alone_is_no_fault_of_the_expression_and_it_is_evaluated_once_more() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let Some(store) = Store::new() else { return };
        let gate = Gate::new(&store);
        let running = step(&store, "b").start();
        gate.open(|| kill(nix_of(running.pid()).pid, signal).unwrap());
        running.end().exits(0);

        let Some(store) = Store::new() else { return };
        let gate = Gate::new(&store);
        let running = record(&store).start();
        gate.open(|| kill(nix_of(running.pid()).pid, signal).unwrap());
        records_all(&running.end(), 3);
    }
}

/// What has a hash and is valid already gets no temporary root. Of files below it each version of Nix says in its own way that they are missing.
#[test]
fn a_source_that_the_collector_takes_while_it_is_evaluated_is_had_anew() {
    let ways = [
        "import ./sub/late.nix",
        "builtins.readFile ./sub/text",
        "builtins.readFile (./. + \"/it's text\")",
        "builtins.head (builtins.attrNames (builtins.readDir ./sub))",
        "builtins.head (builtins.attrNames (builtins.readDir ./.))",
        "import (pinned + \"/sub/late.nix\")",
        "builtins.readFile (pinned + \"/sub/text\")",
        "builtins.readFile (builtins.findFile [ { prefix = \"p\"; path = pinned; } ] \"p/sub/text\")",
    ];
    for (late, records) in ways
        .into_iter()
        .flat_map(|late| [(late, false), (late, true)])
    {
        let Some(store) = Store::new() else { return };
        let late = format!("{{ pinned }}: {{ early = \"e\"; late = {late}; }}");
        store.write("source/default.nix", &late);
        store.write("source/sub/late.nix", "\"late\"");
        store.write("source/sub/text", "late");
        store.write("source/it's text", "late");
        let source = store.work().join("source");
        let hash = store.nix(
            "nix-hash",
            ["--type", "sha256", "--base32", source.to_str().unwrap()],
        );
        let pinned = format!(
            "builtins.path {{ name = \"pinned\"; path = {}; sha256 = \"{}\"; }}",
            source.display(),
            hash.trim()
        );
        let targets = |gate: &str| {
            format!(
                "{{ a = file \"a\"; b = let pinned = {pinned}; it = import pinned {{ inherit pinned; }}; in builtins.seq (builtins.stringLength it.early) (builtins.seq (builtins.stringLength ({gate})) (file it.late)); }}"
            )
        };
        store.nix(
            "nix-instantiate",
            ["--eval", "--read-write-mode", "-E", &pinned],
        );
        let gate = Gate::of(&store, targets);
        let running = if records {
            record(&store).start()
        } else {
            step(&store, "b").start()
        };
        gate.open(|| store.collect());
        let ended = running.end();
        mentions(&ended, "the garbage collector");
        if records {
            records_all(&ended, 2);
        } else {
            ended.exits(0);
        }
    }
}

/// Each evaluation finds it valid, as where another job reads it too, and keeps it no more than the one before: a collection takes it.
#[test]
fn a_source_that_the_collector_takes_each_time_is_kept_once_it_is_there() {
    let (early, late) = (
        "builtins.seq source (builtins.seq wait (file (import source).late))",
        "let it = import source; in builtins.seq it.early (builtins.seq wait (file it.late))",
    );
    // Before anything is read of it, and after that; and once more right after Nix has called it valid.
    let cases = [(early, false), (late, false), (late, true)];
    for ((target, is_collected_again), records) in cases
        .into_iter()
        .flat_map(|case| [(case, false), (case, true)])
    {
        let Some(store) = Store::new() else { return };
        let expression = "{ early = true; late = builtins.readFile ./text; }";
        store.write("source/default.nix", expression);
        store.write("source/text", "its-text");
        let source = store.work().join("source");
        let source = source.to_str().unwrap();
        let hash = store.nix("nix-hash", ["--type", "sha256", "--base32", source]);
        let add = ["--add-fixed", "--recursive", "sha256", source];
        let collects = collecting(&store);
        store.targets(&format!(
            r#"let
              source = builtins.path {{ name = "source"; path = {source}; sha256 = "{hash}"; }};
              wait = builtins.readFile (build "wait-${{builtins.getEnv "EVALUATION"}}" ". {collects}; echo >$out");
            in {{ a = {target}; }}"#,
            hash = hash.trim(),
            collects = collects.display(),
        ));
        store.nix("nix-store", add);
        let evaluator = if records { "nix" } else { "nix-instantiate" };
        let again = if is_collected_again {
            format!(
                "[ -e \"$0\".once ] || {{ : >\"$0\".once; . {}; }}; ",
                collects.display()
            )
        } else {
            String::new()
        };
        let adds = format!(
            "case \"$*\" in --check-validity*) \"$REAL\" {} >/dev/null 2>&1; \"$REAL\" \"$@\"; status=$?; {again}exit $status;; esac",
            add.join(" ")
        );
        let stand_ins = StandIns::new(store.bin())
            .before(evaluator, "export EVALUATION=$$")
            .before("nix-store", &adds);
        let program = if records {
            record(&store)
        } else {
            step(&store, "a")
        };
        let ended = program.env("PATH", stand_ins.path(&store)).run();
        if records {
            records_all(&ended, 1);
        } else {
            ended.exits(0);
        }
        let said = "was missing during the evaluation";
        let times = ended.stderr.matches(said).count();
        assert_eq!(times, 1, "{target}{ended}");
    }
}

/// Nix 2.8 does this where the signal comes while it sends a `.drv` to its daemon.
#[test]
fn a_nix_that_loses_a_signal_and_waits_without_an_end_is_ended_and_it_is_evaluated_once_more() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\"; }");
    let once = store.root().join("once");
    let script = format!(
        r#"case "$*" in *repl* | *--instantiate* | *nix-instantiate*)
  if (set -C; : >{once}) 2>/dev/null; then
    echo 'error (ignored): error: interrupted by the user' >&2
    exec sleep 600
  fi ;;
esac"#,
        once = once.display()
    );
    let stand_ins = StandIns::new(store.bin()).before("nix", &script);
    let ended = record(&store).env("PATH", stand_ins.path(&store)).run();
    records_all(&ended, 1);
    mentions(&ended, "interrupted by the user; evaluating it once more");
    assert!(once.exists());
}

#[test]
fn who_says_what_a_nix_says_that_has_lost_a_signal_is_evaluated_all_the_same() {
    let Some(store) = Store::new() else { return };
    // It is silent for longer than is waited for, each time. What outlives it would be in the way of the next one.
    store.targets(&format!(
        r#"{{
  a = file (builtins.readFile "${{build "said" ''
    echo 'error (ignored): error: interrupted by the user' >&2
    ( {} 6; {} $out; printf a > $out/a ) || exit 1
  ''}}/a");
}}"#,
        tool("sleep").unwrap().display(),
        tool("mkdir").unwrap().display(),
    ));
    let ended = record(&store).run();
    records_all(&ended, 1);
    // A daemon's builders are not seen, and end with what they are for.
    if !is_for_all() {
        ended.never_says("evaluating it once more");
    }
}

#[test]
fn a_daemons_worker_that_is_killed_during_an_evaluation_is_no_fault_of_the_expression() {
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let kill_workers = |daemon: &Daemon| {
            for worker in children(daemon.pid()) {
                let _ = kill(worker.pid, signal);
            }
        };
        let Some(store) = Store::new() else { return };
        let daemon = store.daemon();
        let gate = Gate::new(&store);
        let running = step(&store, "b").envs(daemon.env()).start();
        gate.open(|| kill_workers(&daemon));
        running.end().exits(0);

        let Some(store) = Store::new() else { return };
        let daemon = store.daemon();
        let gate = Gate::new(&store);
        let running = record(&store).envs(daemon.env()).start();
        gate.open(|| kill_workers(&daemon));
        records_all(&running.end(), 3);
    }
}

#[test]
fn what_the_system_says_twice_is_75_in_a_step_and_in_a_recording() {
    for sentence in [
        "interrupted by the user",
        "opening file '/x/ci.nix': Too many open files",
        "unable to fork: Resource temporarily unavailable",
        "writing to file: No space left on device",
        "unable to download 'https://x/y': Couldn't resolve host name (6)",
    ] {
        let Some(store) = Store::new() else { return };
        store.targets("{ a = file \"a\"; b = file \"b\"; }");
        // Whether the expression throws is asked of the real one.
        let script = format!(
            "case \"$*\" in *'tryEval (let value'*) ;; *) echo \"error: {sentence}\" >&2; exit 1;; esac"
        );
        // A recording asks while it evaluates once more.
        for (program, nix, expected) in [
            (step(&store, "a"), "nix-instantiate", (3, 1)),
            (record(&store), "nix", (2, 0)),
        ] {
            let folder = store.root().join("stand-ins");
            let stand_ins = StandIns::new(&folder).before(nix, &script);
            let ended = program.env("PATH", stand_ins.path(&store)).run();
            ended.exits(75);
            mentions(&ended, sentence);
            let calls = stand_ins.calls(nix);
            let is_question =
                |call: &&Vec<String>| call.iter().any(|word| word.contains("tryEval (let value"));
            let questions = calls.iter().filter(is_question).count();
            assert_eq!((calls.len(), questions), expected, "{ended}");
            fs::remove_dir_all(folder).unwrap();
        }
    }
}

#[test]
fn what_an_attribute_meets_twice_that_is_no_fault_of_its_own_ends_a_recording_with_75() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\"; b = file \"b\"; c = file \"c\"; }");
    let script = dies("begin /1", "opening file '/x': Too many open files", 9);
    let stand_ins = StandIns::new(store.bin()).before("nix", &script);
    let ended = record(&store).env("PATH", stand_ins.path(&store)).run();
    ended.exits(75);
    mentions(
        &ended,
        "error: b was not evaluated: opening file '/x': Too many open files",
    );
    mentions(&ended, "ulimit");
}

#[test]
fn a_store_that_the_host_names_and_that_takes_nothing_is_no_fault_of_the_expression() {
    for (name, value) in [
        ("NIX_CONFIG", "store = dummy://"),
        ("NIX_REMOTE", "nonsense://x"),
        ("NIX_REMOTE", "file://cache"),
        ("EVAL_ONCE_STATE_DIR", "store/eo"),
    ] {
        let Some(store) = Store::new() else { return };
        store.targets("{ a = file \"a\"; b = file \"b\"; }");
        let value = match name {
            "EVAL_ONCE_STATE_DIR" => store.folder().join("eo").display().to_string(),
            _ => value.replace("cache", &store.root().join("cache").display().to_string()),
        };
        for program in [step(&store, "a"), record(&store)] {
            let ended = program.env(name, &value).run();
            ended.exits(75);
            assert_eq!(ended.stdout, "", "{ended}");
            let hint = ended.ours().last().copied().unwrap_or_default().to_owned();
            let names = if name == "EVAL_ONCE_STATE_DIR" {
                name
            } else {
                "NIX_REMOTE"
            };
            let is_known = hint.contains(names)
                || hint.contains("makes no links")
                || hint.contains("make no links");
            assert!(hint.starts_with("hint: ") && is_known, "{ended}");
        }
    }
    // The control: an expression that says the same fails by itself.
    let Some(store) = Store::new() else { return };
    let says = "operation 'addTextToStore' is not supported by store 'dummy'";
    store.targets(&format!("{{ a = throw \"{says}\"; b = file \"b\"; }}"));
    step(&store, "a").run().fails(65, "evaluation");
    record(&store).run().exits(0);
}

#[test]
fn settings_that_nix_refuses_are_not_said_to_be_safe_to_retry() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\"; b = file \"b\"; }");
    let target = store.target("a");
    for (line, names) in [
        ("garbage", "garbage"),
        ("max-jobs = abc", "max-jobs"),
        ("cores = abc", "cores"),
        ("keep-going = abc", "keep-going"),
        ("sandbox = maybe", "sandbox"),
    ] {
        for program in [
            step(&store, "a"),
            store.step(target.flags()),
            record(&store),
            store.eval_once(["pin", &target.drv]),
        ] {
            let ended = program.env("NIX_CONFIG", line).run();
            ended.exits(64);
            mentions(&ended, names);
            mentions(&ended, "hint: correct it where it is set");
            assert!(!ended.stderr.contains("safe to retry"), "{ended}");
            assert!(!ended.stderr.contains("daemon"), "{ended}");
        }
    }
    // Of `options`, Nix itself only warns.
    let named = store
        .step(target.flags())
        .args(["--option", "cores", "abc"]);
    named.run().exits(0);
    fs::remove_file(store.work().join("result")).unwrap();
    store.delete([target.out()]);
    // What only a build needs.
    store.configure("build-users-group = eval-once-has-none");
    let ended = store.step(target.flags()).run();
    ended.fails(64, "config");
    mentions(&ended, "hint: make the group");
    record(&store).run().exits(0);
}

#[test]
fn a_flake_is_locked_once_more_where_that_failed_for_no_fault_of_its_own() {
    let Some(store) = Store::new() else { return };
    store.write(
        "flake/flake.nix",
        "{ outputs = _: { packages.x.a = derivation { name = \"a\"; system = \"x86_64-linux\"; builder = \"/bin/sh\"; args = [ \"-c\" \"echo > $out\" ]; }; }; }",
    );
    let flake = format!("path:{}", store.work().join("flake").display());
    let flags = ["--flake", &flake, "--attr", "packages.x.a"];
    let recording = ["pipeline", "--dry-run"];
    for program in [store.step(flags), store.eval_once(recording).args(flags)] {
        let folder = store.root().join("stand-ins");
        let script = "[ $NTH = 1 ] && { echo 'error: interrupted by the user' >&2; exit 1; }";
        let stand_ins = StandIns::new(&folder).before("nix", script);
        let ended = program.env("PATH", stand_ins.path(&store)).run();
        ended.exits(0);
        let locks = |call: &&Vec<String>| call.iter().any(|word| word == "metadata");
        let calls = stand_ins.calls("nix");
        assert_eq!(calls.iter().filter(locks).count(), 2, "{ended}");
        fs::remove_dir_all(folder).unwrap();
    }
}

#[test]
fn nix_eval_jobs_makes_no_error_step_of_what_the_system_says() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\"; }");
    for (said, status) in [
        ("reading from file: Connection reset by peer", 75),
        ("attribute 'x' missing", 0),
    ] {
        let line = json!({ "attr": "a", "attrPath": ["a"], "error": format!("error: {said}") });
        let script = format!(
            "#!/bin/sh\nprintf '%s\\n' \"{}\"\n",
            line.to_string().replace('"', "\\\"")
        );
        let stand_ins = StandIns::new(store.bin()).instead("nix-eval-jobs", &script);
        let ended = record(&store)
            .args(["--evaluator", "nix-eval-jobs"])
            .env("PATH", stand_ins.path(&store))
            .run();
        ended.exits(status);
        mentions(&ended, said);
    }
}

#[test]
fn an_expressions_own_words_are_its_own_whatever_they_sound_like() {
    let Some(store) = Store::new() else { return };
    let words = [
        "disk: No space left on device",
        "reading from file: Connection reset by peer",
        "unexpected end-of-file",
        "interrupted by the user",
        "unable to download 'https://x/y': Couldn't resolve host name (6)",
        "committing transaction: database or disk is full (in '/nix/var/nix/db/db.sqlite')",
    ];
    for said in words {
        for how in ["throw", "abort"] {
            store.targets(&format!("{{ a = file \"a\"; b = {how} \"{said}\"; }}"));
            let ended = step(&store, "b").run();
            ended.fails(65, "evaluation");
            let ended = record(&store).run();
            let pipeline = Pipeline::of(&ended);
            assert_eq!(pipeline.broken(), ["[\"b\"]"], "{ended}");
            assert_eq!(pipeline.drvs().len(), 1, "{ended}");
            store.write("default.nix", &format!("{how} \"{said}\""));
            let ended = record(&store).run();
            ended.exits(65);
            mentions(&ended, said);
        }
    }
}

#[test]
fn an_expression_that_names_a_path_in_a_missing_tmpdir_fails_by_itself() {
    let Some(store) = Store::new() else { return };
    let missing = store.root().join("missing");
    let says = format!("\"nothing at '{}/x'\"", missing.display());
    store.targets(&format!(
        "{{ a = file \"a\"; b = abort {says}; c = throw {says}; }}"
    ));
    let ended = record(&store).env("TMPDIR", &missing).run();
    let pipeline = Pipeline::of(&ended);
    assert_eq!(pipeline.broken(), ["[\"b\"]", "[\"c\"]"], "{ended}");
    assert_eq!(pipeline.drvs().len(), 1, "{ended}");
    let step = step(&store, "b").env("TMPDIR", &missing).run();
    step.fails(65, "evaluation");
}

#[test]
fn names_and_traces_that_sound_like_the_system_are_the_expressions_own() {
    let Some(store) = Store::new() else { return };
    for said in [
        r#"{ }."unable to download 'http://x/y': foo""#,
        r#"{ }."SQLite x is busy""#,
        r#"{ }."x: database or disk is full (in '/x.sqlite')""#,
        r#"{ }."a: Connection reset by peer\nb""#,
        r#"builtins.trace "x\nfatal: unable to access 'https://x/'" ({ }.digit)"#,
        r#"builtins.addErrorContext "x\n\nerror: y: Connection reset by peer" (1 + { })"#,
        r#"builtins.addErrorContext "x\n\nerror: writing to file: No space left on device" (1 + { })"#,
    ] {
        store.targets(&format!("{{ a = file \"a\"; b = {said}; }}"));
        step(&store, "b").run().fails(65, "evaluation");
        let ended = record(&store).run();
        let pipeline = Pipeline::of(&ended);
        assert_eq!(pipeline.broken(), ["[\"b\"]"], "{ended}");
        assert_eq!(pipeline.drvs().len(), 1, "{ended}");
    }
}

#[test]
fn a_store_path_that_an_expression_names_and_that_is_nowhere_stops_no_other_attribute() {
    let Some(store) = Store::new() else { return };
    store.targets(
        "{ a = file \"a\"; b = file (builtins.storePath \"${builtins.storeDir}/00000000000000000000000000000000-gone\"); }",
    );
    let ended = record(&store).run();
    let pipeline = Pipeline::of(&ended);
    assert_eq!(pipeline.broken(), ["[\"b\"]"], "{ended}");
    assert_eq!(pipeline.drvs().len(), 1, "{ended}");
    mentions(&ended, "00000000000000000000000000000000-gone' ");
}

#[test]
fn what_a_function_that_nix_calls_says_is_its_own_too() {
    let Some(store) = Store::new() else { return };
    let says = "{ }: throw \"cannot connect to socket: Connection reset by peer\"";
    let recorded = || {
        let ended = record(&store).run();
        // A recording says what it has heard, and blames neither collector nor daemon for it.
        assert!(!ended.stderr.contains("collector"), "{ended}");
        ended
    };
    store.write("default.nix", says);
    store.step::<&str>([]).run().fails(65, "evaluation");
    recorded().exits(65);
    store.targets(&format!(
        "{{ a = file \"a\"; b = {says}; c.__functor = self: {says}; }}"
    ));
    for attribute in ["b", "c"] {
        step(&store, attribute).run().fails(65, "evaluation");
    }
    let pipeline = Pipeline::of(&recorded());
    assert_eq!(pipeline.broken(), ["[\"b\"]", "[\"c\"]"]);
    assert_eq!(pipeline.drvs().len(), 1);
}

#[test]
fn an_expression_that_says_what_nix_says_of_a_path_that_was_collected_fails_by_itself() {
    let Some(store) = Store::new() else { return };
    let path = store.folder().join("00000000000000000000000000000000-x");
    let says = format!("throw \"path '{}' is not valid\"", path.display());
    store.targets(&format!("{{ a = file \"a\"; b = {says}; }}"));
    step(&store, "b").run().fails(65, "evaluation");
    assert_eq!(Pipeline::of(&record(&store).run()).broken(), ["[\"b\"]"]);
    store.write("default.nix", &says);
    store.step::<&str>([]).run().fails(65, "evaluation");
    record(&store).run().exits(65);
}

#[test]
fn nixs_message_is_whole_whatever_the_user_says_in_it() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = throw \"the plugin reported error: disk missing\"; b = throw \"one\\nerror: two\\nthree\"; }");
    let message = |attribute: &str| {
        let ended = step(&store, attribute).run();
        ended.fails(65, "evaluation");
        ended.report()["failure"]["message"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(
        message("a"),
        "a of default.nix does not evaluate: the plugin reported error: disk missing"
    );
    assert_eq!(
        message("b"),
        "b of default.nix does not evaluate: one\nerror: two\nthree"
    );
    let ended = record(&store).run();
    mentions(&ended, "a: the plugin reported error: disk missing");
    mentions(&ended, "b: one error: two three");
}

// ---- limits

/// What starts a program with a limit of the shell's.
fn limited(limit: &str) -> Vec<std::ffi::OsString> {
    let script = format!("ulimit {limit} && exec \"$@\"");
    // Not every `sh` knows `ulimit -u`.
    let bash = tool("bash").unwrap();
    let mut words = vec![bash.into_os_string()];
    words.extend(["-c", &script, "bash"].map(Into::into));
    words
}

#[test]
fn an_address_space_that_is_enough_for_nix_is_enough_for_a_recording() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\"; b = file \"b\"; }");
    for kilobytes in ["300000", "600000", "1200000"] {
        let ended = record(&store)
            .behind(&limited(&format!("-v {kilobytes}")))
            .run();
        records_all(&ended, 2);
    }
}

#[test]
fn too_few_open_files_are_no_fault_of_an_attribute() {
    // A client needs fewer of them.
    let Some(store) = Store::without_daemon() else {
        return;
    };
    store.targets("{ a = file \"a\"; b = file \"b\"; }");
    // 2.8 needs less than later ones: 20 are enough for it.
    for (files, is_enough) in (7..16).map(|files| (files, false)).chain([(256, true)]) {
        let limit = limited(&format!("-n {files}"));
        let recorded = record(&store).behind(&limit).run();
        let built = step(&store, "a").behind(&limit).run();
        ends_by_limit(&store, &recorded, &built, is_enough);
    }
}

/// A recording of two targets and a step of one have done all of it where a limit is enough, and else ended with 75 and nothing.
#[track_caller]
fn ends_by_limit(store: &Store, recorded: &Ended, built: &Ended, is_enough: bool) {
    let link = store.work().join("result");
    if is_enough {
        recorded.exits(0);
        records_all(recorded, 2);
        built.exits(0);
        assert_eq!(fs::read_to_string(link).unwrap(), "a\n");
    } else {
        recorded.exits(75).prints("");
        built.exits(75);
        assert!(!link.is_symlink(), "{built}");
    }
}

#[test]
fn no_process_that_can_be_started_is_no_fault_of_an_attribute() {
    if !ordinary_user() {
        return;
    }
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\"; b = file \"b\"; }");
    // A user that nobody else is: the limit counts all its processes, and each thread of Nix's is one.
    let user = 60_000 + std::process::id() % 5_000;
    open_to(store.root(), user);
    for processes in (1..8).chain([100]) {
        let limit = limited(&format!("-u {processes}"));
        let run = |program: Program| {
            // It has no name, and Nix asks for one.
            let program = program.env("USER", "nobody-else");
            program.behind(&limit).by_user(user).run()
        };
        let (recorded, built) = (run(record(&store)), run(step(&store, "a")));
        match processes {
            // We, Nix and its thread for signals are three, which are enough where a daemon has the builder.
            1..=2 => ends_by_limit(&store, &recorded, &built, false),
            100 => ends_by_limit(&store, &recorded, &built, true),
            _ => {
                for ended in [&recorded, &built] {
                    let status = ended.status.code().unwrap();
                    assert!([0, 75].contains(&status), "{processes}: {ended}");
                }
            }
        }
        let _ = fs::remove_file(store.work().join("result"));
    }
}

/// Gives all of a store to a user.
fn open_to(folder: &Path, user: u32) {
    let _ = std::os::unix::fs::lchown(folder, Some(user), Some(user));
    let is_folder = folder.symlink_metadata().is_ok_and(|found| found.is_dir());
    for entry in fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|_| is_folder)
    {
        open_to(&entry.path(), user);
    }
}

// ---- no server

#[test]
fn a_fetch_that_no_server_answers_is_75_and_one_that_is_refused_is_65() {
    let Some(store) = Store::new() else { return };
    let server = tiny_http::Server::http("127.0.0.1:0").unwrap();
    let answers = format!("127.0.0.1:{}", server.server_addr().to_ip().unwrap().port());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for request in server.incoming_requests() {
                let response = tiny_http::Response::from_string("no").with_status_code(404);
                let _ = request.respond(response);
            }
        });
        // Nothing listens on port 1.
        for (host, status, word) in [
            ("127.0.0.1:1", 75, "surroundings"),
            (answers.as_str(), 65, "evaluation"),
        ] {
            let archive = format!("http://{host}/x.tar.gz");
            let option = ["--option", "download-attempts", "1"];
            let both = |flags: &[&str]| {
                let ended = store.step(flags).args(option).run();
                ended.fails(status, word);
                mentions(&ended, "unable to download");
                let recording = ["pipeline", "--dry-run"];
                let ended = store.eval_once(recording).args(flags).args(option).run();
                ended.exits(status);
                mentions(&ended, "unable to download");
            };
            both(&["--file", &archive]);
            store.write(
                "default.nix",
                &format!("import (builtins.fetchTarball \"{archive}\")"),
            );
            both(&["--file", "default.nix"]);
            store.write(
                "flake/flake.nix",
                &format!("{{ inputs.x = {{ url = \"{archive}\"; flake = false; }}; outputs = inputs: {{ packages = import inputs.x; }}; }}"),
            );
            let flake = format!("path:{}", store.work().join("flake").display());
            both(&["--flake", &flake]);
        }
        server.unblock();
    });
}

#[test]
fn a_file_that_is_fetched_and_does_not_exist_is_an_evaluation_error_of_its_attribute() {
    let Some(store) = Store::new() else { return };
    let url = format!("file://{}/none.json", store.root().display());
    store.targets(&format!(
        "{{ good = file \"good\"; url = file (builtins.readFile (builtins.fetchurl \"{url}\")); tar = file (builtins.fetchTarball \"{url}\"); }}"
    ));
    let ended = store.eval_once(["pipeline", "--dry-run"]).run();
    let pipeline = Pipeline::of(ended.exits(0));
    assert_eq!(pipeline.broken(), ["[\"tar\"]", "[\"url\"]"]);
    assert_eq!(pipeline.drvs().len(), 1);
    for attribute in ["url", "tar"] {
        step(&store, attribute).run().fails(65, "evaluation");
    }
}

#[test]
fn a_store_path_that_an_expression_names_and_that_does_not_exist_is_65_in_a_step_as_in_a_recording()
{
    let Some(store) = Store::new() else { return };
    let path = format!(
        "{}/0123456789abcdfghijklmnpqrsvwxyz-x",
        store.folder().display()
    );
    store.targets(&format!(
        "{{ good = file \"good\"; read = file (builtins.readFile \"{path}\"); import = file (import {path}); copy = file \"${{builtins.path {{ path = {path}; }}}}\"; }}"
    ));
    let ended = store.eval_once(["pipeline", "--dry-run"]).run();
    let pipeline = Pipeline::of(ended.exits(0));
    assert_eq!(pipeline.broken().len(), 3, "{ended}");
    for attribute in ["read", "import", "copy"] {
        let ended = step(&store, attribute).run();
        ended.fails(65, "evaluation");
    }
}

// ---- refusals

#[test]
fn what_nix_refuses_to_build_for_good_is_100_with_and_without_a_daemon() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"
let dep = file "dep"; in {
  odd = with' { exportReferencesGraph = [ "a" ]; } "odd" "echo > $out";
  name = with' { exportReferencesGraph = [ "../a" dep ]; } "name" "echo > $out";
  number = with' { __structuredAttrs = true; exportReferencesGraph.g = [ 3 ]; } "number" "exit 0";
  outside = with' { __structuredAttrs = true; exportReferencesGraph.g = "/etc"; } "outside" "exit 0";
  illegal = with' { allowedReferences = [ "nope" ]; } "illegal" "echo > $out";
  chroot = with' { __noChroot = true; } "chroot" "echo > $out";
  fixed = with' {
    outputHashMode = "flat";
    outputHashAlgo = "sha256";
    outputHash = builtins.hashString "sha256" "${builtins.unsafeDiscardStringContext dep.outPath}\n";
  } "fixed" "echo ${dep} > $out";
  addressed = with' { __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; } "addressed" "echo > $out";
}"#,
    );
    let daemon = store.daemon();
    for (attribute, options, hint) in [
        ("odd", vec![], ""),
        ("name", vec![], ""),
        ("number", vec![], ""),
        ("outside", vec![], ""),
        ("illegal", vec![], ""),
        (
            "chroot",
            vec![
                "--option",
                "sandbox",
                "true",
                "--option",
                "sandbox-fallback",
                "false",
            ],
            "sandbox = relaxed",
        ),
        ("fixed", vec![], "a fixed output must not"),
        ("addressed", vec![], "experimental-features"),
    ] {
        // A `.drv` that needs a feature is written with it, and built without.
        let with_feature = ["--option", "extra-experimental-features", "ca-derivations"];
        let drv = store.nix(
            "nix-instantiate",
            [&["default.nix", "-A", attribute][..], &with_feature].concat(),
        );
        let drv = drv.split('!').next().unwrap();
        for env in [vec![], daemon.env()] {
            let through = if env.is_empty() {
                "no daemon"
            } else {
                "a daemon"
            };
            let ended = store.step(["--drv", drv]).args(&options).envs(env).run();
            assert_eq!(
                ended.status.code(),
                Some(100),
                "{attribute}, {through}: {ended}"
            );
            ended.fails(100, "build");
            mentions(&ended, hint);
        }
    }
}

#[test]
fn a_builder_whose_environment_is_too_large_is_hinted_at() {
    let Some(store) = Store::new() else { return };
    store.targets("{ large = with' { x = builtins.concatStringsSep \"\" (builtins.genList (x: \"0123456789abcdef\") 20000); } \"large\" \"echo > $out\"; }");
    let ended = step(&store, "large").run();
    ended.fails(100, "build");
    mentions(&ended, "passAsFile");
}

#[test]
fn a_drv_that_is_registered_and_gone_is_75_and_says_how_the_register_is_mended() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\"; }");
    let target = store.target("a");
    remove(&store, Path::new(&target.drv));
    let ended = store.step(target.drv_flags()).run();
    ended.fails(75, "surroundings");
    mentions(&ended, "nix-store --verify");
}

/// Takes a file out of the store's folder without a word to Nix.
fn remove(store: &Store, file: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let writable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(store.folder(), writable).unwrap();
    fs::remove_file(file).unwrap();
}

// ---- hooks of the host's Nix

#[test]
fn a_post_build_hook_that_fails_is_75_and_named_and_a_retry_finds_the_output() {
    for through_daemon in [false, true] {
        let Some(store) = Store::new() else { return };
        store.targets(
            r#"rec {
  a = file "a"; b = file "b"; needed = file "needed"; above = build "above" "echo ${needed} > $out";
  bad = build "bad" "exit 3"; both = build "both" "echo ${bad} ${a} > $out";
}"#,
        );
        let hook = store.root().join("hook");
        write_program(&hook, "#!/bin/sh\necho error: not uploaded >&2\nexit 7\n");
        store.configure(&format!("post-build-hook = {}", hook.display()));
        let daemon = through_daemon.then(|| store.daemon());
        let client = daemon.as_ref().map(Daemon::env).unwrap_or_default();
        for (attribute, log) in [("a", "pretty"), ("b", "raw"), ("above", "pretty")] {
            let target = store.target(attribute);
            let step = store.step(target.drv_flags()).args(["--log", log]);
            let step = step.envs(client.clone());
            let ended = step.run();
            ended.fails(75, "surroundings");
            mentions(&ended, &hook.display().to_string());
            mentions(&ended, "failed with exit code 7");
            assert!(!ended.reported().contains("was not built"), "{ended}");
            // Nix's message names the program; which hook that is, the hint says.
            mentions(&ended, "post-build-hook");
            if attribute == "above" {
                assert!(!store.has(target.out()), "{ended}");
                step.run().fails(75, "surroundings");
            }
            assert!(store.has(target.out()), "{ended}");
            step.run().exits(0);
        }
        // Beside a builder that failed, that counts: it will fail again.
        let failed = step(&store, "both").envs(client.clone());
        let failed = failed.args(["--option", "keep-going", "true"]).run();
        failed.fails(100, "build");
    }
}

#[test]
fn a_post_build_hook_that_fails_is_no_fault_of_the_expression_that_needs_the_build() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"let needs = name: builtins.seq (builtins.readFile (build name "echo > $out")); in {
  one = needs "one" (file "a"); two = needs "two" (file "b");
}"#,
    );
    let hook = store.root().join("hook");
    write_program(&hook, "#!/bin/sh\nexit 7\n");
    store.configure(&format!("post-build-hook = {}", hook.display()));
    // The evaluation is repeated, and finds what was built. The target's own build is another one.
    let ended = step(&store, "one").run();
    ended.fails(75, "surroundings");
    step(&store, "one").run().exits(0);
    record(&store).args(["--attr", "two"]).run().exits(0);
}

#[test]
fn an_evaluation_that_needs_what_a_cache_cannot_deliver_says_why_and_what_helps() {
    for through_daemon in [false, true] {
        let Some(store) = Store::new() else { return };
        store.targets(
            r#"{
  dep = file "dep";
  a = file (builtins.readFile (with' { dep = file "dep"; } "generated" "printf a > $out"));
}"#,
        );
        let dep = store.target("dep");
        store.build(&dep.drv);
        let cache = store.cache("cache", [dep.out()]);
        store.delete([dep.out()]);
        for archive in fs::read_dir(store.root().join("cache/nar")).unwrap() {
            let archive = fs::File::options()
                .write(true)
                .open(archive.unwrap().path());
            archive.unwrap().set_len(20).unwrap();
        }
        let daemon = through_daemon.then(|| store.daemon());
        let client = daemon.as_ref().map(Daemon::env).unwrap_or_default();
        let commands = [record(&store).args(["--attr", "a"]), step(&store, "a")];
        for command in commands {
            let command = command.envs(client.clone());
            let options = ["--option", "substituters", &cache];
            let failed = command.args(options).run();
            failed.exits(75);
            mentions(&failed, &format!("'{}' failed", dep.drv));
            mentions(&failed, "retry, or set the option `fallback`");
        }
        // Nix builds it then.
        let options = [
            "--option",
            "substituters",
            &cache,
            "--option",
            "fallback",
            "true",
        ];
        let built = step(&store, "a").envs(client).args(options).run();
        built.exits(0);
    }
}

#[test]
fn a_builder_that_prints_more_than_the_host_allows_is_said_to_have_done_that() {
    for through_daemon in [false, true] {
        let Some(store) = Store::new() else { return };
        store.targets(
            r#"{ a = build "a" "while :; do echo 0123456789012345678901234567890123456789; done"; }"#,
        );
        store.configure("max-build-log-size = 1000");
        let daemon = through_daemon.then(|| store.daemon());
        let client = daemon.as_ref().map(Daemon::env).unwrap_or_default();
        for log in ["pretty", "raw"] {
            let ended = step(&store, "a").args(["--log", log]).envs(client.clone());
            let ended = ended.run();
            ended.fails(100, "build");
            mentions(&ended, "killed after writing more than 1000 bytes");
            mentions(&ended, "max-build-log-size");
            assert!(!ended.reported().contains("builder succeeded"), "{ended}");
            assert!(!ended.stderr.contains("printed nothing"), "{ended}");
            let cause = ended.report()["failure"]["drv"].as_str();
            assert_eq!(cause, Some(&*store.target("a").drv), "{ended}");
        }
    }
}
