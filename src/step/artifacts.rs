//! Uploading files of a step's outputs as artifacts of the build: what its key `artifacts` names.
//!
//! The agent gets a folder of links to the files, and a pattern of ours: no name from an output is ever read as a pattern.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use super::StepReporting;
use super::artifact_files::{DEEPEST, FoundFile, FoundFiles, LOOKED_AT_MOST, find, places};
use super::drv_outputs::Outputs;
use super::report::Reason;
use super::run::StepRun;
use crate::agent;
use crate::artifact_globs::ArtifactGlob;
use crate::buildkite::agent as command;
use crate::buildkite::markdown::{code, inert};
use crate::counts::{mebibytes, number};
use crate::exit::{Class, Classify as _, Failure};
use crate::log::Log;
use crate::nix::StorePath;
use crate::private;
use crate::supervise::PATIENCE;

/// The most bytes of a step's artifacts together: a build can link one large file a thousand times.
const BYTES_AT_MOST: u64 = 5 << 30;

/// The slowest upload that is waited for, in bytes per second, besides [`PATIENCE`].
const SLOWEST_UPLOAD: u64 = 1 << 20;

/// How many artifacts of a step are links in the annotation.
const LINKED_AT_MOST: usize = 5;

/// The annotation's context.
const CONTEXT: &str = "eval-once-artifacts";

/// What a failed upload means.
const MEANING: &str = "The build itself succeeded, and only the upload of its artifacts failed: a retry finds the outputs, and uploads.";

/// Uploads what the step's key names; a glob that finds nothing is a warning. Nothing by hand, and where the step has built nothing.
///
/// # Errors
/// The upload failed (75); a program is missing (69); a signal asked us to end (128 + n).
pub(super) fn upload(
    step: &mut StepRun<'_>,
    outputs: &Outputs,
    reporting: &StepReporting,
) -> Result<(), Failure> {
    let globs = step.request.artifacts.clone();
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
    let (files, size) = files(step, &globs, outputs, &target)?;
    if files.is_empty() {
        return Ok(());
    }
    let folder = agent::folder(&reporting.temporary)?;
    let links = folder.path().join("files");
    for (name, file) in &files {
        link(&file.real, &links.join(name))
            .classify(Class::Infrastructure, || "cannot link the artifacts".into())?;
    }
    let line = command::upload_artifact(&links, "**/*");
    let patience = PATIENCE + Duration::from_secs(size / SLOWEST_UPLOAD);
    let count = number(files.len(), "artifact");
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
    annotate(step, &target, &files, folder.path())
}

/// The files that the globs name, by their names as artifacts, and how many bytes they have; says what is left out.
fn files(
    step: &mut StepRun<'_>,
    globs: &[ArtifactGlob],
    outputs: &Outputs,
    target: &str,
) -> Result<(BTreeMap<String, FoundFile>, u64), Failure> {
    let own = places(outputs.values());
    let (mut found, mut idle) = find(globs, outputs, target, &own);
    let readable;
    if found.elsewhere > 0 {
        // Outputs that are joined from others consist of links to these.
        let paths: Vec<&StorePath> = outputs.values().collect();
        let closure = step.store.closure(step.supervisor, &paths)?;
        if let Some(closure) = closure {
            readable = places(closure.iter());
            (found, idle) = find(globs, outputs, target, &readable);
        }
    }
    for glob in idle {
        step.log.warn(format_args!(
            "no file of the outputs matches {:?} of `artifacts`",
            glob.text
        ));
    }
    say_left_out(&found, &step.log);
    let mut size = 0;
    let mut too_large = 0;
    let mut files = found.files;
    files.retain(|_, file| {
        let file = file.real.metadata().map_or(0, |file| file.len());
        let fits = size + file <= BYTES_AT_MOST;
        if fits {
            size += file;
        } else {
            too_large += 1;
        }
        fits
    });
    if too_large > 0 {
        step.log.warn(format_args!(
            "{} of the outputs is left out of the artifacts: all together would have more than {}",
            number(too_large, "file"),
            mebibytes(BYTES_AT_MOST)
        ));
    }
    Ok((files, size))
}

/// Warns of what is left out.
fn say_left_out(found: &FoundFiles<'_>, log: &Log) {
    let too_deep = format!("it lies more than {DEEPEST} folders deep");
    for (count, what, why) in [
        (
            found.outside + found.elsewhere,
            "file",
            "it leads out of the outputs and what they refer to, or nowhere",
        ),
        (found.unnameable, "file", "it has a name that is not UTF-8"),
        (found.too_deep, "folder", too_deep.as_str()),
    ] {
        if count > 0 {
            log.warn(format_args!(
                "{} of the outputs is left out of the artifacts: {why}",
                number(count, what)
            ));
        }
    }
    if found.rest == 0 {
        log.warn(format_args!(
            "only {LOOKED_AT_MOST} files of the outputs are looked at: name a folder in `artifacts`"
        ));
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

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
