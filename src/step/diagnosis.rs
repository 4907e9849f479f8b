//! What a failed build means, in words: what failed, why, and what can be done about it.

use crate::exit::{Class, Failure};
use crate::nix::{Cause, DrvPath, Fault, NixOutput, Trouble, class};

/// What to do about a builder that the system does not start (`E2BIG`).
const TOO_LONG: &str = "list large attributes in `passAsFile`, or use `__structuredAttrs`: the system limits a builder's environment (128 KiB for one variable)";

/// What a refusal means.
const REFUSED: &str = "Nix refuses to build it as it is; retrying cannot help.";

/// What to do where Nix refuses to build a derivation, for the refusals that are known.
fn refusal_hint(error: &str) -> Option<&'static str> {
    let says = |words: &str| error.contains(words);
    let refers = says("fixed output derivation '") && says("refer to other store paths");
    // The same, in the words of 2.8.
    let asserts = says("makeFixedOutputPath") && says("references.empty()");
    Some(if refers || asserts {
        "keep other store paths out of it (a fixed output must not contain any), or set `unsafeDiscardReferences.out = true` together with `__structuredAttrs`"
    } else if says("has '__noChroot' set") {
        "remove `__noChroot` from the derivation, or set `sandbox = relaxed` on this host"
    } else if says("experimental Nix feature '") {
        "enable the feature on this host: `experimental-features` in nix.conf (with a daemon, the daemon's)"
    } else {
        return None;
    })
}

/// Whether this is about a `.drv` whose file is gone. (Nix has other words for a path that is not registered.)
fn is_missing_drv(error: &str) -> bool {
    let is_open = ["opening file '", "opening file \""]
        .iter()
        .any(|start| error.starts_with(start));
    is_open && error.contains(".drv") && error.ends_with(": No such file or directory")
}

/// The status of a shell whose command was killed by signal 9.
const KILLED: u32 = 128 + 9;

/// The failure of realising `drv`, which is of `class`; `how` is the command, and how that ended. `out_of_memory` is how many
/// processes the kernel has killed on this host meanwhile for lack of memory.
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
    let why = match (class, &nix_output.error) {
        (Class::Signal(_), _) | (_, None) => String::new(),
        (_, Some(error)) => format!(": {error}"),
    };
    let failure = match nix_output.trouble(true) {
        // Its outputs may be there: `post-build-hook` runs when they are.
        Some(Trouble::Hook) if class == Class::Infrastructure => Failure::new(
            class,
            format_args!("Nix gave up {drv}, because a hook of this host failed{why}"),
        ),
        _ => Failure::new(class, format_args!("{drv} was not built: {how}{why}")),
    };
    with_hint(failure, nix_output)
}

/// The failure of a step whose `.drv`, or the one that is `damaged` and that it needs, is registered in the store, and is not whole.
pub(super) fn of_damaged(drv: &DrvPath, damaged: &DrvPath) -> Failure {
    let whose = if damaged == drv {
        "its file".to_owned()
    } else {
        format!("the file of {damaged}, which it needs,")
    };
    Trouble::DamagedDrv.tell(Failure::new(
        Class::Infrastructure,
        format_args!("{drv} was not built: {whose} is empty or cut off"),
    ))
}

/// The failure of an evaluation of `what` that is of `class`, and no evaluation error: a builder that it needed failed, or the
/// infrastructure did. `error` is what Nix ended with.
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
        (true, 0) => ", as the kernel does when memory runs out",
        (true, _) => ": meanwhile the kernel killed a process on this host for lack of memory",
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
            "retry, or check the machines in this host's `builders`: one of them could not be reached, or broke off",
        );
    }
    let failure = match &fault.cause {
        Cause::Platform(_) => {
            failure.meaning("No machine here can build it; retrying on this host cannot help.")
        }
        Cause::Output(_) => failure.meaning(
            "Its builder succeeded, and made no output that Nix takes; retrying cannot help.",
        ),
        Cause::Log(_) => failure.meaning(
            "Its builder printed more than this host allows; retrying on this host cannot help.",
        ),
        _ => failure,
    };
    let hint = hint(fault, for_memory).or_else(|| {
        let lines = nix_output.last_lines(fault.drv.as_ref()?)?;
        // 2.8 prints this sentence in the middle of a longer line.
        let too_long = |line: &String| line.contains("Argument list too long");
        lines.iter().any(too_long).then_some(TOO_LONG)
    });
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// Whether a builder was killed as the kernel kills for lack of memory: itself, or its command, as its shell reports it by
/// status 137. (That the kernel has killed something on this host says nothing of a builder that ended otherwise: a host has
/// many jobs.)
fn is_for_memory(fault: &Fault) -> bool {
    matches!(fault.cause, Cause::Signal(9) | Cause::Status(KILLED))
}

/// What can be done about a derivation that failed, besides reading its log.
fn hint(fault: &Fault, for_memory: bool) -> Option<&'static str> {
    Some(match &fault.cause {
        _ if for_memory => {
            "give the build more memory, or run fewer jobs on this host (fewer agents, or the options `cores` and `max-jobs`)"
        }
        Cause::Time(_) => {
            "raise `timeout` or `max-silent-time` in `options` if the build needs longer"
        }
        Cause::Hash(_) => {
            "put the hash that Nix got into the expression if the source was meant to change; if not, find out why it changed on its server"
        }
        Cause::Platform(_) => {
            "send the step to an agent that can build it (`agents` of the recording, by system or feature:NAME), or give this host a builder (`builders`, `extra-platforms`, `system-features`)"
        }
        Cause::DiskFull => return Trouble::DiskFull.hint(),
        Cause::Log(_) => {
            "let the builder print less, or raise `max-build-log-size` on this host (in nix.conf; with a daemon, in the daemon's)"
        }
        Cause::Status(_)
        | Cause::Signal(_)
        | Cause::Output(_)
        | Cause::Other(_)
        | Cause::Nondeterministic => return None,
    })
}

/// A failure of no derivation, with what can be done about it where that is known.
fn with_hint(failure: Failure, nix_output: &NixOutput) -> Failure {
    let message = nix_output
        .error
        .as_deref()
        .or(nix_output.assertion.as_deref());
    let error = message.unwrap_or_default();
    if failure.class == Class::Build {
        return match refusal_hint(error) {
            Some(hint) => failure.meaning(REFUSED).hint(hint),
            None => failure.meaning(REFUSED),
        };
    }
    let unreachable = !nix_output.unreachable.is_empty() && class::is_about_what_is_missing(error);
    match failure.class {
        Class::Signal(9) => failure.hint(
            "give the step more memory, if memory ran out: the kernel kills with signal 9 then",
        ),
        Class::Infrastructure if is_missing_drv(error) => Trouble::DamagedDrv.tell(failure),
        Class::Infrastructure => match nix_output.trouble(true) {
            None if unreachable => Trouble::NotDownloaded.tell(failure),
            None => failure,
            Some(trouble) => trouble.tell(failure),
        },
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "0123456789abcdfghijklmnpqrsvwxyz";

    fn drv(name: &str) -> DrvPath {
        DrvPath::parse(&format!("/s/{HASH}-{name}.drv")).unwrap()
    }

    fn output(lines: &[&str]) -> NixOutput {
        NixOutput::of(lines.join("\n").as_bytes())
    }

    fn failed(name: &str, how: &str) -> String {
        format!("error: builder for '{}' failed {how}", drv(name))
    }

    #[test]
    fn the_root_cause_is_named_and_the_steps_own_derivation_where_that_is_another() {
        let of = |name: &str| {
            let output = output(&[&failed(name, "with exit code 3")]);
            of_realise(Class::Build, &drv("app"), &output, 0, "").to_string()
        };
        assert!(of("app").starts_with(&format!("{} failed: ", drv("app"))));
        let needed = format!("{} failed, which {} needs: ", drv("lib"), drv("app"));
        assert!(of("lib").starts_with(&needed), "{}", of("lib"));
    }

    #[test]
    fn a_builder_that_was_killed_may_have_run_out_of_memory() {
        let of = |how: &str, killed| {
            let output = output(&[&failed("app", how)]);
            of_realise(Class::Build, &drv("app"), &output, killed, "")
        };
        let killed = of("due to signal 9 (Killed)", 0);
        assert!(
            killed
                .to_string()
                .contains("as the kernel does when memory")
        );
        assert!(
            killed
                .hint
                .unwrap()
                .starts_with("give the build more memory")
        );
        let shell = of("with exit code 137", 1);
        assert!(shell.to_string().contains("the kernel killed a process"));
        let other = of("with exit code 1", 1);
        assert!(!other.to_string().contains("kernel"), "{other}");
        assert_eq!(other.hint, None);
    }

    #[test]
    fn without_a_root_cause_the_command_and_nixs_last_message_are_repeated() {
        let output = output(&["error: cannot connect to daemon"]);
        let failure = of_realise(
            Class::Infrastructure,
            &drv("app"),
            &output,
            0,
            "`nix-store` ended with status 1",
        );
        assert_eq!(
            failure.to_string(),
            format!(
                "{} was not built: `nix-store` ended with status 1: cannot connect to daemon",
                drv("app")
            )
        );
    }

    #[test]
    fn a_signal_says_what_nothing_else_does() {
        let failure = of_realise(Class::Signal(9), &drv("app"), &output(&[]), 0, "was killed");
        assert!(failure.hint.unwrap().contains("signal 9"));
        let failure = of_realise(
            Class::Signal(15),
            &drv("app"),
            &output(&[]),
            0,
            "was killed",
        );
        assert_eq!(failure.hint, None);
    }

    #[test]
    fn an_evaluation_that_needs_a_failed_build_names_both() {
        let output = output(&[&failed("generated", "with exit code 1")]);
        let failure = of_evaluation(Class::Build, "app of ci.nix", &output, 0, "");
        let sentence = format!(
            "{} failed, which the evaluation of app of ci.nix needs: ",
            drv("generated")
        );
        assert!(failure.to_string().starts_with(&sentence), "{failure}");
    }

    #[test]
    fn a_refusal_of_nixs_has_a_hint_where_its_words_are_known() {
        for (error, part) in [
            (
                "fixed output derivation 'x' may not refer to other store paths",
                "fixed output",
            ),
            (
                "derivation 'x' has '__noChroot' set, but that is not allowed",
                "__noChroot",
            ),
            (
                "experimental Nix feature 'ca-derivations' is disabled",
                "experimental-features",
            ),
        ] {
            let hint = refusal_hint(error);
            assert!(
                hint.is_some_and(|hint| hint.contains(part)),
                "{error}: {hint:?}"
            );
        }
        assert_eq!(refusal_hint("something else"), None);
    }

    #[test]
    fn only_the_file_of_a_drv_that_cannot_be_opened_is_a_missing_drv() {
        let gone = "No such file or directory";
        assert!(is_missing_drv(&format!("opening file '/s/x.drv': {gone}")));
        assert!(is_missing_drv(&format!(
            "opening file \"/s/x.drv\": {gone}"
        )));
        assert!(!is_missing_drv(&format!("opening file '/s/x': {gone}")));
        assert!(!is_missing_drv(
            "opening file '/s/x.drv': Permission denied"
        ));
    }
}
