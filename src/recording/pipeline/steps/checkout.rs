//! Which steps skip the checkout (`checkout: fallback`), and which cannot.

use serde_json::{Value, json};

use super::wishes::StepWishes;
use crate::keys::Keys;
use crate::recording::{Emit, RecordingRequest};
use crate::secrets::shortened;

/// How much of a command is shown, in characters.
const COMMAND_AT_MOST: usize = 60;

/// Whether a step with these wishes, those of every step and those of the target, skips its checkout.
///
/// # Errors
/// It has something that needs the checkout; the sentence names it, and goes on after whose wish it is.
pub(super) fn skips(request: &RecordingRequest, wishes: &[&StepWishes]) -> Result<bool, String> {
    if !request.checkout_fallback {
        return Ok(false);
    }
    let said = wishes.iter().rev().find_map(|wishes| says(wishes));
    if said == Some(false) {
        return Ok(false);
    }
    for wishes in wishes {
        if let Some(reference) = vendored(wishes) {
            return Err(format!(
                "`plugins` names {reference}, which is part of the checkout that `checkout: fallback` skips: name it by a repository, or give the step `checkout: {{skip: false}}`"
            ));
        }
        // Who writes the one beside the other knows both.
        if let Some(command) = wishes.get("command")
            && says(wishes) != Some(true)
        {
            let command = match command {
                Value::String(command) => command.clone(),
                other => other.to_string(),
            };
            return Err(format!(
                "`command` ({}) may need the checkout that `checkout: fallback` skips: write `checkout: {{skip: true}}` beside it if it needs none, else `checkout: {{skip: false}}`",
                shortened(command.trim(), COMMAND_AT_MOST)
            ));
        }
    }
    Ok(true)
}

/// Refuses our own plugin where it is part of the checkout.
///
/// # Errors
/// It is.
pub(super) fn check_plugin(request: &RecordingRequest) -> Result<(), String> {
    match &request.emit {
        Emit::Plugin(reference) if request.checkout_fallback && is_vendored(reference) => {
            Err(format!(
                "`checkout: fallback` cannot be combined with the plugin {reference}, which is part of the checkout"
            ))
        }
        _ => Ok(()),
    }
}

/// The properties of a step that skips its checkout.
pub(super) fn properties() -> Keys {
    let mut keys = Keys::new();
    keys.insert("checkout".into(), json!({ "skip": true }));
    keys
}

/// What wishes say of `checkout.skip`.
fn says(wishes: &StepWishes) -> Option<bool> {
    match wishes.get("checkout")?.get("skip")? {
        Value::Bool(skip) => Some(*skip),
        Value::String(text) => Some(text == "true"),
        _ => None,
    }
}

/// The first plugin among the wishes that is part of the checkout.
fn vendored(wishes: &StepWishes) -> Option<&str> {
    let plugins = wishes.get("plugins")?.as_array()?.iter();
    let references = plugins.flat_map(|plugin| {
        let names = plugin.as_object().into_iter().flat_map(Keys::keys);
        names.map(String::as_str).chain(plugin.as_str())
    });
    references.into_iter().find(|name| is_vendored(name))
}

/// Whether a plugin is part of the checkout, as the agent decides it.
fn is_vendored(reference: &str) -> bool {
    reference.starts_with('.')
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::exit::Class;
    use crate::recording::errors::ErrorLists;
    use crate::recording::pipeline::fixtures::{
        no_edges, path, request, schema, target, target_wishing,
    };
    use crate::recording::pipeline::steps::fixtures::{made_steps, make, record_of, values};
    use crate::recording::pipeline::steps::{Records, steps};
    use crate::recording::{AttrError, Target};

    fn fallback(step: &Value) -> RecordingRequest {
        RecordingRequest {
            checkout_fallback: true,
            step: step.as_object().unwrap().clone(),
            ..request()
        }
    }

    /// The message of the target's error step.
    fn refused(target: &Target, step: &Value) -> String {
        let targets = std::slice::from_ref(target);
        let made = make(targets, &no_edges(targets), &[], &fallback(step)).unwrap();
        made.errors.refused[0].message.clone().unwrap()
    }

    #[test]
    fn a_recorded_step_skips_its_checkout_and_its_record_says_what_to_do() {
        for emit in [Emit::Command, request().emit] {
            let request = RecordingRequest {
                emit,
                summary: true,
                ..fallback(&json!({}))
            };
            let steps = made_steps(&[target(1, &["a"])], &request);
            let [step, summary] = steps.as_slice() else {
                panic!()
            };
            for step in [step, summary] {
                assert_eq!(step["checkout"], json!({ "skip": true }));
            }
            assert_eq!(record_of(step)["checkout"], "fallback");
            let always = RecordingRequest {
                checkout_fallback: false,
                ..request
            };
            for step in made_steps(&[target(1, &["a"])], &always) {
                assert!(step.get("checkout").is_none());
            }
        }
    }

    #[test]
    fn the_step_of_an_evaluation_error_keeps_its_checkout_and_that_of_a_refusal_skips_it() {
        let error = AttrError {
            attr: path(&["a"]),
            message: None,
        };
        let errors = [error];
        let made = |evaluation: &[AttrError], refused: &[AttrError]| {
            let errors = ErrorLists {
                evaluation: evaluation.to_vec(),
                refused: refused.to_vec(),
                ..ErrorLists::default()
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
            let step = fallback(&json!({}));
            values(&steps(&records, &step, schema()).unwrap()).remove(0)
        };
        let step = made(&errors, &[]);
        assert!(step.get("checkout").is_none());
        assert_eq!(record_of(&step)["checkout"], "fallback");
        assert_eq!(made(&[], &errors)["checkout"], json!({ "skip": true }));
    }

    #[test]
    fn a_step_that_says_so_keeps_its_checkout() {
        let keep = json!({ "checkout": { "skip": false }, "command": "make" });
        let request = fallback(&json!({}));
        let step = &made_steps(&[target_wishing(1, &keep)], &request)[0];
        assert_eq!(step["checkout"], json!({ "skip": false }));
        assert!(!record_of(step).contains_key("checkout"));
        let all = fallback(&keep);
        let step = &made_steps(&[target(1, &["a"])], &all)[0];
        assert_eq!(step["checkout"], json!({ "skip": false }));
        assert!(!record_of(step).contains_key("checkout"));
    }

    #[test]
    fn a_command_is_refused_that_does_not_say_that_it_needs_no_checkout() {
        let command = json!({ "command": "make -C src" });
        let message = refused(&target_wishing(1, &command), &json!({}));
        assert!(
            message.starts_with(
                "in its `meta.buildkite`, `command` (make -C src) may need the checkout"
            ),
            "{message}"
        );
        let failure = make(&[], &no_edges(&[]), &[], &fallback(&command)).unwrap_err();
        assert_eq!(failure.class, Class::Config);
        let message = failure.to_string();
        assert!(
            message.starts_with("in the key `step`, `command` (make -C src)"),
            "{message}"
        );
        // What one says is not said of the other's command.
        let skip = json!({ "checkout": { "skip": true } });
        refused(&target_wishing(1, &command), &skip);

        let mut beside = command.clone();
        beside["checkout"] = json!({ "skip": true });
        let step = &made_steps(&[target_wishing(1, &beside)], &fallback(&json!({})))[0];
        assert_eq!(step["command"], "make -C src");
        assert_eq!(record_of(step)["checkout"], "fallback");
        let step = &made_steps(&[target(1, &["a"])], &fallback(&beside))[0];
        assert_eq!(step["checkout"], json!({ "skip": true }));
    }

    #[test]
    fn a_plugin_of_the_checkout_is_refused_and_another_is_not() {
        let vendored = json!({ "plugins": [{ "./.buildkite/plugins/x": { "a": 1 } }] });
        let message = refused(&target_wishing(1, &vendored), &json!({}));
        assert!(
            message.contains("`plugins` names ./.buildkite/plugins/x, which is part"),
            "{message}"
        );
        let other = json!({ "plugins": ["docker#v5"], "artifact_paths": "result/*" });
        let step = &made_steps(&[target_wishing(1, &other)], &fallback(&json!({})))[0];
        assert_eq!(step["checkout"], json!({ "skip": true }));
        let ours = RecordingRequest {
            emit: Emit::Plugin("./.buildkite/plugins/eval-once".into()),
            ..fallback(&json!({}))
        };
        let failure = make(&[], &no_edges(&[]), &[], &ours).unwrap_err();
        assert_eq!(failure.class, Class::Config);
    }
}
