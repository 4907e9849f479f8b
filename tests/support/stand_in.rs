//! Programs that stand in for others on `PATH`: each writes down how it was called, does what the test wants done just
//! then, and becomes the real one.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{store::Store, tool};

/// A folder of stand-ins, to be put first on `PATH`.
#[derive(Debug)]
pub(crate) struct StandIns {
    folder: PathBuf,
}

impl StandIns {
    /// None yet; they will be made in `folder`.
    pub(crate) fn new(folder: impl Into<PathBuf>) -> Self {
        let folder = folder.into();
        fs::create_dir_all(&folder).unwrap();
        Self { folder }
    }

    /// A program that counts its calls and is otherwise the real one.
    pub(crate) fn counting(self, program: &str) -> Self {
        self.before(program, "")
    }

    /// A program that counts its calls, runs `script` (POSIX shell: `$@` are its arguments, `$REAL` the real program, `$NTH`
    /// the number of this call, from 1), and is otherwise the real one.
    pub(crate) fn before(self, program: &str, script: &str) -> Self {
        let real = tool(program).unwrap();
        let log = self.log(program);
        // A call has its number before it is written down: whoever sees it there knows which one it is, and may begin the next. Where no
        // file can be made, the number is what it was.
        let text = format!(
            "#!/bin/sh\n\
             NTH=$(($(cat '{log}' 2>/dev/null | tr -dc '\\036' | wc -c) + 1))\n\
             until (set -C; : >'{log}'.$NTH) 2>/dev/null || [ ! -e '{log}'.$NTH ]; do NTH=$((NTH + 1)); done\n\
             {{ printf '%s\\037' \"$@\"; printf '\\036'; }} >>'{log}'\n\
             REAL='{real}'\n\
             {script}\n\
             exec \"$REAL\" \"$@\"\n",
            log = log.display(),
            real = real.display(),
        );
        self.write(program, &text)
    }

    /// A program of which `text` is the whole.
    pub(crate) fn instead(self, program: &str, text: &str) -> Self {
        self.write(program, text)
    }

    fn write(self, program: &str, text: &str) -> Self {
        write_program(&self.folder.join(program), text);
        self
    }

    fn log(&self, program: &str) -> PathBuf {
        self.folder.join(format!(".{program}.calls"))
    }

    /// The arguments of each call of `program` so far.
    pub(crate) fn calls(&self, program: &str) -> Vec<Vec<String>> {
        let log = fs::read_to_string(self.log(program)).unwrap_or_default();
        log.split_terminator('\u{1e}')
            .map(|call| call.split_terminator('\u{1f}').map(str::to_owned).collect())
            .collect()
    }

    /// How often `nix-instantiate` has evaluated something: all its calls but the question for the store's folder.
    pub(crate) fn evaluations(&self) -> usize {
        let asks = |call: &Vec<String>| call.iter().any(|word| word == "builtins.storeDir");
        let calls = self.calls("nix-instantiate");
        calls.iter().filter(|call| !asks(call)).count()
    }

    /// The `PATH` of `store` with the stand-ins before everything else.
    pub(crate) fn path(&self, store: &Store) -> OsString {
        let mut folders = self.folder.clone().into_os_string();
        folders.push(":");
        folders.push(store.path());
        folders
    }
}

/// A script for [`StandIns::before`] of `nix`: the first `times` evaluators are killed as soon as they say `at`, and then a message
/// stands there as if it were theirs.
pub(crate) fn dies(at: &str, message: &str, times: u32) -> String {
    ends(at, &format!("echo \"error: {message}\" >&2; exit 1"), times)
}

/// The same, with any script for its end.
pub(crate) fn ends(at: &str, end: &str, times: u32) -> String {
    format!(
        r#"if [ $NTH -le {times} ]; then
             exec 3<&0; said=$0.said-$$; mkfifo "$said"
             "$REAL" "$@" <&3 2>"$said" & nix=$!; exec 3<&-
             while IFS= read -r line; do
               printf '%s\n' "$line" >&2
               case "$line" in *'{at} '*) kill -KILL $nix; {end};; esac
             done <"$said"
             wait $nix; exit
           fi"#
    )
}

/// Writes an executable file.
///
/// By way of another process: while a file is open for writing it cannot be executed (`ETXTBSY`), and a process that
/// another test forks just then would hold it open a moment longer than we do.
pub(crate) fn write_program(file: &Path, text: &str) {
    let draft = file.with_extension("draft");
    fs::write(&draft, text).unwrap();
    let status = Command::new("install")
        .args(["-m", "755"])
        .args([&draft, file])
        .status()
        .unwrap();
    assert!(status.success(), "{} cannot be installed", file.display());
    fs::remove_file(draft).unwrap();
}
