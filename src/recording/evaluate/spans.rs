//! Attribute paths by number, and spans of attributes: the parts of a walk.
//!
//! The order of a walk is the order of the paths. What remains of it behind an attribute is spans, which any worker can walk.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// The path from the root of a walk to an attribute: its number among its siblings at each level.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub(super) struct AttrIndex(Vec<u32>);

impl AttrIndex {
    /// Reads `/3/0/2`; the empty string is the root.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let numbers = text.split('/').skip(1).map(str::parse);
        let path = Self(numbers.collect::<Result<_, _>>().ok()?);
        (path.to_string() == text).then_some(path)
    }

    /// The set that it is in, and its number there; none for the root.
    pub(super) fn split(&self) -> Option<(Self, u32)> {
        let (last, parent) = self.0.split_last()?;
        Some((Self(parent.to_vec()), *last))
    }

    /// Whether it is the root of the walk.
    pub(super) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it is `set`, or below it.
    pub(super) fn is_in(&self, set: &Self) -> bool {
        self.0.starts_with(&set.0)
    }

    pub(super) fn child(&self, number: u32) -> Self {
        let mut path = self.clone();
        path.0.push(number);
        path
    }

    /// In how many sets it is.
    pub(super) fn depth(&self) -> usize {
        self.0.len()
    }

    /// The sets that it is in, from the root on, and then itself.
    pub(super) fn with_parents(&self) -> impl Iterator<Item = Self> {
        (0..=self.0.len()).map(|end| Self(self.0[..end].to_vec()))
    }
}

impl fmt::Display for AttrIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|number| write!(f, "/{number}"))
    }
}

/// The attributes of one set from number `from` on, and before `to`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Span {
    /// The set.
    pub(super) at: AttrIndex,
    pub(super) from: u32,
    pub(super) to: u32,
    /// How many attributes the set has.
    pub(super) count: u32,
}

impl Span {
    /// This attribute alone; none where its set was not entered.
    pub(super) fn of(path: &AttrIndex, counts: &ChildCounts) -> Option<Self> {
        let (at, number) = path.split()?;
        let count = *counts.get(&at)?;
        Some(Self {
            at,
            from: number,
            to: number + 1,
            count,
        })
    }

    /// As `walk.nix` reads it. Each byte of a line takes time (1 to 2 µs).
    pub(super) fn nix(&self) -> String {
        let at = self.at.0.iter().map(ToString::to_string);
        let at = at.collect::<Vec<_>>().join(" ");
        format!("[[{at}]{} {} {}]", self.from, self.to, self.count)
    }

    /// Whether this attribute is one of them, and not only in a set among them.
    pub(super) fn holds(&self, path: &AttrIndex) -> bool {
        let place = path.split();
        place.is_some_and(|(at, number)| at == self.at && (self.from..self.to).contains(&number))
    }

    /// How many attributes these are, without those in sets among them.
    pub(super) fn length(&self) -> u64 {
        u64::from(self.to.saturating_sub(self.from))
    }

    /// The first of these attributes.
    pub(super) fn start(&self) -> AttrIndex {
        self.at.child(self.from)
    }
}

/// How many attributes the sets have that were entered.
pub(super) type ChildCounts = BTreeMap<AttrIndex, u32>;

/// The one of these spans, which are in the order of the walk, that has this attribute.
pub(super) fn holding(spans: &[Span], path: &AttrIndex) -> Option<usize> {
    let number = spans.partition_point(|span| span.start() <= *path);
    let number = number.checked_sub(1)?;
    spans[number].holds(path).then_some(number)
}

/// What remains of these spans, which are in the order of the walk, behind one of their attributes.
pub(super) fn behind(spans: &[Span], path: &AttrIndex) -> Vec<Span> {
    let Some((number, (_, index))) = holding(spans, path).zip(path.split()) else {
        return Vec::new();
    };
    let mut rest = spans[number..].to_vec();
    rest[0].from = index + 1;
    rest.retain(|span| span.length() > 0);
    rest
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in super::super) fn path(text: &str) -> AttrIndex {
        AttrIndex::parse(text).unwrap()
    }

    /// A tree: how many attributes each set has.
    pub(in super::super) fn tree() -> impl Strategy<Value = ChildCounts> {
        proptest::collection::vec((0..12usize, 0..5u32), 1..12).prop_map(|sets| {
            let mut counts = ChildCounts::from([(AttrIndex::default(), 4)]);
            for (parent, count) in sets {
                let parent = counts.keys().nth(parent % counts.len()).unwrap().clone();
                let free = (0..counts[&parent])
                    .map(|number| parent.child(number))
                    .find(|child| !counts.contains_key(child));
                if let Some(child) = free {
                    counts.insert(child, count);
                }
            }
            counts
        })
    }

    #[test]
    fn what_remains_behind_an_attribute_is_what_would_have_followed() {
        let span = |at: &str, from, to| Span {
            at: path(at),
            from,
            to,
            count: 9,
        };
        let spans = [span("/1", 2, 4), span("/3/0", 0, 1), span("", 5, 8)];
        let attributes = |spans: &[Span]| -> Vec<AttrIndex> {
            let each = |span: &Span| {
                let at = span.at.clone();
                (span.from..span.to).map(move |number| at.child(number))
            };
            spans.iter().flat_map(each).collect()
        };
        let all = attributes(&spans);
        assert_eq!(all.len(), 6);
        for (number, path) in all.iter().enumerate() {
            assert_eq!(attributes(&behind(&spans, path)), all[number + 1..]);
        }
        for other in [
            "", "/1", "/1/1", "/1/4", "/3/0", "/3/0/1", "/4", "/5/0", "/8",
        ] {
            assert_eq!(holding(&spans, &path(other)), None, "{other}");
        }
    }

    #[test]
    fn a_path_is_parsed_only_in_the_form_in_which_it_is_written() {
        assert_eq!(path("/3/0").to_string(), "/3/0");
        assert_eq!(path(""), AttrIndex::default());
        for bad in ["3", "/", "/x", "/01", "/3/"] {
            assert_eq!(AttrIndex::parse(bad), None, "{bad}");
        }
        assert!(path("/2") < path("/2/5") && path("/2/5") < path("/10"));
    }
}
