//! Who is slow: a worker whose time for a unit of work is far above the others'. It is named once when it
//! becomes slow; its share of the cells becomes smaller where that pays.
//!
//! Paying means: what the steps that are left, or the next few hundred, gain by the slowest worker's
//! shorter time is more than twice what a move stalls. After each such move the next has to wait, twice
//! as long as the last one. A pace outlives its plan, so that a plan for another reason does not undo it.

use std::collections::{BTreeMap, VecDeque};

use shoal_plan::job::Job;
use shoal_plan::pace::{self, Devices, Paces, Rehosted};
use shoal_plan::plan::{Plan, WorkerId};
use shoal_plan::work;

/// Steps that are looked at: one step alone is noisy.
const STEPS: usize = 8;

/// Slow is above the first ratio, until it is below the second.
const SLOW: f64 = 1.5;
const SLOW_NO_MORE: f64 = 1.25;

/// The slowest worker's time must become shorter by this part of it.
const GAIN_MIN: f64 = 0.2;

/// A pace is believed for so many steps.
const HORIZON_STEPS: u64 = 300;

/// What a move stalls until one was measured, in seconds.
const STALL_SECONDS: f64 = 0.5;

/// What is gained must be so many times what a move stalls.
const WORTH: f64 = 2.0;

/// Between the first and the second move for the sake of shares; each wait is twice the one before. So long it
/// also waits for a worker that was lost.
const WAIT_MS: u64 = 15_000;
const DOUBLINGS_MAX: u32 = 8;

#[derive(Debug, Default)]
pub(super) struct Stragglers {
    paces: BTreeMap<WorkerId, Pace>,
    /// Seconds that the last move stalled.
    stall: Option<f64>,
    /// The next move for the sake of shares comes no sooner.
    not_before_ms: u64,
    moves: u32,
}

#[derive(Debug, Default)]
struct Pace {
    /// Of a step's FLOPs, on that of its devices which has most of them.
    share: f64,
    /// Of the newest steps: seconds for the whole step's FLOPs at the speed of one of this worker's devices.
    seconds: VecDeque<f64>,
    is_slow: bool,
    devices: u32,
    /// The last full median, of this plan or an earlier one.
    known: Option<f64>,
}

impl Stragglers {
    /// Everybody's work is another: what was measured counts as what is known, until there is more.
    pub(super) fn plan(&mut self, job: &Job, plan: &Plan, devices: &Devices) {
        for pace in self.paces.values_mut() {
            pace.known = pace.median().or(pace.known);
            (pace.share, pace.is_slow) = (0.0, false);
            pace.seconds.clear();
        }
        let shares = work::shares(job, plan);
        let of = |worker| devices.get(&worker).copied().unwrap_or(1);
        for (worker, share) in pace::busiest(&shares, &plan.hosts, of) {
            let pace = self.paces.entry(worker).or_default();
            (pace.share, pace.devices) = (share, of(worker));
        }
    }

    /// A worker was lost. If it comes back, cells move anyway: no move for the sake of shares until then.
    pub(super) fn may_be_back(&mut self, now_ms: u64) {
        self.not_before_ms = self.not_before_ms.max(now_ms + WAIT_MS);
    }

    /// What a move stalled.
    pub(super) fn stalled(&mut self, seconds: f64) {
        self.stall = Some(seconds);
    }

    /// Gives the cells of a new plan to workers by their known paces and their devices, if those are far enough
    /// apart: with the same hosts as before, from where the cells are.
    pub(super) fn share(
        &self,
        job: &Job,
        plan: &mut Plan,
        (old, devices): (Option<&Plan>, &Devices),
    ) {
        let hosts = |plan: &Plan| {
            let mut hosts = plan.hosts.clone();
            hosts.sort();
            hosts.dedup();
            hosts
        };
        let known = |worker: &WorkerId| {
            let pace = self.paces.get(worker)?;
            pace.median().or(pace.known)
        };
        let own = hosts(plan);
        let median = median(own.iter().filter_map(known).collect());
        let Some(median) = median else { return pace::by_devices(job, plan, devices) };
        // Of whom nothing is known is as fast as most, device by device.
        let pace = |worker: &WorkerId| {
            let seconds = known(worker).unwrap_or(median);
            let devices = devices.get(worker).copied().unwrap_or(1);
            (*worker, pace::Pace { seconds, devices })
        };
        let paces: Paces = own.iter().map(pace).collect();
        if let Some(old) =
            old.filter(|old| hosts(old) == own && old.hosts.len() == plan.hosts.len())
        {
            plan.hosts.clone_from(&old.hosts);
            plan.reasons.clone_from(&old.reasons);
        }
        let Some(found) = pace::rehost(job, plan, &paces).filter(Self::is_much) else { return };
        for worker in &own {
            let pace::Pace { seconds, devices } = paces[worker];
            let n = found.hosts.iter().filter(|host| *host == worker).count();
            let ratio = seconds / median;
            let on = if devices > 1 { format!(" on {devices} devices") } else { String::new() };
            let reason =
                format!("{n} cells{on}, by its pace: {ratio:.1} times the others' time for a unit");
            plan.reasons.insert(*worker, reason);
        }
        plan.hosts = found.hosts;
    }

    fn is_much(found: &Rehosted) -> bool {
        found.after <= found.before * (1.0 - GAIN_MIN)
    }

    /// Whether other shares pay, with `steps_left`: who gives what to whom, and why.
    pub(super) fn pays(
        &mut self,
        job: &Job,
        plan: &Plan,
        (now_ms, steps_left): (u64, u64),
    ) -> Option<String> {
        if now_ms < self.not_before_ms {
            return None;
        }
        let measured = |worker: &WorkerId| {
            let pace = self.paces.get(worker)?;
            let (seconds, devices) = (pace.median()?, pace.devices);
            Some((*worker, pace::Pace { seconds, devices }))
        };
        let paces: Option<Paces> = plan.hosts.iter().map(measured).collect();
        let found = pace::rehost(job, plan, &paces?).filter(Self::is_much)?;
        let Rehosted { hosts, before, after } = found;
        let (steps, stall) = (steps_left.min(HORIZON_STEPS), self.stall.unwrap_or(STALL_SECONDS));
        let gain = (before - after) * steps as f64;
        if gain <= WORTH * stall {
            return None;
        }
        self.not_before_ms = now_ms + (WAIT_MS << self.moves.min(DOUBLINGS_MAX));
        self.moves += 1;
        Some(format!(
            "{}: the slowest computes {before:.3} s a step, then {after:.3} s; {gain:.1} s in {steps} \
             steps for a move of {stall:.2} s",
            pace::told(&plan.hosts, &hosts)
        ))
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
        let (ratio, _) = self.ratio(worker)?;
        let pace = self.paces.get_mut(&worker)?;
        let was_slow = pace.is_slow;
        pace.is_slow = ratio > if was_slow { SLOW_NO_MORE } else { SLOW };
        (pace.is_slow && !was_slow).then_some(ratio)
    }
}

impl Stragglers {
    /// A worker's time for a unit of work, as a multiple of the others' median, and whether it is called
    /// slow; `None` before enough was measured.
    pub(super) fn ratio(&self, worker: WorkerId) -> Option<(f64, bool)> {
        let pace = self.paces.get(&worker)?;
        let others = self.paces.iter().filter(|(other, _)| **other != worker);
        let median = median(others.filter_map(|(_, pace)| pace.median()).collect())?;
        Some((pace.median()? / median, pace.is_slow))
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

    const ONE_EACH: Devices = Devices::new();

    #[test]
    fn a_slow_worker_is_named_once_within_eight_steps_and_again_only_after_it_was_fast() {
        let settings = settings();
        let workers = [WorkerId(0), WorkerId(1)];
        let plan = (settings.make_plan)(&settings.job, &workers, G1).unwrap();
        let mut stragglers = Stragglers::default();
        stragglers.plan(&settings.job, &plan, &ONE_EACH);
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

    /// Eight steps of two workers, of which the first takes `ratio` times as long for a unit of work.
    fn measured(stragglers: &mut Stragglers, ratio: f64) {
        for _ in 0..STEPS {
            for (worker, ratio) in [(0, ratio), (1, 1.0)] {
                let share = stragglers.paces[&WorkerId(worker)].share;
                stragglers.computed(WorkerId(worker), ratio * share);
            }
        }
    }

    fn four_replicas() -> (Job, Plan) {
        let mut job = settings().job;
        job.grid = shoal_plan::grid::Grid { stages: 1, expert_shards: 1, replicas: 4 };
        let workers = [WorkerId(0), WorkerId(1)];
        let plan = shoal_plan::placement::make_plan(&job, &workers, G1).unwrap();
        (job, plan)
    }

    #[test]
    fn shares_move_where_the_steps_that_are_left_gain_more_than_a_move_stalls() {
        let (job, plan) = four_replicas();
        // Half the arithmetic at three times the time is 1.5 s, a quarter of it 0.75 s as the other's.
        for (ratio, steps_left, stall, want) in [
            (3.0, 300, None, true),
            (3.0, 300, Some(100.0), true),
            (3.0, 300, Some(120.0), false),
            (3.0, 1, None, false),
            (1.2, 300, None, false),
            (1.0, 300, None, false),
        ] {
            let mut stragglers = Stragglers::default();
            stragglers.plan(&job, &plan, &ONE_EACH);
            assert_eq!(stragglers.pays(&job, &plan, (0, steps_left)), None, "nothing is measured");
            measured(&mut stragglers, ratio);
            stragglers.stall = stall;
            let found = stragglers.pays(&job, &plan, (0, steps_left));
            assert_eq!(found.is_some(), want, "{ratio} {steps_left} {stall:?}: {found:?}");
            if let Some(found) = found {
                let text = "cell-0 from worker-0 to worker-1: the slowest computes 1.500 s a step, then 0.750 s";
                assert!(found.starts_with(text), "{found}");
            }
        }
    }

    #[test]
    fn a_pace_outlives_its_plan_and_moves_wait_for_longer_each_time() {
        let (job, mut plan) = four_replicas();
        let mut stragglers = Stragglers::default();
        stragglers.plan(&job, &plan, &ONE_EACH);
        let (mut now_ms, mut ratio) = (0, 3.0);
        let mut waits = Vec::new();
        for _ in 0..4 {
            measured(&mut stragglers, ratio);
            let since_ms = now_ms;
            while stragglers.pays(&job, &plan, (now_ms, 1000)).is_none() {
                now_ms += 100;
            }
            waits.push(now_ms - since_ms);
            let old = plan.clone();
            stragglers.share(&job, &mut plan, (Some(&old), &ONE_EACH));
            assert_ne!(plan.hosts, old.hosts);
            stragglers.plan(&job, &plan, &ONE_EACH);
            // A new plan for another reason is made by what is known.
            let (_, mut even) = four_replicas();
            stragglers.share(&job, &mut even, (Some(&plan), &ONE_EACH));
            assert_eq!(even.hosts, plan.hosts);
            ratio = 3.0 / ratio;
        }
        assert_eq!(waits, [0, 15_000, 30_000, 60_000]);
    }

    #[test]
    fn a_worker_of_three_devices_begins_with_three_times_the_cells_and_its_pace_is_that_of_one() {
        let (job, plan) = four_replicas();
        let devices = Devices::from([(WorkerId(0), 1), (WorkerId(1), 3)]);
        let mut stragglers = Stragglers::default();
        let (mut alike, mut mixed) = (plan.clone(), plan.clone());
        stragglers.share(&job, &mut alike, (None, &ONE_EACH));
        assert_eq!(alike.hosts, plan.hosts);
        stragglers.share(&job, &mut mixed, (None, &devices));
        assert_eq!(mixed.hosts, [1, 0, 1, 1].map(WorkerId), "one cell for each device");
        assert_eq!(mixed.reasons[&WorkerId(1)], "cells by devices: 3 on 3");
        stragglers.plan(&job, &mixed, &devices);
        for _ in 0..STEPS {
            // Each device does a quarter of the step in a second.
            stragglers.computed(WorkerId(0), 1.0);
            assert_eq!(stragglers.computed(WorkerId(1), 1.0), None, "it is not called slow");
        }
        assert_eq!(stragglers.ratio(WorkerId(1)), Some((1.0, false)));
        assert_eq!(stragglers.pays(&job, &mixed, (0, 1000)), None, "nothing is gained by a move");
    }

    #[test]
    fn shares_wait_for_a_worker_that_may_be_back() {
        let (job, plan) = four_replicas();
        let mut stragglers = Stragglers::default();
        stragglers.plan(&job, &plan, &ONE_EACH);
        measured(&mut stragglers, 3.0);
        stragglers.may_be_back(1_000);
        let mut pays = |now_ms| stragglers.pays(&job, &plan, (now_ms, 1000)).is_some();
        assert!(!pays(1_000 + WAIT_MS - 1));
        assert!(pays(1_000 + WAIT_MS));
    }

    #[test]
    fn nobody_is_slow_alone_or_by_a_clock_that_did_not_move() {
        let settings = settings();
        let plan = (settings.make_plan)(&settings.job, &[WorkerId(0); 2], G1).unwrap();
        let mut stragglers = Stragglers::default();
        stragglers.plan(&settings.job, &plan, &ONE_EACH);
        for _ in 0..20 {
            assert_eq!(stragglers.computed(WorkerId(0), 100.0), None);
            assert_eq!(stragglers.computed(WorkerId(0), 0.0), None);
            assert_eq!(stragglers.computed(WorkerId(7), 1.0), None);
        }
    }
}
