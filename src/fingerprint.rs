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

/// A SHA-256 in hexadecimal, as Buildkite has it of an artifact.
#[must_use]
pub fn sha256(content: &[u8]) -> String {
    in_hex(&Sha256::digest(content))
}

/// What only the holder of `key` can make of these parts: an HMAC with SHA-256 (RFC 2104), in hexadecimal.
pub fn seal<P: AsRef<[u8]>>(key: &[u8], parts: impl IntoIterator<Item = P>) -> String {
    const BLOCK: usize = 64;
    let mut padded = [0; BLOCK];
    if key.len() > BLOCK {
        padded[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        padded[..key.len()].copy_from_slice(key);
    }
    let mut inner = Sha256::new_with_prefix(padded.map(|byte| byte ^ 0x36));
    for part in parts {
        let part = part.as_ref();
        inner.update((part.len() as u64).to_le_bytes());
        inner.update(part);
    }
    let mut outer = Sha256::new_with_prefix(padded.map(|byte| byte ^ 0x5c));
    outer.update(inner.finalize());
    in_hex(&outer.finalize())
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

    /// The expected values are Python's: `hmac.new(key, struct.pack("<Q", 4) + b"plan", "sha256").hexdigest()`.
    #[test]
    fn a_seal_is_an_hmac_whatever_the_length_of_its_key() {
        assert_eq!(
            seal(b"key", ["plan"]),
            "ef057d778c45820a339165e777c27c3b8675c546d74f9cdfd30a8990f77ba39a"
        );
        assert_eq!(
            seal(&[7; 64], ["plan"]),
            "fe38655d22b9c4c7870445c57aba3833b9c9c9343fe6ecdfd2ac50e28a731be4"
        );
        assert_eq!(
            seal(&[7; 200], ["plan"]),
            "810e710f9bbfc7580ad72aa173cf4d98d2416c25d1d26e53738ae2445a37a242"
        );
        assert_ne!(seal(b"key", ["ab"]), seal(b"key", ["a", "b"]));
    }

    #[test]
    fn a_fingerprint_is_that_of_the_list_and_not_of_its_letters() {
        assert_eq!(fingerprint(["a", "b"]), "cf6ab613e3942391f88ed698557e1680");
        assert_ne!(fingerprint(["ab"]), fingerprint(["a", "b"]));
        assert_eq!(fingerprint::<&str>([]).len(), 32);
    }
}
