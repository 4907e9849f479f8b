//! What a step is asked to do: its keys, each read into what it means.

use std::collections::BTreeMap;

use serde_json::Value;

use super::program::StepProgram;
use crate::artifact_globs::{self, ArtifactGlob};
pub(super) use crate::build_keys::OutLink;
use crate::build_keys::{self, BuildKeys, Form};
use crate::evaluation_keys::{self, Checkout};
use crate::exit::Failure;
use crate::keys::table::KeyOwner;
use crate::keys::{KeyReader, Keys, not_here, refuse, string};
use crate::nix::{AttrPath, DrvPath, Evaluation, StorePath, StoreUrl, is_output_name};
use crate::share_keys::{self, Share, StepShare};

/// What a step is asked to do.
#[expect(
    clippy::struct_excessive_bools,
    reason = "a key of the table is a field, and some are yes or no"
)]
#[derive(Debug, Clone, PartialEq)]
pub struct StepRequest {
    /// The recorded `.drv`.
    pub drv: Option<DrvPath>,
    /// The recorded outputs. Empty where none were recorded, or their paths are not known before they are built.
    pub outputs: BTreeMap<String, StorePath>,
    /// What to evaluate; nothing where only a record was given.
    pub evaluation: Option<Evaluation>,
    /// Whether `default.nix` is evaluated because the step names nothing else.
    pub by_default: bool,
    /// Nix settings, by name.
    pub options: Vec<(String, String)>,
    /// Where the outputs are linked, as an absolute path.
    pub out_link: OutLink,
    /// Whether a hook runs the job's own command after success.
    pub command: bool,
    /// Whether the step ends at once where its outputs are here, or in a cache: a recording has found them there.
    pub skip: bool,
    /// Whether drift ends the step.
    pub fail_on_drift: bool,
    /// How what Nix says looks in the log.
    pub form: Form,
    /// Where the `.drv` can be fetched; none: as the host's setting says.
    pub share: Option<StepShare>,
    /// How many bytes the archive of a share unpacks to, where the recording has said so.
    pub share_size: Option<u64>,
    /// For how many days what was unpacked is kept; none: as long as by default.
    pub keep_days: Option<u64>,
    /// Whether a share that fails ends the step, rather than let it evaluate.
    pub share_required: bool,
    /// The store that gets the outputs after success.
    pub push: Option<StoreUrl>,
    /// Whether it also gets what was built of a target that failed.
    pub push_partial: bool,
    /// Which files of its outputs become artifacts of the build.
    pub artifacts: Vec<ArtifactGlob>,
    /// Whether the step makes a checkout where it has to evaluate.
    pub checkout_fallback: bool,
    /// The target's attribute path, where the one that is evaluated is another.
    pub target: Option<AttrPath>,
    /// The program in its outputs that is run after the build.
    pub run: Option<StepProgram>,
    /// The target whose outputs that program needs: it is realised first.
    pub needs: Option<Box<StepRequest>>,
    /// The targets of a batch, which are built one after the other; none where this is one target.
    pub targets: Vec<BatchTarget>,
    /// The keys themselves, as they were given.
    pub keys: Keys,
}

/// One of the targets of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchTarget {
    /// The key under which its report is saved: that of the step that it would have by itself.
    pub key: String,
    /// What is asked of it.
    pub request: StepRequest,
}

impl StepRequest {
    /// Reads the keys of a step.
    ///
    /// # Errors
    /// A key is unknown, null, of the wrong type or not allowed here; each is named (64). The recording has refused the target,
    /// with this message (64).
    pub fn read(keys: Keys, place: &Checkout) -> Result<Self, Failure> {
        let mut reader = KeyReader::new(keys.clone())?;
        let request = Self::read_keys(&mut reader, keys, place)?;
        reader.finish(KeyOwner::Step)?;
        if place.confined {
            request.check_confined(place)?;
        }
        Ok(request)
    }

    /// The attribute path by which people know the target, if it has one.
    pub(super) fn name(&self) -> Option<String> {
        let evaluated = self.evaluation.as_ref().map(|evaluation| &evaluation.attr);
        let attr = self.target.as_ref().or(evaluated);
        let attr = attr.filter(|attr| !attr.names().is_empty());
        attr.map(ToString::to_string)
    }

    fn read_keys(reader: &mut KeyReader, keys: Keys, place: &Checkout) -> Result<Self, Failure> {
        if let Some(message) = reader.string("refused")? {
            // No other key counts then: the recording found that this target must not be built.
            return Err(refuse(message).hint("correct it, and record again"));
        }
        let targets = reader.take("targets", "a list of targets", |value| {
            let Value::Array(targets) = value else {
                return None;
            };
            let maps = targets.into_iter().map(|target| match target {
                Value::Object(keys) => Some(keys),
                _ => None,
            });
            let targets = keys_of_targets(&keys, maps.collect::<Option<_>>()?);
            Some(targets.ok_or_else(|| "holds a target without a `key`".into()))
        })?;
        let targets = targets.unwrap_or_default().into_iter();
        let targets = targets
            .map(|(key, keys)| {
                Ok(BatchTarget {
                    key,
                    request: Self::read(keys, place)?,
                })
            })
            .collect::<Result<_, Failure>>()?;
        let drv = reader.take("drv", "the store path of a .drv", |value| {
            let text = string(value)?;
            Some(DrvPath::parse(&text).map_err(|wrong| format!("{wrong}: {text:?}")))
        })?;
        let outputs = reader.map("outputs", "a store path", |name, value| {
            let text = string(value)?;
            Some(if !is_output_name(name) {
                Err("is not a name that an output can have".into())
            } else if DrvPath::parse(&text).is_ok() {
                Err(format!("is a .drv, and no output of one: {text:?}"))
            } else {
                StorePath::parse(&text).map_err(|wrong| format!("{wrong}: {text:?}"))
            })
        })?;
        let recorded = drv.is_some() || !outputs.is_empty();
        let (mut evaluation, by_default) = evaluation_keys::read(reader, place, recorded)?;
        let call = reader.boolean("call")?;
        if let (Some(evaluation), Some(call)) = (&mut evaluation, call) {
            evaluation.call = call;
        }
        let options = evaluation_keys::read_options(reader)?;
        let how = BuildKeys::read(reader, &place.folder)?;
        let artifacts = artifact_globs::read(reader)?;
        let share = share_keys::read_step_share(reader)?;
        let share_size = reader.number("share-size")?;
        let keep_days = reader.number("keep-days")?;
        let checkout_fallback =
            reader.choice("checkout", [("always", false), ("fallback", true)])?;
        let target = evaluation_keys::read_attr(reader, "target")?;
        let run = reader.take("run", "the name of a program", |value| {
            Some(Ok(StepProgram::read(value.as_str()?)?))
        })?;
        let needs = reader.take("needs", "a map", |value| match value {
            Value::Object(keys) => Some(Ok(keys)),
            _ => None,
        })?;
        let needs = needs
            .map(|needs| Self::read(keys_of_needs(&keys, needs)?, place).map(Box::new))
            .transpose()?;
        if place.confined && run.is_some() {
            return Err(not_here("`run`, which is a program in the store,"));
        }
        let skip = reader.boolean("skip")?.unwrap_or(false);
        if skip && how.leaves_the_command() {
            return Err(refuse(
                "`skip` cannot be combined with `command: none`: what another plugin runs may need the outputs",
            ));
        }

        Ok(Self {
            drv,
            outputs,
            evaluation,
            by_default,
            options,
            out_link: how
                .out_link
                .unwrap_or_else(|| OutLink::At(place.folder.join("result"))),
            command: how.command.unwrap_or(true),
            skip,
            fail_on_drift: how.fail_on_drift.unwrap_or(false),
            form: how.form.unwrap_or(Form::Pretty),
            share,
            share_size,
            keep_days,
            share_required: how.share_required.unwrap_or(false),
            push: how.push,
            target,
            artifacts,
            push_partial: how.push_partial.unwrap_or(false),
            checkout_fallback: checkout_fallback.unwrap_or(false),
            run,
            needs,
            targets,
            keys,
        })
    }

    /// Holds a pipeline to what an agent with `no-command-eval` lets it choose.
    fn check_confined(&self, place: &Checkout) -> Result<(), Failure> {
        build_keys::check_confined(&self.out_link, place)?;
        let share = match &self.share {
            Some(StepShare::From(Share::Store(url))) => Some(url),
            _ => None,
        };
        share_keys::check_confined(share, self.push.as_ref())?;
        evaluation_keys::check_confined(self.evaluation.as_ref(), &self.options, place)
    }
}

/// The keys of the target that a step of these `keys` needs: all that is not said of it is as for the step.
fn keys_of_needs(keys: &Keys, needs: Keys) -> Result<Keys, Failure> {
    const OWN: [&str; 5] = ["attr", "call", "drv", "outputs", "out-link"];
    if let Some(name) = needs.keys().find(|name| !OWN.contains(&name.as_str())) {
        return Err(refuse(format_args!(
            "`needs.{name}` cannot be set: `needs` has {}",
            OWN.join(", ")
        )));
    }
    let is_common =
        |name: &str| !OWN.contains(&name) && !["run", "needs", "skip", "target"].contains(&name);
    let common = keys.iter().filter(|(name, _)| is_common(name));
    let common = common.map(|(name, value)| (name.clone(), value.clone()));
    Ok(common.chain(needs).collect())
}

/// The keys of each target: what all have in common, and what is its own. Gives the key of its report as well.
fn keys_of_targets(common: &Keys, targets: Vec<Keys>) -> Option<Vec<(String, Keys)>> {
    let targets = targets.into_iter().map(|mut own| {
        let key = own.remove("key")?.as_str()?.to_owned();
        // A batch in a batch would not end.
        if key.is_empty() || own.contains_key("targets") {
            return None;
        }
        let mut keys = common.clone();
        keys.remove("targets");
        keys.extend(own);
        Some((key, keys))
    });
    targets.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Class;
    use crate::nix::{Argument, Source};
    use serde_json::{Value, json};

    const DRV: &str = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-x.drv";

    fn place() -> Checkout {
        Checkout {
            folder: "/checkout".into(),
            confined: false,
            no_checkout: false,
        }
    }

    fn read(keys: &Value) -> Result<StepRequest, Failure> {
        StepRequest::read(keys.as_object().unwrap().clone(), &place())
    }

    #[test]
    fn a_step_of_nothing_but_a_record_has_nothing_to_evaluate() {
        let request = read(&json!({ "drv": DRV })).unwrap();
        assert_eq!(request.evaluation, None);
        assert_eq!(request.out_link, OutLink::At("/checkout/result".into()));
        assert!(request.command && !request.fail_on_drift);
    }

    #[test]
    fn a_step_of_nothing_at_all_is_the_default_nix() {
        let request = read(&json!({ "attr": "a.b" })).unwrap();
        assert!(request.by_default);
        let evaluation = request.evaluation.unwrap();
        assert_eq!(evaluation.source, Source::File("default.nix".into()));
        assert_eq!(evaluation.attr.names(), ["a", "b"]);
    }

    #[test]
    fn what_is_wrong_is_refused_by_its_name() {
        for (keys, name) in [
            (json!({ "drv": null }), "`drv`"),
            (json!({ "arg": { "x": null } }), "`arg.x`"),
            (json!({ "attr": ["a", null] }), "`attr[1]`"),
            (json!({ "atrr": "a" }), "`atrr`"),
            (json!({ "drv": 5 }), "`drv`"),
            (json!({ "drv": "/nix/store/x" }), "`drv`"),
            (json!({ "outputs": { "out": "x" } }), "`outputs.out`"),
            (
                json!({ "outputs": { "a/b": &DRV[..DRV.len() - 4] } }),
                "`outputs.a/b`",
            ),
            (json!({ "outputs": { "out": DRV } }), "`outputs.out`"),
            (json!({ "arg": { "x": 1e20 } }), "`arg.x`"),
            (json!({ "arg": { "x": u64::MAX } }), "`arg.x`"),
            (json!({ "outputs": [] }), "`outputs`"),
            (json!({ "file": "" }), "`file`"),
            (json!({ "file": "a\u{0}b" }), "`file`"),
            (json!({ "flake": ".#x" }), "`flake`"),
            (json!({ "file": "a", "expr": "b" }), "`expr`"),
            (json!({ "flake": ".", "arg": { "x": 1 } }), "`arg`"),
            (json!({ "attr": "a..b" }), "`attr`"),
            (json!({ "attr": [1] }), "`attr`"),
            (json!({ "argstr": { "x": 1 } }), "`argstr.x`"),
            (
                json!({ "arg": { "x": 1 }, "argstr": { "x": "1" } }),
                "`argstr.x`",
            ),
            (json!({ "include": "x" }), "`include`"),
            (json!({ "options": { "cores": [] } }), "`options.cores`"),
            (json!({ "out-link": true }), "`out-link`"),
            (json!({ "out-link": "" }), "`out-link`"),
            (json!({ "out-link": "a/.." }), "`out-link`"),
            (json!({ "command": "before" }), "`command`"),
            (json!({ "on-drift": true }), "`on-drift`"),
            (json!({ "log": "quiet" }), "`log`"),
            (json!({ "share": "artefact" }), "`share`"),
            (json!({ "share": "artifact" }), "`share`"),
            (json!({ "share": "artifact:../x.tar" }), "`share`"),
            (json!({ "share": "artifact:*" }), "`share`"),
            (json!({ "share": true }), "`share`"),
            (json!({ "share-required": 1 }), "`share-required`"),
            (json!({ "push": "https://u:p@x" }), "`push`"),
            (json!({ "push": false }), "`push`"),
            (json!({ "checkout": "never" }), "`checkout`"),
        ] {
            let failure = read(&keys).expect_err(&keys.to_string());
            assert_eq!(failure.class, Class::Config, "{keys}");
            assert!(failure.to_string().contains(name), "{keys}: {failure}");
        }
    }

    #[test]
    fn numbers_and_booleans_are_themselves() {
        let request = read(
            &json!({ "file": "x", "arg": { "n": 5, "b": true, "e": "1+1" }, "options": { "cores": 2, "k": false } }),
        );
        let request = request.unwrap();
        assert_eq!(
            request.options,
            [("cores".into(), "2".into()), ("k".into(), "false".into())]
        );
        let arguments = request.evaluation.unwrap().arguments;
        assert_eq!(arguments[0], ("b".into(), Argument::Expr("true".into())));
        assert_eq!(arguments[2], ("n".into(), Argument::Expr("5".into())));
    }

    #[test]
    fn a_confined_step_builds_only_what_lies_in_the_checkout() {
        // Builds may lie anywhere, below such a folder too.
        let builds = tempfile::TempDir::with_prefix(".buildkite").unwrap();
        let checkout = builds.path().join(".buildkite");
        std::fs::create_dir(&checkout).unwrap();
        let checkout = tempfile::TempDir::new_in(checkout).unwrap();
        let outside = tempfile::TempDir::new().unwrap();
        std::os::unix::fs::symlink(outside.path(), checkout.path().join("away")).unwrap();
        std::fs::create_dir_all(checkout.path().join("deep/er/still")).unwrap();
        std::os::unix::fs::symlink("deep/er/still", checkout.path().join("in")).unwrap();
        std::fs::create_dir_all(checkout.path().join(".git/hooks")).unwrap();
        std::os::unix::fs::symlink(".git", checkout.path().join("g")).unwrap();
        std::fs::create_dir(checkout.path().join("led")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", checkout.path().join("led/default.nix")).unwrap();
        std::fs::write(checkout.path().join("ci.nix"), "").unwrap();
        let place = Checkout {
            folder: checkout.path().into(),
            confined: true,
            no_checkout: false,
        };
        let read = |keys: Value| StepRequest::read(keys.as_object().unwrap().clone(), &place);
        for good in [
            json!({ "drv": DRV }),
            json!({ "file": "ci.nix", "arg": { "n": 5 }, "argstr": { "s": "x" }, "options": { "timeout": 9 } }),
            json!({ "file": "not-there.nix", "out-link": "deep/result", "include": ["x=."] }),
            json!({ "drv": DRV, "out-link": false }),
        ] {
            assert!(read(good.clone()).is_ok(), "{good}");
        }
        for bad in [
            json!({ "expr": "1" }),
            json!({ "flake": "." }),
            json!({ "file": "https://example.org/x.tar.gz" }),
            json!({ "file": "<nixpkgs>" }),
            json!({ "file": "../x.nix" }),
            json!({ "file": "away/x.nix" }),
            json!({ "file": "/etc/x.nix" }),
            json!({ "file": "none/../../x.nix" }),
            json!({ "file": "in/../../x.nix" }),
            json!({ "file": "led" }),
            json!({ "file": "ci.nix", "include": ["lib=in/../../evil"] }),
            json!({ "drv": DRV, "out-link": ".git/hooks/post-checkout" }),
            json!({ "drv": DRV, "out-link": ".GIT/hooks/post-checkout" }),
            json!({ "drv": DRV, "out-link": "g/hooks/post-checkout" }),
            json!({ "file": "ci.nix", "arg": { "x": "import /etc" } }),
            json!({ "file": "ci.nix", "include": ["nixpkgs=https://example.org/x.tar.gz"] }),
            json!({ "file": "ci.nix", "include": ["/etc"] }),
            json!({ "drv": DRV, "out-link": "/etc/result" }),
            json!({ "drv": DRV, "out-link": "away/result" }),
            json!({ "drv": DRV, "options": { "post-build-hook": "x" } }),
        ] {
            assert_eq!(
                read(bad.clone()).expect_err(&bad.to_string()).class,
                Class::Config
            );
        }
    }

    #[test]
    fn a_target_of_a_batch_has_the_common_keys_and_its_own() {
        let map = |value: &Value| value.as_object().unwrap().clone();
        let common = map(&json!({ "file": "ci.nix", "log": "raw", "targets": [] }));
        let own = vec![map(
            &json!({ "key": "drv-a", "attr": ["a"], "log": "pretty" }),
        )];
        let read = keys_of_targets(&common, own).unwrap();
        let expected = map(&json!({ "file": "ci.nix", "log": "pretty", "attr": ["a"] }));
        assert_eq!(read, [("drv-a".to_owned(), expected)]);
        for bad in [
            json!({}),
            json!({ "key": 5 }),
            json!({ "key": "" }),
            json!({ "key": "k", "targets": [] }),
        ] {
            assert_eq!(keys_of_targets(&common, vec![map(&bad)]), None, "{bad}");
        }
    }
}
