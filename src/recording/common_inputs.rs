//! Derivations that are no targets and that several targets need directly, for `shared-steps`: each gets a step of its own, so that it
//! is built once, and its failure is red in one place.

use std::collections::{BTreeMap, BTreeSet};

use super::keep::skip;
use super::pipeline::edges::Edges;
use super::targets::{edges_between, target_of, unreadable};
use super::{Meta, RecordingRequest, SkipWhich, Target};
use crate::exit::Failure;
use crate::log::Log;
use crate::nix::{AttrPath, Derivation, DrvPath, inputs_on_disk};
use crate::store::Store;
use crate::supervise::Supervisor;

/// Derivations that have a step because of the targets that need them.
#[derive(Debug)]
pub(super) struct CommonInputs {
    /// Each of them, as a target without an attribute.
    pub(super) drvs: Vec<Target>,
    /// The edges between the targets and these, which come behind them.
    pub(super) edges: Edges,
}

impl CommonInputs {
    /// Those of these targets that are neither here nor in a cache; none where the request asks for none, or there are none. Targets
    /// that are skipped need nothing.
    ///
    /// # Errors
    /// A `.drv` cannot be read, or the store cannot be asked (75).
    pub(super) fn find(
        targets: &[Target],
        skip: &[Option<String>],
        request: &RecordingRequest,
        files_are_here: bool,
        store: &mut Store,
        supervisor: &mut Supervisor,
        log: &Log,
    ) -> Result<Option<Self>, Failure> {
        let Some(least) = request.shared_steps else {
            return Ok(None);
        };
        let building = targets.iter().zip(skip);
        let building = building.filter(|(_, skip)| skip.is_none());
        let building = building.map(|(target, _)| &target.drv);
        let known: BTreeSet<&DrvPath> = targets.iter().map(|target| &target.drv).collect();
        let mut drvs = Vec::new();
        for drv in needed_by(building, &known, least.get())? {
            let derivation = Derivation::read(&drv).map_err(|error| unreadable(&drv, &error))?;
            drvs.push(target_of(
                derivation,
                AttrPath::default(),
                &drv,
                &Meta::default(),
            ));
        }
        if drvs.is_empty() {
            return Ok(None);
        }
        // What is there needs no step, whatever the request says of targets.
        let request = RecordingRequest {
            push: None,
            skip: match request.skip {
                SkipWhich::Nothing => SkipWhich::Cached,
                which => which,
            },
            ..request.clone()
        };
        let there = skip::reasons(
            &drvs,
            &request,
            None,
            files_are_here,
            store,
            supervisor,
            log,
        )?;
        let missing = drvs.into_iter().zip(there);
        let drvs: Vec<Target> = missing
            .filter_map(|(drv, there)| there.is_none().then_some(drv))
            .collect();
        if drvs.is_empty() {
            return Ok(None);
        }
        let edges = edges_between(targets.iter().chain(&drvs))?;
        Ok(Some(Self { drvs, edges }))
    }
}

/// The derivations, none of them `known`, that at least so many of these need directly.
fn needed_by<'t>(
    drvs: impl Iterator<Item = &'t DrvPath>,
    known: &BTreeSet<&DrvPath>,
    least: usize,
) -> Result<Vec<DrvPath>, Failure> {
    let mut counts: BTreeMap<DrvPath, usize> = BTreeMap::new();
    for drv in drvs {
        let inputs = inputs_on_disk(drv).map_err(|error| unreadable(drv, &error))?;
        let inputs: BTreeSet<DrvPath> = inputs.into_iter().collect();
        for input in inputs.into_iter().filter(|input| !known.contains(input)) {
            *counts.entry(input).or_default() += 1;
        }
    }
    let many = counts.into_iter().filter(|(_, count)| *count >= least);
    Ok(many.map(|(drv, _)| drv).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tempfile::TempDir;

    #[test]
    fn only_what_enough_targets_need_directly_is_found_and_no_target() {
        let folder = TempDir::new().unwrap();
        let path = |i: usize| {
            let path = format!("{}/{i:032}-d{i}.drv", folder.path().display());
            DrvPath::parse(&path).unwrap()
        };
        let write = |i: usize, inputs: &[usize]| {
            let inputs: Vec<String> = inputs
                .iter()
                .map(|i| format!(r#"("{}",["out"])"#, path(*i)))
                .collect();
            let text = format!(
                r#"Derive([("out","/o","","")],[{}],[],"x86_64-linux","/bin/sh",[],[])"#,
                inputs.join(",")
            );
            fs::write(path(i).as_store_path().as_path(), text).unwrap();
            path(i)
        };
        // 0 to 2 are targets; 3 is needed by all of them, 4 by two, 5 only by what they need.
        let targets = [write(0, &[3, 4]), write(1, &[3, 4, 0]), write(2, &[3, 0])];
        write(3, &[5]);
        write(4, &[5]);
        let known = targets.iter().collect();
        let found = |least| needed_by(targets.iter(), &known, least).unwrap();
        assert_eq!(found(2), [path(3), path(4)]);
        assert_eq!(found(3), [path(3)]);
        assert!(found(4).is_empty());
        fs::remove_file(targets[0].as_store_path().as_path()).unwrap();
        let failure = needed_by(targets.iter(), &known, 2).unwrap_err();
        assert_eq!(failure.class, crate::exit::Class::Infrastructure);
    }
}
