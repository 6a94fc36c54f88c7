//! Families of cells that differ in one size: how cost grows.

use shoal_plan::model::ModelConfig;

use crate::train::Cell;

/// The size that changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Tokens of a sequence; a step keeps its 4096 tokens.
    Tokens,
    /// Routed experts; a token chooses as many as before.
    Experts,
    Layers,
    /// Sequences of a step.
    Batch,
}

impl Over {
    pub const ALL: [Self; 4] = [Self::Tokens, Self::Experts, Self::Layers, Self::Batch];

    /// From the smallest cell to the largest: the size, and the cell that has it.
    pub fn cells(self, base: &Cell) -> Vec<(usize, Cell)> {
        let sizes: &[usize] = match self {
            Self::Tokens => &[256, 512, 1024, 2048, 4096],
            Self::Experts => &[8, 16, 32, 64, 128, 256],
            Self::Layers => &[2, 4, 8, 16],
            Self::Batch => &[1, 2, 4, 8, 16],
        };
        sizes.iter().map(|size| (*size, self.cell(base, *size))).collect()
    }

    fn cell(self, base: &Cell, size: usize) -> Cell {
        let (cell, model) = (base.clone(), base.model.clone());
        let n = size as u32;
        match self {
            Self::Tokens => {
                let max_position_embeddings = model.max_position_embeddings.max(n);
                let model = ModelConfig { max_position_embeddings, ..model };
                Cell { model, tokens: size, batch: (4096 / size).max(1), ..cell }
            }
            Self::Experts => Cell { model: ModelConfig { n_routed_experts: n, ..model }, ..cell },
            Self::Layers => Cell { model: ModelConfig { num_hidden_layers: n, ..model }, ..cell },
            Self::Batch => Cell { batch: size, ..cell },
        }
    }
}

#[cfg(test)]
mod tests {
    use shoal_plan::job::{Precision, Recompute};

    use super::*;

    #[test]
    fn one_size_grows_and_the_others_stay() {
        let base = Cell {
            model: ModelConfig::tiny(),
            precision: Precision::Bf16,
            recompute: Recompute::None,
            batch: 4,
            tokens: 128,
            microbatches: 1,
            text: vec![0; 200],
            seed: 1,
        };
        for over in Over::ALL {
            let cells = over.cells(&base);
            assert!(cells.is_sorted_by_key(|(size, _)| *size) && cells.len() >= 4);
            for (size, cell) in cells {
                let tokens = cell.batch * cell.tokens;
                let (experts, layers) =
                    (cell.model.n_routed_experts as usize, cell.model.num_hidden_layers as usize);
                match over {
                    Over::Tokens => assert_eq!((cell.tokens, tokens), (size, 4096)),
                    Over::Experts => assert_eq!((experts, tokens, layers), (size, 512, 4)),
                    Over::Layers => assert_eq!((layers, tokens, experts), (size, 512, 16)),
                    Over::Batch => assert_eq!((cell.batch, cell.tokens), (size, 128)),
                }
                assert!(cell.model.max_position_embeddings as usize >= cell.tokens);
            }
        }
    }
}
