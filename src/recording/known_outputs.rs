//! The outputs of a derivation whose paths are all known.

use serde::{Serialize, Serializer};

use crate::nix::StorePath;

/// The outputs of a derivation by name; none where one of their paths is not known before it is built.
///
/// A list, since almost all have one to three: the smallest `BTreeMap` has room for eleven, which is half a kilobyte for each target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownOutputs(Box<[(String, StorePath)]>);

impl KnownOutputs {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their names and paths, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &StorePath)> {
        self.0.iter().map(|(name, path)| (name.as_str(), path))
    }

    /// Their paths, in the order of the names.
    pub fn paths(&self) -> impl Iterator<Item = &StorePath> {
        self.0.iter().map(|(_, path)| path)
    }
}

impl FromIterator<(String, StorePath)> for KnownOutputs {
    /// No two may have the same name.
    fn from_iter<I: IntoIterator<Item = (String, StorePath)>>(outputs: I) -> Self {
        let mut outputs: Box<[_]> = outputs.into_iter().collect();
        outputs.sort_unstable();
        Self(outputs)
    }
}

impl Serialize for KnownOutputs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

#[cfg(test)]
impl std::ops::Index<&str> for KnownOutputs {
    type Output = StorePath;

    fn index(&self, name: &str) -> &StorePath {
        let mut outputs = self.iter();
        outputs.find(|(other, _)| *other == name).unwrap().1
    }
}
