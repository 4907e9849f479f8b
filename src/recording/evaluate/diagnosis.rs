//! What the end of a worker means: for the attribute that it was at, and for the recording.
//!
//! A worker may die of its attribute (a recursion without end, an `abort`), of something that the attribute is not to blame for
//! (the collector, the daemon, the network), or of its size. An attribute is evaluated again before it is blamed for what may
//! happen to any. This only judges: questions to Nix are asked through a function that is passed in, and what a [`Verdict`] says
//! is carried out elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::memory::MIB;
use super::processes::StopReason;
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
    /// Nothing is left of its task.
    Finished,
    /// Another worker had taken over, or its attribute has had its say.
    Stopped,
    /// It had more memory than its share.
    TooLarge,
    /// An attribute took longer than it may.
    TooLong,
    /// It died by itself.
    Died,
}

impl WorkerEnd {
    /// `is_complete`: the walker has said that it was through with its task; `catch`: as in the task.
    pub(super) fn of(
        stopped: Option<StopReason>,
        ending: Ending,
        is_complete: bool,
        catch: bool,
    ) -> Self {
        match stopped {
            Some(StopReason::Overtaken) => Self::Stopped,
            // That the attribute throws is known already; its step will show with which message.
            Some(StopReason::TooLarge | StopReason::TooLong) if !catch => Self::Stopped,
            _ if is_complete && ending.success() => Self::Finished,
            Some(StopReason::TooLarge) => Self::TooLarge,
            Some(StopReason::TooLong) => Self::TooLong,
            // The kernel's own way to say that it is too large.
            None if ending == Ending::Killed(9) => Self::TooLarge,
            None => Self::Died,
        }
    }
}

/// What follows from the end of a worker.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The attribute does not evaluate, for this reason; the task goes on behind it.
    EvaluationError(String),
    /// What it was at is done again; the line says why, where that is worth a line.
    Repeat(Option<String>),
    /// The attribute is done again by itself, with all the memory.
    RepeatAlone,
    /// It is done again beside fewer workers; the line says why.
    RepeatWithFewer(String),
    /// The recording fails.
    Fail(Failure),
}

/// What only Nix can answer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Question<'a> {
    /// Does what is evaluated throw at its root?
    RootThrows,
    /// Is this path valid?
    IsValid(&'a StorePath),
}

/// A worker that has died by itself.
#[derive(Debug)]
pub(super) struct Death<'a> {
    /// The attribute that it was at.
    pub(super) at: AttrIndex,
    /// That attribute, or all that is evaluated, for a sentence.
    pub(super) name: &'a str,
    /// Whether what throws was caught.
    pub(super) catch: bool,
    pub(super) ending: Ending,
    pub(super) nix_output: &'a NixOutput,
}

/// A worker that had more memory than its share.
#[derive(Debug)]
pub(super) struct OversizedWorker {
    /// The attribute that it was at.
    pub(super) at: AttrIndex,
    /// How many attributes had begun.
    pub(super) begun: u32,
    /// Its share of the memory, in bytes; and whether that is all of it.
    pub(super) share: u64,
    pub(super) has_all: bool,
    /// How many workers may run in parallel.
    pub(super) slots: usize,
    /// We have stopped it; else the kernel has killed it.
    pub(super) was_stopped: bool,
}

/// What earlier ends have shown, and the judgement of the next one.
#[derive(Debug)]
pub(super) struct Diagnosis<'a> {
    root: &'a Evaluation,
    /// All that is evaluated, for a sentence.
    what: String,
    /// Where temporary files are made.
    temporary: &'a Path,
    /// How often an attribute was disturbed.
    disturbed: BTreeMap<AttrIndex, u32>,
    /// The path that an attribute missed last, and how often in a row.
    missed: BTreeMap<AttrIndex, (StorePath, u32)>,
    /// The attributes that were evaluated once more because of a failure that may not be theirs; whether what throws was caught.
    doubted: BTreeSet<(AttrIndex, bool)>,
}

impl<'a> Diagnosis<'a> {
    pub(super) fn new(root: &'a Evaluation, what: String, temporary: &'a Path) -> Self {
        Self {
            root,
            what,
            temporary,
            disturbed: BTreeMap::new(),
            missed: BTreeMap::new(),
            doubted: BTreeSet::new(),
        }
    }

    /// Judges a worker that died by itself. The store answers: without that nothing here would mean anything.
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
        let was_repeated = self.doubted.contains(&this) || self.disturbed.contains_key(at);
        let is_suspect = is_doubtful || nix_output.disturbance().is_some();
        // What the root throws is caught by nothing; and an attribute below it that is not caught was found to throw before.
        let is_its_own = is_suspect
            && was_repeated
            && (!catch || *at == AttrIndex::default() && ask(Question::RootThrows)?);
        if !is_its_own
            && matches!(class, Class::Evaluation | Class::Infrastructure)
            && let Some(verdict) = self.disturbance(death, &message, ask)?
        {
            return Ok(verdict);
        }
        // Whatever the class: another try would not make that folder. But an expression may name a path in it as well, and one that
        // is not caught has thrown before.
        if *catch
            && !nix_output.is_expressions_own()
            && let Some(failure) = host::no_temporary_folder(self.temporary, &message)
        {
            return Ok(Verdict::Fail(failure));
        }
        if is_doubtful && !is_its_own && self.doubted.insert(this) {
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

    /// Whether the collector or the daemon disturbed the evaluation, and what follows then.
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
            // One that is not caught was found to throw: these are its own words.
            Some(Disturbance::Gone(_)) if !catch => return Ok(None),
            Some(Disturbance::Gone(path)) => {
                let is_valid = ask(Question::IsValid(&path))?;
                // Something has registered it meanwhile. Once: an expression may say the same of a path that was always there.
                if is_valid && self.doubted.insert((at.clone(), *catch)) {
                    return Ok(Some(Verdict::Repeat(Some(format!(
                        "{path} was missing during the evaluation, and is valid now: doing it again"
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

    /// Whether an attribute has missed the same path each time it was evaluated, and no evaluation makes that path: then the
    /// expression names it, and not the collector has taken it. Nix 2.8 does not say so.
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

    /// Counts that an attribute was disturbed: by a daemon that went away, as Nix says in `daemon_message`, or by the collector.
    /// Gives a line that says so.
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
        // Whether a daemon went away, or the expression says so, shows in the next try.
        match daemon_message.map(in_one_line) {
            Some(message) if !is_last => {
                Ok(format!("{name}: {message}; evaluating it once more"))
            }
            None if !is_last => {
                Ok("the garbage collector took what was being evaluated: doing it again".into())
            }
            Some(message) => Err(Failure::new(
                Class::Infrastructure,
                format_args!("the Nix daemon went away {ATTEMPTS} times while {name} was evaluated: {message}"),
            )
            .hint("was it restarted, or killed for want of memory? The recording can be tried again")),
            None => Err(Failure::new(
                Class::Infrastructure,
                format_args!("the garbage collector disturbed the evaluation of {name} {ATTEMPTS} times"),
            )
            .hint(COLLECTOR_HINT)),
        }
    }

    /// Judges a worker that was at `at` for longer than the `seconds` that it may take.
    pub(super) fn too_long(&self, at: &AttrIndex, seconds: u64) -> Verdict {
        let message = format!("it took longer than {seconds} s (evaluation-timeout)");
        self.evaluation_error(at, message)
    }

    /// Judges a worker that had more memory than its share.
    pub(super) fn too_large(&self, worker: &OversizedWorker) -> Verdict {
        let what = &self.what;
        let share = worker.share / MIB;
        let is_alone = worker.slots == 1 || worker.has_all;
        match worker.begun {
            0 if is_alone && !worker.was_stopped => Verdict::Fail(
                Failure::new(
                    Class::Signal(9),
                    format_args!("evaluating {what} was killed"),
                )
                .hint("the kernel kills with signal 9 when memory runs out"),
            ),
            0 if is_alone => Verdict::Fail(
                Failure::new(
                    Class::Evaluation,
                    format_args!("{what} needs more memory than the {share} MiB there are for it"),
                )
                .hint("give evaluation more with `memory`, or run it where there is more"),
            ),
            0 => {
                let slots = worker.slots - 1;
                let es = if slots == 1 { "" } else { "es" };
                Verdict::RepeatWithFewer(format!(
                    "evaluating the root alone needs more than {share} MiB: going on with {slots} process{es}"
                ))
            }
            1 if is_alone => self.evaluation_error(
                &worker.at,
                format!("it needs more memory than the {share} MiB there are for evaluation"),
            ),
            // It alone was too much.
            1 => Verdict::RepeatAlone,
            // What came before it took the memory.
            _ => Verdict::Repeat(None),
        }
    }

    /// An attribute that does not evaluate is an error of its own; where it is the root, nothing does.
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
                failure.hint("give a function's arguments under `arg` or `argstr`"),
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

    /// What a death is: `evaluates`, `again`, or the class with which the recording fails.
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
    fn an_end_is_what_we_asked_for_or_what_the_walker_said_or_a_death() {
        let of = |stopped, ending, complete, catch| WorkerEnd::of(stopped, ending, complete, catch);
        let (success, killed) = (Ending::Exited(0), Ending::Killed(9));
        assert_eq!(of(None, success, true, true), WorkerEnd::Finished);
        // It said that it was through, and failed all the same; or it ended without saying so.
        assert_eq!(of(None, Ending::Exited(1), true, true), WorkerEnd::Died);
        assert_eq!(of(None, success, false, true), WorkerEnd::Died);
        assert_eq!(of(None, Ending::Killed(11), false, true), WorkerEnd::Died);
        assert_eq!(of(None, killed, false, true), WorkerEnd::TooLarge);
        let large = Some(StopReason::TooLarge);
        assert_eq!(of(large, killed, false, true), WorkerEnd::TooLarge);
        assert_eq!(of(large, killed, false, false), WorkerEnd::Stopped);
        // It was through before it could be stopped.
        assert_eq!(of(large, success, true, true), WorkerEnd::Finished);
        let long = Some(StopReason::TooLong);
        assert_eq!(
            of(long, Ending::Killed(15), false, true),
            WorkerEnd::TooLong
        );
        let overtaken = Some(StopReason::Overtaken);
        assert_eq!(of(overtaken, killed, false, true), WorkerEnd::Stopped);
    }

    #[test]
    fn an_expressions_own_error_is_an_evaluation_error_at_once() {
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
    fn where_the_root_fails_nothing_evaluates() {
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
    fn what_may_happen_to_any_attribute_is_tried_once_more() {
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
        // One that was found to throw has its own try, and then its own error.
        assert!(verdict(false).starts_with("repeat: "));
        assert!(verdict(false).starts_with("error: "));
    }

    #[test]
    fn a_path_that_the_collector_took_is_evaluated_again_three_times() {
        let root = root();
        let mut diagnosis = diagnosis(&root);
        let drv = format!("{PATH}.drv");
        let printed = format!("error: path '{drv}' is not valid\n");
        let end = (Ending::Exited(1), &*printed);
        let mut verdict = || judge(&mut diagnosis, attr(), true, end, |_| Ok(false));
        for _ in 1..ATTEMPTS {
            assert!(verdict().starts_with("repeat: the garbage collector took"));
        }
        let last = verdict();
        assert!(
            last.starts_with("Infrastructure: the garbage collector disturbed"),
            "{last}"
        );
    }

    #[test]
    fn a_path_that_is_missed_each_time_is_the_expressions_own() {
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
    fn a_path_that_is_valid_again_is_believed_once() {
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
    fn an_attribute_that_is_not_caught_says_its_own_words_of_a_path() {
        let root = root();
        let printed = format!("error: path '{PATH}' is not valid\n");
        let end = (Ending::Exited(1), &*printed);
        let verdict = judge(&mut diagnosis(&root), attr(), false, end, no_question);
        assert_eq!(verdict, format!("error: path '{PATH}' is not valid"));
    }

    #[test]
    fn the_root_is_asked_whether_it_throws_before_its_words_are_believed() {
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
    fn a_worker_that_is_too_large_is_judged_by_what_it_has_begun() {
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
