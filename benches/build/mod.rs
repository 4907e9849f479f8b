//! A build of Buildkite's whose agent is a script: artifacts are files in a folder, and pipelines too.

use std::{
    cell::Cell,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::pairs::command;

/// The agent.
const AGENT: &str = r#"#!/bin/sh
for last; do :; done
case "$1 $2" in
  '--version '*) echo 'buildkite-agent version 3.137.0, build 1' ;;
  'artifact upload') cp "$3" ARTIFACTS/ ;;
  'artifact download') cp ARTIFACTS/"${3%\*}" "$4" ;;
  'pipeline upload') cp "$last" ARTIFACTS/pipeline-"$$".json ;;
  'meta-data exists') exit 100 ;;
esac
"#;

/// A build: the folder in which its jobs run, and its number.
pub(crate) struct Build(tempfile::TempDir, Cell<u32>);

impl Build {
    pub(crate) fn new() -> Self {
        let build = Self(tempfile::tempdir().unwrap(), Cell::new(1));
        fs::create_dir(build.folder().join("bin")).unwrap();
        let artifacts = build.artifacts();
        fs::create_dir(&artifacts).unwrap();
        let agent = AGENT.replace("ARTIFACTS", artifacts.to_str().unwrap());
        program(&build.folder().join("bin/buildkite-agent"), &agent);
        build
    }

    pub(crate) fn folder(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn artifacts(&self) -> PathBuf {
        self.folder().join("artifacts")
    }

    /// Forgets what was uploaded: the next recording is another build.
    pub(crate) fn forget(&self) {
        self.1.set(self.1.get() + 1);
        for entry in self.artifacts().read_dir().unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }

    /// A program in a job of the build.
    pub(crate) fn in_job(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = command(self.folder(), program, arguments);
        let folders = [self.folder().join("bin")];
        let path = env::var_os("PATH").unwrap();
        let path = folders.into_iter().chain(env::split_paths(&path));
        command.env("PATH", env::join_paths(path).unwrap());
        let number = self.1.get().to_string();
        for (name, value) in [
            ("BUILDKITE", "true"),
            ("BUILDKITE_AGENT_ACCESS_TOKEN", "x"),
            ("BUILDKITE_BUILD_ID", &*number),
            ("BUILDKITE_JOB_ID", &number),
            ("BUILDKITE_STEP_ID", "s"),
        ] {
            command.env(name, value);
        }
        command
    }

    /// The build's `eval-once.json`.
    pub(crate) fn document(&self) -> Value {
        let file = self.artifacts().join("eval-once.json");
        serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
    }
}

fn program(file: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(file, text).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
}
