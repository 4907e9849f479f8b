//! What holds of every schedule, however its workers behave.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::recording::evaluate::spans::tests::{path, tree};

const BUDGET: u64 = 1000;

/// What a worker reports.
#[derive(Debug, Clone)]
enum Report {
    Begin(AttrIndex),
    Set(AttrIndex, u32),
}

/// The reports of a task.
fn reports(task: &Task, counts: &ChildCounts) -> VecDeque<Report> {
    let attributes = task.spans.iter().flatten().flat_map(|span| {
        assert_eq!(span.count, counts[&span.at]);
        (span.from..span.to).map(|number| span.at.child(number))
    });
    let root = task.spans.is_none().then(|| path(""));
    let mut reports = VecDeque::new();
    for path in root.into_iter().chain(attributes) {
        if !path.is_root() {
            reports.push_back(Report::Begin(path.clone()));
        }
        if let Some(count) = counts.get(&path) {
            reports.push_back(Report::Set(path, *count));
        }
    }
    reports
}

/// A worker, as its driver sees it.
struct Simulated {
    worker: WorkerId,
    /// None while it is idle.
    reports: Option<VecDeque<Report>>,
    /// The attribute that has begun, and not ended.
    current: Option<AttrIndex>,
    is_closing: bool,
}

#[derive(Default)]
struct Ended {
    attributes: Vec<AttrIndex>,
    /// What is below these need not end.
    given_up: Vec<AttrIndex>,
}

#[derive(Debug, Clone, Copy)]
struct Dice {
    which: usize,
    action: u32,
    number: u64,
}

fn dice() -> impl Strategy<Value = Dice> {
    (0..6usize, 0..24u32, 0..1_000_000u64).prop_map(|(which, action, number)| Dice {
        which,
        action,
        number,
    })
}

fn check(schedule: &Schedule, workers: &[Simulated]) -> Result<(), TestCaseError> {
    let parts = workers.iter().map(|one| schedule.part(one.worker));
    prop_assert!(parts.sum::<u64>() <= BUDGET);
    let mut alone = workers.iter().filter(|one| schedule.is_alone(one.worker));
    prop_assert!(workers.len() < 2 || alone.next().is_none());
    let (begun, known) = schedule.names();
    prop_assert!(begun <= known);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn however_workers_behave_each_attribute_ends_once_within_the_memory(
        counts in tree(),
        most in 1..5usize,
        is_remembered in any::<bool>(),
        mut dice in proptest::collection::vec(dice(), 0..120),
    ) {
        let remembered = Costs { attributes: 40, root: 1.0, warm_up: 0.0, each: 1.0, base: 10.0, growth: 2.0 };
        let mut schedule = Schedule::new(most, BUDGET, is_remembered.then_some(remembered));
        schedule.plan(vec![Task::root()]);
        let mut workers: Vec<Simulated> = Vec::new();
        let mut ended = Ended::default();
        // What has to begin in a new worker; whether it has to be alone there.
        let mut anew: BTreeSet<(AttrIndex, bool)> = BTreeSet::new();
        for step in 0u64.. {
            prop_assert!(step < 5000, "the work does not end");
            let now = Duration::from_secs(step);
            let Dice { which, action, number } = dice.pop().unwrap_or(Dice { which: 0, action: 99, number: 1 });
            while let Some(worker) = schedule.open(now) {
                workers.push(Simulated { worker, reports: None, current: None, is_closing: false });
                prop_assert!(workers.len() <= most);
                check(&schedule, &workers)?;
            }
            for one in &mut workers {
                if one.reports.is_some() || one.is_closing {
                    continue;
                }
                let resident = (number % 7 > 0).then_some(number % 1200);
                match schedule.next(one.worker, resident, now) {
                    Next::Task(task) => {
                        if task.catch {
                            prop_assert_eq!(schedule.begun(one.worker), 0);
                        }
                        one.reports = Some(reports(&task, &counts));
                    }
                    Next::Wait => {}
                    Next::End => one.is_closing = true,
                }
            }
            check(&schedule, &workers)?;
            if workers.is_empty() {
                break;
            }
            let which = which % workers.len();
            // The last dice are thrown: all workers go on.
            let which = (0..workers.len()).map(|next| (which + next) % workers.len())
                .find(|which| action < 99 || workers[*which].reports.is_some() || workers[*which].is_closing)
                .unwrap_or(which);
            let one = &mut workers[which];
            let worker = one.worker;
            if one.is_closing {
                schedule.gone(worker);
                workers.remove(which);
                continue;
            }
            let Some(left) = &mut one.reports else {
                // An idle process may die as well.
                if action == 0 {
                    schedule.ended(worker, LineEnd::Finished, true, now);
                    workers.remove(which);
                }
                continue;
            };
            let is_gone = number % 2 == 0;
            let at = schedule.at(worker);
            let end = match action {
                0 => Some((LineEnd::Again { catch: number % 3 == 0 }, is_gone)),
                1 => Some((LineEnd::Alone, true)),
                2 if at.is_root() => Some((LineEnd::Fewer, true)),
                3 | 4 if !at.is_root() => Some((LineEnd::GaveUp, is_gone)),
                5 if !at.is_root() => {
                    let sets: Vec<_> = at.with_parents().skip(1).collect();
                    let set = sets[usize::try_from(number).unwrap() % sets.len()].clone();
                    Some((LineEnd::GaveUpSet(set), is_gone))
                }
                8 => Some((LineEnd::Waits, is_gone)),
                6 | 7 => {
                    // It lies: an attribute again, one of another task, or one that there is not.
                    let foreign = match number % 3 {
                        0 => at.clone(),
                        1 => at.child(77),
                        _ => counts.keys().nth(usize::try_from(number).unwrap() % counts.len()).unwrap().clone(),
                    };
                    let is_next = left.iter().any(|report| matches!(report, Report::Begin(path) if *path == foreign));
                    if is_next {
                        None
                    } else {
                        prop_assert!(!schedule.begin(worker, foreign, now));
                        Some((LineEnd::Again { catch: false }, true))
                    }
                }
                _ => match left.pop_front() {
                    None => Some((LineEnd::Finished, is_gone)),
                    Some(Report::Begin(path)) => {
                        ended.attributes.extend(one.current.take());
                        for alone in [false, true] {
                            if anew.remove(&(path.clone(), alone)) {
                                prop_assert_eq!(schedule.begun(worker), 0, "{} in a used worker", path);
                                prop_assert!(!alone || schedule.is_alone(worker));
                            }
                        }
                        prop_assert!(schedule.begin(worker, path.clone(), now));
                        one.current = Some(path);
                        None
                    }
                    Some(Report::Set(path, count)) => {
                        ended.attributes.extend(one.current.take());
                        schedule.set(worker, path.clone(), count);
                        // Said twice, it changes nothing.
                        schedule.set(worker, path, count);
                        None
                    }
                }
            };
            let Some((how, is_gone)) = end else { continue };
            let current = one.current.take();
            match &how {
                LineEnd::Finished => ended.attributes.extend(current),
                LineEnd::GaveUp => {
                    ended.given_up.extend(current.clone());
                    ended.attributes.extend(current);
                }
                LineEnd::GaveUpSet(set) => {
                    ended.given_up.push(set.clone());
                    ended.given_up.extend(current.clone());
                    anew.retain(|(path, _)| !path.is_in(set));
                    ended.attributes.extend(current);
                }
                LineEnd::Again { .. } | LineEnd::Alone => {
                    anew.extend(current.map(|path| (path, how == LineEnd::Alone)));
                }
                LineEnd::Fewer | LineEnd::Waits => {}
            }
            one.reports = None;
            schedule.ended(worker, how, is_gone, now);
            if is_gone {
                workers.remove(which);
            }
        }
        let below = |path: &AttrIndex| ended.given_up.iter().any(|set| path != set && path.is_in(set));
        let all = counts.iter().flat_map(|(set, count)| (0..*count).map(|number| set.child(number)));
        let once: BTreeSet<AttrIndex> = ended.attributes.iter().cloned().collect();
        prop_assert_eq!(once.len(), ended.attributes.len(), "{:?}", ended.attributes);
        for path in all {
            prop_assert!(once.contains(&path) || below(&path), "{} has not ended", path);
        }
        prop_assert_eq!(schedule.names().0, once.len() as u64);
        if ended.given_up.is_empty() {
            prop_assert_eq!(schedule.names().1, once.len() as u64);
        }
    }
}
