//! What the agent's `environment` hook puts into a job: Nix and this program on its PATH, and where the state folder is. It
//! looks for programs and changes nothing: the variables are printed and set elsewhere.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::command_line::{find_program, shell_word};

/// What of a job's environment and of its host decides on the variables.
#[derive(Debug, Clone)]
pub struct HostEnvironment {
    /// The job's PATH.
    pub path: OsString,
    /// The file of this program.
    pub program: Option<PathBuf>,
    /// The program that the job names itself (`EVAL_ONCE_BIN`).
    pub named: Option<PathBuf>,
    /// The state folder, where the job does not name one itself.
    pub state: Option<PathBuf>,
    /// The folders in which Nix is looked for, best first.
    pub nix_folders: Vec<PathBuf>,
}

/// The folders in which Nix puts its programs: its installers' default profile, the user's profiles (old and new place),
/// NixOS's profiles for users and for the system.
#[must_use]
pub fn nix_folders(
    home: Option<&Path>,
    state_home: Option<&Path>,
    user: Option<&OsStr>,
) -> Vec<PathBuf> {
    let mut folders = vec![PathBuf::from("/nix/var/nix/profiles/default/bin")];
    folders.extend(home.map(|home| home.join(".nix-profile/bin")));
    folders.extend(state_home.map(|state| state.join("nix/profile/bin")));
    folders.extend(user.map(|user| Path::new("/etc/profiles/per-user").join(user).join("bin")));
    folders.push("/run/current-system/sw/bin".into());
    folders
}

/// The variables to set in a job. Folders are appended to its PATH, so that they hide no program of the job's.
#[must_use]
pub fn variables(host: &HostEnvironment) -> Vec<(&'static str, OsString)> {
    let mut path = host.path.clone();
    let mut append = |program: &str, folder: &Path| {
        let there = find_program(folder.join(program).as_os_str(), &path).is_some();
        if there && find_program(OsStr::new(program), &path).is_none() {
            if !path.is_empty() {
                path.push(":");
            }
            path.push(folder);
        }
    };
    for folder in &host.nix_folders {
        append("nix-store", folder);
    }
    // Steps run `eval-once`. A program with another name is not found as that, so this one is looked for next.
    let programs = [&host.named, &host.program];
    for program in programs.into_iter().flatten() {
        if let Some(folder) = program.parent().filter(|folder| folder.is_absolute()) {
            append("eval-once", folder);
        }
    }
    let mut variables = Vec::new();
    if path != host.path {
        variables.push(("PATH", path));
    }
    let program = host.program.clone().filter(|_| host.named.is_none());
    variables.extend(program.map(|program| ("EVAL_ONCE_BIN", program.into())));
    variables.extend(
        host.state
            .clone()
            .map(|state| ("EVAL_ONCE_STATE_DIR", state.into())),
    );
    variables
}

/// The variables as text that a POSIX shell can `eval`.
#[must_use]
pub fn as_shell(variables: &[(&str, OsString)]) -> Vec<u8> {
    let mut text = Vec::new();
    for (name, value) in variables {
        text.extend(
            [
                b"export ",
                name.as_bytes(),
                b"=",
                shell_word(value).as_bytes(),
                b"\n",
            ]
            .concat(),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn nix_is_appended_where_it_is_not_on_the_path_and_only_then() {
        let folder = tempfile::TempDir::new().unwrap();
        let nix_store = folder.path().join("nix-store");
        std::fs::write(&nix_store, "").unwrap();
        std::fs::set_permissions(&nix_store, PermissionsExt::from_mode(0o755)).unwrap();
        let mut host = HostEnvironment {
            path: "/nowhere".into(),
            program: None,
            named: None,
            state: None,
            nix_folders: vec![
                "/not/here".into(),
                folder.path().into(),
                folder.path().join("later"),
            ],
        };
        let expected = format!("/nowhere:{}", folder.path().display());
        assert_eq!(variables(&host), [("PATH", OsString::from(&expected))]);
        host.path = expected.into();
        assert_eq!(variables(&host), []);
    }
}
