//! Nix's errors about builds: which derivation failed by itself, and why.
//!
//! The sentences are not documented, and were read off 2.8, 2.26 and 2.34. Whether one is Nix's own, or a builder's that
//! imitates it, is not known here.

use std::fmt;

use super::DrvPath;

/// A derivation that failed by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The derivation; none where Nix does not say which.
    pub drv: Option<DrvPath>,
    /// Why.
    pub cause: Cause,
}

/// Why a derivation failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// Its builder ended with a status.
    Status(u32),
    /// Its builder was killed by a signal.
    Signal(u32),
    /// Its builder succeeded, but its outputs cannot be used: one is missing, or is not as it must be; how, in words.
    Output(String),
    /// `timeout` or `max-silent-time` ran out; which, in Nix's words.
    Time(String),
    /// It printed more than `max-build-log-size` allows, in Nix's words.
    Log(String),
    /// Hash mismatch: which hash was specified, and which Nix got, as far as it says so.
    Hash(String),
    /// It is not reproducible: a second build gave other outputs.
    Nondeterministic,
    /// No machine here can build it: what it needs, and what this host has, in Nix's words.
    Platform(String),
    /// Nix says that the disk is full, and that this may be why.
    DiskFull,
    /// Something else, in Nix's words.
    Other(String),
}

/// Whether an error says that Nix rejects an output without naming the derivation: 2.34 names a temporary path.
#[must_use]
pub fn is_rejection(error: &str) -> bool {
    error.starts_with("output path ") && error.contains(" should be a non-executable regular file")
        || error.starts_with("suspicious ownership or permission on ")
        || error.starts_with("derivation contains an illegal reference specifier")
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "its builder ended with status {status}"),
            Self::Signal(signal) => write!(f, "its builder was killed by signal {signal}"),
            Self::Output(how) => write!(f, "its builder succeeded, but {how}"),
            Self::Time(what) | Self::Platform(what) | Self::Other(what) => f.write_str(what),
            Self::Log(how) => write!(f, "its builder was {how} (`max-build-log-size`)"),
            Self::Hash(which) => write!(f, "hash mismatch{which}"),
            Self::Nondeterministic => {
                f.write_str("it is not reproducible: a second build gave other outputs")
            }
            Self::DiskFull => f.write_str("the disk is full"),
        }
    }
}

/// How Nix says that a builder has printed more than `max-build-log-size` allows.
const TOO_MUCH_LOG: &str = "killed after writing more than ";

/// The fault that an error of Nix before 2.3x names: in one line.
pub(super) fn fault(error: &str) -> Option<Fault> {
    let about = |start: &str| {
        let (drv, rest) = error.strip_prefix(start)?.split_once('\'')?;
        Some((drv_of(drv)?, rest))
    };
    let (drv, cause) = if let Some((drv, rest)) = about("builder for '") {
        let rest = rest.trim_start();
        let other = || Cause::Other(rest.trim_end_matches(';').to_owned());
        (drv, cause_of_builder(rest).unwrap_or_else(other))
    } else if let Some((drv, _)) = about("hash mismatch in fixed-output derivation '") {
        (drv, Cause::Hash(String::new()))
    } else if let Some((drv, rest)) =
        about("building of '").or_else(|| about("building derivation '"))
    {
        let cause = match rest.split_once("timed out ") {
            Some((_, when)) => Cause::Time(format!("it timed out {when}")),
            None => Cause::Log(rest[rest.find(TOO_MUCH_LOG)?..].to_owned()),
        };
        (drv, cause)
    } else if let Some((drv, rest)) = about("derivation '") {
        let differs = rest.contains("may not be deterministic");
        (drv, differs.then_some(Cause::Nondeterministic)?)
    } else if let Some((drv, _)) = about("cycle detected in build of '") {
        let what = "the references of its outputs are cyclic";
        (drv, Cause::Output(what.into()))
    } else if let Some(rest) = error.strip_prefix("output '") {
        // output 'PATH' of 'DRV' differs from 'PATH' from previous round
        let (_, rest) = rest.split_once("' of '")?;
        let (drv, rest) = rest.split_once('\'')?;
        let differs = rest.contains(" from previous round");
        (drv_of(drv)?, differs.then_some(Cause::Nondeterministic)?)
    } else {
        // a 'SYSTEM' with features {…} is required to build 'DRV', but I am a 'SYSTEM' with features {…}
        let (needed, rest) = error
            .strip_prefix("a '")?
            .split_once(" is required to build '")?;
        let (drv, have) = rest.split_once("', but I am a '")?;
        let what = format!("needs '{needed}, this host has '{have}");
        (drv_of(drv)?, Cause::Platform(what))
    };
    Some(Fault {
        drv: Some(drv),
        cause,
    })
}

/// Why another machine failed to build a derivation, as the `build-hook` that speaks with it says: `build of 'DRV' on 'ssh://m' failed: …`.
/// For Nix itself the hook is the builder then, and ends with status 1.
pub(super) fn fault_of_machine(error: &str) -> Option<(DrvPath, Cause)> {
    let (drv, rest) = error.strip_prefix("build of '")?.split_once("' on '")?;
    let (_machine, why) = rest.split_once("' failed: ")?;
    let why = why.strip_prefix("error: ").unwrap_or(why);
    let cause = match fault(why) {
        Some(fault) => fault.cause,
        None if is_time_alone(why) => Cause::Time(format!("it {why}")),
        None => Cause::Other(why.to_owned()),
    };
    Some((drv_of(drv)?, cause))
}

/// How a builder failed: `failed with exit code 3`, `builder failed due to signal 9 (Killed)`.
pub(super) fn cause_of_builder(how: &str) -> Option<Cause> {
    let number_after = |words: &str| {
        let (_, rest) = how.split_once(words)?;
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        rest[..end].parse().ok()
    };
    if let Some(status) = number_after("failed with exit code ") {
        Some(Cause::Status(status))
    } else if let Some(signal) = number_after("failed due to signal ") {
        Some(Cause::Signal(signal))
    } else if let Some((_, rest)) = how.split_once("failed to produce output path for output '") {
        let output = rest.split('\'').next().unwrap_or_default();
        Some(Cause::Output(format!(
            "did not produce its output `{output}`"
        )))
    } else {
        None
    }
}

/// The words of Nix since 2.3x for a derivation that no machine can build.
pub(super) const NO_MACHINE: [&str; 3] = [
    "platform mismatch",
    "missing system features",
    "required system or feature not available",
];

/// The `.drv` in a name that may select outputs of it: `DRV!*` (2.8), `DRV^*` (2.26).
pub(super) fn drv_of(name: &str) -> Option<DrvPath> {
    let end = name.find(['!', '^']).unwrap_or(name.len());
    DrvPath::parse(&name[..end]).ok()
}

/// Whether an error says that a time limit ran out, without naming the build (2.34).
pub(super) fn is_time_alone(error: &str) -> bool {
    let rest = error
        .strip_prefix("timed out after ")
        .map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
    matches!(rest, Some(" seconds" | " seconds of silence"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRV: &str = "/s/w11m5yi1fzmzl7ri7y308xcnn9jyzv3r-a.drv";

    #[test]
    fn outputs_that_differ_are_a_fault_of_their_derivation() {
        for error in [
            format!("derivation '{DRV}' may not be deterministic: output '/s/x' differs"),
            format!("output '/s/x' of '{DRV}' differs from '/s/y' from previous round"),
        ] {
            let fault = fault(&error).unwrap();
            assert_eq!(fault.cause, Cause::Nondeterministic, "{error}");
            assert_eq!(fault.drv, DrvPath::parse(DRV).ok());
        }
    }

    #[test]
    fn a_builder_that_printed_too_much_is_killed_for_that() {
        let how = "killed after writing more than 1000 bytes of log output";
        for start in [
            format!("building of '{DRV}!*' from .drv file"),
            format!("building of '{DRV}^*' from .drv file"),
            format!("building derivation '{DRV}'"),
        ] {
            let fault = fault(&format!("{start} {how}")).unwrap();
            assert_eq!(fault.cause, Cause::Log(how.into()), "{start}");
            assert_eq!(fault.drv, DrvPath::parse(DRV).ok());
        }
    }

    #[test]
    fn a_builder_that_failed_in_another_way_is_described_in_nixs_words() {
        let cause = |how: &str| fault(&format!("builder for '{DRV}' {how}")).unwrap().cause;
        assert_eq!(
            cause("vanished on the way;"),
            Cause::Other("vanished on the way".into())
        );
        // A number that no status can have is in words, too.
        let how = "failed with exit code 99999999999";
        assert_eq!(cause(how), Cause::Other(how.into()));
    }

    #[test]
    fn an_error_that_names_no_derivation_is_no_fault() {
        for error in [
            "builder for '/s/x' failed with exit code 1".to_owned(),
            format!("builder for '{DRV}"),
            format!("derivation '{DRV}' is a symlink"),
            format!("output '/s/x' of '{DRV}' is not valid"),
            format!("building of '{DRV}' from .drv file: interrupted"),
            "a 'x' is required to build 'y', but I am a 'z'".to_owned(),
        ] {
            assert_eq!(fault(&error), None, "{error}");
        }
    }

    #[test]
    fn a_drv_may_be_followed_by_the_outputs_that_are_selected() {
        let drv = DrvPath::parse(DRV).ok();
        assert!(drv.is_some());
        for name in [DRV.to_owned(), format!("{DRV}!*"), format!("{DRV}^out,dev")] {
            assert_eq!(drv_of(&name), drv, "{name}");
        }
        assert_eq!(drv_of("^*"), None);
    }

    #[test]
    fn an_error_without_a_derivation_may_still_be_a_rejection_or_a_time_limit() {
        assert!(is_rejection(
            "output path '/s/x' should be a non-executable regular file"
        ));
        assert!(!is_rejection("output path '/s/x' is missing"));
        assert!(is_time_alone("timed out after 10 seconds"));
        assert!(is_time_alone("timed out after 10 seconds of silence"));
        assert!(!is_time_alone(
            "timed out after 10 seconds while connecting"
        ));
        assert!(!is_time_alone("curl timed out after 10 seconds"));
    }
}
