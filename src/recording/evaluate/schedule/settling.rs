//! The end of a task: what is known then, what waits again, and what waits no longer.

use std::collections::VecDeque;
use std::time::Duration;

use super::assignment::{Assignment, Queue};
use super::{LineEnd, Schedule, Task, WorkerId};
use crate::recording::evaluate::spans::{AttrIndex, Span};

impl Schedule {
    /// The task of a worker has ended, and its process too if that `is_gone`.
    pub(in crate::recording::evaluate) fn ended(
        &mut self,
        worker: WorkerId,
        how: LineEnd,
        process_is_gone: bool,
        now: Duration,
    ) {
        if let Some(one) = self.workers.get_mut(&worker) {
            if matches!(how, LineEnd::Finished | LineEnd::GaveUp) {
                one.measure(now);
            }
            let assignment = one.assignment.take();
            if how == LineEnd::Finished {
                self.root_is_evaluated(worker, now);
            }
            if let Some(assignment) = assignment {
                self.settle(&assignment, how);
            }
        }
        if process_is_gone {
            self.gone(worker);
        }
    }

    /// What follows for the rest of a task.
    fn settle(&mut self, assignment: &Assignment, how: LineEnd) {
        match how {
            LineEnd::Finished => {}
            LineEnd::GaveUp => {
                if assignment.position().is_some() {
                    self.wait(assignment.rest());
                }
            }
            LineEnd::GaveUpSet(set) => {
                self.drop_set(set);
                self.wait(assignment.rest());
            }
            LineEnd::Again { catch } => {
                if let Some(again) = self.once_more(assignment) {
                    let again = Task { catch, ..again };
                    match assignment.queue {
                        Queue::Alone => self.alone.push_front(again),
                        Queue::Waiting | Queue::Repetitions => self.repetitions.push_front(again),
                    }
                }
            }
            LineEnd::Alone | LineEnd::Fewer | LineEnd::Waits => {
                if how != LineEnd::Waits {
                    self.one_fewer();
                }
                let is_attribute = how == LineEnd::Alone && assignment.position().is_some();
                if let Some(again) = self.once_more(assignment) {
                    self.wait_again(
                        again,
                        if is_attribute {
                            Queue::Alone
                        } else {
                            assignment.queue
                        },
                    );
                }
            }
        }
    }

    /// What is evaluated again of a task: the attribute at the position, or all of it if nothing has begun. The rest waits.
    fn once_more(&mut self, assignment: &Assignment) -> Option<Task> {
        let spans = match assignment.position() {
            None if assignment.is_set => return None,
            None => match &assignment.task.spans {
                None => return Some(Task::root()),
                Some(spans) => spans.clone(),
            },
            Some(path) => {
                self.wait(assignment.rest());
                if assignment.is_set {
                    return None;
                }
                self.begun = self.begun.saturating_sub(1);
                Vec::from_iter(self.span(path))
            }
        };
        let spans = self.without_dropped(spans);
        let catch = assignment.task.catch;
        (!spans.is_empty()).then_some(Task {
            spans: Some(spans),
            catch,
        })
    }

    /// A task waits again from which nothing has begun.
    fn wait_again(&mut self, task: Task, queue: Queue) {
        match (queue, task.spans) {
            (Queue::Repetitions, spans) => self.repetitions.push_back(Task { spans, ..task }),
            (Queue::Alone, spans) => self.alone.push_back(Task { spans, ..task }),
            (Queue::Waiting, None) => self.root_waits = true,
            (Queue::Waiting, Some(spans)) => self.wait(spans),
        }
    }

    fn one_fewer(&mut self) {
        self.most = (self.allowed.min(self.most) - 1).max(1);
        self.allowed = self.most;
    }

    /// These attributes wait, unless they are in a set that was given up.
    pub(in crate::recording::evaluate) fn wait(&mut self, spans: Vec<Span>) {
        for span in self.without_dropped(spans) {
            self.waiting.insert(span);
        }
    }

    fn without_dropped(&mut self, mut spans: Vec<Span>) -> Vec<Span> {
        if self.dropped.is_empty() {
            return spans;
        }
        let (dropped, known) = (&self.dropped, &mut self.known);
        spans.retain(|span| {
            let is_dropped = span.at.with_parents().any(|set| dropped.contains(&set));
            if is_dropped {
                *known -= span.length();
            }
            !is_dropped
        });
        spans
    }

    /// Nothing in this set waits any longer.
    fn drop_set(&mut self, set: AttrIndex) {
        self.known -= self.waiting.drop_in(&set);
        self.dropped.insert(set);
        let repetitions = std::mem::take(&mut self.repetitions);
        self.repetitions = self.without_dropped_of(repetitions);
        let alone = std::mem::take(&mut self.alone);
        self.alone = self.without_dropped_of(alone);
    }

    fn without_dropped_of(&mut self, tasks: VecDeque<Task>) -> VecDeque<Task> {
        let without = |task: Task| {
            let spans = self.without_dropped(task.spans.unwrap_or_default());
            (!spans.is_empty()).then_some(Task {
                spans: Some(spans),
                ..task
            })
        };
        tasks.into_iter().filter_map(without).collect()
    }
}
