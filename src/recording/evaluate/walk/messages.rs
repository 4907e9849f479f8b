//! What follows from what the workers print.

use super::super::conversation;
use super::super::diagnosis::{Verdict, own_words};
use super::super::protocol::{self, WalkerMessage};
use super::super::schedule::{LineEnd, WorkerId};
use super::super::spans::AttrIndex;
use super::Walk;
use super::worker::{Doing, Worker};
use crate::command_line::Ending;
use crate::exit::{Class, Failure};
use crate::nix::{AttrPath, Evaluation, NixOutput};
use crate::store::Store;

/// For how many attributes that throw in a worker with one task Nix is asked for the message: each costs a process.
const MESSAGES_AT_MOST: usize = 10;

/// How a living worker's failed task counts: as a program that fails.
const FAILED: Ending = Ending::Exited(1);

/// What Nix leaves unsaid of a line: there is one reason for that ([`conversation::with_ends`]).
const ENDS_TOO_EARLY: &[u8] =
    b"error: syntax error, unexpected end of file, in a file that it imports\n";

impl Walk<'_> {
    /// A worker has printed a line.
    pub(super) fn line(
        &mut self,
        worker: WorkerId,
        line: &[u8],
        store: &mut Store,
    ) -> Result<(), Failure> {
        let Some(Worker {
            doing, is_between, ..
        }) = self.workers.get_mut(&worker)
        else {
            return Ok(());
        };
        match protocol::read(line, self.invocation.marker()) {
            Some(WalkerMessage::Done) => {
                *is_between = true;
                self.done(worker, store)
            }
            Some(WalkerMessage::Next) if *is_between => {
                *is_between = false;
                Ok(())
            }
            Some(WalkerMessage::Next) => self.failed_silently(worker, store),
            Some(WalkerMessage::Throws(path))
                if !self.invocation.converses() && !self.diagnosis.is_suspected(&path) =>
            {
                self.throws_unseen(worker, &path, store)
            }
            Some(WalkerMessage::Lost(path, step))
                if !self.invocation.converses() && !self.diagnosis.is_suspected(&path) =>
            {
                self.lost_unseen(&path, step, store)
            }
            Some(message) => {
                let other = self.processes.continued(worker);
                // What loading failed with (2.8) does not matter where nothing is evaluated in a conversation.
                if message != WalkerMessage::Impure {
                    self.progress.pass_on(&other);
                }
                self.message(worker, message)
            }
            // A line of Nix, or of the expression.
            None => {
                let is_chatter = *is_between
                    || conversation::is_chatter(line, matches!(doing, Doing::Loading { .. }));
                if !is_chatter && self.processes.read(worker, line) {
                    self.progress.pass_on(line);
                }
                Ok(())
            }
        }
    }

    fn message(&mut self, worker: WorkerId, message: WalkerMessage) -> Result<(), Failure> {
        let now = self.now();
        let (schedule, findings) = (&mut self.schedule, &mut self.findings);
        let doing = self
            .workers
            .get_mut(&worker)
            .map(|worker| &mut worker.doing);
        match message {
            WalkerMessage::Begin(path, name) => {
                if !schedule.begin(worker, path.clone(), now) {
                    let path = findings.attr(&path);
                    return Err(Failure::new(
                        Class::Bug,
                        format_args!("{path} was evaluated out of turn"),
                    ));
                }
                if path != AttrIndex::default() {
                    self.diagnosis.root_evaluated();
                }
                findings.begin(&path, name);
                self.progress.at(&path);
            }
            WalkerMessage::Meta(_) => schedule.begin_meta(worker),
            WalkerMessage::Excluded(path, by, name) => {
                schedule.exclude();
                findings.exclude(path, by, name);
            }
            WalkerMessage::Known(path, name) => {
                schedule.exclude();
                let attr = findings.attr_named(&path, &name);
                let known = self
                    .known
                    .get(&attr)
                    .ok_or_else(|| Failure::new(Class::Bug, format_args!("{attr} is not known")))?;
                findings.know(&path, name, known);
            }
            WalkerMessage::Impure => {
                if let Some(Doing::Loading { is_impure, .. }) = doing {
                    *is_impure = true;
                }
            }
            WalkerMessage::Set(path, _) if findings.is_given_up(&path) => {}
            WalkerMessage::Set(path, count) => schedule.set(worker, path, count),
            WalkerMessage::End(version) => {
                findings.version(version);
                if !self.invocation.converses() {
                    // It holds what it has written, as a conversation does that gets no more tasks.
                    schedule.ended(worker, LineEnd::Finished, true, now);
                    self.workers.remove(&worker);
                    self.processes.keep_idle(worker);
                } else if let Some(Doing::Walking { is_complete, .. }) = doing {
                    *is_complete = true;
                }
            }
            WalkerMessage::Deep(path) => {
                if let Some(Doing::Walking { deep, .. }) = doing {
                    *deep = Some(path);
                }
            }
            WalkerMessage::Unmarked(path) => findings.unmarked(path),
            WalkerMessage::Beside(path, names) => findings.beside(path, names),
            WalkerMessage::Callable(path) => findings.callable(path),
            WalkerMessage::Target(path, described) => findings.target(&path, described),
            WalkerMessage::Follow(path, step) => findings.follow(&path, step),
            WalkerMessage::Follower(path, step, described) => {
                findings.follower(&path, step, described);
            }
            WalkerMessage::Lost(path, step) => {
                // Where the task is done again, the message is that of the first time.
                let message = match self.diagnosis.threw(&path) {
                    Verdict::EvaluationError(message) => Some(message),
                    Verdict::Fail(failure) => return Err(failure),
                    _ => None,
                };
                let message = message.filter(|message| !message.is_empty());
                findings.lose_follower(&path, step, message.as_deref());
            }
            WalkerMessage::Refused(path, why) => findings.refuse(&path, &why),
            WalkerMessage::Error(path, why) => {
                findings.error(&path, &why);
                self.print_error(&path);
            }
            WalkerMessage::Throws(path) => match self.diagnosis.threw(&path) {
                Verdict::EvaluationError(message) => {
                    findings.fail(&path, schedule.is_in_meta(worker), &message);
                    self.print_error(&path);
                }
                Verdict::Fail(failure) => return Err(failure),
                _ => {}
            },
            WalkerMessage::Other(what) => {
                return Err(Failure::new(
                    Class::Evaluation,
                    format_args!(
                        "{} evaluates to {what}; expected an attribute set, a list or a derivation",
                        self.request.description()
                    ),
                ));
            }
            // Only a worker that searches unmarked sets sends the first; the others are no messages of the walker's.
            WalkerMessage::Holds(..) | WalkerMessage::Done | WalkerMessage::Next => {}
        }
        Ok(())
    }

    /// A worker has done what it was sent last, or failed to.
    fn done(&mut self, worker: WorkerId, store: &mut Store) -> Result<(), Failure> {
        let mut output = self.processes.output(worker);
        let printed = self.processes.continued(worker);
        let Some(Worker { doing, .. }) = self.workers.get_mut(&worker) else {
            return Ok(());
        };
        let was = std::mem::replace(doing, Doing::Waiting);
        if self.processes.is_stopping(worker) {
            // Its end says more.
            *doing = was;
            return Ok(());
        }
        match was {
            // Whether or not it has loaded the walker.
            Doing::Loading {
                is_impure: true, ..
            } => {
                self.invocation.cannot_converse();
                self.schedule.one_task_each();
                self.processes.close(worker);
                *doing = Doing::Ending;
            }
            Doing::Loading { lines, .. } if output.error.is_some() => {
                let is_current = self.invocation.first_lines() == lines;
                if is_current && !self.invocation.try_next_file() {
                    return self.failed(worker, FAILED, &mut output, store);
                }
                self.processes.close(worker);
                *doing = Doing::Ending;
            }
            Doing::Walking {
                is_complete: false,
                deep,
            } => match deep {
                Some(path) => self.give_up_deep(worker, &path, false),
                None => self.failed(worker, FAILED, &mut output, store)?,
            },
            Doing::Walking { .. } => {
                self.progress.pass_on(&printed);
                let now = self.now();
                self.schedule.ended(worker, LineEnd::Finished, false, now);
            }
            Doing::Loading { .. } | Doing::Waiting => {}
            Doing::Ending => *doing = Doing::Ending,
        }
        Ok(())
    }

    /// A task failed, and Nix does not say why: so it is asked.
    fn failed_silently(&mut self, worker: WorkerId, store: &mut Store) -> Result<(), Failure> {
        self.processes.continued(worker);
        if self.processes.is_stopping(worker) {
            // Its end says more.
            return Ok(());
        }
        let mut output = self.output_of(&self.schedule.at(worker), store)?;
        if output.error.is_none() {
            // It lies in what is not evaluated for a derivation: its metadata, the mark of a set.
            output = NixOutput::of(ENDS_TOO_EARLY);
        }
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.doing = Doing::Waiting;
        }
        self.failed(worker, FAILED, &mut output, store)
    }

    /// An attribute throws, which a worker with one task has to catch. The first of them are evaluated once more for their messages.
    fn throws_unseen(
        &mut self,
        worker: WorkerId,
        path: &AttrIndex,
        store: &mut Store,
    ) -> Result<(), Failure> {
        if self.schedule.is_in_meta(worker) {
            // Asked for the attribute, Nix does not evaluate its metadata, and finds no error.
            self.findings.refuse(path, "its metadata throws");
            return Ok(());
        }
        self.unseen += 1;
        if self.unseen > MESSAGES_AT_MOST && *path != AttrIndex::default() {
            self.findings.throws(path);
            return Ok(());
        }
        let message = own_words(&self.output_of(path, store)?, FAILED);
        self.diagnosis.suspect(path, message);
        self.message(worker, WalkerMessage::Throws(path.clone()))
    }

    /// A step that follows an attribute throws, which a worker with one task has to catch: most likely what it runs does.
    fn lost_unseen(
        &mut self,
        path: &AttrIndex,
        step: usize,
        store: &mut Store,
    ) -> Result<(), Failure> {
        self.unseen += 1;
        let mut message = None;
        if self.unseen <= MESSAGES_AT_MOST
            && let Some(attr) = self.findings.attr_of_run(path, step)
        {
            let output = self.output_of_attr(attr, store)?;
            message = output.error.is_some().then(|| output.final_message(FAILED));
        }
        let findings = &mut self.findings;
        findings.lose_follower(path, step, message.as_deref());
        Ok(())
    }

    /// What Nix says of an attribute when it evaluates nothing else.
    fn output_of(&mut self, at: &AttrIndex, store: &mut Store) -> Result<NixOutput, Failure> {
        let attr = if *at == AttrIndex::default() {
            self.request.root.attr.clone()
        } else {
            self.findings.attr(at)
        };
        self.output_of_attr(attr, store)
    }

    fn output_of_attr(&mut self, attr: AttrPath, store: &mut Store) -> Result<NixOutput, Failure> {
        let evaluation = Evaluation {
            attr,
            ..self.request.root.clone()
        };
        store.output_of(self.supervisor, &evaluation, self.invocation.locked())
    }
}
