//! What Nix prints on standard output, as store paths; and the failure where it is something else.

use std::fmt::Display;

use crate::command_line::CommandLine;
use crate::exit::{Class, Failure};
use crate::nix::StorePath;
use crate::secrets::shortened;
use crate::supervise::Finished;

/// How much is shown of what a program has printed, in characters.
const SHOWN: usize = 100;

/// The store paths that a program has printed; anything else is dropped.
pub(super) fn store_paths(finished: &Finished) -> impl Iterator<Item = StorePath> {
    finished
        .paths()
        .filter_map(|path| StorePath::parse(path.to_str()?).ok())
}

/// The failure where a program has ended well without what Nix prints then: the first one of that name on `PATH` is another program, or
/// a wrapper that does not work. `not` is what is missing.
pub(super) fn no_answer_of_nix(line: &CommandLine, printed: &str, not: impl Display) -> Failure {
    let program = line.program;
    let printed = match printed.trim() {
        "" => "nothing".to_owned(),
        printed => format!("{:?}", shortened(printed, SHOWN)),
    };
    Failure::new(
        Class::Infrastructure,
        format_args!("`{program}` ended with 0, and printed {printed} instead of {not}"),
    )
    .hint(format!(
        "check that the first `{program}` on PATH is Nix's: `eval-once doctor` says which one it is"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_odd_answer_is_shown_in_short() {
        let line = CommandLine::new("nix-instantiate", &[]);
        let text = |printed: &str| no_answer_of_nix(&line, printed, "a path").to_string();
        assert_eq!(
            text(" \n"),
            "`nix-instantiate` ended with 0, and printed nothing instead of a path"
        );
        assert!(text("hello\n").contains("printed \"hello\" instead"));
        assert!(text(&"x".repeat(3_000_000)).len() < 300);
    }
}
