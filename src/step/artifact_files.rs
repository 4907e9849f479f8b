//! The files of a step's outputs that its key `artifacts` names.
//!
//! A link in an output may lead anywhere, and an artifact can be read by every reader of the build. So only what lies in the outputs
//! counts, and in what they refer to: all that whoever built them could have copied into them.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::drv_outputs::Outputs;
use super::links::main_output;
use crate::artifact_globs::{ArtifactGlob, GlobPart};
use crate::fingerprint::fingerprint;
use crate::nix::StorePath;

/// How many files and folders of the outputs are looked at, at most: whoever made them may have linked folders into folders.
pub(super) const LOOKED_AT_MOST: usize = 100_000;

/// How deep a folder may lie in an output.
pub(super) const DEEPEST: usize = 64;

/// How long the name of a folder may be, in bytes, and how much of it is the hash of one that is longer.
const NAME_AT_MOST: usize = 200;
const HASH: usize = 8;

/// A file of an output.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FoundFile {
    /// Its path by way of the output.
    pub(super) shown: PathBuf,
    /// The file itself, in the store, perhaps of another path there.
    pub(super) real: PathBuf,
}

/// What the globs have found in the outputs.
#[derive(Debug)]
pub(super) struct FoundFiles<'a> {
    /// The places in the store whose files count.
    readable: &'a HashSet<OsString>,
    /// The store's folder.
    store: PathBuf,
    /// The files by their names as artifacts.
    pub(super) files: BTreeMap<String, FoundFile>,
    /// How many links lead out of the store, or nowhere.
    pub(super) outside: usize,
    /// How many lead to another place in the store.
    pub(super) elsewhere: usize,
    /// How many names are no text.
    pub(super) unnameable: usize,
    /// How many folders lie too deep.
    pub(super) too_deep: usize,
    /// How many files and folders may still be looked at.
    pub(super) rest: usize,
}

impl<'a> FoundFiles<'a> {
    fn new(readable: &'a HashSet<OsString>) -> Self {
        Self {
            readable,
            store: PathBuf::new(),
            files: BTreeMap::new(),
            outside: 0,
            elsewhere: 0,
            unnameable: 0,
            too_deep: 0,
            rest: LOOKED_AT_MOST,
        }
    }
}

/// The places in the store, by their names there, whose files may become artifacts: these paths.
pub(super) fn places<'p>(paths: impl Iterator<Item = &'p StorePath>) -> HashSet<OsString> {
    paths
        .filter_map(|path| Some(path.as_path().file_name()?.to_owned()))
        .collect()
}

/// Finds the files that the globs name in all outputs of this target, as far as they lie in one of these places. Gives also the globs
/// that name none.
pub(super) fn find<'a>(
    globs: &'a [ArtifactGlob],
    outputs: &Outputs,
    target: &str,
    readable: &'a HashSet<OsString>,
) -> (FoundFiles<'a>, Vec<&'a ArtifactGlob>) {
    let mut found = FoundFiles::new(readable);
    let main = main_output(outputs);
    let mut idle = Vec::new();
    for glob in globs {
        let mut hits = 0;
        for (output, path) in outputs {
            // As the links to the outputs are named.
            let folder = if Some(path) == main {
                folder_of(target)
            } else {
                folder_of(&format!("{target}-{output}"))
            };
            hits += found.add(path, &folder, &glob.parts);
        }
        if hits == 0 {
            idle.push(glob);
        }
    }
    (found, idle)
}

/// The folder of a target's artifacts: its attribute path, without characters that have a meaning in a path. Where that is another name,
/// or one that is too long for a file, it ends with a part of the path's hash: else two targets could have the same.
fn folder_of(target: &str) -> String {
    let plain = |it: char| {
        if it.is_alphanumeric() || "._-+".contains(it) {
            it
        } else {
            '_'
        }
    };
    let name: String = target.chars().map(plain).collect();
    let name = match name.trim_start_matches('.') {
        "" => "outputs",
        name => name,
    };
    if name == target && name.len() <= NAME_AT_MOST {
        return name.to_owned();
    }
    let hash = fingerprint([target]);
    let mut end = name.len().min(NAME_AT_MOST - HASH - 1);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}-{}", &name[..end], &hash[..HASH])
}

/// A folder that is looked into.
struct LookedFolder<'a> {
    /// The folder itself.
    real: &'a Path,
    /// By way of the output.
    shown: &'a Path,
    /// Its files' folder as artifacts.
    artifact: &'a str,
}

impl FoundFiles<'_> {
    /// Adds the files that a glob names in an output, as artifacts in `folder`. Gives how many there are.
    fn add(&mut self, output: &StorePath, folder: &str, parts: &[GlobPart]) -> usize {
        let path = output.as_path();
        let Ok(store) = output.store().canonicalize() else {
            return 0;
        };
        self.store = store;
        let Some(real) = self.real(path) else {
            return 0;
        };
        if real.is_dir() {
            let place = LookedFolder {
                real: &real,
                shown: path,
                artifact: folder,
            };
            return self.below(&place, parts, &mut vec![real.clone()]);
        }
        // An output that is a file has a name all the same.
        match parts {
            [part] if part.matches(output.name()) && real.is_file() => {
                let shown = path.to_owned();
                self.files.insert(
                    format!("{folder}/{}", output.name()),
                    FoundFile { shown, real },
                );
                1
            }
            _ => 0,
        }
    }

    /// Where this path leads to; none where that is nothing that counts.
    fn real(&mut self, path: &Path) -> Option<PathBuf> {
        let real = path.canonicalize().ok();
        let in_store = real
            .as_ref()
            .and_then(|real| real.strip_prefix(&self.store).ok());
        let place = in_store.and_then(|it| it.components().next());
        match place {
            Some(place) if self.readable.contains(place.as_os_str()) => real,
            Some(_) => {
                self.elsewhere += 1;
                None
            }
            None => {
                self.outside += 1;
                None
            }
        }
    }

    /// The same for a folder. `above` are the folders that lead here: a link to one of them is not followed.
    fn below(
        &mut self,
        place: &LookedFolder<'_>,
        parts: &[GlobPart],
        above: &mut Vec<PathBuf>,
    ) -> usize {
        let Some((part, rest)) = parts.split_first() else {
            return 0;
        };
        let mut hits = 0;
        if *part == GlobPart::Folders && !rest.is_empty() {
            hits += self.below(place, rest, above);
        }
        for name in names(place.real, part) {
            if self.rest == 0 {
                break;
            }
            self.rest -= 1;
            let Ok(name) = name.into_string() else {
                self.unnameable += 1;
                continue;
            };
            if !part.matches(&name) {
                continue;
            }
            let Some(real) = self.real(&place.real.join(&name)) else {
                continue;
            };
            let artifact = format!("{}/{name}", place.artifact);
            let shown = place.shown.join(&name);
            if real.is_dir() {
                if above.contains(&real) {
                    continue;
                }
                if above.len() > DEEPEST {
                    self.too_deep += 1;
                    continue;
                }
                above.push(real.clone());
                let inner = LookedFolder {
                    real: &real,
                    shown: &shown,
                    artifact: &artifact,
                };
                // A folder that is named has everything below it.
                hits += match (part, rest) {
                    (GlobPart::Folders, _) => self.below(&inner, parts, above),
                    (_, []) => self.below(&inner, &[GlobPart::Folders], above),
                    (_, rest) => self.below(&inner, rest, above),
                };
                above.pop();
            } else if real.is_file() && rest.is_empty() {
                self.files.insert(artifact, FoundFile { shown, real });
                hits += 1;
            }
        }
        hits
    }
}

/// The names in a folder that a part of a glob may stand for, sorted.
fn names(folder: &Path, part: &GlobPart) -> Vec<OsString> {
    if let Some(name) = part.plain() {
        let path = folder.join(name);
        return match path.symlink_metadata() {
            Ok(_) => vec![name.into()],
            Err(_) => Vec::new(),
        };
    }
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const OUTPUT: &str = "0123456789abcdfghijklmnpqrsvwxyz-web";

    /// What a glob has found: the files, and how much was left out.
    #[derive(Debug)]
    struct Hits {
        files: Vec<String>,
        outside: usize,
        elsewhere: usize,
        too_deep: usize,
        rest: usize,
    }

    /// What the glob finds in an output with these files, links (with ` -> `) and folders (with a slash at the end); it refers to `other`.
    fn found(entries: &[&str], glob: &str) -> Hits {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().canonicalize().unwrap().join("store");
        fs::create_dir_all(&store).unwrap();
        fs::write(folder.path().join("secret"), "").unwrap();
        fs::write(store.join("other"), "").unwrap();
        fs::write(store.join("foreign"), "").unwrap();
        for entry in entries {
            let (name, to) = match entry.split_once(" -> ") {
                Some((name, to)) => (name, Some(to)),
                None => (*entry, None),
            };
            let path = match name {
                "" => store.join(OUTPUT),
                name => store.join(OUTPUT).join(name),
            };
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match to {
                Some(to) => symlink(to, path).unwrap(),
                None if name.ends_with('/') => fs::create_dir_all(path).unwrap(),
                None => fs::write(path, "").unwrap(),
            }
        }
        let output = store.join(OUTPUT);
        let output = StorePath::parse(output.to_str().unwrap()).unwrap();
        let readable = [OUTPUT, "other"].map(OsString::from).into();
        let mut found = FoundFiles {
            rest: 1_000,
            ..FoundFiles::new(&readable)
        };
        let glob = ArtifactGlob::parse(glob).unwrap();
        let hits = found.add(&output, "t", &glob.parts);
        let files: Vec<String> = found.files.keys().cloned().collect();
        assert!(hits >= files.len(), "{hits} {files:?}");
        Hits {
            files,
            outside: found.outside,
            elsewhere: found.elsewhere,
            too_deep: found.too_deep,
            rest: found.rest,
        }
    }

    #[test]
    fn a_glob_finds_files_below_the_output_and_whole_folders() {
        let entries = [
            "bin/a",
            "share/doc/x.html",
            "share/doc/deep/y.html",
            "share/.z",
        ];
        for (glob, expected) in [
            ("bin/a", &["t/bin/a"][..]),
            ("bin/?", &["t/bin/a"]),
            ("*/a", &["t/bin/a"]),
            (
                "share/doc/**",
                &["t/share/doc/deep/y.html", "t/share/doc/x.html"],
            ),
            (
                "share/doc",
                &["t/share/doc/deep/y.html", "t/share/doc/x.html"],
            ),
            (
                "**/*.html",
                &["t/share/doc/deep/y.html", "t/share/doc/x.html"],
            ),
            (
                "share/*",
                &[
                    "t/share/.z",
                    "t/share/doc/deep/y.html",
                    "t/share/doc/x.html",
                ],
            ),
            ("share/**/deep/*", &["t/share/doc/deep/y.html"]),
            ("lib/**", &[]),
            ("bin/a/b", &[]),
        ] {
            assert_eq!(found(&entries, glob).files, expected, "{glob}");
        }
    }

    #[test]
    fn a_link_is_followed_only_to_what_an_output_refers_to_and_never_in_circles() {
        let entries = [
            "a -> ../../secret",
            "b -> ../other",
            "f -> ../foreign",
            "s -> ..",
            "c -> nowhere",
            "d -> .",
            "e/f -> ..",
            "g -> /etc/passwd",
        ];
        let found = found(&entries, "**");
        assert_eq!(found.files, ["t/b"]);
        // The store itself lies in no path of it.
        assert_eq!((found.outside, found.elsewhere), (4, 1));
    }

    #[test]
    fn an_output_that_is_a_link_is_what_it_leads_to() {
        for (to, outside, elsewhere) in [
            ("../secret", 1, 0),
            ("/etc/passwd", 1, 0),
            (".", 1, 0),
            ("foreign", 0, 1),
        ] {
            let found = found(&[&format!(" -> {to}")], "*");
            assert!(found.files.is_empty(), "{to}: {found:?}");
            assert_eq!(
                (found.outside, found.elsewhere),
                (outside, elsewhere),
                "{to}"
            );
        }
        let found = found(&[" -> other"], "*");
        assert_eq!(found.files, [format!("t/{}", &OUTPUT[33..])]);
    }

    #[test]
    fn a_chain_of_folders_has_an_end() {
        let entries: Vec<String> = (0..200)
            .map(|n| format!("{n}/x -> ../{}", n + 1))
            .chain(["200/file".to_owned()])
            .collect();
        let entries: Vec<&str> = entries.iter().map(String::as_str).collect();
        let found = found(&entries, "0/**");
        assert_eq!((found.files.len(), found.too_deep), (0, 1));
    }

    #[test]
    fn links_that_multiply_are_looked_at_no_more_than_so_often() {
        let entries: Vec<String> = (0..30)
            .flat_map(|n| {
                [
                    format!("{n}/a -> ../{}", n + 1),
                    format!("{n}/b -> ../{}", n + 1),
                ]
            })
            .chain(["30/file".to_owned()])
            .collect();
        let entries: Vec<&str> = entries.iter().map(String::as_str).collect();
        assert_eq!(found(&entries, "0/**").rest, 0);
    }

    #[test]
    fn the_folder_of_a_target_is_one_plain_name() {
        assert_eq!(folder_of("packages.manual"), "packages.manual");
        // Each with a part of its hash, so that no two are the same.
        let odd = [
            ("tests.\"a/b *\"", "tests._a_b___-"),
            ("tests.\"a;b *\"", "tests._a_b___-"),
            ("tests._a_b___", "tests._a_b___"),
            ("\"*\"", "___-"),
            ("\"~\"", "___-"),
            ("..", "outputs-"),
            (".", "outputs-"),
            ("", "outputs-"),
        ];
        let folders = odd.map(|(target, begin)| {
            let folder = folder_of(target);
            assert!(folder.starts_with(begin), "{target}: {folder}");
            assert!(!folder.contains(['/', '*', '~', ';', '"']), "{folder}");
            folder
        });
        assert_eq!(HashSet::from(folders).len(), odd.len());
        let long = folder_of(&"\u{6587}".repeat(87));
        assert!(long.len() <= NAME_AT_MOST, "{long}");
        assert_ne!(long, folder_of(&"\u{6587}".repeat(88)));
    }
}
