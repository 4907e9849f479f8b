//! What a recording keeps alive, and what it need not build: the pin, which keeps the recorded `.drv`s, and the targets whose
//! outputs are there already.

pub(in crate::recording) mod pin;
pub(in crate::recording) mod pinned;
pub(in crate::recording) mod prune;
pub(in crate::recording) mod skip;
mod state_folder;

pub(in crate::recording) use state_folder::open_state_folder;
