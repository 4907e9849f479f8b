//! The keys that say what is evaluated, and how: the same in a step and in a recording.

use serde_json::Value;

use std::path::PathBuf;

use crate::exit::{Class, Failure};
use crate::keys::{KeyReader, not_here, refuse, scalar, string};
use crate::nix::{Argument, AttrPath, Evaluation, Source, is_url};
use crate::paths::is_inside;

/// Where a step or a recording runs, as far as its keys depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkout {
    /// The folder in which relative paths start: the checkout in a hook, the current folder by hand.
    pub folder: PathBuf,
    /// This is a hook of an agent that does not let pipelines choose what is run (`BUILDKITE_COMMAND_EVAL=false`).
    pub confined: bool,
    /// The checkout was skipped, or its folder is empty. By hand the current folder counts as the checkout.
    pub no_checkout: bool,
}

/// The settings that a pipeline may choose on an agent that lets it choose nothing else.
const HARMLESS_OPTIONS: [&str; 5] = [
    "timeout",
    "max-silent-time",
    "cores",
    "max-jobs",
    "keep-going",
];

/// Reads what to evaluate, if anything; and whether that is a `default.nix` only because nothing is named.
pub(crate) fn read(
    reader: &mut KeyReader,
    place: &Checkout,
    recorded: bool,
) -> Result<(Option<Evaluation>, bool), Failure> {
    let file = reader.string("file")?;
    let expr = reader.string("expr")?;
    let flake = reader.take("flake", "a flake reference", |value| {
        let text = string(value).filter(|text| !text.is_empty())?;
        Some(if text.contains('#') {
            Err(
                "contains a `#`: the attribute path below the flake goes into `attr`, in full"
                    .into(),
            )
        } else if text.starts_with('-') {
            Err(format!("is not a flake reference: {text:?}"))
        } else {
            Ok(text)
        })
    })?;
    let attr = read_attr(reader, "attr")?;
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
            "`arg.{name}` and `argstr.{name}` set the same argument: remove one of them"
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
            return Err(refuse("only one of `file`, `expr` and `flake` is allowed"));
        }
    };
    if matches!(source, Some(Source::Flake(_))) {
        for (key, is_set) in [
            ("arg", !arg.is_empty()),
            ("argstr", !argstr.is_empty()),
            ("include", include.is_some()),
        ] {
            if is_set {
                return Err(refuse(format_args!(
                    "`{key}` cannot be combined with `flake`: a flake is evaluated purely"
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
        call: true,
        folder: place.folder.clone(),
    });
    Ok((evaluation, by_default))
}

/// Reads the attribute path under `key`, if there is one.
///
/// # Errors
/// It is none (64).
pub(crate) fn read_attr(
    reader: &mut KeyReader,
    key: &'static str,
) -> Result<Option<AttrPath>, Failure> {
    reader.take(
        key,
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
    )
}

/// Reads Nix settings, in the order of their names.
///
/// # Errors
/// One of them is no setting's value (64).
pub(crate) fn read_options(reader: &mut KeyReader) -> Result<Vec<(String, String)>, Failure> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    let options = reader.map(
        "options",
        "a string, a number or a boolean",
        |name, value| {
            if name.is_empty() || !name.chars().all(is_of_name) {
                return Some(Err("is not the name of a Nix setting".into()));
            }
            scalar(value)
        },
    )?;
    Ok(options.into_iter().collect())
}

/// Refuses what a pipeline may not choose on an agent with `no-command-eval`: anything but which file of the checkout is
/// evaluated, and how long a build may take.
///
/// # Errors
/// It chooses more (64).
pub(crate) fn check_confined(
    evaluation: Option<&Evaluation>,
    options: &[(String, String)],
    place: &Checkout,
) -> Result<(), Failure> {
    if let Some((name, _)) = options
        .iter()
        .find(|(name, _)| !HARMLESS_OPTIONS.contains(&name.as_str()))
    {
        return Err(not_here(&format!("the option `{name}`")));
    }
    let Some(evaluation) = evaluation else {
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
        // For a folder Nix evaluates this file, which may be a link.
        Source::File(file)
            if !is_inside(&place.folder.join(file).join("default.nix"), &place.folder) =>
        {
            return Err(not_here("a `file` outside the checkout"));
        }
        Source::File(_) => {}
    }
    // A string under `arg` is a Nix expression. A number or a boolean is itself, and harmless.
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

/// Looks whether the file to evaluate exists, where it is one.
///
/// # Errors
/// It does not (65); or this job has no checkout (75); or it is only the default (64).
pub(crate) fn check_file(
    evaluation: &Evaluation,
    by_default: bool,
    place: &Checkout,
) -> Result<(), Failure> {
    let Some(file) = evaluation.needs_file().filter(|file| !file.exists()) else {
        return Ok(());
    };
    let message = format!("{} does not exist", file.display());
    Err(if by_default {
        refuse(format_args!("{message}, and nothing else is named"))
            .hint("set `file`, `expr` or `flake`")
    } else if place.no_checkout {
        Failure::new(Class::Infrastructure, format_args!("{message}: this job has no checkout"))
            .hint("let the job check out its repository; or record again, so that nothing has to be evaluated")
    } else {
        Failure::new(Class::Evaluation, message)
            .called("cannot be evaluated")
            .meaning("The file is not in this checkout; retrying cannot help.")
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    fn read_keys(
        keys: &Value,
        place: &Checkout,
        recorded: bool,
    ) -> Result<(Option<Evaluation>, bool), Failure> {
        let mut reader = KeyReader::new(keys.as_object().unwrap().clone()).unwrap();
        read(&mut reader, place, recorded)
    }

    /// A checkout with a file and a folder, and links out of it.
    fn checkout() -> (TempDir, Checkout) {
        let outer = TempDir::new().unwrap();
        let folder = outer.path().join("checkout");
        std::fs::create_dir_all(folder.join("pkgs")).unwrap();
        std::fs::write(folder.join("ci.nix"), "").unwrap();
        symlink("/", folder.join("out")).unwrap();
        std::fs::create_dir(folder.join("disguised")).unwrap();
        symlink("/etc/x.nix", folder.join("disguised/default.nix")).unwrap();
        let checkout = Checkout {
            folder,
            confined: true,
            no_checkout: false,
        };
        (outer, checkout)
    }

    #[test]
    fn default_nix_is_evaluated_only_where_nothing_is_named_or_recorded() {
        let (_outer, place) = checkout();
        let source = |keys, recorded| {
            let (evaluation, by_default) = read_keys(&keys, &place, recorded).unwrap();
            (evaluation.map(|evaluation| evaluation.source), by_default)
        };
        let default = Source::File("default.nix".into());
        assert_eq!(source(json!({}), false), (Some(default), true));
        assert_eq!(source(json!({}), true), (None, false));
        let named = Source::Expr("x".into());
        assert_eq!(source(json!({ "expr": "x" }), false), (Some(named), false));
    }

    #[test]
    fn keys_that_contradict_one_another_are_refused() {
        let (_outer, place) = checkout();
        for (keys, named) in [
            (json!({ "file": "a.nix", "expr": "x" }), "only one of"),
            (json!({ "expr": "x", "flake": "." }), "only one of"),
            (
                json!({ "file": "a.nix", "arg": { "x": 1, "y": 2 }, "argstr": { "y": "2" } }),
                "`arg.y` and `argstr.y`",
            ),
            (json!({ "flake": ".", "arg": { "x": 1 } }), "`arg`"),
            (json!({ "flake": ".", "argstr": { "x": "1" } }), "`argstr`"),
            (json!({ "flake": ".", "include": [] }), "`include`"),
            (json!({ "flake": ".#a" }), "goes into `attr`"),
            (json!({ "flake": "--impure" }), "not a flake reference"),
        ] {
            let failure = read_keys(&keys, &place, false).unwrap_err();
            assert_eq!(failure.class, Class::Config, "{keys}");
            assert!(failure.to_string().contains(named), "{failure}");
        }
    }

    #[test]
    fn a_confined_step_evaluates_a_file_of_the_checkout_with_data_as_arguments() {
        let (_outer, place) = checkout();
        let check = |keys: &Value| {
            let (evaluation, _) = read_keys(keys, &place, true).unwrap();
            check_confined(evaluation.as_ref(), &[], &place)
        };
        for allowed in [
            json!({}),
            json!({ "file": "ci.nix", "attr": "a" }),
            json!({ "file": "pkgs" }),
            json!({ "file": "pkgs/../ci.nix" }),
            json!({ "file": "ci.nix", "arg": { "n": 5, "yes": true, "text": "0.5" } }),
            json!({ "file": "ci.nix", "argstr": { "text": "import /etc/x.nix" } }),
            json!({ "file": "ci.nix", "include": ["pkgs", "name=pkgs"] }),
        ] {
            let checked = check(&allowed);
            assert!(checked.is_ok(), "{allowed}: {}", checked.unwrap_err());
        }
        for (keys, named) in [
            (json!({ "expr": "1" }), "`expr`"),
            (json!({ "flake": "." }), "`flake`"),
            (json!({ "file": "https://x/a.tar.gz" }), "a URL"),
            (json!({ "file": "<nixpkgs>" }), "`file` outside"),
            (json!({ "file": "/etc/x.nix" }), "`file` outside"),
            (json!({ "file": "../x.nix" }), "`file` outside"),
            (json!({ "file": "out/etc/x.nix" }), "`file` outside"),
            (json!({ "file": "disguised" }), "`file` outside"),
            (
                json!({ "file": "ci.nix", "arg": { "ok": 1, "bad": "import /etc/x.nix" } }),
                "`arg.bad`",
            ),
            (
                json!({ "file": "ci.nix", "arg": { "bad": "[ 1 ]" } }),
                "`arg.bad`",
            ),
            (
                json!({ "file": "ci.nix", "include": ["pkgs", "/etc"] }),
                "`include`",
            ),
            (
                json!({ "file": "ci.nix", "include": ["pkgs=out"] }),
                "`include`",
            ),
            (
                json!({ "file": "ci.nix", "include": ["x=https://x"] }),
                "`include`",
            ),
        ] {
            let failure = check(&keys).unwrap_err();
            assert_eq!(failure.class, Class::Config, "{keys}");
            assert!(failure.to_string().contains(named), "{keys}: {failure}");
        }
    }

    #[test]
    fn a_confined_step_chooses_only_how_long_and_how_wide_nix_builds() {
        let (_outer, place) = checkout();
        let check = |name: &str| {
            let options = ["timeout", name].map(|name| (name.to_owned(), "1".to_owned()));
            check_confined(None, &options, &place).map_err(|failure| failure.to_string())
        };
        assert_eq!(check("cores"), Ok(()));
        let refused = check("post-build-hook").unwrap_err();
        assert!(refused.contains("`post-build-hook`"), "{refused}");
    }

    #[test]
    fn a_missing_file_is_blamed_on_the_default_the_checkout_or_the_expression() {
        let (_outer, place) = checkout();
        let class = |file: &str, by_default, no_checkout| {
            let (evaluation, _) = read_keys(&json!({ "file": file }), &place, false).unwrap();
            let place = Checkout {
                no_checkout,
                ..place.clone()
            };
            check_file(&evaluation.unwrap(), by_default, &place).map_err(|failure| failure.class)
        };
        assert_eq!(class("ci.nix", false, false), Ok(()));
        assert_eq!(class("https://x/a.tar.gz", false, true), Ok(()));
        assert_eq!(class("gone.nix", false, false), Err(Class::Evaluation));
        assert_eq!(class("gone.nix", false, true), Err(Class::Infrastructure));
        assert_eq!(class("gone.nix", true, true), Err(Class::Config));
    }
}
