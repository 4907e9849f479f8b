//! The time and the processor time of a command.

use std::process::Command;

use unix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};

use crate::pairs::milliseconds;

/// What a command took, in milliseconds.
pub(crate) struct Spent {
    pub(crate) time: f64,
    /// Of all its processes.
    pub(crate) processor: f64,
}

/// Runs a command, which must succeed.
pub(crate) fn spend(command: Command) -> Spent {
    #[expect(clippy::cast_precision_loss, reason = "microseconds of seconds")]
    let processor = || {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
        (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1000.0
    };
    let before = processor();
    let time = milliseconds(command);
    Spent {
        time,
        processor: processor() - before,
    }
}
