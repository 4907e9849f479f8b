//! A step whose `.drv` is not on its host: it comes from a share, as an archive that is an artifact of the build, or a store.

use std::{fs, path::PathBuf};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::support::{
    EVAL_ONCE,
    agent::program,
    buildkite::{Build, Outcome},
    program::Program,
    stand_in::StandIns,
    store::Store,
    target::Target,
};

/// A host that once had a target, and shared it: what evaluates it again throws, so that a wrong way shows.
struct Scene {
    store: Store,
    target: Target,
    /// The share as a folder of a binary cache.
    cache: PathBuf,
}

impl Scene {
    fn new() -> Option<Self> {
        let store = Store::new()?;
        store
            .targets("rec { dep = file \"dep\"; hello = build \"hello\" \"echo ${dep} > $out\"; }");
        let target = store.target("hello");
        let cache = store.root().join("cache");
        let scene = Self {
            store,
            target,
            cache,
        };
        scene.share();
        scene.forget();
        scene.store.poison();
        Some(scene)
    }

    /// Copies the `.drv` and what it needs into the share.
    fn share(&self) {
        let url = format!("file://{}?compression=zstd", self.cache.display());
        let copy = ["copy", "--derivation", "--to", &url, &self.target.drv];
        self.store.nix("nix", copy);
    }

    /// Removes the `.drv` and what it needs from the store.
    fn forget(&self) {
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
        for file in ["nix-cache-info", "nar"] {
            archive
                .append_path_with_name(self.cache.join(file), file)
                .unwrap();
        }
        for folder in ["", "nar/"] {
            for entry in self.cache.join(folder).read_dir().unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                if name.ends_with(".narinfo") || !folder.is_empty() {
                    let name = format!("{folder}{name}");
                    archive
                        .append_path_with_name(self.cache.join(&name), &name)
                        .unwrap();
                }
            }
        }
        let bytes = archive.into_inner().unwrap();
        (name_of(&bytes), bytes)
    }

    /// The step with this share, in no job.
    fn step(&self, share: &str) -> Program {
        let mut flags = self.target.flags();
        flags
            .extend(["--file", "default.nix", "--attr", "hello", "--share", share].map(Into::into));
        self.store.step(flags)
    }

    /// The step in a job whose `buildkite-agent` downloads these bytes as the artifact `name`, by this script (`$TO` is the file
    /// to write, `$FROM` has the bytes).
    fn job(&self, name: &str, bytes: &[u8], script: &str) -> (Program, StandIns) {
        let from = self.store.root().join("artifact");
        fs::write(&from, bytes).unwrap();
        let agent = format!(
            "#!/bin/sh\nprintf '%s\\037' \"$@\" >>'{calls}'; printf '\\036' >>'{calls}'\nFROM='{from}'; TO=\"$4{name}\"\n{script}\n",
            calls = self.store.bin().join(".buildkite-agent.calls").display(),
            from = from.display(),
        );
        let stand_ins = StandIns::new(self.store.bin()).instead("buildkite-agent", &agent);
        let step = self
            .step(&format!("artifact:{name}"))
            .envs([
                ("BUILDKITE_JOB_ID", "job"),
                ("BUILDKITE_BUILD_ID", "build"),
                ("BUILDKITE_AGENT_ACCESS_TOKEN", "token"),
            ])
            .env("PATH", stand_ins.path(&self.store));
        (step, stand_ins)
    }
}

/// The name of the archive with these bytes.
fn name_of(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("eval-once-drvs-{hex}.tar")
}

/// What downloads.
const DOWNLOADS: &str = "cp \"$FROM\" \"$TO\"";

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
        for link in scene.store.links().keys() {
            fs::remove_file(scene.store.work().join(link)).unwrap();
        }
        scene.forget();
    }
    assert_eq!(stand_ins.calls("buildkite-agent").len(), 1);
}

#[test]
fn a_real_agent_downloads_the_archive_of_its_build() {
    let Some(scene) = Scene::new() else { return };
    let Some(_) = program() else { return };
    let (name, bytes) = scene.archive();
    fs::write(scene.store.work().join(&name), bytes).unwrap();
    let record = scene.target.record(
        &json!({ "share": format!("artifact:{name}"), "attr": ["hello"], "file": "default.nix" }),
    );
    let steps = json!({ "steps": [{
        "key": "build", "command": format!("{EVAL_ONCE} step"), "env": { "EVAL_ONCE_STEP": record.to_string() },
    }] });
    fs::write(scene.store.work().join("steps.json"), steps.to_string()).unwrap();
    let upload = format!(
        "buildkite-agent artifact upload {name} && rm {name} && buildkite-agent pipeline upload --no-interpolation steps.json"
    );
    let Some(build) = Build::new(&json!({ "key": "record", "command": upload })) else {
        return;
    };
    let build = build.checkout(scene.store.work()).envs(scene.store.env());
    assert_eq!(
        build.run(),
        Outcome::Passed,
        "{}",
        build.job("build").plain()
    );
    let log = build.job("build").plain();
    assert!(log.contains("fetched-from-share"), "{log}");
}
