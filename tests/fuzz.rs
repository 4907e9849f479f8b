//! Whatever Nix, a builder, a file of the store or a job's configuration holds, the parsers of it neither panic, nor keep more than a bounded
//! part of it, nor accept what is none of theirs; and no text of a configuration, of a job or of a build is a flag of Nix's, of git's or of
//! the agent's. (Tried beside their parsers, which are
//! private: a plan and its mark, saved reports, outcomes, a base, the lines of the walker and of nix-eval-jobs; `hostile::cases`.)
//!
//! `EVAL_ONCE_FUZZ=1000000` tries that many inputs for each parser instead of a few:
//! `cargo test --release --test integration -- fuzz::`, and `cargo test --release --lib of_any`.

use std::path::Path;

use eval_once::build_keys::OutLink;
use eval_once::buildkite::git::Repository;
use eval_once::buildkite::{agent, plugin};
use eval_once::command_line::CommandLine;
use eval_once::evaluation_keys::Checkout;
use eval_once::keys::Keys;
use eval_once::nix::Source;
use eval_once::nix::command;
use eval_once::nix::message::{MESSAGE_AT_MOST, Message, in_one_line};
use eval_once::nix::structured::{Event, LogReader, PLAIN_AT_MOST, STRUCTURED_AT_MOST};
use eval_once::nix::{AttrPath, Derivation, DrvPath, NixOutput, StorePath};
use eval_once::share_keys::{Share, StepShare};
use eval_once::step::StepRequest;
use eval_once::text::is_hidden;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

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

fn drv() -> DrvPath {
    DrvPath::parse(&format!("/nix/store/{HASH}-a.drv")).unwrap()
}

/// A derivation with any texts.
fn derivation() -> impl Strategy<Value = Derivation> {
    let path = proptest::option::of("[a-z]{1,4}")
        .prop_map(|name| StorePath::parse(&format!("/nix/store/{HASH}-{}", name?)).ok());
    let input = "[a-z]{1,4}"
        .prop_map(|name| DrvPath::parse(&format!("/nix/store/{HASH}-{name}.drv")).unwrap());
    let feature = text().prop_map(|text| text.split_whitespace().collect::<String>());
    let features = vec(
        feature.prop_filter("not empty", |text| !text.is_empty()),
        0..3,
    );
    let outputs = proptest::collection::btree_map(text(), path, 0..3);
    (outputs, vec(input, 0..3), text(), features).prop_map(|(outputs, inputs, system, features)| {
        Derivation {
            outputs,
            inputs,
            system,
            name: "a".into(),
            features,
        }
    })
}

/// The text of its file, as Nix writes it.
fn term(derivation: &Derivation) -> String {
    let string = |text: &str| {
        let escaped = text.replace('\\', r"\\").replace('"', "\\\"");
        let escaped = escaped.replace('\n', r"\n").replace('\r', r"\r");
        format!("\"{}\"", escaped.replace('\t', r"\t"))
    };
    let outputs = derivation.outputs.iter().map(|(name, path)| {
        let path = path.as_ref().map_or("", StorePath::as_str);
        format!("({},{},\"\",\"\")", string(name), string(path))
    });
    let inputs = derivation.inputs.iter().map(|input| {
        let input = string(input.as_store_path().as_str());
        format!("({input},[\"out\"])")
    });
    format!(
        "Derive([{}],[{}],[],{},\"/bin/sh\",[],[(\"requiredSystemFeatures\",{})])",
        outputs.collect::<Vec<_>>().join(","),
        inputs.collect::<Vec<_>>().join(","),
        string(&derivation.system),
        string(&derivation.features.join(" "))
    )
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
    fn a_derivation_reads_back_as_it_is_written(derivation in derivation()) {
        prop_assert_eq!(Derivation::parse(term(&derivation).as_bytes(), &drv()), Ok(derivation));
    }

    #[test]
    fn a_derivation_of_any_bytes_is_read_or_refused(
        derivation in derivation(),
        at in any::<Index>(),
        omitted in 0_usize..4,
        wild in bytes(),
        all in any::<bool>(),
    ) {
        let mut file = term(&derivation).into_bytes();
        let at = at.index(file.len());
        if all {
            file.truncate(at);
            file.extend(&wild);
        } else {
            let end = file.len().min(at + omitted);
            file.splice(at..end, wild);
        }
        if let Ok(read) = Derivation::parse(&file, &drv()) {
            for path in read.outputs.values().flatten().chain(read.inputs.iter().map(DrvPath::as_store_path)) {
                prop_assert!(!path.as_str().contains(is_hidden), "{path}");
                prop_assert_eq!(StorePath::parse(path.as_str()), Ok(path.clone()));
            }
            prop_assert!(read.features.iter().all(|feature| !feature.contains(char::is_whitespace)));
            prop_assert_eq!(Derivation::parse(term(&read).as_bytes(), &drv()), Ok(read));
        }
    }

    #[test]
    fn an_attribute_path_is_written_as_it_is_read(dotted in text()) {
        if let Ok(path) = AttrPath::parse(&dotted) {
            prop_assert_eq!(AttrPath::parse(&path.to_string()), Ok(path));
        }
    }
}

/// A value of a key: of any type, often a text.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        6 => flaglike().prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
        1 => any::<u64>().prop_map(Value::from),
        1 => Just(Value::Null),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(Value::from),
            vec((flaglike(), inner), 0..3)
                .prop_map(|entries| Value::from_iter(entries.into_iter().collect::<Keys>())),
        ]
    })
}

/// A text that may look like a flag, an expression or a path.
fn flaglike() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => proptest::sample::select(&[
            "-A", "--arg", "--expr", "-E", "-f", "--", "-", "--option", "--help", "-I", "ci.nix", "a", "a.b", "", "1 + 1", "{ }: 1",
            "--out-link", "-ls", "<nixpkgs>", "https://h/x.tar.gz", "x=y", "out", ".#a", "./.", "\"a.b\".c", "''", "${x}", "\n", "true",
        ][..]).prop_map(str::to_owned),
        1 => text(),
        1 => "-{1,2}[a-z-]{1,9}( [a-z]{1,3})?",
    ]
}

/// Keys of a step: what it evaluates, and how, with texts that may be anything.
fn keys_of_a_step() -> impl Strategy<Value = Keys> {
    let source = prop_oneof![Just("file"), Just("expr"), Just("flake")];
    let attr = prop_oneof![
        flaglike().prop_map(Value::from),
        vec(flaglike(), 0..3).prop_map(Value::from)
    ];
    let arguments = || {
        vec((flaglike(), flaglike()), 0..2).prop_map(|pairs| {
            pairs
                .into_iter()
                .map(|(name, text)| (name, text.into()))
                .collect::<Keys>()
        })
    };
    (source, flaglike(), attr, arguments(), arguments(), vec(flaglike(), 0..3)).prop_map(
        |(source, what, attr, arg, argstr, include)| {
            let keys = json!({ source: what, "attr": attr, "arg": arg, "argstr": argstr, "include": include });
            keys.as_object().unwrap().clone()
        },
    )
}

/// A flag and its values.
type Flag = (String, Vec<String>);

/// Reads a command line as Nix's programs do (`MixEvalArgs`, `LegacyArgs`): its flags and their values, and what is no flag. A flag that
/// is none of these is an error.
fn read_as_nix(line: &CommandLine) -> Result<(Vec<Flag>, Vec<String>), String> {
    read(line, |flag| {
        Some(match flag {
            "-E"
            | "--expr"
            | "--no-out-link"
            | "--no-link"
            | "--no-update-lock-file"
            | "--json"
            | "--realise"
            | "--derivation"
            | "--check-validity"
            | "--print-invalid"
            | "--dry-run"
            | "--eval"
            | "--read-write-mode"
            | "--meta"
            | "--force-recurse" => 0,
            "-A"
            | "-I"
            | "--extra-experimental-features"
            | "--log-format"
            | "--add-root"
            | "--store"
            | "--to"
            | "--from"
            | "--workers"
            | "--max-memory-size"
            | "--gc-roots-dir" => 1,
            "--arg" | "--argstr" | "--option" => 2,
            _ => return None,
        })
    })
}

/// Reads a command line by how many values each flag has.
fn read(
    line: &CommandLine,
    values_of: impl Fn(&str) -> Option<usize>,
) -> Result<(Vec<Flag>, Vec<String>), String> {
    let mut words = line.words().into_iter().skip(1);
    let (mut flags, mut others) = (Vec::new(), Vec::new());
    while let Some(word) = words.next() {
        match values_of(&word) {
            Some(values) => flags.push((word, words.by_ref().take(values).collect())),
            None if word.starts_with('-') => return Err(format!("{word:?} is a flag")),
            None => others.push(word),
        }
    }
    Ok((flags, others))
}

/// Reads the value of `-A` as Nix does (`parseAttrPath`): in quotes, no character but the quote has a meaning.
fn names_as_nix(selection: &str) -> Vec<String> {
    let mut names = vec![String::new()];
    let mut quoted = false;
    for c in selection.chars() {
        match c {
            '"' => quoted = !quoted,
            '.' if !quoted => names.push(String::new()),
            c => names.last_mut().unwrap().push(c),
        }
    }
    names
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_configuration_of_any_text_is_read_or_refused(text in text(), value in value(), key in "[a-z-]{1,9}") {
        for text in [text, value.to_string(), json!([{ key: value }]).to_string()] {
            if let Err(failure) = plugin::configuration(Some(&text), None) {
                prop_assert_eq!(failure.class.status(), 64);
            }
            let _ = plugin::configuration(None, Some(&text));
            for entry in plugin::entries(&text).unwrap_or_default() {
                let _ = (entry.name(), entry.identifier(), entry.folder_of_repository());
            }
        }
    }

    #[test]
    fn keys_of_a_step_of_any_values_are_read_or_refused(
        keys in vec((proptest::sample::select(&["drv", "outputs", "file", "attr", "arg", "out-link", "options", "share", "push", "log", "refused", "skip"][..]), value()), 0..5),
        confined in any::<bool>(),
    ) {
        let keys: Keys = keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let place = Checkout { folder: "/checkout".into(), confined, no_checkout: false };
        if let Err(failure) = StepRequest::read(keys, &place) {
            prop_assert_eq!(failure.class.status(), 64);
        }
    }

    #[test]
    fn no_text_of_a_step_is_a_flag_of_nix(keys in keys_of_a_step()) {
        let place = Checkout { folder: "/checkout".into(), confined: false, no_checkout: false };
        let Ok(request) = StepRequest::read(keys.clone(), &place) else {
            return Ok(());
        };
        let Some(evaluation) = &request.evaluation else {
            return Ok(());
        };
        let (options, folder) = (&request.options, Path::new("/tmp/f"));
        let lines = [
            Some(command::instantiate(evaluation, None, None, options)),
            command::nix_build(evaluation, None, options, Some((2, 34))),
            Some(command::show_value(evaluation, None, options)),
            Some(command::catch(evaluation, None, options)),
            Some(command::converse(evaluation, "{}", None, None, (command::WalkerFile::OnSearchPath, folder), options)),
            Some(command::walk_once(evaluation, "{}", None, None, "[ ]", options)),
            Some(command::eval_jobs(evaluation, None, 1, Some(64), true, Some(folder), options)),
        ];
        for line in lines.into_iter().flatten() {
            let (flags, others) = read_as_nix(&line).map_err(TestCaseError::fail)?;
            let of = |flag: &str| {
                let flags = flags.iter().filter(|(name, _)| name == flag);
                flags.map(|(_, values)| values.clone()).collect::<Vec<_>>()
            };
            // What is evaluated is one word, besides the command of `nix build`.
            let words = if others.first().is_some_and(|word| word == "build") { 2 } else { 1 };
            prop_assert_eq!(others.len(), words, "{}", &line);
            let pairs = |key: &str| -> Vec<Vec<String>> {
                let pairs = keys[key].as_object().unwrap().iter();
                pairs.map(|(name, text)| vec![name.clone(), text.as_str().unwrap().to_owned()]).collect()
            };
            if line.program == "nix-build" && evaluation.call {
                prop_assert_eq!(of("--arg"), pairs("arg"), "{}", &line);
                prop_assert_eq!(of("--argstr"), pairs("argstr"), "{}", &line);
            }
            for selection in of("-A") {
                prop_assert_eq!(names_as_nix(&selection[0]), evaluation.attr.names(), "{}", &line);
            }
        }
    }

    #[test]
    fn no_link_option_store_or_flake_of_a_step_is_a_flag_of_nix(
        link in flaglike(),
        option in (flaglike(), flaglike()),
        push in prop_oneof![flaglike(), flaglike().prop_map(|text| format!("file:///{text}"))],
        flake in flaglike(),
    ) {
        let drv = DrvPath::parse(&format!("/nix/store/{HASH}-a.drv")).unwrap();
        let place = Checkout { folder: "/checkout".into(), confined: false, no_checkout: false };
        // One at a time: what is refused is no argument of anything.
        let keys = [
            json!({ "out-link": link }),
            json!({ "options": { &option.0: option.1 } }),
            json!({ "push": push }),
            json!({ "flake": flake }),
        ];
        for mut keys in keys {
            let is_evaluated = keys.get("flake").is_some();
            if !is_evaluated {
                keys["drv"] = drv.to_string().into();
            }
            let Ok(request) = StepRequest::read(keys.as_object().unwrap().clone(), &place) else {
                continue;
            };
            let link = match &request.out_link {
                OutLink::At(link) => Some(link.as_path()),
                OutLink::State => None,
            };
            let path = drv.as_store_path();
            let options = &request.options;
            // The words that are neither flags nor their values: paths of the store, and the command of `nix`.
            let mut lines = vec![
                (command::realise(&drv, link, options), vec![path.as_str()]),
                (command::obtain(&[path], link, options), vec![path.as_str()]),
            ];
            if let Some(push) = &request.push {
                lines.extend([
                    (command::copy_outputs_to(push, &[path], options), vec!["copy", path.as_str()]),
                    (command::copy_drvs_to(push, &[path], options), vec!["copy", path.as_str()]),
                    (command::copy_drv_from(push, &drv, options), vec!["copy", path.as_str()]),
                    (command::lacking_in(push, &[path], options), vec![path.as_str()]),
                    (command::would_obtain_from(push, &[path], options), vec![path.as_str()]),
                ]);
            }
            if let Some(Source::Flake(flake)) = request.evaluation.as_ref().map(|one| &one.source) {
                let line = command::flake_metadata(flake, Path::new("/checkout"), options);
                lines.push((line, vec!["flake", "metadata", flake]));
            }
            for (line, words) in lines {
                let (flags, others) = read_as_nix(&line).map_err(TestCaseError::fail)?;
                prop_assert_eq!(others, words, "{}", &line);
                let of = |flag: &str| -> Vec<&Vec<String>> {
                    flags.iter().filter(|(name, _)| name == flag).map(|(_, values)| values).collect()
                };
                if let Some(link) = link.filter(|_| !of("--add-root").is_empty()) {
                    prop_assert_eq!(of("--add-root"), [&vec![link.to_str().unwrap().to_owned()]], "{}", &line);
                    prop_assert!(link.is_absolute());
                }
                for (name, value) in options {
                    prop_assert!(of("--option").contains(&&vec![name.clone(), value.clone()]), "{}", &line);
                }
            }
        }
    }
}

/// A job's variables that say what is checked out, of any texts. Those that hold flags of git are as they are by default: whoever
/// sets them sets flags.
fn repository() -> impl Strategy<Value = Repository> {
    let url = prop_oneof![
        1 => flaglike(),
        1 => (flaglike(), flaglike()).prop_map(|(user, host)| format!("https://{user}:x@{host}/r.git")),
    ];
    let commit = prop_oneof![
        1 => Just("HEAD".to_owned()),
        1 => Just("a".repeat(40)),
        1 => flaglike(),
    ];
    let texts = (flaglike(), flaglike());
    let optional = || proptest::option::of(flaglike());
    (url, commit, texts, optional(), optional(), any::<bool>()).prop_map(
        |(url, commit, (branch, submodule_config), refspec, pull_request, submodules)| Repository {
            url,
            commit,
            branch,
            refspec,
            pull_request,
            merged: submodules,
            provider: "github".into(),
            clone_flags: "-v".into(),
            fetch_flags: "-v --prune".into(),
            checkout_flags: "-f".into(),
            submodules,
            submodule_config,
            build: "b".into(),
            folder_name: "f".into(),
        },
    )
}

/// Reads a command line as git does: the settings before its subcommand, which take a value; the subcommand and its flags; what is no
/// flag. Only what is behind `--` may be any text.
fn read_as_git(line: &CommandLine) -> Result<[Vec<String>; 3], String> {
    let mut words = line.words().into_iter().skip(1).peekable();
    let mut settings = Vec::new();
    while words.next_if(|word| word == "-c").is_some() {
        settings.extend(words.next());
    }
    let mut others = Vec::new();
    let mut flags = vec![words.next().ok_or("no subcommand")?];
    for word in words.by_ref() {
        match word.as_str() {
            "--" => break,
            "-v" | "-f" | "--progress" | "--no-checkout" | "--prune" | "--recursive" | "--init"
            | "--force" => flags.push(word),
            flag if flag.starts_with('-') => return Err(format!("{flag:?} is a flag")),
            _ => others.push(word),
        }
    }
    others.extend(words);
    Ok([settings, flags, others])
}

/// Reads a command line as the agent does (`reorderArgs` of urfave/cli v1): wherever they are, words that begin with `-` are flags, but
/// for the value of a flag.
fn read_as_agent(line: &CommandLine) -> Result<(Vec<Flag>, Vec<String>), String> {
    read(line, |flag| {
        Some(match flag {
            "--step" | "--format" | "--default" | "--context" | "--style" => 1,
            "--format="
            | "--build="
            | "--include-retried-jobs"
            | "--allow-empty-results"
            | "--sha256"
            | "--append=true"
            | "--append=false" => 0,
            _ => return None,
        })
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_text_of_a_job_is_a_flag_of_git(repository in repository(), login in any::<bool>()) {
        let login = login.then_some(Path::new("/login"));
        let Ok(lines) = repository.lines(Path::new("/checkout"), login) else {
            return Ok(());
        };
        let all = [&lines.clone, &lines.fetch, &lines.check_out].into_iter();
        for line in all.chain(&lines.fetch_all).chain(&lines.submodules) {
            let [settings, flags, others] = read_as_git(line).map_err(TestCaseError::fail)?;
            let is_of_submodules = flags[0] == "submodule";
            for setting in settings {
                // The settings of the job's variable are whole ones, as the agent passes them; a login says nothing but where it is.
                let (name, value) = setting.split_once('=').unwrap_or((&setting, ""));
                let of_ours = matches!(name, "advice.detachedHead" | "gc.auto" | "maintenance.auto")
                    || name.starts_with("credential.")
                        && name.ends_with(".helper")
                        && (value.is_empty() || value == "store --file=/login");
                prop_assert!(of_ours || is_of_submodules && repository.submodule_config.contains(&setting), "{setting:?} of {line}");
            }
            let known = if repository.commit == "HEAD" { "FETCH_HEAD" } else { &repository.commit };
            let is_as_meant = match flags[0].as_str() {
                "clone" => others.len() == 2 && others[1] == ".",
                "fetch" => others[0] == "origin",
                "checkout" => others == [known],
                _ => others == ["sync"] || others == ["update"],
            };
            prop_assert!(is_as_meant, "{line}");
        }
    }

    #[test]
    fn no_text_of_a_build_is_a_flag_of_the_agent(text in flaglike(), folder in flaglike()) {
        let folder = Path::new("/tmp").join(folder.replace('/', ""));
        let mark = format!("eval-once:{text}");
        let mut lines = vec![
            (agent::step_with_key(&text), vec!["step", "get", "key"]),
            (agent::step_outcome(&text), vec!["step", "get", "outcome"]),
            (agent::step_state(&text), vec!["step", "get", "state"]),
            (agent::get_meta_data(&mark), vec!["meta-data", "get", &mark]),
            (agent::annotate(&text, "info", true, &folder), vec!["annotate"]),
        ];
        let into = folder.join("").to_str().unwrap().to_owned();
        lines.extend([
            (agent::download_artifact("plan.json", &text, &folder), vec!["artifact", "download", "plan.json", &into]),
            (agent::artifacts_of_job("plan.json", &text), vec!["artifact", "search", "plan.json*"]),
        ]);
        let keys = json!({ "drv": drv().to_string(), "share": format!("artifact:{text}") });
        let place = Checkout { folder: "/checkout".into(), confined: false, no_checkout: false };
        let request = StepRequest::read(keys.as_object().unwrap().clone(), &place).ok();
        let share = request.and_then(|request| request.share);
        if let Some(StepShare::From(Share::Artifact(name))) = &share {
            prop_assert_eq!(name, &text);
            lines.extend([
                (agent::artifact_sha256(name), vec!["artifact", "shasum", name]),
                (agent::download_from_build(name, &folder), vec!["artifact", "download", name, &into]),
            ]);
        }
        for (line, words) in lines {
            let (flags, others) = read_as_agent(&line).map_err(TestCaseError::fail)?;
            prop_assert_eq!(others, words, "{}", &line);
            let of_step = flags.iter().filter(|(name, _)| name == "--step" || name == "--context");
            for (_, values) in of_step {
                prop_assert_eq!(values, std::slice::from_ref(&text), "{}", &line);
            }
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
    let place = Checkout {
        folder: "/checkout".into(),
        confined: false,
        no_checkout: false,
    };
    let keys = json!({ "file": "-x.nix", "attr": "a", "arg": { "n": "--x" } });
    let request = StepRequest::read(keys.as_object().unwrap().clone(), &place).unwrap();
    let mut line = command::instantiate(request.evaluation.as_ref().unwrap(), None, None, &[]);
    let (flags, others) = read_as_nix(&line).unwrap();
    assert!(flags.contains(&("--arg".to_owned(), vec!["n".to_owned(), "--x".to_owned()])));
    assert_eq!(others, ["./-x.nix"]);
    line.arguments.push("--x".into());
    assert!(read_as_nix(&line).is_err());
    assert!(read_as_git(&line).is_err() && read_as_agent(&line).is_err());
}
