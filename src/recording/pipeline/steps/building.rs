//! The steps that build: of targets, of batches of them, of what several of them need; and what they wait for.

use std::collections::HashSet;

use serde_json::Value;

use super::batches::{BatchSizes, Batches};
use super::labels::group;
use super::maker::{StepMaker, UnlinkedStep};
use super::step_key::{StepKeys, batch_key, shared_key};
use super::{Records, SharedStep, TargetStep};
use crate::buildkite::pipeline::{CommandStep, Dependency};
use crate::exit::Failure;
use crate::recording::pipeline::edges::Edges;
use crate::recording::pipeline::limits::JOBS_AT_MOST;
use crate::recording::pipeline::placed_step::PlacedStep;
use crate::recording::{AttrError, RecordingRequest, SkipStyle, Target};
use crate::secrets::redacted;

/// A step as its maker made it; none where its target is refused.
type Draft = Result<UnlinkedStep, ()>;

/// The steps of the targets and, behind them, of the shared derivations. The targets that cannot have theirs are added to `refused`.
///
/// # Errors
/// A step of ours is none that Buildkite would take: a bug (70).
pub(super) fn drafts(
    records: &Records<'_>,
    maker: &StepMaker<'_>,
    refused: &mut Vec<AttrError>,
) -> Result<Vec<Draft>, Failure> {
    let mut drafts = Vec::with_capacity(records.targets.len());
    for (i, target) in records.targets.iter().enumerate() {
        let skip = records.skip.get(i).and_then(Option::as_deref);
        drafts.push(maker.target(target, skip).map_err(|message| {
            refused.push(AttrError {
                attr: target.attr.clone(),
                message: Some(redacted(&message).into_owned()),
            });
        }));
    }
    for drv in records.shared {
        // Without a step, whichever target comes first builds it.
        drafts.push(maker.shared(drv)?.ok_or(()));
    }
    Ok(drafts)
}

/// The steps that build, which are taken one after the other.
pub(super) struct Building<'a> {
    records: Records<'a>,
    maker: &'a StepMaker<'a>,
    request: &'a RecordingRequest,
    /// Those that were not taken yet.
    drafts: Vec<Option<UnlinkedStep>>,
    batches: Batches,
    /// Which of them do not run: their targets are skipped, or say so themselves.
    are_skipped: Vec<bool>,
    /// Whether what follows a target waits for its step all the same: what is built by now may have had to be built for the recording that
    /// has made its step.
    waits_for_skipped: bool,
    /// The keys of the steps that are batches.
    batch_keys: HashSet<String>,
    /// The place of each target and, behind them, of each shared derivation.
    places: Vec<TargetStep>,
    order: Vec<usize>,
}

impl<'a> Building<'a> {
    pub(super) fn new(
        records: &Records<'a>,
        drafts: Vec<Draft>,
        maker: &'a StepMaker<'a>,
        keys: &StepKeys,
        request: &'a RecordingRequest,
    ) -> Self {
        let builds_nothing: Vec<bool> = drafts
            .iter()
            .map(|draft| draft.as_ref().map_or(true, |draft| draft.skip.is_some()))
            .collect();
        let edges = records.edges.without(&builds_nothing);
        let batches = batches(records, &drafts, &edges, maker);
        let places = places(records, &drafts, &edges, &batches, keys, request);
        Self {
            records: *records,
            maker,
            request,
            are_skipped: drafts.iter().map(is_skipped).collect(),
            waits_for_skipped: !request.phases.build && request.skip_style != SkipStyle::Omit,
            drafts: drafts.into_iter().map(Result::ok).collect(),
            order: batches.order(&edges),
            batch_keys: batch_keys(&places),
            batches,
            places,
        }
    }

    /// The targets and shared derivations, by their numbers: dependencies first.
    pub(super) fn order(&self) -> Vec<usize> {
        self.order.clone()
    }

    /// Whether a target has no step that runs, because it is skipped or its step says `skip`.
    pub(super) fn is_skipped(&self, i: usize) -> bool {
        self.are_skipped[i]
    }

    /// The key that what follows a target waits for; none where its step does not run.
    pub(super) fn waited_for(&self, i: usize) -> Option<&str> {
        let has_step = !self.are_skipped[i] || self.waits_for_skipped;
        has_step.then(|| self.places[i].key.as_str())
    }

    /// The places of the targets, and the steps of shared derivations.
    pub(super) fn into_places(mut self) -> (Vec<TargetStep>, Vec<SharedStep>) {
        let shared = self.places.split_off(self.records.targets.len());
        let shared = self.records.shared.iter().zip(shared);
        let shared = shared.filter(|(_, step)| !step.key.is_empty());
        let shared = shared.map(|(drv, step)| SharedStep {
            name: drv.name.clone(),
            drv: drv.drv.clone(),
            key: step.key,
            depends_on: step.depends_on,
        });
        let shared = shared.collect();
        (self.places, shared)
    }

    /// The step of a target or a shared derivation; of a batch, with the first of its targets. None where it has none.
    ///
    /// # Errors
    /// A step of ours is none that Buildkite would take: a bug (70).
    pub(super) fn step(&mut self, i: usize) -> Result<Option<PlacedStep>, Failure> {
        if !self.request.phases.build {
            return Ok(None);
        }
        let Some(draft) = self.drafts[i].take() else {
            return Ok(None);
        };
        let Some(target) = self.records.targets.get(i) else {
            return Ok(self.placed(draft, &self.places[i], None));
        };
        let draft = match self.batches.of(i) {
            Some(batch) => {
                let mut members: Vec<(&Target, UnlinkedStep)> = vec![(target, draft)];
                for at in &self.batches.members()[batch] {
                    let draft = self.drafts[*at].take();
                    members.extend(draft.map(|draft| (&self.records.targets[*at], draft)));
                }
                self.maker.batch(&self.places[i].key, members)?
            }
            None => draft,
        };
        let group = group(&target.attr, self.request.group_by);
        Ok(self.placed(draft, &self.places[i], group))
    }

    /// A step in its place; none where it is left out.
    fn placed(
        &self,
        draft: UnlinkedStep,
        place: &TargetStep,
        group: Option<String>,
    ) -> Option<PlacedStep> {
        let UnlinkedStep { mut step, skip, .. } = draft;
        if skip.is_some() && self.request.skip_style == SkipStyle::Omit {
            return None;
        }
        let waits = place.depends_on.iter().cloned().map(|key| {
            // Of a batch that is red, most targets are not: what depends on those is to be built.
            if place.runs_anyway || self.batch_keys.contains(&key) {
                Dependency::Step {
                    step: key,
                    allow_failure: Some(true.into()),
                }
            } else {
                Dependency::Key(key)
            }
        });
        wait_first(&mut step.depends_on, waits);
        Some(PlacedStep {
            skipped: skip.is_some(),
            ..PlacedStep::new(step, group)
        })
    }

    /// What a step waits for that waits for all targets: the red steps of errors, and the targets, without those that another one
    /// waits for which passes their failure on, where it is known what their steps wait for. Called before any step is taken.
    pub(super) fn behind_all(&self, red: &[PlacedStep]) -> Vec<String> {
        let targets = self.places[..self.records.targets.len()].iter();
        let targets = targets.zip(&self.drafts);
        let building = targets.filter(|(place, _)| place.skip.is_none() || self.waits_for_skipped);
        let waited_for: HashSet<&String> = building
            .clone()
            .filter(|(place, draft)| {
                self.records.steps_known
                    && !place.runs_anyway
                    && draft.as_ref().is_some_and(|it| passes_failure_on(&it.step))
            })
            .flat_map(|(place, _)| &place.depends_on)
            // What waits for a batch runs also where that is red.
            .filter(|key| !self.batch_keys.contains(*key))
            .collect();
        let red = red.iter().map(|planned| &planned.step.key);
        let last = building.map(|(place, _)| &place.key);
        let mut seen = HashSet::new();
        let all = red.chain(last.filter(|key| !waited_for.contains(key)));
        all.filter(|key| seen.insert(*key)).cloned().collect()
    }
}

/// Whether a target is skipped, or its step says `skip`.
fn is_skipped(draft: &Draft) -> bool {
    let draft = draft.as_ref();
    draft.is_ok_and(|draft| draft.skip.is_some() || !draft.step.may_run())
}

/// Whether what waits for this step never runs where a step has failed, or has not ended, that this one waits for. Of a step that
/// does not run, nobody knows what it waited for.
fn passes_failure_on(step: &CommandStep) -> bool {
    let runs_always = ["if", "if_changed", "branches"]
        .iter()
        .all(|name| !step.more.contains_key(*name));
    let takes_failures = ["allow_dependency_failure", "soft_fail"]
        .iter()
        .filter_map(|name| step.more.get(*name))
        .any(|value| !matches!(value.as_str(), Some("false")) && *value != Value::Bool(false));
    step.may_run() && runs_always && !takes_failures
}

/// Puts dependencies of ours before a user's.
pub(super) fn wait_first(
    dependencies: &mut Vec<Dependency>,
    ours: impl IntoIterator<Item = Dependency>,
) {
    let wished = std::mem::replace(dependencies, ours.into_iter().collect());
    for dependency in wished {
        if !dependencies.contains(&dependency) {
            dependencies.push(dependency);
        }
    }
}

/// The place of each target, and of each shared derivation behind them. No step waits for one that is skipped or an error's; it waits for what that one would wait for.
fn places(
    records: &Records<'_>,
    drafts: &[Result<UnlinkedStep, ()>],
    edges: &Edges,
    batches: &Batches,
    keys: &StepKeys,
    request: &RecordingRequest,
) -> Vec<TargetStep> {
    let batch_keys: Vec<String> = batches
        .members()
        .iter()
        .map(|members| {
            let members = members.iter().map(|at| keys.target(&records.targets[*at]));
            batch_key(members, request)
        })
        .collect();
    let step_key = |at: usize| match batches.of(at) {
        Some(batch) => batch_keys[batch].clone(),
        None => match records.targets.get(at) {
            Some(target) => keys.target(target),
            None => shared_key(&records.shared[at - records.targets.len()].drv, request),
        },
    };
    let waits = |at: usize| -> Vec<String> {
        let own = [at];
        let targets = match batches.of(at) {
            Some(batch) => &batches.members()[batch][..],
            None => &own,
        };
        let mut seen = HashSet::new();
        let below = targets.iter().flat_map(|at| edges.of(*at));
        let keys = below.map(|at| step_key(*at));
        keys.filter(|key| seen.insert(key.clone())).collect()
    };
    let nodes = records.targets.iter().chain(records.shared);
    let targets = nodes.zip(drafts).enumerate();
    let places = targets.map(|(i, (target, draft))| TargetStep {
        key: match draft {
            Ok(_) => step_key(i),
            Err(()) if i < records.targets.len() => keys.error(&target.attr),
            Err(()) => String::new(),
        },
        depends_on: waits(i),
        skip: draft.as_ref().map_or(None, |draft| draft.skip.clone()),
        report: batches.of(i).map(|_| keys.target(target)),
        seconds: records.seconds.get(i).copied().flatten(),
        runs_anyway: batches.are_mixed && batches.of(i).is_some(),
    });
    places.collect()
}

/// What of the targets has a step in common with others: what took less in the base than the request says, and is built as any other
/// target of its system.
fn batches(
    records: &Records<'_>,
    drafts: &[Result<UnlinkedStep, ()>],
    edges: &Edges,
    maker: &StepMaker<'_>,
) -> Batches {
    let request = maker.request;
    let Some(limit) = request.batch else {
        return Batches::default();
    };
    let nodes = records.targets.iter().chain(records.shared);
    let targets = nodes.zip(drafts).enumerate();
    let kinds: Vec<_> = targets
        .map(|(i, (target, draft))| {
            let seconds = records.seconds.get(i).copied().flatten();
            let is_short = seconds.is_some_and(|seconds| seconds < limit.as_secs_f64());
            let is_plain = draft.as_ref().is_ok_and(|draft| draft.record.is_some());
            (is_short && is_plain).then(|| {
                let mut features = target.features.clone();
                features.sort_unstable();
                (
                    &target.system,
                    features,
                    group(&target.attr, request.group_by),
                )
            })
        })
        .collect();
    // Other steps and groups are jobs too; steps that are skipped are left out where there is no room.
    let skipped = drafts.iter().flatten();
    let skipped = skipped.filter(|draft| draft.skip.is_some()).count();
    let room = maker.room_in_batch();
    let bytes: Vec<usize> = drafts
        .iter()
        .map(|draft| {
            let record = draft.as_ref().ok().and_then(|draft| draft.record.as_ref());
            record.map_or(0, |record| maker.bytes_in_batch(record))
        })
        .collect();
    Batches::new(
        &kinds,
        BatchSizes {
            bytes: &bytes,
            room,
        },
        edges,
        JOBS_AT_MOST / 4 * 3 + skipped,
    )
}

/// The keys of the steps that are batches.
fn batch_keys(targets: &[TargetStep]) -> HashSet<String> {
    let batches = targets.iter().filter(|target| target.report.is_some());
    batches.map(|target| target.key.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::pipeline::steps::fixtures::{key, make, record_of, values};

    use crate::recording::Emit;
    use crate::recording::errors::ErrorLists;

    use crate::recording::pipeline::fixtures::*;
    use crate::recording::pipeline::limits::JOBS_PER_BUILD;

    use crate::nix::StorePath;
    use crate::recording::pipeline::steps::{PlannedPipeline, share_keys, steps, variables};
    use crate::share_keys::Share;

    use serde_json::json;

    use std::collections::BTreeSet;

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
            steps_known: true,
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

    /// A target with so many outputs.
    fn with_outputs(i: usize, outputs: usize) -> Target {
        let outputs = (0..outputs).map(|output| {
            let path = format!("/nix/store/{i:032}-x-output-{output}");
            (format!("output-{output}"), StorePath::parse(&path).unwrap())
        });
        Target {
            outputs: outputs.collect(),
            ..target(i, &["p", &format!("t{i}")])
        }
    }

    #[test]
    fn every_step_can_be_passed_to_a_job_however_many_outputs_there_are() {
        // Large ones, and such as differ in what all of a batch have else.
        let mut targets: Vec<Target> = (0..60).map(|i| with_outputs(i, 40)).collect();
        targets[7].meta.max_silent = Some(60);
        let seconds: Vec<_> = vec![Some(1.0); targets.len()];
        let option = |length: usize| vec![("x".to_owned(), "y".repeat(length))];
        let plugins = json!({ "plugins": [{ "docker#v5": { "image": "z".repeat(40 << 10) } }] });
        for emit in [Emit::Command, request().emit] {
            for (wishes, options) in [
                (&json!({}), option(1)),
                (&json!({}), option(2_000)),
                (&plugins, option(1)),
            ] {
                let request = RecordingRequest {
                    emit: emit.clone(),
                    options,
                    build_keys: keys(&json!({ "log": "raw", "out-link": false })),
                    ..request_wishing(wishes)
                };
                let planned = in_batches(&targets, &no_edges(&targets), &seconds, &request);
                assert_eq!(planned.errors.refused, []);
                assert_eq!(planned.drvs_of_steps(&targets).len(), targets.len());
                let count = planned.steps.len();
                assert!((2..12).contains(&count), "{count} steps");
                for planned in &planned.steps {
                    assert_eq!(variables::fit(&planned.step), Ok(()));
                }
            }
        }
    }

    #[test]
    fn a_shared_derivation_with_too_many_outputs_has_no_step_and_what_it_needs_is_waited_for() {
        let targets = [target(0, &["a"]), target(1, &["b"])];
        let shared = [with_outputs(7, 1_500), target(8, &[])];
        let nodes: Vec<Target> = targets.iter().chain(&shared).cloned().collect();
        for emit in [Emit::Command, request().emit] {
            let records = Records {
                targets: &targets,
                errors: &ErrorLists::default(),
                callable: &BTreeSet::new(),
                edges: &edges_between(&nodes, &[(0, 7), (1, 7), (7, 8)]),
                skip: &[],
                seconds: &[],
                steps_known: true,
                shared: &shared,
            };
            let request = RecordingRequest { emit, ..request() };
            let planned = steps(&records, &request, schema()).unwrap();
            let below = shared_key(&shared[1].drv, &request);
            assert_eq!(planned.steps.len(), 3);
            let listed: Vec<&str> = planned.shared.iter().map(|it| it.key.as_str()).collect();
            assert_eq!(listed, [below.as_str()]);
            for target in &planned.targets {
                assert_eq!(target.depends_on, [below.as_str()]);
            }
            assert_eq!(planned.errors, ErrorLists::default());
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
}
