//! A host in the storm: a private store, with or without a daemon, and a garbage collector that never rests.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    stage::Stage,
    support::{daemon::Daemon, processes::kill_marked, program::Program, store::Store},
};

/// What stands in the targets of a place for a source with a hash: where it is valid, Nix reads it without a root.
pub(crate) const SOURCE: &str = "SOURCE";

/// A store whose clients go through a daemon, or do not.
#[derive(Debug)]
pub(crate) struct Place {
    // Ends before its store is removed.
    daemon: Option<Daemon>,
    pub(crate) store: Store,
}

impl Place {
    /// A new one, with this expression as `default.nix`.
    pub(crate) fn new(stage: &Stage, with_daemon: bool, targets: &str) -> Self {
        let store = Store::new().unwrap();
        stage.stop.remember(store.root());
        // Some hosts save space so; there the collector takes the .drv of an output that is in use.
        store.configure("keep-derivations = false");
        fs::create_dir(store.work().join("source")).unwrap();
        store.write("source/text", "its text");
        let hash = store.nix("nix-hash", ["--type", "sha256", "--base32", "source"]);
        let source = format!("(builtins.path {{ path = ./source; sha256 = {hash:?}; }})");
        store.targets(&targets.replace(SOURCE, &source));
        let daemon = with_daemon.then(|| store.daemon());
        Self { daemon, store }
    }

    /// Both kinds: without a daemon, and with one.
    pub(crate) fn both(stage: &Stage, targets: &str) -> [Self; 2] {
        [false, true].map(|with_daemon| Self::new(stage, with_daemon, targets))
    }

    /// Its kind, as it stands in a table.
    pub(crate) fn kind(&self) -> &'static str {
        if self.daemon.is_some() {
            "daemon"
        } else {
            "no daemon"
        }
    }

    /// The daemon, if there is one.
    pub(crate) fn daemon(&self) -> Option<&Daemon> {
        self.daemon.as_ref()
    }

    /// A program that goes through the daemon, if there is one, in the working folder.
    pub(crate) fn client(&self, program: &str) -> Program {
        self.through(self.store.program(program))
    }

    /// Our program in the same way. More evaluations at once than it would allow itself on a small machine.
    pub(crate) fn eval_once(&self, arguments: &[&str]) -> Program {
        let program = self.through(self.store.eval_once(arguments));
        program.env("EVAL_ONCE_EVALUATIONS", "2")
    }

    fn through(&self, program: Program) -> Program {
        match &self.daemon {
            Some(daemon) => program.envs(daemon.env()),
            None => program,
        }
    }

    /// A collection of all garbage, as root runs it on a host with a daemon as well: not through it.
    pub(crate) fn collector(&self) -> Program {
        self.store.collector()
    }

    /// What another evaluation does that reads the source: it is valid for a moment, and nothing keeps it then.
    pub(crate) fn other_evaluator(&self) -> Program {
        let arguments = ["--add-fixed", "--recursive", "sha256", "source"];
        self.client("nix-store").args(arguments)
    }

    /// Which of these paths are not valid.
    pub(crate) fn invalid(&self, paths: &[&str]) -> Vec<String> {
        if paths.is_empty() {
            return Vec::new();
        }
        let arguments = ["--check-validity", "--print-invalid"];
        let printed = self
            .store
            .nix("nix-store", arguments.iter().chain(paths.iter()));
        printed.lines().map(str::to_owned).collect()
    }
}

impl Drop for Place {
    /// What a trial left running would write into a store that is removed.
    fn drop(&mut self) {
        self.daemon = None;
        kill_marked(self.store.root().to_str().unwrap());
    }
}

/// Ends all processes that have one of these folders in their environment, and removes the folders, while trials may still be
/// running.
pub(crate) fn remove_all(roots: &[PathBuf]) {
    // A trial may be about to start another process: so those that are looked for last find no folder any more.
    for _ in 0..3 {
        for root in roots {
            kill_marked(&root.to_string_lossy());
            remove(root);
        }
    }
}

/// Removes a folder with a store in it, whose files are read-only.
fn remove(root: &Path) {
    if root.exists() {
        let _ = Command::new("chmod").args(["-R", "u+w"]).arg(root).status();
        let _ = fs::remove_dir_all(root);
    }
}
