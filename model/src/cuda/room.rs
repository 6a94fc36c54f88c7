//! How much room numbers take on a device, whatever there are of them: always as much as the cell may ever have to hold at
//! that place. So a step takes the same bytes in the same order however tokens are routed and however full its
//! microbatches are, and what a cell needs is known before it runs (`super::need`).

use shoal_plan::grid::CellId;
use shoal_plan::job::Job;
use shoal_plan::plan::Plan;

/// Rows: so many there are, and so many take room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) rows: usize,
    pub(super) room: usize,
}

impl From<usize> for Extent {
    fn from(rows: usize) -> Self {
        Self { rows, room: rows }
    }
}

/// The most that a cell ever holds of what comes and goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Tokens of a sequence.
    pub(super) sequence: usize,
    /// Tokens of a microbatch.
    pub(super) tokens: usize,
    /// Rows that the cells of the expert group send to this shard for one microbatch: each of their tokens at most once.
    pub(super) received: usize,
    /// Microbatches of a step.
    pub(super) microbatches: usize,
}

impl Room {
    /// For one cell of a plan: the fullest microbatch of any step and of an evaluation, and every token of its group
    /// routed to its own shard.
    pub fn of(job: &Job, plan: &Plan, id: CellId) -> Self {
        let sequence = job.training.sequence as usize;
        let tokens = |column| job.sequences_at_most(column) as usize * sequence;
        let group = plan.grid.expert_group(id).into_iter();
        Self {
            sequence,
            tokens: tokens(plan.grid.column(id)),
            received: group.map(|cell| tokens(plan.grid.column(cell))).sum(),
            microbatches: job.largest_division().n_microbatches() as usize,
        }
    }

    /// Pairs of a received row and one of so many experts here, of which a token chooses `top_k`.
    pub(super) fn pairs(&self, experts: usize, top_k: usize) -> usize {
        self.received * experts.min(top_k)
    }
}
