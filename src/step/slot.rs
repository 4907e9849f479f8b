//! Evaluation slots: on one host only a few steps evaluate at the same time, and each has its GC root in the state folder.

use super::run::StepRun;
use crate::exit::Failure;
use crate::state::{EvaluationSlot, LockWait, StateFolder};

impl StepRun<'_> {
    /// The state folder, made where it is missing. One that cannot be used is a warning, once, and the step goes on without.
    pub(super) fn state(&self) -> Option<&StateFolder> {
        let open = || {
            let opened = match &self.host.state {
                Some(folder) => StateFolder::open(folder).map_err(|error| {
                    let mend = error.mend().map(|mend| format!(" ({mend})"));
                    let mend = mend.unwrap_or_default();
                    format!("{}: {error}{mend}", folder.display())
                }),
                None => Err("EVAL_ONCE_STATE_DIR, XDG_STATE_HOME and HOME are not set".into()),
            };
            match &opened {
                Ok(state) => state.say_if_newly_closed(&self.log),
                Err(error) => self
                    .log
                    .warn(format_args!("cannot use the state folder: {error}")),
            }
            opened.ok()
        };
        self.state.get_or_init(open).as_ref()
    }

    /// Waits for an evaluation slot. Without a state folder there are none, and the step does not wait.
    pub(super) fn evaluation_slot(&mut self) -> Result<Option<EvaluationSlot>, Failure> {
        let slots = self.host.evaluations.get();
        let mut wait = LockWait::new("an evaluation slot");
        let mut reported = false;
        // Opened before the supervisor is lent.
        self.state();
        let slot = loop {
            let Some(Some(state)) = self.state.get() else {
                break None;
            };
            match state.try_evaluation_slot(slots) {
                Ok(Some(slot)) => break Some(slot),
                Ok(None) => {}
                Err(error) => {
                    self.log.warn(format_args!(
                        "evaluating without an evaluation slot: {error}"
                    ));
                    break None;
                }
            }
            if !reported {
                self.log.say(format_args!(
                    "waiting for an evaluation slot ({slots} of {slots} in use)"
                ));
                reported = true;
            }
            wait.pause(&state.evaluation_locks(slots), self.supervisor, &self.log)?;
        };
        self.seconds.wait += wait.elapsed();
        Ok(slot)
    }
}
