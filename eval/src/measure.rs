//! What the model answers: losses, logits and gradients, piece by piece.
//!
//! The loss is the mean over all targets that count, of all sequences; gradients are of that mean
//! over the main head alone: neither the multi-token-prediction modules nor the balance loss are in it.

use shoal_model::{Alone, Cut, Evaluated, LossScale, Stage, StageOptions};
use shoal_plan::job::Precision;
use shoal_weights::Weights;

use crate::{EvalError, Examples};

/// Tokens of a piece: enough to keep every thread at work, few enough for the memory of a laptop.
const PIECE_TOKENS: usize = 1024;

/// Only a drawn parameter would depend on it, and every parameter is read.
const SEED: u64 = 0;

/// What is to be found out.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub precision: Precision,
    /// The loss of the multi-token-prediction modules, too.
    pub mtp: bool,
    pub gradients: bool,
    pub logits: bool,
}

/// A model that is ready to be asked.
pub struct Measured {
    stage: Stage,
    wanted: Wanted,
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Nats per target.
    pub loss: f64,
    pub targets: u64,
    /// The mean over the modules of their mean losses, in nats per target.
    pub mtp_loss: Option<f64>,
    /// [B, T, V], FP32, if wanted.
    pub logits: Option<Vec<f32>>,
}

impl Measured {
    /// Loads the model.
    ///
    /// # Errors
    /// Tensors that cannot be read; multi-token prediction of a model that has none.
    pub fn open(weights: &Weights, wanted: Wanted) -> Result<Self, EvalError> {
        let mut config = weights.config().clone();
        if wanted.mtp && config.num_nextn_predict_layers == 0 {
            let what = "the model has no multi-token-prediction module: leave --mtp out";
            return Err(EvalError::Wanted(what.to_owned()));
        }
        if !wanted.mtp {
            // What is not asked for need not be read.
            config.num_nextn_predict_layers = 0;
        }
        let mut stage = Stage::new(Cut::whole(config), &StageOptions::new(wanted.precision, SEED));
        weights.fill(&mut stage)?;
        Ok(Self { stage, wanted })
    }

    /// Holds the model against all examples. `progress` is told tokens done and in all.
    ///
    /// # Errors
    /// A loss that is not finite.
    pub fn measure(
        &mut self,
        examples: &Examples,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Found, EvalError> {
        let closed = examples.closed().filter(|_| self.wanted.mtp);
        let asked = closed.as_ref().unwrap_or(examples);
        let depths = self.stage.cut().config.num_nextn_predict_layers;
        if depths > 1 && !asked.is_full() {
            let what = "the loss of several multi-token-prediction modules is only defined where no \
                        label is -100: leave --mtp out";
            return Err(EvalError::Wanted(what.to_owned()));
        }
        let tokens = |examples: &Examples| (examples.sequences * examples.tokens) as u64;
        let of_logits = if self.wanted.logits { tokens(examples) } else { 0 };
        let all = tokens(asked) + of_logits;
        let targets = asked.n_targets();
        let scale = LossScale { main: 1.0 / targets as f32, mtp: 0.0, balance: 0.0 };
        let (mut done, mut main_sum, mut mtp_sum) = (0, 0.0, 0.0);
        for (sequence, batch) in asked.pieces(PIECE_TOKENS) {
            progress(done, all);
            let (main, mtp) = self.piece(&batch, &scale)?;
            if !main.is_finite() {
                return Err(EvalError::NotFinite { sequence, loss: main });
            }
            main_sum += main;
            mtp_sum += mtp;
            done += batch.inputs.len() as u64;
        }
        let mut logits = self.wanted.logits.then(Vec::new);
        if let Some(logits) = &mut logits {
            for (_, batch) in examples.pieces(PIECE_TOKENS) {
                progress(done, all);
                logits.extend(self.stage.all_logits(&batch)?);
                done += batch.inputs.len() as u64;
            }
        }
        progress(done, all);
        let mtp_targets = asked.n_mtp_targets();
        let mtp_loss = (self.wanted.mtp && mtp_targets > 0).then(|| mtp_sum / mtp_targets as f64);
        Ok(Found { loss: main_sum / targets as f64, targets, mtp_loss, logits })
    }

    /// Sums of the main and the multi-token-prediction loss of one piece, in nats.
    fn piece(
        &mut self,
        batch: &shoal_model::Batch<'_>,
        scale: &LossScale,
    ) -> Result<(f64, f64), EvalError> {
        if !self.wanted.gradients && !self.wanted.mtp {
            let Evaluated::Loss { loss_sum, .. } = self.stage.evaluate(batch, None, &mut Alone)?
            else {
                unreachable!("the whole model ends in a loss")
            };
            return Ok((loss_sum, 0.0));
        }
        self.stage.forward(0, batch, None, scale, &mut Alone)?;
        let losses = self.stage.take_losses();
        if self.wanted.gradients {
            self.stage.backward_input(0, None, &mut Alone)?;
            self.stage.backward_weight(0)?;
        } else {
            self.stage.abandon();
        }
        Ok((losses.main_sum, losses.mtp_sum))
    }

    /// The gradients of the mean loss after `measure`: name on disk, shape, values. Router biases
    /// have none.
    pub fn gradients(&self) -> impl Iterator<Item = (&str, &[usize], &[f32])> {
        let parameters = self.stage.parameters();
        parameters.names().map(|name| (name, parameters.shape(name), parameters.gradient(name)))
    }

    /// V.
    pub fn vocabulary(&self) -> usize {
        self.stage.cut().config.vocab_size as usize
    }
}
