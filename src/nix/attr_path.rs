//! Attribute paths: exact lists of names, and their written forms.

use std::fmt;
use std::sync::Arc;

/// The names from the value of a Nix expression to one of its attributes. A name may hold any character.
///
/// In JSON it is the list of the names. A clone shares them: a recording has each path in several places.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttrPath(Arc<[String]>);

/// What is wrong with a dotted attribute path: the end of a sentence that begins with the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadAttrPath(&'static str);

impl fmt::Display for BadAttrPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BadAttrPath {}

impl AttrPath {
    /// The path that consists of exactly these names.
    #[must_use]
    pub fn new(names: Vec<String>) -> Self {
        Self(names.into())
    }

    /// Parses `a.b."c d"`: names separated by dots, quoted as in the Nix language where necessary. The empty string is the root,
    /// as for `nix-build -A ''`.
    ///
    /// # Errors
    /// A name is empty without quotes, a quote is not closed, or something follows a closing quote.
    pub fn parse(dotted: &str) -> Result<Self, BadAttrPath> {
        let mut names = Vec::new();
        let mut rest = dotted.chars().peekable();
        if rest.peek().is_none() {
            return Ok(Self::new(names));
        }
        loop {
            let mut name = String::new();
            if rest.next_if_eq(&'"').is_some() {
                loop {
                    match rest
                        .next()
                        .ok_or(BadAttrPath("has a quote that is not closed"))?
                    {
                        '"' => break,
                        '\\' => match rest
                            .next()
                            .ok_or(BadAttrPath("has a quote that is not closed"))?
                        {
                            'n' => name.push('\n'),
                            'r' => name.push('\r'),
                            't' => name.push('\t'),
                            other => name.push(other),
                        },
                        other => name.push(other),
                    }
                }
                if rest.peek().is_some_and(|next| *next != '.') {
                    return Err(BadAttrPath(
                        "has a quote inside a name: quote the whole name",
                    ));
                }
            } else {
                while let Some(c) = rest.next_if(|c| *c != '.') {
                    if c == '"' {
                        return Err(BadAttrPath(
                            "has a quote inside a name: quote the whole name",
                        ));
                    }
                    name.push(c);
                }
                if name.is_empty() {
                    return Err(BadAttrPath(
                        "has an empty name: write an intended one as \"\"",
                    ));
                }
            }
            names.push(name);
            if rest.next().is_none() {
                return Ok(Self::new(names));
            }
        }
    }

    /// The names, outermost first.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// This path as `nix-build -A` takes it; none where that cannot express it.
    ///
    /// Measured: inside its quotes nothing can be escaped, an empty name is an error or ignored, and a name that is a number indexes
    /// a list and never names an attribute of a set.
    #[must_use]
    pub fn as_selection(&self) -> Option<String> {
        let plain = |name: &String| {
            let digits = name.strip_prefix('+').unwrap_or(name);
            !name.contains('"') && !digits.chars().all(|c| c.is_ascii_digit())
        };
        self.0.iter().all(plain).then(|| {
            let quoted = |name: &String| {
                if name.contains('.') {
                    format!("\"{name}\"")
                } else {
                    name.clone()
                }
            };
            self.0.iter().map(quoted).collect::<Vec<_>>().join(".")
        })
    }
}

impl serde::Serialize for AttrPath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.names().serialize(serializer)
    }
}

impl<'de> serde::Deserialize<'de> for AttrPath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self::new)
    }
}

/// As in the Nix language, but a number, which selects from a list, has no quotes: so `-A` takes it.
impl fmt::Display for AttrPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(".")?;
            }
            let number = !name.is_empty() && name.chars().all(|c| c.is_ascii_digit());
            let mut characters = name.chars();
            let identifier = characters
                .next()
                .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
                && characters.all(|c| c.is_ascii_alphanumeric() || "_-'".contains(c));
            if identifier || number {
                f.write_str(name)?;
            } else {
                f.write_str(&string_literal(name))?;
            }
        }
        Ok(())
    }
}

/// `text` as a string of the Nix language, on one line.
#[must_use]
pub fn string_literal(text: &str) -> String {
    let mut literal = String::with_capacity(text.len() + 2);
    literal.push('"');
    for c in text.chars() {
        match c {
            // A bare carriage return would be read as part of a line break.
            '\r' => literal.push_str("\\r"),
            '\n' => literal.push_str("\\n"),
            '\t' => literal.push_str("\\t"),
            '"' | '\\' | '$' => literal.extend(['\\', c]),
            other => literal.push(other),
        }
    }
    literal.push('"');
    literal
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(path: &str) -> Vec<String> {
        AttrPath::parse(path).unwrap().names().to_vec()
    }

    #[test]
    fn dots_separate_and_quotes_protect() {
        assert_eq!(names("a.b.c"), ["a", "b", "c"]);
        assert_eq!(names(r#"a."b.c".d"#), ["a", "b.c", "d"]);
        assert_eq!(names(r#""say \"hi\"\n"."""#), ["say \"hi\"\n", ""]);
        assert_eq!(names("a b.$x"), ["a b", "$x"]);
        assert!(names("").is_empty());
    }

    #[test]
    fn a_path_is_written_with_as_few_quotes_as_possible() {
        let path = AttrPath::parse("checks.fuzz.0.\"1a\".b'-c.\"d.e\"").unwrap();
        assert_eq!(path.to_string(), "checks.fuzz.0.\"1a\".b'-c.\"d.e\"");
    }

    #[test]
    fn an_ambiguous_path_is_refused() {
        for bad in [".", "a.", ".a", "a..b", "\"a", "\"a\"b", "a\"b\"", "\"a\\"] {
            assert!(AttrPath::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_selection_is_a_path_that_nix_build_reads_in_the_same_way() {
        let selection = |names: &[&str]| {
            AttrPath::new(names.iter().map(ToString::to_string).collect()).as_selection()
        };
        assert_eq!(
            selection(&["a", "b.c", "d e", "${x}"]).unwrap(),
            "a.\"b.c\".d e.${x}"
        );
        assert_eq!(selection(&[]).unwrap(), "");
        for inexpressible in ["\"", "", "0", "+1"] {
            assert_eq!(selection(&["a", inexpressible]), None, "{inexpressible}");
        }
    }

    proptest! {
        #[test]
        fn in_json_a_path_is_the_list_of_its_names(names in proptest::collection::vec(".*", 0..4)) {
            let json = serde_json::to_value(AttrPath::new(names.clone())).unwrap();
            prop_assert_eq!(&json, &serde_json::json!(names));
            prop_assert_eq!(serde_json::from_value::<AttrPath>(json).unwrap(), AttrPath::new(names));
        }

        #[test]
        fn a_written_path_parses_to_the_same_path(names in proptest::collection::vec(".*|[a-z\".$\\\\\r\n]{0,6}", 0..4)) {
            let path = AttrPath::new(names);
            prop_assert_eq!(AttrPath::parse(&path.to_string()).unwrap(), path);
        }
    }
}
