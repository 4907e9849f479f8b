//! What a recording found, in one sentence: the end of its log, and the beginning of its annotation.

use std::collections::BTreeSet;

use super::errors::ErrorLists;
use super::evaluate::gaps::Note;
use super::keep::skip::{BUILT, CACHED, UNCHANGED};
use super::pipeline::steps::TargetStep;
use super::{OnError, Target};
use crate::counts::{RecordingCounts, number};
use crate::nix::AttrPath;

/// What a recording found.
#[derive(Debug)]
pub(super) struct RecordingReport<'a> {
    /// What was evaluated.
    pub(super) source: &'a str,
    pub(super) targets: &'a [Target],
    /// The place of each target in the pipeline.
    pub(super) target_steps: &'a [TargetStep],
    pub(super) errors: &'a ErrorLists,
    /// What evaluation errors do.
    pub(super) on_error: OnError,
    /// What was not looked at, and what the keys name and the repository does not have.
    pub(super) notes: &'a [Note],
    pub(super) counts: RecordingCounts,
    /// The number of skipped steps that are omitted because a build cannot have so many jobs.
    pub(super) omitted: usize,
    pub(super) seconds: f64,
    /// Whether the targets have steps (`phases`).
    pub(super) builds: bool,
    /// The number of steps that follow targets.
    pub(super) followers: usize,
    /// What it is compared with: the base, else the previous recording of the branch, if its pin still exists.
    pub(super) earlier: Option<&'a Earlier>,
}

/// An earlier recording of the same things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Earlier {
    pub(super) recording: EarlierRecording,
    /// Its attribute paths and their `.drv`s.
    pub(super) drvs: Vec<(AttrPath, String)>,
    /// The attributes that are known to have failed in its build.
    pub(super) red: BTreeSet<AttrPath>,
}

/// Which recording it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EarlierRecording {
    /// The previous one of the same branch.
    OfBranch,
    /// That of the base, whose build is called so.
    Base(String),
}

impl RecordingReport<'_> {
    /// The sentence, without a full stop; it names the `source` where one is given.
    pub(super) fn sentence(&self, source: Option<&str>) -> String {
        let reasons = self.target_steps.iter();
        let reasons: Vec<&str> = reasons.filter_map(|step| step.skip.as_deref()).collect();
        let skipped = |reason| reasons.iter().filter(|it| **it == reason).count();
        let (built, cached) = (skipped(BUILT), skipped(CACHED));
        let unchanged: Vec<&str> = reasons
            .iter()
            .copied()
            .filter(|reason| reason.starts_with(UNCHANGED))
            .collect();
        // The others name the store.
        let pushed = reasons.len() - built - cached - unchanged.len();
        let to_build = self.counts.targets.saturating_sub(reasons.len());
        let mut parts = if self.builds {
            vec![format!("{to_build} to build")]
        } else {
            vec!["none to build".to_owned()]
        };
        for (count, what) in [
            (built, "already built here"),
            (cached, "in a cache"),
            (pushed, "already pushed"),
        ] {
            if count > 0 {
                parts.push(format!("{count} {what}"));
            }
        }
        if let Some(reason) = unchanged.first() {
            parts.push(format!("{} {reason}", unchanged.len()));
        }
        match self.followers {
            0 => {}
            1 => parts.push("1 step follows".into()),
            steps => parts.push(format!("{steps} steps follow")),
        }
        if self.omitted > 0 {
            let steps = number(self.omitted, "skipped step");
            parts.push(format!("{steps} omitted: a build can have 4,000 jobs"));
        }
        let source = source.map(|source| format!(" of {source}"));
        let took = format!("{} in {:.1} s", source.unwrap_or_default(), self.seconds);
        format!("recorded {}", self.counts.clause(&took, &parts.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::DrvPath;
    use crate::recording::pipeline::limits::JOBS_PER_BUILD;
    use crate::recording::{KnownOutputs, Meta};

    #[test]
    fn a_target_that_has_an_error_step_is_not_one_to_build() {
        let attr = |name: &str| AttrPath::new(vec![name.into()]);
        let drv = format!("/nix/store/{}-a.drv", "0".repeat(32));
        let target = |name: &str| Target {
            attr: attr(name),
            also: Vec::new(),
            name: name.into(),
            drv: DrvPath::parse(&drv).unwrap(),
            outputs: KnownOutputs::default(),
            system: "x86_64-linux".into(),
            features: Vec::new(),
            followers: Vec::new(),
            meta: Meta::default(),
        };
        let step = |skip: Option<&str>| TargetStep {
            key: "key".into(),
            skip: skip.map(str::to_owned),
            ..TargetStep::default()
        };
        let mut report = RecordingReport {
            targets: &[target("a"), target("b"), target("c")],
            target_steps: &[step(None), step(None), step(Some(BUILT))],
            counts: RecordingCounts {
                attributes: 4,
                targets: 2,
                refused: 1,
                ..RecordingCounts::default()
            },
            source: "ci.nix",
            errors: &ErrorLists::default(),
            on_error: OnError::Step,
            notes: &[],
            omitted: 0,
            builds: true,
            followers: 0,
            seconds: 1.25,
            earlier: None,
        };
        assert_eq!(
            report.sentence(None),
            "recorded 4 attributes in 1.2 s: 2 targets (1 to build, 1 already built here), 1 refused"
        );
        report.followers = 1;
        report.builds = false;
        assert_eq!(
            report.sentence(None),
            "recorded 4 attributes in 1.2 s: 2 targets (none to build, 1 already built here, 1 step follows), 1 refused"
        );
        (report.followers, report.builds) = (0, true);
        report.omitted = 7;
        assert_eq!(JOBS_PER_BUILD, 4_000, "as the sentence says");
        assert_eq!(
            report.sentence(Some("ci.nix")),
            "recorded 4 attributes of ci.nix in 1.2 s: 2 targets (1 to build, 1 already built here, \
             7 skipped steps omitted: a build can have 4,000 jobs), 1 refused"
        );
    }
}
