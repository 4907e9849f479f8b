//! The archive of a recording, unpacked on this host: downloaded once, used by every step that needs it.

use std::fs::{self, DirBuilder};
use std::io::BufReader;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::archive_name::{archive_name, sha256_of_name};
use super::download::{download, sha256_of_artifact};
use super::unpack::unpack;
use crate::exit::Failure;
use crate::host;
use crate::log::Log;
use crate::nix::StoreUrl;
use crate::state::{self, CommonKind, Filling, FolderInUse, Seen, StateFolder};
use crate::status_line::StatusLine;
use crate::store::PATIENCE;
use crate::supervise::Supervisor;

/// What an archive may unpack to where its record does not say.
const SIZE_AT_MOST: u64 = 2 << 30;

/// The folder of a download, in the one that is filled. No entry of an archive has this name.
const DOWNLOAD: &str = "download";

/// How often a folder is looked at that another step fills.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// An archive as the record of a step names it.
#[derive(Debug, Clone, Copy)]
pub struct ArchiveRecord<'r> {
    /// The name of the artifact.
    pub name: &'r str,
    /// How many bytes it unpacks to, where that is said.
    pub size: Option<u64>,
    /// For how many days it is kept after its last use.
    pub keep_days: u64,
}

/// An archive that is unpacked here, as a store. It is not removed while this exists.
#[derive(Debug)]
pub struct UnpackedArchive {
    /// The store to copy from.
    pub url: StoreUrl,
    #[expect(dead_code, reason = "holds a lock")]
    folder: FolderInUse,
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
            download_to: folder.join(state::FILLING).join(DOWNLOAD),
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
/// A signal asked us to end (128 + n). Inside, why there is none, as a sentence.
pub fn unpacked(
    archive: &ArchiveRecord<'_>,
    state: &StateFolder,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<Result<UnpackedArchive, String>, Failure> {
    let sha256 = match sha256_of_name(archive.name) {
        Some(sha256) => sha256.to_owned(),
        None => match sha256_of_artifact(supervisor, archive.name)? {
            Ok(sha256) => sha256,
            Err(why) => return Ok(Err(why)),
        },
    };
    let mut folder = state.common(
        CommonKind::Share,
        &folder_name(&sha256),
        archive.keep_days,
        PATIENCE,
    );
    loop {
        match folder.look() {
            Ok(Seen::Complete(folder)) => return Ok(as_store(folder)),
            Ok(Seen::Ours(filling)) => {
                let filled = fill(archive, &sha256, &filling, state, supervisor, log)?;
                return Ok(match filled {
                    Ok(()) => match filling.complete() {
                        Ok(folder) => as_store(folder),
                        Err(error) => Err(format!("it cannot be unpacked: {error}")),
                    },
                    Err(why) => {
                        filling.fail(&why);
                        Err(why)
                    }
                });
            }
            Ok(Seen::Busy) => supervisor.pause(LOOK_EVERY)?,
            Ok(Seen::Stalled) => {
                let seconds = PATIENCE.as_secs();
                return Ok(Err(format!(
                    "another step downloads it, and nothing has moved for {seconds} s"
                )));
            }
            Ok(Seen::Failed(why)) => return Ok(Err(why)),
            Err(error) => return Ok(Err(format!("the state folder cannot be used: {error}"))),
        }
    }
}

/// Downloads and unpacks an archive into a folder that is ours to fill.
fn fill(
    archive: &ArchiveRecord<'_>,
    sha256: &str,
    filling: &Filling,
    state: &StateFolder,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<Result<(), String>, Failure> {
    let cache = filling.path();
    let low = host::low_on_disk(&cache).is_some();
    let _ = state.sweep_common(CommonKind::Share, low);
    // In the folder that is filled, so that it goes with it where we are killed.
    let download_to = cache.join(DOWNLOAD);
    if let Err(error) = DirBuilder::new().mode(0o700).create(&download_to) {
        return Ok(Err(format!("it cannot be downloaded: {error}")));
    }
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
    let file = match downloaded? {
        Ok(file) => file,
        Err(why) => return Ok(Err(why)),
    };
    filling.note_movement();
    let unpacked = unpack(BufReader::new(file), &cache, size, || {
        filling.note_movement();
        supervisor.check()
    });
    if let Err(why) = unpacked? {
        return Ok(Err(format!("{} {why}", archive.name)));
    }
    Ok(fs::remove_dir_all(&download_to)
        .map_err(|error| format!("the download cannot be removed: {error}")))
}

fn as_store(folder: FolderInUse) -> Result<UnpackedArchive, String> {
    let url = store_at(folder.path())?;
    Ok(UnpackedArchive { url, folder })
}

/// The store in a folder; else why Nix cannot read it, as a sentence.
fn store_at(folder: &Path) -> Result<StoreUrl, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+~@=:,".contains(c);
    // Not each version of Nix decodes what stands for another character in a URL.
    let text = folder.to_str().filter(|text| text.chars().all(is_plain));
    let url = text.and_then(|text| StoreUrl::parse(&format!("file://{text}")).ok());
    url.ok_or_else(|| {
        format!(
            "Nix cannot read a store at {}: set EVAL_ONCE_STATE_DIR to a folder with a plain name",
            folder.display()
        )
    })
}
