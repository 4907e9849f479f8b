//! The limits of Buildkite and of a job's environment, and the steps that fit into them.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::ops::Range;

use super::placed_step::PlacedStep;

/// The most jobs of a build, with those that it had before the recording, and with each retry.
pub(in crate::recording) const JOBS_PER_BUILD: usize = 4_000;

/// The most jobs of a pipeline: the job that records is one of the build's.
pub(super) const JOBS_AT_MOST: usize = JOBS_PER_BUILD - 1;

/// The most jobs that Buildkite takes in one upload; each group counts as one more.
pub(in crate::recording) const JOBS_PER_UPLOAD: usize = 500;

/// The most bytes of a variable of a job, and so of a record. Linux takes at most 128 KiB, and what shares its `.drv`s adds to records
/// afterwards.
pub(super) const VARIABLE_AT_MOST: usize = 100 << 10;

/// The most characters of a label.
pub(super) const LABEL_AT_MOST: usize = 200;

/// The most characters of a reason to skip a step; Buildkite rejects longer ones.
pub(super) const REASON_AT_MOST: usize = 70;

/// The most characters of a message in the record of a refused attribute.
pub(super) const MESSAGE_AT_MOST: usize = 4096;

/// What a step takes of the limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StepSize {
    /// Its jobs.
    pub(super) jobs: usize,
    /// Its group.
    pub(super) group: Option<String>,
}

impl StepSize {
    fn of(planned: &PlacedStep) -> Self {
        Self {
            jobs: planned.jobs(),
            group: planned.group.clone(),
        }
    }
}

/// Divides steps into uploads of at most `chunk` steps and [`JOBS_PER_UPLOAD`] jobs, without changing their order.
pub(in crate::recording) fn divide(steps: &[PlacedStep], chunk: NonZeroUsize) -> Vec<Range<usize>> {
    let sizes: Vec<StepSize> = steps.iter().map(StepSize::of).collect();
    let uploads = uploads(&sizes, chunk).into_iter();
    uploads.map(|upload| upload.steps).collect()
}

/// The jobs that Buildkite counts in a build of these steps: each group counts in each upload.
pub(super) fn jobs_of_build(sizes: &[StepSize], chunk: NonZeroUsize) -> usize {
    let uploads = uploads(sizes, chunk).into_iter();
    uploads.fold(0, |jobs, upload| jobs.saturating_add(upload.jobs))
}

/// Steps that are uploaded together, and their jobs with their groups.
struct SizedUpload {
    steps: Range<usize>,
    jobs: usize,
}

fn uploads(sizes: &[StepSize], chunk: NonZeroUsize) -> Vec<SizedUpload> {
    let mut uploads = Vec::new();
    let mut begin = 0;
    let mut jobs = 0_usize;
    let mut groups = BTreeSet::new();
    for (i, step) in sizes.iter().enumerate() {
        let group = step.group.as_deref();
        let with_group = |groups: &BTreeSet<&str>| {
            let is_new = group.is_some_and(|group| !groups.contains(group));
            step.jobs.saturating_add(usize::from(is_new))
        };
        let with_step = jobs.saturating_add(with_group(&groups));
        if i > begin && (i - begin >= chunk.get() || with_step > JOBS_PER_UPLOAD) {
            uploads.push(SizedUpload {
                steps: begin..i,
                jobs,
            });
            begin = i;
            jobs = 0;
            groups.clear();
        }
        jobs = jobs.saturating_add(with_group(&groups));
        groups.extend(group);
    }
    if begin < sizes.len() {
        uploads.push(SizedUpload {
            steps: begin..sizes.len(),
            jobs,
        });
    }
    uploads
}

/// Drops skipped steps, from the end, until the others fit into a build; also returns the number of dropped steps. Where the
/// others do not fit at all, nothing is dropped.
pub(super) fn fit(steps: Vec<PlacedStep>, chunk: NonZeroUsize) -> (Vec<PlacedStep>, usize) {
    let mut sizes: Vec<StepSize> = steps.iter().map(StepSize::of).collect();
    let mut stays: Vec<usize> = (0..steps.len()).collect();
    loop {
        let jobs = jobs_of_build(&sizes, chunk);
        if jobs <= JOBS_AT_MOST {
            break;
        }
        if !stays.iter().any(|at| steps[*at].skipped) {
            return (steps, 0);
        }
        // A dropped step may take its group with it, which is one job more. So now and then a step or two are dropped that
        // would have fitted, which is cheaper than counting again after each.
        let mut over = jobs - JOBS_AT_MOST;
        let mut fitting = Vec::with_capacity(stays.len());
        for (at, size) in stays.into_iter().zip(sizes).rev() {
            if steps[at].skipped && over > 0 {
                over = over.saturating_sub(size.jobs);
            } else {
                fitting.push((at, size));
            }
        }
        (stays, sizes) = fitting.into_iter().rev().unzip();
    }
    let dropped = steps.len() - stays.len();
    let stays: BTreeSet<usize> = stays.into_iter().collect();
    let steps = steps.into_iter().enumerate();
    let fitting = steps.filter(|(at, _)| stays.contains(at));
    (fitting.map(|(_, step)| step).collect(), dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(n: usize) -> NonZeroUsize {
        NonZeroUsize::new(n).unwrap()
    }

    #[test]
    fn groups_and_parallel_jobs_count_in_an_upload() {
        let steps: Vec<_> = (0..400)
            .map(|i| PlacedStep::numbered(i, Some(&i.to_string())))
            .collect();
        assert_eq!(divide(&steps, chunk(1000)), [0..250, 250..400]);
        let mut steps: Vec<_> = (0..3).map(|i| PlacedStep::numbered(i, None)).collect();
        for planned in &mut steps {
            planned.step.parallelism = Some(200);
        }
        assert_eq!(divide(&steps, chunk(100)), [0..2, 2..3]);
        let grouped = [
            PlacedStep::numbered(0, Some("a")),
            PlacedStep::numbered(1, None),
            PlacedStep::numbered(2, Some("a")),
        ];
        let sizes: Vec<StepSize> = grouped.iter().map(StepSize::of).collect();
        assert_eq!(jobs_of_build(&sizes, chunk(100)), 4);
        // In a second upload, a group counts once more.
        assert_eq!(jobs_of_build(&sizes, chunk(2)), 5);
    }

    #[test]
    fn skipped_steps_are_dropped_from_the_end_and_no_others() {
        let mut steps: Vec<_> = (0..=JOBS_PER_BUILD)
            .map(|i| PlacedStep::numbered(i, None))
            .collect();
        for i in [0, 1, 2, JOBS_PER_BUILD] {
            steps[i].skipped = true;
        }
        let (fitting, dropped) = fit(steps.clone(), chunk(100));
        assert_eq!((fitting.len(), dropped), (JOBS_PER_BUILD - 1, 2));
        assert_eq!(
            [&fitting[0].step.key, &fitting[2].step.key],
            ["0", "3"],
            "the last two of them"
        );
        // Where that is not enough, none is dropped.
        let mut over = steps;
        over.extend((0..3).map(|i| PlacedStep::numbered(i, None)));
        let (all, dropped) = fit(over.clone(), chunk(100));
        assert_eq!((all.len(), dropped), (over.len(), 0));
    }
}
