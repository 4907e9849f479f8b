//! Several programs in parallel, of which only the ending and the output matter. Which programs they are is not known here.

use std::time::{Duration, Instant};

use crate::command_line::CommandLine;
use crate::exit::Failure;
use crate::supervise::{Finished, OnStop, Printed, Running, Supervisor};
use crate::text::without_escapes;

/// How long a program gets to end after TERM.
const GRACE: Duration = Duration::from_millis(100);

/// Runs all of these at once, and stops those that still run at `until`. Each is returned, in their order, with its ending and
/// its standard error.
///
/// # Errors
/// A program is missing (69), cannot be started or prints too much (75); a signal asked us to end (128 + n).
pub fn all(
    supervisor: &mut Supervisor,
    lines: &[CommandLine],
    until: Option<Instant>,
) -> Result<Vec<(Finished, String)>, Failure> {
    let mut ran: Vec<_> = lines.iter().map(|_| None).collect();
    let limits = Limits {
        at_once: lines.len(),
        until,
        ..Limits::default()
    };
    run(supervisor, lines, &limits, |number, finished, stderr| {
        ran[number] = Some((finished, stderr));
        Ok(())
    })?;
    Ok(ran.into_iter().flatten().collect())
}

/// Runs these, always `at_once` of them at a time while that many remain. `ended` gets each that ends by itself: its number, its
/// ending and its standard error.
///
/// # Errors
/// As [`all`]; or the error that `ended` returns: then those that still run are killed.
pub fn each(
    supervisor: &mut Supervisor,
    lines: &[CommandLine],
    at_once: usize,
    ended: impl FnMut(usize, Finished, String) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let limits = Limits {
        at_once,
        ..Limits::default()
    };
    run(supervisor, lines, &limits, ended)
}

/// As [`each`]; but one that still runs after `patience` is stopped, and passed to `ended` as well.
///
/// # Errors
/// As [`each`].
pub fn each_within(
    supervisor: &mut Supervisor,
    lines: &[CommandLine],
    at_once: usize,
    patience: Duration,
    ended: impl FnMut(usize, Finished, String) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let limits = Limits {
        at_once,
        patience: Some(patience),
        ..Limits::default()
    };
    run(supervisor, lines, &limits, ended)
}

/// The limits of several programs.
#[derive(Debug, Default)]
struct Limits {
    /// How many of them run at a time.
    at_once: usize,
    /// When those that still run are stopped.
    until: Option<Instant>,
    /// How long each may run.
    patience: Option<Duration>,
}

/// A program that runs: what is known of it beside its process.
#[derive(Debug)]
struct Details {
    number: usize,
    stderr: Printed,
    /// When it is stopped.
    until: Option<Instant>,
}

fn run(
    supervisor: &mut Supervisor,
    lines: &[CommandLine],
    limits: &Limits,
    mut ended: impl FnMut(usize, Finished, String) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut running: Vec<Running> = Vec::new();
    // In the order of `running`.
    let mut details: Vec<Details> = Vec::new();
    let mut left = lines.iter().enumerate();
    loop {
        while running.len() < limits.at_once.max(1) && !supervisor.is_stopped() {
            let Some((number, line)) = left.next() else {
                break;
            };
            running.push(supervisor.start(line, OnStop::TermThenKill)?);
            let patience = limits.patience.map(|patience| Instant::now() + patience);
            details.push(Details {
                number,
                stderr: Printed::by(line),
                until: patience.into_iter().chain(limits.until).min(),
            });
        }
        if running.is_empty() {
            return supervisor.check();
        }
        let now = Instant::now();
        for (one, details) in running.iter_mut().zip(&details) {
            let is_late = details.until.is_some_and(|until| now >= until);
            if is_late && !one.is_stopping() {
                one.stop(GRACE);
            }
        }
        // A program that is being stopped has no further limit: only its end is awaited.
        let waited_for = running.iter().zip(&details);
        let until = waited_for
            .filter(|(one, _)| !one.is_stopping())
            .filter_map(|(_, details)| details.until)
            .min();
        supervisor.watch(&mut running, until, |at, bytes| {
            details[at].stderr.add(bytes);
        })?;
        while let Some(at) = running.iter().position(|one| one.ended.is_some()) {
            let finished = running.swap_remove(at).finished();
            let Details { number, stderr, .. } = details.swap_remove(at);
            let stderr = stderr.into_answer(&lines[number]);
            // After a signal, the endings are of our own doing.
            if supervisor.check().is_ok() {
                let stderr = without_escapes(&String::from_utf8_lossy(&stderr?));
                ended(number, finished?, stderr)?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use unix::sys::stat::Mode;
    use unix::unistd::mkfifo;

    use super::*;
    use crate::command_line::Ending;
    use crate::exit::Class;
    use crate::log::Log;

    fn supervisor() -> Supervisor {
        Supervisor::install(&Log::default()).unwrap()
    }

    fn script(folder: &Path, script: &str) -> CommandLine {
        let mut line = CommandLine::new("sh", &["-c", script]);
        line.folder = Some(folder.to_owned());
        line
    }

    /// It runs until it is stopped; where that does not happen, a test fails with its status 0.
    fn long() -> CommandLine {
        CommandLine::new("sleep", &["10"])
    }

    const STOPPED: Ending = Ending::Killed(15);

    #[test]
    fn programs_run_at_the_same_time_and_their_results_have_their_order() {
        let folder = tempfile::tempdir().unwrap();
        mkfifo(&folder.path().join("pipe"), Mode::S_IRWXU).unwrap();
        // Neither gets to its end without the other, and the second one is the first to end.
        let lines = [
            script(folder.path(), "cat <pipe; exit 3"),
            script(
                folder.path(),
                "printf '\\033[1moops' >&2; exec echo word >pipe",
            ),
        ];
        let soon = Instant::now() + Duration::from_secs(10);
        let ran = all(&mut supervisor(), &lines, Some(soon)).unwrap();
        let ran: Vec<_> = ran
            .iter()
            .map(|(finished, stderr)| (finished.ending, finished.text(), stderr.as_str()))
            .collect();
        assert_eq!(
            ran,
            [
                (Ending::Exited(3), "word".into(), ""),
                (Ending::Exited(0), String::new(), "oops")
            ]
        );
    }

    #[test]
    fn programs_that_still_run_at_the_end_are_stopped() {
        let ran = all(&mut supervisor(), &[long(), long()], Some(Instant::now()));
        let endings: Vec<_> = ran
            .unwrap()
            .iter()
            .map(|(finished, _)| finished.ending)
            .collect();
        assert_eq!(endings, [STOPPED, STOPPED]);
    }

    #[test]
    fn a_program_that_runs_for_too_long_has_a_result_and_the_next_one_begins() {
        let lines = [long(), long()];
        let mut results = Vec::new();
        let patience = Duration::from_millis(1);
        each_within(
            &mut supervisor(),
            &lines,
            1,
            patience,
            |number, finished, _| {
                results.push((number, finished.ending));
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(results, [(0, STOPPED), (1, STOPPED)]);
    }

    #[test]
    fn the_next_program_begins_after_the_result_of_the_last_one() {
        let folder = tempfile::tempdir().unwrap();
        let lines = [
            script(folder.path(), "true"),
            script(folder.path(), "test -e 0"),
            script(folder.path(), "test -e 1"),
        ];
        // None at a time would never end: it counts as one.
        for at_once in [0, 1] {
            let mut numbers = Vec::new();
            each(&mut supervisor(), &lines, at_once, |number, finished, _| {
                assert!(finished.ending.success(), "{number}");
                std::fs::write(folder.path().join(number.to_string()), "").unwrap();
                numbers.push(number);
                Ok(())
            })
            .unwrap();
            assert_eq!(numbers, [0, 1, 2]);
            for number in numbers {
                std::fs::remove_file(folder.path().join(number.to_string())).unwrap();
            }
        }
    }

    #[test]
    fn much_that_a_program_prints_for_people_takes_little_memory() {
        let script = "head -c 50000000 /dev/zero >&2; echo end >&2";
        let line = CommandLine::new("sh", &["-c", script]);
        let ran = all(&mut supervisor(), &[line], None).unwrap();
        let (finished, printed) = &ran[0];
        assert!(finished.ending.success());
        assert!(printed.ends_with("end\n") && printed.len() < 4 << 20);
    }

    #[test]
    fn an_error_about_a_result_is_returned_while_other_programs_run() {
        let folder = tempfile::tempdir().unwrap();
        let lines = [long(), script(folder.path(), "exit 3"), long()];
        let mut seen = Vec::new();
        let failure = each(&mut supervisor(), &lines, 2, |number, _, _| {
            seen.push(number);
            Err(Failure::new(Class::Bug, "enough"))
        });
        assert_eq!(failure.unwrap_err().to_string(), "enough");
        assert_eq!(seen, [1]);
    }

    #[test]
    fn no_program_has_no_result() {
        assert!(all(&mut supervisor(), &[], None).unwrap().is_empty());
    }
}
