//! What the walk has found of each attribute, and what it found but did not walk. It knows no process.

use std::collections::{BTreeMap, BTreeSet};

use super::EvaluationResult;
use super::exclusions::excluding;
use super::gaps::{self, Gaps};
use super::known::KnownTarget;
use super::protocol::{AttrName, DescribedFollower, DescribedTarget, lost};
use super::spans::AttrIndex;
use crate::nix::{AttrPath, DrvPath};
use crate::recording::following::{FollowerMeta, FollowerState};
use crate::recording::{AttrError, FoundTarget};
use crate::secrets::redacted;

const NOT_UTF_8: &str = "its name is not UTF-8";

/// What an attribute is.
#[derive(Debug)]
enum AttrOutcome {
    Found(FoundTarget),
    /// It does not evaluate.
    Error(AttrError),
    /// It evaluates, but its metadata cannot be used.
    Refused(AttrError),
}

/// What the walk has found so far.
#[derive(Debug)]
pub(super) struct Findings {
    /// The attribute at which the walk begins.
    root: AttrPath,
    names: BTreeMap<AttrIndex, AttrName>,
    outcomes: BTreeMap<AttrIndex, AttrOutcome>,
    /// Those whose `.drv` this evaluation need not have written: its path is a plain string.
    named: BTreeSet<AttrIndex>,
    /// Those that can be called as well.
    callable: BTreeSet<AttrIndex>,
    /// For targets that steps follow, the step whose evaluation began last.
    follower: BTreeMap<AttrIndex, usize>,
    /// The sets that are not marked, and so not walked.
    unmarked: BTreeSet<AttrIndex>,
    /// What is not walked in a flake: outputs at the root, else systems.
    beside: BTreeMap<AttrIndex, Vec<String>>,
    /// The exclusions that have matched something, by their numbers.
    effective: BTreeSet<usize>,
    /// The sets of which nothing counts.
    given_up: BTreeSet<AttrIndex>,
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
            follower: BTreeMap::new(),
            unmarked: BTreeSet::new(),
            beside: BTreeMap::new(),
            effective: BTreeSet::new(),
            given_up: BTreeSet::new(),
            nix: String::new(),
        }
    }

    // ---- recording messages

    /// It has this name.
    pub(super) fn begin(&mut self, path: &AttrIndex, name: AttrName) {
        let is_utf8 = name.is_utf8;
        self.names.insert(path.clone(), name);
        if !is_utf8 {
            self.error(path, NOT_UTF_8);
        }
    }

    /// It has this name, and is excluded by these exclusions.
    pub(super) fn exclude(&mut self, path: AttrIndex, by: Vec<usize>, name: AttrName) {
        self.names.insert(path, name);
        self.effective.extend(by);
    }

    /// It has this name, and is this target.
    pub(super) fn know(&mut self, path: &AttrIndex, name: AttrName, target: &KnownTarget) {
        self.names.insert(path.clone(), name);
        if target.callable {
            self.callable.insert(path.clone());
        }
        self.finish(path, AttrOutcome::Found(target.found.clone()));
    }

    /// It is a set that is not marked.
    pub(super) fn unmarked(&mut self, path: AttrIndex) {
        if !self.is_given_up(&path) {
            self.unmarked.insert(path);
        }
    }

    /// These are not walked.
    pub(super) fn beside(&mut self, path: AttrIndex, names: Vec<String>) {
        self.beside.insert(path, names);
    }

    /// It can be called as well.
    pub(super) fn callable(&mut self, path: AttrIndex) {
        if !self.is_given_up(&path) {
            self.callable.insert(path);
        }
    }

    /// It is a derivation.
    pub(super) fn target(&mut self, path: &AttrIndex, described: Result<DescribedTarget, String>) {
        let (attr, is_utf8) = self.attr_in_utf8(path);
        let read = described.and_then(|described| {
            let drv = DrvPath::parse(&described.drv)
                .map_err(|wrong| format!("its drvPath {wrong}: {:?}", described.drv))?;
            let mut meta = described.meta.read()?;
            let steps = described.steps.into_iter();
            meta.followers.extend(steps.map(FollowerMeta::unread));
            Ok((drv, meta, described.named))
        });
        match read {
            _ if !is_utf8 => self.error(path, NOT_UTF_8),
            Ok((drv, meta, named)) => {
                if named {
                    self.named.insert(path.clone());
                }
                let target = FoundTarget { attr, drv, meta };
                self.finish(path, AttrOutcome::Found(target));
            }
            Err(wrong) => self.refuse(path, &wrong),
        }
    }

    /// The evaluation of this step begins, which follows it.
    pub(super) fn follow(&mut self, path: &AttrIndex, step: usize) {
        let before = self.follower.insert(path.clone(), step);
        if let Some(before) = before.filter(|before| *before != step) {
            // It threw, unless it was read.
            self.lose_follower(path, before, None);
        }
    }

    /// What is known of this step, which follows it.
    pub(super) fn follower(
        &mut self,
        path: &AttrIndex,
        step: usize,
        described: Result<DescribedFollower, String>,
    ) {
        if let Some(follower) = self.follower_of(path, step) {
            let read = described.and_then(|described| described.read(&follower.name));
            follower.state = read.unwrap_or_else(lost);
        }
    }

    /// This step, which follows it, does not evaluate; for this reason, where that is known.
    pub(super) fn lose_follower(&mut self, path: &AttrIndex, step: usize, message: Option<&str>) {
        if let Some(follower) = self.follower_of(path, step)
            && matches!(
                follower.state,
                FollowerState::Unread | FollowerState::Lost(None)
            )
        {
            follower.state = message.map_or(FollowerState::Lost(None), lost);
        }
    }

    /// The attribute path of what this step runs, which follows it.
    pub(super) fn attr_of_run(&self, path: &AttrIndex, step: usize) -> Option<AttrPath> {
        let Some(AttrOutcome::Found(found)) = self.outcomes.get(path) else {
            return None;
        };
        Some(found.meta.followers.get(step)?.attr_of_run(&found.attr))
    }

    fn follower_of(&mut self, path: &AttrIndex, step: usize) -> Option<&mut FollowerMeta> {
        match self.outcomes.get_mut(path) {
            Some(AttrOutcome::Found(found)) => found.meta.followers.get_mut(step),
            _ => None,
        }
    }

    /// It does not evaluate.
    pub(super) fn error(&mut self, path: &AttrIndex, message: &str) {
        let error = self.attr_error(path, message);
        self.finish(path, AttrOutcome::Error(error));
    }

    /// Its metadata cannot be used.
    pub(super) fn refuse(&mut self, path: &AttrIndex, message: &str) {
        let error = self.attr_error(path, message);
        self.finish(path, AttrOutcome::Refused(error));
    }

    /// Its outcome is this, unless it lies in a set of which nothing counts.
    fn finish(&mut self, path: &AttrIndex, outcome: AttrOutcome) {
        if !self.is_given_up(path) {
            self.outcomes.insert(path.clone(), outcome);
        }
    }

    /// Its evaluation failed, or that of its metadata. A target that was found remains one: a step that follows it does not evaluate,
    /// or its worker died on the way to the next attribute.
    pub(super) fn fail(&mut self, path: &AttrIndex, in_meta: bool, message: &str) {
        if matches!(self.outcomes.get(path), Some(AttrOutcome::Found(_))) {
            if let Some(step) = self.follower.get(path).copied() {
                self.lose_follower(path, step, Some(message));
            }
            return;
        }
        if in_meta {
            self.refuse(path, message);
        } else {
            self.error(path, message);
        }
    }

    /// It does not evaluate, with a message that is not known.
    pub(super) fn throws(&mut self, path: &AttrIndex) {
        let error = AttrError {
            attr: self.attr(path),
            message: None,
        };
        self.outcomes
            .insert(path.clone(), AttrOutcome::Error(error));
    }

    /// It is a set of which nothing counts, with this message: what was found in it is forgotten, and so is what is still found.
    pub(super) fn give_up_set(&mut self, path: &AttrIndex, message: &str) {
        let is_below = |other: &AttrIndex| other.is_in(path);
        self.outcomes.retain(|other, _| !is_below(other));
        self.given_up.retain(|other| !is_below(other));
        self.unmarked.retain(|other| !is_below(other));
        self.callable.retain(|other| !is_below(other));
        self.error(path, message);
        self.given_up.insert(path.clone());
    }

    /// Whether it is a set of which nothing counts, or lies in one.
    pub(super) fn is_given_up(&self, path: &AttrIndex) -> bool {
        self.set_given_up(path).is_some()
    }

    /// The set of which nothing counts that it is, or lies in.
    pub(super) fn set_given_up(&self, path: &AttrIndex) -> Option<AttrIndex> {
        if self.given_up.is_empty() {
            return None;
        }
        path.with_parents().find(|set| self.given_up.contains(set))
    }

    /// The version of Nix that evaluated.
    pub(super) fn version(&mut self, version: String) {
        self.nix = version;
    }

    /// Removes the targets with these `.drv`s, which were collected, to be evaluated again. One whose `.drv` an evaluation does not
    /// write is refused.
    pub(super) fn drop_gone(&mut self, gone: &[DrvPath]) -> Vec<AttrIndex> {
        let gone: BTreeSet<&DrvPath> = gone.iter().collect();
        let is_gone = |outcome: &AttrOutcome| matches!(outcome, AttrOutcome::Found(found) if found.drvs().any(|drv| gone.contains(drv)));
        let paths: Vec<AttrIndex> = self
            .outcomes
            .iter()
            .filter(|(_, outcome)| is_gone(outcome))
            .map(|(path, _)| path.clone())
            .collect();
        let mut dropped = Vec::new();
        for path in paths {
            let is_own = matches!(self.outcomes.get(&path), Some(AttrOutcome::Found(found)) if gone.contains(&found.drv));
            if is_own && self.named.contains(&path) {
                let why = "its drvPath is a plain string, and is not in the store";
                self.refuse(&path, why);
            } else {
                self.outcomes.remove(&path);
                dropped.push(path);
            }
        }
        dropped
    }

    // ---- queries

    /// The `.drv`s of the targets that were found, and of what runs behind them.
    pub(super) fn drvs(&self) -> impl Iterator<Item = &DrvPath> {
        let found = self.outcomes.values().filter_map(|outcome| match outcome {
            AttrOutcome::Found(found) => Some(found),
            _ => None,
        });
        found.flat_map(FoundTarget::drvs)
    }

    /// How many attributes were found, including errors.
    pub(super) fn count(&self) -> usize {
        self.outcomes.len()
    }

    /// The attribute's evaluation error, if it has one.
    pub(super) fn error_of(&self, path: &AttrIndex) -> Option<&AttrError> {
        match self.outcomes.get(path) {
            Some(AttrOutcome::Error(error)) => Some(error),
            _ => None,
        }
    }

    /// The full attribute path of an attribute with this name, which is not recorded yet.
    pub(super) fn attr_named(&self, path: &AttrIndex, name: &AttrName) -> AttrPath {
        let parent = path.split().map(|(parent, _)| self.attr(&parent));
        let mut names = parent.unwrap_or_default().names().to_vec();
        names.push(name.text.clone());
        AttrPath::new(names)
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
            // It stands in steps, annotations and documents.
            message: Some(redacted(message).into_owned()),
        }
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

    /// What was not walked, except for unmarked sets; and which exclusions matched nothing.
    pub(super) fn gaps(&self, exclude: &[AttrPath]) -> Gaps {
        let mut gaps = Gaps::default();
        let mut effective = self.effective.clone();
        for (path, names) in &self.beside {
            for name in names {
                let mut whole = self.attr(path).names().to_vec();
                whole.push(name.clone());
                let by = excluding(&AttrPath::new(whole), exclude);
                if !by.is_empty() {
                    effective.extend(by);
                } else if *path == AttrIndex::default() {
                    gaps.outputs.push(name.clone());
                } else {
                    gaps.systems.insert(name.clone());
                }
            }
        }
        if effective.len() < exclude.len() {
            let known: Vec<AttrPath> = self.names.keys().map(|path| self.attr(path)).collect();
            let errors: BTreeSet<AttrPath> =
                self.errors().map(|(path, _)| self.attr(path)).collect();
            gaps.exclusions =
                gaps::without_effect(exclude, &effective, &self.root, &known, |attr| {
                    errors.contains(attr)
                });
        }
        gaps
    }

    /// Everything, in the order of the attributes.
    pub(super) fn result(&self, gaps: &Gaps) -> EvaluationResult {
        let mut result = EvaluationResult {
            nix: self.nix.clone(),
            callable: self.callable.iter().map(|path| self.attr(path)).collect(),
            gaps: gaps.clone(),
            ..EvaluationResult::default()
        };
        for outcome in self.outcomes.values() {
            match outcome {
                AttrOutcome::Found(found) => result.targets.push(found.clone()),
                AttrOutcome::Error(error) => result.errors.push(error.clone()),
                AttrOutcome::Refused(error) => result.refused.push(error.clone()),
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRV: &str = "/nix/store/w11m5yi1fzmzl7ri7y308xcnn9jyzv3r-a.drv";

    fn path(text: &str) -> AttrIndex {
        AttrIndex::parse(text).unwrap()
    }

    fn name(text: &str) -> AttrName {
        AttrName {
            text: text.into(),
            is_utf8: !text.contains('\u{fffd}'),
        }
    }

    fn described(json: &str) -> Result<DescribedTarget, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn a_step_that_does_not_evaluate_is_lost_and_neither_its_target_nor_the_steps_before_it() {
        let mut findings = findings();
        let (at, run) = (
            path("/0"),
            format!(r#"{{"keys":{{}},"run":{{"drv":"{DRV}"}}}}"#),
        );
        let step = |json: &str| Ok(serde_json::from_str(json).unwrap());
        let target = format!(r#"{{"drv":"{DRV}","steps":["a","b","c","d","e","f"]}}"#);
        findings.target(&at, described(&target));
        findings.follow(&at, 0);
        findings.follower(&at, 0, step(&run));
        findings.follow(&at, 1);
        findings.follower(&at, 1, step(r#"{"text":"no"}"#));
        findings.follow(&at, 2);
        findings.follower(&at, 2, step(r#"{"keys":[],"run":null}"#));
        findings.follow(&at, 3);
        findings.follow(&at, 4);
        findings.fail(&at, true, "aborted");
        let result = findings.result(&Gaps::default());
        let states = result.targets[0].meta.followers.iter();
        let states: Vec<String> = states.map(|it| format!("{:?}", it.state)).collect();
        let lists = "meta.eval-once.steps.c is a list; expected an attribute set";
        assert!(states[0].contains(DRV), "{}", states[0]);
        assert_eq!(
            states[1..],
            [
                r#"Lost(Some("no"))"#,
                &format!("Lost(Some({lists:?}))"),
                "Lost(None)",
                r#"Lost(Some("aborted"))"#,
                "Unread"
            ]
        );
        // Its worker dies on the way to the next attribute.
        findings.follow(&at, 0);
        findings.fail(&at, true, "killed");
        assert_eq!(findings.result(&Gaps::default()).targets, result.targets);
        let drv = DrvPath::parse(DRV).unwrap();
        assert_eq!(findings.drop_gone(&[drv]), [at]);
    }

    /// Findings with the attributes `x.a`, `x.b` and `x.c`.
    fn findings() -> Findings {
        let mut findings = Findings::new(&AttrPath::parse("x").unwrap());
        for (number, text) in ["a", "b", "c"].into_iter().enumerate() {
            findings.begin(&path(&format!("/{number}")), name(text));
        }
        findings
    }

    fn summary(findings: &Findings) -> [Vec<String>; 3] {
        let result = findings.result(&Gaps::default());
        let error = |error: &AttrError| {
            let message = error.message.as_deref().unwrap_or("?");
            format!("{}: {message}", error.attr)
        };
        [
            result
                .targets
                .iter()
                .map(|it| it.attr.to_string())
                .collect(),
            result.errors.iter().map(error).collect(),
            result.refused.iter().map(error).collect(),
        ]
    }

    #[test]
    fn an_attribute_is_a_target_an_error_or_refused() {
        let mut findings = findings();
        findings.target(&path("/2"), described(&format!(r#"{{"drv":"{DRV}"}}"#)));
        findings.fail(&path("/0"), false, "no");
        findings.fail(&path("/1"), true, "no data");
        assert_eq!(summary(&findings), [["x.c"], ["x.a: no"], ["x.b: no data"]]);
    }

    #[test]
    fn nothing_in_a_set_that_is_given_up_counts() {
        let mut findings = findings();
        for inside in ["/0", "/0/1", "/1"] {
            findings.target(&path(inside), described(&format!(r#"{{"drv":"{DRV}"}}"#)));
        }
        findings.give_up_set(&path("/0"), "it contains itself");
        assert_eq!(
            summary(&findings),
            [vec!["x.b"], vec!["x.a: it contains itself"], vec![]]
        );
        // Other workers may be in it.
        findings.target(&path("/0/1"), described(&format!(r#"{{"drv":"{DRV}"}}"#)));
        findings.callable(path("/0/1"));
        findings.fail(&path("/0/2"), false, "no");
        findings.refuse(&path("/0/3"), "no data");
        findings.unmarked(path("/0/4"));
        findings.give_up_set(&path("/0/5"), "it contains itself as well");
        assert_eq!(
            summary(&findings),
            [vec!["x.b"], vec!["x.a: it contains itself"], vec![]]
        );
        assert!(findings.error_of(&path("/0/2")).is_none());
        assert!(findings.callable.is_empty() && findings.unmarked.is_empty());
        assert!(findings.is_given_up(&path("/0/7")) && !findings.is_given_up(&path("/1")));
    }

    #[test]
    fn a_worker_that_ends_after_a_target_does_not_change_it() {
        let mut findings = findings();
        findings.target(&path("/0"), described(&format!(r#"{{"drv":"{DRV}"}}"#)));
        findings.fail(&path("/0"), false, "killed");
        assert_eq!(summary(&findings)[0], ["x.a"]);
    }

    #[test]
    fn a_description_that_cannot_be_used_is_refused() {
        let mut findings = findings();
        findings.target(&path("/0"), described(r#"{"drv":"/tmp/a"}"#));
        let meta = format!(r#"{{"drv":"{DRV}","meta":{{"timeout":"1h"}}}}"#);
        findings.target(&path("/1"), described(&meta));
        let [found, errors, refused] = summary(&findings);
        assert_eq!((found.len(), errors.len()), (0, 0));
        assert!(refused[0].starts_with("x.a: its drvPath "), "{refused:?}");
        assert!(
            refused[1].starts_with("x.b: meta.timeout is \"1h\""),
            "{refused:?}"
        );
    }

    #[test]
    fn a_name_that_is_not_utf_8_is_an_error_whatever_the_attribute_is() {
        let mut findings = findings();
        findings.begin(&path("/3"), name("\u{fffd}"));
        findings.begin(&path("/3/0"), name("d"));
        findings.target(&path("/3/0"), described(&format!(r#"{{"drv":"{DRV}"}}"#)));
        let [found, errors, _] = summary(&findings);
        assert_eq!(found, [""; 0]);
        assert_eq!(errors.len(), 2, "{errors:?}");
    }

    #[test]
    fn a_collected_drv_that_no_evaluation_writes_is_refused() {
        let mut findings = findings();
        findings.target(&path("/0"), described(&format!(r#"{{"drv":"{DRV}"}}"#)));
        let named = format!(r#"{{"drv":"{DRV}","named":true}}"#);
        findings.target(&path("/1"), described(&named));
        let drv = DrvPath::parse(DRV).unwrap();
        assert_eq!(findings.drop_gone(&[drv]), [path("/0")]);
        let [found, _, refused] = summary(&findings);
        assert_eq!(found, [""; 0]);
        assert_eq!(
            refused,
            ["x.b: its drvPath is a plain string, and is not in the store"]
        );
    }

    #[test]
    fn an_exclusion_has_an_effect_also_where_a_flake_is_not_walked() {
        let exclude = ["formatter", "packages.other", "typo"];
        let exclude = exclude.map(|path| AttrPath::parse(path).unwrap());
        let mut findings = Findings::new(&AttrPath::default());
        findings.begin(&path("/0"), name("packages"));
        findings.beside(path(""), vec!["devShells".into(), "formatter".into()]);
        findings.beside(path("/0"), vec!["other".into(), "third".into()]);
        let gaps = findings.gaps(&exclude);
        assert_eq!(gaps.outputs, ["devShells"]);
        assert_eq!(gaps.systems, ["third".to_owned()].into());
        let unused: Vec<String> = gaps
            .exclusions
            .iter()
            .map(|(path, _)| path.to_string())
            .collect();
        assert_eq!(unused, ["typo"]);
    }
}
