//! A multi-token-prediction module that drafts: one more layer between the shared embedding and head.
//!
//! Source: DeepSeek-V3 report, sections 2.2 and 5.4.3. As in training, a hidden state is what the head
//! reads at its depth, and `eh_proj` reads [embedding ; hidden].

use shoal_kernels::linear::Weight;
use shoal_kernels::rowwise::product;

use super::reading::Reading;
use super::{Decoder, Layer, Step};

#[derive(Debug)]
pub(super) struct Module {
    e_norm: Vec<f32>,
    h_norm: Vec<f32>,
    eh_proj: Weight,
    layer: Layer,
    /// The norm before the shared head.
    norm: Vec<f32>,
}

impl Module {
    pub(super) fn read<E>(reading: &mut Reading<'_, E>, layer: u32) -> Result<Self, E> {
        Ok(Self {
            e_norm: reading.gain(layer, "enorm.weight")?,
            h_norm: reading.gain(layer, "hnorm.weight")?,
            eh_proj: reading.linear(layer, "eh_proj")?,
            layer: Layer::read(reading, layer)?,
            norm: reading.gain(layer, "shared_head.norm.weight")?,
        })
    }

    /// What the shared head reads [R, D].
    pub(super) fn forward(
        &self,
        decoder: &Decoder,
        embedded: Vec<f32>,
        hidden: &[f32],
        steps: &mut [Step<'_>],
    ) -> Vec<f32> {
        let (d, eps) = (self.norm.len(), decoder.config.rms_norm_eps);
        let e = decoder.normed(&embedded, &self.e_norm, eps);
        let h = decoder.normed(hidden, &self.h_norm, eps);
        let pairs = e.chunks_exact(d).zip(h.chunks_exact(d));
        let joined: Vec<f32> = pairs.flat_map(|(e, h)| [e, h].concat()).collect();
        let x = decoder.rounded(product(&joined, &self.eh_proj));
        let x = self.layer.forward(decoder, 0, x, steps);
        decoder.normed(&x, &self.norm, eps)
    }
}
