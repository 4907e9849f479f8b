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

/// Whether `path`, by its letters, lies in `folder` once all links are followed. What is not there yet lies where its parent
/// does.
#[must_use]
pub fn is_inside(path: &Path, folder: &Path) -> bool {
    let Ok(folder) = folder.canonicalize() else {
        return false;
    };
    let path = without_dots(path);
    for ancestor in path.ancestors() {
        match ancestor.canonicalize() {
            Ok(real) => return real.starts_with(&folder),
            // A link to nowhere may lead anywhere later.
            Err(_) if ancestor.is_symlink() => return false,
            Err(_) => {}
        }
    }
    false
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
        for inside in ["", "new/file", "deep/er", "link/x"] {
            assert!(is_inside(&folder.join(inside), &folder), "{inside}");
        }
        // By its letters, the last one is beside the folder, though the kernel would follow the link first.
        for outside in ["..", "out/x", "dangling", "link/../../x"] {
            assert!(!is_inside(&folder.join(outside), &folder), "{outside}");
        }
    }
}
