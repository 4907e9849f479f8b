//! What a step puts into the variables of its jobs. Linux starts no program with a variable of more than 128 KiB, so a job with one ends
//! before anything of it runs, and says nothing but `Argument list too long`.

use serde::Serialize;

use super::record::text;
use crate::buildkite::pipeline::{CommandStep, StepCommand};
use crate::keys::Keys;
use crate::recording::pipeline::limits::VARIABLE_AT_MOST;

/// Checks that every variable of the step's jobs has room.
///
/// # Errors
/// One has not: the sentence says which.
pub(super) fn fit(step: &CommandStep) -> Result<(), String> {
    let check = |subject: &str, bytes: usize| {
        if bytes > VARIABLE_AT_MOST {
            return Err(format!(
                "{subject} {bytes} bytes, more than an agent can pass to a job"
            ));
        }
        Ok(())
    };
    for (name, value) in &step.env {
        let bytes = value.as_str().map_or(0, str::len);
        match name.as_str() {
            "EVAL_ONCE_STEP" => check("its record takes", bytes)?,
            "EVAL_ONCE_COMMAND" => check("its command takes", bytes)?,
            name => check(&format!("its variable {name} takes"), bytes)?,
        }
    }
    match &step.command {
        None => {}
        Some(StepCommand::One(command)) => check("its command takes", command.len())?,
        Some(StepCommand::Several(commands)) => {
            let bytes = commands.iter().map(|command| command.len() + 1).sum();
            check("its command takes", bytes)?;
        }
    }
    // All of them travel in BUILDKITE_PLUGINS, and ours has the record.
    match step.plugins.len() {
        0 => Ok(()),
        1 => check("its record takes", bytes(&step.plugins)),
        _ => check(
            "its record and its other plugins take",
            bytes(&step.plugins),
        ),
    }
}

/// The room for the record of a step such as this one, whose own is empty.
pub(super) fn room_for_record(step: &CommandStep) -> usize {
    let others = if step.plugins.is_empty() {
        0
    } else {
        bytes(&step.plugins)
    };
    VARIABLE_AT_MOST.saturating_sub(others)
}

/// The size of a record as JSON, in bytes.
pub(super) fn size(record: &Keys) -> usize {
    text(record).len()
}

fn bytes(value: &impl Serialize) -> usize {
    serde_json::to_string(value).map_or(0, |text| text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn step(value: &Value) -> CommandStep {
        let mut keys = json!({ "label": "l", "key": "k" });
        let more = value.as_object().unwrap().clone();
        keys.as_object_mut().unwrap().extend(more);
        serde_json::from_value(keys).unwrap()
    }

    #[test]
    fn every_variable_of_a_step_has_room() {
        let long = |bytes: usize| "x".repeat(bytes);
        let half = VARIABLE_AT_MOST / 2;
        for (large, subject) in [
            (
                json!({ "env": { "EVAL_ONCE_STEP": long(VARIABLE_AT_MOST + 1) } }),
                "its record takes",
            ),
            (
                json!({ "env": { "A": long(VARIABLE_AT_MOST + 1) } }),
                "its variable A takes",
            ),
            (
                json!({ "command": long(VARIABLE_AT_MOST + 1) }),
                "its command takes",
            ),
            (
                json!({ "command": [long(half), long(half)] }),
                "its command takes",
            ),
            (
                json!({ "plugins": [{ "o": { "a": long(VARIABLE_AT_MOST) } }] }),
                "its record takes",
            ),
            (
                json!({ "plugins": [{ "o": { "a": long(half) } }, { "p": long(half) }] }),
                "its record and its other plugins take",
            ),
        ] {
            let message = fit(&step(&large)).unwrap_err();
            assert!(message.starts_with(subject), "{message}");
        }
        let fitting = json!({
            "env": { "A": long(VARIABLE_AT_MOST), "B": 1 }, "command": long(VARIABLE_AT_MOST),
            "plugins": [{ "o": { "a": long(half) } }, "p"],
        });
        assert_eq!(fit(&step(&fitting)), Ok(()));
        let room = room_for_record(&step(
            &json!({ "plugins": [{ "o": {} }, { "p": long(half) }] }),
        ));
        assert!((half - 30..half).contains(&room), "{room}");
        assert_eq!(room_for_record(&step(&json!({}))), VARIABLE_AT_MOST);
    }
}
