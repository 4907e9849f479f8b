//! Parts of a walk: paths of attributes by their numbers, and spans of them that are still to be looked at.
//!
//! A walk goes down first and on second, so that its order is the order of the paths. What is left of it behind any attribute
//! is a few spans, which can be walked by another process.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// The way from the root of a walk to an attribute: its number among its siblings at each level.
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

    /// The set it is in, and its number there; none for the root.
    pub(super) fn split(&self) -> Option<(Self, u32)> {
        let (last, parent) = self.0.split_last()?;
        Some((Self(parent.to_vec()), *last))
    }

    fn child(&self, number: u32) -> Self {
        let mut path = self.clone();
        path.0.push(number);
        path
    }

    /// The sets it lies in, from the root on, and then itself.
    pub(super) fn with_parents(&self) -> impl Iterator<Item = Self> {
        (0..=self.0.len()).map(|end| Self(self.0[..end].to_vec()))
    }
}

impl fmt::Display for AttrIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|number| write!(f, "/{number}"))
    }
}

/// The attributes of one set from `from` on, and before `to`.
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
    /// Just this attribute, in a set of `count`.
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

    fn length(&self) -> u64 {
        u64::from(self.to.saturating_sub(self.from))
    }

    fn start(&self) -> AttrIndex {
        self.at.child(self.from)
    }
}

/// How many attributes the sets have that were entered.
pub(super) type ChildCounts = BTreeMap<AttrIndex, u32>;

/// Where a walk stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Position {
    /// It looks at this attribute.
    At(AttrIndex),
    /// It has found out that this is a set, and will go on with the first of its attributes.
    Entered(AttrIndex),
}

impl Position {
    /// The attribute that it is about.
    pub(super) fn path(&self) -> &AttrIndex {
        match self {
            Self::At(path) | Self::Entered(path) => path,
        }
    }
}

/// What is left of a walk over `spans` (none: over everything) that stands at `place`, in its order: without the attribute
/// that it looks at.
pub(super) fn behind(spans: Option<&[Span]>, place: &Position, counts: &ChildCounts) -> Vec<Span> {
    let path = place.path();
    let mut left = Vec::new();
    let mut push = |span: Span| {
        if span.length() > 0 {
            left.push(span);
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
    if let Position::Entered(path) = place {
        push(whole(path.clone(), 0));
    }
    // The span that the place is in, and the levels of sets that were entered below it.
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
    left
}

/// What of `spans` comes before the attribute `until`, with which one of them once began.
pub(super) fn before(spans: Vec<Span>, until: &AttrIndex) -> Vec<Span> {
    let mut left = spans;
    left.retain(|span| span.start() < *until);
    if let (Some(last), Some((at, number))) = (left.last_mut(), until.split())
        && last.at == at
    {
        last.to = last.to.min(number);
    }
    left
}

/// Takes the later half off `spans`, for another process; the whole, where that is one attribute.
pub(super) fn split(spans: &[Span]) -> (Vec<Span>, Vec<Span>) {
    let mut wanted = length(spans) / 2;
    let mut first = Vec::new();
    let mut second = Vec::new();
    for span in spans {
        let taken = span.length().min(wanted);
        wanted -= taken;
        // What is taken is at most the length, which is a u32.
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

/// How many attributes these are, without those of the sets among them.
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

    /// A tree: how many attributes each set has. Walked as walk.nix walks.
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

    /// Where a walk stands, from its begin to its end.
    pub(in super::super) fn walk(spans: Option<&[Span]>, counts: &ChildCounts) -> Vec<Position> {
        fn visit(path: &AttrIndex, counts: &ChildCounts, places: &mut Vec<Position>) {
            places.push(Position::At(path.clone()));
            if let Some(count) = counts.get(path) {
                places.push(Position::Entered(path.clone()));
                for number in 0..*count {
                    visit(&path.child(number), counts, places);
                }
            }
        }
        let mut places = Vec::new();
        match spans {
            None => visit(&AttrIndex::default(), counts, &mut places),
            Some(spans) => {
                for span in spans {
                    assert_eq!(span.count, counts[&span.at]);
                    for number in span.from..span.to {
                        visit(&span.at.child(number), counts, &mut places);
                    }
                }
            }
        }
        places
    }

    proptest! {
        #[test]
        fn what_is_behind_any_place_is_all_that_would_have_come(counts in tree(), dice in 0..1000usize, again in 0..1000usize) {
            let mut spans: Option<Vec<Span>> = None;
            let mut expected = walk(None, &counts);
            for dice in [dice, again] {
                if expected.is_empty() {
                    break;
                }
                let stop = dice % expected.len();
                // What was not entered yet has no count for whoever restarts the walk.
                let left = behind(spans.as_deref(), &expected[stop], &counts);
                expected = match &expected[stop] {
                    // Neither it, nor what is below it.
                    Position::At(path) => expected[stop + 1..]
                        .iter()
                        .filter(|place| !place.path().with_parents().any(|above| above == *path))
                        .cloned()
                        .collect(),
                    Position::Entered(_) => expected[stop + 1..].to_vec(),
                };
                prop_assert_eq!(walk(Some(&left), &counts), expected.clone());
                spans = Some(left);
            }
        }

        #[test]
        fn two_halves_are_the_whole_in_its_order(counts in tree(), dice in 0..1000usize) {
            let places = walk(None, &counts);
            let left = behind(None, &places[dice % places.len()], &counts);
            let (first, second) = split(&left);
            let both = [walk(Some(&first), &counts), walk(Some(&second), &counts)].concat();
            prop_assert_eq!(both, walk(Some(&left), &counts));
            prop_assert!(length(&first) <= length(&second) && length(&second) <= length(&first) + 1);
            if let Some(until) = start(&second) {
                prop_assert_eq!(before(left, &until), first);
            }
        }
    }

    #[test]
    fn a_path_is_read_only_as_it_is_written() {
        assert_eq!(path("/3/0").to_string(), "/3/0");
        assert_eq!(path(""), AttrIndex::default());
        for bad in ["3", "/", "/x", "/01", "/3/"] {
            assert_eq!(AttrIndex::parse(bad), None, "{bad}");
        }
        assert!(path("/2") < path("/2/5") && path("/2/5") < path("/10"));
    }
}
