//! Steps that skip their checkout (`checkout: fallback`): where one evaluates after all, it makes the checkout as the agent would,
//! from a real git repository, once for all steps of the host.

use std::{
    ffi::OsString,
    fs::{self, File},
    os::unix::fs::{OpenOptionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use unix::sys::signal::{Signal, killpg};

use crate::support::{
    agent::{self, Job, is_old},
    program::{Ended, Program, Running},
    recording::Pipeline,
    stand_in::StandIns,
    store::Store,
    target::fifo,
    tool, until,
    web::{Trouble, Web},
};

/// The repository's expression. The name of `./.` in the store is the name of the checkout's folder.
const EXPRESSION: &str = r#"{
  a = derivation {
    name = "a";
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-c" "read version < $src/version; echo $version > $out" ];
    src = builtins.filterSource (path: type: baseNameOf path != ".git") ./.;
  };
}"#;

/// A repository, and a host whose jobs skip their checkouts.
struct Scene {
    store: Store,
}

impl Scene {
    /// With one commit on `main`; nothing, said loudly, without git or Nix.
    fn new() -> Option<Self> {
        tool("git")?;
        let scene = Self {
            store: Store::new()?,
        };
        for folder in [scene.origin(), scene.job_folder()] {
            fs::create_dir_all(folder).unwrap();
        }
        scene.git(&["init", "--quiet", "--initial-branch=main"]);
        scene.commit("first");
        Some(scene)
    }

    fn origin(&self) -> PathBuf {
        self.store.root().join("origin")
    }

    fn url(&self) -> String {
        format!("file://{}", self.origin().display())
    }

    /// The folder of the agent's own checkouts, which is empty.
    fn job_folder(&self) -> PathBuf {
        self.store.root().join("builds/pipeline")
    }

    /// The checkouts that were made.
    fn checkouts(&self) -> Vec<PathBuf> {
        let folder = self.store.our_state().join("checkouts");
        let entries = folder.read_dir().into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    fn git(&self, arguments: &[&str]) -> String {
        git(&self.origin(), arguments)
    }

    /// A commit of this version; gives its hash.
    fn commit(&self, version: &str) -> String {
        fs::write(self.origin().join("ci.nix"), EXPRESSION).unwrap();
        fs::write(self.origin().join("version"), format!("{version}\n")).unwrap();
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--message", version]);
        self.head()
    }

    fn head(&self) -> String {
        self.git(&["rev-parse", "HEAD"])
    }

    /// The `.drv` of the target as it is in a checkout that the agent has made; it is gone from the store afterwards.
    fn recorded(&self, commit: &str) -> String {
        let folder = self.store.root().join("agent");
        fs::create_dir(&folder).unwrap();
        git(
            &folder,
            &["clone", "--quiet", "--", &self.url(), "pipeline"],
        );
        let checkout = folder.join("pipeline");
        git(&checkout, &["fetch", "--quiet", "origin", commit]);
        git(&checkout, &["checkout", "--quiet", "-f", commit]);
        git(
            &checkout,
            &["submodule", "--quiet", "update", "--init", "--recursive"],
        );
        let file = checkout.join("ci.nix");
        let drv = self.store.instantiate(file.to_str().unwrap(), "a");
        self.forget();
        fs::remove_dir_all(folder).unwrap();
        drv
    }

    /// Takes what the last step has built, and its `.drv`, from the store.
    fn forget(&self) {
        let _ = fs::remove_file(self.job_folder().join("result"));
        self.store.collect();
    }

    /// A step of a job that has skipped its checkout, with these variables besides.
    fn step(&self, record: &Value, variables: &[(&str, &str)]) -> Program {
        self.nth_step(0, record, variables)
    }

    /// One of several such steps, each with a report of its own.
    fn nth_step(&self, nth: usize, record: &Value, variables: &[(&str, &str)]) -> Program {
        self.store
            .eval_once(["step"])
            .reporting_to(self.store.root().join(format!("report-{nth}.json")))
            .folder(self.job_folder())
            .envs(job_variables())
            .envs([
                ("BUILDKITE_BUILD_CHECKOUT_PATH", self.job_folder()),
                ("BUILDKITE_REPO", self.url().into()),
            ])
            .envs(variables.iter().copied())
            .env("EVAL_ONCE_STEP", record.to_string())
    }

    /// A step of the target that was recorded at a commit.
    fn recorded_step(&self, drv: &str, commit: &str) -> Program {
        self.step(&record(drv), &[("BUILDKITE_COMMIT", commit)])
    }
}

/// The record of a target whose `.drv` is this.
fn record(drv: &str) -> Value {
    json!({ "drv": drv, "file": "ci.nix", "attr": ["a"], "checkout": "fallback" })
}

/// The variables of a job that has skipped its checkout.
fn job_variables() -> Vec<(OsString, OsString)> {
    let variables = [
        ("BUILDKITE_JOB_ID", "j"),
        ("BUILDKITE_BUILD_ID", "b"),
        ("BUILDKITE_SKIP_CHECKOUT", "true"),
        ("BUILDKITE_BRANCH", "main"),
        ("BUILDKITE_PULL_REQUEST", "false"),
        ("BUILDKITE_PIPELINE_PROVIDER", "github"),
        // Else git clones no submodule from a folder.
        ("GIT_CONFIG_COUNT", "1"),
        ("GIT_CONFIG_KEY_0", "protocol.file.allow"),
        ("GIT_CONFIG_VALUE_0", "always"),
    ];
    variables
        .into_iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

/// Opens a named pipe as soon as a program waits in it, which goes on when this is dropped.
#[track_caller]
fn open_gate(gate: &Path) -> File {
    let mut open = None;
    until("a program waits at the gate", || {
        let flags = unix::fcntl::OFlag::O_NONBLOCK.bits();
        let mut options = File::options();
        open = options.write(true).custom_flags(flags).open(gate).ok();
        open.is_some()
    });
    open.unwrap()
}

/// A git that waits at a gate when it is to do this, and then does `then`.
fn held_git(scene: &Scene, doing: &str, then: &str) -> (StandIns, PathBuf) {
    let gate = scene.store.root().join("gate");
    fifo(&gate);
    let hold = format!(
        "case \"$*\" in *{doing}*) read line <'{}'; {then} ;; esac",
        gate.display()
    );
    (StandIns::new(scene.store.bin()).before("git", &hold), gate)
}

/// Starts this step, which makes the checkout, and waits in the middle of it until the gate is dropped: the clone is there, and the
/// fetch begins.
fn halfway(scene: &Scene, step: Program) -> (Running, File) {
    let (stand_ins, gate) = held_git(scene, "fetch", ":");
    let step = step.env("PATH", stand_ins.path(&scene.store)).start();
    (step, open_gate(&gate))
}

#[track_caller]
fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=Test", "-c", "user.email=test@example.com"])
        .args(["-c", "protocol.file.allow=always"])
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .current_dir(folder)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The step has evaluated what was recorded, and no other `.drv`.
#[track_caller]
fn evaluates_the_same(step: &Program) -> Ended {
    let ended = step.run();
    ended.exits(0);
    ended.takes("evaluated", "drv-missing");
    assert_eq!(ended.report()["drift"], false, "{ended}");
    ended
}

#[test]
fn the_same_drv_comes_of_a_checkout_that_the_step_makes() {
    let Some(scene) = Scene::new() else { return };
    let commit = scene.head();
    let drv = scene.recorded(&commit);
    let ended = evaluates_the_same(&scene.recorded_step(&drv, &commit));
    ended.passes_on(&format!(
        "--- eval-once: checking out {commit} of {}",
        scene.url()
    ));
    assert!(ended.ours().len() <= 3, "{ended}");
    assert_eq!(scene.checkouts().len(), 1);
    assert!(scene.job_folder().join("result").exists());
    // The name of the folder counts: with another one, there is drift.
    let other = scene.store.root().join("builds/other");
    fs::create_dir(&other).unwrap();
    scene.forget();
    let ended = scene
        .recorded_step(&drv, &commit)
        .env("BUILDKITE_BUILD_CHECKOUT_PATH", &other)
        .run();
    ended.exits(0);
    assert_eq!(ended.report()["drift"], true, "{ended}");
}

/// A commit that only this reference has.
fn commit_of(scene: &Scene, reference: &str) -> String {
    scene.git(&["checkout", "--quiet", "--detach"]);
    let commit = scene.commit(reference);
    scene.git(&["update-ref", reference, &commit]);
    scene.git(&["checkout", "--quiet", "-f", "main"]);
    commit
}

#[test]
fn whatever_a_build_is_of_is_checked_out() {
    let Some(scene) = Scene::new() else { return };
    let tagged = commit_of(&scene, "refs/tags/v1");
    let pulled = commit_of(&scene, "refs/pull/7/head");
    let merged = commit_of(&scene, "refs/pull/8/merge");
    let custom = commit_of(&scene, "refs/custom/x");
    let branch = commit_of(&scene, "refs/heads/other");
    let old = scene.head();
    let main = scene.commit("second");
    let short = &main[..9];
    for (what, commit, variables) in [
        (
            "a commit",
            &main,
            &[("BUILDKITE_COMMIT", main.as_str())][..],
        ),
        ("an older one", &old, &[("BUILDKITE_COMMIT", &old)]),
        (
            "the start of its hash",
            &main,
            &[("BUILDKITE_COMMIT", short)],
        ),
        (
            "a tag",
            &tagged,
            &[("BUILDKITE_COMMIT", &tagged), ("BUILDKITE_TAG", "v1")],
        ),
        (
            "the head of a branch",
            &branch,
            &[("BUILDKITE_COMMIT", "HEAD"), ("BUILDKITE_BRANCH", "other")],
        ),
        (
            "a pull request",
            &pulled,
            &[
                ("BUILDKITE_COMMIT", &pulled),
                ("BUILDKITE_PULL_REQUEST", "7"),
            ],
        ),
        (
            "the head of a pull request",
            &pulled,
            &[
                ("BUILDKITE_COMMIT", "HEAD"),
                ("BUILDKITE_PULL_REQUEST", "7"),
            ],
        ),
        (
            "the merge of a pull request",
            &merged,
            &[
                ("BUILDKITE_COMMIT", "HEAD"),
                ("BUILDKITE_PULL_REQUEST", "8"),
                ("BUILDKITE_PULL_REQUEST_USING_MERGE_REFSPEC", "true"),
            ],
        ),
        (
            "a commit of a pull request that is closed",
            &old,
            &[("BUILDKITE_COMMIT", &old), ("BUILDKITE_PULL_REQUEST", "9")],
        ),
        (
            "a refspec",
            &custom,
            &[
                ("BUILDKITE_COMMIT", "HEAD"),
                ("BUILDKITE_REFSPEC", "refs/custom/x"),
            ],
        ),
        (
            "a shallow clone",
            &main,
            &[
                ("BUILDKITE_COMMIT", &main),
                ("BUILDKITE_GIT_CLONE_FLAGS", "-v --depth=1"),
                ("BUILDKITE_GIT_FETCH_FLAGS", "-v --depth=1"),
            ],
        ),
    ] {
        let drv = scene.recorded(commit);
        let before = scene.checkouts();
        let ended = evaluates_the_same(&scene.step(&record(&drv), variables));
        let new: Vec<_> = scene
            .checkouts()
            .into_iter()
            .filter(|made| !before.contains(made))
            .collect();
        let [made] = new.as_slice() else {
            panic!("{what}: {new:?} {ended}")
        };
        let checkout = made.join("cache/pipeline");
        assert_eq!(git(&checkout, &["rev-parse", "HEAD"]), *commit, "{what}");
        let shallow = git(&checkout, &["rev-parse", "--is-shallow-repository"]);
        assert_eq!(shallow == "true", what == "a shallow clone");
    }
}

#[test]
fn submodules_are_checked_out_unless_the_agent_leaves_them() {
    let Some(scene) = Scene::new() else { return };
    let module = scene.store.root().join("module");
    fs::create_dir(&module).unwrap();
    fs::write(module.join("file"), "x").unwrap();
    let reference = agent::commit(&module);
    let (url, _) = reference.split_once('#').unwrap();
    scene.git(&["submodule", "--quiet", "add", "--", url, "deep/module"]);
    let commit = scene.commit("with a module");
    let drv = scene.recorded(&commit);
    evaluates_the_same(&scene.recorded_step(&drv, &commit));
    let [checkout] = &scene.checkouts()[..] else {
        panic!()
    };
    let checkout = checkout.join("cache/pipeline");
    assert!(checkout.join("deep/module/file").exists());
    assert_eq!(git(&checkout, &["status", "--porcelain"]), "");
    let without = scene
        .recorded_step(&drv, &commit)
        .env("BUILDKITE_GIT_SUBMODULES", "false");
    scene.forget();
    let ended = without.run();
    ended.exits(0);
    assert_eq!(ended.report()["drift"], true, "{ended}");
    assert_eq!(scene.checkouts().len(), 2);
}

#[test]
fn a_step_that_need_not_evaluate_makes_no_checkout() {
    let Some(scene) = Scene::new() else { return };
    let file = scene.origin().join("ci.nix");
    let drv = scene.store.instantiate(file.to_str().unwrap(), "a");
    let ended = scene.recorded_step(&drv, &scene.head()).run();
    ended.exits(0);
    ended.takes("realised", "drv-valid");
    assert_eq!(scene.checkouts(), [] as [PathBuf; 0]);
}

#[test]
fn a_job_with_a_checkout_and_a_step_by_hand_use_what_is_there() {
    let Some(scene) = Scene::new() else { return };
    let commit = scene.head();
    let drv = scene.recorded(&commit);
    git(
        &scene.job_folder(),
        &["clone", "--quiet", "--", &scene.url(), "."],
    );
    let step = scene.recorded_step(&drv, &commit);
    evaluates_the_same(&step.without("BUILDKITE_SKIP_CHECKOUT"));
    scene.forget();
    let step = scene.recorded_step(&drv, &commit);
    evaluates_the_same(&step.without("BUILDKITE_JOB_ID"));
    assert_eq!(scene.checkouts(), [] as [PathBuf; 0]);

    // An agent that does not know the variable has made its checkout; what a newer one has there is another job's.
    for (version, made) in [("3.115.2", 0), ("3.116.0", 1)] {
        scene.forget();
        let stand_ins = StandIns::new(scene.store.bin()).instead(
            "buildkite-agent",
            &format!("#!/bin/sh\necho 'buildkite-agent version {version}, build 1'\n"),
        );
        let step = scene
            .recorded_step(&drv, &commit)
            .env("PATH", stand_ins.path(&scene.store));
        evaluates_the_same(&step);
        assert_eq!(scene.checkouts().len(), made, "{version}");
    }
}

#[test]
fn the_login_in_a_repositorys_url_reaches_git_and_stands_in_no_argument_and_no_checkout() {
    let Some(scene) = Scene::new() else { return };
    let commit = scene.head();
    let drv = scene.recorded(&commit);
    scene.git(&["update-server-info"]);
    let web = Web::serve(scene.origin());
    // user:p@ss, as `curl` sends it.
    web.spoil("", Trouble::WantsLogin("Basic dXNlcjpwQHNz"));
    let with = |login: &str| web.url().replace("http://", &format!("http://{login}@")) + "/.git";
    let trace = scene.store.root().join("trace");
    let temporary = scene.store.root().join("it's temporary");
    fs::create_dir(&temporary).unwrap();
    let run = |login: &str| {
        let _ = fs::remove_file(&trace);
        let step = scene.step(
            &record(&drv),
            &[
                ("BUILDKITE_COMMIT", &commit),
                ("BUILDKITE_REPO", &with(login)),
            ],
        );
        let ended = step
            .env("GIT_TRACE", &trace)
            .env("TMPDIR", &temporary)
            .run();
        // All commands of git, with those that it runs itself.
        let commands = fs::read_to_string(&trace).unwrap();
        assert!(commands.contains("remote-http"), "{commands}");
        for secret in ["p%40ss", "p@ss", "wrong"] {
            assert!(!commands.contains(secret), "{commands}");
            ended.never_says(secret);
        }
        assert_eq!(temporary.read_dir().unwrap().count(), 0);
        ended
    };
    run("user:wrong").fails(75, "surroundings");
    let ended = run("user:p%40ss");
    ended.exits(0).takes("evaluated", "drv-missing");
    let checkouts: Vec<_> = scene.checkouts();
    let config = checkouts
        .iter()
        .filter_map(|made| fs::read_to_string(made.join("cache/pipeline/.git/config")).ok());
    let config: Vec<String> = config.collect();
    assert_eq!(config.len(), 1, "{checkouts:?}");
    assert!(
        config[0].contains(&web.url()) && !config[0].contains("user"),
        "{config:?}"
    );
    // Without us it would be in the arguments.
    let _ = fs::remove_file(&trace);
    let plain = Command::new("git")
        .args(["ls-remote", &with("user:p%40ss")])
        .env("GIT_TRACE", &trace)
        .output()
        .unwrap();
    assert!(plain.status.success(), "{plain:?}");
    assert!(fs::read_to_string(&trace).unwrap().contains("p%40ss"));
}

#[test]
fn a_checkout_that_cannot_be_made_is_an_infrastructure_failure_that_says_why() {
    let Some(scene) = Scene::new() else { return };
    let commit = scene.head();
    let drv = scene.recorded(&commit);
    let gone = commit.replace(|c: char| c.is_ascii_digit(), "e");
    let secret = "http://user:secret@127.0.0.1:9/r.git";
    for (variables, parts) in [
        (
            &[("BUILDKITE_COMMIT", gone.as_str())][..],
            &[
                &format!("{gone} of {} cannot be checked out", scene.url()),
                "it may have been force-pushed away",
                "hint: build a commit that the repository has",
            ][..],
        ),
        (
            &[("BUILDKITE_COMMIT", &commit), ("BUILDKITE_REPO", secret)],
            &[
                "***@127.0.0.1:9/r.git cannot be checked out: `git clone` ended with status 128: fatal: unable to access",
            ],
        ),
        (
            &[("BUILDKITE_COMMIT", &commit), ("BUILDKITE_REPO", "")],
            &["BUILDKITE_REPO is empty"],
        ),
        (
            &[
                ("BUILDKITE_COMMIT", "HEAD"),
                ("BUILDKITE_BRANCH", "--upload-pack=touch hacked"),
            ],
            &[
                "`git fetch` ended with status 128: fatal: invalid refspec '--upload-pack=touch hacked'",
            ],
        ),
        (
            &[("BUILDKITE_COMMIT", "--orphan=x")],
            &["BUILDKITE_COMMIT is \"--orphan=x\", which names no commit"],
        ),
        (
            &[("BUILDKITE_COMMIT", &commit), ("PATH", "/nonexistent")],
            &["nix-store"],
        ),
    ] {
        let step = scene.step(&record(&drv), variables);
        let ended = step.env("EVAL_ONCE_LOG", "debug").run();
        if variables.iter().any(|(name, _)| *name == "PATH") {
            ended.fails(69, "missing-program");
        } else {
            ended.fails(75, "surroundings");
        }
        for part in parts {
            ended.passes_on(part);
        }
        ended.never_says("secret");
        // Nothing is left to be taken for a checkout.
        for made in scene.checkouts() {
            let names: Vec<_> = made
                .read_dir()
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            assert!(
                names
                    .iter()
                    .all(|name| ["lock", "failed", "keep-days"].contains(&name.to_str().unwrap())),
                "{names:?}"
            );
        }
    }
    evaluates_the_same(&scene.recorded_step(&drv, &commit));
}

#[test]
fn eight_steps_at_once_clone_once() {
    let Some(scene) = Scene::new() else { return };
    let commit = scene.head();
    let drv = scene.recorded(&commit);
    let (stand_ins, gate) = held_git(&scene, "clone", ":");
    let steps: Vec<_> = (0..8)
        .map(|number| {
            let folder = scene.store.root().join(format!("builds/{number}/pipeline"));
            fs::create_dir_all(&folder).unwrap();
            scene
                .nth_step(number, &record(&drv), &[("BUILDKITE_COMMIT", &commit)])
                .folder(&folder)
                .env("BUILDKITE_BUILD_CHECKOUT_PATH", folder)
                .env("PATH", stand_ins.path(&scene.store))
                .start()
        })
        .collect();
    // As soon as it is open for writing, a process reads it; then seven wait.
    let open = open_gate(&gate);
    let clones = || {
        let calls = stand_ins.calls("git");
        let is_clone = |call: &&Vec<String>| call.contains(&"clone".to_owned());
        calls.iter().filter(is_clone).count()
    };
    assert_eq!(clones(), 1);
    drop(open);
    let waited = steps.into_iter().map(|step| {
        let ended = step.end();
        ended.exits(0);
        assert_eq!(ended.report()["drift"], false, "{ended}");
        ended.stderr.contains("waiting for the checkout")
    });
    let waited = waited.filter(|waited| *waited).count();
    assert!(waited > 0, "no step has waited");
    assert_eq!(clones(), 1);
    assert_eq!(scene.checkouts().len(), 1);
}

#[test]
fn those_that_wait_fail_with_the_one_that_clones() {
    let Some(scene) = Scene::new() else { return };
    let commit = scene.head();
    let drv = scene.recorded(&commit);
    let fail = "echo 'fatal: no route' >&2; exit 128";
    let (stand_ins, gate) = held_git(&scene, "clone", fail);
    let step = |number| {
        scene
            .nth_step(number, &record(&drv), &[("BUILDKITE_COMMIT", &commit)])
            .env("PATH", stand_ins.path(&scene.store))
    };
    let first = step(0).start();
    let open = open_gate(&gate);
    let others: Vec<_> = (1..3).map(|number| step(number).start()).collect();
    for other in &others {
        other.until_it_says("waiting for the checkout");
    }
    drop(open);
    for step in others.into_iter().chain([first]) {
        let ended = step.end();
        ended.fails(75, "surroundings");
        ended.passes_on("`git clone` ended with status 128: fatal: no route");
    }
    assert_eq!(stand_ins.calls("git").len(), 1);
    // A later one tries again.
    evaluates_the_same(&scene.recorded_step(&drv, &commit));
}

#[test]
fn a_checkout_whose_maker_was_killed_is_made_again() {
    let Some(scene) = Scene::new() else { return };
    let commit = scene.head();
    let drv = scene.recorded(&commit);
    let (step, open) = halfway(&scene, scene.recorded_step(&drv, &commit));
    let half = || {
        let made = scene.checkouts();
        let entries = made[0].read_dir().unwrap().map(|entry| entry.unwrap());
        entries.filter(|entry| entry.path().is_dir()).count()
    };
    assert_eq!(half(), 1);
    killpg(step.pid(), Signal::SIGKILL).unwrap();
    drop(open);
    step.end();
    assert_eq!(half(), 1);
    evaluates_the_same(&scene.recorded_step(&drv, &commit));
    let checkout = scene.checkouts()[0].join("cache/pipeline");
    assert_eq!(git(&checkout, &["status", "--porcelain"]), "");
    assert_eq!(half(), 1);
}

#[test]
fn a_step_that_is_stopped_leaves_nothing_half_done() {
    let Some(scene) = Scene::new() else { return };
    let commit = scene.head();
    let drv = scene.recorded(&commit);
    let (step, open) = halfway(&scene, scene.recorded_step(&drv, &commit));
    unix::sys::signal::kill(step.pid(), Signal::SIGTERM).unwrap();
    drop(open);
    step.end().exits(143);
    let made = scene.checkouts();
    let entries = made[0].read_dir().unwrap().map(|entry| entry.unwrap());
    assert!(entries.into_iter().all(|entry| entry.path().is_file()));
}

#[test]
fn a_git_that_stands_still_is_not_waited_for_forever() {
    let Some(scene) = Scene::new() else { return };
    let commit = scene.head();
    let drv = scene.recorded(&commit);
    let stand_ins = StandIns::new(scene.store.bin())
        .before("git", "case \"$*\" in *fetch*) exec sleep 600 ;; esac");
    let step = scene
        .recorded_step(&drv, &commit)
        .env("PATH", stand_ins.path(&scene.store));
    let ended = step.run();
    ended.fails(75, "surroundings");
    ended.passes_on("`git fetch` has printed nothing for 30 s");
    assert!(ended.took >= Duration::from_secs(30), "{ended}");
}

#[test]
fn prune_removes_a_checkout_that_was_not_used_for_days() {
    let Some(scene) = Scene::new() else { return };
    let commit = scene.head();
    let drv = scene.recorded(&commit);
    evaluates_the_same(&scene.recorded_step(&drv, &commit));
    let made = scene.checkouts();
    let age = |days: u64| {
        let lock = File::options()
            .append(true)
            .open(made[0].join("lock"))
            .unwrap();
        let then = SystemTime::now() - Duration::from_secs(days * 24 * 60 * 60);
        lock.set_modified(then).unwrap();
    };
    let prune = || scene.store.eval_once(["prune"]).run();
    age(2);
    prune().exits(0).never_says("checkout");
    assert_eq!(scene.checkouts(), made);
    // As long as the record says.
    let mut longer = record(&drv);
    longer["keep-days"] = json!(9);
    scene.forget();
    let step = scene.step(&longer, &[("BUILDKITE_COMMIT", commit.as_str())]);
    evaluates_the_same(&step);
    age(8);
    prune().exits(0).never_says("checkout");
    age(10);
    prune()
        .exits(0)
        .passes_on("removed 1 checkout: no step has used it");
    assert_eq!(scene.checkouts(), [] as [PathBuf; 0]);
}

#[test]
fn a_confined_step_evaluates_what_lies_in_the_checkout_that_it_makes() {
    let Some(scene) = Scene::new() else { return };
    symlink("/etc/evil.nix", scene.origin().join("evil.nix")).unwrap();
    fs::create_dir(scene.origin().join("led")).unwrap();
    symlink("/etc/evil.nix", scene.origin().join("led/default.nix")).unwrap();
    let commit = scene.commit("links");
    let drv = scene.recorded(&commit);
    // The hook of an agent, with which no command is evaluated.
    let hook = scene.store.root().join("command");
    symlink(crate::support::EVAL_ONCE, &hook).unwrap();
    let step = |file: &str| {
        let mut record = record(&drv);
        record["file"] = json!(file);
        Program::new(&hook)
            .envs(scene.store.env())
            .envs(job_variables())
            .envs([
                ("BUILDKITE_COMMAND", "eval-once step"),
                ("BUILDKITE_COMMAND_EVAL", "false"),
                ("BUILDKITE_COMMIT", &commit),
                ("BUILDKITE_REPO", &scene.url()),
                ("EVAL_ONCE_STEP", &record.to_string()),
            ])
            .env("BUILDKITE_BUILD_CHECKOUT_PATH", scene.job_folder())
            .folder(scene.job_folder())
            .run()
    };
    for file in ["evil.nix", "led"] {
        let ended = step(file);
        ended.exits(64);
        ended.passes_on("a `file` outside the checkout");
    }
    let ended = step("ci.nix");
    ended.exits(0);
    ended.passes_on("evaluated ");
    ended.never_says("drift");
}

#[test]
fn a_missing_file_is_the_expressions_fault_where_the_checkout_was_made() {
    let Some(scene) = Scene::new() else { return };
    let commit = scene.head();
    let mut record = record(&scene.recorded(&commit));
    record["file"] = json!("nonesuch.nix");
    let variables = [("BUILDKITE_COMMIT", commit.as_str())];
    scene
        .step(&record, &variables)
        .run()
        .fails(65, "evaluation");
    // Without the key nothing is made.
    record.as_object_mut().unwrap().remove("checkout");
    let ended = scene.step(&record, &variables).run();
    ended.fails(75, "surroundings");
    ended.passes_on("this job has no checkout");
}

#[test]
fn explain_says_what_would_be_checked_out() {
    let Some(scene) = Scene::new() else { return };
    let commit = scene.head();
    let drv = scene.recorded(&commit);
    let explain = || {
        scene
            .store
            .eval_once(["explain", "--json"])
            .folder(scene.job_folder())
            .envs(job_variables())
            .env("BUILDKITE_REPO", scene.url())
            .env("BUILDKITE_COMMIT", &commit)
            .env("BUILDKITE_BUILD_CHECKOUT_PATH", scene.job_folder())
            .env("EVAL_ONCE_STEP", record(&drv).to_string())
            .run()
            .json()
    };
    let before = explain();
    assert_eq!(before["would"], "evaluated");
    let text = before.to_string();
    assert!(
        text.contains("was skipped; ") && text.contains("would be checked out"),
        "{text}"
    );
    assert!(text.contains("\"clone\""), "{text}");
    assert_eq!(scene.checkouts(), [] as [PathBuf; 0]);
    evaluates_the_same(&scene.recorded_step(&drv, &commit));
    scene.forget();
    let after = explain();
    assert_eq!(after["would"], "evaluated");
    let text = after.to_string();
    assert!(
        !text.contains("\"clone\"") && text.contains("/cache/pipeline"),
        "{text}"
    );
}

/// A recorded pipeline, whose steps real agents run as Buildkite would give them: with the variable of `checkout`.
#[test]
fn a_real_agent_skips_the_checkout_and_the_step_makes_it_where_it_evaluates() {
    let Some(scene) = Scene::new() else { return };
    let commit = scene.head();
    let recorded = scene.store.root().join("recording/checkout");
    fs::create_dir_all(recorded.parent().unwrap()).unwrap();
    git(
        recorded.parent().unwrap(),
        &["clone", "--quiet", "--", &scene.url(), "checkout"],
    );
    let ended = scene
        .store
        .eval_once(["pipeline", "--dry-run", "--file", "ci.nix"])
        .args(["--checkout", "fallback", "--skip", "none"])
        .folder(&recorded)
        .run();
    let step = Pipeline::of(&ended).step(&["a"]);
    assert_eq!(step.json["checkout"], json!({ "skip": true }));
    assert_eq!(step.record["checkout"], "fallback");
    let job = || {
        let mut job = Job::new()?;
        job.set_all(scene.store.env())
            .set_all(job_variables())
            .set("BUILDKITE_REPO", scene.url())
            .set("BUILDKITE_COMMIT", &commit)
            .set("BUILDKITE_COMMIT_RESOLVED", "true")
            .set("EVAL_ONCE_STEP", step.record.to_string())
            .command("eval-once step");
        job.our_hook("command");
        Some(job)
    };
    // Realised, without a checkout.
    let Some(mut first) = job() else { return };
    if !is_old() {
        first.set("BUILDKITE_BOOTSTRAP_PHASES", "plugin,checkout,command");
    }
    let ran = first.run();
    assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
    assert!(ran.plain().contains("eval-once: realised "), "{}", ran.log);
    assert_eq!(
        first.checkout().read_dir().unwrap().count(),
        1,
        "only the link"
    );
    assert_eq!(scene.checkouts(), [] as [PathBuf; 0]);
    // Evaluated, in a checkout of the step's own.
    drop(first);
    fs::remove_dir_all(scene.store.our_state()).unwrap();
    scene.forget();
    let Some(mut second) = job() else { return };
    if !is_old() {
        second.set("BUILDKITE_BOOTSTRAP_PHASES", "plugin,checkout,command");
    }
    let ran = second.run();
    assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
    assert!(ran.plain().contains("eval-once: evaluated "), "{}", ran.log);
    assert!(!ran.plain().contains("drift"), "{}", ran.log);
    assert_eq!(scene.checkouts().len(), 1);
    // One whose agent has made the checkout all the same uses that.
    drop(second);
    if is_old() {
        fs::remove_dir_all(scene.store.our_state()).unwrap();
        scene.forget();
        let Some(third) = job() else { return };
        git(
            &third.checkout(),
            &["clone", "--quiet", "--", &scene.url(), "."],
        );
        let ran = third.run();
        assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
        assert!(ran.plain().contains("eval-once: evaluated "), "{}", ran.log);
        assert!(!ran.plain().contains("drift"), "{}", ran.log);
        assert!(third.checkout().join(".git").exists());
        assert_eq!(scene.checkouts(), [] as [PathBuf; 0]);
    }
}

#[test]
fn a_recording_whose_agent_is_too_old_is_refused_before_it_evaluates() {
    let Some(store) = Store::new() else { return };
    store.write("default.nix", "abort \"it was evaluated\"");
    let record = |version: &str, checkout: &str| {
        let stand_ins = StandIns::new(store.bin()).instead(
            "buildkite-agent",
            &format!(
                "#!/bin/sh\ncase \"$1\" in --version) echo 'buildkite-agent version {version}, build 1' ;; esac\n"
            ),
        );
        store
            .eval_once(["pipeline", "--checkout", checkout, "--on-error", "fail"])
            .env("PATH", stand_ins.path(&store))
            .envs([
                ("BUILDKITE_JOB_ID", "j"),
                ("BUILDKITE_BUILD_ID", "b"),
                ("BUILDKITE_STEP_ID", "s"),
                ("BUILDKITE_AGENT_ACCESS_TOKEN", "t"),
            ])
            .run()
    };
    let ended = record("3.83.1", "fallback");
    ended.exits(64);
    ended.passes_on(
        "`checkout: fallback` needs buildkite-agent 3.116 or later, and this job's is 3.83.1",
    );
    for (version, checkout) in [
        ("3.83.1", "always"),
        ("3.116.0", "fallback"),
        ("4.0.0-beta.15", "fallback"),
    ] {
        let ended = record(version, checkout);
        ended.exits(65);
        ended.passes_on("it was evaluated");
    }
    // A dry run asks nothing of an agent.
    let ended = store
        .eval_once(["pipeline", "--dry-run", "--checkout", "fallback"])
        .args(["--on-error", "fail"])
        .run();
    ended.exits(65);
}
