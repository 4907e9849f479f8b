//! The keys by which a build knows our steps. Dashboards, retried recordings and steps of a user's own rely on them: the same
//! record gives the same key in every run and every version.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::fingerprint::fingerprint;
use crate::nix::{AttrPath, DrvPath};
use crate::recording::errors::ErrorLists;
use crate::recording::{KeyStyle, Phases, RecordingRequest, Target};
use crate::secrets::redacted;

/// The most characters that Buildkite takes as a key.
const KEY_AT_MOST: usize = 100;

/// How many characters of a hash stand behind a key that would be used twice.
const SHORT: usize = 8;

/// The key of an attribute's error step: `attr-` and 32 characters of a hash of its path, the same in every run.
pub(crate) fn error_key(attr: &AttrPath) -> String {
    let names = attr.names().iter().map(String::as_str);
    format!("attr-{}", fingerprint(names))
}

/// The key of the summary's step: `summary-` and 32 characters of a hash of the keys that it waits for, so that a retry of the
/// same recording gives the same key.
pub(super) fn summary_key<'a>(keys: impl IntoIterator<Item = &'a str>) -> String {
    format!("summary-{}", fingerprint(keys))
}

/// The key of the step that builds the targets which would have these keys.
pub(super) fn batch_key(
    targets: impl IntoIterator<Item = String>,
    request: &RecordingRequest,
) -> String {
    let targets: BTreeSet<String> = targets.into_iter().collect();
    let hash = fingerprint(targets.iter().map(String::as_str));
    format!("{}batch-{hash}", request.key_prefix)
}

/// The key of the step of a derivation that several targets need.
pub(super) fn shared_key(drv: &DrvPath, request: &RecordingRequest) -> String {
    format!(
        "{}shared-{}",
        request.key_prefix,
        drv.as_store_path().hash()
    )
}

/// What a step is of: the identity that its key stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum KeyHolder {
    /// A target, by its first attribute.
    Target(AttrPath),
    /// An attribute with an error.
    Error(AttrPath),
    /// A step that follows a target, by its attribute path.
    Follower(AttrPath),
    /// The question before that step.
    Confirm(AttrPath),
}

impl KeyHolder {
    /// What tells it apart from all others.
    fn identity(&self) -> (&'static str, &AttrPath) {
        // With `keys: attr` a target has the same key whether it evaluates or not.
        match self {
            Self::Target(attr) | Self::Error(attr) => ("attr", attr),
            Self::Follower(attr) => ("step", attr),
            Self::Confirm(attr) => ("confirm", attr),
        }
    }

    /// A hash of what tells it apart from all others.
    fn hash(&self) -> String {
        let (kind, attr) = self.identity();
        let names = attr.names().iter().map(String::as_str);
        fingerprint(std::iter::once(kind).chain(names))
    }
}

/// The keys of a recording's steps: no two the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::recording) struct StepKeys {
    keys: BTreeMap<KeyHolder, String>,
    /// Whether they are those of attributes, so that what waits for a target waits for it also where that is refused.
    by_attr: bool,
    prefix: String,
}

/// A key as it is wanted: behind the key of another one, or by itself.
struct Wanted {
    holder: KeyHolder,
    /// The one that it begins with.
    behind: Option<KeyHolder>,
    text: String,
}

impl StepKeys {
    /// The keys for these targets, what follows them, and the attributes with an error.
    ///
    /// Where two would be the same, each of them has a hash behind it: a step of a user's own that waits for such a key must never
    /// wait for another target than before.
    pub(in crate::recording) fn new(
        targets: &[Target],
        errors: &ErrorLists,
        request: &RecordingRequest,
    ) -> Self {
        let mut wanted = Vec::new();
        let by_itself = |holder, text| Wanted {
            holder,
            behind: None,
            text,
        };
        for target in targets {
            let holder = KeyHolder::Target(target.attr.clone());
            wanted.push(by_itself(holder.clone(), target_text(target, request)));
            for follower in &target.followers {
                let (attr, name) = (follower.attr(), word(&follower.meta.name));
                let step = KeyHolder::Follower(attr.clone());
                wanted.push(Wanted {
                    holder: step.clone(),
                    behind: Some(holder.clone()),
                    text: format!("-{name}"),
                });
                wanted.push(Wanted {
                    holder: KeyHolder::Confirm(attr),
                    behind: Some(step),
                    text: "-confirm".into(),
                });
            }
        }
        let errors = [&errors.evaluation, &errors.refused, &errors.expected];
        let errors: BTreeSet<&AttrPath> = errors.into_iter().flatten().map(|it| &it.attr).collect();
        for attr in errors {
            let holder = KeyHolder::Error(attr.clone());
            wanted.push(by_itself(holder, error_text(attr, request)));
        }
        Self {
            keys: settled(&wanted),
            by_attr: request.key_style == KeyStyle::Attr,
            prefix: request.key_prefix.clone(),
        }
    }

    /// The key of a target's step.
    pub(in crate::recording) fn target(&self, target: &Target) -> String {
        let key = self.keys.get(&KeyHolder::Target(target.attr.clone()));
        key.cloned()
            .unwrap_or_else(|| format!("drv-{}", target.drv.as_store_path().hash()))
    }

    /// The key of an attribute's error step; of a step that is refused, its own, and so of a target with `keys: attr`.
    pub(in crate::recording) fn error(&self, attr: &AttrPath) -> String {
        let of_target = || {
            let key = self.keys.get(&KeyHolder::Target(attr.clone()));
            key.filter(|_| self.by_attr)
        };
        let key = self
            .keys
            .get(&KeyHolder::Error(attr.clone()))
            .or_else(|| self.keys.get(&KeyHolder::Follower(attr.clone())))
            .or_else(of_target);
        key.cloned()
            .unwrap_or_else(|| format!("{}{}", self.prefix, error_key(attr)))
    }

    /// Whether this is the key of a step that a recording of these phases makes.
    pub(super) fn has(&self, key: &str, phases: Phases) -> bool {
        self.keys.iter().any(|(holder, own)| {
            let is_made = match holder {
                KeyHolder::Target(_) | KeyHolder::Error(_) => phases.build,
                KeyHolder::Follower(_) | KeyHolder::Confirm(_) => phases.release,
            };
            is_made && own == key
        })
    }

    /// Whether this is the attribute path of a step that follows a target.
    pub(super) fn is_follower(&self, attr: &AttrPath) -> bool {
        self.keys.contains_key(&KeyHolder::Follower(attr.clone()))
    }

    /// The key of a step that follows a target, and that of the question before it.
    pub(super) fn follower(&self, attr: &AttrPath) -> (String, String) {
        let key = |holder| self.keys.get(&holder).cloned().unwrap_or_default();
        (
            key(KeyHolder::Follower(attr.clone())),
            key(KeyHolder::Confirm(attr.clone())),
        )
    }
}

/// The key that a target's step is to have.
fn target_text(target: &Target, request: &RecordingRequest) -> String {
    match request.key_style {
        KeyStyle::Drv => format!(
            "{}drv-{}",
            request.key_prefix,
            target.drv.as_store_path().hash()
        ),
        KeyStyle::Attr => attr_text(&target.attr, request),
    }
}

/// The key that an attribute's error step is to have: with `keys: attr` that of the target, since what waits for it waits for it in
/// both cases.
fn error_text(attr: &AttrPath, request: &RecordingRequest) -> String {
    match request.key_style {
        KeyStyle::Drv => format!("{}{}", request.key_prefix, error_key(attr)),
        KeyStyle::Attr => attr_text(attr, request),
    }
}

fn attr_text(attr: &AttrPath, request: &RecordingRequest) -> String {
    let names = match attr.names() {
        [] => "root".to_owned(),
        names => words(names),
    };
    format!("{}{names}", request.key_prefix)
}

/// What all keys of a recording with `keys: attr` begin with, if there is a `-` behind each.
pub(in crate::recording) fn key_area(request: &RecordingRequest) -> String {
    match request.root.attr.names() {
        [] => request.key_prefix.clone(),
        names => format!("{}{}-", request.key_prefix, words(names)),
    }
}

fn words(names: &[String]) -> String {
    let words: Vec<String> = names.iter().map(|name| word(name)).collect();
    words.join("-")
}

/// A name with every character replaced that a key cannot have. (The schema takes `.`, `,` and `${}` too; Buildkite's documentation
/// does not, and the last are interpolated in a pipeline that is written by hand.) What looks like a secret is hidden.
fn word(name: &str) -> String {
    let name = redacted(name);
    let word = name.chars().map(|c| match c {
        c if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | ':') => c,
        _ => '_',
    });
    word.collect()
}

/// The keys that these get.
fn settled(wanted: &[Wanted]) -> BTreeMap<KeyHolder, String> {
    // What each would be if no two were the same.
    let mut plain: HashMap<&KeyHolder, String> = HashMap::new();
    // The first that would have each, and whether another one would.
    let mut holders: HashMap<String, (&KeyHolder, bool)> = HashMap::new();
    for one in wanted {
        let begin = one.behind.as_ref().and_then(|behind| plain.get(behind));
        let text = format!("{}{}", begin.map_or("", String::as_str), one.text);
        let (first, is_shared) = holders.entry(text.clone()).or_insert((&one.holder, false));
        *is_shared |= first.identity() != one.holder.identity();
        plain.insert(&one.holder, text);
    }
    let mut keys: BTreeMap<KeyHolder, String> = BTreeMap::new();
    let mut used: HashMap<String, &KeyHolder> = HashMap::new();
    for one in wanted {
        let begin = one.behind.as_ref().and_then(|behind| keys.get(behind));
        let text = format!("{}{}", begin.map_or("", String::as_str), one.text);
        let (_, is_shared) = holders[&plain[&one.holder]];
        let is_key = text.len() <= KEY_AT_MOST && !is_uuid(&text);
        let mut key = if is_shared || !is_key {
            with_hash(&text, &one.holder.hash()[..SHORT])
        } else {
            text.clone()
        };
        // One that happens to end in the hash of another.
        let is_other = |other: &&KeyHolder| other.identity() != one.holder.identity();
        if used.get(&key).is_some_and(is_other) {
            key = with_hash(&text, &one.holder.hash());
        }
        used.insert(key.clone(), &one.holder);
        keys.insert(one.holder.clone(), key);
    }
    keys
}

/// A key with a hash behind it, shortened so that there is room for it.
fn with_hash(text: &str, hash: &str) -> String {
    let room = KEY_AT_MOST - 1 - hash.len();
    // It is ASCII.
    format!("{}-{hash}", &text[..text.len().min(room)])
}

/// Whether Buildkite would take it for the id of a step.
fn is_uuid(text: &str) -> bool {
    let dashes = [8, 13, 18, 23];
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match byte {
            b'-' => dashes.contains(&at),
            byte => byte.is_ascii_hexdigit() && !dashes.contains(&at),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::AttrError;
    use crate::recording::following::{Follower, FollowerMeta};
    use crate::recording::pipeline::fixtures::{path, request, target};
    use crate::text::hostile;
    use proptest::prelude::*;

    fn by_attr() -> RecordingRequest {
        RecordingRequest {
            key_style: KeyStyle::Attr,
            key_prefix: "nix-".into(),
            ..request()
        }
    }

    fn follower(owner: &[&str], name: &str) -> Follower {
        Follower {
            owner: path(owner),
            meta: FollowerMeta::unread(name.into()),
            run: None,
        }
    }

    fn failing(attrs: &[AttrPath]) -> ErrorLists {
        let error = |attr: &AttrPath| AttrError {
            attr: attr.clone(),
            message: None,
        };
        ErrorLists {
            evaluation: attrs.iter().map(error).collect(),
            ..ErrorLists::default()
        }
    }

    #[test]
    fn keys_of_error_steps_are_the_same_in_every_version() {
        assert_eq!(
            error_key(&path(&["a", "b"])),
            "attr-cf6ab613e3942391f88ed698557e1680"
        );
        assert_ne!(error_key(&path(&["ab"])), error_key(&path(&["a", "b"])));
    }

    #[test]
    fn keys_are_those_of_the_drv_or_of_the_attribute_path() {
        let mut targets = [target(1, &["packages", "py3.11 \u{e9}"]), target(2, &[])];
        targets[0].followers = vec![follower(&["packages", "py3.11 \u{e9}"], "de ploy")];
        let errors = failing(&[path(&["broken"])]);
        let drv = request();
        let keys = StepKeys::new(&targets, &errors, &drv);
        let first = format!("drv-{}", targets[0].drv.as_store_path().hash());
        assert_eq!(keys.target(&targets[0]), first);
        assert_eq!(
            keys.error(&path(&["broken"])),
            error_key(&path(&["broken"]))
        );
        let step = targets[0].followers[0].attr();
        let both = (
            format!("{first}-de_ploy"),
            format!("{first}-de_ploy-confirm"),
        );
        assert_eq!(keys.follower(&step), both);
        assert_eq!(keys.error(&step), both.0, "also where it is wrong");

        let keys = StepKeys::new(&targets, &errors, &by_attr());
        assert_eq!(keys.target(&targets[0]), "nix-packages-py3_11__");
        assert_eq!(keys.target(&targets[1]), "nix-root");
        assert_eq!(keys.error(&path(&["broken"])), "nix-broken");
        assert_eq!(keys.follower(&step).0, "nix-packages-py3_11__-de_ploy");

        let prefixed = RecordingRequest {
            key_prefix: "arm-".into(),
            ..drv
        };
        let keys = StepKeys::new(&targets, &errors, &prefixed);
        assert_eq!(keys.target(&targets[0]), format!("arm-{first}"));
    }

    #[test]
    fn two_that_would_be_the_same_have_a_hash_each_and_others_keep_their_key() {
        let mut targets = [
            target(1, &["a", "b-c"]),
            target(2, &["a-b", "c"]),
            target(3, &["web"]),
            target(4, &["web-deploy"]),
        ];
        targets[2].followers = vec![follower(&["web"], "deploy"), follower(&["web"], "check")];
        let keys = StepKeys::new(&targets, &ErrorLists::default(), &by_attr());
        let all = targets.each_ref().map(|target| keys.target(target));
        assert!(all[0].starts_with("nix-a-b-c-") && all[1].starts_with("nix-a-b-c-"));
        assert_ne!(all[0], all[1]);
        assert_eq!(all[2], "nix-web");
        assert!(all[3].starts_with("nix-web-deploy-"));
        let deploy = keys.follower(&targets[2].followers[0].attr());
        assert!(deploy.0.starts_with("nix-web-deploy-") && deploy.0 != all[3]);
        let check = keys.follower(&targets[2].followers[1].attr());
        assert_eq!(check.0, "nix-web-check");
        // Whatever else there is.
        let alone = StepKeys::new(&targets[..2], &ErrorLists::default(), &by_attr());
        assert_eq!(alone.target(&targets[0]), all[0]);
    }

    proptest! {
        #[test]
        fn keys_are_such_that_buildkite_takes_them_and_no_two_are_the_same(
            names in proptest::collection::btree_set(proptest::collection::vec(
                prop_oneof![hostile::text(), "[ab._-]{0,3}", "[a-f0-9]{8}", "x{90,200}"], 0..4), 1..20),
            steps in proptest::collection::btree_set(prop_oneof![hostile::text(), "[ab._-]{0,3}", Just("confirm".into())], 0..4),
            prefix in prop_oneof![Just("nix-"), Just("0"), Just("a:")],
            style in prop_oneof![Just(KeyStyle::Attr), Just(KeyStyle::Drv)],
            fails in any::<u32>(),
        ) {
            let attrs: Vec<AttrPath> = names.into_iter().map(AttrPath::new).collect();
            let (failed, fine): (Vec<_>, Vec<_>) = attrs.into_iter().enumerate().partition(|(i, _)| fails >> i & 1 == 1);
            let failed: Vec<AttrPath> = failed.into_iter().map(|(_, attr)| attr).collect();
            let targets: Vec<Target> = fine.into_iter().map(|(i, attr)| {
                let mut target = target(i, &[]);
                target.followers = steps.iter().map(|name| Follower { owner: attr.clone(), ..follower(&[], name) }).collect();
                Target { attr, ..target }
            }).collect();
            let request = RecordingRequest { key_style: style, key_prefix: prefix.into(), ..request() };
            let keys = StepKeys::new(&targets, &failing(&failed), &request);
            let mut all: Vec<String> = failed.iter().map(|attr| keys.error(attr)).collect();
            for target in &targets {
                all.push(keys.target(target));
                for follower in &target.followers {
                    let (step, confirm) = keys.follower(&follower.attr());
                    all.extend([step, confirm]);
                }
            }
            for key in &all {
                prop_assert!(key.len() <= KEY_AT_MOST && !is_uuid(key), "{key}");
                prop_assert!(key.starts_with(prefix), "{key}");
                let is_taken = |c: char| c.is_ascii_alphanumeric() || "-_:".contains(c);
                prop_assert!(key.chars().all(is_taken), "{key}");
            }
            let different: BTreeSet<&String> = all.iter().collect();
            prop_assert_eq!(different.len(), all.len());
        }
    }
}
