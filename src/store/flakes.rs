//! Locking flakes, and the settings that they ask for.

use std::path::Path;

use super::Store;
use super::printed::no_answer_of_nix;
use crate::command_line::CommandLine;
use crate::exit::Failure;
use crate::keys::refuse;
use crate::keys::secret_values::{secret_in_options, sentence};
use crate::nix::command::OwnedOptions;
use crate::nix::{
    Evaluation, FlakeMetadata, LockedFlake, Source, StorePath, caches, command, flake_settings,
};
use crate::supervise::{Finished, Supervisor};

/// What `nix flake metadata` says of a flake.
#[derive(Debug)]
pub struct FlakeLock {
    /// The flake for pure evaluation.
    pub flake: LockedFlake,
    /// Its copy in the store, which has no root.
    pub source: Option<StorePath>,
    /// The settings that it asks for and that count, where they were read now.
    pub settings: OwnedOptions,
}

impl Store {
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
    /// It is none (75); the settings hold a secret (64); a signal asked us to end (128 + n).
    pub fn read_lock(
        &mut self,
        supervisor: &mut Supervisor,
        line: &CommandLine,
        finished: &Finished,
    ) -> Result<FlakeLock, Failure> {
        let metadata: FlakeMetadata = serde_json::from_slice(&finished.stdout)
            .map_err(|_| no_answer_of_nix(line, &finished.text(), "the flake's metadata"))?;
        let mut settings = Vec::new();
        if !std::mem::replace(&mut self.has_flake_settings, true) {
            settings = self.flake_settings(supervisor, &metadata)?;
            // They would be in every step, in the plan, and in arguments.
            if let Some((name, home)) = secret_in_options(&settings) {
                let what = format!("`nixConfig.{name}` of the flake");
                return Err(refuse(sentence(&what, home)));
            }
            self.options.extend(settings.iter().cloned());
        }
        Ok(FlakeLock {
            flake: metadata.locked(),
            source: metadata.source(),
            settings,
        })
    }

    /// Roots the flake's copy in the store at `link`: a locked reference may name it, and then no evaluation comes by it again. Says
    /// whether it is there.
    ///
    /// # Errors
    /// The store cannot be asked (75); a signal asked us to end (128 + n).
    pub fn keep_source(
        &mut self,
        lock: &FlakeLock,
        link: &Path,
        supervisor: &mut Supervisor,
    ) -> Result<bool, Failure> {
        match &lock.source {
            Some(source) => self.keep_path(source, link, supervisor),
            None => Ok(true),
        }
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
}
