//! What a stopped recording has found, kept for a later job that records the same: a file beside a pin of its own.
//!
//! The same are the keys, the pipeline, the commit, and all that an evaluation can see in its checkout; by hand nothing is kept. Only
//! eval-once reads the file, and damage to it only means that everything is evaluated again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::content::PinOwner;
use super::folder::{self, hold, seconds, write_expiry};
use super::pin::{PinResult, PinnedDrvs, pin};
use super::seen;
use crate::buildkite::git;
use crate::command_line::CommandLine;
use crate::counts::number;
use crate::exit::{Class, Classify as _, Failure};
use crate::fingerprint::fingerprint;
use crate::log::Log;
use crate::nix::{DrvPath, LockedFlake, Source, StorePath, is_url};
use crate::paths;
use crate::private;
use crate::recording::evaluate::known::{KnownTarget, KnownTargets};
use crate::recording::{BuildkiteBuild, Evaluator, RecordingRequest};
use crate::state::StateFolder;
use crate::store::{ATTEMPTS, Store};
use crate::supervise::{OnStop, Printed, Supervisor};

/// The version of the file's format.
const VERSION: u32 = 2;

/// The file's name.
const FILE: &str = "found.json";

/// How large a file is read, in bytes: a hundred thousand targets.
const READ_AT_MOST: u64 = 256 << 20;

/// How long a checkout is read for what is kept, where all of it has three seconds, and to go on with that, which saves an evaluation.
const READ_TO_KEEP: Duration = Duration::from_secs(2);
const READ_TO_GO_ON: Duration = Duration::from_secs(10);

/// The file's content.
#[derive(Debug, Serialize, Deserialize)]
struct PartialContent<T> {
    version: u32,
    /// The version of Nix that evaluated.
    nix: String,
    /// The locked flake that was evaluated, if it was one.
    flake: Option<String>,
    /// The hash of what an evaluation could see in the checkout.
    seen: String,
    targets: T,
}

/// The place of what a stopped recording has found, and what has to be the same for another one to use it.
#[derive(Debug)]
pub(in crate::recording) struct PartialRecording {
    owner: PinOwner,
    commit: String,
    checkout: PathBuf,
    /// When this recording began, before it evaluates anything.
    began: SystemTime,
    /// What of the recording lies outside of the checkout, where there is something.
    undetermined: Option<String>,
}

impl PartialRecording {
    /// The place for this recording; none where nothing is kept. `owner` is that of its pin.
    pub(in crate::recording) fn new(
        request: &RecordingRequest,
        owner: &PinOwner,
        build: Option<&BuildkiteBuild>,
        checkout: &Path,
    ) -> Option<Self> {
        let build = build?;
        let commit = build.commit.clone()?;
        if request.evaluator != Evaluator::Nix {
            return None;
        }
        let what = [
            env!("CARGO_PKG_VERSION"),
            &commit,
            // An expression may read them from the environment, and does where it names a release.
            &build.branch,
            &build.tag,
            &build.pull_request,
            // The jobs of a `matrix` may differ in nothing else.
            &build.variant,
            &format!("{:?} {}", request.recurse, request.meta),
        ];
        // They are the systems of a flake that are recorded.
        let agents = request.agents.keys().map(String::as_str);
        let hash = fingerprint(what.into_iter().chain(agents));
        Some(Self {
            owner: owner.stopped(&hash),
            undetermined: undetermined(request, checkout),
            commit,
            checkout: checkout.to_owned(),
            began: SystemTime::now(),
        })
    }

    fn folder(&self, state: &StateFolder) -> PathBuf {
        state.pins().join(&self.owner.folder)
    }

    /// The targets that a stopped recording has found, as far as their `.drv`s are still there; none where it would not find the same
    /// today.
    ///
    /// # Errors
    /// The store cannot be asked (75); a signal asked us to end (128 + n).
    pub(in crate::recording) fn load(
        &self,
        locked: Option<&LockedFlake>,
        state: &StateFolder,
        store: &mut Store,
        supervisor: &mut Supervisor,
        log: &Log,
    ) -> Result<KnownTargets, Failure> {
        let Some(content) = read(&self.folder(state).join(FILE)) else {
            return Ok(KnownTargets::default());
        };
        let differs = match self.changed(supervisor)? {
            None if content.flake.as_deref() != locked.map(LockedFlake::reference) => {
                Some("the flake is locked otherwise".to_owned())
            }
            None if Some(&content.nix) != store.version(supervisor)?.as_ref() => {
                Some("it was evaluated by another version of Nix".to_owned())
            }
            None => match seen::hash(&self.checkout, None, READ_TO_GO_ON, &mut || {
                supervisor.check()
            })? {
                Ok(seen) if seen == content.seen => None,
                Ok(_) => Some("there is something else in the checkout".to_owned()),
                Err(why) => Some(why),
            },
            changed => changed,
        };
        if let Some(why) = differs {
            log.say(format_args!(
                "a recording of this commit was stopped, but cannot be continued: {why}"
            ));
            return Ok(KnownTargets::default());
        }
        let drvs: Vec<&StorePath> = content.targets.iter().flat_map(drvs_of).collect();
        let invalid = store.invalid(supervisor, &drvs)?;
        let targets = content.targets.into_iter();
        let known: KnownTargets = targets
            .filter(|target| drvs_of(target).all(|drv| !invalid.contains(drv)))
            .collect();
        if known.count() > 0 {
            // Several attributes may be one target.
            let drvs: BTreeSet<&DrvPath> = known.iter().map(|it| &it.found.drv).collect();
            log.say(format_args!(
                "continuing with {} of a recording that was stopped",
                number(drvs.len(), "target")
            ));
        }
        Ok(known)
    }

    /// Keeps these targets, and their `.drv`s. Says why not, where another recording could not use them.
    ///
    /// # Errors
    /// The state folder or the store fails (75); a signal asked us to end (128 + n).
    #[expect(
        clippy::too_many_arguments,
        reason = "what is kept, what it was found in, and what asks Nix"
    )]
    pub(in crate::recording) fn save(
        &self,
        known: &KnownTargets,
        locked: Option<&LockedFlake>,
        request: &RecordingRequest,
        state: &StateFolder,
        store: &mut Store,
        supervisor: &mut Supervisor,
        log: &Log,
    ) -> Result<Option<String>, Failure> {
        if let Some(why) = self.changed(supervisor)? {
            return Ok(Some(why));
        }
        // It may have been another one meanwhile, and be restored.
        let mut goes_on = || supervisor.check();
        let seen = seen::hash(&self.checkout, Some(self.began), READ_TO_KEEP, &mut goes_on)?;
        let seen = match seen {
            Ok(seen) => seen,
            Err(why) => return Ok(Some(why)),
        };
        let content = PartialContent {
            version: VERSION,
            nix: store.version(supervisor)?.unwrap_or_default(),
            flake: locked.map(|locked| locked.reference().to_owned()),
            seen,
            targets: known.iter().collect::<Vec<_>>(),
        };
        let json = serde_json::to_vec(&content)
            .classify(Class::Bug, || "cannot write what was found".into())?;
        let folder = self.folder(state);
        let in_state = || format!("cannot write to {}", folder.display());
        {
            // The pin says until when it is kept, too; but making the pin may fail.
            let _held = hold(&folder, supervisor, log)?;
            let until = seconds(SystemTime::now()) + u64::from(request.keep_days) * 24 * 60 * 60;
            write_expiry(state, &folder, until).classify(Class::Infrastructure, in_state)?;
            state
                .write_whole(&folder.join(FILE), &json)
                .classify(Class::Infrastructure, in_state)?;
        }
        self.pin(known, request, state, store, supervisor, log)?;
        Ok(None)
    }

    /// Pins the `.drv`s that are still there.
    fn pin(
        &self,
        known: &KnownTargets,
        request: &RecordingRequest,
        state: &StateFolder,
        store: &mut Store,
        supervisor: &mut Supervisor,
        log: &Log,
    ) -> Result<(), Failure> {
        let mut pinned = PinnedDrvs::of(known.iter().map(|target| &target.found));
        for _ in 0..ATTEMPTS {
            if pinned.is_empty() {
                return Ok(());
            }
            let owner = &self.owner;
            match pin(
                &pinned,
                owner,
                request.keep_days,
                state,
                store,
                supervisor,
                log,
                |_| Vec::new(),
            )? {
                PinResult::Pinned(..) => return Ok(()),
                PinResult::Gone(gone) => pinned.remove(&gone),
            }
        }
        Ok(())
    }

    /// Removes what was kept: it is complete now.
    pub(in crate::recording) fn remove(&self, state: &StateFolder) {
        let folder = self.folder(state);
        if folder.exists() {
            // What cannot be removed goes by age.
            folder::remove(&folder, || true);
        }
    }

    /// Why the checkout alone does not say what is recorded, or is not of the commit, if so: of the commit git knows more than its files.
    fn changed(&self, supervisor: &mut Supervisor) -> Result<Option<String>, Failure> {
        if self.undetermined.is_some() {
            return Ok(self.undetermined.clone());
        }
        let status = match self.git(git::status, supervisor)? {
            Ok(status) => status,
            Err(why) => return Ok(Some(why)),
        };
        Ok((!git::is_clean(&status, &self.commit))
            .then(|| format!("the checkout is not {}", self.commit)))
    }

    /// What git prints of the checkout; else why it does not.
    fn git(
        &self,
        line: fn(&Path) -> CommandLine,
        supervisor: &mut Supervisor,
    ) -> Result<Result<Vec<u8>, String>, Failure> {
        let mut stderr = Printed::default();
        let finished =
            match supervisor.run(&line(&self.checkout), OnStop::TermThenKill, &mut stderr) {
                Err(failure) if failure.class == Class::MissingProgram => {
                    return Ok(Err("there is no git to look at the checkout".into()));
                }
                finished => finished?,
            };
        Ok(if finished.ending.success() {
            Ok(finished.stdout)
        } else {
            let why = git::reason(&stderr.into_bytes());
            Err(format!("git cannot look at the checkout: {why}"))
        })
    }
}

fn drvs_of(target: &KnownTarget) -> impl Iterator<Item = &StorePath> {
    target.found.drvs().map(DrvPath::as_store_path)
}

/// What of this recording lies outside of the checkout, if something does. Of a flake, the locked reference says what it is.
fn undetermined(request: &RecordingRequest, checkout: &Path) -> Option<String> {
    let is_outside = |path: &str| {
        is_url(path)
            || path.starts_with('<')
            || !paths::stays_inside(&request.root.folder.join(path), checkout)
    };
    let file = match &request.root.source {
        Source::Flake(_) => return None,
        Source::Expr(_) => None,
        Source::File(file) => Some(file.as_str()),
    };
    let included = request.root.include.iter();
    let included = included.map(|entry| entry.split_once('=').map_or(&**entry, |(_, path)| path));
    let outside = file
        .into_iter()
        .chain(included)
        .find(|path| is_outside(path));
    outside.map(|path| format!("{path} is not in the checkout"))
}

/// Reads the file; none where there is none, or it is damaged.
fn read(file: &Path) -> Option<PartialContent<Vec<KnownTarget>>> {
    let json = private::read(file, READ_AT_MOST).ok()?;
    let content: PartialContent<Vec<KnownTarget>> = serde_json::from_str(&json).ok()?;
    (content.version == VERSION).then_some(content)
}
