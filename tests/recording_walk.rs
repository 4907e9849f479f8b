//! What a recording takes for a target: what Nix takes for one, whatever can be called, however it is nested. And what it says
//! of what it did not walk.

use std::{collections::BTreeMap, collections::BTreeSet, fmt::Write as _};

use proptest::{prelude::*, sample::select};
use serde_json::json;

use crate::support::{
    program::{Ended, Program},
    recording::{Pipeline, Step},
    stand_in::StandIns,
    store::Store,
    target::expression,
};

/// A recording by hand, of everything whatever is built, with these flags.
fn record(store: &Store, flags: &[&str]) -> Program {
    store
        .eval_once(["pipeline", "--dry-run", "--skip", "none"])
        .args(flags)
}

fn recorded(store: &Store, flags: &[&str]) -> Pipeline {
    Pipeline::of(&record(store, flags).run())
}

/// What the step of this target evaluates to where nothing is left of the record.
#[track_caller]
fn evaluated(store: &Store, step: &Step) -> Ended {
    let mut record = step.record.clone();
    for key in ["drv", "outputs"] {
        record.as_object_mut().unwrap().remove(key);
    }
    let _ = std::fs::remove_file(store.work().join("result"));
    let no_flags: [&str; 0] = [];
    store
        .step(no_flags)
        .env("EVAL_ONCE_STEP", record.to_string())
        .run()
}

/// Its own lines that begin so, or are the hints behind such a line.
fn said(ended: &Ended) -> Vec<String> {
    let ours = ended.ours().into_iter();
    let told = ours.filter(|line| {
        !["evaluated ", "recorded ", "evaluation error: "]
            .iter()
            .any(|counts| line.starts_with(counts))
    });
    told.map(str::to_owned).collect()
}

fn system(store: &Store) -> String {
    let printed = store.nix(
        "nix-instantiate",
        ["--eval", "-E", "builtins.currentSystem"],
    );
    printed.trim_matches('"').to_owned()
}

/// Makes the working folder a flake that git knows.
fn flake(store: &Store, outputs: &str) {
    let system = system(store);
    let functions =
        expression("OUTPUTS").replace("builtins.currentSystem", &format!("\"{system}\""));
    let body = functions.replace("OUTPUTS", outputs);
    store.write(
        "flake.nix",
        &format!(
            "{{ outputs = {{ self }}:\n{}; }}",
            body.replace("SYSTEM", &system)
        ),
    );
    for arguments in [&["init", "--quiet"][..], &["add", "--all"]] {
        store.program("git").args(arguments).run().exits(0);
    }
}

// ---- what can be called

const CALLABLE: &str = r#"
let marked = set: set // { recurseForDerivations = true; };
in {
  plain = file "plain";
  tool = file "tool" // { __functor = self: x: file "called"; };
  with-default = file "with-default" // { __functor = self: { x ? 1 }: file "called"; };
  with-argument = file "with-argument" // { __functor = self: { n }: file "called-${toString n}"; };
  inner = marked { tool = file "inner" // { __functor = self: x: x; }; };
  listed = [ (file "listed" // { __functor = self: { x ? 1 }: file "called"; }) ];
}
"#;

#[test]
fn a_derivation_that_can_be_called_is_a_derivation() {
    let Some(store) = Store::new() else { return };
    store.write("ci.nix", &expression(CALLABLE));
    for flags in [vec![], vec!["--arg", "n", "3"], vec!["--argstr", "x", "y"]] {
        let flags = [&["--file", "ci.nix"][..], &flags].concat();
        let pipeline = recorded(&store, &flags);
        assert!(pipeline.broken().is_empty(), "{:?}", pipeline.broken());
        let mut drvs = pipeline.drvs();
        let listed = drvs.remove(r#"["listed","0"]"#).unwrap();
        assert!(listed.ends_with("-listed.drv"), "{listed}");
        let whole = [&["ci.nix"], &flags[2..]].concat();
        let printed = store.nix("nix-instantiate", whole);
        let nix: BTreeSet<&str> = printed.lines().collect();
        assert_eq!(
            drvs.values().map(String::as_str).collect::<BTreeSet<_>>(),
            nix
        );
        for (attr, step) in pipeline.steps() {
            let ended = evaluated(&store, &step);
            ended.takes("evaluated", "not-recorded");
            assert_eq!(ended.report()["drv"], step.record["drv"], "{attr}");
        }
    }
    // By hand the attribute is what `-A` makes of it.
    let nix = store.instantiate("ci.nix", "with-default");
    let ended = store.step(["--file", "ci.nix", "-A", "with-default"]).run();
    assert_eq!(
        ended.takes("evaluated", "not-recorded").report()["drv"],
        nix.as_str()
    );
    store
        .step(["--file", "ci.nix", "-A", "tool"])
        .run()
        .fails(65, "evaluation");
}

#[test]
fn a_callable_derivation_that_does_not_evaluate_is_not_built_by_calling_it() {
    let Some(store) = Store::new() else { return };
    store.targets(
        "{ fine = file \"fine\"; bad = build (throw \"its words\") \"\" // { __functor = self: { x ? 1 }: file \"called\"; }; }",
    );
    let pipeline = recorded(&store, &[]);
    assert_eq!(pipeline.broken(), [r#"["bad"]"#]);
    let ended = evaluated(&store, &pipeline.step(&["bad"]));
    ended.fails(65, "evaluation").passes_on("its words");
}

#[test]
fn a_functor_without_the_arguments_it_needs_is_no_target_and_no_error() {
    let Some(store) = Store::new() else { return };
    store.targets(
        "{ fine = file \"fine\"; lambda = { __functor = self: x: x; }; needs = { __functor = self: { needed }: needed; }; \
         marked = { recurseForDerivations = true; __functor = self: x: x; inner = file \"inner\"; }; \
         twice = { __functor = self: { __functor = self: { needed }: needed; }; }; \
         called = { __functor = self: { x ? \"called\" }: file x; }; \
         sets = { recurseForDerivations = true; __functor = self: { x ? \"deep\" }: { deep = file x; }; }; }",
    );
    let pipeline = recorded(&store, &[]);
    assert!(pipeline.broken().is_empty(), "{:?}", pipeline.broken());
    assert_eq!(
        pipeline.drvs().keys().collect::<Vec<_>>(),
        [r#"["called"]"#, r#"["fine"]"#, r#"["sets","deep"]"#]
    );
}

#[test]
fn a_root_that_is_a_callable_derivation_is_one_target() {
    let Some(store) = Store::new() else { return };
    store.targets("file \"root\" // { __functor = self: { x ? 1 }: file \"called\"; }");
    let pipeline = recorded(&store, &[]);
    let step = pipeline.step(&[]);
    assert!(step.record["drv"].as_str().unwrap().ends_with("-root.drv"));
    let ended = evaluated(&store, &step);
    assert_eq!(ended.report()["drv"], step.record["drv"]);
}

/// A Nix before 2.10 is asked once more for each message of pure evaluation.
#[test]
fn the_first_messages_of_a_flake_are_known_and_since_2_10_all_of_them() {
    let Some(store) = Store::new() else { return };
    let names: Vec<String> = (10..24).map(|number| format!("t{number}")).collect();
    let throwing = names
        .iter()
        .map(|name| format!("{name} = throw \"words of {name}\";"))
        .collect::<Vec<_>>()
        .concat();
    let metadata = r#"b = file "b" // { meta = { description = throw "words of b"; }; };"#;
    flake(
        &store,
        &format!("{{ packages.SYSTEM = {{ a = file \"a\"; {throwing} {metadata} }}; }}"),
    );
    let system = system(&store);
    let pipeline = recorded(&store, &["--flake", ".", "--expect-errors", "packages.*.*"]);
    let version = store.program("nix").arg("--version").run().stdout;
    let is_old = ["2.8.", "2.9."].iter().any(|old| version.contains(old));
    for (number, name) in names.iter().enumerate() {
        let reason = if is_old && number >= 10 {
            "does not evaluate".to_owned()
        } else {
            format!("error: words of {name}")
        };
        let step = pipeline.step(&["packages", &system, name]);
        assert_eq!(step.json["skip"], reason.as_str(), "{name}");
    }
    let message = if is_old {
        "its metadata throws"
    } else {
        "words of b"
    };
    // A build of it evaluates no metadata, so that Nix says nothing of that.
    let all = pipeline.json.to_string();
    assert!(all.contains(&format!(".b: {message}")), "{all}");
}

#[test]
fn nothing_of_a_flake_is_called() {
    let Some(store) = Store::new() else { return };
    flake(
        &store,
        r#"{
          packages.SYSTEM = {
            plain = file "plain";
            tool = file "tool" // { __functor = self: x: file "called"; };
            with-default = file "with-default" // { __functor = self: { x ? 1 }: file "called"; };
            function = { x ? 1 }: file "function";
            functor = { recurseForDerivations = true; __functor = self: { x ? 1 }: file "functor"; inner = file "inner"; };
            __functor = self: x: throw "called";
          };
          __functor = self: x: throw "called";
        }"#,
    );
    let pipeline = recorded(&store, &["--flake", "."]);
    assert!(pipeline.broken().is_empty(), "{:?}", pipeline.broken());
    let drvs = pipeline.drvs();
    let system = system(&store);
    let below = |name: &str| format!("packages.{system}.{name}");
    let found = ["functor.inner", "plain", "tool", "with-default"];
    assert_eq!(drvs.len(), found.len(), "{drvs:?}");
    for name in found {
        let names: Vec<&str> = [
            &["packages", &system],
            &*name.split('.').collect::<Vec<_>>(),
        ]
        .concat();
        let step = pipeline.step(&names);
        let installable = format!(".#{}", below(name));
        let nix = store.nix("nix", ["path-info", "--derivation", &installable]);
        assert_eq!(step.record["drv"], nix.as_str(), "{name}");
        let ended = evaluated(&store, &step);
        ended.takes("evaluated", "not-recorded");
        assert_eq!(ended.report()["drv"], nix.as_str(), "{name}");
    }
    for name in ["function", "functor", "nonesuch"] {
        let installable = format!(".#{}", below(name));
        let nix = store
            .program("nix")
            .args(["build", "--no-link", &installable])
            .run();
        nix.exits(1);
        store
            .step(["--flake", ".", "-A", &below(name)])
            .run()
            .fails(65, "evaluation");
    }
}

/// A value as it may stand in an expression. The numbers are names of derivations, each of which there is once.
#[derive(Clone, Debug)]
enum Node {
    Text,
    Derivation,
    /// A derivation with a functor that takes `x: …`, or `{ x ? 1 }: …`, or `{ needed }: …`.
    Callable(&'static str),
    /// A function with this pattern, and what it gives.
    Function(&'static str, Box<Node>),
    /// A set with this mark, and this functor, which gives something.
    Set {
        mark: &'static str,
        functor: Option<(&'static str, Box<Node>)>,
        below: Vec<Node>,
    },
    List(Vec<Node>),
}

const PATTERNS: [&str; 4] = ["x:", "{ x ? 1 }:", "{ needed }:", "{ ... }:"];
const MARKS: [&str; 4] = [
    "",
    "recurseForDerivations = true;",
    "recurseForDerivations = true;",
    "recurseForDerivations = false;",
];

fn node() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![
        1 => Just(Node::Text),
        4 => Just(Node::Derivation),
        3 => select(&PATTERNS[..]).prop_map(Node::Callable),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        let functor = proptest::option::weighted(
            0.3,
            (select(&PATTERNS[..]), inner.clone().prop_map(Box::new)),
        );
        prop_oneof![
            1 => (select(&PATTERNS[..]), inner.clone()).prop_map(|(pattern, node)| Node::Function(pattern, Box::new(node))),
            4 => (select(&MARKS[..]), functor, proptest::collection::vec(inner.clone(), 0..4))
                .prop_map(|(mark, functor, below)| Node::Set { mark, functor, below }),
            1 => proptest::collection::vec(inner, 0..3).prop_map(Node::List),
        ]
    })
}

impl Node {
    /// The paths of its targets, where nothing is called: derivations that stand in sets only, each of them marked. (From a
    /// list Nix selects nothing.)
    fn selected(&self, path: &str, paths: &mut Vec<String>) {
        match self {
            Self::Derivation | Self::Callable(_) => paths.push(path.to_owned()),
            Self::Set { mark, below, .. } if mark.contains("true") => {
                for (number, node) in below.iter().enumerate() {
                    node.selected(&format!("{path}.a{number}"), paths);
                }
            }
            _ => {}
        }
    }

    /// Writes it as a Nix expression.
    fn write(&self, text: &mut String, count: &mut u32) {
        let mut derivation = |text: &mut String| {
            *count += 1;
            let _ = write!(text, "(file \"d{count}\")");
        };
        match self {
            Self::Text => text.push_str("\"text\""),
            Self::Derivation => derivation(text),
            Self::Callable(pattern) => {
                text.push('(');
                derivation(text);
                let _ = write!(text, " // {{ __functor = self: {pattern} ");
                derivation(text);
                text.push_str("; })");
            }
            Self::Function(pattern, node) => {
                let _ = write!(text, "({pattern} ");
                node.write(text, count);
                text.push(')');
            }
            Self::Set {
                mark,
                functor,
                below,
            } => {
                let _ = write!(text, "{{ {mark} ");
                for (number, node) in below.iter().enumerate() {
                    let _ = write!(text, "a{number} = ");
                    node.write(text, count);
                    text.push_str("; ");
                }
                if let Some((pattern, node)) = functor {
                    let _ = write!(text, "__functor = self: {pattern} ");
                    node.write(text, count);
                    text.push_str("; ");
                }
                text.push('}');
            }
            Self::List(nodes) => {
                text.push_str("[ ");
                for node in nodes {
                    node.write(text, count);
                    text.push(' ');
                }
                text.push(']');
            }
        }
    }
}

/// A set with these in it.
fn set_of(nodes: &[Node]) -> String {
    let mut text = String::from("{ ");
    let mut count = 0;
    for (number, node) in nodes.iter().enumerate() {
        let _ = write!(text, "t{number} = ");
        node.write(&mut text, &mut count);
        text.push_str(";\n");
    }
    text + "}"
}

fn names(attr: &str) -> Vec<String> {
    serde_json::from_str(attr).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3, max_shrink_iters: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_nested_in_what_the_targets_are_those_of_nix_instantiate(
        nodes in proptest::collection::vec(node(), 24),
    ) {
        let Some(store) = Store::new() else { return Ok(()) };
        store.write("ci.nix", &expression(&set_of(&nodes)));
        let ended = record(&store, &["--file", "ci.nix"]).run();
        if ended.stderr.contains("there are no targets") {
            return Ok(());
        }
        let pipeline = Pipeline::of(&ended);
        prop_assert!(pipeline.broken().is_empty(), "{ended}");
        let steps = pipeline.steps();
        // Each attribute by itself is what Nix makes of it, a derivation that can be called apart: that is what stands there.
        let called: Vec<_> = steps
            .iter()
            .filter(|(_, step)| step.record.get("call").is_none())
            .collect();
        let mut arguments = vec!["ci.nix".to_owned()];
        for (attr, _) in &called {
            arguments.extend(["-A".to_owned(), names(attr).join(".")]);
        }
        if !called.is_empty() {
            let printed = store.nix("nix-instantiate", arguments);
            let drvs: Vec<_> = called.iter().map(|(_, step)| &step.record["drv"]).collect();
            prop_assert_eq!(json!(printed.lines().collect::<Vec<_>>()), json!(drvs));
        }
        let uncalled = steps.iter().filter(|(_, step)| step.record.get("call").is_some());
        for (attr, step) in uncalled.take(5) {
            let ended = evaluated(&store, step);
            prop_assert_eq!(&ended.report()["drv"], &step.record["drv"], "{}", attr);
        }
        // And all that Nix finds in the whole is there.
        let mut by_tree: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for (attr, step) in &steps {
            let drv = step.record["drv"].as_str().unwrap();
            by_tree.entry(names(attr)[0].clone()).or_default().insert(drv);
        }
        for number in 0..nodes.len() {
            let tree = format!("t{number}");
            let expr = format!("{{ {tree} = (import ./ci.nix).{tree}; }}");
            let ended = store.program("nix-instantiate").args(["-E", &expr]).run();
            // Nix fails at a marked set with a functor that needs arguments.
            if !ended.status.success() {
                prop_assert!(ended.stderr.contains("does not evaluate to a derivation") || ended.stderr.contains("needed"), "{ended}");
                continue;
            }
            let ours = by_tree.get(&tree).cloned().unwrap_or_default();
            let theirs: BTreeSet<&str> = ended.stdout.lines().collect();
            prop_assert!(theirs.is_subset(&ours), "{tree}: {theirs:?}, not {ours:?}");
        }
    }

    #[test]
    fn whatever_is_nested_in_what_the_targets_of_a_flake_are_those_of_nix_build(
        nodes in proptest::collection::vec(node(), 16),
    ) {
        let Some(store) = Store::new() else { return Ok(()) };
        flake(&store, &format!("{{ packages.SYSTEM = {}; }}", set_of(&nodes)));
        let ended = record(&store, &["--flake", "."]).run();
        if ended.stderr.contains("there are no targets") {
            return Ok(());
        }
        let pipeline = Pipeline::of(&ended);
        prop_assert!(pipeline.broken().is_empty(), "{ended}");
        let steps = pipeline.steps();
        let mut paths = Vec::new();
        let system = system(&store);
        for (number, node) in nodes.iter().enumerate() {
            node.selected(&format!("packages.{system}.t{number}"), &mut paths);
        }
        let is_number = |name: &String| name.parse::<u32>().is_ok();
        let ours: BTreeMap<String, &str> = steps
            .iter()
            .map(|(attr, step)| (names(attr), step.record["drv"].as_str().unwrap()))
            .filter(|(names, _)| !names.iter().any(is_number))
            .map(|(names, drv)| (names.join("."), drv))
            .collect();
        paths.sort();
        prop_assert_eq!(ours.keys().collect::<Vec<_>>(), paths.iter().collect::<Vec<_>>());
        let mut arguments = vec!["path-info".to_owned(), "--derivation".into()];
        arguments.extend(paths.iter().map(|path| format!(".#{path}")));
        if !paths.is_empty() {
            let printed = store.nix("nix", arguments);
            prop_assert_eq!(
                printed.lines().collect::<BTreeSet<_>>(),
                ours.values().copied().collect::<BTreeSet<_>>()
            );
        }
    }
}

#[test]
fn a_derivation_that_does_not_say_what_nix_asks_for_is_an_evaluation_error() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"let d = n: file n; without = n: builtins.removeAttrs (d "without") [ n ]; in {
          fine = d "fine" // { outputs = throw "not asked for"; system = throw "nor this"; };
          no-name = without "name";
          no-output-name = without "outputName";
          no-drv-path = without "drvPath";
          number = d "number" // { name = 1; };
          path = d "path" // { name = "${d "other"}"; };
          empty = d "empty" // { outputName = ""; };
          throws = d "throws" // { outputName = throw "its words"; };
        }"#,
    );
    let ended = record(&store, &[]).run();
    let pipeline = Pipeline::of(&ended);
    assert_eq!(pipeline.drvs().keys().collect::<Vec<_>>(), [r#"["fine"]"#]);
    assert_eq!(pipeline.broken().len(), 7);
    ended
        .passes_on("evaluation error: no-name: the derivation has no name")
        .passes_on("evaluation error: number: its name is an integer; expected a string")
        .passes_on("evaluation error: throws: its words");
    for broken in pipeline.broken() {
        let name = &names(&broken)[0];
        let nix = store
            .program("nix-instantiate")
            .args(["default.nix", "-A", name])
            .run();
        nix.exits(1);
        evaluated(&store, &pipeline.step(&[name])).fails(65, "evaluation");
    }
}

#[test]
fn what_nix_eval_jobs_prints_nothing_of_is_not_left_out_either() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\"; }");
    let drv = store.instantiate("default.nix", "a");
    let line = json!({ "attr": "a", "attrPath": ["a"], "drvPath": drv, "inputDrvs": {} });
    let script = format!("#!/bin/sh\necho '{line}'\n");
    let stand_ins = StandIns::new(store.bin()).instead("nix-eval-jobs", &script);
    let ended = record(
        &store,
        &[
            "--evaluator",
            "nix-eval-jobs",
            "--exclude",
            "aa",
            "--exclude",
            "b.c",
        ],
    )
    .env("PATH", stand_ins.path(&store))
    .run();
    assert_eq!(Pipeline::of(&ended).drvs().len(), 1);
    assert_eq!(
        said(&ended),
        [
            "warning: `exclude: aa` matches nothing",
            "hint: did you mean `a`?",
            "warning: `exclude: b.c` matches nothing",
            "hint: did you mean `a.c`?"
        ]
    );
}

// ---- the mark

#[test]
fn a_mark_that_is_no_boolean_is_an_evaluation_error_of_that_attribute() {
    let Some(store) = Store::new() else { return };
    let marks = [
        ("set", "{ }", "a set"),
        ("string", "\"true\"", "a string"),
        ("null", "null", "null"),
        ("int", "1", "an integer"),
        ("list", "[ ]", "a list"),
        ("function", "(x: x)", "a function"),
    ];
    for (_, mark, _) in marks {
        let set = format!("{{ s = {{ recurseForDerivations = {mark}; }}; }}");
        let nix = store.program("nix-instantiate").args(["-E", &set]).run();
        nix.exits(1).passes_on("Boolean");
    }
    let sets: Vec<String> = marks
        .iter()
        .map(|(name, mark, _)| {
            format!("\"{name}\" = {{ recurseForDerivations = {mark}; a = file \"{name}\"; }};")
        })
        .collect();
    store.targets(&format!(
        "{{ fine = file \"fine\"; not = {{ recurseForDerivations = false; a = file \"not\"; }}; \
         throws = {{ recurseForDerivations = throw \"its words\"; a = file \"throws\"; }}; {} }}",
        sets.concat()
    ));
    let ended = record(&store, &[]).run();
    let pipeline = Pipeline::of(&ended);
    assert_eq!(pipeline.drvs().keys().collect::<Vec<_>>(), [r#"["fine"]"#]);
    for (name, _, is) in marks {
        ended.passes_on(&format!(
            "evaluation error: {name}: recurseForDerivations is {is}; expected true or false"
        ));
    }
    ended.passes_on("evaluation error: throws: its words");
    assert_eq!(pipeline.broken().len(), marks.len() + 1);
    // Given the set itself, Nix does not ask for its mark, and would build what is in it.
    for broken in pipeline.broken() {
        let name = &names(&broken)[0];
        evaluated(&store, &pipeline.step(&[name])).fails(65, "evaluation");
    }
    // What is walked whatever it says is not asked.
    let all = recorded(&store, &["--recurse", "all"]);
    assert_eq!(all.broken(), [r#"["throws","recurseForDerivations"]"#]);
    assert_eq!(all.drvs().len(), marks.len() + 3);
}

#[test]
fn a_set_that_contains_itself_costs_itself_and_says_how_to_leave_it_out() {
    let Some(store) = Store::new() else { return };
    let set = "recurseForDerivations = true; inherit s; x = file \"x\"; other = file \"other\";";
    let itself = |at: &str, sets: &str, or: &str| {
        format!(
            "evaluation error: {at}: sets are nested deeper than 32 levels, and their names repeat: the set seems to contain itself ({sets}.…): exclude it (`exclude: {at}`){or}"
        )
    };
    let sets = "s.s.s.s.s.s.s";
    for (flags, mark, or) in [
        (
            &["--recurse", "all"][..],
            "",
            ", or walk only marked sets (`recurse: marked`)",
        ),
        (
            &[],
            "recurseForDerivations = true;",
            ", or remove its `recurseForDerivations`",
        ),
    ] {
        let set = set.replace("recurseForDerivations = true;", mark);
        store.targets(&format!("let s = {{ {set} }}; in s"));
        let ended = record(&store, flags).run();
        let pipeline = Pipeline::of(&ended);
        assert_eq!(pipeline.drvs().len(), 2);
        assert_eq!(pipeline.broken(), [r#"["s"]"#]);
        ended.passes_on(&itself("s", sets, or));
    }
    // What the hint says is true.
    let pipeline = recorded(&store, &["--exclude", "s"]);
    assert_eq!(pipeline.drvs().len(), 2);
    assert_eq!(pipeline.broken(), [""; 0]);
    // One in which no name is repeated is too deep where the 33rd set begins.
    store.targets("let set = n: { recurseForDerivations = true; x = file \"x${toString n}\"; \"s${toString n}\" = set (n + 1); }; in set 1");
    let ended = record(&store, &[]).run();
    let pipeline = Pipeline::of(&ended);
    assert_eq!(pipeline.drvs().len(), 32);
    assert_eq!(pipeline.broken().len(), 1);
    let deep: Vec<String> = (1..=32).map(|n| format!("s{n}")).collect();
    let deep = deep.join(".");
    ended.passes_on(&format!(
        "evaluation error: {deep}: sets are nested deeper than 32 levels: exclude it (`exclude: {deep}`), or "
    ));
    // In `hydraJobs` every set is walked, marked or not.
    flake(
        &store,
        r#"{ hydraJobs = let s = { inherit s; x = file "x"; }; in s; }"#,
    );
    let ended = record(&store, &["--flake", "."]).run();
    assert_eq!(Pipeline::of(&ended).drvs().len(), 1);
    ended.passes_on(&itself("hydraJobs.s", &format!("hydraJobs.{sets}"), ""));
    ended.never_says("recurseForDerivations");
    // Before 2.10 it is not evaluated in a conversation, and nothing is said of that.
    ended.never_says("fetchurl.nix");
}

// ---- messages

#[test]
fn an_error_without_words_has_words() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\"; empty = throw \"\"; line = throw \"\\n\"; }");
    let ended = record(&store, &[]).run();
    let pipeline = Pipeline::of(&ended);
    assert_eq!(pipeline.broken(), [r#"["empty"]"#, r#"["line"]"#]);
    for name in ["empty", "line"] {
        ended.passes_on(&format!(
            "evaluation error: {name}: it throws an empty message"
        ));
    }
}

#[test]
fn an_error_without_words_has_words_in_a_flake_too() {
    let Some(store) = Store::new() else { return };
    flake(&store, r#"{ packages.SYSTEM.empty = throw ""; }"#);
    let ended = record(&store, &["--flake", "."]).run();
    ended.exits(0).passes_on(": it throws an empty message");
}

#[test]
fn a_root_that_names_a_store_path_that_is_nowhere_is_an_evaluation_error() {
    let Some(store) = Store::new() else { return };
    let nowhere = store.folder().join("0lqnbrvn12aq3702vvxx00k31ga2sg2g-lib");
    let nowhere = nowhere.to_str().unwrap();
    for reads in [
        format!("import {nowhere}/default.nix"),
        format!("builtins.readFile {nowhere}"),
        format!("builtins.storePath {nowhere}"),
    ] {
        store.targets(&format!("builtins.seq ({reads}) {{ a = file \"a\"; }}"));
        let ended = record(&store, &[]).run();
        ended.exits(65).passes_on("default.nix does not evaluate: ");
    }
}

#[test]
fn an_attribute_at_which_nix_is_killed_for_another_programs_sake_is_evaluated_once_more() {
    for (kills, result, says) in [
        (1, r#"file "a""#, ": 1 target (1 to build)"),
        (1, r#"throw "its words""#, "evaluation error: a: its words"),
        (
            2,
            r#"file "a""#,
            "evaluation error: a: it needs more memory than the ",
        ),
    ] {
        // The builder's parent is the evaluator.
        let Some(store) = Store::without_daemon() else {
            return;
        };
        let killed = store.root().join("killed");
        let times = if kills == 1 { "1" } else { "1 2" };
        let builder = format!(
            "for n in {times}; do if [ ! -e {killed}$n ]; then : >{killed}$n; kill -KILL $PPID; exit 1; fi; done; echo 1 >$out",
            killed = killed.display()
        );
        let needs = format!("builtins.seq (import (build \"needed\" {builder:?}))");
        store.targets(&format!("{{ a = {needs} ({result}); }}"));
        let ended = record(&store, &["--workers", "1"]).run();
        ended.passes_on("a: Nix was killed by SIGKILL, which the kernel sends when memory runs out; evaluating it once more");
        ended.exits(0).passes_on(says);
    }
}

#[test]
fn an_argument_that_is_no_expression_is_named() {
    let Some(store) = Store::new() else { return };
    store.write(
        "ci.nix",
        &expression("CI").replace("CI", "{ a = file \"a\"; }"),
    );
    let ended = |more: &[&str]| {
        let flags = [&["--file", "ci.nix", "--argstr", "text", ")"], more].concat();
        record(&store, &flags).run()
    };
    ended(&["--arg", "n", "1"]).exits(0);
    for wrong in ["1 +", "undefined"] {
        let wrong = ["--arg", "wrong", wrong];
        ended(&wrong)
            .exits(65)
            .passes_on("hint: correct the expression of `wrong` in `arg`");
        ended(&[&["--arg", "fine", "1"][..], &wrong].concat())
            .exits(65)
            .passes_on("hint: correct the expressions in `arg`: one of fine, wrong");
    }
    // A mistake in the file has its place.
    store.write("ci.nix", "{ n }: 1 +");
    ended(&["--arg", "n", "1"])
        .exits(65)
        .passes_on("ci.nix:1:")
        .never_says("in `arg`");
}

#[test]
fn an_exclusion_matches_by_names_and_by_wildcards() {
    let Some(store) = Store::new() else { return };
    let set = |of: &str| {
        let target =
            |name: &str| format!("{name} = file \"{of}-{}\";", name.replace(['"', '*'], ""));
        let targets = ["x", "y", "\"*\""].map(target).concat();
        format!("{{ recurseForDerivations = true; {targets} }}")
    };
    let (a, b, star) = (set("a"), set("b"), set("star"));
    store.targets(&format!("{{ a = {a}; b = {b}; \"*\" = {star}; }}"));
    for (exclude, left) in [
        (&["a.x"][..], 8),
        (&["*.x"], 6),
        (&["a.*"], 6),
        (&["*.x", "a.x", "a.*", "a.x"], 4),
        (&["*"], 0),
        (&["*.*", "b"], 0),
    ] {
        let flags: Vec<&str> = exclude
            .iter()
            .flat_map(|path| ["--exclude", path])
            .collect();
        let ended = record(&store, &flags).run();
        if left == 0 {
            ended.exits(65).passes_on("there are no targets");
        } else {
            assert_eq!(Pipeline::of(&ended).drvs().len(), left, "{exclude:?}");
        }
        ended.never_says("matches nothing");
    }
}

// ---- memory

/// It costs as much as the last time, as far as is known, and so a second worker begins with the first. But then the root has grown,
/// and both have too much at the same moment: of neither that says anything about all the memory.
#[test]
fn a_root_that_has_outgrown_its_part_of_the_memory_is_evaluated_by_fewer_processes() {
    let Some(store) = Store::new() else { return };
    let names = ["a", "b", "c", "d"];
    // Each takes as long as this however fast the machine is: a second process pays, also where the root takes a second or two.
    let slow = |name: &&str| {
        format!(
            "{name} = file \"{name}${{toString (import (build \"waits-{name}\" \"/bin/sleep 1.5; echo 1 > $out\"))}}\";"
        )
    };
    // The second one that comes here lets the first one go on.
    let meeting = store.work().join("meeting");
    store.write(
        "meet",
        "if mkdir first; then read line <meeting; elif mkdir second; then echo >meeting; fi 2>/dev/null; echo true",
    );
    unix::unistd::mkfifo(&meeting, unix::sys::stat::Mode::S_IRWXU).unwrap();
    store.targets(&format!(
        "let twice = n: text: if n == 0 then text else twice (n - 1) (text + text); mebibyte = twice 20 \"x\"; size = import ./size; \
         all = assert size == 1 || builtins.exec [ \"/bin/sh\" \"meet\" ]; builtins.genList (n: mebibyte) size; \
         in builtins.seq (builtins.concatStringsSep \"\" all) {{ {} }}",
        names.iter().map(slow).collect::<String>()
    ));
    let flags = ["--workers", "2", "--memory", "360"];
    // Of the 360 MiB that takes 264 at once, and with every version of Nix.
    for (size, is_grown) in [("1", false), ("120", true)] {
        store.write("size", size);
        let ended = record(&store, &flags)
            .env(
                "NIX_CONFIG",
                "allow-unsafe-native-code-during-evaluation = true",
            )
            .run();
        assert_eq!(Pipeline::of(&ended).drvs().len(), names.len(), "{ended}");
        let line = "the root alone needs more memory than 180 MiB; continuing with 1 process";
        assert_eq!(
            said(&ended).iter().any(|said| said == line),
            is_grown,
            "{ended}"
        );
    }
}

// ---- the infrastructure

/// What ends all workers at once at the root, where each of them is at first, is one disturbance: none of them repeats another one.
#[test]
fn two_workers_that_are_killed_at_the_root_at_once_are_both_repeated() {
    let Some(store) = Store::new() else { return };
    let names = ["a", "b", "c", "d"];
    // As long as this however fast the machine is: a second process pays.
    let slow = |name: &&str| {
        format!(
            "{name} = file \"{name}${{toString (import (build \"waits-{name}\" \"/bin/sleep 1.5; echo 1 > $out\"))}}\";"
        )
    };
    // The second one that comes here lets the first one go on.
    let meeting = store.work().join("meeting");
    store.write(
        "meet",
        "if mkdir first; then read line <meeting; kill -ALRM $PPID; elif mkdir second; then echo >meeting; kill -ALRM $PPID; fi \
         2>/dev/null; echo true",
    );
    unix::unistd::mkfifo(&meeting, unix::sys::stat::Mode::S_IRWXU).unwrap();
    store.targets(&format!(
        "assert import ./quiet || builtins.exec [ \"/bin/sh\" \"meet\" ]; {{ {} }}",
        names.iter().map(slow).collect::<String>()
    ));
    for quiet in ["true", "false"] {
        store.write("quiet", quiet);
        let ended = record(&store, &["--workers", "2"])
            .env(
                "NIX_CONFIG",
                "allow-unsafe-native-code-during-evaluation = true",
            )
            .run();
        assert_eq!(Pipeline::of(&ended).drvs().len(), names.len(), "{ended}");
        let repeated = said(&ended);
        let repeated = repeated
            .iter()
            .filter(|line| line.ends_with("; evaluating it once more"));
        assert_eq!(
            repeated.count(),
            if quiet == "true" { 0 } else { 2 },
            "{ended}"
        );
    }
}

// ---- what was not walked

#[test]
fn unmarked_sets_that_hold_derivations_are_listed() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"{
          shell = file "shell";
          packages = { first = throw "no matter"; a = file "a"; };
          checks.deeper.b = file "b";
          off = { recurseForDerivations = false; c = file "c"; };
          lib = { id = x: x; version = "1"; };
          aborts.d = abort "no matter either";
          builds.e = import (build "imported" "echo it-was-built >&2; exit 1");
          hosts = { web = file "web"; };
          marked = { recurseForDerivations = true; inner.f = file "f"; g = file "g"; };
        }"#,
    );
    let ended = record(&store, &[]).run();
    assert_eq!(Pipeline::of(&ended).drvs().len(), 2);
    assert_eq!(
        said(&ended),
        [
            "warning: 4 sets without `recurseForDerivations` hold derivations that are not recorded: checks, hosts, marked.inner, packages",
            "hint: set `recurse: all` to record every set, or `attr: checks` to record this one; sets in `exclude` are not listed"
        ]
    );
    ended.never_says("it-was-built").never_says("no matter");
    let excluded = ["checks", "hosts", "marked.inner", "packages"];
    let flags: Vec<&str> = excluded
        .iter()
        .flat_map(|name| ["--exclude", name])
        .collect();
    assert_eq!(said(&record(&store, &flags).run()), [""; 0]);
    // Where nothing else is found, that is still the reason.
    store.targets("{ packages.a = file \"a\"; }");
    let ended = record(&store, &[]).run();
    ended.exits(65).passes_on(
        "1 set without `recurseForDerivations` holds derivations that are not recorded: packages",
    );
}

#[test]
fn other_outputs_of_a_flake_are_named() {
    let Some(store) = Store::new() else { return };
    flake(
        &store,
        r#"{
          packages.SYSTEM = { a = file "a"; legacy.b = file "b"; };
          packages.other-system.a = throw "never looked at";
          checks.another-system.a = throw "never looked at";
          devShells.SYSTEM.default = throw "never looked at";
          formatter.SYSTEM = throw "never looked at";
          nixosConfigurations.web = throw "never looked at";
          lib = throw "never looked at";
        }"#,
    );
    let system = system(&store);
    let ended = record(&store, &["--flake", ".", "--exclude", "formatter"]).run();
    assert_eq!(Pipeline::of(&ended).drvs().len(), 1);
    assert_eq!(
        said(&ended),
        [
            format!("warning: 1 set without `recurseForDerivations` holds derivations that are not recorded: packages.{system}.legacy"),
            format!("hint: set `recurse: all` to record every set, or `attr: packages.{system}.legacy` to record this one; sets in `exclude` are not listed"),
            "only checks, packages and hydraJobs of the flake are recorded, not its devShells, nixosConfigurations".into(),
            format!(
                "hint: add a recording of its own (`attr: devShells.{system}`, `attr: nixosConfigurations.NAME.config.system.build.toplevel`), \
                 or add it to the flake's checks; outputs in `exclude` are not listed"
            ),
            "the flake's checks and packages for another-system, other-system are not recorded".into(),
            "hint: name a system under `agents` to record it as well".into(),
        ]
    );
    let ended = record(
        &store,
        &["--flake", ".", "-A", &format!("packages.{system}.legacy")],
    )
    .run();
    assert_eq!(said(&ended), [""; 0]);
}

#[test]
fn a_name_in_the_keys_that_matches_nothing_is_reported_with_the_nearest_name() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"{
          fine = file "fine";
          checks = { recurseForDerivations = true; slow = file "slow"; quick = file "quick"; };
          big = with' { requiredSystemFeatures = [ "big-parallel" ]; } "big" "echo > $out";
        }"#,
    );
    let agents = json!({
        system(&store): { "queue": "here" },
        "feature:big-parallel": { "queue": "big" },
        "feature:big-paralel": { "queue": "big" },
        "riscv64-linux": { "queue": "elsewhere" },
    });
    let ended = record(
        &store,
        &[
            "--exclude",
            "checks.slow",
            "--exclude",
            "chekcs.quick",
            "--exclude",
            "*.slwo",
            "--agents",
            &agents.to_string(),
        ],
    )
    .run();
    assert_eq!(Pipeline::of(&ended).drvs().len(), 3);
    assert_eq!(
        said(&ended),
        [
            "warning: `exclude: chekcs.quick` matches nothing",
            "hint: did you mean `checks.quick`?",
            "warning: `exclude: *.slwo` matches nothing",
            "hint: did you mean `*.slow`?",
            "warning: `agents: feature:big-paralel` matches no target: none needs that feature",
            "hint: did you mean `big-parallel`?",
            "warning: `agents: riscv64-linux` matches no target: none is built on that system",
            &format!("hint: targets are built on {}", system(&store)),
        ]
    );
}
