//! The program's source as data: its modules, what they mention of one another, the types they declare, the strings in them.
//!
//! It reads tokens, so comments are no source, and what a macro is given is. It knows as much of the language as it takes to
//! follow an import: `use` with its groups and renames, `crate`, `self`, `super`, and names that a module imports for others.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    iter::Peekable,
    path::Path,
    slice,
    sync::LazyLock,
};

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// A module or an item by its names, with what it is found in first: `["step", "run", "StepRun"]`. The crate itself is `[]`.
pub(crate) type Names = Vec<String>;

/// The program's own.
pub(crate) static SOURCE: LazyLock<Source> = LazyLock::new(Source::read);

/// All files of `src`.
pub(crate) struct Source {
    pub(crate) files: Vec<SourceFile>,
    /// Each module that has a file, with the index of that file.
    modules: BTreeMap<Names, usize>,
}

/// One file, which is one module, with the modules in it that have no file of their own.
pub(crate) struct SourceFile {
    /// Below `src`: `step/run.rs`.
    pub(crate) path: String,
    pub(crate) module: Names,
    pub(crate) mentions: Vec<Mention>,
    pub(crate) types: Vec<Declared>,
    pub(crate) strings: Vec<Text>,
    /// Names that a `use` brings into a module, with what they are.
    imports: BTreeMap<(Names, String), Target>,
    /// Modules whose files are tests: `#[cfg(test)] mod tests;`.
    test_modules: BTreeSet<Names>,
}

/// A type, by its name.
pub(crate) struct Declared {
    pub(crate) name: String,
    pub(crate) line: usize,
    pub(crate) test: bool,
}

/// A string literal.
pub(crate) struct Text {
    pub(crate) value: String,
    /// The function or constant that it stands in; empty outside one.
    pub(crate) item: String,
    /// Whether something is compared with it: it is a pattern, or what another text is searched for.
    pub(crate) is_sought: bool,
    pub(crate) test: bool,
}

/// A path in the source: `crate::nix::command`, `io::stderr`.
pub(crate) struct Mention {
    pub(crate) line: usize,
    pub(crate) test: bool,
    /// Whether it is a `use`, so that something else has to mention it before anything happens.
    pub(crate) is_import: bool,
    pub(crate) path: Target,
}

/// What a path leads to, once `self`, `super` and imported names are replaced by what they stand for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    /// In this crate.
    Ours(Names),
    /// In another crate, whose name comes first: `["std", "io", "stderr"]`. Or a type's associated item, or a variant.
    Other(Names),
}

impl Source {
    /// Reads the program's source.
    fn read() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut files = Vec::new();
        collect(&folder, &folder, &mut files);
        files.sort();
        let texts: Vec<_> = files
            .iter()
            .map(|(a, b)| (a.as_str(), b.as_str()))
            .collect();
        Self::of(&texts)
    }

    /// Reads files that are given as their paths below `src` and their texts.
    pub(crate) fn of(texts: &[(&str, &str)]) -> Self {
        let modules: BTreeMap<Names, usize> = (texts.iter().map(|(path, _)| module_of(path)))
            .zip(0..)
            .collect();
        let files = texts.iter().map(|(path, text)| {
            let tokens: TokenStream = text
                .parse()
                .unwrap_or_else(|error| panic!("src/{path}: {error}"));
            let mut file = SourceFile {
                path: (*path).to_owned(),
                module: module_of(path),
                mentions: Vec::new(),
                types: Vec::new(),
                strings: Vec::new(),
                imports: BTreeMap::new(),
                test_modules: BTreeSet::new(),
            };
            let place = Place {
                module: file.module.clone(),
                item: String::new(),
                test: false,
                items: true,
                sought: false,
            };
            // Imports first: a path may stand above the import that it begins with.
            Reader {
                file: &mut file,
                modules: &modules,
                imports: true,
            }
            .read(tokens.clone(), &place);
            Reader {
                file: &mut file,
                modules: &modules,
                imports: false,
            }
            .read(tokens, &place);
            file
        });
        let mut files: Vec<_> = files.collect();
        let for_tests: BTreeSet<Names> = files
            .iter()
            .flat_map(|file| file.test_modules.clone())
            .collect();
        for file in &mut files {
            if for_tests.contains(&file.module) {
                file.mentions.iter_mut().for_each(|it| it.test = true);
                file.types.iter_mut().for_each(|it| it.test = true);
                file.strings.iter_mut().for_each(|it| it.test = true);
            }
        }
        Self { files, modules }
    }

    /// The module in which the named thing is declared, through the modules that import it for others, and its name there;
    /// no name where it is that module itself.
    pub(crate) fn find(&self, names: &[String]) -> Option<(&SourceFile, Option<String>)> {
        let mut names = names.to_vec();
        for _ in 0..16 {
            let depth = (0..=names.len())
                .rev()
                .find(|depth| self.modules.contains_key(&names[..*depth]))?;
            let file = &self.files[self.modules[&names[..depth]]];
            let Some(name) = names.get(depth) else {
                return Some((file, None));
            };
            match file.imports.get(&(file.module.clone(), name.clone())) {
                Some(Target::Ours(path)) => names = [&path[..], &names[depth + 1..]].concat(),
                _ => return Some((file, Some(name.clone()))),
            }
        }
        None
    }
}

fn collect(folder: &Path, root: &Path, files: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, root, files);
        } else if path.extension().is_some_and(|it| it == "rs") {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            files.push((name.to_owned(), fs::read_to_string(&path).unwrap()));
        }
    }
}

/// `step/run.rs` is `["step", "run"]`, `step/mod.rs` is `["step"]`, `lib.rs` is the crate. `main.rs` is a crate of its own,
/// and treated as a module of this one that imports what it pleases.
fn module_of(path: &str) -> Names {
    let names = path.strip_suffix(".rs").unwrap();
    let names = names.strip_suffix("/mod").unwrap_or(names);
    match names {
        "lib" => Names::new(),
        _ => names.split('/').map(str::to_owned).collect(),
    }
}

/// Where in a file the reader is.
#[derive(Clone)]
struct Place {
    module: Names,
    /// The function or constant.
    item: String,
    /// Below `#[cfg(test)]`.
    test: bool,
    /// Whether a module's items stand here, not the inside of one.
    items: bool,
    /// Whether strings here are what a text is searched for.
    sought: bool,
}

struct Reader<'a> {
    file: &'a mut SourceFile,
    modules: &'a BTreeMap<Names, usize>,
    /// Whether it is the first time through, which only collects imports.
    imports: bool,
}

impl Reader<'_> {
    fn read(&mut self, tokens: TokenStream, place: &Place) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        // Where the next token is: an attribute or a name counts until its item ends.
        let mut here = place.clone();
        let mut i = 0;
        while i < tokens.len() {
            if let Some((attribute, length)) = attribute(&tokens[i..]) {
                here.test |= is_cfg_test(attribute);
                self.read_attribute(attribute.stream(), &here);
                i += length;
                continue;
            }
            match &tokens[i] {
                TokenTree::Ident(keyword) if keyword == "use" => {
                    let length = tokens[i..].iter().position(|it| is(it, ';')).unwrap();
                    let line = keyword.span().start().line;
                    self.read_use(&tokens[i + 1..i + length], &[], line, &here);
                    i += length;
                    continue;
                }
                TokenTree::Ident(keyword) if keyword == "mod" && place.items => {
                    let mut module = place.module.clone();
                    module.push(tokens[i + 1].to_string());
                    if let TokenTree::Group(body) = &tokens[i + 2] {
                        self.read(body.stream(), &Place { module, ..here });
                    } else if here.test {
                        self.file.test_modules.insert(module);
                    }
                    here = place.clone();
                    i += 3;
                    continue;
                }
                TokenTree::Ident(name) => {
                    let (path, length) = path(&tokens[i..]);
                    let line = name.span().start().line;
                    if let [keyword] = &path[..]
                        && let Some(TokenTree::Ident(name)) = tokens.get(i + 1)
                    {
                        self.declare(keyword, name.to_string(), line, &mut here);
                    }
                    if path.len() > 1 {
                        self.mention(self.resolve(&path, &place.module), line, &here);
                    } else if tokens.get(i + 1).is_some_and(|it| is(it, '!')) {
                        self.mention(Target::Other(path), line, &here);
                    }
                    i += length;
                    continue;
                }
                TokenTree::Group(group) => {
                    let sought = is_searched_for(&tokens, i, place.sought);
                    let inside = Place {
                        items: false,
                        sought,
                        ..here.clone()
                    };
                    self.read(group.stream(), &inside);
                    if group.delimiter() == Delimiter::Brace {
                        here = place.clone();
                    }
                }
                TokenTree::Literal(literal) if !self.imports => {
                    if let Some(value) = string(&literal.to_string()) {
                        self.file.strings.push(Text {
                            value,
                            item: here.item.clone(),
                            is_sought: place.sought || is_compared(&tokens, i),
                            test: here.test,
                        });
                    }
                }
                // A comma in a function's signature does not end it.
                end if is(end, ';') || is(end, ',') && !place.items && here.item == place.item => {
                    here = place.clone();
                }
                _ => {}
            }
            i += 1;
        }
    }

    /// Notes what a keyword and the name behind it declare.
    fn declare(&mut self, keyword: &str, name: String, line: usize, here: &mut Place) {
        match keyword {
            "fn" => here.item = name,
            "const" | "static" if name.len() > 1 && !name.contains(char::is_lowercase) => {
                here.item = name;
            }
            "struct" | "enum" | "trait" | "type" | "union" if here.items && !self.imports => {
                self.file.types.push(Declared {
                    name,
                    line,
                    test: here.test,
                });
            }
            _ => {}
        }
    }

    /// Reads what an attribute mentions; its strings are for the compiler, or for a macro.
    fn read_attribute(&mut self, tokens: TokenStream, place: &Place) {
        let before = self.file.strings.len();
        self.read(
            tokens,
            &Place {
                items: false,
                ..place.clone()
            },
        );
        self.file.strings.truncate(before);
    }

    /// Reads what follows a `use`, or a part of it that stands in braces behind `prefix`.
    fn read_use(&mut self, tokens: &[TokenTree], prefix: &[String], line: usize, place: &Place) {
        let mut names = prefix.to_vec();
        let mut alias = None;
        let mut tokens = tokens.iter().peekable();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Group(group) => {
                    let inner: Vec<_> = group.stream().into_iter().collect();
                    for part in inner.split(|it| is(it, ',')).filter(|it| !it.is_empty()) {
                        let line = part[0].span().start().line;
                        self.read_use(part, &names, line, place);
                    }
                    return;
                }
                TokenTree::Ident(name) if name == "as" => {
                    alias = tokens.next().map(ToString::to_string);
                }
                TokenTree::Ident(name) if name == "self" && !names.is_empty() => {}
                TokenTree::Ident(name) => names.push(name.to_string()),
                _ => {}
            }
        }
        let path = self.resolve(&names, &place.module);
        if self.imports {
            let name = alias.or_else(|| names.last().cloned()).unwrap_or_default();
            self.file.imports.insert((place.module.clone(), name), path);
        } else {
            self.file.mentions.push(Mention {
                line,
                test: place.test,
                is_import: true,
                path,
            });
        }
    }

    fn mention(&mut self, path: Target, line: usize, place: &Place) {
        if !self.imports {
            let (test, is_import) = (place.test, false);
            self.file.mentions.push(Mention {
                line,
                test,
                is_import,
                path,
            });
        }
    }

    fn resolve(&self, path: &[String], module: &[String]) -> Target {
        let mut module = module.to_vec();
        let mut rest = path;
        let mut ours = false;
        while let [first, after @ ..] = rest {
            match first.as_str() {
                "crate" | "eval_once" => module.clear(),
                "self" => {}
                "super" => drop(module.pop()),
                _ => break,
            }
            ours = true;
            rest = after;
        }
        if ours {
            return Target::Ours([&module[..], rest].concat());
        }
        let Some((first, after)) = rest.split_first() else {
            return Target::Other(Names::new());
        };
        // A module in a file sees what the file imports by `use super::*`.
        let imported = [&module, &self.file.module]
            .into_iter()
            .find_map(|module| self.file.imports.get(&(module.clone(), first.clone())));
        match imported {
            Some(Target::Ours(names)) => return Target::Ours([names, after].concat()),
            // `use std;` would be its own import.
            Some(Target::Other(names)) if names != slice::from_ref(first) => {
                return Target::Other([names, after].concat());
            }
            _ => {}
        }
        let child = [&module[..], slice::from_ref(first)].concat();
        if self.modules.contains_key(&child) {
            return Target::Ours([&child[..], after].concat());
        }
        Target::Other(rest.to_vec())
    }
}

/// What looks for a text in another one.
const SEARCHES: [&str; 14] = [
    "contains",
    "ends_with",
    "find",
    "matches",
    "rfind",
    "rsplit_once",
    "split",
    "split_once",
    "starts_with",
    "strip_prefix",
    "strip_suffix",
    "trim_end_matches",
    "trim_matches",
    "trim_start_matches",
];

/// Whether strings directly in the group are searched for: `.contains("…")`, `["…", "…"].iter().any(…)`.
fn is_searched_for(tokens: &[TokenTree], group: usize, outside: bool) -> bool {
    let TokenTree::Group(this) = &tokens[group] else {
        return false;
    };
    let is_named = |token: Option<&TokenTree>, names: &[&str]| {
        token.is_some_and(|it| names.contains(&it.to_string().as_str()))
    };
    let before = |back: usize| group.checked_sub(back).and_then(|i| tokens.get(i));
    match this.delimiter() {
        Delimiter::Parenthesis => {
            before(2).is_some_and(|it| is(it, '.')) && is_named(before(1), &SEARCHES)
        }
        Delimiter::Bracket => {
            let after = &tokens[group + 1..];
            let method = if is_named(after.get(1), &["iter", "into_iter"]) {
                after.get(4)
            } else {
                after.get(1)
            };
            outside || is_named(method, &["any", "contains", "find", "find_map", "position"])
        }
        _ => false,
    }
}

/// Whether the token is a pattern of a `match`, or a side of `==`.
fn is_compared(tokens: &[TokenTree], i: usize) -> bool {
    let pair = |at: Option<usize>, first: char, second: char| {
        let pair = at.and_then(|at| tokens.get(at..at + 2));
        pair.is_some_and(|pair| is(&pair[0], first) && is(&pair[1], second))
    };
    let before = i.checked_sub(2);
    pair(Some(i + 1), '=', '>')
        || pair(Some(i + 1), '=', '=')
        || pair(before, '=', '=')
        || pair(before, '!', '=')
        || tokens.get(i + 1).is_some_and(|it| is(it, '|'))
        || i > 0 && is(&tokens[i - 1], '|')
}

/// The attribute that begins here, with how many tokens it is.
fn attribute(tokens: &[TokenTree]) -> Option<(&Group, usize)> {
    match tokens {
        [hash, TokenTree::Group(group), ..] if is(hash, '#') => Some((group, 2)),
        [hash, not, TokenTree::Group(group), ..] if is(hash, '#') && is(not, '!') => {
            Some((group, 3))
        }
        _ => None,
    }
}

fn is_cfg_test(attribute: &Group) -> bool {
    let text = attribute.stream().to_string();
    text.replace(' ', "") == "cfg(test)"
}

/// The path that begins with an identifier, and how many tokens it is.
fn path(tokens: &[TokenTree]) -> (Names, usize) {
    let mut names = vec![tokens[0].to_string()];
    let mut length = 1;
    while let Some([first, second, TokenTree::Ident(name)]) = tokens.get(length..length + 3)
        && is(first, ':')
        && is(second, ':')
    {
        names.push(name.to_string());
        length += 3;
    }
    (names, length)
}

fn is(token: &TokenTree, punctuation: char) -> bool {
    matches!(token, TokenTree::Punct(it) if it.as_char() == punctuation)
}

/// What a string literal means; `None` for another literal, and for bytes.
fn string(literal: &str) -> Option<String> {
    if let Some(raw) = literal.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        return Some(raw[hashes + 1..raw.len() - hashes - 1].to_owned());
    }
    let escaped = literal.strip_prefix('"')?.strip_suffix('"')?;
    let mut text = String::new();
    let mut chars = escaped.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\\' => text.extend(escape(&mut chars)),
            char => text.push(char),
        }
    }
    Some(text)
}

/// The character that an escape stands for, from behind its backslash; `None` for an end of a line that is no part of the text.
fn escape(chars: &mut Peekable<impl Iterator<Item = char>>) -> Option<char> {
    let code = |digits: &str| {
        u32::from_str_radix(digits, 16)
            .ok()
            .and_then(char::from_u32)
    };
    match chars.next()? {
        'n' => Some('\n'),
        'r' => Some('\r'),
        't' => Some('\t'),
        '0' => Some('\0'),
        'x' => code(&chars.take(2).collect::<String>()),
        'u' => code(
            &chars
                .skip(1)
                .take_while(|it| *it != '}')
                .collect::<String>(),
        ),
        '\n' => {
            while chars.next_if(|it| it.is_whitespace()).is_some() {}
            None
        }
        other => Some(other),
    }
}

#[test]
fn imports_are_followed_through_groups_renames_and_modules_that_import_for_others() {
    let source = Source::of(&[
        ("lib.rs", "pub mod a; pub mod b;"),
        (
            "a/mod.rs",
            "mod x; mod y; pub use x::Thing; #[cfg(test)] mod tests;",
        ),
        ("a/x.rs", "pub struct Thing; type Other = u8;"),
        (
            "a/y.rs",
            r#"
            use super::{Thing, x::{self, Other as That}};
            use std::io;
            // crate::comment::is_none
            #[derive(crate::b::InAttribute)]
            struct Y { #[cfg(test)] one: crate::b::Test, two: crate::b::NotTest }
            fn f() { type Local = u8; io::stderr(); x::call(); println!("{} \u{41}\
                \x41\n", That::new()) }
            #[cfg(test)]
            mod tests { use super::*; fn g() { io::stdout(); crate::b::B } }
            "#,
        ),
        ("a/tests.rs", "use super::x;"),
        ("b.rs", "pub trait B {}"),
    ]);
    let of = |path: &str| source.files.iter().find(|file| file.path == path).unwrap();
    let y = of("a/y.rs");
    let mentions: Vec<_> = (y.mentions.iter())
        .map(|it| match &it.path {
            Target::Ours(names) => (format!("crate::{}", names.join("::")), it.test),
            Target::Other(names) => (names.join("::"), it.test),
        })
        .collect();
    let expected = [
        ("crate::a::Thing", false),
        ("crate::a::x", false),
        ("crate::a::x::Other", false),
        ("std::io", false),
        ("crate::b::InAttribute", false),
        ("crate::b::Test", true),
        ("crate::b::NotTest", false),
        ("std::io::stderr", false),
        ("crate::a::x::call", false),
        ("println", false),
        ("crate::a::x::Other::new", false),
        ("crate::a::y", true),
        ("std::io::stdout", true),
        ("crate::b::B", true),
    ];
    assert_eq!(
        mentions,
        expected.map(|(path, test)| (path.to_owned(), test))
    );
    let types: Vec<_> = y.types.iter().map(|it| &it.name).collect();
    assert_eq!(types, ["Y"]);
    let strings: Vec<_> = y
        .strings
        .iter()
        .map(|it| (&it.item[..], &it.value[..]))
        .collect();
    assert_eq!(strings, [("f", "{} AA\n")]);
    assert!(of("a/tests.rs").mentions[0].test);
    let find = |names: &str| {
        let names: Names = names.split("::").map(str::to_owned).collect();
        let (file, item) = source.find(&names).unwrap();
        (file.path.as_str(), item)
    };
    assert_eq!(find("a::Thing::new"), ("a/x.rs", Some("Thing".to_owned())));
    assert_eq!(find("a::y"), ("a/y.rs", None));
    assert_eq!(find("a::other"), ("a/mod.rs", Some("other".to_owned())));
}

#[test]
fn strings_are_read_with_where_they_stand_and_what_is_searched_for_is_marked() {
    let source = Source::of(&[(
        "a.rs",
        r##"
        const R: &str = r#"a "raw" one"#;
        const RAW: &str = r#"a "raw" one"#;
        const B: &[u8] = b"bytes";
        fn f<const N: usize>(text: &str) -> &str {
            if text == "compared" || text.starts_with("begins") { format!("shown {}", "also") } else { "shown".into() };
            let one = ["either", "or"].iter().any(|it| text.contains(it));
            match text { "pattern" | "another" => ["list", "of words"].join("with"), _ => "\"" }
        }
        #[cfg(test)]
        #[doc = "attribute"]
        fn g() { "in a test" }
        impl A { fn h<'a, A>(&self) -> Result<A, B> { "of a type" } }
        "##,
    )]);
    let strings: Vec<_> = (source.files[0].strings.iter())
        .map(|it| (&it.item[..], &it.value[..], it.is_sought, it.test))
        .collect();
    let expected = [
        ("", "a \"raw\" one", false, false),
        ("RAW", "a \"raw\" one", false, false),
        ("f", "compared", true, false),
        ("f", "begins", true, false),
        ("f", "shown {}", false, false),
        ("f", "also", false, false),
        ("f", "shown", false, false),
        ("f", "either", true, false),
        ("f", "or", true, false),
        ("f", "pattern", true, false),
        ("f", "another", true, false),
        ("f", "list", false, false),
        ("f", "of words", false, false),
        ("f", "with", false, false),
        ("f", "\"", false, false),
        ("g", "in a test", false, true),
        ("h", "of a type", false, false),
    ];
    assert_eq!(strings, expected);
}
