//! The archive of a recording, unpacked on this host: downloaded once, used by every step that needs it.

use std::fs;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use super::ShareError;
use super::archive_name::{archive_name, sha256_of_name};
use super::download::{download, sha256_of_artifact};
use super::unpack::unpack;
use crate::host;
use crate::log::Log;
use crate::nix::StoreUrl;
use crate::private;
use crate::state::{self, CommonKind, Filling, FolderInUse, Seen, StateFolder};
use crate::status_line::StatusLine;
use crate::supervise::{PATIENCE, Supervisor};

/// What an archive may unpack to where its record does not say.
const SIZE_AT_MOST: u64 = 2 << 30;

/// The folder of a download, in the one that is filled. No entry of an archive has this name.
const DOWNLOAD: &str = "download";

/// Why nothing is downloaded outside a job.
const NO_JOB: &str = "this is no Buildkite job, which could download it";

/// An archive as the record of a step names it.
#[derive(Debug, Clone, Copy)]
pub struct ArchiveRecord<'r> {
    /// The name of the artifact.
    pub name: &'r str,
    /// How many bytes it unpacks to, where that is said.
    pub size: Option<u64>,
    /// For how many days it is kept after its last use.
    pub keep_days: u64,
    /// Whether this is a job of its build, which can download it.
    pub in_build: bool,
}

/// An archive that is unpacked here, as a store. It is not removed while this exists.
#[derive(Debug)]
pub struct UnpackedArchive {
    /// The store to copy from.
    pub url: StoreUrl,
    /// Whether it was downloaded just now.
    is_new: bool,
    folder: FolderInUse,
}

impl UnpackedArchive {
    /// Removes it after it was of no use, so that the next step downloads it anew: a host that lost its power may have kept
    /// the files without all of their contents. One that was downloaded just now stays, for it would be the same again.
    pub fn discard(self) {
        if !self.is_new {
            self.folder.discard();
        }
    }
}

/// Where an archive is unpacked, or would be.
#[derive(Debug)]
pub struct ArchivePlace {
    /// The folder that it is downloaded to.
    pub download_to: PathBuf,
    /// The store that it becomes, where Nix can read one there.
    pub url: Option<StoreUrl>,
    /// Whether it is unpacked there already.
    pub is_unpacked: bool,
}

impl ArchivePlace {
    /// Where the archive of this name has its place below a state folder. (`NEW` stands for what only the agent knows of one
    /// that does not name its content.)
    #[must_use]
    pub fn of(state: &Path, name: &str) -> Self {
        let folder = folder_name(sha256_of_name(name).unwrap_or("NEW"));
        let folder = state.join(CommonKind::Share.folder()).join(folder);
        let cache = folder.join(state::CACHE);
        Self {
            download_to: folder.join(format!("{}NEW", state::FILLING)).join(DOWNLOAD),
            url: store_at(&cache).ok(),
            is_unpacked: cache.is_dir(),
        }
    }
}

/// The name of the folder of the archive with this SHA-256.
fn folder_name(sha256: &str) -> String {
    let name = archive_name(sha256);
    name.strip_suffix(".tar").unwrap_or(&name).to_owned()
}

/// Downloads and unpacks an archive, unless that was done; of several steps at once, one does.
///
/// # Errors
/// It cannot be downloaded or unpacked; a signal asked us to end.
pub fn unpacked(
    archive: &ArchiveRecord<'_>,
    state: &StateFolder,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<UnpackedArchive, ShareError> {
    let sha256 = match sha256_of_name(archive.name) {
        Some(sha256) => sha256.to_owned(),
        None if !archive.in_build => return Err(wrong(NO_JOB)),
        None => sha256_of_artifact(supervisor, archive.name)?,
    };
    let _ = state.sweep_common(CommonKind::Share);
    let mut folder = state.common(
        CommonKind::Share,
        &folder_name(&sha256),
        archive.keep_days,
        PATIENCE,
    );
    let mut status = StatusLine::new(log);
    let mut waits = false;
    let mut is_new = false;
    let what = format!("another step that downloads {}", archive.name);
    let folder = loop {
        let seen = folder.wait(&what, supervisor, log, || {
            if !std::mem::replace(&mut waits, true) {
                log.debug(format_args!("waiting for {what}"));
            }
            status.show(|| Some(format!("another step downloads {}", archive.name)));
        })?;
        match seen.map_err(|error| no_folder(&error))? {
            Seen::Complete(folder) => break folder,
            Seen::Ours(_) if is_new => return Err(wrong("it was removed at once")),
            Seen::Ours(_) if !archive.in_build => return Err(wrong(NO_JOB)),
            Seen::Ours(filling) => {
                status.clear();
                match fill(archive, &sha256, &filling, state, supervisor, log) {
                    Ok(()) => {}
                    Err(ShareError::Share(why)) => {
                        filling.fail(&why);
                        return Err(wrong(why));
                    }
                    Err(ends) => return Err(ends),
                }
                filling.complete().map_err(|error| no_folder(&error))?;
                is_new = true;
            }
            Seen::Stalled => {
                return Err(wrong(format!(
                    "another step downloads it, which has not moved for {} s",
                    PATIENCE.as_secs()
                )));
            }
            Seen::Failed(why) => return Err(wrong(why)),
        }
    };
    status.clear();
    let url = store_at(folder.path()).map_err(wrong)?;
    Ok(UnpackedArchive {
        url,
        is_new,
        folder,
    })
}

fn wrong(why: impl Into<String>) -> ShareError {
    ShareError::Share(why.into())
}

fn no_folder(error: &io::Error) -> ShareError {
    wrong(format!(
        "it cannot be unpacked in the state folder: {error}"
    ))
}

/// Downloads and unpacks an archive into a folder that is ours to fill.
fn fill(
    archive: &ArchiveRecord<'_>,
    sha256: &str,
    filling: &Filling,
    state: &StateFolder,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<(), ShareError> {
    let cache = filling.path();
    let _ = state.make_room(CommonKind::Share, || host::low_on_disk(cache).is_some());
    // In the folder that is filled, so that it goes with it where we are killed.
    let download_to = cache.join(DOWNLOAD);
    private::make_folder(&download_to).map_err(|error| no_folder(&error))?;
    let size = archive.size.unwrap_or(SIZE_AT_MOST);
    let mut status = StatusLine::new(log);
    let downloaded = download(
        supervisor,
        archive.name,
        sha256,
        &download_to,
        size,
        |bytes| {
            filling.note_movement();
            status.show(|| Some(format!("downloading {}: {} MiB", archive.name, bytes >> 20)));
        },
    );
    status.clear();
    let file = BufReader::new(downloaded?);
    // The file remains open, and its room is free once it is read.
    fs::remove_dir_all(&download_to).map_err(|error| no_folder(&error))?;
    unpack(file, cache, size, || {
        filling.note_movement();
        supervisor.check()
    })
}

/// The store in a folder; else why Nix cannot read it, as a sentence.
fn store_at(folder: &Path) -> Result<StoreUrl, String> {
    StoreUrl::of_folder(folder).ok_or_else(|| {
        format!(
            "Nix cannot read a store at {}: set EVAL_ONCE_STATE_DIR to a folder with a plain name",
            folder.display()
        )
    })
}
