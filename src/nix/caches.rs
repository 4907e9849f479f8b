//! Binary caches: which Nix would ask, and which it had better not ask again.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::StorePath;

/// The caches that Nix would ask, from what `nix show-config` prints.
#[must_use]
pub fn substituters(config: &str) -> Option<Vec<String>> {
    let caches = setting(config, "substituters")?;
    Some(caches.split_whitespace().map(str::to_owned).collect())
}

/// The value of a setting, from what `nix show-config` prints.
#[must_use]
pub fn setting<'c>(config: &'c str, name: &str) -> Option<&'c str> {
    config
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(" ="))
        .map(str::trim)
}

/// Whether Nix takes everything from a cache, signed or not: its URL says `trusted=true`.
#[must_use]
pub fn is_trusted(cache: &str) -> bool {
    let (_, parameters) = cache.split_once('?').unwrap_or_default();
    let mut parameters = parameters.split('&');
    parameters.any(|one| ["trusted=true", "trusted=yes", "trusted=1"].contains(&one))
}

/// What Nix has said about a cache that it cannot use; none where it has used it. A try that is repeated does not count.
#[must_use]
pub fn complaint(stderr: &str, cache: &str) -> Option<String> {
    let (url, _parameters) = cache.split_once('?').unwrap_or((cache, ""));
    let url = url.trim_end_matches('/');
    let names_it = |line: &&str| {
        line.match_indices(url).any(|(at, _)| {
            let next = line[at + url.len()..].chars().next();
            next.is_none_or(|next| ['/', '\'', '"', '?'].contains(&next))
        })
    };
    let said = stderr
        .lines()
        .map(str::trim)
        .filter(names_it)
        .find(|line| {
            ["warning: ", "error: "]
                .iter()
                .any(|it| line.starts_with(it))
                && !["; retrying in", "; using cached version"]
                    .iter()
                    .any(|it| line.contains(it))
        })?;
    let said = said.trim_start_matches("warning: ");
    Some(said.trim_start_matches("error: ").to_owned())
}

/// Splits caches into the reachable ones and those to which one of the `unreachable` files belongs.
#[must_use]
pub fn part(caches: Vec<String>, unreachable: &BTreeSet<String>) -> (Vec<String>, Vec<String>) {
    caches.into_iter().partition(|cache| {
        let (url, _parameters) = cache.split_once('?').unwrap_or((cache, ""));
        let url = url.trim_end_matches('/');
        !unreachable.iter().any(|file| {
            file.strip_prefix(url)
                .is_some_and(|rest| rest.starts_with('/'))
        })
    })
}

/// The file that says that a cache in a folder of this host has `path`; none for any other cache.
#[must_use]
pub fn file_in_cache(cache: &str, path: &StorePath) -> Option<PathBuf> {
    Some(folder_of_cache(cache)?.join(format!("{}.narinfo", path.hash())))
}

/// The folder of a cache that is one of this host; none for any other cache.
#[must_use]
pub fn folder_of_cache(cache: &str) -> Option<PathBuf> {
    let path = cache.strip_prefix("file://")?;
    let (folder, _parameters) = path.split_once('?').unwrap_or((path, ""));
    Some(PathBuf::from(folder))
}

/// The folder of the stores that a cache is for, from its `nix-cache-info`.
#[must_use]
pub fn store_folder(info: &str) -> Option<&str> {
    let mut values = info.lines().filter_map(|it| it.strip_prefix("StoreDir:"));
    values.next_back().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_cache_that_a_file_belongs_to_is_left_out() {
        let caches = [
            "http://10.0.0.1",
            "http://10.0.0.10/",
            "http://10.0.0.10:8080?priority=10",
            "file:///c",
        ];
        let unreachable = ["http://10.0.0.10/nix-cache-info".to_owned()].into();
        let (left, out) = part(caches.map(str::to_owned).to_vec(), &unreachable);
        assert_eq!(out, ["http://10.0.0.10/"]);
        assert_eq!(left.len(), 3);
        let unreachable = ["http://10.0.0.10:8080/x.narinfo".to_owned()].into();
        assert_eq!(
            part(left, &unreachable).1,
            ["http://10.0.0.10:8080?priority=10"]
        );
    }

    #[test]
    fn what_nix_says_about_a_cache_is_its_last_word_on_that_one() {
        let said = "warning: error: unable to download 'http://h:1/nix-cache-info': Could not connect; retrying in 323 ms\n\
                    disabling binary cache 'http://h:1' for 60 seconds\n\
                    warning: unable to download 'http://h:1/nix-cache-info': Could not connect to server (7)\n\
                    warning: 'http://h:8181/none' does not appear to be a binary cache\n\
                    warning: ignoring untrusted substituter 'http://u', you are not a trusted user.\n";
        for (cache, expected) in [
            (
                "http://h:1/",
                Some(
                    "unable to download 'http://h:1/nix-cache-info': Could not connect to server (7)",
                ),
            ),
            (
                "http://h:8181/none?priority=1",
                Some("'http://h:8181/none' does not appear to be a binary cache"),
            ),
            (
                "http://u",
                Some("ignoring untrusted substituter 'http://u', you are not a trusted user."),
            ),
            ("http://h:818", None),
            ("http://other", None),
        ] {
            assert_eq!(complaint(said, cache).as_deref(), expected, "{cache}");
        }
    }

    #[test]
    fn a_cache_is_trusted_where_its_url_says_so() {
        for (cache, trusted) in [
            ("https://c", false),
            ("https://c?trusted=true", true),
            ("file:///c?priority=1&trusted=1", true),
            ("https://c?trusted=false", false),
            ("https://c/trusted=true", false),
        ] {
            assert_eq!(is_trusted(cache), trusted, "{cache}");
        }
    }

    #[test]
    fn the_caches_are_read_from_the_settings() {
        let config = "store = auto\nsubstituters = https://a https://b\nsubstitute = true\n";
        assert_eq!(substituters(config).unwrap(), ["https://a", "https://b"]);
        assert_eq!(substituters("substituters = \n").unwrap(), [""; 0]);
        assert_eq!(substituters("nothing"), None);
    }

    #[test]
    fn a_cache_says_for_which_stores_it_is() {
        let info = "StoreDir: /nix/store\nWantMassQuery: 1\n";
        assert_eq!(store_folder(info), Some("/nix/store"));
        assert_eq!(store_folder("Priority: 30\n"), None);
    }

    #[test]
    fn a_cache_in_a_folder_is_looked_at_as_a_folder() {
        let path = StorePath::parse("/s/0123456789abcdfghijklmnpqrsvwxyz-x").unwrap();
        let file = file_in_cache("file:///c?compression=none", &path).unwrap();
        assert_eq!(
            file,
            PathBuf::from("/c/0123456789abcdfghijklmnpqrsvwxyz.narinfo")
        );
        assert_eq!(file_in_cache("https://c", &path), None);
    }
}
