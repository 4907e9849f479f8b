//! Which paths are valid in the store, which would be fetched, and which are missing.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::batches::batches;
use super::printed::store_paths;
use super::{Answer, Store};
use crate::command_line::CommandLine;
use crate::exit::{Class, Failure};
use crate::nix::{DryRun, NixOutput, StorePath, caches, command};
use crate::supervise::Supervisor;

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
    /// Whether the store can be asked anything at all.
    ///
    /// # Errors
    /// It cannot (75).
    pub fn check_answers(&mut self, supervisor: &mut Supervisor) -> Result<(), Failure> {
        let line = self.ask_store_line(supervisor)?;
        self.ask(supervisor, &line).map(drop)
    }

    pub(super) fn ask_store_line(
        &mut self,
        supervisor: &mut Supervisor,
    ) -> Result<CommandLine, Failure> {
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
            match answer.succeeded(&line) {
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

    /// Asks for the folder of this store's paths, until it is known.
    ///
    /// # Errors
    /// A signal asked us to end (128 + n).
    pub fn ask_for_folder(&mut self, supervisor: &mut Supervisor) -> Result<(), Failure> {
        if self.folder.get().is_none() {
            let line = self.folder_line(supervisor)?;
            let printed = self.printed_if_any(supervisor, &line)?;
            if let Some(folder) = printed.and_then(|printed| serde_json::from_str(&printed).ok()) {
                let _ = self.folder.set(folder);
            }
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

    /// Says the folder of this store to what was printed, where that wants to know it.
    ///
    /// # Errors
    /// The message leaves out the folder, and the store does not say it (75); a signal asked us to end (128 + n).
    pub fn tell_folder(
        &mut self,
        printed: &mut NixOutput,
        supervisor: &mut Supervisor,
    ) -> Result<(), Failure> {
        if printed.lacks_path() {
            self.ask_for_folder(supervisor)?;
            printed.store = self.folder().map(Path::to_owned);
            if printed.store.is_none() && printed.lacks_folder() {
                let what = "`nix-instantiate --eval -E builtins.storeDir` does not say which store path is missing";
                return Err(Failure::new(Class::Infrastructure, what)
                    .hint("check whether Nix works on this host, and retry"));
            }
        }
        Ok(())
    }

    /// The folder of this store's paths, where it was asked for: because the store had refused a question, say.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        self.folder.get().map(PathBuf::as_path)
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
}

fn dry_run_line(paths: &[&StorePath], options: &command::Options) -> CommandLine {
    let mut options = options.to_vec();
    // Without it one substituter that answers with an error ends the whole question, and what the others have stays unknown.
    options.push(("fallback".into(), "true".into()));
    command::would_obtain(paths, &options)
}
