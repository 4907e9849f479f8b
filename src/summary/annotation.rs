//! The annotation. No name and no word in it can be trusted: they come from a repository, or from meta-data that any job of the
//! build may set. So all of it is [inert](crate::buildkite::markdown), and shortened.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::outcome::{FailedPart, TargetOutcome};
use super::row::Row;
use super::rows::Rows;
use super::savings::{Savings, Time};
use super::suites::Suite;
use crate::buildkite::markdown::{code, inert, job_link};
use crate::counts::{RecordingCounts, number};
use crate::exit::Class;
use crate::nix::message::in_one_line_of;
use crate::secrets::shortened;
use crate::step::Reason;

/// How many targets have a row; the others are counted.
const ROWS_AT_MOST: usize = 100;

/// How many names a sentence lists.
const NAMES_AT_MOST: usize = 10;

/// How much of a word is shown, in characters.
const WORD_AT_MOST: usize = 80;

/// How much of a share's failure is shown, in characters.
const REASON_AT_MOST: usize = 200;

/// How much of the message of an error is shown in its row, in characters.
const MESSAGE_AT_MOST: usize = 200;

/// The annotation: its Markdown, and its style.
pub(super) fn of(rows: &Rows) -> (String, &'static str) {
    let mut text = format!("**eval-once** {}.\n\n", counts(rows));
    table(&mut text, rows);
    unreadable(&mut text, rows);
    without_report(&mut text, rows);
    evaluated_again(&mut text, rows);
    drift(&mut text, rows);
    if let Some(savings) = Savings::new(rows) {
        let _ = writeln!(text, "**Evaluation saved:** {savings}");
    }
    (text, style(rows))
}

/// The first line, which the log has too.
pub(super) fn counts(rows: &Rows) -> String {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    let mut counts = RecordingCounts::default();
    for (_, row) in rows.steps() {
        counts.attributes += row.attributes;
        match row.outcome {
            TargetOutcome::EvaluationError | TargetOutcome::ReportedError => {
                counts.evaluation_errors += 1;
            }
            TargetOutcome::ExpectedError => counts.expected_errors += 1,
            TargetOutcome::Refused => counts.refused += 1,
            _ => {
                counts.targets += 1;
                *kinds.entry(kind(&row.outcome)).or_default() += 1;
            }
        }
    }
    let order = [
        "failed",
        "timed out",
        "cancelled",
        "cancelled or timed out",
        "soft failed",
        "without a report",
        "without an outcome",
        "not run",
        "not finished",
        "built",
        "from a cache",
        "already there",
        "skipped",
    ];
    let parts: Vec<String> = order
        .into_iter()
        .filter_map(|kind| kinds.get(kind).map(|count| format!("{count} {kind}")))
        .collect();
    format!("sums up {}", counts.clause("", &parts.join(", ")))
}

/// What an outcome counts as.
fn kind(outcome: &TargetOutcome) -> &'static str {
    match outcome {
        TargetOutcome::Failed(_) => "failed",
        TargetOutcome::SoftFailed(_) => "soft failed",
        TargetOutcome::TimedOut => "timed out",
        TargetOutcome::Cancelled => "cancelled",
        TargetOutcome::Stopped => "cancelled or timed out",
        TargetOutcome::EvaluationError => "evaluation error",
        TargetOutcome::ReportedError => "evaluation error, without a step",
        TargetOutcome::ExpectedError => "expected error",
        TargetOutcome::Refused => "refused",
        TargetOutcome::NoReport
        | TargetOutcome::PassedWithoutReport
        | TargetOutcome::Unreadable
        | TargetOutcome::OtherVersion(_) => "without a report",
        TargetOutcome::NotKnown => "without an outcome",
        TargetOutcome::NotRun(_) | TargetOutcome::NeverRun | TargetOutcome::NoStep => "not run",
        TargetOutcome::Unfinished(_) => "not finished",
        TargetOutcome::Built => "built",
        TargetOutcome::Substituted => "from a cache",
        TargetOutcome::There => "already there",
        TargetOutcome::Skipped(_) => "skipped",
    }
}

/// How much attention an outcome asks for: red, yellow, or none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Attention {
    None,
    Warning,
    Error,
}

fn attention(outcome: &TargetOutcome) -> Attention {
    match outcome {
        TargetOutcome::Failed(_)
        | TargetOutcome::TimedOut
        | TargetOutcome::Cancelled
        | TargetOutcome::Stopped
        | TargetOutcome::EvaluationError
        | TargetOutcome::Refused => Attention::Error,
        TargetOutcome::SoftFailed(_)
        | TargetOutcome::ReportedError
        | TargetOutcome::NoReport
        | TargetOutcome::PassedWithoutReport
        | TargetOutcome::Unreadable
        | TargetOutcome::OtherVersion(_)
        | TargetOutcome::NotKnown
        | TargetOutcome::NoStep
        | TargetOutcome::Unfinished(_) => Attention::Warning,
        TargetOutcome::NotRun(_)
        | TargetOutcome::NeverRun
        | TargetOutcome::ExpectedError
        | TargetOutcome::Built
        | TargetOutcome::Substituted
        | TargetOutcome::There
        | TargetOutcome::Skipped(_) => Attention::None,
    }
}

fn style(rows: &Rows) -> &'static str {
    let mut style = if rows.unreadable > 0 {
        "warning"
    } else {
        "success"
    };
    for (_, row) in rows.steps() {
        match attention(&row.outcome) {
            Attention::Error => return "error",
            Attention::Warning => style = "warning",
            Attention::None => {}
        }
        // A step that was given no record is meant to evaluate.
        let reason = row
            .evaluated_again()
            .and_then(|report| report.reason.as_deref());
        let was_lost = reason.is_some_and(|reason| reason != Reason::NotRecorded.word());
        let has_drifted = row.report.as_ref().is_some_and(|report| report.drift);
        if was_lost || has_drifted {
            style = "warning";
        }
    }
    style
}

/// Failed targets first, then the slowest.
fn table(text: &mut String, rows: &Rows) {
    let several = rows.suites.len() > 1;
    let mut steps: Vec<(&Suite, &Row)> = rows.steps().collect();
    let rank = |row: &Row| match row.outcome {
        TargetOutcome::Failed(_) => 0,
        TargetOutcome::TimedOut | TargetOutcome::Cancelled | TargetOutcome::Stopped => 1,
        TargetOutcome::EvaluationError | TargetOutcome::Refused => 2,
        TargetOutcome::SoftFailed(_) | TargetOutcome::ReportedError => 3,
        TargetOutcome::NoReport
        | TargetOutcome::PassedWithoutReport
        | TargetOutcome::Unreadable
        | TargetOutcome::OtherVersion(_)
        | TargetOutcome::NotKnown
        | TargetOutcome::NoStep => 4,
        TargetOutcome::NotRun(_) | TargetOutcome::NeverRun | TargetOutcome::Unfinished(_) => 5,
        TargetOutcome::Built | TargetOutcome::Substituted | TargetOutcome::There => 6,
        TargetOutcome::Skipped(_) | TargetOutcome::ExpectedError => 7,
    };
    steps.sort_by(|(_, a), (_, b)| {
        rank(a)
            .cmp(&rank(b))
            .then(b.seconds().total_cmp(&a.seconds()))
    });
    if steps.is_empty() {
        return;
    }
    text.push_str(if several {
        "| Target | Of | Outcome | Way | Time |\n| --- | --- | --- | --- | ---: |\n"
    } else {
        "| Target | Outcome | Way | Time |\n| --- | --- | --- | ---: |\n"
    });
    for (suite, row) in steps.iter().take(ROWS_AT_MOST) {
        let _ = write!(text, "| {} ", target(row));
        if several {
            let _ = write!(text, "| {} ", code(&suite.name));
        }
        let _ = writeln!(text, "| {} | {} | {} |", outcome(row), way(row), time(row));
    }
    text.push('\n');
    if steps.len() > ROWS_AT_MOST {
        let _ = writeln!(text, "And {} more.\n", steps.len() - ROWS_AT_MOST);
    }
}

/// The target's name, as a link to the job that its report is of.
fn target(row: &Row) -> String {
    let name = code(&row.target);
    match &row.report {
        Some(report) => job_link(&report.job, &name),
        None => name,
    }
}

fn word(text: &str) -> String {
    inert(&shortened(text, WORD_AT_MOST))
}

fn outcome(row: &Row) -> String {
    let class = || {
        let report = row.report.as_ref()?;
        let class = report
            .class
            .as_deref()
            .map(|class| word(Class::shown(class)));
        Some(class.unwrap_or_else(|| format!("status {}", report.exit)))
    };
    let failed = |how: &str, what: &FailedPart| match (what, &row.root_cause) {
        (FailedPart::Build, Some(root_cause)) => {
            format!(
                "{how} ({}): {}",
                class().unwrap_or_default(),
                code(root_cause)
            )
        }
        (FailedPart::Build, None) => format!("{how} ({})", class().unwrap_or_default()),
        (FailedPart::Command, _) => format!("{how} (command), after the build"),
        (FailedPart::AfterBuild, _) => {
            format!("{how} ({}), after the build", word(&row.after_build()))
        }
        (FailedPart::OtherJob, _) => format!("{how}, in another job of the step"),
        (FailedPart::NotKnown, _) => format!("{how}, without a report"),
    };
    // The step of an error has the error's class, unless it failed for a reason of its own.
    let error = |what: &str, usual: Class| {
        let class = class().filter(|class| class != usual.word());
        let class = class.map_or_else(String::new, |class| format!(" ({class})"));
        format!("**{what}**{class}{}", message(row))
    };
    let text = match &row.outcome {
        TargetOutcome::Failed(what) => failed("**failed**", what),
        TargetOutcome::SoftFailed(what) => failed("soft failed", what),
        TargetOutcome::TimedOut => "**timed out**".into(),
        TargetOutcome::Cancelled => "**cancelled**".into(),
        TargetOutcome::Stopped => "**cancelled or timed out**".into(),
        TargetOutcome::EvaluationError => error("evaluation error", Class::Evaluation),
        TargetOutcome::Refused => error("refused", Class::Config),
        TargetOutcome::ReportedError | TargetOutcome::ExpectedError => {
            format!("{}{}", kind(&row.outcome), message(row))
        }
        TargetOutcome::NotRun(failed) => {
            format!("not run: {} {}", code(&failed.target), failed.what)
        }
        TargetOutcome::NeverRun => "not run".into(),
        TargetOutcome::NoStep => "not run: the build has no such step".into(),
        TargetOutcome::Unfinished(state) => {
            format!("not finished: {}", word(&state.replace('_', " ")))
        }
        TargetOutcome::NoReport => "no report".into(),
        TargetOutcome::PassedWithoutReport => "passed, without a report".into(),
        TargetOutcome::Unreadable => "unreadable report".into(),
        TargetOutcome::OtherVersion(version) => {
            format!("report of version {version}, unknown to this eval-once")
        }
        TargetOutcome::NotKnown => "built; outcome of its job unknown".into(),
        TargetOutcome::Skipped(reason) => format!("skipped: {}", word(reason)),
        other => kind(other).into(),
    };
    match row.retry() {
        Some(attempt) if row.has_passed() => format!("{text}, passed on try {attempt}"),
        Some(attempt) => format!("{text}, on try {attempt}"),
        None => text,
    }
}

/// The message of an error, behind a colon; nothing where there is none.
fn message(row: &Row) -> String {
    let message = row.message.as_deref();
    let message = message.map(|message| inert(&in_one_line_of(message, MESSAGE_AT_MOST)));
    message.map_or_else(String::new, |message| format!(": {message}"))
}

fn way(row: &Row) -> String {
    let report = row.report.as_ref();
    let Some(way) = report.and_then(|report| report.way.as_deref()) else {
        return String::new();
    };
    // A step that failed got no outputs by its way.
    let failed = report.is_some_and(|report| report.exit != 0);
    let tried = if failed { "tried " } else { "" };
    let reason = report.and_then(|report| report.reason.as_deref());
    match reason {
        Some(reason) => format!("{tried}{} ({})", word(way), word(reason)),
        None => format!("{tried}{}", word(way)),
    }
}

fn time(row: &Row) -> String {
    match &row.report {
        Some(report) => Time(report.seconds.total).to_string(),
        None => String::new(),
    }
}

/// How many recordings are missing from the table.
fn unreadable(text: &mut String, rows: &Rows) {
    let (which, its) = match rows.unreadable {
        0 => return,
        1 => (
            "that failed before it had a plan, has not ended, or whose plan",
            "its",
        ),
        _ => (
            "that failed before they had a plan, have not ended, or whose plans",
            "their",
        ),
    };
    let _ = writeln!(
        text,
        "**Omitted:** {} {which} cannot be read. Of {its} targets only those with a report are listed.\n",
        number(rows.unreadable, "recording"),
    );
}

/// What it means that a step has no report.
fn without_report(text: &mut String, rows: &Rows) {
    let count = rows
        .steps()
        .filter(|(_, row)| {
            matches!(
                row.outcome,
                TargetOutcome::NoReport | TargetOutcome::PassedWithoutReport
            )
        })
        .count();
    if count > 0 {
        let _ = writeln!(
            text,
            "**No report:** {}. A step has none if it ended before its build, or could not save it: the log of its job says why.\n",
            number(count, "step")
        );
    }
}

/// Why steps evaluated again, and what to do about it.
fn evaluated_again(text: &mut String, rows: &Rows) {
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    // By what a share had said.
    let mut failed_shares: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, row) in rows.steps() {
        if let Some(report) = row.evaluated_again() {
            let reason = report.reason.as_deref().unwrap_or_default();
            *reasons.entry(reason).or_default() += 1;
            if let Some(share) = &report.share {
                let failure = share.failure.as_deref().unwrap_or_default();
                *failed_shares.entry(failure).or_default() += 1;
            }
        }
    }
    let all: usize = reasons.values().sum();
    if all == 0 {
        return;
    }
    let _ = writeln!(text, "**Evaluated again:** {}.\n", number(all, "step"));
    for (reason, remedy) in [
        (
            Reason::DrvMissing,
            "the recorded `.drv` was not on the step's host: another host recorded it, or it was collected before.",
        ),
        (
            Reason::DrvCollected,
            "the recorded `.drv` was collected while the step ran.",
        ),
        (
            Reason::OutputsCollected,
            "an output was collected right after it was realised. Run the garbage collector less often, or while no job runs.",
        ),
        (
            Reason::OtherStore,
            "the recording's store has another prefix than that of the step's host. Record on a host whose store has the same prefix.",
        ),
        (
            Reason::NotRecorded,
            "the step has no `drv`. Let `eval-once pipeline` write it, or set it.",
        ),
    ] {
        if let Some(count) = reasons.remove(reason.word()) {
            let _ = writeln!(text, "- {count} × `{}`: {remedy}", reason.word());
        }
    }
    // Of another version of eval-once, or made up.
    for (reason, count) in reasons.into_iter().take(NAMES_AT_MOST) {
        let _ = writeln!(text, "- {count} × {}", code(reason));
    }
    text.push('\n');
    without_share(text, rows);
    shares_that_failed(text, failed_shares);
}

/// How many steps had no `.drv` and no share, and what to do about it.
fn without_share(text: &mut String, rows: &Rows) {
    let is_missing = |reason: &str| {
        [Reason::DrvMissing, Reason::DrvCollected]
            .map(Reason::word)
            .contains(&reason)
    };
    let reports = rows.steps().filter_map(|(_, row)| row.evaluated_again());
    let count = reports
        .filter(|report| report.share.is_none() && report.reason.as_deref().is_some_and(is_missing))
        .count();
    if count > 0 {
        let _ = writeln!(
            text,
            "**No share:** {} could fetch the `.drv` from nowhere. Let the recording share (`share`; its log says why, where it did not); for steps on the host that records, raise `keep-days` and keep its state folder.\n",
            number(count, "step")
        );
    }
}

/// What was wrong with shares, by their own words.
fn shares_that_failed(text: &mut String, failed: BTreeMap<&str, usize>) {
    if failed.is_empty() {
        return;
    }
    let count = failed.values().sum();
    let _ = writeln!(
        text,
        "**Share failed:** at {}. Look the reasons up in docs/fleet.md (\"Where a share fails\").\n",
        number(count, "step")
    );
    let mut failed: Vec<_> = failed.into_iter().collect();
    failed.sort_by_key(|(_, count)| Reverse(*count));
    for (why, count) in failed.into_iter().take(NAMES_AT_MOST) {
        let _ = writeln!(
            text,
            "- {count} × {}",
            inert(&shortened(why, REASON_AT_MOST))
        );
    }
    text.push('\n');
}

fn drift(text: &mut String, rows: &Rows) {
    let drifted: Vec<&str> = rows
        .steps()
        .filter(|(_, row)| row.report.as_ref().is_some_and(|report| report.drift))
        .map(|(_, row)| row.target.as_str())
        .collect();
    if drifted.is_empty() {
        return;
    }
    let names: Vec<String> = drifted
        .iter()
        .take(NAMES_AT_MOST)
        .map(|name| code(name))
        .collect();
    let more = if drifted.len() > NAMES_AT_MOST {
        ", …"
    } else {
        ""
    };
    let _ = writeln!(
        text,
        "**Drift:** {} evaluated to another `.drv` than was recorded: {}{more}. Something that it depends on is not locked, or its step had another checkout than the recording.\n",
        number(drifted.len(), "target"),
        names.join(", ")
    );
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{build_data, recorded, report, target};
    use super::*;
    use crate::step::SavedReportError;
    use serde_json::{Value, json};

    fn evaluated(reason: &str, drift: bool) -> Value {
        json!({ "way": "evaluated", "reason": reason, "drift": drift, "built": 1, "seconds": { "evaluate": 5.0, "total": 6.0 } })
    }

    #[test]
    fn what_failed_stands_first_and_then_the_slowest() {
        let mut skipped = target("skipped");
        skipped["skip"] = "already built here".into();
        let mut slow = target("slow");
        slow["also"] = json!([["sluggish"]]);
        let names = ["quick", "silent", "red", "odd"];
        let zlib = format!("/nix/store/{}-zlib-1.3.1.drv", "0".repeat(32));
        let mut targets: Vec<Value> = names.map(target).to_vec();
        let mut behind = target("behind");
        behind["depends_on"] = json!(["drv-quick", "drv-red"]);
        targets.extend([slow, skipped, behind]);
        let data = build_data(
            vec![recorded(&json!(targets), &json!([{ "attr": ["bad"] }]))],
            [
                ("drv-quick", report(&json!({ "job": "0190-a" }), 0.25)),
                (
                    "drv-slow",
                    report(&json!({ "built": 3, "job": "0190 b" }), 125.0),
                ),
                (
                    "drv-red",
                    report(
                        &json!({ "exit": 100, "class": "build", "drv": zlib, "job": "0190-c" }),
                        3.0,
                    ),
                ),
                ("drv-odd", Err(SavedReportError::Version(7))),
            ],
        );
        let (text, style) = of(&Rows::new(&data));
        let table = "\
**eval-once** sums up 9 attributes: 7 targets (1 failed, 2 without a report, 1 not run, 1 built, 1 already there, 1 skipped), 1 evaluation error.

| Target | Outcome | Way | Time |
| --- | --- | --- | ---: |
| <a href=\"#0190-c\"><code>red</code></a> | **failed** (build): <code>zlib&#45;1&#46;3&#46;1</code> | tried realised (drv&#45;valid) | 3.0 s |
| <code>bad</code> | **evaluation error** |  |  |
| <code>silent</code> | no report |  |  |
| <code>odd</code> | report of version 7, unknown to this eval-once |  |  |
| <code>behind</code> | not run: <code>red</code> failed |  |  |
| <code>slow</code> | built | realised (drv&#45;valid) | 2 min 5 s |
| <a href=\"#0190-a\"><code>quick</code></a> | already there | realised (drv&#45;valid) | 0.25 s |
| <code>skipped</code> | skipped: already built here |  |  |
";
        assert_eq!(style, "error");
        assert!(text.starts_with(table), "{text}");
        assert!(text.contains("**No report:** 1 step."), "{text}");
    }

    #[test]
    fn errors_without_a_red_step_are_counted_and_do_not_make_the_build_red() {
        let error = |attr: &str, expected: bool| json!({ "attr": [attr], "message": "|un|free\nmore", "expected": expected, "step": expected });
        let of_errors = |errors: Value| {
            of(&Rows::new(&build_data(
                vec![recorded(&json!([target("a")]), &errors)],
                [("drv-a", report(&json!({ "built": 1 }), 1.0))],
            )))
        };
        let (text, style) = of_errors(json!([error("old", true), error("older", true)]));
        assert_eq!(style, "success");
        let counts = "3 attributes: 1 target (1 built), 2 expected errors.";
        assert!(text.contains(counts), "{text}");
        let (text, style) = of_errors(json!([error("old", true), error("new", false)]));
        assert_eq!(style, "warning");
        let counts = "3 attributes: 1 target (1 built), 1 evaluation error, 1 expected error.";
        assert!(text.contains(counts), "{text}");
        let table = "\
| <code>new</code> | evaluation error, without a step: &#124;un&#124;free more |  |  |
| <code>a</code> | built | realised (drv&#45;valid) | 1.0 s |
| <code>old</code> | expected error: &#124;un&#124;free more |  |  |
";
        assert!(text.contains(table), "{text}");
    }

    #[test]
    fn steps_that_evaluated_again_are_counted_with_what_to_do_about_it() {
        let data = build_data(
            vec![recorded(
                &json!(["a", "b", "c", "d", "e"].map(target)),
                &json!([]),
            )],
            [
                ("drv-a", report(&evaluated("drv-missing", false), 6.0)),
                ("drv-b", report(&evaluated("drv-missing", true), 6.0)),
                ("drv-c", report(&evaluated("drv-collected", false), 6.0)),
                ("drv-d", report(&evaluated("not-recorded", false), 6.0)),
                ("drv-e", report(&evaluated("new|reason", false), 6.0)),
            ],
        );
        let (text, style) = of(&Rows::new(&data));
        assert_eq!(style, "warning");
        for part in [
            "**Evaluated again:** 5 steps.",
            "- 2 × `drv-missing`: ",
            "- 1 × `drv-collected`: ",
            "- 1 × `not-recorded`: ",
            "- 1 × <code>new&#124;reason</code>",
            "**No share:** 3 steps could fetch the `.drv` from nowhere.",
            "**Drift:** 1 target evaluated to another `.drv` than was recorded: <code>b</code>.",
            "**Evaluation saved:** none.",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn what_shares_have_failed_with_is_counted_and_is_only_text() {
        let names = ["a", "b", "c", "d", "e"];
        let failed = |why: &str| {
            let mut report = evaluated("drv-missing", false);
            report["share"] = json!({ "from": "artifact:x.tar", "failure": why });
            super::super::fixtures::report(&report, 6.0)
        };
        let fetched = json!({
            "way": "fetched", "reason": "fetched-from-share", "built": 1, "share": { "from": "artifact:x.tar" }
        });
        let data = build_data(
            vec![recorded(&json!(names.map(target)), &json!([]))],
            [
                ("drv-a", failed("<b>403|")),
                ("drv-b", failed("nothing has moved for 30 s")),
                ("drv-c", failed("nothing has moved for 30 s")),
                ("drv-d", report(&fetched, 1.0)),
                // Its evaluation is no fault of a share.
                ("drv-e", report(&evaluated("other-store", false), 6.0)),
            ],
        );
        let (text, style) = of(&Rows::new(&data));
        assert_eq!(style, "warning");
        for part in [
            "| fetched (fetched&#45;from&#45;share) |",
            "**Evaluated again:** 4 steps.",
            "- 3 × `drv-missing`: ",
            "- 1 × `other-store`: ",
            "**Share failed:** at 3 steps. Look the reasons up in docs/fleet.md (\"Where a share fails\").\n\n- 2 × nothing has moved for 30 s\n- 1 × ",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("**No share:**"), "{text}");
        assert!(!text.contains("<b>"), "{text}");
        assert!(!text.contains("keep-days"), "{text}");
    }

    #[test]
    fn a_build_without_a_recording_is_summed_up_from_its_reports_alone() {
        let saved =
            json!({ "target": "hello", "way": "evaluated", "reason": "not-recorded", "built": 1 });
        let (text, style) = of(&Rows::new(&build_data(
            vec![],
            [("k", report(&saved, 1.0))],
        )));
        assert_eq!(style, "success");
        assert!(
            text.contains("sums up 1 attribute: 1 target (1 built)."),
            "{text}"
        );
        assert!(!text.contains("saved"), "{text}");
    }

    #[test]
    fn the_name_of_a_failed_dependency_is_only_text() {
        let hostile = "|`<b>\n\n[x](javascript:y) :boom: \u{1b}[31m".repeat(50);
        let failed = json!({ "attr": [hostile], "key": "drv-failed" });
        let depending = |i: usize| json!({ "attr": [format!("{i}{hostile}")], "key": i.to_string(), "depends_on": ["drv-failed"] });
        let targets: Vec<Value> = (0..200).map(depending).chain([failed]).collect();
        let data = build_data(
            vec![recorded(&json!(targets), &json!([]))],
            [("drv-failed", report(&json!({ "exit": 100 }), 1.0))],
        );
        let (text, _) = of(&Rows::new(&data));
        assert!(text.contains(" (1 failed, 200 not run)."), "{text}");
        assert!(text.len() < 1 << 20, "{}", text.len());
        let rows = text.lines().filter(|line| line.contains("not run: "));
        assert_eq!(rows.clone().count(), 99);
        for row in rows {
            assert_eq!(row.matches('|').count(), 5, "{row}");
            let plain = row.replace("<code>", "").replace("</code>", "");
            for meaning in ["<", "`", "[", ":boom", "\u{1b}"] {
                assert!(!plain.contains(meaning), "{meaning:?} in {row}");
            }
        }
    }

    #[test]
    fn whatever_names_hold_it_stays_a_table_of_few_rows_below_a_mebibyte() {
        let hostile = "|`<b>\n\n# h\r[x](javascript:y) :boom: \u{1b}[31m".repeat(50);
        let targets: Vec<Value> = (0..300)
            .map(|i| json!({ "attr": [format!("{i}{hostile}")], "key": format!("k{i}"), "skip": null }))
            .collect();
        let mut data = build_data(vec![recorded(&json!(targets), &json!([]))], []);
        let job = "0".repeat(64);
        let root_cause = format!("/nix/store/{}-{}.drv", "0".repeat(32), "+".repeat(207));
        for i in 0..300 {
            let saved = json!({
                "exit": 1, "class": hostile, "way": hostile, "reason": hostile, "drift": true, "target": hostile,
                "message": hostile, "seconds": { "total": 1e300 }, "drv": root_cause,
                "job": if i % 2 == 0 { hostile.as_str() } else { job.as_str() },
            });
            data.reports.insert(format!("k{i}"), report(&saved, 1.0));
            data.reports
                .insert(format!("other{i}"), report(&saved, 1.0));
        }
        let (text, style) = of(&Rows::new(&data));
        assert_eq!(style, "error");
        assert!(text.len() < 1 << 20, "{}", text.len());
        assert!(text.contains("And 500 more."));
        let rows: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("| <"))
            .collect();
        assert_eq!(rows.len(), 100);
        let link = format!("<a href=\"#{job}\">");
        let linked = rows.iter().filter(|row| row.contains(&link)).count();
        assert!((1..100).contains(&linked), "{linked}");
        for row in rows {
            assert_eq!(row.matches('|').count(), 6, "{row}");
            let plain = row
                .replace(&link, "")
                .replace("</a>", "")
                .replace("<code>", "")
                .replace("</code>", "")
                .replace("**", "");
            for meaning in ["<", "`", "[", ":boom", "\u{1b}", "#  "] {
                assert!(!plain.contains(meaning), "{meaning:?} in {row}");
            }
        }
    }
}
