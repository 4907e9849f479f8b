//! Nix's structured log: what several versions of Nix have printed (`tests/samples`, made by `script/samples`) is understood
//! alike, with and without a daemon, however its bytes are cut.

use std::collections::BTreeSet;
use std::path::Path;

use eval_once::command_line::Ending;
use eval_once::exit::Class;
use eval_once::nix::structured::{Event, LogReader, PLAIN_AT_MOST, STRUCTURED_AT_MOST};
use eval_once::nix::{NixOutput, Phase, class};
use proptest::prelude::*;

const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/samples");

/// What a Nix has printed, and how it ended.
struct Sample {
    name: String,
    status: i32,
    printed: Vec<u8>,
}

fn samples() -> Vec<Sample> {
    let mut samples = Vec::new();
    for version in Path::new(SAMPLES).read_dir().unwrap() {
        let folder = version.unwrap().path();
        let statuses = std::fs::read_to_string(folder.join("statuses")).unwrap();
        for line in statuses.lines() {
            let (scenario, status) = line.split_once(' ').unwrap();
            samples.push(Sample {
                name: format!(
                    "{} of {}",
                    scenario,
                    folder.file_name().unwrap().to_string_lossy()
                ),
                status: status.parse().unwrap(),
                printed: std::fs::read(folder.join(format!("{scenario}.log"))).unwrap(),
            });
        }
    }
    assert!(!samples.is_empty());
    samples
}

impl Sample {
    /// The scenario, without how the store was reached and which Nix it was.
    fn scenario(&self) -> &str {
        let (scenario, _) = self.name.split_once(" of ").unwrap();
        scenario
            .strip_suffix("-local")
            .or_else(|| scenario.strip_suffix("-daemon"))
            .unwrap_or(scenario)
    }
}

/// Each scenario that fails: its class, how many derivations fail by themselves in it, and the name of the first of them.
const FAILURES: [(&str, Class, usize, &str); 33] = [
    ("build-failure", Class::Build, 1, "bad"),
    ("dependency-failure", Class::Build, 1, "bad"),
    ("no-output", Class::Build, 1, "empty"),
    ("timeout", Class::Timeout, 1, "slow"),
    ("max-silent-time", Class::Timeout, 1, "silent"),
    ("hash-mismatch", Class::Hash, 1, "wrong"),
    ("keep-going-build-hash", Class::Mixed, 2, ""),
    ("keep-going-build-hash-timeout", Class::Mixed, 3, ""),
    ("keep-going-two-builds", Class::Build, 2, ""),
    ("keep-going-parallel", Class::Mixed, 3, ""),
    ("failure-while-others-run", Class::Build, 1, "bad"),
    ("wrong-system", Class::Build, 1, "foreign"),
    ("wrong-system-below", Class::Build, 1, "foreign"),
    ("missing-feature", Class::Build, 1, "special"),
    ("builder-killed", Class::Build, 1, ""),
    ("builder-missing", Class::Build, 1, "nobody"),
    ("builder-imitates", Class::Build, 1, "liar"),
    ("output-check", Class::Build, 1, "refers"),
    ("check-differs", Class::Nondeterministic, 1, "chance"),
    ("disk-full-builder", Class::Infrastructure, 1, "filler"),
    ("disk-full-nix", Class::Infrastructure, 0, ""),
    ("disk-full-substitution", Class::Infrastructure, 0, ""),
    ("cache-died", Class::Infrastructure, 0, ""),
    ("cache-refused-output", Class::Infrastructure, 0, ""),
    ("cache-refused-build-failure", Class::Build, 1, ""),
    ("daemon-dead", Class::Infrastructure, 0, ""),
    ("daemon-killed", Class::Infrastructure, 0, ""),
    ("worker-killed", Class::Infrastructure, 0, ""),
    ("evaluation-throw", Class::Evaluation, 0, ""),
    ("evaluation-needs-failing-builder", Class::Build, 1, ""),
    ("evaluation-needs-failing-dependency", Class::Build, 1, ""),
    ("evaluation-needs-foreign-system", Class::Build, 1, ""),
    ("evaluation-needs-wrong-hash", Class::Hash, 1, ""),
];

/// Scenarios that fail and need no test here: other conditions decide about a step that was stopped, or whose `.drv` is gone; and
/// one evaluation error is like another.
const OTHER_FAILURES: [&str; 5] = [
    "evaluation-missing-attribute",
    "evaluation-syntax-error",
    "interrupted",
    "missing-drv",
    "missing-drv-below",
];

#[test]
fn each_failure_is_the_same_on_every_nix_and_through_a_daemon() {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for sample in samples() {
        let Some((scenario, class, faults, root_cause)) = FAILURES
            .iter()
            .find(|(scenario, ..)| *scenario == sample.scenario())
        else {
            let known = sample.status == 0 || OTHER_FAILURES.contains(&sample.scenario());
            assert!(known, "nothing is expected of {}", sample.name);
            continue;
        };
        seen.insert(*scenario);
        let nix_output = NixOutput::of(&sample.printed);
        let ending = Ending::Exited(sample.status);
        let found = if scenario.starts_with("evaluation-") {
            class::of(Phase::Evaluating, ending, &nix_output)
        } else {
            class::of(Phase::Building, ending, &nix_output)
        };
        let first = nix_output.root_cause().and_then(|fault| fault.drv.as_ref());
        let first = first.map_or("", |drv| drv.as_store_path().name());
        let named = root_cause.is_empty() || first.strip_suffix(".drv") == Some(root_cause);
        if (found, nix_output.faults.len()) != (*class, *faults) || !named {
            wrong.push(format!(
                "{}: {found:?}, {:#?}",
                sample.name, nix_output.faults
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen.len(), FAILURES.len(), "no sample of some of them");
}

/// All events, as text.
fn events(pieces: &[&[u8]]) -> Vec<String> {
    let mut reader = LogReader::default();
    let mut events = Vec::new();
    for piece in pieces {
        reader.read(piece, |event| events.push(format!("{event:?}")));
    }
    reader.finish(|event| events.push(format!("{event:?}")));
    events
}

fn cut<'a>(bytes: &'a [u8], at: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut ends: Vec<usize> = at.iter().map(|at| at.index(bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let mut begin = 0;
    ends.into_iter()
        .map(|end| &bytes[std::mem::replace(&mut begin, end)..end])
        .collect()
}

fn line() -> impl Strategy<Value = Vec<u8>> {
    let long = (b'a'..=b'z', 60_000_usize..200_000).prop_map(|(byte, times)| vec![byte; times]);
    let structured = ("start|stop|result|msg|x", 0_u64..4, 99_u64..112, any::<String>()).prop_map(
        |(action, id, kind, text)| {
            let fields = serde_json::json!([text, 1, "x"]);
            let line = serde_json::json!({ "action": action, "id": id, "type": kind, "msg": text, "fields": fields });
            format!("@nix {line}").into_bytes()
        },
    );
    prop_oneof![
        4 => structured,
        2 => proptest::collection::vec(any::<u8>(), 0..50),
        1 => Just(b"@nix {\"action\":\"msg\",\"msg\":\"half".to_vec()),
        1 => Just(b"@ni".to_vec()),
        1 => long.clone(),
        1 => long.prop_map(|mut long| {
            // Longer than what is kept of a structured line.
            long.resize(1_200_000, b'y');
            let mut line = b"@nix {\"action\":\"msg\",\"msg\":\"".to_vec();
            line.extend(long);
            line.extend(b"\"}");
            line
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn however_the_bytes_are_cut_the_events_are_the_same(
        lines in proptest::collection::vec(line(), 0..12),
        at in proptest::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let printed = lines.join(&b'\n');
        prop_assert_eq!(events(&cut(&printed, &at)), events(&[&printed]));
    }
}

#[test]
fn a_line_that_is_just_as_long_as_it_may_be_is_one_however_it_is_cut() {
    let line = vec![b'a'; PLAIN_AT_MOST];
    let printed = [&line[..], b"\nb\n"].concat();
    let whole = events(&[&printed]);
    assert_eq!(whole.len(), 2);
    for cut in [1, PLAIN_AT_MOST, PLAIN_AT_MOST + 1] {
        let (begin, end) = printed.split_at(cut);
        assert!(events(&[begin, end]) == whole, "cut at {cut}");
    }
}

#[test]
fn each_sample_cut_at_every_place_is_the_same() {
    for sample in samples() {
        let whole = events(&[&sample.printed]);
        let each: Vec<&[u8]> = sample.printed.chunks(1).collect();
        assert_eq!(events(&each), whole, "{}", sample.name);
        let printed: Vec<&[u8]> = sample.printed.chunks(7).collect();
        assert_eq!(events(&printed), whole, "{}", sample.name);
    }
}

/// What is kept of each of these lines, and how much of it is said to be left out.
fn kept(lines: &[String]) -> Vec<(String, usize)> {
    let mut kept = Vec::new();
    let mut reader = LogReader::default();
    for line in lines {
        for piece in line.as_bytes().chunks(65_536).chain([&b"\n"[..]]) {
            reader.read(piece, |event| {
                kept.push(match event {
                    Event::BuildLine {
                        line,
                        omitted,
                        id: 1,
                    } => (line.into_owned(), omitted),
                    Event::Message { text, omitted, .. } => (text.into_owned(), omitted),
                    Event::Plain(line) => (
                        String::from_utf8(line.bytes.to_vec()).unwrap(),
                        line.omitted,
                    ),
                    Event::TooLong(bytes) => (String::new(), bytes),
                    other => panic!("{other:?}"),
                });
            });
        }
    }
    kept
}

#[test]
fn of_a_line_of_megabytes_the_begin_is_kept_and_the_rest_counted() {
    for text in ["x", "\\", "\n", "é", "\u{1b}", "\"],\"id\":2,\"type\":101}"] {
        let long = text.repeat((3 << 20) / text.len());
        let json = serde_json::to_string(&long).unwrap();
        let lines = [
            format!("@nix {{\"action\":\"result\",\"fields\":[{json}],\"id\":1,\"type\":101}}"),
            format!("@nix {{\"action\":\"msg\",\"level\":0,\"msg\":{json},\"raw_msg\":{json}}}"),
        ];
        let kept = kept(&lines);
        assert_eq!(kept.len(), 2);
        for ((begin, omitted), line) in kept.iter().zip(&lines) {
            assert!(
                long.starts_with(begin.as_str()) && begin.len() > 100_000,
                "{text:?}"
            );
            assert_eq!(*omitted, line.len() - STRUCTURED_AT_MOST);
        }
    }
    let begin = "@nix {\"action\":";
    let unclear = format!("{begin}[{}", "1,".repeat(1 << 20));
    assert_eq!(
        kept(std::slice::from_ref(&unclear)),
        [(String::new(), unclear.len())]
    );
    let plain = "a".repeat(PLAIN_AT_MOST) + "bc";
    assert_eq!(kept(&[plain]), [("a".repeat(PLAIN_AT_MOST), 2)]);
}

#[test]
fn a_line_without_end_costs_no_memory_without_end() {
    // Its reader is all that could hold it; what it is given each time is gone before the next.
    let mut reader = LogReader::default();
    for begin in ["@nix {\"action\":\"msg\",\"msg\":\"", "trace: "] {
        reader.read(begin.as_bytes(), |_| unreachable!());
        for _ in 0..40 {
            reader.read(&vec![b'x'; 1 << 20], |_| unreachable!());
        }
        assert!(format!("{reader:?}").len() < 8 * STRUCTURED_AT_MOST);
        let mut events = 0;
        reader.read(b"\n", |_| events += 1);
        assert_eq!(events, 1);
    }
}
