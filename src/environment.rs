//! What the agent's `environment` hook puts into a job: Nix and this binary on its PATH, and where both are.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::command_line::{find_program, shell_word};

/// What is known of the job and its host.
#[derive(Debug, Clone)]
pub struct HostEnvironment {
    /// The job's PATH.
    pub path: OsString,
    /// Where this program is.
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

/// The variables that a job gets. What is on its PATH stays first there: nothing of the job's is hidden.
#[must_use]
pub fn variables(surroundings: &HostEnvironment) -> Vec<(&'static str, OsString)> {
    let mut path = surroundings.path.clone();
    let mut append = |program: &str, folder: &Path| {
        let there = find_program(folder.join(program).as_os_str(), &path).is_some();
        if there && find_program(OsStr::new(program), &path).is_none() {
            if !path.is_empty() {
                path.push(":");
            }
            path.push(folder);
        }
    };
    for folder in &surroundings.nix_folders {
        append("nix-store", folder);
    }
    // Steps run it by this name. One that is called otherwise is not found by it: then it is this program.
    let programs = [&surroundings.named, &surroundings.program];
    for program in programs.into_iter().flatten() {
        if let Some(folder) = program.parent().filter(|folder| folder.is_absolute()) {
            append("eval-once", folder);
        }
    }
    let mut variables = Vec::new();
    if path != surroundings.path {
        variables.push(("PATH", path));
    }
    let program = surroundings
        .program
        .clone()
        .filter(|_| surroundings.named.is_none());
    variables.extend(program.map(|program| ("EVAL_ONCE_BIN", program.into())));
    variables.extend(
        surroundings
            .state
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
        let mut surroundings = HostEnvironment {
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
        assert_eq!(
            variables(&surroundings),
            [("PATH", OsString::from(&expected))]
        );
        surroundings.path = expected.into();
        assert_eq!(variables(&surroundings), []);
    }
}
