//! The line of an attribute that has an error: printed as it comes, or in the end.

use super::AttrError;
use crate::log::Log;
use crate::nix::message::in_one_line;
use crate::secrets::shortened;

/// How much of an attribute's name is printed before its message, in characters.
const NAME_AT_MOST: usize = 200;

/// How many errors of a kind are printed with their messages; the pipeline has a step for each of them.
pub(in crate::recording) const ERRORS_AT_MOST: usize = 10;

/// The message of an evaluation error that was not evaluated again to get Nix's own: that costs a process for each.
pub(in crate::recording) const MESSAGE_IN_STEP: &str = "its step prints the message";

/// Prints an attribute that has an error of this kind; an unknown message is `otherwise`.
pub(in crate::recording) fn print_error(kind: &str, error: &AttrError, otherwise: &str, log: &Log) {
    let message = error.message.as_deref().map(in_one_line);
    log.say(format_args!(
        "{kind}: {}: {}",
        shortened(&error.attr.to_string(), NAME_AT_MOST),
        message.unwrap_or_else(|| otherwise.into())
    ));
}
