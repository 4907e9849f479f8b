//! How a recording shares: whether, how, and what follows where that fails.

use super::pipeline::steps::share_keys;
use super::{BuildkiteBuild, RecordingRequest};
use crate::exit::{Class, Failure};
use crate::host::Host;
use crate::keys::{Keys, refuse};
use crate::log::Log;
use crate::nix::DrvPath;
use crate::share::{NotShared, Publisher};
use crate::share_keys::{Share, ShareSetting};
use crate::store::Store;
use crate::supervise::Supervisor;

/// The most that is shared as an artifact where no key and no setting of the host asks for it, and where one does, in MiB.
const LIMIT: u64 = 128;
const LIMIT_WHERE_ASKED: u64 = 2048;

/// How a recording shares.
#[derive(Debug)]
pub(super) struct Sharing {
    setting: ShareSetting,
    /// Whether the recording's key turns it off: then steps do not use their hosts' setting either.
    off_by_key: bool,
    /// The most that an archive may take, in MiB.
    limit: u64,
    required: bool,
    keep_days: u32,
}

impl Sharing {
    /// How this recording shares: as its key says, or the host's setting; else as an artifact, in a job.
    ///
    /// # Errors
    /// An artifact is asked for where there is no build to have it (64).
    pub(super) fn new(
        request: &RecordingRequest,
        host: &Host,
        build: Option<&BuildkiteBuild>,
        dry_run: bool,
    ) -> Result<Self, Failure> {
        if request.share == Some(ShareSetting::Artifact) && build.is_none() && !dry_run {
            return Err(refuse(
                "`share: artifact` needs a job: by hand, there is no build that the artifact could belong to",
            )
            .hint("set `share` to the URL of a store, or record in a job; `--dry-run` prints the pipeline"));
        }
        let asked = request.share.as_ref().or(host.share.as_ref()).cloned();
        let default_limit = match asked {
            Some(_) => LIMIT_WHERE_ASKED,
            None => LIMIT,
        };
        let setting = match (asked, build) {
            (Some(ShareSetting::Artifact) | None, None) => ShareSetting::Off,
            (None, Some(_)) => ShareSetting::Artifact,
            (Some(asked), _) => asked,
        };
        Ok(Self {
            setting,
            off_by_key: request.share == Some(ShareSetting::Off),
            limit: request.share_limit.unwrap_or(default_limit),
            required: request.share_required,
            keep_days: request.keep_days,
        })
    }

    /// Shares these `.drv`s. Returns the keys of the records whose steps can fetch them. In a dry run (there is no `build` then)
    /// nothing is copied.
    ///
    /// # Errors
    /// It fails, and `share-required` is set (75); a signal asked us to end.
    #[expect(clippy::too_many_arguments, reason = "each is another thing")]
    pub(super) fn share(
        &self,
        drvs: &[&DrvPath],
        build: Option<&BuildkiteBuild>,
        dry_run: bool,
        host: &Host,
        store: &mut Store,
        supervisor: &mut Supervisor,
        log: &Log,
    ) -> Result<Keys, Failure> {
        if self.off_by_key {
            return Ok(Keys::from_iter([("share".to_owned(), false.into())]));
        }
        if drvs.is_empty() {
            return Ok(Keys::new());
        }
        let mut publisher = Publisher {
            drvs,
            store,
            supervisor,
            log,
        };
        let published = match (&self.setting, build) {
            (ShareSetting::Store(url), _) if dry_run => {
                return Ok(share_keys(&Share::Store(url.clone()), None, self.keep_days));
            }
            (ShareSetting::Store(url), _) => publisher.to_store(url),
            (ShareSetting::Artifact, Some(build)) if !dry_run => {
                let limit = self.limit.saturating_mul(1 << 20);
                publisher.as_artifact(limit, build.is_retry, &host.temporary)
            }
            _ => return Ok(Keys::new()),
        };
        match published {
            Ok(published) => {
                log.say(published.sentence);
                Ok(share_keys(
                    &published.share,
                    published.unpacked,
                    self.keep_days,
                ))
            }
            Err(NotShared::Stopped(failure)) => Err(failure),
            Err(NotShared::Because { reason, hint }) if self.required => {
                let failure = Failure::new(
                    Class::Infrastructure,
                    format_args!(
                        "cannot share the .drv files, and `share-required` is set: {reason}"
                    ),
                );
                Err(failure.hint(hint.unwrap_or_else(|| "retry the job".into())))
            }
            Err(NotShared::Because { reason, hint }) => {
                log.warn(format_args!(
                    "the .drv files are not shared, and steps on other hosts evaluate again: {reason}"
                ));
                if let Some(hint) = hint {
                    log.say(format_args!("hint: {hint}"));
                }
                Ok(Keys::new())
            }
        }
    }
}
