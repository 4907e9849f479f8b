//! The pin: one small store file that refers to every recorded `.drv`, and the GC root that keeps it.

use std::path::Path;
use std::time::SystemTime;

use super::content::{PinOwner, pin_text};
use super::folder::{hold, seconds, write_expiry};
use crate::command_line::CommandLine;
use crate::exit::{Class, Classify as _, Failure};
use crate::log::Log;
use crate::nix::{AttrPath, DrvPath, StorePath, command};
use crate::recording::FoundTarget;
use crate::state::StateFolder;
use crate::store::{Answer, Keeper, Kept, Store};
use crate::supervise::Supervisor;

/// The result of pinning.
#[derive(Debug)]
pub(in crate::recording) enum PinResult {
    /// This file keeps all `.drv`s; and the answers to the questions that were asked meanwhile, in their order.
    Pinned(StorePath, Vec<Answer>),
    /// These are not valid any more.
    Gone(Vec<DrvPath>),
}

/// What a pin keeps.
#[derive(Debug)]
pub(in crate::recording) struct PinnedDrvs<'a> {
    /// The targets, with their attribute paths.
    pub(super) targets: Vec<(&'a AttrPath, &'a DrvPath)>,
    /// Others: what steps behind the targets run.
    pub(super) run: Vec<&'a DrvPath>,
}

impl<'a> PinnedDrvs<'a> {
    /// All `.drv`s of these targets.
    pub(super) fn of(found: impl IntoIterator<Item = &'a FoundTarget>) -> Self {
        let (mut targets, mut run) = (Vec::new(), Vec::new());
        for found in found {
            targets.push((&found.attr, &found.drv));
            run.extend(found.meta.run_drvs());
        }
        Self { targets, run }
    }

    /// These `.drv`s, of which no attribute path is known.
    pub(in crate::recording) fn without_paths(drvs: impl IntoIterator<Item = &'a DrvPath>) -> Self {
        Self {
            targets: Vec::new(),
            run: drvs.into_iter().collect(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// Leaves these out.
    pub(super) fn remove(&mut self, gone: &[DrvPath]) {
        self.targets.retain(|(_, drv)| !gone.contains(drv));
        self.run.retain(|drv| !gone.contains(drv));
    }
}

/// Keeps these `.drv`s. `beside` runs while Nix writes the pin, and returns the questions that Nix is asked while the pin
/// is rooted.
///
/// # Errors
/// The state folder or the store fails (75).
#[expect(
    clippy::too_many_arguments,
    reason = "what is pinned, whose it is, and what asks Nix are three things each"
)]
pub(in crate::recording) fn pin(
    recorded: &PinnedDrvs<'_>,
    owner: &PinOwner,
    keep_days: u32,
    state: &StateFolder,
    store: &mut Store,
    supervisor: &mut Supervisor,
    log: &Log,
    beside: impl FnOnce(&command::Options) -> Vec<CommandLine>,
) -> Result<PinResult, Failure> {
    let folder = state.pins().join(&owner.folder);
    let in_state = || format!("cannot keep a pin in {}", folder.display());
    let _held = hold(&folder, supervisor, log)?;
    let now = seconds(SystemTime::now());
    let until = now + u64::from(keep_days) * 24 * 60 * 60;
    write_expiry(state, &folder, until).classify(Class::Infrastructure, in_state)?;
    let link = folder.join("pin");
    let targets = recorded.targets.iter().map(|(_, drv)| *drv);
    let keeper = Keeper {
        name: "the pin",
        text: pin_text(&recorded.targets, owner, now)?,
        drvs: targets.chain(recorded.run.iter().copied()).collect(),
        link: &link,
        asks_roots: true,
    };
    match store.keep(&keeper, state, supervisor, beside)? {
        Kept::Gone(gone) => Ok(PinResult::Gone(gone)),
        Kept::By {
            file,
            is_seen,
            answers,
        } => {
            if !is_seen {
                warn_of_root(&link, log);
            }
            Ok(PinResult::Pinned(file, answers))
        }
    }
}

/// Warns that the daemon does not see the root, as in a container whose folders it does not share: the next collection would take
/// everything.
fn warn_of_root(link: &Path, log: &Log) {
    log.warn(format_args!(
        "the Nix daemon does not see {}, so its next collection takes what was recorded: \
         mount the state folder at the same path where the daemon runs, or set EVAL_ONCE_STATE_DIR to a folder that is",
        link.display()
    ));
}
