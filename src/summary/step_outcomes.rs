//! Asking Buildkite how steps ended whose reports leave that open.

use std::collections::BTreeMap;
use std::time::Duration;

use super::gather::AT_ONCE;
use crate::buildkite::agent as command;
use crate::buildkite::outcome::StepOutcome;
use crate::command_line::CommandLine;
use crate::exit::{Class, Failure};
use crate::log::Log;
use crate::parallel;
use crate::status_line::StatusLine;
use crate::supervise::{Finished, Supervisor};

/// How long one answer may take. An agent of v3 repeats a request that Buildkite answers with an error for 50 seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many questions without an answer in a row are enough: so a Buildkite that answers none costs one of [`PATIENCE`].
const UNANSWERED: usize = AT_ONCE;

/// How the steps of these keys ended. That Buildkite does not say so is no failure: the summary does without it.
///
/// # Errors
/// There is no `buildkite-agent` (69), or it cannot be started (75); a signal asked us to end.
pub(super) fn fetch(
    supervisor: &mut Supervisor,
    keys: &[String],
    log: &Log,
) -> Result<BTreeMap<String, StepOutcome>, Failure> {
    let questions = [command::step_outcome, command::step_state];
    ask(supervisor, keys, questions, log)
}

/// The same, by these questions for the outcome and the state.
fn ask(
    supervisor: &mut Supervisor,
    keys: &[String],
    [step_outcome, step_state]: [fn(&str) -> CommandLine; 2],
    log: &Log,
) -> Result<BTreeMap<String, StepOutcome>, Failure> {
    let mut outcomes: BTreeMap<String, StepOutcome> = keys
        .iter()
        .map(|key| (key.clone(), StepOutcome::NotKnown))
        .collect();
    // The outcome is that of the last job that ended; a step that has not `passed` may be in the middle of another try.
    let mut words: BTreeMap<String, String> = BTreeMap::new();
    each(
        supervisor,
        keys,
        step_outcome,
        log,
        |key, answer| match answer {
            OutcomeAnswer::Word(word) => match StepOutcome::read(&word) {
                Some(outcome) => drop(outcomes.insert(key.clone(), outcome)),
                None => drop(words.insert(key.clone(), word)),
            },
            OutcomeAnswer::NoStep => drop(outcomes.insert(key.clone(), StepOutcome::NoStep)),
            OutcomeAnswer::None => {}
        },
    )?;
    let open: Vec<String> = words.keys().cloned().collect();
    let mut states: BTreeMap<String, String> = BTreeMap::new();
    each(supervisor, &open, step_state, log, |key, answer| {
        if let OutcomeAnswer::Word(state) = answer {
            states.insert(key.clone(), state);
        }
    })?;
    // Another try may have ended since, and then that is its state: the outcome that goes with it is a later one.
    let finished: Vec<String> = open
        .into_iter()
        .filter(|key| {
            states
                .get(key)
                .is_some_and(|state| state.trim() == "finished")
        })
        .collect();
    each(supervisor, &finished, step_outcome, log, |key, answer| {
        if let OutcomeAnswer::Word(word) = answer {
            words.insert(key.clone(), word);
        }
    })?;
    for (key, word) in words {
        let state = states.get(&key).map(String::as_str).unwrap_or_default();
        outcomes.insert(key, StepOutcome::with_state(&word, state));
    }
    let unknown = outcomes.values().filter(|it| **it == StepOutcome::NotKnown);
    match unknown.count() {
        0 => {}
        1 => log.warn("Buildkite does not say how 1 step ended: its row shows its report alone"),
        unknown => log.warn(format_args!(
            "Buildkite does not say how {unknown} steps ended: their rows show their reports alone"
        )),
    }
    Ok(outcomes)
}

/// The answer to a question.
enum OutcomeAnswer {
    Word(String),
    /// The build has no such step.
    NoStep,
    None,
}

/// Asks about each of these steps.
fn each<'k>(
    supervisor: &mut Supervisor,
    keys: &'k [String],
    question: fn(&str) -> CommandLine,
    log: &Log,
    mut answered: impl FnMut(&'k String, OutcomeAnswer),
) -> Result<(), Failure> {
    let lines: Vec<_> = keys.iter().map(|key| question(key)).collect();
    let mut count = 0;
    let mut in_vain = 0;
    let mut line = StatusLine::new(log);
    let ended = |number: usize, finished: Finished, stderr: String| {
        let answer = if finished.ending.success() {
            OutcomeAnswer::Word(finished.text())
        } else if stderr.contains(": 404 ") {
            OutcomeAnswer::NoStep
        } else {
            OutcomeAnswer::None
        };
        in_vain = match answer {
            OutcomeAnswer::None => in_vain + 1,
            _ => 0,
        };
        answered(&keys[number], answer);
        count += 1;
        line.show(|| Some(format!("read {count} of {} outcomes", lines.len())));
        if in_vain < UNANSWERED {
            return Ok(());
        }
        Err(Failure::new(
            Class::Infrastructure,
            "Buildkite does not say how steps ended",
        ))
    };
    let result = parallel::each_within(supervisor, &lines, AT_ONCE, PATIENCE, ended);
    line.clear();
    match result {
        Err(_) if in_vain >= UNANSWERED => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answers of a question that is a script: the key.
    fn answers(scripts: &[&str]) -> BTreeMap<String, String> {
        let log = Log::default();
        let mut supervisor = Supervisor::install(&log).unwrap();
        let keys: Vec<String> = scripts.iter().map(ToString::to_string).collect();
        let question = |key: &str| CommandLine::new("sh", &["-c", key]);
        let mut answers = BTreeMap::new();
        each(&mut supervisor, &keys, question, &log, |key, answer| {
            let answer = match answer {
                OutcomeAnswer::Word(word) => word,
                OutcomeAnswer::NoStep => "no step".into(),
                OutcomeAnswer::None => "none".into(),
            };
            answers.insert(key.clone(), answer);
        })
        .unwrap();
        answers
    }

    #[test]
    fn a_try_that_ends_between_two_questions_is_the_one_that_counts() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("outcome");
        std::fs::write(&file, "hard_failed").unwrap();
        let log = Log::default();
        let mut supervisor = Supervisor::install(&log).unwrap();
        let key = file.to_str().unwrap().to_owned();
        let questions: [fn(&str) -> CommandLine; 2] = [
            |file| CommandLine::new("cat", &[file]),
            |file| CommandLine::new("sh", &["-c", "echo passed >\"$0\"; echo finished", file]),
        ];
        let outcomes = ask(&mut supervisor, std::slice::from_ref(&key), questions, &log).unwrap();
        assert_eq!(outcomes[&key], StepOutcome::Passed);
    }

    #[test]
    fn a_step_that_does_not_exist_is_not_confused_with_no_answer() {
        let scripts = [
            ("echo passed", "passed"),
            ("echo", ""),
            ("echo 'GET https://x: 404 Not Found' >&2; exit 1", "no step"),
            ("echo 'dial tcp: port 4040: refused' >&2; exit 1", "none"),
        ];
        let expected = scripts.map(|(script, answer)| (script.to_owned(), answer.to_owned()));
        assert_eq!(answers(&scripts.map(|(script, _)| script)), expected.into());
    }

    #[test]
    fn after_so_many_questions_without_an_answer_no_more_are_asked() {
        let scripts = |end: &str| -> Vec<String> {
            let numbers = 0..3 * UNANSWERED;
            numbers.map(|number| format!("{end}; : {number}")).collect()
        };
        let count = |end: &str| {
            let scripts = scripts(end);
            let scripts: Vec<&str> = scripts.iter().map(String::as_str).collect();
            answers(&scripts).len()
        };
        assert_eq!(count("exit 1"), UNANSWERED);
        // That there is no step is an answer.
        assert_eq!(count("echo ': 404 ' >&2; exit 1"), 3 * UNANSWERED);
        assert_eq!(count("echo passed"), 3 * UNANSWERED);
    }
}
