//! Which Nix a program is.

/// The version in what a program of Nix's prints with `--version`: `nix-instantiate (Nix) 2.8.0`.
#[must_use]
pub fn of_program(printed: &str) -> Option<String> {
    let version = printed.lines().next()?.split_whitespace().next_back()?;
    Some(version.to_owned())
}

/// The first two numbers of a version, which can be compared: `2.35.0pre20260101_abc` is (2, 35).
#[must_use]
pub fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    let mut number = || {
        let part = parts.next()?;
        let end = part
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(part.len());
        part[..end].parse().ok()
    };
    Some((number()?, number()?))
}

/// From this version of Nix on, an automatic collection keeps what is in use (NixOS/nix#15469).
const COLLECTOR_FIXED: (u32, u32) = (2, 35);

/// Whether a Nix of this version collects what running builds use, where `min-free` makes it collect.
#[must_use]
pub fn collects_what_is_in_use(version: &str) -> bool {
    numbers(version).is_some_and(|numbers| numbers < COLLECTOR_FIXED)
}

/// The first version of Nix that was seen to refuse a fixed output that refers to other paths. 2.8 aborts when it registers one.
const REFERENCES_REFUSED: (u32, u32) = (2, 26);

/// Whether the daemon of this version may abort at a fixed output that refers to other paths. One that tells no version is old.
#[must_use]
pub fn aborts_at_references(daemon: Option<&str>) -> bool {
    daemon
        .and_then(numbers)
        .is_none_or(|numbers| numbers < REFERENCES_REFUSED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_daemon_may_abort_at_references() {
        for (daemon, may) in [
            (None, true),
            (Some("2.8.0"), true),
            (Some("2.26.3"), false),
            (Some("2.34.8"), false),
        ] {
            assert_eq!(aborts_at_references(daemon), may, "{daemon:?}");
        }
    }

    #[test]
    fn versions_are_compared_by_number() {
        let of = |printed: &str| numbers(&of_program(printed).unwrap());
        assert_eq!(of("nix-instantiate (Nix) 2.8.0\n"), Some((2, 8)));
        assert_eq!(of("nix (Determinate Nix 3.8.5) 2.30.2"), Some((2, 30)));
        assert_eq!(of("nix (Nix) 2.36pre20261101_dirty"), Some((2, 36)));
        assert!(of("nix (Nix) 2.8.0") < of("nix (Nix) 2.35.0"));
        assert_eq!(of("nix (Nix) unknown"), None);
    }
}
