//! What a recording did not walk although it may be meant, and what its keys name that does not exist. A recording of almost
//! nothing is green as well, and only these lines show that.

use std::collections::BTreeSet;

use super::exclusions::covers;
use crate::nix::AttrPath;
use crate::recording::{RecordingRequest, Target};
use crate::similar::nearest;

/// How many names are listed in one line.
pub(in crate::recording) const LISTED: usize = 10;

/// How many names are suggested where none is similar.
const SUGGESTED: usize = 5;

/// What was not walked although it may be meant, and what the keys name that does not exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gaps {
    /// Unmarked sets that hold derivations, or sets of them.
    pub sets: Vec<AttrPath>,
    /// Outputs of a flake that hold derivations and are not recorded.
    pub outputs: Vec<String>,
    /// The systems of a flake's packages and checks that are not recorded.
    pub systems: BTreeSet<String>,
    /// The system that a flake is recorded on.
    pub system: String,
    /// The first exclusions that match nothing, each with a hint.
    pub exclusions: Vec<(AttrPath, Option<String>)>,
}

/// One line of a recording about what it did not walk, or what does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// A sentence without a full stop.
    pub text: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// A key names something that does not exist, or derivations are missing; otherwise it may be meant.
    pub is_warning: bool,
}

impl Gaps {
    /// The lines about it.
    #[must_use]
    pub fn notes(&self) -> Vec<Note> {
        let mut notes = Vec::new();
        if let Some(first) = self.sets.first() {
            let names: Vec<String> = self.sets.iter().map(AttrPath::to_string).collect();
            let (s, hold) = plural(names.len(), ("", "holds"), ("s", "hold"));
            notes.push(Note {
                text: format!(
                    "{} set{s} without `recurseForDerivations` {hold} derivations that are not recorded: {}",
                    names.len(),
                    listed(&names)
                ),
                hint: Some(format!(
                    "set `recurse: all` to record every set, or `attr: {first}` to record this one; sets in `exclude` are not listed"
                )),
                is_warning: true,
            });
        }
        if !self.outputs.is_empty() {
            let ways: Vec<String> = self
                .outputs
                .iter()
                .take(3)
                .map(|output| format!("`attr: {}`", below(output, &self.system)))
                .collect();
            notes.push(Note {
                text: format!(
                    "only checks, packages and hydraJobs of the flake are recorded, not its {}",
                    listed(&self.outputs)
                ),
                hint: Some(format!(
                    "add a recording of its own ({}), or add it to the flake's checks; outputs in `exclude` are not listed",
                    ways.join(", ")
                )),
                is_warning: false,
            });
        }
        if !self.systems.is_empty() {
            let names: Vec<String> = self.systems.iter().cloned().collect();
            notes.push(Note {
                text: format!(
                    "the flake's checks and packages for {} are not recorded",
                    listed(&names)
                ),
                hint: Some("name a system under `agents` to record it as well".into()),
                is_warning: false,
            });
        }
        for (path, near) in &self.exclusions {
            notes.push(Note {
                text: format!("`exclude: {}` matches nothing", pattern(path.names())),
                hint: near.clone(),
                is_warning: true,
            });
        }
        notes
    }
}

/// The systems and features under `agents` for which there is no target.
pub(in crate::recording) fn agents_without_targets(
    request: &RecordingRequest,
    targets: &[Target],
    gaps: &Gaps,
) -> Vec<Note> {
    let systems: BTreeSet<&str> = targets.iter().map(|target| &*target.system).collect();
    let features: BTreeSet<&str> = targets
        .iter()
        .flat_map(|target| target.features.iter().map(String::as_str))
        .collect();
    let note = |key: &String| {
        let (name, existing, what, says) = match key.strip_prefix("feature:") {
            Some(feature) => (feature, &features, "needs that feature", "targets need"),
            None => (
                key.as_str(),
                &systems,
                "is built on that system",
                "targets are built on",
            ),
        };
        if existing.contains(name) {
            return None;
        }
        let others = gaps.systems.iter().map(String::as_str);
        let known: Vec<&str> = match key.strip_prefix("feature:") {
            Some(_) => existing.iter().copied().collect(),
            None => existing.iter().copied().chain(others).collect(),
        };
        Some(Note {
            text: format!("`agents: {key}` matches no target: none {what}"),
            hint: near(name, &known, says),
            is_warning: true,
        })
    };
    request.agents.keys().filter_map(note).collect()
}

/// The first exclusions that matched nothing, each with a hint: those that are not in `used`, by their numbers. `known` are the
/// attributes that were found; `fails` holds for those that do not evaluate.
pub(in crate::recording) fn without_effect(
    exclude: &[AttrPath],
    used: &BTreeSet<usize>,
    root: &AttrPath,
    known: &[AttrPath],
    fails: impl Fn(&AttrPath) -> bool,
) -> Vec<(AttrPath, Option<String>)> {
    let unused = exclude
        .iter()
        .enumerate()
        .filter(|(number, _)| !used.contains(number));
    let without = |(number, path): (usize, &AttrPath)| {
        let others = exclude
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != number)
            .map(|(_, path)| path);
        // Below an attribute that another one excludes, or that does not evaluate, nothing could be found.
        let hidden = (1..=path.names().len()).any(|length| {
            let above = AttrPath::new(path.names()[..length].to_vec());
            fails(&above) || others.clone().any(|path| covers(path, &above))
        });
        (!hidden).then(|| (path.clone(), next_to(path, root, known)))
    };
    // A hint compares a name with all others; no more than these are shown.
    unused.filter_map(without).take(LISTED).collect()
}

/// A hint at a path that does not exist; `known` are the attributes that were found, below `root`.
pub(in crate::recording) fn next_to(
    path: &AttrPath,
    root: &AttrPath,
    known: &[AttrPath],
) -> Option<String> {
    let names = path.names();
    let matches = |known: &[String], length: usize| {
        known.len() >= length
            && names[..length]
                .iter()
                .zip(known)
                .all(|(part, name)| part == "*" || part == name)
    };
    if !matches(root.names(), names.len().min(root.names().len())) {
        return Some(format!("only attributes below `attr: {root}` are recorded"));
    }
    // The first name of the path that does not exist.
    let wrong = (0..names.len()).find(|length| {
        !known
            .iter()
            .any(|attr| attr.names().len() > *length && matches(attr.names(), length + 1))
    })?;
    let beside: BTreeSet<&str> = known
        .iter()
        .filter(|attr| attr.names().len() > wrong && matches(attr.names(), wrong))
        .map(|attr| attr.names()[wrong].as_str())
        .collect();
    let above = pattern(&names[..wrong]);
    if beside.is_empty() {
        return Some(format!("attributes below {above} are not recorded"));
    }
    let candidates: Vec<&str> = beside.into_iter().collect();
    let with = |name: &str| {
        let mut whole = names.to_vec();
        name.clone_into(&mut whole[wrong]);
        pattern(&whole)
    };
    match nearest(&names[wrong], &candidates) {
        Some(name) => Some(format!("did you mean `{}`?", with(name))),
        None if wrong == 0 => near(&names[wrong], &candidates, "attributes:"),
        None => near(
            &names[wrong],
            &candidates,
            &format!("attributes of {above}:"),
        ),
    }
}

/// The name that may be meant, or the first of them behind `says`.
fn near(name: &str, known: &[&str], says: &str) -> Option<String> {
    if let Some(nearest) = nearest(name, known) {
        return Some(format!("did you mean `{nearest}`?"));
    }
    if known.is_empty() {
        return None;
    }
    let more = if known.len() > SUGGESTED { ", …" } else { "" };
    let first: Vec<&str> = known.iter().take(SUGGESTED).copied().collect();
    Some(format!("{says} {}{more}", first.join(", ")))
}

/// A path as it is written in `exclude` and `expect-errors`, where `*` matches any name.
pub(in crate::recording) fn pattern(names: &[String]) -> String {
    let part = |name: &String| match name.as_str() {
        "*" => name.clone(),
        _ => AttrPath::new(vec![name.clone()]).to_string(),
    };
    names.iter().map(part).collect::<Vec<_>>().join(".")
}

/// The attribute path of derivations in an output of a flake.
fn below(output: &str, system: &str) -> String {
    match output {
        "nixosConfigurations" => format!("{output}.NAME.config.system.build.toplevel"),
        "darwinConfigurations" => format!("{output}.NAME.system"),
        "homeConfigurations" => format!("{output}.NAME.activationPackage"),
        _ => format!("{output}.{system}"),
    }
}

fn listed(names: &[String]) -> String {
    let first: Vec<&str> = names.iter().take(LISTED).map(String::as_str).collect();
    match names.len().saturating_sub(LISTED) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

fn plural<T>(count: usize, one: T, many: T) -> T {
    if count == 1 { one } else { many }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(dotted: &[&str]) -> Vec<AttrPath> {
        dotted
            .iter()
            .map(|path| AttrPath::parse(path).unwrap())
            .collect()
    }

    fn hints(exclude: &[&str], used: &[usize], root: &str, known: &[&str]) -> Vec<String> {
        let found = without_effect(
            &paths(exclude),
            &used.iter().copied().collect(),
            &AttrPath::parse(root).unwrap(),
            &paths(known),
            |path| path.to_string() == "bad",
        );
        let in_words = |(path, hint): (AttrPath, Option<String>)| {
            format!("{}: {}", pattern(path.names()), hint.unwrap_or_default())
        };
        found.into_iter().map(in_words).collect()
    }

    #[test]
    fn an_exclusion_that_matches_nothing_has_a_hint_at_what_may_be_meant() {
        let known = ["checks", "checks.slow", "checks.quick", "lib", "bad"];
        for (path, hint) in [
            ("chekcs.slow", "did you mean `checks.slow`?"),
            ("checks.slwo", "did you mean `checks.slow`?"),
            ("*.slwo", "did you mean `*.slow`?"),
            ("checks.integration", "attributes of checks: quick, slow"),
            ("lib.x", "attributes below lib are not recorded"),
            ("packages", "attributes: bad, checks, lib"),
        ] {
            assert_eq!(hints(&[path], &[], "", &known), [format!("{path}: {hint}")]);
        }
        assert_eq!(hints(&["checks.slow"], &[0], "", &known), [""; 0]);
        // Another one excludes all that it could match; or nothing there could be found.
        assert_eq!(hints(&["a", "a.b"], &[0], "", &known), [""; 0]);
        assert_eq!(hints(&["bad.x"], &[], "", &known), [""; 0]);
        assert_eq!(
            hints(&["lib.x"], &[], "checks", &["checks.slow"]),
            ["lib.x: only attributes below `attr: checks` are recorded"]
        );
    }

    #[test]
    fn what_was_not_walked_is_listed_with_the_key_that_records_it() {
        let gaps = Gaps {
            sets: paths(&["packages"]),
            outputs: vec!["devShells".into(), "nixosConfigurations".into()],
            systems: ["aarch64-linux".to_owned()].into(),
            system: "x86_64-linux".into(),
            exclusions: vec![],
        };
        let notes = gaps.notes();
        assert_eq!(
            notes[0].text,
            "1 set without `recurseForDerivations` holds derivations that are not recorded: packages"
        );
        assert!(notes[0].hint.as_ref().unwrap().contains("`attr: packages`"));
        let hint = notes[1].hint.as_ref().unwrap();
        assert!(
            hint.contains("`attr: devShells.x86_64-linux`, `attr: nixosConfigurations.NAME.config"),
            "{hint}"
        );
        assert!(notes[2].text.contains("aarch64-linux"));
        assert_eq!(Gaps::default().notes(), []);
    }
}
