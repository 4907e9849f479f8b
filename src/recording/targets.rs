//! The targets of an evaluation, and the edges between them: one target for each `.drv`, with the data of its derivation.
//!
//! Reads the `.drv`s as files of the store's folder; nothing here asks Nix.

use std::collections::{BTreeMap, HashMap};

use super::following::{Follower, RunTarget};
use super::pipeline::edges::{BadGraph, Edges};
use super::{EvaluationResult, FoundTarget, KnownOutputs, Meta, Target, same_drv};
use crate::exit::{Class, Failure};
use crate::nix::{AttrPath, Derivation, DrvPath, StorePath, inputs_on_disk};

/// The targets of an evaluation and the edges between them.
///
/// # Errors
/// A `.drv` cannot be read (75).
pub(super) fn targets_and_edges(
    evaluated: &EvaluationResult,
) -> Result<(Vec<Target>, Edges), Failure> {
    let (targets, inputs) = targets(evaluated)?;
    let edges = edges(targets.iter(), inputs)?;
    Ok((targets, edges))
}

/// The inputs of each derivation that was read.
pub(super) type DrvInputs = HashMap<DrvPath, Vec<DrvPath>>;

/// One target for each `.drv`, in the order of their first attributes; and the inputs of their derivations.
///
/// # Errors
/// A `.drv` cannot be read (75).
pub(super) fn targets(evaluated: &EvaluationResult) -> Result<(Vec<Target>, DrvInputs), Failure> {
    let mut known: HashMap<&DrvPath, usize> = HashMap::new();
    let mut targets: Vec<Target> = Vec::with_capacity(evaluated.targets.len());
    let mut inputs = DrvInputs::new();
    for found in &evaluated.targets {
        if let Some(at) = known.get(&found.drv) {
            targets[*at].also.push(found.attr.clone());
            same_drv::add(&mut targets[*at].meta, &found.meta);
            add_followers(&mut targets[*at], found)?;
            continue;
        }
        let mut derivation =
            Derivation::read(&found.drv).map_err(|error| unreadable(&found.drv, &error))?;
        known.insert(&found.drv, targets.len());
        let derivation_inputs = std::mem::take(&mut derivation.inputs);
        let mut target = target_of(derivation, found.attr.clone(), &found.drv, &found.meta);
        add_followers(&mut target, found)?;
        targets.push(target);
        inputs.insert(found.drv.clone(), derivation_inputs);
    }
    Ok((targets, inputs))
}

/// The target of this attribute and `.drv`, which is this derivation.
pub(super) fn target_of(
    derivation: Derivation,
    attr: AttrPath,
    drv: &DrvPath,
    meta: &Meta,
) -> Target {
    Target {
        attr,
        also: Vec::new(),
        name: derivation.name,
        drv: drv.clone(),
        outputs: known_outputs(derivation.outputs),
        system: derivation.system,
        features: derivation.features,
        meta: meta.clone(),
        followers: Vec::new(),
    }
}

/// The edges between these targets, all of whose derivations are read where they lie.
///
/// # Errors
/// A `.drv` cannot be read (75).
pub(super) fn edges_between<'t>(
    targets: impl Iterator<Item = &'t Target>,
) -> Result<Edges, Failure> {
    edges(targets, DrvInputs::new())
}

/// The outputs of a derivation, where all of their paths are known. A step that knows only some of the outputs could not know
/// whether it is done.
fn known_outputs(outputs: BTreeMap<String, Option<StorePath>>) -> KnownOutputs {
    let outputs = outputs.into_iter();
    let known: Option<_> = outputs.map(|(name, path)| Some((name, path?))).collect();
    known.unwrap_or_default()
}

/// Adds the steps that follow a target because of this attribute. What another attribute of it says as well is there once.
fn add_followers(target: &mut Target, found: &FoundTarget) -> Result<(), Failure> {
    for meta in &found.meta.followers {
        if target.followers.iter().any(|known| known.meta == *meta) {
            continue;
        }
        let run = meta.run().map(|run| {
            let derivation =
                Derivation::read(&run.drv).map_err(|error| unreadable(&run.drv, &error))?;
            Ok(RunTarget {
                outputs: known_outputs(derivation.outputs),
                system: derivation.system,
                features: derivation.features,
            })
        });
        target.followers.push(Follower {
            owner: found.attr.clone(),
            meta: meta.clone(),
            run: run.transpose()?,
        });
    }
    Ok(())
}

/// The edges between targets; derivations that are no targets are read where they lie on the way.
fn edges<'t>(
    targets: impl Iterator<Item = &'t Target>,
    mut inputs: DrvInputs,
) -> Result<Edges, Failure> {
    let drvs: Vec<DrvPath> = targets.map(|target| target.drv.clone()).collect();
    let read = |drv: &DrvPath| match inputs.remove(drv) {
        Some(inputs) => Ok(inputs),
        None => inputs_on_disk(drv),
    };
    Edges::load(&drvs, read).map_err(|bad| match &bad {
        BadGraph::Unreadable(drv, error) => unreadable(drv, error),
        BadGraph::Cycle(_) => Failure::new(Class::Bug, bad),
    })
}

/// The failure of a `.drv` that cannot be read.
pub(super) fn unreadable(drv: &DrvPath, error: &std::io::Error) -> Failure {
    Failure::new(
        Class::Infrastructure,
        format_args!("cannot read {drv}, which was just evaluated: {error}"),
    )
    .hint("write it anew with `nix-instantiate --repair FILE -A ATTR` where the store has lost the file; a recording needs a store whose files lie at their store paths")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::FoundTarget;
    use std::fs;
    use std::path::Path;
    use tempfile::TempDir;

    /// Writes a derivation with these outputs and inputs.
    fn write(store: &Path, i: usize, outputs: &[(&str, &str)], inputs: &[usize]) -> DrvPath {
        let path = |i: usize| format!("{}/{i:032}-d{i}.drv", store.display());
        let outputs: Vec<String> = outputs
            .iter()
            .map(|(name, path)| format!(r#"("{name}","{path}","","")"#))
            .collect();
        let inputs: Vec<String> = inputs
            .iter()
            .map(|i| format!(r#"("{}",["out"])"#, path(*i)))
            .collect();
        let text = format!(
            r#"Derive([{}],[{}],[],"x86_64-linux","/bin/sh",[],[("requiredSystemFeatures","kvm")])"#,
            outputs.join(","),
            inputs.join(",")
        );
        fs::write(path(i), text).unwrap();
        DrvPath::parse(&path(i)).unwrap()
    }

    fn found(name: &str, drv: &DrvPath) -> FoundTarget {
        FoundTarget {
            attr: AttrPath::new(vec![name.into()]),
            drv: drv.clone(),
            meta: Meta::default(),
        }
    }

    #[test]
    fn several_attributes_with_one_drv_are_one_target() {
        let store = TempDir::new().unwrap();
        let out = format!("{}/{:032}-d0", store.path().display(), 9);
        let first = write(store.path(), 0, &[("out", &out)], &[1]);
        write(store.path(), 1, &[("out", &out)], &[2]);
        let floating = write(store.path(), 2, &[("dev", ""), ("out", &out)], &[]);
        let evaluated = EvaluationResult {
            targets: vec![
                found("a", &first),
                found("c", &floating),
                found("b", &first),
            ],
            ..EvaluationResult::default()
        };
        let (targets, edges) = targets_and_edges(&evaluated).unwrap();
        assert_eq!(targets.len(), 2);
        assert_eq!(targets[0].attr.to_string(), "a");
        assert_eq!(targets[0].also, [AttrPath::new(vec!["b".into()])]);
        assert_eq!(targets[0].outputs["out"].as_str(), out);
        assert_eq!(
            (
                &*targets[0].name,
                &*targets[0].system,
                &targets[0].features[..]
            ),
            ("d0", "x86_64-linux", &["kvm".to_owned()][..])
        );
        assert!(
            targets[1].outputs.is_empty(),
            "one of its paths is not known"
        );
        assert_eq!(edges.of(0), [1], "through a derivation that is no target");
    }

    #[test]
    fn a_drv_that_cannot_be_read_is_an_infrastructure_failure_that_names_it() {
        let store = TempDir::new().unwrap();
        let out = format!("{}/{:032}-d0", store.path().display(), 9);
        let above = write(store.path(), 0, &[("out", &out)], &[1]);
        for drv in [write(store.path(), 2, &[], &[]), above] {
            let evaluated = EvaluationResult {
                targets: vec![found("a", &drv)],
                ..EvaluationResult::default()
            };
            if drv.as_store_path().name() == "d2.drv" {
                fs::remove_file(drv.as_store_path().as_path()).unwrap();
            }
            let failure = targets_and_edges(&evaluated).unwrap_err();
            assert_eq!(failure.class, Class::Infrastructure);
            assert!(
                failure.to_string().starts_with("cannot read /"),
                "{failure}"
            );
        }
    }
}
