//! Buddies where the links between machines are known: copies go to another machine, and there to the one where they
//! arrive first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::{STEPS_KEPT, by_size};
use crate::cost::links::{Link, Network};
use crate::grid::CellId;
use crate::plan::{Plan, WorkerId};

/// Where the workers of a plan are.
#[derive(Clone, Debug)]
pub struct Places<'a> {
    pub network: &'a Network<'a>,
    /// The machine of each worker of the plan.
    pub machines: BTreeMap<WorkerId, usize>,
}

impl Places<'_> {
    /// What each worker is lost with: its machine, or itself alone where all of them are on one.
    fn domains(&self) -> BTreeMap<WorkerId, usize> {
        let first = self.machines.values().next();
        let is_one = self.machines.values().all(|machine| Some(machine) == first);
        let of = |(worker, machine): (&WorkerId, &usize)| {
            (*worker, if is_one { worker.0 as usize } else { *machine })
        };
        self.machines.iter().map(of).collect()
    }
}

/// How good a machine is for a copy, the least first: whether it is too full, the seconds until the copy has arrived, and
/// the room that is left.
type Rank = (bool, [f64; 2], Reverse<u64>);

/// What has been given out so far.
struct Given<'a> {
    places: &'a Places<'a>,
    domains: BTreeMap<WorkerId, usize>,
    /// Bytes of one snapshot of every cell, by the links they take.
    links: BTreeMap<Link, u64>,
    /// Bytes of others' snapshots, by worker.
    received: BTreeMap<WorkerId, u64>,
    /// Bytes of all snapshots that are kept, by machine.
    kept: BTreeMap<usize, u64>,
}

/// The workers that hold copies of each cell's snapshots, in cell order, as `buddies` has them but for this:
///
/// - A twin on the machine of a cell is no copy, nor is a worker there a buddy, unless there is no other machine.
/// - A copy goes to a machine that has room for it, if any has; among these to where it arrives first, on links that carry
///   what was given out before; where its slowest link is the same, to the less busy others, then to where most room is left, then to the worker with the fewest copies, and the
///   next one after the host.
/// - Every cell has its first copy before any has its second, so that one more copy moves none.
///
/// `bytes`: of a snapshot of each cell. The same on everybody who knows the fleet.
pub fn buddies_near(
    plan: &Plan,
    bytes: &[u64],
    copies: u32,
    places: &Places<'_>,
) -> Vec<Vec<WorkerId>> {
    let mut holders = vec![Vec::new(); plan.hosts.len()];
    let mut given = Given::of(plan, bytes, places);
    let cells = by_size(plan, |cell| bytes[cell.0 as usize]);
    let twins = |cell: CellId| plan.grid.replica_group(cell).into_iter();
    let mut taken: Vec<BTreeSet<usize>> = cells
        .iter()
        .map(|(cell, _)| twins(*cell).map(|twin| given.domains[&plan.host(twin)]).collect())
        .collect();
    for round in 1..=copies as usize {
        for ((cell, bytes), taken) in cells.iter().zip(&mut taken) {
            // Twins elsewhere are copies already.
            if taken.len() > round {
                continue;
            }
            let Some(next) = given.best(plan.host(*cell), *bytes, taken) else { continue };
            given.give(plan.host(*cell), next, *bytes);
            taken.insert(given.domains[&next]);
            holders[cell.0 as usize].push(next);
        }
    }
    holders
}

impl<'a> Given<'a> {
    fn of(plan: &Plan, bytes: &[u64], places: &'a Places<'a>) -> Self {
        let workers = places.machines.keys();
        let mut kept = BTreeMap::new();
        for (host, bytes) in plan.hosts.iter().zip(bytes) {
            add(&mut kept, places.machines[host], STEPS_KEPT.saturating_mul(*bytes));
        }
        Self {
            places,
            domains: places.domains(),
            links: BTreeMap::new(),
            received: workers.map(|worker| (*worker, 0)).collect(),
            kept,
        }
    }

    /// The worker that a copy goes to.
    fn best(&self, host: WorkerId, bytes: u64, taken: &BTreeSet<usize>) -> Option<WorkerId> {
        let free = self.received.iter().filter(|(to, _)| !taken.contains(&self.domains[to]));
        let of_machine = |machine: usize| {
            let kept = self.kept.get(&machine).copied().unwrap_or(0);
            let kept = kept.saturating_add(STEPS_KEPT.saturating_mul(bytes));
            let room = self.places.network.host_bytes(machine);
            (kept > room, self.seconds(host, machine, bytes), Reverse(room.saturating_sub(kept)))
        };
        // Workers of a machine are neighbours.
        let mut last: Option<(usize, Rank)> = None;
        let key = |(to, received): (&WorkerId, &u64)| {
            let machine = self.places.machines[to];
            let known = last.filter(|(at, _)| *at == machine).map(|(_, known)| known);
            let known = known.unwrap_or_else(|| of_machine(machine));
            last = Some((machine, known));
            (known, (*received, *to <= host, *to))
        };
        let all = free.map(key);
        let first = all.min_by(|(a, last_a), (b, last_b)| {
            let seconds = a.1[0].total_cmp(&b.1[0]).then(a.1[1].total_cmp(&b.1[1]));
            a.0.cmp(&b.0).then(seconds).then(a.2.cmp(&b.2)).then(last_a.cmp(last_b))
        })?;
        Some(first.1.2)
    }

    /// Until a copy has arrived, behind all that takes the same links: of the slowest, and of all of them together.
    fn seconds(&self, host: WorkerId, to: usize, bytes: u64) -> [f64; 2] {
        let network = self.places.network;
        let path = network.path(self.places.machines[&host], to).into_iter();
        let of = |link: Link| {
            let before = self.links.get(&link).copied().unwrap_or(0);
            before.saturating_add(bytes) as f64 / network.rate(link)
        };
        path.map(of).fold([0.0, 0.0], |[most, sum], link| [f64::max(most, link), sum + link])
    }

    fn give(&mut self, host: WorkerId, to: WorkerId, bytes: u64) {
        let machine = self.places.machines[&to];
        for link in self.places.network.path(self.places.machines[&host], machine) {
            add(&mut self.links, link, bytes);
        }
        add(&mut self.received, to, bytes);
        add(&mut self.kept, machine, STEPS_KEPT.saturating_mul(bytes));
    }
}

fn add<K: Ord>(all: &mut BTreeMap<K, u64>, key: K, bytes: u64) {
    let sum = all.entry(key).or_default();
    *sum = sum.saturating_add(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{Fleet, Rig, Site};
    use crate::grid::Grid;
    use crate::plan::Generation;

    const GB: u64 = 1_000_000_000;

    fn plan(grid: (u32, u32, u32), hosts: &[u32]) -> Plan {
        let (stages, expert_shards, replicas) = grid;
        Plan {
            generation: Generation(1),
            grid: Grid { stages, expert_shards, replicas },
            stages: Vec::new(),
            experts: Vec::new(),
            hosts: hosts.iter().copied().map(WorkerId).collect(),
            reasons: BTreeMap::new(),
        }
    }

    /// Worker `n` is card `n` of these rigs.
    fn holders(plan: &Plan, fleet: &Fleet, bytes: &[u64], copies: u32) -> Vec<Vec<u32>> {
        let network = Network::new(fleet);
        let cards = |at: usize| std::iter::repeat_n(at, fleet.rigs[network.rig(at)].count as usize);
        let cards: Vec<usize> = (0..network.machines()).flat_map(cards).collect();
        let machines = plan.hosts.iter().map(|host| (*host, cards[host.0 as usize])).collect();
        let places = Places { network: &network, machines };
        let all = buddies_near(plan, bytes, copies, &places);
        all.into_iter().map(|one| one.into_iter().map(|worker| worker.0).collect()).collect()
    }

    fn rigs(cards: &[u32]) -> Fleet {
        let rigs = cards.iter().enumerate();
        Fleet::of(rigs.map(|(at, n)| Rig::new(&format!("r{at}"), "RTX4090", *n)).collect())
    }

    #[test]
    fn a_copy_is_on_another_machine_where_there_is_one() {
        let cells = plan((4, 1, 1), &[0, 1, 2, 3]);
        // The two of the first machine go to the second, and theirs to the first, one each.
        assert_eq!(holders(&cells, &rigs(&[2, 2]), &[GB; 4], 1), [[2], [3], [0], [1]]);
        // Two machines have room for one copy elsewhere, however many are asked for.
        assert_eq!(holders(&cells, &rigs(&[2, 2]), &[GB; 4], 3), [[2], [3], [0], [1]]);
        // One machine: another process is better than none, as without a fleet.
        assert_eq!(holders(&cells, &rigs(&[4]), &[GB; 4], 1), [[1], [2], [3], [0]]);
        assert_eq!(
            holders(&plan((1, 1, 1), &[0]), &rigs(&[1]), &[GB], 1),
            vec![Vec::<u32>::new(); 1]
        );
    }

    #[test]
    fn a_twin_on_the_same_machine_is_no_copy() {
        let twins = plan((1, 1, 2), &[0, 1]);
        let with_third = plan((2, 1, 2), &[0, 1, 2, 3]);
        assert_eq!(holders(&twins, &rigs(&[1, 1]), &[GB; 2], 1), vec![Vec::<u32>::new(); 2]);
        // Stage 0's twins share the first machine, stage 1's the second: each has a copy on the other.
        assert_eq!(
            holders(&with_third, &rigs(&[2, 2]), &[GB; 4], 1),
            [vec![2], vec![], vec![0], vec![]]
        );
    }

    #[test]
    fn copies_take_the_fast_links_and_share_them() {
        let mut fleet = rigs(&[1, 1, 1]);
        let cells = plan((3, 1, 1), &[0, 1, 2]);
        assert_eq!(holders(&cells, &fleet, &[GB; 3], 1), [[1], [2], [0]]);
        // The third stands elsewhere, behind 100 Mbit/s: only its own cell crosses.
        fleet.sites.insert("lab".to_owned(), Site::default());
        "lab".clone_into(&mut fleet.rigs[2].site);
        assert_eq!(holders(&cells, &fleet, &[GB; 3], 1), [[1], [0], [0]]);
        // At one site a slow interface is passed over as well.
        let mut fleet = rigs(&[1, 1, 1]);
        fleet.rigs[1].nic = "100Mbit/s".parse().unwrap();
        assert_eq!(holders(&cells, &fleet, &[GB; 3], 1), [[2], [0], [0]]);
    }

    #[test]
    fn copies_go_where_there_is_room() {
        let mut fleet = rigs(&[1, 1, 1]);
        // Of 7.5 GB 4 are the system's, and 2 its own two snapshots: another's two are too much.
        fleet.rigs[1].host_memory_gb = 7.5;
        let cells = plan((3, 1, 1), &[0, 1, 2]);
        assert_eq!(holders(&cells, &fleet, &[GB; 3], 1), [[2], [0], [0]]);
        // With no room anywhere they go somewhere, and the plan says what is lacking.
        for rig in &mut fleet.rigs {
            rig.host_memory_gb = 5.0;
        }
        assert_eq!(holders(&cells, &fleet, &[GB; 3], 1), [[1], [2], [0]]);
    }

    #[test]
    fn one_more_copy_moves_none() {
        let mut fleet = rigs(&[2, 1, 1, 3]);
        fleet.rigs[2].nic = "10Gbit/s".parse().unwrap();
        let cells = plan((7, 1, 1), &[0, 1, 2, 3, 4, 5, 6]);
        let bytes: Vec<u64> = [5, 3, 8, 1, 9, 2, 7].map(|n| n * GB).to_vec();
        let of = |copies| holders(&cells, &fleet, &bytes, copies);
        for copies in 1..4 {
            for (few, more) in of(copies - 1).iter().zip(of(copies)) {
                assert!(more.starts_with(few) && more.len() <= 3, "{few:?} {more:?}");
            }
        }
    }
}
