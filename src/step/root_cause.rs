//! Which derivation failed, where Nix's output does not say it, or says too much.

use std::collections::HashSet;

use super::build_log::BuildLog;
use super::drv_outputs::DrvOutputs;
use super::report::Report;
use super::run::StepRun;
use crate::exit::{Class, Failure};
use crate::nix::{Cause, DrvPath, Fault, NixOutput, StorePath, is_rejection};

impl StepRun<'_> {
    /// Finds the derivations that failed by themselves, where Nix's output does not name them: while realising `drv`, or while
    /// evaluating.
    pub(super) fn find_root_cause(
        &mut self,
        output: &mut NixOutput,
        drv: Option<&DrvPath>,
    ) -> Result<(), Failure> {
        if let Some(drv) = drv {
            self.drop_foreign_faults(drv, output)?;
        }
        self.add_unexplained_fault(output)?;
        self.name_unnamed_fault(output)?;
        self.faults.clone_from(&output.faults);
        if let Some(drv) = output.root_cause().and_then(|fault| fault.drv.as_ref()) {
            let lines = output.last_lines(drv).filter(|lines| !lines.is_empty());
            self.last_lines = lines;
        }
        Ok(())
    }

    /// Drops faults of derivations outside the closure of `drv`. A builder may print anything, and one that tests Nix prints
    /// messages about derivations of its own. In the structured log, too, a line that a builder prints behind `@nix` becomes a message
    /// of Nix (measured on 2.8, 2.26 and 2.34), but a builder cannot print there that a build begins. A build that began may be
    /// outside the closure: a content-addressed derivation is resolved to another one.
    fn drop_foreign_faults(
        &mut self,
        drv: &DrvPath,
        output: &mut NixOutput,
    ) -> Result<(), Failure> {
        let is_ours = |drv: &DrvPath, output: &NixOutput| output.begun.contains(drv);
        let is_known = |fault: &Fault| fault.drv.as_ref().is_none_or(|drv| is_ours(drv, output));
        if output.faults.iter().all(is_known) {
            return Ok(());
        }
        let Some(closure) = self
            .store
            .closure(self.supervisor, &[drv.as_store_path()])?
        else {
            return Ok(());
        };
        let faults = std::mem::take(&mut output.faults);
        let is_in_closure = |fault: &Fault| {
            fault
                .drv
                .as_ref()
                .is_none_or(|drv| closure.contains(drv.as_store_path()) || is_ours(drv, output))
        };
        output.faults = faults.into_iter().filter(is_in_closure).collect();
        Ok(())
    }

    /// Names the derivation of a fault where Nix has not: the one whose build began, and whose outputs are missing. Where there are
    /// several, the fault stays unnamed.
    fn name_unnamed_fault(&mut self, output: &mut NixOutput) -> Result<(), Failure> {
        let unnamed = |fault: &Fault| fault.drv.is_none();
        let Some(at) = output.faults.iter().position(unnamed) else {
            return Ok(());
        };
        let is_named = |drv: &DrvPath| {
            let mut named = output.faults.iter().filter_map(|fault| fault.drv.as_ref());
            named.any(|named| named == drv)
        };
        let suspects: Vec<DrvPath> = output.suspects().filter(|drv| !is_named(drv)).collect();
        if let [drv] = self.with_missing_outputs(suspects)?.as_slice() {
            output.faults[at].drv = Some(drv.clone());
        }
        Ok(())
    }

    /// Adds a fault if Nix ended with an unknown error that is about a build: the error names the `.drv` or an output, and the output
    /// is missing. Nix does this when it does not accept what a builder made (a pipe, a directory instead of a file, too large an
    /// output). Also if a build failed by Nix's count, and no message is about it.
    fn add_unexplained_fault(&mut self, output: &mut NixOutput) -> Result<(), Failure> {
        let Some(error) = output.error.clone().filter(|_| output.is_unexplained()) else {
            return Ok(());
        };
        let is_meant = |drv: &DrvPath| names_drv_or_output(&error, drv, &DrvOutputs::read(drv));
        let suspects = output.suspects().filter(is_meant).collect();
        let mut root_cause = self.with_missing_outputs(suspects)?.into_iter().next();
        root_cause = root_cause.or_else(|| output.ended_badly());
        if root_cause.is_some() || is_rejection(&error) {
            output.faults.push(Fault {
                drv: root_cause,
                cause: Cause::Output(format!("Nix does not accept its output: {error}")),
            });
        }
        Ok(())
    }

    /// Those of some derivations of which an output is not valid.
    fn with_missing_outputs(&mut self, drvs: Vec<DrvPath>) -> Result<Vec<DrvPath>, Failure> {
        let outputs: Vec<Vec<StorePath>> = drvs
            .iter()
            .map(|drv| {
                let paths = DrvOutputs::read(drv).paths;
                paths.into_values().flatten().collect()
            })
            .collect();
        let paths: Vec<&StorePath> = outputs.iter().flatten().collect();
        let missing: HashSet<StorePath> = self.store.invalid(self.supervisor, &paths)?;
        Ok(drvs
            .into_iter()
            .zip(&outputs)
            .filter(|(_, outputs)| outputs.iter().any(|path| missing.contains(path)))
            .map(|(drv, _)| drv)
            .collect())
    }

    /// The log of the root cause, where Nix has kept it. The report gets its last lines where Nix did not print them: Nix's own
    /// text does not say whose lines it prints. A log of another time is not this step's.
    pub(super) fn build_log(&mut self, report: &mut Report) -> Option<BuildLog> {
        let failure = report.failure.as_mut()?;
        let drv = failure.drv.as_ref()?;
        if !self.begun.contains(drv) {
            return None;
        }
        match BuildLog::read(drv, &mut self.store, &self.host.temporary, self.supervisor) {
            Ok(log) => {
                let last_lines = || log.as_ref().and_then(BuildLog::last_lines);
                failure.log = failure.log.take().or_else(last_lines);
                // Without a line, it would be shown as that of a builder that printed nothing.
                log.filter(|_| failure.log.is_some() || !failure.printed_too_much)
            }
            Err(failure) if matches!(failure.class, Class::Signal(_)) => None,
            Err(failure) => {
                self.log.warn(failure);
                None
            }
        }
    }
}

/// Whether an error names a derivation, or one of its outputs.
fn names_drv_or_output(error: &str, drv: &DrvPath, outputs: &DrvOutputs) -> bool {
    let mut paths = outputs.paths.values().flatten();
    error.contains(drv.as_store_path().as_str()) || paths.any(|path| error.contains(path.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_means_a_build_where_it_names_the_drv_or_an_output() {
        let path = |name: &str| format!("/s/0123456789abcdfghijklmnpqrsvwxyz-{name}");
        let drv = DrvPath::parse(&path("a.drv")).unwrap();
        let out = StorePath::parse(&path("a")).ok();
        let outputs = DrvOutputs {
            paths: [("out".to_owned(), out), ("dev".to_owned(), None)].into(),
            fixed: false,
        };
        let names = |error: &str| names_drv_or_output(error, &drv, &outputs);
        assert!(names(&format!(
            "file '{}' has an unsupported type",
            path("a")
        )));
        assert!(names(&format!("while building {}", path("a.drv"))));
        assert!(!names(&format!("file '{}' is odd", path("b"))));
    }
}
