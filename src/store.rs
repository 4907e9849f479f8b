//! Asking Nix: running its commands ([`crate::nix::command`]), reading their answers, and saying what is wrong where one fails.
//! Each question stands here once, for steps and recordings alike.
//!
//! Only questions: what evaluates, builds or substitutes is run by the module that shows its log. What an answer means is
//! decided by the step or the recording.

mod batches;
mod collection;
mod copying;
mod examined;
mod expressions;
mod flakes;
mod keeping;
mod lacking;
mod misses;
mod movement;
mod printed;
mod rooting;
mod trust;
mod validity;

use std::cell::OnceCell;
use std::collections::{BTreeSet, HashSet};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::command_line::CommandLine;
use crate::exit::{Class, Failure};
use crate::log::Log;
use crate::nix::command::OwnedOptions;
use crate::nix::{DrvPath, NixOutput, StorePath, StoreUrl, caches, class, command, version};
use crate::parallel;
use crate::supervise::{Finished, OnStop, Printed, Supervisor};

use self::printed::store_paths;
pub use collection::Collection;
pub use copying::NotCopied;
pub use examined::{
    LOCAL_LIMIT, NETWORK_LIMIT, NoAnswer, RootSight, StoreIdentity, wrong_with_folder,
};
pub use flakes::FlakeLock;
pub use keeping::{KEEPING_ATTEMPTS, Keeper, Kept};
pub use misses::Misses;
pub use movement::TRICKLE;
pub use trust::Trust;
pub use validity::PathQuestion;

/// How often something is done that the garbage collector disturbs. (Evaluating while a collection runs fails in 12–44 % of all
/// cases before Nix 2.35.)
pub const ATTEMPTS: u32 = 3;

/// How many questions are asked at once: a Nix that waits for no other computes, and there are two cores at least where time counts.
const ASKED_AT_ONCE: usize = 2;

/// What to do about a garbage collector that disturbs.
pub const COLLECTOR_HINT: &str = "run the garbage collector less often, or while no job runs; from Nix 2.35 on it leaves alone what is in use";

/// The failure of an evaluation that has missed something [as often](ATTEMPTS) as it is repeated, at last this path, which was valid right
/// after it.
#[must_use]
pub fn missed_each_time(evaluation: impl Display, path: &StorePath) -> Failure {
    let hint = if path.is_drv() {
        LOST_DRV_HINT
    } else {
        COLLECTOR_HINT
    };
    Failure::new(
        Class::Infrastructure,
        format_args!(
            "the evaluation of {evaluation} missed what it needs {ATTEMPTS} times: at last {path}, which was valid right after it"
        ),
    )
    .hint(hint)
}

/// What to do about a `.drv` that is valid each time it was missing.
const LOST_DRV_HINT: &str = "where its file does not exist, write it anew with `nix-instantiate --repair FILE -A ATTR` on this host (a collection may have taken it while it was written, and `nix-store --verify` does not mend a .drv); else retry while no garbage collector runs";

/// The store that Nix uses here, and the settings with which it is asked.
#[derive(Debug)]
pub struct Store {
    /// What the user has set, and the settings of a flake behind it.
    options: OwnedOptions,
    /// The flake's settings have been looked at.
    has_flake_settings: bool,
    /// The substituters without the unreachable ones; none as long as all were reachable.
    substituters: Option<Vec<String>>,
    /// Files that could not be downloaded: their substituters are removed before the next command.
    unreachable: BTreeSet<String>,
    /// The folder of Nix's own state on this host, where collections are looked for.
    state: Option<PathBuf>,
    /// The folder of its paths, once it was asked for.
    folder: OnceCell<PathBuf>,
    /// All files that could not be downloaded so far.
    seen_unreachable: BTreeSet<String>,
    log: Log,
}

/// What Nix has answered.
#[derive(Debug)]
pub struct Answer {
    /// How it ended, and its standard output.
    pub finished: Finished,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl Answer {
    /// What a question has printed whose failure is the store's.
    ///
    /// # Errors
    /// It has failed (75).
    fn succeeded(self, line: &CommandLine) -> Result<Finished, Failure> {
        let Self { finished, stderr } = self;
        if finished.ending.success() {
            return Ok(finished);
        }
        let stderr = String::from_utf8_lossy(&stderr);
        Err(class::store_cannot_be_asked(line, finished.ending, &stderr))
    }
}

impl Store {
    /// The store that Nix uses with these settings, and with this folder for its own state, if that is known.
    #[must_use]
    pub fn new(options: &command::Options, state: Option<&Path>, log: &Log) -> Self {
        Self {
            state: state.map(Path::to_owned),
            options: options.to_vec(),
            has_flake_settings: false,
            substituters: None,
            unreachable: BTreeSet::new(),
            folder: OnceCell::new(),
            seen_unreachable: BTreeSet::new(),
            log: log.clone(),
        }
    }

    // ---- settings

    /// The settings for the next command of Nix's. A substituter that was seen to be unreachable is left out from then on: it
    /// would cost seconds again each time.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn options(&mut self, supervisor: &mut Supervisor) -> Result<OwnedOptions, Failure> {
        let unreachable = std::mem::take(&mut self.unreachable);
        if !unreachable.is_empty() {
            let left_out_before = self.substituters.is_some();
            let known = match self.substituters.take() {
                Some(substituters) => substituters,
                None => self.configured_substituters(supervisor)?,
            };
            let (rest, left_out) = caches::part(known, &unreachable);
            for substituter in &left_out {
                self.log.say(format_args!(
                    "{substituter} is unreachable: not asked again in this step"
                ));
            }
            self.substituters = Some(rest).filter(|_| left_out_before || !left_out.is_empty());
        }
        let mut options = self.options.clone();
        if let Some(substituters) = &self.substituters {
            options.push(("substituters".into(), substituters.join(" ")));
        }
        Ok(options)
    }

    /// Remembers which substituters a program of Nix's could not reach.
    pub fn note_unreachable(&mut self, output: &NixOutput) {
        self.unreachable.extend(output.unreachable.iter().cloned());
        self.seen_unreachable
            .extend(output.unreachable.iter().cloned());
    }

    /// Whether this store was seen to be unreachable.
    #[must_use]
    pub fn is_unreachable(&self, store: &StoreUrl) -> bool {
        let store = vec![store.as_str().to_owned()];
        !caches::part(store, &self.seen_unreachable).1.is_empty()
    }

    /// Whether a substituter was seen to be unreachable.
    #[must_use]
    pub fn lacks_a_substituter(&self) -> bool {
        self.substituters.is_some() || !self.unreachable.is_empty()
    }

    /// The substituters that Nix would ask: none where it does not say (it has no `nix` program, or an odd one).
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn substituters(&mut self, supervisor: &mut Supervisor) -> Result<Vec<String>, Failure> {
        match &self.substituters {
            Some(substituters) => Ok(substituters.clone()),
            None => self.configured_substituters(supervisor),
        }
    }

    fn configured_substituters(
        &mut self,
        supervisor: &mut Supervisor,
    ) -> Result<Vec<String>, Failure> {
        let config = self.printed_if_any(supervisor, &self.show_config_line())?;
        let substituters = config.and_then(|config| caches::substituters(&config));
        Ok(substituters.unwrap_or_default())
    }

    /// The command that prints Nix's settings.
    fn show_config_line(&self) -> CommandLine {
        command::show_config(&self.options)
    }

    /// The collection that is under way, as far as that is known.
    #[must_use]
    pub fn collection(&self) -> Option<Collection> {
        Collection::under_way(self.state.as_deref()?)
    }

    /// These paths with all that they refer to; none where Nix does not say.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn closure(
        &mut self,
        supervisor: &mut Supervisor,
        paths: &[&StorePath],
    ) -> Result<Option<HashSet<StorePath>>, Failure> {
        let options = self.options(supervisor)?;
        let Answer { finished, .. } = self.run(supervisor, &command::closure(paths, &options))?;
        let answered = finished.ending.success();
        Ok(answered.then(|| store_paths(&finished).collect()))
    }

    /// Writes the log of a derivation's build to `file`. Says whether Nix has kept it (`keep-build-log`, and a build on this host),
    /// and could give it `until` then: it may be packed, and large.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n); the program is missing (69), or cannot be started (75).
    pub fn write_build_log(
        &mut self,
        supervisor: &mut Supervisor,
        drv: &DrvPath,
        file: &Path,
        until: Instant,
    ) -> Result<bool, Failure> {
        let mut line = command::read_log(drv, &self.options);
        line.stdout = Some(file.to_owned());
        let answers = parallel::all(supervisor, &[line], Some(until))?;
        Ok(answers
            .iter()
            .all(|(finished, _)| finished.ending.success()))
    }

    /// The version of Nix; none where it does not say.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn version(&mut self, supervisor: &mut Supervisor) -> Result<Option<String>, Failure> {
        let printed = self.printed_if_any(supervisor, &command::version())?;
        Ok(printed.and_then(|printed| version::of_program(&printed)))
    }

    /// The first two numbers of the version of the program `nix`, which builds flakes; none where it does not say.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn version_of_nix(
        &mut self,
        supervisor: &mut Supervisor,
    ) -> Result<Option<(u32, u32)>, Failure> {
        let printed = self.printed_if_any(supervisor, &command::version_of_nix())?;
        let version = printed.and_then(|printed| version::of_program(&printed));
        Ok(version.and_then(|version| version::numbers(&version)))
    }

    // ---- running

    /// Runs all of these, two at a time, and returns their answers in their order.
    ///
    /// # Errors
    /// A program is missing (69), or cannot be started (75); a signal asked us to end (128 + n).
    pub fn ask_all(
        &mut self,
        supervisor: &mut Supervisor,
        lines: &[CommandLine],
    ) -> Result<Vec<Answer>, Failure> {
        self.ask_several(supervisor, lines, ASKED_AT_ONCE)
    }

    fn ask_several(
        &mut self,
        supervisor: &mut Supervisor,
        lines: &[CommandLine],
        at_once: usize,
    ) -> Result<Vec<Answer>, Failure> {
        let mut answers: Vec<_> = lines.iter().map(|_| None).collect();
        parallel::each(supervisor, lines, at_once, |number, finished, stderr| {
            let stderr = stderr.into_bytes();
            self.note_unreachable(&NixOutput::of(&stderr));
            answers[number] = Some(Answer { finished, stderr });
            Ok(())
        })
        .map_err(class::not_started)?;
        Ok(answers.into_iter().flatten().collect())
    }

    /// Asks a question whose failure is the store's.
    fn ask(
        &mut self,
        supervisor: &mut Supervisor,
        line: &CommandLine,
    ) -> Result<Finished, Failure> {
        let answer = self.run(supervisor, line)?;
        answer.succeeded(line)
    }

    /// What a program prints if it succeeds; none otherwise, also where the program is missing.
    fn printed_if_any(
        &mut self,
        supervisor: &mut Supervisor,
        line: &CommandLine,
    ) -> Result<Option<String>, Failure> {
        match self.printed(supervisor, line) {
            Err(failure) if failure.class == Class::MissingProgram => Ok(None),
            printed => printed,
        }
    }

    /// What a program prints if it succeeds; none otherwise. The program itself must be there.
    fn printed(
        &mut self,
        supervisor: &mut Supervisor,
        line: &CommandLine,
    ) -> Result<Option<String>, Failure> {
        match self.run(supervisor, line) {
            Ok(Answer { finished, .. }) => {
                Ok(Some(finished.text()).filter(|_| finished.ending.success()))
            }
            Err(failure) if failure.class == Class::Infrastructure => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    fn run(&mut self, supervisor: &mut Supervisor, line: &CommandLine) -> Result<Answer, Failure> {
        let mut stderr = Printed::by(line);
        let finished = supervisor
            .run(line, OnStop::TermThenKill, &mut stderr)
            .map_err(class::not_started)?;
        let stderr = stderr.into_answer(line)?;
        self.note_unreachable(&NixOutput::of(&stderr));
        Ok(Answer { finished, stderr })
    }
}
