//! How a recording shares its `.drv`s: as an artifact of the build, or through a store; and what follows where that fails.

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{
    EVAL_ONCE,
    buildkite::{Build, Job, JobState, Outcome},
    recording::Pipeline,
    stand_in::StandIns,
    store::Store,
};

/// Three targets: `c` needs `b`, which has a file of the repository as its source.
const CHAIN: &str = r#"rec {
  a = file "a";
  b = build "b" "read x < ${./source}; echo $x b > $out";
  c = build "c" "read x < ${b}; echo $x c > $out";
}"#;

fn store() -> Option<Store> {
    let store = Store::new()?;
    store.targets(CHAIN);
    store.write("source", "source\n");
    Some(store)
}

/// A build that records what is in the store's working folder, with these flags.
fn build(store: &Store, flags: &str) -> Option<Build> {
    Some(
        Build::new(&json!({
            "key": "record",
            "label": "Record",
            "command": format!("{EVAL_ONCE} pipeline {flags}"),
            "retry": { "automatic": [{ "exit_status": "*", "limit": 1 }] },
        }))?
        .checkout(store.work())
        .envs(store.env())
        .our_hook("command"),
    )
}

/// The recording's job, which went well.
#[track_caller]
fn recorded(build: &Build) -> Job {
    assert_eq!(
        build.run(),
        Outcome::Passed,
        "{}",
        build.job("record").plain()
    );
    let job = build.job("record");
    assert_eq!(job.state, JobState::Passed, "{}", job.plain());
    job
}

/// The records of the steps that were uploaded.
fn records(build: &Build) -> Vec<Value> {
    let uploads = build.uploads();
    let steps = uploads
        .iter()
        .flat_map(|upload| upload["steps"].as_array().unwrap());
    steps
        .map(|step| serde_json::from_str(step["env"]["EVAL_ONCE_STEP"].as_str().unwrap()).unwrap())
        .collect()
}

/// The archives among the artifacts of the build.
fn archives(build: &Build) -> Vec<(String, Vec<u8>)> {
    let mut artifacts: Vec<_> = build.artifacts().into_iter().collect();
    artifacts.retain(|(name, _)| name.starts_with("eval-once-drvs-"));
    artifacts
}

/// The files in an archive, by name.
fn unpacked(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(bytes);
    let entries = archive.entries().unwrap().map(Result::unwrap);
    entries
        .filter(|entry| entry.header().entry_type().is_file())
        .map(|mut entry| {
            let name = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (name, content)
        })
        .collect()
}

/// The store paths of a binary cache, by its files.
fn cached<'a>(files: impl IntoIterator<Item = &'a (String, Vec<u8>)>) -> BTreeSet<String> {
    let narinfos = files.into_iter().filter(|(name, _)| {
        Path::new(name)
            .extension()
            .is_some_and(|it| it == "narinfo")
    });
    narinfos
        .map(|(_, text)| {
            let text = String::from_utf8(text.clone()).unwrap();
            let path = text
                .lines()
                .find_map(|line| line.strip_prefix("StorePath: "));
            path.unwrap().to_owned()
        })
        .collect()
}

/// The files of a folder, as those of an archive.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| {
            let content = fs::read(entry.path()).unwrap();
            (entry.file_name().into_string().unwrap(), content)
        })
        .collect()
}

/// The closure of these attributes' `.drv`s.
fn closure(store: &Store, attrs: &[&str]) -> BTreeSet<String> {
    let drvs = attrs
        .iter()
        .map(|attr| store.instantiate("default.nix", attr));
    let paths = drvs.map(|drv| store.nix("nix-store", ["--query", "--requisites", &drv]));
    paths
        .flat_map(|paths| paths.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

/// What is in the folder for temporary files.
fn temporary(store: &Store) -> Vec<PathBuf> {
    let entries = fs::read_dir(store.root().join("tmp")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// That a log has this part.
#[track_caller]
fn has(log: &str, part: &str) {
    assert!(log.contains(part), "no {part:?} in: {log}");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_recording_in_a_build_shares_the_closure_of_its_drvs_as_an_artifact() {
    let Some(store) = store() else { return };
    let Some(build) = build(&store, "") else {
        return;
    };
    let job = recorded(&build);
    let archives = archives(&build);
    let [(name, bytes)] = &archives[..] else {
        panic!("{} archives: {}", archives.len(), job.plain());
    };
    let sum = hex(&Sha256::digest(bytes));
    assert_eq!(*name, format!("eval-once-drvs-{sum}.tar"));
    let files = unpacked(bytes);
    assert_eq!(cached(&files), closure(&store, &["a", "b", "c"]));
    let size: usize = files.iter().map(|(_, content)| content.len()).sum();
    let records = records(&build);
    assert_eq!(records.len(), 3);
    for record in &records {
        assert_eq!(record["share"], format!("artifact:{name}"), "{record}");
        assert_eq!(record["share-size"], size, "{record}");
        assert_eq!(record.get("keep-days"), None, "{record}");
    }
    let paths = cached(&files).len();
    let line = format!("eval-once: shared {paths} paths of 3 targets: {name}, 0.1 MiB\n");
    has(&job.plain(), &line);
    let document = &build.artifacts()["eval-once.json"];
    let document: Value = serde_json::from_slice(document).unwrap();
    assert!(document["seconds"]["share"].is_number(), "{document:#}");
    assert_eq!(temporary(&store), [""; 0].map(PathBuf::from));
}

#[test]
fn a_recording_by_hand_shares_through_a_store_what_that_does_not_have() {
    let Some(store) = store() else { return };
    let url = format!("file://{}", store.root().join("shared/drvs").display());
    let record = || store.eval_once(["pipeline", "--share", &url]).run();
    let ended = record();
    for (name, step) in Pipeline::of(&ended).steps() {
        assert_eq!(step.record["share"], url, "{name}");
        assert_eq!(step.record.get("share-size"), None, "{name}");
    }
    let all = closure(&store, &["a", "b", "c"]);
    assert_eq!(cached(&files(&store.root().join("shared/drvs"))), all);
    let line = |new| format!("eval-once: shared 3 targets: {url}, {new} new paths\n");
    has(&ended.stderr, &line(all.len()));
    has(&record().stderr, &line(0));
}
