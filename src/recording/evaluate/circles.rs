//! Attribute sets that contain themselves, seen from paths that are too long.

use std::collections::BTreeMap;

use super::spans::AttrIndex;

/// In how many sets of one set the walk may be given up before that is given up itself. Two sets that contain each other in two ways
/// have two to the 32nd paths that are too long, and all but a few of them show no circle.
pub(super) const GIVEN_UP_AT_MOST: u32 = 16;

/// The sets that were given up.
#[derive(Debug, Default)]
pub(super) struct GivenUpSets {
    /// How many were given up in a set, those in other ones that were given up later included.
    inside: BTreeMap<AttrIndex, u32>,
}

impl GivenUpSets {
    /// `set` is to be given up: that, or the innermost set around it in which too many were. (So where there is no end of them, each
    /// further one costs the next set around it.) Never the root.
    pub(super) fn widened(&mut self, set: AttrIndex) -> AttrIndex {
        let around: Vec<AttrIndex> = set.with_parents().skip(1).collect();
        let mut widest = None;
        for one in around.into_iter().filter(|one| *one != set) {
            let inside = self.inside.entry(one.clone()).or_default();
            *inside += 1;
            if *inside > GIVEN_UP_AT_MOST {
                widest = Some(one);
            }
        }
        widest.unwrap_or(set)
    }
}

/// The first set of a path that leads in circles: how many of its names lead there, and how many lead from there to itself.
///
/// A set is one of a circle if the names that lead back to it are repeated, [`TURNS`] times at least: Nix cannot say whether two sets
/// are the same.
pub(super) fn circle(names: &[String]) -> Option<(usize, usize)> {
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

/// How often the same names have to follow one another.
const TURNS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_with_too_many_sets_that_contain_themselves_is_given_up_and_then_the_one_around_it() {
        let path = |text: &str| AttrIndex::parse(text).unwrap();
        let mut given_up = GivenUpSets::default();
        for number in 0..GIVEN_UP_AT_MOST {
            let set = path(&format!("/0/1/{number}"));
            assert_eq!(given_up.widened(set.clone()), set);
        }
        assert_eq!(given_up.widened(path("/0/1/77")), path("/0/1"));
        // Not yet known to be endless.
        assert_eq!(given_up.widened(path("/1/1/0")), path("/1/1/0"));
        assert_eq!(given_up.widened(path("/0/2/0")), path("/0"));
        // The root is not given up.
        for number in 2..100 {
            let set = path(&format!("/{number}"));
            assert_eq!(given_up.widened(set.clone()), set);
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
}
