//! Who is slow: a worker whose time for a unit of work is far above the others'. Named once when it
//! becomes slow; moving its work is the planner's.

use std::collections::{BTreeMap, VecDeque};

use shoal_plan::job::Job;
use shoal_plan::plan::{Plan, WorkerId};
use shoal_plan::work;

/// Steps that are looked at: one step alone is noisy.
const STEPS: usize = 8;

/// Slow is above the first ratio, until it is below the second.
const SLOW: f64 = 1.5;
const SLOW_NO_MORE: f64 = 1.25;

#[derive(Debug, Default)]
pub(super) struct Stragglers {
    paces: BTreeMap<WorkerId, Pace>,
}

#[derive(Debug, Default)]
struct Pace {
    /// Of a step's FLOPs.
    share: f64,
    /// Seconds for the whole step's FLOPs at this worker's speed, of the newest steps.
    seconds: VecDeque<f64>,
    is_slow: bool,
}

impl Stragglers {
    /// Everybody's work is another: what was measured counts no more.
    pub(super) fn planned(job: &Job, plan: &Plan) -> Self {
        let mut paces: BTreeMap<WorkerId, Pace> = BTreeMap::new();
        for (cell, share) in plan.grid.cells().zip(work::shares(job, plan)) {
            paces.entry(plan.host(cell)).or_default().share += share;
        }
        Self { paces }
    }

    /// A worker computed for so long in one step. A ratio if it is now too slow, and was not.
    pub(super) fn computed(&mut self, worker: WorkerId, seconds: f64) -> Option<f64> {
        let pace = self.paces.get_mut(&worker)?;
        // A step that was refused at once, or a clock that did not move, says nothing of speed.
        if seconds <= 0.0 || pace.share <= 0.0 {
            return None;
        }
        pace.seconds.push_back(seconds / pace.share);
        if pace.seconds.len() > STEPS {
            pace.seconds.pop_front();
        }
        let own = self.paces[&worker].median()?;
        let others = self.paces.iter().filter(|(other, _)| **other != worker);
        let ratio = own / median(others.filter_map(|(_, pace)| pace.median()).collect())?;
        let pace = self.paces.get_mut(&worker)?;
        let was_slow = pace.is_slow;
        pace.is_slow = ratio > if was_slow { SLOW_NO_MORE } else { SLOW };
        (pace.is_slow && !was_slow).then_some(ratio)
    }
}

impl Pace {
    /// `None` before there are enough steps.
    fn median(&self) -> Option<f64> {
        median(self.seconds.iter().copied().collect()).filter(|_| self.seconds.len() == STEPS)
    }
}

/// Of an even number of values, the lower one in the middle.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{G1, settings};
    use super::*;

    #[test]
    fn a_slow_worker_is_named_once_within_eight_steps_and_again_only_after_it_was_fast() {
        let settings = settings();
        let workers = [WorkerId(0), WorkerId(1)];
        let plan = (settings.make_plan)(&settings.job, &workers, G1).unwrap();
        let mut stragglers = Stragglers::planned(&settings.job, &plan);
        let share = |worker| stragglers.paces[&WorkerId(worker)].share;
        let (fast, slow) = (share(0), share(1));
        let mut named = Vec::new();
        for (step, factor) in
            [vec![2.0; 12], vec![1.3; 12], vec![1.0; 12], vec![2.0; 12]].concat().iter().enumerate()
        {
            assert_eq!(stragglers.computed(WorkerId(0), fast), None);
            let found = stragglers.computed(WorkerId(1), factor * slow);
            named.extend(found.map(|ratio| (step, (ratio * 100.0).round() / 100.0)));
        }
        // 1.3 is no reason to take the word back; the median turns with the fifth of eight steps.
        assert_eq!(named, [(7, 2.0), (40, 2.0)]);
    }

    #[test]
    fn nobody_is_slow_alone_or_by_a_clock_that_did_not_move() {
        let settings = settings();
        let plan = (settings.make_plan)(&settings.job, &[WorkerId(0); 2], G1).unwrap();
        let mut stragglers = Stragglers::planned(&settings.job, &plan);
        for _ in 0..20 {
            assert_eq!(stragglers.computed(WorkerId(0), 100.0), None);
            assert_eq!(stragglers.computed(WorkerId(0), 0.0), None);
            assert_eq!(stragglers.computed(WorkerId(7), 1.0), None);
        }
    }
}
