//! Where the search starts: cards as expert groups, and groups as stages and replicas, in several orders.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::Search;
use crate::planner::build::Pattern;
use crate::planner::predict::capacity;

/// Expert groups up to here are tried in every order.
const EXACT_UNITS: usize = 5;

impl Search<'_> {
    /// Cards of an expert group.
    pub(super) fn shard_counts(&self) -> BTreeSet<usize> {
        let (cards, experts) =
            (self.layout.machines.len(), self.question.job.model.n_routed_experts);
        let rigs = self.question.fleet.rigs.iter().map(|rig| rig.count as usize);
        let powers = (0..7).map(|power| 1 << power);
        let small = 1..=if cards <= 8 { cards } else { 1 };
        let all = powers.chain(rigs).chain(small);
        all.filter(|shards| *shards <= cards && (*shards <= experts as usize || *shards == 1))
            .collect()
    }

    /// Expert groups: inside machines as far as they go, then of neighbours at one site. In a group the fastest come first.
    pub(super) fn units(&self, shards: usize) -> Vec<Vec<usize>> {
        let (mut units, mut left) = (Vec::new(), Vec::new());
        let cards: Vec<usize> = (0..self.layout.machines.len()).collect();
        for machine in cards.chunk_by(|a, b| self.layout.machines[*a] == self.layout.machines[*b]) {
            let whole = machine.len() / shards * shards;
            units.extend(machine[..whole].chunks(shards).map(<[usize]>::to_vec));
            left.extend_from_slice(&machine[whole..]);
        }
        let site = |card: &usize| &self.question.fleet.rigs[self.layout.rig(*card)].site;
        left.sort_by(|a, b| {
            let speed = self.builder.speed(*b).total_cmp(&self.builder.speed(*a));
            site(a).cmp(site(b)).then(speed)
        });
        for place in left.chunk_by(|a, b| site(a) == site(b)) {
            units.extend(place.chunks_exact(shards).map(<[usize]>::to_vec));
        }
        for unit in &mut units {
            unit.sort_by(|a, b| self.builder.speed(*b).total_cmp(&self.builder.speed(*a)));
        }
        units
    }

    /// Units as replicas of stages.
    pub(super) fn patterns(&mut self, units: &[Vec<usize>], stages: usize) -> BTreeSet<Pattern> {
        let mut patterns = BTreeSet::new();
        let columns_max = self.question.job.training.batch as usize / units[0].len().max(1);
        let whole = (units.len() / stages).min(columns_max.max(1));
        let speed =
            |unit: &Vec<usize>| -> f64 { unit.iter().map(|card| self.builder.speed(*card)).sum() };
        let mut by_speed = units.to_vec();
        by_speed.sort_by(|a, b| speed(b).total_cmp(&speed(a)));
        // Without the slow half, if it is slow.
        let fast = by_speed.iter().filter(|unit| 2.0 * speed(unit) > speed(&by_speed[0])).count();
        let site =
            |unit: &Vec<usize>| self.question.fleet.rigs[self.layout.rig(unit[0])].site.clone();
        let mut by_site = by_speed.clone();
        by_site.sort_by_key(site);
        // The first stages hold most microbatches; neighbours in a machine send nothing over its network.
        let room = |unit: &Vec<usize>| {
            let room = |card: &usize| capacity(self.question, self.layout.rig(*card));
            unit.iter().map(room).min().unwrap_or(0)
        };
        let mut by_room = units.to_vec();
        by_room.sort_by_key(|unit| {
            (Reverse(room(unit)), self.layout.rig(unit[0]), self.layout.machines[unit[0]])
        });
        let mut orders = vec![by_room, by_speed];
        if self.is_large() {
            orders.truncate(1);
        } else {
            let mut by_site_and_room = orders[0].clone();
            by_site_and_room.sort_by_key(site);
            orders.extend([by_site, by_site_and_room, units.to_vec()]);
        }
        if units.len() <= EXACT_UNITS {
            orders = permutations(units);
        } else {
            self.exact = false;
        }
        for order in orders {
            let counts: BTreeSet<usize> = if self.is_large() {
                [whole, (whole * 3).div_ceil(4)].into()
            } else {
                [whole, (fast / stages).min(whole), 2.min(whole), 1].into()
            };
            for replicas in counts.into_iter().filter(|n| *n > 0) {
                let used = &order[..stages * replicas];
                // Of very many, every replica has its first stages on the roomiest cards, or finds no room for them.
                if !self.is_large() {
                    let rows = used.chunks(stages).map(<[Vec<usize>]>::to_vec).collect();
                    patterns.insert(Pattern { units: rows });
                }
                let of = |used: &[Vec<usize>], replica: usize| {
                    used.iter().skip(replica).step_by(replicas).cloned().collect()
                };
                patterns.insert(Pattern { units: (0..replicas).map(|at| of(used, at)).collect() });
                // The head is large, and needs a roomy unit too.
                let mut turned = used.to_vec();
                turned.rotate_left(replicas);
                patterns
                    .insert(Pattern { units: (0..replicas).map(|at| of(&turned, at)).collect() });
            }
        }
        patterns
    }
}

/// Every order of a few units.
fn permutations(units: &[Vec<usize>]) -> Vec<Vec<Vec<usize>>> {
    if units.len() < 2 {
        return vec![units.to_vec()];
    }
    let mut all = Vec::new();
    for at in 0..units.len() {
        let mut rest = units.to_vec();
        let first = rest.remove(at);
        for mut order in permutations(&rest) {
            order.insert(0, first.clone());
            all.push(order);
        }
    }
    all
}
