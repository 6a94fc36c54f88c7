//! What a stage costs, and a step's length by formula: what the search compares before it simulates.

use std::collections::BTreeMap;

use super::{Builder, Pattern};
use crate::batch::BatchDivision;
use crate::cost::compute::{Halves, Load};
use crate::cost::links::Member;
use crate::planner::Candidate;
use crate::schedule::Schedule;

/// A stage of a replica in one round: seconds of its layers, and of its messages.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StageCost {
    dense: Halves,
    moe: Halves,
    last: Halves,
    /// To the stage after: until the last byte is there, and how long the interface is busy.
    hop: f64,
    sent: f64,
}

impl StageCost {
    /// With so many layers of each kind; the last stage has the head.
    pub(super) fn halves(&self, dense: f64, moe: f64, is_last: bool) -> Halves {
        let layers = Halves::default().plus(self.dense, dense).plus(self.moe, moe);
        if is_last { layers.plus(self.last, 1.0) } else { layers }
    }
}

/// A step of one pipeline by formula.
pub(super) struct Paced {
    pub(super) step_s: f64,
    /// Of a round, when all stages are at work.
    pub(super) round_s: f64,
}

/// `rounds` microbatches through stages of these lengths. A round takes as long as the busiest stage or interface, or
/// as a microbatch's way from a stage to the end and back, shared by the microbatches that the stage has under way
/// (Little's law). A stage works from when the first microbatch comes until its last gradient is on the way up.
pub(super) fn step(
    stages: &[Halves],
    costs: &[StageCost],
    rounds: f64,
    schedule: Schedule,
) -> Paced {
    let n = stages.len();
    let mut round_s = 0.0_f64;
    let mut around = 0.0;
    for at in (0..n).rev() {
        around += stages[at].forward + stages[at].input;
        if at + 1 < n {
            around += 2.0 * costs[at].hop;
        }
        // One direction after the other leaves a stage: on, and back.
        let back = if at > 0 { costs[at - 1].sent } else { 0.0 };
        let on = if at + 1 < n { costs[at].sent } else { 0.0 };
        round_s = round_s.max(stages[at].total()).max(on + back).max(around / (n - at) as f64);
    }
    let (mut down, mut up, mut step_s) = (0.0, 0.0, rounds * round_s);
    for (at, stage) in stages.iter().enumerate() {
        let work = rounds * stage.total();
        let deferred = if schedule == Schedule::ZbH1 { (at as f64).min(rounds) } else { 0.0 };
        step_s = step_s.max(down + work).max(down + work - deferred * stage.weight + up);
        down += stage.forward + costs[at].hop;
        up += stage.input + costs[at].hop;
    }
    Paced { step_s, round_s }
}

impl Builder<'_> {
    pub(super) fn stage_costs(
        &self,
        pattern: &Pattern,
        candidate: &Candidate,
        division: &BatchDivision,
        replica: u32,
    ) -> Vec<StageCost> {
        let (job, model) = (self.question.job, &self.question.job.model);
        let (shards, software) = (candidate.grid.expert_shards, self.question.software);
        let sequence = f64::from(job.training.sequence);
        let rounds = division.rounds().max(1) as f64;
        let largest = |shard: u32| division.largest_microbatch(replica * shards + shard) as f64;
        let part = |shard: u32| division.column(replica * shards + shard);
        let all: f64 = (0..shards).map(|shard| (part(shard).end - part(shard).start) as f64).sum();
        let at_most: f64 = (0..shards).map(largest).sum();
        // Rounds that are smaller, or empty.
        let busy = if at_most > 0.0 { all / rounds / at_most } else { 0.0 };
        let total = f64::from(model.n_routed_experts.max(1));
        let chosen = f64::from(model.num_experts_per_tok);
        let wide = 2.0 * f64::from(model.hidden_size);
        let of_unit = |unit: &Vec<usize>| {
            let members: Vec<Member> = (0..shards)
                .zip(unit)
                .map(|(shard, card)| Member {
                    machine: self.layout.machines[*card],
                    own: largest(shard) * sequence,
                    experts: f64::from(candidate.experts[shard as usize]) / total,
                })
                .collect();
            let tokens: f64 = members.iter().map(|member| member.own).sum();
            let mut cost = StageCost::default();
            for (member, card) in members.iter().zip(unit) {
                let experts = member.experts * f64::from(model.n_routed_experts);
                let load =
                    Load { own: member.own, routed: tokens * chosen * member.experts, experts };
                let times = self.layer_times(self.layout.rig(*card), load);
                cost.dense = cost.dense.max(times.dense);
                cost.moe = cost.moe.max(times.moe);
                cost.last = cost.last.max(times.last);
            }
            let exchange = self.layout.network.exchange(model, &members, software);
            let exchanged = exchange.seconds(wide / 2.0) + exchange.seconds(wide);
            let exposed = software.exposed(exchanged, cost.moe.forward);
            cost.moe.forward += exposed;
            cost.moe.input += exposed;
            let none = Halves::default();
            cost.dense = none.plus(cost.dense, busy);
            cost.moe = none.plus(cost.moe, busy);
            cost.last = none.plus(cost.last, busy);
            cost
        };
        let units = &pattern.units[replica as usize];
        let own: Vec<f64> = (0..shards).map(|shard| largest(shard) * sequence * busy).collect();
        let mut costs: Vec<StageCost> = units.iter().map(of_unit).collect();
        for at in 1..units.len() {
            let mut bytes: BTreeMap<(usize, usize), f64> = BTreeMap::new();
            for ((a, b), own) in units[at - 1].iter().zip(&units[at]).zip(&own) {
                let pair = (self.layout.machines[*a], self.layout.machines[*b]);
                *bytes.entry(pair).or_default() += own * wide;
            }
            let sharing = self.crossings(pattern, replica as usize, at);
            for ((a, b), bytes) in bytes {
                let network = &self.layout.network;
                let way = if a == b { network.peers(a) } else { network.between(a, b) };
                let sharing = if a == b { 1.0 } else { sharing };
                let sent = bytes * sharing / way.bytes_per_s;
                costs[at - 1].sent = costs[at - 1].sent.max(sent);
                costs[at - 1].hop = costs[at - 1].hop.max(sent + way.latency_s);
            }
        }
        costs
    }

    /// Replicas whose message between these stages leaves the same machine: they share its network.
    fn crossings(&self, pattern: &Pattern, replica: usize, to: usize) -> f64 {
        let machine =
            |replica: usize, stage: usize| self.layout.machines[pattern.units[replica][stage][0]];
        let here = machine(replica, to - 1);
        // A machine has few cards, so few replicas.
        let n = pattern.units.len().min(64);
        let leaves = |other: &usize| machine(*other, to - 1) == here && machine(*other, to) != here;
        ((0..n).filter(leaves).count() as f64).max(1.0)
    }
}
