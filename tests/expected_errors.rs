//! What does not evaluate, as policy: `on-error`, and `expect-errors`.

use std::{fs, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    EVAL_ONCE,
    agent::{plugin_repository, program},
    buildkite::{Build, JobState, Outcome},
    program::Ended,
    recording::Pipeline,
    store::Store,
    target::expression,
    tool,
};

/// As in a package set: some attributes do not evaluate, and never will; one is new; one is refused.
const PACKAGES: &str = r#"let
  set = packages: packages // { recurseForDerivations = true; };
in {
  good = file "good";
  new = throw "this one is new";
  unfree = throw "it has an unfree license";
  py = set { a = file "py-a"; old = throw "it needs Python 2"; older = { }.nope; };
  rb = set { b = file "rb-b"; old = { }.nope; };
  odd = file "odd" // { meta.buildkite.colour = "red"; };
}"#;

/// A dry run with these flags.
fn dry_run(store: &Store, flags: &[&str]) -> Ended {
    let recording = store.eval_once(["pipeline", "--dry-run"]);
    recording.args(flags).run()
}

/// The steps of errors by what they show: red ones by their label, skipped ones with their reason.
fn shown(ended: &Ended) -> (Vec<String>, Vec<(String, String)>) {
    let (mut red, mut skipped) = (Vec::new(), Vec::new());
    for step in Pipeline::of(ended).list() {
        let label = step["label"].as_str().unwrap().to_owned();
        match step["skip"].as_str() {
            Some(reason) => skipped.push((label, reason.to_owned())),
            None if step["key"].as_str().unwrap().starts_with("attr-") => red.push(label),
            None => {}
        }
    }
    (red, skipped)
}

fn texts<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.map(str::to_owned).to_vec()
}

#[test]
fn what_is_expected_is_skipped_and_what_is_reported_has_no_step() {
    let Some(store) = Store::new() else { return };
    store.targets(PACKAGES);
    let known = [
        "--expect-errors",
        "unfree",
        "--expect-errors",
        "*.old",
        "--expect-errors",
        "py",
    ];
    let place = store.work().join("default.nix");
    let begins = format!("error: attribute 'nope' missing, at {}", place.display());
    let begins: String = begins.chars().take(69).collect();

    let ended = dry_run(&store, &[]);
    let all = ":boom: new|:boom: py.old|:boom: py.older|:boom: rb.old|:boom: unfree|:boom: odd";
    assert_eq!(shown(&ended).0.join("|"), all);
    assert_eq!(shown(&ended).1, []);
    ended.passes_on(": 3 targets (3 to build), 5 evaluation errors, 1 refused\n");

    let ended = dry_run(&store, &known);
    let (red, skipped) = shown(&ended);
    assert_eq!(red, texts([":boom: new", ":boom: odd"]));
    let labels: Vec<&str> = skipped.iter().map(|(label, _)| label.as_str()).collect();
    assert_eq!(
        labels,
        [
            ":nix: py.old",
            ":nix: py.older",
            ":nix: rb.old",
            ":nix: unfree"
        ]
    );
    let reasons: Vec<&str> = skipped.iter().map(|(_, reason)| reason.as_str()).collect();
    assert_eq!(
        (reasons[0], reasons[3]),
        (
            "error: it needs Python 2",
            "error: it has an unfree license"
        )
    );
    for reason in [reasons[1], reasons[2]] {
        assert!(reason.starts_with(&begins), "{reason}");
        assert!(reason.chars().count() <= 70, "{reason}");
    }
    ended.passes_on(": 3 targets (3 to build), 1 evaluation error, 1 refused, 4 expected errors\n");
    ended.passes_on("eval-once: expected error: py.old: it needs Python 2\n");
    ended.never_says("warning");

    let omit = [&known[..], &["--skip-style", "omit"]].concat();
    let (red, skipped) = shown(&dry_run(&store, &omit));
    assert_eq!((red.len(), skipped.len()), (2, 0));
    let run = [&known[..], &["--skip-style", "run"]].concat();
    let (red, skipped) = shown(&dry_run(&store, &run));
    assert_eq!(
        (red.len(), skipped.len()),
        (2, 4),
        "there is nothing to run"
    );

    let report = [&known[..], &["--on-error", "report"]].concat();
    let ended = dry_run(&store, &report);
    assert_eq!(
        shown(&ended),
        (texts([":boom: odd"]), vec![]),
        "it evaluates"
    );
    ended.passes_on(": 3 targets (3 to build), 1 evaluation error, 1 refused, 4 expected errors\n");
    let warning =
        "eval-once: warning: 1 evaluation error has no step, because `on-error: report` is set\n";
    ended.passes_on(warning);
    let whole_set = dry_run(&store, &["--on-error", "report", "--expect-errors", "new"]);
    whole_set.passes_on("eval-once: warning: 4 evaluation errors have no step");
}

#[test]
fn expected_errors_never_fail_a_recording_and_others_do() {
    let Some(store) = Store::new() else { return };
    store.targets(PACKAGES);
    store.write(
        "refused.nix",
        "removeAttrs (import ./default.nix) [ \"odd\" ]",
    );
    let fail = |file: &str, expected: &[&str]| {
        let expected = expected.iter().flat_map(|path| ["--expect-errors", path]);
        let flags = ["--file", file, "--on-error", "fail"];
        let flags: Vec<&str> = flags.into_iter().chain(expected).collect();
        dry_run(&store, &flags)
    };
    let set = "(see above), and `on-error: fail` is set: no pipeline is printed";
    fail("refused.nix", &["unfree", "py", "rb.old"])
        .exits(65)
        .passes_on(&format!("error: 1 evaluation error {set}\n"));
    fail("default.nix", &["unfree", "py", "rb", "new"])
        .exits(65)
        .passes_on(&format!("error: 1 refused {set}\n"));
    let ended = fail("refused.nix", &["unfree", "py", "rb", "new"]);
    let (red, skipped) = shown(&ended);
    assert_eq!((red.len(), skipped.len()), (0, 5), "{ended}");
}

#[test]
fn a_path_without_an_error_is_named_and_what_evaluates_is_built() {
    let Some(store) = Store::new() else { return };
    store.targets(PACKAGES);
    let ended = dry_run(
        &store,
        &[
            "--expect-errors",
            "good",
            "--expect-errors",
            "*.older",
            "--expect-errors",
            "pi.old",
            "--expect-errors",
            "py.odl",
            "--expect-errors",
            "new.below",
        ],
    );
    let steps = Pipeline::of(&ended);
    assert!(steps.step(&["good"]).json.get("skip").is_none());
    for line in [
        "eval-once: `expect-errors: good` expects an error, and the attribute evaluates\n\
         eval-once: hint: remove it from `expect-errors`\n",
        "eval-once: warning: `expect-errors: pi.old` matches nothing\n\
         eval-once: hint: did you mean `py.old`?\n",
        "eval-once: warning: `expect-errors: py.odl` matches nothing\n\
         eval-once: hint: did you mean `py.old`?\n",
    ] {
        ended.passes_on(line);
    }
    ended.never_says("new.below");
    ended.never_says("*.older` ");

    for (flags, message) in [
        (
            ["--expect-errors", ""],
            "the root, which has every attribute below it",
        ),
        (["--expect-errors", "a.b*"], "`*` stands for one whole name"),
        (["--on-error", "ignore"], "step, fail, report"),
    ] {
        dry_run(&store, &flags).exits(64).passes_on(message);
    }
}

#[test]
fn a_recording_in_which_nothing_evaluates_is_green_in_no_mode() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = throw \"all of it\"; b = throw \"all of it\"; }");
    let expected = ["--expect-errors", "a", "--expect-errors", "b"];
    let report = ["--on-error", "report"];
    assert_eq!(shown(&dry_run(&store, &expected[..2])).0, [":boom: b"]);
    for (flags, hint) in [
        (&report[..], "use `on-error: step`"),
        (
            &[&report[..], &expected[..2]].concat(),
            "use `on-error: step`",
        ),
        (&expected, "remove from `expect-errors`"),
        (
            &[&report[..], &expected].concat(),
            "remove from `expect-errors`",
        ),
    ] {
        dry_run(&store, flags)
            .exits(65)
            .prints("")
            .passes_on("error: nothing in default.nix evaluates (2 attributes), and no step would be red\n")
            .passes_on(hint)
            .passes_on("error: a: all of it\n");
    }
}

#[test]
fn hostile_messages_and_names_that_are_not_utf_8_are_only_text() {
    let Some(store) = Store::new() else { return };
    let body = expression(
        r#"{
          good = file "good";
          hostile = throw "\e[31m|<b>`x`</b> :boom: ]1339;url=x\n+++ second\n\n| third";
          "<img src=x> | :boom:" = throw "m";
          "name-A" = file "odd-a";
          "name-B" = file "odd-b";
        }"#,
    );
    let mut bytes = Vec::new();
    for byte in body.bytes() {
        match byte {
            b'A' if bytes.ends_with(b"name-") => bytes.push(0xff),
            b'B' if bytes.ends_with(b"name-") => bytes.push(0xfe),
            _ => bytes.push(byte),
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert_eq!(text.matches('\u{fffd}').count(), 2);
    let escape = bytes.windows(2).position(|pair| pair == b"\\e").unwrap();
    bytes.splice(escape..escape + 2, [0x1b]);
    fs::write(store.work().join("default.nix"), bytes).unwrap();

    let ended = dry_run(&store, &["--expect-errors", "*"]);
    let (red, skipped) = shown(&ended);
    assert_eq!(red, [""; 0]);
    // Two names look alike, and have one step.
    let labels: Vec<&str> = skipped.iter().map(|(label, _)| label.as_str()).collect();
    let labels_expected = [
        ":nix: \"<img src=x> | ∶boom∶\"",
        ":nix: hostile",
        ":nix: \"name-\u{fffd}\"",
    ];
    assert_eq!(labels, labels_expected);
    assert_eq!(
        skipped[1].1,
        "error: |<b>`x`</b> :boom: ]1339;url=x +++ second | third"
    );
    assert_eq!(skipped[2].1, "error: its name is not UTF-8");
    ended.passes_on("1 target (1 to build), 4 expected errors\n");
    assert!(!ended.stderr.contains('\u{1b}'), "{ended}");
    assert!(!ended.stdout.contains("\\u001b"), "{ended}");
    assert!(!ended.stderr.contains("\n+++"), "{ended}");

    let ended = dry_run(&store, &["--on-error", "report"]);
    assert_eq!(shown(&ended), (vec![], vec![]));
    ended.passes_on("warning: 4 evaluation errors have no step");
}

/// A build that records the store's working folder as our plugin, with these keys.
struct Scene {
    build: Build,
    /// What the plugin is cloned from.
    _repositories: TempDir,
}

fn scene(store: &Store, keys: &Value) -> Option<Scene> {
    let repositories = TempDir::new().unwrap();
    let plugin = plugin_repository(repositories.path());
    let plugins = json!([{ plugin: { "pipeline": keys } }]);
    let step = json!({ "key": "record", "label": "Record", "plugins": plugins });
    let build = Build::new(&step)?
        .checkout(store.work())
        .envs(store.env())
        .envs([("EVAL_ONCE_BIN", Path::new(EVAL_ONCE))]);
    Some(Scene {
        build,
        _repositories: repositories,
    })
}

impl Scene {
    fn document(&self) -> Value {
        let artifacts = self.build.artifacts();
        let log = self.build.job("record").plain();
        let document = artifacts.get("eval-once.json");
        serde_json::from_slice(document.unwrap_or_else(|| panic!("{log}"))).unwrap()
    }

    /// The annotation of the recording: its style and its text.
    fn annotation(&self) -> (String, String) {
        let annotations = self.build.annotations().into_iter();
        let mut recordings = annotations.filter(|(context, _)| context != "eval-once-summary");
        let (_, annotation) = recordings.next().unwrap();
        (annotation.style, annotation.body)
    }

    /// What the build's JUnit document says of all.
    fn junit(&self) -> String {
        let artifacts = self.build.artifacts();
        String::from_utf8(artifacts["eval-once-junit.xml"].clone()).unwrap()
    }

    fn steps_in_uploads(&self) -> Vec<usize> {
        let uploads = self.build.uploads();
        let steps = |upload: &Value| upload["steps"].as_array().unwrap().len();
        uploads.iter().map(steps).collect()
    }
}

#[test]
fn a_build_is_red_for_a_new_error_only_and_shows_those_that_are_known() {
    let (Some(_), Some(_), Some(store)) = (tool("git"), program(), Store::new()) else {
        return;
    };
    store.targets(PACKAGES);
    store.write(
        "known.nix",
        "removeAttrs (import ./default.nix) [ \"odd\" \"new\" ]",
    );
    let keys = |file: &str, on_error: &str| {
        let known = json!(["unfree", "py", ["rb", "old"]]);
        json!({ "file": file, "on-error": on_error, "expect-errors": known, "summary": true, "skip": "none" })
    };
    // Whatever the others do, those that are expected are not red.
    for (on_error, skipped) in [("step", 4), ("fail", 4), ("report", 0)] {
        let Some(scene) = scene(&store, &keys("known.nix", on_error)) else {
            return;
        };
        let log = || scene.build.job("record").plain();
        assert_eq!(scene.build.run(), Outcome::Passed, "{on_error}: {}", log());
        assert_eq!(scene.build.rejections(), [""; 0]);
        let (style, annotation) = scene.annotation();
        assert_eq!(style, "info", "{annotation}");
        let folded = "<details><summary>4 expected errors</summary>\n\n| Attribute | Message |\n";
        assert!(annotation.contains(folded), "{annotation}");
        assert!(
            annotation.contains("| <code>py&#46;old</code> | it needs Python 2 |"),
            "{annotation}"
        );
        let jobs = scene.build.jobs().into_iter();
        let of_errors = jobs.filter(|it| {
            it.key
                .as_deref()
                .is_some_and(|key| key.starts_with("attr-"))
        });
        let states: Vec<JobState> = of_errors.map(|job| job.state).collect();
        assert_eq!(states.len(), skipped, "{on_error}: {states:?}");
        assert!(
            states.iter().all(|state| *state == JobState::Skipped),
            "{states:?}"
        );
        let document = scene.document();
        assert_eq!(document["counts"]["expected_errors"], 4);
        assert_eq!(document["counts"]["evaluation_errors"], 0);
        for error in document["errors"].as_array().unwrap() {
            assert_eq!(
                (&error["expected"], &error["refused"]),
                (&json!(true), &json!(false))
            );
            assert_eq!(error["step"], skipped > 0, "{error}");
        }
        let summary = &scene.build.annotations()["eval-once-summary"];
        for part in [
            "sums up 7 attributes: 3 targets (3 ",
            "), 4 expected errors.\n",
        ] {
            assert!(summary.body.contains(part), "{}", summary.body);
        }
        assert!(
            summary.body.contains("expected error: it needs Python 2"),
            "{}",
            summary.body
        );
        assert_eq!(summary.style, "success");
        let junit = "tests=\"7\" failures=\"0\" errors=\"0\" skipped=\"4\"";
        assert!(scene.junit().contains(junit), "{}", scene.junit());
    }

    let Some(step) = scene(&store, &keys("default.nix", "step")) else {
        return;
    };
    assert_eq!(step.build.run(), Outcome::Failed);
    let jobs = step.build.jobs().into_iter();
    let failed: Vec<String> = jobs
        .filter(|job| job.state == JobState::Failed)
        .filter_map(|job| job.label)
        .collect();
    assert_eq!(failed, [":boom: new", ":boom: odd"]);

    // What was found can be read all the same.
    let Some(none) = scene(&store, &keys("default.nix", "fail")) else {
        return;
    };
    assert_eq!(none.build.run(), Outcome::Failed);
    assert_eq!(none.steps_in_uploads(), [0; 0]);
    let (style, annotation) = none.annotation();
    assert_eq!(style, "error");
    let begin = "**Nothing is uploaded:** `on-error: fail` is set.\n\n**eval-once** recorded ";
    assert!(annotation.starts_with(begin), "{annotation}");
    assert!(annotation.contains("<code>new</code>"), "{annotation}");
    let (with_steps, without) = (step.document(), none.document());
    assert_eq!(without["counts"], with_steps["counts"]);
    let attrs = |document: &Value| -> Vec<Value> {
        let errors = document["errors"].as_array().unwrap().iter();
        errors.map(|error| error["attr"].clone()).collect()
    };
    assert_eq!(attrs(&without), attrs(&with_steps));
}

#[test]
fn a_build_whose_errors_are_only_reported_is_green_and_says_loudly_what_has_no_step() {
    let (Some(_), Some(_), Some(store)) = (tool("git"), program(), Store::new()) else {
        return;
    };
    store.targets(PACKAGES);
    store.write(
        "known.nix",
        "removeAttrs (import ./default.nix) [ \"odd\" ]",
    );
    let keys = json!({
        "file": "known.nix", "on-error": "report", "expect-errors": ["py", "go"], "summary": true
    });
    let Some(scene) = scene(&store, &keys) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Passed);
    let log = scene.build.job("record").plain();
    assert!(
        log.contains("warning: 3 evaluation errors have no step"),
        "{log}"
    );
    let (style, annotation) = scene.annotation();
    assert_eq!(style, "warning");
    for part in [
        "3 targets (3 to build), 3 evaluation errors, 2 expected errors.",
        "\n3 evaluation errors without a step:\n\n| Attribute | Message |\n| --- | --- |\n| <code>new</code> | this one is new |\n",
        "<details><summary>2 expected errors</summary>",
        "&#96;expect&#45;errors&#58; go&#96; matches nothing",
    ] {
        assert!(annotation.contains(part), "{part}: {annotation}");
    }
    let document = scene.document();
    let counts = json!({
        "attributes": 8, "targets": 3, "evaluation_errors": 3, "expected_errors": 2, "refused": 0
    });
    assert_eq!(document["counts"], counts);
    let errors = document["errors"].as_array().unwrap();
    let reported = errors.iter().filter(|error| error["expected"] == false);
    assert_eq!(reported.count(), 3);
    assert!(
        errors.iter().all(|error| error["step"] == false),
        "{errors:?}"
    );
    let summary = &scene.build.annotations()["eval-once-summary"];
    assert_eq!(summary.style, "warning");
    let counts = "8 attributes: 3 targets (3 built), 3 evaluation errors, 2 expected errors.";
    assert!(summary.body.contains(counts), "{}", summary.body);
    let row = "| <code>new</code> | evaluation error, without a step: this one is new |";
    assert!(summary.body.contains(row), "{}", summary.body);
    let junit = scene.junit();
    let counts = "tests=\"8\" failures=\"0\" errors=\"0\" skipped=\"5\"";
    assert!(junit.contains(counts), "{junit}");
    assert!(
        junit.contains("<skipped message=\"evaluation error: this one is new\"/>"),
        "{junit}"
    );
}

/// Four hundred attributes that do not evaluate, and two targets.
const MANY: &str = r#"let
  old = builtins.genList (i: {
    name = "package-${toString i}";
    value = throw "Package ‘package-${toString i}’ in /nix/pkgs/development/python-modules is not supported on ‘x86_64-linux’, refusing to evaluate.";
  }) 400;
in {
  a = file "a";
  b = file "b";
  old = builtins.listToAttrs old // { recurseForDerivations = true; };
}"#;

#[test]
fn hundreds_of_errors_fit_into_the_annotation_and_the_uploads() {
    let (Some(_), Some(_), Some(store)) = (tool("git"), program(), Store::new()) else {
        return;
    };
    store.targets(MANY);
    let known = json!({ "chunk": 150, "expect-errors": ["old.*"] });
    let report = json!({ "chunk": 150, "on-error": "report" });
    for (keys, uploads, style, heading) in [
        (known, &[150, 150, 102][..], "info", "400 expected errors"),
        (
            report,
            &[2],
            "warning",
            "400 evaluation errors without a step",
        ),
    ] {
        let Some(scene) = scene(&store, &keys) else {
            return;
        };
        let log = || scene.build.job("record").plain();
        assert_eq!(scene.build.run(), Outcome::Passed, "{}", log());
        assert_eq!(scene.build.rejections(), [""; 0]);
        assert_eq!(scene.steps_in_uploads(), uploads);
        let (seen, annotation) = scene.annotation();
        assert_eq!(seen, style);
        assert!(annotation.len() < 1 << 20, "{}", annotation.len());
        let folded = format!("<details><summary>{heading}</summary>\n\n| ");
        assert!(annotation.contains(&folded), "{annotation}");
        assert_eq!(
            annotation.matches("\n| <code>old&#46;package&#45;").count(),
            400
        );
        let document = scene.document();
        let errors = document["errors"].as_array().unwrap();
        assert_eq!(errors.len(), 400);
        for error in errors {
            let message = error["message"].as_str().unwrap();
            assert!(message.ends_with("refusing to evaluate."), "{error}");
        }
        // The log is not flooded.
        assert!(log().contains("error: and 390 more"), "{}", log());
    }
    let ended = dry_run(&store, &["--expect-errors", "old", "--skip", "none"]);
    let (red, skipped) = shown(&ended);
    assert_eq!((red.len(), skipped.len()), (0, 400));
    for (_, reason) in skipped {
        assert!(reason.chars().count() <= 70, "{reason}");
    }
}
