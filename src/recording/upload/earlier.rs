//! What a plan has steps for that an earlier try of a recording has left, and that is not followed.

use std::collections::BTreeSet;

use super::plan::UploadPlan;
use crate::nix::AttrPath;
use crate::recording::Target;
use crate::recording::pipeline::document::Recorded;

/// The targets that an earlier plan has steps for, which may be in the build already. They get steps again, whether they are built by
/// now or not: under their keys, these are the same.
#[derive(Debug, Default)]
pub(in crate::recording) struct PlannedTargets {
    /// Keys may be those of attributes.
    attrs: BTreeSet<AttrPath>,
    /// Or those of `.drv`s.
    drvs: BTreeSet<String>,
}

impl PlannedTargets {
    /// Those of this text of a plan; none where it is no plan.
    pub(super) fn of(plan: &str) -> Option<Self> {
        let plan = UploadPlan::read(plan).ok()?;
        let recorded = Recorded::read(&plan.document).ok()?;
        let mut planned = Self::default();
        for target in recorded.targets {
            if target.skip.is_none() {
                planned.attrs.insert(target.attr);
                planned.attrs.extend(target.also);
                planned.drvs.insert(target.drv);
            }
        }
        Some(planned)
    }

    /// Whether there is an earlier plan with steps: some of them may be in the build.
    pub(in crate::recording) fn is_found(&self) -> bool {
        !self.drvs.is_empty()
    }

    /// Takes away the reasons to `skip` those among `targets`, and says how many these were.
    pub(in crate::recording) fn keep_steps(
        &self,
        targets: &[Target],
        skip: &mut [Option<String>],
    ) -> usize {
        let mut kept = 0;
        for (target, reason) in targets.iter().zip(skip) {
            if reason.is_some() && self.has_step(target) {
                *reason = None;
                kept += 1;
            }
        }
        kept
    }

    fn has_step(&self, target: &Target) -> bool {
        let drv = target.drv.as_store_path().as_str();
        let mut attrs = target.also.iter().chain([&target.attr]);
        self.drvs.contains(drv) || attrs.any(|attr| self.attrs.contains(attr))
    }
}
