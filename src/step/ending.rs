//! How the log of a step that failed ends: in a group that is open, with what one needs to see what failed, where and why.

use super::advice::Advice;
use super::report::Report;
use super::request::Request;
use crate::exit::{Class, Failure};
use crate::log::Log;
use crate::nix::DrvPath;
use crate::text::{Keep, tamed};

/// Shows how the step failed. A refusal, and the signal that ended us, are told in one sentence each, which comes anyway.
pub(super) fn show(failure: &Failure, report: &Report, request: Option<&Request>, log: Log) {
    if matches!(failure.class, Class::Config | Class::Signal(_)) {
        return;
    }
    let told = report.failure.as_ref();
    let culprit = told.and_then(|told| told.drv.as_ref());
    let name = culprit.map(DrvPath::name);
    log.group(format_args!(
        "{} ({}, exit status {})",
        match name {
            Some(name) => format!("{name} failed"),
            None => "failed".into(),
        },
        failure.class.word(),
        failure.class.status()
    ));
    log.open_group();
    let line = |what: &str, text: &str| {
        log.plain(format_args!("{what:<14}{}", tamed(text, Keep::Nothing)));
    };
    if let Some(evaluation) = request.and_then(|request| request.evaluation.as_ref()) {
        line("target", &evaluation.to_string());
    }
    if let Some(drv) = culprit {
        line("derivation", drv.as_store_path().as_str());
    }
    line("what it means", failure.class.in_a_sentence());
    let advice = Advice::new(request, report);
    if let Some(command) = &advice.whole_log {
        line("whole log", command);
    }
    if let Some(command) = &advice.reproduce {
        line("at home", command);
    }
    if let Some(lines) = told.and_then(|told| told.log.as_ref()) {
        log.plain("the end of its log:");
        let name = name.unwrap_or_default();
        for text in lines.lines() {
            log.plain(format_args!("{name}> {}", tamed(text, Keep::Nothing)));
        }
    }
}
