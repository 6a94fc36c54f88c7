//! The grid of logical cells. The grid fixes the numbers; where cells run fixes only the speed.
//!
//! Cell order is stage-major, then replica, then expert shard, and every reduction sums in it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How the model is cut: `stages` x `expert_shards` x `replicas` cells. None is ever zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// Pipeline stages: consecutive ranges of layers.
    pub stages: u32,
    /// Parts the routed experts of a layer are divided into.
    pub expert_shards: u32,
    /// Copies of every expert. Cells of a stage train their own sequences all the same.
    pub replicas: u32,
}

/// A cell's place in cell order: `(stage * replicas + replica) * expert_shards + expert_shard`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CellId(pub u32);

/// A cell by its coordinates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    pub stage: u32,
    pub replica: u32,
    pub expert_shard: u32,
}

impl Grid {
    /// The grid of one cell.
    pub const ONE: Self = Self { stages: 1, expert_shards: 1, replicas: 1 };

    /// All cells of the grid.
    pub fn n_cells(self) -> u32 {
        self.stages * self.columns()
    }

    /// Cells of one stage: each trains its own sequences. Also the number of pipelines.
    pub fn columns(self) -> u32 {
        self.expert_shards * self.replicas
    }

    /// Every cell, in cell order.
    pub fn cells(self) -> impl Iterator<Item = CellId> {
        (0..self.n_cells()).map(CellId)
    }

    /// The coordinates of a cell.
    pub fn cell(self, id: CellId) -> Cell {
        assert!(id.0 < self.n_cells(), "{id} is not in the grid {self}");
        let column = id.0 % self.columns();
        Cell {
            stage: id.0 / self.columns(),
            replica: column / self.expert_shards,
            expert_shard: column % self.expert_shards,
        }
    }

    /// The cell at these coordinates.
    pub fn id(self, cell: Cell) -> CellId {
        CellId((cell.stage * self.replicas + cell.replica) * self.expert_shards + cell.expert_shard)
    }

    /// A cell's place among the cells of its stage: which share of the sequences it trains.
    pub fn column(self, id: CellId) -> u32 {
        id.0 % self.columns()
    }

    /// The cells of a stage, in cell order: they sum dense gradients and routing counts.
    pub fn stage_group(self, stage: u32) -> Vec<CellId> {
        (0..self.columns()).map(|column| CellId(stage * self.columns() + column)).collect()
    }

    /// The cells that share one copy of a stage's experts: they exchange tokens.
    pub fn expert_group(self, id: CellId) -> Vec<CellId> {
        let at = self.cell(id);
        (0..self.expert_shards).map(|expert_shard| self.id(Cell { expert_shard, ..at })).collect()
    }

    /// The cells that own copies of the same experts: they sum expert gradients.
    pub fn replica_group(self, id: CellId) -> Vec<CellId> {
        let at = self.cell(id);
        (0..self.replicas).map(|replica| self.id(Cell { replica, ..at })).collect()
    }

    /// The first stage's cells and the last's (once each): they sum the embedding's gradient.
    pub fn embedding_group(self) -> Vec<CellId> {
        let mut group = self.stage_group(0);
        if self.stages > 1 {
            group.extend(self.stage_group(self.stages - 1));
        }
        group
    }

    /// The cell of the same column in another stage: they hand hidden states to each other.
    pub fn in_stage(self, id: CellId, stage: u32) -> CellId {
        CellId(stage * self.columns() + self.column(id))
    }
}

impl fmt::Display for Grid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.stages, self.expert_shards, self.replicas)
    }
}

impl fmt::Display for CellId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cell-{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinates_and_cell_order_agree_on_every_grid() {
        for (stages, expert_shards, replicas) in
            [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 2), (3, 4, 2)]
        {
            let grid = Grid { stages, expert_shards, replicas };
            for id in grid.cells() {
                assert_eq!(grid.id(grid.cell(id)), id);
                assert_eq!(grid.in_stage(id, grid.cell(id).stage), id);
            }
        }
    }

    #[test]
    fn groups_of_a_two_by_two_by_two_grid() {
        let grid = Grid { stages: 2, expert_shards: 2, replicas: 2 };
        let ids = |cells: &[u32]| cells.iter().copied().map(CellId).collect::<Vec<_>>();
        assert_eq!(grid.stage_group(1), ids(&[4, 5, 6, 7]));
        assert_eq!(grid.expert_group(CellId(6)), ids(&[6, 7]));
        assert_eq!(grid.replica_group(CellId(6)), ids(&[4, 6]));
        assert_eq!(grid.embedding_group(), ids(&[0, 1, 2, 3, 4, 5, 6, 7]));
        assert_eq!(grid.in_stage(CellId(1), 1), CellId(5));
        assert_eq!(grid.in_stage(CellId(5), 0), CellId(1));
    }
}
