//! Two commands compared by the time they take.

use std::process::Command;

use crate::pairs::{Goal, in_turn, milliseconds, print_line};

/// Runs both in pairs, after `warm_up` runs that are not measured, and prints how they differ: medians in milliseconds, and
/// in brackets the quartiles.
pub(crate) fn compare(
    what: &str,
    warm_up: usize,
    pairs: usize,
    one: &dyn Fn() -> Command,
    other: &dyn Fn() -> Command,
    goal: Goal,
) {
    for _ in 0..warm_up {
        milliseconds(one());
        milliseconds(other());
    }
    let times: Vec<(f64, f64)> = (0..pairs)
        .map(|pair| in_turn(pair, || milliseconds(one()), || milliseconds(other())))
        .collect();
    print_line(what, &times, goal);
}
