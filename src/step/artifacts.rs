//! Uploading files of a step's outputs as artifacts of the build: what its key `artifacts` names.
//!
//! The agent gets a folder of links to the files, and a pattern of ours: no name from an output is ever read as a pattern. A link in an
//! output may lead anywhere, and an artifact can be read by every reader of the build: so what lies outside of the store is left out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::StepReporting;
use super::drv_outputs::Outputs;
use super::links::main_output;
use super::report::Reason;
use super::run::StepRun;
use crate::agent;
use crate::artifact_globs::{ArtifactGlob, GlobPart};
use crate::buildkite::agent as command;
use crate::buildkite::markdown::{code, inert};
use crate::counts::number;
use crate::exit::{Class, Classify as _, Failure};
use crate::nix::StorePath;
use crate::private;
use crate::supervise::PATIENCE;

/// How many files and folders of an output are looked at, at most: whoever made it may have linked folders into folders.
const LOOKED_AT_MOST: usize = 100_000;

/// The slowest upload that is waited for, in bytes per second, besides [`PATIENCE`].
const SLOWEST_UPLOAD: u64 = 1 << 20;

/// How many artifacts of a step are links in the annotation.
const LINKED_AT_MOST: usize = 5;

/// The annotation's context.
const CONTEXT: &str = "eval-once-artifacts";

/// What a failed upload means.
const MEANING: &str = "The build itself succeeded, and only the upload of its artifacts failed: a retry finds the outputs, and uploads.";

/// A file of an output.
#[derive(Debug, PartialEq, Eq)]
struct FoundFile {
    /// Its path by way of the output.
    shown: PathBuf,
    /// The file itself, in the store, perhaps of another path there.
    real: PathBuf,
}

/// What the globs have found in the outputs.
#[derive(Debug, Default)]
struct FoundFiles {
    /// The store's folder.
    store: PathBuf,
    /// The files by their names as artifacts.
    files: BTreeMap<String, FoundFile>,
    /// How many links lead out of the store, or nowhere.
    outside: usize,
    /// How many names are no text.
    unnameable: usize,
    /// How many files and folders may still be looked at.
    rest: usize,
}

/// Uploads what the step's key names; a glob that finds nothing is a warning. Nothing by hand, and where the step has built nothing.
///
/// # Errors
/// The upload failed (75); a program is missing (69); a signal asked us to end (128 + n).
pub(super) fn upload(
    step: &mut StepRun<'_>,
    outputs: &Outputs,
    reporting: &StepReporting,
) -> Result<(), Failure> {
    let globs = &step.request.artifacts;
    // Where only a program needs the outputs, or the recording has skipped the step, nothing was asked for.
    if globs.is_empty() || reporting.only_failures || step.reason == Some(Reason::Skipped) {
        return Ok(());
    }
    if reporting.job.is_none() {
        step.log
            .say("the artifacts are not uploaded: this is no Buildkite job");
        return Ok(());
    }
    let drv_name = || Some(step.drv.as_ref()?.name().to_owned());
    let target = step.request.name().or_else(drv_name).unwrap_or_default();
    let found = find(globs, outputs, &folder_of(&target), step);
    if found.files.is_empty() {
        return Ok(());
    }
    let folder = agent::folder(&reporting.temporary)?;
    let mut size = 0;
    for (name, file) in &found.files {
        size += file.real.metadata().map_or(0, |file| file.len());
        link(&file.real, &folder.path().join(name))
            .classify(Class::Infrastructure, || "cannot link the artifacts".into())?;
    }
    let line = command::upload_artifact(folder.path(), "**/*");
    let patience = PATIENCE + Duration::from_secs(size / SLOWEST_UPLOAD);
    let count = number(found.files.len(), "artifact");
    match agent::run_within(step.supervisor, &line, patience, || ())? {
        Some((finished, _)) if finished.ending.success() => {}
        ran => {
            let why = match ran {
                Some((_, stderr)) => agent::last_line(&stderr).unwrap_or_default().to_owned(),
                None => format!("it took longer than {} s", patience.as_secs()),
            };
            return Err(Failure::new(
                Class::Infrastructure,
                format_args!("the build succeeded, and the upload of {count} failed: {why}"),
            )
            .meaning(MEANING)
            .called("was built, and its artifacts are not uploaded")
            .hint(
                "check that this host can reach Buildkite, and retry: nothing is built again here",
            ));
        }
    }
    step.log.say(format_args!("uploaded {count} of {target}"));
    annotate(step, &target, &found.files, folder.path())
}

/// Adds links to the artifacts to the annotation of the build. One that is refused is only a warning: the artifacts are there.
fn annotate(
    step: &mut StepRun<'_>,
    target: &str,
    files: &BTreeMap<String, FoundFile>,
    folder: &Path,
) -> Result<(), Failure> {
    let file = folder.join("annotation.md");
    agent::write(&file, &body(target, files))?;
    let line = command::annotate(CONTEXT, "info", true, &file);
    let (finished, stderr) = agent::run(step.supervisor, &line)?;
    if !finished.ending.success() {
        step.log.warn(format_args!(
            "the build's annotation does not list the artifacts: {}",
            agent::last_line(&stderr).unwrap_or_default()
        ));
    }
    Ok(())
}

/// The lines of the annotation: each file's path in the store, as a link to the artifact.
fn body(target: &str, files: &BTreeMap<String, FoundFile>) -> String {
    let mut text = format!("Artifacts of {}:\n\n", code(target));
    for (name, file) in files.iter().take(LINKED_AT_MOST) {
        let path = code(&file.shown.to_string_lossy());
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
        let line = if name.chars().all(is_plain) {
            format!("- <a href=\"artifact://{name}\">{path}</a>\n")
        } else {
            format!("- {path}: {}\n", inert(name))
        };
        text.push_str(&line);
    }
    match files.len().saturating_sub(LINKED_AT_MOST) {
        0 => {}
        more => {
            let _ = writeln!(text, "- and {more} more");
        }
    }
    text + "\n"
}

/// Makes a link to a file, and the folders above the link.
fn link(real: &Path, at: &Path) -> std::io::Result<()> {
    if let Some(folder) = at.parent() {
        private::make_folders(folder)?;
    }
    symlink(real, at)
}

/// The folder of a target's artifacts: its attribute path, without characters that have a meaning in a path.
fn folder_of(target: &str) -> String {
    let plain = |it: char| {
        if it.is_alphanumeric() || "._-+".contains(it) {
            it
        } else {
            '_'
        }
    };
    let name: String = target.chars().take(150).map(plain).collect();
    match name.trim_start_matches('.') {
        "" => "outputs".to_owned(),
        name => name.to_owned(),
    }
}

/// Finds the files of all outputs, and warns of what is left out.
fn find(globs: &[ArtifactGlob], outputs: &Outputs, folder: &str, step: &StepRun<'_>) -> FoundFiles {
    let mut found = FoundFiles {
        rest: LOOKED_AT_MOST,
        ..FoundFiles::default()
    };
    let main = main_output(outputs);
    for glob in globs {
        let mut hits = 0;
        for (output, path) in outputs {
            // As the links to the outputs are named.
            let folder = if Some(path) == main {
                folder.to_owned()
            } else {
                format!("{folder}-{output}")
            };
            hits += found.add(path, &folder, &glob.parts);
        }
        if hits == 0 {
            step.log.warn(format_args!(
                "no file of the outputs matches {:?} of `artifacts`",
                glob.text
            ));
        }
    }
    let FoundFiles {
        outside,
        unnameable,
        rest,
        ..
    } = found;
    for (count, why) in [
        (outside, "leads out of the store, or nowhere"),
        (unnameable, "has a name that is not UTF-8"),
    ] {
        if count > 0 {
            step.log.warn(format_args!(
                "{} of the outputs is left out of the artifacts: it {why}",
                number(count, "file")
            ));
        }
    }
    if rest == 0 {
        step.log.warn(format_args!(
            "only {LOOKED_AT_MOST} files of the outputs are looked at: name a folder in `artifacts`"
        ));
    }
    found
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

impl FoundFiles {
    /// Adds the files that a glob names in an output, as artifacts in `folder`. Gives how many there are.
    fn add(&mut self, output: &StorePath, folder: &str, parts: &[GlobPart]) -> usize {
        let path = output.as_path();
        let (Ok(real), Ok(store)) = (path.canonicalize(), output.store().canonicalize()) else {
            return 0;
        };
        self.store = store;
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
            [part] if part.matches(output.name()) => {
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
            let real = place.real.join(&name).canonicalize().ok();
            let Some(real) = real.filter(|real| real.starts_with(&self.store)) else {
                self.outside += 1;
                continue;
            };
            let artifact = format!("{}/{name}", place.artifact);
            let shown = place.shown.join(&name);
            if real.is_dir() {
                if above.contains(&real) {
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
fn names(folder: &Path, part: &GlobPart) -> Vec<std::ffi::OsString> {
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

    const OUTPUT: &str = "0123456789abcdfghijklmnpqrsvwxyz-web";

    /// What the glob finds in an output with these files, links (with ` -> `) and folders (with a slash at the end).
    fn found(entries: &[&str], glob: &str) -> (Vec<String>, FoundFiles) {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().canonicalize().unwrap().join("store");
        fs::create_dir_all(store.join(OUTPUT)).unwrap();
        fs::write(folder.path().join("secret"), "").unwrap();
        fs::write(store.join("other"), "").unwrap();
        for entry in entries {
            let (name, to) = match entry.split_once(" -> ") {
                Some((name, to)) => (name, Some(to)),
                None => (*entry, None),
            };
            let path = store.join(OUTPUT).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match to {
                Some(to) => symlink(to, path).unwrap(),
                None if name.ends_with('/') => fs::create_dir_all(path).unwrap(),
                None => fs::write(path, "").unwrap(),
            }
        }
        let output = store.join(OUTPUT);
        let output = StorePath::parse(output.to_str().unwrap()).unwrap();
        let mut found = FoundFiles {
            rest: 1_000,
            ..FoundFiles::default()
        };
        let glob = ArtifactGlob::parse(glob).unwrap();
        let hits = found.add(&output, "t", &glob.parts);
        let names: Vec<String> = found.files.keys().cloned().collect();
        assert!(hits >= names.len(), "{hits} {names:?}");
        (names, found)
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
            assert_eq!(found(&entries, glob).0, expected, "{glob}");
        }
    }

    #[test]
    fn a_link_is_followed_only_in_the_store_and_never_in_circles() {
        let entries = [
            "a -> ../../secret",
            "b -> ../other",
            "c -> nowhere",
            "d -> .",
            "e/f -> ..",
            "g -> /etc/passwd",
        ];
        let (names, found) = found(&entries, "**");
        assert_eq!(names, ["t/b"]);
        assert_eq!(found.outside, 3);
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
        let (_, found) = found(&entries, "0/**");
        assert_eq!(found.rest, 0);
    }

    #[test]
    fn the_folder_of_a_target_is_one_plain_name() {
        for (target, expected) in [
            ("packages.manual", "packages.manual"),
            ("tests.\"a/b *\"", "tests._a_b___"),
            ("..", "outputs"),
            ("", "outputs"),
        ] {
            assert_eq!(folder_of(target), expected);
        }
    }

    #[test]
    fn only_a_plain_name_is_a_link_and_no_path_is_markup() {
        let file = |shown: &str| FoundFile {
            shown: shown.into(),
            real: PathBuf::new(),
        };
        let files = [
            ("t/a.html", file("/s/x/a.html")),
            ("t/\"><b>", file("/s/x/\"><b>")),
        ];
        let mut files: BTreeMap<String, FoundFile> =
            files.map(|(name, file)| (name.to_owned(), file)).into();
        let text = body("t`", &files);
        assert!(text.contains("<a href=\"artifact://t/a.html\">"), "{text}");
        assert!(
            !text.contains("<b>") && text.matches("href").count() == 1,
            "{text}"
        );
        for n in 0..9 {
            files.insert(format!("t/{n}"), file("/s/x"));
        }
        assert!(body("t", &files).ends_with("- and 6 more\n\n"));
    }
}
