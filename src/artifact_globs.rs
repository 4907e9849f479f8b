//! The key `artifacts`: which files below a step's outputs are uploaded after the build, as globs.

use crate::exit::Failure;
use crate::keys::{KeyReader, string};
use serde_json::Value;

/// How many parts a glob may have.
const PARTS_AT_MOST: usize = 64;

/// A path below an output, in which `*` and `?` stand for parts of a name, and `**` for any number of folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactGlob {
    /// As it was written.
    pub text: String,
    /// Its parts between the slashes; none is empty.
    pub parts: Vec<GlobPart>,
}

/// A part of a glob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GlobPart {
    /// `**`: any number of folders.
    Folders,
    /// A name, in which `*` and `?` have a meaning.
    Name(String),
}

impl GlobPart {
    /// The name, where it stands for itself.
    #[must_use]
    pub fn plain(&self) -> Option<&str> {
        match self {
            Self::Name(name) if !name.contains(['*', '?']) => Some(name),
            _ => None,
        }
    }

    /// Whether it stands for this name.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Folders => true,
            Self::Name(pattern) => matches(pattern, name),
        }
    }
}

impl ArtifactGlob {
    /// Reads a glob.
    ///
    /// # Errors
    /// It leads out of the output, or is none; the sentence goes on after the glob.
    pub fn parse(text: &str) -> Result<Self, String> {
        let part = |part: &str| match part {
            "" => Err(format!("holds {text:?}, in which a name is empty")),
            "." | ".." => Err(format!(
                "holds {text:?}, which is not a path below the output"
            )),
            "**" => Ok(GlobPart::Folders),
            _ if part.contains("**") => {
                Err(format!("holds {text:?}, and `**` stands for whole folders"))
            }
            _ if part.chars().any(char::is_control) => {
                Err(format!("holds {text:?}, which has control characters"))
            }
            name => Ok(GlobPart::Name(name.to_owned())),
        };
        let mut parts: Vec<GlobPart> = text.split('/').map(part).collect::<Result<_, _>>()?;
        if parts.len() > PARTS_AT_MOST {
            return Err(format!(
                "holds a glob of {} parts, more than {PARTS_AT_MOST}",
                parts.len()
            ));
        }
        // One stands for any number of folders already.
        parts.dedup_by(|next, before| *next == GlobPart::Folders && next == before);
        Ok(Self {
            parts,
            text: text.to_owned(),
        })
    }
}

/// Reads the key.
///
/// # Errors
/// It is no list of globs (64).
pub(crate) fn read(reader: &mut KeyReader) -> Result<Vec<ArtifactGlob>, Failure> {
    let globs = reader.take("artifacts", "a list of globs", |value| match value {
        Value::Array(globs) => globs
            .into_iter()
            .map(|glob| Some(ArtifactGlob::parse(&string(glob)?)))
            .collect(),
        _ => None,
    })?;
    Ok(globs.unwrap_or_default())
}

/// Whether the pattern stands for the whole name. In time of the product of their lengths: the text of either is the repository's.
fn matches(pattern: &str, name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    // Whether the pattern so far stands for the first so many characters.
    let mut fits = vec![false; name.len() + 1];
    fits[0] = true;
    for char in pattern.chars() {
        let mut next = vec![false; name.len() + 1];
        match char {
            '*' => {
                let mut any = false;
                for (at, fit) in fits.iter().enumerate() {
                    any |= fit;
                    next[at] = any;
                }
            }
            _ => {
                for (at, is) in name.iter().enumerate() {
                    next[at + 1] = fits[at] && (char == '?' || char == *is);
                }
            }
        }
        fits = next;
    }
    fits[name.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks_stand_for_parts_of_a_name() {
        for (pattern, name, expected) in [
            ("*", ".hidden", true),
            ("*.html", "index.html", true),
            ("*.html", "index.htm", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("ä?", "äö", true),
            ("[ab]", "a", false),
            ("", "", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_glob_is_a_path_below_an_output() {
        let glob = ArtifactGlob::parse("share/**/*.html").unwrap();
        assert_eq!(glob.parts.len(), 3);
        assert_eq!(glob.parts[0].plain(), Some("share"));
        assert_eq!(glob.parts[2].plain(), None);
        let glob = ArtifactGlob::parse("**/**/a/a/**").unwrap();
        assert_eq!(glob.parts.len(), 4, "{glob:?}");
        let long = format!("{}b", "a/".repeat(PARTS_AT_MOST));
        assert!(ArtifactGlob::parse(&long).unwrap_err().contains("65 parts"));
        for wrong in ["", "/etc", "a//b", "../x", "a/.", "a**b", "a/", "a\n"] {
            let sentence = ArtifactGlob::parse(wrong).unwrap_err();
            assert!(sentence.contains(&format!("{wrong:?}")), "{sentence}");
        }
    }
}
