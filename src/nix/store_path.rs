//! Store paths, parsed once at the edge.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::text::is_hidden;

/// Why a string is not a store path, as the end of a sentence that begins with the string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadStorePath(&'static str);

impl fmt::Display for BadStorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BadStorePath {}

/// A path of a Nix store: the store's folder, a hash of 32 characters, and a name.
///
/// Whether such a path exists is another question; only Nix can answer it. A clone shares its text: a recording has each path in
/// several places.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath {
    path: Arc<str>,
    /// Where the base name begins in `path`.
    base: usize,
}

impl StorePath {
    /// Parses a store path of any store; the store's folder is whatever stands before the last `/`.
    ///
    /// # Errors
    /// The string is not an absolute, plain path to a name that Nix would give.
    pub fn parse(path: &str) -> Result<Self, BadStorePath> {
        // From Nix's `path.cc`: hashes are in Nix's base 32, names of these characters and at most 211 long.
        let Some(slash) = path.rfind('/').filter(|_| path.starts_with('/')) else {
            return Err(BadStorePath("is not a store path: it is not absolute"));
        };
        let (folder, base) = (&path[..slash], &path[slash + 1..]);
        if folder.is_empty()
            || folder
                .split('/')
                .skip(1)
                .any(|part| matches!(part, "" | "." | ".."))
        {
            return Err(BadStorePath(
                "is not a store path: it does not lie directly in a store",
            ));
        }
        // Nix takes any folder. Where its name would be read as something else than a path, no store is.
        if folder.contains(is_hidden) {
            return Err(BadStorePath(
                "is not a store path: its folder has characters that are not seen",
            ));
        }
        let Some((hash, name)) = base.split_at_checked(32) else {
            return Err(BadStorePath(
                "is not a store path: its name does not begin with a hash of 32 characters",
            ));
        };
        if !hash
            .bytes()
            .all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'z') && !b"eotu".contains(&c))
        {
            return Err(BadStorePath(
                "is not a store path: its name does not begin with a hash of 32 characters",
            ));
        }
        if name.contains('!') {
            return Err(BadStorePath(
                "is not a store path: leave away the `!` and what follows it",
            ));
        }
        let Some(name) = name.strip_prefix('-').filter(|name| is_output_name(name)) else {
            return Err(BadStorePath(
                "is not a store path: a name must follow its hash",
            ));
        };
        if name.len() > 211 {
            return Err(BadStorePath(
                "is not a store path: its name is longer than 211 characters",
            ));
        }
        Ok(Self {
            path: path.into(),
            base: slash + 1,
        })
    }

    /// The whole path, as Nix's programs take it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.path
    }

    /// The whole path, for looking at the file system.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(&*self.path)
    }

    /// The hash in its name.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.path[self.base..self.base + 32]
    }

    /// The name that follows the hash.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.path[self.base + 33..]
    }

    /// Whether an evaluation may have made this path, and makes it anew the next time: a `.drv`, or a copy of what Nix fetches, which it calls
    /// `source`. The collector may take it each time.
    #[must_use]
    pub fn may_come_anew(&self) -> bool {
        self.name() == "source" || self.is_drv()
    }

    /// Whether it is the path of a `.drv`, by its name.
    #[must_use]
    pub fn is_drv(&self) -> bool {
        self.as_path().extension() == Some("drv".as_ref())
    }

    /// The store's folder (`/nix/store` on most hosts).
    #[must_use]
    pub fn store(&self) -> &Path {
        Path::new(&self.path[..self.base - 1])
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

impl serde::Serialize for StorePath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.path)
    }
}

/// The store path of a derivation: one whose name ends in `.drv`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct DrvPath(StorePath);

impl DrvPath {
    /// Parses the store path of a derivation.
    ///
    /// # Errors
    /// The string is not a store path, or not that of a derivation.
    pub fn parse(path: &str) -> Result<Self, BadStorePath> {
        let path = StorePath::parse(path)?;
        if path.as_path().extension() == Some("drv".as_ref()) {
            Ok(Self(path))
        } else {
            Err(BadStorePath(
                "is not a derivation: its name does not end in .drv",
            ))
        }
    }

    /// The derivation's name: that of its file, without what all of them end in.
    #[must_use]
    pub fn name(&self) -> &str {
        let name = self.0.name();
        name.strip_suffix(".drv").unwrap_or(name)
    }

    /// This path among all others.
    #[must_use]
    pub fn as_store_path(&self) -> &StorePath {
        &self.0
    }
}

impl<'de> serde::Deserialize<'de> for DrvPath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let path = String::deserialize(deserializer)?;
        Self::parse(&path).map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for DrvPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether Nix would take `name` as the name of an output; the characters are those of store path names.
#[must_use]
pub fn is_output_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "+-._?=".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "0123456789abcdfghijklmnpqrsvwxyz";

    #[test]
    fn a_store_path_knows_its_store() {
        let path = StorePath::parse(&format!("/tmp/s/store/{HASH}-hello-1.0")).unwrap();
        assert_eq!(path.store(), Path::new("/tmp/s/store"));
        assert_eq!(path.to_string(), format!("/tmp/s/store/{HASH}-hello-1.0"));
    }

    #[test]
    fn what_is_no_store_path_is_refused() {
        for bad in [
            String::new(),
            "hello".into(),
            format!("{HASH}-x"),
            format!("/{HASH}-x"),
            format!("/nix/../store/{HASH}-x"),
            format!("/nix//store/{HASH}-x"),
            format!("/nix/store/{HASH}-x/bin"),
            format!("/nix/store/{HASH}"),
            format!("/nix/store/{HASH}-"),
            format!("/nix/store/{HASH}-a b"),
            format!("/nix/store/{HASH}-x.drv!dev"),
            format!("/nix/store/{}-x", HASH.replace('0', "e")),
            format!("/nix/store/{HASH}-{}", "x".repeat(212)),
            "/nix/store/ä".into(),
            format!("/nix/st\u{1b}ore/{HASH}-x"),
            format!("/nix/st\nore/{HASH}-x"),
            format!("/nix/st\u{202e}ore/{HASH}-x"),
        ] {
            assert!(StorePath::parse(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_a_drv_is_a_derivation() {
        assert!(DrvPath::parse(&format!("/nix/store/{HASH}-x.drv")).is_ok());
        assert!(DrvPath::parse(&format!("/nix/store/{HASH}-x")).is_err());
    }
}
