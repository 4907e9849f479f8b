//! From records to steps: a pure function.
//!
//! What repositories choose (names, metadata) and what users configure meets here, and the result has to be a pipeline that
//! Buildkite takes: a step that would get its upload rejected is found here, and is red instead.

mod batches;
mod building;
mod checkout;
mod commit_status;
mod fallback;
#[cfg(test)]
mod fixtures;
mod follower;
mod labels;
mod maker;
mod record;
mod retry;
mod step_key;
mod wishes;

use std::collections::{BTreeSet, HashSet};

use self::building::{Building, drafts, wait_first};
use self::follower::{After, FollowerStep, needs_output};
use self::maker::StepMaker;
use self::record::add_to_record;
use super::edges::Edges;
use super::limits::fit;
use super::placed_step::PlacedStep;
use serde::Serialize;

use crate::buildkite::pipeline::{CommandStep, Dependency};
use crate::buildkite::schema::Schema;
use crate::counts::RecordingCounts;
use crate::exit::Failure;
use crate::keys::Keys;
use crate::nix::{AttrPath, DrvPath};
use crate::recording::errors::ErrorLists;
use crate::recording::{AttrError, OnError, RecordingRequest, SkipStyle, Target};
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
    let maker = maker.with_targets(records.targets, records.callable, &keys);
    let mut errors = records.errors.clone();

    let drafts = drafts(records, &maker, &mut errors.refused)?;
    let mut building = Building::new(records, drafts, &maker, &keys, request);

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
        let own_key = (!building.is_skipped(i)).then(|| building.place(i).key.as_str());
        for follower in &target.followers {
            match maker.follower(target, follower) {
                Ok(step) if step.unless_skipped && own_key.is_none() => {}
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
        keys,
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

/// One step for each attribute with an error that is to be seen: of the evaluation errors, unless they are only reported; of the
/// refused.
fn error_steps(
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
fn expected_steps(
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

/// Drops, from the last step, which is the summary's, the dependencies on omitted steps: Buildkite fails a build with a step that
/// waits for a step that never comes.
fn drop_missing_dependencies(steps: &mut [PlacedStep]) {
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
    use super::fixtures::{anything, key, make, record_of, values};
    use super::*;
    use crate::exit::Class;
    use crate::nix::{Source, StoreUrl};
    use crate::recording::Emit;
    use crate::recording::pipeline::excess::Excess;
    use crate::recording::pipeline::fixtures::*;
    use crate::recording::pipeline::limits::{JOBS_PER_BUILD, RECORD_AT_MOST};
    use crate::recording::pipeline::placed_step;
    use crate::recording::pipeline::steps::retry::retry_rules;
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
        request.root.source = Source::Expr("x".repeat(RECORD_AT_MOST));
        let failure = make(&[], &no_edges(&[]), &[], &request).unwrap_err();
        assert!(failure.to_string().contains("bytes"), "{failure}");
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

    /// The pipeline of these targets with batches of those that take less than 10 s.
    fn in_batches(
        targets: &[Target],
        edges: &Edges,
        seconds: &[Option<f64>],
        request: &RecordingRequest,
    ) -> PlannedPipeline {
        let records = Records {
            targets,
            errors: &ErrorLists::default(),
            callable: &BTreeSet::new(),
            edges,
            skip: &[],
            seconds,
            shared: &[],
        };
        let request = RecordingRequest {
            base: Some("eval-once.json".into()),
            batch: Some(std::time::Duration::from_secs(10)),
            ..request.clone()
        };
        // Whatever waits for the batches, what follows everything waits for them too: a batch that is red keeps nothing else from running.
        let maker = StepMaker::new(&request, schema()).unwrap();
        let keys = StepKeys::default();
        let mut refused = Vec::new();
        let drafts = drafts(&records, &maker, &mut refused).unwrap();
        let building = Building::new(&records, drafts, &maker, &keys, &request);
        let behind = building.behind_all(&[]);
        let planned = steps(&records, &request, schema()).unwrap();
        for target in planned.targets.iter().filter(|it| it.report.is_some()) {
            assert!(behind.contains(&target.key), "{behind:?}");
        }
        planned
    }

    #[test]
    fn short_targets_are_built_by_one_step_and_only_their_own_dependents_suffer() {
        for emit in [Emit::Command, request().emit] {
            let request = RecordingRequest { emit, ..request() };
            // 0 is slow; 1 to 3 depend on it, 4 on 1; 5 has wishes, 6 is new, 7 is slow.
            let mut targets: Vec<Target> = (0..8)
                .map(|i| target(i, &["p", &format!("t{i}")]))
                .collect();
            targets[5] = target_building(5, &json!({ "log": "raw" }));
            targets[2].meta.max_silent = Some(60);
            let pairs = [(1, 0), (2, 0), (3, 0), (4, 1), (5, 0), (7, 3)];
            let edges = edges_between(&targets, &pairs);
            let seconds = [99.0, 1.0, 9.9, 0.0, 2.0, 1.0].map(Some).into_iter();
            let seconds: Vec<_> = seconds.chain([None, Some(10.0)]).collect();
            let steps = in_batches(&targets, &edges, &seconds, &request);
            let planned = values(&steps);
            assert_eq!(planned.len(), 6);
            let batch = planned
                .iter()
                .find(|it| it["key"].as_str().unwrap().starts_with("batch-"))
                .unwrap();
            assert_eq!(batch["label"], ":nix: p.t1 and 2 more");
            assert_eq!(batch["depends_on"], json!([key(&targets[0])]));
            let record = record_of(batch);
            assert_eq!(record["file"], "ci.nix");
            assert_eq!(record["out-link"], false);
            assert!(!record.contains_key("drv") && !record.contains_key("attr"));
            let own = record["targets"].as_array().unwrap();
            assert_eq!(own.len(), 3);
            for (own, target) in own.iter().zip(&targets[1..4]) {
                assert_eq!(own["drv"], target.drv.as_store_path().as_str());
                assert_eq!(
                    (&own["attr"], &own["key"]),
                    (&json!(target.attr), &json!(key(target)))
                );
                assert!(own.get("file").is_none());
            }
            assert_eq!(own[1]["options"]["max-silent-time"], 60);
            // What needs one of its targets runs whatever the others did.
            let above = planned
                .iter()
                .find(|it| it["key"] == key(&targets[4]))
                .unwrap();
            assert_eq!(
                above["depends_on"],
                json!([{ "step": batch["key"], "allow_failure": true }])
            );
            assert_eq!(steps.targets[1].key, batch["key"].as_str().unwrap());
            assert_eq!(steps.targets[1].report, Some(key(&targets[1])));
            assert_eq!(
                (&steps.targets[0].report, steps.targets[6].seconds),
                (&None, None)
            );
            assert_eq!(steps.drvs_of_steps(&targets).len(), 8);
            let mut with_share = steps.clone();
            let share = Share::Artifact("a.tar".into());
            with_share
                .add_to_records(&share_keys(&share, None, 3))
                .unwrap();
            let all = values(&with_share);
            assert!(
                all.iter()
                    .all(|step| record_of(step)["share"] == "artifact:a.tar")
            );
        }
        let with_command = RecordingRequest {
            base: Some("x".into()),
            batch: Some(std::time::Duration::from_secs(1)),
            ..request_wishing(&json!({ "command": "x" }))
        };
        let failure = make(&[], &no_edges(&[]), &[], &with_command).unwrap_err();
        assert!(
            failure
                .to_string()
                .contains("`batch` cannot be combined with `command`")
        );
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
            };
            let request = RecordingRequest {
                emit,
                summary: true,
                agents: BTreeMap::from([(
                    "aarch64-linux".into(),
                    keys(&json!({ "queue": "arm" })),
                )]),
                ..request_wishing(&json!({ "command": "test", "priority": 1 }))
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
    fn ten_thousand_short_targets_fit_into_a_build_whatever_depends_on_what() {
        let targets: Vec<Target> = (0..10_000)
            .map(|i| target(i, &["p", &format!("t{i}")]))
            .collect();
        // Each depends on a few before it: a deep graph in which hardly two depend on the same.
        let mut random = 1_usize;
        let mut pairs = Vec::new();
        for i in 1..targets.len() {
            for _ in 0..3 {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                pairs.push((i, (random >> 33) % i));
            }
        }
        let edges = edges_between(&targets, &pairs);
        // One in ten is slow.
        let seconds: Vec<_> = (0..targets.len())
            .map(|i| Some(if i % 10 == 3 { 60.0 } else { 1.0 }))
            .collect();
        let steps = in_batches(&targets, &edges, &seconds, &request());
        let jobs: usize = steps.steps.iter().map(PlacedStep::jobs).sum();
        assert!(jobs < JOBS_PER_BUILD, "{jobs} jobs");
        assert_eq!(steps.drvs_of_steps(&targets).len(), targets.len());
        let mut seen = BTreeSet::new();
        for planned in &steps.steps {
            for dependency in &planned.step.depends_on {
                let (Dependency::Key(key) | Dependency::Step { step: key, .. }) = dependency;
                assert!(
                    seen.contains(key),
                    "{key} is not before {}",
                    planned.step.key
                );
            }
            seen.insert(&planned.step.key);
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

    /// One evaluation error, of this attribute.
    fn one_error(attr: &[&str]) -> ErrorLists {
        ErrorLists {
            evaluation: vec![AttrError {
                attr: path(attr),
                message: None,
            }],
            ..ErrorLists::default()
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
        let again = super::steps(&records, &command, schema()).unwrap();
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
