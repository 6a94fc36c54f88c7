//! Cells from slow workers to faster ones: with the grid, and so the numbers, as they are. Pure.

use std::collections::BTreeMap;

use crate::device::device_of;
use crate::grid::CellId;
use crate::job::Job;
use crate::plan::{Plan, WorkerId};
use crate::work;

/// How fast a worker is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// That a whole step's arithmetic would take one of its devices.
    pub seconds: f64,
    /// Over which its cells are dealt out. Not zero.
    pub devices: u32,
}

pub type Paces = BTreeMap<WorkerId, Pace>;

/// How many each worker has; of one that is not named: one.
pub type Devices = BTreeMap<WorkerId, u32>;

/// A smaller gain than this is noise: no cell moves for it.
const GAIN_MIN: f64 = 0.01;

/// Other hosts for the cells of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Rehosted {
    /// By cell.
    pub hosts: Vec<WorkerId>,
    /// What the slowest worker computes in a step, in seconds, now and then.
    pub before: f64,
    pub after: f64,
}

/// Moves cells one at a time, or two in exchange, from the worker that computes longest, as long as that
/// makes the longest time shorter. Every worker keeps a cell. `None` if nothing is gained, or if a
/// worker's pace is not known.
pub fn rehost(job: &Job, plan: &Plan, paces: &Paces) -> Option<Rehosted> {
    let shares = work::shares(job, plan);
    let mut hosts = plan.hosts.clone();
    if !hosts.iter().all(|host| paces.get(host).is_some_and(|pace| pace.seconds.is_finite())) {
        return None;
    }
    let before = longest(&shares, &hosts, paces).1;
    let mut after = before;
    // Each round makes the longest time shorter, so it ends; the bound is for the sake of the reader.
    for _ in 0..hosts.len() * hosts.len() {
        let Some((better, time)) = best_change(&shares, &hosts, paces) else { break };
        if time >= after * (1.0 - GAIN_MIN) {
            break;
        }
        (hosts, after) = (better, time);
    }
    (after < before).then_some(Rehosted { hosts, before, after })
}

/// Before anything is measured: cells to workers by their devices, all taken for equally fast. Where each has as many as
/// the others, a plan stays as it is.
pub fn by_devices(job: &Job, plan: &mut Plan, devices: &Devices) {
    let of = |worker: &WorkerId| devices.get(worker).copied().unwrap_or(1);
    if plan.hosts.windows(2).all(|pair| of(&pair[0]) == of(&pair[1])) {
        return;
    }
    let pace = |worker: &WorkerId| (*worker, Pace { seconds: 1.0, devices: of(worker) });
    let paces = plan.hosts.iter().map(pace).collect();
    let Some(found) = rehost(job, plan, &paces) else { return };
    for worker in paces.keys() {
        let n = found.hosts.iter().filter(|host| *host == worker).count();
        let reason = format!("cells by devices: {n} on {}", of(worker));
        plan.reasons.insert(*worker, reason);
    }
    plan.hosts = found.hosts;
}

/// Who computes longest, and how long.
fn longest(shares: &[f64], hosts: &[WorkerId], paces: &Paces) -> (WorkerId, f64) {
    let busiest = busiest(shares, hosts, |worker| paces[&worker].devices);
    let times = busiest.into_iter().map(|(worker, share)| (worker, share * paces[&worker].seconds));
    let longest = times.max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
    longest.expect("a plan has hosts")
}

/// For each worker the share of a step's arithmetic that falls on that of its devices which has most of it.
pub fn busiest(
    shares: &[f64],
    hosts: &[WorkerId],
    devices: impl Fn(WorkerId) -> u32,
) -> BTreeMap<WorkerId, f64> {
    let mut dealt: BTreeMap<WorkerId, Vec<f64>> = BTreeMap::new();
    let mut met: BTreeMap<WorkerId, usize> = BTreeMap::new();
    for (host, share) in hosts.iter().zip(shares) {
        let n = devices(*host).max(1) as usize;
        let nth = met.entry(*host).or_default();
        dealt.entry(*host).or_insert_with(|| vec![0.0; n])[device_of(*nth, n)] += share;
        *nth += 1;
    }
    let most = |shares: Vec<f64>| shares.into_iter().fold(0.0, f64::max);
    dealt.into_iter().map(|(host, shares)| (host, most(shares))).collect()
}

/// The best of all single moves and exchanges of the slowest worker's cells; among equals the first.
fn best_change(shares: &[f64], hosts: &[WorkerId], paces: &Paces) -> Option<(Vec<WorkerId>, f64)> {
    let (slowest, _) = longest(shares, hosts, paces);
    let mine: Vec<usize> = (0..hosts.len()).filter(|cell| hosts[*cell] == slowest).collect();
    let mut best: Option<(Vec<WorkerId>, f64)> = None;
    let mut offer = |changed: Vec<WorkerId>| {
        let (_, time) = longest(shares, &changed, paces);
        if best.as_ref().is_none_or(|(_, least)| time < *least) {
            best = Some((changed, time));
        }
    };
    for cell in &mine {
        for worker in paces.keys().filter(|worker| **worker != slowest && hosts.contains(worker)) {
            if mine.len() > 1 {
                let mut changed = hosts.to_vec();
                changed[*cell] = *worker;
                offer(changed);
            }
        }
        for other in (0..hosts.len()).filter(|other| hosts[*other] != slowest) {
            let mut changed = hosts.to_vec();
            changed.swap(*cell, other);
            offer(changed);
        }
    }
    best
}

/// Who gives which cells to whom: `cell-1 from worker-0 to worker-1`.
pub fn told(old: &[WorkerId], new: &[WorkerId]) -> String {
    let cells = (0..).map(CellId).zip(old.iter().zip(new));
    let moved = cells.filter(|(_, (old, new))| old != new);
    let moved: Vec<String> =
        moved.map(|(cell, (old, new))| format!("{cell} from {old} to {new}")).collect();
    moved.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::Grid;
    use crate::placement::make_plan;
    use crate::plan::Generation;

    fn planned(grid: (u32, u32, u32), n_workers: u32) -> (Job, Plan) {
        let (stages, expert_shards, replicas) = grid;
        let job = Job { grid: Grid { stages, expert_shards, replicas }, ..Job::example() };
        let workers: Vec<WorkerId> = (0..n_workers).map(WorkerId).collect();
        let plan = make_plan(&job, &workers, Generation(1)).unwrap();
        (job, plan)
    }

    fn paces(paces: &[f64]) -> Paces {
        on_devices(&paces.iter().map(|seconds| (*seconds, 1)).collect::<Vec<_>>())
    }

    fn on_devices(paces: &[(f64, u32)]) -> Paces {
        let paces =
            paces.iter().map(|(seconds, devices)| Pace { seconds: *seconds, devices: *devices });
        (0..).map(WorkerId).zip(paces).collect()
    }

    fn cells(hosts: &[WorkerId], n_workers: u32) -> Vec<usize> {
        (0..n_workers).map(|id| hosts.iter().filter(|host| host.0 == id).count()).collect()
    }

    #[test]
    fn a_slow_worker_gives_cells_to_faster_ones_and_keeps_one() {
        for (speeds, want) in [
            ([1.0, 1.0], None),
            ([1.2, 1.0], None),
            ([3.0, 1.0], Some(vec![1, 3])),
            ([1.0, 3.0], Some(vec![3, 1])),
            ([1000.0, 1.0], Some(vec![1, 3])),
        ] {
            let (job, plan) = planned((1, 1, 4), 2);
            assert_eq!(cells(&plan.hosts, 2), [2, 2]);
            let found = rehost(&job, &plan, &paces(&speeds));
            assert_eq!(found.as_ref().map(|found| cells(&found.hosts, 2)), want, "{speeds:?}");
            if let Some(found) = found {
                assert!(found.after < found.before, "{found:?}");
            }
        }
    }

    #[test]
    fn what_it_finds_is_as_long_as_it_says_and_back_again_when_all_are_equal() {
        let (job, mut plan) = planned((2, 2, 2), 3);
        let slow = paces(&[1.0, 4.0, 1.0]);
        let found = rehost(&job, &plan, &slow).unwrap();
        let shares = work::shares(&job, &plan);
        assert_eq!(longest(&shares, &found.hosts, &slow).1.to_bits(), found.after.to_bits());
        assert!(told(&plan.hosts, &found.hosts).contains("from worker-1 to worker-"));
        let even = longest(&shares, &plan.hosts, &paces(&[1.0; 3])).1;
        plan.hosts = found.hosts;
        let back = rehost(&job, &plan, &paces(&[1.0; 3])).unwrap();
        assert!(back.after <= even * 1.35, "{back:?}, by the first plan {even}");
    }

    #[test]
    fn a_worker_of_several_devices_gets_cells_for_each_of_them() {
        for (workers, n_cells, want) in [
            (vec![(1.0, 1), (1.0, 3)], 4, vec![1, 3]),
            (vec![(1.0, 3), (1.0, 1)], 4, vec![3, 1]),
            (vec![(1.0, 1), (1.0, 3)], 8, vec![2, 6]),
            // A device of half the speed does one cell while each of the others does two.
            (vec![(2.0, 1), (1.0, 2)], 4, vec![1, 3]),
        ] {
            let (job, mut plan) = planned((1, 1, n_cells), 1);
            plan.hosts =
                (0..n_cells).map(|cell| WorkerId(u32::from(cell >= n_cells / 2))).collect();
            let paces = on_devices(&workers);
            let hosts = rehost(&job, &plan, &paces).map_or(plan.hosts.clone(), |found| found.hosts);
            assert_eq!(cells(&hosts, 2), want, "{workers:?}");
        }
    }

    #[test]
    fn workers_with_one_cell_each_exchange_them() {
        // Stage 0 is the larger one of tiny cut in two.
        let (job, plan) = planned((2, 1, 1), 2);
        let shares = work::shares(&job, &plan);
        let (large, small) = if shares[0] > shares[1] { (0, 1) } else { (1, 0) };
        let mut speeds = [1.0; 2];
        speeds[large] = 3.0;
        let found = rehost(&job, &plan, &paces(&speeds)).unwrap();
        assert_eq!(found.hosts[large].0 as usize, small);
        assert_eq!(rehost(&job, &plan, &paces(&[1.0])), None, "a pace is not known");
        assert_eq!(rehost(&job, &plan, &paces(&[1.0, f64::NAN])), None);
    }
}
