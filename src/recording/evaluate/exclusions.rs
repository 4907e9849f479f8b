//! Which attributes a path matches in which `*` stands for one name: those of `exclude` and `expect-errors`.

use crate::nix::AttrPath;
use crate::recording::AttrError;

/// The exclusions below `root`, relative to it; those elsewhere match nothing, and are empty.
pub(super) fn exclusions(exclude: &[AttrPath], root: &AttrPath) -> Vec<Vec<String>> {
    let below = |path: &AttrPath| {
        let (names, root) = (path.names(), root.names());
        let inside = names.len() > root.len()
            && root
                .iter()
                .zip(names)
                .all(|(root, name)| name == "*" || name == root);
        inside.then(|| names[root.len()..].to_vec())
    };
    let relative = exclude.iter().map(below);
    relative.map(Option::unwrap_or_default).collect()
}

/// The exclusions, by their numbers, that match `attr` or a set that it is in.
pub(super) fn excluding(attr: &AttrPath, exclude: &[AttrPath]) -> Vec<usize> {
    let numbered = exclude.iter().enumerate();
    numbered
        .filter(|(_, path)| covers(path, attr))
        .map(|(number, _)| number)
        .collect()
}

/// Whether `path` matches `attr` or a set that it is in.
pub(in crate::recording) fn covers(path: &AttrPath, attr: &AttrPath) -> bool {
    let (path, names) = (path.names(), attr.names());
    !path.is_empty()
        && path.len() <= names.len()
        && path
            .iter()
            .zip(names)
            .all(|(part, name)| part == "*" || part == name)
}

/// Whether this evaluation error is expected, by these paths.
pub(in crate::recording) fn is_expected(error: &AttrError, expected: &[AttrPath]) -> bool {
    expected.iter().any(|path| covers(path, &error.attr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclusions_are_relative_to_the_root_of_the_walk() {
        let paths =
            ["a.b", "a.b.c", "*.b.d.*", "x.y", "a"].map(|path| AttrPath::parse(path).unwrap());
        let root = AttrPath::parse("a.b").unwrap();
        let relative = [vec![], vec!["c"], vec!["d", "*"], vec![], vec![]];
        assert_eq!(exclusions(&paths, &root), relative);
    }
}
