//! `eval-once pin`: the `.drv`s of a generator of one's own are kept and shared as those of a recording.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::json;

use crate::support::{
    EVAL_ONCE,
    agent::{plugin_repository, program},
    buildkite::{Build, JobState, Outcome},
    stand_in::StandIns,
    store::Store,
    target::Target,
    tool,
};

#[test]
fn a_pin_is_held_while_nix_makes_its_link() {
    let Some((store, a, _)) = two_targets() else {
        return;
    };
    // The link as Nix makes it, in a moment in which others remove what nothing holds.
    let script = format!(
        "for word; do case \"$word\" in */pins/*/*) \
           left=\"${{word%/*}}/.tmp-1-2\"; ln -s x \"$left\"; '{EVAL_ONCE}' prune >&2; \
           [ -L \"$left\" ] && echo >>\"$0\".stayed; rm \"$left\"; break;; esac; done"
    );
    let stand_ins = StandIns::new(store.bin()).before("nix-store", &script);
    let pin = store.eval_once(["pin", &a.drv]);
    let ended = pin.env("PATH", stand_ins.path(&store)).run();
    ended.exits(0);
    let stayed = fs::read_to_string(store.bin().join("nix-store.stayed")).unwrap();
    assert!(!stayed.is_empty());
    assert!(!ended.stderr.contains("rm: "), "{ended}");
}

/// A store with the `.drv`s of two targets, of which nothing is rooted.
fn two_targets() -> Option<(Store, Target, Target)> {
    let store = Store::new()?;
    store.targets("{ a = file \"a\"; b = file \"b\"; }");
    let (a, b) = (store.target("a"), store.target("b"));
    store.poison();
    Some((store, a, b))
}

fn pins(store: &Store) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(store.our_state().join("pins")) else {
        return Vec::new();
    };
    let pins = entries.map(|entry| entry.unwrap().path().join("pin"));
    pins.filter(|pin| pin.is_symlink()).collect()
}

#[test]
fn a_pinned_drv_outlives_a_collection_and_reaches_another_host_through_its_share() {
    let Some((store, a, b)) = two_targets() else {
        return;
    };
    let share = format!("file://{}", store.root().join("cache").display());
    let flags = ["pin", "--share", &share, "--keep-days", "7"];
    let ended = store.eval_once(flags).args([&a.drv, &a.drv]).run();
    ended.exits(0).says(&[
        "pinned 1 .drv for 7 days: ",
        &format!("shared 1 target: {share}"),
    ]);
    let printed = ended.json();
    let [pin] = pins(&store).try_into().unwrap();
    let file = fs::read_link(&pin).unwrap();
    assert_eq!(
        printed,
        json!({ "version": 1, "pin": file, "drvs": 1, "step": { "share": share } })
    );
    store.collect();
    assert!(store.has(&a.drv) && !store.has(&b.drv));

    // As on another host: nothing but the keys that were printed leads to the `.drv`.
    fs::remove_dir_all(pin.parent().unwrap()).unwrap();
    store.collect();
    assert!(!store.has(&a.drv));
    let mut record = printed["step"].clone();
    record["drv"] = a.drv.as_str().into();
    let step = store
        .eval_once(["step"])
        .env("EVAL_ONCE_STEP", record.to_string())
        .reporting_to(store.root().join("report.json"))
        .run();
    step.exits(0).takes("fetched", "fetched-from-share");
}

#[test]
fn drvs_are_read_from_standard_input_and_other_ones_have_a_pin_of_their_own() {
    let Some((store, a, b)) = two_targets() else {
        return;
    };
    let piped = |drvs: &[u8], arguments: &[&str]| {
        let mut command = store.eval_once(["pin"]).args(arguments).command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(drvs).unwrap();
        child.wait_with_output().unwrap()
    };
    let both = piped(format!("{}\n\n", a.drv).as_bytes(), &["-", &b.drv]);
    assert!(both.status.success());
    store.collect();
    assert!(store.has(&a.drv) && store.has(&b.drv));
    assert_eq!(pins(&store).len(), 1);
    store.eval_once(["pin", &a.drv]).run().exits(0);
    assert_eq!(pins(&store).len(), 2, "neither replaces the other");
    store.eval_once(["pin", &a.drv]).run().exits(0);
    assert_eq!(pins(&store).len(), 2, "the same ones are replaced");
    assert_eq!(piped(b"\n", &["-"]).status.code(), Some(64));
    let no_text = [a.drv.as_bytes(), b"\n\xff\xfe\n"].concat();
    assert_eq!(piped(&no_text, &["-"]).status.code(), Some(64));
}

#[test]
fn a_drv_that_does_not_exist_is_named_and_nothing_is_pinned() {
    let Some((store, a, b)) = two_targets() else {
        return;
    };
    store.delete([&b.drv]);
    let ended = store.eval_once(["pin", &a.drv, &b.drv]).run();
    ended.exits(75).prints("").says(&[
        &format!("error: {} does not exist in this store", b.drv),
        "hint: evaluate again",
    ]);
    assert!(pins(&store).is_empty());
    // Of another store.
    let other = "/other/store/0123456789abcdfghijklmnpqrsvwxyz-a.drv";
    let ended = store.eval_once(["pin", other]).run();
    assert!([64, 75].contains(&ended.status.code().unwrap()), "{ended}");
    ended.passes_on(other);
    for (wrong, part) in [
        (a.out(), "its name does not end in .drv"),
        ("result", "is not a store path"),
    ] {
        store
            .eval_once(["pin", wrong])
            .run()
            .exits(64)
            .passes_on(part);
    }
    let required = ["pin", "--share-required", "--no-share", &a.drv];
    store.eval_once(required).run().exits(64);
    assert!(pins(&store).is_empty());
}

/// The example of `docs/generator.md`, through the real agent.
#[test]
fn the_generator_of_the_guide_makes_steps_that_never_evaluate() {
    let Some(store) = Store::new() else { return };
    if program().is_none() || tool("jq").is_none() {
        return;
    }
    let repositories = tempfile::tempdir().unwrap();
    let plugin = plugin_repository(repositories.path());
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/generator.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, script) = page.split_once("```sh\n").unwrap();
    let (script, _) = script.split_once("```").unwrap();
    let reference = "your-org/eval-once#v0.1.0";
    assert!(script.contains(reference));
    store.targets("{ hello = file \"hello\"; broken = build \"broken\" \"exit 3\"; }");
    fs::copy(
        store.work().join("default.nix"),
        store.work().join("ci.nix"),
    )
    .unwrap();
    store.poison();
    store.write("generate.sh", &script.replace(reference, &plugin));
    let folder = Path::new(EVAL_ONCE).parent().unwrap().to_str().unwrap();
    let build = Build::new(&json!({
        "key": "generate",
        "command": format!("PATH={folder}:\"$PATH\" bash generate.sh"),
    }));
    let Some(build) = build else { return };
    let build = build
        .checkout(store.work())
        .envs(store.env())
        .envs([("EVAL_ONCE_BIN", EVAL_ONCE)]);
    assert_eq!(
        build.run(),
        Outcome::Failed,
        "{}",
        build.job("generate").plain()
    );
    let jobs = build.jobs();
    assert_eq!(jobs.len(), 3);
    for job in jobs
        .iter()
        .filter(|job| job.key.as_deref() != Some("generate"))
    {
        let state = if job.label.as_ref().unwrap().contains("hello") {
            assert_eq!(job.way(), "realised (drv-valid)", "{}", job.plain());
            JobState::Passed
        } else {
            JobState::Failed
        };
        assert_eq!(job.state, state, "{}", job.plain());
    }
    let shared = build.artifacts();
    let mut archives = shared
        .keys()
        .filter(|name| name.starts_with("eval-once-drvs-"));
    assert!(archives.next().is_some(), "{:?}", shared.keys());
}
