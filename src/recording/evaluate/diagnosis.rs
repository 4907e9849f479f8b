//! What the end of a worker means for the attribute that it was evaluating, and for the recording.
//!
//! A worker may die of the attribute (infinite recursion, `abort`), of the infrastructure (garbage collector, daemon, network), or of
//! its size. A failure that the infrastructure may have caused is believed to be the attribute's only after a repetition.
//!
//! This module decides, and does nothing: questions to Nix go through a function that is passed in, and a [`Verdict`] is carried out
//! elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::memory::MIB;
use super::processes::StopCause;
use super::spans::AttrIndex;
use crate::command_line::Ending;
use crate::exit::{Class, Failure};
use crate::host;
use crate::nix::message::in_one_line;
use crate::nix::{Disturbance, DrvPath, Evaluation, NixOutput, Phase, StorePath, class};
use crate::store::{ATTEMPTS, COLLECTOR_HINT};

/// How a worker has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WorkerEnd {
    /// Its task is done.
    Finished,
    /// It was stopped, and its attribute needs no other verdict.
    Stopped,
    /// It had more memory than its share.
    TooLarge,
    /// An attribute took longer than `evaluation-timeout`.
    TooLong,
    /// It ended by itself before its task was done.
    Died,
}

impl WorkerEnd {
    /// `is_complete`: the walker reported the end of its task; `catch`: as in the task.
    pub(super) fn of(
        stopped: Option<StopCause>,
        ending: Ending,
        is_complete: bool,
        catch: bool,
    ) -> Self {
        match stopped {
            Some(StopCause::Overtaken) => Self::Stopped,
            // That the attribute throws is known already; its step will show the message.
            Some(StopCause::TooLarge | StopCause::TooLong) if !catch => Self::Stopped,
            _ if is_complete && ending.success() => Self::Finished,
            Some(StopCause::TooLarge) => Self::TooLarge,
            Some(StopCause::TooLong) => Self::TooLong,
            // The kernel kills with signal 9 when memory runs out.
            None if ending == Ending::Killed(9) => Self::TooLarge,
            None => Self::Died,
        }
    }
}

/// What follows from the end of a worker.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The attribute does not evaluate, with this message; the task continues after it.
    EvaluationError(String),
    /// The attribute is evaluated again, and the task continues; the line for the log says why.
    Repeat(Option<String>),
    /// The attribute is evaluated again alone, with all the memory.
    RepeatAlone,
    /// The task is done again with fewer workers in parallel; the line for the log says why.
    RepeatWithFewer(String),
    /// The recording fails.
    Fail(Failure),
}

/// A question that only Nix can answer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Question<'a> {
    /// Does the root throw?
    RootThrows,
    /// Is this path valid?
    IsValid(&'a StorePath),
}

/// A worker that ended by itself.
#[derive(Debug)]
pub(super) struct Death<'a> {
    /// The attribute that it was evaluating.
    pub(super) at: AttrIndex,
    /// That attribute in words; at the root, all that is evaluated.
    pub(super) name: &'a str,
    /// Whether it caught what throws.
    pub(super) catch: bool,
    pub(super) ending: Ending,
    pub(super) nix_output: &'a NixOutput,
}

/// A worker that had more memory than its share.
#[derive(Debug)]
pub(super) struct OversizedWorker {
    /// The attribute that it was evaluating.
    pub(super) at: AttrIndex,
    /// How many attributes had begun.
    pub(super) begun: u32,
    /// Its share of the memory, in bytes; and whether that is all of it.
    pub(super) share: u64,
    pub(super) has_all: bool,
    /// How many workers may run in parallel.
    pub(super) slots: usize,
    /// Whether we stopped it; otherwise the kernel killed it.
    pub(super) was_stopped: bool,
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
    /// The attributes that were repeated because the failure may not be theirs; and whether what throws was caught.
    repeated: BTreeSet<(AttrIndex, bool)>,
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
        }
    }

    /// A worker ended by itself. The store must be known to answer: without it, any expression fails.
    ///
    /// # Errors
    /// A question cannot be answered.
    pub(super) fn died(
        &mut self,
        death: &Death<'_>,
        mut ask: impl FnMut(Question<'_>) -> Result<bool, Failure>,
    ) -> Result<Verdict, Failure> {
        let Death {
            at,
            name,
            catch,
            ending,
            nix_output,
        } = death;
        let message = nix_output.final_message(*ending);
        let class = class::of(Phase::Evaluating, *ending, nix_output);
        let is_doubtful = class::is_worth_another_try(class);
        let this = (at.clone(), *catch);
        let was_repeated = self.repeated.contains(&this) || self.disturbed.contains_key(at);
        let is_suspect = is_doubtful || nix_output.disturbance().is_some();
        // Nothing catches what the root throws; and an attribute below it is evaluated without catching only if it threw before.
        let is_its_own = is_suspect
            && was_repeated
            && (!catch || *at == AttrIndex::default() && ask(Question::RootThrows)?);
        if !is_its_own
            && matches!(class, Class::Evaluation | Class::Infrastructure)
            && let Some(verdict) = self.disturbance(death, &message, ask)?
        {
            return Ok(verdict);
        }
        // Whatever the class: a repetition does not make that folder. But an expression may name a path in it as well, and one whose
        // throw is not caught has thrown before.
        if *catch
            && !nix_output.is_expressions_own()
            && let Some(failure) = host::no_temporary_folder(self.temporary, &message)
        {
            return Ok(Verdict::Fail(failure));
        }
        if is_doubtful && !is_its_own && self.repeated.insert(this) {
            let message = in_one_line(&message);
            let line = format!("{name}: {message}; evaluating it once more");
            return Ok(Verdict::Repeat(Some(line)));
        }
        if class == Class::Infrastructure && !is_its_own {
            let what = format!("{name} was not evaluated");
            return Ok(Verdict::Fail(class::infrastructure_failure(
                what, nix_output, &message,
            )));
        }
        Ok(self.evaluation_error(at, message))
    }

    /// The verdict, if the collector or the daemon disturbed the evaluation.
    fn disturbance(
        &mut self,
        death: &Death<'_>,
        message: &str,
        mut ask: impl FnMut(Question<'_>) -> Result<bool, Failure>,
    ) -> Result<Option<Verdict>, Failure> {
        let Death {
            at,
            name,
            catch,
            nix_output,
            ..
        } = death;
        let daemon_message = match nix_output.disturbance() {
            None => return Ok(None),
            Some(Disturbance::Daemon) => Some(message),
            // It is not caught because it threw before: the message is the expression's own.
            Some(Disturbance::Gone(_)) if !catch => return Ok(None),
            Some(Disturbance::Gone(path)) => {
                let is_valid = ask(Question::IsValid(&path))?;
                // Something has registered it meanwhile. Only once: an expression may throw the same message about a valid path.
                if is_valid && self.repeated.insert((at.clone(), *catch)) {
                    return Ok(Some(Verdict::Repeat(Some(format!(
                        "{path} was missing during the evaluation and is valid now; evaluating {name} once more"
                    )))));
                }
                if is_valid || nix_output.is_of_named_path() || self.is_named(at, path) {
                    return Ok(None);
                }
                None
            }
        };
        let verdict = match self.disturbed(at, name, daemon_message) {
            Ok(line) => Verdict::Repeat(Some(line)),
            Err(failure) => Verdict::Fail(failure),
        };
        Ok(Some(verdict))
    }

    /// Whether the same path was missing each time the attribute was evaluated, and is not one that an evaluation writes: then the
    /// expression names it, and the collector did not remove it. (Nix 2.8 does not show that in its message.)
    fn is_named(&mut self, at: &AttrIndex, path: StorePath) -> bool {
        if *at == AttrIndex::default() || DrvPath::parse(path.as_str()).is_ok() {
            return false;
        }
        let (missed, times) = self
            .missed
            .entry(at.clone())
            .or_insert_with(|| (path.clone(), 0));
        if *missed != path {
            (*missed, *times) = (path, 0);
        }
        *times += 1;
        *times >= ATTEMPTS
    }

    /// Counts a disturbance of an attribute: by a daemon that disconnected, with Nix's `daemon_message`, or by the collector. Gives a
    /// line for the log.
    ///
    /// # Errors
    /// It was disturbed too often (75).
    pub(super) fn disturbed(
        &mut self,
        at: &AttrIndex,
        name: &str,
        daemon_message: Option<&str>,
    ) -> Result<String, Failure> {
        let times = self.disturbed.entry(at.clone()).or_default();
        *times += 1;
        let is_last = *times == ATTEMPTS;
        // An expression may throw such a message as well; the next try shows that.
        match daemon_message.map(in_one_line) {
            Some(message) if !is_last => {
                Ok(format!("{name}: {message}; evaluating it once more"))
            }
            None if !is_last => {
                Ok(format!(
                "the garbage collector removed what {name} needs; evaluating it once more"
            ))
            }
            Some(message) => Err(Failure::new(
                Class::Infrastructure,
                format_args!("the Nix daemon disconnected {ATTEMPTS} times during the evaluation of {name}: {message}"),
            )
            .hint("check whether the daemon was restarted or ran out of memory, and retry the recording")),
            None => Err(Failure::new(
                Class::Infrastructure,
                format_args!("the garbage collector disturbed the evaluation of {name} {ATTEMPTS} times"),
            )
            .hint(COLLECTOR_HINT)),
        }
    }

    /// An attribute took longer than these `seconds`.
    pub(super) fn too_long(&self, at: &AttrIndex, seconds: u64) -> Verdict {
        let message = format!("evaluation took longer than {seconds} s (`evaluation-timeout`)");
        self.evaluation_error(at, message)
    }

    /// A worker had more memory than its share.
    pub(super) fn too_large(&self, worker: &OversizedWorker) -> Verdict {
        let what = &self.what;
        let share = worker.share / MIB;
        let is_alone = worker.slots == 1 || worker.has_all;
        match worker.begun {
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
                        "{what} needs more memory than the {share} MiB available for evaluation"
                    ),
                )
                .hint("raise `memory`, or record on a host with more memory"),
            ),
            0 => {
                let slots = worker.slots - 1;
                let es = if slots == 1 { "" } else { "es" };
                Verdict::RepeatWithFewer(format!(
                    "the root alone needs more memory than {share} MiB; continuing with {slots} process{es}"
                ))
            }
            1 if is_alone => self.evaluation_error(
                &worker.at,
                format!("it needs more memory than the {share} MiB available for evaluation"),
            ),
            // It was the only attribute, so it needs more than the share.
            1 => Verdict::RepeatAlone,
            // Earlier attributes may have used the memory.
            _ => Verdict::Repeat(None),
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
        Verdict::Fail(match self.root.hint_at(&message) {
            Some(hint) => failure.hint(hint),
            None => failure,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::{AttrPath, Source};

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

    fn no_question(question: Question<'_>) -> Result<bool, Failure> {
        panic!("{question:?}")
    }

    /// The verdict in words.
    fn judge(
        diagnosis: &mut Diagnosis<'_>,
        at: AttrIndex,
        catch: bool,
        (ending, printed): (Ending, &str),
        ask: impl FnMut(Question<'_>) -> Result<bool, Failure>,
    ) -> String {
        let death = Death {
            at,
            name: "web",
            catch,
            ending,
            nix_output: &NixOutput::of(printed.as_bytes()),
        };
        in_a_word(diagnosis.died(&death, ask).unwrap())
    }

    fn in_a_word(verdict: Verdict) -> String {
        match verdict {
            Verdict::EvaluationError(message) => format!("error: {message}"),
            Verdict::Repeat(line) => format!("repeat: {}", line.unwrap_or_default()),
            Verdict::RepeatAlone => "alone".into(),
            Verdict::RepeatWithFewer(line) => format!("fewer: {line}"),
            Verdict::Fail(failure) => format!("{:?}: {failure}", failure.class),
        }
    }

    #[test]
    fn a_worker_has_finished_or_was_stopped_or_has_died() {
        let of = |stopped, ending, complete, catch| WorkerEnd::of(stopped, ending, complete, catch);
        let (success, killed) = (Ending::Exited(0), Ending::Killed(9));
        assert_eq!(of(None, success, true, true), WorkerEnd::Finished);
        // It reported the end and failed all the same; or it ended without reporting that.
        assert_eq!(of(None, Ending::Exited(1), true, true), WorkerEnd::Died);
        assert_eq!(of(None, success, false, true), WorkerEnd::Died);
        assert_eq!(of(None, Ending::Killed(11), false, true), WorkerEnd::Died);
        assert_eq!(of(None, killed, false, true), WorkerEnd::TooLarge);
        let large = Some(StopCause::TooLarge);
        assert_eq!(of(large, killed, false, true), WorkerEnd::TooLarge);
        assert_eq!(of(large, killed, false, false), WorkerEnd::Stopped);
        // It finished before it could be stopped.
        assert_eq!(of(large, success, true, true), WorkerEnd::Finished);
        let long = Some(StopCause::TooLong);
        assert_eq!(
            of(long, Ending::Killed(15), false, true),
            WorkerEnd::TooLong
        );
        let overtaken = Some(StopCause::Overtaken);
        assert_eq!(of(overtaken, killed, false, true), WorkerEnd::Stopped);
    }

    #[test]
    fn an_error_of_the_expression_is_an_evaluation_error_without_a_repetition() {
        let root = root();
        let mut diagnosis = diagnosis(&root);
        let end = (Ending::Exited(1), "error: attribute 'x' missing\n");
        let verdict = judge(&mut diagnosis, attr(), true, end, no_question);
        assert_eq!(verdict, "error: attribute 'x' missing");
        let recursion = (Ending::Killed(11), "");
        let verdict = judge(&mut diagnosis, attr(), true, recursion, no_question);
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
        let verdict = judge(&mut diagnosis(&root), at, true, end, no_question);
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
        let mut verdict = |catch| judge(&mut diagnosis, attr(), catch, killed, no_question);
        let first = verdict(true);
        assert!(first.starts_with("repeat: web: "), "{first}");
        let second = verdict(true);
        assert!(
            second.starts_with("Infrastructure: web was not evaluated"),
            "{second}"
        );
        // An attribute that throws is repeated as well, and then has an error of its own.
        assert!(verdict(false).starts_with("repeat: "));
        assert!(verdict(false).starts_with("error: "));
    }

    #[test]
    fn an_attribute_whose_path_the_collector_removes_is_evaluated_three_times() {
        let root = root();
        let mut diagnosis = diagnosis(&root);
        let drv = format!("{PATH}.drv");
        let printed = format!("error: path '{drv}' is not valid\n");
        let end = (Ending::Exited(1), &*printed);
        let mut verdict = || judge(&mut diagnosis, attr(), true, end, |_| Ok(false));
        for _ in 1..ATTEMPTS {
            assert!(verdict().starts_with("repeat: the garbage collector removed what web needs"));
        }
        let last = verdict();
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
        let mut verdict = || judge(&mut diagnosis, attr(), true, end, |_| Ok(false));
        for _ in 1..ATTEMPTS {
            assert!(verdict().starts_with("repeat: "));
        }
        assert_eq!(verdict(), format!("error: path '{PATH}' is not valid"));
    }

    #[test]
    fn a_missing_path_that_is_valid_by_now_is_repeated_once() {
        let root = root();
        let mut diagnosis = diagnosis(&root);
        let printed = format!("error: path '{PATH}' is not valid\n");
        let end = (Ending::Exited(1), &*printed);
        let valid = |question: Question<'_>| match question {
            Question::IsValid(path) => Ok(path.as_str() == PATH),
            Question::RootThrows => panic!("{question:?}"),
        };
        let mut verdict = || judge(&mut diagnosis, attr(), true, end, valid);
        assert!(verdict().starts_with(&format!("repeat: {PATH} was missing")));
        assert_eq!(verdict(), format!("error: path '{PATH}' is not valid"));
    }

    #[test]
    fn a_throw_that_is_not_caught_may_name_a_missing_path() {
        let root = root();
        let printed = format!("error: path '{PATH}' is not valid\n");
        let end = (Ending::Exited(1), &*printed);
        let verdict = judge(&mut diagnosis(&root), attr(), false, end, no_question);
        assert_eq!(verdict, format!("error: path '{PATH}' is not valid"));
    }

    #[test]
    fn a_repeated_failure_of_the_root_is_its_own_if_it_throws() {
        let root = root();
        for throws in [true, false] {
            let mut diagnosis = diagnosis(&root);
            let killed = (Ending::Killed(15), "");
            let mut verdict = || {
                judge(
                    &mut diagnosis,
                    AttrIndex::default(),
                    true,
                    killed,
                    |question| {
                        assert!(matches!(question, Question::RootThrows));
                        Ok(throws)
                    },
                )
            };
            assert!(verdict().starts_with("repeat: "));
            let class = if throws {
                "Evaluation: "
            } else {
                "Infrastructure: "
            };
            let second = verdict();
            assert!(second.starts_with(class), "{second}");
        }
    }

    #[test]
    fn what_follows_from_too_much_memory_depends_on_what_has_begun() {
        let root = root();
        let diagnosis = diagnosis(&root);
        let verdict = |begun, has_all, slots, was_stopped| {
            in_a_word(diagnosis.too_large(&OversizedWorker {
                at: if begun == 0 {
                    AttrIndex::default()
                } else {
                    attr()
                },
                begun,
                share: 512 * MIB,
                has_all,
                slots,
                was_stopped,
            }))
        };
        let starts = |verdict: String, with: &str| assert!(verdict.starts_with(with), "{verdict}");
        starts(verdict(0, false, 2, true), "fewer: ");
        starts(
            verdict(0, false, 1, true),
            "Evaluation: ci.nix needs more memory",
        );
        starts(verdict(0, true, 2, false), "Signal(9): ");
        starts(verdict(1, false, 2, true), "alone");
        starts(
            verdict(1, true, 2, true),
            "error: it needs more memory than the 512 MiB",
        );
        starts(verdict(1, false, 1, false), "error: it needs more memory");
        assert_eq!(verdict(2, true, 1, true), "repeat: ");
    }
}
