//! What a step that failed appends to the build's one annotation of failures, as Markdown. Everything in it but our own
//! sentences comes from repositories that cannot be trusted, and is shown as text.

use std::fmt::Write as _;

use super::advice::Advice;
use super::report::FailureReport;
use super::step_job::{JobContext, StepJob};
use crate::buildkite::markdown::{code, inert, inert_within, job_link};
use crate::exit::Failure;
use crate::nix::DrvPath;
use crate::nix::output::LAST_LINES;
use crate::secrets::shortened;
use crate::text::{KeepEscapes, tamed};

/// How much of a line of a log is shown, in characters.
const LINE_AT_MOST: usize = 200;

/// How much of a name is shown, in characters.
const NAME_AT_MOST: usize = 100;

// How much of each part is shown, in bytes of Markdown. With names, and our own words, no section has more than 16 KiB.
const LOG_AT_MOST: usize = 5 << 10;
const MESSAGE_AT_MOST: usize = 1_500;
const HINT_AT_MOST: usize = 1_000;
const COMMAND_AT_MOST: usize = 2_000;

/// How many other derivations that failed in the same step are listed.
const OTHERS: usize = 3;

/// How many sections are unfolded: of few failures one wants to see all, of many which they are.
const UNFOLDED: usize = 3;

/// How many artifacts are links: Buildkite makes no more than ten in an annotation.
const LINKED: usize = 10;

/// What of the log of the derivation that failed is an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LogArtifact {
    /// All of it, under this name.
    Whole(String),
    /// Its last lines, under this name: Nix has no log.
    LastLines(String),
    /// Nothing: the builder printed nothing.
    Empty,
    /// Nothing: Nix has no log and printed none of it, or it could not be uploaded.
    None,
}

/// A step that failed.
pub(super) struct FailedStep<'a> {
    pub(super) job: &'a StepJob,
    pub(super) target: &'a str,
    pub(super) failure: &'a Failure,
    pub(super) report: &'a FailureReport,
    pub(super) advice: &'a Advice,
    pub(super) log: LogArtifact,
    /// How many have failed so far, this one included.
    pub(super) count: usize,
}

/// All about a step that failed.
pub(super) fn section(failed: &FailedStep<'_>) -> String {
    let class = failed.failure.class;
    let open = if failed.count <= UNFOLDED {
        " open"
    } else {
        ""
    };
    let root_cause = failed.report.drv.as_ref().map(DrvPath::name);
    let what = match root_cause.filter(|root_cause| *root_cause != failed.target) {
        Some(root_cause) => format!(
            "{}: {} {}",
            name(failed.target),
            name(root_cause),
            failed.failure.verb()
        ),
        None => format!("{} {}", name(failed.target), failed.failure.verb()),
    };
    // No blank line anywhere in it: the HTML would end there.
    let mut text = format!("<details{open}><summary><b>{what}</b></summary>\n");
    text.push_str(&message(failed.report));
    if let Some(hint) = &failed.failure.hint {
        let _ = writeln!(text, "<p>Hint: {}</p>", inert_within(hint, HINT_AT_MOST));
    }
    let _ = writeln!(
        text,
        "<p>{}<br>Class <code>{}</code>, exit status {}, job {}{}</p>",
        inert(failed.failure.in_a_sentence()),
        class.word(),
        class.status(),
        link(failed.job),
        match &failed.job.agent {
            Some(agent) => format!(", agent {}", inert(&shortened(agent, NAME_AT_MOST))),
            None => String::new(),
        }
    );
    let others = &failed.report.others;
    if !others.is_empty() {
        let lines = others.iter().take(OTHERS).map(|other| {
            let what = other.drv.as_ref().map_or("something", |drv| drv.name());
            format!(
                "{}: {}",
                name(what),
                inert_within(&other.message, HINT_AT_MOST / OTHERS)
            )
        });
        let mut lines = lines.collect::<Vec<_>>().join("<br>");
        if others.len() > OTHERS {
            let _ = write!(lines, "<br>and {} more", others.len() - OTHERS);
        }
        let _ = writeln!(text, "<p>Also failed:<br>{lines}</p>");
    }
    let log = failed.report.log.as_ref();
    if let Some(lines) = log.map(|log| last_lines(log)).filter(|it| !it.is_empty()) {
        let _ = writeln!(
            text,
            "<p>The last lines of its log:</p>\n<pre>{}</pre>",
            lines.join("&#10;")
        );
    }
    if failed.log == LogArtifact::Empty {
        text.push_str("<p>Its builder printed nothing.</p>\n");
    } else if let Some(command) = &failed.advice.whole_log {
        text.push_str(&to_paste(&where_the_log_is(failed), command));
    }
    if let Some(command) = &failed.advice.reproduce {
        text.push_str(&to_paste("Reproduce", command));
    }
    text.push_str("</details>\n\n");
    text
}

/// What failed: a message of several lines (an evaluation's) as Nix has set them. Where there is no log, it has its room too.
fn message(report: &FailureReport) -> String {
    let room = match &report.log {
        Some(_) => MESSAGE_AT_MOST,
        None => MESSAGE_AT_MOST + LOG_AT_MOST,
    };
    let inert = inert_within(&report.message, room);
    if report.message.trim_end().contains('\n') {
        format!("<pre>{inert}</pre>\n")
    } else {
        format!("<p>{inert}</p>\n")
    }
}

/// A line about a step that failed by the same derivation as another, whose `mark` has its job and label.
pub(super) fn same_root_cause(job: &StepJob, target: &str, root_cause: &str, mark: &str) -> String {
    let (id, label) = mark.split_once(' ').unwrap_or((mark, ""));
    let other = StepJob {
        id: id.to_owned(),
        step: String::new(),
        label: Some(label.to_owned()).filter(|label| !label.is_empty()),
        agent: None,
        is_retry: false,
        around: JobContext::default(),
    };
    format!(
        "{} failed with the same root cause, {}, as {} (job {})\n\n",
        name(target),
        name(root_cause),
        link(&other),
        link(job)
    )
}

/// A line about a retry that failed as the try before.
pub(super) fn retry(job: &StepJob, target: &str) -> String {
    format!(
        "{} failed again when it was retried (job {})\n\n",
        name(target),
        link(job)
    )
}

/// A line that says how many have failed; in the first such line, that they are no longer `listed`.
pub(super) fn counted(count: usize, listed: usize) -> String {
    if count == listed {
        return format!(
            "**More than {listed} failures: from here on they are counted, and not listed.** Each job's log shows its own; `eval-once summary` lists all of them.\n\n"
        );
    }
    format!("{count} failures so far.\n\n")
}

fn name(text: &str) -> String {
    code(&shortened(text, NAME_AT_MOST))
}

/// The job by its label, which leads to it on the build's page.
fn link(job: &StepJob) -> String {
    let label = job.label.as_deref().unwrap_or("job");
    job_link(&job.id, &inert(&shortened(label, NAME_AT_MOST)))
}

fn where_the_log_is(failed: &FailedStep<'_>) -> String {
    let artifact = |name: &str| {
        // The name is of safe characters only.
        if failed.count <= LINKED {
            format!("<a href=\"artifact://{name}\">{}</a>", inert(name))
        } else {
            code(name)
        }
    };
    match &failed.log {
        LogArtifact::Whole(name) => format!(
            "Its whole log is the artifact {}; or, on the host that built it",
            artifact(name)
        ),
        LogArtifact::LastLines(name) => format!(
            "Nix has no log of it on this host; its last lines are the artifact {}. On a host that has the log",
            artifact(name)
        ),
        LogArtifact::Empty | LogArtifact::None => {
            "Its log is not an artifact: Nix has none on this host, or the upload failed. On a host that has it".into()
        }
    }
}

fn to_paste(what: &str, command: &str) -> String {
    let inert = inert(command);
    // Cut, or with a character replaced, it would be another command.
    if inert.len() > COMMAND_AT_MOST || inert.contains('\u{fffd}') {
        return format!(
            "<p>{what}: by a command that cannot be shown here; <code>eval-once explain</code> prints it</p>\n"
        );
    }
    format!("<p>{what}:</p>\n<pre>{inert}</pre>\n")
}

/// A line of a log as a terminal shows it in the end: without what was overwritten (a progress bar).
fn line_of_log(line: &str) -> String {
    let last = line.trim_end_matches('\r').rsplit('\r').next();
    tamed(last.unwrap_or_default(), KeepEscapes::Nothing).replace('\t', "    ")
}

/// The last lines of a log, inert, as many as there is room for.
fn last_lines(log: &str) -> Vec<String> {
    let mut bytes = 0;
    let mut lines: Vec<String> = log
        .trim_end()
        .lines()
        .rev()
        .take(LAST_LINES)
        .map(|line| inert(&shortened(&line_of_log(line), LINE_AT_MOST)))
        .take_while(|line| {
            bytes += line.len() + "&#10;".len();
            bytes <= LOG_AT_MOST
        })
        .collect();
    lines.reverse();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Class;
    use crate::step::report::OtherFailure;

    const HOSTILE: &str = "</pre></details><script>alert(1)</script>\n\n# heading\n```\n+++ open :boom: [x](javascript:x) \u{1b}]1339;url=x\u{7} **b** &amp; \u{0} \u{202e}gpj.exe \u{2028}";

    fn job(label: &str) -> StepJob {
        StepJob {
            id: "0190c1a2-0000-4000-8000-000000000001".into(),
            step: "step".into(),
            label: Some(label.into()),
            agent: Some(label.into()),
            is_retry: false,
            around: JobContext::default(),
        }
    }

    /// The section of a step whose names, message, log and commands are all this text.
    fn section_of(text: &str, count: usize, name: &str) -> String {
        let drv = format!("/nix/store/{}-{name}.drv", "0".repeat(32));
        let report = FailureReport {
            class: "build",
            drv: Some(DrvPath::parse(&drv).unwrap()),
            log: Some(vec![text; 40].join("\n")),
            printed_too_much: false,
            others: (0..20)
                .map(|_| OtherFailure {
                    drv: Some(DrvPath::parse(&drv).unwrap()),
                    message: text.into(),
                })
                .collect(),
            message: text.into(),
        };
        section(&FailedStep {
            job: &job(text),
            target: text,
            failure: &Failure::new(Class::Build, text).hint(text),
            report: &report,
            advice: &Advice {
                whole_log: Some(text.into()),
                reproduce: Some(text.into()),
                explain: None,
            },
            log: LogArtifact::Whole("eval-once-log/a.log".into()),
            count,
        })
    }

    #[test]
    fn whatever_names_logs_and_messages_hold_is_only_text() {
        let text = section_of(HOSTILE, 1, "a");
        for meaning in [
            "<script", "`", "**", "](", ":boom:", "\u{1b}", "\u{7}", "\u{0}", "+++", "\u{202e}",
            "\u{2028}",
        ] {
            assert!(!text.contains(meaning), "{meaning:?} in {text}");
        }
        let (inside, behind) = text.split_at(text.len() - 2);
        assert_eq!(behind, "\n\n");
        assert!(!inside.contains("\n\n"), "the HTML ends early: {text}");
        assert_eq!(text.matches("</details>").count(), 1, "{text}");
        assert_eq!(
            text.matches("<pre>").count(),
            text.matches("</pre>").count()
        );
        for line in [
            same_root_cause(&job(HOSTILE), HOSTILE, HOSTILE, HOSTILE),
            retry(&job(HOSTILE), HOSTILE),
        ] {
            for meaning in ["<script", "`", "**", "](", "\u{1b}", "\u{202e}"] {
                assert!(!line.contains(meaning), "{meaning:?} in {line}");
            }
            assert_eq!(line.trim_end().lines().count(), 1, "{line}");
        }
    }

    #[test]
    fn a_value_that_is_no_derivation_is_not_called_an_evaluation_error() {
        let failure = Failure::new(Class::Evaluation, "web is not one derivation, but 6");
        let report = FailureReport::new(&failure, &[], None);
        let section_of = |failure: &Failure| {
            section(&FailedStep {
                job: &job("web"),
                target: "web",
                failure,
                report: &report,
                advice: &Advice::default(),
                log: LogArtifact::None,
                count: 1,
            })
        };
        assert!(section_of(&failure).contains("<b><code>web</code> does not evaluate</b>"));
        let text = section_of(&failure.called("is not one derivation"));
        assert!(
            text.contains("<b><code>web</code> is not one derivation</b>"),
            "{text}"
        );
        assert!(
            !text.contains("<code>web</code> does not evaluate"),
            "{text}"
        );
    }

    #[test]
    fn a_message_of_several_lines_is_shown_as_it_is_and_has_the_room_of_a_log() {
        let report = |message: &str, log: Option<&str>| FailureReport {
            log: log.map(str::to_owned),
            ..FailureReport::new(&Failure::new(Class::Evaluation, message), &[], None)
        };
        assert_eq!(
            message(&report("one\ntwo", None)),
            "<pre>one&#10;two</pre>\n"
        );
        assert_eq!(message(&report("one", None)), "<p>one</p>\n");
        let long = "x".repeat(6_000);
        assert_eq!(message(&report(&long, None)), format!("<p>{long}</p>\n"));
        let cut = message(&report(&long, Some("log")));
        assert!(cut.ends_with("x…</p>\n") && cut.len() < 2_000, "{cut}");
    }

    #[test]
    fn fifty_sections_and_all_lines_have_room_in_an_annotation() {
        let longest = "|".repeat(300) + "\n";
        let name = "+".repeat(200);
        let mut largest = 0;
        for length in [1, 10, 100, 330, 1_000, 100_000] {
            let text: String = longest.chars().cycle().take(length).collect();
            largest = largest.max(section_of(&text, 1, &name).len());
            assert!(same_root_cause(&job(&text), &text, &text, &text).len() < 4 << 10);
            assert!(retry(&job(&text), &text).len() < 4 << 10);
        }
        assert!(largest <= 16 << 10, "{largest}");
        // Every other of 4,000 jobs could say a number at the same moment as another.
        let numbers = (1..=80).map(|round| counted(round * 50, 50).len() * 2);
        assert!(50 * largest + numbers.sum::<usize>() < 1 << 20);
    }

    #[test]
    fn a_log_is_shown_by_its_last_lines_without_colours() {
        let log: Vec<String> = (1..=100)
            .map(|n| format!("\u{1b}[32m10%\rline\u{1b}[K {n}\u{1b}[0m\r"))
            .collect();
        let log = log.join("\n");
        let lines = last_lines(&log);
        assert_eq!((lines.len(), lines[0].as_str()), (25, "line 76"));
        assert_eq!(last_lines("\n\n"), [""; 0]);
    }

    #[test]
    fn a_command_is_shown_whole_or_not_at_all() {
        let text = to_paste("Reproduce", &"x".repeat(3_000));
        assert!(
            text.len() < 200 && text.contains("cannot be shown"),
            "{text}"
        );
        assert!(to_paste("", "nix-build 'a\u{202e}b'").contains("cannot be shown"));
    }
}
