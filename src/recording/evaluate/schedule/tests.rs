//! Single decisions of the schedule.

use super::*;
use crate::recording::evaluate::spans::tests::path;

const BUDGET: u64 = 1000;

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn texts(spans: &[Span]) -> Vec<String> {
    let text = |span: &Span| format!("{}/{}..{}", span.at, span.from, span.to);
    spans.iter().map(text).collect()
}

/// The spans of the task that an idle worker is given.
fn next(schedule: &mut Schedule, worker: WorkerId, now: u64) -> Vec<String> {
    match schedule.next(worker, Some(10), at(now)) {
        Next::Task(task) => texts(&task.spans.unwrap_or_default()),
        other => vec![format!("{other:?}")],
    }
}

/// A schedule with one idle worker, which has found a root of `count` attributes.
fn found(most: usize, count: u32) -> (Schedule, WorkerId) {
    let mut schedule = Schedule::new(most, BUDGET, None);
    schedule.plan(vec![Task::root()]);
    let worker = schedule.open(at(0)).unwrap();
    assert_eq!(schedule.next(worker, None, at(0)), Next::Task(Task::root()));
    schedule.set(worker, path(""), count);
    schedule.ended(worker, LineEnd::Finished, false, at(1));
    (schedule, worker)
}

#[test]
fn the_root_is_evaluated_once_and_its_attributes_are_tasks() {
    let (mut schedule, worker) = found(2, 5);
    assert_eq!(
        schedule.open(at(1)),
        None,
        "nothing is known of its attributes"
    );
    assert_eq!(next(&mut schedule, worker, 1), ["/0..2"]);
    assert_eq!(schedule.at(worker), path(""));
    assert!(schedule.begin(worker, path("/0"), at(1)));
    assert_eq!(schedule.at(worker), path("/0"));
    assert!(
        !schedule.begin(worker, path("/2"), at(1)),
        "not in its task"
    );
    assert!(!schedule.begin(worker, path("/0"), at(1)), "twice");
    assert!(!schedule.begin(worker, path("/0/0"), at(1)), "not a set");
    assert_eq!((schedule.begun(worker), schedule.names()), (1, (1, 5)));
    schedule.exclude();
    assert_eq!(schedule.names(), (2, 5));
}

#[test]
fn the_attributes_of_a_set_come_before_those_behind_it() {
    let (mut schedule, worker) = found(1, 9);
    assert_eq!(next(&mut schedule, worker, 1), ["/0..2"]);
    assert!(schedule.begin(worker, path("/0"), at(1)));
    schedule.set(worker, path("/0"), 3);
    assert!(schedule.begin(worker, path("/1"), at(1)));
    schedule.ended(worker, LineEnd::Finished, false, at(1));
    assert_eq!(next(&mut schedule, worker, 1), ["/0/0..3", "/2..9"]);
    assert_eq!(
        schedule.task(worker).unwrap().spans.as_ref().unwrap().len(),
        2
    );
    assert_eq!(schedule.names(), (2, 12));
}

#[test]
fn what_follows_an_attribute_that_does_not_evaluate_waits_again() {
    let (mut schedule, worker) = found(1, 8);
    next(&mut schedule, worker, 1);
    assert!(schedule.begin(worker, path("/0"), at(1)));
    assert!(!schedule.is_in_meta(worker));
    schedule.begin_meta(worker);
    assert!(schedule.is_in_meta(worker));
    schedule.ended(worker, LineEnd::GaveUp, false, at(1));
    assert_eq!(next(&mut schedule, worker, 1), ["/1..8"]);
}

#[test]
fn a_set_that_is_given_up_takes_its_attributes_with_it() {
    let (mut schedule, worker) = found(1, 9);
    next(&mut schedule, worker, 1);
    assert!(schedule.begin(worker, path("/0"), at(1)));
    schedule.set(worker, path("/0"), 100);
    schedule.ended(worker, LineEnd::Finished, false, at(1));
    assert_eq!(next(&mut schedule, worker, 1), ["/0/0..9"]);
    assert!(schedule.begin(worker, path("/0/3"), at(1)));
    schedule.ended(worker, LineEnd::GaveUpSet(path("/0")), false, at(1));
    assert_eq!(next(&mut schedule, worker, 1), ["/2..9"]);
    // The nine of the task and the first of the root were known and are not dropped.
    assert_eq!(schedule.names(), (2, 9 + 4));
}

#[test]
fn an_attribute_is_evaluated_again_first_of_all_in_a_new_worker() {
    for is_gone in [true, false] {
        let (mut schedule, worker) = found(1, 9);
        next(&mut schedule, worker, 1);
        assert!(schedule.begin(worker, path("/0"), at(1)));
        assert!(schedule.begin(worker, path("/1"), at(1)));
        schedule.ended(worker, LineEnd::Again { catch: true }, is_gone, at(1));
        assert_eq!(schedule.names().0, 1);
        if !is_gone {
            assert_eq!(schedule.open(at(1)), None);
            assert_eq!(schedule.next(worker, None, at(1)), Next::End);
            schedule.gone(worker);
        }
        let other = schedule.open(at(1)).unwrap();
        assert_ne!(other, worker);
        let Next::Task(task) = schedule.next(other, None, at(1)) else {
            panic!("no task");
        };
        assert!(task.catch);
        assert_eq!(texts(&task.spans.unwrap()), ["/1..2"]);
        assert!(schedule.begin(other, path("/1"), at(2)));
        schedule.ended(other, LineEnd::Finished, false, at(2));
        assert_eq!(next(&mut schedule, other, 2), ["/2..9"]);
    }
}

#[test]
fn the_root_is_evaluated_again_in_a_new_worker() {
    let mut schedule = Schedule::new(2, BUDGET, None);
    schedule.plan(vec![Task::root()]);
    let worker = schedule.open(at(0)).unwrap();
    schedule.next(worker, None, at(0));
    schedule.ended(worker, LineEnd::Again { catch: false }, false, at(1));
    assert_eq!(schedule.next(worker, None, at(1)), Next::End);
    assert_eq!(schedule.open(at(1)), None, "the old one is still there");
    schedule.gone(worker);
    let worker = schedule.open(at(1)).unwrap();
    assert_eq!(schedule.next(worker, None, at(1)), Next::Task(Task::root()));
}

#[test]
fn what_is_too_large_is_evaluated_last_with_all_the_memory_and_no_other_worker() {
    let (mut schedule, worker) = found(2, 40);
    next(&mut schedule, worker, 1);
    assert!(schedule.begin(worker, path("/0"), at(1)));
    assert!(schedule.begin(worker, path("/1"), at(3)));
    schedule.ended(worker, LineEnd::Finished, false, at(5));
    next(&mut schedule, worker, 5);
    let other = schedule.open(at(5)).unwrap();
    assert_eq!((schedule.part(worker), schedule.part(other)), (500, 500));
    assert!(!schedule.is_alone(worker) && schedule.most() == 2);
    next(&mut schedule, other, 5);
    assert!(schedule.begin(worker, path("/2"), at(5)));
    schedule.ended(worker, LineEnd::Alone, true, at(6));
    assert_eq!((schedule.most(), schedule.part(other)), (1, BUDGET));
    assert_eq!(schedule.open(at(6)), None);
    schedule.ended(other, LineEnd::Finished, false, at(7));
    let mut tasks = Vec::new();
    loop {
        match schedule.next(other, Some(10), at(8)) {
            Next::Task(task) => tasks.extend(texts(&task.spans.unwrap())),
            end => {
                assert_eq!(end, Next::End);
                break;
            }
        }
        assert_eq!(schedule.open(at(8)), None);
        schedule.ended(other, LineEnd::Finished, false, at(8));
    }
    assert!(!tasks.contains(&"/2..3".to_owned()), "{tasks:?}");
    assert_eq!(schedule.open(at(9)), None, "the other one has not ended");
    schedule.gone(other);
    let alone = schedule.open(at(9)).unwrap();
    assert!(schedule.is_alone(alone));
    assert_eq!(next(&mut schedule, alone, 9), ["/2..3"]);
    schedule.ended(alone, LineEnd::Finished, false, at(10));
    assert_eq!(schedule.next(alone, None, at(10)), Next::End);
    schedule.gone(alone);
    assert_eq!(schedule.open(at(10)), None);
}

#[test]
fn a_worker_whose_part_is_nearly_full_is_replaced_once_it_has_evaluated_something() {
    for (resident, is_full) in [(300, false), (900, true)] {
        let (mut schedule, worker) = found(1, 40);
        assert_eq!(next(&mut schedule, worker, 1), ["/0..2"]);
        assert!(schedule.begin(worker, path("/0"), at(1)));
        assert!(schedule.begin(worker, path("/1"), at(1)));
        schedule.ended(worker, LineEnd::Finished, false, at(1));
        let next = schedule.next(worker, Some(resident), at(1));
        assert_eq!(next == Next::End, is_full, "{next:?}");
        if !is_full {
            continue;
        }
        schedule.gone(worker);
        let other = schedule.open(at(1)).unwrap();
        for _ in 0..2 {
            let next = schedule.next(other, Some(resident), at(2));
            assert!(matches!(next, Next::Task(_)), "{next:?}");
            // All of it is excluded.
            schedule.ended(other, LineEnd::Finished, false, at(2));
        }
    }
}

#[test]
fn a_task_is_no_larger_than_what_fits_its_worker() {
    let (mut schedule, worker) = found(1, 400);
    assert!(matches!(
        schedule.next(worker, Some(100), at(1)),
        Next::Task(_)
    ));
    for number in 0..2 {
        assert!(schedule.begin(worker, path(&format!("/{number}")), at(1)));
    }
    schedule.ended(worker, LineEnd::Finished, false, at(1));
    // 150 bytes each on a base of 100, in 1000 bytes: three more fit into four fifths of it.
    let Next::Task(task) = schedule.next(worker, Some(400), at(1)) else {
        panic!("no task");
    };
    assert_eq!(texts(&task.spans.unwrap()), ["/2..4"]);
}

#[test]
fn targets_are_evaluated_again_by_workers_that_there_are() {
    let (mut schedule, worker) = found(1, 2);
    next(&mut schedule, worker, 1);
    for number in 0..2 {
        assert!(schedule.begin(worker, path(&format!("/{number}")), at(1)));
    }
    schedule.ended(worker, LineEnd::Finished, false, at(1));
    assert_eq!(schedule.names(), (2, 2));
    let span = schedule.reopen(&path("/1")).unwrap();
    assert_eq!(schedule.names(), (1, 2));
    assert_eq!(schedule.reopen(&path("")), None);
    assert_eq!(schedule.span(&path("/7/0")), None);
    schedule.plan(vec![Task::spans(vec![span])]);
    assert_eq!(next(&mut schedule, worker, 2), ["/1..2"]);
}

#[test]
fn the_root_that_does_not_fit_its_part_gets_more() {
    let remembered = Costs {
        attributes: 100,
        root: 1.0,
        warm_up: 0.0,
        each: 1.0,
        base: 1.0,
        growth: 1.0,
    };
    let mut schedule = Schedule::new(4, BUDGET, Some(remembered));
    schedule.plan(vec![Task::root()]);
    let first = schedule.open(at(0)).unwrap();
    assert_eq!(schedule.next(first, None, at(0)), Next::Task(Task::root()));
    let second = schedule.open(at(0)).unwrap();
    assert_eq!(
        schedule.next(second, None, at(0)),
        Next::Task(Task::spans(Vec::new()))
    );
    let before = schedule.most();
    schedule.ended(first, LineEnd::Fewer, true, at(1));
    assert_eq!(schedule.most(), before - 1);
    schedule.ended(second, LineEnd::Finished, false, at(1));
    assert_eq!(schedule.next(second, None, at(1)), Next::Task(Task::root()));
}
