//! Attacks on the host of a job that `docs/security.md` says do not work: files that are swapped between check and use, and changes
//! that are not trusted. Each has a control, which shows that the attack works where nothing is in its way.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::support::{
    program::Ended, recording::Pipeline, stand_in::StandIns, store::Store, target::Target, web::Web,
};

/// A file that must not change, outside of the checkout.
fn victim(store: &Store) -> PathBuf {
    let victim = store.root().join("victim");
    fs::write(&victim, "precious\n").unwrap();
    victim
}

#[track_caller]
fn is_unharmed(victim: &Path, ended: &Ended) {
    assert_eq!(fs::read_to_string(victim).unwrap(), "precious\n", "{ended}");
    assert!(!victim.is_symlink(), "{ended}");
}

/// A step of `target` beside which this script (of a shell) runs as soon as it realises, after everything was checked.
fn step_and(store: &Store, target: &Target, script: &str, more: &[&str]) -> Ended {
    let script = format!("case \"$*\" in *--realise*) {script} ;; esac");
    let stand_ins = StandIns::new(store.bin()).before("nix-store", &script);
    store
        .eval_once(["step"])
        .args(target.flags())
        .args(more)
        .env("PATH", stand_ins.path(store))
        .run()
}

#[test]
fn an_out_link_that_is_swapped_between_check_and_use_is_never_followed() {
    let Some(store) = Store::new() else { return };
    store.targets("{ one = file \"one\"; }");
    let target = store.target("one");
    let victim = victim(&store);
    let result = store.work().join("result");
    for swap in [
        format!("ln -sf '{}' result", victim.display()),
        format!("ln -f '{}' result", victim.display()),
        format!(
            "rm -f result; mkdir result; ln -s '{}' result/one",
            victim.display()
        ),
    ] {
        let ended = step_and(&store, &target, &swap, &[]);
        is_unharmed(&victim, &ended);
        // It is no success without the link, and whatever is there has not been replaced.
        ended.exits(64);
        if result.is_dir() && !result.is_symlink() {
            fs::remove_dir_all(&result).unwrap();
        } else {
            fs::remove_file(&result).unwrap();
        }
    }
    // The control: with a swap that changes nothing, it is made.
    let ended = step_and(&store, &target, "ln -sfn /nonexistent other", &[]);
    ended.exits(0);
    assert_eq!(fs::read_link(&result).unwrap(), Path::new(target.out()));
}

#[test]
fn a_report_that_is_swapped_between_check_and_use_is_not_written_through() {
    let Some(store) = Store::new() else { return };
    store.targets("{ one = file \"one\"; }");
    let target = store.target("one");
    let victim = victim(&store);
    let report = store.work().join("report.json");
    for (swap, status) in [
        (format!("ln -sf '{}' report.json", victim.display()), 75),
        // The file of that name is replaced: the other names of the same file keep theirs.
        (format!("ln -f '{}' report.json", victim.display()), 0),
    ] {
        let ended = step_and(&store, &target, &swap, &["--report", "report.json"]);
        is_unharmed(&victim, &ended);
        ended.exits(status);
        if status == 0 {
            let written: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
            assert_eq!(written["exit"], 0);
        }
        fs::remove_file(&report).unwrap();
    }
}

#[test]
fn where_evaluation_is_restricted_a_file_that_is_swapped_for_a_link_out_of_the_checkout_is_not_read()
 {
    let Some(store) = Store::new() else { return };
    store.targets("{ one = file \"one\"; }");
    let outside = store.root().join("outside.nix");
    fs::copy(store.work().join("default.nix"), &outside).unwrap();
    let stand_ins = StandIns::new(store.bin()).before(
        "nix-instantiate",
        &format!("ln -sf '{}' default.nix", outside.display()),
    );
    let step = |options: Value| {
        let _ = fs::remove_file(store.work().join("default.nix"));
        fs::copy(&outside, store.work().join("default.nix")).unwrap();
        let keys =
            json!({ "file": "default.nix", "attr": "one", "include": ["."], "options": options });
        store
            .eval_once(["step"])
            .env("EVAL_ONCE_STEP", keys.to_string())
            .env("PATH", stand_ins.path(&store))
            .run()
    };
    let ended = step(json!({ "restrict-eval": true }));
    ended.exits(65).passes_on("forbidden in restricted mode");
    // The control: unrestricted, it is read as it would be by an `import` in the checkout's own file.
    step(json!({ "restrict-eval": false })).exits(0);
}

/// Targets that reach for what lies outside of the checkout; `URL` and `FILE` stand for a download and a file.
const UNTRUSTED: &str = r#"let name = text: builtins.replaceStrings [ "\"" "\n" " " ] [ "" "" "" ] text; in {
  good = file "good";
  reads = file "reads-${name (builtins.readFile FILE)}";
  imports = file "imports-${import FILE}";
  lists = file "lists-${name (toString (builtins.attrNames (builtins.readDir (dirOf FILE))))}";
  downloads = file "downloads-${builtins.readFile (builtins.fetchurl "URL/x")}";
  unpacks = file "unpacks-${builtins.readFile "${builtins.fetchTarball "URL/y.tar"}/x"}";
  variable = file "is-${builtins.getEnv "PRECIOUS"}";
  generated = file (name (builtins.readFile (file "generated")));
}"#;

#[test]
fn options_keep_an_untrusted_change_from_reading_files_urls_variables_and_outputs() {
    let Some(store) = Store::new() else { return };
    let outside = store.root().join("outside");
    fs::create_dir(&outside).unwrap();
    let file = outside.join("precious.nix");
    fs::write(&file, "\"precious\"").unwrap();
    let web = Web::serve(&outside);
    fs::write(outside.join("x"), "precious").unwrap();
    let expression = UNTRUSTED
        .replace("URL", &web.url())
        .replace("FILE", file.to_str().unwrap());
    store.targets(&expression);
    let record = |flags: &[&str]| {
        let ended = store
            .eval_once(["pipeline", "--dry-run", "--skip", "none"])
            .args(flags)
            .env("PRECIOUS", "precious")
            .run();
        Pipeline::of(&ended)
    };
    let restricted = [
        "-I",
        ".",
        "--option",
        "restrict-eval",
        "true",
        "--option",
        "allowed-uris",
        "",
        "--option",
        "allow-import-from-derivation",
        "false",
    ];
    let pipeline = record(&restricted);
    let names = |pipeline: &Pipeline| {
        let names = pipeline.drvs().into_keys();
        names
            .map(|name| name.replace(['[', ']', '"'], ""))
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&pipeline), ["good", "variable"]);
    assert_eq!(web.downloads(""), 0);
    let recorded = pipeline.drvs();
    assert!(
        recorded["[\"variable\"]"].ends_with("-is-.drv"),
        "{recorded:?}"
    );
    // A step that evaluates again does so by the same rules.
    for name in [
        "reads",
        "imports",
        "lists",
        "downloads",
        "unpacks",
        "generated",
    ] {
        let step = pipeline.step(&[name]);
        let ended = store
            .eval_once(["step"])
            .env("EVAL_ONCE_STEP", step.record.to_string())
            .run();
        ended.exits(65);
        assert!(!ended.stderr.contains("precious\""), "{ended}");
    }
    assert_eq!(web.downloads(""), 0);
    // The control: without them it reads all of that.
    let pipeline = record(&[]);
    assert_eq!(
        names(&pipeline),
        [
            "downloads",
            "generated",
            "good",
            "imports",
            "lists",
            "reads",
            "variable"
        ]
    );
    assert!(web.downloads("") > 0);
    let recorded = pipeline.drvs();
    assert!(
        recorded["[\"variable\"]"].ends_with("-is-precious.drv"),
        "{recorded:?}"
    );
}

#[test]
fn links_of_the_checkout_lead_no_out_link_of_a_confined_job_elsewhere() {
    let Some(store) = Store::new() else { return };
    store.targets("{ one = file \"one\"; }");
    let outside = store.root().join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, store.work().join("links")).unwrap();
    fs::create_dir(store.work().join(".git")).unwrap();
    symlink(".git", store.work().join("disguised")).unwrap();
    let run = |link: &str, confined: &str| {
        let keys = json!({ "attr": "one", "out-link": link });
        store
            .eval_once(["hook", "command"])
            .env("BUILDKITE", "true")
            .env("BUILDKITE_HOOK_SCOPE", "agent")
            .env("BUILDKITE_COMMAND_EVAL", confined)
            .env("BUILDKITE_COMMAND", "")
            .env("BUILDKITE_BUILD_CHECKOUT_PATH", store.work())
            .env("EVAL_ONCE_STEP", keys.to_string())
            .run()
    };
    for link in ["links/one", "disguised/one", ".GIT/one"] {
        run(link, "false").exits(64);
    }
    assert_eq!(outside.read_dir().unwrap().count(), 0);
    assert_eq!(store.work().join(".git").read_dir().unwrap().count(), 0);
    // The control: another job may.
    run("links/one", "true").exits(0);
    assert_eq!(outside.read_dir().unwrap().count(), 1);
}

#[test]
fn a_folder_that_is_swapped_between_check_and_use_keeps_no_out_link_of_a_confined_job() {
    let Some(store) = Store::new() else { return };
    store.targets("{ one = file \"one\"; two = with' { outputs = [ \"out\" \"dev\" ]; } \"two\" \"echo > $out; echo > $dev\"; }");
    let target = store.target("one");
    let outside = store.root().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::create_dir(store.work().join(".git")).unwrap();
    let count = |folder: &Path| folder.read_dir().unwrap().count();
    let folder = store.work().join("d");
    let records = [
        json!({ "file": "default.nix", "attr": "one" }),
        json!({ "file": "default.nix", "attr": "two" }),
        // Nothing but what is recorded, with the `.drv` and without.
        json!({ "drv": target.drv, "outputs": { "out": target.out() } }),
        json!({ "outputs": { "out": target.out() } }),
    ];
    for (number, mut keys) in records.into_iter().enumerate() {
        keys["out-link"] = json!("d/one");
        for (name, leads_to) in [("outside", outside.as_path()), ("git", Path::new(".git"))] {
            let run = |confined: &str| {
                if folder.is_symlink() {
                    fs::remove_file(&folder).unwrap();
                }
                fs::create_dir_all(&folder).unwrap();
                let script = format!(
                    "case \"$*\" in *--realise*) rm -rf d; ln -s '{}' d ;; esac",
                    leads_to.display()
                );
                let place = store.root().join(format!("{number}-{name}"));
                let stand_ins = StandIns::new(place).before("nix-store", &script);
                store
                    .eval_once(["hook", "command"])
                    .env("PATH", stand_ins.path(&store))
                    .env("BUILDKITE", "true")
                    .env("BUILDKITE_HOOK_SCOPE", "agent")
                    .env("BUILDKITE_COMMAND_EVAL", confined)
                    .env("BUILDKITE_COMMAND", "")
                    .env("BUILDKITE_BUILD_CHECKOUT_PATH", store.work())
                    .env("EVAL_ONCE_STEP", keys.to_string())
                    .run()
            };
            let (outside, git) = (&outside, store.work().join(".git"));
            let ended = run("false");
            ended.exits(64);
            assert_eq!((count(outside), count(&git)), (0, 0), "{ended}");
            // The control: another job's is there.
            let ended = run("true");
            ended.exits(0);
            assert!(count(outside) + count(&git) > 0, "{ended}");
            for folder in [outside, &git] {
                fs::remove_dir_all(folder).unwrap();
                fs::create_dir(folder).unwrap();
            }
        }
    }
}
