//! Patience that has an end: a program may run for as long as what it does moves, however long that is in all.

use std::time::{Duration, Instant};

use super::{Finished, GRACE, OnStop, Supervisor};
use crate::command_line::CommandLine;
use crate::exit::Failure;

/// For how long what a program does may stand still, here or in another process, until it is given up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How often a program is looked at that prints nothing.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What a look at a program shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// Something has moved since the last look.
    Moves,
    /// Nothing has.
    StandsStill,
    /// It is not to go on.
    Enough,
}

/// Why a program was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenUp {
    /// A look has shown [`Sight::Enough`].
    Enough,
    /// Nothing has moved for as long as the patience with it.
    Stalled,
}

impl Supervisor {
    /// Runs a program until it ends, `look` says that it is enough, or nothing has moved for as long as `patience`. `look` is
    /// called at least once a second, with the number of the process and what it has printed on standard error since the last
    /// look. Returned is also why the program was stopped: none where it has ended by itself, or well all the same.
    ///
    /// # Errors
    /// As [`Supervisor::run`].
    pub fn run_patiently(
        &mut self,
        line: &CommandLine,
        patience: Duration,
        mut look: impl FnMut(u32, &[u8]) -> Sight,
    ) -> Result<(Finished, Option<GivenUp>), Failure> {
        let mut running = [self.start(line, OnStop::TermThenKill)?];
        let mut moved = Instant::now();
        let mut given_up = None;
        let mut printed = Vec::new();
        while running[0].ended.is_none() {
            let mut due = Instant::now() + LOOK_EVERY;
            if given_up.is_none() {
                due = due.min(moved + patience);
            }
            self.watch(&mut running, Some(due), |_, bytes| {
                printed.extend_from_slice(bytes);
            })?;
            let sight = look(running[0].id(), &printed);
            printed.clear();
            if running[0].ended.is_some() {
                break;
            }
            if given_up.is_none() {
                given_up = match sight {
                    Sight::Moves => {
                        moved = Instant::now();
                        None
                    }
                    Sight::StandsStill if moved.elapsed() < patience => None,
                    Sight::StandsStill => Some(GivenUp::Stalled),
                    Sight::Enough => Some(GivenUp::Enough),
                };
                if given_up.is_some() {
                    running[0].stop(GRACE);
                }
            }
            // From 2.26 on, a Nix that copies prints about twenty lines for each path.
            self.breathe(&running);
        }
        self.check()?;
        let [running] = running;
        let finished = running.finished()?;
        let given_up = given_up.filter(|_| !finished.ending.success());
        Ok((finished, given_up))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command_line::Ending;
    use crate::log::Log;

    const SOON: Duration = Duration::from_millis(50);
    const NEVER: Duration = Duration::from_secs(3600);

    /// How a script ends, and why it was stopped.
    fn run(
        script: &str,
        patience: Duration,
        look: impl FnMut(u32, &[u8]) -> Sight,
    ) -> (Ending, Option<GivenUp>) {
        let mut supervisor = Supervisor::install(&Log::default()).unwrap();
        let line = CommandLine::new("sh", &["-c", script]);
        let (finished, given_up) = supervisor.run_patiently(&line, patience, look).unwrap();
        (finished.ending, given_up)
    }

    /// It runs until it is stopped.
    const LONG: &str = "exec sleep 60";

    #[test]
    fn a_program_that_stands_still_is_stopped_and_one_that_moves_is_not() {
        let stalled = run(LONG, SOON, |_, _| Sight::StandsStill);
        assert_eq!(stalled, (Ending::Killed(15), Some(GivenUp::Stalled)));
        // Whether it moves, a look says: this one moves until it has lasted for longer than the patience.
        let began = Instant::now();
        let enough = run(LONG, SOON, |_, _| {
            if began.elapsed() > 4 * SOON {
                Sight::Enough
            } else {
                Sight::Moves
            }
        });
        assert_eq!(enough, (Ending::Killed(15), Some(GivenUp::Enough)));
    }

    #[test]
    fn a_program_that_ignores_term_is_killed() {
        let script = "trap '' TERM; echo >&2; while :; do sleep 1; done";
        let killed = run(script, NEVER, |_, printed| {
            if printed.is_empty() {
                Sight::Moves
            } else {
                Sight::Enough
            }
        });
        assert_eq!(killed, (Ending::Killed(9), Some(GivenUp::Enough)));
    }

    #[test]
    fn a_look_gets_all_that_is_printed_and_each_byte_once() {
        let mut all = Vec::new();
        let mut look = |_, printed: &[u8]| {
            all.extend_from_slice(printed);
            Sight::StandsStill
        };
        let script = "echo one >&2; head -c 300000 /dev/zero >&2; echo two >&2; exit 3";
        assert_eq!(run(script, NEVER, &mut look), (Ending::Exited(3), None));
        assert_eq!(all.len(), 300_008);
        assert!(all.starts_with(b"one\n") && all.ends_with(b"two\n"));
    }

    #[test]
    fn one_that_is_stopped_and_ends_well_was_not_given_up() {
        let script = "trap 'echo last >&2; exit 0' TERM; echo >&2; while :; do sleep 0.1; done";
        let mut all = Vec::new();
        let ended = run(script, NEVER, |_, printed| {
            all.extend_from_slice(printed);
            if all.is_empty() {
                Sight::Moves
            } else {
                Sight::Enough
            }
        });
        assert_eq!(ended, (Ending::Exited(0), None));
        // What it prints while it is stopped counts as well.
        assert_eq!(all, b"\nlast\n");
    }
}
