//! The commands that a failed step gives to paste: run through a shell, each builds the same `.drv`, or fails as the step did.

use std::ffi::OsString;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{
    EVAL_ONCE,
    program::{Ended, Program},
    store::Store,
    target::expression,
};

/// A program in this store that finds ours on its `PATH` too.
fn with_ours(store: &Store, program: &str) -> Program {
    let mut path = OsString::from(Path::new(EVAL_ONCE).parent().unwrap());
    path.push(":");
    path.push(store.path());
    store.program(program).env("PATH", path)
}

fn step(store: &Store, keys: &Value) -> Ended {
    let no_flags: [&str; 0] = [];
    store
        .step(no_flags)
        .env("EVAL_ONCE_STEP", keys.to_string())
        .run()
}

/// The command behind this word in the group at the end of the log.
#[track_caller]
fn command<'e>(ended: &'e Ended, word: &str) -> &'e str {
    let line = |line: &'e str| line.strip_prefix(&format!("{word:<14}"));
    let found: Vec<_> = ended.stderr.lines().filter_map(line).collect();
    let [command] = found.as_slice() else {
        panic!("{word:?} is there {} times: {ended}", found.len())
    };
    command
}

#[track_caller]
fn pasted(store: &Store, command: &str) -> Ended {
    with_ours(store, "sh").args(["-c", command]).run()
}

/// A step with these keys fails, and what it says that reproduces it fails through the same `.drv`, or with the same words.
#[track_caller]
fn is_reproduced(store: &Store, keys: &Value) -> String {
    let ended = step(store, keys);
    let reproduce = command(&ended, "reproduce");
    let again = pasted(store, reproduce);
    assert_ne!(again.status.code(), Some(0), "{again}{ended}");
    let report = ended.report();
    if let Some(drv) = report["drv"].as_str() {
        ended.fails(100, "build");
        again.passes_on(drv);
    } else {
        ended.fails(65, "evaluation");
        // Behind what was to be evaluated, and before where that stands.
        let message = report["failure"]["message"].as_str().unwrap();
        let (_, error) = message
            .split_once(" does not evaluate: ")
            .unwrap_or_else(|| panic!("{ended}"));
        let error = error.split(", at ").next().unwrap();
        again.passes_on(error);
    }
    reproduce.to_owned()
}

/// Names that mean something to a shell, to Nix, or to a terminal.
const NAMES: [&str; 13] = [
    "plain",
    "two words",
    "it's",
    "a.b",
    "$HOME",
    "${x}",
    "`id`",
    "100%41",
    "a\"b",
    "new\nline",
    "\u{202e}reversed",
    "gtk+/x^y#z?",
    "7",
];

/// A set with a target under each of these names, none of which can be built, and no two alike.
fn named() -> String {
    let quoted = |name: &str| {
        let name = name
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('$', "\\$");
        format!("\"{}\"", name.replace('\n', "\\n"))
    };
    let targets = NAMES.iter().enumerate();
    let targets = targets.map(|(n, name)| format!("{} = build \"t{n}\" \"exit 1\";", quoted(name)));
    format!("{{ {} }}", targets.collect::<String>())
}

#[test]
fn a_target_of_a_file_is_reproduced_whatever_its_name() {
    let Some(store) = Store::new() else { return };
    store.write("sub dir/ci.nix", &expression(&named()));
    for name in NAMES {
        let keys = json!({ "file": "sub dir/ci.nix", "attr": [name] });
        let reproduce = is_reproduced(&store, &keys);
        assert!(
            reproduce.is_ascii() && !reproduce.contains(char::is_control),
            "{reproduce:?}"
        );
    }
}

#[test]
fn what_a_step_evaluates_is_reproduced_with_all_that_decides_it() {
    let Some(store) = Store::new() else { return };
    store.write("lib dir/name.nix", "\"from lib\"");
    store.write(
        "ci.nix",
        &expression(
            r#"{ name ? "default", number ? 1 }: {
                 a = build "a" "echo ${name} ${toString number}; exit 1";
                 below.found = build "found" "echo ${import <lib/name.nix>} ${toString (builtins.length builtins.nixPath)}; exit 1";
                 throws = throw "it's \"quoted\" and has $HOME in it";
                 impure = build "impure" "echo ${builtins.currentSystem}; exit 1";
                 list = [ (build "first" "exit 1") ];
                 function = { more ? "x" }: build "function" "echo ${more}; exit 1";
               }"#,
        ),
    );
    for keys in [
        json!({ "file": "ci.nix", "attr": "a" }),
        json!({ "file": "./ci.nix", "attr": "a", "arg": { "number": "1 + 1" }, "argstr": { "name": "it's\n$HOME" } }),
        json!({ "file": "ci.nix", "attr": "a", "arg": { "number": 7 } }),
        json!({ "file": "ci.nix", "attr": "below.found", "include": ["lib=lib dir"] }),
        json!({ "file": "ci.nix", "attr": "list.0" }),
        json!({ "file": "ci.nix", "attr": "function" }),
        json!({ "file": "ci.nix", "attr": "throws" }),
        json!({ "file": "ci.nix", "attr": "missing" }),
        json!({ "file": "ci.nix", "attr": "impure", "options": { "pure-eval": true } }),
        json!({ "file": "ci.nix", "attr": "a", "options": { "restrict-eval": true } }),
        json!({ "expr": "(import ./ci.nix { name = \"x y\"; }).a" }),
        json!({ "expr": "-1 + \"x\"" }),
    ] {
        is_reproduced(&store, &keys);
    }
}

/// A flake whose targets cannot be built, and with others under the names at which `nix build` looks first.
fn flake(store: &Store) -> String {
    let system = store.nix(
        "nix-instantiate",
        ["--eval", "--expr", "builtins.currentSystem"],
    );
    let system = system.trim_matches('"').to_owned();
    let body = expression(&format!(
        r#"
        let odd = {};
        in odd // {{
          default = build "default" "exit 1";
          a = build "a" "exit 1";
          throws = throw "it's thrown";
          packages.SYSTEM = odd // {{
            default = build "package-default" "exit 1";
            a = build "package-a" "exit 1";
            throws = build "no-throw" "exit 1";
          }};
          impure = build "impure" "echo ${{builtins.currentSystem}}; exit 1";
        }}"#,
        named()
    ));
    let body = body.replace(
        "system = builtins.currentSystem",
        &format!("system = {system:?}"),
    );
    let text = format!("{{ outputs = {{ self }}: {body}; }}");
    store.write("flake.nix", &text.replace("SYSTEM", &system));
    system
}

#[test]
fn a_target_of_a_flake_is_reproduced_and_none_that_nix_looks_for_first() {
    let Some(store) = Store::new() else { return };
    let system = flake(&store);
    for attr in ["default", "a", "throws", "impure"] {
        is_reproduced(&store, &json!({ "flake": "path:.", "attr": attr }));
    }
    // Nix has other words for that below a flake.
    let missing = step(&store, &json!({ "flake": "path:.", "attr": "missing" }));
    missing.fails(65, "evaluation");
    let again = pasted(&store, command(&missing, "reproduce"));
    again.passes_on("'missing'");
    assert_ne!(again.status.code(), Some(0), "{again}");
    for name in ["default", "a"].into_iter().chain(NAMES) {
        is_reproduced(
            &store,
            &json!({ "flake": "path:.", "attr": ["packages", system, name] }),
        );
    }
    for name in ["a.b", "a\"b", "100%41", "7"] {
        is_reproduced(&store, &json!({ "flake": "path:.", "attr": [name] }));
    }
    for value in [true, false] {
        let keys =
            json!({ "flake": "path:.", "attr": "impure", "options": { "pure-eval": value } });
        is_reproduced(&store, &keys);
    }
}

#[test]
fn a_record_alone_is_reproduced_by_its_drv() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = build \"a\" \"exit 1\"; }");
    let drv = store.target("a").drv;
    let reproduce = is_reproduced(&store, &json!({ "drv": drv }));
    assert_eq!(reproduce, format!("nix-store --realise {drv}"));
}

#[test]
fn a_failed_step_prints_the_command_that_explains_it() {
    let Some(store) = Store::new() else { return };
    store.write("ci.nix", &expression(&named()));
    let mut keys = json!({ "file": "ci.nix", "argstr": { "x": "it's \u{1b}]1339;url=x\u{7} \u{202e}é😀\n$HOME `id`" } });
    keys["expr"] = "{ x }: (import ./ci.nix).plain # +++ $HOME '\"\n".into();
    keys.as_object_mut().unwrap().remove("file");
    let ended = step(&store, &keys);
    ended.fails(100, "build");
    let explain = command(&ended, "explain");
    assert!(
        explain.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
        "{explain:?}"
    );
    let pasted = pasted(&store, explain);
    let expected = store
        .eval_once(["explain"])
        .env("EVAL_ONCE_STEP", keys.to_string())
        .run();
    expected.exits(0);
    pasted.exits(0).prints(&expected.stdout);
}

#[test]
fn a_command_that_is_too_long_to_be_pasted_is_not_cut() {
    let Some(store) = Store::new() else { return };
    let expr = expression("build \"a\" \"exit 1\"") + "#" + &"x".repeat(10_000);
    let ended = step(&store, &json!({ "expr": expr }));
    ended.fails(100, "build");
    for word in ["reproduce", "explain"] {
        let said = command(&ended, word);
        assert!(said.len() < 200 && said.contains("too long"), "{said}");
    }
}
