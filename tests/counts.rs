//! What a recording counts, it counts alike in every place: its log and annotation, `eval-once.json`, the summary and its JUnit.

use std::{fs, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    EVAL_ONCE,
    agent::{plugin_repository, program},
    buildkite::{Build, Outcome},
    store::Store,
    tool,
};

/// Eleven attributes: five of three targets, of which one is there; two that do not evaluate, and one that is expected not to; three
/// that are refused, of which two are one. And sets, what is no derivation, and what is excluded, which count nowhere.
const TARGETS: &str = r#"let
  own = meta: drv: drv // { inherit meta; };
in rec {
  a = file "a";
  alias = a;
  set = { recurseForDerivations = true; again = a; number = 5; };
  b = file "b";
  there = file "there";
  thrown = throw "it needs Python 2";
  missing = { }.nope;
  old = throw "it has always needed Python 2";
  no-data = own { buildkite.env.X = ./default.nix; } (file "no-data");
  colour = own { buildkite.colour = "red"; } (file "colour");
  colour-alias = colour;
  unmarked = { c = file "c"; };
  excluded = file "excluded";
}"#;

/// The line of a log that begins with this, without the time in it.
#[track_caller]
fn line(log: &str, begins: &str) -> String {
    let begins = format!("eval-once: {begins}");
    let line = log.lines().find(|line| line.starts_with(&begins));
    without_time(line.unwrap_or_else(|| panic!("no line begins with {begins}: {log}")))
}

/// A line without the seconds in it.
#[track_caller]
fn without_time(line: &str) -> String {
    let (before, after) = line.split_once(" in ").unwrap();
    let (_, after) = after.split_once(" s").unwrap();
    format!("{before} in … s{after}")
}

#[test]
fn a_recording_is_counted_alike_in_every_place() {
    let (Some(_), Some(_), Some(store)) = (tool("git"), program(), Store::new()) else {
        return;
    };
    store.targets(TARGETS);
    store.build(&store.instantiate("default.nix", "there"));
    let errors = "2 evaluation errors, 2 refused, 1 expected error";
    let recorded = "3 targets (2 to build, 1 already built here)";

    let by_hand = store
        .eval_once(["pipeline", "--exclude", "excluded", "--dry-run"])
        .args(["--expect-errors", "old"])
        .run();
    let expected = format!("eval-once: recorded 11 attributes in … s: {recorded}, {errors}");
    assert_eq!(line(&by_hand.exits(0).stderr, "recorded"), expected);
    let pipeline: Value = serde_json::from_str(&by_hand.stdout).unwrap();
    assert_eq!(pipeline["steps"].as_array().unwrap().len(), 3 + 2 + 2 + 1);
    store
        .eval_once(["pipeline", "--exclude", "excluded", "--on-error", "fail"])
        .args(["--expect-errors", "old"])
        .run()
        .exits(65)
        .says(&[
            "evaluated 11 attributes in ",
            "evaluation error: missing: attribute 'nope' missing",
            "evaluation error: thrown: it needs Python 2",
            "expected error: old: it has always needed Python 2",
            "refused: no-data: meta.buildkite.env.X is a path",
            "warning: 1 set without `recurseForDerivations` holds derivations that are not recorded: unmarked",
            "hint: set `recurse: all` to record every set",
            "refused: colour: in its `meta.buildkite`, `colour` is not a property",
            "error: 2 evaluation errors, 2 refused (see above), and `on-error: fail` is set: no pipeline is printed",
        ]);

    let repositories = TempDir::new().unwrap();
    let plugin = plugin_repository(repositories.path());
    let keys = json!({ "summary": true, "exclude": ["excluded"], "expect-errors": ["old"] });
    let plugins = json!([{ plugin: { "pipeline": keys } }]);
    let step = json!({ "key": "record", "label": "Record", "plugins": plugins });
    let Some(build) = Build::new(&step) else {
        return;
    };
    let build = build
        .checkout(store.work())
        .envs(store.env())
        .envs([("EVAL_ONCE_BIN", EVAL_ONCE)]);
    assert_eq!(build.run(), Outcome::Failed, "the errors are red");

    let log = build.job("record").plain();
    let evaluated = "eval-once: evaluated 11 attributes in … s";
    assert_eq!(line(&log, "evaluated"), evaluated);
    assert_eq!(line(&log, "recorded"), expected);
    for (kind, attrs) in [
        ("evaluation error", &["missing", "thrown"][..]),
        ("expected error", &["old"]),
        ("refused", &["no-data", "colour"]),
    ] {
        for attr in attrs {
            let told = format!("eval-once: {kind}: {attr}: ");
            assert_eq!(log.matches(&told).count(), 1, "{told}: {log}");
        }
    }

    let annotations = build.annotations();
    let (_, annotation) = annotations
        .iter()
        .find(|(context, _)| *context != "eval-once-summary" && *context != "eval-once-failures")
        .unwrap();
    let body = &annotation.body;
    let expected = format!(
        "**eval-once** recorded 11 attributes of <code>default&#46;nix</code> in … s: {recorded}, {errors}."
    );
    assert_eq!(without_time(body.lines().next().unwrap()), expected);
    assert!(body.contains("\n2 evaluation errors:\n"), "{body}");
    assert!(body.contains("\n2 refused:\n"), "{body}");
    let expected = "<details><summary>1 expected error</summary>";
    assert!(body.contains(expected), "{body}");

    let artifacts = build.artifacts();
    let document: Value = serde_json::from_slice(&artifacts["eval-once.json"]).unwrap();
    assert_eq!(
        document["counts"],
        json!({ "attributes": 11, "targets": 3, "evaluation_errors": 2, "expected_errors": 1, "refused": 2 })
    );
    let those = |refused: bool, expected: bool| {
        let errors = document["errors"].as_array().unwrap().iter();
        let those = errors.filter(|it| it["refused"] == refused && it["expected"] == expected);
        those.count()
    };
    assert_eq!((those(false, false), those(true, false)), (2, 2));
    assert_eq!((those(false, true), those(true, true)), (1, 0));

    let summed_up = format!("sums up 11 attributes: 3 targets (2 built, 1 skipped), {errors}");
    let summary = &annotations["eval-once-summary"].body;
    assert!(
        summary.starts_with(&format!("**eval-once** {summed_up}.\n")),
        "{summary}"
    );
    let jobs = build.jobs();
    let log = jobs.last().unwrap().plain();
    assert!(log.contains(&format!("eval-once: {summed_up}\n")), "{log}");
    let junit = String::from_utf8(artifacts["eval-once-junit.xml"].clone()).unwrap();
    let counts = "tests=\"8\" failures=\"0\" errors=\"4\" skipped=\"2\"";
    assert!(junit.contains(counts), "{junit}");
}

#[test]
fn the_numbers_that_the_documentation_shows_are_those_of_the_example() {
    let Some(store) = Store::new() else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    store
        .program("cp")
        .arg("-r")
        .arg(root.join("examples/repository/."))
        .arg(store.work())
        .run()
        .exits(0);
    let ended = store
        .eval_once(["pipeline", "--file", "ci.nix", "--dry-run"])
        .run();
    let log = &ended.exits(0).stderr;
    let evaluated = line(log, "evaluated");
    let recorded = line(log, "recorded");
    let counts = "10 targets (10 to build), 1 evaluation error";
    assert_eq!(evaluated, "eval-once: evaluated 12 attributes in … s");
    assert_eq!(
        recorded,
        format!("eval-once: recorded 12 attributes in … s: {counts}")
    );
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    let readme = read("README.md");
    assert_eq!(line(&readme, "evaluated 12"), evaluated);
    assert_eq!(line(&readme, "recorded"), recorded);
    let pipeline = read("docs/pipeline.md");
    let caption = "![12 attributes recorded: 10 targets, and 1 evaluation error, whose message is folded up below its name]";
    assert!(pipeline.contains(caption));
    let json = r#""counts": { "attributes": 12, "targets": 10, "evaluation_errors": 1, "expected_errors": 0, "refused": 0 }"#;
    assert!(pipeline.contains(json));
    let summary = read("docs/summary.md");
    let summed_up =
        "**eval-once** sums up 12 attributes: 10 targets (9 built, 1 skipped), 1 evaluation error.";
    assert!(summary.contains(summed_up));
}
