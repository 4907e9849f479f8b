//! Everything that the program says, to be read as prose: the files in `tests/messages`, one for each area, and `--help`.
//!
//! They are written from the source. A sentence that is new or has changed is red until it is taken over:
//!
//! ```sh
//! UPDATE_EXPECT=1 cargo test --test integration -- messages::
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use expect_test::expect_file;

use crate::support::{
    EVAL_ONCE,
    program::Program,
    source::{SOURCE, Source, Text},
};

/// Functions and constants that hold no sentence of ours, with what they hold.
const NOT_OURS: [(&str, &[&str]); 4] = [
    (
        "what Nix, the system or the agent says, to compare with",
        &[
            "ABORT",
            "BODY",
            "DISK_NOTE",
            "NIXS_OWN",
            "NO_MACHINE",
            "OF_A_FILE",
            "OF_THE_SYSTEM",
            "REFUSALS",
            "available",
            "is_not_downloaded",
            "is_of_named_path",
            "rejection",
        ],
    ),
    (
        "Nix code",
        &[
            "catching",
            "flake_settings",
            "outputs",
            "root",
            "selected",
            "selected_uncalled",
            "selection",
            "walking",
        ],
    ),
    ("the default shells", &["default_shell"]),
    (
        "parts of --help",
        &[
            "EXAMPLES",
            "PIN_EXAMPLES",
            "PIPELINE_EXAMPLES",
            "SUMMARY_HELP",
        ],
    ),
];

/// What Nix says or is given, in functions that also hold sentences of ours.
const OF_NIX: [&str; 23] = [
    ", got ",
    ": specified ",
    "Available features: ",
    "Cannot build '",
    "Current system: ",
    "Required features: ",
    "Required system: ",
    "builder for '",
    "building of '",
    "building '",
    "copying path '",
    "cycle detected in build of '",
    "derivation '",
    "experimental Nix feature '",
    "failed due to signal ",
    "failed with exit code ",
    "fixed output derivation '",
    "has '__noChroot' set",
    "hash mismatch in fixed-output derivation '",
    "needs ",
    "nix-command flakes",
    "refer to other store paths",
    "warning: unable to download '",
];

/// What no sentence says: our dialect, for which the field has words (see the glossary in `src/lib.rs`).
const NO_WORDS: [(&str, &str); 20] = [
    ("nobody", "name what is missing"),
    ("whoever", "name who"),
    ("what became of", "the outcome of"),
    ("tell", "report, publish, list"),
    ("tells", "report, publish, list"),
    ("told", "report, publish, list"),
    ("that is said", "name it"),
    ("the surroundings", "infrastructure failure"),
    ("its surroundings", "infrastructure failure"),
    ("at home", "reproduce"),
    ("culprit", "root cause"),
    ("pin it", "lock it"),
    ("for a turn", "for an evaluation slot"),
    ("heard", "read"),
    ("trying again", "retrying"),
    ("make the pipeline again", "record again"),
    ("is to be evaluated", "name it, and what is wrong with it"),
    ("is not there", "does not exist"),
    ("no more", "not … again"),
    ("in a circle", "cyclic"),
];

#[test]
fn the_sentences_of_the_program_are_those_that_were_read() {
    for (area, sentences) in all_areas() {
        expect_file![snapshot(&area)].assert_eq(&sentences);
    }
}

#[test]
fn the_help_of_the_program_is_that_which_was_read() {
    expect_file![snapshot("help")].assert_eq(&help());
}

#[test]
fn every_file_of_sentences_is_of_an_area() {
    let mut expected: BTreeSet<PathBuf> = all_areas().keys().map(|area| snapshot(area)).collect();
    expected.insert(snapshot("help"));
    let entries = fs::read_dir(folder()).unwrap();
    let found: BTreeSet<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(found, expected);
}

#[test]
fn every_exception_is_one_of_something() {
    let items: BTreeSet<&str> = shown(&SOURCE).map(|(_, text)| text.item.as_str()).collect();
    let values: BTreeSet<&str> = shown(&SOURCE)
        .map(|(_, text)| text.value.as_str())
        .collect();
    let functions = NOT_OURS.iter().flat_map(|(_, items)| *items);
    let gone = functions
        .filter(|item| !items.contains(*item))
        .chain(OF_NIX.iter().filter(|text| !values.contains(*text)));
    let gone: Vec<_> = gone.collect();
    assert!(
        gone.is_empty(),
        "not in the source, or not needed as exceptions: {gone:#?}"
    );
}

#[test]
fn every_sentence_has_the_words_of_the_glossary() {
    let mut wrong = Vec::new();
    for (area, sentences) in all_areas().into_iter().chain([("help".to_owned(), help())]) {
        for line in sentences.lines() {
            wrong.extend(
                wrong_words(line).map(|(word, better)| {
                    format!("{area}: {word:?} (better: {better}) in: {line}")
                }),
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_sentence_of_a_script_is_what_stands_in_quotes() {
    let words = ["throw ", "error="];
    let cases = [
        (
            r#"  throw "it is a ${type x}, no set""#,
            Some("it is a ${type x}, no set"),
        ),
        ("  error='no cargo on PATH'", Some("no cargo on PATH")),
        ("  error=$other", None),
        ("  say it", None),
    ];
    for (line, expected) in cases {
        assert_eq!(quoted_behind(line, &words), expected, "{line}");
    }
}

#[test]
fn sentences_are_distinguished_from_names_code_and_what_is_compared() {
    let source = Source::of(&[(
        "step/run.rs",
        r#"
        const REFUSALS: [&str; 1] = ["of Nix"];
        fn f(text: &str) {
            format!("{count} {what}{}: {{}}", a, b, c);
            ["word", "--flag", "a sentence\nof two lines", " {} more"];
            text.contains("of others");
            between(text, "builder for '", "'");
        }
        #[cfg(test)]
        mod tests { fn f() { "in tests" } }
        "#,
    )]);
    let expected = (
        "step".to_owned(),
        "# src/step/run.rs\n\na sentence\\nof two lines\n{} more\n".to_owned(),
    );
    assert_eq!(Vec::from_iter(areas(&source)), [expected]);
    let words = |line| wrong_words(line).map(|(word, _)| *word).collect::<Vec<_>>();
    assert_eq!(
        words("X is not there: Nobody knows"),
        ["nobody", "is not there"]
    );
    assert_eq!(
        words("an intelligent {told} teller, and no morello"),
        Vec::<&str>::new()
    );
}

fn wrong_words(line: &str) -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    let words = |text: &str| {
        let words = text.to_lowercase();
        let words: Vec<_> = words
            .split(|it: char| !it.is_alphanumeric())
            .filter(|it| !it.is_empty())
            .collect();
        format!(" {} ", words.join(" "))
    };
    let line = words(&without_placeholders(line));
    NO_WORDS
        .iter()
        .filter(move |(word, _)| line.contains(&words(word)))
}

/// The sentences of each area, file by file, in the order of the source.
fn areas(source: &Source) -> BTreeMap<String, String> {
    let mut areas: BTreeMap<String, String> = BTreeMap::new();
    let mut last = None;
    for (path, text) in shown(source) {
        let items = NOT_OURS.iter().flat_map(|(_, items)| *items);
        if items.into_iter().any(|item| *item == text.item) || OF_NIX.contains(&text.value.as_str())
        {
            continue;
        }
        let area = path.split_once('/').map_or("other", |(folder, _)| folder);
        let sentences = areas.entry(area.to_owned()).or_default();
        if last != Some(path) {
            last = Some(path);
            let above = if sentences.is_empty() { "" } else { "\n" };
            let _ = writeln!(sentences, "{above}# src/{path}\n");
        }
        let _ = writeln!(sentences, "{}", text.value.trim().replace('\n', "\\n"));
    }
    areas
}

/// The sentences that are not in Rust: of the hooks, which find the program, and of the expressions that Nix evaluates for us. Each is
/// what stands between the quotes behind one of these words.
const BESIDES: [(&str, &[&str], &[&str]); 2] = [
    (
        "hooks",
        &["lib/find.bash", "hooks/environment", "hooks/command"],
        &[
            "eval_once_error=",
            "eval_once_hint=",
            "eval_once_refuse ",
            "printf ",
            "eval_once_print ",
        ],
    ),
    (
        "expressions",
        &["src/nix/select.nix", "src/nix/walk.nix"],
        &["throw ", "refused ", "text = "],
    ),
];

/// The sentences of each area, in Rust and besides.
fn all_areas() -> BTreeMap<String, String> {
    let mut all = areas(&SOURCE);
    all.extend(besides());
    all
}

/// The sentences of [`BESIDES`], file by file.
fn besides() -> BTreeMap<String, String> {
    let mut areas: BTreeMap<String, String> = BTreeMap::new();
    for (area, files, words) in BESIDES {
        for file in files {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
            let text = fs::read_to_string(path).unwrap();
            let found: Vec<String> = text
                .lines()
                .filter(|line| !line.trim_start().starts_with('#'))
                // A quote inside quotes, as shells have it.
                .map(|line| line.replace(r"'\''", "\u{1}"))
                .filter_map(|line| Some(quoted_behind(&line, words)?.replace('\u{1}', "'")))
                .filter(|sentence| is_sentence(sentence))
                .collect();
            if found.is_empty() {
                continue;
            }
            let sentences = areas.entry(area.to_owned()).or_default();
            let above = if sentences.is_empty() { "" } else { "\n" };
            let _ = writeln!(sentences, "{above}# {file}\n\n{}", found.join("\n"));
        }
    }
    areas
}

/// What stands in quotes behind the first of these words in a line.
fn quoted_behind<'l>(line: &'l str, words: &[&str]) -> Option<&'l str> {
    let behind = words
        .iter()
        .find_map(|word| line.split_once(word).map(|(_, behind)| behind))?;
    let quote = behind
        .chars()
        .next()
        .filter(|it| ['"', '\''].contains(it))?;
    behind[1..].split(quote).next()
}

/// Literals for people, with the files that they are in: more than one word, and no pattern to compare with.
fn shown(source: &Source) -> impl Iterator<Item = (&str, &Text)> {
    let is_shown = |text: &&Text| !text.test && !text.is_sought && is_sentence(&text.value);
    (source.files.iter()).flat_map(move |file| {
        file.strings
            .iter()
            .filter(is_shown)
            .map(|text| (file.path.as_str(), text))
    })
}

fn is_sentence(text: &str) -> bool {
    text.contains(' ') && without_placeholders(text).contains(char::is_alphabetic)
}

/// `cannot read {path}: {error}` is `cannot read : `.
fn without_placeholders(text: &str) -> String {
    let mut depth = 0;
    let outside = text.chars().filter(|char| match char {
        '{' => {
            depth += 1;
            false
        }
        '}' => {
            depth -= 1;
            false
        }
        _ => depth == 0,
    });
    outside.collect()
}

/// What `--help` prints for the program and for each of its subcommands, 100 columns wide.
fn help() -> String {
    let of = |arguments: &[&str]| {
        let program = Program::new(EVAL_ONCE).env("COLUMNS", "100");
        let ended = program.args(arguments).arg("--help").run();
        format!(
            "$ eval-once {}\n{}\n",
            [arguments, &["--help"]].concat().join(" "),
            ended.exits(0).stdout
        )
    };
    let mut help = of(&[]);
    let commands = help.split("\nCommands:\n").nth(1).unwrap();
    let commands = commands.lines().take_while(|line| !line.is_empty());
    let names: Vec<String> = commands
        .filter_map(|line| {
            line.strip_prefix("  ")
                .filter(|line| !line.starts_with(' '))
        })
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .filter(|name| name != "help")
        .collect();
    assert!(names.len() > 5, "{names:?}");
    for name in names {
        help.push_str(&of(&[&name]));
    }
    help
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/messages")
}

fn snapshot(area: &str) -> PathBuf {
    folder().join(format!("{area}.txt"))
}
