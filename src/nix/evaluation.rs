//! What is evaluated: one attribute of one expression, and the arguments with which Nix's programs evaluate it.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use super::AttrPath;
use super::LockedFlake;
use super::attr_path::string_literal;
use crate::paths::without_dots;

const CALL: &str = include_str!("call.nix");
const SELECT: &str = include_str!("select.nix");
const WALK: &str = include_str!("walk.nix");

/// Where a Nix expression comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// As for `nix-build FILE`: a path, `<…>` on the search path, or the URL of an archive.
    File(String),
    /// A Nix expression.
    Expr(String),
    /// A flake reference, without a fragment.
    Flake(String),
}

/// The value of a function argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// A Nix expression (`--arg`).
    Expr(String),
    /// A string (`--argstr`).
    String(String),
}

/// One attribute of one expression, with everything that determines its `.drv`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evaluation {
    /// The expression.
    pub source: Source,
    /// The attribute.
    pub attr: AttrPath,
    /// Function arguments, in the order of their names.
    pub arguments: Vec<(String, Argument)>,
    /// Search path entries (`-I`), by precedence.
    pub include: Vec<String>,
    /// Whether to call a derivation that can be called (one with a `__functor`), as `nix-build -A` does. Nothing of a flake is
    /// called.
    pub call: bool,
    /// The folder that relative paths start from.
    pub folder: PathBuf,
}

/// Whether Nix fetches `file` instead of reading it as a path (`isUri` in its source).
#[must_use]
pub fn is_url(file: &str) -> bool {
    const SCHEMES: [&str; 7] = ["http", "https", "file", "channel", "git", "s3", "ssh"];
    file.starts_with("channel:")
        || file.starts_with("flake:")
        || file
            .split_once("://")
            .is_some_and(|(scheme, _)| SCHEMES.contains(&scheme))
}

/// What is evaluated, for a log: `a.b of ci.nix`.
impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.attr.names().is_empty() {
            write!(f, "{} of ", self.attr)?;
        }
        match &self.source {
            Source::File(file) => f.write_str(file),
            Source::Flake(flake) => write!(f, "flake {flake}"),
            Source::Expr(_) => f.write_str("the expression"),
        }
    }
}

impl Evaluation {
    /// The same evaluation as seen from a folder above this one, of which `folder` is the path to here; none where a relative path
    /// would need it and it is not UTF-8.
    #[must_use]
    pub fn from_above(&self, folder: &Path) -> Option<Self> {
        let shown = folder.to_string_lossy();
        let above = self.with_paths_below(&shown);
        (folder.to_str().is_some() || above == *self).then_some(above)
    }

    fn with_paths_below(&self, folder: &str) -> Self {
        let from_here = |path: &str| {
            let relative = !path.starts_with('/') && !is_url(path) && !is_on_search_path(path);
            relative.then(|| format!("{folder}/{path}"))
        };
        let source = match &self.source {
            Source::File(file) => Source::File(from_here(file).unwrap_or_else(|| file.clone())),
            // Only a reference that begins with a dot is a path for certain; another may be a name in the registry.
            Source::Flake(flake) if flake.starts_with('.') => {
                Source::Flake(format!("./{folder}/{flake}"))
            }
            other => other.clone(),
        };
        let include = |entry: &String| {
            let (name, path) = match entry.split_once('=') {
                Some((name, path)) => (format!("{name}="), path),
                None => (String::new(), entry.as_str()),
            };
            from_here(path).map_or_else(|| entry.clone(), |path| name + &path)
        };
        Self {
            source,
            include: self.include.iter().map(include).collect(),
            ..self.clone()
        }
    }

    /// What to do about this `error` of Nix, where that is known.
    #[must_use]
    pub fn hint_at(&self, error: &str) -> Option<String> {
        let of_flake = matches!(self.source, Source::Flake(_));
        let hint = if error.contains("requires lock file changes")
            || error.starts_with("cannot update unlocked flake input")
        {
            "run `nix flake lock` and commit flake.lock: without it, each evaluation could resolve other inputs"
        } else if error.contains("has unsupported parameter 'dir'") {
            "commit the changes, or use a later Nix: this one reads a flake in a subfolder only without uncommitted changes"
        } else if error.contains("is forbidden in restricted mode") && !of_flake {
            "add what the evaluation reads to `include` (`include: [.]` is the whole checkout): `restrict-eval` is set"
        } else if of_flake && error.starts_with("attribute '") {
            let name = match self.attr.names() {
                [name] => name.as_str(),
                _ => "default",
            };
            let full = ["packages", "x86_64-linux", name].map(str::to_owned);
            let full = AttrPath::new(full.to_vec());
            return Some(format!(
                "give the full path below the flake in `attr`: {full}"
            ));
        } else {
            return None;
        };
        Some(hint.to_owned())
    }

    /// The path of the file that has to exist for this to evaluate; none for other sources.
    #[must_use]
    pub fn needs_file(&self) -> Option<PathBuf> {
        match &self.source {
            Source::File(file) if !is_url(file) && !is_on_search_path(file) => {
                Some(without_dots(&self.folder.join(file)))
            }
            _ => None,
        }
    }

    /// The arguments with which `nix-instantiate` and `nix-build` evaluate this. `locked` is the locked flake; other sources ignore
    /// it.
    pub(super) fn arguments(&self, locked: Option<&LockedFlake>) -> Vec<OsString> {
        if !self.is_called() {
            let mut arguments = vec!["-E".into(), self.selected_uncalled(locked).into()];
            arguments.extend(self.context());
            return arguments;
        }
        let mut arguments: Vec<OsString> = Vec::new();
        let mut push = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
        match (&self.source, self.attr.as_selection()) {
            (Source::File(file), Some(selection)) => {
                // A name that begins with a dash would be an option.
                let dash = if file.starts_with('-') { "./" } else { "" };
                push(&[&format!("{dash}{file}")]);
                if !selection.is_empty() {
                    push(&["-A", &selection]);
                }
            }
            (_, Some(selection)) => {
                push(&["-E", &self.root(locked)]);
                if !selection.is_empty() {
                    push(&["-A", &selection]);
                }
            }
            (_, None) => push(&["-E", &self.selected(locked)]),
        }
        arguments.extend(self.context());
        arguments
    }

    /// The arguments that determine how an expression is evaluated.
    fn context(&self) -> Vec<OsString> {
        let mut arguments = self.purity();
        let mut push = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
        for (name, argument) in &self.arguments {
            match argument {
                Argument::Expr(expr) => push(&["--arg", name, expr]),
                Argument::String(string) => push(&["--argstr", name, string]),
            }
        }
        arguments.extend(self.search_path());
        arguments
    }

    /// A flake is evaluated purely.
    pub(super) fn purity(&self) -> Vec<OsString> {
        let arguments: &[&str] = if self.is_flake() {
            &[
                "--extra-experimental-features",
                "nix-command flakes",
                "--option",
                "pure-eval",
                "true",
            ]
        } else {
            &[]
        };
        arguments.iter().map(OsString::from).collect()
    }

    pub(super) fn search_path(&self) -> Vec<OsString> {
        let entries = self.include.iter();
        entries
            .flat_map(|entry| ["-I", entry].map(OsString::from))
            .collect()
    }

    /// Whether Nix may call the attribute, whatever it is.
    fn is_called(&self) -> bool {
        self.call && !self.is_flake()
    }

    /// Whether a flake is evaluated.
    #[must_use]
    pub fn is_flake(&self) -> bool {
        matches!(self.source, Source::Flake(_))
    }

    /// An expression for the attribute.
    fn selected(&self, locked: Option<&LockedFlake>) -> String {
        let names = self.attr.names();
        if self.is_flake() && !names.iter().any(|name| name.parse::<u64>().is_ok()) {
            // Nix's own selection suggests similar names where one is missing.
            let names = names
                .iter()
                .map(|name| format!(".{}", string_literal(name)));
            return format!("({}){}", self.root(locked), names.collect::<String>());
        }
        self.applied(&format!("nix: root: names: {}", self.selection()), locked)
    }

    /// An expression for a set that holds only the attribute. `nix-instantiate` calls the value of an expression, and a marked set
    /// in it, but nothing else in a set.
    fn selected_uncalled(&self, locked: Option<&LockedFlake>) -> String {
        // With `false` Nix does not walk it: a step is of one derivation. But a mark that is not a Boolean, or throws, fails with the
        // message that Nix gives where it walks the set that this attribute is in.
        let alone = |value: String| {
            format!(
                "{{ derivation = let value = {value}; in value // {{ recurseForDerivations = value.recurseForDerivations or false && false; }}; }}"
            )
        };
        if self.is_flake() {
            return alone(self.selected(locked));
        }
        let function = format!("nix: root: names: {}", alone(self.selection()));
        self.applied(&function, locked)
    }

    /// An expression for the attribute `names` of `root`, called where it may be.
    fn selection(&self) -> String {
        let value = format!("(({}) nix.call root names)", in_one_line(SELECT));
        if self.is_called() {
            format!("nix.call {value}")
        } else {
            value
        }
    }

    /// An expression that applies `function` to Nix's way of calling (`{ call, given, calls }`: the function that calls, the automatic
    /// arguments, and whether anything is called at all), to the root, and to the names of the attribute path.
    ///
    /// The expression is a function, which Nix calls with the automatic arguments; but `nix-instantiate --eval` calls it only where
    /// there are any (measured).
    fn applied(&self, function: &str, locked: Option<&LockedFlake>) -> String {
        self.applied_to(function, None, locked)
    }

    /// The same for these `arguments` instead of the automatic ones.
    fn applied_to(
        &self,
        function: &str,
        arguments: Option<&str>,
        locked: Option<&LockedFlake>,
    ) -> String {
        let names: Vec<String> = self
            .attr
            .names()
            .iter()
            .map(|name| string_literal(name))
            .collect();
        let (called, given) = match (self.arguments.as_slice(), arguments) {
            ([], _) => ("", "{ }"),
            (_, None) => ("{ ... }@arguments: ", "arguments"),
            (_, Some(_)) => ("arguments: ", "arguments"),
        };
        // `nix build FLAKE#a` calls nothing, not even functors.
        let (call, calls) = if self.is_flake() {
            ("arguments: value: value", "false")
        } else {
            (&*in_one_line(CALL), "true")
        };
        let arguments = arguments.filter(|_| !self.arguments.is_empty());
        // On lines of their own: the expression may end in a comment.
        format!(
            "(function: call: root: names: {called}function {{ call = call {given}; given = {given}; calls = {calls}; }} root names) \
             ({function}\n) ({call}) (\n{}\n) [ {} ] {}",
            self.root(locked),
            names.join(" "),
            arguments.unwrap_or_default()
        )
        .trim_end()
        .to_owned()
    }

    /// The arguments with which `nix-instantiate --eval` prints the value itself.
    pub(super) fn showing(&self, locked: Option<&LockedFlake>) -> Vec<OsString> {
        if self.is_called() {
            return self.arguments(locked);
        }
        let mut arguments = vec!["-E".into(), self.selected(locked).into()];
        arguments.extend(self.context());
        arguments
    }

    /// The arguments with which `nix-instantiate --eval` prints whether this evaluates without throwing: `tryEval` catches what the
    /// expression throws, and no error of the system.
    pub(super) fn catching(&self, locked: Option<&LockedFlake>) -> Vec<OsString> {
        // The attribute may be a function, which Nix calls: it may throw then as well.
        let call = if self.is_called() { "nix.call" } else { "" };
        let caught = format!(
            "nix: root: names: (builtins.tryEval (let value = {call} (({SELECT}) nix.call root names); in builtins.seq (value.drvPath or value) null)).success"
        );
        let mut arguments: Vec<OsString> = vec!["-E".into(), self.applied(&caught, locked).into()];
        arguments.extend(self.context());
        arguments
    }

    /// An expression for the function that walks the targets below this, one task after the other: `walk.nix` with these `settings`,
    /// in JSON. It holds the function arguments. Its lines stay as they are: Nix shows them in messages, and many times in some.
    pub(super) fn walking(&self, settings: &str, locked: Option<&LockedFlake>) -> String {
        let walk = format!(
            "nix: root: names: (\n{WALK}\n) (builtins.fromJSON {}) nix ((\n{SELECT}\n) nix.call root names)",
            string_literal(settings)
        );
        self.applied_to(&walk, Some(&self.argument_set()), locked)
    }

    /// The function arguments as a set. An expression stands on lines of its own, because it may end in a comment.
    fn argument_set(&self) -> String {
        let arguments = self.arguments.iter().map(|(name, argument)| {
            let name = string_literal(name);
            match argument {
                Argument::Expr(expr) => format!("{name} = (\n{expr}\n);"),
                Argument::String(string) => format!("{name} = {};", string_literal(string)),
            }
        });
        format!("{{ {} }}", arguments.collect::<String>())
    }

    /// The arguments with which `nix-eval-jobs` evaluates what is below this: always an expression, because it takes no attribute
    /// path.
    pub(super) fn selecting(&self, locked: Option<&LockedFlake>) -> Vec<OsString> {
        let mut arguments = vec!["--expr".into(), self.selected(locked).into()];
        arguments.extend(self.context());
        arguments
    }

    /// An expression for the root, which the attribute path starts from.
    fn root(&self, locked: Option<&LockedFlake>) -> String {
        match &self.source {
            // A leading dash would be an option.
            Source::Expr(expr) if expr.starts_with('-') => format!(" {expr}"),
            Source::Expr(expr) => expr.clone(),
            Source::Flake(flake) => match locked {
                Some(locked) => locked.outputs(),
                None => LockedFlake::shown_as(flake).outputs(),
            },
            Source::File(file) if is_url(file) => {
                format!("import (builtins.fetchTarball {})", string_literal(file))
            }
            Source::File(file) if is_on_search_path(file) => {
                let name = &file[1..file.len() - 1];
                format!(
                    "import (builtins.findFile builtins.nixPath {})",
                    string_literal(name)
                )
            }
            Source::File(file) if file.starts_with('/') => {
                format!("import {}", string_literal(file))
            }
            // Relative to the folder that Nix runs in: its name need not be UTF-8, and this text must.
            Source::File(file) => format!("import (./. + {})", string_literal(&format!("/{file}"))),
        }
    }
}

/// An expression of ours in one line, without its comments, for a command that is shown.
fn in_one_line(expression: &str) -> String {
    let lines = expression.lines().map(str::trim);
    let code: Vec<&str> = lines.filter(|line| !line.starts_with('#')).collect();
    code.join(" ").trim().to_owned()
}

fn is_on_search_path(file: &str) -> bool {
    file.len() > 2 && file.starts_with('<') && file.ends_with('>')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(source: Source, names: &[&str]) -> Evaluation {
        Evaluation {
            source,
            attr: AttrPath::new(names.iter().map(ToString::to_string).collect()),
            arguments: vec![
                ("n".into(), Argument::Expr("1 + 1".into())),
                ("s".into(), Argument::String("two".into())),
            ],
            include: vec!["lib=./lib".into()],
            call: true,
            folder: "/checkout".into(),
        }
    }

    #[test]
    fn a_path_that_nix_can_write_is_passed_as_it_is() {
        let arguments = evaluation(Source::File("ci.nix".into()), &["a", "b.c"]).arguments(None);
        assert_eq!(
            arguments,
            [
                "ci.nix",
                "-A",
                "a.\"b.c\"",
                "--arg",
                "n",
                "1 + 1",
                "--argstr",
                "s",
                "two",
                "-I",
                "lib=./lib"
            ]
        );
        let root = evaluation(Source::Expr("import ./x".into()), &[]).arguments(None);
        assert_eq!(root[..3], ["-E", "import ./x", "--arg"]);
        assert_eq!(
            evaluation(Source::File("-x.nix".into()), &[]).arguments(None)[0],
            "./-x.nix"
        );
    }

    #[test]
    fn the_hint_at_a_short_attribute_of_a_flake_names_that_attribute() {
        let hint = |names: &[&str]| {
            let flake = evaluation(Source::Flake(".".into()), names);
            flake.hint_at("attribute 'hello' missing").unwrap()
        };
        assert!(hint(&["hello"]).ends_with(": packages.x86_64-linux.hello"));
        assert!(hint(&["a.b"]).ends_with(": packages.x86_64-linux.\"a.b\""));
        assert!(hint(&["packages", "x"]).ends_with(": packages.x86_64-linux.default"));
        let file = evaluation(Source::File("ci.nix".into()), &["hello"]);
        assert_eq!(file.hint_at("attribute 'hello' missing"), None);
    }

    #[test]
    fn a_path_that_nix_cannot_write_is_passed_as_strings() {
        let arguments =
            evaluation(Source::File("ci.nix".into()), &["a", "\"${x}\n"]).arguments(None);
        let expr = arguments[1].to_str().unwrap();
        assert!(expr.contains("import (./. + \"/ci.nix\")"), "{expr}");
        assert!(expr.ends_with(r#"[ "a" "\"\${x}\n" ]"#), "{expr}");
    }

    #[test]
    fn relative_paths_can_be_written_from_a_folder_above() {
        let moved = |source| {
            evaluation(source, &[])
                .from_above(Path::new("sub/dir"))
                .unwrap()
        };
        let file = |name: &str| Source::File(name.into());
        assert_eq!(moved(file("ci.nix")).source, file("sub/dir/ci.nix"));
        assert_eq!(moved(file("../ci.nix")).source, file("sub/dir/../ci.nix"));
        for same in ["/ci.nix", "<nixpkgs>", "https://h/x.tar.gz"] {
            assert_eq!(moved(file(same)).source, file(same));
        }
        let flake = |name: &str| Source::Flake(name.into());
        assert_eq!(moved(flake(".")).source, flake("./sub/dir/."));
        assert_eq!(moved(flake("nixpkgs")).source, flake("nixpkgs"));
        assert_eq!(moved(flake(".")).include, ["lib=sub/dir/./lib"]);
    }

    #[test]
    fn only_what_nix_would_fetch_is_a_url() {
        for url in [
            "https://example.org/x.tar.gz",
            "channel:nixos-unstable",
            "file:///x.tar.gz",
        ] {
            assert!(is_url(url), "{url}");
        }
        for path in ["ci.nix", "./a://b", "<nixpkgs>", "/x"] {
            assert!(!is_url(path), "{path}");
        }
    }
}
