//! The claim of a recording on keys that begin with attribute paths, in the build's meta-data: another recording would find such keys
//! used, and take the steps for its own, as those of an earlier try.

use crate::fingerprint::fingerprint;
use crate::recording::Phases;

/// How the names of meta-data begin in which recordings claim keys.
const PREFIX: &str = "eval-once-keys:";

/// What a recording says of its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim<'a> {
    /// Its job, as its retries have it as well.
    owner: &'a str,
    /// What all its keys begin with.
    pub(super) area: &'a str,
    /// What is recorded: the recording's identity.
    recording: &'a str,
    /// The phases of the pipeline that it makes, as a word.
    phases: &'a str,
    /// Its job.
    pub(super) job: &'a str,
}

impl<'a> Claim<'a> {
    /// The claim of a recording in this job; `owner` is the job as its retries have it as well.
    pub(super) fn new(
        owner: &'a str,
        job: &'a str,
        recording: &'a str,
        phases: Phases,
        area: &'a str,
    ) -> Self {
        Self {
            owner,
            area,
            recording,
            phases: match phases {
                Phases {
                    build: true,
                    release: false,
                } => "build",
                Phases {
                    build: false,
                    release: true,
                } => "release",
                _ => "both",
            },
            job,
        }
    }

    /// The name of its meta-data, which its retries set again, and nothing else does.
    pub(super) fn name(&self) -> String {
        format!("{PREFIX}{}", fingerprint([self.recording, self.owner]))
    }

    /// Whether this is the name of a claim.
    pub(super) fn is_name(name: &str) -> bool {
        name.starts_with(PREFIX)
    }

    /// Reads a claim; none where it is no claim, for anything that runs in a build can set its meta-data.
    pub(super) fn read(value: &'a str) -> Option<Self> {
        let words: Vec<&str> = value.split_whitespace().collect();
        let [owner, area, recording, phases, job] = words[..] else {
            return None;
        };
        Some(Self {
            owner,
            area,
            recording,
            phases,
            job,
        })
    }

    /// The claim as it is written.
    pub(super) fn write(&self) -> String {
        [self.owner, self.area, self.recording, self.phases, self.job].join(" ")
    }

    /// Whether another recording may have made a key of this one. The steps that only follow targets have none of those that only
    /// build the same ones.
    pub(super) fn excludes(&self, other: &Claim<'_>) -> bool {
        let overlaps = self.area.starts_with(other.area) || other.area.starts_with(self.area);
        let are_apart = self.recording == other.recording
            && matches!(
                (self.phases, other.phases),
                ("build", "release") | ("release", "build")
            );
        self.owner != other.owner && overlaps && !are_apart
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLAIM: Claim<'static> = Claim {
        owner: "0190-step",
        area: "nix-",
        recording: "letters",
        phases: "both",
        job: "0190-job",
    };

    #[test]
    fn a_claim_reads_back_as_it_was_written_and_nothing_else_is_one() {
        assert_eq!(Claim::read(&CLAIM.write()), Some(CLAIM));
        for value in ["", "x", "x nix-", "a b c d e f"] {
            assert_eq!(Claim::read(value), None, "{value}");
        }
        assert!(Claim::is_name(&CLAIM.name()));
    }

    #[test]
    fn recordings_of_one_source_exclude_one_another_unless_one_only_follows_the_other() {
        let other = Claim {
            owner: "0190-other",
            ..CLAIM
        };
        assert!(CLAIM.excludes(&other) && other.excludes(&CLAIM));
        assert!(!CLAIM.excludes(&CLAIM), "a retry");
        assert_ne!(CLAIM.name(), other.name(), "neither hides the other");
        let of = |phases| Claim { phases, ..other };
        let build = Claim {
            phases: "build",
            ..CLAIM
        };
        assert!(!build.excludes(&of("release")));
        assert!(!of("release").excludes(&build));
        assert!(build.excludes(&of("build")) && build.excludes(&of("both")));
        let elsewhere = Claim {
            recording: "others",
            ..of("release")
        };
        assert!(build.excludes(&elsewhere), "of another source");
        for (area, overlaps) in [("nix-packages-", true), ("ni", true), ("other-", false)] {
            assert_eq!(CLAIM.excludes(&Claim { area, ..other }), overlaps, "{area}");
        }
    }
}
