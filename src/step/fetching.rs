//! Fetching a recorded `.drv` from a share: which share, and getting the `.drv` with its closure into the store from there.

use std::time::Instant;

use super::run::StepRun;
use crate::exit::{Class, Failure};
use crate::nix::{DrvPath, StoreUrl};
use crate::share::{ArchiveRecord, ShareError, unpacked};
use crate::share_keys::{Share, ShareSetting, StepShare};
use crate::state::{CopyTurn, KEEP_DAYS, LockWait};
use crate::store::{ATTEMPTS, NotCopied};
use crate::supervise::PATIENCE;

/// What stands in the message of a Nix 2.8 that copies a path which another process has registered meanwhile: it takes the begin of
/// that path's contents for the next path. (Of eight copies of one closure at once seven failed, each time, with and without a daemon;
/// none with 2.26 or 2.34.) So such a copy is repeated alone.
const DISTURBED: &str = "nix-archive-1";

impl StepRun<'_> {
    /// The share that the step can fetch from: its own, else the host's. (Which artifact it is, only the record of a step can say.)
    pub(super) fn share(&self) -> Option<Share> {
        match (&self.request.share, &self.host.share) {
            (Some(StepShare::From(share)), _) => Some(share.clone()),
            (None, Some(ShareSetting::Store(url))) => Some(Share::Store(url.clone())),
            _ => None,
        }
    }

    /// Gets a `.drv` with its closure from a share into the store.
    pub(super) fn fetch(&mut self, drv: &DrvPath, share: &Share) -> Result<(), ShareError> {
        let started = Instant::now();
        let fetched = match share {
            Share::Store(url) => self.copy_from_store(drv, url),
            Share::Artifact(name) => self.copy_from_archive(drv, name),
        };
        self.seconds.fetch += started.elapsed();
        fetched
    }

    fn copy_from_store(&mut self, drv: &DrvPath, url: &StoreUrl) -> Result<(), ShareError> {
        if self.store.is_unreachable(url) {
            return Err(wrong("it is unreachable"));
        }
        self.copy(drv, url)
    }

    fn copy_from_archive(&mut self, drv: &DrvPath, name: &str) -> Result<(), ShareError> {
        let archive = ArchiveRecord {
            name,
            size: self.request.share_size,
            keep_days: self.request.keep_days.unwrap_or(KEEP_DAYS),
            in_build: self.in_build,
        };
        // Opened before the supervisor is lent.
        self.state();
        let Some(Some(state)) = self.state.get() else {
            return Err(wrong("there is no state folder to unpack it in"));
        };
        let archive = unpacked(&archive, state, self.supervisor, &self.log)?;
        let copied = self.copy(drv, &archive.url);
        if let Err(ShareError::Share(_)) = &copied {
            archive.discard();
        }
        copied
    }

    fn copy(&mut self, drv: &DrvPath, url: &StoreUrl) -> Result<(), ShareError> {
        let mut attempt = 1;
        loop {
            let turn = self.copy_turn(attempt > 1)?;
            let copied = self.store.copy_drv_from(self.supervisor, url, drv);
            drop(turn);
            match copied {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(NotCopied::Failed(why)))
                    if attempt < ATTEMPTS
                        && (why.contains(DISTURBED) || is_of_dependency(&why, drv)) =>
                {
                    attempt += 1;
                }
                Ok(Err(why)) => return Err(wrong(in_words(why.to_string(), drv))),
                Err(failure) if matches!(failure.class, Class::Signal(_)) => {
                    return Err(failure.into());
                }
                // A program that is missing here, say: there are other ways.
                Err(failure) => return Err(wrong(failure.to_string())),
            }
        }
    }

    /// Waits for a turn to copy, beside other steps or `alone`; none without a state folder, or where others have theirs for too long.
    fn copy_turn(&mut self, alone: bool) -> Result<Option<CopyTurn>, Failure> {
        let mut wait = LockWait::new("a turn to copy");
        // Opened before the supervisor is lent.
        self.state();
        let Some(Some(state)) = self.state.get() else {
            return Ok(None);
        };
        while wait.elapsed() < PATIENCE {
            match state.try_copy_turn(alone) {
                Ok(None) => wait.pause(&[state.copy_lock()], self.supervisor, &self.log)?,
                Ok(turn) => return Ok(turn),
                // Without turns it may be disturbed, and nothing worse.
                Err(_) => return Ok(None),
            }
        }
        Ok(None)
    }
}

/// The failure of a step that may not evaluate, where its share has failed for this reason: a clause that goes on after the `.drv`.
pub(super) fn share_is_required(drv: &DrvPath, why: &str) -> Failure {
    Failure::new(
        Class::Infrastructure,
        format_args!(
            "{drv} is not here, {why}, and `share-required` does not let the step evaluate"
        ),
    )
}

/// The path that a store does not have, as it says (the words of 2.8, and of 2.26 and 2.34). It is the share that lacks it, or this
/// host's store: a path that was valid is not copied, and a collection may take it before what refers to it is registered (2.34 has
/// words of its own for that).
fn missing(why: &str) -> Option<&str> {
    let is_missing = [
        ("path ", " is not valid"),
        ("path ", " is not a valid store path"),
        ("store path ", " does not exist"),
    ]
    .iter()
    .any(|(begin, end)| why.starts_with(begin) && why.ends_with(end));
    why.split(['\'', '"']).nth(1).filter(|_| is_missing)
}

/// Whether a copy of `drv` has failed for want of another path. Another copy asks again what is valid.
fn is_of_dependency(why: &str, drv: &DrvPath) -> bool {
    missing(why).is_some_and(|path| path != drv.as_store_path().as_str())
}

/// Why a copy of `drv` has failed, without Nix's idea of validity.
fn in_words(why: String, drv: &DrvPath) -> String {
    match missing(&why) {
        Some(path) if path == drv.as_store_path().as_str() => "it does not have the .drv".into(),
        Some(path) => format!("it does not have {path}"),
        None => why,
    }
}

fn wrong(why: impl Into<String>) -> ShareError {
    ShareError::Share(why.into())
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::DRV;
    use super::*;

    #[test]
    fn a_share_that_lacks_a_path_is_told_from_one_that_failed() {
        let drv = DrvPath::parse(DRV).unwrap();
        let said = |why: &str| in_words(why.to_owned(), &drv);
        for (begin, end) in [
            ("path", "is not valid"),
            ("path", "is not a valid store path"),
            ("store path", "does not exist"),
        ] {
            let of = |path: &str| format!("{begin} '{path}' {end}");
            assert_eq!(said(&of(DRV)), "it does not have the .drv");
            assert_eq!(said(&of("/s/x")), "it does not have /s/x");
            assert!(is_of_dependency(&of("/s/x"), &drv) && !is_of_dependency(&of(DRV), &drv));
        }
        for why in [
            "unable to download 'http://x/nix-cache-info'",
            "path '/s/x' is too long",
        ] {
            assert_eq!(said(why), why);
        }
    }
}
