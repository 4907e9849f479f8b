//! What a step is asked to do: its keys, each read into what it means.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::exit::Failure;
use crate::keys::{Keys, Reader, refuse, scalar, string};
use crate::nix::{
    Argument, AttrPath, DrvPath, Evaluation, Source, StorePath, is_output_name, is_url,
};
use crate::paths::{below, is_inside, without_dots};

/// What a step is asked to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The recorded `.drv`.
    pub drv: Option<DrvPath>,
    /// The recorded outputs. Empty where none were recorded, or their paths are not known before they are built.
    pub outputs: BTreeMap<String, StorePath>,
    /// What to evaluate; nothing where only a record was given.
    pub evaluation: Option<Evaluation>,
    /// Whether the evaluation is of a `default.nix` that nobody named.
    pub by_default: bool,
    /// Nix settings, by name.
    pub options: Vec<(String, String)>,
    /// Where the outputs are linked, as an absolute path.
    pub out_link: OutLink,
    /// Whether a hook runs the job's own command after success.
    pub command: bool,
    /// Whether drift ends the step.
    pub fail_on_drift: bool,
}

/// Where outputs are linked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutLink {
    /// At this path, and beside it.
    At(PathBuf),
    /// Nowhere a user looks (`false`): a root in the state folder.
    State,
}

/// Where a step stands, as far as its keys depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The folder in which relative paths start: the checkout in a hook, the current folder by hand.
    pub folder: PathBuf,
    /// This is a hook of an agent that does not let pipelines choose what is run (`BUILDKITE_COMMAND_EVAL=false`).
    pub confined: bool,
    /// The checkout was skipped, or has left nothing. By hand the current folder counts as the checkout.
    pub no_checkout: bool,
}

/// The options a pipeline may set on an agent that lets it choose nothing.
const HARMLESS_OPTIONS: [&str; 5] = [
    "timeout",
    "max-silent-time",
    "cores",
    "max-jobs",
    "keep-going",
];

impl Request {
    /// Reads the keys of a step.
    ///
    /// # Errors
    /// A key is unknown, null, of the wrong type or not allowed here; each is named (64).
    pub fn read(keys: Keys, place: &Place) -> Result<Self, Failure> {
        let mut reader = Reader::new(keys)?;
        let request = Self::read_keys(&mut reader, place)?;
        reader.finish("a step")?;
        if place.confined {
            request.check_confined(place)?;
        }
        Ok(request)
    }

    fn read_keys(reader: &mut Reader, place: &Place) -> Result<Self, Failure> {
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
        let (evaluation, by_default) = Self::read_evaluation(reader, place, recorded)?;
        let options = reader.map("options", "a string, a number or a boolean", |_, value| {
            scalar(value)
        })?;
        let out_link = reader.take("out-link", "a path, or `false`", |value| match value {
            Value::Bool(false) => Some(Ok(OutLink::State)),
            Value::String(text) => Some(out_link(&text, &place.folder)),
            _ => None,
        })?;
        let command = reader.choice("command", [("after", true), ("none", false)])?;
        for key in ["share", "share-required", "push"] {
            reader.not_yet(key)?;
        }
        let fail_on_drift = reader.choice("on-drift", [("warn", false), ("fail", true)])?;
        // Both show Nix's own output, so far.
        reader.choice("log", [("pretty", ()), ("raw", ())])?;

        Ok(Self {
            drv,
            outputs,
            evaluation,
            by_default,
            options: options.into_iter().collect(),
            out_link: out_link.unwrap_or_else(|| OutLink::At(place.folder.join("result"))),
            command: command.unwrap_or(true),
            fail_on_drift: fail_on_drift.unwrap_or(false),
        })
    }

    /// Reads what to evaluate, if anything; and whether that is a `default.nix` nobody named.
    fn read_evaluation(
        reader: &mut Reader,
        place: &Place,
        recorded: bool,
    ) -> Result<(Option<Evaluation>, bool), Failure> {
        let file = reader.string("file")?;
        let expr = reader.string("expr")?;
        let flake = reader.take("flake", "a flake reference", |value| {
            let text = string(value).filter(|text| !text.is_empty())?;
            Some(if text.contains('#') {
                Err(
                    "holds a `#`: the attribute path below the flake goes into `attr`, in full"
                        .into(),
                )
            } else if text.starts_with('-') {
                Err(format!("is no flake reference: {text:?}"))
            } else {
                Ok(text)
            })
        })?;
        let attr =
            reader.take(
                "attr",
                "a list of strings, or one dotted string",
                |value| match value {
                    Value::String(text) => {
                        Some(AttrPath::parse(&text).map_err(|wrong| format!("{wrong}: {text:?}")))
                    }
                    Value::Array(names) => names
                        .into_iter()
                        .map(string)
                        .collect::<Option<_>>()
                        .map(|names| Ok(AttrPath::new(names))),
                    _ => None,
                },
            )?;
        let arg = reader.map(
            "arg",
            "a Nix expression as a string, a number or a boolean",
            |_, value| scalar(value),
        )?;
        let argstr = reader.map("argstr", "a string", |_, value| string(value).map(Ok))?;
        let include = reader.take(
            "include",
            "a list of search path entries",
            |value| match value {
                Value::Array(entries) => entries
                    .into_iter()
                    .map(string)
                    .collect::<Option<Vec<_>>>()
                    .map(Ok),
                _ => None,
            },
        )?;
        if let Some(name) = arg.keys().find(|name| argstr.contains_key(*name)) {
            return Err(refuse(format_args!(
                "`arg.{name}` and `argstr.{name}` give the same argument: keep one"
            )));
        }
        let mut by_default = false;
        let source = match (file, expr, flake) {
            (Some(file), None, None) => Some(Source::File(file)),
            (None, Some(expr), None) => Some(Source::Expr(expr)),
            (None, None, Some(flake)) => Some(Source::Flake(flake)),
            (None, None, None) if !recorded => {
                by_default = true;
                Some(Source::File("default.nix".into()))
            }
            (None, None, None) => None,
            _ => {
                return Err(refuse(
                    "of `file`, `expr` and `flake` only one can be given",
                ));
            }
        };
        if matches!(source, Some(Source::Flake(_))) {
            for (key, given) in [
                ("arg", !arg.is_empty()),
                ("argstr", !argstr.is_empty()),
                ("include", include.is_some()),
            ] {
                if given {
                    return Err(refuse(format_args!(
                        "`{key}` does not go with `flake`: a flake is evaluated purely"
                    )));
                }
            }
        }
        let arg = arg
            .into_iter()
            .map(|(name, expr)| (name, Argument::Expr(expr)));
        let argstr = argstr
            .into_iter()
            .map(|(name, string)| (name, Argument::String(string)));
        let evaluation = source.map(|source| Evaluation {
            source,
            attr: attr.unwrap_or_default(),
            arguments: arg.chain(argstr).collect(),
            include: include.unwrap_or_default(),
            folder: place.folder.clone(),
        });
        Ok((evaluation, by_default))
    }

    /// Holds a pipeline to what an agent with `no-command-eval` lets it choose: which of the things that are in the
    /// checkout is built, and how long that may take.
    fn check_confined(&self, place: &Place) -> Result<(), Failure> {
        let not_here = |what: &str| {
            refuse(format_args!(
                "{what} is not allowed on this agent, which runs only what is in the checkout"
            ))
            .hint("its operator has set no-command-eval")
        };
        if let OutLink::At(link) = &self.out_link {
            // The link itself is replaced, not followed.
            let Some(folder) = below(link.parent().unwrap_or(link), &place.folder) else {
                return Err(not_here("an `out-link` outside the checkout"));
            };
            let real = folder.join(link.file_name().unwrap_or_default());
            // What is put there is run by git or by the agent. (Some file systems do not tell `.GIT` from `.git`.)
            let run = |part: &OsStr| {
                [".git", ".buildkite"]
                    .iter()
                    .any(|name| part.eq_ignore_ascii_case(name))
            };
            if real.iter().any(run) {
                return Err(not_here("an `out-link` in .git or .buildkite"));
            }
        }
        if let Some((name, _)) = self
            .options
            .iter()
            .find(|(name, _)| !HARMLESS_OPTIONS.contains(&name.as_str()))
        {
            return Err(not_here(&format!("the option `{name}`")));
        }
        let Some(evaluation) = &self.evaluation else {
            return Ok(());
        };
        match &evaluation.source {
            Source::Expr(_) => return Err(not_here("`expr`")),
            Source::Flake(_) => return Err(not_here("`flake`")),
            Source::File(file) if is_url(file) => return Err(not_here("a URL as `file`")),
            Source::File(file)
                if file.starts_with('<') || !is_inside(&place.folder.join(file), &place.folder) =>
            {
                return Err(not_here("a `file` outside the checkout"));
            }
            // Of a folder Nix takes this file, which may be a link.
            Source::File(file)
                if !is_inside(&place.folder.join(file).join("default.nix"), &place.folder) =>
            {
                return Err(not_here("a `file` outside the checkout"));
            }
            Source::File(_) => {}
        }
        // A string under `arg` is an expression too. What is a number or a boolean is itself, and harmless.
        let is_data = |expr: &str| {
            serde_json::from_str::<Value>(expr).is_ok_and(|v| v.is_boolean() || v.is_number())
        };
        for (name, argument) in &evaluation.arguments {
            if matches!(argument, Argument::Expr(expr) if !is_data(expr)) {
                return Err(not_here(&format!("the Nix expression `arg.{name}`")));
            }
        }
        for entry in &evaluation.include {
            let path = entry
                .split_once('=')
                .map_or(entry.as_str(), |(_, path)| path);
            if is_url(path) || !is_inside(&place.folder.join(path), &place.folder) {
                return Err(not_here("an entry of `include` outside the checkout"));
            }
        }
        Ok(())
    }
}

fn out_link(text: &str, folder: &Path) -> Result<OutLink, String> {
    let link = without_dots(&folder.join(text));
    let named = !text.is_empty()
        && !text.ends_with('/')
        && !matches!(text.rsplit('/').next(), Some("." | ".."));
    match link.file_name() {
        Some(_) if named => Ok(OutLink::At(link)),
        _ => Err(format!("is no path of a link: {text:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Class;
    use serde_json::json;

    const DRV: &str = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-x.drv";

    fn place() -> Place {
        Place {
            folder: "/checkout".into(),
            confined: false,
            no_checkout: false,
        }
    }

    fn read(keys: &Value) -> Result<Request, Failure> {
        Request::read(keys.as_object().unwrap().clone(), &place())
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
            (json!({ "share": "file:///x" }), "`share`"),
            (json!({ "share-required": false }), "`share-required`"),
            (json!({ "push": "file:///x" }), "`push`"),
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
        let place = Place {
            folder: checkout.path().into(),
            confined: true,
            no_checkout: false,
        };
        let read = |keys: Value| Request::read(keys.as_object().unwrap().clone(), &place);
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
}
