//! From cards in a pattern to a candidate: experts, sequences and layers follow speed and memory.
//!
//! A *unit* is the cards of one stage of one replica: an expert group. The grid wants equal experts per shard in every
//! unit and equal layers per stage in every replica, so what is uneven is shared out against the slowest that has it.

mod pace;
mod room;

use std::cell::RefCell;
use std::collections::BTreeMap;

use pace::StageCost;

use super::predict::{capacity, sums};
use super::{Candidate, Layout, Question};
use crate::balance;
use crate::batch::BatchDivision;
use crate::cost::compute::{Card, Halves, LayerTimes, Load};
use crate::grid::Grid;
use crate::schedule::Schedule;

/// Cards in a pattern: `units[replica][stage]` are the cards of an expert group, by shard.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pattern {
    pub(super) units: Vec<Vec<Vec<usize>>>,
}

/// What a pattern leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Knobs {
    pub(super) microbatch: u32,
    pub(super) schedule: Schedule,
}

/// Bytes that are lacking where not even the least work fits, and the rig.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lack {
    pub(super) bytes: u64,
    pub(super) rig: usize,
}

/// Builds candidates, and remembers what it has worked out.
pub(super) struct Builder<'a> {
    pub(super) question: &'a Question<'a>,
    pub(super) layout: &'a Layout<'a>,
    cards: Vec<Card>,
    /// Tokens a second of one card with the whole model, by rig.
    pub(super) speeds: Vec<f64>,
    times: RefCell<BTreeMap<(usize, [u64; 3]), LayerTimes>>,
    caps: RefCell<BTreeMap<[u64; 9], Result<u32, u64>>>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(question: &'a Question<'a>, layout: &'a Layout<'a>) -> Self {
        let job = question.job;
        let cards: Vec<Card> =
            question.fleet.rigs.iter().map(|rig| Card::of(rig, job, question.software)).collect();
        let own = 4096.0;
        let chosen = f64::from(job.model.num_experts_per_tok);
        let load = Load { own, routed: own * chosen, experts: 8.0 };
        let speed = |card: &Card| own / card.layer_times(job, load).moe.total();
        let speeds = cards.iter().map(speed).collect();
        Self {
            question,
            layout,
            cards,
            speeds,
            times: RefCell::default(),
            caps: RefCell::default(),
        }
    }

    pub(super) fn speed(&self, card: usize) -> f64 {
        self.speeds[self.layout.rig(card)]
    }

    fn layer_times(&self, rig: usize, load: Load) -> LayerTimes {
        let key = (rig, [load.own.to_bits(), load.routed.to_bits(), load.experts.to_bits()]);
        let of = || self.cards[rig].layer_times(self.question.job, load);
        *self.times.borrow_mut().entry(key).or_insert_with(of)
    }

    /// A candidate and a rough estimate of its step, in seconds.
    pub(super) fn build(&self, pattern: &Pattern, knobs: Knobs) -> Result<(f64, Candidate), Lack> {
        let units = &pattern.units;
        let grid = Grid {
            stages: units[0].len() as u32,
            expert_shards: units[0][0].len() as u32,
            replicas: units.len() as u32,
        };
        let shards = grid.expert_shards as usize;
        let model = &self.question.job.model;
        // The shard that has fast cards everywhere gets more.
        let of_shard = |shard: usize| -> f64 {
            units.iter().flatten().map(|unit| self.speed(unit[shard])).sum()
        };
        let shard_speeds: Vec<f64> = (0..shards).map(of_shard).collect();
        let experts = apportion(model.n_routed_experts, &shard_speeds, 1);
        let of_replica = |replica: &Vec<Vec<usize>>| -> f64 {
            replica.iter().flatten().map(|card| self.speed(*card)).sum()
        };
        let mut weights: Vec<f64> = units.iter().map(of_replica).collect();
        let mut best: Option<(f64, Candidate)> = None;
        let mut lack = Lack { bytes: u64::MAX, rig: 0 };
        let rounds = match pattern.units.len() {
            1 => 1,
            2..=64 => 3,
            _ => 2,
        };
        for _ in 0..rounds {
            let shares = self.sequences(&weights, &shard_speeds);
            let cards = cells(pattern, grid);
            let candidate = Candidate {
                grid,
                schedule: knobs.schedule,
                chunks: 1,
                microbatch: knobs.microbatch,
                layers: Vec::new(),
                experts: experts.clone(),
                shares,
                cards,
            };
            match self.cut(pattern, candidate) {
                Ok((estimate, candidate, rates)) => {
                    weights = rates;
                    if best.as_ref().is_none_or(|(old, _)| estimate < *old) {
                        best = Some((estimate, candidate));
                    }
                }
                Err(short) => lack = if short.bytes < lack.bytes { short } else { lack },
            }
        }
        best.ok_or(lack)
    }

    /// Sequences of each column.
    fn sequences(&self, weights: &[f64], shards: &[f64]) -> Vec<u32> {
        let of_replicas = apportion(self.question.job.training.batch, weights, 0);
        of_replicas.into_iter().flat_map(|n| apportion(n, shards, 0)).collect()
    }

    /// Layers to stages; the estimate, and each replica's rate under this cut, up to a factor.
    fn cut(
        &self,
        pattern: &Pattern,
        mut candidate: Candidate,
    ) -> Result<(f64, Candidate, Vec<f64>), Lack> {
        let (job, model) = (self.question.job, &self.question.job.model);
        let grid = candidate.grid;
        let division =
            BatchDivision::new(job.training.batch.into(), &candidate.shares, candidate.microbatch);
        let rounds = division.rounds().max(1) as f64;
        let costs = self.costs(pattern, &candidate, &division);
        let layers = model.num_hidden_layers as usize;
        let mut moe_before = vec![0.0; layers + 1];
        for layer in 0..layers {
            moe_before[layer + 1] =
                moe_before[layer] + f64::from(u8::from(model.is_moe(layer as u32)));
        }
        let caps: Vec<Result<u32, Lack>> =
            (0..grid.stages).map(|stage| self.cap(pattern, &candidate, &division, stage)).collect();
        let mut most = Vec::with_capacity(caps.len());
        for cap in caps {
            most.push(cap? as usize);
        }
        let of = |replica: usize, part: usize, start: usize, end: usize| {
            let moes = moe_before[end] - moe_before[start];
            costs[replica].1[part].halves((end - start) as f64 - moes, moes, end == layers)
        };
        let stages = grid.stages as usize;
        let distinct: Vec<usize> = {
            let mut seen: BTreeMap<&[u64], usize> = BTreeMap::new();
            for (at, (key, _)) in costs.iter().enumerate() {
                seen.entry(key).or_insert(at);
            }
            seen.into_values().collect()
        };
        let cost = |part: usize, start: usize, end: usize| {
            if end - start > most[part] {
                return f64::INFINITY;
            }
            distinct.iter().map(|at| of(*at, part, start, end).total()).fold(0.0, f64::max)
        };
        let parts = balance::cut_by(layers, stages, cost).ok_or_else(|| {
            // Layers that find no room, at what one of them takes.
            let rig = self.layout.rig(pattern.units[0][0][0]);
            let room: usize = most.iter().sum();
            let left = layers.saturating_sub(room).max(1) as u64;
            let per_layer = capacity(self.question, rig) / most[0].max(1) as u64;
            Lack { bytes: left * per_layer, rig }
        })?;
        candidate.layers = parts.iter().map(|part| part.len() as u32).collect();
        let halves = |replica: usize| -> Vec<Halves> {
            let all = parts.iter().enumerate();
            all.map(|(at, part)| of(replica, at, part.start, part.end)).collect()
        };
        let mut pipeline = 0.0_f64;
        let mut rates = vec![0.0; grid.replicas as usize];
        for replica in &distinct {
            let paced =
                pace::step(&halves(*replica), &costs[*replica].1, rounds, candidate.schedule);
            pipeline = pipeline.max(paced.step_s);
            for (at, _) in costs.iter().enumerate().filter(|(_, one)| one.0 == costs[*replica].0) {
                let first = at * grid.expert_shards as usize;
                let own: u32 =
                    candidate.shares[first..first + grid.expert_shards as usize].iter().sum();
                rates[at] = f64::from(own.max(1)) / paced.round_s;
            }
        }
        let sums = sums(self.question.job, self.layout, &candidate).seconds;
        Ok((pipeline + sums, candidate, rates))
    }

    /// Seconds of a round in each stage of each replica, beside what they depend on.
    fn costs(
        &self,
        pattern: &Pattern,
        candidate: &Candidate,
        division: &BatchDivision,
    ) -> Vec<(Vec<u64>, Vec<StageCost>)> {
        let shards = candidate.grid.expert_shards;
        let mut known: BTreeMap<Vec<u64>, Vec<StageCost>> = BTreeMap::new();
        let mut all = Vec::with_capacity(pattern.units.len());
        for (replica, units) in (0..).zip(&pattern.units) {
            let mut key = Vec::new();
            let mut before = usize::MAX;
            for card in units.iter().flatten() {
                let machine = self.layout.machines[*card];
                key.push(
                    2 * self.layout.network.rig(machine) as u64 + u64::from(machine == before),
                );
                before = machine;
            }
            let part = |shard: u32| division.column(replica * shards + shard);
            key.extend((0..shards).map(|shard| part(shard).end - part(shard).start));
            if !known.contains_key(&key) {
                known.insert(key.clone(), self.stage_costs(pattern, candidate, division, replica));
            }
            all.push((key.clone(), known[&key].clone()));
        }
        all
    }
}

/// The card of every cell, in cell order.
pub(super) fn cells(pattern: &Pattern, grid: Grid) -> Vec<usize> {
    let of_stage = |stage: u32| {
        pattern.units.iter().flat_map(move |replica| replica[stage as usize].iter().copied())
    };
    (0..grid.stages).flat_map(of_stage).collect()
}

/// Shares `n` things by weight, by largest remainder, at least `least` each where there are enough.
pub(super) fn apportion(n: u32, weights: &[f64], least: u32) -> Vec<u32> {
    let parts = weights.len() as u32;
    let least = if n >= parts * least { least } else { 0 };
    let free = f64::from(n - parts * least);
    let sum: f64 = weights.iter().sum();
    let quota = |weight: &f64| free * weight / sum;
    let mut counts: Vec<u32> = weights.iter().map(|weight| least + quota(weight) as u32).collect();
    let left = n - counts.iter().sum::<u32>().min(n);
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|a, b| quota(&weights[*b]).fract().total_cmp(&quota(&weights[*a]).fract()));
    for at in order.into_iter().cycle().take(left as usize) {
        counts[at] += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_are_shared_by_weight_and_none_is_lost() {
        assert_eq!(apportion(10, &[1.0, 1.0, 2.0], 0), [3, 2, 5]);
        assert_eq!(apportion(16, &[3.0, 1.0], 1), [12, 4]);
        assert_eq!(apportion(5, &[1000.0, 1.0], 1), [4, 1]);
        assert_eq!(apportion(1, &[1.0, 1.0], 1), [1, 0]);
        for n in 0..50 {
            assert_eq!(apportion(n, &[0.3, 1.7, 2.9, 0.01], 0).iter().sum::<u32>(), n);
        }
    }
}
