//! What whoever runs a host or a pipeline should know after a step, green or red, and what to do about it.

use super::report::Reason;
use super::run::StepRun;
use crate::exit::Failure;
use crate::host;
use crate::nix::version;

/// From this version of Nix on, the collector leaves alone what is in use (NixOS/nix#15469).
const COLLECTOR_MENDED: (u32, u32) = (2, 35);

/// What there is to say about `step`, a sentence each. One that was refused has looked at nothing.
///
/// # Errors
/// A signal asked us to end (128 + n).
pub(super) fn of(step: &mut StepRun<'_>, succeeded: bool) -> Result<Vec<String>, Failure> {
    let mut hints = Vec::new();
    if step.way.is_none() {
        return Ok(hints);
    }
    if step.drift && !step.request.fail_on_drift {
        hints.push(
            "drift: what the evaluation reads has changed since the recording (another commit, Nix version or channel): pin it, or make the pipeline again".into(),
        );
    }
    if let Some(why) = nothing_rooted(step) {
        let done = if succeeded {
            "evaluated again"
        } else {
            "the step had to evaluate again"
        };
        hints.push(format!("{done} because {why}"));
    }
    if let Some(store) = step.store_folder()
        && let Some(free) = host::low_on_disk(&store)
    {
        hints.push(format!(
            "the disk of {} is nearly full, with {free} free: let the collector run, or give it more room",
            store.display()
        ));
    }
    if let Some(version) = collects_what_is_in_use(step)? {
        hints.push(format!(
            "`min-free` is set, and this is Nix {version}: when the disk runs low it collects during builds, and before 2.35 also what is in use, .drv files among it. Collect at set times instead, or use a later Nix"
        ));
    }
    Ok(hints)
}

/// Why a recorded step was evaluated again, and what mends that.
fn nothing_rooted(step: &StepRun<'_>) -> Option<&'static str> {
    match step.reason? {
        Reason::DrvMissing => Some(
            "the recorded .drv is not on this host: nothing rooted it, or another host recorded it. `eval-once pipeline` roots what it records for `keep-days` days, as long as its state folder (EVAL_ONCE_STATE_DIR) lasts; for other hosts, keep the outputs in a cache",
        ),
        Reason::DrvCollected => Some(
            "the collector took the recorded .drv meanwhile: nothing rooted it. `eval-once pipeline` roots what it records for `keep-days` days, as long as its state folder (EVAL_ONCE_STATE_DIR) lasts and the collector can see it",
        ),
        Reason::OutputsCollected => Some(
            "the collector took an output right after it was realised: a collection was running already. Let the collector run less often, or while no job runs",
        ),
        _ => None,
    }
}

/// The version of a Nix whose collector may take what is in use while it runs by itself; none where it does not. Nix is asked
/// for its version only where its files say that it may: a step that has nothing to build is one process of Nix's.
fn collects_what_is_in_use(step: &mut StepRun<'_>) -> Result<Option<String>, Failure> {
    let by_itself = step.host.nix.get("min-free");
    if by_itself.is_none_or(|bytes| bytes == "0") {
        return Ok(None);
    }
    let version = step.store.version(step.supervisor)?;
    Ok(version.filter(|version| {
        version::numbers(version).is_some_and(|numbers| numbers < COLLECTOR_MENDED)
    }))
}
