//! A pipeline of more jobs than a build can have: how many there are by attribute, and what would make it fit.
//!
//! What is suggested is computed with the numbers of this recording, so that it is true: an attribute that another one gives, too,
//! still has its step where one of the two is excluded; and a step may then be in another group.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::limits::{JOBS_AT_MOST, JOBS_PER_BUILD, StepSize, jobs_of_build};
use super::steps::{PlannedPipeline, group};
use crate::counts::number;
use crate::exit::Failure;
use crate::keys::refuse;
use crate::nix::AttrPath;
use crate::recording::{RecordingRequest, Target};

/// How many attributes are shown with their jobs.
const SHOWN: usize = 10;

/// How many exclusions are suggested at most: more than these are no suggestion.
const EXCLUDED_AT_MOST: usize = 10;

/// How many sets are suggested at most to be recorded by themselves.
const SETS_AT_MOST: usize = 3;

/// How deep the largest set is looked into, at most.
const DEPTH_AT_MOST: usize = 8;

/// A pipeline that has too many jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::recording) struct Excess {
    /// Its jobs, groups counted.
    jobs: usize,
    has_groups: bool,
    /// The jobs of each top-level attribute, the largest first: of a step that several give, at the first of them.
    by_attribute: Vec<(AttrPath, usize)>,
    /// The fewest of the largest attributes without which the rest fits, and the jobs of the rest; where few are enough.
    exclusion: Option<(Vec<AttrPath>, usize)>,
    /// Sets that fit into a build of their own, with their jobs.
    sets: Vec<(AttrPath, usize)>,
}

impl Excess {
    /// What is too much in this pipeline of these `targets`; none where it fits.
    pub(in crate::recording) fn of(
        pipeline: &PlannedPipeline,
        targets: &[Target],
        request: &RecordingRequest,
    ) -> Option<Self> {
        let steps = CountedSteps::new(pipeline, targets, request);
        let jobs = steps.jobs(|_| true);
        if jobs <= JOBS_AT_MOST {
            return None;
        }
        let mut below = request.root.attr.clone();
        let mut parts = steps.parts(&below);
        // What everything is in, as the output of a flake, says nothing.
        for _ in 0..DEPTH_AT_MOST {
            match parts.as_slice() {
                [only] if only.is_set => below = only.path.clone(),
                _ => break,
            }
            parts = steps.parts(&below);
        }
        let by_attribute = parts.iter().map(|part| (part.path.clone(), part.jobs));
        let by_attribute = by_attribute.collect();
        let mut exclusion: Option<(Vec<AttrPath>, usize)> = None;
        let mut sets = Vec::new();
        for _ in 0..DEPTH_AT_MOST {
            if let Some(found) = steps.exclusion(&parts)
                && exclusion.as_ref().is_none_or(|best| best.1 < found.1)
            {
                exclusion = Some(found);
            }
            let largest = parts.iter().filter(|part| part.is_set);
            for part in largest.clone().take(SETS_AT_MOST) {
                let alone = steps.jobs(|attr| is_below(attr, &part.path));
                if alone <= JOBS_AT_MOST {
                    sets.push((part.path.clone(), alone));
                }
            }
            // Only what does not fit by itself has parts that are worth a look.
            let Some(largest) = largest.max_by_key(|part| part.jobs) else {
                break;
            };
            if largest.jobs <= JOBS_AT_MOST {
                break;
            }
            parts = steps.parts(&largest.path);
        }
        sets.sort_by_key(|(_, jobs)| Reverse(*jobs));
        if let Some((excluded, _)) = &exclusion {
            sets.retain(|(set, _)| excluded.contains(set));
        }
        sets.truncate(SETS_AT_MOST);
        Some(Self {
            jobs,
            has_groups: request.group_by > 0,
            by_attribute,
            exclusion,
            sets,
        })
    }

    /// The jobs by attribute, in one line.
    pub(in crate::recording) fn by_attribute(&self) -> String {
        let shown = self.shown().iter();
        let shown = shown.map(|(attr, jobs)| format!("{attr} {jobs}"));
        let mut text = format!(
            "jobs by attribute: {}",
            shown.collect::<Vec<_>>().join(", ")
        );
        if let Some(rest) = self.rest() {
            text.push_str("; ");
            text.push_str(&rest);
        }
        text
    }

    /// The largest attributes, with their jobs.
    pub(in crate::recording) fn shown(&self) -> &[(AttrPath, usize)] {
        &self.by_attribute[..self.by_attribute.len().min(SHOWN)]
    }

    /// How many others there are, and how many jobs they have together, where there are any.
    pub(in crate::recording) fn rest(&self) -> Option<String> {
        let rest = self.by_attribute.get(SHOWN..).unwrap_or_default();
        let jobs = rest.iter().map(|(_, jobs)| jobs).sum();
        (!rest.is_empty()).then(|| {
            let attributes = number(rest.len(), "other attribute");
            format!("{attributes} with {}", number(jobs, "job"))
        })
    }

    /// What would make it fit.
    pub(in crate::recording) fn hint(&self) -> String {
        let sets = self.sets.iter();
        let sets = sets.map(|(attr, jobs)| format!("`attr: {attr}` ({})", number(*jobs, "job")));
        let sets = sets.collect::<Vec<_>>().join(", ");
        match &self.exclusion {
            Some((excluded, left)) => {
                let excluded: Vec<String> = excluded.iter().map(|it| format!("`{it}`")).collect();
                let excluded = excluded.join(", ");
                let left = number(*left, "job");
                let mut hint = format!("add {excluded} to `exclude`, which leaves {left}");
                if !sets.is_empty() {
                    hint.push_str("; record in builds of their own what is to be built all the same: ");
                    hint.push_str(&sets);
                }
                hint
            }
            None if !sets.is_empty() => {
                format!("record parts of it in builds of their own, for example {sets}")
            }
            None => "exclude targets with `exclude`, or put them into sets of fewer jobs, and record each set in a build of its own, with its `attr`".into(),
        }
    }

    /// The failure of a recording that was to upload it.
    pub(in crate::recording) fn failure(&self) -> Failure {
        refuse(self).hint(self.hint())
    }
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let jobs = self.jobs;
        let groups = if self.has_groups {
            ", groups counted"
        } else {
            ""
        };
        write!(
            f,
            "the pipeline has {jobs} jobs{groups}, and a build can have {JOBS_PER_BUILD}, with the one that records"
        )
    }
}

/// Whether `attr` is `set`, or in it.
fn is_below(attr: &AttrPath, set: &AttrPath) -> bool {
    attr.names().starts_with(set.names())
}

/// The steps that run, as far as their number depends on attributes.
struct CountedSteps<'a> {
    steps: Vec<CountedStep<'a>>,
    request: &'a RecordingRequest,
}

/// A step that runs.
struct CountedStep<'a> {
    jobs: usize,
    /// The attributes that give it; none for the summary's, which is always there.
    attrs: Vec<&'a AttrPath>,
    /// Whether it may be in a group.
    is_target: bool,
}

/// An attribute, with everything below it.
struct AttrJobs {
    path: AttrPath,
    /// The jobs of the steps whose first attribute it has, and of those that no other attribute gives.
    jobs: usize,
    own_jobs: usize,
    /// Whether it has attributes.
    is_set: bool,
}

impl<'a> CountedSteps<'a> {
    fn new(
        pipeline: &'a PlannedPipeline,
        targets: &'a [Target],
        request: &'a RecordingRequest,
    ) -> Self {
        let mut attrs: HashMap<String, (Vec<&AttrPath>, bool)> = HashMap::new();
        let errors = &pipeline.errors;
        for error in errors.evaluation.iter().chain(&errors.refused) {
            let key = pipeline.keys.error(&error.attr);
            attrs.entry(key).or_default().0.push(&error.attr);
        }
        for (target, step) in targets.iter().zip(&pipeline.targets) {
            let (of_step, is_target) = attrs.entry(step.key.clone()).or_default();
            // The step of a refused target is an error's.
            *is_target |= of_step.is_empty();
            of_step.extend(std::iter::once(&target.attr).chain(&target.also));
        }
        let running = pipeline.steps.iter().filter(|planned| !planned.skipped);
        let steps = running.map(|planned| {
            let (attrs, is_target) = attrs.remove(&planned.step.key).unwrap_or_default();
            CountedStep {
                jobs: planned.jobs(),
                attrs,
                is_target,
            }
        });
        Self {
            steps: steps.collect(),
            request,
        }
    }

    /// The jobs of the pipeline of those attributes that stay.
    fn jobs(&self, stays: impl Fn(&AttrPath) -> bool) -> usize {
        let sizes = self.steps.iter().filter_map(|step| {
            let first = step.attrs.iter().find(|attr| stays(attr));
            if first.is_none() && !step.attrs.is_empty() {
                return None;
            }
            let first = first.filter(|_| step.is_target);
            Some(StepSize {
                jobs: step.jobs,
                group: first.and_then(|attr| group(attr, self.request.group_by)),
            })
        });
        let sizes: Vec<StepSize> = sizes.collect();
        jobs_of_build(&sizes, self.request.chunk)
    }

    /// The attributes directly below this one, the largest first.
    fn parts(&self, below: &AttrPath) -> Vec<AttrJobs> {
        let depth = below.names().len() + 1;
        let mut parts: BTreeMap<&[String], AttrJobs> = BTreeMap::new();
        for step in &self.steps {
            let of_step = step.attrs.iter().filter(|attr| is_below(attr, below));
            let mut inside = of_step.filter_map(|attr| Some((attr.names().get(..depth)?, attr)));
            let Some((first, _)) = inside.clone().next() else {
                continue;
            };
            let is_own = inside.clone().count() == step.attrs.len()
                && inside.clone().all(|(part, _)| part == first);
            let part = parts.entry(first).or_insert_with(|| AttrJobs {
                path: AttrPath::new(first.to_vec()),
                jobs: 0,
                own_jobs: 0,
                is_set: false,
            });
            part.jobs += step.jobs;
            part.own_jobs += if is_own { step.jobs } else { 0 };
            part.is_set |= inside.any(|(at, attr)| at == first && attr.names().len() > depth);
        }
        let mut parts: Vec<AttrJobs> = parts.into_values().collect();
        parts.sort_by_key(|part| Reverse(part.jobs));
        parts
    }

    /// The fewest of the largest parts without which the rest fits, and the jobs of the rest.
    fn exclusion(&self, parts: &[AttrJobs]) -> Option<(Vec<AttrPath>, usize)> {
        // In `exclude`, a `*` stands for any name.
        let mut parts: Vec<&AttrJobs> = parts
            .iter()
            .filter(|part| part.own_jobs > 0 && !part.path.names().iter().any(|it| it == "*"))
            .collect();
        parts.sort_by_key(|part| Reverse(part.own_jobs));
        (1..=parts.len().min(EXCLUDED_AT_MOST)).find_map(|count| {
            let excluded = &parts[..count];
            let is_excluded = |attr: &AttrPath| excluded.iter().any(|it| is_below(attr, &it.path));
            let left = self.jobs(|attr| !is_excluded(attr));
            let is_one = 1 + usize::from(self.request.summary);
            (is_one..=JOBS_AT_MOST).contains(&left).then(|| {
                let paths = excluded.iter().map(|part| part.path.clone());
                (paths.collect(), left)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buildkite::pipeline::CommandStep;
    use crate::recording::AttrError;
    use crate::recording::errors::ErrorLists;
    use crate::recording::pipeline::fixtures::*;
    use crate::recording::pipeline::placed_step::PlacedStep;
    use crate::recording::pipeline::steps::TargetStep;
    use crate::recording::pipeline::steps::{StepKeys, error_key};
    use proptest::prelude::*;
    use std::num::NonZeroUsize;

    /// What a recording finds: targets, each by its attributes, and errors.
    #[derive(Debug, Clone, Default)]
    struct Found {
        targets: Vec<Vec<AttrPath>>,
        errors: Vec<AttrPath>,
    }

    impl Found {
        /// So many targets in this set.
        fn set(mut self, path: &str, count: usize) -> Self {
            let path = AttrPath::parse(path).unwrap();
            self.targets.extend((0..count).map(|i| {
                let mut names = path.names().to_vec();
                names.push(format!("t{i}"));
                vec![AttrPath::new(names)]
            }));
            self
        }

        /// What a recording finds that keeps only these attributes.
        fn with(&self, stays: &dyn Fn(&AttrPath) -> bool) -> Self {
            let stay = |attrs: &Vec<AttrPath>| -> Vec<AttrPath> {
                attrs.iter().filter(|attr| stays(attr)).cloned().collect()
            };
            let targets = self.targets.iter().map(stay);
            Self {
                targets: targets.filter(|attrs| !attrs.is_empty()).collect(),
                errors: stay(&self.errors),
            }
        }

        /// Its pipeline, without all that does not count.
        fn pipeline(&self, request: &RecordingRequest) -> (Vec<Target>, PlannedPipeline) {
            let targets = self.targets.iter().enumerate().map(|(i, attrs)| Target {
                attr: attrs[0].clone(),
                also: attrs[1..].to_vec(),
                ..target(i, &["x"])
            });
            let step = |key: String, group| {
                let step = CommandStep {
                    key,
                    ..CommandStep::default()
                };
                PlacedStep::new(step, group)
            };
            let errors = self.errors.iter().map(|attr| step(error_key(attr), None));
            let of_targets = self.targets.iter().enumerate();
            let of_targets = of_targets
                .map(|(i, attrs)| step(format!("t{i}"), group(&attrs[0], request.group_by)));
            let summary = request.summary.then(|| step("summary".into(), None));
            let evaluation = self.errors.iter().map(|attr| AttrError {
                attr: attr.clone(),
                message: None,
            });
            let pipeline = PlannedPipeline {
                steps: errors.chain(of_targets).chain(summary).collect(),
                followers: Vec::new(),
                shared: Vec::new(),
                keys: StepKeys::default(),
                targets: (0..self.targets.len())
                    .map(|i| TargetStep {
                        key: format!("t{i}"),
                        depends_on: Vec::new(),
                        ..TargetStep::default()
                    })
                    .collect(),
                errors: ErrorLists {
                    evaluation: evaluation.collect(),
                    ..ErrorLists::default()
                },
                omitted: 0,
            };
            (targets.collect(), pipeline)
        }

        /// The jobs of a build of it.
        fn jobs(&self, request: &RecordingRequest) -> usize {
            let (_, pipeline) = self.pipeline(request);
            let sizes = pipeline.steps.iter().map(|planned| StepSize {
                jobs: 1,
                group: planned.group.clone(),
            });
            jobs_of_build(&sizes.collect::<Vec<_>>(), request.chunk)
        }

        /// What is too much; and what it suggests is true: a recording that follows it has the jobs that were promised, and they fit.
        fn excess(&self, request: &RecordingRequest) -> Option<Excess> {
            let (targets, pipeline) = self.pipeline(request);
            let excess = Excess::of(&pipeline, &targets, request);
            let jobs = self.jobs(request);
            assert_eq!(excess.is_some(), jobs > JOBS_AT_MOST);
            let excess = excess?;
            assert_eq!(excess.jobs, jobs);
            let check = |promised: usize, stays: &dyn Fn(&AttrPath) -> bool| {
                assert_eq!(self.with(stays).jobs(request), promised, "{excess:?}");
                assert!(promised <= JOBS_AT_MOST);
            };
            if let Some((excluded, left)) = &excess.exclusion {
                check(*left, &|attr| !excluded.iter().any(|it| is_below(attr, it)));
            }
            for (set, promised) in &excess.sets {
                check(*promised, &|attr| is_below(attr, set));
            }
            let steps = excess.by_attribute.iter().map(|(_, jobs)| jobs);
            let summary = usize::from(request.summary);
            let steps = steps.sum::<usize>() + summary;
            assert!(steps == jobs || request.group_by > 0 && steps < jobs);
            Some(excess)
        }
    }

    fn everything() -> RecordingRequest {
        let mut request = request();
        request.root.attr = path(&[]);
        request
    }

    #[test]
    fn the_fewest_of_the_largest_sets_are_excluded_and_recorded_by_themselves() {
        let found = Found::default()
            .set("small", 100)
            .set("big", 3_000)
            .set("bigger", 3_500);
        let excess = found.excess(&everything()).unwrap();
        assert_eq!(
            excess.to_string(),
            "the pipeline has 6600 jobs, and a build can have 4000, with the one that records"
        );
        assert_eq!(
            excess.by_attribute(),
            "jobs by attribute: bigger 3500, big 3000, small 100"
        );
        assert_eq!(
            excess.hint(),
            "add `bigger` to `exclude`, which leaves 3100 jobs; record in builds of their own what is to be built all the same: \
             `attr: bigger` (3500 jobs)"
        );
    }

    #[test]
    fn exactly_as_many_jobs_as_a_build_can_have_fit() {
        let found = |count| Found::default().set("a", count).set("b", 1);
        assert_eq!(found(JOBS_AT_MOST - 1).excess(&everything()), None);
        assert!(found(JOBS_AT_MOST).excess(&everything()).is_some());
        let summary = RecordingRequest {
            summary: true,
            ..everything()
        };
        assert!(found(JOBS_AT_MOST - 1).excess(&summary).is_some());
    }

    #[test]
    fn what_everything_is_in_is_not_counted_and_the_largest_set_is_looked_into() {
        let below = "legacyPackages.x86_64-linux";
        let found = Found::default()
            .set(&format!("{below}.python"), 3_000)
            .set(&format!("{below}.haskell"), 2_000)
            .set(&format!("{below}.more.a"), 1_500);
        let excess = found.excess(&everything()).unwrap();
        assert_eq!(
            excess.by_attribute(),
            format!(
                "jobs by attribute: {below}.python 3000, {below}.haskell 2000, {below}.more 1500"
            )
        );
        assert_eq!(excess.exclusion.as_ref().unwrap().1, 3_500);
        // Beside it is something else, and excluding all of it would leave next to nothing.
        let found = found.set("checks.x86_64-linux", 10);
        let excess = found.excess(&everything()).unwrap();
        assert_eq!(
            excess.by_attribute(),
            "jobs by attribute: legacyPackages 6500, checks 10"
        );
        let python = AttrPath::parse(&format!("{below}.python")).unwrap();
        assert_eq!(excess.exclusion, Some((vec![python], 3_510)));
    }

    #[test]
    fn an_attribute_that_another_one_gives_too_keeps_its_step() {
        let mut found = Found::default().set("a", 3_000).set("b", 3_000);
        // All of `a` is in `all`, too.
        let all = found.targets[..3_000].iter_mut().enumerate();
        all.for_each(|(i, attrs)| attrs.push(path(&["all", &format!("t{i}")])));
        let excess = found.excess(&everything()).unwrap();
        assert_eq!(excess.exclusion, Some((vec![path(&["b"])], 3_000)));
    }

    #[test]
    fn many_attributes_of_one_job_each_have_no_exclusion() {
        let targets = (0..9_000).map(|i| vec![path(&[&format!("t{i}")])]);
        let found = Found {
            targets: targets.collect(),
            errors: Vec::new(),
        };
        let excess = found.excess(&everything()).unwrap();
        assert_eq!((&excess.exclusion, excess.sets.len()), (&None, 0));
        assert!(
            excess
                .by_attribute()
                .ends_with("; 8990 other attributes with 8990 jobs")
        );
        assert!(
            excess
                .hint()
                .starts_with("exclude targets with `exclude`, or put them into sets")
        );
        let excess = found.set("s", 50).excess(&everything()).unwrap();
        assert_eq!(
            excess.hint(),
            "record parts of it in builds of their own, for example `attr: s` (50 jobs)"
        );
        // Of errors, too.
        let errors = (0..5_000).map(|i| path(&["broken", &format!("e{i}")]));
        let found = Found {
            errors: errors.collect(),
            ..Found::default().set("good", 7)
        };
        let excess = found.excess(&everything()).unwrap();
        assert_eq!(excess.exclusion, Some((vec![path(&["broken"])], 7)));
    }

    #[test]
    fn a_name_that_is_a_pattern_is_not_excluded() {
        let found = Found::default().set("\"*\"", 4_000).set("b", 3_000);
        let excess = found.excess(&everything()).unwrap();
        assert_eq!(excess.exclusion, None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_suggested_is_true(
            sizes in proptest::collection::vec((0_usize..4, 0_usize..4, 0_usize..2_500), 1..6),
            shared in proptest::collection::vec((any::<proptest::sample::Index>(), 0_usize..4), 0..500),
            group_by in 0_usize..3,
            chunk in 50_usize..600,
            summary: bool,
        ) {
            let mut found = Found::default();
            for (a, b, count) in sizes {
                found = found.set(&format!("a{a}.b{b}"), count);
            }
            if found.targets.is_empty() {
                return Ok(());
            }
            for (at, a) in shared {
                let at = at.index(found.targets.len());
                found.targets[at].push(path(&[&format!("a{a}"), "shared", &at.to_string()]));
            }
            let request = RecordingRequest {
                group_by,
                summary,
                chunk: NonZeroUsize::new(chunk).unwrap(),
                ..everything()
            };
            found.excess(&request);
        }
    }
}
