//! The build as JUnit's XML, which most things that show test results read: a suite for each recording, a case for each
//! target.
//!
//! What there is of a standard is the schema of Jenkins' xunit plugin; a test validates against it. The crate `quick-junit`
//! (0.8.0) writes a `skipped` attribute into `testsuites`, which that schema does not have, lets U+FFFE through, which no XML
//! has, and brings nine crates more. So this writes the few elements itself.

use std::io;

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};

use super::outcome::{FailedPart, TargetOutcome};
use super::row::Row;
use super::rows::Rows;
use super::suites::Suite;
use crate::exit::{Class, Classify as _, Failure};
use crate::nix::message::in_one_line;
use crate::secrets::{redacted, shortened};
use crate::text::is_hidden;

/// The document.
///
/// # Errors
/// It cannot be written: a bug (70).
pub(super) fn document(rows: &Rows) -> Result<String, Failure> {
    let doing = || "cannot write the JUnit document".to_owned();
    let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
    write(&mut writer, rows).classify(Class::Bug, doing)?;
    let mut text = String::from_utf8(writer.into_inner()).classify(Class::Bug, doing)?;
    text.push('\n');
    Ok(text)
}

type Xml = Writer<Vec<u8>>;

fn write(writer: &mut Xml, rows: &Rows) -> io::Result<()> {
    writer.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    let suites = writer.create_element("testsuites");
    suites
        .with_attribute(("name", "eval-once"))
        .write_inner_content(|writer| rows.suites.iter().try_for_each(|it| suite(writer, it)))?;
    Ok(())
}

fn suite(writer: &mut Xml, suite: &Suite) -> io::Result<()> {
    let count = |wanted: Case| {
        let cases = suite.rows.iter().map(|row| Case::of(&row.outcome));
        cases.filter(|case| *case == wanted).count().to_string()
    };
    let name = attribute(&suite.name);
    let total: f64 = suite.rows.iter().map(Row::seconds).sum();
    writer
        .create_element("testsuite")
        .with_attributes([
            ("name", name.as_str()),
            ("tests", &suite.rows.len().to_string()),
            ("failures", &count(Case::Failure)),
            ("errors", &count(Case::Error)),
            ("skipped", &count(Case::Skipped)),
            ("time", &seconds(total)),
        ])
        .write_inner_content(|writer| {
            suite
                .rows
                .iter()
                .try_for_each(|row| case(writer, &name, row))
        })?;
    Ok(())
}

/// The kind of case that a target is in JUnit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Success,
    /// Its step failed, softly or not.
    Failure,
    /// Its step was stopped, its outcome is not known, or it does not evaluate.
    Error,
    /// It did not run, has not ended, or does not evaluate and has no step that would be red.
    Skipped,
}

impl Case {
    fn of(outcome: &TargetOutcome) -> Self {
        match outcome {
            TargetOutcome::Failed(_) | TargetOutcome::SoftFailed(_) => Self::Failure,
            TargetOutcome::EvaluationError
            | TargetOutcome::Refused
            | TargetOutcome::TimedOut
            | TargetOutcome::Cancelled
            | TargetOutcome::Stopped
            | TargetOutcome::NoReport
            | TargetOutcome::PassedWithoutReport
            | TargetOutcome::Unreadable
            | TargetOutcome::OtherVersion(_)
            | TargetOutcome::NotKnown
            | TargetOutcome::NoStep => Self::Error,
            TargetOutcome::Built | TargetOutcome::Substituted | TargetOutcome::There => {
                Self::Success
            }
            // A failure counts once, at the target that failed.
            TargetOutcome::NotRun(_)
            | TargetOutcome::NeverRun
            | TargetOutcome::Unfinished(_)
            | TargetOutcome::ReportedError
            | TargetOutcome::ExpectedError
            | TargetOutcome::Skipped(_) => Self::Skipped,
        }
    }
}

/// The type of the error of a target whose report is missing or unreadable.
const NO_REPORT: &str = "no-report";

/// The type and the message of a failure, and whether it is of the build: then the derivation that failed belongs to it.
fn failure<'r>(row: &'r Row, part: &FailedPart, how: &str) -> (&'r str, String, bool) {
    let report = row.report.as_ref();
    match part {
        FailedPart::Build => {
            let class = report.and_then(|report| report.class.as_deref());
            let status = report.map_or(0, |report| report.exit);
            let message = row.message.clone();
            let message = message.unwrap_or_else(|| format!("the step ended with status {status}"));
            (class.unwrap_or("failed"), message, true)
        }
        FailedPart::Command => (
            "command",
            format!("the step's command {how} after the build"),
            false,
        ),
        FailedPart::AfterBuild => (
            "after-build",
            format!("the step {how} after the build ({})", row.after_build()),
            false,
        ),
        FailedPart::OtherJob => (
            "other-job",
            format!("a job of the step {how}, but not the one that built the target"),
            false,
        ),
        FailedPart::NotKnown => (NO_REPORT, format!("the step {how} without a report"), false),
    }
}

/// The type and the message of an outcome that is an error of the step: it was stopped, or its outcome is not known.
fn error(outcome: &TargetOutcome) -> Option<(&'static str, String)> {
    let (kind, message) = match outcome {
        TargetOutcome::TimedOut => ("timed-out", "the job exceeded its timeout"),
        TargetOutcome::Cancelled => ("cancelled", "the job was cancelled"),
        TargetOutcome::Stopped => ("stopped", "the job was cancelled, timed out, or expired"),
        TargetOutcome::NoReport => (
            NO_REPORT,
            "the step has no report, and its outcome is unknown",
        ),
        TargetOutcome::PassedWithoutReport => (
            NO_REPORT,
            "the step passed without a report: whether it built the target is unknown",
        ),
        TargetOutcome::Unreadable => (NO_REPORT, "the step's report cannot be read"),
        TargetOutcome::OtherVersion(version) => {
            let message =
                format!("the step's report is of version {version}, unknown to this eval-once");
            return Some((NO_REPORT, message));
        }
        TargetOutcome::NoStep => (
            "no-step",
            "the build has no such step: the recording ended before uploading it",
        ),
        TargetOutcome::NotKnown => (
            "no-outcome",
            "the target was built, and the outcome of its job is unknown",
        ),
        // Listed one by one, so that a new outcome is not a success by mistake.
        TargetOutcome::Built
        | TargetOutcome::Substituted
        | TargetOutcome::There
        | TargetOutcome::Failed(_)
        | TargetOutcome::SoftFailed(_)
        | TargetOutcome::EvaluationError
        | TargetOutcome::ReportedError
        | TargetOutcome::ExpectedError
        | TargetOutcome::Refused
        | TargetOutcome::NotRun(_)
        | TargetOutcome::NeverRun
        | TargetOutcome::Unfinished(_)
        | TargetOutcome::Skipped(_) => return None,
    };
    Some((kind, message.into()))
}

fn case(writer: &mut Xml, suite: &str, row: &Row) -> io::Result<()> {
    let case = writer.create_element("testcase").with_attributes([
        ("name", attribute(&row.target).as_str()),
        ("classname", suite),
        ("time", &seconds(row.seconds())),
    ]);
    let report = row.report.as_ref();
    let class = report.and_then(|report| report.class.as_deref());
    let mut drv = report.and_then(|report| report.drv.as_deref());
    let message = row.message.as_deref();
    let message_or = |otherwise: &str| message.unwrap_or(otherwise).to_owned();
    let (element, kind, message) = match &row.outcome {
        TargetOutcome::Failed(part) | TargetOutcome::SoftFailed(part) => {
            let how = match row.outcome {
                TargetOutcome::SoftFailed(_) => "soft failed",
                _ => "failed",
            };
            let (kind, message, is_build) = failure(row, part, how);
            drv = drv.filter(|_| is_build);
            let message = match row.outcome {
                TargetOutcome::SoftFailed(_) if is_build => format!("soft failed: {message}"),
                _ => message,
            };
            ("failure", Some(kind), message)
        }
        TargetOutcome::EvaluationError => {
            let class = class.unwrap_or(Class::Evaluation.word());
            (
                "error",
                Some(class),
                message_or("the target does not evaluate"),
            )
        }
        TargetOutcome::Refused => {
            let class = class.unwrap_or(Class::Config.word());
            (
                "error",
                Some(class),
                message_or("the target's metadata gives no valid step"),
            )
        }
        // Skipped ones have a message and no type.
        TargetOutcome::NotRun(failed) => {
            let message = format!("not run: {} {}", failed.target, failed.what);
            ("skipped", None, message)
        }
        TargetOutcome::ReportedError => {
            let message = message_or("the target does not evaluate");
            ("skipped", None, format!("evaluation error: {message}"))
        }
        TargetOutcome::ExpectedError => {
            let message = message_or("the target does not evaluate");
            ("skipped", None, format!("expected error: {message}"))
        }
        TargetOutcome::NeverRun => ("skipped", None, "not run".into()),
        TargetOutcome::Unfinished(state) => (
            "skipped",
            None,
            format!("not finished: {}", state.replace('_', " ")),
        ),
        TargetOutcome::Skipped(reason) => ("skipped", None, reason.clone()),
        other => {
            let Some((kind, message)) = error(other) else {
                case.write_empty()?;
                return Ok(());
            };
            ("error", Some(kind), message)
        }
    };
    case.write_inner_content(|writer| {
        let inner = writer.create_element(element);
        let inner = match kind {
            None => inner,
            Some(kind) => inner.with_attribute(("type", attribute(kind).as_str())),
        };
        let title = in_one_line(&message);
        let inner = inner.with_attribute(("message", attribute(&title).as_str()));
        // A message that has no room in the attribute is whole in the text.
        let text = match drv {
            Some(drv) => Some(format!("{message}\n{drv}")),
            None => Some(message).filter(|message| *message != title),
        };
        match text {
            Some(text) => inner.write_text_content(BytesText::new(&valid(&text)))?,
            None => inner.write_empty()?,
        };
        Ok(())
    })?;
    Ok(())
}

/// Seconds with a point and three decimals, as the schema wants them.
fn seconds(seconds: f64) -> String {
    format!("{seconds:.3}")
}

/// How much an attribute of an element holds, in characters: a name may have megabytes.
const ATTRIBUTE_AT_MOST: usize = 1_000;

/// Text as an attribute of an element: a line break would be read as a space, so it is one.
fn attribute(text: &str) -> String {
    // Cut first, a credential would not be recognised.
    shortened(&valid(text), ATTRIBUTE_AT_MOST).replace(['\n', '\r', '\t'], " ")
}

/// Text without credentials, and with every character replaced that XML 1.0 cannot hold, not even by its number, and every hidden one:
/// what shows a result shows it as it is here.
fn valid(text: &str) -> String {
    let holds = |c: char| {
        matches!(c, '\t' | '\n' | '\r') || !is_hidden(c) && !matches!(c, '\u{fffe}' | '\u{ffff}')
    };
    redacted(text)
        .chars()
        .map(|c| if holds(c) { c } else { '\u{fffd}' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{build_data, recorded, report, target};
    use super::*;
    use crate::step::SavedReportError;
    use crate::text::hostile::text;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[test]
    fn no_text_or_attribute_shows_a_secret() {
        let url = "https://u:s3cr3tpassw0rd@h/";
        assert_eq!(valid(url), "https://***@h/");
        // Also where it is cut behind the begin of one.
        let long = format!("{}{url}", "x".repeat(ATTRIBUTE_AT_MOST - 15));
        assert!(!attribute(&long).contains("s3cr"), "{}", attribute(&long));
    }

    #[test]
    fn each_recording_is_a_suite_and_each_target_a_case() {
        let mut skipped = target("skipped");
        skipped["skip"] = "a cache has it".into();
        let mut targets: Vec<Value> = ["good", "red", "silent", "new"].map(target).to_vec();
        let mut behind = target("behind");
        behind["depends_on"] = json!(["drv-red"]);
        targets.extend([skipped, behind]);
        let data = build_data(
            vec![recorded(
                &json!(targets),
                &json!([{ "attr": ["a \"b\""], "message": "line <1>\nline 2" }]),
            )],
            [
                ("drv-good", report(&json!({ "built": 1 }), 1234.5678)),
                (
                    "drv-red",
                    report(
                        &json!({ "exit": 100, "class": "build", "message": "a & b", "drv": "/nix/store/x.drv" }),
                        3.0,
                    ),
                ),
                ("drv-new", Err(SavedReportError::Version(2))),
                ("by-hand", report(&json!({ "target": "hello" }), 0.5)),
            ],
        );
        let expected = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="eval-once">
  <testsuite name="ci.nix" tests="7" failures="1" errors="3" skipped="2" time="1237.568">
    <testcase name="good" classname="ci.nix" time="1234.568"/>
    <testcase name="red" classname="ci.nix" time="3.000">
      <failure type="build" message="a &amp; b">a &amp; b
/nix/store/x.drv</failure>
    </testcase>
    <testcase name="silent" classname="ci.nix" time="0.000">
      <error type="no-report" message="the step has no report, and its outcome is unknown"/>
    </testcase>
    <testcase name="new" classname="ci.nix" time="0.000">
      <error type="no-report" message="the step&apos;s report is of version 2, unknown to this eval-once"/>
    </testcase>
    <testcase name="skipped" classname="ci.nix" time="0.000">
      <skipped message="a cache has it"/>
    </testcase>
    <testcase name="behind" classname="ci.nix" time="0.000">
      <skipped message="not run: red failed"/>
    </testcase>
    <testcase name="&quot;a \&quot;b\&quot;&quot;" classname="ci.nix" time="0.000">
      <error type="evaluation" message="line &lt;1&gt; line 2">line &lt;1&gt;
line 2</error>
    </testcase>
  </testsuite>
  <testsuite name="steps without a recording" tests="1" failures="0" errors="0" skipped="0" time="0.500">
    <testcase name="hello" classname="steps without a recording" time="0.500"/>
  </testsuite>
</testsuites>
"#;
        let document = document(&Rows::new(&data)).unwrap();
        assert_eq!(document, expected);
    }

    #[test]
    fn what_xml_cannot_hold_is_replaced() {
        assert_eq!(
            valid("a\u{0}\u{1b}[1m\u{b}\u{fffe}\u{ffff}😀\u{85}\u{202e}\n"),
            "a\u{fffd}\u{fffd}[1m\u{fffd}\u{fffd}\u{fffd}😀\u{fffd}\u{fffd}\n"
        );
        assert_eq!(attribute("a\r\n\tb"), "a   b");
        assert_eq!(
            attribute(&"é".repeat(1 << 20)).chars().count(),
            ATTRIBUTE_AT_MOST
        );
    }

    proptest! {
        #[test]
        fn no_name_or_message_is_markup(name in text(), message in text()) {
            let mut red = target("red");
            red["attr"] = json!([name, "red"]);
            let failed = report(&json!({ "exit": 100, "class": "build", "message": message, "drv": "/nix/store/x.drv" }), 3.0);
            let errors = json!([{ "attr": [name], "message": message }]);
            let data = build_data(vec![recorded(&json!([red]), &errors)], [("drv-red", failed)]);
            let document = document(&Rows::new(&data)).unwrap();
            prop_assert!(!document.contains(|c| is_hidden(c) && !matches!(c, '\t' | '\n' | '\r')));
            let mut reader = quick_xml::Reader::from_str(&document);
            let mut cases = 0;
            loop {
                match reader.read_event() {
                    Ok(Event::Eof) => break,
                    Ok(Event::Start(it) | Event::Empty(it)) => {
                        let known = ["testsuites", "testsuite", "testcase", "failure", "error"];
                        let tag = it.name().as_ref().to_owned();
                        prop_assert!(known.contains(&&*tag), "{tag} in {document}");
                        cases += usize::from(tag == "testcase");
                    }
                    Ok(_) => {}
                    Err(error) => prop_assert!(false, "{error} in {document}"),
                }
            }
            prop_assert_eq!(cases, 2);
        }
    }
}
