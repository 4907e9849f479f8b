//! The steps of attributes with an error: each is red, and says why; one that is expected is skipped.

use std::collections::HashSet;

use super::labels::{attr_name, check_names, inert, label};
use super::maker::StepMaker;
use super::variables;
use super::wishes::{FOR_OUTPUTS, FOR_TARGETS};
use crate::buildkite::pipeline::{CommandStep, StepSkip};
use crate::exit::Failure;
use crate::keys::Keys;
use crate::nix::message::{in_one_line, in_one_line_of};
use crate::recording::errors::ErrorLists;
use crate::recording::pipeline::limits::{MESSAGE_AT_MOST, REASON_AT_MOST};
use crate::recording::pipeline::placed_step::PlacedStep;
use crate::recording::{AttrError, OnError, RecordingRequest, SkipStyle};
use crate::secrets::shortened;
use crate::text::without_escapes;

impl StepMaker<'_> {
    /// The step of an evaluation error: it evaluates the attribute, shows what Nix prints, and fails.
    pub(super) fn evaluation_error(&self, error: &AttrError) -> Result<CommandStep, Failure> {
        if let Err(message) = check_names(&error.attr) {
            return self.refused(&AttrError {
                attr: error.attr.clone(),
                message: Some(message),
            });
        }
        let label = label(":boom:", &attr_name(&error.attr));
        let mut record = self.record(&error.attr);
        record.extend(self.request.build_keys.clone());
        // The step has no command of the user's, so there is none to leave to another plugin.
        record.remove("command");
        if self.request.checkout_fallback {
            // It evaluates for certain, so it keeps its checkout; unless the user's `step` says something else.
            record.insert("checkout".into(), "fallback".into());
        }
        let mut step = self.begin(label, self.keys.error(&error.attr), record)?;
        self.step.without(&[&FOR_TARGETS]).merge_into(&mut step);
        let step = self.finish(step)?;
        if variables::fit(&step).is_err() {
            return self.refused(error);
        }
        Ok(self.with_status(step, Some(&attr_name(&error.attr))))
    }

    /// The step of an expected error: as that of any other, and skipped, with the beginning of the message as the reason.
    pub(super) fn expected_error(&self, error: &AttrError) -> Result<CommandStep, Failure> {
        let message = error.message.as_deref().map(without_escapes);
        let message = message.as_deref().map(in_one_line).unwrap_or_default();
        // A reason such as `false`, or an empty one, might not skip the step.
        let reason = match message.trim() {
            "" => "does not evaluate".to_owned(),
            message => shortened(&inert(&format!("error: {message}")), REASON_AT_MOST),
        };
        Ok(CommandStep {
            label: label(":nix:", &attr_name(&error.attr)),
            skip: Some(StepSkip::Reason(reason)),
            ..self.evaluation_error(error)?
        })
    }

    /// The step of an attribute that evaluates, but cannot have the step that it wishes: it says why, and fails.
    pub(super) fn refused(&self, refused: &AttrError) -> Result<CommandStep, Failure> {
        let attr = attr_name(&refused.attr);
        let message = refused
            .message
            .as_deref()
            .unwrap_or("it cannot have a step");
        let message = in_one_line_of(&format!("{attr}: {message}"), MESSAGE_AT_MOST);
        let message = inert(&message);
        let mut record = Keys::new();
        record.insert("refused".into(), message.into());
        let mut step = self.begin(
            label(":boom:", &attr),
            self.keys.error(&refused.attr),
            record,
        )?;
        self.skip_checkout(&mut step);
        self.step
            .without(&[&FOR_TARGETS, &FOR_OUTPUTS])
            .merge_into(&mut step);
        Ok(self.with_status(self.finish(step)?, Some(&attr)))
    }
}

/// One step for each attribute with an error that is to be seen: of the evaluation errors, unless they are only reported; of the
/// refused.
pub(super) fn error_steps(
    maker: &StepMaker<'_>,
    errors: &ErrorLists,
    request: &RecordingRequest,
) -> Result<Vec<PlacedStep>, Failure> {
    let with_step = request.on_error != OnError::Report;
    let evaluation = errors.evaluation.iter().filter(|_| with_step);
    let evaluation = evaluation.map(|error| maker.evaluation_error(error));
    let refused = errors.refused.iter().map(|error| maker.refused(error));
    once_each(evaluation.chain(refused), false)
}

/// One skipped step for each expected error, unless errors are only reported, or what is skipped is omitted. `skip-style: run` has
/// nothing to run here.
pub(super) fn expected_steps(
    maker: &StepMaker<'_>,
    errors: &ErrorLists,
    request: &RecordingRequest,
) -> Result<Vec<PlacedStep>, Failure> {
    if request.on_error == OnError::Report || request.skip_style == SkipStyle::Omit {
        return Ok(Vec::new());
    }
    let expected = errors.expected.iter();
    once_each(expected.map(|error| maker.expected_error(error)), true)
}

/// These steps in no group, each key once: two names that are not UTF-8 may look alike.
fn once_each(
    steps: impl Iterator<Item = Result<CommandStep, Failure>>,
    skipped: bool,
) -> Result<Vec<PlacedStep>, Failure> {
    let mut seen = HashSet::new();
    let mut planned = Vec::new();
    for step in steps {
        let step = step?;
        if seen.insert(step.key.clone()) {
            planned.push(PlacedStep {
                skipped,
                ..PlacedStep::new(step, None)
            });
        }
    }
    Ok(planned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::pipeline::steps::fixtures::{key, record_of, values};
    use std::collections::BTreeSet;

    use crate::recording::pipeline::fixtures::*;

    use crate::recording::pipeline::steps::{PlannedPipeline, Records, error_key, steps};

    use serde_json::{Value, json};

    #[test]
    fn the_step_of_an_evaluation_error_has_the_build_keys_and_no_command_to_leave() {
        let request = RecordingRequest {
            build_keys: keys(&json!({ "command": "none", "log": "raw", "out-link": false })),
            ..request_wishing(&json!({ "plugins": ["docker#v5"], "command": "make" }))
        };
        let errors = ErrorLists {
            evaluation: vec![AttrError {
                attr: path(&["b"]),
                message: None,
            }],
            ..ErrorLists::default()
        };
        let records = Records {
            targets: &[],
            errors: &errors,
            edges: &no_edges(&[]),
            skip: &[],
            seconds: &[],
            steps_known: true,
            shared: &[],
            callable: &BTreeSet::new(),
        };
        let steps = steps(&records, &request, schema()).unwrap();
        let record = record_of(&values(&steps)[0]);
        assert_eq!(
            (&record["log"], &record["out-link"]),
            (&json!("raw"), &json!(false))
        );
        assert!(!record.contains_key("command"));
    }

    /// The steps of one target, of an evaluation error, an expected one and a refused attribute.
    fn steps_of_errors(request: &RecordingRequest, expected: AttrError) -> PlannedPipeline {
        let error = |name: &str| AttrError {
            attr: path(&[name]),
            message: Some("m".into()),
        };
        let targets = [target(0, &["target"])];
        let records = Records {
            targets: &targets,
            errors: &ErrorLists {
                evaluation: vec![error("new")],
                expected: vec![expected],
                refused: vec![error("odd")],
            },
            callable: &BTreeSet::new(),
            edges: &no_edges(&targets),
            skip: &[],
            seconds: &[],
            steps_known: true,
            shared: &[],
        };
        let steps = steps(&records, request, schema()).unwrap();
        let counts = steps.counts(&targets);
        assert_eq!((counts.attributes, counts.targets), (4, 1));
        let errors = (
            counts.evaluation_errors,
            counts.expected_errors,
            counts.refused,
        );
        assert_eq!(errors, (1, 1, 1), "whether they have steps or not");
        steps
    }

    #[test]
    fn errors_that_are_reported_have_no_step_and_expected_ones_a_skipped_one_at_the_end() {
        let old = || AttrError {
            attr: path(&["old"]),
            message: Some("m".into()),
        };
        let (new, odd, old_key) = (path(&["new"]), path(&["odd"]), path(&["old"]));
        let [new, odd, old_key] = [new, odd, old_key].map(|attr| error_key(&attr));
        let target = key(&target(0, &["target"]));
        let (run, mark, omit) = (SkipStyle::Run, SkipStyle::Mark, SkipStyle::Omit);
        for (on_error, skip_style, expected) in [
            (OnError::Step, mark, vec![&new, &odd, &target, &old_key]),
            (OnError::Step, run, vec![&new, &odd, &target, &old_key]),
            (OnError::Fail, mark, vec![&new, &odd, &target, &old_key]),
            (OnError::Step, omit, vec![&new, &odd, &target]),
            (OnError::Report, mark, vec![&odd, &target]),
            (OnError::Report, omit, vec![&odd, &target]),
        ] {
            let request = RecordingRequest {
                on_error,
                skip_style,
                summary: true,
                ..request()
            };
            let steps = steps_of_errors(&request, old()).steps;
            let (summary, steps) = steps.split_last().unwrap();
            let keys: Vec<&String> = steps.iter().map(|planned| &planned.step.key).collect();
            assert_eq!(keys, expected, "{on_error:?} {skip_style:?}");
            for planned in steps {
                let is_old = planned.step.key == old_key;
                assert_eq!(!planned.step.may_run(), is_old);
                assert_eq!(planned.skipped, is_old);
            }
            let waits = serde_json::to_string(&summary.step.depends_on).unwrap();
            assert!(!waits.contains(&old_key), "{waits}");
        }
    }

    #[test]
    fn the_reason_of_an_expected_error_is_the_beginning_of_its_message_and_skips_its_step() {
        // What the user wishes of every step does not run it.
        let request = request_wishing(&json!({ "skip": false, "command": "make" }));
        for (message, reason) in [
            (Some("it needs Python 2"), "error: it needs Python 2"),
            (
                Some("attribute 'x' missing\n\nat /ci.nix:7:3:\n\n     7|   x"),
                "error: attribute 'x' missing, at /ci.nix:7:3",
            ),
            (
                Some("\u{1b}[31mred\u{1b}[0m <b>\u{7}\u{202e}"),
                "error: red <b>\u{fffd}\u{fffd}",
            ),
            (Some("first\nsecond"), "error: first second"),
            (Some("false"), "error: false"),
            (Some(" \n\u{a0}"), "does not evaluate"),
            (None, "does not evaluate"),
        ] {
            let expected = AttrError {
                attr: path(&["old"]),
                message: message.map(str::to_owned),
            };
            let step = &values(&steps_of_errors(&request, expected))[3];
            assert_eq!(step["skip"], reason);
            assert_eq!(step["label"], ":nix: old");
            schema().check_step(step).unwrap();
        }
        let long = AttrError {
            attr: path(&["old"]),
            message: Some("ß".repeat(10_000)),
        };
        let step = &values(&steps_of_errors(&request, long))[3];
        let reason = step["skip"].as_str().unwrap();
        assert_eq!(reason.chars().count(), 70);
        assert!(reason.ends_with('…'), "{reason}");
        schema().check_step(step).unwrap();
    }

    #[test]
    fn an_evaluation_error_has_a_step_that_runs_nothing_else() {
        let request = request_wishing(&json!({
            "command": "make", "parallelism": 3, "skip": true, "label": "all alike", "artifact_paths": "result/*",
            "agents": { "queue": "q" }, "plugins": ["a#v1"], "env": { "A": "1" }, "timeout_in_minutes": 9,
            "priority": 1, "retry": { "automatic": { "exit_status": 3 } }
        }));
        let errors = ErrorLists {
            evaluation: vec![AttrError {
                attr: path(&["p", "b"]),
                message: Some("infinite recursion".into()),
            }],
            expected: Vec::new(),
            refused: vec![AttrError {
                attr: path(&["p", "r"]),
                message: Some("its `meta.buildkite.x` is a path\n$(boom)".into()),
            }],
        };
        let records = Records {
            targets: &[],
            errors: &errors,
            callable: &BTreeSet::new(),
            edges: &no_edges(&[]),
            skip: &[],
            seconds: &[],
            steps_known: true,
            shared: &[],
        };
        let steps = steps(&records, &request, schema()).unwrap();
        assert_eq!(steps.errors, errors);
        let [error, refused] = &values(&steps)[..] else {
            panic!("two steps")
        };
        let record = record_of(error);
        assert!(!record.contains_key("drv") && !record.contains_key("outputs"));
        assert_eq!(record["attr"], json!(["p", "b"]));
        for (step, label) in [(error, ":boom: p.b"), (refused, ":boom: p.r")] {
            for key in ["command", "parallelism", "skip"] {
                assert!(step.get(key).is_none(), "{key}: {step}");
            }
            assert_eq!(step["label"], label);
            assert_eq!(step["plugins"][1], "a#v1");
            assert_eq!(step["agents"], json!({ "queue": "q" }));
            assert_eq!(step["env"], json!({ "A": "1" }));
            assert_eq!(
                (&step["timeout_in_minutes"], &step["priority"]),
                (&json!(9), &json!(1))
            );
            assert_eq!(step["retry"]["automatic"].as_array().unwrap().len(), 5);
        }
        assert!(refused.get("artifact_paths").is_none());
        assert_eq!(
            Value::Object(record_of(refused)),
            json!({ "refused": "p.r: its `meta.buildkite.x` is a path $(boom)" })
        );
    }
}
