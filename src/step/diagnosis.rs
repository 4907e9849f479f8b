//! What a failed build means, in words: what failed, why, and what can be done about it.

use crate::exit::{Class, Failure};
use crate::nix::{Cause, DrvPath, Fault, Heard, Trouble};

/// What to do about a full disk.
const MAKE_ROOM: &str = "make room on this host's disk, and try again: `nix-collect-garbage` takes away what nothing keeps, `eval-once prune` what recordings keep no longer";

/// What to do about a server that does not answer.
const UNREACHABLE: &str = "a server could not be reached: try again; where it is a cache, Nix builds what it cannot fetch with the option `fallback`";

/// The status of a shell whose command was killed by signal 9.
const KILLED: u32 = 128 + 9;

/// The failure of realising `drv`, which is of `class`; `how` is the command, and how that ended. The kernel has killed so many
/// processes on this host meanwhile for want of memory.
pub(super) fn of_realise(
    class: Class,
    drv: &DrvPath,
    heard: &Heard,
    out_of_memory: u64,
    how: &str,
) -> Failure {
    if let Some(fault) = heard.culprit() {
        let what = match &fault.drv {
            Some(culprit) if culprit == drv => format!("{drv} failed"),
            Some(culprit) => format!("{culprit} failed, which {drv} needs"),
            None => format!("{drv} was not built"),
        };
        return of_fault(class, fault, &what, heard, out_of_memory);
    }
    let said = match (class, &heard.error) {
        (Class::Signal(_), _) | (_, None) => String::new(),
        (_, Some(error)) => format!(": {error}"),
    };
    let failure = Failure::new(class, format_args!("{drv} was not built: {how}{said}"));
    with_hint(failure, heard)
}

/// The failure of an evaluation of `what` that is of `class`, and not the expression's own: a builder that it needed failed, or
/// the surroundings did. Nix's last words are `error`.
pub(super) fn of_evaluation(
    class: Class,
    what: &str,
    heard: &Heard,
    out_of_memory: u64,
    error: &str,
) -> Failure {
    if let Some(fault) = heard.culprit() {
        let what = match &fault.drv {
            Some(culprit) => format!("{culprit} failed, which the evaluation of {what} needs"),
            None => format!("what the evaluation of {what} needs was not built"),
        };
        return of_fault(class, fault, &what, heard, out_of_memory);
    }
    let failure = Failure::new(class, format_args!("{what} was not evaluated: {error}"));
    with_hint(failure, heard)
}

/// The failure of a derivation that failed by itself; `what` failed, in words.
fn of_fault(class: Class, fault: &Fault, what: &str, heard: &Heard, out_of_memory: u64) -> Failure {
    let for_memory = is_for_memory(fault);
    let memory = match (for_memory, out_of_memory) {
        (false, _) => "",
        (true, 0) => ", as the kernel does it when memory runs out",
        (true, _) => ": the kernel has killed for want of memory on this host meanwhile",
    };
    let others = match heard.faults.len() - 1 {
        0 => String::new(),
        1 => " (another failed too)".to_owned(),
        others => format!(" ({others} others failed too)"),
    };
    let failure = Failure::new(
        class,
        format_args!("{what}: {}{memory}{others}", fault.cause),
    );
    if matches!(fault.cause, Cause::Platform(_)) && class == Class::Surroundings {
        return failure.hint(
            "a machine of this host's `builders` could not be reached: try again, or look after it",
        );
    }
    let failure = match &fault.cause {
        Cause::Platform(_) => failure
            .meaning("No machine here can build it; trying again on this host cannot help."),
        Cause::Output(_) => failure.meaning(
            "Its builder ended well, and there is nothing to use all the same; trying again cannot help.",
        ),
        _ => failure,
    };
    match hint(fault, for_memory) {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// Whether a builder was killed as the kernel does it, itself or as a shell tells it of its command. (That the kernel has killed
/// something on this host says nothing of a builder that ended in another way: a host has many jobs.)
fn is_for_memory(fault: &Fault) -> bool {
    matches!(fault.cause, Cause::Signal(9) | Cause::Status(KILLED))
}

/// What can be done about what failed, besides looking at its log.
fn hint(fault: &Fault, for_memory: bool) -> Option<&'static str> {
    Some(match &fault.cause {
        _ if for_memory => {
            "give the build more memory, or this host fewer jobs at once (fewer agents; the options `cores` and `max-jobs`)"
        }
        Cause::Time(_) => {
            "`timeout` and `max-silent-time` are Nix settings, which `options` can raise"
        }
        Cause::Hash(_) => {
            "if what is fetched was meant to change, put the hash that Nix got into the expression; if not, it has changed where it comes from"
        }
        Cause::Platform(_) => {
            "no machine here can build it: send the step to an agent that can (`agents` of the recording, by system or feature:NAME), or give this host a builder (`builders`, `extra-platforms`, `system-features`)"
        }
        Cause::DiskFull => MAKE_ROOM,
        Cause::Status(_)
        | Cause::Signal(_)
        | Cause::Output(_)
        | Cause::Other(_)
        | Cause::Nondeterministic => return None,
    })
}

/// A failure of no derivation, with what can be done about it where that is known.
fn with_hint(failure: Failure, heard: &Heard) -> Failure {
    let trouble = heard.troubles.first();
    let unreachable = !heard.unreachable.is_empty()
        && heard.error.as_deref().is_some_and(is_about_what_is_missing);
    let hint = match (failure.class, trouble) {
        (Class::Signal(9), _) => "the kernel kills with signal 9 when memory runs out",
        (Class::Surroundings, Some(Trouble::DiskFull)) => MAKE_ROOM,
        (Class::Surroundings, Some(Trouble::DaemonGone)) => {
            "the Nix daemon went away meanwhile: was it restarted, or killed for want of memory? The step can be tried again"
        }
        (Class::Surroundings, Some(Trouble::NotDownloaded)) => UNREACHABLE,
        (Class::Surroundings, None) if unreachable => UNREACHABLE,
        _ => return failure,
    };
    failure.hint(hint)
}

/// Whether Nix has ended because it could not come by something.
fn is_about_what_is_missing(error: &str) -> bool {
    ["some substitutes for ", "build of '", "path '"]
        .iter()
        .any(|start| error.starts_with(start))
}
