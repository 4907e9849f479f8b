//! Which targets, and steps that follow them, wish to wait for a step that waits for them: Buildkite would never run any of those. Pure.
//!
//! What is found are wishes alone (`depends_on` in a `meta.buildkite`): without them, steps wait in no circle. A wish for a step of
//! somebody else's is not looked at, because what that one waits for is not known.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::Records;
use super::step_key::StepKeys;
use crate::keys::Keys;
use crate::nix::AttrPath;
use crate::recording::following::FollowerState;

/// The keys that may not be waited for, by the attribute path whose metadata wishes that.
pub(super) type Circles = BTreeMap<AttrPath, String>;

/// A wish to wait: whose it is, by attribute path and number, for which number, by which key.
struct Wish {
    attr: AttrPath,
    from: usize,
    to: usize,
    key: String,
}

/// Finds them.
pub(super) fn circles(records: &Records<'_>, keys: &StepKeys) -> Circles {
    let (targets, count) = (records.targets, records.targets.len());
    let mut numbers: HashMap<String, usize> = HashMap::new();
    for (i, target) in targets.iter().enumerate() {
        numbers.insert(keys.target(target), i);
    }
    // Behind the targets and the shared derivations stands what waits for all targets, and then what follows one.
    let all = count + records.shared.len();
    let mut waits: Vec<Vec<usize>> = (0..all).map(|i| records.edges.of(i).to_vec()).collect();
    waits.push((0..count).collect());
    let mut written: Vec<(AttrPath, usize, &Keys)> = Vec::new();
    for (i, target) in targets.iter().enumerate() {
        let buildkite = target.meta.buildkite.as_ref();
        written.extend(buildkite.map(|keys| (target.attr.clone(), i, keys)));
        for follower in &target.followers {
            let (attr, number) = (follower.attr(), waits.len());
            let (step, confirm) = keys.follower(&attr);
            numbers.extend([(step, number), (confirm, number)]);
            let FollowerState::Read { keys, .. } = &follower.meta.state else {
                waits.push(Vec::new());
                continue;
            };
            waits.push(match keys.get("after").and_then(Value::as_str) {
                Some("nothing") => Vec::new(),
                Some("all") => vec![all],
                _ => vec![i],
            });
            let buildkite = keys.get("buildkite").and_then(Value::as_object);
            written.extend(buildkite.map(|keys| (attr, number, keys)));
        }
    }
    let mut wishes = Vec::new();
    for (attr, from, keys) in written {
        for key in keys.get("depends_on").map_or_else(Vec::new, wished) {
            if let Some(to) = numbers.get(key) {
                waits[from].push(*to);
                wishes.push(Wish {
                    attr: attr.clone(),
                    from,
                    to: *to,
                    key: key.to_owned(),
                });
            }
        }
    }
    if wishes.is_empty() {
        return Circles::new();
    }
    let circle = components(&waits);
    let wishes = wishes.into_iter();
    let wishes = wishes.filter(|wish| circle[wish.from] == circle[wish.to]);
    wishes.map(|wish| (wish.attr, wish.key)).collect()
}

/// The keys that `depends_on` names.
pub(super) fn wished(depends_on: &Value) -> Vec<&str> {
    match depends_on {
        Value::Array(entries) => entries.iter().filter_map(key_of).collect(),
        entry => key_of(entry).into_iter().collect(),
    }
}

fn key_of(entry: &Value) -> Option<&str> {
    entry.as_str().or_else(|| entry.get("step")?.as_str())
}

/// For each node of a graph, the number of its strongly connected component, whose nodes reach one another (Tarjan's algorithm, without
/// recursion: a chain of targets may be long).
fn components(edges: &[Vec<usize>]) -> Vec<usize> {
    const NONE: usize = usize::MAX;
    let mut component = vec![NONE; edges.len()];
    let mut index = vec![NONE; edges.len()];
    let mut low = vec![NONE; edges.len()];
    let (mut next, mut count) = (0, 0);
    // The nodes that are in no component yet, and the path, with the edge of each that comes next.
    let (mut open, mut path): (Vec<usize>, Vec<(usize, usize)>) = (Vec::new(), Vec::new());
    for root in 0..edges.len() {
        if index[root] == NONE {
            path.push((root, 0));
        }
        while let Some((node, edge)) = path.pop() {
            if edge == 0 {
                (index[node], low[node]) = (next, next);
                next += 1;
                open.push(node);
            } else {
                let below = edges[node][edge - 1];
                if component[below] == NONE {
                    low[node] = low[node].min(low[below]);
                }
            }
            match edges[node].get(edge) {
                Some(below) => {
                    path.push((node, edge + 1));
                    if index[*below] == NONE {
                        path.push((*below, 0));
                    }
                }
                None if low[node] == index[node] => {
                    while let Some(member) = open.pop() {
                        component[member] = count;
                        if member == node {
                            break;
                        }
                    }
                    count += 1;
                }
                None => {}
            }
        }
    }
    component
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::make;
    use super::*;
    use crate::recording::pipeline::fixtures::{edges_between, no_edges, request, target_wishing};
    use crate::recording::{KeyStyle, RecordingRequest, Target};
    use proptest::prelude::*;
    use serde_json::json;

    proptest! {
        #[test]
        fn two_nodes_are_of_one_component_where_each_reaches_the_other(
            edges in proptest::collection::vec(proptest::collection::vec(any::<proptest::sample::Index>(), 0..3), 1..12),
        ) {
            let count = edges.len();
            let edges: Vec<Vec<usize>> = edges.iter()
                .map(|below| below.iter().map(|at| at.index(count)).collect()).collect();
            let mut reaches = vec![vec![false; count]; count];
            for (from, below) in edges.iter().enumerate() {
                reaches[from][from] = true;
                for to in below {
                    reaches[from][*to] = true;
                }
            }
            for over in 0..count {
                for from in 0..count {
                    for to in 0..count {
                        reaches[from][to] |= reaches[from][over] && reaches[over][to];
                    }
                }
            }
            let component = components(&edges);
            for from in 0..count {
                for to in 0..count {
                    let both = reaches[from][to] && reaches[to][from];
                    prop_assert_eq!(component[from] == component[to], both);
                }
            }
        }
    }

    #[test]
    fn what_would_wait_for_itself_is_refused_and_nothing_else_is() {
        let request = RecordingRequest {
            key_style: KeyStyle::Attr,
            key_prefix: "nix-".into(),
            ..request()
        };
        let wishes = [
            json!("nix-p-t0"),
            json!([{ "step": "nix-p-t2" }]),
            json!(["elsewhere", "nix-p-t1"]),
            // The fourth waits for the fifth because of its `.drv`.
            json!(null),
            json!(["nix-p-t3"]),
            // It waits for a circle, and is in none.
            json!(["nix-p-t4", "nix-p-t3", "elsewhere"]),
        ];
        let wishes = wishes.iter().enumerate();
        let targets: Vec<Target> = wishes
            .map(|(i, wish)| target_wishing(i, &json!({ "depends_on": wish })))
            .collect();
        let made = make(&targets, &edges_between(&targets, &[(3, 4)]), &[], &request).unwrap();
        let refused = made.errors.refused.iter();
        let refused: Vec<_> = refused
            .map(|it| (it.attr.to_string(), it.message.clone().unwrap()))
            .collect();
        let expected = [("p.t0", 0), ("p.t1", 2), ("p.t2", 1), ("p.t4", 3)].map(|(attr, key)| {
            let message = format!(
                "in its `meta.buildkite`, `depends_on` names nix-p-t{key}, a step that waits for this one or is this one"
            );
            (attr.to_owned(), message)
        });
        assert_eq!(refused, expected);
        let untrusted = RecordingRequest {
            meta: false,
            ..request.clone()
        };
        let made = make(&targets, &no_edges(&targets), &[], &untrusted).unwrap();
        assert_eq!(made.errors.refused, []);
        let mut all = request;
        all.step = json!({ "depends_on": "nix-p-t3" })
            .as_object()
            .unwrap()
            .clone();
        let failure = make(&targets, &no_edges(&targets), &[], &all).unwrap_err();
        assert!(failure.to_string().contains("nix-p-t3"), "{failure}");
        all.phases.build = false;
        assert!(make(&targets, &no_edges(&targets), &[], &all).is_ok());
    }

    #[test]
    fn a_long_chain_takes_no_stack() {
        let edges: Vec<Vec<usize>> = (0..200_000_usize)
            .map(|i| i.checked_sub(1).into_iter().collect())
            .collect();
        assert_eq!(components(&edges).last(), Some(&199_999));
    }
}
