//! The variables of this process, and how one of them is read. This module does not know what any of them means.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use crate::exit::Failure;
use crate::keys::refuse;

/// The environment of this process.
#[derive(Debug, Clone, Default)]
pub(super) struct Variables(BTreeMap<OsString, OsString>);

impl Variables {
    /// A variable as it is, empty or not.
    pub(super) fn raw(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str)
    }

    /// A variable that is not empty.
    pub(super) fn get(&self, name: &str) -> Option<&OsStr> {
        self.raw(name).filter(|value| !value.is_empty())
    }

    /// A variable that is not empty, as text.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.get(name)
            .map(|value| value.to_string_lossy().into_owned())
    }

    /// A variable that is not empty, as a path.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from)
    }

    /// Whether a variable has this value.
    pub(super) fn is(&self, name: &str, value: &str) -> bool {
        self.get(name).is_some_and(|found| found == value)
    }

    /// A variable that holds JSON. Made valid, what is not UTF-8 would name another path.
    ///
    /// # Errors
    /// It is not UTF-8 (64).
    pub(super) fn utf8(&self, name: &str) -> Result<Option<&str>, Failure> {
        let text = self.raw(name).map(|value| {
            value
                .to_str()
                .ok_or_else(|| refuse(format_args!("{name} is not UTF-8")))
        });
        text.transpose()
    }

    /// A path of the host. A relative one would lead to another place from every folder: from a job into its checkout, which
    /// the next job cleans.
    ///
    /// # Errors
    /// It is relative (64).
    pub(super) fn absolute(&self, name: &str) -> Result<Option<PathBuf>, Failure> {
        match self.path(name) {
            Some(path) if path.is_relative() => Err(refuse(format_args!(
                "{name} is {}, a relative path",
                path.display()
            ))
            .hint(format!("give {name} an absolute path"))),
            path => Ok(path),
        }
    }

    /// All of them, for a program that is started with them.
    pub(super) fn all(&self) -> Vec<(OsString, OsString)> {
        self.0.clone().into_iter().collect()
    }
}

impl<K: Into<OsString>, V: Into<OsString>> FromIterator<(K, V)> for Variables {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        let variables = variables
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()));
        Self(variables.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt as _;

    #[test]
    fn an_empty_variable_is_as_good_as_none_but_for_what_holds_json() {
        let variables = Variables::from_iter([("A", ""), ("B", "b")]);
        assert_eq!((variables.get("A"), variables.text("A")), (None, None));
        assert_eq!(variables.text("B").as_deref(), Some("b"));
        assert_eq!(variables.utf8("A").unwrap(), Some(""));
        assert_eq!(variables.utf8("C").unwrap(), None);
        assert!(variables.is("B", "b") && !variables.is("A", "") && !variables.is("C", ""));
    }

    #[test]
    fn json_that_is_not_utf_8_and_a_relative_path_are_refused_by_name() {
        let bytes = OsString::from_vec(vec![0xff]);
        let variables = Variables::from_iter([("A", bytes), ("B", "state".into())]);
        let refusal = variables.utf8("A").unwrap_err().to_string();
        assert_eq!(refusal, "A is not UTF-8");
        let refusal = variables.absolute("B").unwrap_err().to_string();
        assert_eq!(refusal, "B is state, a relative path");
        assert_eq!(variables.absolute("C").unwrap(), None);
    }
}
