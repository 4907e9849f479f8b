//! What the walk has found: what each attribute is, by its number, and what stands beside what was walked.

use std::collections::{BTreeMap, BTreeSet};

use super::EvaluationResult;
use super::exclusions::excluding;
use super::overlooked::{self, Overlooked};
use super::protocol::{AttrName, DescribedTarget};
use super::spans::AttrIndex;
use crate::nix::{AttrPath, DrvPath};
use crate::recording::{AttrError, FoundTarget};

const NOT_UTF_8: &str = "its name is not UTF-8";

/// What an attribute is.
#[derive(Debug)]
enum AttrOutcome {
    Found(FoundTarget),
    /// It does not evaluate.
    Error(AttrError),
    /// It evaluates, but its metadata is no data.
    Refused(AttrError),
    /// It throws, or its metadata does; with which message is not known yet.
    Throws {
        in_meta: bool,
    },
}

/// What the walk has found so far.
#[derive(Debug)]
pub(super) struct Findings {
    /// The attribute at which the walk begins.
    root: AttrPath,
    names: BTreeMap<AttrIndex, AttrName>,
    outcomes: BTreeMap<AttrIndex, AttrOutcome>,
    /// Those whose `.drv` was only named, and need not have been written.
    named: BTreeSet<AttrIndex>,
    /// Those that can be called as well.
    callable: BTreeSet<AttrIndex>,
    /// The sets that are not marked, and so not walked.
    unmarked: BTreeSet<AttrIndex>,
    /// What stands beside what is walked in a flake: outputs below the root, else systems.
    beside: BTreeMap<AttrIndex, Vec<String>>,
    /// The exclusions that have left something out, by their numbers.
    effective: BTreeSet<usize>,
    /// The version of Nix.
    nix: String,
}

impl Findings {
    pub(super) fn new(root: &AttrPath) -> Self {
        Self {
            root: root.clone(),
            names: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            named: BTreeSet::new(),
            callable: BTreeSet::new(),
            unmarked: BTreeSet::new(),
            beside: BTreeMap::new(),
            effective: BTreeSet::new(),
            nix: String::new(),
        }
    }

    // ---- what the walker says of an attribute

    /// It has this name.
    pub(super) fn begin(&mut self, path: &AttrIndex, name: AttrName) {
        let is_utf8 = name.is_utf8;
        self.names.insert(path.clone(), name);
        if !is_utf8 {
            self.error(path, NOT_UTF_8);
        }
    }

    /// It has this name, and is left out by these of the exclusions.
    pub(super) fn leave_out(&mut self, path: AttrIndex, by: Vec<usize>, name: AttrName) {
        self.names.insert(path, name);
        self.effective.extend(by);
    }

    /// It is a set that is not marked.
    pub(super) fn unmarked(&mut self, path: AttrIndex) {
        self.unmarked.insert(path);
    }

    /// These stand beside what is walked.
    pub(super) fn beside(&mut self, path: AttrIndex, names: Vec<String>) {
        self.beside.insert(path, names);
    }

    /// It can be called as well.
    pub(super) fn callable(&mut self, path: AttrIndex) {
        self.callable.insert(path);
    }

    /// It is a derivation.
    pub(super) fn target(&mut self, path: AttrIndex, described: Result<DescribedTarget, String>) {
        let (attr, is_utf8) = self.attr_in_utf8(&path);
        let read = described.and_then(|described| {
            let drv = DrvPath::parse(&described.drv)
                .map_err(|wrong| format!("its drvPath {wrong}: {:?}", described.drv))?;
            Ok((drv, described.meta.read()?, described.named))
        });
        match read {
            _ if !is_utf8 => self.error(&path, NOT_UTF_8),
            Ok((drv, meta, named)) => {
                if named {
                    self.named.insert(path.clone());
                }
                let target = FoundTarget { attr, drv, meta };
                self.outcomes.insert(path, AttrOutcome::Found(target));
            }
            Err(wrong) => self.refuse(&path, &wrong),
        }
    }

    /// It throws, or its metadata does.
    pub(super) fn throws(&mut self, path: AttrIndex, in_meta: bool) {
        // What is known stands: it may be the message.
        let outcome = AttrOutcome::Throws { in_meta };
        self.outcomes.entry(path).or_insert(outcome);
    }

    /// It does not evaluate. The last message counts: one that throws may not throw when it is asked why.
    pub(super) fn error(&mut self, path: &AttrIndex, message: &str) {
        let error = self.attr_error(path, message);
        let outcome = AttrOutcome::Error(error);
        self.outcomes.insert(path.clone(), outcome);
    }

    /// Its metadata is no data.
    pub(super) fn refuse(&mut self, path: &AttrIndex, message: &str) {
        let error = self.attr_error(path, message);
        let outcome = AttrOutcome::Refused(error);
        self.outcomes.insert(path.clone(), outcome);
    }

    /// It, or its metadata, does not evaluate: a worker died of it. A target that was found stands: the worker died on the way to
    /// the next attribute.
    pub(super) fn fail(&mut self, path: &AttrIndex, in_meta: bool, message: &str) {
        if matches!(self.outcomes.get(path), Some(AttrOutcome::Found(_))) {
            return;
        }
        if in_meta {
            self.refuse(path, message);
        } else {
            self.error(path, message);
        }
    }

    /// The version of Nix that evaluated.
    pub(super) fn version(&mut self, version: String) {
        self.nix = version;
    }

    /// Drops the targets with these `.drv`s, which are gone: they are to be evaluated again. One whose `.drv` was only named is
    /// refused, for evaluating it would not write that.
    pub(super) fn drop_gone(&mut self, gone: &[DrvPath]) -> Vec<AttrIndex> {
        let is_gone = |outcome: &AttrOutcome| matches!(outcome, AttrOutcome::Found(found) if gone.contains(&found.drv));
        let paths: Vec<AttrIndex> = self
            .outcomes
            .iter()
            .filter(|(_, outcome)| is_gone(outcome))
            .map(|(path, _)| path.clone())
            .collect();
        let mut dropped = Vec::new();
        for path in paths {
            if self.named.contains(&path) {
                let why = "its drvPath was only named, and is not in the store";
                self.refuse(&path, why);
            } else {
                self.outcomes.remove(&path);
                dropped.push(path);
            }
        }
        dropped
    }

    // ---- what is known

    /// How many attributes were found, errors and all.
    pub(super) fn count(&self) -> usize {
        self.outcomes.len()
    }

    /// The full attribute path.
    pub(super) fn attr(&self, path: &AttrIndex) -> AttrPath {
        self.attr_in_utf8(path).0
    }

    /// The full attribute path, and whether all its names are UTF-8.
    fn attr_in_utf8(&self, path: &AttrIndex) -> (AttrPath, bool) {
        let mut names = self.root.names().to_vec();
        let mut is_utf8 = true;
        for part in path.with_parents().skip(1) {
            if let Some(name) = self.names.get(&part) {
                names.push(name.text.clone());
                is_utf8 &= name.is_utf8;
            }
        }
        (AttrPath::new(names), is_utf8)
    }

    fn attr_error(&self, path: &AttrIndex, message: &str) -> AttrError {
        AttrError {
            attr: self.attr(path),
            message: Some(message.to_owned()),
        }
    }

    /// Of the first `count` attributes with an error those whose message is not known yet.
    pub(super) fn unexplained(&self, count: usize) -> Vec<AttrIndex> {
        self.errors()
            .take(count)
            .filter(|(_, outcome)| matches!(outcome, AttrOutcome::Throws { .. }))
            .map(|(path, _)| path.clone())
            .collect()
    }

    fn errors(&self) -> impl Iterator<Item = (&AttrIndex, &AttrOutcome)> {
        self.outcomes
            .iter()
            .filter(|(_, outcome)| !matches!(outcome, AttrOutcome::Found(_)))
    }

    /// The first `count` sets that are not marked.
    pub(super) fn unmarked_sets(&self, count: usize) -> Vec<AttrIndex> {
        self.unmarked.iter().take(count).cloned().collect()
    }

    /// What was not walked, but for the sets; and which of the exclusions left nothing out.
    pub(super) fn overlooked(&self, exclude: &[AttrPath]) -> Overlooked {
        let mut overlooked = Overlooked::default();
        let mut effective = self.effective.clone();
        for (path, names) in &self.beside {
            for name in names {
                let mut whole = self.attr(path).names().to_vec();
                whole.push(name.clone());
                let by = excluding(&AttrPath::new(whole), exclude);
                if !by.is_empty() {
                    effective.extend(by);
                } else if *path == AttrIndex::default() {
                    overlooked.outputs.push(name.clone());
                } else {
                    overlooked.systems.insert(name.clone());
                }
            }
        }
        if effective.len() < exclude.len() {
            let known: Vec<AttrPath> = self.names.keys().map(|path| self.attr(path)).collect();
            let errors: BTreeSet<AttrPath> =
                self.errors().map(|(path, _)| self.attr(path)).collect();
            overlooked.exclusions =
                overlooked::without_effect(exclude, &effective, &self.root, &known, |attr| {
                    errors.contains(attr)
                });
        }
        overlooked
    }

    /// All of it, in the order of the attributes.
    pub(super) fn result(&self, overlooked: &Overlooked) -> EvaluationResult {
        let mut result = EvaluationResult {
            nix: self.nix.clone(),
            callable: self.callable.iter().map(|path| self.attr(path)).collect(),
            overlooked: overlooked.clone(),
            ..EvaluationResult::default()
        };
        for (path, outcome) in &self.outcomes {
            match outcome {
                AttrOutcome::Found(found) => result.found.push(found.clone()),
                AttrOutcome::Error(error) => result.broken.push(error.clone()),
                AttrOutcome::Refused(error) => result.refused.push(error.clone()),
                AttrOutcome::Throws { in_meta: true } => {
                    let error = self.attr_error(path, "its metadata throws");
                    result.refused.push(error);
                }
                AttrOutcome::Throws { in_meta: false } => result.broken.push(AttrError {
                    attr: self.attr(path),
                    message: None,
                }),
            }
        }
        result
    }
}
