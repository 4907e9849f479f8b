//! Flakes: whatever a reference says of its source, a step and a recording give the `.drv` that `nix build` gives.
//!
//! Nix's versions write locked references differently, and read some of what they have written not at all: run these tests
//! with each of them first on `PATH`.

use std::{ffi::OsString, fs, path::Path};

use serde_json::json;

use crate::support::{
    collector::collecting,
    program::{Ended, Program},
    recording::Pipeline,
    stand_in::StandIns,
    store::Store,
    target::expression,
};

/// A flake whose target depends on everything that Nix says of its source: its files, and all that is known of where they
/// come from.
fn text(store: &Store) -> String {
    let body = expression(
        r#"
        let
          files = folder: builtins.attrNames (builtins.readDir folder);
          seen = builtins.toJSON {
            root = files ./.;
            lib = if builtins.pathExists ./lib then files ./lib else null;
            info = removeAttrs self.sourceInfo [ "outPath" ];
            self = removeAttrs self [ "outPath" "outputs" "packages" "sourceInfo" ];
          };
        in
        { packages.SYSTEM.a = with' { inherit seen; src = "${self}"; } "a" "echo > $out"; }"#,
    );
    // A pure evaluation has no `currentSystem`.
    let system = system(store);
    let body = body.replace("builtins.currentSystem", &format!("{system:?}"));
    format!("{{ outputs = {{ self }}: {body}; }}").replace("SYSTEM", &system)
}

fn system(store: &Store) -> String {
    let arguments = ["--eval", "--expr", "builtins.currentSystem"];
    let printed = store.nix("nix-instantiate", arguments);
    printed.trim_matches('"').to_owned()
}

fn git(store: &Store, folder: &Path, arguments: &[&str]) {
    with_git(store.program("git"))
        .args(arguments)
        .folder(folder)
        .run()
        .exits(0);
}

/// Git takes submodules from folders only where it is told that this is no attack.
fn with_git(program: Program) -> Program {
    let settings = [
        ("protocol.file.allow", "always"),
        ("user.name", "A"),
        ("user.email", "a@example.org"),
        ("init.defaultBranch", "main"),
    ];
    let count = settings.len().to_string();
    let settings = settings.iter().enumerate().flat_map(|(n, (key, value))| {
        [
            (format!("GIT_CONFIG_KEY_{n}"), (*key).to_owned()),
            (format!("GIT_CONFIG_VALUE_{n}"), (*value).to_owned()),
        ]
    });
    program.env("GIT_CONFIG_COUNT", count).envs(settings)
}

fn commit(store: &Store, folder: &Path, message: &str) {
    git(store, folder, &["add", "--all"]);
    git(store, folder, &["commit", "--quiet", "--message", message]);
}

/// Repositories below the working folder: `main` with a flake at its root and in `sub`, three commits, a submodule in `lib`, a
/// file that no archive gets, and a branch `other`; and clones of it.
fn repositories(store: &Store) {
    let work = store.work();
    let flake = text(store);
    store.write("library/inside", "x\n");
    git(store, &work, &["init", "--quiet", "library"]);
    commit(store, &work.join("library"), "library");

    let main = work.join("main");
    store.write("main/flake.nix", &flake);
    store.write("main/sub/flake.nix", &flake);
    git(store, &work, &["init", "--quiet", "main"]);
    commit(store, &main, "first");
    let library = format!("file://{}", work.join("library").display());
    git(
        store,
        &main,
        &["submodule", "--quiet", "add", &library, "lib"],
    );
    commit(store, &main, "second");
    store.write("main/.gitattributes", "ignored export-ignore\n");
    store.write("main/ignored", "ignored\n");
    commit(store, &main, "third");

    let url = format!("file://{}", main.display());
    for (name, clone) in [
        ("clean", &["--recurse-submodules"][..]),
        ("dirty", &["--recurse-submodules"]),
        ("plain", &[]),
        (
            "shallow",
            &[
                "--depth",
                "1",
                "--recurse-submodules",
                "--shallow-submodules",
            ],
        ),
        ("shallow-dirty", &["--depth", "1"]),
    ] {
        let mut arguments = vec!["clone", "--quiet"];
        arguments.extend(clone);
        arguments.extend([url.as_str(), name]);
        git(store, &work, &arguments);
    }
    for name in ["dirty", "shallow-dirty"] {
        store.write(&format!("{name}/new"), "new\n");
        git(store, &work.join(name), &["add", "new"]);
    }
    git(store, &main, &["checkout", "--quiet", "-b", "other"]);
    store.write("main/other", "other\n");
    commit(store, &main, "other");
    git(store, &main, &["checkout", "--quiet", "main"]);
    git(store, &main, &["submodule", "--quiet", "update", "--init"]);
}

/// What a client of a daemon has in its environment; nothing without one.
type Client = [(OsString, OsString)];

/// The `.drv` that `nix build` would build. Not what its cache of evaluations remembers, which takes one source for another.
fn nix_build(store: &Store, client: &Client, folder: &Path, flake: &str) -> Ended {
    let installable = format!("{flake}#packages.{}.a", system(store));
    with_git(store.program("nix"))
        .envs(client.to_vec())
        .args([
            "path-info",
            "--derivation",
            "--option",
            "eval-cache",
            "false",
        ])
        .arg(installable)
        .folder(folder)
        .run()
}

/// A step gives what `nix build` gives in this folder: the same `.drv`, or the same error. Whether it is a `.drv`.
#[track_caller]
fn gives_the_same(store: &Store, folder: &str, flake: &str) -> bool {
    gives_the_same_to(store, &[], folder, flake)
}

/// The same, as a client of a daemon.
#[track_caller]
fn gives_the_same_to(store: &Store, client: &Client, folder: &str, flake: &str) -> bool {
    let folder = store.work().join(folder);
    let expected = nix_build(store, client, &folder, flake);
    let attr = format!("packages.{}.a", system(store));
    let step = store.step(["--flake", flake, "--attr", &attr, "--no-out-link"]);
    let ended = with_git(step).envs(client.to_vec()).folder(&folder).run();
    if !expected.status.success() {
        let error = expected.stderr.lines().last().unwrap_or_default();
        let error = error.trim_start().trim_start_matches("error: ");
        ended.fails(65, "evaluation").passes_on(error);
        return false;
    }
    ended.takes("evaluated", "not-recorded");
    let drv = expected.stdout.trim_end();
    assert_eq!(
        ended.report()["drv"],
        drv,
        "{flake} in {}: {}{}",
        folder.display(),
        fs::read_to_string(ended.report()["drv"].as_str().unwrap()).unwrap_or_default(),
        fs::read_to_string(drv).unwrap_or_default(),
    );
    true
}

#[test]
fn a_checkout_of_git_gives_the_drv_that_nix_build_gives_whatever_the_reference_says() {
    let Some(store) = Store::new() else { return };
    repositories(&store);
    for folder in ["clean", "dirty", "plain", "shallow", "shallow-dirty"] {
        for flake in [".", ".?submodules=1", ".?shallow=1&submodules=0"] {
            let same = gives_the_same(&store, folder, flake);
            // Where its submodules were not checked out, newer versions cannot take them.
            let without = flake == ".?submodules=1" && ["plain", "shallow-dirty"].contains(&folder);
            assert!(same || without, "{flake} in {folder}");
        }
    }
    for folder in ["clean", "shallow"] {
        for flake in ["./sub", ".?dir=sub", ".?dir=sub&submodules=1"] {
            assert!(gives_the_same(&store, folder, flake), "{flake} in {folder}");
        }
    }
}

#[test]
fn a_repository_of_git_gives_the_drv_that_nix_build_gives_whatever_the_reference_says() {
    let Some(store) = Store::new() else { return };
    repositories(&store);
    let url = format!("git+file://{}", store.work().join("main").display());
    let head = with_git(store.program("git"))
        .args(["rev-parse", "other"])
        .folder(store.work().join("main"))
        .run();
    let rev = head.stdout.trim_end();
    for parameters in [
        String::new(),
        "ref=other".into(),
        format!("rev={rev}"),
        format!("ref=refs/heads/other&rev={rev}"),
        format!("allRefs=1&rev={rev}"),
        format!("allRefs=1&rev={rev}&submodules=1&dir=sub"),
        "shallow=1".into(),
        "shallow=1&dir=sub".into(),
        "shallow=1&submodules=1&ref=other".into(),
        "exportIgnore=1".into(),
        "exportIgnore=0".into(),
        "lfs=1".into(),
        "dir=sub&submodules=1".into(),
    ] {
        let flake = format!("{url}?{parameters}");
        assert!(gives_the_same(&store, "library", &flake), "{flake}");
    }
}

#[test]
fn a_flake_that_is_in_no_repository_gives_the_drv_that_nix_build_gives_whatever_the_reference_says()
{
    let Some(store) = Store::new() else { return };
    repositories(&store);
    let folder = store.work().join("archived");
    store.write("archived/project/flake.nix", &text(&store));
    store.write("archived/project/sub/flake.nix", &text(&store));
    store
        .program("tar")
        .args(["-czf", "project.tar.gz", "project"])
        .folder(&folder)
        .run()
        .exits(0);
    let project = folder.join("project").display().to_string();
    let archive = folder.join("project.tar.gz").display().to_string();
    for flake in [
        "path:.".into(),
        "path:./project".into(),
        format!("path:{project}"),
        format!("path:{project}?rev=0123456789012345678901234567890123456789&revCount=7"),
        format!("path:{project}?lastModified=5"),
        format!("path:{project}?dir=sub"),
        format!("file://{archive}"),
        format!("file://{archive}?dir=sub"),
    ] {
        gives_the_same(&store, "archived", &flake);
    }
}

#[test]
fn a_flake_of_a_registry_gives_the_drv_that_nix_build_gives() {
    let Some(store) = Store::new() else { return };
    repositories(&store);
    let main = format!("file://{}", store.work().join("main").display());
    let registry = json!({ "version": 2, "flakes": [{
        "from": { "type": "indirect", "id": "mine" },
        "to": { "type": "git", "url": main, "submodules": true, "dir": "sub" },
    }] });
    let file = store.root().join("registry.json");
    fs::write(&file, registry.to_string()).unwrap();
    store.configure(&format!("flake-registry = {}", file.display()));
    for flake in ["mine", "flake:mine", "flake:mine/other"] {
        assert!(gives_the_same(&store, "library", flake), "{flake}");
    }
}

#[test]
fn a_flake_gives_the_drv_that_nix_build_gives_through_a_daemon_too() {
    let Some(store) = Store::new() else { return };
    repositories(&store);
    let daemon = store.daemon();
    let client = daemon.env();
    for (folder, flake) in [
        ("clean", "."),
        ("clean", ".?submodules=1"),
        ("dirty", ".?submodules=1"),
        ("shallow", "."),
        ("clean", "./sub"),
    ] {
        assert!(
            gives_the_same_to(&store, &client, folder, flake),
            "{flake} in {folder}"
        );
    }
}

#[test]
fn a_recording_of_a_flake_gives_the_drv_that_nix_build_gives_whatever_the_reference_says() {
    let Some(store) = Store::new() else { return };
    repositories(&store);
    for (folder, flake) in [
        ("clean", ".?submodules=1"),
        ("dirty", ".?submodules=1"),
        ("shallow", "."),
        ("plain", "."),
    ] {
        let folder = store.work().join(folder);
        let arguments = ["pipeline", "--flake", flake, "--dry-run"];
        let recorded = with_git(store.eval_once(arguments)).folder(&folder).run();
        let drvs = Pipeline::of(&recorded).drvs();
        let expected = nix_build(&store, &[], &folder, flake);
        expected.exits(0);
        let drvs: Vec<_> = drvs.values().map(String::as_str).collect();
        assert_eq!(drvs, [expected.stdout.trim_end()], "{flake}: {recorded}");
    }
}

/// A host may ask for pure evaluation everywhere: what a recording asks Nix itself is none of it.
#[test]
fn a_flake_is_recorded_where_the_host_asks_for_pure_evaluation() {
    let Some(store) = Store::new() else { return };
    let text = text(&store);
    store.write("flake/flake.nix", &text);
    let record = || {
        let ended = store
            .eval_once(["pipeline", "--dry-run", "--flake", "path:./flake"])
            .run();
        Pipeline::of(&ended).drvs()
    };
    let drvs = record();
    assert_eq!(drvs.len(), 1);
    store.configure("pure-eval = true");
    assert_eq!(record(), drvs);
}

#[test]
fn a_flake_that_wants_its_submodules_gets_them_or_is_refused_as_nix_refuses_it() {
    let Some(store) = Store::new() else { return };
    repositories(&store);
    let wants = text(&store).replacen('{', "{ inputs.self.submodules = true;", 1);
    for folder in ["clean", "dirty"] {
        store.write(&format!("{folder}/flake.nix"), &wants);
    }
    commit(&store, &store.work().join("clean"), "wants them");
    for folder in ["clean", "dirty"] {
        gives_the_same(&store, folder, ".");
    }
}

/// A flake with an input, and whether that is locked.
fn with_input(store: &Store, locked: bool) {
    store.write(
        "input/flake.nix",
        "{ outputs = { self }: { name = \"x\"; }; }",
    );
    let input = store.work().join("input").display().to_string();
    let text = format!(
        "{{ inputs.input.url = \"path:{input}\"; outputs = {{ self, input }}: {{ packages.{:?}.a = derivation {{ inherit (input) \
         name; system = {:?}; builder = \"/bin/sh\"; args = [ \"-c\" \"echo > $out\" ]; }}; }}; }}",
        system(store),
        system(store)
    );
    store.write("flake.nix", &text);
    if locked {
        store.nix("nix", ["flake", "lock", "path:."]);
        // Another name for the same input, of which the lock file does not know.
        store.write(
            "flake.nix",
            &text.replace(
                "inputs.input.url",
                &format!("inputs.more.url = \"path:{input}\"; inputs.input.url"),
            ),
        );
    }
}

#[test]
fn a_flake_whose_inputs_are_not_locked_is_refused_with_what_to_do() {
    for locked in [false, true] {
        let Some(store) = Store::new() else { return };
        with_input(&store, locked);
        let attr = format!("packages.{}.a", system(&store));
        let step = store.step(["--flake", "path:.", "--attr", &attr]).run();
        step.fails(65, "evaluation");
        let recording = store
            .eval_once(["pipeline", "--flake", "path:.", "--dry-run"])
            .run();
        recording.exits(65);
        for ended in [&step, &recording] {
            let hint = ended.ours().last().copied().unwrap_or_default().to_owned();
            assert!(hint.starts_with("hint: run `nix flake lock`"), "{ended}");
        }
        assert!(locked || !store.work().join("flake.lock").exists());
    }
}

#[test]
fn an_evaluation_that_may_not_read_its_file_says_what_lets_it() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\"; }");
    store.configure("restrict-eval = true");
    let step = store.step(["--attr", "a"]).run();
    step.fails(65, "evaluation");
    let recording = store.eval_once(["pipeline", "--dry-run"]).run();
    recording.exits(65);
    for ended in [&step, &recording] {
        let hint = ended.ours().last().copied().unwrap_or_default().to_owned();
        assert!(hint.ends_with("`restrict-eval` is set"), "{ended}");
    }
    store
        .step(["--attr", "a", "-I", "."])
        .run()
        .takes("evaluated", "not-recorded");
    store
        .eval_once(["pipeline", "--dry-run", "-I", "."])
        .run()
        .exits(0);
}

/// A flake that names a cache which has what its target makes; the cache's URL.
fn with_cache(store: &Store) -> String {
    let system = system(store);
    let url = format!("file://{}", store.root().join("cache").display());
    let text = format!(
        "{{ nixConfig = {{ extra-substituters = [ \"{url}\" ]; bash-prompt = \"$ \"; }}; outputs = {{ self }}: {{ \
         packages.{system}.a = derivation {{ name = \"a\"; system = {system:?}; builder = \"/bin/sh\"; args = [ \"-c\" \"echo > $out\" ]; }}; }}; }}"
    );
    store.write("flake.nix", &text);
    let work = store.work();
    let ended = nix_build(store, &[], &work, "path:.");
    ended.exits(0);
    let drv = ended.stdout.trim_end();
    let outputs = store.build(drv);
    store.cache("cache", &outputs);
    store.collect();
    url
}

#[test]
fn the_caches_of_a_flake_are_used_where_the_host_trusts_it() {
    for how in ["nix.conf", "options"] {
        let Some(store) = Store::new() else { return };
        let url = with_cache(&store);
        let attr = format!("packages.{}.a", system(&store));
        let mut arguments = vec!["--flake", "path:."];
        if how == "nix.conf" {
            store.configure("accept-flake-config = true");
        } else {
            arguments.extend(["--option", "accept-flake-config", "true"]);
        }
        let step = store.step(&arguments).args(["--attr", &attr]).run();
        step.takes("evaluated", "not-recorded").counts(0, 1);
        step.passes_on("eval-once: using the flake's nixConfig: extra-substituters\n");

        fs::remove_file(store.work().join("result")).unwrap();
        store.collect();
        let recording = store
            .eval_once(["pipeline", "--dry-run"])
            .args(&arguments)
            .run();
        recording.passes_on("eval-once: using the flake's nixConfig: extra-substituters\n");
        let pipeline = Pipeline::of(&recording);
        // It is skipped, because a cache has it; and its step would ask that cache.
        let steps = pipeline.steps();
        let recorded = steps.values().next().unwrap();
        assert!(recorded.json["skip"].is_string(), "{recorded:?}");
        assert_eq!(
            recorded.record["options"]["extra-substituters"],
            url.as_str()
        );
        let no_flags: [&str; 0] = [];
        let step = store
            .step(no_flags)
            .env("EVAL_ONCE_STEP", recorded.record.to_string())
            .run();
        step.takes("realised", "drv-valid").counts(0, 1);
    }
}

#[test]
fn a_collection_takes_the_source_of_a_flake_at_most_before_its_evaluation() {
    let Some(store) = Store::new() else { return };
    let system = system(&store);
    // Of a plain folder, nothing but the copy in the store is left to evaluate.
    store.write(
        "flake.nix",
        &format!(
            "{{ outputs = {{ self }}: {{ packages.{system}.a = derivation {{ name = \"a\"; system = {system:?}; \
             builder = \"/bin/sh\"; args = [ \"-c\" \"echo > $out\" ]; }}; }}; }}"
        ),
    );
    let attr = format!("packages.{system}.a");
    // The first copy is gone before it has a root. Later, when an evaluation begins, a collection takes what has none.
    let collects = "nix-store --gc >/dev/null 2>&1";
    let script = format!(
        r#"case "$*" in
             *"flake metadata"*) if [ ! -e "$0.once" ]; then
               : >"$0.once"; "$REAL" "$@"; status=$?; {collects}; exit $status
             fi ;;
             *) {collects} ;;
           esac"#
    );
    for (what, says) in [
        (
            &["pipeline", "--dry-run", "--flake", "path:."][..],
            "the garbage collector removed the flake's source; locking it once more",
        ),
        (
            &["step", "--flake", "path:.", "--attr", &attr],
            "the garbage collector removed the flake's source before its evaluation",
        ),
    ] {
        let bin = store.root().join(format!("bin-{}", what[0]));
        let stand_ins = StandIns::new(bin)
            .before("nix", &script)
            .before("nix-instantiate", &format!("[ $NTH -gt 1 ] || {collects}"));
        let ended = store
            .eval_once(what)
            .env("PATH", stand_ins.path(&store))
            .run();
        ended.exits(0).passes_on(says);
    }
}

/// Evaluated without side effects, Nix reads the files of a source in another way, and says in others that it is gone.
#[test]
fn a_pinned_source_that_the_collector_takes_while_a_flake_is_evaluated_is_had_anew() {
    for late in [
        "import ./sub/late.nix",
        "builtins.readFile ./sub/text",
        "builtins.readFile (./. + \"/it's text\")",
        "builtins.head (builtins.attrNames (builtins.readDir ./sub))",
        "builtins.head (builtins.attrNames (builtins.readDir ./.))",
        "\"${./sub}\"",
        "import (pinned + \"/sub/late.nix\")",
        "builtins.readFile (pinned + \"/sub/text\")",
    ] {
        let Some(store) = Store::new() else { return };
        let system = system(&store);
        let source = format!("{{ pinned }}: {{ early = \"e\"; late = {late}; }}");
        store.write("source/default.nix", &source);
        store.write("source/sub/late.nix", "\"late\"");
        store.write("source/sub/text", "late");
        store.write("source/it's text", "late");
        let hash = store.nix("nix-hash", ["--type", "sha256", "--base32", "source"]);
        let body = expression(&format!(
            r#"let
              pinned = builtins.path {{ name = "pinned"; path = ./source; sha256 = {hash:?}; }};
              it = import pinned {{ inherit pinned; }};
              wait = builtins.readFile (build "wait" "[ -e {once} ] || {{ : >{once}; . {collects}; }}; echo >$out");
            in {{ packages.{system}.a =
              builtins.seq it.early (builtins.seq wait (with' {{ inherit (it) late; }} "a" "echo >$out")); }}"#,
            once = store.root().join("once").display(),
            collects = collecting(&store).display(),
        ));
        let body = body.replace("builtins.currentSystem", &format!("{system:?}"));
        store.write("flake.nix", &format!("{{ outputs = {{ self }}: {body}; }}"));
        let attr = format!("packages.{system}.a");
        for what in [
            &["pipeline", "--dry-run", "--flake", "path:."][..],
            &["step", "--flake", "path:.", "--attr", &attr],
        ] {
            let _ = fs::remove_file(store.root().join("once"));
            store.collect();
            // As another job does: it is valid, and nothing keeps it.
            let add = format!(
                "builtins.path {{ name = \"pinned\"; path = ./source; sha256 = {hash:?}; }}"
            );
            store.nix(
                "nix-instantiate",
                ["--eval", "--read-write-mode", "-E", &add],
            );
            let ended = store.eval_once(what).run();
            ended.exits(0);
            assert!(ended.stderr.contains("collector"), "{late}: {ended}");
            if what[0] == "pipeline" {
                assert_eq!(Pipeline::of(&ended).drvs().len(), 1, "{late}: {ended}");
            }
        }
    }
}

#[test]
fn a_flake_that_would_write_a_secret_into_steps_and_arguments_is_refused() {
    let Some(store) = Store::new() else { return };
    let system = system(&store);
    let secret = "kE3pTh1sAnd2ay0thing";
    let attr = format!("packages.{system}.a");
    let stand_ins = StandIns::new(store.bin());
    let stand_ins = ["nix", "nix-store", "nix-instantiate", "nix-build"]
        .iter()
        .fold(stand_ins, |all, program| all.before(program, ":"));
    for (name, value) in [
        ("extra-access-tokens", format!("github.com={secret}")),
        (
            "extra-substituters",
            format!("https://u:{secret}@127.0.0.1:9"),
        ),
    ] {
        store.write(
            "flake.nix",
            &format!(
                "{{ nixConfig.{name} = \"{value}\"; outputs = {{ self }}: {{ packages.{system}.a = derivation {{ \
                 name = \"a\"; system = {system:?}; builder = \"/bin/sh\"; args = [ \"-c\" \"echo > $out\" ]; }}; }}; }}"
            ),
        );
        // An explanation locks no flake, and so knows nothing of what it asks for.
        for (command, status) in [
            (&["pipeline", "--dry-run"][..], 64),
            (&["step", "--attr", &attr], 64),
            (&["explain", "--attr", &attr], 0),
        ] {
            let program = store.eval_once(command).args(["--flake", "path:."]);
            let ended = program
                .env("PATH", stand_ins.path(&store))
                .env("NIX_CONFIG", "accept-flake-config = true")
                .run();
            ended.exits(status).never_says(secret);
            assert!(!ended.stdout.contains(secret), "{ended}");
            if status == 64 {
                ended.passes_on(&format!("`nixConfig.{name}` of the flake"));
            }
        }
    }
    let programs = ["nix", "nix-store", "nix-instantiate", "nix-build"];
    let calls = programs.iter().flat_map(|program| stand_ins.calls(program));
    let arguments: Vec<String> = calls.flatten().collect();
    assert!(!arguments.is_empty());
    assert!(
        !arguments.iter().any(|it| it.contains(secret)),
        "{arguments:?}"
    );
}

#[test]
fn the_caches_of_a_flake_that_are_not_used_are_named() {
    let Some(store) = Store::new() else { return };
    with_cache(&store);
    let attr = format!("packages.{}.a", system(&store));
    let step = store.step(["--flake", "path:.", "--attr", &attr]).run();
    step.takes("evaluated", "not-recorded").counts(1, 0);
    let recording = store
        .eval_once(["pipeline", "--flake", "path:.", "--dry-run"])
        .run();
    recording.exits(0);
    for ended in [&step, &recording] {
        let warnings = ended.ours();
        let warnings = warnings.iter().filter(|line| line.contains("nixConfig"));
        let warnings: Vec<_> = warnings.collect();
        assert_eq!(warnings.len(), 1, "{ended}");
        assert!(
            warnings[0].starts_with("warning: the flake's nixConfig is not used: extra-substituters; set `accept-flake-config = true`"),
            "{ended}"
        );
    }
}

#[test]
fn a_flake_that_cannot_be_fetched_without_a_folder_for_temporary_files_is_an_infrastructure_failure()
 {
    let Some(store) = Store::new() else { return };
    repositories(&store);
    let folder = store.work().join("clean");
    let missing = store.root().join("missing");
    let attr = format!("packages.{}.a", system(&store));
    let step = store
        .step(["--flake", ".", "--attr", &attr])
        .folder(&folder)
        .env("TMPDIR", &missing)
        .run();
    let recording = store
        .eval_once(["pipeline", "--flake", ".", "--dry-run"])
        .folder(&folder)
        .env("TMPDIR", &missing)
        .run();
    if step.status.success() {
        // Later versions fetch without one.
        recording.exits(0);
    } else {
        step.fails(75, "surroundings").passes_on("TMPDIR is ");
        // 2.26 fetches without one, and builds with one.
        let fetched = step.report()["drv"].is_string();
        recording.exits(if fetched { 0 } else { 75 });
    }
}
