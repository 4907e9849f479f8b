//! When Buildkite runs a step again: our own rules, and what a user or a target adds to them.

use serde_json::{Value, json};

use crate::buildkite::pipeline::RetryRule;

/// Our rules: a step is run again after an infrastructure failure, and not because a person canceled it.
pub(super) fn retry_rules() -> Vec<RetryRule> {
    let rule = |exit_status: Option<i64>, signal_reason: Option<&str>, limit| RetryRule {
        exit_status: exit_status.map(Value::from),
        signal: None,
        signal_reason: signal_reason.map(str::to_owned),
        limit: Some(limit),
    };
    let mut rules = infrastructure_rules();
    rules.extend([
        // The agent was lost.
        rule(Some(-1), Some("none"), 2),
        rule(None, Some("agent_stop"), 2),
        // Something outside has killed the hook itself.
        rule(Some(255), Some("none"), 1),
    ]);
    rules
}

/// The rule of an infrastructure failure before anything of the user's was run.
pub(super) fn infrastructure_rules() -> Vec<RetryRule> {
    vec![RetryRule {
        exit_status: Some(75.into()),
        limit: Some(2),
        ..RetryRule::default()
    }]
}

/// `retry.automatic` with added rules. Those come first, because Buildkite goes by the first rule that applies, and a rule that
/// an added one covers is dropped. `true` and `false` cover every rule. A value that Buildkite rejects passes unchanged: the
/// schema check names it.
pub(super) fn with_rules(rules: Value, more: &Value) -> Value {
    let added = match more {
        Value::Array(rules) => rules.clone(),
        Value::Object(_) => vec![more.clone()],
        _ => return more.clone(),
    };
    let present = match rules {
        Value::Array(rules) => rules,
        Value::Object(_) => vec![rules],
        all if all == true || all == "true" => vec![json!({ "exit_status": "*" })],
        _ => Vec::new(),
    };
    let uncovered = present
        .into_iter()
        .filter(|rule| !added.iter().any(|more| covers(more, rule)));
    Value::Array(added.iter().cloned().chain(uncovered).collect())
}

/// Whether `rule` applies to every ending that `other` applies to.
fn covers(rule: &Value, other: &Value) -> bool {
    let statuses = |rule: &Value| match &rule["exit_status"] {
        Value::Array(list) => list.clone(),
        one => vec![one.clone()],
    };
    let covered = statuses(rule);
    let any = |status: &Value| status.is_null() || status == "*";
    let status = covered.iter().any(any) || statuses(other).iter().all(|one| covered.contains(one));
    let same = |name| rule[name].is_null() || rule[name] == other[name];
    rule.is_object() && status && same("signal") && same("signal_reason")
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{make, values};
    use super::*;
    use crate::recording::pipeline::fixtures::*;

    #[test]
    fn the_retry_rules_of_a_target_come_before_ours() {
        let rules = |step: &Value, target: &Value| {
            let targets = [target_wishing(1, &json!({ "retry": target }))];
            let request = request_wishing(&json!({ "retry": step }));
            let steps = make(&targets, &no_edges(&targets), &[], &request).unwrap();
            assert_eq!(steps.errors.refused, [], "{target}");
            values(&steps)[0]["retry"].clone()
        };
        let ours = serde_json::to_value(retry_rules()).unwrap();
        let [infrastructure, lost, stopped, killed] = &ours.as_array().unwrap()[..] else {
            panic!("four rules")
        };
        let none = json!({});
        let three = json!({ "exit_status": 3, "limit": 1 });
        let never = json!({ "exit_status": [75, 4], "limit": 0 });
        let lost_more = json!({ "exit_status": -1, "signal_reason": "none", "limit": 9 });
        let stopped_only = json!({ "signal_reason": "agent_stop", "limit": 0 });
        for (step, target, expected) in [
            (
                &none,
                json!({}),
                json!([infrastructure, lost, stopped, killed]),
            ),
            (&none, json!({ "automatic": [] }), ours.clone()),
            // One rule is a list of one.
            (
                &none,
                json!({ "automatic": three }),
                json!([three, infrastructure, lost, stopped, killed]),
            ),
            (
                &none,
                json!({ "automatic": [three] }),
                json!([three, infrastructure, lost, stopped, killed]),
            ),
            (
                &none,
                json!({ "automatic": [never] }),
                json!([never, lost, stopped, killed]),
            ),
            (
                &none,
                json!({ "automatic": [lost_more] }),
                json!([lost_more, infrastructure, stopped, killed]),
            ),
            (
                &none,
                json!({ "automatic": [stopped_only] }),
                json!([stopped_only, infrastructure, lost, killed]),
            ),
            // A rule that covers only a part of ours leaves ours in place.
            (
                &none,
                json!({ "automatic": { "exit_status": 75, "signal": "none" } }),
                json!([{ "exit_status": 75, "signal": "none" }, infrastructure, lost, stopped, killed]),
            ),
            (
                &none,
                json!({ "automatic": { "exit_status": "*", "limit": 1 } }),
                json!([{ "exit_status": "*", "limit": 1 }]),
            ),
            (
                &none,
                json!({ "automatic": { "limit": 1 } }),
                json!([{ "limit": 1 }]),
            ),
            (&none, json!({ "automatic": true }), json!(true)),
            (&none, json!({ "automatic": false }), json!(false)),
            // Those of `step` come between.
            (
                &json!({ "automatic": [{ "exit_status": 3, "limit": 5 }, { "exit_status": 5 }] }),
                json!({ "automatic": three }),
                json!([three, { "exit_status": 5 }, infrastructure, lost, stopped, killed]),
            ),
            (
                &json!({ "automatic": true }),
                json!({ "automatic": three }),
                json!([three, { "exit_status": "*" }]),
            ),
            (
                &json!({ "automatic": "false" }),
                json!({ "automatic": three }),
                json!([three]),
            ),
        ] {
            assert_eq!(
                rules(step, &target)["automatic"],
                expected,
                "{step} {target}"
            );
        }
        let manual = rules(
            &json!({ "manual": { "allowed": false, "reason": "no" } }),
            &json!({ "manual": { "reason": "never" } }),
        );
        assert_eq!(
            manual["manual"],
            json!({ "allowed": false, "reason": "never" })
        );
        assert_eq!(manual["automatic"], ours);
    }

    #[test]
    fn a_rule_that_buildkite_rejects_is_named_as_its_target_has_it() {
        for (automatic, sentence) in [
            (json!([{ "limit": 99 }]), "`retry.automatic[0].limit` is 99"),
            (
                json!({ "limt": 1 }),
                "`retry.automatic.limt` is not a property",
            ),
            (json!("x"), "`retry.automatic` is \"x\""),
            (json!([true]), "`retry.automatic"),
        ] {
            let targets = [target_wishing(
                1,
                &json!({ "retry": { "automatic": automatic } }),
            )];
            let steps = make(&targets, &no_edges(&targets), &[], &request()).unwrap();
            let message = steps.errors.refused[0].message.clone().unwrap();
            assert!(message.contains(sentence), "{automatic}: {message}");
        }
    }
}
