//! Nix's settings as its files have them: enough for a hint, for which asking Nix would cost a process.

use std::path::{Path, PathBuf};

/// How deep files may include one another.
const DEPTH: usize = 8;

/// The setting for pure evaluation.
pub const PURE_EVAL: &str = "pure-eval";

/// Where settings come from, in the order in which Nix reads them: of two for the same name the later one counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NixSettings {
    /// Files: the system's, then the user's.
    pub files: Vec<PathBuf>,
    /// Text like that of a file (`NIX_CONFIG`), which comes last.
    pub text: String,
    /// `NIX_REMOTE`: the store, where no setting names one.
    pub remote: String,
    /// The folder of Nix's own state (`NIX_STATE_DIR`).
    pub state: PathBuf,
}

impl NixSettings {
    /// What is set for `name`; none where nothing is, or in a way that only Nix can read.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<String> {
        let mut found = None;
        for file in &self.files {
            read_file(file, name, &mut found, DEPTH);
        }
        read(&self.text, Path::new("/"), name, &mut found, DEPTH);
        found
    }

    /// Whether evaluation is pure, with these options; of two for the same name the later one counts.
    #[must_use]
    pub fn is_pure(&self, options: &[(String, String)]) -> bool {
        let mut named = options.iter().rev().filter(|(name, _)| name == PURE_EVAL);
        let value = named.next().map(|(_, value)| value.clone());
        let value = value.or_else(|| self.get(PURE_EVAL)).unwrap_or_default();
        ["true", "yes", "1"].contains(&value.as_str())
    }

    /// Whether a Nix collects by itself where the disk is full.
    #[must_use]
    pub fn collects_when_full(&self) -> bool {
        self.get("min-free").is_some_and(|bytes| bytes != "0")
    }

    /// Whether the files of the store lie where its paths say, as far as its name tells: not with `root=` or `real=`, nor on
    /// another machine. (A daemon's files may still lie elsewhere than ours, where it runs outside our container.)
    #[must_use]
    pub fn store_is_local(&self, options: &[(String, String)]) -> bool {
        let mut named = options.iter().rev().filter(|(name, _)| name == "store");
        let store = named.next().map(|(_, store)| store.clone());
        let store = store.or_else(|| self.get("store"));
        let store = store.unwrap_or_else(|| self.remote.clone());
        let (store, parameters) = store.trim().split_once('?').unwrap_or((store.trim(), ""));
        let moved = parameters
            .split('&')
            .any(|one| one.starts_with("root=") || one.starts_with("real="));
        let local =
            ["", "auto", "daemon", "local"].contains(&store) || store.starts_with("unix://");
        local && !moved
    }
}

fn read_file(file: &Path, name: &str, found: &mut Option<String>, depth: usize) {
    if let Ok(text) = std::fs::read_to_string(file) {
        let folder = file.parent().unwrap_or(Path::new("/"));
        read(&text, folder, name, found, depth);
    }
}

fn read(text: &str, folder: &Path, name: &str, found: &mut Option<String>, depth: usize) {
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("include" | "!include"), Some(file)) if depth > 0 => {
                read_file(&folder.join(file), name, found, depth - 1);
            }
            (Some(word), Some("=")) if word == name => {
                *found = Some(words.collect::<Vec<_>>().join(" "));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_that_is_set_counts_in_files_that_include_files() {
        let folder = tempfile::TempDir::new().unwrap();
        let file = |name: &str, text: &str| {
            let file = folder.path().join(name);
            std::fs::write(&file, text).unwrap();
            file
        };
        let system = file(
            "nix.conf",
            "include nix.conf\nmin-free = 5 # bytes\n# min-free = 6\n!include none.conf\ninclude more.conf\n",
        );
        file("more.conf", "min-free-check-interval = 1\nmin-free = 7\n");
        let mut settings = NixSettings {
            files: vec![system, folder.path().join("absent")],
            ..NixSettings::default()
        };
        assert_eq!(settings.get("min-free").as_deref(), Some("7"));
        assert_eq!(settings.get("max-free"), None);
        settings.text = "cores = 1\nmin-free = 0\n".into();
        assert_eq!(settings.get("min-free").as_deref(), Some("0"));
    }

    #[test]
    fn evaluation_is_pure_where_the_nearest_setting_says_so() {
        let option = |value: &str| (PURE_EVAL.to_owned(), value.to_owned());
        let other = ("restrict-eval".to_owned(), "true".to_owned());
        for (text, options, pure) in [
            ("", vec![], false),
            ("restrict-eval = true", vec![other], false),
            ("pure-eval = true", vec![], true),
            ("pure-eval = yes", vec![], true),
            ("pure-eval = 1", vec![], true),
            ("pure-eval = true", vec![option("false")], false),
            ("pure-eval = false", vec![option("true")], true),
            ("", vec![option("true"), option("false")], false),
        ] {
            let settings = NixSettings {
                text: text.into(),
                ..NixSettings::default()
            };
            assert_eq!(settings.is_pure(&options), pure, "{text} {options:?}");
        }
    }

    #[test]
    fn a_store_lies_elsewhere_where_its_name_says_so_and_the_nearest_name_counts() {
        for (remote, local) in [
            ("", true),
            ("auto", true),
            ("daemon", true),
            ("local", true),
            ("unix:///run/nix.socket", true),
            ("local?root=/mnt", false),
            ("unix:///run/nix.socket?root=/mnt", false),
            ("local?state=/x&real=/mnt/store", false),
            ("/mnt", false),
            ("ssh-ng://builder", false),
        ] {
            let mut settings = NixSettings {
                remote: remote.into(),
                ..NixSettings::default()
            };
            assert_eq!(settings.store_is_local(&[]), local, "{remote}");
            settings.text = "store = daemon".into();
            assert!(settings.store_is_local(&[]), "{remote}");
            let option = ("store".to_owned(), "ssh://x".to_owned());
            assert!(!settings.store_is_local(&[option]), "{remote}");
        }
    }
}
