//! What one can do about a failed step at home, as commands to paste: the end of its log and its build's page show the same.

use super::report::Report;
use super::request::Request;
use crate::nix::command;

/// Commands to paste, where there are any.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Advice {
    /// Shows the whole log of the derivation that failed, on the host that built it.
    pub(super) whole_log: Option<String>,
    /// Builds the same anywhere: what was asked for, evaluated in a checkout; or the derivation, where only that is known.
    pub(super) reproduce: Option<String>,
}

impl Advice {
    /// What to do about the failure in `report`. Of a step whose keys cannot be read there is no request, and nothing to do.
    pub(super) fn new(request: Option<&Request>, report: &Report) -> Self {
        let Some(request) = request else {
            return Self::default();
        };
        let options = &request.options;
        let failure = report.failure.as_ref();
        // Where nothing was printed there is nothing to look at.
        let printed = failure.filter(|failure| failure.log.is_some());
        let culprit = printed.and_then(|failure| failure.drv.as_ref());
        let reproduce = match &request.evaluation {
            Some(evaluation) => Some(command::nix_build(evaluation, None, options)),
            // Where no way was left, it is gone.
            None => report
                .drv
                .as_ref()
                .filter(|_| report.way.is_some())
                .map(|drv| command::realise(drv, None, options)),
        };
        Self {
            whole_log: culprit.map(|drv| command::read_log(drv, &[]).to_string()),
            reproduce: reproduce.map(|line| line.to_string()),
        }
    }
}
