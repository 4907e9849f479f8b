//! Whatever Nix, a builder or a file of the store holds, the parsers of it neither panic, nor keep more than a bounded part of it, nor
//! accept what is none of theirs.
//!
//! `EVAL_ONCE_FUZZ=1000000` tries that many inputs for each parser instead of a few:
//! `cargo test --release --test integration -- fuzz::`.

use eval_once::nix::message::{MESSAGE_AT_MOST, Message, in_one_line};
use eval_once::nix::structured::{Event, LogReader, PLAIN_AT_MOST, STRUCTURED_AT_MOST};
use eval_once::nix::{AttrPath, Derivation, DrvPath, NixOutput, StorePath};
use eval_once::text::is_hidden;
use proptest::collection::vec;
use proptest::prelude::*;

const HASH: &str = "0123456789abcdfghijklmnpqrsvwxyz";

/// How many inputs each property gets.
fn config() -> ProptestConfig {
    let cases = std::env::var("EVAL_ONCE_FUZZ").ok();
    let cases = cases.map_or(500, |cases| cases.parse().unwrap());
    ProptestConfig {
        // A failure is printed with its input; a file beside the source is not wanted.
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    }
}

/// What the parsers look for, and what has confused parsers before.
const WORDS: [&str; 60] = [
    "\n",
    "\r\n",
    "\0",
    "\u{1b}[31m",
    "\u{1b}]0;",
    "\u{9b}",
    "\u{202e}",
    " ",
    "       ",
    "\t",
    "'",
    "\"",
    "\\",
    "\\n",
    "\\u00",
    "\\ud800",
    ",",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ":",
    "/",
    "..",
    "!",
    "-",
    "é",
    "@nix ",
    "@nix {\"action\":\"msg\",\"level\":0,\"msg\":\"",
    "@nix {\"action\":\"start\",\"id\":1,\"type\":105,\"fields\":[\"",
    "@nix {\"action\":\"result\",\"id\":1,\"type\":101,\"fields\":[\"",
    "@nix {\"action\":\"result\",\"id\":1,\"type\":105,\"fields\":[9,9,9,9]}",
    "@nix {\"action\":\"stop\",\"id\":1}",
    "\"}",
    "\"]}",
    "error: ",
    "error:",
    "error (ignored): ",
    "… while calling the 'throw' builtin",
    "at /x/ci.nix:3:8:",
    "3| x",
    "|  ^",
    "trace: ",
    "warning: unable to download '",
    "building '",
    "copying path '",
    "' failed with exit code 1",
    "builder for '",
    "Cannot build '",
    "Reason: ",
    "hash mismatch in fixed-output derivation '",
    "specified: ",
    "got: ",
    "Derive(",
    "DrvWithVersion(\"xp-dyn-drv\",",
    "Did you mean ",
    "18446744073709551616",
    ".drv",
];

fn text() -> impl Strategy<Value = String> {
    let path = Just(format!("/nix/store/{HASH}-a.drv"));
    let word = prop_oneof![
        8 => proptest::sample::select(&WORDS[..]).prop_map(str::to_owned),
        2 => path,
        1 => any::<char>().prop_map(String::from),
        1 => "[ -~]{0,12}",
    ];
    vec(word, 0..24).prop_map(|words| words.concat())
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => text().prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 0..60),
        1 => (text(), vec(any::<u8>(), 0..6), text())
            .prop_map(|(begin, wild, end)| [begin.as_bytes(), &wild, end.as_bytes()].concat()),
    ]
}

/// Whether every part of an output that is kept is one, and no more of it is kept than there was.
fn is_sound(output: &NixOutput, printed: &[u8]) -> Result<(), TestCaseError> {
    for drv in &output.begun {
        prop_assert_eq!(
            DrvPath::parse(drv.as_store_path().as_str()),
            Ok(drv.clone())
        );
    }
    for path in &output.substituted {
        prop_assert_eq!(StorePath::parse(path.as_str()), Ok(path.clone()));
    }
    // An invalid byte becomes a character of three.
    prop_assert!(
        output.whole_message().unwrap_or_default().len()
            <= 3 * printed.len().min(2 * MESSAGE_AT_MOST)
    );
    Ok(())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn output_of_any_bytes_is_read(printed in bytes()) {
        is_sound(&NixOutput::of(&printed), &printed)?;
    }

    #[test]
    fn events_hold_no_more_than_was_printed(printed in bytes(), times in 1_usize..4) {
        let mut reader = LogReader::default();
        let mut plain = 0;
        let mut look = |event: Event<'_>| match event {
            Event::Plain(line) => {
                assert!(line.bytes.len() <= PLAIN_AT_MOST);
                plain += line.bytes.len() + line.omitted;
            }
            Event::Message { text, .. } | Event::Begins(text) => assert!(text.len() <= STRUCTURED_AT_MOST),
            _ => {}
        };
        for _ in 0..times {
            reader.read(&printed, &mut look);
        }
        reader.finish(&mut look);
        prop_assert!(plain <= times * printed.len());
    }

    #[test]
    fn a_message_is_a_part_of_what_was_printed(printed in text()) {
        if let Some(message) = Message::last(&printed) {
            let printed: String = printed.chars().filter(|c| !c.is_whitespace()).collect();
            for line in message.text.lines() {
                let line: String = line.chars().filter(|c| !c.is_whitespace()).collect();
                prop_assert!(printed.contains(&line), "{line:?} in {printed:?}");
            }
            prop_assert!(!in_one_line(&message.whole()).contains('\n'));
        }
    }

    #[test]
    fn a_store_path_is_what_it_was_read_from_and_can_be_shown(
        folder in prop_oneof![Just("/nix/store".to_owned()), text(), "/[^/]{1,8}(/[^/]{0,4}){0,2}"],
        hash in prop_oneof![4 => Just(HASH.to_owned()), 1 => "[0-9a-z]{31,33}"],
        name in prop_oneof![2 => "-[a-z.+?=_0-9-]{0,12}(\\.drv)?", 1 => text()],
    ) {
        let text = format!("{folder}/{hash}{name}");
        let Ok(path) = StorePath::parse(&text) else {
            return Ok(());
        };
        prop_assert_eq!(path.as_str(), &text);
        prop_assert!(text.starts_with('/') && !text.contains(is_hidden), "{text:?}");
        prop_assert!(!text.contains("//") && !text.contains("/../") && !text.contains("/./"), "{text:?}");
        let base = text.rsplit('/').next().unwrap();
        prop_assert_eq!(format!("{}-{}", path.hash(), path.name()), base);
        prop_assert!(base.bytes().all(|c| c.is_ascii_alphanumeric() || b"+-._?=".contains(&c)), "{base:?}");
        prop_assert_eq!(path.store().join(base), path.as_path());
    }

    #[test]
    fn a_derivation_of_any_bytes_is_read_or_refused(file in bytes(), begin in prop_oneof![Just(""), Just("Derive([")]) {
        let drv = DrvPath::parse(&format!("/nix/store/{HASH}-a.drv")).unwrap();
        let _ = Derivation::parse(&[begin.as_bytes(), &file].concat(), &drv);
    }

    #[test]
    fn an_attribute_path_is_written_as_it_is_read(dotted in text()) {
        if let Ok(path) = AttrPath::parse(&dotted) {
            prop_assert_eq!(AttrPath::parse(&path.to_string()), Ok(path));
        }
    }
}

/// The control: what the properties look at is there in ordinary output.
#[test]
fn what_the_inputs_are_made_of_is_understood() {
    let drv = format!("/nix/store/{HASH}-a.drv");
    let printed = format!(
        "@nix {{\"action\":\"start\",\"id\":1,\"type\":105,\"fields\":[\"{drv}\",\"\"]}}\nerror: builder for '{drv}' failed with exit code 1\n"
    );
    let output = NixOutput::of(printed.as_bytes());
    assert_eq!((output.begun.len(), output.faults.len()), (1, 1));
    assert!(output.whole_message().is_some());
    assert!(StorePath::parse(&drv).is_ok());
}
