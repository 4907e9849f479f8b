//! Which derivation failed, where what Nix has said does not tell it, or tells too much.

use std::collections::BTreeSet;
use std::path::Path;

use super::build_log::BuildLog;
use super::job_log::Form;
use super::report::Report;
use super::run::{StepRun, outputs_on_disk};
use crate::exit::{Class, Failure};
use crate::nix::{Cause, DrvPath, Fault, NixOutput, StorePath, command, is_rejection};

impl StepRun<'_> {
    /// Finds out more about what failed than Nix has said: for `drv`, or for an evaluation.
    pub(super) fn look_into(
        &mut self,
        nix_output: &mut NixOutput,
        drv: Option<&DrvPath>,
    ) -> Result<(), Failure> {
        if let Some(drv) = drv {
            self.only_below(drv, nix_output)?;
        }
        self.blame(nix_output)?;
        self.name_the_unnamed(nix_output)?;
        if self.request.form == Form::Raw {
            let begun: Vec<DrvPath> = nix_output.suspects().collect();
            let count = begun.len();
            self.built += count - self.without_outputs(begun)?.len();
        }
        self.faults.clone_from(&nix_output.faults);
        if let Some(drv) = nix_output.root_cause().and_then(|fault| fault.drv.as_ref()) {
            let lines = nix_output.last_lines(drv).filter(|lines| !lines.is_empty());
            self.last_lines = lines;
        }
        Ok(())
    }

    /// Forgets failures of what is not below `drv`. A builder may say whatever it likes, and one that tests Nix says much about
    /// derivations of its own: in Nix's text, and in its structured log too, where what a builder prints behind `@nix` becomes
    /// a message of Nix's (measured on 2.8, 2.26 and 2.34). That something is built is not said by builders there; and what is
    /// built may not be below: what a content-addressed derivation becomes is another one.
    fn only_below(&mut self, drv: &DrvPath, nix_output: &mut NixOutput) -> Result<(), Failure> {
        let structured = self.request.form == Form::Pretty;
        let is_built = |fault: &Fault| {
            let drv = fault.drv.as_ref().map(DrvPath::as_store_path);
            drv.is_none_or(|drv| structured && nix_output.begun.contains(drv.as_str()))
        };
        if nix_output.faults.iter().all(is_built) {
            return Ok(());
        }
        let options = self.options()?;
        let (finished, _) = self.ask(&command::closure(drv, &options))?;
        if !finished.ending.success() {
            return Ok(());
        }
        let below: BTreeSet<&Path> = finished.paths().collect();
        let begun = &nix_output.begun;
        nix_output.faults.retain(|fault| {
            let drv = fault.drv.as_ref().map(DrvPath::as_store_path);
            drv.is_none_or(|drv| {
                below.contains(drv.as_path()) || structured && begun.contains(drv.as_str())
            })
        });
        Ok(())
    }

    /// Finds out which derivation failed where Nix has not said it: the one whose build was begun, and whose outputs are not
    /// there. Where there are several nobody knows.
    fn name_the_unnamed(&mut self, nix_output: &mut NixOutput) -> Result<(), Failure> {
        let unnamed = |fault: &Fault| fault.drv.is_none();
        let Some(at) = nix_output.faults.iter().position(unnamed) else {
            return Ok(());
        };
        let is_named = |drv: &DrvPath| {
            let mut named = nix_output
                .faults
                .iter()
                .filter_map(|fault| fault.drv.as_ref());
            named.any(|named| named == drv)
        };
        let suspects: Vec<DrvPath> = nix_output.suspects().filter(|drv| !is_named(drv)).collect();
        if let [drv] = self.without_outputs(suspects)?.as_slice() {
            nix_output.faults[at].drv = Some(drv.clone());
        }
        Ok(())
    }

    /// Blames a build where Nix ended with an error that is not understood, and yet is about a build: it names the `.drv`, or
    /// an output, and that is not there. So it is with what a builder has made that Nix does not take (a pipe, a directory
    /// where a file is due, too large an output). And where a build has ended badly, and no more is said of it.
    fn blame(&mut self, nix_output: &mut NixOutput) -> Result<(), Failure> {
        let Some(error) = nix_output
            .error
            .clone()
            .filter(|_| nix_output.is_unexplained())
        else {
            return Ok(());
        };
        let is_meant = |drv: &DrvPath| {
            let outputs = outputs_on_disk(drv);
            error.contains(drv.as_store_path().as_str())
                || outputs
                    .values()
                    .flatten()
                    .any(|path| error.contains(path.as_str()))
        };
        let suspects = nix_output.suspects().filter(is_meant).collect();
        let mut root_cause = self.without_outputs(suspects)?.into_iter().next();
        root_cause = root_cause.or_else(|| nix_output.ended_badly());
        if root_cause.is_some() || is_rejection(&error) {
            nix_output.faults.push(Fault {
                drv: root_cause,
                cause: Cause::Output(format!("Nix does not take what it made: {error}")),
            });
        }
        Ok(())
    }

    /// Those of some derivations of which an output is not valid.
    fn without_outputs(&mut self, drvs: Vec<DrvPath>) -> Result<Vec<DrvPath>, Failure> {
        let outputs: Vec<Vec<StorePath>> = drvs
            .iter()
            .map(|drv| outputs_on_disk(drv).into_values().flatten().collect())
            .collect();
        let paths: Vec<&StorePath> = outputs.iter().flatten().collect();
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        let options = self.options()?;
        let (finished, _) = self.ask(&command::invalid_of(&paths, &options))?;
        let missing: BTreeSet<&Path> = finished.paths().collect();
        let is_missing = |path: &StorePath| missing.contains(path.as_path());
        Ok(drvs
            .into_iter()
            .zip(&outputs)
            .filter(|(_, outputs)| outputs.iter().any(is_missing))
            .map(|(drv, _)| drv)
            .collect())
    }

    /// The log of what failed, where Nix has kept it. The report gets its last lines, where they were not heard: Nix's own text
    /// does not say whose its lines are. A log of another time is none of this step's.
    pub(super) fn kept_log(&mut self, report: &mut Report) -> Option<BuildLog> {
        let failure = report.failure.as_mut()?;
        let drv = failure.drv.as_ref()?;
        if !self.begun.contains(drv.as_store_path().as_str()) {
            return None;
        }
        let (options, temporary) = (&self.request.options, &self.host.temporary);
        match BuildLog::read(drv, options, temporary, self.supervisor) {
            Ok(kept) => {
                let last_lines = || kept.as_ref().and_then(BuildLog::last_lines);
                failure.log = failure.log.take().or_else(last_lines);
                kept
            }
            Err(failure) if matches!(failure.class, Class::Signal(_)) => None,
            Err(failure) => {
                self.log.warn(failure);
                None
            }
        }
    }
}
