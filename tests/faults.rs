//! Faults of the host: each with a control that does the same without the fault.
//!
//! Whatever is wrong with a host, a step or a recording ends with the status that `docs/reliability.md` names, says one sentence about it
//! where a log can be written, and leaves nothing half done: no link, no lock that is held, no process. None is green without its
//! outputs.
//!
//! | fault | test |
//! | --- | --- |
//! | the disk of the state folder is full | [`a_state_folder_that_takes_nothing_stops_recordings_and_no_step`], `statuses::a_full_state_folder_is_a_warning`, `recording_stopped::a_full_disk_is_said_and_changes_no_status`, `fleet`, `share_step` |
//! | the disk of the store or of its database is full | [`a_store_without_room_is_an_infrastructure_failure`], `failures` (rows), `push::a_full_disk_and_a_folder_that_cannot_be_written_are_the_stores` |
//! | the disk of TMPDIR is full | [`a_folder_for_temporary_files_that_takes_nothing_is_an_infrastructure_failure`], `share_recording`, `doctor` |
//! | a read-only state folder | [`a_state_folder_that_takes_nothing_stops_recordings_and_no_step`], `doctor::a_state_folder_that_is_open_or_cannot_be_written_is_named_and_stays_so` |
//! | the clock jumps | [`a_clock_that_was_set_forward_or_back_changes_no_result`], [`a_clock_that_is_set_while_a_step_or_a_recording_runs_changes_no_result`], `doctor::files_from_the_future_show_that_the_clock_was_set_back` |
//! | no HOME | [`without_a_home_only_the_state_folder_has_to_be_named`], `step::without_a_named_state_folder_it_is_where_the_user_keeps_such_things` |
//! | no TMPDIR | [`a_folder_for_temporary_files_that_takes_nothing_is_an_infrastructure_failure`], `statuses::an_evaluation_without_a_folder_for_temporary_files_is_an_infrastructure_failure`, `flakes` |
//! | a checkout that cannot be written | [`a_checkout_that_cannot_be_written_is_refused_only_where_the_link_is_to_be_in_it`], `out_link` |
//! | no more files, processes | `classes::too_few_open_files_are_no_fault_of_an_attribute`, `classes::no_process_that_can_be_started_is_no_fault_of_an_attribute` |
//! | too little address space | [`too_little_address_space_is_an_infrastructure_failure`], `classes::an_address_space_that_is_enough_for_nix_is_enough_for_a_recording` |
//! | stdout or stderr closed, full, a broken pipe | [`a_log_that_cannot_be_written_changes_no_outcome`], [`a_pipeline_that_cannot_be_written_is_an_infrastructure_failure`], `cancellation::a_step_that_was_started_with_hup_ignored_survives_its_terminal` |
//! | a reader that never reads | [`a_log_that_nothing_reads_is_waited_for_until_a_signal_comes`], [`a_pipeline_that_nothing_reads_is_waited_for_until_a_signal_comes`] |
//! | a busy database | [`a_database_that_is_busy_is_waited_for_until_a_signal_comes`], `quiet_log` |
//! | a `.drv` that is registered and missing | `classes::a_drv_that_is_registered_and_gone_is_75_and_says_how_the_register_is_mended` |
//! | a `.drv` that exists and is not registered | `step::a_file_that_no_store_knows_is_no_drv` |
//! | a `.drv` that is empty or cut off | [`a_drv_that_is_empty_or_cut_off_is_an_infrastructure_failure`] |
//! | a daemon that hangs at the handshake | [`a_daemon_that_hangs_is_waited_for_until_a_signal_comes`], `doctor::a_store_that_does_not_answer_is_a_failure_within_its_limit` |
//! | a Nix that prints megabytes in one line | [`a_nix_that_does_something_else_is_an_infrastructure_failure`], `hostile_output` |
//! | a Nix that is another program, or does nothing | [`a_nix_that_does_something_else_is_an_infrastructure_failure`], [`one_program_of_nix_that_does_something_else_is_an_infrastructure_failure`], `doctor::a_program_that_is_no_nix_is_named` |
//! | the agent is missing, or answers with errors | [`a_recording_without_an_agent_uploads_nothing`], `summary::what_is_no_job_or_cannot_reach_buildkite_says_so`, `publish` |
//! | the agent hangs | [`an_agent_that_hangs_is_stopped_by_a_signal`], `agent::tests` (its limit), `publish`, `summary`, `recording_stopped` |
//! | arguments beyond the kernel's limit | [`arguments_that_the_system_does_not_take_are_refused`] |

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File, FileTimes},
    io::Read as _,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt as _, PermissionsExt as _},
            net::UnixListener,
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, SystemTime},
};

use serde_json::json;
use unix::{
    fcntl::{FcntlArg, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::{Pid, pipe},
};

use crate::outputs::is_nix;
use crate::support::{
    DEADLINE, EVAL_ONCE, daemon,
    processes::marked,
    program::{Ended, Program},
    recording::Pipeline,
    stand_in::StandIns,
    store::Store,
    target::Target,
    tool, until,
};

/// How long anything may take that ends by a signal, with a busy machine in mind.
const SOON: Duration = Duration::from_secs(15);

const RECORDING: [&str; 4] = ["pipeline", "--dry-run", "--skip", "none"];

/// A store with a target that is recorded.
fn store() -> Option<(Store, Target)> {
    let store = Store::new()?;
    store.targets("{ a = file \"a\"; b = file \"b\"; }");
    let target = store.target("a");
    Some((store, target))
}

/// A recording of all targets, which uploads nothing.
fn recording(store: &Store) -> Program {
    store.eval_once(RECORDING)
}

/// The recording has ended well, with both targets.
#[track_caller]
fn records(ended: &Ended) {
    assert_eq!(Pipeline::of(ended).drvs().len(), 2, "{ended}");
}

/// The recording has printed no pipeline, and one sentence in which this stands.
#[track_caller]
fn records_nothing(ended: &Ended, status: i32, part: &str) {
    ended.exits(status).prints("");
    let errors = ended.ours().into_iter();
    let errors: Vec<_> = errors.filter(|line| line.starts_with("error: ")).collect();
    let [error] = errors.as_slice() else {
        panic!("not one line that says what is wrong: {ended}")
    };
    assert!(error.contains(part), "no {part:?}: {ended}");
}

/// Neither a link nor a lock nor a process is left.
#[track_caller]
fn leaves_nothing(store: &Store) {
    assert_eq!(store.links(), BTreeMap::new());
    let root = store.root().to_str().unwrap();
    until("no process is left", || marked(root).is_empty());
    for lock in locks(&store.our_state()) {
        let file = File::open(&lock).unwrap();
        assert!(file.try_lock().is_ok(), "{} is held", lock.display());
    }
}

/// The lock files below a folder. (Not those of a folder that was mounted over it, for other processes alone: of these none is left.)
fn locks(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| {
            let path = entry.path();
            if path.is_dir() && !path.is_symlink() {
                return locks(&path);
            }
            let name = entry.file_name();
            let is_lock = Path::new(&name)
                .extension()
                .is_some_and(|end| end == "lock");
            Vec::from_iter((name == "lock" || is_lock).then_some(path))
        })
        .collect()
}

// ---- disks and folders

#[test]
fn a_state_folder_that_takes_nothing_stops_recordings_and_no_step() {
    let Some((store, _)) = store() else { return };
    let state = store.our_state();
    fs::DirBuilder::new().mode(0o700).create(&state).unwrap();
    let state = state.display();
    for (mount, why) in [
        (
            format!(
                "mount -t tmpfs -o size=4k,mode=0700 none '{state}' && head -c 4096 /dev/zero >'{state}/full'"
            ),
            "No space left on device",
        ),
        (
            format!("mount -t tmpfs -o nr_inodes=1,mode=0700 none '{state}'"),
            "No space left on device",
        ),
        (
            format!("mount -t tmpfs -o ro,mode=0700 none '{state}'"),
            "Read-only file system",
        ),
    ] {
        let Some(program) = store.eval_once_with_mounts(&mount) else {
            return;
        };
        let ended = program.args(RECORDING).run();
        records_nothing(&ended, 75, why);
        let named = format!("{state}");
        ended.passes_on(&named).passes_on("eval-once: hint: ");
        leaves_nothing(&store);
        let step = store.step_with_mounts(&mount, ["--attr", "a"]).unwrap();
        step.run()
            .takes("evaluated", "not-recorded")
            .passes_on("eval-once: warning: ")
            .passes_on(why);
        fs::remove_file(store.work().join("result")).unwrap();
    }
    // Wherever it fills up, there is a pipeline or a sentence.
    let mut ends = Vec::new();
    for inodes in [9, 11, 13, 15, 17, 40] {
        let mount = format!("mount -t tmpfs -o nr_inodes={inodes},mode=0700 none '{state}'");
        let program = store.eval_once_with_mounts(&mount).unwrap();
        let ended = program.args(RECORDING).run();
        if ended.status.success() {
            records(&ended);
        } else {
            records_nothing(&ended, 75, "No space left on device");
        }
        ends.push(ended.status.success());
    }
    assert!(
        ends.contains(&false) && ends.last() == Some(&true),
        "{ends:?}"
    );
    records(&recording(&store).run());
}

#[test]
fn a_store_without_room_is_an_infrastructure_failure() {
    // What is mounted is not seen by a daemon outside.
    let Some(store) = Store::without_daemon() else {
        return;
    };
    store.targets("{ c = file \"c\"; d = file \"d\"; }");
    let aside = store.root().join("aside").display().to_string();
    for folder in [store.folder(), store.state().join("db")] {
        let folder = folder.display();
        // As large as what is there already, and then filled.
        let mount = format!(
            "mkdir -p '{aside}' && cp -a '{folder}/.' '{aside}' && mount -t tmpfs -o size=16m,mode=0755 eo '{folder}' && \
             cp -a '{aside}/.' '{folder}' && {{ head -c 20000000 /dev/zero >'{folder}/full'; rm -rf '{aside}'; }} 2>&-; true"
        );
        let Some(program) = store.eval_once_with_mounts(&mount) else {
            return;
        };
        let ended = program.args(RECORDING).run();
        ended.exits(75).prints("").passes_on("hint: make room");
        leaves_nothing(&store);
        let step = store.step_with_mounts(&mount, ["--attr", "c"]).unwrap();
        let ended = step.run();
        ended.fails(75, "surroundings").passes_on("hint: make room");
        leaves_nothing(&store);
    }
    records(&recording(&store).run());
    store
        .step(["--attr", "c"])
        .run()
        .takes("evaluated", "not-recorded");
}

#[test]
fn a_folder_for_temporary_files_that_takes_nothing_is_an_infrastructure_failure() {
    let Some((store, target)) = store() else {
        return;
    };
    let temporary = store.root().join("tmp").display().to_string();
    for (mount, why) in [
        (
            format!("mount -t tmpfs -o nr_inodes=1 none '{temporary}'"),
            "No space left on device",
        ),
        (
            format!("mount -t tmpfs -o ro none '{temporary}'"),
            "Read-only file system",
        ),
    ] {
        let Some(program) = store.eval_once_with_mounts(&mount) else {
            return;
        };
        // It needs none.
        records(&program.args(RECORDING).run());
        let step = store.step_with_mounts(&mount, target.flags()).unwrap();
        let ended = step.run();
        // Later versions of Nix build below their state folder (`build-dir`): 2.8 needs the folder.
        if ended.status.success() {
            assert!(
                !is_nix("2.8") || daemon::is_for_all(),
                "a folder that takes nothing has changed nothing"
            );
            ended.takes("realised", "drv-valid");
            fs::remove_file(store.work().join("result")).unwrap();
            store.delete([target.out()]);
        } else {
            ended.fails(75, "surroundings").passes_on(why);
            leaves_nothing(&store);
            assert!(!store.has(target.out()));
        }
    }
    // Without the variable it is /tmp.
    records(&recording(&store).without("TMPDIR").run());
    let step = store.step(target.flags()).without("TMPDIR");
    step.run().takes("realised", "drv-valid");
}

#[test]
fn without_a_home_only_the_state_folder_has_to_be_named() {
    let Some((store, target)) = store() else {
        return;
    };
    let file = store.write("a file", "");
    let unset: fn(Program) -> Program = |program| program.without("HOME");
    let nowhere = |program: Program| program.env("HOME", "/proc/nowhere");
    let in_file = |program: Program| program.env("HOME", file.join("home"));
    let ways: [&dyn Fn(Program) -> Program; 3] = [&unset, &nowhere, &in_file];
    for homeless in ways {
        let step = homeless(store.step(["--attr", "a"]));
        step.run().takes("evaluated", "not-recorded");
        records(&homeless(recording(&store)).run());
        fs::remove_file(store.work().join("result")).unwrap();
        let ended = homeless(recording(&store)).without("EVAL_ONCE_STATE_DIR");
        records_nothing(&ended.run(), 75, "state folder");
        leaves_nothing(&store);
        let step = homeless(store.step(target.flags())).without("EVAL_ONCE_STATE_DIR");
        step.run().takes("realised", "drv-valid");
        fs::remove_file(store.work().join("result")).unwrap();
    }
    records(&recording(&store).without("EVAL_ONCE_STATE_DIR").run());
}

#[test]
fn a_checkout_that_cannot_be_written_is_refused_only_where_the_link_is_to_be_in_it() {
    let Some((store, target)) = store() else {
        return;
    };
    let work = store.work().display().to_string();
    let mount = format!(
        "mount --bind '{work}' '{work}' && mount -o remount,bind,ro '{work}' && cd '{work}'"
    );
    let Some(program) = store.eval_once_with_mounts(&mount) else {
        return;
    };
    records(&program.args(RECORDING).run());
    for flags in [target.flags(), vec!["--attr".into(), "a".into()]] {
        let step = |more: &[&str]| {
            let step = store.step_with_mounts(&mount, &flags).unwrap();
            step.args(more).run()
        };
        step(&[])
            .fails(64, "config")
            .passes_on("Read-only file system");
        assert!(!store.has(target.out()));
        leaves_nothing(&store);
        step(&["--no-out-link"]).exits(0);
        let out = fs::canonicalize(target.out()).unwrap();
        assert!(out.is_file());
        let elsewhere = store.root().join("elsewhere");
        step(&["--out-link", elsewhere.to_str().unwrap()]).exits(0);
        fs::remove_file(elsewhere).unwrap();
        fs::remove_dir_all(store.our_state()).unwrap();
        store.collect();
        store.target("a");
    }
    store
        .step(target.flags())
        .run()
        .takes("realised", "drv-valid");
}

/// Makes everything below a folder as old as it is by a clock that shows another time.
fn set_times(folder: &Path, time: SystemTime) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            set_times(&path, time);
        }
        let file = File::open(&path).unwrap();
        file.set_times(FileTimes::new().set_modified(time)).unwrap();
    }
}

#[test]
fn a_clock_that_was_set_forward_or_back_changes_no_result() {
    let Some((store, target)) = store() else {
        return;
    };
    let day = Duration::from_secs(24 * 60 * 60);
    let now = SystemTime::now();
    let pipeline = Pipeline::of(&recording(&store).run()).json;
    // What is left of steps and recordings that ran before the clock was set: a year back, then a year forward.
    for (time, expired) in [(now + 365 * day, false), (now - 365 * day, true)] {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let pins = store.our_state().join("pins");
        let entries = fs::read_dir(&pins).unwrap().flatten();
        let made: Vec<_> = entries.map(|entry| entry.path()).collect();
        assert_eq!(made.len(), 1, "{made:?}");
        let until = (since + 3 * day).as_secs();
        fs::write(
            made[0].join("keep.json"),
            json!({ "until": until }).to_string(),
        )
        .unwrap();
        set_times(&store.our_state(), time);
        // A step has what the pin keeps, and one that evaluates makes its root.
        store.collect();
        store
            .step(target.flags())
            .run()
            .takes("realised", "drv-valid");
        fs::remove_file(store.work().join("result")).unwrap();
        let step = store.step(["--attr", "a"]);
        step.run().takes("evaluated", "not-recorded");
        fs::remove_file(store.work().join("result")).unwrap();
        // What has not expired stays, though its files are of a time to come.
        store.eval_once(["prune"]).run().exits(0);
        assert_eq!(made[0].join("pin").is_symlink(), !expired);
        // A new recording is kept, whatever was there.
        let again = recording(&store).run();
        assert_eq!(Pipeline::of(&again).json, pipeline);
        store.eval_once(["prune"]).run().exits(0);
        store.collect();
        store
            .step(target.flags())
            .run()
            .takes("realised", "drv-valid");
        fs::remove_file(store.work().join("result")).unwrap();
        leaves_nothing(&store);
    }
}

/// The library that shows programs another time: a clock of this machine's own may not be set.
fn clock_library() -> Option<String> {
    let faketime = tool("faketime")?;
    let shown = Command::new(faketime)
        .args(["-m", "-f", "+0d", "sh", "-c", "echo $LD_PRELOAD"])
        .output()
        .unwrap();
    let library = String::from_utf8(shown.stdout).unwrap().trim().to_owned();
    assert!(library.ends_with(".so.1"), "{library:?}");
    Some(library)
}

#[test]
fn a_clock_that_is_set_while_a_step_or_a_recording_runs_changes_no_result() {
    let Some(library) = clock_library() else {
        return;
    };
    for (before, after) in [("+0d", "+400d"), ("+400d", "+0d"), ("+0d", "-400d")] {
        let Some(store) = Store::new() else { return };
        let clock = store.root().join("clock");
        // A build sets the clock while what has begun it runs: a step, or a recording that reads what it has built. The library takes no
        // file that is half written.
        let set = format!(
            "echo {after} > {0}.new; {1} {0}.new {0}; true",
            clock.display(),
            tool("mv").unwrap().display()
        );
        store.targets(&format!(
            "rec {{ a = build \"a\" \"echo a > $out; {set}\"; b = file (if builtins.pathExists a then \"b\" else \"c\"); }}"
        ));
        let target = store.target("a");
        let with_clock = |program: Program| {
            program
                .env("LD_PRELOAD", &library)
                .env("FAKETIME_TIMESTAMP_FILE", clock.as_os_str())
                .env("FAKETIME_NO_CACHE", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
                .env("NO_FAKE_STAT", "1")
        };
        let set_back = || fs::write(&clock, before).unwrap();
        let shown = || {
            let date = Program::new(tool("date").unwrap()).args(["+%s"]);
            let shown = with_clock(date).run();
            shown.stdout.trim().parse::<i64>().unwrap()
        };
        set_back();
        let was = shown();
        let step = with_clock(store.step(target.flags())).run();
        assert!(
            (shown() - was).abs() > 300 * 24 * 60 * 60,
            "the clock was not set"
        );
        step.takes("realised", "drv-valid");
        assert!((0.0..60.0).contains(&step.report()["seconds"]["total"].as_f64().unwrap()));
        fs::remove_file(store.work().join("result")).unwrap();
        leaves_nothing(&store);

        store.collect();
        set_back();
        let recorded = with_clock(recording(&store)).run();
        assert!(
            (shown() - was).abs() > 300 * 24 * 60 * 60,
            "the clock was not set"
        );
        records(&recorded);
        // By the same clock it has not expired.
        with_clock(store.eval_once(["prune"])).run().exits(0);
        store.collect();
        let target = store.target("a");
        store
            .step(target.flags())
            .run()
            .takes("realised", "drv-valid");
    }
}

#[test]
fn too_little_address_space_is_an_infrastructure_failure() {
    let Some((store, target)) = store() else {
        return;
    };
    let Some(prlimit) = tool("prlimit") else {
        return;
    };
    let (mut failed, mut recordings_failed) = (0, 0);
    for mebibytes in [40, 80, 200, 2000] {
        let limit = format!("--as={}", mebibytes << 20);
        let limit = [prlimit.clone().into_os_string(), limit.into()];
        let ended = store.step(target.flags()).behind(&limit).run();
        if ended.status.success() {
            ended.takes("realised", "drv-valid");
            fs::remove_file(store.work().join("result")).unwrap();
            store.delete([target.out()]);
        } else {
            ended.fails(75, "surroundings");
            leaves_nothing(&store);
            failed += 1;
        }
        let ended = recording(&store).behind(&limit).run();
        if ended.status.success() {
            records(&ended);
        } else {
            records_nothing(&ended, 75, "");
            leaves_nothing(&store);
            recordings_failed += 1;
        }
    }
    assert!((1..4).contains(&failed), "{failed}");
    assert!((1..4).contains(&recordings_failed), "{recordings_failed}");
}

// ---- where it prints to

/// Prints more than a pipe holds, and then succeeds or fails.
const LOUD: &str = r#"let
  loud = name: end: build name "i=0; while [ $i -lt 2000 ]; do echo line $i of very many that together are more than what a pipe holds; i=$((i+1)); done; ${end}";
in { good = loud "good" "echo > $out"; bad = loud "bad" "exit 1"; }"#;

#[test]
fn a_log_that_cannot_be_written_changes_no_outcome() {
    let Some(store) = Store::new() else { return };
    store.targets(LOUD);
    let [good, bad] = ["good", "bad"].map(|name| store.target(name));
    let shell = |redirections: &str| -> Vec<OsString> {
        let script = format!("exec \"$@\" {redirections}");
        ["/bin/sh", "-c", &script, "sh"].map(Into::into).into()
    };
    for redirections in ["", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"] {
        let before = shell(redirections);
        store.step(good.flags()).behind(&before).run().exits(0);
        assert_eq!(store.links()["result"], good.out(), "{redirections}");
        fs::remove_file(store.work().join("result")).unwrap();
        store.delete([good.out()]);
        let ended = store.step(bad.flags()).behind(&before).run();
        ended.exits(100);
        assert_eq!(ended.report()["failure"]["class"], "build");
        leaves_nothing(&store);
    }
    // Nothing has the other end of the pipe any more.
    for (target, status) in [(&good, 0), (&bad, 100)] {
        let mut command = store.step(target.flags()).command();
        let (read, write) = pipe().unwrap();
        drop(read);
        let ended = command.stdout(Stdio::null()).stderr(write).status();
        assert_eq!(ended.unwrap().code(), Some(status));
    }
    assert_eq!(store.links()["result"], good.out());
}

#[test]
fn a_pipeline_that_cannot_be_written_is_an_infrastructure_failure() {
    let Some((store, target)) = store() else {
        return;
    };
    let full = ["/bin/sh", "-c", "exec \"$@\" >/dev/full", "sh"].map(OsString::from);
    let ended = recording(&store).behind(&full).run();
    records_nothing(&ended, 75, "cannot write to standard output");
    leaves_nothing(&store);
    // A step has built, and has its link; what it prints besides is missing.
    let ended = store.step(target.flags()).behind(&full).run();
    ended.exits(75).passes_on("cannot write to standard output");
    assert_eq!(store.links()["result"], target.out());
    let silent = ["/bin/sh", "-c", "exec \"$@\" 2>/dev/full", "sh"].map(OsString::from);
    records(&recording(&store).behind(&silent).run());
    records(&recording(&store).run());
}

/// A program whose standard error, or else whose standard output, is a pipe that nothing reads.
struct Unread {
    child: Child,
    pipe: OwnedFd,
}

impl Unread {
    /// Starts it, and waits until the pipe is full.
    fn start(mut command: Command, stderr: bool) -> Self {
        let (read, write) = pipe().unwrap();
        let ours = write.try_clone().unwrap();
        if stderr {
            command.stdout(Stdio::null()).stderr(write);
        } else {
            command.stdout(write).stderr(Stdio::null());
        }
        let child = command.process_group(0).spawn().unwrap();
        drop(command);
        until("the pipe is full", || {
            let mut room = [PollFd::new(ours.as_fd(), PollFlags::POLLOUT)];
            poll(&mut room, PollTimeout::ZERO).unwrap() == 0
        });
        Self { child, pipe: read }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    /// Waits for its end.
    #[track_caller]
    fn end(&mut self, within: Duration) -> ExitStatus {
        let begin = std::time::Instant::now();
        let mut ending = None;
        until("it has ended", || {
            ending = self.child.try_wait().unwrap();
            ending.is_some()
        });
        assert!(begin.elapsed() < within, "{:?}", begin.elapsed());
        ending.unwrap()
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_log_that_nothing_reads_is_waited_for_until_a_signal_comes() {
    let Some(store) = Store::new() else { return };
    store.targets(LOUD);
    let target = store.target("good");
    let step = store.step(target.flags());
    let mut unread = Unread::start(step.command(), true);
    kill(unread.pid(), Signal::SIGTERM).unwrap();
    assert_eq!(unread.end(SOON).code(), Some(143));
    leaves_nothing(&store);
    // A late reader gets all of it.
    let mut unread = Unread::start(step.command(), true);
    let mut log = String::new();
    File::from(unread.pipe.try_clone().unwrap())
        .read_to_string(&mut log)
        .unwrap();
    assert_eq!(unread.end(DEADLINE).code(), Some(0), "{log}");
    assert_eq!(store.links()["result"], target.out());
    assert!(log.contains("line 1999 of") && log.contains("eval-once: realised "));
}

#[test]
fn a_pipeline_that_nothing_reads_is_waited_for_until_a_signal_comes() {
    let Some(store) = Store::new() else { return };
    store.targets(
        "builtins.listToAttrs (builtins.genList (n: { name = \"t${toString n}\"; value = file \"t${toString n}\"; }) 200)",
    );
    let mut unread = Unread::start(recording(&store).command(), false);
    kill(unread.pid(), Signal::SIGTERM).unwrap();
    let ended = unread.end(SOON);
    assert_eq!(ended.signal(), Some(Signal::SIGTERM as i32), "{ended:?}");
    leaves_nothing(&store);
    let mut unread = Unread::start(recording(&store).command(), false);
    let mut printed = String::new();
    File::from(unread.pipe.try_clone().unwrap())
        .read_to_string(&mut printed)
        .unwrap();
    assert_eq!(unread.end(DEADLINE).code(), Some(0));
    let printed: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(printed["steps"].as_array().unwrap().len(), 200);
}

// ---- the store

/// Locks a store's database as one does that has it for itself.
fn lock_database(store: &Store) -> File {
    let file = File::options()
        .read(true)
        .write(true)
        .open(store.state().join("db/db.sqlite"))
        .unwrap();
    // SQLite's shared bytes, which every connection locks.
    let lock = unix::libc::flock {
        l_type: unix::libc::F_WRLCK.try_into().unwrap(),
        l_whence: unix::libc::SEEK_SET.try_into().unwrap(),
        l_start: 0x4000_0002,
        l_len: 510,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_SETLK(&lock)).unwrap();
    file
}

#[test]
fn a_database_that_is_busy_is_waited_for_until_a_signal_comes() {
    let Some((store, target)) = store() else {
        return;
    };
    let root = store.root().to_str().unwrap();
    let is_at_nix = || {
        let processes = marked(root);
        let mut commands = processes.iter().map(|process| &process.command);
        commands.any(|command| command.starts_with("nix"))
    };
    for (program, status) in [
        (store.step(target.flags()), 143),
        (store.step(["--attr", "a"]), 143),
        (recording(&store), 143),
    ] {
        let lock = lock_database(&store);
        let running = program.start();
        until("Nix runs", is_at_nix);
        kill(running.pid(), Signal::SIGTERM).unwrap();
        let ended = running.end();
        ended.exits(status).prints("");
        assert!(ended.took < SOON, "{ended}");
        leaves_nothing(&store);
        drop(lock);
    }
    // It is free again after a while.
    let lock = lock_database(&store);
    let [step, recording] = [store.step(target.flags()), recording(&store)].map(|it| it.start());
    until("Nix runs", is_at_nix);
    drop(lock);
    step.end().takes("realised", "drv-valid");
    records(&recording.end());
}

#[test]
fn a_drv_that_a_target_needs_and_that_is_empty_cut_off_or_lost_is_an_infrastructure_failure() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"rec { low = file "low"; middle = with' { inherit low; } "middle" "echo > $out"; a = with' { inherit middle; } "a" "echo > $out"; }"#,
    );
    let target = store.target("a");
    for needed in ["middle", "low"] {
        let drv = store.target(needed).drv;
        let file = Path::new(&drv);
        let whole = fs::read(file).unwrap();
        for length in [Some(0), Some(60), Some(whole.len() / 2), None] {
            fs::set_permissions(store.folder(), fs::Permissions::from_mode(0o755)).unwrap();
            if file.exists() {
                fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
            }
            match length {
                Some(length) => fs::write(file, &whole[..length]).unwrap(),
                None => fs::remove_file(file).unwrap(),
            }
            for flags in [target.flags(), vec!["--attr".into(), "a".into()]] {
                let ended = store.step(&flags).run();
                ended
                    .fails(75, "surroundings")
                    .passes_on(&drv)
                    .passes_on("retrying only helps on another host, or once this one is mended")
                    .passes_on("hint: write it anew with `nix-instantiate --repair");
                leaves_nothing(&store);
            }
            let ended = recording(&store).run();
            records_nothing(&ended, 75, &drv);
            ended.passes_on("write it anew with `nix-instantiate --repair");
            // As the hint says.
            store.nix("nix-instantiate", ["--repair", "default.nix", "-A", "a"]);
            assert_eq!(fs::read(file).unwrap(), whole, "{length:?}");
        }
    }
    store
        .step(target.flags())
        .run()
        .takes("realised", "drv-valid");
}

#[test]
fn a_drv_that_is_empty_or_cut_off_is_an_infrastructure_failure() {
    let Some((store, target)) = store() else {
        return;
    };
    let file = Path::new(&target.drv);
    let whole = fs::read(file).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
    let half = whole.len() / 2;
    for length in [0, 3, 7, 60, half, whole.len() - 1] {
        fs::write(file, &whole[..length]).unwrap();
        for flags in [target.flags(), vec!["--attr".into(), "a".into()]] {
            let ended = store.step(&flags).run();
            ended
                .fails(75, "surroundings")
                .passes_on("its file is empty or cut off")
                .passes_on("retrying only helps on another host, or once this one is mended")
                .passes_on("hint: write it anew with `nix-instantiate --repair");
            leaves_nothing(&store);
        }
        let ended = recording(&store).run();
        records_nothing(&ended, 75, &target.drv);
        ended.passes_on("hint: write it anew with `nix-instantiate --repair");
        leaves_nothing(&store);
    }
    // Nix reads to its end what does not even begin as a derivation.
    fs::write(file, "something else").unwrap();
    let ended = store.step(target.flags()).run();
    ended
        .fails(75, "surroundings")
        .passes_on("hint: write it anew with `nix-instantiate --repair");
    leaves_nothing(&store);
    // As the hint says.
    store.nix("nix-instantiate", ["--repair", "default.nix", "-A", "a"]);
    assert_eq!(fs::read(file).unwrap(), whole);
    store
        .step(target.flags())
        .run()
        .takes("realised", "drv-valid");
    records(&recording(&store).run());
}

#[test]
fn a_daemon_that_hangs_is_waited_for_until_a_signal_comes() {
    let Some((store, target)) = store() else {
        return;
    };
    let socket = store.root().join("hangs");
    let listener = UnixListener::bind(&socket).unwrap();
    let client = daemon::client_env(&socket);
    for program in [
        store.step(target.flags()),
        store.step(["--attr", "a"]),
        recording(&store),
    ] {
        let running = program.envs(client.clone()).start();
        let _connected = listener.accept().unwrap();
        kill(running.pid(), Signal::SIGTERM).unwrap();
        let ended = running.end();
        ended.exits(143).prints("");
        assert!(ended.took < SOON, "{ended}");
        leaves_nothing(&store);
    }
    let daemon = store.daemon();
    let step = store.step(target.flags()).envs(daemon.env());
    step.run().takes("realised", "drv-valid");
    records(&recording(&store).envs(daemon.env()).run());
}

#[test]
fn a_nix_that_does_something_else_is_an_infrastructure_failure() {
    let Some((store, target)) = store() else {
        return;
    };
    let long = "head -c 3000000 /dev/zero | tr '\\0' x";
    for (name, script) in [
        ("nothing", "exit 0".to_owned()),
        ("else", "echo hello world".to_owned()),
        ("long", long.to_owned()),
        ("long-error", format!("{long} >&2; exit 1")),
    ] {
        let programs = ["nix", "nix-build", "nix-instantiate", "nix-store"];
        let stand_ins = programs.iter().fold(
            StandIns::new(store.root().join(name)),
            |stand_ins, program| stand_ins.instead(program, &format!("#!/bin/sh\n{script}\n")),
        );
        let path = stand_ins.path(&store);
        for flags in [
            target.flags(),
            target.drv_flags(),
            vec!["--attr".into(), "a".into()],
        ] {
            let ended = store.step(&flags).env("PATH", &path).run();
            ended.fails(75, "surroundings");
            assert!(
                ended.stderr.len() < 100_000,
                "{name}: {}",
                ended.stderr.len()
            );
            leaves_nothing(&store);
        }
        let ended = recording(&store).env("PATH", &path).run();
        records_nothing(&ended, 75, "");
        if ["nothing", "else"].contains(&name) {
            ended.passes_on("eval-once doctor` says which");
        }
        assert!(
            ended.stderr.len() < 100_000,
            "{name}: {}",
            ended.stderr.len()
        );
        leaves_nothing(&store);
    }
    store
        .step(target.flags())
        .run()
        .takes("realised", "drv-valid");
    records(&recording(&store).run());
}

/// One program alone, for all of its commands or for one of them: what the others say must not hide it.
#[test]
fn one_program_of_nix_that_does_something_else_is_an_infrastructure_failure() {
    let Some((store, target)) = store() else {
        return;
    };
    let commands = [
        ("nix", "*"),
        ("nix-instantiate", "*"),
        ("nix-instantiate", "*--read-write-mode*"),
        ("nix-store", "*"),
        ("nix-store", "*--add-root*"),
        ("nix-store", "*--roots*"),
        ("nix-store", "*--check-validity*"),
    ];
    for (number, (program, command)) in commands.into_iter().enumerate() {
        for (name, does) in [
            ("nothing", "exit 0"),
            ("else", "echo hello; exit 0"),
            // What `nix-instantiate --eval` prints is a string.
            ("quoted", "echo '\"hello\"'; exit 0"),
        ] {
            if name == "quoted" && program != "nix-instantiate" {
                continue;
            }
            let what = format!("{program} {command} {name}");
            let script = format!("case \"$*\" in {command}) {does};; esac");
            let folder = store.root().join(format!("{number}-{name}"));
            let path = StandIns::new(folder).before(program, &script).path(&store);
            for flags in [
                target.flags(),
                target.drv_flags(),
                vec!["--attr".into(), "a".into()],
            ] {
                assert_eq!(store.instantiate("default.nix", "a"), target.drv);
                let ended = store.step(&flags).env("PATH", &path).run();
                if ended.status.code() == Some(0) {
                    let link = store.work().join("result");
                    let Ok(out) = link.read_link() else {
                        panic!("{what}: {ended}")
                    };
                    assert!(store.has(out.to_str().unwrap()), "{what}: {ended}");
                    fs::remove_file(link).unwrap();
                } else {
                    ended.fails(75, "surroundings");
                }
                leaves_nothing(&store);
                store.collect();
            }
            for is_pin in [false, true] {
                let drv = store.instantiate("default.nix", "a");
                let ended = if is_pin {
                    store.eval_once(["pin", &drv])
                } else {
                    recording(&store)
                }
                .env("PATH", &path)
                .run();
                if ended.status.code() == Some(0) {
                    store.forget_temporary_roots();
                    store.collect();
                    assert!(store.has(&drv), "{what}: {drv} is gone: {ended}");
                } else {
                    // A sentence for people, without the expressions that Nix was given.
                    records_nothing(&ended, 75, "");
                    assert!(ended.stderr.len() < 2_000, "{what}: {ended}");
                    assert!(!ended.stderr.contains("builtins."), "{what}: {ended}");
                }
                leaves_nothing(&store);
                let _ = fs::remove_dir_all(store.our_state().join("pins"));
                store.collect();
            }
        }
    }
    store.step(["--attr", "a"]).run().exits(0);
    records(&recording(&store).run());
    fs::remove_file(store.work().join("result")).unwrap();
    // What is no metadata of a flake.
    store.write("flake.nix", "{ outputs = { self }: { }; }");
    for (name, does) in [("nothing", "exit 0"), ("else", "echo '[{}]'; exit 0")] {
        let script = format!("case \"$*\" in *metadata*) {does};; esac");
        let folder = store.root().join(format!("flake-{name}"));
        let path = StandIns::new(folder).before("nix", &script).path(&store);
        let step = store.step(["--flake", "path:.", "--attr", "a"]);
        let ended = step.env("PATH", &path).run();
        ended.fails(75, "surroundings");
        assert!(ended.reported().contains("`nix` ended with 0"), "{ended}");
        let ended = recording(&store).args(["--flake", "path:."]);
        records_nothing(&ended.env("PATH", &path).run(), 75, "the flake's metadata");
        leaves_nothing(&store);
    }
}

// ---- the agent

/// A program of ours in a job, whose agent is this script.
fn in_job(store: &Store, program: Program, agent: &str) -> Program {
    let text = format!("#!/bin/sh\n{agent}\n");
    let stand_ins = StandIns::new(store.bin()).instead("buildkite-agent", &text);
    program
        .env("PATH", stand_ins.path(store))
        .envs(JOB.map(|(name, value)| (name, value)))
}

const JOB: [(&str, &str); 5] = [
    ("BUILDKITE", "true"),
    ("BUILDKITE_JOB_ID", "0190c1a2-0000-4000-8000-000000000001"),
    ("BUILDKITE_BUILD_ID", "0190c1a2-0000-4000-8000-000000000003"),
    ("BUILDKITE_STEP_ID", "0190c1a2-0000-4000-8000-000000000004"),
    ("BUILDKITE_AGENT_ACCESS_TOKEN", "token"),
];

/// A recording that uploads, as a command by hand: its steps are commands.
const UPLOADS: [&str; 6] = [
    "pipeline",
    "--emit",
    "command",
    "--skip",
    "none",
    "--share=false",
];

#[test]
fn a_recording_without_an_agent_uploads_nothing() {
    let Some((store, _)) = store() else { return };
    let uploads = || store.eval_once(UPLOADS);
    let missing = uploads().envs(JOB).env("PATH", store.bin()).run();
    records_nothing(&missing, 69, "cannot run buildkite-agent");
    leaves_nothing(&store);
    let fails = "echo 'fatal: POST: 500 no luck' >&2; exit 1";
    for agent in [
        fails.to_owned(),
        format!("case \"$1 $2\" in 'pipeline upload') {fails};; esac"),
        format!("case \"$1 $2\" in 'artifact upload') {fails};; esac"),
    ] {
        let ended = in_job(&store, uploads(), &agent).run();
        records_nothing(&ended, 75, "500 no luck");
        ended.passes_on("hint: check that this host can reach Buildkite");
        leaves_nothing(&store);
    }
    let ended = in_job(&store, uploads(), "exit 0").run();
    ended.exits(0).passes_on("uploaded 2 steps");
}

#[test]
fn an_agent_that_hangs_is_stopped_by_a_signal() {
    let Some((store, _)) = store() else { return };
    let hangs = store.root().join("it hangs");
    let hanging = |command: &str| {
        format!(
            "[ \"$1 $2\" != '{command}' ] || {{ : >'{}'; exec sleep 600; }}",
            hangs.display()
        )
    };
    for (arguments, command) in [
        (&UPLOADS[..], "meta-data get"),
        (&UPLOADS, "artifact upload"),
        (&UPLOADS, "pipeline upload"),
        (&UPLOADS, "meta-data set"),
        (&["summary"], "meta-data keys"),
    ] {
        let program = || store.eval_once(arguments);
        let running = in_job(&store, program(), &hanging(command)).start();
        until("the agent hangs", || hangs.exists());
        kill(running.pid(), Signal::SIGTERM).unwrap();
        let ended = running.end();
        ended.exits(143).prints("").passes_on("stopped by SIGTERM");
        assert!(ended.took < SOON, "{ended}");
        leaves_nothing(&store);
        fs::remove_file(&hangs).unwrap();
        in_job(&store, program(), "exit 0").run().exits(0);
    }
}

#[test]
fn arguments_that_the_system_does_not_take_are_refused() {
    let Some((store, target)) = store() else {
        return;
    };
    let hook = Path::new(env!("CARGO_MANIFEST_DIR")).join("hooks/command");
    let run = |configuration: &serde_json::Value| {
        let configuration = configuration.to_string();
        // Of a longer one the agent could not start the hook.
        assert!(configuration.len() < (128 << 10) - 100);
        Program::new(&hook)
            .envs(store.env())
            .envs([
                ("BUILDKITE", "true"),
                ("BUILDKITE_JOB_ID", "job"),
                ("BUILDKITE_COMMAND", "true"),
                ("BUILDKITE_PLUGIN_CONFIGURATION", &configuration),
                ("EVAL_ONCE_BIN", EVAL_ONCE),
            ])
            .folder(store.work())
            .run()
    };
    // Each is twice as long in the language of Nix.
    let doubled = "\"$".repeat(33_000);
    let ended = run(&json!({ "attr": ["a", doubled] }));
    ended
        .exits(64)
        .passes_on("Argument list too long")
        .passes_on("hint: shorten the longest key");
    assert!(ended.stderr.len() < 200_000, "{}", ended.stderr.len());
    leaves_nothing(&store);
    let long = "x".repeat(60_000);
    run(&json!({ "attr": "a", "argstr": { "one": long, "two": long } })).exits(0);
    assert_eq!(store.links()["result"], target.out());
}
