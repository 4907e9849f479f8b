//! What one can do about a failed step, as commands to paste: the job's log and the build's page show the same.

use std::path::Path;

use super::report::Report;
use super::request::StepRequest;
use crate::command_line::CommandLine;
use crate::keys::{Keys, in_ascii};
use crate::nix::command;
use crate::text::is_unseen;

/// The keys of a step that say what it evaluates.
const EVALUATION: [&str; 8] = [
    "file", "expr", "flake", "attr", "arg", "argstr", "include", "options",
];

/// Commands to paste, where there are any.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Advice {
    /// Shows the whole log of the derivation that failed, on the host that built it.
    pub(super) whole_log: Option<String>,
    /// Reproduces the failure anywhere: evaluates and builds what the step was asked for, in a checkout; or builds the
    /// derivation, where only that is known.
    pub(super) reproduce: Option<String>,
    /// Prints what the step would do on this host, and why.
    pub(super) explain: Option<String>,
}

impl Advice {
    /// What to do about the failure in `report` with this `version` of Nix.
    pub(super) fn new(request: &StepRequest, report: &Report, version: Option<(u32, u32)>) -> Self {
        let failure = report.failure.as_ref();
        // A builder that printed nothing has no log.
        let with_log = failure.filter(|failure| failure.log.is_some());
        let root_cause = with_log.and_then(|failure| failure.drv.as_ref());
        let reproduce = if request.evaluation.is_some() {
            reproduce(request, None, version)
        } else {
            // Where no way was taken, the `.drv` is gone.
            let drv = report.drv.as_ref().filter(|_| report.way.is_some());
            drv.map(|drv| command::realise(drv, None, &request.options))
        };
        let explain = with_keys(&request.keys, "explain");
        Self {
            whole_log: root_cause.map(|drv| command::read_log(drv, &[]).to_string()),
            reproduce: reproduce.map(|line| line.to_string()),
            explain: Some(explain.to_string()),
        }
    }
}

/// The command that evaluates and builds what the request says: one of Nix's; or ours, where Nix's cannot express it, or only
/// in characters that are lost when they are shown and copied.
pub(super) fn reproduce(
    request: &StepRequest,
    link: Option<&Path>,
    version: Option<(u32, u32)>,
) -> Option<CommandLine> {
    let evaluation = request.evaluation.as_ref()?;
    let nix_build = command::nix_build(evaluation, link, &request.options, version);
    Some(nix_build.filter(can_be_pasted).unwrap_or_else(|| {
        let keys = request.keys.iter();
        let keys = keys.filter(|(key, _)| EVALUATION.contains(&key.as_str()));
        let mut keys: Keys = keys
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let link = link.and_then(Path::to_str);
        keys.insert("out-link".into(), link.map_or(false.into(), Into::into));
        with_keys(&keys, "step")
    }))
}

/// A subcommand of ours with these keys of a step.
fn with_keys(keys: &Keys, subcommand: &str) -> CommandLine {
    let mut line = CommandLine::new("eval-once", &[subcommand]);
    line.variables
        .push(("EVAL_ONCE_STEP", in_ascii(keys).into()));
    line
}

fn can_be_pasted(line: &CommandLine) -> bool {
    let lost = |c: char| c.is_control() || is_unseen(c) || c == '\u{fffd}';
    !line.to_string().contains(lost)
}

#[cfg(test)]
mod tests {
    use super::super::report::{FailureReport, WayName};
    use super::*;
    use crate::evaluation_keys::Checkout;
    use crate::exit::{Class, Failure};
    use crate::nix::DrvPath;
    use serde_json::{Value, json};

    const DRV: &str = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-zlib-1.3.1.drv";

    fn request(keys: &Value) -> StepRequest {
        let place = Checkout {
            folder: "/checkout".into(),
            confined: false,
            no_checkout: false,
        };
        StepRequest::read(keys.as_object().unwrap().clone(), &place).unwrap()
    }

    /// The report of a step in which [`DRV`] failed after it had printed `log`.
    fn report(log: Option<&str>) -> Report {
        let failure = Failure::new(Class::Build, "failed");
        Report {
            way: Some(WayName::Realised),
            drv: DrvPath::parse(DRV).ok(),
            failure: Some(FailureReport {
                drv: DrvPath::parse(DRV).ok(),
                log: log.map(str::to_owned),
                ..FailureReport::new(&failure, &[], None)
            }),
            ..Report::default()
        }
    }

    #[test]
    fn a_log_is_shown_where_the_builder_printed_one() {
        let request = request(&json!({ "file": "ci.nix", "attr": "a" }));
        let whole_log = |log| Advice::new(&request, &report(log), None).whole_log;
        let command = format!("nix-store --read-log {DRV}");
        assert_eq!(whole_log(Some("no")), Some(command));
        assert_eq!(whole_log(None), None);
    }

    #[test]
    fn an_evaluation_is_reproduced_by_nix_and_a_record_by_its_drv() {
        let evaluated = request(&json!({ "file": "ci.nix", "attr": "a", "drv": DRV }));
        let advice = Advice::new(&evaluated, &report(None), None);
        let command = advice.reproduce.unwrap();
        assert!(command.starts_with("nix-build "), "{command}");
        let recorded = request(&json!({ "drv": DRV }));
        let advice = Advice::new(&recorded, &report(None), None);
        assert_eq!(advice.reproduce, Some(format!("nix-store --realise {DRV}")));
        // No way had the outputs: the `.drv` is gone.
        let gone = Report {
            way: None,
            ..report(None)
        };
        assert_eq!(Advice::new(&recorded, &gone, None).reproduce, None);
    }

    #[test]
    fn a_name_that_would_be_lost_in_copying_is_reproduced_by_our_own_command() {
        for name in ["a\u{202e}b", "a\nb", "a\u{fffd}b"] {
            let request = request(&json!({ "file": "ci.nix", "attr": [name], "skip": true }));
            let command = reproduce(&request, None, None).unwrap().to_string();
            assert!(command.starts_with("EVAL_ONCE_STEP="), "{command}");
            assert!(command.ends_with(" eval-once step"), "{command}");
            assert!(command.is_ascii() && !command.contains('\n'), "{command}");
            // The keys that say what to evaluate, and a root of no link in this folder.
            assert!(command.contains("\"out-link\":false"), "{command}");
            assert!(!command.contains("skip"), "{command}");
        }
    }

    #[test]
    fn explain_has_the_keys_of_the_step() {
        let request = request(&json!({ "drv": DRV, "attr": "a" }));
        let advice = Advice::new(&request, &report(None), None);
        let explain = advice.explain.unwrap();
        assert!(explain.ends_with(" eval-once explain"), "{explain}");
        assert!(explain.contains(DRV), "{explain}");
    }
}
