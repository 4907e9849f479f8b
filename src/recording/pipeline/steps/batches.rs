//! Which targets have a step in common: those that took little time in the base, at most [`BATCH_AT_MOST`] each, and no more than a job can
//! be told. Pure.
//!
//! Steps never wait for one another in a circle, by construction: every target has a *level*, which is greater than those of all that
//! it depends on, and the targets of a batch are of one level. So whatever waits is of a greater level than what it waits for.
//!
//! A failure keeps nothing from being built that does not depend on it. Nothing waits for the *success* of a batch: what depends on
//! the target that failed in it finds that out itself, soon, for such a target takes little time. The targets of a batch depend on
//! the same steps of single targets: where one of those fails, none of them could be built. Only where there would be more steps
//! than a build can have, targets are put together that do not; such a batch runs whatever those steps did.

use std::collections::{BTreeMap, BTreeSet};

use crate::recording::pipeline::edges::Edges;

/// The most targets that have a step in common.
const BATCH_AT_MOST: usize = 50;

/// How large the records of targets are.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchSizes<'a> {
    /// For each target, its part of a batch's record, in bytes.
    pub(super) bytes: &'a [usize],
    /// The most bytes of all targets of a batch.
    pub(super) room: usize,
}

impl BatchSizes<'_> {
    /// Divides targets that are alike into batches, without changing their order. One alone is none.
    fn divide(self, alike: &[usize]) -> Vec<&[usize]> {
        let mut batches = Vec::new();
        let (mut begin, mut bytes) = (0, 0_usize);
        for (at, i) in alike.iter().enumerate() {
            if at - begin == BATCH_AT_MOST || bytes.saturating_add(self.bytes[*i]) > self.room {
                batches.push(&alike[begin..at]);
                (begin, bytes) = (at, 0);
            }
            bytes = bytes.saturating_add(self.bytes[*i]);
        }
        batches.push(&alike[begin..]);
        batches.retain(|batch| batch.len() > 1);
        batches
    }
}

/// The batches of a recording.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Batches {
    /// The targets of each, by their numbers.
    members: Vec<Vec<usize>>,
    /// For each target, the batch that it is in.
    of: Vec<Option<usize>>,
    /// For each target, its level.
    levels: Vec<usize>,
    /// Whether targets of a batch may depend on different steps.
    pub(super) are_mixed: bool,
}

impl Batches {
    /// Puts targets together that have the same kind; those without one have a step of their own.
    ///
    /// There are no more than `steps_at_most` steps, if that can be had.
    pub(super) fn new<K: Ord>(
        kinds: &[Option<K>],
        sizes: BatchSizes<'_>,
        edges: &Edges,
        steps_at_most: usize,
    ) -> Self {
        let apart = Self::of_kinds(kinds, sizes, edges, false);
        let batched: usize = apart.members.iter().map(Vec::len).sum();
        if kinds.len() - batched + apart.members.len() <= steps_at_most {
            return apart;
        }
        Self::of_kinds(kinds, sizes, edges, true)
    }

    fn of_kinds<K: Ord>(
        kinds: &[Option<K>],
        sizes: BatchSizes<'_>,
        edges: &Edges,
        are_mixed: bool,
    ) -> Self {
        let mut levels = vec![0; kinds.len()];
        for i in edges.order() {
            let below = edges.of(*i).iter().map(|at| levels[*at] + 1);
            levels[*i] = below.max().unwrap_or(0);
        }
        let mut of: Vec<Option<usize>> = vec![None; kinds.len()];
        let mut members: Vec<Vec<usize>> = Vec::new();
        let mut by_level: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for i in edges.order() {
            by_level.entry(levels[*i]).or_default().push(*i);
        }
        // From below, so that it is known which of the dependencies have a step of their own.
        for level in by_level.into_values() {
            let mut alike: BTreeMap<(&K, BTreeSet<usize>), Vec<usize>> = BTreeMap::new();
            for i in level {
                let Some(kind) = &kinds[i] else { continue };
                let single = edges.of(i).iter();
                let single = single.filter(|at| !are_mixed && of[**at].is_none());
                let single = single.copied().collect();
                alike.entry((kind, single)).or_default().push(i);
            }
            for mut alike in alike.into_values() {
                alike.sort_unstable();
                for batch in sizes.divide(&alike) {
                    for i in batch {
                        of[*i] = Some(members.len());
                    }
                    members.push(batch.to_vec());
                }
            }
        }
        Self {
            members,
            of,
            levels,
            are_mixed,
        }
    }

    /// The batch of a target.
    pub(super) fn of(&self, target: usize) -> Option<usize> {
        self.of.get(target).copied().flatten()
    }

    /// The targets of all batches, by their numbers.
    pub(super) fn members(&self) -> &[Vec<usize>] {
        &self.members
    }

    /// The targets in an order in which a batch can take the place of any of its targets: dependencies first.
    pub(super) fn order(&self, edges: &Edges) -> Vec<usize> {
        let mut order = edges.order().to_vec();
        if !self.members.is_empty() {
            order.sort_by_key(|i| self.levels.get(*i).copied());
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::pipeline::fixtures::{edges_between, target};
    use proptest::prelude::*;

    fn edges(count: usize, pairs: &[(usize, usize)]) -> Edges {
        let targets: Vec<_> = (0..count).map(|i| target(i, &[])).collect();
        edges_between(&targets, pairs)
    }

    /// All of them are small.
    fn small() -> BatchSizes<'static> {
        BatchSizes {
            bytes: &[0; 200],
            room: 1,
        }
    }

    #[test]
    fn a_batch_is_no_larger_than_its_room() {
        let kinds: Vec<Option<()>> = vec![Some(()); 7];
        let sizes = BatchSizes {
            bytes: &[4, 6, 1, 10, 11, 3, 3],
            room: 10,
        };
        let batches = Batches::new(&kinds, sizes, &edges(7, &[]), 999);
        assert_eq!(batches.members(), [vec![0, 1], vec![5, 6]]);
        assert_eq!([2, 3, 4].map(|i| batches.of(i)), [None; 3]);
    }

    #[test]
    fn alike_targets_are_put_together_and_one_alone_is_not() {
        let kinds: Vec<Option<u8>> = (0..103).map(|i| Some(u8::from(i == 7))).collect();
        let batches = Batches::new(&kinds, small(), &edges(103, &[]), 999);
        let sizes: Vec<usize> = batches.members().iter().map(Vec::len).collect();
        assert_eq!(sizes, [50, 50, 2]);
        assert_eq!(batches.of(7), None);
        let kinds: Vec<Option<u8>> = vec![Some(0); 51];
        let batches = Batches::new(&kinds, small(), &edges(51, &[]), 999);
        assert_eq!((batches.members().len(), batches.of(50)), (1, None));
    }

    #[test]
    fn what_depends_on_different_steps_is_not_put_together() {
        // 0 and 1 are slow; 2 and 3 depend on 0, 4 and 5 on 1, 6 and 7 on what is in a batch.
        let kinds: Vec<Option<()>> = (0..8).map(|i| (i > 1).then_some(())).collect();
        let pairs = [(2, 0), (3, 0), (4, 1), (5, 1), (6, 2), (7, 4)];
        let edges = edges(8, &pairs);
        let batches = Batches::new(&kinds, small(), &edges, 5);
        assert_eq!(batches.members(), [vec![2, 3], vec![4, 5], vec![6, 7]]);
        assert!(!batches.are_mixed);
        // Unless there would be too many steps.
        let batches = Batches::new(&kinds, small(), &edges, 4);
        assert_eq!(batches.members(), [vec![2, 3, 4, 5], vec![6, 7]]);
        assert!(batches.are_mixed);
    }

    proptest! {
        #[test]
        fn steps_never_wait_in_a_circle(
            inputs in proptest::collection::vec(proptest::collection::vec(any::<proptest::sample::Index>(), 0..4), 1..120),
            kinds in proptest::collection::vec(proptest::option::weighted(0.8, 0_u8..3), 120),
            shuffle in any::<u64>(),
            are_mixed in any::<bool>(),
        ) {
            let count = inputs.len();
            // Numbers that do not follow the order of the graph.
            let mut numbers: Vec<usize> = (0..count).collect();
            numbers.sort_by_key(|i| (*i as u64 + 1).wrapping_mul(shuffle | 1));
            let pairs: Vec<(usize, usize)> = inputs.iter().enumerate().skip(1)
                .flat_map(|(i, inputs)| inputs.iter().map(move |at| (i, at.index(i))))
                .map(|(from, to)| (numbers[from], numbers[to]))
                .collect();
            let edges = edges(count, &pairs);
            let kinds = &kinds[..count];
            let batches = Batches::new(kinds, small(), &edges, if are_mixed { 0 } else { 999 });
            prop_assert_eq!(batches.are_mixed, are_mixed);
            let mut seen = BTreeSet::new();
            for (at, members) in batches.members().iter().enumerate() {
                prop_assert!((2..=BATCH_AT_MOST).contains(&members.len()));
                let single = |i: usize| -> BTreeSet<usize> {
                    edges.of(i).iter().copied().filter(|it| batches.of(*it).is_none()).collect()
                };
                for i in members {
                    prop_assert!(seen.insert(*i));
                    prop_assert_eq!(batches.of(*i), Some(at));
                    prop_assert!(kinds[*i].is_some() && kinds[*i] == kinds[members[0]]);
                    prop_assert!(are_mixed || single(*i) == single(members[0]));
                }
            }
            prop_assert_eq!(seen.len(), (0..count).filter(|i| batches.of(*i).is_some()).count());
            // In that order, a step that stands where its first target would has all that it waits for before it.
            let step = |i: usize| batches.of(i).map_or((1, i), |batch| (0, batch));
            let mut placed = BTreeSet::new();
            for i in batches.order(&edges) {
                let own = [i];
                let members = batches.of(i).map_or(&own[..], |batch| &batches.members()[batch]);
                if placed.contains(&step(i)) {
                    continue;
                }
                for below in members.iter().flat_map(|i| edges.of(*i)) {
                    prop_assert!(placed.contains(&step(*below)), "{below} is waited for by {i}");
                }
                placed.insert(step(i));
            }
        }
    }
}
