//! The name that a misspelt one was probably meant to be.

/// The most similar of the `known` names, if one is similar: at most a third of `name` differs.
#[must_use]
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(name, known), *known))
        .filter(|(distance, _)| *distance <= (name.chars().count() / 3).max(1))
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_similar_name_is_meant() {
        let known = ["x86_64-linux", "aarch64-linux"];
        assert_eq!(nearest("aarch64-linxu", &known), Some("aarch64-linux"));
        assert_eq!(nearest("x86_64-darwin", &known), None);
        assert_eq!(nearest("i686-linux", &known), None);
        assert_eq!(nearest("kvn", &["kvm", "big-parallel"]), Some("kvm"));
    }
}
