//! What a recording keeps: the pin, whose GC root keeps every recorded `.drv`; and which targets need no step, because their outputs
//! are kept already.

mod content;
mod folder;
mod pin;
pub(in crate::recording) mod pinned;
pub(in crate::recording) mod prune;
pub(in crate::recording) mod skip;

pub(in crate::recording) use content::{PinOwner, identity, previous};
pub(in crate::recording) use folder::remove_expired;

use crate::exit::{Class, Failure};
use crate::host::Host;
use crate::state::StateFolder;

/// Opens the host's state folder, which has the pins.
///
/// # Errors
/// There is none, or it cannot be used (75).
pub(in crate::recording) fn open_state_folder(host: &Host) -> Result<StateFolder, Failure> {
    let Some(folder) = &host.state else {
        return Err(Failure::new(
            Class::Infrastructure,
            "there is no state folder to keep a pin in: neither EVAL_ONCE_STATE_DIR nor XDG_STATE_HOME nor HOME is set",
        ));
    };
    StateFolder::open(folder).map_err(|error| {
        Failure::new(
            Class::Infrastructure,
            format_args!(
                "the state folder {} cannot be used: {error}",
                folder.display()
            ),
        )
        .hint("without it nothing keeps what is recorded; EVAL_ONCE_STATE_DIR names another one")
    })
}
