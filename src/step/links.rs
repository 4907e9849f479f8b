//! The links to a step's outputs: their names, and whether they can be made.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use unix::unistd::{AccessFlags, access};

use crate::exit::{Class, Failure};
use crate::nix::StorePath;
use crate::state::can_link_in;

/// The link of one output: `result` for `out`, `result-dev` for `dev`, as Nix names them.
pub(super) fn link_of(base: &Path, output: &str) -> PathBuf {
    if output == "out" {
        return base.to_owned();
    }
    let mut name = base.as_os_str().to_owned();
    name.push("-");
    name.push(output);
    name.into()
}

/// The output whose link Nix has printed, and where it leads.
pub(super) fn read_link(base: &Path, link: &Path) -> Option<(String, StorePath)> {
    let name = link.file_name()?.as_bytes();
    let output = match name.strip_prefix(base.file_name()?.as_bytes())? {
        b"" => "out",
        suffix => std::str::from_utf8(suffix.strip_prefix(b"-")?).ok()?,
    };
    let target = link.read_link().ok()?;
    Some((output.to_owned(), StorePath::parse(target.to_str()?).ok()?))
}

/// How long the name of a link may be, in bytes: Nix makes it under a longer, temporary name first.
const NAME_AT_MOST: usize = 220;

/// Finds out why Nix did not make a link, by making one. [`check`] does not go so far: before the evaluation, a new link in the
/// checkout would be part of what is evaluated.
///
/// # Errors
/// No link can be made: 75 where the disk is full, else 64.
pub(super) fn probe(base: &Path) -> Result<(), Failure> {
    let folder = base.parent().unwrap_or(Path::new("/"));
    can_link_in(folder).map_err(|error| {
        let full =
            [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded].contains(&error.kind());
        let class = if full {
            Class::Infrastructure
        } else {
            Class::Config
        };
        Failure::new(
            class,
            format_args!("the out-link {} cannot be made: {error}", base.display()),
        )
    })
}

/// These outputs; `out` where none is known.
fn known_or_out<'a>(outputs: impl Iterator<Item = &'a str>) -> impl Iterator<Item = &'a str> {
    let mut outputs = outputs.peekable();
    let out = if outputs.peek().is_none() {
        Some("out")
    } else {
        None
    };
    outputs.chain(out)
}

/// Whether one of the links of these outputs leads to a path that may be of another store than `store`.
pub(super) fn lead_to_another_store<'a>(
    base: &Path,
    outputs: impl Iterator<Item = &'a str>,
    store: &Path,
) -> bool {
    known_or_out(outputs).any(|output| {
        let target = link_of(base, output).read_link().ok();
        let target = target.as_deref().and_then(Path::to_str);
        target
            .and_then(|target| StorePath::parse(target).ok())
            .is_some_and(|target| target.store() != store)
    })
}

/// Checks that the links of these outputs can be made: each is absent or a link into the store, and its folder can be written.
/// Nix itself builds first and fails on the link afterwards (measured).
///
/// Where the store is not known yet, any link passes; where the outputs are not, only `out` is checked.
///
/// # Errors
/// One of them cannot be made (64).
pub(super) fn check<'a>(
    base: &Path,
    outputs: impl Iterator<Item = &'a str>,
    store: Option<&Path>,
) -> Result<(), Failure> {
    let refuse = |link: &Path, why: &str, hint: &str| {
        Failure::new(
            Class::Config,
            format_args!("the out-link {} cannot be made: {why}", link.display()),
        )
        .hint(hint)
    };
    if store.is_some_and(|store| base.starts_with(store)) {
        return Err(refuse(
            base,
            "it would be inside the store",
            "set another path with `out-link`",
        ));
    }
    for output in known_or_out(outputs) {
        let link = link_of(base, output);
        if link
            .file_name()
            .is_some_and(|name| name.len() > NAME_AT_MOST)
        {
            return Err(refuse(
                &link,
                "its name is too long",
                "set a shorter one with `out-link`",
            ));
        }
        match link.symlink_metadata() {
            Ok(metadata) if !metadata.is_symlink() => {
                let hint = "remove it, or set another path with `out-link`";
                return Err(refuse(&link, "the path exists, and is not a link", hint));
            }
            Ok(_) => {
                let target = link.read_link().unwrap_or_default();
                if store.is_some_and(|store| !target.starts_with(store)) {
                    let why = format!(
                        "it exists, and leads to {}, which is not in the store",
                        target.display()
                    );
                    return Err(refuse(
                        &link,
                        &why,
                        "remove it, or set another path with `out-link`",
                    ));
                }
            }
            Err(_) => {}
        }
    }
    // Nix makes the folders that are missing.
    let folder = base
        .ancestors()
        .skip(1)
        .find(|folder| folder.symlink_metadata().is_ok());
    let folder = folder.unwrap_or(Path::new("/"));
    if !folder.is_dir() {
        return Err(refuse(
            base,
            &format!("{} is not a folder", folder.display()),
            "set another path with `out-link`",
        ));
    }
    if let Err(error) = access(folder, AccessFlags::W_OK | AccessFlags::X_OK) {
        let why = format!("{} is not writable: {}", folder.display(), error.desc());
        return Err(refuse(
            base,
            &why,
            "make the folder writable, or set `out-link: false`",
        ));
    }
    Ok(())
}

/// The store path that stands for all outputs where only one can be given: `out`, else the first.
#[must_use]
pub fn main_output(outputs: &BTreeMap<String, StorePath>) -> Option<&StorePath> {
    outputs.get("out").or_else(|| outputs.values().next())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const HASH: &str = "0123456789abcdfghijklmnpqrsvwxyz";

    #[test]
    fn a_link_has_the_name_of_its_output_and_leads_to_it() {
        let folder = tempfile::TempDir::new().unwrap();
        let base = folder.path().join("result");
        for output in ["out", "dev"] {
            symlink(
                format!("/s/store/{HASH}-x-{output}"),
                link_of(&base, output),
            )
            .unwrap();
        }
        assert_eq!(read_link(&base, &base).unwrap().0, "out");
        let (output, path) = read_link(&base, &folder.path().join("result-dev")).unwrap();
        assert_eq!(
            (output.as_str(), path.to_string()),
            ("dev", format!("/s/store/{HASH}-x-dev"))
        );
        assert_eq!(read_link(&base, &folder.path().join("other")), None);
    }

    #[test]
    fn a_file_in_the_place_of_any_link_is_refused() {
        let folder = tempfile::TempDir::new().unwrap();
        let base = folder.path().join("result");
        let check =
            |store: Option<&str>| check(&base, ["out", "dev"].into_iter(), store.map(Path::new));
        assert!(check(None).is_ok());
        symlink(format!("/s/store/{HASH}-x"), &base).unwrap();
        assert!(check(Some("/s/store")).is_ok());
        assert!(check(Some("/other/store")).is_err());
        std::fs::write(folder.path().join("result-dev"), "").unwrap();
        assert!(
            check(Some("/s/store"))
                .unwrap_err()
                .to_string()
                .contains("result-dev")
        );
    }

    #[test]
    fn a_folder_that_is_a_file_is_refused() {
        let folder = tempfile::TempDir::new().unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        let check = |base: &str| check(&folder.path().join(base), std::iter::empty(), None);
        assert!(check("new/deep/result").is_ok());
        assert!(check("file/result").is_err());
    }
}
