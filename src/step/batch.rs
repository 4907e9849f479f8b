//! A step that builds several targets, one after the other: each has its own way, its own log, report and section in the annotation of
//! failures, and one that fails keeps no other from being built.

use std::collections::BTreeMap;
use std::time::Instant;

use super::request::BatchTarget;
use super::{BuiltStep, StepJob, StepOrder, StepReporting};
use crate::counts::number;
use crate::exit::{Class, Failure};
use crate::keys::refuse;
use crate::log::Log;
use crate::supervise::Supervisor;

/// How many targets that failed are named at the end.
const NAMED: usize = 10;

/// What a target is called.
fn name(target: &BatchTarget) -> String {
    let evaluation = target.request.evaluation.as_ref();
    let attr = evaluation.map(|it| it.attr.to_string());
    attr.filter(|attr| !attr.is_empty())
        .unwrap_or_else(|| target.key.clone())
}

/// Builds one target, and reports how that went.
type Build = fn(StepOrder, &mut Supervisor, &Log) -> Result<BuiltStep, Failure>;

/// Builds every target of the order, each as `build` does.
///
/// # Errors
/// Some of them failed. A failure of the infrastructure is worth a retry, in which the others cost nothing; else the class is that of
/// all failures, or 103 where they differ. Or a signal has stopped us.
pub(super) fn perform(
    order: &StepOrder,
    build: Build,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<BuiltStep, Failure> {
    let targets = &order.request.targets;
    if order.reporting.report.is_some() {
        return Err(refuse(
            "`--report` is of one target, and this step builds several",
        ));
    }
    let mut failed: Vec<(String, Class)> = Vec::new();
    for (at, target) in targets.iter().enumerate() {
        let name = name(target);
        log.say(format_args!("{} of {}: {name}", at + 1, targets.len()));
        let job = order.reporting.job.clone().map(|job| StepJob {
            step: target.key.clone(),
            ..job
        });
        let one = StepOrder {
            request: target.request.clone(),
            place: order.place.clone(),
            repository: order.repository.clone(),
            host: order.host.clone(),
            in_build: order.in_build,
            reporting: StepReporting {
                report: None,
                job,
                temporary: order.reporting.temporary.clone(),
                started: Instant::now(),
                only_failures: false,
            },
        };
        match build(one, supervisor, log) {
            Ok(_) => {}
            Err(failure) if supervisor.is_stopped() => return Err(failure),
            Err(failure) => {
                log.failure(&failure);
                failed.push((name, failure.class));
            }
        }
    }
    if failed.is_empty() {
        return Ok(BuiltStep {
            outputs: BTreeMap::new(),
            command: order.request.command,
            program: None,
        });
    }
    Err(failure(&failed, targets.len()))
}

/// The failure of a batch of so many targets, of which these have failed.
fn failure(failed: &[(String, Class)], count: usize) -> Failure {
    let names: Vec<&str> = failed
        .iter()
        .take(NAMED)
        .map(|(name, _)| name.as_str())
        .collect();
    let more = if failed.len() > NAMED { ", …" } else { "" };
    let classes = || failed.iter().map(|(_, class)| *class);
    let class = match failed.first().map(|(_, class)| *class) {
        _ if classes().any(|class| class == Class::Infrastructure) => Class::Infrastructure,
        Some(first) if classes().all(|class| class == first) => first,
        _ => Class::Mixed,
    };
    Failure::new(
        class,
        format_args!(
            "{} of {} failed: {}{more}",
            failed.len(),
            number(count, "target"),
            names.join(", ")
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_worth_a_retry_decides_and_else_what_all_failures_are() {
        let class = |classes: &[Class]| {
            let failed: Vec<_> = classes.iter().map(|it| ("a".to_owned(), *it)).collect();
            failure(&failed, 9).class
        };
        assert_eq!(class(&[Class::Build, Class::Build]), Class::Build);
        assert_eq!(class(&[Class::Build, Class::Hash]), Class::Mixed);
        let infrastructure = class(&[Class::Build, Class::Infrastructure]);
        assert_eq!(infrastructure, Class::Infrastructure);
        let many: Vec<_> = (0..12).map(|i| (format!("t{i}"), Class::Build)).collect();
        let said = failure(&many, 50).to_string();
        assert!(
            said.starts_with("12 of 50 targets failed: t0, t1, "),
            "{said}"
        );
        assert!(said.ends_with("t9, …"), "{said}");
    }
}
