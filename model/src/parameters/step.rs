//! The optimizer's pass over memory: every piece of a parameter is stepped, its gradient forgotten and
//! its compute weight refreshed by one task, while it is in that core's cache.

use shoal_kernels::adamw::{self, AdamStep, Average};
use shoal_kernels::checksum::checksum;
use shoal_kernels::linear::WeightPiece;
use shoal_kernels::spread;

use super::arena::{MomentsMut, Rest};
use super::{Class, Compute, Entry, ParameterGroup, Parameters};

/// Some neighbouring numbers of one parameter.
struct Piece<'a> {
    numbers: Rest<'a>,
    weight: Option<WeightPiece<'a>>,
    decays: bool,
    /// Where its numbers stand among all.
    first: u32,
}

impl Parameters {
    /// AdamW on every parameter, then fresh compute weights and no gradients. Returns the checksum of the
    /// masters.
    pub(crate) fn step(&mut self, adam: &AdamStep) -> u64 {
        let decay = self.average_decay();
        let sums = spread::map(self.pieces(), |piece| piece.step(adam, decay));
        sums.into_iter().fold(0, u64::wrapping_add)
    }

    fn pieces(&mut self) -> Vec<Piece<'_>> {
        let Self { entries, compute, dense, expert, embedding, options, .. } = self;
        let excluded = |group: ParameterGroup| options.weight_decay_exclude.contains(&group);
        let [mut dense, mut expert, mut embedding] = [dense, expert, embedding].map(Rest::of);
        let mut pieces = Vec::with_capacity(entries.len() * 4);
        let mut first = 0_u32;
        let mut next = |n: usize| {
            let at = first;
            first = first.wrapping_add(n as u32);
            at
        };
        for (Entry { specification, span }, compute) in entries.iter().zip(compute) {
            let rest = match specification.class {
                Class::Dense => &mut dense,
                Class::Expert => &mut expert,
                Class::Embedding => &mut embedding,
            };
            let decays = !specification.group().is_some_and(excluded);
            let Compute::Weight(weight) = compute else {
                let (numbers, first) = (rest.take(span.len()), next(span.len()));
                pieces.push(Piece { numbers, weight: None, decays, first });
                continue;
            };
            for weight in weight.pieces_mut() {
                let (numbers, first) = (rest.take(weight.len()), next(weight.len()));
                pieces.push(Piece { numbers, weight: Some(weight), decays, first });
            }
        }
        pieces
    }
}

impl Piece<'_> {
    fn step(self, adam: &AdamStep, decay: f32) -> u64 {
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
        // The masters are still in the cache.
        checksum(master, self.first)
    }
}
