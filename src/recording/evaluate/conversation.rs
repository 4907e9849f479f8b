//! What a conversation with `nix repl` is sent, line by line.
//!
//! A worker is one `nix repl` on a pipe ([`crate::nix::command::converse`]). An error ends its line and not the process, so that
//! the root is evaluated once per worker, whatever fails. It is made for people, and what it does on a pipe is documented nowhere.
//! Measured with 2.8.0, 2.26.3 and 2.34.8, without a daemon and as another user behind one, with readline (Debian's builds) and
//! with editline 1.17.1 and 2.0.0 (as in the official builds); 2.35 and Lix are known only from their source, or not at all.
//!
//! Tests in `tests/conversation.rs` keep these true, beside `nix-instantiate` where both should do the same:
//!
//! | what it does | so | test |
//! | --- | --- | --- |
//! | An error has the text, place and frames that `nix-instantiate` prints, a failed build its log. (2.8 leaves out `(use '--show-trace' …)`.) | it is read as one of `nix-instantiate` | `an_error_ends_the_line_…`, `a_build_during_…` |
//! | Deep recursion ends the process before 2.20, as a stack overflow, and the line since then. | the schedule knows the attribute by its `begin` | `a_recursion_without_end_…` |
//! | Before 2.30, a *file* that ends too early makes the line an unfinished one: no message, and what follows is appended. | [`with_ends`] | `a_file_that_ends_too_early_…` |
//! | It switches purity off: before 2.10 after it has read its arguments, since then before that. Host settings never count. | purity is an argument, also where host settings ask for it; 2.8 and 2.9 get one process per task then ([`purity_line`]) | `purity_is_an_argument_…` |
//! | Other settings, `-I`, `NIX_PATH`, the environment and the folder count as for `nix-instantiate`; so does the heap to begin with. | the same arguments | `other_settings_count_…`, `the_heap_…` |
//! | TERM, INT and HUP end a build and its line, within 10 ms; the next line runs. In pure computation they do nothing, as with `nix-instantiate`. | it is killed after a grace time; one task is sent at a time | `term_ends_a_build_…` |
//! | While it waits, a signal ends it with editline (status 0 or 1), and does nothing with readline. The end of its input ends it, with 0. | a status of 0 means nothing without `done`; to end it, its input is closed | `the_end_of_its_input_…` |
//! | What it wrote is kept from the collector by temporary roots until it, or its daemon's worker, ends. | | `what_was_written_is_kept_…` |
//! | Its daemon's worker dies: one line fails, the next connects again, and the temporary roots are lost. A daemon that was away once is away until the process ends. | what may be the system's is repeated by a new worker | `a_daemons_worker_that_dies_…`, `a_daemon_that_was_away_…` |
//! | It remembers failures: 2.34 that of a value, 2.26 and 2.34 that a file was missing; 2.8 tries again. | the same | `what_failed_is_tried_again_…` |
//! | Lines of a megabyte and of any bytes arrive, except for control characters: readline completes at a tab and takes what follows ^V as it is; editline, and 2.35 on a pipe, do neither. | the walker is an argument; lines are short and ASCII | `a_long_line_…`, `control_characters_…`, `an_argument_becomes_a_name_…` |
//! | An `.inputrc` breaks lines (readline), and 2.8 ends where it cannot make its folder. No line is kept in a history. | `INPUTRC`, `XDG_DATA_HOME`, `NIX_DATA_HOME` | `a_persons_settings_…` |
//! | It greets, and says what it loads; with editline 2.8 prints `Failed tcsetattr(…)` at each line. | [`is_chatter`] | below |
//!
//! Measured once, on a busy machine: a start takes 17 to 48 ms (`nix-instantiate`: 20 to 30 ms of processor time), a line and its
//! end 0.1 to 0.2 ms, 305 lines that throw 0.1 to 0.24 s; 2,000 light `.drv`s, 500 a line, take 0.98 to 1.24 × as long as by one
//! `nix-instantiate`, and one a line 1.3 to 2 ×. readline reads a megabyte in 1 to 2 s, editline in 0.4 s. A process holds 32,768
//! bindings (source); a task makes none.

use super::protocol::{WalkKind, task_text};
use super::schedule::Task;
use crate::nix::command::WALKER;

/// The lines of a conversation that walk a task.
pub(super) fn task_lines(task: &Task, kind: WalkKind, marker: &str) -> Vec<u8> {
    let line = format!("{WALKER} {}\n", task_text(task, kind));
    with_ends(line.as_bytes(), marker)
}

/// The line of a conversation that says whether the evaluation is not pure. (In pure evaluation there is no `currentSystem`.)
pub(super) fn purity_line(marker: &str) -> Vec<u8> {
    format!(
        "if builtins ? currentSystem then builtins.trace \"{marker} impure  \" null else null\n"
    )
    .into_bytes()
}

/// A line of a conversation, and those that say that it has been evaluated, or has failed: what Nix says before `done` belongs to it.
///
/// Where a file ends too early (`syntax error, unexpected end of file`), Nix before 2.30 takes the *line* for unfinished: it says
/// nothing, and waits for the rest of it, of which the next line is then a part. So `done` begins with a word that no line goes on
/// with: the two are a syntax error, and `next` comes without `done` before it. (A line that goes on is evaluated from its begin:
/// the attributes before that file would be reported twice.) The message has to be asked for elsewhere.
pub(super) fn with_ends(line: &[u8], marker: &str) -> Vec<u8> {
    let done = format!("assert true; builtins.trace \"{marker} done  \" null\n");
    let next = format!("builtins.trace \"{marker} next  \" null\n");
    [line, done.as_bytes(), next.as_bytes()].concat()
}

/// Whether Nix says this of the conversation itself, and not of what is evaluated: its greeting and what it has loaded, while the
/// walker is loaded; and what editline prints at each line (2.8).
pub(super) fn is_chatter(line: &[u8], is_loading: bool) -> bool {
    const WHILE_LOADING: [&[u8]; 6] = [
        b"Welcome to Nix ",
        b"Nix 2.",
        b"Type :? for help",
        b"Added ",
        // The names that were added (2.34), of the two files by which the walker may come.
        b"url\n",
        b"all, builder, ",
    ];
    line.starts_with(b"Failed tcsetattr(")
        || is_loading
            && (line.trim_ascii().is_empty()
                || WHILE_LOADING.iter().any(|begin| line.starts_with(begin)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_task_is_one_line_with_its_ends() {
        let lines = task_lines(&Task::root(), WalkKind::Spans, "M");
        let lines = String::from_utf8(lines).unwrap();
        let lines: Vec<&str> = lines.lines().collect();
        assert_eq!(
            lines,
            [
                "url {spans=null;}",
                r#"assert true; builtins.trace "M done  " null"#,
                r#"builtins.trace "M next  " null"#,
            ]
        );
    }

    #[test]
    fn a_greeting_is_chatter_only_while_the_walker_is_loaded() {
        let greeting = b"Nix 2.34.8";
        assert!(is_chatter(greeting, true));
        assert!(!is_chatter(greeting, false));
        assert!(!is_chatter(b"error: no such file", true));
        assert!(is_chatter(b"Failed tcsetattr(TCSADRAIN): x", false));
    }
}
