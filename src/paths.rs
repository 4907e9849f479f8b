//! Paths by their letters, and where they really lead.

use std::path::{Component, Path, PathBuf};

/// `path` without `.` and `..`, by its letters: whatever is linked on the way. So Nix and the agent read paths.
#[must_use]
pub fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

/// The part of `path` below `folder`, once all links in both are followed; none if `path` is outside. A path that does not exist yet
/// is where its parent is.
#[must_use]
pub fn below(path: &Path, folder: &Path) -> Option<PathBuf> {
    let folder = folder.canonicalize().ok()?;
    let path = without_dots(path);
    for ancestor in path.ancestors() {
        match ancestor.canonicalize() {
            Ok(real) => {
                let real = real.strip_prefix(&folder).ok()?;
                // Joined with nothing, a path gets a slash at its end, which what is written would keep.
                let rest = path.strip_prefix(ancestor).ok()?;
                return Some(real.components().chain(rest.components()).collect());
            }
            // A link to nowhere may lead anywhere later.
            Err(_) if ancestor.is_symlink() => return None,
            Err(_) => {}
        }
    }
    None
}

/// Whether `path` lies below `folder`, as [`below`] says, or is it.
#[must_use]
pub fn is_inside(path: &Path, folder: &Path) -> bool {
    below(path, folder).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn dots_are_taken_by_their_letters() {
        for (path, plain) in [("/a/./b/../c", "/a/c"), ("/../a", "/a"), ("/a//b/", "/a/b")] {
            assert_eq!(without_dots(Path::new(path)), Path::new(plain));
        }
    }

    #[test]
    fn what_leads_out_is_not_inside() {
        let outer = tempfile::TempDir::new().unwrap();
        let folder = outer.path().join("folder");
        std::fs::create_dir_all(folder.join("deep/er")).unwrap();
        symlink(folder.join("deep/er"), folder.join("link")).unwrap();
        symlink(outer.path(), folder.join("out")).unwrap();
        symlink("/nowhere", folder.join("dangling")).unwrap();
        for (inside, real) in [
            ("", ""),
            ("new/file", "new/file"),
            ("deep/er", "deep/er"),
            ("link/x", "deep/er/x"),
        ] {
            // By its letters: `PathBuf` takes a slash at the end for none.
            let found = below(&folder.join(inside), &folder).map(PathBuf::into_os_string);
            assert_eq!(found, Some(real.into()), "{inside}");
        }
        // The last one is outside as a text, although the kernel would follow the link first.
        for outside in ["..", "out/x", "dangling", "link/../../x"] {
            assert!(!is_inside(&folder.join(outside), &folder), "{outside}");
        }
    }
}
