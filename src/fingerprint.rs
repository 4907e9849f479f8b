//! Hashes as text: short names for things that have long ones, the same in every run, on every host and in every version.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// 32 hexadecimal characters of a hash of these parts.
pub fn fingerprint<P: AsRef<[u8]>>(parts: impl IntoIterator<Item = P>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        // With their lengths, so that no two lists are the same bytes.
        hash.update((part.as_ref().len() as u64).to_le_bytes());
        hash.update(part);
    }
    in_hex(&hash.finalize()[..16])
}

/// Bytes in hexadecimal.
#[must_use]
pub fn in_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        // (Writing into a string does not fail.)
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_that_of_the_list_and_not_of_its_letters() {
        assert_eq!(fingerprint(["a", "b"]), "cf6ab613e3942391f88ed698557e1680");
        assert_ne!(fingerprint(["ab"]), fingerprint(["a", "b"]));
        assert_eq!(fingerprint::<&str>([]).len(), 32);
    }
}
