//! Paths of the host's settings: a relative one is refused by name, before anything is run or left behind.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::OsStrExt,
    path::Path,
};

use serde_json::json;

use crate::support::{EVAL_ONCE, agent::Job, program::Program, recording::Pipeline, store::Store};

/// What lies in a folder, by name.
fn names(folder: &Path) -> Vec<OsString> {
    let entries = folder.read_dir().unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

/// A store with a target in `default.nix`.
fn store() -> Option<Store> {
    let store = Store::new()?;
    store.targets("{ a = file \"a\"; }");
    Some(store)
}

#[test]
fn a_relative_path_is_refused_by_the_name_of_its_variable() {
    let Some(store) = store() else { return };
    // One that is there is no better.
    fs::create_dir(store.work().join("folder")).unwrap();
    let before = names(&store.work());
    for command in [
        &["step", "--attr", "a"][..],
        &["pipeline", "--dry-run"],
        &["explain", "--attr", "a"],
        &["prune"],
    ] {
        let started = || store.eval_once(command);
        let without_state = || started().without("EVAL_ONCE_STATE_DIR");
        for (program, name, value) in [
            (started(), "EVAL_ONCE_STATE_DIR", "folder"),
            (started(), "EVAL_ONCE_STATE_DIR", "./folder"),
            (started(), "EVAL_ONCE_BIN", "folder/eval-once"),
            (started(), "TMPDIR", "folder"),
            (without_state().without("XDG_STATE_HOME"), "HOME", "folder"),
            (without_state().env("XDG_STATE_HOME", "x"), "HOME", "folder"),
        ] {
            let ended = program.env(name, value).run();
            ended.exits(64).prints("");
            let lines = ended.ours().join("\n");
            for part in [
                format!("error: {name} is {value}, a relative path"),
                format!("hint: give {name} an absolute path"),
            ] {
                assert!(lines.contains(&part), "{command:?}: {part:?}: {ended}");
            }
        }
    }
    assert_eq!(names(&store.work()), before);
    assert!(names(&store.work().join("folder")).is_empty());
}

#[test]
fn a_relative_xdg_state_home_is_ignored_as_its_specification_says() {
    let Some(store) = store() else { return };
    let home = store.root().join("a home");
    let program = || {
        store
            .eval_once(["pipeline", "--dry-run"])
            .without("EVAL_ONCE_STATE_DIR")
            .env("XDG_STATE_HOME", "relative")
            .env("HOME", &home)
    };
    fs::create_dir(&home).unwrap();
    program().run().exits(0);
    assert!(home.join(".local/state/eval-once/pins").exists());
    assert!(!store.work().join("relative").exists());
}

#[test]
fn a_job_whose_state_folder_would_lie_in_its_checkout_is_refused() {
    let Some(store) = store() else { return };
    let Some(mut job) = Job::new() else { return };
    fs::copy(
        store.work().join("default.nix"),
        job.checkout().join("default.nix"),
    )
    .unwrap();
    job.set_all(store.env())
        .set("EVAL_ONCE_STEP", json!({ "attr": "a" }).to_string())
        .set("EVAL_ONCE_STATE_DIR", ".state")
        .our_hook("command");
    let ran = job.run();
    assert_eq!(ran.ending.code(), Some(64), "{}", ran.log);
    assert!(
        ran.plain().contains("EVAL_ONCE_STATE_DIR is .state"),
        "{}",
        ran.log
    );
    assert_eq!(names(&job.checkout()), ["default.nix"]);
}

#[test]
fn a_job_that_is_not_ours_is_not_held_to_them() {
    let Some(mut job) = Job::new() else { return };
    job.set("EVAL_ONCE_STATE_DIR", "state")
        .set("EVAL_ONCE_BIN", "program")
        .command("echo \"> $EVAL_ONCE_STATE_DIR $EVAL_ONCE_BIN\"");
    job.our_hook("command").our_hook("environment");
    let ran = job.run();
    assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
    assert!(ran.plain().contains("> state program\n"), "{}", ran.log);
}

#[test]
fn no_relative_folder_comes_onto_the_path_of_a_job() {
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("home/.nix-profile/bin");
    fs::create_dir_all(&bin).unwrap();
    for file in [bin.join("nix-store"), folder.path().join("home/eval-once")] {
        crate::support::stand_in::write_program(&file, "#!/bin/sh\n");
    }
    let ended = Program::new(EVAL_ONCE)
        .arg("environment")
        .env("PATH", "/nowhere")
        .env("HOME", "home")
        .env("EVAL_ONCE_BIN", "home/eval-once")
        .folder(folder.path())
        .run();
    ended.exits(0);
    let path = ended.stdout.lines().find(|line| line.contains("PATH"));
    assert!(!path.unwrap().contains(":home"), "{ended}");
    // They stay as they are: the command hook refuses them by name.
    assert!(!ended.stdout.contains("EVAL_ONCE_BIN"), "{ended}");
    assert!(!ended.stdout.contains("EVAL_ONCE_STATE_DIR"), "{ended}");
}

#[test]
fn a_recording_in_a_folder_whose_name_is_not_utf_8_is_refused_where_steps_would_not_find_it() {
    let Some(store) = store() else { return };
    let folder = store.work().join(OsStr::from_bytes(b"caf\xe9"));
    fs::create_dir(&folder).unwrap();
    let file = store.work().join("default.nix");
    fs::copy(&file, folder.join("default.nix")).unwrap();
    let pipeline = |flags: &[&str]| {
        store
            .eval_once(["pipeline", "--dry-run"])
            .args(flags)
            .env("BUILDKITE_BUILD_CHECKOUT_PATH", store.work())
            .folder(&folder)
            .run()
    };
    for flags in [
        &[][..],
        &["--file", "default.nix"],
        &["--file", "/x", "-I", "y=."],
    ] {
        let ended = pipeline(flags);
        ended.exits(64).prints("").says(&[
            "of the checkout has a name that is not UTF-8",
            "hint: record from",
        ]);
    }
    // What is found from everywhere is recorded.
    let recorded = Pipeline::of(&pipeline(&["--file", file.to_str().unwrap()]));
    assert_eq!(recorded.step(&["a"]).record["file"], file.to_str().unwrap());
}
