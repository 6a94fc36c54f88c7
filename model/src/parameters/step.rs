//! The optimizer's pass over memory: every piece of a parameter is stepped, its gradient forgotten and
//! its compute weight refreshed by one task, while it is in that core's cache.

use shoal_kernels::adamw::{self, AdamStep, Average};
use shoal_kernels::linear::WeightPiece;
use shoal_kernels::spread;

use super::arena::{MomentsMut, Rest};
use super::{Class, Compute, Entry, ParameterGroup, Parameters};

/// Some neighbouring numbers of one parameter.
struct Piece<'a> {
    numbers: Rest<'a>,
    weight: Option<WeightPiece<'a>>,
    decays: bool,
}

impl Parameters {
    /// AdamW on every parameter, then fresh compute weights and no gradients.
    pub(crate) fn step(&mut self, adam: &AdamStep) {
        let decay = self.average_decay();
        spread::each(self.pieces(), |piece| piece.step(adam, decay));
    }

    fn pieces(&mut self) -> Vec<Piece<'_>> {
        let Self { entries, compute, dense, expert, embedding, options, .. } = self;
        let excluded = |group: ParameterGroup| options.weight_decay_exclude.contains(&group);
        let [mut dense, mut expert, mut embedding] = [dense, expert, embedding].map(Rest::of);
        let mut pieces = Vec::with_capacity(entries.len() * 4);
        for (Entry { specification, span }, compute) in entries.iter().zip(compute) {
            let rest = match specification.class {
                Class::Dense => &mut dense,
                Class::Expert => &mut expert,
                Class::Embedding => &mut embedding,
            };
            let decays = !specification.group().is_some_and(excluded);
            let Compute::Weight(weight) = compute else {
                pieces.push(Piece { numbers: rest.take(span.len()), weight: None, decays });
                continue;
            };
            for weight in weight.pieces_mut() {
                let numbers = rest.take(weight.len());
                pieces.push(Piece { numbers, weight: Some(weight), decays });
            }
        }
        pieces
    }
}

impl Piece<'_> {
    fn step(self, adam: &AdamStep, decay: f32) {
        let Rest { master, gradient, moments, average } = self.numbers;
        let weight_decay = if self.decays { adam.weight_decay } else { 0.0 };
        let adam = AdamStep { weight_decay, ..*adam };
        let average = average.map(|values| Average { values, decay });
        match moments {
            MomentsMut::Bf16(m, v) => {
                adamw::step_and_forget(master, (m, v), gradient, &adam, average);
            }
            MomentsMut::F32(m, v) => {
                adamw::step_and_forget(master, (m, v), gradient, &adam, average);
            }
        }
        if let Some(weight) = self.weight {
            weight.refresh(master);
        }
    }
}
