//! What every cell keeps, as `memory` counts it, with the rows on their way; and how long its update takes.

use super::{CellUse, Predictor, capacity};
use crate::grid::CellId;
use crate::memory::cell_bytes;

impl Predictor<'_> {
    pub(super) fn memory(&self, replica: u32) -> Vec<CellUse> {
        let (job, plan) = self.candidate.replica(self.question.job, replica);
        let d = f64::from(job.model.hidden_size);
        let sequence = f64::from(job.training.sequence);
        let division = job.largest_division();
        let tokens = |shard: u32| division.largest_microbatch(shard) as f64 * sequence;
        let group: f64 = (0..job.grid.expert_shards).map(tokens).sum();
        let chosen = f64::from(job.model.num_experts_per_tok.min(job.grid.expert_shards));
        let of_stage = |stage: u32| {
            // Cards of a kind with equal shares keep the same.
            let mut seen: Vec<(usize, u64, u32)> = Vec::new();
            let mut worst: Option<CellUse> = None;
            for shard in 0..job.grid.expert_shards {
                let column = replica * job.grid.expert_shards + shard;
                let card = self.candidate.card(stage, column);
                let rig = self.layout.rig(card);
                let key = (
                    rig,
                    division.largest_microbatch(shard),
                    self.candidate.experts[shard as usize],
                );
                if seen.contains(&key) {
                    continue;
                }
                seen.push(key);
                let bytes = cell_bytes(&job, &plan, CellId(stage * job.grid.expert_shards + shard));
                let rows = if job.grid.expert_shards > 1 && job.model.n_routed_experts > 0 {
                    tokens(shard) * chosen + group.min(tokens(shard) * chosen * 2.0)
                } else {
                    0.0
                };
                let buffers =
                    rows * (self.row() + self.plain_row()) + 4.0 * tokens(shard) * 2.0 * d;
                let capacity = capacity(self.question, rig);
                let one = CellUse { stage, column, card, bytes, buffers: buffers as u64, capacity };
                let over = |cell: &CellUse| cell.total() as f64 / cell.capacity as f64;
                if worst.as_ref().is_none_or(|old| over(old) < over(&one)) {
                    worst = Some(one);
                }
            }
            worst.expect("a stage has a cell")
        };
        (0..job.grid.stages).map(of_stage).collect()
    }

    pub(super) fn update(&self) -> f64 {
        let moments = self.job.training.moments.bytes() as f64 / 2.0;
        let cells = self.memory(0);
        let of = |cell: &CellUse| {
            let rig = self.layout.rig(cell.card);
            self.cards[rig].update_s(cell.bytes.masters as f64 / 4.0, moments)
        };
        cells.iter().map(of).fold(0.0, f64::max)
    }
}
