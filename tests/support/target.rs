//! Targets: the expressions that tests build, and what a recording would have written down of them.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::fs::{FileTypeExt, OpenOptionsExt as _},
    path::Path,
};

use serde_json::{Value, json};
use unix::fcntl::OFlag;

use super::{store::Store, until};

/// Functions for the expressions of tests, which have no nixpkgs. A script finds no program on its `PATH`, only what the
/// shell can do by itself.
const FUNCTIONS: &str = r#"
  system = builtins.currentSystem;
  with' = more: name: script: derivation ({ inherit name system; builder = "/bin/sh"; args = [ "-c" script ]; } // more);
  build = with' { };
  buildAll = outputs: with' { inherit outputs; };
  # A file of its own, so that many targets differ by their name alone.
  file = name: build name "echo ${name} > $out";
"#;

/// What a recording knows of a target.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// The path of its `.drv`.
    pub(crate) drv: String,
    /// Its outputs' paths by name.
    pub(crate) outputs: BTreeMap<String, String>,
}

impl Target {
    /// Records the derivation that this expression is, in the working folder; its `.drv` is in the store then, and no root.
    #[track_caller]
    pub(crate) fn of(store: &Store, expression: &str) -> Self {
        let record = format!(
            "let d = {expression}; in {{ drv = d.drvPath; outputs = builtins.listToAttrs (map (name: \
             {{ inherit name; value = d.${{name}}.outPath; }}) (d.outputs or [ \"out\" ])); }}"
        );
        let text = store.nix(
            "nix-instantiate",
            [
                "--eval",
                "--strict",
                "--json",
                "--read-write-mode",
                "-E",
                &record,
            ],
        );
        let record: Value = serde_json::from_str(&text).unwrap();
        Self {
            drv: record["drv"].as_str().unwrap().to_owned(),
            outputs: serde_json::from_value(record["outputs"].clone()).unwrap(),
        }
    }

    /// The path of its output `out`.
    pub(crate) fn out(&self) -> &str {
        &self.outputs["out"]
    }

    /// The record as flags of a step: the `.drv` and all outputs.
    pub(crate) fn flags(&self) -> Vec<String> {
        let mut flags = self.drv_flags();
        for (name, path) in &self.outputs {
            flags.extend(["--output".to_owned(), format!("{name}={path}")]);
        }
        flags
    }

    /// The record as flags of a step, without its outputs.
    pub(crate) fn drv_flags(&self) -> Vec<String> {
        vec!["--drv".to_owned(), self.drv.clone()]
    }

    /// The record as in `EVAL_ONCE_STEP`, together with `more`.
    pub(crate) fn record(&self, more: &Value) -> Value {
        let mut record = json!({ "drv": self.drv, "outputs": self.outputs });
        record
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        record
    }

    /// All its outputs' paths.
    pub(crate) fn paths(&self) -> Vec<&str> {
        self.outputs.values().map(String::as_str).collect()
    }
}

impl Store {
    /// Writes `default.nix`, in whose `body` the functions `build NAME SCRIPT`, `buildAll OUTPUTS NAME SCRIPT`, `with' MORE
    /// NAME SCRIPT` and `file NAME` can be used.
    pub(crate) fn targets(&self, body: &str) {
        self.write("default.nix", &expression(body));
    }

    /// Records an attribute of `default.nix`.
    #[track_caller]
    pub(crate) fn target(&self, attribute: &str) -> Target {
        Target::of(self, &format!("(import ./default.nix).{attribute}"))
    }

    /// From now on `default.nix` cannot be read without that being seen: an evaluation of it fails.
    pub(crate) fn poison(&self) {
        self.write("default.nix", "abort \"default.nix was evaluated\"");
    }

    /// The links in the working folder, by name, and where they lead.
    pub(crate) fn links(&self) -> BTreeMap<String, String> {
        links(&self.work())
    }
}

/// An expression with the functions for tests around it.
pub(crate) fn expression(body: &str) -> String {
    format!("let{FUNCTIONS}in\n{body}\n")
}

/// The links in a folder, by name, and where they lead.
pub(crate) fn links(folder: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .filter(|entry| entry.file_type().unwrap().is_symlink())
        .map(|entry| {
            let target = fs::read_link(entry.path()).unwrap();
            (
                entry.file_name().into_string().unwrap(),
                target.into_os_string().into_string().unwrap(),
            )
        })
        .collect()
}

/// A pipe with a name: what opens it for reading waits there until [`let_go`] writes to it.
pub(crate) fn fifo(file: &Path) {
    unix::unistd::mkfifo(file, unix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(fs::metadata(file).unwrap().file_type().is_fifo());
}

/// Writes a line to a pipe, once something reads there. (What opens one that nothing reads waits for ever.)
pub(crate) fn let_go(pipe: &Path, line: &str) {
    let mut options = fs::File::options();
    options.write(true).custom_flags(OFlag::O_NONBLOCK.bits());
    let mut opened = None;
    until("the pipe is read", || {
        opened = options.open(pipe).ok();
        opened.is_some()
    });
    opened.unwrap().write_all(line.as_bytes()).unwrap();
}
