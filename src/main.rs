//! The program `eval-once`.

fn main() {}
