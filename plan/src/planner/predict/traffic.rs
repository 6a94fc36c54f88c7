//! What leaves the machines in a step, and how long the sums of gradients at its end take.

use std::collections::BTreeMap;

use super::Predictor;
use crate::arithmetic;
use crate::cost::links::Member;
use crate::job::Job;
use crate::planner::candidate::ranges;
use crate::planner::{Candidate, Layout};

/// Bytes from one machine to another.
pub(super) type Between = BTreeMap<(usize, usize), f64>;

impl Predictor<'_> {
    pub(super) fn count_messages(&self, replica: u32, between: &mut Between) {
        let (stages, chunks) = (self.candidate.grid.stages, self.candidate.chunks);
        for column in self.columns(replica) {
            let part = self.division.column(column);
            let tokens = (part.end - part.start) as f64 * f64::from(self.job.training.sequence);
            let machine = |stage| self.layout.machines[self.candidate.card(stage, column)];
            for hop in 1..stages * chunks {
                let (a, b) = (machine((hop - 1) % stages), machine(hop % stages));
                if a != b {
                    // Hidden states one way, their gradients the other.
                    for way in [(a, b), (b, a)] {
                        *between.entry(way).or_default() += tokens * self.plain_row();
                    }
                }
            }
        }
        for stage in 0..stages {
            let own: Vec<f64> = self
                .columns(replica)
                .map(|column| {
                    let part = self.division.column(column);
                    (part.end - part.start) as f64 * f64::from(self.job.training.sequence)
                })
                .collect();
            let group = self.members(replica, stage, &own);
            let rows = self
                .layout
                .network
                .exchange(&self.job.model, &group, self.question.software)
                .rows_outside;
            let moe = self.moe_layers(stage);
            let bytes = 2.0 * moe * rows * (self.row() + self.plain_row());
            if bytes > 0.0 {
                spread(&group, bytes, between);
            }
        }
    }

    fn moe_layers(&self, stage: u32) -> f64 {
        let model = &self.job.model;
        let all = ranges(&self.candidate.layers);
        let own = all.iter().skip(stage as usize).step_by(self.candidate.grid.stages as usize);
        let n = own.flat_map(Clone::clone).filter(|layer| model.is_moe(*layer)).count() as f64;
        let last = stage + 1 == self.candidate.grid.stages && model.n_routed_experts > 0;
        if last { n + f64::from(model.num_nextn_predict_layers) } else { n }
    }
}

/// What an expert group exchanges outside its machines, by how many of its cells each has.
fn spread(group: &[Member], bytes: f64, between: &mut Between) {
    let mut cells: BTreeMap<usize, f64> = BTreeMap::new();
    for member in group {
        *cells.entry(member.machine).or_default() += 1.0;
    }
    let all = group.len() as f64;
    for (from, own) in &cells {
        for (to, theirs) in cells.iter().filter(|(to, _)| *to != from) {
            *between.entry((*from, *to)).or_default() += bytes * own / all * theirs / (all - own);
        }
    }
}

/// Sums of gradients at the end of a step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sums {
    pub(crate) seconds: f64,
    /// The machines of each stage, in a ring, and what each sends to the next, in bytes.
    pub(crate) rings: Vec<(Vec<usize>, f64)>,
}

/// Sums of gradients at the end of a step, in FP32: dense ones over the cells of a stage, experts' over replicas.
/// First inside each machine, then over the network, which all stages share.
pub(crate) fn sums(job: &Job, layout: &Layout<'_>, candidate: &Candidate) -> Sums {
    let grid = candidate.grid;
    if grid.columns() == 1 {
        return Sums::default();
    }
    let model = &job.model;
    let ranges = ranges(&candidate.layers);
    let all: u32 = candidate.experts.iter().sum();
    let (mut inside_s, mut outside_s) = (0.0_f64, 0.0_f64);
    let mut network: BTreeMap<usize, f64> = BTreeMap::new();
    let mut rings = Vec::new();
    for stage in 0..grid.stages {
        let own = ranges.iter().skip(stage as usize).step_by(grid.stages as usize);
        let layers: Vec<u32> = own.flat_map(Clone::clone).collect();
        let dense: u64 = layers.iter().map(|layer| arithmetic::dense_linears(model, *layer)).sum();
        let experts: u64 =
            layers.iter().map(|layer| arithmetic::routed_linears(model, *layer, all)).sum();
        let ends = u64::from(stage == 0) + u64::from(stage + 1 == grid.stages);
        let table = u64::from(model.vocab_size) * u64::from(model.hidden_size);
        let dense = 4.0 * (dense + ends * table) as f64;
        let experts = 4.0 * experts as f64;
        let mut per_machine: BTreeMap<usize, f64> = BTreeMap::new();
        for column in 0..grid.columns() {
            *per_machine.entry(layout.machines[candidate.card(stage, column)]).or_default() += 1.0;
        }
        let machines: Vec<usize> = per_machine.keys().copied().collect();
        let most = per_machine.values().copied().fold(0.0, f64::max);
        // A card sums its part with the others of its machine.
        let peers = machines.iter().map(|at| layout.network.peers(*at).bytes_per_s);
        let peers = peers.fold(f64::INFINITY, f64::min);
        inside_s = inside_s.max(2.0 * (most - 1.0) / most * dense / peers);
        // Each machine's part of the experts: its cards have so much of a copy.
        let copies = f64::from(grid.replicas);
        let shards = f64::from(grid.expert_shards);
        let experts = if grid.replicas > 1 {
            experts * (most / shards).min(1.0) * (copies - 1.0) / copies
        } else {
            0.0
        };
        let dense = if machines.len() > 1 { dense } else { 0.0 };
        let experts = if machines.len() > 1 { experts } else { 0.0 };
        outside_s = outside_s.max(layout.network.ring_s(&machines, dense + experts));
        for machine in &machines {
            *network.entry(*machine).or_default() += 2.0 * (dense + experts);
        }
        rings.push((machines, 2.0 * (dense + experts)));
    }
    // Several stages of a machine share its network.
    for (machine, bytes) in &network {
        outside_s = outside_s.max(bytes / 2.0 / layout.network.nic(*machine));
    }
    Sums { seconds: inside_s + outside_s, rings }
}
