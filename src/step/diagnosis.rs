//! What a failed build means, in words: what failed, why, and what can be done about it.

use crate::exit::{Class, Failure};
use crate::nix::{Cause, DrvPath, Fault, NixOutput, Trouble, class};

/// What to do about a builder that the system does not start.
const TOO_LONG: &str = "its environment is larger than the system gives a program (128 KiB for one variable): list that attribute in `passAsFile`, or use `__structuredAttrs`";

/// What a refusal means.
const REFUSED: &str = "Nix refuses to build it as it is; trying again cannot help.";

/// What to do where Nix refuses to build a derivation, in whatever of its words that are known.
fn refusal_hint(error: &str) -> Option<&'static str> {
    let says = |words: &str| error.contains(words);
    let refers = says("fixed output derivation '") && says("refer to other store paths");
    // So 2.8 says the same.
    let asserts = says("makeFixedOutputPath") && says("references.empty()");
    Some(if refers || asserts {
        "a fixed output must not contain other store paths: keep them out of it, or set `unsafeDiscardReferences.out = true` together with `__structuredAttrs`"
    } else if says("has '__noChroot' set") {
        "`sandbox = relaxed` on the host allows `__noChroot`; or take that out of the derivation"
    } else if says("experimental Nix feature '") {
        "turn the feature on where it is built: `experimental-features` in nix.conf of this host (with a daemon, that of the daemon)"
    } else {
        return None;
    })
}

/// Whether a `.drv` is meant whose file is gone. (What is not registered is said in other words.)
fn is_missing_drv(error: &str) -> bool {
    let is_open = ["opening file '", "opening file \""]
        .iter()
        .any(|start| error.starts_with(start));
    is_open && error.contains(".drv") && error.ends_with(": No such file or directory")
}

/// The status of a shell whose command was killed by signal 9.
const KILLED: u32 = 128 + 9;

/// The failure of realising `drv`, which is of `class`; `how` is the command, and how that ended. The kernel has killed so many
/// processes on this host meanwhile for want of memory.
pub(super) fn of_realise(
    class: Class,
    drv: &DrvPath,
    nix_output: &NixOutput,
    out_of_memory: u64,
    how: &str,
) -> Failure {
    if let Some(fault) = nix_output.root_cause() {
        let what = match &fault.drv {
            Some(root_cause) if root_cause == drv => format!("{drv} failed"),
            Some(root_cause) => format!("{root_cause} failed, which {drv} needs"),
            None => format!("{drv} was not built"),
        };
        return of_fault(class, fault, &what, nix_output, out_of_memory);
    }
    let said = match (class, &nix_output.error) {
        (Class::Signal(_), _) | (_, None) => String::new(),
        (_, Some(error)) => format!(": {error}"),
    };
    let failure = Failure::new(class, format_args!("{drv} was not built: {how}{said}"));
    with_hint(failure, nix_output)
}

/// The failure of an evaluation of `what` that is of `class`, and not the expression's own: a builder that it needed failed, or
/// the surroundings did. Nix's last words are `error`.
pub(super) fn of_evaluation(
    class: Class,
    what: &str,
    nix_output: &NixOutput,
    out_of_memory: u64,
    error: &str,
) -> Failure {
    if let Some(fault) = nix_output.root_cause() {
        let what = match &fault.drv {
            Some(root_cause) => {
                format!("{root_cause} failed, which the evaluation of {what} needs")
            }
            None => format!("what the evaluation of {what} needs was not built"),
        };
        return of_fault(class, fault, &what, nix_output, out_of_memory);
    }
    let failure = Failure::new(class, format_args!("{what} was not evaluated: {error}"));
    with_hint(failure, nix_output)
}

/// The failure of a derivation that failed by itself; `what` failed, in words.
fn of_fault(
    class: Class,
    fault: &Fault,
    what: &str,
    nix_output: &NixOutput,
    out_of_memory: u64,
) -> Failure {
    let for_memory = is_for_memory(fault);
    let memory = match (for_memory, out_of_memory) {
        (false, _) => "",
        (true, 0) => ", as the kernel does it when memory runs out",
        (true, _) => ": the kernel has killed for want of memory on this host meanwhile",
    };
    let others = match nix_output.faults.len() - 1 {
        0 => String::new(),
        1 => " (another failed too)".to_owned(),
        others => format!(" ({others} others failed too)"),
    };
    let failure = Failure::new(
        class,
        format_args!("{what}: {}{memory}{others}", fault.cause),
    );
    if matches!(fault.cause, Cause::Platform(_)) && class == Class::Infrastructure {
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
    let hint = hint(fault, for_memory).or_else(|| {
        let lines = nix_output.last_lines(fault.drv.as_ref()?)?;
        // 2.8 prints more around it than words.
        let too_long = |line: &String| line.contains("Argument list too long");
        lines.iter().any(too_long).then_some(TOO_LONG)
    });
    match hint {
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
        Cause::DiskFull => return Trouble::DiskFull.hint(),
        Cause::Status(_)
        | Cause::Signal(_)
        | Cause::Output(_)
        | Cause::Other(_)
        | Cause::Nondeterministic => return None,
    })
}

/// A failure of no derivation, with what can be done about it where that is known.
fn with_hint(failure: Failure, nix_output: &NixOutput) -> Failure {
    let said = nix_output
        .error
        .as_deref()
        .or(nix_output.assertion.as_deref());
    let error = said.unwrap_or_default();
    if failure.class == Class::Build {
        return match refusal_hint(error) {
            Some(hint) => failure.meaning(REFUSED).hint(hint),
            None => failure.meaning(REFUSED),
        };
    }
    let unreachable = !nix_output.unreachable.is_empty() && class::is_about_what_is_missing(error);
    let hint = match failure.class {
        Class::Signal(9) => Some("the kernel kills with signal 9 when memory runs out"),
        Class::Infrastructure if is_missing_drv(error) => Some(
            "the store has it registered, and its file is gone: `nix-store --verify` on this host mends the register",
        ),
        Class::Infrastructure => match nix_output.trouble(true) {
            None if unreachable => Trouble::NotDownloaded.hint(),
            trouble => trouble.and_then(Trouble::hint),
        },
        _ => None,
    };
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
