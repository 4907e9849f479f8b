//! The step that sums the build up.

use std::collections::HashSet;

use serde_json::json;

use super::maker::{StepMaker, keys_of, our_plugin, our_retry};
use super::step_key::summary_key;
use super::wishes::{FOR_NO_CHECK, FOR_ONE_OF_MANY, FOR_OUTPUTS, FOR_TARGETS};
use crate::buildkite::pipeline::{CommandStep, Dependency, StepCommand};
use crate::exit::Failure;
use crate::recording::Emit;
use crate::recording::pipeline::placed_step::PlacedStep;

impl StepMaker<'_> {
    /// The step that sums the build up when all of these have ended, whatever their outcome. A `wait` step would do so too, but
    /// would also hold back the steps that the user's pipeline has behind the recording.
    pub(super) fn summary<'p>(
        &self,
        planned: impl Iterator<Item = &'p PlacedStep> + Clone,
    ) -> Result<CommandStep, Failure> {
        let mut step = CommandStep {
            label: ":bar_chart: eval-once summary".into(),
            key: summary_key(planned.clone().map(|planned| planned.step.key.as_str())),
            // A step that is marked as skipped has ended already.
            depends_on: planned
                .filter(|planned| planned.step.skip.is_none() || !planned.skipped)
                .map(|planned| Dependency::Step {
                    step: planned.step.key.clone(),
                    allow_failure: Some(true.into()),
                })
                .collect(),
            retry: Some(our_retry().into()),
            ..CommandStep::default()
        };
        match &self.request.emit {
            Emit::Plugin(reference) => {
                let fail = self.request.summary_fails;
                let keys = json!({ "summary": if fail { json!("fail") } else { json!(true) } });
                step.plugins.push(our_plugin(reference, keys));
            }
            Emit::Command => {
                let command = if self.request.summary_fails {
                    "eval-once summary --fail"
                } else {
                    "eval-once summary"
                };
                step.command = Some(StepCommand::One(command.into()));
            }
        }
        let mut step = keys_of(&step)?;
        self.skip_checkout(&mut step);
        let softness: &[&str] = if self.request.summary_fails {
            &FOR_NO_CHECK
        } else {
            &[]
        };
        self.step
            .without(&[&FOR_TARGETS, &FOR_OUTPUTS, &FOR_ONE_OF_MANY, softness])
            .merge_into(&mut step);
        Ok(self.with_status(self.finish(step)?, None))
    }
}

/// Drops, from the last step, which is the summary's, the dependencies on omitted steps: Buildkite fails a build with a step that
/// waits for a step that never comes.
pub(super) fn drop_missing_dependencies(steps: &mut [PlacedStep]) {
    let keys: HashSet<String> = steps
        .iter()
        .map(|planned| planned.step.key.clone())
        .collect();
    let exists = |dependency: &Dependency| match dependency {
        Dependency::Step { step, .. } => keys.contains(step),
        Dependency::Key(_) => true,
    };
    if let Some(summary) = steps.last_mut() {
        summary.step.depends_on.retain(exists);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::pipeline::steps::fixtures::{key, make, one_error, values};
    use crate::recording::{AttrError, RecordingRequest, SkipStyle};
    use std::collections::BTreeSet;

    use crate::recording::Emit;
    use crate::recording::errors::ErrorLists;
    use crate::recording::pipeline::excess::Excess;
    use crate::recording::pipeline::fixtures::*;
    use crate::recording::pipeline::limits::JOBS_PER_BUILD;

    use crate::recording::pipeline::steps::retry::retry_rules;
    use crate::recording::pipeline::steps::{Records, error_key, steps};

    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    #[test]
    fn a_summary_does_not_wait_for_omitted_steps() {
        let targets: Vec<_> = (0..=JOBS_PER_BUILD)
            .map(|i| target(i, &[&i.to_string()]))
            .collect();
        let skip = vec![Some("a cache has it".to_owned()); targets.len()];
        let request = RecordingRequest {
            summary: true,
            skip_style: SkipStyle::Run,
            ..request()
        };
        let steps = make(&targets, &no_edges(&targets), &skip, &request).unwrap();
        assert_eq!((steps.steps.len(), steps.omitted), (JOBS_PER_BUILD - 1, 3));
        let there: BTreeSet<_> = steps.steps.iter().map(|it| it.step.key.as_str()).collect();
        let waits = &steps.steps.last().unwrap().step.depends_on;
        assert_eq!(waits.len(), JOBS_PER_BUILD - 2);
        for wait in waits {
            let Dependency::Step { step, .. } = wait else {
                panic!("{wait:?}")
            };
            assert!(there.contains(step.as_str()), "{step}");
        }
    }

    #[test]
    fn a_summary_waits_for_all_other_steps_whatever_their_outcome() {
        let mut targets: Vec<_> = (0..3).map(|i| target(i, &["p", &i.to_string()])).collect();
        targets[1].system = "aarch64-linux".into();
        let edges = edges_between(&targets, &[(0, 1)]);
        let tags = |tags: Value| tags.as_object().unwrap().clone();
        let request = RecordingRequest {
            summary: true,
            step: tags(json!({
                "agents": ["queue=nix", "size=big"], "env": { "A": "1" }, "parallelism": 2,
                "label": "x", "plugins": [{ "kubernetes": { "podSpec": {} } }], "timeout_in_minutes": 9,
                "depends_on": "before", "cancel_on_build_failing": true, "artifact_paths": "result", "matrix": ["a"],
                "allow_dependency_failure": true, "notify": ["github_commit_status"], "soft_fail": true,
                "retry": { "automatic": { "exit_status": 3 }, "manual": false }
            })),
            agents: BTreeMap::from([
                ("x86_64-linux".into(), tags(json!({ "queue": "intel" }))),
                ("aarch64-linux".into(), tags(json!({ "queue": "arm" }))),
            ]),
            ..request()
        };
        let errors = one_error(&["p", "bad"]);
        let records = Records {
            targets: &targets,
            errors: &errors,
            callable: &BTreeSet::new(),
            edges: &edges,
            skip: &[None, None, Some("a cache has it".into())],
            seconds: &[],
            steps_known: true,
            shared: &[],
        };
        let steps = steps(&records, &request, schema()).unwrap();
        let last = &values(&steps)[4];
        let waits = [
            error_key(&path(&["p", "bad"])),
            key(&targets[1]),
            key(&targets[0]),
        ];
        let waits = waits.map(|key| json!({ "step": key, "allow_failure": true }));
        let hash = last["key"]
            .as_str()
            .unwrap()
            .strip_prefix("summary-")
            .unwrap();
        assert_eq!(hash.len(), 32);
        let mut rules = vec![json!({ "exit_status": 3 })];
        rules.extend(retry_rules().iter().map(|rule| json!(rule)));
        let error = &values(&steps)[0];
        assert_eq!(error["agents"], last["agents"], "where most targets go");
        assert_eq!(
            last,
            &json!({
                "label": ":bar_chart: eval-once summary",
                "key": last["key"],
                "plugins": [
                    { "your-org/eval-once#v1": { "summary": true } },
                    { "kubernetes": { "podSpec": {} } }
                ],
                "agents": { "queue": "intel", "size": "big" },
                "env": { "A": "1" },
                "timeout_in_minutes": 9,
                "soft_fail": true,
                "depends_on": waits,
                "retry": { "automatic": rules, "manual": false },
            })
        );
        let command = RecordingRequest {
            emit: Emit::Command,
            ..request
        };
        let again = crate::recording::pipeline::steps::steps(&records, &command, schema()).unwrap();
        let again = &values(&again)[4];
        assert_eq!(again["command"], "eval-once summary");
        assert_eq!(again["key"], last["key"]);
    }

    #[test]
    fn a_summary_that_is_a_required_check_is_never_soft_and_each_step_has_its_status() {
        let targets = [
            target(0, &["p", "0"]),
            target_building(1, &json!({ "log": 1 })),
        ];
        let edges = no_edges(&targets);
        let errors = ErrorLists {
            evaluation: vec![AttrError {
                attr: path(&["p", "bad"]),
                message: None,
            }],
            ..ErrorLists::default()
        };
        let records = Records {
            targets: &targets,
            errors: &errors,
            callable: &BTreeSet::new(),
            edges: &edges,
            skip: &[None, None],
            seconds: &[],
            steps_known: true,
            shared: &[],
        };
        let soft = json!({ "soft_fail": true, "notify": ["github_commit_status"] });
        let of_plugin = RecordingRequest {
            summary: true,
            summary_fails: true,
            notify_statuses: true,
            step: soft.as_object().unwrap().clone(),
            ..request()
        };
        let of_command = RecordingRequest {
            emit: Emit::Command,
            ..of_plugin.clone()
        };
        for (request, name, value) in [
            (
                &of_plugin,
                "plugins",
                json!([{ "your-org/eval-once#v1": { "summary": "fail" } }]),
            ),
            (&of_command, "command", json!("eval-once summary --fail")),
        ] {
            let steps = steps(&records, request, schema()).unwrap();
            let steps = values(&steps);
            let last = steps.last().unwrap();
            assert_eq!((&last[name], last.get("soft_fail")), (&value, None));
            let mut contexts: Vec<&Value> = steps
                .iter()
                .map(|step| {
                    let own = step["notify"].as_array().unwrap().last().unwrap();
                    &own["github_commit_status"]["context"]
                })
                .collect();
            contexts.sort_by_key(ToString::to_string);
            assert_eq!(
                json!(contexts),
                json!([
                    "eval-once",
                    "eval-once/p.0",
                    "eval-once/p.bad",
                    "eval-once/p.t1"
                ])
            );
            assert_eq!(steps[0]["notify"][0], "github_commit_status");
        }
    }

    #[test]
    fn a_summary_is_one_of_the_jobs_that_a_build_can_have() {
        let targets: Vec<_> = (0..JOBS_PER_BUILD - 1)
            .map(|i| target(i, &["p", &i.to_string()]))
            .collect();
        let edges = no_edges(&targets);
        let request = RecordingRequest {
            summary: true,
            ..request()
        };
        let steps = make(&targets, &edges, &[], &request).unwrap();
        assert!(Excess::of(&steps, &targets, &request).is_some());
        let mut skip = vec![None; targets.len()];
        skip[7] = Some("a cache has it".into());
        let steps = make(&targets, &edges, &skip, &request).unwrap();
        assert_eq!((steps.steps.len(), steps.omitted), (JOBS_PER_BUILD - 1, 1));
        let last = &steps.steps.last().unwrap().step;
        assert!(last.key.starts_with("summary-"));
        assert_eq!(last.depends_on.len(), JOBS_PER_BUILD - 2);
    }
}
