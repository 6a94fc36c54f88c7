//! One decoder layer: two residual blocks, attention and feed-forward.

use std::sync::Arc;

use shoal_kernels::spread;
use shoal_kernels::tensor::Tensor;
use shoal_plan::model::ModelConfig;

use crate::arithmetic::Arithmetic;
use crate::cut::Cut;
use crate::error::Error;
use crate::ffn::{Dense, DenseKept};
use crate::findings::NonFinite;
use crate::halves::Deferred;
use crate::memory::Memory;
use crate::mla::{Mla, MlaKept};
use crate::moe::{Moe, MoeKept};
use crate::parameters::Parameters;
use crate::run::Run;

#[derive(Clone, Debug)]
pub(crate) struct Layer {
    number: u32,
    attention: Mla,
    feed_forward: FeedForward,
}

#[derive(Clone, Debug)]
enum FeedForward {
    Dense(Dense),
    Moe(Box<Moe>),
}

/// Kept after forward.
#[derive(Clone, Debug)]
pub(crate) struct LayerKept {
    attention: MlaKept,
    feed_forward: FeedForwardKept,
}

#[derive(Clone, Debug)]
enum FeedForwardKept {
    Dense(Box<DenseKept>),
    Moe(Box<MoeKept>),
}

impl Layer {
    pub(crate) fn new(
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

    pub(crate) fn moe(&self) -> Option<&Moe> {
        match &self.feed_forward {
            FeedForward::Moe(moe) => Some(moe),
            FeedForward::Dense(_) => None,
        }
    }

    pub(crate) fn moe_mut(&mut self) -> Option<&mut Moe> {
        match &mut self.feed_forward {
            FeedForward::Moe(moe) => Some(moe),
            FeedForward::Dense(_) => None,
        }
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn forward(
        &self,
        p: &Parameters,
        x: Tensor,
        run: &mut Run<'_>,
    ) -> Result<(Tensor, LayerKept), Error> {
        let shape = run.shape;
        let (x, attention) = spread::inside(|| self.attention.forward(p, x, shape));
        run.findings.check(&x, || {
            NonFinite::forward(self.number, format!("layer {} forward, attention", self.number))
        });
        let (y, feed_forward) = match &self.feed_forward {
            FeedForward::Dense(dense) => {
                let (y, kept) = spread::inside(|| dense.forward(p, x));
                (y, FeedForwardKept::Dense(Box::new(kept)))
            }
            FeedForward::Moe(moe) => {
                let (y, kept) = moe.forward(p, x, run)?;
                (y, FeedForwardKept::Moe(Box::new(kept)))
            }
        };
        run.findings.check(&y, || {
            NonFinite::forward(self.number, format!("layer {} forward", self.number))
        });
        Ok((y, LayerKept { attention, feed_forward }))
    }

    pub(crate) fn backward_input(
        &self,
        p: &mut Parameters,
        kept: LayerKept,
        d_y: Tensor,
        run: &mut Run<'_>,
        deferred: &mut Vec<Deferred>,
    ) -> Result<Tensor, Error> {
        let d_x = match (&self.feed_forward, kept.feed_forward) {
            (FeedForward::Dense(dense), FeedForwardKept::Dense(kept)) => {
                spread::inside(|| dense.backward_input(p, *kept, d_y, deferred))
            }
            (FeedForward::Moe(moe), FeedForwardKept::Moe(kept)) => {
                moe.backward_input(p, *kept, d_y, run, deferred)?
            }
            (FeedForward::Dense(_) | FeedForward::Moe(_), _) => {
                panic!("layer {} kept another kind of feed-forward", self.number)
            }
        };
        run.findings.check(&d_x, || {
            NonFinite::backward(self.number, format!("layer {} backward", self.number))
        });
        let shape = run.shape;
        let d_x = spread::inside(|| {
            self.attention.backward_input(p, kept.attention, d_x, shape, deferred)
        });
        run.findings.check(&d_x, || {
            NonFinite::backward(self.number, format!("layer {} backward, attention", self.number))
        });
        Ok(d_x)
    }
}

impl LayerKept {
    pub(crate) fn add_to(&self, memory: &mut Memory) {
        self.attention.add_to(memory);
        match &self.feed_forward {
            FeedForwardKept::Dense(kept) => kept.add_to(memory),
            FeedForwardKept::Moe(kept) => kept.add_to(memory),
        }
    }

    /// What the router decided, if the layer has one.
    pub(crate) fn moe(&self) -> Option<&MoeKept> {
        match &self.feed_forward {
            FeedForwardKept::Moe(kept) => Some(kept),
            FeedForwardKept::Dense(_) => None,
        }
    }
}
