//! The groups a cell takes part in, and the expert group as the model's layers see it.

use shoal_model::{Exchange, ExchangeError};
use shoal_plan::grid::{CellId, Grid};

use crate::comm::Comm;

/// The cells this one sums and exchanges with, each list in cell order.
#[derive(Clone, Debug)]
pub(super) struct Groups {
    /// Dense gradients and routing counts.
    pub(super) stage: Vec<CellId>,
    /// Expert gradients.
    pub(super) replicas: Vec<CellId>,
    /// Tokens, inside the MoE layers.
    pub(super) experts: Vec<CellId>,
    /// The embedding's gradient; `None` on a stage that holds no copy.
    pub(super) embedding: Option<Vec<CellId>>,
    /// The vote.
    pub(super) all: Vec<CellId>,
}

impl Groups {
    /// The groups of `cell`. The last stage may hold a copy of the embedding, see
    /// `ModelConfig::embedding_is_at_both_ends`.
    pub(super) fn of(grid: Grid, cell: CellId, both_ends: bool) -> Self {
        let stage = grid.cell(cell).stage;
        let holders = if both_ends { grid.embedding_group() } else { grid.stage_group(0) };
        Self {
            stage: grid.stage_group(stage),
            replicas: grid.replica_group(cell),
            experts: grid.expert_group(cell),
            embedding: holders.contains(&cell).then_some(holders),
            all: grid.cells().collect(),
        }
    }
}

/// The expert group's all-to-all over a communicator.
pub(super) struct GroupExchange<'a> {
    pub(super) comm: &'a mut dyn Comm,
    pub(super) group: &'a [CellId],
}

impl Exchange for GroupExchange<'_> {
    fn size(&self) -> usize {
        self.group.len()
    }

    fn rank(&self) -> usize {
        let me = self.comm.cell();
        self.group.iter().position(|cell| *cell == me).expect("a cell is in its own expert group")
    }

    fn all_to_all(&mut self, outgoing: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, ExchangeError> {
        self.comm.all_to_all(self.group, outgoing).map_err(|error| ExchangeError(Box::new(error)))
    }
}
