//! Paths by their letters, and where they really lead.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

/// Which file, or link, is at a path: it tells one from an earlier one of its name. (A number alone is given to the next file at once;
/// so the moment of its last change is part of it, which for a file in a store is that at which it came.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    inode: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl FileId {
    /// That of what is at `path` now; none where nothing is there, or it cannot be looked at.
    #[must_use]
    pub fn at(path: &Path) -> Option<Self> {
        let metadata = path.symlink_metadata().ok()?;
        Some(Self {
            inode: metadata.ino(),
            seconds: metadata.ctime(),
            nanoseconds: metadata.ctime_nsec(),
        })
    }
}

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

/// How many links are followed in one path: more than Nix follows, which gives up after 1,024, or the system, after 40. Such a path leads
/// nowhere.
const LINKS_AT_MOST: u32 = 2_000;

/// Whether each folder that the system passes on its `way` from `folder`, which is `top` or below it, is below `top` as well, and where
/// it ends: so that nothing outside of `top` decides where it leads. A way that leads nowhere stays; one that is absolute does not. The
/// folders of `top` itself may be links.
#[must_use]
pub fn stays_below(top: &Path, folder: &Path, way: &Path) -> bool {
    let mut links = LINKS_AT_MOST;
    is_way_below(top, &mut folder.to_owned(), way, &mut links)
}

/// Whether `path` lies in `folder` or is it, and nothing outside of that decides where it leads, as [`stays_below`] says. How it comes to
/// `folder` does not matter.
#[must_use]
pub fn stays_inside(path: &Path, folder: &Path) -> bool {
    // Nix takes its dots by their letters.
    let path = without_dots(path);
    let ancestors: Vec<&Path> = path.ancestors().collect();
    let is_folder = |path: &&&Path| {
        let real = path.canonicalize();
        real.is_ok_and(|real| folder.canonicalize().is_ok_and(|folder| folder == real))
    };
    let first = ancestors.iter().rev().find(is_folder);
    let way = first.and_then(|first| path.strip_prefix(first).ok());
    way.is_some_and(|way| stays_below(folder, folder, way))
}

/// Goes on from `at`; `links` is how many more are followed.
fn is_way_below(top: &Path, at: &mut PathBuf, way: &Path, links: &mut u32) -> bool {
    way.components().all(|part| match part {
        Component::CurDir => true,
        Component::ParentDir => at != top && at.pop(),
        Component::Normal(name) => {
            let next = at.join(name);
            match next.read_link() {
                Ok(_) if *links == 0 => true,
                Ok(target) => {
                    *links -= 1;
                    is_way_below(top, at, &target, links)
                }
                Err(_) => {
                    *at = next;
                    true
                }
            }
        }
        Component::RootDir | Component::Prefix(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_way_is_gone_as_the_system_goes_it() {
        let outer = tempfile::TempDir::new().unwrap();
        let outer = outer.path();
        let top = outer.join("top");
        std::fs::create_dir_all(top.join("a/b")).unwrap();
        std::fs::create_dir(outer.join("outside")).unwrap();
        for (target, link) in [
            ("../..", "top/a/b/up"),
            ("a/b", "top/b"),
            ("../top/a", "outside/in"),
            ("itself", "top/itself"),
        ] {
            symlink(target, outer.join(link)).unwrap();
        }
        for (way, stays) in [
            ("b/file", true),
            ("b/../b", true),
            ("a/b/up/a", true),
            ("nowhere/at/all", true),
            ("itself", true),
            ("itself/x", true),
            ("", true),
            // By its letters it would be below.
            ("a/b/up/../outside", false),
            ("b/up/..", false),
            ("..", false),
            // It leads back, but something else decides where.
            ("../outside/in", false),
            ("../top/a", false),
            ("/", false),
        ] {
            assert_eq!(stays_below(&top, &top, Path::new(way)), stays, "{way}");
        }
        symlink(&top, outer.join("alias")).unwrap();
        for (path, stays) in [
            ("alias/a/b", true),
            ("alias/a/../b/file", true),
            ("alias", true),
            ("top/a", true),
            ("alias/a/b/up/a/x", true),
            ("outside/in", false),
            ("outside", false),
        ] {
            assert_eq!(stays_inside(&outer.join(path), &top), stays, "{path}");
        }
        for at in 0..50 {
            symlink(format!("l{}", at + 1), top.join(format!("l{at}"))).unwrap();
        }
        symlink("../outside", top.join("l50")).unwrap();
        assert!(!stays_below(&top, &top, Path::new("l0")));
        assert!(stays_below(&top, &top.join("a/b"), Path::new("../..")));
        assert!(!stays_below(&top, &top.join("a/b"), Path::new("../../..")));
    }

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
