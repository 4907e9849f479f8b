//! A recording evaluates every target once: which targets there are, what a broken one costs, how processes share the work.

use std::{collections::BTreeMap, fs, time::Duration};

use crate::support::{
    program::{Ended, Program},
    recording::Pipeline,
    stand_in::{StandIns, dies, ends},
    store::Store,
    target::expression,
    until,
};

/// A recording by hand, of everything whatever is built, with these flags.
fn record(store: &Store, flags: &[&str]) -> Program {
    store
        .eval_once(["pipeline", "--dry-run", "--skip", "none"])
        .args(flags)
}

/// It says this somewhere on standard error.
#[track_caller]
fn mentions(ended: &Ended, part: &str) {
    assert!(ended.stderr.contains(part), "not said: {part}: {ended}");
}

fn recorded(store: &Store, flags: &[&str]) -> Pipeline {
    Pipeline::of(&record(store, flags).run())
}

/// The `.drv` that `nix-instantiate FILE -A ATTR` gives, without the output it may name.
fn instantiated(store: &Store, flags: &[&str]) -> String {
    let printed = store.nix("nix-instantiate", flags);
    printed.split('!').next().unwrap().to_owned()
}

/// One of every kind of nesting.
const EVERY_KIND: &str = r#"
{ n ? 1, s ? "default" }:
let marked = set: set // { recurseForDerivations = true; };
in {
  plain = file "plain";
  "name with.dots" = file "dots";
  "quo\"te" = file "quote";
  "new\nline" = file "line";
  "ä" = file "umlaut";
  argument = file "n${toString n}-${s}";
  function = { x ? "x", s }: file "function-${x}-${s}";
  functor = { __functor = self: { n ? 5 }: file "functor-${toString n}"; };
  needs = { missing }: file "needs";
  lambda = x: file "lambda";
  nested = marked { a = file "na"; deeper = marked { b = file "nb"; }; hidden = { c = file "nc"; }; };
  hidden = { d = file "hd"; };
  list = [ (file "l0") "text" [ (file "l1") ] { e = file "le"; } (marked { f = file "lf"; }) ];
  # A derivation that is a set of others as well is a target, and no set.
  both = marked (file "both" // { inner = file "inner"; });
  outputs = buildAll [ "dev" "doc" ] "outputs" "echo > $dev; echo > $doc";
  same = file "plain";
  text = "text";
  nothing = null;
  generated = marked (builtins.listToAttrs (builtins.genList (i: rec { name = "g${toString i}"; value = file name; }) 30));
}
"#;

#[test]
fn the_targets_are_those_that_nix_instantiate_gives_attribute_by_attribute() {
    let Some(store) = Store::new() else { return };
    store.write("ci.nix", &expression(EVERY_KIND));
    let pipeline = recorded(
        &store,
        &[
            "--file",
            "ci.nix",
            "--arg",
            "n",
            "3",
            "--argstr",
            "s",
            "str",
            "--workers",
            "2",
        ],
    );
    assert!(pipeline.broken().is_empty(), "{:?}", pipeline.broken());
    let mut expected = vec![
        r#"["name with.dots"]"#.to_owned(),
        r#"["quo\"te"]"#.into(),
        r#"["new\nline"]"#.into(),
        r#"["ä"]"#.into(),
        r#"["argument"]"#.into(),
        r#"["function"]"#.into(),
        r#"["functor"]"#.into(),
        r#"["nested","a"]"#.into(),
        r#"["nested","deeper","b"]"#.into(),
        r#"["list","0"]"#.into(),
        r#"["list","2","0"]"#.into(),
        r#"["list","4","f"]"#.into(),
        r#"["both"]"#.into(),
        r#"["outputs"]"#.into(),
        r#"["plain"]"#.into(),
    ];
    expected.extend((0..30).map(|i| format!(r#"["generated","g{i}"]"#)));
    expected.sort();
    let drvs = pipeline.drvs();
    assert_eq!(drvs.keys().cloned().collect::<Vec<_>>(), expected);
    for (attr, drv) in &drvs {
        let names: Vec<String> = serde_json::from_str(attr).unwrap();
        // What `-A` has no spelling for is looked at by the test for steps.
        if names.iter().any(|name| name.contains('"')) {
            continue;
        }
        let quoted: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
        let selection = quoted.join(".");
        let selection = if names[0] == "list" {
            names.join(".")
        } else {
            selection
        };
        let nix = instantiated(
            &store,
            &[
                "ci.nix", "-A", &selection, "--arg", "n", "3", "--argstr", "s", "str",
            ],
        );
        assert_eq!(*drv, nix, "{attr}");
    }
}

#[test]
fn all_sets_are_walked_where_that_is_asked_for() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a.b.c = file \"abc\"; list = [ { d = file \"ld\"; } ]; }");
    let drvs = recorded(&store, &["--recurse", "all"]).drvs();
    assert_eq!(
        drvs.keys().collect::<Vec<_>>(),
        [r#"["a","b","c"]"#, r#"["list","0","d"]"#]
    );
    // Nothing is marked, and the list is walked, but not the set in it.
    mentions(record(&store, &[]).run().exits(65), "no targets");
}

#[test]
fn the_walk_starts_where_attr_says() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a.b = { c = file \"c\"; d = file \"d\"; }; e = throw \"never\"; }");
    let drvs = recorded(&store, &["-A", "a.b"]).drvs();
    assert_eq!(
        drvs.keys().collect::<Vec<_>>(),
        [r#"["a","b","c"]"#, r#"["a","b","d"]"#]
    );
    let one = recorded(&store, &["-A", "a.b.c"]).drvs();
    assert_eq!(one.keys().collect::<Vec<_>>(), [r#"["a","b","c"]"#]);
}

#[test]
fn what_is_left_out_is_not_even_looked_at() {
    let Some(store) = Store::new() else { return };
    store.targets(
        "{ keep = file \"keep\"; a = abort \"a\"; set = { recurseForDerivations = true; x = abort \"x\"; y = file \"y\"; }; \
         other = { recurseForDerivations = true; x = abort \"x\"; z = file \"z\"; }; }",
    );
    let pipeline = recorded(&store, &["--exclude", "a", "--exclude", "*.x"]);
    assert!(pipeline.broken().is_empty());
    assert_eq!(
        pipeline.drvs().keys().collect::<Vec<_>>(),
        [r#"["keep"]"#, r#"["other","z"]"#, r#"["set","y"]"#]
    );
    let pipeline = recorded(
        &store,
        &["--exclude", "a", "--exclude", "set", "--exclude", "other.x"],
    );
    assert_eq!(
        pipeline.drvs().keys().collect::<Vec<_>>(),
        [r#"["keep"]"#, r#"["other","z"]"#]
    );
}

/// Each breaks in another way; what stands beside them does not.
const EVERY_BREAKAGE: &str = r#"
let forever = x: 1 + forever x;
    self = let x = x + 1; in x;
    failing = build "failing" "echo no >&2; exit 3";
    data = build "data" "echo '\"of-a-builder\"' > $out";
    meta = m: file "meta" // { meta = m; };
in {
  a-first = file "first";
  abort = abort "the abort's words";
  "assert" = assert false; file "x";
  throw = throw "the throw's words";
  type = file (5 + "x");
  missing = { }.nonesuch;
  infinite = file "x${toString self}";
  overflow = file "x${toString (forever 1)}";
  set = { recurseForDerivations = true; } // abort "no set";
  imported = file (import data);
  import-fails = file (import failing);
  function = { a ? throw "the default's words" }: file a;
  ${builtins.substring 0 1 "ä"} = file "not-utf8";
  meta-path = meta { buildkite.x = ./default.nix; };
  meta-drv = meta { buildkite.x = file "forced"; };
  meta-function = meta { buildkite.x = y: y; };
  meta-infinite = meta { buildkite.x = 1.0e308 * 10; };
  meta-cycle = meta { buildkite = let c = { inherit c; }; in c; };
  meta-large = meta { buildkite.x = builtins.concatStringsSep "" (builtins.genList (x: "0123456789") 7000); };
  meta-throws = meta { buildkite = throw "in meta"; };
  meta-aborts = meta { buildkite = abort "in meta"; };
  meta-timeout = meta { timeout = "1h"; };
  meta-fine = meta { buildkite.priority = 1; timeout = 61; description = "fine"; homepage = throw "never looked at"; };
  z-last = file "last";
}
"#;

#[test]
fn a_broken_attribute_costs_itself_and_nothing_else() {
    let Some(store) = Store::new() else { return };
    store.targets(EVERY_BREAKAGE);
    for workers in ["1", "2"] {
        let ended = record(&store, &["--workers", workers]).run();
        let pipeline = Pipeline::of(&ended);
        assert_eq!(
            pipeline.drvs().keys().collect::<Vec<_>>(),
            [
                r#"["a-first"]"#,
                r#"["imported"]"#,
                r#"["meta-fine"]"#,
                r#"["z-last"]"#
            ],
            "{ended}"
        );
        assert_eq!(pipeline.broken().len(), 20, "{:?}", pipeline.broken());
        mentions(&ended, "the abort's words");
        assert_eq!(pipeline.step(&["meta-fine"]).json["timeout_in_minutes"], 2);
        assert_eq!(pipeline.step(&["meta-fine"]).json["priority"], 1);
        // Built again, these would be green: metadata is not read then. So they only say what is wrong.
        let refused = pipeline
            .broken()
            .into_iter()
            .filter(|name| name.contains("meta-"));
        assert_eq!(
            refused.filter(|name| name.contains(":boom:")).count(),
            9,
            "{ended}"
        );
    }
}

#[test]
fn a_recording_that_only_prints_does_not_speak_of_uploading() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"builtins.listToAttrs (builtins.genList (i: { name = "t${toString i}"; value = file "t${toString i}"; }) 8) // { bad = throw "no"; }"#,
    );
    let alike = ["--step", r#"{"parallelism":500}"#];
    let fails = ["--on-error", "fail"];
    // By hand, and in a job that only wants to see it.
    for (name, value) in [("EVAL_ONCE_LOG", ""), ("BUILDKITE_JOB_ID", "job")] {
        let ended = record(&store, &fails).env(name, value).run();
        ended.exits(65).prints("");
        mentions(&ended, "`on-error: fail` is set");
        mentions(&ended, "no pipeline is printed");
        assert!(!ended.stderr.contains("upload"), "{ended}");
        // Too many jobs are no reason not to print them.
        let ended = record(&store, &alike).env(name, value).run();
        assert_eq!(Pipeline::of(&ended).drvs().len(), 8);
        mentions(
            &ended,
            "an upload would be refused: the pipeline has 4001 jobs",
        );
    }
}

#[test]
fn what_a_target_says_to_us_is_data_and_counts_for_its_step_alone() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"let meta = name: meta: file name // { inherit meta; }; in {
          seconds = meta "seconds" { timeout = "3600"; maxSilent = "0600"; };
          numbers = meta "numbers" { timeout = 61; maxSilent = 60; };
          ours = meta "ours" { eval-once = { log = "raw"; out-link = "x${builtins.toString (file "context")}/.."; }; };
          plain = meta "plain" { eval-once = null; };
          path = meta "path" { eval-once.out-link = ./default.nix; };
          list = meta "list" { eval-once = [ "raw" ]; };
          throws = meta "throws" { eval-once = throw "in meta"; };
          silent = meta "silent" { maxSilent = "10m"; };
        }"#,
    );
    let ended = record(&store, &["--on-drift", "fail", "--option", "cores", "2"]).run();
    let pipeline = Pipeline::of(&ended);
    let option = |attr: &str| pipeline.step(&[attr]).record["options"]["max-silent-time"].clone();
    assert_eq!(pipeline.step(&["seconds"]).json["timeout_in_minutes"], 60);
    assert_eq!(
        (option("seconds"), option("numbers")),
        (600.into(), 60.into())
    );
    assert!(option("plain").is_null());
    for part in [
        "ours: in its `meta.eval-once`, `out-link` cannot be the path of a link",
        "path: meta.eval-once.out-link is a path; expected plain data",
        "list: meta.eval-once is a list; expected an attribute set",
        "silent: meta.maxSilent is \"10m\"; expected a whole number of seconds, at least 1",
    ] {
        mentions(&ended, part);
    }
    assert_eq!(pipeline.broken().len(), 5, "{ended}");

    // Of changes that are not trusted it is not even looked at.
    let pipeline = recorded(&store, &["--no-meta", "--no-out-link"]);
    assert_eq!(pipeline.broken().len(), 1, "{:?}", pipeline.broken());
    let ours = pipeline.step(&["ours"]).record;
    assert_eq!((&ours["out-link"], ours.get("log")), (&false.into(), None));
}

#[test]
fn a_build_that_says_nothing_for_too_long_ends_with_the_status_of_a_timeout() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"{ quiet = build "quiet" "while :; do :; done" // { meta.maxSilent = "1"; }; }"#,
    );
    let record = recorded(&store, &[]).step(&["quiet"]).record;
    let step = store.eval_once(["step"]);
    let ended = step.env("EVAL_ONCE_STEP", record.to_string()).run();
    ended.exits(101);
}

#[test]
fn a_link_starts_where_the_recording_does_though_its_steps_start_above() {
    let Some(store) = Store::new() else { return };
    let body = r#"{ a = file "a"; b = file "b" // { meta.eval-once.out-link = "../b"; }; c = file "c" // { meta.eval-once.out-link = false; }; }"#;
    store.write("nix/ci.nix", &expression(body));
    let ended = record(&store, &["--file", "ci.nix", "--out-link", "out"])
        .folder(store.work().join("nix"))
        .env("BUILDKITE_BUILD_CHECKOUT_PATH", store.work())
        .run();
    let pipeline = Pipeline::of(&ended);
    for (attr, link) in [("a", Some("nix/out")), ("b", Some("b")), ("c", None)] {
        let record = pipeline.step(&[attr]).record;
        assert_eq!(record["file"], "nix/ci.nix");
        let step = store.eval_once(["step"]);
        let built = step.env("EVAL_ONCE_STEP", record.to_string()).run();
        built.exits(0);
        let link = link.map(|link| store.work().join(link));
        assert!(
            link.is_none_or(|link| link.is_symlink()),
            "{attr}: {record}"
        );
        assert!(!store.work().join("result").exists(), "{attr}: {record}");
    }
}

#[test]
fn a_broken_attribute_is_a_red_step_that_evaluates_it_and_says_why() {
    let Some(store) = Store::new() else { return };
    store.targets("{ fine = file \"fine\"; set = { recurseForDerivations = true; bad = throw \"its words\"; }; }");
    let pipeline = recorded(&store, &[]);
    let step = pipeline.step(&["set", "bad"]);
    assert!(
        step.key().starts_with("attr-") && step.key().len() == 37,
        "{}",
        step.key()
    );
    let no_flags: [&str; 0] = [];
    let ended = store
        .step(no_flags)
        .env("EVAL_ONCE_STEP", step.record.to_string())
        .run();
    ended.exits(65).passes_on("its words");

    let ended = record(&store, &["--on-error", "fail"]).run();
    mentions(
        ended.exits(65).prints(""),
        "evaluation error: set.bad: its words",
    );
}

#[test]
fn what_a_step_records_it_also_builds() {
    let Some(store) = Store::new() else { return };
    store.write("ci.nix", &expression(EVERY_KIND));
    let flags = [
        "--file", "ci.nix", "--arg", "n", "3", "--argstr", "s", "str",
    ];
    let pipeline = recorded(&store, &flags);
    let steps = pipeline.steps();
    assert!(steps.len() > 40);
    for (attr, step) in steps.iter().filter(|(attr, _)| !attr.contains("generated")) {
        let _ = fs::remove_file(store.work().join("result"));
        let no_flags: [&str; 0] = [];
        let built = store
            .step(no_flags)
            .env("EVAL_ONCE_STEP", step.record.to_string())
            .run();
        built.takes("realised", "drv-valid");
        // And where nothing is left of it, it is evaluated to the same.
        store.collect();
        let mut record = step.record.clone();
        let again = store.nix(
            "nix-store",
            [
                "--check-validity",
                "--print-invalid",
                record["drv"].as_str().unwrap(),
            ],
        );
        assert_eq!(again, "", "{attr}: the pin keeps it");
        let drv = record.as_object_mut().unwrap().remove("drv").unwrap();
        record.as_object_mut().unwrap().remove("outputs");
        let evaluated = store
            .step(no_flags)
            .env("EVAL_ONCE_STEP", record.to_string())
            .run();
        evaluated.takes("evaluated", "not-recorded");
        assert_eq!(evaluated.report()["drv"], drv, "{attr}");
    }
}

fn flake(store: &Store) {
    let text = format!(
        r#"{{ outputs = {{ self }}: let{}  on = system: name: build name "echo ${{name}} > $out" // {{ }};
           d = system: name: derivation {{ inherit name system; builder = "/bin/sh"; args = [ "-c" "echo $src > $out" ]; src = self; }};
        in {{
          packages.SYSTEM = {{ default = d "SYSTEM" "default"; broken = throw "broken package"; set = {{ recurseForDerivations = true; x = d "SYSTEM" "x"; }}; }};
          packages.riscv64-linux.default = d "riscv64-linux" "default";
          packages.other-system.default = d "other-system" "default";
          checks.SYSTEM.fine = d "SYSTEM" "fine";
          hydraJobs.release.SYSTEM = d "SYSTEM" "release";
          hydraJobs.release.other-system = d "other-system" "release";
          hydraJobs.deep.er = d "SYSTEM" "deeper";
          lib = throw "nobody asked for the library";
        }}; }}"#,
        "\n  system = \"SYSTEM\"; build = name: script: derivation { inherit name system; builder = \"/bin/sh\"; args = [ \"-c\" script ]; };\n"
    );
    let system = store.nix(
        "nix-instantiate",
        ["--eval", "-E", "builtins.currentSystem"],
    );
    store.write(
        "flake.nix",
        &text.replace("SYSTEM", system.trim_matches('"')),
    );
    for arguments in [
        &["init", "--quiet"][..],
        &["add", "--all"],
        &[
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@example.com",
            "commit",
            "--quiet",
            "-m",
            "x",
        ],
    ] {
        store.program("git").args(arguments).run().exits(0);
    }
}

#[test]
fn a_flake_gives_the_drvs_that_nix_build_gives() {
    let Some(store) = Store::new() else { return };
    flake(&store);
    let system = store.nix(
        "nix-instantiate",
        ["--eval", "-E", "builtins.currentSystem"],
    );
    let system = system.trim_matches('"');
    for dirty in [false, true] {
        if dirty {
            fs::write(
                store.work().join("flake.nix"),
                fs::read_to_string(store.work().join("flake.nix")).unwrap() + "\n",
            )
            .unwrap();
        }
        let pipeline = recorded(
            &store,
            &[
                "--flake",
                ".",
                "--agents",
                r#"{"riscv64-linux":{"arch":"riscv"}}"#,
            ],
        );
        let expected = [
            format!(r#"["checks","{system}","fine"]"#),
            r#"["hydraJobs","deep","er"]"#.to_owned(),
            format!(r#"["hydraJobs","release","{system}"]"#),
            r#"["packages","riscv64-linux","default"]"#.to_owned(),
            format!(r#"["packages","{system}","default"]"#),
            format!(r#"["packages","{system}","set","x"]"#),
        ];
        let drvs = pipeline.drvs();
        assert_eq!(drvs.keys().cloned().collect::<Vec<_>>(), expected);
        assert_eq!(
            pipeline.broken(),
            [format!(r#"["packages","{system}","broken"]"#)]
        );
        for (attr, drv) in &drvs {
            let names: Vec<String> = serde_json::from_str(attr).unwrap();
            let installable = format!(".#{}.drvPath", names.join("."));
            assert_eq!(
                store.nix("nix", ["eval", "--raw", &installable]),
                *drv,
                "{attr}, dirty: {dirty}"
            );
        }
        assert_eq!(
            pipeline
                .step(&["packages", "riscv64-linux", "default"])
                .json["agents"]["arch"],
            "riscv"
        );
    }
    let below = recorded(
        &store,
        &["--flake", ".", "-A", &format!("packages.{system}")],
    );
    assert_eq!(below.drvs().len(), 2);
}

/// Attributes of which pure evaluation allows but one, and what gives each its `.drv`.
const IMPURE: &str = r#"
  pure = build "pure";
  system = build "system-${builtins.currentSystem}";
  time = build "time-${toString builtins.currentTime}";
  environment = build "environment-${builtins.getEnv "NAME"}";
  file = build "file-${builtins.hashFile "md5" /etc/passwd}";
  search = build (toString <nixpkgs>);
"#;

/// The `.drv`s of [`IMPURE`] that this command gives, by the last name of their attribute paths.
fn instantiated_each(command: impl Fn(&str) -> Program) -> BTreeMap<&'static str, String> {
    let names = ["environment", "file", "pure", "search", "system", "time"];
    let each = names.into_iter().filter_map(|name| {
        let ended = command(name).env("NAME", "value").run();
        let drv = ended.stdout.trim_end().to_owned();
        ended.status.success().then_some((name, drv))
    });
    each.collect()
}

/// What a recording with these flags gives of [`IMPURE`].
fn recorded_each(record: Program, prefix: &[&str]) -> BTreeMap<String, String> {
    let ended = record.env("NAME", "value").run();
    // What was tried before, and did not serve, is no error of the expression.
    for line in ended.stderr.lines() {
        assert!(line.starts_with("eval-once: "), "{line}: {ended}");
    }
    let drvs = Pipeline::of(&ended).drvs().into_iter();
    drvs.map(|(attr, drv)| {
        let names: Vec<String> = serde_json::from_str(&attr).unwrap();
        assert_eq!(names[..names.len() - 1], *prefix);
        (names.last().unwrap().clone(), drv)
    })
    .collect()
}

fn is_pure(drvs: &BTreeMap<&str, String>) -> bool {
    !drvs.contains_key("system") && drvs.contains_key("pure")
}

fn owned(drvs: BTreeMap<&str, String>) -> BTreeMap<String, String> {
    let each = drvs.into_iter();
    each.map(|(name, drv)| (name.to_owned(), drv)).collect()
}

#[test]
fn a_flake_is_evaluated_as_purely_as_nix_build_evaluates_it() {
    let Some(store) = Store::new() else { return };
    let system = store.nix(
        "nix-instantiate",
        ["--eval", "-E", "builtins.currentSystem"],
    );
    let system = system.trim_matches('"');
    let text = format!(
        r#"{{ outputs = {{ self }}: let
             build = name: derivation {{ inherit name; system = "{system}"; builder = "/bin/sh"; }};
           in {{ packages.{system} = {{ {IMPURE} }}; }}; }}"#
    );
    store.write("flake.nix", &text);
    let expected = instantiated_each(|name| {
        let installable = format!("path:.#packages.{system}.{name}");
        store
            .program("nix")
            .args(["path-info", "--derivation", &installable])
    });
    assert!(is_pure(&expected), "{expected:?}");
    let expected = owned(expected);
    for flags in [
        &["--workers", "1"][..],
        &["--workers", "2"],
        &["--option", "pure-eval", "false"],
    ] {
        let record = record(&store, &["--flake", "path:."]).args(flags);
        let found = recorded_each(record, &["packages", system]);
        assert_eq!(found, expected, "{flags:?}");
    }
}

#[test]
fn an_expression_is_evaluated_purely_where_the_settings_say_so_as_by_nix_instantiate() {
    let Some(store) = Store::new() else { return };
    let text = format!(
        r#"let build = name: derivation {{ inherit name; system = "s"; builder = "/bin/sh"; }}; in {{ {IMPURE} }}"#
    );
    let text = text.replace("builtins.currentTime", "1");
    let option = |value| ["--option", "pure-eval", value];
    let no_flags: [&str; 0] = [];
    for (config, flags, pure) in [
        ("", &no_flags[..], false),
        ("", &option("true"), true),
        ("pure-eval = true", &no_flags, true),
        ("pure-eval = true", &option("false"), false),
        ("pure-eval = false", &option("true"), true),
    ] {
        let expected = instantiated_each(|name| {
            store
                .program("nix-instantiate")
                .args(["--expr", &text, "-A", name])
                .args(flags)
                .env("NIX_CONFIG", config)
        });
        assert_eq!(is_pure(&expected), pure, "{config} {flags:?}: {expected:?}");
        let record = record(&store, &["--expr", &text]).args(flags);
        let found = recorded_each(record.env("NIX_CONFIG", config), &[]);
        assert_eq!(found, owned(expected), "{config} {flags:?}");
    }
}

#[test]
fn a_file_that_ends_too_early_costs_the_attributes_that_import_it() {
    let Some(store) = Store::new() else { return };
    store.write("early.nix", "{ a = {");
    store.write(
        "ci.nix",
        &expression(
            r#"{
              a = file "a"; b = import ./early.nix; c = builtins.trace "c, once" (file "c"); d = throw "thrown";
              e = import ./early.nix; f = import ./early.nix; g = file "g"; set = { recurseForDerivations = true;
              a = file "x"; b = (import ./early.nix).y; c = builtins.trace "set.c, once" (file "y"); };
              mark = { recurseForDerivations = import ./early.nix; };
              meta = with' { } "meta" "echo > $out" // { meta.description = import ./early.nix; };
            }"#,
        ),
    );
    for workers in ["1", "2"] {
        let ended = record(&store, &["--file", "ci.nix", "--workers", workers]).run();
        let pipeline = Pipeline::of(&ended);
        let broken = [
            r#"["b"]"#,
            r#"["d"]"#,
            r#"["e"]"#,
            r#"["f"]"#,
            r#"["mark"]"#,
            r#"["set","b"]"#,
        ];
        let mut found = pipeline.broken();
        // The step of what is refused for its metadata has no record.
        found.retain(|name| name.starts_with('['));
        assert_eq!(found, broken);
        let refused = "refused: meta: syntax error, unexpected end of file";
        assert!(ended.stderr.contains(refused), "{ended}");
        assert_eq!(pipeline.drvs().len(), 5, "{ended}");
        for (name, message) in [
            ("b", "early.nix:1"),
            ("d", "thrown"),
            ("mark", "unexpected end of file"),
            ("e", "early.nix:1"),
            ("f", "early.nix:1"),
            ("set.b", "early.nix:1"),
        ] {
            let said = format!("evaluation error: {name}: ");
            let line = ended.stderr.lines().find(|line| line.contains(&said));
            assert!(
                line.is_some_and(|line| line.contains(message)),
                "{name}: {ended}"
            );
        }
        // Nothing is evaluated again because something after it fails.
        for traced in ["trace: c, once", "trace: set.c, once"] {
            assert_eq!(ended.stderr.matches(traced).count(), 1, "{ended}");
        }
    }
}

// ---- bad input

#[test]
fn what_cannot_be_walked_is_one_sentence_that_names_the_place() {
    let Some(store) = Store::new() else { return };
    let cases = [
        ("{ a = ", 65, "ci.nix:"),
        (
            "5",
            65,
            "evaluates to an integer; expected an attribute set, a list or a derivation",
        ),
        ("{ }", 65, "no targets"),
        ("{ a = 5; b = { c = file \"c\"; }; }", 65, "no targets"),
        ("{ needed }: { a = file \"a\"; }", 65, "needed"),
        ("abort \"the root's words\"", 65, "the root's words"),
        ("throw \"the root's words\"", 65, "the root's words"),
    ];
    for (text, status, place) in cases {
        store.write("ci.nix", &expression(text));
        let ended = record(&store, &["--file", "ci.nix"]).run();
        mentions(ended.exits(status), place);
        let errors: Vec<_> = ended
            .ours()
            .into_iter()
            .filter(|line| line.contains("error:"))
            .map(str::to_owned)
            .collect();
        assert_eq!(errors.len(), 1, "{ended}");
    }
    mentions(
        record(&store, &["--file", "missing.nix"])
            .run()
            .exits(65)
            .prints(""),
        "missing.nix",
    );
    mentions(
        record(&store, &[]).run().exits(64).prints(""),
        "default.nix",
    );
    store.write("ci.nix", &expression("{ a = file \"a\"; }"));
    mentions(
        record(&store, &["--file", "ci.nix", "-A", "b.c"])
            .run()
            .exits(65)
            .prints(""),
        "'b'",
    );
    assert!(
        !store.our_state().join("pins").exists()
            || fs::read_dir(store.our_state().join("pins"))
                .unwrap()
                .next()
                .is_none()
    );
}

// ---- limits

#[test]
fn an_attribute_that_hangs_ends_with_the_timeout() {
    let Some(store) = Store::new() else { return };
    // Far more than any timeout, and it looks at no signal.
    store.targets(
        "let spin = n: builtins.foldl' (a: b: a + b) 0 (builtins.genList (x: x) n); forever = n: if n == 0 then 0 else spin 1000 + forever (n - 1);\
         in { a = file \"a\"; b = file \"b${toString (builtins.foldl' (a: b: forever 100) 0 (builtins.genList (x: x) 100000000))}\"; c = file \"c\"; }",
    );
    let ended = record(&store, &["--evaluation-timeout", "1", "--memory", "4000"]).run();
    let pipeline = Pipeline::of(&ended);
    assert_eq!(pipeline.drvs().len(), 2);
    assert_eq!(pipeline.broken(), [r#"["b"]"#]);
    mentions(&ended, "evaluation-timeout");
}

/// A worker whose attribute takes too long computes on, up to a second, until it is killed: what it has come to by then has not taken
/// too long.
#[test]
fn an_attribute_that_begins_before_its_worker_is_killed_for_another_one_has_not_taken_too_long() {
    let Some(store) = Store::new() else { return };
    // It waits without a look at signals. (Nix 2.26 remembers which of the last 16,384 files there were.)
    store.targets(
        "let numbers = builtins.genList (n: n); \
         is = found: name: found || builtins.pathExists (./. + \"/${name}\"); \
         look = name: builtins.foldl' (found: n: is (is found \"no-${toString n}\") name) false (numbers 20000); \
         wait = name: builtins.foldl' (found: n: found || look name) false (numbers 100000); \
         in { a = assert builtins.exec [ \"/bin/sh\" \"-c\" \"echo > begun; echo true\" ]; assert wait \"goes-on\"; { }; \
              b = file \"b\"; c = file \"c\"; }",
    );
    let folder = store.work().clone();
    let other = std::thread::spawn(move || {
        let wait = |seconds| std::thread::sleep(Duration::from_secs_f64(seconds));
        for _ in 0..6000 {
            if folder.join("begun").exists() {
                break;
            }
            wait(0.01);
        }
        // It is asked to end after two seconds, and killed after three.
        wait(2.5);
        fs::write(folder.join("goes-on"), "").unwrap();
    });
    let ended = record(&store, &["--evaluation-timeout", "2", "--workers", "1"])
        .env(
            "NIX_CONFIG",
            "allow-unsafe-native-code-during-evaluation = true",
        )
        .run();
    other.join().unwrap();
    // The first one may have taken too long, where the machine is busy.
    let broken = Pipeline::of(&ended).broken();
    assert!(!broken.contains(&r#"["b"]"#.to_owned()), "{ended}");
}

#[test]
fn an_attribute_beyond_the_memory_budget_costs_only_itself() {
    let Some(store) = Store::new() else { return };
    store.targets(
        "let grow = n: builtins.length (builtins.attrNames (builtins.foldl' (a: b: a // { \"k${toString b}\" = a; }) { } (builtins.genList (x: x) n)));\
         in { a = file \"a\"; b = file \"b${toString (grow 100000)}\"; c = file \"c\"; d = file \"d${toString (grow 1000)}\"; }",
    );
    for workers in ["1", "2"] {
        let ended = record(&store, &["--memory", "400", "--workers", workers]).run();
        let pipeline = Pipeline::of(&ended);
        assert_eq!(pipeline.drvs().len(), 3, "{ended}");
        assert_eq!(pipeline.broken(), [r#"["b"]"#]);
        mentions(&ended, "more memory than the 400 MiB");
    }
}

#[test]
fn a_root_too_large_for_the_memory_is_one_sentence() {
    let Some(store) = Store::new() else { return };
    store.targets(
        "let root = builtins.foldl' (a: b: a // { \"k${toString b}\" = b; }) { } (builtins.genList (x: x) 20000);\
         in builtins.seq (builtins.length (builtins.attrNames root)) { a = file \"a${toString root.k5}\"; b = file \"b\"; }",
    );
    let ended = record(&store, &["--memory", "40"]).run();
    mentions(
        ended.exits(65).prints(""),
        "needs more memory than the 40 MiB",
    );
}

#[test]
fn a_recording_that_is_cancelled_leaves_no_process_behind() {
    let Some(store) = Store::new() else { return };
    store.targets(
        "builtins.listToAttrs (builtins.genList (i: { name = \"t${toString i}\"; value = file \"t${toString (builtins.foldl' (a: b: a + b) i (builtins.genList (x: x) 30000000))}\"; }) 8)",
    );
    let stand_ins = StandIns::new(store.bin()).before("nix", "echo started >&2");
    let running = record(&store, &["--workers", "2"])
        .env("PATH", stand_ins.path(&store))
        .start();
    running.until_it_says("started");
    let told = std::time::Instant::now();
    unix::sys::signal::kill(running.pid(), unix::sys::signal::Signal::SIGTERM).unwrap();
    let ended = running.end();
    ended.exits(143).prints("");
    assert!(
        told.elapsed().as_secs() < 10,
        "it took {:?}",
        told.elapsed()
    );
    until("nothing is left", || {
        crate::support::processes::marked(store.root().to_str().unwrap()).is_empty()
    });
}

// ---- the collector

#[test]
fn an_evaluation_that_the_collector_disturbs_is_done_again_for_that_attribute() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\"; b = file (import (build \"data\" \"echo '\\\"b\\\"' > $out\")); c = file \"c\"; }");
    // As it is when a path goes that Nix has just seen: a message of the collector's about a path that is not there.
    let gone = store
        .folder()
        .join("00000000000000000000000000000000-gone.drv");
    let message = format!("path '{}' is not valid", gone.display());
    let script = dies("begin /1", &message, 1);
    let stand_ins = StandIns::new(store.bin()).before("nix", &script);
    let ended = record(&store, &["--workers", "1"])
        .env("PATH", stand_ins.path(&store))
        .run();
    let pipeline = Pipeline::of(&ended);
    assert_eq!(pipeline.drvs().len(), 3);
    mentions(&ended, "garbage collector");
}

#[test]
fn an_evaluation_of_which_nix_aborts_because_a_drv_was_lost_is_done_again_for_that_attribute() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\"; b = file \"b\"; c = file \"c\"; }");
    // As Nix ends where the collector takes a `.drv` that an evaluation is about to build.
    let aborts = |what: &str| {
        format!(
            "echo \"nix: src/libstore/build/derivation-goal.cc:1: f(): Assertion \\`{what}' failed.\" >&2; kill -ABRT $$"
        )
    };
    for (number, (what, times, status)) in [
        ("worker.evalStore.isValidPath(drvPath)", 1, 0),
        ("drv", 1, 0),
        ("drv", 3, 75),
        // An assertion that says nothing of a path: the expression may be to blame.
        ("n == 1", 1, 0),
    ]
    .into_iter()
    .enumerate()
    {
        let script = ends("begin /1", &aborts(what), times);
        let bin = store.root().join(format!("bin-{number}"));
        let stand_ins = StandIns::new(bin).before("nix", &script);
        let ended = record(&store, &["--workers", "1"])
            .env("PATH", stand_ins.path(&store))
            .run();
        if what == "n == 1" {
            let pipeline = Pipeline::of(&ended);
            assert_eq!(pipeline.broken(), ["[\"b\"]"], "{ended}");
            continue;
        }
        mentions(&ended, "garbage collector");
        if status == 0 {
            assert_eq!(Pipeline::of(&ended).drvs().len(), 3, "{ended}");
        } else {
            ended.exits(status).prints("");
        }
    }
}

#[test]
fn an_attribute_that_missed_a_path_which_is_valid_by_now_is_evaluated_again() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\"; b = file \"b\"; c = file \"c\"; }");
    let path = store.target("b").drv;
    // The path that Nix calls missing has been registered again before anybody looks.
    for times in [1, 2, 3] {
        let script = dies("begin /1", &format!("path '{path}' is not valid"), times);
        let bin = store.root().join(format!("bin-{times}"));
        let stand_ins = StandIns::new(bin).before("nix", &script);
        let ended = record(&store, &["--workers", "1"])
            .env("PATH", stand_ins.path(&store))
            .run();
        mentions(&ended, "was missing during the evaluation and is valid now");
        if times < 3 {
            assert_eq!(Pipeline::of(&ended).drvs().len(), 3, "{ended}");
        } else {
            // No expression fails because of a path that is there: so it is not to blame.
            ended.exits(75).prints("");
            mentions(&ended, "missed what it needs 3 times: at last");
        }
    }
}

// ---- nix-eval-jobs

/// Lines as the README of nix-eval-jobs shows them, for a store of ours.
#[test]
fn nix_eval_jobs_gives_the_same_records() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\" // { meta = { eval-once.log = \"raw\"; maxSilent = \"9\"; }; }; set = { recurseForDerivations = true; b = file \"b\"; c = throw \"c's words\"; }; }");
    let ours = recorded(&store, &[]);
    let line = |attr: &str, path: &str, drv: &str, more: &str| {
        format!(
            r#"{{"attr":"{attr}","attrPath":{path},"drvPath":"{drv}","inputDrvs":{{}},"name":"x","outputs":{{"out":"x"}},"system":"x86_64-linux","meta":{{"available":true,"broken":false{more}}}}}"#
        )
    };
    let drvs = ours.drvs();
    let lines = [
        line("set.b", r#"["set","b"]"#, &drvs[r#"["set","b"]"#], ""),
        r#"{"attr":"set.c","attrPath":["set","c"],"error":"error:\n       … while evaluating\n\n       error: c's words"}"#.into(),
        line("a", r#"["a"]"#, &drvs[r#"["a"]"#], r#","eval-once":{"log":"raw"},"maxSilent":"9""#),
    ];
    let script = format!(
        "#!/bin/sh\nprintf '%s\\n' \"$@\" >'{}'\ncat <<'END'\n{}\nEND\n",
        store.root().join("arguments").display(),
        lines.join("\n")
    );
    let stand_ins = StandIns::new(store.bin()).instead("nix-eval-jobs", &script);
    let ended = record(&store, &["--evaluator", "nix-eval-jobs", "--workers", "2"])
        .env("PATH", stand_ins.path(&store))
        .run();
    let theirs = Pipeline::of(&ended);
    assert_eq!(theirs.json, ours.json);
    assert_eq!(ours.step(&["a"]).record["log"], "raw");
    let arguments = fs::read_to_string(store.root().join("arguments")).unwrap();
    assert!(arguments.contains("--workers\n2\n"), "{arguments}");
    // What it has found is kept by its own roots until the pin does.
    let roots = store.our_state().join("roots");
    let argument = format!("--gc-roots-dir\n{}/eval-once-", roots.display());
    assert!(arguments.contains(&argument), "{arguments}");
    assert!(!roots.read_dir().unwrap().any(|_| true));
}

/// Two to the 32nd paths are too long there.
#[test]
fn sets_that_contain_each_other_in_several_ways_cost_themselves_and_nothing_else() {
    let Some(store) = Store::new() else { return };
    store.write(
        "ci.nix",
        &expression(
            r#"
            let
              marked = set: set // { recurseForDerivations = true; };
              x = marked { inherit y z; inside = file "x"; };
              y = marked { inherit x z; inside = file "y"; };
              z = marked { inherit x y; inside = file "z"; };
              list = [ list list (file "list") ];
              simple = marked { inherit simple; inside = file "simple"; };
            in
            {
              a = file "a"; inherit x list simple; z = file "z";
              # Many of them in one set cost one set each, as far as that goes.
              several = marked (builtins.listToAttrs (builtins.genList (i: { name = "s${toString i}"; value = simple; }) 10) // { ok = file "ok"; });
            }
            "#,
        ),
    );
    let ended = record(&store, &["--file", "ci.nix", "--workers", "2"]).run();
    ended.exits(0);
    let pipeline = Pipeline::of(&ended);
    let names = |attrs: &[&[&str]]| -> Vec<String> {
        attrs
            .iter()
            .map(|attr| serde_json::to_string(attr).unwrap())
            .collect()
    };
    let several = (0..10).map(|i| format!(r#"["several","s{i}","simple"]"#));
    // Where the walk is given up in these depends on the order in which it comes there.
    let (endless, broken): (Vec<_>, Vec<_>) = pipeline.broken().into_iter().partition(|attr| {
        [r#"["x""#, r#"["list""#]
            .iter()
            .any(|set| attr.starts_with(set))
    });
    assert!((2..=8).contains(&endless.len()), "{endless:?}");
    let mut expected = names(&[&["simple"]]);
    expected.extend(several);
    expected.sort();
    assert_eq!(broken, expected, "{ended}");
    let drvs = pipeline.drvs();
    for attr in names(&[&["a"], &["z"], &["several", "ok"]]) {
        assert!(drvs.contains_key(&attr), "{attr} of {drvs:?}");
    }
}

/// readline takes such a character for a key.
#[test]
fn a_state_folder_may_have_a_name_that_cannot_be_typed() {
    let Some(store) = Store::new() else { return };
    store.write("ci.nix", &expression(r#"{ a = file "a"; }"#));
    for name in ["plain", "tab\t", "bell\u{7}", "cancel\u{3}", "end\u{4}"] {
        let ended = record(&store, &["--file", "ci.nix"])
            .env("EVAL_ONCE_STATE_DIR", store.root().join(name))
            .run();
        ended.exits(0);
        assert_eq!(Pipeline::of(&ended).drvs().len(), 1, "{name:?}: {ended}");
    }
}

/// A set is evaluated again where a stack overflow ended a process (2.8), and may be another one then.
#[test]
fn a_set_whose_number_of_attributes_changes_is_named() {
    let Some(store) = Store::new() else { return };
    store.write(
        "ci.nix",
        &expression(
            r#"
            let
              marked = set: set // { recurseForDerivations = true; };
              endless = n: 1 + endless (n + 1);
              written = import (build "written" "echo > ${toString ./seen}; echo 1 > $out");
              more = if builtins.pathExists ./seen then { more = file "more"; } else { };
            in
            { outer = marked { set = marked ({ a = file "a"; b = builtins.seq written (endless 0); c = file "c"; } // more); }; }
            "#,
        ),
    );
    let record = || record(&store, &["--file", "ci.nix", "--workers", "1"]).run();
    let ended = record();
    if ended.status.success() {
        mentions(&ended, "evaluation error: outer.set.b: stack overflow");
    } else {
        ended.exits(65);
        mentions(
            &ended,
            "outer.set had 4 attributes when it was first evaluated, and has 5 now",
        );
    }
    // Now it does not change any more.
    let ended = record();
    ended.exits(0);
    assert_eq!(Pipeline::of(&ended).drvs().len(), 3, "{ended}");
}

#[test]
fn an_attribute_of_which_nix_eval_jobs_missed_a_path_is_evaluated_again_once() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\"; }");
    let drv = store.target("a").drv;
    for (times, broken) in [(1, 0), (2, 1)] {
        let count = store.root().join(format!("count-{times}"));
        let script = format!(
            r#"#!/bin/sh
echo x >>'{count}'
if [ $(wc -l <'{count}') -le {times} ]; then
  echo '{{"attr":"a","attrPath":["a"],"error":"error: path '"'{drv}'"' is not valid"}}'
else
  echo '{{"attr":"a","attrPath":["a"],"drvPath":"{drv}","name":"a","outputs":{{}},"system":"x","meta":null}}'
fi
"#,
            count = count.display(),
        );
        let bin = store.root().join(format!("jobs-{times}"));
        let stand_ins = StandIns::new(bin).instead("nix-eval-jobs", &script);
        let ended = record(&store, &["--evaluator", "nix-eval-jobs"])
            .env("PATH", stand_ins.path(&store))
            .run();
        let pipeline = Pipeline::of(&ended);
        assert_eq!(pipeline.broken().len(), broken, "{ended}");
        assert_eq!(fs::read_to_string(&count).unwrap(), "x\nx\n", "{ended}");
    }
}
