//! Each class of failure in every setting: the same status, the same class and the same root cause without a daemon, through one as
//! root and through one as an ordinary user, and with either form of the log.

use std::{
    cell::RefCell,
    ffi::OsString,
    fmt,
    fs::{self, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    thread,
};

use unix::{
    fcntl::OFlag,
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};

use crate::support::{
    EVAL_ONCE,
    daemon::Daemon,
    loudly,
    processes::children,
    program::{Program, Running},
    skip,
    store::Store,
    target::fifo,
    until,
};

// --- The table -------------------------------------------------------------------------------------------------------

/// A failure, and what is expected of a step that meets it: the same in every cell.
struct Row {
    name: &'static str,
    /// `default.nix`, with the functions of tests. `target` is what the step builds. `NEVER` stands for a pipe that is
    /// never written to, `ITSELF` for a file that a builder may write its process into.
    body: &'static str,
    /// Not recorded: it has to be evaluated.
    evaluated: bool,
    situation: Situation,
    flags: &'static [&'static str],
    status: i32,
    class: &'static str,
    /// The attributes of which one is the derivation that itself failed; none where no derivation is at fault.
    root_causes: &'static [&'static str],
    /// What is in our own lines of the log.
    says: &'static str,
    only: Only,
}

/// What is done to a step beyond its derivation.
#[derive(Clone, Copy)]
enum Situation {
    /// Nothing.
    Plain,
    /// As soon as its builder says `waiting`, this happens.
    During(fn(&Cell, &Running)),
    /// Before it starts, this happens; a daemon runs already.
    Before(fn(&Cell)),
    /// The builder sees this mounted: `STORE` and `LOG` stand for Nix's folders, `ASIDE` for one beside them.
    Mounted(&'static str),
    /// The output is in a cache that died after Nix had asked it what it has.
    CacheDied,
    /// The builder has little memory.
    LittleMemory,
}

/// The cells that a row has.
#[derive(Clone, Copy, PartialEq)]
enum Only {
    All,
    /// There must be a daemon.
    Daemon,
    /// The log is read, not only passed on.
    Pretty,
    PrettyDaemon,
    /// The user may choose the machines that build: a daemon lets no ordinary user do that.
    Trusted,
}

const RECORDED: Row = Row {
    name: "",
    body: "",
    evaluated: false,
    situation: Situation::Plain,
    flags: &[],
    status: 100,
    class: "build",
    root_causes: &["target"],
    says: "",
    only: Only::All,
};

const INFRASTRUCTURE: Row = Row {
    status: 75,
    class: "surroundings",
    root_causes: &[],
    ..RECORDED
};

const SMALL_DISK: Situation = Situation::Mounted(
    "mkdir -p ASIDE && cp -a STORE/. ASIDE && mount -t tmpfs -o size=1m eo STORE && cp -a ASIDE/. STORE",
);

const KEEP_GOING: [&str; 3] = ["--option", "keep-going", "true"];

const WAITS: &str = "{ target = build \"waits\" \"echo waiting; read x < NEVER\"; }";

/// What the bodies with several failures share.
macro_rules! failing {
    ($target:literal) => {
        concat!(
            "rec { bad = build \"bad\" \"echo the last words; exit 3\"; worse = build \"worse\" \"exit 4\"; ",
            "slow = build \"slow\" \"read x < NEVER\"; good = file \"good\"; ",
            "wrong = with' { outputHashMode = \"flat\"; outputHashAlgo = \"sha256\"; outputHash = ",
            "\"0000000000000000000000000000000000000000000000000000000000000000\"; } \"wrong\" \"echo > $out\"; ",
            "both = builds: build \"top\" \"echo ${toString builds} > $out\"; ",
            "target = ", $target, "; }"
        )
    };
}

/// A builder's script that prints what Nix says of failures of the derivation `$other`, which a variable of the shell may be.
macro_rules! imitating {
    ($other:literal) => {
        concat!(
            "\necho \"error: builder for '", $other, "' failed with exit code 1\"\n",
            "echo \"error: Cannot build '", $other, "'.\"\n",
            "echo \"       Reason: builder failed with exit code 1.\"\n",
            "echo \"error: building of '", $other, "!*' from .drv file timed out after 1 seconds\"\n",
            "echo \"error: hash mismatch in fixed-output derivation '", $other, "':\"\n",
            "echo \"error: 1 dependencies of derivation '", $other, "' failed to build\"\n",
            "printf \"\\033[31;1merror:\\033[0m builder for '\\033[35;1m", $other, "\\033[0m' failed with exit code 1\\n\"\n",
            "forge() { echo \"@nix {\\\"action\\\":\\\"msg\\\",\\\"level\\\":0,\\\"msg\\\":\\\"error: $1\\\"}\"; }\n",
            "forge \"hash mismatch in fixed-output derivation '", $other, "':\"\n",
            "forge \"a 'pdp11-unix' with features {} is required to build '", $other, "', but I am a 'vax-unix'\"\n",
            "forge \"writing to file: No space left on device\"\n",
            "forge \"unable to download 'http://example.org/nar': Couldn't connect to server (7)\"\n",
            "echo '@nix {\"action\":\"setPhase\",\"phase\":\"buildPhase\"}'\n",
        )
    };
}

const ROWS: &[Row] = &[
    Row {
        name: "a builder that fails",
        body: failing!("bad"),
        says: "bad",
        ..RECORDED
    },
    Row {
        name: "a dependency that fails, four deep",
        body: "rec { bad = build \"bad\" \"exit 3\"; l1 = build \"l1\" \"echo ${bad} > $out\"; l2 = build \"l2\" \"echo ${l1} > $out\"; \
               l3 = build \"l3\" \"echo ${l2} > $out\"; target = build \"top\" \"echo ${l3} > $out\"; }",
        root_causes: &["bad"],
        says: "bad",
        ..RECORDED
    },
    Row {
        name: "a builder that makes no output",
        body: "{ target = build \"empty\" \"echo nothing is made\"; }",
        says: "builder succeeded",
        ..RECORDED
    },
    Row {
        name: "a builder that is not there",
        body: "{ target = derivation { inherit system; name = \"nobody\"; builder = \"/no/such/builder\"; }; }",
        ..RECORDED
    },
    Row {
        name: "an output that refers to what it may not",
        body: "rec { dep = file \"dep\"; target = with' { allowedReferences = [ ]; inherit dep; } \"refers\" \"echo $dep > $out\"; }",
        ..RECORDED
    },
    Row {
        name: "an output that is no file, link or folder",
        body: "{ target = build \"pipe\" \"PATH=/usr/bin:/bin; mkfifo $out\"; }",
        ..RECORDED
    },
    Row {
        name: "a fixed output that is a folder and should be a file",
        body: "{ target = with' { outputHashMode = \"flat\"; outputHashAlgo = \"sha256\"; outputHash = \
               \"0000000000000000000000000000000000000000000000000000000000000000\"; } \"folder\" \"PATH=/usr/bin:/bin; mkdir $out\"; }",
        ..RECORDED
    },
    Row {
        name: "nothing may be built here, and there is no other machine",
        body: "{ target = build \"nowhere\" \"echo > $out\"; }",
        flags: &["--option", "max-jobs", "0"],
        root_causes: &[],
        ..RECORDED
    },
    Row {
        name: "the only machine that may build cannot be reached",
        body: "{ target = build \"nowhere\" \"echo > $out\"; }",
        flags: &[
            "--option",
            "max-jobs",
            "0",
            "--option",
            "builders",
            "ssh://nobody@127.0.0.1:1 x86_64-linux,aarch64-linux",
        ],
        says: "could not be reached",
        only: Only::Trusted,
        ..INFRASTRUCTURE
    },
    Row {
        name: "timeout",
        body: failing!("slow"),
        flags: &["--option", "timeout", "1"],
        status: 101,
        class: "timeout",
        ..RECORDED
    },
    Row {
        name: "timeout of a dependency",
        body: failing!("both [ slow ]"),
        flags: &["--option", "timeout", "1"],
        status: 101,
        class: "timeout",
        root_causes: &["slow"],
        ..RECORDED
    },
    Row {
        name: "max-silent-time",
        body: failing!("slow"),
        flags: &["--option", "max-silent-time", "1"],
        status: 101,
        class: "timeout",
        ..RECORDED
    },
    Row {
        name: "a wrong hash",
        body: failing!("wrong"),
        status: 102,
        class: "hash",
        says: "hash",
        ..RECORDED
    },
    Row {
        name: "a wrong hash below",
        body: failing!("both [ wrong ]"),
        status: 102,
        class: "hash",
        root_causes: &["wrong"],
        ..RECORDED
    },
    Row {
        name: "failure and hash at once",
        body: failing!("both [ bad wrong good ]"),
        flags: &KEEP_GOING,
        status: 103,
        class: "mixed",
        root_causes: &["bad", "wrong"],
        ..RECORDED
    },
    Row {
        name: "failure, hash and timeout at once",
        body: failing!("both [ bad wrong slow ]"),
        flags: &["--option", "keep-going", "true", "--option", "timeout", "1"],
        status: 103,
        class: "mixed",
        root_causes: &["bad", "wrong", "slow"],
        ..RECORDED
    },
    Row {
        name: "two failures of one class",
        body: failing!("both [ bad worse ]"),
        flags: &KEEP_GOING,
        root_causes: &["bad", "worse"],
        ..RECORDED
    },
    Row {
        name: "another system",
        body: "{ target = with' { system = \"pdp11-unix\"; } \"foreign\" \"echo > $out\"; }",
        says: "pdp11-unix",
        ..RECORDED
    },
    Row {
        name: "another system below",
        body: "rec { foreign = with' { system = \"pdp11-unix\"; } \"foreign\" \"echo > $out\"; target = build \"top\" \"echo ${foreign} > $out\"; }",
        root_causes: &["foreign"],
        says: "pdp11-unix",
        ..RECORDED
    },
    Row {
        name: "a missing feature",
        body: "{ target = with' { requiredSystemFeatures = [ \"quantum\" ]; } \"special\" \"echo > $out\"; }",
        says: "quantum",
        ..RECORDED
    },
    Row {
        name: "a builder that evaluation needed",
        body: "rec { inner = build \"inner\" \"exit 3\"; target = import inner; }",
        evaluated: true,
        root_causes: &["inner"],
        says: "inner",
        ..RECORDED
    },
    Row {
        name: "a dependency of a builder that evaluation needed",
        body: "rec { bad = build \"bad\" \"exit 3\"; inner = build \"inner\" \"echo ${bad} > $out\"; target = import inner; }",
        evaluated: true,
        root_causes: &["bad"],
        ..RECORDED
    },
    Row {
        name: "a wrong hash that evaluation needed",
        body: "rec { wrong = with' { outputHashMode = \"flat\"; outputHashAlgo = \"sha256\"; outputHash = \
               \"0000000000000000000000000000000000000000000000000000000000000000\"; } \"wrong\" \"echo > $out\"; target = import wrong; }",
        evaluated: true,
        status: 102,
        class: "hash",
        root_causes: &["wrong"],
        ..RECORDED
    },
    Row {
        name: "a timeout of a builder that evaluation needed",
        body: "rec { inner = build \"inner\" \"read x < NEVER\"; target = import inner; }",
        evaluated: true,
        flags: &["--option", "timeout", "1"],
        status: 101,
        class: "timeout",
        root_causes: &["inner"],
        ..RECORDED
    },
    Row {
        name: "another system that evaluation needed",
        body: "rec { inner = with' { system = \"pdp11-unix\"; } \"inner\" \"echo > $out\"; target = import inner; }",
        evaluated: true,
        root_causes: &["inner"],
        says: "pdp11-unix",
        ..RECORDED
    },
    Row {
        name: "a builder that evaluation needed fills the disk",
        body: "rec { inner = build \"inner\" \"while echo 0123456789012345678901234567890123456789; do :; done > $out; exit 1\"; \
               target = import inner; }",
        evaluated: true,
        situation: SMALL_DISK,
        root_causes: &["inner"],
        ..INFRASTRUCTURE
    },
    Row {
        name: "a daemon that is killed in the middle of what evaluation needed",
        body: "{ target = import (build \"inner\" \"echo waiting; read x < NEVER\"); }",
        evaluated: true,
        situation: Situation::During(|cell, _| cell.daemon.borrow().as_ref().unwrap().kill()),
        only: Only::Daemon,
        ..INFRASTRUCTURE
    },
    Row {
        name: "a daemon's worker that is killed whenever it builds what evaluation needs",
        // By its own builder: it may have been the collector's doing, so the step evaluates several times.
        body: "{ target = import (build \"inner\" \"kill -9 \\$PPID; exit 5\"); }",
        evaluated: true,
        only: Only::Daemon,
        ..INFRASTRUCTURE
    },
    Row {
        name: "a cache that died holds what evaluation needs",
        body: "rec { good = build \"good\" \"echo 1 > $out\"; target = import good; }",
        evaluated: true,
        situation: Situation::CacheDied,
        ..INFRASTRUCTURE
    },
    Row {
        name: "a builder that fills the disk",
        body: "{ target = build \"filler\" \"while echo 0123456789012345678901234567890123456789; do :; done > $out; exit 1\"; }",
        situation: SMALL_DISK,
        says: "disk",
        root_causes: &["target"],
        ..INFRASTRUCTURE
    },
    Row {
        name: "a disk that is full for Nix's log",
        body: failing!("good"),
        situation: Situation::Mounted("mount -t tmpfs -o nr_inodes=1 eo LOG"),
        says: "space",
        ..INFRASTRUCTURE
    },
    Row {
        name: "a daemon that is dead",
        body: failing!("good"),
        situation: Situation::Before(|cell| cell.daemon.borrow().as_ref().unwrap().kill()),
        only: Only::Daemon,
        says: "daemon",
        ..INFRASTRUCTURE
    },
    Row {
        name: "a daemon that is killed in the middle",
        body: WAITS,
        situation: Situation::During(|cell, _| cell.daemon.borrow().as_ref().unwrap().kill()),
        only: Only::Daemon,
        ..INFRASTRUCTURE
    },
    Row {
        name: "a daemon's worker that is killed",
        body: WAITS,
        situation: Situation::During(|cell, _| {
            cell.daemon.borrow().as_ref().unwrap().kill_workers();
        }),
        only: Only::Daemon,
        ..INFRASTRUCTURE
    },
    Row {
        name: "a builder that is killed from outside",
        body: "{ target = build \"killed\" \"echo \\$\\$ > ITSELF; echo waiting; read x < NEVER\"; }",
        situation: Situation::During(|cell, _| {
            let pid = fs::read_to_string(cell.store.work().join("pid")).unwrap();
            kill(Pid::from_raw(pid.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
        }),
        says: "signal 9",
        ..RECORDED
    },
    Row {
        name: "a builder that the kernel kills for memory",
        // What it has doubles until there is no more.
        body: "{ target = build \"greedy\" \"x=0123456789; while :; do x=\\$x\\$x; done\"; }",
        situation: Situation::LittleMemory,
        says: "memory",
        ..RECORDED
    },
    Row {
        name: "Nix that is killed",
        body: WAITS,
        situation: Situation::During(|_, step| kill_nix(step, Signal::SIGKILL)),
        status: 137,
        class: "signal",
        root_causes: &[],
        ..RECORDED
    },
    Row {
        name: "Nix that aborts",
        body: WAITS,
        situation: Situation::During(|_, step| kill_nix(step, Signal::SIGABRT)),
        status: 134,
        class: "signal",
        root_causes: &[],
        ..RECORDED
    },
    Row {
        name: "a cache that died is all there is to blame",
        body: failing!("good"),
        situation: Situation::CacheDied,
        says: "cache",
        ..INFRASTRUCTURE
    },
    Row {
        name: "a cache that died holds a dependency",
        body: failing!("both [ good ]"),
        situation: Situation::CacheDied,
        ..INFRASTRUCTURE
    },
    Row {
        name: "a cache that cannot be reached and a builder that fails",
        body: failing!("bad"),
        flags: &["--option", "substituters", "http://127.0.0.1:1"],
        ..RECORDED
    },
    Row {
        name: "a file where the link is to be",
        body: failing!("good"),
        situation: Situation::Before(|cell| {
            cell.store.write("result", "in the way");
        }),
        status: 64,
        class: "config",
        root_causes: &[],
        says: "result",
        ..RECORDED
    },
    Row {
        name: "a builder that imitates Nix about what is no dependency",
        body: concat!(
            "rec { other = file \"other\"; target = let path = builtins.unsafeDiscardStringContext other.drvPath; in build \"liar\" ''",
            imitating!("${path}"),
            "exit 3''; }"
        ),
        ..RECORDED
    },
    Row {
        name: "a builder that imitates Nix about its own dependency",
        body: concat!(
            "rec { other = file \"other\"; target = let path = builtins.unsafeDiscardStringContext other.drvPath; in build \"liar\" '': ${other}",
            imitating!("${path}"),
            "exit 3''; }"
        ),
        only: Only::Pretty,
        ..RECORDED
    },
    Row {
        name: "a dependency that imitates Nix about what needs it and ends well",
        body: concat!(
            "rec { liar = build \"liar\" ''for needing in ${builtins.storeDir}/*-needing.drv; do :; done",
            imitating!("$needing"),
            "echo > $out''; target = build \"needing\" \": ${liar}; exit 3\"; }"
        ),
        only: Only::Pretty,
        ..RECORDED
    },
    Row {
        name: "a builder that imitates Nix among others that fail",
        // At once: which of them ends first is left to chance.
        body: concat!(
            "rec { other = file \"other\"; one = build \"one\" \"exit 3\"; two = build \"two\" \"exit 3\"; three = build \"three\" \"exit 3\"; ",
            "liar = let path = builtins.unsafeDiscardStringContext other.drvPath; in build \"liar\" '': ${other}",
            imitating!("${path}"),
            "echo > $out''; target = build \"top\" \": ${one} ${two} ${three} ${liar}\"; }"
        ),
        flags: &[
            "--option",
            "keep-going",
            "true",
            "--option",
            "max-jobs",
            "4",
        ],
        root_causes: &["one", "two", "three"],
        only: Only::Pretty,
        ..RECORDED
    },
    Row {
        name: "an expression that fails after a builder that imitates Nix",
        body: concat!(
            "rec { other = file \"other\"; target = let path = builtins.unsafeDiscardStringContext other.drvPath; ",
            "liar = build \"liar\" '': ${other}",
            imitating!("${path}"),
            "echo 1 > $out''; in throw \"these very words ${toString (import liar)}\"; }"
        ),
        evaluated: true,
        status: 65,
        class: "evaluation",
        root_causes: &[],
        says: "these very words 1",
        only: Only::Pretty,
        ..RECORDED
    },
    Row {
        name: "a daemon's worker that is killed under a builder that imitates Nix",
        body: concat!(
            "rec { other = file \"other\"; target = let path = builtins.unsafeDiscardStringContext other.drvPath; in build \"liar\" '': ${other}",
            imitating!("${path}"),
            "echo waiting; read x < NEVER''; }"
        ),
        situation: Situation::During(|cell, _| {
            cell.daemon.borrow().as_ref().unwrap().kill_workers();
        }),
        only: Only::PrettyDaemon,
        ..INFRASTRUCTURE
    },
];

// --- The settings ------------------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq)]
enum Client {
    NoDaemon,
    Root,
    Ordinary,
}

/// The user `nobody`, which has a name on every Linux: Nix does nothing for a user without one.
const ORDINARY_USER: u32 = 65534;

impl Client {
    /// The user of the step, where it is another than the tests' own.
    fn user(self) -> Option<u32> {
        (self == Self::Ordinary && geteuid().is_root()).then_some(ORDINARY_USER)
    }
}

/// One row in one setting.
struct Cell {
    row: &'static Row,
    client: Client,
    log: &'static str,
    store: Store,
    daemon: RefCell<Option<Daemon>>,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} / {:?} / {}", self.row.name, self.client, self.log)
    }
}

impl Drop for Cell {
    /// A builder whose Nix was killed may still wait, and a control group can be removed once no process is in it.
    fn drop(&mut self) {
        self.daemon.take();
        let mut open = OpenOptions::new();
        open.write(true).custom_flags(OFlag::O_NONBLOCK.bits());
        let _ = open.open(self.never());
        if matches!(self.row.situation, Situation::LittleMemory) && !thread::panicking() {
            for (parent, _) in MEMORY_GROUPS {
                let group = Path::new(parent).join(self.store.root().file_name().unwrap());
                until("the control group is empty", || {
                    !group.exists() || fs::remove_dir(&group).is_ok()
                });
            }
        }
    }
}

impl Cell {
    fn never(&self) -> PathBuf {
        self.store.work().join("never")
    }

    /// The command that the builder is started behind, where a row needs one. `None`: it is not possible here.
    fn builder_behind(&self) -> Option<Vec<OsString>> {
        match self.row.situation {
            Situation::Mounted(script) => {
                let script = [
                    ("STORE", self.store.folder()),
                    ("LOG", self.store.root().join("log")),
                    ("ASIDE", self.store.root().join("aside")),
                ]
                .iter()
                .fold(script.to_owned(), |script, (name, folder)| {
                    script.replace(name, folder.to_str().unwrap())
                });
                self.store.with_mounts(&script)
            }
            Situation::LittleMemory => little_memory(self.store.root()),
            _ => Some(Vec::new()),
        }
    }

    fn run(&self) {
        fifo(&self.never());
        let text = |name| self.store.work().join(name).to_str().unwrap().to_owned();
        self.store.targets(
            &self
                .row
                .body
                .replace("NEVER", &text("never"))
                .replace("ITSELF", &text("pid")),
        );
        let root_causes = self.root_causes();
        if matches!(self.row.situation, Situation::CacheDied) {
            self.cache_died();
        }
        let flags = if self.row.evaluated {
            ["--attr", "target"].map(str::to_owned).to_vec()
        } else {
            self.record()
        };
        let Some(before) = self.builder_behind() else {
            return;
        };
        if let Some(user) = self.client.user() {
            self.store.open_to(user);
        }
        // Where there is no daemon, it is the step that builds.
        let mut step = self
            .store
            .eval_once(["step", "--log", self.log])
            .reporting_to(self.store.work().join("report.json"))
            .args(flags)
            .args(self.row.flags);
        if self.client == Client::NoDaemon {
            step = step.behind(&before);
        } else {
            let daemon = Daemon::start_behind(&self.store, &before);
            step = step.envs(daemon.env());
            *self.daemon.borrow_mut() = Some(daemon);
        }
        if let Some(user) = self.client.user() {
            step = step.by_user(user).env("HOME", self.store.work());
        }
        if let Situation::Before(happens) = self.row.situation {
            happens(self);
        }
        let running = step.start();
        if let Situation::During(happens) = self.row.situation {
            running.until_it_says("waiting");
            happens(self, &running);
        }
        let ended = running.end();
        ended.fails(self.row.status, self.row.class);
        let drv = ended.report()["failure"]["drv"].as_str();
        let right = match drv {
            Some(drv) => root_causes.iter().any(|root_cause| root_cause == drv),
            None => root_causes.is_empty(),
        };
        assert!(
            right,
            "the root cause is {drv:?}, none of {root_causes:?}: {ended}"
        );
        let reported = ended.reported();
        assert!(
            reported.contains(self.row.says),
            "we do not say {:?}: {ended}",
            self.row.says
        );
    }

    /// The `.drv`s of the root causes, written and printed by one evaluation.
    fn root_causes(&self) -> Vec<String> {
        let [first, ..] = self.row.root_causes else {
            return Vec::new();
        };
        let mut ask = self
            .store
            .program("nix-instantiate")
            .args(["default.nix", "-A", first]);
        for more in &self.row.root_causes[1..] {
            ask = ask.args(["-A", more]);
        }
        let ended = ask.run();
        ended.exits(0);
        ended.stdout.lines().map(str::to_owned).collect()
    }

    /// The flags of a step that is recorded, and whose evaluation would be seen.
    fn record(&self) -> Vec<String> {
        let target = self.store.target("target");
        self.store.poison();
        let mut flags = target.flags();
        flags.extend(["--file", "default.nix", "--attr", "target"].map(str::to_owned));
        flags
    }

    /// `good` is in a cache, Nix knows that, and the cache no longer answers.
    fn cache_died(&self) {
        let good = self.store.target("good");
        self.store.build(&good.drv);
        self.store.cache("cache", [good.out()]);
        self.store.delete([good.out()]);
        let server = tiny_http::Server::http("127.0.0.1:0").unwrap();
        let url = format!("http://{}", server.server_addr());
        self.store.configure(&format!("substituters = {url}"));
        // Otherwise it is tried five times, which takes four seconds.
        self.store.configure("download-attempts = 1");
        let folder = self.store.root().join("cache");
        thread::scope(|scope| {
            scope.spawn(|| {
                for request in server.incoming_requests() {
                    let answer = match fs::read(folder.join(request.url().trim_start_matches('/')))
                    {
                        Ok(bytes) => tiny_http::Response::from_data(bytes),
                        Err(_) => tiny_http::Response::from_data([]).with_status_code(404),
                    };
                    let _ = request.respond(answer);
                }
            });
            // Asked by the Nix that is to remember the answer.
            let daemon = (self.client != Client::NoDaemon).then(|| self.store.daemon());
            self.store
                .program("nix-store")
                .args(["--realise", "--dry-run", &good.drv])
                .envs(daemon.iter().flat_map(Daemon::env))
                .run()
                .exits(0);
            server.unblock();
        });
    }
}

/// Sends the Nix that this step has started a signal.
fn kill_nix(step: &Running, signal: Signal) {
    let nix = || {
        children(step.pid())
            .into_iter()
            .find(|child| child.command.contains("--realise"))
    };
    until("the step's Nix runs", || nix().is_some());
    kill(nix().unwrap().pid, signal).unwrap();
}

/// Where control groups with a limit for memory are made, and the file that sets it: by the first and by the second version of them.
const MEMORY_GROUPS: [(&str, &str); 2] = [
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
    ("/sys/fs/cgroup", "memory.max"),
];

/// What starts a program in a control group with little memory. `None`, said loudly, where none can be made.
fn little_memory(store: &Path) -> Option<Vec<OsString>> {
    let name = store.file_name().unwrap();
    let made = MEMORY_GROUPS.into_iter().find_map(|(parent, limit)| {
        let group = Path::new(parent).join(name);
        if !Path::new(parent).join("cgroup.procs").exists() {
            return None;
        }
        fs::create_dir(&group).ok()?;
        if fs::write(group.join(limit), "67108864").is_ok() {
            return Some(group);
        }
        let _ = fs::remove_dir(&group);
        None
    });
    let Some(group) = made else {
        loudly(
            "no control group with a limit for memory can be made here: the kernel kills no builder",
        );
        return None;
    };
    let script = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", group.display());
    Some(
        ["/bin/sh", "-c", &script, "sh"]
            .map(OsString::from)
            .to_vec(),
    )
}

/// All rows in one setting; those that are red are listed together.
fn all_rows(client: Client, log: &'static str) {
    let mut red = Vec::new();
    // One row alone: what a person who mends it wants.
    let wanted = std::env::var("EVAL_ONCE_TEST_ROW").unwrap_or_default();
    for row in ROWS.iter().filter(|row| row.name.contains(&wanted)) {
        let has = match row.only {
            Only::All => true,
            Only::Daemon => client != Client::NoDaemon,
            Only::Pretty => log == "pretty",
            Only::PrettyDaemon => client != Client::NoDaemon && log == "pretty",
            Only::Trusted => client != Client::Ordinary,
        };
        if !has {
            continue;
        }
        let store = match client {
            Client::NoDaemon => Store::without_daemon(),
            Client::Root | Client::Ordinary => Store::new(),
        };
        let Some(store) = store else { return };
        let cell = Cell {
            row,
            client,
            log,
            store,
            daemon: RefCell::default(),
        };
        if let Err(why) = catch_unwind(AssertUnwindSafe(|| cell.run())) {
            let why = why.downcast_ref::<String>().cloned().unwrap_or_default();
            red.push(format!("=== {cell}: {why}"));
        }
    }
    assert!(
        red.is_empty(),
        "{} red cells:\n{}",
        red.len(),
        red.join("\n")
    );
}

#[test]
fn each_failure_is_reported_alike_without_a_daemon() {
    all_rows(Client::NoDaemon, "pretty");
}

#[test]
fn each_failure_is_reported_alike_without_a_daemon_and_with_nixs_own_log() {
    all_rows(Client::NoDaemon, "raw");
}

#[test]
fn each_failure_is_reported_alike_through_a_daemon_as_root() {
    all_rows(Client::Root, "pretty");
}

#[test]
fn each_failure_is_reported_alike_through_a_daemon_as_root_and_with_nixs_own_log() {
    all_rows(Client::Root, "raw");
}

#[test]
fn each_failure_is_reported_alike_through_a_daemon_as_an_ordinary_user() {
    if ordinary_user() {
        all_rows(Client::Ordinary, "pretty");
    }
}

#[test]
fn each_failure_is_reported_alike_through_a_daemon_as_an_ordinary_user_and_with_nixs_own_log() {
    if ordinary_user() {
        all_rows(Client::Ordinary, "raw");
    }
}

/// Can a step be run as an ordinary user beside the daemon's?
pub(super) fn ordinary_user() -> bool {
    if !geteuid().is_root() {
        loudly("these are not run by root: a daemon of the same user stands for root's");
        return false;
    }
    let reachable = catch_unwind(|| {
        Program::new(EVAL_ONCE)
            .arg("--version")
            .by_user(ORDINARY_USER)
            .run()
            .exits(0);
    });
    if reachable.is_err() {
        skip(&format!("another user cannot start {EVAL_ONCE}"));
    }
    reachable.is_ok()
}
