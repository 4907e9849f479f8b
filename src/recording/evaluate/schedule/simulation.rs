//! What the schedule makes of workloads: a simulated evaluator in virtual time.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;

const MIB: f64 = 1_048_576.0;

/// From the start of a process to its root, and between two tasks, in seconds.
const START: f64 = 0.05;
const IDLE: f64 = 0.004;

/// An attribute of the root. Times are in seconds, memory is in MiB.
#[derive(Debug, Clone, Default)]
struct Attribute {
    cost: f64,
    memory: f64,
    /// By number, what it needs that others need as well.
    needs: Vec<usize>,
    fails: bool,
}

#[derive(Debug, Clone)]
struct Workload {
    root: f64,
    base: f64,
    /// The time and the memory of what attributes have in common.
    shared: Vec<(f64, f64)>,
    attributes: Vec<Attribute>,
    /// In MiB; infinite without a limit.
    budget: f64,
}

impl Workload {
    fn new(root: f64, count: usize, cost: f64) -> Self {
        let attribute = Attribute {
            cost,
            ..Attribute::default()
        };
        Self {
            root,
            base: 100.0,
            shared: Vec::new(),
            attributes: vec![attribute; count],
            budget: f64::INFINITY,
        }
    }

    fn budget(&self) -> u64 {
        if self.budget.is_infinite() {
            return u64::MAX;
        }
        bytes(self.budget)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small and positive"
)]
fn bytes(mib: f64) -> u64 {
    (mib * MIB) as u64
}

struct Process {
    worker: WorkerId,
    /// What it has evaluated of what is shared; none: not even the root.
    has: Option<BTreeSet<usize>>,
    memory: f64,
    /// The attributes of its task that have not begun.
    left: VecDeque<usize>,
    task: Option<Task>,
    current: Option<usize>,
    /// When it reports something next.
    until: f64,
    is_closing: bool,
}

#[derive(Debug, Clone, Default)]
struct Run {
    wall: f64,
    cpu: f64,
    tasks: usize,
    processes: usize,
    killed: usize,
    costs: Costs,
}

fn run(workload: &Workload, most: usize) -> Run {
    run_with(workload, most, None)
}

#[expect(clippy::too_many_lines, reason = "one loop over events")]
fn run_with(workload: &Workload, most: usize, remembered: Option<Costs>) -> Run {
    let mut schedule = Schedule::new(most, workload.budget(), remembered);
    schedule.plan(vec![Task::root()]);
    let mut run = Run::default();
    let mut processes: Vec<Process> = Vec::new();
    let mut done = 0;
    let root = AttrIndex::default();
    loop {
        let now = Duration::from_secs_f64(run.wall);
        while let Some(worker) = schedule.open(now) {
            run.processes += 1;
            processes.push(Process {
                worker,
                has: None,
                memory: 20.0,
                left: VecDeque::new(),
                task: None,
                current: None,
                until: run.wall,
                is_closing: false,
            });
        }
        if processes.is_empty() {
            break;
        }
        for one in &mut processes {
            if one.task.is_some() || one.is_closing {
                continue;
            }
            match schedule.next(one.worker, Some(bytes(one.memory)), now) {
                Next::Task(task) => {
                    run.tasks += 1;
                    one.left = task
                        .spans
                        .iter()
                        .flatten()
                        .flat_map(|span| span.from as usize..span.to as usize)
                        .collect();
                    let starts = one.has.is_none();
                    let takes = IDLE + if starts { START + workload.root } else { 0.0 };
                    run.cpu += takes;
                    one.until = run.wall + takes;
                    one.task = Some(task);
                }
                Next::Wait => {}
                Next::End => one.is_closing = true,
            }
        }
        processes.retain(|one| {
            if one.is_closing {
                schedule.gone(one.worker);
            }
            !one.is_closing
        });
        let busy = processes.iter_mut().filter(|one| one.task.is_some());
        let Some(one) = busy.min_by(|one, other| one.until.total_cmp(&other.until)) else {
            continue;
        };
        run.wall = one.until;
        let now = Duration::from_secs_f64(run.wall);
        let part = schedule.part(one.worker);
        // What was being evaluated has ended.
        let mut end = None;
        if one.has.is_none() {
            one.has = Some(BTreeSet::new());
            one.memory = workload.base;
            if bytes(one.memory) > part {
                end = Some(LineEnd::Fewer);
            } else if one.task == Some(Task::root()) {
                let count = u32::try_from(workload.attributes.len()).unwrap();
                schedule.set(one.worker, root.clone(), count);
            }
        }
        if let Some(number) = one.current.take() {
            let attribute = &workload.attributes[number];
            one.memory += attribute.memory;
            for needed in &attribute.needs {
                if one.has.as_mut().unwrap().insert(*needed) {
                    one.memory += workload.shared[*needed].1;
                }
            }
            if bytes(one.memory) > part {
                assert!(
                    !schedule.is_alone(one.worker) || schedule.begun(one.worker) > 1,
                    "it never fits"
                );
                end = Some(if schedule.is_alone(one.worker) {
                    LineEnd::Again { catch: false }
                } else {
                    LineEnd::Alone
                });
            } else {
                done += 1;
                if attribute.fails {
                    end = Some(LineEnd::GaveUp);
                }
            }
        }
        if let Some(end) = end {
            let is_killed = end != LineEnd::GaveUp;
            run.killed += usize::from(is_killed);
            one.task = None;
            let worker = one.worker;
            schedule.ended(worker, end, is_killed, now);
            if is_killed {
                processes.retain(|one| one.worker != worker);
            }
        } else if let Some(number) = one.left.pop_front() {
            let path = root.child(u32::try_from(number).unwrap());
            assert!(schedule.begin(one.worker, path, now));
            let attribute = &workload.attributes[number];
            let has = one.has.as_ref().unwrap();
            let new = attribute
                .needs
                .iter()
                .filter(|needed| !has.contains(needed));
            let takes = attribute.cost + new.map(|needed| workload.shared[*needed].0).sum::<f64>();
            run.cpu += takes;
            one.until = run.wall + takes;
            one.current = Some(number);
        } else {
            one.task = None;
            schedule.ended(one.worker, LineEnd::Finished, false, now);
        }
    }
    assert_eq!(done, workload.attributes.len());
    run.costs = schedule.costs();
    run
}

/// A workload whose attributes all need the same.
fn with_shared(root: f64, count: usize, shared: f64, cost: f64) -> Workload {
    let mut workload = Workload::new(root, count, cost);
    workload.shared = vec![(shared, 100.0)];
    for one in &mut workload.attributes {
        one.needs = vec![0];
    }
    workload
}

/// A workload whose attributes need this much memory, and its process `base`.
fn with_memory(base: f64, each: f64, budget: f64, workload: Workload) -> Workload {
    let mut workload = Workload {
        base,
        budget,
        ..workload
    };
    for one in &mut workload.attributes {
        one.memory = each;
    }
    workload
}

#[test]
fn heavy_targets_take_little_more_than_half_the_time_with_two_workers() {
    let heavy = [
        Workload::new(2.0, 100, 1.0),
        Workload::new(0.3, 60, 0.5),
        Workload::new(0.2, 10_000, 0.002),
    ];
    for workload in heavy {
        let (one, two) = (run(&workload, 1), run(&workload, 2));
        assert_eq!(one.processes, 1);
        assert!(two.wall <= 0.55 * one.wall, "{two:?} {one:?}");
        assert!(two.cpu <= 1.05 * one.cpu, "{two:?} {one:?}");
    }
}

#[test]
fn little_work_is_not_worth_another_worker() {
    let workload = Workload::new(2.0, 6, 0.5);
    assert_eq!(run(&workload, 4).processes, 1);
}

#[test]
fn another_worker_begins_at_once_where_it_paid_the_last_time() {
    let workload = Workload::new(4.0, 30, 0.5);
    let one = run(&workload, 1);
    let two = run(&workload, 2);
    let again = run_with(&workload, 2, Some(one.costs));
    assert!(again.wall <= two.wall - 1.0, "{again:?} {two:?}");
    // What it cost with two workers says the same.
    let third = run_with(&workload, 2, Some(again.costs));
    assert!((third.wall - again.wall).abs() < 0.1, "{third:?} {again:?}");
    let shared = with_shared(0.5, 300, 10.0, 0.01);
    let costs = run(&shared, 1).costs;
    assert_eq!(run_with(&shared, 2, Some(costs)).processes, 1);
}

#[test]
fn what_is_measured_counts_more_than_what_is_remembered() {
    let heavy = run(&Workload::new(1.0, 100, 1.0), 1).costs;
    let light = run(&Workload::new(1.0, 100, 0.001), 1).costs;
    let workload = Workload::new(1.0, 100, 1.0);
    let run_wrong = run_with(&workload, 2, Some(light));
    assert!(
        run_wrong.wall <= 0.55 * run(&workload, 1).wall,
        "{run_wrong:?}"
    );
    // It begins because it paid, and gets no third one.
    let workload = Workload::new(1.0, 100, 0.02);
    assert_eq!(run_with(&workload, 2, Some(heavy)).processes, 2);
    assert!(run_with(&workload, 2, Some(heavy)).wall <= 1.05 * run(&workload, 1).wall);
}

#[test]
fn targets_that_share_nearly_everything_are_evaluated_by_one_worker() {
    let mut second_is_first = with_shared(0.5, 300, 5.0, 0.003);
    second_is_first.attributes[0].needs.clear();
    let mut eighth_is_first = with_shared(0.5, 300, 5.0, 0.003);
    for one in &mut eighth_is_first.attributes[..7] {
        one.needs.clear();
    }
    let workloads = [
        with_shared(0.5, 300, 10.0, 0.01),
        with_shared(0.5, 300, 5.0, 0.03),
        with_shared(2.0, 3000, 2.0, 0.001),
        second_is_first,
        eighth_is_first,
        package_set(),
        libraries(400, 0.01),
        libraries(100, 0.02),
        power_law(400, 1.0, 0.2),
        power_law(600, 0.5, 0.3),
        chain(1000, 0.0005),
    ];
    for (number, workload) in workloads.iter().enumerate() {
        let one = run(workload, 1);
        for most in [2, 4] {
            // The first recording; the second, after one with a worker and after one with several.
            let first = run(workload, most);
            let remembered = [one.costs, first.costs];
            let again = remembered.map(|costs| run_with(workload, most, Some(costs)));
            for (which, more) in [first].iter().chain(&again).enumerate() {
                let seen = format!("{number}, {which}: {more:?} {one:?}");
                assert!(more.cpu <= 1.1 * one.cpu, "{seen}");
                assert!(more.wall <= 1.02 * one.wall, "{seen}");
            }
        }
    }
}

/// `count` packages as in `benches/repositories/sharing.nix`: each needs 12 of 250 libraries, which need six others each, and so
/// nearly all, of which each takes so many seconds.
fn libraries(count: usize, each: f64) -> Workload {
    const LIBRARIES: usize = 250;
    let some = |number: usize, limit: usize, count: usize| {
        let place = move |i: usize| (number * 7919 + i * i * 104_729) & 1_048_575;
        (0..count).map(move |i| place(i) * limit / 1_048_576)
    };
    let mut closures: Vec<BTreeSet<usize>> = Vec::new();
    for number in 0..LIBRARIES {
        let mut closure = BTreeSet::from([number]);
        for needed in some(number, number, if number == 0 { 0 } else { 6 }) {
            closure.extend(&closures[needed]);
        }
        closures.push(closure);
    }
    let mut workload = Workload::new(0.05, count, 0.001);
    workload.shared = vec![(each, 0.1); LIBRARIES];
    // In the order of their names.
    let mut names: Vec<usize> = (0..count).collect();
    names.sort_by_key(usize::to_string);
    for (one, name) in workload.attributes.iter_mut().zip(names) {
        let needs: BTreeSet<usize> = some(name + 4001, LIBRARIES, 12)
            .flat_map(|needed| closures[needed].iter().copied())
            .collect();
        one.needs = needs.into_iter().collect();
    }
    workload
}

/// Attributes of which the first n together take `first` times n to this power, from either end.
fn power_law(count: usize, first: f64, power: f64) -> Workload {
    let mut workload = Workload::new(0.2, count, 0.0005);
    let total = |number: usize| first * as_float(number as u64).powf(power);
    workload.shared = (0..count)
        .map(|number| (total(number + 1) - total(number), 0.1))
        .collect();
    for (number, one) in workload.attributes.iter_mut().enumerate() {
        one.needs = (0..=number.min(count - 1 - number)).collect();
    }
    workload
}

/// Attributes of which each needs all before it.
fn chain(count: usize, cost: f64) -> Workload {
    let mut workload = Workload::new(0.2, count, 0.0);
    workload.shared = vec![(cost, 0.01); count];
    for (number, one) in workload.attributes.iter_mut().enumerate() {
        one.needs = (0..=number).collect();
    }
    workload
}

/// 3,000 packages that need 10 of 1,000 others each, some of them much more often than others.
fn package_set() -> Workload {
    let mut workload = Workload::new(0.3, 3000, 0.0005);
    workload.shared = vec![(0.004, 0.2); 1000];
    let mut random = 1u64;
    let mut next = move || {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 33).unwrap() % 1000
    };
    for one in &mut workload.attributes {
        one.needs = (0..10)
            .map(|_| next() * next() / 1000 * next() / 1000)
            .collect();
        one.needs.sort_unstable();
        one.needs.dedup();
    }
    workload
}

#[test]
fn a_budget_for_one_and_a_half_workers_costs_little() {
    let workloads = [
        with_memory(300.0, 10.0, 1950.0, Workload::new(2.0, 100, 0.5)),
        with_memory(600.0, 2.0, 1200.0, Workload::new(2.0, 100, 0.5)),
        with_memory(300.0, 4.0, 2000.0, Workload::new(2.0, 1000, 0.02)),
        with_memory(850.0, 1.0, 1000.0, Workload::new(2.0, 400, 0.05)),
        with_memory(50.0, 450.0, 680.0, Workload::new(0.2, 6, 2.5)),
        with_memory(26.0, 310.0, 680.0, Workload::new(0.2, 6, 2.5)),
        with_memory(300.0, 100.0, 1500.0, Workload::new(1.0, 15, 2.0)),
        with_memory(300.0, 100.0, 1500.0, Workload::new(5.0, 15, 2.0)),
        with_memory(300.0, 100.0, 1500.0, Workload::new(10.0, 15, 2.0)),
    ];
    for workload in workloads {
        let one = run(&workload, 1);
        // Of the two attributes of the first task the second may not fit.
        assert!(one.killed <= 1, "{one:?}");
        for most in [2, 4] {
            for remembered in [None, Some(one.costs)] {
                let more = run_with(&workload, most, remembered);
                assert!(more.wall <= 1.02 * one.wall, "{more:?} {one:?}");
                assert!(more.killed <= one.killed, "{more:?} {one:?}");
            }
        }
    }
}

#[test]
fn fifteen_large_targets_are_evaluated_by_two_workers_that_are_replaced() {
    let workload = with_memory(300.0, 100.0, 1500.0, Workload::new(1.0, 15, 2.0));
    let (one, two) = (run(&workload, 1), run(&workload, 2));
    assert!(two.wall <= 0.75 * one.wall, "{two:?} {one:?}");
    assert!(two.cpu <= 1.15 * one.cpu, "{two:?} {one:?}");
}

#[test]
fn a_target_that_does_not_fit_a_part_is_evaluated_alone() {
    let mut workload = with_memory(100.0, 10.0, 1000.0, Workload::new(0.5, 40, 1.0));
    workload.attributes[20].memory = 700.0;
    let two = run(&workload, 2);
    assert_eq!(two.killed, 1, "{two:?}");
    assert!(two.wall <= 1.1 * run(&workload, 1).wall, "{two:?}");
}

#[test]
fn light_targets_need_few_tasks() {
    for most in [1, 2] {
        let few = run(&Workload::new(0.2, 1000, 0.001), most);
        assert!(few.tasks <= 10, "{few:?}");
        let many = run(&Workload::new(0.2, 10_000, 0.001), most);
        assert!(many.tasks <= 29, "{many:?}");
    }
}

#[test]
fn targets_that_fail_cost_a_task_each_and_no_root() {
    let mut workload = Workload::new(2.0, 200, 0.01);
    let without = run(&workload, 1);
    for one in workload.attributes.iter_mut().step_by(2) {
        one.fails = true;
    }
    let with = run(&workload, 1);
    assert_eq!(with.processes, 1);
    assert!(
        with.tasks <= 110 && with.wall <= without.wall + 0.5,
        "{with:?} {without:?}"
    );
}
