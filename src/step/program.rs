//! The program of a derivation that a step runs after the build (`run`).

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::exit::{Class, Failure};
use crate::nix::StorePath;

/// A program in the outputs of a derivation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepProgram {
    /// The one with this name in `bin`.
    Named(String),
    /// The only one.
    Only,
}

impl StepProgram {
    /// Reads the key `run`; none where it is no name of a file.
    pub(super) fn read(text: &str) -> Option<Self> {
        match text {
            "*" => Some(Self::Only),
            "" | "." | ".." => None,
            name if name.contains(['/', '\0']) => None,
            name => Some(Self::Named(name.into())),
        }
    }

    /// The path of the program.
    ///
    /// # Errors
    /// It is not there, or there are several (64).
    pub(super) fn find(&self, outputs: &BTreeMap<String, StorePath>) -> Result<PathBuf, Failure> {
        // Where Nixpkgs has programs.
        let first = ["bin", "out"];
        let others = outputs.keys().map(String::as_str);
        let others = others.filter(|name| !first.contains(name));
        let names = first.into_iter().chain(others);
        let paths: Vec<&Path> = names
            .filter_map(|name| outputs.get(name))
            .map(StorePath::as_path)
            .collect();
        let mut all: Vec<PathBuf> = Vec::new();
        for path in &paths {
            if is_executable(path) {
                // As `writeShellScript` makes one.
                all.push((*path).to_owned());
                continue;
            }
            let Ok(files) = path.join("bin").read_dir() else {
                continue;
            };
            let files = files.flatten().map(|file| file.path());
            let mut files: Vec<PathBuf> = files.filter(|file| is_executable(file)).collect();
            files.sort_unstable();
            all.extend(files);
        }
        let found = match self {
            Self::Named(name) => all.iter().find(|path| {
                path.file_name().is_some_and(|file| file == name.as_str())
                    || paths.contains(&path.as_path())
            }),
            // One that is wrapped lies hidden beside its wrapper.
            Self::Only => {
                let mut seen = all.iter().filter(|path| !is_hidden(path));
                seen.next().filter(|_| seen.next().is_none())
            }
        };
        found.cloned().ok_or_else(|| self.not_found(&paths, &all))
    }

    fn not_found(&self, paths: &[&Path], all: &[PathBuf]) -> Failure {
        let seen = all.iter().filter(|path| !is_hidden(path));
        let names: Vec<String> = seen
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect();
        let place = paths
            .first()
            .map_or_else(String::new, |path| path.display().to_string());
        let message = match self {
            Self::Named(name) => format!("{place} has no program {name} in bin"),
            Self::Only if names.is_empty() => format!("{place} has no program in bin"),
            Self::Only => format!("{place} has several programs in bin: {}", names.join(", ")),
        };
        let hint = match &names[..] {
            [] => "let `run` be a derivation with an executable in bin, or one that is an executable file".into(),
            names => format!("set `meta.mainProgram` of `run` to one of: {}", names.join(", ")),
        };
        Failure::new(Class::Config, message).hint(hint)
    }
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
}

fn is_hidden(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tempfile::TempDir;

    /// The outputs `out` and `bin`, with these files in them: those whose names end in `*` are executable.
    fn outputs(folder: &Path, files: &[&str]) -> BTreeMap<String, StorePath> {
        let hash = "0123456789abcdfghijklmnpqrsvwxyz";
        let path = |name: &str| folder.join(format!("{hash}-x-{name}"));
        for file in files {
            let (output, below) = file.split_once('/').unwrap_or((file, ""));
            let name = below.trim_end_matches('*');
            let whole = path(output.trim_end_matches('*')).join(name);
            let whole = if name.is_empty() {
                path(output.trim_end_matches('*'))
            } else {
                whole
            };
            fs::create_dir_all(whole.parent().unwrap()).unwrap();
            fs::write(&whole, "").unwrap();
            let mode = if file.ends_with('*') { 0o555 } else { 0o444 };
            fs::set_permissions(&whole, fs::Permissions::from_mode(mode)).unwrap();
        }
        ["bin", "out"]
            .into_iter()
            .filter(|name| path(name).exists())
            .map(|name| {
                let path = path(name);
                (
                    name.to_owned(),
                    StorePath::parse(path.to_str().unwrap()).unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn a_program_is_found_by_its_name_or_as_the_only_one() {
        for (files, run, found) in [
            (&["out/bin/a*", "out/bin/b*"][..], "b", Ok("bin/b")),
            (
                &["out/bin/a*", "out/bin/.a-wrapped*", "out/bin/README"],
                "*",
                Ok("bin/a"),
            ),
            (&["out/share/x*", "bin/bin/a*"], "*", Ok("bin/a")),
            (&["out*"], "*", Ok("")),
            (&["out*"], "deploy", Ok("")),
            (
                &["out/bin/a*", "out/bin/b*"],
                "*",
                Err("has several programs in bin: a, b"),
            ),
            (&["out/bin/a*"], "b", Err("has no program b in bin")),
            (&["out/bin/a"], "*", Err("has no program in bin")),
            (&["out/share/a*"], "*", Err("has no program in bin")),
        ] {
            let store = TempDir::new().unwrap();
            let outputs = outputs(store.path(), files);
            let program = StepProgram::read(run).unwrap().find(&outputs);
            match (program, found) {
                (Ok(path), Ok(end)) => {
                    assert!(path.ends_with(end), "{files:?}: {}", path.display());
                }
                (Err(failure), Err(end)) => {
                    assert!(failure.to_string().ends_with(end), "{failure}");
                    assert_eq!(failure.class, Class::Config);
                }
                (found, _) => panic!("{files:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        for text in ["", ".", "..", "../x", "a/b", "a\0"] {
            assert_eq!(StepProgram::read(text), None, "{text:?}");
        }
    }
}
