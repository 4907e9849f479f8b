//! How a recording shares: whether, how, and what follows where that fails.

use std::path::Path;

use super::pipeline::steps::{PlannedPipeline, share_keys};
use super::{BuildkiteBuild, RecordingRequest, Target};
use crate::exit::{Class, Failure};
use crate::host::Host;
use crate::keys::{Keys, refuse};
use crate::log::Log;
use crate::nix::{DrvPath, StoreUrl};
use crate::share::{NotShared, ShareWriter};
use crate::share_keys::{Share, ShareSetting};
use crate::state::StateFolder;
use crate::store::Store;
use crate::supervise::Supervisor;

/// The most that is shared as an artifact where no key and no setting of the host asks for it, and where one does, in MiB.
const LIMIT: u64 = 128;
const LIMIT_WHERE_ASKED: u64 = 2048;

/// What is asked for of a share.
#[derive(Debug)]
pub(super) struct ShareWish<'a> {
    /// How; none: as the host's setting says.
    pub(super) share: Option<&'a ShareSetting>,
    /// The most that an artifact may take, in MiB.
    pub(super) limit: Option<u64>,
    /// Whether a share that fails is a failure.
    pub(super) required: bool,
    /// How many days the `.drv`s are kept.
    pub(super) keep_days: u32,
}

impl<'a> ShareWish<'a> {
    /// What a recording asks for.
    pub(super) fn of(request: &'a RecordingRequest) -> Self {
        Self {
            share: request.share.as_ref(),
            limit: request.share_limit,
            required: request.share_required,
            keep_days: request.keep_days,
        }
    }
}

/// How a recording shares.
#[derive(Debug)]
pub(super) struct Sharing<'a> {
    how: How<'a>,
    required: bool,
    keep_days: u32,
}

#[derive(Debug)]
enum How<'a> {
    /// Not at all.
    Off,
    /// Not at all, and steps do not use their hosts' setting either.
    OffByKey,
    /// Through a store that is not written to: a dry run only says which.
    Named(StoreUrl),
    /// Through a store.
    Store(StoreUrl),
    /// As an artifact of at most `limit` MiB.
    Artifact {
        build: &'a BuildkiteBuild,
        limit: u64,
        temporary: &'a Path,
    },
}

impl<'a> Sharing<'a> {
    /// How it is shared: as the wish says, or the host's setting; else as an artifact, in a job. A dry run copies and uploads
    /// nothing.
    ///
    /// # Errors
    /// An artifact is asked for where there is no build to have it, or a share is required and turned off (64).
    pub(super) fn new(
        wish: &ShareWish<'_>,
        host: &'a Host,
        build: Option<&'a BuildkiteBuild>,
        dry_run: bool,
    ) -> Result<Self, Failure> {
        let asked = wish.share.or(host.share.as_ref());
        let how = match (asked, build) {
            (Some(ShareSetting::Off), _) if wish.required => {
                let by = match wish.share {
                    Some(_) => "`share: false`",
                    None => "EVAL_ONCE_SHARE=false",
                };
                return Err(refuse(format_args!(
                    "`share-required` cannot be combined with {by}"
                ))
                .hint("leave out one of them"));
            }
            (Some(ShareSetting::Off), _) if wish.share.is_some() => How::OffByKey,
            (Some(ShareSetting::Store(url)), _) if dry_run => How::Named(url.clone()),
            (Some(ShareSetting::Store(url)), _) => How::Store(url.clone()),
            (Some(ShareSetting::Artifact) | None, _) if dry_run => How::Off,
            (Some(ShareSetting::Artifact) | None, Some(build)) => {
                let default = asked.map_or(LIMIT, |_| LIMIT_WHERE_ASKED);
                How::Artifact {
                    build,
                    limit: wish.limit.unwrap_or(default),
                    temporary: &host.temporary,
                }
            }
            (Some(ShareSetting::Artifact), None) if wish.share.is_some() => {
                return Err(refuse(
                    "`share: artifact` needs a job: by hand there is no build for the artifact",
                )
                .hint("set `share` to the URL of a store, or leave it out"));
            }
            (Some(ShareSetting::Off), _) | (Some(ShareSetting::Artifact) | None, None) => How::Off,
        };
        Ok(Self {
            how,
            required: wish.required,
            keep_days: wish.keep_days,
        })
    }

    /// Shares the `.drv`s of the steps that may run, and writes into their records where they can be fetched.
    ///
    /// # Errors
    /// It fails, and `share-required` is set (75); a signal asked us to end.
    pub(super) fn share(
        &self,
        pipeline: &mut PlannedPipeline,
        targets: &[Target],
        state: &StateFolder,
        store: &mut Store,
        supervisor: &mut Supervisor,
        log: &Log,
    ) -> Result<(), Failure> {
        // To look for them takes as long as to make half of the steps.
        let drvs = if self.needs_drvs() {
            pipeline.drvs_of_steps(targets)
        } else {
            Vec::new()
        };
        match self.publish(&drvs, state, store, supervisor, log)? {
            Some(keys) => pipeline.add_to_records(&keys),
            None => Ok(()),
        }
    }

    /// Shares these `.drv`s. Gives the keys with which a step finds them, where there are any.
    ///
    /// # Errors
    /// As for [`Sharing::share`].
    pub(super) fn publish(
        &self,
        drvs: &[&DrvPath],
        state: &StateFolder,
        store: &mut Store,
        supervisor: &mut Supervisor,
        log: &Log,
    ) -> Result<Option<Keys>, Failure> {
        if self.needs_drvs() && drvs.is_empty() {
            return Ok(None);
        }
        let mut writer = ShareWriter {
            drvs,
            store,
            supervisor,
            log,
        };
        let shared = match &self.how {
            How::Off => return Ok(None),
            How::OffByKey => {
                let off = [("share".to_owned(), false.into())];
                return Ok(Some(off.into_iter().collect()));
            }
            How::Named(url) => {
                let share = Share::Store(url.clone());
                return Ok(Some(share_keys(&share, None, self.keep_days)));
            }
            How::Store(url) => writer.to_store(url, state),
            How::Artifact {
                build,
                limit,
                temporary,
            } => {
                let limit = limit.saturating_mul(1 << 20);
                writer.as_artifact(limit, build.is_retry, temporary)
            }
        };
        match shared {
            Ok(shared) => {
                log.say(shared.sentence);
                let keys = share_keys(&shared.share, shared.unpacked, self.keep_days);
                Ok(Some(keys))
            }
            Err(NotShared::Stopped(failure)) => Err(failure),
            Err(NotShared::Because { reason, hint }) if self.required => Err(Failure::new(
                Class::Infrastructure,
                format_args!("cannot share the .drv files, and `share-required` is set: {reason}"),
            )
            .hint(hint.unwrap_or_else(|| {
                "mend the share, and retry the job; or leave out `share-required`: then the steps evaluate again".into()
            }))),
            Err(NotShared::Because { reason, hint }) => {
                log.warn(format_args!(
                    "the .drv files are not shared, and steps on other hosts evaluate again: {reason}"
                ));
                if let Some(hint) = hint {
                    log.say(format_args!("hint: {hint}"));
                }
                Ok(None)
            }
        }
    }

    fn needs_drvs(&self) -> bool {
        matches!(self.how, How::Store(_) | How::Artifact { .. })
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::nix::settings::NixSettings;
    use crate::recording::pipeline::fixtures::request;

    const URL: &str = "file:///cache";

    /// How a recording shares whose key and whose host's setting say this, in a word.
    fn how(key: Option<&str>, host: Option<&str>, in_job: bool, dry_run: bool) -> String {
        how_required(false, key, host, in_job, dry_run)
    }

    fn how_required(
        share_required: bool,
        key: Option<&str>,
        host: Option<&str>,
        in_job: bool,
        dry_run: bool,
    ) -> String {
        let setting = |text: Option<&str>| text.map(|text| ShareSetting::parse(text).unwrap());
        let request = RecordingRequest {
            share: setting(key),
            share_required,
            ..request()
        };
        let host = Host {
            state: None,
            evaluations: NonZeroUsize::MIN,
            recorded_only: false,
            share: setting(host),
            nix: NixSettings::default(),
            temporary: "/tmp".into(),
        };
        let build = BuildkiteBuild {
            build: "b".into(),
            job: "j".into(),
            step: "s".into(),
            variant: "v".into(),
            pipeline: "p".into(),
            branch: "main".into(),
            commit: None,
            tag: String::new(),
            pull_request: String::new(),
            is_retry: false,
            signing: crate::recording::Signing::Unsigned,
        };
        let build = Some(&build).filter(|_| in_job);
        match Sharing::new(&ShareWish::of(&request), &host, build, dry_run)
            .map(|sharing| sharing.how)
        {
            Ok(How::Off) => "off".into(),
            Ok(How::OffByKey) => "off by key".into(),
            Ok(How::Named(url)) => format!("named {url}"),
            Ok(How::Store(url)) => url.to_string(),
            Ok(How::Artifact { limit, .. }) => format!("artifact {limit}"),
            Err(failure) => {
                assert_eq!(failure.class, Class::Config);
                "refused".into()
            }
        }
    }

    #[test]
    fn a_recording_shares_as_its_key_says_or_its_host_or_in_a_job_as_an_artifact() {
        let named = format!("named {URL}");
        for (key, host, in_job, by_hand, dry_run) in [
            (None, None, "artifact 128", "off", "off"),
            (None, Some("artifact"), "artifact 2048", "off", "off"),
            (
                Some("artifact"),
                Some(URL),
                "artifact 2048",
                "refused",
                "off",
            ),
            (None, Some(URL), URL, URL, named.as_str()),
            (Some(URL), Some("false"), URL, URL, named.as_str()),
            (None, Some("false"), "off", "off", "off"),
            (
                Some("false"),
                Some(URL),
                "off by key",
                "off by key",
                "off by key",
            ),
        ] {
            assert_eq!(how(key, host, true, false), in_job, "{key:?} {host:?}");
            assert_eq!(how(key, host, false, false), by_hand, "{key:?} {host:?}");
            for is_job in [true, false] {
                assert_eq!(how(key, host, is_job, true), dry_run, "{key:?} {host:?}");
            }
        }
    }

    #[test]
    fn what_is_required_cannot_be_turned_off() {
        for (key, host, expected) in [
            (Some("false"), None, "refused"),
            (Some("false"), Some(URL), "refused"),
            (None, Some("false"), "refused"),
            (Some(URL), Some("false"), URL),
            (None, None, "artifact 128"),
        ] {
            assert_eq!(how_required(true, key, host, true, false), expected);
        }
    }
}
