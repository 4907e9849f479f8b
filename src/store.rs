//! Asking Nix: running its commands ([`crate::nix::command`]), reading their answers, and saying what is wrong where one fails.
//! Each question stands here once, for steps and recordings alike.
//!
//! Only questions: what evaluates, builds or substitutes is run by the module that shows its log. What an answer means is
//! decided by the step or the recording.

mod batches;
mod collection;
mod copying;
mod examined;
mod keeping;
mod lacking;
mod movement;
mod printed;

use std::cell::OnceCell;
use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::command_line::CommandLine;
use crate::exit::{Class, Classify as _, Failure};
use crate::log::Log;
use crate::nix::command::OwnedOptions;
use crate::nix::{
    DrvPath, DryRun, Evaluation, FlakeMetadata, LockedFlake, NixOutput, Source, StorePath,
    StoreUrl, caches, class, command, flake_settings, version,
};
use crate::parallel;
use crate::supervise::{Finished, OnStop, Supervisor};

use self::batches::batches;
use self::printed::store_paths;
pub use collection::Collection;
pub use copying::NotCopied;
pub use examined::{LOCAL_LIMIT, NETWORK_LIMIT, NoAnswer, RootSight, StoreIdentity, names_root};
pub use keeping::{Keeper, Kept};
pub use movement::TRICKLE;

/// How often something is done that the garbage collector disturbs. (Evaluating while a collection runs fails in 12–44 % of all
/// cases before Nix 2.35.)
pub const ATTEMPTS: u32 = 3;

/// How many questions are asked at once: a Nix that waits for no other computes, and there are two cores at least where time counts.
const ASKED_AT_ONCE: usize = 2;

/// What to do about a garbage collector that disturbs.
pub const COLLECTOR_HINT: &str = "run the garbage collector less often, or while no job runs; from Nix 2.35 on it leaves alone what is in use";

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
    /// The folder of its paths, once it was asked for; inside, none where Nix does not say.
    folder: OnceCell<Option<PathBuf>>,
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

/// Something that is asked of several paths, for which Nix may run beside other programs: [`Store::asked_by`] has the commands, and
/// [`Store::read_invalid`] or [`Store::read_dry_run`] reads what they have answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathQuestion {
    /// Which of them are not valid.
    Invalid,
    /// Which of them would be fetched, and which are missing.
    DryRun,
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

    // ---- validity

    /// Whether the store can be asked anything at all.
    ///
    /// # Errors
    /// It cannot (75).
    pub fn check_answers(&mut self, supervisor: &mut Supervisor) -> Result<(), Failure> {
        let line = self.ask_store_line(supervisor)?;
        self.ask(supervisor, &line).map(drop)
    }

    fn ask_store_line(&mut self, supervisor: &mut Supervisor) -> Result<CommandLine, Failure> {
        let options = self.options(supervisor)?;
        Ok(command::ask_store(&options))
    }

    /// Whether a path is valid.
    ///
    /// # Errors
    /// The store cannot be asked (75).
    pub fn is_valid(
        &mut self,
        supervisor: &mut Supervisor,
        path: &StorePath,
    ) -> Result<bool, Failure> {
        Ok(self.invalid(supervisor, &[path])?.is_empty())
    }

    /// Those of `paths` that are not valid. Paths of a store in another folder are none of this one's, and so not valid.
    ///
    /// # Errors
    /// The store cannot be asked (75).
    pub fn invalid(
        &mut self,
        supervisor: &mut Supervisor,
        paths: &[&StorePath],
    ) -> Result<HashSet<StorePath>, Failure> {
        let answers = self.answers(supervisor, PathQuestion::Invalid, paths)?;
        self.read_invalid(supervisor, paths, answers)
    }

    /// The same, from the `answers` to the commands that ask it.
    ///
    /// # Errors
    /// As [`Store::invalid`].
    pub fn read_invalid(
        &mut self,
        supervisor: &mut Supervisor,
        paths: &[&StorePath],
        answers: Vec<Answer>,
    ) -> Result<HashSet<StorePath>, Failure> {
        let mut invalid = HashSet::new();
        for (batch, answer) in batches(paths).zip(answers) {
            let line = command::invalid_of(batch, &self.options);
            match succeeded(answer, &line) {
                Ok(finished) => invalid.extend(store_paths(&finished)),
                Err(failure) if failure.class == Class::Infrastructure => {
                    // Nix refuses the question where one path is of a store in another folder. Only now is it asked for its own.
                    self.ask_for_folder(supervisor)?;
                    let (others, own): (Vec<_>, Vec<_>) =
                        batch.iter().partition(|path| self.is_of_another(path));
                    if others.is_empty() {
                        return Err(failure);
                    }
                    invalid.extend(others.into_iter().cloned());
                    invalid.extend(self.invalid(supervisor, &own)?);
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(invalid)
    }

    /// Asks for the folder of this store's paths, once.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn ask_for_folder(&mut self, supervisor: &mut Supervisor) -> Result<(), Failure> {
        if self.folder.get().is_none() {
            let line = self.folder_line(supervisor)?;
            let printed = self.printed_if_any(supervisor, &line)?;
            let folder = printed.and_then(|printed| serde_json::from_str(&printed).ok());
            let _ = self.folder.set(folder);
        }
        Ok(())
    }

    /// The command that asks for the folder of this store.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn folder_line(&mut self, supervisor: &mut Supervisor) -> Result<CommandLine, Failure> {
        let options = self.options(supervisor)?;
        Ok(command::store_folder(&options))
    }

    /// The folder of this store's paths, where it was asked for: here, because the store had refused a question.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        self.folder.get()?.as_deref()
    }

    /// Whether a path is known to be of a store in another folder.
    fn is_of_another(&self, path: &StorePath) -> bool {
        self.folder().is_some_and(|folder| folder != path.store())
    }

    /// Whether all of `paths` are there, as Nix says in a form that a program which does nothing cannot give.
    ///
    /// # Errors
    /// The program is missing (69); a signal asked us to end (128 + n).
    pub fn has_hashes(
        &mut self,
        supervisor: &mut Supervisor,
        paths: &[&StorePath],
    ) -> Result<bool, Failure> {
        let options = self.options(supervisor)?;
        let Answer { finished, .. } = self.run(supervisor, &command::hashes_of(paths, &options))?;
        Ok(finished.ending.success() && finished.text().lines().count() >= paths.len())
    }

    // ---- what is missing

    /// Which of `paths`, and of what they need, would be fetched and which are missing.
    ///
    /// # Errors
    /// The store cannot be asked (75). That substituters cannot be queried is in the answer.
    pub fn dry_run(
        &mut self,
        supervisor: &mut Supervisor,
        paths: &[&StorePath],
    ) -> Result<DryRun, Failure> {
        let answers = self.answers(supervisor, PathQuestion::DryRun, paths)?;
        self.read_dry_run(supervisor, paths, answers)
    }

    /// The same, from the `answers` to the commands that ask it.
    ///
    /// # Errors
    /// As [`Store::dry_run`].
    pub fn read_dry_run(
        &mut self,
        supervisor: &mut Supervisor,
        paths: &[&StorePath],
        answers: Vec<Answer>,
    ) -> Result<DryRun, Failure> {
        let mut answer = DryRun::default();
        for (batch, Answer { finished, stderr }) in batches(paths).zip(answers) {
            let mut part = DryRun::read(&stderr);
            if !finished.ending.success() {
                // Where it is the store that fails, this says so.
                part.missing.extend(self.invalid(supervisor, batch)?);
                part.refusal = Some(NixOutput::of(&stderr).final_message(finished.ending));
            }
            answer.extend(part);
        }
        Ok(answer)
    }

    /// The command that asks which of `paths` are missing.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn dry_run_line(
        &mut self,
        supervisor: &mut Supervisor,
        paths: &[&StorePath],
    ) -> Result<CommandLine, Failure> {
        let options = self.options(supervisor)?;
        Ok(dry_run_line(paths, &options))
    }

    /// The commands that ask this of `paths`, with these settings of the store's: one for as many as a command can take.
    #[must_use]
    pub fn asked_by(
        question: PathQuestion,
        paths: &[&StorePath],
        options: &command::Options,
    ) -> Vec<CommandLine> {
        let line = |batch: &[&StorePath]| match question {
            PathQuestion::Invalid => command::invalid_of(batch, options),
            PathQuestion::DryRun => dry_run_line(batch, options),
        };
        batches(paths).map(line).collect()
    }

    fn answers(
        &mut self,
        supervisor: &mut Supervisor,
        question: PathQuestion,
        paths: &[&StorePath],
    ) -> Result<Vec<Answer>, Failure> {
        let options = self.options(supervisor)?;
        let lines = Self::asked_by(question, paths, &options);
        let mut answers = Vec::with_capacity(lines.len());
        for line in lines {
            answers.push(self.run(supervisor, &line)?);
        }
        Ok(answers)
    }

    /// Whether a substituter has a path; none where it cannot be asked. One in a folder is looked at as such: Nix would make the
    /// folder where it is missing, and this only asks.
    ///
    /// # Errors
    /// The program is missing (69); a signal asked us to end (128 + n).
    pub fn substituter_has(
        &mut self,
        supervisor: &mut Supervisor,
        substituter: &str,
        path: &StorePath,
    ) -> Result<Option<bool>, Failure> {
        if let Some(file) = caches::file_in_cache(substituter, path) {
            return Ok(Some(file.exists()));
        }
        let options = self.options(supervisor)?;
        let line = command::check_cache(substituter, path, &options);
        let Answer { finished, .. } = self.run(supervisor, &line)?;
        let answered = finished.ending.success();
        Ok(answered.then_some(finished.stdout.is_empty()))
    }

    // ---- roots, closures, logs

    /// A derivation with all that it is built from; none where Nix does not say.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn closure(
        &mut self,
        supervisor: &mut Supervisor,
        drv: &DrvPath,
    ) -> Result<Option<HashSet<StorePath>>, Failure> {
        let options = self.options(supervisor)?;
        let Answer { finished, .. } = self.run(supervisor, &command::closure(drv, &options))?;
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

    // ---- evaluation

    /// Whether an expression throws; so what it ended with are its own words, whatever they sound like. Before Nix 2.26 a message
    /// does not say so.
    ///
    /// # Errors
    /// The program is missing (69); a signal asked us to end (128 + n).
    pub fn throws(
        &mut self,
        supervisor: &mut Supervisor,
        evaluation: &Evaluation,
        locked: Option<&LockedFlake>,
    ) -> Result<bool, Failure> {
        let options = self.options(supervisor)?;
        let line = command::catch(evaluation, locked, &options);
        let Answer { finished, .. } = self.run(supervisor, &line)?;
        Ok(finished.text().trim() == "false")
    }

    /// The value of an expression that is no derivation, as Nix prints it; empty where it does not.
    ///
    /// # Errors
    /// The program is missing (69); a signal asked us to end (128 + n).
    pub fn value(
        &mut self,
        supervisor: &mut Supervisor,
        evaluation: &Evaluation,
        locked: Option<&LockedFlake>,
    ) -> Result<String, Failure> {
        let options = self.options(supervisor)?;
        let line = command::show_value(evaluation, locked, &options);
        let Answer { finished, .. } = self.run(supervisor, &line)?;
        Ok(finished.text().trim().to_owned())
    }

    /// The command that evaluates an attribute as a build of it would, and roots its `.drv` at `root`.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn instantiate_line(
        &mut self,
        supervisor: &mut Supervisor,
        evaluation: &Evaluation,
        locked: Option<&LockedFlake>,
        root: Option<&Path>,
    ) -> Result<CommandLine, Failure> {
        let options = self.options(supervisor)?;
        Ok(command::instantiate(evaluation, locked, root, &options))
    }

    /// What Nix says when it evaluates this attribute, or the whole expression where none is named, by itself.
    ///
    /// # Errors
    /// The program is missing (69); a signal asked us to end (128 + n).
    pub fn output_of(
        &mut self,
        supervisor: &mut Supervisor,
        evaluation: &Evaluation,
        locked: Option<&LockedFlake>,
    ) -> Result<NixOutput, Failure> {
        let line = if evaluation.attr.names().is_empty() {
            let options = self.options(supervisor)?;
            command::show_value(evaluation, locked, &options)
        } else {
            self.instantiate_line(supervisor, evaluation, locked, None)?
        };
        let Answer { stderr, .. } = self.run(supervisor, &line)?;
        Ok(NixOutput::of(&stderr))
    }

    /// The system that Nix builds for here.
    ///
    /// # Errors
    /// Nix does not say (75).
    pub fn system(&mut self, supervisor: &mut Supervisor) -> Result<String, Failure> {
        let options = self.options(supervisor)?;
        let line = command::current_system(&options);
        let Answer { finished, stderr } = self.run(supervisor, &line)?;
        serde_json::from_slice(&finished.stdout).classify(Class::Infrastructure, || {
            format!(
                "cannot determine this host's system: `{line}` {}: {}",
                finished.ending,
                String::from_utf8_lossy(&stderr).trim()
            )
        })
    }

    // ---- versions

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

    // ---- flakes

    /// The command that locks the flake of an evaluation; none where it is of no flake.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn lock_line(
        &mut self,
        supervisor: &mut Supervisor,
        evaluation: &Evaluation,
    ) -> Result<Option<CommandLine>, Failure> {
        let Source::Flake(flake) = &evaluation.source else {
            return Ok(None);
        };
        let options = self.options(supervisor)?;
        let line = command::flake_metadata(flake, &evaluation.folder, &options);
        Ok(Some(line))
    }

    /// Reads what [`Self::lock_line`] has printed. The settings that the flake asks for count from then on, where this host
    /// trusts it with them, as they do for `nix build`; they are returned when they are read for the first time.
    ///
    /// # Errors
    /// It is not read (70); a signal asked us to end (128 + n).
    pub fn read_lock(
        &mut self,
        supervisor: &mut Supervisor,
        line: &CommandLine,
        finished: &Finished,
    ) -> Result<(LockedFlake, OwnedOptions), Failure> {
        let metadata: FlakeMetadata = serde_json::from_slice(&finished.stdout)
            .classify(Class::Bug, || format!("cannot read what `{line}` printed"))?;
        let mut settings = Vec::new();
        if !std::mem::replace(&mut self.has_flake_settings, true) {
            settings = self.flake_settings(supervisor, &metadata)?;
            self.options.extend(settings.iter().cloned());
        }
        Ok((metadata.locked(), settings))
    }

    /// The settings that a flake asks for (`nixConfig`), where this host trusts it with them. It takes a process only where a flake
    /// has any: `nix flake metadata` does not print them, and `builtins.getFlake` does not use them.
    fn flake_settings(
        &mut self,
        supervisor: &mut Supervisor,
        metadata: &FlakeMetadata,
    ) -> Result<OwnedOptions, Failure> {
        let Some(file) = metadata.file_with_settings() else {
            return Ok(Vec::new());
        };
        let line = command::flake_settings(&file, &self.options);
        let printed = self.printed(supervisor, &line)?;
        let Some(settings) = printed.and_then(|printed| flake_settings(&printed)) else {
            self.log.warn(format_args!(
                "the flake's nixConfig is not used: cannot read it from {}",
                file.display()
            ));
            return Ok(Vec::new());
        };
        if settings.is_empty() {
            return Ok(settings);
        }
        let names: Vec<&str> = settings.iter().map(|(name, _)| name.as_str()).collect();
        let names = names.join(", ");
        let line = self.show_config_line();
        let config = self.printed(supervisor, &line)?.unwrap_or_default();
        if caches::setting(&config, "accept-flake-config") == Some("true") {
            self.log
                .say(format_args!("using the flake's nixConfig: {names}"));
            return Ok(settings);
        }
        self.log.warn(format_args!(
            "the flake's nixConfig is not used: {names}; set `accept-flake-config = true` in this host's nix.conf to trust it, or name its caches in `options`"
        ));
        Ok(Vec::new())
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
        let mut answers: Vec<_> = lines.iter().map(|_| None).collect();
        parallel::each(
            supervisor,
            lines,
            ASKED_AT_ONCE,
            |number, finished, stderr| {
                let stderr = stderr.into_bytes();
                self.note_unreachable(&NixOutput::of(&stderr));
                answers[number] = Some(Answer { finished, stderr });
                Ok(())
            },
        )
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
        succeeded(answer, line)
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
        let mut stderr = Vec::new();
        let finished = supervisor
            .run(line, OnStop::TermThenKill, &mut stderr)
            .map_err(class::not_started)?;
        self.note_unreachable(&NixOutput::of(&stderr));
        Ok(Answer { finished, stderr })
    }
}

/// What a question has printed whose failure is the store's.
fn succeeded(answer: Answer, line: &CommandLine) -> Result<Finished, Failure> {
    let Answer { finished, stderr } = answer;
    if finished.ending.success() {
        return Ok(finished);
    }
    let stderr = String::from_utf8_lossy(&stderr);
    Err(class::store_cannot_be_asked(line, finished.ending, &stderr))
}

fn dry_run_line(paths: &[&StorePath], options: &command::Options) -> CommandLine {
    let mut options = options.to_vec();
    // Without it one substituter that answers with an error ends the whole question, and what the others have stays unknown.
    options.push(("fallback".into(), "true".into()));
    command::would_obtain(paths, &options)
}
