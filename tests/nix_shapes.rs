//! Expressions of the shapes that Nix's own functional tests have (`tests/shapes`): what `nix-instantiate` and `nix-build` make
//! of them, a recording and its steps make of them as well. The same `.drv`s, and the same success.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fmt::Write as _,
    fs,
    path::Path,
};

use serde_json::{Value, json};

use crate::support::{
    program::Ended,
    recording::{Pipeline, Step},
    store::Store,
};

/// An expression, and how Nix and a recording are told to evaluate it.
struct Shape<'a> {
    file: &'a str,
    /// Flags that `nix-instantiate`, `nix-build` and `eval-once pipeline` all know.
    flags: &'a [&'a str],
    /// The statuses of the steps of these attributes. Every other step is green.
    fails: &'a [(&'a str, i32)],
    /// What all of them have in their environment besides: a daemon to be clients of, say.
    environment: Vec<(OsString, OsString)>,
}

fn shape<'a>(file: &'a str, flags: &'a [&'a str]) -> Shape<'a> {
    Shape {
        file,
        flags,
        fails: &[],
        environment: Vec::new(),
    }
}

/// A store whose working folder holds all the shapes.
fn store() -> Option<Store> {
    let store = Store::new()?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shapes");
    for file in fs::read_dir(folder).unwrap() {
        let file = file.unwrap();
        let name = file.file_name().into_string().unwrap();
        store.write(&name, &fs::read_to_string(file.path()).unwrap());
    }
    Some(store)
}

/// The `.drv`s that `nix-instantiate` has printed; none where it has failed.
fn drvs(ended: &Ended) -> Option<BTreeSet<String>> {
    let drv = |line: &str| line.split('!').next().unwrap_or_default().to_owned();
    if ended.stderr.contains("does not evaluate to a derivation") {
        // What is none is no mistake in a set.
        return Some(BTreeSet::new());
    }
    ended
        .status
        .success()
        .then(|| ended.stdout.lines().map(drv).collect())
}

/// An attribute path as `-A` takes it.
fn selection(names: &[String]) -> String {
    let name = |name: &String| {
        if name.parse::<u32>().is_ok() {
            name.clone()
        } else {
            format!("\"{name}\"")
        }
    };
    names.iter().map(name).collect::<Vec<_>>().join(".")
}

/// An expression for the root as `-A` sees it: a function has been called with what the flags give.
fn root(shape: &Shape<'_>) -> String {
    let mut given = String::new();
    for words in shape.flags.windows(3) {
        match words {
            ["--arg", name, expr] => {
                let _ = write!(given, "{name} = ({expr}); ");
            }
            ["--argstr", name, text] => {
                let _ = write!(given, "{name} = \"{text}\"; ");
            }
            _ => {}
        }
    }
    // The shapes' functions take a set with an ellipsis, or all arguments there are.
    format!(
        "(let r = import ./{}; in if builtins.isFunction r then r {{ {given}}} else r)",
        shape.file
    )
}

impl Shape<'_> {
    /// Compares the recording with `nix-instantiate`, and gives it; none where neither evaluates.
    #[track_caller]
    fn evaluates_alike(&self, store: &Store) -> Option<Pipeline> {
        let arguments = [&[self.file], self.flags].concat();
        let whole = store
            .program("nix-instantiate")
            .args(&arguments)
            .envs(self.environment.clone())
            .run();
        let ended = store
            .eval_once([
                "pipeline",
                "--dry-run",
                "--skip",
                "none",
                "--file",
                self.file,
            ])
            .args(self.flags)
            .envs(self.environment.clone())
            .run();
        if ended.status.code() == Some(65) && ended.stdout.is_empty() {
            assert!(
                drvs(&whole).is_none_or(|drvs| drvs.is_empty()),
                "{whole}{ended}"
            );
            return None;
        }
        let pipeline = Pipeline::of(&ended);
        let mut ours: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut errors: BTreeSet<String> = BTreeSet::new();
        for (attr, step) in pipeline.steps() {
            let top = names(&step).first().cloned().unwrap_or_default();
            match step.record["drv"].as_str() {
                Some(drv) => {
                    ours.entry(top).or_default().insert(drv.to_owned());
                }
                None => {
                    errors.insert(names_of(&attr).first().cloned().unwrap_or_default());
                }
            }
        }
        let all: BTreeSet<String> = ours.values().flatten().cloned().collect();
        if let Some(theirs) = drvs(&whole) {
            assert!(
                theirs.is_subset(&all),
                "not recorded: {:?}{ended}",
                &theirs - &all
            );
        }
        let is_set = "let r = ROOT; in if builtins.isAttrs r && r.type or null != \"derivation\" then builtins.attrNames r else null";
        let printed = store
            .program("nix-instantiate")
            .args(["--eval", "--strict", "--json", "-E"])
            .arg(is_set.replace("ROOT", &root(self)))
            .args(self.flags)
            .envs(self.environment.clone())
            .run();
        let Ok(Some(attributes)) = serde_json::from_str::<Option<Vec<String>>>(&printed.stdout)
        else {
            // A derivation, or a list.
            assert_eq!(Some(all), drvs(&whole), "{whole}{ended}");
            return Some(pipeline);
        };
        for name in attributes {
            let one = self.attribute(store, &name);
            let theirs = drvs(&one);
            assert_eq!(
                errors.contains(&name),
                theirs.is_none(),
                "{name} evaluates for one and not for the other: {one}{ended}"
            );
            if let Some(theirs) = theirs {
                // Of several attributes that give the same, only the first has a step.
                let ours = ours.remove(&name).unwrap_or_default();
                assert!(ours.is_subset(&theirs), "{name}: {one}{ended}");
                assert!(theirs.is_subset(&all), "{name}: {one}{ended}");
            }
        }
        Some(pipeline)
    }

    /// What Nix makes of an attribute by itself: a set only of what is marked in it, as of one that stands in a file.
    fn attribute(&self, store: &Store, name: &str) -> Ended {
        let value = format!("{}.\"{name}\"", root(self));
        // A function that cannot be called is no mistake in a set, and a set is looked into only where it is marked.
        let question = format!(
            "let v = {value}; args = builtins.functionArgs v; in \
             if builtins.isAttrs v then v.type or null != \"derivation\" && !(v ? __functor) \
             else if builtins.isFunction v then args == {{ }} || builtins.any (n: !args.${{n}}) (builtins.attrNames args) \
             else !builtins.isList v"
        );
        let alone = store
            .program("nix-instantiate")
            .args(["--eval", "-E", &question])
            .args(self.flags)
            .envs(self.environment.clone())
            .run();
        let alone = alone.stdout.trim() == "true";
        let arguments = if alone {
            vec!["-E".to_owned(), format!("{{ it = {value}; }}")]
        } else {
            vec![self.file.to_owned(), "-A".into(), format!("\"{name}\"")]
        };
        store
            .program("nix-instantiate")
            .args(arguments)
            .args(self.flags)
            .envs(self.environment.clone())
            .run()
    }

    /// Compares each step with `nix-build` of its attribute: which outputs there are, or how it fails.
    #[track_caller]
    fn builds_alike(&self, store: &Store, pipeline: &Pipeline) {
        let mut failed = BTreeMap::new();
        for (attr, step) in pipeline.steps() {
            let no_flags: [&str; 0] = [];
            let mut record = step.record.clone();
            record["out-link"] = json!(false);
            let ours = store
                .step(no_flags)
                .env("EVAL_ONCE_STEP", record.to_string())
                .envs(self.environment.clone())
                .run();
            let outputs: Vec<String> = ours.report()["outputs"]
                .as_object()
                .into_iter()
                .flat_map(serde_json::Map::values)
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect();
            let _ = fs::remove_dir_all(store.our_state().join("outputs"));
            store.try_delete(&outputs);
            let mut arguments = vec![self.file.to_owned(), "--no-out-link".into()];
            let names = names(&step);
            if !names.is_empty() {
                arguments.extend(["-A".into(), selection(&names)]);
            }
            let theirs = store
                .program("nix-build")
                .args(arguments)
                .args(self.flags)
                .envs(self.environment.clone())
                .run();
            assert_eq!(
                ours.status.success(),
                theirs.status.success(),
                "{attr}: {ours}{theirs}"
            );
            if theirs.status.success() {
                let built = theirs.stdout.trim();
                assert!(
                    outputs.iter().any(|output| output == built),
                    "{attr}: {ours}{theirs}"
                );
            } else {
                let status = ours.status.code().unwrap();
                // Nix's own status, where it has one for this.
                if let Some(nix @ 100..=104) = theirs.status.code() {
                    assert_eq!(status, nix, "{attr}: {ours}{theirs}");
                }
                failed.insert(names.join("."), status);
            }
        }
        let expected: BTreeMap<String, i32> = self
            .fails
            .iter()
            .map(|(name, status)| ((*name).to_owned(), *status))
            .collect();
        assert_eq!(failed, expected);
    }
}

/// The attribute path of a step.
fn names(step: &Step) -> Vec<String> {
    step.record
        .get("attr")
        .map(|attr| serde_json::from_value(attr.clone()).unwrap())
        .unwrap_or_default()
}

fn names_of(attr: &str) -> Vec<String> {
    serde_json::from_str(attr).unwrap_or_default()
}

/// Both, of one shape.
#[track_caller]
fn alike(shape: &Shape<'_>) {
    let Some(store) = store() else { return };
    let pipeline = shape.evaluates_alike(&store).unwrap();
    shape.builds_alike(&store, &pipeline);
}

#[test]
fn all_of_them_as_clients_of_a_daemon() {
    let Some(store) = store() else { return };
    let daemon = store.daemon();
    for shape in [
        shape("simple.nix", &[]),
        shape("dependencies.nix", &["--argstr", "hashInvalidator", "x"]),
        Shape {
            fails: &FIXED_FAILS,
            ..shape("fixed.nix", &[])
        },
        Shape {
            fails: &IMPORTS_FAIL,
            ..shape("import-from-derivation.nix", &IMPORTS)
        },
        Shape {
            fails: &FAILING_FAILS,
            ..shape("failing.nix", &[])
        },
    ] {
        let shape = Shape {
            environment: daemon.env(),
            ..shape
        };
        let pipeline = shape.evaluates_alike(&store).unwrap();
        shape.builds_alike(&store, &pipeline);
    }
}

const FIXED_FAILS: [(&str, i32); 3] = [("bad", 102), ("needs-bad", 102), ("really-bad", 65)];

const IMPORTS: [&str; 2] = ["-I", "config=./config.nix"];

const IMPORTS_FAIL: [(&str, i32); 2] = [("broken", 100), ("no-expression", 65)];

const FAILING_FAILS: [(&str, i32); 7] = [
    ("depends", 100),
    ("fails", 100),
    ("feature", 100),
    ("no-builder", 100),
    ("no-output", 100),
    ("other-system", 100),
    ("references", 100),
];

#[test]
fn one_derivation_is_the_whole() {
    alike(&shape("simple.nix", &[]));
    alike(&shape("placeholders.nix", &[]));
}

#[test]
fn inputs_of_every_kind() {
    alike(&shape("dependencies.nix", &[]));
    alike(&shape(
        "dependencies.nix",
        &["--argstr", "hashInvalidator", "x"],
    ));
    alike(&shape(
        "dependencies.nix",
        &["--arg", "hashInvalidator", "toString (1 + 1)"],
    ));
}

#[test]
fn several_outputs() {
    alike(&Shape {
        fails: &[("cyclic", 100), ("incomplete", 100)],
        ..shape("multiple-outputs.nix", &[])
    });
}

#[test]
fn fixed_outputs() {
    alike(&Shape {
        fails: &FIXED_FAILS,
        ..shape("fixed.nix", &[])
    });
}

#[test]
fn structured_attributes() {
    alike(&shape("structured-attrs.nix", &[]));
}

#[test]
fn imports_from_derivations() {
    let shape = Shape {
        fails: &IMPORTS_FAIL,
        ..shape("import-from-derivation.nix", &IMPORTS)
    };
    alike(&shape);
}

#[test]
fn imports_from_derivations_are_not_allowed_where_nix_does_not_allow_them() {
    let Some(store) = store() else { return };
    let flags = [
        "-I",
        "config=./config.nix",
        "--option",
        "allow-import-from-derivation",
        "false",
    ];
    shape("import-from-derivation.nix", &flags).evaluates_alike(&store);
}

#[test]
fn what_the_language_has() {
    let fails = [
        "asserts",
        "bad-name",
        "fake",
        "lazy.bad",
        "no-name",
        "recursion",
        "throws",
        "undefined",
    ]
    .map(|name| (name, 65));
    for flags in [
        &[][..],
        &["--argstr", "name", "given"],
        &["--arg", "pair", "[ 1 2 3 ]", "--argstr", "suffix", "s"],
    ] {
        let Some(store) = store() else { return };
        let language = Shape {
            fails: &fails,
            ..shape("language.nix", flags)
        };
        let pipeline = language.evaluates_alike(&store).unwrap();
        if flags.is_empty() {
            language.builds_alike(&store, &pipeline);
        }
    }
}

#[test]
fn a_list_at_the_top() {
    alike(&shape("lists.nix", &[]));
}

#[test]
fn builds_that_fail() {
    for flags in [&[][..], &["--option", "keep-going", "true"]] {
        alike(&Shape {
            fails: &FAILING_FAILS,
            ..shape("failing.nix", flags)
        });
    }
}

#[test]
fn builds_that_take_too_long() {
    for option in ["timeout", "max-silent-time"] {
        alike(&Shape {
            fails: &[("loop", 101)],
            ..shape("timeout.nix", &["--option", option, "1"])
        });
    }
}

#[test]
fn evaluation_that_is_restricted() {
    let Some(store) = store() else { return };
    for flags in [
        &["--option", "restrict-eval", "true", "-I", "."][..],
        &["--option", "restrict-eval", "true"],
        &["--option", "pure-eval", "true"],
    ] {
        shape("restricted.nix", flags).evaluates_alike(&store);
    }
    alike(&shape("restricted.nix", &[]));
}

#[test]
fn outputs_that_are_addressed_by_their_content() {
    // A daemon takes this option from no client.
    if Store::without_daemon().is_none() {
        return;
    }
    let flags = ["--option", "extra-experimental-features", "ca-derivations"];
    alike(&shape("content-addressed.nix", &flags));
}

#[test]
fn files_on_the_search_path() {
    let Some(store) = store() else { return };
    store.write(
        "all/config.nix",
        &fs::read_to_string(store.work().join("config.nix")).unwrap(),
    );
    for flags in [
        ["-I", "config=./config.nix"],
        ["-I", "config=./all/config.nix"],
    ] {
        shape("import-from-derivation.nix", &flags)
            .evaluates_alike(&store)
            .unwrap();
    }
    let by_name = shape("<shapes/placeholders.nix>", &["-I", "shapes=."]);
    by_name.evaluates_alike(&store).unwrap();
    let environment = Shape {
        environment: vec![("NIX_PATH".into(), "config=./config.nix".into())],
        ..shape("import-from-derivation.nix", &[])
    };
    let found = environment.evaluates_alike(&store).unwrap();
    assert!(!found.drvs().is_empty());
    // Without it neither of them finds the file.
    let without = shape("import-from-derivation.nix", &[]).evaluates_alike(&store);
    assert!(without.unwrap().drvs().is_empty());
}

#[test]
fn expressions_that_are_none() {
    let Some(store) = store() else { return };
    for (file, text) in [
        (
            "undefined-variable.nix",
            "let f = builtins.trace \"tracing\" x; in f",
        ),
        ("syntax.nix", "{ a = "),
        ("missing.nix", "import ./nonesuch.nix"),
        ("needs.nix", "{ needed }: needed"),
        ("text.nix", "\"text\""),
        ("throw.nix", "throw \"words\""),
        ("abort.nix", "abort \"words\""),
    ] {
        store.write(file, text);
        assert!(shape(file, &[]).evaluates_alike(&store).is_none(), "{file}");
    }
}
