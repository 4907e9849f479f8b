//! How a recording shares its `.drv`s: as an artifact of the build, or through a store; and what follows where that fails.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::Read,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use unix::unistd::chown;

use crate::failures::ordinary_user;
use crate::support::{
    DEADLINE, EVAL_ONCE,
    buildkite::{Build, Job, JobState, Outcome},
    program::{Ended, Program},
    recording::Pipeline,
    stand_in::StandIns,
    store::Store,
    tool,
    web::{Trouble, Web},
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

/// An ordinary user.
const NOBODY: u32 = 65_534;

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

/// So many bytes that no program can compress.
fn noise(bytes: usize, mut state: u32) -> Vec<u8> {
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// That a log has this part.
#[track_caller]
fn has(log: &str, part: &str) {
    assert!(log.contains(part), "no {part:?} in: {log}");
}

fn hex(bytes: &[u8]) -> String {
    let mut hex = String::new();
    for byte in bytes {
        write!(hex, "{byte:02x}").unwrap();
    }
    hex
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

/// A job with an agent that does nothing but keep what is uploaded: what goes wrong with it is a line of its script.
struct OddJob {
    store: Store,
    stand_ins: StandIns,
}

impl OddJob {
    /// In the script `$*` are the agent's arguments.
    fn new(store: Store, fault: &str) -> Self {
        let kept = store.root().join("kept");
        fs::create_dir(&kept).unwrap();
        let script = format!(
            "#!/bin/sh\n\
             echo \"$*\" >>'{kept}/calls'\n\
             {fault}\n\
             case \"$*\" in\n\
             'artifact upload '*) cp \"$3\" '{kept}' ;;\n\
             'pipeline upload '*) cp \"$7\" '{kept}/pipeline' ;;\n\
             esac\n",
            kept = kept.display(),
        );
        let stand_ins = StandIns::new(store.bin()).instead("buildkite-agent", &script);
        Self { store, stand_ins }
    }

    /// A recording with these flags.
    fn recording(&self, flags: &[&str]) -> Program {
        self.store
            .eval_once(["pipeline"])
            .args(flags)
            .env("PATH", self.stand_ins.path(&self.store))
            .env("BUILDKITE", "true")
            .env("BUILDKITE_JOB_ID", "job")
            .env("BUILDKITE_STEP_ID", "step")
            .env("BUILDKITE_BUILD_ID", "build")
            .env("BUILDKITE_AGENT_ACCESS_TOKEN", "token")
    }

    fn record(&self, flags: &[&str]) -> Ended {
        self.recording(flags).run()
    }

    fn kept(&self) -> PathBuf {
        self.store.root().join("kept")
    }

    /// The calls that change the build, by their first words.
    fn changes(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.kept().join("calls")).unwrap_or_default();
        let kinds = ["artifact upload", "pipeline upload", "artifact search"];
        let calls = calls.lines().filter_map(|call| {
            let kind = kinds.iter().find(|kind| call.starts_with(**kind))?;
            let what = call[kind.len()..].trim();
            Some(match *kind {
                "pipeline upload" => (*kind).to_owned(),
                _ => format!(
                    "{kind} {}",
                    what.split(['-', '.', ' '])
                        .take(3)
                        .collect::<Vec<_>>()
                        .join("-")
                ),
            })
        });
        calls.collect()
    }

    /// The archive that was uploaded.
    fn archive(&self) -> Option<PathBuf> {
        let entries = fs::read_dir(self.kept())
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let is_archive = |path: &PathBuf| path.extension().is_some_and(|it| it == "tar");
        entries.filter(is_archive).last()
    }

    /// The store paths in it.
    fn shared(&self) -> BTreeSet<String> {
        let archive = self.archive();
        archive.map_or_else(BTreeSet::new, |file| {
            cached(&unpacked(&fs::read(file).unwrap()))
        })
    }

    /// The records of the steps that were uploaded, by attribute.
    fn records(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.kept().join("pipeline")).unwrap();
        let pipeline: Value = serde_json::from_str(&text).unwrap();
        let steps = pipeline["steps"].as_array().unwrap().iter();
        steps
            .map(|step| {
                serde_json::from_str(step["env"]["EVAL_ONCE_STEP"].as_str().unwrap()).unwrap()
            })
            .collect()
    }
}

/// What a recording changes in its build, where all goes well.
const ALL_CHANGES: [&str; 4] = [
    "artifact upload eval-once-drvs",
    "artifact upload eval-once-plan",
    "pipeline upload",
    "artifact upload eval-once-json",
];

fn odd_job(fault: &str) -> Option<OddJob> {
    Some(OddJob::new(store()?, fault))
}

/// The share fails with this reason in a recording with these flags: a warning, and steps without a share; where it is required,
/// 75 before anything is uploaded.
#[track_caller]
fn fails_to_share(
    job: &OddJob,
    change: impl Fn(Program) -> Program,
    flags: &[&str],
    reason: &[&str],
) {
    let ended = change(job.recording(flags)).run();
    ended.exits(0);
    let warning = ended
        .ours()
        .into_iter()
        .find(|line| line.starts_with("warning: "));
    let warning = warning.unwrap_or_else(|| panic!("no warning: {ended}"));
    has(
        warning,
        "the .drv files are not shared, and steps on other hosts evaluate again: ",
    );
    for part in reason {
        has(&ended.stderr, part);
    }
    let records = job.records();
    assert_eq!(records.len(), 3);
    assert!(
        records.iter().all(|record| record.get("share").is_none()),
        "{records:?}"
    );
    assert_eq!(temporary(&job.store), [""; 0].map(PathBuf::from));

    fs::remove_dir_all(job.kept()).unwrap();
    fs::create_dir(job.kept()).unwrap();
    let ended = change(job.recording(flags)).arg("--share-required").run();
    ended.exits(75);
    for part in reason {
        has(&ended.stderr, part);
    }
    has(
        &ended.stderr,
        "error: nothing is uploaded: cannot share the .drv files, and `share-required` is set: ",
    );
    let uploads = job.changes();
    let uploads: Vec<_> = uploads
        .iter()
        .filter(|change| !change.ends_with("drvs"))
        .collect();
    // What it found is left for a retry.
    assert_eq!(uploads, ["artifact upload eval-once-json"], "{ended}");
}

#[test]
fn the_archive_is_uploaded_before_the_plan_and_the_first_step() {
    let Some(job) = odd_job("") else { return };
    job.record(&[]).exits(0);
    assert_eq!(job.changes(), ALL_CHANGES);
    assert_eq!(job.shared(), closure(&job.store, &["a", "b", "c"]));
    let name = job.archive().unwrap();
    let share = format!("artifact:{}", name.file_name().unwrap().display());
    for record in job.records() {
        assert_eq!(record["share"], share, "{record}");
    }
    // The same again is the same archive.
    job.record(&["--keep-days", "9"]).exits(0);
    assert_eq!(job.archive().unwrap(), name);
    for record in job.records() {
        assert_eq!(record["keep-days"], 9, "{record}");
    }
}

#[test]
fn an_ordinary_user_of_a_daemon_shares_through_both() {
    let Some(job) = odd_job("") else { return };
    let root = job.store.root();
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    let url = format!("file://{}", root.join("home/shared").display());
    let all = closure(&job.store, &["a", "b", "c"]);
    let daemon = job.store.daemon();
    let is_another = ordinary_user();
    let by_user = |program: Program| {
        let program = program.envs(daemon.env());
        if !is_another {
            return program;
        }
        for name in ["work", "tmp", "home", "kept"] {
            chown(&root.join(name), Some(NOBODY.into()), None).unwrap();
        }
        program
            .by_user(NOBODY)
            .env("EVAL_ONCE_STATE_DIR", root.join("home/eo"))
    };
    by_user(job.recording(&[])).run().exits(0);
    assert_eq!(job.changes(), ALL_CHANGES);
    assert_eq!(job.shared(), all);
    by_user(job.recording(&["--share", &url])).run().exits(0);
    assert_eq!(cached(&files(&root.join("home/shared"))), all);
}

#[test]
fn what_needs_no_step_is_not_shared() {
    let Some(job) = odd_job("") else { return };
    let a = job.store.instantiate("default.nix", "a");
    let out = job.store.output(&a, "out");
    job.store.build(&a);
    let all = closure(&job.store, &["a", "b", "c"]);
    let without: BTreeSet<_> = closure(&job.store, &["b", "c"]);
    assert!(without.len() < all.len());
    for (style, shared) in [("mark", &without), ("omit", &without), ("run", &all)] {
        job.record(&["--skip", "built", "--skip-style", style])
            .exits(0);
        assert_eq!(job.shared(), *shared, "{style}");
        fs::remove_file(job.archive().unwrap()).unwrap();
    }
    job.store.delete([&out]);
    job.record(&["--skip", "built"]).exits(0);
    assert_eq!(job.shared(), all, "nothing is skipped");
}

#[test]
fn nothing_is_shared_where_no_step_is_left() {
    let Some(job) = odd_job("") else { return };
    for attr in ["a", "b", "c"] {
        let drv = job.store.instantiate("default.nix", attr);
        job.store.build(&drv);
    }
    job.record(&["--skip", "built"]).exits(0);
    assert_eq!(job.changes(), ALL_CHANGES[1..]);
}

#[test]
fn a_share_that_is_turned_off_is_off_in_steps_too() {
    let Some(job) = odd_job("") else { return };
    job.record(&["--no-share"]).exits(0);
    assert_eq!(job.changes(), ALL_CHANGES[1..]);
    for record in job.records() {
        assert_eq!(record["share"], false, "{record}");
    }
}

#[test]
fn a_dry_run_uploads_and_copies_nothing() {
    let Some(job) = odd_job("") else { return };
    let url = format!("file://{}", job.store.root().join("shared").display());
    for (share, expected) in [("artifact", Value::Null), (&url, url.as_str().into())] {
        let ended = job.record(&["--dry-run", "--share", share]);
        for (name, step) in Pipeline::of(&ended).steps() {
            assert_eq!(step.record["share"], expected, "{name}");
        }
    }
    assert_eq!(job.changes(), [""; 0]);
    assert!(!job.store.root().join("shared").exists());
}

#[test]
fn a_recording_that_fails_for_its_errors_shares_nothing() {
    let Some(job) = odd_job("") else { return };
    job.store.targets("{ a = file \"a\"; b = throw \"no\"; }");
    job.record(&["--on-error", "fail"]).exits(65);
    // What was found is left in eval-once.json, and no archive beside it.
    assert_eq!(job.changes(), ["artifact upload eval-once-json"]);
}

#[test]
fn by_hand_the_hosts_setting_counts_where_it_is_a_store_and_an_artifact_is_refused() {
    let Some(store) = store() else { return };
    let shares = |share: &str, flags: &[&str]| {
        let ended = store
            .eval_once(["pipeline"])
            .args(flags)
            .env("EVAL_ONCE_SHARE", share)
            .run();
        let steps = Pipeline::of(&ended).steps();
        steps["[\"a\"]"].record.get("share").cloned()
    };
    let url = |name| format!("file://{}", store.root().join(name).display());
    assert_eq!(shares(&url("one"), &[]), Some(url("one").into()));
    assert_eq!(cached(&files(&store.root().join("one"))).len(), 4);
    assert_eq!(
        shares(&url("one"), &["--share", &url("two")]),
        Some(url("two").into())
    );
    assert_eq!(shares(&url("one"), &["--no-share"]), Some(false.into()));
    assert_eq!(shares("artifact", &[]), None);
    let ended = store.eval_once(["pipeline", "--share", "artifact"]).run();
    ended.exits(64).says(&[
        "error: `share: artifact` needs a job: by hand there is no build for the artifact",
        "hint: set `share` to the URL of a store, or leave it out",
    ]);
}

#[test]
fn only_what_a_store_does_not_have_is_copied() {
    let Some(store) = store() else { return };
    let url = format!("file://{}", store.root().join("shared").display());
    let new = || {
        let ended = store.eval_once(["pipeline", "--share", &url]).run();
        let line = ended
            .ours()
            .into_iter()
            .find(|line| line.starts_with("shared "));
        let (_, new) = line.unwrap().rsplit_once(", ").unwrap();
        new.to_owned()
    };
    assert_eq!(new(), "4 new paths");
    assert_eq!(new(), "0 new paths");
    // `b`, which has it as a source, and `c`, which needs `b`.
    store.write("source", "another source\n");
    assert_eq!(new(), "3 new paths");
}

#[test]
fn an_unchanged_recording_asks_a_store_nothing_unless_that_has_changed() {
    let Some(store) = store() else { return };
    // Nothing is copied by this one.
    let copies_nothing = "case \"$*\" in *' copy '*) echo 'error: cannot copy' >&2; exit 1;; esac";
    let stand_ins = StandIns::new(store.bin()).before("nix", copies_nothing);
    let shared = store.root().join("shared");
    let url = format!("file://{}", shared.display());
    let record = || store.eval_once(["pipeline", "--share", &url]);
    let says = |program: &Program, part: &str| {
        let ended = program.run();
        ended.exits(0);
        has(&ended.stderr, part);
    };
    // Where it would have to be asked, it cannot be.
    let cannot_ask = record().env("PATH", stand_ins.path(&store));
    says(&record(), "4 new paths");
    // What came while it was copied to may be more than ours, and what went as well: once more it is asked.
    says(&cannot_ask, "are not shared");
    says(&record(), "0 new paths");
    says(&cannot_ask, "0 new paths");
    let files = files(&shared);
    let narinfo = files.iter().find(|(name, _)| name.ends_with(".narinfo"));
    fs::remove_file(shared.join(&narinfo.unwrap().0)).unwrap();
    says(&cannot_ask, "are not shared");
    says(&record(), "1 new path");
    says(&record(), "0 new paths");
    says(&cannot_ask, "0 new paths");
    fs::remove_dir_all(&shared).unwrap();
    says(&record(), "4 new paths");
}

#[test]
fn more_than_the_limit_is_not_shared_and_the_largest_paths_are_named() {
    let Some(job) = odd_job("") else { return };
    fs::write(job.store.work().join("source"), noise(900_000, 1)).unwrap();
    job.record(&["--share-limit", "1"]).exits(0);
    assert_eq!(job.changes(), ALL_CHANGES, "as much is shared");
    fs::write(job.store.work().join("source"), noise(2_000_000, 2)).unwrap();
    let source = "-source (2 MiB), ";
    let reason = [
        "they take more than 1 MiB compressed, and 2 MiB unpacked; the largest: ",
        source,
        "hint: raise `share-limit` (in MiB), or keep large files out of what the targets use as source",
    ];
    fails_to_share(&job, |program| program, &["--share-limit", "1"], &reason);
}

#[test]
fn an_archive_that_cannot_be_uploaded_is_a_warning() {
    let fault = "case \"$*\" in *eval-once-drvs-*) echo 'fatal: 507 no room' >&2; exit 1 ;; esac";
    let Some(job) = odd_job(fault) else { return };
    let reason = [
        "cannot upload the archive: `buildkite-agent artifact upload ",
        "fatal: 507 no room",
    ];
    fails_to_share(&job, |program| program, &[], &reason);
}

#[test]
fn an_upload_that_stands_still_is_given_up() {
    let fault = "case \"$*\" in *eval-once-drvs-*) exec sleep 1000 ;; esac";
    let Some(job) = odd_job(fault) else { return };
    let ended = job.record(&["--share-required"]);
    ended.exits(75);
    has(
        &ended.stderr,
        "cannot upload the archive: 0.1 MiB took longer than 30 s",
    );
}

#[test]
fn without_the_program_nix_nothing_is_recorded() {
    let Some(job) = odd_job("") else { return };
    for name in ["nix-store", "nix-instantiate", "sh", "cp", "echo"] {
        symlink(tool(name).unwrap(), job.store.bin().join(name)).unwrap();
    }
    let recording = job.recording(&["--skip", "none"]);
    let ended = recording.env("PATH", job.store.bin()).run();
    ended.exits(69);
    has(&ended.stderr, "cannot run nix: No such file or directory");
    assert_eq!(job.changes(), [""; 0]);
}

/// `nix-eval-jobs` evaluates without it.
#[test]
fn where_only_the_share_needs_the_program_nix_its_absence_is_a_warning() {
    let Some(job) = odd_job("") else { return };
    let lines = ["a", "b", "c"].map(|attr| {
        let drv = job.store.instantiate("default.nix", attr);
        let line = json!({ "attr": attr, "attrPath": [attr], "drvPath": drv, "inputDrvs": {} });
        format!("echo '{line}'\n")
    });
    let lines = lines.concat();
    let folder = job.store.root().join("without-nix");
    StandIns::new(&folder)
        .instead("nix-eval-jobs", &format!("#!/bin/sh\n{lines}"))
        .instead(
            "buildkite-agent",
            &fs::read_to_string(job.store.bin().join("buildkite-agent")).unwrap(),
        );
    for name in ["nix-store", "nix-instantiate", "sh", "cp", "echo"] {
        symlink(tool(name).unwrap(), folder.join(name)).unwrap();
    }
    fails_to_share(
        &job,
        |recording| recording.env("PATH", &folder),
        &["--skip", "none", "--evaluator", "nix-eval-jobs"],
        &["cannot run nix: No such file or directory"],
    );
}

#[test]
fn a_full_disk_is_a_warning() {
    let Some(job) = odd_job("") else { return };
    fs::write(job.store.work().join("source"), noise(3_000_000, 3)).unwrap();
    let tmp = job.store.root().join("small");
    fs::create_dir(&tmp).unwrap();
    let script = format!("mount -t tmpfs -o size=512k small {}", tmp.display());
    let Some(mounted) = job.store.with_mounts(&script) else {
        return;
    };
    let small = |program: Program| program.behind(&mounted).env("TMPDIR", &tmp);
    let reason = format!("(the disk of {} has 0 MiB free)", tmp.display());
    fails_to_share(&job, small, &[], &["cannot copy to an archive: ", &reason]);
}

#[test]
fn a_folder_for_temporary_files_may_have_an_odd_name() {
    let Some(job) = odd_job("") else { return };
    let tmp = job.store.root().join("it's \"a\" folder %20");
    fs::create_dir(&tmp).unwrap();
    job.recording(&[]).env("TMPDIR", &tmp).run().exits(0);
    assert_eq!(job.changes(), ALL_CHANGES);
    assert_eq!(job.shared().len(), 4);
    assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0);
}

#[test]
fn a_retry_looks_for_the_archive_of_an_earlier_try_and_uploads_it_where_it_is_not_there() {
    let answer = |sum: &str| format!("case \"$*\" in 'artifact search'*) {sum} ;; esac");
    let own = r#"sum=${3#eval-once-drvs-}; echo "abc;${sum%.tar};""#;
    let search = "artifact search eval-once-drvs";
    for (sum, is_there) in [
        (own, true),
        ("echo '0123;'", false),
        ("true", false),
        ("echo no answer >&2; exit 1", false),
    ] {
        let Some(job) = odd_job(&answer(sum)) else {
            return;
        };
        let retry = job.recording(&[]).env("BUILDKITE_RETRY_COUNT", "1").run();
        retry.exits(0);
        let changes = job.changes();
        assert_eq!(changes[0], search, "{retry}");
        let expected = &ALL_CHANGES[usize::from(is_there)..];
        assert_eq!(changes[1..], *expected, "{sum}: {retry}");
        let sentence = " (uploaded by an earlier try)\n";
        assert_eq!(retry.stderr.contains(sentence), is_there, "{retry}");
        for record in job.records() {
            has(
                record["share"].as_str().unwrap(),
                "artifact:eval-once-drvs-",
            );
        }
    }
}

#[test]
fn a_recording_killed_between_its_archive_and_its_plan_uploads_the_archive_once() {
    let Some(store) = store() else { return };
    let Some(build) = build(&store, "") else {
        return;
    };
    // `$PPID` is the recording.
    let kill = "case \"$BUILDKITE_RETRY_COUNT $*\" in '0 artifact upload eval-once-plan.json') kill -KILL $PPID; exit 1 ;; esac";
    let Some(agent) = crate::support::agent::program() else {
        return;
    };
    let real = agent.with_file_name("buildkite-agent");
    let script = format!(
        "#!/bin/sh\necho \"$BUILDKITE_RETRY_COUNT $*\" >>'{}'\n{kill}\nexec '{}' \"$@\"\n",
        store.root().join("calls").display(),
        if real.exists() { real } else { agent }.display(),
    );
    let _ = StandIns::new(store.bin()).instead("buildkite-agent", &script);
    let path = format!("export PATH='{}':\"$PATH\"\n", store.bin().display());
    let build = build.shell_hook("pre-command", &path);
    let job = recorded(&build);
    assert_eq!(job.retry_count, 1);
    let calls = fs::read_to_string(store.root().join("calls")).unwrap();
    let uploads: Vec<&str> = calls
        .lines()
        .filter(|call| call.contains("artifact upload eval-once-drvs-"))
        .collect();
    assert_eq!(uploads.len(), 1, "{calls}");
    assert!(uploads[0].starts_with("0 "), "{calls}");
    has(&job.plain(), " (uploaded by an earlier try)\n");
    let (name, _) = &archives(&build)[0];
    for record in records(&build) {
        assert_eq!(record["share"], format!("artifact:{name}"), "{record}");
    }
}

#[test]
fn a_recording_that_follows_its_plan_shares_nothing_again() {
    let Some(store) = store() else { return };
    let Some(build) = build(&store, "--chunk 1") else {
        return;
    };
    build.on_upload(2, crate::support::buildkite::Fault::KillBefore);
    let job = recorded(&build);
    assert_eq!(job.retry_count, 1);
    assert!(!job.plain().contains("shared "), "{}", job.plain());
    assert_eq!(archives(&build).len(), 1);
}

#[test]
fn a_recording_that_is_stopped_while_it_shares_leaves_nothing_behind() {
    let fault = "case \"$*\" in *eval-once-drvs-*) exec sleep 1000 ;; esac";
    let Some(job) = odd_job(fault) else { return };
    let running = job.recording(&[]).start();
    crate::support::until("the archive is being uploaded", || {
        !job.changes().is_empty()
    });
    unix::sys::signal::kill(running.pid(), unix::sys::signal::Signal::SIGTERM).unwrap();
    running.end().exits(143);
    assert_eq!(temporary(&job.store), [""; 0].map(PathBuf::from));
    // What it found is left for a retry.
    let left = [ALL_CHANGES[0], "artifact upload eval-once-json"];
    assert_eq!(job.changes(), left);
}

/// By hand, a store that cannot be written is a warning, or 75.
#[track_caller]
fn store_fails(store: &Store, url: &str, reason: &str) {
    let ended = store.eval_once(["pipeline", "--share", url]).run();
    for (name, step) in Pipeline::of(&ended).steps() {
        assert_eq!(step.record.get("share"), None, "{name}");
    }
    ended.says(&[
        "evaluated 3 attributes",
        &format!("warning: the .drv files are not shared, and steps on other hosts evaluate again: {reason}"),
        "recorded 3 attributes",
    ]);
    let ended = store
        .eval_once(["pipeline", "--share", url, "--share-required"])
        .run();
    ended.exits(75).prints("").passes_on(reason);
}

#[test]
fn a_store_that_cannot_be_written_is_a_warning() {
    let Some(store) = store() else { return };
    let below_a_file = format!("file://{}/default.nix/x", store.work().display());
    store_fails(
        &store,
        &below_a_file,
        &format!("cannot copy to {below_a_file}: "),
    );
    let folder = store.root().join("web");
    fs::create_dir(&folder).unwrap();
    fs::write(
        folder.join("nix-cache-info"),
        format!("StoreDir: {}\n", store.folder().display()),
    )
    .unwrap();
    for (part, status) in [(".narinfo", 500), ("nar/", 403)] {
        let web = Web::serve(&folder);
        web.spoil(part, Trouble::Answers(status));
        store_fails(
            &store,
            &web.url(),
            &format!("cannot copy to {}: ", web.url()),
        );
    }
    let control = Web::serve(&folder);
    let ended = store
        .eval_once(["pipeline", "--share", &control.url()])
        .run();
    has(
        &ended.stderr,
        &format!("shared 3 targets: {}, 4 new paths", control.url()),
    );
}

#[test]
fn a_store_that_answers_nothing_is_given_up_after_30_seconds() {
    let Some(store) = store() else { return };
    let web = Web::serve(store.root().join("web"));
    web.spoil("", Trouble::IsSilent);
    let began = std::time::Instant::now();
    let ended = store.eval_once(["pipeline", "--share", &web.url()]).run();
    ended.exits(0);
    has(
        &ended.stderr,
        &format!("cannot copy to {}: nothing has moved for 30 s", web.url()),
    );
    assert!(began.elapsed() < DEADLINE, "{ended}");
}
