//! Whether the agents can skip checkouts, before steps are recorded that do (`checkout: fallback`).

use super::{BuildkiteBuild, RecordingRequest};
use crate::agent;
use crate::buildkite::agent::SKIPS_CHECKOUTS;
use crate::exit::Failure;
use crate::keys::refuse;
use crate::supervise::Supervisor;

/// Refuses `checkout: fallback` where this job's agent does not know it. Those of the steps are taken to be as new. Where nothing is
/// uploaded, no agent is asked.
///
/// # Errors
/// It does not know it (64); there is no `buildkite-agent` (69); a signal asked us to end.
pub(super) fn check_agent(
    request: &RecordingRequest,
    build: Option<&BuildkiteBuild>,
    supervisor: &mut Supervisor,
) -> Result<(), Failure> {
    if build.is_none() || !request.checkout_fallback {
        return Ok(());
    }
    let version = agent::version(supervisor)?;
    if !agent::always_checks_out(version.as_deref()) {
        return Ok(());
    }
    let (major, minor) = SKIPS_CHECKOUTS;
    Err(refuse(format_args!(
        "`checkout: fallback` needs buildkite-agent {major}.{minor} or later, and this job's is {}",
        version.unwrap_or_default()
    ))
    .hint("update the agents, or record with `checkout: always`"))
}
