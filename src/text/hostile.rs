//! For tests: text as a hostile repository has it, and what may be printed of it.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseError;
use serde_json::{Value, json};

use crate::text::is_hidden;

/// What terminals, Buildkite, Nix and we ourselves take for more than text.
const PIECES: [&str; 44] = [
    "--- a",
    "+++ a",
    "~~~ a",
    "^^^ +++",
    "---",
    "-",
    "+",
    "\n",
    "\r",
    "\r\n",
    "\t",
    " ",
    "\u{8}",
    "\u{7}",
    "\0",
    "\u{7f}",
    "\u{1b}",
    "\u{1b}[31m",
    "\u{1b}[0m",
    "\u{1b}[38:5:1m",
    "\u{1b}[2J",
    "\u{1b}[1;1H",
    "\u{1b}[31",
    "\u{1b}]0;title\u{7}",
    "\u{1b}]1337;File=name=x:eA==\u{7}",
    "\u{1b}]1338;url='x';alt='y'\u{7}",
    "\u{1b}]1339;url='http://x';content='y'\u{1b}\\",
    "\u{1b}_bk;t=1700000000000\u{7}",
    "\u{1b}P1$r\u{9c}",
    "\u{1b}(0",
    "\u{1b}c",
    "\u{9b}31m",
    "\u{9d}0;t\u{9c}",
    "\u{85}",
    "\u{2028}",
    "\u{202e}",
    "\u{2066}",
    "\u{200b}",
    "\u{feff}",
    "eval-once: ",
    "error: ",
    "name> ",
    "é",
    ":boom:",
];

/// Such a text.
pub(crate) fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        6 => proptest::sample::select(&PIECES[..]).prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
        1 => "[a-z <>&*_`|\"'$(){}\\[\\]:;#!-]{0,8}",
    ];
    vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// Such bytes, which need not be UTF-8.
pub(crate) fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        2 => text().prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 0..20),
        1 => Just(vec![0x9b]),
    ];
    vec(piece, 0..4).prop_map(|pieces| pieces.concat())
}

/// How many inputs a parser is tried with: a few, or as many as `EVAL_ONCE_FUZZ` says (tests/fuzz.rs).
pub(crate) fn cases(few: u32) -> ProptestConfig {
    let cases = std::env::var("EVAL_ONCE_FUZZ").ok();
    ProptestConfig {
        // A failure is printed with its input; a file beside the source is not wanted.
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases.map_or(few, |cases| cases.parse().unwrap()))
    }
}

/// The text of a document in which up to three values are others, and which may be cut off or have something else in it.
pub(crate) fn spoilt(document: Value) -> impl Strategy<Value = String> {
    let value = prop_oneof![
        4 => text().prop_map(Value::from),
        4 => proptest::sample::select(vec![
            json!(null), json!(true), json!(-1), json!(0), json!(2), json!(u64::MAX), json!(1e300), json!(-0.5), json!([]), json!({}),
            json!(""), json!([[]]), json!([{}]), json!(["a", 1, null]), json!({ "steps": [{ "steps": [{ "key": 1 }] }] }),
        ]),
    ];
    let edits = vec((any::<Index>(), value), 0..4);
    let cut = prop_oneof![
        6 => Just(None),
        1 => (any::<Index>(), text()).prop_map(Some),
    ];
    (edits, cut, any::<bool>()).prop_map(move |(edits, cut, ends)| {
        let mut document = document.clone();
        for (at, value) in edits {
            let at = at.index(count(&document));
            if let Some(place) = nth(&mut document, at) {
                *place = value;
            }
        }
        let mut text = document.to_string();
        if let Some((at, piece)) = cut {
            let at = at.index(text.len());
            let at = (0..=at)
                .rev()
                .find(|at| text.is_char_boundary(*at))
                .unwrap();
            let end = if ends { "" } else { &text[at..] };
            text = format!("{}{piece}{end}", &text[..at]);
        }
        text
    })
}

/// How many values there are in this one, itself counted.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// One of them.
fn nth(value: &mut Value, number: usize) -> Option<&mut Value> {
    let Some(mut rest) = number.checked_sub(1) else {
        return Some(value);
    };
    let values: Vec<&mut Value> = match value {
        Value::Array(list) => list.iter_mut().collect(),
        Value::Object(map) => map.values_mut().collect(),
        _ => Vec::new(),
    };
    for value in values {
        let count = count(value);
        if rest < count {
            return nth(value, rest);
        }
        rest -= count;
    }
    None
}

/// Whether there are no more than text, these many lines that Buildkite takes for groups, and colours where there may be any.
pub(crate) fn is_tame(printed: &str, groups: usize, colours: bool) -> Result<(), TestCaseError> {
    let printed = printed.replace("\r\u{1b}[K", "");
    let mut found = 0;
    for line in printed.split('\n') {
        let mut plain = String::new();
        let mut parts = line.split("\u{1b}[");
        plain.push_str(parts.next().unwrap_or_default());
        for part in parts {
            let end = part.find(|c: char| !c.is_ascii_digit() && c != ';' && c != ':');
            let end = end.filter(|end| colours && part[*end..].starts_with('m'));
            prop_assert!(end.is_some(), "an escape sequence in {line:?}");
            plain.push_str(&part[end.unwrap_or_default() + 1..]);
        }
        let hidden = plain.chars().find(|c| is_hidden(*c) && *c != '\t');
        prop_assert!(hidden.is_none(), "{hidden:?} in {line:?}");
        found += usize::from(
            ["---", "+++", "~~~", "^^^"]
                .iter()
                .any(|mark| plain.starts_with(mark)),
        );
    }
    prop_assert_eq!(found, groups, "groups in {:?}", printed);
    Ok(())
}
