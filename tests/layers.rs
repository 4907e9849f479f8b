//! The boundaries that `src/lib.rs` states are kept: its table of layers, and what only one module does.
//!
//! Each rule returns one sentence for each place that breaks it, and is tried on a few lines that do.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use crate::support::source::{Mention, Names, SOURCE, Source, SourceFile, Target};

#[test]
fn a_module_imports_only_modules_of_lower_layers() {
    keeps(&crossed_layers(&SOURCE, &table()));
}

#[test]
fn a_crossed_layer_is_reported() {
    let source = Source::of(&[
        (
            "lib.rs",
            "pub mod high; pub mod low; pub mod beside; pub mod new;",
        ),
        ("high/mod.rs", "use crate::low::Low; mod inner;"),
        (
            "high/inner.rs",
            "use super::Thing; fn f() { crate::low::low() }",
        ),
        (
            "low.rs",
            "// use crate::high;\nconst TEXT: &str = \"crate::high\";\nfn f() { crate::high::f() }",
        ),
        (
            "beside.rs",
            "#[cfg(test)]\nmod tests { use crate::low::Low; }",
        ),
        ("new.rs", ""),
        ("main.rs", "use eval_once::high;"),
    ]);
    let table = read_table(
        "//! | 2 | [`high`] | a |\n//! | 1 | [`low`] | b |\n//! | 1 | [`beside`] | c |\n//! | 0 | [`gone`] | d |",
    );
    assert_eq!(
        crossed_layers(&source, &table),
        [
            "`new` is not in the table of layers",
            "`gone` is in the table of layers, but is not a module",
            "src/low.rs:3: `low` (layer 1) imports `high` (layer 2)",
            "src/beside.rs:2: `beside` (layer 1) imports `low` (layer 1), in tests",
        ]
    );
}

#[test]
fn no_modules_import_one_another_in_a_circle() {
    keeps(&circles(&SOURCE));
}

#[test]
fn a_circle_is_reported_whatever_way_it_is_closed() {
    let source = Source::of(&[
        ("a/mod.rs", "mod x; mod y; mod z; pub use x::X; use y::Y;"),
        ("a/x.rs", "use super::y::Y;"),
        // By the name that the parent imports, and from below.
        ("a/y/mod.rs", "mod deep; use super::super::b::B;"),
        ("a/y/deep.rs", "\nuse crate::a::{X, y::Y};"),
        (
            "a/z.rs",
            "use super::{x, y, Type, whole}; #[cfg(test)] mod tests { use super::super::t; }",
        ),
        ("a/t.rs", "use super::z;"),
        ("b.rs", ""),
    ]);
    assert_eq!(
        circles(&source),
        [
            "src/a/z.rs:1: `z` calls `whole` of `a`, which imports it",
            "`a`: `x` imports `y` (src/a/x.rs:1), `y` imports `x` (src/a/y/deep.rs:2)"
        ]
    );
}

/// A thing of the machine that one module deals with.
struct Only {
    what: &'static str,
    /// Paths that begin so are meant.
    paths: &'static [&'static str],
    /// Paths that begin so are meant not, although they do.
    besides: &'static [&'static str],
    /// The file that may mention them, or the folder, with a `/` at its end; empty where none may.
    by: &'static str,
    /// Other places that may, with the reason.
    exceptions: &'static [(&'static str, &'static str)],
    /// Whether tests may.
    in_tests: bool,
}

const ONLY: [Only; 6] = [
    Only {
        what: "writes to standard error",
        paths: &[
            "std::io::stderr",
            "std::io::Stderr",
            "eprintln",
            "eprint",
            "dbg",
        ],
        besides: &[],
        by: "log.rs",
        exceptions: &[
            ("options/", "it only asks whether that is a terminal"),
            (
                "step/report.rs",
                "`--report /dev/stderr` asks for the report there",
            ),
        ],
        in_tests: false,
    },
    Only {
        what: "reads the environment, the command line or the terminal",
        paths: &[
            "std::env",
            "std::io::IsTerminal",
            "std::io::stdin",
            "unix::unistd::isatty",
        ],
        // These only read what they are given; `temp_dir` has a rule of its own.
        besides: &[
            "std::env::split_paths",
            "std::env::join_paths",
            "std::env::temp_dir",
        ],
        by: "options/",
        exceptions: &[(
            "text/hostile.rs",
            "a variable says how many inputs a test tries",
        )],
        in_tests: false,
    },
    Only {
        what: "makes a temporary file where TMPDIR says",
        paths: &[
            "std::env::temp_dir",
            "tempfile::tempdir",
            "tempfile::tempfile",
            "tempfile::env",
            "tempfile::TempDir::new",
            "tempfile::TempDir::with_prefix",
            "tempfile::NamedTempFile::new",
            "tempfile::NamedTempFile::with_prefix",
            "tempfile::spooled_tempfile",
        ],
        besides: &[
            "tempfile::TempDir::new_in",
            "tempfile::TempDir::with_prefix_in",
            "tempfile::NamedTempFile::new_in",
            "tempfile::NamedTempFile::with_prefix_in",
        ],
        by: "options/",
        exceptions: &[],
        in_tests: true,
    },
    Only {
        what: "makes files or folders",
        paths: &[
            "std::fs::write",
            "std::fs::copy",
            "std::fs::create_dir",
            "std::fs::DirBuilder",
            "std::fs::File::create",
            "tempfile::Builder",
            "tempfile::tempdir_in",
            "tempfile::tempfile_in",
            "tempfile::TempDir::new_in",
            "tempfile::TempDir::with_prefix_in",
            "tempfile::NamedTempFile::new_in",
            "tempfile::NamedTempFile::with_prefix_in",
        ],
        besides: &[],
        by: "private.rs",
        exceptions: &[(
            "step/report.rs",
            "who asks for a report decides who reads it",
        )],
        in_tests: true,
    },
    Only {
        what: "starts, signals or waits for processes",
        paths: &[
            "std::process",
            "std::os::unix::process",
            "unix::sys::signal",
            "unix::sys::wait",
            "unix::unistd::fork",
            "unix::unistd::exec",
            "unix::unistd::getpgid",
            "unix::unistd::setsid",
            "signal_hook",
        ],
        // Data: how a process ended, and who this one is.
        besides: &[
            "std::process::ExitCode",
            "std::process::ExitStatus",
            "std::process::id",
            "std::os::unix::process::ExitStatusExt",
            "unix::sys::signal::Signal",
        ],
        by: "supervise.rs",
        exceptions: &[(
            "command_line.rs",
            "a test lets a shell read what is quoted for one",
        )],
        in_tests: false,
    },
    Only {
        what: "starts threads",
        paths: &["std::thread"],
        besides: &["std::thread::available_parallelism"],
        by: "",
        exceptions: &[],
        in_tests: true,
    },
];

#[test]
fn what_one_module_does_no_other_does() {
    let reported: Vec<_> = ONLY
        .iter()
        .flat_map(|only| done_elsewhere(&SOURCE, only))
        .collect();
    keeps(&reported);
}

#[test]
fn what_is_done_elsewhere_is_reported() {
    let source = Source::of(&[
        ("log.rs", "use std::io; fn f() { io::stderr(); }"),
        (
            "options/mod.rs",
            "fn f() { std::env::args_os(); std::io::stderr(); let it: std::process::Command; }",
        ),
        (
            "step/report.rs",
            "fn f() { std::io::stderr(); tempfile::Builder::new(); }",
        ),
        (
            "a.rs",
            r#"use std::io::{self, Write as _};
            use std::process::{self, ExitCode};
            use std::env;
            fn f(stderr: u8) -> process::ExitStatus { stderr.stderr(io::stderr()); eprintln!("std::env::var") }
            fn g() { env::split_paths(""); env::var("A"); env!("B"); process::id() }
            #[cfg(test)]
            mod tests { use super::*; fn h() { process::exit(1); tempfile::tempdir(); } }"#,
        ),
        (
            "b.rs",
            "use tempfile::TempDir as T; fn f() { T::new_in(1); T::new(); std::thread::spawn(f) }",
        ),
        (
            "c.rs",
            "use unix::sys::signal::{Signal, kill}; use unix::unistd::execve;",
        ),
    ]);
    let reported: Vec<_> = ONLY
        .iter()
        .flat_map(|only| done_elsewhere(&source, only))
        .collect();
    assert_eq!(
        reported,
        [
            "src/a.rs:4: `std::io::stderr` writes to standard error, which only log.rs does",
            "src/a.rs:4: `eprintln` writes to standard error, which only log.rs does",
            "src/a.rs:5: `std::env::var` reads the environment, the command line or the terminal, which only options/ does",
            "the exception for src/text/hostile.rs, which reads the environment, the command line or the terminal, is not needed",
            "src/b.rs:1: `tempfile::TempDir::new` makes a temporary file where TMPDIR says, which only options/ does",
            "src/b.rs:1: `tempfile::TempDir::new_in` makes files or folders, which only private.rs does",
            "src/options/mod.rs:1: `std::process::Command` starts, signals or waits for processes, which only supervise.rs does",
            "src/a.rs:7: `std::process::exit` starts, signals or waits for processes, which only supervise.rs does",
            "src/c.rs:1: `unix::sys::signal::kill` starts, signals or waits for processes, which only supervise.rs does",
            "src/c.rs:1: `unix::unistd::execve` starts, signals or waits for processes, which only supervise.rs does",
            "the exception for src/command_line.rs, which starts, signals or waits for processes, is not needed",
            "src/b.rs:1: `std::thread::spawn` starts threads, which no module does",
        ]
    );
}

#[test]
fn the_name_of_a_type_is_its_own() {
    keeps(&names_of_two_types(&SOURCE));
}

#[test]
fn a_name_of_two_types_is_reported() {
    let source = Source::of(&[
        ("a.rs", "struct One; fn f() { struct Local; } enum Two {}"),
        (
            "b.rs",
            "type Two = u8; impl Iterator for One { type Item = u8; } #[cfg(test)] mod tests { struct One; }",
        ),
        (
            "c.rs",
            "trait Three { type Item; } struct Local; impl Iterator for Local { type Item = u8; }",
        ),
    ]);
    assert_eq!(
        names_of_two_types(&source),
        ["`Two` is the name of 2 types (src/a.rs:1, src/b.rs:1)"]
    );
}

/// What stands in one place, with other places that have a reason.
struct Once {
    text: &'static str,
    exceptions: &'static [(&'static str, &'static str)],
}

/// Questions to Nix, by what has to stand in the source for one.
const ONCE: [Once; 3] = [
    Once {
        text: "don't know how to build these paths",
        exceptions: &[],
    },
    Once {
        text: "--check-validity",
        exceptions: &[],
    },
    Once {
        text: "--query",
        exceptions: &[],
    },
];

/// Command lines of Nix that more than one file builds, by who else does and the reason.
const COMMANDS_TWICE: [(&str, &[(&str, &str)]); 8] = [
    (
        "collecting_nothing",
        &[("step/run.rs", "what has died of its collection is repeated")],
    ),
    (
        "copy_outputs_to",
        &[("store/examined.rs", "a small file is written on trial")],
    ),
    ("instantiate", &[("step/ways.rs", "`explain` shows it")]),
    ("invalid_of", &[("step/ways.rs", "`explain` shows it")]),
    (
        "obtain",
        &[
            ("store/rooting.rs", "it makes the root of what is there"),
            ("step/explain.rs", "shows it"),
        ],
    ),
    ("read_log", &[("step/advice.rs", "shows it")]),
    (
        "realise",
        &[
            ("step/advice.rs", "shows it"),
            ("step/explain.rs", "shows it"),
            ("step/ways.rs", "`explain` shows it"),
        ],
    ),
    (
        "structured",
        &[
            (
                "store/copying.rs",
                "a copy is read for its progress, a build for its failures",
            ),
            (
                "recording/evaluate/flake.rs",
                "locking a flake is read for what it copies",
            ),
        ],
    ),
];

#[test]
fn each_question_to_nix_is_asked_in_one_place() {
    let mut reported: Vec<String> = ONCE
        .iter()
        .flat_map(|once| stands_twice(&SOURCE, once))
        .collect();
    reported.extend(commands_in_two_files(&SOURCE, &COMMANDS_TWICE));
    keeps(&reported);
}

#[test]
fn a_question_that_is_asked_in_two_places_is_reported() {
    let source = Source::of(&[
        ("nix/mod.rs", "pub mod command;"),
        (
            "nix/command.rs",
            "pub fn ask() { ask_more() } pub fn ask_more() { \"--ask\" } pub fn never() {}",
        ),
        (
            "store.rs",
            "use crate::nix::command; fn f() { command::ask(); command::ask() }",
        ),
        (
            "step.rs",
            "use crate::nix::command::{self, ask}; // --ask\nfn f() { ask(); command::ask_more(); }",
        ),
        (
            "other.rs",
            "fn f() { \"a --ask\" } #[cfg(test)] mod tests { fn g() { crate::nix::command::never() } }",
        ),
    ]);
    let once = |exceptions| Once {
        text: "--ask",
        exceptions,
    };
    assert_eq!(
        stands_twice(&source, &once(&[])),
        [
            "\"--ask\" stands in 2 files (src/nix/command.rs, src/other.rs); it is to be asked in one"
        ]
    );
    assert!(stands_twice(&source, &once(&[("other.rs", "a reason")])).is_empty());
    assert_eq!(
        stands_twice(&source, &once(&[("third.rs", "a reason")]))
            .last()
            .unwrap(),
        "\"--ask\": the exception for src/third.rs is not needed"
    );
    assert_eq!(
        commands_in_two_files(&source, &[]),
        [
            "`nix::command::ask` is called from 2 files (src/step.rs, src/store.rs); each question is asked in one"
        ]
    );
    assert!(commands_in_two_files(&source, &[("ask", &[("step.rs", "a reason")])]).is_empty());
}

#[track_caller]
fn keeps(reported: &[String]) {
    assert!(
        reported.is_empty(),
        "see src/lib.rs:\n{}",
        reported.join("\n")
    );
}

/// The layer of each module.
type Table = BTreeMap<String, u32>;

fn table() -> Table {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs");
    read_table(&fs::read_to_string(lib).unwrap())
}

/// Reads rows of the form ``//! | 12 | [`options`] | … |``.
fn read_table(text: &str) -> Table {
    let mut layers = Table::new();
    let mut above = u32::MAX;
    for line in text.lines() {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        if let ["//!", layer, module, ..] = cells[..]
            && let Ok(layer) = layer.parse()
            && let Some(module) = module
                .strip_prefix("[`")
                .and_then(|it| it.strip_suffix("`]"))
        {
            assert!(
                layer <= above,
                "the table of layers is out of order at `{module}`"
            );
            above = layer;
            let before = layers.insert(module.to_owned(), layer);
            assert_eq!(before, None, "`{module}` has two rows");
        }
    }
    layers
}

fn crossed_layers(source: &Source, table: &Table) -> Vec<String> {
    let modules: BTreeSet<&String> = (source.files.iter())
        .filter(|file| file.path != "main.rs")
        .filter_map(|file| file.module.first())
        .collect();
    let missing = modules
        .iter()
        .filter(|module| !table.contains_key(**module));
    let missing = missing.map(|module| format!("`{module}` is not in the table of layers"));
    let gone = table.keys().filter(|module| !modules.contains(module));
    let gone =
        gone.map(|module| format!("`{module}` is in the table of layers, but is not a module"));
    let mut reported: Vec<_> = missing.chain(gone).collect();
    for file in &source.files {
        let mut known = BTreeSet::new();
        for mention in &file.mentions {
            let (Some(from), Target::Ours(names)) = (file.module.first(), &mention.path) else {
                continue;
            };
            let Some(to) = names.first() else { continue };
            if let (Some(layer), Some(of_it)) = (table.get(from), table.get(to))
                && from != to
                && layer <= of_it
                && known.insert(to)
            {
                reported.push(format!(
                    "{}: `{from}` (layer {layer}) imports `{to}` (layer {of_it}){}",
                    place(file, mention),
                    if mention.test { ", in tests" } else { "" },
                ));
            }
        }
    }
    reported
}

fn place(file: &SourceFile, mention: &Mention) -> String {
    format!("src/{}:{}", file.path, mention.line)
}

/// Circles among the modules of each module.
///
/// A module stands for all that is in it. A parent imports its children, and they may use its types. But they may not call
/// its functions, for those are what calls them. A name that the parent only imports is that of the module that declares it.
/// Tests do not count: each may use what the tests of its sibling have prepared.
fn circles(source: &Source) -> Vec<String> {
    let mut reported = Vec::new();
    let mut edges: BTreeMap<Names, BTreeMap<(String, String), String>> = BTreeMap::new();
    for file in &source.files {
        for mention in file.mentions.iter().filter(|it| !it.test) {
            let Target::Ours(names) = &mention.path else {
                continue;
            };
            let Some((target, item)) = source.find(names) else {
                continue;
            };
            let pairs = file.module.iter().zip(&target.module);
            let common = pairs.take_while(|(a, b)| a == b).count();
            if common == 0 {
                continue;
            }
            let parent = &file.module[..common];
            match (file.module.get(common), target.module.get(common), item) {
                (Some(from), Some(to), _) => {
                    (edges.entry(parent.to_vec()).or_default())
                        .entry((from.clone(), to.clone()))
                        .or_insert_with(|| place(file, mention));
                }
                (Some(child), None, Some(function)) if function.starts_with(char::is_lowercase) => {
                    reported.push(format!(
                        "{}: `{child}` calls `{function}` of `{}`, which imports it",
                        place(file, mention),
                        parent.join("::")
                    ));
                }
                _ => {}
            }
        }
    }
    for (parent, edges) in edges {
        let mut seen = BTreeSet::new();
        for start in edges.keys().map(|(from, _)| from) {
            let Some(circle) = way_back(start, &edges).filter(|_| !seen.contains(start)) else {
                continue;
            };
            let pairs = circle.iter().zip(circle.iter().cycle().skip(1));
            let sentences = pairs.map(|(from, to)| {
                let place = &edges[&(from.clone(), to.clone())];
                format!("`{from}` imports `{to}` ({place})")
            });
            let sentences: Vec<_> = sentences.collect();
            reported.push(format!("`{}`: {}", parent.join("::"), sentences.join(", ")));
            seen.extend(circle);
        }
    }
    reported
}

/// The shortest way from `start` back to it, beginning with it.
fn way_back(start: &String, edges: &BTreeMap<(String, String), String>) -> Option<Vec<String>> {
    let mut ways = vec![vec![start.clone()]];
    let mut seen = BTreeSet::new();
    while !ways.is_empty() {
        let mut next = Vec::new();
        for way in ways {
            for (_, to) in edges.keys().filter(|(from, _)| Some(from) == way.last()) {
                if to == start {
                    return Some(way);
                }
                if seen.insert(to.clone()) {
                    next.push([&way[..], std::slice::from_ref(to)].concat());
                }
            }
        }
        ways = next;
    }
    None
}

fn done_elsewhere(source: &Source, only: &Only) -> Vec<String> {
    // A module is its file, and the files in its folder.
    let is_in = |file: &SourceFile, place: &str| {
        let folder = place.strip_suffix(".rs").unwrap_or(place);
        let below = file.path.strip_prefix(folder.trim_end_matches('/'));
        file.path == place || !place.is_empty() && below.is_some_and(|it| it.starts_with('/'))
    };
    let by = match only.by {
        "" => "no module".to_owned(),
        by => format!("only {by}"),
    };
    let mut reported = Vec::new();
    let mut excused = BTreeSet::new();
    for file in source.files.iter().filter(|file| !is_in(file, only.by)) {
        for mention in &file.mentions {
            let Target::Other(names) = &mention.path else {
                continue;
            };
            let path = names.join("::");
            let begins = |with: &&str| path.starts_with(with);
            let meant = only.paths.iter().any(begins) && !only.besides.iter().any(begins);
            // A module may be imported for the sake of what anyone may use.
            let is_module = mention.is_import
                && only
                    .besides
                    .iter()
                    .any(|it| it.starts_with(&format!("{path}::")));
            if !meant || is_module || only.in_tests && mention.test {
                continue;
            }
            if let Some((place, _)) = only.exceptions.iter().find(|it| is_in(file, it.0)) {
                excused.insert(place);
                continue;
            }
            let what = only.what;
            reported.push(format!(
                "{}: `{path}` {what}, which {by} does",
                place(file, mention)
            ));
        }
    }
    let idle = only
        .exceptions
        .iter()
        .filter(|(path, _)| !excused.contains(path));
    reported.extend(idle.map(|(path, _)| {
        format!(
            "the exception for src/{path}, which {}, is not needed",
            only.what
        )
    }));
    reported
}

fn names_of_two_types(source: &Source) -> Vec<String> {
    let mut places: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for file in &source.files {
        for declared in file.types.iter().filter(|it| !it.test) {
            let place = format!("src/{}:{}", file.path, declared.line);
            places.entry(&declared.name).or_default().push(place);
        }
    }
    let twice = places.iter().filter(|(_, places)| places.len() > 1);
    twice
        .map(|(name, places)| {
            format!(
                "`{name}` is the name of {} types ({})",
                places.len(),
                places.join(", ")
            )
        })
        .collect()
}

fn stands_twice(source: &Source, once: &Once) -> Vec<String> {
    let holds = |file: &&SourceFile| {
        file.strings
            .iter()
            .any(|it| !it.test && it.value.contains(once.text))
    };
    let files: Vec<_> = source
        .files
        .iter()
        .filter(holds)
        .map(|file| file.path.as_str())
        .collect();
    in_two(
        &format!("{:?}", once.text),
        "stands in",
        "it is to be asked in one",
        &files,
        once.exceptions,
    )
}

fn commands_in_two_files(source: &Source, exceptions: &[(&str, &[(&str, &str)])]) -> Vec<String> {
    let mut callers: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for file in source
        .files
        .iter()
        .filter(|file| file.module.first().is_none_or(|it| it != "nix"))
    {
        for mention in file.mentions.iter().filter(|it| !it.test) {
            if let Target::Ours(names) = &mention.path
                && let [nix, command, function, ..] = &names[..]
                && (nix.as_str(), command.as_str()) == ("nix", "command")
                && function.starts_with(char::is_lowercase)
            {
                callers.entry(function).or_default().insert(&file.path);
            }
        }
    }
    let sentences = callers.into_iter().flat_map(|(function, files)| {
        let exceptions = exceptions
            .iter()
            .find(|(of, _)| *of == function)
            .map_or(&[][..], |it| it.1);
        let files: Vec<_> = files.into_iter().collect();
        in_two(
            &format!("`nix::command::{function}`"),
            "is called from",
            "each question is asked in one",
            &files,
            exceptions,
        )
    });
    sentences.collect()
}

/// The sentences for what is in more files than one, with its exceptions; and for exceptions that are not needed.
fn in_two(
    what: &str,
    is_in: &str,
    rule: &str,
    files: &[&str],
    exceptions: &[(&str, &str)],
) -> Vec<String> {
    let is_excused = |file: &&&str| exceptions.iter().any(|(path, _)| path == *file);
    let others = files.iter().filter(|file| !is_excused(file)).count();
    let mut reported = Vec::new();
    if others > 1 {
        let list: Vec<_> = files.iter().map(|file| format!("src/{file}")).collect();
        reported.push(format!(
            "{what} {is_in} {} files ({}); {rule}",
            files.len(),
            list.join(", ")
        ));
    }
    for (path, _) in exceptions.iter().filter(|(path, _)| !files.contains(path)) {
        reported.push(format!(
            "{what}: the exception for src/{path} is not needed"
        ));
    }
    reported
}
