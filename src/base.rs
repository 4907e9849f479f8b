//! `eval-once base`: fetches what an earlier build has recorded, and how its targets stand, for the key `base` of a recording.
//!
//! Whatever fails is a warning: a recording without a base skips nothing because of one, which costs time and is never wrong.

use std::fs;
use std::path::{Path, PathBuf};

use crate::counts::number;
use crate::exit::{Class, Classify as _, Failure};
use crate::keys::refuse;
use crate::log::Log;
use crate::outcomes::{OUTCOMES, Outcomes};
use crate::private;
use crate::recording::pipeline::document::Recorded;
use crate::recording::upload::DOCUMENT;
use crate::rest::{ApiToken, Network, PipelineName, Rest, RestArtifact, RestBuild};

/// How many of the newest builds of a branch are looked at.
const BUILDS: usize = 30;

/// The states of builds that have no artifacts yet, or never will.
const NOTHING_YET: [&str; 4] = ["creating", "scheduled", "skipped", "not_run"];

/// An order to fetch a base.
#[derive(Debug)]
pub struct BaseOrder {
    /// The folder that gets the files; it is made where it is missing.
    pub folder: PathBuf,
    /// Of which pipeline.
    pub pipeline: Option<PipelineName>,
    /// Of which branch.
    pub branch: Option<String>,
    /// The id of the build that this job belongs to, which is no base.
    pub own_build: Option<String>,
    /// `BUILDKITE_API_TOKEN`.
    pub token: Option<ApiToken>,
    /// The address of the API.
    pub api: String,
    /// How this host reaches it.
    pub network: Network,
}

/// Fetches the base: the newest build of the branch that has both files. What fails is a warning, and there are no files then.
pub fn fetch(order: &BaseOrder, log: &Log) {
    match try_to_fetch(order, log) {
        Ok(said) => log.say(said),
        Err(failure) => {
            log.warn(format_args!(
                "no base, so nothing is skipped because of one: {failure:#}"
            ));
            if let Some(hint) = &failure.hint {
                log.say(format_args!("hint: {hint}"));
            }
        }
    }
}

/// Fetches it; says what was fetched.
fn try_to_fetch(order: &BaseOrder, log: &Log) -> Result<String, Failure> {
    // Files of an earlier run would be taken for a base.
    let files = [DOCUMENT, OUTCOMES].map(|name| order.folder.join(name));
    for file in &files {
        match fs::remove_file(file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).classify(Class::Infrastructure, || {
                    format!("cannot remove {}", file.display())
                });
            }
            _ => {}
        }
    }
    let pipeline = order.pipeline.as_ref().ok_or_else(|| {
        refuse("the pipeline is not known: this is no job").hint("name it with --pipeline")
    })?;
    let branch = order.branch.as_deref().ok_or_else(|| {
        refuse("the branch is not known: this is no job").hint("name it with --branch")
    })?;
    let token = order.token.clone().ok_or_else(|| {
        refuse("BUILDKITE_API_TOKEN is not set")
            .hint("give it an API token with the scopes read_builds and read_artifacts")
    })?;
    let rest = Rest::new(&order.api, token, &order.network)?;
    let builds = rest.builds(pipeline, branch, BUILDS)?;
    for build in builds.iter().filter(|build| {
        order.own_build.as_deref() != Some(build.id.as_str())
            && !NOTHING_YET.contains(&build.state.as_str())
            // A stranger's build must not say what needs no step here.
            && build.pull_request.is_none()
    }) {
        let artifacts = rest.artifacts(pipeline, build.number, &[DOCUMENT, OUTCOMES])?;
        let (outcomes, recordings): (Vec<_>, Vec<_>) = artifacts
            .iter()
            .partition(|artifact| artifact.path == OUTCOMES);
        // The newest: a summary that was retried has left several.
        let Some(outcomes) = outcomes.first().filter(|_| !recordings.is_empty()) else {
            continue;
        };
        let download = |artifact: &RestArtifact| rest.download(pipeline, build.number, artifact);
        let outcomes = download(outcomes)?;
        let mut texts: Vec<String> = Vec::new();
        for recording in recordings {
            let text = download(recording)?;
            // A recording that was retried has left the same again.
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        match targets_of(&outcomes, &texts) {
            Ok(targets) => {
                write(&order.folder, &texts.join("\n"), &outcomes)?;
                return Ok(found(build, branch, texts.len(), targets));
            }
            Err(failure) => log.warn(format_args!(
                "build {} is no base: {failure:#}",
                build.number
            )),
        }
    }
    Err(refuse(format_args!(
        "none of the newest {} of {branch} has {DOCUMENT} and {OUTCOMES}",
        number(builds.len(), "build")
    ))
    .hint("record there with `summary: true`, which leaves the outcomes"))
}

/// How many targets these files of a base have.
///
/// # Errors
/// One of them makes no sense.
fn targets_of(outcomes: &str, recordings: &[String]) -> Result<usize, Failure> {
    for recording in recordings {
        Recorded::read(recording)?;
    }
    Ok(Outcomes::read(outcomes)?.targets.len())
}

fn found(build: &RestBuild, branch: &str, recordings: usize, targets: usize) -> String {
    format!(
        "the base is build {} of {branch} ({}): {}, {}",
        build.number,
        build.state,
        number(recordings, "recording"),
        number(targets, "target")
    )
}

/// Writes both files; the one that a recording names last, so that it is never there alone.
fn write(folder: &Path, recordings: &str, outcomes: &str) -> Result<(), Failure> {
    let write = |name: &str, text: &str| -> std::io::Result<()> {
        let file = private::temporary_file(folder, ".base")?;
        private::write(file.path(), text.as_bytes())?;
        file.persist(folder.join(name))?;
        Ok(())
    };
    private::make_folders(folder)
        .and_then(|()| write(OUTCOMES, outcomes))
        .and_then(|()| write(DOCUMENT, recordings))
        .classify(Class::Infrastructure, || {
            format!("cannot write the base to {}", folder.display())
        })
}
