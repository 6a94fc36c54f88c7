//! How many layers a stage has room for.

use super::{Builder, Lack, Pattern};
use crate::batch::BatchDivision;
use crate::grid::CellId;
use crate::memory::cell_bytes;
use crate::planner::Candidate;
use crate::planner::predict::capacity;

impl Builder<'_> {
    /// The most layers that a stage has room for, on its tightest card.
    pub(super) fn cap(
        &self,
        pattern: &Pattern,
        candidate: &Candidate,
        division: &BatchDivision,
        stage: u32,
    ) -> Result<u32, Lack> {
        let shards = candidate.grid.expert_shards;
        let mut least = u32::MAX;
        let mut seen: Vec<(u64, u64, u64, u32)> = Vec::new();
        for replica in 0..candidate.grid.replicas {
            let largest = |shard| division.largest_microbatch(replica * shards + shard);
            let group: u64 = (0..shards).map(largest).sum();
            for shard in 0..shards {
                let card = pattern.units[replica as usize][stage as usize][shard as usize];
                let rig = self.layout.rig(card);
                let room = capacity(self.question, rig);
                let key = (room, largest(shard), group, candidate.experts[shard as usize]);
                if seen.contains(&key) {
                    continue;
                }
                seen.push(key);
                let cap = self.cap_of(candidate, (replica, shard, stage), group, room);
                least = least.min(cap.map_err(|bytes| Lack { bytes, rig })?);
            }
        }
        Ok(least)
    }

    fn cap_of(
        &self,
        candidate: &Candidate,
        (replica, shard, stage): (u32, u32, u32),
        group: u64,
        room: u64,
    ) -> Result<u32, u64> {
        let (grid, model) = (candidate.grid, &self.question.job.model);
        let column = (replica * grid.expert_shards + shard) as usize;
        let own = candidate.shares[column];
        let key = [
            grid.stages.into(),
            grid.expert_shards.into(),
            stage.into(),
            candidate.schedule as u64,
            own.into(),
            group,
            candidate.microbatch.into(),
            candidate.experts[shard as usize].into(),
            room,
        ];
        if let Some(known) = self.caps.borrow().get(&key) {
            return *known;
        }
        let with = |n: u32| {
            // Layers where they are largest: mixtures, as far as there are any.
            let first = model.first_k_dense_replace.min(model.num_hidden_layers - n);
            let start = if stage == 0 { 0 } else { first };
            let mut trial = candidate.clone();
            trial.layers = vec![0; grid.stages as usize];
            let (job, mut plan) = trial.replica(self.question.job, replica);
            plan.stages[stage as usize].layers = start..start + n;
            let id = CellId(stage * grid.expert_shards + shard);
            let d = u64::from(model.hidden_size);
            let tokens = u64::from(job.training.microbatch) * u64::from(job.training.sequence);
            // As `predict` counts them, for the largest microbatch there may be.
            let shards = u64::from(model.num_experts_per_tok.min(grid.expert_shards));
            let rows = if grid.expert_shards > 1 { 3 * tokens * shards } else { 0 };
            cell_bytes(&job, &plan, id).total().saturating_add(rows * 3 * d + 8 * tokens * d)
        };
        let most = model.num_hidden_layers - (grid.stages - 1);
        let (mut low, mut high) = (0, most);
        while low < high {
            let middle = (low + high).div_ceil(2);
            if with(middle) <= room {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        let cap = if low == 0 { Err(with(1) - room) } else { Ok(low) };
        self.caps.borrow_mut().insert(key, cap);
        cap
    }
}
