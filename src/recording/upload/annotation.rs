//! The annotation of a recording on the build's page. Names and messages in it come from repositories that need not be trusted:
//! they are shown as plain text, and none of their characters counts as Markdown, HTML or an emoji.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::buildkite::markdown::{NAME_AT_MOST, code, inert, inert_within};
use crate::counts::number;
use crate::nix::AttrPath;
use crate::nix::message::in_one_line_of;
use crate::recording::evaluate::gaps::Note;
use crate::recording::notices::MESSAGE_IN_STEP;
use crate::recording::report::RecordingReport;
use crate::recording::{AttrError, Target};
use crate::text::shortened;

/// How many errors of a kind are shown with their messages, and how many changed attributes by name.
const SHOWN: usize = 10;

/// How much of a note is shown, in characters.
const NOTE_AT_MOST: usize = 2_000;

/// How much of a message is shown, in bytes of Markdown: a whole annotation may have 1 MiB.
const MESSAGE_AT_MOST: usize = 16 << 10;

/// The annotation: its Markdown, and its style.
pub(in crate::recording) fn annotation(report: &RecordingReport<'_>) -> (String, String) {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "**eval-once** {}.\n",
        report.sentence(Some(&code(report.source)))
    );
    let (evaluation, refused) = report
        .errors
        .split_at(report.counts.evaluation_errors.min(report.errors.len()));
    errors(
        &mut text,
        &number(evaluation.len(), "evaluation error"),
        evaluation,
    );
    errors(&mut text, &format!("{} refused", refused.len()), refused);
    notes(&mut text, report.notes);
    if let Some(previous) = report.previous {
        changes(&mut text, report.targets, previous);
    }
    let fine = report.errors.is_empty() && !report.notes.iter().any(|note| note.is_warning);
    let style = if fine { "info" } else { "warning" };
    (text, style.to_owned())
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
    if errors.len() > SHOWN {
        let _ = writeln!(text, "and {} more.\n", errors.len() - SHOWN);
    }
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

fn changes(text: &mut String, targets: &[Target], previous: &[(AttrPath, String)]) {
    let before: BTreeMap<String, &str> = previous
        .iter()
        .map(|(attr, drv)| (attr.to_string(), drv.as_str()))
        .collect();
    let now: BTreeMap<String, &str> = targets
        .iter()
        .flat_map(|target| {
            std::iter::once(&target.attr)
                .chain(&target.also)
                .map(move |attr| (attr, target))
        })
        .map(|(attr, target)| (attr.to_string(), target.drv.as_store_path().as_str()))
        .collect();
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
            "gone",
            before
                .keys()
                .filter(|attr| !now.contains_key(*attr))
                .collect(),
        ),
    ];
    if lists.iter().all(|(_, list)| list.is_empty()) {
        text.push_str("Nothing has changed since the previous recording of this branch.\n");
        return;
    }
    text.push_str("Since the previous recording of this branch:\n\n");
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

    fn error_with(message: &str) -> AttrError {
        AttrError {
            attr: AttrPath::new(vec!["<img src=x>".into(), "`a`\n\n# b".into()]),
            message: Some(message.into()),
        }
    }

    fn facts<'a>(
        errors: &'a [AttrError],
        previous: Option<&'a [(AttrPath, String)]>,
    ) -> RecordingReport<'a> {
        RecordingReport {
            source: "ci.nix",
            targets: &[],
            target_steps: &[],
            errors,
            notes: &[],
            counts: RecordingCounts {
                attributes: errors.len(),
                targets: 0,
                evaluation_errors: errors.len(),
                refused: 0,
            },
            omitted: 0,
            seconds: 1.25,
            previous,
        }
    }

    #[test]
    fn every_message_is_shown_as_plain_text() {
        let hostile = "</pre><script>alert(1)</script>\n\n# heading\n```\n+++ open :boom: [x](javascript:x) \u{1b}]1339;url=x\u{7} **b** &amp; \u{0}";
        let (text, style) = annotation(&facts(&[error_with(hostile)], None));
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
        let (text, _) = annotation(&facts(&errors, None));
        assert_eq!(text.matches("<details>").count(), 10);
        assert!(text.contains("and 490 more"));
        assert!(text.len() < 1 << 20);
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
            ..facts(&[], None)
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
        let before = [(AttrPath::new(vec!["old".into()]), "/x".to_owned())];
        let (text, style) = annotation(&facts(&[], Some(&before)));
        assert!(
            text.contains("1 attribute gone: <code>old</code>"),
            "{text}"
        );
        assert_eq!(style, "info");
        let (text, _) = annotation(&facts(&[], Some(&[])));
        assert!(text.contains("Nothing has changed"), "{text}");
    }
}
