//! Evaluation slots: on one host only a few steps evaluate at the same time, and each has its GC root in the state folder.

use std::time::{Duration, Instant};

use super::run::StepRun;
use crate::exit::Failure;
use crate::state::{EvaluationSlot, StateFolder};

/// How often a free slot is looked for: the kernel does not notify of one of several locks that becomes free.
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl StepRun<'_> {
    /// The state folder, made where it is missing. One that cannot be used is a warning, once, and the step goes on without.
    pub(super) fn state(&self) -> Option<&StateFolder> {
        let open = || {
            let opened = match &self.host.state {
                Some(folder) => StateFolder::open(folder)
                    .map_err(|error| format!("{}: {error}", folder.display())),
                None => Err("EVAL_ONCE_STATE_DIR, XDG_STATE_HOME and HOME are not set".into()),
            };
            if let Err(error) = &opened {
                self.log
                    .warn(format_args!("cannot use the state folder: {error}"));
            }
            opened.ok()
        };
        self.state.get_or_init(open).as_ref()
    }

    /// Waits for an evaluation slot. Without a state folder there are none, and the step does not wait.
    pub(super) fn evaluation_slot(&mut self) -> Result<Option<EvaluationSlot>, Failure> {
        let slots = self.host.evaluations.get();
        let started = Instant::now();
        let mut reported = false;
        let slot = loop {
            match self.state().map(|state| state.try_evaluation_slot(slots)) {
                None => break None,
                Some(Ok(Some(slot))) => break Some(slot),
                Some(Ok(None)) => {}
                Some(Err(error)) => {
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
            self.supervisor.pause(LOOK_EVERY)?;
        };
        self.seconds.wait += started.elapsed();
        Ok(slot)
    }
}
