//! The commit status of a target at its code host, as Buildkite reports it for a step (`notify: github-status`).

use serde_json::{Value, json};

use crate::buildkite::pipeline::CommandStep;
use crate::secrets::shortened;

/// What all names of statuses begin with: a branch rule of the code host names them, and other systems have some too.
const PREFIX: &str = "eval-once";

/// How long a name is, in characters: GitHub takes 255.
const NAME_AT_MOST: usize = 200;

/// Lets Buildkite report the step under the target's name; of the summary, under ours alone. What else it notifies stays.
pub(super) fn add(step: &mut CommandStep, target: Option<&str>) {
    let name = match target {
        Some(target) => shortened(&format!("{PREFIX}/{target}"), NAME_AT_MOST),
        None => PREFIX.to_owned(),
    };
    let status = json!({ "github_commit_status": { "context": name } });
    match step.more.get_mut("notify") {
        Some(Value::Array(list)) => list.push(status),
        _ => drop(step.more.insert("notify".into(), json!([status]))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buildkite::schema::Schema;

    #[test]
    fn a_status_is_named_by_its_target_and_added_to_what_is_notified_besides() {
        let schema = Schema::new().unwrap();
        for (target, more, expected) in [
            (Some("a.b"), json!({}), json!(["eval-once/a.b"])),
            (None, json!({}), json!(["eval-once"])),
            (
                Some("\u{1b}`\"$X"),
                json!({ "notify": [{ "github_commit_status": { "context": "mine" } }] }),
                json!(["mine", "eval-once/\u{1b}`\"$X"]),
            ),
        ] {
            let mut step = CommandStep {
                label: "l".into(),
                key: "k".into(),
                more: more.as_object().unwrap().clone(),
                ..CommandStep::default()
            };
            add(&mut step, target);
            let step = serde_json::to_value(&step).unwrap();
            schema.check_step(&step).unwrap();
            let names: Vec<&Value> = step["notify"]
                .as_array()
                .unwrap()
                .iter()
                .map(|status| &status["github_commit_status"]["context"])
                .collect();
            assert_eq!(json!(names), expected);
        }
        let mut step = CommandStep::default();
        add(&mut step, Some(&"x".repeat(999)));
        let name = &step.more["notify"][0]["github_commit_status"]["context"];
        assert_eq!(name.as_str().unwrap().chars().count(), NAME_AT_MOST);
    }
}
