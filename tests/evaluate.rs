//! What a step evaluates: files, expressions, flakes, the attribute below them, and that it is one derivation exactly.

use std::{collections::BTreeMap, fs};

use serde_json::{Value, json};

use crate::support::{
    program::Ended,
    stand_in::StandIns,
    store::Store,
    target::{Target, expression},
};

/// Runs a step whose keys are given as JSON.
fn keyed(store: &Store, keys: &Value) -> Ended {
    let no_flags: [&str; 0] = [];
    let _ = fs::remove_file(store.work().join("result"));
    store
        .step(no_flags)
        .env("EVAL_ONCE_STEP", keys.to_string())
        .run()
}

/// The step evaluated exactly this `.drv`, and the link is its output.
#[track_caller]
fn evaluates(ended: &Ended, store: &Store, target: &Target) {
    ended.takes("evaluated", "not-recorded");
    assert_eq!(
        ended.report()["drv"],
        target.drv,
        "another derivation: {ended}"
    );
    assert_eq!(store.links()["result"], target.out());
}

#[test]
fn default_nix_is_evaluated_where_nothing_is_named() {
    let Some(store) = Store::new() else { return };
    store.write("default.nix", &expression("file \"root\""));
    let target = Target::of(&store, "import ./default.nix");
    let no_flags: [&str; 0] = [];
    evaluates(&store.step(no_flags).run(), &store, &target);
    evaluates(&keyed(&store, &json!({})), &store, &target);
    evaluates(&keyed(&store, &json!({ "attr": [] })), &store, &target);
    evaluates(&keyed(&store, &json!({ "attr": "" })), &store, &target);
}

#[test]
fn an_attribute_alone_is_one_of_default_nix() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a.b = file \"ab\"; }");
    evaluates(
        &store.step(["-A", "a.b"]).run(),
        &store,
        &store.target("a.b"),
    );
}

#[test]
fn a_folder_is_evaluated_by_its_default_nix() {
    let Some(store) = Store::new() else { return };
    store.write("sub dir/default.nix", &expression("{ a = file \"a\"; }"));
    let target = Target::of(&store, "(import (./. + \"/sub dir\")).a");
    evaluates(
        &store.step(["--file", "sub dir", "--attr", "a"]).run(),
        &store,
        &target,
    );
    evaluates(
        &store.step(["--file", "./sub dir/", "--attr", "a"]).run(),
        &store,
        &target,
    );
}

#[test]
fn a_files_name_may_hold_anything() {
    let Some(store) = Store::new() else { return };
    let names = [
        "-a.nix",
        "two words.nix",
        "quo\"te.nix",
        "dol$lar.nix",
        "${x}.nix",
        "new\nline.nix",
        "it's.nix",
        "plain",
        "a:b.nix",
        "#.nix",
    ];
    for name in names {
        store.write(name, &expression("{ a = file \"a\"; }"));
        let target = Target::of(&store, &format!("(import (./. + \"/{}\")).a", quoted(name)));
        evaluates(
            &keyed(&store, &json!({ "file": name, "attr": ["a"] })),
            &store,
            &target,
        );
    }
}

#[test]
fn a_file_is_looked_for_below_the_current_folder() {
    let Some(store) = Store::new() else { return };
    store.write("sub/ci.nix", &expression("{ a = file \"a\"; }"));
    let target = Target::of(&store, "(import ./sub/ci.nix).a");
    let ended = store
        .step(["--file", "ci.nix", "--attr", "a"])
        .folder(store.work().join("sub"))
        .run();
    ended.takes("evaluated", "not-recorded");
    assert_eq!(ended.report()["drv"], target.drv);
    let absolute = store.work().join("sub/ci.nix");
    evaluates(
        &keyed(&store, &json!({ "file": absolute, "attr": "a" })),
        &store,
        &target,
    );
}

#[test]
fn a_file_is_found_in_the_search_path() {
    let Some(store) = Store::new() else { return };
    store.write("lib/ci.nix", &expression("{ a = file \"a\"; }"));
    let target = Target::of(&store, "(import ./lib/ci.nix).a");
    for entry in ["lib=./lib", "lib=lib"] {
        let ended = store
            .step(["--file", "<lib/ci.nix>", "-I", entry, "--attr", "a"])
            .run();
        evaluates(&ended, &store, &target);
        let ended = keyed(
            &store,
            &json!({ "file": "<lib/ci.nix>", "include": [entry], "attr": "a" }),
        );
        evaluates(&ended, &store, &target);
    }
}

#[test]
fn a_search_path_may_be_a_folder_of_projects() {
    let Some(store) = Store::new() else { return };
    store.write("all/lib/default.nix", &expression("{ a = file \"a\"; }"));
    store.write("ci.nix", "import <lib>");
    let target = Target::of(&store, "(import ./all/lib).a");
    let ended = store
        .step(["--file", "ci.nix", "-I", "all", "--attr", "a"])
        .run();
    evaluates(&ended, &store, &target);
}

#[test]
fn a_url_of_an_archive_is_evaluated() {
    let Some(store) = Store::new() else { return };
    store.write("archive/default.nix", &expression("{ a = file \"a\"; }"));
    let archive = store.root().join("archive.tar.gz");
    let tar = store
        .program("tar")
        .arg("-czf")
        .arg(&archive)
        .arg("archive")
        .run();
    tar.exits(0);
    let target = Target::of(&store, "(import ./archive).a");
    let url = format!("file://{}", archive.display());
    evaluates(
        &keyed(&store, &json!({ "file": url, "attr": "a" })),
        &store,
        &target,
    );
}

#[test]
fn an_expression_is_evaluated() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\"; }");
    let target = store.target("a");
    evaluates(
        &store.step(["--expr", "(import ./default.nix).a"]).run(),
        &store,
        &target,
    );
    evaluates(
        &store.step(["--expr", "import ./.", "--attr", "a"]).run(),
        &store,
        &target,
    );
    evaluates(
        &keyed(
            &store,
            &json!({ "expr": "{ x = import ./. ; }", "attr": "x.a" }),
        ),
        &store,
        &target,
    );
}

#[test]
fn an_expression_that_looks_like_a_flag_is_still_one() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\"; }");
    let target = store.target("a");
    let ended = keyed(&store, &json!({ "expr": "--1 + 1", "attr": [] }));
    ended.fails(65, "evaluation");
    let ended = keyed(
        &store,
        &json!({ "expr": "/* --eval */ import ./.", "attr": "a" }),
    );
    evaluates(&ended, &store, &target);
}

#[test]
fn names_in_a_list_are_exact_whatever_they_hold() {
    let Some(store) = Store::new() else { return };
    let names = [
        "a.b",
        ".",
        "..",
        "a b",
        " ",
        "\"",
        "a\"b",
        "'",
        "''",
        "$",
        "${a}",
        "$${a}",
        "\\",
        "a\\b",
        "\\n",
        "new\nline",
        "tab\there",
        "",
        "0",
        "00",
        "1x",
        "-",
        "--help",
        "-A",
        "@",
        "*",
        "#",
        "!",
        "a!b",
        "/",
        "ä",
        "🙂",
        "if",
        "out",
        "\r\n",
        "\u{1}",
        "%s",
        "`id`",
        "$(id)",
    ];
    // Nix reads the names from JSON, so that no quoting of ours comes between.
    store.write("names.json", &json!(names.as_slice()).to_string());
    store.targets(
        "let
          names = builtins.fromJSON (builtins.readFile ./names.json);
          set = name: value: builtins.listToAttrs [ { inherit name value; } ];
          of = index: let name = builtins.elemAt names index; in set name (set name (file \"n${toString index}\"));
        in builtins.foldl' (all: index: all // of index) { } (builtins.genList (index: index) (builtins.length names))",
    );
    for (index, name) in names.iter().enumerate() {
        let list = keyed(
            &store,
            &json!({ "file": "default.nix", "attr": [name, name] }),
        );
        let dotted = format!("{0}.{0}", quoted_name(name));
        let flag = store
            .step(["--file", "default.nix", "--attr", &dotted])
            .run();
        for ended in [list, flag] {
            ended.takes("evaluated", "not-recorded");
            let drv = ended.report()["drv"].as_str().unwrap();
            assert!(
                drv.ends_with(&format!("-n{index}.drv")),
                "{name:?} gave {drv}: {ended}"
            );
        }
    }
}

#[test]
fn a_dotted_path_is_read_as_in_the_language() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"{ a."b.c".d = file "one"; x."quo\"te"."\${y}" = file "two"; "new\nline" = file "three"; k-b.c'd._e = file "four"; }"#,
    );
    for (dotted, exact) in [
        (r#"a."b.c".d"#, r#"a."b.c".d"#),
        (r#""a"."b.c"."d""#, r#"a."b.c".d"#),
        (r#"x."quo\"te"."\${y}""#, r#"x."quo\"te"."\${y}""#),
        (r#""new\nline""#, r#""new\nline""#),
        ("k-b.c'd._e", "k-b.c'd._e"),
    ] {
        let target = store.target(exact);
        evaluates(&store.step(["--attr", dotted]).run(), &store, &target);
        evaluates(&keyed(&store, &json!({ "attr": dotted })), &store, &target);
    }
}

#[test]
fn a_number_is_an_index_of_a_list_and_a_name_of_a_set() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"{ list = [ (file "zero") { x = file "one"; } [ (file "two") ] ]; set = { "0" = file "s0"; "1".x = file "s1"; }; }"#,
    );
    for (path, exact) in [
        (json!(["list", "0"]), "builtins.elemAt p.list 0"),
        (json!(["list", "1", "x"]), "(builtins.elemAt p.list 1).x"),
        (
            json!(["list", "2", "0"]),
            "builtins.head (builtins.elemAt p.list 2)",
        ),
        (json!("list.0"), "builtins.elemAt p.list 0"),
        (json!("list.1.x"), "(builtins.elemAt p.list 1).x"),
        (json!(["set", "0"]), "p.set.\"0\""),
        (json!("set.0"), "p.set.\"0\""),
        (json!("set.1.x"), "p.set.\"1\".x"),
    ] {
        let target = Target::of(&store, &format!("let p = import ./default.nix; in {exact}"));
        evaluates(&keyed(&store, &json!({ "attr": path })), &store, &target);
    }
    for path in [
        json!(["list", "3"]),
        json!(["list", "x"]),
        json!(["list", ""]),
        json!(["list", "-1"]),
        json!(["set", "2"]),
    ] {
        keyed(&store, &json!({ "attr": path })).fails(65, "evaluation");
    }
}

#[test]
fn a_function_on_the_way_is_called_as_nix_build_calls_it() {
    let Some(store) = Store::new() else { return };
    store.write(
        "default.nix",
        &expression("{ name ? \"default\", more ? { } }: { a = { suffix ? \"\" }: { b = file (name + suffix); }; }"),
    );
    for (arguments, called) in [
        (vec![], "((import ./. { }).a { }).b"),
        (
            vec!["--argstr", "name", "x"],
            "((import ./. { name = \"x\"; }).a { }).b",
        ),
        (
            vec!["--arg", "name", "\"a\" + \"b\""],
            "((import ./. { name = \"ab\"; }).a { }).b",
        ),
        (
            vec!["--argstr", "suffix", "-s"],
            "((import ./. { }).a { suffix = \"-s\"; }).b",
        ),
    ] {
        let target = Target::of(&store, called);
        let ended = store.step(["--attr", "a.b"]).args(arguments).run();
        evaluates(&ended, &store, &target);
    }
}

#[test]
fn arguments_have_the_types_they_were_given_with() {
    let Some(store) = Store::new() else { return };
    store.write(
        "default.nix",
        &expression(
            "{ v }: file (if builtins.isString v then \"s-\" + v else if builtins.isBool v then (if v then \"yes\" else \"no\") else if \
             builtins.isFloat v then \"float\" else if builtins.isInt v then \"int${toString v}\" else builtins.typeOf v)",
        ),
    );
    for (keys, name) in [
        (json!({ "arg": { "v": true } }), "yes"),
        (json!({ "arg": { "v": false } }), "no"),
        (json!({ "arg": { "v": 17 } }), "int17"),
        (json!({ "arg": { "v": -3 } }), "int-3"),
        (json!({ "arg": { "v": 1.5 } }), "float"),
        (json!({ "arg": { "v": "[ ]" } }), "list"),
        (json!({ "arg": { "v": "\"text\"" } }), "s-text"),
        (json!({ "argstr": { "v": "text" } }), "s-text"),
        (json!({ "argstr": { "v": "17" } }), "s-17"),
        (json!({ "argstr": { "v": "--help" } }), "s---help"),
    ] {
        let target = Target::of(&store, &expression(&format!("file \"{name}\"")));
        evaluates(&keyed(&store, &keys), &store, &target);
    }
    let target = Target::of(&store, &expression("file \"yes\""));
    evaluates(&store.step(["--arg", "v", "true"]).run(), &store, &target);
}

#[test]
fn settings_reach_the_evaluation_and_the_build() {
    let Some(store) = Store::new() else { return };
    store.write(
        "default.nix",
        &expression("{ a = file (builtins.getEnv \"HOME\" + \"x\"); }"),
    );
    let pure = Target::of(&store, &expression("file \"x\""));
    let ended = keyed(
        &store,
        &json!({ "attr": "a", "options": { "restrict-eval": true, "max-jobs": 1, "cores": "1" }, "include": ["."] }),
    );
    evaluates(&ended, &store, &pure);
}

#[test]
fn an_evaluation_that_needs_a_build_gets_it() {
    let Some(store) = Store::new() else { return };
    store
        .targets("{ a = file (builtins.readFile (build \"needed\" \"printf imported > $out\")); }");
    let ended = store.step(["--attr", "a"]).run();
    ended.takes("evaluated", "not-recorded").counts(2, 0);
    assert!(
        ended.report()["drv"]
            .as_str()
            .unwrap()
            .ends_with("-imported.drv")
    );
}

#[test]
fn what_is_no_derivation_is_refused_by_what_it_is() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"{
          text = "text"; "0" = "zero"; number = 1; empty = { }; nothing = [ ]; none = null; path = ./.; function = { needed }: 1; deep = { a.b = 1; };
          a = file "a"; b = file "b";
          pair = { x = file "a"; y = file "b"; }; list = [ (file "a") (file "b") ]; one = [ (file "a") ]; single = { only = file "a"; };
        }"#,
    );
    for (attribute, parts) in [
        ("text", ["string", "\"text\""]),
        // One that has to be selected by an expression of ours.
        ("0", ["string", "\"zero\""]),
        ("number", ["integer", "1"]),
        ("empty", ["set", "{ }"]),
        ("nothing", ["list", "[ ]"]),
        ("none", ["null", "null"]),
        ("path", ["path", store.work().to_str().unwrap()]),
        ("pair", ["2", "2"]),
        ("list", ["2", "2"]),
        ("deep", ["set", "{ a"]),
    ] {
        let ended = store.step(["--attr", attribute]).run();
        ended.fails(65, "evaluation");
        let message = ended.report()["failure"]["message"].as_str().unwrap();
        assert!(
            parts.iter().any(|part| message.contains(part)),
            "{attribute}: {message}"
        );
        assert!(message.contains(attribute), "{attribute}: {message}");
        assert_eq!(store.links(), BTreeMap::new(), "{attribute}");
    }
    store
        .step(["--attr", "function"])
        .run()
        .fails(65, "evaluation");
    assert!(
        !store.has(store.target("a").out()),
        "one of several was built"
    );
}

#[test]
fn a_set_or_list_of_one_derivation_is_one_derivation() {
    let Some(store) = Store::new() else { return };
    store.targets("{ set = { only = file \"a\"; }; list = [ (file \"a\") ]; }");
    let target = store.target("set.only");
    for attribute in ["set", "list", "list.0"] {
        evaluates(&store.step(["--attr", attribute]).run(), &store, &target);
    }
}

#[test]
fn an_output_that_is_selected_is_still_the_one_derivation() {
    let Some(store) = Store::new() else { return };
    store.targets(r#"{ a = buildAll [ "out" "dev" ] "a" "echo o > $out; echo d > $dev"; }"#);
    let target = store.target("a");
    let ended = store.step(["--attr", "a.dev"]).run();
    ended.takes("evaluated", "not-recorded");
    assert_eq!(ended.report()["drv"], target.drv);
    assert_eq!(store.links()["result-dev"], target.outputs["dev"]);
}

#[test]
fn drift_is_a_warning_and_the_new_derivation_is_built() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"old\"; }");
    let old = store.target("a");
    store.collect();
    store.targets("{ a = file \"new\"; }");
    let mut flags = old.flags();
    flags.extend(["--file", "default.nix", "--attr", "a"].map(str::to_owned));
    let ended = store.step(&flags).run();
    ended
        .takes("evaluated", "drv-missing")
        .passes_on("eval-once: warning: drift: ");
    let new = store.target("a");
    let report = ended.report();
    assert_eq!(report["drift"], true);
    assert_eq!(report["drv"], new.drv);
    assert_eq!(report["outputs"], json!(new.outputs));
    assert_eq!(store.links()["result"], new.out());
    let warning = ended
        .ours()
        .into_iter()
        .find(|line| line.starts_with("warning: drift: "))
        .unwrap();
    assert!(
        warning.contains(&old.drv) && warning.contains(&new.drv),
        "{warning}"
    );
}

#[test]
fn drift_fails_before_anything_is_built_where_that_is_asked_for() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"old\"; }");
    let old = store.target("a");
    store.collect();
    store.targets("{ a = file \"new\"; }");
    let mut flags = old.flags();
    flags.extend(["--file", "default.nix", "--attr", "a", "--on-drift", "fail"].map(str::to_owned));
    let stand_ins = StandIns::new(store.bin()).counting("nix-instantiate");
    let ended = store.step(&flags).env("PATH", stand_ins.path(&store)).run();
    ended.fails(76, "drift");
    assert_eq!(ended.report()["drift"], true);
    assert_eq!(ended.report()["way"], "evaluated");
    assert_eq!(ended.report()["built"], 0);
    assert_eq!(stand_ins.calls("nix-instantiate").len(), 1);
    assert!(!store.has(store.target("a").out()));
    assert_eq!(store.links(), BTreeMap::new());
}

#[test]
fn the_same_drv_again_is_no_drift() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\"; }");
    let target = store.target("a");
    store.collect();
    let mut flags = target.flags();
    flags.extend(["--file", "default.nix", "--attr", "a", "--on-drift", "fail"].map(str::to_owned));
    let ended = store.step(&flags).run();
    ended.takes("evaluated", "drv-missing");
    assert_eq!(ended.report()["drift"], false);
}

/// A flake whose target depends on its own source, committed to a repository of git.
fn flake(store: &Store) {
    let body = expression(
        r#"{ packages.x86_64-linux = {
               hello = build "hello" "read x < ${self}/source; echo $x > $out";
               "a.b" = file "dotted";
               "\${x} \"y\"" = file "hostile";
             };
             hello = 1;
             impure = file (toString builtins.currentTime);
           }"#,
    );
    // A pure evaluation has no `currentSystem`.
    let body = body.replace("builtins.currentSystem", &format!("{:?}", system(store)));
    store.write("flake.nix", &format!("{{ outputs = {{ self }}: {body}; }}"));
    store.write("source", "clean\n");
    store.write(
        "sub/flake.nix",
        &format!("{{ outputs = {{ self }}: {body}; }}"),
    );
    store.write("sub/source", "below\n");
    git(store, ["init", "--quiet"]);
    git(store, ["add", "."]);
    git(
        store,
        [
            "-c",
            "user.name=A",
            "-c",
            "user.email=a@example.org",
            "commit",
            "--quiet",
            "--message",
            "first",
        ],
    );
}

fn git<const N: usize>(store: &Store, arguments: [&str; N]) {
    store.program("git").args(arguments).run().exits(0);
}

fn system(store: &Store) -> String {
    store
        .nix(
            "nix-instantiate",
            ["--eval", "--expr", "builtins.currentSystem"],
        )
        .trim_matches('"')
        .to_owned()
}

/// The `.drv` that `nix build` would build.
fn nix_build_drv(store: &Store, installable: &str) -> String {
    store.nix("nix", ["path-info", "--derivation", installable])
}

#[test]
fn a_clean_flake_gives_the_drv_that_nix_build_gives() {
    let Some(store) = Store::new() else { return };
    flake(&store);
    let expected = nix_build_drv(&store, ".#packages.x86_64-linux.hello");
    for flake in [
        ".".to_owned(),
        store.work().display().to_string(),
        format!("git+file://{}", store.work().display()),
    ] {
        store.collect();
        let ended = store
            .step(["--flake", &flake, "--attr", "packages.x86_64-linux.hello"])
            .run();
        ended.takes("evaluated", "not-recorded");
        assert_eq!(ended.report()["drv"], expected, "{flake}");
        assert_eq!(
            fs::read_to_string(store.work().join("result")).unwrap(),
            "clean\n"
        );
        fs::remove_file(store.work().join("result")).unwrap();
    }
    assert!(
        !store.work().join("flake.lock").exists(),
        "a step writes no lock file"
    );
}

#[test]
fn a_dirty_flake_gives_the_drv_that_nix_build_gives() {
    let Some(store) = Store::new() else { return };
    flake(&store);
    let clean = nix_build_drv(&store, ".#packages.x86_64-linux.hello");
    store.write("source", "dirty\n");
    let dirty = nix_build_drv(&store, ".#packages.x86_64-linux.hello");
    assert_ne!(clean, dirty);
    store.collect();
    let ended = store
        .step(["--flake", ".", "--attr", "packages.x86_64-linux.hello"])
        .run();
    ended.takes("evaluated", "not-recorded");
    assert_eq!(ended.report()["drv"], dirty);
    assert_eq!(
        fs::read_to_string(store.work().join("result")).unwrap(),
        "dirty\n"
    );
}

#[test]
fn a_flake_below_the_root_of_its_repository_gives_the_drv_that_nix_build_gives() {
    let Some(store) = Store::new() else { return };
    flake(&store);
    let expected = nix_build_drv(&store, "./sub#packages.x86_64-linux.hello");
    for flake in ["./sub", ".?dir=sub"] {
        store.collect();
        let ended = store
            .step(["--flake", flake, "--attr", "packages.x86_64-linux.hello"])
            .run();
        ended.takes("evaluated", "not-recorded");
        assert_eq!(ended.report()["drv"], expected, "{flake}");
    }
}

#[test]
fn a_dirty_flake_below_the_root_of_its_repository_does_too_or_says_that_this_nix_cannot() {
    let Some(store) = Store::new() else { return };
    flake(&store);
    store.write("sub/source", "dirty\n");
    let expected = nix_build_drv(&store, "./sub#packages.x86_64-linux.hello");
    let ended = store
        .step(["--flake", "./sub", "--attr", "packages.x86_64-linux.hello"])
        .run();
    if ended.status.success() {
        assert_eq!(ended.report()["drv"], expected);
        assert_eq!(
            fs::read_to_string(store.work().join("result")).unwrap(),
            "dirty\n"
        );
    } else {
        // Up to some version between 2.8 and 2.26 there is no reference for it that pure evaluation takes.
        ended
            .fails(65, "evaluation")
            .passes_on("unsupported parameter 'dir'");
        let hint = ended
            .ours()
            .into_iter()
            .find(|line| line.starts_with("hint: "));
        assert!(
            hint.is_some_and(|hint| hint.contains("uncommitted changes")),
            "{ended}"
        );
    }
}

#[test]
fn a_flake_that_is_in_no_repository_gives_the_drv_that_nix_build_gives() {
    let Some(store) = Store::new() else { return };
    let folder = "two words, 100% & $more?";
    let body =
        expression("{ a = build \"a\" \"echo ${self} ${toString self.lastModified} > $out\"; }")
            .replace("builtins.currentSystem", &format!("{:?}", system(&store)));
    store.write(
        &format!("{folder}/flake.nix"),
        &format!("{{ outputs = {{ self }}: {body}; }}"),
    );
    let folder = store.work().join(folder);
    let expected = store
        .program("nix")
        .args(["path-info", "--derivation", ".#a"])
        .folder(&folder)
        .run();
    expected.exits(0);
    store.collect();
    for flake in [".", "path:."] {
        let ended = store
            .step(["--flake", flake, "--attr", "a", "--no-out-link"])
            .folder(&folder)
            .run();
        ended.takes("evaluated", "not-recorded");
        assert_eq!(ended.report()["drv"], expected.stdout.trim_end());
    }
}

#[test]
fn a_flakes_attribute_is_the_whole_path_and_may_hold_anything() {
    let Some(store) = Store::new() else { return };
    flake(&store);
    for name in ["a.b", "${x} \"y\""] {
        let ended = keyed(
            &store,
            &json!({ "flake": ".", "attr": ["packages", "x86_64-linux", name] }),
        );
        ended.takes("evaluated", "not-recorded");
    }
    // No prefix is tried: `nix build .#a` would look below `packages`.
    store
        .step(["--flake", ".", "--attr", "\"a.b\""])
        .run()
        .fails(65, "evaluation");
    store
        .step(["--flake", ".", "--attr", "hello"])
        .run()
        .fails(65, "evaluation");
    store.step(["--flake", "."]).run().fails(65, "evaluation");
}

#[test]
fn a_flake_is_evaluated_purely() {
    let Some(store) = Store::new() else { return };
    flake(&store);
    let ended = store.step(["--flake", ".", "--attr", "impure"]).run();
    ended.fails(65, "evaluation").passes_on("currentTime");
}

#[test]
fn a_file_that_git_does_not_know_is_missing_in_a_flake_and_that_is_no_work_of_the_collector() {
    let Some(store) = Store::new() else { return };
    flake(&store);
    let text = fs::read_to_string(store.work().join("flake.nix")).unwrap();
    store.write(
        "flake.nix",
        &text.replace("hello = 1;", "hello = import ./forgotten.nix;"),
    );
    store.write("forgotten.nix", "1");
    let stand_ins = StandIns::new(store.bin()).counting("nix-instantiate");
    let step = store.step(["--flake", ".", "--attr", "hello"]);
    let ended = step.env("PATH", stand_ins.path(&store)).run();
    ended.fails(65, "evaluation").passes_on("forgotten.nix");
    assert_eq!(stand_ins.evaluations(), 1, "{ended}");
}

#[test]
fn a_flake_needs_no_experimental_features_in_the_settings() {
    let Some(store) = Store::new() else { return };
    flake(&store);
    let expected = nix_build_drv(&store, ".#packages.x86_64-linux.hello");
    store.configure("experimental-features =");
    let ended = store
        .step(["--flake", ".", "--attr", "packages.x86_64-linux.hello"])
        .run();
    ended.takes("evaluated", "not-recorded");
    assert_eq!(ended.report()["drv"], expected);
}

#[test]
fn a_locked_flake_keeps_to_its_lock() {
    let Some(store) = Store::new() else { return };
    store.write(
        "input/flake.nix",
        "{ outputs = { self }: { name = \"locked\"; }; }",
    );
    store.write("flake.nix", &format!(
        "{{ inputs.input.url = \"path:{}\"; outputs = {{ self, input }}: {{ a = derivation {{ inherit (input) name; system = {:?}; \
         builder = \"/bin/sh\"; args = [ \"-c\" \"echo > $out\" ]; }}; }}; }}",
        store.work().join("input").display(), system(&store)
    ));
    git(&store, ["init", "--quiet"]);
    git(&store, ["add", "flake.nix"]);
    store.nix("nix", ["flake", "lock"]);
    git(&store, ["add", "flake.lock"]);
    let lock = fs::read(store.work().join("flake.lock")).unwrap();
    let expected = nix_build_drv(&store, ".#a");
    let ended = store.step(["--flake", ".", "--attr", "a"]).run();
    ended.takes("evaluated", "not-recorded");
    assert_eq!(ended.report()["drv"], expected);
    assert_eq!(fs::read(store.work().join("flake.lock")).unwrap(), lock);
}

#[test]
fn a_flake_that_is_recorded_and_gone_is_evaluated_again_without_drift() {
    let Some(store) = Store::new() else { return };
    flake(&store);
    let drv = nix_build_drv(&store, ".#packages.x86_64-linux.hello");
    store.collect();
    let ended = store
        .step([
            "--drv",
            &drv,
            "--flake",
            ".",
            "--attr",
            "packages.x86_64-linux.hello",
            "--on-drift",
            "fail",
        ])
        .run();
    ended.takes("evaluated", "drv-missing");
    assert_eq!(ended.report()["drift"], false);
}

/// What stands between the quotes of a string of Nix's.
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace("${", "\\${")
        .replace('\n', "\\n")
        .replace('\r', "\\r")
}

/// A name of an attribute, quoted for the language.
fn quoted_name(name: &str) -> String {
    format!("\"{}\"", quoted(name))
}
