//! Attribute paths by number, and spans of attributes: the parts of a walk.
//!
//! A walk is depth-first, so that its order is the order of the paths. What remains of it after any attribute is a few spans, which
//! another worker can walk.

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

/// The position of a walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Position {
    /// This attribute is being evaluated.
    At(AttrIndex),
    /// This is a set, and its first attribute comes next.
    Entered(AttrIndex),
}

impl Position {
    /// The attribute at this position.
    pub(super) fn path(&self) -> &AttrIndex {
        match self {
            Self::At(path) | Self::Entered(path) => path,
        }
    }
}

/// What remains, in its order, of a walk over `spans` (none: over everything) after `position`: without the attribute there.
pub(super) fn behind(
    spans: Option<&[Span]>,
    position: &Position,
    counts: &ChildCounts,
) -> Vec<Span> {
    let path = position.path();
    let mut rest = Vec::new();
    let mut push = |span: Span| {
        if span.length() > 0 {
            rest.push(span);
        }
    };
    let whole = |at: AttrIndex, from: u32| {
        let count = counts.get(&at).copied().unwrap_or_default();
        Span {
            at,
            from,
            to: count,
            count,
        }
    };
    if let Position::Entered(path) = position {
        push(whole(path.clone(), 0));
    }
    // The span that the position is in, and the levels of sets that were entered below it.
    let current = spans.map(|spans| {
        spans
            .iter()
            .rposition(|span| span.start() <= *path)
            .unwrap_or_default()
    });
    let top = match (spans, current) {
        (Some(spans), Some(current)) => spans.get(current),
        _ => None,
    };
    let mut at = path.clone();
    while let Some((parent, number)) = at.split() {
        if let Some(top) = top.filter(|top| top.at == parent) {
            push(Span {
                from: number + 1,
                ..top.clone()
            });
            break;
        }
        push(whole(parent.clone(), number + 1));
        at = parent;
    }
    if let (Some(spans), Some(current)) = (spans, current) {
        spans[current + 1..].iter().cloned().for_each(push);
    }
    rest
}

/// The part of `spans` before the attribute `until`, which is the start of a span that was split off.
pub(super) fn before(spans: Vec<Span>, until: &AttrIndex) -> Vec<Span> {
    let mut rest = spans;
    rest.retain(|span| span.start() < *until);
    if let (Some(last), Some((at, number))) = (rest.last_mut(), until.split())
        && last.at == at
    {
        last.to = last.to.min(number);
    }
    rest
}

/// Splits `spans` into an earlier and a later half; one attribute alone is a later half.
pub(super) fn split(spans: &[Span]) -> (Vec<Span>, Vec<Span>) {
    let mut wanted = length(spans) / 2;
    let mut first = Vec::new();
    let mut second = Vec::new();
    for span in spans {
        let taken = span.length().min(wanted);
        wanted -= taken;
        // At most the length of the span, which is a u32.
        let middle = span.from + u32::try_from(taken).unwrap_or_default();
        for (part, from, to) in [
            (&mut first, span.from, middle),
            (&mut second, middle, span.to),
        ] {
            if from < to {
                part.push(Span {
                    from,
                    to,
                    ..span.clone()
                });
            }
        }
    }
    (first, second)
}

/// How many attributes these are, without those in sets among them.
pub(super) fn length(spans: &[Span]) -> u64 {
    spans.iter().map(Span::length).sum()
}

/// The first attribute of these.
pub(super) fn start(spans: &[Span]) -> Option<AttrIndex> {
    spans.first().map(Span::start)
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

    /// The positions of a walk, as `walk.nix` walks.
    pub(in super::super) fn walk(spans: Option<&[Span]>, counts: &ChildCounts) -> Vec<Position> {
        fn visit(path: &AttrIndex, counts: &ChildCounts, positions: &mut Vec<Position>) {
            positions.push(Position::At(path.clone()));
            if let Some(count) = counts.get(path) {
                positions.push(Position::Entered(path.clone()));
                for number in 0..*count {
                    visit(&path.child(number), counts, positions);
                }
            }
        }
        let mut positions = Vec::new();
        match spans {
            None => visit(&AttrIndex::default(), counts, &mut positions),
            Some(spans) => {
                for span in spans {
                    assert_eq!(span.count, counts[&span.at]);
                    for number in span.from..span.to {
                        visit(&span.at.child(number), counts, &mut positions);
                    }
                }
            }
        }
        positions
    }

    proptest! {
        #[test]
        fn what_remains_after_a_position_is_what_would_have_followed(counts in tree(), dice in 0..1000usize, again in 0..1000usize) {
            let mut spans: Option<Vec<Span>> = None;
            let mut expected = walk(None, &counts);
            for dice in [dice, again] {
                if expected.is_empty() {
                    break;
                }
                let stop = dice % expected.len();
                let rest = behind(spans.as_deref(), &expected[stop], &counts);
                expected = match &expected[stop] {
                    // Neither the attribute nor anything below it.
                    Position::At(path) => expected[stop + 1..]
                        .iter()
                        .filter(|position| !position.path().with_parents().any(|above| above == *path))
                        .cloned()
                        .collect(),
                    Position::Entered(_) => expected[stop + 1..].to_vec(),
                };
                prop_assert_eq!(walk(Some(&rest), &counts), expected.clone());
                spans = Some(rest);
            }
        }

        #[test]
        fn two_halves_are_the_whole_in_its_order(counts in tree(), dice in 0..1000usize) {
            let positions = walk(None, &counts);
            let rest = behind(None, &positions[dice % positions.len()], &counts);
            let (first, second) = split(&rest);
            let both = [walk(Some(&first), &counts), walk(Some(&second), &counts)].concat();
            prop_assert_eq!(both, walk(Some(&rest), &counts));
            prop_assert!(length(&first) <= length(&second) && length(&second) <= length(&first) + 1);
            if let Some(until) = start(&second) {
                prop_assert_eq!(before(rest, &until), first);
            }
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
