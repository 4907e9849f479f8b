//! Attribute sets that are nested too deeply, mostly because they contain themselves.

use std::collections::BTreeMap;

use super::spans::AttrIndex;
use crate::nix::AttrPath;
use crate::recording::Recurse;

/// How many names are shown of a path that leads in circles.
const NAMES_OF_CIRCLE: usize = 6;

/// How often the same names have to follow one another.
const TURNS: usize = 4;

/// In how many sets of one set the walk may be given up before that is given up itself. Two sets that contain each other in two ways
/// have two to the 32nd paths that are too long, and all but a few of them show no circle.
const GIVEN_UP_AT_MOST: u32 = 16;

/// How many sets were given up in each set, those in sets that were given up later included.
#[derive(Debug, Default)]
pub(super) struct GivenUpSets(BTreeMap<AttrIndex, u32>);

impl GivenUpSets {
    /// `set` is to be given up. Gives the innermost set around it in which too many were, if there is one, which is to be given up
    /// instead: where there is no end of them, each further one costs the next set around it. Never the root.
    pub(super) fn too_many_in(&mut self, set: &AttrIndex) -> Option<AttrIndex> {
        let mut innermost = None;
        for around in set.with_parents().skip(1).filter(|around| around != set) {
            let inside = self.0.entry(around.clone()).or_default();
            *inside += 1;
            if *inside > GIVEN_UP_AT_MOST {
                innermost = Some(around);
            }
        }
        innermost
    }
}

/// What is not walked because of a set that is nested too deeply.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooDeep {
    /// How many names, below the root of the walk, lead to the set that is given up: the first of those that contain themselves, or
    /// the set itself.
    pub(super) depth: usize,
    /// Its evaluation error: what is wrong, and how to record the rest.
    pub(super) message: String,
}

/// What is not walked because the set at this path is nested too deeply. The first `root` names lead to the root of the walk.
/// `recurse` is none where sets are walked without a mark all the same, as some of a flake's outputs.
pub(super) fn too_deep(path: &AttrPath, root: usize, recurse: Option<Recurse>) -> TooDeep {
    let (to_root, names) = path.names().split_at(root.min(path.names().len()));
    let upto = |depth: usize| {
        let below = names.iter().take(depth);
        AttrPath::new(to_root.iter().chain(below).cloned().collect())
    };
    let found = circle(names);
    let depth = found.map_or(names.len(), |(begin, length)| begin + length);
    // The root is one of them.
    let nested = format!("sets are nested deeper than {} levels", names.len());
    let message = if found.is_some() {
        format!(
            "{nested}, and their names repeat: the set seems to contain itself ({}.…)",
            upto(depth + NAMES_OF_CIRCLE)
        )
    } else {
        nested
    };
    TooDeep {
        depth,
        message: format!("{message}:\n{}", hint(&upto(depth), recurse)),
    }
}

/// The evaluation error of this set, in which too many sets were given up.
pub(super) fn too_many(set: &AttrPath, recurse: Option<Recurse>) -> String {
    format!(
        "more than {GIVEN_UP_AT_MOST} sets in it seem to contain themselves, or are nested too deeply:\n{}",
        hint(set, recurse)
    )
}

/// How to record the rest.
fn hint(set: &AttrPath, recurse: Option<Recurse>) -> String {
    let or = match recurse {
        None => "",
        Some(Recurse::All) => ", or walk only marked sets (`recurse: marked`)",
        Some(Recurse::Marked) => ", or remove its `recurseForDerivations`",
    };
    format!("exclude it (`exclude: {set}`){or}")
}

/// The first set of a path that leads in circles: how many of its names lead there, and how many lead from there to itself.
///
/// A set is taken for one of a circle if the names that lead back to it are repeated, [`TURNS`] times at least: Nix cannot say whether
/// two sets are the same, and a long chain of sets looks like that as well.
fn circle(names: &[String]) -> Option<(usize, usize)> {
    let longest = names.len() / TURNS;
    let found = (0..names.len()).flat_map(|begin| (1..=longest).map(move |length| (begin, length)));
    let turns = |(begin, length): (usize, usize)| {
        let names = &names[begin..];
        let same = names
            .iter()
            .zip(names.get(length..).unwrap_or_default())
            .take_while(|(one, next)| one == next)
            .count();
        same / length + 1
    };
    found
        .filter(|at| turns(*at) >= TURNS)
        // The longest way round, and of those the first and shortest: `a.b.b.b.b` rather than its last three.
        .max_by_key(|(begin, length)| {
            let around = turns((*begin, *length)) * length;
            (
                around,
                std::cmp::Reverse(*begin),
                std::cmp::Reverse(*length),
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_with_too_many_sets_that_are_given_up_is_given_up_and_then_the_one_around_it() {
        let path = |text: &str| AttrIndex::parse(text).unwrap();
        let mut given_up = GivenUpSets::default();
        for number in 0..GIVEN_UP_AT_MOST {
            assert_eq!(given_up.too_many_in(&path(&format!("/0/1/{number}"))), None);
        }
        assert_eq!(given_up.too_many_in(&path("/0/1/77")), Some(path("/0/1")));
        assert_eq!(given_up.too_many_in(&path("/1/1/0")), None);
        assert_eq!(given_up.too_many_in(&path("/0/2/0")), Some(path("/0")));
        for number in 2..100 {
            let set = path(&format!("/{number}"));
            assert_eq!(given_up.too_many_in(&set), None, "the root is not given up");
        }
    }

    fn circle_of(path: &str) -> Option<(usize, usize)> {
        circle(&path.split('.').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn a_circle_begins_where_names_begin_to_repeat() {
        assert_eq!(circle_of("x.a.a.a.a"), Some((1, 1)));
        assert_eq!(circle_of("a.a.a.a"), Some((0, 1)));
        assert_eq!(circle_of("x.y.a.b.a.b.a.b.a.b.a"), Some((2, 2)));
        assert_eq!(circle_of("x.b.b.b.b.b.b.c"), Some((1, 1)));
        assert_eq!(circle_of("a.b.c.d.e.f"), None);
        assert_eq!(circle_of("a.a.b.a.a.c"), None);
        assert_eq!(circle_of("x"), None);
    }

    #[test]
    fn of_a_circle_the_first_set_that_repeats_is_given_up_and_otherwise_the_set_itself() {
        let path = |names: &[&str]| AttrPath::new(names.iter().map(|&it| it.to_owned()).collect());
        let around = path(&[&["ci", "x"][..], &["a"; 30]].concat());
        assert_eq!(
            too_deep(&around, 1, Some(Recurse::All)),
            TooDeep {
                depth: 2,
                message: "sets are nested deeper than 31 levels, and their names repeat: the set seems to contain itself (ci.x.a.a.a.a.a.a.a.…):\n\
                    exclude it (`exclude: ci.x.a`), or walk only marked sets (`recurse: marked`)"
                    .into(),
            }
        );
        let straight = path(&["ci", "a", "b", "c"]);
        assert_eq!(
            too_deep(&straight, 1, Some(Recurse::Marked)),
            TooDeep {
                depth: 3,
                message: "sets are nested deeper than 3 levels:\n\
                    exclude it (`exclude: ci.a.b.c`), or remove its `recurseForDerivations`"
                    .into(),
            }
        );
    }
}
