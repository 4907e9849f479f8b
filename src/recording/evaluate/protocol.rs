//! The walker's settings, tasks and messages as data. `walk.nix` is the other side.

use serde::{Deserialize, Serialize};

use super::schedule::Task;
use super::spans::{AttrIndex, Span};
use crate::keys::Keys;
use crate::nix::DrvPath;
use crate::recording::Meta;
use crate::recording::following::{FollowerMeta, FollowerState, RunDerivation};
use crate::secrets::redacted;

/// The walker's settings, as `walk.nix` describes them.
#[derive(Debug, Serialize)]
pub(super) struct WalkerSettings<'a> {
    pub(super) marker: &'a str,
    /// Relative to the root of the walk.
    pub(super) exclude: &'a [Vec<String>],
    /// The targets that are known already, nested, relative to the root of the walk.
    pub(super) known: &'a serde_json::Value,
    pub(super) all: bool,
    pub(super) systems: Option<&'a [String]>,
    pub(super) buildkite: bool,
}

impl WalkerSettings<'_> {
    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// How a task is walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WalkKind {
    /// In a conversation.
    Spans,
    /// In a process of its own, so that what throws is caught: it would end that. It lives on when the task is done.
    Alone,
    /// Unmarked sets are searched for derivations.
    Search,
}

/// A task as `walk.nix` takes it.
pub(super) fn task_text(task: &Task, kind: WalkKind) -> String {
    let spans = match &task.spans {
        None => "null".to_owned(),
        Some(spans) => {
            let spans: String = spans.iter().map(Span::nix).collect();
            format!("[{spans}]")
        }
    };
    let flags = [
        (kind == WalkKind::Alone, "hold=true;"),
        (task.catch || kind == WalkKind::Alone, "catch=true;"),
        (kind == WalkKind::Search, "search=true;"),
    ];
    let flags: String = flags
        .iter()
        .filter_map(|(is_set, flag)| is_set.then_some(*flag))
        .collect();
    format!("{{spans={spans};{flags}}}")
}

/// A message of the walker, most of them about one attribute.
#[derive(Debug, PartialEq)]
pub(super) enum WalkerMessage {
    /// The evaluation of the attribute with this name begins.
    Begin(AttrIndex, AttrName),
    /// The attribute with this name is excluded, by the exclusions with these numbers.
    Excluded(AttrIndex, Vec<usize>, AttrName),
    /// The attribute with this name is a known target, and not evaluated.
    Known(AttrIndex, AttrName),
    /// A set that is not walked, because it is not marked.
    Unmarked(AttrIndex),
    /// Not walked in a flake: outputs at the root, else systems.
    Beside(AttrIndex, Vec<String>),
    /// Whether derivations were found in an unmarked set.
    Holds(AttrIndex, bool),
    /// Its step must not call it.
    Callable(AttrIndex),
    /// A set or a list of this many attributes.
    Set(AttrIndex, u32),
    /// A derivation; or what is wrong with its description.
    Target(AttrIndex, Result<DescribedTarget, String>),
    /// A derivation that evaluates; the evaluation of its metadata begins.
    Meta(AttrIndex),
    /// The evaluation of the step with this number begins, which follows the target.
    Follow(AttrIndex, usize),
    /// A step that follows the target; or what is wrong with it.
    Follower(AttrIndex, usize, Result<DescribedFollower, String>),
    /// It throws, which the task catches.
    Lost(AttrIndex, usize),
    /// It throws, which the task catches.
    Throws(AttrIndex),
    /// Its metadata cannot be used: the end of a sentence.
    Refused(AttrIndex, String),
    /// It does not evaluate, though nothing was thrown: the reason.
    Error(AttrIndex, String),
    /// It is nested too deeply.
    Deep(AttrIndex),
    /// The root is neither a set, a list nor a derivation, but this: `a string`.
    Other(String),
    /// The task is done, by this version of Nix.
    End(String),
    /// The line before this one was evaluated, or has failed.
    Done,
    /// The next line begins.
    Next,
    /// The evaluation is not pure.
    Impure,
}

/// The name of an attribute, which need not be UTF-8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AttrName {
    pub(super) text: String,
    pub(super) is_utf8: bool,
}

/// A derivation as the walker describes it.
#[derive(Debug, PartialEq, Deserialize)]
pub(super) struct DescribedTarget {
    pub(super) drv: String,
    /// Its path is a plain string: this evaluation need not have written it.
    #[serde(default)]
    pub(super) named: bool,
    #[serde(default)]
    pub(super) meta: DescribedMeta,
    /// The names of the steps that follow it.
    #[serde(default)]
    pub(super) steps: Vec<String>,
}

/// A step that follows a target, with values of any type.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum DescribedFollower {
    /// It cannot be used.
    Refused { text: String },
    /// What it says, and the derivation that it runs.
    Keys {
        keys: serde_json::Value,
        run: Option<DescribedRun>,
    },
}

/// A derivation that a step runs.
#[derive(Debug, PartialEq, Deserialize)]
pub(super) struct DescribedRun {
    drv: String,
    program: Option<serde_json::Value>,
}

impl DescribedFollower {
    /// Reads the step with this name.
    pub(super) fn read(self, name: &str) -> Result<FollowerState, String> {
        let (keys, run) = match self {
            Self::Refused { text } => return Err(text),
            Self::Keys { keys, run } => (keys, run),
        };
        let at = format!("meta.eval-once.steps.{name}");
        let serde_json::Value::Object(keys) = keys else {
            return Err(format!(
                "{at} is {}; expected an attribute set",
                article(&keys)
            ));
        };
        let run = run.map(|run| run.read(&at)).transpose()?;
        Ok(FollowerState::Read { keys, run })
    }
}

impl DescribedRun {
    fn read(self, at: &str) -> Result<RunDerivation, String> {
        let drv = DrvPath::parse(&self.drv)
            .map_err(|wrong| format!("the drvPath of {at}.run {wrong}: {:?}", self.drv))?;
        let program = match self.program {
            None | Some(serde_json::Value::Null) => None,
            Some(serde_json::Value::String(name)) if is_file_name(&name) => Some(name),
            Some(value) => {
                return Err(format!(
                    "{at}.run.meta.mainProgram is {value}; expected the name of a file in bin"
                ));
            }
        };
        Ok(RunDerivation { drv, program })
    }
}

/// Whether a file can have this name.
fn is_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

/// Its metadata, with values of any type.
#[derive(Debug, Default, PartialEq, Deserialize)]
pub(super) struct DescribedMeta {
    pub(super) buildkite: Option<serde_json::Value>,
    #[serde(rename = "eval-once")]
    pub(super) eval_once: Option<serde_json::Value>,
    timeout: Option<serde_json::Value>,
    #[serde(rename = "maxSilent")]
    max_silent: Option<serde_json::Value>,
    description: Option<serde_json::Value>,
}

impl DescribedMeta {
    /// Reads it strictly, but for the description: a timeout of the wrong type would otherwise be no timeout.
    pub(super) fn read(self) -> Result<Meta, String> {
        let buildkite = set("buildkite", self.buildkite)?;
        let mut eval_once = set("eval-once", self.eval_once)?;
        let followers = followers(eval_once.as_mut())?;
        let timeout = seconds("timeout", self.timeout)?;
        let max_silent = seconds("maxSilent", self.max_silent)?;
        let description = self
            .description
            .and_then(|value| value.as_str().map(str::to_owned));
        Ok(Meta {
            buildkite,
            eval_once,
            timeout,
            max_silent,
            description,
            followers,
        })
    }
}

/// Takes the steps out of `meta.eval-once` that follow the target: `nix-eval-jobs` leaves them there, as far as they are plain data.
fn followers(eval_once: Option<&mut Keys>) -> Result<Vec<FollowerMeta>, String> {
    let steps = match eval_once.and_then(|keys| keys.remove("steps")) {
        None => return Ok(Vec::new()),
        Some(serde_json::Value::Object(steps)) => steps,
        Some(value) => {
            return Err(format!(
                "meta.eval-once.steps is {}; expected an attribute set",
                article(&value)
            ));
        }
    };
    let steps = steps.into_iter().map(|(name, keys)| {
        let described = DescribedFollower::Keys { keys, run: None };
        let state = described.read(&name);
        FollowerMeta {
            name,
            state: state.unwrap_or_else(lost),
        }
    });
    Ok(steps.collect())
}

/// The state of a step with this error.
pub(super) fn lost(message: impl AsRef<str>) -> FollowerState {
    // It stands in steps, annotations and documents.
    FollowerState::Lost(Some(redacted(message.as_ref()).into_owned()))
}

fn set(name: &str, value: Option<serde_json::Value>) -> Result<Option<Keys>, String> {
    match value {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(serde_json::Value::Object(keys)) => Ok(Some(keys)),
        Some(value) => Err(format!(
            "meta.{name} is {}; expected an attribute set",
            article(&value)
        )),
    }
}

/// A value of this type, in words.
fn article(value: &serde_json::Value) -> &'static str {
    match value {
        serde_json::Value::Null => "null",
        serde_json::Value::Bool(_) => "a Boolean",
        serde_json::Value::Number(_) => "a number",
        serde_json::Value::String(_) => "a string",
        serde_json::Value::Array(_) => "a list",
        serde_json::Value::Object(_) => "an attribute set",
    }
}

/// A number of seconds. A string of digits is one as well, as for `nix-env` and Hydra (`DrvInfo::queryMetaInt`): metadata could
/// not hold numbers once.
fn seconds(name: &str, value: Option<serde_json::Value>) -> Result<Option<u64>, String> {
    let number = match &value {
        None | Some(serde_json::Value::Null) => return Ok(None),
        Some(serde_json::Value::String(text)) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            text.parse().ok()
        }
        Some(value) => value.as_u64(),
    };
    let number = number.filter(|seconds| *seconds > 0 && i64::try_from(*seconds).is_ok());
    match (number, value) {
        (Some(seconds), _) => Ok(Some(seconds)),
        (None, value) => Err(format!(
            "meta.{name} is {}; expected a whole number of seconds, at least 1",
            value.unwrap_or_default()
        )),
    }
}

/// Whether this line says that a line was evaluated, or has failed.
pub(super) fn is_end_of_line(line: &[u8], marker: &str) -> bool {
    after_marker(line, marker)
        .is_some_and(|rest| rest.starts_with(b" done ") || rest.starts_with(b" next "))
}

/// What stands behind the marker.
fn after_marker<'a>(line: &'a [u8], marker: &str) -> Option<&'a [u8]> {
    // Nix writes `trace: ` before it, which may be coloured.
    const BEFORE: usize = 64;
    let marker = marker.as_bytes();
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let at = line[..line.len().min(BEFORE)]
        .windows(marker.len())
        .position(|part| part == marker)?;
    Some(&line[at + marker.len()..])
}

/// Reads a message of the walker; none where the line is not one.
pub(super) fn read(line: &[u8], marker: &str) -> Option<WalkerMessage> {
    let mut parts = after_marker(line, marker)?
        .strip_prefix(b" ")?
        .splitn(3, |byte| *byte == b' ');
    let word = parts.next()?;
    let path = AttrIndex::parse(std::str::from_utf8(parts.next()?).ok()?)?;
    let rest = parts.next().unwrap_or_default();
    let text = || String::from_utf8_lossy(rest).into_owned();
    Some(match word {
        b"begin" => WalkerMessage::Begin(path, name(rest)),
        b"excluded" => {
            let (numbers, name) = rest.split_at(rest.iter().position(|byte| *byte == b' ')?);
            let numbers = std::str::from_utf8(numbers).ok()?.split(',');
            let numbers = numbers.map(str::parse).collect::<Result<_, _>>().ok()?;
            WalkerMessage::Excluded(path, numbers, self::name(&name[1..]))
        }
        b"known" => WalkerMessage::Known(path, name(rest)),
        b"unmarked" => WalkerMessage::Unmarked(path),
        b"beside" => WalkerMessage::Beside(path, text().split(',').map(str::to_owned).collect()),
        b"holds" => WalkerMessage::Holds(path, true),
        b"empty" => WalkerMessage::Holds(path, false),
        b"callable" => WalkerMessage::Callable(path),
        b"set" => WalkerMessage::Set(path, text().parse().ok()?),
        b"target" => WalkerMessage::Target(
            path,
            serde_json::from_slice(rest)
                .map_err(|error| format!("its metadata cannot be read: {error}")),
        ),
        b"meta" => WalkerMessage::Meta(path),
        b"follow" => WalkerMessage::Follow(path, text().parse().ok()?),
        b"lost" => WalkerMessage::Lost(path, text().parse().ok()?),
        b"step" => {
            let (number, json) = rest.split_at(rest.iter().position(|byte| *byte == b' ')?);
            let number = std::str::from_utf8(number).ok()?.parse().ok()?;
            let described = serde_json::from_slice(&json[1..])
                .map_err(|error| format!("it cannot be read: {error}"));
            WalkerMessage::Follower(path, number, described)
        }
        b"throws" => WalkerMessage::Throws(path),
        b"refused" => WalkerMessage::Refused(path, text()),
        b"error" => WalkerMessage::Error(path, text()),
        b"deep" => WalkerMessage::Deep(path),
        b"other" => WalkerMessage::Other(text()),
        b"end" => WalkerMessage::End(text()),
        b"done" => WalkerMessage::Done,
        b"next" => WalkerMessage::Next,
        b"impure" => WalkerMessage::Impure,
        _ => return None,
    })
}

fn name(escaped: &[u8]) -> AttrName {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.iter();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => match rest.next() {
                Some(b'n') => b'\n',
                Some(b't') => b'\t',
                Some(b'r') => b'\r',
                Some(b'a') => 0x07,
                Some(b'e') => 0x1b,
                _ => b'\\',
            },
            byte => *byte,
        });
    }
    let is_utf8 = std::str::from_utf8(&bytes).is_ok();
    AttrName {
        text: String::from_utf8_lossy(&bytes).into_owned(),
        is_utf8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::hostile::cases;
    use proptest::prelude::*;

    fn path(text: &str) -> AttrIndex {
        AttrIndex::parse(text).unwrap()
    }

    #[test]
    fn a_message_of_the_walker_begins_with_its_marker() {
        assert_eq!(
            read(b"trace: M end  2.8", "M"),
            Some(WalkerMessage::End("2.8".into()))
        );
        assert_eq!(
            read(b"\x1b[35mtrace:\x1b[0m M excluded /3 0,2 a b", "M"),
            Some(WalkerMessage::Excluded(
                path("/3"),
                vec![0, 2],
                AttrName {
                    text: "a b".into(),
                    is_utf8: true
                }
            ))
        );
        for other in [
            "trace: N end  ",
            "warning: M",
            "M",
            "",
            "trace: M what /1 ",
            "trace: M set /x 1",
            "trace: M excluded /1 x a",
            "trace: M excluded /1 0",
        ] {
            assert_eq!(read(other.as_bytes(), "M"), None, "{other}");
        }
        let far = format!("{}M end  ", "x".repeat(100));
        assert_eq!(read(far.as_bytes(), "M"), None);
    }

    #[test]
    fn a_name_may_hold_anything() {
        let name_in = |text: &[u8]| match read(&[b"trace: M begin /1 ", text].concat(), "M") {
            Some(WalkerMessage::Begin(_, name)) => name,
            other => panic!("{other:?}"),
        };
        assert_eq!(name_in(b"a\\nb \\\\n").text, "a\nb \\n");
        assert_eq!(
            name_in(b"\\ta\\\\t\\r\\a\\e[m").text,
            "\ta\\t\r\u{7}\u{1b}[m"
        );
        assert_eq!(name_in(b"").text, "");
        assert!(name_in("ä".as_bytes()).is_utf8);
        assert!(!name_in(b"\xff").is_utf8);
    }

    #[test]
    fn a_timeout_that_is_not_a_number_of_seconds_is_refused() {
        let meta = |json: &str| serde_json::from_str::<DescribedMeta>(json).unwrap().read();
        assert_eq!(meta(r#"{"timeout":60}"#).unwrap().timeout, Some(60));
        let both = meta(r#"{"timeout":"3600","maxSilent":"0600"}"#).unwrap();
        assert_eq!((both.timeout, both.max_silent), (Some(3600), Some(600)));
        assert_eq!(meta(r#"{"maxSilent":9}"#).unwrap().max_silent, Some(9));
        assert_eq!(meta("{}").unwrap(), Meta::default());
        for wrong in [
            r#"{"timeout":-1}"#,
            r#"{"timeout":"1h"}"#,
            r#"{"timeout":""}"#,
            r#"{"timeout":"0"}"#,
            r#"{"timeout":" 60"}"#,
            r#"{"timeout":"+60"}"#,
            r#"{"timeout":60.5}"#,
            r#"{"maxSilent":"-1"}"#,
            r#"{"maxSilent":"99999999999999999999"}"#,
            r#"{"eval-once":"raw"}"#,
            r#"{"buildkite":[]}"#,
        ] {
            assert!(meta(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn steps_that_are_plain_data_are_read_as_they_are() {
        let meta = |json: &str| serde_json::from_str::<DescribedMeta>(json).unwrap().read();
        let read = meta(r#"{"eval-once":{"log":"raw","steps":{"a":{"command":"x"},"b":5}}}"#);
        let read = read.unwrap();
        assert_eq!(read.eval_once.unwrap().len(), 1, "the rest");
        let [a, b] = &read.followers[..] else {
            panic!("{:?}", read.followers);
        };
        assert!(a.is_read() && a.name == "a" && a.run().is_none());
        assert!(matches!(&b.state, FollowerState::Lost(Some(why)) if why.contains("is a number")));
        assert!(meta(r#"{"eval-once":{"steps":"x"}}"#).is_err());
        let none = meta(r#"{"eval-once":{"steps":{}}}"#).unwrap();
        assert_eq!(none.followers, []);
    }

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn a_line_of_any_bytes_is_no_message_or_one_of_the_walkers(
            before in prop_oneof![Just("trace: M "), Just("M "), Just("trace: "), Just("")],
            word in proptest::sample::select(&["begin", "excluded", "set", "target", "beside", "known", "done", "x"][..]),
            path in prop_oneof![Just("/1/2"), Just(""), Just("/01"), Just("/-1"), Just("/4294967296"), Just("a")],
            rest in proptest::collection::vec(any::<u8>(), 0..30),
        ) {
            let line = [format!("{before}{word} {path} ").as_bytes(), &rest].concat();
            let message = read(&line, "M");
            // Without the marker it is a line of Nix or of the expression, and so it is with a path that is none.
            let has_marker = before.ends_with("M ");
            let has_path = matches!(path, "/1/2" | "");
            prop_assert!(message.is_none() || has_marker && has_path && word != "x", "{message:?}");
            if has_marker && has_path && matches!(word, "begin" | "target" | "done") {
                prop_assert!(message.is_some());
            }
            let _ = read(&rest, "M");
            let _ = is_end_of_line(&rest, "M");
        }
    }
}
