//! A fleet: one host records, others build, each with a store of its own, and only a share between them. The second host cannot
//! evaluate, wherever it should not have to.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use serde_json::json;
use tempfile::TempDir;
use unix::sys::signal::{Signal, killpg};

use crate::{
    failures::ordinary_user,
    outputs::is_nix,
    support::{
        EVAL_ONCE,
        agent::{commit, is_old, plugin_repository},
        buildkite::{Build, Fault, Job, JobState, Outcome},
        processes::kill_marked,
        program::Program,
        s3::S3,
        ssh::Sshd,
        stand_in::StandIns,
        store::Store,
        target::Target,
        tool,
        web::{Trouble, Web},
    },
};

/// A user who is neither root nor trusted by a daemon.
const USER: u32 = 65534;

/// Two hosts that have nothing in common but their stores' prefix. Neither takes from elsewhere what only a signature could prove.
struct Fleet {
    builds: Store,
    records: Store,
}

impl Fleet {
    /// The first host has these targets in its working folder.
    fn new(targets: &str) -> Option<Self> {
        let records = Store::new()?;
        let builds = records.another_host()?;
        for host in [&records, &builds] {
            host.configure("require-sigs = true");
        }
        records.targets(targets);
        records.write("data", "data\n");
        Some(Self { builds, records })
    }

    /// A build whose first step records on the first host, by these keys of the program (those of the steps apart); all others run on
    /// the second host.
    fn build(&self, flags: &str) -> Option<Build> {
        // What else the recording's job does the steps wait for.
        let step = json!({ "agents": { "host": "builds" }, "depends_on": "record" });
        let build = Build::new(&json!({
            "key": "record",
            "label": "Record",
            "command": format!("{EVAL_ONCE} pipeline --step '{step}' {flags}"),
            "agents": { "host": "records" },
            "retry": { "automatic": [{ "exit_status": "*", "limit": 1 }] },
        }))?;
        Some(
            build
                .checkout(self.records.work())
                .our_hook("command")
                .agents(0)
                .agents_of((&self.records, "records"), 1, None, NOTHING),
        )
    }

    /// Takes everything from the second host.
    fn forget(&self) {
        for root in fs::read_dir(self.builds.state().join("gcroots/auto")).unwrap() {
            fs::remove_file(root.unwrap().path()).unwrap();
        }
        let state = self.builds.our_state();
        if state.is_dir() {
            fs::remove_dir_all(state).unwrap();
        }
        self.builds.collect();
    }

    /// What the attribute is on the first host, and a binary cache of its `.drv` below `folder`, which both hosts see.
    fn shared(&self, attribute: &str, folder: &Path, parameters: &str) -> Target {
        let target = self.records.target(attribute);
        let url = format!("file://{}{parameters}", folder.display());
        let copy = ["copy", "--derivation", "--to", &url, &target.drv];
        self.records.nix("nix", copy);
        assert!(!self.builds.has(&target.drv));
        target
    }

    /// The step of a target on the second host, with this share. It could evaluate as well.
    fn step(&self, target: &Target, share: &str) -> Program {
        self.builds
            .write("default.nix", &read(&self.records, "default.nix"));
        self.builds.write("data", &read(&self.records, "data"));
        self.builds
            .step(target.flags())
            .args(["--file", "default.nix", "--attr", "hello"])
            .args(["--share", share])
    }
}

/// No variables.
const NOTHING: [(&str, &str); 0] = [];

/// What keeps a host from evaluating.
const NEVER_EVALUATES: [(&str, &str); 1] = [("EVAL_ONCE_POLICY", "recorded-only")];

fn read(store: &Store, name: &str) -> String {
    fs::read_to_string(store.work().join(name)).unwrap()
}

/// One target that needs another, with a file of the repository.
const HELLO: &str = r#"rec {
  dep = build "dep" "read x <${./data}; echo $x >$out";
  hello = build "hello" "read x <${dep}; echo hello, $x >$out";
}"#;

const FETCHED: &str = "fetched (fetched-from-share)";

/// What a step says where that way failed.
const NOT_FETCHED: &str = "cannot be fetched from";

/// The jobs that were not the recording's, each step's last.
fn steps(build: &Build) -> Vec<Job> {
    let mut jobs = build.jobs();
    jobs.retain(|job| job.key.as_deref() != Some("record") && !job.is_retried);
    jobs
}

/// Runs a build, which passes, with each of its steps in this way. Returns how many steps there are.
#[track_caller]
fn all_go(build: &Build, expected: &str) -> usize {
    let outcome = build.run();
    let recorded = build.job("record").plain();
    assert_eq!(recorded.matches(" warning: ").count(), 0, "{recorded}");
    // One that failed before those that depend on it.
    let mut steps_first = steps(build);
    steps_first.sort_by_key(|job| job.state == JobState::DependencyFailed);
    for job in steps_first {
        assert_eq!(job.way(), expected, "{}\n{recorded}", job.plain());
    }
    assert_eq!(outcome, Outcome::Passed, "{recorded}");
    steps(build).len()
}

#[test]
fn with_nothing_configured_eight_steps_on_a_second_host_fetch_from_one_download() {
    let Some(fleet) = Fleet::new(
        r#"builtins.listToAttrs (map (name: { inherit name; value =
             build name "read x <${./data}; echo ${name} $x >$out"; }) [ "a" "b" "c" "d" "e" "f" "g" "h" ])"#,
    ) else {
        return;
    };
    let Some(_) = tool("git") else { return };
    let repositories = TempDir::new().unwrap();
    let plugin = plugin_repository(repositories.path());
    let keys = json!({ "step": { "agents": { "host": "builds" } } });
    let Some(build) = Build::new(&json!({
        "key": "record",
        "plugins": [{ plugin: { "pipeline": keys } }],
        "agents": { "host": "records" },
    })) else {
        return;
    };
    let build = build
        .checkout(fleet.records.work())
        .envs([("EVAL_ONCE_BIN", EVAL_ONCE)])
        .agents(0)
        .agents_of((&fleet.records, "records"), 1, None, NOTHING)
        .agents_of((&fleet.builds, "builds"), 8, None, NEVER_EVALUATES);
    assert_eq!(all_go(&build, FETCHED), 8);
    assert_eq!(build.files().downloads(ARCHIVE), 1);
}

/// What the names of archives begin with.
const ARCHIVE: &str = "eval-once-drvs-";

#[test]
fn the_summary_says_which_steps_were_fetched_and_whose_share_failed() {
    for (trouble, row, what) in [
        (
            None,
            "| built | fetched (fetched&#45;from&#45;share) |",
            "fetching from shares",
        ),
        (
            Some(Trouble::IsCorrupted),
            "| built | evaluated (drv&#45;missing) |",
            "**Share failed:** at 2 steps.",
        ),
    ] {
        let Some(fleet) = Fleet::new(HELLO) else {
            return;
        };
        let Some(build) = fleet.build("--summary") else {
            return;
        };
        let build = build.agents_of((&fleet.builds, "builds"), 1, None, NOTHING);
        if let Some(trouble) = trouble {
            build.files().spoil(ARCHIVE, trouble);
        }
        assert_eq!(build.run(), Outcome::Passed);
        let body = &build.annotations()["eval-once-summary"].body;
        assert_eq!(body.matches(row).count(), 2, "{body}");
        assert_eq!(body.matches(what).count(), 1, "{body}");
    }
}

#[test]
fn an_ordinary_user_behind_a_daemon_fetches_what_a_recording_that_was_killed_has_shared() {
    // The recording builds something itself, which the other host neither needs nor gets.
    let Some(fleet) = Fleet::new(
        r#"let greeting = build "greeting" "echo '\"hello\"' >$out"; in rec {
             dep = build "dep" "read x <${./data}; echo $x >$out";
             hello = build "hello" "read x <${dep}; echo ${import greeting}, $x >$out";
           }"#,
    ) else {
        return;
    };
    if !ordinary_user() {
        return;
    }
    let Some(build) = fleet.build("") else { return };
    fleet.builds.open_to(USER);
    let daemon = fleet.builds.daemon();
    let variables = daemon.env().into_iter();
    let never = NEVER_EVALUATES.map(|(name, value)| (name.into(), value.into()));
    let variables = variables.chain(never);
    let build = build.agents_of((&fleet.builds, "builds"), 2, Some(USER), variables);
    build.on_upload(1, Fault::KillBefore);
    assert_eq!(all_go(&build, FETCHED), 2);
    assert_eq!(build.job("record").retry_count, 1);
    assert_eq!(build.files().downloads(ARCHIVE), 1);
    let archives = build.artifacts().into_keys();
    assert_eq!(archives.filter(|name| name.starts_with(ARCHIVE)).count(), 1);
}

#[test]
fn a_step_on_a_second_host_needs_no_checkout_and_makes_one_where_it_has_to_evaluate() {
    let Some(fleet) = Fleet::new(HELLO) else {
        return;
    };
    let Some(_) = tool("git") else { return };
    // Where the second host sees it, too.
    let folder = TempDir::new().unwrap();
    for name in ["default.nix", "data"] {
        fs::write(folder.path().join(name), read(&fleet.records, name)).unwrap();
    }
    let repository = commit(folder.path());
    let repository = repository.strip_suffix("#main").unwrap();
    for (trouble, expected) in [
        (None, FETCHED),
        (Some(Trouble::Answers(404)), "evaluated (drv-missing)"),
    ] {
        let Some(build) = fleet.build("--file default.nix --checkout fallback") else {
            return;
        };
        let instead = format!("url.{repository}.insteadOf");
        let build = build
            .envs([
                ("GIT_CONFIG_COUNT", "1"),
                ("GIT_CONFIG_KEY_0", &instead),
                ("GIT_CONFIG_VALUE_0", "https://example.com/repository.git"),
            ])
            .agents_of((&fleet.builds, "builds"), 1, None, NOTHING);
        if let Some(trouble) = trouble {
            build.files().spoil(ARCHIVE, trouble);
        }
        if is_old() {
            // It would make a checkout.
            build.run();
            let log = build.job("record").plain();
            assert!(log.contains("needs buildkite-agent 3.116"), "{log}");
            return;
        }
        assert_eq!(all_go(&build, expected), 2);
        let checkouts = fleet.builds.our_state().join("checkouts");
        let made = fs::read_dir(checkouts).map_or(0, Iterator::count);
        assert_eq!(made, usize::from(trouble.is_some()));
        fleet.forget();
    }
}

#[test]
fn an_archive_that_is_an_artifact_twice_is_downloaded_all_the_same() {
    let Some(fleet) = Fleet::new(HELLO) else {
        return;
    };
    // As two recordings of the same targets do.
    let again = format!(
        "&& buildkite-agent artifact download '{ARCHIVE}*' . && buildkite-agent artifact upload '{ARCHIVE}*'"
    );
    let Some(build) = fleet.build(&again) else {
        return;
    };
    let build = build.agents_of((&fleet.builds, "builds"), 1, None, NEVER_EVALUATES);
    assert_eq!(all_go(&build, FETCHED), 2);
    // Once by the recording's job, and both of them by the first step.
    assert_eq!(build.files().downloads(ARCHIVE), 3);
}

#[test]
fn a_share_is_any_store_that_nix_copies_to_and_from() {
    let Some(fleet) = Fleet::new(HELLO) else {
        return;
    };
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let web = Web::serve(at("web"));
    let third = fleet.records.another_host().unwrap();
    let sshd = Sshd::start(&third);
    let s3 = S3::start(&fleet.records);
    let shares = [
        Some(format!("file://{}", at("file").display())),
        Some(web.url()),
        sshd.as_ref().map(|_| "ssh-ng://host".to_owned()),
        // Read by `nix copy` it fails with 2.8: "operation 'getFSAccessor' is not supported by store 'ssh://…'".
        sshd.as_ref()
            .filter(|_| !is_nix("2.8"))
            .map(|_| "ssh://other".to_owned()),
        s3.as_ref().map(S3::url),
    ];
    for share in shares.into_iter().flatten() {
        let Some(build) = fleet.build(&format!("--share '{share}'")) else {
            return;
        };
        let ssh = sshd.as_ref().map(Sshd::env);
        let build = build.envs(ssh.into_iter().flatten()).agents_of(
            (&fleet.builds, "builds"),
            1,
            None,
            NEVER_EVALUATES,
        );
        assert_eq!(all_go(&build, FETCHED), 2, "{share}");
        let archives = build.artifacts().into_keys();
        assert_eq!(archives.filter(|name| name.starts_with(ARCHIVE)).count(), 0);
        fleet.forget();
    }
    assert!(web.downloads(".narinfo") > 0);
}

/// A download of an archive that goes wrong, and what the step says of it; nothing where it gets there all the same.
const DOWNLOADS: [(Trouble, Option<&str>); 7] = [
    (Trouble::Answers(403), Some("403")),
    (Trouble::Answers(404), Some("404")),
    (Trouble::BreaksOff, Some("unexpected EOF")),
    (Trouble::IsCorrupted, Some("another SHA-256")),
    (Trouble::IsSilent, Some("not moved for 30 s")),
    (Trouble::Stalls, Some("not moved for 30 s")),
    // Slow, and for longer than what may stand still.
    (Trouble::Trickles(33, Duration::from_secs(1)), None),
];

/// A share over HTTP that goes wrong where the path has this part, and what the step says of it.
const STORES: [(&str, Trouble, Option<&str>); 8] = [
    // Each version of Nix has words of its own for it.
    ("", Trouble::Answers(403), Some("")),
    ("", Trouble::Answers(500), Some("500")),
    // Nix remembers for an hour that a path was not there.
    (".narinfo", Trouble::Answers(404), Some("hello.drv")),
    ("/nar/", Trouble::BreaksOff, Some("nar")),
    ("/nar/", Trouble::IsCorrupted, Some("")),
    ("", Trouble::IsSilent, Some("nothing has moved for 30 s")),
    ("/nar/", Trouble::Stalls, Some("nothing has moved for 30 s")),
    // Three files, one after the other.
    ("/nar/", Trouble::Trickles(11, Duration::from_secs(1)), None),
];

/// All at the same time: most of it is waiting.
#[test]
fn a_share_that_goes_wrong_is_said_once_and_the_step_evaluates_and_with_one_that_does_not_it_fetches()
 {
    thread::scope(|scope| {
        for (trouble, says) in DOWNLOADS {
            scope.spawn(move || from_an_artifact(trouble, says));
        }
        for (part, trouble, says) in STORES {
            scope.spawn(move || over_http(part, trouble, says));
        }
        scope.spawn(over_ssh_from_a_host_that_hangs);
        scope.spawn(several_from_one_download_that_hangs);
    });
}

fn from_an_artifact(trouble: Trouble, says: Option<&str>) {
    let Some(fleet) = Fleet::new("{ hello = build \"hello\" \"echo hello >$out\"; }") else {
        return;
    };
    let Some(build) = fleet.build("") else { return };
    let build = build.agents_of((&fleet.builds, "builds"), 1, None, NOTHING);
    build.files().spoil(ARCHIVE, trouble);
    let Some(says) = says else {
        all_go(&build, FETCHED);
        return;
    };
    all_go(&build, "evaluated (drv-missing)");
    let job = steps(&build).remove(0);
    let log = job.plain();
    let told = |line: &&str| line.contains(NOT_FETCHED) && line.contains(says);
    assert_eq!(log.lines().filter(told).count(), 1, "{trouble:?}: {log}");
    build.files().mend();
    fleet.forget();
    build.retry(&job.id);
    all_go(&build, FETCHED);
}

fn several_from_one_download_that_hangs() {
    let Some(fleet) = Fleet::new("{ a = file \"a\"; b = file \"b\"; c = file \"c\"; }") else {
        return;
    };
    let Some(build) = fleet.build("") else { return };
    let build = build.agents_of((&fleet.builds, "builds"), 3, None, NOTHING);
    build.files().spoil(ARCHIVE, Trouble::Stalls);
    assert_eq!(all_go(&build, "evaluated (drv-missing)"), 3);
    assert_eq!(build.files().downloads(ARCHIVE), 1);
}

fn over_http(part: &str, trouble: Trouble, says: Option<&str>) {
    let Some(fleet) = Fleet::new(HELLO) else {
        return;
    };
    let folder = TempDir::new().unwrap();
    let target = fleet.shared("hello", folder.path(), "?compression=zstd");
    let web = Web::serve(folder.path());
    web.spoil(part, trouble);
    let step = fleet.step(&target, &web.url());
    let ended = step.run();
    let Some(says) = says else {
        ended.takes("fetched", "fetched-from-share");
        return;
    };
    ended.takes("evaluated", "drv-missing");
    let told = |line: &&str| line.contains(NOT_FETCHED) && line.contains(says);
    let told = ended.stderr.lines().filter(told).count();
    assert_eq!(told, 1, "{part} {trouble:?}: {ended}");
    fs::remove_file(fleet.builds.work().join("result")).unwrap();
    fleet.forget();
    web.mend();
    step.run().takes("fetched", "fetched-from-share");
}

fn over_ssh_from_a_host_that_hangs() {
    let Some(fleet) = Fleet::new(HELLO) else {
        return;
    };
    let third = fleet.records.another_host().unwrap();
    let Some(sshd) = Sshd::start(&third) else {
        return;
    };
    let target = fleet.records.target("hello");
    let copy = fleet.records.program("nix").envs(sshd.env());
    let to = ["copy", "--derivation", "--to", "ssh-ng://host", &target.drv];
    copy.args(to).run().exits(0);
    sshd.freeze();
    let ended = fleet.step(&target, "ssh-ng://host").envs(sshd.env()).run();
    ended
        .takes("evaluated", "drv-missing")
        .passes_on("nothing has moved for 30 s");
}

#[test]
fn a_share_that_a_step_requires_fails_it_without_another_evaluation() {
    let Some(fleet) = Fleet::new(HELLO) else {
        return;
    };
    let folder = TempDir::new().unwrap();
    let target = fleet.shared("hello", folder.path(), "");
    let web = Web::serve(folder.path());
    web.spoil("/nar/", Trouble::Answers(403));
    let step = || {
        fleet
            .step(&target, &web.url())
            .arg("--share-required")
            .run()
    };
    step().fails(75, "surroundings").passes_on(NOT_FETCHED);
    web.mend();
    step().takes("fetched", "fetched-from-share");
}

#[test]
fn a_job_that_is_killed_in_a_download_leaves_it_to_the_next() {
    let Some(fleet) = Fleet::new("{ hello = build \"hello\" \"echo hello >$out\"; }") else {
        return;
    };
    let Some(build) = fleet.build("") else { return };
    let build = build.agents_of((&fleet.builds, "builds"), 1, None, NEVER_EVALUATES);
    build.files().spoil(ARCHIVE, Trouble::Stalls);
    thread::scope(|scope| {
        let run = scope.spawn(|| all_go(&build, FETCHED));
        build.files().until_held(ARCHIVE);
        build.files().mend();
        let running = steps(&build).remove(0);
        assert_eq!(running.state, JobState::Running);
        kill_marked(&running.id);
        assert_eq!(run.join().unwrap(), 1);
    });
    assert_eq!(steps(&build)[0].retry_count, 1);
}

#[test]
fn a_step_that_is_killed_in_a_copy_leaves_it_to_the_next() {
    let Some(fleet) = Fleet::new(HELLO) else {
        return;
    };
    let folder = TempDir::new().unwrap();
    let target = fleet.shared("hello", folder.path(), "");
    let web = Web::serve(folder.path());
    web.spoil("/nar/", Trouble::Stalls);
    let step = || fleet.step(&target, &web.url()).envs(NEVER_EVALUATES);
    let running = step().start();
    web.until_held("/nar/");
    killpg(running.pid(), Signal::SIGKILL).unwrap();
    web.mend();
    assert_eq!(running.end().status.signal(), Some(9));
    step().run().takes("fetched", "fetched-from-share");
}

/// The step of a target that has the archive of a binary cache as its share, in a job whose agent downloads it by a link: what is
/// written is only what is unpacked.
fn step_of_archive(fleet: &Fleet, target: &Target, cache: &Path) -> Program {
    let names = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let mut files = names(cache);
    files.retain(|file| file.is_file());
    files.extend(names(&cache.join("nar")));
    let mut archive = tar::Builder::new(Vec::new());
    for file in files {
        let name = file.strip_prefix(cache).unwrap();
        archive.append_path_with_name(&file, name).unwrap();
    }
    let archive = archive.into_inner().unwrap();
    let file = fleet.builds.root().join("home/archive");
    fs::write(&file, &archive).unwrap();
    let sum = Program::new(tool("sha256sum").unwrap()).arg(file).run();
    let sum = sum.stdout.split(' ').next().unwrap();
    // A link, where both are on one file system.
    let to = format!("\"$4{ARCHIVE}{sum}.tar\"");
    let script = format!(
        "#!/bin/sh\nln \"$HOME/archive\" {to} 2>/dev/null || exec cp \"$HOME/archive\" {to}\n"
    );
    let agent = StandIns::new(fleet.builds.bin()).instead("buildkite-agent", &script);
    fleet
        .step(target, &format!("artifact:{ARCHIVE}{sum}.tar"))
        .envs(
            [
                "BUILDKITE_JOB_ID",
                "BUILDKITE_BUILD_ID",
                "BUILDKITE_AGENT_ACCESS_TOKEN",
            ]
            .map(|it| (it, "x")),
        )
        .env("PATH", agent.path(&fleet.builds))
        .envs(NEVER_EVALUATES)
}

/// The same, with an archive of half a MiB.
fn step_of_large_archive(fleet: &Fleet) -> Program {
    fleet.records.write("data", &"data\n".repeat(100_000));
    let folder = TempDir::new().unwrap();
    let target = fleet.shared("hello", folder.path(), "?compression=none");
    step_of_archive(fleet, &target, folder.path())
}

#[test]
fn a_step_that_is_killed_in_the_middle_of_unpacking_leaves_it_to_the_next() {
    let Some(fleet) = Fleet::new(HELLO) else {
        return;
    };
    let step = step_of_large_archive(&fleet);
    // Whoever writes more to one file gets a signal that kills: in the middle of the one that is large.
    let limit = ["prlimit", "--fsize=200000"].map(Into::into);
    let ended = step.clone().behind(&limit).run();
    assert_eq!(
        ended.status.signal(),
        Some(Signal::SIGXFSZ as i32),
        "{ended}"
    );
    step.run().takes("fetched", "fetched-from-share");
}

#[test]
fn a_disk_that_is_full_is_one_reason_and_the_step_evaluates() {
    let Some(fleet) = Fleet::new(HELLO) else {
        return;
    };
    let step = step_of_large_archive(&fleet);
    let state = fleet.builds.our_state();
    // No room for the archive of half a MiB; room for it, but not for what it unpacks to; room for both.
    for (room, fetches) in [("300k", false), ("800k", false), ("2m", true)] {
        fs::create_dir_all(&state).unwrap();
        let mount = format!("mount -t tmpfs -o size={room} tmpfs '{}'", state.display());
        let Some(mounted) = fleet.builds.with_mounts(&mount) else {
            return;
        };
        let ended = step
            .clone()
            .without("EVAL_ONCE_POLICY")
            .behind(&mounted)
            .run();
        if fetches {
            ended.takes("fetched", "fetched-from-share");
        } else {
            ended.takes("evaluated", "drv-missing");
            let told = |line: &&str| {
                line.contains(NOT_FETCHED) && line.contains("No space left on device")
            };
            assert_eq!(ended.stderr.lines().filter(told).count(), 1, "{ended}");
        }
        fs::remove_file(fleet.builds.work().join("result")).unwrap();
        fleet.forget();
    }
}

#[test]
fn a_target_of_another_system_is_fetched_and_fails_because_nothing_here_builds_it() {
    let Some(fleet) =
        Fleet::new("{ hello = with' { system = \"riscv64-linux\"; } \"hello\" \"\"; }")
    else {
        return;
    };
    let folder = TempDir::new().unwrap();
    let target = fleet.shared("hello", folder.path(), "");
    let share = format!("file://{}", folder.path().display());
    let ended = fleet.step(&target, &share).envs(NEVER_EVALUATES).run();
    ended.fails(100, "build").passes_on("riscv64-linux");
    assert_eq!(ended.report()["way"], "fetched");
}

/// Targets that evaluation builds something for, and what their `.drv`s bring along: names of store paths, without hashes.
///
/// The same on all versions of Nix; `docs/fleet.md` has this as a table.
const IMPORT_FROM_DERIVATION: &str = r#"let
  generated = build "generated" "echo '\"hello\"' >$out";
  names = build "names" "echo ${generated} >$out";
  expression = build "expression" "echo '\"'${generated}'\"' >$out";
  reads = more: with' more "hello" "{ read x || test -n \"$x\"; } <$src && echo $x >$out";
  text = text: reads { src = builtins.toFile "text" text; };
in {
  import-ed = text (import generated);
  read = text (builtins.readFile generated);
  in-script = build "hello" "echo ${import generated} >$out";
  input = reads { src = generated; also = import generated; };
  copied = reads { src = builtins.path { name = "copy"; path = "${generated}"; }; };
  path = reads { src = builtins.seq (import generated) (/. + builtins.unsafeDiscardStringContext "${generated}"); };
  storePath = reads { src = builtins.seq (import generated) (builtins.storePath (builtins.unsafeDiscardStringContext "${generated}")); };
  read-names = build "hello" "read x <${builtins.replaceStrings [ "\n" ] [ "" ] (builtins.readFile names)}; echo $x >$out";
  without-context = reads { src = import expression; };
}"#;

/// How a step on a second host ends.
enum Ends {
    /// Fetched and realised, so many derivations built.
    Fetched(u64),
    /// The copy is refused, unless what it brings is signed by a key that the host trusts.
    NeedsSignature,
    /// Fetched, and fails in its builder.
    FailsToBuild,
}

#[test]
fn what_evaluation_has_built_is_not_needed_on_a_second_host() {
    use Ends::{FailsToBuild, Fetched, NeedsSignature};
    let Some(fleet) = Fleet::new(IMPORT_FROM_DERIVATION) else {
        return;
    };
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let key = fleet.records.nix(
        "nix-store",
        [
            "--generate-binary-cache-key".into(),
            "key".into(),
            at("secret"),
            at("public"),
        ],
    );
    assert_eq!(key, "");
    let secret = format!("?secret-key={}", at("secret").display());
    let rows: [(&str, &[&str], Ends); 9] = [
        ("import-ed", &["text"], Fetched(1)),
        ("read", &["text"], Fetched(1)),
        ("in-script", &[], Fetched(1)),
        ("input", &["generated.drv"], Fetched(2)),
        ("copied", &["copy"], Fetched(1)),
        ("path", &["generated"], Fetched(1)),
        ("storePath", &["generated"], NeedsSignature),
        ("read-names", &["generated"], NeedsSignature),
        ("without-context", &[], FailsToBuild),
    ];
    for (attribute, brings, ends) in rows {
        let cache = at(attribute);
        let target = fleet.shared(attribute, &cache, "");
        let requisites = fleet
            .records
            .nix("nix-store", ["--query", "--requisites", &target.drv]);
        let names = requisites
            .lines()
            .map(|path| path.rsplit_once('/').unwrap().1);
        let mut names: Vec<&str> = names.map(|name| name.split_once('-').unwrap().1).collect();
        names.retain(|name| *name != "hello.drv");
        if attribute != "path" {
            assert_eq!(names, brings, "{attribute}");
        }
        let step = |share: &str| fleet.step(&target, share).envs(NEVER_EVALUATES).run();
        let unsigned = format!("file://{}", cache.display());
        let ended = step(&unsigned);
        match ends {
            Fetched(built) => {
                ended
                    .takes("fetched", "fetched-from-share")
                    .counts(built, 0);
            }
            NeedsSignature => {
                ended.fails(75, "surroundings").passes_on("signature");
                let signed = at("signed");
                fleet.shared(attribute, &signed, &secret);
                let public = fs::read_to_string(at("public")).unwrap();
                fleet
                    .builds
                    .configure(&format!("trusted-public-keys = {public}"));
                let ended = step(&format!("file://{}", signed.display()));
                ended.takes("fetched", "fetched-from-share");
                fleet.builds.configure("trusted-public-keys =");
            }
            FailsToBuild => {
                ended.fails(100, "build");
                assert_eq!(ended.report()["way"], "fetched", "{ended}");
            }
        }
        let _ = fs::remove_file(fleet.builds.work().join("result"));
        fleet.forget();
        assert_eq!(
            fleet.builds.folder().read_dir().unwrap().count(),
            1,
            "{attribute}"
        );
    }
}
