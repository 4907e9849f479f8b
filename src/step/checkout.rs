//! The checkout of a job that skips it (`checkout: fallback`), for a step that has to evaluate after all: made as the agent would
//! make it, once for all steps of this host that need the same one.
//!
//! It lies in the state folder, is never changed once it is complete, and does not know what is evaluated in it.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;

use super::run::StepRun;
use crate::agent;
use crate::buildkite::git::{self, CheckoutLines, Repository};
use crate::command_line::CommandLine;
use crate::evaluation_keys::{self, Checkout};
use crate::exit::{Class, Failure};
use crate::host;
use crate::nix::Evaluation;
use crate::private;
use crate::secrets::redacted;
use crate::state::{CommonKind, Filling, FolderInUse, KEEP_DAYS, Seen};
use crate::supervise::{PATIENCE, Sight};

/// How much of what git prints last is read where it fails, in bytes.
const PRINTED_AT_MOST: usize = 64 << 10;

/// What to do about a checkout that cannot be made.
const HINT: &str = "check that git on this host can reach the repository, and retry; or record with `checkout: always`";

/// Why a commit cannot be checked out that the repository does not have, and what to do about it.
const GONE: &str = "the repository has no such commit: it may have been force-pushed away";
const GONE_HINT: &str =
    "build a commit that the repository has: what was recorded for this one is not on this host";

/// A checkout that was made for this step or another one. It is not removed while this exists.
pub(super) struct MadeCheckout {
    place: Checkout,
    #[expect(dead_code, reason = "holds a lock")]
    in_use: FolderInUse,
}

impl MadeCheckout {
    /// The checkout as a place to evaluate in.
    pub(super) fn place(&self) -> &Checkout {
        &self.place
    }

    /// The step's evaluation, in this checkout.
    ///
    /// # Errors
    /// It leads out of the checkout by a link, where that is not allowed (64).
    pub(super) fn evaluation(
        &self,
        step: &StepRun<'_>,
        evaluation: &Evaluation,
    ) -> Result<Evaluation, Failure> {
        let evaluation = Evaluation {
            folder: self.place.folder.clone(),
            ..evaluation.clone()
        };
        if self.place.confined {
            // The keys were read where there was no checkout, and so no link in it.
            let options = &step.request.options;
            evaluation_keys::check_confined(Some(&evaluation), options, &self.place)?;
        }
        Ok(evaluation)
    }
}

/// What `explain` says of a checkout that a step would make.
pub(super) struct CheckoutToMake {
    pub(super) what: String,
    pub(super) found: String,
    /// Where it would be.
    pub(super) folder: PathBuf,
    pub(super) commands: Vec<CommandLine>,
}

/// Why there is no checkout, and what that says of another try.
enum NoCheckout {
    /// The same for all steps that wait for this one.
    Failed(String),
    /// There is no such commit.
    Gone,
    /// A signal, or a missing program.
    Ended(Failure),
}

impl From<Failure> for NoCheckout {
    fn from(failure: Failure) -> Self {
        Self::Ended(failure)
    }
}

impl<'a> StepRun<'a> {
    /// What is checked out where this step evaluates; none where the job has its checkout, as far as that is known without asking
    /// the agent.
    pub(super) fn skipped_checkout(&self) -> Option<&'a Repository> {
        self.repository
            .filter(|_| self.request.checkout_fallback && self.checkout.no_checkout)
    }

    /// What is to be checked out.
    fn missing_checkout(&mut self) -> Result<Option<&'a Repository>, Failure> {
        let Some(repository) = self.skipped_checkout() else {
            return Ok(None);
        };
        let is_empty = |folder: &Path| {
            let entries = folder.read_dir();
            entries.map_or(true, |mut entries| entries.next().is_none())
        };
        // An agent that does not know the variable has made its checkout. With one that does, what is there is of another job.
        if !is_empty(&self.checkout.folder) && self.agent_is_old()? {
            return Ok(None);
        }
        Ok(Some(repository))
    }

    fn agent_is_old(&mut self) -> Result<bool, Failure> {
        match agent::version(self.supervisor) {
            Ok(version) => Ok(agent::always_checks_out(version.as_deref())),
            // In a container without it.
            Err(failure) if failure.class == Class::MissingProgram => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// The checkout to evaluate in, where the job's own was skipped and the step may make one.
    pub(super) fn make_skipped_checkout(&mut self) -> Result<Option<MadeCheckout>, Failure> {
        let Some(repository) = self.missing_checkout()? else {
            return Ok(None);
        };
        if repository.url.is_empty() {
            return Err(Failure::new(
                Class::Infrastructure,
                "the checkout was skipped, and cannot be made: BUILDKITE_REPO is empty",
            )
            .hint("pass the job's variables on, into a container too"));
        }
        let started = Instant::now();
        let waited = self.seconds.wait;
        let in_use = self.common_checkout(repository)?;
        let waited = self.seconds.wait.saturating_sub(waited);
        self.seconds.evaluate += started.elapsed().saturating_sub(waited);
        let place = Checkout {
            folder: in_use.path().join(&repository.folder_name),
            confined: self.checkout.confined,
            no_checkout: false,
        };
        Ok(Some(MadeCheckout { place, in_use }))
    }

    /// What [`Self::make_skipped_checkout`] would do in this folder of checkouts.
    pub(super) fn checkout_to_make(
        &mut self,
        checkouts: Option<PathBuf>,
    ) -> Result<Option<CheckoutToMake>, Failure> {
        let Some(repository) = self.missing_checkout()? else {
            return Ok(None);
        };
        let folder = checkouts.unwrap_or_default().join(repository.name());
        let folder = folder.join("cache");
        let folder = folder.join(&repository.folder_name);
        let shown = Repository {
            url: redacted(&repository.url).into_owned(),
            ..repository.clone()
        };
        let is_there = folder.exists();
        let commands = match shown.lines(&folder, None) {
            Ok(lines) if !is_there => vec![lines.clone, lines.fetch, lines.check_out],
            _ => Vec::new(),
        };
        let found = if is_there {
            format!("was skipped; {repository} is in {}", folder.display())
        } else {
            format!("was skipped; {repository} would be checked out")
        };
        Ok(Some(CheckoutToMake {
            what: "the checkout".into(),
            found,
            folder,
            commands,
        }))
    }

    /// The checkout in the state folder, made where it is missing.
    fn common_checkout(&mut self, repository: &Repository) -> Result<FolderInUse, Failure> {
        let cannot = |why: &str| {
            Failure::new(
                Class::Infrastructure,
                format_args!("{repository} cannot be checked out: {why}"),
            )
            .hint(if why == GONE { GONE_HINT } else { HINT })
        };
        let keep_days = self.request.keep_days.unwrap_or(KEEP_DAYS);
        let Some(state) = self.state() else {
            return Err(cannot("the state folder cannot be used")
                .hint("set EVAL_ONCE_STATE_DIR to a folder that can be written"));
        };
        let _ = state.sweep_common(CommonKind::Checkout);
        let _ = state.make_room(CommonKind::Checkout, || {
            host::low_on_disk(&state.pins()).is_some()
        });
        let name = repository.name();
        let mut common = state.common(CommonKind::Checkout, &name, keep_days, PATIENCE);
        let mut made = false;
        loop {
            let mut waited_since = None;
            let (log, supervisor) = (&self.log, &mut *self.supervisor);
            let seen = common.wait("the checkout", supervisor, log, || {
                if waited_since.is_none() {
                    waited_since = Some(Instant::now());
                    log.say("waiting for the checkout, which another step of this host makes");
                }
            })?;
            self.seconds.wait += waited_since.map_or(Duration::ZERO, |since| since.elapsed());
            match seen.map_err(|error| cannot(&error.to_string()))? {
                Seen::Complete(in_use) => return Ok(in_use),
                Seen::Ours(_) if made => return Err(cannot("it was removed at once")),
                Seen::Ours(filling) => {
                    let why = match self.check_out(repository, &filling) {
                        Ok(()) => {
                            let completed = filling.complete();
                            completed.map_err(|error| cannot(&error.to_string()))?;
                            made = true;
                            continue;
                        }
                        Err(NoCheckout::Ended(failure)) => return Err(failure),
                        Err(NoCheckout::Gone) => GONE.to_owned(),
                        Err(NoCheckout::Failed(why)) => why,
                    };
                    filling.fail(&why);
                    return Err(cannot(&why));
                }
                Seen::Failed(why) => return Err(cannot(&why)),
                Seen::Stalled => {
                    let seconds = PATIENCE.as_secs();
                    return Err(cannot(&format!(
                        "another step of this host makes the checkout, and has not moved for {seconds} s"
                    )));
                }
            }
        }
    }

    /// Makes a checkout.
    fn check_out(&mut self, repository: &Repository, filling: &Filling) -> Result<(), NoCheckout> {
        let folder = filling.path().join(&repository.folder_name);
        let failed = |error: io::Error| NoCheckout::Failed(error.to_string());
        private::make_folder(&folder).map_err(failed)?;
        let login = repository.login_file().map(|text| -> io::Result<_> {
            let mut file = private::temporary_file(filling.path(), "login-")?;
            file.write_all(text.as_bytes())?;
            Ok(file)
        });
        let login = login.transpose().map_err(failed)?;
        let CheckoutLines {
            clone,
            fetch,
            fetch_all,
            check_out,
            submodules,
        } = repository
            .lines(&folder, login.as_ref().map(NamedTempFile::path))
            .map_err(NoCheckout::Failed)?;
        self.begin_group(format_args!("checking out {repository}"));
        self.git(&clone, filling)?.map_err(NoCheckout::Failed)?;
        let fetched = self.git(&fetch, filling)?;
        let found = fetched.is_ok();
        if let Err(why) = fetched {
            let Some(fetch_all) = fetch_all else {
                return Err(NoCheckout::Failed(why));
            };
            self.git(&fetch_all, filling)?.map_err(NoCheckout::Failed)?;
        }
        if let Err(why) = self.git(&check_out, filling)? {
            return Err(if !found || git::is_missing(&why) {
                NoCheckout::Gone
            } else {
                NoCheckout::Failed(why)
            });
        }
        if folder.join(".gitmodules").exists() {
            for line in submodules {
                self.git(&line, filling)?.map_err(NoCheckout::Failed)?;
            }
        }
        Ok(())
    }

    /// Runs git until it ends: the reason why it failed, where it did.
    ///
    /// # Errors
    /// It has printed nothing for [`PATIENCE`]; a signal asked us to end; git is missing.
    fn git(
        &mut self,
        line: &CommandLine,
        filling: &Filling,
    ) -> Result<Result<(), String>, NoCheckout> {
        let mut last = Vec::new();
        let ran = self.supervisor.run_patiently(line, PATIENCE, |_, printed| {
            if printed.is_empty() {
                return Sight::StandsStill;
            }
            last.extend_from_slice(printed);
            last.drain(..last.len().saturating_sub(PRINTED_AT_MOST));
            filling.note_movement();
            Sight::Moves
        });
        let (finished, given_up) = ran.map_err(|failure| match failure.class {
            Class::MissingProgram => {
                failure.hint("install git on this host, or record with `checkout: always`")
            }
            _ => failure,
        })?;
        // What is run is named without the settings that are given to it.
        let command = line
            .arguments
            .iter()
            .filter_map(|word| word.to_str())
            .find(|word| ["clone", "fetch", "checkout", "submodule"].contains(word))
            .unwrap_or_default();
        if given_up.is_some() {
            // No other command would find the network in another state.
            let seconds = PATIENCE.as_secs();
            return Err(NoCheckout::Failed(format!(
                "`git {command}` has printed nothing for {seconds} s"
            )));
        }
        if finished.ending.success() {
            return Ok(Ok(()));
        }
        let reason = git::reason(&last);
        Ok(Err(format!(
            "`git {command}` {}: {reason}",
            finished.ending
        )))
    }
}
