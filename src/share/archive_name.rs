//! The name of an archive says what is in it: the SHA-256 of its bytes, which is what the agent has as the artifact's sum too. So
//! a step that has the name needs to trust neither the server nor other jobs.

const BEGIN: &str = "eval-once-drvs-";
const END: &str = ".tar";

/// The name of the archive whose bytes have this SHA-256, in hexadecimal.
#[must_use]
pub fn archive_name(sha256: &str) -> String {
    format!("{BEGIN}{sha256}{END}")
}

/// The SHA-256 that an archive of this name must have, in hexadecimal; none where the name does not say.
#[must_use]
pub fn sha256_of_name(name: &str) -> Option<&str> {
    let sha256 = name.strip_prefix(BEGIN)?.strip_suffix(END)?;
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    (sha256.len() == 64 && sha256.bytes().all(is_hex)).then_some(sha256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_back_as_it_was_made() {
        let sha256 = "0123456789abcdef".repeat(4);
        assert_eq!(
            sha256_of_name(&archive_name(&sha256)),
            Some(sha256.as_str())
        );
    }

    #[test]
    fn any_other_name_says_nothing() {
        for name in [
            "",
            "eval-once-drvs-.tar",
            "eval-once-drvs-abc.tar",
            "x.tar",
            &archive_name(&"X".repeat(64)),
        ] {
            assert_eq!(sha256_of_name(name), None, "{name}");
        }
    }
}
