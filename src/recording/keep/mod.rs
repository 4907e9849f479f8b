//! What a recording keeps: the pin, whose GC root keeps every recorded `.drv`; and which targets need no step, because their outputs
//! are kept already.

mod content;
mod folder;
pub(in crate::recording) mod partial;
pub(in crate::recording) mod pin;
pub(in crate::recording) mod pinned;
pub(in crate::recording) mod prune;
mod seen;
pub(in crate::recording) mod skip;
mod state_folder;

pub(in crate::recording) use content::{PinOwner, identity, previous};
pub(in crate::recording) use folder::remove_expired_at_times;
pub(in crate::recording) use state_folder::open_state_folder;
