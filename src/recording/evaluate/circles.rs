//! Attribute sets that contain themselves, seen from a path that is too long.

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
