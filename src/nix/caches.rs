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
    fn the_caches_are_read_from_the_settings() {
        let config = "store = auto\nsubstituters = https://a https://b\nsubstitute = true\n";
        assert_eq!(substituters(config).unwrap(), ["https://a", "https://b"]);
        assert_eq!(substituters("substituters = \n").unwrap(), [""; 0]);
        assert_eq!(substituters("nothing"), None);
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
