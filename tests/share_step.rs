//! A step whose `.drv` is not on its host: it comes from a share, as an archive that is an artifact of the build, or a store.

use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use unix::sys::signal::{Signal, kill};

use crate::support::{
    EVAL_ONCE,
    agent::program,
    buildkite::{Build, Outcome},
    program::{Ended, Program},
    stand_in::StandIns,
    store::Store,
    target::{Target, fifo, let_go},
    until,
    web::{Trouble, Web},
};

/// A host that once had a target, and shared it: what evaluates it again throws, so that a wrong way shows.
struct Scene {
    store: Store,
    target: Target,
    /// The share as a folder of a binary cache.
    cache: PathBuf,
    expression: String,
}

impl Scene {
    fn new() -> Option<Self> {
        let store = Store::new()?;
        store
            .targets("rec { dep = file \"dep\"; hello = build \"hello\" \"echo ${dep} > $out\"; }");
        Some(Self::of(store))
    }

    /// Of the target `hello` in the store's `default.nix`.
    fn of(store: Store) -> Self {
        let target = store.target("hello");
        let cache = store.root().join("cache");
        let expression = fs::read_to_string(store.work().join("default.nix")).unwrap();
        let url = format!("file://{}?compression=zstd", cache.display());
        store.nix("nix", ["copy", "--derivation", "--to", &url, &target.drv]);
        store.poison();
        let scene = Self {
            store,
            target,
            cache,
            expression,
        };
        scene.forget();
        scene
    }

    /// From now on the target can be evaluated again.
    fn cure(&self) {
        self.store.write("default.nix", &self.expression);
    }

    /// Removes everything from the store, and the links that steps have made.
    fn forget(&self) {
        for link in self.store.links().keys() {
            fs::remove_file(self.store.work().join(link)).unwrap();
        }
        self.store.collect();
        assert!(!self.store.has(&self.target.drv));
    }

    /// The share as a URL.
    fn url(&self) -> String {
        format!("file://{}", self.cache.display())
    }

    /// The share as an archive: its name and its bytes.
    fn archive(&self) -> (String, Vec<u8>) {
        let mut archive = tar::Builder::new(Vec::new());
        archive.mode(tar::HeaderMode::Deterministic);
        let mut names = vec!["nix-cache-info".to_owned(), "nar".to_owned()];
        for folder in ["", "nar/"] {
            for entry in self.cache.join(folder).read_dir().unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                if name.ends_with(".narinfo") || !folder.is_empty() {
                    names.push(format!("{folder}{name}"));
                }
            }
        }
        for name in names {
            archive
                .append_path_with_name(self.cache.join(&name), &name)
                .unwrap();
        }
        let bytes = archive.into_inner().unwrap();
        (name_of(&bytes), bytes)
    }

    /// The step with this share, in no job.
    fn step(&self, share: &str) -> Program {
        self.step_with(&json!({ "share": share }))
    }

    /// The step with more keys.
    fn step_with(&self, keys: &Value) -> Program {
        self.reporting(self.without_report(keys), 0)
    }

    /// The same program with a report of this number.
    fn reporting(&self, program: Program, number: usize) -> Program {
        program.reporting_to(self.store.root().join(format!("report-{number}.json")))
    }

    fn without_report(&self, keys: &Value) -> Program {
        let mut record = self.target.record(keys);
        record["file"] = "default.nix".into();
        record["attr"] = json!(["hello"]);
        self.store
            .eval_once(["step"])
            .env("EVAL_ONCE_STEP", record.to_string())
    }

    /// The step in a job whose `buildkite-agent` downloads these bytes as the artifact `name`, by this script (`$TO` is the file
    /// to write, `$FROM` has the bytes).
    fn job(&self, name: &str, bytes: &[u8], script: &str) -> (Program, StandIns) {
        self.job_with(name, bytes, script, &json!({}))
    }

    /// As [`Self::job`], with more keys.
    fn job_with(
        &self,
        name: &str,
        bytes: &[u8],
        script: &str,
        keys: &Value,
    ) -> (Program, StandIns) {
        let (step, stand_ins) = self.job_without_report(name, bytes, script, keys);
        (self.reporting(step, 0), stand_ins)
    }

    fn job_without_report(
        &self,
        name: &str,
        bytes: &[u8],
        script: &str,
        keys: &Value,
    ) -> (Program, StandIns) {
        let from = self.store.root().join("artifact");
        fs::write(&from, bytes).unwrap();
        let agent = format!(
            "#!/bin/sh\n{{ printf '%s\\037' \"$@\"; printf '\\036'; }} >>'{calls}'\nFROM='{from}'; TO=\"$4{name}\"\n{script}\n",
            calls = self.store.bin().join(".buildkite-agent.calls").display(),
            from = from.display(),
        );
        let stand_ins = StandIns::new(self.store.bin()).instead("buildkite-agent", &agent);
        let mut keys = keys.clone();
        keys["share"] = format!("artifact:{name}").into();
        let step = self
            .without_report(&keys)
            .envs([
                ("BUILDKITE_JOB_ID", "job"),
                ("BUILDKITE_BUILD_ID", "build"),
                ("BUILDKITE_AGENT_ACCESS_TOKEN", "token"),
            ])
            .env("PATH", stand_ins.path(&self.store));
        (step, stand_ins)
    }

    /// What there is in the folder of an archive on this host.
    fn unpacked(&self, name: &str) -> Vec<String> {
        let folder = self.store.our_state().join("shares");
        let folder = folder.join(name.strip_suffix(".tar").unwrap());
        let entries = folder.read_dir().into_iter().flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// The name of the archive with these bytes.
fn name_of(bytes: &[u8]) -> String {
    let hex = Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    format!("eval-once-drvs-{hex}.tar")
}

/// What downloads.
const DOWNLOADS: &str = "cp \"$FROM\" \"$TO\"";

#[test]
fn an_archive_is_found_by_its_name_where_patterns_are_not_known() {
    let Some(scene) = Scene::new() else { return };
    let (name, bytes) = scene.archive();
    let none = "echo 'fatal: failed to download artifacts: no artifacts found for downloading' >&2; exit 1";
    let script = format!("case $3 in *'*') {none};; esac; {DOWNLOADS}");
    let (job, stand_ins) = scene.job(&name, &bytes, &script);
    job.run().exits(0).takes("fetched", "fetched-from-share");
    assert_eq!(stand_ins.calls("buildkite-agent").len(), 2);
}

#[test]
fn a_drv_that_is_not_here_comes_from_a_store() {
    let Some(scene) = Scene::new() else { return };
    let ended = scene.step(&scene.url()).run();
    ended
        .exits(0)
        .takes("fetched", "fetched-from-share")
        .counts(2, 0)
        .says(&["fetched-from-share"])
        .prints(&format!("{}\n", scene.target.out()));
    assert!(ended.report()["seconds"]["fetch"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_drv_that_is_not_here_comes_from_an_archive_that_is_downloaded_once() {
    let Some(scene) = Scene::new() else { return };
    let (name, bytes) = scene.archive();
    let (step, stand_ins) = scene.job(&name, &bytes, DOWNLOADS);
    for _ in 0..2 {
        step.run()
            .exits(0)
            .takes("fetched", "fetched-from-share")
            .says(&["fetched-from-share"]);
        scene.forget();
    }
    assert_eq!(scene.unpacked(&name), ["cache", "keep-days", "lock"]);
    assert_eq!(stand_ins.calls("buildkite-agent").len(), 1);
}

#[test]
fn a_real_agent_downloads_the_archive_of_its_build_whichever_of_its_jobs_have_uploaded_it() {
    let Some(scene) = Scene::new() else { return };
    let Some(_) = program() else { return };
    let (name, bytes) = scene.archive();
    // The other one does not name its content; of that the agent says the sum, if there is one of its name.
    for (name, uploads) in [(name.as_str(), 2), ("drvs.tar", 1)] {
        fs::write(scene.store.work().join(name), &bytes).unwrap();
        let record = scene.target.record(&json!({
            "share": format!("artifact:{name}"), "file": "default.nix", "attr": ["hello"], "out-link": false,
        }));
        let steps = json!({ "steps": [{
            "key": "build", "command": format!("{EVAL_ONCE} step"),
            "env": { "EVAL_ONCE_STEP": record.to_string() },
        }] });
        fs::write(scene.store.work().join("steps.json"), steps.to_string()).unwrap();
        let upload = format!("buildkite-agent artifact upload {name} && ").repeat(uploads);
        let command = format!(
            "{upload} rm {name} && buildkite-agent pipeline upload --no-interpolation steps.json"
        );
        let Some(build) = Build::new(&json!({ "key": "record", "command": command })) else {
            return;
        };
        let build = build.checkout(scene.store.work()).envs(scene.store.env());
        let outcome = build.run();
        let log = build.job("build").plain();
        assert_eq!(outcome, Outcome::Passed, "{log}");
        assert!(log.contains("fetched-from-share"), "{log}");
        fs::remove_dir_all(scene.store.our_state()).unwrap();
        scene.forget();
    }
}

#[test]
fn what_a_job_has_unpacked_serves_a_step_by_hand_too() {
    let Some(scene) = Scene::new() else { return };
    let (name, bytes) = scene.archive();
    let by_hand = scene.step(&format!("artifact:{name}"));
    by_hand
        .run()
        .exits(65)
        .passes_on("this is no Buildkite job");
    let (job, _) = scene.job(&name, &bytes, DOWNLOADS);
    job.run().takes("fetched", "fetched-from-share");
    scene.forget();
    by_hand.run().takes("fetched", "fetched-from-share");
}

#[test]
fn a_download_that_takes_its_time_shows_how_far_it_is() {
    let Some(scene) = Scene::new() else { return };
    let (name, bytes) = scene.archive();
    let slowly = "for second in 1 2 3 4 5 6 7 8 9 10 11 12; do head -c 99 \"$FROM\" >>\"$TO.tmp\"; sleep 1; done; cp \"$FROM\" \"$TO\"";
    let (step, _) = scene.job(&name, &bytes, slowly);
    step.run()
        .takes("fetched", "fetched-from-share")
        .says(&[&format!("downloading {name}: 0 MiB"), "fetched-from-share"]);
}

// ---- what a share can do to a step

/// How often a step says that its share has failed, and why.
fn reasons(ended: &Ended, why: &str) -> usize {
    let said = ended.stderr.lines();
    said.filter(|line| line.contains("cannot be fetched from") && line.contains(why))
        .count()
}

/// What is wrong with a download: the script that stands for it, and what the step says of it.
const DOWNLOAD_FAULTS: [(&str, &str, &str); 8] = [
    (
        "no such artifact",
        "echo 'fatal: failed to download artifacts: no artifacts found for downloading' >&2; exit 1",
        "no artifacts found for downloading",
    ),
    (
        "refused",
        "echo 'WARN   Error trying to download https://s/x?sig=secret (403 Forbidden) Attempt 5/5' >&2; exit 1",
        "(403 Forbidden)",
    ),
    (
        "truncated",
        "head -c 700 \"$FROM\" >\"$TO\"",
        "another SHA-256",
    ),
    ("another file", "echo x >\"$TO\"", "another SHA-256"),
    (
        "something else",
        "mkdir \"$TO\"",
        "the download cannot be read",
    ),
    ("nothing at all", "exit 0", "has found nothing"),
    ("a failure without a word", "exit 3", "ended with status 3"),
    ("killed", "kill -KILL $$", "was killed by SIGKILL"),
];

#[test]
fn an_archive_that_cannot_be_downloaded_is_one_reason_and_the_step_evaluates() {
    for (what, script, why) in DOWNLOAD_FAULTS {
        let Some(scene) = Scene::new() else { return };
        scene.cure();
        let (name, bytes) = scene.archive();
        let (step, _) = scene.job(&name, &bytes, script);
        let ended = step.run();
        ended
            .exits(0)
            .takes("evaluated", "drv-missing")
            .never_says("secret");
        assert_eq!(reasons(&ended, why), 1, "{what}: {ended}");
        assert!(
            ended.stderr.contains(&format!(
                "the .drv cannot be fetched from artifact:{name} ("
            )),
            "{what}: {ended}"
        );
        // Nothing is left of it but the reason.
        assert_eq!(
            scene.unpacked(&name),
            ["failed", "keep-days", "lock"],
            "{what}"
        );
        // The control: it is that fault alone.
        let (step, _) = scene.job(&name, &bytes, DOWNLOADS);
        scene.forget();
        step.run().exits(0).takes("fetched", "fetched-from-share");
    }
}

#[test]
fn an_archive_that_cannot_be_used_is_one_reason_and_the_step_evaluates() {
    let Some(scene) = Scene::new() else { return };
    scene.cure();
    let file = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        let mut archive = tar::Builder::new(Vec::new());
        archive
            .append_data(&mut header, "nix-cache-info", &b""[..])
            .unwrap();
        header.set_size(content.len() as u64);
        header.as_old_mut().name = [0; 100];
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        archive.append(&header, content).unwrap();
        archive.into_inner().unwrap()
    };
    let link = {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        archive
            .append_link(&mut header, "nar", scene.store.work())
            .unwrap();
        archive.into_inner().unwrap()
    };
    let foreign = {
        let info = b"StoreDir: /another/store\n";
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(info.len() as u64);
        archive
            .append_data(&mut header, "nix-cache-info", &info[..])
            .unwrap();
        archive.into_inner().unwrap()
    };
    let outside = scene.store.root().join("outside");
    // An archive is unpacked four folders below the root of the store: shares/ARCHIVE/filling-… in the state folder.
    for (what, bytes, why) in [
        (
            "a name above",
            file("nar/../../../../../outside", b"x"),
            "that no binary cache has",
        ),
        (
            "an absolute name",
            file(outside.to_str().unwrap(), b"x"),
            "that no binary cache has",
        ),
        ("a link", link, "a symbolic link"),
        ("gzip", b"\x1f\x8b\x08\x00".repeat(200), "no whole tar"),
        ("nothing", Vec::new(), "no binary cache"),
        ("another store's", foreign, "/another/store"),
    ] {
        let name = name_of(&bytes);
        let (step, _) = scene.job(&name, &bytes, DOWNLOADS);
        let ended = step.run();
        ended.exits(0).takes("evaluated", "drv-missing");
        assert_eq!(reasons(&ended, why), 1, "{what}: {ended}");
        assert!(!outside.exists(), "{what}");
        scene.forget();
    }
}

#[test]
fn an_archive_that_is_larger_than_its_record_is_refused() {
    let Some(scene) = Scene::new() else { return };
    scene.cure();
    fs::write(scene.cache.join("nar/large.nar"), vec![0; 100_000]).unwrap();
    let (name, bytes) = scene.archive();
    for (size, way) in [(20_000, "evaluated"), (150_000, "fetched")] {
        let keys = json!({ "share-size": size });
        let (step, _) = scene.job_with(&name, &bytes, DOWNLOADS, &keys);
        let ended = step.run();
        ended.exits(0);
        assert_eq!(ended.report()["way"], way, "{ended}");
        if way == "evaluated" {
            ended.passes_on("it unpacks to more than its record says");
        }
        scene.forget();
    }
}

#[test]
fn a_download_that_is_larger_than_its_record_is_stopped() {
    let Some(scene) = Scene::new() else { return };
    scene.cure();
    let (name, bytes) = scene.archive();
    let keys = json!({ "share-size": 20_000 });
    let large = "truncate -s 40M \"$TO.tmp\"; exec sleep 300";
    let (step, _) = scene.job_with(&name, &bytes, large, &keys);
    let ended = step.run();
    ended.takes("evaluated", "drv-missing");
    assert_eq!(
        reasons(&ended, "it is larger than its record says"),
        1,
        "{ended}"
    );
    scene.forget();
    let (step, _) = scene.job_with(&name, &bytes, DOWNLOADS, &keys);
    step.run().takes("fetched", "fetched-from-share");
}

#[test]
fn what_another_job_uploads_beside_an_archive_neither_spoils_it_nor_fills_the_disk() {
    let Some(scene) = Scene::new() else { return };
    scene.cure();
    let (name, bytes) = scene.archive();
    let keys = json!({ "share-size": 20_000 });
    for (script, way) in [
        // Whatever else matches the name, the archive is there.
        (
            "cp \"$FROM\" \"$TO\"; truncate -s 40M \"$TO.x\"; exec sleep 300",
            "fetched",
        ),
        // What is large is found in a folder too, before the patience ends.
        (
            "mkdir \"$TO.d\"; truncate -s 40M \"$TO.d/x\"; exec sleep 300",
            "evaluated",
        ),
    ] {
        let (step, _) = scene.job_with(&name, &bytes, script, &keys);
        let ended = step.run();
        ended.exits(0);
        assert_eq!(ended.report()["way"], way, "{ended}");
        if way == "evaluated" {
            assert_eq!(
                reasons(&ended, "it is larger than its record says"),
                1,
                "{ended}"
            );
        }
        fs::remove_dir_all(scene.store.our_state()).unwrap();
        scene.forget();
    }
}

#[test]
fn a_download_that_trickles_is_given_up_as_one_that_stands_still() {
    let Some(scene) = Scene::new() else { return };
    scene.cure();
    let (name, bytes) = scene.archive();
    let trickles = "while :; do echo x >>\"$TO.tmp\"; sleep 1; done";
    let (step, _) = scene.job(&name, &bytes, trickles);
    let ended = step.run();
    ended.exits(0).takes("evaluated", "drv-missing");
    let why = "the download has not moved for 30 s";
    assert_eq!(reasons(&ended, why), 1, "{ended}");
}

#[test]
fn a_full_disk_is_one_reason_and_the_step_evaluates() {
    let Some(scene) = Scene::new() else { return };
    scene.cure();
    fs::write(scene.cache.join("nar/large.nar"), vec![0; 600_000]).unwrap();
    let (name, bytes) = scene.archive();
    let state = scene.store.root().join("small");
    fs::create_dir(&state).unwrap();
    // Less than the download, less than that and what it unpacks to, and enough.
    for (size, way) in [
        ("512k", "evaluated"),
        ("1m", "evaluated"),
        ("4m", "fetched"),
    ] {
        let mount = format!("mount -t tmpfs -o size={size} tmpfs '{}'", state.display());
        let Some(mounted) = scene.store.with_mounts(&mount) else {
            return;
        };
        let (step, _) = scene.job(&name, &bytes, DOWNLOADS);
        let ended = step
            .behind(&mounted)
            .env("EVAL_ONCE_STATE_DIR", &state)
            .run();
        ended.exits(0);
        assert_eq!(ended.report()["way"], way, "{ended}");
        let expected = usize::from(way == "evaluated");
        assert_eq!(
            reasons(&ended, "No space left on device"),
            expected,
            "{ended}"
        );
        scene.forget();
    }
}

#[test]
fn a_nar_that_is_corrupted_is_one_reason_and_the_archive_is_downloaded_anew_later() {
    let Some(scene) = Scene::new() else { return };
    scene.cure();
    for entry in scene.cache.join("nar").read_dir().unwrap() {
        let file = entry.unwrap().path();
        let mut bytes = fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x55;
        fs::write(file, bytes).unwrap();
    }
    let (name, bytes) = scene.archive();
    let (step, stand_ins) = scene.job(&name, &bytes, DOWNLOADS);
    for downloads in [1, 1, 2] {
        let ended = step.run();
        ended
            .exits(0)
            .takes("evaluated", "drv-missing")
            .passes_on(&format!("cannot be fetched from artifact:{name} ("));
        assert_eq!(stand_ins.calls("buildkite-agent").len(), downloads);
        scene.forget();
    }
}

#[test]
fn a_share_without_a_path_of_the_closure_is_one_reason() {
    for lacks in ["hello.drv", "dep.drv"] {
        let Some(scene) = Scene::new() else { return };
        scene.cure();
        for entry in scene.cache.read_dir().unwrap() {
            let file = entry.unwrap().path();
            let text = fs::read_to_string(&file).unwrap_or_default();
            let path = text
                .lines()
                .find_map(|line| line.strip_prefix("StorePath: "));
            if path.is_some_and(|path| path.ends_with(lacks)) {
                fs::remove_file(file).unwrap();
            }
        }
        let (name, bytes) = scene.archive();
        let (step, _) = scene.job(&name, &bytes, DOWNLOADS);
        for step in [step, scene.step(&scene.url())] {
            let ended = step.run();
            ended
                .exits(0)
                .takes("evaluated", "drv-missing")
                .passes_on("cannot be fetched from ");
            scene.forget();
        }
    }
}

#[test]
fn a_store_over_http_that_does_not_answer_well_is_one_reason_and_the_step_evaluates() {
    let Some(scene) = Scene::new() else { return };
    scene.cure();
    let web = Web::serve(&scene.cache);
    // Not Nix's own five tries with seconds in between.
    let options = json!({ "download-attempts": 1 });
    let step = || scene.step_with(&json!({ "share": web.url(), "options": options }));
    step().run().exits(0).takes("fetched", "fetched-from-share");
    for (part, trouble) in [
        ("narinfo", Trouble::Answers(404)),
        ("narinfo", Trouble::Answers(403)),
        ("narinfo", Trouble::Answers(500)),
        ("nix-cache-info", Trouble::Answers(503)),
        ("nar/", Trouble::Answers(404)),
        ("nar/", Trouble::BreaksOff),
        ("nar/", Trouble::IsCorrupted),
    ] {
        scene.forget();
        // Nix remembers what it has seen of a store.
        let _ = fs::remove_dir_all(scene.store.root().join("home/.cache"));
        web.spoil(part, trouble);
        let ended = step().run();
        ended.exits(0).takes("evaluated", "drv-missing");
        let why = format!("cannot be fetched from {} (", web.url());
        assert_eq!(
            ended.stderr.matches(&why).count(),
            1,
            "{part} {trouble:?}: {ended}"
        );
        web.mend();
        scene.forget();
        step().run().exits(0).takes("fetched", "fetched-from-share");
    }
}

#[test]
fn a_share_that_was_unreachable_as_a_substituter_is_not_asked_again() {
    let Some(scene) = Scene::new() else { return };
    scene.cure();
    // A port at which nothing listens any more.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let step = |substituter: &str| {
        let options = json!({ "substituters": substituter, "download-attempts": 1 });
        scene
            .step_with(&json!({ "share": url, "options": options }))
            .env("EVAL_ONCE_LOG", "debug")
            .run()
    };
    let as_both = step(&url);
    as_both.takes("evaluated", "drv-missing");
    assert_eq!(reasons(&as_both, "(it is unreachable)"), 1, "{as_both}");
    as_both.never_says("copy --derivation");
    scene.forget();
    // The control: one that is a share alone is asked once, and no substituter is changed because of it.
    let alone = step("");
    alone.takes("evaluated", "drv-missing");
    assert_eq!(reasons(&alone, &url), 1, "{alone}");
    assert_eq!(
        alone.stderr.matches("copy --derivation").count(),
        1,
        "{alone}"
    );
    alone.never_says("not asked again");
}

#[test]
fn a_required_share_that_fails_ends_the_step_and_nothing_is_evaluated() {
    let Some(scene) = Scene::new() else { return };
    let (name, bytes) = scene.archive();
    let required = |share: &str| json!({ "share": share, "share-required": true });
    let (job, _) = scene.job_with(&name, &bytes, "exit 3", &required(""));
    let no_such = format!("file://{}", scene.store.root().join("none").display());
    let artifact = format!("artifact:{name}");
    for (step, why) in [
        (job, "(`buildkite-agent artifact download"),
        (
            scene.step_with(&required(&no_such)),
            "cannot be fetched from file://",
        ),
        (
            scene.step_with(&json!({ "share-required": true })),
            "the step has no share",
        ),
        (
            scene.step_with(&required(&artifact)),
            "this is no Buildkite job",
        ),
    ] {
        let ended = step.run();
        ended.fails(75, "surroundings");
        let message = ended.report()["failure"]["message"].to_string();
        assert!(message.contains(why), "{ended}");
        assert!(message.contains("`share-required`"), "{ended}");
        assert_eq!(ended.stderr.matches(why).count(), 1, "{ended}");
        ended.passes_on("hint: ");
    }
    // The control: the share that works.
    scene
        .step_with(&required(&scene.url()))
        .run()
        .takes("fetched", "fetched-from-share");
}

#[test]
fn a_host_that_does_not_evaluate_names_itself_and_the_share() {
    let Some(scene) = Scene::new() else { return };
    let no_such = format!("file://{}", scene.store.root().join("none").display());
    let step = |share: &str| scene.step(share).env("EVAL_ONCE_POLICY", "recorded-only");
    let ended = step(&no_such).run();
    ended.fails(75, "surroundings");
    let message = ended.report()["failure"]["message"].to_string();
    assert!(
        message.contains(&format!("cannot be fetched from {no_such} ("))
            && message.contains("EVAL_ONCE_POLICY=recorded-only"),
        "{ended}"
    );
    step(&scene.url())
        .run()
        .takes("fetched", "fetched-from-share");
}

#[test]
fn a_host_has_a_share_for_the_steps_that_name_none() {
    let Some(scene) = Scene::new() else { return };
    let step = |keys: &Value| {
        scene
            .step_with(keys)
            .env("EVAL_ONCE_SHARE", scene.url())
            .run()
    };
    step(&json!({})).takes("fetched", "fetched-from-share");
    scene.forget();
    step(&json!({ "share": false, "share-required": true }))
        .fails(75, "surroundings")
        .passes_on("the step has no share");
    // Which artifact it is, only a record can say.
    let step = scene.step_with(&json!({}));
    step.env("EVAL_ONCE_SHARE", "artifact").run().exits(65);
}

#[test]
fn outputs_that_can_be_had_come_before_a_share() {
    let Some(scene) = Scene::new() else { return };
    scene.cure();
    let outputs = scene.store.root().join("outputs");
    let url = format!("file://{}", outputs.display());
    let target = scene.store.target("hello");
    scene.store.build(&target.drv);
    scene.store.nix("nix", ["copy", "--to", &url, target.out()]);
    scene.forget();
    scene.store.poison();
    let keys = json!({ "share": scene.url(), "options": { "substituters": url } });
    scene
        .step_with(&keys)
        .run()
        .takes("available", "outputs-available");
}

#[test]
fn a_build_that_fails_after_it_was_fetched_is_a_build_that_fails() {
    let Some(store) = Store::new() else { return };
    store.targets("{ hello = build \"hello\" \"echo no; exit 3\"; }");
    let scene = Scene::of(store);
    let ended = scene.step(&scene.url()).run();
    ended.fails(100, "build");
    let report = ended.report();
    assert_eq!(report["way"], "fetched");
    assert_eq!(report["reason"], "fetched-from-share");
    assert_eq!(report["failure"]["drv"], scene.target.drv);
}

/// Nix asks once which paths are valid here, and copies the others: one that goes meanwhile is missing where the `.drv` is registered.
#[test]
fn what_the_collector_takes_while_the_rest_is_copied_is_copied_too() {
    for message in [
        "path '$dep' is not valid",
        "store path '$dep' does not exist",
    ] {
        for (times, way) in [(2, "fetched"), (3, "evaluated")] {
            let Some(scene) = Scene::new() else { return };
            scene.cure();
            let dep = scene.store.root().join("dep");
            let script = format!(
                "case \"$*\" in *copy*) if [ $NTH -le {times} ]; then dep=/x/00000000000000000000000000000000-dep.drv; \
                 echo \"error: {message}\" >&2; touch '{}'; exit 1; fi;; esac",
                dep.display()
            );
            let stand_ins = StandIns::new(scene.store.bin()).before("nix", &script);
            let ended = scene
                .step(&scene.url())
                .env("PATH", stand_ins.path(&scene.store))
                .run();
            ended.exits(0);
            assert!(dep.exists());
            assert_eq!(ended.report()["way"], way, "{ended}");
            assert_eq!(stand_ins.calls("nix").len(), 3, "{ended}");
            if way == "evaluated" {
                ended.passes_on("cannot be fetched from ");
            }
        }
    }
}

#[test]
fn what_the_collector_takes_after_it_was_fetched_is_fetched_again_three_times_in_all() {
    for (times, way) in [(2, "fetched"), (3, "evaluated")] {
        let Some(scene) = Scene::new() else { return };
        scene.cure();
        // `nix-store --realise` of the `.drv` finds it gone.
        let script = format!(
            "case \"$*\" in *--realise*{drv}*) if [ -e '{drv}' ] && [ $(cat '{count}' 2>/dev/null | wc -l) -lt {times} ]; then \
             echo >>'{count}'; env -u NIX_REMOTE \"$REAL\" --delete --ignore-liveness '{drv}' >/dev/null 2>&1; fi;; esac",
            drv = scene.target.drv,
            count = scene.store.root().join("count").display(),
        );
        let stand_ins = StandIns::new(scene.store.bin())
            .before("nix-store", &script)
            .counting("nix");
        let ended = scene
            .step(&scene.url())
            .env("PATH", stand_ins.path(&scene.store))
            .run();
        ended.exits(0);
        assert_eq!(ended.report()["way"], way, "{ended}");
        let copies = stand_ins.calls("nix").len();
        assert_eq!(copies, 3, "{:?}", stand_ins.calls("nix"));
        if way == "evaluated" {
            ended.passes_on("was collected 3 times right after it was fetched");
        }
    }
}

// ---- explain

#[test]
fn what_a_step_would_fetch_is_predicted_with_commands_that_can_be_pasted_and_nothing_is_downloaded()
{
    let Some(scene) = Scene::new() else { return };
    let (name, bytes) = scene.archive();
    let artifact = format!("artifact:{name}");
    let (step, stand_ins) = scene.job(&name, &bytes, DOWNLOADS);
    // As the step of that job would have it.
    let explain = |share: &str, in_job: bool| -> Value {
        let record = scene.target.record(&json!({ "share": share }));
        let mut explain = scene
            .store
            .eval_once(["explain", "--json"])
            .env("EVAL_ONCE_STEP", record.to_string())
            .env("PATH", stand_ins.path(&scene.store));
        if in_job {
            explain = explain.envs([
                ("BUILDKITE_JOB_ID", "job"),
                ("BUILDKITE_BUILD_ID", "build"),
                ("BUILDKITE_AGENT_ACCESS_TOKEN", "token"),
            ]);
        }
        explain.run().json()
    };
    let found = |explained: &Value| -> String {
        let facts = explained["facts"].as_array().unwrap();
        facts.last().unwrap()["found"].as_str().unwrap().to_owned()
    };
    let programs = |explained: &Value| -> Vec<String> {
        let commands = explained["commands"].as_array().unwrap().iter();
        let first = commands.map(|words| words[0].as_str().unwrap().to_owned());
        // Those of the ways before.
        first.skip_while(|program| program == "nix-store").collect()
    };

    let explained = explain(&scene.url(), false);
    assert_eq!(explained["would"], "fetched");
    assert_eq!(explained["reason"], "fetched-from-share");
    assert_eq!(found(&explained), "has the .drv");
    assert_eq!(programs(&explained), ["nix", "nix-store"]);
    let none = explain(
        &format!("file://{}", scene.store.root().join("none").display()),
        false,
    );
    assert_eq!(none["would"], Value::Null);
    assert!(!scene.store.root().join("none").exists());

    let outside = explain(&artifact, false);
    assert_eq!(outside["would"], Value::Null);
    let before = explain(&artifact, true);
    assert_eq!(before["would"], "fetched");
    assert_eq!(
        found(&before),
        "is not unpacked here: it would be downloaded"
    );
    assert_eq!(programs(&before), ["buildkite-agent", "nix", "nix-store"]);
    assert_eq!(stand_ins.calls("buildkite-agent").len(), 0);
    assert!(!scene.store.our_state().join("shares").exists());

    step.run().takes("fetched", "fetched-from-share");
    scene.forget();
    let after = explain(&artifact, true);
    assert_eq!(after["would"], "fetched");
    assert_eq!(found(&after), "is unpacked here, and has the .drv");
    assert_eq!(programs(&after), ["nix", "nix-store"]);
    // They do what the step would have done.
    for command in after["commands"].as_array().unwrap() {
        let words: Vec<&str> = command
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        if words[0] == "nix"
            || words.contains(&"--add-root") && words.contains(&scene.target.drv.as_str())
        {
            let ended = scene.store.program(words[0]).args(&words[1..]).run();
            if words[0] == "nix" {
                ended.exits(0);
            }
        }
    }
    assert!(scene.store.has(scene.target.out()));
}

// ---- several steps at once, and steps that are killed

#[test]
fn eight_steps_at_once_download_once() {
    let Some(store) = Store::new() else { return };
    // So many paths that they copy the same ones at the same time, which Nix 2.8 does not bear.
    store.targets(
        r#"let chain = n: if n == 0 then file "d0" else build "d${toString n}" "echo ${chain (n - 1)} > $out";
           in { hello = build "hello" "echo ${builtins.unsafeDiscardOutputDependency (chain 60).drvPath} > $out"; }"#,
    );
    let scene = Scene::of(store);
    let (name, bytes) = scene.archive();
    for (script, way) in [(DOWNLOADS, "fetched"), ("exit 3", "evaluated")] {
        scene.cure();
        let gate = scene.store.root().join(format!("gate-{way}"));
        fifo(&gate);
        let script = format!("read x <'{}'; {script}", gate.display());
        let keys = json!({ "out-link": false });
        let (step, stand_ins) = scene.job_without_report(&name, &bytes, &script, &keys);
        let before = stand_ins.calls("buildkite-agent").len();
        let step = step.env("EVAL_ONCE_LOG", "debug");
        let start = |number| scene.reporting(step.clone(), number).start();
        let first = start(0);
        until("the first one downloads", || {
            stand_ins.calls("buildkite-agent").len() > before
        });
        let others: Vec<_> = (1..8).map(start).collect();
        for other in &others {
            other.until_it_says("waiting for another step");
        }
        let_go(&gate, "go\n");
        for one in others.into_iter().chain([first]) {
            let ended = one.end();
            ended.exits(0);
            assert_eq!(ended.report()["way"], way, "{ended}");
        }
        // One that fails has failed for all of them.
        assert_eq!(stand_ins.calls("buildkite-agent").len(), before + 1);
        fs::remove_dir_all(scene.store.our_state()).unwrap();
        scene.forget();
    }
}

#[test]
fn a_step_that_is_killed_in_the_middle_leaves_nothing_that_the_next_one_does_not_remove() {
    let Some(scene) = Scene::new() else { return };
    let (name, bytes) = scene.archive();
    let gate = scene.store.root().join("gate");
    fifo(&gate);
    let held = format!(
        "head -c 99 \"$FROM\" >\"$TO.tmp\"; read x <'{}'",
        gate.display()
    );
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let (step, stand_ins) = scene.job(&name, &bytes, &held);
        let before = stand_ins.calls("buildkite-agent").len();
        let running = step.start();
        until("it downloads", || {
            stand_ins.calls("buildkite-agent").len() > before
        });
        if signal == Signal::SIGKILL {
            kill(running.pid(), signal).unwrap();
            // Its agent lives on, until it can read.
            until("the filling folder is there", || {
                scene
                    .unpacked(&name)
                    .iter()
                    .any(|it| it.starts_with("filling-"))
            });
            let_go(&gate, "go\n");
            running.end();
        } else {
            kill(running.pid(), signal).unwrap();
            running.end().exits(143);
            assert_eq!(scene.unpacked(&name), ["keep-days", "lock"]);
        }
    }
    let (step, _) = scene.job(&name, &bytes, DOWNLOADS);
    step.run().exits(0).takes("fetched", "fetched-from-share");
    assert_eq!(scene.unpacked(&name), ["cache", "keep-days", "lock"]);
}

#[test]
fn a_step_that_is_killed_while_it_copies_holds_nothing_up() {
    let Some(scene) = Scene::new() else { return };
    let (name, bytes) = scene.archive();
    let (step, _) = scene.job(&name, &bytes, DOWNLOADS);
    let gate = scene.store.root().join("gate");
    fifo(&gate);
    let script = format!("[ $NTH -gt 1 ] || read x <'{}'", gate.display());
    let stand_ins = StandIns::new(scene.store.bin()).before("nix", &script);
    let step = step.env("PATH", stand_ins.path(&scene.store));
    let running = step.start();
    until("it copies", || !stand_ins.calls("nix").is_empty());
    kill(running.pid(), Signal::SIGKILL).unwrap();
    step.run().exits(0).takes("fetched", "fetched-from-share");
    let_go(&gate, "go\n");
    running.end();
}

// ---- what was unpacked is removed

#[test]
fn what_was_unpacked_goes_after_some_days_and_prune_says_so() {
    let Some(scene) = Scene::new() else { return };
    let (name, bytes) = scene.archive();
    let (step, _) = scene.job_with(&name, &bytes, DOWNLOADS, &json!({ "keep-days": 5 }));
    step.run().takes("fetched", "fetched-from-share");
    let folder = scene.store.our_state().join("shares");
    let lock = folder.join(name.strip_suffix(".tar").unwrap()).join("lock");
    let prune = |days: u64| {
        let used = SystemTime::now() - Duration::from_secs(days * 24 * 60 * 60);
        let file = fs::File::options().append(true).open(&lock).unwrap();
        file.set_modified(used).unwrap();
        scene.store.eval_once(["prune"]).run()
    };
    prune(4).exits(0).never_says("unpacked");
    assert!(lock.exists());
    prune(6).exits(0).passes_on("removed 1 unpacked archive: ");
    assert_eq!(folder.read_dir().unwrap().count(), 0);
}

#[test]
fn where_the_disk_is_low_what_was_unpacked_goes_unless_it_is_in_use() {
    let Some(scene) = Scene::new() else { return };
    let state = scene.store.root().join("small");
    fs::create_dir(&state).unwrap();
    let shares = state.join("shares");
    // A disk of 64 MiB is always low. One folder is in use, one was a minute ago, and one is old.
    let mount = format!(
        "umask 077; mount -t tmpfs -o size=64m,mode=700 tmpfs '{state}' && for name in used new old; do \
         mkdir -p '{shares}'/eval-once-drvs-$name/cache && : >'{shares}'/eval-once-drvs-$name/lock && \
         touch -d '2 hours ago' '{shares}'/eval-once-drvs-$name/lock; done; \
         touch '{shares}/eval-once-drvs-new/lock'; \
         ls '{shares}' >&2; exec 9<'{shares}/eval-once-drvs-used/lock'; flock -s 9; \"$@\"; ls '{shares}' >&2; true",
        state = state.display(),
        shares = shares.display(),
    );
    let Some(program) = scene.store.eval_once_with_mounts(&mount) else {
        return;
    };
    let ended = program
        .arg("prune")
        .env("EVAL_ONCE_STATE_DIR", &state)
        .run();
    ended
        .passes_on("removed 1 unpacked archive: the disk is low")
        .passes_on("eval-once-drvs-new\neval-once-drvs-used\n");
}
