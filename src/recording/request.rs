//! The request of a recording: its keys, each read into its meaning.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::build_keys::{self, BuildKeys};
use crate::evaluation_keys::{self, Checkout};
use crate::exit::Failure;
use crate::keys::secret_values::sentence;
use crate::keys::table::KeyOwner;
use crate::keys::{KeyReader, Keys, not_here, refuse, scalar, string};
use crate::nix::{AttrPath, Evaluation, Source, StoreUrl};
use crate::paths::is_inside;
use crate::secrets::{self, SecretHome};
use crate::share_keys::{self, ShareSetting};

/// Which sets are walked, besides the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recurse {
    /// Those with `recurseForDerivations`, as `nix-instantiate` and `nix-eval-jobs` do. (Hydra looks into all: it gives
    /// nix-eval-jobs `--force-recurse`.)
    Marked,
    /// All.
    All,
}

/// The program that evaluates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evaluator {
    /// Our own walker, in `nix-instantiate`.
    Nix,
    /// `nix-eval-jobs`.
    NixEvalJobs,
}

/// Which targets need no step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipWhich {
    /// Those whose outputs are in the local store.
    Built,
    /// Also those whose outputs a substituter has.
    Cached,
    /// None.
    Nothing,
}

/// How a target that needs no step is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipStyle {
    /// As a skipped step, which reports nothing to a code host.
    Mark,
    /// As a step that ends green at once, as long as what is there has not gone.
    Run,
    /// Not at all.
    Omit,
}

/// The effect of an evaluation error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// It gets a step of its own, which is red.
    Step,
    /// It fails the recording, and nothing is uploaded.
    Fail,
    /// It gets no step: the annotation and `eval-once.json` have it.
    Report,
}

/// What the keys of steps are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyStyle {
    /// The `.drv`: the same key is the same build.
    Drv,
    /// The attribute path: the same key is the same target, in every build.
    Attr,
}

/// The parts of a pipeline that a recording makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phases {
    /// The steps of the targets.
    pub build: bool,
    /// The steps that follow them.
    pub release: bool,
}

/// How a step carries its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Emit {
    /// As the configuration of our plugin, which has this reference.
    Plugin(String),
    /// In `EVAL_ONCE_STEP`, with the command `eval-once step`.
    Command,
}

/// The request of a recording.
#[expect(
    clippy::struct_excessive_bools,
    reason = "a key of the table is a field, and some are yes or no"
)]
#[derive(Debug, Clone, PartialEq)]
pub struct RecordingRequest {
    /// What is evaluated, and the attribute path that the walk starts at.
    pub root: Evaluation,
    /// Whether it is the `default.nix` that is evaluated by default.
    pub by_default: bool,
    /// Nix settings, by name.
    pub options: Vec<(String, String)>,
    /// Which sets are walked.
    pub recurse: Recurse,
    /// Full attribute paths that are not evaluated, nor anything below them; the name `*` stands for any one name.
    pub exclude: Vec<AttrPath>,
    /// How many processes evaluate at once; none: as many as there are cores.
    pub workers: Option<NonZeroUsize>,
    /// What all of them together may use, in MiB; none: three quarters of what is free.
    pub memory: Option<u64>,
    /// How long one attribute may take.
    pub evaluation_timeout: Option<Duration>,
    /// The program that evaluates.
    pub evaluator: Evaluator,
    /// Which targets need no step.
    pub skip: SkipWhich,
    /// The `eval-once.json` of an earlier build, with its `eval-once-outcomes.json` beside it: what is the same and was green there
    /// needs no step.
    pub base: Option<PathBuf>,
    /// Targets that took less in the base have steps in common; none: each has its own.
    pub batch: Option<Duration>,
    /// A derivation that is no target has a step where at least so many targets need it directly; none: none has.
    pub shared_steps: Option<NonZeroUsize>,
    /// How a target that needs no step is shown.
    pub skip_style: SkipStyle,
    /// The effect of an evaluation error that is not expected.
    pub on_error: OnError,
    /// Full attribute paths that are expected not to evaluate, with everything below them; the name `*` stands for any one name.
    pub expect_errors: Vec<AttrPath>,
    /// What the keys of steps are made of.
    pub key_style: KeyStyle,
    /// What the keys of steps begin with.
    pub key_prefix: String,
    /// The parts of the pipeline that are made.
    pub phases: Phases,
    /// How a step carries its record.
    pub emit: Emit,
    /// The keys that say how a target is built, as they were written: each recorded step has them.
    pub build_keys: Keys,
    /// How the `.drv`s get to other hosts; none: as the host's setting says.
    pub share: Option<ShareSetting>,
    /// The most that an artifact may take, in MiB.
    pub share_limit: Option<u64>,
    /// Whether a share that fails ends the recording.
    pub share_required: bool,
    /// The store that gets the outputs: what it has is skipped.
    pub push: Option<StoreUrl>,
    /// Whether recorded steps make a checkout only where they evaluate.
    pub checkout_fallback: bool,
    /// The recording's folder, relative to the folder in which its steps start; none where it is the same.
    pub below: Option<PathBuf>,
    /// Merged into every step.
    pub step: Keys,
    /// Agent tags by system or `feature:NAME`.
    pub agents: BTreeMap<String, Keys>,
    /// Steps are grouped by this many of their first attribute names; 0: not at all.
    pub group_by: usize,
    /// Whether targets' own `meta.buildkite` and `meta.eval-once` count.
    pub meta: bool,
    /// Whether Buildkite reports each target's step as a commit status.
    pub notify_statuses: bool,
    /// Whether a last step sums the build up.
    pub summary: bool,
    /// Whether that step fails where a target did.
    pub summary_fails: bool,
    /// Steps per upload.
    pub chunk: NonZeroUsize,
    /// How many days the pin is kept.
    pub keep_days: u32,
}

impl RecordingRequest {
    /// What is evaluated, for a sentence about it: `checks of ci.nix`.
    #[must_use]
    pub fn description(&self) -> String {
        let source = match &self.root.source {
            Source::File(name) | Source::Flake(name) => name.clone(),
            Source::Expr(_) => "the expression".into(),
        };
        if self.root.attr.names().is_empty() {
            source
        } else {
            format!("{} of {source}", self.root.attr)
        }
    }

    /// Reads the keys of a recording; `plugin` is the reference to our plugin, where this is its hook.
    ///
    /// # Errors
    /// A key is unknown, null, of the wrong type or not allowed here; each is named (64).
    pub fn read(keys: Keys, place: &Checkout, plugin: Option<&str>) -> Result<Self, Failure> {
        let build_keys = build_keys::as_written(&keys);
        let mut reader = KeyReader::new(keys)?;
        let request = Self {
            build_keys,
            ..Self::read_keys(&mut reader, place, plugin)?
        };
        reader.finish(KeyOwner::Recording)?;
        if place.confined {
            evaluation_keys::check_confined(Some(&request.root), &request.options, place)?;
        }
        Ok(request)
    }

    /// The request with its paths relative to the root of the checkout, where steps start. `folder` is the recording's own
    /// folder, relative to that root.
    ///
    /// # Errors
    /// The folder's name is not UTF-8, so that no record can have it (64).
    pub(super) fn at_checkout_root(&self, folder: &Path) -> Result<Self, Failure> {
        let unnameable = || {
            refuse(format_args!(
                "the folder {} of the checkout has a name that is not UTF-8, which the record of a step cannot hold",
                folder.display()
            ))
            .hint("record from the checkout's root, or rename the folder")
        };
        let build_keys = build_keys::from_above(self.build_keys.clone(), folder);
        Ok(Self {
            root: self.root.from_above(folder).ok_or_else(unnameable)?,
            build_keys: build_keys.ok_or_else(unnameable)?,
            below: Some(folder.to_owned()),
            ..self.clone()
        })
    }

    #[expect(
        clippy::too_many_lines,
        reason = "one key of the table after the other"
    )]
    fn read_keys(
        reader: &mut KeyReader,
        place: &Checkout,
        plugin: Option<&str>,
    ) -> Result<Self, Failure> {
        let (root, by_default) = evaluation_keys::read(reader, place, false)?;
        let root = root.ok_or_else(|| refuse("there is nothing to evaluate"))?;
        let options = evaluation_keys::read_options(reader)?;
        let recurse = reader.choice(
            "recurse",
            [("marked", Recurse::Marked), ("all", Recurse::All)],
        )?;
        let exclude = attribute_paths(reader, "exclude")?;
        let workers = reader.number("workers")?;
        let memory = reader.number("memory")?;
        let evaluation_timeout = reader.number("evaluation-timeout")?;
        let evaluator = reader.choice(
            "evaluator",
            [
                ("nix", Evaluator::Nix),
                ("nix-eval-jobs", Evaluator::NixEvalJobs),
            ],
        )?;
        if evaluation_timeout.is_some() && evaluator == Some(Evaluator::NixEvalJobs) {
            return Err(refuse(
                "`evaluation-timeout` cannot be combined with `evaluator: nix-eval-jobs`, which has no such limit",
            ));
        }
        let skip = reader.choice(
            "skip",
            [
                ("built", SkipWhich::Built),
                ("cached", SkipWhich::Cached),
                ("none", SkipWhich::Nothing),
            ],
        )?;
        let base = reader.string("base")?.map(|file| place.folder.join(file));
        if let (true, Some(file)) = (place.confined, &base)
            && !is_inside(file, &place.folder)
        {
            return Err(not_here("a `base` outside the checkout"));
        }
        let batch = reader.number("batch")?;
        if batch.is_some() && base.is_none() {
            return Err(
                refuse("`batch` needs `base`, which knows how long the targets took")
                    .hint("set `base`, or leave out `batch`"),
            );
        }
        let shared_steps = reader.number("shared-steps")?;
        let skip_style = reader.choice(
            "skip-style",
            [
                ("mark", SkipStyle::Mark),
                ("run", SkipStyle::Run),
                ("omit", SkipStyle::Omit),
            ],
        )?;
        let on_error = reader.choice(
            "on-error",
            [
                ("step", OnError::Step),
                ("fail", OnError::Fail),
                ("report", OnError::Report),
            ],
        )?;
        let expect_errors = attribute_paths(reader, "expect-errors")?;
        let key_style =
            reader.choice("keys", [("drv", KeyStyle::Drv), ("attr", KeyStyle::Attr)])?;
        let key_style = key_style.unwrap_or(KeyStyle::Drv);
        let key_prefix = reader.take("key-prefix", "a string", |value| {
            string(value).map(key_prefix)
        })?;
        let phases = reader.take("phases", "a list of `build` and `release`", phases)?;
        if batch.is_some() && phases.is_some_and(|phases| !(phases.build && phases.release)) {
            return Err(
                refuse("`batch` cannot be combined with one of the `phases`: the other recording may make other batches")
                    .hint("leave out `batch`, or record both phases at once"),
            );
        }
        let emit = reader.choice("emit", [("plugin", true), ("command", false)])?;
        let named = reader.take("plugin", "a plugin's reference", |value| {
            string(value).filter(|text| !text.trim().is_empty()).map(Ok)
        })?;
        let step = reader.take("step", "a map", |value| match value {
            Value::Object(step) => Some(Ok(step)),
            _ => None,
        })?;
        let agents = reader.map(
            "agents",
            "a map of agent tags for a system or `feature:NAME`, or a list such as [\"queue=arm\"]",
            |_, value| tags(value),
        )?;
        let group_by = reader.number("group-by")?;
        let meta = reader.boolean("meta")?;
        let how = BuildKeys::read(reader, &place.folder)?;
        if let (true, Some(link)) = (place.confined, &how.out_link) {
            build_keys::check_confined(link, place)?;
        }
        let share = share_keys::read_recording_share(reader)?;
        let share_limit = reader.number("share-limit")?;
        let checkout_fallback =
            reader.choice("checkout", [("always", false), ("fallback", true)])?;
        if place.confined {
            if let Some(ShareSetting::Store(_)) = &share {
                return Err(not_here("a `share` that is a store, in a recording,"));
            }
            share_keys::check_confined(None, how.push.as_ref())?;
        }
        let notify_statuses =
            reader.choice("notify", [("none", false), ("github-status", true)])?;
        let summary = reader.take("summary", "`true`, `false` or `fail`", |value| {
            match (value.as_bool(), value.as_str()) {
                (Some(is_wanted), _) => Some(Ok((is_wanted, false))),
                (None, Some("fail")) => Some(Ok((true, true))),
                _ => None,
            }
        })?;
        let (summary, summary_fails) = summary.unwrap_or_default();
        let chunk = reader.number("chunk")?;
        let keep_days = reader.number("keep-days")?;

        let to_plugin = emit.unwrap_or(plugin.is_some() || named.is_some());
        let emit = match (to_plugin, named.or_else(|| plugin.map(str::to_owned))) {
            (true, Some(reference)) => {
                // It is in every step. A reference that is given as a key has been read as any other key.
                if secrets::find(&reference).is_some() {
                    let sentence = sentence("the plugin's reference", SecretHome::Git);
                    return Err(refuse(sentence).hint("set `plugin` to a reference without it"));
                }
                Emit::Plugin(reference)
            }
            (true, None) => {
                return Err(
                    refuse("cannot determine this plugin's reference; set `plugin`")
                        .hint("give it as it is written under `plugins:`, or use `emit: command`"),
                );
            }
            (false, _) if how.leaves_the_command() => {
                return Err(refuse(NO_OTHER_HOOK).hint("use `emit: plugin`"));
            }
            (false, _) => Emit::Command,
        };
        let size = |number: u64| usize::try_from(number).ok().and_then(NonZeroUsize::new);
        Ok(Self {
            root,
            by_default,
            options,
            recurse: recurse.unwrap_or(Recurse::Marked),
            exclude,
            workers: workers.and_then(size),
            memory,
            evaluation_timeout: evaluation_timeout.map(Duration::from_secs),
            evaluator: evaluator.unwrap_or(Evaluator::Nix),
            skip: skip.unwrap_or(SkipWhich::Cached),
            base,
            batch: batch.map(Duration::from_secs),
            shared_steps: shared_steps.and_then(size),
            skip_style: skip_style.unwrap_or(SkipStyle::Mark),
            on_error: on_error.unwrap_or(OnError::Step),
            expect_errors,
            key_style,
            key_prefix: key_prefix.unwrap_or_else(|| match key_style {
                KeyStyle::Drv => String::new(),
                KeyStyle::Attr => "nix-".into(),
            }),
            phases: phases.unwrap_or(Phases {
                build: true,
                release: true,
            }),
            emit,
            build_keys: Keys::new(),
            share,
            share_limit,
            share_required: how.share_required.unwrap_or(false),
            push: how.push,
            checkout_fallback: checkout_fallback.unwrap_or(false),
            below: None,
            step: step.unwrap_or_default(),
            agents,
            group_by: group_by
                .and_then(|number| usize::try_from(number).ok())
                .unwrap_or(0),
            meta: meta.unwrap_or(true),
            notify_statuses: notify_statuses.unwrap_or(false),
            summary,
            summary_fails,
            chunk: chunk.and_then(size).unwrap_or(CHUNK),
            keep_days: keep_days
                .and_then(|days| u32::try_from(days).ok())
                .unwrap_or(KEEP_DAYS),
        })
    }
}

/// Why a step that is a command cannot leave a command of its own to another plugin: if that plugin has a command hook, the agent
/// runs that hook instead of ours, and if it has none, nothing runs the command.
pub(super) const NO_OTHER_HOOK: &str =
    "`command: none` cannot be combined with `emit: command`: no hook runs the command after ours";

/// Steps per upload by default, as Buildkite advises.
const CHUNK: NonZeroUsize = NonZeroUsize::new(100).unwrap();

/// How many days a pin is kept by default: a build is seldom older.
pub(super) const KEEP_DAYS: u32 = 3;

/// The most characters of `key-prefix`: there has to be room for what tells keys apart.
const PREFIX_AT_MOST: usize = 40;

fn key_prefix(text: String) -> Result<String, String> {
    let is_taken = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | ':');
    if text.is_empty() || text.len() > PREFIX_AT_MOST || !text.chars().all(is_taken) {
        return Err(format!(
            "is {text:?}, and must be 1 to {PREFIX_AT_MOST} letters, digits, `-`, `_` or `:`"
        ));
    }
    Ok(text)
}

fn phases(value: Value) -> Option<Result<Phases, String>> {
    let Value::Array(names) = value else {
        return None;
    };
    let mut phases = Phases {
        build: false,
        release: false,
    };
    for name in &names {
        match name.as_str()? {
            "build" => phases.build = true,
            "release" => phases.release = true,
            other => {
                return Some(Err(format!(
                    "holds {other:?}, and must be a list of `build` and `release`"
                )));
            }
        }
    }
    if names.is_empty() {
        return Some(Err("is empty: name `build`, `release` or both".into()));
    }
    Some(Ok(phases))
}

/// Attribute paths in which `*` stands for one name.
fn attribute_paths(reader: &mut KeyReader, key: &'static str) -> Result<Vec<AttrPath>, Failure> {
    let paths = reader.take(key, "a list of attribute paths", |value| match value {
        Value::Array(paths) => paths.into_iter().map(attribute_path).collect(),
        _ => None,
    })?;
    Ok(paths.unwrap_or_default())
}

fn attribute_path(value: Value) -> Option<Result<AttrPath, String>> {
    let path = match value {
        Value::String(text) => AttrPath::parse(&text)
            .map_err(|wrong| format!("holds {text:?}, which {wrong}"))
            .and_then(|path| {
                let part = |name: &String| name.contains('*') && name != "*";
                if path.names().iter().any(part) {
                    return Err(format!(
                        "holds {text:?}, and `*` stands for one whole name: write a name with a `*` in it as a list of names"
                    ));
                }
                Ok(path)
            }),
        Value::Array(names) => Ok(AttrPath::new(
            names.into_iter().map(string).collect::<Option<_>>()?,
        )),
        _ => return None,
    };
    Some(path.and_then(|path| {
        if path.names().is_empty() {
            Err("holds the root, which has every attribute below it".into())
        } else {
            Ok(path)
        }
    }))
}

/// Agent tags, as a map or as Buildkite's list of `name=value`.
fn tags(value: Value) -> Option<Result<Keys, String>> {
    let tag = |text: &str| {
        let (name, value) = text.split_once('=')?;
        Some((name.to_owned(), Value::from(value)))
    };
    match value {
        Value::Object(tags) => {
            let tags = tags.into_iter().map(|(name, value)| match scalar(value)? {
                Ok(text) => Some(Ok((name, Value::from(text)))),
                Err(wrong) => Some(Err(format!(": `{name}` {wrong}"))),
            });
            tags.collect()
        }
        Value::Array(tags) => {
            let tags: Option<Keys> = tags.iter().map(|value| tag(value.as_str()?)).collect();
            tags.map(Ok)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Class;
    use crate::nix::Source;
    use serde_json::json;

    fn read_as(keys: &Value, plugin: Option<&str>) -> Result<RecordingRequest, Failure> {
        let place = Checkout {
            folder: "/checkout".into(),
            confined: false,
            no_checkout: false,
        };
        RecordingRequest::read(keys.as_object().unwrap().clone(), &place, plugin)
    }

    fn read(keys: &Value) -> Result<RecordingRequest, Failure> {
        read_as(keys, None)
    }

    #[test]
    fn a_recording_without_keys_evaluates_the_default_nix() {
        let request = read(&json!({})).unwrap();
        assert!(request.by_default);
        assert_eq!((request.chunk.get(), request.keep_days), (100, 3));
        assert_eq!(
            (request.skip, request.skip_style),
            (SkipWhich::Cached, SkipStyle::Mark)
        );
        assert_eq!((request.emit, request.meta), (Emit::Command, true));
        assert_eq!(
            (request.workers, request.memory, request.group_by),
            (None, None, 0)
        );
    }

    #[test]
    fn steps_start_at_the_checkouts_root_and_their_paths_lead_below() {
        use std::os::unix::ffi::OsStrExt as _;
        let request = read(&json!({ "file": "ci.nix", "out-link": "out/x" })).unwrap();
        let above = request.at_checkout_root(Path::new("nix")).unwrap();
        assert_eq!(above.root.source, Source::File("nix/ci.nix".into()));
        assert_eq!(above.build_keys["out-link"], "nix/out/x");
        assert_eq!(above.below.as_deref(), Some(Path::new("nix")));
        let odd = Path::new(std::ffi::OsStr::from_bytes(b"\xff"));
        let failure = request.at_checkout_root(odd).unwrap_err();
        assert_eq!(failure.class, Class::Config);
        assert!(failure.to_string().contains("not UTF-8"), "{failure}");
    }

    #[test]
    fn every_key_is_read_into_its_meaning() {
        let request = read(&json!({
            "file": "ci.nix", "attr": "a", "recurse": "all", "exclude": ["a.*.b", ["x", "y.z"]], "workers": 4,
            "memory": 2048, "evaluation-timeout": 60, "evaluator": "nix", "skip": "built", "skip-style": "omit",
            "on-error": "report", "expect-errors": ["*.old", ["x", "a.b"]], "emit": "plugin", "plugin": "o/eval-once#v1", "step": {"priority": 1},
            "agents": {"x86_64-linux": {"queue": "big", "cores": 8}, "feature:kvm": ["kvm=true"]}, "group-by": 1,
            "meta": false, "command": "none", "log": "raw", "on-drift": "fail", "out-link": false, "summary": true, "chunk": 500, "keep-days": 7
        }))
        .unwrap();
        assert_eq!(request.exclude[0].names(), ["a", "*", "b"]);
        assert_eq!(request.exclude[1].names(), ["x", "y.z"]);
        assert_eq!(request.on_error, OnError::Report);
        assert_eq!(request.expect_errors[0].names(), ["*", "old"]);
        assert_eq!(request.expect_errors[1].names(), ["x", "a.b"]);
        assert_eq!(request.emit, Emit::Plugin("o/eval-once#v1".into()));
        assert_eq!(
            Value::from(request.agents["x86_64-linux"].clone()),
            json!({"queue": "big", "cores": "8"})
        );
        assert_eq!(
            Value::from(request.agents["feature:kvm"].clone()),
            json!({"kvm": "true"})
        );
        assert_eq!(request.evaluation_timeout, Some(Duration::from_secs(60)));
        assert!(request.summary);
        assert_eq!(
            Value::from(request.build_keys),
            json!({"command": "none", "log": "raw", "on-drift": "fail", "out-link": false})
        );
    }

    #[test]
    fn in_a_plugins_hook_steps_carry_their_record_in_the_plugin() {
        let emitted = |keys: &Value| read_as(keys, Some("o/p#v1")).unwrap().emit;
        assert_eq!(emitted(&json!({})), Emit::Plugin("o/p#v1".into()));
        assert_eq!(emitted(&json!({"emit": "command"})), Emit::Command);
        assert_eq!(
            emitted(&json!({"plugin": "x#v2"})),
            Emit::Plugin("x#v2".into())
        );
        let failure =
            read_as(&json!({}), Some("https://user:secret@example.com/p.git#v1")).unwrap_err();
        assert!(
            failure.to_string().contains("reference holds a secret")
                && !failure.to_string().contains("user"),
            "{failure}"
        );
        for without in [
            "ssh://git@example.com/p.git#v1",
            "git@example.com:o/p.git#v1",
            "https://example.com/p.git?at=a@b#v1",
        ] {
            assert!(read_as(&json!({}), Some(without)).is_ok(), "{without}");
        }
    }

    #[test]
    fn a_wrong_key_is_refused_by_its_name() {
        for (keys, name) in [
            (json!({"drv": "x"}), "`drv`"),
            (json!({"out-link": "x/"}), "`out-link`"),
            (json!({"command": "before"}), "`command`"),
            (json!({"command": "none"}), "`emit: command`"),
            (json!({"log": "loud"}), "`log`"),
            (json!({"on-drift": true}), "`on-drift`"),
            (json!({"fiel": "x"}), "`fiel`"),
            (json!({"step": {"env": {"x": null}}}), "`step.env.x`"),
            (json!({"recurse": "some"}), "`recurse`"),
            (json!({"exclude": "a"}), "`exclude`"),
            (json!({"exclude": ["a..b"]}), "`exclude`"),
            (json!({"exclude": [""]}), "`exclude`"),
            (json!({"exclude": ["a.b*"]}), "`exclude`"),
            (json!({"on-error": "ignore"}), "`on-error`"),
            (json!({"expect-errors": "a"}), "`expect-errors`"),
            (json!({"expect-errors": [""]}), "`expect-errors`"),
            (json!({"expect-errors": ["a.b*"]}), "`expect-errors`"),
            (json!({"expect-errors": [5]}), "`expect-errors`"),
            (json!({"workers": 0}), "`workers`"),
            (json!({"workers": "2"}), "`workers`"),
            (json!({"memory": 1.5}), "`memory`"),
            (json!({"evaluation-timeout": -1}), "`evaluation-timeout`"),
            (
                json!({"evaluation-timeout": 1, "evaluator": "nix-eval-jobs"}),
                "`evaluation-timeout`",
            ),
            (json!({"chunk": 501}), "`chunk`"),
            (json!({"skip": false}), "`skip`"),
            (json!({"emit": "plugin"}), "`plugin`"),
            (json!({"plugin": " "}), "`plugin`"),
            (json!({"plugin": "https://t@h/x"}), "`plugin`"),
            (json!({"plugin": "HTTPS://t@h/x"}), "`plugin`"),
            (json!({"plugin": "ssh://u:p@h/x"}), "`plugin`"),
            (json!({"plugin": "https://h/x?token=t"}), "`plugin`"),
            (json!({"flake": "git+https://u:p@h/x"}), "`flake`"),
            (
                json!({"options": {"access-tokens": "github.com=x"}}),
                "`options.access-tokens`",
            ),
            (json!({"agents": {"x": "queue"}}), "`agents.x`"),
            (json!({"agents": {"x": ["queue"]}}), "`agents.x`"),
            (json!({"share": "artifact:x.tar"}), "`share`"),
            (json!({"share": true}), "`share`"),
            (json!({"share-limit": 0}), "`share-limit`"),
            (json!({"share-required": "yes"}), "`share-required`"),
            (json!({"push": "artifact"}), "`push`"),
            (json!({"checkout": true}), "`checkout`"),
            (json!({"summary": "true"}), "`summary`"),
        ] {
            let failure = read(&keys).unwrap_err();
            assert_eq!(failure.class, Class::Config, "{keys}");
            assert!(failure.to_string().contains(name), "{keys}: {failure}");
        }
    }
    #[test]
    fn a_confined_recording_evaluates_only_what_lies_in_the_checkout() {
        let checkout = tempfile::TempDir::new().unwrap();
        let place = Checkout {
            folder: checkout.path().into(),
            confined: true,
            no_checkout: false,
        };
        let read =
            |keys: &Value| RecordingRequest::read(keys.as_object().unwrap().clone(), &place, None);
        for good in [
            json!({"file": "ci.nix", "include": ["x=."], "options": {"timeout": 9}, "arg": {"n": 5}}),
            json!({"attr": "a", "skip": "none", "group-by": 1}),
            json!({"out-link": "out/a", "log": "raw"}),
        ] {
            assert!(read(&good).is_ok(), "{good}");
        }
        for bad in [
            json!({"expr": "1"}),
            json!({"flake": "."}),
            json!({"file": "https://example.org/x.tar.gz"}),
            json!({"file": "../x.nix"}),
            json!({"file": "ci.nix", "arg": {"x": "import /etc"}}),
            json!({"file": "ci.nix", "include": ["/etc"]}),
            json!({"out-link": "../a"}),
            json!({"out-link": ".git/hooks/pre-push"}),
            json!({"share": "https://cache.example.org"}),
            json!({"push": "https://cache.example.org"}),
            json!({"file": "ci.nix", "options": {"post-build-hook": "x"}}),
        ] {
            let failure = read(&bad).expect_err(&bad.to_string());
            assert_eq!(failure.class, Class::Config, "{bad}");
        }
    }
}
