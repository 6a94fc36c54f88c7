//! One decoder layer on a device: two residual blocks, attention and feed-forward. `crate::layer` judges it.

use std::sync::Arc;

use shoal_plan::model::ModelConfig;

use super::ffn::{Dense, DenseKept};
use super::halves::Deferred;
use super::matrix::Matrix;
use super::mla::{Mla, MlaKept};
use super::moe::{Moe, MoeKept};
use super::parameters::Parameters;
use super::run::Run;
use crate::arithmetic::Arithmetic;
use crate::cut::Cut;
use crate::error::Error;
use crate::findings::NonFinite;

#[derive(Debug)]
pub(super) struct Layer {
    number: u32,
    attention: Mla,
    feed_forward: FeedForward,
}

#[derive(Debug)]
enum FeedForward {
    Dense(Dense),
    Moe(Box<Moe>),
}

/// Kept after forward.
#[derive(Debug)]
pub(super) struct LayerKept {
    attention: MlaKept,
    feed_forward: FeedForwardKept,
}

#[derive(Debug)]
enum FeedForwardKept {
    Dense(Box<DenseKept>),
    Moe(Box<MoeKept>),
}

impl Layer {
    pub(super) fn new(
        p: &Parameters,
        config: &Arc<ModelConfig>,
        arithmetic: Arithmetic,
        cut: &Cut,
        number: u32,
    ) -> Self {
        let feed_forward = if config.is_moe(number) {
            FeedForward::Moe(Box::new(Moe::new(p, config, arithmetic, cut, number)))
        } else {
            FeedForward::Dense(Dense::new(p, arithmetic, number, config.rms_norm_eps))
        };
        Self { number, attention: Mla::new(p, config, arithmetic, number), feed_forward }
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// `bias` is the layer's router's, where it has one.
    pub(super) fn forward(
        &self,
        p: &Parameters,
        bias: Option<&[f32]>,
        x: Matrix,
        run: &mut Run<'_>,
    ) -> Result<(Matrix, LayerKept), Error> {
        let (number, shape) = (self.number, run.shape);
        let (x, attention) = self.attention.forward((run.gpu, p), x, shape, run.turns)?;
        run.check(&x, NonFinite::forward(number, format!("layer {number} forward, attention")))?;
        let (y, feed_forward) = match &self.feed_forward {
            FeedForward::Dense(dense) => {
                let (y, kept) = dense.forward((run.gpu, p), x)?;
                (y, FeedForwardKept::Dense(Box::new(kept)))
            }
            FeedForward::Moe(moe) => {
                let bias = bias.expect("a router has a bias");
                let (y, kept) = moe.forward(p, bias, x, run)?;
                (y, FeedForwardKept::Moe(Box::new(kept)))
            }
        };
        run.check(&y, NonFinite::forward(number, format!("layer {number} forward")))?;
        Ok((y, LayerKept { attention, feed_forward }))
    }

    pub(super) fn backward_input(
        &self,
        p: &Parameters,
        kept: LayerKept,
        d_y: &Matrix,
        run: &mut Run<'_>,
        deferred: &mut Vec<Deferred>,
    ) -> Result<Matrix, Error> {
        let number = self.number;
        let d_x = match (&self.feed_forward, kept.feed_forward) {
            (FeedForward::Dense(dense), FeedForwardKept::Dense(kept)) => {
                dense.backward_input((run.gpu, p), *kept, d_y, deferred)?
            }
            (FeedForward::Moe(moe), FeedForwardKept::Moe(kept)) => {
                moe.backward_input(p, *kept, d_y, run, deferred)?
            }
            (FeedForward::Dense(_) | FeedForward::Moe(_), _) => {
                panic!("layer {number} kept another kind of feed-forward")
            }
        };
        run.check(&d_x, NonFinite::backward(number, format!("layer {number} backward")))?;
        let (shape, halves) = (run.shape, (&mut *run.turns, deferred));
        let attention = kept.attention;
        let d_x = self.attention.backward_input((run.gpu, p), attention, &d_x, shape, halves)?;
        let place = format!("layer {number} backward, attention");
        run.check(&d_x, NonFinite::backward(number, place))?;
        Ok(d_x)
    }
}

impl LayerKept {
    /// What the router decided, if the layer has one.
    pub(super) fn moe(&self) -> Option<&MoeKept> {
        match &self.feed_forward {
            FeedForwardKept::Moe(kept) => Some(kept),
            FeedForwardKept::Dense(_) => None,
        }
    }
}
