//! Orders: from the keys of a step or of a recording to something that can be done, complete, or to a [`Refusal`].
//!
//! Mistakes are reported in one order: the keys as they were written, then their context (the build, the
//! job's command), then what each key means, then the host. (A recording reads the host's settings before its keys.)

use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::job::{below_checkout, build, check_summary, is_in_build, repository, step_job};
use super::{Startup, host};
use crate::base::BaseOrder;
use crate::buildkite::command_hooks::FollowingCommand;
use crate::evaluation_keys::Checkout;
use crate::exit::{Class, Classify as _, Failure};
use crate::job::HookedJob;
use crate::keys::{Keys, refuse};
use crate::log::Log;
use crate::recording::{
    BuildkiteBuild, PinOrder, PinRequest, RecordingOrder, RecordingRequest, read_drvs,
};
use crate::rest::{self, ApiToken, Network, PipelineName};
use crate::step::{StepOrder, StepReporting, StepRequest};
use crate::summary::SummaryOrder;

/// Something that was asked for, and is refused: nothing of it is done, and no command runs after it.
#[derive(Debug)]
pub struct Refusal {
    /// Why (64).
    pub failure: Failure,
    /// Where the ending of a step is reported; nothing else is reported elsewhere than in the log.
    pub step: Option<Box<StepReporting>>,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self {
            failure,
            step: None,
        }
    }
}

/// A step, as far as it is ordered besides its keys.
pub(super) struct StepDraft<'a> {
    /// The folder in which its relative paths start, and what may be used there.
    pub(super) checkout: Checkout,
    /// `--report`.
    pub(super) report: Option<PathBuf>,
    /// The job in which a hook builds it.
    pub(super) job: Option<&'a HookedJob>,
    /// Whether a command follows.
    pub(super) followed: bool,
}

/// A step's order. Its refusal is reported like any other ending of a step.
pub(super) fn step(
    startup: &Startup,
    keys: Result<Keys, Failure>,
    draft: StepDraft<'_>,
    log: &Log,
) -> Result<StepOrder, Refusal> {
    let host = host::host(startup);
    let request = keys.and_then(|keys| {
        if let Some(job) = draft.job {
            check_command(job, FollowingCommand::of_step(&keys), log)?;
        }
        StepRequest::read(keys, &draft.checkout)
    });
    let mut job = step_job(&startup.variables);
    // A command that was recorded with the step does not stand in the job's `BUILDKITE_COMMAND`.
    let runs = request.as_ref().is_ok_and(|it| it.run.is_some());
    if let Some(job) = job.as_mut().filter(|_| draft.followed || runs) {
        job.around.command = true;
    }
    let reporting = StepReporting {
        report: draft.report,
        job,
        temporary: host::temporary(&startup.variables),
        started: startup.started,
        only_failures: false,
    };
    let request = request.and_then(|request| match &request.run {
        Some(_) if draft.followed => Err(refuse(
            "`run` cannot be combined with a command of the job's own",
        )),
        _ => Ok(request),
    });
    match request.and_then(|request| Ok((request, host?))) {
        Ok((mut request, host)) => {
            // A command needs the outputs.
            request.skip &= !draft.followed;
            Ok(StepOrder {
                request,
                repository: repository(&startup.variables, &draft.checkout.folder),
                place: draft.checkout,
                host,
                in_build: is_in_build(&startup.variables),
                reporting,
            })
        }
        Err(failure) => Err(Refusal {
            failure,
            step: Some(Box::new(reporting)),
        }),
    }
}

/// A recording, as far as it is ordered besides its keys.
pub(super) struct RecordingDraft<'a> {
    /// The folder in which its relative paths start, and what may be used there.
    pub(super) checkout: Checkout,
    /// The build it belongs to; none by hand.
    pub(super) build: Result<Option<BuildkiteBuild>, Failure>,
    /// The job in which a hook records.
    pub(super) job: Option<&'a HookedJob>,
    /// In a plugin's hook, the reference to our plugin, version and all.
    pub(super) plugin: Option<String>,
    /// `--dry-run`.
    pub(super) dry_run: bool,
}

/// A recording's order.
pub(super) fn recording(
    startup: &Startup,
    keys: Result<Keys, Failure>,
    draft: RecordingDraft<'_>,
    log: &Log,
) -> Result<Box<RecordingOrder>, Refusal> {
    let host = host::host(startup);
    let (keys, build) = (keys?, draft.build?);
    if let Some(job) = draft.job {
        check_command(job, FollowingCommand::Runs { explicit: false }, log)?;
    }
    let host = host?;
    Ok(Box::new(RecordingOrder {
        request: RecordingRequest::read(keys, &draft.checkout, draft.plugin.as_deref())?,
        host,
        build,
        below_checkout: below_checkout(&startup.variables, &draft.checkout.folder),
        place: draft.checkout,
        dry_run: draft.dry_run,
        cores: startup.cores,
        started: startup.started,
    }))
}

/// The order to pin these `.drv`s; `-` reads them from standard input.
pub(super) fn pin(
    startup: &Startup,
    keys: Result<Keys, Failure>,
    words: &[String],
) -> Result<PinOrder, Failure> {
    let host = host::host(startup)?;
    let request = PinRequest::read(keys?)?;
    let build = build(&startup.variables)
        .map_err(|failure| failure.hint("pass the job's variables on, into a container too"))?;
    let (stdin, named): (Vec<&str>, Vec<&str>) = words
        .iter()
        .map(String::as_str)
        .partition(|word| *word == "-");
    let mut bytes = Vec::new();
    if !stdin.is_empty() {
        std::io::stdin()
            .read_to_end(&mut bytes)
            .classify(Class::Infrastructure, || {
                "cannot read .drv files from standard input".into()
            })?;
    }
    // What is no text is no store path, and refused as such.
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(PinOrder {
        drvs: read_drvs(named.into_iter().chain(lines))?,
        request,
        host,
        build,
    })
}

/// A summary's order; `fail` says whether it fails where a target did.
pub(super) fn summary(startup: &Startup, fail: bool) -> Result<SummaryOrder, Refusal> {
    let variables = &startup.variables;
    check_summary(variables)?;
    Ok(SummaryOrder {
        temporary: host::temporary(variables),
        build_number: variables
            .text("BUILDKITE_BUILD_NUMBER")
            .and_then(|number| number.parse().ok()),
        fail,
    })
}

/// The order to fetch a base into this folder. What is not named is that of the job: a change is compared with the branch that it is
/// to be merged into, everything else with the pipeline's default branch.
pub(super) fn base(
    startup: &Startup,
    folder: &Path,
    branch: Option<String>,
    pipeline: Option<String>,
) -> Result<BaseOrder, Refusal> {
    let variables = &startup.variables;
    let own = || {
        Some(format!(
            "{}/{}",
            variables.text("BUILDKITE_ORGANIZATION_SLUG")?,
            variables.text("BUILDKITE_PIPELINE_SLUG")?
        ))
    };
    let pipeline = pipeline
        .or_else(own)
        .map(|name| match name.split_once('/') {
            Some((organization, pipeline)) if !organization.is_empty() && !pipeline.is_empty() => {
                Ok(PipelineName {
                    organization: organization.to_owned(),
                    pipeline: pipeline.to_owned(),
                })
            }
            _ => Err(refuse(format_args!(
                "--pipeline {name} is not of the form ORGANIZATION/PIPELINE"
            ))),
        });
    let named = [
        "BUILDKITE_PULL_REQUEST_BASE_BRANCH",
        "BUILDKITE_PIPELINE_DEFAULT_BRANCH",
    ];
    let first = |names: &[&str]| names.iter().find_map(|name| variables.text(name));
    Ok(BaseOrder {
        folder: startup.folder.join(folder),
        pipeline: pipeline.transpose()?,
        branch: branch.or_else(|| first(&named)),
        own_build: variables.text("BUILDKITE_BUILD_ID"),
        token: variables.text("BUILDKITE_API_TOKEN").map(ApiToken::new),
        api: variables
            .text("BUILDKITE_REST_API_ENDPOINT")
            .unwrap_or_else(|| rest::API.to_owned()),
        network: Network {
            proxy: first(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]),
            no_proxy: first(&["no_proxy", "NO_PROXY"]),
            authorities: first(&["NIX_SSL_CERT_FILE", "SSL_CERT_FILE"]).map(PathBuf::from),
        },
    })
}

/// Looks whether the job's own command can follow, and warns where it may run twice.
pub(super) fn check_command(
    job: &HookedJob,
    command: FollowingCommand,
    log: &Log,
) -> Result<(), Failure> {
    if let Some(warning) = job.check(command)? {
        log.warn(warning);
    }
    Ok(())
}
