//! The link to the output: its name, its place, and that an obstacle is found before anything is built.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use serde_json::json;

use crate::support::{
    program::Ended,
    stand_in::StandIns,
    store::Store,
    target::{Target, links},
};

fn hello(store: &Store) -> Target {
    store.targets("{ hello = file \"hello\"; }");
    store.target("hello")
}

/// The step refused, and neither ran a program of Nix's nor made a link.
#[track_caller]
fn refuses(store: &Store, target: &Target, more: &[&str], names: &str) -> Ended {
    let stand_ins = StandIns::new(store.bin())
        .counting("nix-store")
        .counting("nix-instantiate");
    let ended = store
        .step(target.flags())
        .args(more)
        .env("PATH", stand_ins.path(store))
        .run();
    ended.fails(64, "config").prints("");
    let message = ended.report()["failure"]["message"].as_str().unwrap();
    assert!(message.contains(names), "{names} is not named: {message}");
    assert_eq!(ended.report()["way"], json!(null));
    assert_eq!(
        stand_ins.calls("nix-store").len() + stand_ins.calls("nix-instantiate").len(),
        0
    );
    assert!(!store.has(target.out()), "it was built");
    ended
}

#[test]
fn the_link_is_called_result_by_default() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.step(target.flags()).run().exits(0);
    assert_eq!(
        store.links(),
        BTreeMap::from([("result".to_owned(), target.out().to_owned())])
    );
}

#[test]
fn another_name_is_used_with_the_outputs_behind_it() {
    let Some(store) = Store::new() else { return };
    store.targets(r#"{ hello = buildAll [ "out" "dev" ] "hello" "echo > $out; echo > $dev"; }"#);
    let target = store.target("hello");
    fs::create_dir(store.work().join("links")).unwrap();
    let absolute = store.root().join("absolute");
    for (link, folder, name) in [
        ("hello link", store.work(), "hello link"),
        ("links/x", store.work().join("links"), "x"),
        ("./links/../links/y", store.work().join("links"), "y"),
        (
            absolute.to_str().unwrap(),
            store.root().to_owned(),
            "absolute",
        ),
    ] {
        store
            .step(target.flags())
            .args(["--out-link", link])
            .run()
            .exits(0);
        let links = links(&folder);
        assert_eq!(links[name], target.out());
        assert_eq!(links[&format!("{name}-dev")], target.outputs["dev"]);
    }
    assert!(!store.work().join("result").exists());
}

#[test]
fn the_link_starts_in_the_current_folder() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let below = store.work().join("below");
    fs::create_dir(&below).unwrap();
    store.step(target.flags()).folder(&below).run().exits(0);
    assert_eq!(links(&below)["result"], target.out());
    assert_eq!(store.links(), BTreeMap::new());
}

#[test]
fn an_older_link_into_the_store_is_replaced() {
    let Some(store) = Store::new() else { return };
    store.targets("{ hello = file \"hello\"; other = file \"other\"; gone = file \"gone\"; }");
    let target = store.target("hello");
    let other = store.target("other");
    store.build(&other.drv);
    let link = store.work().join("result");
    for before in [other.out(), store.target("gone").out(), target.out()] {
        let _ = fs::remove_file(&link);
        symlink(before, &link).unwrap();
        store
            .step(target.flags())
            .run()
            .takes("realised", "drv-valid");
        assert_eq!(fs::read_link(&link).unwrap(), Path::new(target.out()));
    }
}

#[test]
fn anything_else_in_its_place_is_not_touched_and_nothing_is_built() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let link = store.work().join("result");

    fs::write(&link, "precious").unwrap();
    refuses(&store, &target, &[], "result");
    assert_eq!(fs::read_to_string(&link).unwrap(), "precious");
    fs::remove_file(&link).unwrap();

    fs::create_dir(&link).unwrap();
    refuses(&store, &target, &[], "result");
    assert!(link.is_dir());
    fs::remove_dir(&link).unwrap();

    for elsewhere in ["default.nix", "/etc/passwd", "nowhere"] {
        symlink(elsewhere, &link).unwrap();
        refuses(&store, &target, &[], "result");
        assert_eq!(fs::read_link(&link).unwrap(), Path::new(elsewhere));
        fs::remove_file(&link).unwrap();
    }

    // A name that only begins like the store's folder.
    symlink(format!("{}-not/x", store.folder().display()), &link).unwrap();
    refuses(&store, &target, &[], "result");
}

#[test]
fn folders_that_are_missing_above_the_link_are_made() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.build(&target.drv);
    let step = store
        .step(target.flags())
        .args(["--out-link", "new/deep/link"]);
    for way in ["realised", "available"] {
        step.run().exits(0);
        assert_eq!(
            links(&store.work().join("new/deep"))["link"],
            target.out(),
            "{way}"
        );
        fs::remove_dir_all(store.work().join("new")).unwrap();
        store.delete([&target.drv]);
    }
}

#[test]
fn a_link_that_cannot_be_made_anywhere_is_refused() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    refuses(
        &store,
        &target,
        &["--out-link", "default.nix/result"],
        "default.nix",
    );
    refuses(&store, &target, &["--out-link", ""], "out-link");
}

#[test]
fn a_folder_that_cannot_be_written_is_refused() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let locked = store.work().join("locked");
    fs::create_dir(&locked).unwrap();
    if !unix::unistd::geteuid().is_root() {
        fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
        refuses(&store, &target, &["--out-link", "locked/result"], "locked");
    }
    // No permission holds root back, a read-only file system does.
    let mount = format!("mount -t tmpfs -o ro none '{}'", locked.display());
    let Some(step) = store.step_with_mounts(&mount, target.flags()) else {
        return;
    };
    let ended = step.args(["--out-link", "locked/result"]).run();
    ended.fails(64, "config").passes_on("locked");
    assert!(!store.has(target.out()), "it was built");
}

#[test]
fn the_links_of_all_recorded_outputs_are_checked() {
    let Some(store) = Store::new() else { return };
    store.targets(r#"{ hello = buildAll [ "out" "dev" ] "hello" "echo > $out; echo > $dev"; }"#);
    let target = store.target("hello");
    let in_the_way = store.write("result-dev", "precious");
    refuses(&store, &target, &[], "result-dev");
    assert_eq!(fs::read_to_string(in_the_way).unwrap(), "precious");
}

#[test]
fn the_links_of_all_outputs_are_checked_once_an_evaluation_has_named_them() {
    let Some(store) = Store::new() else { return };
    store.targets(r#"{ hello = buildAll [ "out" "dev" ] "hello" "echo > $out; echo > $dev"; }"#);
    let in_the_way = store.write("result-dev", "precious");
    let stand_ins = StandIns::new(store.bin()).counting("nix-store");
    let ended = store
        .step(["--file", "default.nix", "--attr", "hello"])
        .env("PATH", stand_ins.path(&store))
        .run();
    ended.fails(64, "config");
    let message = ended.report()["failure"]["message"].as_str().unwrap();
    assert!(message.contains("result-dev"), "{message}");
    assert_eq!(fs::read_to_string(in_the_way).unwrap(), "precious");
    let calls = stand_ins.calls("nix-store").concat();
    assert!(!calls.contains(&"--realise".into()), "{calls:?}");
    assert!(!store.has(store.target("hello").out()), "it was built");
}

#[test]
fn a_file_called_result_does_not_matter_where_there_is_no_output_out() {
    let Some(store) = Store::new() else { return };
    store.targets(r#"{ hello = buildAll [ "dev" "doc" ] "hello" "echo > $dev; echo > $doc"; }"#);
    let target = store.target("hello");
    store.write("result", "precious");
    store
        .step(target.flags())
        .run()
        .takes("realised", "drv-valid");
    assert_eq!(
        fs::read_to_string(store.work().join("result")).unwrap(),
        "precious"
    );
    assert_eq!(store.links().len(), 2);
}

#[test]
fn without_a_link_the_state_folder_keeps_the_output_from_the_collector() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    let no_flags: [&str; 0] = [];
    let record = target.record(&json!({ "out-link": false }));
    for step in [
        store.step(target.flags()).arg("--no-out-link"),
        store
            .step(no_flags)
            .env("EVAL_ONCE_STEP", record.to_string()),
    ] {
        let ended = step.run();
        ended
            .takes("realised", "drv-valid")
            .prints(&format!("{}\n", target.out()));
        assert_eq!(store.links(), BTreeMap::new());
        store.collect();
        assert!(store.has(target.out()));
        let roots = store.roots();
        assert!(
            roots.iter().all(|root| root.starts_with(store.our_state())),
            "{roots:?}"
        );
        fs::remove_dir_all(store.our_state().join("outputs")).unwrap();
        store.collect();
        assert!(!store.has(target.out()));
        store.target("hello");
    }
}

#[test]
fn without_a_link_every_output_has_a_root_in_every_way() {
    let Some(store) = Store::new() else { return };
    store.targets(r#"{ hello = buildAll [ "dev" "out" ] "hello" "echo > $out; echo > $dev"; }"#);
    let target = store.target("hello");
    let step = store.step(target.flags()).args([
        "--no-out-link",
        "--file",
        "default.nix",
        "--attr",
        "hello",
    ]);
    for (way, gone) in [
        ("realised", vec![]),
        ("available", vec![target.drv.as_str()]),
        ("evaluated", target.paths()),
    ] {
        if way == "evaluated" {
            store.delete([&target.drv]);
        }
        store.delete(gone);
        fs::remove_dir_all(store.our_state().join("outputs")).ok();
        assert_eq!(step.run().exits(0).report()["way"], way);
        store.collect();
        for path in target.paths() {
            assert!(store.has(path), "{way}: {path}");
        }
        assert_eq!(store.links(), BTreeMap::new());
    }
}

#[test]
fn a_file_in_its_place_does_not_matter_where_no_link_is_wanted() {
    let Some(store) = Store::new() else { return };
    let target = hello(&store);
    store.write("result", "precious");
    store
        .step(target.flags())
        .arg("--no-out-link")
        .run()
        .takes("realised", "drv-valid");
    assert_eq!(
        fs::read_to_string(store.work().join("result")).unwrap(),
        "precious"
    );
}

#[test]
fn a_report_is_never_written_through_a_link() {
    let Some(store) = Store::new() else { return };
    store.targets("{ one = file \"one\"; }");
    let target = store.target("one");
    let result = store.work().join("result");
    store.nix(
        "nix-store",
        [
            "--realise",
            &target.drv,
            "--add-root",
            result.to_str().unwrap(),
        ],
    );
    let before = fs::read_to_string(&result).unwrap();
    let step = || {
        store
            .eval_once(["step", "--report", "result"])
            .args(target.flags())
    };
    step().run().exits(64).prints("");
    assert_eq!(fs::read_to_string(&result).unwrap(), before);
    // The same where the step itself would make the link.
    fs::remove_file(&result).unwrap();
    step().run().exits(64);
    assert_eq!(fs::read_to_string(target.out()).unwrap(), before);
}

#[test]
fn a_link_that_nix_could_not_make_is_refused_before_anything_is_built() {
    let Some(store) = Store::new() else { return };
    store.targets("{ one = file \"one\"; }");
    let target = store.target("one");
    let long = "x".repeat(254);
    let inside = store.folder().join("link");
    for link in [long.as_str(), inside.to_str().unwrap()] {
        let ended = store.step(target.flags()).args(["--out-link", link]).run();
        ended.fails(64, "config");
        assert!(!store.has(target.out()), "{link}");
    }
}

#[test]
fn a_link_that_cannot_be_made_after_all_is_no_failed_build() {
    let Some(store) = Store::new() else { return };
    store.targets("{ one = file \"one\"; }");
    let target = store.target("one");
    // A folder of the kernel's: it may be written to, and takes no links.
    let ended = store
        .step(target.flags())
        .args(["--out-link", "/proc/self/result"])
        .run();
    ended.fails(64, "config");
}
