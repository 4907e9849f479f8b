//! The annotation of a recording on the build's page. Names and messages in it come from repositories that need not be trusted:
//! they are shown as plain text, and none of their characters counts as Markdown, HTML or an emoji.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::buildkite::markdown::{NAME_AT_MOST, code, inert, inert_within};
use crate::counts::{RecordingCounts, number};
use crate::nix::AttrPath;
use crate::nix::message::in_one_line_of;
use crate::recording::error_line::MESSAGE_IN_STEP;
use crate::recording::errors::ErrorLists;
use crate::recording::evaluate::evaluator::WalkPlace;
use crate::recording::evaluate::gaps::Note;
use crate::recording::notices::MESSAGE_UNKNOWN;
use crate::recording::pipeline::excess::Excess;
use crate::recording::report::{Earlier, EarlierRecording, RecordingReport};
use crate::recording::{AttrError, OnError};
use crate::secrets::shortened;

/// How many errors of a kind are shown with their messages, and how many changed attributes by name.
const SHOWN: usize = 10;

/// How much of a note is shown, in characters.
const NOTE_AT_MOST: usize = 2_000;

/// How much of a message is shown, in bytes of Markdown: a whole annotation may have 1 MiB.
const MESSAGE_AT_MOST: usize = 16 << 10;

/// How large the rows of one table of errors may be, in bytes: a whole annotation may have 1 MiB, and a reader less.
const TABLE_AT_MOST: usize = 128 << 10;

/// The annotation: its Markdown, and its style.
pub(in crate::recording) fn annotation(report: &RecordingReport<'_>) -> (String, String) {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "**eval-once** {}.\n",
        report.sentence(Some(&code(report.source)))
    );
    error_lists(&mut text, report.errors, report.on_error);
    notes(&mut text, report.notes);
    if let Some(earlier) = report.earlier {
        changes(&mut text, report, earlier);
    }
    let as_expected = report.errors.evaluation.is_empty() && report.errors.refused.is_empty();
    let fine = as_expected && !report.notes.iter().any(|note| note.is_warning);
    let style = if fine { "info" } else { "warning" };
    (text, style.to_owned())
}

/// The errors, by what they count as.
fn error_lists(text: &mut String, lists: &ErrorLists, on_error: OnError) {
    let ErrorLists {
        evaluation,
        expected,
        refused,
    } = lists;
    let counted = number(evaluation.len(), "evaluation error");
    if on_error == OnError::Report {
        let fold = evaluation.len() > SHOWN;
        table(
            text,
            &format!("{counted} without a step"),
            evaluation,
            MESSAGE_UNKNOWN,
            fold,
        );
    } else {
        errors(text, &counted, evaluation);
    }
    errors(text, &format!("{} refused", refused.len()), refused);
    let counted = number(expected.len(), "expected error");
    table(text, &counted, expected, MESSAGE_UNKNOWN, true);
}

/// The annotation of a recording that is refused because its pipeline has too many jobs.
pub(in crate::recording) fn annotation_of_excess(
    report: &RecordingReport<'_>,
    excess: &Excess,
) -> (String, String) {
    let (found, _) = annotation(report);
    let mut text = format!(
        "**Nothing is uploaded:** {}.\n\nHint: {}.\n\n| Attribute | Jobs |\n| --- | ---: |\n",
        inert(&excess.to_string()),
        inert(&excess.hint())
    );
    for (attr, jobs) in excess.shown() {
        let _ = writeln!(text, "| {} | {jobs} |", code(&attr.to_string()));
    }
    if let Some(rest) = excess.rest() {
        let _ = writeln!(text, "\nand {rest}.");
    }
    text.push('\n');
    (text + &found, "error".into())
}

/// The annotation of a recording that fails because of its errors, as `on-error: fail` has it.
pub(in crate::recording) fn annotation_of_errors(report: &RecordingReport<'_>) -> (String, String) {
    let (found, _) = annotation(report);
    let text = format!("**Nothing is uploaded:** `on-error: fail` is set.\n\n{found}");
    (text, "error".into())
}

/// What a recording has found that was stopped.
#[derive(Debug)]
pub(in crate::recording) struct StoppedReport<'a> {
    /// Why it was stopped.
    pub(in crate::recording) failure: &'a str,
    /// What was evaluated.
    pub(in crate::recording) source: &'a str,
    /// The errors so far.
    pub(in crate::recording) errors: &'a ErrorLists,
    pub(in crate::recording) on_error: OnError,
    /// The number of each kind so far.
    pub(in crate::recording) counts: RecordingCounts,
    /// Where it was; none where that is not known.
    pub(in crate::recording) place: Option<&'a WalkPlace>,
    pub(in crate::recording) seconds: f64,
    /// Whether a retry on this host begins with the targets.
    pub(in crate::recording) is_kept: bool,
}

impl StoppedReport<'_> {
    /// How far it has come, in one sentence without a full stop.
    pub(in crate::recording) fn sentence(&self) -> String {
        let rest = if self.is_kept {
            "; a retry on this host continues with these targets"
        } else {
            ""
        };
        self.found("", ToString::to_string) + rest
    }

    /// Where it was stopped, and what was found by then; `name` shows an attribute.
    fn found(&self, of: &str, name: impl Fn(&AttrPath) -> String) -> String {
        let place = match self.place {
            None => String::new(),
            Some(WalkPlace::Root) => " at the root".to_owned(),
            Some(WalkPlace::Attribute(attr)) => format!(" at {}", name(attr)),
            Some(WalkPlace::Behind) => " behind the evaluation".to_owned(),
        };
        let targets = number(self.counts.targets, "target");
        let errors = self.counts.errors().map(|errors| format!(", {errors}"));
        format!(
            "stopped{place} after {:.1} s: {targets}{}{of} so far",
            self.seconds,
            errors.unwrap_or_default()
        )
    }
}

/// The annotation of a recording that was stopped, as Markdown.
pub(in crate::recording) fn stopped(report: &StoppedReport<'_>) -> String {
    let mut text = String::new();
    let of = format!(" of {}", code(report.source));
    let _ = writeln!(
        text,
        "**eval-once** {}. No step is uploaded{}.\n\nThe recording ended with: {}\n",
        report.found(&of, |attr| code(&attr.to_string())),
        if report.is_kept {
            "; a retry on the same host continues with these targets"
        } else {
            ""
        },
        inert(&shortened(report.failure, MESSAGE_AT_MOST)),
    );
    error_lists(&mut text, report.errors, report.on_error);
    text
}

fn errors(text: &mut String, counted: &str, errors: &[AttrError]) {
    if errors.is_empty() {
        return;
    }
    let _ = writeln!(text, "{counted}:\n");
    for error in errors.iter().take(SHOWN) {
        let message = error.message.as_deref().unwrap_or(MESSAGE_IN_STEP);
        let _ = writeln!(
            text,
            "<details><summary>{}: {}</summary>\n<pre>{}</pre>\n</details>\n",
            code(&error.attr.to_string()),
            inert(&in_one_line_of(message, NAME_AT_MOST)),
            inert_within(message, MESSAGE_AT_MOST)
        );
    }
    let rest = errors.get(SHOWN..).unwrap_or_default();
    let counted = format!("and {} more", rest.len());
    table(text, &counted, rest, MESSAGE_IN_STEP, true);
}

/// One row for each of these errors, within [`TABLE_AT_MOST`]; folded up, if wished. An unknown message is `otherwise`.
fn table(text: &mut String, counted: &str, errors: &[AttrError], otherwise: &str, fold: bool) {
    if errors.is_empty() {
        return;
    }
    let (begin, end) = if fold {
        (
            format!("<details><summary>{counted}</summary>"),
            "</details>\n\n",
        )
    } else {
        (format!("{counted}:"), "")
    };
    let _ = writeln!(text, "{begin}\n\n| Attribute | Message |\n| --- | --- |");
    let most = text.len() + TABLE_AT_MOST;
    let mut shown = 0;
    for error in errors {
        let message = error.message.as_deref().unwrap_or(otherwise);
        let attr = code(&error.attr.to_string());
        let message = inert(&in_one_line_of(message, NAME_AT_MOST));
        let row = format!("| {attr} | {message} |\n");
        if text.len() + row.len() > most {
            break;
        }
        text.push_str(&row);
        shown += 1;
    }
    text.push('\n');
    if shown < errors.len() {
        let _ = writeln!(
            text,
            "and {} more, in `eval-once.json`.\n",
            errors.len() - shown
        );
    }
    text.push_str(end);
}

fn notes(text: &mut String, notes: &[Note]) {
    for note in notes.iter().take(SHOWN) {
        let mut line = note.text.clone();
        if let Some(hint) = &note.hint {
            let _ = write!(line, " ({hint})");
        }
        let _ = writeln!(text, "- {}", inert(&shortened(&line, NOTE_AT_MOST)));
    }
    if notes.len() > SHOWN {
        let _ = writeln!(text, "- and {} more", notes.len() - SHOWN);
    }
    if !notes.is_empty() {
        text.push('\n');
    }
}

fn changes(text: &mut String, report: &RecordingReport<'_>, earlier: &Earlier) {
    let drvs = earlier.drvs.iter();
    let before: BTreeMap<String, &str> = drvs
        .map(|(attr, drv)| (attr.to_string(), drv.as_str()))
        .collect();
    let now: BTreeMap<String, &str> = report
        .targets
        .iter()
        .flat_map(|target| {
            std::iter::once(&target.attr)
                .chain(&target.also)
                .map(move |attr| (attr, target))
        })
        .map(|(attr, target)| (attr.to_string(), target.drv.as_store_path().as_str()))
        .collect();
    let errors = report.errors.evaluation.iter();
    let errors = errors.chain(&report.errors.expected);
    let errors = errors.map(|error| error.attr.to_string());
    let errors: BTreeSet<String> = errors.collect();
    let red: Vec<String> = earlier.red.iter().map(ToString::to_string).collect();
    let lists = [
        (
            "new",
            now.keys()
                .filter(|attr| !before.contains_key(*attr))
                .collect::<Vec<_>>(),
        ),
        (
            "changed",
            now.iter()
                .filter(|(attr, drv)| before.get(*attr).is_some_and(|before| before != *drv))
                .map(|(attr, _)| attr)
                .collect(),
        ),
        (
            "removed",
            before
                .keys()
                .filter(|attr| !now.contains_key(*attr) && !errors.contains(*attr))
                .collect(),
        ),
        (
            "still failing",
            red.iter()
                .filter(|attr| match now.get(*attr) {
                    Some(drv) => before.get(*attr) == Some(drv),
                    None => errors.contains(*attr),
                })
                .collect(),
        ),
    ];
    let since = match &earlier.recording {
        EarlierRecording::OfBranch => "the previous recording of this branch",
        EarlierRecording::Base(build) => build,
    };
    if lists.iter().all(|(_, list)| list.is_empty()) {
        let _ = writeln!(text, "Nothing has changed since {since}.");
        return;
    }
    let _ = writeln!(text, "Since {since}:\n");
    for (what, list) in lists.iter().filter(|(_, list)| !list.is_empty()) {
        let names: Vec<String> = list.iter().take(SHOWN).map(|attr| code(attr)).collect();
        let more = if list.len() > SHOWN { ", …" } else { "" };
        let count = number(list.len(), "attribute");
        let _ = writeln!(text, "- {count} {what}: {}{more}", names.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counts::RecordingCounts;
    use crate::recording::pipeline::fixtures::target;

    fn error_with(message: &str) -> AttrError {
        AttrError {
            attr: AttrPath::new(vec!["<img src=x>".into(), "`a`\n\n# b".into()]),
            message: Some(message.into()),
        }
    }

    fn lists(evaluation: Vec<AttrError>) -> ErrorLists {
        ErrorLists {
            evaluation,
            ..ErrorLists::default()
        }
    }

    fn facts<'a>(errors: &'a ErrorLists, earlier: Option<&'a Earlier>) -> RecordingReport<'a> {
        RecordingReport {
            source: "ci.nix",
            targets: &[],
            target_steps: &[],
            errors,
            on_error: OnError::Step,
            notes: &[],
            counts: RecordingCounts {
                attributes: errors.len(),
                targets: 0,
                evaluation_errors: errors.evaluation.len(),
                ..RecordingCounts::default()
            },
            builds: true,
            followers: 0,
            omitted: 0,
            seconds: 1.25,
            earlier,
        }
    }

    #[test]
    fn every_message_is_shown_as_plain_text() {
        let hostile = "</pre><script>alert(1)</script>\n\n# heading\n```\n+++ open :boom: [x](javascript:x) \u{1b}]1339;url=x\u{7} **b** &amp; \u{0}";
        let (text, style) = annotation(&facts(&lists(vec![error_with(hostile)]), None));
        assert_eq!(style, "warning");
        let inner = text
            .split_once("<pre>")
            .unwrap()
            .1
            .split_once("</pre>")
            .unwrap()
            .0;
        for meaning in [
            "<", ">", "`", "*", "[", ":", "\n", "\u{1b}", "\u{7}", "\u{0}", "+++",
        ] {
            assert!(!inner.contains(meaning), "{meaning:?} in {inner}");
        }
        assert!(!text.contains("<img") && !text.contains("\n# b"));
        assert!(inner.contains("alert&#40;1&#41;"));
    }

    #[test]
    fn ten_errors_are_shown_and_the_others_counted_and_the_annotation_is_never_too_large() {
        let errors: Vec<AttrError> = (0..500).map(|_| error_with(&"<".repeat(100_000))).collect();
        let (text, _) = annotation(&facts(&lists(errors), None));
        assert_eq!(text.matches("<pre>").count(), 10);
        let rest = "<details><summary>and 490 more</summary>\n\n| Attribute | Message |\n";
        assert!(text.contains(rest));
        assert!(text.contains(" more, in `eval-once.json`."));
        assert!(text.len() < 1 << 20);
        // As many as one sees in a set of packages are all shown.
        let errors = vec![error_with("not supported for interpreter python2.7"); 300];
        let (text, _) = annotation(&facts(&lists(errors), None));
        assert_eq!(text.matches("| <code>").count(), 290);
        assert!(!text.contains("in `eval-once.json`"));
    }

    #[test]
    fn a_message_is_whole_as_far_as_there_is_room() {
        let lines = "a line of the message".to_owned() + &"\nand one more".repeat(300);
        let (text, _) = annotation(&facts(&lists(vec![error_with(&lines)]), None));
        assert!(text.contains("&#10;and one more</pre>"), "{text}");
        let long = lines.repeat(100);
        let (text, _) = annotation(&facts(&lists(vec![error_with(&long)]), None));
        assert!(text.contains("…</pre>"));
    }

    /// The annotation of a recording whose errors have no steps.
    fn reported(errors: &ErrorLists) -> (String, String) {
        annotation(&RecordingReport {
            on_error: OnError::Report,
            ..facts(errors, None)
        })
    }

    #[test]
    fn errors_without_steps_are_a_table_that_is_folded_up_where_it_is_long() {
        let hostile = "first | line </td> `x` **b** :boom:\n\n| second |";
        let (text, style) = reported(&lists(vec![error_with(hostile); 10]));
        assert_eq!(style, "warning");
        assert!(
            text.contains("\n10 evaluation errors without a step:\n\n| Attribute | Message |\n"),
            "{text}"
        );
        assert!(!text.contains("<details>"), "{text}");
        let rows: Vec<&str> = text
            .lines()
            .filter(|it| it.starts_with("| <code>"))
            .collect();
        assert_eq!(rows.len(), 10);
        for row in rows {
            assert_eq!(row.matches('|').count(), 3, "{row}");
            for meaning in ["<img", "</td>", "`", "**", ":boom"] {
                assert!(!row.contains(meaning), "{meaning} in {row}");
            }
        }
        let (text, _) = reported(&lists(vec![error_with("x"); 11]));
        let begin = "<details><summary>11 evaluation errors without a step</summary>\n\n| ";
        assert!(text.contains(begin), "{text}");
        assert!(text.contains("|\n\n</details>\n"), "{text}");
        assert_eq!(text.matches("| <code>").count(), 11);
        assert!(!text.contains(" more"), "{text}");
    }

    #[test]
    fn expected_errors_are_folded_up_apart_and_are_no_warning() {
        let mut errors = ErrorLists {
            expected: vec![error_with("old"); 2],
            ..ErrorLists::default()
        };
        for on_error in [OnError::Step, OnError::Fail, OnError::Report] {
            let (text, style) = annotation(&RecordingReport {
                on_error,
                ..facts(&errors, None)
            });
            assert_eq!(style, "info");
            let begin = "<details><summary>2 expected errors</summary>";
            assert!(text.contains(begin), "{text}");
            assert_eq!(text.matches("| <code>").count(), 2);
        }
        errors.evaluation.push(error_with("new"));
        assert_eq!(reported(&errors).1, "warning");
    }

    #[test]
    fn tables_of_errors_end_before_the_annotation_is_too_large() {
        let errors = |length: usize| ErrorLists {
            evaluation: vec![error_with(&"<".repeat(length)); 5_000],
            expected: vec![error_with(&"ß".repeat(length)); 5_000],
            refused: vec![error_with(&"<".repeat(length)); 5_000],
        };
        for length in [10, 100_000] {
            let (text, _) = reported(&errors(length));
            assert!(text.len() < 1 << 20, "{}", text.len());
            assert_eq!(text.matches(" more, in `eval-once.json`.").count(), 3);
        }
        // As many as one sees in a set of packages are all shown.
        let usual = AttrError {
            attr: AttrPath::parse("python27Packages.backports_shutil_get_terminal_size").unwrap(),
            message: Some(
                "backports.shutil_get_terminal_size-1.0.0 not supported for interpreter python2.7"
                    .into(),
            ),
        };
        let (text, _) = reported(&lists(vec![usual; 400]));
        assert_eq!(text.matches("| <code>").count(), 400);
    }

    #[test]
    fn what_a_stopped_recording_found_is_shown_as_plain_text() {
        let place = WalkPlace::Attribute(AttrPath::new(vec!["<b>".into()]));
        let errors = ErrorLists {
            evaluation: vec![error_with("<script>")],
            ..ErrorLists::default()
        };
        let mut report = StoppedReport {
            on_error: OnError::Step,
            failure: "stopped by **SIGTERM**",
            source: "ci.nix",
            errors: &errors,
            counts: facts(&errors, None).counts,
            place: Some(&place),
            seconds: 12.34,
            is_kept: true,
        };
        assert_eq!(
            report.sentence(),
            "stopped at \"<b>\" after 12.3 s: 0 targets, 1 evaluation error so far; \
             a retry on this host continues with these targets"
        );
        let text = stopped(&report);
        for meaning in ["<b>", "<script>", "**SIGTERM**"] {
            assert!(!text.contains(meaning), "{text}");
        }
        assert!(text.contains("a retry on the same host"), "{text}");
        report.is_kept = false;
        for (place, words) in [
            (None, "stopped after 12.3 s: "),
            (Some(&WalkPlace::Root), "stopped at the root after 12.3 s: "),
            (
                Some(&WalkPlace::Behind),
                "stopped behind the evaluation after 12.3 s: ",
            ),
        ] {
            report.place = place;
            assert!(
                report.sentence().starts_with(words),
                "{}",
                report.sentence()
            );
            assert!(!stopped(&report).contains("a retry"));
        }
    }

    #[test]
    fn notes_are_shown_as_plain_text_too() {
        let note = Note {
            text: "not looked into: <img> `a`".into(),
            hint: Some("**use** :boom:".into()),
            is_warning: true,
        };
        let (text, style) = annotation(&RecordingReport {
            notes: &[note],
            ..facts(&ErrorLists::default(), None)
        });
        assert_eq!(style, "warning");
        let line = text.lines().find(|line| line.starts_with("- ")).unwrap();
        for meaning in ["<", "`", "**", ":boom:"] {
            assert!(!line.contains(meaning), "{meaning:?} in {line}");
        }
        assert!(line.contains("not looked into"));
    }

    #[test]
    fn changed_attributes_are_shown_by_name() {
        let attr = |name: &str| AttrPath::new(vec![name.into()]);
        let drv = |i: usize| target(i, &[]).drv.as_store_path().as_str().to_owned();
        let earlier = |recording: EarlierRecording, drvs: &[(&str, usize)], red: &[&str]| Earlier {
            recording,
            drvs: drvs.iter().map(|(name, i)| (attr(name), drv(*i))).collect(),
            red: red.iter().map(|name| attr(name)).collect(),
        };
        let of_branch = earlier(EarlierRecording::OfBranch, &[("old", 1)], &[]);
        let none = ErrorLists::default();
        let (text, style) = annotation(&facts(&none, Some(&of_branch)));
        let since = "Since the previous recording of this branch:\n\n- 1 attribute removed: <code>old</code>\n";
        assert!(text.contains(since), "{text}");
        assert_eq!(style, "info");
        let of_branch = earlier(EarlierRecording::OfBranch, &[], &[]);
        let (text, _) = annotation(&facts(&none, Some(&of_branch)));
        assert!(
            text.contains("Nothing has changed since the previous"),
            "{text}"
        );
        // Against a base it is known, too, what failed there.
        let drvs = [
            ("same", 1),
            ("red", 2),
            ("mended", 3),
            ("<b>", 9),
            ("failing", 5),
        ];
        let red = ["red", "mended", "failing", "broken", "evaluates"];
        let base = earlier(EarlierRecording::Base("build 41".into()), &drvs, &red);
        let errors = lists(vec![AttrError {
            attr: attr("broken"),
            message: None,
        }]);
        let targets = [
            target(1, &["same"]),
            target(2, &["red"]),
            target(4, &["mended"]),
            target(6, &["evaluates"]),
            target(5, &["failing"]),
        ];
        let report = RecordingReport {
            targets: &targets,
            ..facts(&errors, Some(&base))
        };
        let (text, _) = annotation(&report);
        let lines = [
            "Since build 41:\n",
            "- 1 attribute new: <code>evaluates</code>",
            "- 1 attribute changed: <code>mended</code>",
            "- 1 attribute removed: <code>&#34;&#60;b&#62;&#34;</code>",
            "- 3 attributes still failing: <code>broken</code>, <code>failing</code>, <code>red</code>\n",
        ];
        assert!(text.ends_with(&lines.join("\n")), "{text}");
    }
}
