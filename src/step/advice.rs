//! What one can do about a failed step, as commands to paste: the end of its log and its build's page show the same.

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
    /// Builds the same anywhere: what was asked for, evaluated in a checkout; or the derivation, where only that is known.
    pub(super) reproduce: Option<String>,
    /// Says what the step would do here, and why.
    pub(super) explain: Option<String>,
}

impl Advice {
    /// What to do about the failure in `report` with this `version` of Nix.
    pub(super) fn new(request: &StepRequest, report: &Report, version: Option<(u32, u32)>) -> Self {
        let failure = report.failure.as_ref();
        // Where nothing was printed there is nothing to look at.
        let printed = failure.filter(|failure| failure.log.is_some());
        let root_cause = printed.and_then(|failure| failure.drv.as_ref());
        let reproduce = if request.evaluation.is_some() {
            by_hand(request, None, version)
        } else {
            // Where no way was left, it is gone.
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

/// What one would type to get what the request evaluates: a command of Nix's, or of ours where Nix's cannot say it, or not in
/// characters that survive being shown and copied.
pub(super) fn by_hand(
    request: &StepRequest,
    link: Option<&Path>,
    version: Option<(u32, u32)>,
) -> Option<CommandLine> {
    let evaluation = request.evaluation.as_ref()?;
    let by_nix = command::nix_build(evaluation, link, &request.options, version);
    Some(by_nix.filter(can_be_pasted).unwrap_or_else(|| {
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

/// A subcommand of ours, with the keys of a step.
fn with_keys(keys: &Keys, subcommand: &str) -> CommandLine {
    let mut line = CommandLine::new("eval-once", &[subcommand]);
    line.variables.push(("EVAL_ONCE_STEP", in_ascii(keys)));
    line
}

fn can_be_pasted(line: &CommandLine) -> bool {
    let lost = |c: char| c.is_control() || is_unseen(c) || c == '\u{fffd}';
    !line.to_string().contains(lost)
}
