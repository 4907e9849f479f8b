//! `eval-once doctor`: each line with what makes it a failure or a warning, and without that.

use std::{
    fs::{self, FileTimes, Permissions},
    os::unix::{
        fs::{PermissionsExt, chown, symlink},
        net::UnixListener,
    },
    path::Path,
    time::{Duration, SystemTime},
};

use serde_json::Value;
use unix::{
    sys::signal::{Signal, kill},
    unistd::{Gid, Group, geteuid},
};

use crate::support::{
    EVAL_ONCE,
    agent::Job,
    daemon::client_env,
    program::{Ended, Program},
    skip,
    stand_in::{StandIns, write_program},
    store::Store,
    tool, until,
    web::{Trouble, Web},
};

/// A user who is not root, by number.
const OTHER: u32 = 1234;

/// What an agent does that is asked for its version.
const VERSION: &str =
    "case $1 in --version) echo 'buildkite-agent version 3.137.0, build 1'; exit;; esac";

/// All names of checks, which other programs look for.
const NAMES: [&str; 20] = [
    "host-settings",
    "nix",
    "store",
    "trust",
    "keep-derivations",
    "keep-outputs",
    "min-free",
    "substituters",
    "state-folder",
    "roots",
    "clock",
    "temporary-folder",
    "disk",
    "agent",
    "buildkite",
    "command-hook",
    "environment-hook",
    "strict-single-hooks",
    "share-read",
    "share-write",
];

/// The result of `doctor --json`.
struct Checkup {
    json: Value,
    ended: Ended,
}

impl Checkup {
    /// Runs it, and looks whether its status is that of its worst outcome, and its form the documented one.
    #[track_caller]
    fn of(program: &Program) -> Self {
        let ended = program.run();
        let json: Value =
            serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended}"));
        assert_eq!(json["version"], 1);
        let checks = json["checks"].as_array().unwrap();
        let names: Vec<&str> = checks
            .iter()
            .map(|it| it["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, NAMES);
        for check in checks {
            let needs_mending = check["outcome"] == "warning" || check["outcome"] == "failure";
            assert_eq!(check["mend"].is_string(), needs_mending, "{check}");
            assert_eq!(check.as_object().unwrap().len(), 4, "{check}");
        }
        let fails = checks.iter().any(|check| check["outcome"] == "failure");
        ended.exits(i32::from(fails));
        assert_eq!(ended.stderr, "");
        Self { json, ended }
    }

    #[track_caller]
    fn check(&self, name: &str) -> &Value {
        let checks = self.json["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == name).unwrap()
    }

    /// Each of these checks has this outcome, and a message in which this part stands.
    #[track_caller]
    fn has(&self, name: &str, outcome: &str, part: &str) -> &Self {
        let check = self.check(name);
        assert_eq!(check["outcome"], outcome, "{check}\n{}", self.ended);
        let message = check["message"].as_str().unwrap();
        assert!(
            message.contains(part),
            "{name} is without {part:?}: {message}"
        );
        self
    }

    #[track_caller]
    fn mends(&self, name: &str, part: &str) -> &Self {
        let mend = self.check(name)["mend"].as_str().unwrap();
        assert!(mend.contains(part), "{name} is without {part:?}: {mend}");
        self
    }
}

/// A checkup in this store.
fn doctor(store: &Store) -> Program {
    store.eval_once(["doctor", "--json"])
}

/// What lies below a folder, with modes and times of change: all that a checkup could leave behind.
fn listing(folder: &Path) -> Vec<(String, u32)> {
    let mut listing = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().into_iter().flatten().flatten() {
            let metadata = entry.path().symlink_metadata().unwrap();
            if metadata.is_dir() {
                folders.push(entry.path());
            }
            let mode = metadata.permissions().mode();
            listing.push((entry.path().display().to_string(), mode));
        }
    }
    listing.sort();
    listing
}

#[test]
fn a_host_with_nothing_wrong_has_no_failure_and_stays_as_it_is() {
    let Some(store) = Store::without_daemon() else {
        return;
    };
    let ours = || {
        (
            store.our_state().exists(),
            listing(&store.our_state()),
            store.roots(),
        )
    };
    let before = ours();
    let checkup = Checkup::of(&doctor(&store));
    checkup.ended.exits(0);
    checkup
        .has("nix", "ok", "Nix 2.")
        .has("store", "ok", "without a daemon")
        .has("trust", "not-applicable", "no daemon")
        .has("keep-derivations", "ok", "= true")
        .has("keep-outputs", "ok", "= false")
        .has("min-free", "ok", "= 0")
        .has("substituters", "ok", "there are none")
        .has("state-folder", "ok", "does not exist")
        .has("roots", "ok", "is seen")
        .has("clock", "ok", "")
        .has("temporary-folder", "ok", "is writable")
        .has("agent", "not-applicable", "in a job")
        .has("share-read", "not-applicable", "artifact");
    assert_eq!(ours(), before);
    // And beside what steps have left.
    store.eval_once(["prune"]).run();
    store.targets("{ a = file \"a\"; }");
    store.step(["--attr", "a", "--no-out-link"]).run().exits(0);
    let before = ours();
    Checkup::of(&doctor(&store)).has("state-folder", "ok", "this user's alone");
    assert_eq!(ours(), before);
}

#[test]
fn people_get_a_line_for_each_check_and_a_hint_where_something_is_wrong() {
    let Some(store) = Store::new() else { return };
    store.configure("keep-derivations = false");
    let ended = store.eval_once(["doctor"]).run();
    ended.exits(0);
    assert_eq!(ended.stderr, "");
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines.len(), NAMES.len() + 2, "{ended}");
    let at = lines
        .iter()
        .position(|line| line.starts_with("warning         keep-derivations"));
    assert!(
        lines[at.unwrap() + 1].starts_with("         hint:"),
        "{ended}"
    );
    assert_eq!(lines.last().unwrap(), &"20 checks: 0 failures, 1 warning");
    store.eval_once(["doctor", "--loud"]).run().exits(64);
    store.eval_once(["doctor", "more"]).run().exits(64);
}

#[test]
fn without_anything_every_check_is_still_a_line() {
    let checkup = Checkup::of(&Program::new(EVAL_ONCE).args(["doctor", "--json"]));
    checkup.ended.exits(1);
    checkup
        .has("nix", "failure", "nix-store is not on PATH")
        .mends("nix", "environment hook")
        .has("store", "not-applicable", "no Nix")
        .has(
            "state-folder",
            "failure",
            "neither EVAL_ONCE_STATE_DIR nor HOME",
        )
        .has("roots", "not-applicable", "no state folder");
}

#[test]
fn a_program_that_is_no_nix_is_named() {
    let Some(store) = Store::new() else { return };
    let with = |program: &str, script: &str| {
        let _ = fs::remove_dir_all(store.bin());
        let stand_ins =
            StandIns::new(store.bin()).instead(program, &format!("#!/bin/sh\n{script}"));
        Checkup::of(&doctor(&store).env("PATH", stand_ins.path(&store)))
    };
    for (script, why) in [
        ("exit 0", "prints no version"),
        ("echo hello", "prints \"hello\" as its version"),
        ("exit 3", "3"),
        ("head -c 3000000 /dev/zero | tr '\\0' x", "prints \"xxxx"),
    ] {
        let checkup = with("nix-store", script);
        checkup
            .has("nix", "failure", why)
            .has("store", "not-applicable", "");
        assert!(checkup.ended.stdout.len() < 20_000);
    }
    with("nix-store", "echo 'nix-store (Nix) 2.3.16'").has("nix", "failure", "older than 2.8");
    let checkup = with("nix", "echo 'nix (Nix) 2.99.1'");
    checkup.has("nix", "warning", "different versions");
    // The program `nix` is only for recordings, and says the settings.
    fs::remove_dir_all(store.bin()).unwrap();
    fs::create_dir(store.bin()).unwrap();
    for program in ["nix-store", "nix-instantiate", "rm", "ln"] {
        symlink(tool(program).unwrap(), store.bin().join(program)).unwrap();
    }
    let checkup = Checkup::of(&doctor(&store).env("PATH", store.bin()));
    checkup
        .has("nix", "warning", "nix is not on PATH")
        .has("store", "ok", "answers")
        .has("keep-derivations", "not-applicable", "no `nix`")
        .has("roots", "ok", "is seen");
}

#[test]
fn settings_that_hurt_are_warnings() {
    let Some(store) = Store::new() else { return };
    let version = store.nix("nix-store", ["--version"]);
    store.configure("keep-derivations = false");
    store.configure("keep-outputs = true");
    store.configure("min-free = 1000");
    let checkup = Checkup::of(&doctor(&store));
    checkup.ended.exits(0);
    checkup
        .has("keep-derivations", "warning", "evaluates again")
        .mends("keep-derivations", "nix.conf")
        .has("keep-outputs", "warning", "keeps every output")
        .mends("keep-outputs", "nix.conf")
        .has("min-free", "warning", "before 2.35")
        .mends("min-free", "fixed times");
    assert!(version.contains(" 2."), "{version}");
}

#[test]
fn through_a_daemon_the_collectors_settings_are_those_of_the_host() {
    let Some(store) = Store::without_daemon() else {
        return;
    };
    let daemon = store.daemon();
    let of_user = store.root().join("user.conf");
    fs::write(&of_user, "keep-derivations = false\nkeep-outputs = true\n").unwrap();
    let local = Checkup::of(&doctor(&store).env("NIX_USER_CONF_FILES", &of_user));
    local
        .has("keep-derivations", "warning", "")
        .has("keep-outputs", "warning", "");
    let client = doctor(&store)
        .envs(daemon.env())
        .env("NIX_USER_CONF_FILES", &of_user);
    Checkup::of(&client)
        .has("store", "ok", "through the daemon (Nix 2.")
        .has("trust", "ok", "as root")
        .has("keep-derivations", "ok", "= true")
        .has("keep-outputs", "ok", "= false")
        // The daemon may read another file, in or outside of a container.
        .has("keep-outputs", "ok", "in the nix.conf that is seen here")
        .has("min-free", "ok", "if the daemon reads the same")
        .has("roots", "ok", "is seen");
    local.has("min-free", "ok", "= 0: no build starts a collection");
}

#[test]
fn a_user_whom_the_daemon_does_not_trust_is_named_so_and_can_do_all_that_is_needed() {
    let Some(store) = Store::new() else { return };
    if !geteuid().is_root() {
        return crate::support::loudly("only root can be another user");
    }
    let daemon = store.daemon();
    store.open_to(OTHER);
    fs::set_permissions(store.our_state(), Permissions::from_mode(0o700)).unwrap();
    let by = |user| {
        let program = store.eval_once_by(user, ["doctor", "--json"]);
        program
            .envs(daemon.env())
            .env("HOME", store.root().join("home"))
    };
    let checkup = Checkup::of(&by(OTHER));
    checkup.ended.exits(0);
    checkup
        .has("trust", "ok", "not trusted by the daemon, which is enough")
        .has("roots", "ok", "is seen")
        .has("state-folder", "ok", "this user's alone");
    // Another user's state folder is not touched.
    let before = listing(&store.our_state());
    Checkup::of(&by(OTHER + 1))
        .has("state-folder", "failure", "belongs to the user 1234")
        .mends("state-folder", "chown")
        .has("roots", "not-applicable", "state-folder");
    assert_eq!(listing(&store.our_state()), before);
}

#[test]
fn a_user_whom_the_daemon_refuses_is_sent_to_allowed_users() {
    let Some(store) = Store::new() else { return };
    if !geteuid().is_root() {
        return crate::support::loudly("only root can be another user");
    }
    store.configure("allowed-users = root");
    let daemon = store.daemon();
    store.open_to(OTHER);
    let by = |user| {
        let program = store.eval_once_by(user, ["doctor", "--json"]);
        let program = program.envs(daemon.env());
        Checkup::of(&program.env("HOME", store.root().join("home")))
    };
    by(OTHER)
        .has("store", "failure", "does not answer")
        .mends("store", "`allowed-users`");
    by(0).has("store", "ok", "");
}

#[test]
fn a_store_that_does_not_answer_is_a_failure_within_its_limit() {
    let Some(store) = Store::new() else { return };
    let socket = store.root().join("socket");
    let client = || doctor(&store).envs(client_env(&socket));
    let gone = Checkup::of(&client());
    gone.has("store", "failure", "does not answer")
        .mends("store", "daemon");
    gone.has("roots", "not-applicable", "no store that answers");
    // One that hangs at the handshake.
    let _listener = UnixListener::bind(&socket).unwrap();
    let hangs = Checkup::of(&client());
    hangs.has("store", "failure", "no answer within 10 s");
    assert!(
        hangs.ended.took < Duration::from_secs(45),
        "{}",
        hangs.ended
    );
    assert!(listing(&store.our_state()).is_empty());
}

#[test]
fn a_state_folder_that_the_daemon_does_not_see_keeps_nothing() {
    let Some(store) = Store::new() else { return };
    let daemon = store.daemon();
    fs::create_dir(store.our_state()).unwrap();
    fs::set_permissions(store.our_state(), Permissions::from_mode(0o700)).unwrap();
    let mount = format!(
        "mount -t tmpfs -o mode=0700 none '{}'",
        store.our_state().display()
    );
    let Some(container) = store.eval_once_with_mounts(&mount) else {
        return;
    };
    Checkup::of(&container.args(["doctor", "--json"]).envs(daemon.env()))
        .has("roots", "failure", "does not see")
        .mends("roots", "mount the state folder");
    Checkup::of(&doctor(&store).envs(daemon.env())).has("roots", "ok", "is seen");
}

#[test]
fn a_state_folder_that_is_open_or_cannot_be_written_is_named_and_stays_so() {
    let Some(store) = Store::new() else { return };
    let state = store.our_state();
    fs::create_dir_all(state.join("pins")).unwrap();
    for folder in [&state, &state.join("pins")] {
        fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
        let before = listing(&store.our_state());
        Checkup::of(&doctor(&store))
            .has("state-folder", "warning", "is open to other users")
            .mends("state-folder", &format!("chmod 0700 {}", folder.display()))
            .has("roots", "ok", "");
        assert_eq!(listing(&store.our_state()), before);
        fs::set_permissions(folder, Permissions::from_mode(0o700)).unwrap();
    }
    Checkup::of(&doctor(&store)).has("state-folder", "ok", "alone");
    fs::set_permissions(&state, Permissions::from_mode(0o500)).unwrap();
    Checkup::of(&doctor(&store))
        .has("state-folder", "warning", "keeps this user from it")
        .mends("state-folder", &format!("chmod 0700 {}", state.display()))
        .has("roots", "not-applicable", "state-folder");
    fs::set_permissions(&state, Permissions::from_mode(0o700)).unwrap();
    let mount = format!("mount -t tmpfs -o ro,mode=0700 none '{}'", state.display());
    if let Some(read_only) = store.eval_once_with_mounts(&mount) {
        Checkup::of(&read_only.args(["doctor", "--json"]))
            .has("roots", "failure", "nothing can be made")
            .mends("roots", "EVAL_ONCE_STATE_DIR");
    }
    let file = store.root().join("file");
    fs::write(&file, "").unwrap();
    Checkup::of(&doctor(&store).env("EVAL_ONCE_STATE_DIR", &file)).has(
        "state-folder",
        "failure",
        "is not a folder",
    );
}

#[test]
fn a_setting_that_nix_refuses_is_not_taken_for_a_nix_that_does_not_work() {
    let Some(store) = Store::new() else { return };
    for (wrong, why) in [
        ("garbage", "configuration line"),
        ("cores = x", "'cores'"),
        ("max-jobs = x", "'max-jobs'"),
    ] {
        Checkup::of(&doctor(&store).env("NIX_CONFIG", wrong))
            .has("nix", "failure", "refuses its settings: ")
            .has("nix", "failure", why)
            .mends("nix", "correct NIX_CONFIG");
    }
}

#[test]
fn a_group_of_build_users_that_cannot_build_is_seen_before_a_build() {
    let Some(store) = Store::new() else { return };
    if !geteuid().is_root() {
        return skip("only root builds as other users");
    }
    // Of a daemon's group this Nix knows nothing.
    let group = |name: &str| {
        let doctor = doctor(&store).without("NIX_REMOTE");
        doctor.env("NIX_CONFIG", format!("build-users-group = {name}"))
    };
    Checkup::of(&group("eval-once-has-none"))
        .has(
            "store",
            "failure",
            "the group `eval-once-has-none` of `build-users-group` does not exist",
        )
        .mends("store", "make the group");
    // Each system has a group of root's that nobody else is in.
    let of_root = Group::from_gid(Gid::from_raw(0)).unwrap().unwrap();
    if of_root.mem.is_empty() {
        Checkup::of(&group(&of_root.name)).has("store", "failure", "has no members");
    }
    Checkup::of(&group("")).has("store", "ok", "answers");
}

#[test]
fn a_checkup_that_is_killed_leaves_a_root_that_the_next_step_removes() {
    let Some(store) = Store::new() else { return };
    let roots = store.our_state().join("roots");
    fs::create_dir_all(&roots).unwrap();
    // It is killed while Nix looks at the root.
    let script = "case \"$*\" in *--roots*) touch rooted; exec sleep 600;; esac";
    let stand_ins = StandIns::new(store.bin()).before("nix-store", script);
    let running = doctor(&store).env("PATH", stand_ins.path(&store)).start();
    until("the root is made", || store.work().join("rooted").exists());
    kill(running.pid(), Signal::SIGKILL).unwrap();
    crate::support::processes::kill_marked(store.root().to_str().unwrap());
    let _ = running.end();
    let left: Vec<_> = roots.read_dir().unwrap().flatten().collect();
    assert_eq!(left.len(), 1);
    let long_ago = FileTimes::new().set_modified(SystemTime::now() - Duration::from_secs(600));
    fs::File::open(left[0].path())
        .unwrap()
        .set_times(long_ago)
        .unwrap();
    store.eval_once(["prune"]).run().exits(0);
    assert_eq!(roots.read_dir().unwrap().count(), 0);
}

#[test]
fn a_checkup_that_is_stopped_removes_its_root_and_ends_by_the_signal() {
    let Some(store) = Store::new() else { return };
    let script = "case \"$*\" in *--roots*) touch rooted; exec sleep 600;; esac";
    let stand_ins = StandIns::new(store.bin()).before("nix-store", script);
    let running = doctor(&store).env("PATH", stand_ins.path(&store)).start();
    until("the root is made", || store.work().join("rooted").exists());
    kill(running.pid(), Signal::SIGTERM).unwrap();
    running.end().exits(128 + 15);
    assert!(!store.our_state().exists());
}

#[test]
fn substituters_that_do_not_answer_are_told_from_those_that_do() {
    let Some(store) = Store::new() else { return };
    let folder = store.root().join("cache");
    fs::create_dir(&folder).unwrap();
    fs::write(
        folder.join("nix-cache-info"),
        format!("StoreDir: {}\n", store.folder().display()),
    )
    .unwrap();
    let web = Web::serve(&folder);
    let refuses = "http://127.0.0.1:1";
    let with = |substituters: &str| {
        Checkup::of(&doctor(&store).env("NIX_CONFIG", format!("substituters = {substituters}")))
    };
    with(&web.url()).has("substituters", "ok", "answer");
    with(&format!("{} {refuses}", web.url()))
        .has(
            "substituters",
            "warning",
            "1 of 2 cannot be used: http://127.0.0.1:1: ",
        )
        .mends("substituters", "nix.conf");
    with(refuses).has("substituters", "failure", "none can be used");
    let missing = store.root().join("no-cache");
    with(&format!("file://{}", missing.display())).has(
        "substituters",
        "failure",
        "is not a folder",
    );
    assert!(!missing.exists());
    let of_folder = format!("file://{}", folder.display());
    with(&of_folder).has("substituters", "ok", "");
    let info = folder.join("nix-cache-info");
    let right = fs::read_to_string(&info).unwrap();
    fs::write(&info, "StoreDir: /other/store\n").unwrap();
    // Nix remembers what a server has said.
    let other = Web::serve(&folder);
    for cache in [&of_folder, &other.url()] {
        with(cache).has("substituters", "failure", "/other/store");
    }
    fs::write(&info, right).unwrap();
    // One that is silent has its limit.
    web.spoil(".narinfo", Trouble::IsSilent);
    with(&web.url()).has("substituters", "failure", "no answer within 15 s");
}

#[test]
fn a_share_is_read_and_written() {
    let Some(store) = Store::new() else { return };
    let folder = store.root().join("share");
    let with = |share: &str, flags: &[&str]| {
        Checkup::of(&doctor(&store).args(flags).env("EVAL_ONCE_SHARE", share))
    };
    let of_folder = format!("file://{}", folder.display());
    with(&of_folder, &[])
        .has("share-read", "failure", "cannot be read")
        .has("share-write", "warning", "cannot be written");
    assert!(!folder.exists());
    fs::create_dir(&folder).unwrap();
    with(&of_folder, &[])
        .has("share-read", "ok", "")
        .has("share-write", "ok", "");
    assert_eq!(folder.read_dir().unwrap().count(), 0);
    // Nix writes and reads only what is for its own folder of the store.
    fs::write(folder.join("nix-cache-info"), "StoreDir: /other/store\n").unwrap();
    with(&of_folder, &[])
        .has("share-read", "failure", "/other/store")
        .has("share-write", "warning", "/other/store")
        .mends("share-write", "URL");
    let info = format!("StoreDir: {}\n", store.folder().display());
    fs::write(folder.join("nix-cache-info"), info).unwrap();
    with(&of_folder, &[])
        .has("share-read", "ok", "")
        .has("share-write", "ok", "");
    assert_eq!(folder.read_dir().unwrap().count(), 1);
    let web = Web::serve(&folder);
    with(&web.url(), &[]).has("share-read", "ok", "").has(
        "share-write",
        "not-applicable",
        "--write-share",
    );
    assert_eq!(folder.read_dir().unwrap().count(), 1);
    for _ in 0..2 {
        let before = folder.read_dir().unwrap().count();
        with(&web.url(), &["--write-share"]).has("share-write", "ok", "can be written");
        assert!(folder.read_dir().unwrap().count() > before);
    }
    web.spoil("", Trouble::Answers(401));
    with(&web.url(), &["--write-share"])
        .has("share-read", "failure", "cannot be read")
        .has("share-write", "warning", "cannot be written");
    with("false", &[]).has("share-read", "not-applicable", "false");
    with("what", &[]).has("host-settings", "failure", "EVAL_ONCE_SHARE");
}

#[test]
fn wrong_settings_of_the_host_are_a_line() {
    let Some(store) = Store::new() else { return };
    Checkup::of(&doctor(&store).env("EVAL_ONCE_STATE_DIR", "state"))
        .has(
            "host-settings",
            "failure",
            "EVAL_ONCE_STATE_DIR is state, a relative path",
        )
        .mends("host-settings", "absolute")
        .has("state-folder", "not-applicable", "host-settings")
        .has("nix", "ok", "");
    Checkup::of(&doctor(&store).env("EVAL_ONCE_POLICY", "recorded-only")).has(
        "host-settings",
        "ok",
        "recorded-only",
    );
}

#[test]
fn a_missing_folder_for_temporary_files_and_a_full_disk_are_named() {
    let Some(store) = Store::new() else { return };
    let missing = store.root().join("missing");
    Checkup::of(&doctor(&store).env("TMPDIR", &missing))
        .has("temporary-folder", "failure", "missing")
        .mends("temporary-folder", "TMPDIR");
    let temporary = store.root().join("tmp");
    let mount = format!("mount -t tmpfs -o size=1m none '{}'", temporary.display());
    if let Some(small) = store.eval_once_with_mounts(&mount) {
        Checkup::of(&small.args(["doctor", "--json"]))
            .has("disk", "warning", "MiB free")
            .has("temporary-folder", "ok", "");
    }
}

#[test]
fn files_from_the_future_show_that_the_clock_was_set_back() {
    let Some(store) = Store::new() else { return };
    let note = store.our_state().join("notes/a");
    store.eval_once(["prune"]).run().exits(0);
    fs::create_dir_all(note.parent().unwrap()).unwrap();
    fs::write(&note, "").unwrap();
    Checkup::of(&doctor(&store)).has("clock", "ok", "");
    let future = FileTimes::new().set_modified(SystemTime::now() + Duration::from_secs(7200));
    fs::File::open(&note).unwrap().set_times(future).unwrap();
    Checkup::of(&doctor(&store))
        .has("clock", "warning", "was set back")
        .mends("clock", "network");
}

#[test]
fn a_clock_that_is_wrong_is_told_by_the_year_and_by_the_disk() {
    let Some(store) = Store::new() else { return };
    let Some(faketime) = tool("faketime") else {
        return;
    };
    let at = |time: &str| {
        let before = [faketime.clone().into_os_string(), "-f".into(), time.into()];
        // Else the times of files are shifted as well.
        let program = doctor(&store).env("NO_FAKE_STAT", "1");
        Checkup::of(&program.behind(&before))
    };
    at("+0").has("clock", "ok", "and so does the state folder's disk");
    at("2020-01-01 00:00:00")
        .has("clock", "failure", "before this program was written")
        .mends("clock", "network");
    for time in ["+2h", "-2h"] {
        at(time)
            .has("clock", "warning", "the clock of the disk of")
            .has("clock", "warning", "differs by 7")
            .mends("clock", "file server");
    }
    at("+30").has("clock", "ok", "");
}

#[test]
fn an_agent_is_asked_for_its_version_and_in_a_job_for_an_answer_of_buildkite() {
    let Some(store) = Store::new() else { return };
    let with = |script: &str, job: bool| {
        let _ = fs::remove_dir_all(store.bin());
        let stand_ins = StandIns::new(store.bin())
            .instead("buildkite-agent", &format!("#!/bin/sh\n{script}\n"));
        let program = doctor(&store).env("PATH", stand_ins.path(&store));
        Checkup::of(&if job {
            program.env("BUILDKITE_JOB_ID", "1")
        } else {
            program
        })
    };
    with(VERSION, false).has("agent", "ok", "3.137.0").has(
        "buildkite",
        "not-applicable",
        "not a job",
    );
    with(VERSION, true).has("buildkite", "ok", "answers");
    with(&format!("{VERSION}\necho no route >&2; exit 1"), true)
        .has("buildkite", "failure", "no route")
        .mends("buildkite", "reaches Buildkite");
    with("echo 'buildkite-agent version 3.47.0, build 1'", false).has(
        "agent",
        "warning",
        "older than 3.83",
    );
    with("exit 0", true)
        .has("agent", "failure", "no version")
        .has("buildkite", "not-applicable", "no agent");
    let checkup = with("exec sleep 600", false);
    checkup.has("agent", "failure", "no answer within 10 s");
    let alone = Checkup::of(&doctor(&store).env("BUILDKITE_JOB_ID", "1"));
    if alone.check("agent")["message"]
        .as_str()
        .unwrap()
        .contains("not on PATH")
    {
        alone.has("agent", "failure", "this is a job");
    }
}

#[test]
fn hooks_of_the_agent_are_ours_or_wrong_in_ways_that_are_named() {
    let Some(store) = Store::new() else { return };
    let hooks = store.root().join("hooks");
    fs::create_dir(&hooks).unwrap();
    let command = hooks.join("command");
    let checkup = |version: &str| {
        let agent = format!("#!/bin/sh\necho 'buildkite-agent version {version}, build 1'\n");
        let stand_ins = StandIns::new(store.bin()).instead("buildkite-agent", &agent);
        let program = doctor(&store).env("PATH", stand_ins.path(&store));
        Checkup::of(&program.env("BUILDKITE_HOOKS_PATH", &hooks))
    };
    let now = || checkup("3.137.0");
    now().has("command-hook", "not-applicable", "no command hook");
    symlink(EVAL_ONCE, &command).unwrap();
    symlink(EVAL_ONCE, hooks.join("environment")).unwrap();
    now()
        .has("command-hook", "ok", "is eval-once's")
        .has("environment-hook", "ok", "");
    checkup("3.83.1").has("command-hook", "failure", "polyglot-hooks");
    fs::remove_file(&command).unwrap();
    symlink("/nowhere/eval-once", &command).unwrap();
    now().has("command-hook", "failure", "does not exist");
    fs::remove_file(&command).unwrap();
    // Not a link, but the program itself.
    fs::copy(EVAL_ONCE, &command).unwrap();
    now().has("command-hook", "ok", "is eval-once's");
    checkup("3.83.1").has("command-hook", "failure", "polyglot-hooks");
    fs::set_permissions(&command, Permissions::from_mode(0o644)).unwrap();
    now().has("command-hook", "failure", "is not executable");
    fs::remove_file(&command).unwrap();
    // A binary that no user may run.
    let copy = store.root().join("eval-once");
    fs::copy(EVAL_ONCE, &copy).unwrap();
    fs::set_permissions(&copy, Permissions::from_mode(0o644)).unwrap();
    symlink(&copy, &command).unwrap();
    now()
        .has("command-hook", "failure", "is not executable")
        .mends("command-hook", "chmod +x");
    fs::remove_file(&command).unwrap();
    write_program(&command, "#!/bin/sh\nexec make\n");
    now().has("command-hook", "not-applicable", "is not eval-once's");
    let script = format!("export BUILDKITE_HOOK_SCOPE=global\nexec '{EVAL_ONCE}' hook command\n");
    write_program(&command, &format!("#!/usr/bin/env bash\n{script}"));
    let further = store.root().join("further");
    fs::create_dir(&further).unwrap();
    write_program(&further.join("command"), "#!/bin/sh\n");
    Checkup::of(
        &doctor(&store)
            .env("BUILDKITE_HOOKS_PATH", &hooks)
            .env("BUILDKITE_ADDITIONAL_HOOKS_PATHS", &further),
    )
    .has("command-hook", "warning", "2 command hooks");
}

/// A checkup in a job whose agent has one hook, a script of these lines.
fn checkup_with_hook(store: &Store, name: &str, lines: &str) -> Checkup {
    let hooks = store.root().join("hooks");
    fs::create_dir_all(&hooks).unwrap();
    write_program(
        &hooks.join(name),
        &format!("#!/usr/bin/env bash\n{lines}\n"),
    );
    // `eval-once` is on PATH, and an agent.
    let stand_ins = StandIns::new(store.bin())
        .instead("buildkite-agent", &format!("#!/bin/sh\n{VERSION}\n"))
        .instead("eval-once", "#!/bin/sh\n");
    let checkup = Checkup::of(
        &doctor(store)
            .env("PATH", stand_ins.path(store))
            .env("BUILDKITE_HOOKS_PATH", &hooks)
            .env("BUILDKITE_JOB_ID", "1"),
    );
    fs::remove_dir_all(&hooks).unwrap();
    fs::remove_dir_all(store.bin()).unwrap();
    checkup
}

#[test]
fn a_command_hook_that_is_a_script_is_judged_by_the_commands_in_it() {
    let Some(store) = Store::new() else { return };
    let program = store.root().join("opt/eval-once");
    fs::create_dir(program.parent().unwrap()).unwrap();
    write_program(&program, "#!/bin/sh\n");
    let program = program.display();
    for (lines, outcome, part) in [
        // Its own page shows this one.
        (
            "export BUILDKITE_HOOK_SCOPE=global\nexec eval-once hook command",
            "ok",
            "is eval-once's",
        ),
        (
            &format!("export BUILDKITE_HOOK_SCOPE=agent\nexec '{program}' hook command \"$@\""),
            "ok",
            "is eval-once's",
        ),
        (
            "export BUILDKITE_HOOK_SCOPE=global\nexec \"$EVAL_ONCE_BIN\" hook command # ours",
            "ok",
            "is eval-once's",
        ),
        (
            "BUILDKITE_HOOK_SCOPE=global exec eval-once \\\n  hook command",
            "ok",
            "is eval-once's",
        ),
        (
            "# this host has no eval-once any more\nexec make",
            "not-applicable",
            "is not eval-once's",
        ),
        (
            "# exec eval-once hook command\nexec make",
            "not-applicable",
            "is not eval-once's",
        ),
        (
            "echo 'not: exec eval-once hook command'; exec make",
            "not-applicable",
            "does not run",
        ),
        ("exec eval-once doctor", "not-applicable", "does not run"),
        (
            "exec eval-once hook command",
            "failure",
            "BUILDKITE_HOOK_SCOPE",
        ),
        (
            &format!("exec {program} hook command"),
            "failure",
            "BUILDKITE_HOOK_SCOPE",
        ),
        (
            "# export BUILDKITE_HOOK_SCOPE=global\nexec eval-once hook command",
            "failure",
            "BUILDKITE_HOOK_SCOPE",
        ),
        (
            "exec eval-once hook command\nexport BUILDKITE_HOOK_SCOPE=global",
            "failure",
            "BUILDKITE_HOOK_SCOPE",
        ),
        (
            "BUILDKITE_HOOK_SCOPE=global\nexec eval-once hook command",
            "failure",
            "does not export BUILDKITE_HOOK_SCOPE",
        ),
        (
            "export BUILDKITE_HOOK_SCOPE=local\nexec eval-once hook command",
            "failure",
            "local",
        ),
        (
            "export BUILDKITE_HOOK_SCOPE=global\neval-once hook command",
            "warning",
            "without `exec`",
        ),
        (
            "export BUILDKITE_HOOK_SCOPE=global\nexec /no/eval-once hook command",
            "failure",
            "/no/eval-once, which",
        ),
    ] {
        checkup_with_hook(&store, "command", lines).has("command-hook", outcome, part);
    }
}

#[test]
fn a_program_of_a_hook_that_is_not_on_path_is_a_failure_in_a_job_where_path_is_that_of_hooks() {
    let Some(store) = Store::new() else { return };
    let hooks = store.root().join("hooks");
    fs::create_dir(&hooks).unwrap();
    write_program(
        &hooks.join("command"),
        "#!/bin/sh\nexport BUILDKITE_HOOK_SCOPE=global\nexec eval-once hook command\n",
    );
    let without = doctor(&store).env("BUILDKITE_HOOKS_PATH", &hooks);
    Checkup::of(&without)
        .has("command-hook", "warning", "not on PATH")
        .mends("command-hook", "whole path");
    let without = doctor(&store).env("BUILDKITE_HOOKS_PATH", &hooks);
    Checkup::of(&without.env("BUILDKITE_JOB_ID", "1")).has(
        "command-hook",
        "failure",
        "not on PATH",
    );
}

#[test]
fn an_environment_hook_that_is_a_script_is_judged_by_the_commands_in_it() {
    let Some(store) = Store::new() else { return };
    for (lines, outcome, part) in [
        ("eval \"$(eval-once environment)\"", "ok", "is eval-once's"),
        (
            "exports=`eval-once environment` && eval \"$exports\"",
            "ok",
            "is eval-once's",
        ),
        ("source <(eval-once environment)", "ok", "is eval-once's"),
        (
            "# eval-once environment\nexport A=b",
            "not-applicable",
            "is not eval-once's",
        ),
        (
            "export EVAL_ONCE_POLICY=recorded-only",
            "not-applicable",
            "is not eval-once's",
        ),
        ("eval-once environment", "warning", "only prints"),
        (
            "eval \"$(/no/eval-once environment)\"",
            "warning",
            "/no/eval-once, which",
        ),
    ] {
        checkup_with_hook(&store, "environment", lines).has("environment-hook", outcome, part);
    }
}

#[test]
fn outside_of_a_job_the_agents_settings_are_read_from_its_file() {
    let Some(store) = Store::new() else { return };
    let hooks = store.root().join("hooks");
    fs::create_dir(&hooks).unwrap();
    symlink("/nowhere", hooks.join("command")).unwrap();
    let config = store.root().join("agent.cfg");
    let with = |more: &str| {
        let text = format!("hooks-path=\"{}\"\n{more}\n", hooks.display());
        fs::write(&config, text).unwrap();
        Checkup::of(&doctor(&store).env("BUILDKITE_AGENT_CONFIG", &config))
    };
    with("")
        .has("command-hook", "failure", "does not exist")
        .has("strict-single-hooks", "ok", "every plugin");
    with("strict-single-hooks=true")
        .has("strict-single-hooks", "warning", "only the first")
        .mends("strict-single-hooks", "first below `plugins`");
    // What Go reads as true (`strconv.ParseBool`), in each form of a line that the agent reads.
    for line in [
        "strict-single-hooks=1",
        "strict-single-hooks=t",
        "strict-single-hooks=T",
        "strict-single-hooks=True",
        "strict-single-hooks = \"TRUE\"",
        "strict-single-hooks=true # for the other plugin",
        "strict-single-hooks: true",
        "export strict-single-hooks=true",
    ] {
        with(line).has("strict-single-hooks", "warning", "only the first");
    }
    for line in ["strict-single-hooks=yes", "strict-single-hooks=false"] {
        with(line).has("strict-single-hooks", "ok", "every plugin");
    }
    // In a job the variable counts.
    let job = doctor(&store).env("BUILDKITE_AGENT_CONFIG", &config);
    Checkup::of(&job.env("BUILDKITE_STRICT_SINGLE_HOOKS", "false")).has(
        "strict-single-hooks",
        "ok",
        "",
    );
}

#[test]
fn in_a_job_of_a_real_agent_its_hooks_and_version_are_seen() {
    let Some(store) = Store::new() else { return };
    let Some(mut job) = Job::new() else { return };
    let out = store.root().join("checkup.json");
    job.set_all(store.env()).command(format!(
        "'{EVAL_ONCE}' doctor --json >'{}'; true",
        out.display()
    ));
    job.set("BUILDKITE_STRICT_SINGLE_HOOKS", "false")
        .our_hook("command");
    let ran = job.run();
    let json: Value = serde_json::from_str(&fs::read_to_string(&out).unwrap())
        .unwrap_or_else(|error| panic!("{error}: {}", ran.log));
    let find = |name: &str| {
        let checks = json["checks"].as_array().unwrap();
        checks
            .iter()
            .find(|check| check["name"] == name)
            .unwrap()
            .clone()
    };
    assert_eq!(find("agent")["outcome"], "ok", "{json}");
    assert_eq!(find("roots")["outcome"], "ok", "{json}");
    assert_ne!(find("command-hook")["outcome"], "not-applicable", "{json}");
    assert_eq!(find("strict-single-hooks")["outcome"], "ok", "{json}");
}

#[test]
fn a_checkup_by_root_leaves_the_folder_of_another_user_to_that_user() {
    let Some(store) = Store::new() else { return };
    if !geteuid().is_root() {
        return crate::support::loudly("only root can be another user");
    }
    fs::create_dir(store.our_state()).unwrap();
    chown(store.our_state(), Some(OTHER), Some(OTHER)).unwrap();
    Checkup::of(&doctor(&store)).has("state-folder", "failure", "belongs to the user 1234");
    assert!(listing(&store.our_state()).is_empty());
}
