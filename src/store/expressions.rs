//! What expressions are, and what is wrong with them, where no log of an evaluation is shown.

use std::path::Path;

use super::{Answer, Store};
use crate::command_line::CommandLine;
use crate::exit::{Class, Classify as _, Failure};
use crate::nix::{Evaluation, LockedFlake, NixOutput, command};
use crate::supervise::Supervisor;

impl Store {
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
}
