//! Which target waits for which: edges from each target to the nearest targets that it depends on, through derivations that are
//! not targets.
//!
//! Graphs of derivations are large and deep: 100,000 derivations, thousands of levels. So nothing here recurses, each derivation is
//! read once, and the nearest targets below it are computed in one pass, dependencies first. This module does not know where the
//! inputs of a derivation are read from.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::rc::Rc;

use crate::nix::DrvPath;

/// The edges between targets. A target is known by its index in the list that [`Edges::load`] was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edges {
    /// All targets in topological order, dependencies first.
    order: Vec<usize>,
    /// For each target, the nearest ones it depends on, none of them reachable through another of them.
    below: Vec<Vec<usize>>,
}

/// Why edges cannot be found.
#[derive(Debug)]
pub enum BadGraph {
    /// The inputs of this derivation cannot be read.
    Unreadable(DrvPath, io::Error),
    /// This derivation depends on itself, which no store allows.
    Cycle(DrvPath),
}

impl fmt::Display for BadGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(drv, _) => write!(f, "cannot read the inputs of {drv}"),
            Self::Cycle(drv) => write!(f, "{drv} depends on itself"),
        }
    }
}

impl std::error::Error for BadGraph {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable(_, error) => Some(error),
            Self::Cycle(_) => None,
        }
    }
}

impl Edges {
    /// Finds the edges between `targets`. `read` returns the inputs of a derivation, and is called once for each reachable one.
    ///
    /// # Errors
    /// The inputs of a derivation cannot be read, or it depends on itself; the error names it.
    pub fn load(
        targets: &[DrvPath],
        mut read: impl FnMut(&DrvPath) -> io::Result<Vec<DrvPath>>,
    ) -> Result<Self, BadGraph> {
        // The first target of each `.drv`; a `.drv` that is listed twice is one node.
        let mut ids: HashMap<DrvPath, u32> = HashMap::with_capacity(targets.len());
        let mut first = Vec::with_capacity(targets.len());
        for (i, drv) in targets.iter().enumerate() {
            let id = number(first.len());
            if *ids.entry(drv.clone()).or_insert(id) == id {
                first.push(i);
            }
        }
        let mut nearest = Nearest::new(first.len());
        // The state of each node, by its number.
        let mut states: Vec<VisitState> = vec![VisitState::New; first.len()];
        let mut order = Vec::with_capacity(targets.len());
        let mut below = vec![Vec::new(); targets.len()];
        let mut path: Vec<Open> = Vec::new();
        let mut inputs_of =
            |drv: &DrvPath, states: &mut Vec<VisitState>, ids: &mut HashMap<_, u32>| {
                let inputs = read(drv).map_err(|error| BadGraph::Unreadable(drv.clone(), error))?;
                let mut unvisited = Vec::with_capacity(inputs.len());
                for input in inputs {
                    let next = number(states.len());
                    let id = if let Some(id) = ids.get(&input) {
                        *id
                    } else {
                        ids.insert(input.clone(), next);
                        states.push(VisitState::New);
                        next
                    };
                    unvisited.push((id, input));
                }
                // They are visited from the end.
                unvisited.reverse();
                Ok(unvisited)
            };
        for (root, target) in first.iter().enumerate() {
            if states[root] != VisitState::New {
                continue;
            }
            states[root] = VisitState::Open;
            let drv = &targets[*target];
            path.push(Open {
                id: number(root),
                unvisited: inputs_of(drv, &mut states, &mut ids)?,
                sets: Vec::new(),
            });
            while let Some(node) = path.last_mut() {
                if let Some((id, drv)) = node.unvisited.pop() {
                    match &states[id as usize] {
                        VisitState::Done(set) => add(&mut node.sets, set),
                        VisitState::Open => return Err(BadGraph::Cycle(drv)),
                        VisitState::New => {
                            states[id as usize] = VisitState::Open;
                            let unvisited = inputs_of(&drv, &mut states, &mut ids)?;
                            path.push(Open {
                                id,
                                unvisited,
                                sets: Vec::new(),
                            });
                        }
                    }
                    continue;
                }
                let Some(Open { id, sets, .. }) = path.pop() else {
                    break;
                };
                let set = nearest.of(&sets);
                let set = match first.get(id as usize) {
                    None => set,
                    Some(target) => {
                        below[*target] = set.iter().map(|rank| order[*rank as usize]).collect();
                        below[*target].sort_unstable();
                        order.push(*target);
                        nearest.finish(&set)
                    }
                };
                states[id as usize] = VisitState::Done(Rc::clone(&set));
                if let Some(above) = path.last_mut() {
                    add(&mut above.sets, &set);
                }
            }
        }
        // A `.drv` that was listed twice has the same edges twice.
        for (i, drv) in targets.iter().enumerate() {
            let same = first[ids[drv] as usize];
            if same != i {
                let edges = below[same].clone();
                below[i] = edges;
                order.push(i);
            }
        }
        Ok(Self { order, below })
    }

    /// The targets that `target` waits for, in the order of the list.
    #[must_use]
    pub fn of(&self, target: usize) -> &[usize] {
        &self.below[target]
    }

    /// All targets in topological order, dependencies first.
    #[must_use]
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// The edges without the `excluded` targets: such a target has no edges, and a target that waited for it waits for its
    /// dependencies instead.
    #[must_use]
    pub fn without(&self, excluded: &[bool]) -> Self {
        let is_excluded = |target: usize| excluded.get(target).copied().unwrap_or(false);
        let mut nearest = Nearest::new(self.order.len());
        let mut sets: Vec<Option<Rc<[u32]>>> = vec![None; self.below.len()];
        let mut below = vec![Vec::new(); self.below.len()];
        let mut ranks = Vec::with_capacity(self.order.len());
        for target in &self.order {
            let mut inputs = Vec::new();
            for set in self.below[*target]
                .iter()
                .filter_map(|input| sets[*input].as_ref())
            {
                add(&mut inputs, set);
            }
            let set = nearest.of(&inputs);
            let set = if is_excluded(*target) {
                set
            } else {
                below[*target] = set.iter().map(|rank| ranks[*rank as usize]).collect();
                below[*target].sort_unstable();
                ranks.push(*target);
                nearest.finish(&set)
            };
            sets[*target] = Some(set);
        }
        Self {
            order: self.order.clone(),
            below,
        }
    }
}

/// The state of a node in the depth-first visit.
#[derive(Clone, PartialEq)]
enum VisitState {
    New,
    Open,
    /// The nearest targets that are reached from this node, itself included, by rank.
    Done(Rc<[u32]>),
}

/// A node whose inputs are being visited.
struct Open {
    id: u32,
    unvisited: Vec<(u32, DrvPath)>,
    sets: Vec<Rc<[u32]>>,
}

/// Adds a set to those below a node, unless it is empty or shared with one of them.
fn add(sets: &mut Vec<Rc<[u32]>>, set: &Rc<[u32]>) {
    if !set.is_empty() && !sets.iter().any(|other| Rc::ptr_eq(other, set)) {
        sets.push(Rc::clone(set));
    }
}

/// The number of a node or target. (There is no memory for more of them.)
fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// The targets that are reached from each target. A target is known by its rank: targets are finished in topological order, so
/// those that are reached from it have lower ranks.
struct Nearest {
    /// For each finished target a bit for every rank that is reached from it: a triangle, so 10,000 targets take 6 MB.
    reached: Vec<Box<[u64]>>,
    /// A bit for every rank that is in one of the sets; all zero between uses.
    wanted: Vec<u64>,
    /// A bit for every rank that is reached from a nearest target; all zero between uses.
    covered: Vec<u64>,
    empty: Rc<[u32]>,
}

impl Nearest {
    fn new(targets: usize) -> Self {
        Self {
            reached: Vec::with_capacity(targets),
            wanted: vec![0; targets.div_ceil(64)],
            covered: vec![0; targets.div_ceil(64)],
            empty: Rc::new([]),
        }
    }

    /// The targets of these sets that are not reached from another of them, highest rank first. Each of the sets has this form
    /// already.
    fn of(&mut self, sets: &[Rc<[u32]>]) -> Rc<[u32]> {
        match sets {
            [] => return Rc::clone(&self.empty),
            [set] => return Rc::clone(set),
            _ => {}
        }
        let (mut low, mut high) = (usize::MAX, 0);
        for rank in sets.iter().flat_map(|set| set.iter()) {
            let (word, bit) = place(*rank);
            self.wanted[word] |= bit;
            low = low.min(word);
            high = high.max(word);
        }
        let mut ranks = Vec::new();
        for word in (low..=high).rev() {
            while let Some(bit) = (self.wanted[word] & !self.covered[word]).checked_ilog2() {
                let rank = word * 64 + bit as usize;
                self.wanted[word] &= !(1 << bit);
                ranks.push(number(rank));
                // Ranks below the lowest wanted one cannot be in the result.
                let reached = self.reached[rank].get(low..).unwrap_or_default();
                for (covered, reached) in self.covered[low..].iter_mut().zip(reached) {
                    *covered |= reached;
                }
            }
        }
        self.wanted[low..=high].fill(0);
        self.covered[low..=high].fill(0);
        // A set that equals the result is shared: most derivations add no target to those below them.
        if let Some(same) = sets.iter().find(|set| ***set == *ranks) {
            return Rc::clone(same);
        }
        ranks.into()
    }

    /// Finishes a target whose nearest targets are `set`, and returns the set of it alone.
    fn finish(&mut self, set: &[u32]) -> Rc<[u32]> {
        let rank = number(self.reached.len());
        let mut row =
            vec![0; set.first().map_or(0, |highest| place(*highest).0 + 1)].into_boxed_slice();
        for below in set {
            let (word, bit) = place(*below);
            row[word] |= bit;
            for (row, reached) in row.iter_mut().zip(&self.reached[*below as usize]) {
                *row |= reached;
            }
        }
        self.reached.push(row);
        Rc::new([rank])
    }
}

/// The word and the bit of a rank.
fn place(rank: u32) -> (usize, u64) {
    (rank as usize / 64, 1 << (rank % 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn drv(i: usize) -> DrvPath {
        DrvPath::parse(&format!("/nix/store/{i:032}-x.drv")).unwrap()
    }

    /// The edges of a graph of numbers, of which these are targets.
    fn edges(graph: &[Vec<usize>], targets: &[usize]) -> Edges {
        let targets: Vec<_> = targets.iter().map(|i| drv(*i)).collect();
        Edges::load(&targets, |path| {
            let i: usize = path.as_store_path().hash().parse().unwrap();
            Ok(graph[i].iter().map(|i| drv(*i)).collect())
        })
        .unwrap()
    }

    #[test]
    fn the_nearest_targets_are_found_through_other_derivations() {
        // 0 → 1 → 2 → 3, 0 → 2; 1 is not a target.
        let graph = [vec![1, 2], vec![2], vec![3], vec![]];
        let edges = edges(&graph, &[0, 2, 3]);
        assert_eq!(edges.of(0), [1]);
        assert_eq!(edges.of(1), [2]);
        assert!(edges.of(2).is_empty());
        assert_eq!(edges.order(), [2, 1, 0]);
        let without = edges.without(&[false, true, false]);
        assert_eq!(without.of(0), [2]);
        assert!(without.of(1).is_empty());
    }

    #[test]
    fn a_drv_that_is_listed_twice_is_one_node() {
        let edges = edges(&[vec![1], vec![]], &[0, 1, 0]);
        assert_eq!((edges.of(0), edges.of(2)), (&[1][..], &[1][..]));
    }

    #[test]
    fn a_drv_that_does_not_exist_is_named() {
        let error = Edges::load(&[drv(0)], |path| {
            if *path == drv(0) {
                Ok(vec![drv(7)])
            } else {
                Err(io::ErrorKind::NotFound.into())
            }
        });
        assert!(error.unwrap_err().to_string().contains(&drv(7).to_string()));
    }

    #[test]
    fn a_cycle_is_an_error_and_not_an_endless_loop() {
        let error = Edges::load(&[drv(0)], |path| Ok(vec![path.clone()])).unwrap_err();
        assert!(matches!(error, BadGraph::Cycle(_)));
    }

    #[test]
    fn a_deep_graph_does_not_overflow_the_stack() {
        let graph: Vec<_> = (0..50_000)
            .map(|i: usize| i.checked_sub(1).into_iter().collect())
            .collect();
        assert_eq!(edges(&graph, &[49_999, 0]).of(0), [1]);
    }

    /// The nodes that are reached from a node, itself not included.
    fn reach(graph: &[Vec<usize>], from: usize) -> BTreeSet<usize> {
        let mut seen = BTreeSet::new();
        let mut unvisited = graph[from].clone();
        while let Some(i) = unvisited.pop() {
            if seen.insert(i) {
                unvisited.extend(&graph[i]);
            }
        }
        seen
    }

    /// The edges of a transitive reduction, by its definition.
    fn oracle(graph: &[Vec<usize>], targets: &[usize]) -> Vec<BTreeSet<usize>> {
        let is_target: BTreeSet<_> = targets.iter().copied().collect();
        let of = |from: usize| -> BTreeSet<usize> {
            let below: BTreeSet<_> = reach(graph, from)
                .intersection(&is_target)
                .copied()
                .collect();
            let further: BTreeSet<_> = below.iter().flat_map(|i| reach(graph, *i)).collect();
            below.difference(&further).copied().collect()
        };
        targets.iter().map(|i| of(*i)).collect()
    }

    proptest! {
        #[test]
        fn edges_are_the_transitive_reduction(
            inputs in proptest::collection::vec(proptest::collection::vec(any::<proptest::sample::Index>(), 0..5), 1..90),
            chosen in proptest::collection::vec(0_u8..4, 90),
            shuffle in any::<u64>(),
        ) {
            let graph: Vec<Vec<usize>> = inputs.iter().enumerate()
                .map(|(i, inputs)| if i == 0 { vec![] } else { inputs.iter().map(|at| at.index(i)).collect() })
                .collect();
            let mut targets: Vec<usize> = (0..graph.len()).filter(|i| chosen[*i] > 1).collect();
            targets.sort_by_key(|i| (*i as u64 + 1).wrapping_mul(shuffle | 1));
            let edges = edges(&graph, &targets);
            let named = |edges: &Edges, i: usize| edges.of(i).iter().map(|j| targets[*j]).collect::<BTreeSet<_>>();
            for (i, expected) in oracle(&graph, &targets).iter().enumerate() {
                prop_assert_eq!(&named(&edges, i), expected);
            }
            let mut seen = BTreeSet::new();
            for i in edges.order() {
                prop_assert!(edges.of(*i).iter().all(|j| seen.contains(j)));
                prop_assert!(seen.insert(*i));
            }
            prop_assert_eq!(seen.len(), targets.len());

            let excluded: Vec<bool> = targets.iter().map(|i| chosen[*i] == 2).collect();
            let without = edges.without(&excluded);
            let others: Vec<usize> = targets.iter().copied().filter(|i| chosen[*i] > 2).collect();
            let oracle = oracle(&graph, &others);
            for (i, target) in targets.iter().enumerate() {
                let expected = others.iter().position(|other| other == target).map(|k| oracle[k].clone());
                prop_assert_eq!(named(&without, i), expected.unwrap_or_default());
            }
        }
    }
}
