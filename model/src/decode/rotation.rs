//! Cosines and sines of every position, read off the training pass's own rotation: it turns the pair
//! (1, 0) into (cosine, sine), with whatever scaling the model has.

use shoal_kernels::mla;
use shoal_kernels::tensor::{DType, Tensor};
use shoal_plan::model::ModelConfig;

use crate::mla::head_shape;

/// [positions, P], the columns being pairs (cosine, sine).
#[derive(Debug)]
pub(super) struct Rotation {
    turns: Tensor,
}

impl Rotation {
    pub(super) fn new(config: &ModelConfig) -> Self {
        let positions = config.max_position_embeddings as usize;
        let shape = mla::HeadShape { heads: 1, nope: 1, value: 1, ..head_shape(config, positions) };
        let probe = [1.0, 0.0].repeat(shape.rope / 2 * positions);
        let probe = Tensor::from_f32(DType::F32, &[positions, shape.rope], &probe);
        let nothing = |cols| Tensor::zeros(DType::F32, &[positions, cols]);
        let (_, k, _) = mla::split_forward(&nothing(1 + shape.rope), &nothing(2), &probe, &shape);
        let mut turns = Tensor::zeros(DType::F32, &[positions, shape.rope]);
        for (turn, k) in
            turns.f32s_mut().chunks_exact_mut(shape.rope).zip(k.f32s().chunks_exact(1 + shape.rope))
        {
            turn.copy_from_slice(&k[1..]);
        }
        Self { turns }
    }

    /// Turns the pairs of `x` [P] to `position`.
    pub(super) fn turn(&self, x: &mut [f32], position: usize) {
        let turns = &self.turns.f32s()[position * x.len()..][..x.len()];
        for (pair, turn) in x.as_chunks_mut::<2>().0.iter_mut().zip(turns.as_chunks::<2>().0) {
            let ([a, b], [cos, sin]) = (*pair, *turn);
            *pair = [a * cos - b * sin, a * sin + b * cos];
        }
    }
}
