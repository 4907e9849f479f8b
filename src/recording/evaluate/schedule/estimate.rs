//! What a walk costs, and whether another worker pays.
//!
//! A process that evaluates *n* attributes takes
//!
//! > root + warm-up + n × each  seconds, and  base + n × growth  bytes.
//!
//! *root* is from its start to its first attribute. *warm-up* is what attributes need in common, which the first of them evaluate
//! (Nixpkgs, say): it shows in the first attributes being more expensive than later ones. So *each* is the mean of the later half of
//! the attributes that were measured, and the warm-up is what remains of the time of all of them. In the same way *growth* is the
//! slope of the later half of the measured memory, and *base* what remains.
//!
//! With k workers, each evaluates 1/k of what waits, in processes that are replaced when their part of the memory is nearly full.
//! The work is R = waiting × each, and S = root + warm-up for each process that is not running yet, so that
//!
//! > wall(k) = (R + S × processes(k)) / k.
//!
//! Another worker pays if wall(k + 1) is clearly shorter than wall(k), and if what the workers evaluate twice is small beside the
//! work.

use serde::{Deserialize, Serialize};

/// What the evaluation of something costs, as it was measured. Times are in seconds, memory is in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::recording) struct Costs {
    /// How many attributes there were.
    pub(super) attributes: u64,
    /// From the start of a process to its first attribute.
    pub(super) root: f64,
    /// What the first attributes cost that later ones did not.
    pub(super) warm_up: f64,
    /// The time for an attribute.
    pub(super) each: f64,
    /// The memory of a process without that of its attributes.
    pub(super) base: f64,
    /// The memory for an attribute.
    pub(super) growth: f64,
}

impl Costs {
    /// Whether these can have been measured.
    pub(in crate::recording) fn is_plausible(&self) -> bool {
        let Self {
            attributes: _,
            root,
            warm_up,
            each,
            base,
            growth,
        } = *self;
        let numbers = [root, warm_up, each, base, growth];
        each > 0.0 && numbers.iter().all(|number| (0.0..1e18).contains(number))
    }

    /// Whether the first attributes, which took so long, cost half to twice as much as these. How much of the warm-up is theirs is not
    /// known.
    pub(super) fn agree(&self, times: &Curve) -> bool {
        let without = times.attributes() * self.each;
        (0.5 * without..=2.0 * (self.warm_up + without)).contains(&times.quantity())
    }
}

/// A quantity of a process that grows with each attribute (its time, its memory), at some of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Curve {
    /// The number of attributes at least doubles from one to the next.
    marks: Vec<Mark>,
    attributes: f64,
    quantity: f64,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    attributes: f64,
    quantity: f64,
    /// The largest step since then.
    largest: f64,
}

impl Mark {
    const ZERO: Self = Self {
        attributes: 0.0,
        quantity: 0.0,
        largest: 0.0,
    };
}

impl Curve {
    /// What was measured after this number of attributes, which is not smaller than any before.
    pub(super) fn measure(&mut self, attributes: u64, quantity: f64) {
        let step = quantity - self.quantity;
        for mark in &mut self.marks {
            mark.largest = mark.largest.max(step);
        }
        self.attributes = as_float(attributes);
        self.quantity = quantity;
        let is_due = |mark: &Mark| self.attributes >= 2.0 * mark.attributes.max(0.5);
        if self.marks.last().is_none_or(is_due) {
            self.marks.push(Mark {
                attributes: self.attributes,
                quantity,
                largest: 0.0,
            });
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    pub(super) fn attributes(&self) -> f64 {
        self.attributes
    }

    pub(super) fn quantity(&self) -> f64 {
        self.quantity
    }

    /// The start of the later half.
    fn half(&self) -> Option<usize> {
        let is_half = |mark: &Mark| mark.attributes <= self.attributes / 2.0;
        let half = self.marks.iter().rposition(is_half).unwrap_or_default();
        (self.marks.get(half)?.attributes < self.attributes).then_some(half)
    }

    /// The mean for one attribute, over the later half; none before there are two measurements.
    pub(super) fn slope(&self) -> Option<f64> {
        let half = self.marks[self.half()?];
        let slope = (self.quantity - half.quantity) / (self.attributes - half.attributes);
        Some(slope.max(0.0))
    }

    /// The same without the largest step, where there are several: one attribute may be the first that needs what others need too.
    pub(super) fn usual(&self) -> Option<f64> {
        let half = self.marks[self.half()?];
        let steps = self.attributes - half.attributes;
        if steps < 2.0 {
            return self.slope();
        }
        Some((self.quantity - half.quantity - half.largest).max(0.0) / (steps - 1.0))
    }

    /// Whether enough was measured to predict the next `count` attributes, if this is 0 before the first of them. Few attributes, of
    /// which the later ones are more expensive, may be exceptions; and where the cost still falls, nothing shows how far, so that a
    /// tenth has to be known.
    pub(super) fn is_steady(&self, count: f64) -> bool {
        let Some(slope) = self.slope() else {
            return false;
        };
        let mean = self.quantity / self.attributes;
        if self.attributes < 4.0 && slope > 1.25 * mean {
            return false;
        }
        slope >= 0.9 * mean || self.is_tenth(count)
    }

    /// Whether a tenth is known if `count` attributes follow.
    pub(super) fn is_tenth(&self, count: f64) -> bool {
        self.attributes >= 0.1 * (self.attributes + count)
    }

    /// The mean for each of the next `count` attributes, if it falls as it has fallen until now: the more is evaluated, the less of
    /// what an attribute needs is new. The quantity is 0 before the first attribute.
    pub(super) fn predicted(&self, count: f64) -> Option<f64> {
        let (usual, half) = (self.usual()?, self.half()?);
        let before = half.checked_sub(1).map_or(Mark::ZERO, |at| self.marks[at]);
        let half = self.marks[half];
        let earlier = (half.quantity - before.quantity) / (half.attributes - before.attributes);
        if usual >= earlier || count <= 0.0 {
            return Some(usual);
        }
        // It is proportional to a power of the number of attributes.
        let doublings = (self.attributes / half.attributes).log2().max(1.0);
        let power = (1.0 + (usual / earlier).log2() / doublings).max(0.01);
        let more = count / self.attributes;
        Some(usual * ((1.0 + more).powf(power) - 1.0) / (power * more))
    }

    /// What the attributes do not account for, if each of them costs so much.
    pub(super) fn rest(&self, each: f64) -> f64 {
        (self.quantity - each * self.attributes).max(0.0)
    }
}

/// What remains, as an estimate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Remaining {
    /// Each as measured; `attributes`: how many wait.
    pub(super) costs: Costs,
    /// The memory for all workers together; none without a limit.
    pub(super) budget: Option<f64>,
}

/// How much of its room a worker fills: the next attribute may be larger than those before.
const FULL: f64 = 0.8;

/// Another worker has to make the rest at least this much shorter. The estimate is not exact, and a worker takes a core.
const SHORTER: f64 = 0.8;

/// What all workers evaluate that one of them would have evaluated once for all is at most this part of the work.
const SHARED_AT_MOST: f64 = 0.15;

impl Remaining {
    /// How much memory a worker may have that is still given attributes, if there are this many workers. Without the base it would
    /// evaluate nothing, so that only the room above it counts.
    pub(super) fn full(&self, workers: usize) -> Option<f64> {
        let part = self.budget? / as_float(workers as u64);
        let base = self.costs.base.min(part);
        Some(
            (base + FULL * (part - base))
                .min(part - self.costs.growth)
                .max(0.0),
        )
    }

    /// How many attributes fit a process with this much memory.
    fn fit(&self, resident: f64, workers: usize) -> f64 {
        match self.full(workers) {
            Some(full) if self.costs.growth > 0.0 => {
                ((full - resident) / self.costs.growth).floor().max(0.0)
            }
            _ => f64::INFINITY,
        }
    }

    /// How many processes have to be started, if the running ones have this much memory.
    fn processes(&self, running: &[f64], workers: usize) -> f64 {
        let share = as_float(self.costs.attributes) / as_float(workers as u64);
        let of_one = self.fit(self.costs.base, workers).max(1.0);
        (0..workers)
            .map(|worker| match running.get(worker) {
                Some(resident) => match share - self.fit(*resident, workers) {
                    over if over > 0.0 => (over / of_one).ceil(),
                    _ => 0.0,
                },
                None => (share / of_one).ceil().max(1.0),
            })
            .sum()
    }

    /// Whether one worker more pays than are running, which have this much memory.
    pub(super) fn another_pays(&self, running: &[f64]) -> bool {
        let (now, then) = (running.len(), running.len() + 1);
        // While it is evaluated it may need more than remains.
        let one_fits =
            |budget| self.costs.growth < FULL * (budget / as_float(then as u64) - self.costs.base);
        if !self.budget.is_none_or(one_fits) {
            return false;
        }
        let work = as_float(self.costs.attributes) * self.costs.each;
        let start = self.costs.root + self.costs.warm_up;
        let wall =
            |workers| (work + start * self.processes(running, workers)) / as_float(workers as u64);
        let more = self.processes(running, then) - self.processes(running, now);
        wall(then) < SHORTER * wall(now) && more * self.costs.warm_up < SHARED_AT_MOST * work
    }
}

/// Exact up to 2^53, which no number of attributes or bytes exceeds.
#[expect(clippy::cast_precision_loss, reason = "see above")]
pub(super) fn as_float(number: u64) -> f64 {
    number as f64
}
