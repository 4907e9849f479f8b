//! The parts of a benchmark, which the command line names.

use std::env;

/// A part: its name, how many pairs of runs there are if nothing else is said, and how it is measured in some place.
pub(crate) type Part<P> = (&'static str, usize, fn(&P, usize));

/// Runs the parts that the command line names, in their order; each in a place that `place` makes for it.
pub(crate) fn run_named<P>(parts: &[Part<P>], place: impl Fn() -> P) {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let given = arguments.iter().find_map(|argument| argument.parse().ok());
    for (name, pairs, part) in parts {
        if arguments.iter().any(|argument| argument == name) {
            println!();
            part(&place(), given.unwrap_or(*pairs));
        }
    }
}
