//! What it means that a task failed, for the attribute that was being evaluated, and for the recording.
//!
//! It may fail of the attribute (it throws, or recurses without end), of the infrastructure (garbage collector, daemon, network), or of
//! the size of its worker. A failure that the infrastructure may have caused is believed to be the attribute's only after a
//! repetition, which catches what the expression throws.
//!
//! This module decides, and does nothing: questions to Nix go through a function that is passed in, and a [`Verdict`] is carried out
//! elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use super::memory::MIB;
use super::processes::StopCause;
use super::schedule::MemoryShare;
use super::spans::AttrIndex;
use crate::command_line::Ending;
use crate::exit::{Class, Failure};
use crate::host;
use crate::nix::message::in_one_line;
use crate::nix::{
    Argument, Disturbance, Evaluation, LackedFile, NixOutput, Phase, Source, StorePath, class,
};
use crate::store::{ATTEMPTS, COLLECTOR_HINT, missed_each_time};

/// How a worker's process has ended before its task was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WorkerEnd {
    /// It had more memory than its part.
    TooLarge,
    /// An attribute took longer than `evaluation-timeout`.
    TooLong,
    /// It ended by itself.
    Died,
}

impl WorkerEnd {
    pub(super) fn of(stopped: Option<StopCause>, ending: Ending) -> Self {
        match stopped {
            Some(StopCause::TooLarge) => Self::TooLarge,
            Some(StopCause::TooLong) => Self::TooLong,
            // The kernel kills with signal 9 when memory runs out.
            None if ending == Ending::Killed(9) => Self::TooLarge,
            None => Self::Died,
        }
    }
}

/// What follows from a failure.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The attribute does not evaluate, with this message.
    EvaluationError(String),
    /// The attribute is evaluated once more, by a new worker (this one remembers what it evaluated, and on 2.34 what failed), and
    /// what it throws is caught. The line for the log says why.
    Repeat(String),
    /// The same, of one that has said nothing, so that what it throws is not caught: its message is not known yet.
    RepeatUncaught(String),
    /// The attribute is evaluated again alone, with all the memory.
    RepeatAlone,
    /// The task is done again with fewer workers in parallel; the line for the log says why.
    RepeatWithFewer(String),
    /// The task is done again: a worker has more memory by now.
    RepeatWithMore,
    /// The recording fails.
    Fail(Failure),
}

/// A question to the store.
#[derive(Debug, Clone, Copy)]
pub(super) enum Question<'a> {
    /// Does it answer at all? Fails if it does not.
    Answers,
    /// Is this path valid? Then it is kept from now on.
    IsValid(&'a StorePath),
    /// Is this file in the store there, and what it leads to?
    IsThere(&'a LackedFile),
    /// Is this file none of the store, though it looks like one?
    IsOfCheckout(&'a LackedFile),
}

/// A task that failed, or whose worker died.
#[derive(Debug)]
pub(super) struct FailedTask<'a> {
    /// The attribute that was being evaluated.
    pub(super) at: AttrIndex,
    /// That attribute in words; at the root, all that is evaluated.
    pub(super) name: &'a str,
    /// Whether what it throws was caught: then it threw nothing.
    pub(super) is_repetition: bool,
    /// When the task, or its worker, began, and when that is judged.
    pub(super) began: Duration,
    pub(super) now: Duration,
    /// How the worker ended; a living one as a program that fails.
    pub(super) ending: Ending,
    pub(super) nix_output: &'a NixOutput,
}

/// A worker that had more memory than its part.
#[derive(Debug)]
pub(super) struct OversizedWorker<'a> {
    /// The attribute that it was evaluating.
    pub(super) at: AttrIndex,
    /// That attribute in words.
    pub(super) name: &'a str,
    /// How many attributes it had begun.
    pub(super) begun: u32,
    /// What it had of the memory.
    pub(super) share: MemoryShare,
    /// How many workers there may be at most by now.
    pub(super) slots: usize,
    /// Whether we stopped it; otherwise the kernel killed it.
    pub(super) was_stopped: bool,
}

/// The message of an attribute that throws an empty one, of which Nix prints nothing.
const NO_WORDS: &str = "it throws an empty message";

/// The words of an evaluation that fails. Without a message, it is one that is empty.
pub(super) fn own_words(nix_output: &NixOutput, ending: Ending) -> String {
    match nix_output.whole_message() {
        None if ending == Ending::Exited(1) => NO_WORDS.to_owned(),
        _ => nix_output.final_message(ending),
    }
}

/// What has disturbed an evaluation that may not be to blame.
#[derive(Debug, Clone, Copy)]
pub(super) enum DisturbedBy<'a> {
    /// A daemon that disconnected, with this message of Nix's.
    Daemon(&'a str),
    /// The garbage collector took what it needs.
    Collector,
    /// This path was missing, and is registered: it was written anew meanwhile, or a collection took the file that was just written.
    Registration(&'a StorePath),
}

/// What is known from earlier ends.
#[derive(Debug)]
pub(super) struct Diagnosis<'a> {
    root: &'a Evaluation,
    /// All that is evaluated, in words.
    what: String,
    /// Where temporary files are made.
    temporary: &'a Path,
    /// How often the evaluation of an attribute was disturbed.
    disturbed: BTreeMap<AttrIndex, u32>,
    /// The store path that was missing when an attribute was last evaluated, and how often in a row.
    missed: BTreeMap<AttrIndex, (StorePath, u32)>,
    /// The attributes that were repeated because the failure may be the infrastructure's.
    repeated: BTreeSet<AttrIndex>,
    /// The attributes that were repeated because the kernel killed Nix, which had all the memory.
    killed: BTreeSet<AttrIndex>,
    /// When what may be the infrastructure's was last noted of an attribute. All workers evaluate the root: what began before that, and
    /// fails at the same, need not have met anything else.
    noted: BTreeMap<AttrIndex, Duration>,
    /// The messages that may be the infrastructure's, or the expression's own words.
    suspected: BTreeMap<AttrIndex, String>,
}

impl<'a> Diagnosis<'a> {
    pub(super) fn new(root: &'a Evaluation, what: String, temporary: &'a Path) -> Self {
        Self {
            root,
            what,
            temporary,
            disturbed: BTreeMap::new(),
            missed: BTreeMap::new(),
            repeated: BTreeSet::new(),
            killed: BTreeSet::new(),
            noted: BTreeMap::new(),
            suspected: BTreeMap::new(),
        }
    }

    /// A task failed.
    ///
    /// # Errors
    /// The store does not answer (75).
    pub(super) fn failed(
        &mut self,
        failed: &FailedTask<'_>,
        mut ask: impl FnMut(Question<'_>) -> Result<bool, Failure>,
    ) -> Result<Verdict, Failure> {
        let FailedTask {
            at,
            name,
            is_repetition,
            began,
            now,
            ending,
            nix_output,
        } = failed;
        let noted = self.noted.get(at);
        let is_noted = noted.is_some_and(|noted| began < noted);
        let message = nix_output.final_message(*ending);
        let own_words = own_words(nix_output, *ending);
        let class = class::of(Phase::Evaluating, *ending, nix_output);
        let is_own = nix_output.is_expressions_own();
        let is_doubtful_cause = nix_output.disturbance(*ending).is_some() && !is_own;
        if class != Class::Evaluation || is_doubtful_cause || *at == AttrIndex::default() {
            // An expression is not to blame where the store is dead. The other messages, which may be many, are certain.
            ask(Question::Answers)?;
        }
        if !is_own
            && matches!(class, Class::Evaluation | Class::Infrastructure)
            && let Some(verdict) = self.disturbance(failed, is_noted, &message, ask)?
        {
            self.suspected.insert(at.clone(), own_words);
            return Ok(verdict);
        }
        // Whatever the class: a repetition does not make that folder. But an expression may throw a path in it as well.
        let no_folder = host::no_temporary_folder(self.temporary, &message).filter(|_| !is_own);
        if *is_repetition && let Some(failure) = no_folder {
            return Ok(Verdict::Fail(failure));
        }
        let is_doubtful = class::is_worth_another_try(class) || no_folder.is_some();
        if is_doubtful && (is_noted || self.repeated.insert(at.clone())) {
            if !is_noted {
                self.noted.insert(at.clone(), *now);
            }
            let shown = in_one_line(&message);
            self.suspected.insert(at.clone(), own_words);
            return Ok(Verdict::Repeat(format!(
                "{name}: {shown}; evaluating it once more"
            )));
        }
        // Of what Nix does not name, only its attribute is known to need it.
        let is_unnamed = nix_output.disturbance(*ending) == Some(Disturbance::Unnamed);
        if class == Class::Infrastructure && !is_unnamed {
            let what = format!("{name} was not evaluated");
            let failure = class::infrastructure_failure(what, nix_output, &message);
            return Ok(Verdict::Fail(match ending {
                // An evaluator that ends well has said all that it was asked.
                Ending::Exited(0) => failure.hint(
                    "check that the Nix programs on PATH are Nix's own: `eval-once doctor` says which they are",
                ),
                _ => failure,
            }));
        }
        Ok(self.evaluation_error(at, own_words))
    }

    /// This message may be the infrastructure's, or the expression's own words.
    pub(super) fn suspect(&mut self, at: &AttrIndex, message: String) {
        self.suspected.insert(at.clone(), message);
    }

    /// Whether the attribute has failed with a message that may be the expression's own words.
    pub(super) fn is_suspected(&self, at: &AttrIndex) -> bool {
        self.suspected.contains_key(at)
    }

    /// A repetition has thrown: so what failed before were the expression's own words, whatever they sound like. (Nix says that by
    /// itself only from 2.2x on.)
    pub(super) fn threw(&mut self, at: &AttrIndex) -> Verdict {
        let message = self.suspected.remove(at);
        self.evaluation_error(at, message.unwrap_or_default())
    }

    /// The verdict, if the collector or the daemon disturbed the evaluation.
    fn disturbance(
        &mut self,
        failed: &FailedTask<'_>,
        is_noted: bool,
        message: &str,
        mut ask: impl FnMut(Question<'_>) -> Result<bool, Failure>,
    ) -> Result<Option<Verdict>, Failure> {
        let FailedTask {
            at,
            name,
            now,
            ending,
            nix_output,
            ..
        } = failed;
        let gone;
        let by = match nix_output.disturbance(*ending) {
            None => match nix_output.lacked_file() {
                None => return Ok(None),
                Some(lacked) => {
                    let is_valid = ask(Question::IsValid(&lacked.path))?;
                    let is_there = is_valid && ask(Question::IsThere(&lacked))?;
                    let is_own = is_valid || ask(Question::IsOfCheckout(&lacked))?;
                    gone = lacked.path;
                    if is_there {
                        DisturbedBy::Registration(&gone)
                    } else if is_own || self.is_named(at, &gone, is_noted) {
                        return Ok(None);
                    } else {
                        DisturbedBy::Collector
                    }
                }
            },
            Some(Disturbance::Unnamed) => return Ok(None),
            Some(Disturbance::Aborted) => DisturbedBy::Collector,
            Some(Disturbance::Daemon) => DisturbedBy::Daemon(message),
            Some(Disturbance::Gone(path)) => {
                gone = path;
                if ask(Question::IsValid(&gone))? {
                    // Whatever an expression says of a path that is there, it does not fail because of it.
                    DisturbedBy::Registration(&gone)
                } else if nix_output.is_of_named_path() || self.is_named(at, &gone, is_noted) {
                    return Ok(None);
                } else {
                    DisturbedBy::Collector
                }
            }
        };
        let told = if is_noted {
            self.told(at, name, by)
        } else {
            self.noted.insert(at.clone(), *now);
            self.disturbed(at, name, by)
        };
        let verdict = match told {
            Ok(line) => Verdict::Repeat(line),
            Err(failure) => Verdict::Fail(failure),
        };
        Ok(Some(verdict))
    }

    /// Whether the same path was missing each time the attribute was evaluated, and is not one that may come anew: then the
    /// expression names it, and the collector did not remove it. (Nix 2.8 does not show that in its message.) What `is_noted` is the same
    /// time.
    fn is_named(&mut self, at: &AttrIndex, path: &StorePath, is_noted: bool) -> bool {
        if is_noted || path.may_come_anew() {
            return false;
        }
        let (missed, times) = self
            .missed
            .entry(at.clone())
            .or_insert_with(|| (path.clone(), 0));
        if missed != path {
            (*missed, *times) = (path.clone(), 0);
        }
        *times += 1;
        *times >= ATTEMPTS
    }

    /// The root has evaluated: the next path that it misses it did not miss then.
    pub(super) fn root_evaluated(&mut self) {
        self.missed.remove(&AttrIndex::default());
    }

    /// Counts a disturbance of an attribute. Gives a line for the log.
    ///
    /// # Errors
    /// It was disturbed too often (75).
    pub(super) fn disturbed(
        &mut self,
        at: &AttrIndex,
        name: &str,
        by: DisturbedBy<'_>,
    ) -> Result<String, Failure> {
        *self.disturbed.entry(at.clone()).or_default() += 1;
        self.told(at, name, by)
    }

    /// The line for a disturbance that is counted.
    fn told(&self, at: &AttrIndex, name: &str, by: DisturbedBy<'_>) -> Result<String, Failure> {
        let times = self.disturbed.get(at).copied().unwrap_or_default();
        let is_last = times >= ATTEMPTS;
        // An expression may throw such a message as well; the next try shows that.
        let (what, hint) = match by {
            DisturbedBy::Daemon(message) => {
                let message = in_one_line(message);
                if !is_last {
                    return Ok(format!("{name}: {message}; evaluating it once more"));
                }
                let what = format!(
                    "the Nix daemon disconnected {ATTEMPTS} times during the evaluation of {name}: {message}"
                );
                let hint = "check whether the daemon was restarted or ran out of memory, and retry the recording";
                (what, hint)
            }
            DisturbedBy::Collector => {
                if !is_last {
                    return Ok(format!(
                        "the garbage collector removed what {name} needs; evaluating it once more"
                    ));
                }
                let what = format!(
                    "the garbage collector disturbed the evaluation of {name} {ATTEMPTS} times"
                );
                (what, COLLECTOR_HINT)
            }
            DisturbedBy::Registration(path) => {
                if !is_last {
                    return Ok(format!(
                        "{path} was missing during the evaluation and is valid now; evaluating {name} once more"
                    ));
                }
                return Err(missed_each_time(name, path));
            }
        };
        Err(Failure::new(Class::Infrastructure, what).hint(hint))
    }

    /// Whether the collector or the daemon has disturbed any attribute.
    pub(super) fn has_disturbed(&self) -> bool {
        !self.disturbed.is_empty()
    }

    /// An attribute took longer than these `seconds`.
    pub(super) fn too_long(&self, at: &AttrIndex, seconds: u64) -> Verdict {
        let message = format!("evaluation took longer than {seconds} s (`evaluation-timeout`)");
        self.evaluation_error(at, message)
    }

    /// A worker had more memory than its part.
    pub(super) fn too_large(&mut self, worker: &OversizedWorker<'_>) -> Verdict {
        let what = &self.what;
        let share = &worker.share;
        let part = share.part / MIB;
        let is_alone = share.has_all;
        match worker.begun {
            // Another one has left it its part meanwhile.
            _ if !is_alone && worker.slots < share.slots => Verdict::RepeatWithMore,
            0 if is_alone && !worker.was_stopped => Verdict::Fail(
                Failure::new(
                    Class::Signal(9),
                    format_args!("the evaluation of {what} was killed by signal 9"),
                )
                .hint(
                    "check the kernel log: signal 9 is what the kernel sends when memory runs out",
                ),
            ),
            0 if is_alone => Verdict::Fail(
                Failure::new(
                    Class::Evaluation,
                    format_args!(
                        "{what} needs more memory than the {part} MiB available for evaluation"
                    ),
                )
                .hint("raise `memory`, or record on a host with more memory"),
            ),
            0 => {
                let slots = share.slots - 1;
                let es = if slots == 1 { "" } else { "es" };
                Verdict::RepeatWithFewer(format!(
                    "the root alone needs more memory than {part} MiB; continuing with {slots} process{es}"
                ))
            }
            // Another program may have used up the host's memory.
            1 if is_alone && !worker.was_stopped && self.killed.insert(worker.at.clone()) => {
                Verdict::RepeatUncaught(format!(
                    "{}: Nix was killed by SIGKILL, which the kernel sends when memory runs out; evaluating it once more",
                    worker.name
                ))
            }
            1 if is_alone => self.evaluation_error(
                &worker.at,
                format!("it needs more memory than the {part} MiB available for evaluation"),
            ),
            // It needs more than the part, or earlier attributes have used that.
            _ => Verdict::RepeatAlone,
        }
    }

    /// The hint where this message is about the expression of an argument: one about a file has its place.
    fn hint_at_arguments(&self, message: &str) -> Option<String> {
        let is_of_text = ["syntax error", "undefined variable"]
            .iter()
            .any(|begin| message.starts_with(begin));
        if !is_of_text || message.contains("\nat ") || matches!(self.root.source, Source::Expr(_)) {
            return None;
        }
        let expressions = self.root.arguments.iter().filter_map(|(name, argument)| {
            matches!(argument, Argument::Expr(_)).then_some(name.as_str())
        });
        let names: Vec<&str> = expressions.collect();
        match names[..] {
            [] => None,
            [name] => Some(format!("correct the expression of `{name}` in `arg`")),
            _ => Some(format!(
                "correct the expressions in `arg`: one of {}",
                names.join(", ")
            )),
        }
    }

    /// The attribute does not evaluate; if it is the root, the recording fails.
    fn evaluation_error(&self, at: &AttrIndex, message: String) -> Verdict {
        if *at != AttrIndex::default() {
            return Verdict::EvaluationError(message);
        }
        let failure = Failure::new(
            Class::Evaluation,
            format_args!("{} does not evaluate: {}", self.what, in_one_line(&message)),
        );
        let misses_argument = ["without required argument", "argument without a value"];
        if misses_argument.iter().any(|words| message.contains(words)) {
            return Verdict::Fail(
                failure.hint("set the function's arguments with `arg` or `argstr`"),
            );
        }
        let hint = self.root.hint_at(&message);
        Verdict::Fail(match hint.or_else(|| self.hint_at_arguments(&message)) {
            Some(hint) => failure.hint(hint),
            None => failure,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::AttrPath;

    const PATH: &str = "/nix/store/w11m5yi1fzmzl7ri7y308xcnn9jyzv3r-src";

    fn root() -> Evaluation {
        Evaluation {
            source: Source::File("ci.nix".into()),
            attr: AttrPath::default(),
            arguments: vec![],
            include: vec![],
            call: true,
            folder: "/checkout".into(),
        }
    }

    fn attr() -> AttrIndex {
        AttrIndex::parse("/3").unwrap()
    }

    fn diagnosis(root: &Evaluation) -> Diagnosis<'_> {
        Diagnosis::new(root, "ci.nix".into(), Path::new("/tmp"))
    }

    /// The store answers; no path is valid.
    #[expect(
        clippy::unnecessary_wraps,
        reason = "the type of what answers a question"
    )]
    fn nothing_valid(_: Question<'_>) -> Result<bool, Failure> {
        Ok(false)
    }

    fn no_question(question: Question<'_>) -> Result<bool, Failure> {
        panic!("{question:?}")
    }

    /// The verdict on the first try or its repetition, in words.
    fn judge(
        diagnosis: &mut Diagnosis<'_>,
        at: AttrIndex,
        is_repetition: bool,
        end: (Ending, &str),
        ask: impl FnMut(Question<'_>) -> Result<bool, Failure>,
    ) -> String {
        let task = (is_repetition, [Duration::ZERO; 2]);
        judge_at(diagnosis, at, task, end, ask)
    }

    /// The same of a task that began then, and is judged then.
    fn judge_at(
        diagnosis: &mut Diagnosis<'_>,
        at: AttrIndex,
        (is_repetition, [began, now]): (bool, [Duration; 2]),
        (ending, printed): (Ending, &str),
        ask: impl FnMut(Question<'_>) -> Result<bool, Failure>,
    ) -> String {
        let failed = FailedTask {
            at,
            name: "web",
            is_repetition,
            began,
            now,
            ending,
            nix_output: &NixOutput::of(printed.as_bytes()),
        };
        in_a_word(diagnosis.failed(&failed, ask).unwrap())
    }

    fn in_a_word(verdict: Verdict) -> String {
        match verdict {
            Verdict::EvaluationError(message) => format!("error: {message}"),
            Verdict::Repeat(line) => format!("repeat: {line}"),
            Verdict::RepeatUncaught(line) => format!("repeat uncaught: {line}"),
            Verdict::RepeatAlone => "alone".into(),
            Verdict::RepeatWithFewer(line) => format!("fewer: {line}"),
            Verdict::RepeatWithMore => "more".to_owned(),
            Verdict::Fail(failure) => format!("{:?}: {failure}", failure.class),
        }
    }

    #[test]
    fn a_worker_was_stopped_or_has_died() {
        let of = WorkerEnd::of;
        let killed = Ending::Killed(9);
        assert_eq!(of(None, Ending::Exited(1)), WorkerEnd::Died);
        assert_eq!(of(None, Ending::Exited(0)), WorkerEnd::Died);
        assert_eq!(of(None, Ending::Killed(11)), WorkerEnd::Died);
        assert_eq!(of(None, killed), WorkerEnd::TooLarge);
        assert_eq!(of(Some(StopCause::TooLarge), killed), WorkerEnd::TooLarge);
        let long = Some(StopCause::TooLong);
        assert_eq!(of(long, killed), WorkerEnd::TooLong);
    }

    #[test]
    fn an_error_of_the_expression_is_an_evaluation_error_without_a_repetition() {
        let root = root();
        let mut diagnosis = diagnosis(&root);
        let end = (Ending::Exited(1), "error: attribute 'x' missing\n");
        let verdict = judge(&mut diagnosis, attr(), false, end, no_question);
        assert_eq!(verdict, "error: attribute 'x' missing");
        let recursion = (Ending::Killed(11), "");
        let verdict = judge(&mut diagnosis, attr(), false, recursion, nothing_valid);
        assert!(
            verdict.starts_with("error: Nix was killed by SIGSEGV"),
            "{verdict}"
        );
    }

    #[test]
    fn an_error_at_the_root_fails_the_recording() {
        let root = root();
        let end = (Ending::Exited(1), "error: attribute 'x' missing\n");
        let at = AttrIndex::default();
        let verdict = judge(&mut diagnosis(&root), at, false, end, nothing_valid);
        assert!(
            verdict.starts_with("Evaluation: ci.nix does not evaluate: attribute 'x' missing"),
            "{verdict}"
        );
    }

    #[test]
    fn a_failure_that_may_be_the_infrastructures_is_repeated_once() {
        let root = root();
        let mut diagnosis = diagnosis(&root);
        let killed = (Ending::Killed(15), "");
        let mut verdict = |again| judge(&mut diagnosis, attr(), again, killed, nothing_valid);
        let first = verdict(false);
        assert!(first.starts_with("repeat: web: "), "{first}");
        let second = verdict(true);
        assert!(
            second.starts_with("Infrastructure: web was not evaluated"),
            "{second}"
        );
    }

    #[test]
    fn what_several_workers_meet_at_the_root_at_once_is_one_disturbance() {
        let root = root();
        let gone = format!("error: path '{PATH}.drv' is not valid\n");
        let daemon = "error: unexpected end-of-file\n";
        let exited = Ending::Exited(1);
        for (end, times) in [
            ((exited, &*gone), ATTEMPTS),
            ((exited, daemon), ATTEMPTS),
            ((Ending::Killed(15), ""), 2),
        ] {
            let mut diagnosis = diagnosis(&root);
            for time in 1..=times {
                // Those of the first time are no repetitions.
                let [began, now] =
                    [2 * time, 2 * time + 1].map(|at| Duration::from_secs(at.into()));
                for worker in 0..4 {
                    let at = AttrIndex::default();
                    let task = (time > 1, [began, now]);
                    let verdict = judge_at(&mut diagnosis, at, task, end, nothing_valid);
                    let is_last = time == times && worker == 0;
                    let expected = if is_last {
                        "Infrastructure: "
                    } else {
                        "repeat: "
                    };
                    assert!(verdict.starts_with(expected), "{time}, {worker}: {verdict}");
                    if is_last {
                        break;
                    }
                }
            }
        }
    }

    #[test]
    fn what_a_repetition_throws_are_the_expressions_own_words() {
        let root = root();
        for at in [attr(), AttrIndex::default()] {
            let mut diagnosis = diagnosis(&root);
            let end = (
                Ending::Exited(1),
                "error: writing to file: No space left on device\n",
            );
            let first = judge(&mut diagnosis, at.clone(), false, end, nothing_valid);
            assert!(first.starts_with("repeat: web: writing"), "{first}");
            let threw = in_a_word(diagnosis.threw(&at));
            assert!(
                threw.ends_with("writing to file: No space left on device"),
                "{threw}"
            );
            assert!(
                threw.starts_with("error: ") || threw.starts_with("Evaluation: "),
                "{threw}"
            );
        }
    }

    #[test]
    fn an_attribute_whose_path_the_collector_removes_is_evaluated_three_times() {
        let root = root();
        let mut diagnosis = diagnosis(&root);
        let drv = format!("{PATH}.drv");
        let printed = format!("error: path '{drv}' is not valid\n");
        let end = (Ending::Exited(1), &*printed);
        let mut verdict = |again| judge(&mut diagnosis, attr(), again, end, nothing_valid);
        for time in 1..ATTEMPTS {
            let verdict = verdict(time > 1);
            let expected = "repeat: the garbage collector removed what web needs";
            assert!(verdict.starts_with(expected), "{verdict}");
        }
        let last = verdict(true);
        assert!(
            last.starts_with("Infrastructure: the garbage collector disturbed"),
            "{last}"
        );
    }

    #[test]
    fn a_path_that_is_missing_each_time_is_an_error_of_the_expression() {
        let root = root();
        let mut diagnosis = diagnosis(&root);
        let printed = format!("error: path '{PATH}' is not valid\n");
        let end = (Ending::Exited(1), &*printed);
        let mut verdict = |again| judge(&mut diagnosis, attr(), again, end, nothing_valid);
        for time in 1..ATTEMPTS {
            assert!(verdict(time > 1).starts_with("repeat: "));
        }
        assert_eq!(verdict(true), format!("error: path '{PATH}' is not valid"));
    }

    #[test]
    fn a_path_that_the_root_misses_each_time_is_an_error_of_the_expression() {
        let root = root();
        let printed = format!("error: path '{PATH}' is not valid\n");
        let end = (Ending::Exited(1), &*printed);
        for evaluates_between in [false, true] {
            let mut diagnosis = diagnosis(&root);
            let mut last = String::new();
            for time in 1..=ATTEMPTS {
                let [began, now] =
                    [2 * time, 2 * time + 1].map(|at| Duration::from_secs(at.into()));
                let task = (time > 1, [began, now]);
                last = judge_at(
                    &mut diagnosis,
                    AttrIndex::default(),
                    task,
                    end,
                    nothing_valid,
                );
                if time < ATTEMPTS {
                    assert!(last.starts_with("repeat: "), "{last}");
                    // Another worker meets the same at the same time.
                    let other = judge_at(
                        &mut diagnosis,
                        AttrIndex::default(),
                        task,
                        end,
                        nothing_valid,
                    );
                    assert!(other.starts_with("repeat: "), "{other}");
                }
                if evaluates_between {
                    diagnosis.root_evaluated();
                }
            }
            let expected = if evaluates_between {
                "Infrastructure: the garbage collector"
            } else {
                "Evaluation: ci.nix does not evaluate: path "
            };
            assert!(last.starts_with(expected), "{last}");
        }
    }

    #[test]
    fn a_missing_path_that_is_valid_each_time_is_no_error_of_the_expression() {
        let root = root();
        let mut diagnosis = diagnosis(&root);
        let printed = format!("error: path '{PATH}' is not valid\n");
        let end = (Ending::Exited(1), &*printed);
        let valid = |question: Question<'_>| match question {
            Question::IsValid(path) => Ok(path.as_str() == PATH),
            _ => Ok(true),
        };
        let mut verdict = |again| judge(&mut diagnosis, attr(), again, end, valid);
        for time in 1..ATTEMPTS {
            assert!(verdict(time > 1).starts_with(&format!("repeat: {PATH} was missing")));
        }
        let expected =
            "Infrastructure: the evaluation of web missed what it needs 3 times: at last";
        let last = verdict(true);
        assert!(last.starts_with(expected), "{last}");
    }

    #[test]
    fn a_file_that_is_missing_in_a_store_path_is_the_expressions_fault_where_that_is_there() {
        let root = root();
        let printed = format!("error: path '{PATH}/sub/a.nix' does not exist\n");
        let end = (Ending::Exited(1), &*printed);
        let judged = |valid: bool, exists: bool| {
            let mut diagnosis = diagnosis(&root);
            judge(&mut diagnosis, attr(), false, end, |question| {
                Ok(match question {
                    Question::IsValid(_) => valid,
                    Question::IsThere(_) => exists,
                    Question::Answers => true,
                    Question::IsOfCheckout(_) => false,
                })
            })
        };
        assert!(judged(false, false).starts_with("repeat: the garbage collector"));
        assert!(judged(true, true).starts_with(&format!("repeat: {PATH} was missing")));
        assert!(judged(true, false).starts_with("error: path "));
    }

    #[test]
    fn a_throw_may_name_a_missing_path() {
        let root = root();
        let printed = format!("error: path '{PATH}' is not valid\n");
        let end = (Ending::Exited(1), &*printed);
        let mut diagnosis = diagnosis(&root);
        let verdict = judge(&mut diagnosis, attr(), false, end, nothing_valid);
        assert!(verdict.starts_with("repeat: "), "{verdict}");
        let verdict = in_a_word(diagnosis.threw(&attr()));
        assert_eq!(verdict, format!("error: path '{PATH}' is not valid"));
    }

    #[test]
    fn what_follows_from_too_much_memory_depends_on_what_has_begun() {
        let root = root();
        let mut diagnosis = diagnosis(&root);
        let mut verdict_now = |begun, has_all, slots, now, was_stopped| {
            in_a_word(diagnosis.too_large(&OversizedWorker {
                at: if begun == 0 {
                    AttrIndex::default()
                } else {
                    attr()
                },
                name: "web",
                begun,
                share: MemoryShare {
                    slots,
                    part: 512 * MIB,
                    has_all,
                },
                slots: now,
                was_stopped,
            }))
        };
        let mut verdict = |begun, has_all, slots, was_stopped| {
            verdict_now(begun, has_all, slots, slots, was_stopped)
        };
        let starts = |verdict: String, with: &str| assert!(verdict.starts_with(with), "{verdict}");
        starts(verdict(0, false, 2, true), "fewer: ");
        starts(
            verdict(0, true, 1, true),
            "Evaluation: ci.nix needs more memory",
        );
        starts(verdict(0, true, 2, false), "Signal(9): ");
        starts(verdict(1, false, 2, true), "alone");
        starts(
            verdict(1, true, 2, true),
            "error: it needs more memory than the 512 MiB",
        );
        // The kernel may have killed it because of another program.
        starts(
            verdict(1, true, 1, false),
            "repeat uncaught: web: Nix was killed by SIGKILL",
        );
        starts(verdict(1, true, 1, false), "error: it needs more memory");
        // Earlier attributes may have used it.
        starts(verdict(2, true, 1, true), "alone");
        // Another worker has ended for the same reason at the same time: what it left says nothing about what this one had.
        for (begun, was_stopped) in [(0, true), (0, false), (1, true), (1, false), (2, true)] {
            starts(verdict_now(begun, false, 2, 1, was_stopped), "more");
        }
    }
}
