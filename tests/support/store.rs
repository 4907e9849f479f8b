//! A real Nix store that belongs to one test: no root, no `/nix`, no substituter, gone with the test.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::Mutex,
};

use tempfile::TempDir;

use super::{
    EVAL_ONCE,
    daemon::{self, Daemon},
    loudly,
    program::{Ended, Program},
    tool,
};

/// What `nix.conf` says at first.
///
/// Builders are plain `/bin/sh` in no sandbox, so that neither root nor a second user is needed; caches are files
/// that nobody signed.
const NIX_CONF: &str = "\
sandbox = false
build-users-group =
substituters =
require-sigs = false
experimental-features = nix-command flakes
flake-registry =
";

/// What is in a store's root at first.
const FOLDERS: [&str; 9] = [
    "store",
    "var",
    "log",
    "etc",
    "home",
    "daemons-home",
    "tmp",
    "work",
    "bin",
];

/// A private store.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    /// Where programs see it: at its root, but for the store of [another host](Self::another_host).
    seen: PathBuf,
    /// What each program of this host is started by.
    before: Vec<OsString>,
    /// Where all programs but the tests' own go through one ([`for_all`](daemon::is_for_all)): it starts with the first of them.
    daemon: Mutex<Option<Daemon>>,
    /// Held for its removal, after [`Drop`] has made everything in it writable.
    _folder: TempDir,
}

impl Store {
    /// A new, empty, initialised store; `None` without Nix, which is said loudly.
    pub(crate) fn new() -> Option<Self> {
        let store = Self::empty()?;
        store.initialise();
        Some(store)
    }

    /// As [`new`](Self::new), for what is different without a daemon: `None`, said loudly, where each test goes through one.
    pub(crate) fn without_daemon() -> Option<Self> {
        if daemon::is_for_all() {
            loudly("this is about Nix without a daemon, and all tests go through one");
            return None;
        }
        Self::new()
    }

    /// Another host: an empty store with the same prefix as this one, on the same machine. Its folder is mounted over this store's,
    /// which only the programs of that host see; what has any other path they share. `None`, said loudly, where no mount namespace
    /// can be made.
    ///
    /// Of the paths in this struct's methods each is valid everywhere; [`env`](Self::env) and the current folder of its programs
    /// are those of the first host. It has to be dropped before that.
    pub(crate) fn another_host(&self) -> Option<Self> {
        let mut other = Self::empty()?;
        // The current folder is looked up again: until then it is the first host's.
        let script = format!(
            "mount --rbind '{}' '{}' && cd \"$PWD\"",
            other.root.display(),
            self.seen.display()
        );
        other.before = other.with_mounts(&script)?;
        other.seen.clone_from(&self.seen);
        other.initialise();
        Some(other)
    }

    /// A store's folders, with nothing in them; `None` without Nix, which is said loudly.
    fn empty() -> Option<Self> {
        tool("nix-store")?;
        // Directly below /tmp, whatever TMPDIR says: a socket's path has at most 107 bytes.
        let folder = tempfile::Builder::new()
            .prefix("eo")
            .tempdir_in("/tmp")
            .unwrap();
        // Nix refuses a store that is reached through a symbolic link, as /tmp is on some systems.
        let root = folder.path().canonicalize().unwrap();
        for name in FOLDERS {
            fs::create_dir(root.join(name)).unwrap();
        }
        fs::write(root.join("etc/nix.conf"), NIX_CONF).unwrap();
        Some(Self {
            seen: root.clone(),
            root,
            before: Vec::new(),
            daemon: Mutex::new(None),
            _folder: folder,
        })
    }

    fn initialise(&self) {
        self.nix("nix-store", ["--init"]);
    }

    /// What starts a program of this host, to be put [before](Program::behind) it: nothing unless it is another host.
    pub(crate) fn before(&self) -> &[OsString] {
        &self.before
    }

    /// As [`before`](Self::before), and the program is run by this user, with the group of the same number and no other: what only
    /// root can do.
    pub(crate) fn before_by(&self, user: u32) -> Vec<OsString> {
        let mut before = self.before.clone();
        before.extend([
            tool("setpriv").unwrap().into_os_string(),
            format!("--reuid={user}").into(),
            format!("--regid={user}").into(),
            "--clear-groups".into(),
        ]);
        before
    }

    /// Lets this user work here as a client of the daemon: what the user's programs write to is theirs.
    pub(crate) fn open_to(&self, user: u32) {
        fs::set_permissions(&self.root, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all(self.our_state()).unwrap();
        for folder in [self.work(), self.our_state(), self.root.join("home")] {
            chown(&folder, Some(user), Some(user)).unwrap();
        }
        let mode = fs::Permissions::from_mode(0o1777);
        fs::set_permissions(self.root.join("tmp"), mode).unwrap();
    }

    /// The folder everything is in.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of store paths.
    pub(crate) fn folder(&self) -> PathBuf {
        self.root.join("store")
    }

    /// Nix's state folder.
    pub(crate) fn state(&self) -> PathBuf {
        self.root.join("var")
    }

    /// A folder to work in: a checkout, say.
    pub(crate) fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    /// The state folder of eval-once, which does not exist until it makes it.
    pub(crate) fn our_state(&self) -> PathBuf {
        self.root.join("eo")
    }

    /// A lock in the state folder of eval-once, as that makes it; nothing has it.
    pub(crate) fn our_lock(&self, name: &str) -> File {
        let lock = self.our_state().join(name);
        fs::create_dir_all(lock.parent().unwrap()).unwrap();
        File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(lock)
            .unwrap()
    }

    /// A folder for [stand-ins](super::stand_in::StandIns).
    pub(crate) fn bin(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// The environment in which eval-once and Nix use this store: all they need, and nothing of this process but its `PATH`.
    pub(crate) fn env(&self) -> Vec<(OsString, OsString)> {
        let mut env = self.local_env();
        if daemon::is_for_all() {
            let mut daemon = self.daemon.lock().unwrap();
            env.extend(daemon.get_or_insert_with(|| self.daemon_for_all()).env());
        }
        env
    }

    fn daemon_for_all(&self) -> Daemon {
        Daemon::start_on(self, &self.before, self.root.join("socket-for-all"))
    }

    /// The environment of a daemon. Its home is not the clients': Nix ignores one that belongs to another user, with what it caches there.
    pub(super) fn daemon_env(&self) -> Vec<(OsString, OsString)> {
        let mut env = self.local_env();
        env.push(("HOME".into(), self.seen.join("daemons-home").into()));
        env
    }

    /// As [`env`](Self::env), without a daemon.
    pub(super) fn local_env(&self) -> Vec<(OsString, OsString)> {
        let ours = |name: &str| self.seen.join(name).into_os_string();
        vec![
            ("PATH".into(), self.path()),
            ("HOME".into(), ours("home")),
            ("TMPDIR".into(), ours("tmp")),
            ("NIX_STORE_DIR".into(), ours("store")),
            ("NIX_STATE_DIR".into(), ours("var")),
            ("NIX_LOG_DIR".into(), ours("log")),
            ("NIX_CONF_DIR".into(), ours("etc")),
            ("EVAL_ONCE_STATE_DIR".into(), ours("eo")),
            // The user who runs the tests may have settings of their own for git.
            ("GIT_CONFIG_GLOBAL".into(), "/dev/null".into()),
            ("GIT_CONFIG_SYSTEM".into(), "/dev/null".into()),
        ]
    }

    /// The `PATH` in [`env`](Self::env).
    #[expect(
        clippy::unused_self,
        reason = "where it comes from is the store's affair"
    )]
    pub(crate) fn path(&self) -> OsString {
        std::env::var_os("PATH").unwrap()
    }

    /// Another line for `nix.conf`; of two for the same setting the later one counts.
    pub(crate) fn configure(&self, line: &str) {
        let file = self.root.join("etc/nix.conf");
        let mut text = fs::read_to_string(&file).unwrap();
        text.push_str(line);
        text.push('\n');
        fs::write(file, text).unwrap();
        // It reads the file at its start only.
        let mut daemon = self.daemon.lock().unwrap();
        if daemon.take().is_some() {
            *daemon = Some(self.daemon_for_all());
        }
    }

    /// From now on each Nix that may write collects, as where the disk is full.
    pub(crate) fn collects_when_full(&self) {
        for setting in ["min-free", "max-free"] {
            self.configure(&format!("{setting} = 999999999999999"));
        }
        self.configure("min-free-check-interval = 0");
    }

    /// A file in the working folder, with the folders above it.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.work().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
        file
    }

    /// A step in this store and the working folder, with a report.
    pub(crate) fn step<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Program {
        self.eval_once(["step"])
            .reporting_to(self.root.join("report.json"))
            .args(arguments)
    }

    /// As [`step`](Self::step), where a file system is mounted first, as [`eval_once_with_mounts`](Self::eval_once_with_mounts).
    pub(crate) fn step_with_mounts<A: AsRef<OsStr>>(
        &self,
        script: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Option<Program> {
        let step = self.eval_once_with_mounts(script)?.arg("step");
        let step = step.reporting_to(self.root.join("report.json"));
        Some(step.args(arguments))
    }

    /// Our binary in this store and the working folder.
    pub(crate) fn eval_once<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Program {
        self.of_this_host(EVAL_ONCE, self.env()).args(arguments)
    }

    /// As [`eval_once`](Self::eval_once), run by this user, as [`before_by`](Self::before_by).
    pub(crate) fn eval_once_by<A: AsRef<OsStr>>(
        &self,
        user: u32,
        arguments: impl IntoIterator<Item = A>,
    ) -> Program {
        Program::new(EVAL_ONCE)
            .args(arguments)
            .behind(&self.before_by(user))
            .envs(self.env())
            .folder(self.seen.join("work"))
    }

    fn of_this_host(&self, program: impl Into<PathBuf>, env: Vec<(OsString, OsString)>) -> Program {
        Program::new(program)
            .behind(&self.before)
            .envs(env)
            .folder(self.seen.join("work"))
    }

    /// Our binary where a file system is mounted first, by this script, which no other process sees. `None`, said loudly, on a host
    /// that lets this user make no mount namespace: there nothing can be tested with it, with `CI=true` or without.
    pub(crate) fn eval_once_with_mounts(&self, script: &str) -> Option<Program> {
        let mounted = self.with_mounts(script)?;
        Some(
            Program::new(EVAL_ONCE)
                .behind(&mounted)
                .envs(self.env())
                .folder(self.work()),
        )
    }

    /// What starts a program where a file system is mounted first, as [`eval_once_with_mounts`](Self::eval_once_with_mounts):
    /// to be put [before](Program::behind) it.
    pub(crate) fn with_mounts(&self, script: &str) -> Option<Vec<OsString>> {
        let unshare = tool("unshare")?;
        // Root needs no user namespace, in which a daemon would not know its clients.
        let root = &["--mount", "/bin/sh", "-c"][..];
        let anybody = &["--user", "--map-root-user", "--mount", "/bin/sh", "-c"][..];
        let mut why = String::new();
        for before in [root, anybody] {
            let probe = Program::new(&unshare)
                .args(before)
                .arg(script)
                .envs(self.local_env())
                .run();
            if probe.status.success() {
                let mut whole = vec![unshare.into_os_string()];
                whole.extend(before.iter().map(OsString::from));
                whole.extend([format!("{script} && exec \"$@\"").into(), "sh".into()]);
                return Some(whole);
            }
            probe.stderr.trim().clone_into(&mut why);
        }
        loudly(&format!("no mount namespace can be made here: {why}"));
        None
    }

    /// Any program in this store and the working folder, without a daemon.
    pub(crate) fn program(&self, program: &str) -> Program {
        self.of_this_host(tool(program).unwrap(), self.local_env())
    }

    /// Runs a program of Nix's, which must succeed, and gives its standard output without the last newline.
    #[track_caller]
    pub(crate) fn nix<A: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> String {
        let ended = self.program(program).args(arguments).run();
        ended.exits(0);
        ended.stdout.trim_end().to_owned()
    }

    /// The `.drv` of an attribute, written into the store and rooted by nothing.
    #[track_caller]
    pub(crate) fn instantiate(&self, file: &str, attribute: &str) -> String {
        self.nix("nix-instantiate", [file, "-A", attribute])
    }

    /// Builds a `.drv`, rooted by nothing, and gives its outputs' paths.
    #[track_caller]
    pub(crate) fn build(&self, drv: &str) -> Vec<String> {
        let outputs = self.nix("nix-store", ["--realise", drv]);
        outputs.lines().map(str::to_owned).collect()
    }

    /// The path of one output, whether or not it is built.
    #[track_caller]
    pub(crate) fn output(&self, drv: &str, name: &str) -> String {
        self.nix("nix-store", ["--query", "--binding", name, drv])
    }

    /// Takes paths out of the store, rooted or not; only what another path refers to cannot go.
    #[track_caller]
    pub(crate) fn delete<P: AsRef<OsStr>>(&self, paths: impl IntoIterator<Item = P>) {
        self.forget_temporary_roots();
        let ended = self.try_delete(paths);
        ended.exits(0);
    }

    /// Forgets the temporary roots: a daemon's process may not have ended yet that served a client which has.
    pub(crate) fn forget_temporary_roots(&self) {
        let roots = fs::read_dir(self.state().join("temproots"));
        for file in roots.into_iter().flatten() {
            let _ = fs::remove_file(file.unwrap().path());
        }
    }

    /// As [`delete`](Self::delete), where it may not work.
    pub(crate) fn try_delete<P: AsRef<OsStr>>(&self, paths: impl IntoIterator<Item = P>) -> Ended {
        self.program("nix-store")
            .args(["--delete", "--ignore-liveness"])
            .args(paths)
            .run()
    }

    /// Collects all garbage.
    #[track_caller]
    pub(crate) fn collect(&self) {
        self.collector().run().exits(0);
    }

    /// A collection of all garbage, without a daemon.
    pub(crate) fn collector(&self) -> Program {
        self.program("nix-store").arg("--gc")
    }

    /// Is this path in the store?
    #[track_caller]
    pub(crate) fn has(&self, path: &str) -> bool {
        self.nix("nix-store", ["--check-validity", "--print-invalid", path])
            .is_empty()
    }

    /// The links outside the store that are roots of it.
    pub(crate) fn roots(&self) -> Vec<PathBuf> {
        let Ok(links) = fs::read_dir(self.state().join("gcroots/auto")) else {
            return Vec::new();
        };
        let links = links.map(|link| fs::read_link(link.unwrap().path()).unwrap());
        // Nix removes the others in the next collection.
        let mut roots: Vec<PathBuf> = links.filter(|root| root.is_symlink()).collect();
        roots.sort();
        roots
    }

    /// Copies the closures of these paths (of a `.drv`: of the `.drv`, not of its outputs) into a binary cache of files, and
    /// gives its URL. It is no substituter of this store until a setting makes it one.
    #[track_caller]
    pub(crate) fn cache<P: AsRef<str>>(
        &self,
        name: &str,
        paths: impl IntoIterator<Item = P>,
    ) -> String {
        let url = format!("file://{}", self.root.join(name).display());
        for path in paths {
            let path = path.as_ref();
            let mut arguments = vec!["copy", "--no-check-sigs", "--to", &url, path];
            if Path::new(path)
                .extension()
                .is_some_and(|extension| extension == "drv")
            {
                arguments.push("--derivation");
            }
            self.nix("nix", arguments);
        }
        url
    }

    /// A daemon for this store.
    pub(crate) fn daemon(&self) -> Daemon {
        Daemon::start(self)
    }
}

impl Drop for Store {
    /// Whatever is in a store is read-only, and so are folders that a test locked: nothing of it could be removed.
    fn drop(&mut self) {
        self.daemon.lock().unwrap().take();
        make_writable(&self.root);
    }
}

fn make_writable(folder: &Path) {
    let _ = fs::set_permissions(folder, fs::Permissions::from_mode(0o755));
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            make_writable(&entry.path());
        }
    }
}
