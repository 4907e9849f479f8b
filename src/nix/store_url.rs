//! The URL of a store that `nix copy` can read or write.

use std::fmt;
use std::path::Path;

use crate::secrets;

/// The URL of a store, without credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreUrl(String);

impl StoreUrl {
    /// Reads the URL of a store: `file://`, `s3://`, `http://`, `https://`, `ssh://`, `ssh-ng://` or any other that Nix knows, with
    /// parameters.
    ///
    /// # Errors
    /// It is no URL, or holds a secret. The sentence goes on after what it is about, and does not repeat them.
    pub fn parse(text: &str) -> Result<Self, String> {
        let is_scheme = |scheme: &str| {
            scheme.starts_with(|first: char| first.is_ascii_lowercase())
                && scheme
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+.-".contains(c))
        };
        let parts = text.split_once("://");
        let Some((_, rest)) = parts.filter(|(scheme, _)| is_scheme(scheme)) else {
            return Err(format!("is no URL of a store: {text:?}"));
        };
        if rest.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(format!("is no URL of a store: {text:?}"));
        }
        if let Some(home) = secrets::find(text) {
            return Err(format!("holds a secret: {}", home.advice()));
        }
        Ok(Self(text.to_owned()))
    }

    /// The URL of a binary cache in a folder, where every version of Nix takes its name as it is: no version takes a space or a quote in
    /// there, 2.26 decodes `%20`, and 2.8 and 2.34 do not (measured).
    #[must_use]
    pub fn of_folder(folder: &Path) -> Option<Self> {
        let is_plain =
            |letter: char| letter.is_ascii_alphanumeric() || "/._-+~@=:,".contains(letter);
        let name = folder.to_str().filter(|name| name.chars().all(is_plain))?;
        Self::parse(&format!("file://{name}")).ok()
    }

    /// The URL as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its scheme: `file`, `s3`, …
    #[must_use]
    pub fn scheme(&self) -> &str {
        self.0.split_once("://").map_or("", |(scheme, _)| scheme)
    }

    /// The names of its parameters, as they were written.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        let (_, parameters) = self.0.split_once('?').unwrap_or_default();
        let parameters = parameters.split('&').filter(|it| !it.is_empty());
        parameters.map(|it| it.split_once('=').map_or(it, |(name, _)| name))
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_whose_name_a_url_would_change_has_none() {
        let url = |folder: &str| StoreUrl::of_folder(Path::new(folder)).map(|url| url.0);
        assert_eq!(url("/a+b/c_d").as_deref(), Some("file:///a+b/c_d"));
        for folder in ["/a b", "/a'b", "/a%20b", "/a?b", "/a#b", "/\u{e9}"] {
            assert_eq!(url(folder), None, "{folder}");
        }
    }

    #[test]
    fn a_store_is_named_by_its_url_with_parameters() {
        for url in [
            "file:///srv/cache?compression=zstd",
            "s3://bucket?endpoint=http://127.0.0.1:9&region=eu-west-1",
            "https://cache.example.org",
            "http://localhost:5000/x",
            "ssh-ng://nix@builder",
            "ssh://builder?remote-store=local",
        ] {
            let store = StoreUrl::parse(url).unwrap();
            assert_eq!(store.as_str(), url);
        }
        assert_eq!(StoreUrl::parse("ssh-ng://a").unwrap().scheme(), "ssh-ng");
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for text in [
            "",
            "artefact",
            "/srv/cache",
            "://x",
            "file://",
            "a b://c",
            "s3://a b",
            "s3://a\nb",
            "1://x",
        ] {
            let wrong = StoreUrl::parse(text).unwrap_err();
            assert!(wrong.contains("no URL of a store"), "{text}: {wrong}");
        }
    }

    #[test]
    fn credentials_are_refused_and_not_repeated() {
        for url in [
            "https://user:secret@cache.example.org",
            "https://secret@cache.example.org/x",
            "s3://secret:secret@bucket",
            "ssh://user:secret@host",
            "https://cache.example.org?token=secret",
        ] {
            let wrong = StoreUrl::parse(url).unwrap_err();
            assert!(wrong.contains("holds a secret"), "{wrong}");
            assert!(
                !wrong.contains("https") && !wrong.contains("secret@"),
                "{wrong}"
            );
        }
    }
}
