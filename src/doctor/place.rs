//! The host's settings and folders: the state folder, GC roots in it, the clock, temporary files, the disks.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Doctor, Outcome};
use crate::exit::Failure;
use crate::host;
use crate::private;
use crate::state::{self, StateSight, TrialRoot};
use crate::store::RootSight;

/// Seconds from 1970 to the year in which this program was written: no clock that is right shows less.
const WRITTEN: u64 = 1_767_225_600;

/// By how much clocks may differ.
const TOLERANCE: Duration = Duration::from_secs(60);

/// What the file says that is rooted on trial: always the same, so there is one at most.
const TRIAL: &str = "eval-once doctor looks whether a GC root keeps this file";

const NO_SETTINGS: &str = "the host's settings are refused: see `host-settings`";
const NO_STATE: &str = "there is no state folder";

impl Doctor<'_> {
    /// Whether the host's settings make sense.
    pub(super) fn host_settings(&mut self) -> Result<Outcome, Failure> {
        Ok(match &self.order.host {
            Err(refused) => {
                let mend = refused.hint.clone();
                Outcome::failure(
                    format!("{refused}: every step and recording ends with 64"),
                    mend.unwrap_or_else(|| {
                        "set it right where the agent's environment hook exports it".into()
                    }),
                )
            }
            Ok(host) => {
                let policy = if host.recorded_only {
                    "; a step never evaluates (EVAL_ONCE_POLICY=recorded-only)"
                } else {
                    ""
                };
                Outcome::ok(format!("evaluation slots: {}{policy}", host.evaluations))
            }
        })
    }

    /// The state folder, or why there is none.
    fn state(&self) -> Result<&Path, Outcome> {
        match &self.order.host {
            Err(_) => Err(Outcome::not_applicable(NO_SETTINGS)),
            Ok(host) => host
                .state
                .as_deref()
                .ok_or_else(|| Outcome::not_applicable(NO_STATE)),
        }
    }

    /// Whether the state folder can be used, and is its user's alone.
    pub(super) fn state_folder(&mut self) -> Result<Outcome, Failure> {
        let folder = match self.state() {
            Ok(folder) => folder,
            Err(Outcome::NotApplicable(why)) if why == NO_STATE => {
                return Ok(Outcome::failure(
                    "there is no state folder: neither EVAL_ONCE_STATE_DIR nor HOME is set, and recordings fail",
                    "set EVAL_ONCE_STATE_DIR in the agent's environment hook",
                ));
            }
            Err(outcome) => return Ok(outcome),
        };
        let shown = folder.display();
        Ok(match state::inspect(folder) {
            Err(unusable) => Outcome::failure(
                format!("{shown} cannot be used: {unusable}"),
                unusable
                    .mend()
                    .unwrap_or("set EVAL_ONCE_STATE_DIR to a folder of this user's own"),
            ),
            Ok(StateSight::Open { folder, mend }) => Outcome::warning(
                format!("{} is open to other users of this host", folder.display()),
                format!("{mend}; the next step or recording does so too"),
            ),
            Ok(StateSight::Withheld { folder, mend }) => Outcome::warning(
                format!(
                    "{} has a mode that keeps this user from it",
                    folder.display()
                ),
                format!("{mend}; the next step or recording does so too"),
            ),
            Ok(StateSight::Missing) => Outcome::ok(format!(
                "{shown} does not exist: the first step or recording makes it"
            )),
            Ok(StateSight::Closed) => Outcome::ok(format!("{shown} is this user's alone")),
        })
    }

    /// Whether a GC root in the state folder keeps what it refers to.
    pub(super) fn roots(&mut self) -> Result<Outcome, Failure> {
        let folder = match self.state() {
            Ok(folder) => folder.to_owned(),
            Err(outcome) => return Ok(outcome),
        };
        if matches!(
            state::inspect(&folder),
            Err(_) | Ok(StateSight::Withheld { .. })
        ) {
            return Ok(Outcome::not_applicable(
                "the state folder cannot be used as it is: see `state-folder`",
            ));
        }
        let trial = match TrialRoot::new(&folder) {
            Ok(trial) => trial,
            Err(error) => {
                return Ok(Outcome::failure(
                    format!("nothing can be made in {}: {error}", folder.display()),
                    "make it writable for this user, with room on its disk; or set EVAL_ONCE_STATE_DIR to another folder",
                ));
            }
        };
        if self.found.store.is_none() {
            return Ok(Outcome::not_applicable("there is no store that answers"));
        }
        let link = trial.link();
        let sight = self.store.try_root(self.supervisor, TRIAL, &link)?;
        let shown = folder.display();
        Ok(match sight {
            RootSight::Kept => Outcome::ok(format!(
                "a GC root in {shown} is seen, and was removed again"
            )),
            RootSight::Unseen => Outcome::failure(
                format!(
                    "what collects garbage does not see a GC root in {shown}: the next collection takes what is recorded"
                ),
                "mount the state folder at the same path where the Nix daemon runs, or set EVAL_ONCE_STATE_DIR to a folder that is",
            ),
            RootSight::No(why) => Outcome::failure(
                format!("no GC root can be made in {shown}: {why}"),
                "let this user write to the store, or start the Nix daemon",
            ),
        })
    }

    /// Whether the clock can be right, and is that of the state folder's disk.
    pub(super) fn clock(&mut self) -> Result<Outcome, Failure> {
        const MEND: &str = "let the clock be set from the network (`timedatectl set-ntp true`)";
        let now = SystemTime::now();
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        if since.as_secs() < WRITTEN {
            return Ok(Outcome::failure(
                format!(
                    "the clock shows a time before this program was written: {} s since 1970",
                    since.as_secs()
                ),
                MEND,
            ));
        }
        let Ok(folder) = self.state() else {
            return Ok(Outcome::ok("the clock shows a time that is possible"));
        };
        if let Some((file, written)) = state::latest(folder)
            && let Ok(ahead) = written.duration_since(now)
            && ahead > TOLERANCE
        {
            return Ok(Outcome::warning(
                format!(
                    "{} was written {} s from now: the clock was set back, and what has expired is kept for longer",
                    file.display(),
                    ahead.as_secs()
                ),
                MEND,
            ));
        }
        if state::inspect(folder).is_ok()
            && let Ok(made) = TrialRoot::new(folder).and_then(|trial| trial.made_at())
        {
            let difference = made
                .duration_since(now)
                .unwrap_or_else(|early| early.duration());
            if difference > TOLERANCE {
                return Ok(Outcome::warning(
                    format!(
                        "the clock of the disk of {} differs by {} s",
                        folder.display(),
                        difference.as_secs()
                    ),
                    "let the clocks of this host and of its file server be set from the network; or set EVAL_ONCE_STATE_DIR to a folder on a local disk",
                ));
            }
        }
        Ok(Outcome::ok(
            "the clock shows a time that is possible, and so does the state folder's disk",
        ))
    }

    /// Whether temporary files can be made.
    pub(super) fn temporary_folder(&mut self) -> Result<Outcome, Failure> {
        let folder = &self.order.temporary;
        let shown = folder.display();
        if let Err(refused) = state::check_temporary(folder) {
            return Ok(Outcome::failure(
                format!("{shown} cannot be used: {refused}"),
                refused.mend().unwrap_or("set TMPDIR to another folder"),
            ));
        }
        Ok(match private::temporary_file(folder, "eval-once-") {
            Ok(_) => Outcome::ok(format!("{shown} is writable")),
            Err(error) => Outcome::failure(
                format!("no file can be made in {shown}: {error}"),
                "make that folder, or set TMPDIR to one that exists and is writable",
            ),
        })
    }

    /// Whether the disks have room.
    pub(super) fn disk(&mut self) -> Result<Outcome, Failure> {
        let existing = |folder: &Path| {
            folder
                .ancestors()
                .find(|it| it.is_dir())
                .map(Path::to_owned)
        };
        let state = self.state().ok().and_then(existing);
        let folders = [
            self.local_store().map(Path::to_owned),
            state,
            existing(&self.order.temporary),
        ];
        let low: Vec<String> = folders
            .into_iter()
            .flatten()
            .filter_map(|folder| {
                let free = host::low_on_disk(&folder)?;
                Some(format!("{} has {free} free", folder.display()))
            })
            .collect();
        Ok(if low.is_empty() {
            Outcome::ok("the disks of the store, the state folder and temporary files have room")
        } else {
            Outcome::warning(low.join("; "), "collect garbage, or enlarge the disk")
        })
    }
}
