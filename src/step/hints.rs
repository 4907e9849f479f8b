//! Hints after a step, green or red, for the people who run the host or the pipeline.

use super::report::{Reason, TriedShare};
use super::run::StepRun;
use super::ways;
use crate::exit::Failure;
use crate::host;
use crate::nix::version;
use crate::store::COLLECTOR_HINT;

/// The hints about `step`, a sentence each. A refused step has none.
///
/// # Errors
/// A signal asked us to end (128 + n).
pub(super) fn of(step: &mut StepRun<'_>, succeeded: bool) -> Result<Vec<String>, Failure> {
    let mut hints = Vec::new();
    if step.way.is_none() {
        return Ok(hints);
    }
    if step.drift
        && !step.request.fail_on_drift
        && let (Some(drv), Some(recorded)) = (&step.drv, &step.request.drv)
    {
        hints.push(format!(
            "{}; lock the inputs of the evaluation, or record again: they changed since the recording (commit, Nix version or channel)",
            ways::drift(drv, recorded)
        ));
    }
    if let Some(why) = why_evaluated_again(step) {
        let what = if succeeded {
            "evaluated again"
        } else {
            "the step had to evaluate again"
        };
        hints.push(format!("{what} because {why}"));
    }
    if let Some(store) = step.store_folder()
        && let Some(free) = host::low_on_disk(&store)
    {
        hints.push(format!(
            "the disk of {} is nearly full, with {free} free: collect garbage, or enlarge it",
            store.display()
        ));
    }
    if let Some(version) = collects_what_is_in_use(step)? {
        hints.push(format!(
            "`min-free` is set, and this is Nix {version}: before 2.35 a low disk makes it collect paths that running builds use. Collect at fixed times instead, or use a later Nix"
        ));
    }
    Ok(hints)
}

/// Why a recorded step was evaluated again, and how to avoid that.
fn why_evaluated_again(step: &StepRun<'_>) -> Option<String> {
    match step.reason? {
        Reason::DrvMissing => Some(match &step.tried_share {
            None => "the recorded .drv is not on this host, and the step has no share to fetch it from: let the recording share (`share`; its log says why, where it did not). On the host that records, `keep-days` and EVAL_ONCE_STATE_DIR say how long and where `eval-once pipeline` keeps its GC root; a generator of your own keeps one with `eval-once pin`".into(),
            Some(share) => format!("the recorded .drv is not on this host, and {}", not_given_by(share)),
        }),
        Reason::DrvCollected => Some(match &step.tried_share {
            None => "the recorded .drv was collected meanwhile: it had no GC root, and the step has no share to fetch it from. `eval-once pipeline`, or `eval-once pin` for a generator of your own, keeps a root for `keep-days` days in its state folder (EVAL_ONCE_STATE_DIR), which the collector must be able to read".into(),
            Some(share) => format!("the recorded .drv was collected meanwhile, and {}", not_given_by(share)),
        }),
        Reason::OutputsCollected => Some(format!(
            "an output was collected right after it was realised, by a collection that was already running: {COLLECTOR_HINT}"
        )),
        Reason::OtherStore => Some(
            "the recording's store has another prefix, so drift could be seen by names alone: record on a host whose store has this host's prefix".into(),
        ),
        _ => None,
    }
}

/// That a share did not help, and what to do. The log has the reason already, and so has the report.
fn not_given_by(share: &TriedShare) -> &'static str {
    match share.failure {
        Some(_) => {
            "its share failed: look the reason up in docs/fleet.md (\"Where a share fails\")"
        }
        None => "what its share gave was collected again: collect garbage when no step runs",
    }
}

/// The version of a Nix that may automatically collect paths in use; none where it does not. Nix is asked for its version only
/// where `min-free` is configured: a step without anything to build should cost one Nix process.
fn collects_what_is_in_use(step: &mut StepRun<'_>) -> Result<Option<String>, Failure> {
    if !step.host.nix.collects_when_full() {
        return Ok(None);
    }
    let version = step.store.version(step.supervisor)?;
    Ok(version.filter(|version| version::collects_what_is_in_use(version)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::fixtures::{DRV, with_step};
    use super::super::report::WayName;
    use super::*;

    /// The hints about a step with these keys that was evaluated, for this reason.
    fn hints(keys: &Value, reason: Reason, drift: bool, succeeded: bool) -> Vec<String> {
        let of_step = |step: &mut StepRun<'_>| {
            step.begin_way(WayName::Evaluated, Some(reason));
            step.drift = drift;
            of(step, succeeded).unwrap()
        };
        with_step(keys, of_step).0
    }

    #[test]
    fn a_drv_that_was_missing_or_collected_has_a_hint_at_the_share_that_the_step_has_not() {
        let keys = json!({ "drv": DRV });
        for reason in [Reason::DrvMissing, Reason::DrvCollected] {
            let hints = hints(&keys, reason, false, true);
            let [hint] = &hints[..] else {
                panic!("{hints:?}");
            };
            assert!(
                hint.starts_with("evaluated again because the recorded .drv"),
                "{hint}"
            );
            assert!(hint.contains("has no share"), "{hint}");
            assert!(hint.contains("keep-days"), "{hint}");
        }
        let collected = hints(&keys, Reason::OutputsCollected, false, false);
        let begin = "the step had to evaluate again because an output was collected";
        assert!(collected[0].starts_with(begin), "{collected:?}");
    }

    #[test]
    fn a_share_that_failed_is_the_hint_and_not_how_long_another_host_keeps_its_pins() {
        for reason in [Reason::DrvMissing, Reason::DrvCollected] {
            let (hints, _) = with_step(&json!({ "drv": DRV }), |step| {
                step.begin_way(WayName::Evaluated, Some(reason));
                step.tried_share = Some(TriedShare {
                    from: "https://cache.example.org".into(),
                    failure: Some("HTTP error 403".into()),
                });
                of(step, true).unwrap()
            });
            let [hint] = &hints[..] else {
                panic!("{hints:?}");
            };
            assert!(hint.contains("its share failed: look"), "{hint}");
            assert!(!hint.contains("HTTP error 403"), "said twice: {hint}");
            assert!(!hint.contains("keep-days"), "{hint}");
        }
    }

    #[test]
    fn a_record_of_another_store_has_a_hint_that_blames_no_share() {
        let hints = hints(&json!({ "drv": DRV }), Reason::OtherStore, false, true);
        assert!(
            hints.len() == 1 && hints[0].contains("another prefix"),
            "{hints:?}"
        );
        assert!(!hints[0].contains("`share`"), "{hints:?}");
    }

    #[test]
    fn a_step_that_took_an_expected_way_has_no_hint() {
        let keys = json!({ "drv": DRV });
        for reason in [
            Reason::NotRecorded,
            Reason::DrvValid,
            Reason::OutputsAvailable,
        ] {
            assert_eq!(hints(&keys, reason, false, true), [""; 0], "{reason:?}");
        }
    }

    #[test]
    fn drift_has_a_hint_unless_it_fails_the_step() {
        let drift = |on_drift| {
            let keys = json!({ "drv": DRV, "file": "ci.nix", "on-drift": on_drift });
            hints(&keys, Reason::NotRecorded, true, true)
        };
        let hints = drift("warn");
        assert!(
            hints.len() == 1 && hints[0].starts_with("drift: "),
            "{hints:?}"
        );
        assert_eq!(drift("fail"), [""; 0]);
    }

    #[test]
    fn a_step_that_began_no_way_has_no_hint() {
        let (hints, _) = with_step(&json!({ "drv": DRV }), |step| {
            step.drift = true;
            step.reason = Some(Reason::DrvMissing);
            of(step, false).unwrap()
        });
        assert_eq!(hints, [""; 0]);
    }
}
