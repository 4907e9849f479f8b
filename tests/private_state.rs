//! The state folder is its user's alone: other users of the host cannot hold its locks, whatever the umask; and what waits for a lock
//! says so and can be stopped.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, Permissions},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, chown, symlink},
    },
    path::{Path, PathBuf},
};

use unix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::geteuid,
};

use crate::support::{
    program::{Program, Running},
    skip,
    stand_in::StandIns,
    store::Store,
    tool,
};

/// Another user of the host.
const NEIGHBOUR: u32 = 65_531;

/// The user that works, where that is not root.
const USER: u32 = 4_712;

const TARGETS: &str = "{ a = file \"a\"; }";

/// A store with a target; none without root, who alone can be several users.
fn store() -> Option<Store> {
    if !geteuid().is_root() {
        skip("only root can be several users");
        return None;
    }
    let store = Store::new()?;
    store.targets(TARGETS);
    // As on any host: its folders are no secret.
    fs::set_permissions(store.root(), Permissions::from_mode(0o755)).unwrap();
    Some(store)
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().mode() & 0o777
}

/// All that is in a folder, and the folder.
fn tree(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    if folder.symlink_metadata().unwrap().is_dir() {
        for entry in folder.read_dir().unwrap() {
            found.extend(tree(&entry.unwrap().path()));
        }
    }
    found
}

/// What of a folder others can look at or change.
fn open_to_others(folder: &Path) -> Vec<(PathBuf, u32)> {
    let of = |path: PathBuf| {
        let metadata = path.symlink_metadata().unwrap();
        let is_link = metadata.is_symlink();
        let private = if metadata.is_dir() { 0o700 } else { 0o600 };
        let mode = metadata.mode() & 0o777;
        (!is_link && mode != private).then_some((path, mode))
    };
    tree(folder).into_iter().filter_map(of).collect()
}

/// A neighbour who has the lock of everything below these folders that it can open, and says which; until it is dropped.
struct Neighbour(Running);

impl Neighbour {
    fn of(store: &Store, folders: &[&Path]) -> Self {
        let script = r#"
            mapfile -t files < <(find "$@" -type f 2>/dev/null)
            for file in "${files[@]}"; do
              [[ -r $file ]] && exec {lock}<"$file" && flock --nonblock "$lock" && echo "has $file" >&2
            done
            echo "has all" >&2
            exec sleep 600
        "#;
        let running = Program::new(tool("setpriv").unwrap())
            .args([
                format!("--reuid={NEIGHBOUR}"),
                format!("--regid={NEIGHBOUR}"),
            ])
            .args(["--clear-groups", "bash", "-c", script, "bash"])
            .args(folders.iter().map(|folder| folder.as_os_str()))
            .env("PATH", store.path())
            .start();
        running.until_it_says("has all");
        Self(running)
    }

    /// The files whose locks it has.
    fn end(self) -> Vec<PathBuf> {
        kill(self.0.pid(), Signal::SIGTERM).unwrap();
        let said = self.0.end().stderr;
        let locks = said.lines().filter_map(|line| line.strip_prefix("has /"));
        locks.map(|lock| Path::new("/").join(lock)).collect()
    }
}

#[test]
fn a_neighbour_who_locks_all_that_it_can_open_stops_nothing() {
    let Some(store) = store() else { return };
    let record = || store.eval_once(["pipeline", "--dry-run"]).run();
    let evaluate = || {
        store
            .step(["--attr", "a", "--no-out-link"])
            .env("EVAL_ONCE_EVALUATIONS", "1")
            .run()
    };
    record().exits(0);
    evaluate().exits(0);
    // The control: as an earlier version has left a state folder.
    let old = store.root().join("old");
    fs::create_dir_all(old.join("turns")).unwrap();
    fs::write(old.join("turns/0.lock"), "").unwrap();
    for path in tree(&old) {
        let mode = if path.is_dir() { 0o755 } else { 0o644 };
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    let neighbour = Neighbour::of(&store, &[&store.our_state(), &old]);
    let lock = fs::File::open(old.join("turns/0.lock")).unwrap();
    assert!(
        Flock::lock(lock, FlockArg::LockExclusiveNonblock).is_err(),
        "the neighbour is harmless, and this test shows nothing"
    );
    record().exits(0);
    evaluate()
        .exits(0)
        .never_says("waiting for an evaluation slot");
    store.eval_once(["prune"]).run().exits(0);
    // The same for the old folder: what the neighbour has open already is made anew.
    store
        .step(["--attr", "a", "--no-out-link"])
        .env("EVAL_ONCE_EVALUATIONS", "1")
        .env("EVAL_ONCE_STATE_DIR", &old)
        .run()
        .exits(0)
        .never_says("waiting for an evaluation slot");
    assert_eq!(open_to_others(&old), []);
    assert_eq!(neighbour.end(), [old.join("turns/0.lock")]);
}

#[test]
fn whatever_the_umask_the_state_folder_is_its_users_alone() {
    let Some(store) = store() else { return };
    store.open_to(USER);
    let daemon = store.daemon();
    for umask in ["000", "022", "077", "0777"] {
        let state = store.work().join(format!("parent-{umask}/state"));
        let mut before = store.before_by(USER);
        before.extend(["/bin/sh", "-c", "umask \"$0\" && exec \"$@\"", umask].map(OsString::from));
        let run = |arguments: &[&str]| {
            store
                .eval_once(arguments)
                .behind(&before)
                .envs(daemon.env())
                .env("EVAL_ONCE_STATE_DIR", &state)
                .run()
        };
        run(&["pipeline", "--dry-run"]).exits(0);
        run(&["step", "--attr", "a", "--no-out-link"]).exits(0);
        run(&["prune"]).exits(0);
        assert_eq!(open_to_others(state.parent().unwrap()), [], "{umask}");
        let names = tree(&state);
        assert!(names.contains(&state.join("turns/0.lock")), "{umask}");
        // Something is in each of them.
        for part in ["notes", "pins", "outputs"] {
            let part = state.join(part);
            let is_in = |name: &PathBuf| name.parent() == Some(&part);
            assert!(names.iter().any(is_in), "{umask}: {}", part.display());
        }
    }
}

#[test]
fn an_older_state_folder_is_closed_and_one_of_another_user_is_refused_with_what_mends_it() {
    let Some(store) = store() else { return };
    let state = store.our_state();
    let record = || store.eval_once(["pipeline", "--dry-run"]).run();
    record().exits(0);
    for path in tree(&state) {
        if !path.is_symlink() {
            let mode = if path.is_dir() { 0o755 } else { 0o644 };
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
    }
    let closed = format!(
        "warning: {} was open to other users of this host, and is closed to them now",
        state.display()
    );
    record().exits(0).passes_on(&closed);
    record().exits(0).never_says("was open to other users");
    let open: BTreeMap<_, _> = open_to_others(&state).into_iter().collect();
    assert!(open.keys().all(|path| !path.is_dir()), "{open:?}");
    let notes = state.join("notes");
    assert!(notes.read_dir().unwrap().count() > 0);
    assert_eq!(open_to_others(&notes), []);
    assert_eq!(mode(&state), 0o700);

    // All of it, or a part.
    for (part, link) in [("", false), ("turns", false), ("pins", true)] {
        let part = state.join(part);
        if link {
            fs::rename(&part, store.root().join("elsewhere")).unwrap();
            symlink(store.root().join("elsewhere"), &part).unwrap();
        } else {
            chown(&part, Some(NEIGHBOUR), None).unwrap();
        }
        let (why, mend) = if link {
            (
                format!("{} is not a folder", part.display()),
                "set EVAL_ONCE_STATE_DIR",
            )
        } else {
            let why = format!("belongs to the user {NEIGHBOUR}, and this is the user 0");
            (why, "hint: run `chown -Rh 0 ")
        };
        let ended = record();
        ended.exits(75).passes_on(&why).passes_on(mend);
        store
            .step(["--attr", "a", "--out-link", "result"])
            .run()
            .exits(0)
            .passes_on("warning: cannot use the state folder")
            .passes_on(&why);
        store.eval_once(["prune"]).run().exits(75).passes_on(&why);
        if link {
            fs::remove_file(&part).unwrap();
            fs::rename(store.root().join("elsewhere"), &part).unwrap();
        } else {
            chown(&part, Some(0), None).unwrap();
        }
        record().exits(0);
    }
}

#[test]
fn a_state_folder_that_every_user_can_replace_is_refused() {
    let Some(store) = store() else { return };
    let open = store.root().join("open");
    fs::create_dir(&open).unwrap();
    let record = |state: &Path| {
        store
            .eval_once(["pipeline", "--dry-run"])
            .env("EVAL_ONCE_STATE_DIR", state)
            .run()
    };
    fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
    record(&open.join("state"))
        .exits(75)
        .passes_on("is writable by all, and not sticky")
        .passes_on(&format!("hint: run `chmod +t {}`", open.display()));
    assert_eq!(open.read_dir().unwrap().count(), 0, "something is left");
    fs::set_permissions(&open, Permissions::from_mode(0o1777)).unwrap();
    record(&open.join("state")).exits(0);
    // In a sticky folder, a neighbour's link or folder leads nowhere.
    let home = store.root().join("home");
    symlink(&home, open.join("link")).unwrap();
    std::os::unix::fs::lchown(open.join("link"), Some(NEIGHBOUR), None).unwrap();
    fs::create_dir(open.join("folder")).unwrap();
    chown(open.join("folder"), Some(NEIGHBOUR), None).unwrap();
    for name in ["link", "folder"] {
        for state in [open.join(name), open.join(name).join("state")] {
            record(&state)
                .exits(75)
                .passes_on(&format!("belongs to the user {NEIGHBOUR}"));
        }
    }
    assert!(!home.join("state").exists() && !home.join("pins").exists());
}

#[test]
fn what_waits_for_a_pin_says_for_which_process_and_a_signal_ends_it() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    let record = || store.eval_once(["pipeline", "--dry-run"]);
    record().run().exits(0);
    let pins = store.our_state().join("pins");
    let mut pins = pins.read_dir().unwrap().map(|pin| pin.unwrap().path());
    let pin = pins.next().unwrap();
    let lock = pin.join("lock");
    let lock = store.our_lock(
        lock.strip_prefix(store.our_state())
            .unwrap()
            .to_str()
            .unwrap(),
    );
    let held = Flock::lock(lock, FlockArg::LockExclusiveNonblock).unwrap();
    let running = record().start();
    let us = std::process::id();
    running.until_it_says(if cfg!(target_os = "linux") {
        "still waiting for the lock of a pin, which the process "
    } else {
        "still waiting for the lock of a pin"
    });
    let second = record().start();
    kill(running.pid(), Signal::SIGTERM).unwrap();
    let ended = running.end();
    ended.exits(143);
    if cfg!(target_os = "linux") {
        ended.passes_on(&format!("the process {us} has"));
    }
    // `prune` does not wait, and removes nothing that is held.
    fs::write(pin.join("keep.json"), "{\"until\":1}").unwrap();
    store.eval_once(["prune"]).run().exits(0);
    assert!(pin.join("pin").exists());
    drop(held);
    second.end().exits(0);
    assert!(pin.join("pin").exists());
}

#[test]
fn what_waits_for_a_slot_says_for_which_processes_and_a_signal_ends_it() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    let held = ["turns/0.lock", "turns/1.lock"]
        .map(|lock| Flock::lock(store.our_lock(lock), FlockArg::LockExclusiveNonblock).unwrap());
    let running = store
        .step(["--attr", "a", "--no-out-link"])
        .env("EVAL_ONCE_EVALUATIONS", "2")
        .start();
    running.until_it_says("waiting for an evaluation slot (2 of 2 in use)");
    running.until_it_says("still waiting for an evaluation slot");
    kill(running.pid(), Signal::SIGINT).unwrap();
    let ended = running.end();
    ended.exits(130);
    if cfg!(target_os = "linux") {
        ended.passes_on(&format!("which the process {} has", std::process::id()));
    }
    drop(held);
}

#[test]
fn a_pipe_in_the_place_of_a_file_is_waited_for_by_nothing() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    let run = || {
        store.eval_once(["pipeline", "--dry-run"]).run().exits(0);
        store.eval_once(["prune"]).run().exits(0);
    };
    run();
    let state = store.our_state();
    let files: Vec<_> = tree(&state)
        .into_iter()
        .filter(|path| path.symlink_metadata().unwrap().is_file())
        .collect();
    assert!(
        files
            .iter()
            .any(|file| file.as_os_str().as_bytes().ends_with(b"keep.json"))
    );
    for file in files.iter().filter(|file| !file.ends_with("lock")) {
        fs::remove_file(file).unwrap();
        unix::unistd::mkfifo(file, unix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    run();
}

#[test]
fn whatever_the_umask_what_a_recording_uploads_is_its_users_alone() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    let seen = store.root().join("seen");
    // Each time the agent is called, it looks at what lies in the folder for temporary files, and at its own input.
    let script = format!(
        "#!/bin/sh\n\
         find \"$TMPDIR\" -mindepth 1 -exec stat -c '%a %F %n' {{}} + >>'{}'\n",
        seen.display()
    );
    let stand_ins = StandIns::new(store.bin()).instead("buildkite-agent", &script);
    let before = ["/bin/sh", "-c", "umask 000 && exec \"$@\"", "sh"].map(OsString::from);
    let record = || {
        store
            .eval_once(["pipeline", "--share", "artifact"])
            .behind(&before)
            .env("PATH", stand_ins.path(&store))
            .env("BUILDKITE", "true")
            .env("BUILDKITE_JOB_ID", "job")
            .env("BUILDKITE_STEP_ID", "step")
            .env("BUILDKITE_BUILD_ID", "build")
            .env("BUILDKITE_AGENT_ACCESS_TOKEN", "token")
            .run()
    };
    record().exits(0);
    let seen = fs::read_to_string(seen).unwrap();
    for part in ["plan", "pipeline", ".tar", "eval-once.json"] {
        assert!(seen.contains(part), "no {part}: {seen}");
    }
    let temporary = store.root().join("tmp");
    for line in seen.lines() {
        let (mode, path) = line.split_once(' ').unwrap();
        let (kind, path) = path.split_once(" /").unwrap();
        let path = Path::new("/").join(path);
        let is_outer = path.parent() == Some(&*temporary);
        // What is in a closed folder may be Nix's, with Nix's modes.
        let private = match kind {
            "directory" if is_outer => "700",
            "directory" => continue,
            _ => "600",
        };
        assert_eq!(mode, private, "{line}");
    }
    // Where every user could put another folder in the place of that one, nothing is uploaded from it.
    fs::set_permissions(&temporary, Permissions::from_mode(0o777)).unwrap();
    record()
        .exits(75)
        .passes_on("is writable by all, and not sticky")
        .passes_on(&format!("hint: run `chmod +t {}`", temporary.display()));
    let doctor = store.eval_once(["doctor"]).run();
    let line = doctor
        .stdout
        .lines()
        .find(|line| line.contains("temporary-folder"));
    assert!(line.unwrap().starts_with("failure"), "{doctor}");
}
