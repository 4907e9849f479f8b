//! From records to steps: a pure function.
//!
//! What repositories choose (names, metadata) and what users configure meets here, and the result has to be a pipeline that
//! Buildkite takes: a step that would get its upload rejected is found here, and is red instead.

mod batches;
mod building;
mod checkout;
mod circles;
mod commit_status;
mod error_steps;
mod fallback;
#[cfg(test)]
mod fixtures;
mod follower;
mod labels;
mod maker;
mod record;
mod retry;
mod step_key;
mod summary_step;
mod target_steps;
mod variables;
mod wishes;

use std::collections::{BTreeSet, HashSet};

use self::building::{Building, drafts, wait_first};
use self::error_steps::{error_steps, expected_steps};
use self::follower::{After, FollowerStep, needs_output};
use self::maker::StepMaker;
use self::record::add_to_record;
use self::summary_step::drop_missing_dependencies;
use super::edges::Edges;
use super::limits::fit;
use super::placed_step::PlacedStep;
use serde::Serialize;

use crate::buildkite::pipeline::Dependency;
use crate::buildkite::schema::Schema;
use crate::counts::RecordingCounts;
use crate::exit::Failure;
use crate::keys::Keys;
use crate::nix::{AttrPath, DrvPath};
use crate::recording::errors::ErrorLists;
use crate::recording::{AttrError, RecordingRequest, Target};
use crate::secrets::redacted;

pub(super) use self::labels::group;
pub(in crate::recording) use self::record::{share_keys, source};
pub(crate) use self::step_key::error_key;
pub(in crate::recording) use self::step_key::{StepKeys, key_area};

/// The findings of an evaluation.
#[derive(Debug, Clone, Copy)]
pub(in crate::recording) struct Records<'a> {
    /// The targets.
    pub(in crate::recording) targets: &'a [Target],
    /// The derivations that have a step because several targets need them, as targets without an attribute.
    pub(in crate::recording) shared: &'a [Target],
    /// The attributes with an error. The refused ones evaluate: a step that evaluates them again would find no error, so their
    /// steps only say what is wrong.
    pub(in crate::recording) errors: &'a ErrorLists,
    /// The derivations that can be called as well: their steps must not call them.
    pub(in crate::recording) callable: &'a BTreeSet<AttrPath>,
    /// The edges between the targets and, behind them, the shared derivations.
    pub(in crate::recording) edges: &'a Edges,
    /// For each target, why it needs no build, if it needs none.
    pub(in crate::recording) skip: &'a [Option<String>],
    /// For each target, how long it took in the base, in seconds, where that is known.
    pub(in crate::recording) seconds: &'a [Option<f64>],
    /// Whether all steps of the targets that the build has are of this pipeline. Others may wait for less than its steps would, or for
    /// nothing: those of the phase `build`, which another recording has made, and those of a try whose plan is not followed.
    pub(in crate::recording) steps_known: bool,
}

/// The pipeline of a recording.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::recording) struct PlannedPipeline {
    /// The steps to upload, in topological order; those of errors first, and those of expected errors last.
    pub(in crate::recording) steps: Vec<PlacedStep>,
    /// The place of each target in the pipeline, in the order of the records.
    pub(in crate::recording) targets: Vec<TargetStep>,
    /// The steps of shared derivations.
    pub(in crate::recording) shared: Vec<SharedStep>,
    /// The steps that follow targets.
    pub(in crate::recording) followers: Vec<PlannedFollower>,
    /// The keys of all steps.
    pub(in crate::recording) keys: StepKeys,
    /// The errors of the records. The last of the refused are the targets whose own metadata makes no step that Buildkite would
    /// take.
    pub(in crate::recording) errors: ErrorLists,
    /// The number of skipped steps that are omitted because a build cannot have so many jobs.
    pub(in crate::recording) omitted: usize,
}

/// The place of a target in the pipeline.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::recording) struct TargetStep {
    /// The key of its step.
    pub(in crate::recording) key: String,
    /// The keys of the steps that it waits for because of its `.drv`.
    pub(in crate::recording) depends_on: Vec<String>,
    /// Why its step is skipped or omitted, if it is.
    pub(in crate::recording) skip: Option<String>,
    /// The key under which its report is saved, where that is not its step's: it is one of a batch.
    pub(in crate::recording) report: Option<String>,
    /// How long it took in the base, in seconds, where that is known.
    pub(in crate::recording) seconds: Option<f64>,
    /// Whether it runs whatever the steps did that it waits for.
    pub(in crate::recording) runs_anyway: bool,
}

/// A step of a derivation that several targets need, as `eval-once.json` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(in crate::recording) struct SharedStep {
    /// The derivation's name.
    pub(super) name: String,
    /// Its `.drv`.
    pub(super) drv: DrvPath,
    /// The key of its step.
    pub(super) key: String,
    /// The keys of the steps that it waits for.
    pub(super) depends_on: Vec<String>,
}

/// A step that follows a target, as `eval-once.json` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(in crate::recording) struct PlannedFollower {
    /// The attribute of the target.
    attr: AttrPath,
    /// Its name there.
    name: String,
    /// The key of its step.
    key: String,
    /// The key of the question before it.
    confirm: Option<String>,
    /// The `.drv` that it runs.
    run: Option<DrvPath>,
}

/// Checks a user's wishes for every step, before anything is evaluated.
///
/// # Errors
/// The user's `step` or `agents` make no step that Buildkite would take, or the expression is too large to be in every step
/// (64).
pub(in crate::recording) fn check(
    request: &RecordingRequest,
    schema: &Schema,
) -> Result<(), Failure> {
    StepMaker::new(request, schema).map(drop)
}

/// Makes the steps, also where they are more than a build can have. Whether any [`PlannedPipeline::errors`] fail the recording (`on-error: fail`) is the caller's decision.
///
/// # Errors
/// The user's `step` or `agents` make no step that Buildkite would take, or the expression is too large to be in every step (64).
pub(in crate::recording) fn steps(
    records: &Records<'_>,
    request: &RecordingRequest,
    schema: &Schema,
) -> Result<PlannedPipeline, Failure> {
    let keys = StepKeys::new(records.targets, records.errors, request);
    let maker = StepMaker::new(request, schema)?;
    let maker = maker.with_targets(records, keys)?;
    let mut errors = records.errors.clone();

    let drafts = drafts(records, &maker, &mut errors.refused)?;
    let mut building = Building::new(records, drafts, &maker, &maker.keys, request);

    let red = error_steps(&maker, &errors, request)?;
    let behind_all = building.behind_all(&red);
    let mut planned = if request.phases.build {
        red
    } else {
        Vec::new()
    };
    let mut followers = Vec::new();
    let mut last = Vec::new();
    for i in building.order() {
        planned.extend(building.step(i)?);
        let Some(target) = records.targets.get(i) else {
            continue;
        };
        if !request.phases.release {
            continue;
        }
        let own_key = building.waited_for(i);
        for follower in &target.followers {
            match maker.follower(target, follower) {
                Ok(step) if step.unless_skipped && building.is_skipped(i) => {}
                Ok(step) => {
                    followers.push(PlannedFollower {
                        attr: follower.owner.clone(),
                        name: follower.meta.name.clone(),
                        key: step.step.key.clone(),
                        confirm: step.confirm.as_ref().map(|block| block.key.clone()),
                        run: follower.meta.run().map(|run| run.drv.clone()),
                    });
                    let steps = match step.after {
                        After::All => &mut last,
                        After::Target | After::Nothing => &mut planned,
                    };
                    let group = group(&target.attr, request.group_by);
                    steps.push(follower_step(step, own_key, &behind_all, group));
                }
                Err(message) => {
                    let error = AttrError {
                        attr: follower.attr(),
                        message: Some(redacted(&message).into_owned()),
                    };
                    planned.push(PlacedStep::new(maker.refused(&error)?, None));
                    errors.refused.push(error);
                }
            }
        }
    }
    planned.extend(last);
    if request.phases.build {
        planned.extend(expected_steps(&maker, &errors, request)?);
    }
    if request.summary {
        let behind: HashSet<&str> = followers.iter().map(|it| it.key.as_str()).collect();
        let waits = |planned: &&PlacedStep| !behind.contains(planned.step.key.as_str());
        let step = maker.summary(planned.iter().filter(waits))?;
        planned.push(PlacedStep::new(step, None));
    }
    let (mut steps, omitted) = fit(planned, request.chunk);
    if request.summary {
        drop_missing_dependencies(&mut steps);
    }
    let (targets, shared) = building.into_places();
    Ok(PlannedPipeline {
        steps,
        targets,
        shared,
        followers,
        keys: maker.keys,
        errors,
        omitted,
    })
}

/// A step that follows a target, in its place. A target that is skipped has its outputs somewhere, or none are wanted, so that it has
/// no key that is waited for.
fn follower_step(
    follower: FollowerStep,
    target: Option<&str>,
    behind_all: &[String],
    group: Option<String>,
) -> PlacedStep {
    let waits: Vec<&str> = match follower.after {
        After::Target => target.into_iter().collect(),
        After::All => behind_all.iter().map(String::as_str).collect(),
        After::Nothing => Vec::new(),
    };
    let allow_failure = follower.always.then(|| true.into());
    let waits: Vec<Dependency> = waits
        .into_iter()
        .map(|key| match &allow_failure {
            None => Dependency::Key(key.to_owned()),
            Some(_) => Dependency::Step {
                step: key.to_owned(),
                allow_failure: allow_failure.clone(),
            },
        })
        .collect();
    let FollowerStep {
        mut step,
        mut confirm,
        ..
    } = follower;
    wait_first(&mut step.depends_on, waits);
    let mut group = group;
    if let Some(block) = &mut confirm {
        // It is asked when nothing else is waited for.
        block.depends_on.clone_from(&step.depends_on);
        step.depends_on.push(Dependency::Key(block.key.clone()));
        group = Some(step.label.clone());
    }
    PlacedStep {
        confirm,
        ..PlacedStep::new(step, group)
    }
}

impl PlannedPipeline {
    /// Counts what was recorded, of these `targets`.
    pub(in crate::recording) fn counts(&self, targets: &[Target]) -> RecordingCounts {
        let refused = self.errors.refused.iter();
        let refused: HashSet<&AttrPath> = refused.map(|error| &error.attr).collect();
        let attributes = targets.iter().map(|target| 1 + target.also.len());
        // A target that is refused is in both lists.
        let refused_targets = targets
            .iter()
            .filter(|target| refused.contains(&target.attr))
            .count();
        // A step that follows a target is no attribute that was walked.
        let refused_steps = self.errors.refused.iter();
        let refused_steps = refused_steps.filter(|it| self.keys.is_follower(&it.attr));
        let known = refused_targets + refused_steps.count();
        RecordingCounts {
            attributes: attributes.sum::<usize>() + self.errors.len() - known,
            targets: targets.len() - refused_targets,
            evaluation_errors: self.errors.evaluation.len(),
            expected_errors: self.errors.expected.len(),
            refused: self.errors.refused.len(),
        }
    }

    /// The errors of these records' targets, which are refused because of their own metadata.
    pub(in crate::recording) fn refused_targets(&self, records: &Records<'_>) -> &[AttrError] {
        let before = records.errors.refused.len();
        self.errors.refused.get(before..).unwrap_or_default()
    }

    /// The `.drv`s of these targets and of what follows them that a step needs which may run.
    pub(in crate::recording) fn drvs_of_steps<'t>(
        &self,
        targets: &'t [Target],
    ) -> Vec<&'t DrvPath> {
        let running: HashSet<&str> = self
            .steps
            .iter()
            .filter(|planned| planned.step.may_run())
            .map(|planned| planned.step.key.as_str())
            .collect();
        let runs = |key: String| running.contains(key.as_str());
        let refused = self.errors.refused.iter();
        let refused: HashSet<&AttrPath> = refused.map(|error| &error.attr).collect();
        let mut drvs = BTreeSet::new();
        for (target, step) in targets.iter().zip(&self.targets) {
            // Its red step may have the target's key.
            let realises = !refused.contains(&target.attr);
            let batch = step.report.is_some().then(|| step.key.clone());
            if realises && runs(batch.unwrap_or_else(|| self.keys.target(target))) {
                drvs.insert(&target.drv);
            }
            for follower in &target.followers {
                if !runs(self.keys.follower(&follower.attr()).0) {
                    continue;
                }
                drvs.extend(follower.meta.run().map(|run| &run.drv));
                drvs.extend(needs_output(follower).then_some(&target.drv));
            }
        }
        drvs.into_iter().collect()
    }

    /// Adds these keys to the records of those steps.
    ///
    /// # Errors
    /// A record cannot be read: a bug (70).
    pub(in crate::recording) fn add_to_records(&mut self, keys: &Keys) -> Result<(), Failure> {
        let mut steps = self.steps.iter_mut();
        steps.try_for_each(|planned| {
            if planned.step.may_run() {
                add_to_record(&mut planned.step, keys)
            } else {
                Ok(())
            }
        })
    }

    /// The number of steps that are commands and have plugins of their own. An agent runs the command hook of a plugin instead of
    /// ours, so such a step may build nothing.
    pub(in crate::recording) fn commands_with_plugins(&self) -> usize {
        let with_plugins = self.steps.iter().filter(|planned| {
            let step = &planned.step;
            step.env.contains_key("EVAL_ONCE_STEP") && !step.plugins.is_empty()
        });
        with_plugins.count()
    }
}

#[cfg(test)]
mod tests {
    use super::fixtures::{anything, key, make, one_error, record_of, values};
    use super::*;
    use crate::exit::Class;
    use crate::nix::{Source, StoreUrl};
    use crate::recording::pipeline::excess::Excess;
    use crate::recording::pipeline::fixtures::*;
    use crate::recording::pipeline::limits::VARIABLE_AT_MOST;
    use crate::recording::pipeline::placed_step;
    use crate::recording::{Emit, SkipStyle};

    use crate::share_keys::Share;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    #[test]
    fn the_share_is_in_the_records_of_those_targets_whose_steps_may_run() {
        for emit in [Emit::Command, request().emit] {
            let request = RecordingRequest { emit, ..request() };
            let targets = [
                target(0, &["runs"]),
                target(1, &["skipped"]),
                target_wishing(2, &json!({ "comand": "refused" })),
                target_wishing(3, &json!({ "skip": true })),
                target_wishing(4, &json!({ "skip": false, "plugins": ["docker#v5"] })),
            ];
            let skip = [None, Some("there".to_owned()), None, None, None];
            let edges = no_edges(&targets);
            let mut steps = make(&targets, &edges, &skip, &request).unwrap();
            let drvs: Vec<_> = steps.drvs_of_steps(&targets).into_iter().collect();
            assert_eq!(drvs, [&targets[0].drv, &targets[4].drv]);
            let share = Share::Artifact("a.tar".into());
            let before: Vec<_> = values(&steps).iter().map(record_of).collect();
            steps
                .add_to_records(&share_keys(&share, Some(7), 9))
                .unwrap();
            let added =
                keys(&json!({ "share": "artifact:a.tar", "share-size": 7, "keep-days": 9 }));
            for (mut before, step) in before.into_iter().zip(values(&steps)) {
                let runs = step["label"] == ":nix: runs" || step["label"] == ":nix: p.t4";
                if runs {
                    before.extend(added.clone());
                }
                assert_eq!(record_of(&step), before, "{step}");
            }
        }
    }

    #[test]
    fn a_step_finds_a_store_by_its_url_alone_and_keeps_what_it_unpacks_as_long_as_it_is_told() {
        let url = Share::Store(StoreUrl::parse("file:///cache").unwrap());
        assert_eq!(
            share_keys(&url, None, 9),
            keys(&json!({ "share": "file:///cache" }))
        );
        let artifact = Share::Artifact("a.tar".into());
        let expected = keys(&json!({ "share": "artifact:a.tar", "share-size": 7 }));
        assert_eq!(share_keys(&artifact, Some(7), 3), expected);
    }

    #[test]
    fn a_target_with_a_wrong_wish_has_an_error_step() {
        for (buildkite, sentence) in [
            (json!({ "comand": "x" }), "`comand` is not a property"),
            (json!({ "key": "mine" }), "`key` cannot be set"),
            (json!({ "id": "mine" }), "`id` cannot be set"),
            (
                json!({ "env": { "EVAL_ONCE_STEP": "{}" } }),
                "`env.EVAL_ONCE_STEP` cannot be set",
            ),
            (
                json!({ "plugins": ["your-org/eval-once#v2"] }),
                "`plugins` names your-org/eval-once#v2",
            ),
            (
                json!({ "plugins": [{ "https://x/eval-once-buildkite-plugin.git#v2": {} }] }),
                "cannot be changed",
            ),
            (json!({ "plugins": "x" }), "`plugins` is \"x\""),
            (json!({ "depends_on": 5 }), "`depends_on` is 5"),
            (
                json!({ "label": "a", "name": "b" }),
                "`name` is another word for `label`",
            ),
            (
                json!({ "timeout_in_minutes": null }),
                "`timeout_in_minutes` is null",
            ),
            (json!({ "skip": "x".repeat(71) }), "at most 70 characters"),
            (json!({ "parallelism": 501 }), "501 jobs"),
        ] {
            let targets = [
                target(0, &["a"]),
                target_wishing(1, &buildkite),
                target(2, &["c"]),
            ];
            let edges = edges_between(&targets, &[(0, 1), (1, 2)]);
            let request =
                request_wishing(&json!({ "agents": { "queue": "q" }, "command": "make" }));
            let steps = make(&targets, &edges, &[], &request).unwrap();
            assert_eq!(steps.errors.len(), 1, "{buildkite}");
            let message = steps.errors.refused[0].message.clone().unwrap();
            assert!(message.contains(sentence), "{buildkite}: {message}");
            assert_eq!(steps.errors.refused[0].attr, targets[1].attr);
            assert_eq!(steps.targets[1].key, error_key(&targets[1].attr));
            assert_eq!(
                steps.targets[0].depends_on,
                [key(&targets[2])],
                "through it"
            );
            let steps = values(&steps);
            let error = &steps[0];
            assert_eq!(error["key"], error_key(&targets[1].attr));
            assert_eq!(error["label"], ":boom: p.t1");
            let refused = record_of(error)["refused"].clone();
            assert!(refused.as_str().unwrap().contains(sentence), "{refused}");
            assert!(error.get("command").is_none());
            assert_eq!(error["agents"], json!({ "queue": "q" }));
            assert_eq!(steps[1]["key"], key(&targets[2]));
            assert_eq!(steps[2]["depends_on"], json!([key(&targets[2])]));
        }
    }

    #[test]
    fn a_wrong_wish_in_the_configuration_is_refused_at_once() {
        for (step, sentence) in [
            (json!({ "comand": "x" }), "in the key `step`, `comand`"),
            (json!({ "key": "x" }), "in the key `step`, `key`"),
        ] {
            let failure = make(&[], &no_edges(&[]), &[], &request_wishing(&step)).unwrap_err();
            assert_eq!(failure.class, Class::Config);
            assert!(failure.to_string().contains(sentence), "{failure}");
        }
        let mut request = request();
        let tags = json!({ "queue": ["a"] });
        request
            .agents
            .insert("x".into(), tags.as_object().unwrap().clone());
        let failure = make(&[], &no_edges(&[]), &[], &request).unwrap_err();
        assert!(failure.to_string().contains("`agents.x`"), "{failure}");
        request.agents.clear();
        request.root.source = Source::Expr("x".repeat(VARIABLE_AT_MOST));
        let failure = make(&[], &no_edges(&[]), &[], &request).unwrap_err();
        assert!(failure.to_string().contains("bytes"), "{failure}");
        for step in [
            json!({ "plugins": [{ "docker#v5": "x".repeat(VARIABLE_AT_MOST / 2) }] }),
            json!({ "env": { "A": "x".repeat(VARIABLE_AT_MOST + 1) } }),
        ] {
            let failure = make(&[], &no_edges(&[]), &[], &request_wishing(&step)).unwrap_err();
            assert!(failure.to_string().contains("bytes"), "{failure}");
        }
    }

    #[test]
    fn what_no_job_can_be_passed_refuses_its_target_alone() {
        let long = "x".repeat(VARIABLE_AT_MOST / 2);
        let plugin = json!([{ "docker#v5": { "image": long } }]);
        let expr = Source::Expr("y".repeat(VARIABLE_AT_MOST / 2 - 200));
        let targets = [
            target_wishing(0, &json!({ "plugins": plugin })),
            target(1, &["b"]),
        ];
        let errors = one_error(&["c"]);
        for emit in [Emit::Command, request().emit] {
            let mut request = RecordingRequest { emit, ..request() };
            request.root.source = expr.clone();
            let records = Records {
                targets: &targets,
                errors: &errors,
                callable: &BTreeSet::new(),
                edges: &no_edges(&targets),
                skip: &[],
                seconds: &[],
                steps_known: true,
                shared: &[],
            };
            let planned = steps(&records, &request, schema()).unwrap();
            let is_plugin = matches!(request.emit, Emit::Plugin(_));
            let refused: Vec<_> = planned.errors.refused.iter().map(|it| &it.attr).collect();
            let expected: Vec<_> = [&targets[0].attr]
                .into_iter()
                .filter(|_| is_plugin)
                .collect();
            assert_eq!(
                refused, expected,
                "its own plugin and the record are in one variable"
            );
            for planned in &planned.steps {
                assert_eq!(variables::fit(&planned.step), Ok(()));
            }
        }
    }

    #[test]
    fn what_several_targets_need_has_a_step_that_they_wait_for_and_that_never_evaluates() {
        for emit in [Emit::Command, request().emit] {
            let targets: Vec<Target> = (0..3)
                .map(|i| target(i, &["p", &format!("t{i}")]))
                .collect();
            let mut shared = target(7, &[]);
            shared.name = "zlib-1.3.1".into();
            shared.system = "aarch64-linux".into();
            let nodes: Vec<Target> = targets.iter().chain([&shared]).cloned().collect();
            // The first and the second need it, and it needs the third.
            let edges = edges_between(&nodes, &[(0, 7), (1, 7), (7, 2)]);
            let records = Records {
                targets: &targets,
                shared: std::slice::from_ref(&shared),
                errors: &ErrorLists::default(),
                callable: &BTreeSet::new(),
                edges: &edges,
                skip: &[],
                seconds: &[],
                steps_known: true,
            };
            let request = RecordingRequest {
                emit,
                summary: true,
                agents: BTreeMap::from([(
                    "aarch64-linux".into(),
                    keys(&json!({ "queue": "arm" })),
                )]),
                ..request_wishing(
                    &json!({ "command": "test", "priority": 1, "soft_fail": [{ "exit_status": 7 }] }),
                )
            };
            let planned = steps(&records, &request, schema()).unwrap();
            let made = values(&planned);
            let keys: Vec<&str> = made
                .iter()
                .map(|step| step["key"].as_str().unwrap())
                .collect();
            let shared_key = format!("shared-{}", shared.drv.as_store_path().hash());
            assert_eq!(keys[..2], [key(&targets[2]), shared_key.clone()]);
            let step = &made[1];
            assert_eq!(step["label"], ":nix: zlib-1.3.1 (shared)");
            assert_eq!(step["agents"], json!({ "queue": "arm" }));
            assert_eq!(step["priority"], 1);
            assert_eq!(
                step["soft_fail"],
                json!([{ "exit_status": 7 }, { "exit_status": 75 }])
            );
            assert_eq!(step["depends_on"], json!([key(&targets[2])]));
            let command = step.get("command").cloned();
            assert!(command.is_none() || command == Some(json!("eval-once step")));
            let record = Value::Object(record_of(step));
            let expected = json!({
                "drv": shared.drv.as_store_path().as_str(), "options": { "cores": "2" },
                "outputs": { "out": shared.outputs["out"].as_str() }, "out-link": false
            });
            assert_eq!(record, expected);
            for target in &targets[..2] {
                let step = made.iter().find(|step| step["key"] == key(target)).unwrap();
                assert_eq!(step["depends_on"], json!([shared_key]));
            }
            assert_eq!(planned.targets.len(), 3);
            assert_eq!(planned.shared[0].key, shared_key);
        }
    }

    #[test]
    fn no_step_waits_for_a_skipped_target() {
        let targets = [target(0, &["a"]), target(1, &["b"]), target(2, &["c"])];
        let edges = edges_between(&targets, &[(0, 1), (1, 2)]);
        let skip = [None, Some("already built".to_owned()), None];
        let steps = make(&targets, &edges, &skip, &request()).unwrap();
        assert_eq!(steps.targets[1].skip.as_deref(), Some("already built"));
        assert!(steps.targets[1].depends_on.is_empty());
        let marked = values(&steps);
        assert_eq!(marked[1]["skip"], "already built");
        assert_eq!(marked[2]["depends_on"], json!([key(&targets[2])]));
        let request = RecordingRequest {
            skip_style: SkipStyle::Omit,
            ..request()
        };
        let steps = make(&targets, &edges, &skip, &request).unwrap();
        assert_eq!((steps.steps.len(), steps.omitted), (2, 0));
    }

    #[test]
    fn a_skipped_step_that_runs_ends_at_once_and_only_the_summary_waits_for_it() {
        for emit in [Emit::Command, request().emit] {
            let targets = [
                target(0, &["a"]),
                target(1, &["b"]),
                target(2, &["c"]),
                target_wishing(3, &json!({ "command": "test" })),
                target_wishing(4, &json!({ "skip": "because" })),
            ];
            let edges = edges_between(&targets, &[(0, 1), (1, 2)]);
            let built = || Some("already built here".to_owned());
            let skip = [None, built(), None, built(), built()];
            let request = RecordingRequest {
                emit,
                summary: true,
                skip_style: SkipStyle::Run,
                ..request()
            };
            let steps = make(&targets, &edges, &skip, &request).unwrap();
            let reasons: Vec<_> = steps.targets.iter().map(|it| it.skip.as_deref()).collect();
            let expected = [None, Some("already built here"), None, None, None];
            assert_eq!(reasons, expected);
            let by_key: BTreeMap<_, _> = values(&steps)
                .into_iter()
                .map(|step| (step["key"].as_str().unwrap().to_owned(), step))
                .collect();
            let step = |i: usize| &by_key[&key(&targets[i])];
            assert!(step(1).get("skip").is_none());
            assert_eq!(record_of(step(1))["skip"], true);
            for i in [0, 2, 3, 4] {
                assert!(!record_of(step(i)).contains_key("skip"), "{i}");
            }
            assert_eq!(step(4)["skip"], "because");
            assert_eq!(step(1)["depends_on"], json!([]));
            assert_eq!(
                step(0)["depends_on"],
                json!([key(&targets[2])]),
                "through it"
            );
            let last = &values(&steps)[5];
            let awaited = json!({ "step": key(&targets[1]), "allow_failure": true });
            assert!(
                last["depends_on"].as_array().unwrap().contains(&awaited),
                "{last}"
            );
        }
    }

    #[test]
    fn the_limit_of_a_build_omits_skipped_steps_and_no_others() {
        let targets: Vec<_> = (0..4_100)
            .map(|i| target(i, &["g", &format!("t{i}")]))
            .collect();
        let edges = no_edges(&targets);
        let reason = |i: usize| i.is_multiple_of(2).then(|| "built".to_owned());
        let skip: Vec<_> = (0..targets.len()).map(reason).collect();
        let steps = make(&targets, &edges, &skip, &request()).unwrap();
        assert_eq!((steps.steps.len(), steps.omitted), (3_999, 101));
        assert_eq!(
            steps.steps.iter().filter(|step| !step.skipped).count(),
            2_050
        );
        let grouped = RecordingRequest {
            group_by: 1,
            ..request()
        };
        let steps = make(&targets, &edges, &skip, &grouped).unwrap();
        let groups = steps.steps.len().div_ceil(100);
        assert!((3_990..=3_999).contains(&(steps.steps.len() + groups)));
        // Where skipped steps are not enough, all are made, to be shown.
        let steps = make(&targets, &edges, &[], &request()).unwrap();
        assert_eq!((steps.steps.len(), steps.omitted), (4_100, 0));
        let excess = Excess::of(&steps, &targets, &request()).unwrap();
        assert_eq!(excess.failure().class, Class::Config);
        assert!(excess.to_string().contains("4100 jobs"), "{excess}");
    }

    #[test]
    fn groups_are_named_by_the_first_names() {
        let targets = [
            target(0, &["a", "b", "c"]),
            target(1, &["a", "b"]),
            target(2, &["a", "b", "d"]),
        ];
        let request = RecordingRequest {
            group_by: 2,
            ..request()
        };
        let steps = make(&targets, &no_edges(&targets), &[], &request).unwrap();
        let groups: Vec<_> = steps
            .steps
            .iter()
            .map(|step| step.group.as_deref())
            .collect();
        assert_eq!(groups, [Some(":nix: a.b"), None, Some(":nix: a.b")]);
    }

    proptest! {
        #[test]
        fn with_any_wishes_of_targets_the_pipeline_is_valid(
            wishes in proptest::collection::vec(anything(), 1..6),
            skipped in any::<u8>(),
            command in any::<bool>(),
        ) {
            let targets: Vec<_> = wishes.iter().enumerate().map(|(i, wish)| target_wishing(i, wish)).collect();
            let pairs: Vec<_> = (1..targets.len()).map(|i| (i, i - 1)).collect();
            let edges = edges_between(&targets, &pairs);
            let skip: Vec<_> = (0..targets.len()).map(|i| (skipped >> i & 1 == 1).then(|| "built".to_owned())).collect();
            let mut request = RecordingRequest { group_by: 1, ..request() };
            if command {
                request.emit = Emit::Command;
            }
            let steps = make(&targets, &edges, &skip, &request).unwrap();
            let document = placed_step::json(&steps.steps).unwrap();
            let read: Value = serde_yaml_ng::from_str(&document).unwrap();
            prop_assert_eq!(&read, &serde_json::from_str::<Value>(&document).unwrap());
            prop_assert_eq!(schema().check_pipeline(&read), Ok(()));
            let keys: BTreeSet<_> = steps.steps.iter().map(|step| step.step.key.clone()).collect();
            prop_assert_eq!(keys.len(), targets.len());
            for (target, step) in targets.iter().zip(&steps.targets) {
                prop_assert!(keys.contains(&step.key));
                prop_assert!(step.depends_on.iter().all(|key| keys.contains(key)));
                if step.key == key(target) {
                    let planned = steps.steps.iter().find(|planned| planned.step.key == step.key).unwrap();
                    let record = record_of(&serde_json::to_value(&planned.step).unwrap());
                    prop_assert_eq!(&record["drv"], target.drv.as_store_path().as_str());
                }
            }
        }
    }
}
