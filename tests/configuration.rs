//! The keys of a step, wherever they are written: what is not understood is refused by name, and nothing is run.

use std::fs;

use serde_json::{Value, json};

use crate::support::{
    program::{Ended, Program},
    stand_in::StandIns,
    store::Store,
    target::Target,
};

const NO_FLAGS: [&str; 0] = [];

/// A store with a target that could be built, and stand-ins that record every Nix process.
struct Scene {
    store: Store,
    target: Target,
    stand_ins: StandIns,
}

impl Scene {
    fn new() -> Option<Self> {
        let store = Store::new()?;
        store.targets("{ hello = file \"hello\"; }");
        let target = store.target("hello");
        let stand_ins = StandIns::new(store.bin())
            .counting("nix-store")
            .counting("nix-instantiate")
            .counting("nix-build")
            .counting("nix");
        Some(Self {
            store,
            target,
            stand_ins,
        })
    }

    fn step(&self, flags: &[&str]) -> Program {
        self.store
            .step(flags)
            .env("PATH", self.stand_ins.path(&self.store))
    }

    fn keyed(&self, keys: &Value) -> Program {
        self.step(&NO_FLAGS).env("EVAL_ONCE_STEP", keys.to_string())
    }

    /// A hook whose job has these keys, on an agent that lets pipelines choose nothing.
    fn confined(&self, keys: &Value) -> Program {
        self.store
            .eval_once(["hook", "command"])
            .env("PATH", self.stand_ins.path(&self.store))
            .env("BUILDKITE", "true")
            .env("BUILDKITE_HOOK_SCOPE", "agent")
            .env("BUILDKITE_COMMAND_EVAL", "false")
            .env("BUILDKITE_COMMAND", "")
            .env("BUILDKITE_BUILD_CHECKOUT_PATH", self.store.work())
            .env("EVAL_ONCE_STEP", keys.to_string())
    }

    /// It refused with each of these parts in its message, and ran nothing.
    #[track_caller]
    fn refused(&self, ended: &Ended, parts: &[&str]) {
        ended.exits(64).prints("");
        let ours = ended.ours().join("\n");
        for part in parts {
            assert!(ours.contains(part), "{part:?} is not said: {ended}");
        }
        for program in ["nix-store", "nix-instantiate", "nix-build", "nix"] {
            assert_eq!(
                self.stand_ins.calls(program),
                Vec::<Vec<String>>::new(),
                "{ended}"
            );
        }
        assert!(!self.store.work().join("result").exists());
    }
}

#[test]
fn a_null_is_refused_by_its_name_wherever_it_is() {
    let Some(scene) = Scene::new() else { return };
    for key in [
        "drv",
        "outputs",
        "file",
        "expr",
        "flake",
        "attr",
        "arg",
        "argstr",
        "include",
        "options",
        "call",
        "out-link",
        "command",
        "share",
        "share-required",
        "push",
        "on-drift",
        "log",
    ] {
        let mut keys = scene.target.record(&json!({}));
        keys[key] = Value::Null;
        let ended = scene.keyed(&keys).run();
        scene.refused(&ended, &[key, "null"]);
        ended.fails(64, "config");
    }
    for (keys, name) in [
        (json!({ "arg": { "x": null } }), "arg.x"),
        (json!({ "options": { "cores": null } }), "options.cores"),
        (json!({ "outputs": { "out": null } }), "outputs.out"),
        (json!({ "attr": ["a", null] }), "attr"),
        (json!({ "include": [null] }), "include"),
    ] {
        scene.refused(&scene.keyed(&keys).run(), &[name, "null"]);
    }
}

#[test]
fn an_unknown_key_is_refused_by_its_name() {
    let Some(scene) = Scene::new() else { return };
    for key in [
        "atribute", "Attr", "attrs", "out_link", "report", "pipeline", "args", "", "drv ",
    ] {
        let mut keys = scene.target.record(&json!({}));
        keys[key] = json!("x");
        let ended = scene.keyed(&keys).run();
        scene.refused(&ended, &[&format!("`{key}`")]);
        ended.fails(64, "config");
    }
}

#[test]
fn a_wrong_type_is_refused_with_what_was_expected() {
    let Some(scene) = Scene::new() else { return };
    let drv = &scene.target.drv;
    for (keys, parts) in [
        (json!({ "drv": 1 }), ["`drv`", "store path"]),
        (json!({ "drv": [drv] }), ["`drv`", "store path"]),
        (json!({ "drv": "hello.drv" }), ["`drv`", "store path"]),
        (json!({ "drv": scene.target.out() }), ["`drv`", ".drv"]),
        (json!({ "outputs": ["out"] }), ["`outputs`", "map"]),
        (
            json!({ "outputs": { "out": 1 } }),
            ["`outputs.out`", "store path"],
        ),
        (
            json!({ "outputs": { "out": "result" } }),
            ["`outputs.out`", "store path"],
        ),
        (json!({ "file": 1 }), ["`file`", "string"]),
        (json!({ "file": ["a"] }), ["`file`", "string"]),
        (json!({ "expr": true }), ["`expr`", "string"]),
        (
            json!({ "flake": { "url": "." } }),
            ["`flake`", "flake reference"],
        ),
        (json!({ "attr": 0 }), ["`attr`", "list of strings"]),
        (
            json!({ "attr": ["list", 0] }),
            ["`attr`", "list of strings"],
        ),
        (
            json!({ "attr": { "a": "b" } }),
            ["`attr`", "list of strings"],
        ),
        (json!({ "arg": "x" }), ["`arg`", "map"]),
        (json!({ "arg": { "x": ["1"] } }), ["`arg.x`", "expression"]),
        (json!({ "argstr": { "x": 1 } }), ["`argstr.x`", "string"]),
        (json!({ "include": "nixpkgs=." }), ["`include`", "list"]),
        (json!({ "include": [1] }), ["`include`", "list"]),
        (json!({ "options": ["cores"] }), ["`options`", "map"]),
        (
            json!({ "options": { "cores": [1] } }),
            ["`options.cores`", "string"],
        ),
        (json!({ "out-link": true }), ["`out-link`", "false"]),
        (json!({ "out-link": 1 }), ["`out-link`", "false"]),
        (json!({ "command": true }), ["`command`", "`after`"]),
        (json!({ "command": "before" }), ["`command`", "`none`"]),
        (json!({ "on-drift": "ignore" }), ["`on-drift`", "`warn`"]),
        (json!({ "on-drift": false }), ["`on-drift`", "`fail`"]),
        (json!({ "log": "quiet" }), ["`log`", "`raw`"]),
    ] {
        let ended = scene.keyed(&keys).run();
        scene.refused(&ended, &parts);
        ended.fails(64, "config");
    }
}

#[test]
fn what_is_no_object_of_json_is_refused() {
    let Some(scene) = Scene::new() else { return };
    for text in ["", "{", "[]", "null", "\"drv\"", "{} {}", "{'drv': 1}"] {
        let ended = scene.step(&NO_FLAGS).env("EVAL_ONCE_STEP", text).run();
        scene.refused(&ended, &["EVAL_ONCE_STEP"]);
        ended.fails(64, "config");
    }
}

#[test]
fn of_file_expr_and_flake_only_one_is_taken() {
    let Some(scene) = Scene::new() else { return };
    for keys in [
        json!({ "file": "default.nix", "expr": "1" }),
        json!({ "file": "default.nix", "flake": "." }),
        json!({ "expr": "1", "flake": "." }),
    ] {
        let names: Vec<String> = keys
            .as_object()
            .unwrap()
            .keys()
            .map(|key| format!("`{key}`"))
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        scene.refused(&scene.keyed(&keys).run(), &names);
        let flags: Vec<String> = keys
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(key, value)| [format!("--{key}"), value.as_str().unwrap().to_owned()])
            .collect();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        scene.step(&flags).run().exits(64);
    }
}

#[test]
fn a_dotted_path_that_is_none_is_refused() {
    let Some(scene) = Scene::new() else { return };
    for attr in ["a..b", ".a", "a.", "a.\"b", "a\"b\"", "\"a\"b", "."] {
        scene.refused(&scene.keyed(&json!({ "attr": attr })).run(), &["attr"]);
        scene.refused(&scene.step(&["--attr", attr]).run(), &["attr"]);
    }
}

#[test]
fn a_number_sign_in_a_flake_is_refused_with_what_to_do() {
    let Some(scene) = Scene::new() else { return };
    scene.refused(
        &scene.step(&["--flake", ".#hello"]).run(),
        &["`flake`", "#", "attr"],
    );
    scene.refused(
        &scene.keyed(&json!({ "flake": ".#hello" })).run(),
        &["`flake`", "#", "attr"],
    );
}

#[test]
fn the_flags_that_the_parser_refuses_end_with_64_too() {
    let Some(scene) = Scene::new() else { return };
    for (flags, part) in [
        (["--no-such-flag"].as_slice(), "--no-such-flag"),
        (&["--attr"], "--attr"),
        (&["--on-drift", "ignore"], "ignore"),
        (&["--log", "quiet"], "quiet"),
        (&["--output", "out"], "out"),
        (&["--arg", "x"], "--arg"),
        (&["--option", "cores"], "--option"),
        (&["stray"], "stray"),
    ] {
        let ended = scene.step(flags).run();
        ended.exits(64).prints("").passes_on(part);
        for program in ["nix-store", "nix-instantiate"] {
            assert!(scene.stand_ins.calls(program).is_empty());
        }
    }
    let ended = scene.store.eval_once(["no-such-command"]).run();
    ended.exits(64).prints("").passes_on("no-such-command");
}

#[test]
fn a_wrong_record_in_flags_is_refused_by_its_name() {
    let Some(scene) = Scene::new() else { return };
    for (flags, part) in [
        (["--drv", "hello.drv"], "drv"),
        (
            ["--drv", "/elsewhere/8wcnjhj0wl5c3m2r0cp0rzm4x0czw4vw-a"],
            "drv",
        ),
        (["--output", "out=result"], "out"),
        (["--out-link", ""], "out-link"),
    ] {
        let ended = scene.step(&flags).run();
        scene.refused(&ended, &[part]);
        ended.fails(64, "config");
    }
}

#[test]
fn a_refusal_has_a_report_too() {
    let Some(scene) = Scene::new() else { return };
    let ended = scene.keyed(&json!({ "drv": null })).run();
    ended.fails(64, "config");
    let report = ended.report();
    assert_eq!(report["way"], Value::Null);
    assert_eq!(report["reason"], Value::Null);
    assert_eq!(report["built"], 0);
    // The parser of arguments refuses before there is a step; where the report goes can still be read.
    scene
        .step(&["--on-drift", "ignore"])
        .run()
        .fails(64, "config");
    scene.step(&["--no-such-flag"]).run().fails(64, "config");
}

#[test]
fn nothing_recorded_and_nothing_to_evaluate_is_a_wrong_configuration() {
    let Some(scene) = Scene::new() else { return };
    fs::rename(
        scene.store.work().join("default.nix"),
        scene.store.work().join("other.nix"),
    )
    .unwrap();
    let ended = scene.step(&NO_FLAGS).run();
    scene.refused(&ended, &["default.nix"]);
    ended.fails(64, "config");
}

#[test]
fn help_and_version_go_to_standard_output() {
    let Some(store) = Store::new() else { return };
    for arguments in [
        ["--help"].as_slice(),
        &["step", "--help"],
        &["explain", "--help"],
        &["environment", "--help"],
    ] {
        let ended = store.eval_once(arguments).run();
        ended.exits(0).says(&[]);
        assert!(ended.stdout.contains("Usage"), "{ended}");
        assert_eq!(ended.stderr, "");
    }
    let ended = store.eval_once(["--version"]).run();
    ended
        .exits(0)
        .prints(&format!("eval-once {}\n", env!("CARGO_PKG_VERSION")));
    let ended = store.eval_once(NO_FLAGS).run();
    ended.exits(64).prints("").passes_on("Usage");
}

#[test]
fn a_wrong_choice_on_a_command_line_is_reported_like_any_other_refusal() {
    let Some(store) = Store::new() else { return };
    let choose = |word: &str| {
        let report = store.root().join(format!("{word}.json"));
        let step = store.eval_once(["step", "--on-drift", word]);
        step.reporting_to(report).run()
    };
    choose("ignore")
        .fails(64, "config")
        .passes_on("[possible values: warn, fail]");
    choose("wran")
        .fails(64, "config")
        .passes_on("a similar value exists: 'warn'");
}

#[test]
fn help_and_completions_know_the_choices() {
    let Some(store) = Store::new() else { return };
    let help = store.eval_once(["step", "--help"]).run();
    for choice in ["- warn: ", "- fail: ", "- pretty: ", "- raw: "] {
        assert!(help.stdout.contains(choice), "{choice} is missing: {help}");
    }
    let completions = store.eval_once(["completions", "bash"]).run();
    for choices in ["warn fail", "marked all", "built cached none"] {
        assert!(completions.stdout.contains(choices), "{choices}");
    }
}

#[test]
fn an_agent_that_lets_pipelines_choose_nothing_takes_nothing_from_outside_the_checkout() {
    let Some(scene) = Scene::new() else { return };
    for (keys, name) in [
        (json!({ "expr": "import ./default.nix" }), "expr"),
        (json!({ "flake": "." }), "flake"),
        (json!({ "file": "https://example.org/x.tar.gz" }), "file"),
        (json!({ "file": "file:///etc/x.tar.gz" }), "file"),
        (json!({ "file": "channel:nixos-unstable" }), "file"),
        (json!({ "file": "<nixpkgs>" }), "file"),
        (json!({ "file": "../default.nix" }), "file"),
        (json!({ "file": "/etc/default.nix" }), "file"),
        (
            json!({ "file": "default.nix", "out-link": "../result" }),
            "out-link",
        ),
        (
            json!({ "file": "default.nix", "out-link": "/tmp/result" }),
            "out-link",
        ),
        (
            json!({ "file": "default.nix", "options": { "substituters": "http://example.org" } }),
            "substituters",
        ),
        (
            json!({ "file": "default.nix", "options": { "timeout": 5, "sandbox": false } }),
            "sandbox",
        ),
        (
            json!({ "file": "default.nix", "options": { "extra-timeout": 5 } }),
            "extra-timeout",
        ),
        (
            json!({ "file": "default.nix", "options": { "post-build-hook": "/bin/sh" } }),
            "post-build-hook",
        ),
    ] {
        let record = scene.target.record(&keys);
        scene.refused(&scene.confined(&record).run(), &[name]);
    }
}

#[test]
fn an_agent_that_lets_pipelines_choose_nothing_still_builds_what_is_in_the_checkout() {
    let Some(scene) = Scene::new() else { return };
    scene.store.collect();
    let options = json!({ "timeout": 600, "max-silent-time": 600, "cores": 1, "max-jobs": 1, "keep-going": true });
    let keys =
        json!({ "file": "default.nix", "attr": ["hello"], "out-link": "link", "options": options });
    let ended = scene.confined(&scene.target.record(&keys)).run();
    ended.exits(0).prints("").passes_on("eval-once: evaluated ");
    assert_eq!(scene.store.links()["link"], scene.target.out());
    let ended = scene
        .confined(&scene.target.record(&json!({ "out-link": false })))
        .run();
    ended
        .exits(0)
        .says(&["realised ", &format!("out: {}", scene.target.out())]);
}

#[test]
fn a_step_by_hand_is_not_confined() {
    let Some(scene) = Scene::new() else { return };
    let ended = scene
        .step(&[
            "--expr",
            "import ./default.nix",
            "--attr",
            "hello",
            "--out-link",
            "../result",
        ])
        .env("BUILDKITE_COMMAND_EVAL", "false")
        .run();
    ended.takes("evaluated", "not-recorded");
}

#[test]
fn a_path_that_leads_out_by_its_letters_is_refused_though_the_kernel_would_stay_inside() {
    let Some(scene) = Scene::new() else { return };
    let work = scene.store.work();
    fs::create_dir_all(work.join("releases/x/y")).unwrap();
    fs::write(work.join("releases/default.nix"), "{ }").unwrap();
    std::os::unix::fs::symlink("releases/x/y", work.join("current")).unwrap();
    for keys in [
        json!({ "file": "current/../../default.nix", "attr": "a" }),
        json!({ "file": "default.nix", "include": ["lib=current/../../evil"] }),
        json!({ "drv": scene.target.drv, "out-link": ".git/hooks/post-checkout" }),
    ] {
        let ended = scene.confined(&keys).run();
        scene.refused(&ended, &["not allowed on this agent"]);
    }
}

#[test]
fn a_command_that_is_this_step_and_more_is_not_hidden() {
    let Some(scene) = Scene::new() else { return };
    let keys = scene.target.record(&json!({}));
    let ended = scene
        .confined(&keys)
        .env("BUILDKITE_COMMAND_EVAL", "true")
        .env(
            "BUILDKITE_COMMAND",
            "eval-once step --report r.json -- /bin/false",
        )
        .run();
    scene.refused(
        &ended,
        &["the command combines `eval-once step` with other shell code"],
    );
}

#[test]
fn where_only_scripts_of_the_checkout_may_run_an_output_is_none() {
    let Some(scene) = Scene::new() else { return };
    let keys = scene.target.record(&json!({ "out-link": "run" }));
    let ended = scene
        .confined(&keys)
        .env("BUILDKITE_COMMAND", "run")
        .env("BUILDKITE_SHELL", "/bin/sh -c")
        .run();
    ended
        .exits(1)
        .passes_on("only allowed to run scripts within your repository");
}
