//! Short names for things that have long ones: the same in every run, on every host and in every version.

use sha2::{Digest as _, Sha256};

/// 32 hexadecimal characters of a hash of these texts.
pub(super) fn fingerprint<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        // With their lengths, so that no two lists are the same bytes.
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    hash.finalize()[..16]
        .iter()
        .fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_that_of_the_list_and_not_of_its_letters() {
        assert_eq!(fingerprint(["a", "b"]), "cf6ab613e3942391f88ed698557e1680");
        assert_ne!(fingerprint(["ab"]), fingerprint(["a", "b"]));
        assert_eq!(fingerprint([]).len(), 32);
    }
}
