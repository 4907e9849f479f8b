//! The limits of Buildkite and of a job's environment, and the steps that fit into them.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::ops::Range;

use super::placed_step::PlacedStep;
use crate::exit::Failure;
use crate::keys::refuse;
use crate::recording::RecordingRequest;

/// The most jobs of a build, with those that it had before the recording, and with each retry.
pub(in crate::recording) const JOBS_PER_BUILD: usize = 4_000;

/// The most jobs that Buildkite takes in one upload; each group counts as one more.
pub(in crate::recording) const JOBS_PER_UPLOAD: usize = 500;

/// The most bytes of a record. It travels in environment variables, up to three times in one job, and Linux takes at most
/// 128 KiB in each of them.
pub(super) const RECORD_AT_MOST: usize = 100 << 10;

/// The most characters of a label.
pub(super) const LABEL_AT_MOST: usize = 200;

/// The most characters of a reason to skip a step; Buildkite rejects longer ones.
pub(super) const REASON_AT_MOST: usize = 70;

/// The most characters of a message in the record of a refused attribute.
pub(super) const MESSAGE_AT_MOST: usize = 4096;

/// The number of jobs that Buildkite counts in an upload of these steps.
fn jobs(steps: &[PlacedStep]) -> usize {
    let groups: BTreeSet<_> = steps
        .iter()
        .filter_map(|step| step.group.as_ref())
        .collect();
    steps
        .iter()
        .map(|planned| planned.step.jobs())
        .fold(groups.len(), usize::saturating_add)
}

/// Divides steps into uploads of at most `chunk` steps and [`JOBS_PER_UPLOAD`] jobs, without changing their order.
pub(in crate::recording) fn divide(steps: &[PlacedStep], chunk: NonZeroUsize) -> Vec<Range<usize>> {
    let mut chunks = Vec::new();
    let mut begin = 0;
    let mut jobs = 0_usize;
    let mut groups = BTreeSet::new();
    for (i, PlacedStep { step, group, .. }) in steps.iter().enumerate() {
        let new_group =
            |groups: &BTreeSet<_>| group.as_ref().is_some_and(|group| !groups.contains(group));
        let more = step.jobs().saturating_add(usize::from(new_group(&groups)));
        if i > begin && (i - begin >= chunk.get() || jobs.saturating_add(more) > JOBS_PER_UPLOAD) {
            chunks.push(begin..i);
            begin = i;
            jobs = 0;
            groups.clear();
        }
        jobs = jobs
            .saturating_add(step.jobs())
            .saturating_add(usize::from(new_group(&groups)));
        groups.extend(group.as_ref());
    }
    if begin < steps.len() {
        chunks.push(begin..steps.len());
    }
    chunks
}

/// Drops skipped steps, from the end, until the others fit into a build; also returns the number of dropped steps.
///
/// # Errors
/// The steps that are not skipped do not fit into a build (64).
pub(super) fn fit(
    mut steps: Vec<PlacedStep>,
    request: &RecordingRequest,
) -> Result<(Vec<PlacedStep>, usize), Failure> {
    // The job that records is one of the build's.
    let most = JOBS_PER_BUILD - 1;
    let all = steps.len();
    loop {
        let jobs: usize = divide(&steps, request.chunk)
            .into_iter()
            .map(|range| jobs(&steps[range]))
            .fold(0, usize::saturating_add);
        if jobs <= most {
            let dropped = all - steps.len();
            return Ok((steps, dropped));
        }
        if !steps.iter().any(|planned| planned.skipped) {
            let groups = if request.group_by == 0 {
                ""
            } else {
                ", groups counted"
            };
            return Err(refuse(format_args!(
                "the pipeline has {jobs} jobs{groups}, and a build can have {JOBS_PER_BUILD}, with the one that records"
            ))
            .hint("exclude targets with `exclude`, or record parts of them in builds of their own, each with its `attr`"));
        }
        // A dropped step may take its group with it, which is one job more. So now and then a step or two are dropped that
        // would have fitted, which is cheaper than counting again after each.
        let mut over = jobs - most;
        let mut fitting = Vec::with_capacity(steps.len());
        for planned in steps.into_iter().rev() {
            if planned.skipped && over > 0 {
                over = over.saturating_sub(planned.step.jobs());
            } else {
                fitting.push(planned);
            }
        }
        fitting.reverse();
        steps = fitting;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Class;
    use crate::recording::pipeline::fixtures::request;

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
        assert_eq!(jobs(&grouped), 4);
    }

    #[test]
    fn skipped_steps_are_dropped_from_the_end_and_no_others() {
        let mut steps: Vec<_> = (0..=JOBS_PER_BUILD)
            .map(|i| PlacedStep::numbered(i, None))
            .collect();
        for i in [0, 1, 2, JOBS_PER_BUILD] {
            steps[i].skipped = true;
        }
        let (fitting, dropped) = fit(steps.clone(), &request()).unwrap();
        assert_eq!((fitting.len(), dropped), (JOBS_PER_BUILD - 1, 2));
        assert_eq!(
            [&fitting[0].step.key, &fitting[2].step.key],
            ["0", "3"],
            "the last two of them"
        );
        steps.retain(|planned| !planned.skipped);
        let mut over = steps;
        over.extend((0..3).map(|i| PlacedStep::numbered(i, None)));
        let failure = fit(over, &request()).unwrap_err();
        assert_eq!(failure.class, Class::Config);
        assert!(failure.to_string().contains("4000 jobs"), "{failure}");
    }
}
