//! The end of a failed step's log: an open group that says what failed, where and why, and what to do next.

use super::advice::Advice;
use super::build_log::BuildLog;
use super::report::{Report, WayName};
use super::request::StepRequest;
use crate::exit::{Class, Failure};
use crate::log::Log;
use crate::nix::DrvPath;
use crate::text::{KeepEscapes, tamed};

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
            (None, _) if failure.class == Class::Evaluation => match evaluation {
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
        log.plain(format_args!(
            "{what:<14}{}",
            tamed(text, KeepEscapes::Nothing)
        ));
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
            log.plain(format_args!(
                "{name}> {}",
                tamed(text, KeepEscapes::Nothing)
            ));
        }
    } else if build_log.is_some() {
        log.plain("the end of its log: it has printed nothing");
    }
}
