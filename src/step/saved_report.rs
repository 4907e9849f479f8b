//! A step's report as its build's meta-data has it: in a few hundred bytes, under a key of its own, for `eval-once summary`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::report::{Report, Seconds, TriedShare, WayName};
use super::step_job::StepJob;
use crate::secrets::shortened;

/// What all keys begin with; the step's key follows.
const PREFIX: &str = "eval-once:report:";

/// The version of the format.
const VERSION: u32 = 1;

/// How much of a message is saved, in characters: the value is to stay below the kilobyte that Buildkite recommends.
const MESSAGE_AT_MOST: usize = 200;

/// How much of a share's name is saved, in characters: an artifact's fits.
const SHARE_AT_MOST: usize = 100;

/// A step's report as it is saved. A field that is absent (an older version saved it) has its type's empty value.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SavedReport {
    /// The version of this format.
    pub version: u32,
    /// What was built: the attribute path; or the derivation's name, where none was given.
    pub target: String,
    /// The job that saved it: of a step that was retried, the last.
    pub job: String,
    /// The way taken, or being taken when the step failed, as the report has it.
    pub way: Option<String>,
    /// Why.
    pub reason: Option<String>,
    /// The exit status of the build.
    pub exit: u8,
    /// The class of the failure.
    pub class: Option<String>,
    /// The derivation that itself failed.
    pub drv: Option<String>,
    /// The message that ended the job's log, shortened.
    pub message: Option<String>,
    /// An evaluation gave another `.drv` than was recorded.
    pub drift: bool,
    /// How many derivations were built.
    pub built: usize,
    /// How many store paths came from a cache.
    pub substituted: usize,
    /// The share that was tried, where one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<TriedShare>,
    /// How long each part took, in seconds.
    pub seconds: SavedSeconds,
    /// Which try of the step the job is, from 1; 0 where that is not known.
    #[serde(rename = "try")]
    pub attempt: u32,
    /// What of the job comes after the build, and is not in this report: [`COMMAND`], or the word of an
    /// [`AfterBuild`](super::AfterBuild). None where that is not known.
    pub after: Option<Vec<String>>,
    /// Until when Buildkite lets the job run, in seconds since 1970; none where it has no limit.
    pub until: Option<u64>,
    /// What the job was stopped for, where it was.
    pub stopped: Option<StopReason>,
}

/// The word for the step's own command, where that comes after the build.
pub const COMMAND: &str = "command";

/// What a job was stopped for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StopReason {
    /// Its time was over.
    Timeout,
    /// Its time was not over: it was cancelled, or its agent was stopped.
    Cancel,
}

/// How long each part of a step took, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SavedSeconds {
    /// Waiting for an evaluation slot.
    pub wait: f64,
    /// Fetching `.drv`s from a share.
    pub fetch: f64,
    /// Evaluating.
    pub evaluate: f64,
    /// Building and substituting.
    pub realise: f64,
    /// Pushing the outputs.
    pub push: f64,
    /// Everything.
    pub total: f64,
}

/// The longest time that is believed, in seconds: three years. So sums and their decimals stay readable.
const LONGEST: f64 = 1e8;

/// Why a saved report cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SavedReportError {
    /// The value is not a report.
    NoReport,
    /// It has a format that this program does not know: another version of eval-once saved it.
    Version(u32),
}

impl SavedReport {
    /// Reads the value under a report's key.
    ///
    /// # Errors
    /// It is not a report, or has another version. Anything that runs in a build can set its meta-data.
    pub fn read(json: &str) -> Result<Self, SavedReportError> {
        #[derive(Deserialize)]
        struct ReportVersion {
            version: u32,
        }
        let ReportVersion { version } =
            serde_json::from_str(json).map_err(|_| SavedReportError::NoReport)?;
        if version != VERSION {
            return Err(SavedReportError::Version(version));
        }
        let mut report: Self =
            serde_json::from_str(json).map_err(|_| SavedReportError::NoReport)?;
        let seconds = &mut report.seconds;
        for part in [
            &mut seconds.wait,
            &mut seconds.fetch,
            &mut seconds.evaluate,
            &mut seconds.realise,
            &mut seconds.push,
            &mut seconds.total,
        ] {
            *part = part.clamp(0.0, LONGEST);
        }
        Ok(report)
    }

    /// The key of a step's report. `step` is the step's key; of a step without one, its id.
    #[must_use]
    pub fn key(step: &str) -> String {
        format!("{PREFIX}{step}")
    }

    /// The step whose report is under this key; none where the key is not of a report.
    #[must_use]
    pub fn step(key: &str) -> Option<&str> {
        key.strip_prefix(PREFIX)
    }

    /// The way that it names, where that is one.
    #[must_use]
    pub fn way(&self) -> Option<WayName> {
        self.way.as_deref().and_then(WayName::of_word)
    }

    /// What is saved of `report`, of `job`, which builds `target`. `command` says whether the job's command is run after a
    /// success, and `stopped` whether a signal has ended it.
    #[must_use]
    pub fn new(report: &Report, target: &str, job: &StepJob, command: bool, stopped: bool) -> Self {
        let failure = report.failure.as_ref();
        let around = &job.around;
        // The signal that stops a hook is the same for a cancelled job and for one whose time is over: only the time shows which it was.
        let age = around.began.and_then(|began| began.elapsed().ok());
        let age = age.unwrap_or(report.seconds.total);
        let is_late = around.limit.is_some_and(|limit| age >= limit);
        let own = Some(COMMAND).filter(|_| around.command && command);
        let later = around.later.iter().map(|later| later.word());
        Self {
            version: VERSION,
            target: shortened(target, MESSAGE_AT_MOST),
            job: job.id.clone(),
            way: report.way.map(|way| way.word().to_owned()),
            reason: report.reason.map(|reason| reason.word().to_owned()),
            exit: report.exit,
            class: failure.map(|failure| failure.class.to_owned()),
            drv: failure.and_then(|failure| failure.drv.as_ref().map(ToString::to_string)),
            message: failure.map(|failure| shortened(&failure.message, MESSAGE_AT_MOST)),
            drift: report.drift,
            built: report.built,
            substituted: report.substituted,
            share: report.share.as_ref().map(|share| TriedShare {
                from: shortened(&share.from, SHARE_AT_MOST),
                failure: share
                    .failure
                    .as_ref()
                    .map(|why| shortened(why, MESSAGE_AT_MOST)),
            }),
            seconds: report.seconds.into(),
            attempt: around.attempt,
            after: Some(own.into_iter().chain(later).map(str::to_owned).collect()),
            until: around.limit.and_then(|limit| end(age, limit)),
            stopped: match (stopped, is_late) {
                (false, _) => None,
                (true, false) => Some(StopReason::Cancel),
                (true, true) => Some(StopReason::Timeout),
            },
        }
    }
}

/// When a job ends that is this old, and may run so long; in seconds since 1970.
fn end(age: Duration, limit: Duration) -> Option<u64> {
    let end = SystemTime::now().checked_add(limit)?.checked_sub(age)?;
    Some(end.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

impl From<Seconds> for SavedSeconds {
    fn from(seconds: Seconds) -> Self {
        Self {
            wait: seconds.wait.as_secs_f64(),
            fetch: seconds.fetch.as_secs_f64(),
            evaluate: seconds.evaluate.as_secs_f64(),
            realise: seconds.realise.as_secs_f64(),
            push: seconds.push.as_secs_f64(),
            total: seconds.total.as_secs_f64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::hostile::{cases, spoilt, text};
    use proptest::prelude::*;
    use serde_json::json;

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn a_report_of_any_values_is_read_as_it_was_written_or_refused(json in prop_oneof![9 => spoilt(json!({
            "version": 1, "target": "a", "job": "j", "way": "realised", "reason": "recorded", "exit": 0, "message": "m", "drift": false,
            "share": { "from": "artifact:a", "failure": null }, "seconds": { "realise": 1.5, "total": 2.5 }, "attempt": 1,
            "after": ["command"], "until": 5, "stopped": "timeout",
        })), 1 => text()]) {
            let Ok(report) = SavedReport::read(&json) else {
                return Ok(());
            };
            let seconds = &report.seconds;
            for part in [seconds.wait, seconds.fetch, seconds.evaluate, seconds.realise, seconds.push, seconds.total] {
                prop_assert!((0.0..=LONGEST).contains(&part), "{part}");
            }
            let written = serde_json::to_string(&report).unwrap();
            prop_assert_eq!(SavedReport::read(&written), Ok(report));
        }
    }

    #[test]
    fn a_report_reads_back_and_anything_else_is_distinguished() {
        let report = SavedReport {
            version: VERSION,
            target: "a".into(),
            exit: 100,
            ..SavedReport::default()
        };
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(SavedReport::read(&json), Ok(report));
        assert_eq!(
            SavedReport::read(r#"{"version":2,"exit":"new"}"#),
            Err(SavedReportError::Version(2))
        );
        for other in [
            "",
            "{}",
            "[]",
            r#"{"version":1,"exit":300}"#,
            r#"{"version":1,"seconds":3}"#,
        ] {
            assert_eq!(
                SavedReport::read(other),
                Err(SavedReportError::NoReport),
                "{other}"
            );
        }
    }

    #[test]
    fn impossible_times_are_bounded() {
        let report =
            SavedReport::read(r#"{"version":1,"seconds":{"total":1e300,"evaluate":-5}}"#).unwrap();
        let expected = SavedSeconds {
            total: LONGEST,
            ..SavedSeconds::default()
        };
        assert_eq!(report.seconds, expected);
    }
}
