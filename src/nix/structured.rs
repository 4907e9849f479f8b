//! Reads the output of a Nix program with `--log-format internal-json`: lines `@nix {…}` about activities (a build, a copy),
//! their results (a line of a builder's log, numbers) and messages; and any other text between them.
//!
//! The format is internal, and was read off 2.8, 2.26 and 2.34 (`tests/samples`): numbers for the types of activities and
//! results, fields by position. Unknown lines are ignored, so that the output of a later Nix can be read as well.
//! The reader is pure: bytes in, [`Event`]s out, however the bytes are cut.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, Visitor};

use super::{DrvPath, StorePath};

/// One thing in the output of a Nix program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// A message of one or several lines; or the begin of an activity that is only shown.
    Message {
        /// The message.
        text: Cow<'a, str>,
        /// Whether it may be a builder's: what a builder prints behind `@nix` becomes a message, or the begin of an activity, and
        /// lacks the raw text that errors of Nix's own have. A message that a daemon passes on lacks it as well.
        passed_on: bool,
        /// How many bytes of it are left out, about: it was [too long](STRUCTURED_AT_MOST).
        omitted: usize,
    },
    /// An unstructured line: Nix's own text, where it was not asked for structure, or that of something that writes beside it.
    Plain(PlainLine<'a>),
    /// A build begins.
    BuildBegins {
        /// The number of its activity.
        id: u64,
        /// The `.drv`.
        drv: DrvPath,
        /// The machine that builds it; empty for this host.
        machine: Cow<'a, str>,
        /// What Nix prints where it is not asked for structure; empty where it prints nothing.
        words: Cow<'a, str>,
    },
    /// A line of a builder's log, or of a post-build hook's.
    BuildLine {
        /// The number of the build's activity, or of the hook's.
        id: u64,
        /// The line, without its end. Nix has replaced bytes that are not UTF-8.
        line: Cow<'a, str>,
        /// How many bytes of it are left out, about: it was [too long](STRUCTURED_AT_MOST).
        omitted: usize,
    },
    /// A build ends, successful or not.
    BuildEnds {
        /// The number of its activity.
        id: u64,
    },
    /// The copy of a path from a cache begins.
    CopyBegins {
        /// The number of its activity.
        id: u64,
        /// The store path.
        path: StorePath,
        /// The cache's URL.
        from: Cow<'a, str>,
        /// What Nix prints where it is not asked for structure; empty where it prints nothing.
        words: Cow<'a, str>,
    },
    /// How many bytes of a path have been copied.
    Copied {
        /// The number of its activity.
        id: u64,
        /// How many bytes.
        bytes: u64,
    },
    /// What Nix does from now on, in its words, where it says so only because it is asked for structure: a copy into the store, a
    /// download.
    Begins(Cow<'a, str>),
    /// How far all builds are.
    Builds(BuildCounts),
    /// A structured line of this many bytes, longer than [`STRUCTURED_AT_MOST`], of which the begin says too little.
    TooLong(usize),
}

/// A line of output, without its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlainLine<'a> {
    /// The line, or its begin.
    pub bytes: &'a [u8],
    /// How many more bytes it had: of a line that is longer than [`PLAIN_AT_MOST`].
    pub omitted: usize,
}

impl<'a> From<&'a [u8]> for PlainLine<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self { bytes, omitted: 0 }
    }
}

/// How many builds there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BuildCounts {
    /// Builds that succeeded.
    pub done: u64,
    /// Builds that are known to be needed.
    pub expected: u64,
    /// Builds that are running.
    pub running: u64,
    /// Builds that failed, or could not begin because another failed.
    pub failed: u64,
}

/// How a build ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It succeeded.
    Done,
    /// It failed.
    Failed,
}

impl BuildCounts {
    /// How a build ended since the counts `before`, if one did: Nix prints its counts just before it says which build ended.
    /// (A build that cannot begin because another failed is counted as failed, too, and was not running.)
    #[must_use]
    pub fn ended_since(self, before: Self) -> Option<Ended> {
        if self.running >= before.running {
            None
        } else if self.failed > before.failed {
            Some(Ended::Failed)
        } else if self.done > before.done {
            Some(Ended::Done)
        } else {
            None
        }
    }
}

/// How much of a line that is not structured is kept, in bytes.
pub const PLAIN_AT_MOST: usize = 64 << 10;

/// How much of a structured line is kept, in bytes: a builder may print, and an expression may trace, megabytes without a line's end.
pub const STRUCTURED_AT_MOST: usize = 1 << 20;

/// How much of the end of a longer one is kept: Nix says there which activity it belongs to.
const END_AT_MOST: usize = 100;

/// What a structured line begins with.
const MARK: &[u8] = b"@nix ";

/// The level up to which Nix shows an activity when it is not asked for more (`lvlInfo`).
const SHOWN: u64 = 3;

/// Nix's numbers for the activities that matter here (`ActivityType` in its `logging.hh`).
mod activity {
    pub(super) const COPY_PATH: u64 = 100;
    pub(super) const BUILDS: u64 = 104;
    pub(super) const BUILD: u64 = 105;
}

/// Nix's numbers for the results that matter here (`ResultType` there).
mod result {
    pub(super) const BUILD_LINE: u64 = 101;
    pub(super) const PROGRESS: u64 = 105;
    pub(super) const POST_BUILD_LINE: u64 = 107;
}

/// Reads output that comes in pieces.
#[derive(Debug, Default)]
pub struct LogReader {
    /// The incomplete line, or its begin.
    line: Vec<u8>,
    /// How many bytes of the incomplete line came behind that, and the last of them, if it is structured.
    omitted: usize,
    end: Vec<u8>,
    activities: Activities,
}

/// The activities in progress, as far as they matter here.
type Activities = HashMap<u64, Activity>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    Build,
    Builds,
    Copy,
}

impl LogReader {
    /// Reads one more piece, and passes each complete event to `give`.
    pub fn read(&mut self, mut bytes: &[u8], mut give: impl FnMut(Event<'_>)) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = bytes.split_at(end);
            bytes = &rest[1..];
            // Most lines come whole, and are read without a copy.
            if self.line.is_empty() && line.len() <= PLAIN_AT_MOST {
                line_event(line.into(), &mut self.activities, &mut give);
            } else {
                self.add(line);
                self.end_line(&mut give);
            }
        }
        self.add(bytes);
    }

    /// Ends the reading: a last line without an end is an event, too.
    pub fn finish(&mut self, mut give: impl FnMut(Event<'_>)) {
        if !self.line.is_empty() {
            self.end_line(&mut give);
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        // What a line may become is known once its mark is complete.
        let (mark, bytes) =
            bytes.split_at(bytes.len().min(MARK.len().saturating_sub(self.line.len())));
        self.line.extend_from_slice(mark);
        let structured = self.line.starts_with(MARK);
        let at_most = if structured {
            STRUCTURED_AT_MOST
        } else {
            PLAIN_AT_MOST
        };
        let (now, later) = bytes.split_at(bytes.len().min(at_most.saturating_sub(self.line.len())));
        self.line.extend_from_slice(now);
        self.omitted += later.len();
        if structured && !later.is_empty() {
            self.end
                .extend_from_slice(&later[later.len().saturating_sub(END_AT_MOST)..]);
            let surplus = self.end.len().saturating_sub(END_AT_MOST);
            self.end.drain(..surplus);
        }
    }

    fn end_line(&mut self, give: &mut impl FnMut(Event<'_>)) {
        let omitted = std::mem::take(&mut self.omitted);
        if omitted > 0 && self.line.starts_with(MARK) {
            cut_event(&self.line, omitted, &self.end, &mut self.activities, give);
        } else {
            let bytes = &self.line[..];
            line_event(PlainLine { bytes, omitted }, &mut self.activities, give);
        }
        self.end.clear();
        self.line.clear();
        // Gives back the memory of a long line.
        self.line.shrink_to(PLAIN_AT_MOST);
    }
}

fn line_event(line: PlainLine<'_>, activities: &mut Activities, give: &mut impl FnMut(Event<'_>)) {
    match read_structured(line.bytes) {
        Some(message) => {
            if let Some(event) = event_of(message, activities) {
                give(event);
            }
        }
        None => give(Event::Plain(line)),
    }
}

fn read_structured(line: &[u8]) -> Option<JsonMessage<'_>> {
    let json = line.strip_prefix(MARK)?;
    serde_json::from_slice(json).ok()
}

/// Reads a structured line of which the middle was left out. Nix sorts the names in its JSON, and so the long text of a message comes
/// behind all that says what it is; and behind a line of a builder's log comes only which build that is.
fn cut_event(
    begin: &[u8],
    left_out: usize,
    end: &[u8],
    activities: &mut Activities,
    give: &mut impl FnMut(Event<'_>),
) {
    let kept = whole_characters(begin);
    let behind = end_of_result(end);
    let behind = behind.map(|behind| [b"\"]", behind].concat());
    // Behind a message, its trace may come.
    let closings = [Some(&b"\"}"[..]), behind.as_deref(), Some(b"\"}]}")];
    for closing in closings.into_iter().flatten() {
        let line = [kept, closing].concat();
        if let Some(message) = read_structured(&line) {
            let mut event = event_of(message, activities);
            if let Some(Event::Message { omitted, .. } | Event::BuildLine { omitted, .. }) =
                &mut event
            {
                *omitted = left_out;
            }
            if let Some(event) = event {
                give(event);
            }
            return;
        }
    }
    give(Event::TooLong(begin.len() + left_out));
}

/// The begin of JSON without a character or an escape sequence (`\n`, `\u001b`) that it ends within.
fn whole_characters(json: &[u8]) -> &[u8] {
    let end = match std::str::from_utf8(json) {
        Ok(_) => json.len(),
        Err(error) => error.valid_up_to(),
    };
    let json = &json[..end];
    let is_backslash = |byte: &u8| *byte == b'\\';
    let Some(from_end) = json.iter().rev().take(6).position(is_backslash) else {
        return json;
    };
    let at = end - 1 - from_end;
    let run = json[..=at]
        .iter()
        .rev()
        .take_while(|byte| is_backslash(byte));
    let length = if json.get(at + 1) == Some(&b'u') {
        6
    } else {
        2
    };
    // Of an even number, the last is the second half of one that stands for itself.
    if run.count() % 2 == 1 && end - at < length {
        &json[..at]
    } else {
        json
    }
}

/// The end of a result behind its fields: `,"id":1,"type":101}`. A quote within a field would be escaped.
fn end_of_result(end: &[u8]) -> Option<&[u8]> {
    const BEFORE: &[u8] = b"\"],\"id\":";
    let at = end.windows(BEFORE.len()).rposition(|part| part == BEFORE)?;
    Some(&end[at + 2..])
}

/// A structured line, as Nix prints it.
#[derive(Deserialize)]
struct JsonMessage<'a> {
    #[serde(borrow)]
    action: Cow<'a, str>,
    #[serde(default)]
    id: u64,
    #[serde(default, rename = "type")]
    kind: u64,
    #[serde(default)]
    level: u64,
    #[serde(default, borrow)]
    text: Cow<'a, str>,
    #[serde(default, borrow)]
    msg: Cow<'a, str>,
    raw_msg: Option<IgnoredAny>,
    #[serde(default, borrow)]
    fields: Vec<Field<'a>>,
}

fn event_of<'a>(message: JsonMessage<'a>, activities: &mut Activities) -> Option<Event<'a>> {
    let id = message.id;
    let (level, words) = (message.level, &message.text);
    let words = || match words {
        words if words.is_empty() || level > SHOWN => Cow::Borrowed(""),
        words => Cow::Owned(format!("{words}...")),
    };
    let mut fields = message.fields.into_iter();
    match &*message.action {
        "msg" => Some(Event::Message {
            text: message.msg,
            passed_on: message.raw_msg.is_none(),
            omitted: 0,
        }),
        "start" => {
            let mut text = || fields.next().and_then(Field::text);
            let (kind, event) = match message.kind {
                activity::BUILD => (
                    Activity::Build,
                    text().and_then(|drv| DrvPath::parse(&drv).ok()).map(|drv| {
                        Event::BuildBegins {
                            id,
                            drv,
                            machine: text().unwrap_or_default(),
                            words: words(),
                        }
                    }),
                ),
                activity::COPY_PATH => (
                    Activity::Copy,
                    text()
                        .and_then(|path| StorePath::parse(&path).ok())
                        .map(|path| Event::CopyBegins {
                            id,
                            path,
                            from: text().unwrap_or_default(),
                            words: words(),
                        }),
                ),
                activity::BUILDS => {
                    activities.insert(id, Activity::Builds);
                    return None;
                }
                _ => return begin_in_words(message.level, message.text),
            };
            // Nix begins no copy without a store path: this is a builder's message, and only shown.
            let Some(event) = event else {
                return begin_in_words(message.level, message.text);
            };
            activities.insert(id, kind);
            Some(event)
        }
        "stop" => match activities.remove(&id)? {
            Activity::Build => Some(Event::BuildEnds { id }),
            Activity::Builds | Activity::Copy => None,
        },
        "result" => match message.kind {
            result::BUILD_LINE | result::POST_BUILD_LINE => Some(Event::BuildLine {
                id,
                line: fields.next()?.text()?,
                omitted: 0,
            }),
            result::PROGRESS => {
                let mut number = || fields.next().and_then(Field::number);
                match activities.get(&id)? {
                    Activity::Builds => Some(Event::Builds(BuildCounts {
                        done: number()?,
                        expected: number()?,
                        running: number()?,
                        failed: number()?,
                    })),
                    Activity::Copy => Some(Event::Copied {
                        id,
                        bytes: number()?,
                    }),
                    Activity::Build => None,
                }
            }
            _ => None,
        },
        _ => None,
    }
}

/// The begin of an activity, as Nix prints it where it is not asked for structure, if it does.
fn begin_in_words(level: u64, text: Cow<'_, str>) -> Option<Event<'_>> {
    if text.is_empty() {
        return None;
    }
    Some(if level > SHOWN {
        Event::Begins(text)
    } else {
        Event::Message {
            text: Cow::Owned(format!("{text}...")),
            // A builder may begin a download, with a text of its choice.
            passed_on: true,
            omitted: 0,
        }
    })
}

/// A field of an activity or a result: a number or a text.
enum Field<'a> {
    Number(u64),
    Text(Cow<'a, str>),
    /// Something else, which no version prints so far.
    Other,
}

impl<'a> Field<'a> {
    fn text(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    fn number(self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(number),
            _ => None,
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Field<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor)
    }
}

struct FieldVisitor;

impl<'de> Visitor<'de> for FieldVisitor {
    type Value = Field<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or a text")
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Field::Number(number))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Field::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Field::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Field::Other)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Field::Other)
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Field::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Field::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Field::Other)
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Field::Other)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const DRV: &str = "/s/w11m5yi1fzmzl7ri7y308xcnn9jyzv3r-a.drv";
    const OUT: &str = "/s/0123456789abcdfghijklmnpqrsvwxyz-a";

    fn events_of(printed: &[u8]) -> Vec<String> {
        let mut reader = LogReader::default();
        let mut events = Vec::new();
        reader.read(printed, |event| events.push(format!("{event:?}")));
        reader.finish(|event| events.push(format!("{event:?}")));
        events
    }

    /// The events of structured lines.
    fn events(lines: &[Value]) -> Vec<String> {
        let lines: Vec<String> = lines.iter().map(|line| format!("@nix {line}")).collect();
        events_of(lines.join("\n").as_bytes())
    }

    fn start(id: u64, kind: u64, fields: &Value) -> Value {
        json!({ "action": "start", "id": id, "type": kind, "level": 3, "text": "", "fields": fields })
    }

    fn result(id: u64, kind: u64, fields: &Value) -> Value {
        json!({ "action": "result", "id": id, "type": kind, "fields": fields })
    }

    #[test]
    fn a_build_has_a_begin_lines_and_an_end() {
        let lines = [
            start(1, 105, &json!([DRV, "ssh://builder", 1, 1])),
            result(1, 101, &json!(["compiling"])),
            json!({ "action": "stop", "id": 1 }),
            json!({ "action": "stop", "id": 1 }),
        ];
        let drv = DrvPath::parse(DRV).unwrap();
        let (machine, line) = ("ssh://builder".into(), "compiling".into());
        let words = "".into();
        let expected = [
            Event::BuildBegins {
                id: 1,
                drv,
                machine,
                words,
            },
            Event::BuildLine {
                id: 1,
                line,
                omitted: 0,
            },
            Event::BuildEnds { id: 1 },
        ];
        assert_eq!(events(&lines), expected.map(|event| format!("{event:?}")));
    }

    #[test]
    fn progress_counts_bytes_of_a_copy_and_builds_of_all_builds() {
        let lines = [
            start(1, 100, &json!([OUT, "https://cache", "local"])),
            start(2, 104, &json!([])),
            start(3, 105, &json!([DRV, "", 1, 1])),
            result(1, 105, &json!([70, 80, 0, 0])),
            result(2, 105, &json!([1, 4, 2, 0])),
            // Of a single build, and of an activity that is not known.
            result(3, 105, &json!([1, 2, 3, 4])),
            result(4, 105, &json!([1, 2, 3, 4])),
        ];
        let builds = Event::Builds(BuildCounts {
            done: 1,
            expected: 4,
            running: 2,
            failed: 0,
        });
        assert_eq!(
            events(&lines)[2..],
            [Event::Copied { id: 1, bytes: 70 }, builds].map(|event| format!("{event:?}"))
        );
    }

    #[test]
    fn an_activity_without_a_store_path_is_only_a_message() {
        let begin = |kind, level, text| {
            let mut line = start(1, kind, &json!(["nothing"]));
            line["level"] = json!(level);
            line["text"] = json!(text);
            events(&[line, json!({ "action": "stop", "id": 1 })])
        };
        let message = Event::Message {
            text: "downloading x...".into(),
            passed_on: true,
            omitted: 0,
        };
        for kind in [101, 105, 100] {
            assert_eq!(begin(kind, 3, "downloading x"), [format!("{message:?}")]);
        }
        // Nix says this only where it is asked for structure.
        let begins = Event::Begins("downloading x".into());
        assert_eq!(begin(101, 4, "downloading x"), [format!("{begins:?}")]);
        assert_eq!(begin(101, 3, ""), [""; 0]);
    }

    #[test]
    fn a_message_without_its_raw_text_was_passed_on() {
        for (line, passed_on) in [
            (
                json!({ "action": "msg", "msg": "no", "raw_msg": "no" }),
                false,
            ),
            (
                json!({ "action": "msg", "msg": "no", "raw_msg": null }),
                true,
            ),
            (json!({ "action": "msg", "msg": "no" }), true),
        ] {
            let text = "no".into();
            let message = Event::Message {
                text,
                passed_on,
                omitted: 0,
            };
            assert_eq!(events(&[line]), [format!("{message:?}")]);
        }
    }

    #[test]
    fn what_a_later_nix_adds_is_ignored() {
        let line = json!({ "action": "msg", "msg": "a", "raw_msg": "a", "new": { "x": [1] } });
        assert_eq!(events(&[line]).len(), 1);
        let ignored = [
            json!({ "action": "new" }),
            result(1, 999, &json!([1])),
            result(1, 101, &json!([])),
            result(1, 101, &json!([[1, { "a": null }], -1, 0.5, true])),
        ];
        assert_eq!(events(&ignored), [""; 0]);
    }

    #[test]
    fn a_line_that_is_not_structured_is_plain_text() {
        for line in [
            "@nix {\"action\":\"msg\"",
            "@nix",
            "@nix []",
            " @nix {}",
            "",
        ] {
            let plain = Event::Plain(line.as_bytes().into());
            assert_eq!(
                events_of(format!("{line}\n").as_bytes()),
                [format!("{plain:?}")],
                "{line}"
            );
        }
    }

    #[test]
    fn json_is_cut_between_its_characters() {
        for (json, whole) in [
            ("ab", "ab"),
            ("a\\", "a"),
            ("a\\n", "a\\n"),
            ("a\\\\", "a\\\\"),
            ("a\\\\\\", "a\\\\"),
            ("a\\u001", "a"),
            ("a\\u001b", "a\\u001b"),
            ("a\\\\u001", "a\\\\u001"),
            ("a\\nbcdefgh", "a\\nbcdefgh"),
            ("", ""),
        ] {
            assert_eq!(
                whole_characters(json.as_bytes()),
                whole.as_bytes(),
                "{json}"
            );
        }
        assert_eq!(whole_characters(b"a\xc3"), b"a");
    }

    #[test]
    fn the_counts_say_whether_the_build_that_ended_succeeded() {
        let counts = |done, running, failed| BuildCounts {
            done,
            running,
            failed,
            expected: 9,
        };
        let before = counts(3, 2, 0);
        for (now, ended) in [
            (counts(4, 1, 0), Some(Ended::Done)),
            (counts(3, 1, 1), Some(Ended::Failed)),
            // One ended as another could not begin.
            (counts(4, 1, 1), Some(Ended::Failed)),
            // Another could not begin, and this one is still running.
            (counts(3, 2, 1), None),
            (counts(3, 1, 0), None),
        ] {
            assert_eq!(now.ended_since(before), ended, "{now:?}");
        }
    }
}
