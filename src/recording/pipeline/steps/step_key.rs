//! The keys by which a build knows our steps. Dashboards and retried recordings rely on them: the same record gives the same
//! key in every run and every version.

use crate::fingerprint::fingerprint;
use crate::nix::AttrPath;
use crate::recording::Target;

/// The key of a target's step: `drv-` and the hash of its `.drv`.
pub(in crate::recording) fn key(target: &Target) -> String {
    format!("drv-{}", target.drv.as_store_path().hash())
}

/// The key of an attribute's error step: `attr-` and 32 characters of a hash of its path, the same in every run.
pub(crate) fn error_key(attr: &AttrPath) -> String {
    let names = attr.names().iter().map(String::as_str);
    format!("attr-{}", fingerprint(names))
}

/// The key of the summary's step: `summary-` and 32 characters of a hash of the keys that it waits for, so that a retry of the
/// same recording gives the same key.
pub(super) fn summary_key<'a>(keys: impl IntoIterator<Item = &'a str>) -> String {
    format!("summary-{}", fingerprint(keys))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::pipeline::fixtures::path;

    #[test]
    fn keys_of_error_steps_are_the_same_in_every_version() {
        assert_eq!(
            error_key(&path(&["a", "b"])),
            "attr-cf6ab613e3942391f88ed698557e1680"
        );
        assert_ne!(error_key(&path(&["ab"])), error_key(&path(&["a", "b"])));
    }
}
