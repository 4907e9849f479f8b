//! The share that the host sets (`EVAL_ONCE_SHARE`): whether it can be read and written.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{Doctor, Outcome};
use crate::exit::Failure;
use crate::nix::{StoreUrl, caches};
use crate::private;
use crate::share_keys::ShareSetting;
use crate::store::wrong_with_folder;

const MEND: &str =
    "check the URL in EVAL_ONCE_SHARE, this host's network, and its credentials for the store";

impl Doctor<'_> {
    /// The host's share, where it is a store.
    fn share(&self) -> Result<StoreUrl, Outcome> {
        let Ok(host) = &self.order.host else {
            return Err(Outcome::not_applicable(
                "the host's settings are refused: see `host-settings`",
            ));
        };
        match &host.share {
            Some(ShareSetting::Store(url)) => Ok(url.clone()),
            Some(ShareSetting::Off) => Err(Outcome::not_applicable("EVAL_ONCE_SHARE is false")),
            Some(ShareSetting::Artifact) | None => Err(Outcome::not_applicable(
                "recordings share by an artifact of the build (EVAL_ONCE_SHARE names no store)",
            )),
        }
    }

    /// Whether the share can be read, as every step does.
    pub(super) fn share_read(&mut self) -> Result<Outcome, Failure> {
        let url = match self.share() {
            Ok(url) => url,
            Err(outcome) => return Ok(outcome),
        };
        let (Some(path), Some(store)) = (&self.found.missing, &self.found.store) else {
            return Ok(Outcome::not_applicable("there is no store that answers"));
        };
        let path = path.clone();
        let not_read = |why| Outcome::failure(format!("{url} cannot be read: {why}"), MEND);
        // Nix would make folders in it, even to read.
        if caches::folder_of_cache(url.as_str()).is_some() {
            return Ok(match wrong_with_folder(url.as_str(), store) {
                None => Outcome::ok(format!("{url} can be read")),
                Some(why) => not_read(why),
            });
        }
        let Ok(empty) = private::temporary_folder(&self.order.temporary, "eval-once-") else {
            return Ok(Outcome::not_applicable(
                "no temporary folder can be made: see `temporary-folder`",
            ));
        };
        let answer = self
            .store
            .reads_from(self.supervisor, &url, &path, empty.path())?;
        Ok(match answer {
            Ok(()) => Outcome::ok(format!("{url} can be read")),
            Err(why) => not_read(why),
        })
    }

    /// Whether the share can be written, as recordings do.
    pub(super) fn share_write(&mut self) -> Result<Outcome, Failure> {
        let url = match self.share() {
            Ok(url) => url,
            Err(outcome) => return Ok(outcome),
        };
        let not_written = |why: String| {
            Outcome::warning(
                format!("{url} cannot be written, as recordings do: {why}"),
                MEND,
            )
        };
        if let Some(folder) = caches::folder_of_cache(url.as_str()) {
            let Some(store) = &self.found.store else {
                return Ok(Outcome::not_applicable("there is no store that answers"));
            };
            if let Some(why) = wrong_with_folder(url.as_str(), store) {
                return Ok(not_written(why.to_string()));
            }
            // Contents are in `nar`, where there are any.
            let parts = [folder.clone(), folder.join("nar")];
            let failed = parts
                .iter()
                .filter(|part| **part == folder || part.is_dir())
                .find_map(|part| {
                    let error = private::temporary_file(part, "eval-once-").err()?;
                    Some(format!("{}: {error}", part.display()))
                });
            return Ok(match failed {
                None => Outcome::ok(format!("{url} can be written")),
                Some(why) => not_written(why),
            });
        }
        if !self.order.write_share {
            return Ok(Outcome::not_applicable(
                "not tried: `--write-share` copies a file of 100 bytes there, which stays",
            ));
        }
        if self.found.store.is_none() {
            return Ok(Outcome::not_applicable("there is no store that answers"));
        }
        // What the store has already would not be written again.
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let text = format!(
            "eval-once doctor has written this {} ns after 1970",
            now.unwrap_or_default().as_nanos()
        );
        let path = match self.store.write_small_file(self.supervisor, &text)? {
            Ok(path) => path,
            Err(why) => return Ok(not_written(why.to_string())),
        };
        Ok(match self.store.writes_to(self.supervisor, &url, &path)? {
            Ok(()) => Outcome::ok(format!("{url} can be written: {path} is there now")),
            Err(why) => not_written(why.to_string()),
        })
    }
}
