//! The end of a failed step's log: an open group that says what failed, where and why, and what to do next.

use super::advice::Advice;
use super::build_log::BuildLog;
use super::report::{Report, WayName};
use super::request::StepRequest;
use crate::exit::{Class, Failure};
use crate::log::Log;
use crate::nix::DrvPath;

/// How many other failures are listed.
const OTHERS: usize = 10;

/// The longest command that is shown, in bytes.
const COMMAND_AT_MOST: usize = 4 << 10;

/// A command, or a note instead: the length of an expression has no limit.
fn shown(command: &str) -> &str {
    if command.len() <= COMMAND_AT_MOST {
        command
    } else {
        "the command is too long to be shown; run `eval-once explain` to print it"
    }
}

/// Shows how the step failed. A refusal has no such group: its `error:` line says everything.
pub(super) fn show(
    failure: &Failure,
    report: &Report,
    request: Option<&StepRequest>,
    advice: &Advice,
    build_log: Option<&BuildLog>,
    is_log_above: bool,
    log: &Log,
) {
    if failure.class == Class::Config {
        return;
    }
    let reported = report.failure.as_ref();
    let root_cause = reported.and_then(|reported| reported.drv.as_ref());
    let others = reported.map_or(&[][..], |reported| &reported.others);
    let name = root_cause.map(DrvPath::name);
    let evaluation = request.and_then(|request| request.evaluation.as_ref());
    if is_log_above {
        // The group that holds the end of the builder's log: it is not repeated below.
        log.open_group();
    }
    log.failed_group(format_args!(
        "{} ({}, exit status {})",
        match (name, others.len()) {
            (Some(name), 0) => format!("{name} failed"),
            (Some(name), 1) => format!("{name} and another failed"),
            (Some(name), others) => format!("{name} and {others} others failed"),
            (None, _) if failure.class == Class::Evaluation || failure.verb.is_some() =>
                match evaluation {
                    Some(evaluation) => format!("{evaluation} {}", failure.verb()),
                    None => format!("the target {}", failure.verb()),
                },
            (None, _) => "failed".into(),
        },
        Class::shown(failure.class.word()),
        failure.class.status()
    ));
    log.open_group();
    let line = |what: &str, text: &str| {
        log.plain(format_args!("{what:<14}{text}"));
    };
    if let Some(evaluation) = evaluation {
        line("target", &evaluation.to_string());
    }
    let recorded = request.and_then(|request| request.drv.as_ref());
    // The recorded derivation did not fail itself where an evaluation replaced it, or where it is gone.
    let was_given_up = report.drv.as_ref() == recorded && report.way != Some(WayName::Realised);
    if let Some(drv) = root_cause.or(report.drv.as_ref()) {
        let what = match root_cause {
            None if was_given_up => "recorded",
            _ => "derivation",
        };
        line(what, drv.as_store_path().as_str());
    }
    for other in others.iter().take(OTHERS) {
        let what = match &other.drv {
            Some(drv) => drv.as_store_path().as_str(),
            None => "a derivation",
        };
        line("also failed", &format!("{what}: {}", other.message));
    }
    if others.len() > OTHERS {
        line("also failed", &format!("{} more", others.len() - OTHERS));
    }
    line("what it means", failure.in_a_sentence());
    if let Some(command) = &advice.whole_log {
        line("whole log", command);
    }
    if let Some(command) = &advice.reproduce {
        line("reproduce", shown(command));
    }
    if let Some(command) = &advice.explain {
        line("explain", shown(command));
    }
    if is_log_above {
        return;
    }
    if let Some(lines) = reported.and_then(|reported| reported.log.as_ref()) {
        log.plain("the end of its log:");
        let name = name.unwrap_or_default();
        for text in lines.lines() {
            log.plain(format_args!("{name}> {text}"));
        }
    } else if build_log.is_some() {
        log.plain("the end of its log: it has printed nothing");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use serde_json::json;

    use super::super::report::FailureReport;
    use super::*;
    use crate::evaluation_keys::Checkout;
    use crate::nix::{Cause, Fault};

    fn path(name: &str) -> String {
        format!("/s/0123456789abcdfghijklmnpqrsvwxyz-{name}.drv")
    }

    fn request() -> StepRequest {
        let place = Checkout {
            folder: "/checkout".into(),
            confined: false,
            no_checkout: false,
        };
        let keys = json!({ "drv": path("app"), "file": "ci.nix", "attr": "app" });
        StepRequest::read(keys.as_object().unwrap().clone(), &place).unwrap()
    }

    /// The report of a step whose build failed: derivations of these names, the first with these last lines of its log.
    fn report(failure: &Failure, names: &[&str], last_lines: Option<&[String]>) -> Report {
        let faults: Vec<Fault> = names
            .iter()
            .map(|name| Fault {
                drv: DrvPath::parse(&path(name)).ok(),
                cause: Cause::Status(2),
            })
            .collect();
        Report {
            way: Some(WayName::Realised),
            drv: DrvPath::parse(&path("app")).ok(),
            failure: Some(FailureReport::new(failure, &faults, last_lines)),
            ..Report::default()
        }
    }

    fn shown(failure: &Failure, report: &Report, advice: &Advice, is_log_above: bool) -> String {
        let printed = Rc::new(RefCell::new(Vec::new()));
        let log = Log::to(printed.clone());
        show(
            failure,
            report,
            Some(&request()),
            advice,
            None,
            is_log_above,
            &log,
        );
        String::from_utf8(printed.take()).unwrap()
    }

    fn build_failure() -> Failure {
        Failure::new(Class::Build, "no")
    }

    #[test]
    fn a_failed_build_is_shown_with_its_root_cause_what_to_do_and_the_end_of_its_log() {
        let failure = build_failure();
        let lines = ["compiling\u{1b}[2K".to_owned(), "oops".to_owned()];
        let advice = Advice {
            whole_log: Some("show it".into()),
            reproduce: Some("do it".into()),
            explain: Some("explain it".into()),
        };
        let lib = path("lib");
        let heading = "--- eval-once: lib failed (build, exit status 100)\n^^^ +++\n";
        let facts = format!(
            "target        app of ci.nix\n\
             derivation    {lib}\n\
             what it means The build failed; retrying only helps if the build is flaky.\n\
             whole log     show it\n\
             reproduce     do it\n\
             explain       explain it\n"
        );
        let log = "the end of its log:\nlib> compiling\nlib> oops\n";
        let report = report(&failure, &["lib"], Some(&lines));
        assert_eq!(
            shown(&failure, &report, &advice, false),
            format!("{heading}{facts}{log}")
        );
        // The log right above is opened, and not repeated.
        assert_eq!(
            shown(&failure, &report, &advice, true),
            format!("^^^ +++\n{heading}{facts}")
        );
    }

    #[test]
    fn of_many_failures_ten_are_listed_and_the_others_counted() {
        let failure = build_failure();
        let heading_and_list = |count: usize| {
            let report = report(&failure, &vec!["x"; count], None);
            let shown = shown(&failure, &report, &Advice::default(), false);
            let listed = shown.lines().filter(|line| line.starts_with("also failed"));
            let listed: Vec<String> = listed.map(str::to_owned).collect();
            (shown.lines().next().unwrap().to_owned(), listed)
        };
        let (heading, listed) = heading_and_list(2);
        assert!(heading.contains("x and another failed"), "{heading}");
        let x = path("x");
        assert_eq!(
            listed,
            [format!(
                "also failed   {x}: its builder ended with status 2"
            )]
        );
        let (heading, listed) = heading_and_list(13);
        assert!(heading.contains("x and 12 others failed"), "{heading}");
        assert_eq!(listed.len(), OTHERS + 1);
        assert_eq!(listed[OTHERS], "also failed   2 more");
    }

    #[test]
    fn a_drv_that_did_not_fail_itself_is_shown_as_recorded() {
        let failure = Failure::new(Class::Evaluation, "no");
        let of_way = |way| {
            let report = Report {
                way,
                ..report(&failure, &[], None)
            };
            shown(&failure, &report, &Advice::default(), false)
        };
        let evaluated = of_way(Some(WayName::Evaluated));
        let begin = "--- eval-once: app of ci.nix does not evaluate (evaluation, exit status 65)\n";
        assert!(evaluated.starts_with(begin), "{evaluated}");
        let recorded = format!("\nrecorded      {}\n", path("app"));
        assert!(evaluated.contains(&recorded), "{evaluated}");
        let realised = of_way(Some(WayName::Realised));
        let derivation = format!("\nderivation    {}\n", path("app"));
        assert!(realised.contains(&derivation), "{realised}");
    }

    #[test]
    fn a_command_that_is_too_long_is_replaced_by_a_note() {
        let failure = build_failure();
        let advice = Advice {
            reproduce: Some("x".repeat(COMMAND_AT_MOST)),
            explain: Some("y".repeat(COMMAND_AT_MOST + 1)),
            ..Advice::default()
        };
        let shown = shown(&failure, &report(&failure, &[], None), &advice, false);
        assert!(shown.contains(&"x".repeat(COMMAND_AT_MOST)));
        assert!(shown.contains("\nexplain       the command is too long") && !shown.contains("yy"));
    }

    #[test]
    fn a_refusal_is_its_error_line_alone() {
        let failure = Failure::new(Class::Config, "no");
        let report = report(&failure, &[], None);
        assert_eq!(shown(&failure, &report, &Advice::default(), false), "");
    }

    #[test]
    fn a_builder_that_printed_nothing_is_not_confused_with_a_log_that_is_not_known() {
        let failure = build_failure();
        let report = report(&failure, &["lib"], None);
        let folder = tempfile::tempdir().unwrap();
        let kept = BuildLog::of_lines(&DrvPath::parse(&path("lib")).unwrap(), "", folder.path());
        let kept = kept.unwrap();
        for (kept, nothing) in [(Some(&kept), true), (None, false)] {
            let printed = Rc::new(RefCell::new(Vec::new()));
            let log = Log::to(printed.clone());
            show(
                &failure,
                &report,
                None,
                &Advice::default(),
                kept,
                false,
                &log,
            );
            let printed = String::from_utf8(printed.take()).unwrap();
            assert_eq!(
                printed.ends_with("it has printed nothing\n"),
                nothing,
                "{printed}"
            );
        }
    }
}
