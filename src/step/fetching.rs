//! Fetching a recorded `.drv` from a share: which share, and getting the `.drv` with its closure into the store from there.

use std::time::Instant;

use super::run::StepRun;
use crate::exit::Failure;
use crate::nix::{DrvPath, StoreUrl};
use crate::share::{ArchiveRecord, UnpackedArchive, unpacked};
use crate::share_keys::{Share, ShareSetting, StepShare};
use crate::state::KEEP_DAYS;
use crate::status_line::StatusLine;
use crate::store::{CopyEnd, CopyOrder, PATIENCE};

impl StepRun<'_> {
    /// The share that the step can fetch from: its own, else the host's. (As an artifact, a share has a name that only the record
    /// of a step can say.)
    pub(super) fn share(&self) -> Option<Share> {
        match (&self.request.share, &self.host.share) {
            (Some(StepShare::From(share)), _) => Some(share.clone()),
            (None, Some(ShareSetting::Store(url))) => Some(Share::Store(url.clone())),
            _ => None,
        }
    }

    /// The archive of a share, as the step's record describes it.
    pub(super) fn archive<'n>(&self, name: &'n str) -> ArchiveRecord<'n> {
        ArchiveRecord {
            name,
            size: self.request.share_size,
            keep_days: self.request.keep_days.unwrap_or(KEEP_DAYS),
        }
    }

    /// Gets a `.drv` with its closure from a share into the store. Inside, why that failed, as a sentence.
    pub(super) fn fetch(
        &mut self,
        drv: &DrvPath,
        share: &Share,
    ) -> Result<Result<(), String>, Failure> {
        let started = Instant::now();
        let fetched = match share {
            Share::Store(url) => self.copy_from(drv, url),
            Share::Artifact(name) => match self.unpacked_archive(name)? {
                Ok(archive) => self.copy_from(drv, &archive.url),
                Err(why) => Ok(Err(why)),
            },
        };
        self.seconds.fetch += started.elapsed();
        fetched
    }

    fn unpacked_archive(&mut self, name: &str) -> Result<Result<UnpackedArchive, String>, Failure> {
        if !self.in_build {
            return Ok(Err(
                "this is no Buildkite job, which could download it".into()
            ));
        }
        let archive = self.archive(name);
        // Opened here, and not by `self.state()`: the supervisor is lent meanwhile.
        let log = self.log.clone();
        if self.state().is_none() {
            return Ok(Err("there is no state folder to unpack it in".into()));
        }
        match self.state.get() {
            Some(Some(state)) => unpacked(&archive, state, self.supervisor, &log),
            _ => Ok(Err("there is no state folder to unpack it in".into())),
        }
    }

    fn copy_from(&mut self, drv: &DrvPath, url: &StoreUrl) -> Result<Result<(), String>, Failure> {
        let mut status = StatusLine::new(&self.log);
        let end = self
            .store
            .copy_drv_from(self.supervisor, url, drv, |progress| {
                status.show(|| {
                    Some(format!(
                        "fetching {}: {} of {} paths",
                        drv.name(),
                        progress.done,
                        progress.expected
                    ))
                });
                CopyOrder::GoOn
            });
        status.clear();
        Ok(match end? {
            CopyEnd::Done => Ok(()),
            CopyEnd::Stopped | CopyEnd::Stalled => {
                let seconds = PATIENCE.as_secs();
                Err(format!("nothing has moved for {seconds} s"))
            }
            CopyEnd::Failed(why) => Err(why),
        })
    }
}
