//! `eval-once prune`: removes the GC roots in the state folder that have expired, and archives that were unpacked there.

use super::folder;
use super::state_folder::open_state_folder;
use crate::counts::number;
use crate::exit::Failure;
use crate::host::{self, Host};
use crate::log::Log;
use crate::state::{CommonKind, sweep_temporary};

/// Removes the expired pins, the roots of killed runs, and archives that no step has used for as long as they are kept (where the
/// disk is low, all that none uses).
///
/// # Errors
/// The state folder cannot be used (75).
pub fn prune(host: &Host, log: &Log) -> Result<(), Failure> {
    if let Some(folder) = host.state.as_ref().filter(|folder| !folder.exists()) {
        log.say(format_args!(
            "the state folder {} does not exist: nothing to prune",
            folder.display()
        ));
        return Ok(());
    }
    let state = open_state_folder(host, log)?;
    let removed = folder::remove_expired(&state);
    for folder in &removed {
        log.say(format_args!("removed {}", folder.display()));
    }
    sweep_temporary(&host.temporary);
    let (roots, outputs) = state.sweep();
    if roots > 0 {
        log.say(format_args!(
            "removed the roots of {}",
            number(roots, "killed run")
        ));
    }
    if outputs > 0 {
        log.say(format_args!(
            "removed the outputs of {}, which are more than a day old",
            number(outputs, "step")
        ));
    }
    for (kind, what) in [
        (CommonKind::Share, "unpacked archive"),
        (CommonKind::Checkout, "checkout"),
    ] {
        let is_low = || host::low_on_disk(&state.pins());
        let low = is_low();
        let mut removed = state.sweep_common(kind);
        removed += state.make_room(kind, || is_low().is_some());
        if removed > 0 {
            let why = match low {
                Some(free) => format!("the disk is low ({free} free)"),
                None => "no step has used it for as long as it is kept".to_owned(),
            };
            log.say(format_args!("removed {}: {why}", number(removed, what)));
        }
    }
    log.say(match removed.len() {
        0 => "no pin has expired".to_owned(),
        1 => "removed 1 pin: the next garbage collection may delete the .drvs that only it kept".to_owned(),
        count => format!("removed {count} pins: the next garbage collection may delete the .drvs that only they kept"),
    });
    Ok(())
}
