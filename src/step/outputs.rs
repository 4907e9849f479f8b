//! The outputs of a derivation after Nix has realised it: where they really are, and whether they are there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::drv_outputs::{DrvOutputs, Outputs};
use super::links;
use super::run::StepRun;
use crate::build_keys;
use crate::exit::{Class, Failure};
use crate::nix::{Cause, DrvPath, Fault, NixOutput, StorePath};
use crate::supervise::Finished;

/// How long outputs are watched while a collection is under way that may still take them. Nearly always it does so at once, or has
/// ended before; and one that takes half an hour must not hold up all steps for so long.
const WATCHED_AT_MOST: Duration = Duration::from_secs(5);

/// After how long that is said.
const SAID_AFTER: Duration = Duration::from_secs(1);

/// Outputs that were there after their GC root was made. Only [`StepRun::verify`] makes one of a realised derivation, and no way
/// succeeds without.
pub(super) struct VerifiedOutputs(Outputs);

impl VerifiedOutputs {
    /// The outputs of a skipped step, which roots and realises nothing: a substituter may have them, and this host not.
    pub(super) fn of_skipped_step(outputs: Outputs) -> Self {
        Self(outputs)
    }

    pub(super) fn into_outputs(self) -> Outputs {
        self.0
    }
}

impl StepRun<'_> {
    /// The outputs of a `.drv` that Nix reports as realised, verified; none where one of them is missing all the same. `before` was
    /// read before Nix ran: the collector may have taken the `.drv` since.
    pub(super) fn realised_outputs(
        &mut self,
        drv: &DrvPath,
        before: DrvOutputs,
        finished: &Finished,
        output: &NixOutput,
    ) -> Result<Option<VerifiedOutputs>, Failure> {
        // One that came from a substituter was not there before.
        let in_drv = if before.paths.is_empty() {
            DrvOutputs::read(drv)
        } else {
            before
        };
        if in_drv.paths.is_empty() && finished.stdout.is_empty() {
            self.note_dead_end(format_args!(
                "{drv}: nix-store succeeded, and names no output"
            ));
            return Ok(None);
        }
        let mut outputs = self.named_outputs(drv, &in_drv, finished)?;
        if in_drv.fixed {
            outputs = self.fixed_output(drv, outputs, finished, output)?;
        }
        self.verify(outputs)
    }

    /// The outputs, if each of them is there now that its GC root exists. No process is needed where the store's folder is on this host: then a
    /// missing file is a missing output. Nix is asked only where that store may lie elsewhere, in a way that a program which does nothing
    /// cannot answer.
    pub(super) fn verify(&mut self, outputs: Outputs) -> Result<Option<VerifiedOutputs>, Failure> {
        let Some(missing) = self.missing_output(&outputs)? else {
            self.check_links_made(&outputs)?;
            return Ok(Some(VerifiedOutputs(outputs)));
        };
        // An output that exists shows that the folder is the store's, as the `.drv` does where it was used.
        let any_is_here = outputs.values().any(|path| !is_missing(path));
        if !self.store_is_here(any_is_here) {
            let paths: Vec<&StorePath> = outputs.values().collect();
            if self.store.has_hashes(self.supervisor, &paths)? {
                self.check_links_made(&outputs)?;
                return Ok(Some(VerifiedOutputs(outputs)));
            }
        }
        // A link that leads nowhere is worse than none.
        self.unlink(&missing);
        self.note_dead_end(format_args!(
            "{missing} does not exist, although Nix has just realised it"
        ));
        self.lost = Some(missing);
        Ok(None)
    }

    /// Looks for the links that Nix says it has made: a program that does nothing ends well, too. Where they lead does not count: another
    /// step may have replaced one by now. A store on another machine makes none.
    fn check_links_made(&self, outputs: &Outputs) -> Result<(), Failure> {
        let Some(base) = &self.link else {
            return Ok(());
        };
        if !self.host.nix.store_is_local(&self.request.options) {
            return Ok(());
        }
        let links = outputs.keys().map(|name| links::link_of(base, name));
        let Some(absent) = { links }.find(|link| !link.is_symlink()) else {
            return Ok(());
        };
        self.probe_links(self.drv.as_ref())?;
        Err(Failure::new(
            Class::Infrastructure,
            format_args!(
                "nothing keeps the outputs: `nix-store` ended with 0, and the link {} does not exist",
                absent.display()
            ),
        )
        .hint("check that the first `nix-store` on PATH is Nix's: `eval-once doctor` says which one it is"))
    }

    /// An output that does not exist, or that a collection takes which was under way already when its GC root was made.
    fn missing_output(&mut self, outputs: &Outputs) -> Result<Option<StorePath>, Failure> {
        let find = || outputs.values().find(|path| is_missing(path));
        let Some(collection) = self.store.collection() else {
            return Ok(find().cloned());
        };
        let mut missing = None;
        let mut is_said = false;
        collection.watch(WATCHED_AT_MOST, self.supervisor, |watched| {
            missing = find();
            if !is_said && watched >= SAID_AFTER {
                is_said = true;
                self.log.say(format_args!(
                    "a garbage collection is under way that began before the outputs were rooted: looking for {} s whether it takes them",
                    WATCHED_AT_MOST.as_secs()
                ));
            }
            missing.is_some()
        })?;
        Ok(missing.cloned())
    }

    /// The outputs of a realised `.drv`: those that the `.drv` names; else the targets of the links that Nix made; else the printed
    /// paths that the record names. (The links do not come first: another step may have replaced them by now.)
    fn named_outputs(
        &self,
        drv: &DrvPath,
        in_drv: &DrvOutputs,
        finished: &Finished,
    ) -> Result<Outputs, Failure> {
        if let Some(outputs) = in_drv.all_known() {
            return Ok(outputs);
        }
        let names: Vec<String> = in_drv.paths.keys().cloned().collect();
        let linked = self.linked_outputs(&names, finished);
        let outputs = linked
            .filter(|linked| !linked.is_empty())
            .unwrap_or_else(|| recorded_and_printed(&self.request.outputs, finished));
        if outputs.is_empty() {
            return Err(Failure::new(
                Class::Infrastructure,
                format_args!(
                    "{drv} was realised, and its outputs cannot be determined: this store makes no links here"
                ),
            ));
        }
        Ok(outputs)
    }

    /// Where a fixed output really is. Nix 2.8 accepts one that refers to other store paths, and registers it under another path
    /// than its `.drv` says: with `ca-derivations` it links that one; without, the path of the `.drv`, which is not valid though a
    /// file may be left there. (From 2.26 on Nix refuses it.) So a fixed output is asked for where it was built just now, or where
    /// the link leads elsewhere; no other step pays for this question.
    fn fixed_output(
        &mut self,
        drv: &DrvPath,
        in_drv: Outputs,
        finished: &Finished,
        output: &NixOutput,
    ) -> Result<Outputs, Failure> {
        let linked = match self.link {
            Some(_) => self.linked_outputs(&["out".to_owned()], finished),
            None => printed_output(finished),
        };
        let linked = linked.filter(|linked| *linked != in_drv);
        if linked.is_none() && output.begun.is_empty() {
            return Ok(in_drv);
        }
        let Some(path) = in_drv.get("out").cloned() else {
            return Ok(in_drv);
        };
        let exists = path.as_path().symlink_metadata().is_ok();
        // Another step may have replaced the link; its output has another name, as a rule.
        let linked = linked.filter(|linked| {
            linked
                .get("out")
                .is_some_and(|other| other.name() == path.name())
        });
        if let Some(linked) = &linked
            && !exists
            && self.store_is_here(false)
        {
            return Ok(linked.clone());
        }
        if self.is_valid(&path)? {
            return Ok(in_drv);
        }
        if let Some(linked) = linked {
            return Ok(linked);
        }
        self.unlink(&path);
        let cause = Cause::Output(format!(
            "its output refers to other store paths: {path} is not valid"
        ));
        let failure = Failure::new(Class::Build, format_args!("{drv} failed: {cause}"));
        self.faults.push(Fault {
            drv: Some(drv.clone()),
            cause,
        });
        Err(failure
            .meaning("A fixed output that refers to other store paths cannot be used; retrying cannot help.")
            .hint("keep references out of what is fetched (leave out `patchShebangs`, wrappers and store paths in it): this Nix registers such an output under another path than its .drv says, later versions refuse it"))
    }

    /// Whether the store that Nix uses is the folder that its paths name: an output, or the `.drv` that Nix has just used, exists,
    /// and no setting names a store elsewhere.
    fn store_is_here(&self, an_output_exists: bool) -> bool {
        let drv = self.drv.as_ref().map(DrvPath::as_store_path);
        let drv_exists = || drv.is_some_and(|drv| drv.as_path().symlink_metadata().is_ok());
        (an_output_exists || drv_exists()) && self.host.nix.store_is_local(&self.request.options)
    }

    /// Removes the links that Nix has made where a confined job may make none: a folder on the way was replaced after it was checked.
    /// Nix takes a link by its path, so nothing keeps it from following that; but nothing begins that could use the link.
    ///
    /// # Errors
    /// There may be such links (64).
    pub(super) fn withdraw_links(&self, outputs: Option<&Outputs>) -> Result<(), Failure> {
        if !self.checkout.confined {
            return Ok(());
        }
        let Err(failure) = build_keys::check_confined(&self.request.out_link, self.checkout) else {
            return Ok(());
        };
        let in_drv = self.drv.as_ref().map(DrvOutputs::read).unwrap_or_default();
        let in_drv = in_drv.paths.values().flatten();
        let outputs = outputs.into_iter().chain([&self.request.outputs]);
        for path in outputs.flat_map(Outputs::values).chain(in_drv) {
            self.unlink(path);
        }
        Err(failure.context(
            "a folder of the out-link was replaced while the step ran, and the link is removed",
        ))
    }

    /// Removes the links to `path` that were made for it.
    fn unlink(&self, path: &StorePath) {
        let Some(base) = &self.link else { return };
        let names = self.request.outputs.keys().map(String::as_str);
        let in_drv = self.drv.as_ref().map(DrvOutputs::read).unwrap_or_default();
        let in_drv = in_drv.paths.keys().map(String::as_str);
        for name in names.chain(in_drv).chain(["out"]) {
            let link = links::link_of(base, name);
            if link
                .read_link()
                .is_ok_and(|target| target == path.as_path())
            {
                let _ = std::fs::remove_file(link);
            }
        }
    }

    /// Where the links lead that Nix has made for the outputs of these `names`, or for all whose links it has printed.
    fn linked_outputs(&self, names: &[String], finished: &Finished) -> Option<Outputs> {
        let base = self.link.as_deref()?;
        let links: Vec<PathBuf> = if names.is_empty() {
            finished.paths().map(PathBuf::from).collect()
        } else {
            names
                .iter()
                .map(|name| links::link_of(base, name))
                .collect()
        };
        links
            .iter()
            .map(|link| links::read_link(base, link))
            .collect()
    }
}

fn is_missing(path: &StorePath) -> bool {
    path.as_path().symlink_metadata().is_err()
}

/// Those of the recorded outputs whose paths Nix has printed.
fn recorded_and_printed(recorded: &Outputs, finished: &Finished) -> Outputs {
    let printed: Vec<&Path> = finished.paths().collect();
    let outputs = recorded.iter();
    outputs
        .filter(|(_, path)| printed.contains(&path.as_path()))
        .map(|(name, path)| (name.clone(), path.clone()))
        .collect()
}

/// The one path that Nix has printed, as it does where it makes no link.
fn printed_output(finished: &Finished) -> Option<Outputs> {
    let mut printed = finished.paths();
    let path = StorePath::parse(printed.next()?.to_str()?).ok()?;
    let is_only = printed.next().is_none();
    is_only.then(|| Outputs::from([("out".to_owned(), path)]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command_line::Ending;

    fn path(name: &str) -> StorePath {
        StorePath::parse(&format!("/s/0123456789abcdfghijklmnpqrsvwxyz-{name}")).unwrap()
    }

    fn finished(printed: &[&StorePath]) -> Finished {
        let lines: Vec<&str> = printed.iter().map(|path| path.as_str()).collect();
        let stdout = lines.join("\n");
        Finished {
            ending: Ending::Exited(0),
            stdout: stdout.into_bytes(),
        }
    }

    #[test]
    fn of_recorded_outputs_those_count_that_nix_has_printed() {
        let (a, b) = (path("a"), path("b"));
        let recorded = Outputs::from([("out".into(), a.clone()), ("dev".into(), b.clone())]);
        let outputs = recorded_and_printed(&recorded, &finished(&[&b]));
        assert_eq!(outputs, Outputs::from([("dev".into(), b)]));
        assert!(recorded_and_printed(&recorded, &finished(&[])).is_empty());
    }

    #[test]
    fn a_printed_path_is_the_output_only_where_it_is_the_only_one() {
        let (a, b) = (path("a"), path("b"));
        assert_eq!(
            printed_output(&finished(&[&a])),
            Some(Outputs::from([("out".into(), a.clone())]))
        );
        assert_eq!(printed_output(&finished(&[&a, &b])), None);
        assert_eq!(printed_output(&finished(&[])), None);
    }
}
