//! What a recording keeps alive, and what it need not build: the pin, which keeps the recorded `.drv`s, and the targets whose
//! outputs are there already.

pub(in crate::recording) mod pin;
pub(in crate::recording) mod skip;
