//! What follows from tasks that fail and from workers that end.

use std::time::Duration;

use super::super::circles::{too_deep, too_many};
use super::super::diagnosis::{FailedTask, OversizedWorker, Question, Verdict, WorkerEnd};
use super::super::exclusions::is_expected;
use super::super::processes::EndedWorker;
use super::super::schedule::{LineEnd, MemoryShare, WorkerId};
use super::super::spans::AttrIndex;
use super::Walk;
use super::worker::Doing;
use crate::command_line::Ending;
use crate::exit::Failure;
use crate::nix::NixOutput;
use crate::store::Store;

impl Walk<'_> {
    /// A worker's process has ended.
    pub(super) fn ended(
        &mut self,
        ended: &mut EndedWorker,
        store: &mut Store,
    ) -> Result<(), Failure> {
        let worker = ended.worker;
        self.has_ended = true;
        let (doing, since, stopped_at) = match self.workers.remove(&worker) {
            Some(one) => (Some(one.doing), Some(one.since), one.stopped_at),
            None => (None, None, None),
        };
        let is_loading = matches!(doing, Some(Doing::Loading { .. }));
        if self.schedule.task(worker).is_none() && !is_loading {
            self.schedule.gone(worker);
            return Ok(());
        }
        if let Some(Doing::Walking {
            deep: Some(path), ..
        }) = doing
        {
            self.give_up_deep(worker, &path, true);
            return Ok(());
        }
        match WorkerEnd::of(ended.stop_cause, ended.ending) {
            WorkerEnd::Died => {
                self.failed_since(worker, since, ended.ending, &mut ended.nix_output, store)
            }
            WorkerEnd::TooLarge => {
                let at = self.schedule.at(worker);
                let verdict = self.diagnosis.too_large(&OversizedWorker {
                    name: &self.name_of(&at),
                    at,
                    begun: self.schedule.begun(worker),
                    share: self.share_at_end(ended),
                    slots: self.schedule.at_most(),
                    was_stopped: ended.stop_cause.is_some(),
                });
                self.carry_out(verdict, worker, true)
            }
            WorkerEnd::TooLong => {
                let timeout = self.request.evaluation_timeout.unwrap_or_default();
                let at = self.schedule.at(worker);
                let stopped_at = stopped_at.unwrap_or_else(|| at.clone());
                if stopped_at != at && stopped_at != AttrIndex::default() {
                    // It has come on until it was killed: this is another attribute than the one that took so long.
                    let now = self.now();
                    self.schedule.ended(worker, LineEnd::Waits, true, now);
                    return Ok(());
                }
                let verdict = self.diagnosis.too_long(&stopped_at, timeout.as_secs());
                self.carry_out(verdict, worker, true)
            }
        }
    }

    /// What the worker had of the memory when it ended: as it was measured when we stopped it. Where the kernel killed it, another one may
    /// have begun or ended since the last measurement.
    fn share_at_end(&self, ended: &EndedWorker) -> MemoryShare {
        let now = self.schedule.share(ended.worker);
        match ended.share {
            Some(then) if ended.stop_cause.is_some() || then.slots >= now.slots => then,
            _ => now,
        }
    }

    /// The task of a living worker failed.
    pub(super) fn failed(
        &mut self,
        worker: WorkerId,
        ending: Ending,
        nix_output: &mut NixOutput,
        store: &mut Store,
    ) -> Result<(), Failure> {
        let since = self.workers.get(&worker).map(|worker| worker.since);
        self.failed_since(worker, since, ending, nix_output, store)
    }

    /// A task that began then failed, or its worker died.
    fn failed_since(
        &mut self,
        worker: WorkerId,
        since: Option<Duration>,
        ending: Ending,
        nix_output: &mut NixOutput,
        store: &mut Store,
    ) -> Result<(), Failure> {
        store.tell_folder(nix_output, self.supervisor)?;
        let at = self.schedule.at(worker);
        let name = self.name_of(&at);
        let now = self.now();
        let task = self.schedule.task(worker);
        let failed = FailedTask {
            at,
            name: &name,
            is_repetition: task.is_some_and(|task| task.catch),
            began: since.unwrap_or(now),
            now,
            ending,
            nix_output,
        };
        let (supervisor, roots) = (&mut *self.supervisor, &mut self.roots);
        let verdict = self.diagnosis.failed(&failed, |question| match question {
            Question::Answers => store.check_answers(supervisor).map(|()| true),
            Question::IsValid(path) => Ok(
                store.is_valid(supervisor, path)? && roots.keep_path(path, store, supervisor)?
            ),
            Question::IsThere(file) => Ok(file.is_there().unwrap_or_default()),
            Question::IsOfCheckout(file) => Ok(file.is_of_checkout()),
        })?;
        let is_gone = !self.workers.contains_key(&worker);
        self.carry_out(verdict, worker, is_gone)
    }

    fn carry_out(
        &mut self,
        verdict: Verdict,
        worker: WorkerId,
        is_gone: bool,
    ) -> Result<(), Failure> {
        let end = match verdict {
            Verdict::EvaluationError(message) => {
                let in_meta = self.schedule.is_in_meta(worker);
                let at = self.schedule.at(worker);
                self.findings.fail(&at, in_meta, &message);
                self.print_error(&at);
                LineEnd::GaveUp
            }
            Verdict::Repeat(line) => {
                self.log.say(line);
                LineEnd::Again { catch: true }
            }
            Verdict::RepeatUncaught(line) => {
                self.log.say(line);
                LineEnd::Again { catch: false }
            }
            Verdict::RepeatAlone => LineEnd::Alone,
            Verdict::RepeatWithMore => LineEnd::Waits,
            Verdict::RepeatWithFewer(line) => {
                self.log.say(line);
                LineEnd::Fewer
            }
            Verdict::Fail(failure) => return Err(failure),
        };
        let now = self.now();
        self.schedule.ended(worker, end, is_gone, now);
        Ok(())
    }

    /// A set is nested too deeply: it, or the circle of sets that leads to it, is one evaluation error; or a set with too many of them.
    pub(super) fn give_up_deep(&mut self, worker: WorkerId, path: &AttrIndex, is_gone: bool) {
        let now = self.now();
        if let Some(set) = self.findings.set_given_up(path) {
            // Meanwhile, because of what another worker found.
            let end = LineEnd::GaveUpSet(set);
            self.schedule.ended(worker, end, is_gone, now);
            return;
        }
        let root = self.request.root.attr.names().len();
        // Without `attr`, the sets of some of a flake's outputs need no mark.
        let is_whole_flake = self.invocation.system().is_some();
        let recurse = (!is_whole_flake).then_some(self.request.recurse);
        let too_deep = too_deep(&self.findings.attr(path), root, recurse);
        let Some(set) = path.with_parents().nth(too_deep.depth) else {
            return;
        };
        let (set, message) = match self.given_up.too_many_in(&set) {
            None => (set, too_deep.message),
            Some(around) => {
                let message = too_many(&self.findings.attr(&around), recurse);
                (around, message)
            }
        };
        self.findings.give_up_set(&set, &message);
        self.print_error(&set);
        let end = LineEnd::GaveUpSet(set);
        self.schedule.ended(worker, end, is_gone, now);
    }

    /// Prints the attribute's evaluation error, if it has one that is not expected.
    pub(super) fn print_error(&mut self, path: &AttrIndex) {
        if let Some(error) = self.findings.error_of(path)
            && !is_expected(error, &self.request.expect_errors)
        {
            self.progress.error(error);
        }
    }
}
