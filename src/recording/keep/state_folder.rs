//! The host's state folder, as a recording needs it: without one there is no pin.

use crate::exit::{Class, Failure};
use crate::host::Host;
use crate::log::Log;
use crate::state::StateFolder;

/// Opens the host's state folder, which has the pins.
///
/// # Errors
/// There is none, or it cannot be used (75).
pub(in crate::recording) fn open_state_folder(
    host: &Host,
    log: &Log,
) -> Result<StateFolder, Failure> {
    let Some(folder) = &host.state else {
        return Err(Failure::new(
            Class::Infrastructure,
            "there is no state folder for the pin: EVAL_ONCE_STATE_DIR, XDG_STATE_HOME and HOME are not set",
        ));
    };
    let state = StateFolder::open(folder).map_err(|error| {
        Failure::new(
            Class::Infrastructure,
            format_args!(
                "the state folder {} cannot be used: {error}",
                folder.display()
            ),
        )
        .hint(match error.mend() {
            Some(mend) => format!("{mend}, or set EVAL_ONCE_STATE_DIR to another folder"),
            None => "set EVAL_ONCE_STATE_DIR to another folder: without a pin, a garbage collection deletes the recorded .drvs".to_owned(),
        })
    })?;
    state.say_if_newly_closed(log);
    Ok(state)
}
